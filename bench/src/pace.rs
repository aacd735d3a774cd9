//! A schedule on a grid that all processes of one machine agree on: multiples of an interval on the monotonic
//! clock. Whoever knows the interval knows when a token was due, without a word between server and client.

use std::time::Duration;

use rustix::thread::{ClockId, clock_nanosleep_absolute};
use rustix::time::{Timespec, clock_gettime};

/// Nanoseconds of the monotonic clock, the same in every process.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Points in time, one after the other.
pub struct Grid {
    interval_ns: u64,
    next_ns: u64,
}

impl Grid {
    pub fn new(interval: Duration) -> Grid {
        let mut grid = Grid { interval_ns: (interval.as_nanos() as u64).max(1), next_ns: 0 };
        grid.restart();
        grid
    }

    /// Goes on with the first point that is not past: called after a time without work.
    pub fn restart(&mut self) {
        self.next_ns = now_ns().div_ceil(self.interval_ns) * self.interval_ns;
    }

    /// Sleeps until the next point. Who is late returns at once and catches up: no point is left out.
    pub fn wait(&mut self) {
        while now_ns() < self.next_ns {
            let until = Timespec {
                tv_sec: (self.next_ns / 1_000_000_000) as i64,
                tv_nsec: (self.next_ns % 1_000_000_000) as i64,
            };
            let _ = clock_nanosleep_absolute(ClockId::Monotonic, &until);
        }
        self.next_ns += self.interval_ns;
    }
}
