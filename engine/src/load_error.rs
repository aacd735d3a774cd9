//! Why a model file cannot be served, in one line that names the place.

use std::path::PathBuf;

/// Why a model could not be loaded. `Display` is one line for a person.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be opened or read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file that was asked for.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is something else.
    #[error("not a GGUF file: it begins with \"{}\" and not with \"GGUF\"", found.escape_ascii())]
    NotGguf {
        /// Its first bytes, at most four.
        found: Vec<u8>,
    },
    /// A sound file that this engine cannot run.
    #[error("unsupported {what}")]
    Unsupported {
        /// The architecture, tensor type, tokenizer or version, and where it stands.
        what: String,
    },
    /// The file ends before something that it announces.
    #[error("the file is truncated: {what} needs {needed} bytes at offset {offset}, and the file has {len}")]
    Truncated {
        /// The part that is cut off.
        what: String,
        /// Where that part begins.
        offset: u64,
        /// Its length in bytes.
        needed: u64,
        /// The file's length in bytes.
        len: u64,
    },
    /// A metadata key or tensor that the model cannot do without.
    #[error("the file has no {what}")]
    Missing {
        /// The key or tensor by name.
        what: String,
    },
    /// Something in the file contradicts the format or another part of it.
    #[error("the file is corrupt: {what}: {why}")]
    Corrupt {
        /// The key or tensor by name.
        what: String,
        /// What is wrong with it.
        why: String,
    },
}

impl LoadError {
    pub(crate) fn corrupt(what: impl Into<String>, why: impl Into<String>) -> LoadError {
        LoadError::Corrupt { what: what.into(), why: why.into() }
    }

    pub(crate) fn unsupported(what: impl Into<String>) -> LoadError {
        LoadError::Unsupported { what: what.into() }
    }

    pub(crate) fn missing(what: impl Into<String>) -> LoadError {
        LoadError::Missing { what: what.into() }
    }
}
