//! The command line: `serve` (also without a subcommand) and `config check`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};

use crate::app::bootstrap;
use crate::config::{self, ConfigError, Loaded, SETTINGS};

/// Runs the process.
///
/// Exit code 0 after a clean stop, 1 when the server cannot start, 2 for a command line that is wrong.
pub fn main() -> ExitCode {
    // Reads the variable FAILPOINTS; only builds for tests have this.
    #[cfg(feature = "failpoints")]
    let _faults = fail::FailScenario::setup();
    let matches = command().get_matches();
    let (name, arguments) = match matches.subcommand() {
        Some(("config", sub)) => match sub.subcommand() {
            Some(("check", arguments)) => ("config check", arguments),
            _ => unreachable!("clap requires a subcommand here"),
        },
        Some(("serve", arguments)) => ("serve", arguments),
        _ => ("serve", &matches),
    };
    let result = load(arguments).map_err(|e| e.to_string()).and_then(|loaded| match name {
        "config check" => check(&loaded),
        _ => bootstrap::serve(loaded.config),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("orchestratord: {message}");
            ExitCode::from(1)
        }
    }
}

fn command() -> Command {
    let serve = with_settings(Command::new("serve").about("Serve a model (the default)"));
    let check = with_settings(Command::new("check").about("Print every setting, its value and where it came from"));
    let config = Command::new("config").about("About the configuration").subcommand_required(true).subcommand(check);
    with_settings(Command::new("orchestratord"))
        .about("An LLM inference server that keeps its promises")
        .version(env!("CARGO_PKG_VERSION"))
        .args_conflicts_with_subcommands(true)
        .subcommand(serve)
        .subcommand(config)
}

/// One flag per setting, made from the same table as the environment's names.
fn with_settings(command: Command) -> Command {
    let file = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .help("TOML file with settings; also ORCH_CONFIG [environment and flags win over it]");
    let flags = SETTINGS.iter().map(|s| {
        let value = s.name.rsplit('_').next().unwrap_or(s.name).to_ascii_uppercase();
        Arg::new(s.name).long(s.name.replace('_', "-")).value_name(value).help(s.help).allow_negative_numbers(true)
    });
    command.arg(file).args(flags)
}

fn load(arguments: &ArgMatches) -> Result<Loaded, ConfigError> {
    let text = |name: &str| arguments.get_one::<String>(name).cloned();
    let file = text("config").or_else(|| std::env::var("ORCH_CONFIG").ok()).map(PathBuf::from);
    let flags = SETTINGS.iter().filter_map(|s| text(s.name).map(|value| (s.name.to_owned(), value)));
    // A variable that is not Unicode cannot be one of ours, but for its value; that is refused with its name.
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())));
    config::load(file.as_deref(), environment, flags)
}

fn check(loaded: &Loaded) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    for (name, value) in loaded.config.shown() {
        let line = writeln!(out, "{name} = {value}  # {}", loaded.source(name));
        line.map_err(|e| e.to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_knows_every_setting() {
        command().debug_assert();
        let matches = command().get_matches_from(["orchestratord", "serve", "--queue-capacity", "7", "--threads", "2"]);
        let loaded = load(matches.subcommand().unwrap().1).unwrap();
        assert_eq!((loaded.config.queue_capacity, loaded.config.threads), (7, 2));
        let matches = command().get_matches_from(["orchestratord", "--queue-capacity", "8"]);
        assert_eq!(load(&matches).unwrap().config.queue_capacity, 8);
    }
}
