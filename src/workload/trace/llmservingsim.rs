//! LLMServingSim's workloads, JSON: `arrival_time_ns` (nanoseconds from the trace's own zero),
//! `input_toks`, `output_toks`; and the requests that it measured on vLLM for comparison:
//! `arrival_time` (seconds since 1970; the first arrival becomes zero), `input_toks`, `output_toks`.

use super::layout::{Clock, Layout, Shape, TraceFormat};

pub(super) const LAYOUT: Layout = Layout {
    format: TraceFormat::LlmServingSim,
    name: "llmservingsim",
    shape: Shape::Json,
    time: Some(("arrival_time_ns", Clock::Nanoseconds)),
    prefill: "input_toks",
    decode: "output_toks",
    marker: None,
    skips_empty: false,
};

pub(super) const VLLM_LAYOUT: Layout = Layout {
    format: TraceFormat::VllmRequests,
    name: "vllm_requests",
    time: Some(("arrival_time", Clock::UnixSeconds)),
    ..LAYOUT
};

#[cfg(test)]
mod tests {
    use super::super::testing::{ns_and_tokens, read_text};

    #[test]
    fn workloads_keep_their_zero() {
        let text = r#"{"input_toks": 2358, "output_toks": 531, "arrival_time_ns": 46926808}
{"input_toks": 1034, "output_toks": 769, "arrival_time_ns": 347938951, "input_tok_ids": [1, 2]}"#;
        let expected = [(46_926_808, 2358, 531), (347_938_951, 1034, 769)];
        assert_eq!(ns_and_tokens(&read_text(text, |_| {}).unwrap()), expected);
    }

    #[test]
    fn measured_requests_start_at_zero() {
        let text = r#"{"request_id": "a", "input_toks": 7, "output_toks": 5, "arrival_time": 1700000000.5, "queued_ts": 2.5}
{"request_id": "b", "input_toks": 8, "output_toks": 6, "arrival_time": 1700000000.25, "queued_ts": 2.25}"#;
        let expected = [(0, 8, 6), (250_000_000, 7, 5)];
        assert_eq!(ns_and_tokens(&read_text(text, |_| {}).unwrap()), expected);
    }
}
