//! Contents of the KV cache: which blocks that nobody holds can still be used again, and in which
//! order they are given away.
//!
//! Mirrors vLLM V1 (`v1/core/block_pool.py`, 0.11 to 0.24): freed blocks join the end of one queue,
//! the last block of a request first; new blocks come from its front; a block whose content is asked
//! for leaves the queue from wherever it stands. Blocks of a prompt are known by the hash chain
//! that the workload gives; all others by their request, which finds them again after a
//! preemption. When two requests compute the same new block at the same time, the second one's is
//! not shared (vLLM keeps both under one hash: equal in count).

use crate::ids::RequestId;
use rustc_hash::FxHashMap;
use std::collections::VecDeque;

/// What a full block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockKey {
    /// The tokens up to the end of block number `.1` of a prompt whose hash chain is `.0` there.
    Prompt(u64, u32),
    /// Block number `.1` of one request.
    Own(RequestId, u32),
}

#[derive(Clone, Copy, Debug)]
enum Free {
    /// So many blocks with nothing worth finding.
    Blank(u32),
    Cached(BlockKey),
    /// Was found again.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In use by so many requests.
    Held(u32),
    /// Free, at this place of the queue, counted from its beginning of time.
    Queued(u64),
}

/// The queue of free blocks, and the blocks that can be found.
#[derive(Clone, Debug)]
pub(super) struct PrefixCache {
    queue: VecDeque<Free>,
    /// Entries that have left the front of the queue.
    passed: u64,
    known: FxHashMap<BlockKey, Place>,
}

impl PrefixCache {
    /// All of `capacity` blocks free and blank.
    pub(super) fn new(capacity: u32) -> Self {
        let queue = VecDeque::from([Free::Blank(capacity)]);
        PrefixCache { queue, passed: 0, known: FxHashMap::default() }
    }

    /// Gives away the `count` blocks at the front, which must exist.
    pub(super) fn take(&mut self, mut count: u32) {
        while count > 0 {
            match self.queue.front_mut() {
                Some(Free::Blank(n)) if *n > count => {
                    *n -= count;
                    return;
                }
                Some(Free::Blank(n)) => count -= *n,
                Some(Free::Cached(key)) => {
                    self.known.remove(key);
                    count -= 1;
                }
                Some(Free::Gone) => {}
                None => return,
            }
            self.queue.pop_front();
            self.passed += 1;
        }
    }

    /// Frees `count` blocks that nobody will look for.
    pub(super) fn put_blank(&mut self, count: u32) {
        match self.queue.back_mut() {
            Some(Free::Blank(n)) => *n += count,
            _ if count > 0 => self.queue.push_back(Free::Blank(count)),
            _ => {}
        }
    }

    /// Frees one block that can be found again.
    pub(super) fn put(&mut self, key: BlockKey) {
        let place = self.passed + self.queue.len() as u64;
        self.queue.push_back(Free::Cached(key));
        self.known.insert(key, Place::Queued(place));
    }

    /// One holder of a shared block less. Says whether the block is free now.
    pub(super) fn drop_held(&mut self, key: BlockKey) -> bool {
        match self.known.get_mut(&key) {
            Some(Place::Held(holders)) if *holders > 1 => {
                *holders -= 1;
                false
            }
            _ => {
                self.put(key);
                true
            }
        }
    }

    /// Whether a block can be found, and if so whether it is free.
    pub(super) fn find(&self, key: BlockKey) -> Option<bool> {
        self.known.get(&key).map(|place| matches!(place, Place::Queued(_)))
    }

    /// Holds a block that [`PrefixCache::find`] found; one of a request's own is private again.
    pub(super) fn hold(&mut self, key: BlockKey) {
        let Some(place) = self.known.get_mut(&key) else { return };
        match *place {
            Place::Held(holders) => *place = Place::Held(holders + 1),
            Place::Queued(at) => {
                if let Some(entry) = self.queue.get_mut((at - self.passed) as usize) {
                    *entry = Free::Gone;
                }
                *place = Place::Held(1);
            }
        }
        if matches!(key, BlockKey::Own(..)) {
            self.known.remove(&key);
        }
    }

    /// Makes a block in use known. Says whether it was new.
    pub(super) fn register(&mut self, key: BlockKey) -> bool {
        let new = !self.known.contains_key(&key);
        if new {
            self.known.insert(key, Place::Held(1));
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> BlockKey {
        BlockKey::Prompt(7, n)
    }

    #[test]
    fn the_longest_free_go_first_and_found_ones_leave_the_queue() {
        let mut c = PrefixCache::new(2);
        c.take(2);
        for n in [0, 1] {
            assert!(c.register(key(n)));
        }
        assert!(!c.register(key(0)));
        assert!(c.drop_held(key(1)) && c.drop_held(key(0)));
        assert_eq!((c.find(key(0)), c.find(key(1))), (Some(true), Some(true)));
        c.hold(key(1));
        assert_eq!(c.find(key(1)), Some(false));
        // Only the other is left in the queue.
        c.take(1);
        assert_eq!(c.find(key(0)), None);
    }

    #[test]
    fn shared_blocks_are_free_when_the_last_holder_goes() {
        let mut c = PrefixCache::new(1);
        c.take(1);
        c.register(key(0));
        c.hold(key(0));
        assert!(!c.drop_held(key(0)));
        assert!(c.drop_held(key(0)));
        c.put_blank(3);
        c.put_blank(2);
        c.take(4);
        assert_eq!(c.find(key(0)), None);
        c.take(2);
    }

    #[test]
    fn what_a_request_finds_of_its_own_is_private_again() {
        let own = BlockKey::Own(RequestId(3), 0);
        let mut c = PrefixCache::new(1);
        c.take(1);
        c.put(own);
        assert_eq!(c.find(own), Some(true));
        c.hold(own);
        assert_eq!(c.find(own), None);
    }
}
