//! SentencePiece's own file, `tokenizer.model`: a protobuf with the pieces, their scores and kinds, and how text is prepared.
//!
//! Of the format's few wire types all are read, of its fields those that change what text becomes. Every length is held against
//! what is left of the file.
//!
//! Source: `sentencepiece_model.proto` in google/sentencepiece; encoding: protobuf.dev/programming-guides/encoding.

use super::vocabulary::Kind;
use crate::LoadError;

/// The file's name in a folder.
pub(super) const FILE: &str = "tokenizer.model";

/// A vocabulary beyond this is an error and no wish.
const PIECES_MAX: usize = 1 << 24;

/// What a `tokenizer.model` says.
#[derive(Debug, PartialEq)]
pub(super) struct ModelProto<'a> {
    pub pieces: Vec<Piece<'a>>,
    /// A space is put before every text.
    pub adds_space: bool,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
}

#[derive(Debug, PartialEq)]
pub(super) struct Piece<'a> {
    pub name: &'a [u8],
    pub score: f32,
    pub kind: Kind,
}

impl<'a> ModelProto<'a> {
    /// # Errors
    ///
    /// When the file is cut off or no such model, is not BPE, or prepares text in a way that is not followed here.
    pub fn parse(bytes: &'a [u8]) -> Result<ModelProto<'a>, LoadError> {
        // What the format's definition has for fields that a file leaves out.
        let mut model = ModelProto { pieces: Vec::new(), adds_space: true, bos: Some(1), eos: Some(2) };
        let (mut model_type, mut squeezes_spaces, mut normalizes) = (UNIGRAM, true, false);
        for field in Fields(bytes) {
            match field? {
                (1, Value::Bytes(piece)) if model.pieces.len() < PIECES_MAX => model.pieces.push(Piece::parse(piece)?),
                (1, _) => return Err(corrupt("has a piece that is none, or too many of them")),
                (2, Value::Bytes(trainer)) => {
                    for field in Fields(trainer) {
                        // Ids are 32-bit numbers, and -1 is none.
                        match field? {
                            (3, Value::Number(number)) => model_type = number,
                            (41, Value::Number(id)) => model.bos = u32::try_from(id).ok(),
                            (42, Value::Number(id)) => model.eos = u32::try_from(id).ok(),
                            (24, Value::Number(1)) => {
                                return Err(LoadError::unsupported(format!("spaces after words in {FILE}")));
                            }
                            _ => {}
                        }
                    }
                }
                (3, Value::Bytes(normalizer)) => {
                    for field in Fields(normalizer) {
                        match field? {
                            (2, Value::Bytes(map)) => normalizes = !map.is_empty(),
                            (3, Value::Number(flag)) => model.adds_space = flag != 0,
                            (4, Value::Number(flag)) => squeezes_spaces = flag != 0,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        if model.pieces.is_empty() {
            return Err(corrupt("has no pieces"));
        }
        if model_type != BPE {
            let name = if model_type == UNIGRAM { "unigram" } else { "word or character" };
            return Err(LoadError::unsupported(format!("a {name} model in {FILE}: BPE is read")));
        }
        if normalizes || squeezes_spaces {
            let what = if normalizes { "normalizes characters" } else { "takes out spaces" };
            let why = format!("{FILE} {what} before it encodes: give the model's tokenizer.json");
            return Err(LoadError::unsupported(why));
        }
        let known = |id: &u32| (*id as usize) < model.pieces.len();
        (model.bos, model.eos) = (model.bos.filter(known), model.eos.filter(known));
        Ok(model)
    }
}

const UNIGRAM: u64 = 1;
const BPE: u64 = 2;

impl<'a> Piece<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Piece<'a>, LoadError> {
        let mut piece = Piece { name: b"", score: 0.0, kind: Kind::Text };
        for field in Fields(bytes) {
            match field? {
                (1, Value::Bytes(name)) => piece.name = name,
                (2, Value::Fixed32(bits)) => piece.score = f32::from_bits(bits),
                (3, Value::Number(number)) => {
                    piece.kind = match number {
                        1 => Kind::Text,
                        2 => Kind::Unknown,
                        3 => Kind::Control,
                        4 => Kind::UserDefined,
                        5 => Kind::Unused,
                        6 => Kind::Byte,
                        other => return Err(corrupt(&format!("has a piece of kind {other}, which there is none"))),
                    };
                }
                _ => {}
            }
        }
        if piece.score.is_nan() {
            return Err(corrupt("has a score that is no number"));
        }
        Ok(piece)
    }
}

fn corrupt(why: &str) -> LoadError {
    LoadError::corrupt(FILE, why)
}

enum Value<'a> {
    Number(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
    /// Of eight bytes; no field that is read here has it.
    Fixed64,
}

/// The fields of a message one by one, by number; ends after an error.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), LoadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or_else(|| corrupt("is cut off, or no SentencePiece model")))
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed64)?,
            2 => {
                let len = self.varint()?;
                Value::Bytes(self.take(usize::try_from(len).ok()?)?)
            }
            5 => Value::Fixed32(u32::from_le_bytes(*self.take(4)?.first_chunk()?)),
            // Groups went out of use before this format came.
            _ => return None,
        };
        Some((tag >> 3, value))
    }

    /// Seven bits a byte, the lowest first; ten bytes at most.
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for place in 0..10 {
            let byte = *self.take(1)?.first()?;
            value |= u64::from(byte & 127) << (7 * place);
            if byte < 128 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small model of BPE that keeps text as it is.
    const SOUND: &[u8] = b"\x0a\x0e\x0a\x05<unk>\x15\0\0\0\0\x18\x02\x0a\x08\x0a\x01a\x15\0\0\x80\xbf\x12\x02\x18\x02\x1a\x04\x18\0\x20\0";

    #[test]
    fn fields_that_are_left_out_are_what_the_format_says() {
        let model = ModelProto::parse(SOUND).unwrap();
        assert_eq!(model.pieces[1], Piece { name: b"a", score: -1.0, kind: Kind::Text });
        assert_eq!((model.pieces[0].kind, model.adds_space), (Kind::Unknown, false));
        // Number 1 is a piece here, number 2 is not.
        assert_eq!((model.bos, model.eos), (Some(1), None));
    }

    #[test]
    fn a_file_cut_off_anywhere_is_an_error_or_a_smaller_model() {
        for len in 0..SOUND.len() {
            if let Ok(model) = ModelProto::parse(&SOUND[..len]) {
                panic!("{len} bytes are {model:?}");
            }
        }
    }

    #[test]
    fn what_would_be_encoded_otherwise_is_refused() {
        let with = |more: &[u8]| ModelProto::parse(&[SOUND, more].concat()).unwrap_err().to_string();
        for (more, says) in [
            (b"\x12\x02\x18\x01".as_slice(), "unigram"),
            (b"\x12\x03\xc0\x01\x01", "spaces after words"),
            (b"\x1a\x03\x12\x01x", "normalizes"),
            (b"\x1a\x02\x20\x01", "takes out spaces"),
            (b"\x0a\x02\x18\x09", "kind 9"),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "cut off"),
        ] {
            let said = with(more);
            assert!(said.contains(says), "{says}: {said}");
        }
    }
}
