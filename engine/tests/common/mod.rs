//! What several test files share: engines over models in memory, and a sink that keeps everything.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::HashMap;
use std::sync::Arc;

use orchestratord_engine::backend::Backend;
use orchestratord_engine::gguf::TensorType;
use orchestratord_engine::testing::{Dice, TinyModel};
use orchestratord_engine::{
    Engine, EngineOptions, FinishReason, Isa, Model, SamplingParams, SequenceRequest, TokenSink, Verdict,
};

/// The built-in model's file.
pub fn wren() -> Vec<u8> {
    std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/models/wren.gguf")).expect("the built-in model is there")
}

pub fn model(bytes: Vec<u8>) -> Arc<Model> {
    Arc::new(Model::from_vec(bytes).expect("a sound model"))
}

/// Models that differ in what a forward pass has to get right.
pub fn shapes() -> Vec<TinyModel> {
    let base = TinyModel::default();
    let types = [TensorType::F32, TensorType::F16, TensorType::Bf16, TensorType::Q8_0];
    let mut all: Vec<TinyModel> = types.map(|tensor_type| TinyModel { tensor_type, ..base.clone() }).to_vec();
    all.push(TinyModel { head_count_kv: 4, untied: true, ..base.clone() });
    all.push(TinyModel { head_count: 6, head_count_kv: 1, rope_factors: true, ..base.clone() });
    all.push(TinyModel { architecture: "qwen2", biases: true, head_count_kv: 1, ..base.clone() });
    // Rows that are no whole vectors, and units that are no whole sixteen.
    let ragged = TinyModel { embedding_length: 48, feed_forward_length: 72, head_len: 10, ..base.clone() };
    all.push(TinyModel { tensor_type: TensorType::F32, layer_count: 3, ..ragged.clone() });
    all.push(TinyModel { tensor_type: TensorType::Bf16, untied: true, ..ragged });
    all.push(TinyModel { embedding_length: 544, feed_forward_length: 1056, vocab_len: 331, ..base.clone() });
    // Every tensor type, in rows of one, two and three of its largest blocks.
    let wide = TinyModel { embedding_length: 256, feed_forward_length: 768, head_len: 128, layer_count: 1, ..base };
    all.extend(TensorType::all().map(|tensor_type| TinyModel { tensor_type, ..wide.clone() }));
    all
}

/// Random tokens, no control tokens among them.
pub fn tokens(dice: &mut Dice, len: usize, vocab_len: usize) -> Vec<u32> {
    (0..len).map(|_| 5 + dice.below(vocab_len - 5) as u32).collect()
}

/// An engine of 4 slots on one thread unless `change` wants it otherwise.
pub fn engine(model: &Arc<Model>, change: impl FnOnce(&mut EngineOptions)) -> Engine {
    let mut options =
        EngineOptions { slots_max: 4, step_rows_max: 64, kv_blocks_max: 128, threads: 1, ..EngineOptions::default() };
    change(&mut options);
    Engine::new(model.clone(), options).expect("legal options")
}

/// A greedy request that neither uses nor fills the cache.
pub fn request(id: u64, prompt: &[u32], max_tokens: u32) -> SequenceRequest {
    let sampling = SamplingParams::default();
    SequenceRequest { id, prompt: prompt.into(), max_tokens, sampling, ignore_end: true, ..SequenceRequest::default() }
}

/// Bits of a token's log-probability, and the likeliest tokens in its place with theirs, if they are wanted.
pub type OfToken = (Option<u32>, Vec<(u32, u32)>);

/// Keeps tokens and the bits of the logits that they were sampled from, by sequence.
#[derive(Default)]
pub struct Record {
    pub logits: HashMap<u64, Vec<Vec<u32>>>,
    pub tokens: HashMap<u64, Vec<u32>>,
    /// What was told with each of them.
    pub logprobs: HashMap<u64, Vec<OfToken>>,
    pub top: Vec<(u32, u32)>,
    pub finished: Vec<u64>,
    pub reasons: HashMap<u64, FinishReason>,
    pub vectors: HashMap<u64, Vec<f32>>,
    /// Logits are not wanted.
    pub tokens_only: bool,
}

impl TokenSink for Record {
    fn token(&mut self, id: u64, token: u32, logprob: Option<f32>) -> Verdict {
        self.tokens.entry(id).or_default().push(token);
        let of_token = (logprob.map(f32::to_bits), std::mem::take(&mut self.top));
        self.logprobs.entry(id).or_default().push(of_token);
        Verdict::Continue
    }

    fn top_logprobs(&mut self, _: u64, top: &[(u32, f32)]) {
        self.top = top.iter().map(|(token, logprob)| (*token, logprob.to_bits())).collect();
    }

    fn embedding(&mut self, id: u64, vector: &[f32]) {
        self.vectors.insert(id, vector.to_vec());
    }

    fn finished(&mut self, id: u64, reason: FinishReason) {
        self.finished.push(id);
        self.reasons.insert(id, reason);
    }

    fn wants_logits(&self, _: u64) -> bool {
        !self.tokens_only
    }

    fn logits(&mut self, id: u64, logits: &[f32]) {
        self.logits.entry(id).or_default().push(logits.iter().map(|x| x.to_bits()).collect());
    }
}

impl Record {
    /// Logits of a sequence's steps as numbers.
    pub fn floats(&self, id: u64) -> Vec<Vec<f32>> {
        self.logits[&id].iter().map(|row| row.iter().map(|bits| f32::from_bits(*bits)).collect()).collect()
    }
}

/// Steps until nothing is left to do.
pub fn drain<B: Backend>(engine: &mut Engine<B>, record: &mut Record) {
    while !engine.is_idle() {
        engine.step(record).expect("the CPU does not fail");
        engine.check_integrity();
    }
}

/// Whether an instruction set rounds the activations that weights of this type meet.
pub fn rounds(isa: Isa, tensor_type: TensorType) -> bool {
    isa.multiplies_pairs() && tensor_type == TensorType::Bf16
}

/// Every instruction set of this machine.
pub fn isas() -> Vec<Isa> {
    Isa::detect()
}
