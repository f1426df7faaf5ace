//! The requests that run together in one step.

use super::request::Request;
use crate::cost::{BatchShape, PrefillChunk};
use crate::ids::RequestId;

/// One request's part in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whose.
    pub request: RequestId,
    /// Tokens computed in this step: a prompt chunk, or 1 when decoding.
    pub tokens: u32,
    /// Whether they belong to a prompt, or to what a restart computes again.
    pub prefill: bool,
}

/// A batch: who is in it, and its shape as the cost model sees it.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Counts the batches of a run from 0, in the order of their formation.
    pub id: u64,
    /// In batch order.
    pub entries: Vec<Entry>,
    /// Read when the batch is formed; what happens to its requests later does not change it.
    pub shape: BatchShape,
}

impl Batch {
    /// Adds `tokens` tokens of a request, in its present state.
    pub fn push(&mut self, id: RequestId, request: &Request, tokens: u32) {
        debug_assert!(tokens > 0, "an entry computes something");
        let prefill = !request.is_prefill_complete();
        self.entries.push(Entry { request: id, tokens, prefill });
        if !prefill {
            self.shape.push_decode(request.processed);
        } else {
            self.shape.prefills.push(PrefillChunk {
                kv_tokens: request.processed,
                chunk_tokens: tokens,
                completes: request.processed + tokens == request.prefill_target,
            });
        }
    }

    /// Requests in the batch.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nobody is in it.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Empties the batch and keeps its allocations.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.shape.clear();
    }
}
