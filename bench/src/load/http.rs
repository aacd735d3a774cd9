//! The client's half of HTTP/1.1: one response after the other, as its bytes come in.

/// What a response is, once its head is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    Head { status: u16 },
    Body(&'a [u8]),
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    /// Bytes of the body that are still to come.
    Length(u64),
    ChunkSize,
    /// Bytes of a chunk that are still to come.
    Chunk(u64),
    ChunkEnd,
    LastChunk,
}

/// Bytes of a response head that are still believed to be one.
const HEAD_LEN_MAX: usize = 64 * 1024;

/// Splits a connection's bytes into responses.
pub struct ResponseReader {
    state: State,
    /// What came and could not be understood without what comes next.
    rest: Vec<u8>,
}

impl Default for ResponseReader {
    fn default() -> Self {
        ResponseReader { state: State::Head, rest: Vec::new() }
    }
}

impl ResponseReader {
    /// Reads what has arrived and gives its parts in order.
    ///
    /// # Errors
    ///
    /// For what is not HTTP/1.1 with a `Content-Length` or chunks, and whatever `each` returns.
    pub fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(Part<'_>) -> Result<(), String>) -> Result<(), String> {
        if self.rest.is_empty() {
            let used = self.parts(bytes, &mut each)?;
            self.rest.extend_from_slice(&bytes[used..]);
            return Ok(());
        }
        let mut rest = std::mem::take(&mut self.rest);
        rest.extend_from_slice(bytes);
        let used = self.parts(&rest, &mut each)?;
        rest.drain(..used);
        self.rest = rest;
        Ok(())
    }

    /// Gives every part that is complete; how many bytes these were.
    fn parts(&mut self, bytes: &[u8], each: &mut impl FnMut(Part<'_>) -> Result<(), String>) -> Result<usize, String> {
        let mut at = 0;
        loop {
            let rest = &bytes[at..];
            match self.state {
                State::Head => {
                    let Some(len) = find(rest, b"\r\n\r\n") else {
                        return if rest.len() > HEAD_LEN_MAX { Err("a head without an end".into()) } else { Ok(at) };
                    };
                    let (status, state) = read_head(&rest[..len + 4])?;
                    at += len + 4;
                    each(Part::Head { status })?;
                    self.state = state;
                    if state == State::Length(0) {
                        self.state = State::Head;
                        each(Part::End)?;
                    }
                }
                State::Length(left) => {
                    let len = rest.len().min(left as usize);
                    if len == 0 {
                        return Ok(at);
                    }
                    each(Part::Body(&rest[..len]))?;
                    at += len;
                    self.state = State::Length(left - len as u64);
                    if left == len as u64 {
                        self.state = State::Head;
                        each(Part::End)?;
                    }
                }
                State::ChunkSize => {
                    let Some(len) = find(rest, b"\r\n") else { return Ok(at) };
                    let text = std::str::from_utf8(&rest[..len]).map_err(|_| "a chunk size is not ASCII")?;
                    let digits = text.split(';').next().unwrap_or_default().trim();
                    let size = u64::from_str_radix(digits, 16).map_err(|_| format!("{text:?} is no chunk size"))?;
                    at += len + 2;
                    self.state = if size == 0 { State::LastChunk } else { State::Chunk(size) };
                }
                State::Chunk(left) => {
                    let len = rest.len().min(left as usize);
                    if len == 0 {
                        return Ok(at);
                    }
                    each(Part::Body(&rest[..len]))?;
                    at += len;
                    self.state = if left == len as u64 { State::ChunkEnd } else { State::Chunk(left - len as u64) };
                }
                State::ChunkEnd | State::LastChunk => {
                    if rest.len() < 2 {
                        return Ok(at);
                    }
                    if &rest[..2] != b"\r\n" {
                        return Err("a chunk is longer than its size".into());
                    }
                    at += 2;
                    let last = self.state == State::LastChunk;
                    self.state = if last { State::Head } else { State::ChunkSize };
                    if last {
                        each(Part::End)?;
                    }
                }
            }
        }
    }
}

fn read_head(head: &[u8]) -> Result<(u16, State), String> {
    let text = std::str::from_utf8(head).map_err(|_| "a head is not text")?;
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = first
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3))
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| format!("{first:?} is no status line"))?;
    let mut state = State::Length(0);
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { continue };
        if name.eq_ignore_ascii_case("content-length") {
            state = State::Length(value.trim().parse().map_err(|_| "Content-Length is no number")?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            state = State::ChunkSize;
        }
    }
    Ok((status, state))
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &[u8] = b"HTTP/1.1 202 Accepted\r\nContent-Length: 5\r\n\r\nhello\
        HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n\
        HTTP/1.1 204 No Content\r\n\r\n";

    fn read(pieces: &[&[u8]]) -> Result<Vec<String>, String> {
        let mut reader = ResponseReader::default();
        let mut seen: Vec<String> = Vec::new();
        for piece in pieces {
            reader.feed(piece, |part| {
                match part {
                    Part::Head { status } => seen.push(format!("{status} ")),
                    Part::Body(bytes) => seen.last_mut().unwrap().push_str(std::str::from_utf8(bytes).unwrap()),
                    Part::End => seen.last_mut().unwrap().push('.'),
                }
                Ok(())
            })?;
        }
        Ok(seen)
    }

    #[test]
    fn responses_come_out_the_same_wherever_they_are_cut() {
        for cut in 0..TWO.len() {
            assert_eq!(read(&[&TWO[..cut], &TWO[cut..]]).unwrap(), ["202 hello.", "200 abcdefg.", "204 ."], "{cut}");
        }
    }

    #[test]
    fn what_is_no_response_is_an_error() {
        for text in ["HTTP/2 200\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"] {
            assert!(read(&[text.as_bytes()]).is_err(), "{text}");
        }
        assert!(read(&[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n"]).is_err());
    }
}
