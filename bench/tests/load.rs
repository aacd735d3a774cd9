//! The load generator against our server on a paced engine: what it counts is what was asked for.

use std::time::Duration;

use orchestratord_bench::load::{self, Api, Arrivals, Measure, Plan, Report};
use orchestratord_bench::null_server::{self, Options};

const INTERVAL_US: u64 = 2_000;

fn run(settings: &[&str], change: impl FnOnce(&mut Plan)) -> Report {
    let settings = settings.iter().copied().chain(["log_level=warn"]).map(str::to_owned).collect();
    let options = Options { listen: ([127, 0, 0, 1], 0).into(), interval_us: INTERVAL_US, settings };
    let server = null_server::start(&options).expect("the server starts");
    let mut plan = Plan {
        address: server.address,
        api: Api::Ours,
        measure: Measure::Stream,
        arrivals: Arrivals::Closed,
        connections: 8,
        warmup: Duration::from_millis(100),
        window: Duration::from_millis(700),
        seed: 1,
        max_tokens: 20,
        prompt: "Once upon a time".into(),
        model: "wren".into(),
        key: "bench-key-of-no-value".into(),
        grid: Some(Duration::from_micros(INTERVAL_US)),
        pid: Some(std::process::id()),
        server: "ours".into(),
        case: "test".into(),
    };
    change(&mut plan);
    let report = load::run(&plan).expect("the load runs");
    server.stop();
    assert_eq!((report.failed, report.first_failure.clone()), (0, None));
    report
}

#[test]
fn streams_are_whole_and_their_tokens_come_after_the_schedule() {
    let report = run(&[], |_| {});
    assert!(report.requests >= 8 && report.tokens > report.requests, "{report:?}");
    assert!(report.push_to_read.count > 0 && report.push_to_read.max_us < 1e6, "{report:?}");
    assert!(report.cpu_ns["reactor"] > 0 && report.cpu_ns["engine"] > 0, "{report:?}");
}

#[test]
fn an_open_loop_asks_at_its_rate_whatever_the_server_does() {
    let report = run(&[], |plan| {
        (plan.measure, plan.arrivals, plan.max_tokens) = (Measure::Post, Arrivals::Open(500.0), 1);
    });
    // Poisson with mean 350: five standard deviations.
    assert!((257..=443).contains(&report.requests), "{report:?}");
}

#[test]
fn refusals_are_counted_and_are_no_failures() {
    let report = run(&["slots_max=1", "queue_capacity=1"], |plan| plan.max_tokens = 100);
    assert!(report.refused > 0 && report.refusal.count == report.refused, "{report:?}");
    assert!(report.tokens > 0, "{report:?}");
}
