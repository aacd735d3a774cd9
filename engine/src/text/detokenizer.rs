//! Bytes of tokens to text, never half a character.

/// Turns a stream of bytes into text as `String::from_utf8_lossy` would turn the whole, but as early as possible.
#[derive(Clone, Copy, Debug, Default)]
pub struct Detokenizer {
    /// The beginning of a character whose end has not come yet.
    pending: [u8; 4],
    pending_len: usize,
}

impl Detokenizer {
    /// Takes the next bytes and appends to `out` what they complete.
    pub fn push(&mut self, bytes: &[u8], out: &mut String) {
        let mut bytes = bytes;
        while self.pending_len > 0 {
            let Some((first, rest)) = bytes.split_first() else { return };
            bytes = rest;
            self.pending[self.pending_len] = *first;
            self.pending_len += 1;
            self.settle_pending(out);
        }
        while let Err(error) = std::str::from_utf8(bytes) {
            let (valid, rest) = bytes.split_at(error.valid_up_to());
            out.push_str(std::str::from_utf8(valid).expect("it is valid up to here"));
            let Some(bad_len) = error.error_len() else {
                self.pending[..rest.len()].copy_from_slice(rest);
                self.pending_len = rest.len();
                return;
            };
            out.push(char::REPLACEMENT_CHARACTER);
            bytes = &rest[bad_len..];
        }
        out.push_str(std::str::from_utf8(bytes).expect("the loop has seen that it is valid"));
    }

    /// Ends the stream: what is left of a character becomes U+FFFD.
    pub fn finish(&mut self, out: &mut String) {
        if self.pending_len > 0 {
            out.push(char::REPLACEMENT_CHARACTER);
            self.pending_len = 0;
        }
    }

    /// Moves what is decided out of `pending`.
    fn settle_pending(&mut self, out: &mut String) {
        while self.pending_len > 0 {
            match std::str::from_utf8(&self.pending[..self.pending_len]) {
                Ok(text) => {
                    out.push_str(text);
                    self.pending_len = 0;
                }
                Err(error) => {
                    // Here nothing valid stands before an error: a whole character would have been taken out.
                    let Some(bad_len) = error.error_len() else {
                        let valid = error.valid_up_to();
                        let text = std::str::from_utf8(&self.pending[..valid]).expect("it is valid up to here");
                        out.push_str(text);
                        self.drop_pending(valid);
                        return;
                    };
                    let valid = error.valid_up_to();
                    let text = std::str::from_utf8(&self.pending[..valid]).expect("it is valid up to here");
                    out.push_str(text);
                    out.push(char::REPLACEMENT_CHARACTER);
                    self.drop_pending(valid + bad_len);
                }
            }
        }
    }

    fn drop_pending(&mut self, len: usize) {
        self.pending.copy_within(len..self.pending_len, 0);
        self.pending_len -= len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Dice;

    #[test]
    fn any_cut_of_any_bytes_gives_what_the_whole_gives() {
        let seed = Dice::fresh_seed();
        let mut dice = Dice::new(seed);
        let alphabet =
            [b'a', b' ', 0xc3, 0xa9, 0xe2, 0x82, 0xac, 0xf0, 0x9f, 0xa6, 0x8a, 0x80, 0xff, 0xed, 0xa0, 0xf4, 0x90];
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..dice.below(12)).map(|_| alphabet[dice.below(alphabet.len())]).collect();
            let mut detokenizer = Detokenizer::default();
            let (mut text, mut rest) = (String::new(), &bytes[..]);
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(1 + dice.below(rest.len().min(4)));
                detokenizer.push(piece, &mut text);
                rest = after;
            }
            detokenizer.finish(&mut text);
            assert_eq!(text, String::from_utf8_lossy(&bytes), "seed {seed}, bytes {bytes:x?}");
        }
    }

    #[test]
    fn half_a_character_waits_for_its_other_half() {
        let mut detokenizer = Detokenizer::default();
        let mut text = String::new();
        detokenizer.push("a🦊".as_bytes().split_last().expect("five bytes").1, &mut text);
        assert_eq!(text, "a");
        detokenizer.push(&"🦊".as_bytes()[3..], &mut text);
        assert_eq!(text, "a🦊");
    }
}
