//! What a model's steps take, tried out before anybody asks for one, so that the first prediction is no guess.
//!
//! A small model is tried while it is loaded, for as long as nobody notices. A large one takes longer for one step than a
//! start may take: its server is ready first, and tries while nobody wants anything. The first task ends that, and what it
//! takes is the better teacher.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use orchestratord_engine::{FinishReason, ModelInfo, SequenceRequest, TokenSink, Verdict};

use super::decoder::Decoder;
use super::prediction::{StepModel, StepObservation};

/// What loading a model may take longer for trials.
const LOAD_BUDGET: Duration = Duration::from_millis(10);

/// What one trial step may take as far as is known: a first task may come in the middle of it.
const STEP_US: f64 = 50_000.0;

/// Bytes that a processor reads from memory in a microsecond, in order of magnitude: what a step takes before there was one.
const READ_BYTES_PER_US: f64 = 8_000.0;

/// Tokens of each sequence that is tried.
const TOKENS: u32 = 8;

/// Sequences that begin together with prompts of one length.
#[derive(Clone, Copy, Debug)]
struct Trial {
    sequences: usize,
    /// At most; fewer where a step would take too long.
    prompt_len: usize,
}

/// What is still to be tried.
#[derive(Default)]
pub struct Trials {
    left: VecDeque<Trial>,
    context_length: usize,
}

impl Trials {
    /// Steps of several shapes: one row and a few, prompts and answers, alone and together.
    pub fn of(info: &ModelInfo, slots_max: usize) -> Trials {
        let trial = |(sequences, prompt_len)| Trial { sequences, prompt_len };
        let left = [(1, 1), (1, 16), (1, 64), (slots_max.min(8), 16), (1, 1024)].map(trial).into();
        Trials { left, context_length: info.context_length as usize }
    }

    /// Nothing is tried: for an engine whose steps are known.
    pub fn none() -> Trials {
        Trials::default()
    }

    /// What to assume before there was a step: the time that reading the weights takes, and the shape of what was learned of
    /// the model before this.
    pub fn assumed(info: &ModelInfo, prior: Option<&StepModel>) -> StepModel {
        let step_us = info.step_weights_bytes as f64 / READ_BYTES_PER_US;
        prior.map_or_else(|| StepModel::new(step_us), |prior| prior.as_prior([1.0, 0.0], 1.0, step_us))
    }

    pub fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    pub fn abandon(&mut self) {
        self.left.clear();
    }

    /// As many trials as loading has time for; the rest stays.
    pub fn at_load(&mut self, engine: &mut dyn Decoder, speed: &mut StepModel) {
        let began = Instant::now();
        let fits = |speed: &StepModel| {
            began.elapsed() + Duration::from_micros(speed.step_us(1.0, 0.0, 1.0) as u64) < LOAD_BUDGET
        };
        // An engine that fails here fails again for its first task, and is dealt with there.
        while !self.is_empty() && matches!(self.next(engine, speed, &mut |speed| fits(speed)), Ok(true)) {}
    }

    /// The next trial, on an engine with nothing in its slots; it has nothing there afterwards either. `go_on` is asked
    /// before each step. False when it said no: then the trial stays.
    ///
    /// # Errors
    ///
    /// When the engine failed; it must be rebuilt.
    pub fn next(
        &mut self,
        engine: &mut dyn Decoder,
        speed: &mut StepModel,
        go_on: &mut dyn FnMut(&StepModel) -> bool,
    ) -> Result<bool, String> {
        let Some(&Trial { sequences, prompt_len }) = self.left.front() else { return Ok(true) };
        let rows = speed.prefill_rows_within(STEP_US, 0, 0, 0, (sequences * prompt_len) as u32) as usize;
        let longest = self.context_length.saturating_sub(TOKENS as usize + 1).max(1);
        let prompt_len = (rows / sequences).clamp(1, longest);
        for id in 0..sequences as u64 {
            let request = SequenceRequest {
                id,
                prompt: vec![0; prompt_len].into(),
                max_tokens: TOKENS,
                ignore_end: true,
                ..SequenceRequest::default()
            };
            // A pool too small for this learns from its first task instead.
            let _ = engine.admit(request);
        }
        while !engine.is_idle() {
            if !go_on(speed) {
                (0..sequences as u64).for_each(|id| engine.cancel(id));
                return Ok(false);
            }
            let began = Instant::now();
            let report = engine.step(&mut Nobody)?;
            speed.observe_trial(StepObservation {
                rows_decode: report.rows_decode,
                rows_prefill: report.rows_prefill,
                context_cells: report.context_cells,
                duration_us: began.elapsed().as_secs_f64() * 1e6,
            });
        }
        self.left.pop_front();
        Ok(true)
    }
}

struct Nobody;

impl TokenSink for Nobody {
    fn token(&mut self, _: u64, _: u32, _: Option<f32>) -> Verdict {
        Verdict::Continue
    }

    fn finished(&mut self, _: u64, _: FinishReason) {}
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use orchestratord_engine::{Engine, EngineOptions, Model};

    use super::*;

    fn engine() -> (Engine, ModelInfo) {
        let model = Arc::new(Model::from_static(crate::default_model::bytes()).unwrap());
        let info = model.info().clone();
        (Engine::new(model, EngineOptions::default()).unwrap(), info)
    }

    #[test]
    fn trials_teach_and_leave_nothing_behind() {
        let (mut engine, info) = engine();
        let mut trials = Trials::of(&info, 4);
        let mut speed = Trials::assumed(&info, None);
        let mut steps = 0;
        while !trials.is_empty() {
            let mut count = |_: &StepModel| {
                steps += 1;
                true
            };
            assert_eq!(trials.next(&mut engine, &mut speed, &mut count), Ok(true));
            assert!(engine.is_idle());
        }
        assert!(steps >= 5 * TOKENS, "{steps} steps of five trials");
        assert_ne!(speed, Trials::assumed(&info, None));
    }

    #[test]
    fn who_is_interrupted_gives_back_its_slots_and_tries_again() {
        let (mut engine, info) = engine();
        let mut trials = Trials::of(&info, 4);
        let mut speed = Trials::assumed(&info, None);
        let mut left = 3;
        let mut twice = |_: &StepModel| {
            left -= 1;
            left > 0
        };
        assert_eq!(trials.next(&mut engine, &mut speed, &mut twice), Ok(false));
        assert!(engine.is_idle() && engine.kv_usage().blocks_used == 0);
        assert_eq!(trials.left.len(), 5);
        assert_eq!(trials.next(&mut engine, &mut speed, &mut |_| true), Ok(true));
        assert_eq!(trials.left.len(), 4);
    }

    /// A step of such a model takes longer than all of loading may.
    #[test]
    fn a_large_model_is_not_tried_while_it_is_loaded() {
        let (mut engine, mut info) = engine();
        info.step_weights_bytes = 1 << 30;
        let mut trials = Trials::of(&info, 4);
        let mut speed = Trials::assumed(&info, None);
        let before = speed.clone();
        trials.at_load(&mut engine, &mut speed);
        assert!(trials.left.len() == 5 && speed == before && engine.is_idle());
    }
}
