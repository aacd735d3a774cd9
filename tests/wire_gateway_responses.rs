//! `/v1/responses` as the Open Responses document has it: every field is there, every event fits its item, and turns go on.
//! That a field is missing or too much is found by the gateway's document, against which every answer and event is held.

mod common;

use common::gateway::*;
use common::*;
use serde_json::{Value, json};

const RESPONSES: &str = "/v1/responses";

fn response(changes: Value) -> Value {
    let mut body = json!({ "model": "wren", "temperature": 0, "input": "Hello! Who are you?" });
    body.as_object_mut().expect("an object").extend(changes.as_object().expect("changes").clone());
    body
}

fn with_functions() -> (Server, Client) {
    let template = format!("{}/tests/templates/hermes.jinja", env!("CARGO_MANIFEST_DIR"));
    with_gateway(Settings::default().with("chat_template", template))
}

fn weather() -> Value {
    let place = json!({ "enum": ["Oslo", "Paris"] });
    let parameters = json!({
        "type": "object", "properties": { "place": place }, "required": ["place"], "additionalProperties": false,
    });
    json!({ "type": "function", "name": "weather", "description": "Of a place", "parameters": parameters })
}

fn events(client: &Client, body: &Value) -> Vec<Value> {
    let mut body = body.clone();
    body["stream"] = json!(true);
    let data = all_data(&open_stream(client, RESPONSES, &body));
    data.iter().map(|d| serde_json::from_str(d).expect("JSON")).collect()
}

fn unix_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").as_secs()
}

#[test]
fn a_response_says_what_was_asked_and_what_was_used_where_it_was_not() {
    let (_server, gateway) = with_gateway(Settings::default());
    let plain = told(&gateway, RESPONSES, &json!({ "model": "wren", "input": "Hello!" }));
    for (field, unsaid) in [
        ("presence_penalty", json!(0.0)),
        ("frequency_penalty", json!(0.0)),
        ("temperature", json!(1.0)),
        ("top_p", json!(1.0)),
        ("top_logprobs", json!(0)),
        ("max_tool_calls", Value::Null),
        ("service_tier", json!("default")),
        ("safety_identifier", Value::Null),
        ("prompt_cache_key", Value::Null),
        ("background", json!(false)),
        ("tools", json!([])),
        ("tool_choice", json!("auto")),
        ("metadata", json!({})),
        ("truncation", json!("disabled")),
        ("error", Value::Null),
        ("incomplete_details", Value::Null),
    ] {
        assert_eq!(plain[field], unsaid, "{field}");
    }
    assert!(plain.get("user").is_none(), "there is no null for it in the dialect");
    let (created, completed) = (plain["created_at"].as_u64(), plain["completed_at"].as_u64());
    assert!(created <= completed && completed.is_some_and(|s| s.abs_diff(unix_s()) < 60), "{created:?} {completed:?}");

    let said = json!({
        "presence_penalty": 0.5, "frequency_penalty": -0.5, "temperature": 0.25, "top_p": 0.5, "user": "u-1",
        "safety_identifier": "s-1", "prompt_cache_key": "k-1", "service_tier": "flex", "metadata": { "a": "b" },
    });
    let asked = told(&gateway, RESPONSES, &response(said.clone()));
    let path = format!("{RESPONSES}/{}", asked["id"].as_str().expect("an id"));
    let kept = gateway.send(&Request::get(&path)).expect("an answer").json().expect("JSON");
    for (field, value) in said.as_object().expect("an object") {
        assert_eq!((&asked[field], &kept[field]), (value, value), "{field}");
    }
    assert_eq!(kept["completed_at"], asked["completed_at"]);
    let short = told(&gateway, RESPONSES, &response(json!({ "max_output_tokens": 2 })));
    assert_eq!((&short["status"], &short["completed_at"]), (&json!("incomplete"), &Value::Null));
}

#[test]
fn turns_are_read_as_items_with_all_that_items_have() {
    let (_server, gateway) = with_gateway(Settings::default());
    let answer = |input: Value| told(&gateway, RESPONSES, &response(json!({ "input": input })));
    let turns = json!([
        { "type": "message", "role": "system", "content": "You are a pirate." },
        { "type": "message", "role": "user", "content": "My name is Ada." },
        { "type": "message", "role": "assistant", "content": "Hello Ada!" },
        { "type": "message", "role": "user", "content": "Who am I?" },
    ]);
    // As answers have them: ids, states, phases, parts with notes.
    let full = json!([
        { "role": "developer", "content": [{ "type": "input_text", "text": "You are a pirate." }] },
        { "type": "message", "id": "msg_1", "status": "completed", "role": "user", "content": "My name is Ada." },
        { "type": "message", "id": "msg_2", "status": "completed", "role": "assistant", "phase": "final_answer",
          "content": [{ "type": "output_text", "text": "Hello Ada!", "annotations": [], "logprobs": [] }] },
        { "role": "user", "content": [{ "type": "input_text", "text": "Who am I?" }] },
    ]);
    let (whole, same) = (answer(turns), answer(full));
    assert_eq!(whole["status"], "completed");
    assert_eq!(whole["output"][0]["content"], same["output"][0]["content"]);
    assert_eq!(whole["usage"]["input_tokens"], same["usage"]["input_tokens"]);
    for part in [
        json!({ "type": "input_image", "image_url": "data:image/png;base64,AAAA" }),
        json!({ "type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA" }),
        json!({ "type": "input_video", "video_url": "https://example.org/a.mp4" }),
    ] {
        let input = json!([{ "type": "message", "role": "user", "content": [part] }]);
        let error =
            gateway_refusal(&ask(&gateway, RESPONSES, &response(json!({ "input": input }))), 400, "invalid_value");
        assert_eq!(error["param"], "input", "{error}");
    }
}

#[test]
fn every_event_is_about_the_item_that_was_announced_and_the_last_has_them_all() {
    let (_server, gateway) = with_functions();
    let called = json!({ "tools": [weather()], "tool_choice": "required", "max_output_tokens": 400 });
    for changes in [json!({}), json!({ "max_output_tokens": 3 }), called] {
        let streamed = events(&gateway, &response(changes.clone()));
        let id = streamed[0]["response"]["id"].clone();
        let (mut done, mut open) = (Vec::new(), None::<Value>);
        for event in &streamed {
            match event["type"].as_str().expect("a type") {
                "response.output_item.added" => {
                    assert_eq!((&open, &event["output_index"]), (&None, &json!(done.len())), "one after the other");
                    assert!(["in_progress"].contains(&event["item"]["status"].as_str().expect("a status")));
                    open = Some(event["item"]["id"].clone());
                }
                "response.output_item.done" => {
                    assert_eq!(open.take().as_ref(), Some(&event["item"]["id"]));
                    done.push(event["item"].clone());
                }
                _ if event["response"].is_object() => assert_eq!(event["response"]["id"], id),
                _ => assert_eq!((open.as_ref(), &event["output_index"]), (Some(&event["item_id"]), &json!(done.len()))),
            }
        }
        let last = &streamed.last().expect("an end")["response"];
        assert_eq!((&last["output"], open), (&json!(done), None), "{changes}");
        assert_eq!(streamed.iter().filter(|e| e["type"].as_str() == Some("response.created")).count(), 1);
        assert_eq!(last["usage"]["output_tokens_details"], json!({ "reasoning_tokens": 0 }));
    }
}

#[test]
fn a_function_is_called_and_its_result_is_answered_without_telling_it_again() {
    let (_server, gateway) = with_functions();
    let choice = json!({ "type": "function", "name": "weather" });
    let asked = response(json!({ "tools": [weather()], "tool_choice": choice, "max_output_tokens": 400 }));
    let first = told(&gateway, RESPONSES, &asked);
    let call = first["output"].as_array().expect("items").last().expect("a call").clone();
    assert_eq!(
        (&call["type"], &call["name"], &call["status"]),
        (&json!("function_call"), &json!("weather"), &json!("completed"))
    );
    let tool = &first["tools"][0];
    assert_eq!((&tool["parameters"], &tool["strict"]), (&weather()["parameters"], &json!(false)));
    let result =
        |output: Value| json!([{ "type": "function_call_output", "call_id": call["call_id"], "output": output }]);
    let next = |output: Value| {
        let body = response(json!({ "input": result(output), "previous_response_id": first["id"] }));
        told(&gateway, RESPONSES, &body)
    };
    let (plain, parts) = (next(json!("64 degrees")), next(json!([{ "type": "input_text", "text": "64 degrees" }])));
    assert!(plain["output"][0]["content"][0]["text"].is_string(), "{plain}");
    assert_eq!(plain["usage"]["input_tokens"], parts["usage"]["input_tokens"]);
    let bare = told(
        &gateway,
        RESPONSES,
        &response(json!({ "tools": [{ "type": "function", "name": "f" }], "max_output_tokens": 2 })),
    );
    let wanted = json!({ "type": "function", "name": "f", "description": null, "parameters": null, "strict": false });
    assert_eq!(bare["tools"], json!([wanted]));
}
