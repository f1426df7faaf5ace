//! The busiest second and the most requests in flight, as `vllm bench serve` reports them.

use crate::units::{SimDuration, SimTime};

const SECOND_NS: u64 = 1_000_000_000;

/// Counts tokens by second from the first arrival, and requests in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peaks {
    first_arrival: Option<SimTime>,
    /// When the second that is being counted ends.
    second_ends: SimTime,
    tokens: u64,
    most_tokens: u64,
    in_flight: u32,
    most_in_flight: u32,
}

impl Peaks {
    /// A request arrived.
    pub fn arrived(&mut self, now: SimTime) {
        self.first_arrival.get_or_insert(now);
        self.in_flight += 1;
        self.most_in_flight = self.most_in_flight.max(self.in_flight);
    }

    /// A token appeared; never earlier than the last.
    pub fn token(&mut self, now: SimTime) {
        if now >= self.second_ends {
            let start = self.first_arrival.unwrap_or_default();
            let seconds = now.since(start).as_ns() / SECOND_NS + 1;
            self.second_ends = start + SimDuration::from_ns(seconds.saturating_mul(SECOND_NS));
            self.most_tokens = self.most_tokens.max(self.tokens);
            self.tokens = 0;
        }
        self.tokens += 1;
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
        self.most_tokens.max(self.tokens)
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
            p.token(ms(at));
        }
        assert_eq!(p.max_tokens_per_s(), 3);
        assert_eq!(p.max_concurrent_requests(), 2);
        assert_eq!(p.first_arrival(), ms(700));
    }
}
