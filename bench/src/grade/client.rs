//! A client of a server under grading: what it asks, how it comes back, and what it saw.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use orchestratord::domain::task::Priority;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::load::http::{Part, ResponseReader};
use crate::sim::chance::Chance;
use crate::sim::{Ended, Outcome};

/// Silence on a stream after which something is wrong.
const PATIENCE: Duration = Duration::from_secs(120);

/// Room for the longest prompt and the most tokens that may be asked for.
const CONTEXT_LEN: u32 = 512;

/// A deadline that nobody comes near.
pub const NO_DEADLINE_MS: u64 = 600_000;

/// Words that are a token each.
pub const WORDS: &[&str] =
    &["the", "little", "dog", "ran", "to", "a", "big", "tree", "and", "saw", "one", "old", "cat", "who", "was"];

/// Where a client goes, and as whom.
#[derive(Clone)]
pub struct Door {
    pub address: SocketAddr,
    pub key: String,
    pub model: String,
    pub engine: String,
}

/// One client's task.
#[derive(Clone, Debug)]
pub struct Ask {
    pub priority: Priority,
    pub session: Uuid,
    pub prompt: String,
    pub tokens_max: u32,
    pub deadline_ms: u64,
    pub seed: u64,
}

/// Those that come to a server.
#[derive(Clone, Copy, Debug)]
pub struct Crowd {
    pub seed: u64,
    /// Most tokens that a task may have; others have a half, a quarter or an eighth of it.
    pub tokens_max: u32,
    pub batch_share: f64,
    /// Median of a deadline over the time that the task may take on a busy server without waiting; none has no deadline.
    pub slack: Option<f64>,
}

impl Crowd {
    /// A task drawn at random, for a server that needs so long for a token of it.
    pub fn ask(&self, chance: &mut Chance, token_ms: f64) -> Ask {
        let session = Uuid::from_u128(u128::from(self.seed) << 64 | chance.below(40) as u128);
        let words = 2 + chance.below(30);
        let prompt = (0..words).map(|_| WORDS[chance.below(WORDS.len())]).collect::<Vec<_>>().join(" ");
        let tokens_max = self.tokens_max >> chance.below(4);
        let priority = if chance.happens(self.batch_share) { Priority::Batch } else { Priority::Interactive };
        let deadline_ms = self.slack.map_or(NO_DEADLINE_MS as f64, |slack| {
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
}

/// Sends a task, comes back when told to, and reads its stream to the end.
pub fn visit(door: &Door, ask: &Ask, retries_max: u32) -> Result<Outcome, String> {
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
        let attempt = outcome.attempts - 1;
        let refusal = door.read_task(&body, |event| see(&mut outcome, attempt, event))?;
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

/// What an event says about the task's fate.
fn see(outcome: &mut Outcome, attempt: u32, event: &Event<'_>) -> Result<(), String> {
    let now_us = event.after.as_micros() as u64;
    match event.name {
        "started" => {
            outcome.accepted_us = Some(0);
            outcome.accepted_at = attempt;
            let data = event.json()?;
            outcome.position = number(&data, "queue_position")? as u32;
            outcome.predicted_start_us = number(&data, "predicted_start_ms")? * 1000.0;
            outcome.chance = number(&data, "on_time_probability")?;
        }
        "token" => {
            outcome.tokens += 1;
            // A client sees its slot with the first token; the prompts here are one step.
            outcome.seated_us = outcome.seated_us.or(Some(now_us));
            outcome.first_token_us = outcome.first_token_us.or(Some(now_us));
        }
        "metrics" if outcome.chance_running.is_none() => {
            outcome.chance_running = Some(number(&event.json()?, "on_time_probability")?);
        }
        "metrics" => {}
        "end" => (outcome.ended, outcome.ended_us) = (Some(Ended::Finished), Some(now_us)),
        "error" if event.json()?["code"] == "DEADLINE_UNMET" => {
            (outcome.ended, outcome.ended_us) = (Some(Ended::Late), Some(now_us));
        }
        name => return Err(format!("a stream ended with {name} {}", event.data)),
    }
    Ok(())
}

fn number(data: &Value, field: &str) -> Result<f64, String> {
    data[field].as_f64().ok_or_else(|| format!("no {field} in {data}"))
}

/// An event of a stream.
pub struct Event<'a> {
    pub name: &'a str,
    pub data: &'a str,
    /// Since the request was sent.
    pub after: Duration,
}

impl Event<'_> {
    pub fn json(&self) -> Result<Value, String> {
        serde_json::from_str(self.data).map_err(|e| format!("{} {:?}: {e}", self.name, self.data))
    }
}

impl Door {
    /// Sends a task and reads its stream to the end; gives the refusal, if it is one.
    pub fn read_task(
        &self,
        body: &str,
        mut each: impl FnMut(&Event<'_>) -> Result<(), String>,
    ) -> Result<Option<Value>, String> {
        // Of the stream, what is not a whole event yet; of a refusal all of it.
        let mut text = String::new();
        let status = self.ask("POST", "/v1/tasks", body, |status, piece, after| {
            text.push_str(std::str::from_utf8(piece).map_err(|e| e.to_string())?);
            if status == 200 { events(&mut text, after, &mut each) } else { Ok(()) }
        })?;
        match status {
            200 => Ok(None),
            400 | 429 | 503 | 529 => serde_json::from_str(&text).map(Some).map_err(|e| format!("{text}: {e}")),
            _ => Err(format!("status {status}: {text}")),
        }
    }

    pub fn cancel(&self, task_id: Uuid) -> Result<(), String> {
        let status = self.ask("POST", &format!("/v1/tasks/{task_id}/cancel"), "", |_, _, _| Ok(()))?;
        if status == 204 { Ok(()) } else { Err(format!("a cancel was answered with {status}")) }
    }

    /// The document at a path.
    pub fn get(&self, path: &str) -> Result<Value, String> {
        let mut body = Vec::new();
        let status = self.ask("GET", path, "", |_, piece, _| {
            body.extend_from_slice(piece);
            Ok(())
        })?;
        let text = String::from_utf8_lossy(&body);
        if status != 200 {
            return Err(format!("status {status}: {text}"));
        }
        serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))
    }

    /// Sends one request and reads its answer, each piece with the status and the time since it was sent; gives the status.
    fn ask(
        &self,
        method: &str,
        path: &str,
        body: &str,
        mut each: impl FnMut(u16, &[u8], Duration) -> Result<(), String>,
    ) -> Result<u16, String> {
        let Door { address, key, .. } = self;
        let fail = |e: std::io::Error| format!("{address}: {e}");
        let mut socket = TcpStream::connect(address).map_err(fail)?;
        socket.set_read_timeout(Some(PATIENCE)).map_err(fail)?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: bench\r\nX-API-Key: {key}\r\nAccept: text/event-stream\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let began = Instant::now();
        socket.write_all(format!("{head}{body}").as_bytes()).map_err(fail)?;
        let (mut reader, mut bytes) = (ResponseReader::default(), vec![0; 16 * 1024]);
        let (mut status, mut over) = (0, false);
        while !over {
            let len = socket.read(&mut bytes).map_err(fail)?;
            if len == 0 {
                return Err("an answer ended in the middle".into());
            }
            let after = began.elapsed();
            reader.feed(&bytes[..len], |part| {
                match part {
                    Part::Head { status: told } => status = told,
                    Part::Body(piece) => each(status, piece, after)?,
                    Part::End => over = true,
                }
                Ok(())
            })?;
        }
        Ok(status)
    }
}

/// Takes the whole events from the front of the text.
fn events(
    text: &mut String,
    after: Duration,
    each: &mut impl FnMut(&Event<'_>) -> Result<(), String>,
) -> Result<(), String> {
    while let Some(end) = text.find("\n\n") {
        let event = &text[..end];
        let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        let (name, data) = (field("event: "), field("data: "));
        if !name.is_empty() {
            each(&Event { name, data, after })?;
        }
        text.drain(..end + 2);
    }
    Ok(())
}
