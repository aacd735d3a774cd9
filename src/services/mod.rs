//! The rules: sessions and budgets, tasks and their streams, artifacts, what the engine can do and when.
//! Knows neither sockets nor status codes.

pub mod artifacts;
pub mod canonical;
pub mod capabilities;
pub mod decoder;
pub mod device;
pub mod engine_loop;
pub mod fair;
pub mod gate;
pub mod pool;
pub mod prediction;
pub mod prompt_cache;
pub mod response_format;
pub mod scheduler;
pub mod scribe;
pub mod served;
pub mod session;
pub mod streaming;
pub mod task;
pub mod transcript;
pub mod trials;
