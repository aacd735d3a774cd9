//! Runs the simulator and prints the table of grades; with `--record DIR` it leaves the table and the plots there.
//!
//! ```text
//! simulate [--seed N] [--tasks N] [--seeds N] [--million] [--record DIR]
//! simulate --ceiling [--seed N] [--tasks N] [--futures N]
//! simulate --live [--seed N] [--tasks N] [--futures N] [--slots N] [--tokens-max N] [--load X]
//! ```
//!
//! The second form says how well the starts of batch work could be predicted by who knows everything but the future; the third
//! says both, the grades and that, of the trace that `orchestratord-bench grade` plays live.

use std::fmt::Write;
use std::path::PathBuf;

use orchestratord_bench::sim::ceiling::{Ceiling, ceiling};
use orchestratord_bench::sim::grade::{Starts, prediction_rows, retry_row};
use orchestratord_bench::sim::suite::{Live, with_run_out};
use orchestratord_bench::sim::{Kind, Setup, plot, suite};

/// Batch tasks of each trace whose futures are looked at.
const CEILING_TASKS: usize = 80;

struct Options {
    seed: u64,
    tasks: usize,
    seeds: u64,
    million: bool,
    ceiling: bool,
    futures: usize,
    record: Option<PathBuf>,
    is_live: bool,
    live: Live,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        seed: 1,
        tasks: 20_000,
        seeds: 60,
        million: false,
        ceiling: false,
        futures: 20,
        record: None,
        is_live: false,
        live: Live { slots: 16, tokens_max: 384, load: 0.9 },
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("{text:?} is not a whole number"));
        match word.as_str() {
            "--seed" => options.seed = number(value()?)?,
            "--tasks" => options.tasks = number(value()?)?.max(1000) as usize,
            "--seeds" => options.seeds = number(value()?)?,
            "--million" => options.million = true,
            "--ceiling" => options.ceiling = true,
            "--futures" => options.futures = number(value()?)?.clamp(10, 1000) as usize,
            "--live" => options.is_live = true,
            "--slots" => options.live.slots = number(value()?)?.clamp(1, 128) as usize,
            "--tokens-max" => options.live.tokens_max = number(value()?)?.clamp(8, 4000) as u32,
            "--load" => {
                let text = value()?;
                let load = text.parse::<f64>().ok().filter(|load| (0.01..=100.0).contains(load));
                options.live.load = load.ok_or(format!("{text:?} is not a load: say 0.9"))?;
            }
            "--record" => options.record = Some(value()?.into()),
            _ => {
                return Err(format!(
                    "{word} is not known; there are --seed, --tasks, --seeds, --million, --ceiling, --futures, --record, --live, --slots, --tokens-max, --load"
                ));
            }
        }
    }
    Ok(options)
}

fn main() {
    let options = options().unwrap_or_else(|why| {
        eprintln!("simulate: {why}");
        std::process::exit(2);
    });
    let mut table = String::new();
    let mut say = |line: String| {
        println!("{line}");
        let _ = writeln!(table, "{line}");
    };
    let (seed, tasks) = (options.seed, options.tasks);
    if options.is_live {
        let Live { slots, tokens_max, load } = options.live;
        say(format!("seed {seed}, {tasks} tasks, {slots} slots, at most {tokens_max} tokens, simulated"));
        prediction_rows(&mut say, &format!("live, load {load}"), &options.live.grades(seed, tasks));
        let (setup, trace) = (options.live.setup(seed), options.live.trace(seed, with_run_out(tasks)));
        ceiling_header(&options);
        return ceiling_row("live", &ceiling(&setup, &trace, tasks, CEILING_TASKS, options.futures));
    }
    if options.ceiling {
        return ceilings(&options);
    }
    say(format!("seed {seed}, {tasks} tasks a trace"));
    say("| measure | trace | value |".into());
    say("|---|---|---|".into());
    for kind in Kind::ALL {
        let grades = suite::calibration(kind, seed, tasks);
        prediction_rows(&mut say, kind.name(), &grades);
        if let Some(folder) = &options.record {
            let path = folder.join(format!("calibration-{}.svg", kind.name()));
            let title = format!("{}: {tasks} tasks, seed {seed}", kind.name());
            if let Err(error) = std::fs::write(&path, plot::svg(&title, &grades)) {
                eprintln!("simulate: {}: {error}", path.display());
                std::process::exit(1);
            }
        }
    }
    for kind in Kind::ALL {
        let grades = suite::starts(kind, seed, tasks);
        for (whose, starts) in [("all", &grades.starts), ("batch work alone", &grades.starts_batch)] {
            let (error, within) = (100.0 * starts.error_median(), 100.0 * starts.share_within_quarter());
            let (name, count) = (kind.name(), starts.pairs.len());
            say(format!(
                "| predicted_start_ms where nobody has a deadline: {whose}, of {count} | {name} | {error:.1} %, {within:.1} % |"
            ));
        }
    }
    for (kind, in_seconds) in [(Kind::Poisson, false), (Kind::Poisson, true), (Kind::Bursts, false)] {
        let grades = suite::retry(kind, seed, tasks, in_seconds);
        let what = if in_seconds { "Retry-After, whole seconds" } else { "X-Backoff-Ms" };
        say(retry_row(what, kind.name(), &grades));
    }
    let g = suite::goodput(seed, tasks);
    let over = |met: u64| met as f64 / g.fifo.max(1) as f64;
    say(format!("| deadlines met at load 2, plain FIFO | poisson | {} of {} |", g.fifo, g.offered));
    let floor = suite::FLOOR_GRADED;
    say(format!("| with a floor of {floor}, over plain FIFO | poisson | {:.2} x |", over(g.fifo_with_floor)));
    say(format!("| with the earliest deadline first as well | poisson | {:.2} x |", over(g.deadline_with_floor)));
    for step_ms_max in [0.0, 2.9] {
        let gaps = suite::gaps(seed, step_ms_max);
        say(format!(
            "| time between tokens, p99, with {} prompts of 8 k over without; step_ms_max {step_ms_max} | 15 streams | {:.2} x \
             ({:.2} ms over {:.2} ms; first token of a prompt {:.0} ms) |",
            gaps.prompts,
            gaps.with_us / gaps.without_us,
            gaps.with_us / 1e3,
            gaps.without_us / 1e3,
            gaps.first_token_us / 1e3
        ));
    }
    let (predicted, offered) = suite::prediction_cost(1000);
    say(format!("| a prediction behind 1000 waiting tasks | - | {:.2} us |", predicted / 1e3));
    say(format!("| a whole offer that is accepted behind 1000 | - | {:.2} us |", offered / 1e3));
    let r = suite::refusals(seed, tasks.min(6000), 200);
    let share = 100.0 * r.would_have_made_it as f64 / r.looked_at.max(1) as f64;
    say(format!(
        "| refused deadlines that would have been met, floor {} | poisson, load 1.3 | {share:.1} % of {} looked at ({} refused) |",
        r.floor, r.looked_at, r.refused
    ));
    let steps: u64 = (0..options.seeds).map(|n| suite::chaos(seed + n, 1500)).sum();
    say(format!(
        "| runs with everything going wrong, no invariant broken | {} seeds | {steps} rounds of steps |",
        options.seeds
    ));
    if options.million {
        let (wall, simulated, _) = suite::marathon(seed, 1_000_000);
        say(format!("| a million tasks | poisson, load 0.85 | {wall:.1} s for {simulated:.0} simulated |"));
    }
    if let Some(folder) = &options.record {
        let path = folder.join("grades.md");
        if let Err(error) = std::fs::write(&path, table) {
            eprintln!("simulate: {}: {error}", path.display());
            std::process::exit(1);
        }
    }
}

/// The table of how well starts of batch work are predicted, and could be.
fn ceilings(options: &Options) {
    let (seed, tasks) = (options.seed, options.tasks);
    ceiling_header(options);
    let setup = Setup::new(seed);
    for kind in Kind::ALL {
        let c = ceiling(
            &setup,
            &suite::starts_trace(kind, seed, with_run_out(tasks)),
            tasks,
            CEILING_TASKS,
            options.futures,
        );
        ceiling_row(&format!("{}, without deadlines", kind.name()), &c);
    }
    for kind in Kind::ALL {
        let c = ceiling(
            &setup,
            &suite::calibration_trace(kind, seed, with_run_out(tasks)),
            tasks,
            CEILING_TASKS,
            options.futures,
        );
        ceiling_row(&format!("{}, with deadlines", kind.name()), &c);
    }
}

fn ceiling_header(options: &Options) {
    println!("seed {}, {} tasks a trace, {} futures of each batch task", options.seed, options.tasks, options.futures);
    println!(
        "| trace | batch tasks | said | best guess over the futures | median of the futures | best guess in its own futures | off: sooner, later |"
    );
    println!("|---|---|---|---|---|---|---|");
}

fn ceiling_row(name: &str, c: &Ceiling) {
    let figures = |s: &Starts| {
        format!("{:.1} %, {:.1} % within 25 %", 100.0 * s.error_median(), 100.0 * s.share_within_quarter())
    };
    println!(
        "| {name} | {} | {} | {} | {} | {:.1} % | {}, {} |",
        c.said.pairs.len(),
        figures(&c.said),
        figures(&c.best),
        figures(&c.median),
        100.0 * c.share_of_futures,
        c.sooner,
        c.later
    );
}
