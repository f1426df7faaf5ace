//! An observer that checks what must hold in every run, whatever the scheduler, the router, the
//! parallelism and the workload. On in every test.
//!
//! 1. Time never goes back.
//! 2. A request arrives once, is in at most one batch at a time, and completes once.
//! 3. Its output tokens appear one by one, none before its arrival, through any restart.
//! 4. It never computes more tokens than exist, and completes with exactly what was asked for.
//! 5. A batch keeps the scheduler's limits; every entry computes at least one token.
//! 6. KV blocks in use never exceed the capacity, cover what runs, and are all free at the end.
//! 7. A stage runs one batch at a time.

use super::batch::Batch;
use super::kv_blocks::KvBlocks;
use super::observer::Observer;
use super::request::Request;
use super::scheduler::BatchLimits;
use crate::cost::StepCost;
use crate::ids::{ReplicaId, RequestId, StageId};
use crate::units::SimTime;
use std::collections::HashMap;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    InBatch,
    Done,
}

struct Seen {
    phase: Phase,
    arrived_at: SimTime,
    emitted: u32,
    replica: ReplicaId,
}

/// Collects violations; ask [`Invariants::violations`] after the run.
pub struct Invariants {
    limits: BatchLimits,
    now: SimTime,
    requests: Vec<Seen>,
    stage_busy_until: HashMap<(ReplicaId, StageId), SimTime>,
    kv_used: HashMap<ReplicaId, u32>,
    violations: Vec<String>,
    ended: bool,
}

impl Invariants {
    /// Checks a run whose batches must keep `limits`.
    pub fn new(limits: BatchLimits) -> Self {
        Invariants {
            limits,
            now: SimTime::ZERO,
            requests: Vec::new(),
            stage_busy_until: HashMap::new(),
            kv_used: HashMap::new(),
            violations: Vec::new(),
            ended: false,
        }
    }

    /// What did not hold, in order; empty after a sound run that has ended.
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    fn check(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.violations.len() < 20 {
            self.violations.push(format!("at {}: {}", self.now, what()));
        }
    }

    fn clock(&mut self, now: SimTime) {
        let before = self.now;
        self.check(now >= before, || format!("the clock went back to {now}"));
        self.check(!self.ended, || "something happened after the end".into());
        self.now = now;
    }

    fn with_request(&mut self, id: RequestId, check: impl FnOnce(&mut Seen) -> Option<String>) {
        let broken = match self.requests.get_mut(id.index()) {
            Some(seen) => check(seen),
            None => Some(format!("request {id} was never seen to arrive")),
        };
        if let Some(what) = broken {
            self.check(false, || what);
        }
    }
}

impl Observer for Invariants {
    fn arrived(&mut self, now: SimTime, id: RequestId, request: &Request, replica: ReplicaId) {
        self.clock(now);
        let expected = self.requests.len();
        self.check(id.index() == expected, || format!("request {id} arrived out of turn"));
        self.check(request.arrived_at <= now, || format!("request {id} was routed early"));
        self.requests.push(Seen { phase: Phase::Waiting, arrived_at: now, emitted: 0, replica });
    }

    fn batch_formed(&mut self, now: SimTime, replica: ReplicaId, batch: &Batch, kv: &KvBlocks) {
        self.clock(now);
        let limits = self.limits;
        let tokens = batch.shape.num_tokens();
        self.check(!batch.is_empty(), || "an empty batch was formed".into());
        self.check(batch.len() <= limits.max_seqs as usize, || {
            format!("batch {} has {} requests, limit {}", batch.id, batch.len(), limits.max_seqs)
        });
        self.check(tokens <= u64::from(limits.max_tokens), || {
            format!("batch {} has {tokens} tokens, limit {}", batch.id, limits.max_tokens)
        });
        self.check(kv.used() <= kv.capacity(), || "more KV blocks in use than exist".into());
        self.kv_used.insert(replica, kv.used());
        for entry in &batch.entries {
            let id = entry.request;
            self.check(entry.tokens > 0, || format!("request {id} computes nothing"));
            self.with_request(id, |seen| {
                let phase = std::mem::replace(&mut seen.phase, Phase::InBatch);
                match phase {
                    Phase::Waiting if seen.replica == replica => None,
                    Phase::Waiting => Some(format!("request {id} changed its replica")),
                    Phase::InBatch => Some(format!("request {id} is in two batches")),
                    Phase::Done => Some(format!("request {id} runs after its end")),
                }
            });
        }
    }

    fn stage_started(
        &mut self,
        now: SimTime,
        replica: ReplicaId,
        stage: StageId,
        _: &Batch,
        cost: StepCost,
    ) {
        self.clock(now);
        let until = self.stage_busy_until.insert((replica, stage), now + cost.duration);
        self.check(until.is_none_or(|t| t <= now), || {
            format!("stage {stage} of replica {replica} runs two batches")
        });
    }

    fn batch_ended(
        &mut self,
        now: SimTime,
        _: ReplicaId,
        batch: &Batch,
        emitted: &[RequestId],
        requests: &[Request],
    ) {
        self.clock(now);
        for entry in &batch.entries {
            self.with_request(entry.request, |seen| {
                seen.phase = Phase::Waiting;
                None
            });
        }
        for &id in emitted {
            let request = &requests[id.index()];
            let emitted = request.emitted();
            self.check(request.processed <= request.total_tokens(), || {
                format!("request {id} computed more tokens than it has")
            });
            self.with_request(id, |seen| {
                seen.emitted += 1;
                let (count, arrived) = (seen.emitted, seen.arrived_at);
                if emitted != count {
                    return Some(format!("token {count} of request {id} was called {emitted}"));
                }
                (now < arrived).then(|| format!("request {id} got a token before it arrived"))
            });
        }
    }

    fn restarted(&mut self, now: SimTime, id: RequestId, _: &Request) {
        self.clock(now);
        self.with_request(id, |seen| {
            (seen.phase != Phase::Waiting).then(|| format!("request {id} restarts while it runs"))
        });
    }

    fn completed(&mut self, now: SimTime, id: RequestId, request: &Request) {
        self.clock(now);
        self.with_request(id, |seen| {
            let phase = std::mem::replace(&mut seen.phase, Phase::Done);
            if phase == Phase::Done {
                return Some(format!("request {id} completed twice"));
            }
            (seen.emitted != request.output_tokens).then(|| {
                format!(
                    "request {id} completed with {} of {} tokens",
                    seen.emitted, request.output_tokens
                )
            })
        });
    }

    fn settled(&mut self, now: SimTime, replica: ReplicaId, kv: &KvBlocks, _: usize) {
        self.clock(now);
        self.check(kv.used() <= kv.capacity(), || "more KV blocks in use than exist".into());
        self.kv_used.insert(replica, kv.used());
    }

    fn ended(&mut self, now: SimTime) {
        self.clock(now);
        self.ended = true;
        let lost = self.requests.iter().filter(|r| r.phase != Phase::Done).count();
        self.check(lost == 0, || format!("{lost} requests were lost"));
        let held: u32 = self.kv_used.values().sum();
        self.check(held == 0, || format!("{held} KV blocks are held at the end"));
    }
}
