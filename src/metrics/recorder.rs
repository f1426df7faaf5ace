//! The observer that keeps what summaries and files need.

use crate::cost::StepCost;
use crate::ids::{ReplicaId, RequestId, StageId};
use crate::sim::{Batch, KvBlocks, Observer, Repeat, Request};
use crate::units::{SimDuration, SimTime};

/// The life of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRecord {
    /// When it reached the router.
    pub arrived_at: SimTime,
    /// When it was first put into a batch.
    pub scheduled_at: SimTime,
    /// When its first output token appeared.
    pub first_token_at: SimTime,
    /// When its last output token appeared.
    pub completed_at: SimTime,
    /// Time in running batches, all stages.
    pub execution: SimDuration,
    /// The part of it in which the host worked and the device waited.
    pub host: SimDuration,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens generated.
    pub output_tokens: u32,
    /// Times that it lost its KV cache.
    pub restarts: u32,
    /// Who served it.
    pub replica: ReplicaId,
    last_token_at: SimTime,
}

/// One batch on one stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageSpan {
    /// When it began.
    pub start: SimTime,
    /// How long it took.
    pub duration: SimDuration,
    /// On which replica.
    pub replica: ReplicaId,
    /// On which of its stages.
    pub stage: StageId,
    /// Which batch.
    pub batch: u64,
    /// Requests in it.
    pub num_requests: u32,
    /// Prompt tokens in it.
    pub num_prefill_tokens: u32,
    /// Sequences that decode in it.
    pub num_decode_tokens: u32,
}

/// Keeps the records of a run.
#[derive(Debug, Default)]
pub struct Recorder {
    /// By request id.
    pub requests: Vec<RequestRecord>,
    /// Gaps between consecutive tokens of a request, in nanoseconds, with how many tokens had them.
    pub token_gaps: Vec<(u64, u32)>,
    /// Every batch on every stage; empty unless asked for.
    pub spans: Vec<StageSpan>,
    /// Batches formed.
    pub num_batches: u64,
    /// Requests over all batches: divided by batches, the mean batch size.
    pub batch_requests: u64,
    /// Tokens over all batches.
    pub batch_tokens: u64,
    /// Time in which stages were busy, all stages together.
    pub busy: SimDuration,
    /// The part of it whose time was predicted outside the measured range.
    pub extrapolated: SimDuration,
    /// Times that a request lost its KV cache.
    pub num_restarts: u64,
    /// KV blocks of one replica.
    pub kv_capacity: u32,
    /// Most blocks in use on one replica.
    pub kv_peak: u32,
    /// Blocks times nanoseconds, all replicas.
    kv_area: u128,
    kv_now: Vec<(u32, SimTime)>,
    /// Execution and host time so far of batches under way, by batch id.
    under_way: Vec<(u64, SimDuration, SimDuration)>,
    keep_spans: bool,
}

impl Recorder {
    /// A recorder for `num_replicas` replicas; `keep_spans` also keeps every batch.
    pub fn new(num_replicas: u32, keep_spans: bool) -> Self {
        Recorder {
            kv_now: vec![(0, SimTime::ZERO); num_replicas as usize],
            keep_spans,
            ..Recorder::default()
        }
    }

    /// Mean KV blocks in use on one replica from time zero to `end`.
    pub fn kv_mean(&self, end: SimTime) -> f64 {
        let whole = end.as_ns() as f64 * self.kv_now.len() as f64;
        if whole == 0.0 { 0.0 } else { self.kv_area as f64 / whole }
    }

    /// Replicas of the run.
    pub fn num_replicas(&self) -> u32 {
        self.kv_now.len() as u32
    }

    fn gap(&mut self, gap: SimDuration) {
        self.gaps(gap, 1);
    }

    /// `tokens` tokens appeared `gap` after the ones before them.
    fn gaps(&mut self, gap: SimDuration, tokens: u32) {
        if let Some((ns, count)) = self.token_gaps.last_mut()
            && *ns == gap.as_ns()
            && let Some(sum) = count.checked_add(tokens)
        {
            *count = sum;
            return;
        }
        self.token_gaps.push((gap.as_ns(), tokens));
    }

    fn kv_changed(&mut self, now: SimTime, replica: ReplicaId, blocks: u32) {
        let (used, since) = &mut self.kv_now[replica.index()];
        self.kv_area += u128::from(*used) * u128::from(now.since(*since).as_ns());
        (*used, *since) = (blocks, now);
        self.kv_peak = self.kv_peak.max(blocks);
    }
}

impl Observer for Recorder {
    fn arrived(&mut self, now: SimTime, _: RequestId, request: &Request, replica: ReplicaId) {
        self.requests.push(RequestRecord {
            arrived_at: now,
            scheduled_at: SimTime::NEVER,
            first_token_at: SimTime::NEVER,
            completed_at: SimTime::NEVER,
            execution: SimDuration::ZERO,
            host: SimDuration::ZERO,
            prompt_tokens: request.prompt_tokens,
            output_tokens: request.output_tokens,
            restarts: 0,
            replica,
            last_token_at: SimTime::NEVER,
        });
    }

    fn batch_formed(&mut self, now: SimTime, _: ReplicaId, batch: &Batch, kv: &KvBlocks) {
        self.num_batches += 1;
        self.batch_requests += batch.len() as u64;
        self.batch_tokens += batch.shape.num_tokens();
        self.kv_capacity = kv.capacity();
        // A request is first scheduled with a prompt chunk.
        if !batch.shape.prefills.is_empty() {
            for entry in &batch.entries {
                let record = &mut self.requests[entry.request.index()];
                record.scheduled_at = record.scheduled_at.min(now);
            }
        }
        self.under_way.push((batch.id, SimDuration::ZERO, SimDuration::ZERO));
    }

    fn stage_started(
        &mut self,
        now: SimTime,
        replica: ReplicaId,
        stage: StageId,
        batch: &Batch,
        cost: StepCost,
    ) {
        self.busy += cost.duration;
        if cost.extrapolated {
            self.extrapolated += cost.duration;
        }
        if let Some((_, execution, host)) = self.under_way.iter_mut().find(|u| u.0 == batch.id) {
            *execution += cost.duration;
            *host += cost.host;
        }
        if self.keep_spans {
            self.spans.push(StageSpan {
                start: now,
                duration: cost.duration,
                replica,
                stage,
                batch: batch.id,
                num_requests: batch.len() as u32,
                num_prefill_tokens: batch.shape.num_prefill_tokens() as u32,
                num_decode_tokens: batch.shape.num_decodes,
            });
        }
    }

    fn batch_ended(&mut self, _: SimTime, _: ReplicaId, batch: &Batch) {
        let Some(at) = self.under_way.iter().position(|u| u.0 == batch.id) else { return };
        let (_, execution, host) = self.under_way.swap_remove(at);
        for entry in &batch.entries {
            let record = &mut self.requests[entry.request.index()];
            record.execution += execution;
            record.host += host;
        }
    }

    fn token(&mut self, now: SimTime, id: RequestId, _: &Request) {
        let record = &mut self.requests[id.index()];
        let last = std::mem::replace(&mut record.last_token_at, now);
        if last == SimTime::NEVER {
            record.first_token_at = now;
        } else {
            self.gap(now.since(last));
        }
    }

    fn takes_repeats(&self) -> bool {
        !self.keep_spans
    }

    fn repeated(&mut self, replica: ReplicaId, batch: &Batch, _: &[Request], repeats: &[Repeat]) {
        let Some((first, rest)) = repeats.split_first() else { return };
        let Some(under_way) = self.under_way.iter_mut().find(|u| u.0 == batch.id) else { return };
        // What ended: the step that was under way, and all repeats but the last.
        let (mut execution, mut host) = (under_way.1, under_way.2);
        for repeat in &repeats[..repeats.len() - 1] {
            execution += repeat.cost.duration;
            host += repeat.cost.host;
        }
        let last = &repeats[repeats.len() - 1];
        (under_way.1, under_way.2) = (last.cost.duration, last.cost.host);
        for entry in &batch.entries {
            let record = &mut self.requests[entry.request.index()];
            record.execution += execution;
            record.host += host;
            let since = std::mem::replace(&mut record.last_token_at, last.at);
            self.gap(first.at.since(since));
        }
        let n = batch.len() as u32;
        let mut before = first.at;
        for repeat in rest {
            self.gaps(repeat.at.since(before), n);
            before = repeat.at;
        }
        let steps = repeats.len() as u64;
        self.num_batches += steps;
        self.batch_requests += steps * u64::from(n);
        self.batch_tokens += steps * u64::from(n);
        for repeat in repeats {
            self.busy += repeat.cost.duration;
            if repeat.cost.extrapolated {
                self.extrapolated += repeat.cost.duration;
            }
            self.kv_changed(repeat.at, replica, repeat.kv_used);
        }
    }

    fn restarted(&mut self, _: SimTime, id: RequestId, _: &Request) {
        self.requests[id.index()].restarts += 1;
        self.num_restarts += 1;
    }

    fn completed(&mut self, now: SimTime, id: RequestId, _: &Request) {
        self.requests[id.index()].completed_at = now;
    }

    fn settled(&mut self, now: SimTime, replica: ReplicaId, kv: &KvBlocks, _: usize) {
        self.kv_changed(now, replica, kv.used());
    }
}
