//! A folder that is gone when the test is.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

static FOLDER_COUNT: AtomicU32 = AtomicU32::new(0);

/// A new, empty folder in the system's temporary folder, removed with all it holds on drop.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// # Errors
    ///
    /// When the folder cannot be made.
    pub fn new() -> std::io::Result<Self> {
        let number = FOLDER_COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("orchestratord-bdd-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A folder that stays behind is untidy, but no reason to fail a test.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
