//! A server as the commands talk to it: plain HTTP/1.1 to one address, an answer at a time.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use clap::{Arg, ArgMatches, Command};
use serde_json::Value;

use super::Failure;

/// How often a wait for the server looks whether it has been interrupted.
const LOOK_UP_EVERY: Duration = Duration::from_millis(100);

/// Longest line of a head, of a chunk's length, or of an event.
const LINE_LEN_MAX: usize = 4 * 1024 * 1024;

/// Adds `--url` and `--key`.
pub fn with_server(command: Command, url_help: &'static str) -> Command {
    let url = Arg::new("url").long("url").value_name("URL").help(url_help);
    let key = Arg::new("key").long("key").value_name("KEY").help("its API key; also ORCH_API_KEY").requires("url");
    command.arg(url).arg(key)
}

/// Where a server is, and the key for it.
#[derive(Clone)]
pub struct Remote {
    authority: String,
    key: String,
}

/// The head of an answer, and its body to be read.
pub struct Answer {
    pub status: u16,
    reader: BufReader<TcpStream>,
    body: Body,
}

enum Body {
    Length(usize),
    /// Bytes left of the chunk that is being read; none between two.
    Chunked(Option<usize>),
    Done,
}

impl Remote {
    pub fn new(url: &str, key: &str) -> Result<Remote, Failure> {
        let wrong = || Failure::Misused(format!("--url {url:?}: give http://HOST:PORT; https is not spoken here"));
        let authority = url.trim_end_matches('/').strip_prefix("http://").ok_or_else(wrong)?;
        if authority.is_empty() || authority.contains('/') {
            return Err(wrong());
        }
        let port =
            if authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) { "" } else { ":80" };
        Ok(Remote { authority: format!("{authority}{port}"), key: key.to_owned() })
    }

    /// The server that `--url` names; none without it.
    pub fn from_arguments(arguments: &ArgMatches) -> Result<Option<Remote>, Failure> {
        let Some(url) = arguments.get_one::<String>("url") else { return Ok(None) };
        let key = arguments.get_one::<String>("key").cloned().or_else(|| std::env::var("ORCH_API_KEY").ok());
        let key =
            key.ok_or_else(|| Failure::Misused("the server wants a key: give --key, or set ORCH_API_KEY".into()))?;
        Remote::new(url, &key).map(Some)
    }

    /// Sends a request and reads the answer's head.
    pub fn send(&self, method: &str, path: &str, accept: &str, body: Option<&Value>) -> Result<Answer, Failure> {
        let failed = |e: std::io::Error| Failure::Failed(format!("http://{}: {e}", self.authority));
        let mut stream = TcpStream::connect(&self.authority).map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        stream.set_read_timeout(Some(LOOK_UP_EVERY)).map_err(failed)?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nX-API-Key: {}\r\nAccept: {accept}\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n",
            self.authority,
            self.key,
            body.len()
        );
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).map_err(failed)?;
        Answer::read(BufReader::new(stream)).map_err(failed)
    }

    /// Sends a request and reads a JSON answer; one that says no is a failure with its message.
    pub fn json(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let mut answer = self.send(method, path, "application/json", body)?;
        let (status, text) = (answer.status, answer.text().map_err(|e| Failure::Failed(e.to_string()))?);
        if status == 204 {
            return Ok(Value::Null);
        }
        let value: Value = serde_json::from_str(&text)
            .map_err(|e| Failure::Failed(format!("{method} {path}: {status} without JSON ({e})")))?;
        match status {
            200..=299 => Ok(value),
            _ => Err(refusal(status, &value)),
        }
    }
}

/// What a server said that refused.
pub fn refusal(status: u16, body: &Value) -> Failure {
    let message = body["message"].as_str().unwrap_or("no reason given");
    Failure::Failed(format!("the server refused ({status}): {message}"))
}

impl Answer {
    fn read(mut reader: BufReader<TcpStream>) -> std::io::Result<Answer> {
        let bad = |what: &str| std::io::Error::other(format!("the answer is not HTTP: {what}"));
        let status_line = patient_line(&mut reader)?;
        let status = status_line.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| bad(&status_line))?;
        let mut body = Body::Done;
        loop {
            let line = patient_line(&mut reader)?;
            if line.is_empty() {
                return Ok(Answer { status, reader, body });
            }
            let (name, value) = line.split_once(':').ok_or_else(|| bad(&line))?;
            if name.eq_ignore_ascii_case("content-length") {
                body = Body::Length(value.trim().parse().map_err(|_| bad(value))?);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                body = Body::Chunked(None);
            }
        }
    }

    /// The whole body.
    pub fn text(&mut self) -> std::io::Result<String> {
        let mut all = Vec::new();
        while let Some(piece) = self.piece(&|| false)? {
            all.extend_from_slice(&piece);
        }
        Ok(String::from_utf8_lossy(&all).into_owned())
    }

    /// The next bytes of the body; none at its end, and an empty piece when `interrupted` says so while it waits.
    pub fn piece(&mut self, interrupted: &dyn Fn() -> bool) -> std::io::Result<Option<Vec<u8>>> {
        let wanted = match self.body {
            Body::Done => return Ok(None),
            Body::Length(left) | Body::Chunked(Some(left)) => left,
            Body::Chunked(None) => {
                if !wait_for_bytes(&mut self.reader, interrupted)? {
                    return Ok(Some(Vec::new()));
                }
                let line = patient_line(&mut self.reader)?;
                let len = usize::from_str_radix(line.trim(), 16)
                    .map_err(|_| std::io::Error::other(format!("{line:?} is not a chunk's length")))?;
                if len == 0 {
                    self.body = Body::Done;
                    return Ok(None);
                }
                self.body = Body::Chunked(Some(len));
                len
            }
        };
        if wanted == 0 {
            self.body = Body::Done;
            return Ok(None);
        }
        if !wait_for_bytes(&mut self.reader, interrupted)? {
            return Ok(Some(Vec::new()));
        }
        let mut piece = self.reader.buffer().to_vec();
        piece.truncate(wanted);
        self.reader.consume(piece.len());
        let left = wanted - piece.len();
        self.body = match self.body {
            Body::Chunked(_) if left == 0 => {
                patient_line(&mut self.reader)?;
                Body::Chunked(None)
            }
            Body::Chunked(_) => Body::Chunked(Some(left)),
            _ => Body::Length(left),
        };
        Ok(Some(piece))
    }
}

/// Waits until something can be read; false when interrupted first.
fn wait_for_bytes(reader: &mut BufReader<TcpStream>, interrupted: &dyn Fn() -> bool) -> std::io::Result<bool> {
    loop {
        match reader.fill_buf() {
            Ok([]) => return Err(std::io::Error::other("the server closed the connection in the middle of an answer")),
            Ok(_) => return Ok(true),
            Err(e) if is_only_late(&e) && interrupted() => return Ok(false),
            Err(e) if is_only_late(&e) => {}
            Err(e) => return Err(e),
        }
    }
}

fn is_only_late(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}

/// A line without its end, however long it takes.
fn patient_line(reader: &mut BufReader<TcpStream>) -> std::io::Result<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        wait_for_bytes(reader, &|| false)?;
        reader
            .by_ref()
            .take(LINE_LEN_MAX as u64)
            .read_until(b'\n', &mut line)
            .or_else(|e| if is_only_late(&e) { Ok(0) } else { Err(e) })?;
        if line.len() >= LINE_LEN_MAX {
            return Err(std::io::Error::other("a line of the answer does not end"));
        }
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

/// Finds events in pieces of a stream.
#[derive(Default)]
pub struct Events(String);

impl Events {
    /// Takes a piece and gives the events that it completes: name and data.
    pub fn push(&mut self, piece: &[u8]) -> Vec<(String, Value)> {
        self.0.push_str(&String::from_utf8_lossy(piece));
        let mut found = Vec::new();
        while let Some(end) = self.0.find("\n\n") {
            let block: String = self.0.drain(..end + 2).collect();
            let field = |name: &str| block.lines().find_map(|l| l.strip_prefix(name)).map(str::trim_start);
            if let (Some(name), Some(data)) = (field("event:"), field("data:")) {
                found.push((name.to_owned(), serde_json::from_str(data).unwrap_or(Value::Null)));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_host_and_a_port() {
        for (url, authority) in [
            ("http://127.0.0.1:8080", Some("127.0.0.1:8080")),
            ("http://example.org/", Some("example.org:80")),
            ("https://example.org", None),
            ("example.org", None),
            ("http://example.org/v1", None),
        ] {
            assert_eq!(Remote::new(url, "k").ok().map(|r| r.authority).as_deref(), authority, "{url}");
        }
    }

    #[test]
    fn events_come_out_of_any_pieces() {
        let text = ": hi\n\nid: 0\nevent: started\ndata: {\"a\":1}\n\nid: 1\nevent: end\ndata: {}\n\n";
        for size in 1..text.len() {
            let mut events = Events::default();
            let found: Vec<_> = text.as_bytes().chunks(size).flat_map(|piece| events.push(piece)).collect();
            assert_eq!(found.len(), 2, "in pieces of {size}");
            assert_eq!((found[0].0.as_str(), &found[0].1["a"]), ("started", &Value::from(1)));
        }
    }
}
