//! The server with engine=cuda over an emulated driver, and beside drivers that are missing, old, or have no device.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::*;
use orchestratord_bdd::harness::binary::{Build, server_binary};
use orchestratord_engine::testing::TinyModel;
use orchestratord_engine::testing::emulator::{Emulation, driver_folder};
use serde_json::json;

/// A folder with a driver of this kind in it; none where it cannot be compiled.
fn driver(kind: Emulation) -> Option<PathBuf> {
    driver_folder(kind, Path::new(env!("CARGO_TARGET_TMPDIR")))
}

/// Settings of a server that finds such a driver, with a model so small that an emulated device is quick.
fn settings(home: &Scratch, kind: Option<Emulation>) -> Option<Settings> {
    let driver = match kind {
        Some(kind) => driver(kind)?,
        None => home.path().join("nothing"),
    };
    let model = home.path().join("tiny.gguf");
    let tiny = TinyModel { layer_count: 1, context_length: 2048, ..TinyModel::default() };
    std::fs::write(&model, tiny.to_bytes()).expect("a file");
    let settings = Settings::default()
        .with("model", model.display())
        .with("engine", "auto")
        .with("slots_max", 2)
        .with("step_rows_max", 16)
        .with("kv_blocks_max", 32);
    Some(settings.with_environment("LD_LIBRARY_PATH", driver.display()))
}

fn tiny_task(engine: &str) -> serde_json::Value {
    task_with(json!({ "model_ref": "tiny", "engine": engine, "ctx": 64, "max_tokens": 6, "ignore_end": true }))
}

fn texts(events: &[Event]) -> String {
    sse::text(events)
}

/// What `doctor` says with these settings, and whether it is content.
fn doctor(settings: &Settings) -> (String, bool) {
    let mut command = settings.command().unwrap_or_else(|e| panic!("{e:#}"));
    let output = command.arg("doctor").output().expect("it runs");
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.success())
}

#[test]
fn where_a_driver_has_a_device_it_computes_and_says_so() {
    let home = Scratch::new().expect("a folder");
    let Some(settings) = settings(&home, Some(Emulation::Driver)) else { return };
    let server = server_with(settings.clone());
    assert!(server.stdout().contains("engine   cuda, cuda-sm_90-v4"), "{}", server.stdout());
    let capabilities =
        server.client().send(&Request::get("/v1/capabilities")).expect("an answer").json().expect("JSON");
    assert_eq!(capabilities["engines"][0]["engine"], "cuda");
    let first = texts(&common::run(&server, &tiny_task("cuda")));
    let again = texts(&common::run(&server, &tiny_task("cuda")));
    assert!(!first.is_empty() && first == again, "{first:?}, {again:?}");
    let (said, content) = doctor(&settings);
    assert!(content && said.contains("Emulated device, compute capability 9.0, 4294 MB"), "{said}");
    assert!(said.contains("MB on the device"), "{said}");
}

#[test]
fn without_a_driver_or_with_one_that_is_of_no_use_the_cpu_computes_and_the_doctor_says_why() {
    let nothing = vec![("EMULATED_DEVICES", "0")];
    let weak = vec![("EMULATED_CAPABILITY", "75")];
    for (kind, environment, says) in [
        (None, vec![], "no NVIDIA driver: libcuda.so.1 is not found"),
        (Some(Emulation::Driver), nothing, "the NVIDIA driver has no device (cuInit: CUDA_ERROR_NO_DEVICE (100)"),
        (Some(Emulation::Driver), weak, "Emulated device has compute capability 7.5: the kernels need 8.0"),
        (Some(Emulation::OldDriver), vec![], "the NVIDIA driver is too old: libcuda has no "),
    ] {
        let home = Scratch::new().expect("a folder");
        let Some(mut settings) = settings(&home, kind) else { return };
        for (name, value) in environment {
            settings = settings.with_environment(name, value);
        }
        let (said, content) = doctor(&settings);
        if kind.is_none() && !said.contains(says) {
            eprintln!("SKIPPED: this machine has a driver of its own");
            continue;
        }
        assert!(content && said.contains("note device") && said.contains(says), "{said}");
        let server = server_with(settings.clone());
        assert!(!texts(&common::run(&server, &tiny_task("cpu"))).is_empty());
        drop(server);
        let (status, said) = Server::run_to_exit(&settings.clone().with("engine", "cuda")).expect("it ends");
        assert!(!status.success() && said.contains("engine=cuda") && said.contains(says), "{said}");
        let (said, content) = doctor(&settings.with("engine", "cuda"));
        assert!(!content && said.contains("BAD  device"), "{said}");
    }
}

#[test]
fn what_does_not_fit_is_refused_with_sizes_and_a_share_fits() {
    let home = Scratch::new().expect("a folder");
    let Some(settings) = settings(&home, Some(Emulation::Driver)) else { return };
    let settings = settings.with_environment("EMULATED_MEMORY", 120_000_000);
    let large = settings.clone().with("kv_blocks_max", 1_000_000);
    let (status, said) = Server::run_to_exit(&large).expect("it ends");
    for part in ["MB free of 120 MB", "weights", "KV cache", "workspace", "lower kv_blocks_max to"] {
        assert!(!status.success() && said.contains(part), "{part}: {said}");
    }
    let small = settings.clone().with_environment("EMULATED_MEMORY", 40_000_000);
    let (status, said) = Server::run_to_exit(&small).expect("it ends");
    assert!(!status.success() && said.contains("take a smaller model"), "{said}");
    let server = server_with(settings.with("kv_memory", "90%"));
    assert!(!texts(&common::run(&server, &tiny_task("cuda"))).is_empty());
    let health = get(&server, "/v1/pools/default/health").json().expect("JSON");
    assert!(health["metrics"]["kv_blocks_max"].as_u64().is_some_and(|blocks| blocks > 1000), "{health}");
}

/// Graphs are faster and nothing else: a driver that makes none is told of once, and text is the same.
#[test]
fn a_driver_that_makes_no_graphs_gives_the_same_text_and_is_told_of() {
    let home = Scratch::new().expect("a folder");
    let Some(settings) = settings(&home, Some(Emulation::Driver)) else { return };
    let said = "the driver makes no graphs";
    let with = server_with(settings.clone());
    let wanted = texts(&common::run(&with, &tiny_task("cuda")));
    assert!(!wanted.is_empty() && !with.stderr().contains(said), "{}", with.stderr());
    let without = server_with(settings.with_environment("EMULATED_GRAPH_MAX", 3));
    assert_eq!(texts(&common::run(&without, &tiny_task("cuda"))), wanted);
    assert_eq!(texts(&common::run(&without, &tiny_task("cuda"))), wanted);
    let stderr = without.stderr();
    assert_eq!(stderr.matches(said).count(), 1, "{stderr}");
    assert!(stderr.contains("cuGraphInstantiate: CUDA_ERROR_OUT_OF_MEMORY"), "{stderr}");
}

/// A launch fails, and the context with it; afterwards the device has less memory.
#[test]
fn a_device_error_ends_streams_and_the_engine_comes_back_with_the_cache_that_fits() {
    let home = Scratch::new().expect("a folder");
    let Some(settings) = settings(&home, Some(Emulation::Driver)) else { return };
    let settings = settings
        .with("kv_blocks_max", 2000)
        .with_environment("EMULATED_MEMORY", 120_000_000)
        .with_environment("EMULATED_MEMORY_LATER", 80_000_000)
        .with_environment("EMULATED_FAILS", home.path().join("fail").display());
    let server = server_with(settings);
    let long = || {
        task_with(json!({ "model_ref": "tiny", "engine": "cuda", "ctx": 2048, "max_tokens": 1900, "ignore_end": true }))
    };
    let break_one = || {
        let task = long();
        enqueue(&server, &task);
        let stream = open(&server, &task);
        // By then a step is the launch of a graph.
        wait_for_tokens(&stream, 8);
        std::fs::write(home.path().join("fail"), "").expect("a file");
        let last = finish(&stream).pop().expect("a stream has events");
        // On a machine where this thread got no turn for so long, the task may be through.
        (last.name == "error" || std::fs::remove_file(home.path().join("fail")).is_err()).then_some(last)
    };
    let last = (0..20).find_map(|_| break_one()).expect("a stream that still runs");
    assert_eq!((last.name.as_str(), last.field("code")), ("error", json!("WORKER_RESET")), "{}", last.data);
    let blocks = wait_for("the engine to be back", || {
        let health = get(&server, "/v1/pools/default/health").json()?;
        Ok((health["ready"] == true).then(|| health["metrics"]["kv_blocks_max"].as_u64().unwrap_or(0)))
    });
    let blocks = blocks.unwrap_or_else(|e| panic!("{e:#}"));
    assert!((1..2000).contains(&blocks), "{blocks} blocks");
    assert!(!texts(&common::run(&server, &tiny_task("cuda"))).is_empty());
    assert_eq!(metric(&server, "engine_restarts_total", &[("engine", "cuda")]), 1.0);
    let said = server.stderr();
    assert!(
        said.contains("CUDA_ERROR_ILLEGAL_ADDRESS") && said.contains("the KV cache is smaller than before"),
        "{said}"
    );
}

#[test]
fn use_of_the_device_is_in_the_metrics() {
    let home = Scratch::new().expect("a folder");
    let Some(settings) = settings(&home, Some(Emulation::Driver)) else { return };
    let server = server_with(settings);
    let device = [("device", "Emulated device")];
    let read = || Ok(scrape(&server).sum("vram_used_bytes", &device).filter(|bytes| *bytes > 100_000.0));
    wait_for("the memory in use", read).unwrap_or_else(|e| panic!("{e:#}"));
    assert_eq!(metric(&server, "gpu_utilization", &device), 0.42);
}

/// The script that waits for a machine with a device must work when there is one, all of it.
#[test]
fn the_check_of_a_device_runs_every_part_prints_its_table_last_and_writes_a_record() {
    let Some(driver) = driver(Emulation::Driver) else { return };
    let home = Scratch::new().expect("a folder");
    let record = home.path().join("record.md");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("engine/gpu/check.sh");
    let binary = server_binary(Build::Plain).unwrap_or_else(|e| panic!("{e:#}"));
    let mut command = Command::new("bash");
    command.arg(script).arg("-b").arg(binary).args(["-f", "-c", "abc123", "-o"]).arg(&record);
    // Without a control: a Python that has PyTorch would take its time.
    command.env("LD_LIBRARY_PATH", driver).env("PYTHON", "no-python").env_remove("SPEED");
    let output = command.output().expect("bash is here");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let (_, table) = said.rsplit_once("\n== ").expect("a table comes last");
    let rows: Vec<[&str; 2]> =
        table.lines().skip(1).map(|line| [line[..11].trim_end(), line[12..20].trim_end()]).collect();
    let ok = ["doctor", "kernels", "emulator", "determinism", "speed"].map(|part| [part, "ok"]);
    assert_eq!(rows[..5], ok, "{said}");
    assert_eq!(rows[5..7], [["control", "skipped"], ["server", "ok"]], "{said}");
    let written = std::fs::read_to_string(&record).expect("it was written");
    for wanted in [
        "# The CUDA engine on a device",
        "commit abc123",
        "| llama-3.1-8b bf16 |  |  | 75.0 % | 90.0 % |",
        "| orchestratord | tiny q8_0 | 2 | 3 | 2 |",
    ] {
        assert!(written.contains(wanted), "{wanted}: {written}");
    }
}

/// A part that fails takes no other along, and is what the exit status says.
#[test]
fn the_check_of_a_device_goes_on_after_a_part_that_failed() {
    let Some(driver) = driver(Emulation::OldDriver) else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("engine/gpu/check.sh");
    let binary = server_binary(Build::Plain).unwrap_or_else(|e| panic!("{e:#}"));
    let mut command = Command::new("bash");
    command.arg(script).arg("-b").arg(binary).args(["-f", "doctor", "determinism", "speed"]);
    command.env("LD_LIBRARY_PATH", driver);
    let output = command.output().expect("bash is here");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["doctor", "determinism", "speed"] {
        assert!(said.lines().any(|line| line.starts_with(&format!("{part:<11} FAILED"))), "{part}: {said}");
    }
}
