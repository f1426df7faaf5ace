//! Traces of torch's profiler: what the host did while the device had nothing to do.
//!
//! A step reaches from one mark of vLLM's (`execute_…`, around each run of the model) to the next;
//! its device time is the union of all kernels and copies inside. The rest is the host's. Each
//! moment of it belongs to the innermost of the engine's methods or scopes that the trace shows just
//! then, and to the gap where it shows none: parts, gap and device add up to the step.

mod events;

pub use events::read;

use crate::dataset::cpu_file::OverheadRow;
use std::collections::{BTreeMap, BTreeSet};

/// Parts of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Schedule,
    PrepareInputs,
    Sampler,
    ProcessOutputs,
    /// The model itself: the device's where nothing else is known of the device.
    Forward,
}

/// Microseconds of the trace's clock, and the number of the thread.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Span {
    start: f64,
    end: f64,
    thread: usize,
}

/// What a mark says of its step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// The model runs: requests that read prompts, and requests that decode.
    Execute { context: u32, generation: u32 },
    /// A step of whatever was profiled.
    Step,
}

impl Moment {
    /// `execute_new_0_cached_4` (vLLM to 0.15), `execute_context_0(0)_generation_4(4)` (later),
    /// `ProfilerStep#7` (torch.profiler's own). Source: vllm/v1/worker/gpu_worker.py.
    fn of(name: &str) -> Option<Moment> {
        let count = |text: &str| -> Option<u32> {
            text.split_once('(').map_or(text, |(count, _)| count).parse().ok()
        };
        let execute = |(context, generation): (&str, &str)| {
            Some(Moment::Execute { context: count(context)?, generation: count(generation)? })
        };
        if let Some(rest) = name.strip_prefix("execute_new_") {
            return rest.split_once("_cached_").and_then(execute);
        }
        if let Some(rest) = name.strip_prefix("execute_context_") {
            return rest.split_once("_generation_").and_then(execute);
        }
        name.starts_with("ProfilerStep#").then_some(Moment::Step)
    }
}

/// What is kept of a trace.
#[derive(Debug, Default)]
pub struct Kept {
    found: bool,
    with_stack: bool,
    /// Events that were read.
    pub events: usize,
    marks: Vec<(Moment, Span)>,
    parts: Vec<(Part, Span)>,
    device: Vec<(f64, f64)>,
    threads: BTreeMap<(String, String), usize>,
}

impl Kept {
    fn thread(&mut self, process: String, thread: String) -> usize {
        let next = self.threads.len();
        *self.threads.entry((process, thread)).or_insert(next)
    }
}

/// Steps of a trace, by batch size.
#[derive(Debug, Default, PartialEq)]
pub struct Steps {
    /// A row for each batch size.
    pub rows: Vec<OverheadRow>,
    /// What is worth knowing.
    pub notes: Vec<String>,
}

/// A step: requests that decoded, from, to.
type Window = (u32, f64, f64);

/// The steps of `kept`, only those of `batch_size` requests where one is given: a trace whose marks do not
/// tell needs it.
///
/// # Errors
/// One line that says what the trace lacks.
pub fn steps(mut kept: Kept, batch_size: Option<u32>) -> Result<Steps, String> {
    let windows = windows(&mut kept, batch_size)?;
    let mut notes = Vec::new();
    if kept.with_stack {
        notes.push(
            "the trace was taken with Python stacks, which slow the host down: its times are too long; take it without \
             (VLLM_TORCH_PROFILER_WITH_STACK=0, VLLM_CUSTOM_SCOPES_FOR_PROFILING=1)"
                .to_owned(),
        );
    }
    let thread = kept.marks.first().map_or(0, |(_, span)| span.thread);
    kept.parts.retain(|(_, span)| span.thread == thread);
    kept.parts.sort_by(|(_, a), (_, b)| a.start.total_cmp(&b.start).then(b.end.total_cmp(&a.end)));
    if kept.device.is_empty() {
        let model = kept.parts.iter().filter(|(part, _)| *part == Part::Forward);
        kept.device = model.map(|(_, span)| (span.start, span.end)).collect();
        if kept.device.is_empty() {
            return Err("no event of a device (cat kernel, gpu_memcpy), and no forward pass of a model runner: \
                        profile the device too (ProfilerActivity.CUDA), or a CPU with VLLM_CUSTOM_SCOPES_FOR_PROFILING=1"
                .into());
        }
        notes.push("no event of a device: the forward pass counts as the device's part".into());
    }
    let busy = union(std::mem::take(&mut kept.device));
    let segments = segments(&kept.parts);
    let known = |part: Part| kept.parts.iter().any(|(p, _)| *p == part);
    let known = [Part::Schedule, Part::Sampler, Part::PrepareInputs, Part::ProcessOutputs]
        .map(|part| (part, known(part)));
    let mut rows: BTreeMap<u32, OverheadRow> = BTreeMap::new();
    let (mut first_busy, mut first_segment) = (0, 0);
    for (batch_size, from, to) in windows {
        first_busy += busy[first_busy..].partition_point(|(_, end)| *end <= from);
        first_segment += segments[first_segment..].partition_point(|(_, _, end)| *end <= from);
        let idle = idle(&busy[first_busy..], from, to);
        let idle_us: f64 = idle.iter().map(|(a, b)| b - a).sum();
        let mut spent = [0.0; 4];
        let here = segments[first_segment..].iter().take_while(|(_, start, _)| *start < to);
        let mut free = idle.as_slice();
        for &(part, start, end) in here {
            free = &free[free.partition_point(|(_, end)| *end <= start)..];
            if let Some(at) = known.iter().position(|(p, _)| *p == part) {
                spent[at] += overlap(free, start, end);
            }
        }
        let row = rows.entry(batch_size).or_default();
        row.batch_size = batch_size;
        let lists = [
            &mut row.schedule_ms,
            &mut row.sampler_ms,
            &mut row.prepare_inputs_ms,
            &mut row.process_outputs_ms,
        ];
        for ((list, us), (_, known)) in lists.into_iter().zip(spent).zip(known) {
            if known {
                list.push(us / 1e3);
            }
        }
        row.device_ms.push((to - from - idle_us).max(0.0) / 1e3);
        row.gap_ms.push((idle_us - spent.iter().sum::<f64>()).max(0.0) / 1e3);
    }
    Ok(Steps { rows: rows.into_values().collect(), notes })
}

/// Steps in which nothing but decoding happens.
fn windows(kept: &mut Kept, batch_size: Option<u32>) -> Result<Vec<Window>, String> {
    kept.marks.sort_by(|(_, a), (_, b)| a.start.total_cmp(&b.start));
    let engine = kept.marks.iter().any(|(moment, _)| *moment != Moment::Step);
    kept.marks.retain(|(moment, _)| (*moment != Moment::Step) == engine);
    let Some((_, first)) = kept.marks.first().copied() else {
        return Err("no step is marked; expected vLLM's `execute_…` or torch's `ProfilerStep#…` annotations".into());
    };
    kept.marks.retain(|(_, span)| span.thread == first.thread);
    if !engine {
        let batch = batch_size.ok_or(
            "the steps (ProfilerStep#…) do not tell how many requests they are of; give it with --batch-sizes N",
        )?;
        let spans = kept.marks.iter().map(|(_, span)| (batch, span.start, span.end));
        return Ok(spans.filter(|(_, from, to)| to > from).collect());
    }
    let decodes = |moment: Moment| match moment {
        Moment::Execute { context: 0, generation: n @ 1.. } => Some(n),
        _ => None,
    };
    let pairs = kept.marks.windows(2).filter_map(|pair| {
        let n = decodes(pair[0].0)?;
        let (from, to) = (pair[0].1.start, pair[1].1.start);
        (decodes(pair[1].0) == Some(n) && to > from).then_some((n, from, to))
    });
    let mut pairs: Vec<Window> = pairs.collect();
    if let Some(wanted) = batch_size {
        let found: BTreeSet<u32> = pairs.iter().map(|(n, ..)| *n).collect();
        pairs.retain(|(n, ..)| *n == wanted);
        if let (true, false) = (pairs.is_empty(), found.is_empty()) {
            let found: Vec<String> = found.iter().map(u32::to_string).collect();
            return Err(format!(
                "its steps are of {} requests, none of {wanted}: leave --batch-sizes out",
                found.join(", ")
            ));
        }
    }
    match pairs.is_empty() {
        true => Err(format!(
            "{} steps are marked, but no two in a row that decode the same number of requests",
            kept.marks.len()
        )),
        false => Ok(pairs),
    }
}

/// Overlapping intervals joined, in order.
fn union(mut spans: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    spans.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut joined: Vec<(f64, f64)> = Vec::new();
    for (start, end) in spans {
        match joined.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => joined.push((start, end)),
        }
    }
    joined
}

/// What `busy` leaves free between `from` and `to`.
fn idle(busy: &[(f64, f64)], from: f64, to: f64) -> Vec<(f64, f64)> {
    let (mut free, mut at) = (Vec::new(), from);
    for &(start, end) in busy.iter().take_while(|(start, _)| *start < to) {
        if start > at {
            free.push((at, start));
        }
        at = at.max(end);
    }
    if at < to {
        free.push((at, to));
    }
    free
}

/// How much of `spans`, in order, lies between `start` and `end`.
fn overlap(spans: &[(f64, f64)], start: f64, end: f64) -> f64 {
    let near = spans.iter().take_while(|(from, _)| *from < end);
    near.map(|(a, b)| (b.min(end) - a.max(start)).max(0.0)).sum()
}

/// The innermost part at each moment, as intervals in order; `parts` by ascending start, the longer
/// first.
fn segments(parts: &[(Part, Span)]) -> Vec<(Part, f64, f64)> {
    let mut out: Vec<(Part, f64, f64)> = Vec::new();
    let mut open: Vec<(Part, f64)> = Vec::new();
    let mut at = f64::NEG_INFINITY;
    let mut until = |open: &mut Vec<(Part, f64)>, to: f64, out: &mut Vec<(Part, f64, f64)>| {
        while let Some(&(part, end)) = open.last() {
            let stop = end.min(to);
            if stop > at {
                out.push((part, at, stop));
                at = stop;
            }
            if end > to {
                break;
            }
            open.pop();
        }
        at = at.max(to);
    };
    for &(part, span) in parts {
        until(&mut open, span.start, &mut out);
        // What begins inside another ends with it: clocks round.
        let end = open.last().map_or(span.end, |(_, outer)| span.end.min(*outer));
        open.push((part, end));
    }
    until(&mut open, f64::INFINITY, &mut out);
    out
}

#[cfg(test)]
#[path = "../trace_tests.rs"]
mod tests;
