//! A server process that lives as long as its test.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::binary::{Build, server_binary};
use super::client::{Client, Request};
use super::{Scratch, wait_for};

/// The key of every server that a test does not give another one.
pub const KEY: &str = "open-sesame-4711";
/// The pool that every server has.
pub const POOL: &str = "default";

/// What a server is started with: its settings by name, and fault points.
#[derive(Clone, Debug)]
pub struct Settings {
    values: BTreeMap<String, String>,
    environment: BTreeMap<String, String>,
    fault_points: Option<String>,
}

impl Default for Settings {
    /// A free port of the loopback, one key, and no more threads than a test needs.
    fn default() -> Self {
        let settings = Self { values: BTreeMap::new(), environment: BTreeMap::new(), fault_points: None };
        // The same on every machine, also on one with a device.
        settings
            .with("engine", "cpu")
            .with("listen", "127.0.0.1:0")
            .with("api_keys", KEY)
            .with("threads", 1)
            .with("reactors", 1)
    }
}

impl Settings {
    pub fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.set(key, value);
        self
    }

    /// Sets a variable of the process's environment that is no setting.
    pub fn with_environment(mut self, name: &str, value: impl ToString) -> Self {
        self.environment.insert(name.to_owned(), value.to_string());
        self
    }

    /// Sets a setting by its name in the configuration file (`queue_capacity`); an empty value takes it away.
    pub fn set(&mut self, key: &str, value: impl ToString) {
        match value.to_string() {
            value if value.is_empty() => self.values.remove(key),
            value => self.values.insert(key.to_owned(), value),
        };
    }

    pub fn value(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str)
    }

    /// Adds a fault point (`engine-step=sleep(50)`); the server is then the build that has them.
    pub fn add_fault(&mut self, fault: &str) {
        let before = self.fault_points.take().map(|faults| faults + ";").unwrap_or_default();
        self.fault_points = Some(before + fault);
    }

    /// The command that starts a server with these settings and with nothing of our own environment's settings.
    ///
    /// # Errors
    ///
    /// When the binary does not build.
    pub fn command(&self) -> Result<Command> {
        let build = if self.fault_points.is_some() { Build::Faults } else { Build::Plain };
        let mut command = Command::new(server_binary(build)?);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ORCH_") {
                command.env_remove(name);
            }
        }
        command.env_remove("FAILPOINTS");
        command.envs(self.values.iter().map(|(key, value)| (format!("ORCH_{}", key.to_uppercase()), value)));
        command.envs(&self.environment);
        command.envs(self.fault_points.iter().map(|faults| ("FAILPOINTS", faults)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(command)
    }
}

/// A running server; dropping it kills the process, also when a test panics.
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: SocketAddr,
    key: Option<String>,
    stdout: Captured,
    stderr: Captured,
    /// Where it runs, so that no configuration file of ours is found.
    _home: Scratch,
}

impl Server {
    /// Starts a server and waits until its pool is ready.
    ///
    /// # Errors
    ///
    /// When it exits or does not become ready; the message shows what it said.
    pub fn start(settings: &Settings) -> Result<Self> {
        let mut server = Self::launch(settings)?;
        let health = Request::get(&format!("/v1/pools/{POOL}/health"));
        let client = server.client();
        let ready = wait_for("the pool to be ready", || {
            if let Some(status) = server.child.try_wait()? {
                bail!("it exited at once: {status}");
            }
            let answer = client.send(&health)?;
            Ok((answer.status == 200 && answer.json()?["ready"] == true).then_some(()))
        });
        ready.with_context(|| server.said())?;
        Ok(server)
    }

    fn spawn(settings: &Settings) -> Result<Self> {
        let home = Scratch::new()?;
        let mut child = settings.command()?.current_dir(home.path()).spawn().context("the server does not start")?;
        let stdout = Captured::read(child.stdout.take().expect("stdout is piped"));
        let stderr = Captured::read(child.stderr.take().expect("stderr is piped"));
        let key = settings.value("api_keys").and_then(|keys| keys.split(',').next()).map(str::to_owned);
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Ok(Self { child, address: nowhere, key, stdout, stderr, _home: home })
    }

    /// Starts a server and waits until it has said where it listens.
    fn launch(settings: &Settings) -> Result<Self> {
        let mut server = Self::spawn(settings)?;
        let address = wait_for("the address on stdout", || {
            if let Some(address) = first_address(&server.stdout.text()) {
                return Ok(Some(address));
            }
            match server.child.try_wait()? {
                Some(status) => bail!("it exited before it listened: {status}"),
                None => Ok(None),
            }
        });
        server.address = address.with_context(|| server.said())?;
        if server.key.is_none() {
            server.key = Some(wait_for("the key on stdout", || Ok(server.printed_key()))?);
        }
        Ok(server)
    }

    /// Starts a server that is expected to stop by itself; tells how it stopped and what it said.
    ///
    /// # Errors
    ///
    /// When it is still running after [`super::PATIENCE`].
    pub fn run_to_exit(settings: &Settings) -> Result<(ExitStatus, String)> {
        let mut server = Self::spawn(settings)?;
        let status = server.wait_for_exit()?;
        wait_for("its last words", || Ok(server.has_said_all().then_some(())))?;
        Ok((status, server.said()))
    }

    /// A client with the server's first key.
    pub fn client(&self) -> Client {
        Client::new(self.address, self.key.as_deref())
    }

    pub fn client_with(&self, key: Option<&str>) -> Client {
        Client::new(self.address, key)
    }

    /// A client of the gateway, with the server's first key.
    ///
    /// # Errors
    ///
    /// When the server does not say that it has one.
    pub fn gateway(&self) -> Result<Client> {
        let said = || {
            let text = self.stdout.text();
            let line = text.lines().find(|line| line.trim_start().starts_with("gateway"))?;
            first_address(&format!("{line}\n"))
        };
        let address = wait_for("the gateway's address on stdout", || Ok(said()))?;
        Ok(Client::new(address, self.key.as_deref()))
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The key that a server without a configured one makes and prints: the word that looks most like one.
    pub fn printed_key(&self) -> Option<String> {
        let text = self.stdout.text();
        let line = text.lines().find(|line| line.to_lowercase().contains("key"))?;
        let words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_');
        words.max_by_key(|word| word.len()).map(str::to_owned)
    }

    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Everything on stderr, which is where the log goes.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// The log's lines; a line that is not JSON is left out.
    pub fn logs(&self) -> Vec<Value> {
        self.stderr().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Asks the process to stop, as an operator does (SIGTERM).
    ///
    /// # Errors
    ///
    /// When there is no such process any more.
    pub fn ask_to_stop(&self) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?).context("a process has a number")?;
        Ok(kill_process(pid, Signal::TERM)?)
    }

    /// Waits for the process to exit.
    ///
    /// # Errors
    ///
    /// When it still runs after [`super::PATIENCE`].
    pub fn wait_for_exit(&mut self) -> Result<ExitStatus> {
        wait_for("the server to exit", || Ok(self.child.try_wait()?))
    }

    /// Whether both of its outputs are closed.
    fn has_said_all(&self) -> bool {
        [&self.stdout, &self.stderr].iter().all(|output| output.is_closed.load(Ordering::Acquire))
    }

    fn said(&self) -> String {
        format!("the server said:\n{}{}", self.stdout.text(), self.stderr.text())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have exited by itself; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process has written so far.
#[derive(Clone, Debug, Default)]
struct Captured {
    text: Arc<Mutex<String>>,
    is_closed: Arc<AtomicBool>,
}

impl Captured {
    fn read(pipe: impl Read + Send + 'static) -> Self {
        let captured = Self::default();
        let theirs = captured.clone();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(pipe);
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line).is_ok_and(|len| len > 0) {
                let text = String::from_utf8_lossy(&line);
                theirs.text.lock().unwrap_or_else(|broken| broken.into_inner()).push_str(&text);
                line.clear();
            }
            theirs.is_closed.store(true, Ordering::Release);
        });
        captured
    }

    fn text(&self) -> String {
        self.text.lock().unwrap_or_else(|broken| broken.into_inner()).clone()
    }
}

/// The first `http://HOST:PORT` in a text whose line is complete.
fn first_address(text: &str) -> Option<SocketAddr> {
    let complete = &text[..=text.rfind('\n')?];
    let rest = complete.split_once("http://")?.1;
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !".:[]".contains(c)).unwrap_or(rest.len());
    rest[..end].to_socket_addrs().ok()?.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_found_once_its_line_is_complete() {
        assert_eq!(first_address("model wren\nlistening on http://127.0.0.1:40"), None);
        let told = first_address("model wren\nlistening on http://127.0.0.1:4017\n");
        assert_eq!(told, Some(SocketAddr::from(([127, 0, 0, 1], 4017))));
        let with_path = first_address("curl http://127.0.0.1:4017/v1/tasks\n");
        assert_eq!(with_path, told);
    }

    #[test]
    fn an_empty_value_takes_a_setting_away() {
        let settings = Settings::default().with("api_keys", "");
        assert_eq!(settings.value("api_keys"), None);
    }
}
