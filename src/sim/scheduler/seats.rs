//! The requests that an engine runs, in the order in which it admitted them.

use super::Replica;
use crate::ids::RequestId;
use crate::sim::batch::Batch;

/// A running request, and whether a batch with it is under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seat {
    pub(super) id: RequestId,
    pub(super) in_batch: bool,
}

/// All running requests, first come first.
#[derive(Default)]
pub(super) struct Seats {
    seats: Vec<Seat>,
}

impl Seats {
    pub(super) fn len(&self) -> usize {
        self.seats.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    pub(super) fn get(&self, at: usize) -> Option<Seat> {
        self.seats.get(at).copied()
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Seat> + ExactSizeIterator {
        self.seats.iter()
    }

    /// The seat at `at` is in the batch that is being formed.
    pub(super) fn board(&mut self, at: usize) {
        if let Some(seat) = self.seats.get_mut(at) {
            seat.in_batch = true;
        }
    }

    /// Seats a request that is in the batch that is being formed.
    pub(super) fn admit(&mut self, id: RequestId) {
        self.seats.push(Seat { id, in_batch: true });
    }

    pub(super) fn remove(&mut self, at: usize) -> Option<RequestId> {
        (at < self.seats.len()).then(|| self.seats.remove(at).id)
    }

    /// Whether every running request is in a batch.
    pub(super) fn all_in_batch(&self) -> bool {
        self.seats.iter().all(|s| s.in_batch)
    }

    /// Takes back the requests of a batch, whose entries stand in the order of the seats, and frees
    /// the seats and blocks of those that are complete.
    pub(super) fn take_back(&mut self, batch: &Batch, replica: &mut Replica<'_>) {
        let mut entries = batch.entries.iter().map(|e| e.request).peekable();
        let mut any_complete = false;
        for seat in &mut self.seats {
            if entries.next_if_eq(&seat.id).is_some() {
                seat.in_batch = false;
                any_complete |= replica.requests[seat.id.index()].is_complete();
            }
        }
        debug_assert!(entries.next().is_none(), "a batch keeps the order of the seats");
        if any_complete {
            self.seats.retain(|seat| {
                let request = &mut replica.requests[seat.id.index()];
                let complete = !seat.in_batch && request.is_complete();
                if complete {
                    replica.kv.release_found(seat.id, request, false, replica.prefixes);
                }
                !complete
            });
        }
    }
}
