//! JSON lines on stderr, written by a thread of their own so that no reactor waits for a terminal.

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use crate::metrics::Metrics;

/// Bytes of lines that may wait for stderr; beyond, lines are dropped and counted.
const WAITING_LEN_MAX: usize = 2 * 1024 * 1024;

/// Lines gather for this long after a write.
pub const GATHERING: Duration = Duration::from_millis(2);

/// Hands finished lines to the writing thread.
#[derive(Clone)]
pub struct LineSender(Arc<Lines>);

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

/// Takes each event's line as `tracing-subscriber` has it: in one piece.
impl Write for &LineSender {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LineSender {
    type Writer = &'a LineSender;

    fn make_writer(&'a self) -> &'a LineSender {
        self
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
        write_now(&mut to)?;
        to.write_str("\",\"level\":\"")?;
        to.write_str(event.metadata().level().as_str())?;
        to.write_str("\"")?;
        let mut fields = Fields { to: &mut to, result: Ok(()) };
        event.record(&mut fields);
        fields.result?;
        to.write_str("}\n")
    }
}

thread_local! {
    /// The second that was last written, since 1970, and its text up to the point.
    static LAST_SECOND: Cell<(u64, [u8; 20])> = const { Cell::new((0, [0; 20])) };
}

/// The time as RFC 3339 has it, to the microsecond.
fn write_now(to: &mut Writer<'_>) -> fmt::Result {
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
    to.write_str(std::str::from_utf8(&text).expect("it is ASCII"))?;
    to.write_str(std::str::from_utf8(&micros).expect("it is ASCII"))?;
    to.write_char('Z')
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` as `1994-11-06T08:49:37.`
fn rfc_3339(http_date: &str) -> [u8; 20] {
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = 1 + months.iter().position(|m| *m == &http_date[8..11]).expect("it names a month");
    let (year, day, time) = (&http_date[12..16], &http_date[5..7], &http_date[17..25]);
    format!("{year}-{month:02}-{day}T{time}.").into_bytes().try_into().expect("a year has four digits")
}

struct Fields<'a, 'b> {
    to: &'a mut Writer<'b>,
    result: fmt::Result,
}

impl Fields<'_, '_> {
    fn put(&mut self, field: &Field, value: impl FnOnce(&mut Writer<'_>) -> fmt::Result) {
        self.result = self.result.and_then(|()| {
            self.to.write_str(",\"")?;
            self.to.write_str(field.name())?;
            self.to.write_str("\":")?;
            value(self.to)
        });
    }
}

impl Visit for Fields<'_, '_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no word for what is not a number.
        let quote = if value.is_finite() { "" } else { "\"" };
        self.put(field, |to| write!(to, "{quote}{value}{quote}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, |to| to.write_str(itoa::Buffer::new().format(value)));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, |to| to.write_str(itoa::Buffer::new().format(value)));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, |to| to.write_str(if value { "true" } else { "false" }));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, |to| {
            to.write_str("\"")?;
            Escaped(to).write_str(value)?;
            to.write_str("\"")
        });
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, |to| {
            to.write_str("\"")?;
            write!(Escaped(to), "{value:?}")?;
            to.write_str("\"")
        });
    }
}

/// Writes text as the inside of a JSON string.
struct Escaped<'a, 'b>(&'a mut Writer<'b>);

impl fmt::Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let is_special = |b: u8| b < 0x20 || b == b'"' || b == b'\\';
        // Nearly no text has any, and this is seen many bytes at a time.
        if !text.bytes().fold(false, |any, b| any | is_special(b)) {
            return self.0.write_str(text);
        }
        let mut rest = text;
        while let Some(at) = rest.bytes().position(is_special) {
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
    let level: tracing::Level = level.parse().unwrap_or(tracing::Level::INFO);
    let subscriber =
        tracing_subscriber::fmt().event_format(JsonLine).with_max_level(level).with_writer(LineSender(lines)).finish();
    // A second server in one process (tests) keeps the first one's log.
    let _ = tracing::subscriber::set_global_default(subscriber);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Labels;

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
