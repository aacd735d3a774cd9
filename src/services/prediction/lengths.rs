//! How many tokens a task will take: learned as hazards, so that tasks which were cut off teach what they can.
//!
//! For each range of lengths the share of tasks that ended in it, of those that reached it, is kept with exponential
//! forgetting. Products of what is left give the whole distribution, and its rest once a task has come so far.
//! (Kaplan and Meier 1958, in discrete ranges.)

use std::sync::LazyLock;

/// Ranges of lengths.
const BINS: usize = 64;

/// Ranges per octave: lengths up to 65 536 tokens, each known to a fifth.
const PER_OCTAVE: f32 = 4.0;

/// Equally likely parts into which a distribution is cut: the scenarios that the queue is played in.
pub const PARTS: usize = 8;

/// What a model's hazards are worth beside those of one session, in tasks.
const MODEL_WORTH: f32 = 1.5;

/// What the assumption before the first task is worth: that a task seldom ends before its `max_tokens`.
const PRIOR_WORTH: f32 = 1.0;
const PRIOR_HAZARD: f32 = 0.01;

/// The same for tasks of which the client said the length: it seldom ends much before, and soon after.
const PRIOR_HAZARD_SAID: [f32; 2] = [0.002, 0.3];

/// How much a task counts less than the one after it: over all tasks, and within one session.
const KEPT_OF_MODEL: f32 = 0.998;
const KEPT_OF_SESSION: f32 = 0.9;

/// Lower edges of the ranges, and the last upper one.
static EDGES: LazyLock<[f32; BINS + 1]> =
    LazyLock::new(|| std::array::from_fn(|bin| 2f32.powf(bin as f32 / PER_OCTAVE)));

fn bin_of(length: f32) -> usize {
    ((length.max(1.0).log2() * PER_OCTAVE) as usize).min(BINS - 1)
}

/// Tasks that reached each range, and those of them that ended there.
#[derive(Clone, Debug, PartialEq)]
struct Hazards {
    ended: [f32; BINS],
    reached: [f32; BINS],
}

impl Hazards {
    const EMPTY: Hazards = Hazards { ended: [0.0; BINS], reached: [0.0; BINS] };

    /// Learns from a task of `length` that ended by itself, or was cut off there.
    fn observe(&mut self, length: f32, ended: bool, kept: f32) {
        self.ended.iter_mut().chain(&mut self.reached).for_each(|v| *v *= kept);
        let bin = bin_of(length);
        self.reached[..bin].iter_mut().for_each(|r| *r += 1.0);
        // One that was cut off within a range was there for half of it.
        self.reached[bin] += if ended { 1.0 } else { 0.5 };
        self.ended[bin] += f32::from(u8::from(ended));
    }
}

/// The lengths of one session's tasks; nothing until the first of them has ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SessionLengths(Option<Box<Hazards>>);

impl SessionLengths {
    fn observe(&mut self, length: f32, ended: bool) {
        self.0.get_or_insert_with(|| Box::new(Hazards::EMPTY)).observe(length, ended, KEPT_OF_SESSION);
    }
}

/// What was learned of lengths by one pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Lengths {
    tokens: Hazards,
    /// Of tokens over those that the client said, times [`SAID_UNIT`].
    over_said: Hazards,
}

/// What was said stands in the middle of the ranges.
const SAID_UNIT: f32 = 256.0;

impl Default for Lengths {
    fn default() -> Lengths {
        // Who says a length is believed until it turns out otherwise: most end within a fifth of it.
        let mut over_said = Hazards::EMPTY;
        let middle = bin_of(SAID_UNIT);
        for (bin, ended) in [(middle - 3, 2.0), (middle - 2, 5.0), (middle - 1, 10.0), (middle, 9.0), (middle + 1, 3.0)]
        {
            over_said.ended[bin] = ended;
            over_said.reached[..=bin].iter_mut().for_each(|r| *r += ended);
        }
        Lengths { tokens: Hazards::EMPTY, over_said }
    }
}

impl Lengths {
    /// Learns from a task that made `tokens` and ended by itself, or was cut off by its maximum, a cancel or a deadline.
    pub fn observe(&mut self, session: &mut SessionLengths, said: Option<u32>, tokens: u32, ended: bool) {
        let length = tokens.max(1) as f32;
        match said {
            Some(said) => self.over_said.observe(length / said.max(1) as f32 * SAID_UNIT, ended, KEPT_OF_MODEL),
            None => {
                self.tokens.observe(length, ended, KEPT_OF_MODEL);
                session.observe(length, ended);
            }
        }
    }

    /// The distribution of a task's tokens, when it has made `made` and ends at `most` at the latest.
    pub fn distribution(&self, session: &SessionLengths, said: Option<u32>, made: u32, most: u32) -> Distribution {
        let (unit, model, session) = match said {
            Some(said) => (SAID_UNIT / said.max(1) as f32, &self.over_said, None),
            None => (1.0, &self.tokens, session.0.as_deref()),
        };
        let mut out = Distribution { points: [Point::default(); BINS + 1], len: 0 };
        let (from, to) = ((made as f32 * unit).max(1.0), (most as f32 * unit).max(1.0));
        let mut left = 1.0;
        let edges = &*EDGES;
        for bin in bin_of(from)..BINS {
            if edges[bin] >= to || left < 1e-4 {
                break;
            }
            let prior = match said {
                Some(_) => PRIOR_HAZARD_SAID[usize::from(edges[bin] > SAID_UNIT)],
                None => PRIOR_HAZARD,
            };
            let general = (model.ended[bin] + PRIOR_WORTH * prior) / (model.reached[bin] + PRIOR_WORTH);
            let hazard = match session {
                Some(own) => (own.ended[bin] + MODEL_WORTH * general) / (own.reached[bin] + MODEL_WORTH),
                None => general,
            };
            let (low, high) = (edges[bin].max(from), edges[bin + 1].min(to));
            let part = (high - low) / (edges[bin + 1] - edges[bin]);
            let hazard = if part < 0.999 { 1.0 - (1.0 - hazard.min(0.999)).powf(part) } else { hazard };
            out.push((low + high) / 2.0 / unit, left * hazard);
            left *= 1.0 - hazard;
        }
        out.push(most as f32, left);
        out
    }
}

/// A number of tokens and how likely it is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    pub tokens: f32,
    pub probability: f32,
}

/// How many tokens a task takes in all; probabilities sum to one.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    points: [Point; BINS + 1],
    len: usize,
}

impl Distribution {
    /// One length and no other.
    pub fn certain(tokens: u32) -> Distribution {
        let mut out = Distribution { points: [Point::default(); BINS + 1], len: 0 };
        out.push(tokens as f32, 1.0);
        out
    }

    fn push(&mut self, tokens: f32, probability: f32) {
        if probability > 0.0 {
            self.points[self.len] = Point { tokens, probability };
            self.len += 1;
        }
    }

    pub fn points(&self) -> &[Point] {
        &self.points[..self.len]
    }

    pub fn mean(&self) -> f32 {
        self.points().iter().map(|p| p.tokens * p.probability).sum()
    }

    /// Mean length of each of [`PARTS`] equally likely parts, shortest first.
    pub fn parts(&self) -> [f32; PARTS] {
        const SHARE: f32 = 1.0 / PARTS as f32;
        let mut out = [0.0; PARTS];
        let (mut part, mut room) = (0, SHARE);
        let longest = self.points().last().map_or(1.0, |p| p.tokens);
        for point in self.points() {
            let mut mass = point.probability;
            while mass > room && part + 1 < PARTS {
                out[part] += point.tokens * room;
                mass -= room;
                (part, room) = (part + 1, SHARE);
            }
            out[part] += point.tokens * mass;
            room -= mass;
        }
        // What rounding left out belongs to the longest.
        out[part] += longest * room.max(0.0);
        out.iter_mut().skip(part + 1).for_each(|v| *v = longest * SHARE);
        out.map(|sum| sum / SHARE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(lengths: &Lengths, session: &SessionLengths, said: Option<u32>, most: u32) -> f32 {
        lengths.distribution(session, said, 0, most).mean()
    }

    #[test]
    fn before_the_first_task_it_is_taken_to_use_what_it_may() {
        let mean = mean(&Lengths::default(), &SessionLengths::default(), None, 100);
        assert!((70.0..=100.0).contains(&mean), "{mean}");
    }

    #[test]
    fn the_distribution_is_that_of_the_tasks_seen_even_when_most_were_cut_off() {
        let mut lengths = Lengths::default();
        // Half end at 20, half at 200, but only 100 are allowed: those of 200 are seen as cut off.
        for n in 0..2000u32 {
            let length = if n.is_multiple_of(2) { 20 } else { 200 };
            lengths.observe(&mut SessionLengths::default(), None, length.min(100), length <= 100);
        }
        let d = lengths.distribution(&SessionLengths::default(), None, 0, 100);
        let short: f32 = d.points().iter().filter(|p| p.tokens < 30.0).map(|p| p.probability).sum();
        assert!((short - 0.5).abs() < 0.03, "{short}");
        assert!((d.points().iter().map(|p| p.probability).sum::<f32>() - 1.0).abs() < 1e-3);
        let rest = lengths.distribution(&SessionLengths::default(), None, 50, 100);
        assert!(rest.mean() > 90.0, "one that has made 50 is of the long kind: {}", rest.mean());
    }

    #[test]
    fn a_session_that_differs_is_known_after_a_few_tasks() {
        let mut lengths = Lengths::default();
        for n in 0..500u32 {
            lengths.observe(&mut SessionLengths::default(), None, 10 + n % 400, true);
        }
        let mut session = SessionLengths::default();
        let before = mean(&lengths, &session, None, 1000);
        (0..5).for_each(|_| lengths.observe(&mut session, None, 30, true));
        let after = mean(&lengths, &session, None, 1000);
        assert!((after - 30.0).abs() < 0.4 * (before - 30.0), "{before} then {after}");
        let other = mean(&lengths, &SessionLengths::default(), None, 1000);
        assert!((other / before - 1.0).abs() < 0.1, "another session is as before");
    }

    #[test]
    fn what_is_said_is_believed_until_it_proves_wrong() {
        let mut lengths = Lengths::default();
        let none = SessionLengths::default();
        assert!((mean(&lengths, &none, Some(50), 1000) / 50.0 - 1.0).abs() < 0.2);
        (0..300).for_each(|_| lengths.observe(&mut SessionLengths::default(), Some(10), 20, true));
        assert!((mean(&lengths, &none, Some(50), 1000) / 100.0 - 1.0).abs() < 0.15);
        let mean = mean(&lengths, &none, Some(700), 100);
        assert!((90.0..=100.0).contains(&mean), "never more than is allowed: {mean}");
    }

    #[test]
    fn parts_are_in_order_and_have_the_mean_of_the_whole() {
        let mut lengths = Lengths::default();
        (0..500u32).for_each(|n| lengths.observe(&mut SessionLengths::default(), None, 1 + n * n % 701, true));
        let d = lengths.distribution(&SessionLengths::default(), None, 0, 900);
        let parts = d.parts();
        assert!(parts.is_sorted() && parts[0] >= 1.0);
        let mean = parts.iter().sum::<f32>() / PARTS as f32;
        assert!((mean / d.mean() - 1.0).abs() < 0.02, "{mean} {}", d.mean());
        assert_eq!(Distribution::certain(7).parts(), [7.0; PARTS]);
    }
}
