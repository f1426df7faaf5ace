//! Requests that decode together: what a batch adds to each of them is added once.

use crate::cost::StepCost;
use crate::ids::RequestId;
use crate::units::{SimDuration, SimTime};
use std::ops::AddAssign;

/// Time in running batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spent {
    /// All of it.
    pub execution: SimDuration,
    /// The part of it in which the host worked and the device waited.
    pub host: SimDuration,
}

impl Spent {
    /// Time in a step.
    pub(super) fn of(cost: StepCost) -> Self {
        Spent { execution: cost.duration, host: cost.host }
    }
}

impl AddAssign for Spent {
    fn add_assign(&mut self, more: Spent) {
        self.execution += more.execution;
        self.host += more.host;
    }
}

/// Who got a token from the batch that a replica ended last. From batch to batch that changes
/// little, so that most of them need not be looked up when a batch ends: what happened to them
/// since they joined is the difference of two sums.
#[derive(Debug, Default)]
pub(super) struct Together {
    /// Ascending.
    members: Vec<RequestId>,
    /// When they got that token.
    at: SimTime,
    /// Over all batches that the replica has ended.
    spent: Spent,
    /// Scratch.
    emitted: Vec<RequestId>,
}

/// How a batch changes who is together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change<'a> {
    /// Got a token as before.
    Stay(&'a [RequestId]),
    /// Got a token from this batch, and none from the one before.
    Joins(RequestId),
    /// Got none from this batch.
    Leaves(RequestId),
}

impl Together {
    /// When the members got their last token.
    pub(super) fn at(&self) -> SimTime {
        self.at
    }

    /// Time in the batches that the replica has ended so far. What a request spent while it was a
    /// member is the difference of this between joining and leaving.
    pub(super) fn spent(&self) -> Spent {
        self.spent
    }

    /// A batch that gave a token to each of `emitted` is about to end: tells how that changes who
    /// is together, in ascending order of requests. [`Together::end`] follows.
    pub(super) fn change(
        &mut self,
        emitted: impl ExactSizeIterator<Item = RequestId> + Clone,
        mut tell: impl FnMut(Change<'_>),
    ) {
        // Mostly nothing changes, and the order in the batch is that of arrival.
        if !self.members.is_empty()
            && emitted.len() == self.members.len()
            && emitted.clone().eq(self.members.iter().copied())
        {
            return tell(Change::Stay(&self.members));
        }
        self.emitted.clear();
        self.emitted.extend(emitted);
        if !self.emitted.is_sorted_by(|a, b| a.0 <= b.0) {
            self.emitted.sort_unstable();
        }
        let (mut old, mut new) = (self.members.as_slice(), self.emitted.as_slice());
        loop {
            let same = old.iter().zip(new).take_while(|(a, b)| a == b).count();
            if same > 0 {
                tell(Change::Stay(&new[..same]));
            }
            (old, new) = (&old[same..], &new[same..]);
            match (old, new) {
                ([], []) => break,
                ([left, rest @ ..], [next, ..]) if left < next => {
                    tell(Change::Leaves(*left));
                    old = rest;
                }
                ([left, rest @ ..], []) => {
                    tell(Change::Leaves(*left));
                    old = rest;
                }
                (_, [next, rest @ ..]) => {
                    tell(Change::Joins(*next));
                    new = rest;
                }
            }
        }
        std::mem::swap(&mut self.members, &mut self.emitted);
    }

    /// A batch ended at `now` that took `spent`; all members got a token.
    pub(super) fn end(&mut self, now: SimTime, spent: Spent) {
        self.at = now;
        self.spent += spent;
    }

    /// `id` will get no more tokens. Says whether it was a member.
    pub(super) fn remove(&mut self, id: RequestId) -> bool {
        let found = self.members.binary_search(&id);
        found.is_ok_and(|at| self.members.remove(at) == id)
    }

    /// Parts all members.
    pub(super) fn part(&mut self) -> Vec<RequestId> {
        std::mem::take(&mut self.members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tells a change as a sign and the request.
    fn changes(together: &mut Together, emitted: &[u32]) -> Vec<(char, u32)> {
        let mut told = Vec::new();
        together.change(emitted.iter().map(|&id| RequestId(id)), |change| match change {
            Change::Stay(ids) => told.extend(ids.iter().map(|id| ('=', id.0))),
            Change::Joins(id) => told.push(('+', id.0)),
            Change::Leaves(id) => told.push(('-', id.0)),
        });
        told
    }

    #[test]
    fn changes_are_told_whatever_the_order_in_the_batch() {
        let mut t = Together::default();
        assert_eq!(changes(&mut t, &[7, 3]), [('+', 3), ('+', 7)]);
        assert_eq!(changes(&mut t, &[7, 5]), [('-', 3), ('+', 5), ('=', 7)]);
        assert_eq!(changes(&mut t, &[5]), [('=', 5), ('-', 7)]);
        assert_eq!(changes(&mut t, &[4, 5, 9]), [('+', 4), ('=', 5), ('+', 9)]);
        assert!(t.remove(RequestId(5)) && !t.remove(RequestId(5)));
        assert_eq!(changes(&mut t, &[]), [('-', 4), ('-', 9)]);
    }
}
