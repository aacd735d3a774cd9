//! `device report`: what was measured, as tables in Markdown, beside what it must be.

use std::io::Write;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command, value_parser};

use super::records::{self, Case, Ceiling, Record};
use crate::cli::Failure;

/// Shares of the read bandwidth that a lone sequence's steps must use at least, and should.
const GOALS: [Goal; 4] = [
    Goal { shape: "llama-3.1-8b", types: &["bf16"], must: 0.75, wish: 0.90 },
    Goal { shape: "llama-3.1-8b", types: &["q8_0", "f8_e4m3"], must: 0.65, wish: 0.85 },
    Goal { shape: "llama-3.1-8b", types: &["q4_k", "q4_0"], must: 0.55, wish: 0.75 },
    Goal { shape: "llama-3.2-1b", types: &["bf16"], must: 0.60, wish: 0.80 },
];

/// Microseconds of a step in which the device may wait for the host.
const HOST_US_MAX: f64 = 30.0;

const OURS: &str = "orchestratord";

struct Goal {
    shape: &'static str,
    types: &'static [&'static str],
    must: f64,
    wish: f64,
}

pub fn command() -> Command {
    let file = Arg::new("file").value_name("FILE").num_args(1..).required(true).value_parser(value_parser!(PathBuf));
    Command::new("report")
        .about("Print what `device speed` and engine/gpu/control.py measured, as tables in Markdown")
        .after_help("Cells that could not be measured are empty. The control's int8 stands beside Q8_0.")
        .arg(file.help("lines of JSON"))
}

pub fn run(arguments: &ArgMatches) -> Result<(), Failure> {
    let mut all = Vec::new();
    for path in arguments.get_many::<PathBuf>("file").expect("clap requires it") {
        all.extend(records::read(path)?);
    }
    std::io::stdout().lock().write_all(tables(&all).as_bytes()).map_err(Failure::output)
}

/// All tables.
fn tables(all: &[Record]) -> String {
    let ceilings = all.iter().filter_map(|r| if let Record::Ceiling(c) = r { Some(c) } else { None });
    let best = ceilings.max_by(|a, b| a.read_bytes_per_s.total_cmp(&b.read_bytes_per_s));
    let cases: Vec<&Case> = all.iter().filter_map(|r| if let Record::Case(c) = r { Some(c) } else { None }).collect();
    let read = best.map(|c| c.read_bytes_per_s);
    [best.map(ceiling).unwrap_or_default(), goals(&cases, read), batches(&cases, read), first_tokens(&cases)].join("\n")
}

fn ceiling(c: &Ceiling) -> String {
    format!(
        "{}, driver for CUDA {}. Reading {} MiB and nothing else: {:.1} GB/s at best, {:.1} in the median, {} KiB a block of \
         threads. A launch that does nothing and the wait for it: {:.1} us; one of a hundred: {:.2} us, and {:.2} us in a list that \
         comes again.\n",
        c.device,
        c.driver,
        c.read_bytes >> 20,
        c.read_bytes_per_s / 1e9,
        c.read_bytes_per_s_median / 1e9,
        c.span_bytes >> 10,
        c.launch_alone_us,
        c.launch_chained_us,
        c.launch_listed_us,
    )
}

/// The control's case that stands beside one of ours.
fn control<'a>(cases: &[&'a Case], ours: &Case) -> Option<&'a Case> {
    let wanted = if ours.tensor_type == "q8_0" { "int8" } else { &ours.tensor_type };
    let same =
        |c: &Case| c.shape == ours.shape && c.tensor_type == wanted && c.batch == ours.batch && c.prompt == ours.prompt;
    cases.iter().copied().find(|c| c.by != OURS && same(c))
}

/// The lone sequence's shares and what they must be. A row a goal, measured or not.
fn goals(cases: &[&Case], read: Option<f64>) -> String {
    let mut table = Table::new(
        "A lone sequence, the first prompt's length",
        &["model", "tokens/s", "share of reading", "must", "goal", "", "PyTorch tokens/s", "ours / PyTorch"],
    );
    for goal in &GOALS {
        let of_goal = |c: &&&Case| {
            c.by == OURS && c.shape == goal.shape && goal.types.contains(&c.tensor_type.as_str()) && c.batch == 1
        };
        // The first case of a type is that of the prompt that goals are for; of several types each has a row.
        let mut found: Vec<&Case> = Vec::new();
        for case in cases.iter().filter(of_goal) {
            if found.iter().all(|c| c.tensor_type != case.tensor_type) {
                found.push(case);
            }
        }
        let bounds = [percent(Some(goal.must)), percent(Some(goal.wish))];
        if found.is_empty() {
            let name = format!("{} {}", goal.shape, goal.types.join(" or "));
            table.row([name, String::new(), String::new()].into_iter().chain(bounds.clone()));
        }
        for case in found {
            let share = read.and_then(|read| case.share(read));
            let verdict = match share {
                None => "",
                Some(share) if share >= goal.wish => "goal met",
                Some(share) if share >= goal.must => "must met",
                Some(_) => "MISSED",
            };
            let other = control(cases, case);
            let name = format!("{} {}", case.shape, case.tensor_type);
            table.row([name, number(case.tokens_per_s, 1), percent(share)].into_iter().chain(bounds.clone()).chain([
                verdict.to_owned(),
                number(other.and_then(|c| c.tokens_per_s), 1),
                ratio(case, other),
            ]));
        }
    }
    table.text()
}

/// Every case in which tokens follow each other, the control's as well.
fn batches(cases: &[&Case], read: Option<f64>) -> String {
    let heads = [
        "by",
        "model",
        "batch",
        "prompt",
        "steps",
        "tokens/s",
        "step p50 us",
        "p99 us",
        "share of reading",
        "host us",
        "device idle us",
        "device GB",
        "PyTorch tokens/s",
        "ours / PyTorch",
    ];
    let mut table = Table::new("Decoding", &heads);
    for case in cases.iter().filter(|case| case.decode > 0) {
        let other = if case.by == OURS { control(cases, case) } else { None };
        table.row([
            case.by.clone(),
            format!("{} {}", case.shape, case.tensor_type),
            case.batch.to_string(),
            case.prompt.to_string(),
            case.decode.to_string(),
            number(case.tokens_per_s, 1),
            number(case.step_us_p50, 0),
            number(case.step_us_p99, 0),
            percent(read.and_then(|read| case.share(read))),
            number(case.host_us, 0),
            number(case.idle_us, 0),
            number(case.device_bytes.map(|b| b as f64 / 1e9), 2),
            number(other.and_then(|c| c.tokens_per_s), 1),
            ratio(case, other),
        ]);
    }
    let idle: Vec<f64> = cases.iter().filter(|c| c.by == OURS).filter_map(|c| c.idle_us).collect();
    let late = idle.iter().filter(|us| **us > HOST_US_MAX).count();
    let said = match idle.len() {
        0 => String::new(),
        count => format!("\nThe device waits over {HOST_US_MAX} us a step for the host in {late} of {count} cases.\n"),
    };
    table.text() + &said
}

fn first_tokens(cases: &[&Case]) -> String {
    let mut table = Table::new(
        "First token: until the last sequence has one",
        &["by", "model", "batch", "prompt", "ms", "prompt tokens/s", "PyTorch ms", "ours / PyTorch"],
    );
    for case in cases {
        let other = if case.by == OURS { control(cases, case).and_then(|c| c.prefill_s) } else { None };
        let speed = case.prefill_s.map(|s| (case.batch * case.prompt) as f64 / s);
        table.row([
            case.by.clone(),
            format!("{} {}", case.shape, case.tensor_type),
            case.batch.to_string(),
            case.prompt.to_string(),
            number(case.prefill_s.map(|s| s * 1e3), 2),
            number(speed, 0),
            number(other.map(|s| s * 1e3), 2),
            number(case.prefill_s.zip(other).map(|(ours, theirs)| ours / theirs), 2),
        ]);
    }
    table.text()
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(String::new, |v| format!("{v:.digits$}"))
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(String::new, |s| format!("{:.1} %", s * 100.0))
}

fn ratio(ours: &Case, other: Option<&Case>) -> String {
    let both = ours.tokens_per_s.zip(other.and_then(|c| c.tokens_per_s));
    number(both.map(|(ours, theirs)| ours / theirs), 2)
}

/// A table in Markdown.
struct Table {
    title: String,
    columns: usize,
    lines: Vec<String>,
}

impl Table {
    fn new(title: &str, heads: &[&str]) -> Table {
        let lines = vec![format!("| {} |", heads.join(" | ")), "|---".repeat(heads.len()) + "|"];
        Table { title: title.to_owned(), columns: heads.len(), lines }
    }

    /// Cells that are missing at the end are empty.
    fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut cells: Vec<String> = cells.into_iter().collect();
        cells.resize(self.columns, String::new());
        self.lines.push(format!("| {} |", cells.join(" | ")));
    }

    fn text(&self) -> String {
        format!("## {}\n\n{}\n", self.title, self.lines.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(by: &str, tensor_type: &str, tokens_per_s: Option<f64>) -> Record {
        Record::Case(Case {
            by: by.to_owned(),
            shape: "llama-3.1-8b".to_owned(),
            tensor_type: tensor_type.to_owned(),
            batch: 1,
            prompt: 128,
            decode: 256,
            prefill_s: Some(0.5),
            tokens_per_s,
            step_us_p50: None,
            step_us_p99: None,
            step_bytes: 10_000_000_000,
            host_us: None,
            idle_us: Some(40.0),
            device_bytes: None,
            how: String::new(),
        })
    }

    #[test]
    fn a_goal_is_met_by_the_share_of_the_ceiling_of_the_same_run_and_what_is_missing_stays_empty() {
        let ceiling = Record::Ceiling(Ceiling {
            device: "A device".to_owned(),
            driver: "13.0".to_owned(),
            read_bytes_per_s: 4e12,
            read_bytes_per_s_median: 3.9e12,
            read_bytes: 4 << 30,
            span_bytes: 32 << 10,
            launch_alone_us: 9.0,
            launch_chained_us: 2.0,
            launch_listed_us: 1.0,
        });
        let all = [
            ceiling,
            case(OURS, "bf16", Some(320.0)),
            case("pytorch", "bf16", Some(400.0)),
            case(OURS, "q8_0", Some(250.0)),
            case("pytorch", "int8", None),
            case(OURS, "q4_k", Some(380.0)),
        ];
        let said = tables(&all);
        for wanted in [
            "| llama-3.1-8b bf16 | 320.0 | 80.0 % | 75.0 % | 90.0 % | must met | 400.0 | 0.80 |",
            "| llama-3.1-8b q8_0 | 250.0 | 62.5 % | 65.0 % | 85.0 % | MISSED |  |  |",
            "| llama-3.1-8b q4_k | 380.0 | 95.0 % | 55.0 % | 75.0 % | goal met |  |  |",
            "| llama-3.2-1b bf16 |  |  | 60.0 % | 80.0 % |  |  |  |",
            "| orchestratord | llama-3.1-8b bf16 | 1 | 128 | 500.00 | 256 | 500.00 | 1.00 |",
            "over 30 us a step for the host in 3 of 3 cases",
        ] {
            assert!(said.contains(wanted), "{wanted}\n{said}");
        }
        assert!(tables(&all[1..]).contains("| llama-3.1-8b bf16 | 320.0 |  | 75.0 % | 90.0 % |  | 400.0 | 0.80 |"));
    }

    /// A run that was stopped in the middle of a line has all lines before it.
    #[test]
    fn lines_that_were_cut_off_are_left_out_and_others_are_errors() {
        let path = std::env::temp_dir().join(format!("records-{}", std::process::id()));
        let mut lines = records::Lines::to(Some(&path)).ok().expect("a file");
        let record = case(OURS, "bf16", None);
        lines.put(&record).ok().expect("there is room");
        let mut text = std::fs::read_to_string(&path).expect("it was written");
        std::fs::write(&path, text.clone() + "{\"kind\":\"ca").expect("a file");
        assert_eq!(records::read(&path).ok().expect("the first line is one"), [record]);
        text.insert_str(0, "nothing\n");
        std::fs::write(&path, text).expect("a file");
        assert!(records::read(&path).is_err());
        std::fs::remove_file(&path).expect("it was made above");
    }
}
