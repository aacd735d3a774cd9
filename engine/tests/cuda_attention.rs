//! Rotation, the store of keys and values, and attention on the emulated device, against the CPU backend, and against
//! themselves: a row's bits must not depend on which rows share its step.

mod emulator;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use emulator::Emulator;
use orchestratord_engine::backend::cuda::{Arguments, CudaBackend, Device, Use};
use orchestratord_engine::backend::{Attention, Backend, Batch, KvShape, RopePairs, Rotation, StepShape};
use orchestratord_engine::testing::Dice;
use orchestratord_engine::{BLOCK_LEN, CpuBackend, CpuOptions, DeviceError, Rope};

/// Outputs are averages of numbers below one.
const ERROR_MAX: f32 = 1e-5;

/// An emulated device that says where it put what it was asked for last.
struct Watched {
    device: Arc<Emulator>,
    last: Mutex<u64>,
}

impl Device for Watched {
    type Host = Vec<f32>;

    fn alloc(&self, bytes: usize, purpose: Use) -> Result<u64, DeviceError> {
        let address = self.device.alloc(bytes, purpose)?;
        *self.last.lock().expect("nothing panics under this lock") = address;
        Ok(address)
    }

    fn free(&self, address: u64, bytes: usize) {
        self.device.free(address, bytes);
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.device.upload(to, bytes)
    }

    fn clear(&self, address: u64, bytes: usize) -> Result<(), DeviceError> {
        self.device.clear(address, bytes)
    }

    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.device.download(from, bytes)
    }

    fn host(device: &Arc<Watched>, len: usize) -> Result<Vec<f32>, DeviceError> {
        Emulator::host(&device.device, len)
    }

    fn read(&self, from: u64, len: usize, to: &mut Vec<f32>) -> Result<(), DeviceError> {
        self.device.read(from, len, to)
    }

    fn launch(
        &self,
        kernel: &'static str,
        grid: [u32; 3],
        threads: u32,
        shared_bytes: usize,
        arguments: &Arguments,
    ) -> Result<(), DeviceError> {
        self.device.launch(kernel, grid, threads, shared_bytes, arguments)
    }

    fn arithmetic(&self) -> String {
        self.device.arithmetic()
    }
}

#[derive(Clone, Debug)]
struct Shape {
    heads: usize,
    heads_kv: usize,
    head_len: usize,
    window: Option<u32>,
    soft_cap: Option<f32>,
    /// Position of every sequence's first row. Where there is a window, cells before may hold anything.
    start: u32,
    /// Rows of the first sequence; the others are shorter.
    rows: u32,
    /// The last rows of a sequence, which attend; those before are only stored.
    attending: u32,
}

/// The rows of each step: sequence and position.
type Steps = Vec<Vec<(u32, u32)>>;
/// What attention gives each of them.
type Rows = BTreeMap<(u32, u32), Vec<f32>>;

const SEQUENCES: u32 = 3;
const ROWS_MAX: usize = 64;

impl Shape {
    fn rows_of(&self, sequence: u32) -> u32 {
        self.rows / (sequence + 1)
    }

    fn table_len(&self) -> usize {
        (self.start + self.rows) as usize / BLOCK_LEN + 1
    }

    fn batch(&self) -> Batch {
        let (table_len, unused) = (self.table_len(), self.start as usize / BLOCK_LEN);
        // No block lies where it would without tables; before the start any will do.
        let block = |sequence, i: usize| ((table_len - 1 - i) as u32) * SEQUENCES + sequence;
        let tables = (0..SEQUENCES)
            .flat_map(|sequence| (0..table_len).map(move |i| if i < unused { 0 } else { block(sequence, i) }));
        let tables = tables.collect();
        Batch { table_len, tables, stretched: vec![false; SEQUENCES as usize], ..Batch::default() }
    }

    /// One sequence, `chunk` rows a step.
    fn in_chunks(&self, sequence: u32, chunk: usize) -> Steps {
        let rows: Vec<_> = (0..self.rows_of(sequence)).map(|i| (sequence, self.start + i)).collect();
        rows.chunks(chunk).map(<[_]>::to_vec).collect()
    }

    /// One sequence backwards, so that no row follows the one before it, after all of it as the cells need it.
    fn alone_in_a_crowd(&self) -> Steps {
        let mut steps = self.in_chunks(0, ROWS_MAX);
        steps.extend(self.in_chunks(0, ROWS_MAX).into_iter().map(|mut step| {
            step.reverse();
            step
        }));
        steps
    }

    /// All sequences beside each other, a row or a few of each.
    fn mixed(&self, dice: &mut Dice) -> Steps {
        let mut next = [0; SEQUENCES as usize];
        let mut steps = Steps::new();
        while (0..SEQUENCES).any(|s| next[s as usize] < self.rows_of(s)) {
            let mut step = Vec::new();
            for sequence in 0..SEQUENCES {
                let most = [1, 2, 7, 21][dice.below(4)];
                let next = &mut next[sequence as usize];
                let end = self.rows_of(sequence).min(*next + most);
                step.extend((*next..end).map(|i| (sequence, self.start + i)));
                *next = end;
            }
            steps.push(step);
        }
        steps
    }

    /// True for one of a sequence's last rows, which sees nothing but cells of this test.
    fn attends(&self, sequence: u32, position: u32) -> bool {
        let is_last = position - self.start + self.attending >= self.rows_of(sequence);
        is_last && (self.start == 0 || self.window.is_some_and(|w| position + 1 >= self.start + w))
    }

    fn attended<B: Backend>(&self, be: &mut B, filled: impl Fn(&B, &[f32]) -> B::Buffer, steps: &Steps) -> Rows {
        let Shape { heads, heads_kv, head_len, window, soft_cap, .. } = *self;
        let mut batch = self.batch();
        let table_len = batch.table_len;
        // Two elements of a head are not rotated.
        let frequencies: Vec<f64> = (0..head_len / 2 - 1).map(|i| 0.3 / (1.0 + i as f64)).collect();
        let ropes = [Rope { frequencies, stretched: None, magnitude: 1.0 }];
        let shape = StepShape {
            rows_max: ROWS_MAX,
            tables_len: batch.tables.len(),
            table_len,
            cols_max: heads * head_len,
            head_count: heads,
            head_count_kv: heads_kv,
            head_len,
            context_max: table_len * BLOCK_LEN,
            choices_max: 1,
            vocab_len: 1,
        };
        be.reserve(&shape, &ropes).expect("room");
        let block_count = (table_len - self.start as usize / BLOCK_LEN) * SEQUENCES as usize;
        let cache = KvShape { layer_count: 2, head_count: heads_kv, head_len, block_count };
        let mut cache = be.cache(cache).expect("room");
        let pairs = if heads % 2 == 0 { RopePairs::Neighbours } else { RopePairs::Halves };
        let rotation = Rotation { head_count: heads, head_norms: None, eps: 1e-6, pairs, rope: 0 };
        let attention = Attention { window, soft_cap, ..Attention::full(heads, head_len) };
        let mut rows = Rows::new();
        for step in steps {
            batch.clear();
            step.iter().for_each(|(sequence, position)| batch.push(0, *position, *sequence));
            let activations = |kind: u64, width: usize| -> Vec<f32> {
                let seeds = step
                    .iter()
                    .map(|(sequence, position)| kind << 60 | u64::from(*sequence) << 32 | u64::from(*position));
                let row = |mut dice: Dice| (0..width).map(move |_| dice.below(20_001) as f32 / 10_000.0 - 1.0);
                seeds.flat_map(|seed| row(Dice::new(seed))).collect()
            };
            let mut query = filled(be, &activations(1, heads * head_len));
            let mut key = filled(be, &activations(2, heads_kv * head_len));
            let value = filled(be, &activations(3, heads_kv * head_len));
            let mut out = be.buffer(step.len() * heads * head_len).expect("room");
            be.begin_step(&batch, &ropes).expect("it does not fail");
            be.rotate_store(&mut cache, 1, &mut query, &mut key, &value, &batch, &rotation);
            if !step.iter().any(|(sequence, position)| self.attends(*sequence, *position)) {
                continue;
            }
            be.attend(&mut out, &query, &cache, 1, &batch, &attention);
            let out = be.read(&out, 0..step.len() * heads * head_len).expect("it does not fail");
            let wanted = step.iter().zip(out.chunks(heads * head_len)).filter(|((s, p), _)| self.attends(*s, *p));
            rows.extend(wanted.map(|(row, out)| (*row, out.to_vec())));
        }
        rows
    }

    fn on_cpu(&self) -> Rows {
        let mut be = CpuBackend::new(CpuOptions::default()).expect("a thread");
        let steps = (0..SEQUENCES).flat_map(|sequence| self.in_chunks(sequence, ROWS_MAX)).collect();
        let filled = |be: &CpuBackend, with: &[f32]| {
            let mut buffer = be.buffer(with.len()).expect("room");
            buffer[..with.len()].copy_from_slice(with);
            buffer
        };
        self.attended(&mut be, filled, &steps)
    }

    fn on_device(&self, seed: u64, steps: &Steps) -> Option<Rows> {
        let device = Arc::new(Watched { device: emulator::device(seed)?, last: Mutex::new(0) });
        let mut be = CudaBackend::new(device.clone());
        let filled = |be: &CudaBackend<Watched>, with: &[f32]| {
            let buffer = be.buffer(with.len()).expect("room");
            let address = *device.last.lock().expect("nothing panics under this lock");
            let bytes: Vec<u8> = with.iter().flat_map(|x| x.to_le_bytes()).collect();
            device.upload(address, &bytes).expect("it does not fail");
            buffer
        };
        Some(self.attended(&mut be, filled, steps))
    }

    /// Holds each row against the CPU, and its bits against those that it has in other company. `chunks`: rows of a step.
    fn check(&self, chunks: &[usize]) {
        let wanted = self.on_cpu();
        let mut all = vec![(1, self.mixed(&mut Dice::new(u64::from(self.rows)))), (0, self.alone_in_a_crowd())];
        all.extend(chunks.iter().map(|chunk| (*chunk as u64 % 2 * 7, self.in_chunks(0, *chunk))));
        let mut bits = Rows::new();
        for (seed, steps) in all {
            let Some(got) = self.on_device(seed, &steps) else { return };
            for (row, got) in got {
                let error = got.iter().zip(&wanted[&row]).map(|(g, w)| (g - w).abs());
                // `max` would pass over what is no number.
                let error = error.fold(0.0, |a: f32, e| if e > a || e.is_nan() { e } else { a });
                assert!(error < ERROR_MAX, "{error} at {row:?} of {self:?}");
                let before = bits.entry(row).or_insert_with(|| got.clone());
                let same = before.iter().zip(&got).all(|(b, g)| b.to_bits() == g.to_bits());
                assert!(same, "row {row:?} has other bits among {} steps: {self:?}", steps.len());
            }
        }
    }
}

const PLAIN: Shape =
    Shape { heads: 4, heads_kv: 2, head_len: 16, window: None, soft_cap: None, start: 0, rows: 40, attending: 40 };

#[test]
fn every_grouping_of_heads_and_length_of_a_head_gives_what_the_cpu_gives_in_any_company() {
    let shapes = [
        (1, 1, 10),
        (2, 2, 30),
        (4, 2, 64),
        (4, 1, 16),
        (6, 1, 80),
        (7, 1, 6),
        (8, 1, 128),
        (10, 1, 96),
        (9, 3, 160),
        (4, 2, 256),
    ];
    for (heads, heads_kv, head_len) in shapes {
        Shape { heads, heads_kv, head_len, ..PLAIN }.check(&[1, 3, 16]);
    }
}

#[test]
fn contexts_of_several_pieces_windows_and_caps_are_no_different() {
    Shape { rows: 270, attending: 270, ..PLAIN }.check(&[1, 3, 4, 16, 64]);
    Shape { rows: 523, attending: 270, heads: 3, heads_kv: 1, window: Some(262), ..PLAIN }.check(&[9, 64]);
    Shape {
        rows: 262,
        attending: 262,
        heads: 5,
        heads_kv: 1,
        head_len: 34,
        window: Some(9),
        soft_cap: Some(0.5),
        ..PLAIN
    }
    .check(&[4, 33]);
    Shape { rows: 40, heads: 1, heads_kv: 1, head_len: 64, window: Some(1), ..PLAIN }.check(&[1, 64]);
}

#[test]
fn contexts_of_thousands_of_cells_are_no_different() {
    let long = Shape { rows: 3100, attending: 20, heads: 2, heads_kv: 1, head_len: 64, ..PLAIN };
    long.check(&[16]);
    Shape { window: Some(2000), ..long }.check(&[64]);
}

/// Partial sums of all rows would be more than there is room for.
#[test]
fn far_positions_are_attended_to_in_portions() {
    Shape { heads: 8, heads_kv: 2, head_len: 128, window: Some(8), start: 150_000, rows: 40, ..PLAIN }.check(&[7, 64]);
}
