//! Server-sent events, each in one HTTP chunk, so that a stream's log is written to a socket as it is.

/// Ends a chunked body.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// A comment line: nothing to a reader, a sign of life to what lies between.
pub const KEEP_ALIVE: &[u8] = b": keep-alive\n";

/// The same as a chunk.
pub const KEEP_ALIVE_CHUNK: &[u8] = b"d\r\n: keep-alive\n\r\n";

/// Appends one event as one chunk. `data` must not have line ends: JSON as we write it has none.
pub fn write_event(out: &mut Vec<u8>, id: u32, event: &str, data: &[u8]) {
    debug_assert!(!data.contains(&b'\n') && !data.contains(&b'\r'));
    let mut digits = itoa::Buffer::new();
    let id = digits.format(id).as_bytes();
    let payload_len = 4 + id.len() + 8 + event.len() + 7 + data.len() + 2;
    write_hex(out, payload_len);
    out.extend_from_slice(b"\r\nid: ");
    out.extend_from_slice(id);
    out.extend_from_slice(b"\nevent: ");
    out.extend_from_slice(event.as_bytes());
    out.extend_from_slice(b"\ndata: ");
    out.extend_from_slice(data);
    out.extend_from_slice(b"\n\n\r\n");
}

fn write_hex(out: &mut Vec<u8>, value: usize) {
    let digits = (usize::BITS - (value | 1).leading_zeros()).div_ceil(4);
    for place in (0..digits).rev() {
        let nibble = value >> (4 * place) & 15;
        out.push(b"0123456789abcdef"[nibble]);
    }
}

/// Appends some bytes as one chunk; nothing for none, since an empty chunk would end the body.
pub fn write_chunk(out: &mut Vec<u8>, payload: &[u8]) {
    if !payload.is_empty() {
        write_hex(out, payload.len());
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(payload);
        out.extend_from_slice(b"\r\n");
    }
}

/// One event as `write_event` wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventRef<'a> {
    pub name: &'a [u8],
    pub data: &'a [u8],
}

/// The events in whole chunks; the last chunk of a body is not one.
///
/// # Panics
///
/// On bytes that `write_event` did not make.
pub fn events(mut chunks: &[u8]) -> impl Iterator<Item = EventRef<'_>> {
    std::iter::from_fn(move || {
        let (payload, rest) = split_chunk(chunks)?;
        chunks = rest;
        let mut lines = payload.split(|&b| b == b'\n').skip(1);
        let mut field = |name: &str| lines.next().and_then(|l| l.strip_prefix(name.as_bytes())).expect("we wrote it");
        Some(EventRef { name: field("event: "), data: field("data: ") })
    })
}

/// The payload of the first chunk, and what comes after it; none at the end of a body or of the bytes.
fn split_chunk(chunks: &[u8]) -> Option<(&[u8], &[u8])> {
    if chunks.is_empty() || chunks == LAST_CHUNK {
        return None;
    }
    let digits = chunks.iter().position(|&b| b == b'\r').expect("a chunk begins with its length");
    let text = std::str::from_utf8(&chunks[..digits]).expect("a length is ASCII");
    let len = usize::from_str_radix(text, 16).expect("a length is hexadecimal");
    Some((&chunks[digits + 2..digits + 2 + len], &chunks[digits + 2 + len + 2..]))
}

/// Appends the payloads of whole chunks: what a reader without chunks (HTTP/1.0) is sent.
///
/// # Panics
///
/// On bytes that are not whole chunks: only what `write_event` made comes here.
pub fn unframe(mut chunks: &[u8], out: &mut Vec<u8>) {
    while let Some((payload, rest)) = split_chunk(chunks) {
        out.extend_from_slice(payload);
        chunks = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_chunk_and_its_payload_comes_back() {
        let mut out = Vec::new();
        write_event(&mut out, 7, "token", br#"{"t":"x"}"#);
        assert_eq!(out, b"24\r\nid: 7\nevent: token\ndata: {\"t\":\"x\"}\n\n\r\n");
        let mut all = out.clone();
        write_event(&mut all, 12_345, "end", &[b'y'; 300]);
        all.extend_from_slice(KEEP_ALIVE_CHUNK);
        all.extend_from_slice(LAST_CHUNK);
        let mut plain = Vec::new();
        unframe(&all, &mut plain);
        let expected = format!(
            "id: 7\nevent: token\ndata: {{\"t\":\"x\"}}\n\nid: 12345\nevent: end\ndata: {}\n\n: keep-alive\n",
            "y".repeat(300)
        );
        assert_eq!(String::from_utf8(plain).unwrap(), expected);
    }

    #[test]
    fn events_are_read_back_and_the_last_chunk_is_none() {
        let mut out = Vec::new();
        write_event(&mut out, 7, "token", br#"{"t":"a: b"}"#);
        write_event(&mut out, 8, "end", b"{}");
        out.extend_from_slice(LAST_CHUNK);
        let found: Vec<_> = events(&out).map(|e| (e.name, e.data)).collect();
        assert_eq!(found, [(&b"token"[..], &br#"{"t":"a: b"}"#[..]), (b"end", b"{}")]);
        assert_eq!(events(LAST_CHUNK).count() + events(b"").count(), 0);
    }

    #[test]
    fn a_chunk_holds_what_it_was_given_and_nothing_makes_none() {
        let mut out = Vec::new();
        write_chunk(&mut out, b"");
        write_chunk(&mut out, &[b'x'; 17]);
        assert_eq!(out, [&b"11\r\n"[..], &[b'x'; 17], b"\r\n"].concat());
    }
}
