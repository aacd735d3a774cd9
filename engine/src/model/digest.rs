//! The digest of a model's files, computed beside everything else.
//!
//! Hashing runs at one or two gigabytes a second, and a model need not wait for it: only a transcript is sealed with it,
//! and whoever compares models by it. They wait for the thread, or do its work if there is none.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use sha2::{Digest as _, Sha256};

use crate::gguf::FileBytes;

/// Bytes that are hashed between two looks at whether anybody still wants the result.
const STRETCH_LEN: usize = 1 << 20;

/// SHA-256 of a file, or of several with their names.
pub(super) struct Digest(Arc<Hashing>);

struct Hashing {
    files: Vec<Part>,
    hex: OnceLock<String>,
    /// The model is gone, and nobody can ask any more.
    abandoned: AtomicBool,
}

/// A file, and the name that is hashed before it.
struct Part {
    name: Option<String>,
    file: FileBytes,
}

impl Digest {
    /// That of one file's bytes: what `sha256sum` says.
    pub fn of_file(file: &FileBytes) -> Digest {
        Digest::begin(vec![Part { name: None, file: file.clone() }])
    }

    /// That of several files, in this order: of each its name, a zero byte, its length as eight bytes (little-endian), its
    /// bytes.
    pub fn of_files(files: impl IntoIterator<Item = (String, FileBytes)>) -> Digest {
        Digest::begin(files.into_iter().map(|(name, file)| Part { name: Some(name), file }).collect())
    }

    fn begin(files: Vec<Part>) -> Digest {
        let hashing = Arc::new(Hashing { files, hex: OnceLock::new(), abandoned: AtomicBool::new(false) });
        let work = hashing.clone();
        // Without a thread the first who asks does it: they may, since it is only slower.
        let _ = std::thread::Builder::new().name("digest".into()).spawn(move || {
            work.hex();
        });
        Digest(hashing)
    }

    /// Lower-case hexadecimal; waited for if it is not there yet.
    pub fn hex(&self) -> &str {
        self.0.hex()
    }

    /// The same, if it is there.
    pub fn known(&self) -> Option<&str> {
        self.0.hex.get().map(String::as_str)
    }
}

impl Drop for Digest {
    fn drop(&mut self) {
        self.0.abandoned.store(true, Relaxed);
    }
}

impl Hashing {
    fn hex(&self) -> &str {
        self.hex.get_or_init(|| {
            let mut hash = Sha256::new();
            for Part { name, file } in &self.files {
                if let Some(name) = name {
                    hash.update(name.as_bytes());
                    hash.update([0]);
                    hash.update((file.as_slice().len() as u64).to_le_bytes());
                }
                for stretch in file.as_slice().chunks(STRETCH_LEN) {
                    if self.abandoned.load(Relaxed) {
                        return String::new();
                    }
                    hash.update(stretch);
                }
            }
            hex(&hash.finalize())
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut out, byte| {
        write!(out, "{byte:02x}").expect("writing to a String cannot fail");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_who_asks_hears_the_same_whoever_computes_it() {
        let bytes: Vec<u8> = (0..3 * STRETCH_LEN + 17).map(|i| (i * 31) as u8).collect();
        let wanted = hex(&Sha256::digest(&bytes));
        let digest = Digest::of_file(&FileBytes::from_vec(bytes));
        std::thread::scope(|scope| {
            (0..4).for_each(|_| {
                scope.spawn(|| assert_eq!(digest.hex(), wanted));
            });
        });
        assert_eq!(digest.known(), Some(&*wanted));
    }

    #[test]
    fn names_and_lengths_are_part_of_a_folders_digest() {
        let of = |files: &[(&str, &[u8])]| {
            let part = |(name, bytes): &(&str, &[u8])| ((*name).to_owned(), FileBytes::from_vec(bytes.to_vec()));
            Digest::of_files(files.iter().map(part)).hex().to_owned()
        };
        let wanted = Sha256::digest([b"a\0\x02\0\0\0\0\0\0\0xy".as_slice(), b"b\0\x01\0\0\0\0\0\0\0z"].concat());
        assert_eq!(of(&[("a", b"xy"), ("b", b"z")]), hex(&wanted));
        assert_ne!(of(&[("a", b"x"), ("b", b"yz")]), hex(&wanted));
    }

    #[test]
    fn nobody_hashes_for_a_model_that_is_gone() {
        let file = FileBytes::from_vec(vec![7; 17]);
        let digest = Digest::of_file(&file);
        let hashing = digest.0.clone();
        drop(digest);
        assert!(hashing.abandoned.load(Relaxed));
        let part = Part { name: None, file };
        let gone = Hashing { files: vec![part], hex: OnceLock::new(), abandoned: AtomicBool::new(true) };
        assert_eq!(gone.hex(), "");
    }
}
