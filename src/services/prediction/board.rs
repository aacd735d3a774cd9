//! The queue played through the engine: who starts when, in [`PARTS`] scenarios that differ in how long tasks take.
//!
//! The engine thread plays what it knows when something has changed, and hands the result over whole. A reactor then
//! needs to look at the end only: when a slot is free for one who comes last. Its own arrivals it adds itself, so the
//! next one sees them. That is what makes a prediction cost the same behind a thousand tasks as behind one.

use super::lengths::{Distribution, PARTS};
use super::steps::{StepModel, prefill_cells};
use crate::admission::is_later;
use crate::domain::task::Priority;
use std::collections::VecDeque;

/// Most of the engine that interactive arrivals are taken to claim before waiting batch work.
const SHARE_MAX: f64 = 0.98;

/// A task's work as predictions see it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    pub prompt_len: u32,
    /// Tokens it will make, in equally likely parts.
    pub parts: [f32; PARTS],
    /// Blocks of KV memory that it reserves.
    pub blocks: u32,
}

impl Work {
    pub fn new(prompt_len: u32, tokens: &Distribution, blocks: u32) -> Work {
        Work { prompt_len, parts: tokens.parts(), blocks }
    }

    fn tokens_mean(&self) -> f64 {
        f64::from(self.parts.iter().sum::<f32>()) / PARTS as f64
    }

    /// Tokens in one scenario. Tasks take turns at being short in it.
    fn tokens(&self, scenario: usize, ticket: u32) -> f64 {
        self.parts[(scenario + ticket as usize * 3) % PARTS].into()
    }

    /// Tokens still to come in each scenario, once `made` are there.
    fn tokens_left(&self, ticket: u32, made: u32) -> [f64; PARTS] {
        let made = made as f32;
        let longer = self.parts.iter().position(|part| *part > made);
        let Some(first) = longer else { return [f64::from(made * 0.1).max(1.0); PARTS] };
        let rest = PARTS - first;
        std::array::from_fn(|scenario| {
            let mut turn = (scenario + ticket as usize * 3) % PARTS;
            while turn >= rest {
                turn -= rest;
            }
            f64::from(self.parts[first + turn] - made)
        })
    }
}

/// A task in a slot, or put aside.
#[derive(Clone, Copy, Debug)]
pub struct Seated {
    pub work: Work,
    pub ticket: u32,
    /// Tokens made.
    pub made: u32,
    /// Rows still to be computed before the next token.
    pub prefill_left: u32,
    /// Interactive tasks may put it aside.
    pub preemptible: bool,
    /// It was put aside.
    pub paused: bool,
    /// Batch work in the slot that old batch work has.
    pub pinned: bool,
    pub accepted_us: u64,
    /// When it ends at the latest.
    pub deadline_us: u64,
}

/// A waiting task.
#[derive(Clone, Copy, Debug)]
pub struct Queued {
    pub priority: Priority,
    /// Smaller goes first within its class; equal ones in order of arrival.
    pub key: u64,
    pub ticket: u32,
    pub work: Work,
    pub accepted_us: u64,
    /// Not seated by then, it leaves the queue.
    pub latest_start_us: u64,
    /// When it ends at the latest.
    pub deadline_us: u64,
}

impl Queued {
    fn limits_us(&self) -> Limits {
        Limits {
            latest_start_us: self.latest_start_us.min(self.deadline_us) as f64,
            deadline_us: self.deadline_us as f64,
        }
    }
}

/// Until when a task may start and run.
#[derive(Clone, Copy, Debug)]
struct Limits {
    latest_start_us: f64,
    deadline_us: f64,
}

/// What an engine has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    pub slots_max: u32,
    pub kv_blocks_max: u32,
    /// Prefill rows of a step when everybody decodes.
    pub prefill_rows: u32,
    /// Batch work that is older gets a slot of its own, one task at a time.
    pub batch_ageing_us: u64,
}

/// What the engine's load has been lately.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Mean sequences in slots.
    pub rows: f64,
    /// Mean share that interactive tasks had of the slots that they could have: of all but that of old batch work.
    pub interactive_share: f64,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    key: u64,
    ticket: u32,
    start_us: f64,
    variance: f64,
}

#[derive(Clone, Debug, Default)]
struct Class {
    /// When slots are free once everybody of this class and above has started; one heap a scenario.
    free_at: [Vec<f64>; PARTS],
    /// In the order in which they will start.
    places: VecDeque<Place>,
}

/// When somebody starts, microseconds of the caller's clock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Start {
    /// Tasks of the own class and above that go first.
    pub position: u32,
    /// By whichever of its ways comes first.
    pub mean_us: f64,
    pub variance_us2: f64,
    /// In its turn, when those that go first leave room.
    pub turn_us: f64,
    /// In the slot that old batch work has: at the latest.
    pub aged_us: f64,
}

/// What a task's own time in a slot is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Service {
    pub prefill_us: f64,
    pub token_us: f64,
}

/// The engine and its queue at one moment, played to the end.
#[derive(Clone, Debug)]
pub struct Board {
    shape: Shape,
    speed: StepModel,
    load: Load,
    classes: [Class; 2],
    /// When the slot for old batch work is free, once everybody of it has started; for each scenario.
    lane_us: [f64; PARTS],
    /// When waiting tasks leave the queue, ascending.
    leaves_us: VecDeque<f64>,
    /// Arrivals before this ticket are in it, and later ones are in `recent`.
    arrived: u32,
    recent: VecDeque<Queued>,
    /// Who left for good since it was played, of those it knew (so no more than wait): a board that is being played meanwhile
    /// has them still.
    withdrawn: Vec<Withdrawn>,
    /// Scratch: time of each waiting task's prompt, and what each task in a slot still takes in each scenario.
    prefill_us: Vec<f64>,
    left_us: Vec<[f64; PARTS]>,
    mix: Mix,
    running: u32,
}

/// A task that has left the queue for good.
#[derive(Clone, Copy, Debug)]
struct Withdrawn {
    priority: Priority,
    key: u64,
    ticket: u32,
    work: Work,
}

/// What the work is made of on average, and what a step with all slots taken costs.
#[derive(Clone, Copy, Debug, Default)]
struct Mix {
    slots: f64,
    prompt_len: f64,
    tokens: f64,
    /// Steps a prompt takes for each step it would take alone.
    prefill_stretch: f64,
    step_us: f64,
}

impl Board {
    pub fn new(shape: Shape, speed: StepModel) -> Board {
        let mut board = Board {
            shape,
            speed,
            load: Load::default(),
            classes: [Class::default(), Class::default()],
            lane_us: [0.0; PARTS],
            leaves_us: VecDeque::new(),
            arrived: 0,
            recent: VecDeque::new(),
            withdrawn: Vec::new(),
            prefill_us: Vec::new(),
            left_us: Vec::new(),
            mix: Mix::default(),
            running: 0,
        };
        let speed = board.speed.clone();
        board.play(0.0, shape, &speed, Load::default(), &[], &[], 0);
        board
    }

    /// Plays everything anew. `waiting` has interactive tasks first, each class in its order; `arrived` is the first ticket
    /// that is not in it.
    #[allow(clippy::too_many_arguments, reason = "it is the whole state of an engine")]
    pub fn play(
        &mut self,
        now_us: f64,
        shape: Shape,
        speed: &StepModel,
        load: Load,
        seated: &[Seated],
        waiting: &[Queued],
        arrived: u32,
    ) {
        self.shape = shape;
        self.speed.clone_from(speed);
        self.load = load;
        self.arrived = arrived;
        self.recent.clear();
        self.withdrawn.clear();
        self.running = seated.iter().filter(|s| !s.paused).count() as u32;
        self.mix = Mix::of(shape, speed, seated, waiting);
        let mix = self.mix;
        let place = |w: &Queued| Place { key: w.key, ticket: w.ticket, start_us: 0.0, variance: 0.0 };
        let first_batch = waiting.partition_point(|w| w.priority == Priority::Interactive);
        let [first, second] = [&waiting[..first_batch], &waiting[first_batch..]];
        for (class, waiting) in self.classes.iter_mut().zip([first, second]) {
            class.places.clear();
            class.places.extend(waiting.iter().map(place));
        }
        self.prefill_us.clear();
        self.prefill_us.extend(waiting.iter().map(|w| mix.prefill_us(&shape, w.work.prompt_len)));
        let prefill_us = self.prefill_us.split_at(first_batch);
        self.left_us.clear();
        self.left_us.extend(seated.iter().map(|s| {
            let allowed_us = (s.deadline_us as f64 - now_us).max(0.0);
            let tokens = s.work.tokens_left(s.ticket, s.made);
            let prefill_us = mix.duration_us(&shape, s.prefill_left, 0.0);
            tokens.map(|tokens| (prefill_us + tokens * mix.step_us).min(allowed_us))
        }));
        let (stretch, ageing_us) = (self.batch_stretch(), shape.batch_ageing_us);
        for scenario in 0..PARTS {
            let [interactive, batch] = &mut self.classes;
            let in_slots = || seated.iter().zip(self.left_us.iter().map(|left| left[scenario]));
            let seat_all = |heap: &mut [f64], places: &mut VecDeque<Place>, waiting: &[Queued], prefill_us: &[f64]| {
                for ((w, place), prefill_us) in waiting.iter().zip(places).zip(prefill_us) {
                    let duration_us = prefill_us + w.work.tokens(scenario, w.ticket) * mix.step_us;
                    // Sums over the scenarios, until the last one.
                    let offset_us = seat(heap, now_us, duration_us, w.limits_us());
                    place.start_us += offset_us;
                    place.variance += offset_us * offset_us;
                }
            };
            let heap = &mut interactive.free_at[scenario];
            let firm = in_slots().filter(|(s, _)| !s.preemptible && !s.paused);
            fill(heap, mix.slots as usize, now_us, firm.map(|(_, left_us)| now_us + left_us));
            seat_all(heap, &mut interactive.places, first, prefill_us.0);
            // Batch work that runs or was put aside has what interactive work leaves.
            let behind = &mut batch.free_at[scenario];
            behind.clone_from(heap);
            let pinned = in_slots().filter(|(s, _)| s.pinned);
            let lane_us = pinned.map(|(_, left_us)| now_us + left_us).fold(now_us, f64::max);
            let mut turns = Turns { now_us, stretch, behind, lane_us };
            for (s, left_us) in in_slots().filter(|(s, _)| s.preemptible || (s.paused && !s.pinned)) {
                let limits = Limits { latest_start_us: f64::MAX, deadline_us: s.deadline_us as f64 };
                let aged_us = if s.paused { s.accepted_us.saturating_add(ageing_us) as f64 } else { f64::MAX };
                turns.take(left_us, limits, aged_us);
            }
            for ((w, place), prefill_us) in second.iter().zip(&mut batch.places).zip(prefill_us.1) {
                let duration_us = prefill_us + w.work.tokens(scenario, w.ticket) * mix.step_us;
                let aged_us = w.accepted_us.saturating_add(ageing_us) as f64;
                let offset_us = turns.take(duration_us, w.limits_us(), aged_us);
                place.start_us += offset_us;
                place.variance += offset_us * offset_us;
            }
            self.lane_us[scenario] = turns.lane_us;
        }
        self.leaves_us.clear();
        for place in self.classes.iter_mut().flat_map(|class| &mut class.places) {
            let mean = place.start_us / PARTS as f64;
            place.variance = (place.variance / PARTS as f64 - mean * mean).max(0.0);
            place.start_us = now_us + mean;
            self.leaves_us.push_back(place.start_us);
        }
        self.leaves_us.make_contiguous().sort_unstable_by(f64::total_cmp);
    }

    /// Interactive tasks that come later go first: batch work sees a slower engine.
    fn batch_stretch(&self) -> f64 {
        1.0 / (1.0 - self.load.interactive_share.clamp(0.0, SHARE_MAX))
    }

    /// When one of this class and key would start if it came now.
    pub fn start(&self, now_us: f64, priority: Priority, key: u64) -> Start {
        let class = &self.classes[priority.index()];
        let rank = class.places.partition_point(|p| p.key <= key);
        let above = if priority == Priority::Batch { self.classes[0].places.len() } else { 0 };
        let position = (above + rank) as u32;
        if let Some(place) = class.places.get(rank) {
            let (mean_us, variance_us2) = (place.start_us.max(now_us), place.variance);
            return Start { position, mean_us, variance_us2, turn_us: mean_us, aged_us: mean_us };
        }
        let (mut sum, mut squares, mut turns_us, mut ages_us) = (0.0, 0.0, 0.0, 0.0);
        let stretch = if priority == Priority::Batch { self.batch_stretch() } else { 1.0 };
        let aged_us = match priority {
            Priority::Interactive => f64::MAX,
            Priority::Batch => now_us + self.shape.batch_ageing_us as f64,
        };
        for (heap, lane_us) in class.free_at.iter().zip(self.lane_us) {
            let regular = (heap[0] - now_us).max(0.0) * stretch;
            let aged = lane_us.max(aged_us) - now_us;
            let offset = regular.min(aged);
            turns_us += regular;
            ages_us += aged;
            sum += offset;
            squares += offset * offset;
        }
        let mean = sum / PARTS as f64;
        let variance = (squares / PARTS as f64 - mean * mean).max(0.0);
        let [turn_us, aged_us] = [turns_us, ages_us].map(|sum| now_us + sum / PARTS as f64);
        Start { position, mean_us: now_us + mean, variance_us2: variance, turn_us, aged_us }
    }

    /// When the waiting task at this position of those of its class and above starts; beyond the last, one that comes now.
    pub fn start_at(&self, now_us: f64, priority: Priority, position: u32) -> f64 {
        let above = if priority == Priority::Batch { self.classes[0].places.len() } else { 0 };
        let places = &self.classes[priority.index()].places;
        match places.get((position as usize).saturating_sub(above)) {
            Some(place) => place.start_us.max(now_us),
            None => self.start(now_us, priority, u64::MAX).mean_us,
        }
    }

    /// Adds an arrival, so that the next one sees it.
    pub fn add(&mut self, now_us: f64, queued: Queued) {
        let start = self.start(now_us, queued.priority, queued.key);
        self.recent.push_back(queued);
        let added_us = self.share_us(&queued.work);
        let class = &mut self.classes[queued.priority.index()];
        let rank = class.places.partition_point(|p| p.key <= queued.key);
        class.places.range_mut(rank..).for_each(|p| p.start_us += added_us);
        let Start { mean_us: start_us, variance_us2: variance, .. } = start;
        class.places.insert(rank, Place { key: queued.key, ticket: queued.ticket, start_us, variance });
        let at = self.leaves_us.partition_point(|l| *l <= start_us);
        self.leaves_us.insert(at, start_us);
        let stretch = self.batch_stretch();
        let aged_us = queued.accepted_us.saturating_add(self.shape.batch_ageing_us) as f64;
        // An interactive task is ahead of all batch work.
        for class in &mut self.classes[queued.priority.index()..] {
            for (scenario, heap) in class.free_at.iter_mut().enumerate() {
                let tokens = queued.work.tokens(scenario, queued.ticket);
                let duration_us = self.mix.duration_us(&self.shape, queued.work.prompt_len, tokens);
                match queued.priority {
                    Priority::Interactive => drop(seat(heap, now_us, duration_us, queued.limits_us())),
                    Priority::Batch => {
                        let lane_us = self.lane_us[scenario];
                        let mut turns = Turns { now_us, stretch, behind: heap, lane_us };
                        turns.take(duration_us, queued.limits_us(), aged_us);
                        self.lane_us[scenario] = turns.lane_us;
                    }
                }
            }
        }
    }

    /// Takes a task out that has left the queue for good, and those behind it move up: about, until it is played anew.
    pub fn withdraw(&mut self, now_us: f64, priority: Priority, key: u64, ticket: u32, work: &Work) {
        let Some(rank) = self.remove(priority, key, ticket) else { return };
        self.withdrawn.push(Withdrawn { priority, key, ticket, work: *work });
        let (mix, shape) = (self.mix, self.shape);
        let share_us = |tokens: f64| mix.duration_us(&shape, work.prompt_len, tokens) / mix.slots;
        for (index, class) in self.classes.iter_mut().enumerate().skip(priority.index()) {
            for (scenario, heap) in class.free_at.iter_mut().enumerate() {
                let less_us = share_us(work.tokens(scenario, ticket));
                heap.iter_mut().for_each(|at| *at = (*at - less_us).max(now_us));
            }
            let first = if index == priority.index() { rank } else { 0 };
            let less_us = share_us(work.tokens_mean());
            class.places.range_mut(first..).for_each(|p| p.start_us = (p.start_us - less_us).max(now_us));
        }
        self.leaves_us.clear();
        self.leaves_us.extend(self.classes.iter().flat_map(|class| &class.places).map(|place| place.start_us));
        self.leaves_us.make_contiguous().sort_unstable_by(f64::total_cmp);
    }

    /// Takes a task out that has got a slot; when others start is played anew later. Gives its rank, if it was there.
    pub fn remove(&mut self, priority: Priority, key: u64, ticket: u32) -> Option<usize> {
        if let Some(at) = self.recent.iter().position(|q| q.ticket == ticket) {
            self.recent.remove(at);
        }
        let places = &mut self.classes[priority.index()].places;
        let first = places.partition_point(|p| p.key < key);
        let rank = first + places.range(first..).position(|p| p.ticket == ticket)?;
        let place = places.remove(rank)?;
        let leaves = self.leaves_us.partition_point(|l| *l < place.start_us);
        self.leaves_us.remove(leaves.min(self.leaves_us.len() - 1));
        Some(rank)
    }

    /// Takes over from an older board what was not known when this one was played: who came, and who left for good.
    pub fn adopt(&mut self, now_us: f64, older: &Board) {
        for gone in &older.withdrawn {
            self.withdraw(now_us, gone.priority, gone.key, gone.ticket, &gone.work);
        }
        for queued in &older.recent {
            if queued.ticket == self.arrived || is_later(queued.ticket, self.arrived) {
                self.add(now_us, *queued);
            }
        }
    }

    /// A task's own time in a slot, if it is seated at `start_us`: with all slots taken while others wait, else with as many
    /// as are usual.
    pub fn service(&self, now_us: f64, start_us: f64, prompt_len: u32) -> Service {
        let others = f64::from(self.running);
        let rows = match start_us > now_us {
            true => self.mix.slots,
            false => ((others + 1.0 + self.load.rows.max(1.0)) / 2.0).min(self.mix.slots),
        };
        let mix = Mix { slots: rows, ..self.mix }.priced(&self.shape, &self.speed);
        Service { prefill_us: mix.prefill_us(&self.shape, prompt_len), token_us: mix.step_us }
    }

    /// When the place after `taken` others will be free in a full queue.
    pub fn place_free_us(&self, now_us: f64, taken: usize) -> f64 {
        if let Some(at) = self.leaves_us.get(taken) {
            return at.max(now_us);
        }
        let last =
            self.leaves_us.back().copied().unwrap_or_else(|| self.start(now_us, Priority::Interactive, 0).mean_us);
        let beyond = (taken + 1 - self.leaves_us.len()) as f64;
        last.max(now_us) + beyond * self.interval_us()
    }

    /// Mean time between two tasks that leave the queue while all slots are taken.
    pub fn interval_us(&self) -> f64 {
        self.mix.duration_us(&self.shape, self.mix.prompt_len as u32, self.mix.tokens) / self.mix.slots
    }

    /// Time that all slots together take for this work.
    pub fn share_us(&self, work: &Work) -> f64 {
        self.mix.duration_us(&self.shape, work.prompt_len, work.tokens_mean()) / self.mix.slots
    }

    /// The key of the task of this class that goes next.
    pub fn first_key(&self, priority: Priority) -> Option<u64> {
        self.classes[priority.index()].places.front().map(|p| p.key)
    }

    pub fn speed(&self) -> &StepModel {
        &self.speed
    }

    /// Waiting tasks that it knows of.
    pub fn len(&self) -> usize {
        self.leaves_us.len()
    }

    pub fn is_empty(&self) -> bool {
        self.leaves_us.is_empty()
    }
}

impl Mix {
    fn of(shape: Shape, speed: &StepModel, seated: &[Seated], waiting: &[Queued]) -> Mix {
        let (mut count, mut prompts, mut tokens, mut blocks) = (0.0, 0.0, 0.0, 0.0);
        for work in seated.iter().map(|s| &s.work).chain(waiting.iter().map(|w| &w.work)) {
            count += 1.0;
            prompts += f64::from(work.prompt_len);
            tokens += work.tokens_mean();
            blocks += f64::from(work.blocks);
        }
        let mean = |sum: f64, otherwise: f64| if count > 0.0 { sum / count } else { otherwise };
        let in_memory = f64::from(shape.kv_blocks_max) / mean(blocks, 1.0).max(1.0);
        let mix = Mix {
            slots: f64::from(shape.slots_max).min(in_memory.floor()).max(1.0),
            prompt_len: mean(prompts, 16.0),
            tokens: mean(tokens, 64.0).max(1.0),
            prefill_stretch: 1.0,
            step_us: 1.0,
        };
        mix.priced(&shape, speed)
    }

    /// With the price of a step, for as many slots as are taken.
    fn priced(mut self, shape: &Shape, speed: &StepModel) -> Mix {
        let chunk = f64::from(shape.prefill_rows.max(1));
        let alone = (self.prompt_len / chunk).max(1.0);
        // Prompts queue for the rows of a step: when they need more than there are, they take as long as it takes.
        let needed = self.slots * self.prompt_len / chunk - self.tokens;
        let steps = alone.max(needed);
        self.prefill_stretch = steps / alone;
        let round = steps + self.tokens;
        let decode = self.slots * self.tokens / round;
        let prefill = (self.slots * self.prompt_len / round).min(chunk);
        let cells = decode * (self.prompt_len + self.tokens / 2.0) + prefill_cells(self.prompt_len / 2.0, prefill);
        self.step_us = speed.step_us(decode, prefill, cells);
        self
    }

    fn prefill_us(&self, shape: &Shape, prompt_len: u32) -> f64 {
        let steps = (f64::from(prompt_len) / f64::from(shape.prefill_rows.max(1))).max(1.0);
        steps * self.prefill_stretch * self.step_us
    }

    fn duration_us(&self, shape: &Shape, prefill: u32, tokens: f64) -> f64 {
        let prefill_us = if prefill == 0 { 0.0 } else { self.prefill_us(shape, prefill) };
        prefill_us + tokens * self.step_us
    }
}

/// Batch work takes its turns: what interactive work leaves of the slots, or the slot that old batch work has.
struct Turns<'a> {
    now_us: f64,
    /// Interactive tasks that come later go first: what is left of the slots goes on so much slower.
    stretch: f64,
    behind: &'a mut [f64],
    lane_us: f64,
}

impl Turns<'_> {
    /// Takes the earlier of both, old enough for the slot of its own at `aged_us`; gives when that begins.
    fn take(&mut self, duration_us: f64, limits: Limits, aged_us: f64) -> f64 {
        let regular_us = (self.behind[0] - self.now_us).max(0.0) * self.stretch;
        let lane_us = self.lane_us.max(aged_us).max(self.now_us);
        if lane_us - self.now_us >= regular_us {
            let in_time = self.now_us + regular_us <= limits.latest_start_us;
            if in_time {
                seat(self.behind, self.now_us, duration_us, Limits { latest_start_us: f64::MAX, ..limits });
            }
            return regular_us;
        }
        if lane_us <= limits.latest_start_us {
            self.lane_us = (lane_us + duration_us).min(limits.deadline_us.max(lane_us));
        }
        lane_us - self.now_us
    }
}

/// Makes a heap of when slots are free.
fn fill(heap: &mut Vec<f64>, slots: usize, now_us: f64, ends: impl Iterator<Item = f64>) {
    heap.clear();
    heap.extend(ends);
    heap.resize(heap.len().max(slots), now_us);
    // A sorted list is a heap.
    heap.sort_unstable_by(f64::total_cmp);
}

/// Takes the first free slot for `duration_us`, and gives when that begins. One that would come too late takes nothing.
fn seat(heap: &mut [f64], now_us: f64, duration_us: f64, limits: Limits) -> f64 {
    let start_us = heap[0].max(now_us);
    if start_us > limits.latest_start_us {
        return start_us - now_us;
    }
    let end_us = (start_us + duration_us).min(limits.deadline_us.max(start_us));
    let mut at = 0;
    loop {
        let left = 2 * at + 1;
        if left >= heap.len() {
            break;
        }
        let right = left + 1;
        let child = if right < heap.len() && heap[right] < heap[left] { right } else { left };
        if heap[child] >= end_us {
            break;
        }
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = end_us;
    start_us - now_us
}

#[cfg(test)]
mod tests {
    use super::*;
    use Priority::{Batch, Interactive};

    const SHAPE: Shape = Shape { slots_max: 2, kv_blocks_max: 1000, prefill_rows: 64, batch_ageing_us: 30_000_000 };

    /// A step costs 1 ms whatever is in it.
    fn speed() -> StepModel {
        let mut speed = StepModel::new(1000.0);
        for n in 0..2000u32 {
            let (rows_decode, rows_prefill, context_cells) = (n % 3, n * 7 % 65, u64::from(n * 13 % 400));
            speed.observe(super::super::StepObservation {
                rows_decode,
                rows_prefill,
                context_cells,
                duration_us: 1000.0,
            });
        }
        speed
    }

    fn work(tokens: u32) -> Work {
        Work::new(10, &Distribution::certain(tokens), 2)
    }

    fn queued(priority: Priority, key: u64, ticket: u32, tokens: u32) -> Queued {
        let never = u64::MAX;
        Queued { priority, key, ticket, work: work(tokens), accepted_us: 0, latest_start_us: never, deadline_us: never }
    }

    fn seated(tokens: u32, made: u32, preemptible: bool) -> Seated {
        Seated {
            work: work(tokens),
            ticket: 0,
            made,
            prefill_left: 0,
            preemptible,
            paused: false,
            pinned: false,
            accepted_us: 0,
            deadline_us: u64::MAX,
        }
    }

    fn played(seated: &[Seated], waiting: &[Queued]) -> Board {
        let mut sorted = waiting.to_vec();
        sorted.sort_by_key(|w| w.priority.index());
        let mut board = Board::new(SHAPE, speed());
        board.play(0.0, SHAPE, &speed(), Load::default(), seated, &sorted, waiting.len() as u32);
        board
    }

    fn start_ms(board: &Board, priority: Priority, key: u64) -> (u32, i64) {
        let start = board.start(0.0, priority, key);
        (start.position, (start.mean_us / 1000.0).round() as i64)
    }

    #[test]
    fn a_free_slot_starts_at_once_and_who_waits_starts_when_one_ends() {
        assert_eq!(start_ms(&played(&[seated(50, 0, false)], &[]), Interactive, 0), (0, 0));
        let busy = [seated(50, 10, false), seated(100, 10, false)];
        assert_eq!(start_ms(&played(&busy, &[]), Interactive, 0), (0, 40));
        let waiting = [queued(Interactive, 0, 0, 19), queued(Interactive, 0, 1, 99)];
        // The first takes the slot at 40 until 60 (a step of prompt, 19 of tokens), the second that until 160; 90 is next.
        assert_eq!(start_ms(&played(&busy, &waiting), Interactive, 0), (2, 90));
    }

    #[test]
    fn adding_arrivals_gives_what_playing_them_gives() {
        let busy = [seated(50, 10, false), seated(100, 10, false)];
        let waiting: Vec<_> =
            (0..40).map(|n| queued(if n % 3 == 0 { Batch } else { Interactive }, 0, n, 5 + n)).collect();
        let all = played(&busy, &waiting);
        let mut grown = played(&busy, &[]);
        waiting.iter().for_each(|w| grown.add(0.0, *w));
        let ((_, a), (_, b)) = (start_ms(&all, Interactive, 0), start_ms(&grown, Interactive, 0));
        assert_eq!(start_ms(&all, Interactive, 0).0, start_ms(&grown, Interactive, 0).0);
        assert!((a - b).abs() <= 2, "{a} {b}");
        let ((p, a), (q, b)) = (start_ms(&all, Batch, 0), start_ms(&grown, Batch, 0));
        assert!(p == q && (a - b).abs() * 20 <= a, "{a} {b}");
        assert_eq!(all.len(), grown.len());
    }

    /// The engine thread has seen who waits, then one of them is canceled, then it shows what it played: the canceled one was
    /// waited for again.
    #[test]
    fn who_left_while_a_board_was_played_is_not_waited_for() {
        let busy = [seated(50, 0, false), seated(100, 0, false)];
        let waiting = [queued(Interactive, 0, 0, 500), queued(Interactive, 0, 1, 500)];
        let mut shown = played(&busy, &waiting);
        let (mut next, mut after) = (played(&busy, &waiting), played(&busy, &waiting));
        waiting.iter().for_each(|w| shown.withdraw(0.0, Interactive, w.key, w.ticket, &w.work));
        shown.add(0.0, queued(Interactive, 0, 2, 9));
        let wanted = start_ms(&shown, Interactive, 0);
        assert!(wanted.1 <= 60, "{wanted:?}");
        for board in [&mut next, &mut after] {
            board.adopt(0.0, &shown);
            assert_eq!(start_ms(board, Interactive, 0), wanted);
            shown = board.clone();
        }
    }

    #[test]
    fn batch_work_in_a_slot_does_not_keep_interactive_work_waiting() {
        let busy = [seated(50, 10, true), seated(100, 10, false)];
        let board = played(&busy, &[]);
        assert_eq!(start_ms(&board, Interactive, 0), (0, 0));
        assert_eq!(start_ms(&board, Batch, 0), (0, 40));
    }

    #[test]
    fn old_batch_work_gets_its_slot_however_much_interactive_work_there_is() {
        let busy = [seated(5000, 10, false), seated(5000, 10, false)];
        let shape = Shape { batch_ageing_us: 500_000, ..SHAPE };
        let batch = |ticket, accepted_us| Queued { accepted_us, ..queued(Batch, 0, ticket, 199) };
        let load = Load { rows: 2.0, interactive_share: 1.0 };
        let mut board = Board::new(shape, speed());
        board.play(400_000.0, shape, &speed(), load, &busy, &[batch(0, 0), batch(1, 100_000)], 2);
        let at = |board: &Board, position| (board.start_at(400_000.0, Batch, position) / 1000.0).round();
        // The first is old at 500 and takes 200; the second is old at 600 and waits for it; then a newcomer, old at 900.
        assert_eq!([at(&board, 0), at(&board, 1), at(&board, 2)], [500.0, 700.0, 900.0]);
        board.add(400_000.0, batch(2, 400_000));
        assert_eq!(at(&board, 3), 1100.0);
    }

    #[test]
    fn with_keys_the_position_is_the_rank_and_those_behind_are_put_off() {
        let busy = [seated(50, 10, false), seated(60, 10, false)];
        let waiting = [queued(Interactive, 10, 0, 19), queued(Interactive, 30, 1, 19), queued(Interactive, 50, 2, 19)];
        let mut board = played(&busy, &waiting);
        assert_eq!(start_ms(&board, Interactive, 20), (1, 50));
        assert_eq!(start_ms(&board, Interactive, 30).0, 2, "who came first goes first");
        board.add(0.0, queued(Interactive, 20, 3, 19));
        assert_eq!(start_ms(&board, Interactive, 40), (3, 70));
        board.remove(Interactive, 10, 0);
        assert_eq!(start_ms(&board, Interactive, 40).0, 2);
        assert_eq!(board.len(), 3);
    }

    #[test]
    fn who_withdraws_lets_those_behind_move_up() {
        let busy = [seated(50, 10, false)];
        let one = Shape { slots_max: 1, ..SHAPE };
        let waiting = [queued(Interactive, 0, 0, 19), queued(Interactive, 0, 1, 99), queued(Batch, 0, 2, 19)];
        let mut board = Board::new(one, speed());
        board.play(0.0, one, &speed(), Load::default(), &busy, &waiting, 3);
        let [before, batch] = [Interactive, Batch].map(|p| start_ms(&board, p, 0));
        board.withdraw(0.0, Interactive, 0, 1, &waiting[1].work);
        board.withdraw(0.0, Interactive, 0, 1, &waiting[1].work);
        assert_eq!(start_ms(&board, Interactive, 0), (before.0 - 1, before.1 - 100));
        assert_eq!(start_ms(&board, Batch, 0), (batch.0 - 1, batch.1 - 100));
        assert_eq!((board.len(), (board.start_at(0.0, Batch, 1) / 1000.0).round()), (2, 60.0));
    }

    #[test]
    fn an_arrival_that_the_engine_has_not_seen_yet_is_kept() {
        let busy = [seated(50, 10, false), seated(60, 10, false)];
        let mut shown = played(&busy, &[queued(Interactive, 0, 0, 19)]);
        shown.add(0.0, queued(Interactive, 0, 1, 19));
        let mut next = played(&busy, &[queued(Interactive, 0, 0, 19)]);
        next.adopt(0.0, &shown);
        assert_eq!(start_ms(&next, Interactive, 0).0, 2);
        let mut later = Board::new(SHAPE, speed());
        let both = [queued(Interactive, 0, 0, 19), queued(Interactive, 0, 1, 19)];
        later.play(0.0, SHAPE, &speed(), Load::default(), &busy, &both, 2);
        later.adopt(0.0, &shown);
        assert_eq!(start_ms(&later, Interactive, 0).0, 2, "one that the engine has is not counted twice");
    }

    #[test]
    fn a_place_is_free_when_somebody_leaves_and_the_next_one_later() {
        let busy = [seated(50, 10, false), seated(60, 10, false)];
        let board = played(&busy, &[queued(Interactive, 0, 0, 19), queued(Batch, 0, 1, 19)]);
        let at: Vec<_> = (0..4).map(|k| (board.place_free_us(0.0, k) / 1000.0).round()).collect();
        assert_eq!(at[..2], [40.0, 50.0]);
        assert!(at[1] < at[2] && at[2] < at[3], "{at:?}");
    }

    #[test]
    fn who_will_be_too_late_is_not_waited_for() {
        let busy = [seated(50, 10, false), Seated { deadline_us: 30_000, ..seated(60, 10, false) }];
        let late = Queued { latest_start_us: 20_000, ..queued(Interactive, 0, 0, 100) };
        let cut = Queued { deadline_us: 60_000, ..queued(Interactive, 0, 1, 100) };
        // One slot is free at 30 because its task must end, and again at 60 for the same reason; the other at 40.
        assert_eq!(start_ms(&played(&busy, &[late]), Interactive, 0), (1, 30));
        assert_eq!(start_ms(&played(&busy, &[late, cut]), Interactive, 0), (2, 40));
        assert_eq!(start_ms(&played(&busy, &[late, cut, queued(Interactive, 0, 2, 99)]), Interactive, 0), (3, 60));
    }

    #[test]
    fn with_little_memory_there_are_fewer_slots() {
        let tight = Shape { kv_blocks_max: 3, ..SHAPE };
        let mut board = Board::new(tight, speed());
        board.play(0.0, tight, &speed(), Load::default(), &[seated(50, 10, false)], &[], 0);
        assert_eq!(start_ms(&board, Interactive, 0), (0, 40));
    }

    #[test]
    fn lengths_that_are_not_known_spread_the_start() {
        let spread = Work { parts: [5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 120.0, 200.0], ..work(1) };
        let busy =
            [Seated { work: spread, ..seated(1, 0, false) }, Seated { work: spread, ticket: 1, ..seated(1, 0, false) }];
        let start = played(&busy, &[]).start(0.0, Interactive, 0);
        assert!(start.variance_us2.sqrt() > 0.3 * start.mean_us, "{start:?}");
    }
}
