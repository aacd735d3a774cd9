//! Which architectures there are, and what each says about the network.
//!
//! To add one: a file here with a function from [`Shape`] to [`NetworkConfig`], and a line in [`read`]. What no existing
//! switch of [`NetworkConfig`] can say becomes a new one, used in `decoder.rs`.

mod gemma;
mod llama;
mod phi;
mod qwen;

use super::fp8::is_fp8;
use super::rope::{self, Rope, RopeShape};
use super::settings::{Key, Settings};
use super::tensors::{Name, Tensors};
use crate::LoadError;
use crate::backend::{Attention, KvShape, RopePairs};

const CONTEXT: Key = Key { gguf: "context_length", hf: "max_position_embeddings" };
const LAYERS: Key = Key { gguf: "block_count", hf: "num_hidden_layers" };
const EMBEDDING: Key = Key { gguf: "embedding_length", hf: "hidden_size" };
const FEED_FORWARD: Key = Key { gguf: "feed_forward_length", hf: "intermediate_size" };
const HEADS: Key = Key { gguf: "attention.head_count", hf: "num_attention_heads" };
const HEADS_KV: Key = Key { gguf: "attention.head_count_kv", hf: "num_key_value_heads" };
const KEY_LEN: Key = Key { gguf: "attention.key_length", hf: "head_dim" };
const VALUE_LEN: Key = Key { gguf: "attention.value_length", hf: "" };
const NORM_EPS: Key = Key { gguf: "attention.layer_norm_rms_epsilon", hf: "rms_norm_eps" };
const ATTENTION_SCALE: Key = Key { gguf: "attention.scale", hf: "" };
const ROPE_LEN: Key = Key { gguf: "rope.dimension_count", hf: "" };
const ROPE_SHARE: Key = Key { gguf: "", hf: "partial_rotary_factor" };
const PATTERN: Key = Key { gguf: "attention.sliding_window_pattern", hf: "sliding_window_pattern" };
const WINDOW: Key = Key { gguf: "attention.sliding_window", hf: "sliding_window" };

/// The embedding's name; its rows are the vocabulary.
pub(super) const TOKEN_EMBEDDING: Name = Name { gguf: "token_embd", hf: "embed_tokens" };

/// Base of the rotation where a model names none. Source: Su et al. 2021.
const ROPE_BASE: f64 = 10_000.0;

/// The feed-forward unit's gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    Silu,
    /// GELU in its approximation by tanh.
    Gelu,
}

/// What differs between the layers of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LayerKind {
    pub attention: Attention,
    /// Which of `NetworkConfig::ropes` turns its queries and keys.
    pub rope: usize,
}

/// The network: its shape, and what it does otherwise than Llama.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NetworkConfig {
    pub architecture: String,
    pub vocab_len: usize,
    pub context_length: usize,
    pub layer_count: usize,
    pub embedding_length: usize,
    pub feed_forward_length: usize,
    pub head_count: usize,
    pub head_count_kv: usize,
    pub head_len: usize,
    pub norm_eps: f32,
    /// Added to every norm's weight when it is read: 1 where files keep the distance from 1.
    pub norm_offset: f32,
    /// Queries and keys are normed head by head before they are rotated.
    pub head_norms: bool,
    /// What attention and the feed-forward unit give is normed before it is added.
    pub post_norms: bool,
    pub activation: Activation,
    pub embedding_scale: Option<f32>,
    /// Logits `l` become `cap * tanh(l / cap)`.
    pub logit_cap: Option<f32>,
    pub rope_pairs: RopePairs,
    pub ropes: Vec<Rope>,
    /// A sequence that may grow longer than this is rotated by `Rope::stretched`, where there is one.
    pub stretched_from: Option<usize>,
    /// One a layer.
    pub layers: Vec<LayerKind>,
}

impl NetworkConfig {
    /// The KV cache of `block_count` blocks.
    pub fn kv_shape(&self, block_count: usize) -> KvShape {
        let (layer_count, head_count, head_len) = (self.layer_count, self.head_count_kv, self.head_len);
        KvShape { layer_count, head_count, head_len, block_count }
    }

    /// True when a sequence of which at most `cells_max` tokens are computed is rotated by the stretched frequencies.
    pub fn is_stretched(&self, cells_max: usize) -> bool {
        self.ropes.iter().any(|r| r.stretched.is_some()) && self.stretched_from.is_some_and(|from| cells_max > from)
    }

    /// Makes the layers of which `is_local` says so see `window` cells only, turned by rope `rope`.
    fn make_local(&mut self, window: usize, rope: usize, is_local: impl Fn(usize) -> bool) {
        for (index, layer) in self.layers.iter_mut().enumerate().filter(|(index, _)| is_local(*index)) {
            debug_assert!(index < self.layer_count);
            // A window as long as the context hides nothing.
            layer.attention.window = (window < self.context_length).then_some(window as u32);
            layer.rope = rope;
        }
    }
}

/// Reads and checks what a model says about its network.
///
/// # Errors
///
/// When the architecture or something it asks for is not known, or numbers contradict each other.
pub(super) fn read(settings: &Settings<'_>, tensors: &Tensors) -> Result<NetworkConfig, LoadError> {
    let shape = |base| Shape { settings, tensors, rope_base: base };
    match settings.architecture() {
        "llama" | "mistral" => llama::config(&shape(ROPE_BASE)),
        "qwen2" | "qwen3" => qwen::config(&shape(ROPE_BASE)),
        "gemma2" => gemma::config_2(&shape(ROPE_BASE)),
        "gemma3" | "gemma3_text" => gemma::config_3(&shape(1_000_000.0)),
        "phi3" => phi::config(&shape(ROPE_BASE)),
        other => Err(LoadError::unsupported(format!(
            "architecture {other:?}: llama, mistral, qwen2, qwen3, gemma2, gemma3 and phi3 are read"
        ))),
    }
}

/// What every architecture has, read from the model's own words.
struct Shape<'a> {
    settings: &'a Settings<'a>,
    tensors: &'a Tensors,
    rope_base: f64,
}

impl Shape<'_> {
    /// A plain network: full attention, one rotation, SiLU. The architecture's own function changes what differs.
    ///
    /// `head_len` is the head's length where the model names none; without it, the embedding is cut evenly.
    fn plain(&self, head_len: Option<usize>) -> Result<NetworkConfig, LoadError> {
        let s = self.settings;
        refuse_what_would_be_ignored(s)?;
        let embedding_length = s.needed_length(EMBEDDING)?;
        let head_count = s.needed_length(HEADS)?;
        let head_count_kv = s.length(HEADS_KV)?.unwrap_or(head_count);
        if !head_count.is_multiple_of(head_count_kv) {
            let why = format!("{head_count} query heads cannot share {head_count_kv} key heads evenly");
            return Err(s.wrong(HEADS_KV, &why));
        }
        let head_len = s.length(KEY_LEN)?.or(head_len).unwrap_or(embedding_length / head_count);
        if head_len == 0 || s.length(VALUE_LEN)?.unwrap_or(head_len) != head_len {
            return Err(LoadError::unsupported(format!(
                "attention: keys of {head_len} elements, values of another length"
            )));
        }
        let context_length = s.needed_length(CONTEXT)?;
        let layer_count = s.needed_length(LAYERS)?;
        let norm_eps = s.number(NORM_EPS)?.ok_or_else(|| LoadError::missing(s.place(NORM_EPS)))? as f32;
        if norm_eps < 0.0 {
            return Err(s.wrong(NORM_EPS, "is below 0"));
        }
        let rope_shape = RopeShape { rope_len: self.rope_len(head_len)?, context_length, base_default: self.rope_base };
        let mut attention = Attention::full(head_count, head_len);
        if let Some(scale) = s.positive(ATTENTION_SCALE)? {
            attention.scale = scale as f32;
        }
        let name = self.tensors.name(TOKEN_EMBEDDING);
        let embedding = self.tensors.find(&name).ok_or_else(|| LoadError::missing(format!("tensor {name:?}")))?;
        let unreadable = |kind: &String| LoadError::unsupported(format!("tensor type {kind} of tensor {name:?}"));
        Ok(NetworkConfig {
            architecture: s.architecture().to_owned(),
            vocab_len: embedding.info.as_ref().map_err(unreadable)?.rows,
            context_length,
            layer_count,
            embedding_length,
            feed_forward_length: s.needed_length(FEED_FORWARD)?,
            head_count,
            head_count_kv,
            head_len,
            norm_eps,
            norm_offset: 0.0,
            head_norms: false,
            post_norms: false,
            activation: Activation::Silu,
            embedding_scale: None,
            logit_cap: None,
            rope_pairs: RopePairs::Halves,
            ropes: vec![rope::global(s, self.tensors, &rope_shape)?],
            stretched_from: rope::stretched_from(s)?,
            layers: vec![LayerKind { attention, rope: 0 }; layer_count],
        })
    }

    /// Elements of a head that are rotated.
    fn rope_len(&self, head_len: usize) -> Result<usize, LoadError> {
        let s = self.settings;
        let share = match s.config().and_then(|c| c["rope_parameters"]["partial_rotary_factor"].as_f64()) {
            Some(share) => Some(share),
            None => s.positive(ROPE_SHARE)?,
        };
        let rope_len = match share {
            Some(share) => (head_len as f64 * share) as usize,
            None => s.length(ROPE_LEN)?.unwrap_or(head_len),
        };
        if rope_len == 0 || rope_len > head_len || !rope_len.is_multiple_of(2) {
            let why = format!("{rope_len} elements of a head of {head_len} cannot be rotated in pairs");
            return Err(s.wrong(if share.is_some() { ROPE_SHARE } else { ROPE_LEN }, &why));
        }
        Ok(rope_len)
    }

    /// The rotation of local layers, if they have one of their own.
    fn local_rope(&self, config: &NetworkConfig, base_default: f64) -> Result<Rope, LoadError> {
        let rope_len = self.rope_len(config.head_len)?;
        rope::local(self.settings, &RopeShape { rope_len, context_length: config.context_length, base_default })
    }

    /// Checks what the model calls its activation against what the architecture does.
    fn check_activation(&self, names: &[&str]) -> Result<(), LoadError> {
        for hf in ["hidden_activation", "hidden_act"] {
            match self.settings.text(Key { gguf: "", hf })? {
                Some(name) if !names.contains(&name) => {
                    return Err(LoadError::unsupported(format!("activation {name:?} in config.json")));
                }
                Some(_) => return Ok(()),
                None => {}
            }
        }
        Ok(())
    }

    /// Layers that the model marks as local one by one, if it marks any.
    fn layer_types(&self, layer_count: usize) -> Result<Option<Vec<bool>>, LoadError> {
        if let Settings::Gguf { gguf, architecture } = self.settings {
            // Here a number may stand, too: then it is a period.
            let pattern = gguf.value(&format!("{architecture}.{}", PATTERN.gguf));
            let Some(crate::gguf::Value::Array(pattern)) = pattern else { return Ok(None) };
            let marks: Vec<bool> = pattern.iter().map(|mark| mark == crate::gguf::Value::Bool(true)).collect();
            if marks.len() != layer_count {
                let why = format!("has {} entries for {layer_count} layers", marks.len());
                return Err(self.settings.wrong(PATTERN, &why));
            }
            return Ok(Some(marks));
        }
        let Some(types) = self.settings.config().and_then(|c| c["layer_types"].as_array()) else { return Ok(None) };
        let key = Key { gguf: "", hf: "layer_types" };
        if types.len() != layer_count {
            return Err(self.settings.wrong(key, &format!("has {} entries for {layer_count} layers", types.len())));
        }
        let is_local = |kind: &serde_json::Value| match kind.as_str() {
            Some("full_attention") => Ok(false),
            Some("sliding_attention") => Ok(true),
            _ => Err(LoadError::unsupported(format!("layer type {kind} in config.json"))),
        };
        types.iter().map(is_local).collect::<Result<Vec<bool>, LoadError>>().map(Some)
    }
}

/// What a model may ask for, and would get wrong answers without.
fn refuse_what_would_be_ignored(settings: &Settings<'_>) -> Result<(), LoadError> {
    for experts in ["num_local_experts", "num_experts", "n_routed_experts"] {
        let key = Key { gguf: "expert_count", hf: experts };
        if settings.count(key)?.is_some_and(|n| n > 0) {
            return Err(LoadError::unsupported(format!("mixture of experts ({})", settings.place(key))));
        }
    }
    if let Some(config) = settings.config() {
        let quantization = &config["quantization_config"];
        if quantization.is_object() && !is_fp8(quantization) {
            let method = quantization["quant_method"].as_str().unwrap_or("of no name");
            return Err(LoadError::unsupported(format!(
                "quantisation {method:?} in config.json: give an FP8 folder, the unquantised one, or a GGUF file"
            )));
        }
        if config["use_bidirectional_attention"].as_bool() == Some(true) {
            return Err(LoadError::unsupported("bidirectional attention in config.json"));
        }
    }
    Ok(())
}
