//! Continuous batching: who is in a slot, which rows a step has, and what becomes of its tokens.
//!
//! A step is six words: admit, plan, forward, sample, commit, flush. All of them are in `step.rs`, which rows a step has in
//! `plan.rs`; what happens between steps, when somebody comes or goes, is in `admit.rs`.

mod admit;
mod engine;
mod outlook;
mod plan;
mod prefill;
mod sequence;
mod step;

pub use engine::{Engine, EngineError, EngineOptions};
pub use outlook::{NextRows, Progress};
pub use prefill::share_rows;
pub use sequence::{AdmitError, AdmitInfo, FinishReason, SequenceRequest, StepReport, TokenSink, Verdict};
