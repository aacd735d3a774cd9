//! A sequence: what is asked of it, where it stands, and who hears of its tokens.

use std::sync::Arc;

use crate::backend::{Choice, EDITED_MAX, Pick, Seat};
use crate::constraint::Progress;
use crate::pooling::Pool;
use crate::{Constraint, Pooling, SamplingParams};

/// What a sequence is to do.
#[derive(Clone, Debug, Default)]
pub struct SequenceRequest {
    /// The caller's name for it; no two sequences in an engine may share one.
    pub id: u64,
    /// Its tokens, one at least.
    pub prompt: Arc<[u32]>,
    /// Most tokens to generate; none when a vector is wanted, one at least unless the prompt's own tokens are.
    pub max_tokens: u32,
    /// How tokens are picked.
    pub sampling: SamplingParams,
    /// It may be put aside for one that is not, and is computed again when room returns.
    pub preemptible: bool,
    /// Whose context this is.
    pub session: Option<u128>,
    /// Use what the cache has of the prompt, and leave in the cache what was computed.
    pub reuse: bool,
    /// Give the logarithm of each token's probability.
    pub want_logprobs: bool,
    /// Give this many of the likeliest tokens at each place, too.
    pub top_logprobs: u32,
    /// Give the logarithm of the probability of each of the prompt's tokens but the first, and `top_logprobs` of the likeliest
    /// in its place. All of the prompt is computed for it, whatever the cache has.
    pub want_prompt_logprobs: bool,
    /// Go on after an end-of-generation token as after any other. Not with a constraint: it says where the answer ends.
    pub ignore_end: bool,
    /// What the answer must look like.
    pub constraint: Option<Constraint>,
    /// One vector for the prompt is wanted instead of an answer.
    pub pooling: Option<Pooling>,
}

/// What admission found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdmitInfo {
    /// Tokens of the prompt that are in the cache and are not computed again.
    pub cached_tokens: usize,
}

/// Why a sequence was not admitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// Every slot is taken by a sequence that this one may not put aside.
    #[error("every slot is taken")]
    NoSlot,
    /// There will be enough blocks when others have finished.
    #[error("there are not enough free blocks of KV memory now")]
    NoBlocks,
    /// It could not even run alone.
    #[error(
        "{tokens} tokens of prompt and answer need {blocks_needed} blocks; there are {blocks_max}, and the model's context is {context_length} tokens"
    )]
    NeverFits {
        /// Prompt and answer together.
        tokens: usize,
        /// Blocks for that.
        blocks_needed: usize,
        /// Blocks there are.
        blocks_max: usize,
        /// Tokens that the model can attend to.
        context_length: usize,
    },
    /// A sequence has one token of prompt at least, and generates one at least, unless something is wanted of the prompt itself.
    #[error("the prompt is empty or no token is asked for")]
    Empty,
    /// A token of the prompt is none of the model's.
    #[error("token {token} is none of the model's {vocab_len}")]
    UnknownToken {
        /// The first such token.
        token: u32,
        /// The vocabulary's size.
        vocab_len: usize,
    },
    /// Another sequence has this id.
    #[error("sequence {0} is in the engine already")]
    DuplicateId(u64),
    /// A sampling parameter that means nothing.
    #[error("sampling parameter {0} is out of range")]
    Sampling(&'static str),
}

/// What the receiver of a token wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The next one.
    Continue,
    /// No more: the sequence ends now.
    Stop,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model said an end-of-generation token, or the sink's verdict was to stop.
    Stop,
    /// It has generated as many tokens as were asked for.
    Length,
    /// Its constraint cannot be followed any further: it has grown beyond its bounds, or no token of the vocabulary fits.
    ConstraintFailed,
}

/// Hears of tokens, on the thread that steps the engine.
pub trait TokenSink {
    /// The next token of a sequence. End-of-generation tokens are not given, unless they are to be ignored.
    fn token(&mut self, id: u64, token: u32, logprob: Option<f32>) -> Verdict;

    /// The likeliest tokens at the place of the token that follows, the likeliest first, with the logarithms of their
    /// probabilities under the bare logits. Called before `token`, for sequences that want it.
    fn top_logprobs(&mut self, id: u64, top: &[(u32, f32)]) {
        let _ = (id, top);
    }

    /// A token of the prompt, `index` 1 or more, one after the other: the logarithm of its probability, and the likeliest tokens
    /// in its place as `top_logprobs` has them. For sequences that want it, before their first token.
    fn prompt_logprob(&mut self, id: u64, index: usize, token: u32, logprob: f32, top: &[(u32, f32)]) {
        let _ = (id, index, token, logprob, top);
    }

    /// The vector of a sequence that wanted one; it has ended, and `finished` follows. Length one, `embedding_length` elements.
    fn embedding(&mut self, id: u64, vector: &[f32]) {
        let _ = (id, vector);
    }

    /// A sequence has ended and its slot is free. Not called for one that was cancelled.
    fn finished(&mut self, id: u64, reason: FinishReason);

    /// True when `logits` is to be called for a sequence. They may have to be fetched for it from a device that needs them no more.
    fn wants_logits(&self, id: u64) -> bool {
        let _ = id;
        false
    }

    /// The bare logits that the next token of a sequence is sampled from, if they are wanted. For tools and tests.
    fn logits(&mut self, id: u64, logits: &[f32]) {
        let _ = (id, logits);
    }
}

/// What a step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepReport {
    /// Rows of sequences that are generating.
    pub rows_decode: u32,
    /// Rows of prompts, and of sequences that were put aside and are computed again.
    pub rows_prefill: u32,
    /// Cells attended to, over all rows.
    pub context_cells: u64,
    /// Tokens of prompts whose probabilities were given.
    pub scored: u32,
    /// Tokens sampled.
    pub sampled: u32,
    /// Sequences that ended.
    pub finished: u32,
    /// Sequences put aside since the step before.
    pub preempted: u32,
    /// Sequences taken up again in this step.
    pub resumed: u32,
}

/// A token that was drawn in this step.
#[derive(Clone, Copy)]
pub(super) struct Sampled {
    pub token: u32,
    pub logprob: Option<f32>,
    /// Where its alternatives end in the step's list of them; they begin where those of the token before end.
    pub top_end: usize,
}

/// A sequence in a slot, or put aside.
pub(super) struct Sequence {
    pub request: SequenceRequest,
    /// Prompt and answer. Has room for all of it from the start.
    pub tokens: Vec<u32>,
    /// Leading tokens whose cells are computed.
    pub computed: usize,
    /// Its blocks; empty when it is put aside.
    pub table: Vec<u32>,
    /// Leading blocks of the table that are in the prefix tree.
    pub published: usize,
    /// Order of admission.
    pub ticket: u64,
    /// Which of all times that a sequence was given a slot this is: a step that was begun for another has nothing for it.
    pub seating: u64,
    /// Its session was dropped while it ran: what it leaves in the cache is freed at its end.
    pub orphaned: bool,
    /// Set by commit, carried out by flush.
    pub ended: Option<FinishReason>,
    /// Where it stands in its constraint, from the first token on.
    pub progress: Option<Progress>,
    /// What its vector is made of so far.
    pub pool: Pool,
    /// Leading rows of the prompt after which the next token's probability was given, in a sequence that wants it.
    pub scored: usize,
}

impl Sequence {
    pub fn new(request: SequenceRequest, ticket: u64, block_count: usize) -> Sequence {
        let mut tokens = Vec::with_capacity(request.prompt.len() + request.max_tokens as usize);
        tokens.extend_from_slice(&request.prompt);
        let table = Vec::with_capacity(block_count);
        Sequence {
            request,
            tokens,
            computed: 0,
            table,
            published: 0,
            ticket,
            seating: 0,
            orphaned: false,
            ended: None,
            progress: None,
            pool: Pool::default(),
            scored: 0,
        }
    }

    pub fn prompt_len(&self) -> usize {
        self.request.prompt.len()
    }

    pub fn answer_len(&self) -> usize {
        self.tokens.len() - self.prompt_len()
    }

    /// Prompt and answer at their longest.
    pub fn tokens_max(&self) -> usize {
        self.prompt_len() + self.request.max_tokens as usize
    }

    /// Tokens that still have no cell.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Of the next `count` rows, the positions of those whose logits say how likely the prompt's next token is.
    pub fn scored_rows(&self, count: usize) -> std::ops::Range<usize> {
        if !self.request.want_prompt_logprobs {
            return 0..0;
        }
        // When it was put aside meanwhile, some are computed again that were given.
        let end = (self.computed + count).min(self.prompt_len() - 1);
        self.computed.max(self.scored).min(end)..end
    }

    /// True when it ends with its prompt.
    pub fn wants_no_token(&self) -> bool {
        self.request.max_tokens == 0
    }

    /// How token `index` is chosen from one of the step's samples, if that can be left to the backend. Not what a grammar says: its
    /// masks are the host's. `slot` is where it sits.
    pub fn pick_of_backend(&self, sample: u32, slot: usize, index: usize, ends: &[u32]) -> Option<Pick> {
        let r = &self.request;
        if r.constraint.is_some() || r.sampling.logit_bias.len() + ends.len() > EDITED_MAX {
            return None;
        }
        let edits = r.sampling.edits(index - self.prompt_len()).map(|edits| (slot, edits));
        let choice = Choice::new(&r.sampling, index as u64);
        Some(Pick { sample, edits, choice, keeps_logits: self.wants_logprobs() })
    }

    /// What a backend has to know of it for edits.
    pub fn seat<'a>(&'a self, ends: &'a [u32]) -> Seat<'a> {
        let sampling = &self.request.sampling;
        let has_penalties = sampling.edits(self.answer_len()).is_some_and(|edits| edits.penalties.is_some());
        Seat {
            tokens: has_penalties.then_some(&self.tokens[..]),
            prompt_len: self.prompt_len(),
            biases: &sampling.logit_bias,
            ends,
        }
    }

    /// Logarithms of probabilities of its answer's tokens, or of others in their places.
    pub fn wants_logprobs(&self) -> bool {
        self.request.want_logprobs || self.request.top_logprobs > 0
    }

    /// True when the next row is that of the token sampled last.
    pub fn decodes(&self) -> bool {
        self.pending() == 1 && self.tokens.len() > self.prompt_len()
    }
}
