//! The directory of tensors.

use std::collections::HashMap;
use std::ops::Range;

use orchestratord_cpu::TensorType;

use super::cursor::Cursor;
use crate::LoadError;

/// The format has four dimensions at most.
const DIMENSION_COUNT_MAX: u32 = 4;

/// Types that the format knows and this engine does not.
const UNSUPPORTED: &[(u32, &str)] = &[
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

/// # Errors
///
/// Names the type and the tensor when it is not one that this engine reads.
fn tensor_type(code: u32, tensor: &str) -> Result<TensorType, LoadError> {
    TensorType::from_code(code).ok_or_else(|| match UNSUPPORTED.iter().find(|(c, _)| *c == code) {
        Some((_, name)) => LoadError::unsupported(format!("tensor type {name} of tensor {tensor:?}")),
        None => LoadError::corrupt(named(tensor), format!("type {code} is none of the format's")),
    })
}

/// Where a tensor lies and what it is.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// How its elements are stored.
    pub tensor_type: TensorType,
    /// Elements in a row: the format's first dimension.
    pub cols: usize,
    /// All other dimensions multiplied.
    pub rows: usize,
    /// Its bytes in the file.
    pub range: Range<usize>,
}

impl TensorInfo {
    /// Elements in all.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// True when a dimension is zero; the reader refuses such tensors.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn named(tensor: &str) -> String {
    format!("tensor {tensor:?}")
}

pub(super) fn parse_directory<'a>(
    cursor: &mut Cursor<'a>,
    count: u64,
    alignment: u64,
) -> Result<HashMap<&'a str, TensorInfo>, LoadError> {
    // A name's length, the number of dimensions, one dimension, a type and an offset: no entry is shorter.
    cursor.check_count(count, 8 + 4 + 8 + 4 + 8, || "the tensor directory".into())?;
    let mut found = Vec::new();
    for index in 0..count {
        let name = cursor.name(|| format!("the name of tensor {index}"))?;
        found.push((name, parse_entry(cursor, name)?));
    }
    let data_start = (cursor.position() as u64).next_multiple_of(alignment);
    let mut tensors = HashMap::new();
    for (name, entry) in found {
        let info = entry.place(name, data_start, alignment, cursor.file_len() as u64)?;
        if tensors.insert(name, info).is_some() {
            return Err(LoadError::corrupt(named(name), "is there twice"));
        }
    }
    Ok(tensors)
}

/// An entry whose offset has not been held against the file yet.
struct Entry {
    tensor_type: TensorType,
    cols: u64,
    rows: u64,
    bytes: u64,
    offset: u64,
}

fn parse_entry(cursor: &mut Cursor<'_>, name: &str) -> Result<Entry, LoadError> {
    let what = || format!("the directory entry of tensor {name:?}");
    let dimension_count = cursor.u32(what)?;
    if !(1..=DIMENSION_COUNT_MAX).contains(&dimension_count) {
        let why = format!("has {dimension_count} dimensions, and 1 to {DIMENSION_COUNT_MAX} are allowed");
        return Err(LoadError::corrupt(named(name), why));
    }
    let too_large = || LoadError::corrupt(named(name), "has more elements than there are addresses");
    let cols = cursor.u64(what)?;
    let mut rows = 1u64;
    for _ in 1..dimension_count {
        rows = rows.checked_mul(cursor.u64(what)?).ok_or_else(too_large)?;
    }
    if cols == 0 || rows == 0 {
        return Err(LoadError::corrupt(named(name), "has a dimension of zero"));
    }
    let tensor_type = tensor_type(cursor.u32(what)?, name)?;
    let (block_len, block_bytes) = (tensor_type.block_len() as u64, tensor_type.block_bytes() as u64);
    if !cols.is_multiple_of(block_len) {
        let why = format!("rows of {cols} elements are no whole blocks of {block_len} ({})", tensor_type.name());
        return Err(LoadError::corrupt(named(name), why));
    }
    let row_bytes = (cols / block_len).checked_mul(block_bytes).ok_or_else(too_large)?;
    let bytes = row_bytes.checked_mul(rows).ok_or_else(too_large)?;
    // Elements are counted in usize later on.
    cols.checked_mul(rows).filter(|&n| n <= isize::MAX as u64).ok_or_else(too_large)?;
    let offset = cursor.u64(what)?;
    Ok(Entry { tensor_type, cols, rows, bytes, offset })
}

impl Entry {
    fn place(self, name: &str, data_start: u64, alignment: u64, file_len: u64) -> Result<TensorInfo, LoadError> {
        if !self.offset.is_multiple_of(alignment) {
            let why = format!("its offset {} is no multiple of the alignment {alignment}", self.offset);
            return Err(LoadError::corrupt(named(name), why));
        }
        let start = data_start.saturating_add(self.offset);
        let end = start.saturating_add(self.bytes);
        if end > file_len {
            return Err(LoadError::Truncated { what: named(name), offset: start, needed: self.bytes, len: file_len });
        }
        let range = start as usize..end as usize;
        Ok(TensorInfo { tensor_type: self.tensor_type, cols: self.cols as usize, rows: self.rows as usize, range })
    }
}
