//! Mooncake, JSON: `timestamp` (milliseconds from the trace's own zero), `input_length`,
//! `output_length`, `hash_ids`: one per 512 tokens of the prompt, for prefix caching.

use super::layout::{Clock, Layout, Shape, TraceFormat};

pub(super) const LAYOUT: Layout = Layout {
    format: TraceFormat::Mooncake,
    name: "mooncake",
    shape: Shape::Json,
    time: Some(("timestamp", Clock::Milliseconds)),
    prefill: "input_length",
    decode: "output_length",
    marker: None,
    skips_empty: false,
};

#[cfg(test)]
mod tests {
    use super::super::testing::{ns_and_tokens, read_lengths_of, read_text};
    use super::super::{TooLong, TraceConfig};

    const TWO: &str = r#"{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}
{"timestamp": 30535, "input_length": 6472, "output_length": 26, "hash_ids": []}
"#;

    #[test]
    fn lines_and_arrays_are_read_alike() {
        let expected = [(27_482_000_000, 6955, 52), (30_535_000_000, 6472, 26)];
        assert_eq!(ns_and_tokens(&read_text(TWO, |_| {}).unwrap()), expected);
        let array = format!("\n[{}]", TWO.trim().replace('\n', ",\n"));
        assert_eq!(ns_and_tokens(&read_text(&array, |_| {}).unwrap()), expected);
        let first = read_text(&array, |c| c.num_requests = Some(1)).unwrap();
        assert_eq!(ns_and_tokens(&first), expected[..1]);
    }

    #[test]
    fn hashes_stay_with_their_requests() {
        let late_first = TWO.replace("27482", "40000");
        let load = read_text(&late_first, |_| {}).unwrap();
        assert_eq!((load.prefixes.of(0), load.prefixes.of(1)), (&[][..], &[46, 47][..]));
        assert_eq!(load.prefixes.hash_before(1, 1024), Some(47));
    }

    #[test]
    fn a_prompt_cut_short_begins_as_before_and_a_scaled_one_does_not() {
        let clip = |max| {
            let change = |c: &mut TraceConfig| {
                (c.max_tokens, c.too_long) = (Some(max), TooLong::ClipPrompt);
            };
            read_text(TWO, change).unwrap().prefixes
        };
        assert_eq!(clip(1024 + 52).of(0), [46, 47]);
        assert_eq!(clip(1023 + 52).of(0), [46]);
        assert_eq!(clip(511 + 52).of(0), [] as [u64; 0]);
        let lost = "t.csv: 1 request whose hash_ids are not used: ";
        let scaled = read_text(TWO, |c| c.prefill_scale = 0.5).unwrap();
        assert_eq!(scaled.prefixes.of(0), [] as [u64; 0]);
        assert_eq!(scaled.notes, [format!("{lost}prefill_scale makes other prompts of them")]);
        let lengths = read_lengths_of(TWO).unwrap();
        assert_eq!(lengths.notes, [format!("{lost}lengths alone share no prefixes")]);
    }

    #[test]
    fn errors_name_line_and_field() {
        let third = |line: &str| read_text(&format!("{TWO}\n{line}\n"), |_| {}).unwrap_err();
        for (line, expected) in [
            (
                r#"{"timestamp": 1, "input_length": "x", "output_length": 2}"#,
                "t.csv:4: input_length is \"x\"; expected a number",
            ),
            (
                r#"{"timestamp": 1, "input_length": 1.5, "output_length": 2}"#,
                "t.csv:4: input_length is 1.5; expected a whole number, 1 to 1000000000",
            ),
            (
                r#"{"timestamp": 1, "input_length": [3], "output_length": 2}"#,
                "t.csv:4: input_length is a list; expected a number",
            ),
            (
                r#"{"timestamp": -1, "input_length": 1, "output_length": 2}"#,
                "t.csv:4: timestamp is -1; expected a time in milliseconds, 0 or more, less than \
                 500 years",
            ),
            (
                r#"{"timestamp": 1, "input_length": 1}"#,
                "t.csv:4: no field output_length; expected a number",
            ),
            (
                r#"{"timestamp": 1"#,
                "t.csv:4: column 15: EOF while parsing an object; expected one JSON object per \
                 request",
            ),
            (
                r#"{"timestamp": 1, "input_length": 1, "input_length": 2, "output_length": 2}"#,
                "t.csv:4: column 53: input_length stands twice with different values; expected one \
                 JSON object per request",
            ),
            (
                r#"{"timestamp": 1, "input_length": 1, "output_length": 2, "hash_ids": ["a"]}"#,
                "t.csv:4: column 74: \"a\" among the hashes of a prompt, not a whole number; expected \
                 one JSON object per request",
            ),
            (
                r#"{"timestamp": 1, "input_length": 1, "output_length": 2, "hash_ids": [-1]}"#,
                "t.csv:4: column 73: -1 among the hashes of a prompt, not a whole number; expected \
                 one JSON object per request",
            ),
            (
                r#"{"timestamp": 1, "input_length": 10, "output_length": 2, "hash_ids": [1, 2]}"#,
                "t.csv:4: hash_ids holds 2 hashes, and a prompt of 10 tokens has 1: one per 512 tokens",
            ),
        ] {
            assert_eq!(third(line), expected);
            let first = read_text(&format!("[{line}]"), |_| {}).unwrap_err();
            assert!(first.starts_with("t.csv:1: "), "{first}");
        }
        let array = format!("[{},\n{{\"timestamp\": 1}}]", TWO.trim().replace('\n', ",\n"));
        let error = read_text(&array, |_| {}).unwrap_err();
        assert_eq!(error, "t.csv:3: no field input_length; expected a number");
    }
}
