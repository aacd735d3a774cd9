//! One step: admit, plan, forward, sample, commit, flush.

use std::ops::Range;

use super::engine::{Engine, EngineError};
use super::sequence::{FinishReason, Sampled, StepReport, TokenSink, Verdict};
use crate::backend::{BLOCK_LEN, Backend};
use crate::sampler::{LogSum, top_logprobs};

impl<B: Backend> Engine<B> {
    /// Runs one step over all sequences and gives the tokens to `sink`.
    ///
    /// Every sequence that is generating gets one row; what is left of `step_rows_max`, or as much of it as `limit_prefill`
    /// allows, goes to prompts: see [`share_rows`](super::share_rows). With nothing to do it returns at once.
    ///
    /// Where the backend chooses the tokens, the device has begun with the step after this one by then, if it can: what the host
    /// does between two steps it does beside one.
    ///
    /// # Errors
    ///
    /// When the device fails. What it then holds is unknown: do not step again.
    pub fn step(&mut self, sink: &mut (impl TokenSink + ?Sized)) -> Result<StepReport, EngineError> {
        let preempted = std::mem::take(&mut self.preempted);
        // Admit: newcomers come by `admit`; here those return who were put aside.
        let resumed = self.resume();
        // Of a step that was begun for sequences which have all gone since nothing is wanted. The device is left to it: its cells
        // are written before those of whoever has the blocks next.
        if !(std::mem::take(&mut self.is_begun) && self.is_wanted()) {
            self.plan(sink);
            if self.now.batch.rows() > 0 {
                self.network.forward(&mut self.backend, &mut self.cache, &self.now.batch)?;
                self.backend.start(&self.now.batch);
            }
        }
        let mut report = StepReport { preempted, resumed, ..self.now.report };
        if self.now.batch.rows() > 0 {
            self.is_begun = self.plan_next(sink);
            if self.is_begun {
                self.network.forward(&mut self.backend, &mut self.cache, &self.next.batch)?;
                self.backend.start(&self.next.batch);
            }
            self.sample(sink)?;
            self.pool_hidden_states()?;
            report.sampled = self.commit(sink);
            report.finished = self.flush(sink);
            if self.is_begun {
                std::mem::swap(&mut self.now, &mut self.next);
            }
        }
        Ok(report)
    }

    /// True when a row of `now` is for somebody who is still here.
    fn is_wanted(&self) -> bool {
        let mut slots = self.now.batch.table_of_row.iter().map(|slot| *slot as usize);
        slots.any(|slot| self.slots[slot].as_ref().is_some_and(|s| self.now.is_for(slot, s)))
    }

    /// Tokens come from the backend where it chooses them, else from logits. Only what the host looks at is read: samples that
    /// are neighbours at once, for each read waits for the device.
    fn sample(&mut self, sink: &mut (impl TokenSink + ?Sized)) -> Result<(), EngineError> {
        self.sampled.clear();
        self.tops.clear();
        self.chosen.clear();
        if !self.now.batch.picks.is_empty() {
            self.chosen.extend_from_slice(self.backend.chosen(&self.now.batch)?);
        }
        let sample_count = self.now.batch.sample_rows.len();
        if sample_count == 0 {
            // A failure belongs to the step that it happened in.
            self.network.logits(&mut self.backend, 0..0)?;
        }
        let (mut start, mut kept) = (0, 0);
        for index in 0..=self.now.batch.picks.len() {
            // The next sample that the backend chose, or the end of all.
            let pick = self.now.batch.picks.get(index).copied();
            let end = pick.map_or(sample_count, |pick| pick.sample as usize);
            if start < end {
                self.sample_on_host(start..end, sink)?;
            }
            if let Some(pick) = pick {
                self.take_chosen(index, end, pick.keeps_logits.then_some(kept));
                kept += usize::from(pick.keeps_logits);
            }
            start = end + 1;
        }
        Ok(())
    }

    /// Takes over the token of a pick. `kept` says which of the step's kept rows of logits it was chosen from, if it was from one.
    fn take_chosen(&mut self, index: usize, sample: usize, kept: Option<usize>) {
        let (batch, token) = (&self.now.batch, self.chosen[index]);
        let slot = batch.table_of_row[batch.sample_rows[sample] as usize] as usize;
        // What comes with the token of somebody who has gone nobody asks for.
        let sequence = self.slots[slot].as_ref().filter(|sequence| self.now.is_for(slot, sequence));
        let mut logprob = None;
        if let (Some(sequence), Some(kept)) = (sequence, kept) {
            let vocab_len = self.model.config.vocab_len;
            let logits = &self.backend.kept(batch)[kept * vocab_len..][..vocab_len];
            let of = LogSum::new(logits);
            let request = &sequence.request;
            if request.top_logprobs > 0 {
                top_logprobs(logits, of, request.top_logprobs as usize, &mut self.tops);
            }
            logprob = request.want_logprobs.then(|| of.logprob(logits[token as usize]));
        }
        self.sampled.push(Sampled { token, logprob, top_end: self.tops.len() });
    }

    /// Looks at the logits of some samples: chooses tokens, and tells of prompts and logits who wants them.
    fn sample_on_host(
        &mut self,
        samples: Range<usize>,
        sink: &mut (impl TokenSink + ?Sized),
    ) -> Result<(), EngineError> {
        let vocab_len = self.model.config.vocab_len;
        let batch = &self.now.batch;
        let rows = &batch.sample_rows[samples.clone()];
        let logits = self.network.logits(&mut self.backend, samples)?;
        for (row, logits) in rows.iter().zip(logits.chunks_exact(vocab_len)) {
            let slot = batch.table_of_row[*row as usize] as usize;
            let sequence = self.slots[slot].as_mut().expect("a planned slot is taken");
            let next = batch.positions[*row as usize] as usize + 1;
            if let Some(token) = sequence.tokens.get(next) {
                let (request, of) = (&sequence.request, LogSum::new(logits));
                self.top_of_prompt.clear();
                if request.top_logprobs > 0 {
                    top_logprobs(logits, of, request.top_logprobs as usize, &mut self.top_of_prompt);
                }
                let logprob = of.logprob(logits[*token as usize]);
                sink.prompt_logprob(request.id, next, *token, logprob, &self.top_of_prompt);
                sequence.scored = next;
                continue;
            }
            let prompt_len = sequence.prompt_len();
            let request = &sequence.request;
            if sink.wants_logits(request.id) {
                sink.logits(request.id, logits);
            }
            // As a rule the mask was made while the logits were.
            let mask = match &mut sequence.progress {
                None => None,
                Some(progress) => match progress.mask() {
                    Some(mask) => Some(mask),
                    None => {
                        sequence.ended = Some(FinishReason::ConstraintFailed);
                        self.sampled.push(Sampled { token: 0, logprob: None, top_end: self.tops.len() });
                        continue;
                    }
                },
            };
            let token = self.sampler.sample_masked(logits, &request.sampling, &sequence.tokens, prompt_len, mask);
            let of = sequence.wants_logprobs().then(|| LogSum::new(logits));
            let request = &sequence.request;
            if let Some(of) = of.filter(|_| request.top_logprobs > 0) {
                top_logprobs(logits, of, request.top_logprobs as usize, &mut self.tops);
            }
            let logprob = of.filter(|_| request.want_logprobs).map(|of| of.logprob(logits[token as usize]));
            self.sampled.push(Sampled { token, logprob, top_end: self.tops.len() });
        }
        Ok(())
    }

    /// Gives each row's hidden state to the vector that it belongs to.
    fn pool_hidden_states(&mut self) -> Result<(), EngineError> {
        let batch = &self.now.batch;
        if !batch.wants_hidden {
            return Ok(());
        }
        let embedding_length = self.model.config.embedding_length;
        let hidden = self.network.hidden_states(&mut self.backend, batch.rows())?;
        for (row, state) in hidden.chunks_exact(embedding_length).enumerate() {
            let slot = batch.table_of_row[row] as usize;
            let sequence = self.slots[slot].as_mut().expect("a planned slot is taken");
            if let Some(pooling) = sequence.request.pooling {
                sequence.pool.take(pooling, batch.positions[row] as usize, state);
            }
        }
        Ok(())
    }

    /// Takes over what was computed: cells, full blocks, and tokens in the order of the rows; gives how many tokens. Rows of a
    /// sequence that has gone since, or was put aside, are for nobody.
    fn commit(&mut self, sink: &mut (impl TokenSink + ?Sized)) -> u32 {
        let now = &self.now;
        for row in 0..now.batch.rows() {
            let slot = now.batch.table_of_row[row] as usize;
            let Some(sequence) = self.slots[slot].as_mut().filter(|s| now.is_for(slot, s)) else { continue };
            sequence.computed = now.batch.positions[row] as usize + 1;
            if sequence.computed.is_multiple_of(BLOCK_LEN) && sequence.request.reuse {
                let index = sequence.computed / BLOCK_LEN - 1;
                let tokens = sequence.tokens[index * BLOCK_LEN..].first_chunk().expect("a full block has its tokens");
                self.kv.publish(&mut sequence.table, index, tokens);
                sequence.published = index + 1;
            }
        }
        for slot in &now.done_slots {
            let sequence = self.slots[*slot].as_mut().expect("a planned slot is taken");
            sequence.ended = Some(match sequence.request.pooling {
                Some(_) => {
                    sink.embedding(sequence.request.id, &sequence.pool.finish());
                    FinishReason::Stop
                }
                None => FinishReason::Length,
            });
        }
        let (mut top_start, mut count) = (0, 0);
        for (slot, &Sampled { token, logprob, top_end }) in now.sample_slots.iter().zip(&self.sampled) {
            let top = &self.tops[std::mem::replace(&mut top_start, top_end)..top_end];
            let Some(sequence) = self.slots[*slot].as_mut().filter(|s| now.is_for(*slot, s)) else { continue };
            count += 1;
            if sequence.ended.is_some() {
                continue;
            }
            let request = &sequence.request;
            sequence.tokens.push(token);
            let goes_on = request.ignore_end && request.constraint.is_none();
            if self.model.tokenizer().is_end_of_generation(token) && !goes_on {
                sequence.ended = Some(FinishReason::Stop);
                continue;
            }
            if !top.is_empty() {
                sink.top_logprobs(request.id, top);
            }
            let verdict = sink.token(request.id, token, logprob);
            let is_complete = match &mut sequence.progress {
                Some(progress) if verdict == Verdict::Continue => self.masks.advance(progress, token),
                _ => false,
            };
            sequence.ended = match verdict {
                Verdict::Stop => Some(FinishReason::Stop),
                Verdict::Continue if is_complete => Some(FinishReason::Stop),
                Verdict::Continue if sequence.tokens.len() == sequence.tokens_max() => Some(FinishReason::Length),
                Verdict::Continue => None,
            };
        }
        count
    }

    /// Frees the slots of those who have ended, and says so.
    fn flush(&mut self, sink: &mut (impl TokenSink + ?Sized)) -> u32 {
        let mut finished = 0;
        for index in 0..self.now.sample_slots.len() + self.now.done_slots.len() {
            let slots = self.now.sample_slots.iter().chain(&self.now.done_slots);
            let slot = *slots.clone().nth(index).expect("index is below the number of slots");
            let ended = self.slots[slot].as_ref().and_then(|s| s.ended);
            let Some(reason) = ended else { continue };
            let sequence = self.unseat(slot);
            let id = sequence.request.id;
            self.remember(sequence);
            sink.finished(id, reason);
            finished += 1;
        }
        finished
    }
}
