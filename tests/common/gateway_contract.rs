//! `tests/openapi/gateway.yaml` as a judge: is this answer documented, and is everything in it?
//!
//! Objects are closed here, so that the server cannot send a field that the document does not have.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::OnceLock;

use jsonschema::Validator;
use serde_json::{Map, Value, json};

/// The document with every object closed; references stay, and are followed by the validator.
pub fn document() -> &'static Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    DOCUMENT.get_or_init(|| {
        let path = format!("{}/tests/openapi/gateway.yaml", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).expect("the document is there");
        let mut document: Value = serde_yaml_ng::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}"));
        close(&mut document);
        open_bases(&mut document);
        document
    })
}

/// What is a part of something larger cannot be closed by itself: it would refuse the other parts' fields.
fn open_bases(document: &mut Value) {
    let mut bases = Vec::new();
    close_wholes(document, &mut bases);
    for base in bases {
        let base = document.pointer_mut(base.trim_start_matches('#')).expect("it is there");
        base.as_object_mut().expect("a schema").remove("additionalProperties");
    }
}

/// Closes what `allOf` makes as a whole, opens its parts, and gathers those that stand elsewhere.
fn close_wholes(value: &mut Value, bases: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(|value| close_wholes(value, bases));
            let Some(parts) = map.get_mut("allOf").and_then(Value::as_array_mut) else { return };
            for part in parts.iter_mut().filter_map(Value::as_object_mut) {
                part.remove("additionalProperties");
                bases.extend(part.get("$ref").and_then(Value::as_str).map(str::to_owned));
            }
            map.insert("unevaluatedProperties".to_owned(), Value::Bool(false));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| close_wholes(value, bases)),
        _ => {}
    }
}

fn close(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(close);
            let is_open =
                map.get("type") == Some(&json!("object")) && map.get("properties").is_some_and(Value::is_object);
            if is_open && !map.contains_key("additionalProperties") {
                map.insert("additionalProperties".to_owned(), Value::Bool(false));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

/// Holds an answer's body against the document. A text that is no JSON body (metrics, the page) has no schema to hold.
pub fn check_answer(method: &str, path: &str, status: u16, body: &[u8]) {
    let at = format!("{method} {path} -> {status}");
    let operation =
        &follow(path_item(path).unwrap_or_else(|| panic!("{at}: not in the document")))[method.to_lowercase()];
    let responses = &operation["responses"];
    let response = responses.get(status.to_string()).or(responses.get("default"));
    let content = &follow(response.unwrap_or_else(|| panic!("{at}: no such status in the document")))["content"];
    let Some(schema) = content["application/json"].get("schema") else { return };
    let body = serde_json::from_slice(body).unwrap_or_else(|e| panic!("{at}: {e}"));
    check(schema, &body, &at);
}

/// The schema of what is sent to a path.
pub fn request_schema(method: &str, path: &str) -> &'static Value {
    let operation = &follow(path_item(path).unwrap_or_else(|| panic!("{path}: not in the document")))[method];
    &operation["requestBody"]["content"]["application/json"]["schema"]
}

/// Holds a body that the server took against the document: it takes nothing that is not described there.
pub fn check_request(path: &str, body: &Value) {
    let mut sent = body.clone();
    // A field that is null was not sent.
    sent.as_object_mut().expect("an object").retain(|_, value| !value.is_null());
    let schema = request_schema("post", path);
    if !schema.is_null() {
        check(schema, &sent, &format!("POST {path}, taken"));
    }
}

/// Holds an event of a stream against the document; events without a name are `message`.
pub fn check_event(name: &str, data: &str) {
    if data == "[DONE]" {
        return;
    }
    let data: Value = serde_json::from_str(data).unwrap_or_else(|e| panic!("{name}: {e}: {data}"));
    let name = if name.is_empty() { "message" } else { name };
    let found: Vec<&Value> = streams().filter_map(|events| events.get(name)).collect();
    assert!(!found.is_empty(), "event {name} is not in the document");
    let complaints: Vec<String> = found.iter().filter_map(|schema| complaint(schema, &data)).collect();
    assert!(complaints.len() < found.len(), "event {name}: {}; in {data}", complaints.join(" | "));
}

fn streams() -> impl Iterator<Item = &'static Map<String, Value>> {
    let operations = paths().flat_map(|(_, item)| follow(item).as_object().expect("methods").values());
    let responses = operations.filter_map(|o| o["responses"].as_object()).flat_map(|r| r.values()).map(follow);
    responses.filter_map(|r| r["content"]["text/event-stream"]["x-sse-events"].as_object())
}

/// Every path with what is said of it.
pub fn paths() -> impl Iterator<Item = (&'static String, &'static Value)> {
    document()["paths"].as_object().expect("paths").iter()
}

fn path_item(path: &str) -> Option<&'static Value> {
    let path = path.split('?').next().expect("one part");
    // A fixed path goes before one with a place for a name.
    let fixed = paths().find(|(template, _)| template.as_str() == path);
    let fits = |template: &str| match template.split_once("{id}") {
        Some((start, end)) => {
            path.strip_prefix(start).and_then(|rest| rest.strip_suffix(end)).is_some_and(|id| !id.is_empty())
        }
        None => false,
    };
    // The longest template is the one that says most.
    fixed.or_else(|| paths().filter(|(t, _)| fits(t)).max_by_key(|(t, _)| t.len())).map(|(_, item)| item)
}

/// What a reference refers to.
pub fn follow(value: &'static Value) -> &'static Value {
    match value["$ref"].as_str() {
        None => value,
        Some(target) => {
            let found = target.strip_prefix('#').and_then(|pointer| document().pointer(pointer));
            follow(found.unwrap_or_else(|| panic!("{target} is not there")))
        }
    }
}

fn check(schema: &Value, value: &Value, at: &str) {
    if let Some(complaint) = complaint(schema, value) {
        panic!("{at}: {complaint}; in {value}");
    }
}

/// What is wrong with a value; none when nothing is.
pub fn complaint(schema: &Value, value: &Value) -> Option<String> {
    thread_local! {
        static KNOWN: RefCell<HashMap<String, Rc<Validator>>> = RefCell::default();
    }
    let validator = KNOWN.with_borrow_mut(|known| {
        let validator = known.entry(schema.to_string()).or_insert_with(|| {
            let whole = json!({"allOf": [schema], "components": document()["components"]});
            let built = jsonschema::options()
                .with_draft(jsonschema::Draft::Draft202012)
                .should_validate_formats(true)
                .build(&whole);
            Rc::new(built.unwrap_or_else(|e| panic!("{schema}: {e}")))
        });
        validator.clone()
    });
    let errors: Vec<String> =
        validator.iter_errors(value).map(|e| format!("at `{}`: {e}", e.instance_path())).collect();
    (!errors.is_empty()).then(|| errors.join("; "))
}
