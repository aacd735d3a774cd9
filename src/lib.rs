//! orchestratord: tasks go into a bounded queue, tokens come out as streams, and what clients are told is true.
//!
//! The map of the house is ARCHITECTURE.md; every module says what it is for and what it does not know.

pub mod admission;
pub mod api;
pub mod app;
pub mod cli;
pub mod config;
pub mod default_model;
pub mod domain;
pub mod gateway;
pub mod infra;
pub mod metrics;
pub mod services;
pub mod state;
