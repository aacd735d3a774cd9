//! Where artifacts are kept: content-addressed, so a document is written once and never changes.

pub mod fs;
pub mod inmem;

use std::sync::Arc;

use sha2::{Digest, Sha256};

/// `sha256:` and 64 lower-case hexadecimal digits.
pub type ArtifactId = String;

/// What a store says of a document that it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub id: ArtifactId,
    /// When it was first stored, milliseconds since 1970.
    pub created_ms: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the artifact store is full: {limit_bytes} bytes; delete artifacts, or raise artifacts_bytes_max")]
    Full { limit_bytes: usize },
    #[error("the stored artifact {id} no longer has its digest: the file was changed; restore it or delete it")]
    Corrupt { id: ArtifactId },
    #[error("the artifact store failed: {0}")]
    Io(#[from] std::io::Error),
}

/// A content-addressed store of canonical JSON documents.
pub trait ArtifactStore: Send + Sync {
    /// Stores `document` under the digest of its bytes. Storing the same again changes nothing.
    /// A `disposable` document may be dropped when there is no room; others are refused instead.
    ///
    /// # Errors
    ///
    /// When there is no room or the disk fails.
    fn put(&self, document: &[u8], disposable: bool, now_ms: u64) -> Result<Stored, StoreError>;

    /// The document's bytes, checked against its id.
    ///
    /// # Errors
    ///
    /// When the disk fails or the bytes no longer have the digest.
    fn get(&self, id: &str) -> Result<Option<Arc<[u8]>>, StoreError>;

    /// True when calls touch a disk and do not belong on a reactor.
    fn is_blocking(&self) -> bool;
}

/// The id of a document: the SHA-256 of its bytes.
pub fn id_of(document: &[u8]) -> ArtifactId {
    let mut id = String::with_capacity(71);
    id.push_str("sha256:");
    for byte in Sha256::digest(document) {
        for nibble in [byte >> 4, byte & 15] {
            id.push(char::from_digit(u32::from(nibble), 16).expect("a nibble is a digit"));
        }
    }
    id
}

/// True for the form that `id_of` makes; anything else cannot be in a store, nor be a path.
pub fn is_id(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
}
