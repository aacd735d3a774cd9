//! Shapes on the wire, and how they become checked values. serde lives here and in `tape`, and nowhere else in `api`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use simd_json::{Node, Tape};
use subtle::ConstantTimeEq;

use super::tape::Reader;
use crate::domain::error::OrchestratorError;
use crate::domain::ids::{CorrelationId, Uuid};
use crate::domain::limits;
use crate::domain::task::{
    Embedding, Message, Pooling, Priority, Prompt, PromptLogprobs, ResponseFormat, Sampling, TaskSpec, Workload,
};
use crate::infra::http::response::buffer;
use crate::infra::http::{RequestHead, Response};
use crate::services::response_format;
use crate::services::task::prompt_text;

const JSON: &str = "application/json";

/// SHA-256 of each configured key: what is compared has one length, and no key lies about in memory.
pub struct ApiKeys(Vec<[u8; 32]>);

impl ApiKeys {
    pub fn new(keys: &[String]) -> ApiKeys {
        ApiKeys(keys.iter().map(|k| Sha256::digest(k).into()).collect())
    }

    /// The number of a key, if it is one.
    fn number_of(&self, key: &[u8]) -> Option<u16> {
        let digest: [u8; 32] = Sha256::digest(key).into();
        // Every key is compared in full, whichever matches; 0 is none.
        let found = (1u16..)
            .zip(&self.0)
            .fold(0u16, |found, (number, known)| found | (u16::from(known.ct_eq(&digest).unwrap_u8()) * number));
        found.checked_sub(1)
    }
}

/// Refuses a request without a valid `X-API-Key`, and gives the key's number.
///
/// # Errors
///
/// `Unauthorized` without the header, `Forbidden` with a wrong one or more than one.
pub fn require_api_key(head: &RequestHead<'_>, keys: &ApiKeys) -> Result<u16, OrchestratorError> {
    // It is asked before the body is read, and once more by who wants the number.
    if let Some(number) = head.note() {
        return Ok(number);
    }
    let mut values = head.headers_named("x-api-key");
    let key = values.next().ok_or(OrchestratorError::Unauthorized)?;
    let number = keys.number_of(key).filter(|_| values.next().is_none());
    number.inspect(|number| head.take_note(*number)).ok_or(OrchestratorError::Forbidden)
}

/// Refuses a request without a valid key in `Authorization: Bearer` or `X-API-Key`, and gives the key's number. Where both are sent, both count:
/// some clients send a placeholder in one of them, but none sends two that are meant.
///
/// # Errors
///
/// `Unauthorized` without either, `Forbidden` when neither is one of ours.
pub fn require_key(head: &RequestHead<'_>, keys: &ApiKeys) -> Result<u16, OrchestratorError> {
    let bearer = |value: &'_ [u8]| {
        let (scheme, token) = value.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii().to_vec())
    };
    let sent: Vec<Vec<u8>> = head
        .headers_named("authorization")
        .filter_map(bearer)
        .chain(head.headers_named("x-api-key").map(<[u8]>::to_vec))
        .collect();
    if sent.is_empty() {
        return Err(OrchestratorError::Unauthorized);
    }
    sent.iter().find_map(|key| keys.number_of(key)).ok_or(OrchestratorError::Forbidden)
}

/// The request's correlation id where it is fit to be echoed, else a fresh one.
pub fn correlation_id_from(head: Option<&RequestHead<'_>>) -> CorrelationId {
    let sent = head.and_then(|h| h.header("x-correlation-id"));
    sent.and_then(CorrelationId::new).unwrap_or_else(CorrelationId::fresh)
}

/// Reads a JSON body in place; `body` is scrambled by it.
///
/// # Errors
///
/// `InvalidParams` naming the field, for what is not UTF-8, not JSON, nested too deeply or of another shape.
pub fn from_json<'a, T: Deserialize<'a>>(body: &'a mut [u8]) -> Result<T, OrchestratorError> {
    let invalid = |text: String| OrchestratorError::InvalidParams(text);
    if body.is_empty() {
        return Err(invalid("the body is empty: send a JSON object".into()));
    }
    let malformed = |e: simd_json::Error| invalid(format!("the body is not JSON in UTF-8: {}", first_line(&e)));
    let mut tape = SPARE_TAPE.replace(Tape(Vec::new())).reset();
    BUFFERS.with_borrow_mut(|buffers| simd_json::fill_tape(body, buffers, &mut tape)).map_err(malformed)?;
    check_depth(&tape.0)?;
    let read = T::deserialize(&mut Reader::new(&tape.0)).map_err(|error| {
        // To who sends it, a text is a string, wherever it lies here.
        let what = error.to_string().replace("a borrowed string", "a string");
        match Where::<T>::deserialize(&mut Reader::new(&tape.0)).map(|Where(path, _)| path).as_deref() {
            Ok("." | "?") | Err(_) => invalid(what),
            Ok(field) => invalid(format!("field `{field}`: {what}")),
        }
    });
    if tape.0.capacity() <= SPARE_NODES_MAX {
        SPARE_TAPE.set(tape.reset());
    }
    read
}

/// Nodes for which a thread keeps memory: a task has a few dozen.
const SPARE_NODES_MAX: usize = 4096;

thread_local! {
    /// What the parser needs beside the body, as large as the largest body on this thread.
    static BUFFERS: RefCell<simd_json::Buffers> = RefCell::default();

    /// Memory for what it finds.
    static SPARE_TAPE: RefCell<Tape<'static>> = const { RefCell::new(Tape(Vec::new())) };
}

/// Where a `T` does not fit what was sent. Found in a second reading: to follow the path costs an allocation for each
/// name on it, and all but a few bodies fit.
struct Where<T>(String, PhantomData<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Where<T> {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Where<T>, D::Error> {
        let path = serde_path_to_error::deserialize::<D, T>(reader).err().map(|e| e.path().to_string());
        Ok(Where(path.unwrap_or_default(), PhantomData))
    }
}

/// The library's message on one line.
fn first_line(error: &simd_json::Error) -> String {
    format!("{:?} at byte {}", error.error(), error.index())
}

/// Refuses what is nested more deeply than `JSON_DEPTH_MAX` before anything recursive sees it.
fn check_depth(nodes: &[Node<'_>]) -> Result<(), OrchestratorError> {
    // Where each of the arrays and objects ends that the node at hand lies in.
    let mut ends = [0usize; limits::JSON_DEPTH_MAX];
    let mut depth = 0;
    for (index, node) in nodes.iter().enumerate() {
        while depth > 0 && ends[depth - 1] <= index {
            depth -= 1;
        }
        if let Node::Object { count, .. } | Node::Array { count, .. } = node {
            let most = limits::JSON_DEPTH_MAX;
            if depth == most {
                let what = format!("the body is nested more than {most} levels deep");
                return Err(OrchestratorError::InvalidParams(what));
            }
            ends[depth] = index + 1 + count;
            depth += 1;
        }
    }
    Ok(())
}

/// A JSON answer.
pub fn json<T: Serialize>(status: u16, body: &T) -> Response {
    let mut text = buffer();
    serde_json::to_writer(&mut text, body).expect("our own shapes are JSON");
    Response::new(status).header("Content-Type", JSON).body(text)
}

/// Which pool and engine an error speaks of.
#[derive(Clone, Copy, Debug)]
pub struct ErrorContext<'a> {
    pub engine: &'a str,
    pub pool_id: &'a str,
    pub overload_status: u16,
}

/// The error envelope.
#[derive(Serialize)]
pub struct Envelope<'a> {
    pub code: &'static str,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool_id: Option<&'a str>,
    pub retriable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_label: Option<&'static str>,
}

impl<'a> Envelope<'a> {
    pub fn new(error: &OrchestratorError, context: ErrorContext<'a>) -> Envelope<'a> {
        let named = error.concerns_engine();
        Envelope {
            code: error.code(),
            message: error.to_string(),
            engine: named.then_some(context.engine),
            pool_id: named.then_some(context.pool_id),
            retriable: error.retriable(),
            retry_after_ms: error.retry_after_ms().map(|ms| ms.max(1)),
            policy_label: error.policy_label(),
        }
    }
}

/// The answer for an error, with `Retry-After` (seconds, rounded up) and `X-Backoff-Ms` where it has a time.
pub fn error_response(error: &OrchestratorError, context: ErrorContext<'_>) -> Response {
    let envelope = Envelope::new(error, context);
    let mut response = json(error.status(context.overload_status), &envelope);
    if let Some(ms) = envelope.retry_after_ms {
        response = response.header("Retry-After", ms.div_ceil(1000).max(1));
        response = response.header("X-Backoff-Ms", ms);
    }
    if let OrchestratorError::MethodNotAllowed { allow } = error {
        response = response.header("Allow", *allow);
    }
    response
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum WorkloadWire {
    Completion,
    Embedding,
    Rerank,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum PriorityWire {
    Interactive,
    Batch,
}

#[derive(Deserialize, Default, PartialEq)]
#[serde(rename_all = "snake_case")]
enum DeterminismWire {
    #[default]
    Strict,
    BestEffort,
}

#[derive(Deserialize, Default, PartialEq)]
#[serde(rename_all = "snake_case")]
enum KvHintWire {
    #[default]
    Reuse,
    Cold,
}

#[derive(Deserialize, Default, PartialEq)]
#[serde(rename_all = "snake_case")]
enum OnDisconnectWire {
    #[default]
    Continue,
    Cancel,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MessageWire {
    role: String,
    content: String,
}

/// POST /v1/tasks. See `../../tests/openapi/data.yaml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskRequest<'a> {
    task_id: &'a str,
    session_id: &'a str,
    workload: WorkloadWire,
    model_ref: &'a str,
    engine: &'a str,
    ctx: u32,
    priority: PriorityWire,
    max_tokens: u32,
    deadline_ms: i64,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    determinism: DeterminismWire,
    sampler_profile_version: Option<&'a str>,
    prompt: Option<&'a str>,
    messages: Option<Vec<MessageWire>>,
    inputs: Option<Value>,
    expected_tokens: Option<u32>,
    #[serde(default)]
    kv_hint: KvHintWire,
    #[serde(default)]
    temperature: f32,
    #[serde(default)]
    top_k: u32,
    top_p: Option<f32>,
    #[serde(default)]
    min_p: f32,
    repetition_penalty: Option<f32>,
    #[serde(default)]
    presence_penalty: f32,
    #[serde(default)]
    frequency_penalty: f32,
    #[serde(default)]
    stop: Vec<String>,
    #[serde(default)]
    logprobs: bool,
    #[serde(default)]
    top_logprobs: u32,
    #[serde(default)]
    logit_bias: BTreeMap<String, f32>,
    #[serde(default)]
    min_tokens: u32,
    response_format: Option<Value>,
    #[serde(default)]
    on_disconnect: OnDisconnectWire,
    #[serde(default)]
    ignore_end: bool,
}

impl TaskRequest<'_> {
    /// Checks every field on its own; what depends on the model is checked where the model is known.
    ///
    /// # Errors
    ///
    /// `InvalidParams` naming the field and what is legal; `DeadlineUnmet` for a deadline that has passed.
    pub fn check(self) -> Result<TaskSpec, OrchestratorError> {
        let task_id = uuid_field("task_id", self.task_id)?;
        let session_id = uuid_field("session_id", self.session_id)?;
        name_field("model_ref", self.model_ref)?;
        let engine = ["cpu", "cuda"].into_iter().find(|name| *name == self.engine);
        let engine = engine.ok_or_else(|| invalid("engine", "must be \"cpu\" or \"cuda\""))?;
        require(self.ctx >= 1, "ctx", "must be at least 1")?;
        require(self.max_tokens >= 1, "max_tokens", "must be at least 1")?;
        require(self.expected_tokens != Some(0), "expected_tokens", "must be at least 1")?;
        if self.sampler_profile_version.is_some_and(|v| v != "v1") {
            return Err(invalid("sampler_profile_version", "must be \"v1\""));
        }
        let response_format = self.response_format.as_ref().map_or(Ok(ResponseFormat::Text), response_format::parse);
        let response_format = response_format.map_err(|why| invalid("response_format", &why))?;
        if response_format != ResponseFormat::Text && self.ignore_end {
            return Err(invalid("ignore_end", "cannot stand beside response_format, which says where the answer ends"));
        }
        let sampling = self.sampling()?;
        check_stop(&self.stop)?;
        check_top_logprobs(self.logprobs, self.top_logprobs)?;
        require(self.min_tokens <= self.max_tokens, "min_tokens", "must be at most max_tokens")?;
        let workload = match self.workload {
            WorkloadWire::Completion => Workload::Completion,
            WorkloadWire::Embedding => Workload::Embedding,
            WorkloadWire::Rerank => Workload::Rerank,
        };
        if workload == Workload::Completion && self.inputs.is_some() {
            return Err(invalid("inputs", "belongs to workloads embedding and rerank: send prompt or messages"));
        }
        if workload == Workload::Embedding && response_format != ResponseFormat::Text {
            return Err(invalid("response_format", "belongs to workload completion: an embedding has no text"));
        }
        let (inputs, embedding) = match self.inputs {
            Some(inputs) if workload == Workload::Embedding => {
                let (prompt, embedding) = check_inputs(inputs)?;
                (Some(prompt), embedding)
            }
            _ => (None, Embedding::default()),
        };
        let prompt = match (self.prompt, self.messages, inputs) {
            (Some(text), None, None) => Prompt::Text(prompt_text(text)),
            (None, Some(messages), None) => Prompt::Chat(check_messages(messages)?.into()),
            (None, None, Some(prompt)) => prompt,
            (None, None, None) if workload == Workload::Rerank => Prompt::Text(String::new()),
            (None, None, None) => {
                return Err(invalid("prompt", "is missing: send prompt (text) or messages (chat turns)"));
            }
            (Some(_), Some(_), _) => return Err(invalid("messages", "cannot stand beside prompt: send one of them")),
            _ => return Err(invalid("inputs", "cannot stand beside prompt or messages: send one of them")),
        };
        if self.deadline_ms <= 0 {
            let message = "field `deadline_ms`: must be over 0: it is the time from now to the last token".into();
            return Err(OrchestratorError::DeadlineUnmet { message });
        }
        Ok(TaskSpec {
            task_id,
            session_id,
            workload,
            embedding,
            model_ref: shared_name(self.model_ref),
            engine,
            ctx: self.ctx,
            priority: match self.priority {
                PriorityWire::Interactive => Priority::Interactive,
                PriorityWire::Batch => Priority::Batch,
            },
            // A vector is the work of one token, whatever was reserved for an answer.
            max_tokens: if workload == Workload::Embedding { 1 } else { self.max_tokens },
            deadline_ms: self.deadline_ms as u64,
            prompt,
            sampling,
            stop: self.stop,
            logprobs: self.logprobs,
            top_logprobs: self.top_logprobs,
            prompt_logprobs: PromptLogprobs::None,
            reuse_kv: self.kv_hint == KvHintWire::Reuse,
            expected_tokens: self.expected_tokens,
            cancel_on_disconnect: self.on_disconnect == OnDisconnectWire::Cancel,
            response_format,
            ignore_end: self.ignore_end,
            has_instructions: false,
            deterministic: self.determinism == DeterminismWire::Strict,
            note: None,
            shown: Arc::default(),
        })
    }

    fn sampling(&self) -> Result<Sampling, OrchestratorError> {
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed: self.seed,
            logit_bias: logit_bias(&self.logit_bias)?,
            min_tokens: self.min_tokens,
        };
        check_sampling(&sampling)?;
        Ok(sampling)
    }
}

/// Bounds of the parameters that do not depend on a model.
///
/// # Errors
///
/// `InvalidParams` naming the field.
pub fn check_sampling(s: &Sampling) -> Result<(), OrchestratorError> {
    // Written so that NaN fails too.
    require((0.0..=100.0).contains(&s.temperature), "temperature", "must be from 0 to 100")?;
    require(s.top_p > 0.0 && s.top_p <= 1.0, "top_p", "must be over 0 and at most 1")?;
    require((0.0..=1.0).contains(&s.min_p), "min_p", "must be from 0 to 1")?;
    let legal = s.repetition_penalty > 0.0 && s.repetition_penalty <= 10.0;
    require(legal, "repetition_penalty", "must be over 0 and at most 10")?;
    require((-2.0..=2.0).contains(&s.presence_penalty), "presence_penalty", "must be from -2 to 2")?;
    require((-2.0..=2.0).contains(&s.frequency_penalty), "frequency_penalty", "must be from -2 to 2")?;
    let exact = s.seed <= limits::JSON_INTEGER_MAX;
    require(exact, "seed", "must be at most 9007199254740991, the largest number that JSON keeps exactly")
}

/// Token numbers as JSON has them, as the keys of an object, with what is added to each one's logit.
///
/// # Errors
///
/// `InvalidParams` for what is no number, out of bounds, or too many.
pub fn logit_bias(wire: &BTreeMap<String, f32>) -> Result<Arc<[(u32, f32)]>, OrchestratorError> {
    let (count, most) = (limits::LOGIT_BIAS_COUNT_MAX, limits::LOGIT_BIAS_MAX);
    require(wire.len() <= count, "logit_bias", format_args!("takes at most {count} tokens"))?;
    let one = |(token, bias): (&String, &f32)| {
        let token =
            token.parse().map_err(|_| invalid("logit_bias", format_args!("{token:?} is not a token's number")))?;
        require((-most..=most).contains(bias), "logit_bias", format_args!("must be from -{most} to {most}"))?;
        Ok((token, *bias))
    };
    // An empty one is shared, one that is collected is not.
    if wire.is_empty() { Ok(Arc::default()) } else { wire.iter().map(one).collect() }
}

/// # Errors
///
/// `InvalidParams` for too many, or for any without `logprobs`.
pub fn check_top_logprobs(logprobs: bool, top: u32) -> Result<(), OrchestratorError> {
    let most = limits::TOP_LOGPROBS_MAX;
    require(top <= most, "top_logprobs", format_args!("must be at most {most}"))?;
    require(logprobs || top == 0, "top_logprobs", "needs logprobs: send \"logprobs\": true with it")
}

thread_local! {
    /// The name that the last task gave: nearly always the next one's, too.
    static LAST_NAME: RefCell<Arc<str>> = RefCell::default();
}

/// The name, and no memory of its own where the task before had the same.
fn shared_name(name: &str) -> Arc<str> {
    LAST_NAME.with_borrow_mut(|last| {
        if **last != *name {
            *last = name.into();
        }
        last.clone()
    })
}

pub fn invalid(field: &str, what: impl Display) -> OrchestratorError {
    OrchestratorError::InvalidParams(format!("field `{field}`: {what}"))
}

/// The text is only made when it is needed: pass `format_args!`.
pub fn require(holds: bool, field: &str, what: impl Display) -> Result<(), OrchestratorError> {
    if holds { Ok(()) } else { Err(invalid(field, what)) }
}

fn uuid_field(field: &str, text: &str) -> Result<Uuid, OrchestratorError> {
    Uuid::parse(text)
        .ok_or_else(|| invalid(field, "is not a UUID such as 0190163d-8694-739b-aea5-966c26f8ad91: make one per task"))
}

fn name_field(field: &str, text: &str) -> Result<(), OrchestratorError> {
    let legal = (1..=limits::NAME_LEN_MAX).contains(&text.len());
    require(legal, field, format_args!("must have 1 to {} bytes", limits::NAME_LEN_MAX))
}

pub fn check_stop(stop: &[String]) -> Result<(), OrchestratorError> {
    let count_max = limits::STOP_COUNT_MAX;
    require(stop.len() <= count_max, "stop", format_args!("takes at most {count_max} strings"))?;
    let legal = |s: &String| (1..=limits::STOP_LEN_MAX).contains(&s.len());
    require(stop.iter().all(legal), "stop", format_args!("strings must have 1 to {} bytes", limits::STOP_LEN_MAX))
}

/// What is to become a vector, and how: `{"text": …}` or `{"tokens": […]}`, with `pooling` and `dimensions` where the model's
/// own are not wanted.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InputsWire {
    text: Option<String>,
    tokens: Option<Vec<u32>>,
    pooling: Option<PoolingWire>,
    dimensions: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum PoolingWire {
    Last,
    Mean,
}

fn check_inputs(inputs: Value) -> Result<(Prompt, Embedding), OrchestratorError> {
    let wire: InputsWire = serde_json::from_value(inputs).map_err(|e| invalid("inputs", e.to_string()))?;
    require(wire.dimensions != Some(0), "inputs.dimensions", "must be at least 1")?;
    let prompt = match (wire.text, wire.tokens) {
        (Some(text), None) => Prompt::Text(text),
        (None, Some(tokens)) => Prompt::Tokens(tokens.into()),
        _ => return Err(invalid("inputs", "must have either text or tokens")),
    };
    let pooling = wire.pooling.map(|pooling| match pooling {
        PoolingWire::Last => Pooling::Last,
        PoolingWire::Mean => Pooling::Mean,
    });
    Ok((prompt, Embedding { pooling, dimensions: wire.dimensions }))
}

fn check_messages(messages: Vec<MessageWire>) -> Result<Vec<Message>, OrchestratorError> {
    let legal = (1..=limits::MESSAGE_COUNT_MAX).contains(&messages.len());
    require(legal, "messages", format_args!("must have 1 to {} turns", limits::MESSAGE_COUNT_MAX))?;
    let role_legal = |m: &MessageWire| ["system", "user", "assistant", "tool"].contains(&m.role.as_str());
    require(messages.iter().all(role_legal), "messages", "roles are system, user, assistant and tool")?;
    Ok(messages.into_iter().map(|m| Message::new(m.role, m.content)).collect())
}

/// 202 of POST /v1/tasks.
#[derive(Clone, Debug, Serialize)]
pub struct Accepted {
    pub task_id: Uuid,
    pub queue_position: u32,
    pub predicted_start_ms: u64,
    pub backoff_ms: u64,
    /// Chance that the last token is there before the deadline.
    pub on_time_probability: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    pub deadline_ms: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReloadRequest {
    pub new_model_ref: String,
}

#[derive(Serialize)]
pub struct SessionBody {
    pub session_id: String,
    pub ttl_ms_remaining: u64,
    pub turns: u64,
    pub kv_bytes: u64,
    pub kv_warmth: f64,
    pub tokens_budget_remaining: u64,
    pub time_budget_remaining_ms: u64,
    pub cost_budget_remaining: f64,
}

#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ArtifactKind {
    Plan,
    Summary,
    Diff,
    Trace,
    Other,
}

/// POST /v1/artifacts. What is not there is not part of the document, hence not of its id.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ArtifactRequest {
    pub kind: ArtifactKind,
    pub content: serde_json::Map<String, Value>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub tags: Option<Vec<String>>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub metadata: Option<serde_json::Map<String, Value>>,
    /// What the client believes the id to be; checked, not stored.
    #[serde(default, skip_serializing)]
    pub digest: Option<String>,
}

/// A field that may be missing but not null: null would be lost from the document that is hashed.
fn present<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(reader: D) -> Result<Option<T>, D::Error> {
    T::deserialize(reader).map(Some)
}

impl ArtifactRequest {
    /// # Errors
    ///
    /// `InvalidParams` naming the field.
    pub fn check(&self) -> Result<(), OrchestratorError> {
        let tags = self.tags.as_deref().unwrap_or_default();
        let legal = tags.len() <= limits::TAG_COUNT_MAX && tags.iter().all(|t| t.len() <= limits::NAME_LEN_MAX);
        let (count, len) = (limits::TAG_COUNT_MAX, limits::NAME_LEN_MAX);
        require(legal, "tags", format_args!("takes at most {count} tags of at most {len} bytes"))?;
        let exact = self.content.values().chain(self.metadata.iter().flat_map(|m| m.values())).all(is_exact);
        require(
            exact,
            "content",
            "has a whole number beyond 9007199254740991, which JSON does not keep: send a string",
        )?;
        let parent_legal = self.parent.as_deref().is_none_or(crate::infra::storage::is_id);
        require(parent_legal, "parent", "must be an artifact's id: sha256: and 64 hexadecimal digits")
    }
}

/// True when every number in it survives canonical JSON, whose numbers are IEEE doubles.
fn is_exact(value: &Value) -> bool {
    match value {
        Value::Number(n) if n.is_f64() => true,
        Value::Number(n) => n.as_i64().map_or(n.as_u64(), |i| Some(i.unsigned_abs())) <= Some(limits::JSON_INTEGER_MAX),
        Value::Array(items) => items.iter().all(is_exact),
        Value::Object(fields) => fields.values().all(is_exact),
        _ => true,
    }
}

/// 201 of POST /v1/artifacts.
#[derive(Serialize)]
pub struct ArtifactCreated<'a> {
    pub id: &'a str,
    pub kind: ArtifactKind,
    pub digest: &'a str,
    pub created_ms: u64,
    pub tags: &'a [String],
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infra::http::head_for_tests;

    const TASK: &str = r#"{"task_id":"0190163d-8694-739b-aea5-966c26f8ad91","session_id":"0190163d-8694-739b-aea5-966c26f8ad92",
        "workload":"completion","model_ref":"wren","engine":"cpu","ctx":128,"priority":"interactive","max_tokens":8,
        "deadline_ms":1000,"prompt":"hi"}"#;

    fn check(text: &str) -> Result<TaskSpec, OrchestratorError> {
        from_json::<TaskRequest>(&mut text.as_bytes().to_vec())?.check()
    }

    /// The task with one field set to `value`, or without it.
    fn with(field: &str, value: Option<&str>) -> String {
        let mut task: Value = serde_json::from_str(TASK).unwrap();
        let object = task.as_object_mut().unwrap();
        match value {
            Some(text) => object.insert(field.to_owned(), serde_json::from_str(text).unwrap()),
            None => object.remove(field),
        };
        task.to_string()
    }

    #[test]
    fn the_defaults_are_greedy_strict_and_reusing() {
        let spec = check(TASK).unwrap();
        assert_eq!(
            (spec.sampling.temperature, spec.sampling.seed, spec.reuse_kv, spec.deterministic),
            (0.0, 0, true, true)
        );
        assert_eq!(spec.prompt, Prompt::Text("hi".into()));
    }

    #[test]
    fn a_wrong_field_is_named() {
        for field in
            ["task_id", "session_id", "workload", "model_ref", "engine", "ctx", "priority", "max_tokens", "deadline_ms"]
        {
            let missing = check(&with(field, None)).unwrap_err();
            assert!(missing.to_string().contains(field), "{missing}");
            let wrong = check(&with(field, Some("[]"))).unwrap_err();
            assert!(wrong.to_string().contains(field) && wrong.code() == "INVALID_PARAMS", "{wrong}");
            assert!(!wrong.to_string().contains("borrowed"), "in the words of who sends it: {wrong}");
        }
        for (field, value) in [
            ("ctx", "0"),
            ("max_tokens", "0"),
            ("max_tokens", "-1"),
            ("max_tokens", "1.5"),
            ("max_tokens", "99999999999"),
            ("engine", "\"tpu\""),
            ("workload", "\"chat\""),
            ("priority", "\"urgent\""),
            ("temperature", "-1"),
            ("top_p", "0"),
            ("min_p", "1.1"),
            ("repetition_penalty", "0"),
            ("presence_penalty", "3"),
            ("stop", "[\"\"]"),
            ("messages", "[{\"role\":\"user\",\"content\":\"x\"}]"),
            ("sampler_profile_version", "\"v2\""),
            ("response_format", "{\"type\":\"yaml\"}"),
            ("kv_hint", "\"hot\""),
            ("colour", "1"),
            ("seed", "9007199254740992"),
        ] {
            let error = check(&with(field, Some(value))).unwrap_err();
            assert!(error.to_string().contains(field), "{field}: {error}");
            assert_eq!(error.code(), "INVALID_PARAMS", "{field}");
        }
    }

    #[test]
    fn a_deadline_that_has_passed_is_its_own_error() {
        for value in ["0", "-5"] {
            assert_eq!(check(&with("deadline_ms", Some(value))).unwrap_err().code(), "DEADLINE_UNMET");
        }
    }

    #[test]
    fn what_is_not_json_is_said_to_be_so() {
        for text in ["", "{", "nonsense", "[1]", "{\"a\":}", "\u{0}", "{} {}", &"[".repeat(100_000)] {
            let error = check(text).unwrap_err();
            assert_eq!(error.code(), "INVALID_PARAMS", "{text:.20}");
        }
        let mut bytes = TASK.replace("hi", "h#").into_bytes();
        let at = bytes.iter().position(|&b| b == b'#').unwrap();
        bytes[at] = 0xff;
        assert!(from_json::<TaskRequest>(&mut bytes).is_err());
    }

    #[test]
    fn a_number_that_json_would_not_keep_is_refused() {
        for (value, legal) in [
            ("9007199254740991", true),
            ("9007199254740992", false),
            ("-9007199254740992", false),
            ("18446744073709551615", false),
            ("1e300", true),
            ("[[{\"a\":9007199254740993}]]", false),
        ] {
            let mut body = format!(r#"{{"kind":"plan","content":{{"n":{value}}}}}"#).into_bytes();
            let request: ArtifactRequest = from_json(&mut body).unwrap();
            assert_eq!(request.check().is_ok(), legal, "{value}");
        }
    }

    #[test]
    fn a_key_is_required_and_must_be_ours() {
        let keys = ApiKeys::new(&["first-key".into(), "second-key".into()]);
        let check = |lines: &str| {
            head_for_tests(&format!("GET / HTTP/1.1\r\nHost: x\r\n{lines}\r\n"), |head| require_api_key(head, &keys))
        };
        assert_eq!(check(""), Err(OrchestratorError::Unauthorized));
        assert_eq!(check("X-API-Key: wrong\r\n"), Err(OrchestratorError::Forbidden));
        assert_eq!(check("X-API-Key: \r\n"), Err(OrchestratorError::Forbidden));
        assert_eq!(check("X-API-Key: first-key\r\nX-API-Key: first-key\r\n"), Err(OrchestratorError::Forbidden));
        assert_eq!(check("X-API-Key: first-key\r\n"), Ok(0));
        assert_eq!(check("x-api-key: second-key\r\n"), Ok(1));
    }

    #[test]
    fn nesting_is_bounded_and_neighbours_do_not_add_up() {
        let most = limits::JSON_DEPTH_MAX;
        let nested = |open: &str, close: &str, depth: usize| open.repeat(depth) + "1" + &close.repeat(depth);
        for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("[2,", "]"), ("{\"b\":4,\"a\":", ",\"c\":5}")] {
            let fits = nested(open, close, most);
            assert!(from_json::<Value>(&mut fits.clone().into_bytes()).is_ok(), "{open}");
            let beside = format!("[{}, {}]", nested(open, close, most - 1), nested(open, close, most - 1));
            assert!(from_json::<Value>(&mut beside.into_bytes()).is_ok(), "{open}");
            let too_deep = from_json::<Value>(&mut nested(open, close, most + 1).into_bytes());
            assert!(too_deep.unwrap_err().to_string().contains("nested more than 64 levels"), "{open}");
        }
    }

    #[test]
    fn a_correlation_id_is_echoed_when_it_is_fit_and_made_when_it_is_not() {
        let id = |value: &str| {
            let text = format!("GET / HTTP/1.1\r\nHost: x\r\nX-Correlation-Id: {value}\r\n\r\n");
            head_for_tests(&text, |head| correlation_id_from(Some(head)))
        };
        assert_eq!(&*id("abc-123"), "abc-123");
        assert_eq!(*id(&"x".repeat(128)), *"x".repeat(128));
        for unfit in ["", &"x".repeat(129), "two words"] {
            assert!(Uuid::parse(&id(unfit)).is_some(), "{unfit:?}");
        }
        assert!(Uuid::parse(&correlation_id_from(None)).is_some());
    }

    #[test]
    fn an_envelope_has_every_field_that_applies_and_headers_that_agree() {
        let context = ErrorContext { engine: "cpu", pool_id: "default", overload_status: 429 };
        let error = OrchestratorError::AdmissionReject {
            message: "full".into(),
            policy_label: "reject",
            retry_after_ms: Some(1001),
        };
        let response = error_response(&error, context);
        assert_eq!(response.status, 429);
        assert_eq!(response.header_value("Retry-After"), Some("2"));
        assert_eq!(response.header_value("X-Backoff-Ms"), Some("1001"));
        let body: Value = serde_json::from_slice(&response.body).unwrap();
        let expected = serde_json::json!({"code": "ADMISSION_REJECT", "message": "full", "engine": "cpu",
            "pool_id": "default", "retriable": true, "retry_after_ms": 1001, "policy_label": "reject"});
        assert_eq!(body, expected);
        let plain = error_response(&OrchestratorError::NotFound("no".into()), context);
        let body: Value = serde_json::from_slice(&plain.body).unwrap();
        assert_eq!(body, serde_json::json!({"code": "NOT_FOUND", "message": "no", "retriable": false}));
    }
}
