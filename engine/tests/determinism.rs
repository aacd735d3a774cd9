//! Bits of logits, whatever happens around a sequence. Each seed is another crowd; a failure names the seed and goes on
//! from `ORCH_TEST_SEED` alone.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use common::{Record, drain, engine, isas, model, request, tokens};
use orchestratord_engine::gguf::TensorType;
use orchestratord_engine::testing::{Dice, TinyModel};
use orchestratord_engine::{Engine, Isa, Model, SamplingParams, SequenceRequest};

/// Crowds in one test run.
const SEED_COUNT: u64 = 64;

/// Most sequences beside the one that is looked at.
const MATES_MAX: usize = 64;

/// The sequence that is looked at; mates have ids above.
const SUBJECT: u64 = 0;

/// Where the quantised fast path, the bf16 one, and plain floats are at work.
fn models() -> Vec<Arc<Model>> {
    let wide = TinyModel { embedding_length: 96, feed_forward_length: 160, ..TinyModel::default() };
    [TensorType::Q8_0, TensorType::Bf16, TensorType::F32]
        .map(|tensor_type| model(TinyModel { tensor_type, ..wide.clone() }.to_bytes()))
        .to_vec()
}

fn subject(dice: &mut Dice, vocab_len: usize) -> SequenceRequest {
    let prompt_len = 1 + dice.below(90);
    let prompt = tokens(dice, prompt_len, vocab_len);
    let sampling = SamplingParams {
        temperature: [0.0, 0.8, 1.3][dice.below(3)],
        top_k: [0, 5][dice.below(2)],
        seed: dice.next_u64(),
        ..SamplingParams::default()
    };
    SequenceRequest { sampling, ..request(SUBJECT, &prompt, 1 + dice.below(20) as u32) }
}

fn mate(dice: &mut Dice, id: u64, vocab_len: usize) -> SequenceRequest {
    let prompt_len = 1 + dice.below(60);
    let prompt = tokens(dice, prompt_len, vocab_len);
    SequenceRequest { reuse: dice.below(2) == 0, ..request(id, &prompt, 1 + dice.below(30) as u32) }
}

/// Alone, on one thread, the prompt in one piece, without a cache.
fn alone(model: &Arc<Model>, isa: Isa, subject: &SequenceRequest) -> Record {
    let mut engine = engine(model, |o| (o.isa, o.step_rows_max, o.slots_max) = (Some(isa), 128, 1));
    let mut record = Record::default();
    engine.admit(subject.clone()).expect("room");
    drain(&mut engine, &mut record);
    record
}

/// Steps until the subject is done, while `before_step` does something to the engine.
fn run(engine: &mut Engine, record: &mut Record, mut before_step: impl FnMut(&mut Engine, usize)) {
    for step in 0.. {
        assert!(step < 10_000, "the subject never ends");
        before_step(engine, step);
        engine.step(record).expect("the CPU does not fail");
        engine.check_integrity();
        if record.finished.contains(&SUBJECT) {
            return;
        }
    }
}

fn same(record: &Record, wanted: &Record, what: &str) {
    assert_eq!(record.tokens[&SUBJECT], wanted.tokens[&SUBJECT], "tokens: {what}");
    assert!(record.logits[&SUBJECT] == wanted.logits[&SUBJECT], "logits' bits: {what}");
}

/// Every seed on every model, on the instruction set that its number picks.
fn for_every_crowd(check: impl Fn(&Arc<Model>, Isa, &mut Dice, &str)) {
    let first: u64 = std::env::var("ORCH_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    for (index, model) in models().iter().enumerate() {
        for seed in first..first + SEED_COUNT {
            let isa = isas()[seed as usize % isas().len()];
            let what = format!("seed {seed}, model {index}, {}", isa.name());
            check(model, isa, &mut Dice::new(seed), &what);
        }
    }
}

#[test]
fn a_crowd_chunks_threads_and_a_warm_cache_change_no_bit() {
    let largest = AtomicUsize::new(0);
    for_every_crowd(|model, isa, dice, what| {
        let vocab_len = model.info().vocab_len;
        let subject = subject(dice, vocab_len);
        let wanted = alone(model, isa, &subject);
        // Every fourth crowd is as large as it gets.
        let mate_count = if dice.below(4) == 0 { MATES_MAX } else { 1 + dice.below(MATES_MAX) };
        let chunk = mate_count + 1 + dice.below(100);
        let threads = 1 + dice.below(3);
        let what = format!("{what}: {mate_count} mates, steps of {chunk} rows, {threads} threads");
        let mut engine = engine(model, |o| {
            (o.isa, o.threads) = (Some(isa), threads);
            (o.slots_max, o.step_rows_max, o.kv_blocks_max) = (mate_count + 1, chunk, 600);
        });
        let mut record = Record::default();
        // 0, 25, 50 or 100 per cent of the prompt has been computed before, in steps of another length.
        let share = [0, 25, 50, 100][dice.below(4)];
        let warm = &subject.prompt[..subject.prompt.len() * share / 100];
        if !warm.is_empty() {
            engine.admit(SequenceRequest { reuse: true, ..request(999, warm, 1) }).expect("room");
            drain(&mut engine, &mut record);
        }
        let arrival = dice.below(6);
        let mut next_mate = 1;
        run(&mut engine, &mut record, |engine, step| {
            if step == arrival {
                let info = engine.admit(SequenceRequest { reuse: true, ..subject.clone() }).expect("a slot is kept");
                assert_eq!(info.cached_tokens, (subject.prompt.len() - 1).min(warm.len()) / 16 * 16, "{what}");
            }
            // One slot stays free for the subject.
            let kept = usize::from(step < arrival);
            let rush = step == 0;
            while engine.slots_free() > kept && (rush || dice.below(3) > 0) {
                engine.admit(mate(dice, next_mate, vocab_len)).expect("room");
                next_mate += 1;
            }
            largest.fetch_max(engine.running_count(), Relaxed);
            // Some mate goes in the middle of what it does.
            if dice.below(4) == 0 {
                engine.cancel(1 + dice.below(next_mate as usize) as u64);
            }
        });
        same(&record, &wanted, &what);
    });
    assert_eq!(largest.load(Relaxed), MATES_MAX + 1, "the largest crowd");
}

#[test]
fn being_put_aside_and_taken_up_again_changes_no_bit() {
    let mut put_aside = 0;
    for (index, model) in models().iter().enumerate() {
        for seed in 0..SEED_COUNT {
            let dice = &mut Dice::new(1000 + seed);
            let isa = isas()[seed as usize % isas().len()];
            let vocab_len = model.info().vocab_len;
            let subject = SequenceRequest { preemptible: true, ..subject(dice, vocab_len) };
            let wanted = alone(model, isa, &subject);
            // Room for the subject and little else.
            let mut engine = engine(model, |o| {
                (o.isa, o.slots_max, o.step_rows_max) = (Some(isa), 3, 3 + dice.below(40));
                o.kv_blocks_max = 10;
            });
            let mut record = Record::default();
            engine.admit(SequenceRequest { reuse: dice.below(2) == 0, ..subject.clone() }).expect("room");
            let mut next_mate = 1;
            run(&mut engine, &mut record, |engine, _| {
                // Not so often that the subject starves.
                if dice.below(6) == 0 && next_mate < 8 {
                    next_mate += u64::from(engine.admit(mate(dice, next_mate, vocab_len)).is_ok());
                    put_aside += engine.paused_count();
                }
            });
            same(&record, &wanted, &format!("seed {seed}, model {index}, {}", isa.name()));
        }
    }
    assert!(put_aside > 100, "hardly anything was put aside: {put_aside}");
}

#[test]
fn logits_of_all_positions_are_those_of_the_steps() {
    for model in models() {
        for isa in isas() {
            let dice = &mut Dice::new(5);
            let subject =
                SequenceRequest { sampling: SamplingParams::default(), ..subject(dice, model.info().vocab_len) };
            let record = alone(&model, isa, &subject);
            let text = [&subject.prompt[..], &record.tokens[&SUBJECT]].concat();
            for slots_max in [1, 3, 64] {
                let mut engine = engine(&model, |o| (o.isa, o.slots_max) = (Some(isa), slots_max));
                let all = engine.forward_logits(&text).expect("the CPU does not fail");
                let rows = all.chunks_exact(model.info().vocab_len).skip(subject.prompt.len() - 1);
                for (n, (row, wanted)) in rows.zip(&record.logits[&SUBJECT]).enumerate() {
                    assert!(row.iter().map(|x| x.to_bits()).eq(wanted.iter().copied()), "token {n}, {}", isa.name());
                }
            }
        }
    }
}
