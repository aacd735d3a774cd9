//! A live server under test: its binary, its process, and a client that controls every byte.

pub mod binary;
pub mod client;
pub mod connection;
pub mod metrics;
pub mod scratch;
pub mod server;
pub mod sse;

pub use client::{Answer, Client, Request};
pub use connection::Connection;
pub use scratch::Scratch;
pub use server::{Server, Settings};
pub use sse::{Event, EventStream, Opened};

use std::path::Path;
use std::time::{Duration, Instant};

/// How long anything that must happen may take. Generous: it is only ever used up by a server that is broken.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// How often a condition that cannot wake us is looked at again.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// Asks `look` until it gives a value, for [`PATIENCE`] at most.
///
/// # Errors
///
/// When the value does not come in time; `what` says in the message what was waited for.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let started = Instant::now();
    loop {
        if let Some(value) = look()? {
            return Ok(value);
        }
        anyhow::ensure!(started.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain for {what}");
        std::thread::sleep(LOOK_AGAIN_AFTER);
    }
}

/// The folder of the workspace, from which the paths of models and features are told.
pub fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this package lies in the workspace")
}
