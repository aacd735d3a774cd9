//! Steps that are begun before the tokens of the step before them are known, over an emulated driver that does what it is asked
//! as late as it may.

mod common;
#[path = "emulator/driver.rs"]
mod driver;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use common::{OfToken, Record, drain, model, request, tokens};
use driver::{counts, fail_next_launch, found};
use orchestratord_engine::backend::EDITED_MAX;
use orchestratord_engine::backend::cuda::{CudaBackend, Driver, Found, Kernels};
use orchestratord_engine::testing::choices::editing;
use orchestratord_engine::testing::{Dice, TinyModel};
use orchestratord_engine::{
    AdmitError, Engine, EngineOptions, FinishReason, Grammar, Model, SamplingParams, SequenceRequest, TokenSink,
    Verdict,
};

type DriverEngine = Engine<CudaBackend<Driver>>;

fn engine(found: &Found, model: &Arc<Model>) -> DriverEngine {
    let driver = Arc::new(Driver::open(found, &Kernels::BuiltIn).expect("the packs can be loaded"));
    let options = EngineOptions { slots_max: 4, step_rows_max: 16, kv_blocks_max: 20, ..EngineOptions::default() };
    Engine::on_backend(model.clone(), options, CudaBackend::new(driver)).expect("it fits")
}

fn watch() -> Record {
    Record { tokens_only: true, ..Record::default() }
}

/// True when the device has been asked for more than was waited for.
fn is_ahead() -> bool {
    counts().pending > 0
}

/// Keeps tokens, and stops some sequences after some of theirs.
#[derive(Default)]
struct Stopping {
    tokens: HashMap<u64, Vec<u32>>,
    logprobs: HashMap<u64, Vec<OfToken>>,
    top: Vec<(u32, u32)>,
    /// Who had a token since this was emptied.
    told: Vec<u64>,
    after: HashMap<u64, usize>,
    finished: HashMap<u64, FinishReason>,
    wants_logits: bool,
}

impl TokenSink for Stopping {
    fn token(&mut self, id: u64, token: u32, logprob: Option<f32>) -> Verdict {
        let of_token = (logprob.map(f32::to_bits), std::mem::take(&mut self.top));
        self.logprobs.entry(id).or_default().push(of_token);
        self.told.push(id);
        let tokens = self.tokens.entry(id).or_default();
        tokens.push(token);
        if self.after.get(&id) == Some(&tokens.len()) { Verdict::Stop } else { Verdict::Continue }
    }

    fn top_logprobs(&mut self, _: u64, top: &[(u32, f32)]) {
        self.top = top.iter().map(|(token, logprob)| (*token, logprob.to_bits())).collect();
    }

    fn finished(&mut self, id: u64, reason: FinishReason) {
        assert!(self.finished.insert(id, reason).is_none(), "{id} ended twice");
    }

    fn wants_logits(&self, _: u64) -> bool {
        self.wants_logits
    }
}

#[test]
fn a_step_is_begun_before_the_tokens_of_the_one_before_it_are_read() {
    let Some(found) = found() else { return };
    let mut engine = engine(&found, &model(TinyModel::default().to_bytes()));
    let mut record = watch();
    engine.admit(request(0, &[5, 6, 7], 5)).expect("room");
    for index in 0..5 {
        let report = engine.step(&mut record).expect("it does not fail");
        let (prefill, decode) = if index == 0 { (3, 0) } else { (0, 1) };
        assert_eq!((report.rows_prefill, report.rows_decode, report.sampled), (prefill, decode, 1));
        assert_eq!(record.tokens[&0].len(), index + 1);
        // After the last one there is nothing to come.
        assert_eq!(is_ahead(), index < 4, "{index}");
    }
    assert!(engine.is_idle());
    // With a prompt to be read, the tokens come first: what is begun has that of the prompt, too.
    engine.admit(request(1, &[5], 30)).expect("room");
    (0..3).for_each(|_| assert_eq!(engine.step(&mut record).expect("it does not fail").sampled, 1));
    engine.admit(request(2, &[9; 20], 30)).expect("room");
    let rows = |engine: &mut DriverEngine, record: &mut Record| {
        let report = engine.step(record).expect("it does not fail");
        (report.rows_decode, report.rows_prefill, is_ahead())
    };
    let steps: Vec<_> = (0..4).map(|_| rows(&mut engine, &mut record)).collect();
    assert_eq!(steps, [(1, 0, false), (1, 15, false), (1, 5, true), (2, 0, true)]);
}

/// True for one whose logits are not just chosen from.
fn is_edited(request: &SequenceRequest) -> bool {
    let s = &request.sampling;
    let has_penalties = (s.repetition_penalty, s.presence_penalty, s.frequency_penalty) != (1.0, 0.0, 0.0);
    has_penalties || !s.logit_bias.is_empty() || s.min_tokens > 0
}

/// Nobody looks at logits in the one run, and at all of them in the other, which so is never ahead of itself.
#[test]
fn comings_goings_and_ends_leave_everybody_his_own_tokens() {
    let Some(found) = found() else { return };
    let tiny = TinyModel { context_length: 64, layer_count: 1, ..TinyModel::default() };
    let model = model(tiny.to_bytes());
    let (mut ahead, mut late, mut stopped, mut cancelled, mut put_aside) = (0, 0, 0, 0, 0);
    let (mut ahead_edited, mut ahead_told) = (0, 0);
    for seed in 0..6 {
        let mut dice = Dice::new(seed);
        let mut sink = Stopping::default();
        let requests: Vec<SequenceRequest> = (0..12)
            .map(|id| {
                let len = 1 + dice.below(30);
                if dice.below(2) == 0 {
                    sink.after.insert(id, 1 + dice.below(8));
                }
                let sampling = SamplingParams {
                    temperature: [0.0, 1.0][dice.below(2)],
                    top_k: [0, 20][dice.below(2)],
                    top_p: [1.0, 0.9][dice.below(2)],
                    min_p: [0.0, 0.05][dice.below(2)],
                    seed: dice.next_u64(),
                    ..match dice.below(3) {
                        0 => SamplingParams::default(),
                        _ => editing(&mut dice, tiny.vocab_len, false),
                    }
                };
                SequenceRequest {
                    sampling,
                    want_logprobs: dice.below(4) == 0,
                    top_logprobs: [0, 0, 0, 5][dice.below(4)],
                    preemptible: dice.below(2) == 0,
                    reuse: dice.below(2) == 0,
                    ignore_end: dice.below(2) == 0,
                    session: (dice.below(2) == 0).then_some(id as u128 % 3),
                    ..request(id, &tokens(&mut dice, len, tiny.vocab_len), 2 + dice.below(14) as u32)
                }
            })
            .collect();
        let mut run = engine(&found, &model);
        let mut coming: Vec<&SequenceRequest> = requests.iter().rev().collect();
        let mut cut: Vec<u64> = Vec::new();
        while !(coming.is_empty() && run.is_idle()) {
            while let Some(request) = coming.pop_if(|_| dice.below(2) == 0) {
                match run.admit(request.clone()) {
                    Ok(_) => {}
                    Err(AdmitError::NoSlot | AdmitError::NoBlocks) => {
                        coming.push(request);
                        break;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            if dice.below(6) == 0 {
                // Of the requests that came so far any one.
                let id = dice.below((12 - coming.len()).max(1)) as u64;
                if run.cancel(id) {
                    cut.push(id);
                    late += u32::from(is_ahead());
                }
            }
            if dice.below(20) == 0 {
                // Something else in between.
                run.forward_logits(&[3, 4]).ok();
            }
            sink.told.clear();
            put_aside += run.step(&mut sink).expect("it does not fail").preempted;
            ahead += u32::from(is_ahead());
            let any = |is: fn(&SequenceRequest) -> bool| sink.told.iter().any(|id| is(&requests[*id as usize]));
            ahead_edited += u32::from(is_ahead() && any(is_edited));
            ahead_told += u32::from(is_ahead() && any(|r| r.want_logprobs || r.top_logprobs > 0));
            run.check_integrity();
        }
        cancelled += cut.len();
        let mut alone = engine(&found, &model);
        let mut wanted = Stopping { after: sink.after.clone(), wants_logits: true, ..Stopping::default() };
        for request in &requests {
            alone.admit(SequenceRequest { session: None, reuse: false, ..request.clone() }).expect("it is alone");
            while !alone.is_idle() {
                alone.step(&mut wanted).expect("it does not fail");
                assert!(!is_ahead());
            }
            let id = request.id;
            let (said, whole) = (sink.tokens.remove(&id).unwrap_or_default(), wanted.tokens.remove(&id));
            let whole = whole.unwrap_or_default();
            let (said_of, whole_of) = (sink.logprobs.remove(&id), wanted.logprobs.remove(&id));
            let (said_of, whole_of) = (said_of.unwrap_or_default(), whole_of.unwrap_or_default());
            assert!(whole_of.starts_with(&said_of) && said_of.len() == said.len(), "{seed} {id}");
            match cut.contains(&id) {
                true => assert!(whole.starts_with(&said), "{seed} {id}: {said:?} {whole:?}"),
                false => {
                    assert_eq!(said, whole, "{seed} {id}");
                    assert_eq!(sink.finished[&id], wanted.finished[&id], "{seed} {id}");
                    stopped += u32::from(wanted.finished[&id] == FinishReason::Stop);
                }
            }
        }
    }
    let seen = (ahead, ahead_edited, ahead_told, late, stopped, cancelled, put_aside);
    assert!(ahead > 40 && late > 1 && stopped > 8 && cancelled > 3 && put_aside > 3, "{seen:?}");
    assert!(ahead_edited > 40 && ahead_told > 20, "{seen:?}");
}

/// What was begun for somebody who has gone is not what a newcomer waits for, or is told of.
#[test]
fn a_step_begun_for_nobody_is_left_to_the_device() {
    let Some(found) = found() else { return };
    let mut engine = engine(&found, &model(TinyModel::default().to_bytes()));
    let mut record = watch();
    engine.admit(request(0, &[5, 6], 9)).expect("room");
    engine.step(&mut record).expect("it does not fail");
    assert!(is_ahead() && engine.cancel(0));
    engine.admit(request(1, &[7, 8, 9], 1)).expect("room");
    let report = engine.step(&mut record).expect("it does not fail");
    assert_eq!((report.rows_prefill, report.rows_decode, report.sampled, report.finished), (3, 0, 1, 1));
    assert_eq!((record.tokens[&0].len(), record.tokens[&1].len()), (1, 1));
}

#[test]
fn a_step_that_fails_after_it_was_begun_is_an_error_of_the_next_call_at_the_latest() {
    let Some(found) = found() else { return };
    let model = model(TinyModel::default().to_bytes());
    for begun_before in 0..4 {
        let mut engine = engine(&found, &model);
        let mut record = watch();
        engine.admit(request(0, &[5], 9)).expect("room");
        (0..begun_before).for_each(|_| _ = engine.step(&mut record).expect("it does not fail"));
        fail_next_launch();
        let errors: Vec<_> = (0..2).filter_map(|_| engine.step(&mut record).err()).collect();
        let text = errors.first().expect("it was told to fail").to_string();
        assert!(text.contains("CUDA_ERROR_ILLEGAL_ADDRESS (700)"), "{text}");
    }
}

/// An engine that goes while its device is busy waits for what still writes into its memory.
#[test]
fn an_engine_may_go_while_a_step_is_under_way() {
    let Some(found) = found() else { return };
    let model = model(TinyModel::default().to_bytes());
    let driver = Arc::new(Driver::open(&found, &Kernels::BuiltIn).expect("the packs can be loaded"));
    let options = EngineOptions { slots_max: 2, step_rows_max: 8, kv_blocks_max: 8, ..EngineOptions::default() };
    let mut engine = Engine::on_backend(model, options, CudaBackend::new(driver.clone())).expect("it fits");
    engine.admit(request(0, &[5], 9)).expect("room");
    engine.step(&mut watch()).expect("it does not fail");
    assert!(is_ahead());
    drop(engine);
    assert_eq!((driver.allocated_bytes(), counts().pending), (0, 0));
}

/// Biases, penalties, a least length, log-probabilities: none of them holds anybody back, and each has what the host would have
/// chosen, who is asked by looking at logits.
#[test]
fn what_is_done_to_logits_is_done_ahead_as_well() {
    let Some(found) = found() else { return };
    let model = model(TinyModel::default().to_bytes());
    // Told all of its logits the greedy one says again and again what it has said.
    let plain = || SamplingParams { temperature: 0.3, seed: 7, ..SamplingParams::default() };
    let ends = model.tokenizer().ends_of_generation().to_vec();
    let to_the_end: Vec<(u32, f32)> = ends.iter().map(|end| (*end, 50.0)).collect();
    type Case<'a> = (&'a str, Box<dyn Fn(&mut SequenceRequest) + 'a>);
    let cases: [Case<'_>; 7] = [
        ("a bias", Box::new(|r| r.sampling.logit_bias = [(65, 3.0), (66, 3.5), (65, 0.1)].into())),
        ("repetition", Box::new(|r| r.sampling.repetition_penalty = 1.5)),
        ("presence", Box::new(|r| r.sampling.presence_penalty = 2.0)),
        ("frequency", Box::new(|r| r.sampling.frequency_penalty = 0.7)),
        (
            "a least length",
            Box::new(|r| {
                (r.sampling.logit_bias, r.sampling.min_tokens) = (to_the_end.clone().into(), 6);
                r.ignore_end = false;
            }),
        ),
        ("log-probabilities", Box::new(|r| r.want_logprobs = true)),
        ("the likeliest", Box::new(|r| (r.want_logprobs, r.top_logprobs) = (true, 4))),
    ];
    let mut answers = Vec::new();
    for (name, change) in cases {
        let mut asked = SequenceRequest { sampling: plain(), ..request(0, &[65, 66, 65, 9], 14) };
        change(&mut asked);
        let run = |looks: fn(u32) -> bool| {
            let mut engine = engine(&found, &model);
            let mut sink = Stopping::default();
            engine.admit(asked.clone()).expect("room");
            engine.admit(request(1, &[7, 8], 14)).expect("room");
            let (mut ahead, mut steps) = (0, 0..);
            while !engine.is_idle() {
                sink.wants_logits = looks(steps.next().expect("there is no end to them"));
                engine.step(&mut sink).expect("it does not fail");
                ahead += u32::from(is_ahead());
            }
            (ahead, sink.tokens, sink.logprobs)
        };
        let (ahead, tokens, logprobs) = run(|_| false);
        // By the host, and by both in turn: of two steps that are looked at, the first is begun already.
        let (by_host, by_both) = (run(|_| true), run(|step| (1..3).contains(&(step % 5))));
        assert_eq!((ahead, by_host.0), (13, 0), "{name}");
        assert_eq!(by_both.0, 7, "{name}");
        assert!(tokens == by_host.1 && logprobs == by_host.2, "{name}");
        assert!(tokens == by_both.1 && logprobs == by_both.2, "{name}");
        assert!(logprobs[&0].iter().all(|(logprob, _)| logprob.is_some() == asked.want_logprobs), "{name}");
        assert!(logprobs[&0].iter().all(|(_, top)| top.len() == asked.top_logprobs as usize), "{name}");
        answers.push(tokens[&0].clone());
    }
    // The end is what the bias wants, and it comes when it may.
    assert_eq!(answers.remove(4).len(), 6);
    // The two that only look on say the same, everybody else something of his own.
    assert_eq!(answers[4], answers[5]);
    answers.sort_unstable();
    answers.dedup();
    assert_eq!(answers.len(), 5, "{answers:?}");
}

/// What the device has counted for one sequence is not what the next one in its slot is punished for; nor is the token too many
/// of a sequence that stops, which is chosen when somebody else may have been admitted.
#[test]
fn counts_go_with_their_sequence() {
    let Some(found) = found() else { return };
    let model = model(TinyModel::default().to_bytes());
    let asked = |id: u64, prompt: &[u32], max_tokens: u32| {
        let sampling = SamplingParams { frequency_penalty: 1.5, presence_penalty: 1.0, ..SamplingParams::default() };
        SequenceRequest { sampling, ..request(id, prompt, max_tokens) }
    };
    let said = |engine: &mut DriverEngine, prompt: &[u32]| {
        let mut sink = Stopping::default();
        engine.admit(asked(0, prompt, 10)).expect("room");
        while !engine.is_idle() {
            engine.step(&mut sink).expect("it does not fail");
        }
        sink.tokens.remove(&0).expect("it has said something")
    };
    let mut used = engine(&found, &model);
    for id in 1..13 {
        let mut sink = Stopping { after: [(id, 3)].into(), ..Stopping::default() };
        used.admit(asked(id, &[5, 9], 10)).expect("room");
        for _ in 0..2 {
            used.step(&mut sink).expect("it does not fail");
        }
        // Stops now, with a step begun; or is cancelled instead.
        match id % 2 {
            0 => _ = used.step(&mut sink).expect("it does not fail"),
            _ => assert!(used.cancel(id)),
        }
        assert!(is_ahead());
        // As long as what was counted, too, which is a reason to know whose that is.
        let prompt: Vec<u32> = [5, 9].into_iter().cycle().take(2 + id as usize / 2).collect();
        let (here, alone) = (said(&mut used, &prompt), said(&mut engine(&found, &model), &prompt));
        assert_eq!(here, alone, "{id}");
        let different: HashSet<u32> = alone.iter().copied().collect();
        assert!(different.len() > 5, "nothing was punished: {alone:?}");
    }
}

/// Whoever is put aside amid his answer, with a step begun for him, is punished for all of it when he is back, and for nothing
/// else.
#[test]
fn one_that_was_put_aside_is_known_again() {
    let Some(found) = found() else { return };
    let model = model(TinyModel::default().to_bytes());
    let requests: Vec<SequenceRequest> = (0..5)
        .map(|id| {
            let sampling = SamplingParams {
                frequency_penalty: 1.0,
                repetition_penalty: 1.4,
                logit_bias: [(id as u32 + 70, 4.0)].into(),
                ..SamplingParams::default()
            };
            SequenceRequest { sampling, preemptible: id < 4, ..request(id, &[5, 9, 70], 12) }
        })
        .collect();
    // Steps so often after each group has come, at the most.
    let run = |wants_logits: bool, steps: usize, groups: &[&[usize]]| {
        let mut engine = engine(&found, &model);
        let mut sink = Stopping { wants_logits, ..Stopping::default() };
        let mut preempted_ahead = 0;
        for ids in groups {
            for id in *ids {
                let was_ahead = is_ahead();
                engine.admit(requests[*id].clone()).expect("room");
                preempted_ahead += u32::from(was_ahead && engine.paused_count() > 0);
            }
            for _ in 0..steps {
                engine.step(&mut sink).expect("it does not fail");
            }
        }
        assert!(engine.is_idle());
        (preempted_ahead, sink.tokens)
    };
    let (preempted_ahead, crowd) = run(false, 6, &[&[0, 1, 2, 3], &[4], &[], &[], &[]]);
    let (_, alone) = run(true, 12, &[&[0], &[1], &[2], &[3], &[4]]);
    assert_eq!(preempted_ahead, 1);
    assert_eq!(crowd, alone);
    let different: HashSet<_> = alone.values().collect();
    assert_eq!(different.len(), 5, "{alone:?}");
}

/// The same bits from a seed, with and without somebody who has to be waited for.
#[test]
fn one_whose_tokens_the_host_chooses_holds_the_others_back_and_changes_nothing() {
    let Some(found) = found() else { return };
    let model = model(TinyModel::default().to_bytes());
    let sampling = SamplingParams { temperature: 1.0, seed: 5, repetition_penalty: 1.2, ..SamplingParams::default() };
    let drawn = SequenceRequest { sampling, ..request(0, &[5, 9], 12) };
    let run = |others: &[SequenceRequest]| {
        let mut engine = engine(&found, &model);
        let mut record = watch();
        for request in [&drawn].into_iter().chain(others) {
            engine.admit(request.clone()).expect("room");
        }
        engine.step(&mut record).expect("it does not fail");
        let was_ahead = is_ahead();
        drain(&mut engine, &mut record);
        (record.tokens.remove(&0).expect("it was there"), was_ahead)
    };
    let constraint = model.constraint(Grammar::Regex("[a-z]{5}")).expect("a sound grammar");
    let follows = SequenceRequest { constraint: Some(constraint), ignore_end: false, ..request(1, &[7], 6) };
    let biased = |count: usize| {
        let logit_bias = (0..count).map(|index| (index as u32 % 300, 0.25)).collect();
        SequenceRequest { sampling: SamplingParams { logit_bias, ..SamplingParams::default() }, ..request(1, &[7], 6) }
    };
    let (alone, is_ahead_alone) = run(&[]);
    assert_eq!((alone.len(), is_ahead_alone), (12, true));
    let biases_max = EDITED_MAX - model.tokenizer().ends_of_generation().len();
    for (other, is_ahead) in [(follows, false), (biased(biases_max), true), (biased(biases_max + 1), false)] {
        assert_eq!(run(&[other]), (alone.clone(), is_ahead));
    }
}
