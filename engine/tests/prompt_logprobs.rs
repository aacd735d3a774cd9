//! How likely a prompt's own tokens are: as a softmax of all its logits says, and bit for bit the same whatever happens
//! around them.

mod common;
mod reference;

use std::sync::Arc;

use common::{Record, drain, engine, isas, model, request, rounds, shapes, tokens};
use orchestratord_engine::testing::{Dice, TinyModel};
use orchestratord_engine::{AdmitError, Engine, FinishReason, Isa, Model, SequenceRequest, TokenSink, Verdict};
use reference::Network;

/// Between the engine's own logits and what it makes of them.
const ROUNDING_MAX: f64 = 1e-5;

/// Between the engine's logits and the slow pass's: as for logits, for the sum under the logarithm is off by as much at most.
const ERROR_MAX: f64 = 2e-3;

/// The same where activations are rounded to eight bits.
const ROUNDED_ERROR_MAX: f64 = 0.1;

const TOP: usize = 5;

/// One token of a prompt, in bits.
type Scored = (usize, u32, u32, Vec<(u32, u32)>);

/// Keeps what is said of sequence 0's prompt, and everything of the others.
#[derive(Default)]
struct Scores {
    scored: Vec<Scored>,
    record: Record,
}

impl TokenSink for Scores {
    fn token(&mut self, id: u64, token: u32, logprob: Option<f32>) -> Verdict {
        self.record.token(id, token, logprob)
    }

    fn prompt_logprob(&mut self, id: u64, index: usize, token: u32, logprob: f32, top: &[(u32, f32)]) {
        if id == 0 {
            assert!(!self.record.tokens.contains_key(&0), "the answer came before the prompt's token {index}");
            let top = top.iter().map(|(token, value)| (*token, value.to_bits())).collect();
            self.scored.push((index, token, logprob.to_bits(), top));
        }
    }

    fn finished(&mut self, id: u64, reason: FinishReason) {
        self.record.finished(id, reason);
    }
}

fn wish(prompt: &[u32], max_tokens: u32) -> SequenceRequest {
    SequenceRequest { want_prompt_logprobs: true, top_logprobs: TOP as u32, ..request(0, prompt, max_tokens) }
}

/// Alone, on one thread, without a cache.
fn alone(model: &Arc<Model>, isa: Isa, prompt: &[u32]) -> Vec<Scored> {
    let mut engine = engine(model, |o| (o.isa, o.slots_max, o.step_rows_max) = (Some(isa), 1, 128));
    let mut scores = Scores::default();
    engine.admit(wish(prompt, 0)).expect("room");
    while !engine.is_idle() {
        engine.step(&mut scores).expect("the CPU does not fail");
        engine.check_integrity();
    }
    assert_eq!(scores.record.reasons[&0], FinishReason::Length);
    assert!(scores.record.tokens.is_empty(), "no token was asked for");
    scores.scored
}

fn log_softmax(logits: impl Iterator<Item = f64>) -> Vec<f64> {
    let logits: Vec<f64> = logits.collect();
    let sum = logits.iter().map(|x| x.exp()).sum::<f64>().ln();
    logits.iter().map(|x| x - sum).collect()
}

#[test]
fn they_are_the_softmax_of_every_positions_logits() {
    for (index, tiny) in shapes().into_iter().enumerate() {
        let bytes = tiny.to_bytes();
        let prompt = tokens(&mut Dice::new(index as u64), 40, tiny.vocab_len);
        let slow = Network::read(&bytes).logits(&prompt);
        let model = model(bytes);
        for isa in isas() {
            let all = engine(&model, |o| o.isa = Some(isa)).forward_logits(&prompt).expect("the CPU does not fail");
            let scored = alone(&model, isa, &prompt);
            assert_eq!(scored.len(), prompt.len() - 1, "every token but the first");
            for (place, (at, token, logprob, top)) in scored.into_iter().enumerate() {
                assert_eq!((at, token), (place + 1, prompt[place + 1]));
                let row = &all[place * tiny.vocab_len..][..tiny.vocab_len];
                let own = log_softmax(row.iter().map(|x| f64::from(*x)));
                let logprob = f64::from(f32::from_bits(logprob));
                assert!((logprob - own[token as usize]).abs() < ROUNDING_MAX, "{logprob} at {at}, {tiny:?}");
                let wanted = log_softmax(slow[place].iter().copied())[token as usize];
                let bound = if rounds(isa, tiny.tensor_type) { ROUNDED_ERROR_MAX } else { ERROR_MAX };
                assert!((logprob - wanted).abs() < bound, "{logprob} for {wanted} at {at}, {}, {tiny:?}", isa.name());
                let mut order: Vec<u32> = (0..tiny.vocab_len as u32).collect();
                order.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b)));
                assert_eq!(top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), order[..TOP]);
                for (token, value) in top {
                    assert!((f64::from(f32::from_bits(value)) - own[token as usize]).abs() < ROUNDING_MAX);
                }
            }
        }
    }
}

/// Others come and go beside it; it is cut into chunks, put aside, and its beginning is in the cache.
#[test]
fn a_prompt_alone_is_as_likely_as_in_a_crowd() {
    let model = model(TinyModel::default().to_bytes());
    let vocab_len = model.info().vocab_len;
    let mut preempted = 0;
    for seed in 0..96 {
        let dice = &mut Dice::new(seed);
        let isa = isas()[seed as usize % isas().len()];
        let len = 1 + dice.below(120);
        let prompt = tokens(dice, len, vocab_len);
        let wanted = alone(&model, isa, &prompt);
        let mates = 1 + dice.below(4);
        let mut engine = engine(&model, |o| {
            (o.isa, o.threads, o.slots_max) = (Some(isa), 1 + dice.below(3), mates + 1);
            (o.step_rows_max, o.kv_blocks_max) = (mates + 1 + dice.below(60), 12);
        });
        let mut scores = Scores::default();
        if dice.below(2) == 0 {
            let warm = &prompt[..prompt.len().div_ceil(2)];
            engine.admit(SequenceRequest { reuse: true, ..request(999, warm, 1) }).expect("room");
            drain(&mut engine, &mut Record::default());
        }
        let max_tokens = dice.below(3) as u32;
        let subject = SequenceRequest { reuse: true, preemptible: true, ..wish(&prompt, max_tokens) };
        assert_eq!(engine.admit(subject).expect("room").cached_tokens, 0, "all of it must be computed");
        let mut next = 1;
        while !scores.record.reasons.contains_key(&0) {
            if dice.below(3) > 0 && next < 40 {
                next += u64::from(mate(&mut engine, dice, next, vocab_len).is_ok());
            }
            engine.limit_prefill(1 + dice.below(40));
            preempted += engine.step(&mut scores).expect("the CPU does not fail").preempted;
            engine.check_integrity();
        }
        assert_eq!(scores.scored, wanted, "seed {seed}");
        assert_eq!(scores.record.tokens.get(&0).map_or(0, Vec::len), max_tokens as usize);
    }
    assert!(preempted > 10, "{preempted} were put aside: too few to try anything");
}

fn mate(engine: &mut Engine, dice: &mut Dice, id: u64, vocab_len: usize) -> Result<(), AdmitError> {
    let (len, max_tokens) = (1 + dice.below(40), 1 + dice.below(20) as u32);
    let other = request(id, &tokens(dice, len, vocab_len), max_tokens);
    let (reuse, want_prompt_logprobs) = (dice.below(2) == 0, dice.below(3) == 0);
    engine.admit(SequenceRequest { reuse, want_prompt_logprobs, ..other }).map(drop)
}

#[test]
fn a_prompt_as_long_as_the_context_is_told_of_and_one_of_one_token_has_nothing_to_tell() {
    let model = model(TinyModel::default().to_bytes());
    let context = model.info().context_length as usize;
    let isa = isas()[0];
    assert_eq!(alone(&model, isa, &vec![7; context]).len(), context - 1);
    assert_eq!(alone(&model, isa, &[7]), []);
    let mut engine = engine(&model, |_| ());
    let neither = SequenceRequest { want_prompt_logprobs: false, ..wish(&[7, 8], 0) };
    assert_eq!(engine.admit(neither), Err(AdmitError::Empty));
}
