//! Time as an argument: a clock is handed to whoever needs one, and tests hand over their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Monotonic time since the process began, and the wall clock for timestamps on the wire.
#[derive(Clone)]
pub struct Clock(Source);

#[derive(Clone)]
enum Source {
    System(Instant),
    Manual(Arc<AtomicU64>),
}

impl Clock {
    pub fn system() -> Clock {
        Clock(Source::System(Instant::now()))
    }

    /// A clock that stands still until it is moved by `advance_ms`.
    pub fn manual() -> Clock {
        Clock(Source::Manual(Arc::new(AtomicU64::new(0))))
    }

    /// Microseconds since the clock was made; never goes back.
    pub fn now_us(&self) -> u64 {
        match &self.0 {
            Source::System(start) => start.elapsed().as_micros() as u64,
            Source::Manual(us) => us.load(Ordering::SeqCst),
        }
    }

    pub fn now_ms(&self) -> u64 {
        self.now_us() / 1000
    }

    /// Milliseconds since 1970, UTC.
    pub fn unix_ms(&self) -> u64 {
        match &self.0 {
            Source::System(_) => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64),
            Source::Manual(us) => us.load(Ordering::SeqCst) / 1000,
        }
    }

    /// Moves a manual clock.
    ///
    /// # Panics
    ///
    /// On a system clock: nobody moves that.
    pub fn advance_ms(&self, ms: u64) {
        match &self.0 {
            Source::System(_) => panic!("the system clock cannot be moved"),
            Source::Manual(us) => us.fetch_add(ms * 1000, Ordering::SeqCst),
        };
    }
}
