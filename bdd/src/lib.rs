//! Features against a live server: what a user may rely on, said in a user's words.
//!
//! [`harness`] starts the real binary and talks to it over TCP; it knows nothing of features and serves other
//! integration tests as well. [`steps`] gives the sentences of `tests/features` their meaning, [`runner`] runs them.

pub mod harness;
pub mod runner;
pub mod steps;
