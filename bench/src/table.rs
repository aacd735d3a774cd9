//! The table of a run.
use clap::Args;
#[derive(Args)]
pub struct Options {}
pub fn run(_: &Options) -> Result<(), String> {
    Ok(())
}
