//! What is kept of a request, and the latencies that follow from it.

use super::together::Spent;
use crate::ids::{ReplicaId, StageId};
use crate::sim::Request;
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
    pub(super) last_token_at: SimTime,
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

/// A latency of a request. *a* is its arrival, *s* its first batch, *f* the first and *c* the last
/// of its *n* output tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Time to first token, f - a.
    Ttft,
    /// Time per token after the first, (c - f) / (n - 1); none of a single token.
    Tpot,
    /// The same over all tokens, (c - f) / n: Vidur's TPOT.
    TpotOverAll,
    /// End-to-end latency over all tokens, (c - a) / n: GuideLLM's TPOT.
    Normalized,
    /// End-to-end latency, c - a.
    E2e,
    /// Queueing before the first batch, s - a.
    Queueing,
}

impl Figure {
    /// Every figure, in the order of their numbers.
    pub const ALL: [Figure; 6] = [
        Figure::Ttft,
        Figure::Tpot,
        Figure::TpotOverAll,
        Figure::Normalized,
        Figure::E2e,
        Figure::Queueing,
    ];
}

impl RequestRecord {
    pub(super) fn new(now: SimTime, request: &Request, replica: ReplicaId) -> Self {
        RequestRecord {
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
        }
    }

    /// Gets a token at `now` as others on its replica do, where batches have taken `sum` so far.
    /// What batches take from now on is added when it leaves the others; until then its times in
    /// batches are not to be read. Gives the time of its token before this one.
    pub(super) fn join(&mut self, now: SimTime, sum: Spent) -> Option<SimTime> {
        self.execution =
            SimDuration::from_ns(self.execution.as_ns().wrapping_sub(sum.execution.as_ns()));
        self.host = SimDuration::from_ns(self.host.as_ns().wrapping_sub(sum.host.as_ns()));
        let last = std::mem::replace(&mut self.last_token_at, now);
        if last == SimTime::NEVER {
            self.first_token_at = now;
            return None;
        }
        Some(last)
    }

    /// Leaves the others, who got their last token at `at` and whose batches have taken `sum`.
    pub(super) fn leave(&mut self, at: SimTime, sum: Spent) {
        self.last_token_at = at;
        self.execution =
            SimDuration::from_ns(self.execution.as_ns().wrapping_add(sum.execution.as_ns()));
        self.host = SimDuration::from_ns(self.host.as_ns().wrapping_add(sum.host.as_ns()));
    }

    /// One of its latencies, milliseconds; `None` where it has none.
    pub fn figure_ms(&self, figure: Figure) -> Option<f64> {
        let n = f64::from(self.output_tokens);
        match figure {
            Figure::Ttft => Some(self.ttft_ms()),
            Figure::Tpot => self.tpot_ms(),
            Figure::TpotOverAll => Some(self.completed_at.since(self.first_token_at).as_ms() / n),
            Figure::Normalized => Some(self.e2e_ms() / n),
            Figure::E2e => Some(self.e2e_ms()),
            Figure::Queueing => Some(self.queueing_ms()),
        }
    }

    /// Arrival to first token, milliseconds.
    pub fn ttft_ms(&self) -> f64 {
        self.first_token_at.since(self.arrived_at).as_ms()
    }

    /// Time per output token after the first, milliseconds; `None` of a single token.
    pub fn tpot_ms(&self) -> Option<f64> {
        let gaps = self.output_tokens.checked_sub(1).filter(|&n| n > 0)?;
        Some(self.completed_at.since(self.first_token_at).as_ms() / f64::from(gaps))
    }

    /// Arrival to last token, milliseconds.
    pub fn e2e_ms(&self) -> f64 {
        self.completed_at.since(self.arrived_at).as_ms()
    }

    /// Arrival to the first batch, milliseconds.
    pub fn queueing_ms(&self) -> f64 {
        self.scheduled_at.since(self.arrived_at).as_ms()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request by its times in milliseconds.
    fn record(a: u64, s: u64, f: u64, c: u64, prompt: u32, output: u32) -> RequestRecord {
        let ms = |ms: u64| SimTime::from_ns(ms * 1_000_000);
        let mut r = RequestRecord::new(ms(a), &Request::new(ms(a), prompt, output), ReplicaId(0));
        (r.scheduled_at, r.first_token_at, r.completed_at) = (ms(s), ms(f), ms(c));
        r
    }

    #[test]
    fn every_latency_by_hand() {
        // Arrived at 100 ms, scheduled at 150, first token at 300, fifth and last at 700.
        let r = record(100, 150, 300, 700, 20, 5);
        let figures = Figure::ALL.map(|f| r.figure_ms(f).unwrap());
        assert_eq!(figures, [200.0, 100.0, 80.0, 120.0, 600.0, 50.0]);
        let single = record(0, 1, 2, 2, 20, 1);
        assert_eq!(single.figure_ms(Figure::Tpot), None);
        assert_eq!(single.figure_ms(Figure::TpotOverAll), Some(0.0));
    }
}
