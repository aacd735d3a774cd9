//! POST /v1/messages and /v1/messages/count_tokens, as Anthropic's clients have them.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use serde::Deserialize;
use serde_json::{Value, json};

use super::Call;
use super::admit::{Ask, admit, model};
use super::chat::{Content, refuse_tools};
use super::fields::Fields;
use super::openai::{facts, fresh_seed};
use super::refusal::{Refusal, Shape};
use super::view::{self, Dialect, End, Token, reply};
use crate::api::types::{self, check_sampling, check_stop};
use crate::domain::limits;
use crate::domain::task::{Message, Priority, Prompt, Sampling};
use crate::infra::http::Response;
use crate::infra::reactor::Reply;
use crate::services::task::LiveTask;
use crate::state::AppState;

#[derive(Deserialize)]
struct Turn {
    role: String,
    content: Content,
}

/// The system prompt and the turns, which may end with the beginning of the answer.
fn conversation(f: &mut Fields) -> Result<Vec<Message>, Refusal> {
    let mut messages = Vec::new();
    if let Some(system) = f.take::<Content>("system")? {
        messages.push(Message { role: "system".into(), content: system.into_text("system")? });
    }
    let turns: Vec<Turn> = f.need("messages")?;
    if !(1..=limits::MESSAGE_COUNT_MAX).contains(&turns.len()) {
        return Err(Refusal::field("messages", format!("must have 1 to {} turns", limits::MESSAGE_COUNT_MAX)));
    }
    for turn in turns {
        if !["user", "assistant"].contains(&turn.role.as_str()) {
            return Err(Refusal::field("messages", format!("role {:?}: roles are user and assistant", turn.role)));
        }
        messages.push(Message { role: turn.role, content: turn.content.into_text("messages")? });
    }
    if messages.last().is_some_and(|m| m.role == "assistant") {
        return Err(Refusal::field("messages", "end with an assistant turn: the last one must be the user's"));
    }
    Ok(messages)
}

fn refuse_what_is_not_done(f: &mut Fields) -> Result<(), Refusal> {
    refuse_tools(f, &[json!({"type": "none"}), json!({"type": "auto"})])?;
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
    let messages = conversation(&mut f)?;
    let stop: Vec<String> = f.take("stop_sequences")?.unwrap_or_default();
    check_stop(&stop).map_err(|e| Refusal::from(e).about("stop_sequences", "invalid_value"))?;
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
    let model: String = f.need("model")?;
    refuse_what_is_not_done(&mut f)?;
    // Who asks, which tier is paid for, and what may be cached: all of a prompt may, always.
    f.pass_over(&["metadata", "service_tier", "cache_control"]);
    f.finish()?;
    let ask = Ask {
        model,
        prompt_param: "messages",
        prompts: vec![Prompt::Messages(messages)],
        copies: 1,
        max_tokens: Some(max_tokens),
        sampling,
        stop,
        logprobs: false,
        top_logprobs: 0,
        ignore_end: false,
        has_instructions: false,
        background: false,
        priority: Priority::Interactive,
        session_key: None,
    };
    let admitted = admit(call, ask).await?;
    let task = admitted.tasks[0].clone();
    let dialect = Messages {
        state: call.state.clone(),
        request_id: call.request_id.to_owned(),
        stream,
        task,
        text: String::new(),
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
    let prompt = Prompt::Messages(conversation(&mut f)?);
    let loaded = model(call.state, &f.need::<String>("model")?)?;
    refuse_what_is_not_done(&mut f)?;
    f.finish()?;
    let tokens = view::count_tokens(call, &loaded, &prompt).await?;
    Ok(types::json(200, &json!({"input_tokens": tokens.len()})))
}

struct Messages {
    state: Arc<AppState>,
    request_id: String,
    stream: bool,
    task: Arc<LiveTask>,
    text: String,
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

impl Dialect for Messages {
    fn accepted(&mut self, _: bool, out: &mut Vec<u8>) {
        if self.stream {
            let message = self.message(json!([]), (Value::Null, Value::Null), self.usage(0));
            event("message_start", json!({ "message": message }), out);
            let block = json!({"index": 0, "content_block": {"type": "text", "text": ""}});
            event("content_block_start", block, out);
        }
    }

    fn token(&mut self, _: usize, token: Token<'_>, out: &mut Vec<u8>) {
        if !self.stream {
            return token.push_text(&mut self.text);
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
        let stopped_by = end.task.stopped_by.get().map(|s| Value::from(&**s));
        let reason = match (end.finish_reason, &stopped_by) {
            ("length", _) => "max_tokens",
            (_, Some(_)) => "stop_sequence",
            _ => "end_turn",
        };
        self.ended = json!({
            "stop_reason": reason,
            "stop_sequence": stopped_by,
            "usage": self.usage(end.tokens_out),
            "orchestratord": facts(end),
        });
        if self.stream {
            event("content_block_stop", json!({"index": 0}), out);
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
        let content = json!([{"type": "text", "text": self.text}]);
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
