//! Compiles the emulation of a device, from the same kernels that devices get: for tests of this crate and of others.
//!
//! That takes longer than most tests that use it, so it is done once for what goes into it: the sources, the flags, the
//! compiler, and the processor that it compiles for. The library lies in the folder that cargo gives tests, under a name made
//! of all these.

use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::SystemTime;

/// What is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Emulation {
    /// A driver over the emulated device: libcuda.so.1, and libnvidia-ml.so.1 beside it.
    Driver,
    /// A driver that lacks almost every function.
    OldDriver,
}

/// Libraries that are kept, the last used ones: those of a few branches.
const KEPT: usize = 8;
/// No instruction may be another than the processor's own, and none may be fused: the kernels' arithmetic is exact.
const FLAGS: &str =
    "-std=c++20 -O2 -march=native -ffp-contract=off -fno-strict-aliasing -fPIC -fvisibility=hidden -DEMULATED";
/// The name that is looked for, then names that are tried before it, so that no driver of the machine's own is found instead.
const LIBRARY: &str = "libcuda.so.1";
const CUDA_NAME: &str = "libcuda.so";
const NVML_NAMES: [&str; 2] = ["libnvidia-ml.so.1", "libnvidia-ml.so"];

/// The compiler, if it is here: `g++` or what `CXX` names, on x86-64 Linux. Otherwise says so, for a test that is skipped.
pub fn compiler() -> Option<String> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".to_owned());
    let there = Command::new(&compiler).arg("--version").output().is_ok_and(|o| o.status.success());
    if cfg!(all(target_arch = "x86_64", target_os = "linux")) && there {
        return Some(compiler);
    }
    eprintln!("SKIPPED: the kernels are not emulated here: that needs {compiler} on x86-64 Linux");
    None
}

/// The shared library of the kernels and the emulation: none without a compiler. `target_tmp` is the test's
/// `CARGO_TARGET_TMPDIR`.
///
/// # Panics
///
/// As [`driver_folder`].
pub fn library(target_tmp: &Path) -> Option<PathBuf> {
    Some(driver_folder(Emulation::Driver, target_tmp)?.join(LIBRARY))
}

/// A folder with a driver, which is what `LD_LIBRARY_PATH` is to begin with; none without a compiler. `target_tmp` is the
/// test's `CARGO_TARGET_TMPDIR`.
///
/// # Panics
///
/// When that folder cannot be written or the compiler refuses the sources.
pub fn driver_folder(kind: Emulation, target_tmp: &Path) -> Option<PathBuf> {
    let compiler = compiler()?;
    let emulated = target_tmp.join("emulated");
    std::fs::create_dir_all(&emulated).expect("the folder can be written");
    let entry = emulated.join(format!("{kind:?}-{:016x}", key(kind, &compiler)));
    // Other tests want the same: whoever comes first compiles, and the others wait for it.
    let lock = File::create(emulated.join("lock")).expect("the folder can be written");
    lock.lock().expect("files can be locked");
    if !entry.exists() {
        let unfinished = emulated.join("unfinished");
        // Of somebody who was stopped.
        let _ = std::fs::remove_dir_all(&unfinished);
        std::fs::create_dir(&unfinished).expect("the folder can be written");
        build(kind, &compiler, &unfinished);
        std::fs::rename(&unfinished, &entry).expect("nobody else has made it");
    }
    File::open(&entry).and_then(|f| f.set_modified(SystemTime::now())).expect("the folder can be written");
    forget_old_ones(&emulated);
    Some(entry)
}

/// All that the library is made of. The processor is among it: a folder that was carried to another machine may hold
/// instructions that this one lacks.
fn key(kind: Emulation, compiler: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (kind, FLAGS).hash(&mut hasher);
    for question in [&["--version"][..], &["-march=native", "-Q", "--help=target"]] {
        let said = Command::new(compiler).args(question).output().expect("the compiler was there a moment ago");
        said.stdout.hash(&mut hasher);
    }
    for path in files(&folder()).into_iter().chain(files(&folder().join("emulator"))) {
        (path.file_name(), std::fs::read(&path).expect("a file")).hash(&mut hasher);
    }
    hasher.finish()
}

/// Compiles each source for itself, on as many threads as the machine has, and puts a library into `to`.
fn build(kind: Emulation, compiler: &str, to: &Path) {
    let emulation = |name| folder().join(format!("emulator/{name}.cpp"));
    let (mut sources, flags) = match kind {
        Emulation::Driver => {
            let kernels = files(&folder()).into_iter().filter(|path| path.extension().is_some_and(|e| e == "cu"));
            (kernels.chain(["fibers", "fragments", "driver"].map(emulation)).collect(), &[][..])
        }
        Emulation::OldDriver => (vec![emulation("fibers"), emulation("driver")], &["-DOLD_DRIVER"][..]),
    };
    // Long ones first: nobody is to wait for one that was begun last.
    sources.sort_by_key(|path| std::cmp::Reverse(std::fs::metadata(path).map_or(0, |m| m.len())));
    let objects: Vec<PathBuf> = (0..sources.len()).map(|i| to.join(format!("{i}.o"))).collect();
    let (next, threads) = (AtomicUsize::new(0), std::thread::available_parallelism().map_or(1, usize::from));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((source, object)) = at(&sources, &objects, next.fetch_add(1, Relaxed)) {
                    let mut command = Command::new(compiler);
                    command.args(FLAGS.split(' ')).args(flags).args(["-x", "c++", "-c"]).arg(source);
                    run(command.arg("-o").arg(object));
                }
            });
        }
    });
    let mut command = Command::new(compiler);
    command.args(["-shared", "-Wl,-soname,libcuda.so"]).args(&objects);
    run(command.arg("-o").arg(to.join(LIBRARY)));
    objects.iter().for_each(|object| std::fs::remove_file(object).expect("it was just made"));
    let nvml = if kind == Emulation::Driver { &NVML_NAMES[..] } else { &[] };
    for name in [CUDA_NAME].iter().chain(nvml) {
        std::fs::hard_link(to.join(LIBRARY), to.join(name)).expect("the folder can be written");
    }
}

fn at<'a>(sources: &'a [PathBuf], objects: &'a [PathBuf], index: usize) -> Option<(&'a Path, &'a Path)> {
    Some((sources.get(index)?, &objects[index]))
}

fn run(command: &mut Command) {
    let built = command.output().expect("the compiler was there a moment ago");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
}

/// Removes what was not used for the longest time. Who still has it loaded keeps it.
fn forget_old_ones(emulated: &Path) {
    let entries = std::fs::read_dir(emulated).expect("it is there").map(|entry| entry.expect("an entry").path());
    let used = |path: &PathBuf| std::fs::metadata(path).and_then(|m| m.modified()).expect("nobody else removes any");
    let mut folders: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    folders.sort_by_key(|path| std::cmp::Reverse(used(path)));
    folders.iter().skip(KEPT).for_each(|path| std::fs::remove_dir_all(path).expect("nobody else removes any"));
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

/// The sources and headers of a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the kernels are there");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let is_source = |e: &std::ffi::OsStr| ["cu", "cuh", "cpp", "hpp"].iter().any(|kind| e == *kind);
    let mut sources: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(is_source)).collect();
    sources.sort();
    sources
}
