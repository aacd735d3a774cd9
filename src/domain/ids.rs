//! Identifiers, checked where they enter.

use std::fmt;
use std::ops::Deref;

use serde::{Serialize, Serializer};

use super::limits::CORRELATION_ID_LEN_MAX;

/// A UUID as 128 bits; prints in the lower-case hyphenated form of RFC 9562.
///
/// Any version is accepted, and both letter cases, but only the hyphenated form: a client that sends
/// another spelling would not find its own id in our answers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uuid(pub u128);

pub type TaskId = Uuid;
pub type SessionId = Uuid;

impl Uuid {
    /// Reads `8-4-4-4-12` hexadecimal digits.
    pub fn parse(text: &str) -> Option<Uuid> {
        // The other forms that the library reads have other lengths.
        let read = if text.len() == 36 { uuid::Uuid::try_parse(text).ok() } else { None };
        read.map(|id| Uuid(id.as_u128()))
    }

    /// As it is printed.
    pub fn text(self) -> UuidText {
        let mut digits = [0; 36];
        uuid::Uuid::from_u128(self.0).hyphenated().encode_lower(&mut digits);
        UuidText(digits)
    }
}

/// A UUID's digits and hyphens.
pub struct UuidText([u8; 36]);

impl Deref for UuidText {
    type Target = str;

    fn deref(&self) -> &str {
        std::str::from_utf8(&self.0).expect("digits and hyphens are ASCII")
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text())
    }
}

impl Serialize for Uuid {
    fn serialize<S: Serializer>(&self, writer: S) -> Result<S::Ok, S::Error> {
        writer.serialize_str(&self.text())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What ties an answer and the log's lines to a request: printable ASCII. It lies where it is used, for every request has
/// one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CorrelationId {
    len: u8,
    bytes: [u8; CORRELATION_ID_LEN_MAX],
}

impl CorrelationId {
    /// The client's own, if it is fit to be echoed.
    pub fn new(text: &[u8]) -> Option<CorrelationId> {
        let is_fit = (1..=CORRELATION_ID_LEN_MAX).contains(&text.len()) && text.iter().all(u8::is_ascii_graphic);
        is_fit.then(|| {
            let mut bytes = [0; CORRELATION_ID_LEN_MAX];
            bytes[..text.len()].copy_from_slice(text);
            CorrelationId { len: text.len() as u8, bytes }
        })
    }

    /// A new one: a random UUID.
    pub fn fresh() -> CorrelationId {
        let mut bytes = [0; CORRELATION_ID_LEN_MAX];
        let len = uuid::Uuid::new_v4().hyphenated().encode_lower(&mut bytes).len() as u8;
        CorrelationId { len, bytes }
    }
}

impl Deref for CorrelationId {
    type Target = str;

    fn deref(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).expect("it is ASCII")
    }
}

impl fmt::Display for CorrelationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self)
    }
}

impl fmt::Debug for CorrelationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_prints_as_it_was_written() {
        let text = "0190163d-8694-739b-aea5-966c26f8ad91";
        assert_eq!(Uuid::parse(text).unwrap().to_string(), text);
        let upper = Uuid::parse("0190163D-8694-739B-AEA5-966C26F8AD91").unwrap();
        assert_eq!(upper.to_string(), text);
    }

    #[test]
    fn anything_but_the_hyphenated_form_is_refused() {
        for text in [
            "",
            "0190163d8694739baea5966c26f8ad91",
            "0190163d-8694-739b-aea5-966c26f8ad9",
            "0190163d-8694-739b-aea5-966c26f8ad911",
            "0190163g-8694-739b-aea5-966c26f8ad91",
            "{0190163d-8694-739b-aea5-966c26f8ad9}",
            "0190163d+8694-739b-aea5-966c26f8ad91",
            "é190163d-8694-739b-aea5-966c26f8ad9",
        ] {
            assert_eq!(Uuid::parse(text), None, "{text}");
        }
    }
}
