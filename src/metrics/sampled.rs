//! Requests without a record of each: those in flight, and sketches of the others.

use super::config::Slo;
use super::record::{Figure, RequestRecord};
use crate::ids::RequestId;
use crate::stats::Sketch;
use crate::units::SimDuration;
use rustc_hash::FxHashMap;

/// Keeps requests while they are in flight and counts them when they complete.
#[derive(Debug, Default)]
pub struct Sampled {
    /// Never iterated: its order is no order.
    live: FxHashMap<u32, RequestRecord>,
    most_live: usize,
    figures: [Sketch; Figure::ALL.len()],
    /// Gaps between consecutive tokens, nanoseconds.
    pub gaps: Sketch,
    /// Arrival to second token, nanoseconds.
    pub second_tokens: Sketch,
    /// What has completed.
    pub totals: Totals,
}

/// Sums over completed requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests.
    pub requests: u64,
    /// Tokens of their prompts.
    pub input_tokens: u64,
    /// Tokens that they generated.
    pub output_tokens: u64,
    /// Requests that met every objective.
    pub good: u64,
}

impl Totals {
    /// Counts a completed request.
    pub fn add(&mut self, r: &RequestRecord, slo: &Slo) {
        self.requests += 1;
        self.input_tokens += u64::from(r.prompt_tokens);
        self.output_tokens += u64::from(r.output_tokens);
        let tpot = r.tpot_ms().unwrap_or(0.0);
        self.good += u64::from(slo.met_by(r.ttft_ms(), tpot, r.e2e_ms()));
    }
}

impl Sampled {
    /// A request that arrived.
    pub fn insert(&mut self, id: RequestId, record: RequestRecord) {
        self.live.insert(id.0, record);
        self.most_live = self.most_live.max(self.live.len());
    }

    /// A request in flight.
    pub fn get_mut(&mut self, id: RequestId) -> Option<&mut RequestRecord> {
        self.live.get_mut(&id.0)
    }

    /// Counts a request that has completed and forgets it.
    pub fn complete(&mut self, id: RequestId, slo: &Slo) {
        let Some(record) = self.live.remove(&id.0) else { return };
        for (figure, sketch) in Figure::ALL.into_iter().zip(&mut self.figures) {
            if let Some(ms) = record.figure_ms(figure) {
                sketch.add(SimDuration::from_ms(ms).as_ns());
            }
        }
        self.totals.add(&record, slo);
    }

    /// The sketch of a figure, nanoseconds.
    pub fn figure(&self, figure: Figure) -> &Sketch {
        &self.figures[figure as usize]
    }

    /// Most records held at a time.
    pub fn most_live(&self) -> usize {
        self.most_live
    }
}
