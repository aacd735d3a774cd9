//! The load generator: many connections on one thread, each request measured from when it was meant to be sent.
//!
//! *Open loop*: requests arrive as a Poisson process of a given rate, whatever the server does; one that finds no
//! idle connection waits, and its wait counts (otherwise a server that stalls would be asked less and look better:
//! coordinated omission). *Closed loop*: each connection sends its next request when the last is answered.

mod client;
pub(crate) mod http;
mod process;
mod report;
mod scrape;
mod sse;

pub use report::{Report, Summary};
pub use sse::Api;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use mio::{Events, Interest, Poll, Token};

use crate::pace::now_ns;
use client::{Client, Ended, Progress};
use process::Spending;
use report::Latencies;
use scrape::Scraper;

/// After a refusal a closed loop asks again this much later.
const AFTER_REFUSAL_NS: u64 = 20_000_000;

/// Connections opened at once: the server's backlog is finite.
const CONNECTS_AT_ONCE: usize = 256;

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    Closed,
    /// Requests per second.
    Open(f64),
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// A task, answered with its place in the queue.
    Post,
    /// A task and its stream.
    Stream,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub address: SocketAddr,
    pub api: Api,
    pub measure: Measure,
    pub arrivals: Arrivals,
    pub connections: usize,
    pub warmup: Duration,
    pub window: Duration,
    pub seed: u64,
    pub max_tokens: u32,
    pub prompt: String,
    /// What the answer must look like, as the task says it: a JSON object, for our API only.
    pub response_format: Option<String>,
    pub model: String,
    pub key: String,
    /// The interval of a paced engine: tokens are due on its grid.
    pub grid: Option<Duration>,
    /// A server on this machine whose spending is to be measured.
    pub pid: Option<u32>,
    /// Scrapes of our server's metrics in a second, beside the load.
    pub scrapes_per_second: Option<f64>,
    pub server: String,
    pub case: String,
}

/// Numbers from a seed: SplitMix64 (Steele, Lea, Flood 2014).
pub struct Random(pub u64);

impl Random {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Exponentially distributed with this mean.
    fn exponential(&mut self, mean: f64) -> f64 {
        let uniform = ((self.draw() >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
        -uniform.ln() * mean
    }
}

/// What is counted while the window is open.
pub(crate) struct Tally {
    api: Api,
    open: bool,
    opened_ns: u64,
    requests: u64,
    tokens: u64,
    refused: u64,
    failed: u64,
    first_failure: Option<String>,
    end_to_end: Latencies,
    first_token: Latencies,
    between_tokens: Latencies,
    per_token: Latencies,
    push_to_read: Latencies,
    refusal: Latencies,
}

impl Tally {
    fn new(api: Api) -> Tally {
        Tally {
            api,
            open: false,
            opened_ns: 0,
            requests: 0,
            tokens: 0,
            refused: 0,
            failed: 0,
            first_failure: None,
            end_to_end: Latencies::default(),
            first_token: Latencies::default(),
            between_tokens: Latencies::default(),
            per_token: Latencies::default(),
            push_to_read: Latencies::default(),
            refusal: Latencies::default(),
        }
    }

    fn fail(&mut self, why: String) {
        self.failed += 1;
        self.first_failure.get_or_insert(why);
    }
}

/// Runs a plan to its end.
///
/// # Errors
///
/// When the sockets cannot be had, the process to be watched is not there, or the metrics are not what they should be. What the server does wrong is
/// counted in the report instead.
pub fn run(plan: &Plan) -> Result<Report, String> {
    let spent_before = plan.pid.map(Spending::of).transpose()?;
    let mut load = Load::new(plan)?;
    let began_ns = now_ns();
    let opens_ns = began_ns + plan.warmup.as_nanos() as u64;
    let ends_ns = opens_ns + plan.window.as_nanos() as u64;
    load.run_until(opens_ns)?;
    let from = plan.pid.map(Spending::of).transpose()?;
    let opened_ns = now_ns();
    (load.tally.open, load.tally.opened_ns) = (true, opened_ns);
    let scraper = plan.scrapes_per_second.map(|rate| Scraper::start(plan.address, rate));
    load.run_until(ends_ns)?;
    let scraped = scraper.map_or_else(|| Ok(Default::default()), Scraper::finish)?;
    let to = plan.pid.map(Spending::of).transpose()?;
    let seconds = (now_ns() - opened_ns) as f64 / 1e9;
    let mut streams_open_at_end = 0;
    for client in &mut load.clients {
        streams_open_at_end += usize::from(client.is_streaming());
        client.record_schedule(plan.grid, &mut load.tally);
    }
    let tally = load.tally;
    Ok(Report {
        server: plan.server.clone(),
        case: plan.case.clone(),
        loop_kind: match plan.arrivals {
            Arrivals::Closed => "closed loop".into(),
            Arrivals::Open(rate) => format!("open loop, {rate:.0}/s"),
        },
        seconds,
        connections: plan.connections,
        requests: tally.requests,
        requests_per_second: tally.requests as f64 / seconds,
        tokens: tally.tokens,
        tokens_per_second: tally.tokens as f64 / seconds,
        refused: tally.refused,
        failed: tally.failed,
        first_failure: tally.first_failure,
        cut_off: load.clients.iter().filter(|c| !c.is_idle()).count() as u64,
        end_to_end: tally.end_to_end.summary(),
        first_token: tally.first_token.summary(),
        between_tokens: tally.between_tokens.summary(),
        per_token: tally.per_token.summary(),
        push_to_read: tally.push_to_read.summary(),
        refusal: tally.refusal.summary(),
        scrape: scraped.summary(),
        loop_lag_max_us: scraped.loop_lag_max_us,
        cpu_ns: match (&from, &to) {
            (Some(from), Some(to)) => to.since(from),
            _ => Default::default(),
        },
        resident_bytes_before: spent_before.map_or(0, |s| s.resident_bytes),
        resident_bytes_after: to.map_or(0, |s| s.resident_bytes),
        streams_open_at_end,
    })
}

struct Load<'a> {
    plan: &'a Plan,
    poll: Poll,
    clients: Vec<Client>,
    idle: Vec<usize>,
    connecting: usize,
    /// Clients that have not been connected yet.
    unconnected: VecDeque<usize>,
    /// Requests that are due and have no connection yet, by their intended time.
    backlog: VecDeque<u64>,
    next_arrival_ns: u64,
    /// Clients that were refused, and when they ask again.
    resting: BinaryHeap<Reverse<(u64, usize)>>,
    random: Random,
    tally: Tally,
    scratch: Vec<u8>,
}

impl<'a> Load<'a> {
    fn new(plan: &'a Plan) -> Result<Load<'a>, String> {
        let mut random = Random(plan.seed);
        let clients = (0..plan.connections).map(|_| Client::new(plan, &mut random)).collect();
        Ok(Load {
            plan,
            poll: Poll::new().map_err(|e| e.to_string())?,
            clients,
            idle: Vec::new(),
            connecting: 0,
            unconnected: (0..plan.connections).collect(),
            backlog: VecDeque::new(),
            next_arrival_ns: now_ns(),
            resting: BinaryHeap::new(),
            random,
            tally: Tally::new(plan.api),
            scratch: vec![0; 256 * 1024],
        })
    }

    fn run_until(&mut self, until_ns: u64) -> Result<(), String> {
        let mut events = Events::with_capacity(4096);
        loop {
            let now = now_ns();
            if now >= until_ns {
                return Ok(());
            }
            self.connect()?;
            self.arrive(now);
            self.send_due(now);
            let timeout = self.timeout(now, until_ns);
            if let Err(error) = self.poll.poll(&mut events, Some(timeout))
                && error.kind() != std::io::ErrorKind::Interrupted
            {
                return Err(error.to_string());
            }
            for event in &events {
                let index = event.token().0;
                if self.clients[index].finish_connecting() {
                    self.connecting -= 1;
                    self.idle.push(index);
                    self.start_closed(index);
                    continue;
                }
                if event.is_writable() {
                    self.flush(index);
                }
                if event.is_readable() || event.is_read_closed() || event.is_error() {
                    self.read(index);
                }
            }
        }
    }

    /// Never longer than to the next thing to do. An open loop spins through the last millisecond: timers are
    /// too coarse for what it measures.
    fn timeout(&self, now: u64, until_ns: u64) -> Duration {
        let mut next = until_ns;
        if let Arrivals::Open(_) = self.plan.arrivals {
            next = next.min(self.next_arrival_ns.saturating_sub(1_000_000));
        }
        if let Some(Reverse((at, _))) = self.resting.peek() {
            next = next.min(*at);
        }
        Duration::from_nanos(next.saturating_sub(now))
    }

    fn connect(&mut self) -> Result<(), String> {
        while self.connecting < CONNECTS_AT_ONCE
            && let Some(index) = self.unconnected.pop_front()
        {
            let socket = self.clients[index].connect(self.plan.address)?;
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(socket, Token(index), interest).map_err(|e| e.to_string())?;
            self.connecting += 1;
        }
        Ok(())
    }

    fn arrive(&mut self, now: u64) {
        if let Arrivals::Open(rate) = self.plan.arrivals {
            while self.next_arrival_ns <= now {
                self.backlog.push_back(self.next_arrival_ns);
                self.next_arrival_ns += self.random.exponential(1e9 / rate) as u64;
            }
        }
    }

    fn send_due(&mut self, now: u64) {
        while let Some(Reverse((at, index))) = self.resting.peek().copied()
            && at <= now
        {
            self.resting.pop();
            self.idle.push(index);
            self.start_closed(index);
        }
        while !self.backlog.is_empty()
            && let Some(index) = self.idle.pop()
        {
            let intended_ns = self.backlog.pop_front().expect("it is not empty");
            self.start(index, intended_ns);
        }
    }

    fn start_closed(&mut self, index: usize) {
        if self.plan.arrivals == Arrivals::Closed && self.idle.last() == Some(&index) {
            self.idle.pop();
            self.start(index, now_ns());
        }
    }

    fn start(&mut self, index: usize, intended_ns: u64) {
        self.clients[index].start(intended_ns, self.random.draw(), self.random.draw(), self.plan);
        self.flush(index);
    }

    fn flush(&mut self, index: usize) {
        if let Err(error) = self.clients[index].flush() {
            self.lose(index, format!("writing: {error}"));
        }
    }

    fn read(&mut self, index: usize) {
        match self.clients[index].read(&mut self.scratch, &mut self.tally) {
            Ok(Progress::Goes) => {}
            Ok(Progress::Ended(ended)) => self.settle(index, ended),
            Err(why) => self.lose(index, why),
        }
    }

    fn settle(&mut self, index: usize, ended: Ended) {
        let client = &mut self.clients[index];
        client.record_schedule(self.plan.grid, &mut self.tally);
        client.rest();
        match ended {
            Ended::Refused if self.plan.arrivals == Arrivals::Closed => {
                self.resting.push(Reverse((now_ns() + AFTER_REFUSAL_NS, index)));
            }
            Ended::Answered | Ended::Refused if self.clients[index].is_closed => {
                self.lose(index, "the server closed the connection".into());
            }
            Ended::Answered | Ended::Refused => {
                self.idle.push(index);
                self.start_closed(index);
            }
        }
    }

    /// A connection is gone and is made anew. What it was doing has failed, unless it had not begun.
    fn lose(&mut self, index: usize, why: String) {
        let busy = !self.clients[index].is_idle();
        let again_ns = self.clients[index].due_again_ns();
        if self.clients[index].disconnect(self.poll.registry()) {
            self.connecting -= 1;
        }
        match again_ns {
            Some(intended_ns) if self.plan.arrivals != Arrivals::Closed => self.backlog.push_front(intended_ns),
            Some(_) => {}
            None if busy && self.tally.open => self.tally.fail(why),
            None => {}
        }
        self.idle.retain(|i| *i != index);
        self.unconnected.push_back(index);
    }
}
