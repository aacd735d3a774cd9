//! `response_format`: the stream is what it asks for, and what cannot be followed is refused before it waits.

mod common;

use common::*;
use serde_json::{Value, json};

fn text_of(server: &Server, task: &Value) -> (String, Vec<Event>) {
    enqueue(server, task);
    let events = finish(&open(server, task));
    (sse::text(&events), events)
}

#[test]
fn an_answer_is_what_its_format_says() {
    let server = server();
    let schema = json!({
        "type": "object",
        "properties": { "name": { "enum": ["Pip", "Hazel"] }, "age": { "type": "integer", "minimum": 1, "maximum": 9 } },
        "required": ["name", "age"],
        "additionalProperties": false,
    });
    for temperature in [0.0, 1.5] {
        let format = json!({ "type": "json_schema", "json_schema": { "schema": schema } });
        let task = task_with(json!({ "response_format": format, "max_tokens": 100, "temperature": temperature }));
        let (text, events) = text_of(&server, &task);
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert!(["Pip", "Hazel"].contains(&value["name"].as_str().expect("a name")), "{text}");
        assert!((1..=9).contains(&value["age"].as_u64().expect("an age")), "{text}");
        let end: Value = serde_json::from_str(&events.last().expect("events").data).expect("JSON");
        assert_eq!(end["finish_reason"], "stop", "{text}");
    }
    let regex = task_with(json!({ "response_format": { "type": "regex", "regex": "(yes|no)!" }, "max_tokens": 20 }));
    let (text, _) = text_of(&server, &regex);
    assert!(["yes!", "no!"].contains(&text.as_str()), "{text}");
    let grammar = "start: \"a\"{2,4} \"b\"";
    let grammar = task_with(json!({ "response_format": { "type": "grammar", "grammar": grammar }, "max_tokens": 20 }));
    let (text, _) = text_of(&server, &grammar);
    assert!(["aab", "aaab", "aaaab"].contains(&text.as_str()), "{text}");
}

#[test]
fn what_cannot_be_followed_is_refused_with_a_reason() {
    let server = server();
    for format in [
        json!({ "type": "regex", "regex": "(" }),
        json!({ "type": "grammar", "grammar": "start: missing" }),
        json!({ "type": "json_schema", "json_schema": { "schema": { "type": "nonsense" } } }),
        json!({ "type": "yaml" }),
    ] {
        let task = task_with(json!({ "response_format": format }));
        let answer = post(&server, "/v1/tasks", &task);
        assert_eq!(answer.status, 400, "{format}: {answer:?}");
        let envelope = answer.json().expect("JSON");
        assert_eq!(envelope["code"], "INVALID_PARAMS");
        assert!(envelope["message"].as_str().expect("text").contains("response_format"), "{envelope}");
    }
}
