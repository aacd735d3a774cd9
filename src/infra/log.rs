//! JSON lines on stderr, written by a thread of their own so that no reactor waits for a terminal.

use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

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

/// An event as one JSON object: time, level and its fields, written as they come. `tracing-subscriber`'s own sorts them in
/// a tree first, which allocates for every field.
struct JsonLine;

impl<S, N> FormatEvent<S, N> for JsonLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        to.write_str("{\"timestamp\":\"")?;
        SystemTime.format_time(&mut to)?;
        write!(to, "\",\"level\":\"{}\"", event.metadata().level())?;
        let mut fields = Fields { to: &mut to, result: Ok(()) };
        event.record(&mut fields);
        fields.result?;
        to.write_str("}\n")
    }
}

struct Fields<'a, 'b> {
    to: &'a mut Writer<'b>,
    result: fmt::Result,
}

impl Fields<'_, '_> {
    fn put(&mut self, field: &Field, value: fmt::Arguments<'_>, quoted: bool) {
        let quote = if quoted { "\"" } else { "" };
        self.result = self.result.and_then(|()| {
            write!(self.to, ",\"{}\":{quote}", field.name())?;
            Escaped(self.to).write_fmt(value)?;
            self.to.write_str(quote)
        });
    }
}

impl Visit for Fields<'_, '_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no word for what is not a number.
        self.put(field, format_args!("{value}"), !value.is_finite());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, format_args!("{value}"), false);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, format_args!("{value}"), false);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, format_args!("{value}"), false);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, format_args!("{value}"), true);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format_args!("{value:?}"), true);
    }
}

/// Writes text as the inside of a JSON string.
struct Escaped<'a, 'b>(&'a mut Writer<'b>);

impl fmt::Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(|c: char| matches!(c, '"' | '\\' | '\0'..='\u{1f}')) {
            self.0.write_str(&rest[..at])?;
            match rest.as_bytes()[at] {
                b'\n' => self.0.write_str("\\n")?,
                byte @ (b'"' | b'\\') => write!(self.0, "\\{}", byte as char)?,
                byte => write!(self.0, "\\u{byte:04x}")?,
            }
            rest = &rest[at + 1..];
        }
        self.0.write_str(rest)
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
        .event_format(JsonLine)
        .with_max_level(level)
        .with_writer(LineSender { lines: sender, metrics })
        .finish();
    // A second server in one process (tests) keeps the first one's log.
    let _ = tracing::subscriber::set_global_default(subscriber);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("one thread").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_is_json_whatever_is_in_its_fields() {
        let kept = Kept::default();
        let to = kept.clone();
        let subscriber = tracing_subscriber::fmt().event_format(JsonLine).with_writer(move || to.clone()).finish();
        let nasty = "a \"quote\", a \\, a line\nend, \u{1} and ü";
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(text = nasty, shown = %nasty, count = 7u64, less = -1i64, yes = true, share = 0.5, none = f64::NAN, "it {}", "is");
        });
        let bytes = kept.0.lock().expect("one thread").clone();
        let line: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
        assert_eq!((&line["level"], &line["message"]), (&"WARN".into(), &"it is".into()));
        assert_eq!((&line["text"], &line["shown"]), (&nasty.into(), &nasty.into()));
        assert_eq!((&line["count"], &line["less"], &line["yes"]), (&7.into(), &(-1).into(), &true.into()));
        assert_eq!((&line["share"], &line["none"]), (&0.5.into(), &"NaN".into()));
        assert!(line["timestamp"].as_str().is_some_and(|t| t.ends_with('Z')) && bytes.ends_with(b"}\n"));
    }
}
