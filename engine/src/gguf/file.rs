//! The bytes of a model file: mapped, or part of the program. One of the rooms where `unsafe` lives.
#![allow(unsafe_code, reason = "mapping a file is a promise about other processes that only the caller can make")]

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::LoadError;

/// The bytes of a model file, shared by everything that points into it.
#[derive(Clone)]
pub struct FileBytes(Source);

#[derive(Clone)]
enum Source {
    Mapped(Arc<Mmap>),
    Static(&'static [u8]),
    Owned(Arc<Vec<u8>>),
}

impl FileBytes {
    /// Maps a file.
    ///
    /// Nobody may cut the file short while it is mapped: the next access to the lost part would end the process.
    /// Replacing it by renaming another file over it is fine.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened or mapped.
    pub fn map(path: &Path) -> Result<FileBytes, LoadError> {
        let failed = |source| LoadError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        if meta.is_dir() {
            return Err(failed(std::io::Error::other("it is a folder and not a GGUF file")));
        }
        // SAFETY: the map is read-only and private to this value. That the file is not changed under it is the
        // caller's part, stated above: no operating system lets a program make sure of it.
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        Ok(FileBytes(Source::Mapped(Arc::new(map))))
    }

    /// Bytes that are part of the program or leaked.
    pub fn from_static(bytes: &'static [u8]) -> FileBytes {
        FileBytes(Source::Static(bytes))
    }

    /// Bytes in memory.
    pub fn from_vec(bytes: Vec<u8>) -> FileBytes {
        FileBytes(Source::Owned(Arc::new(bytes)))
    }

    /// All of them.
    pub fn as_slice(&self) -> &[u8] {
        match &self.0 {
            Source::Mapped(map) => map,
            Source::Static(bytes) => bytes,
            Source::Owned(bytes) => bytes,
        }
    }
}

impl std::fmt::Debug for FileBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FileBytes({} bytes)", self.as_slice().len())
    }
}
