//! The response object of `/v1/responses`, made from a task at any time of its life: it is the task, in other words.

use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Value, json};

use crate::domain::ids::{TaskId, Uuid};
use crate::domain::task::FinishReason;
use crate::infra::http::sse;
use crate::services::task::{LiveTask, Outcome};
use crate::state::AppState;

use super::refusal::{Refusal, Shape};

/// What a response says about its request besides what the task knows.
#[derive(Clone, Debug, Default)]
pub(super) struct Echoed {
    pub previous: Option<String>,
    pub metadata: Value,
}

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

pub(super) fn message_item(task: &LiveTask, status: &str, content: Value) -> Value {
    json!({
        "id": format!("msg_{:032x}", task.spec.task_id.0),
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content,
    })
}

pub(super) fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

/// The whole object, with the text so far unless the task is only beginning.
pub(super) fn object(state: &AppState, task: &LiveTask, echoed: &Echoed) -> Value {
    let spec = &task.spec;
    let status = status(task);
    let (text, tokens_out) = said(task);
    let ended = !["queued", "in_progress"].contains(&status);
    let item_status = if status == "completed" { "completed" } else { "incomplete" };
    let output = match text.is_empty() && !["completed", "incomplete"].contains(&status) {
        true => json!([]),
        false => json!([message_item(task, item_status, json!([text_part(&text)]))]),
    };
    let error = match task.outcome() {
        Some(Outcome::Failed(error)) => {
            let body = Refusal::from(error.clone()).body(Shape::OpenAi, "", state);
            json!({"code": body["error"]["code"], "message": body["error"]["message"]})
        }
        _ => Value::Null,
    };
    let instructions = match &spec.prompt {
        crate::domain::task::Prompt::Messages(m) if spec.has_instructions => json!(m[0].content),
        _ => Value::Null,
    };
    let usage = ended.then(|| {
        json!({
            "input_tokens": task.prompt.len(),
            "input_tokens_details": {"cached_tokens": task.times.cached_tokens.load(Relaxed)},
            "output_tokens": tokens_out,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": task.prompt.len() + tokens_out as usize,
        })
    });
    let now_us = state.clock.now_us();
    let age_ms = now_us.saturating_sub(task.accepted_us) / 1000;
    json!({
        "id": id_of(spec.task_id),
        "object": "response",
        "created_at": (state.clock.unix_ms().saturating_sub(age_ms)) / 1000,
        "status": status,
        "background": !spec.cancel_on_disconnect,
        "error": error,
        "incomplete_details": (status == "incomplete").then(|| json!({"reason": "max_output_tokens"})),
        "instructions": instructions,
        "max_output_tokens": spec.max_tokens,
        "model": task.loaded.model_ref,
        "output": output,
        "parallel_tool_calls": true,
        "previous_response_id": echoed.previous,
        "reasoning": {"effort": null, "summary": null},
        "store": true,
        "temperature": spec.sampling.temperature,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": spec.sampling.top_p,
        "truncation": "disabled",
        "usage": usage,
        "user": null,
        "metadata": if echoed.metadata.is_null() { json!({}) } else { echoed.metadata.clone() },
        "orchestratord": {"task_id": spec.task_id.to_string(), "seed": spec.sampling.seed},
    })
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
