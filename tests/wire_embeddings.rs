//! Vectors of texts: on the main listener, at the gateway, and again from their transcripts.

mod common;

use base64::Engine as _;
use common::gateway::{ask, gateway_refusal, told, with_gateway};
use common::*;
use serde_json::{Value, json};

fn embedding_of(changes: Value) -> Value {
    let mut task = task_with(json!({ "workload": "embedding" }));
    task.as_object_mut().expect("an object").extend(changes.as_object().expect("changes").clone());
    task
}

fn floats(vector: &Value) -> Vec<f32> {
    vector.as_array().expect("a vector").iter().map(|x| x.as_f64().expect("a number") as f32).collect()
}

fn vector(server: &Server, changes: Value) -> Vec<f32> {
    let events = run(server, &embedding_of(changes));
    let names: Vec<&str> = events.iter().map(|e| e.name.as_str()).collect();
    assert_eq!(names, ["started", "embedding", "end"]);
    let end = end_of(&events);
    assert_eq!((&end["finish_reason"], &end["tokens_out"]), (&json!("stop"), &json!(0)), "{end}");
    floats(&events[1].field("embedding"))
}

fn length(vector: &[f32]) -> f64 {
    vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn a_text_becomes_a_vector_of_length_one_beside_answers_as_alone() {
    let server = server_with(Settings::default().with("slots_max", 4));
    let text = json!({ "prompt": "Once upon a time there was a small fox named Pip." });
    let alone = vector(&server, text.clone());
    let capabilities = get(&server, "/v1/capabilities").json().expect("JSON");
    let engine = &capabilities["engines"][0];
    assert_eq!(engine["supported_workloads"], json!(["completion", "embedding"]));
    assert_eq!(engine["models"][0]["embedding_length"], json!(alone.len()));
    assert!((length(&alone) - 1.0).abs() < 1e-6);
    let (_, busy) = occupy(&server);
    wait_for_tokens(&busy, 3);
    assert_eq!(vector(&server, text.clone()), alone, "beside an answer");
    let inputs = |more: Value| {
        let mut inputs = json!({ "text": text["prompt"] });
        inputs.as_object_mut().expect("an object").extend(more.as_object().expect("more").clone());
        json!({ "prompt": null, "inputs": inputs })
    };
    assert_eq!(vector(&server, inputs(json!({}))), alone);
    let mean = vector(&server, inputs(json!({ "pooling": "mean" })));
    assert_ne!(mean, alone);
    let short = vector(&server, inputs(json!({ "dimensions": 8 })));
    assert!(short.len() == 8 && (length(&short) - 1.0).abs() < 1e-6);
    let scale = short[0] / alone[0];
    assert!(short.iter().zip(&alone).all(|(s, a)| (s - a * scale).abs() < 1e-5), "the same direction");
}

#[test]
fn a_vectors_transcript_replays_to_the_same_bits() {
    let server = server();
    for inputs in [json!({ "text": "A fox." }), json!({ "tokens": [5, 9, 17], "pooling": "mean", "dimensions": 16 })] {
        let events = run(&server, &embedding_of(json!({ "prompt": null, "inputs": inputs })));
        let id = end_of(&events)["artifact_id"].as_str().expect("a transcript").to_owned();
        let url = format!("http://{}", server.address());
        let replay = std::process::Command::new(env!("CARGO_BIN_EXE_orchestratord"))
            .args(["replay", &id, "--url", &url, "--key", KEY])
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&replay.stdout).into_owned() + &String::from_utf8_lossy(&replay.stderr);
        assert!(replay.status.success() && said.starts_with("identical: "), "{inputs}: {said}");
    }
}

#[test]
fn what_cannot_become_a_vector_is_refused_by_name() {
    let server = server();
    for (changes, names) in [
        (json!({ "workload": "rerank" }), "`workload`: model wren cannot do rerank"),
        (json!({ "prompt": null }), "`prompt`"),
        (json!({ "inputs": { "text": "a" } }), "`inputs`: cannot stand beside"),
        (json!({ "prompt": null, "inputs": { "text": "a", "tokens": [1] } }), "`inputs`"),
        (json!({ "prompt": null, "inputs": { "text": "a", "pooling": "cls" } }), "`inputs`"),
        (json!({ "prompt": null, "inputs": { "text": "a", "dimensions": 0 } }), "`inputs.dimensions`"),
        (json!({ "prompt": null, "inputs": { "text": "a", "dimensions": 100_000 } }), "`inputs.dimensions`"),
        (json!({ "prompt": null, "inputs": { "tokens": [4_000_000] } }), "token 4000000"),
        (json!({ "response_format": { "type": "json_object" } }), "`response_format`"),
        (json!({ "prompt": "word ".repeat(20_000) }), "`prompt`"),
    ] {
        let said = refusal(&post(&server, "/v1/tasks", &embedding_of(changes.clone())), 400, "INVALID_PARAMS");
        let message = said["message"].as_str().expect("a message");
        assert!(message.contains(names), "{changes}: {message}");
    }
}

#[test]
fn the_gateway_gives_the_same_vectors_in_both_encodings_and_in_order() {
    let (server, gateway) = with_gateway(Settings::default());
    let texts = ["A fox.", "Once upon a time", "The sun went down over the hill."];
    let wanted: Vec<Vec<f32>> = texts.iter().map(|t| vector(&server, json!({ "prompt": t }))).collect();
    let body = |changes: Value| {
        let mut body = json!({ "model": "wren", "input": texts });
        body.as_object_mut().expect("an object").extend(changes.as_object().expect("changes").clone());
        body
    };
    let path = "/v1/embeddings";
    let answer = told(&gateway, path, &body(json!({})));
    assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!("wren")));
    let data = answer["data"].as_array().expect("data");
    assert_eq!(data.len(), texts.len());
    for (index, (item, wanted)) in data.iter().zip(&wanted).enumerate() {
        assert_eq!((&item["object"], &item["index"]), (&json!("embedding"), &json!(index)));
        assert_eq!(&floats(&item["embedding"]), wanted, "text {index}");
    }
    let tokens: Vec<Value> = texts
        .iter()
        .map(|t| told(&gateway, "/tokenize", &json!({ "model": "wren", "prompt": t }))["tokens"].clone())
        .collect();
    let count: usize = tokens.iter().map(|t| t.as_array().expect("tokens").len()).sum();
    assert_eq!(answer["usage"], json!({ "prompt_tokens": count, "total_tokens": count }));
    let by_tokens = told(&gateway, path, &body(json!({ "input": tokens })));
    assert_eq!(by_tokens["data"], answer["data"]);
    let encoded = told(&gateway, path, &body(json!({ "encoding_format": "base64" })));
    for (item, wanted) in encoded["data"].as_array().expect("data").iter().zip(&wanted) {
        let text = item["embedding"].as_str().expect("base64");
        let bytes = base64::engine::general_purpose::STANDARD.decode(text).expect("base64");
        let floats: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        assert_eq!(&floats, wanted);
    }
    let short = told(&gateway, path, &body(json!({ "input": texts[0], "dimensions": 4 })));
    assert_eq!(floats(&short["data"][0]["embedding"]).len(), 4);
    for (changes, param) in [
        (json!({ "input": [] }), "input"),
        (json!({ "input": 7 }), "input"),
        (json!({ "input": vec!["a"; 129] }), "input"),
        (json!({ "dimensions": 0 }), "dimensions"),
        (json!({ "dimensions": 100_000 }), "dimensions"),
        (json!({ "encoding_format": "hex" }), "encoding_format"),
        (json!({ "stream": true }), "stream"),
    ] {
        let answer = ask(&gateway, path, &body(changes.clone()));
        assert_eq!(answer.status, 400, "{changes}: {}", answer.text());
        let error = answer.json().expect("JSON")["error"].clone();
        assert_eq!(error["param"], param, "{changes}: {error}");
    }
    gateway_refusal(&ask(&gateway, path, &body(json!({ "model": "albatross" }))), 404, "model_not_found");
}
