//! Which rows a step has.

use super::engine::{Engine, EngineOptions, SCORED_ROWS_MAX};
use super::prefill::share_rows;
use super::sequence::{Sequence, StepReport, TokenSink};
use crate::backend::{Backend, Batch, CHOSEN};

/// A step as it was decided on.
pub(super) struct Planned {
    pub batch: Batch,
    /// Slots of its samples.
    pub sample_slots: Vec<usize>,
    /// Slots that are done with it without a token: their vector is complete, or their prompt is all that they are asked for.
    pub done_slots: Vec<usize>,
    /// What is known of it beforehand.
    pub report: StepReport,
    /// By slot: the seating that its rows there are for.
    seatings: Vec<u64>,
}

impl Planned {
    pub fn new(options: &EngineOptions, table_len: usize, lane: usize) -> Planned {
        let (rows_max, slots_max) = (options.step_rows_max, options.slots_max);
        let batch = Batch {
            tokens: Vec::with_capacity(rows_max),
            positions: Vec::with_capacity(rows_max),
            table_of_row: Vec::with_capacity(rows_max),
            tables: vec![0; slots_max * table_len],
            table_len,
            sample_rows: Vec::with_capacity(rows_max),
            stretched: vec![false; slots_max],
            wants_hidden: false,
            picks: Vec::with_capacity(slots_max),
            lane,
        };
        Planned {
            batch,
            sample_slots: Vec::with_capacity(slots_max),
            done_slots: Vec::with_capacity(slots_max),
            report: StepReport::default(),
            seatings: vec![0; slots_max],
        }
    }

    /// True when its rows in a slot are for whoever is there now: somebody else may have come since it was decided on.
    pub fn is_for(&self, slot: usize, sequence: &Sequence) -> bool {
        self.seatings[slot] == sequence.seating
    }

    /// True when the host needs nothing of it but tokens that the backend chooses, and what comes with those.
    fn gives_tokens_alone(&self) -> bool {
        let samples = self.batch.sample_rows.len();
        !self.batch.wants_hidden && samples == self.batch.picks.len() && samples == self.sample_slots.len()
    }

    fn clear(&mut self) {
        self.batch.clear();
        self.sample_slots.clear();
        self.done_slots.clear();
        self.report = StepReport::default();
        self.seatings.fill(0);
    }

    /// Takes over whose rows will follow in a slot, and where their cells lie.
    fn take_table(&mut self, slot: usize, sequence: &Sequence, is_stretched: bool) {
        let start = slot * self.batch.table_len;
        self.batch.tables[start..start + sequence.table.len()].copy_from_slice(&sequence.table);
        self.batch.stretched[slot] = is_stretched;
        self.seatings[slot] = sequence.seating;
    }
}

impl<B: Backend> Engine<B> {
    /// Decides on the rows of a step: decode rows first, then those of prompts.
    pub(super) fn plan(&mut self, sink: &(impl TokenSink + ?Sized)) {
        self.now.clear();
        self.prompts.clear();
        self.pending.clear();
        for index in 0..self.order.len() {
            let slot = self.order[index];
            let sequence = self.slots[slot].as_ref().expect("a slot in the order is taken");
            if !sequence.decodes() {
                self.prompts.push(slot);
                self.pending.push(sequence.pending());
            } else if self.now.batch.rows() < self.options.step_rows_max {
                let left = self.options.step_rows_max - self.now.batch.rows();
                self.now.report.rows_decode += self.plan_sequence(slot, left, sink);
            }
        }
        let left = self.options.step_rows_max - self.now.batch.rows();
        share_rows(&self.pending, left.min(self.prefill_rows_max), &mut self.shares);
        // A prompt whose tokens are scored may take less than its share: the next one has what it leaves.
        let mut spare = 0;
        for index in 0..self.prompts.len() {
            let share = self.shares[index] + spare;
            let count = if share > 0 { self.plan_sequence(self.prompts[index], share, sink) } else { 0 };
            spare = share - count as usize;
            self.now.report.rows_prefill += count;
        }
    }

    /// Adds the next rows of one sequence, `left` at most, and gives how many.
    fn plan_sequence(&mut self, slot: usize, left: usize, sink: &(impl TokenSink + ?Sized)) -> u32 {
        let sequence = self.slots[slot].as_mut().expect("a slot in the order is taken");
        let now = &mut self.now;
        now.take_table(slot, sequence, self.model.config.is_stretched(sequence.tokens_max() - 1));
        let mut count = sequence.pending().min(left);
        let mut scored = sequence.scored_rows(count);
        let scored_left = SCORED_ROWS_MAX - now.report.scored as usize;
        if scored.len() > scored_left {
            scored.end = scored.start + scored_left;
            count = scored.end - sequence.computed;
        }
        now.batch.wants_hidden |= sequence.request.pooling.is_some();
        now.report.scored += scored.len() as u32;
        for position in sequence.computed..sequence.computed + count {
            if scored.contains(&position) {
                now.batch.sample_rows.push(now.batch.rows() as u32);
            }
            now.batch.push(sequence.tokens[position], position as u32, slot as u32);
            now.report.context_cells += position as u64 + 1;
        }
        if count == sequence.pending() && sequence.wants_no_token() {
            now.done_slots.push(slot);
        } else if count == sequence.pending() {
            if let (Some(constraint), None) = (&sequence.request.constraint, &sequence.progress) {
                sequence.progress = Some(self.masks.begin(constraint));
            }
            let (sample, index) = (now.batch.sample_rows.len() as u32, sequence.tokens.len());
            let ends = self.model.tokenizer().ends_of_generation();
            if self.backend.chooses()
                && !sink.wants_logits(sequence.request.id)
                && let Some(pick) = sequence.pick_of_backend(sample, slot, index, ends)
            {
                if pick.edits.is_some() {
                    if self.seated[slot] != (sequence.seating, index) {
                        self.backend.seat(slot, &sequence.seat(ends));
                    }
                    self.seated[slot] = (sequence.seating, index + 1);
                }
                now.batch.picks.push(pick);
            }
            now.batch.sample_rows.push(now.batch.rows() as u32 - 1);
            now.sample_slots.push(slot);
        }
        count as u32
    }

    /// Decides on the step after `now`, whose tokens are not known yet, so that it can be begun before they are. True if it can:
    /// when the backend chooses all of them, and everybody here will generate after it. Prompts are not read this way: their
    /// steps are long beside the host's work, and whoever comes in the meantime would wait for one more of them.
    ///
    /// Whoever stops at his token of `now` has a row too many, of which nothing is taken.
    pub(super) fn plan_next(&mut self, sink: &(impl TokenSink + ?Sized)) -> bool {
        if !self.now.gives_tokens_alone() {
            return false;
        }
        self.next.clear();
        let ends = self.model.tokenizer().ends_of_generation();
        let mut here = 0;
        for (chosen, slot) in self.now.sample_slots.iter().copied().enumerate() {
            let sequence = self.slots[slot].as_ref().filter(|sequence| self.now.is_for(slot, sequence));
            let Some(sequence) = sequence else { continue };
            here += 1;
            let index = sequence.tokens.len();
            if index + 1 == sequence.tokens_max() {
                continue;
            }
            let row = self.next.batch.rows() as u32;
            let pick = sequence.pick_of_backend(row, slot, index + 1, ends);
            let Some(pick) = pick.filter(|_| !sink.wants_logits(sequence.request.id)) else { return false };
            // The token of `now` is picked with edits, too: there may be fewer of them later, and never more.
            assert!(
                pick.edits.is_none() || self.seated[slot] == (sequence.seating, index + 1),
                "tokens are not counted"
            );
            let next = &mut self.next;
            next.take_table(slot, sequence, self.model.config.is_stretched(sequence.tokens_max() - 1));
            next.batch.push(CHOSEN | chosen as u32, index as u32, slot as u32);
            next.batch.picks.push(pick);
            next.batch.sample_rows.push(row);
            next.sample_slots.push(slot);
            next.report.rows_decode += 1;
            next.report.context_cells += index as u64 + 1;
        }
        let is_begun = here == self.order.len() && self.next.batch.rows() > 0;
        if is_begun {
            for (slot, _) in self.next.batch.picks.iter().filter_map(|pick| pick.edits) {
                self.seated[slot].1 += 1;
            }
        }
        is_begun
    }
}
