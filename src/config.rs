//! Every setting: its name, default, unit and reason, in one table.
//!
//! A value comes from the first of: a flag, the environment, the configuration file, the default. Every
//! source goes through the same parser and the same bounds, and a name that no source should have is an
//! error that says which names exist.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use orchestratord_engine::Isa;

/// Where a value came from, for `config check`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Default,
    File(PathBuf),
    Environment(String),
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::File(path) => write!(f, "file {}", path.display()),
            Source::Environment(name) => write!(f, "environment {name}"),
            Source::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// Why the configuration cannot be used; `Display` says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(pub String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

/// What happens to a task that meets a full queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdmissionPolicy {
    Reject,
    DropLru,
}

impl AdmissionPolicy {
    pub const fn name(self) -> &'static str {
        match self {
            AdmissionPolicy::Reject => "reject",
            AdmissionPolicy::DropLru => "drop-lru",
        }
    }
}

/// In which order tasks of one class are seated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueOrder {
    /// In order of arrival.
    Fifo,
    /// The earliest deadline first.
    Deadline,
    /// In turns between API keys, by tokens.
    Fair,
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineChoice {
    /// CUDA where a driver has a device, else the CPU.
    Auto,
    Cpu,
    Cuda,
}

/// How large the KV cache is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KvMemory {
    /// As `kv_blocks_max` says.
    Blocks,
    Bytes(u64),
    /// Percent of what is free on the device beside everything else.
    Percent(u64),
}

/// Which of monoio's drivers the reactors use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverChoice {
    Auto,
    IoUring,
    Legacy,
}

/// The instruction set of the CPU engine's kernels; none is the best one that does not round activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IsaChoice(pub Option<Isa>);

/// A type that a setting can have: read from text, shown as text.
trait Value: Sized {
    /// What a legal value looks like, for messages.
    const EXPECTED: &'static str;
    fn read(text: &str) -> Option<Self>;
    fn show(&self) -> String;
}

macro_rules! value_by_from_str {
    ($($kind:ty: $expected:literal),* $(,)?) => {$(
        impl Value for $kind {
            const EXPECTED: &'static str = $expected;
            fn read(text: &str) -> Option<Self> {
                text.parse().ok()
            }
            fn show(&self) -> String {
                self.to_string()
            }
        }
    )*};
}

value_by_from_str!(
    u16: "a whole number from 0 to 65535",
    u32: "a whole number from 0 to 4294967295",
    u64: "a whole number, 0 or more",
    usize: "a whole number, 0 or more",
    SocketAddr: "an address and port such as 127.0.0.1:8080 or [::1]:8080",
);

impl Value for f64 {
    const EXPECTED: &'static str = "a finite number";
    fn read(text: &str) -> Option<f64> {
        text.parse().ok().filter(|v: &f64| v.is_finite())
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for String {
    const EXPECTED: &'static str = "a string";
    fn read(text: &str) -> Option<String> {
        Some(text.to_owned())
    }
    fn show(&self) -> String {
        self.clone()
    }
}

/// Paths: an empty string is none.
impl Value for Option<PathBuf> {
    const EXPECTED: &'static str = "a path";
    fn read(text: &str) -> Option<Self> {
        Some((!text.is_empty()).then(|| PathBuf::from(text)))
    }
    fn show(&self) -> String {
        self.as_ref().map_or(String::new(), |p| p.display().to_string())
    }
}

/// Addresses: an empty string is none.
impl Value for Option<SocketAddr> {
    const EXPECTED: &'static str = "an address and port such as 127.0.0.1:8081, or nothing";
    fn read(text: &str) -> Option<Self> {
        if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) }
    }
    fn show(&self) -> String {
        self.map_or_else(String::new, |a| a.to_string())
    }
}

/// Origins of pages that may read the gateway's answers in a browser.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(Vec<String>);

impl Origins {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn allow(&self, origin: &str) -> bool {
        self.0.iter().any(|known| known == "*" || known == origin)
    }
}

impl Value for Origins {
    const EXPECTED: &'static str = "a comma-separated list of origins such as https://chat.example.org, or *";
    fn read(text: &str) -> Option<Self> {
        let origins: Vec<String> =
            text.split(',').map(str::trim).filter(|o| !o.is_empty()).map(str::to_owned).collect();
        let legal = |o: &String| {
            let host = o.strip_prefix("http://").or_else(|| o.strip_prefix("https://"));
            o == "*" || host.is_some_and(|h| !h.is_empty() && h.bytes().all(|b| b.is_ascii_graphic() && b != b'/'))
        };
        origins.iter().all(legal).then_some(Origins(origins))
    }
    fn show(&self) -> String {
        self.0.join(",")
    }
}

/// Repositories that `pull` may load: `*`, `org/*` or `org/repo`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repositories(Vec<String>);

impl Repositories {
    pub fn allow(&self, repository: &str) -> bool {
        let fits = |known: &String| match known.strip_suffix('*') {
            Some(start) => repository.starts_with(start),
            None => known == repository,
        };
        self.0.iter().any(fits)
    }
}

/// Whether a text is two names with a slash between.
pub fn is_repository(text: &str) -> bool {
    let legal = |name: &str| {
        !name.is_empty()
            && name.len() <= 96
            && !name.starts_with(['.', '-'])
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    text.split_once('/').is_some_and(|(owner, name)| legal(owner) && legal(name))
}

impl Value for Repositories {
    const EXPECTED: &'static str = "a comma-separated list of repositories such as org/repo or org/*, or * for any";
    fn read(text: &str) -> Option<Self> {
        let known: Vec<String> = text.split(',').map(str::trim).filter(|r| !r.is_empty()).map(str::to_owned).collect();
        let legal = |r: &String| r == "*" || is_repository(&r.replace("/*", "/any"));
        known.iter().all(legal).then_some(Repositories(known))
    }
    fn show(&self) -> String {
        self.0.join(",")
    }
}

/// Keys: comma-separated. Shown as their number, for they are secrets.
impl Value for Vec<String> {
    const EXPECTED: &'static str = "a comma-separated list of keys, each of 8 to 256 visible ASCII characters";
    fn read(text: &str) -> Option<Self> {
        let mut keys: Vec<String> = Vec::new();
        for key in text.split(',').map(str::trim).filter(|k| !k.is_empty()) {
            // A key that stands there twice is still one client.
            if !keys.iter().any(|known| known == key) {
                keys.push(key.to_owned());
            }
        }
        let legal = |k: &String| (8..=256).contains(&k.len()) && k.bytes().all(|b| b.is_ascii_graphic());
        keys.iter().all(legal).then_some(keys)
    }
    fn show(&self) -> String {
        format!("({} configured)", self.len())
    }
}

impl Value for AdmissionPolicy {
    const EXPECTED: &'static str = "reject or drop-lru";
    fn read(text: &str) -> Option<Self> {
        [AdmissionPolicy::Reject, AdmissionPolicy::DropLru].into_iter().find(|p| p.name() == text)
    }
    fn show(&self) -> String {
        self.name().to_owned()
    }
}

impl QueueOrder {
    pub const fn name(self) -> &'static str {
        match self {
            QueueOrder::Fifo => "fifo",
            QueueOrder::Deadline => "deadline",
            QueueOrder::Fair => "fair",
        }
    }
}

impl Value for QueueOrder {
    const EXPECTED: &'static str = "fifo, deadline or fair";
    fn read(text: &str) -> Option<Self> {
        [QueueOrder::Fifo, QueueOrder::Deadline, QueueOrder::Fair].into_iter().find(|o| o.name() == text)
    }
    fn show(&self) -> String {
        self.name().to_owned()
    }
}

impl EngineChoice {
    pub const fn name(self) -> &'static str {
        match self {
            EngineChoice::Auto => "auto",
            EngineChoice::Cpu => "cpu",
            EngineChoice::Cuda => "cuda",
        }
    }
}

impl Value for EngineChoice {
    const EXPECTED: &'static str = "auto, cpu or cuda";
    fn read(text: &str) -> Option<Self> {
        [EngineChoice::Auto, EngineChoice::Cpu, EngineChoice::Cuda].into_iter().find(|e| e.name() == text)
    }
    fn show(&self) -> String {
        self.name().to_owned()
    }
}

impl Value for KvMemory {
    const EXPECTED: &'static str = "bytes such as 24GB, 24GiB or 500MB, a share such as 90%, or nothing";
    fn read(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(KvMemory::Blocks);
        }
        if let Some(percent) = text.strip_suffix('%') {
            return percent.parse().ok().filter(|p| (1..=100).contains(p)).map(KvMemory::Percent);
        }
        let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("GB", 1_000_000_000), ("MB", 1_000_000), ("", 1)];
        let (digits, unit) = units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))?;
        digits.parse::<u64>().ok()?.checked_mul(unit).filter(|b| *b > 0).map(KvMemory::Bytes)
    }
    fn show(&self) -> String {
        match self {
            KvMemory::Blocks => String::new(),
            KvMemory::Bytes(bytes) => bytes.to_string(),
            KvMemory::Percent(percent) => format!("{percent}%"),
        }
    }
}

impl Value for IsaChoice {
    const EXPECTED: &'static str = "auto, or one of avx512, avx512-bf16, avx2 and portable that this processor has (`orchestratord doctor` lists them)";
    fn read(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(IsaChoice(None)),
            name => Isa::named(name).map(|isa| IsaChoice(Some(isa))),
        }
    }
    fn show(&self) -> String {
        self.0.map_or("auto", Isa::name).to_owned()
    }
}

impl Value for DriverChoice {
    const EXPECTED: &'static str = "auto, io_uring or legacy";
    fn read(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(DriverChoice::Auto),
            "io_uring" => Some(DriverChoice::IoUring),
            "legacy" => Some(DriverChoice::Legacy),
            _ => None,
        }
    }
    fn show(&self) -> String {
        match self {
            DriverChoice::Auto => "auto",
            DriverChoice::IoUring => "io_uring",
            DriverChoice::Legacy => "legacy",
        }
        .to_owned()
    }
}

/// One row of the table, for help texts and `config check`.
pub struct Setting {
    pub name: &'static str,
    pub help: &'static str,
}

macro_rules! settings {
    ($($name:ident: $kind:ty = $default:expr, $help:literal;)*) => {
        /// The whole configuration. Each field's comment is its help text.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Config {
            $(#[doc = $help] pub $name: $kind,)*
        }

        impl Default for Config {
            fn default() -> Config {
                Config { $($name: $default,)* }
            }
        }

        /// Every setting in the order of the table.
        pub const SETTINGS: &[Setting] = &[$(Setting { name: stringify!($name), help: $help },)*];

        impl Config {
            /// Sets one value from its text.
            fn set(&mut self, name: &str, text: &str, source: &Source) -> Result<(), ConfigError> {
                match name {
                    $(stringify!($name) => {
                        self.$name = <$kind as Value>::read(text).ok_or_else(|| {
                            // A key that is out of bounds must not be printed.
                            let shown = if name == "api_keys" { "this value" } else { text };
                            ConfigError(format!(
                                "{name} (from {source}): {shown:?} is not {}", <$kind as Value>::EXPECTED
                            ))
                        })?;
                        Ok(())
                    })*
                    _ => Err(unknown_setting(name, source)),
                }
            }

            /// Name and value as text, in the order of the table. Secrets are counted, not shown.
            pub fn shown(&self) -> Vec<(&'static str, String)> {
                vec![$((stringify!($name), self.$name.show()),)*]
            }
        }
    };
}

/// Most engine threads.
const THREADS_MAX: usize = 256;

/// An engine thread for each processor but one, which a reactor gets: while all of them compute, it waits for its turn, and
/// one stream in ten sees it. Figures are in the record of `bench/cpu.sh`, reactor.
pub fn threads_default() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get() - 1).clamp(1, THREADS_MAX)
}

settings! {
    listen: SocketAddr = ([127, 0, 0, 1], 8080).into(), "address of the main listener; port 0 takes a free one";
    gateway_listen: Option<SocketAddr> = None, "address of the gateway, which speaks the dialects of other servers' clients; empty: none";
    gateway_cors_origins: Origins = Origins::default(), "origins of pages that may ask the gateway from a browser, comma-separated; * is any";
    gateway_max_tokens: u32 = 1024, "tokens of an answer for a chat request at the gateway that names no number; its context limits it too";
    gateway_deadline_ms: u64 = 600_000, "deadline of a request at the gateway without an x-deadline-ms header; the clients' own time-out";
    api_keys: Vec<String> = Vec::new(), "keys that clients send as X-API-Key; none: a random key is made, on loopback only";
    model: Option<PathBuf> = None, "GGUF file or Hugging Face folder to serve; empty: the built-in model wren";
    chat_template: Option<PathBuf> = None, "file with a Jinja chat template that `model` is used with; empty: the model's own";
    models_dir: Option<PathBuf> = None, "folder in which reload finds NAME.gguf or a folder NAME; empty: the folder of `model`";
    pool_id: String = "default".into(), "name of the pool in routes and metrics";
    driver: DriverChoice = DriverChoice::Auto, "io_uring, legacy (epoll), or auto: io_uring where the kernel allows it";
    reactors: usize = 1, "reactor threads, each with its own listener on the same port";
    engine: EngineChoice = EngineChoice::Auto, "what computes: cpu, cuda, or auto: cuda where an NVIDIA driver has a device";
    cuda_kernels: Option<PathBuf> = None, "folder of CUDA kernels that this machine's NVRTC compiles, for tuning; empty: those of the binary";
    threads: usize = threads_default(), "threads of the CPU engine, by itself one per processor but one for a reactor; results do not depend on it";
    isa: IsaChoice = IsaChoice(None), "instruction set of the CPU engine, on which the last digits of results depend: avx512, avx2, portable; avx512-bf16 rounds activations that meet bf16 weights, which is faster; auto: the best one here that does not";
    slots_max: usize = 16, "sequences decoded together";
    step_rows_max: usize = 0, "rows of one step: decode rows first, the rest for prompts; bounds the time between tokens; 0: 128, with cuda 512";
    kv_blocks_max: usize = 2048, "blocks of the KV cache (16 cells each), shared by sequences and prefix cache";
    kv_memory: KvMemory = KvMemory::Blocks, "size of the KV cache instead of kv_blocks_max, for the model of the start: bytes (24GB) or, with cuda, a share of what is free (90%)";
    queue_capacity: usize = 256, "tasks that may wait for a slot";
    admission_policy: AdmissionPolicy = AdmissionPolicy::Reject, "what a full queue does: reject the new task, or drop-lru the oldest waiting one";
    queue_order: QueueOrder = QueueOrder::Fifo, "who goes first within a class: fifo, deadline (the earliest), or fair (in turns between API keys, by tokens)";
    fair_quantum_tokens: u64 = 512, "tokens that each API key may spend in one round of queue_order=fair";
    batch_ageing_ms: u64 = 30_000, "batch work that is older than this gets one slot from which nothing displaces it, one task at a time";
    step_ms_max: f64 = 0.0, "time of a step while streams run: prompts are cut into chunks that fit; 0: twice the time of a step without prompts";
    retry_promises_max: usize = 16_384, "refused clients for whom a place is kept when they come back in time";
    retry_patience_ms: u64 = 1_500, "how long after its time such a place is kept; Retry-After is in whole seconds";
    overload_status: u16 = 429, "status of a refusal by a full queue: 429, 503 or 529, as proxies in front want it";
    on_time_probability_floor: f64 = 0.05, "a task less likely than this to meet its deadline is refused at once";
    metrics_interval_ms: u64 = 1000, "least time between two metrics events of a stream";
    heartbeat_ms: u64 = 10_000, "silence on a stream after which a comment line is sent";
    decode_timeout_ms: u64 = 30_000, "watchdog: a step longer than this ends the running tasks";
    disconnect_grace_ms: u64 = 5_000, "time without a reader after which a task with on_disconnect=cancel is cancelled";
    cancel_quiesce_ms: u64 = 1_000, "time a cancel waits for a peer that does not read before its connection is dropped";
    drain_deadline_ms: u64 = 10_000, "time that running tasks get on SIGTERM";
    session_ttl_ms: u64 = 600_000, "a session is forgotten this long after its last use";
    sessions_max: usize = 65_536, "sessions remembered; beyond, the one unused for longest goes";
    session_tokens_budget: u64 = 1_000_000_000, "tokens that one session may be sent";
    session_time_budget_ms: u64 = 86_400_000, "decode time of one session";
    session_cost_budget: f64 = 1_000_000.0, "cost of one session, in the unit of cost_per_token";
    key_tokens_budget: u64 = 0, "tokens that all tasks of one API key may be sent; 0: no limit";
    key_time_budget_ms: u64 = 0, "decode time of all tasks of one API key; 0: no limit";
    key_cost_budget: f64 = 0.0, "cost of all tasks of one API key; 0: no limit";
    cost_per_token: f64 = 0.001, "price of one token sent";
    task_retention_ms: u64 = 600_000, "an ended task's stream can be read for this long";
    tasks_max: usize = 16_384, "tasks remembered, ended ones included; beyond, the oldest ended one goes";
    artifacts_fs_root: Option<PathBuf> = None, "folder of the filesystem artifact store; empty: in memory";
    artifacts_bytes_max: usize = 256 * 1024 * 1024, "bytes of artifacts kept in memory; the oldest transcripts go first";
    connections_max: usize = 16_384, "connections per reactor; beyond, 503 at once";
    head_len_max: usize = 16 * 1024, "bytes of a request's head";
    headers_max: usize = 64, "header lines of a request";
    body_len_max: usize = 1024 * 1024, "bytes of a request's body";
    head_timeout_ms: u64 = 10_000, "time from a head's first byte to its last";
    body_timeout_ms: u64 = 30_000, "time for a whole body";
    idle_timeout_ms: u64 = 150_000, "silence on a kept-alive connection; load balancers want more than 120 s";
    write_timeout_ms: u64 = 30_000, "time for one write to a peer that does not read";
    tokenize_inline_len_max: usize = 8 * 1024, "bytes of prompt that a reactor tokenizes itself; longer ones go to a helper thread";
    prompt_cache_bytes_max: usize = 8 * 1024 * 1024, "bytes of tokens remembered for prompts and chat turns that come again; 0: none";
    pull_allow: Repositories = Repositories::default(), "repositories that the command pull may load, comma-separated: org/repo, org/*, or * for any; empty: none";
    pull_endpoint: String = "https://huggingface.co".into(), "address of the hub that pull loads from";
    pull_cache: Option<PathBuf> = None, "folder that pull loads into, in the layout of Hugging Face's cache; empty: HF_HUB_CACHE, HF_HOME/hub, or ~/.cache/huggingface/hub";
    log_level: String = "info".into(), "error, warn, info, debug or trace";
}

impl Config {
    /// Rows of one step, and at least one for every slot. A device reads all weights for every step of a prompt, in the time in
    /// which it multiplies about a hundred rows (arithmetic, not measured): with fewer it waits for memory. A CPU multiplies so
    /// few in that time that a prompt gains nothing, and whoever decodes would wait.
    pub fn step_rows(&self) -> usize {
        match (self.step_rows_max, self.engine) {
            (0, EngineChoice::Cuda) => self.slots_max.max(512),
            (0, EngineChoice::Cpu | EngineChoice::Auto) => self.slots_max.max(128),
            (rows, _) => rows,
        }
    }
}

/// Values with the source of each.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// By name; a name that is missing has its default.
    pub sources: BTreeMap<String, Source>,
}

impl Loaded {
    pub fn source(&self, name: &str) -> &Source {
        self.sources.get(name).unwrap_or(&Source::Default)
    }
}

fn unknown_setting(name: &str, source: &Source) -> ConfigError {
    let near = SETTINGS.iter().map(|s| s.name).min_by_key(|s| edit_distance(s, name)).expect("there are settings");
    ConfigError(format!("{name} (from {source}) is not a setting; did you mean {near}? `config check` lists them all"))
}

fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Names in the environment that begin with `ORCH_` and are not settings.
const ENVIRONMENT_OTHERS: &[&str] = &["ORCH_CONFIG"];

/// Puts the sources together: defaults, `file`, `environment` (names beginning with `ORCH_`), `flags`
/// (setting name and text), each over the one before.
///
/// # Errors
///
/// When a file cannot be read, a name is unknown, a value is not legal, or two values contradict each other.
pub fn load(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
    flags: impl IntoIterator<Item = (String, String)>,
) -> Result<Loaded, ConfigError> {
    let mut loaded = Loaded { config: Config::default(), sources: BTreeMap::new() };
    let mut put = |name: &str, text: &str, source: Source| -> Result<(), ConfigError> {
        loaded.config.set(name, text, &source)?;
        loaded.sources.insert(name.to_owned(), source);
        Ok(())
    };
    if let Some(path) = file {
        for (name, text) in read_file(path)? {
            put(&name, &text, Source::File(path.to_owned()))?;
        }
    }
    for (name, text) in environment {
        if let Some(setting) = name.strip_prefix("ORCH_")
            && !ENVIRONMENT_OTHERS.contains(&name.as_str())
        {
            put(&setting.to_ascii_lowercase(), &text, Source::Environment(name.clone()))?;
        }
    }
    for (name, text) in flags {
        put(&name, &text, Source::Flag(format!("--{}", name.replace('_', "-"))))?;
    }
    check(&loaded.config)?;
    Ok(loaded)
}

fn read_file(path: &Path) -> Result<Vec<(String, String)>, ConfigError> {
    let fail = |what: String| ConfigError(format!("{}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| fail(format!("cannot be read: {e}")))?;
    let table: toml::Table = text.parse().map_err(|e| fail(format!("is not TOML: {e}")))?;
    flattened(table)
        .into_iter()
        .map(|(name, value)| {
            let text = match value {
                toml::Value::String(s) => s,
                toml::Value::Integer(i) => i.to_string(),
                toml::Value::Float(f) => f.to_string(),
                toml::Value::Array(items) if items.iter().all(|i| i.is_str()) => {
                    items.iter().filter_map(|i| i.as_str()).collect::<Vec<_>>().join(",")
                }
                other => {
                    return Err(fail(format!("{name}: a {} is not a value for a setting", other.type_str())));
                }
            };
            Ok((name, text))
        })
        .collect()
}

/// `[gateway]` with `listen` is another way to write `gateway_listen`.
fn flattened(table: toml::Table) -> Vec<(String, toml::Value)> {
    let mut flat = Vec::new();
    for (name, value) in table {
        match value {
            toml::Value::Table(section) if name == "gateway" => {
                flat.extend(section.into_iter().map(|(key, value)| (format!("gateway_{key}"), value)));
            }
            value => flat.push((name, value)),
        }
    }
    flat
}

/// Bounds of single values and contradictions between values.
fn check(c: &Config) -> Result<(), ConfigError> {
    let at_least = |name: &str, value: u64, least: u64| match value >= least {
        true => Ok(()),
        false => Err(ConfigError(format!("{name}: {value} is too small; the least is {least}"))),
    };
    let at_most = |name: &str, value: u64, most: u64| match value <= most {
        true => Ok(()),
        false => Err(ConfigError(format!("{name}: {value} is too large; the most is {most}"))),
    };
    for (name, value, least, most) in [
        ("reactors", c.reactors, 1, 256),
        ("threads", c.threads, 1, THREADS_MAX as u64),
        ("slots_max", c.slots_max, 1, 4096),
        ("step_rows_max", c.step_rows_max, 0, 65_536),
        ("kv_blocks_max", c.kv_blocks_max, 1, 1 << 24),
        ("queue_capacity", c.queue_capacity, 0, crate::admission::CAPACITY_MAX as u64),
        ("retry_promises_max", c.retry_promises_max, 0, 1 << 20),
        ("sessions_max", c.sessions_max, 1, 1 << 24),
        ("tasks_max", c.tasks_max, 1, 1 << 24),
        ("connections_max", c.connections_max, 1, 1 << 20),
        ("head_len_max", c.head_len_max, 256, 1 << 20),
        ("headers_max", c.headers_max, 4, 256),
        ("body_len_max", c.body_len_max, 256, 1 << 30),
        ("artifacts_bytes_max", c.artifacts_bytes_max, 1 << 16, 1 << 40),
        ("prompt_cache_bytes_max", c.prompt_cache_bytes_max, 0, 1 << 40),
        ("gateway_max_tokens", c.gateway_max_tokens as usize, 1, 1 << 30),
    ] {
        at_least(name, value as u64, least)?;
        at_most(name, value as u64, most)?;
    }
    for (name, value) in [
        ("decode_timeout_ms", c.decode_timeout_ms),
        ("session_ttl_ms", c.session_ttl_ms),
        ("head_timeout_ms", c.head_timeout_ms),
        ("body_timeout_ms", c.body_timeout_ms),
        ("idle_timeout_ms", c.idle_timeout_ms),
        ("write_timeout_ms", c.write_timeout_ms),
        ("heartbeat_ms", c.heartbeat_ms),
        ("cancel_quiesce_ms", c.cancel_quiesce_ms),
        ("gateway_deadline_ms", c.gateway_deadline_ms),
        ("batch_ageing_ms", c.batch_ageing_ms),
        ("retry_patience_ms", c.retry_patience_ms),
        ("fair_quantum_tokens", c.fair_quantum_tokens),
    ] {
        at_least(name, value, 1)?;
        at_most(name, value, 7 * 86_400_000)?;
    }
    if c.slots_max > c.step_rows() {
        return Err(ConfigError(format!(
            "slots_max ({}) is over step_rows_max ({}): every slot needs a row in each step",
            c.slots_max, c.step_rows_max
        )));
    }
    if c.tasks_max < c.queue_capacity + c.slots_max {
        return Err(ConfigError(format!(
            "tasks_max ({}) is under queue_capacity + slots_max ({}): live tasks would not be remembered",
            c.tasks_max,
            c.queue_capacity + c.slots_max
        )));
    }
    if !(0.0..1.0).contains(&c.on_time_probability_floor) {
        return Err(ConfigError("on_time_probability_floor: must be at least 0 and under 1".into()));
    }
    if !(0.0..=60_000.0).contains(&c.step_ms_max) {
        return Err(ConfigError("step_ms_max: must be from 0 to 60000".into()));
    }
    if c.cost_per_token < 0.0 || c.session_cost_budget < 0.0 || c.key_cost_budget < 0.0 {
        return Err(ConfigError(
            "cost_per_token, session_cost_budget and key_cost_budget: must not be negative".into(),
        ));
    }
    if ![429, 503, 529].contains(&c.overload_status) {
        return Err(ConfigError(format!("overload_status: {} is not 429, 503 or 529", c.overload_status)));
    }
    if !["error", "warn", "info", "debug", "trace"].contains(&c.log_level.as_str()) {
        return Err(ConfigError(format!("log_level: {:?} is not error, warn, info, debug or trace", c.log_level)));
    }
    if !["http://", "https://"].iter().any(|s| c.pull_endpoint.strip_prefix(s).is_some_and(|rest| !rest.is_empty())) {
        return Err(ConfigError(format!("pull_endpoint: {:?} is no http:// or https:// address", c.pull_endpoint)));
    }
    let name_legal = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if c.pool_id.is_empty() || c.pool_id.len() > 64 || !c.pool_id.bytes().all(name_legal) {
        return Err(ConfigError("pool_id: 1 to 64 letters, digits, '-', '_' or '.'".into()));
    }
    for (name, address) in [("listen", Some(c.listen)), ("gateway_listen", c.gateway_listen)] {
        if let Some(address) = address
            && c.api_keys.is_empty()
            && !address.ip().is_loopback()
        {
            return Err(ConfigError(format!(
                "{name}: {address} is not a loopback address and no api_keys are configured: set ORCH_API_KEYS, or \
                 listen on 127.0.0.1"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(items: &[(&str, &str)]) -> Vec<(String, String)> {
        items.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect()
    }

    fn file(text: &str) -> PathBuf {
        let unique = uuid::Uuid::new_v4();
        let path = std::env::temp_dir().join(format!("orchestratord-config-{unique}.toml"));
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn flags_win_over_environment_over_file_over_default() {
        let path = file("queue_capacity = 1\nslots_max = 2\nthreads = 3\napi_keys = [\"key-number-one\"]\n");
        let loaded = load(
            Some(&path),
            pairs(&[("ORCH_SLOTS_MAX", "4"), ("ORCH_THREADS", "5"), ("PATH", "/bin")]),
            pairs(&[("threads", "6")]),
        )
        .unwrap();
        assert_eq!((loaded.config.queue_capacity, loaded.config.slots_max, loaded.config.threads), (1, 4, 6));
        assert_eq!(loaded.config.api_keys, ["key-number-one"]);
        assert_eq!(loaded.source("queue_capacity"), &Source::File(path));
        assert_eq!(loaded.source("slots_max"), &Source::Environment("ORCH_SLOTS_MAX".into()));
        assert_eq!(loaded.source("threads"), &Source::Flag("--threads".into()));
        assert_eq!(loaded.source("listen"), &Source::Default);
    }

    #[test]
    fn an_instruction_set_is_one_that_this_processor_has() {
        assert_eq!(IsaChoice::read("auto"), Some(IsaChoice(None)));
        for isa in Isa::detect() {
            assert_eq!(IsaChoice::read(isa.name()), Some(IsaChoice(Some(isa))));
            assert_eq!(IsaChoice(Some(isa)).show(), isa.name());
        }
        assert_eq!(IsaChoice::read("avx1024"), None);
        assert!(!Isa::detect()[0].multiplies_pairs(), "rounding is only for who asks for it");
    }

    #[test]
    fn a_wrong_value_names_the_setting_and_what_is_legal() {
        for (name, text, says) in [
            ("ORCH_QUEUE_CAPACITY", "many", "whole number"),
            ("ORCH_QUEUE_CAPACITI", "1", "did you mean queue_capacity"),
            ("ORCH_ADMISSION_POLICY", "fifo", "reject or drop-lru"),
            ("ORCH_LISTEN", "localhost", "127.0.0.1:8080"),
            ("ORCH_LISTEN", "0.0.0.0:80", "no api_keys"),
            ("ORCH_GATEWAY_LISTEN", "0.0.0.0:80", "gateway_listen: 0.0.0.0:80"),
            ("ORCH_GATEWAY_CORS_ORIGINS", "chat.example.org", "https://"),
            ("ORCH_SLOTS_MAX", "0", "least is 1"),
            ("ORCH_STEP_ROWS_MAX", "15", "slots_max (16) is over step_rows_max (15)"),
            ("ORCH_OVERLOAD_STATUS", "200", "429, 503 or 529"),
            ("ORCH_QUEUE_ORDER", "random", "fifo, deadline or fair"),
            ("ORCH_STEP_MS_MAX", "-1", "0 to 60000"),
            ("ORCH_BATCH_AGEING_MS", "0", "least is 1"),
            ("ORCH_ON_TIME_PROBABILITY_FLOOR", "1", "under 1"),
            ("ORCH_ON_TIME_PROBABILITY_FLOOR", "NaN", "finite"),
            ("ORCH_TASKS_MAX", "10", "tasks_max"),
            ("ORCH_PULL_ALLOW", "../etc", "org/repo"),
            ("ORCH_PULL_ENDPOINT", "huggingface.co", "https://"),
            ("ORCH_LOG_LEVEL", "loud", "log_level"),
        ] {
            let error = load(None, pairs(&[(name, text)]), []).unwrap_err();
            assert!(error.0.contains(says), "{name}={text}: {error}");
        }
    }

    #[test]
    fn repositories_are_allowed_by_name_by_owner_or_all() {
        for (allowed, repository, wanted) in [
            ("", "org/repo", false),
            ("*", "org/repo", true),
            ("org/*", "org/repo", true),
            ("org/*", "organ/repo", false),
            ("a/b, org/repo", "org/repo", true),
            ("org/repo", "org/repo-2", false),
        ] {
            let config = load(None, pairs(&[("ORCH_PULL_ALLOW", allowed)]), []).unwrap().config;
            assert_eq!(config.pull_allow.allow(repository), wanted, "{allowed}: {repository}");
        }
    }

    #[test]
    fn a_key_is_never_printed() {
        let error = load(None, pairs(&[("ORCH_API_KEYS", "short")]), []).unwrap_err();
        assert!(!error.0.contains("short"), "{error}");
        let loaded = load(None, pairs(&[("ORCH_API_KEYS", "a-secret-key, another-one")]), []).unwrap();
        assert_eq!(loaded.config.api_keys.len(), 2);
        assert!(loaded.config.shown().iter().all(|(_, text)| !text.contains("secret")));
    }

    #[test]
    fn the_gateway_may_have_a_section_of_its_own() {
        let path = file("[gateway]\nlisten = \"127.0.0.1:9\"\ncors_origins = [\"https://a.b\", \"http://c\"]\n");
        let config = load(Some(&path), [], []).unwrap().config;
        assert_eq!(config.gateway_listen, Some("127.0.0.1:9".parse().unwrap()));
        assert!(config.gateway_cors_origins.allow("http://c") && !config.gateway_cors_origins.allow("http://d"));
        let error = load(Some(&file("[gateway]\nlisen = \"127.0.0.1:9\"\n")), [], []).unwrap_err();
        assert!(error.0.contains("did you mean gateway_listen"), "{error}");
    }

    #[test]
    fn a_file_with_an_unknown_name_or_a_table_is_refused() {
        for (text, says) in [("colour = 1", "not a setting"), ("[queue]\ncapacity = 1", "table"), ("a = ", "TOML")] {
            let error = load(Some(&file(text)), [], []).unwrap_err();
            assert!(error.0.contains(says), "{text}: {error}");
        }
        assert!(load(Some(Path::new("/nonexistent.toml")), [], []).unwrap_err().0.contains("cannot be read"));
    }

    #[test]
    fn kv_memory_is_bytes_or_a_share() {
        for (text, value) in [
            ("", Some(KvMemory::Blocks)),
            ("24GB", Some(KvMemory::Bytes(24_000_000_000))),
            ("2GiB", Some(KvMemory::Bytes(2 << 30))),
            ("512", Some(KvMemory::Bytes(512))),
            ("90%", Some(KvMemory::Percent(90))),
            ("0%", None),
            ("101%", None),
            ("0", None),
            ("-1", None),
            ("many", None),
            ("99999999999999GB", None),
        ] {
            assert_eq!(KvMemory::read(text), value, "{text}");
        }
    }

    #[test]
    fn the_defaults_are_legal() {
        check(&Config::default()).unwrap();
    }
}
