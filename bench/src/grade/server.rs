//! Servers of this process, so that they are this build, and how many slots a running one has.

use orchestratord::app::bootstrap::Server;
use orchestratord::config;

use super::client::Door;

/// The key of a server that nobody else uses.
pub const KEY: &str = "bench-key-of-no-value";

/// Lets clients visit a server that lives for as long as they do, with these settings.
pub fn with_server<T>(
    model: &str,
    settings: &[(&str, String)],
    visit: impl FnOnce(&Door) -> Result<T, String>,
) -> Result<T, String> {
    let always = [
        ("listen", "127.0.0.1:0".to_owned()),
        ("api_keys", KEY.into()),
        ("engine", "cpu".into()),
        ("log_level", "error".into()),
    ];
    let flags = always.iter().chain(settings).map(|(name, value)| ((*name).to_owned(), value.clone()));
    let server = Server::start(config::load(None, [], flags).map_err(|e| e.to_string())?.config)?;
    let visited = visit(&Door { address: server.address, key: KEY.into(), model: model.into(), engine: "cpu".into() });
    server.stop();
    visited
}

/// Sequences that a running server decodes together.
pub fn slots_of(door: &Door) -> Result<usize, String> {
    let said = door.get("/v1/capabilities")?;
    let pool = said["engines"].as_array().into_iter().flatten().find(|pool| pool["engine"] == door.engine.as_str());
    let slots = pool.and_then(|pool| pool["concurrency"].as_u64());
    slots.map(|slots| slots as usize).ok_or_else(|| format!("it has no engine {:?}: {said}", door.engine))
}
