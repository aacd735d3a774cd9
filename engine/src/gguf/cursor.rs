//! Reads numbers and strings from a slice, and says what was cut off when there is too little.

use crate::LoadError;

/// Keys and tensor names are short; the specification allows 64 KiB.
const NAME_LEN_MAX: u64 = 65_535;

pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes, at: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// What has not been read, without reading it.
    pub(super) fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    pub(super) fn file_len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `len` bytes.
    pub(super) fn take(&mut self, len: u64, what: impl FnOnce() -> String) -> Result<&'a [u8], LoadError> {
        if len > self.left() as u64 {
            return Err(LoadError::Truncated {
                what: what(),
                offset: self.at as u64,
                needed: len,
                len: self.bytes.len() as u64,
            });
        }
        let start = self.at;
        self.at += len as usize;
        Ok(&self.bytes[start..self.at])
    }

    /// Refuses a count of things that the rest of the file cannot hold.
    pub(super) fn check_count(&self, count: u64, least: u64, what: impl FnOnce() -> String) -> Result<(), LoadError> {
        let needed = count.saturating_mul(least);
        if needed <= self.left() as u64 {
            return Ok(());
        }
        let what = format!("{} ({count} entries of at least {least} bytes)", what());
        Err(LoadError::Truncated { what, offset: self.at as u64, needed, len: self.bytes.len() as u64 })
    }

    pub(super) fn u32(&mut self, what: impl FnOnce() -> String) -> Result<u32, LoadError> {
        let bytes = self.take(4, what)?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes were taken")))
    }

    pub(super) fn u64(&mut self, what: impl FnOnce() -> String) -> Result<u64, LoadError> {
        let bytes = self.take(8, what)?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("eight bytes were taken")))
    }

    /// A length and that many bytes.
    pub(super) fn string(&mut self, what: impl Fn() -> String) -> Result<&'a [u8], LoadError> {
        let len = self.u64(&what)?;
        self.take(len, what)
    }

    /// A key or a tensor's name.
    pub(super) fn name(&mut self, what: impl Fn() -> String) -> Result<&'a str, LoadError> {
        let len = self.u64(&what)?;
        if len > NAME_LEN_MAX {
            return Err(LoadError::corrupt(what(), format!("is {len} bytes long, and {NAME_LEN_MAX} are allowed")));
        }
        let bytes = self.take(len, &what)?;
        std::str::from_utf8(bytes).map_err(|_| LoadError::corrupt(what(), "is not UTF-8"))
    }
}
