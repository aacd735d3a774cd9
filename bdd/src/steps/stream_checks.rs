//! What a stream has to hold.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cucumber::then;
use serde_json::Value;

use super::answers::{carries_correlation_id, check_budgets};
use super::listed;
use super::streams::token_count;
use super::world::{TestWorld, shown};
use crate::harness::sse::names;
use crate::harness::{Event, PATIENCE};

/// How many of a stream's tokens have to arrive at moments of their own; a busy machine may read several at once.
const MOMENTS_MIN: usize = 10;
/// Comment lines that show that a silent stream is kept alive, and not only greeted.
const HEARTBEATS_MIN: usize = 3;

#[then(regex = r#"^the stream of "([^"]+)" has the events "([^"]+)" in this order$"#)]
fn order(world: &mut TestWorld, name: String, kinds: String) -> Result<()> {
    let events = world.ended(&name)?;
    let mut seen: Vec<&str> = Vec::new();
    for event in &events {
        if !seen.contains(&event.name.as_str()) {
            seen.push(&event.name);
        }
    }
    ensure!(seen.iter().copied().eq(listed(&kinds)), "the events came as {}", names(&events));
    let between = &events[1..events.len() - 1];
    let is_framed = between.iter().all(|event| event.name == "token" || event.name == "metrics");
    ensure!(is_framed, "between start and end came more than tokens and metrics: {}", names(&events));
    ensure!(events.last().is_some_and(|event| event.name == "end"), "the last is not the end: {}", names(&events));
    Ok(())
}

#[then(regex = r#"^the stream of "([^"]+)" ends properly$"#)]
fn ends_properly(world: &mut TestWorld, name: String) -> Result<()> {
    let (last, reason) = finish(world, &name)?;
    ensure!(reason == "stop" || reason == "length", "it ended with {} {}", last.name, last.data);
    Ok(())
}

#[then(regex = r#"^the stream of "([^"]+)" ends because of "([^"]+)"$"#)]
fn ends_because(world: &mut TestWorld, name: String, wanted: String) -> Result<()> {
    let (last, reason) = finish(world, &name)?;
    ensure!(reason == wanted, "it ended with {} {}", last.name, last.data);
    Ok(())
}

#[then(regex = r#"^the stream of "([^"]+)" ends with the error "([^"]+)"$"#)]
fn ends_with_error(world: &mut TestWorld, name: String, code: String) -> Result<()> {
    let events = world.ended(&name)?;
    let last = events.last().context("the stream is empty")?;
    ensure!(last.name == "error", "the last event is no error: {}", names(&events));
    let data = last.json()?;
    ensure!(data["code"] == *code, "another error: {}", last.data);
    ensure!(data["engine"] == "cpu", "the error names no engine: {}", last.data);
    ensure!(data["message"].as_str().is_some_and(|text| !text.is_empty()), "it says nothing: {}", last.data);
    Ok(())
}

#[then(regex = r#"^the stream of "([^"]+)" has no end event$"#)]
fn has_no_end(world: &mut TestWorld, name: String) -> Result<()> {
    let events = world.ended(&name)?;
    ensure!(events.iter().all(|event| event.name != "end"), "it has one: {}", names(&events));
    Ok(())
}

#[then(regex = r#"^the stream of "([^"]+)" has (at least |fewer than |)(\d+) tokens?$"#)]
fn has_tokens(world: &mut TestWorld, name: String, bound: String, count: usize) -> Result<()> {
    let is_over = world.stream(&name)?.events().last().is_some_and(|last| last.name == "end" || last.name == "error");
    // A stream that still waits is looked at as it is; of one that runs, all has to be seen.
    let tokens = if is_over || count > 0 { world.tokens(&name)?.len() } else { token_count(world.stream(&name)?) };
    let holds = match bound.as_str() {
        "at least " => tokens >= count,
        "fewer than " => tokens < count,
        _ => tokens == count,
    };
    ensure!(holds, "it has {tokens} tokens");
    Ok(())
}

#[then(regex = r#"^the streams of "([^"]+)" and "([^"]+)" have (\d+) tokens together$"#)]
fn have_tokens_together(world: &mut TestWorld, first: String, second: String, count: usize) -> Result<()> {
    let (first, second) = (world.tokens(&first)?.len(), world.tokens(&second)?.len());
    ensure!(first + second == count, "they have {first} and {second} tokens");
    Ok(())
}

#[then(regex = r#"^the stream of "([^"]+)" has (more than )?(\d+) metrics events?$"#)]
fn has_metrics(world: &mut TestWorld, name: String, more: String, count: usize) -> Result<()> {
    let have = world.ended(&name)?.iter().filter(|event| event.name == "metrics").count();
    let holds = if more.is_empty() { have == count } else { have > count };
    ensure!(holds, "it has {have} metrics events");
    Ok(())
}

#[then(regex = r#"^the text of "([^"]+)" is not empty$"#)]
fn text_is_not_empty(world: &mut TestWorld, name: String) -> Result<()> {
    let text = world.text(&name)?;
    ensure!(text.chars().any(char::is_alphabetic), "its text is {text:?}");
    Ok(())
}

#[then(regex = r#"^the text of "([^"]+)" is that of "([^"]+)" up to that piece$"#)]
fn text_up_to(world: &mut TestWorld, name: String, other: String) -> Result<()> {
    let whole = world.text(&other)?;
    let piece = world.note("piece")?.as_str().context("a piece is text")?;
    let wanted = whole.split(piece).next().unwrap_or_default();
    let text = world.text(&name)?;
    ensure!(text == wanted, "{text:?} instead of {wanted:?}, which is what comes before {piece:?}");
    Ok(())
}

#[then(regex = r#"^the tokens of "([^"]+)" arrived one by one$"#)]
fn one_by_one(world: &mut TestWorld, name: String) -> Result<()> {
    let events = world.ended(&name)?;
    let moments: BTreeSet<_> = events.iter().filter(|event| event.name == "token").map(|event| event.arrived).collect();
    ensure!(moments.len() >= MOMENTS_MIN, "all tokens arrived at {} moments", moments.len());
    Ok(())
}

#[then(regex = r#"^every token of "([^"]+)" tells "([^"]+)"$"#)]
fn every_token_tells(world: &mut TestWorld, name: String, fields: String) -> Result<()> {
    for event in world.ended(&name)?.iter().filter(|event| event.name == "token") {
        check_fields(event, &fields)?;
    }
    Ok(())
}

#[then(regex = r#"^the (started|metrics|end|error) event of "([^"]+)" tells "([^"]+)"$"#)]
fn event_tells(world: &mut TestWorld, kind: String, name: String, fields: String) -> Result<()> {
    world.first_event(&name, &kind)?;
    for event in world.stream(&name)?.events().iter().filter(|event| event.name == kind) {
        check_fields(event, &fields)?;
    }
    Ok(())
}

#[then(regex = r#"^the end of "([^"]+)" counts the tokens that came$"#)]
fn end_counts(world: &mut TestWorld, name: String) -> Result<()> {
    let (_, tokens) = (finish(world, &name)?, world.tokens(&name)?);
    let end = world.first_event(&name, "end")?;
    ensure!(end["tokens_out"] == tokens.len(), "{} tokens came, the end says {end}", tokens.len());
    for (index, token) in tokens.iter().enumerate() {
        let token: Value = serde_json::from_str(token)?;
        ensure!(token["i"] == index, "token {index} is numbered {}", token["i"]);
    }
    Ok(())
}

#[then(regex = r#"^the events of "([^"]+)" are numbered one after the other$"#)]
fn numbered(world: &mut TestWorld, name: String) -> Result<()> {
    let events = world.ended(&name)?;
    let mut expected = None;
    for event in &events {
        let id = event.id.as_deref().with_context(|| format!("a {} event has no id", event.name))?;
        let id: u64 = id.parse().with_context(|| format!("{id:?} is no number"))?;
        ensure!(expected.is_none_or(|expected| id == expected), "{id} where {expected:?} was next");
        expected = Some(id + 1);
    }
    Ok(())
}

#[then(regex = r#"^no token of "([^"]+)" holds half a character$"#)]
fn no_half_characters(world: &mut TestWorld, name: String) -> Result<()> {
    let bytes = world.stream(&name)?.bytes();
    let text = String::from_utf8(bytes).context("the stream itself is not UTF-8")?;
    ensure!(!text.contains("\\ud"), "a surrogate half was sent");
    Ok(())
}

#[then(regex = r#"^no token of "([^"]+)" arrived after the cancel was confirmed$"#)]
fn none_after_cancel(world: &mut TestWorld, name: String) -> Result<()> {
    let seen = world.note("events when the cancel was confirmed")?.as_u64().context("its stream was not open")?;
    let events = world.ended(&name)?;
    let after = &events[seen as usize..];
    ensure!(after.iter().all(|event| event.name != "token"), "after the cancel came {}", names(after));
    Ok(())
}

#[then(regex = r#"^the stream of "([^"]+)" is an event stream that nobody may keep or hold back$"#)]
fn head_is_right(world: &mut TestWorld, name: String) -> Result<()> {
    let head = &world.stream(&name)?.head;
    let wanted = [("Content-Type", "text/event-stream"), ("Cache-Control", "no-cache"), ("X-Accel-Buffering", "no")];
    for (header, value) in wanted {
        let is_right = head.header(header).is_some_and(|have| have.starts_with(value));
        ensure!(is_right, "{header} is not {value}: {}", shown(head));
    }
    Ok(())
}

#[then(regex = r#"^the stream of "([^"]+)" carries the budgets$"#)]
fn stream_carries_budgets(world: &mut TestWorld, name: String) -> Result<()> {
    check_budgets(&world.stream(&name)?.head)
}

#[then(regex = r#"^the stream of "([^"]+)" carries a correlation id$"#)]
fn stream_carries_correlation_id(world: &mut TestWorld, name: String) -> Result<()> {
    carries_correlation_id(&world.stream(&name)?.head)
}

#[then(regex = r#"^the stream of "([^"]+)" is kept alive while it waits$"#)]
fn kept_alive(world: &mut TestWorld, name: String) -> Result<()> {
    world.stream(&name)?.wait_for_comments(PATIENCE, HEARTBEATS_MIN)
}

#[then(regex = r#"^the on_time_probability of "([^"]+)" is between ([\d.]+) and ([\d.]+)$"#)]
fn on_time(world: &mut TestWorld, name: String, low: f64, high: f64) -> Result<()> {
    for event in world.ended(&name)?.iter().filter(|event| event.name == "metrics") {
        let data = event.json()?;
        let probability = data["on_time_probability"].as_f64().context("it is not a number")?;
        ensure!((low..=high).contains(&probability), "it is {probability}");
    }
    Ok(())
}

#[then(regex = r#"^the started event of "([^"]+)" comes while it waits$"#)]
fn started_while_waiting(world: &mut TestWorld, name: String) -> Result<()> {
    world.first_event(&name, "started")?;
    let stream = world.stream(&name)?;
    // The task ahead runs for seconds; a token within this blink would mean that nothing waits.
    let blink = Duration::from_millis(50);
    let is_running = stream.wait_until(blink, |events| events.iter().any(|event| event.name == "token")).is_ok();
    ensure!(!is_running, "it does not wait");
    Ok(())
}

#[then(regex = r#"^"([^"]+)", "([^"]+)" and "([^"]+)" wait one behind the other$"#)]
fn one_behind_the_other(world: &mut TestWorld, first: String, second: String, third: String) -> Result<()> {
    let mut before: Option<(u64, u64)> = None;
    for name in [first, second, third] {
        let started = world.first_event(&name, "started")?;
        let position = started["queue_position"].as_u64().context("its place is no number")?;
        let start_ms = started["predicted_start_ms"].as_u64().context("its start is no number")?;
        // The server learns its own speed between two answers, so predictions of one order is all that can be asked.
        let is_behind = before.is_none_or(|(ahead, earlier)| position > ahead && 2 * start_ms >= earlier);
        ensure!(is_behind, "{name} waits at {position} for {start_ms} ms, the one ahead of it: {before:?}");
        before = Some((position, start_ms));
    }
    Ok(())
}

#[then(regex = r#"^the started event of "([^"]+)" says the same as the answer to it$"#)]
fn started_as_answered(world: &mut TestWorld, name: String) -> Result<()> {
    let answer = world.admissions[&name][0].json()?;
    let started = world.first_event(&name, "started")?;
    for field in ["queue_position", "predicted_start_ms"] {
        ensure!(answer[field] == started[field], "{field}: answered {answer}, started {started}");
    }
    Ok(())
}

fn check_fields(event: &Event, fields: &str) -> Result<()> {
    let data = event.json()?;
    for field in listed(fields) {
        ensure!(data.get(field).is_some_and(|value| !value.is_null()), "{field} is missing: {}", event.data);
    }
    Ok(())
}

/// The last event of a stream and the reason it gives for the end; empty for an error.
fn finish(world: &TestWorld, name: &str) -> Result<(Event, String)> {
    let last = world.ended(name)?.pop().context("the stream is empty")?;
    let reason = last.json()?["finish_reason"].as_str().unwrap_or_default().to_owned();
    Ok((last, reason))
}
