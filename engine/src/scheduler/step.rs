//! One step: admit, plan, forward, sample, commit, flush.

use std::ops::Range;

use super::engine::{Engine, EngineError, SCORED_ROWS_MAX};
use super::prefill::share_rows;
use super::sequence::{FinishReason, Sampled, StepReport, TokenSink, Verdict};
use crate::backend::{BLOCK_LEN, Backend};
use crate::sampler::{logprob, top_logprobs};

impl<B: Backend> Engine<B> {
    /// Runs one step over all sequences and gives the tokens to `sink`.
    ///
    /// Every sequence that is generating gets one row; what is left of `step_rows_max`, or as much of it as `limit_prefill`
    /// allows, goes to prompts: see [`share_rows`]. With nothing to do it returns at once.
    ///
    /// # Errors
    ///
    /// When the device fails. What it then holds is unknown: do not step again.
    pub fn step(&mut self, sink: &mut (impl TokenSink + ?Sized)) -> Result<StepReport, EngineError> {
        let mut report = StepReport { preempted: std::mem::take(&mut self.preempted), ..StepReport::default() };
        // Admit: newcomers come by `admit`; here those return who were put aside.
        report.resumed = self.resume();
        self.plan(&mut report, sink);
        if self.batch.rows() > 0 {
            self.forward_and_sample(sink)?;
            self.pool_hidden_states()?;
            report.sampled = self.sampled.len() as u32;
            self.commit(sink);
            report.finished = self.flush(sink);
        }
        Ok(report)
    }

    /// Decides on the rows: decode rows first, then those of prompts.
    fn plan(&mut self, report: &mut StepReport, sink: &(impl TokenSink + ?Sized)) {
        self.batch.clear();
        self.sample_slots.clear();
        self.done_slots.clear();
        self.prompts.clear();
        self.pending.clear();
        for index in 0..self.order.len() {
            let slot = self.order[index];
            let sequence = self.slots[slot].as_ref().expect("a slot in the order is taken");
            if !sequence.decodes() {
                self.prompts.push(slot);
                self.pending.push(sequence.pending());
            } else if self.batch.rows() < self.options.step_rows_max {
                let left = self.options.step_rows_max - self.batch.rows();
                report.rows_decode += self.plan_sequence(slot, left, report, sink);
            }
        }
        let left = self.options.step_rows_max - self.batch.rows();
        share_rows(&self.pending, left.min(self.prefill_rows_max), &mut self.shares);
        // A prompt whose tokens are scored may take less than its share: the next one has what it leaves.
        let mut spare = 0;
        for index in 0..self.prompts.len() {
            let share = self.shares[index] + spare;
            let count = if share > 0 { self.plan_sequence(self.prompts[index], share, report, sink) } else { 0 };
            spare = share - count as usize;
            report.rows_prefill += count;
        }
    }

    /// Adds the next rows of one sequence, `left` at most, and gives how many.
    fn plan_sequence(
        &mut self,
        slot: usize,
        left: usize,
        report: &mut StepReport,
        sink: &(impl TokenSink + ?Sized),
    ) -> u32 {
        let sequence = self.slots[slot].as_ref().expect("a slot in the order is taken");
        let table_start = slot * self.batch.table_len;
        self.batch.tables[table_start..table_start + sequence.table.len()].copy_from_slice(&sequence.table);
        self.batch.stretched[slot] = self.model.config.is_stretched(sequence.tokens_max() - 1);
        let mut count = sequence.pending().min(left);
        let mut scored = sequence.scored_rows(count);
        let scored_left = SCORED_ROWS_MAX - report.scored as usize;
        if scored.len() > scored_left {
            scored.end = scored.start + scored_left;
            count = scored.end - sequence.computed;
        }
        self.batch.wants_hidden |= sequence.request.pooling.is_some();
        report.scored += scored.len() as u32;
        for position in sequence.computed..sequence.computed + count {
            if scored.contains(&position) {
                self.batch.sample_rows.push(self.batch.rows() as u32);
            }
            self.batch.push(sequence.tokens[position], position as u32, slot as u32);
            report.context_cells += position as u64 + 1;
        }
        if count == sequence.pending() && sequence.wants_no_token() {
            self.done_slots.push(slot);
        } else if count == sequence.pending() {
            let sequence = self.slots[slot].as_mut().expect("a slot in the order is taken");
            if let (Some(constraint), None) = (&sequence.request.constraint, &sequence.progress) {
                sequence.progress = Some(self.masks.begin(constraint));
            }
            if self.backend.chooses()
                && !sink.wants_logits(sequence.request.id)
                && let Some(choice) = sequence.choice_of_backend()
            {
                self.batch.choices.push((self.batch.sample_rows.len() as u32, choice));
            }
            self.batch.sample_rows.push(self.batch.rows() as u32 - 1);
            self.sample_slots.push(slot);
        }
        count as u32
    }

    /// Tokens come from the backend where it chooses them, else from logits. Only what the host looks at is read: samples that
    /// are neighbours at once, for each read waits for the device.
    fn forward_and_sample(&mut self, sink: &mut (impl TokenSink + ?Sized)) -> Result<(), EngineError> {
        self.network.forward(&mut self.backend, &mut self.cache, &self.batch)?;
        self.sampled.clear();
        self.tops.clear();
        self.chosen.clear();
        if !self.batch.choices.is_empty() {
            self.chosen.extend_from_slice(self.backend.chosen(self.batch.choices.len())?);
        }
        let sample_count = self.batch.sample_rows.len();
        if sample_count == 0 {
            // A failure belongs to the step that it happened in.
            self.network.logits(&mut self.backend, 0..0)?;
        }
        let mut start = 0;
        for index in 0..=self.batch.choices.len() {
            // The next sample that the backend chose, or the end of all.
            let end = self.batch.choices.get(index).map_or(sample_count, |(sample, _)| *sample as usize);
            if start < end {
                self.sample_on_host(start..end, sink)?;
            }
            if let Some(token) = self.chosen.get(index) {
                self.sampled.push(Sampled { token: *token, logprob: None, top_end: self.tops.len() });
            }
            start = end + 1;
        }
        Ok(())
    }

    /// Looks at the logits of some samples: chooses tokens, and tells of prompts and logits who wants them.
    fn sample_on_host(
        &mut self,
        samples: Range<usize>,
        sink: &mut (impl TokenSink + ?Sized),
    ) -> Result<(), EngineError> {
        let vocab_len = self.model.config.vocab_len;
        let rows = &self.batch.sample_rows[samples.clone()];
        let logits = self.network.logits(&mut self.backend, samples)?;
        for (row, logits) in rows.iter().zip(logits.chunks_exact(vocab_len)) {
            let slot = self.batch.table_of_row[*row as usize] as usize;
            let sequence = self.slots[slot].as_mut().expect("a planned slot is taken");
            let next = self.batch.positions[*row as usize] as usize + 1;
            if let Some(token) = sequence.tokens.get(next) {
                let request = &sequence.request;
                self.top_of_prompt.clear();
                if request.top_logprobs > 0 {
                    top_logprobs(logits, request.top_logprobs as usize, &mut self.top_of_prompt);
                }
                sink.prompt_logprob(request.id, next, *token, logprob(logits, *token), &self.top_of_prompt);
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
            if request.top_logprobs > 0 {
                top_logprobs(logits, request.top_logprobs as usize, &mut self.tops);
            }
            let logprob = request.want_logprobs.then(|| logprob(logits, token));
            self.sampled.push(Sampled { token, logprob, top_end: self.tops.len() });
        }
        Ok(())
    }

    /// Gives each row's hidden state to the vector that it belongs to.
    fn pool_hidden_states(&mut self) -> Result<(), EngineError> {
        if !self.batch.wants_hidden {
            return Ok(());
        }
        let embedding_length = self.model.config.embedding_length;
        let hidden = self.network.hidden_states(&mut self.backend, self.batch.rows())?;
        for (row, state) in hidden.chunks_exact(embedding_length).enumerate() {
            let slot = self.batch.table_of_row[row] as usize;
            let sequence = self.slots[slot].as_mut().expect("a planned slot is taken");
            if let Some(pooling) = sequence.request.pooling {
                sequence.pool.take(pooling, self.batch.positions[row] as usize, state);
            }
        }
        Ok(())
    }

    /// Takes over what was computed: cells, full blocks, and tokens in the order of the rows.
    fn commit(&mut self, sink: &mut (impl TokenSink + ?Sized)) {
        for row in 0..self.batch.rows() {
            let slot = self.batch.table_of_row[row] as usize;
            let sequence = self.slots[slot].as_mut().expect("a planned slot is taken");
            sequence.computed = self.batch.positions[row] as usize + 1;
            if sequence.computed.is_multiple_of(BLOCK_LEN) && sequence.request.reuse {
                let index = sequence.computed / BLOCK_LEN - 1;
                let tokens = sequence.tokens[index * BLOCK_LEN..].first_chunk().expect("a full block has its tokens");
                self.kv.publish(&mut sequence.table, index, tokens);
                sequence.published = index + 1;
            }
        }
        for slot in &self.done_slots {
            let sequence = self.slots[*slot].as_mut().expect("a planned slot is taken");
            sequence.ended = Some(match sequence.request.pooling {
                Some(_) => {
                    sink.embedding(sequence.request.id, &sequence.pool.finish());
                    FinishReason::Stop
                }
                None => FinishReason::Length,
            });
        }
        let mut top_start = 0;
        for (slot, &Sampled { token, logprob, top_end }) in self.sample_slots.iter().zip(&self.sampled) {
            let top = &self.tops[std::mem::replace(&mut top_start, top_end)..top_end];
            let sequence = self.slots[*slot].as_mut().expect("a planned slot is taken");
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
    }

    /// Frees the slots of those who have ended, and says so.
    fn flush(&mut self, sink: &mut (impl TokenSink + ?Sized)) -> u32 {
        let mut finished = 0;
        for index in 0..self.sample_slots.len() + self.done_slots.len() {
            let slots = self.sample_slots.iter().chain(&self.done_slots);
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
