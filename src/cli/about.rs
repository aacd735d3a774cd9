//! What there is to serve, and whether this machine can: `models` and `doctor`.

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Command, value_parser};
use orchestratord_engine::{Engine, EngineOptions, Model};
use serde_json::{Value, json};

use super::{Failure, model, settings};
use crate::config::Config;
use crate::infra::reactor::{Driver, detect_driver, raise_descriptor_limit};
use crate::infra::storage::fs::FsStore;

pub fn models_command() -> Command {
    let folder = Arg::new("folder")
        .value_name("FOLDER")
        .value_parser(value_parser!(PathBuf))
        .help("a folder with models: the server's models_dir");
    let command = Command::new("models").about("List the built-in model, and those of a folder").arg(folder);
    model::with_json(command, "print a list of objects instead")
}

pub fn doctor_command() -> Command {
    let command = Command::new("doctor")
        .about("Check whether a server with these settings would run well here")
        .after_help("Takes the settings of serve. Exit code 0 when it would run, 1 when something is in the way.");
    settings::with_settings(command)
}

pub fn models(arguments: &ArgMatches) -> Result<(), Failure> {
    let built_in = Model::from_static(crate::default_model::bytes()).map_err(Failure::failed)?;
    let mut found = vec![described(crate::default_model::NAME, Ok(&built_in))];
    if let Some(folder) = arguments.get_one::<PathBuf>("folder") {
        for path in models_in(folder)? {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let opened = Model::open(&path);
            found.push(described(&name, opened.as_ref().map_err(ToString::to_string)));
        }
    }
    let mut out = std::io::stdout().lock();
    let written = match arguments.get_flag("json") {
        true => writeln!(out, "{}", Value::from(found)),
        false => found.iter().try_for_each(|m| writeln!(out, "{}", line(m))),
    };
    written.map_err(Failure::output)
}

/// GGUF files, by name.
fn models_in(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = std::fs::read_dir(folder).map_err(|e| Failure::Misused(format!("{}: {e}", folder.display())))?;
    let paths = entries.filter_map(|e| Some(e.ok()?.path()));
    let mut paths: Vec<PathBuf> = paths.filter(|p| p.extension().is_some_and(|e| e == "gguf")).collect();
    paths.sort();
    Ok(paths)
}

fn described(name: &str, model: Result<&Model, String>) -> Value {
    match model {
        Err(error) => json!({"name": name, "error": error}),
        Ok(model) => {
            let info = model.info();
            json!({
                "name": name,
                "architecture": info.architecture,
                "parameters": info.parameter_count,
                "quantization": info.quantization,
                "context": info.context_length,
                "weights_bytes": info.weights_bytes,
                "chat_template": model.chat_template().is_some(),
                "digest": info.digest,
            })
        }
    }
}

fn line(model: &Value) -> String {
    let text = |name: &str| model[name].as_str().unwrap_or_default().to_owned();
    if let Some(error) = model["error"].as_str() {
        return format!("{:<24} cannot be served: {error}", text("name"));
    }
    let millions = model["parameters"].as_f64().unwrap_or(0.0) / 1e6;
    let chat = if model["chat_template"] == true { "chat" } else { "no chat template" };
    format!(
        "{:<24} {} {millions:.1} M {}, context {}, {:.0} MB, {chat}",
        text("name"),
        text("architecture"),
        text("quantization"),
        model["context"],
        model["weights_bytes"].as_f64().unwrap_or(0.0) / 1e6
    )
}

/// What came of one check.
enum Finding {
    Good(String),
    /// It runs, but not as well as it might.
    Note(String),
    Bad(String),
}

use Finding::{Bad, Good, Note};

pub fn doctor(arguments: &ArgMatches) -> Result<(), Failure> {
    let config = settings::load(arguments).map_err(Failure::failed)?.config;
    let checks = [
        ("configuration", Good("legal".into())),
        ("io_uring", io_uring()),
        ("descriptors", descriptors(&config)),
        ("processors", processors(&config)),
        ("listen", port("listen", Some(config.listen))),
        ("gateway", port("gateway_listen", config.gateway_listen)),
        ("artifacts", artifacts(&config)),
        ("model", served_model(&config)),
    ];
    let mut out = std::io::stdout().lock();
    let mut bad = 0;
    for (name, finding) in &checks {
        let (mark, text) = match finding {
            Good(text) => ("ok  ", text),
            Note(text) => ("note", text),
            Bad(text) => {
                bad += 1;
                ("BAD ", text)
            }
        };
        writeln!(out, "{mark} {name:<14} {text}").map_err(Failure::output)?;
    }
    match bad {
        0 => Ok(()),
        count => Err(Failure::Failed(format!("{count} of these are in the way"))),
    }
}

fn io_uring() -> Finding {
    match detect_driver() {
        Driver::IoUring => Good("the kernel allows it".into()),
        Driver::Legacy { reason } => Note(format!("{reason}: epoll is used instead")),
    }
}

fn descriptors(config: &Config) -> Finding {
    let wanted = (config.connections_max * config.reactors) as u64;
    // What the server does at its start.
    match raise_descriptor_limit() {
        Ok(limit) if limit >= wanted => Good(format!("{limit} may be open; connections take {wanted} at most")),
        Ok(limit) => {
            Note(format!("{limit} may be open, and {wanted} connections are allowed: raise it with ulimit -n"))
        }
        Err(error) => Note(format!("their limit cannot be read: {error}")),
    }
}

fn processors(config: &Config) -> Finding {
    let there = std::thread::available_parallelism().map_or(1, usize::from);
    let wanted = config.threads + config.reactors;
    let text =
        format!("{there} here; {} engine threads and {} reactors want one each", config.threads, config.reactors);
    if wanted <= there { Good(text) } else { Note(text) }
}

fn port(name: &str, address: Option<std::net::SocketAddr>) -> Finding {
    let Some(address) = address else { return Good("off".into()) };
    match TcpListener::bind(address) {
        Ok(_) => Good(format!("{address} is free")),
        Err(error) => Bad(format!("{name} {address}: {error}")),
    }
}

fn artifacts(config: &Config) -> Finding {
    match &config.artifacts_fs_root {
        None => Note("kept in memory: set artifacts_fs_root to keep transcripts over a restart".into()),
        Some(root) => match FsStore::open(root) {
            Ok(_) => Good(format!("{} can be written", root.display())),
            Err(error) => Bad(format!("{}: {error}", root.display())),
        },
    }
}

fn served_model(config: &Config) -> Finding {
    let opened = match &config.model {
        None => Model::from_static(crate::default_model::bytes()),
        Some(path) => Model::open(path),
    };
    let model = match opened {
        Ok(model) => std::sync::Arc::new(model),
        Err(error) => return Bad(error.to_string()),
    };
    let info = model.info().clone();
    let options = EngineOptions {
        slots_max: config.slots_max,
        step_rows_max: config.step_rows_max,
        kv_blocks_max: config.kv_blocks_max,
        threads: config.threads,
        ..EngineOptions::default()
    };
    match Engine::new(model, options) {
        Err(error) => Bad(error.to_string()),
        Ok(engine) => {
            let kv = engine.kv_usage();
            let kv_mb = (kv.blocks_max * kv.block_bytes) as f64 / 1e6;
            let (name, weights_mb) = (&info.name, info.weights_bytes as f64 / 1e6);
            Good(format!(
                "{name}: {} {}, weights {weights_mb:.0} MB, KV cache {kv_mb:.0} MB, {}",
                info.architecture,
                info.quantization,
                engine.arithmetic()
            ))
        }
    }
}
