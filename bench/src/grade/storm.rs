//! What a server can do, measured, and clients that come at a multiple of that, whatever it does meanwhile.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::client::{Ask, Crowd, Door, NO_DEADLINE_MS, visit};
use crate::outcomes::Asked;
use crate::sim::Outcome;
use crate::sim::chance::Chance;

/// Each waiting client is a thread, and needs little.
const STACK_LEN: usize = 256 * 1024;

/// Most tasks by which a server is measured.
const MEASURED_MAX: usize = 400;

/// What the server can do when it is never idle.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub tasks_per_second: f64,
    /// From its slot to its end, a token of a task, milliseconds.
    pub token_ms: f64,
}

impl Pace {
    /// Closed loop: a client for each slot, for a tenth of `tasks`.
    pub fn measure(door: &Door, crowd: &Crowd, slots: usize, tasks: usize) -> Result<Pace, String> {
        let count = (tasks / 10).clamp(8 * slots, MEASURED_MAX.max(8 * slots));
        let mut chance = Chance::new(crowd.seed ^ 0x9a7e);
        let crowd = Crowd { seed: crowd.seed ^ 1, slack: None, ..*crowd };
        let asks: Vec<Ask> = (0..count).map(|_| crowd.ask(&mut chance, 0.0)).collect();
        let began = Instant::now();
        let (next, tokens) = (AtomicUsize::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..slots)
                .map(|_| {
                    scope.spawn(|| -> Result<(), String> {
                        while let Some(ask) = asks.get(next.fetch_add(1, SeqCst)) {
                            tokens.fetch_add(u64::from(visit(door, ask, 0)?.tokens), SeqCst);
                        }
                        Ok(())
                    })
                })
                .collect();
            workers.into_iter().try_for_each(|w| w.join().map_err(|_| "a client panicked".to_owned())?)
        })?;
        let seconds = began.elapsed().as_secs_f64();
        let tokens = tokens.into_inner().max(1) as f64;
        Ok(Pace { tasks_per_second: count as f64 / seconds, token_ms: seconds * 1000.0 * slots as f64 / tokens })
    }
}

/// Clients that come at random times.
#[derive(Clone, Copy, Debug)]
pub struct Storm {
    pub crowd: Crowd,
    pub count: usize,
    /// Tasks that come, over those that the server can do.
    pub load: f64,
    /// How often a client that is told to come back does so.
    pub retries_max: u32,
    /// Whether the server hears of the deadlines that the clients have.
    pub tells_deadlines: bool,
}

/// A client's task and what became of it.
pub type Fate = (Asked, Outcome);

impl Storm {
    /// Open loop: the same storm brings the same tasks at the same times to every server that is asked at the same pace.
    pub fn blow(&self, door: &Door, pace: &Pace) -> Result<Vec<Fate>, String> {
        let Storm { crowd, count, load, retries_max, tells_deadlines } = *self;
        let mut chance = Chance::new(crowd.seed);
        let (sender, receiver) = mpsc::channel();
        let began = Instant::now();
        let mut at = 0.0;
        let mut threads = Vec::with_capacity(count);
        let mut asked = Vec::with_capacity(count);
        for index in 0..count {
            at += chance.exponential(1.0 / (load * pace.tasks_per_second));
            let mut ask = crowd.ask(&mut chance, pace.token_ms);
            std::thread::sleep(Duration::from_secs_f64(at).saturating_sub(began.elapsed()));
            let Ask { priority, tokens_max, deadline_ms, .. } = ask;
            asked.push(Asked { at_us: began.elapsed().as_micros() as u64, priority, tokens_max, deadline_ms });
            if !tells_deadlines {
                ask.deadline_ms = NO_DEADLINE_MS;
            }
            let (sender, door) = (sender.clone(), door.clone());
            let client = move || drop(sender.send((index, visit(&door, &ask, retries_max))));
            let thread = std::thread::Builder::new().stack_size(STACK_LEN).spawn(client);
            threads.push(thread.map_err(|e| format!("a client's thread: {e}"))?);
        }
        drop(sender);
        let mut outcomes = vec![None; count];
        for (index, outcome) in receiver {
            outcomes[index] = Some(outcome?);
        }
        threads.into_iter().try_for_each(|t| t.join().map_err(|_| "a client panicked".to_owned()))?;
        let all: Option<Vec<Outcome>> = outcomes.into_iter().collect();
        Ok(asked.into_iter().zip(all.ok_or("a client has no outcome")?).collect())
    }
}
