//! JSON lines on stderr, written by a thread of their own so that no reactor waits for a terminal.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use crate::metrics::Metrics;

/// Lines that may wait for stderr; beyond, they are dropped and counted.
const LINES_MAX: usize = 8192;

/// Lines gather for this long after a write.
pub const GATHERING: Duration = Duration::from_millis(2);

/// Bytes written at once.
const PIECE_LEN_MAX: usize = 64 * 1024;

/// Hands finished lines to the writing thread.
#[derive(Clone)]
pub struct LineSender {
    lines: SyncSender<Vec<u8>>,
    metrics: Arc<Metrics>,
}

/// One line under construction.
pub struct Line<'a> {
    bytes: Vec<u8>,
    sender: &'a LineSender,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if self.sender.lines.try_send(std::mem::take(&mut self.bytes)).is_err() {
            self.sender.metrics.log_lines_dropped.add(1);
        }
    }
}

impl<'a> MakeWriter<'a> for LineSender {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { bytes: Vec::with_capacity(512), sender: self }
    }
}

/// Writes what has come since the last write in one piece, then lets lines gather: a write and a wake-up for each
/// line cost more than the line.
fn write_lines(lines: &Receiver<Vec<u8>>) {
    let mut piece = Vec::new();
    while let Ok(line) = lines.recv() {
        piece.extend_from_slice(&line);
        while piece.len() < PIECE_LEN_MAX
            && let Ok(line) = lines.try_recv()
        {
            piece.extend_from_slice(&line);
        }
        // Nobody is left to tell when stderr is gone.
        let _ = io::stderr().lock().write_all(&piece);
        piece.clear();
        std::thread::sleep(GATHERING);
    }
}

/// Makes the whole process log as JSON lines on stderr at `level` (error to trace) and above.
///
/// # Errors
///
/// When no thread can be started.
pub fn install(level: &str, metrics: Arc<Metrics>) -> io::Result<()> {
    let (sender, receiver) = sync_channel::<Vec<u8>>(LINES_MAX);
    std::thread::Builder::new().name("log".into()).spawn(move || write_lines(&receiver))?;
    let level: tracing::Level = level.parse().unwrap_or(tracing::Level::INFO);
    let subscriber = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_target(false)
        .with_max_level(level)
        .with_writer(LineSender { lines: sender, metrics })
        .finish();
    // A second server in one process (tests) keeps the first one's log.
    let _ = tracing::subscriber::set_global_default(subscriber);
    Ok(())
}
