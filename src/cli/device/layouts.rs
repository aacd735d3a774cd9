//! `device` alone: every layout of weights and ragged shapes, held against the CPU.

use std::io::Write;
use std::sync::Arc;

use clap::{Arg, ArgAction, ArgMatches, Command};
use orchestratord_engine::backend::Backend;
use orchestratord_engine::backend::cuda::engine_on;
use orchestratord_engine::gguf::TensorType;
use orchestratord_engine::testing::{Dice, TinyModel, half_cells_error_max};
use orchestratord_engine::{Engine, EngineOptions, Model};
use sha2::{Digest, Sha256};

use crate::cli::Failure;

pub fn with_arguments(command: Command) -> Command {
    let few =
        Arg::new("few").long("few").action(ArgAction::SetTrue).help("a few cases only: for slow, emulated devices");
    super::with_kernels(command)
        .after_help(
            "A line a case: the largest difference of logits from the CPU's, the first digits of the SHA-256 of all logits' \
             bits, which must not depend on how a prompt is cut into steps, and those of the first token's logits, which \
             sees one cell: but for weights of bf16, f16 and FP8 they are the same on all devices. Exit code 1 when a case fails.",
        )
        .arg(few)
}

/// A model to try, and what is particular about it.
struct Case {
    name: String,
    tiny: TinyModel,
    prompt_len: usize,
}

/// Every layout, ragged shapes, every grouping of heads, and contexts of several pieces of attention.
fn cases(few: bool) -> Vec<Case> {
    let base = TinyModel { context_length: 1024, ..TinyModel::default() };
    let case = |name: &str, prompt_len, tiny| Case { name: name.to_owned(), tiny, prompt_len };
    let ragged = TinyModel { embedding_length: 48, feed_forward_length: 72, head_len: 10, ..base.clone() };
    let wide =
        TinyModel { embedding_length: 256, feed_forward_length: 768, head_len: 128, layer_count: 1, ..base.clone() };
    let mut all = vec![
        case("ragged-f32", 5, TinyModel { tensor_type: TensorType::F32, ..ragged.clone() }),
        case("ragged-bf16", 5, TinyModel { tensor_type: TensorType::Bf16, untied: true, ..ragged }),
        case("biases", 5, TinyModel { architecture: "qwen2", biases: true, head_count_kv: 1, ..base.clone() }),
    ];
    if few {
        return all;
    }
    all.push(case("heads-of-their-own", 9, TinyModel { head_count_kv: 4, untied: true, ..base.clone() }));
    all.push(case(
        "six-heads-of-one",
        9,
        TinyModel { head_count: 6, head_count_kv: 1, rope_factors: true, ..base.clone() },
    ));
    let long = TinyModel { head_count: 10, head_count_kv: 1, layer_count: 1, ..base };
    all.push(case("long-context", 530, long));
    all.extend(TensorType::all().map(|tensor_type| {
        case(&format!("wide-{}", tensor_type.name().to_lowercase()), 150, TinyModel { tensor_type, ..wide.clone() })
    }));
    all
}

pub fn run(arguments: &ArgMatches) -> Result<(), Failure> {
    let device = super::found(arguments)?;
    let found = &device.0;
    let mut out = std::io::stdout().lock();
    let (major, minor) = found.capability;
    writeln!(out, "# {}, compute capability {major}.{minor}, driver for CUDA {}", found.name, found.driver_version)
        .map_err(Failure::output)?;
    let mut failed = 0;
    for (index, Case { name, tiny, prompt_len }) in cases(arguments.get_flag("few")).into_iter().enumerate() {
        let model = Arc::new(Model::from_vec(tiny.to_bytes()).map_err(Failure::failed)?);
        let mut dice = Dice::new(index as u64);
        let prompt: Vec<u32> = (0..prompt_len).map(|_| 5 + dice.below(tiny.vocab_len - 5) as u32).collect();
        let wanted = logits(Engine::new(model.clone(), options(4)), &prompt).map_err(Failure::Failed)?;
        let mut bits: Vec<String> = Vec::new();
        let (mut error, mut first_bits) = (0f64, String::new());
        // Steps of so many rows that each kernel has its turn, as long as the prompt has them.
        for rows in [1, 4, 16, 64, 150].into_iter().filter(|rows| *rows <= prompt_len.max(16)) {
            let engine = engine_on(model.clone(), options(rows), super::open(&device)?);
            let got = logits(engine, &prompt).map_err(|e| Failure::Failed(format!("{name}: {e}")))?;
            for (g, w) in got.iter().zip(&wanted) {
                let e = f64::from((g - w).abs());
                // `max` would pass over what is no number.
                error = if e > error || e.is_nan() { e } else { error };
            }
            bits.push(digits(&got));
            first_bits = digits(&got[..tiny.vocab_len]);
        }
        let well = error < half_cells_error_max(&wanted) && bits.iter().all(|b| *b == bits[0]);
        failed += usize::from(!well);
        let mark = if well { "ok  " } else { "BAD " };
        writeln!(out, "{mark} {name:<20} error {error:.1e}  bits {} first {first_bits}", bits.join(" "))
            .map_err(Failure::output)?;
    }
    match failed {
        0 => Ok(()),
        _ => Err(Failure::Failed(format!("{failed} cases are not what the CPU says"))),
    }
}

/// The first digits of the SHA-256 of the bits.
fn digits(logits: &[f32]) -> String {
    let bytes: Vec<u8> = logits.iter().flat_map(|x| x.to_le_bytes()).collect();
    Sha256::digest(&bytes).iter().take(8).map(|b| format!("{b:02x}")).collect()
}

fn options(rows: usize) -> EngineOptions {
    EngineOptions { slots_max: rows, step_rows_max: rows, kv_blocks_max: 64, ..EngineOptions::default() }
}

fn logits<B: Backend>(
    engine: Result<Engine<B>, orchestratord_engine::EngineError>,
    prompt: &[u32],
) -> Result<Vec<f32>, String> {
    engine.and_then(|mut e| e.forward_logits(prompt)).map_err(|e| e.to_string())
}
