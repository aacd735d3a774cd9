//! Prometheus beside the load: a thread of its own that asks for `/metrics` again and again over one connection, times the
//! answers, and reads from them how far the server's reactors have fallen behind.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use super::http::{Part, ResponseReader};
use super::report::{Latencies, Summary};
use crate::pace::now_ns;

/// The series that tells the worst delay of a reactor's timer.
const LOOP_LAG: &str = "reactor_loop_lag_us";

/// A server that does not answer for so long has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the scrapes have shown.
#[derive(Default)]
pub(super) struct Scraped {
    pub latencies: Latencies,
    /// Worst delay of a reactor's timer, microseconds.
    pub loop_lag_max_us: u64,
}

impl Scraped {
    pub(super) fn summary(&self) -> Summary {
        self.latencies.summary()
    }
}

/// The thread; it scrapes until `finish`.
pub(super) struct Scraper {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Scraped, String>>,
}

impl Scraper {
    /// Scrapes `per_second` times a second, each from when it was due.
    pub(super) fn start(address: SocketAddr, per_second: f64) -> Scraper {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let pause_ns = (1e9 / per_second) as u64;
        let thread = std::thread::spawn(move || scrape_until(&stopping, address, pause_ns));
        Scraper { stop, thread }
    }

    /// # Errors
    ///
    /// When the server was not there, or answered anything but metrics.
    pub(super) fn finish(self) -> Result<Scraped, String> {
        self.stop.store(true, Relaxed);
        self.thread.join().map_err(|_| "the scraper panicked".to_owned())?.map_err(|why| format!("/metrics: {why}"))
    }
}

fn scrape_until(stop: &AtomicBool, address: SocketAddr, pause_ns: u64) -> Result<Scraped, String> {
    let mut socket = TcpStream::connect(address).map_err(|e| e.to_string())?;
    socket.set_read_timeout(Some(PATIENCE)).map_err(|e| e.to_string())?;
    let mut reader = ResponseReader::default();
    let mut scraped = Scraped::default();
    let mut due_ns = now_ns();
    while !stop.load(Relaxed) {
        std::thread::sleep(Duration::from_nanos(due_ns.saturating_sub(now_ns())));
        let text = scrape(&mut socket, &mut reader, address).map_err(|e| e.to_string())?;
        scraped.latencies.record(now_ns() - due_ns);
        scraped.loop_lag_max_us = scraped.loop_lag_max_us.max(loop_lag_us(&text)?);
        due_ns += pause_ns;
    }
    Ok(scraped)
}

fn scrape(socket: &mut TcpStream, reader: &mut ResponseReader, address: SocketAddr) -> Result<String, String> {
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\n\r\n");
    socket.write_all(request.as_bytes()).map_err(|e| e.to_string())?;
    let (mut text, mut ended) = (Vec::new(), false);
    let mut bytes = [0; 16 * 1024];
    while !ended {
        let count = socket.read(&mut bytes).map_err(|e| e.to_string())?;
        if count == 0 {
            return Err("the server closed the connection".into());
        }
        reader.feed(&bytes[..count], |part| {
            match part {
                Part::Head { status: 200 } => {}
                Part::Head { status } => return Err(format!("answered {status}")),
                Part::Body(bytes) => text.extend_from_slice(bytes),
                Part::End => ended = true,
            }
            Ok(())
        })?;
    }
    String::from_utf8(text).map_err(|e| e.to_string())
}

/// The worst of all reactors.
fn loop_lag_us(metrics: &str) -> Result<u64, String> {
    let lines = metrics.lines().filter(|line| !line.starts_with('#') && line.contains(LOOP_LAG));
    let values = lines.map(|line| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()));
    let worst = values.collect::<Option<Vec<f64>>>().and_then(|all| all.into_iter().reduce(f64::max));
    worst.map(|us| us as u64).ok_or_else(|| format!("has no {LOOP_LAG}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_reactor_counts() {
        let text = "# TYPE reactor_loop_lag_us gauge\nreactor_loop_lag_us{reactor=\"0\"} 12\nreactor_loop_lag_us{reactor=\"1\"} 40\n";
        assert_eq!(loop_lag_us(text), Ok(40));
        assert!(loop_lag_us("queue_depth 1\n").is_err());
    }
}
