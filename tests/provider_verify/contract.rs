//! The OpenAPI documents as a judge: is this answer, on this path, documented, and is everything in it?
//!
//! Knows nothing of sockets. A caller hands over what was asked and what came back; every answer that passes is
//! remembered, so that a test can ask at its end which documented answers never occurred.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::common::sse;

/// Headers that HTTP itself explains. Any other one must be in the document.
const PLAIN_HEADERS: [&str; 8] = [
    "allow",
    "cache-control",
    "connection",
    "content-length",
    "content-type",
    "date",
    "keep-alive",
    "transfer-encoding",
];

/// One answer as it came from the wire.
pub struct Answer<'a> {
    pub status: u16,
    pub headers: &'a [(String, String)],
    pub body: &'a [u8],
}

impl Answer<'_> {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
}

/// A documented answer: document, method, path template, status, and the error code or `event:NAME` where there are
/// several.
pub type Promise = (String, String, String, String, String);

/// Both documents with every reference written out.
pub struct Contract {
    documents: BTreeMap<&'static str, Value>,
    kept: BTreeSet<Promise>,
}

impl Contract {
    /// Reads `tests/openapi/*.yaml`.
    ///
    /// # Panics
    ///
    /// When a document is not YAML or refers to something that is not there.
    pub fn load() -> Contract {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openapi");
        let read = |name: &str| -> Value {
            let text = fs::read_to_string(folder.join(format!("{name}.yaml"))).expect(name);
            let mut document: Value = serde_yaml_ng::from_str(&text).unwrap_or_else(|e| panic!("{name}.yaml: {e}"));
            make_absolute(&mut document, &format!("{name}.yaml"));
            document
        };
        let all: BTreeMap<String, Value> =
            ["control", "data", "shared"].iter().map(|n| (format!("{n}.yaml"), read(n))).collect();
        let written_out = |name: &str| write_out(&all[&format!("{name}.yaml")], &all);
        let documents = BTreeMap::from([("control", written_out("control")), ("data", written_out("data"))]);
        Contract { documents, kept: BTreeSet::new() }
    }

    /// Every example in the documents obeys its own schema; every operation has what a reader needs.
    pub fn check_examples(&self) -> Result<usize, String> {
        let mut checked = 0;
        for (_, method, template, operation) in self.operations() {
            for (place, content) in contents(operation) {
                for (media, content) in content.as_object().into_iter().flatten() {
                    let examples = examples(content);
                    if examples.is_empty() {
                        return Err(format!("{method} {template} {place} {media}: no example"));
                    }
                    for example in examples {
                        let at = format!("{method} {template} {place} {media} example");
                        self.check_body(media, content, &as_bytes(media, example)).map_err(|e| format!("{at}: {e}"))?;
                        checked += 1;
                    }
                }
            }
        }
        Ok(checked)
    }

    /// Says what is wrong with an answer, or remembers it as kept.
    pub fn check(&mut self, method: &str, path: &str, answer: &Answer<'_>) -> Result<(), String> {
        let at = format!("{method} {path} -> {}", answer.status);
        let (document, template, path_item) =
            self.path_item(path).ok_or_else(|| format!("{at}: this path is in no document"))?;
        let documented = path_item.get(method.to_ascii_lowercase());
        let response = match documented {
            Some(operation) => operation["responses"].get(answer.status.to_string()),
            None if answer.status == 405 => Some(&self.documents[document]["x-other-methods"]),
            None => None,
        };
        let response = response.ok_or_else(|| {
            format!("{at}: this status is not documented; body: {}", String::from_utf8_lossy(answer.body))
        })?;
        let codes = self.check_response(response, answer).map_err(|e| format!("{at}: {e}"))?;
        let promise = |code: String| {
            (document.to_owned(), method.to_owned(), template.to_owned(), answer.status.to_string(), code)
        };
        let kept: Vec<Promise> = codes.into_iter().map(promise).collect();
        self.kept.extend(kept);
        Ok(())
    }

    /// The 404 of a path that no document has.
    pub fn check_unknown_path(&self, path: &str, answer: &Answer<'_>) -> Result<(), String> {
        if let Some((_, template, _)) = self.path_item(path) {
            return Err(format!("{path} is documented as {template}"));
        }
        if answer.status != 404 {
            return Err(format!("{path}: {} instead of 404", answer.status));
        }
        self.check_response(&self.documents["data"]["x-unknown-path"], answer).map(|_| ())
    }

    /// The answer to what never became a request for any path.
    pub fn check_any_path(&self, answer: &Answer<'_>) -> Result<(), String> {
        let at = format!("any path -> {}", answer.status);
        let response = self.documents["data"]["x-any-path"].get(answer.status.to_string());
        let response = response.ok_or_else(|| format!("{at}: this status is not documented"))?;
        self.check_response(response, answer).map(|_| ()).map_err(|e| format!("{at}: {e}"))
    }

    /// The statuses that a request can get before its path matters.
    pub fn any_path_statuses(&self) -> BTreeSet<u16> {
        let statuses = ["control", "data"].map(|name| object(&self.documents[name]["x-any-path"]).keys());
        statuses.into_iter().flatten().map(|status| status.parse().expect("a status")).collect()
    }

    /// Checks a request's body against the document.
    pub fn check_request(&self, method: &str, path: &str, body: &Value) -> Result<(), String> {
        let (_, _, path_item) = self.path_item(path).ok_or_else(|| format!("{path} is in no document"))?;
        let operation =
            path_item.get(method.to_ascii_lowercase()).ok_or_else(|| format!("{method} {path} is in no document"))?;
        validate(&operation["requestBody"]["content"]["application/json"]["schema"], body)
    }

    /// True when the document has this status for this path and method.
    pub fn documents(&self, method: &str, path: &str, status: u16) -> bool {
        self.path_item(path)
            .and_then(|(_, _, item)| item.get(method.to_ascii_lowercase()))
            .is_some_and(|operation| operation["responses"].get(status.to_string()).is_some())
    }

    /// What the document promises and no answer so far has shown.
    pub fn missing(&self, document: &str) -> Vec<Promise> {
        let mut missing = Vec::new();
        for (name, method, template, operation) in self.operations().filter(|o| o.0 == document) {
            for (status, response) in operation["responses"].as_object().into_iter().flatten() {
                for code in promised_codes(response) {
                    let promise = (name.to_owned(), method.clone(), template.to_owned(), status.clone(), code);
                    if !self.kept.contains(&promise) {
                        missing.push(promise);
                    }
                }
            }
        }
        missing
    }

    /// Method and path template of every documented operation.
    pub fn routes(&self) -> Vec<(String, String)> {
        self.operations().map(|(_, method, template, _)| (method, template.to_owned())).collect()
    }

    fn operations(&self) -> impl Iterator<Item = (&'static str, String, &str, &Value)> {
        self.documents.iter().flat_map(|(&name, document)| {
            object(&document["paths"]).iter().flat_map(move |(template, item)| {
                let methods = object(item).iter().filter(|(key, _)| *key != "parameters");
                methods
                    .map(move |(method, operation)| (name, method.to_ascii_uppercase(), template.as_str(), operation))
            })
        })
    }

    fn path_item(&self, path: &str) -> Option<(&'static str, &str, &Value)> {
        let path = path.split('?').next().expect("split yields one part");
        self.documents.iter().find_map(|(&name, document)| {
            let found = object(&document["paths"]).iter().find(|(template, _)| fits(template, path))?;
            Some((name, found.0.as_str(), found.1))
        })
    }

    fn check_response(&self, response: &Value, answer: &Answer<'_>) -> Result<Vec<String>, String> {
        check_headers(response, answer)?;
        let Some(content) = response.get("content") else {
            return match answer.body {
                [] => Ok(vec![String::new()]),
                body => Err(format!("{} bytes of body where none is documented", body.len())),
            };
        };
        let sent = answer.header("content-type").ok_or("no Content-Type")?;
        let (media, content) = object(content)
            .iter()
            .find(|(media, _)| same_media(media, sent))
            .ok_or_else(|| format!("Content-Type {sent} is not documented"))?;
        let codes = self.check_body(media, content, answer.body)?;
        if media == "application/json" {
            let body: Value = serde_json::from_slice(answer.body).expect("was parsed above");
            check_retry(&body, answer)?;
        }
        Ok(codes)
    }

    fn check_body(&self, media: &str, content: &Value, body: &[u8]) -> Result<Vec<String>, String> {
        let text = std::str::from_utf8(body).map_err(|e| format!("the body is not UTF-8: {e}"))?;
        if media == "text/event-stream" {
            return check_events(content, text);
        }
        if media != "application/json" {
            validate(&content["schema"], &Value::String(text.to_owned()))?;
            return Ok(vec![String::new()]);
        }
        let body: Value = serde_json::from_str(text).map_err(|e| format!("the body is not JSON ({e}): {text}"))?;
        validate(&content["schema"], &body)?;
        let code = body.get("code").and_then(Value::as_str).unwrap_or_default();
        Ok(vec![code.to_owned()])
    }
}

/// Checks a value against a schema that has no references left.
pub fn validate(schema: &Value, value: &Value) -> Result<(), String> {
    let validator = jsonschema::options()
        .with_draft(jsonschema::Draft::Draft202012)
        .should_validate_formats(true)
        .build(schema)
        .map_err(|e| format!("the schema itself: {e}"))?;
    let errors: Vec<String> =
        validator.iter_errors(value).map(|e| format!("at `{}`: {e}", e.instance_path())).collect();
    if errors.is_empty() { Ok(()) } else { Err(format!("{}; in {value}", errors.join("; "))) }
}

fn object(value: &Value) -> &Map<String, Value> {
    value.as_object().unwrap_or_else(|| panic!("an object was expected, not {value}"))
}

/// `#/x` becomes `FILE#/x`, so that a reference can be followed from anywhere.
fn make_absolute(value: &mut Value, file: &str) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(target)) = map.get_mut("$ref")
                && target.starts_with('#')
            {
                target.insert_str(0, file);
            }
            map.values_mut().for_each(|v| make_absolute(v, file));
        }
        Value::Array(items) => items.iter_mut().for_each(|v| make_absolute(v, file)),
        _ => {}
    }
}

/// Replaces each reference by what it refers to, and closes each object: a field that is not described is an error here,
/// though a client must ignore it.
fn write_out(value: &Value, all: &BTreeMap<String, Value>) -> Value {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(target)) = map.get("$ref") {
                let (file, pointer) = target.split_once('#').expect("made absolute");
                let found = all.get(file).and_then(|d| d.pointer(pointer));
                return write_out(found.unwrap_or_else(|| panic!("{target} is not there")), all);
            }
            let mut out: Map<String, Value> = map.iter().map(|(k, v)| (k.clone(), write_out(v, all))).collect();
            let is_open =
                out.get("type") == Some(&json!("object")) && out.get("properties").is_some_and(Value::is_object);
            if is_open && !out.contains_key("additionalProperties") {
                out.insert("additionalProperties".to_owned(), Value::Bool(false));
            }
            Value::Object(out)
        }
        Value::Array(items) => Value::Array(items.iter().map(|v| write_out(v, all)).collect()),
        other => other.clone(),
    }
}

fn fits(template: &str, path: &str) -> bool {
    let (mut wanted, mut given) = (template.split('/'), path.split('/'));
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return true,
            (Some(w), Some(g)) if w.starts_with('{') && !g.is_empty() => {}
            (Some(w), Some(g)) if w == g => {}
            _ => return false,
        }
    }
}

/// Parameters after `;` count only where the document has some.
fn same_media(documented: &str, sent: &str) -> bool {
    if documented.contains(';') {
        return documented.eq_ignore_ascii_case(sent);
    }
    sent.split(';').next().expect("split yields one part").trim().eq_ignore_ascii_case(documented)
}

fn check_headers(response: &Value, answer: &Answer<'_>) -> Result<(), String> {
    let none = Map::new();
    let documented = response.get("headers").and_then(Value::as_object).unwrap_or(&none);
    for (name, header) in documented {
        match answer.header(name) {
            Some(value) => validate(&header["schema"], &json!(value)).map_err(|e| format!("{name}: {e}"))?,
            None if header["required"] == json!(true) => return Err(format!("no {name}")),
            None => {}
        }
    }
    for (name, _) in answer.headers {
        let known = documented.keys().any(|d| d.eq_ignore_ascii_case(name));
        if !known && !PLAIN_HEADERS.contains(&name.to_ascii_lowercase().as_str()) {
            return Err(format!("header {name} is not documented"));
        }
        if answer.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).count() > 1 {
            return Err(format!("header {name} is there twice"));
        }
    }
    Ok(())
}

/// `retry_after_ms`, `Retry-After` and `X-Backoff-Ms` say the same, or none of them is there.
fn check_retry(body: &Value, answer: &Answer<'_>) -> Result<(), String> {
    let number = |name: &str| answer.header(name).map(|v| v.parse::<u64>().expect("matches its pattern"));
    let (seconds, ms) = (number("retry-after"), number("x-backoff-ms"));
    let wanted = body.get("retry_after_ms").and_then(Value::as_u64);
    if ms != wanted {
        return Err(format!("X-Backoff-Ms is {ms:?}, retry_after_ms is {wanted:?}"));
    }
    if seconds != wanted.map(|ms| ms.div_ceil(1000).max(1)) {
        return Err(format!("Retry-After is {seconds:?}, retry_after_ms is {wanted:?}"));
    }
    Ok(())
}

/// Every event is documented, in order, numbered, and the last one ends the stream.
fn check_events(content: &Value, text: &str) -> Result<Vec<String>, String> {
    let events = sse::parse(text)?;
    let mut names = BTreeSet::new();
    for (index, event) in events.iter().enumerate() {
        let schema = content["x-sse-events"]
            .get(&event.name)
            .ok_or_else(|| format!("event {} is not documented", event.name))?;
        let data = event.json()?;
        validate(schema, &data).map_err(|e| format!("event {index} {}: {e}", event.name))?;
        names.insert(format!("event:{}", event.name));
    }
    sse::check_order(&events)?;
    Ok(names.into_iter().collect())
}

/// The codes that a documented answer may carry, `event:NAME` for streams, or one empty name.
fn promised_codes(response: &Value) -> Vec<String> {
    let Some(content) = response.get("content").and_then(Value::as_object) else { return vec![String::new()] };
    let mut codes = Vec::new();
    for content in content.values() {
        if let Some(events) = content.get("x-sse-events").and_then(Value::as_object) {
            codes.extend(events.keys().map(|name| format!("event:{name}")));
            continue;
        }
        let parts = content["schema"].get("allOf").and_then(Value::as_array);
        let narrowed = parts.into_iter().flatten().filter_map(|p| p.pointer("/properties/code/enum")).next_back();
        match narrowed.and_then(Value::as_array) {
            Some(list) => codes.extend(list.iter().map(|c| c.as_str().expect("codes are strings").to_owned())),
            None => codes.push(String::new()),
        }
    }
    codes
}

fn contents(operation: &Value) -> Vec<(String, &Value)> {
    let mut all = Vec::new();
    if let Some(content) = operation.pointer("/requestBody/content") {
        all.push(("request".to_owned(), content));
    }
    for (status, response) in object(&operation["responses"]) {
        all.extend(response.get("content").map(|c| (status.clone(), c)));
    }
    all
}

fn examples(content: &Value) -> Vec<&Value> {
    let several = content.get("examples").and_then(Value::as_object).into_iter().flat_map(|m| m.values());
    content.get("example").into_iter().chain(several.map(|e| &e["value"])).collect()
}

fn as_bytes(media: &str, example: &Value) -> Vec<u8> {
    match example {
        Value::String(text) if media != "application/json" => text.clone().into_bytes(),
        other => other.to_string().into_bytes(),
    }
}
