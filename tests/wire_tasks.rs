//! Every field of a task, wrong in every way: 400, a message that names the field, and a correct next answer.

mod common;

use common::*;
use serde_json::{Value, json};

/// Sends many bodies over one kept-alive connection; after each refusal a good request must be answered well.
struct Tester {
    server: Server,
    connection: Connection,
}

impl Tester {
    fn new(settings: Settings) -> Tester {
        let server = server_with(settings);
        let connection = server.client().connect().expect("the server listens");
        Tester { server, connection }
    }

    fn send(&mut self, request: &Request) -> Answer {
        let bytes = self.server.client().keyed(request).encode();
        self.connection.write(&bytes).expect("the connection is open");
        self.connection.receive(&request.method).expect("an answer")
    }

    fn post(&mut self, body: impl Into<Vec<u8>>) -> Answer {
        let request = Request::new("POST", "/v1/tasks").with("Content-Type", "application/json").with_body(body);
        self.send(&request)
    }

    /// Sends a body that must be refused with `INVALID_PARAMS` and a message that has `named` in it.
    fn check(&mut self, named: &str, body: impl Into<Vec<u8>>) {
        let body = body.into();
        let shown = String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned();
        let answer = self.post(body);
        assert_eq!(answer.status, 400, "{shown}: {}", answer.text());
        let said = refusal(&answer, 400, "INVALID_PARAMS");
        assert_eq!(said["retriable"], false, "{shown}");
        let message = said["message"].as_str().expect("a message");
        assert!(message.contains(named), "{named} is not named for {shown}: {message}");
        let next = self.send(&Request::get("/v1/capabilities"));
        assert_eq!(next.status, 200, "after {shown}: {}", next.text());
    }
}

#[test]
fn what_is_not_a_json_object_is_refused() {
    let mut tester = Tester::new(Settings::default());
    let good = task().to_string();
    let huge_number = format!("{{\"ctx\":1{}}}", "0".repeat(5000));
    let bodies: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b" ".to_vec(),
        b"null".to_vec(),
        b"true".to_vec(),
        b"17".to_vec(),
        b"\"task\"".to_vec(),
        b"[]".to_vec(),
        b"{}".to_vec(),
        b"{".to_vec(),
        b"}".to_vec(),
        b"{]".to_vec(),
        b"{\"ctx\"}".to_vec(),
        b"{\"ctx\":}".to_vec(),
        b"{\"ctx\" 1}".to_vec(),
        b"{'ctx':1}".to_vec(),
        b"{ctx:1}".to_vec(),
        b"{\"ctx\":1,}".to_vec(),
        b"{\"ctx\":01}".to_vec(),
        b"{\"ctx\":+1}".to_vec(),
        b"{\"ctx\":.5}".to_vec(),
        b"{\"ctx\":1.}".to_vec(),
        b"{\"ctx\":1e}".to_vec(),
        b"{\"ctx\":0x10}".to_vec(),
        b"{\"temperature\":NaN}".to_vec(),
        b"{\"temperature\":-Infinity}".to_vec(),
        b"{\"prompt\":\"\n\"}".to_vec(),
        b"{\"prompt\":\"\0\"}".to_vec(),
        b"{\"prompt\":\"\\x41\"}".to_vec(),
        b"{\"prompt\":\"\\ud83d\"}".to_vec(),
        b"{\"prompt\":\"\\u12\"}".to_vec(),
        b"{\"prompt\":\"no end".to_vec(),
        b"{\"prompt\":\"\xff\"}".to_vec(),
        b"{\"prompt\":\"\xc0\xaf\"}".to_vec(),
        b"{\"prompt\":\"\xed\xa0\x80\"}".to_vec(),
        b"{\"prompt\":\"\xf4\x90\x80\x80\"}".to_vec(),
        b"{\"\xff\":1}".to_vec(),
        b"\xef\xbb\xbf{}".to_vec(),
        b"\xff\xfe{\0}\0".to_vec(),
        b"{} // a comment".to_vec(),
        format!("{good}{good}").into_bytes(),
        format!("{good},").into_bytes(),
        format!("{good}\0").into_bytes(),
        good.as_bytes()[..good.len() - 1].to_vec(),
        huge_number.into_bytes(),
        [b"[".repeat(200_000), b"]".repeat(200_000)].concat(),
        b"[".repeat(500_000),
        b"{\"a\":".repeat(100_000),
        [b"{\"prompt\":".to_vec(), b"[".repeat(1000), b"]".repeat(1000), b"}".to_vec()].concat(),
    ];
    for body in bodies {
        tester.check("", body);
    }
}

#[test]
fn every_prefix_of_a_good_task_is_refused_and_the_whole_is_taken() {
    let mut tester = Tester::new(Settings::default());
    let good = task_with(json!({ "prompt": "né \"à\" 🦜\n", "stop": ["."], "temperature": 0.5 })).to_string();
    for len in 0..good.len() {
        let answer = tester.post(&good.as_bytes()[..len]);
        assert_eq!(answer.status, 400, "{len} bytes: {}", answer.text());
    }
    assert_eq!(tester.post(good).status, 202);
}

#[test]
fn a_missing_field_is_named() {
    let mut tester = Tester::new(Settings::default());
    let required =
        ["task_id", "session_id", "workload", "model_ref", "engine", "ctx", "priority", "max_tokens", "deadline_ms"];
    for field in required {
        tester.check(field, task_with(json!({ field: null })).to_string());
    }
    tester.check("prompt", task_with(json!({ "prompt": null })).to_string());
}

#[test]
fn a_wrong_type_or_value_names_its_field() {
    let mut tester = Tester::new(Settings::default());
    let long_name = "x".repeat(300);
    let too_many: Vec<String> = (0..17).map(|i| format!("stop {i}")).collect();
    let cases: Vec<(&str, Vec<Value>)> = vec![
        (
            "task_id",
            vec![
                json!("7"),
                json!(""),
                json!("0190163d8694739baea5966c26f8ad91"),
                json!("g190163d-8694-739b-aea5-966c26f8ad91"),
            ],
        ),
        ("session_id", vec![json!("7"), json!(""), json!("0190163d-8694-739b-aea5-966c26f8ad911")]),
        ("workload", vec![json!("chat"), json!(""), json!("Completion")]),
        ("model_ref", vec![json!(""), json!(long_name)]),
        ("engine", vec![json!("tpu"), json!(""), json!("CPU")]),
        (
            "ctx",
            vec![json!("256"), json!(0), json!(-1), json!(1.5), json!(2049), json!(4_294_967_552_u64), json!(1e30)],
        ),
        ("priority", vec![json!("urgent"), json!(""), json!("Batch")]),
        ("max_tokens", vec![json!("8"), json!(0), json!(-1), json!(1.5), json!(4_294_967_304_u64), json!(1e30)]),
        ("deadline_ms", vec![json!("1"), json!(1.5), json!(1e30)]),
        ("prompt", vec![json!({ "text": "x" })]),
        ("seed", vec![json!("1"), json!(-1), json!(1.5), json!(9_007_199_254_740_992_u64), json!(1e30)]),
        ("determinism", vec![json!("loose"), json!("")]),
        ("sampler_profile_version", vec![json!("v2"), json!("")]),
        ("expected_tokens", vec![json!("8"), json!(0), json!(-1), json!(1.5)]),
        ("kv_hint", vec![json!("warm"), json!("")]),
        ("temperature", vec![json!("hot"), json!(-0.1), json!(100.1), json!(1e300)]),
        ("top_k", vec![json!("1"), json!(-1), json!(1.5)]),
        ("top_p", vec![json!("1"), json!(0), json!(-0.1), json!(1.1)]),
        ("min_p", vec![json!("1"), json!(-0.1), json!(1.1)]),
        ("repetition_penalty", vec![json!("1"), json!(-0.1), json!(0), json!(10.1)]),
        ("presence_penalty", vec![json!("1"), json!(2.1), json!(1e300)]),
        ("frequency_penalty", vec![json!("1"), json!(-2.1), json!(-1e300)]),
        ("stop", vec![json!({}), json!([1]), json!([""]), json!(["x".repeat(257)]), json!(too_many)]),
        ("logprobs", vec![json!("yes"), json!({})]),
        ("ignore_end", vec![json!("yes"), json!(2)]),
        ("on_disconnect", vec![json!("explode"), json!("")]),
        ("response_format", vec![json!({ "type": "poem" }), json!("json")]),
    ];
    for (field, values) in &cases {
        for value in values {
            tester.check(field, task_with(json!({ *field: value })).to_string());
        }
        // A value of a type that no field of that kind has.
        for value in [json!({ "a": [1] }), json!([[]])] {
            tester.check(field, task_with(json!({ *field: value })).to_string());
        }
        let no_bool = !matches!(*field, "logprobs" | "ignore_end");
        if no_bool {
            tester.check(field, task_with(json!({ *field: true })).to_string());
        }
        let no_number_or_bool = !matches!(task()[*field], Value::Number(_)) && no_bool;
        let is_text = matches!(task()[*field], Value::String(_));
        if no_number_or_bool && is_text {
            tester.check(field, task_with(json!({ *field: 7 })).to_string());
        }
    }
}

#[test]
fn wrong_messages_are_refused() {
    let mut tester = Tester::new(Settings::default());
    for messages in [
        json!("hello"),
        json!([]),
        json!([1]),
        json!(["hello"]),
        json!([{ "role": "user" }]),
        json!([{ "content": "hello" }]),
        json!([{ "role": 1, "content": "hello" }]),
        json!([{ "role": "wizard", "content": "hello" }]),
        json!([{ "role": "user", "content": 1 }]),
        json!([{ "role": "user", "content": "hello", "weight": 1 }]),
        json!({ "role": "user", "content": "hello" }),
    ] {
        tester.check("messages", task_with(json!({ "prompt": null, "messages": messages })).to_string());
    }
    let both = task_with(json!({ "messages": [{ "role": "user", "content": "hello" }] }));
    tester.check("prompt", both.to_string());
}

#[test]
fn an_unknown_field_is_named() {
    let mut tester = Tester::new(Settings::default());
    for field in ["max_token", "Prompt", "__proto__", "task_id ", "n", "tools", "ünïcode"] {
        tester.check(field, task_with(json!({ field: 1 })).to_string());
    }
    tester.check("max_token", task_with(json!({ "max_token": { "deep": [{ "er": null }] } })).to_string());
}

#[test]
fn a_field_that_is_there_twice_is_refused() {
    let mut tester = Tester::new(Settings::default());
    let good = task().to_string();
    for (field, value) in [("ctx", "128"), ("task_id", "\"0190163d-8694-739b-aea5-966c26f8ad91\""), ("prompt", "\"x\"")]
    {
        let twice = format!("{},\"{field}\":{value}}}", &good[..good.len() - 1]);
        tester.check(field, twice);
    }
    // The same name, spelled with an escape.
    let twice = format!("{},\"c\\u0074x\":128}}", &good[..good.len() - 1]);
    tester.check("ctx", twice);
}

#[test]
fn lengths_are_checked_one_under_at_and_one_over() {
    let mut tester = Tester::new(Settings::default());
    let model_max = tester.send(&Request::get("/v1/capabilities")).json().expect("JSON")["engines"][0]["ctx_max"]
        .as_u64()
        .expect("a number");
    assert_eq!(tester.post(task_with(json!({ "ctx": model_max })).to_string()).status, 202);
    tester.check("ctx", task_with(json!({ "ctx": model_max + 1 })).to_string());

    // How many tokens the prompt has: the smallest ctx that is taken with one token of answer.
    let taken = |tester: &mut Tester, ctx: u64, max_tokens: u64| {
        tester.post(task_with(json!({ "ctx": ctx, "max_tokens": max_tokens })).to_string()).status == 202
    };
    let smallest = (1..64).find(|&ctx| taken(&mut tester, ctx, 1)).expect("a short prompt fits somewhere");
    assert!(smallest > 1, "a prompt of four words has tokens");
    for max_tokens in [2, 5, 17] {
        let at = smallest - 1 + max_tokens;
        assert!(!taken(&mut tester, at - 1, max_tokens), "one under: ctx {}", at - 1);
        assert!(taken(&mut tester, at, max_tokens), "at: ctx {at}");
    }
    tester.check("max_tokens", task_with(json!({ "ctx": 64, "max_tokens": 65 })).to_string());
    tester.check("ctx", task_with(json!({ "prompt": "word ".repeat(300) })).to_string());
    let book = task_with(json!({ "prompt": "word ".repeat(100_000) }));
    tester.check("ctx", book.to_string());
}

#[test]
fn an_answer_of_one_token_and_odd_prompts_are_fine() {
    let server = server();
    for prompt in ["a", " ", "\n", "🦜🦜", "日本語", "\u{0}", "\u{feff}", "<|im_start|>", "</s>", &"é".repeat(50)]
    {
        let task = task_with(json!({ "prompt": prompt, "max_tokens": 1, "ignore_end": true }));
        let end = end_of(&run(&server, &task));
        assert_eq!(
            (end["tokens_out"].as_u64(), end["finish_reason"].as_str()),
            (Some(1), Some("length")),
            "{prompt:?}"
        );
    }
}

#[test]
fn optional_fields_are_taken_in_their_whole_range() {
    let mut tester = Tester::new(Settings::default());
    for extra in [
        json!({ "seed": 0 }),
        json!({ "seed": 9_007_199_254_740_991_u64 }),
        json!({ "determinism": "strict" }),
        json!({ "determinism": "best_effort" }),
        json!({ "sampler_profile_version": "v1" }),
        json!({ "expected_tokens": 4 }),
        json!({ "kv_hint": "reuse" }),
        json!({ "kv_hint": "cold" }),
        json!({ "temperature": 0 }),
        json!({ "temperature": 2.0, "top_k": 0, "top_p": 1, "min_p": 0 }),
        json!({ "temperature": 1, "top_k": 1, "top_p": 0.1, "min_p": 1 }),
        json!({ "repetition_penalty": 1.3, "presence_penalty": -2.0, "frequency_penalty": 2 }),
        json!({ "stop": [] }),
        json!({ "stop": ["x".repeat(256)] }),
        json!({ "logprobs": true }),
        json!({ "on_disconnect": "continue" }),
        json!({ "on_disconnect": "cancel" }),
        json!({ "priority": "batch" }),
        json!({ "prompt": null, "messages": [
            { "role": "system", "content": "Be brief." },
            { "role": "user", "content": "Hello." },
            { "role": "assistant", "content": "Hello!" },
            { "role": "user", "content": "" },
        ] }),
    ] {
        let answer = tester.post(task_with(extra.clone()).to_string());
        assert_eq!(answer.status, 202, "{extra}: {}", answer.text());
    }
}

#[test]
fn what_this_server_does_not_serve_is_unavailable() {
    let server = server();
    for other in [json!({ "engine": "cuda" }), json!({ "model_ref": "albatross" })] {
        let said = refusal(&post(&server, "/v1/tasks", &task_with(other.clone())), 503, "POOL_UNAVAILABLE");
        assert_eq!(said["retriable"], false, "{other}: {said}");
        assert!(said["engine"].is_string(), "{other}: {said}");
    }
}

#[test]
fn what_is_no_id_names_nothing() {
    let server = server();
    for id in
        ["7", "not-a-uuid", "0190163d8694739baea5966c26f8ad91", "%00", "..", "0190163d-8694-739b-aea5-966c26f8ad911"]
    {
        refusal(&get(&server, &format!("/v1/tasks/{id}/stream")), 404, "NOT_FOUND");
        refusal(&send(&server, &Request::new("POST", &format!("/v1/tasks/{id}/cancel"))), 404, "NOT_FOUND");
        refusal(&get(&server, &format!("/v1/sessions/{id}")), 404, "NOT_FOUND");
        refusal(&delete(&server, &format!("/v1/sessions/{id}")), 404, "NOT_FOUND");
    }
}

#[test]
fn a_uuid_in_capitals_is_the_same_task() {
    let server = server();
    let task = task();
    enqueue(&server, &task);
    let path = format!("/v1/tasks/{}/stream", id_of(&task).to_uppercase());
    finish(&open_with(&server, &Request::get(&path)));
}

#[test]
fn bodies_of_the_control_plane_are_checked_too() {
    let server = server();
    let drain = format!("/v1/pools/{POOL}/drain");
    let reload = format!("/v1/pools/{POOL}/reload");
    for (path, field, body) in [
        (&drain, "deadline_ms", json!({})),
        (&drain, "deadline_ms", json!({ "deadline_ms": -1 })),
        (&drain, "deadline_ms", json!({ "deadline_ms": "soon" })),
        (&drain, "deadline_ms", json!({ "deadline_ms": 1.5 })),
        (&drain, "deadline", json!({ "deadline_ms": 1, "deadline": 1 })),
        (&reload, "new_model_ref", json!({})),
        (&reload, "new_model_ref", json!({ "new_model_ref": 7 })),
        (&reload, "force", json!({ "new_model_ref": "wren", "force": true })),
    ] {
        let said = refusal(&post(&server, path, &body), 400, "INVALID_PARAMS");
        assert!(said["message"].as_str().is_some_and(|m| m.contains(field)), "{path} {body}: {said}");
    }
    for path in [drain, reload] {
        for body in ["", "null", "[]", "{", "\"x\"", "\u{feff}{}"] {
            refusal(&send(&server, &Request::new("POST", &path).with_body(body)), 400, "INVALID_PARAMS");
        }
    }
    let health = get(&server, &format!("/v1/pools/{POOL}/health")).json().expect("JSON");
    assert_eq!((&health["ready"], &health["draining"]), (&json!(true), &json!(false)), "nothing of it was done");
}
