//! Random models, tiny or of real shapes, and repeatable dice, for tests and measurements here and in the crates above. No
//! part of the interface.
#![allow(missing_docs, reason = "for tests")]

pub mod choices;
pub mod emulator;
mod shapes;

pub use orchestratord_cpu::testing::{Dice, encode};

pub use shapes::SHAPES;

use crate::gguf::TensorType;

/// By how much logits of a CUDA engine may be off those of the CPU: 1e-3 for the order of sums, and what keys and values in
/// half precision make. Each of those is off by up to 2^-12 of itself, in a random direction, in every layer; so what a layer
/// adds, and in the end a logit, is off by a few times that share of the largest one. Twelve times is allowed; random models of the tests have up to seven.
pub fn half_cells_error_max(logits: &[f32]) -> f64 {
    let largest = logits.iter().fold(0.0f32, |most, logit| most.max(logit.abs()));
    1e-3 + 12.0 * f64::from(largest) / 4096.0
}

/// A Llama-shaped model with random weights, written as a GGUF file. Same fields, same bytes.
#[derive(Clone, Debug)]
pub struct TinyModel {
    pub name: String,
    pub architecture: &'static str,
    pub seed: u64,
    /// At least 261: 256 bytes and five control tokens. What is above becomes merges of two bytes.
    pub vocab_len: usize,
    pub context_length: u32,
    pub layer_count: usize,
    pub embedding_length: usize,
    pub feed_forward_length: usize,
    pub head_count: usize,
    pub head_count_kv: usize,
    pub head_len: usize,
    pub tensor_type: TensorType,
    /// Output matrix of its own.
    pub untied: bool,
    /// Factors as Llama 3 has them.
    pub rope_factors: bool,
    pub biases: bool,
    pub chat_template: Option<String>,
    pub freq_base: f32,
    /// More control tokens, the last ids.
    pub marks: Vec<&'static str>,
}

impl Default for TinyModel {
    fn default() -> TinyModel {
        TinyModel {
            name: "tiny".to_owned(),
            architecture: "llama",
            seed: 1,
            vocab_len: 300,
            context_length: 512,
            layer_count: 2,
            embedding_length: 64,
            feed_forward_length: 96,
            head_count: 4,
            head_count_kv: 2,
            head_len: 16,
            tensor_type: TensorType::Q8_0,
            untied: false,
            rope_factors: false,
            biases: false,
            chat_template: Some(
                "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}\
                 {% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
                    .to_owned(),
            ),
            freq_base: 10_000.0,
            marks: Vec::new(),
        }
    }
}

/// Control tokens, the first ids of a tiny model.
pub const CONTROLS: [&str; 5] = ["<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"];

impl TinyModel {
    /// The whole file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let tensors = self.tensors();
        let mut offset = 0;
        let places = tensors.iter().map(|t| {
            let start = offset;
            offset = (offset + t.bytes.len()).next_multiple_of(ALIGNMENT);
            Place { name: &t.name, dimensions: &t.dimensions, tensor_type: t.tensor_type, start }
        });
        let mut out = self.header(&places.collect::<Vec<_>>());
        for t in &tensors {
            out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
            out.extend(&t.bytes);
        }
        out
    }

    /// Everything before the tensors' bytes.
    fn header(&self, places: &[Place<'_>]) -> Vec<u8> {
        assert!(self.vocab_len >= CONTROLS.len() + 256, "the vocabulary holds every byte");
        let mut out = b"GGUF".to_vec();
        put_u32(&mut out, 3);
        put_u64(&mut out, places.len() as u64);
        let (count, metadata) = self.metadata();
        put_u64(&mut out, count);
        out.extend(metadata);
        for place in places {
            put_string(&mut out, place.name);
            put_u32(&mut out, place.dimensions.len() as u32);
            place.dimensions.iter().for_each(|d| put_u64(&mut out, *d as u64));
            put_u32(&mut out, place.tensor_type.code());
            put_u64(&mut out, place.start as u64);
        }
        out
    }

    /// The file in memory that lives as long as the program and is aligned.
    pub fn leak(&self) -> &'static [u8] {
        leak_aligned(&self.to_bytes())
    }

    fn metadata(&self) -> (u64, Vec<u8>) {
        let a = self.architecture;
        let mut m = Metadata::default();
        m.string("general.architecture", a);
        m.string("general.name", &self.name);
        m.u32(&format!("{a}.context_length"), self.context_length);
        m.u32(&format!("{a}.block_count"), self.layer_count as u32);
        m.u32(&format!("{a}.embedding_length"), self.embedding_length as u32);
        m.u32(&format!("{a}.feed_forward_length"), self.feed_forward_length as u32);
        m.u32(&format!("{a}.attention.head_count"), self.head_count as u32);
        m.u32(&format!("{a}.attention.head_count_kv"), self.head_count_kv as u32);
        m.u32(&format!("{a}.attention.key_length"), self.head_len as u32);
        m.u32(&format!("{a}.attention.value_length"), self.head_len as u32);
        m.u32(&format!("{a}.rope.dimension_count"), self.head_len as u32);
        m.f32(&format!("{a}.attention.layer_norm_rms_epsilon"), 1e-5);
        m.f32(&format!("{a}.rope.freq_base"), self.freq_base);
        m.string("tokenizer.ggml.model", "gpt2");
        m.string("tokenizer.ggml.pre", "llama-bpe");
        let (tokens, merges) = self.vocabulary();
        m.strings("tokenizer.ggml.tokens", &tokens);
        let letters = CONTROLS.len()..tokens.len() - self.marks.len();
        let kinds: Vec<i32> = (0..tokens.len()).map(|i| if letters.contains(&i) { 1 } else { 3 }).collect();
        m.i32s("tokenizer.ggml.token_type", &kinds);
        m.strings("tokenizer.ggml.merges", &merges);
        m.u32("tokenizer.ggml.bos_token_id", 0);
        m.u32("tokenizer.ggml.eos_token_id", 1);
        m.bool("tokenizer.ggml.add_bos_token", true);
        if let Some(template) = &self.chat_template {
            m.string("tokenizer.chat_template", template);
        }
        (m.count, m.bytes)
    }

    /// Control tokens, all bytes, then pairs of letters with their merges.
    fn vocabulary(&self) -> (Vec<String>, Vec<String>) {
        let letter = |byte: u8| crate::text::char_of(byte).to_string();
        let mut tokens: Vec<String> = CONTROLS.iter().map(|s| (*s).to_owned()).collect();
        tokens.extend((0..=255).map(letter));
        let letters: Vec<u8> = b" etaoinshrdlucmfwypvbgkqjxz".to_vec();
        let mut merges = Vec::new();
        let mut known: std::collections::HashSet<String> = tokens.iter().cloned().collect();
        let mut round = tokens[CONTROLS.len()..].to_vec();
        round.retain(|t| letters.iter().any(|l| letter(*l) == *t));
        let singles = round.clone();
        let letters_end = self.vocab_len - self.marks.len();
        while tokens.len() < letters_end {
            let mut next = Vec::new();
            for (a, b) in round.iter().flat_map(|a| singles.iter().map(move |b| (a, b))) {
                let joined = format!("{a}{b}");
                if tokens.len() < letters_end && known.insert(joined.clone()) {
                    merges.push(format!("{a} {b}"));
                    tokens.push(joined.clone());
                    next.push(joined);
                }
            }
            round = next;
        }
        tokens.extend(self.marks.iter().map(|mark| (*mark).to_owned()));
        (tokens, merges)
    }

    fn tensors(&self) -> Vec<Tensor> {
        let mut dice = Dice::new(self.seed);
        let matrices = self.matrices().into_iter().map(|(name, rows, cols)| {
            let scale = 1.7 / (cols as f32).sqrt();
            let values: Vec<f32> = (0..rows * cols).map(|_| dice.unit() * scale).collect();
            let tensor_type = self.type_of(cols);
            Tensor { name, dimensions: vec![cols, rows], tensor_type, bytes: encode(tensor_type, &values) }
        });
        let mut all: Vec<Tensor> = matrices.collect();
        all.extend(self.vectors(&mut dice));
        all
    }

    /// The type of a matrix with rows of `cols` elements: another one where they are no whole blocks.
    fn type_of(&self, cols: usize) -> TensorType {
        if cols.is_multiple_of(self.tensor_type.block_len()) { self.tensor_type } else { TensorType::F16 }
    }

    /// Name, rows and columns of every matrix.
    fn matrices(&self) -> Vec<(String, usize, usize)> {
        let (embedding, ffn) = (self.embedding_length, self.feed_forward_length);
        let (query_len, key_len) = (self.head_count * self.head_len, self.head_count_kv * self.head_len);
        let mut out = vec![("token_embd.weight".to_owned(), self.vocab_len, embedding)];
        if self.untied {
            out.push(("output.weight".to_owned(), self.vocab_len, embedding));
        }
        for i in 0..self.layer_count {
            let mut matrix = |name: &str, rows, cols| out.push((format!("blk.{i}.{name}.weight"), rows, cols));
            matrix("attn_q", query_len, embedding);
            matrix("attn_k", key_len, embedding);
            matrix("attn_v", key_len, embedding);
            matrix("attn_output", embedding, query_len);
            matrix("ffn_gate", ffn, embedding);
            matrix("ffn_up", ffn, embedding);
            matrix("ffn_down", embedding, ffn);
        }
        out
    }

    /// Norms, factors and biases.
    fn vectors(&self, dice: &mut Dice) -> Vec<Tensor> {
        let embedding = self.embedding_length;
        let (query_len, key_len) = (self.head_count * self.head_len, self.head_count_kv * self.head_len);
        let mut out = Vec::new();
        let mut vector = |name: String, len: usize, middle: f32| {
            let values: Vec<f32> = (0..len).map(|_| middle + 0.2 * dice.unit()).collect();
            let bytes = encode(TensorType::F32, &values);
            out.push(Tensor { name, dimensions: vec![len], tensor_type: TensorType::F32, bytes });
        };
        vector("output_norm.weight".to_owned(), embedding, 1.0);
        if self.rope_factors {
            vector("rope_freqs.weight".to_owned(), self.head_len / 2, 2.0);
        }
        for i in 0..self.layer_count {
            vector(format!("blk.{i}.attn_norm.weight"), embedding, 1.0);
            vector(format!("blk.{i}.ffn_norm.weight"), embedding, 1.0);
            if self.biases {
                vector(format!("blk.{i}.attn_q.bias"), query_len, 0.0);
                vector(format!("blk.{i}.attn_k.bias"), key_len, 0.0);
                vector(format!("blk.{i}.attn_v.bias"), key_len, 0.0);
            }
        }
        out
    }
}

/// Copies a file's bytes to where `Model::from_static` wants them.
pub fn leak_aligned(bytes: &[u8]) -> &'static [u8] {
    // Some place among the first 64 bytes is aligned.
    let room = vec![0u8; bytes.len() + 64].leak();
    let skip = room.as_ptr().align_offset(64);
    let place = &mut room[skip..skip + bytes.len()];
    place.copy_from_slice(bytes);
    place
}

/// Tensors begin at multiples of this, as the format's default wants it.
const ALIGNMENT: usize = 32;

/// A tensor's entry in the directory.
struct Place<'a> {
    name: &'a str,
    dimensions: &'a [usize],
    tensor_type: TensorType,
    /// Where it begins, from the first tensor's byte on.
    start: usize,
}

struct Tensor {
    name: String,
    dimensions: Vec<usize>,
    tensor_type: TensorType,
    bytes: Vec<u8>,
}

/// Metadata of a GGUF file that is being written.
#[derive(Default)]
pub(crate) struct Metadata {
    count: u64,
    bytes: Vec<u8>,
}

impl Metadata {
    fn key(&mut self, key: &str, kind: u32) -> &mut Vec<u8> {
        self.count += 1;
        put_string(&mut self.bytes, key);
        put_u32(&mut self.bytes, kind);
        &mut self.bytes
    }

    fn array(&mut self, key: &str, kind: u32, len: usize) -> &mut Vec<u8> {
        let out = self.key(key, 9);
        put_u32(out, kind);
        put_u64(out, len as u64);
        out
    }

    pub fn string(&mut self, key: &str, value: &str) {
        put_string(self.key(key, 8), value);
    }

    pub fn u32(&mut self, key: &str, value: u32) {
        put_u32(self.key(key, 4), value);
    }

    pub fn f32(&mut self, key: &str, value: f32) {
        self.key(key, 6).extend(value.to_le_bytes());
    }

    pub fn bool(&mut self, key: &str, value: bool) {
        self.key(key, 7).push(u8::from(value));
    }

    pub fn strings(&mut self, key: &str, values: &[impl AsRef<[u8]>]) {
        let out = self.array(key, 8, values.len());
        values.iter().for_each(|v| put_bytes(out, v.as_ref()));
    }

    pub fn i32s(&mut self, key: &str, values: &[i32]) {
        let out = self.array(key, 5, values.len());
        values.iter().for_each(|v| out.extend(v.to_le_bytes()));
    }

    #[cfg(test)]
    pub fn f32s(&mut self, key: &str, values: &[f32]) {
        let out = self.array(key, 6, values.len());
        values.iter().for_each(|v| out.extend(v.to_le_bytes()));
    }

    /// A file without tensors.
    #[cfg(test)]
    pub fn into_file(self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        put_u32(&mut out, 3);
        put_u64(&mut out, 0);
        put_u64(&mut out, self.count);
        out.extend(self.bytes);
        out
    }
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend(value.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend(value.to_le_bytes());
}

fn put_string(out: &mut Vec<u8>, value: &str) {
    put_bytes(out, value.as_bytes());
}

fn put_bytes(out: &mut Vec<u8>, value: &[u8]) {
    put_u64(out, value.len() as u64);
    out.extend(value);
}
