//! The front doors that people's clients already use, on a listener of their own: same reactors, same admission, same
//! streams, same budgets as the main one.
//!
//! A request in somebody else's dialect becomes the same [`TaskSpec`](crate::domain::task::TaskSpec)s; what their logs
//! hold is put into the dialect's words by a [`view`] on the reactor of whoever reads it. The engine, the queue and the
//! transcripts know of no dialect.

mod about;
mod admit;
mod chat;
mod completions;
mod embeddings;
mod fields;
mod format;
mod infill;
mod messages;
mod openai;
mod page;
mod refusal;
mod response;
mod responses;
mod routes;
mod text;
mod tools;
mod view;

use std::sync::Arc;

use crate::api::observability;
use crate::api::types::{correlation_id_from, require_key};
use crate::domain::error::OrchestratorError;
use crate::infra::http::{HttpError, RequestHead, Response};
use crate::infra::reactor::{BodyLimit, Reply, Service, Wake};
use crate::state::AppState;

use refusal::{Refusal, Shape};
use routes::{Match, Route, find};

/// The gateway listener's service.
#[derive(Clone)]
pub struct Gateway {
    pub state: Arc<AppState>,
}

/// What a handler is given.
struct Call<'a> {
    state: &'a Arc<AppState>,
    head: &'a RequestHead<'a>,
    wake: &'a Wake,
    request_id: &'a str,
}

impl Service for Gateway {
    fn on_head(&self, head: &RequestHead<'_>) -> Result<BodyLimit, Response> {
        let found = find(head.method(), head.path());
        if head.method() == "OPTIONS"
            && let Some(answer) = self.preflight(head, &found)
        {
            return Err(answer);
        }
        let is_open = matches!(found, Match::Found(route, _) if route.is_open());
        let key = if is_open { Ok(()) } else { require_key(head, &self.state.keys).map(drop) };
        let refused = key.map_err(Refusal::from).and_then(|()| match found {
            Match::Found(..) => Ok(BodyLimit(self.state.config.body_len_max)),
            Match::MethodNotAllowed(allow) => Err(OrchestratorError::MethodNotAllowed { allow }.into()),
            Match::NotFound => {
                let (method, path) = (head.method(), head.path());
                Err(OrchestratorError::NotFound(format!("there is no route {method} {path} at the gateway")).into())
            }
        });
        refused.map_err(|refusal| {
            let request_id = request_id_of(Some(head));
            self.dress(refusal.response(shape_of(head), &request_id, &self.state), Some(head), &request_id)
        })
    }

    async fn call(&self, head: &RequestHead<'_>, body: &mut [u8], wake: &Wake) -> Reply {
        let request_id = request_id_of(Some(head));
        let call = Call { state: &self.state, head, wake, request_id: &request_id };
        match dispatch(&call, body).await {
            Ok(Reply::View { head: Some(response), readers, view }) => {
                Reply::View { head: Some(self.dress(response, Some(head), &request_id)), readers, view }
            }
            Ok(Reply::View { head: None, readers, view }) => {
                let view = Box::new(Dressed { view, gateway: self.clone(), origin: origin_of(head), request_id });
                Reply::View { head: None, readers, view }
            }
            Ok(Reply::Full(response)) => Reply::Full(self.dress(response, Some(head), &request_id)),
            Ok(Reply::Stream { head: response, reader }) => {
                Reply::Stream { head: self.dress(response, Some(head), &request_id), reader }
            }
            Err(refusal) => {
                let response = refusal.response(shape_of(head), &request_id, &self.state);
                Reply::Full(self.dress(response, Some(head), &request_id))
            }
        }
    }

    fn refuse(&self, error: &HttpError, head: Option<&RequestHead<'_>>) -> Response {
        let request_id = request_id_of(head);
        let refusal = Refusal::from_http(error, &self.state);
        self.dress(refusal.response(head.map_or(Shape::OpenAi, shape_of), &request_id, &self.state), head, &request_id)
    }
}

async fn dispatch(call: &Call<'_>, body: &mut [u8]) -> Result<Reply, Refusal> {
    let Match::Found(route, id) = find(call.head.method(), call.head.path()) else {
        unreachable!("on_head lets known routes pass only");
    };
    match route {
        Route::ChatCompletions => chat::create(call, body).await,
        Route::Completions => completions::create(call, body).await,
        Route::Embeddings => embeddings::create(call, body).await,
        Route::Messages => messages::create(call, body).await,
        Route::CountTokens => messages::count_tokens(call, body).await.map(Reply::Full),
        Route::Responses => responses::create(call, body).await,
        Route::Response => responses::get(call, id),
        Route::CancelResponse => responses::cancel(call, id).await.map(Reply::Full),
        Route::Models => Ok(Reply::Full(about::models(call.state))),
        Route::Model => about::model(call.state, id).map(Reply::Full),
        Route::Tokenize => text::tokenize(call, body).await.map(Reply::Full),
        Route::Detokenize => text::detokenize(call, body).map(Reply::Full),
        Route::ApplyTemplate => text::apply_template(call, body).map(Reply::Full),
        Route::Page => Ok(Reply::Full(page::page())),
        Route::Status => Ok(Reply::Full(page::status(call.state))),
        Route::CancelTask => page::cancel(call, id).await.map(Reply::Full),
        Route::Live => Ok(Reply::Full(about::live(call.state))),
        Route::Ready => Ok(Reply::Full(about::ready(call.state))),
        Route::Metrics => Ok(Reply::Full(observability::metrics_endpoint(call.state, call.wake).await?)),
    }
}

/// In whose words a path is answered when something goes wrong.
fn shape_of(head: &RequestHead<'_>) -> Shape {
    if head.path().starts_with("/v1/messages") { Shape::Anthropic } else { Shape::OpenAi }
}

/// The client's `X-Request-Id` or correlation id where it is fit to be echoed, else a fresh one.
fn request_id_of(head: Option<&RequestHead<'_>>) -> String {
    let legal = |id: &&[u8]| (1..=128).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic);
    let sent = head.and_then(|h| h.header("x-request-id")).filter(legal);
    sent.and_then(|id| std::str::from_utf8(id).ok())
        .map_or_else(|| correlation_id_from(head).to_string(), str::to_owned)
}

fn origin_of(head: &RequestHead<'_>) -> Option<String> {
    head.header("origin").and_then(|o| std::str::from_utf8(o).ok()).map(str::to_owned)
}

impl Gateway {
    /// What every answer has: its request's id, and leave for the page that asked.
    fn dress(&self, response: Response, head: Option<&RequestHead<'_>>, request_id: &str) -> Response {
        self.dress_for(response, head.and_then(origin_of).as_deref(), request_id)
    }

    fn dress_for(&self, response: Response, origin: Option<&str>, request_id: &str) -> Response {
        let response =
            response.header("x-request-id", request_id.to_owned()).header("X-Correlation-Id", request_id.to_owned());
        let origins = &self.state.config.gateway_cors_origins;
        if origins.is_empty() {
            return response;
        }
        let response = response.header("Vary", "Origin");
        match origin.filter(|o| origins.allow(o)) {
            None => response,
            Some(origin) => response.header("Access-Control-Allow-Origin", origin.to_owned()).header(
                "Access-Control-Expose-Headers",
                "x-request-id, x-task-id, x-queue-position, x-predicted-start-ms, retry-after, retry-after-ms, \
                     x-should-retry",
            ),
        }
    }

    /// The answer to a browser that asks whether a page of another origin may ask; none where no page may.
    fn preflight(&self, head: &RequestHead<'_>, found: &Match<'_>) -> Option<Response> {
        let Match::MethodNotAllowed(allow) = found else { return None };
        origin_of(head).filter(|o| self.state.config.gateway_cors_origins.allow(o))?;
        let wanted = head.header("access-control-request-headers").and_then(|h| std::str::from_utf8(h).ok());
        let response = Response::new(204)
            .header("Access-Control-Allow-Methods", *allow)
            .header("Access-Control-Allow-Headers", wanted.unwrap_or("authorization, content-type").to_owned())
            .header("Access-Control-Max-Age", "600");
        Some(self.dress(response, Some(head), &request_id_of(Some(head))))
    }
}

/// A view whose answer gets what every answer has.
struct Dressed {
    view: Box<dyn crate::infra::reactor::View>,
    gateway: Gateway,
    origin: Option<String>,
    request_id: String,
}

impl crate::infra::reactor::View for Dressed {
    fn events(&mut self, source: usize, frames: &[u8], out: &mut Vec<u8>) {
        self.view.events(source, frames, out);
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        self.view.finish(out);
    }

    fn answer(&mut self) -> Response {
        self.gateway.dress_for(self.view.answer(), self.origin.as_deref(), &self.request_id)
    }

    fn silence(&mut self, out: &mut Vec<u8>) {
        self.view.silence(out);
    }

    fn patience(&self) -> Option<std::time::Duration> {
        self.view.patience()
    }
}
