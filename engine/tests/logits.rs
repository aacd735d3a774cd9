//! The engine's logits against those of a slow, independent pass in `f64`.

mod common;
mod reference;

use common::{Record, drain, engine, isas, model, request, rounds, shapes, tokens, wren};
use orchestratord_engine::Isa;
use orchestratord_engine::gguf::TensorType;
use orchestratord_engine::testing::{Dice, TinyModel};
use reference::Network;

/// Logits are of the order of one; this is the bound for weights that are read without loss.
const ERROR_MAX: f64 = 1e-3;

/// The same where activations are rounded to eight bits.
const ROUNDED_ERROR_MAX: f64 = 0.05;

fn error_max(isa: Isa, tensor_type: TensorType) -> f64 {
    if rounds(isa, tensor_type) { ROUNDED_ERROR_MAX } else { ERROR_MAX }
}

fn worst(got: &[f32], wanted: &[f64]) -> f64 {
    assert_eq!(got.len(), wanted.len());
    got.iter().zip(wanted).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max)
}

#[test]
fn every_position_of_every_shape_on_every_instruction_set() {
    for (index, tiny) in shapes().into_iter().enumerate() {
        let bytes = tiny.to_bytes();
        let prompt = tokens(&mut Dice::new(index as u64), 40, tiny.vocab_len);
        let wanted = Network::read(&bytes).logits(&prompt);
        let model = model(bytes);
        for isa in isas() {
            let mut engine = engine(&model, |o| o.isa = Some(isa));
            let got = engine.forward_logits(&prompt).expect("the CPU does not fail");
            for (position, (got, wanted)) in got.chunks_exact(tiny.vocab_len).zip(&wanted).enumerate() {
                let error = worst(got, wanted);
                let bound = error_max(isa, tiny.tensor_type);
                assert!(error < bound, "{error} and not {bound} at {position}, {}, {tiny:?}", isa.name());
            }
        }
    }
}

#[test]
fn alone_in_a_batch_in_chunks_and_from_the_cache() {
    for (index, tiny) in shapes().into_iter().enumerate() {
        let bytes = tiny.to_bytes();
        let mut dice = Dice::new(100 + index as u64);
        let prompt = tokens(&mut dice, 37, tiny.vocab_len);
        let slow = Network::read(&bytes);
        let model = model(bytes);
        // Greedy tokens are the same in all runs, so one slow pass over the final text holds them all.
        let mut wanted: Option<(Vec<u32>, Vec<Vec<f64>>)> = None;
        for (chunk, mates, reuse) in [(64, 0, false), (1, 0, false), (5, 0, true), (16, 3, false), (7, 2, true)] {
            let mut engine = engine(&model, |o| {
                (o.slots_max, o.step_rows_max) = (mates + 1, (mates + 1).max(chunk));
            });
            let mut record = Record::default();
            if reuse {
                let warm = request(1000, &prompt[..33], 1);
                engine.admit(orchestratord_engine::SequenceRequest { reuse, ..warm }).expect("room");
                drain(&mut engine, &mut record);
            }
            let subject = orchestratord_engine::SequenceRequest { reuse, ..request(0, &prompt, 6) };
            assert_eq!(engine.admit(subject).expect("room").cached_tokens, if reuse { 32 } else { 0 });
            for mate in 0..mates {
                let len = 1 + dice.below(30);
                let other = request(1 + mate as u64, &tokens(&mut dice, len, tiny.vocab_len), 9);
                engine.admit(other).expect("room");
            }
            drain(&mut engine, &mut record);
            let text = [&prompt[..], &record.tokens[&0]].concat();
            let (_, slow) = wanted.get_or_insert_with(|| (text.clone(), slow.logits(&text)));
            for (n, got) in record.floats(0).iter().enumerate() {
                let error = worst(got, &slow[prompt.len() - 1 + n]);
                let bound = error_max(isas()[0], tiny.tensor_type);
                assert!(error < bound, "{error} at token {n}: chunks of {chunk}, {mates} mates, {tiny:?}");
            }
            assert_eq!(wanted.as_ref().expect("was just set").0, text, "greedy tokens differ: {tiny:?}");
        }
    }
}

/// Kullback-Leibler divergence of the engine's distribution from the slow pass's, in nats.
fn divergence(got: &[f32], wanted: &[f64]) -> f64 {
    let log_sum = |logits: &[f64]| logits.iter().map(|x| x.exp()).sum::<f64>().ln();
    let got: Vec<f64> = got.iter().map(|x| f64::from(*x)).collect();
    let (got_sum, wanted_sum) = (log_sum(&got), log_sum(wanted));
    got.iter().zip(wanted).map(|(g, w)| (w - wanted_sum).exp() * ((w - wanted_sum) - (g - got_sum))).sum()
}

#[test]
fn no_tensor_type_costs_more_than_a_millionth_of_a_nat_and_rounded_activations_a_ten_thousandth() {
    for tensor_type in TensorType::all() {
        let tiny = TinyModel {
            tensor_type,
            embedding_length: 512,
            feed_forward_length: 1024,
            head_len: 128,
            layer_count: 4,
            ..TinyModel::default()
        };
        let bytes = tiny.to_bytes();
        let prompt = tokens(&mut Dice::new(9), 24, tiny.vocab_len);
        let wanted = Network::read(&bytes).logits(&prompt);
        let model = model(bytes);
        for isa in isas() {
            let got = engine(&model, |o| o.isa = Some(isa)).forward_logits(&prompt).expect("the CPU does not fail");
            let rows = got.chunks_exact(tiny.vocab_len).zip(&wanted);
            let worst = rows.map(|(got, wanted)| divergence(got, wanted)).fold(0.0, f64::max);
            println!("{} on {}: {worst:.1e}", tensor_type.name(), isa.name());
            let bound = if rounds(isa, tensor_type) { 1e-4 } else { 1e-6 };
            assert!(worst < bound, "{} on {}: {worst}", tensor_type.name(), isa.name());
        }
    }
}

#[test]
fn the_built_in_model_is_read_as_the_slow_pass_reads_it() {
    let bytes = wren();
    let slow = Network::read(&bytes);
    let model = model(bytes);
    let prompt = model.tokenizer().encode("Once upon a time, there was a small fox named Pip.", true, false);
    let wanted = slow.logits(&prompt);
    for isa in isas() {
        let got = engine(&model, |o| o.isa = Some(isa)).forward_logits(&prompt).expect("the CPU does not fail");
        for (position, (got, wanted)) in got.chunks_exact(wanted[0].len()).zip(&wanted).enumerate() {
            let error = worst(got, wanted);
            assert!(error < ERROR_MAX, "{error} at {position}, {}", isa.name());
        }
    }
}
