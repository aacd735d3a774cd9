//! The CUDA backend and its kernels, on an emulated device, against slow passes in `f64` and the CPU backend.

mod common;
mod emulator;
mod reference;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use common::{Record, drain, model, request, shapes, tokens, wren};
use emulator::Emulator;
use orchestratord_engine::backend::cuda::{Arguments, CudaBackend, Device};
use orchestratord_engine::backend::{Backend, Batch, Pick, Seat, StepShape};
use orchestratord_engine::gguf::TensorType;
use orchestratord_engine::testing::choices::{choice, chosen, edited, editing, edits, scores};
use orchestratord_engine::testing::emulator::compiler;
use orchestratord_engine::testing::{Dice, TinyModel, half_cells_error_max};
use orchestratord_engine::{Engine, EngineOptions, Model, SamplingParams, SequenceRequest};
use reference::Network;

/// Logits are of the order of one; the same bound holds for the CPU. The slow pass rounds keys and values as the device does.
const ERROR_MAX: f64 = 1e-3;

type CudaEngine = Engine<CudaBackend<Emulator>>;

fn options(change: impl FnOnce(&mut EngineOptions)) -> EngineOptions {
    let mut options = EngineOptions { slots_max: 4, step_rows_max: 64, kv_blocks_max: 128, ..EngineOptions::default() };
    change(&mut options);
    options
}

fn engine_on(device: Arc<Emulator>, model: &Arc<Model>, change: impl FnOnce(&mut EngineOptions)) -> CudaEngine {
    Engine::on_backend(model.clone(), options(change), CudaBackend::new(device)).expect("legal options")
}

fn worst(got: &[f32], wanted: impl Iterator<Item = f64>) -> f64 {
    let errors: Vec<f64> = got.iter().zip(wanted).map(|(g, w)| (f64::from(*g) - w).abs()).collect();
    assert_eq!(errors.len(), got.len());
    // `max` would pass over what is no number.
    errors.into_iter().fold(0.0, |a, e| if e > a || e.is_nan() { e } else { a })
}

#[test]
fn every_tensor_type_and_ragged_shape_gives_the_logits_of_the_slow_pass() {
    let Some(device) = emulator::device(0) else { return };
    for (index, tiny) in shapes().into_iter().enumerate() {
        let bytes = tiny.to_bytes();
        let prompt = tokens(&mut Dice::new(index as u64), 5, tiny.vocab_len);
        let network = Network::read(&bytes).with_half_cells();
        let network = match tiny.tensor_type {
            TensorType::F16 | TensorType::Bf16 | TensorType::F8 => network.with_half_activations(),
            _ => network,
        };
        let wanted: Vec<f64> = network.logits(&prompt).into_iter().flatten().collect();
        let got = engine_on(device.clone(), &model(bytes), |_| ()).forward_logits(&prompt).expect("it does not fail");
        let error = worst(&got, wanted.iter().copied());
        // Where activations become whole numbers before they are multiplied, keys and values are others before they become halves.
        let bound = match tiny.tensor_type {
            TensorType::F32 => ERROR_MAX,
            // Sums that differ in their last digit may be rounded to neighbours.
            TensorType::F16 | TensorType::Bf16 | TensorType::F8 => 2.0 * ERROR_MAX,
            _ => half_cells_error_max(&wanted.iter().map(|x| *x as f32).collect::<Vec<f32>>()),
        };
        assert!(error < bound, "{error} of {bound}, {tiny:?}");
    }
}

#[test]
fn every_architecture_gives_the_logits_of_the_cpu() {
    let Some(device) = emulator::device(3) else { return };
    for name in ["llama2", "llama3", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/references/{name}.gguf"));
        let model = Arc::new(Model::open(&path).expect("a sound model"));
        let prompt = tokens(&mut Dice::new(7), 30, model.info().vocab_len);
        let wanted = common::engine(&model, |_| ()).forward_logits(&prompt).expect("the CPU does not fail");
        let got = engine_on(device.clone(), &model, |_| ()).forward_logits(&prompt).expect("it does not fail");
        let error = worst(&got, wanted.iter().map(|x| f64::from(*x)));
        let bound = half_cells_error_max(&wanted);
        assert!(error < bound, "{name}: {error} of {bound}");
    }
}

#[test]
fn the_built_in_model_gives_the_logits_of_the_cpu() {
    let Some(device) = emulator::device(0) else { return };
    let model = model(wren());
    let prompt = model.tokenizer().encode("Once upon a time, there was a small fox.", true, false);
    let wanted = common::engine(&model, |_| ()).forward_logits(&prompt).expect("the CPU does not fail");
    let got = engine_on(device, &model, |_| ()).forward_logits(&prompt).expect("it does not fail");
    let error = worst(&got, wanted.iter().map(|x| f64::from(*x)));
    let bound = half_cells_error_max(&wanted);
    assert!(error < bound, "{error} of {bound}");
}

/// Contexts of several pieces of attention, windows that begin within one, and more heads than share a block of threads.
#[test]
fn long_contexts_are_put_together_from_pieces() {
    let Some(device) = emulator::device(0) else { return };
    let tiny =
        TinyModel { head_count: 10, head_count_kv: 1, layer_count: 1, context_length: 1024, ..TinyModel::default() };
    let bytes = tiny.to_bytes();
    let model = model(bytes.clone());
    let prompt = tokens(&mut Dice::new(5), 530, tiny.vocab_len);
    let wanted = Network::read(&bytes).with_half_cells().logits(&prompt);
    let got = engine_on(device, &model, |_| ()).forward_logits(&prompt).expect("it does not fail");
    for position in [0, 255, 256, 257, 511, 512, 529] {
        let row = &got[position * tiny.vocab_len..][..tiny.vocab_len];
        let error = worst(row, wanted[position].iter().copied());
        assert!(error < ERROR_MAX, "{error} at {position}");
    }
}

#[test]
fn alone_equals_in_a_crowd_in_chunks_from_the_cache_and_in_any_order_of_threads() {
    let Some(device) = emulator::device(0) else { return };
    let kinds = [shapes()[0].clone(), shapes()[3].clone(), shapes()[7].clone()];
    for tiny in kinds {
        let model = model(tiny.to_bytes());
        let mut dice = Dice::new(11);
        let prompt = tokens(&mut dice, 35, tiny.vocab_len);
        let mut wanted: Option<Vec<Vec<u32>>> = None;
        for (seed, chunk, mates, reuse) in [(0, 64, 0, false), (1, 1, 0, false), (2, 5, 3, false), (0, 7, 2, true)] {
            let device = if seed == 0 { device.clone() } else { emulator::device(seed).expect("as before") };
            let mut engine =
                engine_on(device, &model, |o| (o.slots_max, o.step_rows_max) = (mates + 1, (mates + 1).max(chunk)));
            let mut record = Record::default();
            if reuse {
                engine.admit(SequenceRequest { reuse, ..request(1000, &prompt[..33], 1) }).expect("room");
                drain(&mut engine, &mut record);
            }
            engine.admit(SequenceRequest { reuse, ..request(0, &prompt, 4) }).expect("room");
            for mate in 0..mates {
                let len = 1 + dice.below(30);
                engine.admit(request(1 + mate as u64, &tokens(&mut dice, len, tiny.vocab_len), 6)).expect("room");
            }
            drain(&mut engine, &mut record);
            let bits = record.logits.remove(&0).expect("it has generated");
            assert!(*wanted.get_or_insert_with(|| bits.clone()) == bits, "chunks of {chunk}, {mates} mates: {tiny:?}");
        }
    }
}

/// Ties, masks, numbers that are none, flat rows, and temperatures at both ends.
#[test]
fn the_device_chooses_the_tokens_that_the_host_chooses() {
    let Some(device) = emulator::device(0) else { return };
    let mut dice = Dice::new(21);
    for round in 0..80 {
        let device = if round % 4 == 0 { emulator::device(round + 1).expect("as before") } else { device.clone() };
        let mut backend = CudaBackend::new(device);
        let vocab_len = [1, 2, 33, 300, 1000, 2048, 2049, 5000][dice.below(8)];
        let rows: Vec<Vec<f32>> = (0..1 + dice.below(6)).map(|_| scores(&mut dice, vocab_len)).collect();
        // Some rows are for the host.
        let sampled: Vec<usize> = (0..rows.len()).filter(|_| dice.below(5) > 0).collect();
        let mut pick = |row: &usize| {
            let choice = choice(&mut dice, vocab_len);
            Pick { sample: *row as u32, edits: None, choice, keeps_logits: false }
        };
        let batch = rows_alone(rows.len(), sampled.iter().map(&mut pick).collect(), 0);
        let (tokens, _) = choose(&mut backend, &rows, &batch);
        for (Pick { sample, choice, .. }, token) in batch.picks.iter().zip(tokens) {
            let row = &rows[*sample as usize];
            let wanted = chosen(row, choice);
            assert_eq!(token, wanted, "round {round}: {choice:?} of {vocab_len} {:?}", &row[..vocab_len.min(8)]);
        }
    }
}

/// A step that consists of choosing.
fn rows_alone(rows: usize, picks: Vec<Pick>, lane: usize) -> Batch {
    let zeros = || vec![0; rows];
    let (tables, table_len) = (vec![0], 1);
    Batch {
        tokens: zeros(),
        positions: zeros(),
        table_of_row: zeros(),
        tables,
        table_len,
        picks,
        lane,
        ..Batch::default()
    }
}

/// The tokens, and what the logits have become.
fn choose(backend: &mut CudaBackend<Emulator>, rows: &[Vec<f32>], batch: &Batch) -> (Vec<u32>, Vec<f32>) {
    let mut logits = backend.buffer_of(&rows.concat()).expect("room");
    backend.begin_step(batch, &[]).expect("it does not fail");
    backend.choose(&mut logits, rows[0].len(), batch);
    backend.start(batch);
    let tokens = backend.chosen(batch).expect("it does not fail").to_vec();
    let all = 0..rows.len() * rows[0].len();
    (tokens, backend.read(&logits, all).expect("it does not fail").to_vec())
}

/// Answers of several slots grow by what the device chooses, now and then by what somebody else does; sequences come and go, and
/// are known to the device by what it was told when they came. Scores, biases and penalties are odd ones, too.
#[test]
fn the_device_edits_and_chooses_as_the_host_does() {
    let Some(device) = emulator::device(0) else { return };
    struct Answer {
        params: SamplingParams,
        prompt_len: usize,
        tokens: Vec<u32>,
        is_seated: bool,
    }
    let mut dice = Dice::new(8);
    let (mut edited_count, mut changed, mut drawn, mut kept_count) = (0, 0, 0, 0);
    for round in 0..40 {
        let device = if round % 4 == 0 { emulator::device(round + 1).expect("as before") } else { device.clone() };
        let mut backend = CudaBackend::new(device);
        let vocab_len = [1, 7, 300, 1000, 2048, 2049, 4100][dice.below(7)];
        let slots = 1 + dice.below(4);
        let shape = StepShape {
            rows_max: slots,
            tables_len: 1,
            table_len: 1,
            cols_max: 16,
            head_count: 1,
            head_count_kv: 1,
            head_len: 16,
            context_max: 64,
            choices_max: slots,
            vocab_len,
        };
        backend.reserve(&shape, &[]).expect("room");
        let ends: Vec<u32> = (0..dice.below(4)).map(|_| dice.below(vocab_len) as u32).collect();
        let mut answers: Vec<Option<Answer>> = (0..slots).map(|_| None).collect();
        for step in 0..8 {
            let rows: Vec<Vec<f32>> = (0..slots).map(|_| scores(&mut dice, vocab_len)).collect();
            let mut picks = Vec::new();
            for (slot, answer) in answers.iter_mut().enumerate() {
                if dice.below(6) == 0 {
                    *answer = None;
                }
                let answer = answer.get_or_insert_with(|| {
                    let among = 1 + dice.below(vocab_len);
                    let wild = dice.below(2) == 0;
                    let prompt_len = 1 + dice.below(20);
                    // Somebody who comes back has some of his answer already.
                    let tokens = (0..prompt_len + dice.below(10)).map(|_| dice.below(among) as u32).collect();
                    Answer { params: editing(&mut dice, vocab_len, wild), prompt_len, tokens, is_seated: false }
                });
                if dice.below(8) == 0 {
                    continue;
                }
                let &mut Answer { ref params, prompt_len, ref tokens, is_seated } = answer;
                let edits = edits(params, tokens.len() - prompt_len);
                if let Some(edits) = edits.filter(|_| !is_seated) {
                    let tokens = edits.penalties.map(|_| &tokens[..]);
                    backend.seat(slot, &Seat { tokens, prompt_len, biases: &params.logit_bias, ends: &ends });
                    answer.is_seated = true;
                }
                let edits = edits.map(|edits| (slot, edits));
                let (choice, keeps_logits) = (choice(&mut dice, vocab_len), dice.below(3) == 0);
                picks.push(Pick { sample: slot as u32, edits, choice, keeps_logits });
            }
            let batch = rows_alone(slots, picks, step % 2);
            let (chosen_here, logits) = choose(&mut backend, &rows, &batch);
            let mut chosen_here = chosen_here.into_iter();
            let mut kept = backend.kept(&batch).chunks_exact(vocab_len);
            for (slot, answer) in answers.iter_mut().enumerate() {
                let answer = answer.as_mut().expect("each slot has one");
                let Some(pick) = batch.picks.iter().find(|pick| pick.sample as usize == slot) else {
                    // Somebody else has chosen.
                    answer.tokens.push(dice.below(vocab_len) as u32);
                    answer.is_seated = false;
                    continue;
                };
                let (bare, token) = (&rows[slot], chosen_here.next().expect("as many as picks"));
                let scores = edited(bare, &answer.params, &answer.tokens, answer.prompt_len, &ends);
                let wanted = chosen(&scores, &pick.choice);
                let seen = format!("round {round}, step {step} of {vocab_len}: {pick:?} {:?}", answer.params);
                assert_eq!(token, wanted, "{seen}");
                // To the bit, though a bit more or less seldom is another token. Which number is none does not matter.
                let bits = |x: &f32| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() };
                let here = &logits[slot * vocab_len..][..vocab_len];
                assert!(here.iter().map(bits).eq(scores.iter().map(bits)), "{seen}");
                if pick.keeps_logits {
                    let kept = kept.next().expect("as many as are kept");
                    assert!(kept.iter().zip(bare).all(|(a, b)| a.to_bits() == b.to_bits()), "{seen}");
                    kept_count += 1;
                }
                edited_count += u32::from(pick.edits.is_some());
                changed += u32::from(wanted != chosen(bare, &pick.choice));
                drawn += u32::from(pick.edits.is_some() && pick.choice.temperature > 0.0);
                answer.tokens.push(token);
            }
            assert!(kept.next().is_none() && chosen_here.next().is_none());
        }
    }
    let seen = (edited_count, changed, drawn, kept_count);
    assert!(edited_count > 400 && changed > 150 && drawn > 300 && kept_count > 100, "{seen:?}");
}

/// Sequences whose logits nobody looks at stand beside others; tokens are the host's all the same.
#[test]
fn tokens_are_the_same_whether_device_or_host_chooses_them() {
    let Some(device) = emulator::device(0) else { return };
    let tiny = TinyModel { vocab_len: 331, layer_count: 1, ..TinyModel::default() };
    let model = model(tiny.to_bytes());
    let mut dice = Dice::new(4);
    let requests: Vec<SequenceRequest> = (0..10)
        .map(|id| {
            let prompt_len = 1 + dice.below(4);
            let prompt = tokens(&mut dice, prompt_len, tiny.vocab_len);
            let sampling = SamplingParams {
                temperature: [0.0, 0.7, 1.0, 3.0][dice.below(4)],
                top_k: [0, 1, 20][dice.below(3)],
                top_p: [1.0, 0.9, 0.3][dice.below(3)],
                min_p: [0.0, 0.02][dice.below(2)],
                seed: dice.next_u64(),
                ..editing(&mut dice, tiny.vocab_len, false)
            };
            let (want_logprobs, want_prompt_logprobs) = (dice.below(3) == 0, dice.below(5) == 0);
            let top_logprobs = [0, 0, 3][dice.below(3)];
            SequenceRequest { sampling, want_logprobs, want_prompt_logprobs, top_logprobs, ..request(id, &prompt, 6) }
        })
        .collect();
    let run = |tokens_only: bool| {
        let mut engine = engine_on(device.clone(), &model, |o| o.slots_max = 5);
        let mut record = Record { tokens_only, ..Record::default() };
        let before = device.downloaded();
        for chunk in requests.chunks(5) {
            for request in chunk {
                engine.admit(request.clone()).expect("room");
            }
            drain(&mut engine, &mut record);
        }
        ((record.tokens, record.logprobs), device.downloaded() - before)
    };
    let ((by_device, few), (by_host, many)) = (run(true), run(false));
    assert_eq!(by_device, by_host);
    assert!(few < many / 2, "{few} bytes of {many} were read");
}

/// And those the device writes into the host's memory itself.
#[test]
fn of_a_sequence_that_nobody_looks_at_nothing_is_copied_back() {
    let Some(device) = emulator::device(0) else { return };
    let model = model(TinyModel::default().to_bytes());
    let mut engine = engine_on(device.clone(), &model, |_| ());
    let mut record = Record { tokens_only: true, ..Record::default() };
    engine.admit(request(0, &[5, 6, 7], 10)).expect("room");
    let before = device.downloaded();
    drain(&mut engine, &mut record);
    assert_eq!((record.tokens[&0].len(), device.downloaded() - before), (10, 0));
}

/// On a device such a kernel would now and then read what the one before it has not written yet. The emulation stops, so it
/// is run by a process of its own.
#[test]
fn a_kernel_that_does_not_wait_for_its_inputs_is_found() {
    const CHILD: &str = "ORCH_KERNEL_THAT_DOES_NOT_WAIT";
    if std::env::var_os(CHILD).is_some() {
        let device = emulator::device(0).expect("its parent has compiled it");
        for kernel in ["waits", "does_not_wait"] {
            let launched = device.launch(kernel, [1, 1, 1], 32, 0, &Arguments::new().int(7));
            println!("{kernel}: {launched:?}");
        }
        return;
    }
    let Some(compiler) = compiler() else { return };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("wait-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let (source, library) = (folder.join("wait.cu"), folder.join("wait.so"));
    let kernels = "#include \"device.cuh\"\n\
        extern \"C\" __global__ void waits(int) { wait_for_inputs(); }\nREGISTER(waits)\n\
        extern \"C\" __global__ void does_not_wait(int n) { if (threadIdx.x < n) wait_for_inputs(); }\n\
        REGISTER(does_not_wait)\n";
    std::fs::write(&source, kernels).expect("a file");
    let mut command = Command::new(compiler);
    command.args(["-std=c++20", "-fPIC", "-shared", "-fvisibility=hidden", "-DEMULATED", "-x", "c++", "-I"]);
    let folder_of_kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    command.arg(&folder_of_kernels).arg(&source).arg(folder_of_kernels.join("emulator/fibers.cpp"));
    let built = command.arg("-o").arg(&library).output().expect("the compiler was there a moment ago");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let mut child = Command::new(std::env::current_exe().expect("this is running"));
    child.args(["a_kernel_that_does_not_wait_for_its_inputs_is_found", "--exact", "--nocapture"]);
    let output = child.env(CHILD, "1").env("ORCH_EMULATOR", &library).output().expect("it runs");
    std::fs::remove_dir_all(&folder).expect("it was made above");
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(out.contains("waits: Ok(())") && !output.status.success(), "{out}{error}");
    assert!(error.contains("a thread has ended without wait_for_inputs (block 0,0,0 thread 7)"), "{out}{error}");
}

#[test]
fn a_device_that_breaks_ends_the_step_with_an_error() {
    let Some(device) = emulator::breaking(9) else { return };
    let model = model(TinyModel::default().to_bytes());
    let mut engine = engine_on(device, &model, |_| ());
    let error = engine.forward_logits(&[5, 6, 7]).expect_err("it was told to break");
    assert!(error.to_string().contains("told to break"), "{error}");
}
