//! Azure LLM inference traces, CSV: `TIMESTAMP` (a date; the first arrival becomes zero),
//! `ContextTokens`, `GeneratedTokens`. The files of 2023 write seven decimals and no zone, those of
//! 2024 microseconds with a zone, and leave the fraction out where it is zero. The multimodal
//! traces of 2025 have a column `NumImages` besides, which is not read.

use super::layout::{Clock, Layout, Shape, TraceFormat};

pub(super) const LAYOUT: Layout = Layout {
    format: TraceFormat::Azure,
    name: "azure",
    shape: Shape::Csv,
    time: Some(("TIMESTAMP", Clock::Date)),
    prefill: "ContextTokens",
    decode: "GeneratedTokens",
    marker: None,
    skips_empty: false,
};

#[cfg(test)]
mod tests {
    use super::super::testing::{ns_and_tokens, read_text};

    #[test]
    fn both_years_are_read_and_the_first_arrival_is_zero() {
        let of_2023 = "TIMESTAMP,ContextTokens,GeneratedTokens\n\
                       2023-11-16 18:17:03.9799600,4808,10\n\
                       2023-11-16 18:17:04.0319600,3180,8\n";
        let expected = [(0, 4808, 10), (52_000_000, 3180, 8)];
        assert_eq!(ns_and_tokens(&read_text(of_2023, |_| {}).unwrap()), expected);

        // Not in order, one row without fraction, one past midnight.
        let of_2024 = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n\
                       2024-05-10 23:59:59.009930+00:00,2162,5\r\n\
                       2024-05-10 23:59:59+00:00,2399,6\r\n\
                       2024-05-11 00:00:00.500000+00:00,76,15\r\n";
        let expected = [(0, 2399, 6), (9_930_000, 2162, 5), (1_500_000_000, 76, 15)];
        assert_eq!(ns_and_tokens(&read_text(of_2024, |_| {}).unwrap()), expected);
        let slower = read_text(of_2024, |c| c.time_scale = 2.0).unwrap();
        assert_eq!(ns_and_tokens(&slower)[2].0, 3_000_000_000);
    }

    #[test]
    fn a_date_that_is_none_is_named() {
        let text = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-02-30 00:00:00,1,1\n";
        assert_eq!(
            read_text(text, |_| {}).unwrap_err(),
            "t.csv:2: TIMESTAMP is \"2024-02-30 00:00:00\"; expected a time such as \
             2024-05-10 00:00:00.009930+00:00"
        );
    }
}
