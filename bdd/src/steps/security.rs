//! Keys: having none, a wrong one, the printed one; and never finding one again.

use anyhow::{Context, Result, ensure};
use cucumber::{given, then, when};

use super::world::{Key, TestWorld};
use crate::harness::server::KEY;
use crate::harness::{Request, Server};

#[given("I have no key")]
#[when("I have no key any more")]
fn no_key(world: &mut TestWorld) {
    world.key = Key::None;
}

#[given(regex = r#"^my key is "([^"]+)"$"#)]
fn my_key(world: &mut TestWorld, key: String) {
    world.key = Key::Other(key);
}

#[when(regex = r#"^I go on with the key "([^"]+)"$"#)]
fn another_key(world: &mut TestWorld, key: String) {
    world.key = Key::Other(key);
}

#[when("I use the key that the server printed")]
fn printed_key(world: &mut TestWorld) -> Result<()> {
    let key = world.server()?.printed_key().context("it printed none")?;
    world.key = Key::Other(key);
    Ok(())
}

#[then("the printed key is not in the log")]
fn printed_key_is_not_logged(world: &mut TestWorld) -> Result<()> {
    let key = world.server()?.printed_key().context("it printed none")?;
    ensure!(!world.server()?.stderr().contains(&key), "it is");
    Ok(())
}

#[then("the server refuses to start and says something about a key")]
fn refuses_to_start(world: &mut TestWorld) -> Result<()> {
    let (status, said) = Server::run_to_exit(&world.settings)?;
    ensure!(!status.success(), "it stopped as if all was well: {said}");
    ensure!(said.contains("key"), "it does not say why: {said}");
    Ok(())
}

#[when(regex = r#"^I ask for "([^"]+)" with the wrong key "([^"]+)"$"#)]
fn ask_with_wrong_key(world: &mut TestWorld, path: String, key: String) -> Result<()> {
    world.send(&Request::get(&path).with("X-API-Key", &key)).map(drop)
}

#[when(regex = r#"^I ask for "([^"]+)" with the authorization "([^"]+)"$"#)]
fn ask_with_authorization(world: &mut TestWorld, path: String, value: String) -> Result<()> {
    world.send(&Request::get(&path).with("Authorization", &value)).map(drop)
}

#[then(regex = r#"^nothing that the server logged, counted or stored holds (?:"([^"]+)"|my key)$"#)]
fn nowhere(world: &mut TestWorld, secret: String) -> Result<()> {
    let secret = if secret.is_empty() { KEY.to_owned() } else { secret };
    let client = world.client()?;
    let metrics = client.send(&Request::get("/metrics"))?.text();
    ensure!(!metrics.contains(&secret), "it was counted");
    let names: Vec<String> = world.streams.keys().cloned().collect();
    for name in names {
        let end = world.first_event(&name, "end")?;
        let id = end["artifact_id"].as_str().context("no transcript")?;
        let stored = client.send(&Request::get(&format!("/v1/artifacts/{id}")))?.text();
        ensure!(!stored.contains(&secret), "it was stored: {stored}");
    }
    let log = world.server()?.stderr();
    ensure!(!log.contains(&secret), "it was logged: {log}");
    Ok(())
}
