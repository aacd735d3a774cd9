//! An engine and the tasks in its slots, as the scheduler sees them.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use orchestratord_engine::{AdmitError, Detokenizer, SamplingParams, SequenceRequest, StopMatcher};

use super::decoder::Decoder;
use super::gate::Promise;
use super::pool::{Entry, Installable, Loaded, Pool};
use super::prediction::{Seated, StepModel};
use super::scheduler::{BatchSeat, Job, Machine, NextStep, NoSeat, Overdue, StepRows, overdue};
use super::task::{LiveTask, Outcome};
use super::trials::Trials;
use crate::admission::{Place, Waiter, Waits};
use crate::domain::error::OrchestratorError;
use crate::domain::task::{FinishReason, Pooling, Priority, PromptLogprobs, Workload};
use crate::infra::prefetch::Stretch;
use crate::infra::stream::StreamWriter;
use crate::metrics::CancelReason;

/// Budgets of time are looked at this often at least.
const BUDGET_LOOK_US: u64 = 1_000_000;

/// A task in its slot.
pub struct Running {
    pub task: Arc<LiveTask>,
    pub writer: StreamWriter,
    pub detokenizer: Detokenizer,
    pub stops: StopMatcher,
    pub tokens: u32,
    pub last_metrics_us: u64,
    /// Since when nobody has read the stream.
    unread_since_us: Option<u64>,
    /// Before this the budgets of time cannot be spent, however many tasks spend them.
    budget_due_us: u64,
    pub kv_warmth: f64,
    ticket: u32,
    /// Batch work that nothing displaces any more.
    pinned: bool,
}

impl Running {
    /// Asks for the memory that a token of it needs.
    pub fn prefetch(&self) {
        let task = &*self.task;
        Stretch::of(self.writer.log()).prefetch();
        Stretch::of(&task.times).prefetch();
        Stretch::of(&task.spec.shown).prefetch();
        Stretch::of(&task.deadline_us).prefetch();
        Stretch::of(&task.tokens_reserved).prefetch();
    }

    /// Why this running task must end now, if it must.
    pub fn overdue(&mut self, pool: &Pool, now_us: u64) -> Option<Outcome> {
        let task = &self.task;
        if task.stream.reader_count() > 0 || !task.stream.was_opened() {
            self.unread_since_us = None;
        } else if task.spec.cancel_on_disconnect {
            let since = *self.unread_since_us.get_or_insert(now_us);
            if now_us - since >= pool.rules.disconnect_grace_us {
                return Some(Outcome::Canceled(CancelReason::Disconnect));
            }
        }
        if now_us >= self.budget_due_us {
            let left_us = task.account.time_left_us(now_us);
            if left_us == 0 {
                // Whoever spends the last of it has used the slot up to here: nothing of it is left over.
                task.times.last_token_us.store(now_us, Relaxed);
                return Some(Outcome::Finished(FinishReason::Length));
            }
            self.budget_due_us = now_us + (left_us / pool.rules.slots_max.max(1) as u64).min(BUDGET_LOOK_US);
        }
        let why = overdue(now_us, task.deadline_us, None, pool.drain_until_us())?;
        Some(outcome_of(why, task, "was still decoding"))
    }
}

/// What a task is told that ran out of time.
pub fn outcome_of(why: Overdue, task: &LiveTask, doing: &str) -> Outcome {
    let deadline_ms = task.spec.deadline_ms;
    Outcome::Failed(match why {
        Overdue::Deadline => OrchestratorError::DeadlineUnmet {
            message: format!(
                "the deadline of {deadline_ms} ms passed while the task {doing}: allow more time or ask for fewer tokens"
            ),
        },
        Overdue::Hopeless => OrchestratorError::DeadlineUnmet {
            message: format!(
                "the deadline of {deadline_ms} ms could not be met any more while the task {doing}, so it was taken out of \
                 the queue: allow more time or ask for fewer tokens"
            ),
        },
        Overdue::Drained => OrchestratorError::PoolUnavailable {
            message: "the pool was drained and this task's time is over: send it to another replica".into(),
            retry_after_ms: None,
        },
    })
}

impl Waits for Entry {
    fn place(&self) -> &Place {
        &self.task.place
    }
}

impl Job for Entry {
    fn promise(&self) -> &Promise {
        &self.task.promise
    }

    fn accepted_us(&self) -> u64 {
        self.task.accepted_us
    }

    fn deadline_us(&self) -> u64 {
        self.task.deadline_us
    }

    fn is_over(&self) -> bool {
        self.task.stream.is_closed()
    }
}

/// An engine and the tasks in its slots; ids of sequences are indices here.
pub struct Served {
    pool: Arc<Pool>,
    pub loaded: Arc<Loaded>,
    pub engine: Box<dyn Decoder>,
    pub speed: StepModel,
    pub trials: Trials,
    pub running: Vec<Option<Running>>,
    /// Places in `running` that nobody has.
    vacant: Vec<usize>,
    /// Those of `running` that are batch work.
    batch_count: usize,
    /// Tokens of the prompt that the latest seat found in the cache.
    cached_tokens: usize,
}

impl Served {
    pub fn new(pool: Arc<Pool>, model: Installable) -> Served {
        let Installable { loaded, engine, speed, trials } = model;
        Served {
            pool,
            loaded,
            engine,
            speed,
            trials,
            running: Vec::new(),
            vacant: Vec::new(),
            batch_count: 0,
            cached_tokens: 0,
        }
    }

    /// A place for a sequence; nobody else gets it before `take_place`.
    fn vacant_id(&self) -> usize {
        self.vacant.last().copied().unwrap_or(self.running.len())
    }

    fn take_place(&mut self, id: usize, running: Running) {
        self.batch_count += usize::from(running.task.spec.priority == Priority::Batch);
        match self.vacant.pop() {
            Some(vacant) => {
                assert_eq!(vacant, id, "a place was given away");
                self.running[id] = Some(running);
            }
            None => self.running.push(Some(running)),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.vacant.len() == self.running.len()
    }

    /// Takes the task out of its slot; the engine has let go of it already.
    pub fn unseat(&mut self, id: usize) {
        if let Some(gone) = self.running[id].take() {
            self.batch_count -= usize::from(gone.task.spec.priority == Priority::Batch);
            self.vacant.push(id);
            let mut running = self.pool.running.lock().expect("nothing panics under this lock");
            if let Some(index) = running.iter().position(|task| Arc::ptr_eq(task, &gone.task)) {
                running.swap_remove(index);
            }
        }
    }

    pub fn next_step(&self) -> NextStep {
        let next = self.engine.next_rows();
        NextStep {
            rows_decode: next.decode,
            decode_cells: next.decode_cells,
            prefill_position: next.prefill_position.unwrap_or(0),
        }
    }

    /// What the step just made had in slots.
    pub fn rows(&self) -> StepRows {
        let all = self.engine.running_count();
        let interactive = self.running.len() - self.vacant.len() - self.batch_count;
        // Asked after every step, and mostly there is no batch work.
        let looked_at = if self.batch_count == 0 { 0 } else { self.running.len() };
        let pinned = self.running[..looked_at].iter().flatten().filter(|r| r.pinned).count();
        // Old batch work that was put aside before its turn came has no slot yet.
        let pinned = pinned.min(all.saturating_sub(interactive));
        StepRows { all: all as u32, interactive: interactive as u32, pinned: pinned as u32 }
    }
}

impl Machine<Entry> for Served {
    fn serves(&self, entry: &Entry) -> bool {
        Arc::ptr_eq(&self.loaded, &entry.task.loaded)
    }

    fn slots_free(&self) -> usize {
        self.engine.slots_free()
    }

    fn seat(&mut self, entry: &Entry, priority: Priority, pinned: bool) -> Result<usize, NoSeat> {
        // Batch sequences that were preempted go on before new ones begin.
        if priority == Priority::Batch && !pinned && self.engine.paused_count() > 0 {
            return Err(NoSeat::Now);
        }
        let id = self.vacant_id();
        let preemptible = priority == Priority::Batch && !pinned;
        match self.engine.admit(sequence_request(id as u64, &entry.task, preemptible)) {
            Ok(info) => {
                self.cached_tokens = info.cached_tokens;
                Ok(id)
            }
            Err(AdmitError::NoSlot | AdmitError::NoBlocks) => Err(NoSeat::Now),
            Err(error) => Err(NoSeat::Never(error.to_string())),
        }
    }

    fn undo(&mut self, id: usize) {
        self.engine.cancel(id as u64);
    }

    fn begin(&mut self, id: usize, waiter: Waiter<Entry>, pinned: bool, now_us: u64) {
        let Entry { task, writer } = waiter.entry;
        // The engine has it now; an ended task is remembered for a while, and need not keep it.
        *task.constraint.lock().expect("nothing panics under this lock") = None;
        let pool = &self.pool;
        pool.metrics.tasks_started[waiter.priority.index()].add(1);
        pool.metrics.prefix_cache_hit_tokens.add(self.cached_tokens as u64);
        task.account.seated(now_us.max(1));
        task.times.seated_us.store(now_us.max(1), Relaxed);
        task.times.cached_tokens.store(self.cached_tokens as u32, Relaxed);
        pool.running.lock().expect("nothing panics under this lock").push(task.clone());
        let running = Running {
            detokenizer: Detokenizer::default(),
            stops: StopMatcher::new(&task.spec.stop),
            tokens: 0,
            last_metrics_us: 0,
            unread_since_us: None,
            budget_due_us: 0,
            kv_warmth: self.cached_tokens as f64 / task.prompt.len().max(1) as f64,
            ticket: waiter.ticket,
            pinned,
            task,
            writer,
        };
        self.take_place(id, running);
    }

    fn batch_seats(&self) -> impl Iterator<Item = BatchSeat> {
        let mut aside = Vec::new();
        if self.engine.paused_count() > 0 {
            self.engine.progress(&mut |id, progress| {
                if progress.paused {
                    aside.push(id as usize);
                }
            });
        }
        // Asked in every turn, and mostly there is none.
        let looked_at = if self.batch_count == 0 { 0 } else { self.running.len() };
        self.running[..looked_at].iter().enumerate().filter_map(move |(id, running)| {
            let running = running.as_ref().filter(|r| r.task.spec.priority == Priority::Batch)?;
            let paused = aside.contains(&id);
            Some(BatchSeat { id, accepted_us: running.task.accepted_us, paused, pinned: running.pinned })
        })
    }

    fn pin(&mut self, id: usize) {
        if let Some(running) = &mut self.running[id] {
            running.pinned = true;
            self.engine.pin(id as u64);
        }
    }

    fn seated(&self, out: &mut Vec<Seated>) {
        self.engine.progress(&mut |id, progress| {
            let Some(running) = self.running.get(id as usize).and_then(Option::as_ref) else { return };
            out.push(Seated {
                work: running.task.promise.work,
                ticket: running.ticket,
                made: running.tokens,
                prefill_left: progress.prefill_left,
                preemptible: running.task.spec.priority == Priority::Batch && !running.pinned,
                paused: progress.paused,
                pinned: running.pinned,
                accepted_us: running.task.accepted_us,
                deadline_us: running.task.deadline_us,
            });
        });
    }
}

fn sequence_request(id: u64, task: &LiveTask, preemptible: bool) -> SequenceRequest {
    let spec = &task.spec;
    let s = &spec.sampling;
    let pooling = match (spec.workload, spec.embedding.pooling) {
        (Workload::Embedding, None) => Some(task.loaded.info.pooling),
        (Workload::Embedding, Some(Pooling::Last)) => Some(orchestratord_engine::Pooling::Last),
        (Workload::Embedding, Some(Pooling::Mean)) => Some(orchestratord_engine::Pooling::Mean),
        _ => None,
    };
    SequenceRequest {
        id,
        prompt: task.prompt.clone(),
        max_tokens: if spec.prompt_logprobs == PromptLogprobs::Only { 0 } else { task.tokens_reserved },
        sampling: SamplingParams {
            temperature: s.temperature,
            top_k: s.top_k,
            top_p: s.top_p,
            min_p: s.min_p,
            repetition_penalty: s.repetition_penalty,
            presence_penalty: s.presence_penalty,
            frequency_penalty: s.frequency_penalty,
            seed: s.seed,
            logit_bias: s.logit_bias.clone(),
            min_tokens: s.min_tokens,
        },
        preemptible,
        session: Some(spec.session_id.0),
        reuse: spec.reuse_kv,
        want_logprobs: spec.logprobs,
        top_logprobs: spec.top_logprobs,
        want_prompt_logprobs: spec.prompt_logprobs != PromptLogprobs::None,
        ignore_end: spec.ignore_end,
        constraint: task.constraint.lock().expect("nothing panics under this lock").clone(),
        pooling,
    }
}
