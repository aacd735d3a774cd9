//! How a thread with nothing to do is woken: a system call for the first ring, none while it works.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::Thread;
use std::time::Duration;

/// Wakes one thread when it sleeps.
///
/// Memory order. A ringer publishes its work, then takes the flag down; the sleeper puts the flag up, then looks for work.
#[derive(Default)]
pub struct Doorbell {
    thread: OnceLock<Thread>,
    asleep: AtomicBool,
}

impl Doorbell {
    pub fn ring(&self) {
        // The load keeps a ring at a thread that works from costing a locked instruction.
        if self.asleep.load(SeqCst)
            && self.asleep.swap(false, SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    /// Called by the thread that sleeps here, once.
    pub fn belongs_to_this_thread(&self) {
        self.thread.get_or_init(std::thread::current);
    }

    /// Sleeps until it is rung or `timeout` is over, unless `has_work` says otherwise after the flag is up. May also wake for
    /// no reason.
    pub fn sleep(&self, timeout: Option<Duration>, has_work: impl FnOnce() -> bool) {
        self.asleep.store(true, SeqCst);
        if !has_work() {
            match timeout {
                Some(timeout) => std::thread::park_timeout(timeout),
                None => std::thread::park(),
            }
        }
        self.asleep.store(false, SeqCst);
    }
}
