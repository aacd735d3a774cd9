//! The chunked body of a request, decoded in place as it arrives (RFC 9112, section 7.1).

use std::ops::Range;

use super::HttpError;

/// Bytes of extensions of one chunk, and of all trailers: ignored, but not without end.
const IGNORED_MAX: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Digits of the size seen so far.
    Size {
        digits: u8,
    },
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
    Done,
}

/// Where a decoding stands. Positions count from the body's first byte.
#[derive(Debug)]
pub struct ChunkedDecoder {
    state: State,
    /// Of the chunk being read.
    remaining: u64,
    /// Bytes consumed of what arrived.
    read: usize,
    /// Bytes of the body, at the front of the buffer.
    written: usize,
    ignored: usize,
    body_max: usize,
}

const BAD_SIZE: HttpError = HttpError::new(400, "a chunk's size is not hexadecimal");
const BAD_END: HttpError = HttpError::new(400, "a chunk does not end in CRLF");
const TOO_LARGE: HttpError = HttpError::new(413, "the body is over the limit");

impl ChunkedDecoder {
    /// A decoder for a body of at most `body_max` bytes.
    pub fn new(body_max: usize) -> ChunkedDecoder {
        ChunkedDecoder { state: State::Size { digits: 0 }, remaining: 0, read: 0, written: 0, ignored: 0, body_max }
    }

    /// Decodes what has arrived since the last call; `bytes` is the body from its first byte on.
    /// True when the body is complete: then it is `bytes[..body_len()]`, and `consumed()` bytes were its own.
    ///
    /// # Errors
    ///
    /// 400 for what is malformed, 413 past the limit.
    pub fn decode(&mut self, bytes: &mut [u8]) -> Result<bool, HttpError> {
        while self.read < bytes.len() && self.state != State::Done {
            if self.state == State::Data {
                self.copy(bytes);
                continue;
            }
            let byte = bytes[self.read];
            self.read += 1;
            self.state = self.next(byte)?;
        }
        Ok(self.state == State::Done)
    }

    /// Bytes of body decoded so far.
    pub fn body_len(&self) -> usize {
        self.written
    }

    /// Bytes of input used so far, without the gaps that were closed.
    pub fn consumed(&self) -> usize {
        self.read
    }

    /// What the decoder has used and nobody needs any more. The caller removes it from its buffer, so that a
    /// body in a million small chunks takes no more memory than its bytes.
    #[must_use = "the decoder counts on its removal"]
    pub fn close_gap(&mut self) -> Range<usize> {
        let gap = self.written..self.read;
        self.read = self.written;
        gap
    }

    fn copy(&mut self, bytes: &mut [u8]) {
        let len = (bytes.len() - self.read).min(self.remaining as usize);
        bytes.copy_within(self.read..self.read + len, self.written);
        self.read += len;
        self.written += len;
        self.remaining -= len as u64;
        if self.remaining == 0 {
            self.state = State::DataCr;
        }
    }

    fn next(&mut self, byte: u8) -> Result<State, HttpError> {
        match (self.state, byte) {
            (State::Size { digits: 0 }, b'\r' | b';' | b' ' | b'\t') => Err(BAD_SIZE),
            (State::Size { .. }, b'\r') => Ok(State::SizeLf),
            (State::Size { .. }, b';') => Ok(State::Extension),
            (State::Size { digits }, byte) => {
                let digit = (byte as char).to_digit(16).ok_or(BAD_SIZE)?;
                // Fifteen digits are more than any limit and fewer than overflow.
                if digits == 15 {
                    return Err(TOO_LARGE);
                }
                self.remaining = self.remaining << 4 | u64::from(digit);
                Ok(State::Size { digits: digits + 1 })
            }
            (State::Extension, b'\r') => Ok(State::SizeLf),
            (State::Extension, byte) => self.ignore(byte, State::Extension),
            (State::SizeLf, b'\n') if self.remaining == 0 => Ok(State::TrailerStart),
            (State::SizeLf, b'\n') if self.written as u64 + self.remaining > self.body_max as u64 => Err(TOO_LARGE),
            (State::SizeLf, b'\n') => Ok(State::Data),
            (State::DataCr, b'\r') => Ok(State::DataLf),
            (State::DataLf, b'\n') => Ok(State::Size { digits: 0 }),
            (State::TrailerStart, b'\r') => Ok(State::EndLf),
            (State::Trailer, b'\r') => Ok(State::TrailerLf),
            (State::TrailerStart | State::Trailer, byte) => self.ignore(byte, State::Trailer),
            (State::TrailerLf, b'\n') => Ok(State::TrailerStart),
            (State::EndLf, b'\n') => Ok(State::Done),
            _ => Err(BAD_END),
        }
    }

    /// Extensions and trailers mean nothing here.
    fn ignore(&mut self, byte: u8, state: State) -> Result<State, HttpError> {
        self.ignored += 1;
        if byte == b'\n' || self.ignored > IGNORED_MAX {
            return Err(HttpError::new(400, "the chunked body has too much beside its data, or a bare LF"));
        }
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = b"5\r\nhello\r\n1;ext=1\r\n \r\n00A\r\nchunked\r\nx\r\n0\r\nTrailer: y\r\n\r\nnext";

    #[test]
    fn a_body_is_the_same_however_it_arrives() {
        for step in 1..BODY.len() {
            let mut decoder = ChunkedDecoder::new(100);
            let mut bytes = Vec::new();
            let mut done = false;
            for piece in BODY.chunks(step) {
                bytes.extend_from_slice(piece);
                done = decoder.decode(&mut bytes).unwrap();
            }
            assert!(done);
            assert_eq!(&bytes[..decoder.body_len()], b"hello chunked\r\nx", "in steps of {step}");
            assert_eq!(&BODY[decoder.consumed()..], b"next");
        }
    }

    #[test]
    fn what_is_malformed_or_too_large_is_refused() {
        for (text, status) in [
            ("5\nhello\r\n0\r\n\r\n", 400),
            ("\r\n", 400),
            ("g\r\n", 400),
            ("-1\r\n", 400),
            ("0x5\r\n", 400),
            (" 5\r\n", 400),
            ("5 \r\n", 400),
            ("5\r\nhelloX\r\n", 400),
            ("5\r\nhello\r\r\n", 400),
            ("5\r\nhello\n0\r\n\r\n", 400),
            ("ffffffffffffffff\r\n", 413),
            ("65\r\n", 413),
            ("5;\n", 400),
            ("0\r\nA: b\n\r\n", 400),
        ] {
            let mut bytes = text.as_bytes().to_vec();
            assert_eq!(ChunkedDecoder::new(100).decode(&mut bytes).unwrap_err().status(), status, "{text:?}");
        }
        let long = format!("5;{}\r\n", "e".repeat(IGNORED_MAX + 1));
        assert_eq!(ChunkedDecoder::new(100).decode(&mut long.into_bytes()).unwrap_err().status(), 400);
    }

    #[test]
    fn the_limit_is_of_the_whole_body() {
        let body = |n: usize| format!("{n:x}\r\n{}\r\n1\r\nx\r\n0\r\n\r\n", "a".repeat(n)).into_bytes();
        assert_eq!(ChunkedDecoder::new(10).decode(&mut body(8)), Ok(true));
        assert_eq!(ChunkedDecoder::new(10).decode(&mut body(9)), Ok(true));
        assert_eq!(ChunkedDecoder::new(10).decode(&mut body(10)).unwrap_err().status(), 413);
    }

    #[test]
    fn a_body_in_small_chunks_takes_no_more_memory_than_its_bytes() {
        let mut decoder = ChunkedDecoder::new(10_000);
        let mut kept = Vec::new();
        for n in 0..10_000u32 {
            kept.extend_from_slice(b"00001\r\n");
            kept.push(n as u8);
            kept.extend_from_slice(b"\r\n");
            assert_eq!(decoder.decode(&mut kept), Ok(false));
            let gap = decoder.close_gap();
            kept.drain(gap);
            assert_eq!(kept.len(), n as usize + 1);
        }
        kept.extend_from_slice(b"0\r\n\r\nnext");
        assert_eq!(decoder.decode(&mut kept), Ok(true));
        assert!(kept[..decoder.body_len()].iter().enumerate().all(|(n, &byte)| byte == n as u8));
        assert_eq!(&kept[decoder.consumed()..], b"next");
    }

    #[test]
    fn random_changes_never_panic_and_never_grow_a_body() {
        let mut seed = 0x2545_f491_4f6c_dd1du64;
        let mut next = |bound: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % bound
        };
        for _ in 0..20_000 {
            let mut bytes = BODY.to_vec();
            for _ in 0..=next(3) {
                let at = next(bytes.len());
                match next(3) {
                    0 => bytes[at] = next(256) as u8,
                    1 => bytes.insert(at, next(256) as u8),
                    _ => drop(bytes.remove(at)),
                }
            }
            let mut decoder = ChunkedDecoder::new(12);
            if let Ok(true) = decoder.decode(&mut bytes) {
                assert!(decoder.body_len() <= 12 && decoder.body_len() <= decoder.consumed());
                assert!(decoder.consumed() <= bytes.len());
            }
        }
    }
}
