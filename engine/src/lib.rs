//! The engine of `orchestratord`: token ids in, token ids out.
//!
//! [`Model`] is a file that was read and checked: weights, [`Tokenizer`], [`ChatTemplate`]. [`Engine`] runs sequences of
//! tokens on it, many at a time, one [`Engine::step`] after the other, and gives each token to a [`TokenSink`]. It knows
//! no HTTP, no queue and no clock: whoever owns it decides who is admitted and when.
//!
//! What it promises: the same tokens for the same sequence, bit for bit, whoever runs beside it, however its prompt was
//! cut into steps, whether its prefix came from the cache, and however many threads compute.

pub mod backend;
pub mod bench;
mod constraint;
pub mod gguf;
mod kv;
mod load_error;
mod model;
mod philox;
mod pooling;
mod sampler;
mod scheduler;
#[doc(hidden)]
pub mod testing;
mod text;

pub use backend::{BLOCK_LEN, CpuBackend, CpuOptions, DeviceError, Isa};
pub use constraint::{Constraint, Grammar, GrammarError};
pub use kv::{KvUsage, SessionKv};
pub use load_error::LoadError;
pub use model::{Matrix, Model, ModelInfo, Rope, Vector};
pub use pooling::{Pooling, shortened};
pub use sampler::SamplingParams;
pub use scheduler::{
    AdmitError, AdmitInfo, Engine, EngineError, EngineOptions, FinishReason, NextRows, Progress, SequenceRequest,
    StepReport, TokenSink, Verdict, share_rows,
};
pub use text::{ChatMessage, ChatTemplate, Detokenizer, StopMatcher, TemplateError, Tokenizer, ToolCall};
