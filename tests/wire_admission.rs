//! A full queue, both policies, deadlines that cannot be met, and tasks that can never fit.

mod common;

use common::*;
use serde_json::{Value, json};

/// A server whose one slot is busy and whose queue is full of `waiting`.
struct Full {
    server: Server,
    running: Value,
    stream: EventStream,
    waiting: Vec<Value>,
}

fn full(settings: Settings, waiting: Vec<Value>) -> Full {
    let server = server_with(settings);
    let (running, stream) = occupy(&server);
    for task in &waiting {
        enqueue(&server, task);
    }
    Full { server, running, stream, waiting }
}

fn batch() -> Value {
    task_with(json!({ "priority": "batch" }))
}

/// 429 with a time, told in the body and in both headers.
fn told_when(answer: &Answer, code: &str) -> u64 {
    let said = refusal(answer, 429, code);
    assert_eq!((&said["retriable"], &said["engine"]), (&json!(true), &json!("cpu")), "{said}");
    let ms = said["retry_after_ms"].as_u64().unwrap_or_else(|| panic!("no retry_after_ms: {said}"));
    assert_eq!(answer.header("X-Backoff-Ms"), Some(ms.to_string().as_str()));
    assert_eq!(answer.header("Retry-After"), Some(ms.div_ceil(1000).max(1).to_string().as_str()));
    ms
}

#[test]
fn a_full_queue_sends_the_next_task_away_with_a_time() {
    let full = full(narrow(3), vec![task(), task(), batch()]);
    for newcomer in [task(), batch()] {
        let answer = post(&full.server, "/v1/tasks", &newcomer);
        told_when(&answer, "ADMISSION_REJECT");
        assert_eq!(answer.json().expect("JSON")["policy_label"], "reject");
        refusal(&get(&full.server, &stream_path(&newcomer)), 404, "NOT_FOUND");
    }
    let events = ("admission_backpressure_events_total", [("policy", "reject")]);
    assert_eq!(metric(&full.server, events.0, &events.1), 2.0);
    assert_eq!(metric(&full.server, "tasks_rejected_total", &[("reason", "ADMISSION_REJECT")]), 2.0);
    assert_eq!(metric(&full.server, "queue_depth", &[("priority", "interactive")]), 2.0);
    assert_eq!(metric(&full.server, "queue_depth", &[("priority", "batch")]), 1.0);

    cancel(&full.server, &full.running);
    finish(&full.stream);
    for task in &full.waiting {
        assert_eq!(end_of(&finish(&open(&full.server, task)))["finish_reason"], "length");
    }
    assert_eq!(metric(&full.server, "queue_depth", &[]), 0.0);
    assert_eq!(post(&full.server, "/v1/tasks", &task()).status, 202, "there is room again");
}

#[test]
fn the_time_to_come_back_is_predicted_from_the_queue() {
    let short = full(narrow(1), vec![task()]);
    let soon = told_when(&post(&short.server, "/v1/tasks", &task()), "ADMISSION_REJECT");
    assert!(soon < 600_000, "{soon} ms for what takes seconds");
}

#[test]
fn positions_follow_priority_and_arrival() {
    let server = server_with(narrow(8));
    let (running, stream) = occupy(&server);
    let order = [(batch(), 0), (task(), 0), (task(), 1), (batch(), 3), (task(), 2)];
    for (task, position) in &order {
        let accepted = enqueue(&server, task).json().expect("JSON");
        assert_eq!(accepted["queue_position"], *position, "{}", task["priority"]);
        let stream = open(&server, task);
        stream.wait_until(PATIENCE, |events| !events.is_empty()).expect("started comes at once");
        let started = stream.events()[0].json().expect("JSON");
        assert_eq!(started["queue_position"], accepted["queue_position"]);
        assert_eq!(started["predicted_start_ms"], accepted["predicted_start_ms"]);
    }
    cancel(&server, &running);
    finish(&stream);
    for (task, _) in &order {
        assert_eq!(end_of(&finish(&open(&server, task)))["finish_reason"], "length");
    }
    assert_eq!(metric(&server, "tasks_started_total", &[("priority", "batch")]), 2.0);
}

#[test]
fn drop_lru_evicts_the_oldest_of_the_lowest_class() {
    let settings = narrow(3).with("admission_policy", "drop-lru");
    let full = full(settings, vec![batch(), batch(), task()]);
    let server = &full.server;
    let open_before = open(server, &full.waiting[0]);
    open_before.wait_until(PATIENCE, |events| !events.is_empty()).expect("started comes at once");

    // The first batch task goes, whose stream is open: an SSE error.
    let first = task();
    enqueue(server, &first);
    open_before.wait_for_end(PATIENCE).expect("the evicted task's stream ends");
    let events = sse::parse(&String::from_utf8(open_before.bytes()).expect("UTF-8")).expect("events");
    let last = events.last().expect("events");
    assert_eq!((last.name.as_str(), last.field("code")), ("error", json!("QUEUE_FULL_DROP_LRU")));
    assert_eq!(last.field("policy_label"), "drop-lru");

    // The second one goes, whose stream nobody has opened: a plain 429.
    let second = task();
    enqueue(server, &second);
    wait_for_end_of(server, &full.waiting[1]);
    told_when(&get(server, &stream_path(&full.waiting[1])), "QUEUE_FULL_DROP_LRU");

    // Now nothing of lower class waits: a batch task is refused, an interactive one evicts the oldest.
    told_when(&post(server, "/v1/tasks", &batch()), "QUEUE_FULL_DROP_LRU");
    let third = task();
    enqueue(server, &third);
    wait_for_end_of(server, &full.waiting[2]);
    told_when(&get(server, &stream_path(&full.waiting[2])), "QUEUE_FULL_DROP_LRU");

    let policy = [("policy", "drop-lru")];
    assert_eq!(metric(server, "admission_backpressure_events_total", &policy), 4.0);
    assert_eq!(metric(server, "tasks_rejected_total", &[("reason", "QUEUE_FULL_DROP_LRU")]), 4.0);
    cancel(server, &full.running);
    for task in [&first, &second, &third] {
        assert_eq!(end_of(&finish(&open(server, task)))["finish_reason"], "length", "who was let in is served");
    }
}

#[test]
fn a_deadline_that_cannot_be_met_is_refused_at_once() {
    let server = server();
    for deadline in [0, -1, -600_000] {
        let answer = post(&server, "/v1/tasks", &task_with(json!({ "deadline_ms": deadline })));
        let said = refusal(&answer, 400, "DEADLINE_UNMET");
        assert_eq!(said["retriable"], false);
    }
    // The model of the engine learns from what runs; then a second of decoding cannot be promised in 1 ms.
    run(&server, &task_with(json!({ "ctx": 512, "max_tokens": 100, "ignore_end": true })));
    let mut hopeless = endless();
    hopeless["deadline_ms"] = json!(1);
    refusal(&post(&server, "/v1/tasks", &hopeless), 400, "DEADLINE_UNMET");
    assert_eq!(metric(&server, "tasks_rejected_total", &[("reason", "DEADLINE_UNMET")]), 4.0);
    assert_eq!(end_of(&run(&server, &task()))["finish_reason"], "length");
}

#[test]
fn a_deadline_behind_a_long_queue_is_judged_by_the_queue() {
    let server = server_with(narrow(8).with("on_time_probability_floor", 0.5));
    run(&server, &task_with(json!({ "ctx": 512, "max_tokens": 100, "ignore_end": true })));
    let (running, stream) = occupy(&server);
    for _ in 0..4 {
        enqueue(&server, &endless());
    }
    refusal(&post(&server, "/v1/tasks", &task_with(json!({ "deadline_ms": 400 }))), 400, "DEADLINE_UNMET");
    assert_eq!(post(&server, "/v1/tasks", &task()).status, 202, "a patient one is let in");
    cancel(&server, &running);
    finish(&stream);
}

#[test]
fn a_task_that_can_never_fit_is_told_so() {
    let server = server_with(Settings::default().with("kv_blocks_max", 8));
    let fits = task_with(json!({ "ctx": 64, "max_tokens": 8 }));
    assert_eq!(end_of(&run(&server, &fits))["tokens_out"], 8);
    let never = task_with(json!({ "ctx": 1024, "max_tokens": 900, "ignore_end": true }));
    let said = refusal(&post(&server, "/v1/tasks", &never), 503, "REPLICA_EXHAUSTED");
    assert_eq!((&said["engine"], &said["retriable"]), (&json!("cpu"), &json!(false)), "{said}");
    assert_eq!(metric(&server, "tasks_rejected_total", &[("reason", "REPLICA_EXHAUSTED")]), 1.0);
}

#[test]
fn a_crowd_in_a_small_cache_is_served_in_turns() {
    // Room for about two of these at once: the others wait or are recomputed, and none is lost.
    let server = server_with(Settings::default().with("kv_blocks_max", 24));
    let tasks: Vec<Value> = (0..8)
        .map(|number| {
            task_with(json!({
                "ctx": 192,
                "max_tokens": 120,
                "ignore_end": true,
                "priority": if number % 2 == 0 { "batch" } else { "interactive" },
                "prompt": format!("Number {number} is waiting"),
            }))
        })
        .collect();
    for task in &tasks {
        enqueue(&server, task);
    }
    for task in &tasks {
        assert_eq!(end_of(&finish(&open(&server, task)))["tokens_out"], 120);
    }
}

#[test]
fn the_overload_status_can_be_chosen() {
    let full = full(narrow(1).with("overload_status", 503), vec![task()]);
    let answer = post(&full.server, "/v1/tasks", &task());
    refusal(&answer, 503, "ADMISSION_REJECT");
    assert!(answer.header("Retry-After").is_some());
}
