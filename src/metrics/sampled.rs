//! Requests without a record of each: those in flight, and sketches of the others.

use super::config::Slo;
use super::record::{Figure, RequestRecord};
use crate::ids::RequestId;
use crate::stats::Sketch;
use crate::units::{SimDuration, SimTime};
use std::collections::VecDeque;

/// Keeps requests while they are in flight and counts them when they complete.
#[derive(Debug, Default)]
pub struct Sampled {
    /// The oldest request in flight and every later one, by id; those that have completed among
    /// them are not live any more.
    live: VecDeque<RequestRecord>,
    /// Id of the first of them.
    base: u32,
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
    /// The next request arrived. Requests are numbered in order of arrival.
    pub fn push(&mut self, record: RequestRecord) {
        self.live.push_back(record);
        self.most_live = self.most_live.max(self.live.len());
    }

    /// A request in flight.
    #[inline]
    pub fn get_mut(&mut self, id: RequestId) -> Option<&mut RequestRecord> {
        self.live.get_mut(id.0.wrapping_sub(self.base) as usize)
    }

    /// Counts a request that has completed and forgets it.
    pub fn complete(&mut self, id: RequestId, slo: &Slo) {
        let Some(record) = self.get_mut(id).cloned() else { return };
        for (figure, sketch) in Figure::ALL.into_iter().zip(&mut self.figures) {
            if let Some(ms) = record.figure_ms(figure) {
                sketch.add(SimDuration::from_ms(ms).as_ns());
            }
        }
        self.totals.add(&record, slo);
        while self.live.front().is_some_and(|r| r.completed_at != SimTime::NEVER) {
            self.live.pop_front();
            self.base += 1;
        }
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
