//! A request as a state machine: waiting, prefilling, decoding, done; a restart throws its KV cache
//! away and computes prompt and output so far again.

use crate::units::SimTime;

/// One request on its way through a replica. Token counts follow Vidur's bookkeeping: the output
/// token that a finished prefill samples is counted as processed at once, so `processed` is the
/// number of tokens that exist, and a request with D output tokens takes D - 1 decode steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// When it reached the router.
    pub arrived_at: SimTime,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens to generate, at least 1.
    pub output_tokens: u32,
    /// Tokens to compute before the next token is sampled: the prompt, or after a restart
    /// everything that existed.
    pub prefill_target: u32,
    /// Tokens computed, the sampled one included.
    pub processed: u32,
    /// KV blocks held.
    pub blocks: u32,
    /// Of these, the first so many are known to the prefix cache by the workload's hashes.
    pub shared_blocks: u32,
    /// Times that it lost its KV cache.
    pub restarts: u32,
}

/// What a step did to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// An output token appeared.
    pub emitted: bool,
    /// It was the last one.
    pub completed: bool,
}

impl Request {
    /// A request that has just arrived.
    pub fn new(arrived_at: SimTime, prompt_tokens: u32, output_tokens: u32) -> Self {
        Request {
            arrived_at,
            prompt_tokens,
            output_tokens,
            prefill_target: prompt_tokens,
            processed: 0,
            blocks: 0,
            shared_blocks: 0,
            restarts: 0,
        }
    }

    /// Prompt and output together.
    pub fn total_tokens(&self) -> u32 {
        self.prompt_tokens + self.output_tokens
    }

    /// Whether the next step decodes.
    pub fn is_prefill_complete(&self) -> bool {
        self.processed > self.prefill_target
    }

    /// Tokens still to prefill.
    pub fn prefill_left(&self) -> u32 {
        self.prefill_target.saturating_sub(self.processed)
    }

    /// Whether every output token exists.
    pub fn is_complete(&self) -> bool {
        self.processed == self.total_tokens()
    }

    /// Output tokens that exist.
    pub fn emitted(&self) -> u32 {
        self.processed.saturating_sub(self.prompt_tokens)
    }

    /// A step computed `tokens` tokens of this request.
    pub fn advance(&mut self, tokens: u32) -> Progress {
        let decoding = self.is_prefill_complete();
        self.processed += tokens;
        let sampled = !decoding && self.processed == self.prefill_target;
        if sampled {
            self.processed += 1;
        }
        Progress { emitted: decoding || sampled, completed: self.is_complete() }
    }

    /// Loses the KV cache: everything that exists is to be computed again, whether or not a restart
    /// was under way. Vidur (`keep_target: false`) forgets what was not computed yet: the rest of
    /// a prompt, or output that an earlier restart had to recompute, becomes output to generate.
    pub fn restart(&mut self, keep_target: bool) {
        if !keep_target && self.processed < self.prefill_target {
            self.output_tokens = self.total_tokens() - self.processed;
            self.prompt_tokens = self.processed;
            self.prefill_target = self.processed;
        }
        self.prefill_target = self.processed.max(self.prefill_target);
        self.processed = 0;
        self.restarts += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_token_comes_with_the_last_prompt_chunk() {
        let mut r = Request::new(SimTime::ZERO, 10, 3);
        assert_eq!(r.advance(6), Progress { emitted: false, completed: false });
        assert_eq!(r.advance(4), Progress { emitted: true, completed: false });
        assert_eq!((r.processed, r.emitted()), (11, 1));
        assert_eq!(r.advance(1), Progress { emitted: true, completed: false });
        assert_eq!(r.advance(1), Progress { emitted: true, completed: true });
    }

    #[test]
    fn a_single_output_token_ends_with_the_prefill() {
        let mut r = Request::new(SimTime::ZERO, 5, 1);
        assert_eq!(r.advance(5), Progress { emitted: true, completed: true });
    }

    #[test]
    fn a_restart_conserves_tokens() {
        let mut r = Request::new(SimTime::ZERO, 10, 5);
        r.advance(10);
        r.advance(1);
        assert_eq!(r.emitted(), 2);
        r.restart(true);
        assert_eq!((r.prefill_target, r.processed), (12, 0));
        assert_eq!(r.advance(12), Progress { emitted: true, completed: false });
        assert_eq!(r.emitted(), 3);
    }

    #[test]
    fn a_restart_during_a_restart_forgets_nothing() {
        let mut r = Request::new(SimTime::ZERO, 10, 5);
        r.advance(10);
        r.advance(1);
        r.restart(true);
        r.advance(3);
        r.restart(true);
        assert_eq!(r.prefill_target, 12);
    }

    #[test]
    fn a_half_computed_prompt_stays_a_prompt_unless_vidur_is_asked_for() {
        let mut ours = Request::new(SimTime::ZERO, 10, 5);
        ours.advance(4);
        let mut vidurs = ours.clone();
        ours.restart(true);
        vidurs.restart(false);
        assert_eq!(ours.prefill_target, 10);
        assert_eq!((vidurs.prompt_tokens, vidurs.output_tokens, vidurs.prefill_target), (4, 11, 4));
    }
}
