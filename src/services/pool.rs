//! A pool: one engine thread, what it serves, and what others may know and ask of it.
//!
//! Everything here is shared between the reactors and the engine thread; the thread itself is in
//! `engine_loop`.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, RwLock};

use crossbeam_queue::ArrayQueue;
use hdrhistogram::Histogram;
use orchestratord_engine::{Engine, EngineOptions, Isa, LoadError, Model, ModelInfo};

use super::decoder::Decoder;
use super::device;
use super::gate::{Gate, GateRules};
use super::prediction::StepModel;
use super::prompt_cache::PromptCache;
use super::scheduler::SchedulerRules;
use super::scribe::Scribe;
use super::task::LiveTask;
use super::trials::Trials;
use crate::admission::{QueueWithMetrics, Waiting};
use crate::config::{Config, EngineChoice};
use crate::domain::error::OrchestratorError;
use crate::infra::clock::Clock;
use crate::infra::doorbell::Doorbell;
use crate::infra::reactor::WakeHub;
use crate::infra::stream::StreamWriter;
use crate::metrics::{Metrics, Verification};

/// Control messages under way at once. A client that asks for more is told to come back.
const CONTROLS_MAX: usize = 1024;

/// What travels through the queue.
pub struct Entry {
    pub task: Arc<LiveTask>,
    pub writer: StreamWriter,
}

/// One model as it is served. Tasks keep the one that their prompt was tokenized for.
pub struct Loaded {
    pub model: Arc<Model>,
    pub info: ModelInfo,
    /// The name clients use.
    pub model_ref: String,
    pub engine: &'static str,
    pub engine_version: &'static str,
    /// Instruction set path; streams are bit-identical only on the same.
    pub arithmetic: String,
    /// Where it was loaded from; none: built in.
    pub path: Option<PathBuf>,
    /// When it was loaded, milliseconds since 1970.
    pub loaded_unix_ms: u64,
    /// Tokens of prompts that came before.
    pub prompts: PromptCache,
}

/// Where a pool stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PoolState {
    Loading,
    Ready,
    /// The engine failed and is being rebuilt, or a step hangs.
    Unready,
    Stopped,
}

impl PoolState {
    fn from_u8(value: u8) -> PoolState {
        [PoolState::Loading, PoolState::Ready, PoolState::Unready, PoolState::Stopped][value as usize]
    }
}

/// What others ask of the engine thread; it answers between two steps.
pub enum Control {
    /// Serve this model from now on.
    Install {
        model: Box<Installable>,
        done: Box<dyn FnOnce() + Send>,
    },
    /// The truth about a session's KV, milliseconds old at most.
    SessionKv {
        session: u128,
        answer: Box<dyn FnOnce(SessionKvView) + Send>,
    },
    DropSession {
        session: u128,
    },
}

/// What a session holds in the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SessionKvView {
    pub bytes: u64,
    /// Share of the session's last context that need not be computed again.
    pub warmth: f64,
}

/// Latencies of one pool since its start, for health.
pub struct Latencies {
    pub first_token_us: Histogram<u64>,
    pub between_tokens_us: Histogram<u64>,
}

/// The settings that concern a pool.
#[derive(Clone, Debug)]
pub struct PoolRules {
    pub slots_max: usize,
    pub step_rows_max: usize,
    pub kv_blocks_max: usize,
    pub threads: usize,
    /// Of the CPU engine; none is the best one.
    pub isa: Option<Isa>,
    /// True when a device computes, with kernels from this folder or else those of the binary.
    pub cuda: bool,
    pub cuda_kernels: Option<PathBuf>,
    pub metrics_interval_us: u64,
    pub decode_timeout_ms: u64,
    pub disconnect_grace_us: u64,
    /// The model of the configuration, and the chat template that it is used with.
    pub model: Option<PathBuf>,
    pub chat_template: Option<PathBuf>,
    pub models_dir: Option<PathBuf>,
    pub prompt_cache_bytes_max: usize,
}

impl PoolRules {
    pub fn from_config(config: &Config) -> PoolRules {
        let beside_model = || config.model.as_deref().and_then(Path::parent).map(Path::to_owned);
        PoolRules {
            slots_max: config.slots_max,
            step_rows_max: config.step_rows(),
            kv_blocks_max: config.kv_blocks_max,
            threads: config.threads,
            isa: config.isa.0,
            cuda: config.engine == EngineChoice::Cuda,
            cuda_kernels: config.cuda_kernels.clone(),
            metrics_interval_us: config.metrics_interval_ms * 1000,
            decode_timeout_ms: config.decode_timeout_ms,
            disconnect_grace_us: config.disconnect_grace_ms * 1000,
            model: config.model.clone(),
            chat_template: config.chat_template.clone(),
            models_dir: config.models_dir.clone().or_else(beside_model),
            prompt_cache_bytes_max: config.prompt_cache_bytes_max,
        }
    }
}

/// Shared between the engine thread, the reactors and the watchdog.
pub struct Pool {
    pub id: String,
    pub engine: &'static str,
    pub engine_version: &'static str,
    pub rules: PoolRules,
    pub scheduler_rules: SchedulerRules,
    /// The gate's queue.
    pub queue: Arc<QueueWithMetrics<Entry>>,
    pub gate: Arc<Gate<Entry>>,
    pub doorbell: Doorbell,
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
    pub scribe: Scribe,
    pub hub: WakeHub,
    controls: ArrayQueue<Control>,
    loaded: RwLock<Option<Arc<Loaded>>>,
    retired: Mutex<Vec<String>>,
    state: AtomicU8,
    draining: AtomicBool,
    /// When a drain ends what still runs; 0 is no drain.
    drain_until_us: AtomicU64,
    reloading: AtomicBool,
    last_error: Mutex<Option<String>>,
    pub latencies: Mutex<Latencies>,
    /// Tasks in slots, for the watchdog; the engine thread changes it when a task is seated or ends.
    pub running: Mutex<Vec<Arc<LiveTask>>>,
    /// When the step under way began; 0 between steps.
    pub step_began_us: AtomicU64,
}

impl Pool {
    /// A pool that is loading, and the engine's end of its queue.
    pub fn new(
        config: &Config,
        metrics: Arc<Metrics>,
        clock: Clock,
        scribe: Scribe,
        hub: WakeHub,
    ) -> (Arc<Pool>, Waiting<Entry>) {
        let (queue, waiting) = QueueWithMetrics::new(config.queue_capacity, config.admission_policy, metrics.clone());
        let scheduler_rules = SchedulerRules::from_config(config);
        // An order of magnitude, until a model is there and has been measured.
        let speed = StepModel::new(10_000.0);
        let gate = Gate::new(queue, GateRules::from_config(config), scheduler_rules.first_shape(), speed);
        let histogram = || Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("the bounds are legal");
        let labels = metrics.labels().clone();
        let pool = Pool {
            id: config.pool_id.clone(),
            engine: labels.engine,
            engine_version: labels.engine_version,
            rules: PoolRules::from_config(config),
            scheduler_rules,
            queue: gate.queue.clone(),
            gate: Arc::new(gate),
            doorbell: Doorbell::default(),
            metrics,
            clock,
            scribe,
            hub,
            controls: ArrayQueue::new(CONTROLS_MAX),
            loaded: RwLock::new(None),
            retired: Mutex::default(),
            state: AtomicU8::new(PoolState::Loading as u8),
            draining: AtomicBool::new(false),
            drain_until_us: AtomicU64::new(0),
            reloading: AtomicBool::new(false),
            last_error: Mutex::default(),
            latencies: Mutex::new(Latencies { first_token_us: histogram(), between_tokens_us: histogram() }),
            running: Mutex::default(),
            step_began_us: AtomicU64::new(0),
        };
        (Arc::new(pool), waiting)
    }

    pub fn state(&self) -> PoolState {
        PoolState::from_u8(self.state.load(SeqCst))
    }

    pub fn set_state(&self, state: PoolState) {
        self.state.store(state as u8, SeqCst);
        if let Some(loaded) = self.loaded() {
            let name = match state {
                PoolState::Loading => "loading",
                PoolState::Ready if self.is_draining() => "draining",
                PoolState::Ready => "ready",
                PoolState::Unready => "unready",
                PoolState::Stopped => "retired",
            };
            self.metrics.model_state(&loaded.model_ref, name);
        }
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(SeqCst)
    }

    /// Admits nothing new; what is there may go on until `until_us`.
    pub fn drain(&self, until_us: u64) {
        self.drain_until_us.store(until_us.max(1), SeqCst);
        self.draining.store(true, SeqCst);
        self.set_state(self.state());
        self.doorbell.ring();
    }

    /// When the drain ends what is left; none without a drain.
    pub fn drain_until_us(&self) -> Option<u64> {
        self.is_draining().then(|| self.drain_until_us.load(SeqCst))
    }

    /// The model that new tasks get.
    pub fn loaded(&self) -> Option<Arc<Loaded>> {
        self.loaded.read().expect("nothing panics under this lock").clone()
    }

    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().expect("nothing panics under this lock").clone()
    }

    pub fn set_last_error(&self, error: Option<String>) {
        *self.last_error.lock().expect("nothing panics under this lock") = error;
    }

    /// Called by the engine thread: new tasks get this model from now on, and a drain is over.
    pub fn serve(&self, loaded: Arc<Loaded>) {
        let mut current = self.loaded.write().expect("nothing panics under this lock");
        if let Some(old) = current.replace(loaded.clone())
            && old.model_ref != loaded.model_ref
        {
            self.metrics.model_state(&old.model_ref, "retired");
            let mut retired = self.retired.lock().expect("nothing panics under this lock");
            retired.retain(|name| *name != old.model_ref && *name != loaded.model_ref);
            // Enough to tell clients apart that are late from clients that are wrong.
            if retired.len() == 64 {
                retired.remove(0);
            }
            retired.push(old.model_ref.clone());
        }
        drop(current);
        self.draining.store(false, SeqCst);
        self.set_last_error(None);
        self.set_state(PoolState::Ready);
    }

    /// Sends a message to the engine thread; false when too many are under way.
    pub fn send(&self, control: Control) -> bool {
        let sent = self.controls.push(control).is_ok();
        self.doorbell.ring();
        sent
    }

    pub fn next_control(&self) -> Option<Control> {
        self.controls.pop()
    }

    pub fn has_controls(&self) -> bool {
        !self.controls.is_empty()
    }

    /// The model and pool for a new task.
    ///
    /// # Errors
    ///
    /// When the pool cannot take it: not ready, draining, another model, or a model that has been retired.
    pub fn accepting(&self, model_ref: &str) -> Result<Arc<Loaded>, OrchestratorError> {
        let unavailable =
            |message: String, retry_after_ms| OrchestratorError::PoolUnavailable { message, retry_after_ms };
        match self.state() {
            PoolState::Stopped => return Err(unavailable("the pool has stopped: use another replica".into(), None)),
            PoolState::Loading | PoolState::Unready => {
                let message = "the pool is not ready: its model is loading or its engine is being rebuilt".into();
                return Err(OrchestratorError::PoolUnready { message, retry_after_ms: 1000 });
            }
            PoolState::Ready => {}
        }
        if self.is_draining() {
            let message = format!("pool {} is draining and takes nothing new: use another replica", self.id);
            return Err(unavailable(message, None));
        }
        let loaded = self.loaded().expect("a ready pool has a model");
        if loaded.model_ref == model_ref {
            return Ok(loaded);
        }
        let serves = &loaded.model_ref;
        if self.retired.lock().expect("nothing panics under this lock").iter().any(|name| name == model_ref) {
            let message = format!("model {model_ref} was retired here: this pool now serves {serves}");
            return Err(OrchestratorError::ModelDeprecated(message));
        }
        Err(unavailable(format!("no pool serves model {model_ref:?}: pool {} serves {serves:?}", self.id), None))
    }

    /// Begins a reload; false when one is under way.
    pub fn begin_reload(&self) -> bool {
        !self.reloading.swap(true, SeqCst)
    }

    pub fn end_reload(&self) {
        self.reloading.store(false, SeqCst);
    }

    /// Where `new_model_ref` is to be loaded from; none: the built-in model.
    ///
    /// # Errors
    ///
    /// For a name that is no plain name, or when no folder of models is configured.
    pub fn resolve(&self, model_ref: &str) -> Result<Option<PathBuf>, String> {
        if model_ref == crate::default_model::NAME {
            return Ok(None);
        }
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if model_ref.is_empty() || model_ref.starts_with('.') || !model_ref.bytes().all(legal) {
            return Err(format!("{model_ref:?} is no model's name: use letters, digits, '-', '_' and '.'"));
        }
        let Some(folder) = &self.rules.models_dir else {
            return Err(format!("model {model_ref:?} cannot be looked up: set models_dir to a folder with models"));
        };
        // A Hugging Face folder goes by its own name.
        if model_ref.ends_with(".gguf") || folder.join(model_ref).join("config.json").is_file() {
            return Ok(Some(folder.join(model_ref)));
        }
        Ok(Some(folder.join(format!("{model_ref}.gguf"))))
    }
}

/// A model and an engine for it, ready to be installed.
pub struct Installable {
    pub loaded: Arc<Loaded>,
    pub engine: Box<dyn Decoder>,
    /// What is known or assumed of its steps.
    pub speed: StepModel,
    /// What may still be tried to know better.
    pub trials: Trials,
}

/// Loads a model and makes its engine; what was learned of the model before it is where predictions begin.
///
/// # Errors
///
/// One line that says what is wrong with the file or with its size, and what kind of failure it is.
pub fn load(
    path: Option<&Path>,
    rules: &PoolRules,
    engine_version: &'static str,
    prior: Option<StepModel>,
) -> Result<Installable, (Verification, String)> {
    seat(open(path, rules)?, path, rules, engine_version, prior)
}

/// Reads and checks a model.
///
/// # Errors
///
/// As `load`.
pub fn open(path: Option<&Path>, rules: &PoolRules) -> Result<Arc<Model>, (Verification, String)> {
    let model = match path {
        None => Model::from_static(crate::default_model::bytes()),
        Some(path) => Model::open(path),
    };
    let mut model = model.map_err(|e| (verification_of(&e), load_message(path, &e)))?;
    // A template is written for one model: others that a reload brings have their own.
    if let Some(template) = rules.chat_template.as_deref().filter(|_| path == rules.model.as_deref()) {
        let refuse = |why: String| (Verification::Unsupported, format!("chat_template {}: {why}", template.display()));
        let source = std::fs::read_to_string(template).map_err(|e| refuse(e.to_string()))?;
        model.replace_chat_template(&source).map_err(|e| refuse(e.to_string()))?;
    }
    Ok(Arc::new(model))
}

/// Makes the engine for a model.
///
/// # Errors
///
/// As `load`.
pub fn seat(
    model: Arc<Model>,
    path: Option<&Path>,
    rules: &PoolRules,
    engine_version: &'static str,
    prior: Option<StepModel>,
) -> Result<Installable, (Verification, String)> {
    let options = EngineOptions {
        slots_max: rules.slots_max,
        step_rows_max: rules.step_rows_max,
        kv_blocks_max: rules.kv_blocks_max,
        threads: rules.threads,
        isa: rules.isa,
        ..EngineOptions::default()
    };
    let made: Result<Box<dyn Decoder>, String> = match rules.cuda {
        true => device::on_device(model.clone(), options, device::kernels(rules.cuda_kernels.as_deref()))
            .map(|engine| Box::new(engine) as Box<dyn Decoder>),
        false => Engine::new(model.clone(), options)
            .map(|engine| Box::new(engine) as Box<dyn Decoder>)
            .map_err(|e| e.to_string()),
    };
    let mut engine = made.map_err(|why| (Verification::Unsupported, why))?;
    let mut speed = Trials::assumed(model.info(), prior.as_ref());
    let mut trials = Trials::of(model.info(), rules.slots_max);
    trials.at_load(&mut *engine, &mut speed);
    let model_ref = match path {
        None => crate::default_model::NAME.to_owned(),
        // A folder's name may well have a dot in it, and no extension.
        Some(path) => {
            let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
            name.map_or_else(String::new, |s| s.to_string_lossy().into_owned())
        }
    };
    let info = model.info().clone();
    let loaded = Loaded {
        info,
        model_ref,
        engine: if rules.cuda { EngineChoice::Cuda.name() } else { EngineChoice::Cpu.name() },
        engine_version,
        arithmetic: engine.arithmetic(),
        path: path.map(Path::to_owned),
        prompts: PromptCache::new(rules.prompt_cache_bytes_max),
        loaded_unix_ms: Clock::system().unix_ms(),
        model,
    };
    Ok(Installable { loaded: Arc::new(loaded), engine, speed, trials })
}

/// One line that names the file, which an error from inside a file does not.
fn load_message(path: Option<&Path>, error: &LoadError) -> String {
    match (path, error) {
        (None, _) | (_, LoadError::Io { .. }) => error.to_string(),
        (Some(path), _) => format!("cannot load {}: {error}", path.display()),
    }
}

fn verification_of(error: &LoadError) -> Verification {
    match error {
        LoadError::Io { .. } => Verification::Missing,
        LoadError::Unsupported { .. } => Verification::Unsupported,
        _ => Verification::Corrupt,
    }
}
