//! A grammar in which calls cannot be anything but well-formed: the family's marks around the functions' own schemas.

use std::fmt::Write;

use orchestratord_engine::Tokenizer;
use serde_json::{Value, json};

use super::elements::is_text;
use super::family::{Elements, FENCE, Family, Form, parts};
use super::{Function, Tools, Wanted};
use crate::domain::limits;
use crate::domain::task::ResponseFormat;

/// White space between two words of arguments. Without a bound, a model that likes it could write nothing else.
const WHITE_SPACE: &str = r"[ \n\t]{1,8}";

impl Tools {
    /// The grammar of an answer; the plain text of none when nothing has to be enforced. `format` is what an answer without
    /// a call must look like.
    ///
    /// # Errors
    ///
    /// When such a format cannot stand beside tools.
    pub fn format(&self, tokenizer: &Tokenizer, format: &ResponseFormat) -> Result<ResponseFormat, String> {
        let is_free = self.wanted == Wanted::Auto
            && self.parallel
            && *format == ResponseFormat::Text
            && self.functions.iter().all(|f| !f.strict);
        if is_free {
            return Ok(ResponseFormat::Text);
        }
        let mut rules = String::new();
        let writer = Writer { family: self.family, tokenizer };
        let callable: Vec<&Function> = match self.wanted {
            Wanted::Named(index) => vec![&self.functions[index]],
            _ => self.functions.iter().collect(),
        };
        let most = if self.parallel && !matches!(self.wanted, Wanted::Named(_)) { limits::CALL_COUNT_MAX } else { 1 };
        writer.calls(&callable, most, &mut rules);
        let start = match (self.wanted, format) {
            (Wanted::Required | Wanted::Named(_), _) => format!("{}calls", writer.open_of_forced()),
            (Wanted::Auto, ResponseFormat::Text) => writer.text_then_calls(&mut rules),
            (Wanted::Auto, ResponseFormat::JsonObject) => {
                rule(&mut rules, "answer", format_args!("%json {}", bounded(&json!({"type": "object"}))));
                format!("answer | {}calls", writer.open_of_forced())
            }
            (Wanted::Auto, ResponseFormat::JsonSchema(schema)) => {
                let schema: Value = serde_json::from_str(schema).expect("it was written from JSON");
                rule(&mut rules, "answer", format_args!("%json {}", bounded(&schema)));
                format!("answer | {}calls", writer.open_of_forced())
            }
            (Wanted::Auto, ResponseFormat::Regex(_) | ResponseFormat::Grammar(_)) => {
                return Err("a regular expression or a grammar cannot stand beside tools: send a json_schema".into());
            }
        };
        Ok(ResponseFormat::Grammar(format!("start: {start}\n{rules}")))
    }
}

/// Why a function's arguments cannot be held to its schema in a family that writes them as elements: there a string is text up
/// to its end, of which a list of words can be enforced and nothing else.
pub(super) fn unenforceable(family: &Family, function: &Function) -> Option<String> {
    let Form::Elements(_) = family.form else { return None };
    let properties = function.parameters["properties"].as_object()?;
    properties.iter().filter(|(_, schema)| is_text(schema) && choices(schema).is_none()).find_map(|(key, schema)| {
        let rule =
            ["pattern", "minLength", "maxLength", "format"].into_iter().find(|rule| schema.get(rule).is_some())?;
        let (name, family) = (&function.name, family.name);
        Some(format!(
            "{rule} of {key:?} in {name:?} cannot be enforced for models of the family {family}: leave it out"
        ))
    })
}

/// The only texts that a schema allows, where it lists them.
fn choices(schema: &Value) -> Option<Vec<&str>> {
    match (&schema["const"], &schema["enum"]) {
        (Value::String(word), _) => Some(vec![word]),
        (_, Value::Array(words)) => words.iter().map(Value::as_str).collect(),
        _ => None,
    }
}

struct Writer<'a> {
    family: &'static Family,
    tokenizer: &'a Tokenizer,
}

impl Writer<'_> {
    /// The rule `calls`: one to `most` of them, without the mark that opens the first.
    fn calls(&self, functions: &[&Function], most: usize, out: &mut String) {
        let family = self.family;
        let names: Vec<String> = (0..functions.len()).map(|i| format!("f{i}")).collect();
        rule(out, "f", names.join(" | "));
        for (i, function) in functions.iter().enumerate() {
            let name = &function.name;
            let arguments = format!("a{i}");
            if let Form::Elements(elements) = family.form {
                self.elements(i, function, elements, out);
                continue;
            }
            match family.form {
                Form::Elements(_) => unreachable!("they were written"),
                Form::Name(mark) if family.passed_over.contains(&FENCE) => {
                    let (mark, head) = (self.mark(mark), literal(&format!("{name}\n{FENCE}json\n")));
                    let end = literal(&format!("\n{FENCE}"));
                    rule(out, &names[i], format_args!("\"function\" {mark} {head} {arguments} {end}"));
                }
                Form::Name(mark) => {
                    rule(out, &names[i], format_args!("{} {} {arguments}", literal(name), self.mark(mark)));
                }
                Form::Object | Form::List => {
                    let head = format!("{{\"name\": \"{name}\", \"{}\": ", family.arguments);
                    rule(out, &names[i], format_args!("{} {arguments} \"}}\"", literal(&head)));
                }
            }
            rule(out, &arguments, format_args!("%json {}", bounded(&function.parameters)));
        }
        let inner = literal(family.inner);
        let between = literal(family.between);
        let more = |next: &str| match most {
            1 => String::new(),
            _ => format!("({between} {next}){{0,{}}}", most - 1),
        };
        let open = self.mark(family.again.unwrap_or(family.open));
        let close = self.mark(family.close);
        let calls = match family.form {
            Form::List if family.opens_list() => format!("{inner} f {} \"]\" {close}", more("f")),
            Form::List => format!("{inner} \"[\" f {} \"]\" {close}", more("f")),
            Form::Elements(elements) if elements.end == family.close => format!("f {}", more(&format!("{open} f"))),
            Form::Object if family.close.is_empty() => format!("f {}", more("f")),
            Form::Object | Form::Elements(_) => {
                rule(out, "call", format_args!("{inner} f {inner} {close}"));
                format!("call {}", more(&format!("{open} call")))
            }
            Form::Name(_) => {
                let last = family.passed_over.last().map_or(String::new(), |mark| self.mark(mark));
                format!("f {close} {} {last}", more(&format!("{open} f {close}")))
            }
        };
        rule(out, "calls", calls);
    }

    /// A function whose arguments are elements, in the schema's order.
    fn elements(&self, i: usize, function: &Function, e: &Elements, out: &mut String) {
        let line = if e.in_lines { "\n" } else { "" };
        let required = |key: &str| {
            let list = function.parameters["required"].as_array();
            list.is_some_and(|names| names.iter().any(|name| name == key))
        };
        let mut body = literal(&format!("{}{}{}\n", e.name_open, function.name, e.name_close));
        let nothing = serde_json::Map::new();
        let properties = function.parameters["properties"].as_object().unwrap_or(&nothing);
        for (j, (key, schema)) in properties.iter().enumerate() {
            let between = if e.value_open.is_empty() { "" } else { "\n" };
            let head = literal(&format!("{}{key}{}{between}{}{line}", e.key_open, e.key_close, e.value_open));
            let end = format!("{line}{}", e.value_close);
            let value = format!("v{i}x{j}");
            match (is_text(schema), choices(schema)) {
                (true, Some(words)) => {
                    let words: Vec<String> = words.iter().map(|w| literal(&format!("{w}{end}"))).collect();
                    rule(out, &value, words.join(" | "));
                }
                (true, None) => drop(writeln!(out, "{value}[suffix={}]: /(?s:.*)/", literal(&end))),
                (false, _) => {
                    let mut schema = bounded(schema);
                    for shared in ["$defs", "definitions"] {
                        if let (Some(into), Some(these)) = (schema.as_object_mut(), function.parameters.get(shared)) {
                            into.insert(shared.to_owned(), these.clone());
                        }
                    }
                    rule(out, &format!("j{i}x{j}"), format_args!("%json {schema}"));
                    rule(out, &value, format_args!("j{i}x{j} {}", literal(&end)));
                }
            }
            let optional = if required(key) { "" } else { "?" };
            let _ = write!(body, " ({head} {value} \"\\n\"){optional}");
        }
        rule(out, &format!("f{i}"), format_args!("{body} {}", self.mark(e.end)));
    }

    /// What a call that must come begins with.
    fn open_of_forced(&self) -> String {
        if self.family.open_is_optional { String::new() } else { format!("{} ", self.mark(self.family.open)) }
    }

    /// Any text, then calls or none.
    fn text_then_calls(&self, out: &mut String) -> String {
        let open = self.mark(self.family.open);
        if self.family.open_is_optional {
            // What begins as an object is a call.
            out.push_str("TEXT: /[ \\n\\t]*[^{ \\n\\t](?s:.*)/\n");
            return format!("TEXT | ({open})? calls");
        }
        out.push_str("TEXT: /(?s:.+)/\n");
        if parts(self.family.open).all(|mark| self.control(mark).is_some()) {
            return format!("TEXT? ({open} calls)?");
        }
        let _ = writeln!(out, "lead[suffix={open}]: /(?s:.*)/");
        "TEXT | lead calls".to_owned()
    }

    fn control(&self, mark: &str) -> Option<u32> {
        control_token(self.tokenizer, mark)
    }

    fn mark(&self, mark: &'static str) -> String {
        let one = |mark| self.control(mark).map_or_else(|| literal(mark), |token| format!("<[{token}]>"));
        parts(mark).map(one).collect::<Vec<String>>().join(" ")
    }
}

/// The control token that a mark is in this vocabulary; none where it is spelled in letters.
pub(super) fn control_token(tokenizer: &Tokenizer, mark: &str) -> Option<u32> {
    match tokenizer.encode(mark, false, true)[..] {
        [token] if tokenizer.is_control(token) => Some(token),
        _ => None,
    }
}

fn rule(out: &mut String, name: &str, body: impl std::fmt::Display) {
    let _ = writeln!(out, "{name}: {body}");
}

/// Text as it stands; nothing for no text.
fn literal(text: &str) -> String {
    if text.is_empty() { String::new() } else { Value::from(text).to_string() }
}

fn bounded(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(fields) = schema.as_object_mut() {
        fields.insert("x-guidance".to_owned(), json!({"whitespace_pattern": WHITE_SPACE}));
    }
    schema
}

#[cfg(test)]
mod tests {
    use orchestratord_engine::Model;
    use orchestratord_engine::testing::TinyModel;

    use super::super::family::by_name;
    use super::*;
    use crate::services::response_format::constraint;

    fn tools(family: &str, wanted: Wanted, parallel: bool) -> Tools {
        let function = |name: &str, properties: Value| Function {
            name: name.into(),
            description: None,
            parameters: json!({"type": "object", "properties": properties, "additionalProperties": false}),
            strict: true,
        };
        let functions = vec![function("n", json!({"a": {"type": "integer"}})), function("time", json!({}))];
        Tools { family: by_name(family), functions, wanted, parallel }
    }

    /// Whether an answer may be this text, with marks as letters and as control tokens.
    fn check(tools: &Tools, format: &ResponseFormat, text: &str, wanted: bool) {
        for marks in [vec![], tools.family.marks().collect()] {
            let has_marks = !marks.is_empty();
            let model = Model::from_vec(TinyModel { marks, ..TinyModel::default() }.to_bytes()).expect("a model");
            let grammar = tools.format(model.tokenizer(), format).expect("a grammar");
            let constraint = constraint(&model, &grammar).unwrap_or_else(|e| panic!("{grammar:?}: {e}"));
            let tokens = model.tokenizer().encode(text, false, true);
            let found = constraint.expect("not plain text").accepts(&tokens);
            assert_eq!(found.1, wanted, "{}, control tokens {has_marks}: {text:?}, {found:?}", tools.family.name);
        }
    }

    #[test]
    fn calls_that_must_come_are_well_formed_and_nothing_else() {
        let one = r#"<tool_call>
{"name": "n", "arguments": {"a": 7}}
</tool_call>"#;
        let other = "<tool_call>\n{\"name\": \"time\", \"arguments\": {}}\n</tool_call>";
        let llama = r#"{"name": "n", "parameters": {"a": 7}}"#;
        let coder = "<tool_call>\n<function=n>\n<parameter=a>\n7\n</parameter>\n</function>\n</tool_call>";
        let two_coders = format!("{coder}\n{coder}");
        let glm = "<tool_call>n\n<arg_key>a</arg_key>\n<arg_value>7</arg_value>\n</tool_call>";
        let phi = r#"<|tool_call|>[{"name": "n", "arguments": {"a": 7}}]<|/tool_call|>"#;
        let functools = r#"functools[{"name": "n", "arguments": {"a": 7}}]"#;
        let deepseek = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>n\n```json\n{\"a\": 7}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
        let deepseek_31 = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>n<｜tool▁sep｜>{\"a\": 7}<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
        let mistral = r#"[TOOL_CALLS] [{"name": "n", "arguments": {"a": 7}}]"#;
        let args = r#"[TOOL_CALLS]n[ARGS]{"a": 7}"#;
        let two = format!("{one}\n{other}");
        for (family, wanted, parallel, text, legal) in [
            ("hermes", Wanted::Required, true, one, true),
            ("hermes", Wanted::Required, true, two.as_str(), true),
            ("hermes", Wanted::Required, false, two.as_str(), false),
            ("hermes", Wanted::Named(0), true, one, true),
            ("hermes", Wanted::Named(0), true, other, false),
            ("hermes", Wanted::Named(1), true, other, true),
            ("hermes", Wanted::Required, true, "No.", false),
            ("hermes", Wanted::Required, true, "", false),
            (
                "hermes",
                Wanted::Required,
                true,
                "<tool_call>\n{\"name\": \"n\", \"arguments\": {\"a\": \"x\"}}\n</tool_call>",
                false,
            ),
            ("llama3", Wanted::Required, true, llama, true),
            ("llama3", Wanted::Required, true, &format!("{llama}; {llama}"), true),
            ("llama3", Wanted::Named(1), true, llama, false),
            ("mistral", Wanted::Required, true, mistral, true),
            ("mistral", Wanted::Required, true, "[TOOL_CALLS] []", false),
            ("qwen3-coder", Wanted::Required, true, coder, true),
            ("qwen3-coder", Wanted::Required, true, &two_coders, true),
            ("qwen3-coder", Wanted::Required, false, &two_coders, false),
            ("qwen3-coder", Wanted::Named(1), true, coder, false),
            ("qwen3-coder", Wanted::Named(1), true, "<tool_call>\n<function=time>\n</function>\n</tool_call>", true),
            ("qwen3-coder", Wanted::Required, true, &coder.replace('7', "x"), false),
            ("glm", Wanted::Required, true, glm, true),
            ("glm", Wanted::Required, true, &format!("{glm}\n{glm}"), true),
            ("glm", Wanted::Required, true, &glm.replace('7', "x"), false),
            ("phi4-functools", Wanted::Required, true, functools, true),
            (
                "phi4-functools",
                Wanted::Required,
                true,
                &format!("{},{}", &functools[..functools.len() - 1], &functools[9..]),
                false,
            ),
            ("phi4-functools", Wanted::Required, true, &functools.replace('7', "\"x\""), false),
            ("phi4", Wanted::Required, true, phi, true),
            ("phi4", Wanted::Required, true, &phi.replace('7', "\"x\""), false),
            ("deepseek", Wanted::Required, true, deepseek, true),
            ("deepseek", Wanted::Named(1), true, deepseek, false),
            ("deepseek-v3.1", Wanted::Required, true, deepseek_31, true),
            ("mistral-args", Wanted::Required, true, args, true),
            ("mistral-args", Wanted::Required, true, &format!("{args}{args}"), true),
            ("mistral-args", Wanted::Required, true, "[TOOL_CALLS]n[ARGS]{\"b\": 7}", false),
        ] {
            check(&tools(family, wanted, parallel), &ResponseFormat::Text, text, legal);
        }
    }

    #[test]
    fn who_is_free_to_call_may_speak_but_not_call_wrongly() {
        let auto = |family| tools(family, Wanted::Auto, true);
        for (family, text, legal) in [
            ("hermes", "Just text, 1 < 2.", true),
            ("hermes", "Let me see. <tool_call>\n{\"name\": \"n\", \"arguments\": {\"a\": 7}}\n</tool_call>", true),
            ("hermes", "<tool_call>\n{\"name\": \"n\", \"arguments\": {\"a\": 7}}\n</tool_call>", true),
            ("hermes", "Well: <tool_call>\n{\"name\": \"n\", \"arguments\": {\"b\": 7}}\n</tool_call>", false),
            ("hermes", "Well: <tool_call>\n{\"name\": \"rm\"", false),
            ("llama3", "Just text {}.", true),
            ("llama3", "{\"name\": \"n\", \"parameters\": {\"a\": 7}}", true),
            ("llama3", "<|python_tag|>{\"name\": \"n\", \"parameters\": {\"a\": 7}}", true),
            ("llama3", "{\"name\": \"rm\", \"parameters\": {}}", false),
            ("phi4-functools", "In Python, import functools.", true),
            ("phi4-functools", "functools[{\"name\": \"time\", \"arguments\": {}}]", true),
            ("phi4-functools", "functools[0]", false),
            ("mistral", "Just text [1].", true),
            ("mistral", "[TOOL_CALLS] [{\"name\": \"time\", \"arguments\": {}}]", true),
            ("mistral", "[TOOL_CALLS] [{\"name\": \"rm\", \"arguments\": {}}]", false),
            ("mistral-args", "Yes.[TOOL_CALLS]time[ARGS]{}", true),
        ] {
            check(&auto(family), &ResponseFormat::Text, text, legal);
        }
        let form = ResponseFormat::JsonSchema(
            r#"{"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]}"#.into(),
        );
        for (text, legal) in [
            ("{\"b\": 1}", true),
            ("<tool_call>\n{\"name\": \"time\", \"arguments\": {}}\n</tool_call>", true),
            ("text", false),
        ] {
            check(&auto("hermes"), &form, text, legal);
        }
        let mut free = auto("hermes");
        free.functions.iter_mut().for_each(|f| f.strict = false);
        let model = Model::from_vec(TinyModel::default().to_bytes()).expect("a model");
        assert_eq!(free.format(model.tokenizer(), &ResponseFormat::Text), Ok(ResponseFormat::Text));
        assert!(free.format(model.tokenizer(), &ResponseFormat::Regex("a".into())).is_err());
    }
}
