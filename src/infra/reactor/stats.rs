//! What a reactor counts. Read by `/metrics` from any thread.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

#[derive(Default)]
pub struct ReactorStats {
    pub(super) connections_accepted: AtomicU64,
    pub(super) connections_turned_away: AtomicU64,
    pub(super) panics: AtomicU64,
    pub(super) connections_open: AtomicU64,
    pub(super) streams_open: AtomicU64,
    pub(super) requests: AtomicU64,
    pub(super) loop_lag_us: AtomicU64,
}

impl ReactorStats {
    pub fn connections_accepted(&self) -> u64 {
        self.connections_accepted.load(Relaxed)
    }

    /// Connections that were one too many.
    pub fn connections_turned_away(&self) -> u64 {
        self.connections_turned_away.load(Relaxed)
    }

    /// Requests that the service failed at, and connections dropped because of a bug.
    pub fn panics(&self) -> u64 {
        self.panics.load(Relaxed)
    }

    pub fn connections_open(&self) -> u64 {
        self.connections_open.load(Relaxed)
    }

    pub fn streams_open(&self) -> u64 {
        self.streams_open.load(Relaxed)
    }

    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// Worst delay of the reactor's timer in the last second, microseconds.
    pub fn loop_lag_us(&self) -> u64 {
        self.loop_lag_us.load(Relaxed)
    }
}

/// Counts something as long as it lives.
pub(super) struct Counted<'a>(&'a AtomicU64);

impl<'a> Counted<'a> {
    pub(super) fn new(counter: &'a AtomicU64) -> Counted<'a> {
        counter.fetch_add(1, Relaxed);
        Counted(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
