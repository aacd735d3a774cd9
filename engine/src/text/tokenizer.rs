//! Byte-level BPE from a GGUF file's metadata.
//!
//! Merging is done by the `tokenizers` crate; control tokens are found here, since whether they may be found depends on
//! who wrote the text.

use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer as Merger};

use super::byte_level::byte_of;
use crate::LoadError;
use crate::gguf::Gguf;

/// Llama 3's split.
const SPLIT_LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen2's: as Llama 3's, but digits stand alone.
const SPLIT_QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// GPT-2's.
const SPLIT_GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Control tokens that end a turn, by the names that models give them; the metadata often names only one of them.
const END_NAMES: &[&str] =
    &["<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>"];

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";

/// What a token is for, by the format's numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    /// Text that is found before anything is merged.
    UserDefined,
    /// Steers the model; no text comes of it.
    Control,
}

/// Text to tokens and back. Immutable; any number of threads may use one.
pub struct Tokenizer {
    merger: Merger,
    /// Finds control and user-defined tokens; only the latter in text that is only text.
    all_added: Added,
    user_added: Added,
    kinds: Vec<Kind>,
    /// The bytes of every token, one after the other, and where each begins.
    bytes: Vec<u8>,
    starts: Vec<u32>,
    /// Each token as the file writes it.
    names: Vec<Box<str>>,
    bytes_max: usize,
    bos: Option<u32>,
    eos: Option<u32>,
    adds_bos: bool,
    /// Tokens that end a generation, ascending.
    ends: Vec<u32>,
}

impl Tokenizer {
    /// # Errors
    ///
    /// When the file has no tokenizer, one of another kind, or one that contradicts itself.
    pub(crate) fn from_gguf(gguf: &Gguf<'_>) -> Result<Tokenizer, LoadError> {
        let missing = |key: &str| LoadError::missing(format!("metadata key {key:?}"));
        let model = gguf.string("tokenizer.ggml.model")?.ok_or_else(|| missing("tokenizer.ggml.model"))?;
        if model != "gpt2" {
            return Err(LoadError::unsupported(format!("tokenizer {model:?}: byte-level BPE (\"gpt2\") is read")));
        }
        let names = read_names(gguf)?;
        let kinds = read_kinds(gguf, names.len())?;
        let pre = gguf.string("tokenizer.ggml.pre")?.unwrap_or("gpt-2");
        let merger = build_merger(gguf, &names, pre)?;
        let (mut bytes, mut starts) = (Vec::new(), vec![0]);
        for (name, kind) in names.iter().zip(&kinds) {
            match kind {
                Kind::Text => append_bytes(name, &mut bytes),
                Kind::UserDefined => bytes.extend_from_slice(name.as_bytes()),
                Kind::Control => {}
            }
            starts.push(bytes.len() as u32);
        }
        let bytes_max = starts.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0);
        let id = |key: &str| read_id(gguf, key, names.len());
        let (bos, eos) = (id("tokenizer.ggml.bos_token_id")?, id("tokenizer.ggml.eos_token_id")?);
        let mut ends: Vec<u32> = [eos, id("tokenizer.ggml.eot_token_id")?, id("tokenizer.ggml.eom_token_id")?]
            .into_iter()
            .flatten()
            .collect();
        let named = |i: usize| kinds[i] == Kind::Control && END_NAMES.contains(&&*names[i]);
        ends.extend((0..names.len()).filter(|i| named(*i)).map(|i| i as u32));
        ends.sort_unstable();
        ends.dedup();
        Ok(Tokenizer {
            all_added: Added::new(&names, &kinds, |kind| kind != Kind::Text)?,
            user_added: Added::new(&names, &kinds, |kind| kind == Kind::UserDefined)?,
            adds_bos: bos.is_some() && gguf.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(pre == "llama-bpe"),
            merger,
            kinds,
            bytes,
            starts,
            names,
            bytes_max,
            bos,
            eos,
            ends,
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
    pub fn encode_with(
        &self,
        text: &str,
        add_bos: bool,
        parse_special: bool,
        mut encode_piece: impl FnMut(&str, &mut Vec<u32>),
    ) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(text.len() / 3 + 1);
        if let (true, true, Some(bos)) = (add_bos, self.adds_bos, self.bos) {
            tokens.push(bos);
        }
        let added = if parse_special { &self.all_added } else { &self.user_added };
        let mut rest = text;
        while let Some((before, token, after)) = added.split_first(rest) {
            encode_piece(before, &mut tokens);
            tokens.push(token);
            rest = after;
        }
        encode_piece(rest, &mut tokens);
        tokens
    }

    /// Appends the tokens of text that has no added token in it.
    pub fn encode_piece(&self, text: &str, tokens: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        let encoding = self.merger.encode_fast(text, false).expect("byte-level BPE encodes any text");
        tokens.extend_from_slice(encoding.get_ids());
    }

    /// What a token adds to a text: not always whole characters, and nothing for a control token or an unknown id.
    pub fn token_bytes(&self, token: u32) -> &[u8] {
        let at = token as usize;
        if at + 1 >= self.starts.len() {
            return &[];
        }
        &self.bytes[self.starts[at] as usize..self.starts[at + 1] as usize]
    }

    /// Length of the longest `token_bytes`.
    pub fn token_bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// A token as the vocabulary writes it; control tokens have their names here.
    pub fn token_name(&self, token: u32) -> Option<&str> {
        self.names.get(token as usize).map(|name| &**name)
    }

    /// The text of some tokens; control tokens are written by name if `with_special`, and left out otherwise.
    pub fn decode(&self, tokens: &[u32], with_special: bool) -> String {
        String::from_utf8_lossy(&self.decode_bytes(tokens, with_special)).into_owned()
    }

    /// As `decode`, byte for byte: the tokens need not make whole characters.
    pub fn decode_bytes(&self, tokens: &[u32], with_special: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        for token in tokens {
            match self.kinds.get(*token as usize) {
                Some(Kind::Control) if with_special => bytes.extend_from_slice(self.names[*token as usize].as_bytes()),
                _ => bytes.extend_from_slice(self.token_bytes(*token)),
            }
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
        self.kinds.get(token as usize) == Some(&Kind::Control)
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
        self.names.len()
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens)", self.vocab_len())
    }
}

/// Tokens that are looked for before anything is merged: the first one in the text, the longest of those.
struct Added {
    names: Option<AhoCorasick>,
    tokens: Vec<u32>,
}

impl Added {
    fn new(names: &[Box<str>], kinds: &[Kind], wanted: impl Fn(Kind) -> bool) -> Result<Added, LoadError> {
        let found = |i: &u32| wanted(kinds[*i as usize]) && !names[*i as usize].is_empty();
        let tokens: Vec<u32> = (0..names.len() as u32).filter(found).collect();
        if tokens.is_empty() {
            return Ok(Added { names: None, tokens });
        }
        let patterns = tokens.iter().map(|i| names[*i as usize].as_bytes());
        let names = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(patterns);
        let names = names.map_err(|e| LoadError::corrupt("the control tokens", e.to_string()))?;
        Ok(Added { names: Some(names), tokens })
    }

    fn split_first<'t>(&self, text: &'t str) -> Option<(&'t str, u32, &'t str)> {
        let found = self.names.as_ref()?.find(text)?;
        Some((&text[..found.start()], self.tokens[found.pattern().as_usize()], &text[found.end()..]))
    }
}

fn read_names(gguf: &Gguf<'_>) -> Result<Vec<Box<str>>, LoadError> {
    let tokens = gguf.array(TOKENS)?.ok_or_else(|| LoadError::missing(format!("metadata key {TOKENS:?}")))?;
    if tokens.is_empty() || tokens.len() > i32::MAX as usize {
        return Err(LoadError::corrupt(format!("metadata key {TOKENS:?}"), format!("has {} tokens", tokens.len())));
    }
    let strings = tokens.strings(TOKENS)?;
    Ok(strings.map(|bytes| String::from_utf8_lossy(bytes).into_owned().into_boxed_str()).collect())
}

fn read_kinds(gguf: &Gguf<'_>, count: usize) -> Result<Vec<Kind>, LoadError> {
    let Some(types) = gguf.array(TYPES)? else { return Ok(vec![Kind::Text; count]) };
    if types.len() != count {
        let why = format!("has {} entries, and there are {count} tokens", types.len());
        return Err(LoadError::corrupt(format!("metadata key {TYPES:?}"), why));
    }
    let kind = |value: crate::gguf::Value<'_>| match value.as_integer() {
        Some(3) => Kind::Control,
        Some(4) => Kind::UserDefined,
        _ => Kind::Text,
    };
    Ok(types.iter().map(kind).collect())
}

fn read_id(gguf: &Gguf<'_>, key: &str, count: usize) -> Result<Option<u32>, LoadError> {
    match gguf.u32(key)? {
        Some(id) if id as usize >= count => {
            Err(LoadError::corrupt(format!("metadata key {key:?}"), format!("{id} is none of {count} tokens")))
        }
        id => Ok(id),
    }
}

fn build_merger(gguf: &Gguf<'_>, names: &[Box<str>], pre: &str) -> Result<Merger, LoadError> {
    let (split, ignore_merges) = match pre {
        "llama-bpe" | "llama3" | "llama-v3" => (SPLIT_LLAMA3, true),
        "qwen2" => (SPLIT_QWEN2, false),
        "gpt-2" | "default" => (SPLIT_GPT2, false),
        _ => {
            return Err(LoadError::unsupported(format!("pre-tokenizer {pre:?} (metadata key \"tokenizer.ggml.pre\")")));
        }
    };
    let merges = gguf.array(MERGES)?.ok_or_else(|| LoadError::missing(format!("metadata key {MERGES:?}")))?;
    let corrupt = |why: String| LoadError::corrupt(format!("metadata key {MERGES:?}"), why);
    let mut pairs = Vec::with_capacity(merges.len());
    for (index, merge) in merges.strings(MERGES)?.enumerate() {
        let text = std::str::from_utf8(merge).ok();
        // Neither half is empty, so the space that parts them is not the first character.
        let cut = text.and_then(|t| t.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| t.split_at(at)));
        let (left, right) = cut.ok_or_else(|| corrupt(format!("entry {index} is no pair of tokens")))?;
        pairs.push((left.to_owned(), right[1..].to_owned()));
    }
    let mut vocab = Vocab::with_capacity(names.len());
    for (id, name) in names.iter().enumerate() {
        // Of two tokens with one name the first is the one that text becomes.
        vocab.entry(name.to_string()).or_insert(id as u32);
    }
    let bpe = BPE::builder().vocab_and_merges(vocab, pairs);
    let bpe = bpe.ignore_merges(ignore_merges).build().map_err(|e| corrupt(e.to_string()))?;
    let mut merger = Merger::new(bpe);
    let split = Split::new(SplitPattern::Regex(split.to_owned()), SplitDelimiterBehavior::Isolated, false)
        .expect("the pattern is a constant that compiles");
    let steps =
        vec![PreTokenizerWrapper::Split(split), PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, false))];
    merger.with_pre_tokenizer(Some(PreTokenizerWrapper::Sequence(Sequence::new(steps))));
    Ok(merger)
}

/// Appends what a token of the byte-level alphabet stands for.
fn append_bytes(name: &str, out: &mut Vec<u8>) {
    for c in name.chars() {
        match byte_of(c) {
            Some(byte) => out.push(byte),
            // Not of the alphabet: some vocabularies have plain text among their tokens.
            None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}
