//! How weights are laid out for the device: elements in one plane, what scales them in another. See
//! `engine/kernels/formats.cuh` and `floats.cuh`, which read this.

use crate::gguf::TensorType;
use crate::model::{Matrix, f16_to_f32};

/// Bytes that a lane reads at once.
const LANE_BYTES: usize = 16;
/// Outputs of a tile.
const TILE: usize = 16;
/// Bytes of a chunk, and those of one output in it.
const CHUNK_BYTES: usize = 512;
const CHUNK_ROW_BYTES: usize = 32;
/// Warps of `few` in `engine/kernels/matmul.cu`, and bytes of shared memory for their rings.
const FEW_WARPS: usize = 8;
const FEW_RING_BYTES: usize = 72 * 1024;
/// Warps of `many` there.
const MANY_WARPS: usize = 4;

/// Bytes that are worth a thread.
const THREAD_BYTES: usize = 256 * 1024;

/// How a matrix lies on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    F32,
    F16,
    Bf16,
    F8,
    Q8_0,
    Q4_0,
    Q4K,
    Q6K,
    /// Signed bytes, an `f32` scale and minimum for sixteen: what has no layout of its own.
    Scaled,
}

/// How activations lie that meet a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// As they are.
    Floats,
    /// Records of whole numbers (`quantise` in `engine/kernels/quantise.cu`).
    Words,
    /// Records of pairs of bf16 (`split` there).
    Halves,
    /// Records of pairs of f16 with a scale for each row (`split_f16` there).
    ScaledHalves,
}

/// A kernel on tensor cores, and how it is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tensor {
    pub kernel: &'static str,
    /// Outputs and rows of a block.
    pub outputs: usize,
    pub rows: usize,
    pub threads: usize,
    /// Bytes of dynamic shared memory.
    pub shared: usize,
}

/// The kernels on tensor cores for one layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tensors {
    /// For a few rows: up to four, and up to eight.
    pub few: [Tensor; 2],
    /// For any number of them, the largest tiles first.
    pub many: [Tensor; 3],
}

/// What a layout on tensor cores is made of; the numbers of its struct in `engine/kernels/formats.cuh`.
struct Stages {
    /// Elements of each output in a stage.
    len: usize,
    /// Chunks of a stage.
    chunks: usize,
    /// Stages of a block, bytes of scales of a stage and further ones of a block, of sixteen outputs.
    span: usize,
    scale_bytes: usize,
    block_bytes: usize,
    /// Bytes of a record that are read.
    input_bytes: usize,
}

macro_rules! names {
    ($name:literal) => {
        Names {
            floats: [
                concat!("matmul_", $name, "_1"),
                concat!("matmul_", $name, "_2"),
                concat!("matmul_", $name, "_4"),
                concat!("matmul_", $name, "_8"),
            ],
            few: [concat!("few_", $name, "_1"), concat!("few_", $name, "_2")],
            many: [concat!("many_", $name, "_2_8"), concat!("many_", $name, "_1_8"), concat!("many_", $name, "_1_4")],
            embed: concat!("embed_", $name),
        }
    };
}

/// Names of kernels: `floats` for 1, 2, 4 and 8 rows, or `few` and `many`, the largest tiles first.
struct Names {
    floats: [&'static str; 4],
    few: [&'static str; 2],
    many: [&'static str; 3],
    embed: &'static str,
}

impl Input {
    /// Elements of a row in a record, and bytes of a record of four rows.
    pub const RECORDS: [(Input, usize, usize); 3] =
        [(Input::Words, 128, 1280), (Input::Halves, 64, 1024), (Input::ScaledHalves, 64, 1040)];

    /// Bytes of all records of so many rows.
    pub fn bytes(self, rows: usize, cols: usize) -> usize {
        let record = Self::RECORDS.iter().find(|(input, ..)| *input == self);
        record.map_or(0, |(_, len, bytes)| rows.div_ceil(4) * cols.div_ceil(*len) * bytes)
    }
}

impl Layout {
    pub fn of(tensor_type: TensorType) -> Layout {
        match tensor_type {
            TensorType::F32 => Layout::F32,
            TensorType::F16 => Layout::F16,
            TensorType::Bf16 => Layout::Bf16,
            TensorType::F8 => Layout::F8,
            TensorType::Q8_0 => Layout::Q8_0,
            TensorType::Q4_0 => Layout::Q4_0,
            TensorType::Q4K => Layout::Q4K,
            TensorType::Q6K => Layout::Q6K,
            _ => Layout::Scaled,
        }
    }

    fn names(self) -> &'static Names {
        match self {
            Layout::F32 => const { &names!("f32") },
            Layout::F16 => const { &names!("f16") },
            Layout::Bf16 => const { &names!("bf16") },
            Layout::F8 => const { &names!("f8") },
            Layout::Q8_0 => const { &names!("q8_0") },
            Layout::Q4_0 => const { &names!("q4_0") },
            Layout::Q4K => const { &names!("q4_k") },
            Layout::Q6K => const { &names!("q6_k") },
            Layout::Scaled => const { &names!("scaled") },
        }
    }

    /// The kernel that looks up rows.
    pub fn embed(self) -> &'static str {
        self.names().embed
    }

    /// The kernel without tensor cores for so many rows, and how many a block of it has.
    pub fn floats(self, rows: usize) -> (&'static str, usize) {
        let index = rows.next_power_of_two().trailing_zeros().min(3) as usize;
        (self.names().floats[index], 1 << index)
    }

    /// The kernels on tensor cores, if it is multiplied there.
    pub fn tensors(self) -> Option<Tensors> {
        let stages = self.stages()?;
        let weight_bytes = stages.chunks * CHUNK_BYTES + stages.scale_bytes + stages.block_bytes;
        let few = [1, 2].map(|groups| {
            let stage_bytes = FEW_WARPS * (weight_bytes + groups * stages.input_bytes);
            let depth = (FEW_RING_BYTES / stage_bytes).clamp(2, 4);
            let kernel = self.names().few[groups - 1];
            Tensor { kernel, outputs: TILE, rows: 4 * groups, threads: FEW_WARPS * 32, shared: depth * stage_bytes }
        });
        let many = [(0, 2, 8), (1, 1, 8), (2, 1, 4)].map(|(index, tiles, groups)| Tensor {
            kernel: self.names().many[index],
            outputs: MANY_WARPS * tiles * TILE,
            rows: 4 * groups,
            threads: MANY_WARPS * 32,
            // Stages under way or at work, as `DEPTH` there.
            shared: if tiles == 1 { 3 } else { 2 } * (MANY_WARPS * tiles * weight_bytes + groups * stages.input_bytes),
        });
        Some(Tensors { few, many })
    }

    /// How activations must lie.
    pub fn input(self) -> Input {
        match self {
            Layout::F32 => Input::Floats,
            Layout::F16 => Input::ScaledHalves,
            Layout::Bf16 | Layout::F8 => Input::Halves,
            _ => Input::Words,
        }
    }

    fn stages(self) -> Option<Stages> {
        let stages = |len, chunks, [span, scale_bytes, block_bytes]: [usize; 3], input_bytes| {
            Some(Stages { len, chunks, span, scale_bytes, block_bytes, input_bytes })
        };
        match self {
            Layout::F32 => None,
            Layout::F16 => stages(64, 4, [1, 0, 0], 1040),
            Layout::Bf16 => stages(64, 4, [1, 0, 0], 1024),
            Layout::F8 => stages(64, 2, [2, 0, 64], 1024),
            Layout::Q8_0 => stages(128, 4, [1, 128, 0], 1088),
            Layout::Q4_0 => stages(128, 2, [1, 128, 0], 1088),
            Layout::Q4K => stages(128, 2, [2, 128, 64], 1152),
            Layout::Q6K => stages(128, 3, [2, 128, 32], 1088),
            Layout::Scaled => stages(128, 4, [1, 1024, 0], 1280),
        }
    }

    /// Rows that are laid out together.
    pub fn tile_rows(self) -> usize {
        if self.stages().is_some() { TILE } else { 1 }
    }

    /// Bytes of such rows of `cols` elements in both planes.
    pub fn tile_bytes(self, cols: usize) -> [usize; 2] {
        match self.stages() {
            Some(stages) => {
                let count = cols.div_ceil(stages.len);
                let block_bytes = stages.span * stages.scale_bytes + stages.block_bytes;
                [count * stages.chunks * CHUNK_BYTES, count / stages.span * block_bytes]
            }
            None => [(cols * 4).next_multiple_of(LANE_BYTES), 0],
        }
    }

    /// What kernels are told of a row's length: stages, or pieces of sixteen bytes.
    pub fn steps(self, cols: usize) -> usize {
        match self.stages() {
            Some(stages) => cols.div_ceil(stages.len),
            None => self.tile_bytes(cols)[0] / LANE_BYTES,
        }
    }
}

/// Lays out tiles from number `first` on, on several threads if there are many. The planes must be zeros: what is beyond the
/// matrix stays so.
pub(super) fn repack_tiles(matrix: &Matrix, first: usize, elements: &mut [u8], scales: &mut [u8]) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    repack_on(threads.min(elements.len() / THREAD_BYTES), matrix, first, elements, scales);
}

/// Half of the threads have half of the tiles.
fn repack_on(threads: usize, matrix: &Matrix, first: usize, elements: &mut [u8], scales: &mut [u8]) {
    let [element_bytes, scale_bytes] = Layout::of(matrix.tensor_type).tile_bytes(matrix.cols);
    let count = elements.len() / element_bytes;
    if threads > 1 && count > 1 {
        let (left, right) = elements.split_at_mut(count / 2 * element_bytes);
        let (left_scales, right_scales) = scales.split_at_mut(count / 2 * scale_bytes);
        return std::thread::scope(|scope| {
            scope.spawn(|| repack_on(threads / 2, matrix, first, left, left_scales));
            repack_on(threads - threads / 2, matrix, first + count / 2, right, right_scales);
        });
    }
    for (i, elements) in elements.chunks_exact_mut(element_bytes).enumerate() {
        repack_tile(matrix, first + i, elements, &mut scales[i * scale_bytes..][..scale_bytes]);
    }
}

fn repack_tile(matrix: &Matrix, tile: usize, elements: &mut [u8], scales: &mut [u8]) {
    let layout = Layout::of(matrix.tensor_type);
    let first = tile * layout.tile_rows();
    for row in first..(first + layout.tile_rows()).min(matrix.rows) {
        let bytes = &matrix.bytes()[row * matrix.row_bytes()..][..matrix.row_bytes()];
        let mut to = TileRow { row: row - first, elements, scales };
        match layout {
            Layout::F32 => to.elements[..bytes.len()].copy_from_slice(bytes),
            Layout::F16 | Layout::Bf16 => {
                bytes.chunks(CHUNK_ROW_BYTES).enumerate().for_each(|(chunk, bytes)| to.put(chunk, bytes));
            }
            Layout::F8 => bytes.chunks_exact(132).enumerate().for_each(|(i, block)| put_f8(&mut to, i, block)),
            Layout::Q8_0 => bytes.chunks_exact(34).enumerate().for_each(|(unit, block)| {
                to.put(unit, &block[2..]);
                to.put_half(unit, block);
            }),
            Layout::Q4_0 => put_q4_0(&mut to, bytes),
            Layout::Q4K => bytes.chunks_exact(144).enumerate().for_each(|(i, block)| put_q4_k(&mut to, i, block)),
            Layout::Q6K => bytes.chunks_exact(210).enumerate().for_each(|(i, block)| put_q6_k(&mut to, i, block)),
            Layout::Scaled => put_scaled(&mut to, matrix.tensor_type, bytes),
        }
    }
}

/// Where a row of a tile goes.
struct TileRow<'a> {
    /// Within the tile.
    row: usize,
    elements: &'a mut [u8],
    scales: &'a mut [u8],
}

impl TileRow<'_> {
    /// The row's bytes of a chunk, up to 32, to their places in the fragment: see `engine/kernels/tensor.cuh`.
    fn put(&mut self, chunk: usize, bytes: &[u8]) {
        let to = &mut self.elements[chunk * CHUNK_BYTES..][..CHUNK_BYTES];
        let (group, upper) = (self.row % 8, self.row / 8);
        for (i, word) in bytes.chunks(4).enumerate() {
            let at = (group * 4 + i % 4) * LANE_BYTES + (upper + i / 4 * 2) * 4;
            to[at..at + word.len()].copy_from_slice(word);
        }
    }

    /// The row's scale of a unit in layouts that have one, in half precision, for each.
    fn put_half(&mut self, unit: usize, half: &[u8]) {
        let at = unit / 4 * 128 + self.row % 8 * 16 + unit % 4 * 4 + self.row / 8 * 2;
        self.scales[at..at + 2].copy_from_slice(&half[..2]);
    }
}

/// Elements 2t, 2t + 1, 2t + 8 and 2t + 9 of sixteen are neighbours: those that one lane has, see `F8` in `formats.cuh`.
fn put_f8(to: &mut TileRow<'_>, index: usize, block: &[u8]) {
    let (scale, elements) = block.split_at(4);
    for (i, elements) in elements.chunks_exact(CHUNK_ROW_BYTES).enumerate() {
        let moved: [u8; CHUNK_ROW_BYTES] = std::array::from_fn(|at| {
            let (t, j) = (at % 16 / 4, at % 4);
            elements[at / 16 * 16 + 2 * t + j % 2 + j / 2 * 8]
        });
        to.put(index * 4 + i, &moved);
    }
    let at = index * 64 + to.row % 8 * 8 + to.row / 8 * 4;
    to.scales[at..at + 4].copy_from_slice(scale);
}

/// Two units are a chunk, one below the other. A nibble stands for itself less 8: with its upper bit turned, it is that number.
fn put_q4_0(to: &mut TileRow<'_>, bytes: &[u8]) {
    let mut chunk = [0; CHUNK_ROW_BYTES];
    for (unit, block) in bytes.chunks_exact(18).enumerate() {
        to.put_half(unit, block);
        let upper = unit % 2 == 1;
        for (i, both) in block[2..].iter().enumerate() {
            for (at, nibble) in [(i, both & 15), (i + 16, both >> 4)] {
                let nibble = nibble ^ 8;
                chunk[at] = if upper { chunk[at] | nibble << 4 } else { nibble };
            }
        }
        to.put(unit / 2, &chunk);
    }
}

/// Elements are as in the file; scales and minima become bytes.
fn put_q4_k(to: &mut TileRow<'_>, index: usize, block: &[u8]) {
    block[16..].chunks_exact(CHUNK_ROW_BYTES).enumerate().for_each(|(i, chunk)| to.put(index * 4 + i, chunk));
    let (group, upper) = (to.row % 8, to.row / 8);
    let scales = &mut to.scales[index * (2 * 128 + 64)..][..2 * 128 + 64];
    for unit in 0..8 {
        let (scale, minimum) = six_bits(block, unit);
        let at = unit / 4 * 128 + group * 16 + unit % 4 * 4 + upper * 2;
        scales[at..at + 2].copy_from_slice(&[scale, minimum]);
    }
    scales[256 + group * 8 + upper * 4..][..4].copy_from_slice(&block[..4]);
}

/// Elements are as in the file, but for the upper bit of their six: turned, it is the sign.
fn put_q6_k(to: &mut TileRow<'_>, index: usize, block: &[u8]) {
    let (group, upper) = (to.row % 8, to.row / 8);
    let at = index * (2 * 128 + 32);
    for stage in 0..2 {
        let chunk = (index * 2 + stage) * 3;
        to.put(chunk, &block[64 * stage..][..32]);
        to.put(chunk + 1, &block[64 * stage + 32..][..32]);
        let bits: [u8; CHUNK_ROW_BYTES] = std::array::from_fn(|i| block[128 + 32 * stage + i] ^ 0xaa);
        to.put(chunk + 2, &bits);
        for part in 0..8 {
            to.scales[at + stage * 128 + group * 16 + part * 2 + upper] = block[192 + 8 * stage + part];
        }
    }
    to.scales[at + 256 + group * 4 + upper * 2..][..2].copy_from_slice(&block[208..210]);
}

fn put_scaled(to: &mut TileRow<'_>, tensor_type: TensorType, bytes: &[u8]) {
    let (mut elements, mut scales) = (Vec::new(), Vec::new());
    for block in bytes.chunks_exact(tensor_type.block_bytes()) {
        spread(tensor_type, block, &mut elements, &mut scales);
    }
    elements.chunks(CHUNK_ROW_BYTES).enumerate().for_each(|(chunk, bytes)| to.put(chunk, bytes));
    for (part, two) in scales.chunks_exact(8).enumerate() {
        let at = part / 8 * 1024 + part % 8 * 128 + to.row % 8 * 16 + to.row / 8 * 8;
        to.scales[at..at + 8].copy_from_slice(two);
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
