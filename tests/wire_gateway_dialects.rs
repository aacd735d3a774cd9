//! The gateway's other dialects: Anthropic's messages, and OpenAI's responses.

mod common;

use common::gateway::*;
use common::*;
use serde_json::{Value, json};

const MESSAGES: &str = "/v1/messages";
const RESPONSES: &str = "/v1/responses";
const COUNT: &str = "/v1/messages/count_tokens";

fn message(changes: Value) -> Value {
    let mut body = json!({
        "model": "wren",
        "max_tokens": 40,
        "temperature": 0,
        "messages": [{ "role": "user", "content": "Hello! Who are you?" }],
    });
    body.as_object_mut().expect("an object").extend(changes.as_object().expect("changes").clone());
    body
}

fn response(changes: Value) -> Value {
    let mut body = json!({ "model": "wren", "temperature": 0, "input": "Hello! Who are you?" });
    body.as_object_mut().expect("an object").extend(changes.as_object().expect("changes").clone());
    body
}

/// The events of a stream with their data, which says the same type as the event.
fn events(client: &Client, path: &str, body: &Value) -> Vec<Value> {
    let mut body = body.clone();
    body["stream"] = json!(true);
    let stream = open_stream(client, path, &body);
    stream.wait_for_end(2 * PATIENCE).unwrap_or_else(|error| panic!("{error:#}"));
    let told = stream.events();
    told.iter().for_each(|e| gateway_contract::check_event(&e.name, &e.data));
    told.iter().for_each(|e| assert_eq!(e.json().expect("JSON")["type"], e.name.as_str()));
    told.iter().map(|e| e.json().expect("JSON")).collect()
}

fn types(events: &[Value]) -> Vec<&str> {
    let mut names: Vec<&str> = events.iter().map(|e| e["type"].as_str().expect("a type")).collect();
    names.dedup();
    names
}

fn text_of_chat(gateway: &Client) -> String {
    let whole = told(gateway, "/v1/chat/completions", &chat(json!({})));
    whole["choices"][0]["message"]["content"].as_str().expect("text").to_owned()
}

#[test]
fn a_message_is_answered_whole_and_streamed_as_a_chat_is() {
    let (_server, gateway) = with_gateway(Settings::default());
    let text = text_of_chat(&gateway);
    let whole = told(&gateway, MESSAGES, &message(json!({})));
    assert_eq!(whole["content"], json!([{ "type": "text", "text": text }]));
    assert_eq!(
        (&whole["type"], &whole["role"], &whole["stop_reason"]),
        (&json!("message"), &json!("assistant"), &json!("end_turn"))
    );
    let usage = &whole["usage"];
    let counted = told(
        &gateway,
        "/v1/messages/count_tokens",
        &json!({
            "model": "wren", "messages": message(json!({}))["messages"],
        }),
    );
    let read = |name: &str| usage[name].as_u64().expect("a count");
    assert_eq!(counted["input_tokens"], read("input_tokens") + read("cache_read_input_tokens"));

    let streamed = events(&gateway, MESSAGES, &message(json!({})));
    let wanted = [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ];
    assert_eq!(types(&streamed), wanted);
    let joined: String = streamed.iter().filter_map(|e| e["delta"]["text"].as_str()).collect();
    assert_eq!(joined, text);
    let delta = streamed.iter().find(|e| e["type"] == "message_delta").expect("a delta");
    assert_eq!(
        (&delta["delta"]["stop_reason"], &delta["usage"]["output_tokens"]),
        (&json!("end_turn"), &usage["output_tokens"])
    );
}

#[test]
fn a_message_says_why_it_stopped() {
    let (_server, gateway) = with_gateway(Settings::default());
    let text = text_of_chat(&gateway);
    let stop = text.split_whitespace().nth(2).expect("three words");
    let cut = told(&gateway, MESSAGES, &message(json!({ "stop_sequences": ["never said", stop] })));
    assert_eq!((&cut["stop_reason"], &cut["stop_sequence"]), (&json!("stop_sequence"), &json!(stop)));
    let short = told(&gateway, MESSAGES, &message(json!({ "max_tokens": 2 })));
    assert_eq!((&short["stop_reason"], &short["stop_sequence"]), (&json!("max_tokens"), &Value::Null));
    assert_eq!(short["usage"]["output_tokens"], 2);
}

#[test]
fn a_message_has_a_system_prompt_and_blocks() {
    let (_server, gateway) = with_gateway(Settings::default());
    let block = json!([{ "type": "text", "text": "Hi there", "cache_control": { "type": "ephemeral" } }]);
    let body = message(json!({
        "system": [{ "type": "text", "text": "Be brief." }],
        "messages": [{ "role": "user", "content": block }],
        "metadata": { "user_id": "u" },
    }));
    told(&gateway, MESSAGES, &body);
    let error = |body: &Value, status: u16, kind: &str, says: &str| {
        let answer = ask(&gateway, MESSAGES, body);
        let told = answer.json().expect("JSON");
        assert_eq!(
            (answer.status, &told["type"], told["error"]["type"].as_str()),
            (status, &json!("error"), Some(kind))
        );
        assert!(told["error"]["message"].as_str().expect("a message").contains(says), "{told}");
        assert_eq!(answer.header("x-request-id"), told["request_id"].as_str());
    };
    let tools = json!([{ "name": "f", "input_schema": { "type": "object" } }]);
    error(&message(json!({ "tools": tools })), 400, "invalid_request_error", "tools");
    error(&message(json!({ "max_tokens": null })), 400, "invalid_request_error", "max_tokens");
    error(&message(json!({ "thinking": { "type": "enabled" } })), 400, "invalid_request_error", "thinking");
    error(&message(json!({ "model": "claude" })), 404, "not_found_error", "claude");
    error(
        &message(json!({ "messages": [{ "role": "assistant", "content": "x" }] })),
        400,
        "invalid_request_error",
        "user",
    );
    let nobody = gateway.without_key().send(&Request::post(MESSAGES, &message(json!({})))).expect("an answer");
    assert_eq!((nobody.status, &nobody.json().expect("JSON")["type"]), (401, &json!("error")));
}

/// As Claude Code sends it, but for the tools.
#[test]
fn a_message_of_an_agent_may_say_what_a_model_without_thoughts_does_anyway() {
    let (_server, gateway) = with_gateway(Settings::default());
    let asked = json!([
        { "role": "user", "content": "Hello! Who are you?" },
        { "role": "system", "content": "Be brief." },
    ]);
    let agent = json!({
        "messages": asked,
        "temperature": 0,
        "thinking": { "type": "adaptive" },
        "context_management": { "edits": [{ "type": "clear_thinking_20251015", "keep": "all" }] },
        "output_config": { "effort": "high" },
    });
    let whole = told(&gateway, MESSAGES, &message(agent.clone()));
    // The system's turn is the model's to read, where it stands.
    let plain = told(&gateway, MESSAGES, &message(json!({ "messages": [asked[0]], "temperature": 0 })));
    let tokens = |answer: &Value| {
        answer["usage"]["input_tokens"].as_u64().expect("a count")
            + answer["usage"]["cache_read_input_tokens"].as_u64().expect("a count")
    };
    assert!(tokens(&whole) > tokens(&plain), "{whole} {plain}");
    let counted =
        told(&gateway, COUNT, &json!({ "model": "wren", "messages": asked, "thinking": { "type": "adaptive" } }));
    assert_eq!(counted["input_tokens"].as_u64(), Some(tokens(&whole)));
    for (changes, says) in [
        (json!({ "output_config": { "task_budget": { "type": "tokens", "total": 9 } } }), "output_config"),
        (json!({ "context_management": { "edits": [{ "type": "clear_tool_uses_20250919" }] } }), "context_management"),
        (json!({ "messages": [{ "role": "tool", "content": "x" }] }), "roles are"),
    ] {
        let answer = ask(&gateway, MESSAGES, &message(changes));
        let error = answer.json().expect("JSON")["error"]["message"].as_str().expect("a message").to_owned();
        assert!(answer.status == 400 && error.contains(says), "{error}");
    }
}

/// As Codex sends it, but for the tools.
#[test]
fn a_response_of_an_agent_may_say_what_a_model_without_thoughts_does_anyway() {
    let (_server, gateway) = with_gateway(Settings::default());
    let part = |text: &str| json!([{ "type": "input_text", "text": text }]);
    let agent = json!({
        "input": [
            { "type": "message", "id": "msg_1", "role": "developer", "content": part("Be brief.") },
            { "type": "message", "id": "msg_2", "role": "user", "content": part("Hello! Who are you?") },
        ],
        "reasoning": { "effort": "none", "summary": "auto" },
        "include": ["reasoning.encrypted_content"],
        "client_metadata": { "turn_id": "1" },
        "store": false,
    });
    let whole = told(&gateway, RESPONSES, &response(agent));
    assert_eq!(whole["status"], "completed", "{whole}");
}

#[test]
fn a_response_is_answered_whole_and_streamed_as_a_chat_is() {
    let (_server, gateway) = with_gateway(Settings::default());
    let text = text_of_chat(&gateway);
    let whole = told(&gateway, RESPONSES, &response(json!({ "metadata": { "a": "b" } })));
    assert_eq!(whole["output"][0]["content"][0]["text"], text.as_str());
    assert_eq!((&whole["status"], &whole["object"]), (&json!("completed"), &json!("response")));
    assert_eq!(whole["metadata"], json!({ "a": "b" }));
    let usage = &whole["usage"];
    let count = |name: &str| usage[name].as_u64().expect("a count");
    assert_eq!(count("input_tokens") + count("output_tokens"), count("total_tokens"));

    let streamed = events(&gateway, RESPONSES, &response(json!({})));
    let wanted = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ];
    // Whether the task was still waiting when its stream began is a matter of microseconds.
    let mut seen = types(&streamed);
    seen.retain(|kind| *kind != "response.queued");
    assert_eq!(seen, wanted);
    let numbers: Vec<u64> = streamed.iter().map(|e| e["sequence_number"].as_u64().expect("a number")).collect();
    assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());
    let joined: String = streamed.iter().filter_map(|e| e["delta"].as_str()).collect();
    assert_eq!(joined, text);
    assert_eq!(streamed.last().expect("an end")["response"]["output"][0]["content"][0]["text"], text.as_str());
    let cut = told(&gateway, RESPONSES, &response(json!({ "max_output_tokens": 3 })));
    assert_eq!(
        (&cut["status"], &cut["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
}

#[test]
fn a_conversation_goes_on_from_a_response() {
    let (_server, gateway) = with_gateway(Settings::default());
    let first = told(&gateway, RESPONSES, &response(json!({ "instructions": "Be brief." })));
    assert_eq!(first["instructions"], "Be brief.");
    let next = response(json!({ "input": "Thank you!", "previous_response_id": first["id"] }));
    let second = told(&gateway, RESPONSES, &next);
    assert_eq!(second["previous_response_id"], first["id"]);
    // The same turns in one request, without the instructions, which are not carried over.
    let answer = first["output"][0]["content"][0]["text"].clone();
    let turns = json!([
        { "role": "user", "content": "Hello! Who are you?" },
        { "type": "message", "role": "assistant", "content": [{ "type": "output_text", "text": answer }] },
        { "role": "user", "content": [{ "type": "input_text", "text": "Thank you!" }] },
    ]);
    let at_once = told(&gateway, RESPONSES, &response(json!({ "input": turns })));
    assert_eq!(at_once["output"][0]["content"], second["output"][0]["content"]);
    assert_eq!(at_once["usage"]["input_tokens"], second["usage"]["input_tokens"]);
    let unknown = response(json!({ "previous_response_id": "resp_00000000000000000000000000000001" }));
    let error = gateway_refusal(&ask(&gateway, RESPONSES, &unknown), 404, "previous_response_not_found");
    assert_eq!(error["param"], "previous_response_id");
}

#[test]
fn a_response_in_the_background_is_asked_for_later_and_can_be_canceled() {
    let (_server, gateway) = with_gateway(narrow(4));
    let made = told(&gateway, RESPONSES, &response(json!({ "background": true })));
    assert_eq!(made["background"], true);
    assert!(["queued", "in_progress", "completed"].contains(&made["status"].as_str().expect("a status")));
    let path = format!("{RESPONSES}/{}", made["id"].as_str().expect("an id"));
    let now = |path: &str| gateway.send(&Request::get(path)).expect("an answer").json().expect("JSON");
    wait_until("the response", || now(&path)["status"] == "completed");
    assert_eq!(now(&path)["output"][0]["content"][0]["text"], text_of_chat(&gateway).as_str());

    let _occupied = open_stream(&gateway, "/v1/chat/completions", &endless_chat(json!({ "stream": true })));
    let waiting = told(&gateway, RESPONSES, &response(json!({ "background": true })));
    let id = waiting["id"].as_str().expect("an id");
    assert_eq!(now(&format!("{RESPONSES}/{id}"))["status"], "queued");
    let canceled = told(&gateway, &format!("{RESPONSES}/{id}/cancel"), &json!({}));
    assert_eq!(canceled["status"], "cancelled");
    let gone = gateway.send(&Request::get("/v1/responses/resp_1")).expect("an answer");
    gateway_refusal(&gone, 404, "not_found");
}

/// The events of a response that is there, after the one with this number.
fn events_after(gateway: &Client, id: &str, after: u64) -> Vec<Value> {
    let stream =
        open_stream_with(gateway, &Request::get(&format!("{RESPONSES}/{id}?stream=true&starting_after={after}")));
    stream.wait_for_end(2 * PATIENCE).unwrap_or_else(|error| panic!("{error:#}"));
    stream.events().iter().map(|e| e.json().expect("JSON")).collect()
}

#[test]
fn a_stream_that_was_lost_is_read_on_from_any_event() {
    let (_server, gateway) = with_gateway(Settings::default());
    let whole = events(&gateway, RESPONSES, &response(json!({ "background": true })));
    let id = whole[0]["response"]["id"].as_str().expect("an id");
    // What an event says of the response as a whole is of the moment in which it is read.
    let lasting = |events: &[Value]| -> Vec<Value> {
        let part = |e: &Value| json!([e["type"], e["sequence_number"], e["delta"], e["item"], e["text"], e["part"]]);
        events.iter().map(part).collect()
    };
    for after in [0, 2, 5, whole.len() as u64 - 2] {
        let rest = events_after(&gateway, id, after);
        assert_eq!(lasting(&rest), lasting(&whole[after as usize + 1..]), "after {after}");
    }
    assert!(events_after(&gateway, id, whole.len() as u64).is_empty());
    // The same in the words of server-sent events.
    let again = Request::get(&format!("{RESPONSES}/{id}?stream=true")).with("Last-Event-ID", "5");
    let again = open_stream_with(&gateway, &again);
    again.wait_for_end(2 * PATIENCE).unwrap_or_else(|error| panic!("{error:#}"));
    let told: Vec<Value> = again.events().iter().map(|e| e.json().expect("JSON")).collect();
    assert_eq!(lasting(&told), lasting(&whole[6..]));
    // With ids, openai-python takes the blank line after a comment for an event without data.
    assert!(again.events().iter().all(|e| e.id.is_none()));

    // One that is still going on, from a reader whose leaving changes nothing.
    let body =
        response(json!({ "background": true, "stream": true, "max_output_tokens": 120, "input": "Tell me a story." }));
    let first = open_stream(&gateway, RESPONSES, &body);
    wait_until("some events", || first.events().len() > 4);
    let read: Vec<Value> = first.events().iter().map(|e| e.json().expect("JSON")).collect();
    drop(first);
    let id = read[0]["response"]["id"].as_str().expect("an id");
    let last = read.last().expect("events")["sequence_number"].as_u64().expect("a number");
    let rest = events_after(&gateway, id, last);
    let text = |events: &[Value]| events.iter().filter_map(|e| e["delta"].as_str()).collect::<String>();
    let end = &rest.last().expect("events")["response"];
    assert_eq!(text(&read) + &text(&rest), end["output"][0]["content"][0]["text"].as_str().expect("text"));
    for (query, param) in [("starting_after=3", "starting_after"), ("stream=maybe", "stream"), ("colour=red", "colour")]
    {
        let answer = gateway.send(&Request::get(&format!("{RESPONSES}/{id}?{query}"))).expect("an answer");
        assert_eq!(gateway_refusal(&answer, 400, "invalid_value")["param"], param);
    }
}

#[test]
fn what_a_response_cannot_do_is_refused_by_name() {
    let (_server, gateway) = with_gateway(Settings::default());
    for (changes, param) in [
        (json!({ "tools": [{ "type": "web_search" }] }), "tools"),
        (json!({ "text": { "format": { "type": "json_schema" } } }), "text.format"),
        (json!({ "truncation": "auto" }), "truncation"),
        (json!({ "reasoning": { "effort": "high" } }), "reasoning"),
        (json!({ "include": ["file_search_call.results"] }), "include"),
        (json!({ "conversation": "conv_1" }), "conversation"),
        (json!({ "input": [{ "type": "function_call_output", "call_id": "c", "output": "x" }] }), "input"),
        (json!({ "input": [{ "type": "item_reference", "id": "x" }] }), "input"),
        (json!({ "input": [] }), "input"),
        (json!({ "max_output_tokens": 0 }), "max_output_tokens"),
    ] {
        let error = gateway_refusal(&ask(&gateway, RESPONSES, &response(changes)), 400, "invalid_value");
        assert_eq!(error["param"], param, "{error}");
    }
}
