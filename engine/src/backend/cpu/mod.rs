//! The CPU backend: what every operation means.

mod attend;

use std::ops::Range;

pub use attend::CpuCache;
pub use orchestratord_cpu::Isa;
use orchestratord_cpu::pool::{SharedSlice, WorkerPool};
use orchestratord_cpu::simd::{LANES, Simd};
use orchestratord_cpu::{Activations, Buffer, decode_row, instantiate, math, matmul};

use super::{Attention, Backend, Batch, DeviceError, KvShape, RopePairs, Rotation};
use crate::model::{Matrix, Rope, Vector};

/// Vectors of an elementwise operation that are worth waking a worker for.
const ELEMENTWISE_GRAIN: usize = 1024;

/// Goes up when a kernel gives other bits than before, or the same logits become other tokens.
const ARITHMETIC_VERSION: u32 = 4;

/// Settings of the CPU backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuOptions {
    /// Threads, the caller's included; 0 counts as 1.
    pub threads: usize,
    /// Which instruction set; none is the best one that the processor has.
    pub isa: Option<Isa>,
}

/// Computes on the calling thread and on workers of its own.
pub struct CpuBackend {
    pool: WorkerPool,
    isa: Isa,
    /// Instruction set and version.
    arithmetic: String,
    /// For each rope of the step, cosine and sine of each row and frequency.
    angles: Vec<Vec<[f32; 2]>>,
    /// Rows of the matmul under way, as whole numbers.
    activations: Activations,
}

impl CpuBackend {
    /// Starts the workers.
    ///
    /// # Errors
    ///
    /// When the system refuses a thread.
    pub fn new(options: CpuOptions) -> Result<CpuBackend, DeviceError> {
        let threads = options.threads.max(1);
        let pool = WorkerPool::new(threads).map_err(|e| DeviceError(format!("cannot start {threads} threads: {e}")))?;
        let isa = options.isa.unwrap_or_else(|| Isa::detect()[0]);
        let arithmetic = format!("{}-v{ARITHMETIC_VERSION}", isa.name());
        Ok(CpuBackend { pool, isa, arithmetic, angles: Vec::new(), activations: Activations::default() })
    }
}

impl Backend for CpuBackend {
    type Buffer = Buffer;
    type Matrix = Matrix;
    type Vector = Vector;
    type Cache = CpuCache;

    fn matrix(&self, matrix: &Matrix) -> Result<Matrix, DeviceError> {
        // The file is mapped: a handle is enough.
        Ok(matrix.clone())
    }

    fn vector(&self, vector: &Vector) -> Result<Vector, DeviceError> {
        Ok(vector.clone())
    }

    fn buffer(&self, len: usize) -> Result<Buffer, DeviceError> {
        Ok(Buffer::zeros(len))
    }

    fn cache_bytes(shape: KvShape) -> usize {
        2 * shape.layer_count
            * shape.block_count
            * shape.head_count
            * crate::BLOCK_LEN
            * shape.head_len
            * size_of::<f32>()
    }

    fn cache(&self, shape: KvShape) -> Result<CpuCache, DeviceError> {
        Ok(CpuCache::new(shape))
    }

    fn begin_step(&mut self, batch: &Batch, ropes: &[Rope]) -> Result<(), DeviceError> {
        self.angles.resize_with(ropes.len(), Vec::new);
        for (rope, angles) in ropes.iter().zip(&mut self.angles) {
            angles.clear();
            for (row, position) in batch.positions.iter().enumerate() {
                let frequencies = match &rope.stretched {
                    Some(stretched) if batch.is_stretched(row) => stretched,
                    _ => &rope.frequencies,
                };
                angles.extend(frequencies.iter().map(|frequency| {
                    let (sin, cos) = (f64::from(*position) * frequency).sin_cos();
                    [(cos * rope.magnitude) as f32, (sin * rope.magnitude) as f32]
                }));
            }
        }
        Ok(())
    }

    fn embed(&mut self, out: &mut Buffer, table: &Matrix, batch: &Batch) {
        for (token, out) in batch.tokens.iter().zip(out.chunks_exact_mut(table.cols)) {
            let row = *token as usize * table.row_bytes()..(*token as usize + 1) * table.row_bytes();
            let bytes = &table.bytes()[row];
            decode_row(self.isa, table.tensor_type, bytes, out);
        }
    }

    fn rms_norm(&mut self, out: &mut Buffer, x: &Buffer, weight: &Vector, rows: usize, eps: f32) {
        let len = weight.len();
        rms_norm_on(self.isa, &mut out[..rows * len], &x[..rows * len], weight.as_slice(), eps);
    }

    fn rms_norm_in_place(&mut self, x: &mut Buffer, weight: &Vector, count: usize, eps: f32) {
        rms_norm_in_place_on(self.isa, &mut x[..count * weight.len()], weight.as_slice(), eps);
    }

    fn add_rms_norm(&mut self, x: &mut Buffer, y: &mut Buffer, weight: &Vector, rows: usize, eps: f32) {
        let len = rows * weight.len();
        for (x, y) in x[..len].iter_mut().zip(&y[..len]) {
            *x += y;
        }
        self.rms_norm(y, x, weight, rows, eps);
    }

    fn matmul(&mut self, out: &mut Buffer, x: &Buffer, weight: &Matrix, rows: usize) {
        matmul(&self.pool, self.isa, &mut self.activations, out, x, rows, &weight.as_weight());
    }

    fn add_bias(&mut self, x: &mut Buffer, bias: &Vector, rows: usize) {
        for row in x.chunks_exact_mut(bias.len()).take(rows) {
            for (x, bias) in row.iter_mut().zip(bias.as_slice()) {
                *x += bias;
            }
        }
    }

    fn rotate_store(
        &mut self,
        cache: &mut CpuCache,
        layer: usize,
        query: &mut Buffer,
        key: &mut Buffer,
        value: &Buffer,
        batch: &Batch,
        rotation: &Rotation<'_, Vector>,
    ) {
        let Rotation { head_count, head_norms, eps, pairs, rope } = *rotation;
        let KvShape { head_count: head_count_kv, head_len, .. } = cache.shape();
        if let Some([query_norm, key_norm]) = head_norms {
            self.rms_norm_in_place(query, query_norm, batch.rows() * head_count, eps);
            self.rms_norm_in_place(key, key_norm, batch.rows() * head_count_kv, eps);
        }
        self.rope(query, batch, head_count, head_len, pairs, rope);
        self.rope(key, batch, head_count_kv, head_len, pairs, rope);
        cache.store(layer, key, value, batch);
    }

    fn attend(
        &mut self,
        out: &mut Buffer,
        query: &Buffer,
        cache: &CpuCache,
        layer: usize,
        batch: &Batch,
        attention: &Attention,
    ) {
        attend::attend(&self.pool, self.isa, out, query, cache, layer, batch, attention);
    }

    fn silu_mul(&mut self, gate: &mut Buffer, up: &Buffer, len: usize) {
        self.gated(silu_mul_on, gate, up, len);
    }

    fn gelu_mul(&mut self, gate: &mut Buffer, up: &Buffer, len: usize) {
        self.gated(gelu_mul_on, gate, up, len);
    }

    fn scale(&mut self, x: &mut Buffer, factor: f32, len: usize) {
        x[..len].iter_mut().for_each(|x| *x *= factor);
    }

    fn soft_cap(&mut self, x: &mut Buffer, cap: f32, len: usize) {
        let isa = self.isa;
        let shared = SharedSlice::new(&mut x[..len]);
        self.pool.run(len.div_ceil(LANES), ELEMENTWISE_GRAIN, |range: Range<usize>| {
            let range = range.start * LANES..(range.end * LANES).min(len);
            #[allow(unsafe_code, reason = "threads share one elementwise operation")]
            // SAFETY: the pool gives each sixteen elements to one thread.
            let x = unsafe { shared.part(range) };
            soft_cap_on(isa, x, cap);
        });
    }

    fn gather(&mut self, out: &mut Buffer, x: &Buffer, batch: &Batch, len: usize) {
        for (out, row) in out.chunks_exact_mut(len).zip(&batch.sample_rows) {
            out.copy_from_slice(&x[*row as usize * len..][..len]);
        }
    }

    fn read<'a>(&'a mut self, x: &'a Buffer, range: Range<usize>) -> Result<&'a [f32], DeviceError> {
        Ok(&x[range])
    }

    fn arithmetic(&self) -> &str {
        &self.arithmetic
    }
}

impl CpuBackend {
    /// Rotates each head of `x`.
    fn rope(&self, x: &mut Buffer, batch: &Batch, head_count: usize, head_len: usize, pairs: RopePairs, rope: usize) {
        let angles = &self.angles[rope];
        let half = angles.len() / batch.rows();
        let rows = x.chunks_exact_mut(head_count * head_len).take(batch.rows());
        for (row, angles) in rows.zip(angles.chunks_exact(half)) {
            for head in row.chunks_exact_mut(head_len) {
                for (i, [cos, sin]) in angles.iter().enumerate() {
                    let (a, b) = match pairs {
                        RopePairs::Neighbours => (2 * i, 2 * i + 1),
                        RopePairs::Halves => (i, i + half),
                    };
                    let (p, q) = (head[a], head[b]);
                    head[a] = p * cos - q * sin;
                    head[b] = p * sin + q * cos;
                }
            }
        }
    }

    /// An elementwise operation of a gated unit, on all threads.
    fn gated(&self, kernel: fn(Isa, &mut [f32], &[f32]), gate: &mut [f32], up: &[f32], len: usize) {
        let isa = self.isa;
        let up = &up[..len];
        let gate = SharedSlice::new(&mut gate[..len]);
        self.pool.run(len.div_ceil(LANES), ELEMENTWISE_GRAIN, |range: Range<usize>| {
            let range = range.start * LANES..(range.end * LANES).min(len);
            #[allow(unsafe_code, reason = "threads share one elementwise operation")]
            // SAFETY: the pool gives each sixteen elements to one thread.
            let gate = unsafe { gate.part(range.clone()) };
            kernel(isa, gate, &up[range]);
        });
    }
}

instantiate!(fn gelu_mul_on = gelu_mul(gate: &mut [f32], up: &[f32]));

#[inline(always)]
fn gelu_mul<S: Simd>(_: S, gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = math::gelu(*gate) * up;
    }
}

instantiate!(fn soft_cap_on = soft_cap(x: &mut [f32], cap: f32));

#[inline(always)]
fn soft_cap<S: Simd>(_: S, x: &mut [f32], cap: f32) {
    for x in x {
        *x = cap * math::tanh(*x / cap);
    }
}

instantiate!(fn rms_norm_on = rms_norm(out: &mut [f32], x: &[f32], weight: &[f32], eps: f32));

#[inline(always)]
fn rms_norm<S: Simd>(simd: S, out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let len = weight.len();
    for (out, x) in out.chunks_exact_mut(len).zip(x.chunks_exact(len)) {
        let scale = rms_scale(simd, x, eps);
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * weight;
        }
    }
}

instantiate!(fn rms_norm_in_place_on = rms_norm_in_place(x: &mut [f32], weight: &[f32], eps: f32));

#[inline(always)]
fn rms_norm_in_place<S: Simd>(simd: S, x: &mut [f32], weight: &[f32], eps: f32) {
    for x in x.chunks_exact_mut(weight.len()) {
        let scale = rms_scale(simd, x, eps);
        for (x, weight) in x.iter_mut().zip(weight) {
            *x = *x * scale * weight;
        }
    }
}

/// `1 / sqrt(mean(x²) + eps)`.
#[inline(always)]
fn rms_scale<S: Simd>(simd: S, x: &[f32], eps: f32) -> f32 {
    let (whole, tail) = x.as_chunks::<LANES>();
    let mut sum = simd.splat(0.0);
    for chunk in whole {
        let x = simd.load(chunk);
        sum = simd.mul_add(x, x, sum);
    }
    let mut filled = [0.0; LANES];
    filled[..tail.len()].copy_from_slice(tail);
    let x_tail = simd.load(&filled);
    sum = simd.mul_add(x_tail, x_tail, sum);
    1.0 / (simd.sum(sum) / x.len() as f32 + eps).sqrt()
}

instantiate!(fn silu_mul_on = silu_mul(gate: &mut [f32], up: &[f32]));

#[inline(always)]
fn silu_mul<S: Simd>(_: S, gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = math::silu(*gate) * up;
    }
}
