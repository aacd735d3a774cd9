//! Deadlines met by a server that is asked twice of what it can do, over one that serves in order of arrival and lets
//! nobody go.
//!
//! Each way to serve gets a server of its own and the same tasks with the same deadlines at the same times, one way after
//! the other, then all of them again from the last to the first with other tasks: a machine that gets slower meanwhile
//! is then no way's advantage. The load is over what a server was measured to do before. Who was in time, the client's clock
//! says, for all of them alike.

use orchestratord::config::QueueOrder;

use super::client::Crowd;
use super::server::with_server;
use super::storm::{Fate, Pace, Storm};
use crate::sim::Ended;
use crate::sim::grade::WARM_UP;
use crate::sim::suite::FLOOR_GRADED;

/// Tasks that come, over those that the server can do.
const LOAD: f64 = 2.0;

/// Median of a deadline over the time that the task may take without waiting, as in the other traces.
const SLACK: f64 = 6.0;

/// A way to serve.
#[derive(Clone, Copy, Debug)]
struct Way {
    name: &'static str,
    floor: f64,
    order: QueueOrder,
    /// A server that hears of no deadline serves everybody to the end, and the client finds that it was too late.
    tells_deadlines: bool,
}

/// Plain, in order of arrival: once as a server without a word for deadlines, and once with what the weakest reading of a
/// deadline brings, that who is late is let go at it. The second is the better of the two, and what the others are held against.
const WAYS: [Way; 4] = [
    Way { name: "FIFO, told of no deadline", floor: 0.0, order: QueueOrder::Fifo, tells_deadlines: false },
    Way { name: "plain FIFO, who is late ends then", floor: 0.0, order: QueueOrder::Fifo, tells_deadlines: true },
    Way { name: "FIFO with the floor", floor: FLOOR_GRADED, order: QueueOrder::Fifo, tells_deadlines: true },
    Way {
        name: "the earliest deadline first as well",
        floor: FLOOR_GRADED,
        order: QueueOrder::Deadline,
        tells_deadlines: true,
    },
];

/// Place of the plain way among them.
const PLAIN: usize = 1;

/// What became of the tasks of one way. Each is in one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub met: u64,
    /// Accepted, and not done at the deadline.
    pub late: u64,
    /// Refused because the deadline could not be met.
    pub hopeless: u64,
    /// Refused because the queue was full.
    pub full: u64,
}

impl Tally {
    fn add(&mut self, (asked, outcome): &Fate) -> Result<(), String> {
        let is_early = outcome.ended_us.is_some_and(|us| us <= asked.deadline_ms * 1000);
        match outcome.ended {
            Some(Ended::Finished) if is_early => self.met += 1,
            Some(_) => self.late += 1,
            None if outcome.refused_hopeless => self.hopeless += 1,
            None if outcome.refused_full > 0 => self.full += 1,
            None => return Err(format!("a task was neither refused nor brought to an end: {outcome:?}")),
        }
        Ok(())
    }

    pub fn offered(&self) -> u64 {
        self.met + self.late + self.hopeless + self.full
    }
}

/// What each way achieved, in the order of [`Goodput::names`].
#[derive(Clone, Debug)]
pub struct Goodput {
    pub tallies: [Tally; WAYS.len()],
    /// Tasks a second that a server could do before the first way and after the last.
    pub pace: (f64, f64),
}

impl Goodput {
    pub fn names() -> [&'static str; WAYS.len()] {
        WAYS.map(|way| way.name)
    }

    /// Deadlines met by a way over those that plain FIFO met.
    pub fn over_plain(&self, way: usize) -> f64 {
        self.tallies[way].met as f64 / self.tallies[PLAIN].met.max(1) as f64
    }

    /// The rows of the table.
    pub fn rows(&self, say: &mut impl FnMut(String)) {
        for (index, (way, tally)) in WAYS.iter().zip(&self.tallies).enumerate() {
            let Tally { met, late, hopeless, full } = tally;
            let over =
                if index == PLAIN { String::new() } else { format!("{:.2} x plain FIFO; ", self.over_plain(index)) };
            say(format!(
                "| deadlines met: {} | live, load {LOAD} | {over}{met} of {} ({late} late, {hopeless} refused for it, \
                 {full} found no room) |",
                way.name,
                tally.offered()
            ));
        }
        let (before, after) = self.pace;
        say(format!("| tasks a second that a server does, before and after | live | {before:.1}, {after:.1} |"));
    }
}

/// Offers `tasks` to each way.
///
/// # Errors
///
/// When a server does not start, or does not answer as it should.
pub fn measure(seed: u64, tasks: usize, slots: usize, tokens_max: u32) -> Result<Goodput, String> {
    let crowd = Crowd { seed, tokens_max, batch_share: 0.0, slack: Some(SLACK) };
    let settings = |way: &Way| {
        vec![
            ("slots_max", slots.to_string()),
            ("on_time_probability_floor", way.floor.to_string()),
            ("queue_order", way.order.name().to_owned()),
        ]
    };
    let pace = || with_server("wren", &settings(&WAYS[PLAIN]), |door| Pace::measure(door, &crowd, slots, tasks));
    let before = pace()?;
    let mut tallies = [Tally::default(); WAYS.len()];
    let forth = (0..WAYS.len()).map(|way| (0, way));
    let back = (0..WAYS.len()).rev().map(|way| (1, way));
    for (round, way) in forth.chain(back) {
        let storm = Storm {
            crowd: Crowd { seed: seed + round, ..crowd },
            count: tasks / 2,
            load: LOAD,
            retries_max: 0,
            tells_deadlines: WAYS[way].tells_deadlines,
        };
        let fates = with_server("wren", &settings(&WAYS[way]), |door| storm.blow(door, &before))?;
        let learning = WARM_UP.min(fates.len() / 10);
        fates[learning..].iter().try_for_each(|fate| tallies[way].add(fate))?;
    }
    Ok(Goodput { tallies, pace: (before.tasks_per_second, pace()?.tasks_per_second) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcomes::Asked;
    use crate::sim::Outcome;
    use orchestratord::domain::task::Priority;

    #[test]
    fn the_clients_clock_says_who_was_in_time() {
        let asked = Asked { at_us: 0, priority: Priority::Interactive, tokens_max: 8, deadline_ms: 10 };
        let ended = |ended, us| Outcome { ended: Some(ended), ended_us: Some(us), ..Outcome::default() };
        let fates = [
            ended(Ended::Finished, 10_000),
            // The server was not told of the deadline, and is content.
            ended(Ended::Finished, 10_001),
            ended(Ended::Late, 10_000),
            Outcome { refused_hopeless: true, ..Outcome::default() },
            Outcome { refused_full: 1, ..Outcome::default() },
        ];
        let mut tally = Tally::default();
        fates.iter().for_each(|fate| tally.add(&(asked, *fate)).expect("it has a fate"));
        assert_eq!(tally, Tally { met: 1, late: 2, hopeless: 1, full: 1 });
        assert!(tally.add(&(asked, Outcome::default())).is_err(), "a task got lost");
    }
}
