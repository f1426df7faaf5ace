//! One run at one rate: does it keep the objectives?
//!
//! An observer keeps the times of every request, and ends the run as soon as the answer is certain:
//! when so many requests have missed a limit, or are overdue, that no later one could mend it; when the
//! queue grows without end; or when the last request that counts is done. What it says of the
//! objectives is what the whole run would have said.

use super::queue::QueueGrowth;
use super::slo::{Measured, Rule, Statistic, Term};
use super::watch::Watch;
use crate::cost::StepCost;
use crate::ids::{ReplicaId, RequestId, StageId};
use crate::metrics::Figure;
use crate::sim::{Batch, KvBlocks, Observer, Repeat, Request};
use crate::stats::{self, Sketch};
use crate::units::{SimDuration, SimTime};
use crate::workload::Workload;
use std::ops::Range;

/// The times of one request, nanoseconds; [`u64::MAX`] until known.
#[derive(Clone, Copy, Debug)]
struct Times {
    arrived: u64,
    scheduled: u64,
    first_token: u64,
    last_token: u64,
    completed: u64,
    output_tokens: u32,
    /// Missed a limit of goodput.
    bad: bool,
}

/// Not yet.
const NEVER: u64 = u64::MAX;

/// Why a rate does not pass.
#[derive(Clone, Debug, PartialEq)]
pub enum Broken {
    /// This objective is missed.
    Term(Term),
    /// The queue grows.
    QueueGrows,
}

/// Watches one run.
pub struct Probe {
    watches: Vec<Watch>,
    growth: Option<QueueGrowth>,
    times: Vec<Times>,
    counted: Range<usize>,
    /// Requests that count and are not complete.
    left: usize,
    waiting: Vec<u64>,
    all_waiting: u64,
    broken: Option<Broken>,
    stops_early: bool,
    /// Gaps between tokens of the requests that count.
    pub gaps: Sketch,
    /// Batches formed.
    pub batches: u64,
    /// Requests over all batches.
    pub batch_requests: u64,
    /// Time in which stages were busy, nanoseconds over all stages.
    pub busy_ns: u64,
    /// The part of it that was predicted outside the measured range.
    pub extrapolated_ns: u64,
    /// Most KV blocks in use on one replica.
    pub kv_peak: u32,
    /// Times that a request lost its KV cache.
    pub restarts: u64,
}

impl Probe {
    /// Watches `rule` over the requests `counted` of `workload` on `replicas` replicas. The queue may
    /// grow by the share `growth_tolerance` of the arrivals. With `stops_early` the run ends when the
    /// answer is no.
    pub fn new(
        rule: &Rule,
        workload: &Workload,
        counted: Range<usize>,
        replicas: u32,
        growth_tolerance: f64,
        stops_early: bool,
    ) -> Probe {
        let those = workload.requests.get(counted.clone()).unwrap_or_default();
        let gaps = those.iter().map(|r| u64::from(r.decode_tokens.saturating_sub(1))).sum();
        let several = those.iter().filter(|r| r.decode_tokens > 1).count() as u64;
        let n = those.len() as u64;
        let watch = |term| {
            let mut watch = Watch::new(term, n, several, gaps);
            watch.overdue = counted.start;
            watch
        };
        Probe {
            watches: rule.terms.iter().map(watch).collect(),
            growth: (!rule.vidur).then(|| QueueGrowth::new(counted.len(), growth_tolerance)),
            times: Vec::with_capacity(workload.requests.len()),
            left: counted.len(),
            counted,
            waiting: vec![0; replicas as usize],
            all_waiting: 0,
            broken: None,
            stops_early,
            gaps: Sketch::default(),
            batches: 0,
            batch_requests: 0,
            busy_ns: 0,
            extrapolated_ns: 0,
            kv_peak: 0,
            restarts: 0,
        }
    }

    /// Whether every request that counts was served, so that latencies can be stated.
    pub fn is_complete(&self) -> bool {
        self.left == 0
    }

    /// A latency of every request that counts and has it, milliseconds. All of them once
    /// [`Probe::is_complete`].
    pub fn values(&self, figure: Figure) -> Vec<f64> {
        let those = self.times.get(self.counted.clone()).unwrap_or_default();
        those.iter().filter_map(|t| t.ms(figure)).collect()
    }

    /// The value of a statistic, milliseconds.
    pub fn statistic(&self, measured: Measured, statistic: Statistic) -> Option<f64> {
        match measured {
            Measured::Gaps => match statistic {
                Statistic::Mean => self.gaps.mean(),
                Statistic::Quantile(q) => self.gaps.quantile(q),
            }
            .map(|ns| ns * 1e-6),
            Measured::Request(figure) => {
                let mut values = self.values(figure);
                match statistic {
                    Statistic::Mean => stats::mean(&values),
                    Statistic::Quantile(q) => {
                        values.sort_by(f64::total_cmp);
                        stats::quantile_sorted(&values, q)
                    }
                }
            }
        }
    }

    /// Per cent of the requests that count and met every limit of goodput.
    fn good_percent(&self) -> f64 {
        let those = self.times.get(self.counted.clone()).unwrap_or_default();
        let good = those.iter().filter(|t| !t.bad).count();
        if those.is_empty() { 0.0 } else { 100.0 * good as f64 / those.len() as f64 }
    }

    /// What an objective came to: milliseconds, or per cent of good requests.
    pub fn reached(&self, term: &Term) -> Option<f64> {
        match term {
            Term::Bound { measured, statistic, .. } => self.statistic(*measured, *statistic),
            Term::Good { .. } => Some(self.good_percent()),
        }
    }

    /// Why the rate does not pass; `None` when it does.
    pub fn verdict(&self) -> Option<Broken> {
        if self.broken.is_some() {
            return self.broken.clone();
        }
        let missed = |watch: &&Watch| match &watch.term {
            Term::Bound { measured, statistic, limit_ms } => {
                // A request that has no such latency misses no limit.
                self.statistic(*measured, *statistic).is_some_and(|value| value > *limit_ms)
            }
            Term::Good { .. } => watch.is_lost(),
        };
        self.watches.iter().find(missed).map(|watch| Broken::Term(watch.term.clone()))
    }

    fn counts(&self, id: RequestId) -> bool {
        self.counted.contains(&id.index())
    }

    /// A latency of a request that counts became known.
    fn value(&mut self, id: usize, figure: Figure) {
        let Some(ms) = self.times[id].ms(figure) else { return };
        // Cut, so that nothing is taken for more than it is.
        let ns = (ms * 1e6) as u64;
        for watch in &mut self.watches {
            if watch.is_on(Measured::Request(figure))
                && watch.deadline_ns().is_none_or(|_| id >= watch.overdue)
            {
                watch.value(ns, 1);
            }
        }
    }

    /// Requests that have waited beyond a limit have missed it, however long they go on waiting.
    fn overdue(&mut self, now: u64) {
        let end = self.times.len().min(self.counted.end);
        for watch in &mut self.watches {
            let Some(limit) = watch.deadline_ns() else { continue };
            let Term::Bound { measured: Measured::Request(figure), .. } = watch.term else {
                continue;
            };
            while watch.overdue < end {
                let times = &self.times[watch.overdue];
                if times.arrived.saturating_add(limit) >= now {
                    break;
                }
                if times.ms(figure).is_none() {
                    watch.miss();
                }
                watch.overdue += 1;
            }
        }
    }

    /// Looks at a request that counts for the limits of goodput.
    fn judge(&mut self, id: usize) {
        for watch in &mut self.watches {
            let Some(slo) = watch.good().copied() else { continue };
            let times = &mut self.times[id];
            let ms = |figure| times.ms(figure).unwrap_or(0.0);
            let good = slo.met_by(ms(Figure::Ttft), ms(Figure::Tpot), ms(Figure::E2e));
            if !good && !times.bad {
                times.bad = true;
                watch.miss();
            }
        }
    }

    fn look(&mut self) {
        if self.broken.is_none() {
            let lost = self.watches.iter().find(|watch| watch.is_lost());
            self.broken = lost.map(|watch| Broken::Term(watch.term.clone()));
        }
    }

    fn ran(&mut self, cost: StepCost) {
        self.busy_ns += cost.duration.as_ns();
        if cost.extrapolated {
            self.extrapolated_ns += cost.duration.as_ns();
        }
    }

    fn gap(&mut self, gap: SimDuration, times: u64) {
        if times == 0 {
            return;
        }
        self.gaps.add_times(gap.as_ns(), times);
        for watch in self.watches.iter_mut().filter(|w| w.is_on(Measured::Gaps)) {
            watch.value(gap.as_ns(), times);
        }
    }
}

impl Times {
    /// A latency in milliseconds, once it is known; as [`crate::metrics::RequestRecord`] has it.
    fn ms(&self, figure: Figure) -> Option<f64> {
        let since = |later: u64, earlier: u64| {
            let known = later != NEVER && earlier != NEVER;
            known.then(|| SimDuration::from_ns(later.saturating_sub(earlier)).as_ms())
        };
        let n = f64::from(self.output_tokens);
        match figure {
            Figure::Ttft => since(self.first_token, self.arrived),
            Figure::Queueing => since(self.scheduled, self.arrived),
            Figure::E2e => since(self.completed, self.arrived),
            Figure::Normalized => Some(since(self.completed, self.arrived)? / n),
            Figure::TpotOverAll => Some(since(self.completed, self.first_token)? / n),
            Figure::Tpot if self.output_tokens > 1 => {
                Some(since(self.completed, self.first_token)? / (n - 1.0))
            }
            Figure::Tpot => None,
        }
    }
}

impl Observer for Probe {
    fn arrived(&mut self, now: SimTime, id: RequestId, request: &Request, _: ReplicaId) {
        self.times.push(Times {
            arrived: request.arrived_at.as_ns(),
            scheduled: NEVER,
            first_token: NEVER,
            last_token: NEVER,
            completed: NEVER,
            output_tokens: request.output_tokens,
            bad: false,
        });
        self.overdue(now.as_ns());
        if self.counts(id)
            && let Some(growth) = &mut self.growth
            && growth.arrival(self.all_waiting)
            && self.broken.is_none()
        {
            self.broken = Some(Broken::QueueGrows);
        }
        self.look();
    }

    fn batch_formed(&mut self, now: SimTime, _: ReplicaId, batch: &Batch, kv: &KvBlocks) {
        self.batches += 1;
        self.batch_requests += batch.len() as u64;
        self.kv_peak = self.kv_peak.max(kv.used());
        // A request is first scheduled with the first chunk of its prompt.
        if !batch.shape.prefills.iter().any(|chunk| chunk.kv_tokens == 0) {
            return;
        }
        for entry in &batch.entries {
            let id = entry.request;
            if self.times[id.index()].scheduled == NEVER {
                self.times[id.index()].scheduled = now.as_ns();
                if self.counts(id) {
                    self.value(id.index(), Figure::Queueing);
                }
            }
        }
    }

    fn stage_started(&mut self, _: SimTime, _: ReplicaId, _: StageId, _: &Batch, cost: StepCost) {
        self.ran(cost);
    }

    fn batch_ended(
        &mut self,
        now: SimTime,
        _: ReplicaId,
        _: &Batch,
        emitted: &[RequestId],
        _: &[Request],
    ) {
        // Requests that decode together mostly had their last token together too.
        let (mut gap, mut count) = (SimDuration::ZERO, 0);
        for &id in emitted {
            let counts = self.counts(id);
            let times = &mut self.times[id.index()];
            let last = std::mem::replace(&mut times.last_token, now.as_ns());
            if last == NEVER {
                times.first_token = now.as_ns();
                if counts {
                    self.value(id.index(), Figure::Ttft);
                }
            } else if counts {
                let this = SimDuration::from_ns(now.as_ns() - last);
                if this != gap {
                    self.gap(gap, count);
                    (gap, count) = (this, 0);
                }
                count += 1;
            }
        }
        self.gap(gap, count);
    }

    fn takes_repeats(&self) -> bool {
        true
    }

    fn repeated(&mut self, _: ReplicaId, batch: &Batch, _: &[Request], repeats: &[Repeat]) {
        let (Some(first), Some(last)) = (repeats.first(), repeats.last()) else { return };
        let mut counted = 0;
        for entry in &batch.entries {
            let times = &mut self.times[entry.request.index()];
            let since = std::mem::replace(&mut times.last_token, last.at.as_ns());
            if self.counted.contains(&entry.request.index()) {
                counted += 1;
                self.gap(first.at.since(SimTime::from_ns(since)), 1);
            }
        }
        for pair in repeats.windows(2) {
            if let [a, b] = pair {
                self.gap(b.at.since(a.at), counted);
            }
        }
        for repeat in repeats {
            self.ran(repeat.cost);
            self.kv_peak = self.kv_peak.max(repeat.kv_used);
        }
        self.batches += repeats.len() as u64;
        self.batch_requests += (repeats.len() * batch.len()) as u64;
    }

    fn restarted(&mut self, _: SimTime, _: RequestId, _: &Request) {
        self.restarts += 1;
    }

    fn completed(&mut self, now: SimTime, id: RequestId, _: &Request) {
        self.times[id.index()].completed = now.as_ns();
        if self.counts(id) {
            self.left -= 1;
            self.value(id.index(), Figure::Tpot);
            self.value(id.index(), Figure::E2e);
            self.judge(id.index());
            self.look();
        }
    }

    fn settled(&mut self, _: SimTime, replica: ReplicaId, _: &KvBlocks, waiting: usize) {
        let own = &mut self.waiting[replica.index()];
        self.all_waiting = self.all_waiting - *own + waiting as u64;
        *own = waiting as u64;
    }

    fn enough(&self) -> bool {
        self.left == 0 || (self.stops_early && self.broken.is_some())
    }
}
