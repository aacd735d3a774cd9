//! The registry: what each sentence of a feature means.
//!
//! A step is found by its sentence alone, so each has to match one sentence and no other; `tests/bdd.rs` sees to it.

pub mod answers;
pub mod artifacts;
pub mod control;
pub mod determinism;
pub mod faults;
pub mod gateway;
pub mod http;
pub mod logs;
pub mod metrics;
pub mod pressure;
pub mod promises;
pub mod security;
pub mod sessions;
pub mod setup;
pub mod stream_checks;
pub mod streams;
pub mod tasks;
pub mod world;

use anyhow::{Context, Result};
use cucumber::gherkin;

/// The fields of a list like `queue_position, predicted_start_ms`.
fn listed(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim)
}

/// The rows of a step's table, as field and value.
fn rows(step: &gherkin::Step) -> impl Iterator<Item = (&str, &str)> {
    let rows = step.table.iter().flat_map(|table| table.rows.iter());
    rows.map(|row| (row[0].as_str(), row.get(1).map_or("", String::as_str)))
}

/// The text that stands between `"""` beneath a step.
fn docstring(step: &gherkin::Step) -> Result<&str> {
    Ok(step.docstring.as_deref().context("the step has no text beneath it")?.trim_matches('\n'))
}
