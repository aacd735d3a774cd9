//! Pools: how they are, going out of service, another model; and what the server can do.

use anyhow::{Context, Result, ensure};
use cucumber::{then, when};
use serde_json::{Value, json};

use super::listed;
use super::world::{TestWorld, shown};
use crate::harness::metrics::Page;
use crate::harness::server::POOL;
use crate::harness::{PATIENCE, Request, wait_for};

impl TestWorld {
    pub(super) fn health(&mut self) -> Result<Value> {
        self.send(&Request::get(&format!("/v1/pools/{POOL}/health")))?.json()
    }

    /// What the server says about one of its engines.
    fn engine(&mut self, name: &str) -> Result<Value> {
        let body = self.send(&Request::get("/v1/capabilities"))?.json()?;
        let engines = body["engines"].as_array().with_context(|| format!("no engines: {body}"))?;
        engines.iter().find(|engine| engine["engine"] == name).cloned().with_context(|| format!("no {name}: {body}"))
    }
}

#[when("I ask how the pool is")]
fn ask_health(world: &mut TestWorld) -> Result<()> {
    world.health().map(drop)
}

#[then("the pool is live and ready and not draining")]
fn pool_is_well(world: &mut TestWorld) -> Result<()> {
    let health = world.answer()?.json()?;
    let is_well = health["live"] == true && health["ready"] == true && health["draining"] == false;
    ensure!(is_well && health["metrics"].is_object(), "it is not: {health}");
    Ok(())
}

#[then("the pool is draining")]
fn pool_is_draining(world: &mut TestWorld) -> Result<()> {
    let health = world.answer()?.json()?;
    ensure!(health["draining"] == true, "it is not: {health}");
    Ok(())
}

#[then(regex = r#"^the pool serves the model "([^"]+)"$"#)]
fn pool_serves(world: &mut TestWorld, model: String) -> Result<()> {
    let health = world.answer()?.json()?;
    ensure!(names_model(&health["model"], &model), "it does not: {health}");
    Ok(())
}

#[then("the pool tells what went wrong last")]
fn pool_tells_error(world: &mut TestWorld) -> Result<()> {
    let health = world.answer()?.json()?;
    let says = health.get("last_error").is_some_and(|error| !error.is_null() && error != "");
    ensure!(says, "it does not: {health}");
    Ok(())
}

#[then("the pool recovers")]
fn pool_recovers(world: &mut TestWorld) -> Result<()> {
    wait_for("the pool to recover", || {
        let health = world.health()?;
        Ok((health["live"] == true && health["ready"] == true).then_some(()))
    })
}

#[when(regex = r"^I drain the pool and give it (\d+) ms to finish$")]
fn drain(world: &mut TestWorld, deadline_ms: u32) -> Result<()> {
    let path = format!("/v1/pools/{POOL}/drain");
    world.send(&Request::post(&path, &json!({ "deadline_ms": deadline_ms }))).map(drop)
}

#[when(regex = r#"^I reload the pool with the model "([^"]+)"$"#)]
fn reload(world: &mut TestWorld, model: String) -> Result<()> {
    let path = format!("/v1/pools/{POOL}/reload");
    world.send(&Request::post(&path, &json!({ "new_model_ref": model }))).map(drop)
}

#[when("the server is asked to stop")]
fn ask_to_stop(world: &mut TestWorld) -> Result<()> {
    world.server()?.ask_to_stop()
}

#[then("the server stops by itself")]
fn stops(world: &mut TestWorld) -> Result<()> {
    let status = world.server()?.wait_for_exit()?;
    ensure!(status.success(), "it stopped with {status}");
    Ok(())
}

#[then(regex = r#"^the metrics show the model "([^"]+)" among those that are loaded$"#)]
fn model_state(world: &mut TestWorld, model: String) -> Result<()> {
    wait_for("the new model's state", || {
        let page = Page::parse(&world.send(&Request::get("/metrics"))?.text());
        let mut states = page.with("model_state", &[]);
        let is_loaded = states.any(|sample| sample.labels["model_id"].contains(&model) && sample.value == 1.0);
        Ok(is_loaded.then_some(()))
    })
}

#[then(regex = r#"^the engine "([^"]+)" tells "([^"]+)"$"#)]
fn engine_tells(world: &mut TestWorld, name: String, fields: String) -> Result<()> {
    let engine = world.engine(&name)?;
    for field in listed(&fields) {
        ensure!(engine.get(field).is_some_and(|value| !value.is_null()), "{field} is missing: {engine}");
    }
    Ok(())
}

#[then(regex = r#"^the engine "([^"]+)" serves the model "([^"]+)"$"#)]
fn engine_serves(world: &mut TestWorld, name: String, model: String) -> Result<()> {
    let engine = world.engine(&name)?;
    let models = engine["models"].as_array().context("models is a list")?;
    ensure!(models.iter().any(|one| names_model(one, &model)), "it does not: {engine}");
    Ok(())
}

#[then(regex = r#"^the engine "([^"]+)" does the workload "([^"]+)"$"#)]
fn engine_does(world: &mut TestWorld, name: String, workload: String) -> Result<()> {
    let engine = world.engine(&name)?;
    let workloads = engine["supported_workloads"].as_array().context("supported_workloads is a list")?;
    ensure!(workloads.iter().any(|one| one == &workload), "it does not: {engine}");
    Ok(())
}

#[then(regex = r#"^the engine "([^"]+)" runs (\d+) tasks together$"#)]
fn engine_concurrency(world: &mut TestWorld, name: String, count: u32) -> Result<()> {
    let engine = world.engine(&name)?;
    ensure!(engine["concurrency"] == count, "it does not: {engine}");
    Ok(())
}

#[then("the server still works")]
fn still_works(world: &mut TestWorld) -> Result<()> {
    let client = world.server()?.client();
    let answer = client.send(&Request::get("/v1/capabilities"))?;
    ensure!(answer.status == 200, "it does not: {}", shown(&answer));
    Ok(())
}

#[when(regex = r"^(\d+) clients connect and say nothing$")]
fn silent_clients(world: &mut TestWorld, count: usize) -> Result<()> {
    let client = world.client()?;
    for _ in 0..count {
        // Beyond its limit the server may close at once, or not even answer; both are fine.
        world.connections.extend(client.connect());
    }
    Ok(())
}

#[when("they go away")]
fn clients_go(world: &mut TestWorld) -> Result<()> {
    world.connections.clear();
    let client = world.client()?;
    // The server notices each of them going in its own time.
    let started = std::time::Instant::now();
    while client.send(&Request::get("/v1/capabilities")).is_err() {
        ensure!(started.elapsed() < PATIENCE, "nobody is let in although everybody has gone");
        std::thread::yield_now();
    }
    Ok(())
}

/// Whether a model's description, a string or an object that holds one, names it.
fn names_model(value: &Value, model: &str) -> bool {
    match value {
        Value::String(name) => name == model,
        Value::Object(fields) => fields.values().any(|field| field == model),
        _ => false,
    }
}
