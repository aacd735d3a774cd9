//! Every architecture, from a GGUF file and from a Hugging Face folder, against what `transformers` makes of the same tiny
//! random model: `references/`, made by `make_references.py`.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{Record, drain, engine, request};
use orchestratord_engine::{Engine, Model};
use serde_json::Value;

/// The references have six digits.
const ERROR_MAX: f64 = 1e-3;

/// A choice with a smaller margin may rightly be another.
const MARGIN_MIN: f64 = 2.0 * ERROR_MAX;

const NAMES: [&str; 8] = ["llama2", "llama3", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"];

fn references() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/references")
}

fn cases(name: &str) -> Vec<Value> {
    let text = std::fs::read(references().join(format!("{name}.json"))).expect("the reference is there");
    let reference: Value = serde_json::from_slice(&text).expect("it is JSON");
    reference["cases"].as_array().expect("a list").clone()
}

/// The same model in both formats.
fn models(name: &str) -> [Arc<Model>; 2] {
    [references().join(format!("{name}.gguf")), references().join(name)]
        .map(|path| Arc::new(Model::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))))
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("a list").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
}

fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best }) as u32
}

fn worst(got: &[f32], wanted: &[f64]) -> f64 {
    assert_eq!(got.len(), wanted.len());
    got.iter().zip(wanted).map(|(got, wanted)| (f64::from(*got) - wanted).abs()).fold(0.0, f64::max)
}

#[test]
fn logits_are_those_of_transformers() {
    for name in NAMES {
        for model in models(name) {
            let vocab_len = model.info().vocab_len;
            let mut engine = engine(&model, |_| ());
            for case in cases(name) {
                let logits = engine.forward_logits(&ids(&case["ids"])).expect("the CPU does not fail");
                let rows: Vec<&[f32]> = logits.chunks_exact(vocab_len).collect();
                let worst = worst(rows.last().expect("a prompt has tokens"), &floats(&case["last_logits"]));
                assert!(worst < ERROR_MAX, "{name}, {}: {worst}", case["name"]);
                let wanted = ids(&case["argmax"]).into_iter().zip(floats(&case["argmax_margin"]));
                for (position, (row, (wanted, margin))) in rows.iter().zip(wanted).enumerate() {
                    assert!(argmax(row) == wanted || margin < MARGIN_MIN, "{name}, {}: at {position}", case["name"]);
                }
            }
        }
    }
}

fn complete(engine: &mut Engine, prompt: &[u32], max_tokens: u32, reuse: bool) -> Vec<u32> {
    let mut record = Record::default();
    let mut request = request(1, prompt, max_tokens);
    request.reuse = reuse;
    engine.admit(request).expect("there is room");
    drain(engine, &mut record);
    record.tokens.remove(&1).expect("it has generated")
}

#[test]
fn greedy_continuations_are_those_of_transformers() {
    for name in NAMES {
        for model in models(name) {
            // Prompts are cut into steps of eight rows: windows and rotations must not care.
            let mut engine = engine(&model, |o| o.step_rows_max = 8);
            for case in cases(name) {
                let (wanted, margins) = (ids(&case["greedy"]), floats(&case["greedy_margin"]));
                let sure = margins.iter().position(|m| *m < MARGIN_MIN).unwrap_or(wanted.len());
                assert!(sure > 8, "{name}, {}: a margin is too thin to be a test", case["name"]);
                let got = complete(&mut engine, &ids(&case["ids"]), wanted.len() as u32, false);
                assert_eq!(got[..sure], wanted[..sure], "{name}, {}", case["name"]);
            }
        }
    }
}

#[test]
fn every_architecture_answers_the_same_alone_in_a_crowd_and_from_the_cache() {
    for name in NAMES {
        let [model, _] = models(name);
        let cases: Vec<Vec<u32>> = cases(name).iter().map(|case| ids(&case["ids"])).collect();
        let mut alone = engine(&model, |_| ());
        let wanted: Vec<Vec<u32>> = cases.iter().map(|ids| complete(&mut alone, ids, 16, false)).collect();
        for _ in 0..2 {
            // The second time, prompts are in the cache.
            let again: Vec<Vec<u32>> = cases.iter().map(|ids| complete(&mut alone, ids, 16, true)).collect();
            assert_eq!(again, wanted, "{name}");
        }
        let mut crowd = engine(&model, |o| (o.threads, o.step_rows_max) = (2, 11));
        let mut record = Record::default();
        for (id, ids) in cases.iter().enumerate() {
            crowd.admit(request(id as u64, ids, 16)).expect("there is room");
        }
        drain(&mut crowd, &mut record);
        for (id, wanted) in wanted.iter().enumerate() {
            assert_eq!(&record.tokens[&(id as u64)], wanted, "{name}");
        }
    }
}

#[test]
fn a_model_in_parts_is_the_model_whole() {
    let parts = std::fs::read_dir(references().join("llama2")).expect("a folder");
    let parts = parts.filter(|e| e.as_ref().expect("an entry").path().extension().is_some_and(|x| x == "safetensors"));
    assert!(parts.count() > 1, "llama2 is stored in parts");
    let [gguf, folder] = models("llama2");
    assert_eq!(gguf.info().parameter_count, folder.info().parameter_count);
}
