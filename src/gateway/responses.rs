//! POST /v1/responses, and the responses that it has made: a response is a task, one in the background is a task that
//! nobody need read, and the next turn of a conversation finds the one before in the task's own log.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::Call;
use super::admit::{Ask, admit};
use super::chat::{Content, refuse_tools};
use super::fields::Fields;
use super::openai::fresh_seed;
use super::refusal::{Refusal, Shape};
use super::response::{Echoed, message_item, object, said, task_of, text_part};
use super::view::{Dialect, End, Token, reply};
use crate::api::data;
use crate::api::types::{self, check_sampling};
use crate::domain::error::OrchestratorError;
use crate::domain::limits;
use crate::domain::task::{Message, Priority, Prompt, Sampling};
use crate::infra::http::Response;
use crate::infra::reactor::Reply;
use crate::services::task::{LiveTask, Outcome};
use crate::state::AppState;

#[derive(Deserialize)]
#[serde(untagged)]
enum Input {
    Text(String),
    Items(Vec<Item>),
}

#[derive(Deserialize)]
struct Item {
    #[serde(rename = "type")]
    kind: Option<String>,
    role: Option<String>,
    content: Option<Content>,
}

fn turns_of(input: Input) -> Result<Vec<Message>, Refusal> {
    let items = match input {
        Input::Text(text) => return Ok(vec![Message { role: "user".into(), content: text }]),
        Input::Items(items) => items,
    };
    let turn = |item: Item| match (item.kind.as_deref(), item.role.as_deref(), item.content) {
        (None | Some("message"), Some(role @ ("user" | "assistant" | "system" | "developer")), Some(content)) => {
            let role = if role == "developer" { "system" } else { role };
            Ok(Message { role: role.to_owned(), content: content.into_text("input")? })
        }
        (kind, role, _) => {
            let what =
                format!("an item of type {kind:?} and role {role:?}: messages with a role and text are read here");
            Err(Refusal::field("input", what))
        }
    };
    items.into_iter().map(turn).collect()
}

/// The turns that a response ended with: its own input, and its answer.
fn turns_before(state: &AppState, id: &str) -> Result<Vec<Message>, Refusal> {
    let task =
        find(state, id).map_err(|refusal| refusal.about("previous_response_id", "previous_response_not_found"))?;
    let mut turns = match &task.spec.prompt {
        Prompt::Messages(turns) => turns[usize::from(task.spec.has_instructions)..].to_vec(),
        _ => return Err(Refusal::field("previous_response_id", "is not the id of a conversation")),
    };
    if !matches!(task.outcome(), Some(Outcome::Finished(_))) {
        return Err(Refusal::field(
            "previous_response_id",
            "has not ended well: a conversation goes on from an answer",
        ));
    }
    turns.push(Message { role: "assistant".into(), content: said(&task).0 });
    Ok(turns)
}

fn find(state: &AppState, id: &str) -> Result<Arc<LiveTask>, Refusal> {
    let found = task_of(id).and_then(|task| state.tasks.get(task));
    found.ok_or_else(|| {
        let kept_s = state.config.task_retention_ms / 1000;
        let message = format!("there is no response {id:?}: they are kept for {kept_s} s after their end");
        OrchestratorError::NotFound(message).into()
    })
}

/// Makes a response.
///
/// # Errors
///
/// Naming the field, and as admission refuses.
pub(super) async fn create(call: &Call<'_>, body: &mut [u8]) -> Result<Reply, Refusal> {
    let mut f = Fields::read(body)?;
    let previous: Option<String> = f.take("previous_response_id")?;
    let instructions: Option<String> = f.take("instructions")?;
    let mut messages = Vec::new();
    if let Some(text) = &instructions {
        messages.push(Message { role: "system".into(), content: text.clone() });
    }
    if let Some(id) = &previous {
        messages.extend(turns_before(call.state, id)?);
    }
    messages.extend(turns_of(f.need("input")?)?);
    if messages.len() > limits::MESSAGE_COUNT_MAX || messages.len() == usize::from(instructions.is_some()) {
        return Err(Refusal::field("input", format!("must make 1 to {} turns", limits::MESSAGE_COUNT_MAX)));
    }
    let sampling = Sampling {
        temperature: f.take("temperature")?.unwrap_or(1.0),
        top_k: 0,
        top_p: f.take("top_p")?.unwrap_or(1.0),
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: f.take("presence_penalty")?.unwrap_or(0.0),
        frequency_penalty: f.take("frequency_penalty")?.unwrap_or(0.0),
        seed: f.take("seed")?.unwrap_or_else(fresh_seed),
        logit_bias: Arc::default(),
        min_tokens: 0,
    };
    check_sampling(&sampling)?;
    let max_tokens: Option<u32> = f.take("max_output_tokens")?;
    if max_tokens == Some(0) {
        return Err(Refusal::field("max_output_tokens", "must be at least 1"));
    }
    let stream = f.take("stream")?.unwrap_or(false);
    let background = f.take("background")?.unwrap_or(false);
    let priority = match f.take::<String>("service_tier")?.as_deref() {
        None | Some("auto" | "default" | "priority") => Priority::Interactive,
        Some("flex") => Priority::Batch,
        Some(_) => return Err(Refusal::field("service_tier", "must be auto, default, priority or flex")),
    };
    let model: String = f.need("model")?;
    let echoed = Echoed { previous, metadata: f.take("metadata")?.unwrap_or(Value::Null) };
    let session_key = f.take("prompt_cache_key")?;
    refuse_what_is_not_done(&mut f)?;
    f.finish()?;
    let ask = Ask {
        model,
        prompt_param: "input",
        prompts: vec![Prompt::Messages(messages)],
        copies: 1,
        max_tokens,
        sampling,
        stop: Vec::new(),
        logprobs: false,
        top_logprobs: 0,
        ignore_end: false,
        has_instructions: instructions.is_some(),
        background,
        priority,
        session_key,
    };
    let admitted = admit(call, ask).await?;
    let task = admitted.tasks[0].clone();
    if background && !stream {
        return Ok(Reply::Full(types::json(200, &object(call.state, &task, &echoed))));
    }
    let dialect = Responses { state: call.state.clone(), task, echoed, stream, sequence: 0, begun: false };
    reply(call, admitted, stream, dialect)
}

fn refuse_what_is_not_done(f: &mut Fields) -> Result<(), Refusal> {
    refuse_tools(f, &[json!("none"), json!("auto")])?;
    f.only(
        "text",
        &[json!({"format": {"type": "text"}}), json!({})],
        "only {\"format\": {\"type\": \"text\"}} is supported",
    )?;
    f.only("truncation", &[json!("disabled")], "only \"disabled\" is supported: nothing is left out of a prompt")?;
    f.only("include", &[json!([])], "nothing more can be included")?;
    f.only("reasoning", &[json!({})], "is not supported: this model does not think aloud")?;
    // A response is kept as long as its task is, whatever is said; its transcript is an artifact.
    f.pass_over(&["store", "user", "safety_identifier", "stream_options", "prompt_cache_retention"]);
    Ok(())
}

/// GET /v1/responses/{id}: where it stands, and what it has said so far.
///
/// # Errors
///
/// `NotFound` for one that is not known any more.
pub(super) fn get(call: &Call<'_>, id: &str) -> Result<Reply, Refusal> {
    let task = find(call.state, id)?;
    Ok(Reply::Full(types::json(200, &object(call.state, &task, &Echoed::default()))))
}

/// POST /v1/responses/{id}/cancel.
///
/// # Errors
///
/// `NotFound` for one that is not known any more.
pub(super) async fn cancel(call: &Call<'_>, id: &str) -> Result<Response, Refusal> {
    let task = find(call.state, id)?;
    data::cancel_task(call.state, &task.spec.task_id.to_string(), call.wake).await?;
    Ok(types::json(200, &object(call.state, &task, &Echoed::default())))
}

struct Responses {
    state: Arc<AppState>,
    task: Arc<LiveTask>,
    echoed: Echoed,
    stream: bool,
    sequence: u64,
    /// The item and the part that the text goes into were announced.
    begun: bool,
}

impl Responses {
    fn event(&mut self, name: &str, mut data: Value, out: &mut Vec<u8>) {
        data["type"] = name.into();
        data["sequence_number"] = self.next().into();
        out.extend_from_slice(format!("event: {name}\ndata: {data}\n\n").as_bytes());
    }

    fn next(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence - 1
    }

    fn object(&self) -> Value {
        object(&self.state, &self.task, &self.echoed)
    }

    fn item_id(&self) -> String {
        format!("msg_{:032x}", self.task.spec.task_id.0)
    }

    fn begin(&mut self, out: &mut Vec<u8>) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        let response = self.object();
        self.event("response.in_progress", json!({ "response": response }), out);
        let item = message_item(&self.task, "in_progress", json!([]));
        self.event("response.output_item.added", json!({"output_index": 0, "item": item}), out);
        let place = json!({"item_id": self.item_id(), "output_index": 0, "content_index": 0, "part": text_part("")});
        self.event("response.content_part.added", place, out);
    }
}

impl Dialect for Responses {
    fn accepted(&mut self, waits: bool, out: &mut Vec<u8>) {
        if self.stream {
            let response = self.object();
            self.event("response.created", json!({ "response": response }), out);
            if waits {
                self.event("response.queued", json!({ "response": response }), out);
            }
        }
    }

    fn token(&mut self, _: usize, token: Token<'_>, out: &mut Vec<u8>) {
        if !self.stream || token.is_empty() {
            return;
        }
        self.begin(out);
        let (item_id, sequence) = (self.item_id(), self.next());
        out.extend_from_slice(
            format!(
                "event: response.output_text.delta\ndata: {{\"type\":\"response.output_text.delta\",\
                 \"sequence_number\":{sequence},\"item_id\":\"{item_id}\",\"output_index\":0,\"content_index\":0,\
                 \"logprobs\":[],\"delta\":{}}}\n\n",
                token.literal
            )
            .as_bytes(),
        );
    }

    fn end(&mut self, _: usize, _: &End<'_>, out: &mut Vec<u8>) {
        if !self.stream {
            return;
        }
        self.begin(out);
        let response = self.object();
        let text = response["output"][0]["content"][0]["text"].clone();
        let place = |extra: Value| {
            let mut data = json!({"item_id": self.item_id(), "output_index": 0, "content_index": 0});
            let fields = extra.as_object().expect("an object").clone();
            data.as_object_mut().expect("an object").extend(fields);
            data
        };
        let done = place(json!({"text": text, "logprobs": []}));
        let part = place(json!({"part": text_part(text.as_str().unwrap_or_default())}));
        self.event("response.output_text.done", done, out);
        self.event("response.content_part.done", part, out);
        let item = response["output"][0].clone();
        self.event("response.output_item.done", json!({"output_index": 0, "item": item}), out);
        let name = if response["status"] == "incomplete" { "response.incomplete" } else { "response.completed" };
        self.event(name, json!({ "response": response }), out);
    }

    fn failed(&mut self, refusal: &Refusal, out: &mut Vec<u8>) {
        if self.stream {
            let response = self.object();
            let error = refusal.body(Shape::OpenAi, "", &self.state)["error"].take();
            let fields = json!({"code": error["code"], "message": error["message"], "param": error["param"]});
            self.event("error", fields, out);
            self.event("response.failed", json!({ "response": response }), out);
        }
    }

    fn finish(&mut self, _: &mut Vec<u8>) {}

    fn body(&mut self) -> Response {
        types::json(200, &self.object())
    }
}
