//! Requests, answers, and a client that sends the one and gives the other.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use serde_json::Value;

use super::connection::Connection;
use super::sse::{EventStream, Opened};

/// A request that is well formed unless the caller makes it otherwise.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn new(method: &str, path: &str) -> Self {
        Self { method: method.to_owned(), path: path.to_owned(), headers: Vec::new(), body: Vec::new() }
    }

    pub fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    pub fn post(path: &str, body: &Value) -> Self {
        Self::new("POST", path).with("Content-Type", "application/json").with_body(body.to_string())
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn with_body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// The request's bytes. `Host` and `Content-Length` are added unless they are among the headers.
    pub fn encode(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        if !self.has("Host") {
            head.push_str("Host: localhost\r\n");
        }
        if (!self.body.is_empty() || self.method == "POST") && !self.has("Content-Length") {
            head.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }

    fn has(&self, name: &str) -> bool {
        self.headers.iter().any(|(have, _)| have.eq_ignore_ascii_case(name))
    }
}

/// A whole answer.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Statuses of interim answers (100) that came before.
    pub interim: Vec<u16>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// # Errors
    ///
    /// When the body is not JSON; the message shows it.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("{} {:?} has no JSON: {:?}", self.status, self.headers, self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Speaks to one server, with a key or without.
#[derive(Clone, Debug)]
pub struct Client {
    address: SocketAddr,
    key: Option<String>,
}

impl Client {
    pub fn new(address: SocketAddr, key: Option<&str>) -> Self {
        Self { address, key: key.map(str::to_owned) }
    }

    /// The same client without its key.
    pub fn without_key(&self) -> Self {
        Self::new(self.address, None)
    }

    /// # Errors
    ///
    /// When nobody listens.
    pub fn connect(&self) -> Result<Connection> {
        Connection::open(self.address)
    }

    /// Sends the request on a connection of its own and reads the whole answer.
    ///
    /// # Errors
    ///
    /// When the connection fails or the answer is not HTTP. An answer that says no is an `Ok`.
    pub fn send(&self, request: &Request) -> Result<Answer> {
        let mut connection = self.connect()?;
        connection.write(&self.keyed(request).encode())?;
        connection.receive(&request.method)
    }

    /// Sends the request and gives the event stream that answers it, or the plain answer that came instead.
    ///
    /// # Errors
    ///
    /// As [`Client::send`].
    pub fn open(&self, request: &Request) -> Result<Opened> {
        let mut connection = self.connect()?;
        connection.write(&self.keyed(request).encode())?;
        let (head, framing) = connection.receive_head(&request.method)?;
        let is_stream = head.header("Content-Type").is_some_and(|value| value.starts_with("text/event-stream"));
        if is_stream {
            return Ok(Opened::Stream(EventStream::read(head, connection, framing)?));
        }
        Ok(Opened::Answer(connection.receive_body(head, framing)?))
    }

    /// The request with this client's key, unless it brings one.
    pub fn keyed(&self, request: &Request) -> Request {
        match &self.key {
            Some(key) if !request.has("X-API-Key") => request.clone().with("X-API-Key", key),
            _ => request.clone(),
        }
    }
}
