//! Tokens of prompts that were seen before, whole or in part.
//!
//! A chat sends its whole history with every turn, and many clients share one system prompt. Between two control
//! tokens text is tokenized by itself, so the turns of a rendered chat are found again one by one; and a prompt
//! that comes again as it was is one look-up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use ahash::RandomState;
use orchestratord_engine::Tokenizer;

/// Shorter stretches of text are tokenized faster than they are looked up and kept.
const PIECE_LEN_MIN: usize = 64;

/// Bytes reckoned for an entry beyond its text and tokens.
const OVERHEAD: usize = 96;

/// How a text is read; a piece between control tokens is neither.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Reading {
    is_piece: bool,
    adds_bos: bool,
    parses_special: bool,
}

struct Entry {
    reading: Reading,
    text: Box<str>,
    tokens: Arc<[u32]>,
}

/// A bounded cache of one tokenizer's work. Two generations: when the young one holds half the bytes, it becomes
/// the old one, and what is found in the old one moves to the young one. So what is asked for again stays.
pub struct PromptCache {
    bytes_max: usize,
    hasher: RandomState,
    generations: Mutex<Generations>,
}

#[derive(Default)]
struct Generations {
    young: HashMap<u64, Entry, RandomState>,
    old: HashMap<u64, Entry, RandomState>,
    young_bytes: usize,
}

impl PromptCache {
    /// A cache of at most `bytes_max` bytes; 0 keeps nothing.
    pub fn new(bytes_max: usize) -> PromptCache {
        PromptCache { bytes_max, hasher: RandomState::new(), generations: Mutex::default() }
    }

    /// What `Tokenizer::encode` gives, from memory where it can be.
    pub fn encode(&self, tokenizer: &Tokenizer, text: &str, adds_bos: bool, parses_special: bool) -> Arc<[u32]> {
        let whole = Reading { is_piece: false, adds_bos, parses_special };
        if let Some(tokens) = self.find(whole, text) {
            return tokens;
        }
        let piece_reading = Reading { is_piece: true, adds_bos: false, parses_special: false };
        let tokens = tokenizer.encode_with(text, adds_bos, parses_special, |piece, tokens| {
            let is_kept = (PIECE_LEN_MIN..text.len()).contains(&piece.len());
            if let Some(known) = is_kept.then(|| self.find(piece_reading, piece)).flatten() {
                tokens.extend_from_slice(&known);
                return;
            }
            let begin = tokens.len();
            tokenizer.encode_piece(piece, tokens);
            if is_kept {
                self.keep(piece_reading, piece, tokens[begin..].into());
            }
        });
        let tokens: Arc<[u32]> = tokens.into();
        self.keep(whole, text, tokens.clone());
        tokens
    }

    fn find(&self, reading: Reading, text: &str) -> Option<Arc<[u32]>> {
        let hash = self.hasher.hash_one((reading, text));
        let mut guard = self.generations.lock().expect("nothing panics under this lock");
        let is_it = |entry: &Entry| entry.reading == reading && *entry.text == *text;
        if let Some(entry) = guard.young.get(&hash) {
            return is_it(entry).then(|| entry.tokens.clone());
        }
        let entry = guard.old.remove(&hash).filter(is_it)?;
        let tokens = entry.tokens.clone();
        guard.insert(hash, entry, self.bytes_max);
        Some(tokens)
    }

    fn keep(&self, reading: Reading, text: &str, tokens: Arc<[u32]>) {
        let entry = Entry { reading, text: text.into(), tokens };
        if entry.bytes() <= self.bytes_max / 2 {
            let hash = self.hasher.hash_one((reading, text));
            let mut guard = self.generations.lock().expect("nothing panics under this lock");
            guard.insert(hash, entry, self.bytes_max);
        }
    }

    /// Bytes that the cache reckons for what it holds.
    #[cfg(test)]
    fn bytes(&self) -> usize {
        let guard = self.generations.lock().unwrap();
        guard.young.values().chain(guard.old.values()).map(Entry::bytes).sum()
    }
}

impl Entry {
    fn bytes(&self) -> usize {
        self.text.len() + self.tokens.len() * size_of::<u32>() + OVERHEAD
    }
}

impl Generations {
    fn insert(&mut self, hash: u64, entry: Entry, bytes_max: usize) {
        if self.young_bytes + entry.bytes() > bytes_max / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += entry.bytes();
        if let Some(replaced) = self.young.insert(hash, entry) {
            self.young_bytes -= replaced.bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orchestratord_engine::Model;

    fn check(cache: &PromptCache, model: &Model, text: &str) {
        let tokenizer = model.tokenizer();
        for (adds_bos, parses_special) in [(true, false), (false, false), (true, true), (false, true)] {
            let expected = tokenizer.encode(text, adds_bos, parses_special);
            for _ in 0..2 {
                assert_eq!(*cache.encode(tokenizer, text, adds_bos, parses_special), *expected, "{text:?}");
            }
        }
    }

    fn model() -> Model {
        Model::from_static(crate::default_model::bytes()).unwrap()
    }

    #[test]
    fn cached_tokens_are_the_tokens() {
        let model = model();
        let control = (0..model.tokenizer().vocab_len() as u32)
            .filter(|t| model.tokenizer().is_control(*t))
            .filter_map(|t| model.tokenizer().token_name(t))
            .next_back()
            .expect("the model has control tokens");
        let long = "the quick brown fox jumps over the lazy dog, and ".repeat(4);
        let chat = format!("{control}user\n{long}{control}\n{control}assistant\n");
        for bytes_max in [0, 2_000, 1 << 20] {
            let cache = PromptCache::new(bytes_max);
            for text in ["", "a", "é🦀", &long, &chat, &format!("{chat}{long}?{control}"), &chat] {
                check(&cache, &model, text);
            }
            assert!(cache.bytes() <= bytes_max, "{} bytes of {bytes_max}", cache.bytes());
        }
    }

    #[test]
    fn what_is_asked_for_again_stays_and_what_is_not_goes() {
        let model = model();
        let cache = PromptCache::new(4_000);
        let text = |n: usize| format!("number {n} of many, each of them about as long as the others");
        let first = cache.encode(model.tokenizer(), &text(0), true, false);
        for n in 1..200 {
            cache.encode(model.tokenizer(), &text(n), true, false);
            let again = cache.encode(model.tokenizer(), &text(0), true, false);
            assert!(Arc::ptr_eq(&first, &again), "it was made anew after {n} others");
            assert!(cache.bytes() <= 4_000);
        }
    }
}
