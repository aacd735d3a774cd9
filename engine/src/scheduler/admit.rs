//! Coming and going between steps: admission with all blocks reserved, preemption, resumption, cancel.

use super::engine::Engine;
use super::sequence::{AdmitError, AdmitInfo, Sequence, SequenceRequest};
use crate::Pooling;
use crate::backend::{BLOCK_LEN, Backend};

impl<B: Backend> Engine<B> {
    /// Seats a sequence, with blocks for its longest possible end, so that nothing can run out later.
    ///
    /// One that is not preemptible may put preemptible ones aside, the last admitted first; they go on when room returns.
    /// While some are put aside, no new preemptible one is admitted.
    ///
    /// # Errors
    ///
    /// When there is no room now (`NoSlot`, `NoBlocks`: try again after a step), or never.
    pub fn admit(&mut self, request: SequenceRequest) -> Result<AdmitInfo, AdmitError> {
        let mut request = request;
        if request.pooling.is_some() {
            request.max_tokens = 0;
        }
        self.check(&request)?;
        request.want_prompt_logprobs &= request.pooling.is_none();
        // A mean needs the hidden state of every token, and its probability the logits before it; the cache has neither.
        request.reuse &= request.pooling != Some(Pooling::Mean) && !request.want_prompt_logprobs;
        // Its keys are rotated otherwise than those of a short sequence with the same tokens: they are not shared.
        let cells_max = request.prompt.len() + request.max_tokens as usize - 1;
        request.reuse &= !self.model.config.is_stretched(cells_max);
        if request.preemptible && !self.paused.is_empty() {
            return Err(AdmitError::NoSlot);
        }
        if !request.preemptible {
            self.make_room_for(&request)?;
        }
        self.tickets += 1;
        let sequence = Sequence::new(request, self.tickets, self.now.batch.table_len);
        match self.seat(sequence) {
            Ok(cached_tokens) => Ok(AdmitInfo { cached_tokens }),
            Err((_, error)) => Err(error),
        }
    }

    /// Ends a sequence without a word to the sink. True if it was there.
    pub fn cancel(&mut self, id: u64) -> bool {
        let slot = self.order.iter().copied().find(|s| self.slots[*s].as_ref().is_some_and(|q| q.request.id == id));
        if let Some(slot) = slot {
            let sequence = self.unseat(slot);
            self.remember(sequence);
            return true;
        }
        let index = self.paused.iter().position(|q| q.request.id == id);
        if let Some(index) = index {
            let sequence = self.paused.remove(index);
            self.remember(sequence);
        }
        index.is_some()
    }

    fn check(&self, request: &SequenceRequest) -> Result<(), AdmitError> {
        let is_of_the_prompt = request.pooling.is_some() || request.want_prompt_logprobs;
        if request.prompt.is_empty() || (request.max_tokens == 0 && !is_of_the_prompt) {
            return Err(AdmitError::Empty);
        }
        let vocab_len = self.model.config.vocab_len;
        if let Some(token) = request.prompt.iter().find(|t| **t as usize >= vocab_len) {
            return Err(AdmitError::UnknownToken { token: *token, vocab_len });
        }
        request.sampling.check(vocab_len).map_err(AdmitError::Sampling)?;
        let tokens = request.prompt.len() + request.max_tokens as usize;
        let (blocks_needed, blocks_max) = (tokens.div_ceil(BLOCK_LEN), self.kv.block_count());
        let context_length = self.model.config.context_length;
        if tokens > context_length || blocks_needed > blocks_max {
            return Err(AdmitError::NeverFits { tokens, blocks_needed, blocks_max, context_length });
        }
        let mut known = self.slots.iter().flatten().chain(&self.paused);
        if known.any(|s| s.request.id == request.id) {
            return Err(AdmitError::DuplicateId(request.id));
        }
        Ok(())
    }

    /// Puts preemptible sequences aside until the request fits. Nobody is put aside if that would not help.
    fn make_room_for(&mut self, request: &SequenceRequest) -> Result<(), AdmitError> {
        let pinned = self.sequences().filter(|s| !s.request.preemptible);
        if pinned.clone().count() == self.slots.len() {
            return Err(AdmitError::NoSlot);
        }
        let needed = (request.prompt.len() + request.max_tokens as usize).div_ceil(BLOCK_LEN);
        let matched: Vec<u32> = self.kv.path(reusable(request, &request.prompt)).collect();
        let mut stay: Vec<u32> = pinned.flat_map(|s| s.table.iter().copied()).collect();
        stay.sort_unstable();
        stay.dedup();
        let shared = matched.iter().filter(|b| stay.binary_search(b).is_ok()).count();
        if needed - shared > self.kv.block_count() - stay.len() {
            return Err(AdmitError::NoBlocks);
        }
        while self.slots_free() == 0 || !self.kv.fits(reusable(request, &request.prompt), needed) {
            let last =
                self.order.iter().copied().rfind(|s| self.slots[*s].as_ref().is_some_and(|q| q.request.preemptible));
            self.preempt(last.expect("without preemptible sequences it would fit, as was just counted"));
        }
        Ok(())
    }

    fn preempt(&mut self, slot: usize) {
        let sequence = self.unseat(slot);
        let at = self.paused.partition_point(|s| s.ticket < sequence.ticket);
        self.paused.insert(at, sequence);
        self.preempted += 1;
    }

    /// Seats those who were put aside, in order of admission, as long as there is room. Gives how many.
    pub(super) fn resume(&mut self) -> u32 {
        let mut resumed = 0;
        while !self.paused.is_empty() {
            let sequence = self.paused.remove(0);
            if let Err((sequence, _)) = self.seat(sequence) {
                self.paused.insert(0, *sequence);
                break;
            }
            resumed += 1;
        }
        assert!(!self.order.is_empty() || self.paused.is_empty(), "an empty engine has room for any admitted sequence");
        resumed
    }

    /// Gives a sequence a slot and its blocks; gives it back when there are none.
    fn seat(&mut self, mut sequence: Sequence) -> Result<usize, (Box<Sequence>, AdmitError)> {
        let Some(slot) = self.slots.iter().position(Option::is_none) else {
            return Err((Box::new(sequence), AdmitError::NoSlot));
        };
        let needed = sequence.tokens_max().div_ceil(BLOCK_LEN);
        let prefix = reusable(&sequence.request, &sequence.tokens);
        let Some(matched) = self.kv.take(prefix, needed, &mut sequence.table) else {
            return Err((Box::new(sequence), AdmitError::NoBlocks));
        };
        (sequence.computed, sequence.published) = (matched * BLOCK_LEN, matched);
        self.seatings += 1;
        sequence.seating = self.seatings;
        let at = self.order.partition_point(|s| self.slots[*s].as_ref().is_some_and(|q| q.ticket < sequence.ticket));
        self.order.insert(at, slot);
        self.slots[slot] = Some(sequence);
        Ok(matched * BLOCK_LEN)
    }

    /// Takes a sequence out of its slot and lets its blocks go.
    pub(super) fn unseat(&mut self, slot: usize) -> Sequence {
        let mut sequence = self.slots[slot].take().expect("a slot in the order is taken");
        self.order.retain(|s| *s != slot);
        let serials = sequence
            .orphaned
            .then(|| sequence.table[..sequence.published].iter().map(|b| (*b, self.kv.serial(*b))).collect::<Vec<_>>());
        self.kv.release(&sequence.table);
        for (block, serial) in serials.into_iter().flatten().rev() {
            self.kv.free_if_unneeded(block, serial);
        }
        sequence.table.clear();
        (sequence.computed, sequence.published) = (0, 0);
        sequence
    }

    /// Keeps the context of a sequence that has ended for its session.
    pub(super) fn remember(&mut self, sequence: Sequence) {
        if let Some(session) = sequence.request.session {
            self.sessions.remember(&mut self.kv, session, &sequence.tokens);
        }
    }

    fn sequences(&self) -> impl Iterator<Item = &Sequence> + Clone {
        self.order.iter().filter_map(|slot| self.slots[*slot].as_ref())
    }
}

/// The part of a sequence that may come from the cache: without its last token, which must be computed for its logits.
fn reusable<'a>(request: &SequenceRequest, tokens: &'a [u32]) -> &'a [u32] {
    if request.reuse { &tokens[..tokens.len() - 1] } else { &[] }
}
