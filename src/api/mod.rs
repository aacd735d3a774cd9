//! The wire, on top of the services: one module per group of routes.

pub mod artifacts;
pub mod control;
pub mod data;
pub mod observability;
mod tape;
pub mod types;

use std::sync::Arc;

use crate::domain::error::OrchestratorError;
use crate::infra::reactor::{Wake, oneshot};
use crate::state::AppState;

/// Runs a job on a helper thread and waits for its answer without holding the reactor up.
///
/// # Errors
///
/// When the helpers have too much to do, or the job panicked.
pub async fn on_helper<T: Send + 'static>(
    state: &Arc<AppState>,
    wake: &Wake,
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<T, OrchestratorError> {
    let (sender, receiver) = oneshot(&state.hub, wake.address());
    let handed = state.helpers.run(move || sender.send(job()));
    if handed.is_err() {
        return Err(OrchestratorError::AdmissionReject {
            message: "the server has too many long prompts or disk accesses under way: try again".into(),
            policy_label: "helpers-busy",
            retry_after_ms: Some(100),
        });
    }
    let answer = receiver.recv(wake).await;
    answer.ok_or_else(|| OrchestratorError::Internal("a helper failed at this request: see the log".into()))
}
