//! Whose prompt is read first, and that nobody's logits know of it.

mod common;

use std::sync::Arc;

use common::{Record, engine, model, request, tokens};
use orchestratord_engine::testing::{Dice, TinyModel};
use orchestratord_engine::{Engine, Model, SequenceRequest};

const ROWS: usize = 8;
const LONG: usize = 300;

fn engine_of(model: &Arc<Model>) -> Engine {
    engine(model, |o| o.kv_blocks_max = 256)
}

/// The step, from 1 on, that gives each prompt's first token, and the logits of it.
fn first_tokens(engine: &mut Engine, prompts: &[&[u32]]) -> Vec<(usize, Vec<u32>)> {
    engine.limit_prefill(ROWS);
    for (id, prompt) in prompts.iter().enumerate() {
        engine.admit(request(id as u64, prompt, 1)).expect("room");
    }
    let (mut record, mut steps) = (Record::default(), vec![0; prompts.len()]);
    for step in 1.. {
        engine.step(&mut record).expect("the CPU does not fail");
        engine.check_integrity();
        for id in record.finished.drain(..) {
            steps[id as usize] = step;
        }
        if engine.is_idle() {
            break;
        }
    }
    steps.into_iter().enumerate().map(|(id, step)| (step, record.logits[&(id as u64)][0].clone())).collect()
}

#[test]
fn a_short_prompt_does_not_wait_for_a_long_one_which_takes_twice_its_time_at_most() {
    let model = model(TinyModel::default().to_bytes());
    let mut dice = Dice::new(1);
    let vocab_len = model.info().vocab_len;
    let prompts: Vec<Vec<u32>> = [LONG, 10, 20, 30].map(|len| tokens(&mut dice, len, vocab_len)).to_vec();
    let alone: Vec<Vec<u32>> =
        prompts.iter().map(|prompt| first_tokens(&mut engine_of(&model), &[prompt]).remove(0).1).collect();
    let all: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let told = first_tokens(&mut engine_of(&model), &all);
    let half = ROWS / 2;
    let ends: Vec<usize> = [10usize, 30, 60].iter().map(|rows| rows.div_ceil(half)).collect();
    assert_eq!(told[1..].iter().map(|(step, _)| *step).collect::<Vec<_>>(), ends, "the shortest first");
    assert_eq!(told[0].0, (LONG + 60).div_ceil(ROWS), "no row was left over");
    assert!(told[0].0 <= 2 * LONG.div_ceil(ROWS));
    assert!(told.iter().map(|(_, logits)| logits).eq(&alone), "the same bits as alone");
}

#[test]
fn prompts_of_one_length_are_read_one_after_the_other() {
    let model = model(TinyModel::default().to_bytes());
    let mut dice = Dice::new(2);
    let prompts: Vec<Vec<u32>> = (0..3).map(|_| tokens(&mut dice, 80, model.info().vocab_len)).collect();
    let all: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let steps: Vec<usize> = first_tokens(&mut engine_of(&model), &all).iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [10, 20, 30]);
}

#[test]
fn what_a_scored_prompt_cannot_take_is_for_the_next() {
    let model = model(TinyModel::default().to_bytes());
    let mut dice = Dice::new(3);
    let prompts: Vec<Vec<u32>> = (0..2).map(|_| tokens(&mut dice, 400, model.info().vocab_len)).collect();
    let mut engine = engine(&model, |o| (o.step_rows_max, o.kv_blocks_max) = (300, 256));
    engine.admit(SequenceRequest { want_prompt_logprobs: true, ..request(0, &prompts[0], 1) }).expect("room");
    engine.admit(request(1, &prompts[1], 1)).expect("room");
    let mut record = Record::default();
    let report = engine.step(&mut record).expect("the CPU does not fail");
    assert!(report.scored > 0 && report.scored < 300, "{report:?}");
    assert_eq!(report.rows_prefill, 300, "no row was left over: {report:?}");
}
