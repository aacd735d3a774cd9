//! Counters, gauges and histograms as plain atomics, and their Prometheus text.
//!
//! Every label value is known when the process starts (but for model names, of which there are few), so
//! every series is there from the first scrape and nothing is looked up on the hot path.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock};

use crate::domain::task::Priority;

/// Bucket bounds in milliseconds, as the contract gives them.
pub const FIRST_TOKEN_BOUNDS_MS: [u64; 16] =
    [1, 2, 5, 10, 20, 50, 100, 150, 200, 300, 500, 750, 1000, 1500, 2000, 3000];
pub const DECODE_BOUNDS_MS: [u64; 12] = [50, 100, 250, 500, 1000, 1500, 2000, 3000, 4000, 6000, 8000, 12000];
/// Microseconds; a step of a small model takes a few hundred.
pub const STEP_BOUNDS_US: [u64; 12] =
    [100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000];

/// Why a task was refused or evicted: the wire's codes.
pub const REJECT_REASONS: [&str; 10] = [
    "ADMISSION_REJECT",
    "QUEUE_FULL_DROP_LRU",
    "DEADLINE_UNMET",
    "INVALID_PARAMS",
    "POOL_UNAVAILABLE",
    "POOL_UNREADY",
    "REPLICA_EXHAUSTED",
    "INTERNAL",
    "UNTRUSTED_ARTIFACT",
    "MODEL_DEPRECATED",
];

/// Why a task was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelReason {
    Client,
    Disconnect,
}

const CANCEL_REASONS: [&str; 2] = ["client", "disconnect"];

/// What became of a check of a model file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verification {
    Loaded,
    Missing,
    Corrupt,
    Unsupported,
    Conflict,
}

const VERIFICATIONS: [(&str, &str); 5] =
    [("ok", "loaded"), ("failed", "missing"), ("failed", "corrupt"), ("failed", "unsupported"), ("failed", "conflict")];

/// States of a model, one of which is 1.
pub const MODEL_STATES: [&str; 5] = ["loading", "ready", "draining", "unready", "retired"];

/// Names of models remembered; the oldest retired one goes first.
const MODELS_MAX: usize = 64;

/// A monotonic count.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A whole number that goes up and down.
#[derive(Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A histogram with fixed bounds; `N` bounds make `N + 1` buckets.
pub struct Histogram<const N: usize> {
    bounds: &'static [u64; N],
    buckets: [AtomicU64; N],
    above: AtomicU64,
    /// Sum in thousandths of the unit, so that parts of a millisecond count.
    sum_thousandths: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    pub const fn new(bounds: &'static [u64; N]) -> Self {
        Histogram {
            bounds,
            buckets: [const { AtomicU64::new(0) }; N],
            above: AtomicU64::new(0),
            sum_thousandths: AtomicU64::new(0),
        }
    }

    /// Counts one observation, given in thousandths of the bounds' unit.
    pub fn observe_thousandths(&self, value: u64) {
        match self.bounds.iter().position(|&bound| value <= bound * 1000) {
            Some(index) => self.buckets[index].fetch_add(1, Relaxed),
            None => self.above.fetch_add(1, Relaxed),
        };
        self.sum_thousandths.fetch_add(value, Relaxed);
    }

    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|b| b.load(Relaxed)).sum::<u64>() + self.above.load(Relaxed)
    }

    fn render(&self, out: &mut String, name: &str, labels: &str) {
        let mut cumulated = 0;
        for (bound, bucket) in self.bounds.iter().zip(&self.buckets) {
            cumulated += bucket.load(Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {cumulated}");
        }
        cumulated += self.above.load(Relaxed);
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {cumulated}");
        let sum = self.sum_thousandths.load(Relaxed) as f64 / 1000.0;
        let _ = writeln!(out, "{name}_sum{{{labels}}} {sum}");
        let _ = writeln!(out, "{name}_count{{{labels}}} {cumulated}");
    }
}

/// Names that stand in every label set of this process.
#[derive(Clone, Debug)]
pub struct Labels {
    pub engine: &'static str,
    pub engine_version: &'static str,
    pub pool_id: String,
    pub replica_id: &'static str,
}

/// Everything this process counts.
pub struct Metrics {
    labels: Labels,
    pub tasks_enqueued: [Counter; 2],
    pub tasks_started: [Counter; 2],
    tasks_canceled: [Counter; CANCEL_REASONS.len()],
    tasks_rejected: [Counter; REJECT_REASONS.len()],
    /// By policy: reject, drop-lru.
    pub backpressure_reject: Counter,
    pub backpressure_drop_lru: Counter,
    pub tokens_in: Counter,
    pub tokens_out: Counter,
    catalog_verifications: [Counter; VERIFICATIONS.len()],
    pub queue_depth: [Gauge; 2],
    pub kv_blocks_used: Gauge,
    pub kv_blocks_max: Gauge,
    /// Of the device, once something was read of it.
    pub gpu_busy_percent: Gauge,
    pub vram_used_bytes: Gauge,
    pub device: OnceLock<String>,
    models: Mutex<Vec<(String, &'static str)>>,
    pub latency_first_token: [Histogram<16>; 2],
    pub latency_decode: [Histogram<12>; 2],
    pub step: Histogram<12>,
    pub sequences_running: Gauge,
    pub preemptions: Counter,
    pub prefix_cache_hit_tokens: Counter,
    pub engine_restarts: Counter,
    pub log_lines_dropped: Counter,
}

impl Metrics {
    pub fn new(labels: Labels) -> Metrics {
        Metrics {
            labels,
            tasks_enqueued: Default::default(),
            tasks_started: Default::default(),
            tasks_canceled: Default::default(),
            tasks_rejected: Default::default(),
            backpressure_reject: Default::default(),
            backpressure_drop_lru: Default::default(),
            tokens_in: Default::default(),
            tokens_out: Default::default(),
            catalog_verifications: Default::default(),
            queue_depth: Default::default(),
            kv_blocks_used: Default::default(),
            kv_blocks_max: Default::default(),
            gpu_busy_percent: Default::default(),
            vram_used_bytes: Default::default(),
            device: OnceLock::new(),
            models: Mutex::new(Vec::new()),
            latency_first_token: [const { Histogram::new(&FIRST_TOKEN_BOUNDS_MS) }; 2],
            latency_decode: [const { Histogram::new(&DECODE_BOUNDS_MS) }; 2],
            step: Histogram::new(&STEP_BOUNDS_US),
            sequences_running: Default::default(),
            preemptions: Default::default(),
            prefix_cache_hit_tokens: Default::default(),
            engine_restarts: Default::default(),
            log_lines_dropped: Default::default(),
        }
    }

    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    pub fn canceled(&self, reason: CancelReason) {
        self.tasks_canceled[reason as usize].add(1);
    }

    /// Counts a refusal by its wire code; codes that are no refusals of a task are not counted.
    pub fn rejected(&self, code: &str) {
        if let Some(index) = REJECT_REASONS.iter().position(|r| *r == code) {
            self.tasks_rejected[index].add(1);
        }
    }

    pub fn verified(&self, outcome: Verification) {
        self.catalog_verifications[outcome as usize].add(1);
    }

    /// Says which state a model is in; it leaves its former one.
    pub fn model_state(&self, model_id: &str, state: &'static str) {
        debug_assert!(MODEL_STATES.contains(&state));
        let mut models = self.models.lock().expect("nothing panics under this lock");
        match models.iter_mut().find(|(id, _)| id == model_id) {
            Some(entry) => entry.1 = state,
            None => {
                if models.len() == MODELS_MAX {
                    let oldest = models.iter().position(|(_, s)| *s == "retired").unwrap_or(0);
                    models.remove(oldest);
                }
                models.push((model_id.to_owned(), state));
            }
        }
    }

    /// The state a model was last said to be in.
    pub fn state_of(&self, model_id: &str) -> Option<&'static str> {
        let models = self.models.lock().expect("nothing panics under this lock");
        models.iter().find(|(id, _)| id == model_id).map(|(_, state)| *state)
    }

    /// Prometheus text format 0.0.4. `reactors` is appended by who owns the reactors.
    pub fn render(&self, reactors: &ReactorFigures) -> String {
        let mut out = String::with_capacity(16 * 1024);
        let l = &self.labels;
        let engine = format!("engine=\"{}\"", l.engine);
        let pool = format!("{engine},engine_version=\"{}\",pool_id=\"{}\"", l.engine_version, l.pool_id);
        let replica = format!("{pool},replica_id=\"{}\"", l.replica_id);
        let by_priority = |base: &str, p: Priority| format!("{base},priority=\"{}\"", p.name());

        for (name, help, counters) in [
            ("tasks_enqueued_total", "Tasks accepted into the queue.", &self.tasks_enqueued),
            ("tasks_started_total", "Tasks that were given a slot.", &self.tasks_started),
        ] {
            head(&mut out, name, "counter", help);
            for p in Priority::ALL {
                line(&mut out, name, &by_priority(&replica, p), counters[p.index()].value());
            }
        }
        head(&mut out, "tasks_canceled_total", "counter", "Tasks cancelled, by reason.");
        for (reason, counter) in CANCEL_REASONS.iter().zip(&self.tasks_canceled) {
            line(&mut out, "tasks_canceled_total", &format!("{replica},reason=\"{reason}\""), counter.value());
        }
        head(&mut out, "tasks_rejected_total", "counter", "Tasks refused or evicted, by error code.");
        for (reason, counter) in REJECT_REASONS.iter().zip(&self.tasks_rejected) {
            line(&mut out, "tasks_rejected_total", &format!("{engine},reason=\"{reason}\""), counter.value());
        }
        let name = "admission_backpressure_events_total";
        head(&mut out, name, "counter", "Times the queue was full, by what was done about it.");
        line(&mut out, name, &format!("{engine},policy=\"reject\""), self.backpressure_reject.value());
        line(&mut out, name, &format!("{engine},policy=\"drop-lru\""), self.backpressure_drop_lru.value());
        for (name, help, counter) in [
            ("tokens_in_total", "Prompt tokens of accepted tasks.", &self.tokens_in),
            ("tokens_out_total", "Tokens sent to streams.", &self.tokens_out),
        ] {
            head(&mut out, name, "counter", help);
            line(&mut out, name, &replica, counter.value());
        }
        let name = "catalog_verifications_total";
        head(&mut out, name, "counter", "Checks of model files, by outcome.");
        for ((result, reason), counter) in VERIFICATIONS.iter().zip(&self.catalog_verifications) {
            line(&mut out, name, &format!("result=\"{result}\",reason=\"{reason}\",{engine}"), counter.value());
        }
        head(&mut out, "queue_depth", "gauge", "Tasks that wait for a slot.");
        for p in Priority::ALL {
            line(&mut out, "queue_depth", &by_priority(&pool, p), self.queue_depth[p.index()].value());
        }
        head(&mut out, "kv_cache_usage_ratio", "gauge", "Share of the KV blocks held by running sequences.");
        let ratio = self.kv_blocks_used.value() as f64 / self.kv_blocks_max.value().max(1) as f64;
        let _ = writeln!(out, "kv_cache_usage_ratio{{{replica}}} {ratio}");
        // There is no device on the CPU engine; the series stand so that dashboards and alerts need no two versions.
        let device = format!("{replica},device=\"{}\"", self.device.get().map_or("none".into(), |d| escape_label(d)));
        head(&mut out, "gpu_utilization", "gauge", "Share of time that the device was busy; 0 without a device.");
        let _ = writeln!(out, "gpu_utilization{{{device}}} {}", self.gpu_busy_percent.value() as f64 / 100.0);
        head(&mut out, "vram_used_bytes", "gauge", "Device memory in use; 0 without a device.");
        line(&mut out, "vram_used_bytes", &device, self.vram_used_bytes.value());
        head(&mut out, "model_state", "gauge", "1 for the state that a model is in.");
        for (id, now) in self.models.lock().expect("nothing panics under this lock").iter() {
            let id = escape_label(id);
            for state in MODEL_STATES {
                let labels = format!("model_id=\"{id}\",state=\"{state}\"");
                line(&mut out, "model_state", &labels, u64::from(*now == state));
            }
        }
        head(&mut out, "latency_first_token_ms", "histogram", "From acceptance to the first token, milliseconds.");
        for p in Priority::ALL {
            let labels = by_priority(&pool, p);
            self.latency_first_token[p.index()].render(&mut out, "latency_first_token_ms", &labels);
        }
        head(&mut out, "latency_decode_ms", "histogram", "From the first token to the last, milliseconds.");
        for p in Priority::ALL {
            self.latency_decode[p.index()].render(&mut out, "latency_decode_ms", &by_priority(&pool, p));
        }
        self.render_further(&mut out, &pool, &replica, reactors);
        out
    }

    /// Series beyond the contract's table.
    fn render_further(&self, out: &mut String, pool: &str, replica: &str, reactors: &ReactorFigures) {
        head(out, "engine_step_us", "histogram", "Time of one step of the engine, microseconds.");
        self.step.render(out, "engine_step_us", pool);
        for (name, kind, help, value) in [
            ("sequences_running", "gauge", "Sequences in slots.", self.sequences_running.value()),
            ("preemptions_total", "counter", "Batch sequences that gave up their slot.", self.preemptions.value()),
            (
                "prefix_cache_hit_tokens_total",
                "counter",
                "Prompt tokens found in the KV cache.",
                self.prefix_cache_hit_tokens.value(),
            ),
            ("engine_restarts_total", "counter", "Times the engine was rebuilt.", self.engine_restarts.value()),
        ] {
            head(out, name, kind, help);
            line(out, name, replica, value);
        }
        for (name, kind, help, value) in [
            ("reactor_connections_open", "gauge", "Open connections.", reactors.connections_open),
            ("reactor_streams_open", "gauge", "Streams being read.", reactors.streams_open),
            ("reactor_requests_total", "counter", "Requests answered.", reactors.requests),
            ("reactor_loop_lag_us", "gauge", "Worst delay of a reactor's timer lately.", reactors.loop_lag_us),
            (
                "log_lines_dropped_total",
                "counter",
                "Log lines dropped because stderr was not read.",
                self.log_lines_dropped.value(),
            ),
        ] {
            head(out, name, kind, help);
            let _ = writeln!(out, "{name} {value}");
        }
    }
}

/// What the reactors count, added up over all of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReactorFigures {
    pub connections_open: u64,
    pub streams_open: u64,
    pub requests: u64,
    pub loop_lag_us: u64,
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(out: &mut String, name: &str, labels: &str, value: u64) {
    let _ = writeln!(out, "{name}{{{labels}}} {value}");
}

fn escape_label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Metrics {
        Metrics::new(Labels { engine: "cpu", engine_version: "1", pool_id: "p".into(), replica_id: "0" })
    }

    #[test]
    fn every_series_is_there_before_anything_happened() {
        let metrics = metrics();
        metrics.model_state("m", "loading");
        let text = metrics.render(&ReactorFigures::default());
        for name in [
            "tasks_enqueued_total",
            "tasks_started_total",
            "tasks_canceled_total",
            "tasks_rejected_total",
            "admission_backpressure_events_total",
            "tokens_in_total",
            "tokens_out_total",
            "catalog_verifications_total",
            "queue_depth",
            "kv_cache_usage_ratio",
            "gpu_utilization",
            "vram_used_bytes",
            "model_state",
            "latency_first_token_ms_bucket",
            "latency_decode_ms_bucket",
        ] {
            assert!(text.lines().any(|l| l.starts_with(&format!("{name}{{"))), "{name} is missing");
        }
    }

    #[test]
    fn a_histogram_counts_into_the_first_bucket_that_holds_the_value() {
        let metrics = metrics();
        for thousandths in [1_000, 1_001, 3_000_000, 3_000_001] {
            metrics.latency_first_token[0].observe_thousandths(thousandths);
        }
        let text = metrics.render(&ReactorFigures::default());
        let value = |le: &str| {
            let wanted = format!("priority=\"interactive\",le=\"{le}\"}} ");
            let line = text.lines().find(|l| l.starts_with("latency_first_token_ms_bucket") && l.contains(&wanted));
            line.unwrap().rsplit(' ').next().unwrap().to_owned()
        };
        assert_eq!(
            (value("1"), value("2"), value("3000"), value("+Inf")),
            ("1".into(), "2".into(), "3".into(), "4".into())
        );
    }

    #[test]
    fn a_model_is_in_one_state_and_its_name_is_escaped() {
        let metrics = metrics();
        metrics.model_state("a\"b", "loading");
        metrics.model_state("a\"b", "ready");
        let text = metrics.render(&ReactorFigures::default());
        assert!(text.contains("model_state{model_id=\"a\\\"b\",state=\"ready\"} 1"));
        assert!(text.contains("model_state{model_id=\"a\\\"b\",state=\"loading\"} 0"));
    }
}
