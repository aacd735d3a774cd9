//! How the process comes up, and how it goes down.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use super::service::{App, Door};
use crate::config::{Config, DriverChoice};
use crate::gateway::Gateway;
use crate::infra::reactor::{self, Driver, Inbox, ReactorConfig, ReactorStats, Stop, WakeHub};
use crate::infra::{log, notify};
use crate::metrics::Verification;
use crate::services::pool::{self, Control, Installable, Pool, PoolRules, PoolState};
use crate::services::scribe::{self, Desk};
use crate::services::{device, engine_loop, task::TaskRegistry};
use crate::state::AppState;

/// How often sessions and ended tasks are looked at.
const HOUSEKEEPING: Duration = Duration::from_millis(200);

/// Time that reactors get to close their connections once nothing runs any more.
const GOODBYE: Duration = Duration::from_secs(5);

/// Serves until SIGTERM or SIGINT, then drains and returns. `on_ready` is called once the model is loaded, before anything is
/// printed.
///
/// # Errors
///
/// One line that says why the server cannot start.
pub fn serve(mut config: Config, on_ready: impl FnOnce()) -> Result<(), String> {
    if let Err(error) = reactor::raise_descriptor_limit() {
        eprintln!("orchestratord: the limit of open files stays as it is: {error}");
    }
    let made_key = config.api_keys.is_empty();
    if made_key {
        config.api_keys.push(uuid::Uuid::new_v4().simple().to_string());
    }
    let server = Server::start(config)?;
    on_ready();
    server.announce(made_key).map_err(|e| format!("standard output: {e}"))?;
    notify::notify("READY=1");
    wait_for_signal().map_err(|e| format!("signals cannot be handled: {e}"))?;
    notify::notify("STOPPING=1");
    server.stop();
    // The last lines are on their way.
    std::thread::sleep(2 * log::GATHERING);
    Ok(())
}

/// A running server.
pub struct Server {
    pub state: Arc<AppState>,
    pub address: SocketAddr,
    /// Where the gateway listens, if it does.
    pub gateway: Option<SocketAddr>,
    pub driver: Driver,
    stop: Arc<Stop>,
    reactors: Vec<JoinHandle<()>>,
    engine: Option<JoinHandle<()>>,
    stopping: Arc<AtomicBool>,
}

impl Server {
    /// Binds, loads the model and starts every thread. The pool is ready when this returns.
    ///
    /// # Errors
    ///
    /// One line that says what is in the way.
    pub fn start(mut config: Config) -> Result<Server, String> {
        device::resolve(&mut config)?;
        let opened = pool::open(config.model.as_deref(), &PoolRules::from_config(&config));
        if let Ok(model) = &opened {
            device::size_kv(&mut config, model)?;
        }
        Server::start_with(config, |config, pool| {
            pool::seat(opened?, config.model.as_deref(), &pool.rules, pool.engine_version, None)
        })
    }

    /// The same with an engine that the caller brings: benches measure the server without a model.
    ///
    /// # Errors
    ///
    /// As `start`'s.
    pub fn start_with(
        config: Config,
        load: impl FnOnce(&Config, &Pool) -> Result<Installable, (Verification, String)>,
    ) -> Result<Server, String> {
        let driver = choose_driver(config.driver)?;
        let bound = |address| bind(address, config.reactors).map_err(|e| format!("cannot listen on {address}: {e}"));
        let listeners = bound(config.listen)?;
        let address = listeners[0].local_addr().map_err(|e| e.to_string())?;
        let gateways = config.gateway_listen.map(bound).transpose()?.unwrap_or_default();
        let gateway = gateways.first().map(|l| l.local_addr().map_err(|e| e.to_string())).transpose()?;
        let inboxes: Vec<Arc<Inbox>> = (0..config.reactors)
            .map(|_| Inbox::new(config.connections_max))
            .collect::<io::Result<_>>()
            .map_err(|e| format!("no wake-up descriptor: {e}"))?;
        let stats: Vec<Arc<ReactorStats>> = (0..config.reactors).map(|_| Arc::default()).collect();
        let hub = WakeHub::new(inboxes.clone());
        let mut state =
            AppState::with(config, hub.clone(), stats.clone()).map_err(|e| format!("cannot set up: {e}"))?;
        log::install(&state.config.log_level, state.metrics.clone()).map_err(|e| e.to_string())?;
        let engine = start_pool(&mut state, load)?;
        let state = Arc::new(state);
        let stop = Arc::new(Stop::new(inboxes.clone()));
        let mut reactors = Vec::new();
        let mut gateways = gateways.into_iter();
        for (index, listener) in listeners.into_iter().enumerate() {
            let reactor_config = reactor_config(&state.config, index, driver.clone(), stats[index].clone());
            let (inbox, stop, state) = (inboxes[index].clone(), stop.clone(), state.clone());
            let doors: Vec<TcpListener> = [listener].into_iter().chain(gateways.next()).collect();
            let make_service = move |door| match door {
                0 => Door::Main(App { state: state.clone() }),
                _ => Door::Gateway(Gateway { state: state.clone() }),
            };
            let body = move || {
                if let Err(error) = reactor::run(reactor_config, doors, inbox, stop, make_service) {
                    tracing::error!(%error, "a reactor failed");
                    eprintln!("orchestratord: a reactor failed: {error}");
                    std::process::exit(1);
                }
            };
            let thread = std::thread::Builder::new().name(format!("reactor-{index}")).spawn(body);
            reactors.push(thread.map_err(|e| format!("no thread could be started: {e}"))?);
        }
        let stopping = Arc::new(AtomicBool::new(false));
        start_housekeeping(state.clone(), stopping.clone()).map_err(|e| e.to_string())?;
        Ok(Server { state, address, gateway, driver, stop, reactors, engine: Some(engine), stopping })
    }

    /// Tells a person at the terminal what is served, and how to try it.
    fn announce(&self, made_key: bool) -> io::Result<()> {
        let pool = self.state.pools.iter().next().expect("a server has a pool");
        let loaded = pool.loaded().expect("a ready pool has a model");
        let key = match made_key {
            true => self.state.config.api_keys[0].as_str(),
            false => "(one of those configured)",
        };
        // A configured key is not printed: the shell puts it in, which it does between double quotes only.
        let shown_key = if made_key { key } else { "$KEY" };
        let driver = match &self.driver {
            Driver::IoUring => "io_uring".to_owned(),
            Driver::Legacy { reason } => format!("epoll (no io_uring: {reason})"),
        };
        let info = &loaded.info;
        let address = self.address;
        let mut out = io::stdout().lock();
        writeln!(out, "orchestratord {} is ready", env!("CARGO_PKG_VERSION"))?;
        writeln!(out, "  address  http://{address}")?;
        if let Some(gateway) = self.gateway {
            writeln!(out, "  gateway  http://{gateway}/v1")?;
        }
        writeln!(out, "  key      {key}")?;
        writeln!(
            out,
            "  model    {} ({}, {:.1} M parameters, {}, context {})",
            loaded.model_ref,
            info.architecture,
            info.parameter_count as f64 / 1e6,
            info.quantization,
            info.context_length
        )?;
        let threads = match loaded.engine {
            "cpu" => format!("{} thread(s), ", self.state.config.threads),
            _ => String::new(),
        };
        writeln!(out, "  engine   {}, {threads}{}", loaded.engine, loaded.arithmetic)?;
        writeln!(out, "  driver   {driver}, {} reactor(s)", self.state.config.reactors)?;
        let (task, session) = (uuid::Uuid::new_v4(), uuid::Uuid::new_v4());
        let ctx = info.context_length.min(512);
        writeln!(out, "\nTry it; the tokens arrive as they are made:\n")?;
        writeln!(
            out,
            "curl -N http://{address}/v1/tasks -H \"X-API-Key: {shown_key}\" -H 'Accept: text/event-stream' -d '\
             {{\"task_id\":\"{task}\",\"session_id\":\"{session}\",\"workload\":\"completion\",\
             \"model_ref\":\"{}\",\"engine\":\"{}\",\"ctx\":{ctx},\"priority\":\"interactive\",\
             \"max_tokens\":120,\"deadline_ms\":60000,\
             \"messages\":[{{\"role\":\"user\",\"content\":\"Tell me a story about a fox.\"}}]}}'\n",
            loaded.model_ref, loaded.engine
        )?;
        out.flush()
    }

    /// Takes nothing new, lets running tasks end until the configured deadline, then stops every thread.
    pub fn stop(mut self) {
        let state = &self.state;
        let drain_us = state.config.drain_deadline_ms * 1000;
        tracing::info!(drain_deadline_ms = state.config.drain_deadline_ms, "stopping");
        let until_us = state.clock.now_us() + drain_us;
        state.pools.iter().for_each(|p| p.drain(until_us));
        self.stop.close_listeners();
        let patience = Duration::from_micros(drain_us) + GOODBYE;
        wait_until(&state.tasks, patience);
        self.stop.begin(GOODBYE);
        for pool in state.pools.iter() {
            pool.set_state(PoolState::Stopped);
            pool.doorbell.ring();
        }
        self.stopping.store(true, SeqCst);
        for reactor in self.reactors.drain(..) {
            let _ = reactor.join();
        }
        if let Some(engine) = self.engine.take() {
            let _ = engine.join();
        }
    }
}

/// Waits until no task is alive.
fn wait_until(tasks: &TaskRegistry, patience: Duration) {
    let began = std::time::Instant::now();
    while !tasks.live().is_empty() && began.elapsed() < patience {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn choose_driver(choice: DriverChoice) -> Result<Driver, String> {
    match (choice, reactor::detect_driver()) {
        (DriverChoice::Legacy, _) => Ok(Driver::Legacy { reason: "the configuration says so".into() }),
        (DriverChoice::IoUring, Driver::Legacy { reason }) => {
            Err(format!("io_uring cannot be used here: {reason}; set driver to auto"))
        }
        (_, driver) => Ok(driver),
    }
}

/// The kernel takes down the ring of a process that has gone some milliseconds later, and lets go of its port then: who
/// starts a server anew is not to hear of it.
const PORT_PATIENCE: Duration = Duration::from_millis(500);

/// One listener per reactor on the same port; the kernel spreads connections over them.
fn bind(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    let mut address = address;
    let mut listeners = Vec::new();
    let began = std::time::Instant::now();
    while listeners.len() < count {
        let listener = match reactor::bind(address, count > 1) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && began.elapsed() < PORT_PATIENCE => {
                std::thread::sleep(PORT_PATIENCE / 50);
                continue;
            }
            listener => listener?,
        };
        // Port 0 was a wish for any: the others want the same.
        address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(listeners)
}

fn reactor_config(config: &Config, index: usize, driver: Driver, stats: Arc<ReactorStats>) -> ReactorConfig {
    let ms = Duration::from_millis;
    ReactorConfig {
        index: index as u16,
        driver,
        stats,
        connections_max: config.connections_max,
        head_len_max: config.head_len_max,
        headers_max: config.headers_max,
        head_timeout: ms(config.head_timeout_ms),
        body_timeout: ms(config.body_timeout_ms),
        idle_timeout: ms(config.idle_timeout_ms),
        write_timeout: ms(config.write_timeout_ms),
        heartbeat: ms(config.heartbeat_ms),
    }
}

/// Loads the model, then starts the engine thread and its watchdog.
fn start_pool(
    state: &mut AppState,
    load: impl FnOnce(&Config, &Pool) -> Result<Installable, (Verification, String)>,
) -> Result<JoinHandle<()>, String> {
    let config = &state.config;
    let desk = Desk {
        artifacts: state.artifacts.clone(),
        sessions: state.sessions.clone(),
        metrics: state.metrics.clone(),
        clock: state.clock.clone(),
        overload_status: config.overload_status,
    };
    let (scribe, _) = scribe::spawn(desk).map_err(|e| format!("no thread could be started: {e}"))?;
    let (pool, waiting) = Pool::new(config, state.metrics.clone(), state.clock.clone(), scribe, state.hub.clone());
    let model = load(config, &pool).map_err(|(v, why)| {
        state.metrics.verified(v);
        why
    })?;
    state.metrics.verified(Verification::Loaded);
    let (sender, receiver) = std::sync::mpsc::channel();
    let done = Box::new(move || {
        let _ = sender.send(());
    });
    pool.send(Control::Install { model: Box::new(model), done });
    let (worker, watched) = (pool.clone(), pool.clone());
    let thread = |name: &str| std::thread::Builder::new().name(name.into());
    let engine = thread("engine").spawn(move || engine_loop::run(worker, waiting)).map_err(|e| e.to_string())?;
    thread("watchdog").spawn(move || engine_loop::watch(&watched)).map_err(|e| e.to_string())?;
    receiver.recv().map_err(|_| "the engine thread stopped at once: see the log".to_owned())?;
    state.pools.add(pool);
    Ok(engine)
}

/// Forgets what is over: sessions, and tasks that ended long ago.
fn start_housekeeping(state: Arc<AppState>, stopping: Arc<AtomicBool>) -> io::Result<()> {
    let retention_us = state.config.task_retention_ms * 1000;
    std::thread::Builder::new().name("housekeeping".into()).spawn(move || {
        let monitor = device::monitor(&state.config);
        while !stopping.load(SeqCst) {
            std::thread::sleep(HOUSEKEEPING);
            for session in state.sessions.tick(state.clock.now_ms()) {
                for pool in state.pools.iter() {
                    pool.send(Control::DropSession { session: session.0 });
                }
            }
            if let Some(usage) = monitor.as_ref().and_then(|(_, monitor)| monitor.read()) {
                state.metrics.gpu_busy_percent.set(usage.busy_percent.into());
                state.metrics.vram_used_bytes.set(usage.memory_bytes);
                state.metrics.device.get_or_init(|| monitor.as_ref().map_or(String::new(), |(name, _)| name.clone()));
            }
            state.tasks.sweep(state.clock.now_us().saturating_sub(retention_us));
        }
    })?;
    Ok(())
}

/// Returns at the first SIGTERM or SIGINT; a second one ends the process at once.
fn wait_for_signal() -> io::Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT])?;
    let seen = Arc::new(AtomicBool::new(false));
    signals.forever().next();
    for signal in [SIGTERM, SIGINT] {
        seen.store(true, SeqCst);
        signal_hook::flag::register_conditional_shutdown(signal, 1, seen.clone())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_let_go_of_soon_is_waited_for_and_another_is_not() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        assert_eq!(bind(address, 1).err().map(|e| e.kind()), Some(io::ErrorKind::AddrInUse));
        let soon = std::thread::spawn(move || {
            std::thread::sleep(PORT_PATIENCE / 5);
            drop(taken);
        });
        assert_eq!(bind(address, 1).unwrap()[0].local_addr().unwrap(), address);
        soon.join().unwrap();
    }
}
