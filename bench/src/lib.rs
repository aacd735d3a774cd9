//! The load generator, our server on a paced engine, and inputs that several benches share.

pub mod counting;
pub mod grade;
pub mod load;
pub mod neighbour;
pub mod null_server;
pub mod outcomes;
pub mod pace;
pub mod paced;
pub mod startup;
pub mod table;
pub mod tax;

pub mod sim;

use std::sync::Arc;

use orchestratord_engine::{
    BLOCK_LEN, Engine, EngineOptions, FinishReason, Model, SequenceRequest, TokenSink, Verdict,
};

/// A POST's head as a browser-like client sends it: 11 lines, about 420 bytes.
pub const HEAD: &str = "POST /v1/tasks HTTP/1.1\r\n\
    Host: 127.0.0.1:8080\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)\r\n\
    Accept: text/event-stream\r\n\
    Accept-Encoding: gzip, deflate, br\r\n\
    Accept-Language: en-GB,en;q=0.9\r\n\
    Content-Type: application/json\r\n\
    Content-Length: 600\r\n\
    X-API-Key: 0123456789abcdef0123456789abcdef\r\n\
    X-Correlation-Id: 7c1ae8d0-3c3c-4b1e-9f0e-2a6f4e2b8a01\r\n\
    Connection: keep-alive\r\n\r\n";

/// The body of a task whose prompt has `prompt_len` bytes.
pub fn task_body(prompt_len: usize) -> Vec<u8> {
    let words = "the quick brown fox jumps over the lazy dog and \\\"sleeps\\\" ";
    let prompt: String = words.chars().cycle().take(prompt_len / words.len() * words.len()).collect();
    format!(
        r#"{{"task_id":"7c1ae8d0-3c3c-4b1e-9f0e-2a6f4e2b8a01","session_id":"7c1ae8d0-3c3c-4b1e-9f0e-2a6f4e2b8a02",
        "workload":"completion","model_ref":"wren","engine":"cpu","ctx":2048,"priority":"interactive",
        "max_tokens":64,"deadline_ms":60000,"temperature":0.7,"top_p":0.9,"seed":7,"prompt":"{prompt}"}}"#
    )
    .into_bytes()
}

/// An engine over the built-in model, on one thread.
///
/// # Panics
///
/// When the built-in model cannot be loaded.
pub fn engine(slots_max: usize) -> Engine {
    let model = Model::from_static(orchestratord::default_model::bytes()).expect("the built-in model is sound");
    let kv_blocks_max = slots_max * (model.info().context_length as usize).div_ceil(BLOCK_LEN);
    let options =
        EngineOptions { slots_max, step_rows_max: 128.max(slots_max), kv_blocks_max, ..EngineOptions::default() };
    Engine::new(Arc::new(model), options).expect("the options are legal")
}

/// A request of `prompt_len` tokens that decodes for as long as the context allows.
pub fn long_request(id: u64, prompt_len: u32) -> SequenceRequest {
    SequenceRequest {
        id,
        prompt: (0..prompt_len).map(|n| 100 + (n * 7 + id as u32 * 13) % 1000).collect(),
        max_tokens: 2048 - prompt_len,
        reuse: false,
        ignore_end: true,
        ..SequenceRequest::default()
    }
}

/// Takes tokens and forgets them.
pub struct Ignore;

impl TokenSink for Ignore {
    fn token(&mut self, _: u64, _: u32, _: Option<f32>) -> Verdict {
        Verdict::Continue
    }

    fn finished(&mut self, _: u64, _: FinishReason) {}
}
