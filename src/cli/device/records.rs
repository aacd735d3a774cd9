//! What was measured, a line of JSON each. `engine/gpu/control.py` writes the same.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cli::Failure;

/// One line.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Record {
    Ceiling(Ceiling),
    Case(Case),
}

/// What a device can do at most.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Ceiling {
    pub device: String,
    /// Version of CUDA that the driver speaks.
    pub driver: String,
    pub read_bytes_per_s: f64,
    pub read_bytes_per_s_median: f64,
    /// Bytes that were read, and by one block of threads.
    pub read_bytes: usize,
    pub span_bytes: usize,
    pub launch_alone_us: f64,
    pub launch_chained_us: f64,
    pub launch_listed_us: f64,
}

/// How fast a model was. What could not be measured is left out.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Case {
    /// Who was measured: `orchestratord` or `pytorch`.
    pub by: String,
    pub shape: String,
    #[serde(rename = "type")]
    pub tensor_type: String,
    pub batch: usize,
    /// Tokens of each prompt.
    pub prompt: usize,
    /// Steps that were measured after it.
    pub decode: usize,
    /// Until the last sequence had its first token.
    pub prefill_s: Option<f64>,
    /// Of all sequences together.
    pub tokens_per_s: Option<f64>,
    pub step_us_p50: Option<f64>,
    pub step_us_p99: Option<f64>,
    /// Bytes of weights and of the KV cache that a step reads.
    pub step_bytes: u64,
    /// Of a step's time, what the host did not wait; and what the device certainly had nothing to do.
    pub host_us: Option<f64>,
    pub idle_us: Option<f64>,
    /// Device memory in use.
    pub device_bytes: Option<u64>,
    /// Names the arithmetic, or the way it was run.
    pub how: String,
}

impl Case {
    /// Share of a read bandwidth that decode steps use.
    pub fn share(&self, read_bytes_per_s: f64) -> Option<f64> {
        self.tokens_per_s.map(|t| t / self.batch as f64 * self.step_bytes as f64 / read_bytes_per_s)
    }
}

/// Where lines go as soon as they are known, so that whoever is stopped loses none.
pub struct Lines(Option<File>);

impl Lines {
    /// Adds to a file; to none without a path.
    pub fn to(path: Option<&Path>) -> Result<Lines, Failure> {
        let open = |path: &Path| {
            let file = File::options().create(true).append(true).open(path);
            file.map_err(|e| Failure::Failed(format!("{}: {e}", path.display())))
        };
        path.map(open).transpose().map(Lines)
    }

    pub fn put(&mut self, record: &Record) -> Result<(), Failure> {
        let Some(file) = &mut self.0 else { return Ok(()) };
        let line = serde_json::to_string(record).expect("numbers and names are JSON");
        writeln!(file, "{line}").map_err(|e| Failure::Failed(format!("the file of records: {e}")))
    }
}

/// All lines of a file. One that was cut off in the middle of a write is left out.
pub fn read(path: &Path) -> Result<Vec<Record>, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::Failed(format!("{}: {e}", path.display())))?;
    let line = |(index, line): (usize, &str)| match serde_json::from_str(line) {
        Ok(record) => Some(Ok(record)),
        Err(_) if !text.ends_with('\n') && index + 1 == text.lines().count() => None,
        Err(e) => Some(Err(Failure::Failed(format!("{}, line {}: {e}", path.display(), index + 1)))),
    };
    text.lines().enumerate().filter_map(line).collect()
}
