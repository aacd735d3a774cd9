//! Tasks, their streams, and sessions.

use std::cell::RefCell;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use orchestratord_engine::{ChatMessage, Constraint, ToolCall};

use super::types::{Accepted, SessionBody, TaskRequest, from_json, json, require_api_key};
use crate::config::AdmissionPolicy;
use crate::domain::error::OrchestratorError;
use crate::domain::ids::{CorrelationId, SessionId, TaskId, Uuid};
use crate::domain::task::{Chat, FunctionCall, Message, Prompt, PromptLogprobs, ResponseFormat, TaskSpec, Workload};
use crate::infra::http::{RequestHead, Response};
use crate::infra::reactor::{Reply, Wake, oneshot};
use crate::infra::stream::{ReadersFull, StreamWriter, TaskStream};
use crate::metrics::CancelReason;
use crate::services::capabilities;
use crate::services::gate::{Offer, Promise, Refusal};
use crate::services::pool::{Control, Entry, Loaded, Pool, PoolState, SessionKvView};
use crate::services::response_format;
use crate::services::session::{Account, Bill, BudgetSpent, Budgets, Owner, Session, Spent};
use crate::services::streaming::{FrameBuffers, Started, thousandths};
use crate::services::task::{Inserted, LiveTask, Outcome, TaskParts};
use crate::state::AppState;

/// POST /v1/tasks: 202 and where to find the stream, or the stream itself for `Accept: text/event-stream`.
///
/// Refused as early as it can be: the shape, then the pool, then the budgets, then the queue, then the prompt's length in
/// bytes, and only then is the prompt tokenized.
///
/// # Errors
///
/// Each of the error taxonomy's admission errors.
pub async fn create_task(
    state: &Arc<AppState>,
    head: &RequestHead<'_>,
    body: &mut [u8],
    correlation_id: &str,
    wake: &Wake,
) -> Result<Reply, OrchestratorError> {
    let client = require_api_key(head, &state.keys)?;
    let accepted = accept(state, client, body, correlation_id, wake).await;
    let task = accepted.inspect_err(|error| count_refusal(state, error))?;
    if wants_stream(head) {
        return open_stream(&task, None, wake);
    }
    let promise = &task.promise;
    let body = Accepted {
        task_id: task.spec.task_id,
        queue_position: promise.queue_position,
        predicted_start_ms: promise.predicted_start_ms,
        backoff_ms: promise.backoff_ms,
        on_time_probability: thousandths(promise.outlook.on_time_probability),
    };
    let response = with_budgets(json(202, &body), &task.budgets);
    Ok(Reply::Full(response.header("Location", format_args!("/v1/tasks/{}/stream", task.spec.task_id))))
}

/// Counts a refusal, unless the queue has: it counts its own where they are decided.
pub fn count_refusal(state: &AppState, error: &OrchestratorError) {
    if !matches!(
        error,
        OrchestratorError::QueueFullDropLru { .. } | OrchestratorError::AdmissionReject { policy_label: "reject", .. }
    ) {
        state.metrics.rejected(error.code());
    }
}

fn wants_stream(head: &RequestHead<'_>) -> bool {
    let accept = head.header("accept").and_then(|a| std::str::from_utf8(a).ok()).unwrap_or_default();
    accept.split(',').any(|part| part.split(';').next().is_some_and(|kind| kind.trim() == "text/event-stream"))
}

async fn accept(
    state: &Arc<AppState>,
    client: u16,
    body: &mut [u8],
    correlation_id: &str,
    wake: &Wake,
) -> Result<Arc<LiveTask>, OrchestratorError> {
    fail::fail_point!("create-task", |_| Err(OrchestratorError::Internal(
        "the fault point create-task was reached".into()
    )));
    let mut spec = from_json::<TaskRequest<'_>>(body)?.check()?;
    if let Some(known) = state.tasks.get(spec.task_id) {
        return same_task(known, &spec);
    }
    let prepared = prepare(state, client, &mut spec, |_, _| (), wake).await?;
    enqueue(state, client, spec, prepared, correlation_id)
}

/// What every door does with a task whose fields are legal on their own. `fit` is told how many tokens the prompt has,
/// and may fit the task to that.
///
/// # Errors
///
/// Each of the error taxonomy's admission errors.
pub async fn admit(
    state: &Arc<AppState>,
    client: u16,
    mut spec: TaskSpec,
    fit: impl FnOnce(&mut TaskSpec, usize),
    correlation_id: &str,
    wake: &Wake,
) -> Result<Arc<LiveTask>, OrchestratorError> {
    let prepared = prepare(state, client, &mut spec, fit, wake).await?;
    enqueue(state, client, spec, prepared, correlation_id)
}

/// The part of it that may wait. The task is lent: every connection has room for what an async function takes, and twice
/// for what it takes by value.
async fn prepare(
    state: &Arc<AppState>,
    client: u16,
    spec: &mut TaskSpec,
    fit: impl FnOnce(&mut TaskSpec, usize),
    wake: &Wake,
) -> Result<Prepared, OrchestratorError> {
    let pool = pool_for(state, spec)?;
    let loaded = pool.accepting(&spec.model_ref)?;
    check_workload(&loaded, spec)?;
    check_context(&loaded, spec)?;
    let now_us = state.clock.now_us();
    let left = state.sessions.check_left(spec.session_id, client, now_us);
    left.map_err(|spent| budget_spent(spec.session_id, spent))?;
    pool.gate
        .check_room(spec.task_id.0, now_us, spec.priority)
        .map_err(|refusal| refused(state, spec.deadline_ms, refusal))?;
    let mut prompt = tokenize(state, &loaded, &spec.prompt, wake).await?;
    if let (Workload::Embedding, Some(end)) = (spec.workload, loaded.model.tokenizer().end_of_text())
        && !matches!(spec.prompt, Prompt::Tokens(_))
        && prompt.last() != Some(&end)
    {
        prompt = prompt.iter().copied().chain([end]).collect();
    }
    fit(spec, prompt.len());
    check_length(pool, &loaded, spec, prompt.len())?;
    let constraint = constrain(state, &loaded, &spec.response_format, wake).await?;
    Ok(Prepared { pool: pool.clone(), loaded, prompt, constraint })
}

/// The grammar of the answer, compiled on a helper thread.
async fn constrain(
    state: &Arc<AppState>,
    loaded: &Arc<Loaded>,
    format: &ResponseFormat,
    wake: &Wake,
) -> Result<Option<Constraint>, OrchestratorError> {
    if *format == ResponseFormat::Text {
        return Ok(None);
    }
    let (loaded, format) = (loaded.clone(), format.clone());
    let compiled = super::on_helper(state, wake, move || response_format::constraint(&loaded.model, &format)).await?;
    compiled.map_err(|e| OrchestratorError::InvalidParams(format!("field `response_format`: cannot be followed: {e}")))
}

fn same_task(known: Arc<LiveTask>, spec: &TaskSpec) -> Result<Arc<LiveTask>, OrchestratorError> {
    if known.spec == *spec { Ok(known) } else { Err(other_body(spec.task_id)) }
}

fn other_body(id: TaskId) -> OrchestratorError {
    OrchestratorError::InvalidParams(format!("field `task_id`: {id} was sent before with another body: make a new one"))
}

fn pool_for<'a>(state: &'a AppState, spec: &TaskSpec) -> Result<&'a Arc<Pool>, OrchestratorError> {
    let unavailable = |message| OrchestratorError::PoolUnavailable { message, retry_after_ms: None };
    let pool = state.pools.by_engine(spec.engine).ok_or_else(|| {
        let names: Vec<_> = state.pools.iter().map(|p| p.engine).collect();
        unavailable(format!("no pool has engine {:?}: this server has {}", spec.engine, names.join(", ")))
    })?;
    Ok(pool)
}

/// What can be said of the model alone.
fn check_workload(loaded: &Loaded, spec: &TaskSpec) -> Result<(), OrchestratorError> {
    let model = &loaded.model_ref;
    if !capabilities::WORKLOADS.contains(&spec.workload) {
        let known = capabilities::WORKLOADS.map(Workload::name).join(" and ");
        let name = spec.workload.name();
        let message = format!("field `workload`: model {model} cannot do {name}: it does {known}");
        return Err(OrchestratorError::InvalidParams(message));
    }
    let most = loaded.info.embedding_length;
    match spec.embedding.dimensions {
        Some(wanted) if wanted as usize > most => Err(OrchestratorError::InvalidParams(format!(
            "field `inputs.dimensions`: {wanted} is over the {most} that vectors of model {model} have"
        ))),
        _ => Ok(()),
    }
}

/// What can be said before the prompt is tokenized.
fn check_context(loaded: &Loaded, spec: &TaskSpec) -> Result<(), OrchestratorError> {
    let invalid = |text: String| Err(OrchestratorError::InvalidParams(text));
    let most = loaded.info.context_length;
    if spec.ctx > most {
        return invalid(format!("field `ctx`: {} is over the model's {most}", spec.ctx));
    }
    if spec.max_tokens >= spec.ctx {
        return invalid(format!(
            "field `max_tokens`: {} leaves no room for a prompt in ctx {}: ask for fewer tokens",
            spec.max_tokens, spec.ctx
        ));
    }
    let vocab_len = loaded.model.tokenizer().vocab_len();
    if let Some((token, _)) = spec.sampling.logit_bias.iter().find(|(token, _)| *token as usize >= vocab_len) {
        return invalid(format!("field `logit_bias`: {token} is none of the model's {vocab_len} tokens"));
    }
    // No token stands for more bytes than the longest one, so that many bytes make at least that many tokens.
    let least = spec.prompt.token_count_min(loaded.model.tokenizer().token_bytes_max());
    if least + spec.max_tokens as usize > spec.ctx as usize {
        return invalid(format!(
            "field `prompt`: {} bytes are at least {least} tokens, and with max_tokens {} more than ctx {}: shorten it",
            spec.prompt.text_len(),
            spec.max_tokens,
            spec.ctx
        ));
    }
    Ok(())
}

/// The prompt's tokens; long ones are made on a helper thread.
///
/// # Errors
///
/// `InvalidParams` for a prompt that is empty or that the model's template refuses.
pub async fn tokenize(
    state: &Arc<AppState>,
    loaded: &Arc<Loaded>,
    prompt: &Prompt,
    wake: &Wake,
) -> Result<Arc<[u32]>, OrchestratorError> {
    if prompt.text_len() <= state.config.tokenize_inline_len_max {
        return prompt_tokens(loaded, prompt, || state.clock.unix_ms());
    }
    let (loaded, prompt, now_ms) = (loaded.clone(), prompt.clone(), state.clock.unix_ms());
    super::on_helper(state, wake, move || prompt_tokens(&loaded, &prompt, || now_ms)).await?
}

/// Templates may ask for the time: `now_ms` since 1970.
fn prompt_tokens(
    loaded: &Loaded,
    prompt: &Prompt,
    now_ms: impl FnOnce() -> u64,
) -> Result<Arc<[u32]>, OrchestratorError> {
    let tokenizer = loaded.model.tokenizer();
    let tokens = match prompt {
        // Text is text: a client that writes a control token's name into its prompt gets its letters.
        Prompt::Text(text) => loaded.prompts.encode(tokenizer, text, true, false),
        Prompt::Chat(chat) => {
            let text = render(loaded, chat, true, now_ms())?;
            let adds_bos = loaded.model.chat_template().is_some_and(|t| t.adds_bos());
            loaded.prompts.encode(tokenizer, &text, !adds_bos, true)
        }
        Prompt::Tokens(tokens) => {
            let vocab_len = tokenizer.vocab_len();
            if let Some(token) = tokens.iter().find(|token| **token as usize >= vocab_len) {
                let what = format!("field `prompt`: token {token} is none of the model's {vocab_len}");
                return Err(OrchestratorError::InvalidParams(what));
            }
            return if tokens.is_empty() { Err(empty_prompt()) } else { Ok(tokens.clone()) };
        }
    };
    if tokens.is_empty() {
        return Err(empty_prompt());
    }
    Ok(tokens)
}

fn empty_prompt() -> OrchestratorError {
    OrchestratorError::InvalidParams("field `prompt`: is empty for this model: send some text".into())
}

/// The turns as the model's own chat template writes them.
///
/// # Errors
///
/// `InvalidParams` when the model has no template, or it refuses them.
pub fn render(
    loaded: &Loaded,
    chat: &Chat,
    add_generation_prompt: bool,
    now_ms: u64,
) -> Result<String, OrchestratorError> {
    let invalid = |what: String| OrchestratorError::InvalidParams(format!("field `messages`: {what}"));
    let template = loaded
        .model
        .chat_template()
        .ok_or_else(|| invalid(format!("model {} has no chat template: send prompt instead", loaded.model_ref)))?;
    let turns: Vec<ChatMessage> = chat.turns.iter().map(turn).collect();
    let tools = chat.tools.as_deref().map(|tools| serde_json::from_str(tools).expect("it was written from JSON"));
    template.render(&turns, tools.as_ref(), add_generation_prompt, now_ms).map_err(|e| invalid(e.to_string()))
}

fn turn(m: &Message) -> ChatMessage {
    let call = |c: &FunctionCall| ToolCall {
        id: c.id.clone(),
        name: c.name.clone(),
        arguments: serde_json::from_str(&c.arguments).expect("it was checked where it entered"),
    };
    ChatMessage {
        tool_calls: m.calls.iter().map(call).collect(),
        tool_call_id: m.answers.as_ref().map(|(id, _)| id.clone()),
        name: m.answers.as_ref().map(|(_, name)| name.clone()),
        ..ChatMessage::new(m.role.clone(), m.content.clone())
    }
}

fn check_length(pool: &Pool, loaded: &Loaded, spec: &TaskSpec, prompt_len: usize) -> Result<(), OrchestratorError> {
    let total = prompt_len + spec.max_tokens as usize;
    if total > spec.ctx as usize {
        return Err(OrchestratorError::InvalidParams(format!(
            "field `prompt`: its {prompt_len} tokens and max_tokens {} are more than ctx {}: shorten one of them",
            spec.max_tokens, spec.ctx
        )));
    }
    let cells = pool.rules.kv_blocks_max * orchestratord_engine::BLOCK_LEN;
    if total.next_multiple_of(orchestratord_engine::BLOCK_LEN) > cells {
        let model = &loaded.model_ref;
        return Err(OrchestratorError::ReplicaExhausted {
            message: format!(
                "the task needs {total} cells of KV cache and pool {} has {cells} for {model}: it can never fit; \
                 ask for less, or raise kv_blocks_max",
                pool.id
            ),
            retry_after_ms: None,
        });
    }
    Ok(())
}

/// What was made of a task's text, and the model for which it was.
struct Prepared {
    pool: Arc<Pool>,
    loaded: Arc<Loaded>,
    prompt: Arc<[u32]>,
    constraint: Option<Constraint>,
}

/// Gives the task its session, budget, prediction and place; all of it or nothing.
fn enqueue(
    state: &Arc<AppState>,
    client: u16,
    spec: TaskSpec,
    prepared: Prepared,
    correlation_id: &str,
) -> Result<Arc<LiveTask>, OrchestratorError> {
    let pool = &prepared.pool.clone();
    let now_us = state.clock.now_us();
    let now_ms = now_us / 1000;
    let (session, evicted) = state.sessions.get_or_create(spec.session_id, now_ms);
    if let Some(id) = evicted {
        pool.send(Control::DropSession { session: id.0 });
    }
    let rules = &state.sessions.rules;
    let account = state.sessions.account(session.clone(), client);
    let (id, session_id) = (spec.task_id, spec.session_id);
    let inserted = state.tasks.insert(spec, |spec| {
        let granted = account.grant(spec.max_tokens.into(), now_us, rules);
        let (reserved, budgets) = granted.map_err(|spent| budget_spent(session_id, spent))?;
        let nothing = Bill { reserved, tokens: 0, time_ms: 0, seated_us: None, now_ms };
        let newcomer =
            Newcomer { state, pool, client, spec, prepared, account: account.clone(), budgets, correlation_id, now_us };
        newcomer.enqueue(reserved as u32).inspect_err(|_| account.settle(nothing, rules))
    });
    match inserted {
        Inserted::New(task) => {
            state.sessions.note_turn(&session, now_ms);
            state.metrics.tokens_in.add(task.prompt.len() as u64);
            pool.doorbell.ring();
            log_accepted(&task);
            Ok(task)
        }
        Inserted::Known(task) => Ok(task),
        Inserted::Conflict => Err(other_body(id)),
        Inserted::Refused(error) => Err(error),
    }
}

fn log_accepted(task: &LiveTask) {
    tracing::info!(
        correlation_id = &*task.correlation_id,
        task_id = &*task.spec.task_id.text(),
        session_id = &*task.spec.session_id.text(),
        priority = task.spec.priority.name(),
        queue_position = task.promise.queue_position,
        predicted_start_ms = task.promise.predicted_start_ms,
        tokens_in = task.prompt.len(),
        "task accepted"
    );
}

/// One attempt to put a task into the queue.
struct Newcomer<'a> {
    state: &'a Arc<AppState>,
    pool: &'a Arc<Pool>,
    client: u16,
    spec: TaskSpec,
    prepared: Prepared,
    account: Account,
    budgets: Budgets,
    correlation_id: &'a str,
    now_us: u64,
}

impl Newcomer<'_> {
    fn enqueue(self, tokens_reserved: u32) -> Result<Arc<LiveTask>, OrchestratorError> {
        let Newcomer { state, pool, client, spec, prepared, account, budgets, correlation_id, now_us: accepted_us } =
            self;
        let Prepared { loaded, prompt, constraint, .. } = prepared;
        let (deadline_ms, session) = (spec.deadline_ms, account.session.clone());
        let offer = Offer {
            id: spec.task_id.0,
            now_us: accepted_us,
            priority: spec.priority,
            deadline_us: accepted_us.saturating_add(deadline_ms.saturating_mul(1000)),
            client,
            prompt_len: prompt.len() as u32,
            tokens_max: tokens_reserved,
            // Who decodes past the model's last word takes all that it may.
            tokens_said: if spec.ignore_end { None } else { spec.expected_tokens },
            // A vector takes its one step, too, and so does a prompt that is only told of.
            never_ends: spec.ignore_end
                || spec.workload == Workload::Embedding
                || spec.prompt_logprobs == PromptLogprobs::Only,
            blocks: (prompt.len() + tokens_reserved as usize).div_ceil(orchestratord_engine::BLOCK_LEN) as u32,
            session: &session.lengths,
            forced: false,
        };
        let mut made = None;
        let placed = pool.gate.offer(&offer, |_, promise| {
            let (stream, mut writer) = TaskStream::new(state.hub.clone());
            write_started(&mut writer, &promise);
            let task = LiveTask::new(TaskParts {
                spec,
                prompt,
                constraint: Mutex::new(constraint),
                loaded,
                gate: pool.gate.clone(),
                account,
                session_rules: state.sessions.rules,
                correlation_id: CorrelationId::new(correlation_id.as_bytes()).unwrap_or_else(CorrelationId::fresh),
                stream,
                promise,
                tokens_reserved,
                budgets,
                accepted_us,
            });
            made = Some(task.clone());
            Entry { task, writer }
        });
        placed.map_err(|refusal| refused(state, deadline_ms, refusal))?;
        Ok(made.expect("the queue has made it"))
    }
}

/// The error for a task that the gate did not let in.
fn refused(state: &AppState, deadline_ms: u64, refusal: Refusal) -> OrchestratorError {
    let (full, retry_after_ms) = match refusal {
        Refusal::Hopeless { queue_position, finish_us, on_time_probability } => {
            let message = format!(
                "the deadline of {deadline_ms} ms would be met with probability {on_time_probability:.3}: \
                 {queue_position} tasks are ahead and the finish is predicted in {:.0} ms; allow more time, ask for \
                 fewer tokens, or try another replica",
                finish_us / 1000.0
            );
            return OrchestratorError::DeadlineUnmet { message };
        }
        Refusal::Full { full, retry_after_ms } => (full, Some(retry_after_ms)),
    };
    if state.config.queue_capacity == 0 {
        let message = "every slot is taken and this server queues nothing: retry when one is free".into();
        return OrchestratorError::ReplicaExhausted { message, retry_after_ms };
    }
    let waiting = full.waiting;
    match full.policy {
        AdmissionPolicy::Reject => OrchestratorError::AdmissionReject {
            message: format!(
                "the queue is full: {waiting} tasks wait; send the same task again when you are told to, a place will be kept"
            ),
            policy_label: "reject",
            retry_after_ms,
        },
        AdmissionPolicy::DropLru => OrchestratorError::QueueFullDropLru {
            message: format!("the queue is full of {waiting} tasks of higher priority: retry when a place is free"),
            retry_after_ms,
        },
    }
}

thread_local! {
    /// For the first events of all tasks that this thread accepts.
    static FRAMES: RefCell<FrameBuffers> = RefCell::default();
}

fn write_started(writer: &mut StreamWriter, promise: &Promise) {
    let started = Started {
        queue_position: promise.queue_position,
        predicted_start_ms: promise.predicted_start_ms,
        on_time_probability: thousandths(promise.outlook.on_time_probability),
    };
    FRAMES.with_borrow_mut(|frames| writer.append(frames.started(started))).expect("a new log has room");
}

fn budget_spent(session_id: SessionId, spent: BudgetSpent) -> OrchestratorError {
    let what = match spent.what {
        Spent::Tokens => "tokens",
        Spent::Time => "decode time",
        Spent::Cost => "cost",
    };
    let message = match spent.owner {
        Owner::Session => format!("session {session_id} has spent its budget of {what}: use another session"),
        Owner::Key => {
            format!("this API key has spent its budget of {what}: use another key, or ask the operator for more")
        }
    };
    OrchestratorError::AdmissionReject { message, policy_label: spent.label(), retry_after_ms: None }
}

/// GET /v1/tasks/:id/stream: the task's events from the beginning, or from `Last-Event-ID` on.
///
/// # Errors
///
/// `NotFound`, and the task's own error when it failed before anybody opened its stream.
pub fn stream_task(
    state: &Arc<AppState>,
    head: &RequestHead<'_>,
    id: &str,
    wake: &Wake,
) -> Result<Reply, OrchestratorError> {
    let task = find_task(state, id)?;
    let last_event_id = match head.header("last-event-id") {
        None => None,
        Some(text) => Some(parse_event_id(text)?),
    };
    open_stream(&task, last_event_id, wake)
}

fn parse_event_id(text: &[u8]) -> Result<u32, OrchestratorError> {
    std::str::from_utf8(text).ok().and_then(|t| t.trim().parse().ok()).ok_or_else(|| {
        OrchestratorError::InvalidParams(
            "header `Last-Event-ID`: is not the id of an event: send the last id seen".into(),
        )
    })
}

fn open_stream(task: &Arc<LiveTask>, last_event_id: Option<u32>, wake: &Wake) -> Result<Reply, OrchestratorError> {
    if !task.stream.was_opened()
        && let Some(Outcome::Failed(error)) = task.outcome()
    {
        return Err(error.clone());
    }
    let reader = task.stream.attach(wake.address(), last_event_id).map_err(|ReadersFull| {
        let most = crate::infra::stream::READERS_MAX;
        OrchestratorError::AdmissionReject {
            message: format!("{most} readers are on this task's stream already: close one"),
            policy_label: "stream-readers",
            retry_after_ms: Some(1000),
        }
    })?;
    let head = Response::new(200)
        .header("Content-Type", "text/event-stream")
        .header("Cache-Control", "no-cache")
        .header("X-Accel-Buffering", "no");
    Ok(Reply::Stream { head: with_budgets(head, &task.account.budgets()), reader })
}

fn with_budgets(response: Response, left: &Budgets) -> Response {
    let response =
        response.number("X-Budget-Tokens-Remaining", left.tokens).number("X-Budget-Time-Remaining-Ms", left.time_ms);
    let (name, cost) = ("X-Budget-Cost-Remaining", left.cost());
    // Where nothing is charged it stays what was configured, and that is mostly a whole number.
    if cost.fract() == 0.0 && cost < 1e15 { response.number(name, cost as u64) } else { response.header(name, cost) }
}

fn find_task(state: &AppState, id: &str) -> Result<Arc<LiveTask>, OrchestratorError> {
    Uuid::parse(id).and_then(|id| state.tasks.get(id)).ok_or_else(|| {
        OrchestratorError::NotFound(format!("there is no task {id:?}: it was never accepted, or was forgotten"))
    })
}

/// POST /v1/tasks/:id/cancel: 204, and no token event is written to any stream of the task after it.
///
/// A client may cancel a task that has ended: it has not heard yet.
///
/// # Errors
///
/// `NotFound` for a task that is not known.
pub async fn cancel_task(state: &Arc<AppState>, id: &str, wake: &Wake) -> Result<Response, OrchestratorError> {
    let task = find_task(state, id)?;
    let now_us = state.clock.now_us();
    if let Some(pool) = state.pools.by_engine(task.spec.engine) {
        task.end(Outcome::Canceled(CancelReason::Client), &pool.scribe, now_us);
        pool.doorbell.ring();
    }
    if matches!(task.outcome(), Some(Outcome::Canceled(_))) {
        quiesce(state, &task, wake).await;
    }
    Ok(Response::new(204))
}

/// Sends every reader what the transcript holds, then sees to it that no token follows. A peer that does not read loses
/// what it has not read, and its connection where that cannot be taken back.
async fn quiesce(state: &AppState, task: &LiveTask, wake: &Wake) {
    let patience = Duration::from_millis(state.config.cancel_quiesce_ms);
    task.stream.rouse_readers();
    let read_out = wake.wait_until(patience, || task.stream.is_read_out(wake.address())).await;
    task.stream.mute();
    let rest = if read_out { patience } else { Duration::ZERO };
    if wake.wait_until(rest, || task.stream.is_quiet(wake.address())).await {
        return;
    }
    task.stream.abort_readers();
    // The abort takes one turn of the other reactor; it is waited for, for the promise's sake.
    while !wake.wait_until(patience, || task.stream.is_quiet(wake.address())).await {}
}

/// GET /v1/sessions/:id.
///
/// # Errors
///
/// `NotFound` for a session that no task has named, or whose time is over.
pub async fn get_session(
    state: &Arc<AppState>,
    head: &RequestHead<'_>,
    id: &str,
    wake: &Wake,
) -> Result<Response, OrchestratorError> {
    let session = find_session(state, id)?;
    let client = require_api_key(head, &state.keys)?;
    // What a task of this session, sent with this key, could spend: the same as on its headers.
    let budgets = state.sessions.account(session.clone(), client).budgets();
    let kv = session_kv(state, &session, wake).await;
    let view = session.view(state.clock.now_ms(), &state.sessions.rules);
    let body = SessionBody {
        session_id: session.id.to_string(),
        ttl_ms_remaining: view.ttl_ms_remaining,
        turns: view.turns,
        kv_bytes: kv.bytes,
        kv_warmth: kv.warmth,
        tokens_budget_remaining: budgets.tokens,
        time_budget_remaining_ms: budgets.time_ms,
        cost_budget_remaining: budgets.cost(),
    };
    Ok(json(200, &body))
}

fn find_session(state: &AppState, id: &str) -> Result<Arc<Session>, OrchestratorError> {
    let found = Uuid::parse(id).and_then(|id| state.sessions.get(id));
    let found = found.filter(|s| s.view(state.clock.now_ms(), &state.sessions.rules).ttl_ms_remaining > 0);
    found.ok_or_else(|| {
        OrchestratorError::NotFound(format!("there is no session {id:?}: no task has named it, or it has expired"))
    })
}

/// Asks the engine thread; an engine that is not there holds nothing.
async fn session_kv(state: &Arc<AppState>, session: &Session, wake: &Wake) -> SessionKvView {
    let mut sum = SessionKvView::default();
    for pool in state.pools.iter().filter(|p| p.state() == PoolState::Ready) {
        let (sender, receiver) = oneshot(&state.hub, wake.address());
        let answer = Box::new(move |view| sender.send(view));
        if pool.send(Control::SessionKv { session: session.id.0, answer }) {
            let view: SessionKvView = receiver.recv(wake).await.unwrap_or_default();
            sum.bytes += view.bytes;
            sum.warmth = sum.warmth.max(view.warmth);
        }
    }
    sum
}

/// DELETE /v1/sessions/:id: 204; its KV is freed between this step and the next.
///
/// # Errors
///
/// `NotFound` for a session that is not known.
pub fn delete_session(state: &AppState, id: &str) -> Result<Response, OrchestratorError> {
    let session = find_session(state, id)?;
    state.sessions.delete(session.id);
    for pool in state.pools.iter() {
        pool.send(Control::DropSession { session: session.id.0 });
    }
    Ok(Response::new(204))
}
