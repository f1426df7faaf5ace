//! BurstGPT, CSV: `Timestamp` (seconds from the trace's own zero), `Request tokens`,
//! `Response tokens`. Columns are found by name, so that the old layout and the new one, which has
//! `Session ID` and `Elapsed time` in between, are read alike. A failed request has 0 response
//! tokens: it is left out and counted.

use super::layout::{Clock, Layout, Shape, TraceFormat};

pub(super) const LAYOUT: Layout = Layout {
    format: TraceFormat::BurstGpt,
    name: "burstgpt",
    shape: Shape::Csv,
    time: Some(("Timestamp", Clock::Seconds)),
    prefill: "Request tokens",
    decode: "Response tokens",
    marker: None,
    skips_empty: true,
};

#[cfg(test)]
mod tests {
    use super::super::Empty;
    use super::super::testing::{ns_and_tokens, read_text};

    const OLD: &str = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n\
                       5,ChatGPT,472,18,490,Conversation log\n\
                       45,GPT-4,1087,0,1087,API log\n\
                       118,GPT-4,417,276,693,Conversation log\n";
    const NEW: &str = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,\
                       Total tokens,Log Type\n\
                       5,a1,0.5,ChatGPT,472,18,490,Conversation log\n\
                       45,,1,GPT-4,1087,0,1087,API log\n\
                       118,\"b,2\",9.25,GPT-4,417,276,693,Conversation log\n";

    #[test]
    fn both_layouts_are_read_and_failures_counted() {
        for text in [OLD, NEW] {
            let workload = read_text(text, |_| {}).unwrap();
            let expected = [(5_000_000_000, 472, 18), (118_000_000_000, 417, 276)];
            assert_eq!(ns_and_tokens(&workload), expected);
            assert_eq!(workload.notes, ["t.csv: 1 request with 0 tokens left out"]);
        }
    }

    #[test]
    fn failures_can_be_kept_or_refused() {
        let kept = read_text(OLD, |c| c.empty = Some(Empty::One)).unwrap();
        assert_eq!(ns_and_tokens(&kept)[1], (45_000_000_000, 1087, 1));
        assert_eq!(kept.notes, ["t.csv: 1 request with 0 tokens given 1"]);
        let refused = read_text(OLD, |c| c.empty = Some(Empty::Refuse)).unwrap_err();
        assert_eq!(
            refused,
            "t.csv:3: Response tokens is \"0\"; expected a whole number, 1 to 1000000000 \
             (`empty: skip` leaves such requests out, `empty: one` makes it 1)"
        );
    }
}
