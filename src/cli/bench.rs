//! `bench`: how fast a model is here, how near to what memory allows, and beside llama.cpp.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use orchestratord_engine::bench::{BenchOptions, Speed, measure};
use serde::{Deserialize, Serialize};

use super::progress::Status;
use super::{Failure, model};

/// Does the same with llama.cpp's Python binding and prints one line of JSON.
const LLAMA: &str = include_str!("bench_llama.py");

/// Rows of the table that one call may ask for, so that a slip of the finger is no night's work.
const ROWS_MAX: usize = 64;

pub fn command() -> Command {
    let list = |name: &'static str, default: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("N,...")
            .value_delimiter(',')
            .value_parser(value_parser!(u16).range(1..=1024))
            .default_value(default)
            .help(help)
    };
    let count = |name: &'static str, default: &'static str, help: &'static str| {
        let legal = value_parser!(u32).range(1..=1_000_000);
        Arg::new(name).long(name).value_name("N").value_parser(legal).default_value(default).help(help)
    };
    let command = Command::new("bench")
        .about("Measure prefill and decode on this machine, and what share of the memory's bandwidth decode uses")
        .after_help(
            "Medians of the rounds. The bandwidth is what as many threads read in the same run; the share is that of the \
             bytes of weights and KV cache that a decode step reads. Anything else that runs here makes it slower.",
        )
        .arg(list("threads", "1", "threads that compute, one row of the table each"))
        .arg(list("sequences", "1", "sequences that decode together, one row each; with several, prompts have one token"))
        .arg(count("prompt", "512", "tokens of the prompt"))
        .arg(count("decode", "32", "tokens decoded after it"))
        .arg(count("rounds", "3", "times that each row is measured"))
        .arg(
            Arg::new("llama")
                .long("llama")
                .action(ArgAction::SetTrue)
                .requires("model")
                .help("measure llama.cpp's Python binding on the same GGUF file, turn about"),
        )
        .arg(
            Arg::new("python")
                .long("python")
                .value_name("PROGRAM")
                .default_value("python3")
                .help("the Python that has llama-cpp-python"),
        )
        .arg(
            Arg::new("no-repack")
                .long("no-repack")
                .action(ArgAction::SetTrue)
                .help("llama.cpp keeps weights as they are in the file; slower, but its AMX path fails on some machines"),
        );
    model::with_json(model::with_isa(model::with_model(command)), "a list of rows as JSON, instead of a table")
}

/// One row of the table.
#[derive(Serialize)]
struct Row {
    threads: usize,
    sequences: usize,
    prefill_tokens_per_s: f64,
    decode_tokens_per_s: f64,
    step_bytes: u64,
    read_bytes_per_s: f64,
    bandwidth_share: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    llama: Option<Llama>,
}

/// What llama.cpp did, tokens per second.
#[derive(Clone, Copy, Deserialize, Serialize)]
struct Llama {
    prefill_tokens_per_s: f64,
    decode_tokens_per_s: f64,
}

pub fn run(arguments: &ArgMatches) -> Result<(), Failure> {
    let list = |name| arguments.get_many::<u16>(name).expect("it has a default").map(|n| usize::from(*n));
    let count = |name| *arguments.get_one::<u32>(name).expect("it has a default") as usize;
    let (prompt_len, decode_len, rounds) = (count("prompt"), count("decode"), count("rounds"));
    let shapes: Vec<(usize, usize)> =
        list("threads").flat_map(|threads| list("sequences").map(move |sequences| (threads, sequences))).collect();
    if shapes.len() > ROWS_MAX {
        let text = format!("{} rows are asked for, and one call makes at most {ROWS_MAX}", shapes.len());
        return Err(Failure::Misused(text));
    }
    let model = Arc::new(model::open(arguments)?);
    model::check_length(&model, prompt_len, decode_len + 1)?;
    let mut rows = Vec::new();
    let mut status = Status::new();
    for (threads, sequences) in shapes {
        let options = BenchOptions { threads, prompt_len, decode_len, sequences, isa: model::isa(arguments) };
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 1..=rounds {
            status.say(&format!("bench: {threads} threads, {sequences} sequences: round {round} of {rounds}"));
            if arguments.get_flag("llama") {
                theirs.push(llama(arguments, options)?);
            }
            ours.push(measure(&model, options).map_err(Failure::failed)?);
        }
        rows.push(row(options, &ours, &theirs));
    }
    drop(status);
    let mut out = std::io::stdout().lock();
    let written = match arguments.get_flag("json") {
        true => serde_json::to_writer(&mut out, &rows).map_err(Into::into).and_then(|()| out.write_all(b"\n")),
        false => write_table(&mut out, &rows),
    };
    written.map_err(Failure::output)
}

fn row(options: BenchOptions, ours: &[Speed], theirs: &[Llama]) -> Row {
    let of = |pick: fn(&Speed) -> f64| median(ours.iter().map(pick).collect());
    let middle = Speed {
        prefill_tokens_per_s: of(|s| s.prefill_tokens_per_s),
        decode_tokens_per_s: of(|s| s.decode_tokens_per_s),
        step_bytes: ours[0].step_bytes,
        read_bytes_per_s: of(|s| s.read_bytes_per_s),
    };
    let llama = (!theirs.is_empty()).then(|| Llama {
        prefill_tokens_per_s: median(theirs.iter().map(|t| t.prefill_tokens_per_s).collect()),
        decode_tokens_per_s: median(theirs.iter().map(|t| t.decode_tokens_per_s).collect()),
    });
    Row {
        threads: options.threads,
        sequences: options.sequences,
        prefill_tokens_per_s: middle.prefill_tokens_per_s,
        decode_tokens_per_s: middle.decode_tokens_per_s,
        step_bytes: middle.step_bytes,
        read_bytes_per_s: middle.read_bytes_per_s,
        bandwidth_share: middle.bandwidth_share(options.sequences),
        llama,
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}

fn write_table(out: &mut impl Write, rows: &[Row]) -> std::io::Result<()> {
    let beside = rows.iter().any(|row| row.llama.is_some());
    write!(out, "threads sequences  prefill t/s  decode t/s  MB/step  read GB/s  share")?;
    writeln!(out, "{}", if beside { "  llama prefill  ours/its  llama decode  ours/its" } else { "" })?;
    for r in rows {
        write!(
            out,
            "{:>7} {:>9} {:>12.1} {:>11.2} {:>8.1} {:>10.2} {:>6.3}",
            r.threads,
            r.sequences,
            r.prefill_tokens_per_s,
            r.decode_tokens_per_s,
            r.step_bytes as f64 / 1e6,
            r.read_bytes_per_s / 1e9,
            r.bandwidth_share,
        )?;
        if let Some(llama) = r.llama {
            write!(
                out,
                " {:>14.1} {:>9.2} {:>13.2} {:>9.2}",
                llama.prefill_tokens_per_s,
                r.prefill_tokens_per_s / llama.prefill_tokens_per_s,
                llama.decode_tokens_per_s,
                r.decode_tokens_per_s / llama.decode_tokens_per_s,
            )?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// One measurement of llama.cpp, in a process of its own.
fn llama(arguments: &ArgMatches, options: BenchOptions) -> Result<Llama, Failure> {
    let python = arguments.get_one::<String>("python").expect("it has a default");
    let path: &Path = arguments.get_one::<PathBuf>("model").expect("clap requires it");
    if path.is_dir() {
        return Err(Failure::Misused("--llama: llama.cpp reads GGUF files, and this is a folder".to_owned()));
    }
    let numbers = [options.threads, options.sequences, options.prompt_len, options.decode_len].map(|n| n.to_string());
    let done = std::process::Command::new(python)
        .args(["-c", LLAMA])
        .arg(path)
        .args(numbers)
        .args(arguments.get_flag("no-repack").then_some("--no-repack"))
        .stdin(Stdio::null())
        .output()
        .map_err(|e| Failure::Failed(format!("{python}: {e}; name one that has llama-cpp-python with --python")))?;
    let text = String::from_utf8_lossy(&done.stderr);
    if text.contains("No module named 'llama_cpp'") {
        let help = "has no llama-cpp-python: pip install llama-cpp-python, or name another Python with --python";
        return Err(Failure::Failed(format!("{python} {help}")));
    }
    let answer = String::from_utf8_lossy(&done.stdout);
    let line = answer.lines().last().and_then(|line| serde_json::from_str(line).ok());
    line.filter(|_| done.status.success()).ok_or_else(|| {
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        Failure::Failed(format!("llama.cpp gave no figures ({}): {last}; try --no-repack", done.status))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_two() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 9.0]), 3.0);
    }
}
