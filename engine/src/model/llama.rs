//! Llama, and what differs from it in a detail: Mistral (nothing, with full attention) and Qwen2 (biases, other pairs).
//!
//! Source: Touvron et al. 2023 (LLaMA), Jiang et al. 2023 (Mistral), Yang et al. 2024 (Qwen2); order of operations after
//! Hugging Face `modeling_llama.py`, names of tensors and keys after the GGUF specification.

use super::{Matrix, Vector};
use crate::LoadError;
use crate::backend::{Attention, BLOCK_LEN, Backend, Batch, DeviceError, KvShape, RopePairs};
use crate::gguf::{FileBytes, Gguf};

/// Bound that no sound file exceeds; products of two such lengths fit `usize`.
const LENGTH_MAX: u32 = 1 << 24;

/// The shape of the network.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LlamaConfig {
    pub architecture: &'static str,
    pub vocab_len: usize,
    pub context_length: usize,
    pub layer_count: usize,
    pub embedding_length: usize,
    pub feed_forward_length: usize,
    pub head_count: usize,
    pub head_count_kv: usize,
    pub head_len: usize,
    pub norm_eps: f32,
    pub rope_pairs: RopePairs,
    /// Radians that one position turns each pair of a head.
    pub rope_frequencies: Vec<f64>,
}

impl LlamaConfig {
    /// Reads and checks the metadata.
    pub fn read(gguf: &Gguf<'_>) -> Result<LlamaConfig, LoadError> {
        let key = "general.architecture";
        let name = gguf.string(key)?.ok_or_else(|| LoadError::missing(format!("metadata key {key:?}")))?;
        let (architecture, rope_pairs) = match name {
            "llama" => ("llama", RopePairs::Neighbours),
            "qwen2" => ("qwen2", RopePairs::Halves),
            _ => return Err(LoadError::unsupported(format!("architecture {name:?}"))),
        };
        let key = |rest: &str| format!("{architecture}.{rest}");
        let optional = |rest: &str| length(gguf, &key(rest));
        let required =
            |rest: &str| optional(rest)?.ok_or_else(|| LoadError::missing(format!("metadata key {:?}", key(rest))));
        let embedding_length = required("embedding_length")?;
        let head_count = required("attention.head_count")?;
        let head_count_kv = optional("attention.head_count_kv")?.unwrap_or(head_count);
        if !head_count.is_multiple_of(head_count_kv) {
            let why = format!("{head_count} query heads cannot share {head_count_kv} key heads evenly");
            return Err(LoadError::corrupt(format!("metadata key {:?}", key("attention.head_count_kv")), why));
        }
        let head_len = optional("attention.key_length")?.unwrap_or(embedding_length / head_count);
        if head_len == 0 || optional("attention.value_length")?.unwrap_or(head_len) != head_len {
            return Err(LoadError::unsupported(format!(
                "attention: keys of {head_len} elements, values of another length"
            )));
        }
        let rope_len = optional("rope.dimension_count")?.unwrap_or(head_len);
        if rope_len > head_len || !rope_len.is_multiple_of(2) {
            let why = format!("{rope_len} elements of a head of {head_len} cannot be rotated in pairs");
            return Err(LoadError::corrupt(format!("metadata key {:?}", key("rope.dimension_count")), why));
        }
        refuse_what_would_be_ignored(gguf, architecture)?;
        let eps_key = key("attention.layer_norm_rms_epsilon");
        let norm_eps = gguf.f32(&eps_key)?.ok_or_else(|| LoadError::missing(format!("metadata key {eps_key:?}")))?;
        let base = gguf.f32(&key("rope.freq_base"))?.unwrap_or(10_000.0);
        if !(base.is_finite() && base > 0.0 && norm_eps.is_finite() && norm_eps >= 0.0) {
            return Err(LoadError::corrupt("the metadata", format!("rope base {base}, norm epsilon {norm_eps}")));
        }
        let embedding = gguf.tensor(EMBEDDING).ok_or_else(|| LoadError::missing(format!("tensor {EMBEDDING:?}")))?;
        Ok(LlamaConfig {
            architecture,
            vocab_len: embedding.rows,
            context_length: required("context_length")?,
            layer_count: required("block_count")?,
            embedding_length,
            feed_forward_length: required("feed_forward_length")?,
            head_count,
            head_count_kv,
            head_len,
            norm_eps,
            rope_pairs,
            rope_frequencies: rope_frequencies(gguf, architecture, rope_len, base)?,
        })
    }

    /// The KV cache of `block_count` blocks.
    pub fn kv_shape(&self, block_count: usize) -> KvShape {
        let (layer_count, head_count, head_len) = (self.layer_count, self.head_count_kv, self.head_len);
        KvShape { layer_count, head_count, head_len, block_count }
    }

    /// Bytes of one block of KV memory: keys and values of all layers as `f32`.
    pub fn kv_block_bytes(&self) -> usize {
        2 * self.layer_count * self.head_count_kv * self.head_len * BLOCK_LEN * size_of::<f32>()
    }
}

/// A count from 1 to `LENGTH_MAX`, if the key is there.
fn length(gguf: &Gguf<'_>, key: &str) -> Result<Option<usize>, LoadError> {
    match gguf.u32(key)? {
        Some(n) if n == 0 || n > LENGTH_MAX => {
            Err(LoadError::corrupt(format!("metadata key {key:?}"), format!("{n} is not within 1 to {LENGTH_MAX}")))
        }
        n => Ok(n.map(|n| n as usize)),
    }
}

/// What a file may ask for, and would get wrong answers without.
fn refuse_what_would_be_ignored(gguf: &Gguf<'_>, architecture: &str) -> Result<(), LoadError> {
    let key = format!("{architecture}.expert_count");
    if gguf.u32(&key)?.is_some_and(|n| n > 0) {
        return Err(LoadError::unsupported(format!("mixture of experts (metadata key {key:?})")));
    }
    let key = format!("{architecture}.attention.sliding_window");
    let context = gguf.u32(&format!("{architecture}.context_length"))?.unwrap_or(u32::MAX);
    if gguf.u32(&key)?.is_some_and(|n| n > 0 && n < context) {
        return Err(LoadError::unsupported(format!("sliding-window attention (metadata key {key:?})")));
    }
    Ok(())
}

/// The angle of each pair: `base^(-2i / rope_len)`, divided by the file's own factors (Llama 3) or by a common one.
fn rope_frequencies(gguf: &Gguf<'_>, architecture: &str, rope_len: usize, base: f32) -> Result<Vec<f64>, LoadError> {
    let half = rope_len / 2;
    let factors = Vector::find(gguf, "rope_freqs.weight", half)?;
    let key = format!("{architecture}.rope.scaling.type");
    let linear = match gguf.string(&key)? {
        None | Some("none") => 1.0,
        // Llama 3 stretches each frequency by a factor of its own, which the file carries as a tensor.
        Some(_) if factors.is_some() => 1.0,
        Some("linear") => gguf.f32(&format!("{architecture}.rope.scaling.factor"))?.unwrap_or(1.0),
        Some(other) => return Err(LoadError::unsupported(format!("rope scaling {other:?} (metadata key {key:?})"))),
    };
    let factor_of = |i: usize| factors.as_ref().map_or(linear, |f| f.as_slice()[i]);
    let frequencies: Vec<f64> =
        (0..half).map(|i| f64::from(base).powf(-2.0 * i as f64 / rope_len as f64) / f64::from(factor_of(i))).collect();
    if frequencies.iter().any(|f| !f.is_finite()) {
        return Err(LoadError::corrupt("the rope factors", "one is zero or not a number"));
    }
    Ok(frequencies)
}

const EMBEDDING: &str = "token_embd.weight";

/// All weights as they lie in the file. Shapes are `[out, in]`.
pub(crate) struct LlamaWeights {
    /// `[vocab, embedding]`
    embedding: Matrix,
    layers: Vec<LayerWeights>,
    /// `[embedding]`
    output_norm: Vector,
    /// `[vocab, embedding]`; the embedding again when the file has no other.
    output: Matrix,
}

struct LayerWeights {
    /// `[embedding]`
    attention_norm: Vector,
    /// `[head_count * head_len, embedding]`
    query: Matrix,
    /// `[head_count_kv * head_len, embedding]`
    key: Matrix,
    /// As `key`.
    value: Matrix,
    /// One element per row of query, key and value.
    biases: Option<[Vector; 3]>,
    /// `[embedding, head_count * head_len]`
    attention_output: Matrix,
    /// `[embedding]`
    ffn_norm: Vector,
    /// `[feed_forward, embedding]`
    gate: Matrix,
    /// `[feed_forward, embedding]`
    up: Matrix,
    /// `[embedding, feed_forward]`
    down: Matrix,
}

impl LlamaWeights {
    /// Finds every tensor and checks its shape.
    pub fn read(gguf: &Gguf<'_>, file: &FileBytes, config: &LlamaConfig) -> Result<LlamaWeights, LoadError> {
        let (vocab, embedding) = (config.vocab_len, config.embedding_length);
        let matrix = |name: String, rows, cols| {
            let found = Matrix::find(gguf, file, &name, rows, cols)?;
            found.ok_or_else(|| LoadError::missing(format!("tensor {name:?}")))
        };
        let vector = |name: String, len| {
            Vector::find(gguf, &name, len)?.ok_or_else(|| LoadError::missing(format!("tensor {name:?}")))
        };
        let query_len = config.head_count * config.head_len;
        let key_len = config.head_count_kv * config.head_len;
        let ffn = config.feed_forward_length;
        let layer = |i: usize| -> Result<LayerWeights, LoadError> {
            let named = |rest: &str| format!("blk.{i}.{rest}");
            let bias = |part: &str, len| Vector::find(gguf, &named(&format!("attn_{part}.bias")), len);
            let biases = match (bias("q", query_len)?, bias("k", key_len)?, bias("v", key_len)?) {
                (Some(q), Some(k), Some(v)) => Some([q, k, v]),
                (None, None, None) => None,
                _ => return Err(LoadError::missing(format!("tensor for each of \"blk.{i}.attn_{{q,k,v}}.bias\""))),
            };
            Ok(LayerWeights {
                attention_norm: vector(named("attn_norm.weight"), embedding)?,
                query: matrix(named("attn_q.weight"), query_len, embedding)?,
                key: matrix(named("attn_k.weight"), key_len, embedding)?,
                value: matrix(named("attn_v.weight"), key_len, embedding)?,
                biases,
                attention_output: matrix(named("attn_output.weight"), embedding, query_len)?,
                ffn_norm: vector(named("ffn_norm.weight"), embedding)?,
                gate: matrix(named("ffn_gate.weight"), ffn, embedding)?,
                up: matrix(named("ffn_up.weight"), ffn, embedding)?,
                down: matrix(named("ffn_down.weight"), embedding, ffn)?,
            })
        };
        let table = matrix(EMBEDDING.to_owned(), vocab, embedding)?;
        let mut layers = Vec::new();
        for index in 0..config.layer_count {
            layers.push(layer(index)?);
        }
        let output_norm = vector("output_norm.weight".to_owned(), embedding)?;
        let output = Matrix::find(gguf, file, "output.weight", vocab, embedding)?.unwrap_or_else(|| table.clone());
        Ok(LlamaWeights { embedding: table, layers, output_norm, output })
    }
}

/// The network on a device, with room for the activations of one step.
pub(crate) struct Llama<B: Backend> {
    config: LlamaConfig,
    embedding: B::Matrix,
    layers: Vec<Layer<B>>,
    output_norm: B::Vector,
    output: B::Matrix,
    scratch: Activations<B>,
}

struct Layer<B: Backend> {
    attention_norm: B::Vector,
    query: B::Matrix,
    key: B::Matrix,
    value: B::Matrix,
    biases: Option<[B::Vector; 3]>,
    attention_output: B::Matrix,
    ffn_norm: B::Vector,
    gate: B::Matrix,
    up: B::Matrix,
    down: B::Matrix,
}

/// Activations, one row per token of the step.
struct Activations<B: Backend> {
    /// The residual stream. `[rows, embedding]`
    x: B::Buffer,
    /// What a layer works on, or adds to `x`. `[rows, embedding]`
    y: B::Buffer,
    /// `[rows, head_count, head_len]`
    query: B::Buffer,
    /// `[rows, head_count_kv, head_len]`
    key: B::Buffer,
    /// `[rows, head_count_kv, head_len]`
    value: B::Buffer,
    /// `[rows, head_count, head_len]`
    attended: B::Buffer,
    /// `[rows, feed_forward]`
    gate: B::Buffer,
    /// `[rows, feed_forward]`
    up: B::Buffer,
    /// `[samples, vocab]`
    logits: B::Buffer,
}

impl<B: Backend> Llama<B> {
    /// Puts weights on the device and makes room for steps of `rows_max` rows with `samples_max` samples.
    pub fn new(
        config: &LlamaConfig,
        weights: &LlamaWeights,
        be: &B,
        rows_max: usize,
        samples_max: usize,
    ) -> Result<Llama<B>, DeviceError> {
        let layers = weights.layers.iter().map(|l| {
            let biases = match &l.biases {
                None => None,
                Some([q, k, v]) => Some([be.vector(q)?, be.vector(k)?, be.vector(v)?]),
            };
            Ok(Layer {
                attention_norm: be.vector(&l.attention_norm)?,
                query: be.matrix(&l.query)?,
                key: be.matrix(&l.key)?,
                value: be.matrix(&l.value)?,
                biases,
                attention_output: be.matrix(&l.attention_output)?,
                ffn_norm: be.vector(&l.ffn_norm)?,
                gate: be.matrix(&l.gate)?,
                up: be.matrix(&l.up)?,
                down: be.matrix(&l.down)?,
            })
        });
        let c = config;
        let rows = |len: usize| be.buffer(rows_max * len);
        Ok(Llama {
            embedding: be.matrix(&weights.embedding)?,
            layers: layers.collect::<Result<_, DeviceError>>()?,
            output_norm: be.vector(&weights.output_norm)?,
            output: be.matrix(&weights.output)?,
            scratch: Activations {
                x: rows(c.embedding_length)?,
                y: rows(c.embedding_length)?,
                query: rows(c.head_count * c.head_len)?,
                key: rows(c.head_count_kv * c.head_len)?,
                value: rows(c.head_count_kv * c.head_len)?,
                attended: rows(c.head_count * c.head_len)?,
                gate: rows(c.feed_forward_length)?,
                up: rows(c.feed_forward_length)?,
                logits: be.buffer(samples_max * c.vocab_len)?,
            },
            config: c.clone(),
        })
    }

    /// Runs one step and returns the logits of its sample rows, `[samples, vocab]`.
    ///
    /// Prefill and decode are the same code: a row sees the cells at and before its position.
    ///
    /// # Errors
    ///
    /// When the device fails. What the cache then holds is unknown.
    pub fn forward(&mut self, be: &mut B, cache: &mut B::Cache, batch: &Batch) -> Result<&[f32], DeviceError> {
        let c = &self.config;
        let s = &mut self.scratch;
        let rows = batch.rows();
        let attention = Attention::full(c.head_count, c.head_len);
        be.begin_step(batch, &c.rope_frequencies)?;
        be.embed(&mut s.x, &self.embedding, batch);

        for (index, layer) in self.layers.iter().enumerate() {
            // Attention: project, rotate, remember, attend.
            be.rms_norm(&mut s.y, &s.x, &layer.attention_norm, rows, c.norm_eps);
            be.matmul(&mut s.query, &s.y, &layer.query, rows);
            be.matmul(&mut s.key, &s.y, &layer.key, rows);
            be.matmul(&mut s.value, &s.y, &layer.value, rows);
            if let Some([query_bias, key_bias, value_bias]) = &layer.biases {
                be.add_bias(&mut s.query, query_bias, rows);
                be.add_bias(&mut s.key, key_bias, rows);
                be.add_bias(&mut s.value, value_bias, rows);
            }
            be.rope(&mut s.query, batch, c.head_count, c.head_len, c.rope_pairs);
            be.rope(&mut s.key, batch, c.head_count_kv, c.head_len, c.rope_pairs);
            be.store(cache, index, &s.key, &s.value, batch);
            be.attend(&mut s.attended, &s.query, cache, index, batch, &attention);
            be.matmul(&mut s.y, &s.attended, &layer.attention_output, rows);
            be.add(&mut s.x, &s.y, rows * c.embedding_length);

            // Feed-forward: a gated unit, wide and back.
            be.rms_norm(&mut s.y, &s.x, &layer.ffn_norm, rows, c.norm_eps);
            be.matmul(&mut s.gate, &s.y, &layer.gate, rows);
            be.matmul(&mut s.up, &s.y, &layer.up, rows);
            be.silu_mul(&mut s.gate, &s.up, rows * c.feed_forward_length);
            be.matmul(&mut s.y, &s.gate, &layer.down, rows);
            be.add(&mut s.x, &s.y, rows * c.embedding_length);
        }

        // Logits: of the rows that somebody wants to sample from.
        let samples = batch.sample_rows.len();
        be.gather(&mut s.y, &s.x, batch, c.embedding_length);
        be.rms_norm(&mut s.x, &s.y, &self.output_norm, samples, c.norm_eps);
        be.matmul(&mut s.logits, &s.x, &self.output, samples);
        be.read(&s.logits, samples * c.vocab_len)
    }
}
