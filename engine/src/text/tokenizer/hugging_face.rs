//! A `tokenizer.json`, by the crate that Hugging Face's own tokenizers are made of.

use std::path::Path;
use std::sync::OnceLock;

use serde_json::Value as Json;
use tokenizers::Tokenizer;

use super::vocabulary::{Kind, Vocabulary};
use super::{byte_level_bpe, sentence_piece};
use crate::LoadError;

pub(super) const FILE: &str = "tokenizer.json";

/// Ids beyond this are an error and no wish: no vocabulary is larger by far.
const VOCAB_LEN_MAX: u32 = 1 << 24;

pub(super) struct HuggingFace {
    tokenizer: Tokenizer,
    /// The same, but names of special tokens are letters like any others. Made when it is first needed.
    plain: OnceLock<Tokenizer>,
}

impl HuggingFace {
    /// The encoder, its vocabulary, and whether decoding takes away a space at the beginning.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or its tokens are no bytes.
    pub fn from_file(path: &Path) -> Result<(HuggingFace, Vocabulary, bool), LoadError> {
        let bytes = std::fs::read(path).map_err(|source| LoadError::Io { path: path.to_owned(), source })?;
        let corrupt = |why: String| LoadError::corrupt(FILE, why);
        let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(|e| corrupt(e.to_string()))?;
        // What was set for training or for batches of fixed length must not cut or fill up a prompt.
        tokenizer.with_truncation(None).map_err(|e| corrupt(e.to_string()))?;
        tokenizer.with_padding(None);
        let parts = |part: serde_json::Result<Json>| part.map_err(|e| corrupt(e.to_string()));
        let decoder = parts(serde_json::to_value(tokenizer.get_decoder()))?;
        let cutter = parts(serde_json::to_value(tokenizer.get_pre_tokenizer()))?;
        let is_byte_level = has_type(&decoder, "ByteLevel") || has_type(&cutter, "ByteLevel");
        let marks_spaces = ["ByteFallback", "Metaspace"].iter().any(|kind| has_type(&decoder, kind));
        let vocabulary = match (is_byte_level, marks_spaces) {
            (true, _) => vocabulary(&tokenizer, byte_level_bpe::append_bytes)?,
            (false, true) => vocabulary(&tokenizer, |name, _, out| {
                // Here bytes are known by their names alone.
                let kind = sentence_piece::byte_named(name).map_or(Kind::Text, |_| Kind::Byte);
                sentence_piece::append_bytes(name, kind, out);
            })?,
            _ => {
                let kind = decoder["type"].as_str().unwrap_or("none");
                return Err(LoadError::unsupported(format!("decoder {kind:?} in {FILE}: tokens must stand for bytes")));
            }
        };
        let strips_space = strips_space(&decoder);
        Ok((HuggingFace { tokenizer, plain: OnceLock::new() }, vocabulary, strips_space))
    }

    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<u32> {
        let tokenizer = match parse_special {
            true => &self.tokenizer,
            false => self.plain.get_or_init(|| {
                let mut plain = self.tokenizer.clone();
                plain.set_encode_special_tokens(true);
                plain
            }),
        };
        let encoding = tokenizer.encode_fast(text, add_special).expect("a tokenizer of bytes encodes any text");
        encoding.get_ids().to_vec()
    }
}

/// True when a part of the tokenizer, or a part of that part, is of this type.
fn has_type(part: &Json, kind: &str) -> bool {
    match part {
        Json::Object(fields) => {
            part["type"] == kind || fields.values().any(|field| field.is_array() && has_type(field, kind))
        }
        Json::Array(parts) => parts.iter().any(|part| has_type(part, kind)),
        _ => false,
    }
}

/// Finds the step that takes away the space which encoding puts before a text.
fn strips_space(decoder: &Json) -> bool {
    match decoder {
        Json::Array(parts) => parts.iter().any(strips_space),
        Json::Object(_) => match decoder["type"].as_str() {
            Some("Strip") => decoder["content"] == " " && decoder["start"].as_u64().is_some_and(|n| n > 0),
            Some("Metaspace") => decoder["prepend_scheme"] != "never",
            _ => strips_space(&decoder["decoders"]),
        },
        _ => false,
    }
}

fn vocabulary(tokenizer: &Tokenizer, append_bytes: impl Fn(&str, Kind, &mut Vec<u8>)) -> Result<Vocabulary, LoadError> {
    let vocab = tokenizer.get_vocab(true);
    let Some(last) = vocab.values().copied().max() else {
        return Err(LoadError::corrupt(FILE, "has no tokens"));
    };
    if last >= VOCAB_LEN_MAX {
        return Err(LoadError::corrupt(
            FILE,
            format!("has a token {last}, and {VOCAB_LEN_MAX} are believed to be meant"),
        ));
    }
    // Ids that no name has stay empty.
    let mut names = vec![String::new(); last as usize + 1];
    let mut kinds = vec![Kind::Unused; names.len()];
    for (name, id) in vocab {
        kinds[id as usize] = Kind::Text;
        names[id as usize] = name;
    }
    for (id, added) in tokenizer.get_added_tokens_decoder() {
        kinds[id as usize] = if added.special { Kind::Control } else { Kind::UserDefined };
        names[id as usize] = added.content;
    }
    Ok(Vocabulary::new(names.iter().map(String::as_bytes), kinds, append_bytes))
}
