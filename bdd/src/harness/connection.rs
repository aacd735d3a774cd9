//! One HTTP/1.1 connection that hides nothing: raw bytes go out as they are, pieces of a body come in as they arrive.
//!
//! Tests need what a client library takes away: malformed requests, two of them in one write, a closed half, the moment
//! a piece arrived, an answer to HEAD, an interim 100.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::PATIENCE;
use super::client::Answer;

/// Headers of an answer that a test can still read when the server sends too many.
const HEADERS_MAX: usize = 64;
const READ_LEN: usize = 16 * 1024;

/// How the end of a body is found.
#[derive(Clone, Copy, Debug)]
pub enum Framing {
    /// There is nothing more.
    Done,
    Length(usize),
    /// Chunked; so many bytes of the current chunk are still to come.
    Chunked(usize),
    UntilClose,
}

/// One TCP connection. Answers are read in order, so requests may be sent ahead.
#[derive(Debug)]
pub struct Connection {
    socket: TcpStream,
    /// Read and not yet understood.
    pending: Vec<u8>,
}

impl Connection {
    /// # Errors
    ///
    /// When nobody listens at `address`.
    pub fn open(address: SocketAddr) -> Result<Self> {
        let socket = TcpStream::connect_timeout(&address, PATIENCE).context("nobody listens there")?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket, pending: Vec::new() })
    }

    /// A handle with which another thread can end this connection.
    ///
    /// # Errors
    ///
    /// When the system has no more file descriptors.
    pub fn handle(&self) -> Result<TcpStream> {
        Ok(self.socket.try_clone()?)
    }

    /// # Errors
    ///
    /// When the server has closed the connection.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.socket.write_all(bytes).context("the server takes no more bytes")
    }

    /// Says that no more will be sent; answers can still be read.
    ///
    /// # Errors
    ///
    /// When the connection is gone.
    pub fn finish_writing(&mut self) -> Result<()> {
        Ok(self.socket.shutdown(Shutdown::Write)?)
    }

    /// Reads the next whole answer; `method` is that of the request it belongs to.
    ///
    /// # Errors
    ///
    /// When the connection ends first, or what comes is not HTTP.
    pub fn receive(&mut self, method: &str) -> Result<Answer> {
        let (head, framing) = self.receive_head(method)?;
        self.receive_body(head, framing)
    }

    /// Whether the server closes the connection within `patience` without another byte.
    pub fn is_closed_within(&mut self, patience: Duration) -> bool {
        if !self.pending.is_empty() || self.socket.set_read_timeout(Some(patience)).is_err() {
            return false;
        }
        let mut byte = [0];
        match self.socket.read(&mut byte) {
            Ok(len) => len == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    /// Reads an interim answer and gives its status.
    ///
    /// # Errors
    ///
    /// When the connection ends first, or the final answer comes at once.
    pub fn receive_interim(&mut self) -> Result<u16> {
        loop {
            if let Some((head, len)) = parse_head(&self.pending)? {
                ensure!(head.status < 200, "a final answer, {}, where an interim one was awaited", head.status);
                self.pending.drain(..len);
                return Ok(head.status);
            }
            ensure!(self.fill()?, "the connection ended before an interim answer");
        }
    }

    /// Reads status and headers of the next answer, past interim ones.
    ///
    /// # Errors
    ///
    /// When the connection ends first, or what comes is not HTTP.
    pub fn receive_head(&mut self, method: &str) -> Result<(Answer, Framing)> {
        let mut interim = Vec::new();
        loop {
            let Some((mut head, len)) = parse_head(&self.pending)? else {
                ensure!(self.fill()?, "the connection ended before the answer's head: {:?}", self.pending_text());
                continue;
            };
            self.pending.drain(..len);
            if head.status < 200 {
                interim.push(head.status);
                continue;
            }
            head.interim = interim;
            let framing = framing_of(&head, method)?;
            return Ok((head, framing));
        }
    }

    /// The next bytes of the body, as soon as there are any; `None` at its end.
    ///
    /// # Errors
    ///
    /// When the connection ends before the body does.
    pub fn next_piece(&mut self, framing: &mut Framing) -> Result<Option<Vec<u8>>> {
        match *framing {
            Framing::Done => Ok(None),
            Framing::UntilClose => {
                if self.pending.is_empty() && !self.fill()? {
                    *framing = Framing::Done;
                    return Ok(None);
                }
                Ok(Some(std::mem::take(&mut self.pending)))
            }
            Framing::Length(left) => {
                let piece = self.take_some(left)?;
                *framing = if piece.len() == left { Framing::Done } else { Framing::Length(left - piece.len()) };
                Ok(Some(piece))
            }
            Framing::Chunked(0) => self.next_chunk(framing),
            Framing::Chunked(left) => {
                let piece = self.take_some(left)?;
                *framing = Framing::Chunked(left - piece.len());
                if piece.len() == left {
                    ensure!(self.take_line()?.is_empty(), "a chunk is longer than it said");
                }
                Ok(Some(piece))
            }
        }
    }

    /// Reads the rest of an answer whose head has been read.
    ///
    /// # Errors
    ///
    /// When the connection ends before the body does.
    pub fn receive_body(&mut self, mut answer: Answer, mut framing: Framing) -> Result<Answer> {
        while let Some(piece) = self.next_piece(&mut framing)? {
            answer.body.extend_from_slice(&piece);
        }
        Ok(answer)
    }

    fn next_chunk(&mut self, framing: &mut Framing) -> Result<Option<Vec<u8>>> {
        let line = self.take_line()?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let len = usize::from_str_radix(size, 16).with_context(|| format!("not a chunk size: {line:?}"))?;
        if len > 0 {
            *framing = Framing::Chunked(len);
            return self.next_piece(framing);
        }
        while !self.take_line()?.is_empty() {}
        *framing = Framing::Done;
        Ok(None)
    }

    fn take_some(&mut self, len_max: usize) -> Result<Vec<u8>> {
        if self.pending.is_empty() {
            ensure!(self.fill()?, "the connection ended {len_max} bytes before the body did");
        }
        let len = len_max.min(self.pending.len());
        Ok(self.pending.drain(..len).collect())
    }

    fn take_line(&mut self) -> Result<String> {
        loop {
            if let Some(end) = self.pending.windows(2).position(|pair| pair == b"\r\n") {
                let line = String::from_utf8_lossy(&self.pending[..end]).into_owned();
                self.pending.drain(..end + 2);
                return Ok(line);
            }
            ensure!(self.fill()?, "the connection ended in the middle of a chunked body");
        }
    }

    /// Waits for bytes; false when the server has closed.
    fn fill(&mut self) -> Result<bool> {
        let mut buffer = [0; READ_LEN];
        let len = match self.socket.read(&mut buffer) {
            Ok(len) => len,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => 0,
            Err(error) => bail!("nothing came: {error}"),
        };
        self.pending.extend_from_slice(&buffer[..len]);
        Ok(len > 0)
    }

    fn pending_text(&self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

fn parse_head(bytes: &[u8]) -> Result<Option<(Answer, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(len) = response.parse(bytes).context("not an HTTP answer")? else {
        return Ok(None);
    };
    let mut answer = Answer { status: response.code.context("an answer without status")?, ..Answer::default() };
    for header in response.headers.iter() {
        answer.headers.push((header.name.to_owned(), String::from_utf8_lossy(header.value).into_owned()));
    }
    Ok(Some((answer, len)))
}

fn framing_of(head: &Answer, method: &str) -> Result<Framing> {
    if method == "HEAD" || head.status == 204 || head.status == 304 {
        return Ok(Framing::Done);
    }
    if head.header("Transfer-Encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        return Ok(Framing::Chunked(0));
    }
    match head.header("Content-Length") {
        Some("0") => Ok(Framing::Done),
        Some(length) => Ok(Framing::Length(length.parse().context("not a Content-Length")?)),
        None => Ok(Framing::UntilClose),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread::spawn;

    /// A server that writes these pieces, each in a write of its own, and closes.
    fn connect_to(pieces: &'static [&'static str]) -> Connection {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        spawn(move || {
            let (mut socket, _) = listener.accept().expect("somebody connects");
            socket.set_nodelay(true).expect("it is a TCP socket");
            pieces.iter().for_each(|piece| socket.write_all(piece.as_bytes()).expect("somebody reads"));
        });
        Connection::open(address).expect("somebody listens")
    }

    fn check(method: &str, pieces: &'static [&'static str], wanted: &[(u16, &str)]) {
        let mut connection = connect_to(pieces);
        for (status, body) in wanted {
            let answer = connection.receive(method).expect("it is an answer");
            assert_eq!((answer.status, answer.text().as_str()), (*status, *body));
        }
        assert!(connection.is_closed_within(PATIENCE));
    }

    #[test]
    fn bodies_end_where_their_framing_says() {
        const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        check(
            "GET",
            &["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabHTTP/1.1 204 Gone\r\n\r\n"],
            &[(200, "ab"), (204, "")],
        );
        check("GET", &["HTTP/1.1 200 OK\r\n\r\nall the rest"], &[(200, "all the rest")]);
        check("HEAD", &["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"], &[(200, "")]);
        check("GET", &[CHUNKED, "3\r\nab", "c\r\n1;x=y\r\nd\r\n0\r\nLate: yes\r\n\r\n"], &[(200, "abcd")]);
        check(
            "POST",
            &["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 201 Made\r\nContent-Length: 0\r\n\r\n"],
            &[(201, "")],
        );
    }

    #[test]
    fn a_body_that_breaks_off_is_an_error() {
        let mut connection = connect_to(&["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"]);
        assert!(connection.receive("GET").is_err());
    }
}
