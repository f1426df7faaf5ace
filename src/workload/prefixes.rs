//! Which prompts begin alike, as a chain of hashes per request.

/// Hashes of the prompts of a workload, by request. Equal hashes at the same place mean equal tokens
/// from the beginning of the prompt up to there, as in Mooncake's `hash_ids`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefixes {
    tokens_per_hash: u32,
    hashes: Vec<u64>,
    /// Where the hashes of each request end.
    ends: Vec<usize>,
}

impl Prefixes {
    /// None yet; each hash will stand for `tokens_per_hash` tokens.
    pub fn new(tokens_per_hash: u32) -> Self {
        Prefixes { tokens_per_hash: tokens_per_hash.max(1), ..Prefixes::default() }
    }

    /// Adds the hashes of the next request.
    pub fn push(&mut self, hashes: &[u64]) {
        self.hashes.extend_from_slice(hashes);
        self.ends.push(self.hashes.len());
    }

    /// The hashes of request number `request`; none where the workload has none.
    pub fn of(&self, request: usize) -> &[u64] {
        let Some(&end) = self.ends.get(request) else { return &[] };
        let start = request.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.hashes[start..end]
    }

    /// The hash of the first `tokens` tokens of a prompt; `None` where the hashes do not reach.
    pub fn hash_before(&self, request: usize, tokens: u32) -> Option<u64> {
        let at = tokens.checked_sub(1)? / self.tokens_per_hash.max(1);
        self.of(request).get(at as usize).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_found_by_request_and_token() {
        let mut p = Prefixes::new(512);
        p.push(&[46, 47]);
        p.push(&[]);
        p.push(&[46]);
        assert_eq!(
            (p.of(0), p.of(1), p.of(2), p.of(3)),
            (&[46, 47][..], &[][..], &[46][..], &[][..])
        );
        assert_eq!(p.hash_before(0, 512), Some(46));
        assert_eq!(p.hash_before(0, 513), Some(47));
        assert_eq!(p.hash_before(0, 1025), None);
        assert_eq!((p.hash_before(2, 16), p.hash_before(1, 16)), (Some(46), None));
        assert_eq!(Prefixes::default().hash_before(0, 1), None);
    }
}
