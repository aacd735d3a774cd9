//! The same task with the same seed gives the same token events, byte for byte, whatever else goes on.

mod common;

use std::sync::Arc;
use std::thread;

use common::*;
use serde_json::{Value, json};

/// Greedy, sampled in two ways, with penalties, and a chat: each with a seed of its own.
fn tasks() -> Vec<Value> {
    let base = json!({ "ctx": 512, "max_tokens": 48, "ignore_end": true, "logprobs": true, "seed": 0x00c0_ffee });
    let variants = [
        json!({}),
        json!({ "temperature": 0.8 }),
        json!({ "temperature": 1.2, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "seed": 9_007_199_254_740_991_u64 }),
        json!({ "temperature": 0.7, "repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.25 }),
        json!({ "prompt": null, "messages": [{ "role": "user", "content": "What do you see?" }] }),
        // Longer than one step's rows, so that its prefill is cut into chunks.
        json!({ "prompt": "The little bird sat on the wall and looked at the sea. ".repeat(16), "ctx": 1024 }),
    ];
    let with = |variant: &Value| {
        let mut changes = base.clone();
        changes.as_object_mut().expect("an object").extend(variant.as_object().expect("an object").clone());
        task_with(changes)
    };
    variants.iter().map(with).collect()
}

/// The same task under another id and in another session.
fn again(task: &Value) -> Value {
    let mut task = task.clone();
    task["task_id"] = json!(uuid());
    task["session_id"] = json!(uuid());
    task
}

fn tokens(server: &Server, task: &Value) -> Vec<String> {
    enqueue(server, task);
    let events = finish_within(&open(server, task), CROWD_PATIENCE);
    let tokens: Vec<String> = sse::token_data(&events).into_iter().map(str::to_owned).collect();
    assert_eq!(tokens.len(), 48, "{task}");
    tokens
}

#[test]
fn the_same_task_gives_the_same_bytes_alone_in_a_crowd_and_with_a_warm_cache() {
    let server = Arc::new(server());
    let tasks = tasks();
    // Alone, with nothing in the cache: each on a server of its own would be the same, only slower.
    let alone: Vec<_> = tasks.iter().map(|task| tokens(&server, &cold(task))).collect();
    for (task, expected) in tasks.iter().zip(&alone) {
        assert_eq!(&tokens(&server, &again(task)), expected, "a second time: {task}");
        assert_eq!(&tokens(&server, &again(task)), expected, "after its prefix was cached: {task}");
    }
    assert!(metric(&server, "prefix_cache_hit_tokens_total", &[]) > 0.0, "nothing came from the cache");

    let crowd: Vec<_> = (0..16)
        .map(|number| {
            let server = server.clone();
            let task = task_with(json!({
                "ctx": 512,
                "max_tokens": 96,
                "ignore_end": true,
                "temperature": 0.9,
                "seed": number,
                "prompt": format!("{} number {number} is in the way", "Somebody ".repeat(number + 1)),
            }));
            thread::spawn(move || {
                enqueue(&server, &task);
                finish_within(&open(&server, &task), CROWD_PATIENCE).len()
            })
        })
        .collect();
    wait_until("the crowd to run", || metric(&server, "sequences_running", &[]) >= 8.0);
    let among: Vec<_> = tasks
        .iter()
        .map(|task| {
            let (server, task) = (server.clone(), again(task));
            thread::spawn(move || tokens(&server, &task))
        })
        .collect();
    for ((thread, expected), task) in among.into_iter().zip(&alone).zip(&tasks) {
        assert_eq!(&thread.join().expect("a stream"), expected, "among 16 others: {task}");
    }
    for thread in crowd {
        assert!(thread.join().expect("a stream") > 96);
    }
}

/// The task, told to use nothing of the cache.
fn cold(task: &Value) -> Value {
    let mut task = again(task);
    task["kv_hint"] = json!("cold");
    task
}

#[test]
fn the_same_task_gives_the_same_bytes_with_any_number_of_threads_and_rows() {
    let tasks = tasks();
    let on = |settings: Settings| -> Vec<Vec<String>> {
        let server = server_with(settings);
        tasks.iter().map(|task| tokens(&server, &again(task))).collect()
    };
    let expected = on(Settings::default().with("threads", 1));
    let two_threads = on(Settings::default().with("threads", 2).with("reactors", 2));
    assert_eq!(two_threads, expected, "with two threads");
    let small_steps = on(Settings::default().with("step_rows_max", 16));
    assert_eq!(small_steps, expected, "with small steps, so with other chunk borders");
    let other_driver = on(Settings::default().with("driver", "legacy").with("slots_max", 3));
    assert_eq!(other_driver, expected, "with another driver and fewer slots");
}

#[test]
fn another_seed_gives_another_text() {
    let server = server();
    let with_seed = |seed: u64| {
        let task = task_with(json!({ "max_tokens": 48, "ignore_end": true, "temperature": 1.0, "seed": seed }));
        sse::text(&run(&server, &task))
    };
    let texts: std::collections::BTreeSet<String> = (0..6).map(with_seed).collect();
    assert!(texts.len() >= 5, "six seeds gave {} texts", texts.len());
    let greedy = |seed: u64| {
        let task = task_with(json!({ "max_tokens": 32, "ignore_end": true, "seed": seed }));
        sse::text(&run(&server, &task))
    };
    assert_eq!(greedy(1), greedy(2), "a greedy task has no use for a seed");
}
