//! What the engine will do when: a model of it, the queue played through that model, and how true it all proved.
//!
//! Pure: observations, a queue and the time go in, distributions come out; no clock inside.
//!
//! ```text
//! steps of the engine ──▶ StepModel    time of a step, and its spread        ┐
//! tasks that ended ─────▶ Lengths      how many tokens a task will make      ├─▶ Board: who starts when
//!                   └───▶ Reliability  how far off the predictions were      ┘     └─▶ Outlook: start, finish, chance
//! ```

mod board;
mod lengths;
mod reliability;
mod steps;

pub use board::{Board, Load, Queued, Seated, Service, Shape, Start, Work};
pub use lengths::{Distribution, Lengths, PARTS, SessionLengths};
pub use reliability::{Drag, LogRatio, Reliability, normal_cdf, normal_quantile_low};
pub use steps::{StepModel, StepObservation, prefill_cells};

use crate::domain::task::Priority;

/// Least uncertainty of anything, microseconds: a step is not interrupted.
const GRAIN_US: f64 = 500.0;

/// Waits under this say nothing about the prediction of waits.
const WAIT_TOLD_US: f64 = 20_000.0;

/// Index of the waits that end by age.
const BY_AGE: usize = 2;

/// What was learned from tasks that ended. Survives a reload as what to assume of the new model.
#[derive(Clone, Debug)]
pub struct Experience {
    pub lengths: Lengths,
    /// Actual over predicted wait: of both classes, and of batch work whose age was to bring its turn.
    wait: [LogRatio; 3],
    /// How much longer than computed it takes until interactive work leaves batch work its turn.
    drag: Drag,
    /// Per class: the same of the time in the slot.
    service: [LogRatio; 2],
    at_admission: Reliability,
    while_running: Reliability,
}

impl Default for Experience {
    fn default() -> Experience {
        Experience {
            lengths: Lengths::default(),
            // Batch work has its drag; what is learned here of its waits is how far they spread.
            wait: [LogRatio::near_median(0.3, 48), LogRatio::spread_only(0.3), LogRatio::spread_only(0.1)],
            drag: Drag::default(),
            service: [LogRatio::new(0.3), LogRatio::new(0.3)],
            at_admission: Reliability::default(),
            while_running: Reliability::default(),
        }
    }
}

/// What is predicted for a task at its admission; times in microseconds from then.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outlook {
    /// If it starts at all, and so before its deadline.
    pub start_us: f64,
    /// At its expected length.
    pub finish_us: f64,
    pub on_time_probability: f64,
    /// As they came out of the model, for learning: before what experience made of them.
    raw_wait_us: f64,
    wait_kind: usize,
    /// Of batch work: until its turn, and until its age brings it.
    turn_us: f64,
    aged_us: f64,
    raw_service: Service,
    raw_probability: f64,
}

/// What became of a task, for learning.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    pub priority: Priority,
    pub outlook: Outlook,
    /// What `chance_running` had computed when the first token was there; none if it never was.
    pub raw_running: Option<f64>,
    /// From admission to the slot; none if it never got one.
    pub waited_us: Option<f64>,
    /// From the slot to the last token.
    pub served_us: f64,
    pub tokens: u32,
    /// From admission to the end.
    pub lived_us: f64,
    pub end: End,
}

/// How a task ended, as far as predictions care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, or at its `max_tokens`, and in time.
    Finished,
    /// Its deadline passed, or could not be met any more.
    Late,
    /// By somebody else: says nothing about the predictions.
    Other,
}

impl Experience {
    /// What a task that would start so, take `service` and make `tokens` can expect, with `allowed_us` until its deadline.
    pub fn outlook(
        &self,
        now_us: f64,
        start: Start,
        service: Service,
        tokens: &Distribution,
        allowed_us: f64,
        priority: Priority,
    ) -> Outlook {
        let class = priority.index();
        let aged_us = start.aged_us - now_us;
        let (raw_wait_us, turn_us) = match priority {
            Priority::Interactive => (start.mean_us - now_us, 0.0),
            Priority::Batch => {
                let turn_us = (start.turn_us - now_us) * self.drag.factor();
                (turn_us.min(aged_us), turn_us)
            }
        };
        let wait_kind = if turn_us > aged_us { BY_AGE } else { class };
        let (wait, slot) = (&self.wait[wait_kind], &self.service[class]);
        let wait_us = raw_wait_us * wait.factor();
        let factor = slot.factor();
        let wait_variance = start.variance_us2 * wait.factor().powi(2) + (wait.spread() * wait_us).powi(2);
        let served = |tokens: f64| (service.prefill_us + tokens * service.token_us) * factor;
        let chance = chance(tokens, 0.0, allowed_us, |t| {
            let served_us = served(t);
            (wait_us + served_us, wait_variance + (slot.spread() * served_us).powi(2))
        });
        Outlook {
            start_us: median_within(allowed_us, wait_us, wait_variance),
            finish_us: wait_us + served(tokens.mean().into()),
            on_time_probability: self.at_admission.correct(chance),
            raw_wait_us,
            wait_kind,
            turn_us,
            aged_us,
            raw_service: service,
            raw_probability: chance,
        }
    }

    /// The chance of a running task that has made `made` tokens, at `token_us` each; as computed, and as experience has it.
    pub fn chance_running(
        &self,
        priority: Priority,
        tokens: &Distribution,
        made: u32,
        token_us: f64,
        allowed_us: f64,
    ) -> (f64, f64) {
        let slot = &self.service[priority.index()];
        let token_us = token_us * slot.factor();
        let raw = chance(tokens, made.into(), allowed_us, |left| {
            let left_us = left * token_us;
            (left_us, (slot.spread() * left_us).powi(2))
        });
        (raw, self.while_running.correct(raw))
    }

    /// Time before its deadline at which a task must be seated to have at least the chance `floor`.
    pub fn needed_us(&self, priority: Priority, service: Service, tokens: &Distribution, floor: f64) -> f64 {
        let factor = self.service[priority.index()].factor();
        let mut sum = 0.0;
        let enough = tokens.points().iter().find(|p| {
            sum += f64::from(p.probability);
            sum >= floor
        });
        let tokens = enough.map_or(1.0, |p| f64::from(p.tokens));
        let spread = self.service[priority.index()].spread();
        // The quick end of what a slot may take, so that nobody is sent away who might have made it.
        (service.prefill_us + tokens * service.token_us) * factor * (1.0 - 2.0 * spread).max(0.3)
    }

    /// Learns from a task that has ended.
    pub fn learn(&mut self, record: &Record) {
        let class = record.priority.index();
        let told = record.outlook;
        let never = record.lived_us * f64::from(u8::from(record.end == End::Late));
        let waited_us = record.waited_us.unwrap_or(never);
        // One that never got a slot has waited longer than it did: that teaches only if it was too long already.
        let counts = record.waited_us.is_some() || waited_us > told.raw_wait_us;
        if counts && waited_us.max(told.raw_wait_us) > WAIT_TOLD_US {
            self.wait[told.wait_kind].observe(told.raw_wait_us + GRAIN_US, waited_us + GRAIN_US);
        }
        if record.priority == Priority::Batch {
            let waited_us = record.waited_us.unwrap_or(record.lived_us);
            if waited_us.max(told.raw_wait_us) > WAIT_TOLD_US {
                self.drag.observe(told.turn_us, told.aged_us, waited_us, record.waited_us.is_some());
            }
        }
        if record.tokens > 0 && record.served_us > 0.0 {
            let told_us = told.raw_service.prefill_us + f64::from(record.tokens) * told.raw_service.token_us;
            self.service[class].observe(told_us + GRAIN_US, record.served_us + GRAIN_US);
        }
        if record.end != End::Other {
            let in_time = record.end == End::Finished;
            self.at_admission.observe(told.raw_probability, in_time);
            if let Some(raw) = record.raw_running {
                self.while_running.observe(raw, in_time);
            }
        }
    }
}

/// Chance that what takes a time of this mean and variance, given the tokens still to come, is done within `allowed_us`.
fn chance(tokens: &Distribution, made: f64, allowed_us: f64, time: impl Fn(f64) -> (f64, f64)) -> f64 {
    if allowed_us <= 0.0 {
        return 0.0;
    }
    let mut sum = 0.0;
    for point in tokens.points() {
        let (mean, variance) = time((f64::from(point.tokens) - made).max(1.0));
        sum += f64::from(point.probability) * chance_within(allowed_us, mean, variance + GRAIN_US * GRAIN_US);
    }
    sum.clamp(0.0, 1.0)
}

/// Chance that a time of this mean and variance is at most `allowed_us`. Times are off by factors, and none is under zero:
/// the lognormal distribution with these moments.
fn chance_within(allowed_us: f64, mean: f64, variance: f64) -> f64 {
    let square = mean * mean;
    // Not two in ten thousand come later than that, and no logarithm is taken.
    if allowed_us > mean && (allowed_us - mean).powi(2) > 64.0 * variance && 4.0 * variance < square {
        return 1.0;
    }
    let ln_variance = (1.0 + variance / square).ln();
    let ln_mean = (allowed_us / mean).ln() + ln_variance / 2.0;
    normal_cdf(ln_mean / ln_variance.sqrt())
}

/// The median of a time that is known to be within `allowed_us`, of one that has this median otherwise, and this variance.
///
/// Who starts, starts before its deadline: a later start is a prediction that cannot come true. How likely a start is at all
/// is another number, and told as well.
fn median_within(allowed_us: f64, median: f64, variance: f64) -> f64 {
    let square = median * median;
    // Not one in a thousand comes later than that, and no logarithm is taken.
    if allowed_us > median && (allowed_us - median).powi(2) > 16.0 * variance && 4.0 * variance < square {
        return median;
    }
    let spread = (1.0 + variance / square.max(1.0)).ln().sqrt();
    let z = (allowed_us.max(1.0) / median.max(1.0)).ln() / spread.max(1e-3);
    let within = normal_cdf(z).max(1e-9);
    (median * (spread * normal_quantile_low(within / 2.0)).exp()).min(allowed_us)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: Service = Service { prefill_us: 1000.0, token_us: 1000.0 };

    /// However little is known of a wait of seconds, it is not over in a hundredth of it.
    #[test]
    fn what_is_uncertain_by_factors_is_not_done_at_once() {
        let (mean, spread) = (2.4e6, 1.6e6);
        assert!(chance_within(4e4, mean, spread * spread) < 1e-4);
        assert!(chance_within(1.6e6, mean, spread * spread) > 0.2);
    }

    #[test]
    fn the_chance_has_the_moments_that_were_asked_for_and_no_steps() {
        let (mean, spread) = (1000.0, 300.0);
        let at = |t: f64| chance_within(t, mean, spread * spread);
        let thin = 1.0;
        let slices = (0..6000).map(|n| f64::from(n) * thin + 0.5);
        let found = slices.clone().map(|t| t * (at(t + 0.5) - at(t - 0.5))).sum::<f64>();
        let square = slices.clone().map(|t| t * t * (at(t + 0.5) - at(t - 0.5))).sum::<f64>();
        assert!((found / mean - 1.0).abs() < 0.01, "{found}");
        assert!(((square - found * found).sqrt() / spread - 1.0).abs() < 0.05, "{square}");
        assert!(slices.clone().all(|t| at(t + 1.0) - at(t) < 0.01 && at(t + 1.0) >= at(t)));
    }

    #[test]
    fn who_starts_at_all_starts_before_its_deadline() {
        let at = |allowed: f64| median_within(allowed, 1000.0, 400.0 * 400.0);
        assert!((at(1e6) - 1000.0).abs() < 1.0 && (at(1e9) - 1000.0).abs() < 1.0);
        let told: Vec<f64> = (1..40).map(|n| at(f64::from(n) * 100.0)).collect();
        assert!(told.is_sorted() && told.iter().zip(1..).all(|(t, n)| *t <= f64::from(n) * 100.0), "{told:?}");
        // Of the times under the median, half are under its lower quartile: 0.674 spreads of ln 1 + 0.16 below.
        assert!((at(1000.0) / (-0.6745 * 1.16_f64.ln().sqrt()).exp() / 1000.0 - 1.0).abs() < 0.002, "{}", at(1000.0));
        assert!(at(300.0) > 200.0, "far below the median it is the deadline, about: {}", at(300.0));
        assert!(at(0.0) == 0.0 && median_within(1000.0, 0.0, 0.0) <= 1.0);
    }

    fn outlook(experience: &Experience, wait_ms: f64, tokens: u32, allowed_ms: f64) -> Outlook {
        let start =
            Start { position: 0, mean_us: wait_ms * 1000.0, variance_us2: 0.0, turn_us: 0.0, aged_us: f64::MAX };
        let tokens = Distribution::certain(tokens);
        experience.outlook(0.0, start, SERVICE, &tokens, allowed_ms * 1000.0, Priority::Interactive)
    }

    fn record(outlook: Outlook, waited_ms: f64, served_ms: f64, tokens: u32, end: End) -> Record {
        Record {
            priority: Priority::Interactive,
            outlook,
            raw_running: None,
            waited_us: Some(waited_ms * 1000.0),
            served_us: served_ms * 1000.0,
            tokens,
            lived_us: (waited_ms + served_ms) * 1000.0,
            end,
        }
    }

    #[test]
    fn the_chance_falls_with_the_allowance_and_sharpens_with_experience() {
        let mut experience = Experience::default();
        let before: Vec<_> =
            [0.0, 50.0, 250.0, 1000.0].map(|ms| outlook(&experience, 100.0, 99, ms).on_time_probability).into();
        assert!(before.is_sorted() && before[0] < 0.02 && before[3] > 0.97, "{before:?}");
        for n in 0..500 {
            let told = outlook(&experience, 100.0, 99, 250.0);
            experience.learn(&record(told, 98.0 + f64::from(n % 5), 100.0, 99, End::Finished));
        }
        assert!(outlook(&experience, 100.0, 99, 250.0).on_time_probability > before[2]);
        assert!(outlook(&experience, 100.0, 99, 150.0).on_time_probability < 0.05);
    }

    #[test]
    fn waits_and_steps_that_prove_longer_are_predicted_longer() {
        let mut experience = Experience::default();
        for _ in 0..500 {
            let told = outlook(&experience, 100.0, 99, 1000.0);
            experience.learn(&record(told, 150.0, 200.0, 99, End::Finished));
        }
        let told = outlook(&experience, 100.0, 99, 1000.0);
        assert!((told.start_us / 150_000.0 - 1.0).abs() < 0.03, "{told:?}");
        assert!((told.finish_us / 350_000.0 - 1.0).abs() < 0.03, "{told:?}");
    }

    #[test]
    fn one_that_never_got_a_slot_teaches_that_waits_are_long() {
        let mut experience = Experience::default();
        for _ in 0..200 {
            let told = outlook(&experience, 100.0, 10, 300.0);
            let never =
                Record { waited_us: None, lived_us: 300_000.0, tokens: 0, ..record(told, 0.0, 0.0, 0, End::Late) };
            experience.learn(&never);
        }
        assert!(outlook(&experience, 100.0, 10, 300.0).start_us > 200_000.0);
    }

    #[test]
    fn a_running_task_is_judged_by_what_is_left_of_it() {
        let experience = Experience::default();
        let tokens = Distribution::certain(100);
        let at =
            |made, allowed_us| experience.chance_running(Priority::Interactive, &tokens, made, 1000.0, allowed_us).1;
        assert!(at(10, 90_000.0) < at(50, 90_000.0) && at(90, 90_000.0) > 0.95);
        assert!(at(10, 0.0) < 0.02);
    }

    #[test]
    fn who_cannot_be_seated_in_time_is_known_to_be_late() {
        let experience = Experience::default();
        let needed = experience.needed_us(Priority::Batch, SERVICE, &Distribution::certain(100), 0.05);
        assert!((30_000.0..101_001.0).contains(&needed), "{needed}");
    }
}
