//! The floor: the same bytes over the same sockets, by a bare io_uring loop that reads no request and checks
//! nothing. What a real server costs above this is its own; what is below belongs to the kernel.
//!
//! The shape is that of the server it is held against: one thread that owns the ring and the sockets, one that
//! steps on a schedule and writes an eventfd once per step.

use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use io_uring::{IoUring, cqueue, opcode, squeue, types};

#[path = "../../../src/pace.rs"]
mod pace;

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Measure {
    Post,
    Stream,
}

#[derive(Parser)]
struct Options {
    #[arg(long, default_value = "127.0.0.1:8092")]
    listen: std::net::SocketAddr,
    #[arg(long, default_value_t = 20_000)]
    interval_us: u64,
    /// What every request is answered with: nothing of it is read.
    #[arg(long, value_enum, default_value = "stream")]
    measure: Measure,
    #[arg(long, default_value_t = 64)]
    max_tokens: u32,
}

/// Bytes of one request: the load generator's come in one piece.
const REQUEST_LEN: usize = 4096;
const RING_ENTRIES: u32 = 4096;

/// What a completion is of; the rest of its number is the connection.
#[derive(Clone, Copy)]
enum Op {
    Accept = 1,
    Wake,
    Receive,
    Send,
}

fn tag(op: Op, connection: usize) -> u64 {
    (op as u64) << 32 | connection as u64
}

struct Connection {
    descriptor: i32,
    request: Box<[u8; REQUEST_LEN]>,
    /// Bytes of `streams` that are sent, and that may be; none without a stream.
    sent: usize,
    limit: usize,
    first_step: u32,
    is_streaming: bool,
    /// Where the bytes under way lie.
    sending: (*const u8, usize),
    in_flight: bool,
}

/// What streams are made of: the head with the first event, then everything after it, with the place at which
/// each token's bytes end.
struct Script {
    answer: Vec<u8>,
    head: Vec<u8>,
    events: Vec<u8>,
    ends: Vec<usize>,
}

fn chunk(out: &mut Vec<u8>, id: u32, event: &str, data: &str) {
    let text = format!("id: {id}\nevent: {event}\ndata: {data}\n\n");
    out.extend_from_slice(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes());
}

impl Script {
    fn new(max_tokens: u32) -> Script {
        let correlation = "7c1ae8d0-3c3c-4b1e-9f0e-2a6f4e2b8a01";
        let budgets = "X-Budget-Tokens-Remaining: 1000000000\r\nX-Budget-Time-Remaining-Ms: 86400000\r\n\
            X-Budget-Cost-Remaining: 1000000\r\n";
        let body =
            format!("{{\"task_id\":\"{correlation}\",\"queue_position\":0,\"predicted_start_ms\":0,\"backoff_ms\":0}}");
        let date = "Date: Tue, 24 Nov 2026 12:00:00 GMT\r\n";
        let answer = format!(
            "HTTP/1.1 202 Accepted\r\n{date}Content-Type: application/json\r\n{budgets}\
             Location: /v1/tasks/{correlation}/stream\r\nX-Correlation-Id: {correlation}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut head = format!(
            "HTTP/1.1 200 OK\r\n{date}Content-Type: text/event-stream\r\nCache-Control: no-cache\r\n\
             X-Accel-Buffering: no\r\n{budgets}X-Correlation-Id: {correlation}\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        .into_bytes();
        chunk(&mut head, 0, "started", "{\"queue_position\":0,\"predicted_start_ms\":0}");
        let (mut events, mut ends, mut id) = (Vec::new(), vec![0], 1);
        for index in 0..max_tokens {
            chunk(&mut events, id, "token", &format!("{{\"t\":\" the\",\"i\":{index}}}"));
            id += 1;
            if index == 0 {
                let numbers = "{\"queue_depth\":0,\"on_time_probability\":1.0,\"kv_warmth\":0.0,\
                    \"tokens_budget_remaining\":999999999,\"time_budget_remaining_ms\":86399999,\
                    \"cost_budget_remaining\":999999.999}";
                chunk(&mut events, id, "metrics", numbers);
                id += 1;
            }
            ends.push(events.len());
        }
        let digest = "0".repeat(64);
        let end = format!(
            "{{\"artifact_id\":\"sha256:{digest}\",\"decode_ms\":1000,\"finish_reason\":\"length\",\"tokens_out\":{max_tokens}}}"
        );
        chunk(&mut events, id, "end", &end);
        events.extend_from_slice(b"0\r\n\r\n");
        *ends.last_mut().expect("it has one more than there are tokens") = events.len();
        Script { answer: answer.into_bytes(), head, events, ends }
    }
}

static STEP: AtomicU32 = AtomicU32::new(0);
static NOTIFIED: AtomicBool = AtomicBool::new(false);

struct Floor {
    ring: IoUring,
    connections: Vec<Connection>,
    vacant: Vec<usize>,
    script: Script,
    measure: Measure,
    eventfd: i32,
    count: u64,
}

impl Floor {
    fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: every buffer an entry points to lives in `self` or in the script, neither of which moves or goes
        // while the ring runs.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.ring.submit().expect("the ring takes entries");
        }
    }

    fn accept(&mut self, listener: i32) {
        self.push(opcode::AcceptMulti::new(types::Fd(listener)).build().user_data(tag(Op::Accept, 0)));
    }

    fn wait_for_step(&mut self) {
        let count = (&raw mut self.count).cast();
        self.push(opcode::Read::new(types::Fd(self.eventfd), count, 8).build().user_data(tag(Op::Wake, 0)));
    }

    fn take_in(&mut self, descriptor: i32) {
        let one: libc::c_int = 1;
        let len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the descriptor is open and the value outlives the call.
        unsafe { libc::setsockopt(descriptor, libc::IPPROTO_TCP, libc::TCP_NODELAY, (&raw const one).cast(), len) };
        let connection = Connection {
            descriptor,
            request: Box::new([0; REQUEST_LEN]),
            sent: 0,
            limit: 0,
            first_step: 0,
            is_streaming: false,
            sending: (std::ptr::null(), 0),
            in_flight: false,
        };
        let index = match self.vacant.pop() {
            Some(index) => {
                self.connections[index] = connection;
                index
            }
            None => {
                self.connections.push(connection);
                self.connections.len() - 1
            }
        };
        self.receive(index);
    }

    fn receive(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let request = connection.request.as_mut_ptr();
        let descriptor = types::Fd(connection.descriptor);
        let entry = opcode::Recv::new(descriptor, request, REQUEST_LEN as u32).build();
        self.push(entry.user_data(tag(Op::Receive, index)));
    }

    fn send(&mut self, index: usize, bytes: *const u8, len: usize) {
        let connection = &mut self.connections[index];
        (connection.sending, connection.in_flight) = ((bytes, len), true);
        let entry = opcode::Send::new(types::Fd(connection.descriptor), bytes, len as u32).build();
        self.push(entry.user_data(tag(Op::Send, index)));
    }

    fn received(&mut self, index: usize, result: i32) {
        if result <= 0 {
            let connection = &mut self.connections[index];
            connection.is_streaming = false;
            // SAFETY: the descriptor is this connection's own.
            unsafe { libc::close(connection.descriptor) };
            self.vacant.push(index);
            return;
        }
        let (bytes, len) = match self.measure {
            Measure::Post => (self.script.answer.as_ptr(), self.script.answer.len()),
            Measure::Stream => {
                let connection = &mut self.connections[index];
                (connection.sent, connection.limit, connection.is_streaming) = (0, 0, true);
                connection.first_step = STEP.load(SeqCst);
                (self.script.head.as_ptr(), self.script.head.len())
            }
        };
        self.send(index, bytes, len);
        self.receive(index);
    }

    fn sent(&mut self, index: usize, result: i32) {
        let connection = &mut self.connections[index];
        connection.in_flight = false;
        let (bytes, len) = connection.sending;
        match result {
            ..=0 => connection.is_streaming = false,
            _ if (result as usize) < len => {
                // SAFETY: fewer bytes were taken than lie there.
                let rest = unsafe { bytes.add(result as usize) };
                self.send(index, rest, len - result as usize);
            }
            _ => self.go_on(index),
        }
    }

    /// Sends what the steps so far have brought, in one piece.
    fn go_on(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if !connection.is_streaming || connection.in_flight {
            return;
        }
        let steps = STEP.load(SeqCst).wrapping_sub(connection.first_step) as usize;
        let tokens = steps.min(self.script.ends.len() - 1);
        let limit = self.script.ends[tokens];
        let (sent, whole) = (connection.sent, self.script.events.len());
        if limit > sent {
            connection.sent = limit;
            connection.is_streaming = limit < whole;
            // SAFETY: `sent` is under the length of the script.
            let bytes = unsafe { self.script.events.as_ptr().add(sent) };
            self.send(index, bytes, limit - sent);
        }
    }

    fn stepped(&mut self) {
        self.wait_for_step();
        NOTIFIED.store(false, SeqCst);
        for index in 0..self.connections.len() {
            self.go_on(index);
        }
    }

    fn run(&mut self, listener: i32) -> ! {
        self.accept(listener);
        self.wait_for_step();
        let mut done: Vec<(u64, i32, u32)> = Vec::with_capacity(RING_ENTRIES as usize * 2);
        loop {
            self.ring.submit_and_wait(1).expect("the ring goes on");
            done.extend(self.ring.completion().map(|c| (c.user_data(), c.result(), c.flags())));
            for (tag, result, flags) in done.drain(..) {
                let index = tag as u32 as usize;
                match tag >> 32 {
                    op if op == Op::Accept as u64 => {
                        if result >= 0 {
                            self.take_in(result);
                        }
                        if !cqueue::more(flags) {
                            self.accept(listener);
                        }
                    }
                    op if op == Op::Wake as u64 => self.stepped(),
                    op if op == Op::Receive as u64 => self.received(index, result),
                    _ => self.sent(index, result),
                }
            }
        }
    }
}

fn main() {
    let options = Options::parse();
    let listener = TcpListener::bind(options.listen).expect("the address is free");
    // SAFETY: a plain system call on a listening socket: a longer backlog.
    unsafe { libc::listen(listener.as_raw_fd(), 4096) };
    // SAFETY: a plain system call.
    let eventfd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    assert!(eventfd >= 0, "there is a descriptor");
    let interval = Duration::from_micros(options.interval_us.max(1));
    let engine = std::thread::Builder::new().name("engine".into());
    let steps = move || {
        let mut grid = pace::Grid::new(interval);
        loop {
            grid.wait();
            STEP.fetch_add(1, SeqCst);
            if !NOTIFIED.swap(true, SeqCst) {
                // SAFETY: the descriptor is open and eight bytes are read.
                unsafe { libc::write(eventfd, (&raw const ONE).cast(), 8) };
            }
        }
    };
    if options.measure == Measure::Stream {
        engine.spawn(steps).expect("a thread can be started");
    }
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_cqsize(RING_ENTRIES * 4)
        .build(RING_ENTRIES)
        .expect("the kernel has io_uring");
    let script = Script::new(options.max_tokens);
    println!("listening on {}", options.listen);
    let connections = Vec::with_capacity(16_384);
    let mut floor =
        Floor { ring, connections, vacant: Vec::new(), script, measure: options.measure, eventfd, count: 0 };
    floor.run(listener.as_raw_fd());
}

static ONE: u64 = 1;
