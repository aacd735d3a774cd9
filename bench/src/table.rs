//! The table of a run: one row per measure, one column per server, and how we stand to the others.
//!
//! Every figure is the median over the rounds; a ratio is the median of the rounds' own ratios, for the servers of
//! one round ran one after the other, with the range over all rounds behind it.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;

use crate::load::Report;

#[derive(Args)]
pub struct Options {
    /// Lines of JSON, as `load --json` writes them.
    #[arg(long)]
    pub json: PathBuf,
    /// File that begins the record: machine, date, what was built.
    #[arg(long)]
    pub preface: Option<PathBuf>,
    /// Markdown goes here, or to stdout.
    #[arg(long)]
    pub out: Option<PathBuf>,
}

const SERVERS: [&str; 6] = ["floor", "hyper", "axum", "ours", "ours-epoll", "llama.cpp"];

type Figure = fn(&Report) -> f64;

struct Row {
    case: &'static str,
    what: &'static str,
    figure: Figure,
}

const fn row(case: &'static str, what: &'static str, figure: Figure) -> Row {
    Row { case, what, figure }
}

fn bytes_per_stream(r: &Report) -> f64 {
    r.resident_bytes_after.saturating_sub(r.resident_bytes_before) as f64 / r.streams_open_at_end.max(1) as f64
}

fn streams_per_gb(r: &Report) -> f64 {
    1e9 / bytes_per_stream(r)
}

/// Share of the requests that were told to come back, percent.
fn refused_percent(r: &Report) -> f64 {
    100.0 * r.refused as f64 / (r.requests + r.refused).max(1) as f64
}

/// Processor time without what happens after the last token: the transcript's hashing and keeping.
fn cpu_without_scribe(r: &Report) -> f64 {
    let scribe = r.cpu_ns.get("scribe").copied().unwrap_or(0);
    (r.cpu_total_ns() - scribe) as f64 / 1000.0 / r.requests.max(1) as f64
}

const ROWS: &[Row] = &[
    row("post", "POST → 202, closed loop, 64 connections: requests/s", |r| r.requests_per_second),
    row("post", "… p99, µs", |r| r.end_to_end.p99_us),
    row("post", "… CPU per request, µs", Report::cpu_us_each),
    row("post", "… of that before the task's end, µs", cpu_without_scribe),
    row("post-70", "POST at 70 % of axum's saturation, open loop: p50, µs", |r| r.end_to_end.p50_us),
    row("post-70", "… p99, µs", |r| r.end_to_end.p99_us),
    row("stream-1", "1 stream, 500 tokens/s: push → read p50, µs", |r| r.push_to_read.p50_us),
    row("stream-1", "… p99, µs", |r| r.push_to_read.p99_us),
    row("stream-64", "64 streams, 200 tokens/s each: push → read p50, µs", |r| r.push_to_read.p50_us),
    row("stream-64", "… p99, µs", |r| r.push_to_read.p99_us),
    row("stream-64", "… CPU per token, µs", Report::cpu_us_each),
    row("stream-1000", "1000 streams, 50 tokens/s each: push → read p50, µs", |r| r.push_to_read.p50_us),
    row("stream-1000", "… p99, µs", |r| r.push_to_read.p99_us),
    row("stream-1000", "… CPU per token, µs", Report::cpu_us_each),
    row("saturated", "1000 streams, 500 000 tokens/s offered: tokens/s read", |r| r.tokens_per_second),
    row("saturated", "… CPU per token, µs", Report::cpu_us_each),
    row("idle", "2000 open streams without a token: bytes of memory each", bytes_per_stream),
    row("idle", "… streams in a GB", streams_per_gb),
    row("crowd", "10 000 open streams, 4096 at 5 tokens/s: push → read p99, µs", |r| r.push_to_read.p99_us),
    row("crowd-scraped", "… the same, with 20 scrapes of the metrics a second", |r| r.push_to_read.p99_us),
    row("crowd-scraped", "… a scrape, p50, µs", |r| r.scrape.p50_us),
    row("crowd-scraped", "… a scrape, p99, µs", |r| r.scrape.p99_us),
    row("calm", "64 streams, 200 tokens/s each, scraped: push → read p99, µs", |r| r.push_to_read.p99_us),
    row("calm", "… worst delay of the reactor's timer, µs", |r| r.loop_lag_max_us as f64),
    row("long", "… beside 100 prompts of 6 KB a second: push → read p99, µs", |r| r.push_to_read.p99_us),
    row("long", "… worst delay of the reactor's timer, µs", |r| r.loop_lag_max_us as f64),
    row("half", "half of what 64 slots can serve, open loop: between tokens p99, µs", |r| r.between_tokens.p99_us),
    row("half", "… first token p99, µs", |r| r.first_token.p99_us),
    row("twice", "twice of that: between tokens p99, µs", |r| r.between_tokens.p99_us),
    row("twice", "… first token p99, of those that were admitted, µs", |r| r.first_token.p99_us),
    row("twice", "… refused, percent", refused_percent),
    row("twice", "… refusal p99, µs", |r| r.refusal.p99_us),
    row("twice", "… tokens/s", |r| r.tokens_per_second),
    row("real-2", "real engine, 2 streams: tokens/s", |r| r.tokens_per_second),
    row("real-2", "… first token p50, µs", |r| r.first_token.p50_us),
    row("real-64", "real engine, 64 streams: tokens/s", |r| r.tokens_per_second),
    row("real-64", "… first token p50, µs", |r| r.first_token.p50_us),
    row("real-1000", "real engine, 1000 streams: tokens/s", |r| r.tokens_per_second),
    row("real-1000", "… first token p50, µs", |r| r.first_token.p50_us),
];

/// Writes the table.
///
/// # Errors
///
/// When a file cannot be read or written, or a line is no report.
pub fn run(options: &Options) -> Result<(), String> {
    let read = |path: &PathBuf| std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()));
    let reports: Vec<Report> = read(&options.json)?
        .lines()
        .map(|line| serde_json::from_str(line).map_err(|e| format!("{line:?} is no report: {e}")))
        .collect::<Result<_, _>>()?;
    let preface = options.preface.as_ref().map(read).transpose()?.unwrap_or_default();
    let text = format!("{preface}\n{}\n{}", table(&reports), troubles(&reports));
    match &options.out {
        Some(path) => std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display())),
        None => {
            print!("{text}");
            Ok(())
        }
    }
}

fn table(reports: &[Report]) -> String {
    let mut out = String::from("| measure |");
    SERVERS.iter().for_each(|s| _ = write!(out, " {s} |"));
    out.push_str(" ours / axum | ours / floor | ours / llama.cpp |\n|---|");
    (0..SERVERS.len() + 3).for_each(|_| out.push_str("---:|"));
    out.push('\n');
    for row in ROWS {
        let of = |server: &str| -> Vec<f64> {
            let here = reports.iter().filter(|r| r.case == row.case && r.server == server);
            here.map(row.figure).collect()
        };
        if of("ours").is_empty() {
            continue;
        }
        let _ = write!(out, "| {} |", row.what);
        for server in SERVERS {
            // Nothing measured is no figure: a server that gave no first token in the window has no time for it.
            let figure = median(&of(server)).filter(|figure| *figure > 0.0);
            let _ = write!(out, " {} |", figure.map_or_else(String::new, shown));
        }
        for other in ["axum", "floor", "llama.cpp"] {
            let _ = write!(out, " {} |", ratio(&of("ours"), &of(other)));
        }
        out.push('\n');
    }
    out
}

/// What went wrong, for a figure is worth nothing if the answers were.
fn troubles(reports: &[Report]) -> String {
    let mut out = String::new();
    // What is offered twice is to be refused once.
    for r in reports.iter().filter(|r| r.failed > 0 || (r.refused > 0 && r.case != "twice")) {
        let why = r.first_failure.as_deref().unwrap_or("told to come back");
        let _ = writeln!(out, "- {} / {}: {} failed, {} refused ({why})", r.server, r.case, r.failed, r.refused);
    }
    if out.is_empty() {
        out.push_str("No request failed or was refused, and every stream was in order and whole.\n");
    }
    out
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (!sorted.is_empty()).then(|| (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0)
}

fn ratio(ours: &[f64], others: &[f64]) -> String {
    let ratios: Vec<f64> = ours.iter().zip(others).filter(|(_, o)| **o > 0.0).map(|(a, b)| a / b).collect();
    let Some(middle) = median(&ratios) else { return String::new() };
    let least = ratios.iter().copied().fold(f64::MAX, f64::min);
    let most = ratios.iter().copied().fold(0.0, f64::max);
    format!("{middle:.2} ({least:.2}–{most:.2})")
}

fn shown(value: f64) -> String {
    match value {
        ..100.0 => format!("{value:.2}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_rounds_and_troubles_are_told() {
        let report = |server: &str, rate: f64, failed| Report {
            server: server.into(),
            case: "post".into(),
            requests_per_second: rate,
            failed,
            ..Report::default()
        };
        let reports =
            [report("ours", 20.0, 0), report("axum", 10.0, 1), report("ours", 90.0, 0), report("axum", 30.0, 0)];
        let text = table(&reports);
        assert!(text.contains("| 20.00 | 55.00 |") && text.contains("2.50 (2.00–3.00)"), "{text}");
        assert!(troubles(&reports).contains("axum / post: 1 failed"));
    }
}
