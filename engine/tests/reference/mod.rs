//! A second engine, slow and independent: its own reader of GGUF, its own dequantisation, its own forward pass in plain
//! loops over `f64`. It shares no line with the crate, so that a mistake would have to be made twice.
#![allow(dead_code, reason = "each test file uses a part")]

mod dequantise;
mod forward;
mod gguf;

#[allow(unused_imports, reason = "as above")]
pub use dequantise::dequantise;
#[allow(unused_imports, reason = "as above")]
pub use forward::Network;
