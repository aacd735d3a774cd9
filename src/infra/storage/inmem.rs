//! Artifacts in memory, bounded in bytes: the oldest disposable ones make room.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use super::shelf::{Place, SHELVED_LEN_MAX, Shelf};
use super::{ArtifactStore, ContentDigest, StoreError, Stored, digest_in, digest_of, id_from};

/// Bytes reckoned for a document beyond its own: id, map entry, order entry.
const OVERHEAD: usize = 256;

pub struct InMemStore {
    limit_bytes: usize,
    inner: Mutex<Inner>,
}

/// Most documents are short and disposable. They lie on the shelf, and are found by a part of their digest that is as good as
/// any hash: a table of whole digests would be four times as long, and every look at it waits for memory.
#[derive(Default)]
struct Inner {
    /// Numbers of the turns of those on the shelf, by the first bytes of their digests.
    shelved: HashMap<u64, u64, ahash::RandomState>,
    shelf: Shelf,
    /// All others.
    apart: HashMap<ContentDigest, Document, ahash::RandomState>,
    /// Those that came as disposable, oldest first.
    turns: VecDeque<Turn>,
    /// Number of the first turn.
    first: u64,
    bytes: usize,
}

struct Document {
    bytes: Arc<[u8]>,
    created_ms: u64,
    disposable: bool,
}

/// A document came as disposable, and goes when its turn comes, if it still is.
struct Turn {
    digest: ContentDigest,
    created_ms: u64,
    /// Where it lies on the shelf; none of one that lies apart.
    place: Option<Place>,
    len: usize,
}

/// What the documents on the shelf are found by.
fn prefix_of(digest: &ContentDigest) -> u64 {
    u64::from_ne_bytes(digest[..8].try_into().expect("a digest is longer"))
}

impl InMemStore {
    pub fn new(limit_bytes: usize) -> InMemStore {
        InMemStore { limit_bytes, inner: Mutex::default() }
    }

    /// Documents held.
    pub fn len(&self) -> usize {
        let inner = self.lock();
        inner.shelved.len() + inner.apart.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nothing panics under this lock")
    }
}

impl Inner {
    /// The turn of a document on the shelf.
    fn turn(&self, digest: &ContentDigest) -> Option<&Turn> {
        let number = self.shelved.get(&prefix_of(digest))?;
        let turn = &self.turns[(number - self.first) as usize];
        (turn.digest == *digest).then_some(turn)
    }

    /// Lets old documents go until there is room for one of `len` bytes, and reckons those.
    ///
    /// # Errors
    ///
    /// When no more can go.
    fn make_room(&mut self, len: usize, limit_bytes: usize) -> Result<(), StoreError> {
        while self.bytes + len + OVERHEAD > limit_bytes {
            self.drop_oldest().ok_or(StoreError::Full { limit_bytes })?;
        }
        self.bytes += len + OVERHEAD;
        Ok(())
    }

    fn drop_oldest(&mut self) -> Option<()> {
        let oldest = self.turns.pop_front()?;
        let number = self.first;
        self.first += 1;
        self.bytes -= oldest.len + OVERHEAD;
        if oldest.place.is_some() {
            self.shelf.drop_first();
            // One that was posted later lies apart, and its name here may be another's.
            if let Entry::Occupied(known) = self.shelved.entry(prefix_of(&oldest.digest))
                && *known.get() == number
            {
                known.remove();
            }
        } else if let Entry::Occupied(known) = self.apart.entry(oldest.digest)
            && known.get().disposable
        {
            known.remove();
        }
        Some(())
    }

    /// Stores a document for good.
    fn keep(&mut self, digest: ContentDigest, document: &[u8], now_ms: u64, limit: usize) -> Result<u64, StoreError> {
        if let Some(known) = self.apart.get_mut(&digest) {
            // Of a disposable one the turn will find that it has become somebody's, and let go of its share of the bytes.
            let moved = std::mem::replace(&mut known.disposable, false);
            let created_ms = known.created_ms;
            if moved && let Err(full) = self.make_room(document.len(), limit) {
                self.apart.remove(&digest);
                return Err(full);
            }
            return Ok(created_ms);
        }
        let created_ms = self.turn(&digest).map_or(now_ms, |turn| turn.created_ms);
        self.make_room(document.len(), limit)?;
        if self.turn(&digest).is_some() {
            self.shelved.remove(&prefix_of(&digest));
        }
        self.apart.insert(digest, Document { bytes: document.into(), created_ms, disposable: false });
        Ok(created_ms)
    }

    /// Stores a document until its turn comes to make room.
    fn keep_for_now(
        &mut self,
        digest: ContentDigest,
        document: &[u8],
        now_ms: u64,
        limit: usize,
    ) -> Result<u64, StoreError> {
        if let Some(known) = self.apart.get(&digest) {
            return Ok(known.created_ms);
        }
        let number = self.first + self.turns.len() as u64;
        let is_shelved = document.len() <= SHELVED_LEN_MAX
            && match self.shelved.entry(prefix_of(&digest)) {
                Entry::Vacant(vacant) => {
                    vacant.insert(number);
                    true
                }
                Entry::Occupied(known) => {
                    let turn = &self.turns[(known.get() - self.first) as usize];
                    if turn.digest == digest {
                        return Ok(turn.created_ms);
                    }
                    false
                }
            };
        // Those that go are before it, so its number stands.
        if let Err(full) = self.make_room(document.len(), limit) {
            if is_shelved {
                self.shelved.remove(&prefix_of(&digest));
            }
            return Err(full);
        }
        let place = is_shelved.then(|| self.shelf.push(document));
        if place.is_none() {
            self.apart.insert(digest, Document { bytes: document.into(), created_ms: now_ms, disposable: true });
        }
        self.turns.push_back(Turn { digest, created_ms: now_ms, place, len: document.len() });
        Ok(now_ms)
    }
}

impl ArtifactStore for InMemStore {
    fn put(&self, document: &[u8], disposable: bool, now_ms: u64) -> Result<Stored, StoreError> {
        let digest = digest_of(document);
        let mut inner = self.lock();
        let created_ms = match disposable {
            true => inner.keep_for_now(digest, document, now_ms, self.limit_bytes)?,
            // What a client has posted itself is kept for it, also if it was a transcript before.
            false => inner.keep(digest, document, now_ms, self.limit_bytes)?,
        };
        drop(inner);
        Ok(Stored { id: id_from(&digest), created_ms })
    }

    fn get(&self, id: &str) -> Result<Option<Arc<[u8]>>, StoreError> {
        let Some(digest) = digest_in(id) else { return Ok(None) };
        let inner = self.lock();
        if let Some(place) = inner.turn(&digest).and_then(|turn| turn.place) {
            return Ok(Some(inner.shelf.get(place).into()));
        }
        Ok(inner.apart.get(&digest).map(|document| document.bytes.clone()))
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
        assert_eq!(*stored.id, *"sha256:015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862");
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

    #[test]
    fn a_transcript_that_is_posted_stays_and_long_ones_go_in_their_turn() {
        let long = vec![b'1'; SHELVED_LEN_MAX + 1];
        let store = InMemStore::new(2 * (OVERHEAD + long.len()) + OVERHEAD + 10);
        let there = |id: &str| store.get(id).unwrap().is_some();
        let transcript = store.put(b"transcript", true, 1).unwrap();
        let first = store.put(&long, true, 2).unwrap().id;
        assert_eq!(store.put(b"transcript", false, 3).unwrap(), transcript, "it is the same document");
        assert_eq!(store.get(&transcript.id).unwrap().unwrap()[..], *b"transcript");
        let second = store.put(&[&long[..], b"2"].concat(), true, 4).unwrap().id;
        assert!(there(&transcript.id) && !there(&first) && there(&second));
        assert_eq!(store.get(&second).unwrap().unwrap().len(), long.len() + 1);
    }

    #[test]
    fn what_is_reckoned_is_what_is_held() {
        let store = InMemStore::new(64 * 1024);
        let document = |n: u32| format!("{n:0len$}", len = 10 + (n % 500) as usize).into_bytes();
        for n in 0..3000 {
            // Some come twice, and some of those are posted.
            let _ = store.put(&document(n), n % 11 != 0, 1);
            let _ = store.put(&document(n.saturating_sub(7)), n % 17 != 0, 1);
        }
        let inner = store.lock();
        let kept: usize = inner.apart.values().filter(|d| !d.disposable).map(|d| d.bytes.len() + OVERHEAD).sum();
        let turns: usize = inner.turns.iter().map(|turn| turn.len + OVERHEAD).sum();
        assert_eq!(inner.bytes, kept + turns);
        assert!(inner.bytes <= store.limit_bytes && inner.shelved.len() <= inner.turns.len());
    }

    /// Nobody finds two documents whose digests begin alike in a test, so one is put in another's place.
    #[test]
    fn two_documents_whose_digests_begin_alike_are_two() {
        let store = InMemStore::new(1 << 20);
        let first = store.put(b"first", true, 1).unwrap();
        let second = id_from(&digest_of(b"second"));
        {
            let mut inner = store.lock();
            inner.shelved.insert(prefix_of(&digest_of(b"second")), 0);
        }
        assert_eq!(store.get(&second).unwrap(), None);
        store.put(b"second", true, 2).unwrap();
        assert_eq!(store.get(&second).unwrap().unwrap()[..], *b"second");
        assert_eq!(store.get(&first.id).unwrap().unwrap()[..], *b"first");
        assert_eq!(store.put(b"second", false, 3).unwrap().created_ms, 2);
    }
}
