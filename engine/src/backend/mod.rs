//! Where the arithmetic happens: one trait at the altitude of a kernel.
//!
//! A model's `forward` is a list of calls to this trait. What a call means is what [`CpuBackend`] does with it; any other
//! backend is held against that.
//!
//! The law of every operation: an output element is reduced in an order that depends on the shape of the weight and on
//! the row's own position, and on nothing else. Not on how many rows stand beside it, on threads, on chunks, or on which
//! blocks its cells lie in.

mod cpu;
#[doc(hidden)]
pub mod cuda;

use std::ops::Range;

pub use cpu::{CpuBackend, CpuOptions, Isa};

use crate::model::{Matrix, Rope, Vector};
pub use crate::sampler::{Choice, Edits, Penalties};

/// Cells in one block of KV memory. The CPU attends to one block with one vector, so this is its lane count, too.
pub const BLOCK_LEN: usize = 16;

/// Marks an entry of [`Batch::tokens`] that is not a token: the rest of the number says which of the tokens that were chosen
/// last, by [`Backend::choose`], is meant. So a step can be started before the host has the tokens of the one before it.
pub const CHOSEN: u32 = 1 << 31;

/// Steps that may be under way: one runs, and one is asked for meanwhile.
pub const LANES: usize = 2;

/// Biases and ends of a generation together that [`Backend::seat`] takes of a sequence: what a request may have of the first, and
/// more of the second than any model has. The host chooses for whoever has more.
pub const EDITED_MAX: usize = 1024 + 64;

/// The device failed. What it holds is unknown: it must not be used again.
#[derive(Debug, thiserror::Error)]
#[error("the device failed: {0}")]
pub struct DeviceError(pub String);

/// How the two numbers that are rotated together lie in a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairs {
    /// Elements 2i and 2i + 1, as Llama's GGUF files have them.
    Neighbours,
    /// Elements i and i + half, as GPT-NeoX and its descendants have them.
    Halves,
}

/// The rows of one step. Every list but `tables` has one entry a row.
#[derive(Debug, Default)]
pub struct Batch {
    /// Token of each row, or [`CHOSEN`] and a number.
    pub tokens: Vec<u32>,
    /// Position of each row in its sequence, from 0.
    pub positions: Vec<u32>,
    /// Which table holds the row's blocks.
    pub table_of_row: Vec<u32>,
    /// Block tables, `table_len` entries each: entry `p / BLOCK_LEN` is the block with the cell of position `p`.
    pub tables: Vec<u32>,
    /// Length of each table.
    pub table_len: usize,
    /// Rows whose logits are wanted, ascending.
    pub sample_rows: Vec<u32>,
    /// One a table: whether its rows are rotated by `Rope::stretched`, where there is one. Tables beyond the end are not.
    pub stretched: Vec<bool>,
    /// Some row's hidden state is wanted.
    pub wants_hidden: bool,
    /// Tokens that the backend is to choose, ascending by sample. Only for one that `chooses`.
    pub picks: Vec<Pick>,
    /// Where the tokens are left that the backend chooses, below [`LANES`]: in another place than those of the step before, which
    /// may not have been read yet.
    pub lane: usize,
}

impl Batch {
    /// Rows in this step.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Empties it for the next step; tables stay.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.table_of_row.clear();
        self.sample_rows.clear();
        self.wants_hidden = false;
        self.picks.clear();
    }

    /// Adds a row.
    pub fn push(&mut self, token: u32, position: u32, table: u32) {
        self.tokens.push(token);
        self.positions.push(position);
        self.table_of_row.push(table);
    }

    /// True for a row of a sequence whose positions are stretched.
    pub fn is_stretched(&self, row: usize) -> bool {
        self.stretched.get(self.table_of_row[row] as usize).copied().unwrap_or(false)
    }

    /// The block table of a row.
    pub fn table(&self, row: usize) -> &[u32] {
        let start = self.table_of_row[row] as usize * self.table_len;
        &self.tables[start..start + self.table_len]
    }
}

/// A token that the backend is to choose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pick {
    /// From which of [`Batch::sample_rows`].
    pub sample: u32,
    /// What is done to its logits before, with what [`Backend::seat`] was told last of the sequence in that slot.
    pub edits: Option<(usize, Edits)>,
    /// How it is chosen then.
    pub choice: Choice,
    /// The host wants its bare logits besides: see [`Backend::kept`].
    pub keeps_logits: bool,
}

/// A sequence whose logits are edited before a token is chosen from them, as a backend that chooses has to know it.
#[derive(Clone, Copy, Debug)]
pub struct Seat<'a> {
    /// Prompt and answer so far, if there are penalties.
    pub tokens: Option<&'a [u32]>,
    /// How many of them are the prompt.
    pub prompt_len: usize,
    /// What is added to the scores of tokens, one after the other.
    pub biases: &'a [(u32, f32)],
    /// Tokens that end a generation; with the biases [`EDITED_MAX`] at most.
    pub ends: &'a [u32],
}

/// What is particular about an attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Query heads; a multiple of the cache's.
    pub head_count: usize,
    /// Factor of every score.
    pub scale: f32,
    /// A row sees this many cells at most, its own included. None is all of them.
    pub window: Option<u32>,
    /// Scores `s` become `cap * tanh(s / cap)` before the softmax. Positive.
    pub soft_cap: Option<f32>,
}

impl Attention {
    /// Full attention of heads of `head_len` elements, as most models have it.
    pub fn full(head_count: usize, head_len: usize) -> Attention {
        Attention { head_count, scale: 1.0 / (head_len as f32).sqrt(), window: None, soft_cap: None }
    }
}

/// What becomes of a layer's queries and keys before they meet.
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a, V> {
    /// Query heads; the cache has the number of key heads, and how long a head is.
    pub head_count: usize,
    /// Norms of each head of queries, and of keys: `[head_len]` each.
    pub head_norms: Option<[&'a V; 2]>,
    /// Added to the mean of squares under such a norm's root.
    pub eps: f32,
    /// Which elements are rotated together.
    pub pairs: RopePairs,
    /// Number of the rope, of those of `begin_step`.
    pub rope: usize,
}

/// The shape of a model's KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Layers with a cache each.
    pub layer_count: usize,
    /// Key and value heads in a layer.
    pub head_count: usize,
    /// Elements of a head.
    pub head_len: usize,
    /// Blocks of [`BLOCK_LEN`] cells.
    pub block_count: usize,
}

/// The largest step that there will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepShape {
    /// Rows at most.
    pub rows_max: usize,
    /// Entries of all block tables.
    pub tables_len: usize,
    /// Entries of one.
    pub table_len: usize,
    /// Length of the longest row that a matrix is multiplied with.
    pub cols_max: usize,
    /// Query heads.
    pub head_count: usize,
    /// Key and value heads.
    pub head_count_kv: usize,
    /// Elements of a head.
    pub head_len: usize,
    /// Longest context, in cells.
    pub context_max: usize,
    /// Tokens chosen at most.
    pub choices_max: usize,
    /// Length of a row of logits.
    pub vocab_len: usize,
}

/// A product that shares its activations with others.
pub struct Projection<'a, B: Backend + ?Sized> {
    /// `[rows, out]`
    pub out: &'a mut B::Buffer,
    /// `[out, in]`
    pub weight: &'a B::Matrix,
    /// `[out]`
    pub bias: Option<&'a B::Vector>,
}

/// The operations that a transformer is made of.
///
/// Activations are row-major `f32`, `[rows, len]`; `rows` is always that of the step unless it is an argument.
pub trait Backend {
    /// Activations on the device.
    type Buffer;
    /// A weight matrix on the device.
    type Matrix;
    /// A norm's weights or a bias on the device.
    type Vector;
    /// The KV cache of all layers.
    type Cache;

    /// Puts a weight matrix where the kernels can reach it.
    ///
    /// # Errors
    ///
    /// When the device has no room for it.
    fn matrix(&self, matrix: &Matrix) -> Result<Self::Matrix, DeviceError>;

    /// Puts a vector where the kernels can reach it.
    ///
    /// # Errors
    ///
    /// When the device has no room for it.
    fn vector(&self, vector: &Vector) -> Result<Self::Vector, DeviceError>;

    /// Activations of `len` elements, all zero.
    ///
    /// # Errors
    ///
    /// When the device has no room for them.
    fn buffer(&self, len: usize) -> Result<Self::Buffer, DeviceError>;

    /// Bytes of keys and values in a KV cache of this shape.
    fn cache_bytes(shape: KvShape) -> usize;

    /// An empty KV cache.
    ///
    /// # Errors
    ///
    /// When the device has no room for it.
    fn cache(&self, shape: KvShape) -> Result<Self::Cache, DeviceError>;

    /// Makes room for everything that a step may need, so that no step fails for want of memory.
    ///
    /// # Errors
    ///
    /// When the device has no room for it.
    fn reserve(&mut self, shape: &StepShape, ropes: &[Rope]) -> Result<(), DeviceError> {
        let _ = (shape, ropes);
        Ok(())
    }

    /// Begins a step: takes over positions and tables, and for each of `ropes` the angles `position * frequency` of every
    /// row.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn begin_step(&mut self, batch: &Batch, ropes: &[Rope]) -> Result<(), DeviceError>;

    /// `out[r] = table[token of r]`.
    fn embed(&mut self, out: &mut Self::Buffer, table: &Self::Matrix, batch: &Batch);

    /// `out[r] = x[r] / sqrt(mean(x[r]²) + eps) * weight`.
    ///
    /// Source: Zhang and Sennrich 2019.
    fn rms_norm(&mut self, out: &mut Self::Buffer, x: &Self::Buffer, weight: &Self::Vector, rows: usize, eps: f32);

    /// `x[r] = x[r] / sqrt(mean(x[r]²) + eps) * weight`, for `count` vectors of the weight's length: rows, or heads of rows.
    fn rms_norm_in_place(&mut self, x: &mut Self::Buffer, weight: &Self::Vector, count: usize, eps: f32);

    /// `x += y`, then `y[r] = x[r] / sqrt(mean(x[r]²) + eps) * weight`: the bits of the two operations one after the other.
    fn add_rms_norm(
        &mut self,
        x: &mut Self::Buffer,
        y: &mut Self::Buffer,
        weight: &Self::Vector,
        rows: usize,
        eps: f32,
    );

    /// `out[r] = weight · x[r]`, for a weight of shape `[out, in]`.
    fn matmul(&mut self, out: &mut Self::Buffer, x: &Self::Buffer, weight: &Self::Matrix, rows: usize);

    /// `out[r] = weight · x[r] + bias` for each of `parts`: the bits of one after the other.
    fn project(&mut self, x: &Self::Buffer, rows: usize, parts: &mut [Projection<'_, Self>]) {
        for Projection { out, weight, bias } in parts {
            self.matmul(out, x, weight, rows);
            if let Some(bias) = bias {
                self.add_bias(out, bias, rows);
            }
        }
    }

    /// `x[r] += bias`.
    fn add_bias(&mut self, x: &mut Self::Buffer, bias: &Self::Vector, rows: usize);

    /// Brings each head of queries and keys to its norm, where there are such norms, rotates it by the angles that `begin_step`
    /// made of the rope, and writes each row's key and value into the row's own cell. Elements of a head beyond twice the
    /// number of angles are not rotated. What `key` holds afterwards is not defined.
    ///
    /// Source: Su et al. 2021; norms of heads: Dehghani et al. 2023.
    #[allow(clippy::too_many_arguments, reason = "what a layer makes of one row is one operation")]
    fn rotate_store(
        &mut self,
        cache: &mut Self::Cache,
        layer: usize,
        query: &mut Self::Buffer,
        key: &mut Self::Buffer,
        value: &Self::Buffer,
        batch: &Batch,
        rotation: &Rotation<'_, Self::Vector>,
    );

    /// Attends from each row to the cells at and before its position, softmax of `scale * q · k`.
    ///
    /// With more query heads than key heads, neighbouring query heads share one (grouped-query attention).
    ///
    /// Source: Vaswani et al. 2017; Ainslie et al. 2023; window: Beltagy et al. 2020; soft cap: Gemma team 2024.
    fn attend(
        &mut self,
        out: &mut Self::Buffer,
        query: &Self::Buffer,
        cache: &Self::Cache,
        layer: usize,
        batch: &Batch,
        attention: &Attention,
    );

    /// `gate = silu(gate) * up`, elementwise over `rows * len`.
    ///
    /// Source: Shazeer 2020.
    fn silu_mul(&mut self, gate: &mut Self::Buffer, up: &Self::Buffer, len: usize);

    /// `gate = gelu(gate) * up`, elementwise over `len`, with the approximation of GELU by tanh.
    ///
    /// Source: Hendrycks and Gimpel 2016; Shazeer 2020.
    fn gelu_mul(&mut self, gate: &mut Self::Buffer, up: &Self::Buffer, len: usize);

    /// `x *= factor`, elementwise over `len`.
    fn scale(&mut self, x: &mut Self::Buffer, factor: f32, len: usize);

    /// `x = cap * tanh(x / cap)`, elementwise over `len`.
    ///
    /// Source: Gemma team 2024.
    fn soft_cap(&mut self, x: &mut Self::Buffer, cap: f32, len: usize);

    /// `out[i] = x[sample_rows[i]]`, rows of `len`.
    fn gather(&mut self, out: &mut Self::Buffer, x: &Self::Buffer, batch: &Batch, len: usize);

    /// True for a backend that chooses tokens itself. Of others that is not asked: logits are read, and the host chooses.
    fn chooses(&self) -> bool {
        false
    }

    /// Takes over who is in a slot, whose next [`Pick`] has edits. From then on each token that is picked with edits for the slot
    /// is one of the answer, so that the next one can be picked before the host knows it. Whoever was there before, or is there
    /// with other tokens than were picked, is forgotten. What fails is told with the step.
    fn seat(&mut self, slot: usize, seat: &Seat<'_>) {
        let _ = (slot, seat);
        assert!(!self.chooses(), "a backend that chooses knows its seats");
    }

    /// Chooses a token for each of `batch.picks` from `logits`, `[samples, vocab_len]`: the one that the host would choose,
    /// whatever else is in the batch. [`Backend::chosen`] gives them. Of rows that have edits `logits` holds the edited scores then.
    fn choose(&mut self, logits: &mut Self::Buffer, vocab_len: usize, batch: &Batch) {
        let _ = (logits, vocab_len);
        assert!(batch.picks.is_empty(), "this backend does not choose");
    }

    /// Has the device begin with what was asked so far, the step of this batch, and waits for nothing.
    fn start(&mut self, batch: &Batch) {
        let _ = batch;
    }

    /// Waits for the step of this batch, which was started, and gives the tokens that were chosen in it, one for each of
    /// `batch.picks`. What was asked after that step may still be under way.
    ///
    /// # Errors
    ///
    /// When the device failed in this step, or in starting what was asked since.
    fn chosen(&mut self, batch: &Batch) -> Result<&[u32], DeviceError> {
        assert!(batch.picks.is_empty(), "this backend does not choose");
        Ok(&[])
    }

    /// After [`Backend::chosen`], and before two more steps were begun: the bare logits of those of `batch.picks` that keep them,
    /// `[kept, vocab_len]`.
    fn kept(&self, batch: &Batch) -> &[f32] {
        let _ = batch;
        &[]
    }

    /// Waits for what was asked so far and gives the host a range of the elements of `x`.
    ///
    /// # Errors
    ///
    /// When the device failed in this step.
    fn read<'a>(&'a mut self, x: &'a Self::Buffer, range: Range<usize>) -> Result<&'a [f32], DeviceError>;

    /// Names the arithmetic: streams are bit-identical between machines that give the same name.
    fn arithmetic(&self) -> &str;
}
