//! Documents that are stored, and the transcripts among them.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use cucumber::gherkin::Step;
use cucumber::{then, when};
use serde_json::{Value, json};

use super::docstring;
use super::world::{TestWorld, shown};
use crate::harness::{Answer, Request};

impl TestWorld {
    fn store(&mut self, document: &str) -> Result<()> {
        let request =
            Request::new("POST", "/v1/artifacts").with("Content-Type", "application/json").with_body(document);
        let answer = self.send(&request)?.clone();
        self.notes.insert("document".to_owned(), json!(document));
        self.artifacts.push(answer);
        Ok(())
    }

    fn artifact_id(&self) -> Result<String> {
        let answer = self.artifacts.last().context("nothing was stored")?;
        Ok(answer.json()?["id"].as_str().with_context(|| format!("it has no id: {}", shown(answer)))?.to_owned())
    }

    /// Asks for the artifact that the end of a stream names.
    fn ask_for_transcript(&mut self, name: &str) -> Result<&Answer> {
        self.ended(name)?;
        let end = self.first_event(name, "end")?;
        let id = end["artifact_id"].as_str().with_context(|| format!("no artifact: {end}"))?.to_owned();
        self.notes.insert("transcript".to_owned(), json!(id));
        self.send(&Request::get(&format!("/v1/artifacts/{id}")))
    }
}

#[when("I store the artifact")]
fn store(world: &mut TestWorld, step: &Step) -> Result<()> {
    world.store(docstring(step)?)
}

#[when("I store an artifact that came from it")]
fn store_child(world: &mut TestWorld) -> Result<()> {
    let parent = world.artifact_id()?;
    world.store(&json!({"kind": "plan", "content": {"text": "final"}, "parent": parent}).to_string())?;
    world.notes.insert("parent".to_owned(), json!(parent));
    Ok(())
}

#[when("I ask for that artifact")]
fn ask(world: &mut TestWorld) -> Result<()> {
    let path = format!("/v1/artifacts/{}", world.artifact_id()?);
    world.send(&Request::get(&path)).map(drop)
}

#[then("the artifact's id is a digest")]
fn id_is_digest(world: &mut TestWorld) -> Result<()> {
    let id = world.artifact_id()?;
    let hex = id.strip_prefix("sha256:").unwrap_or_default();
    ensure!(hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()), "its id is {id}");
    Ok(())
}

#[then(regex = r#"^the artifact's id is "([^"]+)"$"#)]
fn id_is(world: &mut TestWorld, wanted: String) -> Result<()> {
    let id = world.artifact_id()?;
    ensure!(id == wanted, "its id is {id}");
    Ok(())
}

#[then("the artifact holds what I stored")]
fn holds(world: &mut TestWorld) -> Result<()> {
    let stored: Value = serde_json::from_str(world.note("document")?.as_str().context("a document is text")?)?;
    let answer = world.answer()?;
    let body = answer.json()?;
    for (field, value) in stored.as_object().context("a document is an object")? {
        ensure!(same(&body[field], value), "{field} is not what was stored: {}", shown(answer));
    }
    Ok(())
}

#[then("the artifact names the one it came from")]
fn names_parent(world: &mut TestWorld) -> Result<()> {
    let answer = world.answer()?;
    ensure!(&answer.json()?["parent"] == world.note("parent")?, "it does not: {}", shown(answer));
    Ok(())
}

#[then(regex = r"^(?:both artifacts have the (same) id|the artifacts have different ids)$")]
fn compare_ids(world: &mut TestWorld, same: String) -> Result<()> {
    let ids: Vec<Value> =
        world.artifacts.iter().map(|answer| Ok(answer.json()?["id"].clone())).collect::<Result<_>>()?;
    ensure!(ids.len() == 2 && ids.iter().all(Value::is_string), "{:?}", world.artifacts.iter().map(shown));
    ensure!((ids[0] == ids[1]) != same.is_empty(), "{ids:?}");
    Ok(())
}

#[when(regex = r#"^somebody changes "([^"]+)" to "([^"]+)" in the folder$"#)]
fn tamper(world: &mut TestWorld, old: String, new: String) -> Result<()> {
    let root = world.settings.value("artifacts_fs_root").context("there is no folder")?.to_owned();
    let count = replace_in(Path::new(&root), &old, &new)?;
    ensure!(count > 0, "no file in the folder holds {old}");
    Ok(())
}

/// Replaces a word in all files beneath a folder and tells how many held it.
fn replace_in(folder: &Path, old: &str, new: &str) -> Result<usize> {
    let mut count = 0;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            count += replace_in(&path, old, new)?;
            continue;
        }
        let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
        if text.contains(old) {
            std::fs::write(&path, text.replace(old, new))?;
            count += 1;
        }
    }
    Ok(count)
}

#[when(regex = r#"^I ask for the transcript of "([^"]+)"$"#)]
fn ask_for_transcript(world: &mut TestWorld, name: String) -> Result<()> {
    world.ask_for_transcript(&name).map(drop)
}

#[then(regex = r#"^the transcript of "([^"]+)" is there before and after a restart$"#)]
fn transcript_survives(world: &mut TestWorld, name: String) -> Result<()> {
    let before = world.ask_for_transcript(&name)?.clone();
    ensure!(before.status == 200, "it is not there: {}", shown(&before));
    let path = format!("/v1/artifacts/{}", world.note("transcript")?.as_str().unwrap_or_default());
    world.stop_server();
    let after = world.send(&Request::get(&path))?;
    ensure!(after.status == 200 && after.json()? == before.json()?, "before {}\nafter {}", before.text(), after.text());
    Ok(())
}

#[then(regex = r#"^the transcript has the events "([^"]+)"$"#)]
fn transcript_events(world: &mut TestWorld, kinds: String) -> Result<()> {
    let events = transcript(world)?;
    for kind in super::listed(&kinds) {
        ensure!(events.iter().any(|event| event["type"] == kind), "{kind} is missing");
    }
    Ok(())
}

#[then(regex = r#"^the transcript says what the stream of "([^"]+)" said$"#)]
fn transcript_as_sent(world: &mut TestWorld, name: String) -> Result<()> {
    let kept = transcript(world)?;
    let sent = world.ended(&name)?;
    ensure!(kept.len() == sent.len(), "{} events kept, {} sent", kept.len(), sent.len());
    for (kept, sent) in kept.iter().zip(&sent) {
        let mut data = sent.json()?;
        if let Some(fields) = data.as_object_mut() {
            // The transcript cannot hold its own digest.
            fields.remove("artifact_id");
        }
        ensure!(kept["type"] == *sent.name && same(&kept["data"], &data), "kept {kept}, sent {data}");
    }
    Ok(())
}

#[then(regex = r#"^the transcript is of the kind "([^"]+)"$"#)]
fn transcript_kind(world: &mut TestWorld, kind: String) -> Result<()> {
    let answer = world.answer()?;
    ensure!(answer.json()?["kind"] == *kind, "it is not: {}", shown(answer));
    Ok(())
}

#[then("the transcript's metadata mention a prompt, a seed, a model, an engine and a sampler")]
fn transcript_metadata(world: &mut TestWorld) -> Result<()> {
    let body = world.answer()?.json()?;
    let metadata = body["metadata"].as_object().with_context(|| format!("no metadata: {body}"))?;
    for word in ["prompt", "seed", "model", "engine", "sampler"] {
        let is_there =
            metadata.keys().any(|key| key.contains(word)) || metadata.values().any(|v| v.get(word).is_some());
        ensure!(is_there, "no {word}: {:?}", metadata.keys());
    }
    Ok(())
}

#[then("the transcript's id is its digest")]
fn transcript_digest(world: &mut TestWorld) -> Result<()> {
    let id = world.note("transcript")?.as_str().unwrap_or_default();
    let hex = id.strip_prefix("sha256:").unwrap_or_default();
    ensure!(hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()), "its id is {id}");
    Ok(())
}

/// Whether two documents say the same; canonical JSON writes 1.0 as 1.
fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => left.as_f64() == right.as_f64(),
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| same(left, right))
        }
        (Value::Object(left), Value::Object(right)) => {
            left.len() == right.len()
                && left.iter().all(|(name, value)| right.get(name).is_some_and(|other| same(value, other)))
        }
        _ => left == right,
    }
}

fn transcript(world: &TestWorld) -> Result<Vec<Value>> {
    let answer = world.answer()?;
    let body = answer.json()?;
    Ok(body["content"]["events"].as_array().with_context(|| format!("no events: {}", shown(answer)))?.clone())
}
