//! The real driver path, from looking for libcuda to reading logits, over an emulated driver: see
//! `engine/kernels/emulator/driver.cpp`.

mod common;
#[path = "emulator/driver.rs"]
mod driver;
mod emulator;

use std::path::Path;
use std::sync::Arc;

use common::{Record, drain, model, request, shapes, tokens, wren};
use driver::{counts, fail_next_launch, found};
use orchestratord_engine::backend::cuda::{
    Arguments, CudaBackend, Device, Driver, Found, GraphMemory, Kernels, Use, launch_cost, plan, read_speed,
};
use orchestratord_engine::gguf::TensorType;
use orchestratord_engine::testing::{Dice, TinyModel, half_cells_error_max};
use orchestratord_engine::{Engine, EngineOptions, FinishReason, Model, TokenSink, Verdict};

fn engine(found: &Found, model: &Arc<Model>) -> Engine<CudaBackend<Driver>> {
    let driver = Arc::new(Driver::open(found, &Kernels::BuiltIn).expect("the packs can be loaded"));
    let options = EngineOptions { slots_max: 4, step_rows_max: 64, kv_blocks_max: 128, ..EngineOptions::default() };
    Engine::on_backend(model.clone(), options, CudaBackend::new(driver)).expect("it fits")
}

/// What a step asks of the driver: launches, captures, launches of graphs.
fn step(engine: &mut Engine<CudaBackend<Driver>>, record: &mut Record) -> (u64, u64, u64) {
    let before = counts();
    engine.step(record).expect("it does not fail");
    let after = counts();
    let launches = after.launches - before.launches;
    (launches, after.captures - before.captures, after.graph_launches - before.graph_launches)
}

#[test]
fn the_device_is_described_as_the_driver_says() {
    let Some(found) = found() else { return };
    assert_eq!((found.name.as_str(), found.capability, found.index), ("Emulated device", (9, 0), 0));
    assert_eq!((found.bus_id.as_str(), found.driver_version, found.memory_bytes), ("0000:00:00.0", 12090, 1 << 32));
    assert_eq!(found.processors, 132);
}

/// Norm and records, query with key and value, rotation and store, attention, records, its output, norm and records, gate with up,
/// their gate and records, down. With plain floats each matrix is a launch, and there are no records.
#[test]
fn a_layer_is_ten_launches() {
    let Some(found) = found() else { return };
    let launches_of = |tiny: TinyModel| {
        let mut engine = engine(&found, &model(tiny.to_bytes()));
        let before = counts();
        engine.forward_logits(&[5]).expect("it does not fail");
        counts().launches - before.launches
    };
    let kinds = [(TensorType::Bf16, 10), (TensorType::F16, 10), (TensorType::Q8_0, 10), (TensorType::F32, 12)];
    for (tensor_type, wanted) in kinds {
        let [one, three] =
            [1, 3].map(|layer_count| launches_of(TinyModel { tensor_type, layer_count, ..TinyModel::default() }));
        assert_eq!(three - one, 2 * wanted, "{tensor_type:?}");
        // Besides layers: angles, embedding, the first norm, and the output's product, whose records the last layer's norm makes.
        assert_eq!(one - wanted, 4, "{tensor_type:?}");
    }
}

/// Tiles and depths of grids follow the number of processors, and so does the memory for sums of segments; no bit does.
#[test]
fn a_device_of_any_size_has_the_same_bits_and_takes_what_was_planned_for_it() {
    const MARGIN_BYTES: u64 = 64 << 20;
    let Some(found) = found() else { return };
    let tiny = TinyModel { tensor_type: TensorType::Q8_0, layer_count: 1, vocab_len: 2048, ..TinyModel::default() };
    let model = model(tiny.to_bytes());
    let prompt = tokens(&mut Dice::new(3), 20, tiny.vocab_len);
    let mut bits: Vec<Vec<u32>> = Vec::new();
    let mut planned = Vec::new();
    for processors in [1, 20, 132, 300] {
        let found = Found { processors, ..found.clone() };
        let driver = Arc::new(Driver::open(&found, &Kernels::BuiltIn).expect("the packs can be loaded"));
        let options = EngineOptions { slots_max: 4, step_rows_max: 64, kv_blocks_max: 128, ..EngineOptions::default() };
        let sizes = plan(&model, &options, &found).expect("legal options");
        let backend = CudaBackend::new(driver.clone());
        let mut engine = Engine::on_backend(model.clone(), options, backend).expect("it fits");
        let logits = engine.forward_logits(&prompt).expect("it does not fail");
        bits.push(logits.iter().map(|x| x.to_bits()).collect());
        let taken = driver.allocated_bytes();
        assert!(taken + MARGIN_BYTES <= sizes.total(), "{processors}: {taken} of {sizes:?}");
        planned.push(sizes.workspace);
    }
    assert!(bits.iter().all(|of_one| *of_one == bits[0]));
    // 64 KiB for each block.
    assert!(planned[0] + (8 << 20) < planned[3], "{planned:?}");
}

/// Driver and emulator are given the same launches, so that not one bit may differ.
#[test]
fn a_forward_pass_through_the_driver_has_the_bits_of_the_emulated_device() {
    let Some(found) = found() else { return };
    let plain = emulator::device(0).expect("as before");
    // A layout each: `tests/cuda.rs` has every shape and type, and is told apart from this by the driver alone.
    let small = [0, 1, 3, 5, 7].map(|index| shapes()[index].clone());
    let wide = [TensorType::Q4_0, TensorType::Q4K, TensorType::Q6K].map(|tensor_type| TinyModel {
        tensor_type,
        embedding_length: 256,
        feed_forward_length: 256,
        layer_count: 1,
        ..TinyModel::default()
    });
    for (index, tiny) in small.into_iter().chain(wide).enumerate() {
        let model = model(tiny.to_bytes());
        let prompt = tokens(&mut Dice::new(index as u64), 5, tiny.vocab_len);
        let options = EngineOptions { slots_max: 4, step_rows_max: 64, kv_blocks_max: 128, ..EngineOptions::default() };
        let mut wanted =
            Engine::on_backend(model.clone(), options, CudaBackend::new(plain.clone())).expect("legal options");
        let wanted = wanted.forward_logits(&prompt).expect("it does not fail");
        let got = engine(&found, &model).forward_logits(&prompt).expect("it does not fail");
        assert!(got == wanted, "{tiny:?}");
    }
}

#[test]
fn the_built_in_model_gives_the_logits_of_the_cpu_through_the_driver() {
    let Some(found) = found() else { return };
    let model = model(wren());
    let prompt = model.tokenizer().encode("Once upon", true, false);
    let wanted = common::engine(&model, |_| ()).forward_logits(&prompt).expect("the CPU does not fail");
    let got = engine(&found, &model).forward_logits(&prompt).expect("it does not fail");
    let error = got.iter().zip(&wanted).map(|(g, w)| (g - w).abs()).fold(0.0, |a: f32, e| if e > a { e } else { a });
    let bound = half_cells_error_max(&wanted);
    assert!(got.len() == wanted.len() && got.iter().all(|x| x.is_finite()) && f64::from(error) < bound, "{error}");
}

/// Prompts, tokens one after the other, a sequence that joins and leaves.
#[test]
fn a_step_that_comes_again_is_one_launch_of_a_graph_with_the_bits_of_single_launches() {
    let Some(found) = found() else { return };
    let tiny = shapes()[3].clone();
    let model = model(tiny.to_bytes());
    let mut dice = Dice::new(17);
    let requests =
        [(0, 9, 14), (1, 3, 5)].map(|(id, len, max)| request(id, &tokens(&mut dice, len, tiny.vocab_len), max));
    let plain = emulator::device(0).expect("as before");
    let options = EngineOptions { slots_max: 4, step_rows_max: 64, kv_blocks_max: 128, ..EngineOptions::default() };
    let mut alone = Engine::on_backend(model.clone(), options, CudaBackend::new(plain)).expect("legal options");
    let mut wanted = Record::default();
    for request in &requests {
        alone.admit(request.clone()).expect("room");
        drain(&mut alone, &mut wanted);
    }

    let mut engine = engine(&found, &model);
    let mut record = Record::default();
    engine.admit(requests[0].clone()).expect("room");
    let (prompt, captured, graphs) = step(&mut engine, &mut record);
    assert!(prompt > 20 && (captured, graphs) == (0, 0));
    // The first token's step is new, the second's is captured, the others are known.
    let (launches, ..) = step(&mut engine, &mut record);
    assert!(launches > 20, "{launches}");
    assert_eq!(step(&mut engine, &mut record), (0, 1, 1));
    assert_eq!(counts().early_in_graph, launches, "each may start while the one before it ends");
    for _ in 0..3 {
        assert_eq!(step(&mut engine, &mut record), (0, 0, 1));
    }
    // Another shape is another graph, and the old one comes back with its shape.
    engine.admit(requests[1].clone()).expect("room");
    assert_eq!(step(&mut engine, &mut record).2, 0, "a prompt beside a token");
    assert!(step(&mut engine, &mut record).0 > 20);
    assert_eq!((step(&mut engine, &mut record), step(&mut engine, &mut record)), ((0, 1, 1), (0, 0, 1)));
    assert_eq!(counts().graphs, 2);
    while engine.running_count() > 1 {
        assert_eq!(step(&mut engine, &mut record), (0, 0, 1));
    }
    assert_eq!((step(&mut engine, &mut record), counts().graphs), ((0, 0, 1), 2));
    drain(&mut engine, &mut record);
    assert!(record.logits[&0].len() == 14 && record.logits == wanted.logits);
}

/// Code for older chips does not wait for its inputs, and old drivers' graphs have no early starts.
#[test]
fn kernels_start_early_where_chip_and_driver_can() {
    let Some(found) = found() else { return };
    let tiny = TinyModel { layer_count: 1, ..TinyModel::default() };
    let model = model(tiny.to_bytes());
    for (capability, driver_version, early, early_in_graph) in [
        ((8, 0), 12090, false, false),
        ((9, 0), 12090, true, true),
        ((9, 0), 12020, true, false),
        ((10, 0), 13000, true, true),
        // Runs the PTX that is for the oldest.
        ((13, 0), 13000, false, false),
    ] {
        let found = Found { capability, driver_version, ..found.clone() };
        let mut engine = engine(&found, &model);
        engine.admit(request(0, &[5], 4)).expect("room");
        drain(&mut engine, &mut Record::default());
        let counts = counts();
        assert_eq!(counts.early, if early { counts.launches } else { 0 }, "{capability:?}");
        assert!(counts.graphs == 1 && (counts.early_in_graph > 0) == early_in_graph, "{capability:?} {counts:?}");
    }
}

/// A driver, and an engine on it with one sequence of nine tokens.
fn with_one_sequence(found: &Found) -> (Arc<Driver>, Engine<CudaBackend<Driver>>, Record) {
    let driver = Arc::new(Driver::open(found, &Kernels::BuiltIn).expect("the packs can be loaded"));
    let options = EngineOptions { slots_max: 1, step_rows_max: 8, kv_blocks_max: 8, ..EngineOptions::default() };
    let backend = CudaBackend::new(driver.clone());
    let mut engine = Engine::on_backend(model(TinyModel::default().to_bytes()), options, backend).expect("it fits");
    engine.admit(request(0, &[5], 9)).expect("room");
    (driver, engine, Record::default())
}

#[test]
fn memory_that_is_given_back_takes_all_graphs_along() {
    let Some(found) = found() else { return };
    let (driver, mut engine, mut record) = with_one_sequence(&found);
    let steps: Vec<_> = (0..4).map(|_| step(&mut engine, &mut record)).collect();
    assert_eq!((steps[2], steps[3], driver.graph_count(), counts().graphs), ((0, 0, 1), (0, 0, 1), 1, 1));
    let address = driver.alloc(1000, Use::Workspace).expect("room");
    assert_eq!(counts().graphs, 1);
    driver.free(address, 1000);
    assert_eq!((driver.graph_count(), counts().graphs), (0, 0));
    // It was seen before it was a graph, and is new now.
    let (launches, ..) = step(&mut engine, &mut record);
    assert!(launches > 20, "{launches}");
    assert_eq!((step(&mut engine, &mut record), step(&mut engine, &mut record)), ((0, 1, 1), (0, 0, 1)));
    drop(engine);
    assert_eq!((driver.graph_count(), counts().graphs), (0, 0));
}

/// In a process of its own: the emulated device's memory is shared by all tests of one.
#[test]
fn graphs_take_memory_that_is_measured_and_go_when_something_else_needs_it() {
    const CHILD: &str = "ORCH_GRAPH_MEMORY_CHILD";
    let Some(found) = found() else { return };
    if std::env::var_os(CHILD).is_none() {
        let mut child = std::process::Command::new(std::env::current_exe().expect("it runs"));
        child.args(["--exact", "graphs_take_memory_that_is_measured_and_go_when_something_else_needs_it"]);
        let output = child.env(CHILD, "1").env("EMULATED_MEMORY", "160000000").output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let (driver, mut engine, mut record) = with_one_sequence(&found);
    assert_eq!(driver.graph_memory(), GraphMemory::default());
    let launches = step(&mut engine, &mut record).0 as usize;
    while step(&mut engine, &mut record) != (0, 0, 1) {}
    let taken = driver.graph_memory();
    assert!(taken.graphs == 1 && taken.kernels.abs_diff(launches) < 3, "{taken:?} {launches}");
    assert_eq!(taken.bytes, taken.kernels as u64 * 8192);
    let (free, _) = driver.memory().expect("it does not fail");
    let bytes = free as usize + 1000;
    let address = driver.alloc(bytes, Use::Workspace).expect("the graph makes room");
    assert_eq!((driver.graph_count(), counts().graphs), (0, 0));
    // There is no room for another graph: a step is launched kernel by kernel, and does not fail.
    let before = record.tokens[&0].len();
    let (launches, ..) = step(&mut engine, &mut record);
    assert!(launches > 20 && record.tokens[&0].len() > before, "{launches}");
    driver.free(address, bytes);
}

#[test]
fn a_graph_that_fails_is_the_steps_error_and_the_contexts_end() {
    let Some(found) = found() else { return };
    let mut engine = engine(&found, &model(TinyModel::default().to_bytes()));
    let mut record = Record::default();
    engine.admit(request(0, &[5], 9)).expect("room");
    while step(&mut engine, &mut record) != (0, 0, 1) {}
    for _ in 0..2 {
        fail_next_launch();
        let error = engine.step(&mut record).expect_err("it was told to fail").to_string();
        assert!(error.contains("CUDA_ERROR_ILLEGAL_ADDRESS (700)"), "{error}");
    }
}

/// Nothing is read of a part of a prompt that nobody samples from: it is waited for all the same.
#[test]
fn a_step_without_samples_fails_in_its_own_time() {
    let Some(found) = found() else { return };
    let tiny = TinyModel::default();
    let mut engine = engine(&found, &model(tiny.to_bytes()));
    let mut record = Record::default();
    engine.admit(request(0, &tokens(&mut Dice::new(6), 100, tiny.vocab_len), 2)).expect("room");
    fail_next_launch();
    let error = engine.step(&mut record).expect_err("it was told to fail").to_string();
    assert!(error.contains("CUDA_ERROR_ILLEGAL_ADDRESS (700)") && record.tokens.is_empty(), "{error}");
}

/// How the record in `bench/record` was made: the emulated device does nothing, so that what is left is the host's work.
#[test]
#[ignore = "a measurement, on a machine that does nothing else: EMULATED_IDLE=1 and as many steps as HOST_STEPS says"]
fn host_time_of_a_decode_step() {
    let Some(found) = found() else { return };
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<usize>().ok());
    assert_eq!(number("EMULATED_IDLE"), Some(1));
    let steps = number("HOST_STEPS").unwrap_or(200);
    // The kernels' shapes do not matter where they do nothing; their number does.
    let tiny =
        TinyModel { layer_count: 32, tensor_type: TensorType::Q8_0, context_length: 4096, ..TinyModel::default() };
    let mut engine = engine(&found, &model(tiny.to_bytes()));
    let mut record = Silent;
    let mut asked = request(0, &[5], steps as u32 + 4);
    // As many biases as HOST_BIASES says, and penalties with them.
    if let Some(count) = number("HOST_BIASES") {
        asked.sampling.frequency_penalty = 0.5;
        asked.sampling.logit_bias = (0..count as u32).map(|token| (token, 0.25)).collect();
    }
    engine.admit(asked).expect("room");
    let before = counts();
    engine.step(&mut record).expect("it does not fail");
    let launches = counts().launches - before.launches;
    engine.step(&mut record).expect("it does not fail");
    let mut times: Vec<f64> = (0..steps)
        .map(|_| {
            let begun = std::time::Instant::now();
            engine.step(&mut record).expect("it does not fail");
            begun.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let of = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)];
    println!(
        "{launches} launches a step; {steps} steps; us a step: least {:.1}, median {:.1}, 90% {:.1}",
        of(0),
        of(50),
        of(90)
    );
}

struct Silent;

impl TokenSink for Silent {
    fn token(&mut self, _: u64, _: u32, _: Option<f32>) -> Verdict {
        Verdict::Continue
    }

    fn finished(&mut self, _: u64, _: FinishReason) {}
}

/// What is allocated in a step may not be there: everything is had before the first one.
#[test]
fn steps_allocate_nothing() {
    let Some(found) = found() else { return };
    let tiny = TinyModel { context_length: 512, ..TinyModel::default() };
    let driver = Arc::new(Driver::open(&found, &Kernels::BuiltIn).expect("the packs can be loaded"));
    let options = EngineOptions { slots_max: 3, step_rows_max: 48, kv_blocks_max: 64, ..EngineOptions::default() };
    let backend = CudaBackend::new(driver.clone());
    let mut engine = Engine::on_backend(model(tiny.to_bytes()), options, backend).expect("it fits");
    let before = driver.allocated_bytes();
    let mut dice = Dice::new(3);
    for (id, len) in [(0, 60), (1, 1), (2, 17)] {
        engine.admit(request(id, &tokens(&mut dice, len, tiny.vocab_len), 3)).expect("room");
    }
    drain(&mut engine, &mut Record::default());
    assert_eq!(driver.allocated_bytes(), before);
}

#[test]
fn more_than_one_portion_goes_there_and_back() {
    let Some(found) = found() else { return };
    let driver = Driver::open(&found, &Kernels::BuiltIn).expect("the packs can be loaded");
    let bytes: Vec<u8> = (0..(21 << 20) + 5u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let address = driver.alloc(bytes.len(), Use::Workspace).expect("room");
    driver.upload(address, &bytes).expect("it does not fail");
    let mut back = vec![0; bytes.len()];
    driver.download(address, &mut back).expect("it does not fail");
    assert!(back == bytes);
    driver.free(address, bytes.len());
}

/// What shares are told of: a pass must have read everything, in whatever order threads take turns, or it is an error.
#[test]
fn ceilings_are_measured_by_passes_that_read_everything() {
    let Some(found) = found() else { return };
    let driver = Driver::open(&found, &Kernels::BuiltIn).expect("the packs can be loaded");
    for bytes in [1 << 16, 1 << 19] {
        let speed = read_speed(&driver, bytes).expect("it reads");
        assert!(speed.best >= speed.median && speed.median > 0.0 && speed.span_bytes <= bytes, "{speed:?}");
    }
    let cost = launch_cost(&driver).expect("it launches");
    assert!(cost.alone_us > 0.0 && cost.chained_us > 0.0 && cost.listed_us > 0.0, "{cost:?}");
    assert_eq!(driver.graph_count(), 0, "memory was given back");
    assert_eq!(driver.allocated_bytes(), 0);
    let plain = emulator::device(5).expect("as before");
    assert!(read_speed(&*plain, 1 << 17).is_ok());
}

#[test]
fn the_host_waits_in_reads_and_the_device_in_between() {
    let Some(found) = found() else { return };
    let driver = Driver::open(&found, &Kernels::BuiltIn).expect("the packs can be loaded");
    let address = driver.alloc(64, Use::Workspace).expect("room");
    driver.upload(address, &[1; 64]).expect("it does not fail");
    let time = driver.host_time();
    assert!(time.waited().is_zero() && time.idle().is_zero());
    driver.download(address, &mut [0; 64]).expect("it does not fail");
    let waited = time.waited();
    assert!(!waited.is_zero() && time.idle().is_zero());
    std::thread::sleep(std::time::Duration::from_millis(5));
    driver.upload(address, &[1; 64]).expect("it does not fail");
    assert!(time.waited() == waited && time.idle() >= std::time::Duration::from_millis(5));
    driver.free(address, 64);
}

#[test]
fn what_the_device_refuses_is_an_error_that_says_what_and_why() {
    let Some(found) = found() else { return };
    let driver = Driver::open(&found, &Kernels::BuiltIn).expect("the packs can be loaded");
    let error = driver.alloc(5 << 30, Use::Kv).expect_err("it has four").to_string();
    assert!(error.contains("no room for 5368709120 bytes") && error.contains("4294967296 are free"), "{error}");
    let error = driver.launch("no_such_kernel", [1, 1, 1], 32, 0, &Arguments::new()).expect_err("as it is named");
    assert!(error.to_string().contains("no kernel no_such_kernel for sm_90"), "{error}");
    let scale = |threads, shared| {
        driver.launch("scale", [1, 1, 1], threads, shared, &Arguments::new().pointer(0).float(0.0).int(0))
    };
    let error = scale(2048, 0).expect_err("a block has 1024").to_string();
    assert!(error.contains("scale: cuLaunchKernelEx: CUDA_ERROR_INVALID_VALUE (1)"), "{error}");
    scale(32, 100 << 10).expect("asked for first");
    let error = scale(32, 300 << 10).expect_err("more than a block can have").to_string();
    assert!(error.contains("scale: cuFuncSetAttribute"), "{error}");
}

/// PTX is for devices that are newer than this binary, and old drivers have their own say.
#[test]
fn every_pack_can_be_loaded_and_has_every_kernel() {
    let Some(found) = found() else { return };
    let tiny = TinyModel { layer_count: 1, ..shapes()[3].clone() };
    let (model, prompt) = (model(tiny.to_bytes()), [5]);
    let mut wanted: Option<Vec<f32>> = None;
    for capability in [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0), (13, 0)] {
        let found = Found { capability, ..found.clone() };
        let got = engine(&found, &model).forward_logits(&prompt).expect("it does not fail");
        assert!(*wanted.get_or_insert_with(|| got.clone()) == got, "{capability:?}");
    }
}

/// `ci/kernels.sh` runs this: it has the compiler.
#[test]
#[ignore = "needs libnvrtc.so.12 of the version that build.py takes, in LD_LIBRARY_PATH"]
fn kernels_compiled_at_run_time_are_those_of_the_packs() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let lock = std::fs::read_to_string(folder.join("kernels.lock")).expect("it is there");
    for target in ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"] {
        let images = orchestratord_engine::backend::cuda::compile(&folder, target).expect("NVRTC takes them");
        for (name, code) in images {
            let line = format!("code {name}.cu {target} bytes {} ", code.len());
            assert!(lock.contains(&line), "{line}");
        }
    }
    let refused = std::env::temp_dir().join(format!("kernels-{}", std::process::id()));
    std::fs::create_dir_all(&refused).expect("a folder");
    std::fs::write(refused.join("wrong.cu"), "this is no kernel").expect("a file");
    let error = orchestratord_engine::backend::cuda::compile(&refused, "sm_90").expect_err("it is none").to_string();
    std::fs::remove_dir_all(&refused).expect("it was made above");
    assert!(error.contains("wrong.cu") && error.contains("error:"), "{error}");
}
