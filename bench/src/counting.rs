//! An allocator that counts by thread, for tests that say how often the serving path allocates.

// An allocator is unsafe to write; this one hands everything to the system's.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Threads that are told apart; numbers of threads wrap here.
const THREADS_MAX: usize = 4096;

static COUNTS: [AtomicU64; THREADS_MAX] = [const { AtomicU64::new(0) }; THREADS_MAX];

thread_local! {
    /// The thread's number, 0 before it is known. Neither its making nor its end allocates.
    static NUMBER: Cell<usize> = const { Cell::new(0) };
}

/// Install it with `#[global_allocator]`.
pub struct Counting;

fn count() {
    let number = NUMBER.get();
    let number = if number > 0 { number } else { rustix::thread::gettid().as_raw_nonzero().get() as usize };
    NUMBER.set(number);
    COUNTS[number % THREADS_MAX].fetch_add(1, Relaxed);
}

// SAFETY: every call is handed on as it is; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: as the caller's.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as the caller's.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// Allocations so far by thread name, numbers at the end left off.
pub fn by_thread() -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for task in std::fs::read_dir("/proc/self/task").expect("Linux has it").flatten() {
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let name = name.trim().trim_end_matches(|c: char| c.is_ascii_digit() || c == '-').to_owned();
        let number: usize = task.file_name().to_string_lossy().parse().expect("threads have numbers");
        *counts.entry(name).or_default() += COUNTS[number % THREADS_MAX].load(Relaxed);
    }
    counts
}
