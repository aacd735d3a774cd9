//! What this process can really do now.

use serde_json::{Value, json};

use super::pool::{Pool, PoolState};
use crate::domain::task::Workload;

/// Version of the wire contract.
pub const API_VERSION: &str = "1.0.0";

/// What models of the architectures that are read can do; none of them ranks.
pub const WORKLOADS: [Workload; 2] = [Workload::Completion, Workload::Embedding];

/// GET /v1/capabilities: the version and one entry per pool's engine. Engines that are not here are not listed.
pub fn snapshot<'a>(pools: impl Iterator<Item = &'a Pool>) -> Value {
    json!({"api_version": API_VERSION, "engines": pools.map(engine).collect::<Vec<_>>()})
}

fn engine(pool: &Pool) -> Value {
    let loaded = pool.loaded();
    let kv_cells = pool.rules.kv_blocks_max * orchestratord_engine::BLOCK_LEN;
    let ctx_max = loaded.as_ref().map_or(0, |l| l.info.context_length as usize).min(kv_cells);
    let models: Vec<Value> = loaded.iter().map(|l| model(l, pool)).collect();
    json!({
        "engine": pool.engine,
        "engine_version": pool.engine_version,
        "pool_id": pool.id,
        "ctx_max": ctx_max,
        "concurrency": pool.rules.slots_max,
        "supported_workloads": WORKLOADS.map(Workload::name),
        "models": models,
        "features": [
            "streaming", "resume", "cancel", "sessions", "prefix_cache", "chunked_prefill", "preemption",
            "deterministic", "chat_template", "stop_strings", "sampling", "penalties", "logprobs", "response_format",
            "transcripts", "reload", "drain",
        ],
        "rate_limits": {
            "queue_capacity": pool.queue.capacity(),
            "step_rows_max": pool.rules.step_rows_max,
            "kv_cells": kv_cells,
        },
    })
}

fn model(loaded: &super::pool::Loaded, pool: &Pool) -> Value {
    let info = &loaded.info;
    let mut model = json!({
        "model_ref": loaded.model_ref,
        "architecture": info.architecture,
        "parameters": info.parameter_count,
        "quantization": info.quantization,
        "ctx_max": info.context_length,
        "embedding_length": info.embedding_length,
        "ready": pool.state() == PoolState::Ready,
    });
    // It is being computed at first, and nobody here may wait for it.
    if let Some(digest) = loaded.model.digest_if_known() {
        model["digest"] = digest.into();
    }
    model
}
