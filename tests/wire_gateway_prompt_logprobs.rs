//! How likely a prompt's own tokens are, as `echo` with `logprobs` tells it: what harnesses that score texts ask for.

mod common;

use std::sync::Arc;

use common::gateway::*;
use common::*;
use orchestratord_engine::{Engine, EngineOptions, Model};
use serde_json::{Value, json};

const TEXT: &str = "/v1/completions";
const PROMPT: &str = "Once upon a time, there was a small fox named Pip. It had a naïve friend — 🦊 — who";

fn scored(changes: Value) -> Value {
    let mut body = json!({
        "model": "wren", "prompt": PROMPT, "temperature": 0, "max_tokens": 4, "ignore_eos": true, "echo": true,
        "logprobs": 3,
    });
    body.as_object_mut().expect("an object").extend(changes.as_object().expect("changes").clone());
    body
}

fn tokens_of(gateway: &Client, text: &str) -> Vec<u32> {
    let made = told(gateway, "/tokenize", &json!({ "prompt": text }));
    serde_json::from_value(made["tokens"].clone()).expect("tokens")
}

/// Log-probabilities after each token of wren, by a pass of the engine over all of them at once.
fn log_softmax(tokens: &[u32]) -> Vec<Vec<f64>> {
    let bytes = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/engine/models/wren.gguf")).expect("the model");
    let model = Arc::new(Model::from_vec(bytes).expect("a sound model"));
    let vocab_len = model.tokenizer().vocab_len();
    let mut engine = Engine::new(model, EngineOptions::default()).expect("legal options");
    let logits = engine.forward_logits(tokens).expect("the CPU does not fail");
    let one = |row: &[f32]| {
        let sum = row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
        row.iter().map(|x| f64::from(*x) - sum).collect()
    };
    logits.chunks_exact(vocab_len).map(one).collect()
}

fn column<'a>(choice: &'a Value, name: &str) -> &'a [Value] {
    choice["logprobs"][name].as_array().unwrap_or_else(|| panic!("{name} of {choice}"))
}

#[test]
fn they_are_the_models_own_and_stand_before_the_answers() {
    let (_server, gateway) = with_gateway(Settings::default());
    let whole = told(&gateway, TEXT, &scored(json!({})));
    let choice = &whole["choices"][0];
    let text = choice["text"].as_str().expect("text");
    assert!(text.starts_with(PROMPT) && text.len() > PROMPT.len(), "{text:?}");
    let prompt = tokens_of(&gateway, PROMPT);
    assert_eq!(whole["usage"]["prompt_tokens"], prompt.len());
    for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(column(choice, name).len(), prompt.len() + 4, "{name}");
    }
    assert!(column(choice, "token_logprobs")[0].is_null() && column(choice, "top_logprobs")[0].is_null());

    let wanted = log_softmax(&prompt);
    for (place, token) in prompt.iter().enumerate().skip(1) {
        let logprob = column(choice, "token_logprobs")[place].as_f64().expect("a number");
        let row = &wanted[place - 1];
        assert!((logprob - row[*token as usize]).abs() < 1e-4, "{logprob} at {place}");
        let top = column(choice, "top_logprobs")[place].as_object().expect("tokens");
        let best = top.values().filter_map(Value::as_f64).fold(f64::NEG_INFINITY, f64::max);
        let likeliest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        assert!((best - likeliest).abs() < 1e-4 && (1..=4).contains(&top.len()), "{top:?} at {place}");
        let own = column(choice, "tokens")[place].as_str().expect("text");
        assert!(top.contains_key(own), "{own:?} is none of {top:?}");
    }

    // Where each token begins, in characters.
    let characters: Vec<char> = text.chars().collect();
    let offsets: Vec<usize> =
        column(choice, "text_offset").iter().map(|o| o.as_u64().expect("a place") as usize).collect();
    assert!(offsets[0] == 0 && offsets.is_sorted(), "{offsets:?}");
    for (place, token) in column(choice, "tokens").iter().enumerate() {
        let token = token.as_str().expect("text");
        if !token.contains(char::REPLACEMENT_CHARACTER) && place > 1 {
            let there: String = characters[offsets[place]..].iter().take(token.chars().count()).collect();
            assert_eq!(there, token, "at {place} of {offsets:?}");
        }
    }
}

#[test]
fn they_are_the_same_in_pieces_from_a_warm_session_and_in_a_crowd() {
    let settings = Settings::default().with("slots_max", 3).with("step_rows_max", 5);
    let (_server, gateway) = with_gateway(settings);
    let prompt = PROMPT.repeat(4);
    let body = |changes: Value| {
        let mut body = scored(json!({ "prompt": prompt, "prompt_cache_key": "warm" }));
        body.as_object_mut().expect("an object").extend(changes.as_object().expect("changes").clone());
        body
    };
    told(&gateway, TEXT, &body(json!({ "echo": false, "logprobs": null })));
    let warm = told(&gateway, TEXT, &body(json!({ "echo": false, "logprobs": null })));
    assert_ne!(warm["usage"]["prompt_tokens_details"]["cached_tokens"], 0, "the session is warm");
    let whole = told(&gateway, TEXT, &body(json!({})));
    assert_eq!(whole["usage"]["prompt_tokens_details"]["cached_tokens"], 0, "and all of it was computed");

    let twice = told(&gateway, TEXT, &body(json!({ "n": 2, "prompt": [prompt, "A fox"] })));
    assert_eq!(twice["choices"][0]["logprobs"], whole["choices"][0]["logprobs"]);
    assert_eq!(twice["choices"][1]["logprobs"], whole["choices"][0]["logprobs"]);
    assert!(twice["choices"][3]["text"].as_str().expect("text").starts_with("A fox"));

    let streamed = chunks(&gateway, TEXT, &body(json!({})));
    for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        let pieces = streamed.iter().filter(|c| !c["choices"][0]["logprobs"].is_null());
        let joined: Vec<Value> = pieces.flat_map(|c| column(&c["choices"][0], name).to_vec()).collect();
        assert_eq!(joined, column(&whole["choices"][0], name), "{name}");
    }
    let joined: String = streamed.iter().map(|c| c["choices"][0]["text"].as_str().expect("text")).collect();
    assert_eq!(joined, whole["choices"][0]["text"].as_str().expect("text"));
}

#[test]
fn a_prompt_may_be_all_that_is_told_of() {
    let (server, gateway) = with_gateway(Settings::default());
    let whole = told(&gateway, TEXT, &scored(json!({})));
    let prompt = tokens_of(&gateway, PROMPT);
    let only = told(&gateway, TEXT, &scored(json!({ "max_tokens": 0, "prompt": prompt })));
    let choice = &only["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(PROMPT), &json!("length")));
    for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(column(choice, name), &column(&whole["choices"][0], name)[..prompt.len()], "{name}");
    }
    assert_eq!(
        (&only["usage"]["completion_tokens"], &only["usage"]["total_tokens"]),
        (&json!(0), &json!(prompt.len()))
    );
    let silent = told(&gateway, TEXT, &scored(json!({ "max_tokens": 0, "logprobs": null })));
    assert_eq!((&silent["choices"][0]["text"], &silent["choices"][0]["logprobs"]), (&json!(PROMPT), &Value::Null));
    let streamed =
        chunks(&gateway, TEXT, &scored(json!({ "max_tokens": 0, "stream_options": { "include_usage": true } })));
    assert_eq!(streamed[0]["choices"][0]["text"], PROMPT);
    assert_eq!(streamed.last().expect("usage")["usage"]["completion_tokens"], 0);
    // A text of one token has nothing before it.
    let one = told(&gateway, TEXT, &scored(json!({ "max_tokens": 0, "prompt": [7] })));
    assert_eq!(column(&one["choices"][0], "token_logprobs"), [Value::Null]);

    let spent = server.client().send(&Request::get("/metrics")).expect("metrics").text();
    let tokens = spent.lines().find(|line| line.starts_with("tokens_out_total")).expect("the series").to_owned();
    assert!(tokens.ends_with(" 4"), "only the answer was counted: {tokens}");
    for (changes, param) in [
        (json!({ "max_tokens": 0, "echo": false }), "max_tokens"),
        (json!({ "max_tokens": 0, "min_tokens": 1 }), "min_tokens"),
        (json!({ "suffix": "the end" }), "suffix"),
        (json!({ "logprobs": 21 }), "logprobs"),
    ] {
        let error = gateway_refusal(&ask(&gateway, TEXT, &scored(changes)), 400, "invalid_value");
        assert_eq!(error["param"], param, "{error}");
    }
}

#[test]
fn their_transcript_replays_to_the_same_bits() {
    let (server, gateway) = with_gateway(Settings::default());
    let url = format!("http://{}", server.address());
    let replay = |id: &str, more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_orchestratord"));
        let output = command.arg("replay").arg(id).args(more).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), said)
    };
    let count = tokens_of(&gateway, PROMPT).len() - 1;
    for (max_tokens, scores) in [(4, "before_answer"), (0, "only")] {
        let whole = told(&gateway, TEXT, &scored(json!({ "max_tokens": max_tokens })));
        let id = whole["choices"][0]["orchestratord"]["transcript"].as_str().expect("an id").to_owned();
        let (same, said) = replay(&id, &["--url", &url, "--key", KEY]);
        assert!(same && said.starts_with(&format!("identical: {} tokens", count + max_tokens)), "{said}");
        let path = format!("/v1/artifacts/{id}");
        let mut document = server.client().send(&Request::get(&path)).expect("it is kept").json().expect("JSON");
        assert_eq!(document["metadata"]["prompt_logprobs"], scores);
        let events = document["content"]["events"].as_array_mut().expect("events");
        let place = events.iter().position(|e| e["type"] == "prompt").expect("one for each token but the first");
        assert_eq!(events[place]["data"]["i"], 1);
        events[place]["data"]["top_logprobs"][0]["logprob"] = json!(-0.125);
        let folder = Scratch::new().expect("a folder");
        let other = folder.path().join("other.json");
        std::fs::write(&other, document.to_string()).expect("a file");
        let (same, said) = replay(&other.display().to_string(), &[]);
        assert!(!same && said.starts_with("differs at token 0"), "{said}");
    }
}
