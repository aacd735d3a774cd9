//! Artifacts as files: `ROOT/ab/cdef….json`, written aside, synced, then renamed into place.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use super::{ArtifactStore, StoreError, Stored, id_of, is_id};

pub struct FsStore {
    root: PathBuf,
    /// Tells apart the temporary files of this process.
    next: AtomicU64,
}

impl FsStore {
    /// Opens or makes the folder `root`.
    ///
    /// # Errors
    ///
    /// When it cannot be made or is not writable.
    pub fn open(root: &Path) -> io::Result<FsStore> {
        fs::create_dir_all(root)?;
        let store = FsStore { root: root.to_owned(), next: AtomicU64::new(0) };
        // Better to learn now than at the first transcript that the folder is read-only.
        let probe = store.temporary(root);
        File::create(&probe)?;
        fs::remove_file(&probe)?;
        Ok(store)
    }

    fn path_of(&self, id: &str) -> PathBuf {
        let hex = &id["sha256:".len()..];
        self.root.join(&hex[..2]).join(format!("{}.json", &hex[2..]))
    }

    fn temporary(&self, folder: &Path) -> PathBuf {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        folder.join(format!(".new-{}-{number}", std::process::id()))
    }

    fn write(&self, path: &Path, document: &[u8]) -> io::Result<()> {
        let folder = path.parent().expect("a document lies in a folder");
        fs::create_dir_all(folder)?;
        let temporary = self.temporary(folder);
        let written = (|| {
            let mut file = File::create(&temporary)?;
            file.write_all(document)?;
            file.sync_all()?;
            fs::rename(&temporary, path)?;
            // The name must survive a crash as well as the bytes.
            File::open(folder)?.sync_all()
        })();
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }
}

fn modified_ms(path: &Path) -> io::Result<u64> {
    let modified = fs::metadata(path)?.modified()?;
    Ok(modified.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64))
}

impl ArtifactStore for FsStore {
    fn put(&self, document: &[u8], _disposable: bool, now_ms: u64) -> Result<Stored, StoreError> {
        let id = id_of(document);
        let path = self.path_of(&id);
        // A damaged file is written anew: the same id can only mean the same bytes.
        if let Ok(known) = fs::read(&path)
            && known == document
        {
            return Ok(Stored { id, created_ms: modified_ms(&path)? });
        }
        self.write(&path, document)?;
        Ok(Stored { id, created_ms: now_ms })
    }

    fn get(&self, id: &str) -> Result<Option<Arc<[u8]>>, StoreError> {
        if !is_id(id) {
            return Ok(None);
        }
        match fs::read(self.path_of(id)) {
            Ok(bytes) if *id_of(&bytes) == *id => Ok(Some(bytes.into())),
            Ok(_) => Err(StoreError::Corrupt { id: id.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn is_blocking(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Folder {
            Folder(std::env::temp_dir().join(format!("orchestratord-fs-{}", uuid::Uuid::new_v4())))
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_document_survives_the_store_and_its_id_is_its_digest() {
        let folder = Folder::new();
        let stored = FsStore::open(&folder.0).unwrap().put(br#"{"a":1}"#, false, 7).unwrap();
        assert_eq!(stored.id, id_of(br#"{"a":1}"#));
        let again = FsStore::open(&folder.0).unwrap();
        assert_eq!(again.get(&stored.id).unwrap().unwrap()[..], *br#"{"a":1}"#);
        let names: Vec<_> = walk(&folder.0);
        assert_eq!(names.len(), 1, "no temporary file stays: {names:?}");
    }

    #[test]
    fn a_flipped_byte_is_noticed_and_mended_by_storing_again() {
        let folder = Folder::new();
        let store = FsStore::open(&folder.0).unwrap();
        let id = store.put(b"[1,2,3]", false, 0).unwrap().id;
        fs::write(store.path_of(&id), b"[1,2,4]").unwrap();
        assert!(matches!(store.get(&id), Err(StoreError::Corrupt { .. })));
        store.put(b"[1,2,3]", false, 0).unwrap();
        assert_eq!(store.get(&id).unwrap().unwrap()[..], *b"[1,2,3]");
    }

    #[test]
    fn an_id_that_is_no_digest_is_no_path() {
        let folder = Folder::new();
        let store = FsStore::open(&folder.0).unwrap();
        for id in ["", "sha256:", "sha256:../../etc/passwd", &format!("sha256:{}", "G".repeat(64))] {
            assert_eq!(store.get(id).unwrap(), None);
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_refused_at_once() {
        let folder = Folder::new();
        fs::create_dir_all(folder.0.parent().unwrap()).unwrap();
        fs::write(&folder.0, b"a file, not a folder").unwrap();
        assert!(FsStore::open(&folder.0).is_err());
        fs::remove_file(&folder.0).unwrap();
    }

    fn walk(folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
        entries.flat_map(|p| if p.is_dir() { walk(&p) } else { vec![p] }).collect()
    }
}
