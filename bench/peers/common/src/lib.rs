//! What the tokio servers share: the task as it comes, what admission does with it, and the engine without a
//! model. Each does the work that a real admission of the same API does, no less: shape and bounds of every field,
//! idempotency, a session's turn and budget, a place in a bounded queue.

#[path = "../../../src/pace.rs"]
pub mod pace;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser;
use crossbeam_queue::ArrayQueue;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use uuid::Uuid;

pub const KEY: &str = "bench-key-of-no-value";
const QUEUE_CAPACITY: usize = 65_536;
const SESSION_TOKENS_BUDGET: u64 = 1_000_000_000;
const TEXT: &str = " the";

#[derive(Clone, Parser)]
pub struct Options {
    #[arg(long, default_value = "127.0.0.1:8091")]
    pub listen: std::net::SocketAddr,
    /// Time between two tokens of a sequence, microseconds.
    #[arg(long, default_value_t = 20_000)]
    pub interval_us: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Workload {
    Completion,
    Embedding,
    Rerank,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    Interactive,
    Batch,
}

/// The task as the load generator sends it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskRequest {
    pub task_id: Uuid,
    pub session_id: Uuid,
    pub workload: Workload,
    pub model_ref: String,
    pub engine: String,
    pub ctx: u32,
    pub priority: Priority,
    pub max_tokens: u32,
    pub deadline_ms: i64,
    #[serde(default)]
    pub seed: u64,
    #[serde(default)]
    pub temperature: f32,
    pub top_p: Option<f32>,
    #[serde(default)]
    pub ignore_end: bool,
    pub prompt: String,
}

#[derive(Serialize)]
pub struct Accepted {
    pub task_id: Uuid,
    pub queue_position: usize,
    pub predicted_start_ms: u64,
    pub backoff_ms: u64,
}

/// Events of a stream, as the engine thread sends them.
pub enum Event {
    Started { queue_position: usize },
    Token { index: u32 },
    Metrics,
    End { tokens: u32 },
}

impl Event {
    pub fn name(&self) -> &'static str {
        match self {
            Event::Started { .. } => "started",
            Event::Token { .. } => "token",
            Event::Metrics => "metrics",
            Event::End { .. } => "end",
        }
    }

    pub fn data(&self) -> String {
        #[derive(Serialize)]
        struct Token {
            t: &'static str,
            i: u32,
        }
        match self {
            Event::Started { queue_position } => {
                format!("{{\"queue_position\":{queue_position},\"predicted_start_ms\":0}}")
            }
            Event::Token { index } => serde_json::to_string(&Token { t: TEXT, i: *index }).expect("a token is JSON"),
            Event::Metrics => "{\"queue_depth\":0,\"on_time_probability\":1.0,\"kv_warmth\":0.0,\
                \"tokens_budget_remaining\":1000000000,\"time_budget_remaining_ms\":86400000,\
                \"cost_budget_remaining\":1000000.0}"
                .into(),
            Event::End { tokens } => {
                format!("{{\"tokens_out\":{tokens},\"decode_ms\":1,\"finish_reason\":\"length\"}}")
            }
        }
    }
}

struct Session {
    turns: u64,
    tokens_left: u64,
}

/// A task on its way to the engine.
struct Entry {
    max_tokens: u32,
    events: UnboundedSender<Event>,
}

/// What all connections share.
pub struct Shared {
    queue: ArrayQueue<Entry>,
    waiting: AtomicUsize,
    /// Streams that nobody has opened yet, by task.
    tasks: Mutex<HashMap<Uuid, Option<UnboundedReceiver<Event>>>>,
    sessions: Mutex<HashMap<Uuid, Session>>,
    pub accepted: AtomicU64,
    engine: std::sync::OnceLock<std::thread::Thread>,
}

pub enum Refused {
    Invalid(&'static str),
    Full,
}

pub struct Admitted {
    pub accepted: Accepted,
    pub tokens_left: u64,
}

impl Shared {
    /// Starts the engine thread.
    pub fn start(interval_us: u64) -> Arc<Shared> {
        let shared = Arc::new(Shared {
            queue: ArrayQueue::new(QUEUE_CAPACITY),
            waiting: AtomicUsize::new(0),
            tasks: Mutex::default(),
            sessions: Mutex::default(),
            accepted: AtomicU64::new(0),
            engine: Default::default(),
        });
        let engine = shared.clone();
        let thread = std::thread::Builder::new().name("engine".into());
        let thread = thread.spawn(move || engine.run_engine(interval_us)).expect("a thread can be started");
        shared.engine.get_or_init(|| thread.thread().clone());
        shared
    }

    /// Everything between a parsed body and its 202.
    pub fn admit(&self, request: TaskRequest) -> Result<Admitted, Refused> {
        if !matches!(request.workload, Workload::Completion) || !["cpu", "cuda"].contains(&request.engine.as_str()) {
            return Err(Refused::Invalid("workload or engine"));
        }
        if request.model_ref != "wren" || request.ctx > 2048 || request.deadline_ms <= 0 || request.max_tokens < 1 {
            return Err(Refused::Invalid("model_ref, ctx, deadline_ms or max_tokens"));
        }
        let legal = (0.0..=100.0).contains(&request.temperature) && request.top_p.is_none_or(|p| p > 0.0 && p <= 1.0);
        if !legal || request.prompt.is_empty() || request.prompt.len() / 16 + request.max_tokens as usize > 2048 {
            return Err(Refused::Invalid("temperature, top_p or prompt"));
        }
        let (events, receiver) = unbounded_channel();
        let tokens_left = {
            let mut sessions = self.sessions.lock().expect("not poisoned");
            let session =
                sessions.entry(request.session_id).or_insert(Session { turns: 0, tokens_left: SESSION_TOKENS_BUDGET });
            session.turns += 1;
            session.tokens_left = session.tokens_left.saturating_sub(u64::from(request.max_tokens));
            session.tokens_left
        };
        {
            let mut tasks = self.tasks.lock().expect("not poisoned");
            // Enough for every stream that is open; the oldest would go in a real server.
            if tasks.len() > 2 * QUEUE_CAPACITY {
                tasks.clear();
            }
            if tasks.insert(request.task_id, Some(receiver)).is_some() {
                return Err(Refused::Invalid("task_id was sent before"));
            }
        }
        let queue_position = self.waiting.fetch_add(1, Relaxed);
        let _ = events.send(Event::Started { queue_position });
        if self.queue.push(Entry { max_tokens: request.max_tokens, events }).is_err() {
            self.waiting.fetch_sub(1, Relaxed);
            return Err(Refused::Full);
        }
        if queue_position == 0
            && let Some(engine) = self.engine.get()
        {
            engine.unpark();
        }
        self.accepted.fetch_add(1, Relaxed);
        let task_id = request.task_id;
        Ok(Admitted {
            accepted: Accepted { task_id, queue_position, predicted_start_ms: 0, backoff_ms: 0 },
            tokens_left,
        })
    }

    /// The events of a task, for one reader.
    pub fn open(&self, task: Uuid) -> Option<UnboundedReceiver<Event>> {
        self.tasks.lock().expect("not poisoned").get_mut(&task)?.take()
    }

    /// One token for everybody at each point of the grid.
    fn run_engine(&self, interval_us: u64) {
        struct Seat {
            max_tokens: u32,
            index: u32,
            events: UnboundedSender<Event>,
        }
        let mut grid = pace::Grid::new(Duration::from_micros(interval_us.max(1)));
        let mut seats: Vec<Seat> = Vec::new();
        loop {
            let was_idle = seats.is_empty();
            while let Some(Entry { max_tokens, events }) = self.queue.pop() {
                self.waiting.fetch_sub(1, Relaxed);
                seats.push(Seat { max_tokens, index: 0, events });
            }
            if seats.is_empty() {
                std::thread::park_timeout(Duration::from_millis(20));
                continue;
            }
            if was_idle {
                grid.restart();
            }
            grid.wait();
            seats.retain_mut(|seat| {
                let mut open = seat.events.send(Event::Token { index: seat.index }).is_ok();
                if seat.index == 0 {
                    open &= seat.events.send(Event::Metrics).is_ok();
                }
                seat.index += 1;
                if seat.index == seat.max_tokens {
                    let _ = seat.events.send(Event::End { tokens: seat.index });
                }
                open && seat.index < seat.max_tokens
            });
        }
    }
}
