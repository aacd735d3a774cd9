//! Asks the processor for memory that will be needed in a moment.
//!
//! With a thousand streams the state of one is long out of the nearer caches when its next token comes, and all of it
//! would be waited for one line after the other.

// An instruction that reads nothing and cannot fault, whatever the address.
#![allow(unsafe_code)]

const LINE_LEN: usize = 64;

/// A stretch of memory that is named and not read: it may be gone already.
#[derive(Clone, Copy)]
pub struct Stretch {
    start: *const u8,
    len: usize,
}

impl Stretch {
    pub fn of<T: ?Sized>(value: &T) -> Stretch {
        Stretch { start: (&raw const *value).cast(), len: size_of_val(value) }
    }

    /// From the first byte of both to the last.
    pub fn hull(self, other: Stretch) -> Stretch {
        let end = |stretch: Stretch| stretch.start.addr() + stretch.len;
        let start = self.start.min(other.start);
        Stretch { start, len: end(self).max(end(other)) - start.addr() }
    }

    /// Asks for its cache lines.
    pub fn prefetch(self) {
        let before = self.start.addr() % LINE_LEN;
        let first = self.start.wrapping_sub(before);
        for offset in (0..before + self.len).step_by(LINE_LEN) {
            prefetch_line(first.wrapping_add(offset));
        }
    }
}

impl Default for Stretch {
    /// Nothing.
    fn default() -> Stretch {
        Stretch { start: std::ptr::null(), len: 0 }
    }
}

#[cfg(target_arch = "x86_64")]
fn prefetch_line(at: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: every x86_64 processor has it, and it does not read.
    unsafe { _mm_prefetch(at.cast(), _MM_HINT_T0) };
}

#[cfg(target_arch = "aarch64")]
fn prefetch_line(at: *const u8) {
    // SAFETY: every aarch64 processor has it, and it does not read.
    unsafe { std::arch::asm!("prfm pldl1keep, [{}]", in(reg) at, options(nostack, readonly)) };
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn prefetch_line(_: *const u8) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hull_has_both_and_what_is_between_and_nothing_more() {
        let bytes = [0u8; 300];
        let (first, second) = (Stretch::of(&bytes[10..30]), Stretch::of(&bytes[200..290]));
        for hull in [first.hull(second), second.hull(first)] {
            assert_eq!((hull.start, hull.len), (bytes[10..].as_ptr(), 280));
        }
        let inner = Stretch::of(&bytes[210..220]).hull(second);
        assert_eq!((inner.start, inner.len), (second.start, second.len));
    }

    #[test]
    fn memory_that_is_gone_may_be_asked_for() {
        let gone = Stretch::of(&*Box::new([0u8; 4096]));
        gone.prefetch();
        Stretch::default().prefetch();
        Stretch { start: std::ptr::without_provenance(usize::MAX - 100), len: 300 }.prefetch();
    }
}
