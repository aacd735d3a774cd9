//! What `/metrics` counts.

use anyhow::{Context, Result, anyhow, ensure};
use cucumber::{then, when};
use serde_json::json;

use super::listed;
use super::world::{TestWorld, shown};
use crate::harness::metrics::Page;
use crate::harness::{Request, wait_for};

impl TestWorld {
    fn metrics(&mut self) -> Result<Page> {
        let answer = self.server()?.client_with(None).send(&Request::get("/metrics"))?;
        ensure!(answer.status == 200, "no metrics: {}", shown(&answer));
        Ok(Page::parse(&answer.text()))
    }

    /// Waits until the sum of a series fits: the server may count a moment after it has answered.
    fn wait_for_sum(&mut self, name: &str, labels: &[(&str, &str)], fits: impl Fn(f64) -> bool) -> Result<()> {
        let mut seen = None;
        let waited = wait_for("the metrics", || {
            seen = self.metrics()?.sum(name, labels);
            Ok(seen.is_some_and(&fits).then_some(()))
        });
        waited.map_err(|error| anyhow!("{name} {labels:?} is at {seen:?}: {error:#}"))
    }
}

#[then("the answer is Prometheus text")]
fn is_prometheus(world: &mut TestWorld) -> Result<()> {
    let answer = world.answer()?;
    let kind = answer.header("Content-Type").unwrap_or_default();
    ensure!(kind.starts_with("text/plain") && kind.contains("version=0.0.4"), "it is {kind}");
    ensure!(!Page::parse(&answer.text()).samples.is_empty(), "it has no samples");
    Ok(())
}

#[then(regex = r#"^the metrics have the (counter|gauge|histogram) "(\w+)" with the labels "([^"]+)"$"#)]
fn has_series(world: &mut TestWorld, kind: String, name: String, labels: String) -> Result<()> {
    let page = Page::parse(&world.answer()?.text());
    ensure!(page.kinds.get(&name) == Some(&kind), "it is {:?}", page.kinds.get(&name));
    let suffix = if kind == "histogram" { "_count" } else { "" };
    let sampled = format!("{name}{suffix}");
    let mut samples = page.with(&sampled, &[]).peekable();
    ensure!(samples.peek().is_some(), "{sampled} has no sample");
    for sample in samples {
        let mut wanted: Vec<&str> = listed(&labels).collect();
        wanted.sort_unstable();
        ensure!(sample.labels.keys().eq(wanted.iter()), "its labels are {:?}", sample.labels);
    }
    Ok(())
}

#[then(regex = r#"^the metrics count (\d+) "(\w+)" by "(\w+)" "([^"]+)"$"#)]
fn count_by(world: &mut TestWorld, count: f64, name: String, label: String, value: String) -> Result<()> {
    world.wait_for_sum(&name, &[(&label, &value)], |sum| sum == count)
}

#[then(regex = r#"^the metrics count some "(\w+)"$"#)]
fn count_some(world: &mut TestWorld, name: String) -> Result<()> {
    world.wait_for_sum(&name, &[], |sum| sum > 0.0)
}

#[then(regex = r"^the metrics count (\d+) (accepted|canceled) tasks?$")]
fn count_tasks(world: &mut TestWorld, count: f64, fate: String) -> Result<()> {
    let name = if fate == "accepted" { "tasks_enqueued_total" } else { "tasks_canceled_total" };
    world.wait_for_sum(name, &[], |sum| sum == count)
}

#[then(regex = r#"^the metrics show "(\w+)" (at|above) ([\d.]+)$"#)]
fn shows(world: &mut TestWorld, name: String, bound: String, wanted: f64) -> Result<()> {
    world.wait_for_sum(&name, &[], |sum| if bound == "at" { sum == wanted } else { sum > wanted })
}

#[then(regex = r#"^the metrics show "(\w+)" of "(\w+)" at (\d+)$"#)]
fn shows_of(world: &mut TestWorld, name: String, priority: String, wanted: f64) -> Result<()> {
    world.wait_for_sum(&name, &[("priority", &priority)], |sum| sum == wanted)
}

#[when(regex = r#"^I note the sum of "(\w+)"$"#)]
fn note_sum(world: &mut TestWorld, name: String) -> Result<()> {
    let sum = world.metrics()?.sum(&name, &[]);
    world.notes.insert(name, json!(sum));
    Ok(())
}

#[then(regex = r#"^the sum of "(\w+)" has grown$"#)]
fn sum_has_grown(world: &mut TestWorld, name: String) -> Result<()> {
    let before = world.note(&name)?.as_f64().context("there was no such sum")?;
    world.wait_for_sum(&name, &[], |sum| sum > before)
}
