//! Where a request's head ends, found as its bytes come in and without reading any of them twice.

use memchr::memchr;

use super::HttpError;

/// Length of the head at the start of `bytes`, its empty line included; none while it is incomplete.
/// Only bytes from `scanned` on are looked at, so that a head that trickles in is not read over and over.
///
/// # Errors
///
/// 400 for a line end that is not CRLF, 431 past `len_max`, 414 if that is the request line's fault.
pub fn find_end(bytes: &[u8], scanned: usize, len_max: usize) -> Result<Option<usize>, HttpError> {
    // The empty line may be split between two reads.
    let mut at = scanned.saturating_sub(3);
    while let Some(feed) = memchr(b'\n', &bytes[at..]) {
        let feed = at + feed;
        if feed == 0 || bytes[feed - 1] != b'\r' {
            return Err(HttpError::new(400, "a line of the head ends in LF without CR: end lines with CRLF"));
        }
        if feed >= 3 && bytes[feed - 2] == b'\n' {
            let len = feed + 1;
            return if len <= len_max { Ok(Some(len)) } else { Err(too_large(bytes, len_max)) };
        }
        at = feed + 1;
    }
    if bytes.len() >= len_max { Err(too_large(bytes, len_max)) } else { Ok(None) }
}

fn too_large(bytes: &[u8], len_max: usize) -> HttpError {
    match memchr(b'\n', &bytes[..bytes.len().min(len_max)]) {
        Some(_) => {
            HttpError::new(431, "the head is over the limit: send fewer or shorter headers, or raise head_len_max")
        }
        None => TARGET_TOO_LONG,
    }
}

pub(super) const TARGET_TOO_LONG: HttpError =
    HttpError::new(414, "the request line is over the limit: shorten the URL");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prefix_is_incomplete_and_a_trickle_finds_the_same_end() {
        let text = b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\nrest";
        let end = text.len() - 4;
        let mut scanned = 0;
        for len in 0..end {
            assert_eq!(find_end(&text[..len], 0, 1000), Ok(None), "{len}");
            assert_eq!(find_end(&text[..len], scanned, 1000), Ok(None), "{len}");
            scanned = len;
        }
        assert_eq!(find_end(text, scanned, 1000), Ok(Some(end)));
        assert_eq!(find_end(text, 0, 1000), Ok(Some(end)));
    }

    /// Time that is linear takes milliseconds here, and time that is quadratic takes minutes.
    #[test]
    fn a_trickle_is_read_once() {
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "y".repeat(300_000));
        let began = std::time::Instant::now();
        for len in 1..text.len() {
            assert_eq!(find_end(&text.as_bytes()[..len], len - 1, 1 << 20), Ok(None));
        }
        assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
    }

    #[test]
    fn limits_hold_at_one_under_at_and_one_over() {
        let head = |len: usize| {
            let start = "GET / HTTP/1.1\r\nHost: a\r\nX: ";
            format!("{start}{}\r\n\r\n", "y".repeat(len - start.len() - 4))
        };
        assert!(matches!(find_end(head(99).as_bytes(), 0, 100), Ok(Some(99))));
        assert!(matches!(find_end(head(100).as_bytes(), 0, 100), Ok(Some(100))));
        assert_eq!(find_end(head(101).as_bytes(), 0, 100).unwrap_err().status(), 431);
        assert_eq!(find_end(&[b'a'; 99], 0, 100), Ok(None));
        assert_eq!(find_end(&[b'a'; 100], 0, 100).unwrap_err().status(), 414);
    }
}
