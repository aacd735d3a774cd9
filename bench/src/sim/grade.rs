//! How true the promises were.

use orchestratord::domain::task::Priority;

use super::world::{Ended, Outcome, World};

/// Bins of a calibration plot.
pub const BINS: usize = 10;

/// Waits under this are not graded: a step is not interrupted.
pub const WAIT_GRADED_US: f64 = 100_000.0;

/// Outcomes are graded once the predictions have seen so many tasks end.
pub const WARM_UP: usize = 500;

/// Predicted probabilities against what came true.
#[derive(Clone, Debug, Default)]
pub struct Calibration {
    pub predicted: [f64; BINS],
    pub came_true: [f64; BINS],
    pub count: [u64; BINS],
    squares: f64,
}

impl Calibration {
    pub fn add(&mut self, probability: f64, came_true: bool) {
        let bin = ((probability * BINS as f64) as usize).min(BINS - 1);
        let truth = f64::from(u8::from(came_true));
        self.predicted[bin] += probability;
        self.came_true[bin] += truth;
        self.count[bin] += 1;
        self.squares += (probability - truth).powi(2);
    }

    pub fn total(&self) -> u64 {
        self.count.iter().sum()
    }

    /// Expected calibration error: the mean gap between what was said and what came true.
    pub fn error(&self) -> f64 {
        let gaps = self.predicted.iter().zip(&self.came_true).map(|(p, t)| (p - t).abs());
        gaps.sum::<f64>() / self.total().max(1) as f64
    }

    pub fn base_rate(&self) -> f64 {
        self.came_true.iter().sum::<f64>() / self.total().max(1) as f64
    }

    /// Share of the squared error of always saying the base rate that the predictions save.
    pub fn skill(&self) -> f64 {
        let base = self.base_rate();
        1.0 - self.squares / self.total().max(1) as f64 / (base * (1.0 - base)).max(1e-9)
    }
}

/// Predicted starts against real ones, for waits over 100 ms.
#[derive(Clone, Debug, Default)]
pub struct Starts {
    /// Real wait and predicted wait, microseconds.
    pub pairs: Vec<(f64, f64)>,
}

impl Starts {
    pub fn add(&mut self, real_us: f64, predicted_us: f64) {
        if real_us > WAIT_GRADED_US {
            self.pairs.push((real_us, predicted_us));
        }
    }

    pub fn error_median(&self) -> f64 {
        let mut errors: Vec<f64> = self.pairs.iter().map(|(real, said)| (said / real - 1.0).abs()).collect();
        errors.sort_unstable_by(f64::total_cmp);
        errors.get(errors.len() / 2).copied().unwrap_or(0.0)
    }

    /// Starts within a quarter of what was said.
    pub fn share_within_quarter(&self) -> f64 {
        let within = self.pairs.iter().filter(|(real, said)| (said / real - 1.0).abs() <= 0.25).count();
        within as f64 / self.pairs.len().max(1) as f64
    }
}

/// Everything that one run says.
#[derive(Clone, Debug, Default)]
pub struct Grades {
    pub at_admission: Calibration,
    pub while_running: Calibration,
    pub starts: Starts,
    /// Those of batch work, which are among `starts` too.
    pub starts_batch: Starts,
    pub told_to_retry: u64,
    pub admitted_at_first_retry: u64,
    pub in_time: u64,
    pub offered: u64,
}

impl Grades {
    pub fn of(world: &World<'_>) -> Grades {
        Grades::of_outcomes(world.clients.iter().map(|c| c.priority).zip(&world.outcomes))
    }

    /// What became of clients, in the order in which they came; the first are not graded.
    pub fn of_outcomes<'a>(outcomes: impl ExactSizeIterator<Item = (Priority, &'a Outcome)>) -> Grades {
        let mut grades = Grades::default();
        let warm_up = WARM_UP.min(outcomes.len() / 10);
        for (priority, outcome) in outcomes.skip(warm_up) {
            grades.offered += 1;
            grades.in_time += u64::from(outcome.in_time());
            if outcome.refused_full > 0 && outcome.attempts > 1 {
                grades.told_to_retry += 1;
                grades.admitted_at_first_retry += u64::from(outcome.accepted_us.is_some() && outcome.accepted_at == 1);
            }
            grades.add(outcome, priority);
        }
        grades
    }

    fn add(&mut self, outcome: &Outcome, priority: Priority) {
        let Some(accepted_us) = outcome.accepted_us else { return };
        if let Some(seated_us) = outcome.seated_us {
            let waited_us = (seated_us - accepted_us) as f64;
            self.starts.add(waited_us, outcome.predicted_start_us);
            if priority == Priority::Batch {
                self.starts_batch.add(waited_us, outcome.predicted_start_us);
            }
        }
        // What somebody else has ended says nothing about whether it would have been in time.
        if matches!(outcome.ended, Some(Ended::Finished | Ended::Late | Ended::Hopeless)) {
            self.at_admission.add(outcome.chance, outcome.in_time());
            if let Some(chance) = outcome.chance_running {
                self.while_running.add(chance, outcome.in_time());
            }
        }
    }
}

/// The rows of a table about what tasks were told, and what became of them; `name` is the trace.
pub fn prediction_rows(say: &mut impl FnMut(String), name: &str, grades: &Grades) {
    let (admission, running) = (&grades.at_admission, &grades.while_running);
    say(format!(
        "| on_time_probability at admission: ECE | {name} | {:.3} of {} |",
        admission.error(),
        admission.total()
    ));
    say(format!(
        "| its Brier skill over the base rate {:.2} | {name} | {:.2} |",
        admission.base_rate(),
        admission.skill()
    ));
    say(format!(
        "| on_time_probability at the first token: ECE, skill | {name} | {:.3}, {:.2} |",
        running.error(),
        running.skill()
    ));
    let starts = &grades.starts;
    let (error, within) = (100.0 * starts.error_median(), 100.0 * starts.share_within_quarter());
    say(format!(
        "| predicted_start_ms: median error, share within 25 %, of {} | {name} | {error:.1} %, {within:.1} % |",
        starts.pairs.len()
    ));
    let batch = &grades.starts_batch;
    let (error, within) = (100.0 * batch.error_median(), 100.0 * batch.share_within_quarter());
    say(format!("| the same for batch work alone, of {} | {name} | {error:.1} %, {within:.1} % |", batch.pairs.len()));
}

/// The row about clients who came back exactly when told to.
pub fn retry_row(what: &str, name: &str, grades: &Grades) -> String {
    let (kept, told) = (grades.admitted_at_first_retry, grades.told_to_retry);
    let share = 100.0 * kept as f64 / told.max(1) as f64;
    format!("| {what}: admitted at the first retry, load 2 | {name} | {share:.1} % of {told} |")
}
