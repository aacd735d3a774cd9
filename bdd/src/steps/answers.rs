//! What an answer says, in a user's words and in HTTP's numbers.

use anyhow::{Context, Result, bail, ensure};
use cucumber::then;
use serde_json::Value;
use uuid::Uuid;

use super::listed;
use super::world::{TestWorld, shown};
use crate::harness::Answer;

pub const BUDGET_HEADERS: [&str; 3] =
    ["X-Budget-Tokens-Remaining", "X-Budget-Time-Remaining-Ms", "X-Budget-Cost-Remaining"];

/// The status that belongs to each code of the error envelope.
fn status_of(code: &str) -> Result<u16> {
    Ok(match code {
        "INVALID_PARAMS" | "DEADLINE_UNMET" | "UNTRUSTED_ARTIFACT" => 400,
        "UNAUTHORIZED" => 401,
        "FORBIDDEN" => 403,
        "NOT_FOUND" => 404,
        "METHOD_NOT_ALLOWED" => 405,
        "RELOAD_CONFLICT" => 409,
        "PAYLOAD_TOO_LARGE" => 413,
        "ADMISSION_REJECT" | "QUEUE_FULL_DROP_LRU" => 429,
        "HEADERS_TOO_LARGE" => 431,
        "INTERNAL" => 500,
        "MODEL_DEPRECATED" | "REPLICA_EXHAUSTED" | "POOL_UNREADY" | "POOL_UNAVAILABLE" | "DECODE_TIMEOUT"
        | "WORKER_RESET" => 503,
        other => bail!("{other} is not a code of the contract"),
    })
}

#[then(regex = r"^it is (answered|created|accepted|done)$")]
fn succeeds(world: &mut TestWorld, how: String) -> Result<()> {
    let answer = world.answer()?;
    let status = match how.as_str() {
        "answered" => 200,
        "created" => 201,
        "accepted" => 202,
        _ => 204,
    };
    ensure!(answer.status == status, "not {status}: {}", shown(answer));
    ensure!(status != 204 || answer.body.is_empty(), "there is more to say: {}", shown(answer));
    Ok(())
}

#[then(regex = r#"^it is refused as "([^"]+)"$"#)]
fn refused(world: &mut TestWorld, code: String) -> Result<()> {
    check_refusal(world.answer()?, &code)
}

#[then(regex = r#"^it is refused as "([^"]+)" with the status (\d+)$"#)]
fn refused_with_status(world: &mut TestWorld, code: String, status: u16) -> Result<()> {
    check_refusal_with(world.answer()?, &code, status)
}

/// Holds a refusal against the envelope.
pub fn check_refusal(answer: &Answer, code: &str) -> Result<()> {
    check_refusal_with(answer, code, status_of(code)?)
}

fn check_refusal_with(answer: &Answer, code: &str, status: u16) -> Result<()> {
    let body = answer.json()?;
    ensure!(body["code"] == code, "not {code}: {}", shown(answer));
    ensure!(answer.status == status, "{code} with another status: {}", shown(answer));
    ensure!(body["message"].as_str().is_some_and(|text| text.len() > 4), "it says nothing: {}", shown(answer));
    ensure!(body["retriable"].is_boolean(), "retriable or not? {}", shown(answer));
    let is_json = answer.header("Content-Type").is_some_and(|value| value.starts_with("application/json"));
    ensure!(is_json, "not said to be JSON: {}", shown(answer));
    if body.get("retry_after_ms").is_some_and(|value| !value.is_null()) {
        check_retry(answer, 1)?;
    }
    carries_correlation_id(answer)
}

#[then("it is refused, whatever the reason")]
fn refused_somehow(world: &mut TestWorld) -> Result<()> {
    let answer = world.answer()?;
    ensure!(answer.status >= 400, "it is not: {}", shown(answer));
    Ok(())
}

#[then(regex = r#"^the refusal names "([^"]+)"$"#)]
fn names_field(world: &mut TestWorld, word: String) -> Result<()> {
    let answer = world.answer()?;
    let body = answer.json()?;
    ensure!(body["message"].as_str().is_some_and(|text| text.contains(&word)), "it does not: {}", shown(answer));
    Ok(())
}

#[then(regex = r#"^the refusal names the (engine|policy) "([^"]+)"$"#)]
fn names_engine_or_policy(world: &mut TestWorld, what: String, name: String) -> Result<()> {
    let field = if what == "engine" { "engine" } else { "policy_label" };
    let answer = world.answer()?;
    ensure!(answer.json()?[field] == *name, "it does not: {}", shown(answer));
    Ok(())
}

#[then("the refusal names a policy")]
fn names_a_policy(world: &mut TestWorld) -> Result<()> {
    let answer = world.answer()?;
    ensure!(answer.json()?["policy_label"].is_string(), "it does not: {}", shown(answer));
    Ok(())
}

#[then(regex = r"^the refusal says that a retry is (useless|worthwhile)$")]
fn retriable(world: &mut TestWorld, hope: String) -> Result<()> {
    let answer = world.answer()?;
    ensure!(answer.json()?["retriable"] == (hope == "worthwhile"), "it does not: {}", shown(answer));
    Ok(())
}

#[then(regex = r"^I am told to retry after at least (\d+) seconds?$")]
fn told_to_retry(world: &mut TestWorld, seconds: u64) -> Result<()> {
    check_retry(world.answer()?, seconds)
}

/// Header in seconds, header in milliseconds and body have to say the same.
fn check_retry(answer: &Answer, seconds_min: u64) -> Result<()> {
    let number = |name: &str| answer.header(name).and_then(|value| value.parse::<u64>().ok());
    let seconds = number("Retry-After").with_context(|| format!("no Retry-After: {}", shown(answer)))?;
    let backoff_ms = number("X-Backoff-Ms").with_context(|| format!("no X-Backoff-Ms: {}", shown(answer)))?;
    let advice_ms = answer.json()?["retry_after_ms"].as_u64().context("no retry_after_ms")?;
    ensure!(seconds >= seconds_min, "only {seconds} s");
    ensure!(backoff_ms == advice_ms, "header {backoff_ms} ms, body {advice_ms} ms");
    ensure!(seconds == advice_ms.div_ceil(1000).max(1), "{seconds} s do not agree with {advice_ms} ms");
    Ok(())
}

#[then("the answer carries a correlation id")]
fn carries_some_correlation_id(world: &mut TestWorld) -> Result<()> {
    carries_correlation_id(world.answer()?)
}

pub fn carries_correlation_id(answer: &Answer) -> Result<()> {
    let id = answer.header("X-Correlation-Id").unwrap_or_default();
    ensure!(!id.is_empty(), "no correlation id: {}", shown(answer));
    Ok(())
}

#[then("the answer carries a fresh correlation id")]
fn carries_fresh_correlation_id(world: &mut TestWorld) -> Result<()> {
    let answer = world.answer()?;
    let id = answer.header("X-Correlation-Id").unwrap_or_default();
    Uuid::parse_str(id).with_context(|| format!("not a UUID: {}", shown(answer)))?;
    Ok(())
}

#[then(regex = r#"^the answer carries the correlation id "([^"]+)"$"#)]
fn carries_my_correlation_id(world: &mut TestWorld, id: String) -> Result<()> {
    let answer = world.answer()?;
    ensure!(answer.header("X-Correlation-Id") == Some(&id), "it does not: {}", shown(answer));
    Ok(())
}

#[then("the answer carries the budgets")]
fn carries_budgets(world: &mut TestWorld) -> Result<()> {
    check_budgets(world.answer()?)
}

pub fn check_budgets(answer: &Answer) -> Result<()> {
    BUDGET_HEADERS.iter().try_for_each(|name| budget(answer, name).map(drop))
}

/// The figure of a budget header.
pub fn budget(answer: &Answer, name: &str) -> Result<f64> {
    let value = answer.header(name).with_context(|| format!("no {name}: {}", shown(answer)))?;
    value.parse().with_context(|| format!("{name} is no number: {value}"))
}

#[then(regex = r"^the budgets of the answer are (\d+) tokens, (\d+) ms and (\d+) units of money$")]
fn budgets_are(world: &mut TestWorld, tokens: f64, time_ms: f64, cost: f64) -> Result<()> {
    for (name, wanted) in BUDGET_HEADERS.iter().zip([tokens, time_ms, cost]) {
        let have = budget(world.answer()?, name)?;
        ensure!((have - wanted).abs() < 1e-6, "{name} is {have}");
    }
    Ok(())
}

#[then(regex = r"^the budget of the answer is (\d+) tokens$")]
fn token_budget_is(world: &mut TestWorld, tokens: f64) -> Result<()> {
    let have = budget(world.answer()?, BUDGET_HEADERS[0])?;
    ensure!(have == tokens, "it is {have}");
    Ok(())
}

#[then(regex = r#"^the answer tells "([^"]+)"$"#)]
fn tells(world: &mut TestWorld, fields: String) -> Result<()> {
    let answer = world.answer()?;
    let body = answer.json()?;
    for field in listed(&fields) {
        ensure!(body.get(field).is_some_and(|value| !value.is_null()), "{field} is missing: {}", shown(answer));
    }
    Ok(())
}

#[then(regex = r#"^the answer's "([^"]+)" is (more than |less than |)(-?[\d.]+)$"#)]
fn figure_is(world: &mut TestWorld, field: String, bound: String, wanted: f64) -> Result<()> {
    let answer = world.answer()?;
    let body = answer.json()?;
    let have = figure(&body[&field]).with_context(|| format!("{field} is no number: {}", shown(answer)))?;
    let holds = match bound.as_str() {
        "more than " => have > wanted,
        "less than " => have < wanted,
        _ => (have - wanted).abs() < 1e-6,
    };
    ensure!(holds, "{field} is {have}: {}", shown(answer));
    Ok(())
}

/// A number, or yes and no as 1 and 0.
pub fn figure(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_bool().map(|yes| if yes { 1.0 } else { 0.0 }))
}

#[then(regex = r#"^both answers to "([^"]+)" are the same$"#)]
fn same_answers(world: &mut TestWorld, name: String) -> Result<()> {
    let answers = &world.admissions[&name];
    ensure!(answers.len() == 2, "{} answers", answers.len());
    ensure!(
        answers[0].status == 202 && answers[1].status == 202,
        "{:?}",
        answers.iter().map(shown).collect::<Vec<_>>()
    );
    ensure!(answers[0].json()? == answers[1].json()?, "{} and {}", answers[0].text(), answers[1].text());
    Ok(())
}

#[then(regex = r#"^the answer tells where the stream of "([^"]+)" is$"#)]
fn tells_location(world: &mut TestWorld, name: String) -> Result<()> {
    let wanted = format!("/v1/tasks/{}/stream", world.task_id(&name)?);
    let answer = world.answer()?;
    ensure!(answer.header("Location") == Some(&wanted), "it does not: {}", shown(answer));
    Ok(())
}

#[then(regex = r#"^the answer allows "([^"]+)"$"#)]
fn allows(world: &mut TestWorld, method: String) -> Result<()> {
    let answer = world.answer()?;
    let is_allowed = answer.header("Allow").is_some_and(|allowed| listed(allowed).any(|one| one == method));
    ensure!(is_allowed, "it does not: {}", shown(answer));
    Ok(())
}
