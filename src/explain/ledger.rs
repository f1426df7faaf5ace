//! Where every nanosecond of every request went: an observer that books each moment once.

use super::parts::{Cutter, Part, Parts};
use crate::cost::{CostModel, StepCost};
use crate::ids::{ReplicaId, RequestId, StageId};
use crate::sim::{Batch, KvBlocks, Observer, Request};
use crate::units::SimTime;

/// The books of one request.
#[derive(Clone, Debug)]
pub struct Account {
    /// Booked up to here.
    mark: SimTime,
    scheduled: bool,
    /// It lost its cache and has had no new token since.
    lost: bool,
    /// Arrival to first token.
    pub to_first: Option<Parts>,
    /// Arrival to now, in the end to the last token.
    pub all: Parts,
    /// Output tokens so far.
    pub tokens: u32,
    done: bool,
}

impl Account {
    /// First token to last token.
    pub fn after_first(&self) -> Parts {
        self.all.since(&self.to_first.unwrap_or_default())
    }
}

/// A batch under way: its time on stages so far.
struct UnderWay {
    batch: u64,
    formed_at: SimTime,
    parts: Parts,
}

/// Books the time of every request.
pub struct Ledger<'a> {
    cutter: Cutter<'a>,
    /// By request id.
    pub accounts: Vec<Account>,
    under_way: Vec<UnderWay>,
}

impl<'a> Ledger<'a> {
    /// An empty ledger of a run whose steps `cost` prices.
    pub fn new(cost: &'a dyn CostModel) -> Self {
        Ledger { cutter: Cutter::new(cost), accounts: Vec::new(), under_way: Vec::new() }
    }

    /// The accounts of requests that have all their tokens.
    pub fn done(&self) -> impl Iterator<Item = &Account> {
        self.accounts.iter().filter(|a| a.done)
    }
}

impl Observer for Ledger<'_> {
    fn arrived(&mut self, now: SimTime, _: RequestId, request: &Request, _: ReplicaId) {
        let mut all = Parts::default();
        all[Part::FrontEnd] = now.since(request.arrived_at).as_ns();
        self.accounts.push(Account {
            mark: now,
            scheduled: false,
            lost: false,
            to_first: None,
            all,
            tokens: 0,
            done: false,
        });
    }

    fn batch_formed(&mut self, now: SimTime, _: ReplicaId, batch: &Batch, _: &KvBlocks) {
        for entry in &batch.entries {
            let account = &mut self.accounts[entry.request.index()];
            let part = match (account.scheduled, account.lost) {
                (false, _) => Part::Queueing,
                (true, true) => Part::Preemption,
                (true, false) => Part::WaitingForTurn,
            };
            account.all[part] += now.since(account.mark).as_ns();
            account.mark = now;
            account.scheduled = true;
        }
        let parts = Parts::default();
        self.under_way.push(UnderWay { batch: batch.id, formed_at: now, parts });
    }

    fn stage_started(
        &mut self,
        _: SimTime,
        _: ReplicaId,
        stage: StageId,
        batch: &Batch,
        cost: StepCost,
    ) {
        let parts = self.cutter.cut(stage, &batch.shape, cost);
        if let Some(under_way) = self.under_way.iter_mut().find(|u| u.batch == batch.id) {
            under_way.parts += &parts;
        }
    }

    fn batch_ended(
        &mut self,
        now: SimTime,
        _: ReplicaId,
        batch: &Batch,
        emitted: &[RequestId],
        _: &[Request],
    ) {
        let Some(at) = self.under_way.iter().position(|u| u.batch == batch.id) else { return };
        let UnderWay { formed_at, mut parts, .. } = self.under_way.swap_remove(at);
        let whole = now.since(formed_at).as_ns();
        parts[Part::PipelineBubble] += whole.saturating_sub(parts.total());
        for entry in &batch.entries {
            let account = &mut self.accounts[entry.request.index()];
            if account.lost {
                account.all[Part::Preemption] += whole;
            } else {
                account.all += &parts;
            }
            account.mark = now;
        }
        for id in emitted {
            let account = &mut self.accounts[id.index()];
            account.tokens += 1;
            account.lost = false;
            account.to_first.get_or_insert(account.all);
        }
    }

    fn restarted(&mut self, _: SimTime, id: RequestId, _: &Request) {
        self.accounts[id.index()].lost = true;
    }

    fn completed(&mut self, _: SimTime, id: RequestId, _: &Request) {
        self.accounts[id.index()].done = true;
    }
}
