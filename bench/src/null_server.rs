//! Our server on a paced engine: the release code from the socket to the engine's sink and back.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use orchestratord::app::bootstrap::Server;
use orchestratord::config::{self, Config};
use orchestratord::services::pool::{self, Installable};
use orchestratord::services::prediction::StepModel;
use orchestratord::services::trials::Trials;

use crate::paced::Paced;

/// Tokens are this text: one of the built-in model's own, of ordinary length.
const TOKEN_TEXT: &str = " the";

#[derive(Args)]
pub struct Options {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1:8090")]
    pub listen: SocketAddr,
    /// Time between two tokens of a sequence, microseconds.
    #[arg(long, default_value_t = 20_000)]
    pub interval_us: u64,
    /// Any setting of the server, as NAME=VALUE.
    #[arg(long = "set")]
    pub settings: Vec<String>,
}

/// The configuration of a null server: room for every stream of a bench, everything else as it is by default.
///
/// # Errors
///
/// When a setting is none.
pub fn configuration(options: &Options) -> Result<Config, String> {
    let fixed = [
        ("listen", options.listen.to_string()),
        ("api_keys", "bench-key-of-no-value".into()),
        ("slots_max", "4096".into()),
        ("step_rows_max", "4096".into()),
        ("queue_capacity", "8192".into()),
        ("log_level", "info".into()),
    ];
    let mut flags: Vec<(String, String)> = fixed.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    for setting in &options.settings {
        let (name, value) = setting.split_once('=').ok_or_else(|| format!("--set {setting}: write NAME=VALUE"))?;
        flags.push((name.to_owned(), value.to_owned()));
    }
    config::load(None, [], flags).map(|loaded| loaded.config).map_err(|e| e.to_string())
}

/// Starts the server in this process.
///
/// # Errors
///
/// As `Server::start`.
pub fn start(options: &Options) -> Result<Server, String> {
    let interval = Duration::from_micros(options.interval_us.max(1));
    Server::start_with(configuration(options)?, |config, pool| {
        // The real model, for its tokenizer; its own engine with as few slots as it takes to measure it.
        let rules = pool::PoolRules { slots_max: 16, step_rows_max: 128, ..pool.rules.clone() };
        let loaded = pool::load(config.model.as_deref(), &rules, pool.engine_version, None)?.loaded;
        let speed = StepModel::new(interval.as_secs_f64() * 1e6);
        let token = loaded.model.tokenizer().encode(TOKEN_TEXT, false, false)[0];
        let engine = Box::new(Paced::new(interval, token, config.slots_max));
        Ok(Installable { loaded, engine, speed, trials: Trials::none() })
    })
}

/// Serves until SIGTERM or SIGINT ends the process.
///
/// # Errors
///
/// As `start`.
pub fn run(options: &Options) -> Result<(), String> {
    let server = start(options)?;
    println!("listening on {}", server.address);
    loop {
        std::thread::park();
    }
}
