//! The tokens of a model: what each is called, what it is for, and what it adds to a text.

use ahash::AHashMap;

use crate::LoadError;
use crate::gguf::{Gguf, Value};

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    /// Stands for text that no other token can write.
    Unknown,
    /// Steers the model; no text comes of it.
    Control,
    /// Text that is found before anything is merged.
    UserDefined,
    /// Fills up the vocabulary.
    Unused,
    /// One byte, where no other token fits.
    Byte,
}

pub(super) struct Vocabulary {
    /// Each token as the file writes it; what is not UTF-8 is replaced.
    names: Vec<Box<str>>,
    kinds: Vec<Kind>,
    /// The bytes of every token, one after the other, and where each begins.
    bytes: Vec<u8>,
    starts: Vec<u32>,
    bytes_max: usize,
    /// The first token of each name that is UTF-8.
    ids: AHashMap<Box<str>, u32>,
}

impl Vocabulary {
    /// `raw` gives each token as the file writes it. `append_bytes` says what a token of ordinary text stands for.
    pub fn new<'a>(
        raw: impl Iterator<Item = &'a [u8]>,
        kinds: Vec<Kind>,
        append_bytes: impl Fn(&str, Kind, &mut Vec<u8>),
    ) -> Vocabulary {
        let (mut names, mut ids) = (Vec::with_capacity(kinds.len()), AHashMap::with_capacity(kinds.len()));
        let (mut bytes, mut starts) = (Vec::new(), vec![0u32]);
        for (index, raw) in raw.enumerate() {
            let kind = kinds[index];
            let name = std::str::from_utf8(raw);
            match (kind, name) {
                (Kind::Control, _) => {}
                // What is no text is its own bytes: nothing else could be meant.
                (_, Err(_)) | (Kind::UserDefined, Ok(_)) => bytes.extend_from_slice(raw),
                (_, Ok(name)) => append_bytes(name, kind, &mut bytes),
            }
            if let Ok(name) = name {
                // Of two tokens with one name the first is the one that text becomes.
                ids.entry(name.into()).or_insert(index as u32);
            }
            names.push(String::from_utf8_lossy(raw).into());
            starts.push(bytes.len() as u32);
        }
        let bytes_max = starts.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0);
        Vocabulary { names, kinds, bytes, starts, bytes_max, ids }
    }

    /// # Errors
    ///
    /// When the file has no tokens, or not as many types as tokens.
    pub fn from_gguf(
        gguf: &Gguf<'_>,
        append_bytes: impl Fn(&str, Kind, &mut Vec<u8>),
    ) -> Result<Vocabulary, LoadError> {
        let tokens = gguf.array(TOKENS)?.ok_or_else(|| LoadError::missing(format!("metadata key {TOKENS:?}")))?;
        if tokens.is_empty() || tokens.len() > i32::MAX as usize {
            let why = format!("has {} tokens", tokens.len());
            return Err(LoadError::corrupt(format!("metadata key {TOKENS:?}"), why));
        }
        let kinds = read_kinds(gguf, tokens.len())?;
        Ok(Vocabulary::new(tokens.strings(TOKENS)?, kinds, append_bytes))
    }

    pub fn len(&self) -> usize {
        self.names.len()
    }

    pub fn name(&self, token: u32) -> Option<&str> {
        self.names.get(token as usize).map(|name| &**name)
    }

    pub fn kind(&self, token: u32) -> Option<Kind> {
        self.kinds.get(token as usize).copied()
    }

    /// The token of a name.
    pub fn id(&self, name: &str) -> Option<u32> {
        self.ids.get(name).copied()
    }

    /// Every name that is UTF-8, with its token.
    pub fn ids(&self) -> impl Iterator<Item = (&str, u32)> {
        self.ids.iter().map(|(name, id)| (&**name, *id))
    }

    pub fn bytes(&self, token: u32) -> &[u8] {
        let at = token as usize;
        if at + 1 >= self.starts.len() {
            return &[];
        }
        &self.bytes[self.starts[at] as usize..self.starts[at + 1] as usize]
    }

    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }
}

fn read_kinds(gguf: &Gguf<'_>, count: usize) -> Result<Vec<Kind>, LoadError> {
    let Some(types) = gguf.array(TYPES)? else { return Ok(vec![Kind::Text; count]) };
    if types.len() != count {
        let why = format!("has {} entries, and there are {count} tokens", types.len());
        return Err(LoadError::corrupt(format!("metadata key {TYPES:?}"), why));
    }
    let kind = |value: Value<'_>| match value.as_integer() {
        Some(2) => Kind::Unknown,
        Some(3) => Kind::Control,
        Some(4) => Kind::UserDefined,
        Some(5) => Kind::Unused,
        Some(6) => Kind::Byte,
        _ => Kind::Text,
    };
    Ok(types.iter().map(kind).collect())
}
