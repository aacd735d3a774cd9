//! An answer, and its bytes.

use std::cell::RefCell;
use std::fmt::Display;
use std::io::Write;

use memchr::memchr3;

/// Status, headers and body. `Date`, `Content-Length`, `Connection` and framing are added when it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    /// Header lines as they are sent.
    lines: Vec<u8>,
    pub body: Vec<u8>,
}

/// Buffers of answers that a thread keeps for its next ones, and the longest that it keeps.
const SPARE_COUNT_MAX: usize = 64;
const SPARE_LEN_MAX: usize = 4096;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer for headers or a body; one that was used before, where there is one.
pub fn buffer() -> Vec<u8> {
    SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(512))
}

impl Drop for Response {
    fn drop(&mut self) {
        for mut used in [std::mem::take(&mut self.lines), std::mem::take(&mut self.body)] {
            if (1..=SPARE_LEN_MAX).contains(&used.capacity()) {
                used.clear();
                // A thread that is ending keeps nothing.
                let _ = SPARE.try_with(|spare| {
                    let mut spare = spare.borrow_mut();
                    if spare.len() < SPARE_COUNT_MAX {
                        spare.push(used);
                    }
                });
            }
        }
    }
}

/// How the body of an answer is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// By its length; `Content-Length` says so.
    Length,
    /// In chunks that are written elsewhere.
    Chunked,
    /// By the end of the connection.
    Close,
}

impl Response {
    pub fn new(status: u16) -> Response {
        Response { status, lines: buffer(), body: Vec::new() }
    }

    /// Adds a header. A line end in the value would begin another header, so it is cut off there.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Display) -> Response {
        self.lines.extend_from_slice(name.as_bytes());
        self.lines.extend_from_slice(b": ");
        let begin = self.lines.len();
        write!(self.lines, "{value}").expect("a buffer takes everything");
        if let Some(end) = memchr3(b'\r', b'\n', b'\0', &self.lines[begin..]) {
            self.lines.truncate(begin + end);
        }
        self.lines.extend_from_slice(b"\r\n");
        self
    }

    /// Adds a header whose value is a whole number: the same as `header`, but quicker.
    #[must_use]
    pub fn number(mut self, name: &'static str, value: u64) -> Response {
        for part in [name.as_bytes(), b": ", itoa::Buffer::new().format(value).as_bytes(), b"\r\n"] {
            self.lines.extend_from_slice(part);
        }
        self
    }

    #[must_use]
    pub fn body(mut self, body: Vec<u8>) -> Response {
        self.body = body;
        self
    }

    pub fn header_value(&self, name: &str) -> Option<&str> {
        let lines = std::str::from_utf8(&self.lines).expect("names and values are text");
        let mut headers = lines.split_terminator("\r\n").filter_map(|line| line.split_once(": "));
        headers.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// False for what never has a body, whatever is in `body`.
    pub fn has_body(&self) -> bool {
        !matches!(self.status, 100..=199 | 204 | 304)
    }

    /// Appends the head. `date` is an IMF-fixdate.
    pub fn write_head(&self, out: &mut Vec<u8>, date: &str, persistence: Persistence, framing: Framing) {
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(itoa::Buffer::new().format(self.status).as_bytes());
        out.push(b' ');
        out.extend_from_slice(reason(self.status).as_bytes());
        out.extend_from_slice(b"\r\nDate: ");
        out.extend_from_slice(date.as_bytes());
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(&self.lines);
        match framing {
            Framing::Length if self.has_body() => {
                out.extend_from_slice(b"Content-Length: ");
                out.extend_from_slice(itoa::Buffer::new().format(self.body.len()).as_bytes());
                out.extend_from_slice(b"\r\n");
            }
            Framing::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
            Framing::Length | Framing::Close => {}
        }
        match persistence {
            Persistence::Kept => {}
            Persistence::KeptAndSaid => out.extend_from_slice(b"Connection: keep-alive\r\n"),
            Persistence::Closed => out.extend_from_slice(b"Connection: close\r\n"),
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// What becomes of the connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// It goes on, as HTTP/1.1 has it.
    Kept,
    /// It goes on, which an HTTP/1.0 client has to be told.
    KeptAndSaid,
    Closed,
}

/// Reason phrases of RFC 9110; clients ignore them, people read them.
fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        499 => "Client Closed Request",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        529 => "Overloaded",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(response: &Response, persistence: Persistence, framing: Framing) -> String {
        let mut out = Vec::new();
        response.write_head(&mut out, "Thu, 01 Jan 1970 00:00:00 GMT", persistence, framing);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_head_says_where_its_body_ends_and_what_becomes_of_the_connection() {
        let response = Response::new(200).header("X", "y").body(b"hello".to_vec());
        let start = "HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nX: y\r\n";
        for (persistence, framing, rest) in [
            (Persistence::Kept, Framing::Length, "Content-Length: 5\r\n\r\n"),
            (Persistence::KeptAndSaid, Framing::Length, "Content-Length: 5\r\nConnection: keep-alive\r\n\r\n"),
            (Persistence::Closed, Framing::Length, "Content-Length: 5\r\nConnection: close\r\n\r\n"),
            (Persistence::Kept, Framing::Chunked, "Transfer-Encoding: chunked\r\n\r\n"),
            (Persistence::Closed, Framing::Close, "Connection: close\r\n\r\n"),
        ] {
            assert_eq!(head(&response, persistence, framing), format!("{start}{rest}"));
        }
    }

    #[test]
    fn what_never_has_a_body_has_no_length_either() {
        for status in [204, 304] {
            let response = Response::new(status).body(b"never sent".to_vec());
            assert!(!response.has_body());
            assert!(head(&response, Persistence::Kept, Framing::Length).ends_with("GMT\r\n\r\n"));
        }
        assert!(head(&Response::new(200), Persistence::Kept, Framing::Length).contains("Content-Length: 0\r\n"));
    }

    #[test]
    fn a_header_cannot_begin_another_one() {
        for (value, kept) in [("/a\r\nSet-Cookie: x", "/a"), ("/a\nX: y", "/a"), ("/a\0b", "/a"), ("\r", "")] {
            let response = Response::new(200).header("Location", value.to_owned());
            assert_eq!(response.header_value("location"), Some(kept));
        }
    }
}
