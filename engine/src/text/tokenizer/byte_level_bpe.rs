//! Byte-level BPE from a GGUF file's metadata; a text is cut by the `tokenizers` crate.
//!
//! Source: Radford et al. 2019 (GPT-2). How a text is cut before merging is known by name (`tokenizer.ggml.pre`); to add
//! one, add a line to [`Cut::by_name`].

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use ahash::AHashMap;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    NormalizedString, Normalizer, NormalizerWrapper, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
    SplitDelimiterBehavior,
};

use super::vocabulary::{Kind, Vocabulary};
use crate::LoadError;
use crate::gguf::Gguf;
use crate::text::byte_level::byte_of;

/// Llama 3's.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen2's: as Llama 3's, but digits stand alone.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// GPT-2's.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// GPT-4o's: words are cut where capitals begin.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral Nemo's: as GPT-4o's, without contractions, digits alone.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const MERGES: &str = "tokenizer.ggml.merges";

/// How a text is cut before anything is merged.
struct Cut {
    pattern: &'static str,
    /// Digits are cut off one by one before that.
    single_digits: bool,
    /// A piece that is a token stays whole, whatever its merges say.
    ignore_merges: bool,
    /// Characters are composed first (Unicode NFC).
    composes: bool,
    adds_bos: bool,
}

impl Cut {
    fn by_name(pre: &str) -> Option<Cut> {
        let plain =
            |pattern| Cut { pattern, single_digits: false, ignore_merges: false, composes: false, adds_bos: false };
        Some(match pre {
            "llama-bpe" | "llama3" | "llama-v3" => Cut { ignore_merges: true, adds_bos: true, ..plain(LLAMA3) },
            "qwen2" | "deepseek-r1-qwen" => Cut { composes: true, ..plain(QWEN2) },
            "gpt-2" | "default" | "phi-2" => plain(GPT2),
            "smollm" | "starcoder" | "refact" => Cut { single_digits: true, ..plain(GPT2) },
            "gpt-4o" => plain(GPT4O),
            "tekken" => Cut { ignore_merges: true, adds_bos: true, ..plain(TEKKEN) },
            _ => return None,
        })
    }
}

/// Whether models that cut like this want their first token in front, when the file does not say.
pub(super) fn adds_bos(pre: &str) -> bool {
    Cut::by_name(pre).is_some_and(|cut| cut.adds_bos)
}

/// Of two neighbours: the rank of their merge, of which the lowest goes first, and the token that they become.
type Merges = AHashMap<(u32, u32), (u32, u32)>;

/// Merging of ours over the crate's cutting: its own wants half a million strings made when a model is loaded.
pub(super) struct ByteLevelBpe {
    normalizer: Option<NormalizerWrapper>,
    cutter: Sequence,
    ignore_merges: bool,
    /// The token of each letter of the alphabet.
    letters: AHashMap<char, u32>,
    merges: Merges,
}

impl ByteLevelBpe {
    /// # Errors
    ///
    /// When the cut is not known by name, or the merges are none of the vocabulary's.
    pub fn from_gguf(gguf: &Gguf<'_>, vocabulary: &Vocabulary, pre: &str) -> Result<ByteLevelBpe, LoadError> {
        let cut = Cut::by_name(pre).ok_or_else(|| {
            LoadError::unsupported(format!("pre-tokenizer {pre:?} (metadata key \"tokenizer.ggml.pre\")"))
        })?;
        let split = Split::new(SplitPattern::Regex(cut.pattern.to_owned()), SplitDelimiterBehavior::Isolated, false)
            .expect("the pattern is a constant that compiles");
        let digits = cut.single_digits.then(|| PreTokenizerWrapper::Digits(Digits::new(true)));
        let bytes = PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, false));
        let steps = digits.into_iter().chain([PreTokenizerWrapper::Split(split), bytes]).collect();
        let letters = vocabulary.ids().filter_map(|(name, id)| {
            let mut chars = name.chars();
            chars.next().filter(|_| chars.next().is_none()).map(|letter| (letter, id))
        });
        Ok(ByteLevelBpe {
            normalizer: cut.composes.then_some(NormalizerWrapper::NFC(tokenizers::normalizers::NFC)),
            cutter: Sequence::new(steps),
            ignore_merges: cut.ignore_merges,
            letters: letters.collect(),
            merges: merges(gguf, vocabulary)?,
        })
    }

    pub fn encode(&self, vocabulary: &Vocabulary, text: &str, tokens: &mut Vec<u32>) {
        let mut text = NormalizedString::from(text);
        if let Some(normalizer) = &self.normalizer {
            normalizer.normalize(&mut text).expect("any text can be composed");
        }
        let mut pieces = PreTokenizedString::from(text);
        self.cutter.pre_tokenize(&mut pieces).expect("any text can be cut");
        for (piece, ..) in pieces.get_splits(OffsetReferential::Normalized, OffsetType::None) {
            match vocabulary.id(piece) {
                Some(id) if self.ignore_merges => tokens.push(id),
                _ => self.merge(piece, tokens),
            }
        }
    }

    fn merge(&self, piece: &str, tokens: &mut Vec<u32>) {
        // A letter without a token of its own is left out, as the crate leaves it out.
        let letters = piece.chars().filter_map(|letter| self.letters.get(&letter));
        let mut symbols: Vec<Symbol> = letters
            .enumerate()
            .map(|(at, token)| Symbol { token: *token, before: at.wrapping_sub(1), next: at + 1 })
            .collect();
        let mut candidates: BinaryHeap<Reverse<Candidate>> = BinaryHeap::new();
        (1..symbols.len()).for_each(|right| self.consider(&symbols, right - 1, right, &mut candidates));
        while let Some(Reverse(best)) = candidates.pop() {
            let Candidate { left, right, pair, becomes, .. } = best;
            // One of them was merged into another since.
            if symbols[left].next != right || (symbols[left].token, symbols[right].token) != pair {
                continue;
            }
            let next = symbols[right].next;
            symbols[left].token = becomes;
            symbols[left].next = next;
            symbols[right].token = NONE;
            if let Some(after) = symbols.get_mut(next) {
                after.before = left;
            }
            self.consider(&symbols, symbols[left].before, left, &mut candidates);
            self.consider(&symbols, left, next, &mut candidates);
        }
        tokens.extend(symbols.iter().map(|s| s.token).filter(|token| *token != NONE));
    }

    fn consider(&self, symbols: &[Symbol], left: usize, right: usize, out: &mut BinaryHeap<Reverse<Candidate>>) {
        let (Some(a), Some(b)) = (symbols.get(left), symbols.get(right)) else { return };
        let pair = (a.token, b.token);
        if let Some((rank, becomes)) = self.merges.get(&pair) {
            out.push(Reverse(Candidate { rank: *rank, left, right, pair, becomes: *becomes }));
        }
    }
}

/// No token: a symbol that was merged into the one before it.
const NONE: u32 = u32::MAX;

/// Letters at first, then what they were merged into: a list in the order of the text. Beyond its ends there is nothing.
struct Symbol {
    token: u32,
    before: usize,
    next: usize,
}

/// Two neighbours that are a token together. The lowest rank goes first, of equals the first in the text.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    left: usize,
    right: usize,
    pair: (u32, u32),
    becomes: u32,
}

/// Threads that look up merges, at most: a start has hundreds of thousands of them before it, and little else to do.
const LOOKUP_THREADS_MAX: usize = 4;

/// Merges that are worth a thread.
const LOOKUP_LEN_MIN: usize = 8192;

/// # Errors
///
/// When an entry is no pair of tokens that make a third.
fn merges(gguf: &Gguf<'_>, vocabulary: &Vocabulary) -> Result<Merges, LoadError> {
    let entries = gguf.array(MERGES)?.ok_or_else(|| LoadError::missing(format!("metadata key {MERGES:?}")))?;
    let entries: Vec<&[u8]> = entries.strings(MERGES)?.collect();
    let there = std::thread::available_parallelism().map_or(1, usize::from).min(LOOKUP_THREADS_MAX);
    let part_len = entries.len().div_ceil(there).max(LOOKUP_LEN_MIN);
    let found: Vec<Result<Vec<[u32; 3]>, LoadError>> = std::thread::scope(|scope| {
        let look_up = |(first, part): (usize, &[&[u8]])| look_up(vocabulary, first, part);
        let mut parts = (0..).step_by(part_len).zip(entries.chunks(part_len));
        let own = parts.next();
        let others: Vec<_> = parts.map(|part| scope.spawn(move || look_up(part))).collect();
        let others = others.into_iter().map(|thread| thread.join().expect("looking up does not panic"));
        own.map(look_up).into_iter().chain(others).collect()
    });
    let mut merges = AHashMap::with_capacity(entries.len());
    let mut rank = 0;
    // The first part's error is the first entry's.
    for part in found {
        for [left, right, whole] in part? {
            // Of two entries alike the last counts, as in the crate.
            merges.insert((left, right), (rank, whole));
            rank += 1;
        }
    }
    Ok(merges)
}

/// The tokens of each entry, of which the first is number `first`: left, right, and both together.
fn look_up(vocabulary: &Vocabulary, first: usize, entries: &[&[u8]]) -> Result<Vec<[u32; 3]>, LoadError> {
    let corrupt = |why: String| LoadError::corrupt(format!("metadata key {MERGES:?}"), why);
    let mut found = Vec::with_capacity(entries.len());
    let mut whole = String::new();
    for (rank, entry) in (first..).zip(entries) {
        let text = std::str::from_utf8(entry).ok();
        // Neither half is empty, so the space that parts them is not the first character.
        let cut = text.and_then(|t| Some(t.split_at(1 + t.as_bytes().get(1..)?.iter().position(|b| *b == b' ')?)));
        let (left, right) = cut.ok_or_else(|| corrupt(format!("entry {rank} is no pair of tokens")))?;
        let right = &right[1..];
        whole.clear();
        whole.push_str(left);
        whole.push_str(right);
        let id = |name: &str| {
            vocabulary.id(name).ok_or_else(|| corrupt(format!("entry {rank} needs {name:?}, which is no token")))
        };
        found.push([id(left)?, id(right)?, id(&whole)?]);
    }
    Ok(found)
}

/// Appends what a token of the byte-level alphabet stands for.
pub(super) fn append_bytes(name: &str, _: Kind, out: &mut Vec<u8>) {
    for c in name.chars() {
        match byte_of(c) {
            Some(byte) => out.push(byte),
            // Not of the alphabet: some vocabularies have plain text among their tokens.
            None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}
