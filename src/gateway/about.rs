//! What is served, and whether it is alive and ready: models and probes.

use serde_json::{Value, json};

use super::refusal::Refusal;
use super::{admit, tools};
use crate::api::types;
use crate::infra::http::Response;
use crate::services::pool::{Loaded, PoolState};
use crate::state::AppState;

/// GET /v1/models: the model that is served, once it is loaded.
pub(super) fn models(state: &AppState) -> Response {
    let data: Vec<Value> = state.pools.iter().filter_map(|p| p.loaded()).map(|l| card(&l)).collect();
    types::json(200, &json!({"object": "list", "data": data}))
}

/// GET /v1/models/{id}.
///
/// # Errors
///
/// When another one is served.
pub(super) fn model(state: &AppState, id: &str) -> Result<Response, Refusal> {
    Ok(types::json(200, &card(&*admit::model(state, id)?)))
}

fn card(loaded: &Loaded) -> Value {
    let info = &loaded.info;
    json!({
        "id": loaded.model_ref,
        "object": "model",
        "created": loaded.loaded_unix_ms / 1000,
        "owned_by": "orchestratord",
        "max_model_len": info.context_length,
        "meta": {
            "architecture": info.architecture,
            "parameters": info.parameter_count,
            "quantization": info.quantization,
            "digest": loaded.model.digest_if_known(),
            "vocab_len": loaded.model.tokenizer().vocab_len(),
            "tool_calls": tools::family_of(loaded).map(|f| f.name),
            "chat_template": loaded.model.chat_template().is_some(),
        },
    })
}

/// 200 as long as the engine thread has not stopped.
pub(super) fn live(state: &AppState) -> Response {
    let live = state.pools.iter().all(|p| p.state() != PoolState::Stopped);
    health(live, if live { "ok" } else { "the engine has stopped" })
}

/// 200 when a task would be taken now.
pub(super) fn ready(state: &AppState) -> Response {
    let reason = state.pools.iter().find_map(|p| match p.state() {
        _ if p.is_draining() => Some("the pool is draining"),
        PoolState::Ready => None,
        PoolState::Loading => Some("the model is loading"),
        PoolState::Unready => Some("the engine is being rebuilt"),
        PoolState::Stopped => Some("the engine has stopped"),
    });
    health(reason.is_none(), reason.unwrap_or("ok"))
}

fn health(is_well: bool, status: &str) -> Response {
    types::json(if is_well { 200 } else { 503 }, &json!({"status": status}))
}
