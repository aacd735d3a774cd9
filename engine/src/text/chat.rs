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
        let mut template = ChatTemplate { environment, bos: bos.to_owned(), eos: eos.to_owned(), adds_bos: false };
        let probe = [ChatMessage { role: "user".to_owned(), content: "?".to_owned() }];
        template.adds_bos = match template.render(&probe, true, 0) {
            Ok(text) => !bos.is_empty() && text.starts_with(bos),
            // It wants another kind of conversation: then only its source can tell.
            Err(_) => source.contains("bos_token"),
        };
        Ok(template)
    }

    /// Writes a conversation as the model has learned it.
    ///
    /// `add_generation_prompt` ends it where the assistant is to go on. `now_ms` is the time since 1970 that the template
    /// may ask for, in UTC.
    ///
    /// # Errors
    ///
    /// When the template raises an exception (roles in an order that it does not know), fails, or runs out of fuel.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
        now_ms: u64,
    ) -> Result<String, TemplateError> {
        let template = self.environment.get_template("chat").expect("it was added in `new`");
        let strftime_now = Value::from_function(move |format: String| strftime(&format, now_ms));
        let context = context! {
            messages => messages,
            add_generation_prompt => add_generation_prompt,
            bos_token => self.bos,
            eos_token => self.eos,
            tools => Value::from(()),
            documents => Value::from(()),
            strftime_now => strftime_now,
        };
        template.render(context).map_err(|e| TemplateError(one_line(&e)))
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
        ChatMessage { role: role.to_owned(), content: content.to_owned() }
    }

    fn render(source: &str) -> Result<String, TemplateError> {
        let template = ChatTemplate::new(source, "<s>", "</s>").expect("the template compiles");
        template.render(&[say("user", " hi <b> ")], true, 1_735_689_600_000)
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
