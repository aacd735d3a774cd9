//! What a model needs of a device, found out before anything is allocated: all of the set-up is done on a [`Plan`], which
//! counts and does nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::device::{Arguments, Device, Use};
use super::graphs::bytes_max;
use super::{CudaBackend, Driver, Found, cache_bytes};
use crate::backend::DeviceError;
use crate::model::Model;
use crate::{Engine, EngineError, EngineOptions};

/// The driver gives memory in pieces of this many bytes; smaller ones share one.
const PIECE_BYTES: u64 = 2 << 20;
const SMALL_BYTES: u64 = 512;
/// What is left free: the driver takes some when kernels are first launched.
const MARGIN_BYTES: u64 = 64 << 20;

/// Bytes of device memory, by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Matrices, norms and biases, as they lie on the device.
    pub weights: u64,
    /// The KV cache.
    pub kv: u64,
    /// Activations and what a step needs besides.
    pub workspace: u64,
    /// Lists of launches that are kept as graphs: a guess, and a bound that is as good as it.
    pub graphs: u64,
}

impl Sizes {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.kv + self.workspace + self.graphs
    }
}

/// A device that only counts.
struct Plan {
    processors: usize,
    next: AtomicU64,
    of_use: [AtomicU64; 3],
}

impl Device for Plan {
    type Host = Vec<f32>;

    fn alloc(&self, bytes: usize, purpose: Use) -> Result<u64, DeviceError> {
        let unit = if bytes as u64 >= PIECE_BYTES / 2 { PIECE_BYTES } else { SMALL_BYTES };
        let bytes = (bytes as u64).next_multiple_of(unit);
        self.of_use[purpose as usize].fetch_add(bytes, Relaxed);
        Ok(PIECE_BYTES + self.next.fetch_add(bytes, Relaxed))
    }

    fn free(&self, _: u64, _: usize) {}

    fn upload(&self, _: u64, _: &[u8]) -> Result<(), DeviceError> {
        Ok(())
    }

    fn clear(&self, _: u64, _: usize) -> Result<(), DeviceError> {
        Ok(())
    }

    fn download(&self, _: u64, _: &mut [u8]) -> Result<(), DeviceError> {
        Ok(())
    }

    fn host(_: &Arc<Plan>, _: usize) -> Result<Vec<f32>, DeviceError> {
        Ok(Vec::new())
    }

    fn read(&self, _: u64, len: usize, to: &mut Vec<f32>) -> Result<(), DeviceError> {
        to.resize(len, 0.0);
        Ok(())
    }

    fn launch(&self, _: &'static str, _: [u32; 3], _: u32, _: usize, _: &Arguments) -> Result<(), DeviceError> {
        Ok(())
    }

    fn arithmetic(&self) -> String {
        "plan".to_owned()
    }

    fn processors(&self) -> usize {
        self.processors
    }

    fn only_counts(&self) -> bool {
        true
    }
}

/// What an engine with these options takes of that device.
///
/// # Errors
///
/// When the options are not legal, or the kernels cannot run the model.
pub fn plan(model: &Arc<Model>, options: &EngineOptions, found: &Found) -> Result<Sizes, EngineError> {
    let device = Arc::new(Plan { processors: found.processors, next: AtomicU64::new(0), of_use: Default::default() });
    // Whether it fits is asked of the device, not of a limit.
    let options = EngineOptions { memory_bytes_max: u64::MAX, ..options.clone() };
    Engine::on_backend(model.clone(), options, CudaBackend::new(device.clone()))?;
    let [weights, kv, workspace] =
        [Use::Weights, Use::Kv, Use::Workspace].map(|u| device.of_use[u as usize].load(Relaxed));
    let graphs = bytes_max(found.memory_bytes);
    Ok(Sizes { weights, kv, workspace: workspace.next_multiple_of(PIECE_BYTES) + MARGIN_BYTES, graphs })
}

/// Blocks of KV memory that fit into `free_bytes` of that device beside everything else.
///
/// # Errors
///
/// As [`plan`].
pub fn kv_blocks_in(
    model: &Arc<Model>,
    options: &EngineOptions,
    found: &Found,
    free_bytes: u64,
) -> Result<usize, EngineError> {
    let block_bytes = 2 * cache_bytes(model.config.kv_shape(1)) as u64;
    let mut blocks = options.kv_blocks_max as u64;
    // A step's block tables grow with the cache, if by next to nothing: the second look has them right.
    for _ in 0..3 {
        let options = EngineOptions { kv_blocks_max: blocks.max(1) as usize, ..options.clone() };
        let sizes = plan(model, &options, found)?;
        // Keys and values are a piece each.
        let others = sizes.weights + sizes.workspace + sizes.graphs + 2 * PIECE_BYTES;
        blocks = (free_bytes.saturating_sub(others) / block_bytes.max(1)).min(u64::from(u32::MAX));
    }
    Ok(blocks as usize)
}

/// An engine on a device, which whoever looks at its figures may keep, too; refused with all sizes before anything is allocated if it does not fit.
///
/// # Errors
///
/// When it does not fit, or the device fails.
pub fn engine_on(
    model: Arc<Model>,
    options: EngineOptions,
    driver: impl Into<Arc<Driver>>,
) -> Result<Engine<CudaBackend<Driver>>, EngineError> {
    let driver = driver.into();
    let sizes = plan(&model, &options, driver.found())?;
    let (free, total) = driver.memory()?;
    if sizes.total() > free {
        let kv_blocks_fit = kv_blocks_in(&model, &options, driver.found(), free)?;
        let device = driver.found().name.clone();
        return Err(EngineError::DoesNotFit(Box::new(DoesNotFit { device, sizes, free, total, kv_blocks_fit })));
    }
    let options = EngineOptions { memory_bytes_max: u64::MAX, ..options };
    Engine::on_backend(model, options, CudaBackend::new(driver))
}

/// A model and a cache that are too large for a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoesNotFit {
    /// The device's name.
    pub device: String,
    /// What is needed.
    pub sizes: Sizes,
    /// Bytes that are free.
    pub free: u64,
    /// Bytes of the device.
    pub total: u64,
    /// Blocks of KV memory that would fit; none when the weights alone do not.
    pub kv_blocks_fit: usize,
}

impl std::fmt::Display for DoesNotFit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mb = |bytes: u64| bytes.div_ceil(1_000_000);
        let Sizes { weights, kv, workspace, graphs } = self.sizes;
        write!(
            f,
            "{} has {} MB free of {} MB, and this needs {} MB: weights {} MB, KV cache {} MB, workspace {} MB, graphs {} MB; ",
            self.device,
            mb(self.free),
            mb(self.total),
            mb(self.sizes.total()),
            mb(weights),
            mb(kv),
            mb(workspace),
            mb(graphs)
        )?;
        match self.kv_blocks_fit {
            0 => f.write_str("take a smaller model, one with fewer bits a weight, or engine=cpu"),
            blocks => write!(f, "lower kv_blocks_max to {blocks} at most, or set kv_memory"),
        }
    }
}
