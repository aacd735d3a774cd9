//! The engine thread: admit, plan, forward, sample, commit, flush, again and again.
//!
//! It owns the engines, the waiting tasks and the writers of the running ones. It sleeps only when there is
//! nothing to do, and nobody waits for it: others leave messages, it answers between two steps.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use orchestratord_engine::{EngineOptions, FinishReason as EngineFinish, TokenSink, Verdict, shortened};

use super::pool::{Control, Entry, Loaded, Pool, PoolState, SessionKvView};
use super::prediction::{Distribution, Experience, StepModel, StepObservation};
use super::scheduler::Scheduler;
use super::served::{Running, Served, outcome_of};
use super::streaming::{FrameBuffers, StreamMetrics, TokenDetail};
use super::task::{LiveTask, Outcome};
use crate::admission::Waiting;
use crate::domain::error::OrchestratorError;
use crate::domain::task::FinishReason;
use crate::infra::prefetch::Stretch;
use crate::infra::stream::AppendError;
use crate::metrics::Metrics;

/// Longest sleep: deadlines of waiting tasks are looked at this often at least.
const NAP: Duration = Duration::from_millis(20);

/// Longest sleep while there is no task at all. Whoever brings work rings; what is shown is still brought up to date.
const REST: Duration = Duration::from_millis(200);

/// Running and waiting tasks are looked through for those that are over this often at most: at a thousand tasks it costs
/// more than a step's other work.
const EXPIRE_EVERY_US: u64 = 1_000;

/// Back-off before an engine is rebuilt: doubled with each failure in a row.
const REBUILD_FIRST: Duration = Duration::from_millis(50);
const REBUILD_LONGEST: Duration = Duration::from_secs(10);

/// Runs a pool until it is stopped.
pub fn run(pool: Arc<Pool>, waiting: Waiting<Entry>) {
    pool.doorbell.belongs_to_this_thread();
    let scheduler = Scheduler::new(pool.scheduler_rules, waiting, pool.gate.clone());
    let (served, buffers) = (Vec::new(), Buffers::default());
    let mut thread = EngineThread { scheduler, served, buffers, failures: 0, expired_us: 0, pool };
    while thread.turn() {}
}

#[derive(Default)]
struct Buffers {
    frames: FrameBuffers,
    text: String,
    released: String,
    /// Likeliest tokens at the place of the next token.
    top: Vec<(u32, f32)>,
    /// Times to the first token, and between two, of this step.
    first_token_us: Vec<u64>,
    between_tokens_us: Vec<u64>,
    /// Sequences that ended in this step.
    ended: Vec<usize>,
}

struct EngineThread {
    pool: Arc<Pool>,
    scheduler: Scheduler<Entry>,
    /// The one that new tasks get is last; those before it are finishing what they have.
    served: Vec<Served>,
    buffers: Buffers,
    /// Engine failures in a row.
    failures: u32,
    /// When tasks were last looked through for those that are over.
    expired_us: u64,
}

impl EngineThread {
    /// One round; false when the pool has stopped.
    fn turn(&mut self) -> bool {
        let now_us = self.pool.clock.now_us();
        self.obey_controls();
        self.drain_arrivals(now_us);
        if now_us >= self.expired_us + EXPIRE_EVERY_US || self.served.iter().all(|s| s.engine.is_idle()) {
            self.expired_us = now_us;
            self.expire(now_us);
        }
        self.seat(now_us);
        self.retire_old_models();
        let stepped = self.step_all();
        if self.pool.state() == PoolState::Stopped {
            // An engine that broke meanwhile has not been replaced: nothing may be asked of it.
            let_know(&self.pool);
            return false;
        }
        self.publish(now_us);
        let_know(&self.pool);
        if !stepped && !self.try_out() {
            let pool = &self.pool;
            let nobody = self.scheduler.waiting().is_empty() && self.served.iter().all(|s| s.engine.is_idle());
            let longest = if nobody { REST } else { NAP };
            pool.doorbell.sleep(Some(longest), || pool.has_controls() || pool.queue.has_arrivals());
        }
        true
    }

    fn obey_controls(&mut self) {
        while let Some(control) = self.pool.next_control() {
            match control {
                Control::Install { model, done } => {
                    let loaded = model.loaded.clone();
                    self.served.push(Served::new(self.pool.clone(), *model));
                    // The first task is to be predicted from what was measured.
                    self.scheduler.note_freed();
                    self.publish(self.pool.clock.now_us());
                    self.pool.serve(loaded);
                    done();
                }
                Control::SessionKv { session, answer } => answer(self.session_kv(session)),
                Control::DropSession { session } => {
                    self.served.iter_mut().for_each(|s| s.engine.drop_session(session));
                }
            }
        }
    }

    fn session_kv(&self, session: u128) -> SessionKvView {
        let Some(served) = self.served.last() else { return SessionKvView::default() };
        let kv = served.engine.session_kv(session);
        let warmth = match kv.total_tokens {
            0 => 0.0,
            total => kv.cached_tokens as f64 / total as f64,
        };
        SessionKvView { bytes: kv.bytes as u64, warmth }
    }

    fn drain_arrivals(&mut self, now_us: u64) {
        let pool = &self.pool;
        self.scheduler.drain(|entry| {
            let message = "a newer task took this task's place in the full queue: send it again later".into();
            let retry_after_ms = Some(pool.gate.place_free_ms(now_us));
            end(
                pool,
                &entry.task,
                Outcome::Failed(OrchestratorError::QueueFullDropLru { message, retry_after_ms }),
                now_us,
            );
        });
    }

    /// Lets go of everything that was ended by others or whose time is over.
    fn expire(&mut self, now_us: u64) {
        let pool = self.pool.clone();
        self.scheduler.expire(now_us, pool.drain_until_us(), |entry, why| {
            end(&pool, &entry.task, outcome_of(why, &entry.task, "was still waiting"), now_us);
        });
        for served in &mut self.served {
            for id in 0..served.running.len() {
                look_ahead(&served.running, id);
                let Some(running) = &mut served.running[id] else { continue };
                if let Some(outcome) = running.overdue(&pool, now_us) {
                    end(&pool, &running.task, outcome, now_us);
                }
                if running.task.stream.is_closed() {
                    served.engine.cancel(id as u64);
                    served.unseat(id);
                    self.scheduler.note_freed();
                }
            }
        }
    }

    fn seat(&mut self, now_us: u64) {
        let pool = &self.pool;
        self.scheduler.seat(now_us, &mut self.served, |entry, why| {
            let message = format!("this task can never run here: {why}");
            let error = OrchestratorError::ReplicaExhausted { message, retry_after_ms: None };
            end(pool, &entry.task, Outcome::Failed(error), now_us);
        });
        let seats = match self.served.last() {
            Some(served) if self.pool.state() == PoolState::Ready => served.engine.slots_free(),
            _ => 0,
        };
        self.scheduler.publish_seats_free(seats);
    }

    /// Drops engines that have nothing left to finish.
    fn retire_old_models(&mut self) {
        if self.served.len() < 2 {
            return;
        }
        let newest = self.served.len() - 1;
        let waiting = self.scheduler.waiting();
        let mut index = 0;
        self.served.retain(|served| {
            let awaited = waiting.iter().any(|w| Arc::ptr_eq(&w.entry.task.loaded, &served.loaded));
            let stays = index == newest || awaited || !served.is_empty();
            index += 1;
            stays
        });
    }

    /// One step of each engine that has work; true when there was any.
    fn step_all(&mut self) -> bool {
        let mut stepped = false;
        for index in 0..self.served.len() {
            if self.served[index].engine.is_idle() {
                continue;
            }
            stepped = true;
            if let Err(reason) = self.step(index) {
                self.reset(index, reason);
            }
        }
        stepped
    }

    /// # Errors
    ///
    /// When the engine failed or panicked; it must not be stepped again.
    fn step(&mut self, index: usize) -> Result<(), String> {
        let pool = &*self.pool;
        let served = &mut self.served[index];
        let next = served.next_step();
        served.engine.limit_prefill(self.scheduler.rules.prefill_rows(&served.speed, next) as usize);
        let token_us = served.speed.step_us(next.rows_decode.max(1).into(), 0.0, next.decode_cells as f64);
        let began_us = pool.clock.now_us();
        pool.step_began_us.store(began_us.max(1), SeqCst);
        let mut sink = Sink {
            pool,
            loaded: &served.loaded,
            token_us,
            experience: self.scheduler.experience(),
            running: &mut served.running,
            buffers: &mut self.buffers,
            now_us: None,
        };
        sink.buffers.ended.clear();
        let engine = &mut served.engine;
        // The engine is thrown away when it panics, so nobody sees what it left half done.
        let result = catch_unwind(AssertUnwindSafe(|| {
            fail::fail_point!("engine-step", |_| Err("the fault point engine-step was reached".to_owned()));
            engine.step(&mut sink)
        }));
        self.buffers.count(pool);
        pool.step_began_us.store(0, SeqCst);
        let report = match result {
            Ok(report) => report?,
            Err(panic) => return Err(panic_text(&*panic)),
        };
        let duration_us = pool.clock.now_us() - began_us;
        pool.metrics.step.observe_thousandths(duration_us * 1000);
        pool.metrics.preemptions.add(u64::from(report.preempted));
        served.trials.abandon();
        // Rows whose logits were wanted take longer, and say nothing of others.
        if report.scored == 0 {
            served.speed.observe(StepObservation {
                rows_decode: report.rows_decode,
                rows_prefill: report.rows_prefill,
                context_cells: report.context_cells,
                duration_us: duration_us as f64,
            });
        }
        self.scheduler.note_step(duration_us as f64, served.rows());
        for id in self.buffers.ended.drain(..) {
            served.unseat(id);
            self.scheduler.note_freed();
        }
        self.failures = 0;
        if pool.state() == PoolState::Unready {
            // The watchdog gave up on a step that did end after all.
            pool.set_state(PoolState::Ready);
        }
        Ok(())
    }

    /// A trial of the newest engine, if there is one to make and nobody wants anything: true when there was.
    fn try_out(&mut self) -> bool {
        let pool = self.pool.clone();
        let waiting = self.scheduler.waiting().len();
        let Some(index) = self.served.len().checked_sub(1) else { return false };
        let Served { engine, speed, trials, .. } = &mut self.served[index];
        if trials.is_empty() || pool.state() != PoolState::Ready {
            return false;
        }
        let mut go_on = |_: &StepModel| {
            pool.step_began_us.store(pool.clock.now_us().max(1), SeqCst);
            waiting == 0 && !pool.has_controls() && pool.queue.depth() == 0
        };
        let result = catch_unwind(AssertUnwindSafe(|| trials.next(&mut **engine, speed, &mut go_on)));
        pool.step_began_us.store(0, SeqCst);
        match result {
            Ok(Ok(_)) => {}
            Ok(Err(reason)) => self.reset(index, reason),
            Err(panic) => self.reset(index, panic_text(&*panic)),
        }
        // The board has the better figures at once.
        self.scheduler.note_freed();
        true
    }

    /// Ends what ran on a broken engine and builds a new one from the same weights.
    fn reset(&mut self, index: usize, reason: String) {
        let pool = self.pool.clone();
        tracing::error!(pool_id = pool.id, reason, "the engine failed and is being rebuilt");
        pool.metrics.engine_restarts.add(1);
        pool.set_last_error(Some(reason));
        pool.set_state(PoolState::Unready);
        let now_us = pool.clock.now_us();
        let served = &mut self.served[index];
        served.trials.abandon();
        for id in 0..served.running.len() {
            if let Some(running) = &served.running[id] {
                let message = "the engine failed under this task and was restarted: send it again".into();
                let outcome = Outcome::Failed(OrchestratorError::WorkerReset { message });
                end(&pool, &running.task, outcome, now_us);
                served.unseat(id);
                self.scheduler.note_freed();
            }
        }
        let_know(&pool);
        let options = EngineOptions {
            slots_max: pool.rules.slots_max,
            step_rows_max: pool.rules.step_rows_max,
            kv_blocks_max: pool.rules.kv_blocks_max,
            threads: pool.rules.threads,
            isa: pool.rules.isa,
            ..EngineOptions::default()
        };
        loop {
            let pause = REBUILD_FIRST.saturating_mul(1 << self.failures.min(16)).min(REBUILD_LONGEST);
            self.failures += 1;
            std::thread::sleep(pause);
            let model = served.loaded.model.clone();
            match catch_unwind(AssertUnwindSafe(|| served.engine.rebuilt(model, options.clone()))) {
                Ok(Ok(engine)) => {
                    served.engine = engine;
                    break;
                }
                Ok(Err(error)) => pool.set_last_error(Some(error)),
                Err(panic) => pool.set_last_error(Some(panic_text(&*panic))),
            }
            if pool.state() == PoolState::Stopped {
                return;
            }
        }
        pool.set_state(PoolState::Ready);
    }

    /// Tells the others what they predict and show from.
    fn publish(&mut self, now_us: u64) {
        let pool = &self.pool;
        let Some(served) = self.served.last() else { return };
        let usage = served.engine.kv_usage();
        pool.metrics.kv_blocks_used.set(usage.blocks_used as u64);
        pool.metrics.kv_blocks_max.set(usage.blocks_max as u64);
        pool.metrics.sequences_running.set(served.engine.running_count() as u64);
        self.scheduler.publish(now_us, served, &served.speed);
    }
}

/// Wakes whoever has something to do after this turn, once for all of it: the reactors, and the scribe.
fn let_know(pool: &Pool) {
    pool.hub.ring_all();
    pool.scribe.ring();
}

/// Ends a task in the middle of a turn; the scribe is rung at the end of it.
fn end(pool: &Pool, task: &Arc<LiveTask>, outcome: Outcome, now_us: u64) {
    if task.conclude(outcome, now_us) {
        pool.scribe.post(task.clone());
    }
}

/// Seats ahead whose memory is asked for while this one is served: first the seat, then what it points to.
const AHEAD: usize = 4;

/// Seats are served in their order, or nearly, and a thousand of them are more than the near caches hold.
fn look_ahead(running: &[Option<Running>], id: usize) {
    if let Some(seat) = running.get(id + 2 * AHEAD) {
        Stretch::of(seat).prefetch();
    }
    if let Some(Some(seat)) = running.get(id + AHEAD) {
        seat.prefetch();
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a text".into())
}

/// Where the engine's tokens go.
struct Sink<'a> {
    pool: &'a Pool,
    loaded: &'a Loaded,
    /// Time of a step with what runs now.
    token_us: f64,
    experience: &'a Experience,
    running: &'a mut [Option<Running>],
    buffers: &'a mut Buffers,
    /// When the step's first token came; the others come with it.
    now_us: Option<u64>,
}

impl TokenSink for Sink<'_> {
    fn top_logprobs(&mut self, _: u64, top: &[(u32, f32)]) {
        self.buffers.top.extend_from_slice(top);
    }

    fn token(&mut self, id: u64, token: u32, logprob: Option<f32>) -> Verdict {
        let now_us = *self.now_us.get_or_insert_with(|| self.pool.clock.now_us());
        look_ahead(self.running, id as usize);
        let running = self.running[id as usize].as_mut().expect("the engine gives tokens of seated tasks only");
        let Buffers { frames, text, released, top, .. } = &mut *self.buffers;
        text.clear();
        released.clear();
        let tokenizer = self.loaded.model.tokenizer();
        let bytes = match running.task.spec.shown.contains(&token) {
            true => tokenizer.token_name(token).unwrap_or_default().as_bytes(),
            false => tokenizer.token_bytes(token),
        };
        running.detokenizer.push(bytes, text);
        let hit = running.stops.push(text, released);
        if running.tokens + 1 == running.task.tokens_reserved && !hit {
            // There is no next token that could bring the rest of a character or of a stop string.
            text.clear();
            running.detokenizer.finish(text);
            if !running.stops.push(text, released) {
                running.stops.finish(released);
            }
        }
        let detail = logprob.map(|value| TokenDetail { id: token, logprob: value, top });
        let frame = frames.token(running.writer.next_id(), running.tokens, released, detail);
        top.clear();
        if let Err(error) = running.writer.append(frame) {
            return self.pool.refused(running, error, now_us);
        }
        running.tokens += 1;
        self.buffers.note_token(&self.pool.metrics, running, now_us);
        if running.tokens == 1 || now_us - running.last_metrics_us >= self.pool.rules.metrics_interval_us {
            running.last_metrics_us = now_us;
            let metrics = self.stream_metrics(id, now_us);
            let running = self.running[id as usize].as_mut().expect("the engine gives tokens of seated tasks only");
            let frame = self.buffers.frames.metrics(running.writer.next_id(), &metrics);
            if let Err(error) = running.writer.append(frame) {
                return self.pool.refused(running, error, now_us);
            }
        }
        if hit { Verdict::Stop } else { Verdict::Continue }
    }

    fn prompt_logprob(&mut self, id: u64, index: usize, token: u32, logprob: f32, top: &[(u32, f32)]) {
        let now_us = *self.now_us.get_or_insert_with(|| self.pool.clock.now_us());
        let running = self.running[id as usize].as_mut().expect("the engine tells of seated tasks only");
        running.task.times.last_token_us.store(now_us, Relaxed);
        let detail = TokenDetail { id: token, logprob, top };
        let frame = self.buffers.frames.prompt(running.writer.next_id(), index as u32, detail);
        if let Err(error) = running.writer.append(frame) {
            self.pool.refused(running, error, now_us);
        }
    }

    fn embedding(&mut self, id: u64, vector: &[f32]) {
        let running = self.running[id as usize].as_mut().expect("the engine gives vectors of seated tasks only");
        let now_us = self.pool.clock.now_us();
        running.task.times.last_token_us.store(now_us, Relaxed);
        let short = running.task.spec.embedding.dimensions.map(|len| shortened(vector, len as usize));
        let frame = self.buffers.frames.embedding(running.writer.next_id(), short.as_deref().unwrap_or(vector));
        if let Err(error) = running.writer.append(frame) {
            self.pool.refused(running, error, now_us);
        }
    }

    fn finished(&mut self, id: u64, reason: EngineFinish) {
        let running = self.running[id as usize].as_mut().expect("the engine ends seated tasks only");
        let now_us = self.pool.clock.now_us();
        let Buffers { frames, text, released, .. } = &mut *self.buffers;
        text.clear();
        released.clear();
        // Text that was held back for a stop string or half a character belongs to the client after all.
        running.detokenizer.finish(text);
        if !running.stops.push(text, released) {
            running.stops.finish(released);
        }
        if !released.is_empty() {
            let frame = frames.token(running.writer.next_id(), running.tokens, released, None);
            let _ = running.writer.append(frame);
        }
        if let Some(stop) = running.stops.matched() {
            let _ = running.task.stopped_by.set(stop.into());
        }
        let outcome = match reason {
            EngineFinish::Stop => Outcome::Finished(FinishReason::Stop),
            EngineFinish::Length => Outcome::Finished(FinishReason::Length),
            EngineFinish::ConstraintFailed => {
                // The same request would come to the same place: it is the request that has to change.
                let tokens = running.tokens;
                Outcome::Failed(OrchestratorError::InvalidParams(format!(
                    "field `response_format`: cannot be followed any further after {tokens} tokens: no token of the model \
                     goes on with it, or it takes too long to find one; make it simpler"
                )))
            }
        };
        // Whoever has read the end finds its tokens counted.
        self.buffers.count(self.pool);
        end(self.pool, &running.task, outcome, now_us);
        self.buffers.ended.push(id as usize);
    }
}

impl Pool {
    /// A task whose stream takes nothing more: somebody else has ended it, or its log is full.
    fn refused(&self, running: &Running, error: AppendError, now_us: u64) -> Verdict {
        if error == AppendError::Full {
            let message = "the stream's log is full: ask for fewer tokens, or for fewer of the likeliest in each place"
                .to_owned();
            end(self, &running.task, Outcome::Failed(OrchestratorError::Internal(message)), now_us);
        }
        Verdict::Stop
    }
}

impl Buffers {
    fn note_token(&mut self, metrics: &Metrics, running: &Running, now_us: u64) {
        let times = &running.task.times;
        let last_us = times.last_token_us.load(Relaxed);
        times.last_token_us.store(now_us, Relaxed);
        times.tokens_out.store(running.tokens, Relaxed);
        if running.tokens == 1 {
            times.first_token_us.store(now_us, Relaxed);
            let waited_us = now_us - running.task.accepted_us;
            metrics.latency_first_token[running.task.spec.priority.index()].observe_thousandths(waited_us);
            self.first_token_us.push(waited_us);
        } else {
            self.between_tokens_us.push(now_us - last_us);
        }
    }

    /// Counts the tokens since it was called last.
    fn count(&mut self, pool: &Pool) {
        let Buffers { first_token_us, between_tokens_us, .. } = self;
        pool.metrics.tokens_out.add((first_token_us.len() + between_tokens_us.len()) as u64);
        // Health may be reading: then these samples are left out rather than waited for.
        if let Ok(mut latencies) = pool.latencies.try_lock() {
            first_token_us.iter().for_each(|us| latencies.first_token_us.saturating_record(*us));
            between_tokens_us.iter().for_each(|us| latencies.between_tokens_us.saturating_record(*us));
        }
        first_token_us.clear();
        between_tokens_us.clear();
    }
}

impl Sink<'_> {
    fn stream_metrics(&self, id: u64, now_us: u64) -> StreamMetrics {
        let running = self.running[id as usize].as_ref().expect("the engine gives tokens of seated tasks only");
        let task = &running.task;
        let distribution = if task.spec.ignore_end {
            Distribution::certain(task.tokens_reserved)
        } else {
            let lengths = task.account.session.lengths.lock().expect("nothing panics under this lock");
            let (said, most) = (task.spec.expected_tokens, task.tokens_reserved);
            self.experience.lengths.distribution(&lengths, said, running.tokens, most)
        };
        let allowed_us = task.deadline_us.saturating_sub(now_us) as f64;
        let priority = task.spec.priority;
        let (raw, chance) =
            self.experience.chance_running(priority, &distribution, running.tokens, self.token_us, allowed_us);
        if running.tokens == 1 {
            task.times.raw_running_chance.store(raw.to_bits(), Relaxed);
        }
        let spent_ms = now_us.saturating_sub(task.times.seated_us.load(Relaxed)).div_ceil(1000);
        let rules = &task.session_rules;
        let budgets = task.account.budgets().less(u64::from(running.tokens), spent_ms, rules);
        StreamMetrics::new(self.pool.queue.depth() as u64, chance, running.kv_warmth, budgets)
    }
}

/// Ends the running tasks when one step takes too long. Runs on a thread of its own until the pool stops.
///
/// A step cannot be interrupted; but clients need not wait for it, and the process may not die of it.
pub fn watch(pool: &Pool) {
    let timeout_us = pool.rules.decode_timeout_ms * 1000;
    let pause = Duration::from_micros((timeout_us / 8).clamp(1_000, 250_000));
    while pool.state() != PoolState::Stopped {
        std::thread::sleep(pause);
        let began_us = pool.step_began_us.load(SeqCst);
        let now_us = pool.clock.now_us();
        if began_us == 0 || now_us.saturating_sub(began_us) < timeout_us {
            continue;
        }
        let timeout_ms = pool.rules.decode_timeout_ms;
        if pool.state() == PoolState::Ready {
            pool.set_last_error(Some(format!("a decode step took longer than {timeout_ms} ms")));
            pool.set_state(PoolState::Unready);
            tracing::error!(pool_id = pool.id, timeout_ms, "a decode step exceeded the watchdog");
        }
        let running = pool.running.lock().expect("nothing panics under this lock").clone();
        for task in running {
            task.end(Outcome::Failed(OrchestratorError::DecodeTimeout { timeout_ms }), &pool.scribe, now_us);
        }
    }
}
