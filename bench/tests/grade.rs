//! The live grader, small: that every client has its outcome, and that what is promised is no guess. The figures come from
//! `cargo run --release -p orchestratord-bench -- grade`.

use std::process::Command;

use orchestratord::app::bootstrap::Server;
use orchestratord::config;
use orchestratord_bench::grade::gaps::{self, Plan};
use orchestratord_bench::grade::goodput::{self, Goodput};
use orchestratord_bench::grade::{self, Options};

fn small() -> Options {
    Options { tasks: 150, seed: 7, slots: 4, tokens_max: 96, load: 0.9, ..Options::default() }
}

#[test]
fn every_promise_of_a_live_server_has_its_outcome() {
    let grades = grade::predictions(&small()).expect("the server answers");
    let chances = &grades.at_admission;
    assert_eq!((grades.offered, chances.total()), (135, 135), "the first tenth is not graded");
    // With so few, on a machine that does other things as well, only what is plainly wrong shows.
    assert!(chances.error() < 0.35, "{}", chances.error());
}

#[test]
fn who_comes_back_to_a_live_server_when_told_to_mostly_gets_in() {
    let grades = grade::retries(&small()).expect("the server answers");
    assert!(grades.told_to_retry > 10, "{}", grades.told_to_retry);
    assert!(2 * grades.admitted_at_first_retry > grades.told_to_retry, "{grades:?}");
}

#[test]
fn every_way_to_serve_gets_the_same_tasks_and_each_task_has_its_fate() {
    let goodput = goodput::measure(7, 80, 4, 96).expect("the servers answer");
    let [untold, plain, floored, sorted] = goodput.tallies;
    for (name, tally) in Goodput::names().iter().zip(&goodput.tallies) {
        assert_eq!(tally.offered(), 72, "{name}: the first tenth of each round is not graded");
        assert!(tally.met > 0, "{name}: {tally:?}");
    }
    assert_eq!((untold.hopeless, plain.hopeless), (0, 0), "without a floor nobody is refused for a deadline");
    assert!(floored.hopeless > 0 && sorted.hopeless > 0, "with one somebody is: {goodput:?}");
    let figures = [goodput.over_plain(0), goodput.over_plain(3), goodput.pace.0, goodput.pace.1];
    assert!(figures.iter().all(|figure| figure.is_finite() && *figure > 0.0), "{goodput:?}");
}

/// Also that streams say the same beside prompts and alone, and that no prompt fails: both are errors of the measurement.
#[test]
fn the_same_tokens_are_timed_beside_long_prompts_and_alone() {
    let plan = Plan { seed: 7, slots: 4, prompts: 2, prompt_len: 1000, stream_len: 3000 };
    for gaps in gaps::measure(&plan).expect("the servers answer") {
        assert_eq!(gaps.beside_prompts.len(), gaps.alone.len());
        assert!(gaps.alone.len() > 30, "{}", gaps.row());
        assert_eq!(gaps.first_token_ms.len(), 2, "both prompts were answered while the streams ran: {}", gaps.row());
        let ratios = [gaps.ratio(), gaps.worst_tenth];
        assert!(ratios.iter().all(|ratio| ratio.is_finite() && *ratio > 0.0), "{}", gaps.row());
    }
}

/// A server with a key and slots of its own, and a grader in another process that knows its address only.
#[test]
fn a_running_server_is_graded_over_its_address() {
    let key = "the-key-of-a-running-server";
    let settings = [("listen", "127.0.0.1:0"), ("api_keys", key), ("slots_max", "3"), ("log_level", "error")];
    let flags = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let server =
        Server::start(config::load(None, [], flags).expect("the settings are good").config).expect("it starts");
    let address = server.address.to_string();
    let outcomes = concat!(env!("CARGO_TARGET_TMPDIR"), "/outcomes-of-a-running-server.csv");
    let grade = |key: &str, tasks: &str| {
        Command::new(env!("CARGO_BIN_EXE_orchestratord-bench"))
            .args(["grade", "--address", &address, "--key", key, "--tasks", tasks, "--seed", "7"])
            .args(["--tokens-max", "96", "--load", "0.9", "--outcomes", outcomes])
            .output()
            .expect("the grader starts")
    };
    let graded = grade(key, "100");
    let (table, why) = (String::from_utf8_lossy(&graded.stdout), String::from_utf8_lossy(&graded.stderr));
    assert!(graded.status.success(), "{why}");
    assert!(table.contains("3 slots"), "the server says how many it has: {table}");
    for row in ["at admission: ECE", "predicted_start_ms: median error", "admitted at the first retry"] {
        assert!(table.contains(row), "no {row:?} in {table}");
    }
    for row in ["deadlines met", "time between tokens"] {
        assert!(!table.contains(row), "{row:?} needs servers of its own: {table}");
    }
    let lines = std::fs::read_to_string(outcomes).expect("the outcomes were written");
    assert_eq!(lines.lines().count(), 101, "a header, and each task of the first part once");
    let refused = grade("the-key-of-somebody-else", "10");
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && why.contains("API key is not valid"), "{why}");
    server.stop();
}
