//! The page: one file without a request to anywhere else, and what it asks for every second.

use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Value, json};

use super::Call;
use super::refusal::Refusal;
use crate::api::{data, types};
use crate::infra::http::Response;
use crate::services::pool::PoolState;
use crate::services::task::{LiveTask, Outcome};
use crate::state::AppState;

const PAGE: &str = include_str!("page.html");

/// Tasks that the page shows.
const TASKS_SHOWN: usize = 20;

/// GET /: needs no key; what it shows does.
pub(super) fn page() -> Response {
    Response::new(200)
        .header("Content-Type", "text/html; charset=utf-8")
        .header("Cache-Control", "no-cache")
        .header("X-Content-Type-Options", "nosniff")
        .header("Referrer-Policy", "no-referrer")
        .header(
            "Content-Security-Policy",
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        )
        .body(PAGE.as_bytes().to_vec())
}

/// GET /api/status: the pool, its figures, and the latest tasks.
pub(super) fn status(state: &AppState) -> Response {
    let Some(pool) = state.pools.iter().next() else {
        return types::json(503, &json!({"state": "no pool"}));
    };
    let metrics = &state.metrics;
    let latencies = pool.latencies.lock().expect("nothing panics under this lock");
    let (first, between) = (&latencies.first_token_us, &latencies.between_tokens_us);
    let name = match pool.state() {
        PoolState::Loading => "loading",
        PoolState::Ready => "ready",
        PoolState::Unready => "unready",
        PoolState::Stopped => "stopped",
    };
    let tasks: Vec<Value> = state.tasks.latest(TASKS_SHOWN).iter().map(|t| row(t, state.clock.now_us())).collect();
    let body = json!({
        "now_ms": state.clock.now_ms(),
        "state": name,
        "draining": pool.is_draining(),
        "last_error": pool.last_error(),
        "model": pool.loaded().map(|l| l.model_ref.clone()),
        "engine": pool.engine,
        "queue_depth": pool.queue.depth(),
        "queue_capacity": pool.queue.capacity(),
        "running": metrics.sequences_running.value(),
        "slots_max": pool.rules.slots_max,
        "tokens_out": metrics.tokens_out.value(),
        "kv_blocks_used": metrics.kv_blocks_used.value(),
        "kv_blocks_max": metrics.kv_blocks_max.value(),
        "first_token_us_p50": first.value_at_quantile(0.5),
        "first_token_us_p99": first.value_at_quantile(0.99),
        "between_tokens_us_p50": between.value_at_quantile(0.5),
        "between_tokens_us_p99": between.value_at_quantile(0.99),
        "tasks": tasks,
    });
    drop(latencies);
    types::json(200, &body)
}

fn row(task: &LiveTask, now_us: u64) -> Value {
    let seated_us = task.times.seated_us.load(Relaxed);
    let ended_us = task.times.ended_us.load(Relaxed);
    let state = match task.outcome() {
        None if seated_us == 0 => "waiting",
        None => "running",
        Some(Outcome::Finished(reason)) => reason.name(),
        Some(Outcome::Canceled(_)) => "canceled",
        Some(Outcome::Failed(error)) => error.code(),
    };
    let waited_until = [seated_us, ended_us].into_iter().find(|us| *us > 0).unwrap_or(now_us);
    json!({
        "id": task.spec.task_id.to_string(),
        "state": state,
        "priority": task.spec.priority.name(),
        "tokens_in": task.prompt.len(),
        "tokens_out": task.times.tokens_out.load(Relaxed),
        "queue_ms": waited_until.saturating_sub(task.accepted_us) as f64 / 1000.0,
    })
}

/// POST /api/tasks/{id}/cancel.
///
/// # Errors
///
/// `NotFound` for a task that is not known.
pub(super) async fn cancel(call: &Call<'_>, id: &str) -> Result<Response, Refusal> {
    Ok(data::cancel_task(call.state, id, call.wake).await?)
}
