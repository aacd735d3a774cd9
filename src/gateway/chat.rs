//! POST /v1/chat/completions.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Call;
use super::admit::{Ask, admit, model};
use super::fields::Fields;
use super::format::{RESPONSE_FORMAT, take_response_format};
use super::openai::{Common, Face, OpenAi};
use super::refusal::Refusal;
use super::tools::{self, Tools};
use super::view::reply;
use crate::api::types::check_top_logprobs;
use crate::domain::limits;
use crate::domain::task::{Chat, FunctionCall, Message, Prompt, PromptLogprobs};
use crate::infra::reactor::Reply;
use crate::services::pool::Loaded;

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
    tool_calls: Option<Vec<CallWire>>,
    tool_call_id: Option<String>,
    function_call: Option<Value>,
    /// Two servers' words for a turn that is to be gone on with. Other fields are what answers have, and go past.
    prefix: Option<bool>,
    partial: Option<bool>,
}

#[derive(Deserialize)]
struct CallWire {
    id: String,
    function: FunctionWire,
}

#[derive(Deserialize)]
struct FunctionWire {
    name: String,
    arguments: String,
}

/// The turns of a conversation as chat clients send them.
///
/// # Errors
///
/// Naming `messages`, for a role, a kind of part or a call that no template here knows.
pub(super) fn messages(f: &mut Fields, loaded: &Loaded) -> Result<Vec<Message>, Refusal> {
    let turns: Vec<Turn> = f.need("messages")?;
    let mut messages = Vec::with_capacity(turns.len());
    for turn in turns {
        messages.push(message(turn, &messages)?);
    }
    check_turns(&messages, "messages", loaded)?;
    Ok(messages)
}

fn message(turn: Turn, before: &[Message]) -> Result<Message, Refusal> {
    let refuse = |what: String| Refusal::field("messages", what);
    let role = match turn.role.as_str() {
        // The newer name of the same thing.
        "developer" => "system",
        role @ ("system" | "user" | "assistant" | "tool") => role,
        other => return Err(refuse(format!("role {other:?}: roles are system, developer, user, assistant and tool"))),
    };
    if turn.function_call.is_some() {
        return Err(refuse("function_call: is the older form of tool_calls: send those".into()));
    }
    if turn.prefix == Some(true) || turn.partial == Some(true) {
        return Err(refuse("a turn that is to be gone on with: an answer is a turn of its own here".into()));
    }
    let calls = turn.tool_calls.unwrap_or_default();
    if !calls.is_empty() && role != "assistant" {
        return Err(refuse(format!("tool_calls in a {role} turn: only the assistant calls")));
    }
    let content = match turn.content {
        Some(content) => content.into_text("messages")?,
        None if calls.is_empty() => return Err(refuse(format!("a {role} turn without content: send its text"))),
        None => String::new(),
    };
    let call = |c: CallWire| function_call("messages", c.id, c.function.name, c.function.arguments);
    let answers = match (role, turn.tool_call_id) {
        ("tool", Some(id)) => Some(answered("messages", id, before)?),
        ("tool", None) => return Err(refuse("a tool turn without tool_call_id: say which call it answers".into())),
        _ => None,
    };
    Ok(Message {
        calls: calls.into_iter().map(call).collect::<Result<_, _>>()?,
        answers,
        ..Message::new(role, content)
    })
}

/// A call in an earlier turn.
///
/// # Errors
///
/// Naming `param`, for arguments that are no object.
pub(super) fn function_call(param: &str, id: String, name: String, arguments: String) -> Result<FunctionCall, Refusal> {
    let arguments = if arguments.trim().is_empty() { "{}".to_owned() } else { arguments };
    match serde_json::from_str::<serde_json::Map<String, Value>>(&arguments) {
        Ok(_) => Ok(FunctionCall { id, name, arguments }),
        Err(e) => Err(Refusal::field(param, format!("the arguments of call {id:?} are no JSON object: {e}"))),
    }
}

/// The call that a turn answers, and its function.
///
/// # Errors
///
/// Naming `param`, when no turn before it made the call.
pub(super) fn answered(param: &str, id: String, before: &[Message]) -> Result<(String, String), Refusal> {
    let made = before.iter().rev().flat_map(|m| &m.calls).find(|call| call.id == id);
    let name = made.map(|call| call.name.clone());
    let name = name.ok_or_else(|| Refusal::field(param, format!("answers a call {id:?} that no turn before it made")));
    Ok((id, name?))
}

/// What holds for a whole conversation in any dialect.
///
/// # Errors
///
/// Naming `param`.
pub(super) fn check_turns(turns: &[Message], param: &str, loaded: &Loaded) -> Result<(), Refusal> {
    if !(1..=limits::MESSAGE_COUNT_MAX).contains(&turns.len()) {
        return Err(Refusal::field(param, format!("must have 1 to {} turns", limits::MESSAGE_COUNT_MAX)));
    }
    let about_tools = |m: &Message| !m.calls.is_empty() || m.answers.is_some();
    if turns.iter().any(about_tools) && tools::family_of(loaded).is_none() {
        let model = &loaded.model_ref;
        let what = format!("has calls or their answers, and model {model} has no chat template that knows tools");
        return Err(Refusal::field(param, what));
    }
    Ok(())
}

/// The conversation as the model is shown it.
pub(super) fn prompt(turns: Vec<Message>, tools: Option<&Tools>) -> Prompt {
    Prompt::Chat(Chat { turns, tools: tools.map(|t| t.for_template().into()) })
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

/// Answers a conversation with its next turn.
///
/// # Errors
///
/// Naming the field, and as admission refuses.
pub(super) async fn create(call: &Call<'_>, body: &mut [u8]) -> Result<Reply, Refusal> {
    let mut f = Fields::read(body)?;
    let common = Common::take(&mut f)?;
    let loaded = model(call.state, &common.model)?;
    let messages = messages(&mut f, &loaded)?;
    let tools = tools::chat(&mut f, &loaded)?;
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
    let format = take_response_format(&mut f)?;
    f.only("modalities", &[json!(["text"])], "this model answers with text only")?;
    f.finish()?;
    let admitted = admit(
        call,
        Ask {
            model: common.model.clone(),
            prompt_param: "messages",
            prompts: vec![prompt(messages, tools.as_ref())],
            copies: common.copies,
            max_tokens,
            sampling: common.sampling.clone(),
            stop: common.stop.clone(),
            logprobs,
            top_logprobs,
            prompt_logprobs: PromptLogprobs::None,
            ignore_end: common.ignore_end,
            format,
            format_param: RESPONSE_FORMAT,
            tools: tools.clone(),
            has_instructions: false,
            background: false,
            priority: common.priority,
            session_key: common.session_key.clone(),
            note: Value::Null,
        },
    )
    .await?;
    let dialect = OpenAi::new(Face::Chat, call, &common, logprobs, &admitted.tasks, Vec::new(), tools.as_ref());
    reply(call, admitted, common.stream, dialect)
}
