//! How fast an engine is on this machine, and how near to what memory allows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::{
    CpuBackend, Engine, EngineError, EngineOptions, FinishReason, Isa, Model, ModelInfo, SequenceRequest, TokenSink,
    Verdict,
};

/// What is to be measured.
#[derive(Clone, Copy, Debug)]
pub struct BenchOptions {
    /// Threads that compute.
    pub threads: usize,
    /// Tokens of the prompt.
    pub prompt_len: usize,
    /// Tokens decoded after it.
    pub decode_len: usize,
    /// Sequences that decode together; their prompts have one token each if there are several.
    pub sequences: usize,
    /// Instruction set of the kernels; none is the one that is taken by itself.
    pub isa: Option<Isa>,
}

/// What was measured, once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Prompt tokens per second.
    pub prefill_tokens_per_s: f64,
    /// Tokens per second, of all sequences together.
    pub decode_tokens_per_s: f64,
    /// Bytes of weights and KV cache that a decode step reads.
    pub step_bytes: u64,
    /// Bytes per second that as many threads read from memory without doing anything else, right after.
    pub read_bytes_per_s: f64,
}

impl Speed {
    /// Share of the read bandwidth that decode steps of `sequences` use.
    pub fn bandwidth_share(&self, sequences: usize) -> f64 {
        self.decode_tokens_per_s / sequences as f64 * self.step_bytes as f64 / self.read_bytes_per_s
    }
}

/// Bytes that the bandwidth is measured over: more than any cache that a few cores have to themselves.
const READ_LEN: usize = 1 << 29;

/// Sequences that are to be run together on an engine.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// How many.
    pub sequences: usize,
    /// Tokens of each prompt, one at least.
    pub prompt_len: usize,
    /// Steps that are measured once every sequence has its first token.
    pub decode_len: usize,
    /// Rows of a step that the engine was made for.
    pub step_rows_max: usize,
    /// No further step begins after this.
    pub until: Option<Instant>,
}

impl Load {
    /// Tokens that each sequence may generate: one in the step that ends its prompt, one in each step that reads the others', one
    /// in each that is measured.
    fn tokens_max(&self) -> usize {
        let rows = self.sequences * self.prompt_len;
        let prefill_steps = match rows <= self.step_rows_max {
            true => 1,
            // Those that have got a token take a row of each step.
            false => 1 + rows.div_ceil((self.step_rows_max - self.sequences).max(1)),
        };
        prefill_steps + self.decode_len
    }

    /// Blocks of KV memory that it takes.
    pub fn blocks(&self) -> usize {
        (self.prompt_len + self.tokens_max()).div_ceil(crate::BLOCK_LEN) * self.sequences
    }

    /// Bytes of weights and of the KV cache that the middle one of `decode_len` steps reads; `kv_block_bytes` of the latter
    /// are a block.
    pub fn step_bytes(&self, info: &ModelInfo, kv_block_bytes: usize, decode_len: usize) -> u64 {
        let cells = self.sequences * (self.prompt_len + decode_len / 2);
        info.step_weights_bytes + (cells * (kv_block_bytes / crate::BLOCK_LEN)) as u64
    }

    fn in_time(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
    }

    /// Admits the sequences and steps until all have a token: how long that took, or none when the time was over before.
    ///
    /// # Errors
    ///
    /// When the engine has no room for them, or the device fails.
    pub fn prefill<B: Backend>(&self, engine: &mut Engine<B>) -> Result<Option<Duration>, EngineError> {
        let vocab_len = engine.model().info().vocab_len as u32;
        let max_tokens = self.tokens_max() as u32;
        for id in 0..self.sequences as u64 {
            let prompt = (0..self.prompt_len as u32).map(|i| (i * 7919 + id as u32 * 31 + 1) % vocab_len).collect();
            let request = SequenceRequest { id, prompt, max_tokens, ignore_end: true, ..SequenceRequest::default() };
            engine.admit(request).map_err(|e| EngineError::Tokens(e.to_string()))?;
        }
        let mut first = FirstTokens { got: vec![false; self.sequences] };
        let start = Instant::now();
        while self.in_time() {
            engine.step(&mut first)?;
            if first.got.iter().all(|got| *got) {
                return Ok(Some(start.elapsed()));
            }
        }
        Ok(None)
    }

    /// Steps after `prefill`, in each of which every sequence gets a token: how long each took. Fewer when the time is over.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub fn decode<B: Backend>(&self, engine: &mut Engine<B>) -> Result<Vec<Duration>, EngineError> {
        let mut sink = FirstTokens { got: vec![false; self.sequences] };
        let mut steps = Vec::with_capacity(self.decode_len);
        while steps.len() < self.decode_len && self.in_time() {
            let start = Instant::now();
            engine.step(&mut sink)?;
            steps.push(start.elapsed());
        }
        Ok(steps)
    }

    /// Takes the sequences out, wherever they are.
    pub fn end<B: Backend>(&self, engine: &mut Engine<B>) {
        for id in 0..self.sequences as u64 {
            engine.cancel(id);
        }
    }
}

/// Which sequences have got a token.
struct FirstTokens {
    got: Vec<bool>,
}

impl TokenSink for FirstTokens {
    fn token(&mut self, id: u64, _: u32, _: Option<f32>) -> Verdict {
        self.got[id as usize] = true;
        Verdict::Continue
    }

    fn finished(&mut self, _: u64, _: FinishReason) {}
}

/// Runs a prompt and a decode on an engine of its own.
///
/// # Errors
///
/// When the model's context is too short for what is asked, or the device fails.
pub fn measure(model: &Arc<Model>, options: BenchOptions) -> Result<Speed, EngineError> {
    let BenchOptions { threads, prompt_len, decode_len, sequences, isa } = options;
    let prompt_len = if sequences > 1 { 1 } else { prompt_len };
    let load = Load { sequences, prompt_len, decode_len, step_rows_max: prompt_len.max(sequences), until: None };
    let mut engine = Engine::new(
        model.clone(),
        EngineOptions {
            slots_max: sequences,
            step_rows_max: load.step_rows_max,
            kv_blocks_max: load.blocks(),
            threads,
            isa,
            ..EngineOptions::default()
        },
    )?;
    // First, short sequences touch every page and grow every buffer.
    let warm = Load { prompt_len: 1, decode_len: 0, ..load };
    warm.prefill(&mut engine)?;
    warm.end(&mut engine);
    let prefill = load.prefill(&mut engine)?.expect("it has all the time there is");
    let decode: Duration = load.decode(&mut engine)?.iter().sum();
    drop(engine);
    Ok(Speed {
        prefill_tokens_per_s: (sequences * prompt_len) as f64 / prefill.as_secs_f64(),
        decode_tokens_per_s: (sequences * decode_len) as f64 / decode.as_secs_f64(),
        step_bytes: load.step_bytes(model.info(), model.kv_block_bytes::<CpuBackend>(), decode_len),
        read_bytes_per_s: read_bandwidth(threads),
    })
}

/// Bytes per second that `threads` read together: the best of three passes over memory of their own.
pub fn read_bandwidth(threads: usize) -> f64 {
    let threads = threads.max(1);
    let words: Vec<u64> = vec![1; READ_LEN / 8];
    let pass = || {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in words.chunks(words.len().div_ceil(threads)) {
                scope.spawn(|| std::hint::black_box(sum(part)));
            }
        });
        READ_LEN as f64 / start.elapsed().as_secs_f64()
    };
    (0..3).map(|_| pass()).fold(0.0, f64::max)
}

/// Sixteen sums that do not wait for each other, so that loads are all there is.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; 16];
    for chunk in words.as_chunks::<16>().0 {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TinyModel;

    /// More prompts than fit into a step, and room for exactly what is said to be needed.
    #[test]
    fn every_load_fits_into_the_blocks_it_names_and_leaves_nothing() {
        let model = Arc::new(Model::from_vec(TinyModel::default().to_bytes()).expect("a sound model"));
        for (sequences, prompt_len, step_rows_max) in [(1, 40, 7), (3, 20, 8), (5, 9, 5), (4, 1, 4), (2, 33, 128)] {
            let load = Load { sequences, prompt_len, decode_len: 6, step_rows_max, until: None };
            let options = EngineOptions {
                slots_max: sequences,
                step_rows_max,
                kv_blocks_max: load.blocks(),
                ..EngineOptions::default()
            };
            let mut engine = Engine::new(model.clone(), options).expect("legal options");
            for _ in 0..2 {
                let prefill = load.prefill(&mut engine).expect("it does not fail");
                let decode = load.decode(&mut engine).expect("it does not fail");
                assert!(prefill.is_some() && decode.len() == 6, "{load:?}");
                load.end(&mut engine);
                assert!(engine.is_idle() && engine.kv_usage().blocks_used == 0, "{load:?}");
            }
            let late = Load { until: Some(Instant::now()), ..load };
            assert!(late.prefill(&mut engine).expect("it does not fail").is_none());
            assert!(late.decode(&mut engine).expect("it does not fail").is_empty());
        }
    }
}
