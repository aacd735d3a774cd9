//! JSON lines on stderr, written by a thread of their own so that no reactor waits for a terminal.

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::metrics::Metrics;

/// Bytes of lines that may wait for stderr; beyond, lines are dropped and counted.
const WAITING_LEN_MAX: usize = 2 * 1024 * 1024;

/// Lines gather for this long after a write.
pub const GATHERING: Duration = Duration::from_millis(2);

/// Lines on their way to stderr.
struct Lines {
    inner: Mutex<Gathered>,
    came: Condvar,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Gathered {
    bytes: Vec<u8>,
    /// The writing thread has nothing to do and must be woken.
    is_awaited: bool,
}

impl Lines {
    fn lock(&self) -> MutexGuard<'_, Gathered> {
        self.inner.lock().expect("nothing panics under this lock")
    }

    fn push(&self, line: &[u8]) {
        let mut gathered = self.lock();
        if gathered.bytes.len() + line.len() > WAITING_LEN_MAX {
            self.metrics.log_lines_dropped.add(1);
            return;
        }
        gathered.bytes.extend_from_slice(line);
        if std::mem::take(&mut gathered.is_awaited) {
            drop(gathered);
            self.came.notify_one();
        }
    }

    /// Waits for lines and takes all there are, in exchange for an empty buffer.
    fn take(&self, empty: Vec<u8>) -> Vec<u8> {
        let mut gathered = self.lock();
        while gathered.bytes.is_empty() {
            gathered.is_awaited = true;
            gathered = self.came.wait(gathered).expect("nothing panics under this lock");
        }
        std::mem::replace(&mut gathered.bytes, empty)
    }
}

/// Hands each event as one JSON object and a line end to `sink`: time, level and its fields, written as they come. There are no
/// spans in this program, so nothing is kept of any.
struct JsonLines<W> {
    level: Level,
    sink: W,
}

impl<W: Fn(&[u8]) + 'static> Subscriber for JsonLines<W> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::from_level(self.level))
    }

    fn event(&self, event: &Event<'_>) {
        // Taken and not borrowed: what a field writes of itself may log, too. A thread that is ending has none.
        let mut line = LINE.try_with(Cell::take).unwrap_or_default();
        line.clear();
        line.extend_from_slice(b"{\"timestamp\":\"");
        write_now(&mut line);
        line.extend_from_slice(b"\",\"level\":\"");
        line.extend_from_slice(event.metadata().level().as_str().as_bytes());
        line.push(b'"');
        event.record(&mut Fields(&mut line));
        line.extend_from_slice(b"}\n");
        (self.sink)(&line);
        if line.capacity() <= LINE_LEN_MAX {
            let _ = LINE.try_with(|spare| spare.set(line));
        }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Memory that a thread keeps for its next line.
const LINE_LEN_MAX: usize = 16 * 1024;

thread_local! {
    static LINE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };

    /// The second that was last written, since 1970, and its text up to the point.
    static LAST_SECOND: Cell<(u64, [u8; 20])> = const { Cell::new((0, [0; 20])) };
}

/// The time as RFC 3339 has it, to the microsecond.
fn write_now(to: &mut Vec<u8>) {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (mut second, mut text) = LAST_SECOND.get();
    if second != since_1970.as_secs() {
        second = since_1970.as_secs();
        let whole = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second));
        text = rfc_3339(&whole);
        LAST_SECOND.set((second, text));
    }
    let mut micros = [b'0'; 6];
    let mut left = since_1970.subsec_micros();
    for digit in micros.iter_mut().rev() {
        *digit = b'0' + (left % 10) as u8;
        left /= 10;
    }
    to.extend_from_slice(&text);
    to.extend_from_slice(&micros);
    to.push(b'Z');
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` as `1994-11-06T08:49:37.`
fn rfc_3339(http_date: &str) -> [u8; 20] {
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = 1 + months.iter().position(|m| *m == &http_date[8..11]).expect("it names a month");
    let (year, day, time) = (&http_date[12..16], &http_date[5..7], &http_date[17..25]);
    format!("{year}-{month:02}-{day}T{time}.").into_bytes().try_into().expect("a year has four digits")
}

struct Fields<'a>(&'a mut Vec<u8>);

impl Fields<'_> {
    /// Begins a field; its value is to follow.
    fn name(&mut self, field: &Field) -> &mut Vec<u8> {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(field.name().as_bytes());
        self.0.extend_from_slice(b"\":");
        self.0
    }

    fn plain(&mut self, field: &Field, value: &str) {
        self.name(field).extend_from_slice(value.as_bytes());
    }

    fn text(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let to = self.name(field);
        to.push(b'"');
        Escaped(to).write_fmt(value).expect("a buffer takes everything");
        to.push(b'"');
    }
}

impl Visit for Fields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no word for what is not a number.
        match value.is_finite() {
            true => write!(self.name(field), "{value}").expect("a buffer takes everything"),
            false => self.text(field, format_args!("{value}")),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.plain(field, itoa::Buffer::new().format(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.plain(field, itoa::Buffer::new().format(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.plain(field, if value { "true" } else { "false" });
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let to = self.name(field);
        to.push(b'"');
        Escaped(to).put(value);
        to.push(b'"');
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, format_args!("{value:?}"));
    }
}

/// Writes text as the inside of a JSON string.
struct Escaped<'a>(&'a mut Vec<u8>);

impl Escaped<'_> {
    fn put(&mut self, text: &str) {
        let is_special = |b: u8| b < 0x20 || b == b'"' || b == b'\\';
        let mut rest = text.as_bytes();
        // Nearly no text has any, and this is seen many bytes at a time.
        while rest.iter().fold(false, |any, b| any | is_special(*b)) {
            let at = rest.iter().position(|b| is_special(*b)).expect("there is one");
            self.0.extend_from_slice(&rest[..at]);
            match rest[at] {
                b'\n' => self.0.extend_from_slice(b"\\n"),
                byte @ (b'"' | b'\\') => self.0.extend_from_slice(&[b'\\', byte]),
                byte => write!(self.0, "\\u{byte:04x}").expect("a buffer takes everything"),
            }
            rest = &rest[at + 1..];
        }
        self.0.extend_from_slice(rest);
    }
}

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.put(text);
        Ok(())
    }
}

/// Writes what has come since the last write in one piece, then lets lines gather: a write and a wake-up for each
/// line cost more than the line.
fn write_lines(lines: &Lines) -> ! {
    let mut piece = Vec::new();
    loop {
        piece = lines.take(piece);
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
    let lines = Arc::new(Lines { inner: Mutex::default(), came: Condvar::new(), metrics });
    let written = lines.clone();
    std::thread::Builder::new().name("log".into()).spawn(move || write_lines(&written))?;
    let level = level.parse().unwrap_or(Level::INFO);
    let subscriber = JsonLines { level, sink: move |line: &[u8]| lines.push(line) };
    // A second server in one process (tests) keeps the first one's log.
    let _ = tracing::subscriber::set_global_default(subscriber);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Labels;

    #[test]
    fn a_line_is_json_whatever_is_in_its_fields() {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let to = kept.clone();
        let sink = move |line: &[u8]| to.lock().expect("one thread").extend_from_slice(line);
        let subscriber = JsonLines { level: Level::INFO, sink };
        let nasty = "a \"quote\", a \\, a line\nend, \u{1} and ü";
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(text = nasty, shown = %nasty, count = 7u64, less = -1i64, yes = true, share = 0.5, none = f64::NAN, "it {}", "is");
            tracing::debug!("which is too much");
            let _span = tracing::info_span!("nothing is written of it").entered();
        });
        let bytes = kept.lock().expect("one thread").clone();
        let line: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
        assert_eq!((&line["level"], &line["message"]), (&"WARN".into(), &"it is".into()));
        assert_eq!((&line["text"], &line["shown"]), (&nasty.into(), &nasty.into()));
        assert_eq!((&line["count"], &line["less"], &line["yes"]), (&7.into(), &(-1).into(), &true.into()));
        assert_eq!((&line["share"], &line["none"]), (&0.5.into(), &"NaN".into()));
        assert!(line["timestamp"].as_str().is_some_and(|t| t.ends_with('Z')) && bytes.ends_with(b"}\n"));
    }

    #[test]
    fn a_date_is_written_as_rfc_3339_has_it() {
        for (second, text) in [
            (0, "1970-01-01T00:00:00."),
            (951_827_696, "2000-02-29T12:34:56."),
            (1_735_689_599, "2024-12-31T23:59:59."),
        ] {
            let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second));
            assert_eq!(rfc_3339(&date), *text.as_bytes());
        }
    }

    #[test]
    fn lines_that_nobody_takes_are_dropped_and_counted() {
        let labels = Labels { engine: "cpu", engine_version: "1", pool_id: "p".into(), replica_id: "0" };
        let metrics = Arc::new(Metrics::new(labels));
        let lines = Lines { inner: Mutex::default(), came: Condvar::new(), metrics: metrics.clone() };
        let line = [b'x'; 1024];
        let fit = WAITING_LEN_MAX / line.len();
        (0..fit + 3).for_each(|_| lines.push(&line));
        assert_eq!(metrics.log_lines_dropped.value(), 3);
        assert_eq!(lines.take(Vec::new()).len(), fit * line.len());
        lines.push(b"again\n");
        assert_eq!(lines.take(Vec::new()), b"again\n");
    }
}
