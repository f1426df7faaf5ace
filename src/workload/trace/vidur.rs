//! Vidur's processed traces, CSV: `arrived_at` (seconds from the trace's own zero),
//! `num_prefill_tokens`, `num_decode_tokens`. Its files of lengths have no times and further columns.

use super::layout::{Clock, Layout, Shape, TraceFormat};

pub(super) const LAYOUT: Layout = Layout {
    format: TraceFormat::Vidur,
    name: "vidur",
    shape: Shape::Csv,
    time: Some(("arrived_at", Clock::Seconds)),
    prefill: "num_prefill_tokens",
    decode: "num_decode_tokens",
    marker: None,
    skips_empty: false,
};
