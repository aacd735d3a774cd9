//! The tokens of a model: what each is called, what it is for, and what it adds to a text.

use ahash::RandomState;

use crate::LoadError;
use crate::gguf::{Gguf, Value};

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";

/// Bytes of a name for which there is room at first.
const NAME_LEN: usize = 8;

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
    /// Each token as the file writes it, one after the other, and where each begins; what is not UTF-8 is replaced.
    names: String,
    name_starts: Vec<usize>,
    kinds: Vec<Kind>,
    /// The bytes of every token, one after the other, and where each begins.
    bytes: Vec<u8>,
    starts: Vec<u32>,
    bytes_max: usize,
    /// The first token of each name that is UTF-8.
    index: Index,
}

impl Vocabulary {
    /// `raw` gives each token as the file writes it. `append_bytes` says what a token of ordinary text stands for.
    pub fn new<'a>(
        raw: impl Iterator<Item = &'a [u8]>,
        kinds: Vec<Kind>,
        append_bytes: impl Fn(&str, Kind, &mut Vec<u8>),
    ) -> Vocabulary {
        let mut names = String::with_capacity(kinds.len() * NAME_LEN);
        let mut name_starts = Vec::with_capacity(kinds.len() + 1);
        name_starts.push(0);
        let mut index = Index::for_count(kinds.len());
        let mut bytes = Vec::with_capacity(kinds.len() * NAME_LEN);
        let mut starts = Vec::with_capacity(kinds.len() + 1);
        starts.push(0u32);
        for (id, raw) in (0u32..).zip(raw) {
            let kind = kinds[id as usize];
            let name = std::str::from_utf8(raw);
            match (kind, name) {
                (Kind::Control, _) => {}
                // What is no text is its own bytes: nothing else could be meant.
                (_, Err(_)) | (Kind::UserDefined, Ok(_)) => bytes.extend_from_slice(raw),
                (_, Ok(name)) => append_bytes(name, kind, &mut bytes),
            }
            if let Ok(name) = name {
                // Of two tokens with one name the first is the one that text becomes.
                index.add(name, id, |other| &names[name_starts[other as usize]..name_starts[other as usize + 1]]);
            }
            names.push_str(&String::from_utf8_lossy(raw));
            name_starts.push(names.len());
            starts.push(bytes.len() as u32);
        }
        names.shrink_to_fit();
        bytes.shrink_to_fit();
        let bytes_max = starts.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0);
        Vocabulary { names, name_starts, kinds, bytes, starts, bytes_max, index }
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
        self.kinds.len()
    }

    pub fn name(&self, token: u32) -> Option<&str> {
        let end = *self.name_starts.get(token as usize + 1)?;
        Some(&self.names[self.name_starts[token as usize]..end])
    }

    pub fn kind(&self, token: u32) -> Option<Kind> {
        self.kinds.get(token as usize).copied()
    }

    /// The token of a name.
    pub fn id(&self, name: &str) -> Option<u32> {
        self.index.find(name, |id| self.name(id).expect("the index holds tokens"))
    }

    /// Every name that is UTF-8, with its token.
    pub fn ids(&self) -> impl Iterator<Item = (&str, u32)> {
        self.index.ids().map(|id| (self.name(id).expect("the index holds tokens"), id))
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

/// Tokens by their names, which lie elsewhere. A map with strings of its own as keys held each name a second time, and a start
/// waited for its allocations: half a million names of merges are looked up, and this is what they are looked up in.
///
/// Open addressing; at least a quarter of the places is free, so that a search ends soon.
struct Index {
    /// Of its own, so that no file can know which names collide.
    keys: RandomState,
    /// Half of the name's hash, and its token.
    places: Box<[(u32, u32)]>,
}

/// No token: a place that is free.
const FREE: u32 = u32::MAX;

impl Index {
    fn for_count(count: usize) -> Index {
        let place_count = (count + count / 3 + 1).next_power_of_two();
        Index { keys: RandomState::new(), places: vec![(0, FREE); place_count].into() }
    }

    /// Adds a token, unless its name has one.
    fn add<'n>(&mut self, name: &str, id: u32, name_of: impl Fn(u32) -> &'n str) {
        let (tag, place) = self.search(name, name_of);
        if self.places[place].1 == FREE {
            self.places[place] = (tag, id);
        }
    }

    fn find<'n>(&self, name: &str, name_of: impl Fn(u32) -> &'n str) -> Option<u32> {
        let (_, place) = self.search(name, name_of);
        Some(self.places[place].1).filter(|id| *id != FREE)
    }

    /// The place where the name is, or where it would be.
    fn search<'n>(&self, name: &str, name_of: impl Fn(u32) -> &'n str) -> (u32, usize) {
        let hash = self.keys.hash_one(name);
        let (tag, last) = ((hash >> 32) as u32, self.places.len() - 1);
        let mut place = hash as usize & last;
        loop {
            let (other_tag, other) = self.places[place];
            if other == FREE || other_tag == tag && name_of(other) == name {
                return (tag, place);
            }
            place = (place + 1) & last;
        }
    }

    fn ids(&self) -> impl Iterator<Item = u32> {
        self.places.iter().map(|(_, id)| *id).filter(|id| *id != FREE)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_the_first_of_two_alike_counts() {
        for count in [0, 1, 2, 3, 4, 700] {
            let mut raw: Vec<Vec<u8>> = (0..count).map(|i| format!("name {}", i % 500).into_bytes()).collect();
            raw.push(b"\xff".into());
            let kinds = vec![Kind::Text; raw.len()];
            let plain = |name: &str, _: Kind, out: &mut Vec<u8>| out.extend_from_slice(name.as_bytes());
            let vocabulary = Vocabulary::new(raw.iter().map(Vec::as_slice), kinds, plain);
            assert_eq!(vocabulary.len(), count + 1);
            for id in 0..count {
                let name = format!("name {}", id % 500);
                assert_eq!(vocabulary.name(id as u32), Some(&*name));
                assert_eq!(vocabulary.id(&name), Some(id as u32 % 500), "{count} names");
                assert_eq!(vocabulary.bytes(id as u32), name.as_bytes());
            }
            assert_eq!(vocabulary.id("name 500"), None);
            // What is not UTF-8 is not found under what stands for it.
            let odd = (vocabulary.name(count as u32), vocabulary.id("\u{fffd}"), vocabulary.name(count as u32 + 1));
            assert_eq!(odd, (Some("\u{fffd}"), None, None));
            assert_eq!(vocabulary.bytes(count as u32), b"\xff");
            assert_eq!(vocabulary.ids().count(), count.min(500));
        }
    }
}
