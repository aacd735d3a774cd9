//! The response object of `/v1/responses`, made from a task at any time of its life: it is the task, in other words.

use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Value, json};

use crate::domain::ids::{TaskId, Uuid};
use crate::domain::task::{FinishReason, Priority, Prompt};
use crate::infra::http::sse;
use crate::services::task::{LiveTask, Outcome};
use crate::state::AppState;

use super::openai::times;
use super::refusal::{Refusal, Shape};
use super::tools::{Item, call_id, items_of};

pub(super) fn id_of(task: TaskId) -> String {
    format!("resp_{:032x}", task.0)
}

/// The task that a response's id names.
pub(super) fn task_of(id: &str) -> Option<TaskId> {
    let hex = id.strip_prefix("resp_").filter(|hex| hex.len() == 32)?;
    u128::from_str_radix(hex, 16).ok().map(Uuid)
}

/// The text that a task has said so far, and how many tokens that took.
pub(super) fn said(task: &LiveTask) -> (String, u32) {
    let frames = task.stream.frames();
    let (mut text, mut count) = (String::new(), 0);
    for token in sse::events(&frames).filter(|e| e.name == b"token") {
        let data: Value = serde_json::from_slice(token.data).expect("we write JSON");
        text.push_str(data["t"].as_str().unwrap_or_default());
        count += 1;
    }
    (text, count)
}

fn status(task: &LiveTask) -> &'static str {
    match task.outcome() {
        None if task.times.seated_us.load(Relaxed) == 0 => "queued",
        None => "in_progress",
        Some(Outcome::Finished(FinishReason::Length)) => "incomplete",
        Some(Outcome::Finished(_)) => "completed",
        Some(Outcome::Canceled(_)) => "cancelled",
        Some(Outcome::Failed(_)) => "failed",
    }
}

/// One thing in a response's output: text, or a call. `before` are those that came before it.
pub(super) fn output_item(task: &LiveTask, before: &[Item], item: &Item, status: &str) -> Value {
    match item {
        Item::Text(text) => message_item(task, before, status, json!([text_part(text)])),
        Item::Call { name, arguments } => call_item(task, before, name, arguments, status),
    }
}

fn message_item(task: &LiveTask, before: &[Item], status: &str, content: Value) -> Value {
    json!({
        "id": item_id(task, before, &Item::Text(String::new())),
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content,
    })
}

fn call_item(task: &LiveTask, before: &[Item], name: &str, arguments: &str, status: &str) -> Value {
    let index = calls_in(before);
    json!({
        "id": format!("fc_{:032x}_{index}", task.spec.task_id.0),
        "type": "function_call",
        "call_id": call_id(task, index),
        "name": name,
        "arguments": arguments,
        "status": status,
    })
}

fn calls_in(items: &[Item]) -> usize {
    items.iter().filter(|item| matches!(item, Item::Call { .. })).count()
}

/// The id of an item among those of its response.
pub(super) fn item_id(task: &LiveTask, before: &[Item], item: &Item) -> String {
    let task_id = task.spec.task_id.0;
    let calls = calls_in(before);
    match (item, before.len() - calls) {
        (Item::Call { .. }, _) => format!("fc_{task_id:032x}_{calls}"),
        (Item::Text(_), 0) => format!("msg_{task_id:032x}"),
        (Item::Text(_), texts) => format!("msg_{task_id:032x}_{texts}"),
    }
}

/// An item as it is announced, with nothing in it.
pub(super) fn new_item(task: &LiveTask, before: &[Item], item: &Item) -> Value {
    match item {
        Item::Text(_) => message_item(task, before, "in_progress", json!([])),
        Item::Call { name, .. } => call_item(task, before, name, "", "in_progress"),
    }
}

pub(super) fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

/// Everything that was said, in the order in which it was; what comes last may not be complete.
fn output(task: &LiveTask, text: &str, status: &str) -> Value {
    let mut items = items_of(task, text);
    if items.is_empty() && ["completed", "incomplete"].contains(&status) {
        items.push(Item::Text(String::new()));
    }
    let status_of = |index: usize| match status {
        _ if index + 1 < items.len() => "completed",
        "completed" | "in_progress" => status,
        _ => "incomplete",
    };
    items.iter().enumerate().map(|(i, item)| output_item(task, &items[..i], item, status_of(i))).collect()
}

/// The whole object, with the text so far unless the task is only beginning.
pub(super) fn object(state: &AppState, task: &LiveTask) -> Value {
    let spec = &task.spec;
    let status = status(task);
    let (text, tokens_out) = said(task);
    let ended = !["queued", "in_progress"].contains(&status);
    let output = output(task, &text, status);
    let error = match task.outcome() {
        Some(Outcome::Failed(error)) => {
            let body = Refusal::from(error.clone()).body(Shape::OpenAi, "", state);
            json!({"code": body["error"]["code"], "message": body["error"]["message"]})
        }
        _ => Value::Null,
    };
    let instructions = match &spec.prompt {
        Prompt::Chat(chat) if spec.has_instructions => json!(chat.turns[0].content),
        _ => Value::Null,
    };
    let usage = ended.then(|| {
        json!({
            "input_tokens": task.prompt.len(),
            // What is written into the cache costs nothing here; the dialect's newer types want the field.
            "input_tokens_details": {"cached_tokens": task.times.cached_tokens.load(Relaxed), "cache_write_tokens": 0},
            "output_tokens": tokens_out,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": task.prompt.len() + tokens_out as usize,
        })
    });
    // What the request said besides what the task knows.
    let note: Value = spec.note.as_deref().and_then(|n| serde_json::from_str(n).ok()).unwrap_or_default();
    let (now_us, unix_ms) = (state.clock.now_us(), state.clock.unix_ms());
    let unix_s = |then_us: u64| unix_ms.saturating_sub(now_us.saturating_sub(then_us) / 1000) / 1000;
    let completed_at = (status == "completed").then(|| unix_s(task.times.ended_us.load(Relaxed)));
    let mut object = json!({
        "id": id_of(spec.task_id),
        "object": "response",
        "created_at": unix_s(task.accepted_us),
        "completed_at": completed_at,
        "status": status,
        "background": !spec.cancel_on_disconnect,
        "error": error,
        "incomplete_details": (status == "incomplete").then(|| json!({"reason": "max_output_tokens"})),
        "instructions": instructions,
        "max_output_tokens": spec.max_tokens,
        "max_tool_calls": null,
        "model": task.loaded.model_ref,
        "output": output,
        "parallel_tool_calls": note["parallel_tool_calls"],
        "presence_penalty": spec.sampling.presence_penalty,
        "frequency_penalty": spec.sampling.frequency_penalty,
        "previous_response_id": note["previous_response_id"],
        "prompt_cache_key": note["prompt_cache_key"],
        "reasoning": {"effort": null, "summary": null},
        "safety_identifier": note["safety_identifier"],
        // The one that was used: every other is the class of those who wait for the answer.
        "service_tier": if spec.priority == Priority::Batch { "flex" } else { "default" },
        "store": true,
        "temperature": spec.sampling.temperature,
        "text": note["text"],
        "tool_choice": note["tool_choice"],
        "tools": note["tools"],
        "top_logprobs": 0,
        "top_p": spec.sampling.top_p,
        "truncation": "disabled",
        "usage": usage,
        "metadata": note["metadata"],
        "orchestratord": times(task),
    });
    // The one field that the dialect's document has as left out and not as null.
    if note["user"].is_string() {
        object["user"] = note["user"].clone();
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_responses_id_is_its_tasks() {
        let task = Uuid::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap();
        assert_eq!(task_of(&id_of(task)), Some(task));
        for id in ["", "resp_", "resp_1", "resp_0190163d8694739baea5966c26f8ad9g", "0190163d8694739baea5966c26f8ad91"] {
            assert_eq!(task_of(id), None, "{id}");
        }
    }
}
