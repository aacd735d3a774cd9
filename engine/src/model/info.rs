//! What is known about a model.

use sha2::{Digest, Sha256};

use super::llama::LlamaConfig;
use crate::LoadError;
use crate::backend::BLOCK_LEN;
use crate::gguf::{FileBytes, Gguf, TensorType};

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
    /// Bytes of KV memory that one token takes.
    pub kv_bytes_per_token: usize,
    /// Tensor type that most weights have.
    pub quantization: String,
    /// SHA-256 of the file, in lower-case hexadecimal.
    pub digest: String,
}

impl ModelInfo {
    pub(super) fn read(gguf: &Gguf<'_>, config: &LlamaConfig, file: &FileBytes) -> Result<ModelInfo, LoadError> {
        let count_of = |wanted: TensorType| -> usize {
            gguf.tensors().filter(|(_, t)| t.tensor_type == wanted).map(|(_, t)| t.len()).sum()
        };
        let most = TensorType::all().max_by_key(|t| count_of(*t)).expect("there are some");
        Ok(ModelInfo {
            name: gguf.string("general.name")?.unwrap_or_default().to_owned(),
            architecture: config.architecture.to_owned(),
            context_length: config.context_length as u32,
            vocab_len: config.vocab_len,
            layer_count: config.layer_count,
            embedding_length: config.embedding_length,
            feed_forward_length: config.feed_forward_length,
            head_count: config.head_count,
            head_count_kv: config.head_count_kv,
            parameter_count: gguf.tensors().map(|(_, t)| t.len() as u64).sum(),
            weights_bytes: gguf.tensors().map(|(_, t)| t.range.len() as u64).sum(),
            kv_bytes_per_token: config.kv_block_bytes() / BLOCK_LEN,
            quantization: most.name().to_owned(),
            digest: hex(&Sha256::digest(file.as_slice())),
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut out, byte| {
        write!(out, "{byte:02x}").expect("writing to a String cannot fail");
        out
    })
}
