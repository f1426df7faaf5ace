//! How long requests are.

use super::WorkloadError;
use super::trace::{Empty, TraceFormat, lengths_with_notes, scale};
use crate::rng::Rng;
use rand::RngExt as _;
use rand::seq::SliceRandom as _;
use rand_distr::{Distribution as _, Zipf};
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
    /// Vidur's `uniform`: the total is a whole number drawn evenly from `min_tokens` to
    /// `max_tokens`, both included, and is split: output = ceil(total / (1 + ratio)), the prompt
    /// is the rest, and each has at least 1 token. Vidur draws a real number instead.
    UniformTotal {
        /// Fewest tokens of prompt and output together, at least 2.
        min_tokens: u32,
        /// Most tokens of prompt and output together.
        max_tokens: u32,
        /// Prompt tokens per output token, above 0.
        prefill_to_decode_ratio: f64,
    },
    /// Short requests often, long ones seldom. The total is `min_tokens` - 1 + k, where the rank k
    /// from 1 to N = `max_tokens` - `min_tokens` + 1 has probability k^-theta / Σ i^-theta
    /// (i = 1 to N), exactly; Vidur's generator approximates this. It is split as by
    /// `uniform_total`.
    Zipf {
        /// Fewest tokens of prompt and output together, at least 2.
        min_tokens: u32,
        /// Most tokens of prompt and output together.
        max_tokens: u32,
        /// The exponent, 0 or more: 0 is uniform, and the larger, the more requests are short.
        theta: f64,
        /// Whether the frequent totals lie anywhere in the range instead of at its beginning: the
        /// total then is `min_tokens` + hash(k, seed) mod N. As in Vidur, two ranks may fall
        /// on one total.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        scramble: bool,
        /// Prompt tokens per output token, above 0.
        prefill_to_decode_ratio: f64,
    },
    /// Pairs from a trace file of any format, or a CSV file with the columns num_prefill_tokens
    /// and num_decode_tokens, in random order, each row once before any is used again.
    Trace {
        /// The file.
        file: PathBuf,
        /// Its format; recognised by the content where it is not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        format: Option<TraceFormat>,
        /// Prompt tokens are multiplied by this and cut to whole tokens, at least 1.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        prefill_scale: f64,
        /// Output tokens are multiplied by this and cut to whole tokens, at least 1.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        decode_scale: f64,
        /// Longest request, prompt and output together.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_tokens: Option<u32>,
        /// What happens to longer ones.
        #[serde(default)]
        too_long: LongLengths,
        /// What happens to rows with 0 tokens in prompt or output: as in a trace that is replayed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        empty: Option<Empty>,
    },
}

/// What happens to lengths of more than `max_tokens` in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LongLengths {
    /// They are left out.
    #[default]
    Drop,
    /// Prompt and output each lose their share of the excess, rounded up, and keep at least
    /// 1 token, as in Vidur.
    ClipBoth,
}

fn one() -> f64 {
    1.0
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde asks for a reference.
fn is_one(factor: &f64) -> bool {
    *factor == 1.0
}

impl LengthConfig {
    /// `n` pairs of prompt and output tokens.
    ///
    /// # Errors
    /// A length of zero, an empty range, or a file that has no lengths.
    pub(super) fn draw(
        &self,
        n: usize,
        rng: &mut Rng,
        notes: &mut Vec<String>,
    ) -> Result<Vec<(u32, u32)>, WorkloadError> {
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
            LengthConfig::UniformTotal { min_tokens, max_tokens, prefill_to_decode_ratio } => {
                let range = total_range("uniform_total", *min_tokens, *max_tokens)?;
                let ratio = ratio("uniform_total", *prefill_to_decode_ratio)?;
                Ok((0..n).map(|_| split(range.draw(rng), ratio)).collect())
            }
            LengthConfig::Zipf {
                min_tokens,
                max_tokens,
                theta,
                scramble,
                prefill_to_decode_ratio,
            } => {
                let range = total_range("zipf", *min_tokens, *max_tokens)?;
                let ratio = ratio("zipf", *prefill_to_decode_ratio)?;
                let totals = range.zipf(*theta, *scramble, n, rng)?;
                Ok(totals.into_iter().map(|total| split(total, ratio)).collect())
            }
            LengthConfig::Trace { .. } => {
                let mut rows = self.read(notes)?;
                let mut lengths = Vec::with_capacity(n);
                while lengths.len() < n {
                    rows.shuffle(rng);
                    lengths.extend(rows.iter().take(n - lengths.len()));
                }
                Ok(lengths)
            }
        }
    }

    /// The pairs of a file, at least one, none longer than asked.
    fn read(&self, notes: &mut Vec<String>) -> Result<Vec<(u32, u32)>, WorkloadError> {
        let LengthConfig::Trace {
            file,
            format,
            prefill_scale,
            decode_scale,
            max_tokens,
            too_long,
            empty,
        } = self
        else {
            return Ok(Vec::new());
        };
        for (name, factor) in [("prefill_scale", prefill_scale), ("decode_scale", decode_scale)] {
            if !(factor.is_finite() && *factor > 0.0) {
                let message = format!("{factor}; expected a number above 0");
                return Err(invalid(&format!("trace.{name}"), message));
            }
        }
        let lengths = lengths_with_notes(file, *format, *empty)?;
        notes.extend(lengths.notes);
        let mut rows = lengths.pairs;
        for (prefill, decode) in &mut rows {
            (*prefill, *decode) = (scale(*prefill, *prefill_scale), scale(*decode, *decode_scale));
        }
        let Some(max) = *max_tokens else { return Ok(rows) };
        let long = |&(p, d): &(u32, u32)| u64::from(p) + u64::from(d) > u64::from(max);
        let count = rows.iter().filter(|row| long(row)).count();
        match too_long {
            LongLengths::Drop => rows.retain(|row| !long(row)),
            LongLengths::ClipBoth if max < 2 => {
                let message = format!("{max}; expected at least 2, a prompt and an output token");
                return Err(invalid("trace.max_tokens", message));
            }
            LongLengths::ClipBoth => rows.iter_mut().for_each(|row| *row = clip_both(*row, max)),
        }
        if rows.is_empty() {
            let message = format!("{max}; every row of {} is longer", file.display());
            return Err(invalid("trace.max_tokens", message));
        }
        if count > 0 {
            let what = match too_long {
                LongLengths::Drop => "left out",
                LongLengths::ClipBoth => "shortened",
            };
            notes.push(format!(
                "{}: {count} rows longer than max_tokens {max} {what}",
                file.display()
            ));
        }
        Ok(rows)
    }
}

/// Takes from each its share of what is above `max`, rounded up, and leaves at least 1 of each.
/// The sum is then at most `max`, if that is 2 or more.
fn clip_both((prefill, decode): (u32, u32), max: u32) -> (u32, u32) {
    let total = u64::from(prefill) + u64::from(decode);
    if total <= u64::from(max) {
        return (prefill, decode);
    }
    // What is left: tokens - ceil(tokens * (total - max) / total) = floor(tokens * max / total),
    // less than `tokens` and so within its type.
    let clip = |tokens: u32| ((u64::from(tokens) * u64::from(max) / total) as u32).max(1);
    (clip(prefill), clip(decode))
}

/// Prompt and output of a request of `total` tokens, 2 or more.
fn split(total: u32, prefill_to_decode_ratio: f64) -> (u32, u32) {
    let decode = (f64::from(total) / (1.0 + prefill_to_decode_ratio)).ceil() as u32;
    let decode = decode.clamp(1, total - 1);
    (total - decode, decode)
}

fn total_range(name: &str, min: u32, max: u32) -> Result<TokenRange, WorkloadError> {
    if min < 2 {
        let message = format!("{min}; expected at least 2, a prompt and an output token");
        return Err(invalid(&format!("{name}.min_tokens"), message));
    }
    if max < min {
        let message = format!("{max}; expected at least min_tokens, {min}");
        return Err(invalid(&format!("{name}.max_tokens"), message));
    }
    Ok(TokenRange { min, max })
}

fn ratio(name: &str, value: f64) -> Result<f64, WorkloadError> {
    if value.is_finite() && value > 0.0 {
        return Ok(value);
    }
    let message = format!("{value}; expected a number above 0");
    Err(invalid(&format!("{name}.prefill_to_decode_ratio"), message))
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

    /// `n` numbers of the range, the first most often; `scramble` scatters them.
    fn zipf(
        self,
        theta: f64,
        scramble: bool,
        n: usize,
        rng: &mut Rng,
    ) -> Result<Vec<u32>, WorkloadError> {
        let items = self.max - self.min + 1;
        let ranks = Zipf::new(f64::from(items), theta)
            .ok()
            .filter(|_| theta.is_finite() && theta >= 0.0)
            .ok_or_else(|| {
                invalid("zipf.theta", format!("{theta}; expected a number, 0 or more"))
            })?;
        let salt: u64 = if scramble { rng.random() } else { 0 };
        let number = |rank: u32| {
            let place = if scramble { mix(u64::from(rank) ^ salt) % u64::from(items) } else { 0 };
            // A remainder of a u32 fits one.
            if scramble { self.min + place as u32 } else { self.min + (rank - 1) }
        };
        Ok((0..n).map(|_| number((ranks.sample(rng) as u32).clamp(1, items))).collect())
    }
}

/// The finaliser of SplitMix64: every bit of the result depends on every bit of `x`.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
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
            LengthConfig::UniformTotal { min_tokens, max_tokens, prefill_to_decode_ratio } => {
                write!(f, "{min_tokens} to {max_tokens} tokens, {prefill_to_decode_ratio} to 1")
            }
            LengthConfig::Zipf { min_tokens, max_tokens, theta, .. } => {
                write!(f, "{min_tokens} to {max_tokens} tokens by Zipf's law, theta {theta}")
            }
            LengthConfig::Trace { file, .. } => write!(f, "lengths from {}", file.display()),
        }
    }
}

#[cfg(test)]
mod tests;
