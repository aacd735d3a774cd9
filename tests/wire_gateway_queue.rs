//! The gateway's way with keys, queues, deadlines, clients that leave, browsers and probes.

mod common;

use std::time::Duration;

use common::gateway::*;
use common::*;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

/// A chat that decodes until its client leaves; gives its stream once it does.
fn occupy_by_chat(gateway: &Client) -> EventStream {
    let stream = open_stream(gateway, CHAT, &endless_chat(json!({ "stream": true })));
    stream.wait_until(PATIENCE, |events| events.len() > 2).expect("tokens");
    stream
}

fn running(server: &Server) -> f64 {
    metric(server, "sequences_running", &[])
}

#[test]
fn a_key_is_taken_as_a_bearer_or_as_x_api_key() {
    let (server, gateway) = with_gateway(Settings::default());
    let nobody = server.gateway().expect("a gateway").without_key();
    let with = |name: &str, value: &str| nobody.send(&Request::get("/v1/models").with(name, value)).expect("an answer");
    assert_eq!(with("Authorization", &format!("Bearer {KEY}")).status, 200);
    assert_eq!(with("Authorization", &format!("bearer {KEY}")).status, 200);
    assert_eq!(with("X-API-Key", KEY).status, 200);
    gateway_refusal(&with("Authorization", "Bearer sk-wrong"), 401, "invalid_api_key");
    gateway_refusal(&with("Authorization", &format!("Basic {KEY}")), 401, "invalid_api_key");
    gateway_refusal(&with("X-API-Key", "wrong"), 401, "invalid_api_key");
    gateway_refusal(&nobody.send(&Request::get("/v1/models")).expect("an answer"), 401, "invalid_api_key");
    assert_eq!(gateway.send(&Request::get("/v1/models")).expect("an answer").status, 200);
    assert!(!server.stderr().contains(KEY), "the log has the key");
}

#[test]
fn without_the_setting_there_is_no_gateway() {
    let server = server();
    assert!(!server.stdout().contains("gateway"));
    refusal(&get(&server, "/v1/models"), 404, "NOT_FOUND");
}

#[test]
fn probes_need_no_key_and_tell_the_truth() {
    let (server, gateway) = with_gateway(Settings::default());
    let nobody = gateway.without_key();
    let status = |path: &str| nobody.send(&Request::get(path)).expect("an answer").status;
    for path in ["/health", "/health/live", "/health/ready", "/healthz", "/livez", "/readyz"] {
        assert_eq!(status(path), 200, "{path}");
    }
    assert!(nobody.send(&Request::get("/metrics")).expect("an answer").text().contains("tokens_out_total"));
    assert_eq!(post(&server, "/v1/pools/default/drain", &json!({ "deadline_ms": 1000 })).status, 202);
    let ready = nobody.send(&Request::get("/readyz")).expect("an answer");
    assert_eq!((ready.status, ready.text().contains("draining")), (503, true));
    assert_eq!(status("/livez"), 200);
    let refused = ask(&gateway, CHAT, &chat(json!({})));
    gateway_refusal(&refused, 503, "pool_unavailable");
}

#[test]
fn a_full_queue_says_when_to_come_back_in_every_words_that_clients_know() {
    let (server, gateway) = with_gateway(narrow(1));
    let occupied = occupy_by_chat(&gateway);
    let waiting = open_stream(&gateway, CHAT, &chat(json!({ "stream": true })));
    let refused = ask(&gateway, CHAT, &chat(json!({})));
    let error = gateway_refusal(&refused, 429, "queue_full");
    assert_eq!(error["type"], "rate_limit_error");
    assert_eq!(refused.header("x-should-retry"), Some("true"));
    let ms: u64 = refused.header("retry-after-ms").expect("a time").parse().expect("a number");
    let seconds: u64 = refused.header("Retry-After").expect("a time").parse().expect("a number");
    assert!(ms >= 1 && seconds == ms.div_ceil(1000));
    assert_eq!(metric(&server, "admission_backpressure_events_total", &[("policy", "reject")]), 1.0);
    occupied.close();
    assert_eq!(all_data(&waiting).last().map(String::as_str), Some("[DONE]"));
}

#[test]
fn who_waits_is_told_its_place_in_comments_or_in_events() {
    let (_server, gateway) = with_gateway(narrow(8).with("heartbeat_ms", 200));
    let occupied = occupy_by_chat(&gateway);
    let body = chat(json!({ "stream": true }));
    let first = open_stream(&gateway, CHAT, &body);
    let request = Request::post(CHAT, &body).with("x-orch-events", "queue");
    let second = open_stream_with(&gateway, &request);
    assert_eq!((first.head.header("x-queue-position"), second.head.header("x-queue-position")), (Some("0"), Some("1")));
    assert!(second.head.header("x-predicted-start-ms").expect("a time").parse::<u64>().is_ok());
    assert!(second.head.header("x-task-id").is_some_and(|id| id.len() == 36));
    first.wait_for_comments(PATIENCE, 2).expect("comments for who did not ask for events");
    assert!(String::from_utf8_lossy(&first.bytes()).contains(": queued position=0 eta_ms="));
    second.wait_until(PATIENCE, |events| events.iter().any(|e| e.name == "queue_status")).expect("an event");
    let told = second.events()[0].json().expect("JSON");
    assert_eq!(told["queue_position"], 1);
    assert!(told["estimated_wait_seconds"].as_f64().expect("seconds") >= 0.0);
    occupied.close();
    assert!(first.events().iter().all(|e| e.name == "message"), "nobody asked for events here");
    assert_eq!(all_data(&first).last().map(String::as_str), Some("[DONE]"));
    assert_eq!(all_data(&second).last().map(String::as_str), Some("[DONE]"));
}

#[test]
fn a_key_has_one_budget_at_both_doors() {
    let settings = Settings::default().with("key_tokens_budget", 30).with("key_cost_budget", 1000);
    let (server, gateway) = with_gateway(settings);
    let asked = chat(json!({ "max_tokens": 20, "ignore_eos": true }));
    let answered = ask(&gateway, CHAT, &asked);
    assert_eq!(
        (answered.status, answered.header("x-ratelimit-remaining-tokens")),
        (200, Some("30")),
        "{}",
        answered.text()
    );
    let accepted = enqueue(&server, &task_with(json!({ "max_tokens": 24, "ignore_end": true })));
    assert_eq!(accepted.header("X-Budget-Tokens-Remaining"), Some("10"), "what the chat has left");
    let refused = ask(&gateway, CHAT, &asked);
    assert_eq!(gateway_refusal(&refused, 429, "insufficient_quota")["type"], "rate_limit_error");
    assert_eq!((refused.header("x-should-retry"), refused.header("Retry-After")), (Some("false"), None));
}

#[test]
fn a_client_that_leaves_frees_its_slot_whether_it_streamed_or_not() {
    let (server, gateway) = with_gateway(narrow(4));
    let streaming = occupy_by_chat(&gateway);
    streaming.close();
    wait_until("the slot to be free", || running(&server) == 0.0);
    let mut waiting = gateway.connect().expect("a connection");
    waiting.write(&gateway.keyed(&Request::post(CHAT, &endless_chat(json!({})))).encode()).expect("a request");
    wait_until("the slot to be taken", || running(&server) == 1.0);
    // One that is still in the queue goes, too.
    let mut queued = gateway.connect().expect("a connection");
    queued.write(&gateway.keyed(&Request::post(CHAT, &endless_chat(json!({})))).encode()).expect("a request");
    wait_until("a task to wait", || metric(&server, "queue_depth", &[]) == 1.0);
    drop(queued);
    wait_until("the queue to be empty", || metric(&server, "queue_depth", &[]) == 0.0);
    drop(waiting);
    wait_until("the slot to be free", || running(&server) == 0.0);
    wait_until("all of them to be counted", || {
        metric(&server, "tasks_canceled_total", &[("reason", "disconnect")]) == 3.0
    });
}

#[test]
fn an_evicted_chat_is_told_so_in_its_answer_or_in_its_stream() {
    let (_server, gateway) = with_gateway(narrow(1).with("admission_policy", "drop-lru"));
    let _occupied = occupy_by_chat(&gateway);
    let streaming = open_stream(&gateway, CHAT, &chat(json!({ "stream": true })));
    let plain = gateway.clone();
    let whole = std::thread::spawn(move || ask(&plain, CHAT, &chat(json!({}))));
    let data = all_data(&streaming);
    let error: Value = serde_json::from_str(&data[0]).expect("JSON");
    assert_eq!(error["error"]["code"], "queue_full_drop_lru", "{data:?}");
    let _newest = open_stream(&gateway, CHAT, &chat(json!({ "stream": true })));
    let answer = whole.join().expect("an answer");
    gateway_refusal(&answer, 429, "queue_full_drop_lru");
    assert!(answer.header("retry-after-ms").is_some());
}

#[test]
fn a_deadline_that_cannot_be_met_is_refused_and_not_retried() {
    let (_server, gateway) = with_gateway(Settings::default());
    let ask_with = |ms: &str| {
        let request = Request::post(CHAT, &endless_chat(json!({}))).with("x-deadline-ms", ms);
        gateway.send(&request).expect("an answer")
    };
    for ms in ["1", "0"] {
        let answer = ask_with(ms);
        gateway_refusal(&answer, 429, "deadline_unmet");
        assert_eq!(answer.header("x-should-retry"), Some("false"));
    }
    gateway_refusal(&ask_with("soon"), 400, "invalid_value");
}

#[test]
fn a_first_token_that_cannot_come_in_time_is_refused_and_not_queued() {
    let (_server, gateway) = with_gateway(narrow(4));
    let ask_with = |ms: &str| {
        let request = Request::post(CHAT, &chat(json!({ "max_tokens": 2 }))).with("x-llm-d-slo-ttft-ms", ms);
        gateway.send(&request).expect("an answer")
    };
    assert_eq!(ask_with("60000").status, 200);
    let occupied = open_stream(&gateway, CHAT, &endless_chat(json!({ "stream": true })));
    wait_until("a slot that is taken", || occupied.events().len() > 2);
    for ms in ["1", "0"] {
        gateway_refusal(&ask_with(ms), 429, "deadline_unmet");
    }
    gateway_refusal(&ask_with("soon"), 400, "invalid_value");
}

#[test]
fn a_task_of_the_gateway_is_a_task_like_any_other() {
    let (server, gateway) = with_gateway(Settings::default());
    let session = uuid();
    let request = Request::post(CHAT, &chat(json!({}))).with("x-session-id", &session).with("x-request-id", "req-7");
    let answer = gateway.send(&request).expect("an answer");
    assert_eq!((answer.status, answer.header("x-request-id")), (200, Some("req-7")));
    let view = get(&server, &format!("/v1/sessions/{session}")).json().expect("JSON");
    assert_eq!((&view["turns"], view["kv_bytes"].as_u64() > Some(0)), (&json!(1), true));
    let body = answer.json().expect("JSON");
    let facts = &body["choices"][0]["orchestratord"];
    let id = facts["task_id"].as_str().expect("an id");
    assert_eq!(answer.header("x-task-id"), Some(id));
    // Its stream in our own words, and its transcript, are there to be read.
    let events = finish(&open_with(&server, &Request::get(&format!("/v1/tasks/{id}/stream"))));
    assert_eq!(sse::text(&events), body["choices"][0]["message"]["content"].as_str().expect("text"));
    let transcript = get(&server, &format!("/v1/artifacts/{}", facts["transcript"].as_str().expect("an id")));
    assert_eq!(transcript.json().expect("JSON")["metadata"]["seed"], facts["seed"]);
    // A name that is no UUID is a session, too; without any name nothing stays behind.
    let before = get(&server, &format!("/v1/sessions/{session}")).json().expect("JSON")["turns"].clone();
    told(&gateway, CHAT, &chat(json!({ "prompt_cache_key": session })));
    let after = get(&server, &format!("/v1/sessions/{session}")).json().expect("JSON")["turns"].clone();
    assert_eq!((before, after), (json!(1), json!(2)));
}

#[test]
fn a_task_that_is_canceled_elsewhere_ends_with_an_error() {
    let (server, gateway) = with_gateway(Settings::default());
    let stream = occupy_by_chat(&gateway);
    let id = stream.head.header("x-task-id").expect("an id").to_owned();
    assert_eq!(send(&server, &Request::new("POST", &format!("/v1/tasks/{id}/cancel"))).status, 204);
    let at_cancel = stream.events().len();
    let data = all_data(&stream);
    assert!(data.iter().any(|d| d.contains("\"error\"") && d.contains("canceled")), "{:?}", data.last());
    // What was on its way is read by now, and nothing but the error and the end came after it.
    assert!(data.len() <= at_cancel + 64, "{} events after the cancel", data.len() - at_cancel);
}

#[test]
fn an_old_client_without_chunks_reads_the_same_stream() {
    let (_server, gateway) = with_gateway(Settings::default());
    let body = chat(json!({ "stream": true })).to_string();
    let mut connection = gateway.connect().expect("a connection");
    let head = format!("POST {CHAT} HTTP/1.0\r\nX-API-Key: {KEY}\r\nContent-Length: {}\r\n\r\n", body.len());
    connection.write(format!("{head}{body}").as_bytes()).expect("a request");
    let answer = connection.receive("POST").expect("an answer");
    // Whether it had to wait for a step, and was told so in comments, is chance.
    let text = answer.text();
    let events: Vec<&str> = text.split("\n\n").skip_while(|event| event.starts_with(": ")).collect();
    assert!(events[0].starts_with("data: {") && events.ends_with(&["data: [DONE]", ""]), "{text}");
}

#[test]
fn a_page_of_an_allowed_origin_may_ask_and_no_other() {
    let (_server, gateway) = with_gateway(Settings::default().with("gateway_cors_origins", "https://chat.example.org"));
    let nobody = gateway.without_key();
    let preflight = |origin: &str| {
        let request = Request::new("OPTIONS", CHAT)
            .with("Origin", origin)
            .with("Access-Control-Request-Method", "POST")
            .with("Access-Control-Request-Headers", "authorization,content-type");
        nobody.send(&request).expect("an answer")
    };
    let answer = preflight("https://chat.example.org");
    assert_eq!((answer.status, answer.header("Access-Control-Allow-Methods")), (204, Some("POST")));
    assert_eq!(answer.header("Access-Control-Allow-Headers"), Some("authorization,content-type"));
    assert_eq!(answer.header("Access-Control-Allow-Origin"), Some("https://chat.example.org"));
    assert_eq!(preflight("https://evil.example.org").header("Access-Control-Allow-Origin"), None);
    for (origin, allowed) in [("https://chat.example.org", true), ("https://evil.example.org", false)] {
        let request = Request::post(CHAT, &chat(json!({}))).with("Origin", origin);
        let answer = gateway.send(&request).expect("an answer");
        assert_eq!(answer.header("Access-Control-Allow-Origin").is_some(), allowed, "{origin}");
        assert_eq!(answer.header("Vary"), Some("Origin"));
    }
    let (_server, closed) = with_gateway(Settings::default());
    let answer = closed.send(&Request::new("OPTIONS", CHAT).with("Origin", "https://a.b")).expect("an answer");
    assert_eq!((answer.status, answer.header("Access-Control-Allow-Origin")), (405, None));
}

#[test]
fn many_chats_at_once_get_every_token_once_and_leave_nothing() {
    let (server, gateway) = with_gateway(Settings::default().with("reactors", 2));
    let one = |number: usize| {
        let gateway = gateway.clone();
        std::thread::spawn(move || {
            let body = chat(json!({ "temperature": 0.8, "seed": number, "max_tokens": 24, "ignore_eos": true }));
            let streamed = chunks(&gateway, CHAT, &body);
            let text: String = streamed.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
            let whole = told(&gateway, CHAT, &body);
            assert_eq!(whole["choices"][0]["message"]["content"].as_str(), Some(text.as_str()), "chat {number}");
        })
    };
    let chats: Vec<_> = (0..40).map(one).collect();
    chats.into_iter().for_each(|chat| chat.join().expect("a chat"));
    assert_eq!(metric(&server, "tokens_out_total", &[]), 40.0 * 2.0 * 24.0);
    wait_until("every slot to be free", || running(&server) == 0.0);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(metric(&server, "tasks_canceled_total", &[("reason", "disconnect")]), 0.0);
}

#[test]
fn the_page_is_one_file_and_shows_nothing_without_a_key() {
    let (server, gateway) = with_gateway(narrow(4));
    let nobody = gateway.without_key();
    let page = nobody.send(&Request::get("/")).expect("an answer");
    assert_eq!((page.status, page.header("Content-Type")), (200, Some("text/html; charset=utf-8")));
    assert!(page.header("Content-Security-Policy").is_some_and(|csp| csp.starts_with("default-src 'none'")));
    let text = page.text();
    assert!(
        !text.contains("http://") && !text.contains("https://") && !text.contains("src="),
        "it asks for nothing else"
    );
    gateway_refusal(&nobody.send(&Request::get("/api/status")).expect("an answer"), 401, "invalid_api_key");

    let _occupied = occupy_by_chat(&gateway);
    let waiting = open_stream(&gateway, CHAT, &chat(json!({ "stream": true })));
    let status = || gateway.send(&Request::get("/api/status")).expect("an answer").json().expect("JSON");
    wait_until("both tasks", || status()["running"] == 1 && status()["queue_depth"] == 1);
    let now = status();
    assert_eq!((&now["state"], &now["model"], &now["draining"]), (&json!("ready"), &json!("wren"), &json!(false)));
    let states: Vec<&str> =
        now["tasks"].as_array().expect("tasks").iter().filter_map(|t| t["state"].as_str()).collect();
    assert_eq!(states, ["waiting", "running"], "the newest first");
    assert!(now["tasks"][1]["tokens_out"].as_u64().expect("a count") > 0);
    let id = now["tasks"][0]["id"].as_str().expect("an id");
    let cancel = |id: &str| gateway.send(&Request::new("POST", &format!("/api/tasks/{id}/cancel"))).expect("an answer");
    assert_eq!(cancel(id).status, 204);
    assert!(all_data(&waiting).iter().any(|d| d.contains("canceled")));
    assert_eq!(status()["tasks"][0]["state"], "canceled");
    gateway_refusal(&cancel(&uuid()), 404, "not_found");
    drop(server);
}
