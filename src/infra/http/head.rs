//! A request's head: found, parsed over `httparse`, and checked more strictly than that does.
//!
//! What two servers in a row could read differently is refused (RFC 9112, sections 2.2, 5, 6.3 and 11.2):
//! bare line ends, two lengths even if they are equal, a length beside chunks, folded lines.

use std::cell::Cell;
use std::mem::MaybeUninit;

use super::HttpError;
use super::scan::TARGET_TOO_LONG;

pub use super::scan::find_end;

/// Bytes of a request's target: what RFC 9110 (section 4.1) asks of every server, and more than any route needs.
pub const TARGET_LEN_MAX: usize = 8 * 1024;

/// Header lines that a head may have at most, whatever is configured.
pub const HEADERS_MAX: usize = 64;

/// How a request's body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Body {
    #[default]
    None,
    Length(u64),
    Chunked,
}

#[derive(Clone, Copy, Debug, Default)]
struct Range {
    start: u32,
    end: u32,
}

impl Range {
    fn of(part: &[u8], whole: &[u8]) -> Range {
        let start = part.as_ptr() as usize - whole.as_ptr() as usize;
        debug_assert!(start + part.len() <= whole.len());
        Range { start: start as u32, end: (start + part.len()) as u32 }
    }

    fn slice(self, whole: &[u8]) -> &[u8] {
        &whole[self.start as usize..self.end as usize]
    }
}

/// Where everything lies in a head's bytes. Kept by a connection and filled anew for each request, so that
/// nothing is allocated for one.
#[derive(Debug, Default)]
pub struct HeadIndex {
    method: Range,
    path: Range,
    query: Range,
    headers: Vec<(Range, Range)>,
    /// Bytes of the head, its empty line included.
    len: usize,
    body: Body,
    http_1_0: bool,
    keep_alive: bool,
    expects_continue: bool,
    note: Cell<Option<u16>>,
}

/// A parsed head over the connection's own bytes.
#[derive(Clone, Copy)]
pub struct RequestHead<'a> {
    bytes: &'a [u8],
    index: &'a HeadIndex,
}

impl<'a> RequestHead<'a> {
    pub fn method(&self) -> &'a str {
        self.text(self.index.method)
    }

    /// The path as it was sent, without the query.
    pub fn path(&self) -> &'a str {
        self.text(self.index.path)
    }

    /// What follows `?`, or nothing.
    pub fn query(&self) -> &'a str {
        self.text(self.index.query)
    }

    /// The first header of that name; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers_named(name).next()
    }

    /// Every header of that name; `name` in lower case.
    pub fn headers_named<'n>(&self, name: &'n str) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        let (bytes, index) = (self.bytes, self.index);
        let named = index.headers.iter().filter(move |(n, _)| n.slice(bytes).eq_ignore_ascii_case(name.as_bytes()));
        named.map(move |(_, value)| value.slice(bytes))
    }

    pub fn body(&self) -> Body {
        self.index.body
    }

    /// True for HTTP/1.0, which knows no chunks.
    pub fn is_http_1_0(&self) -> bool {
        self.index.http_1_0
    }

    pub fn keep_alive(&self) -> bool {
        self.index.keep_alive
    }

    /// The client waits for a 100 before it sends its body.
    pub fn expects_continue(&self) -> bool {
        self.index.expects_continue
    }

    pub fn is_head(&self) -> bool {
        self.method() == "HEAD"
    }

    /// Notes what was found out by this head, for who handles it later.
    pub fn take_note(&self, found: u16) {
        self.index.note.set(Some(found));
    }

    /// What was noted of this head.
    pub fn note(&self) -> Option<u16> {
        self.index.note.get()
    }

    fn text(&self, range: Range) -> &'a str {
        std::str::from_utf8(range.slice(self.bytes)).expect("method and target were checked to be ASCII")
    }
}

impl HeadIndex {
    /// Parses a complete head.
    ///
    /// # Errors
    ///
    /// With the status that the client is to be told; the connection must be closed after that.
    pub fn parse<'a>(&'a mut self, head: &'a [u8], headers_max: usize) -> Result<RequestHead<'a>, HttpError> {
        self.note.set(None);
        if head.starts_with(b"\r") {
            // httparse passes over empty lines; one was forgiven before, and more are not.
            return Err(HttpError::new(400, "the head begins with an empty line"));
        }
        let mut lines = [const { MaybeUninit::uninit() }; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut []);
        match request.parse_with_uninit_headers(head, &mut lines[..headers_max.min(HEADERS_MAX)]) {
            Ok(httparse::Status::Complete(len)) if len == head.len() => {}
            Ok(_) => return Err(HttpError::new(400, "the head is malformed: it ends before its empty line")),
            Err(error) => return Err(explain(error)),
        }
        let method = request.method.expect("a complete head has a method");
        let target = request.path.expect("a complete head has a target");
        if target.len() > TARGET_LEN_MAX {
            return Err(TARGET_TOO_LONG);
        }
        if !target.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(HttpError::new(400, "the request target has a character that must be percent-encoded"));
        }
        self.method = Range::of(method.as_bytes(), head);
        let (path, query) = split_target(method, target)?;
        self.path = Range::of(path.as_bytes(), head);
        self.query = Range::of(query.as_bytes(), head);
        self.http_1_0 = request.version == Some(0);
        self.len = head.len();
        self.headers.clear();
        for header in request.headers.iter() {
            self.headers.push((Range::of(header.name.as_bytes(), head), Range::of(header.value, head)));
        }
        self.read_framing(head)?;
        Ok(RequestHead { bytes: head, index: self })
    }

    /// The head parsed last, over the same bytes.
    pub fn head<'a>(&'a self, bytes: &'a [u8]) -> RequestHead<'a> {
        debug_assert_eq!(bytes.len(), self.len);
        RequestHead { bytes, index: self }
    }

    fn read_framing(&mut self, bytes: &[u8]) -> Result<(), HttpError> {
        let mut length = None;
        let mut chunked = false;
        let mut hosts = 0;
        let mut close = false;
        let mut keep = false;
        self.expects_continue = false;
        for (name, value) in &self.headers {
            let (name, value) = (name.slice(bytes), value.slice(bytes));
            if name.eq_ignore_ascii_case(b"content-length") {
                if length.is_some() {
                    // Two lengths, even equal ones, are how requests are smuggled.
                    return Err(HttpError::new(400, "there are two Content-Length headers: send one"));
                }
                length = Some(read_length(value)?);
            } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(HttpError::new(501, "the only Transfer-Encoding here is chunked, once"));
                }
                chunked = true;
            } else if name.eq_ignore_ascii_case(b"host") {
                hosts += 1;
                if !value.iter().all(|&b| is_host_byte(b)) {
                    return Err(HttpError::new(400, "the Host header is not a host and port"));
                }
            } else if name.eq_ignore_ascii_case(b"connection") {
                for option in value.split(|&b| b == b',').map(<[u8]>::trim_ascii) {
                    close |= option.eq_ignore_ascii_case(b"close");
                    keep |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            } else if name.eq_ignore_ascii_case(b"expect") {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(HttpError::new(417, "the only expectation met here is 100-continue"));
                }
                self.expects_continue = !self.http_1_0;
            }
        }
        if hosts > 1 || (hosts == 0 && !self.http_1_0) {
            return Err(HttpError::new(400, "an HTTP/1.1 request has exactly one Host header"));
        }
        self.body = match (length, chunked) {
            (Some(_), true) => {
                return Err(HttpError::new(400, "Content-Length and Transfer-Encoding exclude each other: send one"));
            }
            (None, true) if self.http_1_0 => {
                return Err(HttpError::new(400, "HTTP/1.0 has no Transfer-Encoding: send a Content-Length"));
            }
            (None, true) => Body::Chunked,
            (Some(0) | None, false) => Body::None,
            (Some(len), false) => Body::Length(len),
        };
        self.keep_alive = !close && (!self.http_1_0 || keep);
        Ok(())
    }
}

/// What RFC 3986 (section 3.2) lets a host and a port consist of. No user name: nothing good comes of one here.
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(&byte)
}

fn read_length(value: &[u8]) -> Result<u64, HttpError> {
    let digits_only = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(value).ok().filter(|_| digits_only);
    text.and_then(|t| t.parse().ok())
        .ok_or(HttpError::new(400, "Content-Length is not a number of bytes in decimal digits"))
}

fn split_target<'a>(method: &str, target: &'a str) -> Result<(&'a str, &'a str), HttpError> {
    let origin = if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        target
    } else if let Some(rest) = target.strip_prefix("http://").or_else(|| target.strip_prefix("https://")) {
        // Proxies send the absolute form; its authority is the Host's business.
        rest.find('/').map_or("/", |slash| &rest[slash..])
    } else {
        return Err(HttpError::new(400, "the request target must begin with / or http://"));
    };
    // "/" of an empty path is not part of the head's bytes: refuse rather than point elsewhere.
    if origin == "/" && !target.ends_with('/') {
        return Err(HttpError::new(400, "the request target has no path: send at least /"));
    }
    Ok(match origin.find('?') {
        Some(mark) => (&origin[..mark], &origin[mark + 1..]),
        None => (origin, &origin[origin.len()..]),
    })
}

fn explain(error: httparse::Error) -> HttpError {
    match error {
        httparse::Error::TooManyHeaders => {
            HttpError::new(431, "the head has too many headers: send fewer, or raise headers_max")
        }
        httparse::Error::Version => HttpError::new(505, "only HTTP/1.0 and HTTP/1.1 are spoken here"),
        httparse::Error::HeaderName => {
            HttpError::new(400, "a header's name is malformed: no space before the colon, no folded lines")
        }
        httparse::Error::HeaderValue => HttpError::new(400, "a header's value has a control character"),
        httparse::Error::NewLine => HttpError::new(400, "a line of the head does not end in CRLF"),
        httparse::Error::Status | httparse::Error::Token => {
            HttpError::new(400, "the request line is malformed: METHOD /path HTTP/1.1")
        }
    }
}

/// Parses a whole head given as text and hands it to `look`. For tests in other modules.
///
/// # Panics
///
/// When it is not a valid head.
#[doc(hidden)]
pub fn head_for_tests<R>(text: &str, look: impl FnOnce(&RequestHead<'_>) -> R) -> R {
    let mut index = HeadIndex::default();
    let head = index.parse(text.as_bytes(), HEADERS_MAX).expect("a test's head is valid");
    look(&head)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(text: &str) -> u16 {
        match find_end(text.as_bytes(), 0, 16 * 1024) {
            Err(error) => return error.status(),
            Ok(None) => return 0,
            Ok(Some(_)) => {}
        }
        HeadIndex::default().parse(text.as_bytes(), HEADERS_MAX).map_or_else(|e| e.status(), |_| 200)
    }

    #[test]
    fn a_plain_request_is_understood() {
        let text = "POST /v1/tasks?x=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\nX-Api-Key:  k \r\nExpect: 100-continue\r\n\r\n";
        head_for_tests(text, |head| {
            assert_eq!((head.method(), head.path(), head.query()), ("POST", "/v1/tasks", "x=1"));
            assert_eq!((head.body(), head.keep_alive(), head.expects_continue()), (Body::Length(12), true, true));
            assert_eq!(head.header("x-api-key"), Some(&b"k"[..]));
            assert_eq!(head.header("authorization"), None);
        });
        head_for_tests("GET http://a.b/c HTTP/1.0\r\n\r\n", |head| {
            assert_eq!((head.path(), head.keep_alive(), head.is_http_1_0()), ("/c", false, true));
        });
    }

    #[test]
    fn what_smugglers_like_is_refused() {
        let with = |lines: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        for (text, expected) in [
            (with(""), 200),
            (with("Content-Length: 5\r\n"), 200),
            (with("Transfer-Encoding: chunked\r\n"), 200),
            (with("Content-Length: 5\r\nContent-Length: 5\r\n"), 400),
            (with("Content-Length: 5, 5\r\n"), 400),
            (with("Content-Length: +5\r\n"), 400),
            (with("Content-Length: 0x5\r\n"), 400),
            (with("Content-Length: -1\r\n"), 400),
            (with("Content-Length:\r\n"), 400),
            (with("Content-Length: 99999999999999999999\r\n"), 400),
            (with("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), 400),
            (with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 501),
            (with("Transfer-Encoding: gzip, chunked\r\n"), 501),
            (with("Transfer-Encoding: xchunked\r\n"), 501),
            (with("Content-Length : 5\r\n"), 400),
            (with("X: a\r\n folded\r\n"), 400),
            (with("X: a\r\n\tfolded\r\n"), 400),
            (with("X: a\nContent-Length: 5\r\n"), 400),
            (with("X: a\rb\r\n"), 400),
            (with("X: a\0b\r\n"), 400),
            (with(": a\r\n"), 400),
            (with("no colon\r\n"), 400),
            (with("Host: b\r\n"), 400),
            (with("Expect: a miracle\r\n"), 417),
            ("GET / HTTP/1.1\r\n\r\n".into(), 400),
            ("GET / HTTP/1.0\r\n\r\n".into(), 200),
            ("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(), 400),
            ("GET / HTTP/1.1\nHost: a\n\n".into(), 400),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n".into(), 505),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
            ("GET / x HTTP/1.1\r\nHost: a\r\n\r\n".into(), 505),
            ("GET v1 HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
            ("GET http://a HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
            ("GET /é HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
            (with("Host: a b\r\n").replace("Host: a\r\n", ""), 400),
            (with("Host: a/b\r\n").replace("Host: a\r\n", ""), 400),
            (with("Host: u@a\r\n").replace("Host: a\r\n", ""), 400),
            (with("Host: [::1]:8080\r\n").replace("Host: a\r\n", ""), 200),
            (with("Host:\r\n").replace("Host: a\r\n", ""), 200),
            (with("X: \u{7f}\r\n"), 400),
            (with("Content-Length: 5\r\nContent-length: 6\r\n"), 400),
            (with("Content-Length: 5 5\r\n"), 400),
            (with("Content-Length: 5;x=1\r\n"), 400),
            (with("Content_Length: 5\r\n"), 200),
            (with("Transfer-Encoding: chunked, identity\r\n"), 501),
            (with("Transfer-Encoding: chunked;q=1\r\n"), 501),
            (with("Transfer-Encoding: \u{b}chunked\r\n"), 400),
            (with("Transfer-Encoding:\r\n"), 501),
            (with("Transfer-Encoding : chunked\r\n"), 400),
            (with("Transfer-Encoding\t: chunked\r\n"), 400),
            ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n".into(), 200),
            ("GET * HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
            ("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
            ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
            ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n".into(), 400),
            ("GET / http/1.1\r\nHost: a\r\n\r\n".into(), 505),
            ("GET /\r\nHost: a\r\n\r\n".into(), 400),
            ("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
            ("GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
            ("G(T / HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
            (" GET / HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
        ] {
            assert_eq!(status(&text), expected, "{text:?}");
            for len in 0..text.len() {
                let early = find_end(&text.as_bytes()[..len], 0, 16 * 1024);
                let same = early.as_ref().is_ok_and(Option::is_none) || early.is_err_and(|e| e.status() == expected);
                assert!(same, "the first {len} bytes of {text:?}");
            }
        }
    }

    #[test]
    fn limits_hold_at_one_under_at_and_one_over() {
        for (len, expected) in [(TARGET_LEN_MAX - 1, 200), (TARGET_LEN_MAX, 200), (TARGET_LEN_MAX + 1, 414)] {
            let text = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "y".repeat(len - 1));
            assert_eq!(status(&text), expected, "a target of {len} bytes");
        }
        for (count, expected) in [(62, 200), (63, 200), (64, 431)] {
            let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(count));
            assert_eq!(status(&text), expected, "{count} headers beside Host");
        }
    }

    /// What is accepted must read the same to everybody: lines, names and values are where they seem to be.
    fn assert_unambiguous(bytes: &[u8], head: &RequestHead<'_>) {
        let text: Vec<u8> = bytes.to_vec();
        let lines: Vec<&[u8]> = text.split(|&b| b == b'\n').collect();
        assert!(lines[..lines.len() - 1].iter().all(|l| l.ends_with(b"\r")), "{:?}", text.escape_ascii().to_string());
        assert_eq!(lines.len(), head.index.headers.len() + 3, "{:?}", text.escape_ascii().to_string());
        for (line, (name, value)) in lines[1..].iter().zip(&head.index.headers) {
            let (name, value) = (name.slice(bytes), value.slice(bytes));
            let rest = line.strip_prefix(name).and_then(|l| l.strip_prefix(b":")).expect("a colon ends the name");
            assert_eq!(rest.trim_ascii(), value);
            assert!(!value.iter().any(|&b| b < b' ' && b != b'\t' || b == 0x7f));
        }
        let named = |name| head.headers_named(name).count();
        assert!(named("content-length") + named("transfer-encoding") <= 1 && named("host") <= 1);
        assert!(head.path().starts_with('/') || head.path() == "*");
    }

    #[test]
    fn random_changes_never_panic_and_never_make_a_head_ambiguous() {
        let base = b"POST /v1/tasks?a=b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nConnection: close, x\r\n\r\n";
        let pieces: [&[u8]; 14] = [
            b"\r\n",
            b"\n",
            b"\r",
            b" ",
            b"\t",
            b":",
            b"\0",
            b"Content-Length: 7\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Host: b\r\n",
            b"HTTP/1.0",
            b"http://x",
            b"\r\n ",
            b",",
        ];
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = |bound: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % bound
        };
        let mut index = HeadIndex::default();
        let mut accepted = 0;
        for _ in 0..60_000 {
            let mut bytes = base.to_vec();
            for _ in 0..=next(3) {
                let at = next(bytes.len());
                match next(4) {
                    0 => bytes[at] = next(256) as u8,
                    1 => bytes.insert(at, next(256) as u8),
                    2 => drop(bytes.splice(at..at, pieces[next(pieces.len())].iter().copied())),
                    _ => drop(bytes.remove(at)),
                }
            }
            if let Ok(Some(len)) = find_end(&bytes, 0, 1000)
                && let Ok(head) = index.parse(&bytes[..len], HEADERS_MAX)
            {
                accepted += 1;
                assert_unambiguous(&bytes[..len], &head);
            }
        }
        assert!(accepted > 5000, "only {accepted} were accepted: the test is of nothing");
    }
}
