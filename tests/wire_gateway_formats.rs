//! Answers at the gateway that have the form their request asked for.

mod common;

use common::gateway::*;
use common::*;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

/// Ends by itself: every length in it has a bound. Its keys are in an order that no alphabet has.
fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": { "enum": ["Pip", "Hazel"] },
            "age": { "type": "integer", "minimum": 1, "maximum": 9 },
        },
        "required": ["name", "age"],
        "additionalProperties": false,
    })
}

fn json_schema(schema: &Value) -> Value {
    json!({ "type": "json_schema", "json_schema": { "name": "animal", "strict": true, "schema": schema } })
}

fn check_animal(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert!(["Pip", "Hazel"].contains(&value["name"].as_str().expect("a name")), "{text}");
    assert!((1..=9).contains(&value["age"].as_u64().expect("an age")), "{text}");
    assert!(text.find("name") < text.find("age"), "keys come in the schema's order: {text}");
}

#[test]
fn an_answer_has_the_form_that_was_asked_for_at_every_door() {
    let (_server, gateway) = with_gateway(Settings::default());
    for temperature in [0.0, 1.5] {
        let body = chat(json!({
            "response_format": json_schema(&schema()), "temperature": temperature, "seed": 3, "max_tokens": 300,
        }));
        let whole = told(&gateway, CHAT, &body);
        let text = whole["choices"][0]["message"]["content"].as_str().expect("text");
        check_animal(text);
        assert_eq!(whole["choices"][0]["finish_reason"], "stop");
        let streamed = chunks(&gateway, CHAT, &body);
        let joined: String = streamed.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(joined, text);
    }
    let plain = json!({
        "model": "wren", "prompt": "A fox:", "max_tokens": 300, "response_format": json_schema(&schema()),
    });
    check_animal(told(&gateway, "/v1/completions", &plain)["choices"][0]["text"].as_str().expect("text"));

    let format = json!({ "type": "json_schema", "schema": schema() });
    let message = json!({
        "model": "wren", "max_tokens": 300, "messages": [{ "role": "user", "content": "An animal, please." }],
        "output_config": { "effort": "low", "format": format },
    });
    let made = told(&gateway, "/v1/messages", &message);
    check_animal(made["content"][0]["text"].as_str().expect("text"));
    assert_eq!(made["stop_reason"], "end_turn");

    let format = json!({ "type": "json_schema", "name": "animal", "schema": schema() });
    let response = json!({ "model": "wren", "input": "An animal, please.", "text": { "format": format } });
    let made = told(&gateway, "/v1/responses", &response);
    check_animal(made["output"][0]["content"][0]["text"].as_str().expect("text"));
    assert_eq!(made["text"]["format"], format);
    let path = format!("/v1/responses/{}", made["id"].as_str().expect("an id"));
    let again = gateway.send(&Request::get(&path)).expect("an answer").json().expect("JSON");
    assert_eq!(again["text"]["format"], format, "it is remembered");

    let object = chat(json!({ "response_format": { "type": "json_object" }, "temperature": 0, "max_tokens": 200 }));
    let whole = told(&gateway, CHAT, &object);
    let text = whole["choices"][0]["message"]["content"].as_str().expect("text");
    assert!(text.starts_with('{'), "{text}");
    if whole["choices"][0]["finish_reason"] == "stop" {
        assert!(serde_json::from_str::<Value>(text).expect("JSON").is_object());
    }
}

#[test]
fn a_form_that_cannot_be_followed_is_refused_before_it_waits() {
    let (server, gateway) = with_gateway(Settings::default());
    let nonsense = json_schema(&json!({ "type": "nonsense" }));
    let unnamed = json!({ "type": "json_schema", "json_schema": { "schema": schema() } });
    let nameless = json!({ "type": "json_schema", "schema": schema() });
    for (path, body, param) in [
        (CHAT, chat(json!({ "response_format": nonsense })), "response_format"),
        (CHAT, chat(json!({ "response_format": unnamed })), "response_format"),
        (CHAT, chat(json!({ "response_format": { "type": "regex", "regex": "(" } })), "response_format"),
        (CHAT, chat(json!({ "response_format": json_schema(&schema()), "ignore_eos": true })), "ignore_eos"),
        ("/v1/responses", json!({ "model": "wren", "input": "x", "text": { "format": nameless } }), "text.format"),
        (
            "/v1/responses",
            json!({ "model": "wren", "input": "x", "text": {
                "format": { "type": "json_schema", "name": "x", "schema": { "type": "nonsense" } },
            } }),
            "text.format",
        ),
    ] {
        let answer = ask(&gateway, path, &body);
        let error = gateway_refusal(&answer, 400, "invalid_value");
        assert_eq!(error["param"], param, "{body}: {error}");
        assert!(error["message"].as_str().expect("a message").contains(param), "{error}");
        assert_eq!(answer.header("x-should-retry"), Some("false"));
    }
    let page = server.client().send(&Request::get("/metrics")).expect("metrics");
    let enqueued =
        page.text().lines().filter(|l| l.starts_with("tasks_enqueued_total")).map(str::to_owned).collect::<Vec<_>>();
    assert!(!enqueued.is_empty() && enqueued.iter().all(|line| line.ends_with(" 0")), "{enqueued:?}");
}
