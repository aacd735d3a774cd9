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

/// A list that is written from the right keeps all of its ends open, so that the next mask soon takes longer than it may.
#[test]
fn a_format_that_cannot_be_followed_any_further_ends_its_stream_with_the_reason() {
    let server = server();
    let list = |order: &str| {
        let grammar = format!("start: list \"~\"\nlist: {order} | one\none: few | /[a-z ]/\nfew: /[a-d]/");
        task_with(
            json!({ "response_format": { "type": "grammar", "grammar": grammar }, "max_tokens": 40, "temperature": 0 }),
        )
    };
    let (text, events) = text_of(&server, &list("one list"));
    let token_count = events.iter().filter(|e| e.name == "token").count();
    let last = events.last().expect("events");
    assert!(token_count > 0 && text.chars().all(|c| c.is_ascii_lowercase() || c == ' '), "{text:?}");
    let error: Value = serde_json::from_str(&last.data).expect("JSON");
    assert_eq!(
        (last.name.as_str(), &error["code"], &error["retriable"]),
        ("error", &json!("INVALID_PARAMS"), &json!(false))
    );
    let says = error["message"].as_str().expect("a message");
    assert!(says.contains("response_format") && says.contains(&format!("after {token_count} tokens")), "{says}");
    // Written from the left it is the same list, and its answer begins with the same words.
    let (whole, events) = text_of(&server, &list("list one"));
    assert_eq!(events.last().expect("events").name, "end");
    assert!(whole.len() > text.len() && whole.starts_with(&text), "{whole:?}");
}
