//! The servers of scenarios: how much room, which policy, which models.

use std::path::PathBuf;

use anyhow::{Result, bail};
use cucumber::given;

use super::world::TestWorld;
use crate::harness::workspace_root;

/// The model that is in the repository, beneath its root.
const MODEL: &str = "engine/models/wren.gguf";

#[given("a server")]
fn a_server(_world: &mut TestWorld) {
    // It starts with the first request, when all settings are made.
}

#[given(regex = r#"^the setting (\w+) is "([^"]*)"$"#)]
fn setting(world: &mut TestWorld, key: String, value: String) {
    world.settings.set(&key, value);
}

#[given(regex = r"^(\d+) tasks? may run and (\d+) may wait$")]
fn room(world: &mut TestWorld, running: u32, waiting: u32) {
    world.settings.set("slots_max", running);
    world.settings.set("queue_capacity", waiting);
}

#[given("a full queue turns newcomers away")]
fn policy_reject(world: &mut TestWorld) {
    world.settings.set("admission_policy", "reject");
}

#[given("a full queue drops who matters least")]
fn policy_drop(world: &mut TestWorld) {
    world.settings.set("admission_policy", "drop-lru");
}

#[given(regex = r"^a session may spend (\d+) tokens, (\d+) ms and (\d+) units of money$")]
fn budgets(world: &mut TestWorld, tokens: u32, time_ms: u32, cost: u32) {
    world.settings.set("session_tokens_budget", tokens);
    world.settings.set("session_time_budget_ms", time_ms);
    world.settings.set("session_cost_budget", cost);
}

#[given(regex = r"^a key may spend (\d+) tokens, (\d+) ms and (\d+) units of money$")]
fn key_budgets(world: &mut TestWorld, tokens: u32, time_ms: u32, cost: u32) {
    world.settings.set("key_tokens_budget", tokens);
    world.settings.set("key_time_budget_ms", time_ms);
    world.settings.set("key_cost_budget", cost);
}

#[given(regex = r#"^there are the keys "([^"]+)" and "([^"]+)"$"#)]
fn two_keys(world: &mut TestWorld, first: String, second: String) {
    world.settings.set("api_keys", format!("{first},{second}"));
}

#[given(regex = r"^a token costs ([\d.]+)$")]
fn price(world: &mut TestWorld, cost: String) {
    world.settings.set("cost_per_token", cost);
}

#[given("artifacts are kept in a folder")]
fn artifacts_in_a_folder(world: &mut TestWorld) {
    let folder = world.folder.path().join("artifacts");
    world.settings.set("artifacts_fs_root", folder.display());
}

#[given(
    regex = r#"^a model "([^"]+)" that (is a sound copy|does not exist|is cut in half|has a damaged header|is an empty file|is a text file)$"#
)]
fn model(world: &mut TestWorld, name: String, state: String) -> Result<()> {
    let folder = world.folder.path().join("models");
    std::fs::create_dir_all(&folder)?;
    world.settings.set("models_dir", folder.display());
    let path = folder.join(format!("{name}.gguf"));
    let mut bytes = std::fs::read(sound_model())?;
    match state.as_str() {
        "is a sound copy" => {}
        "does not exist" => return Ok(()),
        "is cut in half" => bytes.truncate(bytes.len() / 2),
        // Past the magic and the version: the counts of tensors and of metadata, then the metadata.
        "has a damaged header" => bytes[8..64].iter_mut().for_each(|byte| *byte ^= 0x5a),
        "is an empty file" => bytes.clear(),
        "is a text file" => bytes = b"Once upon a time there was a file that was no model.\n".to_vec(),
        other => bail!("nobody knows how to make a model that {other}"),
    }
    Ok(std::fs::write(path, bytes)?)
}

fn sound_model() -> PathBuf {
    workspace_root().join(MODEL)
}
