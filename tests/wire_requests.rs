//! What is not a request gets its 4xx, the connection ends, and the server's next answer is correct.

mod common;

use std::time::Duration;

use common::*;

/// The head of a good request with the key, to be continued with more headers.
fn head(line: &str) -> String {
    format!("{line}\r\nHost: localhost\r\nX-API-Key: {KEY}\r\n")
}

/// Sends bytes on a connection of their own: the answer must have one of `statuses`, and nothing may follow it.
fn check_refused(server: &Server, what: &str, bytes: &[u8], statuses: &[u16]) {
    let mut connection = server.client().connect().expect("the server listens");
    // The server may have answered and closed before it had everything: that is its right.
    let _ = connection.write(bytes);
    let _ = connection.finish_writing();
    let answer = connection.receive("POST").unwrap_or_else(|error| panic!("{what}: {error:#}"));
    assert!(statuses.contains(&answer.status), "{what}: {} {}", answer.status, answer.text());
    let code = answer.json().unwrap_or_else(|error| panic!("{what}: {error:#}"))["code"].clone();
    refusal(&answer, answer.status, code.as_str().expect("a code"));
    assert!(
        connection.is_closed_within(PATIENCE),
        "{what}: something follows the refusal, or the connection stays open"
    );
    assert_serves(server, what);
}

fn assert_serves(server: &Server, after: &str) {
    let answer = get(server, "/v1/capabilities");
    assert_eq!(answer.status, 200, "after {after}: {}", answer.text());
    assert_eq!(answer.json().expect("JSON")["engines"][0]["engine"], "cpu", "after {after}");
}

#[test]
fn a_malformed_head_is_refused_and_the_next_answer_is_correct() {
    let server = server();
    let key = format!("X-API-Key: {KEY}");
    let cases: Vec<(&str, String)> = vec![
        ("bare line feeds", format!("GET /metrics HTTP/1.1\nHost: localhost\n{key}\n\n")),
        ("one bare line feed among the headers", format!("GET /metrics HTTP/1.1\r\nHost: localhost\n{key}\r\n\r\n")),
        ("a space before the colon", format!("GET /metrics HTTP/1.1\r\nHost : localhost\r\n{key}\r\n\r\n")),
        ("a folded header", format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-A: b\r\n c\r\n{key}\r\n\r\n")),
        (
            "a first header that begins with a space",
            format!("GET /metrics HTTP/1.1\r\n Host: localhost\r\n{key}\r\n\r\n"),
        ),
        ("a header without a colon", format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nnonsense\r\n{key}\r\n\r\n")),
        ("a header without a name", format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\n: x\r\n{key}\r\n\r\n")),
        ("a NUL in a header", format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-A: a\0b\r\n{key}\r\n\r\n")),
        (
            "a carriage return in a header",
            format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-A: a\rb\r\n{key}\r\n\r\n"),
        ),
        ("a name with a bracket", format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nX[A]: b\r\n{key}\r\n\r\n")),
        ("no Host", "GET /metrics HTTP/1.1\r\nAccept: */*\r\n\r\n".to_owned()),
        ("two Hosts", "GET /metrics HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_owned()),
        ("no version", "GET /metrics\r\n\r\n".to_owned()),
        ("an unknown minor version", "GET /metrics HTTP/1.9x\r\nHost: a\r\n\r\n".to_owned()),
        ("no target", "GET HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("two spaces in the request line", "GET  /metrics HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("a method that is no token", "G<T /metrics HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("a target without a slash", "GET metrics HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("a space in the target", "GET /met rics HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("only line ends and a word", "\r\n\r\nhello\r\n\r\n".to_owned()),
    ];
    for (what, text) in cases {
        // A request line that cannot be read may look like one of another version.
        check_refused(&server, what, text.as_bytes(), &[400, 505]);
    }
    let tls_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n";
    check_refused(&server, "TLS", tls_hello, &[400]);
    check_refused(&server, "a target that is not ASCII", b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n", &[400, 404]);
    check_refused(&server, "HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[400, 505]);
    check_refused(&server, "HTTP/3.7", b"GET /metrics HTTP/3.7\r\nHost: a\r\n\r\n", &[400, 505]);
}

#[test]
fn a_smugglers_favourites_are_refused_and_nothing_is_smuggled() {
    let server = server();
    let post = head("POST /v1/artifacts HTTP/1.1");
    let inner = "GET /v1/capabilities HTTP/1.1\r\nHost: a\r\nX-API-Key: ";
    let cases: Vec<(&str, String)> = vec![
        ("two different lengths", "Content-Length: 5\r\nContent-Length: 6".to_owned()),
        ("two equal lengths", "Content-Length: 5\r\nContent-Length: 5".to_owned()),
        ("two lengths in one header", "Content-Length: 5, 5".to_owned()),
        ("length with chunked", "Content-Length: 5\r\nTransfer-Encoding: chunked".to_owned()),
        ("chunked with length", "Transfer-Encoding: chunked\r\nContent-Length: 5".to_owned()),
        ("a length with a sign", "Content-Length: +5".to_owned()),
        ("a negative length", "Content-Length: -5".to_owned()),
        ("a hexadecimal length", "Content-Length: 0x5".to_owned()),
        ("a length with a space inside", "Content-Length: 5 5".to_owned()),
        ("an empty length", "Content-Length:".to_owned()),
        ("a length past 64 bits", "Content-Length: 18446744073709551621".to_owned()),
        ("chunked twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked".to_owned()),
        ("chunked with a tab glued on", "Transfer-Encoding: \x0bchunked".to_owned()),
        ("chunked before something else", "Transfer-Encoding: chunked, identity".to_owned()),
        ("a coding that is not ours", "Transfer-Encoding: gzip, chunked".to_owned()),
        ("almost chunked", "Transfer-Encoding: xchunked".to_owned()),
        ("a space before the colon of the length", "Content-Length : 5".to_owned()),
    ];
    for (what, headers) in cases {
        let bytes = format!("{post}{headers}\r\n\r\n0\r\n\r\n{inner}{KEY}\r\n\r\n");
        check_refused(&server, what, bytes.as_bytes(), &[400, 413, 501]);
    }
}

#[test]
fn a_malformed_chunk_is_refused() {
    let server = server();
    let start = head("POST /v1/artifacts HTTP/1.1") + "Transfer-Encoding: chunked\r\n\r\n";
    for (what, chunks) in [
        ("a size that is no number", "zz\r\n{}\r\n0\r\n\r\n"),
        ("a negative size", "-1\r\n{}\r\n0\r\n\r\n"),
        ("a size with a prefix", "0x2\r\n{}\r\n0\r\n\r\n"),
        ("a size past 64 bits", "10000000000000002\r\n{}\r\n0\r\n\r\n"),
        ("no size", "\r\n{}\r\n0\r\n\r\n"),
        ("a chunk that is longer than it says", "1\r\n{}\r\n0\r\n\r\n"),
        ("a chunk that ends in a bare line feed", "2\n{}\n0\n\n"),
    ] {
        check_refused(&server, what, format!("{start}{chunks}").as_bytes(), &[400, 413]);
    }
}

#[test]
fn a_request_that_is_cut_off_is_no_request() {
    let server = server();
    let post = head("POST /v1/artifacts HTTP/1.1");
    for text in [
        "G".to_owned(),
        "GET /metrics HTTP/1.1\r\nHost: a\r\n\r".to_owned(),
        format!("{post}Content-Length: 28\r\n\r\n{{\"kind\":\"plan\",\"content\":{{}}"),
        format!("{post}Transfer-Encoding: chunked\r\n\r\n1c\r\n{{\"kind\":\"plan\",\"content\":{{}}}}\r\n"),
    ] {
        let mut connection = server.client().connect().expect("the server listens");
        connection.write(text.as_bytes()).expect("it takes the start");
        connection.finish_writing().expect("it is open");
        assert!(connection.is_closed_within(PATIENCE), "{text:?} was answered, or the connection stays open");
        assert_serves(&server, &text);
    }
}

#[test]
fn limits_hold_one_under_at_and_one_over() {
    const HEAD_MAX: usize = 2048;
    const BODY_MAX: usize = 1024;
    let settings = Settings::default().with("head_len_max", HEAD_MAX).with("body_len_max", BODY_MAX);
    let server = server_with(settings);
    let padded_head = |len: usize| {
        let rest = head("GET /v1/capabilities HTTP/1.1") + "X-Padding: ";
        let padding = len - rest.len() - "\r\n\r\n".len();
        format!("{rest}{}\r\n\r\n", "x".repeat(padding))
    };
    for len in [HEAD_MAX - 1, HEAD_MAX] {
        let mut connection = server.client().connect().expect("the server listens");
        connection.write(padded_head(len).as_bytes()).expect("it takes the head");
        assert_eq!(connection.receive("GET").expect("an answer").status, 200, "a head of {len} bytes");
    }
    check_refused(&server, "a head one over", padded_head(HEAD_MAX + 1).as_bytes(), &[431]);
    check_refused(&server, "a head without an end", "GET / HTTP/1.1\r\n".repeat(400).as_bytes(), &[400, 431]);

    let artifact = r#"{"kind":"plan","content":{}}"#;
    let padded_body = |len: usize| format!("{artifact}{}", " ".repeat(len - artifact.len()));
    for len in [BODY_MAX - 1, BODY_MAX] {
        let request = Request::new("POST", "/v1/artifacts").with_body(padded_body(len));
        assert_eq!(send(&server, &request).status, 201, "a body of {len} bytes");
        let chunked = format!("{len:x}\r\n{}\r\n0\r\n\r\n", padded_body(len));
        let request = Request::new("POST", "/v1/artifacts").with("Transfer-Encoding", "chunked");
        assert_eq!(send_chunked(&server, request, &chunked).status, 201, "{len} bytes, chunked");
    }
    let over = BODY_MAX + 1;
    let post = head("POST /v1/artifacts HTTP/1.1");
    let announced = format!("{post}Content-Length: {over}\r\n\r\n{}", padded_body(over));
    check_refused(&server, "a body one over", announced.as_bytes(), &[413]);
    let unsent = format!("{post}Content-Length: 999999999\r\n\r\n");
    check_refused(&server, "a body that is only announced", unsent.as_bytes(), &[413]);
    let chunked = format!("{post}Transfer-Encoding: chunked\r\n\r\n{over:x}\r\n{}\r\n0\r\n\r\n", padded_body(over));
    check_refused(&server, "chunks one over", chunked.as_bytes(), &[413]);
    let many = format!("{post}Transfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n", "1\r\nx\r\n".repeat(over));
    check_refused(&server, "many small chunks", many.as_bytes(), &[413]);
}

/// Sends a request whose body is already in chunks.
fn send_chunked(server: &Server, request: Request, chunks: &str) -> Answer {
    let request = server.client().keyed(&request);
    let head = String::from_utf8(request.encode()).expect("a head is text").replace("Content-Length: 0\r\n", "");
    let mut connection = server.client().connect().expect("the server listens");
    connection.write(format!("{head}{chunks}").as_bytes()).expect("it takes the request");
    connection.receive("POST").expect("an answer")
}

#[test]
fn a_chunked_body_is_the_same_body() {
    let server = server();
    let body = r#"{"kind":"plan","content":{"words":"in pieces"}}"#;
    let whole = send(&server, &Request::new("POST", "/v1/artifacts").with_body(body)).json().expect("JSON");
    for piece_len in [1, 2, 7, body.len()] {
        let pieces = body.as_bytes().chunks(piece_len).map(|p| String::from_utf8_lossy(p).into_owned());
        let chunks: String = pieces.map(|p| format!("{:X};name=value\r\n{p}\r\n", p.len())).collect();
        let request = Request::new("POST", "/v1/artifacts").with("Transfer-Encoding", "chunked");
        let answer = send_chunked(&server, request, &format!("{chunks}0\r\nX-Trailer: yes\r\n\r\n"));
        assert_eq!(answer.status, 201, "{}", answer.text());
        assert_eq!(answer.json().expect("JSON")["id"], whole["id"], "pieces of {piece_len}");
    }
}

#[test]
fn a_slow_head_and_a_slow_body_are_given_up() {
    let settings = Settings::default().with("head_timeout_ms", 300).with("body_timeout_ms", 300);
    let server = server_with(settings);
    let post = head("POST /v1/artifacts HTTP/1.1");
    for (what, bytes) in [
        ("a head that stops", post.clone()),
        ("a body that stops", format!("{post}Content-Length: 20\r\n\r\n{{\"kind\"")),
        ("a chunk that stops", format!("{post}Transfer-Encoding: chunked\r\n\r\n5\r\nab")),
    ] {
        let mut connection = server.client().connect().expect("the server listens");
        connection.write(bytes.as_bytes()).expect("it takes the start");
        let answer = connection.receive("POST").unwrap_or_else(|error| panic!("{what}: {error:#}"));
        refusal(&answer, 408, "INVALID_PARAMS");
        assert!(connection.is_closed_within(PATIENCE), "{what}: the connection stays open");
    }
    assert_serves(&server, "slow clients");
}

#[test]
fn a_request_in_any_pieces_is_the_same_request() {
    let server = server();
    let body = r#"{"kind":"plan","content":{"a":1}}"#;
    let request = server.client().keyed(&Request::new("POST", "/v1/artifacts").with_body(body)).encode();
    for piece_len in [1, 3, 16] {
        let mut connection = server.client().connect().expect("the server listens");
        for piece in request.chunks(piece_len) {
            connection.write(piece).expect("it takes a piece");
        }
        assert_eq!(connection.receive("POST").expect("an answer").status, 201, "pieces of {piece_len}");
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = server();
    let client = server.client();
    let artifact = r#"{"kind":"plan","content":{}}"#;
    let kinds = [
        (Request::get("/v1/capabilities"), 200),
        (Request::new("POST", "/v1/artifacts").with_body(artifact), 201),
        (Request::get("/v1/replicasets"), 404),
        (Request::new("HEAD", "/v1/capabilities"), 200),
        (Request::new("PUT", "/v1/tasks"), 405),
        (Request::new("POST", "/v1/tasks").with_body("{"), 400),
        (Request::new("DELETE", &format!("/v1/sessions/{}", uuid())), 404),
        (Request::get("/metrics"), 200),
    ];
    let requests: Vec<_> = (0..5).flat_map(|_| kinds.iter()).collect();
    let mut bytes = Vec::new();
    for (index, (request, _)) in requests.iter().enumerate() {
        bytes.extend(client.keyed(request).with("X-Correlation-Id", &format!("number-{index}")).encode());
    }
    let mut connection = client.connect().expect("the server listens");
    connection.write(&bytes).expect("it takes them all");
    for (index, (request, status)) in requests.iter().enumerate() {
        let answer = connection.receive(&request.method).unwrap_or_else(|error| panic!("answer {index}: {error:#}"));
        assert_eq!(answer.status, *status, "answer {index} to {} {}", request.method, request.path);
        assert_eq!(answer.header("X-Correlation-Id"), Some(format!("number-{index}").as_str()));
    }
    connection.write(&client.keyed(&Request::get("/metrics")).encode()).expect("it is still open");
    assert_eq!(connection.receive("GET").expect("an answer").status, 200);
}

#[test]
fn a_good_request_before_a_bad_one_is_answered_first() {
    let server = server();
    let mut connection = server.client().connect().expect("the server listens");
    let good = server.client().keyed(&Request::get("/v1/capabilities")).encode();
    connection.write(&[&good[..], b"nonsense\r\n\r\n"].concat()).expect("it takes both");
    assert_eq!(connection.receive("GET").expect("an answer").status, 200);
    refusal(&connection.receive("GET").expect("a refusal"), 400, "INVALID_PARAMS");
    assert!(connection.is_closed_within(PATIENCE));
}

#[test]
fn a_connection_lives_or_ends_as_the_client_asked() {
    let server = server();
    let client = server.client();
    let mut connection = client.connect().expect("the server listens");
    let last = client.keyed(&Request::get("/v1/capabilities").with("Connection", "close")).encode();
    connection.write(&last).expect("it takes the request");
    assert_eq!(connection.receive("GET").expect("an answer").status, 200);
    assert!(connection.is_closed_within(PATIENCE), "the client asked for an end");

    let mut connection = client.connect().expect("the server listens");
    connection.write(b"GET /metrics HTTP/1.0\r\n\r\n").expect("it takes the request");
    assert_eq!(connection.receive("GET").expect("an answer").status, 200);
    assert!(connection.is_closed_within(PATIENCE), "HTTP/1.0 ends by itself");
}

#[test]
fn an_idle_connection_is_closed_in_the_end() {
    let server = server_with(Settings::default().with("idle_timeout_ms", 300));
    let mut connection = server.client().connect().expect("the server listens");
    connection.write(&server.client().keyed(&Request::get("/metrics")).encode()).expect("it takes the request");
    assert_eq!(connection.receive("GET").expect("an answer").status, 200);
    assert!(connection.is_closed_within(PATIENCE));
}

#[test]
fn a_client_that_expects_100_is_told_to_go_on() {
    let server = server();
    let client = server.client();
    let body = r#"{"kind":"plan","content":{}}"#;
    let request = Request::new("POST", "/v1/artifacts")
        .with("Expect", "100-continue")
        .with("Content-Length", &body.len().to_string());
    let mut connection = client.connect().expect("the server listens");
    connection.write(&client.keyed(&request).encode()).expect("it takes the head");
    // The interim answer must come before the body is sent: a client waits for it.
    let mut waiting = client.connect().expect("the server listens");
    waiting.write(&client.keyed(&request).encode()).expect("it takes the head");
    let interim = waiting.handle().expect("a handle");
    interim.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    let mut seen = [0; 25];
    std::io::Read::read_exact(&mut &interim, &mut seen).expect("an interim answer");
    assert_eq!(&seen, b"HTTP/1.1 100 Continue\r\n\r\n");

    connection.write(body.as_bytes()).expect("it takes the body");
    let answer = connection.receive("POST").expect("an answer");
    assert_eq!(answer.status, 201, "{}", answer.text());
    let unknown = head("POST /v1/artifacts HTTP/1.1") + "Expect: a-miracle\r\nContent-Length: 2\r\n\r\n{}";
    check_refused(&server, "an expectation that is not ours", unknown.as_bytes(), &[417]);
}

#[test]
fn head_is_get_without_a_body() {
    let server = server();
    let client = server.client();
    let task = task();
    run(&server, &task);
    let mut connection = client.connect().expect("the server listens");
    let paths = [
        "/v1/capabilities".to_owned(),
        format!("/v1/pools/{POOL}/health"),
        format!("/v1/sessions/{}", session_of(&task)),
    ];
    for path in paths {
        connection.write(&client.keyed(&Request::new("HEAD", &path)).encode()).expect("it takes HEAD");
        let head = connection.receive("HEAD").expect("an answer");
        connection.write(&client.keyed(&Request::get(&path)).encode()).expect("it takes GET");
        let full = connection.receive("GET").expect("the next answer, not a body");
        assert_eq!((head.status, full.status), (200, 200), "{path}");
        assert_eq!(head.header("Content-Type"), full.header("Content-Type"), "{path}");
        assert!(head.body.is_empty() && !full.body.is_empty(), "{path}");
        let length: usize = head.header("Content-Length").expect("a length").parse().expect("a number");
        // Figures of the moment may have changed by a digit.
        assert!(length.abs_diff(full.body.len()) < 16, "{path}: {length} and {}", full.body.len());
        assert!(full.header("Date").is_some_and(|d| d.ends_with(" GMT")), "{path}: no Date");
    }
    for path in ["/metrics".to_owned(), stream_path(&task)] {
        connection.write(&client.keyed(&Request::new("HEAD", &path)).encode()).expect("it takes HEAD");
        assert_eq!(connection.receive("HEAD").expect("an answer").status, 200, "{path}");
    }
    connection.write(&client.keyed(&Request::new("HEAD", "/v1/nowhere")).encode()).expect("it takes HEAD");
    let missing = connection.receive("HEAD").expect("an answer");
    assert_eq!(missing.status, 404);
    connection.write(&client.keyed(&Request::get("/v1/capabilities")).encode()).expect("it takes GET");
    assert_eq!(connection.receive("GET").expect("no body came before it").status, 200);
}

#[test]
fn what_is_not_a_route_is_not_found() {
    let server = server();
    let id = uuid();
    for path in [
        "/".to_owned(),
        "/v1".to_owned(),
        "/v1/".to_owned(),
        "/v1/replicasets".to_owned(),
        format!("/v1/replicasets/{id}"),
        "/v1/capabilities/".to_owned(),
        "/V1/capabilities".to_owned(),
        "/v1/Capabilities".to_owned(),
        "/v2/capabilities".to_owned(),
        "/v1/pools".to_owned(),
        format!("/v1/pools/{POOL}"),
        format!("/v1/pools/{POOL}/undrain"),
        format!("/v1/pools/{POOL}/health/more"),
        "/v1/pools/attic/health".to_owned(),
        "/v1/pools//health".to_owned(),
        "/v1/tasks/".to_owned(),
        "/v1/tasks//stream".to_owned(),
        format!("/v1/tasks/{id}"),
        format!("/v1/tasks/{id}/stream"),
        format!("/v1/tasks/{id}/stream/"),
        "/v1/sessions".to_owned(),
        format!("/v1/sessions/{id}"),
        "/v1/artifacts/".to_owned(),
        format!("/v1/artifacts/sha256:{}", "0".repeat(64)),
        "/metrics/".to_owned(),
        "/healthz".to_owned(),
        "/v1/chat/completions".to_owned(),
        "/openapi.json".to_owned(),
        "/../etc/passwd".to_owned(),
        "/%2e%2e/etc/passwd".to_owned(),
    ] {
        refusal(&get(&server, &path), 404, "NOT_FOUND");
    }
    refusal(&send(&server, &Request::new("POST", "/v1/replicasets").with_body("{}")), 404, "NOT_FOUND");
    refusal(&post(&server, "/v1/pools/attic/drain", &serde_json::json!({ "deadline_ms": 1 })), 404, "NOT_FOUND");
    refusal(
        &post(&server, "/v1/pools/attic/reload", &serde_json::json!({ "new_model_ref": "wren" })),
        404,
        "NOT_FOUND",
    );
}

#[test]
fn a_known_path_with_another_method_names_its_own() {
    let server = server();
    let id = uuid();
    let hash = "0".repeat(64);
    let routes: [(String, &[&str]); 11] = [
        ("/v1/capabilities".to_owned(), &["GET", "HEAD"]),
        (format!("/v1/pools/{POOL}/health"), &["GET", "HEAD"]),
        (format!("/v1/pools/{POOL}/drain"), &["POST"]),
        (format!("/v1/pools/{POOL}/reload"), &["POST"]),
        ("/v1/tasks".to_owned(), &["POST"]),
        (format!("/v1/tasks/{id}/stream"), &["GET", "HEAD"]),
        (format!("/v1/tasks/{id}/cancel"), &["POST"]),
        (format!("/v1/sessions/{id}"), &["DELETE", "GET", "HEAD"]),
        ("/v1/artifacts".to_owned(), &["POST"]),
        (format!("/v1/artifacts/sha256:{hash}"), &["GET", "HEAD"]),
        ("/metrics".to_owned(), &["GET", "HEAD"]),
    ];
    for (path, own) in routes {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"] {
            if own.contains(&method) {
                continue;
            }
            let answer = send(&server, &Request::new(method, &path));
            refusal(&answer, 405, "METHOD_NOT_ALLOWED");
            let mut allowed: Vec<&str> = answer.header("Allow").expect("an Allow header").split(", ").collect();
            allowed.sort_unstable();
            assert_eq!(allowed, own, "{method} {path}");
        }
    }
}

#[test]
fn a_target_may_be_absolute_and_have_a_query() {
    let server = server();
    for target in ["http://localhost/metrics", "/metrics?name=value", "http://localhost:1/v1/capabilities?a=b&c"] {
        assert_eq!(get(&server, target).status, 200, "{target}");
    }
}

#[test]
fn more_connections_than_the_limit_do_no_harm() {
    let server = server_with(Settings::default().with("connections_max", 8));
    let held: Vec<_> = (0..40).filter_map(|_| server.client().connect().ok()).collect();
    drop(held);
    wait_until("a place for a new connection", || server.client().send(&Request::get("/metrics")).is_ok());
    let mut connection = server.client().connect().expect("the server listens");
    assert!(!connection.is_closed_within(Duration::from_millis(1)));
}
