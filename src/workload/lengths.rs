//! How long requests are.

use super::WorkloadError;
use super::trace::read_lengths;
use crate::rng::Rng;
use rand::RngExt as _;
use rand::seq::SliceRandom as _;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// Bounds of a uniform draw, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRange {
    /// Fewest tokens.
    pub min: u32,
    /// Most tokens.
    pub max: u32,
}

/// A distribution of prompt and output lengths.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum LengthConfig {
    /// The same for all.
    Fixed {
        /// Tokens of the prompt.
        prefill_tokens: u32,
        /// Tokens to generate.
        decode_tokens: u32,
    },
    /// Prompt and output independent and uniform.
    Uniform {
        /// Tokens of the prompt.
        prefill_tokens: TokenRange,
        /// Tokens to generate.
        decode_tokens: TokenRange,
    },
    /// Pairs from a file with the columns num_prefill_tokens and num_decode_tokens, in random
    /// order, each row once before any is used again.
    Trace {
        /// The CSV file.
        file: PathBuf,
        /// Rows longer than this in all are left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_tokens: Option<u32>,
    },
}

impl LengthConfig {
    /// `n` pairs of prompt and output tokens.
    ///
    /// # Errors
    /// A length of zero, an empty range, or a file that has no lengths.
    pub(super) fn draw(&self, n: usize, rng: &mut Rng) -> Result<Vec<(u32, u32)>, WorkloadError> {
        match self {
            LengthConfig::Fixed { prefill_tokens, decode_tokens } => {
                positive("fixed.prefill_tokens", *prefill_tokens)?;
                positive("fixed.decode_tokens", *decode_tokens)?;
                Ok(vec![(*prefill_tokens, *decode_tokens); n])
            }
            LengthConfig::Uniform { prefill_tokens, decode_tokens } => {
                prefill_tokens.check("uniform.prefill_tokens")?;
                decode_tokens.check("uniform.decode_tokens")?;
                Ok((0..n).map(|_| (prefill_tokens.draw(rng), decode_tokens.draw(rng))).collect())
            }
            LengthConfig::Trace { file, max_tokens } => {
                let mut rows = read_lengths(file)?;
                let limit = u64::from(max_tokens.unwrap_or(u32::MAX));
                rows.retain(|&(p, d)| u64::from(p) + u64::from(d) <= limit);
                if rows.is_empty() {
                    return Err(invalid(
                        "trace.max_tokens",
                        format!("{limit}; every row of {} is longer", file.display()),
                    ));
                }
                let mut lengths = Vec::with_capacity(n);
                while lengths.len() < n {
                    rows.shuffle(rng);
                    lengths.extend(rows.iter().take(n - lengths.len()));
                }
                Ok(lengths)
            }
        }
    }
}

impl TokenRange {
    fn check(self, path: &str) -> Result<(), WorkloadError> {
        positive(&format!("{path}.min"), self.min)?;
        if self.max < self.min {
            let message = format!("{}; expected at least min, {}", self.max, self.min);
            return Err(invalid(&format!("{path}.max"), message));
        }
        Ok(())
    }

    fn draw(self, rng: &mut Rng) -> u32 {
        rng.random_range(self.min..=self.max)
    }
}

fn positive(path: &str, tokens: u32) -> Result<(), WorkloadError> {
    if tokens == 0 {
        return Err(invalid(path, "0; expected at least 1 token".into()));
    }
    Ok(())
}

fn invalid(path: &str, message: String) -> WorkloadError {
    WorkloadError::Config { path: format!("synthetic.lengths.{path}"), message }
}

impl fmt::Display for LengthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LengthConfig::Fixed { prefill_tokens, decode_tokens } => {
                write!(f, "{prefill_tokens} prompt and {decode_tokens} output tokens each")
            }
            LengthConfig::Uniform { prefill_tokens: p, decode_tokens: d } => {
                write!(f, "{} to {} prompt and {} to {} output tokens", p.min, p.max, d.min, d.max)
            }
            LengthConfig::Trace { file, .. } => write!(f, "lengths from {}", file.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::stream;

    fn draw(config: LengthConfig, n: usize) -> Result<Vec<(u32, u32)>, String> {
        config.draw(n, &mut stream(3, "lengths")).map_err(|e| e.to_string())
    }

    #[test]
    fn uniform_lengths_stay_inside_their_bounds_and_reach_them() {
        let range = |min, max| TokenRange { min, max };
        let config =
            LengthConfig::Uniform { prefill_tokens: range(3, 5), decode_tokens: range(1, 2) };
        let drawn = draw(config, 1000).unwrap();
        assert_eq!(drawn.iter().map(|l| l.0).min(), Some(3));
        assert_eq!(drawn.iter().map(|l| l.0).max(), Some(5));
        assert!(drawn.iter().all(|l| (1..=2).contains(&l.1)));
    }

    #[test]
    fn a_length_file_is_used_up_before_rows_repeat() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let rows = "num_prefill_tokens,num_decode_tokens\n1,10\n2,20\n3,30\n400,1\n";
        std::fs::write(file.path(), rows).unwrap();
        let config = LengthConfig::Trace { file: file.path().into(), max_tokens: Some(100) };
        let drawn = draw(config, 5).unwrap();
        let mut first: Vec<u32> = drawn[..3].iter().map(|l| l.0).collect();
        first.sort_unstable();
        assert_eq!(first, [1, 2, 3]);
        assert!(drawn.iter().all(|&(p, d)| d == 10 * p));
    }

    #[test]
    fn lengths_that_are_none_are_refused_by_name() {
        let zero = LengthConfig::Fixed { prefill_tokens: 0, decode_tokens: 1 };
        assert_eq!(
            draw(zero, 1).unwrap_err(),
            "workload.synthetic.lengths.fixed.prefill_tokens: 0; expected at least 1 token"
        );
        let range = TokenRange { min: 5, max: 4 };
        let empty = LengthConfig::Uniform { prefill_tokens: range, decode_tokens: range };
        assert!(draw(empty, 1).unwrap_err().contains("uniform.prefill_tokens.max: 4"));
    }
}
