//! Rows of floats that begin at a cache line.

use std::ops::{Deref, DerefMut};

/// A row of `f32` of a fixed length, all zero at first. It begins at a cache line: memory from a `Vec` of floats begins
/// sixteen bytes after one, and every vector of a kernel would be loaded twice.
#[derive(Debug, Default)]
pub struct Buffer {
    /// Zeros of the system's, which are no memory before they are written.
    memory: Vec<f32>,
    start: usize,
    len: usize,
}

/// Elements of a cache line.
const LINE_LEN: usize = 64 / size_of::<f32>();

impl Buffer {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Buffer {
        let memory = vec![0.0; len + LINE_LEN - 1];
        let start = memory.as_ptr().align_offset(64).min(LINE_LEN - 1);
        Buffer { memory, start, len }
    }
}

impl Deref for Buffer {
    type Target = [f32];

    #[inline(always)]
    fn deref(&self) -> &[f32] {
        &self.memory[self.start..][..self.len]
    }
}

impl DerefMut for Buffer {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.memory[self.start..][..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_its_length_and_begins_at_a_cache_line() {
        for len in [0, 1, 16, 17, 1000] {
            let mut buffer = Buffer::zeros(len);
            assert_eq!((buffer.len(), buffer.iter().sum::<f32>()), (len, 0.0));
            assert!(cfg!(miri) || len == 0 || buffer.as_ptr().addr().is_multiple_of(64));
            buffer.fill(1.0);
            assert_eq!(buffer.iter().sum::<f32>(), len as f32);
        }
    }
}
