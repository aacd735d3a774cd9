//! What is asked of the simulator: each grade of the promises, and runs that only look for broken invariants.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use orchestratord::admission::QueueWithMetrics;
use orchestratord::config::{AdmissionPolicy, Config, QueueOrder};
use orchestratord::domain::task::Priority;
use orchestratord::metrics::{Labels, Metrics};
use orchestratord::services::gate::{Gate, GateRules, Offer};
use orchestratord::services::prediction::{SessionLengths, StepModel, StepObservation};
use orchestratord::services::scheduler::SchedulerRules;

use super::engine::Truth;
use super::grade::Grades;
use super::trace::{Client, Kind, Trace};
use super::world::{Counts, Fault, Outcome, Setup, World};

fn clients(setup: &Setup, trace: &Trace) -> Vec<Client> {
    trace.clients(&setup.truth, setup.config.slots_max as u32)
}

fn run(setup: &Setup, clients: &[Client]) -> (Grades, Vec<Outcome>, Counts) {
    let mut world = World::new(setup.clone(), clients);
    world.run();
    let grades = Grades::of(&world);
    (grades, world.outcomes, world.counts)
}

/// Tasks of a trace of which the first `count` are graded. Clients go on to come after them: batch work may wait for half a
/// minute, and no server knows that nobody comes any more.
pub const fn with_run_out(count: usize) -> usize {
    count + RUN_OUT
}

/// Fifty seconds and more of each trace.
const RUN_OUT: usize = 5000;

fn graded(setup: &Setup, trace: &Trace, count: usize) -> Grades {
    let clients = clients(setup, trace);
    let (_, outcomes, _) = run(setup, &clients);
    Grades::of_outcomes(clients.iter().map(|c| c.priority).zip(&outcomes).take(count))
}

/// Predictions against what came true, with nobody refused for them: then every one of them has an outcome.
pub fn calibration(kind: Kind, seed: u64, count: usize) -> Grades {
    let setup = Setup::new(seed);
    graded(&setup, &calibration_trace(kind, seed, with_run_out(count)), count)
}

pub fn calibration_trace(kind: Kind, seed: u64, count: usize) -> Trace {
    // Waits have to be there to be predicted: bursts and days bring them by themselves.
    let load = if matches!(kind, Kind::Poisson | Kind::HeavyTailed) { 0.95 } else { 0.9 };
    Trace::new(kind, seed, count, load)
}

/// Predicted starts alone, with deadlines that nobody misses: otherwise only those of the tasks are seen that started before
/// their deadline, which is the sooner the later they were predicted to start.
pub fn starts(kind: Kind, seed: u64, count: usize) -> Grades {
    let setup = Setup::new(seed);
    graded(&setup, &starts_trace(kind, seed, with_run_out(count)), count)
}

pub fn starts_trace(kind: Kind, seed: u64, count: usize) -> Trace {
    Trace { slack: 1e6, cancel_share: 0.0, ..Trace::new(kind, seed, count, 0.9) }
}

/// The trace of the live grader, over an engine about as fast: what a live grade would be if nothing else ran beside it.
#[derive(Clone, Copy, Debug)]
pub struct Live {
    pub slots: usize,
    pub tokens_max: u32,
    /// Tasks that come, over those that the engine can do.
    pub load: f64,
}

impl Live {
    pub fn setup(&self, seed: u64) -> Setup {
        let mut setup = Setup { truth: Truth::cpu(), ..Setup::new(seed) };
        setup.config.slots_max = self.slots;
        setup
    }

    pub fn trace(&self, seed: u64, count: usize) -> Trace {
        let kind = Kind::Live { tokens_max: self.tokens_max };
        Trace { sessions: 40, keys: 1, said_share: 0.0, cancel_share: 0.0, ..Trace::new(kind, seed, count, self.load) }
    }

    pub fn grades(&self, seed: u64, count: usize) -> Grades {
        let setup = self.setup(seed);
        graded(&setup, &self.trace(seed, with_run_out(count)), count)
    }
}

/// Clients at twice what the engine can do, who come back exactly when they are told to; `in_seconds` for those who read
/// `Retry-After` and not `X-Backoff-Ms`.
pub fn retry(kind: Kind, seed: u64, count: usize, in_seconds: bool) -> Grades {
    let setup = Setup { retries: 8, retry_in_seconds: in_seconds, ..Setup::new(seed) };
    let trace = Trace { slack: 1e6, cancel_share: 0.0, ..Trace::new(kind, seed, count, 2.0) };
    run(&setup, &clients(&setup, &trace)).0
}

/// Tasks that met their deadline at twice the load: plain FIFO, with hopeless ones refused and evicted, and with the
/// earliest deadline first as well.
#[derive(Clone, Copy, Debug)]
pub struct Goodput {
    pub offered: u64,
    pub fifo: u64,
    pub fifo_with_floor: u64,
    pub deadline_with_floor: u64,
}

pub fn goodput(seed: u64, count: usize) -> Goodput {
    let trace = Trace { batch_share: 0.0, ..Trace::new(Kind::Poisson, seed, count, 2.0) };
    let met = |floor: f64, order: QueueOrder| {
        let mut setup = Setup::new(seed);
        setup.config.on_time_probability_floor = floor;
        setup.config.queue_order = order;
        let grades = run(&setup, &clients(&setup, &trace)).0;
        (grades.offered, grades.in_time)
    };
    let (offered, fifo) = met(0.0, QueueOrder::Fifo);
    let fifo_with_floor = met(FLOOR_GRADED, QueueOrder::Fifo).1;
    let deadline_with_floor = met(FLOOR_GRADED, QueueOrder::Deadline).1;
    Goodput { offered, fifo, fifo_with_floor, deadline_with_floor }
}

/// The floor under which the graded server refuses a deadline.
pub const FLOOR_GRADED: f64 = 0.9;

/// Time between tokens of 15 running streams, the 99th of 100, microseconds: undisturbed, and while prompts of 8 k tokens
/// arrive one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Gaps {
    pub without_us: f64,
    pub with_us: f64,
    pub prompts: usize,
    /// Median time to the first token of such a prompt.
    pub first_token_us: f64,
}

pub fn gaps(seed: u64, step_ms_max: f64) -> Gaps {
    let mut setup = Setup { steps_at_once: 1, ..Setup::new(seed) };
    setup.config.step_ms_max = step_ms_max;
    setup.config.step_rows_max = 512;
    setup.config.kv_blocks_max = 16_384;
    setup.truth.stall_share = 0.0;
    let stream = Client {
        arrival_us: 0,
        priority: Priority::Interactive,
        session: 0,
        key: 0,
        prompt_len: 64,
        tokens_max: 6000,
        tokens_true: 6000,
        tokens_said: Some(6000),
        deadline_us: 1 << 40,
        cancel_us: None,
    };
    let streams: Vec<Client> = (0..15).map(|n| Client { session: n, ..stream }).collect();
    let long = |n: u32| Client {
        arrival_us: 1_000_000 + u64::from(n) * 1_000_000,
        session: 100 + n,
        prompt_len: 8192,
        tokens_max: 4,
        tokens_true: 4,
        tokens_said: Some(4),
        ..stream
    };
    let disturbed: Vec<Client> = streams.iter().copied().chain((0..10).map(long)).collect();
    let quantile = |clients: &[Client]| {
        let (_, outcomes, counts) = run(&setup, clients);
        // The streams have to be there all the time, and the first steps hold their own prompts.
        let mut gaps: Vec<f64> = counts.gaps_us.iter().filter(|(_, n)| *n >= 15).map(|(us, _)| *us).collect();
        gaps.sort_unstable_by(f64::total_cmp);
        let mut firsts: Vec<u64> =
            outcomes[15..].iter().filter_map(|o| Some(o.first_token_us? - o.accepted_us?)).collect();
        firsts.sort_unstable();
        (gaps[gaps.len() * 99 / 100], firsts.get(firsts.len() / 2).copied().unwrap_or(0))
    };
    let (without_us, _) = quantile(&streams);
    let (with_us, first_token_us) = quantile(&disturbed);
    Gaps { without_us, with_us, prompts: 10, first_token_us: first_token_us as f64 }
}

/// Refusals for hopeless deadlines, and how many of those tasks would have made it had they been let in: each is run again
/// from the beginning with that one let in.
#[derive(Clone, Copy, Debug)]
pub struct Refusals {
    pub refused: usize,
    pub looked_at: usize,
    pub would_have_made_it: usize,
    pub floor: f64,
}

pub fn refusals(seed: u64, count: usize, looked_at_max: usize) -> Refusals {
    let mut setup = Setup::new(seed);
    let floor = 0.05;
    setup.config.on_time_probability_floor = floor;
    let trace = clients(&setup, &Trace::new(Kind::Poisson, seed, count, 1.3));
    let (_, outcomes, _) = run(&setup, &trace);
    let refused: Vec<usize> =
        (0..outcomes.len()).filter(|i| *i > count / 10 && outcomes[*i].refused_hopeless).collect();
    let every = (refused.len() / looked_at_max).max(1);
    let looked_at: Vec<usize> = refused.iter().copied().step_by(every).take(looked_at_max).collect();
    let made_it = |index: &&usize| {
        let forced = Setup { forced: Some(**index), until_ended: Some(**index), ..setup.clone() };
        run(&forced, &trace).1[**index].in_time()
    };
    let would_have_made_it = looked_at.iter().filter(made_it).count();
    Refusals { refused: refused.len(), looked_at: looked_at.len(), would_have_made_it, floor }
}

/// Time of one prediction at admission behind `waiting` tasks, and of a whole offer that is accepted, nanoseconds; medians.
pub fn prediction_cost(waiting: usize) -> (f64, f64) {
    let config = Config { queue_capacity: 4 * waiting, on_time_probability_floor: 0.0, ..Config::default() };
    let labels = Labels { engine: "sim", engine_version: "1", pool_id: "sim".into(), replica_id: "0" };
    let (queue, _engine_end) =
        QueueWithMetrics::<u64>::new(config.queue_capacity, AdmissionPolicy::Reject, Arc::new(Metrics::new(labels)));
    let mut speed = StepModel::new(2000.0);
    for n in 0..64 {
        let step =
            StepObservation { rows_decode: n % 17, rows_prefill: n * 7 % 100, context_cells: 500, duration_us: 2000.0 };
        speed.observe(step);
    }
    let shape = SchedulerRules::from_config(&config).first_shape();
    let gate = Gate::new(queue, GateRules::from_config(&config), shape, speed);
    let session = Mutex::new(SessionLengths::default());
    {
        let mut desk = gate.desk();
        for n in 0..2000u32 {
            desk.experience.lengths.observe(&mut session.lock().expect("nobody panics"), None, 5 + n * 37 % 900, true);
        }
    }
    let offer = |id: u128| Offer {
        id,
        now_us: 1000,
        priority: Priority::Interactive,
        deadline_us: 5_000_000,
        client: 0,
        prompt_len: 100 + (id as u32 * 31) % 200,
        tokens_max: 512,
        tokens_said: None,
        never_ends: false,
        blocks: 40,
        session: &session,
        forced: false,
    };
    (0..waiting as u128).for_each(|id| {
        gate.offer(&offer(id), |_, _| 0).expect("there is room");
    });
    let median = |mut one: Box<dyn FnMut() + '_>| {
        let mut times: Vec<f64> = (0..30)
            .map(|_| {
                let began = Instant::now();
                (0..20).for_each(|_| one());
                began.elapsed().as_nanos() as f64 / 20.0
            })
            .collect();
        times.sort_unstable_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let predicted = median(Box::new(|| {
        std::hint::black_box(gate.predict(&offer(7)));
    }));
    let mut next = waiting as u128;
    let offered = median(Box::new(|| {
        next += 1;
        let _ = std::hint::black_box(gate.offer(&offer(next), |_, _| 0));
    }));
    (predicted, offered)
}

/// Everything at once, for the invariants: every trace, order and policy, small budgets and memory, cancels, engine
/// failures, reloads and drains. Gives how many steps were checked.
pub fn chaos(seed: u64, count: usize) -> u64 {
    let kind = Kind::ALL[(seed % 4) as usize];
    let mut setup = Setup { retries: 2, recount_every: 50, ..Setup::new(seed) };
    setup.config.queue_order = [QueueOrder::Fifo, QueueOrder::Deadline, QueueOrder::Fair][(seed % 3) as usize];
    setup.config.admission_policy = [AdmissionPolicy::Reject, AdmissionPolicy::DropLru][(seed / 2 % 2) as usize];
    setup.config.on_time_probability_floor = [0.0, 0.05, 0.5][(seed / 3 % 3) as usize];
    setup.config.queue_capacity = [4, 40, 256][(seed / 5 % 3) as usize];
    setup.config.slots_max = [1, 4, 16][(seed / 7 % 3) as usize];
    setup.config.kv_blocks_max = [300, 600, 4096][(seed / 11 % 3) as usize];
    setup.config.batch_ageing_ms = [50, 1000, 30_000][(seed / 13 % 3) as usize];
    setup.config.session_tokens_budget = [2000, 20_000, 1_000_000_000][(seed / 17 % 3) as usize];
    setup.config.session_time_budget_ms = [20_000, 86_400_000][(seed / 19 % 2) as usize];
    setup.config.key_tokens_budget = [0, 60_000][(seed / 23 % 2) as usize];
    let mut trace = Trace::new(kind, seed, count, [0.6, 1.0, 2.0][(seed % 5 % 3) as usize]);
    trace.cancel_share = 0.1;
    let clients = clients(&setup, &trace);
    let end_us = clients.last().map_or(0, |c| c.arrival_us);
    setup.faults = vec![
        (end_us / 5, Fault::Failure { down_us: 400_000 }),
        (end_us / 4, Fault::Reload),
        (end_us / 2, Fault::Drain { us: 500_000 }),
        (end_us * 3 / 4, Fault::Failure { down_us: 50_000 }),
        (end_us * 4 / 5, Fault::Reload),
    ];
    let (_, outcomes, counts) = run(&setup, &clients);
    let unanswered = |o: &&Outcome| o.attempts == 0 || (o.accepted_us.is_some() && o.ended.is_none());
    assert_eq!(outcomes.iter().filter(unanswered).count(), 0, "seed {seed}: a client has no answer");
    counts.runs
}

/// So many tasks at 0.85 of what the engine can do. Gives wall seconds, simulated seconds, and the grades.
pub fn marathon(seed: u64, count: usize) -> (f64, f64, Grades) {
    let setup = Setup::new(seed);
    let clients = clients(&setup, &Trace::new(Kind::Poisson, seed, count, 0.85));
    let began = Instant::now();
    let (grades, _, counts) = run(&setup, &clients);
    (began.elapsed().as_secs_f64(), counts.simulated_us / 1e6, grades)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Otherwise batch work that comes last is told of interactive work that never comes.
    #[test]
    fn clients_go_on_to_come_for_longer_than_batch_work_takes_to_grow_old() {
        const COUNT: usize = 2000;
        let live = Live { slots: 16, tokens_max: 384, load: 1.5 };
        let simulated = Kind::ALL.into_iter().flat_map(|kind| {
            let trace = |of: fn(Kind, u64, usize) -> Trace| (Setup::new(1), of(kind, 1, with_run_out(COUNT)));
            [trace(calibration_trace), trace(starts_trace)]
        });
        for (setup, trace) in simulated.chain([(live.setup(1), live.trace(1, with_run_out(COUNT)))]) {
            let clients = clients(&setup, &trace);
            let goes_on_us = clients.last().expect("they come").arrival_us - clients[COUNT - 1].arrival_us;
            assert!(goes_on_us > setup.config.batch_ageing_ms * 1000, "{:?} {goes_on_us}", trace.kind);
        }
    }
}
