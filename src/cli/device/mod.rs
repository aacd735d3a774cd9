//! `device`: this machine's CUDA device, held against the CPU, against itself, and against what it can do at most: for
//! `engine/gpu/check.sh`.

mod layouts;
mod records;
mod report;
mod same;
mod shape;
mod speed;

use std::path::Path;

use clap::{Arg, ArgMatches, Command};
use orchestratord_engine::backend::cuda::{Driver, Found, Kernels, devices};

use super::Failure;
use crate::services::device;

pub fn command() -> Command {
    layouts::with_arguments(Command::new("device"))
        .about("Hold this machine's CUDA device against the CPU, or measure it")
        .args_conflicts_with_subcommands(true)
        .subcommand(same::command())
        .subcommand(speed::command())
        .subcommand(shape::command())
        .subcommand(report::command())
}

pub fn run(arguments: &ArgMatches) -> Result<(), Failure> {
    match arguments.subcommand() {
        Some(("same", arguments)) => same::run(arguments),
        Some(("speed", arguments)) => speed::run(arguments),
        Some(("model", arguments)) => shape::run(arguments),
        Some(("report", arguments)) => report::run(arguments),
        _ => layouts::run(arguments),
    }
}

/// Adds `--cuda-kernels`.
fn with_kernels(command: Command) -> Command {
    let help = "folder of kernels that this machine's NVRTC compiles; without it those of the binary";
    command.arg(Arg::new("cuda-kernels").long("cuda-kernels").value_name("FOLDER").help(help))
}

/// The first device, and where its kernels come from.
fn found(arguments: &ArgMatches) -> Result<(Found, Kernels), Failure> {
    let folder = arguments.get_one::<String>("cuda-kernels").map(Path::new);
    Ok((devices().map_err(Failure::failed)?.remove(0), device::kernels(folder)))
}

fn open((found, kernels): &(Found, Kernels)) -> Result<Driver, Failure> {
    Driver::open(found, kernels).map_err(Failure::failed)
}
