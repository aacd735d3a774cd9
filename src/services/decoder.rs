//! What the engine thread needs of an engine: sequences go in, tokens come out, one step at a time.
//!
//! The engine of `orchestratord-engine` is one; a bench puts a paced one in its place, so that what is measured
//! is everything but the model. The calls are one per step or per task, never one per token.

use std::sync::Arc;

use orchestratord_engine::{
    AdmitError, AdmitInfo, Engine, EngineOptions, KvUsage, Model, NextRows, Progress, SequenceRequest, SessionKv,
    StepReport, TokenSink,
};

/// An engine as the engine thread uses it. All calls come from that thread.
pub trait Decoder: Send {
    /// Seats a sequence.
    ///
    /// # Errors
    ///
    /// When there is no room now, or never.
    fn admit(&mut self, request: SequenceRequest) -> Result<AdmitInfo, AdmitError>;

    /// Ends a sequence without a word to the sink.
    fn cancel(&mut self, id: u64);

    /// One step: at most one token of each sequence.
    ///
    /// # Errors
    ///
    /// When the engine failed; it must be rebuilt before it is used again.
    fn step(&mut self, sink: &mut dyn TokenSink) -> Result<StepReport, String>;

    /// A new engine of the same kind, with nothing in its slots. This one is not used again, but to try once more.
    ///
    /// # Errors
    ///
    /// When it cannot be had now.
    fn rebuilt(&mut self, model: Arc<Model>, options: EngineOptions) -> Result<Box<dyn Decoder>, String>;

    fn is_idle(&self) -> bool;
    fn slots_free(&self) -> usize;
    fn running_count(&self) -> usize;
    fn paused_count(&self) -> usize;
    fn kv_usage(&self) -> KvUsage;
    fn session_kv(&self, session: u128) -> SessionKv;
    fn drop_session(&mut self, session: u128);

    /// What the next step will hold besides prompt rows.
    fn next_rows(&self) -> NextRows;
    /// Gives prompts at most so many rows of each step from now on.
    fn limit_prefill(&mut self, rows_max: usize);
    /// How far each sequence has come, by id; those that were put aside too.
    fn progress(&self, each: &mut dyn FnMut(u64, Progress));
    /// From now on nothing puts this sequence aside any more.
    fn pin(&mut self, id: u64);

    /// Names the arithmetic: streams are bit-identical between engines that give the same name.
    fn arithmetic(&self) -> String;
}

impl Decoder for Engine {
    fn admit(&mut self, request: SequenceRequest) -> Result<AdmitInfo, AdmitError> {
        Engine::admit(self, request)
    }

    fn cancel(&mut self, id: u64) {
        Engine::cancel(self, id);
    }

    fn step(&mut self, sink: &mut dyn TokenSink) -> Result<StepReport, String> {
        Engine::step(self, sink).map_err(|e| e.to_string())
    }

    fn rebuilt(&mut self, model: Arc<Model>, options: EngineOptions) -> Result<Box<dyn Decoder>, String> {
        match Engine::new(model, options) {
            Ok(engine) => Ok(Box::new(engine)),
            Err(error) => Err(error.to_string()),
        }
    }

    fn is_idle(&self) -> bool {
        Engine::is_idle(self)
    }

    fn slots_free(&self) -> usize {
        Engine::slots_free(self)
    }

    fn running_count(&self) -> usize {
        Engine::running_count(self)
    }

    fn paused_count(&self) -> usize {
        Engine::paused_count(self)
    }

    fn kv_usage(&self) -> KvUsage {
        Engine::kv_usage(self)
    }

    fn session_kv(&self, session: u128) -> SessionKv {
        Engine::session_kv(self, session)
    }

    fn drop_session(&mut self, session: u128) {
        Engine::drop_session(self, session);
    }

    fn next_rows(&self) -> NextRows {
        Engine::next_rows(self)
    }

    fn limit_prefill(&mut self, rows_max: usize) {
        Engine::limit_prefill(self, rows_max);
    }

    fn progress(&self, each: &mut dyn FnMut(u64, Progress)) {
        Engine::progress(self, each);
    }

    fn pin(&mut self, id: u64) {
        Engine::pin(self, id);
    }

    fn arithmetic(&self) -> String {
        Engine::arithmetic(self).to_owned()
    }
}
