//! Who is seated when, who is let go, and how much of a step prompts get: the engine thread's decisions without the engine.
//!
//! No clock, no thread and no socket inside: the engine thread and the simulator drive the same code, one over a real
//! engine and one over a simulated one.

use std::sync::Arc;

use super::gate::{Gate, Promise};
use super::prediction::{Board, Experience, Load, Queued, Seated, Shape, StepModel};
use crate::admission::{Waiter, Waiting, Waits};
use crate::config::Config;
use crate::domain::task::Priority;

/// Playing the queue costs about this much for each task in it; it is done so often that it takes a fiftieth of the time.
const PLAY_US_PER_TASK: f64 = 0.2;
const PLAY_TIME_SHARE: f64 = 0.02;

/// The board is played anew after so long although nothing has changed: tasks outlive what was expected of them.
const STALE_US: u64 = 50_000;

/// Memory of the load's averages.
const LOAD_MEMORY_US: f64 = 5e6;

/// Memory of the share that interactive work has: batch work waits for as long as that goes on.
const SHARE_MEMORY_US: f64 = 10e6;

/// Prompts may at most double the time of a step, unless a time is configured.
const SLOWDOWN_MAX: f64 = 2.0;

/// The settings that concern scheduling.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerRules {
    pub batch_ageing_us: u64,
    /// Time of a step beside running streams; none is [`SLOWDOWN_MAX`] times what it would be without prompts.
    pub step_us_max: Option<f64>,
    pub slots_max: u32,
    pub step_rows_max: u32,
    pub kv_blocks_max: u32,
}

impl SchedulerRules {
    pub fn from_config(config: &Config) -> SchedulerRules {
        SchedulerRules {
            batch_ageing_us: config.batch_ageing_ms * 1000,
            step_us_max: (config.step_ms_max > 0.0).then_some(config.step_ms_max * 1000.0),
            slots_max: config.slots_max as u32,
            step_rows_max: config.step_rows() as u32,
            kv_blocks_max: config.kv_blocks_max as u32,
        }
    }

    /// Prefill rows for the next step.
    pub fn prefill_rows(&self, speed: &StepModel, step: NextStep) -> u32 {
        let most = self.step_rows_max.saturating_sub(step.rows_decode).max(1);
        if step.rows_decode == 0 {
            return most;
        }
        let bare_us = speed.step_us(step.rows_decode.into(), 0.0, step.decode_cells as f64);
        let limit_us = self.step_us_max.unwrap_or(SLOWDOWN_MAX * bare_us);
        speed.prefill_rows_within(limit_us, step.rows_decode, step.decode_cells, step.prefill_position, most)
    }

    fn shape(&self, speed: &StepModel) -> Shape {
        let cells = u64::from(self.slots_max) * 256;
        let step = NextStep { rows_decode: self.slots_max, decode_cells: cells, prefill_position: 0 };
        let prefill_rows = self.prefill_rows(speed, step);
        self.with_prefill_rows(prefill_rows)
    }

    /// What the first predictions are made from.
    pub fn first_shape(&self) -> Shape {
        self.with_prefill_rows(self.step_rows_max.saturating_sub(self.slots_max).max(1))
    }

    fn with_prefill_rows(&self, prefill_rows: u32) -> Shape {
        Shape {
            slots_max: self.slots_max,
            kv_blocks_max: self.kv_blocks_max,
            prefill_rows,
            batch_ageing_us: self.batch_ageing_us,
        }
    }
}

/// What the next step will hold besides new prompt rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NextStep {
    pub rows_decode: u32,
    pub decode_cells: u64,
    /// Where the first prompt that goes on stands.
    pub prefill_position: u32,
}

/// Sequences that a step had in slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepRows {
    pub all: u32,
    pub interactive: u32,
    /// In the slot that old batch work has: none or one.
    pub pinned: u32,
}

/// A task as the scheduler sees it.
pub trait Job: Waits {
    fn promise(&self) -> &Promise;
    fn accepted_us(&self) -> u64;
    fn deadline_us(&self) -> u64;
    /// Somebody has ended it already.
    fn is_over(&self) -> bool;
}

/// Why a task gets no seat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoSeat {
    /// Not now: later.
    Now,
    Never(String),
}

/// A batch task in a slot or put aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSeat {
    pub id: usize,
    pub accepted_us: u64,
    pub paused: bool,
    /// Nothing displaces it any more.
    pub pinned: bool,
}

/// An engine as the scheduler sees it.
pub trait Machine<J> {
    fn serves(&self, job: &J) -> bool;
    fn slots_free(&self) -> usize;
    /// Gives the job a slot, and its id; with `pinned` nothing will displace it, although it is batch work.
    ///
    /// # Errors
    ///
    /// When there is no room for it.
    fn seat(&mut self, job: &J, priority: Priority, pinned: bool) -> Result<usize, NoSeat>;
    /// Takes back a seat that was given just now.
    fn undo(&mut self, id: usize);
    /// The seat stands.
    fn begin(&mut self, id: usize, waiter: Waiter<J>, pinned: bool, now_us: u64);
    fn batch_seats(&self) -> impl Iterator<Item = BatchSeat>;
    fn pin(&mut self, id: usize);
    /// Everybody in a slot or put aside.
    fn seated(&self, out: &mut Vec<Seated>);
}

/// Why a task must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overdue {
    /// Its deadline has passed.
    Deadline,
    /// It would pass, even if the task were seated now.
    Hopeless,
    /// The pool was drained and the time is over.
    Drained,
}

/// Why a task must end now, if it must; `latest_start_us` for one that waits.
pub fn overdue(
    now_us: u64,
    deadline_us: u64,
    latest_start_us: Option<u64>,
    drain_until_us: Option<u64>,
) -> Option<Overdue> {
    if now_us >= deadline_us {
        Some(Overdue::Deadline)
    } else if latest_start_us.is_some_and(|latest| now_us > latest) {
        Some(Overdue::Hopeless)
    } else if drain_until_us.is_some_and(|until| now_us >= until) {
        Some(Overdue::Drained)
    } else {
        None
    }
}

/// The waiting tasks of one pool, and what is decided about them.
pub struct Scheduler<J> {
    pub rules: SchedulerRules,
    waiting: Waiting<J>,
    gate: Arc<Gate<J>>,
    /// As of the last board: for predictions on this thread.
    experience: Experience,
    load: Load,
    spare: Board,
    seated: Vec<Seated>,
    queued: Vec<Queued>,
    /// Left the queue, and the board does not know yet.
    gone: Vec<(Priority, u64, u32)>,
    changed: bool,
    played_us: u64,
}

impl<J: Job> Scheduler<J> {
    pub fn new(rules: SchedulerRules, waiting: Waiting<J>, gate: Arc<Gate<J>>) -> Scheduler<J> {
        let (spare, experience) = {
            let desk = gate.desk();
            (desk.board.clone(), desk.experience.clone())
        };
        Scheduler {
            rules,
            waiting,
            gate,
            experience,
            load: Load::default(),
            spare,
            seated: Vec::new(),
            queued: Vec::new(),
            gone: Vec::new(),
            changed: true,
            played_us: 0,
        }
    }

    pub fn waiting(&self) -> &Waiting<J> {
        &self.waiting
    }

    pub fn experience(&self) -> &Experience {
        &self.experience
    }

    /// Takes over arrivals. `evicted` gets each task that a newcomer displaced.
    pub fn drain(&mut self, mut evicted: impl FnMut(J)) {
        let (gone, changed, before) = (&mut self.gone, &mut self.changed, self.waiting.arrived());
        self.waiting.drain(|w| {
            gone.push((w.priority, w.key, w.ticket));
            *changed = true;
            evicted(w.entry);
        });
        *changed |= self.waiting.arrived() != before;
    }

    /// Lets go of waiting tasks whose time is over, or that somebody has ended. `end` says why to who must be told.
    pub fn expire(&mut self, now_us: u64, drain_until_us: Option<u64>, mut end: impl FnMut(&J, Overdue)) {
        let leaves = |job: &J| {
            if job.is_over() {
                return true;
            }
            let latest_us = job.promise().latest_start_us;
            if let Some(why) = overdue(now_us, job.deadline_us(), Some(latest_us), drain_until_us) {
                end(job, why);
            }
            job.is_over()
        };
        let (gone, changed) = (&mut self.gone, &mut self.changed);
        self.waiting.remove_if(leaves, |w| {
            gone.push((w.priority, w.key, w.ticket));
            *changed = true;
        });
    }

    /// Gives free slots to waiting tasks: interactive before batch, each class in its order; but batch work that has become
    /// too old gets a slot of its own, one task at a time. `never` gets tasks that cannot run here at all.
    pub fn seat<M: Machine<J>>(&mut self, now_us: u64, machines: &mut [M], mut never: impl FnMut(J, String)) {
        if !self.age(now_us, machines, &mut never) {
            for priority in Priority::ALL {
                while self.seat_next(priority, now_us, machines, false, &mut never) == Some(true) {}
            }
        }
    }

    /// Says how many slots newcomers find free.
    pub fn publish_seats_free(&self, seats: usize) {
        self.waiting.publish_seats_free(seats);
    }

    /// Sees to it that batch work goes on. True when the next free slot is for it and nobody else is to be seated.
    fn age<M: Machine<J>>(&mut self, now_us: u64, machines: &mut [M], never: &mut impl FnMut(J, String)) -> bool {
        for machine in machines.iter_mut() {
            if let Some(pinned) = machine.batch_seats().find(|s| s.pinned) {
                return pinned.paused;
            }
            let oldest = machine.batch_seats().min_by_key(|s| s.accepted_us);
            if let Some(seat) = oldest.filter(|s| now_us >= s.accepted_us.saturating_add(self.rules.batch_ageing_us)) {
                machine.pin(seat.id);
                return seat.paused;
            }
        }
        let Some(first) = self.waiting.front(Priority::Batch) else { return false };
        if now_us < first.entry.accepted_us().saturating_add(self.rules.batch_ageing_us) {
            return false;
        }
        self.seat_next(Priority::Batch, now_us, machines, true, never) == Some(false)
    }

    /// True when the next task of this class was dealt with, false when there is no room for it, none when there is none.
    fn seat_next<M: Machine<J>>(
        &mut self,
        priority: Priority,
        now_us: u64,
        machines: &mut [M],
        pinned: bool,
        never: &mut impl FnMut(J, String),
    ) -> Option<bool> {
        let first = self.waiting.front(priority)?;
        let machine = machines.iter_mut().find(|m| m.serves(&first.entry))?;
        match machine.seat(&first.entry, priority, pinned) {
            Ok(id) => match self.take(priority) {
                Some(waiter) => {
                    machine.begin(id, waiter, pinned, now_us);
                    Some(true)
                }
                // A newcomer has taken this task's place and is on its way through the ring.
                None => {
                    machine.undo(id);
                    None
                }
            },
            Err(NoSeat::Now) => Some(false),
            Err(NoSeat::Never(why)) => {
                let waiter = self.take(priority)?;
                never(waiter.entry, why);
                Some(true)
            }
        }
    }

    fn take(&mut self, priority: Priority) -> Option<Waiter<J>> {
        let waiter = self.waiting.take(priority)?;
        self.gone.push((waiter.priority, waiter.key, waiter.ticket));
        self.changed = true;
        Some(waiter)
    }

    /// Counts a step, or several alike, towards the load.
    pub fn note_step(&mut self, duration_us: f64, rows: StepRows) {
        note(&mut self.load, duration_us, rows, self.rules.slots_max);
    }

    /// Somebody left a slot.
    pub fn note_freed(&mut self) {
        self.changed = true;
    }

    /// Tells the gate how things stand, unless it is being looked at just now: then the next turn does.
    pub fn publish<M: Machine<J>>(&mut self, now_us: u64, machine: &M, speed: &StepModel) {
        let tasks = self.waiting.len() + self.rules.slots_max as usize;
        let pause_us = tasks as f64 * PLAY_US_PER_TASK / PLAY_TIME_SHARE;
        let since_us = now_us.saturating_sub(self.played_us);
        let due = since_us as f64 >= pause_us && (self.changed || since_us >= STALE_US);
        if due {
            self.play(now_us, machine, speed);
            if let Some(mut desk) = self.gate.try_desk() {
                desk.show(now_us as f64, &mut self.spare);
                self.experience.clone_from(&desk.experience);
                self.gone.clear();
                self.changed = false;
            }
        } else if !self.gone.is_empty()
            && let Some(mut desk) = self.gate.try_desk()
        {
            for (priority, key, ticket) in self.gone.drain(..) {
                desk.board.remove(priority, key, ticket);
            }
        }
    }

    fn play<M: Machine<J>>(&mut self, now_us: u64, machine: &M, speed: &StepModel) {
        self.played_us = now_us;
        self.seated.clear();
        machine.seated(&mut self.seated);
        self.queued.clear();
        self.queued.extend(self.waiting.iter().map(|w| Queued {
            priority: w.priority,
            key: w.key,
            ticket: w.ticket,
            work: w.entry.promise().work,
            accepted_us: w.entry.accepted_us(),
            latest_start_us: w.entry.promise().latest_start_us,
            deadline_us: w.entry.deadline_us(),
        }));
        let arrived = self.waiting.arrived();
        let (seated, queued) = (&self.seated[..], &self.queued[..]);
        self.spare.play(now_us as f64, self.rules.shape(speed), speed, self.load, seated, queued, arrived);
    }
}

/// Lets a step, or several alike, into the averages of the load.
fn note(load: &mut Load, duration_us: f64, rows: StepRows, slots_max: u32) {
    let weight = 1.0 - (-duration_us / LOAD_MEMORY_US).exp();
    load.rows += weight * (f64::from(rows.all) - load.rows);
    // Interactive work cannot have the slot of old batch work: where it has all the others, no turn of batch work comes.
    let slots = slots_max.saturating_sub(rows.pinned);
    if slots == 0 {
        // Who holds the only slot hides how much interactive work there is.
        return;
    }
    let share = f64::from(rows.interactive) / f64::from(slots);
    let weight = 1.0 - (-duration_us / SHARE_MEMORY_US).exp();
    load.interactive_share += weight * (share - load.interactive_share);
}

#[cfg(test)]
mod tests {
    use super::super::prediction::{Distribution, Work};
    use super::*;

    const RULES: SchedulerRules = SchedulerRules {
        batch_ageing_us: 5_000_000,
        step_us_max: None,
        slots_max: 4,
        step_rows_max: 64,
        kv_blocks_max: 1000,
    };

    /// The load after a minute of such steps.
    fn load_after(rows: StepRows, slots_max: u32) -> Load {
        let mut load = Load::default();
        (0..6000).for_each(|_| note(&mut load, 10_000.0, rows, slots_max));
        load
    }

    #[test]
    fn the_share_of_interactive_work_is_of_the_slots_that_it_can_have() {
        for (interactive, pinned, wanted) in
            [(0, 0, 0.0), (2, 0, 0.5), (4, 0, 1.0), (0, 1, 0.0), (1, 1, 1.0 / 3.0), (3, 1, 1.0)]
        {
            let load = load_after(StepRows { all: interactive + pinned, interactive, pinned }, 4);
            assert!((load.interactive_share - wanted).abs() < 0.01, "{interactive} {pinned} {load:?}");
            assert!((load.rows - f64::from(interactive + pinned)).abs() < 0.01, "{load:?}");
        }
    }

    #[test]
    fn old_batch_work_in_the_only_slot_says_nothing_of_interactive_work() {
        let mut load = load_after(StepRows { all: 1, interactive: 1, pinned: 0 }, 1);
        let before = load.interactive_share;
        note(&mut load, 30e6, StepRows { all: 1, interactive: 0, pinned: 1 }, 1);
        assert_eq!(load.interactive_share, before);
    }

    /// An old batch task has one of four slots and interactive work always the other three. Two of them will be free soon, but not
    /// for batch work that waits: it starts when it is old itself. A quarter of the slots was taken to be left for it, and it was
    /// told of a fifth of that time.
    #[test]
    fn beside_old_batch_work_no_slot_is_promised_that_interactive_work_always_has() {
        let speed = StepModel::new(1000.0);
        let seated = |made, pinned| Seated {
            work: Work::new(10, &Distribution::certain(8000), 2),
            ticket: 0,
            made,
            prefill_left: 0,
            preemptible: false,
            paused: false,
            pinned,
            accepted_us: 0,
            deadline_us: u64::MAX,
        };
        let slots = [seated(7900, false), seated(7900, false), seated(2000, false), seated(7000, true)];
        let load = load_after(StepRows { all: 4, interactive: 3, pinned: 1 }, RULES.slots_max);
        let shape = RULES.first_shape();
        let mut board = Board::new(shape, speed.clone());
        board.play(0.0, shape, &speed, load, &slots, &[], 0);
        let start_us = board.start(0.0, Priority::Batch, 0).mean_us;
        assert_eq!(start_us, RULES.batch_ageing_us as f64);
    }
}
