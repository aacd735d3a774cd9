//! A log that has its end: its bytes in one piece, in memory of about their size.

use std::sync::Mutex;

use super::frame_len;
use super::segments::{Position, Segments};

pub(super) struct Settled {
    bytes: Vec<u8>,
    /// Where the terminal event begins.
    tail_at: usize,
}

/// Memory of logs that were forgotten, for those that are settled next: by its size in units, and the latest first.
static SPARE: Mutex<[Vec<Vec<u8>>; CLASS_COUNT]> = Mutex::new([const { Vec::new() }; CLASS_COUNT]);

/// A unit, which is what such memory may be larger than its bytes; longer logs than `CLASS_COUNT` units get their own.
const UNIT: usize = 128;
const CLASS_COUNT: usize = 32;

/// Memory that is kept of each size. Of all sizes together it is 4 MiB at most.
const SPARE_BYTES_MAX: usize = 128 * 1024;

/// Empty memory for `len` bytes.
fn room_for(len: usize) -> Vec<u8> {
    let class = len.div_ceil(UNIT);
    if class >= CLASS_COUNT {
        return Vec::with_capacity(len);
    }
    let spare = SPARE.lock().expect("nothing panics under this lock")[class].pop();
    spare.unwrap_or_else(|| Vec::with_capacity(class * UNIT))
}

impl Drop for Settled {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        let class = bytes.capacity() / UNIT;
        if !(1..CLASS_COUNT).contains(&class) {
            return;
        }
        bytes.clear();
        let mut spare = SPARE.lock().expect("nothing panics under this lock");
        if (spare[class].len() + 1) * class * UNIT <= SPARE_BYTES_MAX {
            spare[class].push(bytes);
        }
    }
}

impl Settled {
    pub fn new(segments: &Segments, committed: Position, tail: &[u8]) -> Settled {
        let slices = || super::slices(segments, Position::START, committed);
        let mut bytes = room_for(slices().map(<[u8]>::len).sum::<usize>() + tail.len());
        slices().for_each(|slice| bytes.extend_from_slice(slice));
        let tail_at = bytes.len();
        bytes.extend_from_slice(tail);
        Settled { bytes, tail_at }
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn tail(&self) -> &[u8] {
        &self.bytes[self.tail_at..]
    }

    /// The body from byte `at` on; of a muted stream its first event alone.
    pub fn slice_from(&self, at: usize, muted: bool) -> Option<&[u8]> {
        let body = &self.bytes[..self.tail_at];
        let end = if muted && !body.is_empty() { frame_len(body) } else { body.len() };
        body.get(at..end).filter(|slice| !slice.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Alone with its sizes: tests of logs in the same process are shorter.
    #[test]
    fn memory_is_used_again_for_what_is_about_as_long() {
        let settled = |len: usize| {
            let mut bytes = room_for(len);
            bytes.resize(len, 7);
            Settled { bytes, tail_at: len }
        };
        let (first, last) = ((CLASS_COUNT - 2) * UNIT + 1, (CLASS_COUNT - 1) * UNIT);
        let old = settled(first);
        let memory = old.bytes.as_ptr();
        drop(old);
        let new = settled(last);
        assert_eq!((new.bytes.as_ptr(), new.bytes.len(), new.bytes.capacity()), (memory, last, last));
        // What is longer has memory of just its size, and gives it back.
        let long = settled(last + 1);
        assert_eq!(long.bytes.capacity(), last + 1);
    }

    #[test]
    fn no_more_is_kept_than_is_said() {
        let class = CLASS_COUNT - 3;
        let many: Vec<_> = (0..100).map(|_| Settled { bytes: room_for(class * UNIT), tail_at: 0 }).collect();
        drop(many);
        let kept = SPARE.lock().unwrap()[class].len();
        assert_eq!(kept, SPARE_BYTES_MAX / (class * UNIT));
    }
}
