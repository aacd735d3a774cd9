//! Kernels compiled on the machine that runs them: for tuning, where a change must not take a new binary.
#![allow(unsafe_code, reason = "the compiler is a library with C's calling convention")]

use std::ffi::{CString, c_char};
use std::path::Path;
use std::ptr::null;

use cudarc::nvrtc::sys::{self, nvrtcResult};

use crate::backend::DeviceError;

/// As in `engine/kernels/build.py`: other options are other bits.
/// Even one that only makes the assembler talk: code for sm_100 and later has them in a note.
const OPTIONS: [&str; 3] = ["--std=c++17", "--fmad=false", "--ptxas-options=-v"];

/// Name and code of every `.cu` file of a folder, for `target` (`sm_90`), in order of their names.
///
/// # Errors
///
/// When the folder cannot be read, there is no NVRTC, or it refuses a source: then with what it said.
pub fn compile(folder: &Path, target: &str) -> Result<Vec<(String, Vec<u8>)>, DeviceError> {
    let shown = |e: std::io::Error| DeviceError(format!("kernels in {}: {e}", folder.display()));
    // SAFETY: loads a library; its initialisers are NVIDIA's.
    if !unsafe { sys::is_culib_present() } {
        let mend = "no NVRTC: add the folder with libnvrtc.so.12 or 13 and its builtins to LD_LIBRARY_PATH (it is in the \
                    Python package nvidia-cuda-nvrtc-cu12)";
        return Err(DeviceError(mend.to_owned()));
    }
    let mut sources = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(shown)? {
        let path = entry.map_err(shown)?.path();
        if path.extension().is_some_and(|e| e == "cu") {
            sources.push((path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), path));
        }
    }
    sources.sort();
    if sources.is_empty() {
        return Err(DeviceError(format!("there are no kernels (*.cu) in {}", folder.display())));
    }
    let options: Vec<String> = [format!("--gpu-architecture={target}"), format!("--include-path={}", folder.display())]
        .into_iter()
        .chain(OPTIONS.map(str::to_owned))
        .collect();
    let compiled = sources.into_iter().map(|(name, path)| {
        let source = std::fs::read(&path).map_err(shown)?;
        let code = compile_one(&format!("{name}.cu"), source, &options)?;
        Ok((name, code))
    });
    compiled.collect()
}

fn compile_one(name: &str, source: Vec<u8>, options: &[String]) -> Result<Vec<u8>, DeviceError> {
    let text = |bytes: Vec<u8>| CString::new(bytes).map_err(|_| DeviceError(format!("{name} has a zero in it")));
    let check = |result: nvrtcResult, call: &str| match result {
        nvrtcResult::NVRTC_SUCCESS => Ok(()),
        other => Err(DeviceError(format!("{name}: {call}: {other:?}"))),
    };
    let (source, title) = (text(source)?, text(name.into())?);
    let options: Vec<CString> = options.iter().map(|o| text(o.clone().into())).collect::<Result<_, _>>()?;
    let options: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
    let mut program = std::ptr::null_mut();
    // SAFETY: strings end with zeros and outlive the calls; sizes are asked for before buffers are filled.
    unsafe {
        let created = sys::nvrtcCreateProgram(&mut program, source.as_ptr(), title.as_ptr(), 0, null(), null());
        check(created, "nvrtcCreateProgram")?;
        let compiled = sys::nvrtcCompileProgram(program, options.len() as i32, options.as_ptr());
        let result = if compiled == nvrtcResult::NVRTC_SUCCESS {
            fetch(|size| sys::nvrtcGetCUBINSize(program, size), |buffer| sys::nvrtcGetCUBIN(program, buffer))
        } else {
            let log = fetch(
                |size| sys::nvrtcGetProgramLogSize(program, size),
                |buffer| sys::nvrtcGetProgramLog(program, buffer),
            );
            let log = log.unwrap_or_default();
            Err(format!("{compiled:?}\n{}", String::from_utf8_lossy(&log).trim_end_matches('\0')))
        };
        sys::nvrtcDestroyProgram(&mut program);
        result.map_err(|why| DeviceError(format!("{name}: {why}")))
    }
}

fn fetch(
    size: impl FnOnce(*mut usize) -> nvrtcResult,
    fill: impl FnOnce(*mut c_char) -> nvrtcResult,
) -> Result<Vec<u8>, String> {
    let mut len = 0;
    let mut said = size(&mut len);
    let mut bytes = vec![0u8; len];
    if said == nvrtcResult::NVRTC_SUCCESS {
        said = fill(bytes.as_mut_ptr().cast());
    }
    if said == nvrtcResult::NVRTC_SUCCESS { Ok(bytes) } else { Err(format!("{said:?}")) }
}
