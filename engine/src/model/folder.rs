//! A Hugging Face folder: `config.json`, safetensors files, `tokenizer.json`, and what else says how to use them.

use std::path::Path;

use serde_json::Value as Json;

use super::Model;
use super::architecture;
use super::decoder::DecoderWeights;
use super::digest::Digest;
use super::fp8;
use super::info::ModelInfo;
use super::settings::Settings;
use super::tensors::{Tensors, parts, read_json};
use crate::constraint::Grammars;
use crate::gguf::FileBytes;
use crate::text::{ChatTemplate, Tokenizer, tokenizer_file};
use crate::{LoadError, Pooling};

/// Bytes of a configuration file that are still believed to be meant.
const CONFIG_LEN_MAX: u64 = 16 << 20;

/// # Errors
///
/// As `Model::open`.
pub(super) fn open(folder: &Path) -> Result<Model, LoadError> {
    if !folder.join("config.json").is_file() {
        return Err(LoadError::missing(format!(
            "config.json in {}: a model is a GGUF file or a Hugging Face folder",
            folder.display()
        )));
    }
    let config_file = read_json(&folder.join("config.json"), CONFIG_LEN_MAX)?;
    let optional = |name: &str| match folder.join(name).is_file() {
        true => read_json(&folder.join(name), CONFIG_LEN_MAX),
        false => Ok(Json::Null),
    };
    let (generation, tokenizer_config) = (optional("generation_config.json")?, optional("tokenizer_config.json")?);
    let tensors = Tensors::of_folder(folder, fp8::square(&config_file)?)?;
    let settings = Settings::of_config(&config_file)?;
    let config = architecture::read(&settings, &tensors)?;
    let weights = DecoderWeights::read(&settings, &tensors, &config)?;
    let tokenizer = Tokenizer::from_folder(folder, &tokenizer_config, &[&generation, &config_file])?;
    // The embedding is often filled up to a round number of rows; fewer rows than tokens would be out of bounds.
    if tokenizer.vocab_len() > config.vocab_len {
        let why = format!("{} tokens, and the embedding has {} rows", tokenizer.vocab_len(), config.vocab_len);
        return Err(LoadError::corrupt(tokenizer_file(folder)?, why));
    }
    let chat_template = chat_template(folder, &tokenizer_config, &tokenizer)?;
    let name = folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    // As sentence-transformers leaves it beside the model.
    let mean = optional("1_Pooling/config.json")?["pooling_mode_mean_tokens"] == true;
    let pooling = if mean { Pooling::Mean } else { Pooling::Last };
    let info = ModelInfo::new(&name, &config, &tensors, &weights, pooling);
    let digest = digest(folder)?;
    Ok(Model { info, digest, tokenizer, chat_template, grammars: Grammars::new(), config, weights })
}

/// That of `config.json`, the tokenizer's file and the parts of the model, in this order.
fn digest(folder: &Path) -> Result<Digest, LoadError> {
    let names = ["config.json", tokenizer_file(folder)?].map(str::to_owned).into_iter().chain(parts(folder)?);
    let files = names.map(|name| Ok((name.clone(), FileBytes::map(&folder.join(&name))?)));
    Ok(Digest::of_files(files.collect::<Result<Vec<_>, LoadError>>()?))
}

/// The template in a file of its own, or the one in `tokenizer_config.json`: one text, or several of which one is the
/// default.
fn chat_template(
    folder: &Path,
    tokenizer_config: &Json,
    tokenizer: &Tokenizer,
) -> Result<Option<ChatTemplate>, LoadError> {
    let path = folder.join("chat_template.jinja");
    if path.is_file() {
        let source = std::fs::read_to_string(&path).map_err(|source| LoadError::Io { path, source })?;
        return ChatTemplate::from_source(&source, "chat_template.jinja", tokenizer).map(Some);
    }
    let source = match &tokenizer_config["chat_template"] {
        Json::String(source) => Some(source.as_str()),
        Json::Array(list) => {
            let default = list.iter().find(|entry| entry["name"] == "default");
            default.and_then(|entry| entry["template"].as_str())
        }
        _ => None,
    };
    source
        .map(|source| ChatTemplate::from_source(source, "\"chat_template\" in tokenizer_config.json", tokenizer))
        .transpose()
}
