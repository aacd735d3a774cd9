//! What steers the choice of tokens: a bias, a least length, and the alternatives that were not taken.

mod common;

use common::*;
use serde_json::{Value, json};

/// Ends by itself after a few tokens.
fn greeting() -> Value {
    let mut task = task_with(json!({ "prompt": null, "max_tokens": 60, "logprobs": true }));
    task["messages"] = json!([{ "role": "user", "content": "Hello! Who are you?" }]);
    task
}

fn with(changes: Value) -> Value {
    let mut task = greeting();
    task.as_object_mut().expect("a task").extend(changes.as_object().expect("changes").clone());
    task
}

fn ids(events: &[Event]) -> Vec<u64> {
    events.iter().filter(|e| e.name == "token").filter_map(|e| e.field("id").as_u64()).collect()
}

#[test]
fn a_bias_forbids_a_token_or_makes_it_certain() {
    let server = server();
    let first = ids(&run(&server, &greeting()))[0];
    let forbidden = run(&server, &with(json!({ "logit_bias": { first.to_string(): -100 } })));
    assert!(!ids(&forbidden).contains(&first), "a forbidden token was said");
    let certain = run(&server, &with(json!({ "logit_bias": { first.to_string(): 100 }, "max_tokens": 5 })));
    assert_eq!(ids(&certain), [first; 5]);
}

#[test]
fn an_answer_is_as_long_as_it_must_be() {
    let server = server();
    let natural = end_of(&run(&server, &greeting()));
    assert_eq!(natural["finish_reason"], "stop");
    let length = natural["tokens_out"].as_u64().expect("a count");
    assert!(length < 50, "it ended at {length}");
    let longer = end_of(&run(&server, &with(json!({ "min_tokens": 60 }))));
    assert_eq!((&longer["tokens_out"], &longer["finish_reason"]), (&json!(60), &json!("length")));
}

#[test]
fn the_likeliest_tokens_come_with_each_token() {
    let server = server();
    let events = run(&server, &with(json!({ "top_logprobs": 3 })));
    for event in events.iter().filter(|e| e.name == "token") {
        let token = event.json().expect("JSON");
        let top = token["top_logprobs"].as_array().expect("alternatives");
        assert_eq!(top.len(), 3);
        assert_eq!((&top[0]["id"], &top[0]["logprob"]), (&token["id"], &token["logprob"]), "greedy takes the first");
        let values: Vec<f64> = top.iter().map(|t| t["logprob"].as_f64().expect("a number")).collect();
        assert!(values.is_sorted_by(|a, b| a >= b) && values.iter().all(|v| *v <= 0.0), "{values:?}");
    }
}

#[test]
fn what_means_nothing_is_refused_with_its_field() {
    let server = server();
    for (changes, field) in [
        (json!({ "logit_bias": { "the": 1 } }), "logit_bias"),
        (json!({ "logit_bias": { "1": 101 } }), "logit_bias"),
        (json!({ "logit_bias": { "9999999": 1 } }), "logit_bias"),
        (json!({ "min_tokens": 61 }), "min_tokens"),
        (json!({ "top_logprobs": 21 }), "top_logprobs"),
        (json!({ "top_logprobs": 2, "logprobs": false }), "top_logprobs"),
    ] {
        let said = refusal(&post(&server, "/v1/tasks", &with(changes)), 400, "INVALID_PARAMS");
        assert!(said["message"].as_str().expect("a message").contains(&format!("`{field}`")), "{said}");
    }
}
