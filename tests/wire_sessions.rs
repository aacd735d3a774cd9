//! Sessions: made by their first task, forgotten after their time, and spent to the last token.

mod common;

use std::time::Duration;

use common::*;
use serde_json::{Value, json};

fn session(server: &Server, id: &str) -> Value {
    let answer = get(server, &format!("/v1/sessions/{id}"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json().expect("JSON")
}

/// Tokens, milliseconds and cost as the answer's headers tell them.
fn told(answer: &Answer) -> (u64, u64, f64) {
    let header = |name: &str| answer.header(name).unwrap_or_else(|| panic!("no {name}")).to_owned();
    (
        header("X-Budget-Tokens-Remaining").parse().expect("a number"),
        header("X-Budget-Time-Remaining-Ms").parse().expect("a number"),
        header("X-Budget-Cost-Remaining").parse().expect("a number"),
    )
}

fn left(of: &Value) -> (u64, u64, f64) {
    let number = |name: &str| of[name].as_u64().unwrap_or_else(|| panic!("no {name} in {of}"));
    let cost = of["cost_budget_remaining"].as_f64().expect("a cost");
    (number("tokens_budget_remaining"), number("time_budget_remaining_ms"), cost)
}

/// A task of exactly `tokens` tokens in a given session.
fn spend(session: &str, tokens: u64) -> Value {
    task_with(json!({ "session_id": session, "max_tokens": tokens, "ignore_end": true }))
}

#[test]
fn a_session_is_made_by_its_first_task_and_counts_turns() {
    let server = server();
    let id = uuid();
    refusal(&get(&server, &format!("/v1/sessions/{id}")), 404, "NOT_FOUND");
    for turn in 1..=3 {
        let task = spend(&id, 4);
        enqueue(&server, &task);
        assert_eq!(session(&server, &id)["turns"], turn, "counted at acceptance");
        finish(&open(&server, &task));
    }
    let shown = session(&server, &id);
    assert_eq!(shown["turns"], 3);
    assert!((1..=600_000).contains(&shown["ttl_ms_remaining"].as_u64().expect("a number")), "{shown}");
    assert!(shown["kv_warmth"].as_f64().is_some_and(|w| (0.0..=1.0).contains(&w)), "{shown}");
    let refused = task_with(json!({ "session_id": uuid(), "max_tokens": 0 }));
    refusal(&post(&server, "/v1/tasks", &refused), 400, "INVALID_PARAMS");
    refusal(&get(&server, &format!("/v1/sessions/{}", session_of(&refused))), 404, "NOT_FOUND");
}

#[test]
fn the_kv_that_a_session_shows_is_there_and_goes_with_it() {
    let server = server();
    let id = uuid();
    let prompt = "The little bird sat on the wall and looked at the sea. ".repeat(8);
    run(&server, &task_with(json!({ "session_id": id, "prompt": prompt, "ctx": 512 })));
    let warm = session(&server, &id);
    assert!(warm["kv_bytes"].as_u64().expect("a number") > 0, "{warm}");
    assert!(warm["kv_warmth"].as_f64().expect("a number") > 0.0, "{warm}");
    let hits = metric(&server, "prefix_cache_hit_tokens_total", &[]);
    run(&server, &task_with(json!({ "session_id": id, "prompt": prompt, "ctx": 512 })));
    assert!(metric(&server, "prefix_cache_hit_tokens_total", &[]) > hits, "the second turn found nothing");

    let gone = delete(&server, &format!("/v1/sessions/{id}"));
    assert_eq!((gone.status, gone.body.len()), (204, 0));
    refusal(&get(&server, &format!("/v1/sessions/{id}")), 404, "NOT_FOUND");
    refusal(&delete(&server, &format!("/v1/sessions/{id}")), 404, "NOT_FOUND");
    let cold = task_with(json!({ "session_id": id, "max_tokens": 1 }));
    enqueue(&server, &cold);
    let anew = session(&server, &id);
    assert_eq!(anew["turns"], 1, "the name is free for a new session");
    finish(&open(&server, &cold));
}

#[test]
fn deleting_a_session_does_not_break_its_running_task() {
    let server = server();
    let task = task_with(json!({ "ctx": 512, "max_tokens": 200, "ignore_end": true }));
    enqueue(&server, &task);
    let stream = open(&server, &task);
    wait_for_tokens(&stream, 1);
    assert_eq!(delete(&server, &format!("/v1/sessions/{}", session_of(&task))).status, 204);
    let events = finish(&stream);
    assert!(matches!(events.last().expect("events").name.as_str(), "end" | "error"));
}

#[test]
fn a_session_is_forgotten_after_its_time_and_each_use_renews_it() {
    let server = server_with(Settings::default().with("session_ttl_ms", 1500));
    let id = uuid();
    run(&server, &spend(&id, 1));
    let full = session(&server, &id)["ttl_ms_remaining"].as_u64().expect("a number");
    assert!(full <= 1500, "{full}");
    wait_until("some of its time to pass", || {
        let answer = get(&server, &format!("/v1/sessions/{id}"));
        answer.status == 404 || answer.json().expect("JSON")["ttl_ms_remaining"].as_u64().expect("a number") < 1200
    });
    run(&server, &spend(&id, 1));
    let renewed = session(&server, &id);
    assert!(renewed["ttl_ms_remaining"].as_u64().expect("a number") > 1200, "{renewed}");
    wait_until("the session to be forgotten", || get(&server, &format!("/v1/sessions/{id}")).status == 404);
}

#[test]
fn headers_session_and_metrics_event_tell_the_same_and_spending_is_exact() {
    let settings = Settings::default()
        .with("session_tokens_budget", 100)
        .with("session_time_budget_ms", 60_000)
        .with("session_cost_budget", 50)
        .with("cost_per_token", 0.25)
        .with("metrics_interval_ms", 1);
    let server = server_with(settings);
    let id = uuid();
    let mut before = (100, 60_000, 50.0);
    for tokens in [7, 12, 1] {
        let task = spend(&id, tokens);
        let accepted = enqueue(&server, &task);
        assert_eq!(told(&accepted), before, "202 of a task of {tokens}");
        let stream = open(&server, &task);
        let events = finish(&stream);
        let end = end_of(&events);
        assert_eq!(end["tokens_out"], tokens);
        let decode_ms = end["decode_ms"].as_u64().expect("a number");
        for event in events.iter().filter(|e| e.name == "metrics") {
            let now = left(&event.json().expect("JSON"));
            assert!(now.0 <= before.0 && now.0 >= before.0 - tokens, "{}", event.data);
            assert!(now.1 <= before.1 && now.1 >= before.1 - decode_ms, "{}", event.data);
            assert!(now.2 <= before.2, "{}", event.data);
        }
        let after = (before.0 - tokens, before.1 - decode_ms, before.2 - tokens as f64 * 0.25);
        assert_eq!(left(&session(&server, &id)), after, "after a task of {tokens} that took {decode_ms} ms");
        assert_eq!(told(&open(&server, &task).head), after, "a stream that is opened afterwards");
        before = after;
    }
    let other = enqueue(&server, &spend(&uuid(), 1));
    assert_eq!(told(&other), (100, 60_000, 50.0), "another session has its own");
}

#[test]
fn a_budget_of_tokens_is_spent_to_the_last_one_and_no_further() {
    let server = server_with(Settings::default().with("session_tokens_budget", 20));
    let id = uuid();
    let mut sent = 0;
    for _ in 0..2 {
        sent += end_of(&run(&server, &spend(&id, 8)))["tokens_out"].as_u64().expect("a number");
    }
    assert_eq!((sent, session(&server, &id)["tokens_budget_remaining"].as_u64()), (16, Some(4)));
    let last = spend(&id, 4);
    assert_eq!(end_of(&run(&server, &last))["tokens_out"], 4);
    assert_eq!(session(&server, &id)["tokens_budget_remaining"], 0);
    check_spent(&server, &id, "token");
    assert_eq!(post(&server, "/v1/tasks", &spend(&uuid(), 8)).status, 202, "another session goes on");
    assert_eq!(session(&server, &id)["turns"], 3, "a refusal is no turn");
}

/// A spent session is told so, without a time to come back.
fn check_spent(server: &Server, session: &str, which: &str) {
    let answer = post(server, "/v1/tasks", &spend(session, 8));
    let said = refusal(&answer, 429, "ADMISSION_REJECT");
    assert_eq!(said["retriable"], false, "{said}");
    assert!(said["policy_label"].as_str().is_some_and(|label| label.contains(which)), "{said}");
    assert!(said.get("retry_after_ms").is_none() && answer.header("Retry-After").is_none(), "{said}");
}

#[test]
fn two_tasks_at_once_cannot_spend_the_same_tokens() {
    let server = server_with(Settings::default().with("session_tokens_budget", 100));
    let id = uuid();
    let tasks: Vec<Value> = (0..8).map(|_| spend(&id, 30)).collect();
    let accepted: Vec<&Value> = tasks.iter().filter(|task| post(&server, "/v1/tasks", task).status == 202).collect();
    assert!(accepted.len() >= 3, "{} of 8 were accepted", accepted.len());
    let ends = accepted.iter().map(|task| end_of(&finish(&open(&server, task)))["tokens_out"].as_u64());
    let sent: u64 = ends.map(|n| n.expect("a number")).sum();
    assert!(sent <= 100, "{sent} tokens of 100 were sent");
    assert_eq!(session(&server, &id)["tokens_budget_remaining"], 100 - sent);
}

#[test]
fn budgets_of_time_and_cost_are_kept_too() {
    let server = server_with(Settings::default().with("session_cost_budget", 2).with("cost_per_token", 0.5));
    let id = uuid();
    let end = end_of(&run(&server, &spend(&id, 4)));
    assert_eq!(end["tokens_out"], 4);
    assert_eq!(session(&server, &id)["cost_budget_remaining"].as_f64(), Some(0.0));
    check_spent(&server, &id, "cost");

    let server = server_with(Settings::default().with("session_time_budget_ms", 1));
    let id = uuid();
    let long = task_with(json!({ "session_id": id, "ctx": 512, "max_tokens": 200, "ignore_end": true }));
    run(&server, &long);
    assert_eq!(session(&server, &id)["time_budget_remaining_ms"], 0);
    check_spent(&server, &id, "time");
}

/// A server for two keys, each of which may spend so many tokens over all its sessions.
fn with_two_keys(tokens: u64) -> (Server, [Client; 2]) {
    let keys = format!("{KEY},another-key-0815");
    let server = server_with(Settings::default().with("api_keys", keys).with("key_tokens_budget", tokens));
    let clients = [KEY, "another-key-0815"].map(|key| server.client_with(Some(key)));
    (server, clients)
}

fn send(client: &Client, task: &Value) -> Answer {
    client.send(&Request::post("/v1/tasks", task)).expect("an answer")
}

#[test]
fn what_a_key_may_spend_is_shared_by_its_sessions_and_its_own() {
    let (server, [mine, yours]) = with_two_keys(20);
    let first = send(&mine, &spend(&uuid(), 12));
    assert_eq!((first.status, told(&first).0), (202, 20), "the key has less than its session");
    let second = spend(&uuid(), 12);
    assert_eq!(send(&mine, &second).status, 202);
    assert_eq!(end_of(&finish(&open(&server, &second)))["tokens_out"], 8, "12 of 20 were promised already");
    let refused = send(&mine, &spend(&uuid(), 1));
    let said = refusal(&refused, 429, "ADMISSION_REJECT");
    assert_eq!((&said["policy_label"], &said["retriable"]), (&json!("key-tokens-budget"), &json!(false)), "{said}");
    assert!(refused.header("Retry-After").is_none());
    assert_eq!(told(&send(&yours, &spend(&uuid(), 12))).0, 20, "another key has its own");
}

#[test]
fn many_tasks_at_once_cannot_spend_more_than_their_key_has() {
    let (server, [mine, _]) = with_two_keys(100);
    let senders: Vec<_> = (0..6)
        .map(|_| {
            let mine = mine.clone();
            std::thread::spawn(move || {
                let tasks = (0..4).map(|_| spend(&uuid(), 9));
                tasks.filter(|task| send(&mine, task).status == 202).collect::<Vec<_>>()
            })
        })
        .collect();
    let accepted: Vec<Value> = senders.into_iter().flat_map(|s| s.join().expect("it sends")).collect();
    let ends = accepted.iter().map(|task| end_of(&finish(&open(&server, task)))["tokens_out"].as_u64());
    assert_eq!(ends.map(|n| n.expect("a number")).sum::<u64>(), 100, "no more, and to the last one");
}

#[test]
fn a_spent_budget_is_said_before_anything_of_the_queue() {
    let settings = narrow(1).with("session_tokens_budget", 5000).with("api_keys", format!("{KEY},another-key-0815"));
    let server = server_with(settings.with("key_tokens_budget", 2500));
    let (running, _stream) = occupy(&server);
    let poor = endless();
    enqueue(&server, &poor);
    check_spent(&server, &uuid(), "key-tokens");
    let other = server.client_with(Some("another-key-0815"));
    assert_eq!(refusal(&send(&other, &task()), 429, "ADMISSION_REJECT")["policy_label"], "reject", "it is full, too");
    cancel(&server, &poor);
    cancel(&server, &running);
}

#[test]
fn a_canceled_task_spends_what_it_sent() {
    let server = server_with(Settings::default().with("session_tokens_budget", 5000));
    let (task, stream) = occupy(&server);
    wait_for_tokens(&stream, 5);
    cancel(&server, &task);
    let sent = end_of(&finish(&stream))["tokens_out"].as_u64().expect("a number");
    assert!(sent >= 5, "{sent}");
    assert_eq!(session(&server, session_of(&task))["tokens_budget_remaining"], 5000 - sent);
}

#[test]
fn beyond_its_limit_the_server_forgets_the_session_that_was_unused_for_longest() {
    let server = server_with(Settings::default().with("sessions_max", 3));
    let ids: Vec<String> = (0..5).map(|_| uuid()).collect();
    for id in &ids {
        run(&server, &spend(id, 1));
    }
    let is_known = |id: &String| get(&server, &format!("/v1/sessions/{id}")).status == 200;
    assert_eq!(ids.iter().map(is_known).collect::<Vec<_>>(), [false, false, true, true, true]);
    let mut connection = server.client().connect().expect("the server listens");
    assert!(!connection.is_closed_within(Duration::from_millis(1)));
}
