//! How busy the device is and how much of its memory is in use, as NVML says: looked for at run time, missed by nobody.
#![allow(unsafe_code, reason = "NVML is a library with C's calling convention")]

use std::ffi::{CString, c_char, c_void};

use libloading::Library;

/// What is read of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Percent of the last moments in which some kernel ran.
    pub busy_percent: u32,
    /// Bytes in use, by all processes.
    pub memory_bytes: u64,
}

type UsageOf = unsafe extern "C" fn(*mut c_void, *mut c_void) -> i32;

/// NVML, and a device by its handle there.
pub struct Monitor {
    device: *mut c_void,
    utilization: UsageOf,
    memory: UsageOf,
    _library: Library,
}

// SAFETY: NVML is thread-safe, and the handle is one of its own.
unsafe impl Send for Monitor {}

impl Monitor {
    /// None where there is no NVML, or it does not know the device at `bus_id`.
    pub fn open(bus_id: &str) -> Option<Monitor> {
        type Init = unsafe extern "C" fn() -> i32;
        type ByBusId = unsafe extern "C" fn(*const c_char, *mut *mut c_void) -> i32;
        let bus_id = CString::new(bus_id).ok()?;
        // SAFETY: the types are those of nvml.h; the strings outlive the calls; the library is kept as long as what is from it.
        unsafe {
            let library = ["libnvidia-ml.so.1", "libnvidia-ml.so"].into_iter().find_map(|n| Library::new(n).ok())?;
            let utilization = *library.get::<UsageOf>(b"nvmlDeviceGetUtilizationRates").ok()?;
            let memory = *library.get::<UsageOf>(b"nvmlDeviceGetMemoryInfo").ok()?;
            if library.get::<Init>(b"nvmlInit_v2").ok()?() != 0 {
                return None;
            }
            let mut device = std::ptr::null_mut();
            let found = library.get::<ByBusId>(b"nvmlDeviceGetHandleByPciBusId_v2").ok()?(bus_id.as_ptr(), &mut device);
            (found == 0).then_some(Monitor { device, utilization, memory, _library: library })
        }
    }

    /// What is so now; none when NVML does not answer.
    pub fn read(&self) -> Option<Usage> {
        // Of kernels and of memory, percent.
        let mut rates = [0u32; 2];
        // All, free, in use.
        let mut sizes = [0u64; 3];
        // SAFETY: both write the structure whose fields these are.
        let said = unsafe {
            [
                (self.utilization)(self.device, rates.as_mut_ptr().cast()),
                (self.memory)(self.device, sizes.as_mut_ptr().cast()),
            ]
        };
        (said == [0, 0]).then_some(Usage { busy_percent: rates[0], memory_bytes: sizes[2] })
    }
}
