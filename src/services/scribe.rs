//! The thread that writes the last word of every stream.
//!
//! Hashing a transcript and syncing it to disk take longer than a decode step, so the engine thread hands
//! an ended task over and goes on. In this order: spend the budgets, keep the transcript, send the terminal
//! event; whoever sees the event finds the other two done.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use serde_json::json;

use super::artifacts::{ArtifactService, canonical};
use super::canonical::Object;
use super::prediction::{End, Record};
use super::response_format;
use super::session::{Bill, SessionService};
use super::streaming::{self, Ended};
use super::task::{LiveTask, Outcome};
use super::transcript::Transcript;
use crate::api::types::{Envelope, ErrorContext};
use crate::domain::error::OrchestratorError;
use crate::domain::task::{FinishReason, Pooling, Prompt, PromptLogprobs, ResponseFormat, Workload};
use crate::infra::clock::Clock;
use crate::infra::doorbell::Doorbell;
use crate::infra::storage::ArtifactId;
use crate::metrics::Metrics;

/// Hands ended tasks to the thread, which ends with the last of these. There are never more tasks on the way than alive.
#[derive(Clone)]
pub struct Scribe(Arc<Door>);

struct Door(Arc<Tray>);

/// What lies between the others and the thread.
#[derive(Default)]
struct Tray {
    ended: Mutex<Vec<Arc<LiveTask>>>,
    closed: AtomicBool,
    bell: Doorbell,
}

impl Scribe {
    /// Hands a task over. No system call: `ring` follows when the caller has no more of them.
    pub fn post(&self, task: Arc<LiveTask>) {
        self.0.0.lock().push(task);
    }

    /// Lets the thread know.
    pub fn ring(&self) {
        self.0.0.bell.ring();
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.0.closed.store(true, SeqCst);
        self.0.bell.ring();
    }
}

impl Tray {
    /// Waits for tasks and takes all there are, in exchange for an empty list; none when nobody can hand over any more.
    fn take(&self, tasks: &mut Vec<Arc<LiveTask>>) {
        loop {
            // Looked at before the tray: what was put there before the end is still taken.
            let closed = self.closed.load(SeqCst);
            std::mem::swap(tasks, &mut *self.lock());
            if !tasks.is_empty() || closed {
                return;
            }
            self.bell.sleep(None, || !self.lock().is_empty() || self.closed.load(SeqCst));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<LiveTask>>> {
        self.ended.lock().expect("nothing panics under this lock")
    }
}

/// What the thread needs.
pub struct Desk {
    pub artifacts: Arc<ArtifactService>,
    pub sessions: Arc<SessionService>,
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
    pub overload_status: u16,
}

/// What the thread writes into, again and again.
#[derive(Default)]
struct Page {
    /// The transcript.
    document: Vec<u8>,
    /// Data of the terminal event.
    data: Vec<u8>,
    /// The terminal event as it is sent.
    tail: Vec<u8>,
}

/// Memory that the page keeps between two transcripts.
const PAGE_LEN_MAX: usize = 1024 * 1024;

/// Starts the thread.
///
/// # Errors
///
/// When no thread can be started.
pub fn spawn(desk: Desk) -> std::io::Result<(Scribe, JoinHandle<()>)> {
    let tray = Arc::new(Tray::default());
    let scribe = Scribe(Arc::new(Door(tray.clone())));
    let thread = std::thread::Builder::new().name("scribe".into()).spawn(move || {
        tray.bell.belongs_to_this_thread();
        let (mut page, mut tasks) = (Page::default(), Vec::new());
        loop {
            tray.take(&mut tasks);
            if tasks.is_empty() {
                return;
            }
            for task in tasks.drain(..) {
                // A defect in one transcript is no reason for all later streams to stay open.
                let written = catch_unwind(AssertUnwindSafe(|| desk.write_end(&task, &mut page)));
                if written.is_err() && !task.stream.is_finished() {
                    desk.write_broken_end(&task, &mut page);
                }
                if page.document.capacity() > PAGE_LEN_MAX {
                    page = Page::default();
                }
            }
        }
    })?;
    Ok((scribe, thread))
}

impl Desk {
    fn write_end(&self, task: &LiveTask, page: &mut Page) {
        let outcome = task.outcome().expect("an ended task says why");
        fail::fail_point!("scribe");
        let Page { document, data, tail } = page;
        let mut transcript = Transcript::begin(document);
        task.stream.read_all(|frames| transcript.read(frames));
        let tokens_out = transcript.tokens();
        let decode_ms = task.times.decode_ms();
        self.settle(task, tokens_out, decode_ms, outcome);

        let event_id = task.stream.event_count();
        match outcome {
            Outcome::Failed(error) => {
                *data = self.error_data(error);
                transcript.push("error", data);
                transcript.finish(|object| write_metadata(object, task));
                if tokens_out > 0 {
                    self.keep_transcript(task, document);
                }
                streaming::write_tail(tail, event_id, "error", data);
            }
            Outcome::Finished(_) | Outcome::Canceled(_) => {
                let finish_reason = match outcome {
                    Outcome::Finished(reason) => *reason,
                    _ => FinishReason::Canceled,
                };
                let ended = Ended { tokens_out, decode_ms, finish_reason };
                streaming::write_end_data(data, &ended, None);
                transcript.push("end", data);
                transcript.finish(|object| write_metadata(object, task));
                let id = self.keep_transcript(task, document);
                streaming::write_end_data(data, &ended, id.as_deref());
                streaming::write_tail(tail, event_id, "end", data);
            }
        }
        self.log(task, outcome, tokens_out, decode_ms);
        task.stream.finish(tail);
    }

    /// The end of a stream whose transcript could not be written.
    fn write_broken_end(&self, task: &LiveTask, page: &mut Page) {
        let message = "the transcript could not be written: the log has the reason; send the task again".to_owned();
        tracing::error!(task_id = %task.spec.task_id, message, "the scribe panicked");
        let error = OrchestratorError::Internal(message);
        streaming::write_tail(&mut page.tail, task.stream.event_count(), "error", &self.error_data(&error));
        task.stream.finish(&page.tail);
    }

    /// Canonical data of an `error` event.
    fn error_data(&self, error: &OrchestratorError) -> Vec<u8> {
        let labels = self.metrics.labels();
        let context =
            ErrorContext { engine: labels.engine, pool_id: &labels.pool_id, overload_status: self.overload_status };
        canonical(&serde_json::to_value(Envelope::new(error, context)).expect("an envelope is JSON"))
    }

    fn settle(&self, task: &LiveTask, tokens_out: u32, decode_ms: u64, outcome: &Outcome) {
        let now_ms = self.clock.now_ms();
        let seated_us = task.times.seated_us.load(Relaxed);
        let bill = Bill {
            reserved: task.tokens_reserved.into(),
            tokens: tokens_out.into(),
            time_ms: decode_ms,
            seated_us: (seated_us > 0).then_some(seated_us),
            now_ms,
        };
        task.account.settle(bill, &self.sessions.rules);
        match outcome {
            Outcome::Canceled(reason) => self.metrics.canceled(*reason),
            // An eviction was counted when it was decided.
            Outcome::Failed(error) if error.code() != "QUEUE_FULL_DROP_LRU" => self.metrics.rejected(error.code()),
            _ => {}
        }
        let first = task.times.first_token_us.load(Relaxed);
        let last = task.times.last_token_us.load(Relaxed);
        if first > 0 {
            let decode = &self.metrics.latency_decode[task.spec.priority.index()];
            decode.observe_thousandths(last.saturating_sub(first));
        }
        self.learn(task, tokens_out, outcome);
    }

    /// What this task teaches about lengths, and about how far off its predictions were.
    fn learn(&self, task: &LiveTask, tokens_out: u32, outcome: &Outcome) {
        let end = match outcome {
            Outcome::Finished(_) => End::Finished,
            Outcome::Failed(OrchestratorError::DeadlineUnmet { .. }) => End::Late,
            Outcome::Canceled(_) | Outcome::Failed(_) => End::Other,
        };
        let at = |time: &AtomicU64| Some(time.load(Relaxed)).filter(|us| *us > 0);
        let since = |from: u64, to: u64| to.saturating_sub(from) as f64;
        let (seated_us, last_us) = (at(&task.times.seated_us), at(&task.times.last_token_us));
        let record = Record {
            priority: task.spec.priority,
            outlook: task.promise.outlook,
            raw_running: at(&task.times.raw_running_chance).map(f64::from_bits),
            waited_us: seated_us.map(|us| since(task.accepted_us, us)),
            served_us: seated_us.zip(last_us).map_or(0.0, |(from, to)| since(from, to)),
            tokens: tokens_out,
            lived_us: at(&task.times.ended_us).map_or(0.0, |us| since(task.accepted_us, us)),
            end,
        };
        let by_itself = matches!(outcome, Outcome::Finished(FinishReason::Stop));
        let mut desk = task.gate.desk();
        if tokens_out > 0 && !task.spec.ignore_end {
            let mut session = task.account.session.lengths.lock().expect("nothing panics under this lock");
            desk.experience.lengths.observe(&mut session, task.spec.expected_tokens, tokens_out, by_itself);
        }
        desk.experience.learn(&record);
    }

    fn keep_transcript(&self, task: &LiveTask, document: &[u8]) -> Option<ArtifactId> {
        match self.artifacts.put_canonical(document, true, self.clock.unix_ms()) {
            Ok(stored) => Some(stored.id),
            Err(error) => {
                tracing::error!(task_id = %task.spec.task_id, %error, "the transcript could not be kept");
                None
            }
        }
    }

    fn log(&self, task: &LiveTask, outcome: &Outcome, tokens_out: u32, decode_ms: u64) {
        let (event, code) = match outcome {
            Outcome::Finished(reason) => (reason.name(), ""),
            Outcome::Canceled(_) => ("canceled", ""),
            Outcome::Failed(error) => ("error", error.code()),
        };
        tracing::info!(
            correlation_id = &*task.correlation_id,
            task_id = &*task.spec.task_id.text(),
            session_id = &*task.spec.session_id.text(),
            queue_position = task.promise.queue_position,
            predicted_start_ms = task.promise.predicted_start_ms,
            tokens_in = task.prompt.len(),
            tokens_out,
            decode_ms,
            finish = event,
            code,
            "task ended"
        );
    }
}

/// What it takes to decode the same stream again.
fn write_metadata(object: &mut Object<'_>, task: &LiveTask) {
    let spec = &task.spec;
    let sampling = &spec.sampling;
    let loaded = &task.loaded;
    let prompt_source = match &spec.prompt {
        Prompt::Text(_) => "prompt",
        Prompt::Chat(_) => "messages",
        Prompt::Tokens(_) => "tokens",
    };
    object.text("arithmetic", &loaded.arithmetic);
    object.text("correlation_id", &task.correlation_id);
    object.text("determinism", if spec.deterministic { "strict" } else { "best_effort" });
    if let Some(dimensions) = spec.embedding.dimensions {
        object.integer("dimensions", dimensions.into());
    }
    object.text("engine", loaded.engine);
    object.text("engine_version", loaded.engine_version);
    object.number("frequency_penalty", sampling.frequency_penalty.into());
    object.flag("ignore_end", spec.ignore_end);
    if sampling.logit_bias.is_empty() {
        object.object("logit_bias", |_| ());
    } else {
        let logit_bias = sampling.logit_bias.iter().map(|(t, b)| (t.to_string(), *b)).collect::<BTreeMap<_, _>>();
        object.value("logit_bias", &json!(logit_bias));
    }
    object.flag("logprobs", spec.logprobs);
    object.integer("max_tokens", task.tokens_reserved.into());
    object.number("min_p", sampling.min_p.into());
    object.integer("min_tokens", sampling.min_tokens.into());
    object.plain("model_digest", loaded.model.digest());
    object.text("model_ref", &loaded.model_ref);
    if spec.workload == Workload::Embedding {
        let pooling = spec.embedding.pooling.unwrap_or(match loaded.info.pooling {
            orchestratord_engine::Pooling::Last => Pooling::Last,
            orchestratord_engine::Pooling::Mean => Pooling::Mean,
        });
        object.text("pooling", pooling.name());
    }
    object.number("presence_penalty", sampling.presence_penalty.into());
    if spec.prompt_logprobs != PromptLogprobs::None {
        object.text("prompt_logprobs", spec.prompt_logprobs.name());
    }
    object.text("prompt_source", prompt_source);
    object.integers("prompt_tokens", &task.prompt);
    object.number("repetition_penalty", sampling.repetition_penalty.into());
    match &spec.response_format {
        ResponseFormat::Text => object.object("response_format", |format| format.text("type", "text")),
        other => object.value("response_format", &response_format::wire(other)),
    }
    object.text("sampler_profile_version", "v1");
    object.integer("seed", sampling.seed);
    object.plain("session_id", &spec.session_id.text());
    if !spec.shown.is_empty() {
        object.integers("shown_tokens", &spec.shown);
    }
    object.texts("stop", &spec.stop);
    object.plain("task_id", &spec.task_id.text());
    object.number("temperature", sampling.temperature.into());
    object.integer("top_k", sampling.top_k.into());
    object.integer("top_logprobs", spec.top_logprobs.into());
    object.number("top_p", sampling.top_p.into());
    object.text("workload", spec.workload.name());
}
