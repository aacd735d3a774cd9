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
const FEW_RING_BYTES: usize = 73 * 1024;
/// Warps of `many` there, by outputs.
const MANY_WARPS: usize = 4;

/// Bytes that are worth a thread.
const THREAD_BYTES: usize = 256 * 1024;

/// How a matrix lies on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    F32,
    /// f16, and bf16 as f16 with a scale for each output.
    F16,
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
    /// Records of f16 with a scale for each row (`halve` there).
    Halves,
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
    /// For a few rows: up to one record of them, and up to two.
    pub few: [Tensor; 2],
    /// For any number of them, the largest tiles first; sums of segments have room for the last one at least.
    pub many: [Tensor; 3],
}

/// What a layout on tensor cores is made of; the numbers of its struct in `engine/kernels/formats.cuh`.
struct Stages {
    /// Elements of each output in a stage.
    len: usize,
    /// Rows of a record.
    rows: usize,
    /// Chunks of a stage.
    chunks: usize,
    /// Stages of a block, bytes of scales of a stage and further ones of a block, of sixteen outputs.
    span: usize,
    scale_bytes: usize,
    block_bytes: usize,
    /// Bytes of scales of sixteen outputs.
    output_scale_bytes: usize,
    /// Bytes of a record that are read.
    input_bytes: usize,
}

/// A shape of `many`: tiles of a warp, records of rows of a warp, and warps by rows.
type Shape = [usize; 3];
const WORDS_SHAPES: [Shape; 3] = [[2, 8, 1], [1, 8, 1], [1, 4, 1]];
const FLOATS_SHAPES: [Shape; 3] = [[2, 8, 2], [2, 8, 1], [1, 4, 1]];

/// Names of kernels on tensor cores: `few`, and `many` of the layout's shapes.
struct Names {
    few: [&'static str; 2],
    many: [&'static str; 3],
    embed: &'static str,
}

macro_rules! names {
    ($name:literal, $($shape:literal),*) => {
        Names {
            few: [concat!("few_", $name, "_1"), concat!("few_", $name, "_2")],
            many: [$(concat!("many_", $name, "_", $shape)),*],
            embed: concat!("embed_", $name),
        }
    };
}

/// Names for weights that are whole numbers.
macro_rules! names_words {
    ($name:literal) => {
        const { &names!($name, "2_8_1", "1_8_1", "1_4_1") }
    };
}

/// Names for weights that are floats.
macro_rules! names_floats {
    ($name:literal) => {
        const { &names!($name, "2_8_2", "2_8_1", "1_4_1") }
    };
}

impl Input {
    /// Every kind of records: its kernel, elements of a row in a record, rows of a record and its bytes.
    pub const RECORDS: [(Input, &'static str, [usize; 3]); 2] =
        [(Input::Words, "quantise", [128, 4, 1280]), (Input::Halves, "halve", [64, 8, 1056])];

    /// Bytes of all records of so many rows.
    pub fn bytes(self, rows: usize, cols: usize) -> usize {
        let record = Self::RECORDS.iter().find(|(input, ..)| *input == self);
        record.map_or(0, |(_, _, [len, of_rows, bytes])| rows.div_ceil(*of_rows) * cols.div_ceil(*len) * bytes)
    }
}

impl Layout {
    pub fn of(tensor_type: TensorType) -> Layout {
        match tensor_type {
            TensorType::F32 => Layout::F32,
            TensorType::F16 | TensorType::Bf16 => Layout::F16,
            TensorType::F8 => Layout::F8,
            TensorType::Q8_0 => Layout::Q8_0,
            TensorType::Q4_0 => Layout::Q4_0,
            TensorType::Q4K => Layout::Q4K,
            TensorType::Q6K => Layout::Q6K,
            _ => Layout::Scaled,
        }
    }

    fn names(self) -> Option<&'static Names> {
        Some(match self {
            Layout::F32 => return None,
            Layout::F16 => names_floats!("f16"),
            Layout::F8 => names_floats!("f8"),
            Layout::Q8_0 => names_words!("q8_0"),
            Layout::Q4_0 => names_words!("q4_0"),
            Layout::Q4K => names_words!("q4_k"),
            Layout::Q6K => names_words!("q6_k"),
            Layout::Scaled => names_words!("scaled"),
        })
    }

    /// The kernel that looks up rows.
    pub fn embed(self) -> &'static str {
        self.names().map_or("embed_f32", |names| names.embed)
    }

    /// The kernel without tensor cores, that of `f32`, for so many rows, and how many a block of it has.
    pub fn floats(rows: usize) -> (&'static str, usize) {
        let index = rows.next_power_of_two().trailing_zeros().min(3);
        (["matmul_f32_1", "matmul_f32_2", "matmul_f32_4", "matmul_f32_8"][index as usize], 1 << index)
    }

    /// The kernels on tensor cores, if it is multiplied there.
    pub fn tensors(self) -> Option<Tensors> {
        let (stages, names) = (self.stages()?, self.names()?);
        let weight_bytes = stages.chunks * CHUNK_BYTES + stages.scale_bytes + stages.block_bytes;
        let few = [1, 2].map(|groups| {
            let stage_bytes = FEW_WARPS * (weight_bytes + groups * stages.input_bytes);
            let depth = (FEW_RING_BYTES / stage_bytes).clamp(2, 4);
            let kernel = names.few[groups - 1];
            Tensor {
                kernel,
                outputs: TILE,
                rows: stages.rows * groups,
                threads: FEW_WARPS * 32,
                shared: depth * stage_bytes,
            }
        });
        let is_floats = self.input() == Input::Halves;
        let shapes = if is_floats { FLOATS_SHAPES } else { WORDS_SHAPES };
        let many = [0, 1, 2].map(|index| {
            let [tiles, groups, row_warps] = shapes[index];
            // Stages under way or at work, as `DEPTH` there.
            let depth = if tiles == 1 || is_floats { 3 } else { 2 };
            Tensor {
                kernel: names.many[index],
                outputs: MANY_WARPS * tiles * TILE,
                rows: stages.rows * groups * row_warps,
                threads: MANY_WARPS * row_warps * 32,
                shared: depth * (MANY_WARPS * tiles * weight_bytes + groups * row_warps * stages.input_bytes),
            }
        });
        Some(Tensors { few, many })
    }

    /// How activations must lie.
    pub fn input(self) -> Input {
        match self {
            Layout::F32 => Input::Floats,
            Layout::F16 | Layout::F8 => Input::Halves,
            _ => Input::Words,
        }
    }

    fn stages(self) -> Option<Stages> {
        let stages = |chunks, [span, scale_bytes, block_bytes]: [usize; 3], input_bytes| {
            Some(Stages {
                len: 128,
                rows: 4,
                chunks,
                span,
                scale_bytes,
                block_bytes,
                output_scale_bytes: 0,
                input_bytes,
            })
        };
        let floats = Stages {
            len: 64,
            rows: 8,
            chunks: 4,
            span: 1,
            scale_bytes: 0,
            block_bytes: 0,
            output_scale_bytes: 64,
            input_bytes: 1056,
        };
        match self {
            Layout::F32 => None,
            Layout::F16 => Some(floats),
            Layout::F8 => Some(Stages { chunks: 2, span: 2, block_bytes: 64, output_scale_bytes: 0, ..floats }),
            Layout::Q8_0 => stages(4, [1, 128, 0], 1088),
            Layout::Q4_0 => stages(2, [1, 128, 0], 1088),
            Layout::Q4K => stages(2, [2, 128, 64], 1152),
            Layout::Q6K => stages(3, [2, 128, 32], 1088),
            Layout::Scaled => stages(4, [1, 1024, 0], 1280),
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
                [count * stages.chunks * CHUNK_BYTES, count / stages.span * block_bytes + stages.output_scale_bytes]
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
            Layout::F16 => put_f16(&mut to, matrix.tensor_type, bytes),
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

/// What is bf16 becomes f16 times a power of two: the largest is from 2^14 to 2^15, unless that were less than 2^-98.
fn put_f16(to: &mut TileRow<'_>, tensor_type: TensorType, bytes: &[u8]) {
    let mut scale = 1.0f32;
    if tensor_type == TensorType::F16 {
        bytes.chunks(CHUNK_ROW_BYTES).enumerate().for_each(|(chunk, bytes)| to.put(chunk, bytes));
    } else {
        let largest = bytes.as_chunks::<2>().0.iter().map(|half| u16::from_le_bytes(*half) & 0x7fff);
        let largest = largest.filter(|magnitude| *magnitude < INFINITE_BF16).max().unwrap_or(0);
        // By how much an exponent with its bias is less: 29 stands for 2^14. Nothing is scaled up so far that a factor leaves f32.
        let less = (largest >> 7).saturating_sub(29);
        for (chunk, bytes) in bytes.chunks(CHUNK_ROW_BYTES).enumerate() {
            let mut halves = [0; CHUNK_ROW_BYTES];
            for (bf16, half) in bytes.as_chunks::<2>().0.iter().zip(halves.as_chunks_mut::<2>().0) {
                *half = half_of_bf16(u16::from_le_bytes(*bf16), less).to_le_bytes();
            }
            to.put(chunk, &halves[..bytes.len()]);
        }
        scale = f32::from_bits(u32::from(less + 15) << 23);
    }
    // The last of the plane, behind no stages.
    to.scales[to.row * 4..][..4].copy_from_slice(&scale.to_le_bytes());
}

/// Infinity, and above it what is no number.
const INFINITE_BF16: u16 = 0x7f80;

/// The f16 nearest to a bf16 times 2^(112 - less).
fn half_of_bf16(bf16: u16, less: u16) -> u16 {
    let (sign, magnitude) = (bf16 & 0x8000, bf16 & 0x7fff);
    if magnitude >= INFINITE_BF16 {
        return sign | 0x7c00 | u16::from(magnitude > INFINITE_BF16) << 9;
    }
    // Exponent and fraction are side by side in both.
    let moved = i32::from(magnitude) - (i32::from(less) << 7);
    if moved >= 1 << 7 {
        return sign | (moved as u16) << 3;
    }
    // Below the least exponent, multiples of 2^-24; the sum's last digit is one of them, ties to even.
    let factor = f32::from_bits((127 + 112 - u32::from(less)) << 23);
    let multiple = f32::from_bits(u32::from(magnitude) << 16) * factor * 16_777_216.0 + 8_388_608.0;
    sign | multiple.to_bits() as u16
}

/// Elements 2t + 8, 2t, 2t + 9 and 2t + 1 of sixteen are neighbours: those that one lane has, see `F8` in `formats.cuh`. As f16 their
/// bits stand for 2^-8 of them, which the scale makes up for.
fn put_f8(to: &mut TileRow<'_>, index: usize, block: &[u8]) {
    let (scale, elements) = block.split_at(4);
    for (i, elements) in elements.chunks_exact(CHUNK_ROW_BYTES).enumerate() {
        let moved: [u8; CHUNK_ROW_BYTES] = std::array::from_fn(|at| {
            let (t, j) = (at % 16 / 4, at % 4);
            elements[at / 16 * 16 + 2 * t + j / 2 + (1 - j % 2) * 8]
        });
        to.put(index * 4 + i, &moved);
    }
    let at = index * 64 + to.row % 8 * 8 + to.row / 8 * 4;
    let scale = f32::from_le_bytes(scale.try_into().expect("four bytes")) * 256.0;
    to.scales[at..at + 4].copy_from_slice(&scale.to_le_bytes());
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Every bf16 against the nearest multiple of what f16 can tell apart there, in `f64`.
    #[test]
    fn a_bf16_becomes_the_nearest_half_of_its_multiple() {
        for less in [0, 1, 60, 98, 112, 127, 200, 225] {
            for magnitude in 0..INFINITE_BF16.min((less + 31) << 7) {
                let exact = f64::from(f32::from_bits(u32::from(magnitude) << 16)) * 2f64.powi(112 - i32::from(less));
                // Where the exponent of f16 ends, its numbers are multiples of 2^-24.
                let step = 2f64.powi((exact.log2().floor() as i32).max(-14) - 10);
                let wanted = if exact == 0.0 { 0.0 } else { (exact / step).round_ties_even() * step };
                for sign in [0, 0x8000] {
                    let half = half_of_bf16(magnitude | sign, less);
                    let got = f64::from(f16_to_f32(half));
                    assert_eq!(got.abs(), wanted, "{magnitude:x} less {less}: {exact:e}");
                    assert_eq!(half & 0x8000, sign);
                }
            }
        }
        assert_eq!([0x7f80, 0xff80].map(|infinite| half_of_bf16(infinite, 100)), [0x7c00, 0xfc00]);
        assert!(f16_to_f32(half_of_bf16(0x7f81, 100)).is_nan() && f16_to_f32(half_of_bf16(0xffc0, 0)).is_nan());
    }

    /// Rows of any size come back as they were, from as far below their largest as 2^-31.
    #[test]
    fn rows_of_bf16_are_exact_as_halves_with_a_scale() {
        for largest in [-126, -100, -98, -20, 0, 15, 16, 90, 127] {
            let values: Vec<f32> = (0..32).map(|down| 1.984_375 * 2f32.powi((largest - down).max(-126))).collect();
            let bytes: Vec<u8> = values.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect();
            let [element_bytes, scale_bytes] = Layout::F16.tile_bytes(values.len());
            let (mut elements, mut scales) = (vec![0; element_bytes], vec![0; scale_bytes]);
            let mut to = TileRow { row: 9, elements: &mut elements, scales: &mut scales };
            put_f16(&mut to, TensorType::Bf16, &bytes);
            let scale = f32::from_le_bytes(scales[36..40].try_into().expect("four bytes"));
            for (k, value) in values.iter().enumerate() {
                // By the formula of a fragment of A: row g + 8, elements 2 * t and 2 * t + 8 of sixteen, and the next ones.
                let at = k / 16 * 512 + (4 + k % 8 / 2) * 16 + (1 + k % 16 / 8 * 2) * 4 + k % 2 * 2;
                let half = f16_to_f32(u16::from_le_bytes([elements[at], elements[at + 1]]));
                assert_eq!(half * scale, *value, "{k} below 2^{largest}");
                assert!(half < 32768.0 && (k > 0 || largest < -98 || half >= 16384.0));
            }
        }
    }
}
