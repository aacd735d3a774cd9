//! From a request to its handler, and from the handler's result to an answer.

use std::sync::Arc;

use super::middleware::{api_key_layer, correlation_id_layer, error_layer, refusal_layer};
use super::router::{Match, Route, find};
use crate::api::types::correlation_id_from;
use crate::api::{artifacts, control, data, observability};
use crate::domain::error::OrchestratorError;
use crate::gateway::Gateway;
use crate::infra::http::{HttpError, RequestHead, Response};
use crate::infra::reactor::{BodyLimit, Reply, Service, Wake};
use crate::state::AppState;

/// What a listener serves.
pub enum Door {
    Main(App),
    Gateway(Gateway),
}

impl Service for Door {
    fn on_head(&self, head: &RequestHead<'_>) -> Result<BodyLimit, Response> {
        match self {
            Door::Main(app) => app.on_head(head),
            Door::Gateway(gateway) => gateway.on_head(head),
        }
    }

    async fn call(&self, head: &RequestHead<'_>, body: &mut [u8], wake: &Wake) -> Reply {
        match self {
            Door::Main(app) => app.call(head, body, wake).await,
            // Apart, or every connection of the main listener would have room for the gateway's locals.
            Door::Gateway(gateway) => Box::pin(gateway.call(head, body, wake)).await,
        }
    }

    fn refuse(&self, error: &HttpError, head: Option<&RequestHead<'_>>) -> Response {
        match self {
            Door::Main(app) => app.refuse(error, head),
            Door::Gateway(gateway) => gateway.refuse(error, head),
        }
    }
}

/// The main listener's service: twelve routes and no other.
#[derive(Clone)]
pub struct App {
    pub state: Arc<AppState>,
}

impl Service for App {
    fn on_head(&self, head: &RequestHead<'_>) -> Result<BodyLimit, Response> {
        let found = find(head.method(), head.path());
        let refused = api_key_layer(&self.state, head, &found).and_then(|()| match found {
            Match::Found(..) => Ok(BodyLimit(self.state.config.body_len_max)),
            Match::MethodNotAllowed(allow) => Err(OrchestratorError::MethodNotAllowed { allow }),
            Match::NotFound => {
                let (method, path) = (head.method(), head.path());
                Err(OrchestratorError::NotFound(format!("there is no route {method} {path}: see /v1/capabilities")))
            }
        });
        refused.map_err(|error| error_layer(&self.state, &error, &correlation_id_from(Some(head))))
    }

    async fn call(&self, head: &RequestHead<'_>, body: &mut [u8], wake: &Wake) -> Reply {
        let correlation_id = correlation_id_from(Some(head));
        match self.dispatch(head, body, &correlation_id, wake).await {
            Ok(Reply::Full(response)) => Reply::Full(correlation_id_layer(response, &correlation_id)),
            Ok(Reply::Stream { head, reader }) => {
                Reply::Stream { head: correlation_id_layer(head, &correlation_id), reader }
            }
            Ok(view @ Reply::View { .. }) => view,
            Err(error) => Reply::Full(error_layer(&self.state, &error, &correlation_id)),
        }
    }

    fn refuse(&self, error: &HttpError, head: Option<&RequestHead<'_>>) -> Response {
        refusal_layer(&self.state, error, head)
    }
}

impl App {
    async fn dispatch(
        &self,
        head: &RequestHead<'_>,
        body: &mut [u8],
        correlation_id: &str,
        wake: &Wake,
    ) -> Result<Reply, OrchestratorError> {
        let state = &self.state;
        let Match::Found(route, id) = find(head.method(), head.path()) else {
            unreachable!("on_head lets known routes pass only");
        };
        let full = Reply::Full;
        match route {
            Route::GetCapabilities => Ok(full(control::get_capabilities(state))),
            Route::GetPoolHealth => control::get_pool_health(state, id).map(full),
            Route::DrainPool => control::drain_pool(state, id, body).map(full),
            Route::ReloadPool => control::reload_pool(state, id, body, wake).await.map(full),
            Route::CreateTask => data::create_task(state, head, body, correlation_id, wake).await,
            Route::StreamTask => data::stream_task(state, head, id, wake),
            Route::CancelTask => data::cancel_task(state, id, wake).await.map(full),
            Route::GetSession => data::get_session(state, head, id, wake).await.map(full),
            Route::DeleteSession => data::delete_session(state, id).map(full),
            Route::CreateArtifact => artifacts::create_artifact(state, body, wake).await.map(full),
            Route::GetArtifact => artifacts::get_artifact(state, id, wake).await.map(full),
            Route::Metrics => observability::metrics_endpoint(state, wake).await.map(full),
        }
    }
}
