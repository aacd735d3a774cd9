//! Why a request is refused, in the words of the dialect it was asked in, and with the headers that make its client's
//! own retries do the right thing.

use serde_json::{Value, json};

use crate::api::types;
use crate::domain::error::OrchestratorError;
use crate::infra::http::{HttpError, Response};
use crate::state::AppState;

/// Whose error shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    OpenAi,
    Anthropic,
}

/// A refusal, and which field of the request it is about.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Refusal {
    error: OrchestratorError,
    param: Option<String>,
    /// Where the dialect has a name of its own.
    code: Option<&'static str>,
}

impl From<OrchestratorError> for Refusal {
    fn from(error: OrchestratorError) -> Refusal {
        // Messages about a field begin with its name; a path into it (`stop[0]`) is about the field.
        let param = match &error {
            OrchestratorError::InvalidParams(message) => {
                message.strip_prefix("field `").and_then(|rest| rest.split(['`', '.', '[']).next()).map(str::to_owned)
            }
            _ => None,
        };
        Refusal { error, param, code: None }
    }
}

impl Refusal {
    /// The request says something about `param` that cannot be done.
    pub fn field(param: &str, what: impl std::fmt::Display) -> Refusal {
        let error = OrchestratorError::InvalidParams(format!("field `{param}`: {what}"));
        Refusal { error, param: Some(param.to_owned()), code: None }
    }

    pub fn header(name: &str, what: impl std::fmt::Display) -> Refusal {
        let error = OrchestratorError::InvalidParams(format!("header `{name}`: {what}"));
        Refusal { error, param: Some(name.to_owned()), code: None }
    }

    pub fn no_such_model(message: String) -> Refusal {
        Refusal {
            error: OrchestratorError::NotFound(message),
            param: Some("model".into()),
            code: Some("model_not_found"),
        }
    }

    pub fn from_http(error: &HttpError, state: &AppState) -> Refusal {
        let limit_bytes = state.config.body_len_max;
        let error = match error.status() {
            413 => OrchestratorError::PayloadTooLarge { limit_bytes },
            431 => OrchestratorError::HeadersTooLarge { message: error.to_string() },
            503 => OrchestratorError::PoolUnavailable { message: error.to_string(), retry_after_ms: Some(1000) },
            status => OrchestratorError::MalformedRequest { status, message: error.to_string() },
        };
        error.into()
    }

    /// Names the field, where the error came from somewhere that does not know the dialect's fields.
    #[must_use]
    pub fn about(mut self, param: &str, code: &'static str) -> Refusal {
        self.param = Some(param.to_owned());
        self.code = Some(code);
        self
    }

    /// Adds what is legal.
    #[must_use]
    pub fn explained(mut self, what: &str) -> Refusal {
        if let OrchestratorError::InvalidParams(message) = &mut self.error {
            message.push_str("; ");
            message.push_str(what);
        }
        self
    }

    /// Names a field as the dialect does.
    #[must_use]
    pub fn renamed(mut self, ours: &str, theirs: &str) -> Refusal {
        if self.param.as_deref() == Some(ours) && ours != theirs {
            self.param = Some(theirs.to_owned());
            if let OrchestratorError::InvalidParams(message) = &mut self.error {
                *message = message.replacen(ours, theirs, 1);
            }
        }
        self
    }

    pub fn param(&self) -> Option<&str> {
        self.param.as_deref()
    }

    #[cfg(test)]
    pub fn error(&self) -> &OrchestratorError {
        &self.error
    }

    fn status(&self, state: &AppState) -> u16 {
        match &self.error {
            // Clients of these dialects know one status for keys, and that a 429 is about load and not about them.
            OrchestratorError::Forbidden => 401,
            OrchestratorError::DeadlineUnmet { .. } => 429,
            error => error.status(state.config.overload_status),
        }
    }

    fn code(&self) -> String {
        if let Some(code) = self.code {
            return code.to_owned();
        }
        match &self.error {
            OrchestratorError::Unauthorized | OrchestratorError::Forbidden => "invalid_api_key".into(),
            OrchestratorError::InvalidParams(_) | OrchestratorError::MalformedRequest { .. } => "invalid_value".into(),
            OrchestratorError::AdmissionReject { policy_label: "reject", .. } => "queue_full".into(),
            OrchestratorError::AdmissionReject { retry_after_ms: None, .. } => "insufficient_quota".into(),
            error => error.code().to_ascii_lowercase(),
        }
    }

    /// The error as the dialect's clients read it, in an answer or in the middle of a stream.
    pub fn body(&self, shape: Shape, request_id: &str, state: &AppState) -> Value {
        let status = self.status(state);
        let message = match &self.error {
            OrchestratorError::Unauthorized | OrchestratorError::Forbidden => {
                "the API key is missing or is none of this server's: send Authorization: Bearer KEY".to_owned()
            }
            error => error.to_string(),
        };
        match shape {
            Shape::OpenAi => json!({"error": {
                "message": message,
                "type": openai_type(status),
                "param": self.param,
                "code": self.code(),
            }}),
            Shape::Anthropic => json!({
                "type": "error",
                "error": {"type": anthropic_type(status), "message": message},
                "request_id": request_id,
            }),
        }
    }

    pub fn response(&self, shape: Shape, request_id: &str, state: &AppState) -> Response {
        let mut response = types::json(self.status(state), &self.body(shape, request_id, state));
        // The SDKs ask this header first, and would try a 409 or a 429 again on their own.
        response = response.header("x-should-retry", if self.error.retriable() { "true" } else { "false" });
        if let Some(ms) = self.error.retry_after_ms() {
            let ms = ms.max(1);
            response = response.header("Retry-After", ms.div_ceil(1000).to_string());
            response = response.header("retry-after-ms", ms.to_string());
        }
        if let OrchestratorError::MethodNotAllowed { allow } = &self.error {
            response = response.header("Allow", *allow);
        }
        response
    }
}

fn openai_type(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        429 | 529 => "rate_limit_error",
        500.. => "server_error",
        _ => "invalid_request_error",
    }
}

fn anthropic_type(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 | 529 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_its_field_and_says_whether_to_retry() {
        let state = AppState::new().unwrap();
        let full = OrchestratorError::AdmissionReject {
            message: "the queue is full".into(),
            policy_label: "reject",
            retry_after_ms: Some(1500),
        };
        let spent = OrchestratorError::AdmissionReject {
            message: "the budget is spent".into(),
            policy_label: "session-tokens-budget",
            retry_after_ms: None,
        };
        let wrong = OrchestratorError::InvalidParams("field `stop[0]`: must be text".into());
        for (error, status, kind, param, code, retry) in [
            (full, 429, "rate_limit_error", None, "queue_full", "true"),
            (spent, 429, "rate_limit_error", None, "insufficient_quota", "false"),
            (wrong, 400, "invalid_request_error", Some("stop"), "invalid_value", "false"),
            (OrchestratorError::Forbidden, 401, "authentication_error", None, "invalid_api_key", "false"),
            (OrchestratorError::Internal("x".into()), 500, "server_error", None, "internal", "true"),
        ] {
            let refusal = Refusal::from(error);
            let response = refusal.response(Shape::OpenAi, "r", &state);
            let body: Value = serde_json::from_slice(&response.body).unwrap();
            assert_eq!((response.status, body["error"]["type"].as_str()), (status, Some(kind)));
            assert_eq!((body["error"]["param"].as_str(), body["error"]["code"].as_str()), (param, Some(code)));
            assert_eq!(response.header_value("x-should-retry"), Some(retry), "{code}");
            let told = (response.header_value("Retry-After"), response.header_value("retry-after-ms"));
            assert_eq!(told, if code == "queue_full" { (Some("2"), Some("1500")) } else { (None, None) });
            assert_eq!(refusal.body(Shape::Anthropic, "r", &state)["type"], "error");
        }
    }
}
