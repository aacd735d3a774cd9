//! Chat and plain completions at the gateway: what openai-python, openai-node and their kin read.

mod common;

use common::gateway::*;
use common::*;
use orchestratord_bdd::harness::scratch::Scratch;
use orchestratord_engine::testing::TinyModel;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn content(chunks: &[Value], index: u64) -> String {
    let choices = chunks.iter().flat_map(|c| c["choices"].as_array().expect("choices"));
    choices.filter(|c| c["index"] == index).filter_map(|c| c["delta"]["content"].as_str()).collect()
}

#[test]
fn a_chat_is_answered_the_same_whole_streamed_and_at_the_main_listener() {
    let (server, gateway) = with_gateway(Settings::default());
    let whole = told(&gateway, CHAT, &chat(json!({})));
    let text = whole["choices"][0]["message"]["content"].as_str().expect("text").to_owned();
    assert_eq!((&whole["object"], &whole["model"]), (&json!("chat.completion"), &json!("wren")));
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    assert_eq!(whole["choices"][0]["message"]["role"], "assistant");
    let usage = &whole["usage"];
    let count = |name: &str| usage[name].as_u64().expect("a count");
    assert_eq!(count("prompt_tokens") + count("completion_tokens"), count("total_tokens"));

    let streamed = chunks(&gateway, CHAT, &chat(json!({})));
    assert_eq!(streamed[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(content(&streamed, 0), text);
    let last = streamed.last().expect("chunks");
    assert_eq!((&last["choices"][0]["delta"], &last["choices"][0]["finish_reason"]), (&json!({}), &json!("stop")));
    assert!(streamed.iter().all(|c| c["object"] == "chat.completion.chunk" && c["id"] == streamed[0]["id"]));
    assert!(streamed.iter().all(|c| c["system_fingerprint"] == whole["system_fingerprint"]));
    assert!(streamed.iter().all(|c| c.get("usage").is_none()), "usage comes to those who ask for it");
    // One chunk for the role, one for each token that has text, one for the end.
    assert!(streamed.len() as u64 <= count("completion_tokens") + 2);

    let task = task_with(json!({
        "prompt": null, "messages": [{ "role": "user", "content": "Hello! Who are you?" }], "max_tokens": 40,
    }));
    assert_eq!(sse::text(&run(&server, &task)), text);
}

#[test]
fn usage_comes_in_a_chunk_of_its_own_without_choices() {
    let (_server, gateway) = with_gateway(Settings::default());
    let body = chat(json!({ "stream_options": { "include_usage": true } }));
    let streamed = chunks(&gateway, CHAT, &body);
    let (last, others) = streamed.split_last().expect("chunks");
    assert_eq!(last["choices"], json!([]));
    assert!(last["usage"]["completion_tokens"].as_u64().expect("a count") > 0);
    assert!(others.iter().all(|c| c["usage"].is_null() && c.get("usage").is_some()));
}

#[test]
fn logprobs_name_each_token_its_bytes_and_its_rivals() {
    let (_server, gateway) = with_gateway(Settings::default());
    let body = chat(json!({ "logprobs": true, "top_logprobs": 2, "max_tokens": 6 }));
    let whole = told(&gateway, CHAT, &body);
    let tokens = whole["choices"][0]["logprobs"]["content"].as_array().expect("tokens").clone();
    assert_eq!(tokens.len(), 6);
    let bytes = tokens.iter().flat_map(|t| t["bytes"].as_array().expect("bytes").clone());
    let bytes: Vec<u8> = bytes.map(|b| b.as_u64().expect("a byte") as u8).collect();
    assert_eq!(String::from_utf8(bytes).expect("UTF-8"), whole["choices"][0]["message"]["content"]);
    for token in &tokens {
        assert_eq!(token["top_logprobs"][0]["logprob"], token["logprob"], "greedy takes the likeliest");
        assert_eq!(token["top_logprobs"].as_array().expect("rivals").len(), 2);
    }
    let streamed = chunks(&gateway, CHAT, &body);
    let found = streamed.iter().filter_map(|c| c["choices"][0]["logprobs"]["content"].as_array()).flatten();
    assert_eq!(found.cloned().collect::<Vec<_>>(), tokens);
}

#[test]
fn a_seed_repeats_an_answer_and_several_answers_differ() {
    let (_server, gateway) = with_gateway(Settings::default());
    let body = |n: u32| chat(json!({ "temperature": 1.5, "seed": 7, "n": n, "max_tokens": 30, "ignore_eos": true }));
    let text = |whole: &Value, i: usize| whole["choices"][i]["message"]["content"].as_str().expect("text").to_owned();
    let one = told(&gateway, CHAT, &body(1));
    let three = told(&gateway, CHAT, &body(3));
    assert_eq!(three["choices"].as_array().expect("choices").len(), 3);
    assert_eq!(text(&one, 0), text(&three, 0));
    assert!(text(&three, 0) != text(&three, 1) && text(&three, 1) != text(&three, 2));
    assert_eq!(three["usage"]["completion_tokens"], 90);
    assert_eq!(three["usage"]["prompt_tokens"], one["usage"]["prompt_tokens"], "one prompt is counted once");
    let streamed = chunks(&gateway, CHAT, &body(3));
    (0..3).for_each(|i| assert_eq!(content(&streamed, i as u64), text(&three, i)));
    // Without a seed the one that was used is told, and it repeats the answer.
    let unseeded = told(&gateway, CHAT, &chat(json!({ "temperature": 1.5, "max_tokens": 30 })));
    let seed = unseeded["choices"][0]["orchestratord"]["seed"].clone();
    let again = told(&gateway, CHAT, &chat(json!({ "temperature": 1.5, "max_tokens": 30, "seed": seed })));
    assert_eq!(text(&again, 0), text(&unseeded, 0));
}

#[test]
fn sampling_fields_are_obeyed() {
    let (_server, gateway) = with_gateway(Settings::default());
    let finish = |body: &Value| told(&gateway, CHAT, body)["choices"][0]["finish_reason"].clone();
    assert_eq!(finish(&chat(json!({}))), "stop");
    assert_eq!(finish(&chat(json!({ "min_tokens": 40 }))), "length");
    assert_eq!(finish(&chat(json!({ "ignore_eos": true }))), "length");
    let plain = told(&gateway, CHAT, &chat(json!({})));
    let text = plain["choices"][0]["message"]["content"].as_str().expect("text");
    let stop = text.split_whitespace().nth(2).expect("three words");
    let cut = told(&gateway, CHAT, &chat(json!({ "stop": stop })));
    let shorter = cut["choices"][0]["message"]["content"].as_str().expect("text");
    assert!(text.starts_with(shorter) && !shorter.contains(stop), "{shorter:?} of {text:?}");
    let probe = told(&gateway, CHAT, &chat(json!({ "logprobs": true, "max_tokens": 1, "top_logprobs": 1 })));
    let word = probe["choices"][0]["logprobs"]["content"][0]["token"].as_str().expect("a token").to_owned();
    let ids = told(&gateway, "/tokenize", &json!({ "prompt": word, "add_special_tokens": false }))["tokens"].clone();
    let bias = json!({ ids[0].to_string(): -100 });
    let other = told(&gateway, CHAT, &chat(json!({ "logit_bias": bias })));
    assert_ne!(other["choices"][0]["message"]["content"], text);
}

#[test]
fn what_cannot_be_done_is_refused_by_name_and_never_ignored() {
    let (_server, gateway) = with_gateway(Settings::default());
    let tool = json!([{ "type": "function", "function": { "name": "f", "parameters": {} } }]);
    let long = "word ".repeat(3000);
    for (changes, param, code) in [
        (json!({ "tools": tool }), "tools", "invalid_value"),
        (json!({ "tool_choice": "required" }), "tool_choice", "invalid_value"),
        (json!({ "response_format": { "type": "xml" } }), "response_format", "invalid_value"),
        (json!({ "audio": { "voice": "x" } }), "audio", "invalid_value"),
        (json!({ "modalities": ["text", "audio"] }), "modalities", "invalid_value"),
        (json!({ "reasoning_effort": "high" }), "reasoning_effort", "invalid_value"),
        (json!({ "temperature": "hot" }), "temperature", "invalid_value"),
        (json!({ "temperature": -1 }), "temperature", "invalid_value"),
        (json!({ "top_p": 0 }), "top_p", "invalid_value"),
        (json!({ "n": 0 }), "n", "invalid_value"),
        (json!({ "n": 17 }), "n", "invalid_value"),
        (json!({ "max_tokens": 0 }), "max_tokens", "invalid_value"),
        (json!({ "max_tokens": 5, "max_completion_tokens": 6 }), "max_tokens", "invalid_value"),
        (json!({ "min_tokens": 41 }), "min_tokens", "invalid_value"),
        (json!({ "top_logprobs": 3 }), "top_logprobs", "invalid_value"),
        (json!({ "stream_options": { "include_usage": true } }), "stream_options", "invalid_value"),
        (json!({ "stream": true, "stream_options": { "colour": 1 } }), "stream_options", "invalid_value"),
        (json!({ "service_tier": "gold" }), "service_tier", "invalid_value"),
        (json!({ "logit_bias": { "x": 1 } }), "logit_bias", "invalid_value"),
        (json!({ "seed": -1 }), "seed", "invalid_value"),
        (json!({ "messages": [] }), "messages", "invalid_value"),
        (json!({ "messages": [{ "role": "wizard", "content": "x" }] }), "messages", "invalid_value"),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url", "image_url": {} }] }] }),
            "messages",
            "invalid_value",
        ),
        (json!({ "messages": [{ "role": "user", "content": long }] }), "messages", "context_length_exceeded"),
        (json!({ "max_tokens": 4000 }), "messages", "context_length_exceeded"),
    ] {
        let answer = ask(&gateway, CHAT, &chat(changes.clone()));
        let error = gateway_refusal(&answer, 400, code);
        assert_eq!(error["param"], param, "{changes}: {error}");
        assert_eq!(answer.header("x-should-retry"), Some("false"));
    }
    // What says only what is done anyway, or concerns nobody here, is taken.
    told(
        &gateway,
        CHAT,
        &chat(json!({
            "user": "u-1", "metadata": { "a": "b" }, "store": false, "service_tier": "flex", "tools": [],
            "tool_choice": "none", "response_format": { "type": "text" }, "modalities": ["text"], "stop": null,
            "messages": [
                { "role": "developer", "content": "Be brief." },
                { "role": "user", "content": [{ "type": "text", "text": "Hel" }, { "type": "text", "text": "lo" }] },
            ],
        })),
    );
}

#[test]
fn plain_completions_take_texts_and_tokens() {
    let (_server, gateway) = with_gateway(Settings::default());
    let body = |changes: Value| {
        let mut body = json!({ "model": "wren", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 12 });
        body.as_object_mut().expect("an object").extend(changes.as_object().expect("changes").clone());
        body
    };
    let text = |whole: &Value, i: usize| whole["choices"][i]["text"].as_str().expect("text").to_owned();
    let whole = told(&gateway, TEXT, &body(json!({})));
    assert_eq!(
        (&whole["object"], &whole["choices"][0]["finish_reason"]),
        (&json!("text_completion"), &json!("length"))
    );
    let tokens = told(&gateway, "/tokenize", &json!({ "prompt": "Once upon a time" }))["tokens"].clone();
    let by_tokens = told(&gateway, TEXT, &body(json!({ "prompt": tokens })));
    assert_eq!(text(&by_tokens, 0), text(&whole, 0));
    let both =
        told(&gateway, TEXT, &body(json!({ "prompt": ["Once upon a time", "The fox"], "n": 2, "temperature": 0 })));
    assert_eq!((text(&both, 0), text(&both, 1)), (text(&whole, 0), text(&whole, 0)), "greedy answers are equal");
    assert_ne!(text(&both, 2), text(&whole, 0));
    let echoed = told(&gateway, TEXT, &body(json!({ "echo": true })));
    assert_eq!(text(&echoed, 0), format!("Once upon a time{}", text(&whole, 0)));
    let streamed = chunks(&gateway, TEXT, &body(json!({ "echo": true })));
    let joined: String = streamed.iter().map(|c| c["choices"][0]["text"].as_str().expect("text")).collect();
    assert_eq!(joined, text(&echoed, 0));
    let scored = told(&gateway, TEXT, &body(json!({ "logprobs": 2 })));
    let logprobs = &scored["choices"][0]["logprobs"];
    let column = |name: &str| logprobs[name].as_array().expect("a column").len();
    assert_eq!(["tokens", "token_logprobs", "top_logprobs", "text_offset"].map(column), [12; 4]);
    for (changes, param) in [
        (json!({ "suffix": "the end" }), "suffix"), // wren has not learned it
        (json!({ "best_of": 3 }), "best_of"),
        (json!({ "prompt": [] }), "prompt"),
        (json!({ "prompt": [1, 99_999_999] }), "prompt"),
        (json!({ "messages": [] }), "messages"),
    ] {
        let error = gateway_refusal(&ask(&gateway, TEXT, &body(changes)), 400, "invalid_value");
        assert_eq!(error["param"], param, "{error}");
    }
}

#[test]
fn a_hole_is_filled_by_a_model_that_has_learned_it() {
    let folder = Scratch::new().expect("a folder");
    let model = folder.path().join("tiny.gguf");
    let marks = vec!["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"];
    std::fs::write(&model, TinyModel { marks, ..TinyModel::default() }.to_bytes()).expect("a model");
    let (_server, gateway) = with_gateway(Settings::default().with("model", model.display()));
    let body = |changes: Value| {
        let mut body = json!({ "model": "tiny", "temperature": 0, "max_tokens": 8, "ignore_eos": true });
        body.as_object_mut().expect("an object").extend(changes.as_object().expect("changes").clone());
        body
    };
    let whole = told(&gateway, TEXT, &body(json!({ "prompt": "a cat", "suffix": "sat" })));
    let tokens = |text: &str| {
        let made = told(&gateway, "/tokenize", &json!({ "prompt": text, "add_special_tokens": false }));
        made["tokens"].as_array().expect("tokens").clone()
    };
    let marked =
        [vec![json!(0), json!(297)], tokens("a cat"), vec![json!(298)], tokens("sat"), vec![json!(299)]].concat();
    let by_hand = told(&gateway, TEXT, &body(json!({ "prompt": marked })));
    assert_eq!(whole["choices"][0]["text"], by_hand["choices"][0]["text"]);
    assert_eq!(whole["usage"], by_hand["usage"]);
    let error = ask(&gateway, TEXT, &body(json!({ "prompt": [5, 6], "suffix": "sat" })));
    assert_eq!(gateway_refusal(&error, 400, "invalid_value")["param"], "suffix");
}

#[test]
fn text_becomes_tokens_and_tokens_text() {
    let (_server, gateway) = with_gateway(Settings::default());
    let text = "The fox said \"hello\" to 7 geese. Grüße 🦊";
    let made =
        told(&gateway, "/tokenize", &json!({ "content": text, "add_special": false, "return_token_strs": true }));
    assert_eq!(made["count"].as_u64().map(|c| c as usize), made["tokens"].as_array().map(Vec::len));
    assert_eq!(made["tokens"].as_array().map(Vec::len), made["token_strs"].as_array().map(Vec::len));
    assert_eq!(told(&gateway, "/detokenize", &json!({ "tokens": made["tokens"] }))["prompt"], text);
    let turns = json!({ "messages": [{ "role": "user", "content": "Hi" }] });
    let prompt = told(&gateway, "/apply-template", &turns)["prompt"].clone();
    assert_eq!(prompt, "<|bos|><|user|>Hi<|end|><|assistant|>");
    let counted = told(&gateway, "/tokenize", &turns)["count"].clone();
    assert_eq!(told(&gateway, CHAT, &chat(turns))["usage"]["prompt_tokens"], counted);
    let error = gateway_refusal(&ask(&gateway, "/detokenize", &json!({ "tokens": [9_999_999] })), 400, "invalid_value");
    assert_eq!(error["param"], "tokens");
}

#[test]
fn models_are_listed_and_others_are_not_found() {
    let (_server, gateway) = with_gateway(Settings::default());
    let get = |path: &str| gateway.send(&Request::get(path)).expect("an answer");
    let list = get("/v1/models").json().expect("JSON");
    assert_eq!((&list["object"], &list["data"][0]["id"]), (&json!("list"), &json!("wren")));
    assert_eq!(get("/v1/models/wren").json().expect("JSON"), list["data"][0]);
    let error = gateway_refusal(&get("/v1/models/org/other"), 404, "model_not_found");
    assert_eq!(error["param"], "model");
    gateway_refusal(&ask(&gateway, CHAT, &chat(json!({ "model": "gpt-4o" }))), 404, "model_not_found");
    gateway_refusal(&get("/v1/tasks"), 404, "not_found");
    let wrong = gateway.send(&Request::get(CHAT)).expect("an answer");
    gateway_refusal(&wrong, 405, "method_not_allowed");
    assert_eq!(wrong.header("Allow"), Some("POST"));
}
