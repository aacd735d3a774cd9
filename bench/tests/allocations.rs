//! How often the serving path allocates, counted in the server's own threads while it serves.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use orchestratord_bench::counting::{self, Counting};
use orchestratord_bench::null_server::{self, Options};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations for one POST and all that follows it, of all threads, while there is room for more tasks: the prompt's text,
/// the task, its log, and the log's settled form. Tables that grow add a fraction.
const GROWING_MAX: f64 = 4.1;

/// The same when for each task that comes one is forgotten: it gets that one's memory. Chunks of transcripts add a fraction.
const STEADY_MAX: f64 = 0.1;

/// Bounds that are reached soon.
const SOON_FULL: [&str; 4] = ["slots_max=16", "step_rows_max=16", "queue_capacity=16", "tasks_max=64"];

fn start(interval_us: u64, bounds: &[&str]) -> (orchestratord::app::bootstrap::Server, SocketAddr) {
    let fixed = ["log_level=info", "metrics_interval_ms=600000"];
    let settings = fixed.iter().chain(bounds).map(|setting| (*setting).to_owned()).collect();
    let options = Options { listen: ([127, 0, 0, 1], 0).into(), interval_us, settings };
    let server = null_server::start(&options).expect("the server starts");
    let address = server.address;
    (server, address)
}

fn post(socket: &mut TcpStream, task: u64, max_tokens: u32, accept: &str) {
    let body = format!(
        r#"{{"task_id":"7c1ae8d0-3c3c-4b1e-9f0e-{task:012x}","session_id":"7c1ae8d0-3c3c-4b1e-9f0e-2a6f4e2b8a02","workload":"completion","model_ref":"wren","engine":"cpu","ctx":2048,"priority":"interactive","max_tokens":{max_tokens},"deadline_ms":600000,"ignore_end":true,"prompt":"Once upon a time"}}"#
    );
    // In one piece: what is sent piece by piece waits for the other side's acknowledgements.
    let request = format!(
        "POST /v1/tasks HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\nX-API-Key: bench-key-of-no-value\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).expect("the server reads");
}

fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).expect("it listens");
    socket.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket has time-outs");
    socket
}

/// Reads until `count` times `what` has come; false when a refusal came first.
fn read_until(socket: &mut TcpStream, what: &str, count: usize) -> bool {
    let (mut seen, mut rest, mut buffer) = (0, String::new(), vec![0; 64 * 1024]);
    while seen < count {
        let len = socket.read(&mut buffer).expect("the server writes");
        assert!(len > 0, "the server closed the connection after {seen} of {what}");
        rest.push_str(std::str::from_utf8(&buffer[..len]).expect("it is text"));
        if rest.contains("HTTP/1.1 429") {
            return false;
        }
        seen += rest.matches(what).count();
        let keep = rest.len().saturating_sub(what.len() - 1);
        rest.drain(..keep);
    }
    true
}

fn spent(before: &BTreeMap<String, u64>, thread: &str) -> u64 {
    counting::by_thread()[thread] - before[thread]
}

/// Allocations for one POST, of all threads.
fn per_request(address: SocketAddr, case: &str) -> f64 {
    // A warm connection, a warm session, a prompt that was seen.
    let requests = 2000;
    let mut socket = connect(address);
    // On a busy machine the engine is late now and then, and the queue full.
    let one = |socket: &mut TcpStream, task| loop {
        post(socket, task, 1, "application/json");
        if read_until(socket, "\"backoff_ms\"", 1) {
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    (100..400).for_each(|task| one(&mut socket, task));
    let before = counting::by_thread();
    (1000..1000 + requests).for_each(|task| one(&mut socket, task));
    let each = |thread| spent(&before, thread) as f64 / requests as f64;
    let (reactor, engine, scribe) = (each("reactor"), each("engine"), each("scribe"));
    let all = reactor + engine + scribe;
    println!(
        "per request, {case}: {all:.2} allocations: {reactor:.2} on the reactor, {engine:.2} on the engine thread, \
         {scribe:.2} on the scribe"
    );
    all
}

/// Until no thread of a server is left: those of the next have the same names.
fn wait_for_the_end() {
    let began = Instant::now();
    let is_left = || ["reactor", "engine", "scribe"].iter().any(|thread| counting::by_thread().contains_key(*thread));
    while is_left() {
        assert!(began.elapsed() < Duration::from_secs(10), "a server's threads end with it");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One test, for counts of one process know no other test.
#[test]
fn tokens_allocate_nothing_but_the_log_and_requests_what_is_remembered_of_them() {
    let (server, address) = start(1_000, &[]);
    let mut socket = connect(address);

    // Tokens: a log has 2, 4, 8, 16, 32, 64 KiB and so on; a thousand tokens of under 128 bytes are at most seven.
    post(&mut socket, 1, 1900, "text/event-stream");
    assert!(read_until(&mut socket, "event: token", 200));
    let before = counting::by_thread();
    assert!(read_until(&mut socket, "event: token", 1000));
    let (engine, reactor) = (spent(&before, "engine"), spent(&before, "reactor"));
    println!("1000 tokens: {engine} allocations on the engine thread, {reactor} on the reactor");
    assert!(engine <= 7, "{engine} allocations in 1000 tokens on the engine thread");
    // The `Date` header is written anew once a second; the thousand tokens take one, and more on a busy machine.
    assert!(reactor <= 10, "{reactor} allocations in 1000 tokens on the reactor");
    assert!(read_until(&mut socket, "event: end", 1));

    let growing = per_request(address, "growing");
    server.stop();
    wait_for_the_end();
    assert!(growing <= GROWING_MAX, "{growing} allocations per request");

    let (server, address) = start(1_000, &SOON_FULL);
    let steady = per_request(address, "at the bounds");
    server.stop();
    assert!(steady <= STEADY_MAX, "{steady} allocations per request at the bounds");
}
