//! What the engine will do when: one small model of its steps, and the queue played through it.
//!
//! Pure: observations and a queue go in, milliseconds and probabilities come out; no clock inside.
//!
//! A step's time is taken as linear in the rows it decodes, the rows it prefills and the cells these look
//! at, fitted by recursive least squares that forgets (Haykin, Adaptive Filter Theory, ch. 9). How far whole
//! predictions were off is learned as mean and spread of the logarithm of actual over predicted, which is
//! what turns a predicted finish into a probability.

use std::collections::BinaryHeap;

/// Inputs of the fit: a constant, decode rows, prefill rows, thousands of context cells.
const TERMS: usize = 4;

/// Each observation counts this much more than the one before it.
const FORGETTING: f64 = 0.995;

/// Weight of a new outcome in the running mean and spread of errors.
const OUTCOME_WEIGHT: f64 = 0.05;

/// One step as it was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepObservation {
    pub rows_decode: u32,
    pub rows_prefill: u32,
    /// Cells attended to, over all rows.
    pub context_cells: u64,
    pub duration_us: f64,
}

/// Learned speed of one engine.
#[derive(Clone, Debug)]
pub struct EngineModel {
    weights: [f64; TERMS],
    covariance: [[f64; TERMS]; TERMS],
    observations: u64,
    /// Of ln(actual / predicted) over finished tasks.
    error_mean: f64,
    error_variance: f64,
    /// Tokens made over `max_tokens`, of tasks that did not say what they expected.
    length_ratio: f64,
}

impl EngineModel {
    /// A model that knows nothing yet but an order of magnitude: `step_us` for a step of one row.
    pub fn new(step_us: f64) -> EngineModel {
        let mut covariance = [[0.0; TERMS]; TERMS];
        for (i, row) in covariance.iter_mut().enumerate() {
            row[i] = 1e6;
        }
        EngineModel {
            weights: [step_us * 0.5, step_us * 0.5, step_us * 0.25, 0.0],
            covariance,
            observations: 0,
            error_mean: 0.0,
            error_variance: 0.25,
            length_ratio: 1.0,
        }
    }

    fn terms(rows_decode: f64, rows_prefill: f64, cells: f64) -> [f64; TERMS] {
        [1.0, rows_decode, rows_prefill, cells / 1000.0]
    }

    /// Learns from one step.
    pub fn observe(&mut self, step: StepObservation) {
        let x = Self::terms(step.rows_decode.into(), step.rows_prefill.into(), step.context_cells as f64);
        let mut gain = [0.0; TERMS];
        for (g, row) in gain.iter_mut().zip(&self.covariance) {
            *g = dot(row, &x);
        }
        let scale = FORGETTING + dot(&gain, &x);
        // A step that was held up by something else says little about the engine: cap what it may teach.
        let predicted = dot(&self.weights, &x);
        let bound = 3.0 * predicted.abs().max(50.0);
        let error = (step.duration_us - predicted).clamp(-bound, if self.observations < 8 { f64::MAX } else { bound });
        for i in 0..TERMS {
            self.weights[i] += gain[i] / scale * error;
            for j in 0..TERMS {
                self.covariance[i][j] = (self.covariance[i][j] - gain[i] * gain[j] / scale) / FORGETTING;
            }
        }
        // Without new directions the forgetting would blow the covariance up.
        for (i, row) in self.covariance.iter_mut().enumerate() {
            row[i] = row[i].min(1e6);
        }
        self.observations += 1;
    }

    /// Time of one step, microseconds; never under one.
    pub fn step_us(&self, rows_decode: f64, rows_prefill: f64, context_cells: f64) -> f64 {
        dot(&self.weights, &Self::terms(rows_decode, rows_prefill, context_cells)).max(1.0)
    }

    /// Learns from a finished task how far off its prediction was.
    pub fn observe_finish(&mut self, predicted_ms: f64, actual_ms: f64) {
        let error = (actual_ms.max(0.1) / predicted_ms.max(0.1)).ln().clamp(-3.0, 3.0);
        let off = error - self.error_mean;
        self.error_mean += OUTCOME_WEIGHT * off;
        self.error_variance = (1.0 - OUTCOME_WEIGHT) * (self.error_variance + OUTCOME_WEIGHT * off * off);
    }

    /// Learns how much of `max_tokens` tasks really take.
    pub fn observe_length(&mut self, tokens: u32, max_tokens: u32) {
        let ratio = f64::from(tokens) / f64::from(max_tokens.max(1));
        self.length_ratio += OUTCOME_WEIGHT * (ratio - self.length_ratio);
    }

    /// Tokens to reckon with for a task.
    pub fn expected_tokens(&self, said: Option<u32>, max_tokens: u32) -> u32 {
        let learned = (f64::from(max_tokens) * self.length_ratio).ceil() as u32;
        said.unwrap_or(learned).clamp(1, max_tokens.max(1))
    }

    /// Chance that something predicted to take `predicted_ms` is done within `allowed_ms`.
    pub fn chance_within(&self, predicted_ms: f64, allowed_ms: f64) -> f64 {
        if allowed_ms <= 0.0 {
            return 0.0;
        }
        let z = ((allowed_ms / predicted_ms.max(0.1)).ln() - self.error_mean) / self.error_variance.sqrt().max(0.05);
        normal_cdf(z)
    }
}

/// The engine and its queue at one moment, as far as a newcomer is concerned.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub slots_max: u32,
    pub step_rows_max: u32,
    /// Steps that each running sequence still needs, prefill included.
    pub running_steps: Vec<u32>,
    /// Cells in use by running sequences.
    pub context_cells: u64,
}

/// A task as the predictions see it.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub prompt_len: u32,
    pub expected_tokens: u32,
}

/// When a newcomer starts and finishes, milliseconds from now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forecast {
    pub start_ms: f64,
    pub finish_ms: f64,
    /// When the next waiting task leaves the queue and so frees a place in it.
    pub place_free_ms: f64,
}

/// Plays `ahead` waiting tasks of `mean` load through the slots, then the newcomer.
///
/// Tasks ahead are taken as equal: their sum is known, their order of lengths is not.
pub fn forecast(model: &EngineModel, now: &Snapshot, ahead: u32, mean: Load, newcomer: Load) -> Forecast {
    let slots = now.slots_max.max(1) as usize;
    let busy = now.running_steps.len().min(slots);
    let rows = (busy + ahead as usize + 1).min(slots) as f64;
    let cells_each = now.context_cells as f64 / busy.max(1) as f64 + f64::from(newcomer.prompt_len);
    let step_us = model.step_us(rows, 0.0, rows * cells_each);
    let prefill_us = |len: u32| {
        let rows_per_step = f64::from(now.step_rows_max).max(1.0);
        let steps = (f64::from(len) / rows_per_step).ceil().max(1.0);
        let whole =
            model.step_us(0.0, f64::from(len).min(rows_per_step), f64::from(len) * f64::from(len) / 2.0 / steps);
        whole * steps
    };
    let duration_us = |load: Load| prefill_us(load.prompt_len) + f64::from(load.expected_tokens) * step_us;
    // Min-heap by negation; times in whole microseconds so that they order.
    let mut free_at: BinaryHeap<i64> = now.running_steps.iter().map(|s| -((f64::from(*s) * step_us) as i64)).collect();
    while free_at.len() < slots {
        free_at.push(0);
    }
    let first_free_us = -*free_at.peek().expect("there is a slot") as f64;
    for _ in 0..ahead {
        let start = -free_at.pop().expect("there is a slot");
        free_at.push(-(start + duration_us(mean) as i64));
    }
    let start_us = -*free_at.peek().expect("there is a slot") as f64;
    Forecast {
        start_ms: start_us / 1000.0,
        finish_ms: (start_us + duration_us(newcomer)) / 1000.0,
        place_free_ms: first_free_us / 1000.0,
    }
}

fn dot(a: &[f64; TERMS], b: &[f64; TERMS]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Abramowitz and Stegun 7.1.26; absolute error under 2e-7.
fn normal_cdf(z: f64) -> f64 {
    let x = z.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let poly =
        t * (0.254_829_592 + t * (-0.284_496_736 + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    let erf = 1.0 - poly * (-x * x).exp();
    if z < 0.0 { 0.5 * (1.0 - erf) } else { 0.5 * (1.0 + erf) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learned() -> EngineModel {
        let mut model = EngineModel::new(1000.0);
        for n in 0..2000u32 {
            let (decode, prefill, cells) = (n % 17, n * 7 % 129, u64::from(n * 13 % 4000));
            let duration_us = 100.0 + 20.0 * f64::from(decode) + 9.0 * f64::from(prefill) + 0.05 * cells as f64;
            model.observe(StepObservation {
                rows_decode: decode,
                rows_prefill: prefill,
                context_cells: cells,
                duration_us,
            });
        }
        model
    }

    #[test]
    fn the_fit_finds_the_engine_behind_the_steps() {
        let model = learned();
        for (decode, prefill, cells) in [(1.0, 0.0, 10.0), (16.0, 0.0, 3000.0), (3.0, 125.0, 500.0)] {
            let truth = 100.0 + 20.0 * decode + 9.0 * prefill + 0.05 * cells;
            let found = model.step_us(decode, prefill, cells);
            assert!((found / truth - 1.0).abs() < 0.05, "{found} for {truth}");
        }
    }

    #[test]
    fn a_free_slot_starts_at_once_and_a_queue_costs_its_tasks() {
        let model = learned();
        let load = Load { prompt_len: 10, expected_tokens: 100 };
        let idle = Snapshot { slots_max: 2, step_rows_max: 128, ..Snapshot::default() };
        assert_eq!(forecast(&model, &idle, 0, load, load).start_ms, 0.0);
        let busy = Snapshot { running_steps: vec![50, 100], ..idle.clone() };
        let alone = forecast(&model, &busy, 0, load, load);
        let behind = forecast(&model, &busy, 4, load, load);
        assert!(alone.start_ms > 0.0 && alone.finish_ms > alone.start_ms);
        assert!(behind.start_ms > 2.0 * alone.start_ms, "{behind:?} {alone:?}");
        assert_eq!(behind.place_free_ms, alone.place_free_ms);
    }

    #[test]
    fn the_chance_falls_with_the_allowance_and_sharpens_with_experience() {
        let mut model = learned();
        let wide = model.chance_within(100.0, 150.0);
        assert!(model.chance_within(100.0, 0.0) == 0.0 && model.chance_within(100.0, 10.0) < 0.01);
        for n in 0..500 {
            model.observe_finish(100.0, 95.0 + f64::from(n % 11));
        }
        assert!(model.chance_within(100.0, 150.0) > wide.max(0.99));
        assert!(model.chance_within(100.0, 70.0) < 0.01);
        assert!((model.chance_within(100.0, 100.0) - 0.5).abs() < 0.2);
    }

    #[test]
    fn expected_tokens_are_what_was_said_or_what_was_learned() {
        let mut model = learned();
        assert_eq!(model.expected_tokens(None, 100), 100);
        (0..300).for_each(|_| model.observe_length(25, 100));
        assert!((25..=27).contains(&model.expected_tokens(None, 100)));
        assert_eq!(model.expected_tokens(Some(7), 100), 7);
        assert_eq!(model.expected_tokens(Some(700), 100), 100);
    }

    #[test]
    fn the_normal_distribution_has_its_known_values() {
        for (z, p) in [(0.0, 0.5), (1.0, 0.841_344_7), (-1.96, 0.024_997_9), (3.0, 0.998_650_1)] {
            assert!((normal_cdf(z) - p).abs() < 1e-6);
        }
    }
}
