//! Attention on the device: which rows share a block of threads, which of the kernels of `engine/kernels/attend.cu` are
//! launched for them, and the memory of their partial sums.

use super::device::pair;
use super::{Arguments, CudaBackend, CudaBuffer, CudaCache, Device, Memory, Use};
use crate::backend::{Attention, BLOCK_LEN, Batch, DeviceError, KvShape, StepShape};

/// Cells of a piece. As in `engine/kernels/attend.cu`.
const SPLIT_LEN: usize = 256;
/// Query heads that share a block of threads there.
const GROUP_MAX: usize = 8;
/// Threads of a block there.
const THREADS: usize = 128;

/// The kernels for heads of up to `head_len` elements, and what they need.
struct Kind {
    head_len: usize,
    /// For one row, and for runs of rows.
    names: [&'static str; 2],
    /// Dynamic shared memory of each, as the kernels lay it out.
    shared_bytes: [usize; 2],
    /// Queries of a run: heads of rows.
    queries_max: usize,
}

/// A block of 16 cells has 32 bytes an element, a query four; totals are four bytes an element of a query.
const KINDS: [Kind; 3] = [
    Kind {
        head_len: 64,
        names: ["attend_64", "attend_rows_64"],
        shared_bytes: [64 * (16 * 32 + 8 * 4), 64 * (8 * 32 + 64 * 8)],
        queries_max: 64,
    },
    Kind {
        head_len: 128,
        names: ["attend_128", "attend_rows_128"],
        shared_bytes: [128 * (16 * 32 + 8 * 4), 128 * (8 * 32 + 64 * 8)],
        queries_max: 64,
    },
    Kind {
        head_len: HEAD_LEN_MAX,
        names: ["attend_256", "attend_rows_256"],
        shared_bytes: [HEAD_LEN_MAX * (8 * 32 + 8 * 4), HEAD_LEN_MAX * (4 * 32 + 32 * 8)],
        queries_max: 32,
    },
];

/// The kernels for heads of this length.
fn kind(head_len: usize) -> &'static Kind {
    KINDS.iter().find(|kind| head_len <= kind.head_len).expect("`cache` has looked")
}

/// Elements of a head that attention can have.
pub(super) const HEAD_LEN_MAX: usize = 256;
/// Bytes of partial attention: with long contexts, rows of a prompt are attended to in portions.
const PARTIAL_BYTES_MAX: usize = 64 << 20;
/// Rows, or runs of them, that one launch can have: a grid's second and third extent.
const SLOTS_MAX: usize = 65535;
/// Pieces of a context up to which a block of threads may go through all of a lone row's: lest one long row outlast many short
/// ones.
const LONE_PIECES_MAX: usize = 8;
/// Blocks of threads a processor from which on a lone row's pieces, and a run's, are one block's.
const BLOCKS_ENOUGH: [usize; 2] = [6, 1];

impl<D: Device> CudaBackend<D> {
    /// Makes room for the attention of any step of this shape.
    pub(super) fn room_for_attention(&mut self, shape: &StepShape) -> Result<(), DeviceError> {
        let row_bytes = partial_row_bytes(shape.head_count, shape.head_len, shape.context_max);
        let group = (shape.head_count / shape.head_count_kv).min(GROUP_MAX);
        self.step.run_rows_max = kind(shape.head_len).queries_max / group;
        // What `attend` asks for with this context or a shorter one is never more.
        let slots = shape.rows_max.max(self.step.run_rows_max);
        self.room_for_partial(slots.saturating_mul(row_bytes).min(PARTIAL_BYTES_MAX.max(row_bytes)))?;
        let groups = shape.head_count_kv * (shape.head_count / shape.head_count_kv).div_ceil(GROUP_MAX);
        self.room_for_done(slots.min(SLOTS_MAX) * groups * 4)
    }

    /// Finds the step's runs.
    pub(super) fn cut_into_runs(&mut self, batch: &Batch) {
        assert!(batch.rows() < 1 << 24, "a run's first row has 24 bits");
        let step = &mut self.step;
        step.runs.clear();
        for lone in [true, false] {
            let wanted = runs(batch, step.run_rows_max).filter(|(_, len)| (*len == 1) == lone);
            step.runs.extend(wanted.map(|(first, len)| first as u32 | (len as u32) << 24));
            if lone {
                step.lone_runs = step.runs.len();
            }
        }
    }

    fn room_for_partial(&mut self, bytes: usize) -> Result<(), DeviceError> {
        if self.partial.as_ref().is_none_or(|m| m.bytes() < bytes) {
            self.partial = Some(Memory::new(&self.device, bytes, Use::Workspace)?);
        }
        Ok(())
    }

    fn room_for_done(&mut self, bytes: usize) -> Result<(), DeviceError> {
        if self.pieces_done.as_ref().is_none_or(|m| m.bytes() < bytes) {
            let memory = Memory::new(&self.device, bytes, Use::Workspace)?;
            self.device.clear(memory.address(), bytes)?;
            self.pieces_done = Some(memory);
        }
        Ok(())
    }

    /// As `Backend::attend`: the lone rows, then the runs of several. Where there are enough of them, a block of threads goes
    /// through all pieces of a context; else each piece has a block, in portions whose partial sums there is room for.
    pub(super) fn attend_runs(
        &mut self,
        out: &mut CudaBuffer<D>,
        query: &CudaBuffer<D>,
        cache: &CudaCache<D>,
        layer: usize,
        batch: &Batch,
        attention: &Attention,
    ) {
        self.written(out);
        let KvShape { head_count: heads_kv, head_len, .. } = cache.shape;
        let heads = attention.head_count;
        let pieces = self.step.context.div_ceil(SPLIT_LEN);
        let row_bytes = partial_row_bytes(heads, head_len, self.step.context);
        let (lone_runs, all_runs) = (self.step.lone_runs, self.step.runs.len());
        let kind = kind(head_len);
        let [keys, values] = cache.layer(layer);
        let groups = (heads / heads_kv).div_ceil(GROUP_MAX);
        for (which, (runs, run_rows)) in
            [(0..lone_runs, 1), (lone_runs..all_runs, self.step.run_rows_max)].into_iter().enumerate()
        {
            if runs.is_empty() {
                continue;
            }
            let enough = runs.len() * heads_kv * groups >= BLOCKS_ENOUGH[which] * self.device.processors();
            let whole = match which {
                0 => enough && pieces <= LONE_PIECES_MAX,
                _ => enough || run_rows * row_bytes > PARTIAL_BYTES_MAX,
            };
            let whole = whole || pieces <= 1;
            let slots_max = match whole {
                true => SLOTS_MAX,
                false => (PARTIAL_BYTES_MAX / row_bytes).clamp(1, self.step.capacity.max(run_rows).min(SLOTS_MAX)),
            };
            let portion = (slots_max / run_rows).clamp(1, runs.len());
            let (slots, end) = (portion * run_rows, runs.end);
            if !whole {
                let made = self.room_for_partial(slots * row_bytes);
                let made = made.and_then(|()| self.room_for_done(portion * heads_kv * groups * 4));
                if self.keep(made).is_none() {
                    return;
                }
            }
            let partial = self.partial.as_ref().map_or(0, Memory::address);
            let done = self.pieces_done.as_ref().map_or(0, Memory::address);
            let stats = partial + (slots * heads * pieces * cell_len(head_len) * 4) as u64;
            for first in runs.step_by(portion) {
                let count = portion.min(end - first);
                let shape = [
                    self.list(1),
                    self.list(2),
                    self.tables(),
                    self.list(5),
                    done,
                    pair(batch.table_len as u32, heads as u32),
                    pair(heads_kv as u32, head_len as u32),
                    pair(attention.scale.to_bits(), attention.window.unwrap_or(0).min(i32::MAX as u32)),
                    pair(attention.soft_cap.unwrap_or(0.0).to_bits(), first as u32),
                    pair(pieces as u32, run_rows as u32),
                ];
                let arguments = Arguments::new().pointer(out.0.address()).pointer(partial).pointer(stats);
                let arguments = arguments.pointer(query.0.address()).pointer(keys).pointer(values).structure(&shape);
                let grid = [heads_kv * groups, if whole { 1 } else { pieces }, count];
                self.launch(kind.names[which], grid, THREADS, kind.shared_bytes[which], arguments);
            }
        }
    }
}

/// Elements of a head in the cache and in partial sums.
fn cell_len(head_len: usize) -> usize {
    head_len.next_multiple_of(16)
}

/// Bytes of the keys, or of the values, of a cache.
pub(super) fn cache_bytes(shape: KvShape) -> usize {
    shape.layer_count * shape.block_count * shape.head_count * BLOCK_LEN * cell_len(shape.head_len) * 2
}

/// Bytes of partial attention of one row: sums and two statistics of each piece of each head.
fn partial_row_bytes(heads: usize, head_len: usize, context: usize) -> usize {
    heads * context.div_ceil(SPLIT_LEN) * (cell_len(head_len) + 2) * 4
}

/// First row and length of each run of rows that follow each other in a sequence, `rows_max` at most.
fn runs(batch: &Batch, rows_max: usize) -> impl Iterator<Item = (usize, usize)> {
    let follows = |row: usize| {
        batch.table_of_row[row] == batch.table_of_row[row - 1] && batch.positions[row] == batch.positions[row - 1] + 1
    };
    let mut end = 0;
    std::iter::from_fn(move || {
        let first = end;
        if first == batch.rows() {
            return None;
        }
        end += 1;
        while end < batch.rows() && end - first < rows_max && follows(end) {
            end += 1;
        }
        Some((first, end - first))
    })
}

/// Cells that a step with this context makes room for. Pieces are counted in eighths of the next power of two, so that a
/// context which grows asks for the same launches for longer, and few lists of launches cover all contexts: 32 for 128 Ki
/// cells. A piece that no row reaches ends at once, and is never more than one of five.
pub(super) fn context_room(context: usize, context_max: usize) -> usize {
    let pieces = context.div_ceil(SPLIT_LEN);
    let room = pieces.next_multiple_of((pieces.next_power_of_two() / 8).max(1)) * SPLIT_LEN;
    room.min(context_max).max(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A decode step's list must be that of the step before for long, or no graph would be of use.
    #[test]
    fn rooms_for_contexts_are_few_and_little_larger_than_the_contexts() {
        let max = 128 << 10;
        let mut rooms: Vec<usize> = (1..=max).map(|context| context_room(context, max)).collect();
        for (context, room) in (1..).zip(&rooms) {
            let (pieces, needed) = (room.div_ceil(SPLIT_LEN), usize::div_ceil(context, SPLIT_LEN));
            assert!(*room >= context && pieces >= needed && (pieces - needed) * 5 <= pieces, "{context}: {room}");
        }
        rooms.dedup();
        assert_eq!(rooms.len(), 32);
        assert_eq!((context_room(300, 400), context_room(300, 0), context_room(0, 400)), (400, 300, 0));
    }
}
