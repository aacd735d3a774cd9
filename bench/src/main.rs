//! `orchestratord-bench`: the load generator, and our server on an engine without a model.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use orchestratord_bench::load::{self, Api, Arrivals, Measure, Plan};
use orchestratord_bench::{grade, neighbour, null_server, startup, table, tax};

#[derive(Parser)]
#[command(about = "Measures orchestratord and its peers.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Sends requests and measures what becomes of them.
    Load(LoadArgs),
    /// Serves with an engine that says one token on a schedule.
    NullServer(null_server::Options),
    /// Keeps a processor busy for a part of the time, until it is killed.
    Neighbour(neighbour::Options),
    /// Starts a server again and again, and measures the time to its first 202.
    Startup(startup::Options),
    /// Grades the promises of a live server on the CPU engine, as the simulator grades those of a simulated one.
    Grade(grade::Options),
    /// Times lone rows of a model's matrix products, shared by rows of the weight and by columns.
    Tax(tax::Options),
    /// Writes the table of a run's measurements.
    Table(table::Options),
}

#[derive(Clone, Copy, ValueEnum)]
enum ApiName {
    Ours,
    Openai,
}

#[derive(Clone, Copy, ValueEnum)]
enum MeasureName {
    Post,
    Stream,
}

#[derive(Args)]
struct LoadArgs {
    /// Address of the server.
    #[arg(long)]
    address: SocketAddr,
    #[arg(long, value_enum, default_value = "ours")]
    api: ApiName,
    /// A task and its place in the queue, or a task and its stream.
    #[arg(long, value_enum, default_value = "stream")]
    measure: MeasureName,
    /// Requests per second of an open loop; without it the loop is closed.
    #[arg(long)]
    rate: Option<f64>,
    /// Connections; of an open loop, at most.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Seconds before the measurement.
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
    /// Seconds of the measurement.
    #[arg(long, default_value_t = 5.0)]
    window: f64,
    /// The same seed asks the same things at the same times.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = 64)]
    max_tokens: u32,
    /// Bytes of prompt.
    #[arg(long, default_value_t = 200)]
    prompt_len: usize,
    /// What answers must look like, as a task says it in JSON; for our API.
    #[arg(long)]
    response_format: Option<String>,
    #[arg(long, default_value = "wren")]
    model: String,
    #[arg(long, default_value = "bench-key-of-no-value")]
    key: String,
    /// The interval of a paced engine, microseconds: measures how long after the schedule tokens arrive.
    #[arg(long)]
    grid_us: Option<u64>,
    /// Process of the server: measures what it spends.
    #[arg(long)]
    pid: Option<u32>,
    /// Scrapes of our server's metrics in a second, beside the load.
    #[arg(long)]
    scrape_hz: Option<f64>,
    /// Name of the server in the report.
    #[arg(long, default_value = "server")]
    server: String,
    /// Name of the measurement in the report.
    #[arg(long, default_value = "load")]
    case: String,
    /// Appends the report to this file, as a line of JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

impl LoadArgs {
    fn plan(&self) -> Plan {
        let words = "the quick brown fox jumps over the lazy dog and sleeps ";
        Plan {
            address: self.address,
            api: match self.api {
                ApiName::Ours => Api::Ours,
                ApiName::Openai => Api::OpenAi,
            },
            measure: match self.measure {
                MeasureName::Post => Measure::Post,
                MeasureName::Stream => Measure::Stream,
            },
            arrivals: self.rate.map_or(Arrivals::Closed, Arrivals::Open),
            connections: self.connections,
            warmup: Duration::from_secs_f64(self.warmup),
            window: Duration::from_secs_f64(self.window),
            seed: self.seed,
            max_tokens: self.max_tokens,
            prompt: words.chars().cycle().take(self.prompt_len).collect(),
            response_format: self.response_format.clone(),
            model: self.model.clone(),
            key: self.key.clone(),
            grid: self.grid_us.map(Duration::from_micros),
            pid: self.pid,
            scrapes_per_second: self.scrape_hz,
            server: self.server.clone(),
            case: self.case.clone(),
        }
    }

    fn run(&self) -> Result<(), String> {
        let report = load::run(&self.plan())?;
        report.print();
        if let Some(path) = &self.json {
            let line = serde_json::to_string(&report).expect("a report is JSON");
            let file = OpenOptions::new().create(true).append(true).open(path);
            file.and_then(|mut f| writeln!(f, "{line}")).map_err(|e| format!("{}: {e}", path.display()))?;
        }
        Ok(())
    }
}

fn main() {
    let done = match &Cli::parse().command {
        Command::Load(args) => args.run(),
        Command::NullServer(options) => null_server::run(options),
        Command::Neighbour(options) => neighbour::run(options),
        Command::Startup(options) => startup::run(options),
        Command::Grade(options) => grade::run(options),
        Command::Table(options) => table::run(options),
        Command::Tax(options) => tax::run(options),
    };
    if let Err(why) = done {
        eprintln!("orchestratord-bench: {why}");
        std::process::exit(1);
    }
}
