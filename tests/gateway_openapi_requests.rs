//! The gateway's document against what the server takes: every field that is in it, with the values that it allows, and no
//! other.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use common::gateway::*;
use common::gateway_contract::{check_request, follow, paths, request_schema};
use common::*;
use serde_json::{Value, json};

const UNKNOWN: &str = "is not supported by this server: leave it out";

/// Short requests that are answered, at least one for every path that takes a body.
fn requests() -> Vec<(&'static str, Value)> {
    let turns = json!([{ "role": "user", "content": "Hi" }]);
    vec![
        ("/v1/chat/completions", json!({ "model": "wren", "messages": turns, "max_tokens": 1 })),
        ("/v1/completions", json!({ "model": "wren", "prompt": "Hi", "max_tokens": 1 })),
        ("/v1/embeddings", json!({ "model": "wren", "input": "Hi" })),
        ("/v1/responses", json!({ "model": "wren", "input": "Hi", "max_output_tokens": 1 })),
        ("/v1/messages", json!({ "model": "wren", "messages": turns, "max_tokens": 1 })),
        ("/v1/messages/count_tokens", json!({ "model": "wren", "messages": turns })),
        ("/tokenize", json!({ "prompt": "Hi" })),
        ("/tokenize", json!({ "content": "Hi" })),
        ("/tokenize", json!({ "messages": turns })),
        ("/detokenize", json!({ "tokens": [5] })),
        ("/apply-template", json!({ "messages": turns })),
    ]
}

/// A legal value of a field; none of one that this test has not heard of.
fn legal(path: &str, field: &str) -> Option<Value> {
    let is_messages = path.starts_with("/v1/messages");
    let function = json!({ "name": "f", "description": "x", "parameters": { "type": "object" }, "strict": false });
    Some(match field {
        "model" => json!("wren"),
        "messages" => json!([{ "role": "user", "content": "Hi" }]),
        "prompt" | "input" | "content" | "suffix" | "instructions" | "system" => json!("a text"),
        "prompt_cache_key" | "user" | "safety_identifier" | "prompt_cache_retention" => json!("a name"),
        "stream" | "parallel_tool_calls" | "add_generation_prompt" => json!(false),
        "stream_options" => json!({ "include_usage": true }),
        "n" | "best_of" | "max_tokens" | "max_completion_tokens" | "max_output_tokens" | "min_tokens" => json!(1),
        "temperature" | "top_p" | "min_p" | "presence_penalty" | "frequency_penalty" => json!(0.5),
        "repetition_penalty" => json!(1.5),
        "top_k" | "seed" | "dimensions" => json!(4),
        "stop" | "stop_sequences" => json!(["an end"]),
        "logit_bias" => json!({ "5": -1.5 }),
        "ignore_eos" | "store" | "echo" | "background" => json!(true),
        "add_special_tokens" | "add_special" | "return_token_strs" => json!(true),
        "response_format" => json!({ "type": "text" }),
        "service_tier" => json!("auto"),
        "metadata" => json!({ "a": "b" }),
        "logprobs" if path == "/v1/completions" => json!(1),
        "logprobs" => json!(true),
        "top_logprobs" => json!(0),
        "tools" if is_messages => json!([{ "name": "f", "input_schema": { "type": "object" }, "type": "custom" }]),
        "tools" if path == "/v1/responses" => {
            let mut tool = function;
            tool["type"] = json!("function");
            json!([tool])
        }
        "tools" => json!([{ "type": "function", "function": function }]),
        "tool_choice" if is_messages => json!({ "type": "none" }),
        "tool_choice" => json!("none"),
        "modalities" => json!(["text"]),
        "encoding_format" => json!("base64"),
        "text" => json!({ "format": { "type": "json_object" }, "verbosity": "medium" }),
        "truncation" => json!("disabled"),
        "include" | "mcp_servers" => json!([]),
        "reasoning" | "cache_control" => json!({}),
        "thinking" => json!({ "type": "disabled" }),
        "context_management" => json!({ "edits": [{ "type": "clear_thinking_20251015", "keep": "all" }] }),
        "output_config" => json!({ "effort": "high" }),
        "client_metadata" => json!({ "a": "b" }),
        "tokens" => json!([5, 6]),
        // Of a response that the test makes.
        "previous_response_id" => Value::Null,
        _ => return None,
    })
}

/// The fields of a schema with what is said of each, its parts' among them.
fn fields(schema: &'static Value) -> BTreeMap<&'static str, &'static Value> {
    let schema = follow(schema);
    let own =
        schema["properties"].as_object().into_iter().flatten().map(|(name, field)| (name.as_str(), follow(field)));
    let parts = schema["allOf"].as_array().into_iter().flatten().flat_map(fields);
    own.chain(parts).collect()
}

fn fields_of(path: &str) -> BTreeMap<&'static str, &'static Value> {
    fields(request_schema("post", path))
}

fn server_with_functions() -> (Server, Client) {
    let template = format!("{}/tests/templates/hermes.jinja", env!("CARGO_MANIFEST_DIR"));
    with_gateway(Settings::default().with("chat_template", template))
}

fn changed(body: &Value, field: &str, value: &Value) -> Value {
    let mut body = body.clone();
    body[field] = value.clone();
    body
}

/// An answer's status, and what its error says.
fn asked(gateway: &Client, path: &str, body: &Value) -> (u16, String) {
    let answer = gateway.send(&Request::post(path, body)).unwrap_or_else(|error| panic!("{path} {body}: {error:#}"));
    let said = answer.json().map(|told| told["error"]["message"].as_str().unwrap_or_default().to_owned());
    (answer.status, said.unwrap_or_default())
}

/// Every word in the gateway's sources that could be a field's name.
fn words_in(folder: &Path, words: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).expect("the sources are there") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            words_in(&path, words);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path).expect("text");
            let is_name = |w: &&str| !w.is_empty() && w.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            words.extend(text.split('"').filter(is_name).map(str::to_owned));
        }
    }
}

#[test]
fn every_path_that_takes_a_body_is_asked() {
    let takes = |item: &'static Value| !follow(item)["post"]["requestBody"].is_null();
    let documented: BTreeSet<&str> = paths().filter(|(_, item)| takes(item)).map(|(path, _)| path.as_str()).collect();
    assert_eq!(requests().iter().map(|(path, _)| *path).collect::<BTreeSet<_>>(), documented);
}

#[test]
fn the_document_has_every_field_that_is_taken_and_no_other() {
    let (_server, gateway) = server_with_functions();
    let mut names = BTreeSet::new();
    words_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gateway"), &mut names);
    assert!(names.len() > 200, "{} words", names.len());
    for (path, _) in requests() {
        names.extend(fields_of(path).keys().map(|name| (*name).to_owned()));
    }
    let mut taken: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (path, body) in requests() {
        let (status, said) = asked(&gateway, path, &body);
        assert_eq!(status, 200, "{path} {body}: {said}");
        for name in &names {
            // Nothing has this type: a field that is known is refused in other words, if at all.
            let (status, said) = asked(&gateway, path, &changed(&body, name, &json!({ "no_such_field": 0 })));
            assert!([200, 400].contains(&status), "{path} {name}: {status} {said}");
            if !said.contains(UNKNOWN) {
                taken.entry(path).or_default().insert(name);
            }
        }
    }
    for (path, taken) in &taken {
        assert_eq!(*taken, fields_of(path).into_keys().collect::<BTreeSet<_>>(), "{path}");
    }
}

#[test]
fn every_field_of_the_document_is_taken_with_a_legal_value() {
    let (_server, gateway) = server_with_functions();
    let first = told(&gateway, "/v1/responses", &json!({ "model": "wren", "input": "Hi", "temperature": 0 }));
    for path in requests().iter().map(|(path, _)| *path).collect::<BTreeSet<_>>() {
        for field in fields_of(path).into_keys() {
            let value =
                legal(path, field).unwrap_or_else(|| panic!("{path}: a legal `{field}` is missing in this test"));
            let value = if field == "previous_response_id" { first["id"].clone() } else { value };
            let mut refused = Vec::new();
            for (_, body) in requests().into_iter().filter(|(p, _)| *p == path) {
                let mut body = changed(&body, field, &value);
                if field == "stream_options" {
                    body["stream"] = json!(true);
                }
                let (status, said) = asked(&gateway, path, &body);
                check_request(path, &body);
                match status {
                    200 => break,
                    _ => refused.push(said),
                }
                // The model has not learned to fill holes.
                let is_named = field == "suffix" && refused.iter().all(|said| said.contains("`suffix`"));
                let may_be_in_another = requests().iter().filter(|(p, _)| *p == path).count() > refused.len();
                assert!(is_named || may_be_in_another, "{path} {field}: {refused:?}");
            }
        }
    }
}

#[test]
fn what_the_document_does_not_allow_is_refused_by_name() {
    let (_server, gateway) = server_with_functions();
    let mut count = 0;
    for (path, body) in requests() {
        for (field, schema) in fields_of(path) {
            if schema["description"].as_str().is_some_and(|d| d.to_lowercase().contains("without effect"))
                || ["safety_identifier", "metadata", "store", "prompt_cache_retention", "stream_options"]
                    .contains(&field)
                || (path, field) == ("/v1/messages", "service_tier")
                || !body.as_object().is_some_and(|b| path != "/tokenize" || b.contains_key(field))
            {
                continue;
            }
            let number = |name: &str, step: f64| schema[name].as_f64().map(|limit| json!(limit + step));
            let whole = |value: Value| {
                if schema["type"] == "integer" { json!(value.as_f64().map(|v| v as i64)) } else { value }
            };
            let beyond = [
                number("minimum", -1.0).map(whole),
                number("maximum", 1.0).map(whole),
                number("exclusiveMinimum", 0.0),
                schema.get("enum").or(schema.get("const")).map(|_| json!("no such word")),
                schema.get("type").map(|kind| if kind == "string" { json!(7) } else { json!("no such type") }),
            ];
            for value in beyond.into_iter().flatten() {
                let mut body = changed(&body, field, &value);
                if field == "max_completion_tokens" {
                    // The older name of the same.
                    body.as_object_mut().expect("an object").remove("max_tokens");
                }
                let (status, said) = asked(&gateway, path, &body);
                assert_eq!(status, 400, "{path} {field} {value}");
                assert!(said.contains(&format!("`{field}")), "{path} {field} {value}: {said}");
                count += 1;
            }
        }
    }
    assert!(count > 100, "{count}");
}
