//! What an answer must look like: between the wire's `response_format`, a task's own words, and the engine's grammar.

use orchestratord_engine::{Constraint, Grammar, GrammarError, Model};
use serde_json::{Value, json};

use crate::domain::task::ResponseFormat;

/// Reads the wire's form.
///
/// # Errors
///
/// What is wrong with it, and what is legal.
pub fn parse(wire: &Value) -> Result<ResponseFormat, String> {
    let object = match wire {
        Value::Null => return Ok(ResponseFormat::Text),
        Value::Object(object) => object,
        _ => return Err("must be an object".into()),
    };
    let kind = wire["type"].as_str().unwrap_or_default();
    // The field that belongs to the kind; none other may stand beside it.
    let legal = match kind {
        "text" | "json_object" => None,
        "json_schema" | "regex" | "grammar" => Some(kind),
        _ => return Err("`type` must be text, json_object, json_schema, regex or grammar".into()),
    };
    if let Some(name) = object.keys().find(|name| *name != "type" && Some(name.as_str()) != legal) {
        return Err(format!("has no field `{name}` for type {kind}"));
    }
    let text = || wire[kind].as_str().map(str::to_owned).ok_or_else(|| format!("needs `{kind}`, a string"));
    match kind {
        "text" => Ok(ResponseFormat::Text),
        "json_object" => Ok(ResponseFormat::JsonObject),
        "json_schema" => match &wire[kind]["schema"] {
            schema @ (Value::Object(_) | Value::Bool(_)) => Ok(ResponseFormat::JsonSchema(schema.to_string())),
            // As a transcript has it.
            Value::String(text) => match serde_json::from_str(text) {
                Ok(schema @ (Value::Object(_) | Value::Bool(_))) => Ok(ResponseFormat::JsonSchema(schema.to_string())),
                _ => Err("has a text that is no schema in JSON as its `schema`".into()),
            },
            _ => Err("needs `json_schema` with a `schema` in it".into()),
        },
        "regex" => text().map(ResponseFormat::Regex),
        _ => text().map(ResponseFormat::Grammar),
    }
}

/// The wire's form of it, for transcripts. A schema is text there: an answer has its keys in the schema's order, which
/// canonical JSON does not keep.
pub fn wire(format: &ResponseFormat) -> Value {
    match format {
        ResponseFormat::Text => json!({ "type": "text" }),
        ResponseFormat::JsonObject => json!({ "type": "json_object" }),
        ResponseFormat::JsonSchema(schema) => {
            json!({ "type": "json_schema", "json_schema": { "schema": schema } })
        }
        ResponseFormat::Regex(pattern) => json!({ "type": "regex", "regex": pattern }),
        ResponseFormat::Grammar(text) => json!({ "type": "grammar", "grammar": text }),
    }
}

/// The grammar for a model; none for plain text. Takes milliseconds.
///
/// # Errors
///
/// When it cannot be followed; says why.
pub fn constraint(model: &Model, format: &ResponseFormat) -> Result<Option<Constraint>, GrammarError> {
    let schema;
    let grammar = match format {
        ResponseFormat::Text => return Ok(None),
        ResponseFormat::JsonObject => Grammar::JsonObject,
        ResponseFormat::JsonSchema(text) => {
            schema = document(text);
            Grammar::JsonSchema(&schema)
        }
        ResponseFormat::Regex(pattern) => Grammar::Regex(pattern),
        ResponseFormat::Grammar(text) => Grammar::Lark(text),
    };
    model.constraint(grammar).map(Some)
}

fn document(schema: &str) -> Value {
    serde_json::from_str(schema).expect("it was written from JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_written_again() {
        for text in [
            r#"{"type":"text"}"#,
            r#"{"type":"json_object"}"#,
            r#"{"type":"json_schema","json_schema":{"schema":"{\"b\":1,\"a\":2}"}}"#,
            r#"{"type":"regex","regex":"[a-z]+"}"#,
            r#"{"type":"grammar","grammar":"start: \"a\""}"#,
        ] {
            let value: Value = serde_json::from_str(text).unwrap();
            assert_eq!(wire(&parse(&value).unwrap()), value);
        }
        let asked = json!({"type": "json_schema", "json_schema": {"schema": {"b": 1, "a": 2}}});
        assert_eq!(parse(&wire(&parse(&asked).unwrap())), parse(&asked));
        assert_eq!(parse(&Value::Null), Ok(ResponseFormat::Text));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, wanted) in [
            ("[]", "object"),
            ("{}", "`type`"),
            (r#"{"type":"yaml"}"#, "`type`"),
            (r#"{"type":"regex"}"#, "`regex`"),
            (r#"{"type":"regex","regex":1}"#, "`regex`"),
            (r#"{"type":"json_schema","json_schema":{}}"#, "`schema`"),
            (r#"{"type":"json_schema","json_schema":{"schema":"{"}}"#, "`schema`"),
            (r#"{"type":"json_object","regex":"a"}"#, "`regex`"),
        ] {
            let error = parse(&serde_json::from_str(text).unwrap()).unwrap_err();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }
}
