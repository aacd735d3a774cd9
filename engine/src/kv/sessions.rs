//! Which context each session had last, so that its warmth can be told and its blocks be freed when it goes.

use std::collections::HashMap;

use super::{KvBlocks, SessionKv};

pub(crate) struct Sessions {
    contexts: HashMap<u128, Context>,
    count_max: usize,
    /// Counts uses, to tell who was used last.
    uses: u64,
}

#[derive(Default)]
struct Context {
    tokens: Vec<u32>,
    /// Blocks that count this session as a holder, with the entry into the tree that is meant.
    held: Vec<(u32, u64)>,
    last_use: u64,
}

impl Sessions {
    pub fn new(count_max: usize) -> Sessions {
        Sessions { contexts: HashMap::new(), count_max, uses: 0 }
    }

    /// Sets a session's context. With too many sessions, the one that was longest without use is forgotten; its blocks
    /// stay until somebody needs the room.
    pub fn remember(&mut self, kv: &mut KvBlocks, session: u128, tokens: &[u32]) {
        self.uses += 1;
        if self.contexts.len() >= self.count_max && !self.contexts.contains_key(&session) {
            let oldest = self.contexts.iter().min_by_key(|(_, c)| c.last_use).map(|(id, _)| *id);
            if let Some(context) = oldest.and_then(|id| self.contexts.remove(&id)) {
                context.let_go(kv);
            }
        }
        let context = self.contexts.entry(session).or_default();
        context.let_go(kv);
        context.last_use = self.uses;
        context.tokens.clear();
        context.tokens.extend_from_slice(tokens);
        context.held.clear();
        context.held.extend(kv.path(tokens).map(|block| (block, kv.serial(block))));
        context.held.iter().for_each(|(block, _)| kv.add_holder(*block));
    }

    /// What a session has in the cache now.
    pub fn kv(&self, kv: &KvBlocks, session: u128, block_bytes: usize) -> SessionKv {
        let Some(context) = self.contexts.get(&session) else { return SessionKv::default() };
        let blocks = kv.path(&context.tokens).count();
        SessionKv {
            bytes: blocks * block_bytes,
            cached_tokens: blocks * crate::backend::BLOCK_LEN,
            total_tokens: context.tokens.len(),
        }
    }

    /// Forgets a session and frees the blocks that only it needs.
    pub fn forget(&mut self, kv: &mut KvBlocks, session: u128) {
        let Some(context) = self.contexts.remove(&session) else { return };
        context.let_go(kv);
        for (block, serial) in context.held.iter().rev() {
            kv.free_if_unneeded(*block, *serial);
        }
    }
}

impl Context {
    fn let_go(&self, kv: &mut KvBlocks) {
        self.held.iter().for_each(|(block, serial)| kv.remove_holder(*block, *serial));
    }
}
