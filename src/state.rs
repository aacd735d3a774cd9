//! What all reactors share.

use std::sync::Arc;

use crate::api::types::{ApiKeys, ErrorContext};
use crate::config::{Config, EngineChoice};
use crate::domain::error::OrchestratorError;
use crate::infra::blocking::Helpers;
use crate::infra::clock::Clock;
use crate::infra::reactor::{ReactorStats, WakeHub};
use crate::infra::storage::ArtifactStore;
use crate::infra::storage::fs::FsStore;
use crate::infra::storage::inmem::InMemStore;
use crate::metrics::{Labels, Metrics, ReactorFigures};
use crate::services::artifacts::ArtifactService;
use crate::services::pool::Pool;
use crate::services::session::{SessionRules, SessionService};
use crate::services::task::TaskRegistry;

/// The pools of this process, looked up by id or by what a task asks for.
#[derive(Default)]
pub struct PoolRegistry(Vec<Arc<Pool>>);

impl PoolRegistry {
    pub fn add(&mut self, pool: Arc<Pool>) {
        assert!(self.by_id(&pool.id).is_none(), "a pool's id is unique");
        self.0.push(pool);
    }

    pub fn by_id(&self, id: &str) -> Option<&Arc<Pool>> {
        self.0.iter().find(|p| p.id == id)
    }

    /// The pool whose engine a task asks for.
    pub fn by_engine(&self, engine: &str) -> Option<&Arc<Pool>> {
        self.0.iter().find(|p| p.engine == engine)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.0.iter()
    }
}

/// One process's state. Reactors hold it in an `Arc`; nothing in it is locked for longer than a look.
pub struct AppState {
    pub config: Config,
    pub clock: Clock,
    pub metrics: Arc<Metrics>,
    pub pools: PoolRegistry,
    pub tasks: TaskRegistry,
    pub sessions: Arc<SessionService>,
    pub artifacts: Arc<ArtifactService>,
    pub keys: ApiKeys,
    pub helpers: Helpers,
    pub hub: WakeHub,
    pub reactors: Vec<Arc<ReactorStats>>,
}

impl AppState {
    /// State with the default configuration: artifacts in memory, no pool, nothing in the maps.
    ///
    /// # Errors
    ///
    /// When no helper thread can be started.
    pub fn new() -> std::io::Result<AppState> {
        AppState::with(Config::default(), WakeHub::new(Vec::new()), Vec::new())
    }

    /// State for a configuration; pools are added by `app::bootstrap`.
    ///
    /// # Errors
    ///
    /// When no helper thread can be started, or the artifact folder cannot be used.
    pub fn with(config: Config, hub: WakeHub, reactors: Vec<Arc<ReactorStats>>) -> std::io::Result<AppState> {
        let labels = Labels {
            engine: if config.engine == EngineChoice::Cuda { "cuda" } else { "cpu" },
            engine_version: env!("CARGO_PKG_VERSION"),
            pool_id: config.pool_id.clone(),
            replica_id: "0",
        };
        let store: Arc<dyn ArtifactStore> = match &config.artifacts_fs_root {
            Some(root) => Arc::new(FsStore::open(root)?),
            None => Arc::new(InMemStore::new(config.artifacts_bytes_max)),
        };
        Ok(AppState {
            clock: Clock::system(),
            metrics: Arc::new(Metrics::new(labels)),
            pools: PoolRegistry::default(),
            tasks: TaskRegistry::new(config.tasks_max),
            sessions: Arc::new(SessionService::new(SessionRules::from_config(&config), config.api_keys.len())),
            artifacts: Arc::new(ArtifactService::new(store)),
            keys: ApiKeys::new(&config.api_keys),
            helpers: Helpers::spawn(2)?,
            hub,
            reactors,
            config,
        })
    }

    /// The pool that errors speak of when no other is concerned.
    pub fn error_context(&self) -> ErrorContext<'_> {
        let labels = self.metrics.labels();
        ErrorContext { engine: labels.engine, pool_id: &labels.pool_id, overload_status: self.config.overload_status }
    }

    /// # Errors
    ///
    /// `NotFound` for an id that is no pool's.
    pub fn pool(&self, id: &str) -> Result<&Arc<Pool>, OrchestratorError> {
        self.pools.by_id(id).ok_or_else(|| {
            let names: Vec<_> = self.pools.iter().map(|p| p.id.as_str()).collect();
            OrchestratorError::NotFound(format!("there is no pool {id:?}: pools here are {}", names.join(", ")))
        })
    }

    pub fn reactor_figures(&self) -> ReactorFigures {
        let mut figures = ReactorFigures::default();
        for stats in &self.reactors {
            figures.connections_open += stats.connections_open();
            figures.streams_open += stats.streams_open();
            figures.requests += stats.requests();
            figures.loop_lag_us = figures.loop_lag_us.max(stats.loop_lag_us());
        }
        figures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_state_keeps_artifacts_in_memory_and_has_empty_maps() {
        let state = AppState::new().unwrap();
        assert!(!state.artifacts.is_blocking());
        assert!(state.pools.iter().next().is_none() && state.tasks.is_empty() && state.sessions.is_empty());
        assert_eq!(state.pool("default").err().map(|e| e.code()), Some("NOT_FOUND"));
    }
}
