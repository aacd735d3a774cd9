//! What Prometheus reads.

use std::sync::Arc;

use super::on_helper;
use crate::domain::error::OrchestratorError;
use crate::infra::http::Response;
use crate::infra::reactor::Wake;
use crate::state::AppState;

/// GET /metrics: Prometheus text format 0.0.4. Needs no key. The text is made on a helper thread: no stream waits
/// for it, however often it is asked for.
///
/// # Errors
///
/// When the helpers have too much to do.
pub async fn metrics_endpoint(state: &Arc<AppState>, wake: &Wake) -> Result<Response, OrchestratorError> {
    let shared = state.clone();
    let text = on_helper(state, wake, move || {
        shared.pools.iter().for_each(|p| p.queue.publish_depth());
        shared.metrics.render(&shared.reactor_figures())
    });
    let response = Response::new(200).header("Content-Type", "text/plain; version=0.0.4; charset=utf-8");
    Ok(response.body(text.await?.into_bytes()))
}
