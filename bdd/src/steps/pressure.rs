//! Filling the queue for real, and what becomes of those who wait, are dropped, or are turned away.

use anyhow::{Context, Result, ensure};
use cucumber::{given, then, when};
use serde_json::{Value, json};

use super::streams::token_count;
use super::tasks::{lengthen, task};
use super::world::{TestWorld, shown};
use crate::harness::{Event, PATIENCE, Request};

const RUNNING: &str = "the one that runs";

impl TestWorld {
    /// Takes the only slot with a task of so many tokens and fills all places behind it.
    pub(super) fn fill_queue(&mut self, round: &str, token_count: u32, waiting: impl Fn() -> Value) -> Result<()> {
        let capacity: usize = self.settings.value("queue_capacity").context("the queue has no set size")?.parse()?;
        let mut running = task();
        lengthen(&mut running);
        running["max_tokens"] = json!(token_count);
        let name = format!("{RUNNING}{round}");
        self.send_accepted(&name, running)?;
        self.open_stream(&name)?;
        self.stream(&name)?.wait_until(PATIENCE, |events| events.iter().any(|event| event.name == "token"))?;
        (1..=capacity).try_for_each(|place| self.send_accepted(&format!("{}{round}", waiting_name(place)), waiting()))
    }
}

fn waiting_name(place: usize) -> String {
    format!("waiting {place}")
}

#[given("the queue is full")]
fn queue_is_full(world: &mut TestWorld) -> Result<()> {
    world.fill_queue("", 1900, task)
}

#[when(regex = r"^I fill the queue with tasks of (\d+) tokens and send one more$")]
fn fill_and_send(world: &mut TestWorld, tokens: u32) -> Result<()> {
    let waiting = || {
        let mut body = task();
        lengthen(&mut body);
        body["max_tokens"] = json!(tokens);
        body
    };
    world.fill_queue(&format!(" ({tokens})"), tokens, waiting)?;
    world.send_task("one more", task())
}

#[when(regex = r#"^I remember the advice as "([^"]+)"$"#)]
fn remember_advice(world: &mut TestWorld, name: String) -> Result<()> {
    let answer = world.answer()?;
    let advice = answer.json()?["retry_after_ms"].as_u64();
    let advice = advice.with_context(|| format!("no advice: {}", shown(answer)))?;
    world.notes.insert(name, json!(advice));
    Ok(())
}

#[then(regex = r#"^the advice for "([^"]+)" is longer than that for "([^"]+)"$"#)]
fn advice_is_longer(world: &mut TestWorld, more: String, less: String) -> Result<()> {
    let (more, less) = (world.note(&more)?.as_u64(), world.note(&less)?.as_u64());
    ensure!(more > less, "{more:?} ms against {less:?} ms");
    Ok(())
}

#[when("I cancel everything")]
fn cancel_everything(world: &mut TestWorld) -> Result<()> {
    let accepted = |answers: &Vec<crate::harness::Answer>| answers.iter().any(|answer| answer.status == 202);
    let mut names: Vec<String> = world.admissions.iter().filter(|(_, a)| accepted(a)).map(|(n, _)| n.clone()).collect();
    // Those who wait first, or they would start when their turn comes.
    names.sort_by_key(|name| name.starts_with(RUNNING));
    names.iter().try_for_each(|name| world.cancel(name))?;
    names.iter().try_for_each(|name| world.read_to_end(name))
}

#[when("I cancel the task that runs")]
fn cancel_running(world: &mut TestWorld) -> Result<()> {
    world.cancel(RUNNING)
}

#[when(regex = r"^I send (\d+) more tasks$")]
fn send_more(world: &mut TestWorld, count: usize) -> Result<()> {
    for number in 0..count {
        world.send_task(&format!("more {number}"), task())?;
        ensure!(world.answer()?.status == 429, "there was room for it: {}", shown(world.answer()?));
    }
    Ok(())
}

#[then("the tasks that waited get their turn")]
fn waiting_get_their_turn(world: &mut TestWorld) -> Result<()> {
    let waiting: Vec<String> = world.tasks.keys().filter(|name| name.starts_with("waiting")).cloned().collect();
    ensure!(!waiting.is_empty(), "none waited");
    for name in waiting {
        world.read_to_end(&name)?;
        ensure!(token_count(world.stream(&name)?) > 0, "{name} has no token");
    }
    Ok(())
}

#[when("somebody reads the stream of the task that waits longest")]
#[when("I open the stream of the task that waited longest")]
fn read_oldest(world: &mut TestWorld) -> Result<()> {
    world.open_stream(&waiting_name(1))
}

#[then(regex = r#"^the reader of the task that waited longest is told "([^"]+)"$"#)]
fn oldest_is_told(world: &mut TestWorld, code: String) -> Result<()> {
    let events = world.ended(&waiting_name(1))?;
    let last = events.last().context("it was told nothing")?;
    ensure!(last.name == "error" && last.json()?["code"] == *code, "{} {}", last.name, last.data);
    Ok(())
}

#[when(regex = r"^(\d+) clients each send a task of (\d+) tokens and read it in the same request$")]
fn many_clients(world: &mut TestWorld, count: usize, tokens: u32) -> Result<()> {
    for number in 0..count {
        let mut body = task();
        body["max_tokens"] = json!(tokens);
        body["ignore_end"] = json!(true);
        let request = Request::post("/v1/tasks", &body).with("Accept", "text/event-stream");
        world.open(&format!("client {number}"), &request)?;
    }
    Ok(())
}

#[then(regex = r"^each of them gets (\d+) tokens, numbered from 0, and an end$")]
fn many_get_tokens(world: &mut TestWorld, count: usize) -> Result<()> {
    for name in world.streams.keys() {
        let events = world.ended(name)?;
        let tokens: Vec<&Event> = events.iter().filter(|event| event.name == "token").collect();
        ensure!(tokens.len() == count, "{name} has {} tokens", tokens.len());
        for (index, token) in tokens.iter().enumerate() {
            ensure!(token.json()?["i"] == index, "{name}: token {index} is {}", token.data);
        }
        ensure!(events.last().is_some_and(|event| event.name == "end"), "{name} has no end");
    }
    Ok(())
}
