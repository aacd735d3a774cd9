//! How weights are laid out for the device: elements in one plane, what scales them in another. See
//! `engine/kernels/formats.cuh`, which reads this.

use crate::gguf::TensorType;
use crate::model::{Matrix, f16_to_f32};

/// Bytes that a lane reads at once.
const CHUNK_BYTES: usize = 16;

/// How a matrix lies on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    Q4K,
    /// Signed bytes, an `f32` scale and minimum for sixteen: what has no layout of its own.
    Scaled,
}

/// Kernels of a layout: for 1, 2, 4 and 8 rows of activations, and for embedding.
pub(super) struct Kernels {
    pub matmul: [&'static str; 4],
    pub embed: &'static str,
}

macro_rules! kernels {
    ($name:literal) => {
        Kernels {
            matmul: [
                concat!("matmul_", $name, "_1"),
                concat!("matmul_", $name, "_2"),
                concat!("matmul_", $name, "_4"),
                concat!("matmul_", $name, "_8"),
            ],
            embed: concat!("embed_", $name),
        }
    };
}

impl Layout {
    pub fn of(tensor_type: TensorType) -> Layout {
        match tensor_type {
            TensorType::F32 => Layout::F32,
            TensorType::F16 => Layout::F16,
            TensorType::Bf16 => Layout::Bf16,
            TensorType::Q8_0 => Layout::Q8_0,
            TensorType::Q4_0 => Layout::Q4_0,
            TensorType::Q4K => Layout::Q4K,
            _ => Layout::Scaled,
        }
    }

    pub fn kernels(self) -> &'static Kernels {
        match self {
            Layout::F32 => const { &kernels!("f32") },
            Layout::F16 => const { &kernels!("f16") },
            Layout::Bf16 => const { &kernels!("bf16") },
            Layout::Q8_0 => const { &kernels!("q8_0") },
            Layout::Q4_0 => const { &kernels!("q4_0") },
            Layout::Q4K => const { &kernels!("q4_k") },
            Layout::Scaled => const { &kernels!("scaled") },
        }
    }

    /// True when it is multiplied with whole numbers.
    pub fn is_integers(self) -> bool {
        !matches!(self, Layout::F32 | Layout::F16 | Layout::Bf16)
    }

    /// Bytes of one row of `cols` elements in both planes.
    pub fn row_bytes(self, cols: usize) -> [usize; 2] {
        match self {
            Layout::F32 => [(cols * 4).next_multiple_of(CHUNK_BYTES), 0],
            Layout::F16 | Layout::Bf16 => [(cols * 2).next_multiple_of(CHUNK_BYTES), 0],
            Layout::Q8_0 => [cols, cols / 32 * 2],
            Layout::Q4_0 => [cols / 2, cols / 32 * 2],
            Layout::Q4K => [cols / 2, cols / 256 * 16],
            Layout::Scaled => [cols, cols / 16 * 8],
        }
    }

    /// Chunks of one row.
    pub fn row_chunks(self, cols: usize) -> usize {
        self.row_bytes(cols)[0] / CHUNK_BYTES
    }
}

/// Appends the planes of one row, `bytes` in the file, to `elements` and `scales`.
pub(super) fn repack_row(matrix: &Matrix, row: usize, elements: &mut Vec<u8>, scales: &mut Vec<u8>) {
    let layout = Layout::of(matrix.tensor_type);
    let bytes = &matrix.bytes()[row * matrix.row_bytes()..][..matrix.row_bytes()];
    let blocks = bytes.chunks_exact(matrix.tensor_type.block_bytes());
    // Where the scales begin and end in a block that is only taken apart.
    let header = match layout {
        Layout::F32 | Layout::F16 | Layout::Bf16 => {
            let end = elements.len() + layout.row_bytes(matrix.cols)[0];
            elements.extend_from_slice(bytes);
            return elements.resize(end, 0);
        }
        Layout::Q8_0 | Layout::Q4_0 => 2,
        Layout::Q4K => 16,
        Layout::Scaled => {
            return blocks.for_each(|block| spread(matrix.tensor_type, block, elements, scales));
        }
    };
    for block in blocks {
        scales.extend_from_slice(&block[..header]);
        elements.extend_from_slice(&block[header..]);
    }
}

/// What a nibble of IQ4_NL and IQ4_XS stands for. Source: llama.cpp.
const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// One block as signed bytes, and scale and minimum of every sixteen: element = scale * byte - minimum.
fn spread(tensor_type: TensorType, block: &[u8], elements: &mut Vec<u8>, scales: &mut Vec<u8>) {
    let half = |at: usize| f16_to_f32(u16::from_le_bytes([block[at], block[at + 1]]));
    let nibble = |at: usize, i: usize| block[at + i % 16] >> (i / 16 * 4) & 15;
    let mut put = |words: [i32; 16], scale: f32, minimum: f32| {
        elements.extend(words.map(|word| i8::try_from(word).expect("words are bytes") as u8));
        scales.extend_from_slice(&scale.to_le_bytes());
        scales.extend_from_slice(&minimum.to_le_bytes());
    };
    let sixteen = |start: usize, word: &dyn Fn(usize) -> i32| std::array::from_fn(|i| word(start + i));
    // Blocks of 32: nibbles at `at`, fifth bits before them.
    let mut small = |at: usize, fifth: Option<usize>, word: &dyn Fn(i32) -> i32, minimum: f32| {
        for start in [0, 16] {
            let words = sixteen(start, &|i| {
                let high = fifth.map_or(0, |at| i32::from(block[at + i / 8] >> (i % 8) & 1) << 4);
                word(i32::from(nibble(at, i)) | high)
            });
            put(words, half(0), minimum);
        }
    };
    match tensor_type {
        TensorType::Q4_1 => small(4, None, &|w| w, -half(2)),
        TensorType::Q5_0 => small(6, Some(2), &|w| w - 16, 0.0),
        TensorType::Q5_1 => small(8, Some(4), &|w| w, -half(2)),
        TensorType::Iq4Nl => small(2, None, &|w| i32::from(IQ4_VALUES[w as usize]), 0.0),
        TensorType::Iq4Xs => {
            let high = u16::from_le_bytes([block[2], block[3]]);
            for unit in 0..8 {
                let low = block[4 + unit / 2] >> (unit % 2 * 4) & 15;
                let scale = i32::from(low) | i32::from(high >> (2 * unit) & 3) << 4;
                for start in [0, 16] {
                    let words = sixteen(start, &|i| i32::from(IQ4_VALUES[usize::from(nibble(8 + 16 * unit, i))]));
                    put(words, half(0) * (scale - 32) as f32, 0.0);
                }
            }
        }
        TensorType::Q2K => {
            for part in 0..16 {
                let words = sixteen(part * 16, &|i| i32::from(two_bits(block, 16, i)));
                put(words, half(80) * f32::from(block[part] & 15), half(82) * f32::from(block[part] >> 4));
            }
        }
        TensorType::Q3K => {
            for part in 0..16 {
                let low = block[96 + part % 8] >> (part / 8 * 4) & 15;
                let high = block[104 + part % 4] >> (part / 4 * 2) & 3;
                let scale = i32::from(low | high << 4) - 32;
                let words = sixteen(part * 16, &|i| {
                    let third = block[i % 32] >> (i / 32) & 1;
                    i32::from(two_bits(block, 32, i)) | i32::from(third) << 2
                });
                put(words.map(|w: i32| w - 4), half(108) * scale as f32, 0.0);
            }
        }
        TensorType::Q5K => {
            for part in 0..16 {
                let unit = part / 2;
                let (scale, minimum) = six_bits(block, unit);
                let words = sixteen(part * 16, &|i| {
                    let low = block[48 + unit / 2 * 32 + i % 32] >> (unit % 2 * 4) & 15;
                    i32::from(low) | i32::from(block[16 + i % 32] >> unit & 1) << 4
                });
                put(words, half(0) * f32::from(scale), half(2) * f32::from(minimum));
            }
        }
        TensorType::Q6K => {
            for part in 0..16 {
                let (big, quarter) = (part / 8, part / 2 % 4);
                let words = sixteen(part * 16, &|i| {
                    let low = block[64 * big + 32 * (quarter % 2) + i % 32] >> (quarter / 2 * 4) & 15;
                    let high = block[128 + 32 * big + i % 32] >> (2 * quarter) & 3;
                    (i32::from(low) | i32::from(high) << 4) - 32
                });
                put(words, half(208) * f32::from(block[192 + part] as i8), 0.0);
            }
        }
        other => unreachable!("{} has a layout of its own", other.name()),
    }
}

/// Element `i` of a block whose two-bit numbers begin at `at`: 32 bytes hold four units, one above the other.
fn two_bits(block: &[u8], at: usize, i: usize) -> u8 {
    block[at + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3
}

/// Scale and minimum of a unit, six bits each, out of the twelve bytes of Q4_K and Q5_K.
fn six_bits(block: &[u8], unit: usize) -> (u8, u8) {
    let packed = &block[4..16];
    if unit < 4 {
        return (packed[unit] & 63, packed[unit + 4] & 63);
    }
    let (low, at) = (packed[unit + 4], unit - 4);
    (low & 15 | packed[at] >> 6 << 4, low >> 4 | packed[at + 4] >> 6 << 4)
}
