//! What an answer must look like, in three spellings: `response_format` of chats, `text.format` of responses and
//! `output_config.format` of messages.

use serde_json::{Map, Value};

use super::fields::Fields;
use super::refusal::Refusal;
use crate::domain::limits;
use crate::domain::task::ResponseFormat;
use crate::services::response_format;

pub(super) const RESPONSE_FORMAT: &str = "response_format";
pub(super) const TEXT_FORMAT: &str = "text.format";
pub(super) const OUTPUT_FORMAT: &str = "output_config.format";

/// Takes `response_format`.
///
/// A schema is followed to the letter whether `strict` is true or not; that it can be is found out before the task is
/// queued. `regex` and `grammar` are taken as `/v1/tasks` has them, and a `schema` beside `json_object` as llama.cpp's
/// clients send it.
///
/// # Errors
///
/// Naming the field.
pub(super) fn take_response_format(f: &mut Fields) -> Result<ResponseFormat, Refusal> {
    let Some(mut wire) = f.take::<Value>(RESPONSE_FORMAT)? else { return Ok(ResponseFormat::Text) };
    if wire["type"] == "json_object"
        && let Some(schema) = wire.as_object_mut().and_then(|wire| wire.remove("schema"))
    {
        let others: Vec<&str> = wire.as_object().into_iter().flat_map(Map::keys).map(String::as_str).collect();
        if others != ["type"] {
            return Err(Refusal::field(RESPONSE_FORMAT, "has other fields than `type` and `schema`"));
        }
        wire = serde_json::json!({"type": "json_schema", "json_schema": {"schema": schema}});
        return response_format::parse(&wire).map_err(|why| Refusal::field(RESPONSE_FORMAT, why));
    }
    if wire["type"] == "json_schema"
        && let Some(inner) = wire["json_schema"].as_object_mut()
    {
        check_names(inner, RESPONSE_FORMAT)?;
    }
    response_format::parse(&wire).map_err(|why| Refusal::field(RESPONSE_FORMAT, why))
}

/// Takes `text`: the format, and the field as a response repeats it.
///
/// # Errors
///
/// Naming the field.
pub(super) fn take_text(f: &mut Fields) -> Result<(ResponseFormat, Value), Refusal> {
    let plain = || serde_json::json!({"format": {"type": "text"}});
    let Some(mut text) = f.take::<Map<String, Value>>("text")? else { return Ok((ResponseFormat::Text, plain())) };
    // How much is said is the model's own affair: medium is what it does anyway.
    if let Some(verbosity) = text.remove("verbosity").filter(|v| !v.is_null() && v != "medium") {
        return Err(Refusal::field("text.verbosity", format!("{verbosity} is not supported: leave it out")));
    }
    let format = text.remove("format").filter(|format| !format.is_null());
    if let Some(name) = text.keys().next() {
        return Err(Refusal::field("text", format!("has no field `{name}`")));
    }
    let Some(echoed) = format else { return Ok((ResponseFormat::Text, plain())) };
    let mut wire = echoed.clone();
    // Chats have the same fields one level deeper.
    if wire["type"] == "json_schema"
        && let Some(mut fields) = wire.as_object().cloned()
    {
        fields.remove("type");
        check_names(&mut fields, TEXT_FORMAT)?;
        wire = serde_json::json!({"type": "json_schema", "json_schema": fields});
    }
    let format = response_format::parse(&wire).map_err(|why| Refusal::field(TEXT_FORMAT, why))?;
    Ok((format, serde_json::json!({ "format": echoed })))
}

/// Takes `output_config`: the format, and the effort, which a model without thoughts has no use for.
///
/// # Errors
///
/// Naming the field.
pub(super) fn take_output_config(f: &mut Fields) -> Result<ResponseFormat, Refusal> {
    let Some(mut config) = f.take::<Map<String, Value>>("output_config")? else { return Ok(ResponseFormat::Text) };
    config.remove("effort");
    let format = config.remove("format").filter(|format| !format.is_null());
    if let Some(name) = config.keys().next() {
        return Err(Refusal::field("output_config", format!("{name}: only `effort` and `format` are read here")));
    }
    let Some(format) = format else { return Ok(ResponseFormat::Text) };
    let fields = format
        .as_object()
        .filter(|fields| fields.get("type").is_some_and(|kind| kind == "json_schema") && fields.contains_key("schema"));
    let Some(fields) = fields else {
        return Err(Refusal::field(OUTPUT_FORMAT, "must be {\"type\": \"json_schema\", \"schema\": …}"));
    };
    if let Some(name) = fields.keys().find(|name| !["type", "schema"].contains(&name.as_str())) {
        return Err(Refusal::field(OUTPUT_FORMAT, format!("has no field `{name}`")));
    }
    let wire = serde_json::json!({"type": "json_schema", "json_schema": {"schema": fields["schema"]}});
    response_format::parse(&wire).map_err(|why| Refusal::field(OUTPUT_FORMAT, why))
}

/// Checks what stands beside a schema, and leaves the schema alone.
fn check_names(fields: &mut Map<String, Value>, param: &str) -> Result<(), Refusal> {
    let refuse = |what: String| Err(Refusal::field(param, what));
    match fields.remove("name") {
        Some(Value::String(name)) if is_name(&name) => {}
        _ => return refuse(format!("needs a `name` for its schema: {NAME_RULE}")),
    }
    for (key, legal) in
        [("description", Value::is_string as fn(&Value) -> bool), ("strict", |v: &Value| v.is_boolean() || v.is_null())]
    {
        if fields.remove(key).is_some_and(|value| !legal(&value)) {
            return refuse(format!("has a `{key}` of the wrong type"));
        }
    }
    match fields.keys().find(|key| *key != "schema") {
        Some(key) => refuse(format!("has no field `{key}` for a schema")),
        None => Ok(()),
    }
}

/// What schemas and functions may be called.
pub(super) fn is_name(name: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    (1..=limits::FUNCTION_NAME_LEN_MAX).contains(&name.len()) && name.chars().all(legal)
}

pub(super) const NAME_RULE: &str = "1 to 64 letters, digits, _ and -";

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(value: &Value) -> Fields {
        Fields::read(&mut value.to_string().into_bytes()).unwrap()
    }

    #[test]
    fn all_spellings_mean_the_same() {
        let schema = json!({"type": "object", "properties": {"b": {"type": "integer"}, "a": {}}});
        let named = json!({"name": "answer-1", "description": "an answer", "strict": true, "schema": schema});
        let chat = json!({"response_format": {"type": "json_schema", "json_schema": named}});
        let mut flat = named.clone();
        flat["type"] = json!("json_schema");
        let response = json!({"text": {"format": flat, "verbosity": "medium"}});
        let wanted = ResponseFormat::JsonSchema(schema.to_string());
        assert_eq!(take_response_format(&mut fields(&chat)).unwrap(), wanted);
        let (format, echoed) = take_text(&mut fields(&response)).unwrap();
        assert_eq!((format, &echoed["format"]), (wanted.clone(), &flat));
        let message = json!({"output_config": {"effort": "low", "format": {"type": "json_schema", "schema": schema}}});
        assert_eq!(take_output_config(&mut fields(&message)).unwrap(), wanted);
        for nothing in [json!({}), json!({"output_config": {"effort": "low", "format": null}})] {
            assert_eq!(take_output_config(&mut fields(&nothing)).unwrap(), ResponseFormat::Text);
        }
        for nothing in [json!({}), json!({"response_format": null}), json!({"response_format": {"type": "text"}})] {
            assert_eq!(take_response_format(&mut fields(&nothing)).unwrap(), ResponseFormat::Text);
        }
        let object = json!({"text": {"format": {"type": "json_object"}}});
        assert_eq!(take_text(&mut fields(&object)).unwrap().0, ResponseFormat::JsonObject);
        assert_eq!(take_text(&mut fields(&json!({"text": {}}))).unwrap().0, ResponseFormat::Text);
    }

    #[test]
    fn what_is_wrong_names_the_field() {
        let schema = |inner: Value| json!({"type": "json_schema", "json_schema": inner});
        for format in [
            json!("json"),
            json!({"type": "xml"}),
            json!({"type": "json_schema"}),
            schema(json!({"schema": {}})),
            schema(json!({"schema": {}, "name": "two words"})),
            schema(json!({"schema": {}, "name": "x".repeat(65)})),
            schema(json!({"schema": {}, "name": "x", "strict": "yes"})),
            schema(json!({"schema": {}, "name": "x", "colour": 1})),
            schema(json!({"schema": 7, "name": "x"})),
            schema(json!({"name": "x"})),
        ] {
            let refusal = take_response_format(&mut fields(&json!({"response_format": format}))).unwrap_err();
            assert_eq!(refusal.param(), Some("response_format"), "{format}");
        }
        for (text, param) in [
            (json!({"format": {"type": "json_schema", "schema": {}}}), "text.format"),
            (json!({"format": {"type": "xml"}}), "text.format"),
            (json!({"verbosity": "low"}), "text.verbosity"),
            (json!({"colour": "red"}), "text"),
            (json!("json"), "text"),
        ] {
            let refusal = take_text(&mut fields(&json!({"text": text}))).unwrap_err();
            assert_eq!(refusal.param(), Some(param), "{text}");
        }
        for (output, param) in [
            (json!({"format": {}}), OUTPUT_FORMAT),
            (json!({"format": {"type": "json_object"}}), OUTPUT_FORMAT),
            (json!({"format": {"type": "json_schema"}}), OUTPUT_FORMAT),
            (json!({"format": {"type": "json_schema", "schema": 7}}), OUTPUT_FORMAT),
            (json!({"format": {"type": "json_schema", "schema": {}, "name": "x"}}), OUTPUT_FORMAT),
            (json!({"format": "json"}), OUTPUT_FORMAT),
            (json!({"task_budget": {}}), "output_config"),
            (json!("high"), "output_config"),
        ] {
            let refusal = take_output_config(&mut fields(&json!({"output_config": output}))).unwrap_err();
            assert_eq!(refusal.param(), Some(param), "{output}");
        }
    }
}
