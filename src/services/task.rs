//! A task from its acceptance to the day it is forgotten.

use std::cell::RefCell;
use std::collections::hash_map::Entry as Known;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};

use orchestratord_engine::Constraint;

use super::gate::{Gate, Promise};
use super::pool::{Entry, Loaded};
use super::scribe::Scribe;
use super::session::{Account, Budgets, SessionRules};
use crate::admission::Place;
use crate::domain::error::OrchestratorError;
use crate::domain::ids::{CorrelationId, TaskId};
use crate::domain::task::{FinishReason, Prompt, TaskSpec};
use crate::infra::prefetch::Stretch;
use crate::infra::recycle::{self, Shell};
use crate::infra::stream::TaskStream;
use crate::metrics::CancelReason;

/// How a task ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Finished(FinishReason),
    Canceled(CancelReason),
    Failed(OrchestratorError),
}

/// A task that was accepted.
pub struct LiveTask {
    pub spec: TaskSpec,
    pub prompt: Arc<[u32]>,
    /// The grammar of the answer, until the engine takes it.
    pub constraint: Mutex<Option<Constraint>>,
    /// The model that the prompt was tokenized for, and that will answer it.
    pub loaded: Arc<Loaded>,
    /// Whose predictions learn from it.
    pub gate: Arc<Gate<Entry>>,
    pub account: Account,
    pub session_rules: SessionRules,
    pub correlation_id: CorrelationId,
    pub stream: Arc<TaskStream>,
    pub promise: Promise,
    /// At most so many tokens: `max_tokens`, or what the session's budget left of it.
    pub tokens_reserved: u32,
    /// Budgets when the task was accepted, for its headers.
    pub budgets: Budgets,
    pub accepted_us: u64,
    /// Microseconds of the process's clock.
    pub deadline_us: u64,
    pub times: Times,
    /// Its place in the queue.
    pub place: Place,
    /// The stop string that has ended it.
    pub stopped_by: OnceLock<Box<str>>,
    outcome: OnceLock<Outcome>,
}

/// When things happened, microseconds of the process's clock; 0 is not yet.
#[derive(Default)]
pub struct Times {
    pub seated_us: AtomicU64,
    pub first_token_us: AtomicU64,
    pub last_token_us: AtomicU64,
    pub ended_us: AtomicU64,
    pub cached_tokens: AtomicU32,
    pub tokens_out: AtomicU32,
    /// The chance that was computed at the first token, before experience put it right: bits of an `f64`.
    pub raw_running_chance: AtomicU64,
}

impl Times {
    /// From the slot to the last token, or to the end of a budget of time.
    pub fn decode_ms(&self) -> u64 {
        let (from, to) = (self.seated_us.load(Relaxed), self.last_token_us.load(Relaxed));
        if from == 0 { 0 } else { to.saturating_sub(from).div_ceil(1000) }
    }
}

/// What a task is made of; `LiveTask::new` adds what is not known yet.
pub struct TaskParts {
    pub spec: TaskSpec,
    pub prompt: Arc<[u32]>,
    pub constraint: Mutex<Option<Constraint>>,
    pub loaded: Arc<Loaded>,
    pub gate: Arc<Gate<Entry>>,
    pub account: Account,
    pub session_rules: SessionRules,
    pub correlation_id: CorrelationId,
    pub stream: Arc<TaskStream>,
    pub promise: Promise,
    pub tokens_reserved: u32,
    pub budgets: Budgets,
    pub accepted_us: u64,
}

impl LiveTask {
    /// A task, where one was that is forgotten if there is such a place.
    pub fn new(parts: TaskParts) -> Arc<LiveTask> {
        let deadline_us = parts.accepted_us.saturating_add(parts.spec.deadline_ms.saturating_mul(1000));
        let task = LiveTask {
            spec: parts.spec,
            prompt: parts.prompt,
            constraint: parts.constraint,
            loaded: parts.loaded,
            gate: parts.gate,
            account: parts.account,
            session_rules: parts.session_rules,
            correlation_id: parts.correlation_id,
            stream: parts.stream,
            promise: parts.promise,
            tokens_reserved: parts.tokens_reserved,
            budgets: parts.budgets,
            accepted_us: parts.accepted_us,
            deadline_us,
            times: Times::default(),
            place: Place::default(),
            stopped_by: OnceLock::new(),
            outcome: OnceLock::new(),
        };
        recycle::place(task, SPARE.with_borrow_mut(|spare| spare.task.take()))
    }

    /// Ends the task, unless somebody has done so already; the scribe writes the terminal event.
    pub fn end(self: &Arc<Self>, outcome: Outcome, scribe: &Scribe, now_us: u64) -> bool {
        let ended = self.conclude(outcome, now_us);
        if ended {
            scribe.post(self.clone());
            scribe.ring();
        }
        ended
    }

    /// The same, but for the scribe: true for the one caller who owes it the task. One that waits gives its place back here
    /// and now: the engine may be in a long step.
    pub fn conclude(&self, outcome: Outcome, now_us: u64) -> bool {
        if !self.stream.close() {
            return false;
        }
        self.gate.leave(now_us, self.spec.priority, &self.place, &self.promise);
        self.times.ended_us.store(now_us.max(1), Relaxed);
        assert!(self.outcome.set(outcome).is_ok(), "only the one who closed the stream says why");
        true
    }

    /// Why the task ended; none while it lives.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.get()
    }

    fn is_forgettable(&self) -> bool {
        self.stream.is_finished() && self.stream.reader_count() == 0
    }
}

/// Longest text whose memory is kept.
const SPARE_TEXT_MAX: usize = 16 * 1024;

/// Memory of the task that was forgotten last.
#[derive(Default)]
struct Spare {
    task: Option<Shell<LiveTask>>,
    text: String,
}

thread_local! {
    static SPARE: RefCell<Spare> = RefCell::default();
}

/// A prompt's text as a task keeps it.
pub fn prompt_text(text: &str) -> String {
    let mut kept = SPARE.with_borrow_mut(|spare| std::mem::take(&mut spare.text));
    // Memory for a long prompt is not held by a short one.
    if kept.capacity() > 2 * text.len() + 64 {
        kept = String::new();
    }
    kept.push_str(text);
    kept
}

/// Lets go of a task that nobody asks for any more; the next ones get its memory, if it has no other owner.
fn forget(task: Arc<LiveTask>) {
    let Ok((LiveTask { spec, stream, .. }, shell)) = Shell::open(task) else { return };
    TaskStream::recycle(stream);
    SPARE.with_borrow_mut(|spare| {
        spare.task = Some(shell);
        if let Prompt::Text(mut text) = spec.prompt
            && text.capacity() <= SPARE_TEXT_MAX
        {
            text.clear();
            spare.text = text;
        }
    });
}

/// Every task that is alive or was lately.
pub struct TaskRegistry {
    tasks_max: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    by_id: HashMap<TaskId, Arc<LiveTask>, ahash::RandomState>,
    /// The same in the order of acceptance.
    order: VecDeque<Arc<LiveTask>>,
}

/// Tasks whose memory is asked for before their turn to be forgotten comes.
const AHEAD: usize = 2;

impl Inner {
    /// Makes place for one, if there are `tasks_max`: the oldest is forgotten that may be.
    fn make_place(&mut self, tasks_max: usize) -> Option<Arc<LiveTask>> {
        let mut forgotten = None;
        let mut looked_at = 0;
        while self.by_id.len() > tasks_max && looked_at < self.order.len() {
            let oldest = self.order.pop_front().expect("the order is not empty");
            if oldest.is_forgettable() {
                self.by_id.remove(&oldest.spec.task_id);
                forgotten = Some(oldest);
            } else {
                self.order.push_back(oldest);
            }
            looked_at += 1;
        }
        // It is minutes old, or at least thousands of tasks: nothing of it is in a cache.
        if forgotten.is_some() {
            if let Some(next) = self.order.get(AHEAD) {
                Stretch::of(&**next).prefetch();
            }
            if let Some(next) = self.order.front() {
                Stretch::of(&*next.stream).prefetch();
            }
        }
        forgotten
    }
}

/// What became of an insertion.
pub enum Inserted<E> {
    /// The task was made by the caller's function just now.
    New(Arc<LiveTask>),
    /// The same task with the same body was there.
    Known(Arc<LiveTask>),
    /// The id was there with another body.
    Conflict,
    Refused(E),
}

impl TaskRegistry {
    pub fn new(tasks_max: usize) -> TaskRegistry {
        TaskRegistry { tasks_max, inner: Mutex::default() }
    }

    pub fn get(&self, id: TaskId) -> Option<Arc<LiveTask>> {
        self.lock().by_id.get(&id).cloned()
    }

    /// Looks the task up, and makes it if it is not there; both under one lock, so that a request that is
    /// sent twice at the same time is still one task. `make` must be quick.
    pub fn insert<E>(&self, spec: TaskSpec, make: impl FnOnce(TaskSpec) -> Result<Arc<LiveTask>, E>) -> Inserted<E> {
        let mut inner = self.lock();
        let task = match inner.by_id.entry(spec.task_id) {
            Known::Occupied(known) if known.get().spec == spec => return Inserted::Known(known.get().clone()),
            Known::Occupied(_) => return Inserted::Conflict,
            Known::Vacant(place) => match make(spec) {
                Ok(task) => place.insert(task).clone(),
                Err(error) => return Inserted::Refused(error),
            },
        };
        // Live tasks are fewer than `tasks_max` by the configuration's check, so something can go. Its memory is cold, and is
        // let go of when nobody waits for the lock.
        let forgotten = inner.make_place(self.tasks_max);
        inner.order.push_back(task.clone());
        drop(inner);
        if let Some(forgotten) = forgotten {
            forget(forgotten);
        }
        Inserted::New(task)
    }

    /// Forgets tasks that ended before `before_us` and that nobody reads.
    pub fn sweep(&self, before_us: u64) {
        let mut inner = self.lock();
        let Inner { by_id, order } = &mut *inner;
        // Nobody who came later has ended before. A few may stand at a turned place, where the bound put them.
        let old = order.iter().position(|task| task.accepted_us > before_us).unwrap_or(order.len());
        let mut stay = Vec::new();
        for task in order.drain(..old) {
            if !task.is_forgettable() || task.times.ended_us.load(Relaxed) > before_us {
                stay.push(task);
            } else {
                by_id.remove(&task.spec.task_id);
            }
        }
        stay.into_iter().rev().for_each(|task| order.push_front(task));
    }

    /// Tasks that have not ended.
    pub fn live(&self) -> Vec<Arc<LiveTask>> {
        self.lock().by_id.values().filter(|t| !t.stream.is_finished()).cloned().collect()
    }

    /// The tasks that came last, the newest first.
    pub fn latest(&self, count: usize) -> Vec<Arc<LiveTask>> {
        self.lock().order.iter().rev().take(count).cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.lock().by_id.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().expect("nothing panics under this lock")
    }
}
