//! Vectors of texts: against a slow, independent pass, and bit for bit the same whatever happens around them.

mod common;
mod reference;

use std::sync::Arc;

use common::{Record, drain, engine, isas, model, request, rounds, shapes, tokens};
use orchestratord_engine::gguf::TensorType;
use orchestratord_engine::testing::{Dice, TinyModel};
use orchestratord_engine::{AdmitError, Engine, Isa, Model, Pooling, SequenceRequest};
use reference::Network;

const POOLINGS: [Pooling; 2] = [Pooling::Last, Pooling::Mean];

/// Elements of a vector of length one; the bound of logits is as much of numbers ten times as large.
const ERROR_MAX: f64 = 1e-4;

/// The same where activations are rounded to eight bits.
const ROUNDED_ERROR_MAX: f64 = 5e-3;

fn wish(id: u64, text: &[u32], pooling: Pooling) -> SequenceRequest {
    SequenceRequest { pooling: Some(pooling), ..request(id, text, 1) }
}

/// Alone, on one thread, in one piece, without a cache.
fn alone(model: &Arc<Model>, isa: Isa, text: &[u32], pooling: Pooling) -> Vec<f32> {
    let mut engine = engine(model, |o| (o.isa, o.slots_max, o.step_rows_max) = (Some(isa), 1, 128));
    let mut record = Record::default();
    engine.admit(wish(0, text, pooling)).expect("room");
    drain(&mut engine, &mut record);
    assert!(record.finished == [0] && record.tokens.is_empty(), "a vector is all that comes");
    record.vectors.remove(&0).expect("a vector")
}

fn pooled(states: &[Vec<f64>], pooling: Pooling) -> Vec<f64> {
    let used = if pooling == Pooling::Last { &states[states.len() - 1..] } else { states };
    let sum: Vec<f64> = (0..states[0].len()).map(|i| used.iter().map(|state| state[i]).sum()).collect();
    let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
    sum.iter().map(|x| x / length).collect()
}

#[test]
fn vectors_of_every_shape_are_those_of_the_slow_pass() {
    for (index, tiny) in shapes().into_iter().enumerate() {
        let bytes = tiny.to_bytes();
        let text = tokens(&mut Dice::new(index as u64), 33, tiny.vocab_len);
        let states = Network::read(&bytes).hidden_states(&text);
        let model = model(bytes);
        for (isa, pooling) in isas().into_iter().flat_map(|isa| POOLINGS.map(|pooling| (isa, pooling))) {
            let got = alone(&model, isa, &text, pooling);
            assert_eq!(got.len(), model.info().embedding_length);
            let errors = got.iter().zip(pooled(&states, pooling)).map(|(g, w)| (f64::from(*g) - w).abs());
            let error = errors.fold(0.0, f64::max);
            let bound = if rounds(isa, tiny.tensor_type) { ROUNDED_ERROR_MAX } else { ERROR_MAX };
            assert!(error < bound, "{error} and not {bound}, {pooling:?}, {}, {tiny:?}", isa.name());
        }
    }
}

/// Vectors, answers and cancelled ones come and go beside it; it is cut into chunks, put aside, and found in the cache.
#[test]
fn a_vector_alone_equals_one_in_a_crowd() {
    let wide = TinyModel { embedding_length: 96, feed_forward_length: 160, ..TinyModel::default() };
    for tensor_type in [TensorType::Q8_0, TensorType::Bf16] {
        let model = model(TinyModel { tensor_type, ..wide.clone() }.to_bytes());
        let vocab_len = model.info().vocab_len;
        for seed in 0..64 {
            let dice = &mut Dice::new(seed);
            let isa = isas()[seed as usize % isas().len()];
            let pooling = POOLINGS[dice.below(2)];
            let len = 1 + dice.below(90);
            let text = tokens(dice, len, vocab_len);
            let wanted = alone(&model, isa, &text, pooling);
            let mates = 1 + dice.below(12);
            let mut engine = engine(&model, |o| {
                (o.isa, o.threads, o.slots_max) = (Some(isa), 1 + dice.below(3), mates + 1);
                (o.step_rows_max, o.kv_blocks_max) = (mates + 1 + dice.below(30), 40);
            });
            let mut record = Record::default();
            if dice.below(2) == 0 {
                let warm = &text[..text.len().div_ceil(2)];
                engine.admit(SequenceRequest { reuse: true, ..request(999, warm, 1) }).expect("room");
                drain(&mut engine, &mut record);
            }
            let subject = SequenceRequest { reuse: true, preemptible: true, ..wish(0, &text, pooling) };
            engine.admit(subject).expect("room");
            let mut next = 1;
            while !record.vectors.contains_key(&0) {
                if dice.below(3) > 0 && next < 40 {
                    next += u64::from(mate(&mut engine, dice, next, vocab_len).is_ok());
                }
                if dice.below(5) == 0 {
                    engine.cancel(1 + dice.below(next as usize) as u64);
                }
                engine.step(&mut record).expect("the CPU does not fail");
                engine.check_integrity();
            }
            let bits = |vector: &[f32]| vector.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
            assert_eq!(bits(&record.vectors[&0]), bits(&wanted), "seed {seed}, {pooling:?}, {}", tensor_type.name());
        }
    }
}

fn mate(engine: &mut Engine, dice: &mut Dice, id: u64, vocab_len: usize) -> Result<(), AdmitError> {
    let len = 1 + dice.below(40);
    let text = tokens(dice, len, vocab_len);
    let request = match dice.below(2) {
        0 => wish(id, &text, POOLINGS[dice.below(2)]),
        _ => request(id, &text, 1 + dice.below(20) as u32),
    };
    engine.admit(SequenceRequest { reuse: dice.below(2) == 0, ..request }).map(drop)
}

#[test]
fn a_text_as_long_as_the_context_has_a_vector() {
    let tiny = TinyModel::default();
    let model = model(tiny.to_bytes());
    let context = model.info().context_length as usize;
    let mut engine = engine(&model, |o| o.kv_blocks_max = context.div_ceil(16));
    let mut record = Record::default();
    let text = vec![7; context + 1];
    let longer = engine.admit(wish(1, &text, Pooling::Mean));
    assert!(matches!(longer, Err(AdmitError::NeverFits { .. })), "{longer:?}");
    engine.admit(wish(0, &text[..context], Pooling::Mean)).expect("room");
    drain(&mut engine, &mut record);
    assert_eq!(record.finished, [0]);
}
