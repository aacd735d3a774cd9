//! The CUDA backend: the operations of [`Backend`] as launches of the kernels in `engine/kernels`.
//!
//! Everything is asked of the device in order and nothing is waited for but in `read` and `chosen`; a failure in between is
//! kept until then. Launches are put on a list that is run as a whole, because a device can do a list that it has seen before by one
//! call: so arguments are addresses and shapes alone, and what changes from step to step (tokens, positions, block tables,
//! angles) lies in device memory. The backend is generic over [`Device`], so that tests run all of it on an emulation of the
//! device.

mod attention;
mod ceiling;
mod choose;
mod device;
mod driver;
mod graphs;
mod host_time;
mod monitor;
mod nvrtc;
mod packs;
mod plan;
mod product;
mod records;
mod repack;
mod seats;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use attention::{HEAD_LEN_MAX, cache_bytes, context_room};
pub use ceiling::{LaunchCost, ReadSpeed, launch_cost, read_speed};
use choose::{CHOICE_BYTES, Returned, Workspace, kept_rows, pick_words};
pub use device::{Arguments, Device, Launch, Launches, Memory, Use};
use device::{Lent, pair};
pub use driver::{Absent, Driver, Found, GraphMemory, Kernels, devices, version_text};
pub use host_time::HostTime;
pub use monitor::{Monitor, Usage};
pub use nvrtc::compile;
pub use plan::{DoesNotFit, Sizes, engine_on, kv_blocks_in, plan};
use product::MATRICES_MAX;
use repack::{Input, Layout, Tensors, repack_tiles};
use seats::Seats;

use super::{
    Attention, BLOCK_LEN, Backend, Batch, DeviceError, KvShape, LANES, Projection, RopePairs, Rotation, Seat, StepShape,
};
use crate::model::{Matrix, Rope, Vector};

/// Bytes of weights that are repacked and copied at once.
const PORTION_BYTES: usize = 8 << 20;
/// Goes up when a kernel gives other bits than before, or the same logits become other tokens.
const ARITHMETIC_VERSION: u32 = 4;

/// Activations, `f32`.
pub struct CudaBuffer<D: Device>(Memory<D>);

/// A weight matrix in the layout of the kernels.
pub struct CudaMatrix<D: Device> {
    /// Elements, then scales.
    memory: Memory<D>,
    /// Where the scales begin.
    scales: u64,
    layout: Layout,
    /// The layout's kernels: found once, and not for each product of each step.
    tensors: Option<Tensors>,
    rows: usize,
    cols: usize,
}

/// A norm's weights or a bias.
pub struct CudaVector<D: Device> {
    memory: Memory<D>,
    len: usize,
}

/// Keys and values of all layers, `[layers, blocks, heads, BLOCK_LEN, cell_len]` of `f16` each.
pub struct CudaCache<D: Device> {
    keys: Memory<D>,
    values: Memory<D>,
    shape: KvShape,
}

/// Computes on a device.
pub struct CudaBackend<D: Device> {
    device: Arc<Lent<D>>,
    arithmetic: String,
    /// What was asked and not run yet.
    list: Launches,
    /// What failed first since the last `read`.
    failed: Option<DeviceError>,
    step: Step<D>,
    /// Activations in records, as tensor cores take them, and whose and of what kind they are: address, rows, columns.
    records: Option<Memory<D>>,
    records_of: Option<(u64, usize, usize, Input)>,
    /// How many segments of a product are done, and their sums.
    segments: Option<Memory<D>>,
    /// Outputs of the largest matrix.
    outputs_max: AtomicUsize,
    /// Partial attention: sums, then statistics.
    partial: Option<Memory<D>>,
    /// How many pieces of a run are done, zero between launches.
    pieces_done: Option<Memory<D>>,
    /// Where tokens are chosen.
    choosing: Option<Workspace<D>>,
    /// Sequences whose logits are edited before.
    seats: Option<Seats<D>>,
    /// What `read` gave last.
    host: Option<D::Host>,
    /// Tokens that the device chose, by lane, and logits that it chose from and the host wants.
    lanes: [Option<Returned<D>>; LANES],
    kept: [Option<Returned<D>>; LANES],
    /// What `chosen` gave last.
    host_tokens: Vec<u32>,
}

/// State of the step on the device.
struct Step<D: Device> {
    /// Tokens, positions, tables of rows, sample rows, whether they are stretched, and runs, `capacity` of each; then choices.
    rows: Option<Memory<D>>,
    capacity: usize,
    /// First row and length of each run: rows that follow each other in a sequence. Those of one row come first.
    runs: Vec<u32>,
    lone_runs: usize,
    /// Rows of a run at most.
    run_rows_max: usize,
    /// Block tables, and what they hold.
    tables: Option<Memory<D>>,
    tables_known: Vec<u32>,
    table_len: usize,
    ropes: Vec<StepRope<D>>,
    /// Longest context that the step makes room for, in cells, and the longest that there will be.
    context: usize,
    context_max: usize,
    bytes: Vec<u8>,
}

/// A rotation's turns for a position, and the angles of the step's rows.
struct StepRope<D: Device> {
    rope: Rope,
    turns: Memory<D>,
    angles: Memory<D>,
    capacity: usize,
}

impl<D: Device> CudaBackend<D> {
    /// A backend on a device.
    pub fn new(device: Arc<D>) -> CudaBackend<D> {
        let arithmetic = format!("{}-v{ARITHMETIC_VERSION}", device.arithmetic());
        let step = Step {
            rows: None,
            capacity: 0,
            runs: Vec::new(),
            lone_runs: 0,
            run_rows_max: 1,
            tables: None,
            tables_known: Vec::new(),
            table_len: 0,
            ropes: Vec::new(),
            context: 0,
            context_max: 0,
            bytes: Vec::new(),
        };
        CudaBackend {
            device: Lent::new(device),
            arithmetic,
            list: Launches::default(),
            failed: None,
            step,
            records: None,
            records_of: None,
            segments: None,
            outputs_max: AtomicUsize::new(0),
            partial: None,
            pieces_done: None,
            choosing: None,
            seats: None,
            host: None,
            lanes: [const { None }; LANES],
            kept: [const { None }; LANES],
            host_tokens: Vec::new(),
        }
    }

    fn memory_of(&self, bytes: &[u8], purpose: Use) -> Result<Memory<D>, DeviceError> {
        let memory = Memory::new(&self.device, bytes.len(), purpose)?;
        self.device.upload(memory.address(), bytes)?;
        Ok(memory)
    }

    /// Activations that hold `values`: for tests of single operations.
    ///
    /// # Errors
    ///
    /// When the device has no room for them.
    pub fn buffer_of(&self, values: &[f32]) -> Result<CudaBuffer<D>, DeviceError> {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Ok(CudaBuffer(self.memory_of(&bytes, Use::Workspace)?))
    }

    fn keep<T>(&mut self, result: Result<T, DeviceError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.failed.get_or_insert(error);
                None
            }
        }
    }

    fn launch(&mut self, kernel: &'static str, grid: [usize; 3], threads: usize, shared: usize, arguments: Arguments) {
        if let Some(grid) = self.listed(grid) {
            self.list.push(kernel, grid, threads as u32, shared, &arguments);
        }
    }

    /// As `launch`, of a kernel that takes one structure: its words are copied once.
    fn launch_with(&mut self, kernel: &'static str, grid: [usize; 3], threads: usize, shared: usize, words: &[u64]) {
        if let Some(grid) = self.listed(grid) {
            self.list.push_structure(kernel, grid, threads as u32, shared, words);
        }
    }

    /// The grid of a launch that belongs on the list: after a failure nothing more is asked, and a grid without blocks is no
    /// launch at all.
    #[inline(always)]
    fn listed(&self, grid: [usize; 3]) -> Option<[u32; 3]> {
        if self.failed.is_some() || grid.contains(&0) {
            return None;
        }
        self.device.keep_memory();
        Some(grid.map(|n| u32::try_from(n).expect("shapes fit 32 bits")))
    }

    /// Has the device do what is on the list: before memory that it names is written from here, or read.
    fn run_list(&mut self) {
        if self.list.is_empty() {
            return;
        }
        let run = match self.failed {
            None => self.device.run(&self.list),
            Some(_) => Ok(()),
        };
        self.keep(run);
        self.list.clear();
        self.device.free_dropped();
    }

    /// An operation over `len` elements, 256 in a block.
    fn elementwise(&mut self, kernel: &'static str, len: usize, written: &CudaBuffer<D>, arguments: Arguments) {
        self.written(written);
        self.launch(kernel, [len.div_ceil(256), 1, 1], 256, 0, arguments.int(len));
    }

    /// What was made of a buffer is no longer what it holds.
    fn written(&mut self, buffer: &CudaBuffer<D>) {
        if self.records_of.is_some_and(|(address, ..)| address == buffer.0.address()) {
            self.records_of = None;
        }
    }

    /// Where one of the lists of `begin_step` lies.
    fn list(&self, index: usize) -> u64 {
        self.step.rows.as_ref().map_or(0, |m| m.address() + (index * self.step.capacity * 4) as u64)
    }

    /// Where the choices of `begin_step` lie, and how far behind the other lists that is.
    fn choices(&self) -> (u64, usize) {
        let behind = (6 * 4 * self.step.capacity).next_multiple_of(8);
        (self.step.rows.as_ref().map_or(0, Memory::address) + behind as u64, behind)
    }

    fn tables(&self) -> u64 {
        self.step.tables.as_ref().map_or(0, Memory::address)
    }

    fn room_for_rows(&mut self, rows: usize) -> Result<(), DeviceError> {
        if self.step.capacity < rows {
            // Each row may be one of which a token is chosen.
            let bytes = (6 * 4 * rows).next_multiple_of(8) + CHOICE_BYTES * rows;
            self.step.rows = Some(Memory::new(&self.device, bytes, Use::Workspace)?);
            self.step.capacity = rows;
        }
        Ok(())
    }

    fn room_for_tables(&mut self, len: usize, table_len: usize) -> Result<(), DeviceError> {
        if self.step.tables_known.len() != len || self.step.table_len != table_len {
            self.step.tables = Some(Memory::new(&self.device, len * 4, Use::Workspace)?);
            // No block has this number, so all of it counts as changed.
            self.step.tables_known = vec![u32::MAX; len];
            self.step.table_len = table_len;
        }
        Ok(())
    }

    fn room_for_choices(&mut self, count: usize, vocab_len: usize) -> Result<(), DeviceError> {
        let enough = |w: &Workspace<D>| w.choices_max >= count && w.vocab_len == vocab_len;
        if !self.choosing.as_ref().is_some_and(enough) {
            self.choosing = Some(Workspace::new(&self.device, count, vocab_len)?);
        }
        Ok(())
    }

    /// Makes room for tokens that come back.
    fn room_for_tokens(&mut self, count: usize) -> Result<(), DeviceError> {
        for lane in 0..LANES {
            if self.lanes[lane].as_ref().map_or(0, Returned::len) < count {
                // What was started before may still write to the old one.
                self.device.wait_for(lane)?;
                self.lanes[lane] = Some(Returned::new(&self.device, count)?);
            }
        }
        Ok(())
    }

    /// Makes room for logits that come back in this lane: those of the other one may not have been looked at yet.
    fn room_for_kept(&mut self, lane: usize, rows: usize) -> Result<(), DeviceError> {
        let len = rows * self.choosing.as_ref().map_or(0, |w| w.vocab_len);
        if self.kept[lane].as_ref().map_or(0, Returned::len) < len {
            self.device.wait_for(lane)?;
            self.kept[lane] = None;
            // Twice as much as before at least, as in `read`.
            self.kept[lane] = Some(Returned::new(&self.device, len.next_power_of_two())?);
        }
        Ok(())
    }

    fn room_for_ropes(&mut self, ropes: &[Rope], rows: usize) -> Result<(), DeviceError> {
        let known = self.step.ropes.iter().map(|r| &r.rope).eq(ropes);
        if !known || self.step.ropes.iter().any(|r| r.capacity < rows) {
            let made: Result<Vec<_>, DeviceError> = ropes.iter().map(|rope| self.step_rope(rope, rows)).collect();
            self.step.ropes = made?;
        }
        Ok(())
    }

    fn angles(&mut self, ropes: &[Rope], rows: usize) -> Result<(), DeviceError> {
        self.room_for_ropes(ropes, rows)?;
        for index in 0..ropes.len() {
            let rope = &self.step.ropes[index];
            let half = rope.rope.frequencies.len();
            let arguments = Arguments::new()
                .pointer(rope.angles.address())
                .pointer(rope.turns.address())
                .pointer(self.list(1))
                .pointer(self.list(4))
                .int(half)
                .double(rope.rope.magnitude);
            self.launch("rope_angles", [half.div_ceil(128), rows, 1], 128, 0, arguments);
        }
        Ok(())
    }

    fn step_rope(&self, rope: &Rope, rows: usize) -> Result<StepRope<D>, DeviceError> {
        let stretched = rope.stretched.as_ref().unwrap_or(&rope.frequencies);
        let turns = rope.frequencies.iter().chain(stretched).map(|f| f / std::f64::consts::TAU);
        let bytes: Vec<u8> = turns.flat_map(f64::to_le_bytes).collect();
        let angles = Memory::new(&self.device, rows * rope.frequencies.len() * 8, Use::Workspace)?;
        Ok(StepRope { rope: rope.clone(), turns: self.memory_of(&bytes, Use::Workspace)?, angles, capacity: rows })
    }

    /// Copies what has changed of the tables that this step uses.
    fn upload_tables(&mut self, batch: &Batch) -> Result<(), DeviceError> {
        self.room_for_tables(batch.tables.len(), batch.table_len)?;
        let step = &mut self.step;
        let address = step.tables.as_ref().map_or(0, Memory::address);
        for (row, position) in batch.positions.iter().enumerate() {
            let start = batch.table_of_row[row] as usize * batch.table_len;
            let used = start..start + *position as usize / BLOCK_LEN + 1;
            let (known, wanted) = (&step.tables_known[used.clone()], &batch.tables[used.clone()]);
            let Some(first) = known.iter().zip(wanted).position(|(k, w)| k != w) else { continue };
            step.bytes.clear();
            step.bytes.extend(wanted[first..].iter().flat_map(|block| block.to_le_bytes()));
            self.device.upload(address + ((start + first) * 4) as u64, &step.bytes)?;
            step.tables_known[used.clone()].copy_from_slice(&batch.tables[used]);
        }
        Ok(())
    }
}

/// Threads for a row of this length: a function of the length alone.
fn norm_threads(len: usize) -> usize {
    (len.div_ceil(4)).next_multiple_of(32).min(1024)
}

impl<D: Device> Backend for CudaBackend<D> {
    type Buffer = CudaBuffer<D>;
    type Matrix = CudaMatrix<D>;
    type Vector = CudaVector<D>;
    type Cache = CudaCache<D>;

    fn matrix(&self, matrix: &Matrix) -> Result<CudaMatrix<D>, DeviceError> {
        let layout = Layout::of(matrix.tensor_type);
        let [element_bytes, scale_bytes] = layout.tile_bytes(matrix.cols);
        let tiles = matrix.rows.div_ceil(layout.tile_rows());
        let scales_start = (tiles * element_bytes).next_multiple_of(256);
        let memory = Memory::new(&self.device, scales_start + tiles * scale_bytes, Use::Weights)?;
        let scales = memory.address() + scales_start as u64;
        self.outputs_max.fetch_max(matrix.rows, Relaxed);
        let (tensors, rows, cols) = (layout.tensors(), matrix.rows, matrix.cols);
        let made = CudaMatrix { memory, scales, layout, tensors, rows, cols };
        if self.device.only_counts() {
            return Ok(made);
        }
        let portion = (PORTION_BYTES / (element_bytes + scale_bytes).max(1)).max(1);
        for start in (0..tiles).step_by(portion) {
            let count = portion.min(tiles - start);
            let (mut elements, mut scale_plane) = (vec![0; count * element_bytes], vec![0; count * scale_bytes]);
            repack_tiles(matrix, start, &mut elements, &mut scale_plane);
            self.device.upload(made.memory.address() + (start * element_bytes) as u64, &elements)?;
            if !scale_plane.is_empty() {
                self.device.upload(scales + (start * scale_bytes) as u64, &scale_plane)?;
            }
        }
        Ok(made)
    }

    fn vector(&self, vector: &Vector) -> Result<CudaVector<D>, DeviceError> {
        let bytes: Vec<u8> = vector.as_slice().iter().flat_map(|x| x.to_le_bytes()).collect();
        Ok(CudaVector { memory: self.memory_of(&bytes, Use::Weights)?, len: vector.len() })
    }

    fn buffer(&self, len: usize) -> Result<CudaBuffer<D>, DeviceError> {
        let memory = Memory::new(&self.device, len * 4, Use::Workspace)?;
        self.device.clear(memory.address(), memory.bytes())?;
        Ok(CudaBuffer(memory))
    }

    fn cache_bytes(shape: KvShape) -> usize {
        2 * attention::cache_bytes(shape)
    }

    fn cache(&self, shape: KvShape) -> Result<CudaCache<D>, DeviceError> {
        if shape.head_len > HEAD_LEN_MAX {
            let why = format!("heads of {} elements: the kernels have room for {HEAD_LEN_MAX}", shape.head_len);
            return Err(DeviceError(why));
        }
        // What a cell holds before it is written is never read.
        let room = || Memory::new(&self.device, cache_bytes(shape), Use::Kv);
        Ok(CudaCache { keys: room()?, values: room()?, shape })
    }

    fn reserve(&mut self, shape: &StepShape, ropes: &[Rope]) -> Result<(), DeviceError> {
        self.step.context_max = shape.context_max;
        self.room_for_rows(shape.rows_max)?;
        self.room_for_tables(shape.tables_len, shape.table_len)?;
        self.room_for_ropes(ropes, shape.rows_max)?;
        let records = Input::RECORDS.map(|(input, ..)| input.bytes(shape.rows_max, shape.cols_max));
        self.room_for_records(records.into_iter().max().unwrap_or(0))?;
        self.room_for_choices(shape.choices_max, shape.vocab_len)?;
        self.seats = Some(Seats::new(&self.device, shape.choices_max, shape.vocab_len, shape.context_max)?);
        self.room_for_tokens(shape.choices_max)?;
        self.room_for_segments()?;
        self.room_for_attention(shape)
    }

    fn begin_step(&mut self, batch: &Batch, ropes: &[Rope]) -> Result<(), DeviceError> {
        let rows = batch.rows();
        self.run_list();
        self.records_of = None;
        self.room_for_rows(rows)?;
        self.room_for_tokens(batch.picks.len())?;
        self.room_for_kept(batch.lane, kept_rows(batch))?;
        self.cut_into_runs(batch);
        let capacity = self.step.capacity;
        let (_, choices_start) = self.choices();
        let bytes = &mut self.step.bytes;
        bytes.clear();
        for list in [&batch.tokens, &batch.positions, &batch.table_of_row, &batch.sample_rows] {
            let end = bytes.len() + capacity * 4;
            bytes.extend(list.iter().flat_map(|x| x.to_le_bytes()));
            bytes.resize(end, 0);
        }
        bytes.extend((0..rows).flat_map(|row| u32::from(batch.is_stretched(row)).to_le_bytes()));
        bytes.resize(5 * capacity * 4, 0);
        bytes.extend(self.step.runs.iter().flat_map(|run| run.to_le_bytes()));
        if !batch.picks.is_empty() {
            bytes.resize(choices_start, 0);
            let tokens = self.lanes[batch.lane].as_ref().expect("was just made");
            let vocab_len = self.choosing.as_ref().map_or(0, |w| w.vocab_len);
            let mut kept_len = 0;
            for (index, pick) in batch.picks.iter().enumerate() {
                let kept = self.kept[batch.lane].as_ref().filter(|_| pick.keeps_logits);
                let kept = kept.map_or(0, |kept| kept.address(kept_len));
                kept_len += if pick.keeps_logits { vocab_len } else { 0 };
                let words = pick_words(pick, tokens.address(index), kept, self.seats.as_ref());
                bytes.extend(words.into_iter().flat_map(u64::to_le_bytes));
            }
        }
        let address = self.step.rows.as_ref().map_or(0, Memory::address);
        self.device.upload(address, &self.step.bytes)?;
        let context = batch.positions.iter().max().map_or(0, |p| *p as usize + 1);
        self.step.context = context_room(context, self.step.context_max);
        self.upload_tables(batch)?;
        self.angles(ropes, rows)
    }

    fn embed(&mut self, out: &mut CudaBuffer<D>, table: &CudaMatrix<D>, batch: &Batch) {
        self.written(out);
        let arguments =
            Arguments::new().pointer(out.0.address()).pointer(self.list(0)).structure(&table.words()).int(table.cols);
        let arguments = arguments.pointer(self.choosing.as_ref().map_or(0, Workspace::tokens));
        self.launch(table.layout.embed(), [batch.rows(), 1, 1], 128, 0, arguments);
    }

    fn rms_norm(&mut self, out: &mut CudaBuffer<D>, x: &CudaBuffer<D>, weight: &CudaVector<D>, rows: usize, eps: f32) {
        self.written(out);
        let arguments = Arguments::new().pointer(out.0.address()).pointer(x.0.address());
        let arguments = arguments.pointer(weight.memory.address()).int(weight.len).float(eps);
        self.launch("rms_norm", [rows, 1, 1], norm_threads(weight.len), 0, arguments);
    }

    fn rms_norm_in_place(&mut self, x: &mut CudaBuffer<D>, weight: &CudaVector<D>, count: usize, eps: f32) {
        self.written(x);
        let arguments = Arguments::new().pointer(x.0.address()).pointer(x.0.address());
        let arguments = arguments.pointer(weight.memory.address()).int(weight.len).float(eps);
        self.launch("rms_norm", [count, 1, 1], norm_threads(weight.len), 0, arguments);
    }

    fn add_rms_norm(
        &mut self,
        x: &mut CudaBuffer<D>,
        y: &mut CudaBuffer<D>,
        weight: &CudaVector<D>,
        rows: usize,
        eps: f32,
    ) {
        self.written(x);
        self.written(y);
        let arguments = Arguments::new().pointer(x.0.address()).pointer(y.0.address());
        let arguments = arguments.pointer(weight.memory.address()).int(weight.len).float(eps);
        self.launch("add_rms_norm", [rows, 1, 1], norm_threads(weight.len), 0, arguments);
    }

    fn matmul(&mut self, out: &mut CudaBuffer<D>, x: &CudaBuffer<D>, weight: &CudaMatrix<D>, rows: usize) {
        if rows == 0 {
            return;
        }
        if weight.layout.input() != Input::Floats {
            return self.product(x, rows, &[Projection { out, weight, bias: None }]);
        }
        self.written(out);
        let (kernel, of_block) = Layout::floats(rows);
        let arguments = Arguments::new()
            .pointer(out.0.address())
            .pointer(x.0.address())
            .structure(&weight.words())
            .int(rows)
            .int(weight.rows)
            .int(weight.cols);
        self.launch(kernel, [weight.rows.div_ceil(8), rows.div_ceil(of_block), 1], 128, 0, arguments);
    }

    fn project(&mut self, x: &CudaBuffer<D>, rows: usize, parts: &mut [Projection<'_, Self>]) {
        if rows == 0 {
            return;
        }
        let shape = |part: &Projection<'_, Self>| (part.weight.layout, part.weight.cols);
        for group in parts.chunk_by_mut(|a, b| shape(a) == shape(b)) {
            for group in group.chunks_mut(MATRICES_MAX) {
                if group[0].weight.layout.input() == Input::Floats {
                    for Projection { out, weight, bias } in group {
                        self.matmul(out, x, weight, rows);
                        if let Some(bias) = bias {
                            self.add_bias(out, bias, rows);
                        }
                    }
                    continue;
                }
                self.product(x, rows, group);
            }
        }
    }

    fn add_bias(&mut self, x: &mut CudaBuffer<D>, bias: &CudaVector<D>, rows: usize) {
        self.written(x);
        let arguments = Arguments::new().pointer(x.0.address()).pointer(bias.memory.address()).int(bias.len);
        self.launch("add_bias", [bias.len.div_ceil(256), rows, 1], 256, 0, arguments);
    }

    fn rotate_store(
        &mut self,
        cache: &mut CudaCache<D>,
        layer: usize,
        query: &mut CudaBuffer<D>,
        key: &mut CudaBuffer<D>,
        value: &CudaBuffer<D>,
        batch: &Batch,
        rotation: &Rotation<'_, CudaVector<D>>,
    ) {
        self.written(query);
        let [keys, values] = cache.layer(layer);
        let KvShape { head_count: heads_kv, head_len, .. } = cache.shape;
        let rope = &self.step.ropes[rotation.rope];
        let [query_norm, key_norm] = rotation.head_norms.map_or([0; 2], |norms| norms.map(|n| n.memory.address()));
        let neighbours = u32::from(rotation.pairs == RopePairs::Neighbours);
        let words = [
            query.0.address(),
            key.0.address(),
            value.0.address(),
            keys,
            values,
            query_norm,
            key_norm,
            rope.angles.address(),
            self.list(1),
            self.list(2),
            self.tables(),
            pair(batch.table_len as u32, rotation.head_count as u32),
            pair(heads_kv as u32, head_len as u32),
            pair(rope.rope.frequencies.len() as u32, neighbours),
            pair(rotation.eps.to_bits(), 0),
        ];
        // A warp takes a head, four a block.
        let heads = rotation.head_count + 2 * heads_kv;
        let grid = [batch.rows(), heads.div_ceil(4), 1];
        self.launch_with("rotate_store", grid, 128, 0, &words);
    }

    fn attend(
        &mut self,
        out: &mut CudaBuffer<D>,
        query: &CudaBuffer<D>,
        cache: &CudaCache<D>,
        layer: usize,
        batch: &Batch,
        attention: &Attention,
    ) {
        self.attend_runs(out, query, cache, layer, batch, attention);
    }

    fn silu_mul(&mut self, gate: &mut CudaBuffer<D>, up: &CudaBuffer<D>, len: usize) {
        let arguments = Arguments::new().pointer(gate.0.address()).pointer(up.0.address());
        self.elementwise("silu_mul", len, gate, arguments);
    }

    fn gelu_mul(&mut self, gate: &mut CudaBuffer<D>, up: &CudaBuffer<D>, len: usize) {
        let arguments = Arguments::new().pointer(gate.0.address()).pointer(up.0.address());
        self.elementwise("gelu_mul", len, gate, arguments);
    }

    fn scale(&mut self, x: &mut CudaBuffer<D>, factor: f32, len: usize) {
        self.elementwise("scale", len, x, Arguments::new().pointer(x.0.address()).float(factor));
    }

    fn soft_cap(&mut self, x: &mut CudaBuffer<D>, cap: f32, len: usize) {
        self.elementwise("soft_cap", len, x, Arguments::new().pointer(x.0.address()).float(cap));
    }

    fn gather(&mut self, out: &mut CudaBuffer<D>, x: &CudaBuffer<D>, batch: &Batch, len: usize) {
        self.written(out);
        let arguments = Arguments::new().pointer(out.0.address()).pointer(x.0.address()).pointer(self.list(3));
        self.launch("gather", [len.div_ceil(256), batch.sample_rows.len(), 1], 256, 0, arguments.int(len));
    }

    fn chooses(&self) -> bool {
        true
    }

    fn seat(&mut self, slot: usize, seat: &Seat<'_>) {
        self.run_list();
        if self.failed.is_none() {
            let seats = self.seats.as_mut().expect("there is room before anybody is seated");
            let seated = seats.seat(&self.device, slot, seat);
            self.keep(seated);
        }
    }

    fn choose(&mut self, logits: &mut CudaBuffer<D>, vocab_len: usize, batch: &Batch) {
        if batch.picks.is_empty() {
            return;
        }
        self.written(logits);
        let made = self.room_for_choices(batch.picks.len(), vocab_len);
        if self.keep(made).is_none() {
            return;
        }
        let (at, _) = self.choices();
        let workspace = self.choosing.as_ref().expect("was just made");
        for (name, grid, threads, arguments) in workspace.launches(logits.0.address(), at, &batch.picks) {
            self.launch(name, grid, threads, 0, arguments);
        }
    }

    fn start(&mut self, batch: &Batch) {
        self.run_list();
        if self.failed.is_none() {
            let marked = self.device.mark(batch.lane);
            self.keep(marked);
        }
    }

    fn chosen(&mut self, batch: &Batch) -> Result<&[u32], DeviceError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        self.device.wait_for(batch.lane)?;
        self.host_tokens.clear();
        if let Some(tokens) = &self.lanes[batch.lane] {
            self.host_tokens.extend(tokens.tokens(batch.picks.len()));
        }
        Ok(&self.host_tokens)
    }

    fn kept(&self, batch: &Batch) -> &[f32] {
        let vocab_len = self.choosing.as_ref().map_or(0, |w| w.vocab_len);
        self.kept[batch.lane].as_ref().map_or(&[], |kept| kept.numbers(kept_rows(batch) * vocab_len))
    }

    fn read<'a>(&'a mut self, x: &'a CudaBuffer<D>, range: Range<usize>) -> Result<&'a [f32], DeviceError> {
        self.run_list();
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let len = range.len();
        let host = match self.host.take().filter(|host| host.len() >= len) {
            Some(host) => host,
            // Twice as much as before at least, so that a crowd that grows does not ask each time.
            None => D::host(self.device.device(), len.next_power_of_two())?,
        };
        let host = self.host.insert(host);
        self.device.read(x.0.address() + (range.start * 4) as u64, len, host)?;
        Ok(&host[..len])
    }

    fn arithmetic(&self) -> &str {
        &self.arithmetic
    }
}

impl<D: Device> Drop for CudaBackend<D> {
    fn drop(&mut self) {
        // What is still on the list nobody will read.
        self.device.free_dropped();
        // What was started may still write into the host's memory. If the device has failed, it does not.
        (0..LANES).for_each(|lane| drop(self.device.wait_for(lane)));
    }
}

impl<D: Device> CudaMatrix<D> {
    /// The kernels' `Weights`.
    fn words(&self) -> [u64; 3] {
        [self.memory.address(), self.scales, self.layout.steps(self.cols) as u64]
    }
}

impl<D: Device> CudaCache<D> {
    /// Where a layer's keys and values begin.
    fn layer(&self, layer: usize) -> [u64; 2] {
        let start = (layer * cache_bytes(KvShape { layer_count: 1, ..self.shape })) as u64;
        [self.keys.address() + start, self.values.address() + start]
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::records::ROW_LEN_MAX;
    use super::*;

    /// Writes down what it is asked.
    #[derive(Default)]
    struct Diary(Mutex<Vec<String>>);

    impl Diary {
        fn note(&self, what: String) {
            self.0.lock().expect("nothing panics under this lock").push(what);
        }

        fn read_out(&self) -> String {
            std::mem::take(&mut *self.0.lock().expect("nothing panics under this lock")).join(", ")
        }
    }

    impl Device for Diary {
        type Host = Vec<f32>;

        /// The sizes of the tests are addresses enough.
        fn alloc(&self, bytes: usize, _: Use) -> Result<u64, DeviceError> {
            self.note(format!("alloc {bytes}"));
            Ok(bytes as u64)
        }

        fn free(&self, address: u64, _: usize) {
            self.note(format!("free {address}"));
        }

        fn upload(&self, to: u64, _: &[u8]) -> Result<(), DeviceError> {
            self.note(format!("upload {to}"));
            Ok(())
        }

        fn clear(&self, _: u64, _: usize) -> Result<(), DeviceError> {
            Ok(())
        }

        fn download(&self, from: u64, _: &mut [u8]) -> Result<(), DeviceError> {
            self.note(format!("download {from}"));
            Ok(())
        }

        fn host(_: &Arc<Diary>, len: usize) -> Result<Vec<f32>, DeviceError> {
            Ok(vec![0.0; len])
        }

        fn read(&self, from: u64, len: usize, to: &mut Vec<f32>) -> Result<(), DeviceError> {
            self.note(format!("read {len} of {from} into {}", to.len()));
            Ok(())
        }

        fn launch(
            &self,
            kernel: &'static str,
            _: [u32; 3],
            _: u32,
            _: usize,
            arguments: &Arguments,
        ) -> Result<(), DeviceError> {
            let first = arguments.each().next().expect("a kernel writes somewhere")[0];
            self.note(format!("{kernel} {first}"));
            match kernel {
                "soft_cap" => Err(DeviceError("it has had enough".to_owned())),
                _ => Ok(()),
            }
        }

        fn arithmetic(&self) -> String {
            "none".to_owned()
        }
    }

    #[test]
    fn launches_wait_for_a_read_and_what_they_name_stays_until_then() {
        let diary = Arc::new(Diary::default());
        let mut be = CudaBackend::new(diary.clone());
        let (mut x, y) = (be.buffer(100).expect("room"), be.buffer(200).expect("room"));
        be.silu_mul(&mut x, &y, 100);
        drop(y);
        be.scale(&mut x, 2.0, 100);
        assert_eq!(diary.read_out(), "alloc 400, alloc 800");
        be.read(&x, 0..100).expect("it does not fail");
        assert_eq!(diary.read_out(), "silu_mul 400, scale 400, free 800, read 100 of 400 into 128");
        be.read(&x, 0..90).expect("it does not fail");
        drop(x);
        assert_eq!(diary.read_out(), "read 90 of 400 into 128, free 400");
        // What nobody will read is not run, and leaves nothing behind.
        let mut z = be.buffer(50).expect("room");
        be.scale(&mut z, 2.0, 50);
        drop(z);
        drop(be);
        assert_eq!(diary.read_out(), "alloc 200, free 200");
    }

    #[test]
    fn a_step_is_run_before_the_next_one_is_written_over_it() {
        let diary = Arc::new(Diary::default());
        let mut be = CudaBackend::new(diary.clone());
        let mut x = be.buffer(100).expect("room");
        let mut batch = Batch { table_len: 1, tables: vec![3], ..Batch::default() };
        batch.push(7, 0, 0);
        be.begin_step(&batch, &[]).expect("it does not fail");
        be.scale(&mut x, 2.0, 100);
        be.begin_step(&batch, &[]).expect("it does not fail");
        assert_eq!(diary.read_out(), "alloc 400, alloc 128, upload 128, alloc 16, upload 16, scale 400, upload 128");
    }

    #[test]
    fn records_are_made_by_what_wrote_the_rows_where_nothing_lies_between() {
        let diary = Arc::new(Diary::default());
        let mut be = CudaBackend::new(diary.clone());
        let (mut x, mut y) = (be.buffer(3 * 96).expect("room"), be.buffer(3 * 100).expect("room"));
        let of = |len| CudaVector { memory: be.memory_of(&vec![0; len * 4], Use::Weights).expect("room"), len };
        let [weight, long] = [of(96), of(ROW_LEN_MAX + 1)];
        be.room_for_records(10_000).expect("room");
        let asked = |be: &mut CudaBackend<Diary>, x: &CudaBuffer<Diary>, input| be.records(x, 3, 96, input);
        let launched = |be: &mut CudaBackend<Diary>| {
            diary.read_out();
            be.run_list();
            diary.read_out()
        };
        be.rms_norm(&mut x, &y, &weight, 3, 0.1);
        assert_eq!(asked(&mut be, &x, Input::Words), Some(10_000));
        // What has been made is there; another kind is not, and no longer the work of the last launch.
        asked(&mut be, &x, Input::Words);
        asked(&mut be, &x, Input::Halves);
        be.add_rms_norm(&mut y, &mut x, &weight, 3, 0.1);
        asked(&mut be, &x, Input::Halves);
        assert_eq!(launched(&mut be), "rms_norm_words 1152, halve 10000, add_rms_norm_halves 1200");
        be.silu_mul(&mut x, &y, 3 * 96);
        asked(&mut be, &x, Input::Words);
        be.gelu_mul(&mut x, &y, 3 * 96);
        asked(&mut be, &x, Input::Halves);
        assert_eq!(launched(&mut be), "silu_mul_words 1152, gelu_mul_halves 1152");
        // Other rows, a part of them, something in between, or a list that has been run.
        be.rms_norm(&mut y, &x, &weight, 3, 0.1);
        asked(&mut be, &x, Input::Words);
        be.rms_norm(&mut x, &y, &weight, 2, 0.1);
        asked(&mut be, &x, Input::Words);
        be.silu_mul(&mut x, &y, 2 * 96);
        asked(&mut be, &x, Input::Words);
        be.silu_mul(&mut x, &y, 3 * 96);
        be.scale(&mut x, 2.0, 96);
        asked(&mut be, &x, Input::Words);
        be.silu_mul(&mut x, &y, 3 * 96);
        let first = launched(&mut be);
        asked(&mut be, &x, Input::Words);
        be.rms_norm(&mut x, &y, &long, 1, 0.1);
        be.records(&x, 1, ROW_LEN_MAX + 1, Input::Halves);
        assert_eq!(
            first,
            "rms_norm 1200, quantise 10000, rms_norm 1152, quantise 10000, silu_mul 1152, quantise 10000, silu_mul 1152, \
             scale 1152, quantise 10000, silu_mul 1152"
        );
        let second = launched(&mut be);
        assert!(second.starts_with("quantise 10000, rms_norm 1152, halve "), "{second}");
    }

    #[test]
    fn after_a_failure_nothing_is_run_until_it_was_told() {
        let diary = Arc::new(Diary::default());
        let mut be = CudaBackend::new(diary.clone());
        let mut x = be.buffer(100).expect("room");
        be.soft_cap(&mut x, 2.0, 100);
        be.scale(&mut x, 2.0, 100);
        let error = be.read(&x, 0..100).expect_err("as it says").to_string();
        assert!(error.contains("it has had enough"), "{error}");
        assert_eq!(diary.read_out(), "alloc 400, soft_cap 400");
        be.scale(&mut x, 2.0, 100);
        be.read(&x, 0..100).expect("it was told");
        assert_eq!(diary.read_out(), "scale 400, read 100 of 400 into 128");
    }
}
