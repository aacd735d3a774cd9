//! Measures the engine on a model file and prints one line of JSON; `bench/compare_llama.py` runs it beside llama.cpp.
//!
//!     speed FILE [--threads N] [--prompt N] [--decode N] [--sequences N]

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use orchestratord_engine::Model;
use orchestratord_engine::bench::{BenchOptions, measure};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("speed: {message}");
            ExitCode::from(1)
        }
    }
}

fn run() -> Result<(), String> {
    let mut options = BenchOptions { threads: 1, prompt_len: 512, decode_len: 32, sequences: 1 };
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("name a model file")?;
    while let Some(name) = arguments.next() {
        let value = arguments.next().and_then(|text| text.parse().ok()).ok_or(format!("{name} takes a number"))?;
        match name.as_str() {
            "--threads" => options.threads = value,
            "--prompt" => options.prompt_len = value,
            "--decode" => options.decode_len = value,
            "--sequences" => options.sequences = value,
            _ => return Err(format!("{name} is none of --threads, --prompt, --decode, --sequences")),
        }
    }
    let start = Instant::now();
    let model = Arc::new(Model::open(Path::new(&path)).map_err(|e| e.to_string())?);
    let open_ms = start.elapsed().as_secs_f64() * 1e3;
    let speed = measure(&model, options).map_err(|e| e.to_string())?;
    println!(
        "{{\"prefill\": {:.2}, \"decode\": {:.2}, \"step_bytes\": {}, \"read_gb_s\": {:.2}, \"share\": {:.3}, \
         \"open_ms\": {open_ms:.0}}}",
        speed.prefill_tokens_per_s,
        speed.decode_tokens_per_s,
        speed.step_bytes,
        speed.read_bytes_per_s / 1e9,
        speed.bandwidth_share(options.sequences),
    );
    Ok(())
}
