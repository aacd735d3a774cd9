//! POST /v1/messages and /v1/messages/count_tokens, as Anthropic's clients have them.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Call;
use super::admit::{Ask, admit, model};
use super::chat::{Content, answered, check_turns, function_call, prompt};
use super::fields::Fields;
use super::format::{OUTPUT_FORMAT, take_output_config};
use super::openai::{facts, fresh_seed};
use super::refusal::{Refusal, Shape};
use super::tools::{self, Item, Parser, Piece, call_id, gather, parser_of};
use super::view::{self, Dialect, End, Token, reply};
use crate::api::types::{self, check_sampling, check_stop};
use crate::domain::task::{Message, Priority, PromptLogprobs, Sampling};
use crate::infra::http::Response;
use crate::infra::reactor::Reply;
use crate::services::pool::Loaded;
use crate::services::task::LiveTask;
use crate::state::AppState;

#[derive(Deserialize)]
struct Turn {
    role: String,
    content: Blocks,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Blocks {
    Text(String),
    Blocks(Vec<Block>),
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block {
    Text {
        text: String,
    },
    ToolUse {
        id: String,
        name: String,
        #[serde(default)]
        input: Map<String, Value>,
    },
    ToolResult {
        tool_use_id: String,
        content: Option<Content>,
    },
}

/// The system prompt and the turns.
fn conversation(f: &mut Fields, loaded: &Loaded) -> Result<Vec<Message>, Refusal> {
    pass_over_thoughts(f)?;
    let mut messages = Vec::new();
    if let Some(system) = f.take::<Content>("system")? {
        messages.push(Message::new("system", system.into_text("system")?));
    }
    let turns: Vec<Turn> = f.need("messages").map_err(|refusal: Refusal| match refusal.param() {
        Some("messages") => refusal.explained("blocks of type text, tool_use and tool_result are read here"),
        _ => refusal,
    })?;
    if turns.is_empty() {
        return Err(Refusal::field("messages", "must have a turn"));
    }
    for turn in turns {
        turn_of(turn, &mut messages)?;
    }
    if messages.last().is_some_and(|m| m.role == "assistant") {
        return Err(Refusal::field("messages", "end with an assistant turn: the last one must be the user's"));
    }
    check_turns(&messages, "messages", loaded)?;
    Ok(messages)
}

/// What agents say of a model's thoughts, where it is true of one that has none: it may think as much as it likes; what it
/// thought is left out of later turns.
///
/// # Errors
///
/// When something is asked for beside that.
fn pass_over_thoughts(f: &mut Fields) -> Result<(), Refusal> {
    if f.peek("thinking").is_some_and(|thinking| thinking["type"] == "adaptive") {
        f.pass_over(&["thinking"]);
    }
    if let Some(Value::Object(management)) = f.peek("context_management") {
        let edits = management.get("edits").and_then(Value::as_array);
        let is_thoughts = |edit: &Value| edit["type"].as_str().is_some_and(|kind| kind.starts_with("clear_thinking_"));
        if !edits.is_some_and(|edits| edits.iter().all(is_thoughts)) {
            return Err(Refusal::field(
                "context_management",
                "has edits other than of thoughts: nothing is left out of a prompt",
            ));
        }
        f.pass_over(&["context_management"]);
    }
    Ok(())
}

/// One turn of the dialect: results of tools are turns of their own for the model.
fn turn_of(turn: Turn, messages: &mut Vec<Message>) -> Result<(), Refusal> {
    let role = turn.role.as_str();
    // Agents tell of what has changed in turns of the system, between the others.
    if !["user", "assistant", "system"].contains(&role) {
        return Err(Refusal::field("messages", format!("role {role:?}: roles are user, assistant and system")));
    }
    let blocks = match turn.content {
        Blocks::Text(text) => vec![Block::Text { text }],
        Blocks::Blocks(blocks) => blocks,
    };
    let mut said = Message::new(role, "");
    let (mut has_text, mut has_results) = (false, false);
    for block in blocks {
        match (block, role) {
            (Block::Text { text }, _) => {
                said.content.push_str(&text);
                has_text = true;
            }
            (Block::ToolUse { id, name, input }, "assistant") => {
                said.calls.push(function_call("messages", id, name, Value::Object(input).to_string())?);
            }
            (Block::ToolResult { tool_use_id, content }, "user") => {
                let content = content.map_or(Ok(String::new()), |c| c.into_text("messages"))?;
                let answers = Some(answered("messages", tool_use_id, messages)?);
                messages.push(Message { answers, ..Message::new("tool", content) });
                has_results = true;
            }
            _ => {
                let what = format!("a block in a {role} turn that does not belong there");
                return Err(Refusal::field("messages", what));
            }
        }
    }
    if has_text || !said.calls.is_empty() || !has_results {
        messages.push(said);
    }
    Ok(())
}

fn refuse_what_is_not_done(f: &mut Fields) -> Result<(), Refusal> {
    // All of a prompt may be cached, always.
    f.pass_over(&["cache_control"]);
    f.only("thinking", &[json!({"type": "disabled"})], "is not supported: this model does not think aloud")?;
    f.only("mcp_servers", &[json!([])], "are not supported by this server")
}

/// Answers a conversation with its next turn.
///
/// # Errors
///
/// Naming the field, and as admission refuses.
pub(super) async fn create(call: &Call<'_>, body: &mut [u8]) -> Result<Reply, Refusal> {
    let mut f = Fields::read(body)?;
    let model_name: String = f.need("model")?;
    let loaded = model(call.state, &model_name)?;
    let messages = conversation(&mut f, &loaded)?;
    let format = take_output_config(&mut f)?;
    let tools = tools::anthropic(&mut f, &loaded)?;
    let stop: Vec<String> = f.take("stop_sequences")?.unwrap_or_default();
    check_stop(&stop).map_err(|e| Refusal::from(e).renamed("stop", "stop_sequences"))?;
    let sampling = Sampling {
        temperature: f.take("temperature")?.unwrap_or(1.0),
        top_k: f.take("top_k")?.unwrap_or(0),
        top_p: f.take("top_p")?.unwrap_or(1.0),
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seed: fresh_seed(),
        logit_bias: Arc::default(),
        min_tokens: 0,
    };
    check_sampling(&sampling)?;
    let max_tokens: u32 = f.need("max_tokens")?;
    if max_tokens == 0 {
        return Err(Refusal::field("max_tokens", "must be at least 1"));
    }
    let stream = f.take("stream")?.unwrap_or(false);
    refuse_what_is_not_done(&mut f)?;
    // Who asks, and which tier is paid for.
    f.pass_over(&["metadata", "service_tier"]);
    f.finish()?;
    let ask = Ask {
        model: model_name,
        prompt_param: "messages",
        prompts: vec![prompt(messages, tools.as_ref())],
        copies: 1,
        max_tokens: Some(max_tokens),
        sampling,
        stop,
        logprobs: false,
        top_logprobs: 0,
        prompt_logprobs: PromptLogprobs::None,
        ignore_end: false,
        format,
        format_param: OUTPUT_FORMAT,
        tools,
        has_instructions: false,
        background: false,
        priority: Priority::Interactive,
        session_key: None,
        note: Value::Null,
    };
    let admitted = admit(call, ask).await?;
    let task = admitted.tasks[0].clone();
    let dialect = Messages {
        state: call.state.clone(),
        request_id: call.request_id.to_owned(),
        stream,
        parser: parser_of(&task),
        task,
        items: Vec::new(),
        call_count: 0,
        ended: Value::Null,
    };
    reply(call, admitted, stream, dialect)
}

/// Counts what a conversation would take.
///
/// # Errors
///
/// Naming the field.
pub(super) async fn count_tokens(call: &Call<'_>, body: &mut [u8]) -> Result<Response, Refusal> {
    let mut f = Fields::read(body)?;
    let loaded = model(call.state, &f.need::<String>("model")?)?;
    let messages = conversation(&mut f, &loaded)?;
    // It says nothing to the model: what does not fit is never picked.
    take_output_config(&mut f)?;
    let tools = tools::anthropic(&mut f, &loaded)?;
    refuse_what_is_not_done(&mut f)?;
    f.finish()?;
    let tokens = view::count_tokens(call, &loaded, &prompt(messages, tools.as_ref())).await?;
    Ok(types::json(200, &json!({"input_tokens": tokens.len()})))
}

struct Messages {
    state: Arc<AppState>,
    request_id: String,
    stream: bool,
    task: Arc<LiveTask>,
    /// None where nothing can be called: then text goes out as the log has it.
    parser: Option<Parser>,
    /// The blocks so far; the last one is open.
    items: Vec<Item>,
    call_count: usize,
    /// `stop_reason`, `stop_sequence` and the usage of the answer.
    ended: Value,
}

impl Messages {
    fn message(&self, content: Value, stop: (Value, Value), usage: Value) -> Value {
        json!({
            "id": format!("msg_{:032x}", self.task.spec.task_id.0),
            "type": "message",
            "role": "assistant",
            "model": self.task.loaded.model_ref,
            "content": content,
            "stop_reason": stop.0,
            "stop_sequence": stop.1,
            "usage": usage,
        })
    }

    /// Tokens that were read anew and those that the cache had are counted apart.
    fn usage(&self, output_tokens: u32) -> Value {
        let cached = self.task.times.cached_tokens.load(Relaxed) as usize;
        json!({
            "input_tokens": self.task.prompt.len() - cached,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 0,
            "output_tokens": output_tokens,
        })
    }
}

fn event(name: &str, mut data: Value, out: &mut Vec<u8>) {
    data["type"] = name.into();
    out.extend_from_slice(format!("event: {name}\ndata: {data}\n\n").as_bytes());
}

impl Messages {
    fn say(&mut self, piece: Piece, out: &mut Vec<u8>) {
        let opens = match (&piece, self.items.last()) {
            (Piece::Text(_), Some(Item::Text(_))) | (Piece::Arguments(_), _) => None,
            (Piece::Text(_), _) => Some(json!({"type": "text", "text": ""})),
            (Piece::Call(name), _) => {
                let id = call_id(&self.task, self.call_count);
                self.call_count += 1;
                Some(json!({"type": "tool_use", "id": id, "name": name, "input": {}}))
            }
        };
        if let (Some(block), true) = (&opens, self.stream) {
            self.close_block(out);
            event("content_block_start", json!({"index": self.items.len(), "content_block": block}), out);
        }
        let index = self.items.len() - usize::from(opens.is_none());
        let delta = match &piece {
            Piece::Text(text) => Some(json!({"type": "text_delta", "text": text})),
            Piece::Arguments(more) => Some(json!({"type": "input_json_delta", "partial_json": more})),
            Piece::Call(_) => None,
        };
        if let (Some(delta), true) = (delta, self.stream) {
            event("content_block_delta", json!({"index": index, "delta": delta}), out);
        }
        gather(&mut self.items, piece);
    }

    fn close_block(&self, out: &mut Vec<u8>) {
        if let Some(last) = self.items.len().checked_sub(1) {
            event("content_block_stop", json!({"index": last}), out);
        }
    }

    fn content(&self) -> Value {
        let mut call_count = 0;
        let block = |item: &Item| match item {
            Item::Text(text) => json!({"type": "text", "text": text}),
            Item::Call { name, arguments } => {
                let id = call_id(&self.task, call_count);
                call_count += 1;
                // Arguments that were cut short are no JSON, and the dialect has no place for them.
                let input: Value = serde_json::from_str(arguments).unwrap_or_else(|_| json!({}));
                json!({"type": "tool_use", "id": id, "name": name, "input": input})
            }
        };
        self.items.iter().map(block).collect()
    }
}

impl Dialect for Messages {
    fn accepted(&mut self, _: bool, out: &mut Vec<u8>) {
        if self.stream {
            let message = self.message(json!([]), (Value::Null, Value::Null), self.usage(0));
            event("message_start", json!({ "message": message }), out);
            if self.parser.is_none() {
                let block = json!({"index": 0, "content_block": {"type": "text", "text": ""}});
                event("content_block_start", block, out);
                self.items.push(Item::Text(String::new()));
            }
        }
    }

    fn token(&mut self, _: usize, token: Token<'_>, out: &mut Vec<u8>) {
        if let Some(parser) = &mut self.parser {
            let mut text = String::new();
            token.push_text(&mut text);
            return parser.push(&text).into_iter().for_each(|piece| self.say(piece, out));
        }
        if !self.stream {
            let mut text = String::new();
            token.push_text(&mut text);
            return gather(&mut self.items, Piece::Text(text));
        }
        if !token.is_empty() {
            out.extend_from_slice(
                b"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\
                  \"delta\":{\"type\":\"text_delta\",\"text\":",
            );
            out.extend_from_slice(token.literal.as_bytes());
            out.extend_from_slice(b"}}\n\n");
        }
    }

    fn end(&mut self, _: usize, end: &End<'_>, out: &mut Vec<u8>) {
        if let Some(mut parser) = self.parser.take() {
            parser.finish().into_iter().for_each(|piece| self.say(piece, out));
        }
        let stopped_by = end.task.stopped_by.get().map(|s| Value::from(&**s));
        let reason = match (end.finish_reason, &stopped_by) {
            ("length", _) => "max_tokens",
            (_, Some(_)) => "stop_sequence",
            _ if self.call_count > 0 => "tool_use",
            _ => "end_turn",
        };
        self.ended = json!({
            "stop_reason": reason,
            "stop_sequence": stopped_by,
            "usage": self.usage(end.tokens_out),
            "orchestratord": facts(end),
        });
        if self.stream {
            self.close_block(out);
            let delta = json!({"stop_reason": reason, "stop_sequence": self.ended["stop_sequence"]});
            let usage = self.ended["usage"].clone();
            event("message_delta", json!({"delta": delta, "usage": usage, "orchestratord": facts(end)}), out);
            event("message_stop", json!({}), out);
        }
    }

    fn failed(&mut self, refusal: &Refusal, out: &mut Vec<u8>) {
        if self.stream {
            event("error", refusal.body(Shape::Anthropic, &self.request_id, &self.state), out);
        }
    }

    fn finish(&mut self, _: &mut Vec<u8>) {}

    fn ping(&self, out: &mut Vec<u8>) {
        event("ping", json!({}), out);
    }

    fn body(&mut self) -> Response {
        let content = self.content();
        let stop = (self.ended["stop_reason"].take(), self.ended["stop_sequence"].take());
        let usage = self.ended["usage"].take();
        let mut message = self.message(content, stop, usage);
        message["orchestratord"] = self.ended["orchestratord"].take();
        types::json(200, &message)
    }

    fn shape(&self) -> Shape {
        Shape::Anthropic
    }
}
