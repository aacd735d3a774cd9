//! Wiring: routes, what every request passes, and how the process comes up and goes down.

pub mod bootstrap;
pub mod middleware;
pub mod router;
pub mod service;
