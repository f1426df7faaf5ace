//! Which request arrives next, and when: from a list of times, or when a client is free.

use crate::units::{SimDuration, SimTime};
use crate::workload::{RequestSpec, Workload};
use std::collections::VecDeque;

/// Requests in order of arrival.
pub(super) struct Arrivals<'a> {
    requests: &'a [RequestSpec],
    next: usize,
    clients: Option<Clients>,
}

/// Clients that send their next request when the last one is done.
struct Clients {
    think_time: SimDuration,
    /// When each idle client sends, in ascending order: completions come in order of time and all
    /// clients think equally long.
    ready: VecDeque<SimTime>,
}

impl<'a> Arrivals<'a> {
    pub(super) fn of(workload: &'a Workload) -> Self {
        let clients = workload.clients.map(|c| {
            // More clients than requests have nothing to send.
            let busy = workload.requests.len().min(c.concurrency as usize);
            let ready = std::iter::repeat_n(SimTime::ZERO, busy).collect();
            Clients { think_time: c.think_time, ready }
        });
        Arrivals { requests: &workload.requests, next: 0, clients }
    }

    /// When the next request arrives; `None` if none does unless a request completes first.
    pub(super) fn peek(&self) -> Option<SimTime> {
        let request = self.requests.get(self.next)?;
        match &self.clients {
            None => Some(request.arrived_at),
            Some(clients) => clients.ready.front().copied(),
        }
    }

    /// The next request, if it arrives at `now` or did before.
    pub(super) fn take(&mut self, now: SimTime) -> Option<RequestSpec> {
        let arrived_at = self.peek().filter(|&t| t <= now)?;
        let request = RequestSpec { arrived_at, ..self.requests[self.next] };
        self.next += 1;
        if let Some(clients) = &mut self.clients {
            clients.ready.pop_front();
        }
        Some(request)
    }

    /// A request completed at `now`: its client thinks and then sends another.
    pub(super) fn completed(&mut self, now: SimTime) {
        if let Some(clients) = &mut self.clients {
            clients.ready.push_back(now + clients.think_time);
        }
    }

    /// Requests that have not arrived.
    pub(super) fn left(&self) -> usize {
        self.requests.len() - self.next
    }
}
