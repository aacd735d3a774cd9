//! Products on tensor cores, on the emulated device: the fragments of one instruction against a plain product, then whole
//! models in steps of every size that has a kernel of its own.

mod common;
mod emulator;

use std::collections::BTreeSet;
use std::sync::Arc;

use common::{engine, model, tokens};
use emulator::{Emulator, device, with_processors};
use orchestratord_engine::backend::cuda::{Arguments, CudaBackend, Device, Use};
use orchestratord_engine::gguf::TensorType;
use orchestratord_engine::testing::{Dice, TinyModel, half_cells_error_max};
use orchestratord_engine::{Engine, EngineOptions, Model};

/// Runs a kernel of `engine/kernels/emulator/fragments.cpp` on one warp: what becomes of `c`, words by lanes.
fn show(device: &Emulator, kernel: &'static str, c: &[u32], a: &[u32], b: &[u32]) -> Vec<u32> {
    let upload = |words: &[u32]| {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let address = device.alloc(bytes.len(), Use::Workspace).expect("room");
        device.upload(address, &bytes).expect("it does not fail");
        address
    };
    let places = [c, a, b].map(upload);
    let arguments = places.into_iter().fold(Arguments::new(), Arguments::pointer);
    device.launch(kernel, [1, 1, 1], 32, 0, &arguments).expect("the kernel is there");
    let mut bytes = vec![0; c.len() * 4];
    device.download(places[0], &mut bytes).expect("it does not fail");
    for (address, words) in places.into_iter().zip([c, a, b]) {
        device.free(address, words.len() * 4);
    }
    bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

/// Where element `i` of a lane's fragment lies, `[row, column]`: the formulas of the PTX ISA as they are written there, with
/// `group` for groupID and `t` for threadID_in_group.
type Place = fn(group: usize, t: usize, i: usize) -> [usize; 2];

struct Shape {
    kernel: &'static str,
    len: usize,
    /// Bits of an element.
    bits: usize,
    a: Place,
    b: Place,
}

const SHAPES: [Shape; 3] = [
    Shape {
        kernel: "show_mma_bytes_32",
        len: 32,
        bits: 8,
        a: |group, t, i| {
            let row = if i < 4 || (8..12).contains(&i) { group } else { group + 8 };
            [row, t * 4 + (i & 3) + if i < 8 { 0 } else { 16 }]
        },
        b: |group, t, i| [t * 4 + (i & 3) + if i < 4 { 0 } else { 16 }, group],
    },
    Shape {
        kernel: "show_mma_bytes_16",
        len: 16,
        bits: 8,
        a: |group, t, i| [if i < 4 { group } else { group + 8 }, t * 4 + (i & 3)],
        b: |group, t, i| [t * 4 + i, group],
    },
    Shape { kernel: "show_multiply_f16", len: 16, bits: 16, a: place_of_a_16, b: place_of_b_16 },
];

/// `A` of sixteen elements of two bytes.
fn place_of_a_16(group: usize, t: usize, i: usize) -> [usize; 2] {
    let row = if i < 2 || (4..6).contains(&i) { group } else { group + 8 };
    [row, t * 2 + (i & 1) + if i < 4 { 0 } else { 8 }]
}

/// `B` of those.
fn place_of_b_16(group: usize, t: usize, i: usize) -> [usize; 2] {
    [t * 2 + (i & 1) + if i < 2 { 0 } else { 8 }, group]
}

/// `C` of every shape.
fn place_of_c(group: usize, t: usize, i: usize) -> [usize; 2] {
    [if i < 2 { group } else { group + 8 }, t * 2 + (i & 1)]
}

/// Fragments of a matrix, words by lanes; `element` gives the bits at a row and column.
fn fragments(place: Place, words: usize, bits: usize, element: impl Fn([usize; 2]) -> u32) -> Vec<u32> {
    let of_word = 32 / bits;
    let word = |lane: usize, word: usize| {
        (0..of_word).fold(0, |all, i| all | element(place(lane / 4, lane % 4, word * of_word + i)) << (i * bits))
    };
    (0..32).flat_map(|lane| (0..words).map(move |w| (lane, w))).map(|(lane, w)| word(lane, w)).collect()
}

/// A whole number below 2048 as f16.
fn f16_bits(x: i32) -> u16 {
    let sign = if x < 0 { 0x8000 } else { 0 };
    match x.unsigned_abs() {
        0 => sign,
        magnitude => {
            let exponent = magnitude.ilog2();
            sign | ((exponent + 15) << 10 | (magnitude << (10 - exponent)) & 1023) as u16
        }
    }
}

#[test]
fn a_warps_fragments_are_those_of_the_instruction_set() {
    let Some(device) = device(5) else { return };
    let mut dice = Dice::new(1);
    for Shape { kernel, len, bits, a, b } in SHAPES {
        // Whole numbers, so that sums of f16 are exact, too.
        let a_elements: Vec<i32> = (0..16 * len).map(|_| dice.below(255) as i32 - 127).collect();
        let b_elements: Vec<i32> = (0..len * 8).map(|_| dice.below(255) as i32 - 127).collect();
        let c_elements: Vec<i32> = (0..16 * 8).map(|_| dice.below(2000) as i32 - 1000).collect();
        let as_bits = |x: i32| if bits == 8 { u32::from(x as u8) } else { u32::from(f16_bits(x)) };
        let as_sum = |x: i32| if bits == 8 { x as u32 } else { (x as f32).to_bits() };
        let got = show(
            &device,
            kernel,
            &fragments(place_of_c, 4, 32, |[row, column]| as_sum(c_elements[row * 8 + column])),
            &fragments(a, 16 * len * bits / 1024, bits, |[row, k]| as_bits(a_elements[row * len + k])),
            &fragments(b, 8 * len * bits / 1024, bits, |[k, column]| as_bits(b_elements[k * 8 + column])),
        );
        let wanted = fragments(place_of_c, 4, 32, |[row, column]| {
            let products = (0..len).map(|k| a_elements[row * len + k] * b_elements[k * 8 + column]);
            as_sum(products.sum::<i32>() + c_elements[row * 8 + column])
        });
        assert!(got == wanted, "{kernel}");
    }
}

/// Records of eight rows and 64 elements, as `engine/kernels/formats.cuh` says: chunks of sixteen bytes of 32 lanes, then scales.
const RECORD_BYTES: usize = 1056;

/// What an element of a record stands for, by the formula of B.
fn whole(record: &[u8], row: usize, k: usize) -> f64 {
    let (unit, k) = (k / 16, k % 16);
    let (word, t) = (k / 8, k % 8 / 2);
    let at = unit / 2 * 512 + (row * 4 + t) * 16 + (unit % 2 * 2 + word) * 4 + k % 2 * 2;
    let half = f64::from(half_to_f32(u16::from_le_bytes([record[at], record[at + 1]])));
    let scale: [u8; 4] = record[1024 + row * 4..][..4].try_into().expect("four bytes");
    half * f64::from(f32::from_le_bytes(scale))
}

fn half_to_f32(half: u16) -> f32 {
    let (exponent, fraction) = (i32::from(half >> 10 & 31), f32::from(half & 1023));
    let magnitude = match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction > 0.0 => f32::NAN,
        31 => f32::INFINITY,
        _ => (1024.0 + fraction) * 2f32.powi(exponent - 25),
    };
    if half >> 15 == 1 { -magnitude } else { magnitude }
}

/// Numbers of any size, beyond all that f16 has, beside each other and alone.
#[test]
fn activations_lose_no_more_than_a_half_rounds_whatever_their_size() {
    let Some(device) = device(11) else { return };
    let mut dice = Dice::new(12);
    let (rows, cols) = (10_usize, 150_usize);
    let stages = cols.div_ceil(64);
    // By row: powers of two that its elements are multiplied with.
    let spans = [
        [0, 0],
        [100, 126],
        [-149, -120],
        [-40, 40],
        [-149, 126],
        [10, 17],
        [-24, -10],
        [-130, -110],
        [0, 20],
        [-60, -59],
    ];
    let mut values: Vec<f32> = Vec::new();
    for [least, most] in spans {
        values.extend((0..cols).map(|_| {
            let power = least + dice.below((most - least + 1) as usize) as i32;
            (f64::from(dice.below(1 << 24) as u32) / f64::from(1 << 23) - 1.0) as f32 * 2f64.powi(power) as f32
        }));
    }
    (values[2], values[3 * cols + 70]) = (f32::MAX, f32::MIN_POSITIVE);
    (values[6 * cols + 1], values[5 * cols + 149]) = (f32::INFINITY, f32::NAN);
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let from = device.alloc(bytes.len(), Use::Workspace).expect("room");
    device.upload(from, &bytes).expect("it does not fail");
    let mut records = vec![0; rows.div_ceil(8) * stages * RECORD_BYTES];
    let to = device.alloc(records.len(), Use::Workspace).expect("room");
    let arguments = Arguments::new().pointer(to).pointer(from).int(cols).int(stages);
    let grid = [stages.div_ceil(4) as u32, rows as u32, 1];
    device.launch("halve", grid, 128, 0, &arguments).expect("the kernel is there");
    device.download(to, &mut records).expect("it does not fail");
    for (row, values) in values.chunks(cols).enumerate() {
        for (stage, values) in values.chunks(64).enumerate() {
            let record = &records[(row / 8 * stages + stage) * RECORD_BYTES..][..RECORD_BYTES];
            let largest = values.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
            let finite = values.iter().all(|x| x.is_finite());
            for k in 0..64 {
                let (x, got) = (values.get(k).copied().unwrap_or(0.0), whole(record, row % 8, k));
                let lost = (got - f64::from(x)).abs();
                // Of numbers that are all tiny, 2^-151 is lost.
                let may = (f64::from(x.abs()) * 2f64.powi(-11)).max(f64::from(largest) * 2f64.powi(-39));
                match finite {
                    true => assert!(lost <= may.max(2f64.powi(-151)), "row {row}: {x:e} became {got:e}"),
                    false => assert!(x.is_finite() || !got.is_finite(), "row {row}: {x} became {got}"),
                }
            }
        }
    }
    device.free(from, bytes.len());
    device.free(to, records.len());
}

/// One tile of f16 and rows of every size against sums of exact products of what records hold: only `f32` sums round.
#[test]
fn products_of_halves_are_those_of_floats_whatever_the_size_of_activations() {
    let Some(device) = device(13) else { return };
    let mut dice = Dice::new(14);
    let (rows, outputs, cols, stages) = (8, 16, 320, 5);
    // Numbers of f16 of every exponent; some have no leading one.
    let halves: Vec<u16> = (0..outputs * cols).map(|_| (dice.below(31) << 10 | dice.below(1024)) as u16).collect();
    let halves: Vec<u16> = halves.iter().map(|half| half | (dice.below(2) as u16) << 15).collect();
    let scales: Vec<f32> = (0..outputs).map(|output| 2f32.powi(output as i32 * 3 - 20)).collect();
    let weight = |output: usize, k: usize| f64::from(half_to_f32(halves[output * cols + k]) * scales[output]);
    let mut tile = vec![0; stages * 4 * 512];
    for output in 0..outputs {
        for k in 0..cols {
            // Word i of a lane has row g + 8 * (i & 1), elements 2 * t + 8 * (i >> 1) and the next one, of sixteen.
            let (word, t) = (output / 8 + k % 16 / 8 * 2, k % 8 / 2);
            let at = k / 16 * 512 + (output % 8 * 4 + t) * 16 + word * 4 + k % 2 * 2;
            tile[at..at + 2].copy_from_slice(&halves[output * cols + k].to_le_bytes());
        }
    }
    // What a row's elements are multiplied with.
    let powers = [80, -80, 17, 0, 1, -1, 40, -40];
    let values: Vec<f32> = (0..rows * cols)
        .map(|at| {
            let power = powers[at / cols] + if at / cols == 2 { 20 - dice.below(40) as i32 } else { 0 };
            (dice.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0) * 2f32.powi(power)
        })
        .collect();
    let bytes_of = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let (weights, x) = (uploaded(&device, &tile), uploaded(&device, &bytes_of(&values)));
    let weight_scales = uploaded(&device, &bytes_of(&scales));
    let records_len = stages * RECORD_BYTES;
    let (records, out) = (uploaded(&device, &vec![0; records_len]), uploaded(&device, &vec![0; rows * outputs * 4]));
    let arguments = Arguments::new().pointer(records).pointer(x).int(cols).int(stages);
    device.launch("halve", [2, rows as u32, 1], 128, 0, &arguments).expect("the kernel is there");
    let mut words = [0; 22];
    words[..6].copy_from_slice(&[out, 0, weights, weight_scales, stages as u64, outputs as u64]);
    (words[18], words[21]) = (records, rows as u64);
    let shared = 3 * 8 * (2048 + RECORD_BYTES);
    let arguments = Arguments::new().structure(&words);
    device.launch("few_f16_1", [1, 1, 1], 256, shared, &arguments).expect("the kernel is there");
    let got = taken(&device, out, rows * outputs * 4);
    let got: Vec<f32> = got.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let records = taken(&device, records, records_len);
    for row in 0..rows {
        for output in 0..outputs {
            let of_record = |k: usize| whole(&records[k / 64 * RECORD_BYTES..][..RECORD_BYTES], row, k % 64);
            let products = (0..cols).map(|k| weight(output, k) * of_record(k));
            let (wanted, sizes) = products.fold((0.0, 0.0), |(sum, sizes), p| (sum + p, sizes + p.abs()));
            let off = (f64::from(got[row * outputs + output]) - wanted).abs();
            assert!(off <= sizes * 2f64.powi(-21), "row {row}, output {output}: {off:e} of {sizes:e}");
        }
    }
    for (address, len) in [(weights, tile.len()), (x, values.len() * 4), (weight_scales, 64)] {
        device.free(address, len);
    }
}

/// Memory of a device that holds these bytes.
fn uploaded(device: &Emulator, bytes: &[u8]) -> u64 {
    let address = device.alloc(bytes.len(), Use::Workspace).expect("room");
    device.upload(address, bytes).expect("it does not fail");
    address
}

/// Gives memory back: what it held.
fn taken(device: &Emulator, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    device.download(address, &mut bytes).expect("it does not fail");
    device.free(address, len);
    bytes
}

/// Rows of random numbers, some of them extreme; of `at` on there is a row of zeros, and others with what is infinite, no number,
/// or so small that its square is nothing.
fn rows_of(dice: &mut Dice, rows: usize, cols: usize, at: usize) -> Vec<f32> {
    let mut x: Vec<f32> = (0..rows * cols).map(|_| (dice.below(2001) as f32 - 1000.0) / 300.0).collect();
    for row in at..rows {
        let row_of = &mut x[row * cols..(row + 1) * cols];
        match (row - at) % 9 {
            0 => row_of.fill(0.0),
            1 => row_of[cols / 2] = f32::INFINITY,
            2 => row_of[cols - 1] = f32::NEG_INFINITY,
            3 => row_of[cols / 3] = f32::NAN,
            4 => row_of.iter_mut().for_each(|x| *x *= 1e-38),
            5 => row_of.iter_mut().for_each(|x| *x *= 1e-42),
            6 => row_of.iter_mut().for_each(|x| *x *= 1e30),
            // Units of which some are zero, and numbers of many sizes.
            7 => row_of.iter_mut().enumerate().for_each(|(i, x)| *x *= if i / 32 % 2 == 0 { 0.0 } else { 1e20 }),
            _ => row_of.iter_mut().enumerate().for_each(|(i, x)| *x *= 10f32.powi(i as i32 % 60 - 30)),
        }
    }
    x
}

/// What makes records of its rows leaves the bits that it and `quantise` or `halve` leave one after the other, whether rows
/// end within a stage or not, in any order of threads.
#[test]
fn records_beside_the_rows_are_those_of_a_kernel_of_their_own() {
    let Some(_) = device(0) else { return };
    let mut dice = Dice::new(3);
    let bytes_of = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    // Of an odd length, and longer than stays in registers, in `halve` alone; 8192 and more is what registers do not hold.
    let shapes = [
        (1, 32),
        (3, 96),
        (70, 160),
        (5, 288),
        (2, 4096 + 32),
        (12, 1024),
        (1, 8192 + 96),
        (1, 16384),
        (6, 77),
        (11, 130),
    ];
    let kinds: [(&str, [&str; 4], [usize; 3]); 2] = [
        ("quantise", ["rms_norm_words", "add_rms_norm_words", "silu_mul_words", "gelu_mul_words"], [128, 4, 1280]),
        ("halve", ["rms_norm_halves", "add_rms_norm_halves", "silu_mul_halves", "gelu_mul_halves"], [64, 8, 1056]),
    ];
    for (seed, (rows, cols)) in shapes.into_iter().enumerate() {
        let device = device(seed as u64).expect("as before");
        // A single row is an ordinary one.
        let x = bytes_of(&rows_of(&mut dice, rows, cols, 1));
        // Two numbers that are none have no order that devices agree about.
        let y = bytes_of(&rows_of(&mut dice, rows, cols, rows));
        let weight = bytes_of(&rows_of(&mut dice, 1, cols, 1));
        let eps = [1e-5, 0.0, 1e-12, 10.0][seed % 4];
        for (apart, beside, [stage_len, record_rows, record_bytes]) in kinds {
            if apart == "quantise" && cols % 32 != 0 {
                continue;
            }
            let stages = cols.div_ceil(stage_len);
            let records_len = rows.div_ceil(record_rows) * stages * record_bytes;
            for (index, plain) in ["rms_norm", "add_rms_norm", "silu_mul", "gelu_mul"].into_iter().enumerate() {
                let run = |fused: bool| {
                    let [x_at, y_at, weight_at] = [&x, &y, &weight].map(|bytes| uploaded(&device, bytes));
                    let records = uploaded(&device, &vec![0xab; records_len]);
                    let launch = |kernel, grid, threads, shared, arguments: Arguments| {
                        device.launch(kernel, grid, threads, shared, &arguments).expect("the kernel is there");
                    };
                    let kernel = if fused { beside[index] } else { plain };
                    let stages_grid = [stages.div_ceil(4) as u32, rows as u32, 1];
                    let arguments = Arguments::new().pointer(x_at).pointer(y_at);
                    let with_records = |arguments: Arguments| match fused {
                        true => arguments.pointer(records),
                        false => arguments,
                    };
                    if index < 2 {
                        let arguments = with_records(arguments.pointer(weight_at).int(cols).float(eps));
                        let threads = cols.div_ceil(4).next_multiple_of(32).min(1024) as u32;
                        launch(kernel, [rows as u32, 1, 1], threads, if fused { cols * 4 } else { 0 }, arguments);
                    } else if fused {
                        launch(kernel, stages_grid, 128, 0, with_records(arguments.int(cols)));
                    } else {
                        let blocks = (rows * cols).div_ceil(256) as u32;
                        launch(kernel, [blocks, 1, 1], 256, 0, arguments.int(rows * cols));
                    }
                    if !fused {
                        let rows_at = if index == 1 { y_at } else { x_at };
                        let arguments = Arguments::new().pointer(records).pointer(rows_at).int(cols).int(stages);
                        launch(apart, stages_grid, 128, 0, arguments);
                    }
                    device.free(weight_at, weight.len());
                    [(x_at, x.len()), (y_at, y.len()), (records, records_len)]
                        .map(|(address, len)| taken(&device, address, len))
                };
                let (got, wanted) = (run(true), run(false));
                assert!(wanted[2].iter().any(|byte| *byte != 0xab));
                for (part, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
                    let first = got.iter().zip(wanted).position(|(g, w)| g != w);
                    assert_eq!(first, None, "{} of {rows} x {cols}: x, y or records: {part}", beside[index]);
                }
            }
        }
    }
}

fn forward(device: Arc<Emulator>, model: &Arc<Model>, prompt: &[u32], rows: usize) -> Vec<f32> {
    // A step of `forward_logits` has as many rows as there are slots.
    let options =
        EngineOptions { slots_max: rows, step_rows_max: rows, kv_blocks_max: 128, ..EngineOptions::default() };
    let mut engine = Engine::on_backend(model.clone(), options, CudaBackend::new(device)).expect("legal options");
    engine.forward_logits(prompt).expect("it does not fail")
}

/// A small device is given larger tiles, a large one a block for each segment, so that every kernel has its turn; odd seeds copy
/// at once, even ones when they must.
#[test]
fn rows_have_the_same_bits_in_steps_of_any_size_and_by_any_kernel() {
    let Some(_) = device(0) else { return };
    let ragged = TinyModel { embedding_length: 48, feed_forward_length: 72, head_len: 10, ..TinyModel::default() };
    let narrow = TinyModel { embedding_length: 96, feed_forward_length: 160, vocab_len: 277, ..TinyModel::default() };
    let wide = TinyModel { embedding_length: 256, feed_forward_length: 256, head_len: 8, ..TinyModel::default() };
    let kinds = [
        TinyModel { tensor_type: TensorType::Bf16, ..ragged.clone() },
        TinyModel { tensor_type: TensorType::F16, ..ragged },
        TinyModel { tensor_type: TensorType::Q8_0, biases: true, architecture: "qwen2", ..narrow.clone() },
        TinyModel { tensor_type: TensorType::Q4_0, ..narrow },
        TinyModel { tensor_type: TensorType::Q4K, ..wide.clone() },
        TinyModel { tensor_type: TensorType::Q6K, ..wide.clone() },
        TinyModel { tensor_type: TensorType::F8, ..wide.clone() },
        TinyModel { tensor_type: TensorType::Q5K, ..wide },
    ];
    for (index, tiny) in kinds.into_iter().enumerate() {
        let tiny = TinyModel { layer_count: 1, context_length: 256, ..tiny };
        let model = model(tiny.to_bytes());
        let len = if index == 0 { 150 } else { 70 };
        let prompt = tokens(&mut Dice::new(index as u64), len, tiny.vocab_len);
        let wanted = engine(&model, |_| ()).forward_logits(&prompt).expect("the CPU does not fail");
        let mut launched = BTreeSet::new();
        let mut first: Option<Vec<u32>> = None;
        let steps =
            [(128, 1), (1, 132), (3, 3), (8, 1), (9, 132), (17, 3), (33, 132), (64, 132), (64, 1), (65, 4), (80, 132)];
        for (step, (rows, processors)) in steps.into_iter().enumerate() {
            // What is read by every size is shown by the first kind; the others have each kernel once.
            if index > 0 && ![128, 3, 8, 9, 64, 65].contains(&rows) {
                continue;
            }
            // One row a step is many launches; a part of the prompt shows as much.
            let part = &prompt[..if rows < 9 { 16 } else { prompt.len() }];
            let device = with_processors(step as u64, processors).expect("as before");
            let got = forward(device.clone(), &model, part, rows);
            launched.extend(device.launched());
            let error_max = half_cells_error_max(&wanted);
            let far = got.iter().zip(&wanted).any(|(g, w)| f64::from((g - w).abs()) > error_max || g.is_nan());
            assert!(!far, "steps of {rows}: {tiny:?}");
            let bits: Vec<u32> = got.iter().map(|x| x.to_bits()).collect();
            let first = first.get_or_insert_with(|| bits.clone());
            assert!(first.starts_with(&bits), "steps of {rows} have other bits: {tiny:?}");
        }
        let of = |prefix: &str| launched.iter().filter(|kernel| kernel.starts_with(prefix)).count();
        let layouts = launched.iter().filter(|kernel| kernel.starts_with("few_") && kernel.ends_with("_1")).count();
        assert_eq!([of("few_"), of("many_")], [2 * layouts, 3 * layouts], "each kernel has its turn: {launched:?}");
    }
}
