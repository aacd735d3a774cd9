//! What determinism costs in a lone row's matrix products, which is where an engine that is free to choose its order by the batch
//! would choose another: with one row there is the least to do in parallel, and the sums themselves can be split among threads.
//!
//! Both ways run the same kernels on the same number of threads. *Rows*: threads share the rows of the weight, as the engine has
//! it, and every sum is made by one thread. *Columns*: each thread makes all sums over its part of the columns, for which the weight lies
//! in parts here, contiguous, as suits this way best; then the parts are added.

use std::sync::Mutex;
use std::time::Instant;

use clap::Args;
use orchestratord_cpu::pool::WorkerPool;
use orchestratord_cpu::testing::{Dice, encode};
use orchestratord_cpu::{Activations, Buffer, Isa, TensorType, Weight, matmul};
use serde::Serialize;

#[derive(Args)]
pub struct Options {
    #[arg(long, default_value_t = 2)]
    pub threads: usize,
    /// Types of the weights, by name.
    #[arg(long, value_delimiter = ',', default_value = "Q8_0,Q4_0,BF16")]
    pub types: Vec<String>,
    #[arg(long, default_value_t = 2048)]
    pub embedding: usize,
    /// Length of keys and values.
    #[arg(long, default_value_t = 512)]
    pub kv: usize,
    #[arg(long, default_value_t = 8192)]
    pub ffn: usize,
    #[arg(long, default_value_t = 128_256)]
    pub vocab: usize,
    #[arg(long, default_value_t = 16)]
    pub layers: usize,
    /// Time for each product and way.
    #[arg(long, default_value_t = 300)]
    pub milliseconds: u64,
}

/// One product of a step.
#[derive(Serialize)]
struct Row {
    tensor_type: String,
    what: &'static str,
    outputs: usize,
    cols: usize,
    /// Times in a step.
    count: usize,
    /// Microseconds, medians.
    rows_us: f64,
    columns_us: f64,
}

/// Weight rows that are made; a matrix repeats them.
const MADE: usize = 16;

/// A step of a few products is too short for the caches of its neighbour; so weights are spread over at least so many bytes.
const SPREAD_BYTES: usize = 1 << 28;

/// Prints a list of rows as JSON.
///
/// # Errors
///
/// When a type is unknown, or a length does not suit it.
pub fn run(options: &Options) -> Result<(), String> {
    let Options { embedding, kv, ffn, vocab, layers, .. } = *options;
    let pool = WorkerPool::new(options.threads).map_err(|e| format!("threads: {e}"))?;
    let mut rows = Vec::new();
    for name in &options.types {
        let tensor_type = TensorType::all().find(|t| t.name() == name).ok_or_else(|| format!("no type {name}"))?;
        for (what, outputs, cols, count) in [
            ("key, value", kv, embedding, 2 * layers),
            ("query, output of attention", embedding, embedding, 2 * layers),
            ("gate, up", ffn, embedding, 2 * layers),
            ("down", embedding, ffn, layers),
            ("logits", vocab, embedding, 1),
        ] {
            let part_len = cols / options.threads;
            if !cols.is_multiple_of(options.threads) || !part_len.is_multiple_of(tensor_type.block_len()) {
                return Err(format!("{cols} columns of {name} cannot be shared by {} threads", options.threads));
            }
            let (rows_us, columns_us) = both(&pool, options, tensor_type, outputs, cols);
            rows.push(Row { tensor_type: name.clone(), what, outputs, cols, count, rows_us, columns_us });
        }
    }
    println!("{}", serde_json::to_string(&rows).expect("numbers and names are JSON"));
    Ok(())
}

/// The median of each way, turn about.
fn both(pool: &WorkerPool, options: &Options, tensor_type: TensorType, outputs: usize, cols: usize) -> (f64, f64) {
    let isa = Isa::detect()[0];
    let threads = options.threads;
    let mut dice = Dice::new(1);
    let mut weights = |cols: usize| {
        let values: Vec<f32> = (0..MADE * cols).map(|_| dice.unit()).collect();
        let made = encode(tensor_type, &values);
        let copies = (SPREAD_BYTES / threads).div_ceil(made.len() * outputs.div_ceil(MADE)).max(1);
        (made.repeat(outputs.div_ceil(MADE) * copies), copies)
    };
    let whole = weights(cols);
    let parts: Vec<_> = (0..threads).map(|_| weights(cols / threads)).collect();
    let weight = |(bytes, copies): &(Vec<u8>, usize), turn: usize, cols: usize| {
        let len = outputs * cols / tensor_type.block_len() * tensor_type.block_bytes();
        // Copies of the matrix follow each other, a few rows longer than it is.
        let start = turn % copies * (bytes.len() / copies);
        (start, start + len)
    };
    let (mut x, mut out) = (Buffer::zeros(cols), Buffer::zeros(outputs));
    x.fill_with(|| dice.unit());
    let alone = WorkerPool::new(1).expect("a pool of the caller's thread starts none");
    let own: Vec<_> = x
        .chunks(cols / threads)
        .map(|part| {
            let mut x = Buffer::zeros(part.len());
            x.copy_from_slice(part);
            Mutex::new((Activations::default(), x, Buffer::zeros(outputs)))
        })
        .collect();
    let mut scratch = Activations::default();
    let (mut by_rows, mut by_columns) = (Vec::new(), Vec::new());
    let began = Instant::now();
    let mut turn = 0;
    while turn < 5 || began.elapsed().as_millis() < 2 * u128::from(options.milliseconds) {
        turn += 1;
        let start = Instant::now();
        let (from, to) = weight(&whole, turn, cols);
        let bytes = &whole.0[from..to];
        matmul(pool, isa, &mut scratch, &mut out, &x, 1, &Weight { tensor_type, bytes, rows: outputs, cols });
        by_rows.push(start.elapsed().as_secs_f64() * 1e6);
        let start = Instant::now();
        pool.run(threads, 1, |range| {
            for index in range {
                let (scratch, x, out) = &mut *own[index].lock().expect("nothing panics under this lock");
                let (from, to) = weight(&parts[index], turn, x.len());
                let bytes = &parts[index].0[from..to];
                let part = Weight { tensor_type, bytes, rows: outputs, cols: x.len() };
                matmul(&alone, isa, scratch, out, x, 1, &part);
            }
        });
        for (index, part) in own.iter().enumerate() {
            let part = part.lock().expect("nothing panics under this lock");
            match index {
                0 => out.copy_from_slice(&part.2),
                _ => out.iter_mut().zip(part.2.iter()).for_each(|(sum, part)| *sum += part),
            }
        }
        by_columns.push(start.elapsed().as_secs_f64() * 1e6);
    }
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    (median(by_rows), median(by_columns))
}
