//! Stopping in order: no new connections, then no idle ones, then none.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::time::{Duration, Instant};

use super::inbox::Inbox;

const SERVING: u8 = 0;
const CLOSED: u8 = 1;
const ENDING: u8 = 2;

/// Shared by all reactors and whoever stops them.
pub struct Stop {
    phase: AtomicU8,
    /// When connections are dropped whatever they are doing.
    deadline: Mutex<Option<Instant>>,
    inboxes: Vec<Arc<Inbox>>,
}

impl Stop {
    pub fn new(inboxes: Vec<Arc<Inbox>>) -> Stop {
        Stop { phase: AtomicU8::new(SERVING), deadline: Mutex::new(None), inboxes }
    }

    /// Accepts no more connections; those that are open go on.
    pub fn close_listeners(&self) {
        self.phase.fetch_max(CLOSED, SeqCst);
        self.wake_everyone();
    }

    /// Closes each connection as soon as its request is answered, and all of them after `patience`.
    pub fn begin(&self, patience: Duration) {
        *self.deadline.lock().expect("nothing panics under this lock") = Some(Instant::now() + patience);
        self.phase.fetch_max(ENDING, SeqCst);
        self.wake_everyone();
    }

    pub(super) fn is_serving(&self) -> bool {
        self.phase.load(SeqCst) == SERVING
    }

    pub(super) fn is_ending(&self) -> bool {
        self.phase.load(SeqCst) == ENDING
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        *self.deadline.lock().expect("nothing panics under this lock")
    }

    fn wake_everyone(&self) {
        for inbox in &self.inboxes {
            (0..inbox.slot_count() as u32).for_each(|slot| inbox.post(slot));
            inbox.ring();
        }
    }
}
