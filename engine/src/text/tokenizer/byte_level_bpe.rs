//! Byte-level BPE from a GGUF file's metadata; merging is done by the `tokenizers` crate.
//!
//! Source: Radford et al. 2019 (GPT-2). How a text is cut before merging is known by name (`tokenizer.ggml.pre`); to add
//! one, add a line to [`Cut::by_name`].

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{NormalizerWrapper, SplitDelimiterBehavior, Tokenizer};

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

pub(super) struct ByteLevelBpe(Tokenizer);

impl ByteLevelBpe {
    /// # Errors
    ///
    /// When the cut is not known by name, or the merges are none.
    pub fn from_gguf(gguf: &Gguf<'_>, vocabulary: &Vocabulary, pre: &str) -> Result<ByteLevelBpe, LoadError> {
        let cut = Cut::by_name(pre).ok_or_else(|| {
            LoadError::unsupported(format!("pre-tokenizer {pre:?} (metadata key \"tokenizer.ggml.pre\")"))
        })?;
        let merges = gguf.array(MERGES)?.ok_or_else(|| LoadError::missing(format!("metadata key {MERGES:?}")))?;
        let corrupt = |why: String| LoadError::corrupt(format!("metadata key {MERGES:?}"), why);
        let mut pairs = Vec::with_capacity(merges.len());
        for (index, merge) in merges.strings(MERGES)?.enumerate() {
            let text = std::str::from_utf8(merge).ok();
            // Neither half is empty, so the space that parts them is not the first character.
            let cut =
                text.and_then(|t| t.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| t.split_at(at)));
            let (left, right) = cut.ok_or_else(|| corrupt(format!("entry {index} is no pair of tokens")))?;
            pairs.push((left.to_owned(), right[1..].to_owned()));
        }
        let vocab: Vocab = vocabulary.ids().map(|(name, id)| (name.to_owned(), id)).collect();
        let bpe = BPE::builder().vocab_and_merges(vocab, pairs).ignore_merges(cut.ignore_merges);
        let mut merger = Tokenizer::new(bpe.build().map_err(|e| corrupt(e.to_string()))?);
        if cut.composes {
            let nfc = NormalizerWrapper::NFC(tokenizers::normalizers::NFC);
            merger.with_normalizer(Some(nfc)).map_err(|e| corrupt(e.to_string()))?;
        }
        let split = Split::new(SplitPattern::Regex(cut.pattern.to_owned()), SplitDelimiterBehavior::Isolated, false)
            .expect("the pattern is a constant that compiles");
        let digits = cut.single_digits.then(|| PreTokenizerWrapper::Digits(Digits::new(true)));
        let bytes = PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, false));
        let steps = digits.into_iter().chain([PreTokenizerWrapper::Split(split), bytes]).collect();
        merger.with_pre_tokenizer(Some(PreTokenizerWrapper::Sequence(Sequence::new(steps))));
        Ok(ByteLevelBpe(merger))
    }

    pub fn encode(&self, text: &str, tokens: &mut Vec<u32>) {
        let encoding = self.0.encode_fast(text, false).expect("byte-level BPE encodes any text");
        tokens.extend_from_slice(encoding.get_ids());
    }
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
