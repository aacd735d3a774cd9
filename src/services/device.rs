//! Which engine a server has: one on the CPU, or one on a device that a driver has found; and how large its cache is.

use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use orchestratord_engine::backend::cuda::{
    Absent, CudaBackend, Driver, Found, Kernels, Monitor, devices, engine_on, kv_blocks_in, plan,
};
use orchestratord_engine::{
    AdmitError, AdmitInfo, BLOCK_LEN, CpuBackend, DeviceError, Engine, EngineOptions, KvUsage, Model, NextRows,
    Progress, SequenceRequest, SessionKv, StepReport, TokenSink,
};

use super::decoder::Decoder;
use crate::config::{Config, EngineChoice, KvMemory};

/// How often a load says how far it is.
const PROGRESS: Duration = Duration::from_secs(1);

/// Makes a choice of `auto`.
///
/// # Errors
///
/// When the device that was asked for is not there: what is missing, and how to mend it.
pub fn resolve(config: &mut Config) -> Result<(), String> {
    config.engine = match config.engine {
        EngineChoice::Cpu => EngineChoice::Cpu,
        EngineChoice::Cuda => devices().map(|_| EngineChoice::Cuda).map_err(|e| format!("engine=cuda: {e}"))?,
        EngineChoice::Auto => match devices() {
            Ok(_) => EngineChoice::Cuda,
            Err(Absent::NoLibrary) => EngineChoice::Cpu,
            Err(why) => {
                // Somebody has installed a driver and may wonder.
                eprintln!("orchestratord: the CPU computes: {why}");
                EngineChoice::Cpu
            }
        },
    };
    Ok(())
}

/// Where a configuration has its kernels from.
pub fn kernels(folder: Option<&Path>) -> Kernels {
    folder.map_or(Kernels::BuiltIn, |folder| Kernels::Folder(folder.to_owned()))
}

/// The first device, and a context on it.
///
/// # Errors
///
/// One line that says what is in the way.
pub fn open(kernels: &Kernels) -> Result<Driver, String> {
    let found = devices().map_err(|e| e.to_string())?;
    Driver::open(&found[0], kernels).map_err(|e| e.to_string())
}

/// Makes blocks of the cache out of `kv_memory`, for this model.
///
/// # Errors
///
/// When it is less than one block, or no share can be told.
pub fn size_kv(config: &mut Config, model: &Arc<Model>) -> Result<(), String> {
    let block_bytes = match config.engine {
        EngineChoice::Cuda => model.kv_block_bytes::<CudaBackend<Driver>>(),
        EngineChoice::Cpu | EngineChoice::Auto => model.kv_block_bytes::<CpuBackend>(),
    } as u64;
    let blocks = match config.kv_memory {
        KvMemory::Blocks => return Ok(()),
        KvMemory::Bytes(bytes) => bytes / block_bytes,
        KvMemory::Percent(_) if config.engine != EngineChoice::Cuda => {
            return Err("kv_memory: a share of what is free is for engine=cuda; give bytes, such as 2GB".into());
        }
        KvMemory::Percent(percent) => {
            let driver = open(&kernels(config.cuda_kernels.as_deref()))?;
            let (free, _) = driver.memory().map_err(|e| e.to_string())?;
            let options = EngineOptions {
                slots_max: config.slots_max,
                step_rows_max: config.step_rows(),
                kv_blocks_max: config.kv_blocks_max,
                ..EngineOptions::default()
            };
            let fit = kv_blocks_in(model, &options, driver.found(), free).map_err(|e| e.to_string())?;
            fit as u64 * percent / 100
        }
    };
    if blocks == 0 {
        return Err(format!(
            "kv_memory is less than one block of {BLOCK_LEN} cells, {block_bytes} bytes for this model"
        ));
    }
    config.kv_blocks_max = blocks.min(1 << 24) as usize;
    Ok(())
}

/// The device's name, and where its use is read; none with the CPU, or without NVML.
pub fn monitor(config: &Config) -> Option<(String, Monitor)> {
    let found = (config.engine == EngineChoice::Cuda).then(devices)?.ok()?;
    Some((found[0].name.clone(), Monitor::open(&found[0].bus_id)?))
}

/// An engine on the device; refused with all sizes when it does not fit.
///
/// # Errors
///
/// One line that says why not.
pub fn on_device(model: Arc<Model>, options: EngineOptions, kernels: Kernels) -> Result<OnDevice, String> {
    let driver = open(&kernels)?;
    let found = driver.found().clone();
    let weights_bytes = plan(&model, &options, &found).map_err(|e| e.to_string())?.weights;
    let (uploaded, graphs_refused) = (driver.uploaded(), driver.graphs_refused());
    let (done, wait) = channel::<()>();
    let engine = std::thread::scope(|scope| {
        scope.spawn(move || {
            while wait.recv_timeout(PROGRESS) == Err(RecvTimeoutError::Timeout) {
                let bytes = uploaded.load(std::sync::atomic::Ordering::Relaxed);
                tracing::info!(bytes, of_bytes = weights_bytes, "weights are on their way to the device");
            }
        });
        let engine = engine_on(model, options, driver).map_err(|e| e.to_string());
        drop(done);
        engine
    })?;
    Ok(OnDevice { engine: Some(engine), kernels, found, graphs_refused: Some(graphs_refused) })
}

/// An engine on a device. It lets go of everything before another is made in its place.
pub struct OnDevice {
    engine: Option<Engine<CudaBackend<Driver>>>,
    kernels: Kernels,
    pub found: Found,
    /// Why steps are slower than they could be, until it was said.
    graphs_refused: Option<Arc<OnceLock<DeviceError>>>,
}

impl OnDevice {
    fn engine(&self) -> &Engine<CudaBackend<Driver>> {
        self.engine.as_ref().expect("an engine that failed is replaced before anything is asked of it")
    }

    fn engine_mut(&mut self) -> &mut Engine<CudaBackend<Driver>> {
        self.engine.as_mut().expect("an engine that failed is replaced before anything is asked of it")
    }
}

impl Decoder for OnDevice {
    fn admit(&mut self, request: SequenceRequest) -> Result<AdmitInfo, AdmitError> {
        self.engine_mut().admit(request)
    }

    fn cancel(&mut self, id: u64) {
        self.engine_mut().cancel(id);
    }

    fn step(&mut self, sink: &mut dyn TokenSink) -> Result<StepReport, String> {
        let report = self.engine_mut().step(sink).map_err(|e| e.to_string());
        if let Some(why) = self.graphs_refused.as_ref().and_then(|refused| refused.get()) {
            tracing::warn!(%why, "the device's steps are launched kernel by kernel: the driver makes no graphs");
            self.graphs_refused = None;
        }
        report
    }

    /// In a new context. There may be less room than before, so the cache is as large as fits.
    fn rebuilt(&mut self, model: Arc<Model>, mut options: EngineOptions) -> Result<Box<dyn Decoder>, String> {
        self.engine = None;
        let fit = {
            let driver = open(&self.kernels)?;
            let (free, _) = driver.memory().map_err(|e| e.to_string())?;
            kv_blocks_in(&model, &options, driver.found(), free).map_err(|e| e.to_string())?
        };
        if fit < options.kv_blocks_max && fit > 0 {
            tracing::warn!(kv_blocks = fit, wanted = options.kv_blocks_max, "the KV cache is smaller than before");
            options.kv_blocks_max = fit;
        }
        Ok(Box::new(on_device(model, options, self.kernels.clone())?))
    }

    fn is_idle(&self) -> bool {
        self.engine().is_idle()
    }

    fn slots_free(&self) -> usize {
        self.engine().slots_free()
    }

    fn running_count(&self) -> usize {
        self.engine().running_count()
    }

    fn paused_count(&self) -> usize {
        self.engine().paused_count()
    }

    fn kv_usage(&self) -> KvUsage {
        self.engine().kv_usage()
    }

    fn session_kv(&self, session: u128) -> SessionKv {
        self.engine().session_kv(session)
    }

    fn drop_session(&mut self, session: u128) {
        self.engine_mut().drop_session(session);
    }

    fn next_rows(&self) -> NextRows {
        self.engine().next_rows()
    }

    fn limit_prefill(&mut self, rows_max: usize) {
        self.engine_mut().limit_prefill(rows_max);
    }

    fn progress(&self, each: &mut dyn FnMut(u64, Progress)) {
        self.engine().progress(each);
    }

    fn pin(&mut self, id: u64) {
        self.engine_mut().pin(id);
    }

    fn arithmetic(&self) -> String {
        self.engine().arithmetic().to_owned()
    }
}
