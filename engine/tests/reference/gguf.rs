//! Reads a sound GGUF file; panics on any other.

use std::collections::HashMap;

use super::dequantise::{dequantise, row_bytes};

/// Metadata and tensors by name.
pub struct File<'a> {
    pub numbers: HashMap<String, f64>,
    pub strings: HashMap<String, String>,
    tensors: HashMap<String, Tensor>,
    data: &'a [u8],
}

struct Tensor {
    cols: usize,
    rows: usize,
    code: u32,
    offset: usize,
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(len);
        self.0 = rest;
        head
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().expect("four bytes"))
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().expect("eight bytes"))
    }

    fn string(&mut self) -> String {
        let len = self.u64() as usize;
        String::from_utf8_lossy(self.take(len)).into_owned()
    }

    /// A value of metadata: a number or a string, or nothing for an array.
    fn value(&mut self, kind: u32) -> (Option<f64>, Option<String>) {
        let number = match kind {
            0 => f64::from(self.take(1)[0]),
            1 => f64::from(self.take(1)[0] as i8),
            2 => f64::from(u16::from_le_bytes(self.take(2).try_into().expect("two bytes"))),
            3 => f64::from(i16::from_le_bytes(self.take(2).try_into().expect("two bytes"))),
            4 => f64::from(self.u32()),
            5 => f64::from(self.u32() as i32),
            6 => f64::from(f32::from_bits(self.u32())),
            7 => f64::from(self.take(1)[0]),
            8 => return (None, Some(self.string())),
            9 => {
                let (kind, count) = (self.u32(), self.u64());
                (0..count).for_each(|_| _ = self.value(kind));
                return (None, None);
            }
            10 => self.u64() as f64,
            11 => self.u64() as i64 as f64,
            12 => f64::from_bits(self.u64()),
            other => panic!("metadata of kind {other}"),
        };
        (Some(number), None)
    }
}

impl<'a> File<'a> {
    pub fn parse(bytes: &'a [u8]) -> File<'a> {
        let mut reader = Reader(bytes);
        assert_eq!(reader.take(4), b"GGUF");
        assert_eq!(reader.u32(), 3);
        let (tensor_count, metadata_count) = (reader.u64(), reader.u64());
        let (mut numbers, mut strings, mut tensors) = (HashMap::new(), HashMap::new(), HashMap::new());
        for _ in 0..metadata_count {
            let (key, kind) = (reader.string(), reader.u32());
            let (number, string) = reader.value(kind);
            number.into_iter().for_each(|n| _ = numbers.insert(key.clone(), n));
            string.into_iter().for_each(|s| _ = strings.insert(key.clone(), s));
        }
        for _ in 0..tensor_count {
            let name = reader.string();
            let dimensions: Vec<usize> = (0..reader.u32()).map(|_| reader.u64() as usize).collect();
            let (code, offset) = (reader.u32(), reader.u64() as usize);
            let (cols, rows) = (dimensions[0], dimensions[1..].iter().product());
            tensors.insert(name, Tensor { cols, rows, code, offset });
        }
        let alignment = numbers.get("general.alignment").map_or(32, |n| *n as usize);
        let start = (bytes.len() - reader.0.len()).next_multiple_of(alignment);
        File { numbers, strings, tensors, data: &bytes[start..] }
    }

    /// All elements of a tensor, row by row, and the length of a row.
    pub fn tensor(&self, name: &str) -> Option<(Vec<f64>, usize)> {
        let t = self.tensors.get(name)?;
        let len = t.rows * row_bytes(t.code, t.cols);
        Some((dequantise(t.code, &self.data[t.offset..t.offset + len]), t.cols))
    }
}
