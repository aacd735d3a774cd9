//! `device speed`: how fast models of real shapes are on this machine's device, and how near to what its memory allows.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Arg, ArgMatches, Command, value_parser};
use orchestratord_engine::backend::cuda::{
    CudaBackend, Driver, Found, Kernels, engine_on, kv_blocks_in, launch_cost, read_speed, version_text,
};
use orchestratord_engine::bench::Load;
use orchestratord_engine::{Engine, EngineOptions, Model};

use super::records::{Case, Ceiling, Lines, Record};
use super::shape;
use crate::cli::Failure;

/// Steps after a long prompt: what is asked for there is its first token.
const STEPS_AFTER_LONG: usize = 16;
/// Steps before those that are measured.
const STEPS_WARM: usize = 3;
/// Times that a prompt is read if that takes less than a second. The median is told.
const PREFILLS: usize = 3;

type CudaEngine = Engine<CudaBackend<Driver>>;

pub fn command() -> Command {
    let list = |name: &'static str, default: &'static str, help: &'static str| {
        let legal = value_parser!(u32).range(1..=16_384);
        let list = Arg::new(name).long(name).value_name("N,...").value_delimiter(',').value_parser(legal);
        list.default_value(default).help(help)
    };
    let count = |name: &'static str, default: &'static str, help: &'static str| {
        let legal = value_parser!(u32).range(1..=100_000);
        Arg::new(name).long(name).value_name("N").value_parser(legal).default_value(default).help(help)
    };
    let file = Arg::new("json").long("json").value_name("FILE").value_parser(value_parser!(PathBuf));
    let command = Command::new("speed")
        .about("Measure models of real shapes, with random weights, on this machine's CUDA device")
        .after_help(
            "First the ceilings: how fast a kernel that does nothing else reads memory, and what a launch costs. Then a line \
             a case. The share is that of the bytes of weights and KV cache that a decode step reads. Of a step's time, \
             `host` is what the host did not wait, and `idle` what the device certainly had nothing to do.",
        )
        .arg(shape::shape().value_delimiter(',').default_value("llama-3.2-1b"))
        .arg(shape::tensor_type().value_delimiter(',').default_value("bf16"))
        .arg(list("batch", "1", "sequences that decode together, a case each"))
        .arg(count("prompt", "128", "tokens of each prompt"))
        .arg(count("decode", "256", "steps that are measured; fewer where the time is over before"))
        .arg(list("long", "1024,8192", "prompts of a lone sequence, a case each"))
        .arg(count("rows", "2048", "rows of a step at most, unless a batch is larger"))
        .arg(count("read-mib", "4096", "memory that is read for the ceiling; a power of two"))
        .arg(count("case-seconds", "15", "time for a case"))
        .arg(count("seconds", "600", "time for all of it: what is not begun by then is left out"))
        .arg(file.help("adds a line of JSON a case to this file"));
    super::with_kernels(command)
}

/// What is asked for.
struct Plan {
    batches: Vec<usize>,
    prompt_len: usize,
    decode_len: usize,
    long: Vec<usize>,
    rows: usize,
    case: Duration,
    until: Instant,
}

impl Plan {
    fn of(arguments: &ArgMatches) -> Plan {
        let list = |name| arguments.get_many::<u32>(name).expect("it has a default").map(|n| *n as usize).collect();
        let seconds = |name| Duration::from_secs(count(arguments, name) as u64);
        Plan {
            batches: list("batch"),
            prompt_len: count(arguments, "prompt"),
            decode_len: count(arguments, "decode"),
            long: list("long"),
            rows: count(arguments, "rows"),
            case: seconds("case-seconds"),
            until: Instant::now() + seconds("seconds"),
        }
    }

    /// All cases, and the rows that a step of theirs has at most.
    fn loads(&self) -> Vec<Load> {
        let most = self.batches.iter().copied().max().unwrap_or(1);
        let longest = self.batches.iter().map(|batch| batch * self.prompt_len).chain(self.long.iter().copied()).max();
        let step_rows_max = self.rows.min(longest.unwrap_or(1)).max(most);
        let load =
            |sequences, prompt_len, decode_len| Load { sequences, prompt_len, decode_len, step_rows_max, until: None };
        let batches = self.batches.iter().map(|batch| load(*batch, self.prompt_len, self.decode_len));
        let long = self.long.iter().map(|prompt| load(1, *prompt, STEPS_AFTER_LONG.min(self.decode_len)));
        // Large batches last: they may take all the time that is left.
        let mut all: Vec<Load> = batches.chain(long).collect();
        all.sort_by_key(|load| load.sequences);
        all
    }
}

fn count(arguments: &ArgMatches, name: &str) -> usize {
    *arguments.get_one::<u32>(name).expect("it has a default") as usize
}

pub fn run(arguments: &ArgMatches) -> Result<(), Failure> {
    let read_mib = count(arguments, "read-mib");
    if !read_mib.is_power_of_two() {
        return Err(Failure::Misused(format!("--read-mib {read_mib}: it is no power of two")));
    }
    let plan = Plan::of(arguments);
    let device = super::found(arguments)?;
    let mut lines = Lines::to(arguments.get_one::<PathBuf>("json").map(PathBuf::as_path))?;
    let ceiling = ceiling(&device, read_mib << 20)?;
    lines.put(&Record::Ceiling(ceiling.clone()))?;
    let names = |name| arguments.get_many::<String>(name).expect("it has a default");
    let mut failed = 0;
    for (shape, type_name) in names("shape").flat_map(|shape| names("type").map(move |t| (shape, t))) {
        let mut measured = |case: Case| {
            say(&line(&case, &ceiling))?;
            lines.put(&Record::Case(case))
        };
        match measure(&device, &plan, shape, type_name, &mut measured) {
            Err(Failure::Failed(why)) => {
                failed += 1;
                say(&format!("BAD  {shape} {type_name}: {why}"))?;
            }
            other => other?,
        }
    }
    match failed {
        0 => Ok(()),
        _ => Err(Failure::Failed(format!("{failed} models could not be measured"))),
    }
}

fn say(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    // Whoever stops this wants to have seen what there was.
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(Failure::output)
}

/// Measures what the device can do at most, in a context of its own.
fn ceiling(device: &(Found, Kernels), bytes: usize) -> Result<Ceiling, Failure> {
    let driver = super::open(device)?;
    let read = read_speed(&driver, bytes).map_err(Failure::failed)?;
    let launch = launch_cost(&driver).map_err(Failure::failed)?;
    let (found, _) = device;
    let ceiling = Ceiling {
        device: found.name.clone(),
        driver: version_text(found.driver_version),
        read_bytes_per_s: read.best,
        read_bytes_per_s_median: read.median,
        read_bytes: bytes,
        span_bytes: read.span_bytes,
        launch_alone_us: launch.alone_us,
        launch_chained_us: launch.chained_us,
        launch_listed_us: launch.listed_us,
    };
    say(&format!(
        "# {}, driver for CUDA {}: reads {:.1} GB/s at best (median {:.1}) over {} MiB; a launch and the wait for it {:.1} us, \
         one of a hundred {:.2} us, and {:.2} us in a list that comes again",
        ceiling.device,
        ceiling.driver,
        read.best / 1e9,
        read.median / 1e9,
        bytes >> 20,
        launch.alone_us,
        launch.chained_us,
        launch.listed_us,
    ))?;
    Ok(ceiling)
}

/// Makes a model and measures all cases of it on one engine.
fn measure(
    device: &(Found, Kernels),
    plan: &Plan,
    shape: &str,
    type_name: &str,
    measured: &mut dyn FnMut(Case) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let left_out = |what: &str| say(&format!("left out: {shape} {type_name}{what}: the time is over"));
    if Instant::now() >= plan.until {
        return left_out("");
    }
    let start = Instant::now();
    let model = shape::model(shape, shape::type_named(type_name))?;
    let made = start.elapsed();
    let start = Instant::now();
    let loads = plan.loads();
    let driver = Arc::new(super::open(device)?);
    let mut engine = engine(&model, &loads, &driver)?;
    say(&format!(
        "# {shape} {type_name}: {:.2} GB, made in {:.1} s, on the device in {:.1} s",
        model.info().weights_bytes as f64 / 1e9,
        made.as_secs_f64(),
        start.elapsed().as_secs_f64()
    ))?;
    let blocks_max = engine.kv_usage().blocks_max;
    for load in loads {
        let what = format!(", batch {}, prompt of {}", load.sequences, load.prompt_len);
        if load.blocks() > blocks_max {
            say(&format!("left out: {shape} {type_name}{what}: no room in the KV cache"))?;
            continue;
        }
        let now = Instant::now();
        if now >= plan.until {
            left_out(&what)?;
            continue;
        }
        let load = Load { until: Some(plan.until.min(now + plan.case)), ..load };
        let case = Case {
            by: "orchestratord".to_owned(),
            shape: shape.to_owned(),
            tensor_type: type_name.to_owned(),
            ..case(&mut engine, &driver, &load)?
        };
        measured(case)?;
    }
    let made = driver.graph_memory();
    if made.graphs > 0 {
        say(&format!(
            "# {} graphs of {} kernels took {:.1} MB of the device when they were made: {:.1} kB a kernel",
            made.graphs,
            made.kernels,
            made.bytes as f64 / 1e6,
            made.bytes as f64 / 1e3 / made.kernels as f64
        ))?;
    }
    Ok(())
}

/// An engine for all cases, or for those that fit.
fn engine(model: &Arc<Model>, loads: &[Load], driver: &Arc<Driver>) -> Result<CudaEngine, Failure> {
    let most = |of: fn(&Load) -> usize| loads.iter().map(of).max().unwrap_or(1);
    let wanted = most(Load::blocks);
    let options = EngineOptions {
        slots_max: most(|load| load.sequences),
        step_rows_max: most(|load| load.step_rows_max),
        kv_blocks_max: wanted,
        ..EngineOptions::default()
    };
    let (free, _) = driver.memory().map_err(Failure::failed)?;
    let fit = kv_blocks_in(model, &options, driver.found(), free).map_err(Failure::failed)?;
    // None at all: the engine says so, with every size.
    let kv_blocks_max = if fit == 0 { wanted } else { wanted.min(fit) };
    engine_on(model.clone(), EngineOptions { kv_blocks_max, ..options }, driver.clone()).map_err(Failure::failed)
}

fn case(engine: &mut CudaEngine, driver: &Driver, load: &Load) -> Result<Case, Failure> {
    // What happens for the first time happens now: a step as full as there will be, and steps of the batch.
    let warm_prompt = load.prompt_len.min((load.step_rows_max / load.sequences).max(1));
    let warm = Load { prompt_len: warm_prompt, decode_len: STEPS_WARM, ..*load };
    let failed = Failure::failed;
    if warm.prefill(engine).map_err(failed)?.is_some() {
        warm.decode(engine).map_err(failed)?;
    }
    warm.end(engine);

    let mut prefills = Vec::new();
    let mut steps = Vec::new();
    let host_time = driver.host_time();
    let (mut waited, mut idle) = (Duration::ZERO, Duration::ZERO);
    while let Some(prefill) = load.prefill(engine).map_err(failed)? {
        prefills.push(prefill);
        if steps.is_empty() {
            let before = (host_time.waited(), host_time.idle());
            steps = load.decode(engine).map_err(failed)?;
            (waited, idle) = (host_time.waited() - before.0, host_time.idle() - before.1);
        }
        load.end(engine);
        if prefills.len() == PREFILLS || prefill > Duration::from_secs(1) {
            break;
        }
    }
    load.end(engine);
    prefills.sort_unstable();
    let all: Duration = steps.iter().sum();
    let decode = steps.len();
    steps.sort_unstable();
    let per_step = |time: Duration| (decode > 0).then(|| time.as_secs_f64() * 1e6 / decode as f64);
    Ok(Case {
        by: String::new(),
        shape: String::new(),
        tensor_type: String::new(),
        batch: load.sequences,
        prompt: load.prompt_len,
        decode,
        prefill_s: prefills.get(prefills.len() / 2).map(Duration::as_secs_f64),
        tokens_per_s: (decode > 0).then(|| (load.sequences * decode) as f64 / all.as_secs_f64()),
        step_us_p50: percentile_us(&steps, 50),
        step_us_p99: percentile_us(&steps, 99),
        step_bytes: load.step_bytes(engine.model().info(), engine.kv_usage().block_bytes, decode),
        host_us: per_step(all.saturating_sub(waited)),
        idle_us: per_step(idle),
        device_bytes: Some(driver.allocated_bytes()),
        how: engine.arithmetic().to_owned(),
    })
}

/// The smallest of sorted times that so many of a hundred do not exceed.
fn percentile_us(sorted: &[Duration], percent: usize) -> Option<f64> {
    let index = (sorted.len() * percent).div_ceil(100).checked_sub(1)?;
    Some(sorted[index].as_secs_f64() * 1e6)
}

/// A case for people.
fn line(case: &Case, ceiling: &Ceiling) -> String {
    let with = |value: Option<f64>, unit: &str| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.1}{unit}"));
    format!(
        "ok   {} {} batch {:<3} prompt {:<4}  first token {}, {} in {} steps, step {} p99 {}, {} of reading, host {} idle {}, {:.2} GB",
        case.shape,
        case.tensor_type,
        case.batch,
        case.prompt,
        with(case.prefill_s.map(|s| s * 1e3), " ms"),
        with(case.tokens_per_s, " tokens/s"),
        case.decode,
        with(case.step_us_p50, " us"),
        with(case.step_us_p99, " us"),
        with(case.share(ceiling.read_bytes_per_s).map(|s| s * 100.0), " %"),
        with(case.host_us, " us"),
        with(case.idle_us, " us"),
        case.device_bytes.unwrap_or(0) as f64 / 1e9,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_micros).collect();
        let close = |got: Option<f64>, wanted: f64| (got.expect("there are times") - wanted).abs() < 1e-6;
        assert!(close(percentile_us(&times, 50), 100.0) && close(percentile_us(&times, 99), 198.0));
        assert!(close(percentile_us(&times[..1], 99), 1.0) && percentile_us(&[], 50).is_none());
    }
}
