//! Worker threads that share the items of one kernel. One of the rooms where `unsafe` lives.
//!
//! The caller works, too, and waits only for items that a worker has begun: a worker that the system has put aside
//! costs nothing. Workers spin for a moment, since the next kernel is microseconds away, then park.
#![allow(unsafe_code, reason = "workers borrow the caller's closure; `run` does not return before they have let go")]

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Turns of the spin loop before a worker parks: tens of microseconds.
const SPIN_COUNT: u32 = 4_000;

/// Chunks that each thread gets on average, so that a slow one does not hold up the others.
const CHUNKS_PER_THREAD: usize = 4;

type Work<'a> = dyn Fn(Range<usize>) + Sync + 'a;

/// Threads that help with kernels. With one thread there are none, and `run` is a plain call.
pub struct WorkerPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// State of the door through which workers enter a job: the low bits count who is inside, `OPEN` lets them in, and
/// everything above counts jobs, so that a worker never enters one that it has not seen opened.
const INSIDE: u64 = 0xffff;
const OPEN: u64 = 1 << 16;
const JOB: u64 = 1 << 17;

struct Shared {
    door: AtomicU64,
    next: AtomicUsize,
    /// The job under way; read only by those inside.
    job: Mutex<Option<Job>>,
    sleeping: AtomicUsize,
    quit: AtomicBool,
    panicked: AtomicBool,
}

#[derive(Clone, Copy)]
struct Job {
    work: *const Work<'static>,
    item_count: usize,
    chunk_len: usize,
}

// SAFETY: the pointer is to a `Sync` closure, and it is followed only between entering and leaving the door, while `run`
// keeps the closure alive.
unsafe impl Send for Job {}

impl WorkerPool {
    /// A pool of `threads`, the caller's included.
    ///
    /// # Errors
    ///
    /// When the system refuses a thread.
    pub fn new(threads: usize) -> std::io::Result<WorkerPool> {
        assert!((1..INSIDE as usize).contains(&threads), "a pool has at least the caller's own thread");
        let shared = Arc::new(Shared {
            door: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            job: Mutex::new(None),
            sleeping: AtomicUsize::new(0),
            quit: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
        });
        let mut pool = WorkerPool { shared, workers: Vec::new() };
        for index in 1..threads {
            let shared = pool.shared.clone();
            let builder = std::thread::Builder::new().name(format!("engine-worker-{index}"));
            pool.workers.push(builder.spawn(move || shared.serve())?);
        }
        Ok(pool)
    }

    /// Calls `work` with ranges that together are `0..item_count`, each item once, chunks no shorter than `grain`.
    ///
    /// Which thread gets which range is chance: `work` must do the same for an item whoever it is.
    pub fn run(&self, item_count: usize, grain: usize, work: impl Fn(Range<usize>) + Sync) {
        if self.workers.is_empty() || item_count <= grain {
            return work(0..item_count);
        }
        let chunks = (self.workers.len() + 1) * CHUNKS_PER_THREAD;
        let chunk_len = item_count.div_ceil(chunks).max(grain);
        let work: &Work<'_> = &work;
        // SAFETY: only the lifetime changes. The pointer is followed by workers inside the door; the guard below does
        // not let this call end, not even by a panic, before the door is shut and everybody has left.
        let work_static: *const Work<'static> = unsafe { std::mem::transmute(work) };
        let shared = &*self.shared;
        *shared.job.lock().expect("nothing panics under this lock") =
            Some(Job { work: work_static, item_count, chunk_len });
        shared.next.store(0, Relaxed);
        // Opening publishes the job and the counter to whoever enters.
        shared.door.fetch_add(JOB + OPEN, SeqCst);
        let guard = Guard(shared);
        if shared.sleeping.load(SeqCst) > 0 {
            self.workers.iter().for_each(|worker| worker.thread().unpark());
        }
        claim(shared, item_count, chunk_len, work);
        drop(guard);
        assert!(!shared.panicked.load(SeqCst), "a worker panicked in a kernel");
    }
}

/// Shuts the door and waits for those inside.
struct Guard<'a>(&'a Shared);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let mut door = self.0.door.fetch_sub(OPEN, SeqCst) - OPEN;
        let mut spins = 0u32;
        while door & INSIDE > 0 {
            spins += 1;
            // A worker inside may have lost its core to another program: let it have ours.
            if spins.is_multiple_of(1024) {
                std::thread::yield_now()
            } else {
                std::hint::spin_loop()
            }
            door = self.0.door.load(Acquire);
        }
    }
}

fn claim(shared: &Shared, item_count: usize, chunk_len: usize, work: &Work<'_>) {
    loop {
        let start = shared.next.fetch_add(chunk_len, Relaxed);
        if start >= item_count {
            return;
        }
        work(start..(start + chunk_len).min(item_count));
    }
}

impl Shared {
    fn serve(&self) {
        let mut seen = 0;
        while !self.quit.load(SeqCst) {
            if let Some(job_number) = self.enter(seen) {
                seen = job_number;
                self.help();
                self.door.fetch_sub(1, SeqCst);
                continue;
            }
            self.rest(seen);
        }
    }

    /// Enters the open job after `seen`, and gives its number.
    fn enter(&self, seen: u64) -> Option<u64> {
        let door = self.door.load(Acquire);
        let number = door / JOB;
        if door & OPEN == 0 || number == seen {
            return None;
        }
        self.door.compare_exchange(door, door + 1, SeqCst, Relaxed).ok().map(|_| number)
    }

    fn help(&self) {
        let job = self.job.lock().expect("nothing panics under this lock").expect("an open door has a job");
        // SAFETY: we are inside the door, so `run` is still waiting and its closure is alive.
        let work = unsafe { &*job.work };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            claim(self, job.item_count, job.chunk_len, work);
        }));
        if result.is_err() {
            self.panicked.store(true, SeqCst);
        }
    }

    fn has_news(&self, seen: u64) -> bool {
        let door = self.door.load(SeqCst);
        door & OPEN != 0 && door / JOB != seen || self.quit.load(SeqCst)
    }

    fn rest(&self, seen: u64) {
        for _ in 0..SPIN_COUNT {
            if self.has_news(seen) {
                return;
            }
            std::hint::spin_loop();
        }
        self.sleeping.fetch_add(1, SeqCst);
        // Between the count going up and this look, `run` either sees the count or we see its job.
        while !self.has_news(seen) {
            std::thread::park();
        }
        self.sleeping.fetch_sub(1, SeqCst);
    }
}

impl Drop for WorkerPool {
    fn drop(&mut self) {
        self.shared.quit.store(true, SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches its panics, so there is nothing to hear from it.
            let _ = worker.join();
        }
    }
}

/// A slice that several threads write, each to places of its own.
pub struct SharedSlice<'a, T = f32> {
    start: *mut T,
    len: usize,
    life: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: `write` and `part` ask their callers never to give one place to two threads.
unsafe impl<T: Send> Sync for SharedSlice<'_, T> {}

impl<'a, T: Copy> SharedSlice<'a, T> {
    /// Borrows a slice for sharing.
    pub fn new(slice: &'a mut [T]) -> SharedSlice<'a, T> {
        SharedSlice { start: slice.as_mut_ptr(), len: slice.len(), life: std::marker::PhantomData }
    }

    /// Writes one element.
    ///
    /// # Safety
    ///
    /// No other thread uses this element while the slice is shared.
    #[inline(always)]
    pub unsafe fn write(&self, index: usize, value: T) {
        assert!(index < self.len, "write beyond a shared slice");
        // SAFETY: in bounds as just seen; alone there as the caller promised.
        unsafe { self.start.add(index).write(value) }
    }

    /// A part of the slice.
    ///
    /// # Safety
    ///
    /// No other thread uses this part while it is borrowed.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "that is what it is for; the caller promises that parts do not overlap")]
    pub unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "a part beyond a shared slice");
        // SAFETY: in bounds as just seen; alone there as the caller promised.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn every_item_is_done_once() {
        for threads in 1..=4 {
            let pool = WorkerPool::new(threads).expect("threads for a test");
            for item_count in [0, 1, 2, 7, 64, if cfg!(miri) { 65 } else { 1000 }] {
                for grain in [1, 3, 50] {
                    let done: Vec<AtomicU32> = (0..item_count).map(|_| AtomicU32::new(0)).collect();
                    pool.run(item_count, grain, |range| {
                        range.for_each(|i| _ = done[i].fetch_add(1, Relaxed));
                    });
                    assert!(done.iter().all(|n| n.load(Relaxed) == 1), "{threads} threads, {item_count} by {grain}");
                }
            }
        }
    }

    #[test]
    fn a_parked_pool_wakes_up() {
        let pool = WorkerPool::new(3).expect("threads for a test");
        for _ in 0..if cfg!(miri) { 3 } else { 20 } {
            std::thread::sleep(std::time::Duration::from_millis(2));
            let sum = AtomicUsize::new(0);
            pool.run(100, 1, |range| _ = sum.fetch_add(range.sum(), Relaxed));
            assert_eq!(sum.load(Relaxed), 4950);
        }
    }

    #[test]
    fn a_panic_in_a_kernel_reaches_the_caller() {
        let pool = WorkerPool::new(2).expect("threads for a test");
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.run(1000, 1, |range| assert!(!range.contains(&999), "on purpose"));
        }));
        assert!(caught.is_err());
    }
}
