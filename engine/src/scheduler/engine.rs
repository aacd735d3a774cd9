//! The engine: a model on a backend, its KV cache, and the sequences in its slots.

use std::sync::Arc;

use super::plan::Planned;
use super::sequence::{Sampled, Sequence};
use crate::backend::cuda::DoesNotFit;
use crate::backend::{BLOCK_LEN, Backend, CpuBackend, CpuOptions, DeviceError, Isa, StepShape};
use crate::constraint::MaskMaker;
use crate::kv::{KvBlocks, KvUsage, SessionKv, Sessions};
use crate::model::{Decoder, Model};
use crate::sampler::Sampler;

/// Rows of prompts whose own tokens are told of that one step holds, beside a sample of every slot: each is a row of logits.
pub(super) const SCORED_ROWS_MAX: usize = 32;

/// Settings of an engine.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Sequences decoded together.
    pub slots_max: usize,
    /// Rows of one step; no fewer than slots, since each needs one.
    pub step_rows_max: usize,
    /// Blocks of KV memory, [`BLOCK_LEN`] cells each.
    pub kv_blocks_max: usize,
    /// Sessions whose last context is remembered.
    pub sessions_max: usize,
    /// Bytes of KV memory and activations that are still believed to be meant.
    pub memory_bytes_max: u64,
    /// Threads that compute, the caller's included.
    pub threads: usize,
    /// Instruction set of the kernels; none is the best one that the processor has.
    pub isa: Option<Isa>,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            slots_max: 16,
            step_rows_max: 128,
            kv_blocks_max: 1024,
            sessions_max: 1024,
            memory_bytes_max: 64 << 30,
            threads: 1,
            isa: None,
        }
    }
}

/// Why an engine cannot be made, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A setting that cannot work.
    #[error("{0}")]
    Options(String),
    /// The settings ask for more memory than is believed to be meant.
    #[error(
        "{kv_blocks_max} blocks of {block_bytes} bytes and activations of {activation_bytes} bytes are over the limit of \
         {memory_bytes_max} bytes"
    )]
    TooMuchMemory {
        /// Blocks asked for.
        kv_blocks_max: usize,
        /// Bytes of one block.
        block_bytes: usize,
        /// Bytes that a step's rows and samples take.
        activation_bytes: u64,
        /// The limit that is set.
        memory_bytes_max: u64,
    },
    /// The device has less memory than the model and its cache need.
    #[error("{0}")]
    DoesNotFit(Box<DoesNotFit>),
    /// The device failed. The engine must not be used again.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Another call than a step was given tokens that it cannot run.
    #[error("{0}")]
    Tokens(String),
}

/// Runs sequences. Everything is called on one thread; the engine may be made on another.
pub struct Engine<B: Backend = CpuBackend> {
    pub(super) model: Arc<Model>,
    pub(super) options: EngineOptions,
    pub(super) backend: B,
    pub(super) network: Decoder<B>,
    pub(super) cache: B::Cache,
    pub(super) kv: KvBlocks,
    pub(super) sessions: Sessions,
    pub(super) slots: Vec<Option<Sequence>>,
    /// Taken slots, in order of admission.
    pub(super) order: Vec<usize>,
    /// Put aside, in order of admission.
    pub(super) paused: Vec<Sequence>,
    /// Counts admissions.
    pub(super) tickets: u64,
    /// Counts the times that a sequence was given a slot.
    pub(super) seatings: u64,
    /// Sequences put aside since the last step.
    pub(super) preempted: u32,
    /// Most rows of a step that prompts get.
    pub(super) prefill_rows_max: usize,
    pub(super) sampler: Sampler,
    /// Whom the backend knows in each slot, to edit logits for: the seating, and of how many tokens, those included that it will
    /// have chosen when it has done what it is asked.
    pub(super) seated: Vec<(u64, usize)>,
    pub(super) masks: MaskMaker,
    /// The step that is done next, and the one after it where that is begun beside it.
    pub(super) now: Planned,
    pub(super) next: Planned,
    /// True when `now` is begun on the device.
    pub(super) is_begun: bool,
    /// Slots whose prompts are being read, in order of admission, with rows to go, and what they get of this step.
    pub(super) prompts: Vec<usize>,
    pub(super) pending: Vec<usize>,
    pub(super) shares: Vec<usize>,
    /// The tokens among them that the backend chose, in order.
    pub(super) chosen: Vec<u32>,
    /// Tokens sampled in this step.
    pub(super) sampled: Vec<Sampled>,
    /// Their likeliest alternatives, one sample's after the other's.
    pub(super) tops: Vec<(u32, f32)>,
    /// The likeliest tokens in one place of a prompt.
    pub(super) top_of_prompt: Vec<(u32, f32)>,
}

impl Engine {
    /// An engine on the CPU.
    ///
    /// # Errors
    ///
    /// When the options contradict each other, ask for too much memory, or the system refuses threads.
    pub fn new(model: Arc<Model>, options: EngineOptions) -> Result<Engine, EngineError> {
        let backend = CpuBackend::new(CpuOptions { threads: options.threads, isa: options.isa })?;
        Engine::on_backend(model, options, backend)
    }
}

impl<B: Backend> Engine<B> {
    /// An engine on any backend.
    ///
    /// # Errors
    ///
    /// When the options contradict each other, ask for too much memory, or the device has no room.
    pub fn on_backend(model: Arc<Model>, options: EngineOptions, mut backend: B) -> Result<Engine<B>, EngineError> {
        check_options(&model, &options, model.kv_block_bytes::<B>())?;
        let o = &options;
        // A table is as long as the longest sequence can be.
        let table_len = model.config.context_length.div_ceil(BLOCK_LEN).min(o.kv_blocks_max);
        let network = Decoder::new(&model.config, &model.weights, &backend, o.step_rows_max, samples_max(o))?;
        let c = &model.config;
        let cache = backend.cache(c.kv_shape(o.kv_blocks_max))?;
        let shape = StepShape {
            rows_max: o.step_rows_max,
            tables_len: o.slots_max * table_len,
            table_len,
            cols_max: c.embedding_length.max(c.feed_forward_length).max(c.head_count * c.head_len),
            head_count: c.head_count,
            head_count_kv: c.head_count_kv,
            head_len: c.head_len,
            context_max: table_len * BLOCK_LEN,
            choices_max: o.slots_max,
            vocab_len: c.vocab_len,
        };
        backend.reserve(&shape, &c.ropes)?;
        Ok(Engine {
            network,
            cache,
            kv: KvBlocks::new(o.kv_blocks_max),
            sessions: Sessions::new(o.sessions_max),
            slots: (0..o.slots_max).map(|_| None).collect(),
            order: Vec::with_capacity(o.slots_max),
            paused: Vec::with_capacity(o.slots_max),
            tickets: 0,
            seatings: 0,
            preempted: 0,
            prefill_rows_max: o.step_rows_max,
            seated: vec![(0, 0); o.slots_max],
            masks: MaskMaker::new(o.slots_max),
            sampler: Sampler::new(model.config.vocab_len, model.tokenizer().ends_of_generation()),
            now: Planned::new(&options, table_len, 0),
            next: Planned::new(&options, table_len, 1),
            is_begun: false,
            prompts: Vec::with_capacity(o.slots_max),
            pending: Vec::with_capacity(o.slots_max),
            shares: Vec::with_capacity(o.slots_max),
            chosen: Vec::with_capacity(o.slots_max),
            sampled: Vec::with_capacity(o.slots_max),
            tops: Vec::new(),
            top_of_prompt: Vec::new(),
            backend,
            options,
            model,
        })
    }

    /// Sequences in slots.
    pub fn running_count(&self) -> usize {
        self.order.len()
    }

    /// Sequences that were put aside and wait for room.
    pub fn paused_count(&self) -> usize {
        self.paused.len()
    }

    /// Slots that are free.
    pub fn slots_free(&self) -> usize {
        self.slots.len() - self.order.len()
    }

    /// True when a step would have nothing to do.
    pub fn is_idle(&self) -> bool {
        self.order.is_empty() && self.paused.is_empty()
    }

    /// How full the KV cache is.
    pub fn kv_usage(&self) -> KvUsage {
        KvUsage {
            blocks_used: self.kv.used_count(),
            blocks_cached: self.kv.idle_count(),
            blocks_max: self.kv.block_count(),
            block_bytes: self.model.kv_block_bytes::<B>(),
        }
    }

    /// Blocks that a sequence of this size takes, if nothing of it is cached.
    pub fn blocks_needed(&self, prompt_len: usize, max_tokens: u32) -> usize {
        (prompt_len + max_tokens as usize).div_ceil(BLOCK_LEN)
    }

    /// What a session has in the KV cache at this moment. While a sequence of it runs, that is what the sequence has.
    pub fn session_kv(&self, session: u128) -> SessionKv {
        let block_bytes = self.model.kv_block_bytes::<B>();
        let running = self.order.iter().rev().filter_map(|slot| self.slots[*slot].as_ref());
        match running.into_iter().find(|s| s.request.session == Some(session)) {
            None => self.sessions.kv(&self.kv, session, block_bytes),
            Some(sequence) => SessionKv {
                bytes: sequence.table.len() * block_bytes,
                cached_tokens: sequence.computed,
                total_tokens: sequence.tokens.len(),
            },
        }
    }

    /// Forgets a session and frees at once the blocks that only it needs; those of its running sequences are freed when
    /// they end.
    pub fn drop_session(&mut self, session: u128) {
        let running = self.slots.iter_mut().flatten().chain(&mut self.paused);
        for sequence in running.filter(|s| s.request.session == Some(session)) {
            sequence.request.session = None;
            sequence.orphaned = true;
        }
        self.sessions.forget(&mut self.kv, session);
    }

    /// The model that it runs.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Names the arithmetic: tokens are bit-identical between engines of one build that give the same name.
    pub fn arithmetic(&self) -> &str {
        self.backend.arithmetic()
    }

    /// Logits after every one of some tokens, `[tokens, vocab]`, computed apart from all sequences and the cache.
    ///
    /// # Errors
    ///
    /// When the device fails, a token is unknown, or there are too few free blocks.
    pub fn forward_logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        let vocab_len = self.model.config.vocab_len;
        if let Some(token) = tokens.iter().find(|t| **t as usize >= vocab_len) {
            return Err(EngineError::Tokens(format!("token {token} is none of the model's {vocab_len}")));
        }
        let needed = tokens.len().div_ceil(BLOCK_LEN);
        let mut table = Vec::new();
        // The step that may be begun keeps what it was planned as.
        let (batch, table_len) = (&mut self.next.batch, self.now.batch.table_len);
        if needed > table_len || self.kv.take(&[], needed, &mut table).is_none() {
            return Err(EngineError::Tokens(format!("{} tokens need {needed} blocks of KV memory", tokens.len())));
        }
        let chunk_len = self.options.slots_max;
        let mut out = Vec::with_capacity(tokens.len() * vocab_len);
        let mut result = Ok(());
        for (index, chunk) in tokens.chunks(chunk_len).enumerate() {
            batch.clear();
            batch.stretched[0] = self.model.config.is_stretched(tokens.len());
            batch.tables[..table.len()].copy_from_slice(&table);
            for (i, token) in chunk.iter().enumerate() {
                batch.push(*token, (index * chunk_len + i) as u32, 0);
                batch.sample_rows.push(i as u32);
            }
            let forward = self.network.forward(&mut self.backend, &mut self.cache, batch);
            match forward.and_then(|()| self.network.logits(&mut self.backend, 0..chunk.len())) {
                Ok(logits) => out.extend_from_slice(logits),
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        self.kv.release(&table);
        result?;
        Ok(out)
    }

    /// Checks everything that must hold between two steps. Slow: for tests.
    #[doc(hidden)]
    pub fn check_integrity(&self) {
        let sequences: Vec<&Sequence> = self.order.iter().map(|s| self.slots[*s].as_ref().expect("taken")).collect();
        assert_eq!(self.slots.iter().flatten().count(), self.order.len(), "a slot is taken by nobody");
        assert!(sequences.is_sorted_by_key(|s| s.ticket), "the order of admission is lost");
        assert!(self.paused.is_sorted_by_key(|s| s.ticket) && self.paused.iter().all(|s| s.table.is_empty()));
        for s in &sequences {
            assert_eq!(
                s.table.len(),
                s.tokens_max().div_ceil(BLOCK_LEN),
                "a sequence's blocks are not what it reserved"
            );
            assert!(s.published <= s.computed / BLOCK_LEN && s.computed < s.tokens.len());
        }
        let tables: Vec<&[u32]> = sequences.iter().map(|s| &s.table[..]).collect();
        self.kv.check(&tables);
    }
}

impl<B: Backend> std::fmt::Debug for Engine<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("options", &self.options)
            .field("running", &self.order.len())
            .finish_non_exhaustive()
    }
}

/// Rows of logits that one step may want.
fn samples_max(o: &EngineOptions) -> usize {
    o.step_rows_max.min(o.slots_max.saturating_add(SCORED_ROWS_MAX))
}

fn check_options(model: &Model, o: &EngineOptions, block_bytes: usize) -> Result<(), EngineError> {
    let wrong = |text: String| Err(EngineError::Options(text));
    if o.slots_max == 0 || o.kv_blocks_max == 0 || o.threads > 1024 {
        return wrong(format!(
            "slots_max {} and kv_blocks_max {} must be at least 1, threads {} at most 1024",
            o.slots_max, o.kv_blocks_max, o.threads
        ));
    }
    if o.step_rows_max < o.slots_max {
        return wrong(format!(
            "step_rows_max {} is under slots_max {}: every slot needs a row",
            o.step_rows_max, o.slots_max
        ));
    }
    if u32::try_from(o.kv_blocks_max).is_err() || u32::try_from(o.step_rows_max).is_err() {
        return wrong("kv_blocks_max and step_rows_max must fit 32 bits".to_owned());
    }
    let c = &model.config;
    let row_len =
        3 * c.embedding_length + 2 * (c.head_count + c.head_count_kv) * c.head_len + 2 * c.feed_forward_length;
    let floats = o.step_rows_max as u64 * row_len as u64 + samples_max(o) as u64 * c.vocab_len as u64;
    let activation_bytes = floats.saturating_mul(4);
    let kv_bytes = (o.kv_blocks_max as u64).saturating_mul(block_bytes as u64);
    if kv_bytes.saturating_add(activation_bytes) > o.memory_bytes_max {
        return Err(EngineError::TooMuchMemory {
            kv_blocks_max: o.kv_blocks_max,
            block_bytes,
            activation_bytes,
            memory_bytes_max: o.memory_bytes_max,
        });
    }
    Ok(())
}
