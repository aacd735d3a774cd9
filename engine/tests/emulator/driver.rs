//! The emulated driver in place of the machine's own: see `engine/kernels/emulator/driver.cpp`.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(unsafe_code, reason = "the emulated driver is loaded before it is looked for")]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::Library;
use orchestratord_engine::backend::cuda::{Found, devices};
use orchestratord_engine::testing::emulator::library;

static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();

/// The emulated device; none where it cannot be compiled.
pub fn found() -> Option<Found> {
    let loaded = LIBRARY.get_or_init(|| {
        let path = std::env::var_os("ORCH_EMULATOR")
            .map(PathBuf::from)
            .or_else(|| library(Path::new(env!("CARGO_TARGET_TMPDIR"))))?;
        // A library that is loaded is found by the name that it calls itself, before any other of that name.
        // SAFETY: its initialisers only fill a table of its own kernels.
        Some(unsafe { Library::new(&path) }.unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    });
    loaded.as_ref()?;
    let mut found = devices().expect("the emulated driver has a device");
    assert_eq!(found.len(), 1);
    Some(found.remove(0))
}

/// What the emulated driver has counted in the context that this thread used last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub launches: u64,
    /// Of these, such as may start while the kernel before them ends.
    pub early: u64,
    pub captures: u64,
    pub graph_launches: u64,
    pub graphs: u64,
    /// Kernels of the last captured graph that may start early.
    pub early_in_graph: u64,
    /// What was asked of the context and is not done yet.
    pub pending: u64,
}

pub fn counts() -> Counts {
    let mut all = [0; 7];
    let library = LIBRARY.get().and_then(Option::as_ref).expect("it is loaded");
    // SAFETY: it writes as many numbers; its type is that of engine/kernels/emulator/driver.cpp.
    unsafe { library.get::<unsafe extern "C" fn(*mut u64)>(b"emulator_counts").expect("exported")(all.as_mut_ptr()) };
    let [launches, early, captures, graph_launches, graphs, early_in_graph, pending] = all;
    Counts { launches, early, captures, graph_launches, graphs, early_in_graph, pending }
}

/// Has the next launch in that context fail.
pub fn fail_next_launch() {
    let library = LIBRARY.get().and_then(Option::as_ref).expect("it is loaded");
    // SAFETY: as in `counts`.
    unsafe { library.get::<unsafe extern "C" fn()>(b"emulator_fail").expect("exported")() };
}
