//! POST /v1/chat/completions.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Call;
use super::admit::{Ask, admit};
use super::fields::Fields;
use super::openai::{Common, Face, OpenAi};
use super::refusal::Refusal;
use super::view::reply;
use crate::api::types::check_top_logprobs;
use crate::domain::limits;
use crate::domain::task::{Message, Prompt};
use crate::infra::reactor::Reply;

/// What a turn says: text, or parts that must all be text.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
pub(super) struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

#[derive(Deserialize)]
struct Turn {
    role: String,
    content: Option<Content>,
    tool_calls: Option<Value>,
    function_call: Option<Value>,
}

/// The turns of a conversation as chat clients send them.
///
/// # Errors
///
/// Naming `messages`, for a role, a kind of part or a call that no template here knows.
pub(super) fn messages(f: &mut Fields) -> Result<Vec<Message>, Refusal> {
    let turns: Vec<Turn> = f.need("messages")?;
    if !(1..=limits::MESSAGE_COUNT_MAX).contains(&turns.len()) {
        return Err(Refusal::field("messages", format!("must have 1 to {} turns", limits::MESSAGE_COUNT_MAX)));
    }
    turns.into_iter().map(message).collect()
}

fn message(turn: Turn) -> Result<Message, Refusal> {
    let refuse = |what: String| Refusal::field("messages", what);
    let role = match turn.role.as_str() {
        // The newer name of the same thing.
        "developer" => "system",
        role @ ("system" | "user" | "assistant") => role,
        "tool" | "function" => return Err(refuse(format!("role {:?}: {NO_TOOLS}", turn.role))),
        other => return Err(refuse(format!("role {other:?}: roles are system, developer, user and assistant"))),
    };
    if turn.tool_calls.is_some_and(|calls| !is_nothing(&calls)) || turn.function_call.is_some() {
        return Err(refuse(format!("tool_calls: {NO_TOOLS}")));
    }
    let content = turn.content.ok_or_else(|| refuse(format!("a {role} turn without content: send its text")))?;
    let content = content.into_text("messages")?;
    Ok(Message { role: role.to_owned(), content })
}

impl Content {
    /// # Errors
    ///
    /// Naming `param`, for a part that is not text.
    pub fn into_text(self, param: &str) -> Result<String, Refusal> {
        let parts = match self {
            Content::Text(text) => return Ok(text),
            Content::Parts(parts) => parts,
        };
        let mut whole = String::new();
        for part in parts {
            match (part.kind.as_str(), part.text) {
                ("text" | "input_text" | "output_text", Some(text)) => whole.push_str(&text),
                (kind, _) => {
                    return Err(Refusal::field(param, format!("a part of type {kind:?}: this server reads text only")));
                }
            }
        }
        Ok(whole)
    }
}

/// Null or empty: what clients send that always send the field.
fn is_nothing(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

const NO_TOOLS: &str = "tools are not supported by this server: leave them out";

/// Refuses tools, but for a request that has none and says so.
pub(super) fn refuse_tools(f: &mut Fields, choices: &[Value]) -> Result<(), Refusal> {
    f.only("tools", &[json!([])], NO_TOOLS)?;
    f.only("tool_choice", choices, NO_TOOLS)?;
    f.pass_over(&["parallel_tool_calls"]);
    Ok(())
}

/// Refuses what a request can only have meant if it were done.
fn refuse_what_is_not_done(f: &mut Fields) -> Result<(), Refusal> {
    refuse_tools(f, &[json!("none"), json!("auto")])?;
    f.only("response_format", &[json!({"type": "text"})], "only {\"type\": \"text\"} is supported by this engine")?;
    f.only("modalities", &[json!(["text"])], "this model answers with text only")
}

/// Answers a conversation with its next turn.
///
/// # Errors
///
/// Naming the field, and as admission refuses.
pub(super) async fn create(call: &Call<'_>, body: &mut [u8]) -> Result<Reply, Refusal> {
    let mut f = Fields::read(body)?;
    let messages = messages(&mut f)?;
    let common = Common::take(&mut f)?;
    let logprobs = f.take("logprobs")?.unwrap_or(false);
    let top_logprobs = f.take("top_logprobs")?.unwrap_or(0);
    check_top_logprobs(logprobs, top_logprobs)?;
    let (older, newer): (Option<u32>, Option<u32>) = (f.take("max_tokens")?, f.take("max_completion_tokens")?);
    if let (Some(older), Some(newer)) = (older, newer)
        && older != newer
    {
        return Err(Refusal::field("max_tokens", "contradicts max_completion_tokens: send one of them"));
    }
    let max_tokens = newer.or(older);
    if max_tokens == Some(0) {
        let name = if newer.is_some() { "max_completion_tokens" } else { "max_tokens" };
        return Err(Refusal::field(name, "must be at least 1"));
    }
    refuse_what_is_not_done(&mut f)?;
    f.finish()?;
    let admitted = admit(
        call,
        Ask {
            model: common.model.clone(),
            prompt_param: "messages",
            prompts: vec![Prompt::Messages(messages)],
            copies: common.copies,
            max_tokens,
            sampling: common.sampling.clone(),
            stop: common.stop.clone(),
            logprobs,
            top_logprobs,
            ignore_end: common.ignore_end,
            has_instructions: false,
            background: false,
            priority: common.priority,
            session_key: common.session_key.clone(),
        },
    )
    .await?;
    let dialect = OpenAi::new(Face::Chat, call, &common, logprobs, &admitted.tasks, Vec::new());
    reply(call, admitted, common.stream, dialect)
}
