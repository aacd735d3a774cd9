//! Streams: tokens one by one, every token once, for any number of readers, taken up anywhere, cut off cleanly.

mod common;

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use common::*;
use serde_json::{Value, json};

#[test]
fn tokens_arrive_one_by_one_and_not_at_the_end() {
    let server = server();
    let task = task_with(json!({ "ctx": 512, "max_tokens": 200, "ignore_end": true }));
    enqueue(&server, &task);
    let stream = open(&server, &task);
    assert_eq!(finish(&stream).iter().filter(|e| e.name == "token").count(), 200);
    let arrivals: Vec<_> = stream.events().iter().filter(|e| e.name == "token").map(|e| e.arrived).collect();
    let moments: BTreeSet<_> = arrivals.iter().collect();
    // Some may come together on a busy machine; a server that sends them at the end has one moment for all.
    assert!(moments.len() >= 20, "200 tokens came in {} pieces", moments.len());
    let ended = stream.events().last().expect("an end").arrived;
    let half = arrivals[100];
    assert!(half < ended && arrivals[0] < half, "the first half came with the end");
}

#[test]
fn the_head_comes_before_the_first_token_and_the_stream_waits_with_the_task() {
    let server = server_with(narrow(4));
    let (running, _stream) = occupy(&server);
    let waiting = task();
    enqueue(&server, &waiting);
    let stream = open(&server, &waiting);
    stream.wait_until(PATIENCE, |events| !events.is_empty()).expect("started comes at once");
    let events = stream.events();
    assert_eq!(events[0].name, "started");
    assert!(events.iter().all(|e| e.name != "token"), "a waiting task has no tokens");
    for (header, value) in
        [("Content-Type", "text/event-stream"), ("Cache-Control", "no-cache"), ("X-Accel-Buffering", "no")]
    {
        assert_eq!(stream.head.header(header), Some(value));
    }
    cancel(&server, &running);
    finish(&stream);
}

#[test]
fn metrics_come_at_most_once_per_interval() {
    let server = server_with(Settings::default().with("metrics_interval_ms", 600_000));
    let task = task_with(json!({ "ctx": 512, "max_tokens": 200, "ignore_end": true }));
    let events = run(&server, &task);
    let count = events.iter().filter(|e| e.name == "metrics").count();
    assert_eq!(count, 1, "a stream shorter than the interval has one");
    let place = events.iter().position(|e| e.name == "metrics").expect("was counted");
    assert_eq!(events[place - 1].name, "token", "it follows the first token");

    let server = server_with(Settings::default().with("metrics_interval_ms", 1));
    let events = run(&server, &task_with(json!({ "ctx": 512, "max_tokens": 200, "ignore_end": true })));
    assert!(events.iter().filter(|e| e.name == "metrics").count() >= 2, "an interval of 1 ms gives more");
}

#[test]
fn a_silent_stream_is_kept_alive_by_comments() {
    let server = server_with(narrow(4).with("heartbeat_ms", 100));
    let (running, _stream) = occupy(&server);
    let waiting = task();
    enqueue(&server, &waiting);
    let stream = open(&server, &waiting);
    stream.wait_for_comments(PATIENCE, 2).expect("comment lines on a silent stream");
    cancel(&server, &running);
    finish(&stream);
}

#[test]
fn two_hundred_streams_get_every_token_once() {
    const STREAMS: usize = 200;
    const TOKENS: usize = 64;
    let server = Arc::new(server());
    let start = Arc::new(Barrier::new(STREAMS));
    let reader = |number: usize| {
        let (server, start) = (server.clone(), start.clone());
        let name = format!("reader {number}");
        let read = move || {
            let task = task_with(json!({
                "max_tokens": TOKENS,
                "ignore_end": true,
                "priority": if number.is_multiple_of(2) { "interactive" } else { "batch" },
                "prompt": format!("Number {number} went to the market"),
                "temperature": if number.is_multiple_of(3) { 0.8 } else { 0.0 },
                "seed": number,
            }));
            start.wait();
            let stream = if number.is_multiple_of(4) {
                open_with(&server, &Request::post("/v1/tasks", &task).with("Accept", "text/event-stream"))
            } else {
                enqueue(&server, &task);
                open(&server, &task)
            };
            finish_within(&stream, CROWD_PATIENCE)
        };
        thread::Builder::new().name(name).stack_size(256 * 1024).spawn(read).expect("a thread")
    };
    let readers: Vec<_> = (0..STREAMS).map(reader).collect();
    for (number, reader) in readers.into_iter().enumerate() {
        let events = reader.join().unwrap_or_else(|_| panic!("reader {number} failed"));
        let indices: Vec<u64> =
            events.iter().filter(|e| e.name == "token").map(|e| e.field("i").as_u64().expect("an index")).collect();
        assert_eq!(indices, (0..TOKENS as u64).collect::<Vec<_>>(), "stream {number}");
        assert_eq!(end_of(&events)["tokens_out"], TOKENS, "stream {number}");
    }
    let out = metric(&server, "tokens_out_total", &[]);
    assert_eq!(out, (STREAMS * TOKENS) as f64, "tokens_out_total");
    assert_eq!(metric(&server, "tasks_started_total", &[]), STREAMS as f64);
}

#[test]
fn a_post_that_accepts_a_stream_gets_it_on_the_same_connection() {
    let server = server();
    let task = task();
    let stream = open_with(&server, &Request::post("/v1/tasks", &task).with("Accept", "text/event-stream"));
    assert_eq!(stream.head.status, 200);
    assert!(stream.head.header("X-Budget-Tokens-Remaining").is_some());
    let events = finish(&stream);
    assert_eq!(events, finish(&open(&server, &task)), "the other way to the same stream");
    let refused = Request::post("/v1/tasks", &task_with(json!({ "ctx": 0 }))).with("Accept", "text/event-stream");
    refusal(&send(&server, &refused), 400, "INVALID_PARAMS");
}

#[test]
fn the_same_task_again_is_the_same_task() {
    let server = server();
    let task = task();
    let first = enqueue(&server, &task);
    let again = enqueue(&server, &task);
    assert_eq!(first.body, again.body);
    assert_eq!(first.header("Location"), Some(stream_path(&task).as_str()));
    assert_eq!(again.header("Location"), first.header("Location"));
    let events = finish(&open(&server, &task));
    let late = enqueue(&server, &task);
    assert_eq!(late.body, first.body, "also when it has ended");
    assert_eq!(finish(&open(&server, &task)), events, "nothing ran again");
    assert_eq!(metric(&server, "tasks_enqueued_total", &[]), 1.0);
    assert_eq!(get(&server, &format!("/v1/sessions/{}", session_of(&task))).json().expect("JSON")["turns"], 1);
    for change in [json!({ "max_tokens": 9 }), json!({ "prompt": "Something else" }), json!({ "seed": 1 })] {
        let mut other = task.clone();
        other.as_object_mut().expect("a task").extend(change.as_object().expect("a change").clone());
        let said = refusal(&post(&server, "/v1/tasks", &other), 400, "INVALID_PARAMS");
        assert!(said["message"].as_str().is_some_and(|m| m.contains("task_id")), "{said}");
    }
}

#[test]
fn the_same_task_from_many_clients_at_once_runs_once() {
    let server = Arc::new(server_with(Settings::default().with("reactors", 2)));
    let task = Arc::new(task());
    let start = Arc::new(Barrier::new(16));
    let client = || {
        let (server, task, start) = (server.clone(), task.clone(), start.clone());
        thread::spawn(move || {
            start.wait();
            enqueue(&server, &task).body
        })
    };
    let clients: Vec<_> = (0..16).map(|_| client()).collect();
    let bodies: BTreeSet<Vec<u8>> = clients.into_iter().map(|c| c.join().expect("an answer")).collect();
    assert_eq!(bodies.len(), 1, "they were told different things");
    finish(&open(&server, &task));
    assert_eq!(metric(&server, "tasks_enqueued_total", &[]), 1.0);
    assert_eq!(metric(&server, "tasks_started_total", &[]), 1.0);
}

#[test]
fn a_stream_goes_on_after_the_last_event_that_was_seen() {
    let server = server();
    let task = task_with(json!({ "max_tokens": 24, "ignore_end": true }));
    let whole = run(&server, &task);
    for event in &whole {
        let request = Request::get(&stream_path(&task)).with("Last-Event-ID", &event.id.to_string());
        let stream = open_with(&server, &request);
        stream.wait_for_end(PATIENCE).expect("it ends");
        let rest = sse::parse(&String::from_utf8(stream.bytes()).expect("UTF-8")).expect("events");
        let expected: Vec<_> = whole.iter().filter(|e| e.id > event.id).cloned().collect();
        if !expected.is_empty() {
            assert_eq!(rest, expected, "after {}", event.id);
        }
    }
}

#[test]
fn a_reader_that_lost_its_connection_misses_nothing() {
    let server = server();
    let task = task_with(json!({ "ctx": 512, "max_tokens": 300, "ignore_end": true }));
    enqueue(&server, &task);
    let mut seen: Vec<Event> = Vec::new();
    loop {
        let mut request = Request::get(&stream_path(&task));
        if let Some(last) = seen.last() {
            request = request.with("Last-Event-ID", &last.id.to_string());
        }
        let stream = open_with(&server, &request);
        let is_enough = |events: &[orchestratord_bdd::harness::Event]| {
            events.len() >= 40 || events.last().is_some_and(|e| e.name == "end")
        };
        stream.wait_until(PATIENCE, is_enough).expect("events come");
        let piece = stream.events();
        stream.close();
        seen.extend(piece.into_iter().map(|e| Event {
            id: e.id.expect("a number").parse().expect("a number"),
            name: e.name,
            data: e.data,
        }));
        if seen.last().is_some_and(|e| e.name == "end") {
            break;
        }
    }
    sse::check_order(&seen).expect("the pieces fit together");
    assert_eq!(seen.iter().filter(|e| e.name == "token").count(), 300);
}

#[test]
fn a_second_and_a_late_reader_get_the_same_stream() {
    let server = server_with(Settings::default().with("reactors", 2));
    let task = task_with(json!({ "max_tokens": 100, "ignore_end": true }));
    enqueue(&server, &task);
    let first = open(&server, &task);
    let second = open(&server, &task);
    wait_for_tokens(&first, 30);
    let in_the_middle = open(&server, &task);
    let events = finish(&first);
    assert_eq!(finish(&second), events);
    assert_eq!(finish(&in_the_middle), events);
    assert_eq!(finish(&open(&server, &task)), events);
}

#[test]
fn a_reader_that_does_not_read_holds_nobody_up() {
    let server = server();
    let task = task_with(json!({ "ctx": 2048, "max_tokens": 1500, "ignore_end": true, "logprobs": true }));
    enqueue(&server, &task);
    let mut lazy = server.client().connect().expect("the server listens");
    lazy.write(&server.client().keyed(&Request::get(&stream_path(&task))).encode()).expect("it takes the request");
    let events = finish(&open(&server, &task));
    assert_eq!(end_of(&events)["tokens_out"], 1500);
    let late = lazy.receive("GET").expect("all of it was kept");
    let text = String::from_utf8(late.body).expect("UTF-8");
    assert_eq!(sse::parse(&text).expect("events"), events);
}

#[test]
fn log_probabilities_come_when_they_are_asked_for() {
    let server = server();
    let plain = run(&server, &task());
    assert!(
        plain.iter().filter(|e| e.name == "token").all(|e| e.field("id").is_null() && e.field("logprob").is_null())
    );
    let asked = run(&server, &task_with(json!({ "logprobs": true })));
    for event in asked.iter().filter(|e| e.name == "token") {
        assert!(event.field("id").is_u64(), "{}", event.data);
        assert!(event.field("logprob").as_f64().is_some_and(|p| p <= 0.0), "{}", event.data);
    }
    assert_eq!(sse::text(&plain), sse::text(&asked), "asking changes nothing");
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let server = server();
    let free = run(&server, &task_with(json!({ "max_tokens": 48, "ignore_end": true })));
    let text = sse::text(&free);
    // Any piece of what comes, across token borders: it must be cut off exactly there.
    let characters: Vec<char> = text.chars().collect();
    assert!(characters.len() > 40, "too little text to cut: {text:?}");
    for (from, len) in [(10, 1), (13, 5), (20, 12), (5, 3)] {
        let stop: String = characters[from..from + len].iter().collect();
        let expected = &text[..text.find(&stop).expect("it is a part")];
        let task = task_with(json!({ "max_tokens": 48, "ignore_end": true, "stop": [stop] }));
        let events = run(&server, &task);
        assert_eq!(sse::text(&events), expected, "stop {stop:?}");
        assert_eq!(end_of(&events)["finish_reason"], "stop");
    }
}

#[test]
fn a_canceled_task_writes_no_token_after_the_answer() {
    let server = server_with(Settings::default().with("reactors", 2));
    for round in 0..60 {
        let task = endless();
        enqueue(&server, &task);
        let client = server.client();
        let mut reading = client.connect().expect("the server listens");
        let socket = reading.handle().expect("a handle");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        reading.write(&client.keyed(&Request::get(&stream_path(&task))).encode()).expect("it takes the request");
        let mut before = Vec::new();
        while count_tokens(&before) < round % 20 {
            read_some(&socket, &mut before);
        }
        cancel(&server, &task);
        // What was written before the answer lies in our socket by now; what comes later was written later.
        let mut waiting = vec![0; 1 << 20];
        socket.set_nonblocking(true).expect("a flag");
        let waiting_len = socket.peek(&mut waiting).unwrap_or(0);
        socket.set_nonblocking(false).expect("a flag");
        let written_before = before.len() + waiting_len;
        while !before.ends_with(b"0\r\n\r\n") {
            read_some(&socket, &mut before);
        }
        let all = count_tokens(&before);
        let allowed = count_tokens(&before[..written_before]);
        assert_eq!(all, allowed, "round {round}: tokens were written after the answer");
        let text = String::from_utf8_lossy(&before);
        assert!(text.contains("\"canceled\""), "round {round}: {}", &text[text.len().saturating_sub(300)..]);
        let late = finish(&open(&server, &task));
        assert_eq!(end_of(&late)["finish_reason"], "canceled", "round {round}");
        assert!(late.iter().all(|e| e.name != "token"), "round {round}: a late reader was sent tokens");
    }
    assert_eq!(metric(&server, "tasks_canceled_total", &[("reason", "client")]), 60.0);
}

fn count_tokens(bytes: &[u8]) -> usize {
    bytes.windows(12).filter(|w| w == b"event: token").count()
}

fn read_some(mut socket: &std::net::TcpStream, into: &mut Vec<u8>) {
    let mut buffer = [0; 4096];
    let len = socket.read(&mut buffer).expect("the stream goes on");
    assert!(len > 0, "the stream ended: {}", String::from_utf8_lossy(into));
    into.extend_from_slice(&buffer[..len]);
}

#[test]
fn a_canceled_waiting_task_never_decodes() {
    let server = server_with(narrow(4));
    let (running, stream) = occupy(&server);
    let waiting = [task(), task()];
    for task in &waiting {
        enqueue(&server, task);
    }
    let opened_before = open(&server, &waiting[0]);
    for task in &waiting {
        cancel(&server, task);
    }
    for events in [finish(&opened_before), finish(&open(&server, &waiting[1]))] {
        let end = end_of(&events);
        assert_eq!((&end["finish_reason"], &end["tokens_out"]), (&json!("canceled"), &json!(0)));
        assert!(events.iter().all(|e| e.name != "token"));
    }
    cancel(&server, &running);
    finish(&stream);
    assert_eq!(metric(&server, "tasks_started_total", &[]), 1.0, "only the running one was started");
    wait_until("their places to be free", || metric(&server, "queue_depth", &[]) == 0.0);
}

#[test]
fn canceling_again_or_too_late_changes_nothing() {
    let server = server();
    let done = task();
    let events = run(&server, &done);
    cancel(&server, &done);
    assert_eq!(finish(&open(&server, &done)), events);
    assert_eq!(end_of(&events)["finish_reason"], end_of(&finish(&open(&server, &done)))["finish_reason"]);

    let (running, stream) = occupy(&server);
    let server = Arc::new(server);
    let cancels: Vec<_> = (0..8)
        .map(|_| {
            let (server, running) = (server.clone(), running.clone());
            thread::spawn(move || cancel(&server, &running))
        })
        .collect();
    for cancel in cancels {
        cancel.join().expect("each of them is answered with 204");
    }
    assert_eq!(end_of(&finish(&stream))["finish_reason"], "canceled");
    refusal(&send(&server, &Request::new("POST", &format!("/v1/tasks/{}/cancel", uuid()))), 404, "NOT_FOUND");
}

#[test]
fn a_lost_reader_means_what_the_task_says() {
    let server = server_with(Settings::default().with("disconnect_grace_ms", 50));
    let going_on = task_with(json!({ "ctx": 512, "max_tokens": 300, "ignore_end": true, "on_disconnect": "continue" }));
    enqueue(&server, &going_on);
    let stream = open(&server, &going_on);
    wait_for_tokens(&stream, 1);
    stream.close();
    assert_eq!(end_of(&finish(&open_when_ended(&server, &going_on)))["tokens_out"], 300);

    let mut ending = endless();
    ending["on_disconnect"] = json!("cancel");
    enqueue(&server, &ending);
    let stream = open(&server, &ending);
    wait_for_tokens(&stream, 1);
    stream.close();
    wait_until("the cancel", || metric(&server, "tasks_canceled_total", &[("reason", "disconnect")]) == 1.0);
    assert_eq!(end_of(&finish(&open(&server, &ending)))["finish_reason"], "canceled");
}

fn open_when_ended(server: &Server, task: &Value) -> EventStream {
    wait_until("the task's end", || metric(server, "sequences_running", &[]) == 0.0);
    open(server, task)
}

#[test]
fn an_ended_task_is_forgotten_after_its_retention() {
    let server = server_with(Settings::default().with("task_retention_ms", 200));
    let task = task();
    run(&server, &task);
    wait_until("the task to be forgotten", || get(&server, &stream_path(&task)).status == 404);
    refusal(&get(&server, &stream_path(&task)), 404, "NOT_FOUND");
}

#[test]
fn the_transcript_holds_the_same_events_under_its_own_hash() {
    let server = server();
    for changes in [
        json!({ "max_tokens": 24, "ignore_end": true }),
        json!({ "max_tokens": 12, "temperature": 0.9, "seed": 11, "logprobs": true, "ignore_end": true }),
    ] {
        let task = task_with(changes);
        check_transcript(&server, &run(&server, &task), &task);
    }
}

/// A cancel may come between a token's commit and its write: over and over, at all distances from the last token seen.
#[test]
fn the_transcript_of_a_cancelled_task_holds_what_was_sent() {
    let server = server();
    for round in 0..40 {
        let (task, stream) = occupy(&server);
        std::thread::sleep(Duration::from_micros(round * 130));
        cancel(&server, &task);
        check_transcript(&server, &finish(&stream), &task);
    }
}

fn check_transcript(server: &Server, events: &[Event], task: &Value) {
    let id = end_of(events)["artifact_id"].as_str().expect("an id").to_owned();
    let answer = get(server, &format!("/v1/artifacts/{id}"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let document = answer.json().expect("JSON");
    assert_eq!(canonical::artifact_id(&document), id, "the id is not the hash of the canonical document");
    assert_eq!(document["kind"], "trace");
    let as_sent = |event: &Event| {
        let mut data = event.json().expect("JSON");
        data.as_object_mut().expect("an object").remove("artifact_id");
        json!({ "type": event.name, "data": data })
    };
    let expected = Value::Array(events.iter().map(as_sent).collect());
    let kept = canonical::text(&document["content"]["events"]);
    assert_eq!(kept, canonical::text(&expected), "the transcript is not what was sent");
    let metadata = document["metadata"].as_object().expect("metadata");
    let all = Value::Object(metadata.clone()).to_string();
    for part in ["seed", "prompt", "engine", "engine_version", "model", "sampler_profile_version", "temperature"] {
        assert!(all.contains(part), "the metadata has no {part}: {all}");
    }
    assert!(all.contains(id_of(task)), "the metadata does not name its task: {all}");
}

#[test]
fn a_task_that_misses_its_deadline_ends_with_an_error() {
    let server = server_with(Settings::default().with("on_time_probability_floor", 0));
    let mut late = endless();
    late["deadline_ms"] = json!(150);
    let answer = post(&server, "/v1/tasks", &late);
    if answer.status == 400 {
        refusal(&answer, 400, "DEADLINE_UNMET");
        return;
    }
    let stream = open(&server, &late);
    stream.wait_for_end(PATIENCE).expect("it ends");
    let events = sse::parse(&String::from_utf8(stream.bytes()).expect("UTF-8")).expect("events");
    let last = events.last().expect("events");
    assert_eq!((last.name.as_str(), last.field("code")), ("error", json!("DEADLINE_UNMET")), "{}", last.data);
    assert_eq!(last.field("engine"), "cpu");
    let free = Duration::from_secs(1);
    assert!(!server.client().connect().expect("the server listens").is_closed_within(free), "it serves on");
}

#[test]
fn a_transcript_that_cannot_be_written_ends_its_own_stream_and_no_other() {
    let mut settings = Settings::default();
    settings.add_fault("scribe=1*panic");
    let server = server_with(settings);
    let last_of = |task: Value| {
        enqueue(&server, &task);
        finish(&open(&server, &task)).pop().expect("events")
    };
    let unlucky = last_of(task());
    let said: Value = serde_json::from_str(&unlucky.data).expect("JSON");
    assert_eq!((unlucky.name.as_str(), &said["code"]), ("error", &json!("INTERNAL")));
    assert_eq!(last_of(task()).name, "end");
}
