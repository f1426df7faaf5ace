//! APEX+, JSON: `StartTimeOffset` (nanoseconds from the trace's own zero), `ContextTokens`,
//! `GeneratedTokens`.

use super::layout::{Clock, Layout, Shape, TraceFormat};

pub(super) const LAYOUT: Layout = Layout {
    format: TraceFormat::Apex,
    name: "apex",
    shape: Shape::Json,
    time: Some(("StartTimeOffset", Clock::Nanoseconds)),
    prefill: "ContextTokens",
    decode: "GeneratedTokens",
    marker: None,
    skips_empty: false,
};

#[cfg(test)]
mod tests {
    use super::super::testing::{ns_and_tokens, read_text};

    #[test]
    fn requests_are_read() {
        let text = r#"{"StartTimeOffset": 1500, "ContextTokens": 374, "GeneratedTokens": 44}"#;
        assert_eq!(ns_and_tokens(&read_text(text, |_| {}).unwrap()), [(1500, 374, 44)]);
    }
}
