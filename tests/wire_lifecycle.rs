//! Drain, reload with rollback, and SIGTERM: who was let in gets an end, and the old model serves on.

mod common;

use std::fs;
use std::path::PathBuf;

use common::*;
use serde_json::{Value, json};

fn pool(what: &str) -> String {
    format!("/v1/pools/{POOL}/{what}")
}

fn health(server: &Server) -> Value {
    let answer = get(server, &pool("health"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json().expect("JSON")
}

fn drain(server: &Server, deadline_ms: u64) {
    let answer = post(server, &pool("drain"), &json!({ "deadline_ms": deadline_ms }));
    assert_eq!(answer.status, 202, "{}", answer.text());
}

fn reload(server: &Server, name: &str) -> Answer {
    post(server, &pool("reload"), &json!({ "new_model_ref": name }))
}

fn last_of(stream: &EventStream) -> Event {
    stream.wait_for_end(PATIENCE).expect("the stream ends");
    let text = String::from_utf8(stream.bytes()).expect("UTF-8");
    let events = sse::parse(&text).expect("events");
    sse::check_order(&events).expect("in order");
    events.last().expect("events").clone()
}

#[test]
fn a_healthy_pool_says_so() {
    let server = server();
    let health = health(&server);
    assert_eq!((&health["live"], &health["ready"], &health["draining"]), (&json!(true), &json!(true), &json!(false)));
    assert_eq!(health["model"], "wren");
    assert!(health["metrics"].is_object() && health.get("last_error").is_none_or(Value::is_null), "{health}");
    let before = metric(&server, "model_state", &[("model_id", "wren"), ("state", "ready")]);
    assert_eq!(before, 1.0);
}

#[test]
fn capabilities_tell_what_this_process_does() {
    let server = server_with(Settings::default().with("slots_max", 3));
    let capabilities = get(&server, "/v1/capabilities").json().expect("JSON");
    assert!(capabilities["api_version"].is_string(), "{capabilities}");
    let engines = capabilities["engines"].as_array().expect("engines");
    assert_eq!(engines.len(), 1, "{capabilities}");
    let cpu = &engines[0];
    assert_eq!((&cpu["engine"], &cpu["concurrency"]), (&json!("cpu"), &json!(3)));
    assert_eq!(cpu["supported_workloads"], json!(["completion", "embedding"]));
    assert_eq!(models_of(&capabilities), ["wren"]);
    assert_eq!(cpu["ctx_max"], 2048);
}

/// The names of the models that a task may ask for.
fn models_of(capabilities: &Value) -> Vec<&str> {
    let models = capabilities["engines"][0]["models"].as_array().expect("models");
    models.iter().map(|model| model["model_ref"].as_str().expect("a name")).collect()
}

#[test]
fn a_draining_pool_admits_nothing_and_lets_what_runs_finish() {
    let server = server_with(narrow(4));
    let running = task_with(json!({ "ctx": 1024, "max_tokens": 400, "ignore_end": true }));
    enqueue(&server, &running);
    let stream = open(&server, &running);
    wait_for_tokens(&stream, 1);
    let waiting = task();
    enqueue(&server, &waiting);
    drain(&server, 120_000);
    assert_eq!(health(&server)["draining"], true);
    let said = refusal(&post(&server, "/v1/tasks", &task()), 503, "POOL_UNAVAILABLE");
    assert_eq!(said["pool_id"], POOL, "{said}");
    assert_eq!(end_of(&finish(&stream))["tokens_out"], 400);
    let events = finish(&open(&server, &waiting));
    assert_eq!(events.last().expect("events").name, "end", "what was admitted is served");
    assert_eq!(health(&server)["live"], true);
    refusal(&post(&server, "/v1/tasks", &task()), 503, "POOL_UNAVAILABLE");
}

#[test]
fn at_the_drains_deadline_what_still_runs_ends_with_an_error() {
    let server = server_with(narrow(4));
    let (_running, stream) = occupy(&server);
    let waiting = task();
    enqueue(&server, &waiting);
    let waiting_stream = open(&server, &waiting);
    drain(&server, 50);
    for stream in [&stream, &waiting_stream] {
        let last = last_of(stream);
        assert_eq!((last.name.as_str(), last.field("code")), ("error", json!("POOL_UNAVAILABLE")), "{}", last.data);
        assert_eq!(last.field("engine"), "cpu");
    }
    // Draining again is no error, and an earlier deadline may follow a later one.
    drain(&server, 10_000);
    drain(&server, 0);
    assert_eq!(health(&server)["draining"], true);
}

#[test]
fn a_reload_of_the_same_model_serves_on_and_ends_a_drain() {
    let server = server();
    let before = sse::text(&run(&server, &task()));
    drain(&server, 0);
    let answer = reload(&server, "wren");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let health = health(&server);
    assert_eq!(
        (&health["ready"], &health["draining"], &health["model"]),
        (&json!(true), &json!(false), &json!("wren"))
    );
    assert_eq!(sse::text(&run(&server, &task())), before);
    assert!(metric(&server, "catalog_verifications_total", &[("result", "ok")]) >= 1.0);
}

/// The built-in model as files: whole, and damaged in every way.
struct Models {
    folder: Scratch,
}

impl Models {
    fn new() -> Models {
        let folder = Scratch::new().expect("a folder");
        let whole = fs::read(Self::source()).expect("the model of the repository");
        let put = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).expect("written");
        put("robin.gguf", &whole);
        put("cut.gguf", &whole[..whole.len() / 2]);
        put("shortest.gguf", &whole[..whole.len() - 1]);
        put("head.gguf", &whole[..64]);
        put("empty.gguf", b"");
        put("prose.gguf", b"It was a dark and stormy night.\n".repeat(1000).as_slice());
        let mut magic = whole.clone();
        magic[0] ^= 1;
        put("magic.gguf", &magic);
        let mut version = whole.clone();
        version[4] = 99;
        put("version.gguf", &version);
        let mut counts = whole;
        counts[8..24].fill(0xff);
        put("counts.gguf", &counts);
        fs::create_dir(folder.path().join("folder.gguf")).expect("a folder");
        Models { folder }
    }

    fn source() -> PathBuf {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("engine/models");
        let mut found = fs::read_dir(&folder).expect("engine/models").map(|e| e.expect("an entry").path());
        found.find(|p| p.extension().is_some_and(|e| e == "gguf")).expect("a GGUF file in engine/models")
    }

    fn settings(&self) -> Settings {
        Settings::default().with("models_dir", self.folder.path().display())
    }
}

#[test]
fn a_reload_switches_the_model_and_a_running_stream_does_not_notice() {
    let models = Models::new();
    let server = server_with(models.settings());
    let running = task_with(json!({ "ctx": 1024, "max_tokens": 400, "ignore_end": true }));
    let expected = sse::text(&run(&server, &running));
    let mut again = running.clone();
    again["task_id"] = json!(uuid());
    enqueue(&server, &again);
    let stream = open(&server, &again);
    wait_for_tokens(&stream, 2);
    let answer = reload(&server, "robin");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(sse::text(&finish(&stream)), expected, "the stream across the reload");
    assert_eq!(health(&server)["model"], "robin");
    let state = |model: &str, state: &str| metric(&server, "model_state", &[("model_id", model), ("state", state)]);
    assert_eq!((state("robin", "ready"), state("wren", "ready")), (1.0, 0.0));
    let capabilities = get(&server, "/v1/capabilities").json().expect("JSON");
    assert_eq!(models_of(&capabilities), ["robin"]);

    let with_new = task_with(json!({ "model_ref": "robin", "max_tokens": 8 }));
    assert_eq!(end_of(&run(&server, &with_new))["finish_reason"], "length");
    refusal(&post(&server, "/v1/tasks", &task()), 503, "MODEL_DEPRECATED");
    assert_eq!(reload(&server, "wren").status, 200, "and back");
    assert_eq!(end_of(&run(&server, &task()))["finish_reason"], "length");
}

#[test]
fn a_model_that_cannot_be_loaded_is_refused_and_the_old_one_serves_on() {
    let models = Models::new();
    let server = server_with(models.settings());
    let expected = sse::text(&run(&server, &task()));
    let (running, stream) = occupy(&server);
    let bad = ["missing", "cut", "shortest", "head", "empty", "prose", "magic", "version", "counts", "folder"];
    for name in bad.into_iter().chain(["../robin", "/etc/passwd", "..", "ro bin", "\u{0}"]) {
        let answer = reload(&server, name);
        let said = refusal(&answer, 409, "RELOAD_CONFLICT");
        assert_eq!((&said["pool_id"], &said["engine"]), (&json!(POOL), &json!("cpu")), "{name}: {said}");
        let health = health(&server);
        assert_eq!((&health["ready"], &health["model"]), (&json!(true), &json!("wren")), "after {name}: {health}");
        assert!(health["last_error"].as_str().is_some_and(|e| !e.is_empty()), "after {name}: {health}");
    }
    assert!(metric(&server, "catalog_verifications_total", &[("result", "failed")]) >= bad.len() as f64);
    assert_eq!(metric(&server, "model_state", &[("model_id", "wren"), ("state", "ready")]), 1.0);
    cancel(&server, &running);
    assert_eq!(end_of(&finish(&stream))["finish_reason"], "canceled", "the running stream did not notice");
    assert_eq!(sse::text(&run(&server, &task())), expected);
}

#[test]
fn two_reloads_at_once_do_not_mix() {
    let models = Models::new();
    let server = std::sync::Arc::new(server_with(models.settings()));
    let reloads: Vec<_> = (0..4)
        .map(|number| {
            let server = server.clone();
            std::thread::spawn(move || reload(&server, if number % 2 == 0 { "robin" } else { "wren" }))
        })
        .collect();
    let answers: Vec<Answer> = reloads.into_iter().map(|r| r.join().expect("an answer")).collect();
    assert!(answers.iter().any(|a| a.status == 200), "none of them was carried out");
    for answer in answers.iter().filter(|a| a.status != 200) {
        refusal(answer, 409, "RELOAD_CONFLICT");
    }
    let model = health(&server)["model"].as_str().expect("a name").to_owned();
    assert_eq!(end_of(&run(&server, &task_with(json!({ "model_ref": model }))))["finish_reason"], "length");
}

#[test]
fn a_server_that_is_asked_to_stop_finishes_what_it_began() {
    let mut server = server_with(Settings::default().with("drain_deadline_ms", 60_000));
    let task = task_with(json!({ "ctx": 1024, "max_tokens": 400, "ignore_end": true }));
    enqueue(&server, &task);
    let stream = open(&server, &task);
    wait_for_tokens(&stream, 1);
    server.ask_to_stop().expect("it runs");
    assert_eq!(end_of(&finish(&stream))["tokens_out"], 400);
    let status = server.wait_for_exit().expect("it exits");
    assert!(status.success(), "{status}: {}", server.stderr());
}

#[test]
fn a_server_that_is_asked_to_stop_does_not_wait_for_ever() {
    let mut server = server_with(Settings::default().with("drain_deadline_ms", 100));
    let (_task, stream) = occupy(&server);
    server.ask_to_stop().expect("it runs");
    let last = last_of(&stream);
    assert_eq!((last.name.as_str(), last.field("code")), ("error", json!("POOL_UNAVAILABLE")), "{}", last.data);
    let status = server.wait_for_exit().expect("it exits");
    assert!(status.success(), "{status}: {}", server.stderr());
}

#[test]
fn an_idle_server_that_is_asked_to_stop_is_gone_at_once() {
    let mut server = server();
    let mut idle = server.client().connect().expect("the server listens");
    idle.write(&server.client().keyed(&Request::get("/metrics")).encode()).expect("it takes the request");
    assert_eq!(idle.receive("GET").expect("an answer").status, 200);
    server.ask_to_stop().expect("it runs");
    assert!(server.wait_for_exit().expect("it exits").success());
    assert!(server.client().connect().is_err() || idle.is_closed_within(PATIENCE));
}

#[test]
fn a_model_from_a_file_is_served_under_its_name() {
    let models = Models::new();
    let path = models.folder.path().join("robin.gguf");
    let server = server_with(Settings::default().with("model", path.display()));
    let named = task_with(json!({ "model_ref": "robin" }));
    assert_eq!(end_of(&run(&server, &named))["finish_reason"], "length");
    assert_eq!(health(&server)["model"], "robin");
}

#[test]
fn a_server_whose_model_is_damaged_does_not_start() {
    let models = Models::new();
    let path = models.folder.path().join("cut.gguf");
    let settings = Settings::default().with("model", path.display());
    let output = settings.command().expect("a command").output().expect("it starts and ends");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("cut.gguf"), "it does not name the file: {said}");
}

#[test]
fn an_unknown_setting_is_refused_at_the_start() {
    for settings in [Settings::default().with("queue_capacty", 3), Settings::default().with("queue_capacity", "many")] {
        let output = settings.command().expect("a command").output().expect("it starts and ends");
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("queue_capacity"), "it does not say what is meant: {said}");
    }
}
