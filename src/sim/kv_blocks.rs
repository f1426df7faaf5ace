//! The paged KV cache of one replica, as a count of blocks: which request holds how many is kept in
//! the request. Contents are not modelled.

use super::request::Request;

/// Free and total blocks, and how many requests hold any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvBlocks {
    capacity: u32,
    free: u32,
    block_size: u32,
    watermark: u32,
    residents: u32,
}

impl KvBlocks {
    /// An empty cache of `capacity` blocks of `block_size` tokens; new requests are admitted only
    /// while `watermark` blocks stay free.
    pub fn new(capacity: u32, block_size: u32, watermark: u32) -> Self {
        KvBlocks { capacity, free: capacity, block_size, watermark, residents: 0 }
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
        debug_assert!(blocks <= self.free, "admitted without room");
        self.free -= blocks;
        request.blocks = blocks;
        self.residents += 1;
    }

    /// Makes room for the tokens of `request`, however many blocks that takes. Says how many.
    ///
    /// Precondition: that many are free.
    pub fn grow_to_fit(&mut self, request: &mut Request) -> u32 {
        let more = self.blocks_for(request.processed).saturating_sub(request.blocks);
        debug_assert!(more <= self.free, "grown without room");
        self.free -= more;
        request.blocks += more;
        more
    }

    /// Makes room for the next token of `request`: one more block when its last one is full.
    ///
    /// Precondition: a block is free.
    pub fn grow(&mut self, request: &mut Request) {
        if request.processed > request.blocks * self.block_size {
            debug_assert!(self.free > 0, "grown without room");
            self.free -= 1;
            request.blocks += 1;
        }
    }

    /// Takes back what `request` holds.
    pub fn release(&mut self, request: &mut Request) {
        if request.blocks > 0 {
            self.free += request.blocks;
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
