//! What a simulation tells: facts, as they happen, in order of time. Observers count, draw and
//! check; they cannot change anything, and a run is the same without them.

use super::batch::Batch;
use super::kv_blocks::KvBlocks;
use super::request::Request;
use crate::cost::StepCost;
use crate::ids::{ReplicaId, RequestId, StageId};
use crate::units::SimTime;

/// Receives the facts of one run. Every method does nothing by default.
#[allow(unused_variables)]
pub trait Observer {
    /// A request reached `replica`.
    fn arrived(&mut self, now: SimTime, id: RequestId, request: &Request, replica: ReplicaId) {}

    /// A scheduler formed a batch; `kv` is the cache after its blocks were taken.
    fn batch_formed(&mut self, now: SimTime, replica: ReplicaId, batch: &Batch, kv: &KvBlocks) {}

    /// A pipeline stage began a batch and will need `cost`.
    fn stage_started(
        &mut self,
        now: SimTime,
        replica: ReplicaId,
        stage: StageId,
        batch: &Batch,
        cost: StepCost,
    ) {
    }

    /// The last stage ended a batch; its requests have not moved on yet.
    fn batch_ended(&mut self, now: SimTime, replica: ReplicaId, batch: &Batch) {}

    /// An output token of `request` appeared; `request.emitted()` counts it.
    fn token(&mut self, now: SimTime, id: RequestId, request: &Request) {}

    /// A request lost its KV cache and waits again.
    fn restarted(&mut self, now: SimTime, id: RequestId, request: &Request) {}

    /// A request has all its tokens; its blocks are free again.
    fn completed(&mut self, now: SimTime, id: RequestId, request: &Request) {}

    /// All that could happen at `now` on `replica` has happened.
    fn settled(&mut self, now: SimTime, replica: ReplicaId, kv: &KvBlocks, waiting: usize) {}

    /// Nothing more will happen.
    fn ended(&mut self, now: SimTime) {}
}

/// Observes nothing.
pub struct Silent;

impl Observer for Silent {}

macro_rules! both {
    ($($method:ident($($arg:ident: $type:ty),*);)*) => {
        $(fn $method(&mut self, $($arg: $type),*) {
            self.0.$method($($arg),*);
            self.1.$method($($arg),*);
        })*
    };
}

/// Two observers, told one after the other.
impl<A: Observer, B: Observer> Observer for (A, B) {
    both! {
        arrived(now: SimTime, id: RequestId, request: &Request, replica: ReplicaId);
        batch_formed(now: SimTime, replica: ReplicaId, batch: &Batch, kv: &KvBlocks);
        stage_started(now: SimTime, replica: ReplicaId, stage: StageId, batch: &Batch, cost: StepCost);
        batch_ended(now: SimTime, replica: ReplicaId, batch: &Batch);
        token(now: SimTime, id: RequestId, request: &Request);
        restarted(now: SimTime, id: RequestId, request: &Request);
        completed(now: SimTime, id: RequestId, request: &Request);
        settled(now: SimTime, replica: ReplicaId, kv: &KvBlocks, waiting: usize);
        ended(now: SimTime);
    }
}

/// An observer or none.
impl<A: Observer> Observer for Option<A> {
    fn arrived(&mut self, now: SimTime, id: RequestId, request: &Request, replica: ReplicaId) {
        if let Some(o) = self {
            o.arrived(now, id, request, replica);
        }
    }
    fn batch_formed(&mut self, now: SimTime, replica: ReplicaId, batch: &Batch, kv: &KvBlocks) {
        if let Some(o) = self {
            o.batch_formed(now, replica, batch, kv);
        }
    }
    fn stage_started(
        &mut self,
        now: SimTime,
        replica: ReplicaId,
        stage: StageId,
        batch: &Batch,
        cost: StepCost,
    ) {
        if let Some(o) = self {
            o.stage_started(now, replica, stage, batch, cost);
        }
    }
    fn batch_ended(&mut self, now: SimTime, replica: ReplicaId, batch: &Batch) {
        if let Some(o) = self {
            o.batch_ended(now, replica, batch);
        }
    }
    fn token(&mut self, now: SimTime, id: RequestId, request: &Request) {
        if let Some(o) = self {
            o.token(now, id, request);
        }
    }
    fn restarted(&mut self, now: SimTime, id: RequestId, request: &Request) {
        if let Some(o) = self {
            o.restarted(now, id, request);
        }
    }
    fn completed(&mut self, now: SimTime, id: RequestId, request: &Request) {
        if let Some(o) = self {
            o.completed(now, id, request);
        }
    }
    fn settled(&mut self, now: SimTime, replica: ReplicaId, kv: &KvBlocks, waiting: usize) {
        if let Some(o) = self {
            o.settled(now, replica, kv, waiting);
        }
    }
    fn ended(&mut self, now: SimTime) {
        if let Some(o) = self {
            o.ended(now);
        }
    }
}
