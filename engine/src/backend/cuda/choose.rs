//! Choosing tokens on the device: what `engine/kernels/sample.cu` is told and where it works.

use std::sync::Arc;

use super::device::{Arguments, Device, Lent, Memory, Use, pair};
use super::seats::Seats;
use crate::backend::{Batch, DeviceError, Pick};

/// Logits that a block of threads looks at. As in `engine/kernels/sample.cu`.
const CHUNK_LEN: usize = 2048;
/// Bins of distances from the best score there.
const BIN_COUNT: usize = 2048;
/// Threads that finish a row there.
const PICK_THREADS: usize = 512;

/// Bytes of a choice on the device.
pub(super) const CHOICE_BYTES: usize = 104;

/// The kernels' `Choice`: from which row of logits, how, where the host looks for the token and for the row, and what is done to
/// it before.
pub(super) fn pick_words<D: Device>(
    pick: &Pick,
    token: u64,
    kept: u64,
    seats: Option<&Seats<D>>,
) -> [u64; CHOICE_BYTES / 8] {
    let choice = &pick.choice;
    let [counts, biases, lens, penalties, penalties_end] = match &pick.edits {
        Some((slot, edits)) => seats.expect("there is room before anybody is seated").words(*slot, edits),
        None => [0; 5],
    };
    [
        pair(pick.sample, choice.temperature.to_bits()),
        pair(choice.top_k, u32::from(choice.top_p.is_some())),
        choice.top_p.unwrap_or(0),
        choice.min_weight,
        choice.seed,
        choice.position,
        token,
        kept,
        counts,
        biases,
        lens,
        penalties,
        penalties_end,
    ]
}

/// Rows of logits that a step gives to the host.
pub(super) fn kept_rows(batch: &Batch) -> usize {
    batch.picks.iter().filter(|pick| pick.keeps_logits).count()
}

/// Where the host finds tokens, or logits: its own memory, which the device writes to.
pub(super) struct Returned<D: Device> {
    memory: D::Host,
    /// Known apart from the memory, which is not looked into while a step may be writing there.
    address: u64,
    len: usize,
}

impl<D: Device> Returned<D> {
    pub fn new(device: &Arc<Lent<D>>, len: usize) -> Result<Returned<D>, DeviceError> {
        let memory = D::host(device.device(), len)?;
        Ok(Returned { address: memory.as_ptr() as u64, len, memory })
    }

    /// How many there is room for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Where the device writes one of them: a device has the host's memory at the host's addresses.
    pub fn address(&self, index: usize) -> u64 {
        self.address + 4 * index as u64
    }

    /// The first `count` of them, when the step that writes them is over.
    pub fn numbers(&self, count: usize) -> &[f32] {
        &self.memory[..count]
    }

    /// The same where the kernels write whole numbers.
    pub fn tokens(&self, count: usize) -> impl Iterator<Item = u32> {
        self.numbers(count).iter().map(|word| word.to_bits())
    }
}

/// Memory that the kernels work in, for so many choices from rows of so many logits.
pub(super) struct Workspace<D: Device> {
    memory: Memory<D>,
    pub choices_max: usize,
    pub vocab_len: usize,
}

impl<D: Device> Workspace<D> {
    pub fn new(device: &Arc<Lent<D>>, choices_max: usize, vocab_len: usize) -> Result<Workspace<D>, DeviceError> {
        // The best and the sums of each chunk, weights and counts of each bin, a token.
        let choice_bytes = 2 * 8 * vocab_len.div_ceil(CHUNK_LEN) + (8 + 4) * BIN_COUNT + 4;
        let memory = Memory::new(device, choices_max * choice_bytes, Use::Workspace)?;
        Ok(Workspace { memory, choices_max, vocab_len })
    }

    /// Where the tokens lie for kernels that come after.
    pub fn tokens(&self) -> u64 {
        self.places()[4]
    }

    /// Where the kernels find what they leave to each other, in the order of their `Sampling`.
    fn places(&self) -> [u64; 5] {
        let chunks = self.vocab_len.div_ceil(CHUNK_LEN);
        let mut next = self.memory.address();
        [8 * chunks, 8 * chunks, 8 * BIN_COUNT, 4 * BIN_COUNT, 4].map(|bytes| {
            let place = next;
            next += (self.choices_max * bytes) as u64;
            place
        })
    }

    /// The launches for `picks`, which lie at `at`, from `logits`: name, grid, threads and arguments of each. Whether rows are
    /// edited, or kept, changes none of them: that is in what lies at `at`.
    pub fn launches(
        &self,
        logits: u64,
        at: u64,
        picks: &[Pick],
    ) -> impl Iterator<Item = (&'static str, [usize; 3], usize, Arguments)> + use<D> {
        let chunks = self.vocab_len.div_ceil(CHUNK_LEN);
        let [best, sums, weights, counts, tokens] = self.places();
        let shape = pair(self.vocab_len as u32, chunks as u32);
        let arguments = Arguments::new().structure(&[logits, at, best, sums, weights, counts, tokens, shape]);
        let all = [
            ("sample_best", [chunks, picks.len(), 1], 256),
            ("sample_weigh", [chunks, picks.len(), 1], 256),
            ("sample_pick", [picks.len(), 1, 1], PICK_THREADS),
        ];
        // The third has nothing to do for the greedy.
        let count = if picks.iter().all(|pick| pick.choice.temperature == 0.0) { 2 } else { 3 };
        all.into_iter().take(count).map(move |(name, grid, threads)| (name, grid, threads, arguments.clone()))
    }
}
