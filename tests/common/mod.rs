//! What the wire tests share: a server with the settings a test needs, tasks, and streams read to their end.
//!
//! Every file under tests/ is a program of its own and uses only some of this.
#![allow(dead_code, unused_imports)]

pub mod canonical;
pub mod gateway;
pub mod gateway_contract;
pub mod sse;

use std::time::Duration;

use serde_json::{Value, json};

pub use orchestratord_bdd::harness::metrics::Page;
pub use orchestratord_bdd::harness::server::{KEY, POOL};
pub use orchestratord_bdd::harness::{
    Answer, Client, Connection, EventStream, Opened, PATIENCE, Request, Scratch, Server, Settings, wait_for,
};
pub use sse::Event;

/// How long a whole crowd of streams may take on a slow machine.
pub const CROWD_PATIENCE: Duration = Duration::from_secs(240);

/// A server with the default settings.
pub fn server() -> Server {
    server_with(Settings::default())
}

pub fn server_with(settings: Settings) -> Server {
    Server::start(&settings).unwrap_or_else(|error| panic!("{error:#}"))
}

/// One slot and a queue of `capacity`: a running task keeps every later one waiting.
pub fn narrow(capacity: u32) -> Settings {
    Settings::default().with("slots_max", 1).with("queue_capacity", capacity)
}

pub fn uuid() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// A short task that any server takes.
pub fn task() -> Value {
    json!({
        "task_id": uuid(),
        "session_id": uuid(),
        "workload": "completion",
        "model_ref": "wren",
        "engine": "cpu",
        "ctx": 256,
        "priority": "interactive",
        "max_tokens": 8,
        "deadline_ms": 600_000,
        "prompt": "Once upon a time",
    })
}

/// A short task with some fields set to something else; `null` takes a field away.
pub fn task_with(changes: Value) -> Value {
    let mut task = task();
    for (name, value) in changes.as_object().expect("changes are an object") {
        match value {
            Value::Null => task.as_object_mut().expect("a task is an object").remove(name),
            value => task.as_object_mut().expect("a task is an object").insert(name.clone(), value.clone()),
        };
    }
    task
}

/// A task that decodes until it is canceled, for as long as any test takes.
pub fn endless() -> Value {
    task_with(json!({ "ctx": 2048, "max_tokens": 1900, "ignore_end": true }))
}

pub fn id_of(task: &Value) -> &str {
    task["task_id"].as_str().expect("a task has an id")
}

pub fn session_of(task: &Value) -> &str {
    task["session_id"].as_str().expect("a task has a session")
}

pub fn stream_path(task: &Value) -> String {
    format!("/v1/tasks/{}/stream", id_of(task))
}

pub fn send(server: &Server, request: &Request) -> Answer {
    server.client().send(request).unwrap_or_else(|error| panic!("{} {}: {error:#}", request.method, request.path))
}

pub fn get(server: &Server, path: &str) -> Answer {
    send(server, &Request::get(path))
}

pub fn post(server: &Server, path: &str, body: &Value) -> Answer {
    send(server, &Request::post(path, body))
}

pub fn delete(server: &Server, path: &str) -> Answer {
    send(server, &Request::new("DELETE", path))
}

/// Enqueues a task that must be accepted.
pub fn enqueue(server: &Server, task: &Value) -> Answer {
    let answer = post(server, "/v1/tasks", task);
    assert_eq!(answer.status, 202, "{task}: {}", answer.text());
    answer
}

pub fn cancel(server: &Server, task: &Value) {
    let answer = send(server, &Request::new("POST", &format!("/v1/tasks/{}/cancel", id_of(task))));
    assert_eq!(answer.status, 204, "{}", answer.text());
}

/// Opens a task's stream, which must be there.
pub fn open(server: &Server, task: &Value) -> EventStream {
    open_with(server, &Request::get(&stream_path(task)))
}

pub fn open_with(server: &Server, request: &Request) -> EventStream {
    match server.client().open(request).unwrap_or_else(|error| panic!("{}: {error:#}", request.path)) {
        Opened::Stream(stream) => stream,
        Opened::Answer(answer) => panic!("{} instead of a stream: {}", answer.status, answer.text()),
    }
}

/// Waits for the stream's end and gives its events, which must be in order.
pub fn finish(stream: &EventStream) -> Vec<Event> {
    finish_within(stream, 2 * PATIENCE)
}

pub fn finish_within(stream: &EventStream, patience: Duration) -> Vec<Event> {
    stream.wait_for_end(patience).unwrap_or_else(|error| panic!("{error:#}"));
    let text = String::from_utf8(stream.bytes()).expect("a stream is UTF-8");
    let events = sse::parse(&text).unwrap_or_else(|error| panic!("{error}"));
    sse::check_order(&events).unwrap_or_else(|error| panic!("{error}; in\n{text}"));
    events
}

/// Enqueues a task and reads its stream to the end.
pub fn run(server: &Server, task: &Value) -> Vec<Event> {
    enqueue(server, task);
    finish(&open(server, task))
}

/// Waits until the stream has shown `count` tokens.
pub fn wait_for_tokens(stream: &EventStream, count: usize) {
    let enough =
        |events: &[orchestratord_bdd::harness::Event]| events.iter().filter(|e| e.name == "token").count() >= count;
    stream.wait_until(PATIENCE, enough).unwrap_or_else(|error| panic!("{error:#}"));
}

/// Waits until a task whose stream nobody has opened has ended: only the log tells.
pub fn wait_for_end_of(server: &Server, task: &Value) {
    let is_it = |line: &str| line.contains(id_of(task)) && line.contains("task ended");
    wait_until("the task's end in the log", || server.stderr().lines().any(is_it));
}

/// Starts a task that decodes until it is canceled, and waits until it does.
pub fn occupy(server: &Server) -> (Value, EventStream) {
    let task = endless();
    enqueue(server, &task);
    let stream = open(server, &task);
    wait_for_tokens(&stream, 1);
    (task, stream)
}

/// The last event of a stream that must have ended well.
pub fn end_of(events: &[Event]) -> Value {
    let last = events.last().expect("a stream has events");
    assert_eq!(last.name, "end", "{}", last.data);
    last.json().expect("data is JSON")
}

/// What the server's metrics say now.
pub fn scrape(server: &Server) -> Page {
    Page::parse(&get(server, "/metrics").text())
}

/// The sum of the series of `name` that have all of `labels`; they must be there.
pub fn metric(server: &Server, name: &str, labels: &[(&str, &str)]) -> f64 {
    scrape(server).sum(name, labels).unwrap_or_else(|| panic!("no series {name} {labels:?}"))
}

/// Waits until a condition holds that nothing announces.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    wait_for(what, || Ok(holds().then_some(()))).unwrap_or_else(|error| panic!("{error:#}"));
}

/// The envelope of a refusal, after the rules that hold for every one of them.
pub fn refusal(answer: &Answer, status: u16, code: &str) -> Value {
    let body = answer.json().unwrap_or_else(|error| panic!("{}: {error:#}", answer.status));
    assert_eq!((answer.status, body["code"].as_str()), (status, Some(code)), "{body}");
    assert!(
        body["message"].as_str().is_some_and(|m| m.split_whitespace().count() >= 3),
        "the message says nothing: {body}"
    );
    assert!(body["retriable"].is_boolean(), "{body}");
    assert_eq!(answer.header("Content-Type"), Some("application/json"), "{body}");
    assert_correlated(answer);
    body
}

/// Every answer has one, whatever else went wrong.
pub fn assert_correlated(answer: &Answer) {
    let id = answer.header("X-Correlation-Id").unwrap_or_else(|| panic!("{} has no X-Correlation-Id", answer.status));
    assert!((1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()), "{id:?}");
}
