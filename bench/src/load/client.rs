//! One connection of the load generator: a request at a time, and what its answer says.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use mio::Registry;
use mio::net::TcpStream;

use super::http::{Part, ResponseReader};
use super::sse::{Api, Seen, StreamCheck};
use super::{Measure, Plan, Random, Tally};
use crate::pace::now_ns;

/// What a read has brought.
pub(super) enum Progress {
    Goes,
    Ended(Ended),
}

pub(super) enum Ended {
    Answered,
    /// The server said to come back.
    Refused,
}

struct Task {
    intended_ns: u64,
    status: u16,
    check: Option<StreamCheck>,
    first_ns: u64,
    last_ns: u64,
    /// When each token came, if the schedule of the engine is known.
    arrivals: Vec<u64>,
}

pub(super) struct Client {
    socket: Option<TcpStream>,
    is_connecting: bool,
    session: String,
    out: Vec<u8>,
    sent: usize,
    reader: ResponseReader,
    task: Option<Task>,
    /// Answers that have come over this connection.
    answers: u64,
    /// The server has closed it after the latest of them.
    pub(super) is_closed: bool,
    arrivals_spare: Vec<u64>,
}

fn uuid(high: u64, low: u64) -> String {
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xfff,
        low >> 52,
        low & 0xffff_ffff_ffff
    )
}

impl Client {
    pub(super) fn new(plan: &Plan, random: &mut Random) -> Client {
        let arrivals = if plan.grid.is_some() { plan.max_tokens as usize } else { 0 };
        Client {
            socket: None,
            is_connecting: false,
            session: uuid(random.draw(), random.draw()),
            out: Vec::with_capacity(1024),
            sent: 0,
            reader: ResponseReader::default(),
            task: None,
            answers: 0,
            is_closed: false,
            arrivals_spare: Vec::with_capacity(arrivals),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.task.is_none()
    }

    pub(super) fn is_streaming(&self) -> bool {
        self.task.as_ref().is_some_and(|task| task.status == 200)
    }

    pub(super) fn connect(&mut self, address: SocketAddr) -> Result<&mut TcpStream, String> {
        let socket = TcpStream::connect(address).map_err(|e| format!("connecting to {address}: {e}"))?;
        self.is_connecting = true;
        (self.answers, self.is_closed) = (0, false);
        self.reader = ResponseReader::default();
        Ok(self.socket.insert(socket))
    }

    /// True once, when the connection has come up.
    pub(super) fn finish_connecting(&mut self) -> bool {
        let Some(socket) = self.socket.as_ref().filter(|_| self.is_connecting) else { return false };
        if socket.peer_addr().is_err() {
            return false;
        }
        let _ = socket.set_nodelay(true);
        self.is_connecting = false;
        true
    }

    /// Lets go of the socket; true when it was still connecting.
    pub(super) fn disconnect(&mut self, registry: &Registry) -> bool {
        if let Some(mut socket) = self.socket.take() {
            let _ = registry.deregister(&mut socket);
        }
        self.task = None;
        (self.sent, self.out) = (0, Vec::new());
        std::mem::take(&mut self.is_connecting)
    }

    /// Writes the next request into the buffer. `id_high` and `id_low` make the task's id.
    pub(super) fn start(&mut self, intended_ns: u64, id_high: u64, id_low: u64, plan: &Plan) {
        let Plan { max_tokens, prompt, model, key, address, .. } = plan;
        let (path, accept, key_header, body) = match plan.api {
            Api::Ours => {
                let (task, session) = (uuid(id_high, id_low), &self.session);
                // A grammar says where an answer ends, so a task has one of the two.
                let ending = match &plan.response_format {
                    None => r#""ignore_end":true"#.to_owned(),
                    Some(format) => format!(r#""response_format":{format}"#),
                };
                let body = format!(
                    r#"{{"task_id":"{task}","session_id":"{session}","workload":"completion","model_ref":"{model}","engine":"cpu","ctx":2048,"priority":"interactive","max_tokens":{max_tokens},"deadline_ms":600000,"temperature":0.7,"top_p":0.9,"seed":7,{ending},"prompt":"{prompt}"}}"#
                );
                let accept = if plan.measure == Measure::Stream { "text/event-stream" } else { "application/json" };
                ("/v1/tasks", accept, format!("X-API-Key: {key}"), body)
            }
            Api::OpenAi => {
                let stream = plan.measure == Measure::Stream;
                let options = if stream { r#","stream_options":{"include_usage":true}"# } else { "" };
                let body = format!(
                    r#"{{"model":"{model}","prompt":"{prompt}","max_tokens":{max_tokens},"temperature":0.7,"top_p":0.9,"seed":7,"ignore_eos":true,"cache_prompt":false,"stream":{stream}{options}}}"#
                );
                ("/v1/completions", "text/event-stream", format!("Authorization: Bearer {key}"), body)
            }
        };
        self.out.clear();
        self.sent = 0;
        let len = body.len();
        write!(
            self.out,
            "POST {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: orchestratord-bench\r\nAccept: {accept}\r\n\
             Content-Type: application/json\r\n{key_header}\r\nContent-Length: {len}\r\n\r\n{body}"
        )
        .expect("a buffer takes everything");
        let mut arrivals = std::mem::take(&mut self.arrivals_spare);
        arrivals.clear();
        self.task = Some(Task { intended_ns, status: 0, check: None, first_ns: 0, last_ns: 0, arrivals });
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        let Some(socket) = &mut self.socket else { return Ok(()) };
        while self.sent < self.out.len() {
            match socket.write(&self.out[self.sent..]) {
                Ok(len) => self.sent += len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads what has come.
    ///
    /// # Errors
    ///
    /// When the connection is broken or the answer is not what it should be.
    pub(super) fn read(&mut self, scratch: &mut [u8], tally: &mut Tally) -> Result<Progress, String> {
        loop {
            let Some(socket) = &mut self.socket else { return Ok(Progress::Goes) };
            let len = match socket.read(scratch) {
                Ok(0) => return Err("the server closed the connection".into()),
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Progress::Goes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(format!("reading: {error}")),
            };
            let now = now_ns();
            let Some(task) = &mut self.task else { return Err("an answer that nobody asked for".into()) };
            let mut ended = None;
            self.reader.feed(&scratch[..len], |part| {
                match part {
                    Part::Head { status } => task.status = status,
                    Part::Body(bytes) => task.body(bytes, now, tally)?,
                    Part::End => ended = Some(task.end(now, tally)?),
                }
                Ok(())
            })?;
            if let Some(ended) = ended {
                // The server may have closed after it, and what tells so may have come with these bytes.
                self.is_closed = matches!(socket.peek(&mut [0]), Ok(0));
                return Ok(Progress::Ended(ended));
            }
            if len < scratch.len() {
                return Ok(Progress::Goes);
            }
        }
    }

    /// How long after the schedule's points the tokens came. The schedule is a grid, so that the task's earliest
    /// token (in relation to its number) tells which points were its own.
    pub(super) fn record_schedule(&mut self, grid: Option<Duration>, tally: &mut Tally) {
        let (Some(grid), Some(task)) = (grid, &self.task) else { return };
        let interval = grid.as_nanos() as u64;
        let due_at = |index: usize| index as u64 * interval;
        let Some(earliest) = task.arrivals.iter().enumerate().map(|(i, at)| at - due_at(i).min(*at)).min() else {
            return;
        };
        let first_due = earliest / interval * interval;
        let (is_open, opened_ns) = (tally.open, tally.opened_ns);
        for (index, at) in task.arrivals.iter().enumerate().filter(|(_, at)| is_open && **at >= opened_ns) {
            tally.push_to_read.record(at.saturating_sub(first_due + due_at(index)));
        }
    }

    /// When the request was due that has no byte of an answer yet, on a connection that has answered before: a server may
    /// close one between two answers, and then every HTTP client asks again over another.
    pub(super) fn due_again_ns(&self) -> Option<u64> {
        self.task.as_ref().filter(|task| task.status == 0 && self.answers > 0).map(|task| task.intended_ns)
    }

    /// The task is over.
    pub(super) fn rest(&mut self) {
        self.answers += 1;
        if let Some(task) = self.task.take() {
            self.arrivals_spare = task.arrivals;
        }
    }
}

impl Task {
    fn body(&mut self, bytes: &[u8], now: u64, tally: &mut Tally) -> Result<(), String> {
        if self.status != 200 {
            return Ok(());
        }
        let Some(mut check) = self.check.take().or_else(|| Some(StreamCheck::new(tally.api))) else { return Ok(()) };
        let mut failed = false;
        let fed = check.feed(bytes, |seen| match seen {
            Seen::Token => self.token(now, tally),
            Seen::Error => failed = true,
            Seen::End { .. } | Seen::Other => {}
        });
        self.check = Some(check);
        if failed && tally.open {
            tally.fail("the stream ended with an error".into());
        }
        fed
    }

    fn token(&mut self, now: u64, tally: &mut Tally) {
        if self.first_ns == 0 {
            self.first_ns = now;
        }
        if tally.open {
            tally.tokens += 1;
            match self.last_ns {
                0 => tally.first_token.record(now.saturating_sub(self.intended_ns)),
                last => tally.between_tokens.record(now - last),
            }
        }
        self.last_ns = now;
        if self.arrivals.len() < self.arrivals.capacity() {
            self.arrivals.push(now);
        }
    }

    fn end(&mut self, now: u64, tally: &mut Tally) -> Result<Ended, String> {
        let waited_ns = now.saturating_sub(self.intended_ns);
        match self.status {
            200 | 202 => {}
            429 | 503 | 529 => {
                if tally.open {
                    tally.refused += 1;
                    tally.refusal.record(waited_ns);
                }
                return Ok(Ended::Refused);
            }
            status => return Err(format!("status {status}")),
        }
        let tokens = match &self.check {
            Some(check) if !check.is_done() => return Err("a stream without its last event".into()),
            Some(check) => check.tokens(),
            None => 0,
        };
        if tally.open {
            tally.requests += 1;
            tally.end_to_end.record(waited_ns);
            if tokens > 1 {
                tally.per_token.record((self.last_ns - self.first_ns) / u64::from(tokens - 1));
            }
        }
        Ok(Ended::Answered)
    }
}
