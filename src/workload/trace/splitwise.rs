//! Traces of the Splitwise simulator, CSV: `arrival_timestamp` (seconds from the trace's own zero),
//! `prompt_size`, `token_size`, among others that are not read.

use super::layout::{Clock, Layout, Shape, TraceFormat};

pub(super) const LAYOUT: Layout = Layout {
    format: TraceFormat::Splitwise,
    name: "splitwise",
    shape: Shape::Csv,
    time: Some(("arrival_timestamp", Clock::Seconds)),
    prefill: "prompt_size",
    decode: "token_size",
    marker: None,
    skips_empty: false,
};

#[cfg(test)]
mod tests {
    use super::super::testing::{ns_and_tokens, read_text};

    #[test]
    fn requests_are_read() {
        let text = "request_id,request_type,application_id,arrival_timestamp,batch_size,\
                    prompt_size,token_size\n0,2,0,0.25,1,374,44\n1,2,0,4.5,1,396,109\n";
        let expected = [(250_000_000, 374, 44), (4_500_000_000, 396, 109)];
        assert_eq!(ns_and_tokens(&read_text(text, |_| {}).unwrap()), expected);
    }
}
