//! Tasks' logs, event by event, for whoever puts them into a dialect's words.
//!
//! The text of a token is handed on as the JSON string that the log holds: most dialects want just that, so it is
//! neither read nor escaped again.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde::Deserialize;

use super::admit::{Admitted, abandon, with_queue_facts};
use super::refusal::Refusal;
use super::{Call, format, refusal};
use crate::api::data;
use crate::domain::error::OrchestratorError;
use crate::domain::task::Priority;
use crate::infra::http::{RequestHead, Response, sse};
use crate::infra::reactor::{Reply, View};
use crate::infra::stream::ReadersFull;
use crate::services::task::{LiveTask, Outcome};
use crate::state::AppState;

/// How often a client that wants to know hears of its place in the queue.
const QUEUE_STATUS_EVERY: Duration = Duration::from_secs(1);

/// A token as the log has it.
#[derive(Clone, Copy)]
pub(super) struct Token<'a> {
    /// The text, as a JSON string with its quotes.
    pub literal: &'a str,
    data: &'a [u8],
}

/// What `logprobs` asked for.
#[derive(Deserialize)]
pub(super) struct Logprob {
    pub id: u32,
    pub logprob: f64,
    #[serde(default)]
    pub top_logprobs: Vec<Logprob>,
}

impl<'a> Token<'a> {
    fn new(data: &'a [u8]) -> Token<'a> {
        let rest = data.strip_prefix(b"{\"t\":").expect("a token event begins with its text");
        let mut len = 1;
        while rest[len] != b'"' {
            len += if rest[len] == b'\\' { 2 } else { 1 };
        }
        Token { literal: std::str::from_utf8(&rest[..=len]).expect("we write UTF-8"), data }
    }

    pub fn is_empty(&self) -> bool {
        self.literal.len() == 2
    }

    pub fn push_text(&self, out: &mut String) {
        let inner = &self.literal[1..self.literal.len() - 1];
        match inner.contains('\\') {
            false => out.push_str(inner),
            true => out.push_str(&serde_json::from_str::<String>(self.literal).expect("we write JSON")),
        }
    }

    /// None for the last piece of a text that was held back: it belongs to no token of its own.
    pub fn logprob(&self) -> Option<Logprob> {
        serde_json::from_slice(self.data).ok()
    }
}

/// How a task ended well.
pub(super) struct End<'a> {
    pub task: &'a LiveTask,
    pub tokens_out: u32,
    pub decode_ms: u64,
    /// `stop` or `length`.
    pub finish_reason: &'a str,
    pub artifact_id: Option<&'a str>,
}

/// Where a task stands that has no slot yet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Waiting {
    pub position: u32,
    pub start_ms: u64,
}

/// How a dialect says what happens. `source` counts the answers. What goes out is SSE text without framing.
pub(super) trait Dialect: 'static {
    /// The tasks are in the queue, or in a slot already.
    fn accepted(&mut self, waits: bool, out: &mut Vec<u8>) {
        let _ = (waits, out);
    }
    fn token(&mut self, source: usize, token: Token<'_>, out: &mut Vec<u8>);
    /// A token of the prompt, as the log has it: each but the first, before the answer. Only tasks that want them have them.
    fn prompt_token(&mut self, source: usize, data: &[u8]) {
        let _ = (source, data);
    }
    /// A vector, as the log has it. Only tasks that want one have it.
    fn embedding(&mut self, source: usize, data: &[u8]) {
        let _ = (source, data);
    }
    fn end(&mut self, source: usize, end: &End<'_>, out: &mut Vec<u8>);
    /// Something failed: the last that a stream says.
    fn failed(&mut self, refusal: &Refusal, out: &mut Vec<u8>);
    /// Every answer has ended well.
    fn finish(&mut self, out: &mut Vec<u8>);
    /// The whole answer, for a client that did not want a stream.
    fn body(&mut self) -> Response;
    /// A sign of life for a stream that has been silent.
    fn ping(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b": keep-alive\n\n");
    }
    fn shape(&self) -> refusal::Shape {
        refusal::Shape::OpenAi
    }
}

/// Answers a request with the tasks that were made of it.
///
/// # Errors
///
/// When a task has as many readers as it may have.
pub(super) fn reply<D: Dialect>(
    call: &Call<'_>,
    admitted: Admitted,
    stream: bool,
    dialect: D,
) -> Result<Reply, Refusal> {
    let mut readers = Vec::with_capacity(admitted.tasks.len());
    for task in &admitted.tasks {
        let reader = task.stream.attach(call.wake.address(), None);
        readers.push(reader.map_err(|ReadersFull| {
            let message = "the task has too many readers: try again when one has left".into();
            Refusal::from(OrchestratorError::PoolUnavailable { message, retry_after_ms: Some(1000) })
        })?);
    }
    let head = stream.then(|| {
        let head = Response::new(200)
            .header("Content-Type", "text/event-stream; charset=utf-8")
            .header("Cache-Control", "no-cache, no-transform")
            .header("X-Accel-Buffering", "no");
        with_queue_facts(head, &admitted.tasks)
    });
    let view = TaskView {
        state: call.state.clone(),
        seated_before: admitted.tasks.iter().map(|t| seated_count(call.state, t.spec.priority)).collect(),
        tells_queue: stream && wants_queue_events(call.head),
        request_id: call.request_id.to_owned(),
        admitted,
        dialect,
        failed: None,
        is_announced: false,
        has_spoken: false,
    };
    Ok(Reply::View { head, readers, view: Box::new(view) })
}

fn wants_queue_events(head: &RequestHead<'_>) -> bool {
    let wanted = head.header("x-orch-events").and_then(|v| std::str::from_utf8(v).ok()).unwrap_or_default();
    wanted.split(',').any(|part| part.trim() == "queue")
}

/// Tasks of this class that were given a slot since the start.
fn seated_count(state: &AppState, priority: Priority) -> u64 {
    state.metrics.tasks_started[priority.index()].value()
}

struct TaskView<D> {
    state: Arc<AppState>,
    admitted: Admitted,
    /// Per task, how many of its class had a slot when it came.
    seated_before: Vec<u64>,
    tells_queue: bool,
    request_id: String,
    dialect: D,
    failed: Option<Refusal>,
    /// The dialect has been told that the tasks were accepted.
    is_announced: bool,
    /// The first token was sent.
    has_spoken: bool,
}

#[derive(Deserialize)]
struct EndData<'a> {
    tokens_out: u32,
    decode_ms: u64,
    #[serde(borrow)]
    finish_reason: &'a str,
    #[serde(borrow)]
    artifact_id: Option<&'a str>,
}

impl<D: Dialect> View for TaskView<D> {
    fn events(&mut self, source: usize, frames: &[u8], out: &mut Vec<u8>) {
        for event in sse::events(frames) {
            if self.failed.is_some() {
                return;
            }
            match event.name {
                b"token" => {
                    self.has_spoken = true;
                    self.dialect.token(source, Token::new(event.data), out);
                }
                b"prompt" => self.dialect.prompt_token(source, event.data),
                b"embedding" => self.dialect.embedding(source, event.data),
                b"started" => {
                    if !std::mem::replace(&mut self.is_announced, true) {
                        self.dialect.accepted(self.waiting().is_some(), out);
                    }
                    self.tell_place(out);
                }
                b"end" => self.end(source, event.data, out),
                b"error" => self.fail(source, out),
                _ => {}
            }
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        if self.failed.is_none() {
            self.dialect.finish(out);
        }
    }

    fn answer(&mut self) -> Response {
        let response = match &self.failed {
            Some(refusal) => refusal.response(self.dialect.shape(), &self.request_id, &self.state),
            None => self.dialect.body(),
        };
        with_queue_facts(response, &self.admitted.tasks)
    }

    fn silence(&mut self, out: &mut Vec<u8>) {
        if self.waiting().is_some() {
            self.tell_place(out);
        } else {
            self.dialect.ping(out);
        }
    }

    fn patience(&self) -> Option<Duration> {
        (self.tells_queue && !self.has_spoken).then_some(QUEUE_STATUS_EVERY)
    }
}

impl<D: Dialect> TaskView<D> {
    fn end(&mut self, source: usize, data: &[u8], out: &mut Vec<u8>) {
        let data: EndData<'_> = serde_json::from_slice(data).expect("we wrote it");
        if data.finish_reason == "canceled" {
            let message = "the task was canceled".to_owned();
            return self.fail_with(OrchestratorError::MalformedRequest { status: 499, message }.into(), out);
        }
        let end = End {
            task: &self.admitted.tasks[source],
            tokens_out: data.tokens_out,
            decode_ms: data.decode_ms,
            finish_reason: data.finish_reason,
            artifact_id: data.artifact_id,
        };
        self.dialect.end(source, &end, out);
    }

    fn fail(&mut self, source: usize, out: &mut Vec<u8>) {
        let error = match self.admitted.tasks[source].outcome() {
            Some(Outcome::Failed(error)) => error.clone(),
            other => OrchestratorError::Internal(format!("an error event for a task that ended with {other:?}")),
        };
        let refusal = Refusal::from(error).renamed(format::RESPONSE_FORMAT, self.admitted.format_param);
        self.fail_with(refusal, out);
    }

    /// One answer that cannot be given fails them all.
    fn fail_with(&mut self, refusal: Refusal, out: &mut Vec<u8>) {
        self.dialect.failed(&refusal, out);
        self.failed = Some(refusal);
        self.admitted.tasks.iter().for_each(|task| abandon(&self.state, task));
    }

    /// Where the first task stands that still waits.
    fn waiting(&self) -> Option<Waiting> {
        let is_waiting = |t: &Arc<LiveTask>| t.times.seated_us.load(Relaxed) == 0 && t.outcome().is_none();
        let index = self.admitted.tasks.iter().position(is_waiting)?;
        let task = &self.admitted.tasks[index];
        let pool = self.state.pools.by_engine(task.spec.engine)?;
        let priority = task.spec.priority;
        // Who was ahead and has a slot now is ahead no more, and nobody is behind everybody who waits.
        let seated = seated_count(&self.state, priority).saturating_sub(self.seated_before[index]);
        let position = task.promise.queue_position.saturating_sub(seated as u32);
        let position = position.min(pool.queue.ahead(priority).saturating_sub(1));
        let start_ms = pool.gate.start_ms(self.state.clock.now_us(), priority, position);
        Some(Waiting { position, start_ms })
    }

    /// A comment, which every client passes over, or the event that this one asked for.
    fn tell_place(&self, out: &mut Vec<u8>) {
        let Some(Waiting { position, start_ms }) = self.waiting() else { return };
        let text = match self.tells_queue {
            true => format!(
                "event: queue_status\ndata: {{\"queue_position\":{position},\"estimated_wait_seconds\":{}}}\n\n",
                start_ms as f64 / 1000.0
            ),
            false => format!(": queued position={position} eta_ms={start_ms}\n\n"),
        };
        out.extend_from_slice(text.as_bytes());
    }
}

impl<D> Drop for TaskView<D> {
    /// The client is gone or has everything: what is still running for it has nobody to run for.
    fn drop(&mut self) {
        let is_shared = self.admitted.is_shared;
        let unwanted = |t: &&Arc<LiveTask>| t.outcome().is_none() && t.spec.cancel_on_disconnect && !is_shared;
        for task in self.admitted.tasks.iter().filter(unwanted) {
            abandon(&self.state, task);
        }
        if let Some(session) = self.admitted.own_session {
            self.state.sessions.delete(session);
        }
    }
}

/// Reads a prompt's tokens for a dialect that only counts them.
///
/// # Errors
///
/// As `data::tokenize`.
pub(super) async fn count_tokens(
    call: &Call<'_>,
    loaded: &Arc<crate::services::pool::Loaded>,
    prompt: &crate::domain::task::Prompt,
) -> Result<Arc<[u32]>, Refusal> {
    data::tokenize(call.state, loaded, prompt, call.wake).await.map_err(Refusal::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_without_unescaping_it() {
        for text in ["", "plain", "a \"quote\" and a \\ and\nmore", "é🦀\u{1}", "ends in \\"] {
            let data = format!("{{\"t\":{},\"i\":3}}", serde_json::to_string(text).unwrap());
            let token = Token::new(data.as_bytes());
            assert_eq!(serde_json::from_str::<String>(token.literal).unwrap(), text);
            let mut read = String::new();
            token.push_text(&mut read);
            assert_eq!((read.as_str(), token.is_empty(), token.logprob().is_none()), (text, text.is_empty(), true));
        }
    }

    #[test]
    fn logprobs_are_read_with_their_alternatives() {
        let data = br#"{"t":"x","i":0,"id":7,"logprob":-0.5,"top_logprobs":[{"id":7,"logprob":-0.5}]}"#;
        let found = Token::new(data).logprob().unwrap();
        assert_eq!((found.id, found.logprob, found.top_logprobs[0].id), (7, -0.5, 7));
    }
}
