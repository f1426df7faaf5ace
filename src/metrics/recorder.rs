//! The observer that keeps what summaries and files need.

use super::batches::BatchSketches;
use super::config::{MetricsConfig, RequestDetail, Slo};
use super::flops::StageFlops;
use super::peaks::Peaks;
use super::record::{RequestRecord, StageSpan};
use super::replica::ReplicaUse;
use super::sampled::{Sampled, Totals};
use super::series::{Counts, Series};
use super::together::{Change, Spent, Together};
use crate::cost::{BatchShape, StepCost};
use crate::ids::{ReplicaId, RequestId, StageId};
use crate::sim::{Batch, KvBlocks, Observer, Repeat, Request};
use crate::units::{SimDuration, SimTime};

/// What a [`Recorder`] keeps.
#[derive(Clone, Debug, Default)]
pub struct RecordOptions {
    /// The section `metrics` of the config.
    pub metrics: MetricsConfig,
    /// The objectives that good requests meet.
    pub slo: Slo,
    /// Batches on stages that are kept at most; when there are more, none is.
    pub max_spans: usize,
    /// Whether the gaps between tokens are kept request by request.
    pub token_lists: bool,
    /// Arithmetic of each stage; empty where MFU is not wanted.
    pub stage_flops: Vec<StageFlops>,
    /// Peak arithmetic of a device, operations per second.
    pub peak_flops_per_s: f64,
}

/// Keeps the records of a run.
#[derive(Debug, Default)]
pub struct Recorder {
    /// By request id; empty when requests are sampled.
    pub requests: Vec<RequestRecord>,
    /// Gaps between consecutive tokens of a request, in nanoseconds, with how many tokens had them;
    /// empty when requests are sampled.
    pub token_gaps: Vec<(u64, u32)>,
    /// The same request by request, where asked for.
    pub token_lists: Vec<Vec<u64>>,
    /// Arrival to second token in nanoseconds, once each, for the dialects that report it.
    pub second_tokens: Vec<(u64, u32)>,
    /// What stands for `requests` and `token_gaps` when requests are sampled.
    pub sampled: Option<Sampled>,
    /// Every batch on every stage; empty unless asked for, and when there were too many.
    pub spans: Vec<StageSpan>,
    /// Whether there were more batches than [`RecordOptions::max_spans`].
    pub spans_dropped: bool,
    /// Batches formed.
    pub num_batches: u64,
    /// Requests over all batches: divided by batches, the mean batch size.
    pub batch_requests: u64,
    /// Tokens over all batches.
    pub batch_tokens: u64,
    /// Distributions over batches.
    pub batches: BatchSketches,
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
    /// By replica.
    pub replicas: Vec<ReplicaUse>,
    /// The course of the run; only where plots are asked for.
    pub course: Option<Course>,
    /// Highest rate of tokens and of requests in flight.
    pub peaks: Peaks,
    options: RecordOptions,
    /// By replica, at most one a stage.
    under_way: Vec<Vec<UnderWay>>,
    /// By replica.
    together: Vec<Together>,
}

/// How much has happened by when.
#[derive(Debug, Default)]
pub struct Course {
    /// Requests that arrived.
    pub arrivals: Counts,
    /// Requests that completed.
    pub completions: Counts,
    /// Prompt tokens computed, at the end of their batch.
    pub prefill_tokens: Counts,
    /// Decode tokens computed, likewise.
    pub decode_tokens: Counts,
}

impl Course {
    fn ended(&mut self, now: SimTime, prefill_tokens: u64, decode_tokens: u64) {
        self.prefill_tokens.add(now.as_ns(), prefill_tokens);
        self.decode_tokens.add(now.as_ns(), decode_tokens);
    }
}

/// A batch that has been formed and has not ended.
#[derive(Debug)]
struct UnderWay {
    batch: u64,
    formed_at: SimTime,
    spent: Spent,
}

impl Recorder {
    /// A recorder for `num_replicas` replicas that keeps every request; `keep_spans` also keeps
    /// every batch.
    pub fn new(num_replicas: u32, keep_spans: bool) -> Self {
        let max_spans = if keep_spans { usize::MAX } else { 0 };
        Recorder::with(num_replicas, RecordOptions { max_spans, ..RecordOptions::default() })
    }

    /// A recorder for `num_replicas` replicas that keeps what `options` say.
    pub fn with(num_replicas: u32, options: RecordOptions) -> Self {
        let mut replicas = vec![ReplicaUse::default(); num_replicas as usize];
        if options.metrics.plots {
            replicas.iter_mut().for_each(|r| r.kv.series = Some(Series::default()));
        }
        let sampled = options.metrics.requests == RequestDetail::Sampled;
        Recorder {
            under_way: replicas.iter().map(|_| Vec::new()).collect(),
            together: replicas.iter().map(|_| Together::default()).collect(),
            replicas,
            sampled: sampled.then(Sampled::default),
            course: options.metrics.plots.then(Course::default),
            options,
            ..Self::default()
        }
    }

    /// What it keeps.
    pub fn options(&self) -> &RecordOptions {
        &self.options
    }

    /// Mean KV blocks in use on one replica from time zero to `end`.
    pub fn kv_mean(&self, end: SimTime) -> f64 {
        let whole = end.as_ns() as f64 * self.replicas.len() as f64;
        let area: u128 = self.replicas.iter().map(|r| r.kv.area()).sum();
        if whole == 0.0 { 0.0 } else { area as f64 / whole }
    }

    /// Replicas of the run.
    pub fn num_replicas(&self) -> u32 {
        self.replicas.len() as u32
    }

    /// Sums over completed requests.
    pub fn totals(&self) -> Totals {
        match &self.sampled {
            Some(sampled) => sampled.totals,
            None => self.requests.iter().fold(Totals::default(), |mut totals, r| {
                totals.add(r, &self.options.slo);
                totals
            }),
        }
    }

    /// `tokens` tokens appeared `gap` after the ones before them.
    fn gaps(&mut self, gap: SimDuration, tokens: u32) {
        if tokens == 0 {
            return;
        }
        if let Some(sampled) = &mut self.sampled {
            return sampled.gaps.add_times(gap.as_ns(), u64::from(tokens));
        }
        if let Some((ns, count)) = self.token_gaps.last_mut()
            && *ns == gap.as_ns()
            && let Some(sum) = count.checked_add(tokens)
        {
            *count = sum;
            return;
        }
        self.token_gaps.push((gap.as_ns(), tokens));
    }

    /// A batch ended that took `spent`, and gave a token to each of `ids`. `count` counts the
    /// tokens that a request has got up to now.
    fn tokens(
        &mut self,
        now: SimTime,
        replica: ReplicaId,
        ids: impl ExactSizeIterator<Item = RequestId> + Clone,
        spent: Spent,
        count: impl Fn(RequestId) -> u32,
    ) {
        self.peaks.tokens(now, ids.len() as u64);
        let second_wanted = self.options.metrics.dialect.has_second_token();
        let mut together = std::mem::take(&mut self.together[replica.index()]);
        let (at, sum) = (together.at(), together.spent());
        let gap = now.since(at);
        let mut stay = 0;
        together.change(ids, |change| match change {
            Change::Stay(ids) => {
                stay += ids.len() as u32;
                if second_wanted || self.options.token_lists {
                    for &id in ids {
                        self.gap_of(id, gap);
                        self.second_token(now, id, &count);
                    }
                }
            }
            Change::Leaves(id) => {
                if let Some(record) = find(&mut self.requests, &mut self.sampled, id) {
                    record.leave(at, sum);
                }
            }
            Change::Joins(id) => {
                let record = find(&mut self.requests, &mut self.sampled, id);
                if let Some(last) = record.and_then(|r| r.join(now, sum)) {
                    let gap = now.since(last);
                    self.gaps(gap, 1);
                    self.gap_of(id, gap);
                    self.second_token(now, id, &count);
                }
            }
        });
        together.end(now, spent);
        self.together[replica.index()] = together;
        self.gaps(gap, stay);
    }

    /// The next token of one request.
    fn gap_of(&mut self, id: RequestId, gap: SimDuration) {
        if self.options.token_lists {
            self.token_lists[id.index()].push(gap.as_ns());
        }
    }

    /// If the token that `id` gets at `now` is its second, where that is of interest: keeps when.
    fn second_token(&mut self, now: SimTime, id: RequestId, count: impl Fn(RequestId) -> u32) {
        if !self.options.metrics.dialect.has_second_token() || count(id) != 2 {
            return;
        }
        let Some(record) = find(&mut self.requests, &mut self.sampled, id) else { return };
        let after = now.since(record.arrived_at);
        match &mut self.sampled {
            Some(sampled) => sampled.second_tokens.add(after.as_ns()),
            None => self.second_tokens.push((after.as_ns(), 1)),
        }
    }

    fn stage_ran(
        &mut self,
        replica: ReplicaId,
        stage: StageId,
        batch: &BatchShape,
        cost: StepCost,
    ) {
        self.busy += cost.duration;
        if cost.extrapolated {
            self.extrapolated += cost.duration;
        }
        let flops = self.options.stage_flops.get(stage.index());
        let flops = flops.map_or(0.0, |f| f.of_batch(batch));
        self.replicas[replica.index()].stage_ran(stage, cost.duration, flops);
    }

    fn kv_changed(&mut self, now: SimTime, replica: ReplicaId, blocks: u32) {
        self.replicas[replica.index()].kv.set(now, blocks);
        self.kv_peak = self.kv_peak.max(blocks);
    }

    fn keep_span(&mut self, span: StageSpan) {
        if self.spans.len() < self.options.max_spans {
            self.spans.push(span);
        } else if !self.spans_dropped {
            self.spans_dropped = true;
            self.options.max_spans = 0;
            self.spans = Vec::new();
        }
    }
}

/// The record of a request, where it lies.
fn find<'a>(
    requests: &'a mut [RequestRecord],
    sampled: &'a mut Option<Sampled>,
    id: RequestId,
) -> Option<&'a mut RequestRecord> {
    match sampled {
        None => requests.get_mut(id.index()),
        Some(sampled) => sampled.get_mut(id),
    }
}

impl Observer for Recorder {
    fn arrived(&mut self, now: SimTime, _: RequestId, request: &Request, replica: ReplicaId) {
        let record = RequestRecord::new(request.arrived_at, request, replica);
        match &mut self.sampled {
            Some(sampled) => sampled.push(record),
            None => self.requests.push(record),
        }
        if self.options.token_lists {
            self.token_lists.push(Vec::new());
        }
        self.replicas[replica.index()].requests += 1;
        self.peaks.arrived(now);
        if let Some(course) = &mut self.course {
            course.arrivals.add(now.as_ns(), 1);
        }
    }

    fn batch_formed(&mut self, now: SimTime, replica: ReplicaId, batch: &Batch, kv: &KvBlocks) {
        let (size, tokens) = (batch.len() as u64, batch.shape.num_tokens());
        self.num_batches += 1;
        self.batch_requests += size;
        self.batch_tokens += tokens;
        self.kv_capacity = kv.capacity();
        self.replicas[replica.index()].batches += 1;
        self.batches.formed(size, tokens, u64::from(batch.shape.num_decodes), 1);
        // A request is first scheduled with a prompt chunk.
        if !batch.shape.prefills.is_empty() {
            for entry in batch.entries.iter().filter(|e| e.prefill) {
                let found = find(&mut self.requests, &mut self.sampled, entry.request);
                if let Some(record) = found {
                    record.scheduled_at = record.scheduled_at.min(now);
                }
            }
        }
        self.under_way[replica.index()].push(UnderWay {
            batch: batch.id,
            formed_at: now,
            spent: Spent::default(),
        });
    }

    fn stage_started(
        &mut self,
        now: SimTime,
        replica: ReplicaId,
        stage: StageId,
        batch: &Batch,
        cost: StepCost,
    ) {
        self.stage_ran(replica, stage, &batch.shape, cost);
        let mut under_way = self.under_way[replica.index()].iter_mut();
        if let Some(under_way) = under_way.find(|u| u.batch == batch.id) {
            under_way.spent += Spent::of(cost);
        }
        if self.options.max_spans > 0 {
            self.keep_span(StageSpan {
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

    fn batch_ended(
        &mut self,
        now: SimTime,
        replica: ReplicaId,
        batch: &Batch,
        emitted: &[RequestId],
        requests: &[Request],
    ) {
        let under_way = &mut self.under_way[replica.index()];
        let Some(at) = under_way.iter().position(|u| u.batch == batch.id) else { return };
        let UnderWay { formed_at, spent, .. } = under_way.swap_remove(at);
        self.batches.ended(now.since(formed_at));
        if let Some(course) = &mut self.course {
            let (prefill, decode) = (batch.shape.num_prefill_tokens(), batch.shape.num_decodes);
            course.ended(now, prefill, u64::from(decode));
        }
        let ids = emitted.iter().copied();
        self.tokens(now, replica, ids, spent, |id| requests[id.index()].emitted());
        if emitted.len() < batch.len() {
            // A prompt that goes on got no token.
            let prompts = batch.entries.iter().filter(|e| e.prefill).zip(&batch.shape.prefills);
            for (entry, _) in prompts.filter(|(_, chunk)| !chunk.completes) {
                if let Some(record) = find(&mut self.requests, &mut self.sampled, entry.request) {
                    record.execution += spent.execution;
                    record.host += spent.host;
                }
            }
        }
    }

    fn takes_repeats(&self) -> bool {
        self.options.max_spans == 0
    }

    fn repeated(
        &mut self,
        replica: ReplicaId,
        batch: &Batch,
        requests: &[Request],
        repeats: &[Repeat],
    ) {
        let (Some(first), Some(last)) = (repeats.first(), repeats.last()) else { return };
        let mut under_way = self.under_way[replica.index()].iter_mut();
        let Some(under_way) = under_way.find(|u| u.batch == batch.id) else { return };
        // What ended: the step that was under way, and all repeats but the last.
        let ended = std::mem::replace(&mut under_way.spent, Spent::of(last.cost));
        let formed_at = std::mem::replace(&mut under_way.formed_at, last.at);
        let ids = || batch.entries.iter().map(|e| e.request);
        let later = repeats.len() as u32 - 1;
        self.tokens(first.at, replica, ids(), ended, |id| requests[id.index()].emitted() - later);
        for pair in repeats.windows(2) {
            let step = pair[1].at.since(pair[0].at);
            self.together[replica.index()].end(pair[1].at, Spent::of(pair[0].cost));
            self.peaks.tokens(pair[1].at, batch.len() as u64);
            self.gaps(step, batch.len() as u32);
            self.batches.ended(step);
            if self.options.token_lists {
                ids().for_each(|id| self.gap_of(id, step));
            }
        }
        let n = batch.len() as u64;
        if let Some(course) = &mut self.course {
            repeats.iter().for_each(|repeat| course.ended(repeat.at, 0, n));
        }
        self.batches.ended(first.at.since(formed_at));
        let count = repeats.len() as u64;
        self.num_batches += count;
        self.batch_requests += count * n;
        self.batch_tokens += count * n;
        self.replicas[replica.index()].batches += count;
        self.batches.formed(n, n, n, count);
        let mut shape = batch.shape.clone();
        shape.decode_back(repeats.len() as u32);
        for repeat in repeats {
            shape.decode_on(1);
            self.stage_ran(replica, StageId(0), &shape, repeat.cost);
            self.kv_changed(repeat.at, replica, repeat.kv_used);
        }
    }

    fn restarted(&mut self, _: SimTime, id: RequestId, _: &Request) {
        if let Some(record) = find(&mut self.requests, &mut self.sampled, id) {
            record.restarts += 1;
        }
        self.num_restarts += 1;
    }

    fn completed(&mut self, now: SimTime, id: RequestId, _: &Request) {
        if let Some(record) = find(&mut self.requests, &mut self.sampled, id) {
            record.completed_at = now;
            let together = &mut self.together[record.replica.index()];
            if together.remove(id) {
                record.leave(together.at(), together.spent());
            }
        }
        if let Some(sampled) = &mut self.sampled {
            sampled.complete(id, &self.options.slo);
        }
        self.peaks.completed();
        if let Some(course) = &mut self.course {
            course.completions.add(now.as_ns(), 1);
        }
    }

    fn settled(&mut self, now: SimTime, replica: ReplicaId, kv: &KvBlocks, _: usize) {
        self.kv_changed(now, replica, kv.used());
    }

    fn ended(&mut self, now: SimTime) {
        for together in &mut self.together {
            for id in together.part() {
                if let Some(record) = find(&mut self.requests, &mut self.sampled, id) {
                    record.leave(together.at(), together.spent());
                }
            }
        }
        self.replicas.iter_mut().for_each(|r| r.kv.end(now));
    }
}
