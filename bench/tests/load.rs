//! The load generator against our server on a paced engine: what it counts is what was asked for.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use orchestratord_bench::load::{self, Api, Arrivals, Measure, Plan, Report};
use orchestratord_bench::null_server::{self, Options};

const INTERVAL_US: u64 = 2_000;

/// One test at a time: processor time is counted by the names of this process's threads, and a server that another test
/// stops takes what its threads had used with it.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(settings: &[&str], change: impl FnOnce(&mut Plan)) -> Report {
    let _turn = turn();
    let settings = settings.iter().copied().chain(["log_level=warn"]).map(str::to_owned).collect();
    let options = Options { listen: ([127, 0, 0, 1], 0).into(), interval_us: INTERVAL_US, settings };
    let server = null_server::start(&options).expect("the server starts");
    let mut plan = Plan { address: server.address, ..plan() };
    change(&mut plan);
    let report = load::run(&plan).expect("the load runs");
    server.stop();
    assert_eq!((report.failed, report.first_failure.clone()), (0, None));
    report
}

fn plan() -> Plan {
    Plan {
        address: ([127, 0, 0, 1], 0).into(),
        api: Api::Ours,
        measure: Measure::Stream,
        arrivals: Arrivals::Closed,
        connections: 8,
        warmup: Duration::from_millis(100),
        window: Duration::from_millis(700),
        seed: 1,
        max_tokens: 20,
        prompt: "Once upon a time".into(),
        response_format: None,
        model: "wren".into(),
        key: "bench-key-of-no-value".into(),
        grid: Some(Duration::from_micros(INTERVAL_US)),
        pid: Some(std::process::id()),
        scrapes_per_second: Some(50.0),
        server: "ours".into(),
        case: "test".into(),
    }
}

#[test]
fn streams_are_whole_and_their_tokens_come_after_the_schedule() {
    let report = run(&[], |_| {});
    assert!(report.requests >= 8 && report.tokens > report.requests, "{report:?}");
    assert!(report.push_to_read.count > 0 && report.push_to_read.max_us < 1e6, "{report:?}");
    assert!(report.scrape.count > 10 && report.scrape.max_us < 1e6, "{report:?}");
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

/// Some servers close after every answer, without a word beforehand: that is their right, and costs them a connection.
#[test]
fn a_server_that_closes_between_answers_has_not_failed() {
    let _turn = turn();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.expect("a connection");
            let mut request = [0; 2048];
            let _ = socket.read(&mut request);
            let _ = socket.write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}");
        }
    });
    let plan = Plan {
        address,
        measure: Measure::Post,
        connections: 2,
        warmup: Duration::ZERO,
        window: Duration::from_millis(300),
        grid: None,
        pid: None,
        scrapes_per_second: None,
        ..plan()
    };
    let report = load::run(&plan).expect("the load runs");
    assert!(report.requests > 10 && report.failed == 0, "{report:?}");
}
