//! Matrix times rows of activations.
//!
//! Weights that are floating-point numbers are multiplied as such, bfloat16 by activations of its kind where the processor
//! does that, and those that are whole numbers with scales as whole numbers. Either way an output element is summed in an order that is a function of the weight's shape.

mod activations;
mod byte_panel;
mod bytes;
mod floats;
mod integers;
mod pairs;
#[cfg(test)]
mod tests;

pub use activations::Activations;
pub use floats::matmul_floats;
pub use integers::matmul_integers;
pub use pairs::matmul_pairs;

use super::pool::SharedSlice;

/// Multiply-adds that are worth waking a worker for: about ten microseconds.
const GRAIN_OPERATIONS: usize = 1 << 17;

/// How far ahead of its use a weight that is read once is asked for, bytes. The processor itself looks ahead within a page
/// of 4096 only, and stops at the next one: a step of Q8_0 read 27 GB/s without, 28 to 31 with 1024 to 4096, 39 with this.
const AHEAD: usize = 8192;

#[inline(always)]
#[allow(unsafe_code, reason = "threads share the output of one matmul")]
fn put(out: &SharedSlice<'_>, index: usize, value: f32) {
    // SAFETY: the index belongs to the output column of one weight row, and the pool gives each weight row to one thread.
    unsafe { out.write(index, value) }
}
