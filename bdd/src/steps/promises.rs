//! What tasks were promised, held against what happened.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cucumber::{given, then, when};
use serde_json::{Value, json};

use super::answers::{BUDGET_HEADERS, budget};
use super::tasks::{lengthen, task};
use super::world::{TestWorld, shown};
use crate::harness::{PATIENCE, Request};

const PERSON: &str = "person";

impl TestWorld {
    /// When the first token of a task arrived, which has to.
    fn began(&self, name: &str) -> Result<Instant> {
        let stream = self.stream(name)?;
        stream.wait_until(PATIENCE, |events| events.iter().any(|event| event.name == "token"))?;
        Ok(stream.events().iter().find(|event| event.name == "token").context("it was just seen")?.arrived)
    }

    /// A figure of the answer that accepted a task.
    fn promised(&self, name: &str, field: &str) -> Result<f64> {
        let answer = self.admissions[name].last().context("it was not sent")?;
        answer.json()?[field].as_f64().with_context(|| format!("no {field}: {}", shown(answer)))
    }
}

#[then(regex = r#"^"([^"]+)" began about when its answer said, give or take a factor of ([\d.]+)$"#)]
fn began_as_said(world: &mut TestWorld, name: String, factor: f64) -> Result<()> {
    let said_ms = world.promised(&name, "predicted_start_ms")?;
    let accepted = world.stream(&name)?.events().first().context("its stream is empty")?.arrived;
    let waited_ms = world.began(&name)?.duration_since(accepted).as_secs_f64() * 1000.0;
    ensure!(waited_ms > 50.0, "it waited for {waited_ms:.0} ms only, so nothing was tested");
    let off = said_ms / waited_ms;
    ensure!((1.0 / factor..=factor).contains(&off), "said {said_ms:.0} ms, waited {waited_ms:.0} ms");
    Ok(())
}

#[then(regex = r#"^"([^"]+)" is to start sooner than "([^"]+)"$"#)]
fn sooner(world: &mut TestWorld, first: String, second: String) -> Result<()> {
    let (first_ms, second_ms) =
        (world.promised(&first, "predicted_start_ms")?, world.promised(&second, "predicted_start_ms")?);
    // What runs goes on meanwhile, so the later of the two would have less to wait for if they were alike.
    ensure!(first_ms < second_ms, "{first} in {first_ms} ms, {second} in {second_ms} ms");
    Ok(())
}

/// For tasks that were sent behind a task of the same length that had just begun.
#[then(regex = r#"^"([^"]+)" is to start at least (\d+) ms sooner than "([^"]+)"$"#)]
fn sooner_by(world: &mut TestWorld, first: String, ms: f64, second: String) -> Result<()> {
    let (first_ms, second_ms) =
        (world.promised(&first, "predicted_start_ms")?, world.promised(&second, "predicted_start_ms")?);
    ensure!(first_ms + ms <= second_ms, "{first} in {first_ms} ms, {second} in {second_ms} ms");
    Ok(())
}

#[then(regex = r#"^"([^"]+)", "([^"]+)" and "([^"]+)" begin in this order$"#)]
fn in_order(world: &mut TestWorld, first: String, second: String, third: String) -> Result<()> {
    let (first_at, second_at, third_at) = (world.began(&first)?, world.began(&second)?, world.began(&third)?);
    ensure!(first_at <= second_at && second_at <= third_at, "{first_at:?}, {second_at:?}, {third_at:?}");
    Ok(())
}

#[given(regex = r"^the queue is full of tasks of (\d+) tokens$")]
fn full_of(world: &mut TestWorld, tokens: u32) -> Result<()> {
    world.fill_queue("", tokens, || {
        let mut body = task();
        lengthen(&mut body);
        body["max_tokens"] = json!(tokens);
        body
    })
}

#[when(regex = r#"^I come back with "([^"]+)" when I was told to, again and again until I am let in$"#)]
fn come_back(world: &mut TestWorld, name: String) -> Result<()> {
    let began = Instant::now();
    let mut times = 0;
    while world.answer()?.status != 202 {
        ensure!(began.elapsed() < PATIENCE, "still not let in: {}", shown(world.answer()?));
        let told_ms = world.answer()?.header("X-Backoff-Ms").context("it was not told when")?.parse()?;
        std::thread::sleep(Duration::from_millis(told_ms));
        let body = world.task(&name)?.clone();
        world.send_task(&name, body)?;
        times += 1;
    }
    world.notes.insert("times I came back".to_owned(), json!(times));
    world.open_stream(&name)
}

#[then(regex = r"^I came back at most (\d+) times$")]
fn came_back(world: &mut TestWorld, most: u64) -> Result<()> {
    let times = world.note("times I came back")?.as_u64().context("a number")?;
    ensure!((1..=most).contains(&times), "{times} times");
    Ok(())
}

#[then(regex = r#"^the (first|last) on_time_probability of "([^"]+)" is (under|over) ([\d.]+)$"#)]
fn chance_told(world: &mut TestWorld, which: String, name: String, side: String, bound: f64) -> Result<()> {
    let events = world.ended(&name)?;
    let mut told = events.iter().filter(|event| event.name == "metrics");
    let event = if which == "first" { told.next() } else { told.next_back() };
    let data = event.context("it was never told")?.json()?;
    let chance = data["on_time_probability"].as_f64().context("it is no number")?;
    let holds = if side == "under" { chance < bound } else { chance > bound };
    ensure!(holds, "it is {chance}");
    Ok(())
}

#[when(regex = r"^I send (\d+) people ahead of it with (\d+) tokens each$")]
fn people(world: &mut TestWorld, count: usize, tokens: u32) -> Result<()> {
    for number in 0..count {
        let mut body = task();
        lengthen(&mut body);
        body["max_tokens"] = json!(tokens);
        world.send_task(&format!("{PERSON} {number}"), body)?;
    }
    Ok(())
}

#[then(regex = r#"^not all of the people had their turn before "([^"]+)"$"#)]
fn before_people(world: &mut TestWorld, name: String) -> Result<()> {
    let began = world.began(&name)?;
    let people: Vec<String> = world.tasks.keys().filter(|n| n.starts_with(PERSON)).cloned().collect();
    let mut later = 0;
    for person in &people {
        // One that has not been looked at yet shows what it has so far.
        world.open_stream(person)?;
        later += usize::from(world.began(person)? > began);
    }
    ensure!(later > 0, "all {} had it", people.len());
    Ok(())
}

#[then(regex = r#"^the error of "([^"]+)" says that it "([^"]+)"$"#)]
fn error_says(world: &mut TestWorld, name: String, words: String) -> Result<()> {
    let error = world.first_event(&name, "error")?;
    ensure!(error["message"].as_str().is_some_and(|text| text.contains(&words)), "it says {error}");
    Ok(())
}

#[given(regex = r#"^(\d+) (short|long) tasks have been done in the session "([^"]+)", each allowed (\d+) tokens$"#)]
fn tasks_of_a_length(world: &mut TestWorld, count: usize, length: String, session: String, tokens: u32) -> Result<()> {
    for number in 0..count {
        let name = format!("{length} {number}");
        let mut body = task();
        lengthen(&mut body);
        body["max_tokens"] = json!(tokens);
        // From one that may not end by itself nothing is learned.
        body["ignore_end"] = json!(false);
        if length == "short" {
            // The first space ends it, after a word or two.
            body["stop"] = json!([" "]);
        }
        body["session_id"] = json!(world.session_id(&session));
        world.send_accepted(&name, body)?;
        world.read_to_end(&name)?;
    }
    Ok(())
}

/// Tokens, time and money as a document tells what is left.
fn left(of: &Value) -> Result<[f64; 3]> {
    let mut left = [0.0; 3];
    for (value, field) in
        left.iter_mut().zip(["tokens_budget_remaining", "time_budget_remaining_ms", "cost_budget_remaining"])
    {
        *value = of[field].as_f64().with_context(|| format!("no {field}: {of}"))?;
    }
    Ok(left)
}

fn session_left(world: &mut TestWorld, session: &str) -> Result<[f64; 3]> {
    let path = format!("/v1/sessions/{}", world.session_id(session));
    let client = world.client()?;
    left(&client.send(&Request::get(&path))?.json()?)
}

#[then(regex = r#"^the last metrics event of "([^"]+)" and the session "([^"]+)" agree on what is left$"#)]
fn metrics_agree(world: &mut TestWorld, name: String, session: String) -> Result<()> {
    let events = world.ended(&name)?;
    let end = events.last().context("it has no end")?.json()?;
    let place = events.iter().rposition(|event| event.name == "metrics").context("it has no metrics event")?;
    let said = left(&events[place].json()?)?;
    let after = events[place..].iter().filter(|event| event.name == "token").count();
    let session = session_left(world, &session)?;
    // Tokens and money to the unit: what came after the event was spent after it. Time goes on until the last token.
    ensure!(said[0] - session[0] == after as f64, "tokens: {said:?} and {session:?}, {after} tokens later");
    ensure!(said[1] >= session[1] && said[1] - session[1] <= end["decode_ms"].as_f64().context("decode_ms")?, "time");
    ensure!((said[2] - session[2] - 0.01 * after as f64).abs() < 1e-9, "money: {said:?} and {session:?}");
    Ok(())
}

#[then(regex = r#"^the answer to "([^"]+)" and the session "([^"]+)" agree on what is left$"#)]
fn answer_agrees(world: &mut TestWorld, name: String, session: String) -> Result<()> {
    // Before its first token nothing of the task itself is spent, and after its end something is: so it is compared with what
    // the session said before it.
    let answer = world.admissions[&name].last().context("it was not sent")?.clone();
    let said: Vec<f64> = BUDGET_HEADERS.iter().map(|header| budget(&answer, header)).collect::<Result<_>>()?;
    world.read_to_end(&name)?;
    let end = world.first_event(&name, "end")?;
    let now = session_left(world, &session)?;
    let (tokens, ms) = (end["tokens_out"].as_f64().context("tokens")?, end["decode_ms"].as_f64().context("ms")?);
    ensure!(said[0] == now[0] + tokens, "tokens: {said:?}, then {now:?} after {tokens}");
    ensure!(said[1] == now[1] + ms, "time: {said:?}, then {now:?} after {ms} ms");
    ensure!((said[2] - now[2] - 0.01 * tokens).abs() < 1e-9, "money: {said:?}, then {now:?}");
    Ok(())
}

/// Tokens, time and money that a session may spend, as the scenario has set them.
fn session_allowance(world: &TestWorld) -> Result<[f64; 3]> {
    let mut allowed = [0.0; 3];
    for (value, name) in
        allowed.iter_mut().zip(["session_tokens_budget", "session_time_budget_ms", "session_cost_budget"])
    {
        *value = world.settings.value(name).with_context(|| format!("{name} is not set"))?.parse()?;
    }
    Ok(allowed)
}

/// What is left of a session's allowance when it has paid for this task and for nothing else.
fn left_after(world: &TestWorld, name: &str) -> Result<[f64; 3]> {
    let events = world.ended(name)?;
    let end = events.last().context("its stream is empty")?.json()?;
    let figure = |field: &str| end[field].as_f64().with_context(|| format!("no {field}: {end}"));
    let (tokens, ms) = (figure("tokens_out")?, figure("decode_ms")?);
    let came = events.iter().filter(|event| event.name == "token").count();
    ensure!(tokens == came as f64, "{came} tokens came, and the end says {tokens}");
    ensure!(tokens > 0.0 && ms > 0.0, "it has used nothing, so nothing is tested: {end}");
    let price: f64 = world.settings.value("cost_per_token").context("tokens have no price")?.parse()?;
    let [all_tokens, all_ms, all_cost] = session_allowance(world)?;
    Ok([all_tokens - tokens, all_ms - ms, all_cost - price * tokens])
}

/// To the unit; money is counted in millionths.
fn check_left(have: [f64; 3], wanted: [f64; 3]) -> Result<()> {
    let same = have[..2] == wanted[..2] && (have[2] - wanted[2]).abs() < 1e-7;
    ensure!(same, "tokens, ms and money left are {have:?}, and should be {wanted:?}");
    Ok(())
}

#[then(regex = r#"^the session "([^"]+)" has spent nothing so far$"#)]
fn spent_nothing(world: &mut TestWorld, session: String) -> Result<()> {
    let have = session_left(world, &session)?;
    check_left(have, session_allowance(world)?)
}

#[then(regex = r#"^the session "([^"]+)" has spent what "([^"]+)" used, to the unit$"#)]
fn spent_exactly(world: &mut TestWorld, session: String, name: String) -> Result<()> {
    let have = session_left(world, &session)?;
    check_left(have, left_after(world, &name)?)
}

#[then(regex = r#"^the answer to "([^"]+)" tells to the unit what "([^"]+)" has left$"#)]
fn answer_tells_left(world: &mut TestWorld, name: String, before: String) -> Result<()> {
    let answer = world.admissions[&name].last().context("it was not sent")?;
    let mut have = [0.0; 3];
    for (value, header) in have.iter_mut().zip(BUDGET_HEADERS) {
        *value = budget(answer, header)?;
    }
    check_left(have, left_after(world, &before)?)
}
