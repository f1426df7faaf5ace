//! A trace as a workload: scales and limits, and which prompts then still begin alike.

use super::layout::{self, Layout, Need, Row, Stamp};
use super::{Empties, Source, TooLong, TraceConfig, TraceError, note, scale};
use crate::units::SimTime;
use crate::workload::{Prefixes, RequestSpec, Workload};
use std::ops::ControlFlow;

/// Reads a trace and applies scales and limits.
///
/// # Errors
/// One line that names file, line, column, what was found and what was expected.
pub fn read_trace(config: &TraceConfig) -> Result<Workload, TraceError> {
    check(config)?;
    let limit = config.num_requests.map_or(usize::MAX, |n| n as usize);
    let mut replay = Replay::of(config);
    let source = Source::open(&config.file)?;
    let file = source.file.clone();
    layout::read(source, config.format, Need::Requests, &mut |layout, row| {
        replay.take(layout, row)?;
        let full = replay.rows.len() >= limit;
        Ok(if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    replay.finish(file)
}

fn check(config: &TraceConfig) -> Result<(), TraceError> {
    for (field, value) in [
        ("time_scale", config.time_scale),
        ("prefill_scale", config.prefill_scale),
        ("decode_scale", config.decode_scale),
    ] {
        if !(value.is_finite() && value > 0.0) {
            let message = format!("{value}; expected a number above 0");
            return Err(TraceError::Config { field, message });
        }
    }
    if config.num_requests == Some(0) {
        let message = "0; expected at least 1".into();
        return Err(TraceError::Config { field: "num_requests", message });
    }
    Ok(())
}

/// The requests so far, and what was left out or changed.
struct Replay<'a> {
    config: &'a TraceConfig,
    /// Nanoseconds and tokens: times since 1970, or the bits of the final time.
    rows: Vec<(i64, u32, u32)>,
    absolute: bool,
    /// The hashes of each row, where the format has any.
    hashes: Vec<Vec<u64>>,
    tokens_per_hash: u32,
    empties: Empties,
    dropped: u64,
    clipped: u64,
    unshared: u64,
}

impl<'a> Replay<'a> {
    fn of(config: &'a TraceConfig) -> Self {
        Replay {
            config,
            rows: Vec::new(),
            absolute: false,
            hashes: Vec::new(),
            tokens_per_hash: 1,
            empties: Empties::new(config.empty),
            dropped: 0,
            clipped: 0,
            unshared: 0,
        }
    }

    fn take(&mut self, layout: &Layout, row: Row) -> Result<(), String> {
        let Some((prefill, decode)) = self.empties.pass(layout, &row)? else { return Ok(()) };
        let prefill = scale(prefill, self.config.prefill_scale);
        let decode = scale(decode, self.config.decode_scale);
        let Some(fitting) = self.fit(prefill, decode)? else {
            self.dropped += 1;
            return Ok(());
        };
        let ns = match row.time {
            Stamp::Absolute(ns) => {
                self.absolute = true;
                ns
            }
            Stamp::Seconds(seconds) => SimTime::from_seconds(seconds * self.config.time_scale)
                .unwrap_or(SimTime::NEVER)
                .as_ns()
                .cast_signed(),
        };
        self.rows.push((ns, fitting, decode));
        self.clipped += u64::from(fitting < prefill);
        if let Some((_, tokens)) = layout.format.hashes() {
            let mut hashes = row.hashes;
            if prefill != row.prefill {
                // A prompt that was scaled is another prompt.
                self.unshared += u64::from(!hashes.is_empty());
                hashes.clear();
            } else if fitting < prefill {
                // What is left of a prompt that was cut short begins as before.
                hashes.truncate((fitting / tokens) as usize);
            }
            self.tokens_per_hash = tokens;
            self.hashes.push(hashes);
        }
        Ok(())
    }

    /// The tokens of a prompt that `max_tokens` leaves; `None` if the request is to be left out.
    fn fit(&self, prefill: u32, decode: u32) -> Result<Option<u32>, String> {
        let total = u64::from(prefill) + u64::from(decode);
        let Some(max) = self.config.max_tokens.filter(|&max| total > u64::from(max)) else {
            return Ok(Some(prefill));
        };
        match self.config.too_long {
            TooLong::Drop => Ok(None),
            TooLong::ClipPrompt if max > decode => Ok(Some(max - decode)),
            TooLong::ClipPrompt => Err(format!(
                "the output alone has {decode} tokens and leaves no room for a prompt in max_tokens \
                 {max}; raise it, or set workload.trace.too_long to drop"
            )),
            TooLong::Refuse => Err(format!(
                "the request has {total} tokens, more than max_tokens {max}; raise it, or set \
                 workload.trace.too_long to drop or clip_prompt"
            )),
        }
    }

    /// When each row arrives; the first at zero where times are absolute.
    fn arrivals(&self) -> Result<Vec<SimTime>, TraceError> {
        let first = self.rows.iter().map(|row| row.0).min().unwrap_or_default();
        let time_scale = self.config.time_scale;
        let arrival = |&(ns, ..): &(i64, u32, u32)| match self.absolute {
            true => SimTime::from_seconds(ns.abs_diff(first) as f64 * 1e-9 * time_scale),
            false => Some(SimTime::from_ns(ns.cast_unsigned())).filter(|t| *t != SimTime::NEVER),
        };
        self.rows.iter().map(arrival).collect::<Option<_>>().ok_or_else(|| {
            let message = format!("{time_scale}; moves arrivals past 500 years");
            TraceError::Config { field: "time_scale", message }
        })
    }

    fn finish(self, file: String) -> Result<Workload, TraceError> {
        let mut notes = self.empties.notes(&file);
        note(&mut notes, &file, self.dropped, "longer than max_tokens left out");
        if self.rows.is_empty() {
            return Err(TraceError::none(file, &notes));
        }
        note(&mut notes, &file, self.clipped, "shortened to max_tokens");
        let unshared = "whose hash_ids are not used: prefill_scale makes other prompts of them";
        note(&mut notes, &file, self.unshared, unshared);
        let times = self.arrivals()?;
        let mut order: Vec<usize> = (0..times.len()).collect();
        if !times.is_sorted() {
            order.sort_by_key(|&i| times[i]);
        }
        let request = |&i: &usize| {
            let (_, prefill_tokens, decode_tokens) = self.rows[i];
            RequestSpec { arrived_at: times[i], prefill_tokens, decode_tokens }
        };
        let requests: Vec<_> = order.iter().map(request).collect();
        let mut prefixes = Prefixes::default();
        if self.hashes.iter().any(|h| !h.is_empty()) {
            prefixes = Prefixes::new(self.tokens_per_hash);
            order.iter().for_each(|&i| prefixes.push(&self.hashes[i]));
        }
        let description = format!("{} requests replayed from {file}", requests.len());
        Ok(Workload { requests, description, notes, prefixes, ..Workload::default() })
    }
}
