//! The same task under other circumstances.

use anyhow::{Context, Result, ensure};
use cucumber::{then, when};
use serde_json::{Value, json};

use super::answers::figure;
use super::tasks::{prompt, task};
use super::world::TestWorld;

/// How long a crowd stays: longer than the task that is sent into it.
const CROWD_TOKENS: u32 = 160;

#[when(regex = r"^I send a crowd of (\d+) tasks$")]
fn crowd(world: &mut TestWorld, count: usize) -> Result<()> {
    for number in 0..count {
        let mut body = task();
        // All sorts: lengths of prompts that share no chunk border, greedy and sampled.
        body["prompt"] = json!(prompt(3 + number * 7, number));
        body["max_tokens"] = json!(CROWD_TOKENS);
        body["ignore_end"] = json!(true);
        body["temperature"] = json!(number as f64 / 10.0);
        body["seed"] = json!(number);
        world.send_accepted(&format!("crowd {number}"), body)?;
    }
    Ok(())
}

#[when(regex = r#"^the server is started again with the setting (\w+) at "([^"]*)"$"#)]
fn restart_with(world: &mut TestWorld, key: String, value: String) -> Result<()> {
    remember_tokens(world)?;
    world.settings.set(&key, value);
    world.stop_server();
    world.server().map(drop)
}

/// The streams go with the server; what they said stays.
fn remember_tokens(world: &mut TestWorld) -> Result<()> {
    let names: Vec<String> = world.streams.keys().cloned().collect();
    for name in names {
        let tokens = world.tokens(&name)?;
        world.notes.insert(format!("tokens of {name}"), json!(tokens));
    }
    Ok(())
}

fn said(world: &TestWorld, name: &str) -> Result<Vec<String>> {
    match world.notes.get(&format!("tokens of {name}")) {
        Some(remembered) => Ok(serde_json::from_value(remembered.clone())?),
        None => world.tokens(name),
    }
}

#[then(regex = r#"^the tokens of "([^"]+)" are those of "([^"]+)", byte for byte$"#)]
fn same_tokens(world: &mut TestWorld, name: String, other: String) -> Result<()> {
    let (left, right) = (said(world, &name)?, said(world, &other)?);
    ensure!(!left.is_empty(), "it said nothing");
    let first = left.iter().zip(&right).position(|(a, b)| a != b);
    ensure!(
        left == right,
        "{} and {} tokens; the first that differs: {first:?}\n{left:?}\n{right:?}",
        left.len(),
        right.len()
    );
    Ok(())
}

#[then(regex = r#"^the tokens of "([^"]+)" are not those of "([^"]+)"$"#)]
fn other_tokens(world: &mut TestWorld, name: String, other: String) -> Result<()> {
    ensure!(said(world, &name)? != said(world, &other)?, "they are");
    Ok(())
}

#[then(regex = r#"^nothing of the prompt of "([^"]+)" had been read before$"#)]
fn was_new(world: &mut TestWorld, name: String) -> Result<()> {
    let warmth = kv_warmth(world, &name)?;
    ensure!(warmth == 0.0, "it had a warmth of {warmth}");
    Ok(())
}

#[then(regex = r#"^"([^"]+)" was cold and "([^"]+)" was (warm|cold)$"#)]
fn warmth(world: &mut TestWorld, first: String, second: String, wanted: String) -> Result<()> {
    let (before, after) = (kv_warmth(world, &first)?, kv_warmth(world, &second)?);
    let holds = if wanted == "warm" { after > before } else { after <= before };
    ensure!(holds, "{first} had a warmth of {before}, {second} of {after}");
    Ok(())
}

#[then("all of them end properly")]
fn all_end(world: &mut TestWorld) -> Result<()> {
    ensure!(!world.streams.is_empty(), "there are none");
    for name in world.streams.keys() {
        let last = world.ended(name)?.pop().context("the stream is empty")?;
        ensure!(last.name == "end", "{name} ended with {} {}", last.name, last.data);
    }
    Ok(())
}

/// What the first metrics of a stream say about how much of its prompt was still in memory.
fn kv_warmth(world: &TestWorld, name: &str) -> Result<f64> {
    let metrics: Value = world.first_event(name, "metrics")?;
    figure(&metrics["kv_warmth"]).with_context(|| format!("kv_warmth is no figure: {metrics}"))
}
