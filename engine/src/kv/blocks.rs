//! Blocks and the prefix tree over the full ones.
//!
//! A full block is found again by its parent block and its tokens, so a path from the root is a prefix of token ids.
//! Sequences hold all blocks on their path. Blocks that nobody holds stay in the tree, in one list from the one that was
//! let go first to the last. A path is let go from its end to its beginning, and a parent is held whenever a child is:
//! so a child always stands before its parent, and the head of the list is a leaf that may be evicted.

use std::collections::HashMap;

use crate::backend::BLOCK_LEN;

/// No block: the root's place as a parent, and the ends of the list.
const NONE: u32 = u32::MAX;

/// Room in the index from the start, so that it does not grow while tokens are made. Enough for a million cells.
const INDEX_LEN: usize = 1 << 17;

type Tokens = [u32; BLOCK_LEN];

pub(crate) struct KvBlocks {
    blocks: Vec<Block>,
    free: Vec<u32>,
    index: HashMap<(u32, Tokens), u32>,
    /// The list of blocks in the tree that nobody holds.
    head: u32,
    tail: u32,
    idle_count: usize,
    /// Counts blocks that entered the tree.
    serial: u64,
}

#[derive(Clone)]
struct Block {
    /// Sequences that hold it.
    refs: u32,
    /// Which entry into the tree this is; 0: not in the tree.
    serial: u64,
    parent: u32,
    children: u32,
    /// Sessions whose context it is part of.
    holders: u32,
    tokens: Tokens,
    before: u32,
    after: u32,
}

impl KvBlocks {
    pub fn new(block_count: usize) -> KvBlocks {
        let empty = Block {
            refs: 0,
            serial: 0,
            parent: NONE,
            children: 0,
            holders: 0,
            tokens: [0; BLOCK_LEN],
            before: NONE,
            after: NONE,
        };
        KvBlocks {
            blocks: vec![empty; block_count],
            free: (0..block_count as u32).rev().collect(),
            // Twice the need: then removed entries are cleaned up in place.
            index: HashMap::with_capacity(INDEX_LEN.min(2 * block_count)),
            head: NONE,
            tail: NONE,
            idle_count: 0,
            serial: 0,
        }
    }

    pub fn block_count(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks in the tree that nobody holds.
    pub fn idle_count(&self) -> usize {
        self.idle_count
    }

    /// Blocks that sequences hold.
    pub fn used_count(&self) -> usize {
        self.blocks.len() - self.free.len() - self.idle_count
    }

    /// The path of full blocks at the beginning of `tokens` that the tree has.
    pub fn path<'a>(&'a self, tokens: &'a [u32]) -> impl Iterator<Item = u32> + 'a {
        let mut parent = NONE;
        tokens.as_chunks::<BLOCK_LEN>().0.iter().map_while(move |chunk| {
            parent = *self.index.get(&(parent, *chunk))?;
            Some(parent)
        })
    }

    /// Takes `needed` blocks into `table`, the first ones from the tree if they hold `prefix`. Gives how many of those
    /// there were, or none at all when there are not enough blocks.
    pub fn take(&mut self, prefix: &[u32], needed: usize, table: &mut Vec<u32>) -> Option<usize> {
        table.clear();
        if !self.fits(prefix, needed) {
            return None;
        }
        table.extend(self.path(prefix));
        let matched = table.len();
        for block in &table[..matched] {
            self.hold(*block);
        }
        for _ in matched..needed {
            let block = self.take_free();
            table.push(block);
        }
        Some(matched)
    }

    /// True when `take` would succeed.
    pub fn fits(&self, prefix: &[u32], needed: usize) -> bool {
        let (mut matched, mut revived) = (0, 0);
        for block in self.path(prefix) {
            matched += 1;
            revived += usize::from(self.blocks[block as usize].refs == 0);
        }
        assert!(matched <= needed, "a prefix is shorter than its sequence");
        needed - matched <= self.free.len() + self.idle_count - revived
    }

    /// Puts the full block `table[index]` into the tree under `table[index - 1]`, which must be there already.
    ///
    /// When another sequence has put the same tokens there first, its block takes the place in the table: the two hold
    /// the same bits.
    pub fn publish(&mut self, table: &mut [u32], index: usize, tokens: &Tokens) {
        let own = table[index];
        let parent = if index == 0 { NONE } else { table[index - 1] };
        if let Some(known) = self.index.get(&(parent, *tokens)).copied() {
            self.hold(known);
            table[index] = known;
            let block = &mut self.blocks[own as usize];
            assert!(block.refs == 1 && block.serial == 0, "a block outside of the tree has one holder");
            block.refs = 0;
            self.free.push(own);
            return;
        }
        self.serial += 1;
        let block = &mut self.blocks[own as usize];
        assert!(block.refs == 1 && block.serial == 0, "a block was put into the tree twice");
        (block.serial, block.parent, block.tokens) = (self.serial, parent, *tokens);
        if parent != NONE {
            let parent = &mut self.blocks[parent as usize];
            assert!(parent.serial > 0 && parent.refs > 0, "a block's parent is in the tree and held with it");
            parent.children += 1;
        }
        self.index.insert((parent, *tokens), own);
    }

    /// Lets a sequence's blocks go, from the last to the first.
    pub fn release(&mut self, table: &[u32]) {
        for block in table.iter().rev() {
            let entry = &mut self.blocks[*block as usize];
            assert!(entry.refs > 0, "a block was released twice");
            entry.refs -= 1;
            if entry.refs > 0 {
                continue;
            }
            if entry.serial > 0 {
                self.append_idle(*block);
            } else {
                self.free.push(*block);
            }
        }
    }

    /// Which entry into the tree this block is; 0 when it is not there.
    pub fn serial(&self, block: u32) -> u64 {
        self.blocks[block as usize].serial
    }

    /// Counts a session that has this block in its context.
    pub fn add_holder(&mut self, block: u32) {
        self.blocks[block as usize].holders += 1;
    }

    /// Takes a session off again, if the block has not left the tree since.
    pub fn remove_holder(&mut self, block: u32, serial: u64) {
        let entry = &mut self.blocks[block as usize];
        if entry.serial == serial {
            assert!(entry.holders > 0, "a session left a block twice");
            entry.holders -= 1;
        }
    }

    /// Frees a block at once if it is a leaf that no sequence and no session needs.
    pub fn free_if_unneeded(&mut self, block: u32, serial: u64) {
        let entry = &self.blocks[block as usize];
        let unneeded = entry.refs == 0 && entry.children == 0 && entry.holders == 0;
        if serial > 0 && entry.serial == serial && unneeded {
            self.evict(block);
        }
    }

    fn hold(&mut self, block: u32) {
        if self.blocks[block as usize].refs == 0 {
            self.unlink_idle(block);
        }
        self.blocks[block as usize].refs += 1;
    }

    fn take_free(&mut self) -> u32 {
        if self.free.is_empty() {
            assert!(self.head != NONE, "blocks were counted before they were taken");
            self.evict(self.head);
        }
        let block = self.free.pop().expect("one was freed if there was none");
        self.blocks[block as usize].refs = 1;
        block
    }

    /// Takes an idle leaf out of the tree.
    fn evict(&mut self, block: u32) {
        self.unlink_idle(block);
        let entry = &mut self.blocks[block as usize];
        assert!(entry.refs == 0 && entry.children == 0, "only leaves that nobody holds leave the tree");
        let (parent, tokens) = (entry.parent, entry.tokens);
        (entry.serial, entry.holders, entry.parent) = (0, 0, NONE);
        self.index.remove(&(parent, tokens));
        if parent != NONE {
            self.blocks[parent as usize].children -= 1;
        }
        self.free.push(block);
    }

    fn append_idle(&mut self, block: u32) {
        let tail = self.tail;
        let entry = &mut self.blocks[block as usize];
        (entry.before, entry.after) = (tail, NONE);
        match tail {
            NONE => self.head = block,
            _ => self.blocks[tail as usize].after = block,
        }
        self.tail = block;
        self.idle_count += 1;
    }

    fn unlink_idle(&mut self, block: u32) {
        let Block { before, after, .. } = self.blocks[block as usize];
        match before {
            NONE => self.head = after,
            _ => self.blocks[before as usize].after = after,
        }
        match after {
            NONE => self.tail = before,
            _ => self.blocks[after as usize].before = before,
        }
        self.idle_count -= 1;
    }

    /// Checks everything that must hold between two steps, given the tables of all sequences. Slow: for tests.
    pub fn check(&self, tables: &[&[u32]]) {
        let count = self.blocks.len();
        let mut refs = vec![0; count];
        tables.iter().flat_map(|t| t.iter()).for_each(|b| refs[*b as usize] += 1);
        let mut children = vec![0; count];
        let mut idle = Vec::new();
        let mut at = self.head;
        while at != NONE {
            idle.push(at);
            at = self.blocks[at as usize].after;
        }
        assert_eq!(idle.len(), self.idle_count, "the list and its count differ");
        for (block, entry) in self.blocks.iter().enumerate() {
            assert_eq!(entry.refs, refs[block], "block {block} counts other holders than there are");
            let in_free = self.free.iter().filter(|b| **b as usize == block).count();
            let in_idle = idle.iter().filter(|b| **b as usize == block).count();
            let places = in_free + in_idle + usize::from(entry.refs > 0);
            assert_eq!(places, 1, "block {block} is in {places} places");
            if entry.serial > 0 {
                assert_eq!(in_free, 0, "block {block} is free and in the tree");
                assert_eq!(self.index.get(&(entry.parent, entry.tokens)), Some(&(block as u32)));
                if entry.parent != NONE {
                    children[entry.parent as usize] += 1;
                    assert!(self.blocks[entry.parent as usize].serial > 0, "block {block} has lost its parent");
                }
            }
        }
        for (block, entry) in self.blocks.iter().enumerate() {
            assert_eq!(entry.children, children[block], "block {block} counts other children than there are");
        }
        assert_eq!(self.index.len(), self.blocks.iter().filter(|b| b.serial > 0).count());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(blocks: &[u32]) -> Vec<u32> {
        blocks.iter().flat_map(|b| [*b; BLOCK_LEN]).collect()
    }

    fn run(kv: &mut KvBlocks, context: &[u32]) -> usize {
        let text = tokens(context);
        let mut table = Vec::new();
        let matched = kv.take(&text, context.len(), &mut table).expect("there is room");
        for index in matched..context.len() {
            kv.publish(&mut table, index, text[index * BLOCK_LEN..].first_chunk().expect("a whole block"));
        }
        kv.check(&[&table]);
        kv.release(&table);
        kv.check(&[]);
        matched
    }

    #[test]
    fn a_prefix_is_found_again() {
        let mut kv = KvBlocks::new(8);
        assert_eq!(run(&mut kv, &[1, 2, 3]), 0);
        assert_eq!(run(&mut kv, &[1, 2, 3]), 3);
        assert_eq!(run(&mut kv, &[1, 2, 4]), 2);
        assert_eq!(run(&mut kv, &[2, 2]), 0);
        assert_eq!((kv.used_count(), kv.idle_count()), (0, 6));
    }

    #[test]
    fn the_end_of_the_oldest_path_goes_first() {
        let mut kv = KvBlocks::new(4);
        run(&mut kv, &[1, 2]);
        run(&mut kv, &[5, 6]);
        run(&mut kv, &[1]);
        run(&mut kv, &[9]);
        assert_eq!(kv.path(&tokens(&[1, 2])).count(), 1, "the child of a path that was used again was the oldest");
        assert_eq!(kv.path(&tokens(&[5, 6])).count(), 2);
    }

    #[test]
    fn the_same_block_made_twice_is_kept_once() {
        let mut kv = KvBlocks::new(4);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        kv.take(&[], 2, &mut a).expect("there is room");
        kv.take(&[], 2, &mut b).expect("there is room");
        for table in [&mut a, &mut b] {
            kv.publish(table, 0, &[7; BLOCK_LEN]);
            kv.publish(table, 1, &[8; BLOCK_LEN]);
        }
        assert_eq!(a, b);
        kv.check(&[&a, &b]);
        assert_eq!(kv.used_count(), 2);
        kv.release(&a);
        assert_eq!((kv.used_count(), kv.idle_count()), (2, 0));
        kv.release(&b);
        assert_eq!((kv.used_count(), kv.idle_count()), (0, 2));
    }

    #[test]
    fn what_does_not_fit_takes_nothing() {
        let mut kv = KvBlocks::new(3);
        run(&mut kv, &[1, 2]);
        let mut table = Vec::new();
        assert_eq!(kv.take(&tokens(&[1, 2]), 4, &mut table), None);
        assert!(table.is_empty());
        kv.check(&[]);
        assert_eq!(kv.take(&tokens(&[1, 2]), 3, &mut table), Some(2));
    }
}
