//! Qwen-Bailian, JSON: `timestamp` (seconds from the trace's own zero), `input_length`,
//! `output_length`. It shares these names with Mooncake, whose times are in milliseconds: the field
//! `chat_id` tells it apart.

use super::layout::{Clock, Layout, Shape, TraceFormat};

pub(super) const LAYOUT: Layout = Layout {
    format: TraceFormat::QwenBailian,
    name: "qwen_bailian",
    shape: Shape::Json,
    time: Some(("timestamp", Clock::Seconds)),
    prefill: "input_length",
    decode: "output_length",
    marker: Some("chat_id"),
    skips_empty: false,
};

#[cfg(test)]
mod tests {
    use super::super::testing::{ns_and_tokens, read_text};

    #[test]
    fn times_are_seconds() {
        let text = r#"{"chat_id": 159, "parent_chat_id": -1, "timestamp": 61.114, "input_length": 521, "output_length": 132, "type": "text", "turn": 1, "hash_ids": [1]}"#;
        let expected = [(61_114_000_000, 521, 132)];
        assert_eq!(ns_and_tokens(&read_text(text, |_| {}).unwrap()), expected);
    }
}
