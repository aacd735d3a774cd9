//! What every request passes on its way in, and every answer on its way out.

use super::router::{Match, Route};
use crate::api::types::{self, correlation_id_from, require_api_key};
use crate::domain::error::OrchestratorError;
use crate::infra::http::{HttpError, RequestHead, Response};
use crate::state::AppState;

/// Puts the request's correlation id, or a fresh one, on an answer.
pub fn correlation_id_layer(response: Response, correlation_id: &str) -> Response {
    response.header("X-Correlation-Id", correlation_id)
}

/// Lets a request pass that has a valid key, or that goes to `/metrics`.
///
/// # Errors
///
/// `Unauthorized` without a key and `Forbidden` with a wrong one, for unknown paths too: who has no key does
/// not learn what is here.
pub fn api_key_layer(state: &AppState, head: &RequestHead<'_>, found: &Match<'_>) -> Result<(), OrchestratorError> {
    if matches!(found, Match::Found(Route::Metrics, _)) || head.path() == "/metrics" {
        return Ok(());
    }
    require_api_key(head, &state.keys).map(drop)
}

/// The answer for an error, with everything that an answer has.
pub fn error_layer(state: &AppState, error: &OrchestratorError, correlation_id: &str) -> Response {
    if let OrchestratorError::Internal(message) = error {
        tracing::error!(correlation_id, message, "internal error");
    }
    correlation_id_layer(types::error_response(error, state.error_context()), correlation_id)
}

/// The answer for what never became a request.
pub fn refusal_layer(state: &AppState, error: &HttpError, head: Option<&RequestHead<'_>>) -> Response {
    let correlation_id = correlation_id_from(head);
    let error = match error.status() {
        413 => OrchestratorError::PayloadTooLarge { limit_bytes: state.config.body_len_max },
        431 => OrchestratorError::HeadersTooLarge { message: error.to_string() },
        503 => OrchestratorError::AdmissionReject {
            message: error.to_string(),
            policy_label: "connections",
            retry_after_ms: Some(1000),
        },
        status => OrchestratorError::MalformedRequest { status, message: error.to_string() },
    };
    error_layer(state, &error, &correlation_id)
}
