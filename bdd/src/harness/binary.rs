//! Where the server's binary comes from: a path in the environment, or one `cargo build`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::workspace_root;

/// Which build of the server a test needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// What users get, in the debug profile. `ORCHESTRATORD_BIN` names one that exists already.
    Plain,
    /// With fault points. `ORCHESTRATORD_FAULTS_BIN` names one that exists already.
    Faults,
}

/// The path of the binary, which is built at the first call of this process and not again.
///
/// # Errors
///
/// When it does not build, or the path in the environment is no file.
pub fn server_binary(build: Build) -> Result<PathBuf> {
    static PLAIN: OnceLock<PathBuf> = OnceLock::new();
    static FAULTS: OnceLock<PathBuf> = OnceLock::new();
    // One build at a time: two would only compete for the same two cores.
    static TURN: Mutex<()> = Mutex::new(());

    let (cell, variable) = match build {
        Build::Plain => (&PLAIN, "ORCHESTRATORD_BIN"),
        Build::Faults => (&FAULTS, "ORCHESTRATORD_FAULTS_BIN"),
    };
    let _turn = TURN.lock().unwrap_or_else(|broken| broken.into_inner());
    if let Some(path) = cell.get() {
        return Ok(path.clone());
    }
    let path = match std::env::var_os(variable) {
        Some(given) => PathBuf::from(given),
        None => cargo_build(build)?,
    };
    ensure!(path.is_file(), "{variable} or cargo named {}, which is not a file", path.display());
    Ok(cell.get_or_init(|| path).clone())
}

fn cargo_build(build: Build) -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--message-format=json", "-p", "orchestratord", "--bin", "orchestratord"]);
    if build == Build::Faults {
        // A folder of its own: in a shared one each build would undo the other.
        command.args(["--features", "failpoints", "--target-dir"]);
        command.arg(target_directory()?.join("failpoints"));
    }
    let output = command.stderr(Stdio::inherit()).output().context("cargo could not be started")?;
    let messages = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("the server does not build ({}):\n{}", output.status, compiler_errors(&messages));
    }
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == "orchestratord")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo built the server without naming its executable")
}

fn target_directory() -> Result<PathBuf> {
    let output = cargo().args(["metadata", "--no-deps", "--format-version=1"]).output()?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata gave no JSON")?;
    let path = metadata["target_directory"].as_str().context("cargo metadata names no target directory")?;
    Ok(Path::new(path).to_owned())
}

fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace_root()).stdin(Stdio::null());
    command
}

fn compiler_errors(messages: &str) -> String {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["message"]["level"] == "error")
        .filter_map(|message| message["message"]["rendered"].as_str().map(str::to_owned))
        .collect()
}
