//! What whoever drives an engine may ask it between two steps, to predict and to decide.

use super::engine::Engine;
use super::sequence::Sequence;
use crate::backend::Backend;

/// What the next step will hold besides prompt rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NextRows {
    /// Rows of sequences that are generating.
    pub decode: u32,
    /// Cells that these will look at.
    pub decode_cells: u64,
    /// Position of the first prompt row, if a prompt is under way.
    pub prefill_position: Option<u32>,
}

/// How far a sequence has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Rows to compute before it generates its next token: 0 once it is generating.
    pub prefill_left: u32,
    /// It was put aside.
    pub paused: bool,
}

impl<B: Backend> Engine<B> {
    /// What the next step will hold, if nobody comes or goes.
    pub fn next_rows(&self) -> NextRows {
        let mut next = NextRows::default();
        for sequence in self.order.iter().filter_map(|slot| self.slots[*slot].as_ref()) {
            if sequence.decodes() {
                next.decode += 1;
                next.decode_cells += sequence.computed as u64 + 1;
            } else if next.prefill_position.is_none() {
                next.prefill_position = Some(sequence.computed as u32);
            }
        }
        next
    }

    /// Gives prompts at most so many rows of each step from now on; at least one.
    pub fn limit_prefill(&mut self, rows_max: usize) {
        self.prefill_rows_max = rows_max.max(1);
    }

    /// How far each sequence has come, by id; those that were put aside too.
    pub fn progress(&self, each: &mut dyn FnMut(u64, Progress)) {
        let running = self.slots.iter().flatten().map(|s| (s, false));
        for (sequence, paused) in running.chain(self.paused.iter().map(|s| (s, true))) {
            let prefill_left = if sequence.decodes() { 0 } else { sequence.pending() as u32 };
            each(sequence.request.id, Progress { prefill_left, paused });
        }
    }

    /// From now on nothing puts this sequence aside any more. False for one that is not here.
    pub fn pin(&mut self, id: u64) -> bool {
        let mut all = self.slots.iter_mut().flatten().chain(&mut self.paused);
        let found: Option<&mut Sequence> = all.find(|s| s.request.id == id);
        found.map(|sequence| sequence.request.preemptible = false).is_some()
    }
}
