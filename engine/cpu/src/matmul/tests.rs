//! Both kernels, every tensor type and instruction set, against plain sums over decoded weights.

use std::ops::Range;

use super::*;
use crate::format::{Bf16, Floats, Integers, Rows, decode_floats, decode_integers, with_format};
use crate::pool::WorkerPool;
use crate::simd::{Isa, Portable};
use crate::testing::{Dice, encode};
use crate::{TensorType, Weight, matmul};

struct Case {
    tensor_type: TensorType,
    cols: usize,
    out_len: usize,
    rows: usize,
}

/// `[rows, out_len]`, with weights that begin at an odd address.
fn run(isa: Isa, threads: usize, case: &Case, weights: &[u8], x: &[f32]) -> Vec<f32> {
    let pool = WorkerPool::new(threads).expect("threads for a test");
    let mut moved = vec![0; weights.len() + 1];
    let start = 1 - moved.as_ptr().addr() % 2;
    moved[start..start + weights.len()].copy_from_slice(weights);
    let bytes = &moved[start..start + weights.len()];
    let mut out = vec![f32::NAN; case.rows * case.out_len];
    let weight = Weight { tensor_type: case.tensor_type, bytes, rows: case.out_len, cols: case.cols };
    matmul(&pool, isa, &mut Activations::default(), &mut out, x, case.rows, &weight);
    out
}

/// As `run`, with the kernel of pairs compiled from plain code.
fn pairs_in_plain_code(case: &Case, weights: &[u8], x: &[f32]) -> Vec<f32> {
    let pool = WorkerPool::new(1).expect("threads for a test");
    let mut out = vec![f32::NAN; case.rows * case.out_len];
    let row_bytes = weights.len() / case.out_len;
    let weight = Rows { format: Bf16, bytes: weights, row_bytes, cols: case.cols };
    matmul_pairs(&pool, Isa::Portable, &mut out, case.out_len, &mut Activations::default(), x, case.rows, weight);
    out
}

fn floats<F: Floats>(format: F, row: &[u8], out: &mut [f32]) {
    decode_floats(Portable, format, row, out);
}

fn integers<F: Integers>(format: F, row: &[u8], out: &mut [f32]) {
    decode_integers(Portable, format, row, out);
}

fn check(case: &Case, dice: &mut Dice) {
    let values: Vec<f32> = (0..case.out_len * case.cols).map(|_| dice.unit()).collect();
    let weights = encode(case.tensor_type, &values);
    let x: Vec<f32> = (0..case.rows * case.cols).map(|_| dice.unit() * 4.0).collect();
    let row_bytes = weights.len() / case.out_len;
    let mut decoded = vec![0.0; case.cols.next_multiple_of(512)];
    let portable = run(Isa::Portable, 1, case, &weights, &x);
    let whole_numbers =
        with_format!(case.tensor_type, format => floats { let _ = format; false }, integers { let _ = format; true });
    for o in 0..case.out_len {
        let row = &weights[o * row_bytes..][..row_bytes];
        with_format!(
            case.tensor_type,
            format => floats floats(format, row, &mut decoded),
            integers integers(format, row, &mut decoded)
        );
        for r in 0..case.rows {
            let x = &x[r * case.cols..][..case.cols];
            let (mut sum, mut most) = (0f64, 0f64);
            for (w, x) in decoded.chunks(32).zip(x.chunks(32)) {
                let largest = x.iter().fold(0f64, |a, x| a.max(f64::from(x.abs())));
                for (w, x) in w.iter().zip(x) {
                    let (w, x) = (f64::from(*w), f64::from(*x));
                    sum += w * x;
                    // Sums of floats, and half a word of activations that are 15 bits and a sign.
                    most += 3e-6 * (w * x).abs() + if whole_numbers { w.abs() * largest / 32_766.0 } else { 0.0 };
                }
            }
            let error = (f64::from(portable[r * case.out_len + o]) - sum).abs();
            assert!(error <= most, "{error} and not {most}: {} at {r}, {o}", case.tensor_type.name());
        }
    }
    let bits = |out: &[f32]| out.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
    let mut fused: Option<Vec<u32>> = None;
    for isa in Isa::detect() {
        let all = run(isa, 3, case, &weights, &x);
        let what = format!("{} on {}", case.tensor_type.name(), isa.name());
        // A row is the same alone, which takes another path.
        for r in 0..case.rows {
            let alone = Case { rows: 1, ..*case };
            let alone = run(isa, 1, &alone, &weights, &x[r * case.cols..][..case.cols]);
            assert_eq!(bits(&alone), bits(&all[r * case.out_len..][..case.out_len]), "{what}, row {r}");
        }
        match isa {
            Isa::Portable => assert_eq!(bits(&all), bits(&portable), "{what}"),
            _ if isa.multiplies_pairs() && case.tensor_type == TensorType::Bf16 => {
                // Plain code says what its products are.
                let plain = pairs_in_plain_code(case, &weights, &x);
                assert_eq!(bits(&all), bits(&plain), "{what}");
            }
            // Whoever rounds once rounds the same.
            _ => assert_eq!(*fused.get_or_insert(bits(&all)), bits(&all), "{what}"),
        }
    }
}

/// Interpreted, a product takes ten thousand times as long: one shape has a tile, a rest of one, and lone rows.
const BLOCKS: &[usize] = if cfg!(miri) { &[1] } else { &[1, 2, 3, 17, 33] };
const SHAPES: &[(usize, usize)] =
    if cfg!(miri) { &[(5, 2)] } else { &[(1, 1), (5, 2), (33, 3), (40, 7), (19, 16), (70, 50), (3, 130)] };

#[test]
fn every_type_and_shape_on_every_path() {
    let mut dice = Dice::new(11);
    for tensor_type in TensorType::all() {
        let unit = tensor_type.block_len();
        for &blocks in BLOCKS {
            let cols = match unit {
                1 => blocks * 20,
                32 => blocks * 32,
                // Larger ones make the same groups sooner.
                _ => blocks.div_ceil(8) * 256,
            };
            for &(out_len, rows) in SHAPES {
                check(&Case { tensor_type, cols, out_len, rows }, &mut dice);
            }
        }
    }
}

#[test]
fn the_largest_words_do_not_overflow() {
    // Q6_K with every scale -128 and every element -32, against activations that are all as large as they get.
    let mut block = vec![0; 210];
    block[192..208].fill(0x80);
    block[208..].copy_from_slice(&0x3c00u16.to_le_bytes());
    for (isa, rows) in Isa::detect().into_iter().flat_map(|isa| [(isa, 1), (isa, 3)]) {
        let case = Case { tensor_type: TensorType::Q6K, cols: 256, out_len: 1, rows };
        for out in run(isa, 1, &case, &block, &vec![1.0; 256 * rows]) {
            assert!((out / (256.0 * 4096.0) - 1.0).abs() < 1e-6, "{out} on {}", isa.name());
        }
    }
}

#[test]
fn the_largest_bytes_do_not_overflow() {
    // Q8_0 with every element -128: the byte that is larger by 128 is 0, and the offset the largest there is. Then 127.
    for (element, x) in [(-128i8, 1.0), (-128, -1.0), (127, 1.0), (127, -1.0)] {
        let mut block = 0x3c00u16.to_le_bytes().to_vec();
        block.resize(34, element as u8);
        for (isa, rows) in Isa::detect().into_iter().flat_map(|isa| [(isa, 1), (isa, 16), (isa, 100)]) {
            let case = Case { tensor_type: TensorType::Q8_0, cols: 32, out_len: 1, rows };
            for out in run(isa, 1, &case, &block, &vec![x; 32 * rows]) {
                let wanted = 32.0 * f32::from(element) * x;
                assert!((out / wanted - 1.0).abs() < 1e-6, "{out} and not {wanted} on {}", isa.name());
            }
        }
    }
}

#[test]
fn pairs_are_the_sums_of_rounded_activations() {
    // Independent of any kernel: rounded by arithmetic on the numbers, and summed in f64.
    let mut dice = Dice::new(13);
    for (cols, out_len, rows) in
        if cfg!(miri) { &[(33, 2, 2)][..] } else { &[(20, 3, 1), (1100, 40, 1), (2080, 37, 29)] }
    {
        let case = Case { tensor_type: TensorType::Bf16, cols: *cols, out_len: *out_len, rows: *rows };
        let values: Vec<f32> = (0..out_len * cols).map(|_| dice.unit()).collect();
        let weights = encode(TensorType::Bf16, &values);
        let x: Vec<f32> = (0..rows * cols).map(|_| dice.unit() * 4.0).collect();
        for (r, out) in pairs_in_plain_code(&case, &weights, &x).chunks_exact(*out_len).enumerate() {
            for (o, out) in out.iter().enumerate() {
                let (mut sum, mut most) = (0f64, 0f64);
                for (w, x) in weights[o * 2 * cols..].as_chunks::<2>().0.iter().zip(&x[r * cols..][..*cols]) {
                    let w = f64::from(f32::from_bits(u32::from(u16::from_le_bytes(*w)) << 16));
                    // Eight bits, the first of them counted: the step between two neighbours of x.
                    let step = 2f64.powi(f64::from(*x).abs().log2().floor() as i32 - 7);
                    let rounded = (f64::from(*x) / step).round_ties_even() * step;
                    sum += w * rounded;
                    most += 3e-6 * (w * rounded).abs();
                }
                let error = (f64::from(*out) - sum).abs();
                assert!(error <= most, "{error} and not {most} at {r}, {o} of {cols} columns");
            }
        }
    }
}

#[test]
fn a_row_is_the_same_among_however_many() {
    // All rests of tiles and blocks, and where one path ends and the next begins.
    const MOST: usize = if cfg!(miri) { 3 } else { 70 };
    let out_len = if cfg!(miri) { 2 } else { 35 };
    let mut dice = Dice::new(12);
    for tensor_type in [
        TensorType::Q4_0,
        TensorType::Q4K,
        TensorType::Q8_0,
        TensorType::Q6K,
        TensorType::Bf16,
        TensorType::F32,
        TensorType::F8,
        TensorType::Q2K,
    ] {
        let cols = tensor_type.block_len().max(32) * 3;
        let values: Vec<f32> = (0..out_len * cols).map(|_| dice.unit()).collect();
        let weights = encode(tensor_type, &values);
        let x: Vec<f32> = (0..MOST * cols).map(|_| dice.unit()).collect();
        for isa in Isa::detect() {
            let of_rows = |rows: Range<usize>| {
                let case = Case { tensor_type, cols, out_len, rows: rows.len() };
                let out = run(isa, 1, &case, &weights, &x[rows.start * cols..rows.end * cols]);
                out.iter().map(|x| x.to_bits()).collect::<Vec<u32>>()
            };
            let alone: Vec<u32> = (0..MOST).flat_map(|r| of_rows(r..r + 1)).collect();
            for rows in 2..=MOST {
                let what = format!("{rows} rows of {} on {}", tensor_type.name(), isa.name());
                assert_eq!(of_rows(0..rows), alone[..rows * out_len], "{what}");
            }
        }
    }
}

#[test]
fn the_next_row_of_weights_does_not_matter() {
    // Rows that end within a group are read beyond their end, where the next one's scales may be no numbers.
    for tensor_type in TensorType::all() {
        let (cols, count) = (tensor_type.block_len().max(32) * 3, 3);
        let values: Vec<f32> = (0..count * cols).map(|i| (i % 7) as f32 - 3.0).collect();
        let weights = encode(tensor_type, &values);
        let row_bytes = weights.len() / count;
        let mut spoiled = weights.clone();
        spoiled[row_bytes..].fill(0xff);
        let counts: &[usize] = if cfg!(miri) { &[1] } else { &[1, 2, 3, 12] };
        for (isa, rows) in Isa::detect().into_iter().flat_map(|isa| counts.iter().map(move |rows| (isa, *rows))) {
            let case = Case { tensor_type, cols, out_len: count, rows };
            let x: Vec<f32> = (0..rows * cols).map(|i| (i % 5) as f32 - 1.5).collect();
            let (clean, spoiled) = (run(isa, 1, &case, &weights, &x), run(isa, 1, &case, &spoiled, &x));
            for r in 0..rows {
                let (clean, spoiled) = (clean[r * count], spoiled[r * count]);
                assert_eq!(clean.to_bits(), spoiled.to_bits(), "{} on {}", tensor_type.name(), isa.name());
            }
        }
    }
}
