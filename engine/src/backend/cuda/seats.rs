//! What the device keeps of sequences whose logits are edited before a token is chosen: biases, ends, and counts of tokens.
//!
//! Counts lie by token, one for each of the vocabulary, and not as a list of the tokens that occur. A list would go up with every
//! step, since the newest token is known on the device alone: 64 kB for 8000 tokens, 1 MB for sixteen sequences, which takes the
//! host as long to copy as everything else that it does for a step. Counts go up once: four bytes a token of prompt and answer,
//! when a sequence is seated. Then whoever chooses a token adds one. They take as much memory as the logits of as many rows.
//!
//! Who was in a slot before may still have a row in a step that is under way, which counts a token there. The device does
//! everything in order, and that step was asked for before the next sequence is seated here, which begins with zeros.

use std::sync::Arc;

use super::device::{Arguments, Device, Lent, Memory, Use, pair};
use crate::backend::{DeviceError, EDITED_MAX, Edits, Penalties, Seat};

/// Bytes of a slot's biases and ends: a bias has eight, an end four.
const LIST_BYTES: usize = 8 * EDITED_MAX;
/// Threads that count, as in `engine/kernels/sample.cu`.
const COUNT_THREADS: u32 = 1024;

/// Memory for as many sequences as there are slots.
pub(super) struct Seats<D: Device> {
    /// Counts, `[slots, vocab]`; biases and ends of each; then tokens that are to be counted.
    memory: Memory<D>,
    vocab_len: usize,
    /// Biases and ends that each slot has.
    lens: Vec<[u32; 2]>,
    /// Biases with their places, to be sorted, and bytes to be copied.
    sorted: Vec<(u32, usize, f32)>,
    bytes: Vec<u8>,
}

impl<D: Device> Seats<D> {
    pub fn new(
        device: &Arc<Lent<D>>,
        slots: usize,
        vocab_len: usize,
        tokens_max: usize,
    ) -> Result<Seats<D>, DeviceError> {
        let bytes = lists_start(slots, vocab_len) + slots * LIST_BYTES + 4 * tokens_max;
        let memory = Memory::new(device, bytes, Use::Workspace)?;
        let sorted = Vec::with_capacity(EDITED_MAX);
        Ok(Seats { memory, vocab_len, lens: vec![[0; 2]; slots], sorted, bytes: Vec::new() })
    }

    fn counts(&self, slot: usize) -> u64 {
        self.memory.address() + (4 * slot * self.vocab_len) as u64
    }

    /// Of a slot; that of the slot after the last is where tokens are put.
    fn list(&self, slot: usize) -> u64 {
        self.memory.address() + (lists_start(self.lens.len(), self.vocab_len) + slot * LIST_BYTES) as u64
    }

    /// Writes down who is in a slot. What was asked before must be on its way.
    pub fn seat(&mut self, device: &D, slot: usize, seat: &Seat<'_>) -> Result<(), DeviceError> {
        let &Seat { tokens, prompt_len, biases, ends } = seat;
        assert!(biases.len() + ends.len() <= EDITED_MAX, "{} biases and {} ends", biases.len(), ends.len());
        self.lens[slot] = [biases.len() as u32, ends.len() as u32];
        // Of one token that has two biases the first is added first, as their sum may be another number.
        self.sorted.clear();
        self.sorted.extend(biases.iter().enumerate().map(|(place, (token, bias))| (*token, place, *bias)));
        self.sorted.sort_unstable_by_key(|(token, place, _)| (*token, *place));
        self.bytes.clear();
        for (token, _, bias) in &self.sorted {
            self.bytes.extend(pair(*token, bias.to_bits()).to_le_bytes());
        }
        self.bytes.extend(ends.iter().flat_map(|end| end.to_le_bytes()));
        if !self.bytes.is_empty() {
            device.upload(self.list(slot), &self.bytes)?;
        }
        let Some(tokens) = tokens else { return Ok(()) };
        let (counts, at) = (self.counts(slot), self.list(self.lens.len()));
        self.bytes.clear();
        self.bytes.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
        device.clear(counts, 4 * self.vocab_len)?;
        device.upload(at, &self.bytes)?;
        let arguments = Arguments::new().pointer(counts).pointer(at).int(prompt_len).int(tokens.len());
        device.launch("count_tokens", [1, 1, 1], COUNT_THREADS, 0, &arguments)
    }

    /// The end of the kernels' `Choice`: counts, biases, how many of them and of the bans behind them, and penalties.
    pub fn words(&self, slot: usize, edits: &Edits) -> [u64; 5] {
        let [biases, ends] = self.lens[slot];
        let bans = if edits.bans_ends { ends } else { 0 };
        let counts = if edits.penalties.is_some() { self.counts(slot) } else { 0 };
        let Penalties { repetition, presence, frequency } =
            edits.penalties.unwrap_or(Penalties { repetition: 1.0, presence: 0.0, frequency: 0.0 });
        let penalties = [pair(repetition.to_bits(), presence.to_bits()), pair(frequency.to_bits(), 0)];
        [counts, self.list(slot), pair(biases, bans), penalties[0], penalties[1]]
    }
}

/// Where the lists lie behind the counts: they begin with words of eight bytes.
fn lists_start(slots: usize, vocab_len: usize) -> usize {
    (4 * slots * vocab_len).next_multiple_of(8)
}
