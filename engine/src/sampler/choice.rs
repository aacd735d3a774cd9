//! The choice of a token from a row of scores, in whole numbers: no sum depends on its order, so a device chooses the same.
//!
//! What is chosen, by the book. Scores that are no number count as minus infinity. Candidates are in order of their scores, the
//! largest first, of equals the lower id first; zeros of either sign are equal. With temperature 0 the first one is chosen. Otherwise
//! a candidate's *weight* is `round(exp((score - largest) / temperature) * 2^40)`, in the `f32` operations of [`Scale::parts`].
//!
//! 1. Top-k keeps the first `top_k` candidates.
//! 2. Top-p keeps the shortest beginning of them whose weights reach `ceil(top_p * sum of their weights)`, one at least.
//! 3. Min-p keeps those of weight `ceil(min_p * 2^40)` or more. The first one has 2^40 and always stays.
//! 4. In order of ids, the first candidate is chosen with which the running sum of the weights that are left exceeds
//!    `floor(u * sum / 2^64)`, where `u` are the first 64 bits of Philox for seed and position.
//!
//! Where every score is minus infinity it is token 0. `engine/kernels/sample.cu` does the same on a device.
//!
//! Weights of 40 bits are exact sums in 64 bits for sixteen million tokens. `exp` in `f32` is good to 2e-7; the rounding of a logit
//! of 16 alone is worth five times that.

use orchestratord_cpu::math::exp;
use orchestratord_cpu::simd::{LANES, Simd};
use orchestratord_cpu::{Isa, instantiate};

use super::SamplingParams;
use crate::philox::bits;

/// How a token is chosen from a row of scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// 0: the best. Otherwise scores are divided by it. Finite, not negative.
    pub temperature: f32,
    /// Only the best, this many; 0: all.
    pub top_k: u32,
    /// Only the best that together have this share of the weight, in parts of 2^64. None: all.
    pub top_p: Option<u64>,
    /// Only those of this weight or more.
    pub min_weight: u64,
    /// Whose random numbers.
    pub seed: u64,
    /// Which of them.
    pub position: u64,
}

/// Weight of the best candidate.
const ONE: u64 = 1 << 40;

impl Choice {
    /// What `params` want of the token at `position`, once penalties and biases are in the scores.
    pub(crate) fn new(params: &SamplingParams, position: u64) -> Choice {
        // Both products are exact, but for shares under 2^-40.
        let part = |share: f32, exponent| f64::from(share) * f64::powi(2.0, exponent);
        Choice {
            temperature: params.temperature,
            top_k: params.top_k,
            top_p: (params.top_p < 1.0).then(|| part(params.top_p, 64) as u64),
            min_weight: part(params.min_p, 40).ceil() as u64,
            seed: params.seed,
            position,
        }
    }

    /// Which part of `sum` is drawn, below it.
    fn drawn(&self, sum: u64) -> u64 {
        high_product(bits(self.seed, self.position), sum)
    }
}

/// `floor(a * b / 2^64)`.
fn high_product(a: u64, b: u64) -> u64 {
    ((u128::from(a) * u128::from(b)) >> 64) as u64
}

/// Weights that top-p keeps at least, of a sum.
fn top_p_goal(top_p: u64, sum: u64) -> u64 {
    let product = u128::from(top_p) * u128::from(sum);
    (product.div_ceil(1 << 64) as u64).max(1)
}

/// Adding 1.5 * 2^23 rounds to a whole number and leaves it in the low bits.
const ROUND: f32 = 12_582_912.0;
const TWO_20: f32 = 1_048_576.0;

/// What a row's scores are measured by: the largest, which is more than minus infinity, and the temperature.
#[derive(Clone, Copy)]
struct Scale {
    largest: f32,
    inverse: f32,
}

impl Scale {
    #[inline(always)]
    fn new(largest: f32, temperature: f32) -> Scale {
        Scale { largest, inverse: 1.0 / temperature }
    }

    /// Whole numbers `[h, l]`: the weight is `h * 2^20 + l`. Neither is beyond ±2^20, so that lanes of 32 bits add up a
    /// thousand.
    #[inline(always)]
    fn parts(self, score: f32) -> [i32; 2] {
        let x = (score - self.largest) * self.inverse;
        // What is no number is not above, either.
        let x = if x > -87.0 { x } else { -87.0 };
        // An infinite score has no distance to itself.
        let y = exp(if score == self.largest { 0.0 } else { x }) * TWO_20;
        let high = y + ROUND;
        let low = (y - (high - ROUND)) * TWO_20 + ROUND;
        [high, low].map(|x| x.to_bits().wrapping_sub(ROUND.to_bits()) as i32)
    }

    #[inline(always)]
    fn weight(self, score: f32) -> u64 {
        let [high, low] = self.parts(score);
        ((i64::from(high) << 20) + i64::from(low)) as u64
    }
}

/// Scores whose largest one is known, so that most of a vocabulary is never looked at again.
const BLOCK_LEN: usize = 128;

/// A token that may be chosen.
#[derive(Clone, Copy)]
struct Candidate {
    /// The better a candidate, the larger: see [`rank`].
    rank: u64,
    weight: u64,
}

/// Orders candidates: the bits of the score so that larger ones are larger numbers, then the id, so that lower ones are.
fn rank(score: f32, token: u32) -> u64 {
    // Minus zero becomes zero.
    let bits = (score + 0.0).to_bits();
    let key = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(key) << 32 | u64::from(!token)
}

/// Chooses tokens; its buffers serve all rows.
pub(crate) struct Chooser {
    isa: Isa,
    /// The largest score of each block, and the sum of its weights.
    maxima: Vec<f32>,
    sums: Vec<u64>,
    /// In order of ids.
    candidates: Vec<Candidate>,
    scratch: Vec<Candidate>,
    scratch_maxima: Vec<f32>,
}

impl Chooser {
    pub fn new(vocab_len: usize) -> Chooser {
        assert!(vocab_len < 1 << 24, "sums of weights have 64 bits");
        let blocks = vocab_len.div_ceil(BLOCK_LEN);
        Chooser {
            isa: Isa::detect()[0],
            maxima: Vec::with_capacity(blocks),
            sums: Vec::with_capacity(blocks),
            candidates: Vec::with_capacity(vocab_len),
            scratch: Vec::with_capacity(vocab_len),
            scratch_maxima: Vec::with_capacity(blocks),
        }
    }

    /// The token that `choice` chooses.
    pub fn choose(&mut self, scores: &[f32], choice: &Choice) -> u32 {
        self.maxima.resize(scores.len().div_ceil(BLOCK_LEN), 0.0);
        maxima_on(self.isa, scores, &mut self.maxima);
        let largest = self.maxima.iter().fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
        if largest == f32::NEG_INFINITY {
            return 0;
        }
        if choice.temperature == 0.0 {
            let block = self.maxima.iter().position(|m| *m == largest).expect("the largest is in a block");
            let start = block * BLOCK_LEN;
            let place = scores[start..].iter().position(|s| *s == largest).expect("it is the block's largest");
            return (start + place) as u32;
        }
        let scale = Scale::new(largest, choice.temperature);
        let all = choice.top_k == 0 || choice.top_k as usize >= scores.len();
        if all && choice.top_p.is_none() && choice.min_weight == 0 {
            return self.draw_of_all(scores, scale, choice);
        }
        if !all {
            self.keep_top_k(scores, scale, choice.top_k as usize);
            if let Some(top_p) = choice.top_p {
                let sum = self.candidates.iter().map(|c| c.weight).sum();
                self.keep_beginning(top_p_goal(top_p, sum));
            }
        } else if let Some(top_p) = choice.top_p {
            self.keep_top_p(scores, scale, choice.temperature, top_p);
        } else {
            // A weight is this much only above that score; a hundredth is far more than `exp` and the roundings are off by.
            let least = ((choice.min_weight as f64 - 0.5) / ONE as f64).ln() - 0.01;
            self.collect(scores, scale, lower(largest, choice.temperature, least));
        }
        self.candidates.retain(|c| c.weight >= choice.min_weight);
        let mut left = choice.drawn(self.candidates.iter().map(|c| c.weight).sum());
        for c in &self.candidates {
            if c.weight > left {
                return !(c.rank as u32);
            }
            left -= c.weight;
        }
        unreachable!("what is drawn is below the sum")
    }

    /// Draws from the whole vocabulary: finds the block, then the token in it.
    fn draw_of_all(&mut self, scores: &[f32], scale: Scale, choice: &Choice) -> u32 {
        self.sums.resize(self.maxima.len(), 0);
        sums_on(self.isa, scores, &self.maxima, scale, &mut self.sums);
        let mut left = choice.drawn(self.sums.iter().sum());
        for (block, sum) in self.sums.iter().enumerate() {
            if *sum <= left {
                left -= sum;
                continue;
            }
            for (token, score) in scores.iter().enumerate().skip(block * BLOCK_LEN) {
                let weight = scale.weight(*score);
                if weight > left {
                    return token as u32;
                }
                left -= weight;
            }
        }
        unreachable!("what is drawn is below the sum")
    }

    /// Makes candidates of what scores `least` or more and weighs anything.
    fn collect(&mut self, scores: &[f32], scale: Scale, least: f32) {
        self.candidates.clear();
        for (block, maximum) in self.maxima.iter().enumerate() {
            if *maximum < least {
                continue;
            }
            let start = block * BLOCK_LEN;
            let end = (start + BLOCK_LEN).min(scores.len());
            for (place, score) in scores[start..end].iter().enumerate().filter(|(_, score)| **score >= least) {
                let weight = scale.weight(*score);
                if weight > 0 {
                    self.candidates.push(Candidate { rank: rank(*score, (start + place) as u32), weight });
                }
            }
        }
    }

    /// Candidates become the `top_k` best. What weighs nothing is never drawn, so it need not be among them.
    fn keep_top_k(&mut self, scores: &[f32], scale: Scale, top_k: usize) {
        // As many blocks have a score so large, and so as many scores are.
        let least = if top_k <= self.maxima.len() {
            self.scratch_maxima.clone_from(&self.maxima);
            *self.scratch_maxima.select_nth_unstable_by(top_k - 1, |a, b| b.total_cmp(a)).1
        } else {
            f32::NEG_INFINITY
        };
        self.collect(scores, scale, least);
        if self.candidates.len() > top_k {
            self.scratch.clone_from(&self.candidates);
            let last = self.scratch.select_nth_unstable_by(top_k - 1, better_first).1.rank;
            self.candidates.retain(|c| c.rank >= last);
        }
    }

    /// Candidates become the shortest beginning of the vocabulary that has `top_p` of its weight.
    fn keep_top_p(&mut self, scores: &[f32], scale: Scale, temperature: f32, top_p: u64) {
        self.sums.resize(self.maxima.len(), 0);
        sums_on(self.isa, scores, &self.maxima, scale, &mut self.sums);
        let goal = top_p_goal(top_p, self.sums.iter().sum());
        // As a rule few are needed.
        for depth in [-3.0, -8.0, f64::NEG_INFINITY] {
            self.collect(scores, scale, lower(scale.largest, temperature, depth));
            if self.candidates.iter().map(|c| c.weight).sum::<u64>() >= goal {
                break;
            }
        }
        self.keep_beginning(goal);
    }

    /// Keeps the shortest beginning of the candidates whose weights reach `goal`, which all of them do.
    fn keep_beginning(&mut self, mut goal: u64) {
        self.scratch.clone_from(&self.candidates);
        let mut part = &mut self.scratch[..];
        // The last that is kept is in `part`, and what is better than all of `part` is taken from the goal.
        while part.len() > 32 {
            let middle = part.len() / 2;
            part.select_nth_unstable_by(middle, better_first);
            let better: u64 = part[..middle].iter().map(|c| c.weight).sum();
            if better >= goal {
                part = &mut part[..middle];
            } else {
                goal -= better;
                part = &mut part[middle..];
            }
        }
        part.sort_unstable_by(better_first);
        for c in part.iter() {
            if c.weight >= goal {
                let last = c.rank;
                self.candidates.retain(|c| c.rank >= last);
                return;
            }
            goal -= c.weight;
        }
        unreachable!("all candidates together reach the goal")
    }
}

fn better_first(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.rank.cmp(&a.rank)
}

/// The score that is `depth` temperatures from the largest. Rounded once, so every score at or above the exact one is at or
/// above this one.
fn lower(largest: f32, temperature: f32, depth: f64) -> f32 {
    (f64::from(largest) + f64::from(temperature) * depth) as f32
}

instantiate!(fn maxima_on = maxima(scores: &[f32], out: &mut [f32]));

/// The largest of each block; what is no number is passed over.
#[inline(always)]
fn maxima<S: Simd>(_: S, scores: &[f32], out: &mut [f32]) {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    for (out, block) in out.iter_mut().zip(scores.chunks(BLOCK_LEN)) {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (whole, tail) = block.as_chunks::<LANES>();
        for chunk in whole {
            for (lane, score) in lanes.iter_mut().zip(chunk) {
                *lane = larger(*lane, *score);
            }
        }
        *out = lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |a, b| larger(a, *b));
    }
}

instantiate!(fn sums_on = sums(scores: &[f32], maxima: &[f32], scale: Scale, out: &mut [u64]));

/// The weights of each block together.
#[inline(always)]
fn sums<S: Simd>(_: S, scores: &[f32], maxima: &[f32], scale: Scale, out: &mut [u64]) {
    for ((out, block), maximum) in out.iter_mut().zip(scores.chunks(BLOCK_LEN)).zip(maxima) {
        *out = 0;
        // Half of 2^-40 is at -28.4.
        if (maximum - scale.largest) * scale.inverse < -29.0 {
            continue;
        }
        let (whole, tail) = block.as_chunks::<LANES>();
        let (mut high, mut low) = ([0i32; LANES], [0i32; LANES]);
        for chunk in whole {
            for lane in 0..LANES {
                let parts = scale.parts(chunk[lane]);
                high[lane] += parts[0];
                low[lane] += parts[1];
            }
        }
        let sum = |lanes: [i32; LANES]| lanes.iter().map(|x| i64::from(*x)).sum::<i64>();
        *out = ((sum(high) << 20) + sum(low)) as u64;
        *out += tail.iter().map(|score| scale.weight(*score)).sum::<u64>();
    }
}

#[cfg(test)]
mod tests;
