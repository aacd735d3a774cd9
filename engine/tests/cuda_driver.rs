//! The real driver path, from looking for libcuda to reading logits, over an emulated driver: see
//! `engine/kernels/emulator/driver.cpp`.
#![allow(unsafe_code, reason = "the emulated driver is loaded before it is looked for")]

mod common;
mod emulator;

use std::path::Path;
use std::sync::{Arc, OnceLock};

use common::{Record, drain, model, request, shapes, tokens, wren};
use libloading::Library;
use orchestratord_engine::backend::cuda::{
    Arguments, CudaBackend, Device, Driver, Found, Kernels, Use, devices, launch_cost, read_speed,
};
use orchestratord_engine::gguf::TensorType;
use orchestratord_engine::testing::emulator::compile;
use orchestratord_engine::testing::{Dice, TinyModel};
use orchestratord_engine::{Engine, EngineOptions, Model};

/// The emulated device; none where it cannot be compiled.
fn found() -> Option<Found> {
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    let loaded = LIBRARY.get_or_init(|| {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("driver-{}.so", std::process::id()));
        compile(&path)?;
        // A library that is loaded is found by the name that it calls itself, before any other of that name.
        // SAFETY: its initialisers only fill a table of its own kernels.
        Some(unsafe { Library::new(&path) }.unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    });
    loaded.as_ref()?;
    let mut found = devices().expect("the emulated driver has a device");
    assert_eq!(found.len(), 1);
    Some(found.remove(0))
}

fn engine(found: &Found, model: &Arc<Model>) -> Engine<CudaBackend<Driver>> {
    let driver = Arc::new(Driver::open(found, &Kernels::BuiltIn).expect("the packs can be loaded"));
    let options = EngineOptions { slots_max: 4, step_rows_max: 64, kv_blocks_max: 128, ..EngineOptions::default() };
    Engine::on_backend(model.clone(), options, CudaBackend::new(driver)).expect("it fits")
}

#[test]
fn the_device_is_described_as_the_driver_says() {
    let Some(found) = found() else { return };
    assert_eq!((found.name.as_str(), found.capability, found.index), ("Emulated device", (9, 0), 0));
    assert_eq!((found.bus_id.as_str(), found.driver_version, found.memory_bytes), ("0000:00:00.0", 12090, 1 << 32));
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
    assert!(got.len() == wanted.len() && got.iter().all(|x| x.is_finite()) && error < 1e-3, "{error}");
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
    assert!(cost.alone_us > 0.0 && cost.chained_us > 0.0, "{cost:?}");
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
    assert!(error.contains("scale: cuLaunchKernel: CUDA_ERROR_INVALID_VALUE (1)"), "{error}");
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
