//! The gateway's routes, as one table.

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    ChatCompletions,
    Completions,
    Embeddings,
    Responses,
    Response,
    CancelResponse,
    Messages,
    CountTokens,
    Models,
    Model,
    Tokenize,
    Detokenize,
    ApplyTemplate,
    Page,
    Status,
    CancelTask,
    Live,
    Ready,
    Metrics,
}

impl Route {
    /// Needs no key: what load balancers and Prometheus ask, and the page, which shows nothing without one.
    pub fn is_open(self) -> bool {
        matches!(self, Route::Page | Route::Live | Route::Ready | Route::Metrics)
    }
}

/// `:id` takes any one segment; a path ending in `/*` takes one more or several: names of models have slashes.
const ROUTES: &[(&str, &str, Route)] = &[
    ("POST", "/v1/chat/completions", Route::ChatCompletions),
    ("POST", "/v1/completions", Route::Completions),
    ("POST", "/v1/embeddings", Route::Embeddings),
    ("POST", "/v1/responses", Route::Responses),
    ("POST", "/v1/responses/:id/cancel", Route::CancelResponse),
    ("GET", "/v1/responses/:id", Route::Response),
    ("POST", "/v1/messages", Route::Messages),
    ("POST", "/v1/messages/count_tokens", Route::CountTokens),
    ("GET", "/v1/models", Route::Models),
    ("GET", "/v1/models/*", Route::Model),
    ("POST", "/tokenize", Route::Tokenize),
    ("POST", "/detokenize", Route::Detokenize),
    ("POST", "/apply-template", Route::ApplyTemplate),
    ("GET", "/", Route::Page),
    ("GET", "/api/status", Route::Status),
    ("POST", "/api/tasks/:id/cancel", Route::CancelTask),
    ("GET", "/health", Route::Live),
    ("GET", "/health/live", Route::Live),
    ("GET", "/healthz", Route::Live),
    ("GET", "/livez", Route::Live),
    ("GET", "/health/ready", Route::Ready),
    ("GET", "/readyz", Route::Ready),
    ("GET", "/metrics", Route::Metrics),
];

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Match<'a> {
    /// The route, and what stood in the place of `*`.
    Found(Route, &'a str),
    /// The path is known, the method is not; `Allow` names the one that is.
    MethodNotAllowed(&'static str),
    NotFound,
}

/// Finds the route of a request. HEAD goes where GET goes.
pub(super) fn find<'a>(method: &str, path: &'a str) -> Match<'a> {
    let method = if method == "HEAD" { "GET" } else { method };
    let rest = |pattern: &str| match (pattern.strip_suffix('*'), pattern.split_once(":id")) {
        (Some(start), _) => path.strip_prefix(start).filter(|rest| !rest.is_empty()),
        (None, Some((start, end))) => {
            let id = path.strip_prefix(start)?.strip_suffix(end)?;
            (!id.is_empty() && !id.contains('/')).then_some(id)
        }
        (None, None) => (pattern == path).then_some(""),
    };
    for (known, pattern, route) in ROUTES {
        if let Some(rest) = rest(pattern) {
            return match *known == method {
                true => Match::Found(*route, rest),
                false => Match::MethodNotAllowed(if *known == "GET" { "GET, HEAD" } else { "POST" }),
            };
        }
    }
    Match::NotFound
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_found_by_method_and_path() {
        for (method, path, wanted) in [
            ("POST", "/v1/chat/completions", Match::Found(Route::ChatCompletions, "")),
            ("GET", "/v1/models", Match::Found(Route::Models, "")),
            ("GET", "/v1/models/org/name", Match::Found(Route::Model, "org/name")),
            ("GET", "/v1/responses/resp_7", Match::Found(Route::Response, "resp_7")),
            ("POST", "/v1/responses/resp_7/cancel", Match::Found(Route::CancelResponse, "resp_7")),
            ("GET", "/v1/responses/resp_7/input_items", Match::NotFound),
            ("POST", "/v1/messages/count_tokens", Match::Found(Route::CountTokens, "")),
            ("HEAD", "/health", Match::Found(Route::Live, "")),
            ("GET", "/v1/chat/completions", Match::MethodNotAllowed("POST")),
            ("OPTIONS", "/v1/models", Match::MethodNotAllowed("GET, HEAD")),
            ("GET", "/v1/models/", Match::NotFound),
            ("POST", "/v1/tasks", Match::NotFound),
            ("POST", "/v1/chat/completions/", Match::NotFound),
        ] {
            assert_eq!(find(method, path), wanted, "{method} {path}");
        }
    }

    #[test]
    fn only_probes_metrics_and_the_page_are_open() {
        let open: Vec<&str> = ROUTES.iter().filter(|(_, _, route)| route.is_open()).map(|(_, path, _)| *path).collect();
        let closed = |p: &&str| p.starts_with("/v1/") || p.starts_with("/api/") || p.contains("token");
        assert!(!open.iter().any(closed), "{open:?}");
    }
}
