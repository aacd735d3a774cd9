//! Every tensor type by the book: one element at a time, from bits, in `f64`.

/// Half precision: sign, exponent, fraction.
fn half(bytes: &[u8]) -> f64 {
    let bits = u16::from_le_bytes([bytes[0], bytes[1]]);
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023) / 1024.0);
    match exponent {
        0 => sign * fraction * 2f64.powi(-14),
        31 => panic!("a scale is no number"),
        e => sign * (1.0 + fraction) * 2f64.powi(e - 15),
    }
}

/// Elements and bytes of a block of a tensor type, by its code in the file.
fn block(code: u32) -> (usize, usize) {
    match code {
        0 => (1, 4),
        1 | 30 => (1, 2),
        8 => (32, 34),
        other => panic!("tensor type {other}"),
    }
}

/// Bytes of a row of `cols` elements.
pub fn row_bytes(code: u32, cols: usize) -> usize {
    let (len, bytes) = block(code);
    assert_eq!(cols % len, 0, "a row is whole blocks");
    cols / len * bytes
}

/// Elements of all blocks.
pub fn dequantise(code: u32, bytes: &[u8]) -> Vec<f64> {
    let (_, block_bytes) = block(code);
    bytes.chunks_exact(block_bytes).flat_map(|block| one_block(code, block)).collect()
}

fn one_block(code: u32, b: &[u8]) -> Vec<f64> {
    match code {
        0 => vec![f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))],
        1 => vec![half(b)],
        30 => vec![f64::from(f32::from_le_bytes([0, 0, b[0], b[1]]))],
        8 => b[2..].iter().map(|q| half(b) * f64::from(*q as i8)).collect(),
        other => panic!("tensor type {other}"),
    }
}
