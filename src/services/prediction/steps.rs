//! How long a step takes: linear in its rows and the cells they look at, learned from the engine's own steps.
//!
//! Two learners, for two things that change at different speeds. The shape of a step belongs to the model and the machine:
//! recursive least squares of relative errors that hardly forget (Haykin, Adaptive Filter Theory, ch. 9). The pace belongs to
//! the moment, for the machine has other things to do as well: a factor on the whole fit, a running mean of actual over
//! fitted. What neither explains is kept as a spread.

/// Inputs of the fit: a constant, decode rows, prefill rows, thousands of cells.
const TERMS: usize = 4;

/// Each observation counts this much less than the one after it. Faster, and a few hundred steps of long contexts would
/// leave so little known of short ones that the first held-up step there were believed outright.
const FORGETTING: f64 = 0.9995;

/// Observations that find out the order of magnitude, and say nothing of pace and spread.
const FREE: u64 = 8;

/// Weight of a new step in the running pace, and how far off one step may be for it. On a machine with too much to do most
/// steps are as fast as ever, and a few take ten times as long: cut off at three times the fit, half of it was lost.
const PACE_WEIGHT: f64 = 0.02;
const OFF_MAX: f64 = 7.0;

/// The first steps in earnest weigh more, as in a mean that begins with this many at the pace of the trials: what was tried
/// out while nobody wanted anything may say little of it, and fifty steps are too many to find that out.
const PACE_STEPS_BEFORE: f64 = 10.0;

/// How much of the pace is kept from the shape, as a power. All of it, and both could drift apart without end, for only their
/// product is seen; nothing of it, and a machine that turned slow would bend the shape where steps are seen.
const PACE_KEPT_APART: f64 = 0.5;

/// Above this ratio to the fit a step teaches the shape the less the farther off it is.
const TAUGHT_MAX: f64 = 1.5;

/// What is not known yet, as variances in units of a step's own noise: each term may be about as large as a step. Beyond
/// this nothing is forgotten. Were it larger, a few noisy steps of short contexts would say anything of long ones.
const UNKNOWN: [f64; TERMS] = [100.0, 100.0, 100.0, 25.0];

/// How far what was learned of one model may be off for the next, once it is scaled.
const PRIOR_VARIANCE: f64 = 0.1;

/// Weight of a new residual in the running spread.
const SPREAD_WEIGHT: f64 = 0.02;

/// One step as it was, or several alike as their mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepObservation {
    pub rows_decode: u32,
    pub rows_prefill: u32,
    /// Cells attended to, over all rows.
    pub context_cells: u64,
    pub duration_us: f64,
}

/// What is known of one engine's steps.
#[derive(Clone, Debug, PartialEq)]
pub struct StepModel {
    weights: [f64; TERMS],
    covariance: [[f64; TERMS]; TERMS],
    observations: u64,
    /// Observations since the last trial.
    in_earnest: u64,
    /// Actual over fitted, lately.
    pace: f64,
    /// Of (actual - predicted) / predicted.
    variance: f64,
    /// The step whose noise is the unit of the covariance: a step's noise is a share of its time.
    unit_us: f64,
    /// The fastest step lately. Whatever a fit of a few noisy steps says of shapes it has not seen, none is faster.
    fastest_us: f64,
}

/// The fastest step is forgotten this slowly, for an engine may become slower.
const FASTEST_DRIFT: f64 = 1.00005;

impl StepModel {
    /// Knows nothing yet but an order of magnitude: `step_us` for a step of one row.
    pub fn new(step_us: f64) -> StepModel {
        let mut covariance = [[0.0; TERMS]; TERMS];
        for (i, row) in covariance.iter_mut().enumerate() {
            row[i] = UNKNOWN[i];
        }
        let weights = [step_us * 0.5, step_us * 0.5, step_us * 0.25, 0.0];
        StepModel {
            weights,
            covariance,
            observations: 0,
            in_earnest: 0,
            pace: 1.0,
            variance: 0.04,
            unit_us: step_us.max(1.0),
            fastest_us: step_us,
        }
    }

    /// What to assume of another model: the same shape, scaled so that its first step of these rows and cells fits, and
    /// open to be taught otherwise.
    pub fn as_prior(&self, [rows_decode, rows_prefill]: [f64; 2], cells: f64, step_us: f64) -> StepModel {
        let mut next = StepModel::new(step_us);
        let scale = step_us / self.step_us(rows_decode, rows_prefill, cells);
        next.weights = self.weights.map(|w| w * scale);
        next.covariance.iter_mut().flatten().for_each(|c| *c *= PRIOR_VARIANCE);
        next
    }

    /// A step that nobody waited for.
    pub fn observe_trial(&mut self, step: StepObservation) {
        self.observe(step);
        self.in_earnest = 0;
    }

    pub fn observe(&mut self, step: StepObservation) {
        let x = terms(step.rows_decode.into(), step.rows_prefill.into(), step.context_cells as f64);
        let mut gain = [0.0; TERMS];
        for (g, row) in gain.iter_mut().zip(&self.covariance) {
            *g = dot(row, &x);
        }
        let fitted = dot(&self.weights, &x);
        // The shape is what is left of a step without the pace of the moment, or nearly so.
        let taught = step.duration_us / self.pace.powf(PACE_KEPT_APART);
        // Noise is a share of a step's time. A step that something held up is noisier: the farther off, the less it teaches.
        let noise = (fitted.max(taught / TAUGHT_MAX).max(1.0) / self.unit_us).powi(2);
        // With a direction that is unknown already nothing is forgotten, or it would grow without bound.
        let unknown = (0..TERMS).any(|i| self.covariance[i][i] >= UNKNOWN[i]);
        let forgetting = if unknown { 1.0 } else { FORGETTING };
        let scale = forgetting * noise + dot(&gain, &x);
        let error = taught - fitted;
        for i in 0..TERMS {
            self.weights[i] += gain[i] / scale * error;
            for j in 0..TERMS {
                self.covariance[i][j] = (self.covariance[i][j] - gain[i] * gain[j] / scale) / forgetting;
            }
        }
        self.observations += 1;
        self.in_earnest += 1;
        self.fastest_us = (self.fastest_us * FASTEST_DRIFT).min(step.duration_us);
        if self.observations > FREE {
            let predicted = (fitted * self.pace).max(self.fastest_us * 0.5);
            let off = (step.duration_us / predicted - 1.0).min(OFF_MAX);
            self.variance += SPREAD_WEIGHT * (off.min(1.0).powi(2) - self.variance);
            self.pace *= 1.0 + off * PACE_WEIGHT.max(1.0 / (self.in_earnest as f64 + PACE_STEPS_BEFORE));
        }
    }

    /// Time of one step, microseconds; never under one.
    pub fn step_us(&self, rows_decode: f64, rows_prefill: f64, context_cells: f64) -> f64 {
        let fitted = dot(&self.weights, &terms(rows_decode, rows_prefill, context_cells)) * self.pace;
        // More work takes no less time, whatever noise says.
        fitted.max(self.weights[0] * self.pace).max(self.fastest_us).max(1.0)
    }

    /// Standard deviation of a step's time over its mean.
    pub fn spread(&self) -> f64 {
        self.variance.sqrt()
    }

    /// Prefill rows that fit beside `rows_decode` into a step of `limit_us`, when the first of them stands at `position`
    /// of its sequence; at least one, at most `most`.
    pub fn prefill_rows_within(
        &self,
        limit_us: f64,
        rows_decode: u32,
        decode_cells: u64,
        position: u32,
        most: u32,
    ) -> u32 {
        let fits = |rows: u32| {
            let cells = prefill_cells(position.into(), rows.into());
            self.step_us(rows_decode.into(), rows.into(), decode_cells as f64 + cells) <= limit_us
        };
        let (mut low, mut high) = (1, most.max(1));
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if fits(middle) { low = middle } else { high = middle - 1 }
        }
        low
    }
}

/// Cells that `rows` consecutive rows look at, the first of them at `position`.
pub fn prefill_cells(position: f64, rows: f64) -> f64 {
    rows * (position + (rows + 1.0) / 2.0)
}

fn terms(rows_decode: f64, rows_prefill: f64, cells: f64) -> [f64; TERMS] {
    [1.0, rows_decode, rows_prefill, cells / 1000.0]
}

fn dot(a: &[f64; TERMS], b: &[f64; TERMS]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truth(decode: f64, prefill: f64, cells: f64) -> f64 {
        100.0 + 20.0 * decode + 9.0 * prefill + 0.05 * cells
    }

    fn learned() -> StepModel {
        let mut model = StepModel::new(1000.0);
        for n in 0..2000u32 {
            let (rows_decode, rows_prefill, context_cells) = (n % 17, n * 7 % 129, u64::from(n * 13 % 4000));
            let duration_us = truth(rows_decode.into(), rows_prefill.into(), context_cells as f64);
            model.observe(StepObservation { rows_decode, rows_prefill, context_cells, duration_us });
        }
        model
    }

    #[test]
    fn the_fit_finds_the_engine_behind_the_steps() {
        let model = learned();
        for (decode, prefill, cells) in [(1.0, 0.0, 10.0), (16.0, 0.0, 3000.0), (3.0, 125.0, 500.0)] {
            let found = model.step_us(decode, prefill, cells);
            assert!((found / truth(decode, prefill, cells) - 1.0).abs() < 0.02, "{found}");
        }
        assert!(model.spread() < 0.02);
    }

    /// An hour of the same step must not make the fit forget what it does not see.
    #[test]
    fn what_is_not_seen_for_long_is_not_forgotten() {
        let mut model = learned();
        for _ in 0..100_000 {
            let duration_us = truth(1.0, 0.0, 50.0);
            model.observe(StepObservation { rows_decode: 1, rows_prefill: 0, context_cells: 50, duration_us });
        }
        let found = model.step_us(16.0, 64.0, 3000.0);
        assert!((found / truth(16.0, 64.0, 3000.0) - 1.0).abs() < 0.05, "{found}");
    }

    #[test]
    fn another_model_begins_with_the_shape_of_the_one_before() {
        let next = learned().as_prior([1.0, 0.0], 10.0, 10.0 * truth(1.0, 0.0, 10.0));
        let found = next.step_us(16.0, 64.0, 3000.0);
        assert!((found / (10.0 * truth(16.0, 64.0, 3000.0)) - 1.0).abs() < 0.05, "{found}");
    }

    #[test]
    fn a_chunk_is_the_longest_that_fits_and_one_row_at_least() {
        let model = learned();
        for (limit_us, position) in [(700.0, 0), (700.0, 8000), (2000.0, 100), (1.0, 0), (1e9, 5)] {
            let rows = model.prefill_rows_within(limit_us, 10, 500, position, 128);
            let time =
                |rows: u32| model.step_us(10.0, rows.into(), 500.0 + prefill_cells(position.into(), rows.into()));
            assert!(rows == 1 || time(rows) <= limit_us);
            assert!(rows == 128 || time(rows + 1) > limit_us, "{rows} rows in {limit_us}");
        }
    }

    /// A long task ends and a short one begins while something else takes the processor: a handful of slow steps, at a context
    /// length that has not been seen for thousands of steps, doubled what the rest was predicted to take.
    #[test]
    fn a_few_held_up_steps_change_little() {
        let mut model = StepModel::new(2000.0);
        let time = |cells: f64| 2000.0 + 0.2 * cells;
        let mut see = |cells: u64, duration_us| {
            model.observe(StepObservation { rows_decode: 1, rows_prefill: 0, context_cells: cells, duration_us });
        };
        (10..1900).for_each(|cells| see(cells, time(cells as f64)));
        (10..14).for_each(|cells| see(cells, 4.0 * time(cells as f64)));
        let off = model.step_us(1.0, 0.0, 950.0) / time(950.0);
        assert!((0.95..1.3).contains(&off), "{off}");
    }

    #[test]
    fn a_machine_that_turns_slow_is_followed_and_part_of_it_is_believed_of_other_steps() {
        let mut model = learned();
        for n in 0..200u32 {
            let duration_us = 2.0 * truth(1.0, 0.0, f64::from(n));
            model.observe(StepObservation { rows_decode: 1, rows_prefill: 0, context_cells: n.into(), duration_us });
        }
        let slower = |decode, prefill, cells| model.step_us(decode, prefill, cells) / truth(decode, prefill, cells);
        assert!((slower(1.0, 0.0, 50.0) - 2.0).abs() < 0.1, "{}", slower(1.0, 0.0, 50.0));
        for (decode, prefill, cells) in [(16.0, 0.0, 3000.0), (3.0, 125.0, 500.0)] {
            let elsewhere = slower(decode, prefill, cells);
            assert!((1.1..2.1).contains(&elsewhere), "{elsewhere}");
        }
    }

    #[test]
    fn what_trials_did_not_know_is_learned_within_twenty_steps() {
        let mut model = StepModel::new(1000.0);
        let step = |rows_decode, context_cells: u32, factor| StepObservation {
            rows_decode,
            rows_prefill: 0,
            context_cells: context_cells.into(),
            duration_us: factor * truth(rows_decode.into(), 0.0, context_cells.into()),
        };
        (0..60).for_each(|n| model.observe_trial(step(1 + n % 8, n, 1.0)));
        (0..20).for_each(|n| model.observe(step(1, n, 1.5)));
        let off = model.step_us(1.0, 0.0, 20.0) / (1.5 * truth(1.0, 0.0, 20.0));
        assert!((0.9..1.1).contains(&off), "{off}");
    }

    /// Other programs take the processor for a while, again and again: what counts is how long all steps together take.
    #[test]
    fn on_a_busy_machine_the_mean_is_learned_and_not_the_usual_step() {
        let mut model = learned();
        let time = |n: u32| truth(1.0, 0.0, n.into()) * if n.is_multiple_of(5) { 7.0 } else { 1.0 };
        for n in 0..1000u32 {
            let (context_cells, duration_us) = (n.into(), time(n));
            model.observe(StepObservation { rows_decode: 1, rows_prefill: 0, context_cells, duration_us });
        }
        let mean = (0..1000).map(time).sum::<f64>() / 1000.0;
        let off = model.step_us(1.0, 0.0, 500.0) / mean;
        assert!((0.75..1.35).contains(&off), "{off}");
    }

    /// One slot and short contexts: what a stalled step taught of long ones was that they take no time.
    #[test]
    fn no_step_is_predicted_to_be_faster_than_any_was() {
        let mut model = StepModel::new(900.0);
        let mut see = |rows_decode, rows_prefill, context_cells, duration_us| {
            model.observe(StepObservation { rows_decode, rows_prefill, context_cells, duration_us });
        };
        see(0, 8, 36, 30_000.0);
        (9..40).for_each(|cells| see(1, 0, cells, if cells < 12 { 9_000.0 } else { 900.0 }));
        for cells in [1.0, 500.0, 2000.0] {
            assert!(model.step_us(1.0, 0.0, cells) >= 900.0, "{}", model.step_us(1.0, 0.0, cells));
        }
    }

    #[test]
    fn the_spread_is_that_of_the_noise() {
        let mut model = learned();
        for n in 0..2000u32 {
            let noise = if n.is_multiple_of(2) { 1.2 } else { 0.8 };
            let rows_decode = n % 16 + 1;
            let duration_us = truth(rows_decode.into(), 0.0, 0.0) * noise;
            model.observe(StepObservation { rows_decode, rows_prefill: 0, context_cells: 0, duration_us });
        }
        assert!((model.spread() - 0.2).abs() < 0.03, "{}", model.spread());
    }
}
