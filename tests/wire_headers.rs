//! Correlation ids on every answer, and keys: asked for, compared, and never told to anybody.

mod common;

use std::collections::BTreeSet;

use common::*;
use serde_json::json;

fn correlation(answer: &Answer) -> &str {
    answer.header("X-Correlation-Id").unwrap_or_else(|| panic!("{} has no X-Correlation-Id", answer.status))
}

fn is_uuid(text: &str) -> bool {
    uuid::Uuid::parse_str(text).is_ok() && text.len() == 36
}

#[test]
fn a_good_correlation_id_is_echoed_on_every_kind_of_answer() {
    let settings = narrow(1).with("body_len_max", 4096);
    let server = server_with(settings);
    let (running, _stream) = occupy(&server);
    enqueue(&server, &task());
    let pool = |what: &str| format!("/v1/pools/{POOL}/{what}");
    let corrupt = json!({ "new_model_ref": "no-such-model" });
    let kinds = [
        (200, Request::get("/v1/capabilities")),
        (200, Request::get(&pool("health"))),
        (200, Request::get("/metrics")),
        (200, Request::new("HEAD", "/metrics")),
        (201, Request::new("POST", "/v1/artifacts").with_body(r#"{"kind":"plan","content":{}}"#)),
        (400, Request::new("POST", "/v1/tasks").with_body("{")),
        (401, Request::get("/v1/capabilities").with("X-API-Key", "")),
        (403, Request::get("/v1/capabilities").with("X-API-Key", "wrong")),
        (404, Request::get("/v1/replicasets")),
        (404, Request::get(&format!("/v1/tasks/{}/stream", uuid()))),
        (405, Request::new("DELETE", "/v1/tasks")),
        (409, Request::post(&pool("reload"), &corrupt)),
        (413, Request::new("POST", "/v1/artifacts").with_body(" ".repeat(5000))),
        (429, Request::post("/v1/tasks", &task())),
        (503, Request::post("/v1/tasks", &task_with(json!({ "engine": "cuda" })))),
        (204, Request::new("POST", &format!("/v1/tasks/{}/cancel", id_of(&running)))),
        (202, Request::post("/v1/tasks", &task())),
        (202, Request::post(&pool("drain"), &json!({ "deadline_ms": 0 }))),
    ];
    for (number, (status, request)) in kinds.iter().enumerate() {
        let id = format!("kind-{number}");
        if *status == 202 {
            wait_until("a place in the queue", || metric(&server, "queue_depth", &[]) < 1.0);
        }
        let answer = send(&server, &request.clone().with("X-Correlation-Id", &id));
        let expected = if answer.status == 401 || answer.status == 403 { answer.status } else { *status };
        assert_eq!(answer.status, expected, "{} {}: {}", request.method, request.path, answer.text());
        assert_eq!(correlation(&answer), id, "{} {}", request.method, request.path);
        let fresh = send(&server, request);
        assert!(is_uuid(correlation(&fresh)), "{} {}: {}", request.method, request.path, correlation(&fresh));
    }
}

#[test]
fn a_stream_has_a_correlation_id_as_well() {
    let server = server();
    let task = task();
    enqueue(&server, &task);
    let stream = open_with(&server, &Request::get(&stream_path(&task)).with("X-Correlation-Id", "stream-1"));
    assert_eq!(correlation(&stream.head), "stream-1");
    assert!(is_uuid(correlation(&open(&server, &task).head)));
    let inline = Request::post("/v1/tasks", &common::task()).with("Accept", "text/event-stream");
    let stream = open_with(&server, &inline.with("X-Correlation-Id", "stream-2"));
    assert_eq!((stream.head.status, correlation(&stream.head)), (200, "stream-2"));
}

#[test]
fn a_bad_correlation_id_is_replaced_and_a_fresh_one_is_fresh() {
    let server = server();
    let longest = "x".repeat(128);
    let too_long = "x".repeat(129);
    for id in ["a", "!~#$%&'*+-.^_`|", "{\"json\":true}", "0", &longest] {
        let answer = send(&server, &Request::get("/v1/capabilities").with("X-Correlation-Id", id));
        assert_eq!(correlation(&answer), id);
    }
    let mut seen = BTreeSet::new();
    for id in ["", "two words", "tab\there", "ünï", &too_long] {
        let answer = send(&server, &Request::get("/v1/capabilities").with("X-Correlation-Id", id));
        assert_eq!(answer.status, 200, "{id:?}");
        assert!(is_uuid(correlation(&answer)), "{id:?}: {}", correlation(&answer));
        assert!(seen.insert(correlation(&answer).to_owned()), "a fresh id came twice");
    }
}

#[test]
fn a_request_that_cannot_be_parsed_gets_a_fresh_correlation_id() {
    let server = server();
    let mut seen = BTreeSet::new();
    for bytes in ["nonsense\r\n\r\n", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", "\0\0\0\0\r\n\r\n"] {
        let mut connection = server.client().connect().expect("the server listens");
        connection.write(bytes.as_bytes()).expect("it takes the bytes");
        let answer = connection.receive("GET").expect("an answer");
        assert_eq!(answer.status, 400);
        assert!(is_uuid(correlation(&answer)), "{}", correlation(&answer));
        assert!(seen.insert(correlation(&answer).to_owned()));
    }
}

/// Every route that needs a key.
fn locked_routes() -> Vec<Request> {
    let id = uuid();
    let hash = "0".repeat(64);
    vec![
        Request::get("/v1/capabilities"),
        Request::get(&format!("/v1/pools/{POOL}/health")),
        Request::post(&format!("/v1/pools/{POOL}/drain"), &json!({ "deadline_ms": 1 })),
        Request::post(&format!("/v1/pools/{POOL}/reload"), &json!({ "new_model_ref": "wren" })),
        Request::post("/v1/tasks", &task()),
        Request::get(&format!("/v1/tasks/{id}/stream")),
        Request::new("POST", &format!("/v1/tasks/{id}/cancel")),
        Request::get(&format!("/v1/sessions/{id}")),
        Request::new("DELETE", &format!("/v1/sessions/{id}")),
        Request::post("/v1/artifacts", &json!({ "kind": "plan", "content": {} })),
        Request::get(&format!("/v1/artifacts/sha256:{hash}")),
    ]
}

#[test]
fn every_route_but_metrics_needs_a_key() {
    let server = server();
    let nobody = server.client_with(None);
    for request in locked_routes() {
        let at = format!("{} {}", request.method, request.path);
        let missing = nobody.send(&request).unwrap_or_else(|error| panic!("{at}: {error:#}"));
        refusal(&missing, 401, "UNAUTHORIZED");
        let bearer = request.clone().with("Authorization", &format!("Bearer {KEY}"));
        refusal(&nobody.send(&bearer).expect("an answer"), 401, "UNAUTHORIZED");
        let almost = [
            KEY[1..].to_owned(),
            KEY[..KEY.len() - 1].to_owned(),
            format!("{KEY}x"),
            KEY.to_uppercase(),
            format!("{KEY},{KEY}"),
            "x".repeat(5000),
        ];
        for key in almost {
            let wrong = nobody.send(&request.clone().with("X-API-Key", &key)).expect("an answer");
            refusal(&wrong, 403, "FORBIDDEN");
        }
    }
    for request in [Request::get("/metrics"), Request::get("/metrics").with("X-API-Key", "wrong")] {
        assert_eq!(nobody.send(&request).expect("an answer").status, 200);
    }
    let health = get(&server, &format!("/v1/pools/{POOL}/health")).json().expect("JSON");
    assert_eq!(health["draining"], false, "a drain without a key was carried out");
}

#[test]
fn a_refused_connection_goes_on_with_the_right_key() {
    let server = server();
    let client = server.client();
    let mut connection = client.connect().expect("the server listens");
    let unlocked = Request::post("/v1/artifacts", &json!({ "kind": "plan", "content": {} }));
    connection.write(&unlocked.encode()).expect("it takes the request");
    assert_eq!(connection.receive("POST").expect("an answer").status, 401);
    connection.write(&client.keyed(&unlocked).encode()).expect("the connection is open");
    assert_eq!(connection.receive("POST").expect("an answer").status, 201);
}

#[test]
fn any_of_several_keys_opens() {
    let server = server_with(Settings::default().with("api_keys", "first-key-1, second-key-2,third-key-3"));
    for key in ["first-key-1", "second-key-2", "third-key-3"] {
        let answer = server.client_with(Some(key)).send(&Request::get("/v1/capabilities")).expect("an answer");
        assert_eq!(answer.status, 200, "{key}");
    }
    for key in ["second-key-3", "first-key-1,second-key-2"] {
        let answer = server.client_with(Some(key)).send(&Request::get("/v1/capabilities")).expect("an answer");
        refusal(&answer, 403, "FORBIDDEN");
    }
}

#[test]
fn no_key_reaches_a_log_a_metric_or_an_artifact() {
    let key = "a-secret-that-nobody-sees";
    let settings = Settings::default().with("api_keys", format!("{key},another-secret-key")).with("log_level", "trace");
    let server = server_with(settings);
    let bearer = "Bearer-of-bad-news";
    let guess = "a-guess-that-was-wrong";
    let task = task();
    let with_bearer = |request: Request| request.with("Authorization", bearer);
    assert_eq!(send(&server, &with_bearer(Request::post("/v1/tasks", &task))).status, 202);
    let events = finish(&open_with(&server, &with_bearer(Request::get(&stream_path(&task)))));
    let wrong = server.client_with(Some(guess)).send(&Request::get("/v1/capabilities")).expect("an answer");
    refusal(&wrong, 403, "FORBIDDEN");
    let mut connection = server.client().connect().expect("the server listens");
    let broken = format!("GET /metrics HTTP/1.1\r\nX-API-Key: {key}\r\nHost : a\r\nAuthorization: {bearer}\r\n\r\n");
    connection.write(broken.as_bytes()).expect("it takes the bytes");
    let refused = connection.receive("GET").expect("an answer");
    assert_eq!(refused.status, 400);

    let transcript = end_of(&events)["artifact_id"].as_str().expect("an id").to_owned();
    let artifact = get(&server, &format!("/v1/artifacts/{transcript}"));
    assert_eq!(artifact.status, 200);
    wait_until("the task's log line", || server.stderr().contains(id_of(&task)));
    let places = [
        ("the log", server.stderr()),
        ("stdout", server.stdout()),
        ("the metrics", get(&server, "/metrics").text()),
        ("the transcript", artifact.text()),
        ("the refusals", wrong.text() + &refused.text()),
        ("capabilities", get(&server, "/v1/capabilities").text()),
    ];
    for (place, text) in places {
        for secret in [key, "another-secret-key", bearer, guess] {
            assert!(!text.contains(secret), "{place} has {secret}");
        }
    }
}

#[test]
fn without_a_configured_key_one_is_made_and_printed_once() {
    let server = server_with(Settings::default().with("api_keys", ""));
    let key = server.printed_key().expect("a key on stdout");
    assert!(key.len() >= 16, "{key} is easy to guess");
    let with = |key: Option<&str>| server.client_with(key).send(&Request::get("/v1/capabilities")).expect("an answer");
    assert_eq!(with(Some(&key)).status, 200);
    refusal(&with(None), 401, "UNAUTHORIZED");
    refusal(&with(Some("wrong-key")), 403, "FORBIDDEN");
    assert!(!server.stderr().contains(&key), "the log has the key");
    let another = server_with(Settings::default().with("api_keys", ""));
    assert_ne!(another.printed_key(), Some(key), "two servers made the same key");
}

#[test]
fn a_configured_key_is_not_printed_and_the_printed_line_takes_it_from_the_shell() {
    let server = server();
    let printed = server.stdout();
    assert!(!printed.contains(KEY), "the key is on stdout: {printed}");
    let line = printed.lines().find(|line| line.starts_with("curl ")).expect("a curl line");
    assert!(line.contains("-H \"X-API-Key: $KEY\""), "a shell would not put the key in: {line}");
}

#[test]
fn without_a_configured_key_only_the_loopback_is_served() {
    for listen in ["0.0.0.0:0", "[::]:0"] {
        let settings = Settings::default().with("api_keys", "").with("listen", listen);
        let output = settings.command().expect("a command").output().expect("it starts and ends");
        assert!(!output.status.success(), "it served {listen} without a key");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("api_keys") || said.contains("ORCH_API_KEYS"), "it does not say what to do: {said}");
    }
}

#[test]
fn the_log_says_what_an_admission_predicted() {
    let server = server();
    let task = task();
    let request = Request::post("/v1/tasks", &task).with("X-Correlation-Id", "for-the-log");
    assert_eq!(send(&server, &request).status, 202);
    finish(&open(&server, &task));
    let admitted = |line: &serde_json::Value| {
        let text = line.to_string();
        text.contains(id_of(&task)) && text.contains("for-the-log") && text.contains("queue_position")
    };
    wait_until("the admission's log line", || server.logs().iter().any(admitted));
    let line = server.logs().into_iter().find(admitted).expect("was just seen").to_string();
    assert!(line.contains("predicted_start_ms"), "{line}");
    let ended = |line: &serde_json::Value| {
        let text = line.to_string();
        ["tokens_in", "tokens_out", "decode_ms", id_of(&task)].iter().all(|part| text.contains(part))
    };
    wait_until("the end's log line", || server.logs().iter().any(ended));
    let not_json: Vec<String> = server
        .stderr()
        .lines()
        .filter(|line| serde_json::from_str::<serde_json::Value>(line).is_err())
        .map(str::to_owned)
        .collect();
    assert!(not_json.is_empty(), "the log has lines that are not JSON: {not_json:?}");
}
