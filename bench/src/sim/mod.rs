//! A simulator: the real queue, gate, scheduler, sessions and predictions over a simulated engine and clock.
//!
//! Only three things are made up here: the clients (`trace`), the time that steps take (`engine`), and the clock. What is
//! decided, promised and counted is decided by the server's own code; `world` drives it as the engine thread and the
//! reactors do, and checks after every step what must hold.

pub mod ceiling;
pub mod chance;
pub mod engine;
pub mod grade;
pub mod plot;
pub mod suite;
pub mod trace;
pub mod world;

pub use engine::Truth;
pub use trace::{Client, Kind, Trace};
pub use world::{Ended, Outcome, Setup, World};
