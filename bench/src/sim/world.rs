//! Drives the server's own queue, gate, scheduler and sessions through a trace, and checks what must hold after every step.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::Rc;
use std::sync::Arc;

use orchestratord::admission::{Place, QueueWithMetrics, Waits};
use orchestratord::config::{Config, QueueOrder};
use orchestratord::domain::ids::Uuid;
use orchestratord::domain::task::Priority;
use orchestratord::metrics::{Labels, Metrics};
use orchestratord::services::gate::{Gate, GateRules, Offer, Promise, Refusal};
use orchestratord::services::prediction::{End, Record, StepModel, StepObservation};
use orchestratord::services::scheduler::{Job, Machine, NextStep, Overdue, Scheduler, SchedulerRules, overdue};
use orchestratord::services::session::{Account, Bill, SessionRules, SessionService};

use super::chance::Chance;
use super::engine::{BLOCK_LEN, SimEngine, Truth};
use super::trace::Client;

/// Ids of sessions in the session service.
const SESSION_ID: u128 = 1 << 64;

/// A task in the queue or in a slot.
#[derive(Clone)]
pub struct SimJob {
    pub index: usize,
    pub promise: Promise,
    pub accepted_us: u64,
    pub deadline_us: u64,
    pub prompt_len: u32,
    pub tokens: u32,
    pub granted: u32,
    pub generation: u32,
    pub seated_us: Rc<Cell<Option<u64>>>,
    over: Rc<Cell<bool>>,
    place: Rc<Place>,
}

impl Waits for SimJob {
    fn place(&self) -> &Place {
        &self.place
    }
}

impl Job for SimJob {
    fn promise(&self) -> &Promise {
        &self.promise
    }
    fn accepted_us(&self) -> u64 {
        self.accepted_us
    }
    fn deadline_us(&self) -> u64 {
        self.deadline_us
    }
    fn is_over(&self) -> bool {
        self.over.get()
    }
}

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Finished,
    /// Its deadline passed in the slot, or while it waited.
    Late,
    /// Taken out of the queue because it could not be met any more.
    Hopeless,
    Canceled,
    /// Displaced by a newcomer under drop-lru.
    Dropped,
    /// The engine failed under it.
    Failed,
    Drained,
    /// Its budget of time was spent.
    OutOfTime,
}

/// What became of one client.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    pub attempts: u32,
    pub refused_full: u32,
    pub refused_hopeless: bool,
    pub refused_budget: bool,
    pub accepted_us: Option<u64>,
    /// Attempt at which it got in; 0 is the first.
    pub accepted_at: u32,
    pub position: u32,
    pub predicted_start_us: f64,
    pub chance: f64,
    /// At the first token, and half-way through what it was expected to take.
    pub chance_running: Option<f64>,
    pub seated_us: Option<u64>,
    pub first_token_us: Option<u64>,
    pub ended_us: Option<u64>,
    pub tokens: u32,
    pub ended: Option<Ended>,
}

impl Outcome {
    pub fn in_time(&self) -> bool {
        self.ended == Some(Ended::Finished)
    }
}

/// Things that happen to the server itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The engine fails; it is back after so long.
    Failure { down_us: u64 },
    /// Another model takes over; the old one finishes what it has.
    Reload,
    /// Nothing new for so long; then what is left ends, and a reload opens the pool again.
    Drain { us: u64 },
}

/// What is run.
#[derive(Clone, Debug)]
pub struct Setup {
    pub config: Config,
    pub truth: Truth,
    pub seed: u64,
    pub faults: Vec<(u64, Fault)>,
    /// How often a client that is told to come back does so.
    pub retries: u32,
    /// They come at the next whole second, as `Retry-After` has it.
    pub retry_in_seconds: bool,
    /// Most alike steps that are taken at once; 1 to see every single one.
    pub steps_at_once: u32,
    /// A client that the gate is to let in although it predicts that it would be late.
    pub forced: Option<usize>,
    /// Stop once this client has ended.
    pub until_ended: Option<usize>,
    /// Predictions are made. Without a floor nothing that happens depends on them, so a run of which only that matters goes
    /// without.
    pub predicts: bool,
    /// Every so many rounds of steps everything is counted anew as well, although after each one what it can have changed is
    /// checked: that sees to it that the checks themselves add up.
    pub recount_every: u64,
}

impl Setup {
    pub fn new(seed: u64) -> Setup {
        let config = Config { on_time_probability_floor: 0.0, kv_blocks_max: 4096, ..Config::default() };
        Setup {
            config,
            truth: Truth::default(),
            seed,
            faults: Vec::new(),
            retries: 0,
            retry_in_seconds: false,
            steps_at_once: 64,
            forced: None,
            until_ended: None,
            predicts: true,
            recount_every: u64::MAX,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Fault(usize),
    Recovered,
    DrainOver,
    Cancel(usize),
    Come(usize),
}

/// What was counted on the way.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub steps: u64,
    pub runs: u64,
    pub preemptions: u64,
    pub simulated_us: f64,
    /// Time of a step and how many interactive streams waited for it.
    pub gaps_us: Vec<(f64, u32)>,
    pub queue_depth_max: usize,
}

pub struct World<'a> {
    pub clients: &'a [Client],
    pub outcomes: Vec<Outcome>,
    pub counts: Counts,
    setup: Setup,
    pub gate: Arc<Gate<SimJob>>,
    scheduler: Scheduler<SimJob>,
    sessions: SessionService,
    engines: Vec<SimEngine>,
    speed: StepModel,
    generation: u32,
    now_us: f64,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    next_client: usize,
    live: Vec<Option<Live>>,
    live_count: usize,
    ready: bool,
    drain_until_us: Option<u64>,
    /// Serial of the last task that was seated, by class: order within it.
    seated_key: [(u64, u64); 2],
    arrivals: u64,
    serial: Vec<u64>,
    waiting_count: usize,
    seated_count: usize,
    /// Tokens and money spent by session: what the session service must agree with.
    spent: Vec<(u64, u64)>,
    reserved: Vec<u64>,
    last_raw_running: Vec<f64>,
}

/// A task between acceptance and end.
struct Live {
    job: SimJob,
    account: Account,
}

impl<'a> World<'a> {
    pub fn new(setup: Setup, clients: &'a [Client]) -> World<'a> {
        let config = &setup.config;
        let labels = Labels { engine: "sim", engine_version: "1", pool_id: "sim".into(), replica_id: "0" };
        let metrics = Arc::new(Metrics::new(labels));
        let (queue, waiting) = QueueWithMetrics::new(config.queue_capacity, config.admission_policy, metrics);
        let rules = SchedulerRules::from_config(config);
        let mut chance = Chance::new(setup.seed);
        let speed = measure(&setup.truth, &mut chance, rules.slots_max);
        #[allow(clippy::arc_with_non_send_sync, reason = "the server's threads share it; here is one thread")]
        let gate = Arc::new(Gate::new(queue, GateRules::from_config(config), rules.first_shape(), speed.clone()));
        let scheduler = Scheduler::new(rules, waiting, gate.clone());
        let keys = clients.iter().map(|c| usize::from(c.key) + 1).max().unwrap_or(1);
        let sessions = SessionService::new(SessionRules::from_config(config), keys);
        let session_count = clients.iter().map(|c| c.session as usize + 1).max().unwrap_or(1);
        let first = SimEngine::new(0, setup.truth, rules.slots_max, rules.kv_blocks_max, Chance::new(setup.seed ^ 1));
        let events = setup.faults.iter().enumerate().map(|(i, (at, _))| Reverse((*at, Event::Fault(i)))).collect();
        World {
            clients,
            outcomes: vec![Outcome::default(); clients.len()],
            counts: Counts::default(),
            gate,
            scheduler,
            sessions,
            engines: vec![first],
            speed,
            generation: 0,
            now_us: 0.0,
            events,
            next_client: 0,
            live: (0..clients.len()).map(|_| None).collect(),
            live_count: 0,
            ready: true,
            drain_until_us: None,
            seated_key: [(0, 0); 2],
            arrivals: 0,
            serial: vec![0; clients.len()],
            waiting_count: 0,
            seated_count: 0,
            spent: vec![(0, 0); session_count],
            reserved: vec![0; session_count],
            last_raw_running: vec![f64::NAN; clients.len()],
            setup,
        }
    }

    /// Runs until every client has its answer.
    pub fn run(&mut self) {
        loop {
            self.turn();
            let done = self.setup.until_ended.is_some_and(|i| self.outcomes[i].ended.is_some());
            if done || !self.step() {
                break;
            }
        }
        if self.setup.until_ended.is_none() {
            self.recount();
            assert!(self.live.iter().all(Option::is_none), "a task was lost");
        }
    }

    fn now(&self) -> u64 {
        self.now_us as u64
    }

    /// What the engine thread does between two steps.
    fn turn(&mut self) {
        let now_us = self.now();
        let mut ended = Vec::new();
        self.scheduler.drain(|job| ended.push((job.index, Ended::Dropped)));
        for (index, why) in ended.drain(..) {
            self.end(index, why, now_us);
        }
        self.scheduler.expire(now_us, self.drain_until_us, |job, why| {
            job.over.set(true);
            ended.push((job.index, why_ended(why)));
        });
        for (index, why) in ended {
            self.end(index, why, now_us);
        }
        self.expire_running(now_us);
        let before: usize = self.engines.iter().map(|e| e.seqs.iter().flatten().count()).sum();
        if self.ready {
            self.scheduler.seat(now_us, &mut self.engines, |job, why| panic!("task {} does not fit: {why}", job.index));
        }
        self.note_seated(before, now_us);
        let seats = if self.ready { self.engines.last().map_or(0, SimEngine::slots_free) } else { 0 };
        self.scheduler.publish_seats_free(seats);
        let newest = self.generation;
        self.engines.retain(|e| e.generation == newest || !e.is_empty() || waits_for(&self.scheduler, e.generation));
        let engine = self.engines.last().expect("the newest stays");
        if self.setup.predicts {
            self.scheduler.publish(now_us, engine, &self.speed);
        }
        self.check_step();
    }

    fn expire_running(&mut self, now_us: u64) {
        for e in 0..self.engines.len() {
            for id in 0..self.engines[e].seqs.len() {
                let Some(seq) = &self.engines[e].seqs[id] else { continue };
                let (index, deadline_us) = (seq.job.index, seq.job.deadline_us);
                let out_of_time = self.live[index].as_ref().is_some_and(|l| l.account.time_left_us(now_us) == 0);
                let why = match overdue(now_us, deadline_us, None, self.drain_until_us) {
                    _ if seq.job.over.get() => None,
                    _ if out_of_time => Some(Ended::OutOfTime),
                    Some(why) => Some(why_ended(why)),
                    None => None,
                };
                if let Some(why) = why {
                    self.end(index, why, now_us);
                }
                if self.engines[e].seqs[id].as_ref().is_some_and(|s| s.job.over.get()) {
                    self.engines[e].remove(id);
                    self.scheduler.note_freed();
                }
            }
        }
    }

    /// Takes note of who got a slot in this turn, and that it was their turn.
    fn note_seated(&mut self, before: usize, now_us: u64) {
        let after: usize = self.engines.iter().map(|e| e.seqs.iter().flatten().count()).sum();
        if after == before {
            return;
        }
        let mut fresh: Vec<(usize, Priority, bool)> = Vec::new();
        for seq in self.engines.iter().flat_map(|e| e.seqs.iter().flatten()) {
            if self.outcomes[seq.job.index].seated_us.is_none() {
                fresh.push((seq.job.index, seq.priority, seq.pinned));
            }
        }
        fresh.sort_by_key(|(index, ..)| self.serial[*index]);
        assert_eq!(fresh.len(), after - before, "a task was seated twice");
        for (index, priority, _) in fresh {
            self.outcomes[index].seated_us = Some(now_us);
            self.live[index].as_ref().expect("a seated task is alive").account.seated(now_us);
            self.waiting_count -= 1;
            self.seated_count += 1;
            if self.setup.config.queue_order == QueueOrder::Fifo {
                let (key, last) = (self.serial[index], &mut self.seated_key[priority.index()]);
                assert!(key > last.1, "task {index} was overtaken within its class");
                last.1 = key;
            }
            let still = self.scheduler.waiting().iter();
            let ahead = still.filter(|w| w.priority == priority).map(|w| self.serial[w.entry.index]).min();
            let in_order =
                self.setup.config.queue_order != QueueOrder::Fifo || ahead.is_none_or(|a| a > self.serial[index]);
            assert!(in_order, "an older task of the class still waits");
        }
    }

    /// One round of alike steps, or a jump to the next event; false when nothing is left to do.
    fn step(&mut self) -> bool {
        let next_us = self.next_event_us();
        let mut longest_us: f64 = 0.0;
        let from_us = self.now_us;
        let (mut finished, mut firsts) = (Vec::new(), Vec::new());
        if self.ready {
            for e in 0..self.engines.len() {
                self.engines[e].resume();
                let next: NextStep = self.engines[e].next_step();
                let prefill_rows = self.scheduler.rules.prefill_rows(&self.speed, next);
                let outcomes = &mut self.outcomes;
                let until_us = next_us.map_or(f64::INFINITY, |t| t as f64).min(from_us + 50_000.0);
                let engine = &mut self.engines[e];
                let mut sampled: Vec<(usize, u32)> = Vec::new();
                let steps = engine
                    .run(from_us, until_us, self.setup.steps_at_once, prefill_rows, |id, n| sampled.push((id, n)));
                let Some(steps) = steps else { continue };
                let mut interactive = 0;
                for (id, count) in sampled {
                    let seq = engine.seqs[id].as_ref().expect("it was sampled");
                    // The log of a task that has ended takes no token.
                    if seq.job.over.get() {
                        continue;
                    }
                    interactive += u32::from(seq.priority == Priority::Interactive && seq.made > count);
                    let outcome = &mut outcomes[seq.job.index];
                    if outcome.tokens == 0 {
                        firsts.push((e, id));
                    }
                    assert!(outcome.ended.is_none(), "a token after the end");
                    outcome.tokens += count;
                    if seq.made == seq.tokens {
                        finished.push((e, id));
                    }
                }
                if self.setup.steps_at_once == 1 && interactive > 0 {
                    self.counts.gaps_us.push((steps.duration_us, interactive));
                }
                self.counts.steps += u64::from(steps.count);
                self.counts.runs += 1;
                if engine.generation == self.generation {
                    self.speed.observe(steps.observation());
                }
                self.scheduler.note_step(steps.duration_us, engine.rows());
                longest_us += steps.duration_us;
            }
        }
        if longest_us == 0.0 {
            let Some(next_us) = next_us else { return false };
            self.now_us = self.now_us.max(next_us as f64);
            self.happen(next_us);
            return true;
        }
        let end_us = from_us + longest_us;
        // Reactors go on while the engine is in its step.
        while let Some(at_us) = self.next_event_us().filter(|t| (*t as f64) <= end_us) {
            self.now_us = self.now_us.max(at_us as f64);
            self.happen(at_us);
        }
        self.now_us = end_us;
        self.counts.simulated_us = end_us;
        self.refresh_chances(&firsts);
        for (e, id) in finished {
            let Some(seq) = self.engines.get(e).and_then(|engine| engine.seqs[id].as_ref()) else { continue };
            let (index, over) = (seq.job.index, seq.job.over.get());
            if !over {
                self.end(index, Ended::Finished, end_us as u64);
            }
            self.engines[e].remove(id);
            self.scheduler.note_freed();
        }
        true
    }

    fn next_event_us(&self) -> Option<u64> {
        let event = self.events.peek().map(|Reverse((at, _))| *at);
        let arrival = self.clients.get(self.next_client).map(|c| c.arrival_us);
        // With nothing to step, whoever waits must still be looked at.
        let idle = !self.ready || self.engines.iter().all(SimEngine::is_empty);
        let nap = (idle && self.waiting_count > 0).then(|| self.now() + 20_000);
        [event, arrival, nap].into_iter().flatten().min()
    }

    fn happen(&mut self, at_us: u64) {
        if self.clients.get(self.next_client).is_some_and(|c| c.arrival_us <= at_us) {
            let index = self.next_client;
            self.next_client += 1;
            self.offer(index, at_us);
            return;
        }
        if self.events.peek().is_none_or(|Reverse((at, _))| *at > at_us) {
            return;
        }
        let Some(Reverse((_, event))) = self.events.pop() else { return };
        match event {
            Event::Come(index) => self.offer(index, at_us),
            Event::Cancel(index) => {
                if self.live[index].is_some() {
                    self.end(index, Ended::Canceled, at_us);
                }
            }
            Event::Fault(index) => self.fail(self.setup.faults[index].1, at_us),
            Event::Recovered => self.ready = true,
            Event::DrainOver => {
                self.drain_until_us = None;
                self.reload();
            }
        }
    }

    fn fail(&mut self, fault: Fault, at_us: u64) {
        match fault {
            Fault::Failure { down_us } => {
                for e in 0..self.engines.len() {
                    for id in 0..self.engines[e].seqs.len() {
                        let Some(seq) = self.engines[e].remove(id) else { continue };
                        if !seq.job.over.get() {
                            self.end(seq.job.index, Ended::Failed, at_us);
                        }
                        self.scheduler.note_freed();
                    }
                }
                self.ready = false;
                self.events.push(Reverse((at_us + down_us, Event::Recovered)));
            }
            Fault::Reload => self.reload(),
            Fault::Drain { us } => {
                self.drain_until_us = Some(at_us + us);
                self.events.push(Reverse((at_us + us + 50_000, Event::DrainOver)));
            }
        }
    }

    fn reload(&mut self) {
        self.generation += 1;
        let rules = self.scheduler.rules;
        let chance = Chance::new(self.setup.seed ^ u64::from(self.generation) << 20);
        let engine = SimEngine::new(self.generation, self.setup.truth, rules.slots_max, rules.kv_blocks_max, chance);
        self.engines.push(engine);
        self.scheduler.note_freed();
    }

    /// What a reactor does with a task that a client sends.
    fn offer(&mut self, index: usize, now_us: u64) {
        let client = self.clients[index];
        self.outcomes[index].attempts += 1;
        if !self.ready || self.drain_until_us.is_some() {
            return;
        }
        let rules = self.sessions.rules;
        let (session, _) = self.sessions.get_or_create(Uuid(SESSION_ID + u128::from(client.session)), now_us / 1000);
        let account = self.sessions.account(session, client.key);
        let Ok(granted) = account.reserve(client.tokens_max.into(), now_us, &rules) else {
            self.outcomes[index].refused_budget = true;
            let left = account.budgets();
            let promised = account.session.purse.tokens_reserved().max(account.key.tokens_reserved());
            assert!(left.tokens <= promised || left.time_ms == 0 || left.cost() < 1.0, "refused with money left");
            return;
        };
        let deadline_us = now_us + client.deadline_us;
        let offer = Offer {
            id: index as u128,
            now_us,
            priority: client.priority,
            deadline_us,
            client: client.key,
            prompt_len: client.prompt_len,
            tokens_max: granted as u32,
            tokens_said: client.tokens_said,
            never_ends: false,
            blocks: (client.prompt_len + granted as u32).div_ceil(BLOCK_LEN),
            session: &account.session.lengths,
            forced: self.setup.forced == Some(index),
        };
        let generation = self.generation;
        let mut made = None;
        let placed = self.gate.offer(&offer, |_, promise| {
            let job = SimJob {
                index,
                promise,
                accepted_us: now_us,
                deadline_us,
                prompt_len: client.prompt_len,
                tokens: client.tokens(granted as u32),
                granted: granted as u32,
                generation,
                seated_us: Rc::default(),
                over: Rc::default(),
                place: Rc::default(),
            };
            made = Some(job.clone());
            job
        });
        let nothing = Bill { reserved: granted, tokens: 0, time_ms: 0, seated_us: None, now_ms: now_us / 1000 };
        match placed {
            Ok(placed) => {
                let job = made.expect("the gate has made it");
                let outcome = &mut self.outcomes[index];
                outcome.accepted_us = Some(now_us);
                outcome.accepted_at = outcome.attempts - 1;
                outcome.position = job.promise.queue_position;
                outcome.predicted_start_us = job.promise.outlook.start_us;
                outcome.chance = job.promise.outlook.on_time_probability;
                self.arrivals += 1;
                self.serial[index] = self.arrivals;
                self.waiting_count += 1;
                self.reserved[client.session as usize] += granted;
                self.counts.queue_depth_max = self.counts.queue_depth_max.max(placed.waiting);
                if let Some(after_us) = client.cancel_us {
                    self.events.push(Reverse((now_us + after_us, Event::Cancel(index))));
                }
                self.check_session(client.session as usize, &account);
                self.live_count += 1;
                assert!(self.live[index].replace(Live { job, account }).is_none(), "a task was accepted twice");
            }
            Err(Refusal::Hopeless { on_time_probability, .. }) => {
                account.settle(nothing, &rules);
                assert!(on_time_probability < self.setup.config.on_time_probability_floor);
                self.outcomes[index].refused_hopeless = true;
                self.outcomes[index].chance = on_time_probability;
            }
            Err(Refusal::Full { full, retry_after_ms }) => {
                account.settle(nothing, &rules);
                let queue = &self.gate.queue;
                let places = queue.capacity() + queue.seats_free();
                assert!(full.waiting + self.gate.kept(now_us) >= places, "refused although there was a place");
                let outcome = &mut self.outcomes[index];
                outcome.refused_full += 1;
                if outcome.attempts <= self.setup.retries {
                    let after_ms = match self.setup.retry_in_seconds {
                        true => retry_after_ms.div_ceil(1000) * 1000,
                        false => retry_after_ms,
                    };
                    self.events.push(Reverse((now_us + after_ms * 1000, Event::Come(index))));
                }
            }
        }
    }

    /// What the scribe does with a task that has ended.
    fn end(&mut self, index: usize, why: Ended, now_us: u64) {
        let Live { job, account } = self.live[index].take().expect("a task ends once");
        self.live_count -= 1;
        job.over.set(true);
        let client = &self.clients[index];
        self.gate.leave(now_us, client.priority, &job.place, &job.promise);
        let mut outcome = self.outcomes[index];
        assert!(outcome.ended.is_none(), "task {index} was answered twice");
        (outcome.ended, outcome.ended_us) = (Some(why), Some(now_us));
        self.outcomes[index] = outcome;
        match outcome.seated_us {
            Some(_) => self.seated_count -= 1,
            None => self.waiting_count -= 1,
        }
        let served_us = outcome.seated_us.map_or(0, |us| now_us - us);
        let time_ms = served_us.div_ceil(1000);
        let bill = Bill {
            reserved: job.granted.into(),
            tokens: outcome.tokens.into(),
            time_ms,
            seated_us: outcome.seated_us,
            now_ms: now_us / 1000,
        };
        account.settle(bill, &self.sessions.rules);
        let session = client.session as usize;
        self.spent[session].0 += u64::from(outcome.tokens);
        self.spent[session].1 += time_ms;
        self.reserved[session] -= u64::from(job.granted);
        self.check_session(session, &account);
        let end = match why {
            Ended::Finished => End::Finished,
            Ended::Late | Ended::Hopeless => End::Late,
            _ => End::Other,
        };
        let raw = self.last_raw_running[index];
        let record = Record {
            priority: client.priority,
            outlook: job.promise.outlook,
            raw_running: (!raw.is_nan()).then_some(raw),
            waited_us: outcome.seated_us.map(|us| (us - job.accepted_us) as f64),
            served_us: served_us as f64,
            tokens: outcome.tokens,
            lived_us: (now_us - job.accepted_us) as f64,
            end,
        };
        let mut desk = self.gate.desk();
        if outcome.tokens > 0 {
            let by_itself = why == Ended::Finished && client.tokens_true <= job.granted;
            let mut session = account.session.lengths.lock().expect("nobody panics");
            desk.experience.lengths.observe(&mut session, client.tokens_said, outcome.tokens, by_itself);
        }
        desk.experience.learn(&record);
    }

    /// What the sink does at the first token: a metrics event, with the chance as it is now.
    fn refresh_chances(&mut self, firsts: &[(usize, usize)]) {
        for (e, id) in firsts {
            let Some(seq) = self.engines.get(*e).and_then(|engine| engine.seqs[*id].as_ref()) else { continue };
            let index = seq.job.index;
            self.outcomes[index].first_token_us = Some(self.now());
            let Some(live) = &self.live[index] else { continue };
            let client = &self.clients[index];
            let experience = self.scheduler.experience();
            let distribution = {
                let session = live.account.session.lengths.lock().expect("nobody panics");
                experience.lengths.distribution(&session, client.tokens_said, seq.made, live.job.granted)
            };
            let next = self.engines[*e].next_step();
            let token_us = self.speed.step_us(next.rows_decode.into(), 0.0, next.decode_cells as f64);
            let allowed_us = live.job.deadline_us.saturating_sub(self.now()) as f64;
            let (raw, chance) =
                experience.chance_running(client.priority, &distribution, seq.made, token_us, allowed_us);
            self.last_raw_running[index] = raw;
            self.outcomes[index].chance_running = Some(chance);
        }
    }

    fn check_session(&self, session: usize, account: &Account) {
        let (tokens, time_ms) = self.spent[session];
        let left = account.session.purse.left();
        let config = &self.setup.config;
        assert_eq!(
            left.tokens,
            config.session_tokens_budget.saturating_sub(tokens),
            "a session's tokens do not add up"
        );
        assert_eq!(left.time_ms, config.session_time_budget_ms.saturating_sub(time_ms), "its time does not add up");
        assert_eq!(account.session.purse.tokens_reserved(), self.reserved[session], "its promises do not add up");
        assert!(tokens <= config.session_tokens_budget, "a session has spent more than it had");
    }

    /// What must hold, after every round of steps. Order is checked where tasks are seated, budgets where they change.
    fn check_step(&mut self) {
        assert_eq!(self.gate.queue.depth(), self.waiting_count, "the queue's count and the tasks that wait differ");
        assert_eq!(self.scheduler.waiting().len(), self.waiting_count, "a waiting task was lost");
        let places = self.gate.queue.capacity() + self.scheduler.rules.slots_max as usize;
        assert!(self.waiting_count <= places, "more tasks wait than there are places");
        let mut in_engines = 0;
        for seq in self.engines.iter().flat_map(|e| e.seqs.iter().flatten()) {
            in_engines += 1;
            let (index, outcome) = (seq.job.index, &self.outcomes[seq.job.index]);
            assert!(
                outcome.accepted_us.is_some() && outcome.ended.is_none(),
                "task {index} is in a slot after its end"
            );
            assert!(outcome.tokens <= seq.job.granted, "task {index} was sent more than it was granted");
        }
        assert_eq!(in_engines, self.seated_count, "a task in a slot was lost");
        assert_eq!(self.live_count, self.waiting_count + in_engines, "a task neither waits nor runs nor has ended");
        let board = if self.setup.predicts { self.gate.desk().board.len() } else { self.waiting_count };
        assert!(board.abs_diff(self.waiting_count) <= 2 * self.scheduler.rules.slots_max as usize + 2);
        self.engines.iter().for_each(SimEngine::check);
        if self.counts.runs.is_multiple_of(self.setup.recount_every) {
            self.recount();
        }
    }

    /// Counts from the beginning what the checks after each step keep count of.
    fn recount(&self) {
        assert_eq!(self.live.iter().flatten().count(), self.live_count);
        let is_live = |o: &&Outcome| o.accepted_us.is_some() && o.ended.is_none();
        assert_eq!(self.outcomes.iter().filter(is_live).count(), self.live_count, "an accepted task has no end");
        for job in self.scheduler.waiting().iter().map(|w| &w.entry) {
            assert!(self.live[job.index].is_some(), "task {} waits after its end", job.index);
        }
        let tokens: u64 = self.outcomes.iter().filter(|o| o.ended.is_some()).map(|o| u64::from(o.tokens)).sum();
        assert_eq!(tokens, self.spent.iter().map(|(tokens, _)| tokens).sum::<u64>(), "tokens that nobody paid for");
    }

    pub fn preemptions(&self) -> u64 {
        self.engines.iter().map(|e| e.preemptions).sum()
    }
}

fn why_ended(why: Overdue) -> Ended {
    match why {
        Overdue::Deadline => Ended::Late,
        Overdue::Hopeless => Ended::Hopeless,
        Overdue::Drained => Ended::Drained,
    }
}

fn waits_for(scheduler: &Scheduler<SimJob>, generation: u32) -> bool {
    scheduler.waiting().iter().any(|w| w.entry.generation == generation)
}

/// The self-measurement at load: a few dozen steps of several shapes.
fn measure(truth: &Truth, chance: &mut Chance, slots: u32) -> StepModel {
    let mut model: Option<StepModel> = None;
    for (rows_decode, rows_prefill, context_cells) in [
        (1, 0, 8),
        (1, 0, 60),
        (0, 64, 2080),
        (1, 0, 70),
        (0, 128, 1000),
        (slots.min(8), 0, 150),
        (slots.min(8), 0, 200),
    ]
    .into_iter()
    .cycle()
    .take(28)
    {
        let duration_us = truth.observed_us(rows_decode, rows_prefill, context_cells, chance);
        let model = model.get_or_insert_with(|| StepModel::new(duration_us));
        model.observe(StepObservation { rows_decode, rows_prefill, context_cells, duration_us });
    }
    model.expect("there are steps")
}
