//! Metadata values of all types of the format.

use super::cursor::Cursor;
use crate::LoadError;

/// Arrays in arrays deeper than this are an attack on the stack.
const NESTING_MAX: u32 = 4;

/// One metadata value. Strings are bytes: the format asks for UTF-8, but vocabularies do not always keep to it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "the names are the format's types")]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(&'a [u8]),
    Array(Array<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl<'a> Value<'a> {
    pub(super) fn parse(cursor: &mut Cursor<'a>, key: &str) -> Result<Value<'a>, LoadError> {
        let what = || format!("the type of metadata key {key:?}");
        let kind = cursor.u32(what)?;
        Value::parse_as(cursor, kind, key, 0)
    }

    fn parse_as(cursor: &mut Cursor<'a>, kind: u32, key: &str, depth: u32) -> Result<Value<'a>, LoadError> {
        let what = || format!("the value of metadata key {key:?}");
        if kind == 8 {
            return Ok(Value::String(cursor.string(what)?));
        }
        if kind == 9 {
            return Ok(Value::Array(Array::parse(cursor, key, depth)?));
        }
        let size = scalar_size(kind).ok_or_else(|| unknown_type(key, kind))?;
        let b = cursor.take(size, what)?;
        Ok(match kind {
            0 => Value::U8(b[0]),
            1 => Value::I8(b[0] as i8),
            2 => Value::U16(u16::from_le_bytes([b[0], b[1]])),
            3 => Value::I16(i16::from_le_bytes([b[0], b[1]])),
            4 => Value::U32(u32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            5 => Value::I32(i32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            6 => Value::F32(f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            7 => Value::Bool(parse_bool(b[0], key)?),
            10 => Value::U64(u64::from_le_bytes(eight(b))),
            11 => Value::I64(i64::from_le_bytes(eight(b))),
            _ => Value::F64(f64::from_le_bytes(eight(b))),
        })
    }

    /// A whole number of any width.
    pub fn as_integer(&self) -> Option<i128> {
        match *self {
            Value::U8(n) => Some(n.into()),
            Value::I8(n) => Some(n.into()),
            Value::U16(n) => Some(n.into()),
            Value::I16(n) => Some(n.into()),
            Value::U32(n) => Some(n.into()),
            Value::I32(n) => Some(n.into()),
            Value::U64(n) => Some(n.into()),
            Value::I64(n) => Some(n.into()),
            _ => None,
        }
    }

    /// A number of any kind.
    pub fn as_float(&self) -> Option<f64> {
        match *self {
            Value::F32(x) => Some(x.into()),
            Value::F64(x) => Some(x),
            _ => self.as_integer().map(|n| n as f64),
        }
    }

    /// What it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::F32(_) | Value::F64(_) => "a floating-point number",
            Value::Bool(_) => "a truth value",
            Value::String(_) => "a string",
            Value::Array(_) => "an array",
            _ => "a whole number",
        }
    }
}

/// An array whose items are read when they are asked for; all of them were checked at parsing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Array<'a> {
    kind: u32,
    count: u64,
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    fn parse(cursor: &mut Cursor<'a>, key: &str, depth: u32) -> Result<Array<'a>, LoadError> {
        let what = || format!("the array of metadata key {key:?}");
        if depth == NESTING_MAX {
            return Err(LoadError::corrupt(what(), format!("is nested more than {NESTING_MAX} deep")));
        }
        let kind = cursor.u32(what)?;
        let count = cursor.u64(what)?;
        if let Some(size) = scalar_size(kind) {
            cursor.check_count(count, size, what)?;
            let bytes = cursor.take(count * size, what)?;
            if kind == 7 {
                bytes.iter().try_for_each(|&b| parse_bool(b, key).map(drop))?;
            }
            return Ok(Array { kind, count, bytes });
        }
        if kind != 8 && kind != 9 {
            return Err(unknown_type(key, kind));
        }
        cursor.check_count(count, if kind == 8 { 8 } else { 12 }, what)?;
        let whole = cursor.rest();
        for _ in 0..count {
            // Only to see that it is sound: errors speak of offsets in the whole file.
            if kind == 8 {
                cursor.string(|| format!("the value of metadata key {key:?}"))?;
            } else {
                Value::parse_as(cursor, kind, key, depth + 1)?;
            }
        }
        let used = whole.len() - cursor.left();
        Ok(Array { kind, count, bytes: &whole[..used] })
    }

    /// How many items there are.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// All items in order.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let mut cursor = Cursor::new(self.bytes);
        let kind = self.kind;
        (0..self.count).map(move |_| Value::parse_as(&mut cursor, kind, "", 0).expect("it was checked at parsing"))
    }

    /// All items as bytes of strings.
    ///
    /// # Errors
    ///
    /// When the array holds something else; `key` is named.
    pub fn strings(&self, key: &str) -> Result<impl Iterator<Item = &'a [u8]> + use<'a>, LoadError> {
        if self.kind != 8 && self.count > 0 {
            return Err(LoadError::corrupt(format!("metadata key {key:?}"), "must be an array of strings"));
        }
        // Not by `iter`: a vocabulary and its merges are half a million strings, and a start waits for them.
        let mut cursor = Cursor::new(self.bytes);
        Ok((0..self.count).map(move |_| cursor.string(String::new).expect("it was checked at parsing")))
    }
}

/// Bytes of a value of fixed size.
fn scalar_size(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

fn eight(bytes: &[u8]) -> [u8; 8] {
    bytes.try_into().expect("eight bytes were taken")
}

fn parse_bool(byte: u8, key: &str) -> Result<bool, LoadError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(LoadError::corrupt(format!("metadata key {key:?}"), format!("{byte} is neither true nor false"))),
    }
}

fn unknown_type(key: &str, kind: u32) -> LoadError {
    LoadError::corrupt(format!("metadata key {key:?}"), format!("type {kind} is none of the format's"))
}
