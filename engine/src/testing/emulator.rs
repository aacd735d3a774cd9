//! Compiles the emulation of a device, from the same kernels that devices get: for tests of this crate and of others.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emulation {
    /// A driver over the emulated device: libcuda.so.1, and libnvidia-ml.so.1 beside it.
    Driver,
    /// A driver that lacks almost every function.
    OldDriver,
}

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

/// Makes a shared library of the kernels and the emulation.
///
/// # Panics
///
/// When the compiler refuses it.
pub fn compile(library: &Path) -> Option<()> {
    let compiler = compiler()?;
    let mut sources = kernels();
    sources.extend(["fibers", "fragments", "driver"].map(|name| folder().join(format!("emulator/{name}.cpp"))));
    run(&compiler, &sources, &[], library);
    Some(())
}

/// Puts a driver into `folder`, which is then what `LD_LIBRARY_PATH` is to begin with; none without a compiler.
///
/// # Panics
///
/// When the folder cannot be written or the compiler refuses it.
pub fn install(kind: Emulation, folder: &Path) -> Option<()> {
    let library = folder.join("libcuda.so.1");
    match kind {
        Emulation::Driver => compile(&library)?,
        Emulation::OldDriver => {
            let source = [self::folder().join("emulator/driver.cpp"), self::folder().join("emulator/fibers.cpp")];
            run(&compiler()?, &source, &["-DOLD_DRIVER"], &library);
        }
    }
    // The names that are tried first, so that a driver of the machine's own is not found instead.
    for name in ["libcuda.so", "libnvidia-ml.so.1", "libnvidia-ml.so"] {
        let link = folder.join(name);
        if kind == Emulation::Driver || !name.contains("nvidia") {
            std::fs::hard_link(&library, link).expect("the folder can be written");
        }
    }
    Some(())
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

fn kernels() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder()).expect("the kernels are there");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut sources: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|e| e == "cu")).collect();
    sources.sort();
    sources
}

fn run(compiler: &str, sources: &[PathBuf], further: &[&str], library: &Path) {
    let flags = "-std=c++20 -O2 -march=native -ffp-contract=off -fno-strict-aliasing -fPIC -shared -fvisibility=hidden \
                 -DEMULATED -Wl,-soname,libcuda.so -x c++";
    let mut command = Command::new(compiler);
    command.args(flags.split_whitespace()).args(further).args(sources).arg("-o").arg(library);
    let built = command.output().expect("the compiler was there a moment ago");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
}
