//! What breaks: the engine, its device, the server itself, for real, at the fault points of a build that has them.

use anyhow::Result;
use cucumber::{given, when};

use super::world::TestWorld;

#[given(regex = r"^the engine needs (\d+) ms for every step$")]
fn slow_engine(world: &mut TestWorld, ms: u32) {
    world.settings.add_fault(&format!("engine-step=sleep({ms})"));
}

#[given(regex = r"^the engine crashes once after (\d+) steps$")]
fn engine_crashes(world: &mut TestWorld, steps: u32) {
    world.settings.add_fault(&format!("engine-step={steps}*off->1*panic"));
}

#[given(regex = r"^the device fails once after (\d+) steps$")]
fn device_fails(world: &mut TestWorld, steps: u32) {
    world.settings.add_fault(&format!("engine-step={steps}*off->1*return"));
}

#[given(regex = r"^one step of the engine hangs for (\d+) ms after (\d+) steps$")]
fn engine_hangs(world: &mut TestWorld, ms: u32, steps: u32) {
    world.settings.add_fault(&format!("engine-step={steps}*off->1*sleep({ms})"));
}

#[given("the server breaks once while it takes a task")]
fn create_task_breaks(world: &mut TestWorld) {
    world.settings.add_fault("create-task=1*return");
}

#[when("the server is started again")]
fn restart(world: &mut TestWorld) -> Result<()> {
    world.stop_server();
    world.server().map(drop)
}
