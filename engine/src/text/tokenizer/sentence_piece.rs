//! SentencePiece's BPE from a GGUF file's metadata or its own file: neighbours are merged into the token with the highest score first.
//!
//! Source: Kudo and Richardson 2018; order of ties and the fall-back to bytes as llama.cpp has them.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::vocabulary::{Kind, Vocabulary};
use crate::LoadError;
use crate::gguf::Gguf;

const SCORES: &str = "tokenizer.ggml.scores";
const ADD_SPACE: &str = "tokenizer.ggml.add_space_prefix";

/// How a space is written in the vocabulary.
const SPACE: &str = "\u{2581}";

pub(super) struct SentencePiece {
    /// Tokens that text may become, with their scores.
    pieces: std::collections::HashMap<Box<str>, (u32, f32)>,
    /// The token of each byte.
    bytes: Vec<Option<u32>>,
    unknown: Option<u32>,
    adds_space: bool,
}

impl SentencePiece {
    /// # Errors
    ///
    /// When there are not as many scores as tokens, or a byte that no token can write.
    pub fn from_gguf(gguf: &Gguf<'_>, vocabulary: &Vocabulary) -> Result<SentencePiece, LoadError> {
        let scores = gguf.array(SCORES)?.ok_or_else(|| LoadError::missing(format!("metadata key {SCORES:?}")))?;
        let corrupt = |why: String| LoadError::corrupt(format!("metadata key {SCORES:?}"), why);
        if scores.len() != vocabulary.len() {
            return Err(corrupt(format!("has {} entries, and there are {} tokens", scores.len(), vocabulary.len())));
        }
        let scores: Option<Vec<f32>> = scores.iter().map(|s| s.as_float().map(|s| s as f32)).collect();
        let scores = scores.ok_or_else(|| corrupt("must be an array of numbers".to_owned()))?;
        SentencePiece::new(vocabulary, &scores, gguf.bool(ADD_SPACE)?.unwrap_or(true))
    }

    /// From the score of each token of a vocabulary.
    ///
    /// # Errors
    ///
    /// When there is a byte that no token can write.
    pub fn new(vocabulary: &Vocabulary, scores: &[f32], adds_space: bool) -> Result<SentencePiece, LoadError> {
        let pieces = vocabulary.ids().filter(|(_, id)| {
            // Plain text never becomes a control token, whatever its letters are.
            matches!(vocabulary.kind(*id), Some(Kind::Text | Kind::UserDefined))
        });
        let pieces = pieces.map(|(name, id)| (name.into(), (id, scores[id as usize]))).collect();
        let unknown = (0..vocabulary.len() as u32).find(|id| vocabulary.kind(*id) == Some(Kind::Unknown));
        let bytes: Vec<Option<u32>> = (0..=255u8).map(|byte| vocabulary.id(&format!("<0x{byte:02X}>"))).collect();
        if unknown.is_none() && bytes.iter().any(Option::is_none) {
            return Err(LoadError::corrupt(
                "the vocabulary",
                "has neither a token for every byte nor one for the unknown",
            ));
        }
        Ok(SentencePiece { pieces, bytes, unknown, adds_space })
    }

    /// True when a space is put before every text.
    pub fn adds_space(&self) -> bool {
        self.adds_space
    }

    pub fn encode(&self, text: &str, tokens: &mut Vec<u32>) {
        let text = format!("{}{}", if self.adds_space { SPACE } else { "" }, text.replace(' ', SPACE));
        let mut merging = Merging::new(self, &text);
        while let Some(best) = merging.candidates.pop() {
            merging.merge(best);
        }
        let mut at = 0;
        while at != NONE {
            let symbol = &merging.symbols[at];
            self.put(&text[symbol.start..symbol.end], tokens);
            at = symbol.next;
        }
    }

    /// The token of a piece that nothing more is merged with, or those of its bytes.
    fn put(&self, piece: &str, tokens: &mut Vec<u32>) {
        if let Some((id, _)) = self.pieces.get(piece) {
            tokens.push(*id);
            return;
        }
        let bytes: Option<Vec<u32>> = piece.bytes().map(|b| self.bytes[b as usize]).collect();
        match (bytes, self.unknown) {
            (Some(bytes), _) => tokens.extend(bytes),
            (None, Some(unknown)) => tokens.push(unknown),
            (None, None) => unreachable!("it was checked when the tokenizer was read"),
        }
    }
}

/// No symbol: the ends of the list.
const NONE: usize = usize::MAX;

/// Characters at first, then pieces: a list in the order of the text. An empty one was merged into another.
struct Symbol {
    start: usize,
    end: usize,
    before: usize,
    next: usize,
}

/// Two neighbours that are a token together.
struct Candidate {
    score: f32,
    left: usize,
    right: usize,
    /// Length of both together, by which it is known whether they have changed since.
    len: usize,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Candidate) -> Ordering {
        // The highest score, of equals the first in the text.
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Candidate) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Candidate) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

struct Merging<'a> {
    by: &'a SentencePiece,
    text: &'a str,
    symbols: Vec<Symbol>,
    candidates: BinaryHeap<Candidate>,
}

impl<'a> Merging<'a> {
    fn new(by: &'a SentencePiece, text: &'a str) -> Merging<'a> {
        let count = text.chars().count();
        let symbols = text.char_indices().enumerate().map(|(index, (start, c))| Symbol {
            start,
            end: start + c.len_utf8(),
            before: index.checked_sub(1).unwrap_or(NONE),
            next: if index + 1 < count { index + 1 } else { NONE },
        });
        let symbols: Vec<Symbol> = symbols.collect();
        let mut merging = Merging { by, text, symbols, candidates: BinaryHeap::new() };
        (1..count).for_each(|right| merging.consider(right - 1, right));
        merging
    }

    fn consider(&mut self, left: usize, right: usize) {
        if left == NONE || right == NONE {
            return;
        }
        let (start, end) = (self.symbols[left].start, self.symbols[right].end);
        if let Some((_, score)) = self.by.pieces.get(&self.text[start..end]) {
            self.candidates.push(Candidate { score: *score, left, right, len: end - start });
        }
    }

    fn merge(&mut self, best: Candidate) {
        let (left, right) = (&self.symbols[best.left], &self.symbols[best.right]);
        let is_gone = |symbol: &Symbol| symbol.start == symbol.end;
        if is_gone(left) || is_gone(right) || right.end - left.start != best.len {
            return;
        }
        let (end, next) = (right.end, right.next);
        self.symbols[best.left].end = end;
        self.symbols[best.left].next = next;
        let gone = &mut self.symbols[best.right];
        gone.start = gone.end;
        if next != NONE {
            self.symbols[next].before = best.left;
        }
        self.consider(self.symbols[best.left].before, best.left);
        self.consider(best.left, next);
    }
}

/// Appends what a token stands for: a byte by its number, else its name with spaces for what marks them.
pub(super) fn append_bytes(name: &str, kind: Kind, out: &mut Vec<u8>) {
    match byte_named(name) {
        Some(byte) if kind == Kind::Byte => out.push(byte),
        _ => out.extend_from_slice(name.replace(SPACE, " ").as_bytes()),
    }
}

/// The byte that is written as `<0x41>`.
pub(super) fn byte_named(name: &str) -> Option<u8> {
    let digits = name.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}
