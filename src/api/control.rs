//! Capabilities, health, drain and reload.

use std::sync::Arc;

use serde_json::json;

use super::types::{self, DrainRequest, ReloadRequest, from_json};
use crate::domain::error::OrchestratorError;
use crate::infra::http::Response;
use crate::infra::reactor::{Wake, oneshot};
use crate::metrics::Verification;
use crate::services::capabilities;
use crate::services::pool::{self, Control, Pool, PoolState};
use crate::state::AppState;

/// GET /v1/capabilities: what this process can really do now.
pub fn get_capabilities(state: &AppState) -> Response {
    types::json(200, &capabilities::snapshot(state.pools.iter().map(|p| &**p)))
}

/// GET /v1/pools/:id/health.
///
/// # Errors
///
/// `NotFound` for an id that is no pool's.
pub fn get_pool_health(state: &AppState, id: &str) -> Result<Response, OrchestratorError> {
    let pool = state.pool(id)?;
    let metrics = &state.metrics;
    let latencies = pool.latencies.lock().expect("nothing panics under this lock");
    let (first, between) = (&latencies.first_token_us, &latencies.between_tokens_us);
    let mut body = json!({
        "live": pool.state() != PoolState::Stopped,
        "ready": pool.state() == PoolState::Ready && !pool.is_draining(),
        "draining": pool.is_draining(),
        "metrics": {
            "queue_depth": pool.queue.depth(),
            "slots_max": pool.rules.slots_max,
            "sequences_running": metrics.sequences_running.value(),
            "kv_blocks_used": metrics.kv_blocks_used.value(),
            "kv_blocks_max": metrics.kv_blocks_max.value(),
            "tokens_out": metrics.tokens_out.value(),
            "first_token_us_p50": first.value_at_quantile(0.5),
            "first_token_us_p99": first.value_at_quantile(0.99),
            "between_tokens_us_p50": between.value_at_quantile(0.5),
            "between_tokens_us_p99": between.value_at_quantile(0.99),
            "engine_restarts": metrics.engine_restarts.value(),
        },
        "model": pool.loaded().map(|l| l.model_ref.clone()),
    });
    if let Some(error) = pool.last_error() {
        body["last_error"] = error.into();
    }
    Ok(types::json(200, &body))
}

/// POST /v1/pools/:id/drain: 202. Nothing new is admitted; what runs may finish until the deadline.
///
/// # Errors
///
/// `NotFound` for an id that is no pool's, `InvalidParams` for another shape.
pub fn drain_pool(state: &AppState, id: &str, body: &mut [u8]) -> Result<Response, OrchestratorError> {
    let pool = state.pool(id)?;
    let request: DrainRequest = from_json(body)?;
    let until_us = state.clock.now_us().saturating_add(request.deadline_ms.saturating_mul(1000));
    pool.drain(until_us);
    tracing::info!(pool_id = id, deadline_ms = request.deadline_ms, "draining");
    Ok(types::json(202, &json!({"pool_id": id, "draining": true, "deadline_ms": request.deadline_ms})))
}

/// POST /v1/pools/:id/reload: 200 once the new model serves; 409, and nothing has changed, if it cannot.
///
/// # Errors
///
/// `NotFound` for an id that is no pool's, `InvalidParams` for another shape, `ReloadConflict` otherwise.
pub async fn reload_pool(
    state: &Arc<AppState>,
    id: &str,
    body: &mut [u8],
    wake: &Wake,
) -> Result<Response, OrchestratorError> {
    let pool = state.pool(id)?.clone();
    let request: ReloadRequest = from_json(body)?;
    let model_ref = request.new_model_ref;
    let conflict = |why: String| {
        tracing::warn!(pool_id = pool.id, why, "reload refused");
        pool.set_last_error(Some(why.clone()));
        let serves = pool.loaded().map_or_else(|| "nothing".to_owned(), |l| l.model_ref.clone());
        OrchestratorError::ReloadConflict(format!("{why}; pool {id} serves {serves} as before"))
    };
    let path = match pool.resolve(&model_ref) {
        Ok(path) => path,
        Err(why) => {
            state.metrics.verified(Verification::Missing);
            return Err(conflict(why));
        }
    };
    if !pool.begin_reload() {
        state.metrics.verified(Verification::Conflict);
        return Err(conflict("another reload is under way".into()));
    }
    let (sender, receiver) = oneshot(&state.hub, wake.address());
    let worker = pool.clone();
    // A model takes seconds to load: it gets a thread of its own, not a helper that others wait for.
    let spawned = std::thread::Builder::new().name("reload".into()).spawn(move || {
        let outcome = load_and_install(&worker, path.as_deref());
        worker.end_reload();
        sender.send(outcome);
    });
    if let Err(error) = spawned {
        pool.end_reload();
        return Err(conflict(format!("no thread could be started: {error}")));
    }
    match receiver.recv(wake).await {
        Some(Ok(served)) => Ok(types::json(200, &json!({"pool_id": id, "model": served, "ready": true}))),
        Some(Err(why)) => Err(conflict(why)),
        None => Err(conflict("the loader failed: see the log".into())),
    }
}

/// Loads beside the old model, then has the engine thread switch between two steps.
fn load_and_install(pool: &Arc<Pool>, path: Option<&std::path::Path>) -> Result<String, String> {
    let prior = pool.gate.desk().board.speed().clone();
    let loading = std::panic::AssertUnwindSafe(|| pool::load(path, &pool.rules, pool.engine_version, Some(prior)));
    let loaded = std::panic::catch_unwind(loading)
        .unwrap_or_else(|_| Err((Verification::Corrupt, "the loader panicked at this file: see the log".into())));
    let model = loaded.map_err(|(verification, why)| {
        pool.metrics.verified(verification);
        why
    })?;
    pool.metrics.verified(Verification::Loaded);
    let name = model.loaded.model_ref.clone();
    let (sender, receiver) = std::sync::mpsc::channel();
    let done = Box::new(move || {
        let _ = sender.send(());
    });
    if !pool.send(Control::Install { model: Box::new(model), done }) {
        return Err("the engine has too many messages waiting".into());
    }
    receiver.recv().map_err(|_| "the engine stopped before it took the model over".to_owned())?;
    tracing::info!(pool_id = pool.id, model = name, "reloaded");
    Ok(name)
}
