//! A device behind NVIDIA's driver, which is looked for at run time: nothing of CUDA is needed to build or to start.
//!
//! Everything happens on one stream in the order of the calls. Copies go through pinned memory, in portions, so that the
//! next portion is filled while one is on its way. A list of launches that comes a second time is captured as a graph, which
//! is one call from then on; what a list does is part of its graph, so that an unknown list never runs a known graph. From
//! sm_90 on a kernel is started while the one before it ends (programmatic dependent launch): each kernel waits for its
//! inputs itself, see `wait_for_inputs` in `engine/kernels/device.cuh`. Each [`Driver`] has a context of its own: whoever
//! breaks it breaks no other, and dropping it gives back all that it had.
#![allow(unsafe_code, reason = "the driver is a library with C's calling convention")]

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::ops::Deref;
use std::path::PathBuf;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use cudarc::driver::sys::{self, CUresult};

use super::device::{Arguments, Device, Launches, Use};
use super::graphs::{Graphs, kernels_max};
use super::host_time::HostTime;
use super::{nvrtc, packs};
use crate::backend::{DeviceError, LANES};

/// Bytes of a portion on its way to the device, and how many there may be.
const PORTION_BYTES: usize = 4 << 20;
const PORTIONS: usize = 4;
/// Bytes that come back at once.
const RETURN_BYTES: usize = 8 << 20;
/// Dynamic memory that a block may have without being asked for first.
const SHARED_BYTES_FREE: usize = 48 << 10;
/// Longer waits are slept through. A host's wake-up takes tens of microseconds, which is a per cent and more of a shorter
/// step: so that is waited for awake. It takes a core of the host while tokens are made; who else wants the core gets it.
const AWAKE_MAX: Duration = Duration::from_millis(5);
/// Memory of the device that graphs leave free, for whatever else the driver needs.
const GRAPHS_LEAVE_BYTES: u64 = 32 << 20;
/// Drivers for CUDA 12.3 and newer keep in a graph that a kernel may start while the one before it ends.
const PROGRAMMATIC_GRAPHS: i32 = 12030;

/// All that is called here. cudarc panics at the first call of a function that the driver lacks, so they are looked for
/// before. The oldest driver that has them all is 520; what loads our code is 525 and newer.
const FUNCTIONS: [&str; 39] = [
    "cuCtxCreate_v2",
    "cuCtxDestroy_v2",
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetPCIBusId",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuLaunchKernelEx",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamSynchronize",
];

/// A device that the driver has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its number among the devices that this process may use.
    pub index: usize,
    /// As its maker calls it.
    pub name: String,
    /// Major and minor number of its instruction set.
    pub capability: (u32, u32),
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Its multiprocessors.
    pub processors: usize,
    /// Where it is plugged in, as `nvidia-smi` writes it.
    pub bus_id: String,
    /// Version of CUDA that the driver speaks: 12090 is 12.9.
    pub driver_version: i32,
}

/// Why there is no device. `Display` says what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Absent {
    /// There is no driver.
    #[error(
        "no NVIDIA driver: libcuda.so.1 is not found; install the driver, or in a container pass it in (--gpus all), or add \
         its folder to LD_LIBRARY_PATH"
    )]
    NoLibrary,
    /// The library is not what was expected.
    #[error("the NVIDIA driver is too old: libcuda has no {function}; install driver 525 or newer")]
    TooOld {
        /// The first function that it lacks.
        function: &'static str,
    },
    /// The driver works and has nothing to drive.
    #[error(
        "the NVIDIA driver has no device ({error}): see what nvidia-smi lists, whether CUDA_VISIBLE_DEVICES hides it, and \
         whether a container was given one (--gpus all)"
    )]
    NoDevice {
        /// What the driver said.
        error: String,
    },
    /// All devices are older than the kernels.
    #[error("{name} has compute capability {}.{}: the kernels need 8.0 or newer (Ampere)", capability.0, capability.1)]
    TooWeak {
        /// The device.
        name: String,
        /// Its capability.
        capability: (u32, u32),
    },
}

/// Where the kernels come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Kernels {
    /// The packs of this binary.
    #[default]
    BuiltIn,
    /// Sources in a folder, compiled for the device by the NVRTC of this machine: for tuning.
    Folder(PathBuf),
}

/// The devices of this machine that the kernels run on; never panics, whatever the machine has or lacks.
///
/// # Errors
///
/// When there is none.
pub fn devices() -> Result<Vec<Found>, Absent> {
    // SAFETY: loads a library; its initialisers are the driver's.
    if !unsafe { sys::is_culib_present() } {
        return Err(Absent::NoLibrary);
    }
    // SAFETY: the library was found a moment ago and stays loaded from here on.
    let library = unsafe { sys::culib() };
    for function in FUNCTIONS {
        // SAFETY: the symbol is not called.
        if unsafe { library.get::<unsafe extern "C" fn()>(function.as_bytes()) }.is_err() {
            return Err(Absent::TooOld { function });
        }
    }
    let absent = |error: DeviceError| Absent::NoDevice { error: error.0 };
    let (mut version, mut count) = (0, 0);
    // SAFETY: both only write the number they are given.
    unsafe {
        check(sys::cuInit(0), "cuInit").map_err(absent)?;
        check(sys::cuDriverGetVersion(&mut version), "cuDriverGetVersion").map_err(absent)?;
        check(sys::cuDeviceGetCount(&mut count), "cuDeviceGetCount").map_err(absent)?;
    }
    let found: Result<Vec<Found>, DeviceError> = (0..count).map(|index| describe(index, version)).collect();
    let found = found.map_err(absent)?;
    let Some(first) = found.first().cloned() else {
        return Err(Absent::NoDevice { error: "it counts none".to_owned() });
    };
    let able: Vec<Found> = found.into_iter().filter(|f| f.capability >= (8, 0)).collect();
    if able.is_empty() {
        return Err(Absent::TooWeak { name: first.name, capability: first.capability });
    }
    Ok(able)
}

fn describe(index: i32, driver_version: i32) -> Result<Found, DeviceError> {
    use sys::CUdevice_attribute as Attribute;
    let (mut device, mut major, mut minor, mut processors, mut memory_bytes) = (0, 0, 0, 0, 0);
    let (mut name, mut bus_id) = ([0 as c_char; 256], [0 as c_char; 32]);
    // SAFETY: each call writes what it is given, of the length it is told.
    unsafe {
        check(sys::cuDeviceGet(&mut device, index), "cuDeviceGet")?;
        check(sys::cuDeviceGetName(name.as_mut_ptr(), 255, device), "cuDeviceGetName")?;
        check(sys::cuDeviceGetPCIBusId(bus_id.as_mut_ptr(), 31, device), "cuDeviceGetPCIBusId")?;
        check(sys::cuDeviceTotalMem_v2(&mut memory_bytes, device), "cuDeviceTotalMem")?;
        for (value, attribute) in [
            (&mut major, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
            (&mut minor, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
            (&mut processors, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT),
        ] {
            check(sys::cuDeviceGetAttribute(value, attribute, device), "cuDeviceGetAttribute")?;
        }
    }
    Ok(Found {
        index: index as usize,
        name: text(&name),
        capability: (major as u32, minor as u32),
        memory_bytes: memory_bytes as u64,
        processors: usize::try_from(processors).unwrap_or(0).max(1),
        bus_id: text(&bus_id),
        driver_version,
    })
}

/// `cuCtxCreate_v2`, which every driver has, and which these bindings leave out in favour of one that drivers before 12.5 lack.
///
/// # Safety
///
/// The library must be there and have the function: see [`devices`].
unsafe fn create_context(context: *mut sys::CUcontext, flags: u32, device: sys::CUdevice) -> CUresult {
    type Create = unsafe extern "C" fn(*mut sys::CUcontext, u32, sys::CUdevice) -> CUresult;
    // SAFETY: the type is that of cuda.h.
    match unsafe { sys::culib().get::<Create>(b"cuCtxCreate_v2") } {
        // SAFETY: writes the handle.
        Ok(create) => unsafe { create(context, flags, device) },
        Err(_) => CUresult::CUDA_ERROR_NOT_FOUND,
    }
}

/// A string that the driver wrote.
fn text(bytes: &[c_char]) -> String {
    let bytes: Vec<u8> = bytes.iter().map(|b| *b as u8).take_while(|b| *b != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn check(result: CUresult, call: &str) -> Result<(), DeviceError> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let (mut name, mut why) = (std::ptr::null(), std::ptr::null());
    // SAFETY: both write a pointer to a string that the driver keeps, or leave it null.
    let said = unsafe {
        sys::cuGetErrorName(result, &mut name);
        sys::cuGetErrorString(result, &mut why);
        [name, why].map(|p| if p.is_null() { "?".into() } else { CStr::from_ptr(p).to_string_lossy() })
    };
    Err(DeviceError(format!("{call}: {} ({}), {}", said[0], result as u32, said[1])))
}

/// A device with a context, a stream, and the kernels for it.
pub struct Driver {
    found: Found,
    target: String,
    context: sys::CUcontext,
    stream: sys::CUstream,
    modules: Vec<sys::CUmodule>,
    functions: Mutex<HashMap<&'static str, Function>>,
    /// True when the kernels are code that waits for its inputs itself: `wait_for_inputs` in device.cuh. PTX for old devices
    /// does not, wherever it runs.
    waits: bool,
    graphs: Mutex<Graphs<Graph>>,
    graph_memory: Mutex<GraphMemory>,
    /// Why there are no graphs, once one could not be made.
    graphs_refused: Arc<OnceLock<DeviceError>>,
    staging: Mutex<Staging>,
    /// Bytes that were copied to the device.
    uploaded: Arc<AtomicU64>,
    /// Bytes that were asked for and not given back.
    allocated: AtomicU64,
    host_time: HostTime,
}

#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    /// Dynamic memory that its blocks may have.
    shared_bytes: usize,
}

/// A graph that can be launched.
#[derive(Clone, Copy)]
struct Graph(sys::CUgraphExec);

/// Pinned memory: portions in turn, each with an event that says when it has been read.
struct Staging {
    portions: Vec<(*mut u8, sys::CUevent)>,
    next: usize,
    back: *mut u8,
    /// Says when what was asked of the stream is done.
    done: sys::CUevent,
    /// The same for what was asked before a mark, by lane, and how much that was.
    marks: [(sys::CUevent, u64); LANES],
    /// How long the last wait took.
    waited: Duration,
}

/// Pinned memory of the host that numbers are copied to.
pub struct Pinned {
    driver: Arc<Driver>,
    numbers: NonNull<f32>,
    len: usize,
}

// SAFETY: plain memory that has one owner.
unsafe impl Send for Pinned {}

impl Deref for Pinned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: as many numbers were made zero when it was had. The device writes while `read` has it alone, or between a
        // launch that was given its address and the wait for that, when nobody looks.
        unsafe { std::slice::from_raw_parts(self.numbers.as_ptr(), self.len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.driver.make_current().is_ok() {
            // SAFETY: freed once; whoever had the device write has waited for it.
            let _ = unsafe { sys::cuMemFreeHost(self.numbers.as_ptr().cast()) };
        }
    }
}

// SAFETY: handles of the driver may be used on any thread; a context is made current on the thread before each use, and what
// changes lies behind locks.
unsafe impl Send for Driver {}
// SAFETY: as above.
unsafe impl Sync for Driver {}

impl Driver {
    /// Makes a context on a device and loads the kernels.
    ///
    /// # Errors
    ///
    /// When the device or the kernels cannot be used.
    pub fn open(found: &Found, kernels: &Kernels) -> Result<Driver, DeviceError> {
        let (target, images) = match kernels {
            Kernels::BuiltIn => {
                let target = packs::target_for(found.capability);
                (target.to_owned(), packs::unpack(target))
            }
            Kernels::Folder(folder) => {
                let target = format!("sm_{}{}", found.capability.0, found.capability.1);
                let images = nvrtc::compile(folder, &target)?;
                (target, images)
            }
        };
        let staging = Staging {
            portions: Vec::new(),
            next: 0,
            back: null_mut(),
            done: null_mut(),
            marks: [(null_mut(), 0); LANES],
            waited: Duration::ZERO,
        };
        let code = target.strip_prefix("sm_").and_then(|number| number.parse::<u32>().ok());
        let mut driver = Driver {
            found: found.clone(),
            target,
            context: null_mut(),
            stream: null_mut(),
            modules: Vec::new(),
            functions: Mutex::default(),
            waits: code.is_some_and(|number| number >= 90),
            graphs: Mutex::new(Graphs::new(kernels_max(found.memory_bytes))),
            graph_memory: Mutex::default(),
            graphs_refused: Arc::default(),
            staging: Mutex::new(staging),
            uploaded: Arc::default(),
            allocated: AtomicU64::new(0),
            host_time: HostTime::default(),
        };
        let mut device = 0;
        // SAFETY: handles are written where they are kept; what was made when one call fails, `drop` gives back.
        unsafe {
            check(sys::cuDeviceGet(&mut device, found.index as i32), "cuDeviceGet")?;
            // While the host waits it sleeps, as the processor's other threads have work to do; and kernels write to its memory.
            let flags = sys::CUctx_flags::CU_CTX_SCHED_BLOCKING_SYNC as u32 | sys::CUctx_flags::CU_CTX_MAP_HOST as u32;
            check(create_context(&mut driver.context, flags, device), "cuCtxCreate")?;
            let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
            check(sys::cuStreamCreate(&mut driver.stream, flags), "cuStreamCreate")?;
            for (name, image) in &images {
                let mut module = null_mut();
                let loaded = check(sys::cuModuleLoadData(&mut module, image.as_ptr().cast()), "cuModuleLoadData");
                loaded.map_err(|e| {
                    DeviceError(format!(
                        "{} of {name} for {}, driver {}: {}",
                        driver.target,
                        found.name,
                        version_text(found.driver_version),
                        e.0
                    ))
                })?;
                driver.modules.push(module);
            }
        }
        driver.staging.get_mut().expect("nobody has it yet").fill()?;
        Ok(driver)
    }

    /// What it is.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// Counts the bytes that are copied to it: for whoever shows how far it is.
    pub fn uploaded(&self) -> Arc<AtomicU64> {
        self.uploaded.clone()
    }

    /// Bytes of it that are in use here.
    pub fn allocated_bytes(&self) -> u64 {
        self.allocated.load(Relaxed)
    }

    /// How much of its time the host waited, and how much of it the device had nothing to do.
    pub fn host_time(&self) -> &HostTime {
        &self.host_time
    }

    /// Lists of launches that are kept as graphs.
    pub fn graph_count(&self) -> usize {
        self.graphs().len()
    }

    /// What all graphs that were made have taken.
    pub fn graph_memory(&self) -> GraphMemory {
        *self.graph_memory.lock().expect("nothing panics under this lock")
    }

    /// Has an error once the driver has refused to make a graph of a list: all are launched kernel by kernel then.
    pub fn graphs_refused(&self) -> Arc<OnceLock<DeviceError>> {
        self.graphs_refused.clone()
    }

    /// Bytes that are free, and all there are.
    ///
    /// # Errors
    ///
    /// When the device has failed.
    pub fn memory(&self) -> Result<(u64, u64), DeviceError> {
        self.make_current()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes the two numbers.
        check(unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) }, "cuMemGetInfo")?;
        Ok((free as u64, total as u64))
    }

    fn make_current(&self) -> Result<(), DeviceError> {
        // SAFETY: the context lives as long as `self`.
        check(unsafe { sys::cuCtxSetCurrent(self.context) }, "cuCtxSetCurrent")
    }

    fn staging(&self) -> MutexGuard<'_, Staging> {
        self.staging.lock().expect("nothing panics under this lock")
    }

    fn graphs(&self) -> MutexGuard<'_, Graphs<Graph>> {
        self.graphs.lock().expect("nothing panics under this lock")
    }

    /// Starts a kernel, or adds it to the graph that is being captured. The context is current. `early`: it may start while
    /// the one before it ends.
    fn start<'a>(
        &self,
        kernel: &'static str,
        grid: [u32; 3],
        threads: u32,
        shared_bytes: usize,
        arguments: impl Iterator<Item = &'a [u64]>,
        early: bool,
    ) -> Result<(), DeviceError> {
        let function = self.function(kernel)?;
        if shared_bytes > function.shared_bytes {
            self.allow_shared(kernel, function, shared_bytes)?;
        }
        let mut pointers = [null_mut::<c_void>(); Arguments::COUNT_MAX];
        for (pointer, words) in pointers.iter_mut().zip(arguments) {
            *pointer = words.as_ptr().cast_mut().cast();
        }
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: grid[0],
            gridDimY: grid[1],
            gridDimZ: grid[2],
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared_bytes as u32,
            hStream: self.stream,
            attrs: &raw mut attribute,
            numAttrs: u32::from(early),
        };
        // SAFETY: each pointer leads to as many words as the kernel's parameter has, which the tests of every kernel show;
        // the driver copies them and the attribute before it returns and writes none.
        let started = unsafe { sys::cuLaunchKernelEx(&config, function.handle, pointers.as_mut_ptr(), null_mut()) };
        check(started, "cuLaunchKernelEx").map_err(|e| DeviceError(format!("{kernel}: {}", e.0)))
    }

    fn start_each(&self, list: &Launches, early: bool) -> Result<(), DeviceError> {
        list.each().try_for_each(|launch| {
            let arguments = launch.arguments();
            self.start(launch.kernel, launch.grid, launch.threads, launch.shared_bytes, arguments, early)
        })
    }

    /// Makes a graph of a list whose kernels have been launched before: so nothing is loaded or asked for meanwhile, which a
    /// capture would not survive.
    fn capture(&self, list: &Launches) -> Result<Graph, DeviceError> {
        let early = self.waits && self.found.driver_version >= PROGRAMMATIC_GRAPHS;
        // Other threads may do with the driver what they like.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let (mut graph, mut launched) = (null_mut(), null_mut());
        // SAFETY: handles are written where they are kept, or given back below. A capture that was begun is ended, whatever
        // happens in between, so that the stream can be used again.
        unsafe {
            check(sys::cuStreamBeginCapture_v2(self.stream, mode), "cuStreamBeginCapture")?;
            let started = self.start_each(list, early);
            let ended = check(sys::cuStreamEndCapture(self.stream, &mut graph), "cuStreamEndCapture");
            let made = started.and(ended).and_then(|()| {
                let made = sys::cuGraphInstantiateWithFlags(&mut launched, graph, 0);
                check(made, "cuGraphInstantiate")
            });
            if !graph.is_null() {
                let _ = sys::cuGraphDestroy(graph);
            }
            made.map(|()| Graph(launched))
        }
    }

    /// Gives a graph back; the driver waits for launches of it that are under way. The context is current.
    fn destroy(&self, graph: Graph) {
        // SAFETY: whoever calls this has taken it from those that are kept.
        let _ = unsafe { sys::cuGraphExecDestroy(graph.0) };
    }

    fn launch_graph(&self, graph: Graph) -> Result<(), DeviceError> {
        // SAFETY: the graph was made in this context, and is launched under the lock that it is kept under.
        check(unsafe { sys::cuGraphLaunch(graph.0, self.stream) }, "cuGraphLaunch")
    }

    /// Waits for all that was asked of the stream.
    fn wait(&self, staging: &mut Staging) -> Result<(), DeviceError> {
        // SAFETY: event and stream were made with the context and live as long as it.
        check(unsafe { sys::cuEventRecord(staging.done, self.stream) }, "cuEventRecord")?;
        let (done, asked) = (staging.done, self.host_time.asked_count());
        self.host_time.waits(asked, || self.wait_awake(done, staging))
    }

    /// Waits for an event, awake for a while when the last one took no longer than that.
    fn wait_awake(&self, event: sys::CUevent, staging: &mut Staging) -> Result<(), DeviceError> {
        let begun = Instant::now();
        let awake = match staging.waited <= AWAKE_MAX {
            // A step takes about as long as the one before it, which had a context of one less.
            true => staging.waited * 5 / 4 + AWAKE_MAX / 100,
            false => Duration::ZERO,
        };
        // SAFETY: the event was made with the context and lives as long as it.
        unsafe {
            while begun.elapsed() < awake {
                match sys::cuEventQuery(event) {
                    CUresult::CUDA_ERROR_NOT_READY => std::thread::yield_now(),
                    said => {
                        staging.waited = begun.elapsed();
                        return check(said, "cuEventQuery");
                    }
                }
            }
            check(sys::cuEventSynchronize(event), "cuEventSynchronize")?;
        }
        staging.waited = begun.elapsed();
        Ok(())
    }

    fn function(&self, kernel: &'static str) -> Result<Function, DeviceError> {
        let mut functions = self.functions.lock().expect("nothing panics under this lock");
        if let Some(function) = functions.get(kernel) {
            return Ok(*function);
        }
        let name = CString::new(kernel).expect("names of kernels have no zeros");
        for module in &self.modules {
            let mut handle = null_mut();
            // SAFETY: the module is loaded as long as `self` lives.
            let result = unsafe { sys::cuModuleGetFunction(&mut handle, *module, name.as_ptr()) };
            if result != CUresult::CUDA_ERROR_NOT_FOUND {
                check(result, "cuModuleGetFunction")?;
                let function = Function { handle, shared_bytes: SHARED_BYTES_FREE };
                functions.insert(kernel, function);
                return Ok(function);
            }
        }
        Err(DeviceError(format!("there is no kernel {kernel} for {}", self.target)))
    }

    fn allow_shared(&self, kernel: &'static str, function: Function, bytes: usize) -> Result<(), DeviceError> {
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function's module is loaded as long as `self` lives.
        let allowed = unsafe { sys::cuFuncSetAttribute(function.handle, attribute, bytes as i32) };
        check(allowed, "cuFuncSetAttribute").map_err(|e| DeviceError(format!("{kernel}: {}", e.0)))?;
        let mut functions = self.functions.lock().expect("nothing panics under this lock");
        functions.insert(kernel, Function { shared_bytes: bytes, ..function });
        Ok(())
    }
}

impl Staging {
    fn fill(&mut self) -> Result<(), DeviceError> {
        let pinned = |bytes| {
            let mut at = null_mut();
            // Not write-combined: the host reads what comes back.
            // SAFETY: writes the address; freed with the context.
            check(unsafe { sys::cuMemHostAlloc(&mut at, bytes, 0) }, "cuMemHostAlloc")?;
            Ok::<_, DeviceError>(at.cast::<u8>())
        };
        let event = || {
            let flags =
                sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32 | sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
            let mut event = null_mut();
            // SAFETY: writes the handle.
            check(unsafe { sys::cuEventCreate(&mut event, flags) }, "cuEventCreate")?;
            Ok::<_, DeviceError>(event)
        };
        self.done = event()?;
        for (mark, _) in &mut self.marks {
            *mark = event()?;
        }
        for _ in 0..PORTIONS {
            let event = event()?;
            self.portions.push((null_mut(), event));
            self.portions.last_mut().expect("just pushed").0 = pinned(PORTION_BYTES)?;
        }
        self.back = pinned(RETURN_BYTES)?;
        Ok(())
    }
}

impl Device for Driver {
    type Host = Pinned;

    fn alloc(&self, bytes: usize, _: Use) -> Result<u64, DeviceError> {
        self.make_current()?;
        let mut address = 0;
        // SAFETY: writes the address.
        let mut result = unsafe { sys::cuMemAlloc_v2(&mut address, bytes) };
        if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY && self.graph_count() > 0 {
            // Graphs are faster and nothing else.
            self.graphs().drain().for_each(|graph| self.destroy(graph));
            // SAFETY: as before.
            result = unsafe { sys::cuMemAlloc_v2(&mut address, bytes) };
        }
        if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            let (free, total) = self.memory()?;
            let name = &self.found.name;
            return Err(DeviceError(format!("{name} has no room for {bytes} bytes: {free} of {total} are free")));
        }
        check(result, "cuMemAlloc")?;
        self.allocated.fetch_add(bytes as u64, Relaxed);
        Ok(address)
    }

    fn free(&self, address: u64, bytes: usize) {
        self.allocated.fetch_sub(bytes as u64, Relaxed);
        // A context that has failed says so here, too; what it held goes with it.
        if self.make_current().is_ok() {
            // Steps free nothing: whoever does is about to ask for other lists.
            self.graphs().drain().for_each(|graph| self.destroy(graph));
            // SAFETY: `Memory` frees once what `alloc` gave; the driver waits for launches that still use it.
            let _ = unsafe { sys::cuMemFree_v2(address) };
        }
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.make_current()?;
        self.host_time.asked();
        let mut staging = self.staging();
        for (index, piece) in bytes.chunks(PORTION_BYTES).enumerate() {
            let turn = staging.next;
            staging.next = (turn + 1) % PORTIONS;
            let (portion, event) = staging.portions[turn];
            let to = to + (index * PORTION_BYTES) as u64;
            // SAFETY: the event says that the portion's last copy is over, so that nobody reads it while it is written; it has
            // room for `piece`, and `to` is memory of the backend's own.
            unsafe {
                check(sys::cuEventSynchronize(event), "cuEventSynchronize")?;
                std::ptr::copy_nonoverlapping(piece.as_ptr(), portion, piece.len());
                check(sys::cuMemcpyHtoDAsync_v2(to, portion.cast(), piece.len(), self.stream), "cuMemcpyHtoDAsync")?;
                check(sys::cuEventRecord(event, self.stream), "cuEventRecord")?;
            }
        }
        self.uploaded.fetch_add(bytes.len() as u64, Relaxed);
        Ok(())
    }

    fn clear(&self, address: u64, bytes: usize) -> Result<(), DeviceError> {
        self.make_current()?;
        self.host_time.asked();
        // SAFETY: memory of the backend's own.
        check(unsafe { sys::cuMemsetD8Async(address, 0, bytes, self.stream) }, "cuMemsetD8Async")
    }

    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.make_current()?;
        self.host_time.asked();
        let mut staging = self.staging();
        for (index, piece) in bytes.chunks_mut(RETURN_BYTES).enumerate() {
            let from = from + (index * RETURN_BYTES) as u64;
            // SAFETY: the buffer has room for `piece` and is read once the stream has written it.
            unsafe {
                let copied = sys::cuMemcpyDtoHAsync_v2(staging.back.cast(), from, piece.len(), self.stream);
                check(copied, "cuMemcpyDtoHAsync")?;
                self.wait(&mut staging)?;
                std::ptr::copy_nonoverlapping(staging.back, piece.as_mut_ptr(), piece.len());
            }
        }
        Ok(())
    }

    fn host(device: &Arc<Driver>, len: usize) -> Result<Pinned, DeviceError> {
        device.make_current()?;
        let (mut at, bytes) = (null_mut(), len.max(1) * size_of::<f32>());
        // Not write-combined: the host reads it. Kernels have it at the same address: on 64 bits all memory that CUDA gives has
        // one space of addresses.
        // SAFETY: writes the address; `Pinned` frees it.
        check(unsafe { sys::cuMemHostAlloc(&mut at, bytes, sys::CU_MEMHOSTALLOC_DEVICEMAP) }, "cuMemHostAlloc")?;
        let numbers = NonNull::new(at.cast::<f32>()).expect("the driver has said that it is there");
        // SAFETY: it is as long, and zeros are numbers.
        unsafe { std::ptr::write_bytes(numbers.as_ptr().cast::<u8>(), 0, bytes) };
        Ok(Pinned { driver: device.clone(), numbers, len })
    }

    fn read(&self, from: u64, len: usize, to: &mut Pinned) -> Result<(), DeviceError> {
        assert!(len <= to.len, "{len} numbers for a room of {}", to.len);
        self.make_current()?;
        self.host_time.asked();
        // A step without samples has nothing to copy. It is waited for all the same: its failure is its own, and so is its time.
        if len > 0 {
            // SAFETY: there is room for them, and nobody else has it until the wait is over.
            let copied = unsafe { sys::cuMemcpyDtoHAsync_v2(to.numbers.as_ptr().cast(), from, len * 4, self.stream) };
            check(copied, "cuMemcpyDtoHAsync")?;
        }
        self.wait(&mut self.staging())
    }

    fn mark(&self, lane: usize) -> Result<(), DeviceError> {
        self.make_current()?;
        let (event, asked) = &mut self.staging().marks[lane];
        *asked = self.host_time.asked_count();
        // SAFETY: event and stream were made with the context and live as long as it.
        check(unsafe { sys::cuEventRecord(*event, self.stream) }, "cuEventRecord")
    }

    fn wait_for(&self, lane: usize) -> Result<(), DeviceError> {
        self.make_current()?;
        let mut staging = self.staging();
        let (event, asked) = staging.marks[lane];
        self.host_time.waits(asked, || self.wait_awake(event, &mut staging))
    }

    fn launch(
        &self,
        kernel: &'static str,
        grid: [u32; 3],
        threads: u32,
        shared_bytes: usize,
        arguments: &Arguments,
    ) -> Result<(), DeviceError> {
        self.make_current()?;
        self.host_time.asked();
        self.start(kernel, grid, threads, shared_bytes, arguments.each(), self.waits)
    }

    fn run(&self, list: &Launches) -> Result<(), DeviceError> {
        self.make_current()?;
        self.host_time.asked();
        let mut graphs = self.graphs();
        if let Some(graph) = graphs.find(list) {
            return self.launch_graph(graph);
        }
        if self.graphs_refused.get().is_none()
            && let Some(stale) = graphs.room_for(list)
        {
            stale.into_iter().for_each(|graph| self.destroy(graph));
            if graphs.len() > 0 && self.memory()?.0 < GRAPHS_LEAVE_BYTES {
                graphs.is_full();
            } else {
                let before = self.memory()?.0;
                match self.capture(list) {
                    Ok(graph) => {
                        let taken = before.saturating_sub(self.memory()?.0);
                        self.graph_memory.lock().expect("nothing panics under this lock").add(list.len(), taken);
                        graphs.keep(list, graph);
                        return self.launch_graph(graph);
                    }
                    // Graphs are faster and nothing else, so it goes on without more of them, or without any; unless the
                    // device has failed, which the launches will say.
                    Err(_) if graphs.len() > 0 => graphs.is_full(),
                    Err(error) => drop(self.graphs_refused.set(error)),
                }
            }
        }
        self.start_each(list, self.waits)
    }

    fn arithmetic(&self) -> String {
        format!("cuda-{}", self.target)
    }

    fn processors(&self) -> usize {
        self.found.processors
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.context.is_null() || self.make_current().is_err() {
            return;
        }
        let graphs: Vec<Graph> = self.graphs().drain().collect();
        graphs.into_iter().for_each(|graph| self.destroy(graph));
        let staging = self.staging.get_mut().expect("nothing panics under this lock");
        // Answers are of no use any more: a failed context gives the same error to all of this, and goes nevertheless.
        // SAFETY: nobody uses any of it afterwards. Memory and modules go with the context.
        unsafe {
            if !self.stream.is_null() {
                let _ = sys::cuStreamSynchronize(self.stream);
                let _ = sys::cuStreamDestroy_v2(self.stream);
            }
            for (portion, event) in staging.portions.drain(..) {
                let _ = sys::cuEventDestroy_v2(event);
                if !portion.is_null() {
                    let _ = sys::cuMemFreeHost(portion.cast());
                }
            }
            if !staging.back.is_null() {
                let _ = sys::cuMemFreeHost(staging.back.cast());
            }
            for event in staging.marks.iter().map(|(mark, _)| *mark).chain([staging.done]).filter(|e| !e.is_null()) {
                let _ = sys::cuEventDestroy_v2(event);
            }
            let _ = sys::cuCtxDestroy_v2(self.context);
        }
    }
}

/// Device memory that graphs took when they were made, those that have gone since as well.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GraphMemory {
    /// How many were made.
    pub graphs: usize,
    /// Kernels in them.
    pub kernels: usize,
    /// Bytes that were free before they were made and no longer after. A driver takes memory in large pieces, so that it is
    /// the sum of many that says what a kernel takes.
    pub bytes: u64,
}

impl GraphMemory {
    fn add(&mut self, kernels: usize, bytes: u64) {
        *self = GraphMemory { graphs: self.graphs + 1, kernels: self.kernels + kernels, bytes: self.bytes + bytes };
    }
}

/// 12090 as 12.9.
pub fn version_text(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}
