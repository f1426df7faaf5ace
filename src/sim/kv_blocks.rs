//! The paged KV cache of one replica, as a count of blocks: which request holds how many is kept in
//! the request. What blocks contain is known only where a scheduler shares prefixes
//! (`prefix_cache.rs`).

use super::prefix_cache::{BlockKey, PrefixCache};
use super::request::Request;
use crate::ids::RequestId;
use crate::workload::Prefixes;

/// Free and total blocks, and how many requests hold any.
#[derive(Clone, Debug)]
pub struct KvBlocks {
    capacity: u32,
    free: u32,
    block_size: u32,
    watermark: u32,
    residents: u32,
    contents: Option<PrefixCache>,
}

/// Blocks at the head of a prompt that need not be computed again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FoundPrefix {
    /// How many.
    pub blocks: u32,
    /// Of these, the ones that nobody holds.
    pub free: u32,
}

impl KvBlocks {
    /// An empty cache of `capacity` blocks of `block_size` tokens; new requests are admitted only
    /// while `watermark` blocks stay free.
    pub fn new(capacity: u32, block_size: u32, watermark: u32) -> Self {
        KvBlocks { capacity, free: capacity, block_size, watermark, residents: 0, contents: None }
    }

    /// The same cache, empty, which remembers what freed blocks contain.
    pub(super) fn with_contents(self) -> Self {
        KvBlocks { contents: Some(PrefixCache::new(self.capacity)), ..self }
    }

    /// Gives `count` free blocks away.
    fn take(&mut self, count: u32) {
        debug_assert!(count <= self.free, "taken without room");
        self.free -= count;
        if let Some(contents) = &mut self.contents {
            contents.take(count);
        }
    }

    /// Blocks in all.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Blocks that nobody holds.
    pub fn free(&self) -> u32 {
        self.free
    }

    /// Blocks that requests hold.
    pub fn used(&self) -> u32 {
        self.capacity - self.free
    }

    /// Tokens that fit into one block.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Requests that hold blocks.
    pub fn residents(&self) -> u32 {
        self.residents
    }

    /// Blocks that `tokens` tokens need.
    pub fn blocks_for(&self, tokens: u32) -> u32 {
        tokens.div_ceil(self.block_size)
    }

    /// Whether a new request may take blocks for `tokens` tokens and leave the watermark free.
    pub fn can_admit(&self, tokens: u32) -> bool {
        self.free >= self.blocks_for(tokens).saturating_add(self.watermark)
    }

    /// Whether blocks for `tokens` tokens are free, the watermark aside.
    pub fn has_room(&self, tokens: u32) -> bool {
        self.free >= self.blocks_for(tokens)
    }

    /// Gives `request`, which holds none, blocks for `tokens` tokens.
    ///
    /// Precondition: that many are free.
    pub fn admit(&mut self, request: &mut Request, tokens: u32) {
        debug_assert_eq!(request.blocks, 0, "a request is admitted once");
        let blocks = self.blocks_for(tokens);
        self.take(blocks);
        request.blocks = blocks;
        self.residents += 1;
    }

    /// Makes room for the tokens of `request`, however many blocks that takes. Says how many.
    ///
    /// Precondition: that many are free.
    pub fn grow_to_fit(&mut self, request: &mut Request) -> u32 {
        let more = self.blocks_for(request.processed).saturating_sub(request.blocks);
        self.take(more);
        request.blocks += more;
        more
    }

    /// Whether blocks are free for `request` to hold `tokens` tokens.
    pub fn can_hold(&self, request: &Request, tokens: u32) -> bool {
        self.free >= self.blocks_for(tokens).saturating_sub(request.blocks)
    }

    /// Gives `request`, which holds some, blocks for `tokens` tokens.
    ///
    /// Precondition: [`KvBlocks::can_hold`].
    pub fn hold(&mut self, request: &mut Request, tokens: u32) {
        let more = self.blocks_for(tokens).saturating_sub(request.blocks);
        self.take(more);
        request.blocks += more;
    }

    /// What the cache still has of the head of a waiting request. At least the last token is
    /// computed, so that there is something to sample from.
    pub(super) fn find(&self, id: RequestId, request: &Request, known: &Prefixes) -> FoundPrefix {
        let mut found = FoundPrefix::default();
        let Some(contents) = &self.contents else { return found };
        if request.restarts == 0 && known.of(id.index()).is_empty() {
            return found;
        }
        let most = request.prefill_target.saturating_sub(1) / self.block_size;
        while found.blocks < most {
            let Some(free) = contents.find(self.key(id, found.blocks, known)) else { break };
            found.blocks += 1;
            found.free += u32::from(free);
        }
        found
    }

    /// What block number `block` of a request holds when it is full.
    fn key(&self, id: RequestId, block: u32, known: &Prefixes) -> BlockKey {
        match known.hash_before(id.index(), (block + 1) * self.block_size) {
            Some(hash) => BlockKey::Prompt(hash, block),
            None => BlockKey::Own(id, block),
        }
    }

    /// Admits `request` with the prefix that [`KvBlocks::find`] found and blocks for `tokens`
    /// tokens in all; what was found counts as computed.
    pub(super) fn admit_found(
        &mut self,
        id: RequestId,
        request: &mut Request,
        found: FoundPrefix,
        tokens: u32,
        known: &Prefixes,
    ) {
        for block in 0..found.blocks {
            let key = self.key(id, block, known);
            if matches!(key, BlockKey::Prompt(..)) {
                request.shared_blocks += 1;
            }
            if let Some(contents) = &mut self.contents {
                contents.hold(key);
            }
        }
        self.free -= found.free;
        request.blocks = found.blocks;
        request.processed = found.blocks * self.block_size;
        self.hold(request, tokens);
        self.residents += 1;
    }

    /// Lets others find the blocks of `request`'s prompt that `computed` tokens fill.
    pub(super) fn publish(
        &mut self,
        id: RequestId,
        request: &mut Request,
        computed: u32,
        known: &Prefixes,
    ) {
        if self.contents.is_none() || known.of(id.index()).is_empty() {
            return;
        }
        let full = computed.min(request.prompt_tokens) / self.block_size;
        while request.shared_blocks < full {
            let key = self.key(id, request.shared_blocks, known);
            let new = matches!(key, BlockKey::Prompt(..))
                && self.contents.as_mut().is_some_and(|c| c.register(key));
            if !new {
                break;
            }
            request.shared_blocks += 1;
        }
    }

    /// Takes back what `request` holds, last block first. With `keep`, what it computed can be
    /// found again as long as nobody needs the room.
    pub(super) fn release_found(
        &mut self,
        id: RequestId,
        request: &mut Request,
        keep: bool,
        known: &Prefixes,
    ) {
        let shared = std::mem::take(&mut request.shared_blocks);
        if self.contents.is_none() || request.blocks == 0 {
            return self.release(request);
        }
        // The last token of a decoding request exists and is not computed.
        let computed = match request.is_prefill_complete() {
            true => request.processed - 1,
            false => request.processed,
        };
        let full = match keep {
            true => (computed / self.block_size).clamp(shared, request.blocks),
            false => shared,
        };
        let keys: Vec<BlockKey> = (0..full).map(|b| self.key(id, b, known)).collect();
        let mut freed = request.blocks - shared;
        if let Some(contents) = &mut self.contents {
            contents.put_blank(request.blocks - full);
            for (block, key) in keys.into_iter().enumerate().rev() {
                if block < shared as usize {
                    freed += u32::from(contents.drop_held(key));
                } else if matches!(key, BlockKey::Own(..)) {
                    contents.put(key);
                } else {
                    // Another request published the same content first.
                    contents.put_blank(1);
                }
            }
        }
        self.free += freed;
        self.residents -= 1;
        request.blocks = 0;
    }

    /// Makes room for the next token of `request`: one more block when its last one is full.
    ///
    /// Precondition: a block is free.
    pub fn grow(&mut self, request: &mut Request) {
        if request.processed > request.blocks * self.block_size {
            self.take(1);
            request.blocks += 1;
        }
    }

    /// Takes back what `request` holds.
    pub fn release(&mut self, request: &mut Request) {
        if request.blocks > 0 {
            self.free += request.blocks;
            if let Some(contents) = &mut self.contents {
                contents.put_blank(request.blocks);
            }
            request.blocks = 0;
            self.residents -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::SimTime;

    #[test]
    fn admission_leaves_the_watermark_free() {
        let kv = KvBlocks::new(10, 16, 2);
        assert!(kv.can_admit(8 * 16));
        assert!(!kv.can_admit(8 * 16 + 1));
    }

    #[test]
    fn a_block_is_added_only_when_the_last_is_full() {
        let mut kv = KvBlocks::new(10, 4, 0);
        let mut r = Request::new(SimTime::ZERO, 7, 9);
        kv.admit(&mut r, 7);
        r.processed = 8;
        kv.grow(&mut r);
        assert_eq!((r.blocks, kv.used()), (2, 2));
        r.processed = 9;
        kv.grow(&mut r);
        assert_eq!((r.blocks, kv.used(), kv.residents()), (3, 3, 1));
        kv.release(&mut r);
        kv.release(&mut r);
        assert_eq!((kv.used(), kv.residents()), (0, 0));
    }
}
