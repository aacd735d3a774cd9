//! What touches the outside: sockets, disks, clocks, threads.

pub mod blocking;
pub mod clock;
pub mod doorbell;
pub mod http;
pub mod log;
pub mod notify;
pub mod prefetch;
pub mod reactor;
pub mod recycle;
pub mod storage;
pub mod stream;
