//! From what a dialect asks for to tasks: fields that the dialect does not have are filled in here.

use std::sync::Arc;

use orchestratord_engine::BLOCK_LEN;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::Call;
use super::format::RESPONSE_FORMAT;
use super::refusal::Refusal;
use super::tools::Tools;
use crate::api::data;
use crate::api::types::require_key;
use crate::domain::error::OrchestratorError;
use crate::domain::ids::{SessionId, Uuid};
use crate::domain::limits;
use crate::domain::task::{Embedding, Priority, Prompt, PromptLogprobs, ResponseFormat, Sampling, TaskSpec, Workload};
use crate::infra::http::{RequestHead, Response};
use crate::metrics::CancelReason;
use crate::services::pool::Loaded;
use crate::services::task::{LiveTask, Outcome};
use crate::state::AppState;

/// Headers in which clients name a conversation, ours first; the others are sent by agents already.
const SESSION_HEADERS: &[&str] =
    &["x-session-id", "x-claude-code-session-id", "x-session-affinity", "session-id", "session_id"];

/// When the first token is wanted, milliseconds from now: llm-d's name for it.
const FIRST_TOKEN_HEADER: &str = "x-llm-d-slo-ttft-ms";

/// What is wanted, in no dialect.
pub(super) struct Ask {
    pub model: String,
    /// The field that the prompt came in, for refusals.
    pub prompt_param: &'static str,
    pub prompts: Vec<Prompt>,
    /// Answers to each prompt.
    pub copies: u32,
    /// None: as the configuration has it.
    pub max_tokens: Option<u32>,
    /// Its seed is that of the first answer; the others count on from there.
    pub sampling: Sampling,
    pub stop: Vec<String>,
    pub logprobs: bool,
    pub top_logprobs: u32,
    pub prompt_logprobs: PromptLogprobs,
    pub ignore_end: bool,
    pub format: ResponseFormat,
    /// Functions that may be called.
    pub tools: Option<Tools>,
    /// The field that the format came in, for refusals.
    pub format_param: &'static str,
    pub has_instructions: bool,
    /// The answer is wanted whether anybody reads it or not.
    pub background: bool,
    pub priority: Priority,
    /// The conversation as the body names it; a header goes first.
    pub session_key: Option<String>,
    /// What is to be found with the task later; null for nothing.
    pub note: Value,
}

/// Tasks that were accepted together, prompt by prompt.
pub(super) struct Admitted {
    pub tasks: Vec<Arc<LiveTask>>,
    /// A session that was made for these tasks alone.
    pub own_session: Option<SessionId>,
    /// The field that the format came in.
    pub format_param: &'static str,
    /// Others may read them: they go on when this reader leaves.
    pub is_shared: bool,
}

/// The model by its name.
///
/// # Errors
///
/// When it is not the one that is served, or none is yet.
pub(super) fn model(state: &AppState, name: &str) -> Result<Arc<Loaded>, Refusal> {
    let loaded = state.pools.iter().find_map(|p| p.loaded()).ok_or_else(|| {
        let message = "the model is still loading: try again".into();
        Refusal::from(OrchestratorError::PoolUnready { message, retry_after_ms: 1000 })
    })?;
    if loaded.model_ref == name {
        return Ok(loaded);
    }
    Err(Refusal::no_such_model(format!("there is no model {name:?} here: this server has {:?}", loaded.model_ref)))
}

/// Puts every answer that is wanted into the queue, or none of them.
///
/// # Errors
///
/// As POST /v1/tasks has them, in the dialect's fields.
pub(super) async fn admit(call: &Call<'_>, ask: Ask) -> Result<Admitted, Refusal> {
    let state = call.state;
    let client = require_key(call.head, &state.keys)?;
    let loaded = model(state, &ask.model)?;
    let choices = ask.prompts.len() * ask.copies as usize;
    if !(1..=limits::CHOICES_MAX).contains(&choices) {
        let most = limits::CHOICES_MAX;
        return Err(Refusal::field("n", format!("{choices} answers are asked for: 1 to {most} at a time")));
    }
    let tokenizer = loaded.model.tokenizer();
    let mut format_param = ask.format_param;
    let mut format = ask.format;
    let mut shown: Arc<[u32]> = Arc::default();
    if let Some(tools) = &ask.tools {
        shown = tools.shown(tokenizer).into();
        format = tools.format(tokenizer, &format).map_err(|why| Refusal::field(format_param, why))?;
        format_param = "tools";
    }
    if ask.ignore_end && format != ResponseFormat::Text {
        return Err(Refusal::field("ignore_eos", "cannot stand beside what says where the answer ends"));
    }
    if ask.max_tokens.is_some_and(|most| ask.sampling.min_tokens > most) {
        return Err(Refusal::field("min_tokens", "must be at most max_tokens"));
    }
    let deadline_ms = deadline_ms(call.head, state.config.gateway_deadline_ms)?;
    let named = session_key(call.head).or(ask.session_key.clone());
    check_first_token(call, ask.priority)?;
    let session_id = named.as_deref().map_or_else(fresh_id, session_of);
    let pool = state.pools.iter().next().expect("a server has a pool");
    let context = loaded.info.context_length.min((pool.rules.kv_blocks_max * BLOCK_LEN) as u32);
    let note: Option<Arc<str>> = (!ask.note.is_null()).then(|| ask.note.to_string().into());
    let mut admitted =
        Admitted { tasks: Vec::with_capacity(choices), own_session: None, format_param, is_shared: false };
    for prompt in &ask.prompts {
        let mut prompt = prompt.clone();
        for _ in 0..ask.copies {
            let number = admitted.tasks.len() as u64;
            let mut sampling = ask.sampling.clone();
            sampling.seed = sampling.seed.wrapping_add(number) & limits::JSON_INTEGER_MAX;
            let spec = TaskSpec {
                task_id: fresh_id(),
                session_id,
                workload: Workload::Completion,
                embedding: Embedding::default(),
                model_ref: loaded.model_ref.as_str().into(),
                engine: pool.engine,
                ctx: context,
                priority: ask.priority,
                max_tokens: ask.max_tokens.unwrap_or(1),
                deadline_ms,
                prompt: prompt.clone(),
                sampling,
                stop: ask.stop.clone(),
                response_format: format.clone(),
                shown: shown.clone(),
                logprobs: ask.logprobs,
                top_logprobs: ask.top_logprobs,
                prompt_logprobs: ask.prompt_logprobs,
                reuse_kv: true,
                expected_tokens: None,
                cancel_on_disconnect: !ask.background,
                ignore_end: ask.ignore_end,
                has_instructions: ask.has_instructions,
                deterministic: true,
                note: note.clone(),
            };
            let unnamed = ask.max_tokens.is_none().then_some(state.config.gateway_max_tokens);
            let fit = |spec: &mut TaskSpec, prompt_len: usize| {
                if let Some(wished) = unnamed {
                    let room = (context as usize).saturating_sub(prompt_len);
                    spec.max_tokens = wished.min(room as u32).max(1);
                    spec.sampling.min_tokens = spec.sampling.min_tokens.min(spec.max_tokens);
                }
            };
            match data::admit(state, client, spec, fit, call.request_id, call.wake).await {
                Ok(task) => {
                    // The same prompt need not be tokenized again.
                    prompt = Prompt::Tokens(task.prompt.clone());
                    admitted.tasks.push(task);
                }
                Err(error) => {
                    data::count_refusal(state, &error);
                    admitted.tasks.iter().for_each(|task| abandon(state, task));
                    return Err(in_the_dialect(error, ask.prompt_param).renamed(RESPONSE_FORMAT, format_param));
                }
            }
        }
    }
    admitted.own_session = named.is_none().then_some(session_id);
    Ok(admitted)
}

/// Ends a task that nobody will read.
pub(super) fn abandon(state: &AppState, task: &Arc<LiveTask>) {
    if let Some(pool) = state.pools.by_engine(task.spec.engine)
        && task.end(Outcome::Canceled(CancelReason::Disconnect), &pool.scribe, state.clock.now_us())
    {
        pool.doorbell.ring();
    }
}

/// `prompt` and `ctx` are our names for what the dialect calls otherwise.
pub(super) fn in_the_dialect(error: OrchestratorError, prompt_param: &'static str) -> Refusal {
    let too_long = matches!(&error, OrchestratorError::InvalidParams(message) if message.contains(" ctx "));
    // In the message, too: nobody has sent a field of our name.
    let refusal = Refusal::from(error).renamed("prompt", prompt_param).renamed("messages", prompt_param);
    match refusal.param() {
        Some(param) if too_long && (param == prompt_param || ["ctx", "max_tokens"].contains(&param)) => {
            refusal.about(prompt_param, "context_length_exceeded")
        }
        _ => refusal,
    }
}

pub(super) fn fresh_id() -> Uuid {
    Uuid(uuid::Uuid::new_v4().as_u128())
}

pub(super) fn session_key(head: &RequestHead<'_>) -> Option<String> {
    let sent = SESSION_HEADERS.iter().find_map(|name| head.header(name)).filter(|key| !key.is_empty())?;
    Some(String::from_utf8_lossy(sent).into_owned())
}

/// A session's id from any name: a UUID is taken as it is.
pub(super) fn session_of(key: &str) -> SessionId {
    Uuid::parse(key).unwrap_or_else(|| {
        let digest: [u8; 32] = Sha256::digest(key).into();
        Uuid(u128::from_be_bytes(*digest.first_chunk().expect("a digest is longer")))
    })
}

/// Refuses a request whose first token is wanted before its turn would come. What is promised is the start: how long its
/// prompt takes is not known before it is tokenized.
fn check_first_token(call: &Call<'_>, priority: Priority) -> Result<(), Refusal> {
    let Some(wanted_ms) = milliseconds(call.head, FIRST_TOKEN_HEADER)? else { return Ok(()) };
    let pool = call.state.pools.iter().next().expect("a server has a pool");
    let start_ms = pool.gate.start_ms(call.state.clock.now_us(), priority, pool.queue.ahead(priority));
    if wanted_ms > 0 && start_ms <= wanted_ms as u64 {
        return Ok(());
    }
    let message = format!(
        "header `{FIRST_TOKEN_HEADER}`: the first token is wanted within {wanted_ms} ms and the predicted start is in {start_ms} ms: \
         allow more time, or try another replica"
    );
    let error = OrchestratorError::DeadlineUnmet { message };
    data::count_refusal(call.state, &error);
    Err(error.into())
}

pub(super) fn deadline_ms(head: &RequestHead<'_>, default_ms: u64) -> Result<u64, Refusal> {
    match milliseconds(head, "x-deadline-ms")? {
        None => Ok(default_ms),
        Some(ms) if ms <= 0 => {
            let message = "header `x-deadline-ms`: has passed: it is the time from now to the last token".into();
            Err(OrchestratorError::DeadlineUnmet { message }.into())
        }
        Some(ms) => Ok(ms as u64),
    }
}

fn milliseconds(head: &RequestHead<'_>, name: &str) -> Result<Option<i64>, Refusal> {
    let Some(sent) = head.header(name) else { return Ok(None) };
    let parsed = std::str::from_utf8(sent).ok().and_then(|t| t.trim().parse::<i64>().ok());
    parsed.map(Some).ok_or_else(|| Refusal::header(name, "must be a whole number of milliseconds from now"))
}

/// Tells the client where its tasks stand.
pub(super) fn with_queue_facts(response: Response, tasks: &[Arc<LiveTask>]) -> Response {
    let last = tasks.last().expect("an answer has a task");
    let ids: Vec<String> = tasks.iter().map(|t| t.spec.task_id.to_string()).collect();
    response
        .header("x-task-id", ids.join(","))
        .header("x-queue-position", last.promise.queue_position.to_string())
        .header("x-predicted-start-ms", last.promise.predicted_start_ms.to_string())
        .header("x-ratelimit-remaining-tokens", last.budgets.tokens.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infra::http::head_for_tests;

    #[test]
    fn a_session_is_named_by_a_uuid_or_by_anything() {
        let uuid = "0190163d-8694-739b-aea5-966c26f8ad91";
        assert_eq!(session_of(uuid).to_string(), uuid);
        assert_eq!(session_of("my chat"), session_of("my chat"));
        assert_ne!(session_of("my chat"), session_of("my chats"));
    }

    #[test]
    fn our_own_session_header_goes_first() {
        let text = "GET / HTTP/1.1\r\nHost: a\r\nsession_id: codex\r\nX-Session-Id: ours\r\n\r\n";
        head_for_tests(text, |head| assert_eq!(session_key(head).as_deref(), Some("ours")));
        head_for_tests("GET / HTTP/1.1\r\nHost: a\r\nsession_id: codex\r\n\r\n", |head| {
            assert_eq!(session_key(head).as_deref(), Some("codex"));
        });
    }

    #[test]
    fn a_deadline_is_a_number_in_the_future() {
        let ask = |value: &str| {
            head_for_tests(&format!("GET / HTTP/1.1\r\nHost: a\r\nx-deadline-ms: {value}\r\n\r\n"), |head| {
                deadline_ms(head, 7).map_err(|r| r.error().code())
            })
        };
        assert_eq!(ask("250"), Ok(250));
        assert_eq!(ask("soon"), Err("INVALID_PARAMS"));
        assert_eq!(ask("-1"), Err("DEADLINE_UNMET"));
        assert_eq!(head_for_tests("GET / HTTP/1.1\r\nHost: a\r\n\r\n", |head| deadline_ms(head, 7).unwrap()), 7);
    }
}
