//! The waiting requests of an engine that decides on a step while the one before it still runs.

use crate::ids::RequestId;
use std::collections::VecDeque;

/// A queue that knows which of its requests a decision could see.
///
/// vLLM's asynchronous scheduling, SGLang's overlap scheduler and TensorRT-LLM's overlapping
/// executor all read new requests and choose the next step's batch right after they launched the one
/// before. So a request that arrives during a step is not in the next step but in the one after
/// it, unless the engine stood still.
pub(super) struct Door {
    waiting: VecDeque<RequestId>,
    /// Whether decisions are made one step ahead.
    ahead: bool,
    /// Requests at the end of the queue that arrived since the last decision was made.
    fresh: usize,
    /// A step has ended and the next decision follows without a pause.
    busy: bool,
    /// Requests that the last decision could not see.
    unseen: usize,
}

impl Door {
    pub(super) fn new(ahead: bool) -> Self {
        Door { waiting: VecDeque::new(), ahead, fresh: 0, busy: false, unseen: 0 }
    }

    pub(super) fn enqueue(&mut self, id: RequestId) {
        self.waiting.push_back(id);
        self.fresh += 1;
    }

    /// A step has ended.
    pub(super) fn step_ended(&mut self) {
        self.busy = true;
    }

    /// A decision is made: how many requests at the head of the queue it sees.
    pub(super) fn open(&mut self) -> usize {
        let hidden = if self.ahead && self.busy { self.fresh } else { 0 };
        self.busy = false;
        self.fresh = 0;
        self.unseen = hidden;
        self.waiting.len() - hidden
    }

    /// Nothing else could run: the engine looks again. How many requests it sees now.
    pub(super) fn look_again(&mut self) -> usize {
        self.unseen = 0;
        self.waiting.len()
    }

    /// Whether requests wait that the last decision could not see.
    pub(super) fn has_unseen(&self) -> bool {
        self.unseen > 0
    }

    pub(super) fn front(&self) -> Option<RequestId> {
        self.waiting.front().copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = RequestId> + '_ {
        self.waiting.iter().copied()
    }

    pub(super) fn pop(&mut self) {
        self.waiting.pop_front();
    }

    /// Puts a request back at the head of the queue.
    pub(super) fn put_first(&mut self, id: RequestId) {
        self.waiting.push_front(id);
    }

    /// Puts a request back behind all those that a decision has seen.
    pub(super) fn put_last(&mut self, id: RequestId) {
        self.waiting.insert(self.waiting.len() - self.fresh, id);
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}
