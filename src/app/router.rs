//! The twelve routes, as one table.

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    GetCapabilities,
    GetPoolHealth,
    DrainPool,
    ReloadPool,
    CreateTask,
    StreamTask,
    CancelTask,
    GetSession,
    DeleteSession,
    CreateArtifact,
    GetArtifact,
    Metrics,
}

struct Row {
    method: &'static str,
    /// Segments between slashes; `:id` takes any one segment that is not empty.
    path: &'static [&'static str],
    route: Route,
}

const fn row(method: &'static str, path: &'static [&'static str], route: Route) -> Row {
    Row { method, path, route }
}

const ROUTES: [Row; 12] = [
    row("GET", &["v1", "capabilities"], Route::GetCapabilities),
    row("GET", &["v1", "pools", ":id", "health"], Route::GetPoolHealth),
    row("POST", &["v1", "pools", ":id", "drain"], Route::DrainPool),
    row("POST", &["v1", "pools", ":id", "reload"], Route::ReloadPool),
    row("POST", &["v1", "tasks"], Route::CreateTask),
    row("GET", &["v1", "tasks", ":id", "stream"], Route::StreamTask),
    row("POST", &["v1", "tasks", ":id", "cancel"], Route::CancelTask),
    row("GET", &["v1", "sessions", ":id"], Route::GetSession),
    row("DELETE", &["v1", "sessions", ":id"], Route::DeleteSession),
    row("POST", &["v1", "artifacts"], Route::CreateArtifact),
    row("GET", &["v1", "artifacts", ":id"], Route::GetArtifact),
    row("GET", &["metrics"], Route::Metrics),
];

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
pub enum Match<'a> {
    /// The route, and what stood in the place of `:id`.
    Found(Route, &'a str),
    /// The path is known, the method is not; `Allow` names those that are.
    MethodNotAllowed(&'static str),
    NotFound,
}

/// No path of the table has more segments.
const SEGMENTS_MAX: usize = 4;

/// Finds the route of a request. HEAD goes where GET goes.
pub fn find<'a>(method: &str, path: &'a str) -> Match<'a> {
    let mut segments = [""; SEGMENTS_MAX];
    let mut count = 0;
    let Some(rest) = path.strip_prefix('/') else { return Match::NotFound };
    for segment in rest.as_bytes().split(|b| *b == b'/') {
        if count == SEGMENTS_MAX {
            return Match::NotFound;
        }
        segments[count] = std::str::from_utf8(segment).expect("a slash parts whole characters");
        count += 1;
    }
    let segments = &segments[..count];
    let method = if method == "HEAD" { "GET" } else { method };
    let mut allowed = [false; 3];
    for row in ROUTES.iter().filter(|row| row.path.len() == count) {
        let Some(id) = matches(row.path, segments) else { continue };
        if row.method == method {
            return Match::Found(row.route, id);
        }
        let index = ["GET", "POST", "DELETE"].iter().position(|m| *m == row.method);
        allowed[index.expect("the table has no other method")] = true;
    }
    match allowed {
        [true, false, false] => Match::MethodNotAllowed("GET, HEAD"),
        [false, true, false] => Match::MethodNotAllowed("POST"),
        [true, false, true] => Match::MethodNotAllowed("GET, HEAD, DELETE"),
        [false, false, false] => Match::NotFound,
        other => unreachable!("no path of the table has the methods {other:?}"),
    }
}

/// The text in the place of `:id`, empty where the pattern has none.
fn matches<'a>(pattern: &[&str], segments: &[&'a str]) -> Option<&'a str> {
    let mut id = "";
    for (expected, segment) in pattern.iter().zip(segments) {
        match *expected {
            ":id" if !segment.is_empty() => id = segment,
            ":id" => return None,
            literal if literal != *segment => return None,
            _ => {}
        }
    }
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_twelve_routes_are_found() {
        for (method, path, route, id) in [
            ("GET", "/v1/capabilities", Route::GetCapabilities, ""),
            ("GET", "/v1/pools/default/health", Route::GetPoolHealth, "default"),
            ("POST", "/v1/pools/default/drain", Route::DrainPool, "default"),
            ("POST", "/v1/pools/default/reload", Route::ReloadPool, "default"),
            ("POST", "/v1/tasks", Route::CreateTask, ""),
            ("GET", "/v1/tasks/7/stream", Route::StreamTask, "7"),
            ("POST", "/v1/tasks/7/cancel", Route::CancelTask, "7"),
            ("GET", "/v1/sessions/7", Route::GetSession, "7"),
            ("DELETE", "/v1/sessions/7", Route::DeleteSession, "7"),
            ("POST", "/v1/artifacts", Route::CreateArtifact, ""),
            ("GET", "/v1/artifacts/sha256:00", Route::GetArtifact, "sha256:00"),
            ("GET", "/metrics", Route::Metrics, ""),
            ("HEAD", "/metrics", Route::Metrics, ""),
        ] {
            assert_eq!(find(method, path), Match::Found(route, id), "{method} {path}");
        }
    }

    #[test]
    fn another_method_on_a_known_path_is_told_what_is_allowed() {
        for (method, path, allow) in [
            ("POST", "/v1/capabilities", "GET, HEAD"),
            ("GET", "/v1/tasks", "POST"),
            ("HEAD", "/v1/tasks", "POST"),
            ("DELETE", "/v1/tasks/7/cancel", "POST"),
            ("PUT", "/v1/sessions/7", "GET, HEAD, DELETE"),
            ("OPTIONS", "/metrics", "GET, HEAD"),
        ] {
            assert_eq!(find(method, path), Match::MethodNotAllowed(allow), "{method} {path}");
        }
    }

    #[test]
    fn nothing_else_is_here() {
        for path in [
            "/",
            "",
            "/v1/replicasets",
            "/v1/tasks/",
            "/v1/tasks/7",
            "/v1/tasks//stream",
            "/v1/tasks/7/stream/",
            "/v1/sessions/",
            "/V1/tasks",
            "//v1/tasks",
            "/metrics/",
            "/health",
            "/v1/chat/completions",
        ] {
            for method in ["GET", "POST", "DELETE"] {
                assert_eq!(find(method, path), Match::NotFound, "{method} {path}");
            }
        }
    }
}
