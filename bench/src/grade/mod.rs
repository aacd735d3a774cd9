//! The promises of a live server, graded as the simulator grades them: real sockets, the CPU engine, the built-in model.
//!
//! The server runs in this process, so that it is this build, unless `--address` names one that runs; the clients know
//! nothing of it but its address. First it is
//! kept busy, to learn what it can do; then clients come at a multiple of that, each with a deadline, and what they were
//! promised is held against what they got; then at twice of it to a short queue, and who is refused comes back exactly
//! when told to. How long an answer is the model decides, as it does for everybody.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clap::Args;
use orchestratord::app::bootstrap::Server;
use orchestratord::config;
use orchestratord::domain::task::Priority;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::load::http::{Part, ResponseReader};
use crate::outcomes::{Asked, as_csv};
use crate::sim::chance::Chance;
use crate::sim::grade::{Grades, prediction_rows, retry_row};
use crate::sim::{Ended, Outcome, plot};

const KEY: &str = "bench-key-of-no-value";

/// How often a client that is told to come back does so.
const RETRIES_MAX: u32 = 8;

/// Silence on a stream after which something is wrong.
const PATIENCE: Duration = Duration::from_secs(120);

/// Each waiting client is a thread, and needs little.
const STACK_LEN: usize = 256 * 1024;

/// Room for the longest prompt and the most tokens that may be asked for.
const CONTEXT_LEN: u32 = 512;

const WORDS: &[&str] =
    &["the", "little", "dog", "ran", "to", "a", "big", "tree", "and", "saw", "one", "old", "cat", "who", "was"];

#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Tasks whose promises are graded.
    #[arg(long, default_value_t = 2000)]
    pub tasks: usize,
    /// Tasks of the second part, about coming back when told to; as many as of the first by default, and with 0 it is left out.
    #[arg(long)]
    pub retry_tasks: Option<usize>,
    /// Sequences that the server decodes together; a running server says so itself.
    #[arg(long, default_value_t = 16)]
    pub slots: usize,
    /// Most tokens that a task may have; others have a half, a quarter or an eighth of it.
    #[arg(long, default_value_t = 384, value_parser = clap::value_parser!(u32).range(8..=384))]
    pub tokens_max: u32,
    /// Tasks that come, over those that the server can do. With less than it can do hardly anybody waits for as long as is
    /// graded but batch work, and that for interactive work which nobody can know of.
    #[arg(long, default_value_t = 1.5)]
    pub load: f64,
    /// The same seed asks the same things at the same times, as far as the server is as fast.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// A running server to grade as it is, instead of one of this process.
    #[arg(long)]
    pub address: Option<SocketAddr>,
    /// API key of the running server.
    #[arg(long, default_value = KEY)]
    pub key: String,
    /// Model of the running server.
    #[arg(long, default_value = "wren")]
    pub model: String,
    /// Engine of the running server.
    #[arg(long, default_value = "cpu")]
    pub engine: String,
    /// Leaves the table and a plot of it in this folder.
    #[arg(long)]
    pub record: Option<PathBuf>,
    /// Writes what each task of the first part was told, and what it got, to this file: comma-separated values.
    #[arg(long)]
    pub outcomes: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            tasks: 2000,
            retry_tasks: None,
            slots: 16,
            tokens_max: 384,
            load: 1.5,
            seed: 1,
            address: None,
            key: KEY.into(),
            model: "wren".into(),
            engine: "cpu".into(),
            record: None,
            outcomes: None,
        }
    }
}

/// Where a client goes, and as whom.
#[derive(Clone)]
struct Door {
    address: SocketAddr,
    key: String,
    model: String,
    engine: String,
}

/// One client's task.
#[derive(Clone, Debug)]
struct Ask {
    priority: Priority,
    session: Uuid,
    prompt: String,
    tokens_max: u32,
    deadline_ms: u64,
    seed: u64,
}

/// Grades a server and prints the table.
///
/// # Errors
///
/// When the server does not start, or does not answer as it should.
pub fn run(options: &Options) -> Result<(), String> {
    let slots = options.address.map_or(Ok(options.slots), |address| slots_of(address, options))?;
    // With too few clients the measurement would find a slower server than there is, and nobody would wait.
    let options = &Options { slots, ..options.clone() };
    let mut table = String::new();
    let mut say = |line: String| {
        println!("{line}");
        table.push_str(&line);
        table.push('\n');
    };
    let Options { seed, tasks, tokens_max, .. } = options;
    say(format!("seed {seed}, {tasks} tasks, {slots} slots, at most {tokens_max} tokens, live"));
    say("| measure | trace | value |".into());
    say("|---|---|---|".into());
    let told = predictions(options)?;
    let name = format!("live, load {}", options.load);
    prediction_rows(&mut say, &name, &told);
    let retrying = Options { tasks: options.retry_tasks.unwrap_or(options.tasks), ..options.clone() };
    if retrying.tasks > 0 {
        let grades = retries(&retrying)?;
        say(retry_row("X-Backoff-Ms", "live", &grades));
    }
    let Some(folder) = &options.record else { return Ok(()) };
    let title = format!("live: {} tasks, load {}, seed {}", options.tasks, options.load, options.seed);
    [("grades-live.md", table), ("calibration-live.svg", plot::svg(&title, &told))].iter().try_for_each(
        |(name, text)| {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))
        },
    )
}

/// What clients with deadlines were promised, and what they got.
///
/// # Errors
///
/// As [`run`].
pub fn predictions(options: &Options) -> Result<Grades, String> {
    at_the_door(options, 256, |door| {
        let pace = Pace::measure(door, options)?;
        storm(door, options, &pace, options.load, Some(6.0))
    })
}

/// Clients at twice what the server can do, who come back when they are told to.
///
/// # Errors
///
/// As [`run`].
pub fn retries(options: &Options) -> Result<Grades, String> {
    at_the_door(options, 4 * options.slots, |door| {
        let pace = Pace::measure(door, options)?;
        storm(door, options, &pace, 2.0, None)
    })
}

/// Sequences that a running server decodes together.
fn slots_of(address: SocketAddr, options: &Options) -> Result<usize, String> {
    let fail = |e: std::io::Error| format!("{address}: {e}");
    let mut socket = TcpStream::connect(address).map_err(fail)?;
    socket.set_read_timeout(Some(PATIENCE)).map_err(fail)?;
    let key = &options.key;
    let head = format!("GET /v1/capabilities HTTP/1.1\r\nHost: bench\r\nX-API-Key: {key}\r\nConnection: close\r\n\r\n");
    socket.write_all(head.as_bytes()).map_err(fail)?;
    let (mut reader, mut bytes, mut over) = (ResponseReader::default(), vec![0; 16 * 1024], false);
    let (mut status, mut body) = (0, Vec::new());
    while !over {
        let len = socket.read(&mut bytes).map_err(fail)?;
        if len == 0 {
            return Err("an answer ended in the middle".into());
        }
        reader.feed(&bytes[..len], |part| {
            match part {
                Part::Head { status: told } => status = told,
                Part::Body(piece) => body.extend_from_slice(piece),
                Part::End => over = true,
            }
            Ok(())
        })?;
    }
    let text = String::from_utf8_lossy(&body);
    if status != 200 {
        return Err(format!("status {status}: {text}"));
    }
    let said: Value = serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))?;
    let pool = said["engines"].as_array().into_iter().flatten().find(|pool| pool["engine"] == options.engine.as_str());
    let slots = pool.and_then(|pool| pool["concurrency"].as_u64());
    slots.map(|slots| slots as usize).ok_or_else(|| format!("it has no engine {:?}: {text}", options.engine))
}

/// With the server that runs, or one with a queue of `queue_capacity` for as long as it is wanted.
fn at_the_door(
    options: &Options,
    queue_capacity: usize,
    visit: impl FnOnce(&Door) -> Result<Grades, String>,
) -> Result<Grades, String> {
    let Options { key, model, engine, .. } = options.clone();
    if let Some(address) = options.address {
        return visit(&Door { address, key, model, engine });
    }
    let server = start(options.slots, queue_capacity)?;
    let grades = visit(&Door { address: server.address, key: KEY.into(), model: "wren".into(), engine: "cpu".into() });
    server.stop();
    grades
}

fn start(slots: usize, queue_capacity: usize) -> Result<Server, String> {
    let settings = [
        ("listen", "127.0.0.1:0".to_owned()),
        ("api_keys", KEY.into()),
        ("slots_max", slots.to_string()),
        ("queue_capacity", queue_capacity.to_string()),
        // Nobody is refused for a prediction, so that every prediction has an outcome.
        ("on_time_probability_floor", "0".into()),
        ("log_level", "error".into()),
    ];
    let flags = settings.map(|(name, value)| (name.to_owned(), value));
    Server::start(config::load(None, [], flags).map_err(|e| e.to_string())?.config)
}

/// What the server can do when it is never idle.
struct Pace {
    tasks_per_second: f64,
    /// From its slot to its end, a token of a task, milliseconds.
    token_ms: f64,
}

impl Pace {
    fn measure(door: &Door, options: &Options) -> Result<Pace, String> {
        let count = (options.tasks / 10).clamp(8 * options.slots, 400);
        let mut chance = Chance::new(options.seed ^ 0x9a7e);
        let asks: Vec<Ask> = (0..count).map(|_| ask(&mut chance, options.seed ^ 1, options.tokens_max, None)).collect();
        let began = Instant::now();
        let (next, tokens) = (std::sync::atomic::AtomicUsize::new(0), std::sync::atomic::AtomicU64::new(0));
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..options.slots)
                .map(|_| {
                    scope.spawn(|| -> Result<(), String> {
                        use std::sync::atomic::Ordering::SeqCst;
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
        Ok(Pace {
            tasks_per_second: count as f64 / seconds,
            token_ms: seconds * 1000.0 * options.slots as f64 / tokens,
        })
    }
}

/// A task drawn at random; with a token's time and the slack wanted, its deadline is a multiple of what it may take.
fn ask(chance: &mut Chance, seed: u64, tokens_max: u32, deadline: Option<(f64, f64)>) -> Ask {
    let session = Uuid::from_u128(u128::from(seed) << 64 | chance.below(40) as u128);
    let words = 2 + chance.below(30);
    let prompt = (0..words).map(|_| WORDS[chance.below(WORDS.len())]).collect::<Vec<_>>().join(" ");
    let tokens_max = tokens_max >> chance.below(4);
    let priority = if chance.happens(0.2) { Priority::Batch } else { Priority::Interactive };
    let deadline_ms = deadline.map_or(600_000.0, |(token_ms, slack)| {
        let patience = if priority == Priority::Batch { 4.0 } else { 1.0 };
        token_ms * f64::from(tokens_max) * chance.lognormal(slack, 1.0) * patience
    });
    Ask {
        priority,
        session,
        prompt,
        tokens_max,
        deadline_ms: deadline_ms.ceil() as u64,
        seed: chance.below(1 << 30) as u64,
    }
}

/// Clients that come at random times, at `load` times what the server can do.
fn storm(door: &Door, options: &Options, pace: &Pace, load: f64, slack: Option<f64>) -> Result<Grades, String> {
    let mut chance = Chance::new(options.seed);
    let (sender, receiver) = mpsc::channel();
    let began = Instant::now();
    let mut at = 0.0;
    let mut threads = Vec::with_capacity(options.tasks);
    let mut asked = Vec::with_capacity(options.tasks);
    for index in 0..options.tasks {
        at += chance.exponential(1.0 / (load * pace.tasks_per_second));
        let ask = ask(&mut chance, options.seed, options.tokens_max, slack.map(|slack| (pace.token_ms, slack)));
        std::thread::sleep(Duration::from_secs_f64(at).saturating_sub(began.elapsed()));
        let Ask { priority, tokens_max, deadline_ms, .. } = ask;
        asked.push(Asked { at_us: began.elapsed().as_micros() as u64, priority, tokens_max, deadline_ms });
        let (sender, door) = (sender.clone(), door.clone());
        let client = move || drop(sender.send((index, visit(&door, &ask, RETRIES_MAX))));
        let thread = std::thread::Builder::new().stack_size(STACK_LEN).spawn(client);
        threads.push(thread.map_err(|e| format!("a client's thread: {e}"))?);
    }
    drop(sender);
    let mut outcomes = vec![Outcome::default(); options.tasks];
    for (index, outcome) in receiver {
        outcomes[index] = outcome?;
    }
    threads.into_iter().try_for_each(|t| t.join().map_err(|_| "a client panicked".to_owned()))?;
    if let Some(path) = options.outcomes.as_ref().filter(|_| slack.is_some()) {
        std::fs::write(path, as_csv(&asked, &outcomes)).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(Grades::of_outcomes(asked.iter().map(|a| a.priority).zip(&outcomes)))
}

/// Sends a task, comes back when told to, and reads its stream to the end.
fn visit(door: &Door, ask: &Ask, retries_max: u32) -> Result<Outcome, String> {
    let body = json!({
        "task_id": Uuid::new_v4().to_string(),
        "session_id": ask.session.to_string(),
        "workload": "completion",
        "model_ref": door.model,
        "engine": door.engine,
        "ctx": CONTEXT_LEN,
        "priority": ask.priority.name(),
        "max_tokens": ask.tokens_max,
        "deadline_ms": ask.deadline_ms,
        "prompt": ask.prompt,
        "temperature": 1.0,
        "seed": ask.seed,
    })
    .to_string();
    let mut outcome = Outcome::default();
    loop {
        outcome.attempts += 1;
        let mut visit = Visit { began: Instant::now(), attempt: outcome.attempts - 1, outcome, text: String::new() };
        let refusal = visit.send(door, &body)?;
        outcome = visit.outcome;
        let Some(refusal) = refusal else { return Ok(outcome) };
        // A running server may have a floor.
        if refusal["code"] == "DEADLINE_UNMET" {
            return Ok(Outcome { refused_hopeless: true, ..outcome });
        }
        let after_ms = refusal["retry_after_ms"].as_u64().ok_or_else(|| format!("refused for good: {refusal}"))?;
        outcome.refused_full += 1;
        if outcome.attempts > retries_max {
            return Ok(outcome);
        }
        std::thread::sleep(Duration::from_millis(after_ms));
    }
}

struct Visit {
    began: Instant,
    attempt: u32,
    outcome: Outcome,
    /// Of the stream, what is not a whole event yet; of a refusal all of it.
    text: String,
}

impl Visit {
    /// The refusal, if it is one.
    fn send(&mut self, door: &Door, body: &str) -> Result<Option<Value>, String> {
        let Door { address, key, .. } = door;
        let fail = |e: std::io::Error| format!("{address}: {e}");
        let mut socket = TcpStream::connect(address).map_err(fail)?;
        socket.set_read_timeout(Some(PATIENCE)).map_err(fail)?;
        let head = format!(
            "POST /v1/tasks HTTP/1.1\r\nHost: bench\r\nX-API-Key: {key}\r\nAccept: text/event-stream\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.began = Instant::now();
        socket.write_all(format!("{head}{body}").as_bytes()).map_err(fail)?;
        let (mut reader, mut bytes) = (ResponseReader::default(), vec![0; 16 * 1024]);
        let (mut status, mut over) = (0, false);
        while !over {
            let len = socket.read(&mut bytes).map_err(fail)?;
            if len == 0 {
                return Err("a stream ended in the middle".into());
            }
            reader.feed(&bytes[..len], |part| {
                match part {
                    Part::Head { status: told } => status = told,
                    Part::Body(piece) => {
                        self.text.push_str(std::str::from_utf8(piece).map_err(|e| e.to_string())?);
                        if status == 200 {
                            self.events()?;
                        }
                    }
                    Part::End => over = true,
                }
                Ok(())
            })?;
        }
        match status {
            200 => Ok(None),
            400 | 429 | 503 | 529 => {
                serde_json::from_str(&self.text).map(Some).map_err(|e| format!("{}: {e}", self.text))
            }
            _ => Err(format!("status {status}: {}", self.text)),
        }
    }

    fn events(&mut self) -> Result<(), String> {
        while let Some(end) = self.text.find("\n\n") {
            let event: String = self.text.drain(..end + 2).collect();
            let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            let name = field("event: ").to_owned();
            if !name.is_empty() {
                let data = serde_json::from_str(field("data: ")).map_err(|e| format!("{event:?}: {e}"))?;
                self.event(&name, &data)?;
            }
        }
        Ok(())
    }

    fn event(&mut self, name: &str, data: &Value) -> Result<(), String> {
        let now_us = self.began.elapsed().as_micros() as u64;
        let number = |field: &str| data[field].as_f64().ok_or_else(|| format!("no {field} in {data}"));
        let outcome = &mut self.outcome;
        match name {
            "started" => {
                outcome.accepted_us = Some(0);
                outcome.accepted_at = self.attempt;
                outcome.position = number("queue_position")? as u32;
                outcome.predicted_start_us = number("predicted_start_ms")? * 1000.0;
                outcome.chance = number("on_time_probability")?;
            }
            "token" => {
                outcome.tokens += 1;
                // A client sees its slot with the first token; the prompts here are one step.
                outcome.seated_us = outcome.seated_us.or(Some(now_us));
                outcome.first_token_us = outcome.first_token_us.or(Some(now_us));
            }
            "metrics" if outcome.chance_running.is_none() => {
                outcome.chance_running = Some(number("on_time_probability")?);
            }
            "metrics" => {}
            "end" => (outcome.ended, outcome.ended_us) = (Some(Ended::Finished), Some(now_us)),
            "error" if data["code"] == "DEADLINE_UNMET" => {
                (outcome.ended, outcome.ended_us) = (Some(Ended::Late), Some(now_us));
            }
            _ => return Err(format!("a stream ended with {name} {data}")),
        }
        Ok(())
    }
}
