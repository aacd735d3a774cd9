//! Attention over blocks of cells.
//!
//! Keys lie transposed, `[head_len][BLOCK_LEN]` a block, so that one vector holds one key element of sixteen cells:
//! scores come out sixteen at a time and without a horizontal sum. Values lie `[BLOCK_LEN][head_len]`, filled up with
//! zeros to whole vectors.
//!
//! A score is summed over the head's elements in order; the softmax's sum has sixteen lanes, one per place in a block,
//! and a fixed tree; an output element is summed over the cells in order. All of it depends on the row's position only,
//! and with a window on where that begins, which is a function of the position.

use std::cell::RefCell;
use std::ops::Range;

use orchestratord_cpu::math::{exp_lanes, tanh};
use orchestratord_cpu::pool::{SharedSlice, WorkerPool};
use orchestratord_cpu::simd::{Isa, LANES, Simd, sum_lanes};
use orchestratord_cpu::{Buffer, instantiate};

use crate::backend::{Attention, BLOCK_LEN, Batch, KvShape};

const _: () = assert!(BLOCK_LEN == LANES, "a block of keys is read as vectors of one lane per cell");

/// Vectors of output that stay in registers: heads of up to 64 elements at once.
const OUT_VECTORS: usize = 4;

/// The KV cache in main memory.
pub struct CpuCache {
    shape: KvShape,
    /// Elements of a head's value, filled up to whole vectors.
    value_len: usize,
    keys: Buffer,
    values: Buffer,
}

impl CpuCache {
    pub(super) fn new(shape: KvShape) -> CpuCache {
        let value_len = shape.head_len.next_multiple_of(LANES);
        let blocks = shape.layer_count * shape.block_count * shape.head_count * BLOCK_LEN;
        CpuCache {
            shape,
            value_len,
            keys: Buffer::zeros(blocks * shape.head_len),
            values: Buffer::zeros(blocks * value_len),
        }
    }

    pub(super) fn shape(&self) -> KvShape {
        self.shape
    }

    /// Which head's block of all heads' blocks.
    #[inline(always)]
    fn index(&self, layer: usize, block: u32, head: usize) -> usize {
        (layer * self.shape.block_count + block as usize) * self.shape.head_count + head
    }

    #[inline(always)]
    fn key_block(&self, index: usize) -> &[f32] {
        let len = self.shape.head_len * BLOCK_LEN;
        &self.keys[index * len..][..len]
    }

    #[inline(always)]
    fn value_block(&self, index: usize) -> &[f32] {
        let len = self.value_len * BLOCK_LEN;
        &self.values[index * len..][..len]
    }

    pub(super) fn store(&mut self, layer: usize, key: &[f32], value: &[f32], batch: &Batch) {
        let KvShape { head_count, head_len, .. } = self.shape;
        for row in 0..batch.rows() {
            let position = batch.positions[row] as usize;
            let (block, cell) = (batch.table(row)[position / BLOCK_LEN], position % BLOCK_LEN);
            for head in 0..head_count {
                let index = self.index(layer, block, head);
                let from = (row * head_count + head) * head_len;
                let keys = &mut self.keys[index * head_len * BLOCK_LEN..][..head_len * BLOCK_LEN];
                for (to, from) in keys.as_chunks_mut::<BLOCK_LEN>().0.iter_mut().zip(&key[from..from + head_len]) {
                    to[cell] = *from;
                }
                let start = (index * BLOCK_LEN + cell) * self.value_len;
                self.values[start..start + head_len].copy_from_slice(&value[from..from + head_len]);
            }
        }
    }
}

thread_local! {
    /// Scores of one query head. Grows with the longest sequence by whole blocks, at worst to the model's context.
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Fills `out[row, head, head_len]` for all rows of the step.
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
pub fn attend(
    pool: &WorkerPool,
    isa: Isa,
    out: &mut [f32],
    query: &[f32],
    cache: &CpuCache,
    layer: usize,
    batch: &Batch,
    attention: &Attention,
) {
    let head_count = attention.head_count;
    let len = batch.rows() * head_count * cache.shape.head_len;
    assert!(out.len() >= len && query.len() >= len, "activations are too short for attention");
    let out = SharedSlice::new(&mut out[..len]);
    pool.run(batch.rows() * head_count, 4, |range| {
        SCORES.with_borrow_mut(|scores| {
            // Reserved for the longest table at once, so that a growing sequence does not allocate step by step.
            scores.resize(batch.table_len * BLOCK_LEN, 0.0);
            attend_on(isa, &out, query, cache, layer, batch, attention, range, scores);
        });
    });
}

instantiate!(fn attend_on = attend_items(
    out: &SharedSlice<'_>, query: &[f32], cache: &CpuCache, layer: usize, batch: &Batch, attention: &Attention,
    range: Range<usize>, scores: &mut [f32],
));

/// Some of the pairs of a row and a query head.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
fn attend_items<S: Simd>(
    simd: S,
    out: &SharedSlice<'_>,
    query: &[f32],
    cache: &CpuCache,
    layer: usize,
    batch: &Batch,
    attention: &Attention,
    range: Range<usize>,
    scores: &mut [f32],
) {
    let Attention { head_count, scale, window, soft_cap } = *attention;
    let head_len = cache.shape.head_len;
    let group = head_count / cache.shape.head_count;
    for item in range {
        let (row, head) = (item / head_count, item % head_count);
        // Blocks wholly before the window are not looked at; from here on, cells are counted from the first that is.
        let end = batch.positions[row] as usize + 1;
        let begin = window.map_or(0, |w| end.saturating_sub(w as usize));
        let table = &batch.table(row)[begin / BLOCK_LEN..end.div_ceil(BLOCK_LEN)];
        let (unseen, cells) = (begin % BLOCK_LEN, end - begin / BLOCK_LEN * BLOCK_LEN);
        let query = &query[item * head_len..][..head_len];
        let out = part(out, item * head_len..(item + 1) * head_len);
        let scores = &mut scores[..table.len() * BLOCK_LEN];
        let (blocks, _) = scores.as_chunks_mut::<BLOCK_LEN>();
        score(simd, blocks, query, cache, layer, head / group, table, scale);
        if let Some(cap) = soft_cap {
            blocks.as_flattened_mut().iter_mut().for_each(|score| *score = cap * tanh(*score / cap));
        }
        let weight = 1.0 / softmax(blocks, unseen, cells);
        weigh(simd, out, scores, cells, cache, layer, head / group, table, weight);
    }
}

/// `scores[cell] = scale * query · key[cell]`.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
fn score<S: Simd>(
    simd: S,
    scores: &mut [[f32; BLOCK_LEN]],
    query: &[f32],
    cache: &CpuCache,
    layer: usize,
    head: usize,
    table: &[u32],
    scale: f32,
) {
    let mut b = 0;
    // Eight blocks at once are as many independent chains of additions, which is what two units of four cycles take.
    while S::MANY_REGISTERS && b + 8 <= table.len() {
        score_blocks::<S, 8>(simd, scores, query, cache, layer, head, table, scale, b);
        b += 8;
    }
    while b + 4 <= table.len() {
        score_blocks::<S, 4>(simd, scores, query, cache, layer, head, table, scale, b);
        b += 4;
    }
    while b < table.len() {
        score_blocks::<S, 1>(simd, scores, query, cache, layer, head, table, scale, b);
        b += 1;
    }
}

/// The same for `N` blocks from `first` on.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
fn score_blocks<S: Simd, const N: usize>(
    simd: S,
    scores: &mut [[f32; BLOCK_LEN]],
    query: &[f32],
    cache: &CpuCache,
    layer: usize,
    head: usize,
    table: &[u32],
    scale: f32,
    first: usize,
) {
    let mut keys = [&cache.keys[..0]; N];
    for (keys, block) in keys.iter_mut().zip(&table[first..]) {
        *keys = cache.key_block(cache.index(layer, *block, head));
    }
    let mut sums = [simd.splat(0.0); N];
    for (d, q) in query.iter().enumerate() {
        let q = simd.splat(*q);
        for (sum, keys) in sums.iter_mut().zip(keys) {
            *sum = simd.mul_add(q, simd.load(lanes_at(keys, d)), *sum);
        }
    }
    for (sum, scores) in sums.into_iter().zip(&mut scores[first..]) {
        simd.store(simd.mul(sum, simd.splat(scale)), scores);
    }
}

/// Replaces scores by `exp(score - max)`, the `unseen` first and those beyond `cells` by zero, and gives their sum.
#[inline(always)]
fn softmax(scores: &mut [[f32; BLOCK_LEN]], unseen: usize, cells: usize) -> f32 {
    // Cells after the row's own may hold anything, even what another sequence left there.
    let last = scores.len() - 1;
    let used = cells - last * BLOCK_LEN;
    scores[last][used..].fill(f32::NEG_INFINITY);
    scores[0][..unseen].fill(f32::NEG_INFINITY);
    let mut most = [f32::NEG_INFINITY; BLOCK_LEN];
    for block in scores.iter() {
        for (most, score) in most.iter_mut().zip(block) {
            *most = if *score > *most { *score } else { *most };
        }
    }
    // A maximum is the same in any order.
    let most = most.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    let mut sums = [0.0; BLOCK_LEN];
    for (index, block) in scores.iter_mut().enumerate() {
        for score in block.iter_mut() {
            *score -= most;
        }
        exp_lanes(block);
        if index == 0 {
            block[..unseen].fill(0.0);
        }
        if index == last {
            block[used..].fill(0.0);
        }
        for (sum, score) in sums.iter_mut().zip(block) {
            *sum += *score;
        }
    }
    sum_lanes(&sums)
}

/// `out = weight * sum over cells of scores[cell] * value[cell]`.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
fn weigh<S: Simd>(
    simd: S,
    out: &mut [f32],
    scores: &[f32],
    cells: usize,
    cache: &CpuCache,
    layer: usize,
    head: usize,
    table: &[u32],
    weight: f32,
) {
    let vectors = cache.value_len / LANES;
    let mut v = 0;
    while v < vectors {
        match vectors - v {
            1 => weigh_vectors::<S, 1>(simd, out, v, scores, cells, cache, layer, head, table, weight),
            2 | 3 => weigh_vectors::<S, 2>(simd, out, v, scores, cells, cache, layer, head, table, weight),
            _ => weigh_vectors::<S, OUT_VECTORS>(simd, out, v, scores, cells, cache, layer, head, table, weight),
        }
        v += match vectors - v {
            1 => 1,
            2 | 3 => 2,
            _ => OUT_VECTORS,
        };
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
fn weigh_vectors<S: Simd, const N: usize>(
    simd: S,
    out: &mut [f32],
    first: usize,
    scores: &[f32],
    cells: usize,
    cache: &CpuCache,
    layer: usize,
    head: usize,
    table: &[u32],
    weight: f32,
) {
    let mut sums = [simd.splat(0.0); N];
    let mut left = cells;
    for (b, block) in table.iter().enumerate() {
        let values = cache.value_block(cache.index(layer, *block, head));
        let scores = &scores[b * BLOCK_LEN..][..left.min(BLOCK_LEN)];
        for (cell, p) in scores.iter().enumerate() {
            let p = simd.splat(*p);
            for (i, sum) in sums.iter_mut().enumerate() {
                let at = cell * cache.value_len + (first + i) * LANES;
                let value = simd.load(values[at..at + LANES].first_chunk().expect("a slice of sixteen"));
                *sum = simd.mul_add(p, value, *sum);
            }
        }
        left -= scores.len();
    }
    for (i, sum) in sums.into_iter().enumerate() {
        let mut lanes = [0.0; LANES];
        simd.store(simd.mul(sum, simd.splat(weight)), &mut lanes);
        let start = (first + i) * LANES;
        let end = (start + LANES).min(out.len());
        out[start..end].copy_from_slice(&lanes[..end - start]);
    }
}

#[inline(always)]
fn lanes_at(block: &[f32], index: usize) -> &[f32; LANES] {
    block[index * LANES..][..LANES].first_chunk().expect("a slice of sixteen")
}

#[inline(always)]
#[allow(unsafe_code, clippy::mut_from_ref, reason = "threads share the output of one attention")]
fn part<'a>(out: &'a SharedSlice<'_>, range: Range<usize>) -> &'a mut [f32] {
    // SAFETY: the range belongs to one pair of row and head, and the pool gives each pair to one thread.
    unsafe { out.part(range) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Dice;

    /// One sequence of `len` cells in shuffled blocks, one layer; rows attend from the last positions.
    fn check(isa: Isa, len: usize, head_len: usize, heads: (usize, usize), window: Option<u32>, soft_cap: Option<f32>) {
        let (head_count, head_count_kv) = heads;
        let mut dice = Dice::new(len as u64 * 31 + head_len as u64);
        let block_count = len.div_ceil(BLOCK_LEN) + 3;
        let shape = KvShape { layer_count: 1, head_count: head_count_kv, head_len, block_count };
        let mut cache = CpuCache::new(shape);
        // What an earlier sequence left behind must not be seen, not even when it is no number.
        cache.keys.fill(f32::NAN);
        let table: Vec<u32> = (0..len.div_ceil(BLOCK_LEN) as u32).map(|b| block_count as u32 - 1 - b).collect();
        let mut batch = Batch { table_len: table.len(), tables: table, ..Batch::default() };
        (0..len).for_each(|p| batch.push(0, p as u32, 0));
        let mut fill = |n: usize| -> Vec<f32> { (0..n).map(|_| 2.0 * dice.unit()).collect() };
        let key = fill(len * head_count_kv * head_len);
        let value = fill(len * head_count_kv * head_len);
        let query = fill(len * head_count * head_len);
        cache.store(0, &key, &value, &batch);
        let mut out = vec![0.0; query.len()];
        let attention = Attention { head_count, scale: 0.3, window, soft_cap };
        let pool = WorkerPool::new(2).expect("threads for a test");
        attend(&pool, isa, &mut out, &query, &cache, 0, &batch, &attention);
        for (item, out) in out.chunks_exact(head_len).enumerate() {
            let (position, head) = (item / head_count, item % head_count);
            let at = |p: usize| (p * head_count_kv + head / (head_count / head_count_kv)) * head_len;
            let seen = window.map_or(0, |w| (position + 1).saturating_sub(w as usize))..position + 1;
            let scores = seen.clone().map(|p| {
                let dot: f64 =
                    (0..head_len).map(|d| f64::from(query[item * head_len + d]) * f64::from(key[at(p) + d])).sum();
                let score = dot * f64::from(0.3f32);
                soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
            });
            let weights: Vec<f64> = scores.map(f64::exp).collect();
            let sum: f64 = weights.iter().sum();
            for (d, out) in out.iter().enumerate() {
                let wanted: f64 = seen.clone().zip(&weights).map(|(p, w)| w * f64::from(value[at(p) + d])).sum();
                let error = (f64::from(*out) - wanted / sum).abs();
                assert!(error < 2e-5, "{}: {error} at {item}, {d} of {len} cells, {attention:?}", isa.name());
            }
        }
    }

    #[test]
    fn attention_is_what_the_papers_say() {
        for isa in Isa::detect() {
            for len in [1, 2, 15, 16, 17, 70, 150] {
                check(isa, len, 16, (4, 2), None, None);
                check(isa, len, 20, (1, 1), None, Some(1.5));
                for window in [1, 2, 15, 16, 17, 33, 200] {
                    check(isa, len, 64, (3, 1), Some(window), None);
                    check(isa, len, 80, (2, 2), Some(window), Some(30.0));
                }
            }
        }
    }
}
