//! Artifacts: documents addressed by the digest of their canonical JSON (RFC 8785).

use std::sync::Arc;

use serde_json::Value;

use crate::infra::storage::inmem::InMemStore;
use crate::infra::storage::{ArtifactStore, StoreError, Stored};

/// Bytes of recent documents mirrored in memory in front of a store that is slow.
const MIRROR_BYTES_MAX: usize = 32 * 1024 * 1024;

/// The store, and a mirror of what was put lately.
pub struct ArtifactService {
    store: Arc<dyn ArtifactStore>,
    /// Answers for a store on disk while that is failing; disposable throughout. Memory needs no mirror.
    recent: Option<InMemStore>,
}

impl ArtifactService {
    pub fn new(store: Arc<dyn ArtifactStore>) -> ArtifactService {
        let recent = store.is_blocking().then(|| InMemStore::new(MIRROR_BYTES_MAX));
        ArtifactService { store, recent }
    }

    /// Stores a document; what is hashed and stored is its canonical form.
    ///
    /// # Errors
    ///
    /// As the store's; and nothing is mirrored that the store did not take.
    pub fn put(&self, document: &Value, disposable: bool, now_ms: u64) -> Result<Stored, StoreError> {
        self.put_canonical(&canonical(document), disposable, now_ms)
    }

    /// Stores a document that is in its canonical form already.
    ///
    /// # Errors
    ///
    /// As `put`'s.
    pub fn put_canonical(&self, canonical: &[u8], disposable: bool, now_ms: u64) -> Result<Stored, StoreError> {
        let stored = self.store.put(canonical, disposable, now_ms)?;
        if let Some(recent) = &self.recent {
            // The mirror's own limit is no reason to fail.
            let _ = recent.put(canonical, true, now_ms);
        }
        Ok(stored)
    }

    /// The document's canonical bytes: from the store, or from memory where the store has lost it.
    ///
    /// # Errors
    ///
    /// When the store fails and memory does not have it either.
    pub fn get(&self, id: &str) -> Result<Option<Arc<[u8]>>, StoreError> {
        let recent = |id| self.recent.as_ref().map_or(Ok(None), |recent| recent.get(id));
        match self.store.get(id) {
            Ok(Some(bytes)) => Ok(Some(bytes)),
            Ok(None) => recent(id),
            Err(error) => match recent(id) {
                Ok(Some(bytes)) if !matches!(error, StoreError::Corrupt { .. }) => Ok(Some(bytes)),
                _ => Err(error),
            },
        }
    }

    /// True when calls belong on a helper thread.
    pub fn is_blocking(&self) -> bool {
        self.store.is_blocking()
    }
}

/// RFC 8785 bytes of a document.
pub fn canonical(document: &Value) -> Vec<u8> {
    serde_json_canonicalizer::to_vec(document).expect("a JSON value has a canonical form")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// A store that can be told to lose everything.
    struct Forgetful {
        inner: InMemStore,
        lost: AtomicBool,
    }

    impl ArtifactStore for Forgetful {
        fn put(&self, document: &[u8], disposable: bool, now_ms: u64) -> Result<Stored, StoreError> {
            self.inner.put(document, disposable, now_ms)
        }
        fn get(&self, id: &str) -> Result<Option<Arc<[u8]>>, StoreError> {
            if self.lost.load(Ordering::Relaxed) { Ok(None) } else { self.inner.get(id) }
        }
        fn is_blocking(&self) -> bool {
            true
        }
    }

    #[test]
    fn the_store_is_asked_first_and_memory_second() {
        let store = Arc::new(Forgetful { inner: InMemStore::new(1 << 20), lost: AtomicBool::new(false) });
        let service = ArtifactService::new(store.clone());
        let id = service.put(&json!({"b": 1, "a": [1.0, 2.5]}), false, 1).unwrap().id;
        assert_eq!(service.get(&id).unwrap().unwrap()[..], *br#"{"a":[1,2.5],"b":1}"#);
        store.lost.store(true, Ordering::Relaxed);
        assert_eq!(service.get(&id).unwrap().unwrap()[..], *br#"{"a":[1,2.5],"b":1}"#);
        assert_eq!(service.get("sha256:0").unwrap(), None);
    }

    #[test]
    fn the_same_document_has_the_same_id_however_it_was_written() {
        let service = ArtifactService::new(Arc::new(InMemStore::new(1 << 20)));
        let put = |text: &str| service.put(&serde_json::from_str(text).unwrap(), false, 1).unwrap().id;
        assert_eq!(put(r#"{"a":1,"b":"\u00e9"}"#), put("{ \"b\" : \"é\",\n\"a\" : 1.0e0 }"));
        assert_ne!(put(r#"{"a":1}"#), put(r#"{"a":2}"#));
    }
}
