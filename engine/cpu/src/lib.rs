//! The CPU kernels of the engine: matrices of every tensor type times rows of activations, on every instruction set.
//!
//! A crate of its own because it is the one that takes long to compile, about fifteen tensor types times three instruction
//! sets times the shapes of the tiles, and changes least. It knows bytes and shapes, no model and no file.
//!
//! Whatever is summed is summed in an order that is a function of the weight's shape: see decision 8 in ARCHITECTURE.md.

mod buffer;
mod format;
pub mod math;
mod matmul;
pub mod pool;
pub mod simd;
mod tensor_type;
#[doc(hidden)]
pub mod testing;
mod weight;

pub use buffer::Buffer;
pub use matmul::Activations;
pub use simd::Isa;
pub use tensor_type::TensorType;
pub use weight::{Weight, decode_row, matmul};
