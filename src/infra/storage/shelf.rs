//! Documents one behind the other, in the order in which they came and will go.
//!
//! Memory is taken and given back a chunk at a time: storing a document writes on where the last one ended, and dropping
//! the oldest touches none of it.

use std::collections::VecDeque;

use crate::infra::prefetch::Stretch;

/// Bytes of a chunk.
const CHUNK_LEN: usize = 256 * 1024;

/// Longer documents lie elsewhere: so at most an eighth of a chunk stays empty behind the last that fitted.
pub const SHELVED_LEN_MAX: usize = CHUNK_LEN / 8;

/// Most that is asked for ahead: more would push other things out of the nearest cache.
const AHEAD_LEN_MAX: usize = 4 * 1024;

/// Where a document lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    chunk: u64,
    offset: u32,
    len: u32,
}

#[derive(Default)]
pub struct Shelf {
    chunks: VecDeque<Chunk>,
    /// Number of the first chunk.
    first: u64,
    /// Memory of the chunk that went last.
    spare: Option<Vec<u8>>,
}

struct Chunk {
    bytes: Vec<u8>,
    /// Documents in it that are not dropped.
    count: u32,
}

impl Shelf {
    /// Stores a document behind all others.
    pub fn push(&mut self, document: &[u8]) -> Place {
        assert!(document.len() <= SHELVED_LEN_MAX, "long documents lie elsewhere");
        let fits = |chunk: &Chunk| chunk.bytes.len() + document.len() <= CHUNK_LEN;
        if !self.chunks.back().is_some_and(fits) {
            let bytes = self.spare.take().unwrap_or_else(|| Vec::with_capacity(CHUNK_LEN));
            self.chunks.push_back(Chunk { bytes, count: 0 });
        }
        let number = self.first + self.chunks.len() as u64 - 1;
        let chunk = self.chunks.back_mut().expect("there is one with room");
        let place = Place { chunk: number, offset: chunk.bytes.len() as u32, len: document.len() as u32 };
        chunk.bytes.extend_from_slice(document);
        chunk.count += 1;
        // The next one is about as long, and this chunk was written a quarter of a gibibyte ago.
        let room = chunk.bytes.spare_capacity_mut();
        Stretch::of(&room[..document.len().min(AHEAD_LEN_MAX).min(room.len())]).prefetch();
        place
    }

    /// A document that was not dropped.
    pub fn get(&self, place: Place) -> &[u8] {
        let index = place.chunk.checked_sub(self.first).expect("its chunk goes after it");
        let start = place.offset as usize;
        &self.chunks[index as usize].bytes[start..start + place.len as usize]
    }

    /// Drops the oldest document.
    pub fn drop_first(&mut self) {
        let chunk = self.chunks.front_mut().expect("there is a document");
        chunk.count -= 1;
        if chunk.count == 0 {
            let mut gone = self.chunks.pop_front().expect("it was just there");
            self.first += 1;
            gone.bytes.clear();
            self.spare = Some(gone.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(n: usize) -> Vec<u8> {
        let len = (n * 7919) % (SHELVED_LEN_MAX + 1);
        (0..len).map(|at| (n + at) as u8).collect()
    }

    #[test]
    fn documents_stay_as_they_are_while_older_ones_go_and_newer_ones_come() {
        let (mut shelf, mut there) = (Shelf::default(), VecDeque::new());
        for n in 0..600 {
            let document = document(n);
            let place = shelf.push(&document);
            there.push_back((document, place));
            // Now more, now fewer; and none at all from time to time.
            while there.len() > n % 37 {
                there.pop_front();
                shelf.drop_first();
            }
            for (document, place) in &there {
                assert_eq!(shelf.get(*place), document);
            }
        }
    }

    #[test]
    fn chunks_are_taken_once_and_used_again() {
        let mut shelf = Shelf::default();
        let document = [7; 1000];
        let in_chunk = CHUNK_LEN / document.len();
        for _ in 0..2 * in_chunk {
            shelf.push(&document);
        }
        assert_eq!(shelf.chunks.len(), 2);
        let memory = shelf.chunks[0].bytes.as_ptr();
        (0..in_chunk).for_each(|_| shelf.drop_first());
        shelf.push(&document);
        assert_eq!((shelf.chunks.len(), shelf.chunks[1].bytes.as_ptr()), (2, memory));
    }
}
