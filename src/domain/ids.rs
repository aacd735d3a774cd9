//! Identifiers, checked where they enter.

use std::fmt;

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
        let bytes = text.as_bytes();
        if bytes.len() != 36 {
            return None;
        }
        let mut value = 0u128;
        for (index, &byte) in bytes.iter().enumerate() {
            if matches!(index, 8 | 13 | 18 | 23) {
                if byte != b'-' {
                    return None;
                }
                continue;
            }
            value = value << 4 | u128::from((byte as char).to_digit(16)?);
        }
        Some(Uuid(value))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Every answer and every line of the log has one or two: a table beats formatting a number of 128 bits.
        let mut text = [b'-'; 36];
        let mut at = 0;
        for place in (0..32).rev() {
            if matches!(at, 8 | 13 | 18 | 23) {
                at += 1;
            }
            text[at] = b"0123456789abcdef"[(self.0 >> (4 * place)) as usize & 15];
            at += 1;
        }
        f.pad(std::str::from_utf8(&text).expect("digits and hyphens are ASCII"))
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
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
