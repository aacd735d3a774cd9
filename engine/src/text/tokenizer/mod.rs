//! Text to tokens and back, as the model's authors do it.
//!
//! From a GGUF file's metadata: byte-level BPE ([`byte_level_bpe`]) or SentencePiece ([`sentence_piece`]), with control
//! tokens found here, since whether they may be found depends on who wrote the text. From a Hugging Face folder:
//! `tokenizer.json`, by the `tokenizers` crate ([`hugging_face`]), or where there is none SentencePiece's own
//! `tokenizer.model` ([`model_proto`]).

mod added;
mod byte_level_bpe;
mod hugging_face;
mod model_proto;
mod sentence_piece;
#[cfg(test)]
mod tests;
mod vocabulary;

use std::path::Path;

use added::Added;
use byte_level_bpe::ByteLevelBpe;
use hugging_face::HuggingFace;
use model_proto::ModelProto;
use sentence_piece::SentencePiece;
use serde_json::Value as Json;
use vocabulary::{Kind, Vocabulary};

use crate::LoadError;
use crate::gguf::Gguf;

/// Control tokens that end a turn, by the names that models give them; the metadata often names only one of them.
const END_NAMES: &[&str] =
    &["<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>"];

/// Tokens that may have been added to SentencePiece's own.
const ADDED_MAX: usize = 1 << 16;

/// Text to tokens and back. Immutable; any number of threads may use one.
pub struct Tokenizer {
    encoder: Encoder,
    vocabulary: Vocabulary,
    bos: Option<u32>,
    eos: Option<u32>,
    adds_bos: bool,
    /// A text that becomes a vector ends with `eos`.
    adds_eos: bool,
    /// The encoder puts a space before a text, so that words look alike wherever they stand; `decode` takes it away.
    strips_space: bool,
    /// Tokens that end a generation, ascending.
    ends: Vec<u32>,
}

enum Encoder {
    /// From a GGUF file's metadata or SentencePiece's file.
    Own {
        merger: Merger,
        /// Finds control and user-defined tokens; only the latter in text that is only text.
        all_added: Added,
        user_added: Added,
    },
    HuggingFace(Box<HuggingFace>),
}

enum Merger {
    ByteLevel(Box<ByteLevelBpe>),
    SentencePiece(SentencePiece),
}

impl Tokenizer {
    /// # Errors
    ///
    /// When the file has no tokenizer, one of another kind, or one that contradicts itself.
    pub(crate) fn from_gguf(gguf: &Gguf<'_>) -> Result<Tokenizer, LoadError> {
        let key = "tokenizer.ggml.model";
        let model = gguf.string(key)?.ok_or_else(|| LoadError::missing(format!("metadata key {key:?}")))?;
        let pre = gguf.string("tokenizer.ggml.pre")?.unwrap_or("gpt-2");
        let (vocabulary, merger, bos_default) = match model {
            "gpt2" => {
                let vocabulary = Vocabulary::from_gguf(gguf, byte_level_bpe::append_bytes)?;
                let merger = ByteLevelBpe::from_gguf(gguf, &vocabulary, pre)?;
                (vocabulary, Merger::ByteLevel(Box::new(merger)), byte_level_bpe::adds_bos(pre))
            }
            "llama" => {
                let vocabulary = Vocabulary::from_gguf(gguf, sentence_piece::append_bytes)?;
                let merger = SentencePiece::from_gguf(gguf, &vocabulary)?;
                (vocabulary, Merger::SentencePiece(merger), true)
            }
            other => {
                let read = "byte-level BPE (\"gpt2\") and SentencePiece (\"llama\") are read";
                return Err(LoadError::unsupported(format!("tokenizer {other:?}: {read}")));
            }
        };
        let id = |key: &str| read_id(gguf, key, vocabulary.len());
        let (bos, eos) = (id("tokenizer.ggml.bos_token_id")?, id("tokenizer.ggml.eos_token_id")?);
        let ends = [eos, id("tokenizer.ggml.eot_token_id")?, id("tokenizer.ggml.eom_token_id")?];
        Ok(Tokenizer {
            adds_bos: bos.is_some() && gguf.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(bos_default),
            adds_eos: gguf.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
            strips_space: matches!(&merger, Merger::SentencePiece(m) if m.adds_space()),
            encoder: Encoder::Own {
                all_added: Added::new(&vocabulary, |kind| matches!(kind, Kind::Control | Kind::UserDefined))?,
                user_added: Added::new(&vocabulary, |kind| kind == Kind::UserDefined)?,
                merger,
            },
            ends: all_ends(&vocabulary, ends.into_iter().flatten()),
            vocabulary,
            bos,
            eos,
        })
    }

    /// The tokenizer of a Hugging Face folder. `configs` are the documents that may name its special tokens, the most
    /// telling first: `generation_config.json`, `config.json`.
    ///
    /// # Errors
    ///
    /// When neither `tokenizer.json` nor `tokenizer.model` is there, or what is there is damaged or of a kind that is not read.
    pub(crate) fn from_folder(
        folder: &Path,
        tokenizer_config: &Json,
        configs: &[&Json],
    ) -> Result<Tokenizer, LoadError> {
        let file = file_in(folder)?;
        if file == model_proto::FILE {
            return Tokenizer::from_sentence_piece(&folder.join(file), tokenizer_config, configs);
        }
        let (encoder, vocabulary, strips_space) = HuggingFace::from_file(&folder.join(file))?;
        let named = |key: &str| named(tokenizer_config, key).and_then(|name| vocabulary.id(name));
        let first = |key: &str| ids(configs, key).first().copied();
        let (bos, eos) = (named("bos_token").or(first("bos_token_id")), named("eos_token").or(first("eos_token_id")));
        let ends = ids(configs, "eos_token_id").into_iter().chain(eos);
        Ok(Tokenizer {
            adds_bos: bos.is_some() && encoder.encode("", true, true).first().copied() == bos,
            // Its own rules put one there.
            adds_eos: false,
            encoder: Encoder::HuggingFace(Box::new(encoder)),
            strips_space,
            ends: all_ends(&vocabulary, ends),
            vocabulary,
            bos,
            eos,
        })
    }

    /// From SentencePiece's own file; the folder's configuration names its control tokens, and tokens that were added later.
    fn from_sentence_piece(path: &Path, config: &Json, configs: &[&Json]) -> Result<Tokenizer, LoadError> {
        let bytes = std::fs::read(path).map_err(|source| LoadError::Io { path: path.to_owned(), source })?;
        let model = ModelProto::parse(&bytes)?;
        let mut names: Vec<&[u8]> = model.pieces.iter().map(|p| p.name).collect();
        let mut kinds: Vec<Kind> = model.pieces.iter().map(|p| p.kind).collect();
        let mut scores: Vec<f32> = model.pieces.iter().map(|p| p.score).collect();
        for (id, added) in config["added_tokens_decoder"].as_object().into_iter().flatten() {
            let place = id.parse::<usize>().ok().filter(|id| *id < names.len() + ADDED_MAX);
            let (Some(place), Some(name)) = (place, added["content"].as_str()) else {
                let why = format!("\"added_tokens_decoder\" has {id:?}, which is no token's number or has no name");
                return Err(LoadError::corrupt("tokenizer_config.json", why));
            };
            let len = names.len().max(place + 1);
            // Ids that no name has stay empty.
            names.resize(len, b"");
            kinds.resize(len, Kind::Unused);
            scores.resize(len, 0.0);
            names[place] = name.as_bytes();
            match (kinds[place], added["special"] == true) {
                (Kind::Unknown, _) => {}
                (_, true) => kinds[place] = Kind::Control,
                (_, false) => kinds[place] = Kind::UserDefined,
            }
        }
        let vocabulary = Vocabulary::new(names.into_iter(), kinds, sentence_piece::append_bytes);
        let merger = SentencePiece::new(&vocabulary, &scores, model.adds_space)?;
        let named = |key: &str| named(config, key).and_then(|name| vocabulary.id(name));
        let (bos, eos) = (named("bos_token").or(model.bos), named("eos_token").or(model.eos));
        let ends = ids(configs, "eos_token_id").into_iter().chain(eos);
        Ok(Tokenizer {
            adds_bos: bos.is_some() && config["add_bos_token"] != false,
            adds_eos: config["add_eos_token"] == true,
            strips_space: merger.adds_space(),
            encoder: Encoder::Own {
                all_added: Added::new(&vocabulary, |kind| matches!(kind, Kind::Control | Kind::UserDefined))?,
                user_added: Added::new(&vocabulary, |kind| kind == Kind::UserDefined)?,
                merger: Merger::SentencePiece(merger),
            },
            ends: all_ends(&vocabulary, ends.filter(|id| (*id as usize) < vocabulary.len())),
            vocabulary,
            bos,
            eos,
        })
    }

    /// The tokens of a text.
    ///
    /// `add_bos` puts the model's first token in front if the model wants one. With `parse_special` the names of control
    /// tokens in the text become those tokens; without, they are letters like any others.
    pub fn encode(&self, text: &str, add_bos: bool, parse_special: bool) -> Vec<u32> {
        self.encode_with(text, add_bos, parse_special, |piece, tokens| self.encode_piece(piece, tokens))
    }

    /// The same, with each stretch of text between added tokens given to `encode_piece`: such a stretch has the same
    /// tokens wherever it stands, so that a caller may remember them.
    ///
    /// The rules of a `tokenizer.json` may look at what stands around: there `encode_piece` is not asked.
    pub fn encode_with(
        &self,
        text: &str,
        add_bos: bool,
        parse_special: bool,
        mut encode_piece: impl FnMut(&str, &mut Vec<u32>),
    ) -> Vec<u32> {
        let added = match &self.encoder {
            Encoder::HuggingFace(encoder) => return encoder.encode(text, add_bos, parse_special),
            Encoder::Own { all_added, .. } if parse_special => all_added,
            Encoder::Own { user_added, .. } => user_added,
        };
        let mut tokens = Vec::with_capacity(text.len() / 3 + 1);
        if let (true, true, Some(bos)) = (add_bos, self.adds_bos, self.bos) {
            tokens.push(bos);
        }
        let mut rest = text;
        while let Some((before, token, after)) = added.split_first(rest) {
            encode_piece(before, &mut tokens);
            tokens.push(token);
            rest = after;
        }
        encode_piece(rest, &mut tokens);
        tokens
    }

    /// The token that the model wants at the end of a text that becomes a vector, and that `encode` has not put there.
    pub fn end_of_text(&self) -> Option<u32> {
        self.eos.filter(|_| self.adds_eos)
    }

    /// Appends the tokens of text that has no added token in it.
    pub fn encode_piece(&self, text: &str, tokens: &mut Vec<u32>) {
        match &self.encoder {
            _ if text.is_empty() => {}
            Encoder::Own { merger: Merger::ByteLevel(merger), .. } => merger.encode(&self.vocabulary, text, tokens),
            Encoder::Own { merger: Merger::SentencePiece(merger), .. } => merger.encode(text, tokens),
            Encoder::HuggingFace(encoder) => tokens.extend(encoder.encode(text, false, false)),
        }
    }

    /// What a token adds to a text: not always whole characters, and nothing for a control token or an unknown id.
    pub fn token_bytes(&self, token: u32) -> &[u8] {
        self.vocabulary.bytes(token)
    }

    /// Length of the longest `token_bytes`.
    pub fn token_bytes_max(&self) -> usize {
        self.vocabulary.bytes_max()
    }

    /// A token as the vocabulary writes it; control tokens have their names here.
    pub fn token_name(&self, token: u32) -> Option<&str> {
        self.vocabulary.name(token)
    }

    /// The text of some tokens; control tokens are written by name if `with_special`, and left out otherwise.
    pub fn decode(&self, tokens: &[u32], with_special: bool) -> String {
        String::from_utf8_lossy(&self.decode_bytes(tokens, with_special)).into_owned()
    }

    /// As `decode`, byte for byte: the tokens need not make whole characters.
    pub fn decode_bytes(&self, tokens: &[u32], with_special: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        for token in tokens {
            match self.vocabulary.kind(*token) {
                Some(Kind::Control) if with_special => {
                    bytes.extend_from_slice(self.vocabulary.name(*token).unwrap_or_default().as_bytes());
                }
                _ => bytes.extend_from_slice(self.vocabulary.bytes(*token)),
            }
        }
        if self.strips_space && bytes.first() == Some(&b' ') {
            bytes.remove(0);
        }
        bytes
    }

    /// True for a token with which the model ends its answer.
    pub fn is_end_of_generation(&self, token: u32) -> bool {
        self.ends.binary_search(&token).is_ok()
    }

    /// Every such token, ascending.
    pub fn ends_of_generation(&self) -> &[u32] {
        &self.ends
    }

    /// True for a token that steers the model and has no text.
    pub fn is_control(&self, token: u32) -> bool {
        self.vocabulary.kind(token) == Some(Kind::Control)
    }

    /// The token that begins a text, if there is one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text, if there is one.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// How many tokens there are.
    pub fn vocab_len(&self) -> usize {
        self.vocabulary.len()
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens)", self.vocab_len())
    }
}

/// The file of a folder's tokenizer: `tokenizer.json`, which says more, where there is one.
///
/// # Errors
///
/// When there is none.
pub(crate) fn file_in(folder: &Path) -> Result<&'static str, LoadError> {
    let found = [hugging_face::FILE, model_proto::FILE].into_iter().find(|name| folder.join(name).is_file());
    found.ok_or_else(|| {
        let (json, proto) = (hugging_face::FILE, model_proto::FILE);
        LoadError::missing(format!("{json} and no {proto} in {}", folder.display()))
    })
}

/// The name of a special token: a text, or an object that describes it.
fn named<'a>(tokenizer_config: &'a Json, key: &str) -> Option<&'a str> {
    let value = &tokenizer_config[key];
    value.as_str().or(value["content"].as_str())
}

/// The tokens that the configurations have under a key: one, or several.
fn ids(configs: &[&Json], key: &str) -> Vec<u32> {
    let number = |value: &Json| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let all = |c: &&Json| match &c[key] {
        Json::Array(list) => list.iter().filter_map(number).collect(),
        value => number(value).into_iter().collect::<Vec<u32>>(),
    };
    configs.iter().flat_map(all).collect()
}

/// The tokens that the model says end a generation, and those that do by their name.
fn all_ends(vocabulary: &Vocabulary, said: impl Iterator<Item = u32>) -> Vec<u32> {
    let named = END_NAMES.iter().filter_map(|name| vocabulary.id(name));
    let named = named.filter(|id| vocabulary.kind(*id) == Some(Kind::Control));
    let mut ends: Vec<u32> = said.chain(named).collect();
    ends.sort_unstable();
    ends.dedup();
    ends
}

fn read_id(gguf: &Gguf<'_>, key: &str, count: usize) -> Result<Option<u32>, LoadError> {
    match gguf.u32(key)? {
        Some(id) if id as usize >= count => {
            Err(LoadError::corrupt(format!("metadata key {key:?}"), format!("{id} is none of {count} tokens")))
        }
        id => Ok(id),
    }
}
