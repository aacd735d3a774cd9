//! Why a request or a task fails, and what its client can do about it.

use std::fmt;

/// One variant per thing that somebody does differently.
///
/// `Display` is the envelope's `message`: what was wrong, and what to do.
#[derive(Clone, Debug, PartialEq)]
pub enum OrchestratorError {
    /// A field is missing, malformed or outside what this model can do.
    InvalidParams(String),
    /// The deadline cannot be met, or has passed.
    DeadlineUnmet {
        message: String,
    },
    /// No API key was sent.
    Unauthorized,
    /// The API key is not one of ours.
    Forbidden,
    NotFound(String),
    MethodNotAllowed {
        allow: &'static str,
    },
    /// A reload was refused; the old model serves on.
    ReloadConflict(String),
    PayloadTooLarge {
        limit_bytes: usize,
    },
    HeadersTooLarge {
        message: String,
    },
    /// What never became a request: its status is the codec's.
    MalformedRequest {
        status: u16,
        message: String,
    },
    /// The queue is full under policy `reject`, or a budget is spent.
    AdmissionReject {
        message: String,
        policy_label: &'static str,
        retry_after_ms: Option<u64>,
    },
    /// Evicted for a newer task under policy `drop-lru`, or nothing could be evicted.
    QueueFullDropLru {
        message: String,
        retry_after_ms: Option<u64>,
    },
    /// The task can never fit, or every slot is held by what may not be preempted.
    ReplicaExhausted {
        message: String,
        retry_after_ms: Option<u64>,
    },
    /// The model is still loading, or the engine is being rebuilt.
    PoolUnready {
        message: String,
        retry_after_ms: u64,
    },
    /// Draining, stopped, or no pool serves what was asked for.
    PoolUnavailable {
        message: String,
        retry_after_ms: Option<u64>,
    },
    /// A decode step exceeded the watchdog.
    DecodeTimeout {
        timeout_ms: u64,
    },
    /// The engine was restarted under this task.
    WorkerReset {
        message: String,
    },
    ModelDeprecated(String),
    UntrustedArtifact(String),
    /// An engine fault or a bug; the server lives on.
    Internal(String),
}

use OrchestratorError::*;

impl OrchestratorError {
    /// The wire's name for this failure.
    pub const fn code(&self) -> &'static str {
        match self {
            InvalidParams(_) | MalformedRequest { .. } => "INVALID_PARAMS",
            DeadlineUnmet { .. } => "DEADLINE_UNMET",
            Unauthorized => "UNAUTHORIZED",
            Forbidden => "FORBIDDEN",
            NotFound(_) => "NOT_FOUND",
            MethodNotAllowed { .. } => "METHOD_NOT_ALLOWED",
            ReloadConflict(_) => "RELOAD_CONFLICT",
            PayloadTooLarge { .. } => "PAYLOAD_TOO_LARGE",
            HeadersTooLarge { .. } => "HEADERS_TOO_LARGE",
            AdmissionReject { .. } => "ADMISSION_REJECT",
            QueueFullDropLru { .. } => "QUEUE_FULL_DROP_LRU",
            ReplicaExhausted { .. } => "REPLICA_EXHAUSTED",
            PoolUnready { .. } => "POOL_UNREADY",
            PoolUnavailable { .. } => "POOL_UNAVAILABLE",
            DecodeTimeout { .. } => "DECODE_TIMEOUT",
            WorkerReset { .. } => "WORKER_RESET",
            ModelDeprecated(_) => "MODEL_DEPRECATED",
            UntrustedArtifact(_) => "UNTRUSTED_ARTIFACT",
            Internal(_) => "INTERNAL",
        }
    }

    /// HTTP status. `overload_status` is what the operator wants for a full queue (429 by default).
    pub const fn status(&self, overload_status: u16) -> u16 {
        match self {
            InvalidParams(_) | DeadlineUnmet { .. } | UntrustedArtifact(_) => 400,
            Unauthorized => 401,
            Forbidden => 403,
            NotFound(_) => 404,
            MethodNotAllowed { .. } => 405,
            ReloadConflict(_) => 409,
            PayloadTooLarge { .. } => 413,
            HeadersTooLarge { .. } => 431,
            MalformedRequest { status, .. } => *status,
            // A spent budget is no overload: whoever is behind a proxy would be sent to the next replica in vain.
            AdmissionReject { retry_after_ms: None, .. } => 429,
            AdmissionReject { .. } | QueueFullDropLru { .. } => overload_status,
            ReplicaExhausted { .. }
            | PoolUnready { .. }
            | PoolUnavailable { .. }
            | DecodeTimeout { .. }
            | WorkerReset { .. }
            | ModelDeprecated(_) => 503,
            Internal(_) => 500,
        }
    }

    /// True when the very same request may succeed later.
    pub const fn retriable(&self) -> bool {
        match self {
            AdmissionReject { retry_after_ms, .. }
            | QueueFullDropLru { retry_after_ms, .. }
            | ReplicaExhausted { retry_after_ms, .. }
            | PoolUnavailable { retry_after_ms, .. } => retry_after_ms.is_some(),
            PoolUnready { .. } | DecodeTimeout { .. } | WorkerReset { .. } | Internal(_) => true,
            _ => false,
        }
    }

    /// When a retry has a chance, milliseconds from now.
    pub const fn retry_after_ms(&self) -> Option<u64> {
        match self {
            AdmissionReject { retry_after_ms, .. }
            | QueueFullDropLru { retry_after_ms, .. }
            | ReplicaExhausted { retry_after_ms, .. }
            | PoolUnavailable { retry_after_ms, .. } => *retry_after_ms,
            PoolUnready { retry_after_ms, .. } => Some(*retry_after_ms),
            _ => None,
        }
    }

    /// Which rule refused the task.
    pub const fn policy_label(&self) -> Option<&'static str> {
        match self {
            AdmissionReject { policy_label, .. } => Some(policy_label),
            QueueFullDropLru { .. } => Some("drop-lru"),
            _ => None,
        }
    }

    /// True when the failure has to do with an engine, so that the envelope names it.
    pub const fn concerns_engine(&self) -> bool {
        !matches!(
            self,
            Unauthorized
                | Forbidden
                | NotFound(_)
                | MethodNotAllowed { .. }
                | PayloadTooLarge { .. }
                | HeadersTooLarge { .. }
                | MalformedRequest { .. }
                | UntrustedArtifact(_)
        )
    }
}

impl fmt::Display for OrchestratorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InvalidParams(m) | NotFound(m) | ReloadConflict(m) | ModelDeprecated(m) | UntrustedArtifact(m)
            | Internal(m) => f.write_str(m),
            DeadlineUnmet { message }
            | HeadersTooLarge { message }
            | MalformedRequest { message, .. }
            | AdmissionReject { message, .. }
            | QueueFullDropLru { message, .. }
            | ReplicaExhausted { message, .. }
            | PoolUnready { message, .. }
            | PoolUnavailable { message, .. }
            | WorkerReset { message } => f.write_str(message),
            Unauthorized => f.write_str("this route needs an API key: send it in the X-API-Key header"),
            Forbidden => f.write_str("this API key is not valid here: check the X-API-Key header"),
            MethodNotAllowed { allow } => write!(f, "this route does not take that method: use {allow}"),
            PayloadTooLarge { limit_bytes } => {
                write!(f, "the body is over the limit of {limit_bytes} bytes: send less, or raise body_len_max")
            }
            DecodeTimeout { timeout_ms } => {
                write!(f, "a decode step took longer than {timeout_ms} ms and the task was given up: try again")
            }
        }
    }
}

impl std::error::Error for OrchestratorError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_error() -> Vec<(OrchestratorError, &'static str, u16)> {
        let m = || "m".to_owned();
        vec![
            (InvalidParams(m()), "INVALID_PARAMS", 400),
            (MalformedRequest { status: 408, message: m() }, "INVALID_PARAMS", 408),
            (DeadlineUnmet { message: m() }, "DEADLINE_UNMET", 400),
            (Unauthorized, "UNAUTHORIZED", 401),
            (Forbidden, "FORBIDDEN", 403),
            (NotFound(m()), "NOT_FOUND", 404),
            (MethodNotAllowed { allow: "GET" }, "METHOD_NOT_ALLOWED", 405),
            (ReloadConflict(m()), "RELOAD_CONFLICT", 409),
            (PayloadTooLarge { limit_bytes: 1 }, "PAYLOAD_TOO_LARGE", 413),
            (HeadersTooLarge { message: m() }, "HEADERS_TOO_LARGE", 431),
            (
                AdmissionReject { message: m(), policy_label: "reject", retry_after_ms: Some(1) },
                "ADMISSION_REJECT",
                429,
            ),
            (QueueFullDropLru { message: m(), retry_after_ms: Some(1) }, "QUEUE_FULL_DROP_LRU", 429),
            (ReplicaExhausted { message: m(), retry_after_ms: None }, "REPLICA_EXHAUSTED", 503),
            (PoolUnready { message: m(), retry_after_ms: 1 }, "POOL_UNREADY", 503),
            (PoolUnavailable { message: m(), retry_after_ms: None }, "POOL_UNAVAILABLE", 503),
            (DecodeTimeout { timeout_ms: 1 }, "DECODE_TIMEOUT", 503),
            (WorkerReset { message: m() }, "WORKER_RESET", 503),
            (ModelDeprecated(m()), "MODEL_DEPRECATED", 503),
            (UntrustedArtifact(m()), "UNTRUSTED_ARTIFACT", 400),
            (Internal(m()), "INTERNAL", 500),
        ]
    }

    #[test]
    fn every_error_maps_to_its_code_and_status() {
        for (error, code, status) in every_error() {
            assert_eq!(error.code(), code);
            assert_eq!(error.status(429), status, "{code}");
            assert!(!error.to_string().is_empty(), "{code}");
        }
    }

    #[test]
    fn the_overload_status_is_the_operators() {
        let full = AdmissionReject { message: String::new(), policy_label: "reject", retry_after_ms: Some(5) };
        assert_eq!(full.status(529), 529);
        assert_eq!(Internal(String::new()).status(529), 500);
    }

    #[test]
    fn a_spent_budget_is_no_overload() {
        let spent = AdmissionReject { message: String::new(), policy_label: "session-tokens", retry_after_ms: None };
        assert_eq!(spent.status(503), 429);
    }

    #[test]
    fn only_what_may_succeed_later_is_retriable() {
        let spent = AdmissionReject { message: String::new(), policy_label: "session-tokens", retry_after_ms: None };
        assert!(!spent.retriable());
        assert!(!InvalidParams(String::new()).retriable());
        let full = QueueFullDropLru { message: String::new(), retry_after_ms: Some(7) };
        assert!(full.retriable());
        assert_eq!(full.retry_after_ms(), Some(7));
    }
}
