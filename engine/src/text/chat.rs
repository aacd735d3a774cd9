//! Chat templates, rendered as Hugging Face's `apply_chat_template` renders them.
//!
//! A template comes with the model file and is somebody else's program: it gets a fixed amount of fuel, no files, and the
//! time as an argument.

use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, context};
use serde::Serialize;

use super::Tokenizer;
use super::strftime::strftime;
use crate::LoadError;
use crate::gguf::Gguf;

/// Instructions a rendering may take. A long conversation through a large template takes some ten thousand.
const FUEL: u64 = 5_000_000;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user`, `assistant`, or what the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
    /// Functions that the assistant called in this turn.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The call that this turn answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// The function that this turn is the answer of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl ChatMessage {
    /// A turn that says something and nothing else.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> ChatMessage {
        let (role, content) = (role.into(), content.into());
        ChatMessage { role, content, tool_calls: Vec::new(), tool_call_id: None, name: None }
    }
}

/// A function that was called.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    pub id: String,
    pub name: String,
    /// An object, for templates write it as JSON themselves.
    pub arguments: serde_json::Value,
}

impl Serialize for ToolCall {
    /// In the shape that templates know it.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Function<'a> {
            name: &'a str,
            arguments: &'a serde_json::Value,
        }
        #[derive(Serialize)]
        struct Wire<'a> {
            id: &'a str,
            r#type: &'a str,
            function: Function<'a>,
        }
        let function = Function { name: &self.name, arguments: &self.arguments };
        Wire { id: &self.id, r#type: "function", function }.serialize(serializer)
    }
}

/// The template refused the conversation, or failed on it.
#[derive(Debug, thiserror::Error)]
#[error("the model's chat template refuses this conversation: {0}")]
pub struct TemplateError(String);

/// A model's chat template. Immutable; any number of threads may use one.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    adds_bos: bool,
    source: String,
}

const KEY: &str = "tokenizer.chat_template";

impl ChatTemplate {
    pub(crate) fn from_gguf(gguf: &Gguf<'_>, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>, LoadError> {
        let Some(source) = gguf.string(KEY)? else { return Ok(None) };
        ChatTemplate::from_source(source, &format!("metadata key {KEY:?}"), tokenizer).map(Some)
    }

    /// `place` is where the source stands, for messages.
    pub(crate) fn from_source(source: &str, place: &str, tokenizer: &Tokenizer) -> Result<ChatTemplate, LoadError> {
        let name = |token: Option<u32>| token.and_then(|t| tokenizer.token_name(t)).unwrap_or_default();
        let template = ChatTemplate::new(source, name(tokenizer.bos()), name(tokenizer.eos()));
        template.map_err(|e| LoadError::corrupt(place, one_line(&e)))
    }

    /// Compiles a template.
    fn new(source: &str, bos: &str, eos: &str) -> Result<ChatTemplate, Error> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        // Templates are written for Python, and call the methods of its strings and dicts.
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", tojson);
        environment.add_template_owned("chat", source.to_owned())?;
        let mut template = ChatTemplate {
            environment,
            bos: bos.to_owned(),
            eos: eos.to_owned(),
            adds_bos: false,
            source: source.to_owned(),
        };
        template.adds_bos = match template.render(&[ChatMessage::new("user", "?")], None, true, 0) {
            Ok(text) => !bos.is_empty() && text.starts_with(bos),
            // It wants another kind of conversation: then only its source can tell.
            Err(_) => source.contains("bos_token"),
        };
        Ok(template)
    }

    /// Writes a conversation as the model has learned it.
    ///
    /// `add_generation_prompt` ends it where the assistant is to go on. `now_ms` is the time since 1970 that the template
    /// may ask for, in UTC. `tools` are the functions that may be called, as `apply_chat_template` has them: a list of
    /// `{"type": "function", "function": {"name", "description", "parameters"}}`.
    ///
    /// # Errors
    ///
    /// When the template raises an exception (roles in an order that it does not know), fails, or runs out of fuel.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        tools: Option<&serde_json::Value>,
        add_generation_prompt: bool,
        now_ms: u64,
    ) -> Result<String, TemplateError> {
        let template = self.environment.get_template("chat").expect("it was added in `new`");
        let with_tools = tools.filter(|_| self.wants_tools_in_a_turn()).map(|tools| turns_with_tools(messages, tools));
        let messages = with_tools.map_or_else(|| Value::from_serialize(messages), Value::from_serialize);
        let strftime_now = Value::from_function(move |format: String| strftime(&format, now_ms));
        let context = context! {
            messages => messages,
            add_generation_prompt => add_generation_prompt,
            bos_token => self.bos,
            eos_token => self.eos,
            tools => tools.map_or(Value::from(()), Value::from_serialize),
            documents => Value::from(()),
            strftime_now => strftime_now,
        };
        template.render(context).map_err(|e| TemplateError(one_line(&e)))
    }

    /// The template as its authors wrote it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Phi-4-mini's template looks for functions in the system's turn, as a list in JSON.
    fn wants_tools_in_a_turn(&self) -> bool {
        ["message['tools']", "message.tools"].iter().any(|name| self.source.contains(name))
    }

    /// True when what it renders begins with the model's first token already.
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("adds_bos", &self.adds_bos).finish_non_exhaustive()
    }
}

/// The turns with the functions in the first one, which is the system's.
fn turns_with_tools(messages: &[ChatMessage], tools: &serde_json::Value) -> Vec<serde_json::Value> {
    let functions = tools.as_array().into_iter().flatten().map(|tool| tool["function"].clone());
    let functions = serde_json::Value::Array(functions.collect()).to_string();
    let mut turns: Vec<serde_json::Value> =
        messages.iter().map(|m| serde_json::to_value(m).expect("turns are plain data")).collect();
    if messages.first().is_none_or(|m| m.role != "system") {
        turns.insert(0, serde_json::json!({"role": "system", "content": ""}));
    }
    turns[0]["tools"] = functions.into();
    turns
}

/// What went wrong, without the template's source.
fn one_line(error: &Error) -> String {
    let text = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let place = error.line().map_or_else(String::new, |line| format!(" (line {line})"));
    format!("{}{place}", text.replace('\n', " "))
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// JSON as Python's `json.dumps(value, ensure_ascii=False)` writes it; the usual filter would escape for HTML.
fn tojson(value: Value, options: Kwargs) -> Result<Value, Error> {
    let failed = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    let mut out = Vec::new();
    match options.get::<Option<usize>>("indent")? {
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonJson)).map_err(failed)?,
        Some(indent) => {
            let spaces = " ".repeat(indent.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter)).map_err(failed)?;
        }
    }
    // Options such as `ensure_ascii=False` and `separators` that say what is done anyway.
    let _ = options.get::<Option<bool>>("ensure_ascii")?;
    options.assert_all_used()?;
    Ok(Value::from_safe_string(String::from_utf8(out).expect("serde_json writes UTF-8")))
}

/// `", "` and `": "` between items.
struct PythonJson;

impl serde_json::ser::Formatter for PythonJson {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(role: &str, content: &str) -> ChatMessage {
        ChatMessage::new(role, content)
    }

    fn render(source: &str) -> Result<String, TemplateError> {
        let template = ChatTemplate::new(source, "<s>", "</s>").expect("the template compiles");
        template.render(&[say("user", " hi <b> ")], None, true, 1_735_689_600_000)
    }

    #[test]
    fn templates_render_as_jinja_renders_them() {
        let cases = [
            ("{{ bos_token }}{{ messages[0].content | trim }}", "<s>hi <b>"),
            ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),
            ("{% for m in messages %}{{ loop.index0 }}{{ m['role'].upper() }}{% endfor %}", "0USER"),
            ("{{ messages | tojson }}", r#"[{"role": "user", "content": " hi <b> "}]"#),
            ("{{ {'a': [1, none, true]} | tojson }}", r#"{"a": [1, null, true]}"#),
            ("{{ strftime_now('%d %b %Y') }}", "01 Jan 2025"),
            ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
            ("{{ messages[0]['content'].strip() }}{{ nothing }}{{ tools is none }}", "hi <b>True"),
            ("{% set ns = namespace(n=1) %}{% for i in [1,2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "4"),
        ];
        for (source, wanted) in cases {
            assert_eq!(render(source).expect(source), wanted, "{source}");
        }
    }

    #[test]
    fn tools_and_calls_are_seen_as_hugging_face_shows_them() {
        let source = "{{ tools | tojson }}{% for m in messages %}{% if 'tool_calls' in m %}{{ m.tool_calls[0].function | tojson }}\
                      {% elif m.tool_call_id is defined %}{{ m.name }}={{ m.content }}{% endif %}{% endfor %}";
        let template = ChatTemplate::new(source, "<s>", "</s>").expect("it compiles");
        let tools = serde_json::json!([{"type": "function", "function": {"name": "f", "description": "b before a"}}]);
        let arguments = serde_json::json!({"b": 1, "a": [true]});
        let calls = vec![ToolCall { id: "c1".to_owned(), name: "f".to_owned(), arguments }];
        let turns = [
            say("user", "x"),
            ChatMessage { tool_calls: calls, ..say("assistant", "") },
            ChatMessage { tool_call_id: Some("c1".to_owned()), name: Some("f".to_owned()), ..say("tool", "7") },
        ];
        let wanted = r#"[{"type": "function", "function": {"name": "f", "description": "b before a"}}]{"name": "f", "arguments": {"b": 1, "a": [true]}}f=7"#;
        assert_eq!(template.render(&turns, Some(&tools), true, 0).expect("it renders"), wanted);
    }

    #[test]
    fn a_template_that_looks_for_tools_in_the_systems_turn_finds_them_there() {
        let source = "{% for message in messages %}{{ message['role'] }}:{% if message['role'] == 'system' and 'tools' in message %}\
                      {{ message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' }}{% endif %}{% endfor %}";
        let template = ChatTemplate::new(source, "<s>", "</s>").expect("it compiles");
        let tools = serde_json::json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
        let list = r#"<|tool|>[{"name":"f","parameters":{}}]<|/tool|>"#;
        for (turns, wanted) in [
            (vec![say("user", "x")], format!("system:{list}user:")),
            (vec![say("system", "Hi"), say("user", "x")], format!("system:Hi{list}user:")),
        ] {
            assert_eq!(template.render(&turns, Some(&tools), true, 0).expect("it renders"), wanted);
            assert!(!template.render(&turns, None, true, 0).expect("it renders").contains("<|tool|>"));
        }
    }

    #[test]
    fn an_exception_says_what_the_author_said() {
        let error = render("{{ raise_exception('roles must alternate') }}").unwrap_err().to_string();
        assert!(error.contains("roles must alternate"), "{error}");
    }

    #[test]
    fn a_template_cannot_run_for_ever() {
        let source = "{% for a in range(9999) %}{% for b in range(9999) %}{{ '' }}{% endfor %}{% endfor %}";
        let error = render(source).unwrap_err().to_string();
        assert!(error.contains("fuel"), "{error}");
    }

    #[test]
    fn adds_bos_is_found_out() {
        let adds = |source: &str| ChatTemplate::new(source, "<s>", "</s>").expect("it compiles").adds_bos();
        assert!(adds("{{ bos_token }}{{ messages[0].content }}"));
        assert!(!adds("{{ messages[0].content }}"));
    }
}
