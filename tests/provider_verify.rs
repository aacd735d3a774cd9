//! The OpenAPI documents and the pacts against a live server, both ways: what is documented occurs, and what occurs is
//! documented. Every status is brought about for real.

mod common;

mod provider_verify {
    mod contract;
    mod pacts;

    use std::fs;

    use serde_json::{Value, json};

    use self::contract::Contract;
    use crate::common::*;

    /// Asks servers, and holds every answer against the documents.
    struct Verifier {
        contract: Contract,
    }

    impl Verifier {
        fn new() -> Verifier {
            Verifier { contract: Contract::load() }
        }

        fn judge(&mut self, method: &str, path: &str, answer: &Answer) {
            let judged = contract::Answer { status: answer.status, headers: &answer.headers, body: &answer.body };
            self.contract.check(method, path, &judged).unwrap_or_else(|error| panic!("{error}"));
        }

        /// Sends a request with the server's key, which must be answered with `status`.
        fn ask(&mut self, server: &Server, request: &Request, status: u16) -> Answer {
            let answer = send(server, request);
            let at = format!("{} {}", request.method, request.path);
            assert_eq!(answer.status, status, "{at}: {}", answer.text());
            self.judge(&request.method, &request.path, &answer);
            answer
        }

        /// The same, and the code of the refusal.
        fn refused(&mut self, server: &Server, request: &Request, status: u16, code: &str) -> Value {
            refusal(&self.ask(server, request, status), status, code)
        }

        /// Judges a stream when it has ended.
        fn judge_stream(&mut self, request: &Request, stream: &EventStream) {
            stream.wait_for_end(2 * PATIENCE).unwrap_or_else(|error| panic!("{error:#}"));
            let answer = Answer { body: stream.bytes(), ..stream.head.clone() };
            self.judge(&request.method, &request.path, &answer);
        }

        /// Opens a stream and judges it to its end.
        fn stream(&mut self, server: &Server, request: &Request) {
            let stream = open_with(server, request);
            self.judge_stream(request, &stream);
        }

        /// Sends bytes that are not quite a request to this path.
        fn ask_raw(&mut self, server: &Server, method: &str, path: &str, rest: &str, status: u16) {
            let mut connection = server.client().connect().expect("the server listens");
            let _ = connection.write(format!("{method} {path} HTTP/1.1\r\nHost: a\r\n{rest}").as_bytes());
            let answer = connection.receive(method).unwrap_or_else(|error| panic!("{method} {path}: {error:#}"));
            assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
            self.judge(method, path, &answer);
        }

        /// What every documented route does with a request that is wrong before the route matters.
        fn check_what_all_routes_share(&mut self, server: &Server) {
            for (method, template) in self.contract.routes() {
                let path = fill_in(&template);
                let key = format!("X-API-Key: {KEY}\r\n");
                self.ask_raw(server, &method, &path, &format!("{key}Folded: a\r\n b\r\n\r\n"), 400);
                let long = format!(
                    "{key}{}\r\n",
                    "X-Long: 0123456789012345678901234567890123456789\r\n".repeat(60)
                        + &format!("X-Longer: {}\r\n", "x".repeat(20_000))
                );
                self.ask_raw(server, &method, &path, &long, 431);
                if self.contract.documents(&method, &path, 401) {
                    self.ask_raw(server, &method, &path, "\r\n", 401);
                    self.ask_raw(server, &method, &path, "X-API-Key: not-this-one\r\n\r\n", 403);
                }
                if self.contract.documents(&method, &path, 413) {
                    self.ask_raw(server, &method, &path, &format!("{key}Content-Length: 99999999\r\n\r\n"), 413);
                }
                for other in ["PUT", "PATCH", "OPTIONS"] {
                    self.ask(server, &Request::new(other, &path), 405);
                }
            }
        }

        fn assert_nothing_missing(&self, document: &str) {
            let missing = self.contract.missing(document);
            let lines: Vec<String> = missing
                .iter()
                .map(|(_, method, path, status, code)| format!("{method} {path} -> {status} {code}"))
                .collect();
            assert!(lines.is_empty(), "{document}.yaml promises what no answer showed:\n{}", lines.join("\n"));
        }
    }

    /// A path that exists in form: the pool is there, everything else is not.
    fn fill_in(template: &str) -> String {
        let id = match template.split('/').nth(2) {
            Some("pools") => POOL.to_owned(),
            Some("artifacts") => format!("sha256:{}", "0".repeat(64)),
            _ => uuid(),
        };
        template.replace("{id}", &id)
    }

    fn pool(what: &str) -> String {
        format!("/v1/pools/{POOL}/{what}")
    }

    fn create(task: &Value) -> Request {
        Request::post("/v1/tasks", task)
    }

    fn create_inline(task: &Value) -> Request {
        create(task).with("Accept", "text/event-stream")
    }

    fn stream_of(task: &Value) -> Request {
        Request::get(&stream_path(task))
    }

    #[test]
    fn examples_obey_their_own_schemas() {
        let checked = Contract::load().check_examples().unwrap_or_else(|error| panic!("{error}"));
        assert!(checked > 50, "only {checked} examples");
    }

    #[test]
    fn control_capabilities_and_artifacts_contract() {
        let mut verifier = Verifier::new();
        let folder = Scratch::new().expect("a folder");
        let root = folder.path().join("artifacts");
        fs::write(folder.path().join("bent.gguf"), b"GGUF, but only by name").expect("written");
        let settings =
            Settings::default().with("artifacts_fs_root", root.display()).with("models_dir", folder.path().display());
        let server = server_with(settings);
        verifier.check_what_all_routes_share(&server);

        verifier.ask(&server, &Request::get("/v1/capabilities"), 200);
        verifier.ask(&server, &Request::get(&pool("health")), 200);
        verifier.ask(&server, &Request::get("/metrics"), 200);
        for request in [
            Request::get("/v1/pools/attic/health"),
            Request::post("/v1/pools/attic/drain", &json!({ "deadline_ms": 1 })),
            Request::post("/v1/pools/attic/reload", &json!({ "new_model_ref": "wren" })),
            Request::get(&fill_in("/v1/artifacts/{id}")),
        ] {
            verifier.refused(&server, &request, 404, "NOT_FOUND");
        }

        check_artifacts(&mut verifier, &server, &root);
        let small = server_with(Settings::default().with("artifacts_bytes_max", 65_536));
        let long = json!({ "kind": "plan", "content": { "long": "x".repeat(100_000) } });
        verifier.refused(&small, &Request::post("/v1/artifacts", &long), 429, "ADMISSION_REJECT");
        check_pool(&mut verifier, &server);
        verifier.assert_nothing_missing("control");
    }

    fn check_artifacts(verifier: &mut Verifier, server: &Server, root: &std::path::Path) {
        let document = json!({ "kind": "plan", "content": { "a": 1 }, "tags": ["t"], "metadata": { "m": [] } });
        verifier.contract.check_request("POST", "/v1/artifacts", &document).expect("a documented request");
        let keep = Request::post("/v1/artifacts", &document);
        let created = verifier.ask(server, &keep, 201).json().expect("JSON");
        let path = format!("/v1/artifacts/{}", created["id"].as_str().expect("an id"));
        verifier.ask(server, &Request::get(&path), 200);
        let wrong = json!({ "kind": "poem", "content": {} });
        verifier.contract.check_request("POST", "/v1/artifacts", &wrong).expect_err("not a documented request");
        verifier.refused(server, &Request::post("/v1/artifacts", &wrong), 400, "INVALID_PARAMS");
        let mut distrusted = document.clone();
        distrusted["digest"] = json!(format!("sha256:{}", "0".repeat(64)));
        verifier.refused(server, &Request::post("/v1/artifacts", &distrusted), 400, "UNTRUSTED_ARTIFACT");

        // The disk fails: where the store's folder was, there is a file.
        fs::remove_dir_all(root).expect("the folder was there");
        fs::write(root, b"").expect("written");
        let new = Request::post("/v1/artifacts", &json!({ "kind": "plan", "content": { "b": 2 } }));
        verifier.refused(server, &new, 500, "INTERNAL");
        let never_seen = format!("/v1/artifacts/sha256:{}", "1".repeat(64));
        verifier.refused(server, &Request::get(&never_seen), 500, "INTERNAL");
        fs::remove_file(root).expect("the file was there");
        verifier.ask(server, &new, 201);
    }

    fn check_pool(verifier: &mut Verifier, server: &Server) {
        let reload = |name: &str| Request::post(&pool("reload"), &json!({ "new_model_ref": name }));
        for (what, body) in [("drain", json!({ "deadline_ms": 1000 })), ("reload", json!({ "new_model_ref": "wren" }))]
        {
            verifier.contract.check_request("POST", &pool(what), &body).expect("a documented request");
            verifier.refused(server, &Request::post(&pool(what), &json!({})), 400, "INVALID_PARAMS");
        }
        for name in ["bent", "missing"] {
            verifier.refused(server, &reload(name), 409, "RELOAD_CONFLICT");
        }
        verifier.ask(server, &Request::get(&pool("health")), 200);
        verifier.ask(server, &Request::post(&pool("drain"), &json!({ "deadline_ms": 0 })), 202);
        let health = verifier.ask(server, &Request::get(&pool("health")), 200);
        assert_eq!(health.json().expect("JSON")["draining"], true);
        verifier.ask(server, &reload("wren"), 200);
        verifier.ask(server, &Request::get("/v1/capabilities"), 200);
    }

    #[test]
    fn data_budgets_and_sse_metrics_contract() {
        let mut verifier = Verifier::new();
        let server = server();
        verifier.check_what_all_routes_share(&server);
        check_task_and_session(&mut verifier, &server);
        check_refused_tasks(&mut verifier, &server);
        check_full_queue(&mut verifier);
        check_dropped_tasks(&mut verifier);
        check_spent_and_too_big(&mut verifier);
        check_drain_and_reload(&mut verifier);
        check_faults(&mut verifier);
        verifier.assert_nothing_missing("data");
    }

    fn check_task_and_session(verifier: &mut Verifier, server: &Server) {
        let full = task_with(json!({
            "seed": 7, "determinism": "strict", "sampler_profile_version": "v1", "expected_tokens": 4, "kv_hint": "reuse",
            "temperature": 0.5, "top_k": 4, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": 0.1,
            "frequency_penalty": 0.1, "stop": ["\u{0}"], "logprobs": true, "ignore_end": true, "on_disconnect": "continue",
            "response_format": { "type": "text" },
        }));
        let messages = json!([{ "role": "user", "content": "Hello." }]);
        let inputs = json!({ "text": "A fox.", "pooling": "mean", "dimensions": 8 });
        let vector = task_with(json!({ "workload": "embedding", "prompt": null, "inputs": inputs }));
        for task in [task(), full, task_with(json!({ "prompt": null, "messages": messages })), vector] {
            verifier.contract.check_request("POST", "/v1/tasks", &task).expect("a documented request");
            verifier.ask(server, &create(&task), 202);
            verifier.stream(server, &stream_of(&task));
            verifier.stream(server, &stream_of(&task).with("Last-Event-ID", "2"));
            verifier.ask(server, &create(&task), 202);
        }
        let task = task();
        verifier.stream(server, &create_inline(&task));
        verifier.stream(server, &create_inline(&task_with(json!({ "workload": "embedding" }))));
        let session = format!("/v1/sessions/{}", session_of(&task));
        verifier.ask(server, &Request::get(&session), 200);
        verifier.ask(server, &Request::new("DELETE", &session), 204);

        let (running, stream) = occupy(server);
        let more: Vec<EventStream> = (0..7).map(|_| open(server, &running)).collect();
        verifier.refused(server, &stream_of(&running), 429, "ADMISSION_REJECT");
        drop(more);
        let cancel = format!("/v1/tasks/{}/cancel", id_of(&running));
        verifier.ask(server, &Request::new("POST", &cancel), 204);
        verifier.judge_stream(&stream_of(&running), &stream);
        verifier.ask(server, &Request::new("POST", &cancel), 204);
    }

    fn check_refused_tasks(verifier: &mut Verifier, server: &Server) {
        for wrong in [
            json!({ "ctx": 0 }),
            json!({ "ctx": null }),
            json!({ "max_tokens": 0 }),
            json!({ "task_id": "x" }),
            json!({ "engine": "tpu" }),
            json!({ "kv_hint": "hot" }),
            json!({ "surprise": 1 }),
        ] {
            let task = task_with(wrong);
            verifier.contract.check_request("POST", "/v1/tasks", &task).expect_err("not a documented request");
            verifier.refused(server, &create(&task), 400, "INVALID_PARAMS");
            verifier.refused(server, &create_inline(&task), 400, "INVALID_PARAMS");
        }
        verifier.refused(server, &create(&task_with(json!({ "deadline_ms": 0 }))), 400, "DEADLINE_UNMET");
        let accepted = task();
        enqueue(server, &accepted);
        verifier.refused(server, &stream_of(&accepted).with("Last-Event-ID", "soon"), 400, "INVALID_PARAMS");
        verifier.refused(server, &create(&task_with(json!({ "engine": "cuda" }))), 503, "POOL_UNAVAILABLE");
        verifier.refused(server, &create(&task_with(json!({ "workload": "rerank" }))), 400, "INVALID_PARAMS");
        for request in [
            Request::get(&fill_in("/v1/tasks/{id}/stream")),
            Request::new("POST", &fill_in("/v1/tasks/{id}/cancel")),
            Request::get(&fill_in("/v1/sessions/{id}")),
            Request::new("DELETE", &fill_in("/v1/sessions/{id}")),
        ] {
            verifier.refused(server, &request, 404, "NOT_FOUND");
        }
    }

    fn check_full_queue(verifier: &mut Verifier) {
        let server = server_with(narrow(1));
        let (_running, _stream) = occupy(&server);
        enqueue(&server, &endless());
        let said = verifier.refused(&server, &create(&task()), 429, "ADMISSION_REJECT");
        assert!(said["retry_after_ms"].is_u64(), "{said}");
        verifier.refused(&server, &create_inline(&task()), 429, "ADMISSION_REJECT");
    }

    fn check_dropped_tasks(verifier: &mut Verifier) {
        let server = server_with(narrow(1).with("admission_policy", "drop-lru"));
        let (_running, _stream) = occupy(&server);
        let evicted = task_with(json!({ "priority": "batch" }));
        enqueue(&server, &evicted);
        let evictor = endless();
        verifier.ask(&server, &create(&evictor), 202);
        wait_for_end_of(&server, &evicted);
        verifier.refused(&server, &stream_of(&evicted), 429, "QUEUE_FULL_DROP_LRU");
        let lower = task_with(json!({ "priority": "batch" }));
        verifier.refused(&server, &create(&lower), 429, "QUEUE_FULL_DROP_LRU");
        let read = open(&server, &evictor);
        verifier.ask(&server, &create(&task()), 202);
        verifier.judge_stream(&stream_of(&evictor), &read);
    }

    fn check_spent_and_too_big(verifier: &mut Verifier) {
        let server = server_with(Settings::default().with("session_tokens_budget", 4).with("kv_blocks_max", 8));
        let first = task_with(json!({ "ctx": 64, "max_tokens": 4, "ignore_end": true }));
        run(&server, &first);
        let next = task_with(json!({ "ctx": 64, "session_id": session_of(&first) }));
        let said = verifier.refused(&server, &create(&next), 429, "ADMISSION_REJECT");
        assert_eq!((&said["retriable"], said.get("retry_after_ms")), (&json!(false), None), "{said}");
        let never = task_with(json!({ "ctx": 2048, "max_tokens": 1900 }));
        verifier.refused(&server, &create(&never), 503, "REPLICA_EXHAUSTED");
    }

    fn check_drain_and_reload(verifier: &mut Verifier) {
        let folder = Scratch::new().expect("a folder");
        fs::copy(model_file(), folder.path().join("robin.gguf")).expect("a copy of the model");
        let settings = narrow(4).with("models_dir", folder.path().display()).with("on_time_probability_floor", 0);
        let server = server_with(settings);
        let running = endless();
        let read_inline = open_with(&server, &create_inline(&running));
        wait_for_tokens(&read_inline, 1);
        let unopened = task();
        enqueue(&server, &unopened);
        // A task that waits too long, and that nobody has looked at yet.
        let late = task_with(json!({ "deadline_ms": 300 }));
        verifier.ask(&server, &create(&late), 202);
        wait_for_end_of(&server, &late);
        verifier.refused(&server, &stream_of(&late), 400, "DEADLINE_UNMET");
        let drain = Request::post(&pool("drain"), &json!({ "deadline_ms": 0 }));
        verifier.ask(&server, &drain, 202);
        verifier.judge_stream(&create_inline(&running), &read_inline);
        wait_for_end_of(&server, &unopened);
        verifier.refused(&server, &stream_of(&unopened), 503, "POOL_UNAVAILABLE");
        verifier.refused(&server, &create(&task()), 503, "POOL_UNAVAILABLE");
        verifier.ask(&server, &Request::post(&pool("reload"), &json!({ "new_model_ref": "robin" })), 200);
        verifier.refused(&server, &create(&task()), 503, "MODEL_DEPRECATED");
    }

    fn model_file() -> std::path::PathBuf {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("engine/models");
        let mut found = fs::read_dir(folder).expect("engine/models").map(|e| e.expect("an entry").path());
        found.find(|p| p.extension().is_some_and(|e| e == "gguf")).expect("a GGUF file in engine/models")
    }

    /// What only a build with fault points can show.
    fn check_faults(verifier: &mut Verifier) {
        let with_fault = |fault: &str, settings: Settings| {
            let mut settings = settings;
            settings.add_fault(fault);
            server_with(settings)
        };
        let server = with_fault("create-task=1*return", Settings::default());
        verifier.refused(&server, &create(&task()), 500, "INTERNAL");
        verifier.ask(&server, &create(&task()), 202);

        let server = with_fault("engine-step=20*off->1*panic", Settings::default());
        let unlucky = endless();
        enqueue(&server, &unlucky);
        wait_for_end_of(&server, &unlucky);
        let while_rebuilt = send(&server, &create(&task()));
        if while_rebuilt.status == 503 {
            verifier.refused(&server, &create(&task()), while_rebuilt.status, "POOL_UNREADY");
        }
        verifier.refused(&server, &stream_of(&unlucky), 503, "WORKER_RESET");
        verifier.refused(&server, &create_inline(&unlucky), 503, "WORKER_RESET");

        let slow = Settings::default().with("decode_timeout_ms", 300);
        let server = with_fault("engine-step=20*off->1*sleep(3000)", slow);
        let hanging = endless();
        enqueue(&server, &hanging);
        wait_for_end_of(&server, &hanging);
        verifier.refused(&server, &stream_of(&hanging), 503, "DECODE_TIMEOUT");
        verifier.refused(&server, &create_inline(&hanging), 503, "DECODE_TIMEOUT");
        verifier.refused(&server, &create(&task()), 503, "POOL_UNREADY");
    }

    #[test]
    fn what_never_became_a_request_is_documented_too() {
        let contract = Contract::load();
        let server = server_with(Settings::default().with("head_timeout_ms", 200));
        let narrow = server_with(Settings::default().with("connections_max", 1));
        let head = format!("GET /v1/capabilities HTTP/1.1\r\nHost: a\r\nX-API-Key: {KEY}\r\n");
        let mut shown = std::collections::BTreeSet::new();
        let mut check = |server: &Server, bytes: &str, status: u16| {
            let mut connection = server.client().connect().expect("the server listens");
            let _ = connection.write(bytes.as_bytes());
            let answer = connection.receive("GET").unwrap_or_else(|error| panic!("{bytes:?}: {error:#}"));
            assert_eq!(answer.status, status, "{bytes:?}: {}", answer.text());
            let judged = contract::Answer { status: answer.status, headers: &answer.headers, body: &answer.body };
            contract.check_any_path(&judged).unwrap_or_else(|error| panic!("{bytes:?}: {error}"));
            shown.insert(status);
        };
        check(&server, &head, 408);
        check(&server, &format!("{head}Expect: a-miracle\r\n\r\n"), 417);
        check(&server, &format!("{head}Transfer-Encoding: gzip\r\n\r\n"), 501);
        check(&server, &format!("{}\r\n", head.replace("1.1", "2.0")), 505);
        let mut held = None;
        wait_until("the one place", || {
            let mut connection = narrow.client().connect().expect("the server listens");
            let taken = connection.write(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").is_ok();
            let is_in = taken && connection.receive("GET").is_ok_and(|answer| answer.status == 200);
            held = is_in.then_some(connection);
            is_in
        });
        check(&narrow, "", 429);
        drop(held);
        assert_eq!(shown, contract.any_path_statuses(), "all of them, and no other");
    }

    #[test]
    fn provider_paths_match_pacts() {
        let mut verifier = Verifier::new();
        let interactions = pacts::load();
        assert!(interactions.len() >= 30, "only {} interactions", interactions.len());
        let provider = pacts::Provider::new();
        for interaction in &interactions {
            let (method, path, name) = (interaction.method(), interaction.path(), &interaction.name);
            assert!(verifier.contract.documents(method, path, interaction.status()), "{name} is not documented");
            if let Some(body) = interaction.body().filter(|_| interaction.status() < 300) {
                verifier.contract.check_request(method, path, body).unwrap_or_else(|e| panic!("{name}: {e}"));
            }
            let prepared = provider.prepare(interaction);
            let nobody = prepared.server().client_with(None);
            let answer = nobody.send(&interaction.request()).unwrap_or_else(|e| panic!("{name}: {e:#}"));
            interaction.compare(&answer).unwrap_or_else(|e| panic!("{name}: {e}"));
            verifier.judge(method, path, &answer);
        }
    }

    #[test]
    fn rejects_unknown_paths_or_statuses() {
        let mut verifier = Verifier::new();
        let server = server();
        for path in [
            "/",
            "/v1",
            "/v1/replicasets",
            "/v1/tasks/",
            "/v1/tasks/7",
            "/v1/pools",
            "/v1/sessions",
            "/metric",
            "/v2/tasks",
        ] {
            let answer = get(&server, path);
            let judged = contract::Answer { status: answer.status, headers: &answer.headers, body: &answer.body };
            verifier.contract.check_unknown_path(path, &judged).unwrap_or_else(|error| panic!("{error}"));
            verifier.contract.check("GET", path, &judged).expect_err("an unknown path is no documented one");
        }
        assert_eq!(verifier.contract.routes().len(), 12, "these twelve routes and no other");

        let good = get(&server, "/v1/capabilities");
        let judge = |contract: &mut Contract, method: &str, answer: &Answer| {
            let judged = contract::Answer { status: answer.status, headers: &answer.headers, body: &answer.body };
            contract.check(method, "/v1/capabilities", &judged)
        };
        judge(&mut verifier.contract, "GET", &good).expect("the answer as it is");
        judge(&mut verifier.contract, "POST", &good).expect_err("another method");
        for spoil in spoilt_answers() {
            let mut bad = good.clone();
            spoil(&mut bad);
            judge(&mut verifier.contract, "GET", &bad).expect_err("a spoilt answer must be noticed");
        }
    }

    type Spoil = fn(&mut Answer);

    /// Ways in which a good answer of /v1/capabilities turns bad.
    fn spoilt_answers() -> [Spoil; 9] {
        fn edit(answer: &mut Answer, change: impl Fn(&mut Value)) {
            let mut body = answer.json().expect("JSON");
            change(&mut body);
            answer.body = body.to_string().into_bytes();
        }
        [
            |answer| answer.status = 418,
            |answer| answer.status = 500,
            |answer| answer.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("x-correlation-id")),
            |answer| answer.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("content-type")),
            |answer| answer.headers.push(("X-Secret".to_owned(), "1".to_owned())),
            |answer| answer.body.truncate(answer.body.len() / 2),
            |answer| edit(answer, |body| body["engines"][0]["engine"] = json!("tpu")),
            |answer| edit(answer, |body| body["surprise"] = json!(1)),
            |answer| {
                edit(answer, |body| {
                    body.as_object_mut().expect("an object").remove("api_version");
                });
            },
        ]
    }
}
