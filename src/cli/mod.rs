//! The command line: `serve` (also without a subcommand), `config check`, commands that run a model without a server, and
//! some that talk to one.
//!
//! Exit codes, the same for every command: 0 when it did what was asked, 1 when it could not (the model cannot be loaded
//! or run, the server cannot start, output cannot be written), 2 when what was asked makes no sense (the command line, a
//! token that the model does not have, input that is not UTF-8).

mod about;
mod bench;
mod chat;
mod complete;
mod device;
mod logits;
mod model;
mod progress;
mod pull;
mod remote;
mod replay;
mod settings;
mod shell;
mod tokenize;

use std::io;
use std::process::ExitCode;

use clap::{ArgMatches, Command};

use crate::app::bootstrap;

/// Why a command did not do what was asked, in one line.
enum Failure {
    /// The world's fault: exit code 1.
    Failed(String),
    /// The caller's fault: exit code 2.
    Misused(String),
    /// Whoever read the output has gone, as `head` does when it has enough. Nothing to say.
    ReaderGone,
}

impl Failure {
    fn failed(error: impl ToString) -> Failure {
        Failure::Failed(error.to_string())
    }

    fn misused(error: impl ToString) -> Failure {
        Failure::Misused(error.to_string())
    }

    /// What became of a write to standard output.
    fn output(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::ReaderGone,
            _ => Failure::Failed(format!("standard output: {error}")),
        }
    }
}

/// Runs the process.
pub fn main() -> ExitCode {
    // Reads the variable FAILPOINTS; only builds for tests have this.
    #[cfg(feature = "failpoints")]
    let _faults = fail::FailScenario::setup();
    let matches = command().get_matches();
    match run(&matches) {
        Ok(()) | Err(Failure::ReaderGone) => ExitCode::SUCCESS,
        Err(Failure::Failed(message)) => {
            eprintln!("orchestratord: {message}");
            ExitCode::from(1)
        }
        Err(Failure::Misused(message)) => {
            eprintln!("orchestratord: {message}");
            ExitCode::from(2)
        }
    }
}

fn run(matches: &ArgMatches) -> Result<(), Failure> {
    match matches.subcommand() {
        Some(("bench", arguments)) => bench::run(arguments),
        Some(("logits", arguments)) => logits::run(arguments),
        Some(("tokenize", arguments)) => tokenize::run(arguments),
        Some(("detokenize", arguments)) => tokenize::run_back(arguments),
        Some(("complete", arguments)) => complete::run(arguments),
        Some(("chat", arguments)) => chat::run(arguments),
        Some(("replay", arguments)) => replay::run(arguments),
        Some(("pull", arguments)) => pull::run(arguments),
        Some(("models", arguments)) => about::models(arguments),
        Some(("device", arguments)) => device::run(arguments),
        Some(("doctor", arguments)) => about::doctor(arguments),
        Some(("completions", arguments)) => shell::completions(arguments, command()),
        Some(("man", _)) => shell::man(command()),
        Some(("config", sub)) => {
            let ("check", arguments) = sub.subcommand().expect("clap requires a subcommand here") else {
                unreachable!("clap knows no other")
            };
            settings::check(&settings::load(arguments).map_err(Failure::failed)?, arguments.get_flag("json"))
        }
        Some(("serve", arguments)) => serve(arguments),
        _ => serve(matches),
    }
}

fn serve(arguments: &ArgMatches) -> Result<(), Failure> {
    let loaded = settings::load(arguments).map_err(Failure::failed)?;
    // Elsewhere standard error has the log, which says the same.
    let mut status = progress::Status::on_terminal();
    if let Some(status) = &mut status {
        let name =
            loaded.config.model.as_ref().map_or_else(|| "the built-in model".into(), |m| m.display().to_string());
        status.say(&format!("loading {name}"));
    }
    bootstrap::serve(loaded.config, || drop(status)).map_err(Failure::Failed)
}

fn command() -> Command {
    let serve = settings::with_settings(Command::new("serve").about("Serve a model (the default)"));
    let check = Command::new("check").about("Print every setting, its value and where it came from");
    let check = settings::with_settings(check);
    let check = model::with_json(check, "print an object of {\"value\", \"source\"} instead");
    let config = Command::new("config").about("About the configuration").subcommand_required(true).subcommand(check);
    settings::with_settings(Command::new("orchestratord"))
        .about("An LLM inference server that keeps its promises")
        .version(env!("CARGO_PKG_VERSION"))
        .after_help(
            "Exit codes: 0 done; 1 the model, the server or the output failed; 2 the command line or input is wrong.",
        )
        .args_conflicts_with_subcommands(true)
        .subcommand(serve)
        .subcommand(config)
        .subcommand(chat::command())
        .subcommand(complete::command())
        .subcommand(replay::command())
        .subcommand(pull::command())
        .subcommand(about::models_command())
        .subcommand(about::doctor_command())
        .subcommand(device::command())
        .subcommand(bench::command())
        .subcommand(logits::command())
        .subcommand(tokenize::command())
        .subcommand(tokenize::command_back())
        .subcommand(shell::completions_command())
        .subcommand(shell::man_command())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_knows_every_setting() {
        command().debug_assert();
        let matches = command().get_matches_from(["orchestratord", "serve", "--queue-capacity", "7", "--threads", "2"]);
        let loaded = settings::load(matches.subcommand().unwrap().1).unwrap();
        assert_eq!((loaded.config.queue_capacity, loaded.config.threads), (7, 2));
        let matches = command().get_matches_from(["orchestratord", "--queue-capacity", "8"]);
        assert_eq!(settings::load(&matches).unwrap().config.queue_capacity, 8);
    }
}
