//! POST /v1/responses, and the responses that it has made: a response is a task, one in the background is a task that
//! nobody need read, and the next turn of a conversation finds the one before in the task's own log.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::Call;
use super::admit::{Admitted, Ask, admit, model};
use super::chat::{Content, answered, check_turns, function_call, prompt};
use super::fields::Fields;
use super::format::{TEXT_FORMAT, take_text};
use super::openai::{fresh_seed, take_priority};
use super::refusal::{Refusal, Shape};
use super::response::{item_id, new_item, object, output_item, said, task_of, text_part};
use super::tools::{self, Item, Parser, Piece, call_id, gather, items_of, parser_of};
use super::view::{Dialect, End, Token, reply};
use crate::api::data;
use crate::api::types::{self, check_sampling};
use crate::domain::error::OrchestratorError;
use crate::domain::task::{Message, Prompt, PromptLogprobs, Sampling};
use crate::infra::http::Response;
use crate::infra::reactor::Reply;
use crate::services::task::{LiveTask, Outcome};
use crate::state::AppState;

#[derive(Deserialize)]
#[serde(untagged)]
enum Input {
    Text(String),
    Items(Vec<InputItem>),
}

#[derive(Deserialize)]
struct InputItem {
    #[serde(rename = "type")]
    kind: Option<String>,
    role: Option<String>,
    content: Option<Content>,
    call_id: Option<String>,
    name: Option<String>,
    arguments: Option<String>,
    output: Option<Content>,
}

/// Adds what was sent to the turns before it.
fn add_turns(input: Input, turns: &mut Vec<Message>) -> Result<(), Refusal> {
    let items = match input {
        Input::Text(text) => {
            turns.push(Message::new("user", text));
            return Ok(());
        }
        Input::Items(items) => items,
    };
    for item in items {
        match (item.kind.as_deref(), item.role.as_deref()) {
            (None | Some("message"), Some(role @ ("user" | "assistant" | "system" | "developer"))) => {
                let role = if role == "developer" { "system" } else { role };
                let content = item.content.ok_or_else(|| Refusal::field("input", "has a message without content"))?;
                turns.push(Message::new(role, content.into_text("input")?));
            }
            (Some("function_call"), _) => {
                let (Some(id), Some(name), Some(arguments)) = (item.call_id, item.name, item.arguments) else {
                    return Err(Refusal::field("input", "has a function_call without call_id, name or arguments"));
                };
                let call = function_call("input", id, name, arguments)?;
                // Calls belong to the turn in which they were made.
                match turns.last_mut() {
                    Some(turn) if turn.role == "assistant" => turn.calls.push(call),
                    _ => turns.push(Message { calls: vec![call], ..Message::new("assistant", "") }),
                }
            }
            (Some("function_call_output"), _) => {
                let (Some(id), Some(output)) = (item.call_id, item.output) else {
                    return Err(Refusal::field("input", "has a function_call_output without call_id or output"));
                };
                let answers = Some(answered("input", id, turns)?);
                turns.push(Message { answers, ..Message::new("tool", output.into_text("input")?) });
            }
            (kind, role) => {
                let what = format!(
                    "an item of type {kind:?} and role {role:?}: messages with a role and text, function_call and \
                     function_call_output are read here"
                );
                return Err(Refusal::field("input", what));
            }
        }
    }
    Ok(())
}

/// The turns that a response ended with: its own input, and its answer.
fn turns_before(state: &AppState, id: &str) -> Result<Vec<Message>, Refusal> {
    let task =
        find(state, id).map_err(|refusal| refusal.about("previous_response_id", "previous_response_not_found"))?;
    let mut turns = match &task.spec.prompt {
        Prompt::Chat(chat) => chat.turns[usize::from(task.spec.has_instructions)..].to_vec(),
        _ => return Err(Refusal::field("previous_response_id", "is not the id of a conversation")),
    };
    if !matches!(task.outcome(), Some(Outcome::Finished(_))) {
        return Err(Refusal::field(
            "previous_response_id",
            "has not ended well: a conversation goes on from an answer",
        ));
    }
    let mut answer = Message::new("assistant", "");
    for item in items_of(&task, &said(&task).0) {
        match item {
            Item::Text(text) => answer.content.push_str(&text),
            Item::Call { name, arguments } => {
                let id = call_id(&task, answer.calls.len());
                answer.calls.push(function_call("previous_response_id", id, name, arguments)?);
            }
        }
    }
    turns.push(answer);
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
        messages.push(Message::new("system", text.clone()));
    }
    if let Some(id) = &previous {
        messages.extend(turns_before(call.state, id)?);
    }
    let before = messages.len();
    add_turns(f.need("input")?, &mut messages)?;
    if messages.len() == before {
        return Err(Refusal::field("input", "must make a turn"));
    }
    pass_over_thoughts(&mut f);
    let model_name: String = f.need("model")?;
    let loaded = model(call.state, &model_name)?;
    check_turns(&messages, "input", &loaded)?;
    let told = |name: &str, default: Value| f.peek(name).unwrap_or(default);
    let (tools_told, choice_told) = (as_told(told("tools", json!([]))), told("tool_choice", json!("auto")));
    let tools = tools::response(&mut f, &loaded)?;
    let parallel = tools.as_ref().is_none_or(|t| t.parallel);
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
    let priority = take_priority(&mut f)?;
    let (format, text) = take_text(&mut f)?;
    let metadata: Value = f.take("metadata")?.unwrap_or_else(|| json!({}));
    let session_key: Option<String> = f.take("prompt_cache_key")?;
    // Who asks: told again, and of no other use here.
    let (user, safety_identifier): (Option<String>, Option<String>) = (f.take("user")?, f.take("safety_identifier")?);
    refuse_what_is_not_done(&mut f)?;
    f.finish()?;
    let ask = Ask {
        model: model_name,
        prompt_param: "input",
        prompts: vec![prompt(messages, tools.as_ref())],
        copies: 1,
        max_tokens,
        sampling,
        stop: Vec::new(),
        logprobs: false,
        top_logprobs: 0,
        prompt_logprobs: PromptLogprobs::None,
        ignore_end: false,
        format,
        format_param: TEXT_FORMAT,
        tools,
        has_instructions: instructions.is_some(),
        background,
        priority,
        note: json!({
            "previous_response_id": previous,
            "prompt_cache_key": session_key,
            "user": user,
            "safety_identifier": safety_identifier,
            "metadata": metadata,
            "text": text,
            "tools": tools_told,
            "tool_choice": choice_told,
            "parallel_tool_calls": parallel,
        }),
        session_key,
    };
    let admitted = admit(call, ask).await?;
    let task = admitted.tasks[0].clone();
    if background && !stream {
        return Ok(Reply::Full(types::json(200, &object(call.state, &task))));
    }
    let dialect = Responses {
        state: call.state.clone(),
        parser: parser_of(&task),
        task,
        stream,
        skipped: 0,
        sequence: 0,
        begun: false,
        items: Vec::new(),
    };
    reply(call, admitted, stream, dialect)
}

/// What agents say of a model's thoughts, where it is true of one that has none: they need not be summed up, nor be told in a
/// form that can be sent again. And what a client tells itself.
fn pass_over_thoughts(f: &mut Fields) {
    let says_nothing = |reasoning: &Value| {
        reasoning.as_object().is_some_and(|fields| {
            fields
                .iter()
                .all(|(name, value)| name == "summary" || (name == "effort" && (value.is_null() || value == "none")))
        })
    };
    if f.peek("reasoning").is_some_and(|reasoning| says_nothing(&reasoning)) {
        f.pass_over(&["reasoning"]);
    }
    if f.peek("include") == Some(json!(["reasoning.encrypted_content"])) {
        f.pass_over(&["include"]);
    }
    f.pass_over(&["client_metadata"]);
}

fn refuse_what_is_not_done(f: &mut Fields) -> Result<(), Refusal> {
    f.only("truncation", &[json!("disabled")], "only \"disabled\" is supported: nothing is left out of a prompt")?;
    f.only("include", &[json!([])], "nothing more can be included")?;
    f.only("reasoning", &[json!({})], "is not supported: this model does not think aloud")?;
    // A response is kept as long as its task is, whatever is said; its transcript is an artifact.
    f.pass_over(&["store", "stream_options", "prompt_cache_retention"]);
    Ok(())
}

/// Functions as a response repeats them: with every field that the dialect's types have, said or not.
fn as_told(mut tools: Value) -> Value {
    for tool in tools.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        for (name, unsaid) in [("description", Value::Null), ("parameters", Value::Null), ("strict", json!(false))] {
            let field = tool.entry(name).or_insert(Value::Null);
            if field.is_null() {
                *field = unsaid;
            }
        }
    }
    tools
}

/// GET /v1/responses/{id}: where it stands, and what it has said so far; with `stream=true` its events, from the beginning or
/// after the one that `starting_after` numbers.
///
/// # Errors
///
/// `NotFound` for one that is not known any more.
pub(super) fn get(call: &Call<'_>, id: &str) -> Result<Reply, Refusal> {
    let task = find(call.state, id)?;
    let (stream, mut skipped) = query(call.head.query())?;
    // The same in the words of server-sent events.
    if let Some(last) = call.head.header("last-event-id").filter(|_| stream) {
        let number = std::str::from_utf8(last).ok().and_then(|text| text.trim().parse::<u64>().ok());
        let number = number.ok_or_else(|| Refusal::field("Last-Event-ID", "is not the number of an event"))?;
        skipped = skipped.max(number.saturating_add(1));
    }
    if !stream {
        return Ok(Reply::Full(types::json(200, &object(call.state, &task))));
    }
    let tasks = vec![task.clone()];
    let admitted = Admitted { tasks, own_session: None, format_param: TEXT_FORMAT, is_shared: true };
    let dialect = Responses {
        state: call.state.clone(),
        parser: parser_of(&task),
        task,
        stream,
        skipped,
        sequence: 0,
        begun: false,
        items: Vec::new(),
    };
    reply(call, admitted, stream, dialect)
}

/// Whether a stream is wanted, and how many of its events the reader has had.
fn query(text: &str) -> Result<(bool, u64), Refusal> {
    let (mut stream, mut skipped) = (false, 0);
    for (name, value) in text.split('&').filter(|part| !part.is_empty()).map(|p| p.split_once('=').unwrap_or((p, ""))) {
        match (name, value, value.parse::<u64>()) {
            ("stream", "true" | "false", _) => stream = value == "true",
            ("starting_after", _, Ok(last)) => skipped = last.saturating_add(1),
            _ => return Err(Refusal::field(name, format!("{value:?} is not supported in the query of a response"))),
        }
    }
    if skipped > 0 && !stream {
        return Err(Refusal::field("starting_after", "belongs to streams: add stream=true"));
    }
    Ok((stream, skipped))
}

/// POST /v1/responses/{id}/cancel.
///
/// # Errors
///
/// `NotFound` for one that is not known any more.
pub(super) async fn cancel(call: &Call<'_>, id: &str) -> Result<Response, Refusal> {
    let task = find(call.state, id)?;
    data::cancel_task(call.state, &task.spec.task_id.to_string(), call.wake).await?;
    Ok(types::json(200, &object(call.state, &task)))
}

struct Responses {
    state: Arc<AppState>,
    task: Arc<LiveTask>,
    stream: bool,
    /// Events that this reader has had.
    skipped: u64,
    sequence: u64,
    /// The first token was told of.
    begun: bool,
    /// None where nothing can be called: then text goes out as the log has it.
    parser: Option<Parser>,
    /// What was announced; the last one is open.
    items: Vec<Item>,
}

impl Responses {
    /// Without an `id:` line: openai-python remembers the last one, and then takes the blank line after a comment for an event
    /// without data, on which it fails. The number is in the data.
    fn event(&mut self, name: &str, mut data: Value, out: &mut Vec<u8>) {
        data["type"] = name.into();
        let sequence = self.next();
        data["sequence_number"] = sequence.into();
        if sequence < self.skipped {
            return;
        }
        out.extend_from_slice(format!("event: {name}\ndata: {data}\n\n").as_bytes());
    }

    fn next(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence - 1
    }

    fn object(&self) -> Value {
        object(&self.state, &self.task)
    }

    /// Announces an item that begins.
    fn open(&mut self, item: Item, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.begun, true) {
            let response = self.object();
            self.event("response.in_progress", json!({ "response": response }), out);
        }
        self.close("completed", out);
        let index = self.items.len();
        let new = new_item(&self.task, &self.items, &item);
        self.event("response.output_item.added", json!({"output_index": index, "item": new}), out);
        self.items.push(item);
        if let Some(Item::Text(_)) = self.items.last() {
            let place = self.place(json!({"content_index": 0, "part": text_part("")}));
            self.event("response.content_part.added", place, out);
        }
    }

    /// Ends the item that is open.
    fn close(&mut self, status: &str, out: &mut Vec<u8>) {
        let Some((item, before)) = self.items.split_last() else { return };
        let whole = output_item(&self.task, before, item, status);
        match item.clone() {
            Item::Text(text) => {
                let done = self.place(json!({"content_index": 0, "text": text, "logprobs": []}));
                let part = self.place(json!({"content_index": 0, "part": text_part(&text)}));
                self.event("response.output_text.done", done, out);
                self.event("response.content_part.done", part, out);
            }
            Item::Call { name, arguments } => {
                let done = self.place(json!({"name": name, "arguments": arguments}));
                self.event("response.function_call_arguments.done", done, out);
            }
        }
        let index = self.items.len() - 1;
        self.event("response.output_item.done", json!({"output_index": index, "item": whole}), out);
    }

    /// Fields of an event about the item that is open.
    fn place(&self, fields: Value) -> Value {
        let (item, before) = self.items.split_last().expect("an item is open");
        let mut data = json!({"item_id": item_id(&self.task, before, item), "output_index": before.len()});
        let fields = fields.as_object().expect("an object").clone();
        data.as_object_mut().expect("an object").extend(fields);
        data
    }

    fn say(&mut self, piece: Piece, out: &mut Vec<u8>) {
        if !self.stream {
            return;
        }
        match (&piece, self.items.last()) {
            (Piece::Call(name), _) => {
                return self.open(Item::Call { name: name.clone(), arguments: String::new() }, out);
            }
            (Piece::Text(_), Some(Item::Text(_))) | (Piece::Arguments(_), _) => {}
            (Piece::Text(_), _) => self.open(Item::Text(String::new()), out),
        }
        match &piece {
            Piece::Text(text) => {
                let data = self.place(json!({"content_index": 0, "logprobs": [], "delta": text}));
                self.event("response.output_text.delta", data, out);
            }
            Piece::Arguments(more) => {
                let data = self.place(json!({ "delta": more }));
                self.event("response.function_call_arguments.delta", data, out);
            }
            Piece::Call(_) => {}
        }
        gather(&mut self.items, piece);
    }

    /// The same for text as the log has it, which is neither read nor written again.
    fn say_literal(&mut self, token: Token<'_>, out: &mut Vec<u8>) {
        if self.items.is_empty() {
            self.open(Item::Text(String::new()), out);
        }
        let (item_id, sequence) = (item_id(&self.task, &[], &self.items[0]), self.next());
        if let Some(Item::Text(text)) = self.items.last_mut() {
            token.push_text(text);
        }
        if sequence < self.skipped {
            return;
        }
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
}

impl Dialect for Responses {
    fn accepted(&mut self, _: bool, out: &mut Vec<u8>) {
        if self.stream {
            let response = self.object();
            self.event("response.created", json!({ "response": response }), out);
            // By the promise and not by what is: whoever reads this again counts the same events.
            if self.task.promise.predicted_start_ms > 0 {
                self.event("response.queued", json!({ "response": response }), out);
            }
        }
    }

    fn token(&mut self, _: usize, token: Token<'_>, out: &mut Vec<u8>) {
        if !self.stream || token.is_empty() {
            return;
        }
        match &mut self.parser {
            None => self.say_literal(token, out),
            Some(parser) => {
                let mut text = String::new();
                token.push_text(&mut text);
                parser.push(&text).into_iter().for_each(|piece| self.say(piece, out));
            }
        }
    }

    fn end(&mut self, _: usize, _: &End<'_>, out: &mut Vec<u8>) {
        if !self.stream {
            return;
        }
        if let Some(mut parser) = self.parser.take() {
            parser.finish().into_iter().for_each(|piece| self.say(piece, out));
        }
        if self.items.is_empty() {
            self.open(Item::Text(String::new()), out);
        }
        let response = self.object();
        let (status, name) = match response["status"] == "incomplete" {
            true => ("incomplete", "response.incomplete"),
            false => ("completed", "response.completed"),
        };
        self.close(status, out);
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
