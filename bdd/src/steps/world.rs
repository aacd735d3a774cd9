//! What a scenario knows: its server, what was sent, and what came back.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result};
use serde_json::Value;
use uuid::Uuid;

use crate::harness::{Answer, Client, Connection, EventStream, Opened, Request, Scratch, Server, Settings};

/// Log lines that are shown of a server whose scenario failed.
const LOG_LINES_SHOWN: usize = 25;

/// Which key the scenario's requests carry.
#[derive(Clone, Debug, Default)]
pub enum Key {
    #[default]
    Right,
    None,
    Other(String),
}

/// The state of one scenario. Its server starts when it is first needed, with the settings made until then.
#[derive(cucumber::World)]
#[world(init = Self::new)]
pub struct TestWorld {
    pub settings: Settings,
    pub folder: Scratch,
    pub key: Key,
    server: Option<Server>,
    /// The latest answer.
    latest: Option<Answer>,
    /// The bodies of the tasks, by the scenario's names for them.
    pub tasks: BTreeMap<String, Value>,
    /// The answers to their requests, first to last.
    pub admissions: BTreeMap<String, Vec<Answer>>,
    pub streams: BTreeMap<String, EventStream>,
    pub sessions: BTreeMap<String, String>,
    /// Answers to stored artifacts, first to last.
    pub artifacts: Vec<Answer>,
    /// Connections that a step works with byte by byte, or keeps open.
    pub connections: Vec<Connection>,
    pub answers: Vec<Answer>,
    pub notes: BTreeMap<String, Value>,
}

impl TestWorld {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            settings: Settings::default(),
            folder: Scratch::new()?,
            key: Key::default(),
            server: None,
            latest: None,
            tasks: BTreeMap::new(),
            admissions: BTreeMap::new(),
            streams: BTreeMap::new(),
            sessions: BTreeMap::new(),
            artifacts: Vec::new(),
            connections: Vec::new(),
            answers: Vec::new(),
            notes: BTreeMap::new(),
        })
    }

    /// The server, started if it is not.
    pub fn server(&mut self) -> Result<&mut Server> {
        if self.server.is_none() {
            self.server = Some(Server::start(&self.settings).map_err(in_a_line)?);
        }
        Ok(self.server.as_mut().expect("it was just started"))
    }

    /// Kills the server as a power cut would; the next request starts another.
    pub fn stop_server(&mut self) {
        self.streams.clear();
        self.server = None;
    }

    pub fn client(&mut self) -> Result<Client> {
        let key = self.key.clone();
        let server = self.server()?;
        Ok(match key {
            Key::Right => server.client(),
            Key::None => server.client_with(None),
            Key::Other(key) => server.client_with(Some(&key)),
        })
    }

    /// Sends the request; its answer is the latest from now on.
    pub fn send(&mut self, request: &Request) -> Result<&Answer> {
        let answer = self.client()?.send(request).map_err(in_a_line)?;
        Ok(self.latest.insert(answer))
    }

    /// Opens the stream that answers the request and keeps it under `name`; its head, or the plain answer that came
    /// instead, is the latest answer.
    pub fn open(&mut self, name: &str, request: &Request) -> Result<()> {
        match self.client()?.open(request).map_err(in_a_line)? {
            Opened::Stream(stream) => {
                self.latest = Some(stream.head.clone());
                self.streams.insert(name.to_owned(), stream);
            }
            Opened::Answer(answer) => self.latest = Some(answer),
        }
        Ok(())
    }

    pub fn set_answer(&mut self, answer: Answer) {
        self.latest = Some(answer);
    }

    pub fn answer(&self) -> Result<&Answer> {
        self.latest.as_ref().context("nothing has been answered yet")
    }

    pub fn stream(&self, name: &str) -> Result<&EventStream> {
        self.streams.get(name).with_context(|| match &self.latest {
            Some(answer) => format!("no stream of {name} is open; the latest answer is {}", shown(answer)),
            None => format!("no stream of {name} is open"),
        })
    }

    pub fn task(&self, name: &str) -> Result<&Value> {
        self.tasks.get(name).with_context(|| format!("no task {name} was sent"))
    }

    pub fn task_id(&self, name: &str) -> Result<&str> {
        self.task(name)?["task_id"].as_str().with_context(|| format!("the task {name} has no id"))
    }

    /// The id of the session that the scenario calls by this name.
    pub fn session_id(&mut self, name: &str) -> String {
        self.sessions.entry(name.to_owned()).or_insert_with(|| Uuid::new_v4().to_string()).clone()
    }

    pub fn note(&self, name: &str) -> Result<&Value> {
        self.notes.get(name).with_context(|| format!("nothing was noted as {name}"))
    }
}

impl fmt::Debug for TestWorld {
    /// What helps whoever reads about a failed scenario: the latest answer and the end of the server's log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "settings: {:?}", self.settings)?;
        writeln!(f, "latest answer: {}", self.latest.as_ref().map(shown).unwrap_or_default())?;
        let log = self.server.as_ref().map(Server::stderr).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        for line in &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..] {
            writeln!(f, "log: {line}")?;
        }
        Ok(())
    }
}

/// An error with all its causes; of a failed step only the outermost is shown.
fn in_a_line(error: anyhow::Error) -> anyhow::Error {
    anyhow::anyhow!("{error:#}")
}

/// An answer in a line, for messages.
pub fn shown(answer: &Answer) -> String {
    format!("{} {:?} {}", answer.status, answer.headers, answer.text())
}
