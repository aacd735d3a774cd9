//! Times one matrix product, weights as they lie in a file: `matmul TYPES ROWS COLS OUTPUTS [THREADS [ISA]]`, for
//! instance `cargo run --release -p orchestratord-cpu --example matmul -- Q4_0,Q8_0 1 2048 65536`. With one row it is the
//! bytes per second that count, with many the products. Without an ISA it is the best that the processor has.

use std::time::{Duration, Instant};

use orchestratord_cpu::pool::WorkerPool;
use orchestratord_cpu::testing::{Dice, encode};
use orchestratord_cpu::{Activations, Buffer, Isa, TensorType, Weight, matmul};

/// Weight rows that are made; the matrix repeats them.
const MADE: usize = 16;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [types, rows, cols, outputs, rest @ ..] = &arguments[..] else {
        return Err(
            "it takes TYPES ROWS COLS OUTPUTS [THREADS [ISA]], the types by their names and commas between them".into(),
        );
    };
    let (rows, cols, outputs) = (rows.parse::<usize>()?, cols.parse::<usize>()?, outputs.parse::<usize>()?);
    let pool = WorkerPool::new(rest.first().map_or(Ok(1), |text| text.parse())?)?;
    let isas = Isa::detect();
    let isa = match rest.get(1) {
        None => isas[0],
        Some(name) => Isa::named(name).ok_or_else(|| {
            let names: Vec<&str> = isas.iter().map(|isa| isa.name()).collect();
            format!("this processor has no {name}, but {}", names.join(", "))
        })?,
    };
    println!("{}: {rows} rows of {cols} times {outputs} outputs", isa.name());
    for name in types.split(',') {
        let tensor_type =
            TensorType::all().find(|t| t.name() == name).ok_or_else(|| format!("there is no tensor type {name}"))?;
        if !cols.is_multiple_of(tensor_type.block_len()) || !outputs.is_multiple_of(MADE) {
            return Err(format!("{name} takes columns by {} and outputs by {MADE}", tensor_type.block_len()).into());
        }
        let mut dice = Dice::new(1);
        let values: Vec<f32> = (0..MADE * cols).map(|_| dice.unit()).collect();
        let bytes = encode(tensor_type, &values).repeat(outputs / MADE);
        let weight = Weight { tensor_type, bytes: &bytes, rows: outputs, cols };
        let (mut x, mut out) = (Buffer::zeros(rows * cols), Buffer::zeros(rows * outputs));
        x.fill_with(|| dice.unit());
        let mut scratch = Activations::default();
        let (start, mut times) = (Instant::now(), Vec::new());
        while times.len() < 5 || start.elapsed() < Duration::from_secs(1) {
            let start = Instant::now();
            matmul(&pool, isa, &mut scratch, &mut out, &x, rows, &weight);
            times.push(start.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];
        let products = (rows * cols * outputs) as f64;
        println!(
            "{name:7} {:7.2} GB/s {:8.1} G products/s",
            bytes.len() as f64 / median / 1e9,
            products / median / 1e9
        );
    }
    Ok(())
}
