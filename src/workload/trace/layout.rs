//! What the formats have in common: where a request's time and lengths stand, and in which unit.
//! One file per format names them; a new format is a file like those and a line in [`LAYOUTS`].

use super::{Source, TraceError, table};
use super::{
    apex, azure, burstgpt, json, llmservingsim, mooncake, qwen, sharegpt, splitwise, vidur,
};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::ControlFlow;

/// A format of trace files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceFormat {
    /// Vidur's processed traces, CSV: arrived_at, num_prefill_tokens, num_decode_tokens.
    Vidur,
    /// Azure LLM inference traces of 2023 and 2024, CSV: TIMESTAMP, ContextTokens, GeneratedTokens.
    Azure,
    /// BurstGPT, CSV in its old and its new layout: Timestamp, Request tokens, Response tokens.
    #[serde(rename = "burstgpt")]
    BurstGpt,
    /// Splitwise, CSV: arrival_timestamp, prompt_size, token_size.
    Splitwise,
    /// Mooncake, JSON: timestamp in milliseconds, input_length, output_length.
    Mooncake,
    /// Qwen-Bailian, JSON: chat_id, timestamp in seconds, input_length, output_length.
    QwenBailian,
    /// ShareGPT with token counts, JSON: conversations, or entries with input and output counts.
    /// Has lengths only.
    #[serde(rename = "sharegpt")]
    ShareGpt,
    /// LLMServingSim's workloads, JSON: arrival_time_ns, input_toks, output_toks.
    #[serde(rename = "llmservingsim")]
    LlmServingSim,
    /// Requests measured on vLLM, as LLMServingSim keeps them, JSON: arrival_time, input_toks,
    /// output_toks.
    VllmRequests,
    /// APEX+, JSON: StartTimeOffset in nanoseconds, ContextTokens, GeneratedTokens.
    Apex,
}

/// Every format, most common first: of equals the first wins.
pub(super) const LAYOUTS: [&Layout; 10] = [
    &vidur::LAYOUT,
    &azure::LAYOUT,
    &burstgpt::LAYOUT,
    &splitwise::LAYOUT,
    &mooncake::LAYOUT,
    &qwen::LAYOUT,
    &sharegpt::LAYOUT,
    &llmservingsim::LAYOUT,
    &llmservingsim::VLLM_LAYOUT,
    &apex::LAYOUT,
];

/// Where a format keeps what.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) format: TraceFormat,
    /// As in the config.
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    /// Column or field of the arrival, and how it tells time.
    pub(super) time: Option<(&'static str, Clock)>,
    /// Column or field of the prompt's tokens.
    pub(super) prefill: &'static str,
    /// Column or field of the output's tokens.
    pub(super) decode: &'static str,
    /// A further field, by which it differs from a format with the same names.
    pub(super) marker: Option<&'static str>,
    /// Requests without output are failures here, and left out unless the config says otherwise.
    pub(super) skips_empty: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// A header line, then one request a line.
    Csv,
    /// One JSON object per request: one a line, or all in one array.
    Json,
    /// As `Json`, and the lengths may stand in the turns of a conversation.
    Conversations,
}

/// How a format tells time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clock {
    /// Seconds from the trace's own zero.
    Seconds,
    /// Milliseconds from the trace's own zero.
    Milliseconds,
    /// Nanoseconds from the trace's own zero.
    Nanoseconds,
    /// Seconds since 1970: the first arrival becomes zero.
    UnixSeconds,
    /// A date: the first arrival becomes zero.
    Date,
}

impl Clock {
    /// What a stamp must be, for messages.
    fn expected(self) -> String {
        let unit = match self {
            Clock::Date => return format!("expected a time such as {}", super::timestamp::EXAMPLE),
            Clock::UnixSeconds => return "expected seconds since 1970".into(),
            Clock::Seconds => "seconds",
            Clock::Milliseconds => "milliseconds",
            Clock::Nanoseconds => "nanoseconds",
        };
        format!("expected a time in {unit}, 0 or more, less than 500 years")
    }

    /// A number on this clock; `None` if it is none.
    pub(super) fn stamp(self, number: f64) -> Option<Stamp> {
        let seconds = match self {
            Clock::Seconds => number,
            Clock::Milliseconds => number * 1e-3,
            Clock::Nanoseconds => number * 1e-9,
            Clock::UnixSeconds => {
                // Apart, so that nanoseconds are not lost in a product of 19 digits.
                let (whole, rest) = (number.trunc(), number.fract());
                let fits = number.is_finite() && whole.abs() < 9e9;
                return fits.then(|| {
                    Stamp::Absolute(whole as i64 * 1_000_000_000 + (rest * 1e9).round() as i64)
                });
            }
            Clock::Date => return None,
        };
        (seconds.is_finite() && (0.0..500.0 * 365.25 * 86_400.0).contains(&seconds))
            .then_some(Stamp::Seconds(seconds))
    }
}

/// When a request arrives, as the file says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Stamp {
    /// Seconds from the trace's own zero, not negative.
    Seconds(f64),
    /// Nanoseconds since 1970.
    Absolute(i64),
}

/// One request, as the file says: counts may be zero.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    /// Zero where it was not asked for.
    pub(super) time: Stamp,
    pub(super) prefill: u32,
    pub(super) decode: u32,
    /// Hashes of the prompt's beginning, see [`TraceFormat::hashes`].
    pub(super) hashes: Vec<u64>,
}

impl TraceFormat {
    /// The field that says which prompts begin alike, and the tokens that each of its hashes stands
    /// for: each hash is of all tokens up to the end of its own.
    pub(super) fn hashes(self) -> Option<(&'static str, u32)> {
        match self {
            TraceFormat::Mooncake => Some(("hash_ids", 512)),
            TraceFormat::QwenBailian => Some(("hash_ids", 16)),
            _ => None,
        }
    }
}

/// What is wanted of each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Time and lengths.
    Requests,
    /// Lengths alone: the file need not have times.
    Lengths,
}

/// Takes the rows as they are read; breaks when it has enough, or says what is wrong with one.
pub(super) type Sink<'a> = dyn FnMut(&'static Layout, Row) -> Result<ControlFlow<()>, String> + 'a;

/// What is wrong with a value.
pub(super) fn wrong(field: &str, found: &dyn fmt::Debug, expected: &str) -> String {
    format!("{field} is {found:?}; {expected}")
}

/// Expectation of a column of times.
pub(super) fn expected_time(layout: &Layout) -> String {
    layout.time.map_or_else(String::new, |(_, clock)| clock.expected())
}

/// Most tokens of a prompt or an output: sums of a few fit into 32 bits.
const MOST_TOKENS: u32 = 1_000_000_000;

/// Expectation of a column of tokens.
pub(super) const EXPECTED_TOKENS: &str = "expected a whole number, 1 to 1000000000";

/// A count of tokens, zero included; some tools write counts as floats.
pub(super) fn tokens(number: f64) -> Option<u32> {
    let whole = number.fract() == 0.0 && (0.0..=f64::from(MOST_TOKENS)).contains(&number);
    whole.then_some(number as u32)
}

impl Layout {
    /// The names that are looked for, of which a file should have all.
    pub(super) fn names(&self, need: Need) -> impl Iterator<Item = &'static str> {
        let time = self.time.filter(|_| need == Need::Requests).map(|(name, _)| name);
        time.into_iter().chain([self.prefill, self.decode])
    }

    fn describe(&self) -> String {
        let mut names: Vec<_> = self.names(Need::Requests).collect();
        names.extend(self.marker);
        format!("{} ({})", self.name, names.join(", "))
    }
}

/// The format whose names a file has, two of them at least.
pub(super) fn recognise(is_json: bool, has: impl Fn(&str) -> bool) -> Option<&'static Layout> {
    let score = |layout: &Layout| {
        let named = layout.names(Need::Requests).filter(|name| has(name)).count();
        let marked = match layout.marker {
            Some(marker) if has(marker) => 1,
            Some(_) => return 0,
            None => 0,
        };
        if layout.shape == Shape::Conversations && sharegpt::is_like(&has) {
            2
        } else {
            named + marked
        }
    };
    LAYOUTS
        .into_iter()
        .filter(|layout| (layout.shape != Shape::Csv) == is_json)
        .map(|layout| (score(layout), layout))
        .filter(|(score, _)| *score >= 2)
        .reduce(|best, next| if next.0 > best.0 { next } else { best })
        .map(|(_, layout)| layout)
}

/// The error for a file of no known format.
pub(super) fn unrecognised(file: &str, line: u64, first_line: &str) -> TraceError {
    const LONGEST: usize = 80;
    let mut found: String = first_line.chars().take(LONGEST).collect();
    if first_line.chars().nth(LONGEST).is_some() {
        found.push_str("...");
    }
    let formats: Vec<_> = LAYOUTS.iter().map(|layout| layout.describe()).collect();
    TraceError::Unrecognised { file: file.into(), line, found, formats: formats.join(", ") }
}

/// Reads a file row by row, in the order of the file.
pub(super) fn read(
    mut source: Source,
    format: Option<TraceFormat>,
    need: Need,
    sink: &mut Sink<'_>,
) -> Result<(), TraceError> {
    let asked = format.and_then(|f| LAYOUTS.into_iter().find(|layout| layout.format == f));
    match (source.first_byte()?, asked.map(|layout| layout.shape)) {
        (None, _) => Ok(()),
        (Some(b'[' | b'{'), None) | (Some(_), Some(Shape::Json | Shape::Conversations)) => {
            json::read(source, asked, need, sink)
        }
        (Some(_), None | Some(Shape::Csv)) => table::read(source, asked, need, sink),
    }
}
