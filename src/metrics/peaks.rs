//! The busiest second and the most requests in flight, as `vllm bench serve` reports them.

use crate::sim::PUNCTUALITY;
use crate::units::{SimDuration, SimTime};
use std::collections::VecDeque;

const SECOND_NS: u64 = 1_000_000_000;
/// Seconds before the one of an arrival in which tokens may still be told.
const OPEN_SECONDS: u64 = PUNCTUALITY.as_ns().div_ceil(SECOND_NS);

/// Counts tokens by second from the first arrival, and requests in flight. Tokens may be told in
/// any order and up to [`PUNCTUALITY`] late; memory is that of the seconds between two arrivals in
/// which there are any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peaks {
    first_arrival: Option<SimTime>,
    /// Seconds from `base` on that have tokens, ascending, and how many.
    seconds: VecDeque<(u64, u64)>,
    base: u64,
    /// Where `now` was last: begin and end of that second, and its place in `seconds`.
    current: (SimTime, SimTime, usize),
    most_tokens: u64,
    in_flight: u32,
    most_in_flight: u32,
}

impl Peaks {
    /// A request arrived.
    pub fn arrived(&mut self, now: SimTime) {
        let start = *self.first_arrival.get_or_insert(now);
        let second = (now.since(start).as_ns() / SECOND_NS).saturating_sub(OPEN_SECONDS);
        if self.base < second {
            while let Some(&(_, tokens)) = self.seconds.front().filter(|s| s.0 < second) {
                self.most_tokens = self.most_tokens.max(tokens);
                self.seconds.pop_front();
            }
            self.base = second;
            self.current = Default::default();
        }
        self.in_flight += 1;
        self.most_in_flight = self.most_in_flight.max(self.in_flight);
    }

    /// `tokens` tokens appeared at `now`.
    pub fn tokens(&mut self, now: SimTime, tokens: u64) {
        if !(self.current.0..self.current.1).contains(&now) {
            self.turn_to(now);
        }
        self.seconds[self.current.2].1 += tokens;
    }

    fn turn_to(&mut self, now: SimTime) {
        let start = self.first_arrival.unwrap_or_default();
        let second = now.since(start).as_ns() / SECOND_NS;
        // What is told too late counts in the first second that is open.
        let open = second.max(self.base);
        let at = self.seconds.partition_point(|s| s.0 < open);
        if self.seconds.get(at).is_none_or(|s| s.0 != open) {
            self.seconds.insert(at, (open, 0));
        }
        let begin = start + SimDuration::from_ns(second.saturating_mul(SECOND_NS));
        self.current = (begin, begin + SimDuration::from_ns(SECOND_NS), at);
    }

    /// A request has all its tokens.
    pub fn completed(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// When the first request arrived.
    pub fn first_arrival(&self) -> SimTime {
        self.first_arrival.unwrap_or_default()
    }

    /// Most tokens in one of the seconds counted from the first arrival.
    pub fn max_tokens_per_s(&self) -> u64 {
        self.seconds.iter().map(|s| s.1).fold(self.most_tokens, u64::max)
    }

    /// Most requests between their arrival and their last token; at one instant ends come first.
    pub fn max_concurrent_requests(&self) -> u32 {
        self.most_in_flight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_counted_from_the_first_arrival() {
        let ms = |ms: u64| SimTime::from_ns(ms * 1_000_000);
        let mut p = Peaks::default();
        p.arrived(ms(700));
        p.arrived(ms(800));
        p.completed();
        p.arrived(ms(900));
        // Seconds from 0.7 s: two tokens in the first, three in the third, one in the fourth.
        for at in [900, 1699, 2700, 2701, 3699, 3700] {
            p.tokens(ms(at), 1);
        }
        assert_eq!(p.max_tokens_per_s(), 3);
        assert_eq!(p.max_concurrent_requests(), 2);
        assert_eq!(p.first_arrival(), ms(700));
        // Told late, but for the first second.
        p.tokens(ms(1000), 2);
        assert_eq!(p.max_tokens_per_s(), 4);
        // An arrival closes the seconds before it, but for the last one.
        p.arrived(ms(5800));
        assert_eq!((p.max_tokens_per_s(), p.seconds.len()), (4, 0));
        p.tokens(ms(6699), 5);
        p.tokens(ms(5100), 7);
        assert_eq!((p.max_tokens_per_s(), p.seconds.len()), (7, 2));
    }
}
