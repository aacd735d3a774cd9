//! What is known about a model.

use std::collections::HashMap;

use super::DecoderWeights;
use super::architecture::NetworkConfig;
use super::tensors::Tensors;
use crate::Pooling;

/// Facts about a model, for people and for planning.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// Name that its authors gave it; empty if they did not.
    pub name: String,
    /// Architecture as the file names it.
    pub architecture: String,
    /// Most tokens of prompt and answer together.
    pub context_length: u32,
    /// Tokens in the vocabulary.
    pub vocab_len: usize,
    /// Transformer layers.
    pub layer_count: usize,
    /// Length of the residual stream.
    pub embedding_length: usize,
    /// Length inside the feed-forward network.
    pub feed_forward_length: usize,
    /// Query heads in a layer.
    pub head_count: usize,
    /// Key and value heads in a layer.
    pub head_count_kv: usize,
    /// Weights in all tensors.
    pub parameter_count: u64,
    /// Bytes of all tensors.
    pub weights_bytes: u64,
    /// Bytes of those that a decode step reads whole: without the embedding table, of which it reads a row per token, unless
    /// that is the output matrix, too.
    pub step_weights_bytes: u64,
    /// How its authors make one vector of a text, if the files say; else it is that of the last token.
    pub pooling: Pooling,
    /// Tensor type that most weights have.
    pub quantization: String,
}

impl ModelInfo {
    pub(super) fn new(
        name: &str,
        config: &NetworkConfig,
        tensors: &Tensors,
        weights: &DecoderWeights,
        pooling: Pooling,
    ) -> ModelInfo {
        let mut counts: HashMap<&str, u64> = HashMap::new();
        for tensor in tensors.infos() {
            *counts.entry(tensor.tensor_type.name()).or_default() += tensor.len() as u64;
        }
        // Of equals, always the same.
        let most = counts.iter().max_by_key(|(name, count)| (**count, **name)).map_or("", |(name, _)| *name);
        let weights_bytes = tensors.infos().map(|t| t.range.len() as u64).sum();
        ModelInfo {
            name: name.to_owned(),
            architecture: config.architecture.clone(),
            context_length: config.context_length as u32,
            vocab_len: config.vocab_len,
            layer_count: config.layer_count,
            embedding_length: config.embedding_length,
            feed_forward_length: config.feed_forward_length,
            head_count: config.head_count,
            head_count_kv: config.head_count_kv,
            parameter_count: tensors.infos().map(|t| t.len() as u64).sum(),
            weights_bytes,
            step_weights_bytes: weights_bytes - weights.lookup_bytes(),
            pooling,
            quantization: most.to_owned(),
        }
    }
}
