//! The device that the CUDA backend runs on in tests: the kernels of `engine/kernels`, compiled as C++ over an emulation of
//! the execution model. Where they cannot be compiled, [`device`] is none.
#![allow(unsafe_code, reason = "the emulation is a library with C's calling convention")]
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeSet;
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use libloading::{Library, Symbol};
use orchestratord_engine::DeviceError;
use orchestratord_engine::backend::cuda::{Arguments, Device, Use};
use orchestratord_engine::testing::emulator::library;

type Launch = unsafe extern "C" fn(*const c_char, *const u32, u32, usize, *const *const c_void, u64) -> c_int;
type Alloc = unsafe extern "C" fn(usize) -> u64;
type Free = unsafe extern "C" fn(u64, usize);
type Copy = unsafe extern "C" fn(u64, u64, usize);

/// An emulated device.
pub struct Emulator {
    launch: Launch,
    alloc: Alloc,
    free: Free,
    copy: Copy,
    /// Chooses the order in which threads take turns.
    seed: u64,
    /// Launches until the device breaks.
    breaks_after: Option<std::sync::atomic::AtomicI64>,
    processors: usize,
    downloaded: std::sync::atomic::AtomicUsize,
    launched: Mutex<BTreeSet<&'static str>>,
    _library: &'static Library,
}

/// A device whose threads take turns in the order that `seed` says; none without a compiler for it.
pub fn device(seed: u64) -> Option<Arc<Emulator>> {
    Some(Arc::new(emulator(seed, None)?))
}

/// A device that fails from launch number `launches` on.
pub fn breaking(launches: i64) -> Option<Arc<Emulator>> {
    Some(Arc::new(emulator(0, Some(launches.into()))?))
}

/// A device that says it has so many processors.
pub fn with_processors(seed: u64, processors: usize) -> Option<Arc<Emulator>> {
    Some(Arc::new(Emulator { processors, ..emulator(seed, None)? }))
}

fn emulator(seed: u64, breaks_after: Option<std::sync::atomic::AtomicI64>) -> Option<Emulator> {
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    let loaded = LIBRARY.get_or_init(|| {
        let path = std::env::var_os("ORCH_EMULATOR")
            .map(PathBuf::from)
            .or_else(|| library(Path::new(env!("CARGO_TARGET_TMPDIR"))))?;
        // SAFETY: the library's initialisers only fill a table of its own kernels.
        Some(unsafe { Library::new(&path) }.unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    });
    let library = loaded.as_ref()?;
    // SAFETY: the types are those of the definitions at the end of engine/kernels/emulator/fibers.cpp, and the library is
    // never unloaded.
    unsafe fn symbol<T: std::marker::Copy + 'static>(library: &'static Library, name: &str) -> T {
        let symbol: Symbol<'static, T> = unsafe { library.get(name.as_bytes()) }.expect("the emulation exports it");
        *symbol
    }
    // SAFETY: as above.
    let (launch, alloc, free, copy) = unsafe {
        (
            symbol(library, "emulator_launch"),
            symbol(library, "emulator_alloc"),
            symbol(library, "emulator_free"),
            symbol(library, "emulator_copy"),
        )
    };
    let (downloaded, launched) = Default::default();
    Some(Emulator {
        launch,
        alloc,
        free,
        copy,
        seed,
        breaks_after,
        processors: 132,
        downloaded,
        launched,
        _library: library,
    })
}

impl Emulator {
    /// The kernels that have been launched.
    pub fn launched(&self) -> BTreeSet<&'static str> {
        self.launched.lock().expect("nobody panicked").clone()
    }

    /// Bytes that have been copied to the host.
    pub fn downloaded(&self) -> usize {
        self.downloaded.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl Device for Emulator {
    type Host = Vec<f32>;

    fn alloc(&self, bytes: usize, _: Use) -> Result<u64, DeviceError> {
        // SAFETY: any size is legal.
        match unsafe { (self.alloc)(bytes) } {
            0 => Err(DeviceError(format!("no room for {bytes} bytes"))),
            address => Ok(address),
        }
    }

    fn free(&self, address: u64, bytes: usize) {
        // SAFETY: the backend frees once what `alloc` gave it.
        unsafe { (self.free)(address, bytes) }
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        // SAFETY: the backend copies into its own memory; the address sanitizer holds it to that in ci/kernels.sh.
        unsafe { (self.copy)(to, bytes.as_ptr() as u64, bytes.len()) }
        Ok(())
    }

    fn clear(&self, address: u64, bytes: usize) -> Result<(), DeviceError> {
        self.upload(address, &vec![0; bytes])
    }

    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.downloaded.fetch_add(bytes.len(), std::sync::atomic::Ordering::Relaxed);
        // SAFETY: as in `upload`.
        unsafe { (self.copy)(bytes.as_mut_ptr() as u64, from, bytes.len()) }
        Ok(())
    }

    fn host(_: &Arc<Emulator>, len: usize) -> Result<Vec<f32>, DeviceError> {
        Ok(vec![0.0; len])
    }

    fn read(&self, from: u64, len: usize, to: &mut Vec<f32>) -> Result<(), DeviceError> {
        // SAFETY: as in `upload`; the slice is as long.
        unsafe { (self.copy)(to[..len].as_mut_ptr() as u64, from, len * 4) }
        self.downloaded.fetch_add(len * 4, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }

    fn launch(
        &self,
        kernel: &'static str,
        grid: [u32; 3],
        threads: u32,
        shared_bytes: usize,
        arguments: &Arguments,
    ) -> Result<(), DeviceError> {
        if let Some(left) = &self.breaks_after
            && left.fetch_sub(1, std::sync::atomic::Ordering::Relaxed) <= 0
        {
            return Err(DeviceError("the emulated device was told to break".to_owned()));
        }
        self.launched.lock().expect("nobody panicked").insert(kernel);
        let name = CString::new(kernel).expect("names of kernels have no zeros");
        let pointers: Vec<*const c_void> = arguments.each().map(|words| words.as_ptr().cast()).collect();
        // SAFETY: each pointer leads to as many words as the kernel's parameter has, which the tests of every kernel show.
        let said =
            unsafe { (self.launch)(name.as_ptr(), grid.as_ptr(), threads, shared_bytes, pointers.as_ptr(), self.seed) };
        match said {
            0 => Ok(()),
            1 => Err(DeviceError(format!("there is no kernel {kernel}"))),
            _ => Err(DeviceError(format!("{kernel}: no device launches {grid:?} blocks of {threads} threads"))),
        }
    }

    fn arithmetic(&self) -> String {
        "cuda-emulated".to_owned()
    }

    fn processors(&self) -> usize {
        self.processors
    }
}
