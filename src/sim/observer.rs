//! What a simulation tells: facts, in order of time. Observers count, draw and check; they cannot
//! change anything, and a run is the same without them.
//!
//! One exception to the order: steps told together by [`Observer::repeated`] are in order among
//! the facts of their replica, but those of several replicas may be told one replica after the
//! other; [`PUNCTUALITY`] bounds how late.

use super::batch::Batch;
use super::kv_blocks::KvBlocks;
use super::request::Request;
use crate::cost::StepCost;
use crate::ids::{ReplicaId, RequestId, StageId};
use crate::units::{SimDuration, SimTime};

/// When an arrival of time `t` is told, or that a replica settled at `t`, every fact from before `t`
/// less this has been told.
pub const PUNCTUALITY: SimDuration = SimDuration::from_ns(1_000_000_000);

/// One step of a decode stretch: the batch ended and started again at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repeat {
    /// When the step before ended, every request of the batch got a token, and this one began.
    pub at: SimTime,
    /// What this step costs.
    pub cost: StepCost,
    /// KV blocks in use from here on.
    pub kv_used: u32,
}

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

    /// The last stage ended a batch. Each of `emitted`, in batch order, got its next output token:
    /// `requests[id].emitted()` counts it. Completions are told after that.
    fn batch_ended(
        &mut self,
        now: SimTime,
        replica: ReplicaId,
        batch: &Batch,
        emitted: &[RequestId],
        requests: &[Request],
    ) {
    }

    /// Whether steps of a batch that repeats unchanged may be told together, by
    /// [`Observer::repeated`]. Otherwise each is told by the facts above; the run is the same.
    fn takes_repeats(&self) -> bool {
        false
    }

    /// A batch of decoding requests on the only stage of `replica` repeated: for each repeat it
    /// ended, every request in it got a token, and it started again. `requests` shows the state
    /// after the last repeat.
    fn repeated(
        &mut self,
        replica: ReplicaId,
        batch: &Batch,
        requests: &[Request],
        repeats: &[Repeat],
    ) {
    }

    /// A request lost its KV cache and waits again.
    fn restarted(&mut self, now: SimTime, id: RequestId, request: &Request) {}

    /// A request has all its tokens. Its scheduler may hold its blocks a while longer.
    fn completed(&mut self, now: SimTime, id: RequestId, request: &Request) {}

    /// All that could happen at `now` on `replica` has happened.
    fn settled(&mut self, now: SimTime, replica: ReplicaId, kv: &KvBlocks, waiting: usize) {}

    /// Whether everything that this observer is there for has been told, so that the run may be cut
    /// short. What was told until then is the same as in the whole run.
    fn enough(&self) -> bool {
        false
    }

    /// Nothing more will happen, or will be told.
    fn ended(&mut self, now: SimTime) {}
}

/// Observes nothing.
pub struct Silent;

impl Observer for Silent {
    fn takes_repeats(&self) -> bool {
        true
    }
}

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
    fn takes_repeats(&self) -> bool {
        self.0.takes_repeats() && self.1.takes_repeats()
    }

    fn enough(&self) -> bool {
        self.0.enough() && self.1.enough()
    }

    both! {
        repeated(replica: ReplicaId, batch: &Batch, requests: &[Request], repeats: &[Repeat]);
        arrived(now: SimTime, id: RequestId, request: &Request, replica: ReplicaId);
        batch_formed(now: SimTime, replica: ReplicaId, batch: &Batch, kv: &KvBlocks);
        stage_started(now: SimTime, replica: ReplicaId, stage: StageId, batch: &Batch, cost: StepCost);
        batch_ended(now: SimTime, replica: ReplicaId, batch: &Batch, emitted: &[RequestId], requests: &[Request]);
        restarted(now: SimTime, id: RequestId, request: &Request);
        completed(now: SimTime, id: RequestId, request: &Request);
        settled(now: SimTime, replica: ReplicaId, kv: &KvBlocks, waiting: usize);
        ended(now: SimTime);
    }
}
