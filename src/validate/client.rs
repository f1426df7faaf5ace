//! What a benchmark's client sees of a run: when it sent each request, when its first token came and
//! when its last.

use crate::ids::{ReplicaId, RequestId};
use crate::sim::{Batch, Observer, Request};
use crate::units::SimTime;

/// Keeps three times per request and nothing else.
#[derive(Debug, Default)]
pub struct ClientView {
    /// By request id.
    pub requests: Vec<ClientTimes>,
}

/// Times of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientTimes {
    /// When it was sent.
    pub sent: SimTime,
    /// When its first token appeared.
    pub first_token: SimTime,
    /// When its last token appeared.
    pub done: SimTime,
    /// Tokens that it was asked for.
    pub output_tokens: u32,
}

impl ClientTimes {
    /// Time to first token, milliseconds.
    pub fn ttft_ms(&self) -> f64 {
        self.first_token.since(self.sent).as_ms()
    }

    /// Time per further token, milliseconds; `None` when there is none.
    pub fn tpot_ms(&self) -> Option<f64> {
        let further = self.output_tokens.checked_sub(1).filter(|n| *n > 0)?;
        Some(self.done.since(self.first_token).as_ms() / f64::from(further))
    }

    /// Time to the last token, milliseconds.
    pub fn e2e_ms(&self) -> f64 {
        self.done.since(self.sent).as_ms()
    }
}

impl Observer for ClientView {
    fn arrived(&mut self, _: SimTime, _: RequestId, request: &Request, _: ReplicaId) {
        self.requests.push(ClientTimes {
            sent: request.arrived_at,
            first_token: SimTime::NEVER,
            done: SimTime::NEVER,
            output_tokens: request.output_tokens,
        });
    }

    fn batch_ended(
        &mut self,
        now: SimTime,
        _: ReplicaId,
        _: &Batch,
        emitted: &[RequestId],
        requests: &[Request],
    ) {
        for &id in emitted {
            if requests[id.index()].emitted() == 1 {
                self.requests[id.index()].first_token = now;
            }
        }
    }

    fn completed(&mut self, now: SimTime, id: RequestId, _: &Request) {
        self.requests[id.index()].done = now;
    }

    fn takes_repeats(&self) -> bool {
        true
    }
}
