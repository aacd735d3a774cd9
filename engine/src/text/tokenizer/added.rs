//! Tokens that are looked for before anything is merged.

use aho_corasick::{AhoCorasick, MatchKind};

use super::vocabulary::{Kind, Vocabulary};
use crate::LoadError;

/// Finds the first one in the text, the longest of those that begin there.
pub(super) struct Added {
    names: Option<AhoCorasick>,
    tokens: Vec<u32>,
}

impl Added {
    /// Those whose kind is wanted.
    ///
    /// # Errors
    ///
    /// When there are more of them than can be searched for.
    pub fn new(vocabulary: &Vocabulary, wanted: impl Fn(Kind) -> bool) -> Result<Added, LoadError> {
        let name = |id: &u32| vocabulary.name(*id).unwrap_or_default();
        // A name that is not UTF-8 was replaced, and is not found under its replacement.
        let found = |id: &u32| {
            wanted(vocabulary.kind(*id).expect("an id of the vocabulary")) && vocabulary.id(name(id)) == Some(*id)
        };
        let tokens: Vec<u32> = (0..vocabulary.len() as u32).filter(found).filter(|id| !name(id).is_empty()).collect();
        if tokens.is_empty() {
            return Ok(Added { names: None, tokens });
        }
        let names = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(tokens.iter().map(name));
        let names = names.map_err(|e| LoadError::corrupt("the control tokens", e.to_string()))?;
        Ok(Added { names: Some(names), tokens })
    }

    /// The text before the first one, that one, and the text after it.
    pub fn split_first<'t>(&self, text: &'t str) -> Option<(&'t str, u32, &'t str)> {
        let found = self.names.as_ref()?.find(text)?;
        Some((&text[..found.start()], self.tokens[found.pattern().as_usize()], &text[found.end()..]))
    }
}
