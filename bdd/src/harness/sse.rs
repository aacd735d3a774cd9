//! Server-sent events as they arrive.

use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::client::Answer;
use super::connection::{Connection, Framing};

/// One event with the moment its last byte was read.
#[derive(Clone, Debug)]
pub struct Event {
    pub id: Option<String>,
    pub name: String,
    pub data: String,
    pub arrived: Instant,
}

impl Event {
    /// # Errors
    ///
    /// When the data is not JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.data).with_context(|| format!("{} event with {:?}", self.name, self.data))
    }
}

/// What asking for a stream gave.
#[derive(Debug)]
pub enum Opened {
    Stream(EventStream),
    Answer(Answer),
}

/// Finds events in bytes that come in pieces of any size.
#[derive(Debug, Default)]
pub struct EventParser {
    line: Vec<u8>,
    id: Option<String>,
    name: Option<String>,
    data: Vec<String>,
    /// Comment lines so far; they keep silent connections alive.
    pub comment_count: usize,
}

impl EventParser {
    /// Takes the next bytes and gives the events they complete.
    pub fn push(&mut self, bytes: &[u8], now: Instant) -> Vec<Event> {
        let mut events = Vec::new();
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).trim_end_matches('\r').to_owned();
            if !line.is_empty() {
                self.field(&line);
            } else if let Some(event) = self.complete(now) {
                events.push(event);
            }
        }
        events
    }

    fn field(&mut self, line: &str) {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "" => self.comment_count += 1,
            "id" => self.id = Some(value.to_owned()),
            "event" => self.name = Some(value.to_owned()),
            "data" => self.data.push(value.to_owned()),
            _ => {}
        }
    }

    fn complete(&mut self, arrived: Instant) -> Option<Event> {
        let (id, name, data) = (self.id.take(), self.name.take(), std::mem::take(&mut self.data));
        if data.is_empty() {
            return None;
        }
        let name = name.unwrap_or_else(|| "message".to_owned());
        Some(Event { id, name, data: data.join("\n"), arrived })
    }
}

#[derive(Debug, Default)]
struct Log {
    events: Vec<Event>,
    bytes: Vec<u8>,
    comment_count: usize,
    /// The body came to its proper end.
    is_complete: bool,
    /// The connection ended first.
    failure: Option<String>,
}

/// A stream that a thread of its own reads, so that a test can do something else meanwhile.
///
/// Dropping it closes the connection.
#[derive(Debug)]
pub struct EventStream {
    /// Status and headers.
    pub head: Answer,
    shared: Arc<(Mutex<Log>, Condvar)>,
    socket: TcpStream,
}

impl EventStream {
    pub(super) fn read(head: Answer, mut connection: Connection, mut framing: Framing) -> Result<Self> {
        let socket = connection.handle()?;
        let shared = Arc::new((Mutex::new(Log::default()), Condvar::new()));
        let theirs = Arc::clone(&shared);
        std::thread::spawn(move || {
            let mut parser = EventParser::default();
            loop {
                let piece = connection.next_piece(&mut framing);
                let mut log = lock(&theirs.0);
                match piece {
                    Ok(Some(bytes)) => {
                        log.events.extend(parser.push(&bytes, Instant::now()));
                        log.bytes.extend_from_slice(&bytes);
                        log.comment_count = parser.comment_count;
                    }
                    Ok(None) => log.is_complete = true,
                    Err(error) => log.failure = Some(format!("{error:#}")),
                }
                theirs.1.notify_all();
                if log.is_complete || log.failure.is_some() {
                    return;
                }
            }
        });
        Ok(Self { head, shared, socket })
    }

    /// The events so far.
    pub fn events(&self) -> Vec<Event> {
        lock(&self.shared.0).events.clone()
    }

    /// The bytes so far, comments included.
    pub fn bytes(&self) -> Vec<u8> {
        lock(&self.shared.0).bytes.clone()
    }

    pub fn comment_count(&self) -> usize {
        lock(&self.shared.0).comment_count
    }

    /// Waits until the server has finished the stream properly.
    ///
    /// # Errors
    ///
    /// When it has not within `patience`, or the connection broke.
    pub fn wait_for_end(&self, patience: Duration) -> Result<()> {
        let log = self.wait(patience, |log| log.is_complete);
        ensure!(log.failure.is_none(), "the stream broke off: {}", log.failure.as_deref().unwrap_or_default());
        ensure!(log.is_complete, "the stream is still open after {patience:?}; so far: {}", names(&log.events));
        Ok(())
    }

    /// Waits until `holds` is true of the events so far.
    ///
    /// # Errors
    ///
    /// When it is not within `patience`, or the stream ended before it was.
    pub fn wait_until(&self, patience: Duration, holds: impl Fn(&[Event]) -> bool) -> Result<()> {
        let log = self.wait(patience, |log| holds(&log.events));
        ensure!(holds(&log.events), "it did not come in {patience:?}; the stream has: {}", names(&log.events));
        Ok(())
    }

    /// Waits for at least `count` comment lines.
    ///
    /// # Errors
    ///
    /// When they do not come within `patience`.
    pub fn wait_for_comments(&self, patience: Duration, count: usize) -> Result<()> {
        let log = self.wait(patience, |log| log.comment_count >= count);
        ensure!(log.comment_count >= count, "{} comment lines in {patience:?}", log.comment_count);
        Ok(())
    }

    /// Closes the connection as a reader does who goes away.
    pub fn close(&self) {
        // It may be closed already, by the other side.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    fn wait(&self, patience: Duration, holds: impl Fn(&Log) -> bool) -> MutexGuard<'_, Log> {
        let go_on = |log: &mut Log| !holds(log) && !log.is_complete && log.failure.is_none();
        let waited = self.shared.1.wait_timeout_while(lock(&self.shared.0), patience, go_on);
        waited.unwrap_or_else(|broken| broken.into_inner()).0
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.close();
    }
}

fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(|broken| broken.into_inner())
}

/// The events' names in a line, for messages.
pub fn names(events: &[Event]) -> String {
    let mut line = String::new();
    for group in events.chunk_by(|a, b| a.name == b.name) {
        let times = if group.len() == 1 { String::new() } else { format!("×{}", group.len()) };
        line.push_str(&format!("{}{times} ", group[0].name));
    }
    line.push_str(&events.last().map(|event| format!("(last: {})", event.data)).unwrap_or_default());
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = ": hello\nid: 0\nevent: started\ndata: {\"a\":1}\n\n: beat\n\nid: 1\r\nevent: token\r\ndata: x\r\ndata: y\r\n\r\n";

    fn check(pieces: &[&[u8]]) {
        let mut parser = EventParser::default();
        let events: Vec<Event> = pieces.iter().flat_map(|piece| parser.push(piece, Instant::now())).collect();
        let told: Vec<_> = events.iter().map(|e| (e.id.as_deref(), e.name.as_str(), e.data.as_str())).collect();
        assert_eq!(told, [(Some("0"), "started", "{\"a\":1}"), (Some("1"), "token", "x\ny")]);
        assert_eq!(parser.comment_count, 2);
    }

    #[test]
    fn events_are_the_same_wherever_the_bytes_are_cut() {
        for cut in 0..=STREAM.len() {
            let (left, right) = STREAM.as_bytes().split_at(cut);
            check(&[left, right]);
        }
        check(&STREAM.as_bytes().chunks(1).collect::<Vec<_>>());
    }
}
