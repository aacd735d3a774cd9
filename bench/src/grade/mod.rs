//! The promises of a live server, graded as the simulator grades them: real sockets, the CPU engine, the built-in model.
//!
//! The servers run in this process, so that they are this build, unless `--address` names one that runs; the clients know
//! nothing of one but its address. First it is kept busy, to learn what it can do; then clients come at a multiple of that,
//! each with a deadline, and what they were promised is held against what they got; then at twice of it to a short queue, and
//! who is refused comes back exactly when told to. How long an answer is the model decides, as it does for everybody.
//!
//! Two measures compare ways to serve, so they need servers of their own: deadlines met over those that plain FIFO meets
//! (`goodput`), and the time between tokens beside long prompts over that without (`gaps`).

mod client;
pub mod gaps;
pub mod goodput;
mod long_context;
mod server;
mod storm;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use crate::outcomes::as_csv;
use crate::sim::grade::{Grades, prediction_rows, retry_row};
use crate::sim::plot;
use client::{Crowd, Door};
use server::{KEY, slots_of, with_server};
use storm::{Pace, Storm};

/// How often a client that is told to come back does so.
const RETRIES_MAX: u32 = 8;

/// Tasks that are not for somebody who waits.
const BATCH_SHARE: f64 = 0.2;

/// Median of a deadline over the time that the task may take on a busy server without waiting.
const SLACK: f64 = 6.0;

#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Tasks whose promises are graded.
    #[arg(long, default_value_t = 2000)]
    pub tasks: usize,
    /// Tasks of the second part, about coming back when told to; as many as of the first by default, and with 0 it is left out.
    #[arg(long)]
    pub retry_tasks: Option<usize>,
    /// Tasks that each way to serve gets of the part about deadlines met at twice the load; with 0 it is left out, and with
    /// `--address` too.
    #[arg(long, default_value_t = 2000)]
    pub goodput_tasks: usize,
    /// Prompts of 8 k tokens that arrive beside running streams, of the part about the time between tokens; with 0 it is left
    /// out, and with `--address` too.
    #[arg(long, default_value_t = 1)]
    pub long_prompts: usize,
    /// Sequences that the server decodes together; a running server says so itself.
    #[arg(long, default_value_t = 16)]
    pub slots: usize,
    /// Most tokens that a task may have; others have a half, a quarter or an eighth of it.
    #[arg(long, default_value_t = 384, value_parser = clap::value_parser!(u32).range(8..=384))]
    pub tokens_max: u32,
    /// Tasks that come, over those that the server can do. With less than it can do hardly anybody waits for as long as is
    /// graded but batch work, and that for interactive work which nobody can know of.
    #[arg(long, default_value_t = 1.5)]
    pub load: f64,
    /// The same seed asks the same things at the same times, as far as the server is as fast.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// A running server to grade as it is, instead of one of this process.
    #[arg(long)]
    pub address: Option<SocketAddr>,
    /// API key of the running server.
    #[arg(long, default_value = KEY)]
    pub key: String,
    /// Model of the running server.
    #[arg(long, default_value = "wren")]
    pub model: String,
    /// Engine of the running server.
    #[arg(long, default_value = "cpu")]
    pub engine: String,
    /// Leaves the table and a plot of it in this folder.
    #[arg(long)]
    pub record: Option<PathBuf>,
    /// Writes what each task of the first part was told, and what it got, to this file: comma-separated values.
    #[arg(long)]
    pub outcomes: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            tasks: 2000,
            retry_tasks: None,
            goodput_tasks: 2000,
            long_prompts: 1,
            slots: 16,
            tokens_max: 384,
            load: 1.5,
            seed: 1,
            address: None,
            key: KEY.into(),
            model: "wren".into(),
            engine: "cpu".into(),
            record: None,
            outcomes: None,
        }
    }
}

impl Options {
    /// The running server, if one is graded.
    fn running(&self) -> Option<Door> {
        let Options { key, model, engine, .. } = self.clone();
        self.address.map(|address| Door { address, key, model, engine })
    }

    fn crowd(&self, slack: Option<f64>) -> Crowd {
        Crowd { seed: self.seed, tokens_max: self.tokens_max, batch_share: BATCH_SHARE, slack }
    }
}

/// Grades a server and prints the table.
///
/// # Errors
///
/// When the server does not start, or does not answer as it should.
pub fn run(options: &Options) -> Result<(), String> {
    if let Some(folder) = &options.record {
        // Before it takes minutes.
        std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    }
    let slots = options.running().map_or(Ok(options.slots), |door| slots_of(&door))?;
    // With too few clients the measurement would find a slower server than there is, and nobody would wait.
    let options = &Options { slots, ..options.clone() };
    let mut table = String::new();
    let mut say = |line: String| {
        println!("{line}");
        table.push_str(&line);
        table.push('\n');
    };
    let Options { seed, tasks, tokens_max, .. } = options;
    say(format!("seed {seed}, {tasks} tasks, {slots} slots, at most {tokens_max} tokens, live"));
    say("| measure | trace | value |".into());
    say("|---|---|---|".into());
    let told = predictions(options)?;
    let name = format!("live, load {}", options.load);
    prediction_rows(&mut say, &name, &told);
    let retrying = Options { tasks: options.retry_tasks.unwrap_or(options.tasks), ..options.clone() };
    if retrying.tasks > 0 {
        let grades = retries(&retrying)?;
        say(retry_row("X-Backoff-Ms", "live", &grades));
    }
    if options.goodput_tasks > 0 && options.address.is_none() {
        goodput::measure(*seed, options.goodput_tasks, slots, *tokens_max)?.rows(&mut say);
    }
    if options.long_prompts > 0 && options.address.is_none() {
        let plan = gaps::Plan::of_long_prompts(*seed, slots, options.long_prompts);
        gaps::measure(&plan)?.iter().for_each(|gaps| say(gaps.row()));
    }
    let Some(folder) = &options.record else { return Ok(()) };
    let title = format!("live: {} tasks, load {}, seed {}", options.tasks, options.load, options.seed);
    [("grades-live.md", table), ("calibration-live.svg", plot::svg(&title, &told))].iter().try_for_each(
        |(name, text)| {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))
        },
    )
}

/// What clients with deadlines were promised, and what they got.
///
/// # Errors
///
/// As [`run`].
pub fn predictions(options: &Options) -> Result<Grades, String> {
    at_the_door(options, 256, |door| storm(door, options, options.load, Some(SLACK)))
}

/// Clients at twice what the server can do, who come back when they are told to.
///
/// # Errors
///
/// As [`run`].
pub fn retries(options: &Options) -> Result<Grades, String> {
    at_the_door(options, 4 * options.slots, |door| storm(door, options, 2.0, None))
}

/// With the server that runs, or one with a queue of `queue_capacity` for as long as it is wanted.
fn at_the_door(
    options: &Options,
    queue_capacity: usize,
    visit: impl FnOnce(&Door) -> Result<Grades, String>,
) -> Result<Grades, String> {
    if let Some(door) = options.running() {
        return visit(&door);
    }
    let settings = [
        ("slots_max", options.slots.to_string()),
        ("queue_capacity", queue_capacity.to_string()),
        // Nobody is refused for a prediction, so that every prediction has an outcome.
        ("on_time_probability_floor", "0".into()),
    ];
    with_server("wren", &settings, visit)
}

/// Measures what the server can do, and lets clients come at `load` times that.
fn storm(door: &Door, options: &Options, load: f64, slack: Option<f64>) -> Result<Grades, String> {
    let crowd = options.crowd(slack);
    let pace = Pace::measure(door, &crowd, options.slots, options.tasks)?;
    let storm = Storm { crowd, count: options.tasks, load, retries_max: RETRIES_MAX, tells_deadlines: true };
    let fates = storm.blow(door, &pace)?;
    if let Some(path) = options.outcomes.as_ref().filter(|_| slack.is_some()) {
        let (asked, outcomes): (Vec<_>, Vec<_>) = fates.iter().cloned().unzip();
        std::fs::write(path, as_csv(&asked, &outcomes)).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(Grades::of_outcomes(fates.iter().map(|(asked, outcome)| (asked.priority, outcome))))
}
