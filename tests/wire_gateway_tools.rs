//! Functions that a model may call, at the gateway's three doors. wren has not learned to call, so here it must; the
//! grammar sees to it that what it calls is well-formed.

mod common;

use common::gateway::*;
use common::*;
use orchestratord_bdd::harness::binary::{Build, server_binary};
use orchestratord_bdd::harness::scratch::Scratch;
use orchestratord_engine::testing::TinyModel;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn with_template(family: &str) -> (Server, Client) {
    let path = format!("{}/tests/templates/{family}.jinja", env!("CARGO_MANIFEST_DIR"));
    with_gateway(Settings::default().with("chat_template", path))
}

/// Ends by itself: every value has a bound.
fn parameters() -> Value {
    json!({
        "type": "object",
        "properties": {
            "city": { "enum": ["Paris", "Oslo"] },
            "days": { "type": "integer", "minimum": 1, "maximum": 7 },
        },
        "required": ["city", "days"],
        "additionalProperties": false,
    })
}

fn tools() -> Value {
    json!([
        { "type": "function", "function": { "name": "weather", "description": "of a city", "parameters": parameters() } },
        { "type": "function", "function": { "name": "time" } },
    ])
}

fn named(name: &str) -> Value {
    json!({ "type": "function", "function": { "name": name } })
}

fn ask_with(changes: Value) -> Value {
    let mut body = chat(json!({ "tools": tools(), "max_tokens": 400, "parallel_tool_calls": false }));
    body.as_object_mut().expect("an object").extend(changes.as_object().expect("changes").clone());
    body
}

/// A call's arguments, which must be what the schema says.
fn check_weather(arguments: &Value) {
    let text = arguments.as_str().expect("arguments are text");
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert!(["Paris", "Oslo"].contains(&value["city"].as_str().expect("a city")), "{text}");
    assert!((1..=7).contains(&value["days"].as_u64().expect("days")), "{text}");
}

#[test]
fn a_call_that_must_come_is_well_formed_in_every_family_whole_and_streamed() {
    for family in ["hermes", "llama3", "mistral", "qwen3-coder", "glm", "phi4", "deepseek"] {
        let (_server, gateway) = with_template(family);
        for (choice, temperature) in [(named("weather"), 0.0), (named("weather"), 1.5), (json!("required"), 1.0)] {
            let body = ask_with(json!({ "tool_choice": choice, "temperature": temperature, "seed": 11 }));
            let whole = told(&gateway, CHAT, &body);
            let answer = &whole["choices"][0];
            assert_eq!(answer["finish_reason"], "tool_calls", "{family}: {answer}");
            let calls = answer["message"]["tool_calls"].as_array().expect("calls").clone();
            assert_eq!((calls.len(), &answer["message"]["content"]), (1, &Value::Null), "{family}: {answer}");
            let function = &calls[0]["function"];
            match function["name"].as_str() {
                Some("weather") => check_weather(&function["arguments"]),
                other => {
                    // White space is the model's to choose.
                    let arguments: Value =
                        serde_json::from_str(function["arguments"].as_str().expect("text")).expect("JSON");
                    assert_eq!((other, arguments), (Some("time"), json!({})), "{family}");
                }
            }
            let id = calls[0]["id"].as_str().expect("an id");
            assert!(if family == "mistral" { id.len() == 9 } else { id.starts_with("call_") }, "{id}");

            let streamed = chunks(&gateway, CHAT, &body);
            let deltas: Vec<&Value> = streamed.iter().map(|c| &c["choices"][0]["delta"]).collect();
            let parts: Vec<&Value> = deltas.iter().filter_map(|d| d.get("tool_calls")).map(|c| &c[0]).collect();
            assert!(parts[0]["id"].is_string() && parts[0]["function"]["name"] == function["name"], "{parts:?}");
            assert_eq!((&parts[0]["type"], &parts[0]["function"]["arguments"]), (&json!("function"), &json!("")));
            assert!(parts[1..].iter().all(|p| p.get("id").is_none() && p["function"].get("name").is_none()));
            let arguments: String = parts.iter().map(|p| p["function"]["arguments"].as_str().expect("text")).collect();
            assert_eq!(arguments, function["arguments"].as_str().expect("text"));
            assert!(deltas.iter().all(|d| d["content"].as_str().is_none_or(str::is_empty)), "{deltas:?}");
            assert_eq!(streamed.last().expect("chunks")["choices"][0]["finish_reason"], "tool_calls");
        }
    }
}

#[test]
fn a_model_that_is_free_to_call_may_speak_and_a_strict_schema_holds_if_it_calls() {
    let (_server, gateway) = with_template("hermes");
    let mut strict = tools();
    strict[0]["function"]["strict"] = json!(true);
    for tools in [tools(), strict] {
        let whole = told(&gateway, CHAT, &ask_with(json!({ "tools": tools, "max_tokens": 40 })));
        let answer = &whole["choices"][0];
        let spoke = answer["message"]["content"].as_str().is_some_and(|text| !text.is_empty());
        assert!(spoke || answer["message"]["tool_calls"].is_array(), "{answer}");
    }
    // With a format beside the tools, what is said is the one or the other.
    let format = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": parameters() } });
    let whole = told(&gateway, CHAT, &ask_with(json!({ "response_format": format, "max_tokens": 400 })));
    match &whole["choices"][0]["message"] {
        message if message["content"].is_string() => check_weather(&message["content"]),
        message => assert!(message["tool_calls"].is_array(), "{message}"),
    }
    // Several calls in one answer.
    let body =
        ask_with(json!({ "parallel_tool_calls": true, "tool_choice": "required", "temperature": 1.5, "seed": 2 }));
    let whole = told(&gateway, CHAT, &body);
    let calls = whole["choices"][0]["message"]["tool_calls"].as_array().expect("calls").clone();
    let ids: std::collections::BTreeSet<&str> = calls.iter().filter_map(|c| c["id"].as_str()).collect();
    assert!(!calls.is_empty() && ids.len() == calls.len(), "{calls:?}");
}

#[test]
fn a_conversation_goes_on_with_a_calls_result() {
    let (_server, gateway) = with_template("hermes");
    let first = told(&gateway, CHAT, &ask_with(json!({ "tool_choice": named("weather") })));
    let call = first["choices"][0]["message"].clone();
    let turns = json!([
        { "role": "user", "content": "Hello! Who are you?" },
        call,
        { "role": "tool", "tool_call_id": call["tool_calls"][0]["id"], "content": "sunny" },
    ]);
    let shown = told(&gateway, "/apply-template", &json!({ "messages": turns, "tools": tools() }))["prompt"].clone();
    let shown = shown.as_str().expect("text");
    let city = call["tool_calls"][0]["function"]["arguments"].as_str().expect("text");
    let city: Value = serde_json::from_str(city).expect("JSON");
    assert!(shown.contains("<tool_response>sunny</tool_response>"), "{shown}");
    assert!(shown.contains(&format!("\"city\": {}", city["city"])), "{shown}");
    assert!(
        shown.contains(r#"{"name": "weather", "description": "of a city", "parameters": {"type": "object""#),
        "{shown}"
    );
    told(&gateway, CHAT, &ask_with(json!({ "messages": turns, "tool_choice": "none" })));
    let orphan = json!([{ "role": "tool", "tool_call_id": "call_x", "content": "sunny" }]);
    let error = gateway_refusal(&ask(&gateway, CHAT, &ask_with(json!({ "messages": orphan }))), 400, "invalid_value");
    assert_eq!(error["param"], "messages");
}

#[test]
fn a_response_calls_and_goes_on_from_its_call() {
    let (_server, gateway) = with_template("hermes");
    let tool = json!([{ "type": "function", "name": "weather", "parameters": parameters(), "strict": true }]);
    let body = json!({
        "model": "wren", "input": "Weather?", "temperature": 0, "tools": tool,
        "tool_choice": { "type": "function", "name": "weather" }, "max_output_tokens": 400,
    });
    let whole = told(&gateway, "/v1/responses", &body);
    let item = &whole["output"][0];
    assert_eq!(
        (&item["type"], &item["name"], &item["status"]),
        (&json!("function_call"), &json!("weather"), &json!("completed"))
    );
    check_weather(&item["arguments"]);
    // With the fields that were not said, too: the dialect's types need them.
    let mut repeated = tool.clone();
    repeated[0]["description"] = Value::Null;
    assert_eq!((&whole["tools"], &whole["tool_choice"]), (&repeated, &body["tool_choice"]));

    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let stream = open_stream(&gateway, "/v1/responses", &streamed);
    all_data(&stream);
    let events: Vec<Value> = stream.events().iter().map(|e| e.json().expect("JSON")).collect();
    let of = |kind: &str| events.iter().filter(|e| e["type"] == kind).cloned().collect::<Vec<_>>();
    let added = &of("response.output_item.added")[0];
    assert_eq!((&added["item"]["type"], &added["item"]["arguments"]), (&json!("function_call"), &json!("")));
    let joined: String = of("response.function_call_arguments.delta")
        .iter()
        .map(|e| e["delta"].as_str().expect("text").to_owned())
        .collect();
    assert_eq!(joined, item["arguments"].as_str().expect("text"));
    assert_eq!(of("response.function_call_arguments.done")[0]["arguments"], item["arguments"]);
    assert_eq!(of("response.completed")[0]["response"]["output"][0]["arguments"], item["arguments"]);
    let numbers: Vec<u64> = events.iter().map(|e| e["sequence_number"].as_u64().expect("a number")).collect();
    assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());

    let output = json!([{ "type": "function_call_output", "call_id": item["call_id"], "output": "sunny" }]);
    let next =
        json!({ "model": "wren", "input": output, "previous_response_id": whole["id"], "max_output_tokens": 20 });
    assert!(told(&gateway, "/v1/responses", &next)["output"][0]["content"][0]["text"].is_string());
}

#[test]
fn a_message_uses_a_tool_and_takes_its_result() {
    let (_server, gateway) = with_template("hermes");
    let body = json!({
        "model": "wren", "max_tokens": 400, "temperature": 0, "messages": [{ "role": "user", "content": "Weather?" }],
        "tools": [{ "name": "weather", "input_schema": parameters() }], "tool_choice": { "type": "any", "disable_parallel_tool_use": true },
    });
    let whole = told(&gateway, "/v1/messages", &body);
    let block = &whole["content"][0];
    assert_eq!(
        (&whole["stop_reason"], &block["type"], &block["name"]),
        (&json!("tool_use"), &json!("tool_use"), &json!("weather"))
    );
    check_weather(&json!(block["input"].to_string()));

    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let stream = open_stream(&gateway, "/v1/messages", &streamed);
    all_data(&stream);
    let events: Vec<Value> = stream.events().iter().map(|e| e.json().expect("JSON")).collect();
    let begun = events.iter().find(|e| e["type"] == "content_block_start").expect("a block");
    assert_eq!((&begun["content_block"]["type"], &begun["content_block"]["input"]), (&json!("tool_use"), &json!({})));
    let joined: String = events.iter().filter_map(|e| e["delta"]["partial_json"].as_str()).collect();
    assert_eq!(serde_json::from_str::<Value>(&joined).expect("JSON"), block["input"]);

    let mut next = body.clone();
    let result = json!([{ "type": "tool_result", "tool_use_id": block["id"], "content": "sunny" }]);
    next["messages"] = json!([
        { "role": "user", "content": "Weather?" },
        { "role": "assistant", "content": whole["content"] },
        { "role": "user", "content": result },
    ]);
    next["tool_choice"] = json!({ "type": "none" });
    told(&gateway, "/v1/messages", &next);
}

#[test]
fn tools_that_cannot_be_offered_are_refused_by_name() {
    let (_server, gateway) = with_template("hermes");
    let function = |fields: Value| json!([{ "type": "function", "function": fields }]);
    for (changes, param) in [
        (json!({ "tools": [{ "type": "web_search" }] }), "tools"),
        (json!({ "tools": function(json!({ "name": "two words" })) }), "tools"),
        (json!({ "tools": function(json!({ "name": "f", "parameters": { "type": "nonsense" } })) }), "tools"),
        (
            json!({
                "tools": function(json!({ "name": "f", "parameters": { "properties": { "a": { "type": "nonsense" } } } })),
                "tool_choice": "required",
            }),
            "tools",
        ),
        (json!({ "tool_choice": named("other") }), "tool_choice"),
        (json!({ "tool_choice": "sometimes" }), "tool_choice"),
        (json!({ "tools": [], "tool_choice": "required" }), "tool_choice"),
        (json!({ "parallel_tool_calls": "yes" }), "parallel_tool_calls"),
        (json!({ "response_format": { "type": "regex", "regex": "a" } }), "response_format"),
    ] {
        let error = gateway_refusal(&ask(&gateway, CHAT, &ask_with(changes.clone())), 400, "invalid_value");
        assert_eq!(error["param"], param, "{changes}: {error}");
    }
    // wren's own template knows no tools.
    let (_server, plain) = with_gateway(Settings::default());
    let error = gateway_refusal(&ask(&plain, CHAT, &ask_with(json!({}))), 400, "invalid_value");
    assert_eq!(error["param"], "tools");
    told(&plain, CHAT, &ask_with(json!({ "tool_choice": "none", "max_tokens": 10 })));
}

#[test]
fn marks_that_are_control_tokens_are_read_and_replayed() {
    let folder = Scratch::new().expect("a folder");
    let model = folder.path().join("tiny.gguf");
    let tiny = TinyModel { marks: vec!["[TOOL_CALLS]"], context_length: 2048, ..TinyModel::default() };
    std::fs::write(&model, tiny.to_bytes()).expect("a model");
    let template = format!("{}/tests/templates/mistral.jinja", env!("CARGO_MANIFEST_DIR"));
    let settings = Settings::default().with("model", model.display()).with("chat_template", template);
    let (server, gateway) = with_gateway(settings);
    let body = ask_with(
        json!({ "model": "tiny", "tool_choice": named("weather"), "temperature": 1, "seed": 4, "max_tokens": 200 }),
    );
    let whole = told(&gateway, CHAT, &body);
    check_weather(&whole["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]);
    let id = whole["choices"][0]["orchestratord"]["transcript"].as_str().expect("a transcript").to_owned();
    let url = format!("http://{}", server.address());
    let replayed = std::process::Command::new(server_binary(Build::Plain).expect("a binary"))
        .args(["replay", &id, "--url", &url, "--key", KEY, "--model"])
        .arg(&model)
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&replayed.stdout).into_owned() + &String::from_utf8_lossy(&replayed.stderr);
    assert!(replayed.status.success() && said.contains("identical"), "{said}");
}
