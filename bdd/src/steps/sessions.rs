//! Sessions: asking for them, deleting them, waiting until they are gone.

use anyhow::Result;
use cucumber::{then, when};

use super::answers::check_refusal;
use super::world::TestWorld;
use crate::harness::{Request, wait_for};

impl TestWorld {
    fn session_path(&mut self, name: &str) -> String {
        format!("/v1/sessions/{}", self.session_id(name))
    }
}

#[when(regex = r#"^I ask for the session "([^"]+)"$"#)]
fn ask(world: &mut TestWorld, name: String) -> Result<()> {
    let path = world.session_path(&name);
    world.send(&Request::get(&path)).map(drop)
}

#[when(regex = r#"^I delete the session "([^"]+)"$"#)]
fn delete(world: &mut TestWorld, name: String) -> Result<()> {
    let path = world.session_path(&name);
    world.send(&Request::new("DELETE", &path)).map(drop)
}

#[then(regex = r#"^the session "([^"]+)" is gone after a while$"#)]
fn is_gone(world: &mut TestWorld, name: String) -> Result<()> {
    let path = world.session_path(&name);
    wait_for("the session to go", || Ok((world.send(&Request::get(&path))?.status != 200).then_some(())))?;
    check_refusal(world.answer()?, "NOT_FOUND")
}
