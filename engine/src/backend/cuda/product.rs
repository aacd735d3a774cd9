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
            let records = Input::RECORDS.iter().find(|(of, ..)| *of == input);
            let (_, kernel, [len, ..]) = records.expect("floats are multiplied as they are");
            let stages = cols.div_ceil(*len);
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
        let outputs: Vec<usize> = parts.iter().map(|part| part.weight.rows).collect();
        let tensors = parts[0].weight.tensors.as_ref().expect("it is multiplied on tensor cores");
        let (tensor, grid) = tensor_for(tensors, self.device.processors(), rows, &outputs);
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

/// Blocks of four warps that keep this many processors busy.
fn blocks_enough(processors: usize) -> usize {
    processors * 3 / 2
}

/// The kernel for so many rows and so many outputs of each matrix, and its grid: the largest tiles that still are enough
/// blocks, else small ones with a block for each segment. All of them give the same bits.
fn tensor_for(
    Tensors { few, many }: &Tensors,
    processors: usize,
    rows: usize,
    outputs: &[usize],
) -> (Tensor, [usize; 3]) {
    let of_outputs = |t: &Tensor| outputs.iter().map(|count| count.div_ceil(t.outputs)).sum();
    if let Some(tensor) = few.iter().find(|t| rows <= t.rows) {
        return (*tensor, [of_outputs(tensor), 1, 1]);
    }
    let grid = |t: &Tensor, depth| [rows.div_ceil(t.rows), of_outputs(t), depth];
    let is_enough = |t: &Tensor| {
        // One block of eight warps is all that a processor has room for; an eighth of them without one is no loss beside smaller tiles.
        let enough = if t.threads > 128 { processors - processors / 8 } else { blocks_enough(processors) };
        grid(t, 1).into_iter().product::<usize>() >= enough
    };
    let has_segments = |t: &Tensor| t.outputs <= SPLIT_TILE[0] && t.rows <= SPLIT_TILE[1];
    let least = many.last().expect("there are some");
    // Rows that there are not, are multiplied all the same.
    let is_filled = |t: &Tensor| rows.next_multiple_of(t.rows) * 3 <= rows.next_multiple_of(least.rows) * 4;
    if let Some(tensor) = many.iter().find(|t| !has_segments(t) && is_enough(t) && is_filled(t)) {
        return (*tensor, grid(tensor, 1));
    }
    let mut with_segments = many.iter().filter(|t| has_segments(t));
    let tensor = if rows <= least.rows { least } else { with_segments.next().expect("the last one has") };
    let depth = if is_enough(tensor) || rows > SPLIT_ROWS_MAX { 1 } else { SEGMENTS };
    (*tensor, grid(tensor, depth))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::repack::Layout;

    /// What a block may have on the devices with the least of it: 99 KB, of which `many` takes up to 16 KB without being asked.
    #[test]
    fn no_kernel_wants_more_shared_memory_than_every_device_has() {
        for layout in [Layout::F16, Layout::F8, Layout::Q8_0, Layout::Q4_0, Layout::Q4K, Layout::Q6K, Layout::Scaled] {
            let Tensors { few, many } = layout.tensors().expect("it has some");
            for tensor in few.iter().chain(&many) {
                let fixed = if layout.input() == Input::Words && tensor.threads == 128 { 16 << 10 } else { 1 << 10 };
                assert!(tensor.shared + fixed <= 99 << 10, "{tensor:?}");
            }
        }
    }

    /// Layout, rows, outputs of the matrices, and what is to be chosen: kernel and grid.
    type Case<'a> = (Layout, usize, &'a [usize], &'a str, [usize; 3]);

    fn chosen(layout: Layout, rows: usize, outputs: &[usize]) -> (String, [usize; 3]) {
        let (tensor, grid) = tensor_for(&layout.tensors().expect("it has some"), 132, rows, outputs);
        (tensor.kernel.to_owned(), grid)
    }

    /// Blocks of a published shape on an H100: as many as keep it busy, as large as that leaves them.
    #[test]
    fn tiles_are_as_large_as_leave_every_processor_its_work() {
        let cases: [Case<'_>; 10] = [
            (Layout::F16, 8, &[4096, 1024, 1024], "few_f16_1", [384, 1, 1]),
            (Layout::F16, 16, &[4096], "few_f16_2", [256, 1, 1]),
            (Layout::F16, 32, &[4096], "many_f16_1_4_1", [1, 64, 8]),
            (Layout::F16, 64, &[14336, 14336], "many_f16_2_8_1", [1, 224, 1]),
            (Layout::F16, 70, &[14336, 14336], "many_f16_2_8_2", [1, 224, 1]),
            (Layout::F16, 128, &[4096], "many_f16_1_4_1", [4, 64, 1]),
            (Layout::F16, 512, &[4096], "many_f16_2_8_2", [4, 32, 1]),
            (Layout::F8, 512, &[2048], "many_f8_1_4_1", [16, 32, 1]),
            (Layout::Q8_0, 8, &[4096], "few_q8_0_2", [256, 1, 1]),
            (Layout::Q4K, 512, &[4096], "many_q4_k_2_8_1", [16, 32, 1]),
        ];
        for (layout, rows, outputs, kernel, grid) in cases {
            assert_eq!(chosen(layout, rows, outputs), (kernel.to_owned(), grid), "{rows} x {outputs:?}");
        }
    }
}
