//! What the server writes down: JSON lines on stderr, and a greeting on stdout.

use anyhow::{Context, Result, ensure};
use cucumber::{then, when};
use serde_json::Value;

use super::listed;
use super::world::TestWorld;
use crate::harness::wait_for;

impl TestWorld {
    /// The log's lines that name the task.
    fn lines_about(&mut self, name: &str) -> Result<Vec<Value>> {
        let id = self.task_id(name)?.to_owned();
        let mut lines = self.server()?.logs();
        lines.retain(|line| field(line, "task_id").is_some_and(|value| value == &id));
        Ok(lines)
    }

    /// The first line about a task that has all these fields, which has to come.
    fn line_with(&mut self, name: &str, fields: &str) -> Result<Value> {
        wait_for("the line in the log", || {
            let lines = self.lines_about(name)?;
            Ok(lines.into_iter().find(|line| listed(fields).all(|name| field(line, name).is_some())))
        })
    }
}

/// A field of a log line, at its top or among the fields of the event.
fn field<'a>(line: &'a Value, name: &str) -> Option<&'a Value> {
    line.get(name).or_else(|| line["fields"].get(name)).or_else(|| line["span"].get(name))
}

#[then(regex = r#"^the log has a line about "([^"]+)" with "([^"]+)"$"#)]
fn has_line(world: &mut TestWorld, name: String, fields: String) -> Result<()> {
    world.line_with(&name, &fields).map(drop)
}

#[then(regex = r#"^the log's lines about "([^"]+)" name the correlation id "([^"]+)"$"#)]
fn names_correlation_id(world: &mut TestWorld, name: String, id: String) -> Result<()> {
    let lines = world.lines_about(&name)?;
    let is_named = |line: &Value| field(line, "correlation_id").is_none_or(|value| value == &id);
    ensure!(
        lines.iter().any(|line| field(line, "correlation_id").is_some()) && lines.iter().all(is_named),
        "{lines:?}"
    );
    Ok(())
}

#[then(regex = r#"^the log counts the tokens of "([^"]+)" as its stream does$"#)]
fn counts_as_stream(world: &mut TestWorld, name: String) -> Result<()> {
    let end = world.first_event(&name, "end")?;
    let line = world.line_with(&name, "tokens_out, decode_ms")?;
    let logged = field(&line, "tokens_out").context("it was just seen")?;
    ensure!(logged.as_f64() == end["tokens_out"].as_f64(), "logged {logged}, sent {end}");
    Ok(())
}

#[when(regex = r#"^I wait until the log says that "([^"]+)" has ended$"#)]
fn wait_until_ended(world: &mut TestWorld, name: String) -> Result<()> {
    world.line_with(&name, "tokens_out").map(drop)
}

#[then("every line of the log is JSON")]
fn every_line_is_json(world: &mut TestWorld) -> Result<()> {
    let log = world.server()?.stderr();
    ensure!(!log.is_empty(), "the log is empty");
    for line in log.lines() {
        serde_json::from_str::<Value>(line).with_context(|| format!("not JSON: {line}"))?;
    }
    Ok(())
}

#[then("the server has said its address, its model and a curl line")]
fn has_said(world: &mut TestWorld) -> Result<()> {
    let address = world.server()?.address();
    let words = [format!("http://{address}"), "wren".to_owned(), "curl".to_owned()];
    wait_for("the greeting", || {
        let said = world.server()?.stdout();
        Ok(words.iter().all(|word| said.contains(word)).then_some(()))
    })
}
