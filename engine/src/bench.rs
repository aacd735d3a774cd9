//! How fast an engine is on this machine, and how near to what memory allows.

use std::sync::Arc;
use std::time::Instant;

use crate::{Engine, EngineError, EngineOptions, FinishReason, Isa, Model, SequenceRequest, TokenSink, Verdict};

/// What is to be measured.
#[derive(Clone, Copy, Debug)]
pub struct BenchOptions {
    /// Threads that compute.
    pub threads: usize,
    /// Tokens of the prompt.
    pub prompt_len: usize,
    /// Tokens decoded after it.
    pub decode_len: usize,
    /// Sequences that decode together; their prompts have one token each if there are several.
    pub sequences: usize,
    /// Instruction set of the kernels; none is the one that is taken by itself.
    pub isa: Option<Isa>,
}

/// What was measured, once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Prompt tokens per second.
    pub prefill_tokens_per_s: f64,
    /// Tokens per second, of all sequences together.
    pub decode_tokens_per_s: f64,
    /// Bytes of weights and KV cache that a decode step reads.
    pub step_bytes: u64,
    /// Bytes per second that as many threads read from memory without doing anything else, right after.
    pub read_bytes_per_s: f64,
}

impl Speed {
    /// Share of the read bandwidth that decode steps of `sequences` use.
    pub fn bandwidth_share(&self, sequences: usize) -> f64 {
        self.decode_tokens_per_s / sequences as f64 * self.step_bytes as f64 / self.read_bytes_per_s
    }
}

/// Bytes that the bandwidth is measured over: more than any cache that a few cores have to themselves.
const READ_LEN: usize = 1 << 29;

/// Runs a prompt and a decode on an engine of its own.
///
/// # Errors
///
/// When the model's context is too short for what is asked, or the device fails.
pub fn measure(model: &Arc<Model>, options: BenchOptions) -> Result<Speed, EngineError> {
    let BenchOptions { threads, prompt_len, decode_len, sequences, isa } = options;
    let prompt_len = if sequences > 1 { 1 } else { prompt_len };
    let blocks = (prompt_len + decode_len + 2).div_ceil(crate::BLOCK_LEN);
    let mut engine = Engine::new(
        model.clone(),
        EngineOptions {
            slots_max: sequences,
            step_rows_max: prompt_len.max(sequences),
            kv_blocks_max: blocks * sequences,
            threads,
            isa,
            ..EngineOptions::default()
        },
    )?;
    let vocab_len = model.info().vocab_len as u32;
    let mut sink = Nobody;
    // A first, short sequence touches every page and grows every buffer.
    for warm in [true, false] {
        let prompt_len = if warm { 1 } else { prompt_len };
        for id in 0..sequences as u64 {
            let prompt = (0..prompt_len as u32).map(|i| (i * 7919 + id as u32 * 31 + 1) % vocab_len).collect();
            let max_tokens = if warm { 1 } else { decode_len as u32 + 1 };
            let request = SequenceRequest { id, prompt, max_tokens, ignore_end: true, ..SequenceRequest::default() };
            engine.admit(request).map_err(|e| EngineError::Tokens(e.to_string()))?;
        }
        if warm {
            engine.step(&mut sink)?;
        }
    }
    let start = Instant::now();
    engine.step(&mut sink)?;
    let prefill = start.elapsed().as_secs_f64();
    let start = Instant::now();
    for _ in 0..decode_len {
        engine.step(&mut sink)?;
    }
    let decode = start.elapsed().as_secs_f64();
    let info = model.info();
    let cells = sequences * (prompt_len + decode_len / 2);
    drop(engine);
    Ok(Speed {
        prefill_tokens_per_s: (sequences * prompt_len) as f64 / prefill,
        decode_tokens_per_s: (sequences * decode_len) as f64 / decode,
        step_bytes: info.step_weights_bytes + (cells * info.kv_bytes_per_token) as u64,
        read_bytes_per_s: read_bandwidth(threads),
    })
}

/// Bytes per second that `threads` read together: the best of three passes over memory of their own.
pub fn read_bandwidth(threads: usize) -> f64 {
    let threads = threads.max(1);
    let words: Vec<u64> = vec![1; READ_LEN / 8];
    let pass = || {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in words.chunks(words.len().div_ceil(threads)) {
                scope.spawn(|| std::hint::black_box(sum(part)));
            }
        });
        READ_LEN as f64 / start.elapsed().as_secs_f64()
    };
    (0..3).map(|_| pass()).fold(0.0, f64::max)
}

/// Sixteen sums that do not wait for each other, so that loads are all there is.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; 16];
    for chunk in words.as_chunks::<16>().0 {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}

struct Nobody;

impl TokenSink for Nobody {
    fn token(&mut self, _: u64, _: u32, _: Option<f32>) -> Verdict {
        Verdict::Continue
    }

    fn finished(&mut self, _: u64, _: FinishReason) {}
}
