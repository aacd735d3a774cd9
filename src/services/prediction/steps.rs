//! How long a step takes: linear in its rows and the cells they look at, learned from the engine's own steps.
//!
//! Recursive least squares that forgets (Haykin, Adaptive Filter Theory, ch. 9). What the fit does not explain is kept
//! as a spread.

/// Inputs of the fit: a constant, decode rows, prefill rows, thousands of cells.
const TERMS: usize = 4;

/// Each observation counts this much less than the one after it.
const FORGETTING: f64 = 0.995;

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
    /// Of (actual - fitted) / fitted.
    variance: f64,
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
        StepModel { weights, covariance, observations: 0, variance: 0.04, fastest_us: step_us }
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

    pub fn observe(&mut self, step: StepObservation) {
        let x = terms(step.rows_decode.into(), step.rows_prefill.into(), step.context_cells as f64);
        let mut gain = [0.0; TERMS];
        for (g, row) in gain.iter_mut().zip(&self.covariance) {
            *g = dot(row, &x);
        }
        // With a direction that is unknown already nothing is forgotten, or it would grow without bound.
        let unknown = (0..TERMS).any(|i| self.covariance[i][i] >= UNKNOWN[i]);
        let forgetting = if unknown { 1.0 } else { FORGETTING };
        let scale = forgetting + dot(&gain, &x);
        let fitted = dot(&self.weights, &x);
        // A step that something else held up says little about the engine: what it may teach is capped.
        let bound = 3.0 * fitted.abs().max(50.0);
        let highest = if self.observations < 8 { f64::MAX } else { bound };
        let error = (step.duration_us - fitted).clamp(-bound, highest);
        for i in 0..TERMS {
            self.weights[i] += gain[i] / scale * error;
            for j in 0..TERMS {
                self.covariance[i][j] = (self.covariance[i][j] - gain[i] * gain[j] / scale) / forgetting;
            }
        }
        self.observations += 1;
        self.fastest_us = (self.fastest_us * FASTEST_DRIFT).min(step.duration_us);
        if self.observations > 8 {
            let relative = (error / fitted.max(1.0)).clamp(-1.0, 1.0);
            self.variance += SPREAD_WEIGHT * (relative * relative - self.variance);
        }
    }

    /// Time of one step, microseconds; never under one.
    pub fn step_us(&self, rows_decode: f64, rows_prefill: f64, context_cells: f64) -> f64 {
        let fitted = dot(&self.weights, &terms(rows_decode, rows_prefill, context_cells));
        // More work takes no less time, whatever noise says.
        fitted.max(self.weights[0]).max(self.fastest_us).max(1.0)
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
