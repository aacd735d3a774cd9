//! The same API as axum's guide would have it: extractors, a middleware, `Sse` over a channel's stream. On a
//! current-thread runtime, which is its fastest on one core (measured: 1.2 times the requests of two workers).

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use clap::Parser;
use futures_util::StreamExt;
use peers_common::{Admitted, KEY, Options, Refused, Shared, TaskRequest};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_stream::wrappers::UnboundedReceiverStream;
use uuid::Uuid;

const CORRELATION: HeaderName = HeaderName::from_static("x-correlation-id");

async fn key_and_correlation(request: Request, next: Next) -> Response {
    let sent = request.headers().get(CORRELATION).cloned();
    let correlation =
        sent.unwrap_or_else(|| HeaderValue::from_str(&Uuid::new_v4().to_string()).expect("a UUID is a header value"));
    let mut response = match request.headers().get("x-api-key").map(HeaderValue::as_bytes) {
        Some(key) if key == KEY.as_bytes() => next.run(request).await,
        Some(_) => StatusCode::FORBIDDEN.into_response(),
        None => StatusCode::UNAUTHORIZED.into_response(),
    };
    response.headers_mut().insert(CORRELATION, correlation);
    response
}

async fn create(State(shared): State<Arc<Shared>>, headers: HeaderMap, Json(task): Json<TaskRequest>) -> Response {
    match shared.admit(task) {
        Ok(admitted) if headers.get(header::ACCEPT).is_some_and(|a| a == "text/event-stream") => {
            match shared.open(admitted.accepted.task_id) {
                Some(events) => stream(events).into_response(),
                None => StatusCode::NOT_FOUND.into_response(),
            }
        }
        Ok(admitted) => accepted(admitted),
        Err(Refused::Invalid(what)) => (StatusCode::BAD_REQUEST, what).into_response(),
        Err(Refused::Full) => StatusCode::TOO_MANY_REQUESTS.into_response(),
    }
}

fn accepted(admitted: Admitted) -> Response {
    let location = format!("/v1/tasks/{}/stream", admitted.accepted.task_id);
    let headers = [
        ("x-budget-tokens-remaining", admitted.tokens_left.to_string()),
        ("x-budget-time-remaining-ms", "86400000".to_owned()),
        ("x-budget-cost-remaining", "1000000".to_owned()),
        ("location", location),
    ];
    (StatusCode::ACCEPTED, headers, Json(admitted.accepted)).into_response()
}

fn stream(events: UnboundedReceiver<peers_common::Event>) -> impl IntoResponse {
    let numbered = UnboundedReceiverStream::new(events).enumerate();
    let events = numbered.map(|(id, event)| {
        Ok::<_, Infallible>(Event::default().id(id.to_string()).event(event.name()).data(event.data()))
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}

async fn open(State(shared): State<Arc<Shared>>, Path(task): Path<Uuid>) -> Response {
    match shared.open(task) {
        Some(events) => stream(events).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

fn main() {
    let options = Options::parse();
    let shared = Shared::start(options.interval_us);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let app = Router::new()
            .route("/v1/tasks", post(create))
            .route("/v1/tasks/{id}/stream", get(open))
            .layer(middleware::from_fn(key_and_correlation))
            .with_state(shared);
        let listener = tokio::net::TcpListener::bind(options.listen).await.expect("the address is free");
        println!("listening on {}", options.listen);
        let listener = axum::serve::ListenerExt::tap_io(listener, |socket| _ = socket.set_nodelay(true));
        axum::serve(listener, app).await.expect("serving goes on");
    });
}
