//! Artifacts in memory, bounded in bytes: the oldest disposable ones make room.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use super::{ArtifactStore, ContentDigest, StoreError, Stored, digest_in, digest_of, id_from};

/// Bytes reckoned for a document beyond its own: id, map entry, order entry.
const OVERHEAD: usize = 256;

pub struct InMemStore {
    limit_bytes: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    documents: HashMap<ContentDigest, Document, ahash::RandomState>,
    /// Disposable ones, oldest first.
    disposable: VecDeque<ContentDigest>,
    bytes: usize,
}

struct Document {
    bytes: Arc<[u8]>,
    created_ms: u64,
    disposable: bool,
}

impl InMemStore {
    pub fn new(limit_bytes: usize) -> InMemStore {
        InMemStore { limit_bytes, inner: Mutex::default() }
    }

    /// Documents held.
    pub fn len(&self) -> usize {
        self.inner.lock().expect("nothing panics under this lock").documents.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl ArtifactStore for InMemStore {
    fn put(&self, document: &[u8], disposable: bool, now_ms: u64) -> Result<Stored, StoreError> {
        let digest = digest_of(document);
        let id = id_from(&digest);
        let bytes: Arc<[u8]> = document.into();
        let mut inner = self.inner.lock().expect("nothing panics under this lock");
        if let Some(known) = inner.documents.get_mut(&digest) {
            // What a client has posted itself is kept for it, also if it was a transcript before.
            known.disposable &= disposable;
            return Ok(Stored { id, created_ms: known.created_ms });
        }
        let needed = document.len() + OVERHEAD;
        while inner.bytes + needed > self.limit_bytes {
            let Some(oldest) = inner.disposable.pop_front() else {
                return Err(StoreError::Full { limit_bytes: self.limit_bytes });
            };
            if inner.documents.get(&oldest).is_some_and(|d| d.disposable) {
                let gone = inner.documents.remove(&oldest).expect("it was just there");
                inner.bytes -= gone.bytes.len() + OVERHEAD;
            }
        }
        if disposable {
            inner.disposable.push_back(digest);
        }
        inner.bytes += needed;
        inner.documents.insert(digest, Document { bytes, created_ms: now_ms, disposable });
        Ok(Stored { id, created_ms: now_ms })
    }

    fn get(&self, id: &str) -> Result<Option<Arc<[u8]>>, StoreError> {
        let Some(digest) = digest_in(id) else { return Ok(None) };
        let inner = self.inner.lock().expect("nothing panics under this lock");
        Ok(inner.documents.get(&digest).map(|d| d.bytes.clone()))
    }

    fn is_blocking(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_gets_its_digest_as_id_and_comes_back() {
        let store = InMemStore::new(1 << 20);
        let stored = store.put(br#"{"a":1}"#, false, 7).unwrap();
        // Computed with sha256sum.
        assert_eq!(stored.id, "sha256:015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862");
        assert_eq!(store.get(&stored.id).unwrap().unwrap()[..], *br#"{"a":1}"#);
        assert_eq!(store.put(br#"{"a":1}"#, false, 9).unwrap().created_ms, 7);
        assert_eq!(store.get("sha256:00").unwrap(), None);
    }

    #[test]
    fn transcripts_make_room_and_posted_documents_stay() {
        let store = InMemStore::new(3 * (OVERHEAD + 10));
        let posted = store.put(b"posted....", false, 1).unwrap().id;
        let old = store.put(b"old.......", true, 2).unwrap().id;
        let newer = store.put(b"newer.....", true, 3).unwrap().id;
        let newest = store.put(b"newest....", true, 4).unwrap().id;
        let there = |id: &str| store.get(id).unwrap().is_some();
        assert!(there(&posted) && !there(&old) && there(&newer) && there(&newest));
        store.put(b"more......", false, 5).unwrap();
        store.put(b"and more..", false, 6).unwrap();
        assert!(matches!(store.put(b"too much..", false, 7), Err(StoreError::Full { .. })));
        assert!(there(&posted));
    }
}
