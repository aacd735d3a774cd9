//! Products on tensor cores: which of the kernels of `engine/kernels/matmul.cu` is launched, with what, and the memory that it
//! works in.

use std::sync::atomic::Ordering::Relaxed;

use super::repack::{Input, Tensor, Tensors};
use super::{Arguments, CudaBackend, CudaBuffer, CudaMatrix, Device, Memory, Use};
use crate::backend::{DeviceError, Projection};

/// Matrices of one launch, as in `Product` of `engine/kernels/matmul.cu`.
pub(super) const MATRICES_MAX: usize = 3;
/// Words of a matrix there.
const MATRIX_WORDS: usize = 6;
/// Segments of a sum there.
const SEGMENTS: usize = 8;
/// Outputs and rows of the largest tile whose segments have blocks of their own, and up to how many rows they may.
const SPLIT_TILE: [usize; 2] = [64, 32];
const SPLIT_ROWS_MAX: usize = 64;

impl<D: Device> CudaBackend<D> {
    /// Makes records of activations, unless they have been made already: their address.
    pub(super) fn records(&mut self, x: &CudaBuffer<D>, rows: usize, cols: usize, input: Input) -> Option<u64> {
        let made = self.room_for_records(input.bytes(rows, cols));
        self.keep(made)?;
        let address = self.records.as_ref().map_or(0, Memory::address);
        let wanted = Some((x.0.address(), rows, cols, input));
        if self.records_of != wanted {
            self.records_of = wanted;
            if self.make_records_beside(address, x.0.address(), rows, cols, input) {
                return Some(address);
            }
            let (kernel, len) = match input {
                Input::Words => ("quantise", 128),
                Input::Halves => ("split", 64),
                Input::ScaledHalves => ("split_f16", 64),
                Input::Floats => unreachable!("they are multiplied as they are"),
            };
            let stages = cols.div_ceil(len);
            let arguments = Arguments::new().pointer(address).pointer(x.0.address()).int(cols).int(stages);
            self.launch(kernel, [stages.div_ceil(4), rows, 1], 128, 0, arguments);
        }
        Some(address)
    }

    pub(super) fn room_for_records(&mut self, bytes: usize) -> Result<(), DeviceError> {
        if self.records.as_ref().is_none_or(|m| m.bytes() < bytes) {
            self.records_of = None;
            self.records = Some(Memory::new(&self.device, bytes, Use::Workspace)?);
        }
        Ok(())
    }

    /// One launch for up to three matrices of one layout.
    pub(super) fn product(&mut self, x: &CudaBuffer<D>, rows: usize, parts: &[Projection<'_, Self>]) {
        let CudaMatrix { layout, cols, .. } = *parts[0].weight;
        let Some(records) = self.records(x, rows, cols, layout.input()) else { return };
        let (tensor, grid) = tensor_for(self.device.processors(), rows, parts);
        let segments = match grid[2] {
            1 => Some([0; 2]),
            _ => {
                let made = self.room_for_segments();
                self.keep(made)
            }
        };
        let Some([done, partial]) = segments else { return };
        let mut words = [0; MATRICES_MAX * MATRIX_WORDS + 4];
        for (part, words) in parts.iter().zip(words.chunks_exact_mut(MATRIX_WORDS)) {
            let [elements, scales, steps] = part.weight.words();
            let bias = part.bias.map_or(0, |b| b.memory.address());
            words.copy_from_slice(&[part.out.0.address(), bias, elements, scales, steps, part.weight.rows as u64]);
        }
        words[MATRICES_MAX * MATRIX_WORDS..].copy_from_slice(&[records, partial, done, rows as u64]);
        self.launch_with(tensor.kernel, grid, tensor.threads, tensor.shared, &words);
        parts.iter().for_each(|part| self.written(part.out));
    }

    /// Room for the sums of segments, and before them counters, which are zero: the addresses of both.
    pub(super) fn room_for_segments(&mut self) -> Result<[u64; 2], DeviceError> {
        // No launch has more blocks of this kind.
        let of_outputs = MATRICES_MAX * self.outputs_max.load(Relaxed).div_ceil(SPLIT_TILE[0]);
        let blocks = blocks_enough(self.device.processors()).min(of_outputs * SPLIT_ROWS_MAX.div_ceil(SPLIT_TILE[1]));
        let counters = (blocks * 4).next_multiple_of(256);
        let bytes = counters + blocks * SEGMENTS * SPLIT_TILE[0] * SPLIT_TILE[1] * 4;
        if self.segments.as_ref().is_none_or(|m| m.bytes() < bytes) {
            let memory = Memory::new(&self.device, bytes, Use::Workspace)?;
            self.device.clear(memory.address(), counters)?;
            self.segments = Some(memory);
        }
        let address = self.segments.as_ref().map_or(0, Memory::address);
        Ok([address, address + counters as u64])
    }
}

/// Blocks that keep this many processors busy.
fn blocks_enough(processors: usize) -> usize {
    processors * 3 / 2
}

/// The kernel for so many rows, and its grid: the largest tiles that still are enough blocks, else small ones with a block for
/// each segment. All of them give the same bits.
fn tensor_for<D: Device>(
    processors: usize,
    rows: usize,
    parts: &[Projection<'_, CudaBackend<D>>],
) -> (Tensor, [usize; 3]) {
    let Tensors { few, many: [large, middle, small] } =
        parts[0].weight.tensors.as_ref().expect("it is multiplied on tensor cores");
    let grid = |t: &Tensor, depth| {
        let of_outputs = parts.iter().map(|p| p.weight.rows.div_ceil(t.outputs)).sum();
        [of_outputs, rows.div_ceil(t.rows), depth]
    };
    if let Some(tensor) = few.iter().find(|t| rows <= t.rows) {
        return (*tensor, grid(tensor, 1));
    }
    let is_enough = |t: &Tensor| grid(t, 1).into_iter().product::<usize>() >= blocks_enough(processors);
    if is_enough(large) {
        return (*large, grid(large, 1));
    }
    let tensor = if rows <= small.rows { *small } else { *middle };
    assert!(tensor.outputs <= SPLIT_TILE[0] && tensor.rows <= SPLIT_TILE[1], "there is no room for its segments");
    let depth = if is_enough(&tensor) || rows > SPLIT_ROWS_MAX { 1 } else { SEGMENTS };
    (tensor, grid(&tensor, depth))
}
