//! Which request reaches the scheduler next, and when: from a list of times, or when a client is
//! free; in both cases through the server in front of the engine.

use crate::units::{SimDuration, SimTime};
use crate::workload::{FrontEnd, RequestSpec, Workload};
use std::collections::VecDeque;

/// Requests in order of arrival.
pub(super) struct Arrivals<'a> {
    requests: &'a [RequestSpec],
    next: usize,
    clients: Option<Clients>,
    front_end: FrontEnd,
    /// When the front end has dealt with all requests that were sent.
    front_end_free: SimTime,
    /// When the next request of a list reaches the scheduler.
    listed: Option<SimTime>,
}

/// Clients that send their next request when the last one is done.
struct Clients {
    think_time: SimDuration,
    /// When each request under way to the scheduler was sent, and when it gets there, both in
    /// ascending order: completions come in order of time and all clients think equally long.
    ready: VecDeque<(SimTime, SimTime)>,
}

impl<'a> Arrivals<'a> {
    pub(super) fn of(workload: &'a Workload) -> Self {
        let mut arrivals = Arrivals {
            requests: &workload.requests,
            next: 0,
            clients: None,
            front_end: workload.front_end,
            front_end_free: SimTime::ZERO,
            listed: None,
        };
        match workload.clients {
            Some(c) => {
                arrivals.clients =
                    Some(Clients { think_time: c.think_time, ready: VecDeque::new() });
                // More clients than requests have nothing to send.
                for _ in 0..workload.requests.len().min(c.concurrency as usize) {
                    arrivals.send(SimTime::ZERO);
                }
            }
            None => arrivals.listed = arrivals.next_listed(),
        }
        arrivals
    }

    /// When a request of `tokens` tokens that is sent at `sent` gets through the front end.
    fn pass(&mut self, sent: SimTime, tokens: u32) -> SimTime {
        self.front_end_free = sent.max(self.front_end_free) + self.front_end.service(tokens);
        self.front_end_free + self.front_end.latency
    }

    fn next_listed(&mut self) -> Option<SimTime> {
        let spec = *self.requests.get(self.next)?;
        Some(self.pass(spec.arrived_at, spec.prefill_tokens))
    }

    /// A client sends at `now`, if there is a request left for it.
    fn send(&mut self, now: SimTime) {
        let under_way = self.clients.as_ref().map_or(0, |c| c.ready.len());
        let Some(spec) = self.requests.get(self.next + under_way) else { return };
        let there = self.pass(now, spec.prefill_tokens);
        if let Some(clients) = &mut self.clients {
            clients.ready.push_back((now, there));
        }
    }

    /// When the next request arrives; `None` if none does unless a request completes first.
    pub(super) fn peek(&self) -> Option<SimTime> {
        match &self.clients {
            None => self.listed,
            Some(clients) => clients.ready.front().map(|r| r.1),
        }
    }

    /// The next request, if it arrives at `now` or did before. Its time is that of sending.
    pub(super) fn take(&mut self, now: SimTime) -> Option<RequestSpec> {
        self.peek().filter(|&t| t <= now)?;
        let mut request = self.requests[self.next];
        self.next += 1;
        match &mut self.clients {
            Some(clients) => request.arrived_at = clients.ready.pop_front()?.0,
            None => self.listed = self.next_listed(),
        }
        Some(request)
    }

    /// A request completed at `now`: its client thinks and then sends another.
    pub(super) fn completed(&mut self, now: SimTime) {
        if let Some(clients) = &self.clients {
            self.send(now + clients.think_time);
        }
    }

    /// Whether requests come from clients that wait for the answer to their last one.
    pub(super) fn is_closed_loop(&self) -> bool {
        self.clients.is_some()
    }

    /// Requests that have not arrived.
    pub(super) fn left(&self) -> usize {
        self.requests.len() - self.next
    }
}
