//! Artifacts: post a document, get it back by its digest.

use std::sync::Arc;

use super::types::{ArtifactCreated, ArtifactRequest, from_json, json};
use crate::domain::error::OrchestratorError;
use crate::infra::http::Response;
use crate::infra::reactor::Wake;
use crate::infra::storage::StoreError;
use crate::services::artifacts::ArtifactService;
use crate::state::AppState;

/// POST /v1/artifacts: 201 and the id, which is the digest of the document's canonical JSON.
///
/// # Errors
///
/// `InvalidParams` for another shape, `UntrustedArtifact` when a digest was sent that is not the document's.
pub async fn create_artifact(
    state: &Arc<AppState>,
    body: &mut [u8],
    wake: &Wake,
) -> Result<Response, OrchestratorError> {
    let request: ArtifactRequest = from_json(body)?;
    request.check()?;
    let document = serde_json::to_value(&request).expect("our own shapes are JSON");
    let digest = crate::infra::storage::id_of(&crate::services::artifacts::canonical(&document));
    if let Some(claimed) = request.digest.as_ref().filter(|claimed| ***claimed != *digest) {
        let message = format!("the digest sent is {claimed}, the document's is {digest}: it was changed on its way");
        return Err(OrchestratorError::UntrustedArtifact(message));
    }
    let now_ms = state.clock.unix_ms();
    let stored = on_store(state, wake, move |artifacts| artifacts.put(&document, false, now_ms)).await?;
    let created = ArtifactCreated {
        id: &stored.id,
        kind: request.kind,
        digest: &stored.id,
        created_ms: stored.created_ms,
        tags: request.tags.as_deref().unwrap_or_default(),
    };
    Ok(json(201, &created).header("Location", format!("/v1/artifacts/{}", stored.id)))
}

/// GET /v1/artifacts/:id: the document's canonical bytes, so that their SHA-256 is the id.
///
/// # Errors
///
/// `NotFound` for an id that is not in the store.
pub async fn get_artifact(state: &Arc<AppState>, id: &str, wake: &Wake) -> Result<Response, OrchestratorError> {
    let wanted = id.to_owned();
    let found = on_store(state, wake, move |artifacts| artifacts.get(&wanted)).await?;
    let bytes = found.ok_or_else(|| OrchestratorError::NotFound(format!("there is no artifact {id:?}")))?;
    let response = Response::new(200).header("Content-Type", "application/json");
    Ok(response.header("ETag", format!("\"{id}\"")).body(bytes.to_vec()))
}

/// Runs a call on the store: here if it is memory, on a helper thread if it is a disk.
async fn on_store<T: Send + 'static>(
    state: &Arc<AppState>,
    wake: &Wake,
    call: impl FnOnce(&ArtifactService) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, OrchestratorError> {
    let result = if state.artifacts.is_blocking() {
        let artifacts = state.artifacts.clone();
        super::on_helper(state, wake, move || call(&artifacts)).await?
    } else {
        call(&state.artifacts)
    };
    result.map_err(|error| match error {
        StoreError::Full { .. } => OrchestratorError::AdmissionReject {
            message: error.to_string(),
            policy_label: "artifact-store-full",
            retry_after_ms: None,
        },
        StoreError::Corrupt { .. } | StoreError::Io(_) => OrchestratorError::Internal(error.to_string()),
    })
}
