//! What Prometheus reads.

use crate::infra::http::Response;
use crate::state::AppState;

/// GET /metrics: Prometheus text format 0.0.4. Needs no key.
pub fn metrics_endpoint(state: &AppState) -> Response {
    state.pools.iter().for_each(|p| p.queue.publish_depth());
    let text = state.metrics.render(&state.reactor_figures());
    Response::new(200).header("Content-Type", "text/plain; version=0.0.4; charset=utf-8").body(text.into_bytes())
}
