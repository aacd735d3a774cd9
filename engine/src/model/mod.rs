//! A model that has been read and checked: weights, tokenizer, chat template, and what is known about it.

mod architecture;
mod decoder;
mod digest;
mod folder;
mod fp8;
mod info;
mod rope;
mod settings;
mod tensors;
mod weights;

use std::path::Path;

pub(crate) use architecture::NetworkConfig;
pub(crate) use decoder::Decoder;
use decoder::DecoderWeights;
use digest::Digest;
pub use info::ModelInfo;
pub use rope::Rope;
use settings::{Key, Settings};
use tensors::Tensors;
pub(crate) use weights::f16_to_f32;
pub use weights::{Matrix, Vector};

use crate::backend::Backend;
use crate::constraint::{Constraint, Grammar, GrammarError, Grammars};
use crate::gguf::{FileBytes, Gguf};
use crate::text::{ChatTemplate, Tokenizer};
use crate::{LoadError, Pooling};

/// How a text becomes one vector, as llama.cpp numbers the ways.
const POOLING_TYPE: Key = Key { gguf: "pooling_type", hf: "" };

/// Weights that are part of the program must lie at a multiple of this, as the format's default wants it.
const STATIC_ALIGNMENT: usize = 32;

/// A model, ready for any number of engines. Weights stay in the mapped file.
pub struct Model {
    info: ModelInfo,
    digest: Digest,
    tokenizer: Tokenizer,
    chat_template: Option<ChatTemplate>,
    grammars: Grammars,
    pub(crate) config: NetworkConfig,
    pub(crate) weights: DecoderWeights,
}

impl Model {
    /// Bytes of one block of KV memory on a backend: keys and values of all layers.
    pub fn kv_block_bytes<B: Backend>(&self) -> usize {
        B::cache_bytes(self.config.kv_shape(1))
    }

    /// Maps a GGUF file, or the safetensors files of a Hugging Face folder, checks everything, and begins
    /// to compute its digest.
    ///
    /// Nobody may cut a file short while the model lives; renaming another over it is fine.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, is damaged, or holds something that this engine cannot run.
    pub fn open(path: &Path) -> Result<Model, LoadError> {
        if path.is_dir() { folder::open(path) } else { Model::from_file(FileBytes::map(path)?) }
    }

    /// A model that is part of the program.
    ///
    /// # Errors
    ///
    /// As for `open`; and when `bytes` do not lie at a multiple of 32.
    pub fn from_static(bytes: &'static [u8]) -> Result<Model, LoadError> {
        if !bytes.as_ptr().addr().is_multiple_of(STATIC_ALIGNMENT) {
            let why = format!("does not lie at a multiple of {STATIC_ALIGNMENT} bytes");
            return Err(LoadError::corrupt("the built-in model", why));
        }
        Model::from_file(FileBytes::from_static(bytes))
    }

    /// A model in memory, for tests.
    ///
    /// # Errors
    ///
    /// As for `open`.
    #[doc(hidden)]
    pub fn from_vec(bytes: Vec<u8>) -> Result<Model, LoadError> {
        Model::from_file(FileBytes::from_vec(bytes))
    }

    fn from_file(file: FileBytes) -> Result<Model, LoadError> {
        let gguf = Gguf::parse(file.as_slice())?;
        let tensors = Tensors::of_gguf(&gguf, &file);
        let settings = Settings::of_gguf(&gguf)?;
        let config = architecture::read(&settings, &tensors)?;
        let weights = DecoderWeights::read(&settings, &tensors, &config)?;
        let tokenizer = Tokenizer::from_gguf(&gguf)?;
        if tokenizer.vocab_len() != config.vocab_len {
            let why = format!("{} tokens, and the embedding has {} rows", tokenizer.vocab_len(), config.vocab_len);
            return Err(LoadError::corrupt("metadata key \"tokenizer.ggml.tokens\"", why));
        }
        let chat_template = ChatTemplate::from_gguf(&gguf, &tokenizer)?;
        let name = gguf.string("general.name")?.unwrap_or_default();
        // 0 is none, 2 the first token's, 4 a rank: nothing that these networks are trained for.
        let pooling = match settings.count(POOLING_TYPE)? {
            Some(1) => Pooling::Mean,
            _ => Pooling::Last,
        };
        let info = ModelInfo::new(name, &config, &tensors, &weights, pooling);
        let digest = Digest::of_file(&file);
        Ok(Model { info, digest, tokenizer, chat_template, grammars: Grammars::new(), config, weights })
    }

    /// What is known about it.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// SHA-256 in lower-case hexadecimal: of the file, or of a folder's files with their names and lengths. It is computed
    /// on a thread from the moment the model is opened, and waited for here if it is not there yet.
    pub fn digest(&self) -> &str {
        self.digest.hex()
    }

    /// The same, if it is there: for whoever may not wait.
    pub fn digest_if_known(&self) -> Option<&str> {
        self.digest.known()
    }

    /// Text to tokens and back.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Compiles what an answer of this model must look like. Takes milliseconds, the first time some more.
    ///
    /// # Errors
    ///
    /// When the grammar is none, uses what is not supported, or is too large.
    pub fn constraint(&self, grammar: Grammar<'_>) -> Result<Constraint, GrammarError> {
        self.grammars.compile(&self.tokenizer, grammar)
    }

    /// Takes another chat template than the model's own.
    ///
    /// # Errors
    ///
    /// When it is none.
    pub fn replace_chat_template(&mut self, source: &str) -> Result<(), LoadError> {
        self.chat_template = Some(ChatTemplate::from_source(source, "the chat template", &self.tokenizer)?);
        Ok(())
    }

    /// How its authors want a conversation written, if the file says.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("info", &self.info).finish_non_exhaustive()
    }
}
