//! Where the host's time with a device goes: it waits for it, or the device waits for the host.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Sums since the device was opened. The rest of a step's time is the host's own work beside a device that is busy.
#[derive(Debug)]
pub struct HostTime {
    opened: Instant,
    waited_ns: AtomicU64,
    idle_ns: AtomicU64,
    /// How often something was asked of the device.
    asked_count: AtomicU64,
    /// When the device was last known to have nothing to do, in nanoseconds since `opened`; 0 once it was asked for more.
    idle_since_ns: AtomicU64,
}

impl Default for HostTime {
    fn default() -> HostTime {
        let zero = || AtomicU64::new(0);
        HostTime {
            opened: Instant::now(),
            waited_ns: zero(),
            idle_ns: zero(),
            asked_count: zero(),
            idle_since_ns: zero(),
        }
    }
}

impl HostTime {
    /// Time in which the host only waited.
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.waited_ns.load(Relaxed))
    }

    /// Time in which the device certainly had nothing to do: from the end of a wait for all of its work to the next call that
    /// gives it some. It may idle between two launches as well, which only the device could tell.
    pub fn idle(&self) -> Duration {
        Duration::from_nanos(self.idle_ns.load(Relaxed))
    }

    /// Something is asked of the device.
    pub(super) fn asked(&self) {
        self.asked_count.fetch_add(1, Relaxed);
        // One thread steps an engine, so nothing comes between the two.
        if self.idle_since_ns.load(Relaxed) != 0 {
            let since = self.idle_since_ns.swap(0, Relaxed);
            self.idle_ns.fetch_add(self.now_ns().saturating_sub(since), Relaxed);
        }
    }

    /// How often something has been asked of it.
    pub(super) fn asked_count(&self) -> u64 {
        self.asked_count.load(Relaxed)
    }

    /// Waits by `wait` for what had been asked when `asked_count` was this: with more asked since, the device goes on.
    pub(super) fn waits<T>(&self, asked_count: u64, wait: impl FnOnce() -> T) -> T {
        let start = self.now_ns();
        let result = wait();
        let end = self.now_ns();
        self.waited_ns.fetch_add(end - start, Relaxed);
        if asked_count == self.asked_count() {
            self.idle_since_ns.store(end.max(1), Relaxed);
        }
        result
    }

    fn now_ns(&self) -> u64 {
        self.opened.elapsed().as_nanos() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_and_idling_are_told_apart_and_own_work_is_neither() {
        let time = HostTime::default();
        let pause = || std::thread::sleep(Duration::from_millis(20));
        time.asked();
        pause();
        time.waits(1, pause);
        let (waited, idle) = (time.waited(), time.idle());
        assert!(waited >= Duration::from_millis(20) && idle.is_zero(), "{waited:?} {idle:?}");
        pause();
        time.asked();
        let first = time.idle();
        assert!(first >= Duration::from_millis(20));
        pause();
        time.asked();
        assert_eq!((time.waited(), time.idle()), (waited, first));
        // It has been asked for more than what is waited for, and so has something to do.
        time.waits(2, pause);
        pause();
        time.asked();
        assert_eq!(time.idle(), first);
    }
}
