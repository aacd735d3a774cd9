//! Settings from the command line, the environment and the configuration file: for `serve` and `config check`.

use std::io::Write;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command};
use serde_json::json;

use super::Failure;
use crate::config::{self, ConfigError, Loaded, SETTINGS};

/// One flag per setting, made from the same table as the environment's names.
pub fn with_settings(command: Command) -> Command {
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

pub fn load(arguments: &ArgMatches) -> Result<Loaded, ConfigError> {
    let text = |name: &str| arguments.get_one::<String>(name).cloned();
    let file = text("config").or_else(|| std::env::var("ORCH_CONFIG").ok()).map(PathBuf::from);
    let flags = SETTINGS.iter().filter_map(|s| text(s.name).map(|value| (s.name.to_owned(), value)));
    // A variable that is not Unicode cannot be one of ours, but for its value; that is refused with its name.
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())));
    config::load(file.as_deref(), environment, flags)
}

/// Prints every setting, its value and where it came from.
pub fn check(loaded: &Loaded, as_json: bool) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    if as_json {
        let one = |(name, value): (&str, String)| {
            (name.to_owned(), json!({"value": value, "source": loaded.source(name).to_string()}))
        };
        let all: serde_json::Map<String, serde_json::Value> = loaded.config.shown().into_iter().map(one).collect();
        return writeln!(out, "{}", serde_json::Value::Object(all)).map_err(Failure::output);
    }
    for (name, value) in loaded.config.shown() {
        writeln!(out, "{name} = {value}  # {}", loaded.source(name)).map_err(Failure::output)?;
    }
    Ok(())
}
