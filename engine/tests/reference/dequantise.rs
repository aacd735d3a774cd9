//! Every tensor type by the book: one element at a time, from bits, in `f64`. A block is the numbers that its layout
//! names, in that order; what they mean follows the description of the format.

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

/// A sign, four bits of exponent, three of fraction.
fn eight(byte: u8) -> f64 {
    let sign = if byte >> 7 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (bits(byte, 3, 4), f64::from(byte & 7) / 8.0);
    match exponent {
        0 => sign * fraction * 2f64.powi(-6),
        e => sign * (1.0 + fraction) * 2f64.powi(e - 7),
    }
}

/// Elements and bytes of a block of a tensor type, by its code in the file.
pub fn block(code: u32) -> (usize, usize) {
    match code {
        0 => (1, 4),
        1 | 30 => (1, 2),
        0x6f38 => (128, 4 + 128),
        2 => (32, 2 + 16),
        3 => (32, 2 + 2 + 16),
        6 => (32, 2 + 4 + 16),
        7 => (32, 2 + 2 + 4 + 16),
        8 => (32, 2 + 32),
        10 => (256, 16 + 64 + 2 + 2),
        11 => (256, 32 + 64 + 12 + 2),
        12 => (256, 2 + 2 + 12 + 128),
        13 => (256, 2 + 2 + 12 + 32 + 128),
        14 => (256, 128 + 64 + 16 + 2),
        20 => (32, 2 + 16),
        23 => (256, 2 + 2 + 4 + 128),
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
    let (len, block_bytes) = block(code);
    bytes.chunks_exact(block_bytes).flat_map(|block| (0..len).map(|i| element(code, block, i))).collect()
}

/// Bits of a byte: `count` of them from `at`.
fn bits(byte: u8, at: usize, count: usize) -> i32 {
    (0..count).map(|b| i32::from(byte >> (at + b) & 1) << b).sum()
}

/// Element i of 32 whose first half is the low halves of bytes.
fn nibble(bytes: &[u8], i: usize) -> i32 {
    bits(bytes[i % 16], i / 16 * 4, 4)
}

/// Element i of 256: 64 at a time share 32 bytes, the first 32 of them in the low halves.
fn nibble_of_pairs(bytes: &[u8], i: usize) -> i32 {
    bits(bytes[i / 64 * 32 + i % 32], i / 32 % 2 * 4, 4)
}

/// Two bits of element i of 256: 128 at a time share 32 bytes, lowest bits first.
fn two_bits(bytes: &[u8], i: usize) -> i32 {
    bits(bytes[i / 128 * 32 + i % 32], i / 32 % 4 * 2, 2)
}

/// The six-bit scale and minimum of unit u of eight in twelve bytes.
fn packed_scale(bytes: &[u8], u: usize) -> (f64, f64) {
    let (scale, minimum) = match u {
        0..4 => (bits(bytes[u], 0, 6), bits(bytes[u + 4], 0, 6)),
        _ => (
            bits(bytes[u + 4], 0, 4) + 16 * bits(bytes[u - 4], 6, 2),
            bits(bytes[u + 4], 4, 4) + 16 * bits(bytes[u], 6, 2),
        ),
    };
    (f64::from(scale), f64::from(minimum))
}

const UNEVEN: [i32; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

fn element(code: u32, b: &[u8], i: usize) -> f64 {
    let scaled = |scale: f64, number: i32| scale * f64::from(number);
    match code {
        0 => f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        1 => half(b),
        30 => f64::from(f32::from_le_bytes([0, 0, b[0], b[1]])),
        0x6f38 => f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])) * eight(b[4 + i]),
        2 => scaled(half(b), nibble(&b[2..], i) - 8),
        3 => scaled(half(b), nibble(&b[4..], i)) + half(&b[2..]),
        6 => scaled(half(b), nibble(&b[6..], i) + 16 * bits(b[2 + i / 8], i % 8, 1) - 16),
        7 => scaled(half(b), nibble(&b[8..], i) + 16 * bits(b[4 + i / 8], i % 8, 1)) + half(&b[2..]),
        8 => scaled(half(b), i32::from(b[2 + i] as i8)),
        10 => {
            let small = b[i / 16];
            half(&b[80..]) * scaled(f64::from(bits(small, 0, 4)), two_bits(&b[16..], i))
                - scaled(half(&b[82..]), bits(small, 4, 4))
        }
        11 => {
            let small = &b[96..108];
            let s = i / 16;
            let scale = bits(small[s % 8], s / 8 * 4, 4) + 16 * bits(small[8 + s % 4], s / 4 * 2, 2) - 32;
            let third = 4 * bits(b[i % 32], i / 32, 1) - 4;
            half(&b[108..]) * scaled(f64::from(scale), two_bits(&b[32..], i) + third)
        }
        12 | 13 => {
            let (scale, minimum) = packed_scale(&b[4..], i / 32);
            let number = match code {
                12 => nibble_of_pairs(&b[16..], i),
                _ => nibble_of_pairs(&b[48..], i) + 16 * bits(b[16 + i % 32], i / 32, 1),
            };
            half(b) * scaled(scale, number) - half(&b[2..]) * minimum
        }
        14 => {
            let (n, k, l) = (i / 128, i / 32 % 4, i % 32);
            let low = bits(b[64 * n + 32 * (k % 2) + l], k / 2 * 4, 4);
            let number = low + 16 * two_bits(&b[128..], i) - 32;
            half(&b[208..]) * scaled(f64::from(b[192 + i / 16] as i8), number)
        }
        20 => scaled(half(b), UNEVEN[nibble(&b[2..], i) as usize]),
        23 => {
            let u = i / 32;
            let high = u16::from_le_bytes([b[2], b[3]]) >> (2 * u) & 3;
            let scale = bits(b[4 + u / 2], u % 2 * 4, 4) + 16 * i32::from(high) - 32;
            half(b) * scaled(f64::from(scale), UNEVEN[nibble(&b[8 + 16 * u..], i % 32) as usize])
        }
        other => panic!("tensor type {other}"),
    }
}
