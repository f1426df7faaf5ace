//! KV blocks that waiting requests will take, for routers that look at caches: a burst that holds
//! nothing yet would all go to one replica otherwise.

use super::batch::Batch;
use crate::ids::{ReplicaId, RequestId};

/// Blocks that are waited for, by request and by replica.
#[derive(Debug)]
pub(super) struct Demand {
    requests: Vec<u32>,
    replicas: Vec<u32>,
}

impl Demand {
    pub(super) fn new(num_replicas: u32) -> Self {
        Demand { requests: Vec::new(), replicas: vec![0; num_replicas as usize] }
    }

    /// `id` waits at `replica` for `blocks`: it has arrived, or lost its cache.
    pub(super) fn waits(&mut self, replica: ReplicaId, id: RequestId, blocks: u32) {
        if id.index() >= self.requests.len() {
            self.requests.resize(id.index() + 1, 0);
        }
        let before = std::mem::replace(&mut self.requests[id.index()], blocks);
        let sum = &mut self.replicas[replica.index()];
        *sum = *sum + blocks - before;
    }

    /// `batch` was formed on `replica`: who is in it holds its blocks.
    pub(super) fn runs(&mut self, replica: ReplicaId, batch: &Batch) {
        for entry in batch.entries.iter().filter(|e| e.prefill) {
            let got = std::mem::take(&mut self.requests[entry.request.index()]);
            self.replicas[replica.index()] -= got;
        }
    }

    /// Blocks that requests wait for at `replica`.
    pub(super) fn of(&self, replica: ReplicaId) -> u32 {
        self.replicas[replica.index()]
    }
}
