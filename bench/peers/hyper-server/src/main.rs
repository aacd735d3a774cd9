//! The same API on hyper itself, as its guides write servers: one task per connection, `service_fn`, a
//! `StreamBody` of frames. On a current-thread runtime.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use clap::Parser;
use futures_util::StreamExt;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, LOCATION};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use peers_common::{Event, KEY, Options, Refused, Shared, TaskRequest};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_stream::wrappers::UnboundedReceiverStream;
use uuid::Uuid;

type Body = BoxBody<Bytes, Infallible>;

fn whole(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(text.into()).boxed());
    *response.status_mut() = status;
    response
}

fn stream(events: UnboundedReceiver<Event>) -> Response<Body> {
    let frames = UnboundedReceiverStream::new(events).enumerate().map(|(id, event)| {
        let text = format!("id: {id}\nevent: {}\ndata: {}\n\n", event.name(), event.data());
        Ok::<_, Infallible>(Frame::data(Bytes::from(text)))
    });
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

async fn create(shared: &Shared, request: Request<Incoming>) -> Response<Body> {
    let wants_stream = request.headers().get(ACCEPT).is_some_and(|a| a == "text/event-stream");
    let Ok(body) = request.into_body().collect().await else {
        return whole(StatusCode::BAD_REQUEST, "the body broke off");
    };
    let task: TaskRequest = match serde_json::from_slice(&body.to_bytes()) {
        Ok(task) => task,
        Err(error) => return whole(StatusCode::BAD_REQUEST, error.to_string()),
    };
    match shared.admit(task) {
        Ok(admitted) if wants_stream => match shared.open(admitted.accepted.task_id) {
            Some(events) => stream(events),
            None => whole(StatusCode::NOT_FOUND, ""),
        },
        Ok(admitted) => {
            let text = serde_json::to_vec(&admitted.accepted).expect("it is JSON");
            let mut response = whole(StatusCode::ACCEPTED, text);
            let number = |n: u64| HeaderValue::from(n);
            let location = format!("/v1/tasks/{}/stream", admitted.accepted.task_id);
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert("x-budget-tokens-remaining", number(admitted.tokens_left));
            headers.insert("x-budget-time-remaining-ms", number(86_400_000));
            headers.insert("x-budget-cost-remaining", number(1_000_000));
            headers.insert(LOCATION, HeaderValue::try_from(location).expect("a path is a header value"));
            response
        }
        Err(Refused::Invalid(what)) => whole(StatusCode::BAD_REQUEST, what),
        Err(Refused::Full) => whole(StatusCode::TOO_MANY_REQUESTS, ""),
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let sent = request.headers().get("x-correlation-id").cloned();
    let correlation =
        sent.unwrap_or_else(|| HeaderValue::try_from(Uuid::new_v4().to_string()).expect("a UUID is a header value"));
    let allowed = request.headers().get("x-api-key").is_some_and(|key| key.as_bytes() == KEY.as_bytes());
    let segments: Vec<&str> = request.uri().path().split('/').skip(1).collect();
    let mut response = match (request.method(), segments.as_slice()) {
        _ if !allowed => whole(StatusCode::FORBIDDEN, ""),
        (&Method::POST, ["v1", "tasks"]) => create(&shared, request).await,
        (&Method::GET, ["v1", "tasks", id, "stream"]) => match id.parse().ok().and_then(|id| shared.open(id)) {
            Some(events) => stream(events),
            None => whole(StatusCode::NOT_FOUND, ""),
        },
        _ => whole(StatusCode::NOT_FOUND, ""),
    };
    response.headers_mut().insert("x-correlation-id", correlation);
    Ok(response)
}

fn main() {
    let options = Options::parse();
    let shared = Shared::start(options.interval_us);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(options.listen).await.expect("the address is free");
        println!("listening on {}", options.listen);
        loop {
            let Ok((socket, _)) = listener.accept().await else { continue };
            let _ = socket.set_nodelay(true);
            let shared = shared.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| answer(shared.clone(), request));
                let _ = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(socket), service)
                    .await;
            });
        }
    });
}
