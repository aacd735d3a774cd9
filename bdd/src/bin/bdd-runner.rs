//! Runs all features, or those at `LLORCH_BDD_FEATURE_PATH`, against live servers.
//!
//! An argument chooses the scenarios whose name holds it: `bdd-runner "full queue"`.

use std::process::ExitCode;

use orchestratord_bdd::runner;

fn main() -> anyhow::Result<ExitCode> {
    let words = std::env::args().nth(1).unwrap_or_default();
    let tally = runner::run(&runner::chosen_features()?, &words);
    Ok(if tally.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
