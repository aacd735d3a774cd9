//! Why things fail, and what they are called. Knows nothing but `std`.

pub mod error;
pub mod ids;
pub mod limits;
pub mod task;
