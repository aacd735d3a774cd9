//! Who has which block of KV memory, what is in it, and what may be thrown away. Only the book-keeping: the numbers
//! themselves are the backend's.

mod blocks;
mod sessions;

pub(crate) use blocks::KvBlocks;
pub(crate) use sessions::Sessions;

/// What a session has in the KV cache at this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionKv {
    /// Bytes of the blocks that its context is in; shared ones count in full.
    pub bytes: usize,
    /// Leading tokens of its context that need not be computed again.
    pub cached_tokens: usize,
    /// Tokens of its last context: prompt and answer.
    pub total_tokens: usize,
}

/// How full the KV cache is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvUsage {
    /// Blocks that running sequences hold.
    pub blocks_used: usize,
    /// Blocks that nobody holds and that are kept in case a prompt begins with them.
    pub blocks_cached: usize,
    /// All blocks there are.
    pub blocks_max: usize,
    /// Bytes of one.
    pub block_bytes: usize,
}
