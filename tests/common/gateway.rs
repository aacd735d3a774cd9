//! A server with a gateway, and what its clients send and read.

use serde_json::{Value, json};

use super::*;

/// A server whose gateway is open.
pub fn with_gateway(settings: Settings) -> (Server, Client) {
    let server = server_with(settings.with("gateway_listen", "127.0.0.1:0"));
    let client = server.gateway().unwrap_or_else(|error| panic!("{error:#}"));
    (server, client)
}

/// A short greedy chat request with some fields set to something else.
pub fn chat(changes: Value) -> Value {
    let mut body = json!({
        "model": "wren",
        "messages": [{ "role": "user", "content": "Hello! Who are you?" }],
        "temperature": 0,
        "max_tokens": 40,
    });
    body.as_object_mut().expect("an object").extend(changes.as_object().expect("changes").clone());
    body
}

/// A chat that goes on for as long as any test takes.
pub fn endless_chat(changes: Value) -> Value {
    let mut body = chat(json!({ "max_tokens": 1900, "ignore_eos": true }));
    body.as_object_mut().expect("an object").extend(changes.as_object().expect("changes").clone());
    body
}

pub fn ask(client: &Client, path: &str, body: &Value) -> Answer {
    let answer = client.send(&Request::post(path, body)).unwrap_or_else(|error| panic!("{path}: {error:#}"));
    gateway_contract::check_answer("POST", path, answer.status, &answer.body);
    if answer.status == 200 {
        gateway_contract::check_request(path, body);
    }
    answer
}

/// The body of an answer that must be a 200.
pub fn told(client: &Client, path: &str, body: &Value) -> Value {
    let answer = ask(client, path, body);
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    answer.json().expect("JSON")
}

pub fn open_stream(client: &Client, path: &str, body: &Value) -> EventStream {
    let stream = open_stream_with(client, &Request::post(path, body));
    gateway_contract::check_request(path, body);
    stream
}

pub fn open_stream_with(client: &Client, request: &Request) -> EventStream {
    match client.open(request).unwrap_or_else(|error| panic!("{error:#}")) {
        Opened::Stream(stream) => stream,
        Opened::Answer(answer) => panic!("{} instead of a stream: {}", answer.status, answer.text()),
    }
}

/// The data of every event to the stream's proper end.
pub fn all_data(stream: &EventStream) -> Vec<String> {
    stream.wait_for_end(2 * PATIENCE).unwrap_or_else(|error| panic!("{error:#}"));
    let events = stream.events();
    events.iter().for_each(|event| gateway_contract::check_event(&event.name, &event.data));
    events.into_iter().map(|event| event.data).collect()
}

/// The chunks of a stream that must end with `[DONE]`.
pub fn chunks(client: &Client, path: &str, body: &Value) -> Vec<Value> {
    let mut body = body.clone();
    body["stream"] = json!(true);
    let mut data = all_data(&open_stream(client, path, &body));
    assert_eq!(data.pop().as_deref(), Some("[DONE]"), "{data:?}");
    data.iter().map(|d| serde_json::from_str(d).unwrap_or_else(|e| panic!("{e}: {d}"))).collect()
}

/// The error of a refusal, after what holds for every one of them.
pub fn gateway_refusal(answer: &Answer, status: u16, code: &str) -> Value {
    let error = answer.json().expect("JSON")["error"].clone();
    assert_eq!((answer.status, error["code"].as_str()), (status, Some(code)), "{}", answer.text());
    assert!(error["message"].as_str().is_some_and(|m| m.split_whitespace().count() >= 3), "{error}");
    assert!(error["type"].is_string() && error.get("param").is_some(), "{error}");
    assert!(["true", "false"].contains(&answer.header("x-should-retry").expect("says whether to retry")));
    assert!(answer.header("x-request-id").is_some_and(|id| !id.is_empty()));
    error
}
