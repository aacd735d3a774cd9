//! How well starts can be predicted at all: what comes later is drawn again and again, and the best guess over it is graded.
//!
//! Batch work waits for interactive work that has not come yet. For each of some batch tasks the simulator runs again from
//! the beginning, with all that was there when the task came exactly as it was, down to the lengths that nobody knows, and
//! with other clients after it. Who guesses best over these futures knows more than any server can: the present in full, and
//! the law of what comes. Its grade on what really came is the most that a prediction can be worth.

use orchestratord::domain::task::Priority;

use super::grade::{Starts, WAIT_GRADED_US, WARM_UP};
use super::trace::Trace;
use super::world::{Outcome, Setup, World};

/// Fewer futures in which a task got its slot say too little.
const FUTURES_LEAST: usize = 10;

/// Real waits and what was said of them: by the server, and by who has seen many futures.
#[derive(Clone, Debug, Default)]
pub struct Ceiling {
    /// Futures of each task.
    pub futures: usize,
    pub said: Starts,
    /// The guess that is within a quarter in most futures.
    pub best: Starts,
    /// The median over the futures.
    pub median: Starts,
    /// Share of its own futures in which the best guess is within a quarter, mean over the tasks: a little too much, because
    /// the guess was made for them.
    pub share_of_futures: f64,
    /// Of the tasks that the server was off by more than a quarter for: started sooner than said, and later.
    pub sooner: usize,
    pub later: usize,
}

/// Looks at up to `looked_at_max` waiting batch tasks among the first `count` of a trace that goes on after them, in `futures`
/// futures each.
pub fn ceiling(setup: &Setup, trace: &Trace, count: usize, looked_at_max: usize, futures: usize) -> Ceiling {
    let seed = trace.seed;
    let slots = setup.config.slots_max as u32;
    let clients = trace.clients(&setup.truth, slots);
    let mut world = World::new(setup.clone(), &clients);
    world.run();
    let from = WARM_UP.min(count / 10);
    let graded = |i: &usize| clients[*i].priority == Priority::Batch && waited_us(&world.outcomes[*i]).is_some();
    let all: Vec<usize> = (from..count).filter(graded).collect();
    let every = all.len().div_ceil(looked_at_max).max(1);
    let mut out = Ceiling { futures, ..Ceiling::default() };
    for index in all.into_iter().step_by(every) {
        let again = |n: usize| future(setup, trace, index, seed ^ ((n as u64 + 1) << 32) ^ index as u64);
        let mut waits: Vec<f64> = (0..futures).filter_map(again).collect();
        if waits.len() < FUTURES_LEAST {
            continue;
        }
        waits.sort_unstable_by(f64::total_cmp);
        let outcome = &world.outcomes[index];
        let real_us = waited_us(outcome).expect("it was graded");
        let (best_us, within) = best_guess(&waits);
        out.said.add(real_us, outcome.predicted_start_us);
        out.best.add(real_us, best_us);
        out.median.add(real_us, waits[waits.len() / 2]);
        out.share_of_futures += within as f64 / waits.len() as f64;
        let ratio = outcome.predicted_start_us / real_us;
        out.sooner += usize::from(ratio > 1.25);
        out.later += usize::from(ratio < 0.75);
    }
    out.share_of_futures /= out.said.pairs.len().max(1) as f64;
    out
}

/// The wait, if it is one that is graded.
fn waited_us(outcome: &Outcome) -> Option<f64> {
    let waited_us = (outcome.seated_us? - outcome.accepted_us?) as f64;
    (waited_us > WAIT_GRADED_US).then_some(waited_us)
}

/// The wait of the same task when others come after it.
fn future(setup: &Setup, trace: &Trace, index: usize, seed: u64) -> Option<f64> {
    let clients = trace.forked(&setup.truth, setup.config.slots_max as u32, index, seed);
    let mut world = World::new(Setup { until_ended: Some(index), predicts: false, ..setup.clone() }, &clients);
    world.run();
    waited_us(&world.outcomes[index])
}

/// The guess from which most of these waits, ascending, are at most a quarter of the wait away; and how many are.
fn best_guess(waits: &[f64]) -> (f64, usize) {
    let reach = |least: f64| waits.iter().filter(|w| **w >= least && **w <= least * 1.25 / 0.75).count();
    let (least, within) =
        waits.iter().map(|w| (*w, reach(*w))).max_by_key(|(_, within)| *within).expect("there are waits");
    // In the middle of those it reaches, lest one just beyond is missed.
    let last = waits.iter().rev().find(|w| **w <= least * 1.25 / 0.75).copied().unwrap_or(least);
    let (from, to) = (0.75 * last, 1.25 * least);
    ((from + to) / 2.0, within)
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, suite};
    use super::*;

    #[test]
    fn the_best_guess_is_near_most_and_not_in_the_middle() {
        let waits = [100.0, 110.0, 120.0, 300.0, 700.0];
        let (guess, within) = best_guess(&waits);
        assert_eq!(within, 3);
        assert!(waits[..3].iter().all(|w| (guess / w - 1.0).abs() <= 0.25), "{guess}");
    }

    #[test]
    fn futures_share_the_past_and_nothing_else() {
        let setup = Setup::new(3);
        let trace = suite::starts_trace(Kind::Bursts, 3, 600);
        let [real, other] = [usize::MAX, 300].map(|last| trace.forked(&setup.truth, 16, last, 99));
        let key = |c: &super::super::Client| (c.arrival_us, c.tokens_true, c.prompt_len);
        assert!(real[..=300].iter().zip(&other).all(|(a, b)| key(a) == key(b)));
        assert!(real[301..].iter().zip(&other[301..]).filter(|(a, b)| key(a) == key(b)).count() < 5);
        assert!(other.is_sorted_by_key(|c| c.arrival_us));
    }
}
