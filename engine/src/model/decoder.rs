//! The decoder that every architecture here is: attention and a gated feed-forward unit, layer by layer.
//!
//! What an architecture does otherwise than Llama is a switch in [`NetworkConfig`], or is seen from its tensors: biases,
//! matrices that are stored as one, an output matrix of its own.
//!
//! Source: Touvron et al. 2023 (LLaMA); order of operations after Hugging Face `modeling_llama.py` and its descendants.

use std::ops::Range;

use super::architecture::{Activation, NetworkConfig, TOKEN_EMBEDDING};
use super::settings::Settings;
use super::tensors::{Name, Tensors};
use super::{Matrix, Vector};
use crate::LoadError;
use crate::backend::{Backend, Batch, DeviceError, Projection, Rotation};

const OUTPUT_NORM: Name = Name { gguf: "output_norm", hf: "norm" };
const OUTPUT: Name = Name { gguf: "output", hf: "lm_head" };
const ATTENTION_NORM: Name = Name { gguf: "attn_norm", hf: "input_layernorm" };
const QUERY: Name = Name { gguf: "attn_q", hf: "self_attn.q_proj" };
const KEY: Name = Name { gguf: "attn_k", hf: "self_attn.k_proj" };
const VALUE: Name = Name { gguf: "attn_v", hf: "self_attn.v_proj" };
const QUERY_KEY_VALUE: Name = Name { gguf: "attn_qkv", hf: "self_attn.qkv_proj" };
const QUERY_NORM: Name = Name { gguf: "attn_q_norm", hf: "self_attn.q_norm" };
const KEY_NORM: Name = Name { gguf: "attn_k_norm", hf: "self_attn.k_norm" };
const ATTENTION_OUTPUT: Name = Name { gguf: "attn_output", hf: "self_attn.o_proj" };
const ATTENTION_POST_NORM: Name = Name { gguf: "post_attention_norm", hf: "post_attention_layernorm" };
const FFN_NORM: Name = Name { gguf: "ffn_norm", hf: "post_attention_layernorm" };
/// With norms after attention, too, the one before the feed-forward unit needs a name of its own.
const FFN_NORM_OF_FOUR: Name = Name { gguf: "ffn_norm", hf: "pre_feedforward_layernorm" };
const GATE: Name = Name { gguf: "ffn_gate", hf: "mlp.gate_proj" };
const UP: Name = Name { gguf: "ffn_up", hf: "mlp.up_proj" };
const GATE_UP: Name = Name { gguf: "ffn_up", hf: "mlp.gate_up_proj" };
const DOWN: Name = Name { gguf: "ffn_down", hf: "mlp.down_proj" };
const FFN_POST_NORM: Name = Name { gguf: "post_ffw_norm", hf: "post_feedforward_layernorm" };

/// A matrix of shape `[out, in]`, and what is added to its product.
struct Linear<M, V> {
    weight: M,
    bias: Option<V>,
}

/// All weights of a layer; `M` and `V` are matrices and vectors in the file or on a device.
struct Layer<M, V> {
    /// `[embedding]`
    attention_norm: V,
    /// `[head_count * head_len, embedding]`
    query: Linear<M, V>,
    /// `[head_count_kv * head_len, embedding]`
    key: Linear<M, V>,
    /// As `key`.
    value: Linear<M, V>,
    /// Norms of each head of queries and of keys. `[head_len]`
    head_norms: Option<[V; 2]>,
    /// `[embedding, head_count * head_len]`
    attention_output: Linear<M, V>,
    /// `[embedding]`
    attention_post_norm: Option<V>,
    /// `[embedding]`
    ffn_norm: V,
    /// `[feed_forward, embedding]`
    gate: Linear<M, V>,
    /// `[feed_forward, embedding]`
    up: Linear<M, V>,
    /// `[embedding, feed_forward]`
    down: Linear<M, V>,
    /// `[embedding]`
    ffn_post_norm: Option<V>,
}

/// All weights as they lie in the file.
pub(crate) struct DecoderWeights {
    /// `[vocab, embedding]`
    embedding: Matrix,
    layers: Vec<Layer<Matrix, Vector>>,
    /// `[embedding]`
    output_norm: Vector,
    /// `[vocab, embedding]`; the embedding again when the file has no other.
    output: Matrix,
}

impl DecoderWeights {
    /// Finds every tensor and checks its shape.
    ///
    /// # Errors
    ///
    /// When one is missing, has another shape than the configuration says, or a type that is not read.
    pub fn read(
        settings: &Settings<'_>,
        tensors: &Tensors,
        config: &NetworkConfig,
    ) -> Result<DecoderWeights, LoadError> {
        let (vocab, embedding_length) = (config.vocab_len, config.embedding_length);
        let finder = Finder { tensors, config };
        let embedding = finder.matrix(&tensors.name(TOKEN_EMBEDDING), vocab, embedding_length)?;
        let tied = settings.config().is_some_and(|c| c["tie_word_embeddings"].as_bool() == Some(true));
        let own = match tied {
            true => None,
            false => Matrix::find(tensors, &tensors.name(OUTPUT), vocab, embedding_length)?,
        };
        Ok(DecoderWeights {
            output: own.unwrap_or_else(|| embedding.clone()),
            embedding,
            output_norm: finder.norm(&tensors.name(OUTPUT_NORM), embedding_length)?,
            layers: (0..config.layer_count).map(|i| finder.layer(i)).collect::<Result<_, LoadError>>()?,
        })
    }
}

impl DecoderWeights {
    /// Bytes of the table of which a step reads single rows only: the embedding, unless it is the output matrix, too.
    pub fn lookup_bytes(&self) -> u64 {
        if self.is_tied() { 0 } else { self.embedding.bytes().len() as u64 }
    }

    /// True when the embedding is the output matrix, too.
    fn is_tied(&self) -> bool {
        self.embedding.bytes().as_ptr() == self.output.bytes().as_ptr()
    }
}

struct Finder<'a> {
    tensors: &'a Tensors,
    config: &'a NetworkConfig,
}

impl Finder<'_> {
    fn layer(&self, i: usize) -> Result<Layer<Matrix, Vector>, LoadError> {
        let c = self.config;
        let (embedding, ffn) = (c.embedding_length, c.feed_forward_length);
        let (query_len, key_len) = (c.head_count * c.head_len, c.head_count_kv * c.head_len);
        let norm = |name: Name, len| self.norm(&self.tensors.layer_name(i, name, "weight"), len);
        let norm_if = |wanted: bool, name: Name, len| wanted.then(|| norm(name, len)).transpose();
        let [query, key, value] = match self.has(i, QUERY_KEY_VALUE) {
            true => self.cut(i, QUERY_KEY_VALUE, [query_len, key_len, key_len], embedding)?,
            false => [
                self.linear(i, QUERY, query_len, embedding)?,
                self.linear(i, KEY, key_len, embedding)?,
                self.linear(i, VALUE, key_len, embedding)?,
            ],
        };
        let [gate, up] = match self.has(i, GATE) {
            true => [self.linear(i, GATE, ffn, embedding)?, self.linear(i, UP, ffn, embedding)?],
            false => self.cut(i, GATE_UP, [ffn, ffn], embedding)?,
        };
        Ok(Layer {
            attention_norm: norm(ATTENTION_NORM, embedding)?,
            query,
            key,
            value,
            head_norms: match c.head_norms {
                true => Some([norm(QUERY_NORM, c.head_len)?, norm(KEY_NORM, c.head_len)?]),
                false => None,
            },
            attention_output: self.linear(i, ATTENTION_OUTPUT, embedding, query_len)?,
            attention_post_norm: norm_if(c.post_norms, ATTENTION_POST_NORM, embedding)?,
            ffn_norm: norm(if c.post_norms { FFN_NORM_OF_FOUR } else { FFN_NORM }, embedding)?,
            gate,
            up,
            down: self.linear(i, DOWN, embedding, ffn)?,
            ffn_post_norm: norm_if(c.post_norms, FFN_POST_NORM, embedding)?,
        })
    }

    fn has(&self, layer: usize, name: Name) -> bool {
        self.tensors.find(&self.tensors.layer_name(layer, name, "weight")).is_some()
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix, LoadError> {
        let found = Matrix::find(self.tensors, name, rows, cols)?;
        found.ok_or_else(|| LoadError::missing(format!("tensor {name:?}")))
    }

    fn norm(&self, name: &str, len: usize) -> Result<Vector, LoadError> {
        let found = Vector::find(self.tensors, name, len)?;
        let norm = found.ok_or_else(|| LoadError::missing(format!("tensor {name:?}")))?;
        Ok(if self.config.norm_offset == 0.0 { norm } else { norm.plus(self.config.norm_offset) })
    }

    fn linear(&self, layer: usize, name: Name, rows: usize, cols: usize) -> Result<Linear<Matrix, Vector>, LoadError> {
        let weight = self.matrix(&self.tensors.layer_name(layer, name, "weight"), rows, cols)?;
        let bias = Vector::find(self.tensors, &self.tensors.layer_name(layer, name, "bias"), rows)?;
        Ok(Linear { weight, bias })
    }

    /// Matrices that are stored as one: the rows of the first, then those of the next.
    fn cut<const N: usize>(
        &self,
        layer: usize,
        name: Name,
        lens: [usize; N],
        cols: usize,
    ) -> Result<[Linear<Matrix, Vector>; N], LoadError> {
        let whole = self.linear(layer, name, lens.iter().sum(), cols)?;
        let mut end = 0;
        Ok(lens.map(|len| {
            let rows = end..end + len;
            end += len;
            Linear { weight: whole.weight.part(rows.clone()), bias: whole.bias.as_ref().map(|b| b.part(rows)) }
        }))
    }
}

/// The network on a device, with room for the activations of one step.
pub(crate) struct Decoder<B: Backend> {
    config: NetworkConfig,
    embedding: B::Matrix,
    layers: Vec<Layer<B::Matrix, B::Vector>>,
    output_norm: B::Vector,
    /// None: the embedding once more.
    output: Option<B::Matrix>,
    scratch: Activations<B>,
}

/// Activations, one row per token of the step.
struct Activations<B: Backend> {
    /// The residual stream. `[rows, embedding]`
    x: B::Buffer,
    /// What a layer works on, or adds to `x`; at the end all rows after the last norm. `[rows, embedding]`
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

impl Linear<Matrix, Vector> {
    fn on<B: Backend>(&self, be: &B) -> Result<Linear<B::Matrix, B::Vector>, DeviceError> {
        let bias = self.bias.as_ref().map(|bias| be.vector(bias)).transpose()?;
        Ok(Linear { weight: be.matrix(&self.weight)?, bias })
    }
}

impl Layer<Matrix, Vector> {
    fn on<B: Backend>(&self, be: &B) -> Result<Layer<B::Matrix, B::Vector>, DeviceError> {
        let optional = |norm: &Option<Vector>| norm.as_ref().map(|norm| be.vector(norm)).transpose();
        Ok(Layer {
            attention_norm: be.vector(&self.attention_norm)?,
            query: self.query.on(be)?,
            key: self.key.on(be)?,
            value: self.value.on(be)?,
            head_norms: match &self.head_norms {
                Some([query, key]) => Some([be.vector(query)?, be.vector(key)?]),
                None => None,
            },
            attention_output: self.attention_output.on(be)?,
            attention_post_norm: optional(&self.attention_post_norm)?,
            ffn_norm: be.vector(&self.ffn_norm)?,
            gate: self.gate.on(be)?,
            up: self.up.on(be)?,
            down: self.down.on(be)?,
            ffn_post_norm: optional(&self.ffn_post_norm)?,
        })
    }
}

impl<M, V> Linear<M, V> {
    /// Its product with whatever it is multiplied with.
    fn to<'a, B: Backend<Matrix = M, Vector = V>>(&'a self, out: &'a mut B::Buffer) -> Projection<'a, B> {
        Projection { out, weight: &self.weight, bias: self.bias.as_ref() }
    }
}

impl<B: Backend> Decoder<B> {
    /// Puts weights on the device and makes room for steps of `rows_max` rows with `samples_max` samples.
    ///
    /// # Errors
    ///
    /// When the device has no room.
    pub fn new(
        config: &NetworkConfig,
        weights: &DecoderWeights,
        be: &B,
        rows_max: usize,
        samples_max: usize,
    ) -> Result<Decoder<B>, DeviceError> {
        let c = config;
        let rows = |len: usize| be.buffer(rows_max * len);
        Ok(Decoder {
            embedding: be.matrix(&weights.embedding)?,
            layers: weights.layers.iter().map(|l| l.on(be)).collect::<Result<_, DeviceError>>()?,
            output_norm: be.vector(&weights.output_norm)?,
            output: if weights.is_tied() { None } else { Some(be.matrix(&weights.output)?) },
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

    /// Runs one step up to the logits of its sample rows, and has the backend choose the tokens that `batch.picks` are.
    ///
    /// Prefill and decode are the same code: a row sees the cells at and before its position.
    ///
    /// # Errors
    ///
    /// When the device fails. What the cache then holds is unknown.
    pub fn forward(&mut self, be: &mut B, cache: &mut B::Cache, batch: &Batch) -> Result<(), DeviceError> {
        self.run_layers(be, cache, batch)?;

        // Logits: of the rows that somebody wants to sample from, in most steps of decode all of them.
        let c = &self.config;
        let s = &mut self.scratch;
        let samples = batch.sample_rows.len();
        let sampled = if samples == batch.rows() {
            &s.y
        } else {
            be.gather(&mut s.x, &s.y, batch, c.embedding_length);
            &s.x
        };
        be.matmul(&mut s.logits, sampled, self.output.as_ref().unwrap_or(&self.embedding), samples);
        if let Some(cap) = c.logit_cap {
            be.soft_cap(&mut s.logits, cap, samples * c.vocab_len);
        }
        be.choose(&mut s.logits, c.vocab_len, batch);
        Ok(())
    }

    /// Logits of some of the last step's samples, `[samples, vocab]`.
    ///
    /// # Errors
    ///
    /// When the device failed.
    pub fn logits<'a>(&'a self, be: &'a mut B, samples: Range<usize>) -> Result<&'a [f32], DeviceError> {
        let vocab_len = self.config.vocab_len;
        be.read(&self.scratch.logits, samples.start * vocab_len..samples.end * vocab_len)
    }

    /// The rows of the step before, after the last norm, `[rows, embedding]`.
    ///
    /// # Errors
    ///
    /// When the device failed.
    pub fn hidden_states<'a>(&'a self, be: &'a mut B, rows: usize) -> Result<&'a [f32], DeviceError> {
        be.read(&self.scratch.y, 0..rows * self.config.embedding_length)
    }

    /// From tokens to the rows after the last norm, in `y`.
    fn run_layers(&mut self, be: &mut B, cache: &mut B::Cache, batch: &Batch) -> Result<(), DeviceError> {
        let c = &self.config;
        let s = &mut self.scratch;
        let rows = batch.rows();
        be.begin_step(batch, &c.ropes)?;
        be.embed(&mut s.x, &self.embedding, batch);
        if let Some(scale) = c.embedding_scale {
            be.scale(&mut s.x, scale, rows * c.embedding_length);
        }

        // A norm follows the addition before it at once: the next layer's where this one ends, and at last the output's.
        let mut norms = self.layers.iter().map(|layer| &layer.attention_norm).chain([&self.output_norm]);
        if let Some(first) = norms.next() {
            be.rms_norm(&mut s.y, &s.x, first, rows, c.norm_eps);
        }
        for (index, ((layer, kind), next_norm)) in self.layers.iter().zip(&c.layers).zip(norms).enumerate() {
            // Attention: project, rotate, remember, attend.
            let parts = &mut [layer.query.to(&mut s.query), layer.key.to(&mut s.key), layer.value.to(&mut s.value)];
            be.project(&s.y, rows, parts);
            let rotation = Rotation {
                head_count: c.head_count,
                head_norms: layer.head_norms.as_ref().map(|[query, key]| [query, key]),
                eps: c.norm_eps,
                pairs: c.rope_pairs,
                rope: kind.rope,
            };
            be.rotate_store(cache, index, &mut s.query, &mut s.key, &s.value, batch, &rotation);
            be.attend(&mut s.attended, &s.query, cache, index, batch, &kind.attention);
            be.project(&s.attended, rows, &mut [layer.attention_output.to(&mut s.y)]);
            if let Some(norm) = &layer.attention_post_norm {
                be.rms_norm_in_place(&mut s.y, norm, rows, c.norm_eps);
            }
            be.add_rms_norm(&mut s.x, &mut s.y, &layer.ffn_norm, rows, c.norm_eps);
            // Feed-forward: a gated unit, wide and back.
            be.project(&s.y, rows, &mut [layer.gate.to(&mut s.gate), layer.up.to(&mut s.up)]);
            match c.activation {
                Activation::Silu => be.silu_mul(&mut s.gate, &s.up, rows * c.feed_forward_length),
                Activation::Gelu => be.gelu_mul(&mut s.gate, &s.up, rows * c.feed_forward_length),
            }
            be.project(&s.gate, rows, &mut [layer.down.to(&mut s.y)]);
            if let Some(norm) = &layer.ffn_post_norm {
                be.rms_norm_in_place(&mut s.y, norm, rows, c.norm_eps);
            }
            be.add_rms_norm(&mut s.x, &mut s.y, next_norm, rows, c.norm_eps);
        }
        Ok(())
    }
}
