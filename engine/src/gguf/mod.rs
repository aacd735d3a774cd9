//! Reader for GGUF, the file format of llama.cpp: metadata, then a directory of tensors, then their data.
//!
//! Nothing is copied: strings, arrays and tensors are slices of the file. Every count and offset is held against the
//! file's length before it is believed, so a hostile file costs its own size at most.
//!
//! Source: the format's specification, `docs/gguf.md` in ggml-org/ggml.

mod cursor;
mod file;
mod tensor;
mod value;

use std::collections::HashMap;

use cursor::Cursor;
pub use file::FileBytes;
pub use orchestratord_cpu::TensorType;
pub use tensor::TensorInfo;
pub use value::{Array, Value};

use crate::LoadError;

/// Data begins at a multiple of this unless the file says otherwise.
const ALIGNMENT_DEFAULT: u64 = 32;

/// An alignment beyond this is an error and no wish: a page is 4096 bytes.
const ALIGNMENT_MAX: u64 = 65_536;

/// The parsed directory of a GGUF file.
#[derive(Debug)]
pub struct Gguf<'a> {
    metadata: HashMap<&'a str, Value<'a>>,
    tensors: HashMap<&'a str, TensorInfo>,
    /// Bytes of the whole file.
    bytes: &'a [u8],
}

impl<'a> Gguf<'a> {
    /// Parses the directory of a file of version 2 or 3.
    ///
    /// # Errors
    ///
    /// When anything in it is cut off, impossible, twice there, or unknown.
    pub fn parse(bytes: &'a [u8]) -> Result<Gguf<'a>, LoadError> {
        let mut cursor = Cursor::new(bytes);
        if !bytes.starts_with(b"GGUF") {
            return Err(LoadError::NotGguf { found: bytes[..bytes.len().min(4)].to_vec() });
        }
        cursor.take(4, || "the magic".into())?;
        let version = cursor.u32(|| "the version".into())?;
        // A big-endian file shows its version with the bytes turned round.
        if !(2..=3).contains(&version) {
            return Err(LoadError::unsupported(format!("GGUF version {version}: versions 2 and 3 are read")));
        }
        let tensor_count = cursor.u64(|| "the number of tensors".into())?;
        let metadata_count = cursor.u64(|| "the number of metadata entries".into())?;
        let metadata = parse_metadata(&mut cursor, metadata_count)?;
        let alignment = alignment_of(&metadata)?;
        let tensors = tensor::parse_directory(&mut cursor, tensor_count, alignment)?;
        Ok(Gguf { metadata, tensors, bytes })
    }

    /// The value of a metadata key.
    pub fn value(&self, key: &str) -> Option<&Value<'a>> {
        self.metadata.get(key)
    }

    /// A tensor by name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// All tensors with their names, in no particular order.
    pub fn tensors(&self) -> impl Iterator<Item = (&'a str, &TensorInfo)> {
        self.tensors.iter().map(|(name, info)| (*name, info))
    }

    /// The raw data of a tensor.
    pub fn tensor_bytes(&self, info: &TensorInfo) -> &'a [u8] {
        &self.bytes[info.range.clone()]
    }

    /// A string, if the key is there.
    ///
    /// # Errors
    ///
    /// When the key holds something else, or bytes that are not UTF-8.
    pub fn string(&self, key: &str) -> Result<Option<&'a str>, LoadError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let Value::String(bytes) = value else { return Err(wrong_type(key, "a string", value)) };
        let text = std::str::from_utf8(bytes).map_err(|_| LoadError::corrupt(named(key), "is not UTF-8"))?;
        Ok(Some(text))
    }

    /// A whole number that fits `u32`, if the key is there.
    ///
    /// # Errors
    ///
    /// When the key holds something else, or a number out of range.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, LoadError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let Some(number) = value.as_integer() else { return Err(wrong_type(key, "a whole number", value)) };
        let number = u32::try_from(number)
            .map_err(|_| LoadError::corrupt(named(key), format!("{number} is out of range for a 32-bit count")))?;
        Ok(Some(number))
    }

    /// A number, if the key is there.
    ///
    /// # Errors
    ///
    /// When the key holds something else.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, LoadError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        value.as_float().map(|x| Some(x as f32)).ok_or_else(|| wrong_type(key, "a number", value))
    }

    /// A truth value, if the key is there.
    ///
    /// # Errors
    ///
    /// When the key holds something else.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, LoadError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(value) => Err(wrong_type(key, "true or false", value)),
        }
    }

    /// An array, if the key is there.
    ///
    /// # Errors
    ///
    /// When the key holds something else.
    pub fn array(&self, key: &str) -> Result<Option<Array<'a>>, LoadError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Array(array)) => Ok(Some(*array)),
            Some(value) => Err(wrong_type(key, "an array", value)),
        }
    }
}

fn named(key: &str) -> String {
    format!("metadata key {key:?}")
}

fn wrong_type(key: &str, wanted: &str, found: &Value<'_>) -> LoadError {
    LoadError::corrupt(named(key), format!("must be {wanted} and is {}", found.kind()))
}

fn parse_metadata<'a>(cursor: &mut Cursor<'a>, count: u64) -> Result<HashMap<&'a str, Value<'a>>, LoadError> {
    // A key's length, a type and one byte of value: no entry is shorter.
    cursor.check_count(count, 8 + 4 + 1, || "the metadata".into())?;
    let mut metadata = HashMap::new();
    for index in 0..count {
        let key = cursor.name(|| format!("the key of metadata entry {index}"))?;
        let value = Value::parse(cursor, key)?;
        if metadata.insert(key, value).is_some() {
            return Err(LoadError::corrupt(named(key), "is there twice"));
        }
    }
    Ok(metadata)
}

fn alignment_of(metadata: &HashMap<&str, Value<'_>>) -> Result<u64, LoadError> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(ALIGNMENT_DEFAULT) };
    let number = value.as_integer().and_then(|n| u64::try_from(n).ok());
    match number {
        Some(n) if n.is_power_of_two() && (8..=ALIGNMENT_MAX).contains(&n) => Ok(n),
        _ => {
            let why = format!("{value:?} is no power of two from 8 to {ALIGNMENT_MAX}");
            Err(LoadError::corrupt(named("general.alignment"), why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TinyModel;

    #[test]
    fn huge_counts_are_refused_before_anything_is_allocated() {
        let mut bytes = TinyModel::default().to_bytes();
        bytes[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
        let error = Gguf::parse(&bytes).unwrap_err().to_string();
        assert!(error.contains("the metadata"), "{error}");
        let mut bytes = TinyModel::default().to_bytes();
        bytes[8..16].copy_from_slice(&(u64::MAX / 2).to_le_bytes());
        let error = Gguf::parse(&bytes).unwrap_err().to_string();
        assert!(error.contains("tensor"), "{error}");
    }

    #[test]
    fn an_old_version_is_named() {
        let mut bytes = TinyModel::default().to_bytes();
        bytes[4..8].copy_from_slice(&1u32.to_le_bytes());
        assert!(Gguf::parse(&bytes).unwrap_err().to_string().contains("version 1"));
    }
}
