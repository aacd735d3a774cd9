//! `chat`: a conversation in the terminal, with a server that is there or with one that is started for it.
//!
//! Ctrl-C while an answer comes cancels its task and not the program. One that comes a moment later, at the prompt, must not cost
//! the conversation either: it takes a second one to end the program there.

use std::io::{BufRead, IsTerminal, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Instant;

use clap::{Arg, ArgMatches, Command, value_parser};
use serde_json::{Value, json};
use signal_hook::consts::SIGINT;
use signal_hook::iterator::Signals;

use super::remote::{Events, Remote, refusal, with_server};
use super::{Failure, model};
use crate::app::bootstrap::Server;
use crate::config::{Config, IsaChoice};

const HELP: &str = "/stats  what the last answer took, and what is left of the budgets
/history  the conversation so far
/clear  begin anew
/quit  (or Ctrl-D) end; Ctrl-C cancels an answer that is coming, and twice at the prompt it ends";

pub fn command() -> Command {
    let command = Command::new("chat").about("Talk to a model in the terminal").after_help(HELP);
    let command = with_server(command, "server to talk to; without it one is started for this chat");
    let number = |name: &'static str, help: &'static str| Arg::new(name).long(name).value_name("X").help(help);
    model::with_threads(model::with_model(command))
        .arg(Arg::new("system").long("system").value_name("TEXT").help("what the model is told before everything else"))
        .arg(
            number("max-tokens", "tokens of one answer at most")
                .value_parser(value_parser!(u32).range(1..))
                .default_value("400"),
        )
        .arg(number("temperature", "0: always the likeliest token").value_parser(value_parser!(f32)).default_value("0"))
        .arg(number("seed", "the same seed draws the same").value_parser(value_parser!(u64)).default_value("0"))
        .arg(
            number("deadline-ms", "time for one answer")
                .value_parser(value_parser!(u64).range(1..))
                .default_value("600000"),
        )
}

pub fn run(arguments: &ArgMatches) -> Result<(), Failure> {
    let (remote, own) = match Remote::from_arguments(arguments)? {
        Some(remote) => (remote, None),
        None => start(arguments).map(|(remote, server)| (remote, Some(server)))?,
    };
    let result = Chat::new(&remote, arguments).and_then(|mut chat| chat.talk());
    if let Some(server) = own {
        server.stop();
    }
    result
}

/// A server of this chat's own, on a port of the loopback and with a key that nobody else knows.
fn start(arguments: &ArgMatches) -> Result<(Remote, Server), Failure> {
    let key = uuid::Uuid::new_v4().simple().to_string();
    let config = Config {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        api_keys: vec![key.clone()],
        model: arguments.get_one::<std::path::PathBuf>("model").cloned(),
        threads: usize::from(*arguments.get_one::<u16>("threads").expect("it has a default")),
        isa: IsaChoice(model::isa(arguments)),
        log_level: "error".into(),
        drain_deadline_ms: 0,
        ..Config::default()
    };
    let server = Server::start(config).map_err(Failure::Failed)?;
    let remote = Remote::new(&format!("http://{}", server.address), &key)?;
    Ok((remote, server))
}

/// What one answer took.
#[derive(Default)]
struct Stats {
    queue_position: u64,
    predicted_start_ms: u64,
    first_token_ms: Option<u128>,
    total_ms: u128,
    tokens: u64,
    decode_ms: u64,
    metrics: Value,
    transcript: Value,
}

/// Says at the first Ctrl-C at the prompt that the next one ends the program.
fn warn_once(at_prompt: Arc<AtomicBool>, ends: Arc<AtomicBool>) -> Result<(), Failure> {
    let mut signals = Signals::new([SIGINT]).map_err(Failure::failed)?;
    let body = move || {
        for _ in signals.forever() {
            if at_prompt.load(SeqCst) && !ends.swap(true, SeqCst) {
                let mut out = std::io::stdout().lock();
                let _ = out.write_all(b"\n(Ctrl-C again, Ctrl-D or /quit ends)\n> ").and_then(|()| out.flush());
            }
        }
    };
    std::thread::Builder::new().name("interrupts".into()).spawn(body).map_err(Failure::failed)?;
    Ok(())
}

struct Chat<'a> {
    remote: &'a Remote,
    model_ref: String,
    engine: String,
    ctx: u64,
    session: String,
    system: Option<String>,
    turns: Vec<(&'static str, String)>,
    max_tokens: u32,
    temperature: f32,
    seed: u64,
    deadline_ms: u64,
    last: Option<Stats>,
    /// Ctrl-C was pressed while an answer came.
    interrupted: Arc<AtomicBool>,
    /// No answer comes.
    at_prompt: Arc<AtomicBool>,
    /// Ctrl-C does what it does by default.
    ends: Arc<AtomicBool>,
    is_terminal: bool,
}

impl<'a> Chat<'a> {
    fn new(remote: &'a Remote, arguments: &ArgMatches) -> Result<Chat<'a>, Failure> {
        let capabilities = remote.json("GET", "/v1/capabilities", None)?;
        let engine = &capabilities["engines"][0];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let serves = || Failure::Failed("the server serves no model now: look at its pool's health".into());
        let is_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let flag = |set: bool| Arc::new(AtomicBool::new(set));
        // Who sends it to a script means the script.
        let (interrupted, at_prompt, ends) = (flag(false), flag(true), flag(!is_terminal));
        signal_hook::flag::register_conditional_default(SIGINT, ends.clone()).map_err(Failure::failed)?;
        signal_hook::flag::register(SIGINT, interrupted.clone()).map_err(Failure::failed)?;
        if is_terminal {
            warn_once(at_prompt.clone(), ends.clone())?;
        }
        Ok(Chat {
            remote,
            model_ref: text(&engine["models"][0]["model_ref"]).ok_or_else(serves)?,
            engine: text(&engine["engine"]).ok_or_else(serves)?,
            ctx: engine["ctx_max"].as_u64().ok_or_else(serves)?,
            session: uuid::Uuid::new_v4().to_string(),
            system: arguments.get_one::<String>("system").cloned(),
            turns: Vec::new(),
            max_tokens: *arguments.get_one("max-tokens").expect("it has a default"),
            temperature: *arguments.get_one("temperature").expect("it has a default"),
            seed: *arguments.get_one("seed").expect("it has a default"),
            deadline_ms: *arguments.get_one("deadline-ms").expect("it has a default"),
            last: None,
            interrupted,
            at_prompt,
            ends,
            is_terminal,
        })
    }

    fn talk(&mut self) -> Result<(), Failure> {
        if self.is_terminal {
            self.print(&format!("{}: /help says what there is besides talking\n", self.model_ref))?;
        }
        let mut lines = std::io::stdin().lock().lines();
        loop {
            self.ends.store(!self.is_terminal, SeqCst);
            if self.is_terminal {
                self.print("> ")?;
            }
            let Some(line) = lines.next().transpose().map_err(|e| Failure::Failed(format!("standard input: {e}")))?
            else {
                return if self.is_terminal { self.print("\n") } else { Ok(()) };
            };
            match line.trim() {
                "" => {}
                "/quit" | "/exit" => return Ok(()),
                "/help" => self.print(&format!("{HELP}\n"))?,
                "/clear" => self.turns.clear(),
                "/history" => self.print(&self.history())?,
                "/stats" => self.print(&self.stats())?,
                other if other.starts_with('/') => self.print(&format!("{other} is no command: /help\n"))?,
                said => self.answer(said)?,
            }
        }
    }

    fn print(&self, text: &str) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::output)
    }

    /// One turn. What the server refuses is said, and the conversation goes on.
    fn answer(&mut self, said: &str) -> Result<(), Failure> {
        self.turns.push(("user", said.to_owned()));
        self.interrupted.store(false, SeqCst);
        self.ends.store(false, SeqCst);
        self.at_prompt.store(false, SeqCst);
        let answered = self.ask();
        self.at_prompt.store(true, SeqCst);
        match answered {
            Ok(Some(text)) => {
                self.turns.push(("assistant", text));
                self.print("\n")
            }
            Ok(None) => {
                self.turns.pop();
                self.print("\n(canceled)\n")
            }
            Err(Failure::Failed(message)) => {
                self.turns.pop();
                // A script has nobody to try again.
                if self.is_terminal { self.print(&format!("{message}\n")) } else { Err(Failure::Failed(message)) }
            }
            Err(other) => Err(other),
        }
    }

    fn task(&self, id: &str) -> Value {
        let system = self.system.iter().map(|text| ("system", text));
        let turns = system.chain(self.turns.iter().map(|(role, text)| (*role, text)));
        let messages: Vec<Value> = turns.map(|(role, text)| json!({"role": role, "content": text})).collect();
        json!({
            "task_id": id, "session_id": self.session, "workload": "completion", "model_ref": self.model_ref,
            "engine": self.engine, "ctx": self.ctx, "priority": "interactive", "max_tokens": self.max_tokens,
            "deadline_ms": self.deadline_ms, "messages": messages, "temperature": self.temperature, "seed": self.seed,
            "on_disconnect": "cancel",
        })
    }

    /// Asks, and writes the answer as it comes; none when it was canceled.
    fn ask(&mut self) -> Result<Option<String>, Failure> {
        let id = uuid::Uuid::new_v4().to_string();
        let began = Instant::now();
        let mut answer = self.remote.send("POST", "/v1/tasks", "text/event-stream", Some(&self.task(&id)))?;
        if answer.status != 200 {
            let text = answer.text().map_err(Failure::failed)?;
            return Err(refusal(answer.status, &serde_json::from_str(&text).unwrap_or_default()));
        }
        let (mut events, mut stats, mut text, mut asked_to_stop) =
            (Events::default(), Stats::default(), String::new(), false);
        loop {
            let interrupted = || self.interrupted.load(SeqCst) && !asked_to_stop;
            let piece = answer.piece(&interrupted).map_err(Failure::failed)?;
            let Some(piece) = piece else { return Err(Failure::Failed("the stream ended without an end".into())) };
            for (name, data) in events.push(&piece) {
                match name.as_str() {
                    "started" => {
                        stats.queue_position = data["queue_position"].as_u64().unwrap_or(0);
                        stats.predicted_start_ms = data["predicted_start_ms"].as_u64().unwrap_or(0);
                    }
                    "token" => {
                        stats.first_token_ms.get_or_insert(began.elapsed().as_millis());
                        let said = data["t"].as_str().unwrap_or_default();
                        text.push_str(said);
                        self.print(said)?;
                    }
                    "metrics" => stats.metrics = data,
                    "error" => return Err(refusal(answer.status, &data)),
                    "end" => {
                        stats.total_ms = began.elapsed().as_millis();
                        stats.tokens = data["tokens_out"].as_u64().unwrap_or(0);
                        stats.decode_ms = data["decode_ms"].as_u64().unwrap_or(0);
                        stats.transcript = data["artifact_id"].clone();
                        self.last = Some(stats);
                        return Ok((data["finish_reason"] != "canceled").then_some(text));
                    }
                    _ => {}
                }
            }
            if self.interrupted.load(SeqCst) && !asked_to_stop {
                asked_to_stop = true;
                self.remote.json("POST", &format!("/v1/tasks/{id}/cancel"), None)?;
            }
        }
    }

    fn history(&self) -> String {
        let line = |(role, text): &(&str, String)| format!("{role}: {text}\n");
        if self.turns.is_empty() { "nothing was said yet\n".into() } else { self.turns.iter().map(line).collect() }
    }

    fn stats(&self) -> String {
        let Some(s) = &self.last else { return "nothing was answered yet\n".into() };
        let rate = if s.decode_ms == 0 { 0.0 } else { s.tokens as f64 * 1000.0 / s.decode_ms as f64 };
        let first = s.first_token_ms.map_or_else(|| "never".to_owned(), |ms| format!("{ms} ms"));
        let left = &s.metrics["tokens_budget_remaining"];
        let warmth = s.metrics["kv_warmth"].as_f64().unwrap_or(0.0) * 100.0;
        format!(
            "queue position {}, start predicted in {} ms\nfirst token {first}, {} tokens in {} ms, {rate:.0} tokens/s\n\
             {warmth:.0}% of the prompt was in the cache, {left} tokens of the budget are left\ntranscript {}\n",
            s.queue_position,
            s.predicted_start_ms,
            s.tokens,
            s.total_ms,
            s.transcript.as_str().unwrap_or("not kept")
        )
    }
}
