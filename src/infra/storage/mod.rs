//! Where artifacts are kept: content-addressed, so a document is written once and never changes.

pub mod fs;
pub mod inmem;
mod shelf;

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use sha2::{Digest, Sha256};

const ID_PREFIX: &str = "sha256:";
const ID_LEN: usize = ID_PREFIX.len() + 2 * size_of::<ContentDigest>();

/// `sha256:` and 64 lower-case hexadecimal digits. It lies where it is used, for every task has one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ArtifactId([u8; ID_LEN]);

impl Deref for ArtifactId {
    type Target = str;

    fn deref(&self) -> &str {
        std::str::from_utf8(&self.0).expect("it is ASCII")
    }
}

impl fmt::Display for ArtifactId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self)
    }
}

impl fmt::Debug for ArtifactId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

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
    Corrupt { id: String },
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

/// SHA-256.
pub type ContentDigest = [u8; 32];

pub fn digest_of(document: &[u8]) -> ContentDigest {
    Sha256::digest(document).into()
}

/// The id of a document.
pub fn id_of(document: &[u8]) -> ArtifactId {
    id_from(&digest_of(document))
}

/// The id of the document with this digest.
pub fn id_from(digest: &ContentDigest) -> ArtifactId {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut id = [0; ID_LEN];
    let (prefix, hex) = id.split_at_mut(ID_PREFIX.len());
    prefix.copy_from_slice(ID_PREFIX.as_bytes());
    for (pair, byte) in hex.chunks_exact_mut(2).zip(digest) {
        pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
    ArtifactId(id)
}

/// The digest in an id of the form that `id_from` makes; anything else cannot be in a store, nor be a path.
pub fn digest_in(id: &str) -> Option<ContentDigest> {
    let hex = id.strip_prefix(ID_PREFIX).filter(|hex| hex.len() == 64)?;
    let nibble = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(digest)
}

/// True for the form that `id_from` makes.
pub fn is_id(text: &str) -> bool {
    digest_in(text).is_some()
}
