//! Reactors with a small service, real sockets, and both drivers.

mod exhaustion;
mod limits;
mod requests;
mod stopping;
mod streams;
mod views;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::*;
use crate::infra::http::sse;
use crate::infra::stream::{StreamWriter, TaskStream};

/// What the service was asked to stream, for the test to write into.
type Streams = Arc<Mutex<Vec<(String, Arc<TaskStream>, StreamWriter)>>>;

#[derive(Clone)]
struct Echo {
    hub: WakeHub,
    streams: Streams,
    /// Views that are alive.
    views: Arc<AtomicUsize>,
}

impl Service for Echo {
    fn on_head(&self, head: &RequestHead<'_>) -> Result<BodyLimit, Response> {
        match head.path() {
            "/refused" => Err(Response::new(401).body(b"refused".to_vec())),
            _ => Ok(BodyLimit(100_000)),
        }
    }

    async fn call(&self, head: &RequestHead<'_>, body: &mut [u8], wake: &Wake) -> Reply {
        if let Some(name) = head.path().strip_prefix("/stream/") {
            let reader = self.open(name).attach(wake.address(), None).expect("few readers");
            return Reply::Stream { head: Response::new(200).header("X-Stream", "yes"), reader };
        }
        for (prefix, whole) in [("/view/", false), ("/whole/", true)] {
            if let Some(logs) = head.path().strip_prefix(prefix) {
                return views::names(self, logs, whole, wake);
            }
        }
        match head.path() {
            "/later" => {
                let (sender, receiver) = oneshot(&self.hub, wake.address());
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(5));
                    sender.send(b"from another thread".to_vec());
                });
                Reply::Full(Response::new(200).body(receiver.recv(wake).await.unwrap()))
            }
            "/dropped" => {
                let (sender, receiver) = oneshot::<()>(&self.hub, wake.address());
                std::thread::spawn(move || drop(sender));
                let body = if receiver.recv(wake).await.is_none() { b"nobody" } else { b"answer" };
                Reply::Full(Response::new(200).body(body.to_vec()))
            }
            "/waits" => {
                let held = wake.wait_until(Duration::from_millis(40), || false).await;
                Reply::Full(Response::new(200).body(held.to_string().into_bytes()))
            }
            "/bug" => panic!("this service has a bug"),
            "/large" => Reply::Full(Response::new(200).body(vec![b'x'; 300_000])),
            "/nothing" => Reply::Full(Response::new(204)),
            _ => {
                body.reverse();
                Reply::Full(Response::new(200).body(body.to_vec()))
            }
        }
    }

    fn refuse(&self, error: &HttpError, head: Option<&RequestHead<'_>>) -> Response {
        let path = head.map_or("no head", |h| h.path()).to_owned();
        Response::new(error.status()).header("X-Path", path).body(error.to_string().into_bytes())
    }
}

impl Echo {
    fn open(&self, name: &str) -> Arc<TaskStream> {
        let mut streams = self.streams.lock().unwrap();
        let known = streams.iter().find(|(n, ..)| n == name).map(|(_, s, _)| s.clone());
        known.unwrap_or_else(|| {
            let (stream, mut writer) = TaskStream::new(self.hub.clone());
            writer.append(&frame(0, "started")).unwrap();
            streams.push((name.to_owned(), stream.clone(), writer));
            stream
        })
    }
}

fn frame(id: u32, event: &str) -> Vec<u8> {
    let mut out = Vec::new();
    sse::write_event(&mut out, id, event, b"{}");
    out
}

fn finish(stream: &TaskStream) {
    assert!(stream.close());
    let mut tail = frame(stream.event_count(), "end");
    tail.extend_from_slice(sse::LAST_CHUNK);
    stream.finish(&tail);
}

struct Server {
    address: SocketAddr,
    hub: WakeHub,
    echo: Echo,
    stop: Arc<Stop>,
    stats: Vec<Arc<ReactorStats>>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    fn start(driver: Driver, change: impl Fn(&mut ReactorConfig)) -> Server {
        Server::start_many(1, driver, change)
    }

    fn start_many(count: usize, driver: Driver, change: impl Fn(&mut ReactorConfig)) -> Server {
        let configs: Vec<_> = (0..count).map(|index| config(index, driver.clone(), &change)).collect();
        let inboxes: Vec<_> = configs.iter().map(|c| Inbox::new(c.connections_max).unwrap()).collect();
        let hub = WakeHub::new(inboxes.clone());
        let stop = Arc::new(Stop::new(inboxes.clone()));
        let echo = Echo { hub: hub.clone(), streams: Streams::default(), views: Arc::default() };
        let stats = configs.iter().map(|c| c.stats.clone()).collect();
        let mut address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut threads = Vec::new();
        for (config, inbox) in configs.into_iter().zip(inboxes) {
            let listener = bind(address, count > 1).unwrap();
            address = listener.local_addr().unwrap();
            let (echo, stop) = (echo.clone(), stop.clone());
            threads
                .push(std::thread::spawn(move || run(config, vec![listener], inbox, stop, |_| echo.clone()).unwrap()));
        }
        Server { address, hub, echo, stop, stats, threads }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// Sends bytes and reads until the server closes.
    fn ask(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        read_to_end(&mut stream)
    }

    fn assert_serves(&self) {
        let answer = self.ask(format!("GET / HTTP/1.1\r\n{CLOSE}\r\n").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    fn stream(&self, name: &str) -> Arc<TaskStream> {
        let found = || self.echo.streams.lock().unwrap().iter().find(|(n, ..)| n == name).map(|(_, s, _)| s.clone());
        eventually("the stream is open", || found().is_some());
        found().unwrap()
    }

    fn append(&self, name: &str, frame: &[u8]) {
        let mut streams = self.echo.streams.lock().unwrap();
        let (_, _, writer) = streams.iter_mut().find(|(n, ..)| n == name).unwrap();
        writer.append(frame).unwrap();
    }

    fn sum(&self, figure: impl Fn(&ReactorStats) -> u64) -> u64 {
        self.stats.iter().map(|s| figure(s)).sum()
    }
}

fn config(index: usize, driver: Driver, change: &impl Fn(&mut ReactorConfig)) -> ReactorConfig {
    let mut config = ReactorConfig {
        index: index as u16,
        driver,
        stats: Arc::default(),
        connections_max: 600,
        head_len_max: 4096,
        headers_max: 32,
        head_timeout: Duration::from_secs(10),
        body_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(30),
        write_timeout: Duration::from_secs(10),
        heartbeat: Duration::from_secs(30),
    };
    change(&mut config);
    config
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.begin(Duration::from_millis(200));
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            // A second panic would hide the first.
            assert!(ended.is_ok() || std::thread::panicking(), "a reactor panicked");
        }
    }
}

fn read_to_end(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Ok(_) => {}
        // A reset after the answer is as good as an end.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&all)),
    }
    String::from_utf8_lossy(&all).into_owned()
}

fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut all = String::new();
    let mut piece = [0; 4096];
    while !all.contains(end) {
        let len = match stream.read(&mut piece) {
            // Taking a ring down, as `detect_driver` does, interrupts what its thread does next.
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            read => read.expect("the server answers in time"),
        };
        assert_ne!(len, 0, "the connection ended after {all:?}");
        all.push_str(&String::from_utf8_lossy(&piece[..len]));
    }
    all
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}: not within 20 s");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn on_both_drivers(test: impl Fn(Driver)) {
    let found = detect_driver();
    match &found {
        Driver::IoUring => test(found),
        Driver::Legacy { reason } => eprintln!("not tested with io_uring: {reason}"),
    }
    test(Driver::Legacy { reason: "a test".into() });
}

const CLOSE: &str = "Host: a\r\nConnection: close\r\n";
