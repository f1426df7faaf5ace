//! How scales, limits and recognition behave, whatever the format.

use super::testing::{config, read_text as read};
use super::*;

const TWO: &str = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,374,44\n0.25,396.0,9\n";

#[test]
fn rows_are_sorted_by_arrival_and_columns_found_by_name() {
    let w = read(TWO, |_| {}).unwrap();
    assert_eq!(w.requests[0].arrived_at.as_ns(), 250_000_000);
    assert_eq!((w.requests[1].prefill_tokens, w.requests[1].decode_tokens), (374, 44));
    let other = "num_decode_tokens,x,num_prefill_tokens,arrived_at\n44,?,374,0\n";
    assert_eq!(read(other, |_| {}).unwrap().requests[0].prefill_tokens, 374);
}

#[test]
fn scales_and_limits_apply_in_vidurs_order() {
    let w = read(TWO, |c| {
        c.time_scale = 2.0;
        c.prefill_scale = 0.5;
        c.num_requests = Some(1);
    })
    .unwrap();
    assert_eq!(w.requests.len(), 1);
    assert_eq!(
        (w.requests[0].arrived_at.as_ns(), w.requests[0].prefill_tokens),
        (1_000_000_000, 187)
    );
    let clipped = read(TWO, |c| {
        c.max_tokens = Some(400);
        c.too_long = TooLong::ClipPrompt;
    })
    .unwrap();
    assert_eq!(clipped.requests[0].prefill_tokens, 391);
    assert_eq!(clipped.requests[1].prefill_tokens, 356);
}

#[test]
fn errors_name_file_line_column_and_cure() {
    let header = "arrived_at,num_prefill_tokens,num_decode_tokens\n";
    let none = "t.csv: no requests; expected at least one: a row below the header line, or an object \
                of JSON";
    for (text, expected) in [
        ("", none),
        (header, none),
        ("[]", none),
        (
            "arrived_at,num_prefill_tokens\n1,2\n",
            "t.csv:1: no column num_decode_tokens; found arrived_at, num_prefill_tokens",
        ),
        (
            &format!("{header}0,1,2\n0,x,2\n"),
            "t.csv:3: num_prefill_tokens is \"x\"; expected a number",
        ),
        (
            &format!("{header}0,0,2\n"),
            "t.csv:2: num_prefill_tokens is \"0\"; expected a whole number, 1 to 1000000000",
        ),
        (&format!("{header}0,1\n"), "t.csv:2: num_decode_tokens is \"\"; expected a number"),
        (
            &format!("{header}-1,1,1\n"),
            "t.csv:2: arrived_at is \"-1\"; expected a time in seconds, 0 or more, less than 500 years",
        ),
        (
            &format!("{header}0,4294967296,1\n"),
            "t.csv:2: num_prefill_tokens is \"4294967296\"; expected a whole number, 1 to 1000000000",
        ),
        (
            &format!("{header}0,1,1,,x,\n"),
            "t.csv:2: cell 5 is \"x\"; expected 3 cells, as the header has",
        ),
        (
            &format!("{header}0,1,1,\"x\"\n"),
            "t.csv:2: cell 4 is \"x\"; expected 3 cells, as the header has",
        ),
        (
            "num_prefill_tokens,arrived_at,num_prefill_tokens,num_decode_tokens\n1,0,2,1\n",
            "t.csv:1: the header names num_prefill_tokens twice; expected one such column",
        ),
    ] {
        assert_eq!(read(text, |_| {}).unwrap_err(), expected);
    }
    let long = read(TWO, |c| c.max_tokens = Some(400)).unwrap_err();
    assert!(
        long.starts_with("t.csv:2: the request has 418 tokens, more than max_tokens 400"),
        "{long}"
    );
    let trailing = read(&format!("{header}0,1,1,,\n"), |_| {});
    assert_eq!(trailing.unwrap().requests.len(), 1);
}

#[test]
fn what_is_wrong_with_the_config_is_not_blamed_on_the_file() {
    let error = |change: &dyn Fn(&mut TraceConfig)| read(TWO, |c| change(c)).unwrap_err();
    let limit = |c: &mut TraceConfig, max, too_long| {
        (c.max_tokens, c.too_long) = (Some(max), too_long);
    };
    assert_eq!(
        error(&|c| c.time_scale = 0.0),
        "workload.trace.time_scale: 0; expected a number above 0"
    );
    assert_eq!(
        error(&|c| c.time_scale = 1e300),
        format!("workload.trace.time_scale: 1{}; moves arrivals past 500 years", "0".repeat(300))
    );
    assert_eq!(
        error(&|c| c.num_requests = Some(0)),
        "workload.trace.num_requests: 0; expected at least 1"
    );
    assert_eq!(
        error(&|c| limit(c, 100, TooLong::Drop)),
        "t.csv: 2 requests longer than max_tokens left out; no request remains: change max_tokens, \
         too_long or empty"
    );
    assert_eq!(
        error(&|c| limit(c, 20, TooLong::ClipPrompt)),
        "t.csv:2: the output alone has 44 tokens and leaves no room for a prompt in max_tokens 20; \
         raise it, or set workload.trace.too_long to drop"
    );
}

#[test]
fn a_directory_is_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let error = read_trace(&config(dir.path())).unwrap_err().to_string();
    assert!(error.ends_with("is a directory; expected a CSV or JSON file"), "{error}");
}

#[test]
fn a_format_that_is_named_is_expected() {
    let vidur = |c: &mut TraceConfig| c.format = Some(TraceFormat::Vidur);
    let error = read("a,b\n1,2\n", vidur).unwrap_err();
    assert_eq!(error, "t.csv:1: no column arrived_at; found a, b");
    let mooncake = |c: &mut TraceConfig| c.format = Some(TraceFormat::Mooncake);
    let error = read(TWO, mooncake).unwrap_err();
    assert_eq!(error, "t.csv:1: column 1: expected value; expected one JSON object per request");
}

#[test]
fn content_that_is_no_trace_is_shown_beside_the_formats() {
    let formats = "vidur (arrived_at, num_prefill_tokens, num_decode_tokens), azure (TIMESTAMP, \
                   ContextTokens, GeneratedTokens), burstgpt (Timestamp, Request tokens, Response \
                   tokens), splitwise (arrival_timestamp, prompt_size, token_size), mooncake \
                   (timestamp, input_length, output_length), qwen_bailian (timestamp, \
                   input_length, output_length, chat_id), sharegpt (input_tokens, output_tokens), \
                   llmservingsim (arrival_time_ns, input_toks, output_toks), vllm_requests \
                   (arrival_time, input_toks, output_toks), apex (StartTimeOffset, ContextTokens, \
                   GeneratedTokens) (`format` names one)";
    let long = "x".repeat(200);
    for (text, line, found) in [
        ("\na,b\n1,2\n", 2, "a,b"),
        ("{\"a\": 1}", 1, r#"{\"a\": 1}"#),
        ("[{\"a\":\n 1}]", 2, r#"{\"a\":1}"#),
        (&long, 1, &format!("{}...", "x".repeat(80))),
    ] {
        assert_eq!(
            read(text, |_| {}).unwrap_err(),
            format!(
                "t.csv:{line}: no trace format is recognised in \"{found}\"; understood are \
                 {formats}"
            )
        );
    }
}

#[test]
fn what_is_left_out_or_mended_is_noted() {
    let workload = read(TWO, |c| {
        c.max_tokens = Some(410);
        c.too_long = TooLong::Drop;
    });
    assert_eq!(workload.unwrap().notes, ["t.csv: 1 request longer than max_tokens left out"]);
    let workload = read(TWO, |c| {
        c.max_tokens = Some(400);
        c.too_long = TooLong::ClipPrompt;
    });
    assert_eq!(workload.unwrap().notes, ["t.csv: 2 requests shortened to max_tokens"]);
    assert!(read(TWO, |_| {}).unwrap().notes.is_empty());
}
