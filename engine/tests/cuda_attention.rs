//! Rotation, the store of keys and values, and attention on the emulated device, against slow passes in `f64`, and against
//! themselves: a row's bits must not depend on which rows share its step.

mod emulator;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use emulator::Emulator;
use orchestratord_engine::backend::cuda::{Arguments, CudaBackend, Device, Use};
use orchestratord_engine::backend::{Attention, Backend, Batch, KvShape, RopePairs, Rotation, StepShape};
use orchestratord_engine::testing::Dice;
use orchestratord_engine::{BLOCK_LEN, DeviceError, Rope};

/// Outputs are averages of numbers below one. The slow pass sees the cells as they were rounded, so that what is held here is
/// the kernel's arithmetic.
const ERROR_MAX: f64 = 4e-6;
/// Of a rotated number before it is rounded to a cell.
const ROTATION_ERROR_MAX: f64 = 1e-6;

/// An emulated device that says where it put what it was asked for last, and the cache before.
struct Watched {
    device: Arc<Emulator>,
    last: Mutex<u64>,
    cache: Mutex<Vec<u64>>,
}

impl Device for Watched {
    type Host = Vec<f32>;

    fn alloc(&self, bytes: usize, purpose: Use) -> Result<u64, DeviceError> {
        let address = self.device.alloc(bytes, purpose)?;
        *self.last.lock().expect("nothing panics under this lock") = address;
        if purpose == Use::Kv {
            self.cache.lock().expect("nothing panics under this lock").push(address);
        }
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

    fn processors(&self) -> usize {
        self.device.processors()
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
    /// Largest of the numbers that queries, keys and values are made of.
    size: f32,
}

/// The rows of each step: sequence and position.
type Steps = Vec<Vec<(u32, u32)>>;
/// What attention gives each of them.
type Rows = BTreeMap<(u32, u32), Vec<f32>>;
/// Keys, then values of the cells of a sequence's rows, all heads of each.
type Cells = BTreeMap<(u32, u32), [Vec<f64>; 2]>;

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
        let tables = (0..SEQUENCES)
            .flat_map(|sequence| (0..table_len).map(move |i| if i < unused { 0 } else { self.block(sequence, i) }));
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

    /// The block of a sequence's cells from `i` times its length on.
    fn block(&self, sequence: u32, i: usize) -> u32 {
        ((self.table_len() - 1 - i) as u32) * SEQUENCES + sequence
    }

    fn pairs(&self) -> RopePairs {
        if self.heads.is_multiple_of(2) { RopePairs::Neighbours } else { RopePairs::Halves }
    }

    /// Two elements of a head are not rotated.
    fn frequencies(&self) -> Vec<f64> {
        (0..self.head_len / 2 - 1).map(|i| 0.3 / (1.0 + i as f64)).collect()
    }

    /// Queries, keys or values of a row before anything was done to them.
    fn activations(&self, (sequence, position): (u32, u32), kind: u64) -> Vec<f32> {
        let heads = if kind == 1 { self.heads } else { self.heads_kv };
        let mut dice = Dice::new(kind << 60 | u64::from(sequence) << 32 | u64::from(position));
        (0..heads * self.head_len).map(|_| (dice.below(20_001) as f32 / 10_000.0 - 1.0) * self.size).collect()
    }

    /// Queries or keys as they should be rotated, values as they are.
    fn rotated(&self, row: (u32, u32), kind: u64) -> Vec<f64> {
        let mut all: Vec<f64> = self.activations(row, kind).into_iter().map(f64::from).collect();
        if kind == 3 {
            return all;
        }
        let frequencies = self.frequencies();
        for head in all.chunks_mut(self.head_len) {
            for (i, frequency) in frequencies.iter().enumerate() {
                let [first, second] = match self.pairs() {
                    RopePairs::Neighbours => [2 * i, 2 * i + 1],
                    RopePairs::Halves => [i, i + frequencies.len()],
                };
                let (sin, cos) = (f64::from(row.1) * frequency).sin_cos();
                [head[first], head[second]] =
                    [head[first] * cos - head[second] * sin, head[first] * sin + head[second] * cos];
            }
        }
        all
    }

    /// What attention should give a row that sees these cells.
    fn slow(&self, row: (u32, u32), cells: &Cells) -> Vec<f64> {
        let (len, group) = (self.head_len, self.heads / self.heads_kv);
        let query = self.rotated(row, 1);
        let first = self.window.map_or(0, |w| (row.1 + 1).saturating_sub(w));
        let seen: Vec<&[Vec<f64>; 2]> = (first..=row.1).map(|position| &cells[&(row.0, position)]).collect();
        let mut out = Vec::with_capacity(query.len());
        for (head, query) in query.chunks(len).enumerate() {
            let place = head / group * len..(head / group + 1) * len;
            let scores = seen.iter().map(|[key, _]| {
                let dot: f64 = query.iter().zip(&key[place.clone()]).map(|(q, k)| q * k).sum();
                let score = dot * f64::from(1.0 / (len as f32).sqrt());
                self.soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
            });
            let scores: Vec<f64> = scores.collect();
            let most = scores.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
            let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
            let total: f64 = weights.iter().sum();
            let of = |d: usize| seen.iter().zip(&weights).map(|([_, value], w)| value[d] * w).sum::<f64>() / total;
            out.extend(place.map(of));
        }
        out
    }

    /// Runs the steps on a device whose threads take turns as `seed` says: what attention gives, and all cells at the end.
    fn on_device(&self, seed: u64, processors: usize, steps: &Steps) -> Option<(Rows, Cells)> {
        let Shape { heads, heads_kv, head_len, window, soft_cap, .. } = *self;
        let device = emulator::with_processors(seed, processors)?;
        let device = Arc::new(Watched { device, last: Mutex::new(0), cache: Mutex::new(Vec::new()) });
        let mut be = CudaBackend::new(device.clone());
        let filled = |be: &CudaBackend<Watched>, with: &[f32]| {
            let buffer = be.buffer(with.len()).expect("room");
            let address = *device.last.lock().expect("nothing panics under this lock");
            let bytes: Vec<u8> = with.iter().flat_map(|x| x.to_le_bytes()).collect();
            device.upload(address, &bytes).expect("it does not fail");
            buffer
        };
        let mut batch = self.batch();
        let table_len = batch.table_len;
        let ropes = [Rope { frequencies: self.frequencies(), stretched: None, magnitude: 1.0 }];
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
        let mut cache =
            be.cache(KvShape { layer_count: 2, head_count: heads_kv, head_len, block_count }).expect("room");
        let places = device.cache.lock().expect("nothing panics under this lock").clone();
        let cell_len = head_len.next_multiple_of(16);
        let layer_len = block_count * heads_kv * BLOCK_LEN * cell_len;
        if self.start > 0 {
            // The first rows see cells that no row of this test has written: what is there must be numbers.
            places.iter().for_each(|at| device.upload(*at, &vec![0x35; 4 * layer_len]).expect("it does not fail"));
        }
        let rotation = Rotation { head_count: heads, head_norms: None, eps: 1e-6, pairs: self.pairs(), rope: 0 };
        let attention = Attention { window, soft_cap, ..Attention::full(heads, head_len) };
        let mut rows = Rows::new();
        for step in steps {
            batch.clear();
            step.iter().for_each(|(sequence, position)| batch.push(0, *position, *sequence));
            let [query, key, value] = [1, 2, 3].map(|kind| {
                let all: Vec<f32> = step.iter().flat_map(|row| self.activations(*row, kind)).collect();
                filled(&be, &all)
            });
            let (mut query, mut key) = (query, key);
            let mut out = be.buffer(step.len() * heads * head_len).expect("room");
            be.begin_step(&batch, &ropes).expect("it does not fail");
            be.rotate_store(&mut cache, 1, &mut query, &mut key, &value, &batch, &rotation);
            if !step.iter().any(|(sequence, position)| self.attends(*sequence, *position)) {
                be.read(&out, 0..0).expect("it does not fail");
                continue;
            }
            be.attend(&mut out, &query, &cache, 1, &batch, &attention);
            let out = be.read(&out, 0..step.len() * heads * head_len).expect("it does not fail");
            let wanted = step.iter().zip(out.chunks(heads * head_len)).filter(|((s, p), _)| self.attends(*s, *p));
            rows.extend(wanted.map(|(row, out)| (*row, out.to_vec())));
        }
        let [keys, values] = [places[0], places[1]].map(|address| {
            let mut bytes = vec![0; 2 * layer_len];
            device.download(address + 2 * layer_len as u64, &mut bytes).expect("it does not fail");
            bytes
        });
        let cell = |bytes: &[u8], (sequence, position): (u32, u32)| -> Vec<f64> {
            let block = self.block(sequence, position as usize / BLOCK_LEN) as usize;
            let of_head = |head: usize| {
                let start = ((block * heads_kv + head) * BLOCK_LEN + position as usize % BLOCK_LEN) * cell_len * 2;
                bytes[start..start + 2 * head_len].as_chunks::<2>().0
            };
            (0..heads_kv).flat_map(of_head).map(|b| half(u16::from_le_bytes(*b))).collect()
        };
        let stored = steps.iter().flatten().map(|row| (*row, [cell(&keys, *row), cell(&values, *row)]));
        Some((rows, stored.collect()))
    }

    /// Holds each cell and each row against the slow pass, and a row's bits against those that it has in other company. `chunks`:
    /// rows of a step.
    fn check(&self, chunks: &[usize]) {
        let mixed = self.mixed(&mut Dice::new(u64::from(self.rows)));
        let Some((mut bits, cells)) = self.on_device(1, 1, &mixed) else { return };
        for (row, [key, value]) in &cells {
            for (kind, cell) in [(2, key), (3, value)] {
                for (got, wanted) in cell.iter().zip(self.rotated(*row, kind)) {
                    let wanted = wanted.clamp(-HALF_MAX, HALF_MAX);
                    // Half a unit of the last of eleven bits, of subnormal numbers of 2^-24.
                    let rounding = wanted.abs() * 2f64.powi(-11) + 2f64.powi(-25);
                    let error = (got - wanted).abs();
                    let bound = rounding + ROTATION_ERROR_MAX * f64::from(self.size);
                    assert!(error <= bound, "cell {row:?} has {got} for {wanted}: {self:?}");
                }
            }
        }
        for (row, got) in &bits {
            let error = got.iter().zip(self.slow(*row, &cells)).map(|(g, w)| (f64::from(*g) - w).abs());
            // `max` would pass over what is no number.
            let error = error.fold(0.0, |a: f64, e| if e > a || e.is_nan() { e } else { a });
            let bound = ERROR_MAX * f64::from(self.size).min(HALF_MAX);
            assert!(error <= bound, "{error} at {row:?} of {self:?}");
        }
        // On a small device a block of threads goes through all pieces of a context, on a large one it has one.
        let mut all = vec![(0, 1, self.alone_in_a_crowd())];
        let devices = [(0, 132), (7, 1)].into_iter().cycle();
        all.extend(chunks.iter().zip(devices).map(|(chunk, (seed, size))| (seed, size, self.in_chunks(0, *chunk))));
        for (seed, processors, steps) in all {
            let (rows, _) = self.on_device(seed, processors, &steps).expect("as before");
            for (row, got) in rows {
                let before = bits.entry(row).or_insert_with(|| got.clone());
                let same = before.iter().zip(&got).all(|(b, g)| b.to_bits() == g.to_bits());
                assert!(same, "row {row:?} has other bits among {} steps: {self:?}", steps.len());
            }
        }
    }
}

/// The largest number of half precision.
const HALF_MAX: f64 = 65504.0;

/// A number of half precision.
fn half(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let magnitude = match exponent {
        0 => fraction * 2f64.powi(-24),
        31 => f64::NAN,
        _ => (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15),
    };
    if bits >> 15 == 0 { magnitude } else { -magnitude }
}

const PLAIN: Shape = Shape {
    heads: 4,
    heads_kv: 2,
    head_len: 16,
    window: None,
    soft_cap: None,
    start: 0,
    rows: 40,
    attending: 40,
    size: 1.0,
};

#[test]
fn every_grouping_of_heads_and_length_of_a_head_gives_what_the_slow_pass_gives_in_any_company() {
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
    Shape { rows: 270, attending: 270, ..PLAIN }.check(&[1, 3, 16, 64]);
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
    let long = Shape { rows: 2200, attending: 20, heads: 2, heads_kv: 1, ..PLAIN };
    // More pieces than are put together at once.
    Shape { rows: 4400, attending: 4, ..long }.check(&[16]);
    Shape { window: Some(1400), head_len: 64, ..long }.check(&[64]);
}

/// Partial sums of all rows would be more than there is room for.
#[test]
fn far_positions_are_attended_to_in_portions() {
    Shape { heads: 8, heads_kv: 2, head_len: 128, window: Some(8), start: 150_000, rows: 40, ..PLAIN }.check(&[7, 64]);
}

/// Cells have eleven bits and end at 65504; queries have all that `f32` has, from the smallest to the largest.
#[test]
fn what_is_beyond_half_precision_is_its_largest_number_and_what_is_tiny_is_no_different() {
    for size in [1e6, 3e5, 1e-3, 1e-6, 1e-30] {
        Shape { size, rows: 20, attending: 20, ..PLAIN }.check(&[1, 16]);
    }
}
