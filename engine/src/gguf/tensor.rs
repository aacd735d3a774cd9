//! The directory of tensors.

use std::collections::HashMap;
use std::ops::Range;

use super::cursor::Cursor;
use crate::LoadError;

/// The format has four dimensions at most.
const DIMENSION_COUNT_MAX: u32 = 4;

/// How the elements of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorType {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of an `F32`.
    Bf16,
    /// 4 bits an element, a scale for 32.
    Q4_0,
    /// 4 bits an element, a scale and a least value for 32.
    Q4_1,
    /// 5 bits an element, a scale for 32.
    Q5_0,
    /// 5 bits an element, a scale and a least value for 32.
    Q5_1,
    /// Signed bytes, a scale for 32.
    Q8_0,
    /// 2 bits an element, 4-bit scales and minimums for 16, scales of those for 256.
    Q2K,
    /// 3 bits an element, 6-bit scales for 16, a scale of those for 256.
    Q3K,
    /// 4 bits an element, 6-bit scales and minimums for 32, scales of those for 256.
    Q4K,
    /// 5 bits an element, otherwise as `Q4K`.
    Q5K,
    /// 6 bits an element, 8-bit scales for 16, a scale of those for 256.
    Q6K,
    /// 4 bits an element that index a table of values, a scale for 32.
    Iq4Nl,
    /// As `Iq4Nl` with 6-bit scales, and a scale of those for 256.
    Iq4Xs,
}

/// Type, code in a file, name as llama.cpp prints it, elements that are stored together and their bytes.
const TYPES: [(TensorType, u32, &str, usize, usize); 15] = [
    (TensorType::F32, 0, "F32", 1, 4),
    (TensorType::F16, 1, "F16", 1, 2),
    (TensorType::Bf16, 30, "BF16", 1, 2),
    (TensorType::Q4_0, 2, "Q4_0", 32, 18),
    (TensorType::Q4_1, 3, "Q4_1", 32, 20),
    (TensorType::Q5_0, 6, "Q5_0", 32, 22),
    (TensorType::Q5_1, 7, "Q5_1", 32, 24),
    (TensorType::Q8_0, 8, "Q8_0", 32, 34),
    (TensorType::Q2K, 10, "Q2_K", 256, 84),
    (TensorType::Q3K, 11, "Q3_K", 256, 110),
    (TensorType::Q4K, 12, "Q4_K", 256, 144),
    (TensorType::Q5K, 13, "Q5_K", 256, 176),
    (TensorType::Q6K, 14, "Q6_K", 256, 210),
    (TensorType::Iq4Nl, 20, "IQ4_NL", 32, 18),
    (TensorType::Iq4Xs, 23, "IQ4_XS", 256, 136),
];

impl TensorType {
    /// Every type that this engine reads.
    pub fn all() -> impl Iterator<Item = TensorType> {
        TYPES.iter().map(|row| row.0)
    }

    /// # Errors
    ///
    /// Names the type and the tensor when it is not one that this engine reads.
    fn from_code(code: u32, tensor: &str) -> Result<TensorType, LoadError> {
        if let Some(row) = TYPES.iter().find(|row| row.1 == code) {
            return Ok(row.0);
        }
        let name = UNSUPPORTED.iter().find(|(c, _)| *c == code).map(|(_, name)| *name);
        Err(match name {
            Some(name) => LoadError::unsupported(format!("tensor type {name} of tensor {tensor:?}")),
            None => LoadError::corrupt(named(tensor), format!("type {code} is none of the format's")),
        })
    }

    fn row(self) -> &'static (TensorType, u32, &'static str, usize, usize) {
        TYPES.iter().find(|row| row.0 == self).expect("every type has a row")
    }

    /// Code in a file.
    pub fn code(self) -> u32 {
        self.row().1
    }

    /// Name as llama.cpp prints it.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Elements that are stored together.
    pub fn block_len(self) -> usize {
        self.row().3
    }

    /// Bytes of one such group.
    pub fn block_bytes(self) -> usize {
        self.row().4
    }
}

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
    let tensor_type = TensorType::from_code(cursor.u32(what)?, name)?;
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
