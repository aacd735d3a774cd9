//! What there is to serve, and whether this machine can: `models` and `doctor`.

use std::io::{IsTerminal, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Command, value_parser};
use orchestratord_engine::backend::cuda::{DoesNotFit, devices, kv_blocks_in, plan, version_text};
use orchestratord_engine::{Engine, EngineOptions, Isa, Model};
use serde_json::{Value, json};

use super::progress::{Status, bytes, coloured, has_colours};
use super::{Failure, model, settings};
use crate::config::{Config, EngineChoice};
use crate::infra::reactor::{Driver, detect_driver, raise_descriptor_limit};
use crate::infra::storage::fs::FsStore;
use crate::services::device;

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
    model::with_json(settings::with_settings(command), "print a list of {\"check\", \"result\", \"text\"} instead")
}

pub fn models(arguments: &ArgMatches) -> Result<(), Failure> {
    let built_in = Model::from_static(crate::default_model::bytes()).map_err(Failure::failed)?;
    let mut found = vec![described(crate::default_model::NAME, Ok(&built_in))];
    let mut status = Status::new();
    if let Some(folder) = arguments.get_one::<PathBuf>("folder") {
        for path in models_in(folder)? {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            // Its digest takes as long as reading it does.
            status.say(&format!(
                "reading {} ({})",
                path.display(),
                bytes(std::fs::metadata(&path).map_or(0, |m| m.len()))
            ));
            let opened = Model::open(&path);
            found.push(described(&name, opened.as_ref().map_err(ToString::to_string)));
        }
    }
    drop(status);
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
                "digest": model.digest(),
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
    let mut config = settings::load(arguments).map_err(Failure::failed)?.config;
    let device = look_for_device(&mut config);
    let checks = [
        ("configuration", Good("legal".into())),
        ("io_uring", io_uring()),
        ("descriptors", descriptors(&config)),
        ("processors", processors(&config)),
        ("device", device),
        ("listen", port("listen", Some(config.listen))),
        ("gateway", port("gateway_listen", config.gateway_listen)),
        ("artifacts", artifacts(&config)),
        ("model", served_model(&config)),
    ];
    let mut out = std::io::stdout().lock();
    let colours = has_colours(out.is_terminal());
    let bad = checks.iter().filter(|(_, finding)| matches!(finding, Bad(_))).count();
    let said = checks.iter().map(|(name, finding)| {
        let (mark, colour, text) = match finding {
            Good(text) => ("ok", "32", text),
            Note(text) => ("note", "33", text),
            Bad(text) => ("BAD", "31", text),
        };
        (*name, mark, colour, text)
    });
    let written = match arguments.get_flag("json") {
        true => {
            let list: Vec<Value> = said
                .map(|(name, mark, _, text)| json!({"check": name, "result": mark.to_lowercase(), "text": text}))
                .collect();
            writeln!(out, "{}", Value::from(list))
        }
        false => said
            .map(|(name, mark, colour, text)| (name, coloured(&format!("{mark:<4}"), colour, colours), text))
            .try_for_each(|(name, mark, text)| writeln!(out, "{mark} {name:<14} {text}")),
    };
    written.map_err(Failure::output)?;
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
    let isas: Vec<&str> = Isa::detect().into_iter().map(Isa::name).collect();
    let text = format!(
        "{there} here; {} engine threads and {} reactors want one each; instruction sets: {}",
        config.threads,
        config.reactors,
        isas.join(", ")
    );
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

/// The device, if there is one to compute on; the engine of `config` is then decided.
fn look_for_device(config: &mut Config) -> Finding {
    let wanted = config.engine;
    if wanted == EngineChoice::Cpu {
        return Good("engine=cpu: none was looked for".into());
    }
    let kernels = device::kernels(config.cuda_kernels.as_deref());
    config.engine = EngineChoice::Cpu;
    let found = match devices() {
        Ok(found) => found,
        Err(why) if wanted == EngineChoice::Cuda => return Bad(format!("engine=cuda: {why}")),
        Err(why) => return Note(format!("the CPU computes: {why}")),
    };
    let opened = device::open(&kernels).and_then(|driver| driver.memory().map_err(|e| e.to_string()));
    config.engine = EngineChoice::Cuda;
    match opened {
        Err(why) => Bad(format!("{} cannot be used: {why}", found[0].name)),
        Ok((free, _)) => Good(format!(
            "{}, compute capability {}.{}, {} MB, {} MB free, driver for CUDA {}; {} found",
            found[0].name,
            found[0].capability.0,
            found[0].capability.1,
            found[0].memory_bytes / 1_000_000,
            free / 1_000_000,
            version_text(found[0].driver_version),
            found.len()
        )),
    }
}

/// Whether the model and its cache fit on the device; nothing is copied there.
fn fits_on_device(config: &Config, model: &std::sync::Arc<Model>, options: &EngineOptions) -> Result<String, String> {
    let driver = device::open(&device::kernels(config.cuda_kernels.as_deref()))?;
    let sizes = plan(model, options, driver.found()).map_err(|e| e.to_string())?;
    let (free, total) = driver.memory().map_err(|e| e.to_string())?;
    if sizes.total() > free {
        let kv_blocks_fit = kv_blocks_in(model, options, driver.found(), free).map_err(|e| e.to_string())?;
        let device = driver.found().name.clone();
        return Err(DoesNotFit { device, sizes, free, total, kv_blocks_fit }.to_string());
    }
    let mb = |bytes: u64| bytes / 1_000_000;
    let [weights, kv, workspace, graphs] = [sizes.weights, sizes.kv, sizes.workspace, sizes.graphs].map(mb);
    Ok(format!(
        "weights {weights} MB, KV cache {kv} MB, workspace {workspace} MB, graphs up to {graphs} MB on the device"
    ))
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
        step_rows_max: config.step_rows(),
        kv_blocks_max: config.kv_blocks_max,
        threads: config.threads,
        isa: config.isa.0,
        ..EngineOptions::default()
    };
    let mut sized = config.clone();
    if let Err(why) = device::size_kv(&mut sized, &model) {
        return Bad(why);
    }
    let options = EngineOptions { kv_blocks_max: sized.kv_blocks_max, ..options };
    if config.engine == EngineChoice::Cuda {
        return match fits_on_device(config, &model, &options) {
            Ok(sizes) => Good(format!("{}: {} {}, {sizes}", info.name, info.architecture, info.quantization)),
            Err(why) => Bad(why),
        };
    }
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
