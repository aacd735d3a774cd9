//! What a run has measured: percentiles, counts, and what the server spent meanwhile.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Latencies of one kind, microseconds with three digits.
pub struct Latencies(Histogram<u64>);

/// Ten minutes, in nanoseconds: nothing measured here takes longer.
const LONGEST_NS: u64 = 600_000_000_000;

impl Default for Latencies {
    fn default() -> Self {
        Latencies(Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("the bounds are legal"))
    }
}

impl Latencies {
    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns.max(1));
    }

    pub fn summary(&self) -> Summary {
        let at = |q: f64| self.0.value_at_quantile(q) as f64 / 1000.0;
        Summary {
            count: self.0.len(),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: if self.0.is_empty() { 0.0 } else { self.0.max() as f64 / 1000.0 },
        }
    }
}

/// Percentiles, microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    pub count: u64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
}

/// One run, as it is kept: a line of JSON.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Which server.
    pub server: String,
    /// Which measurement.
    pub case: String,
    pub loop_kind: String,
    pub seconds: f64,
    pub connections: usize,
    pub requests: u64,
    pub requests_per_second: f64,
    pub tokens: u64,
    pub tokens_per_second: f64,
    /// Answers that told the client to come back.
    pub refused: u64,
    /// Broken connections, wrong answers, streams that were not whole or not in order.
    pub failed: u64,
    pub first_failure: Option<String>,
    /// Streams that were cut off by the end of the measurement.
    pub cut_off: u64,
    /// From the intended start to the whole answer; of a stream, to its last event.
    pub end_to_end: Summary,
    pub first_token: Summary,
    pub between_tokens: Summary,
    pub per_token: Summary,
    /// From the schedule's point at which the engine had the token to its arrival here.
    pub push_to_read: Summary,
    pub refusal: Summary,
    /// From when a scrape of the metrics was due to its whole answer.
    #[serde(default)]
    pub scrape: Summary,
    /// Worst delay of a reactor's timer that a scrape has shown, microseconds.
    #[serde(default)]
    pub loop_lag_max_us: u64,
    /// Processor time of the server during the measurement, nanoseconds by thread.
    pub cpu_ns: BTreeMap<String, u64>,
    pub resident_bytes_before: u64,
    pub resident_bytes_after: u64,
    pub streams_open_at_end: usize,
}

impl Report {
    pub fn cpu_total_ns(&self) -> u64 {
        self.cpu_ns.values().sum()
    }

    /// Processor time per request, or per token where tokens were measured, microseconds.
    pub fn cpu_us_each(&self) -> f64 {
        let count = if self.tokens > 0 { self.tokens } else { self.requests };
        self.cpu_total_ns() as f64 / 1000.0 / count.max(1) as f64
    }

    pub fn print(&self) {
        println!(
            "{} / {}: {}, {} connections, {:.1} s",
            self.server, self.case, self.loop_kind, self.connections, self.seconds
        );
        println!(
            "  {} requests ({:.0}/s), {} tokens ({:.0}/s), {} refused, {} failed, {} cut off by the end",
            self.requests,
            self.requests_per_second,
            self.tokens,
            self.tokens_per_second,
            self.refused,
            self.failed,
            self.cut_off
        );
        if let Some(failure) = &self.first_failure {
            println!("  first failure: {failure}");
        }
        println!("  {:<16}{:>10}{:>10}{:>10}{:>10}{:>10}  microseconds", "", "p50", "p90", "p99", "p99.9", "max");
        for (name, s) in [
            ("end to end", &self.end_to_end),
            ("first token", &self.first_token),
            ("between tokens", &self.between_tokens),
            ("per token", &self.per_token),
            ("push to read", &self.push_to_read),
            ("refusal", &self.refusal),
            ("scrape", &self.scrape),
        ] {
            if s.count > 0 {
                println!(
                    "  {name:<16}{:>10.0}{:>10.0}{:>10.0}{:>10.0}{:>10.0}",
                    s.p50_us, s.p90_us, s.p99_us, s.p999_us, s.max_us
                );
            }
        }
        if self.scrape.count > 0 {
            println!("  a reactor's timer was {} us late at worst", self.loop_lag_max_us);
        }
        if self.cpu_total_ns() > 0 {
            let each = if self.tokens > 0 { "token" } else { "request" };
            print!("  server: {:.2} us of CPU per {each} (", self.cpu_us_each());
            let count = if self.tokens > 0 { self.tokens } else { self.requests }.max(1) as f64;
            let mut threads: Vec<_> = self.cpu_ns.iter().filter(|(_, ns)| **ns > 0).collect();
            threads.sort_by_key(|(_, ns)| std::cmp::Reverse(**ns));
            let shown: Vec<_> =
                threads.iter().map(|(n, ns)| format!("{n} {:.2}", **ns as f64 / 1000.0 / count)).collect();
            println!("{}), {:.1} MB resident", shown.join(", "), self.resident_bytes_after as f64 / 1e6);
        }
    }
}
