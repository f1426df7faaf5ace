//! Every reader takes whatever bytes there are, and finds every request of a file that is right.

use super::testing::{config, ns_and_tokens};
use super::*;
use proptest::prelude::*;
use std::io::Write as _;

/// Times in whole milliseconds, in order, and lengths.
fn requests() -> impl Strategy<Value = Vec<(u64, u32, u32)>> {
    prop::collection::vec((0_u64..1_000_000, 1_u32..100_000, 1_u32..100_000), 1..20).prop_map(
        |mut requests| {
            requests.sort_unstable();
            requests
        },
    )
}

/// A file of each format that has times; times on the calendar start at the first.
fn write(format: TraceFormat, requests: &[(u64, u32, u32)]) -> String {
    let lines = |header: &str, row: &dyn Fn(f64, u32, u32) -> String| {
        let rows = requests.iter().map(|&(ms, p, d)| row(ms as f64, p, d));
        std::iter::once(header.to_owned()).chain(rows).collect::<Vec<_>>().join("\n") + "\n"
    };
    match format {
        TraceFormat::Vidur => {
            lines("arrived_at,num_prefill_tokens,num_decode_tokens", &|ms, p, d| {
                format!("{},{p},{d}.0", ms / 1e3)
            })
        }
        TraceFormat::Azure => lines("TIMESTAMP,ContextTokens,GeneratedTokens", &|ms, p, d| {
            let (s, ms) = ((ms / 1e3) as u64, ms as u64 % 1000);
            let (m, s) = (s / 60, s % 60);
            format!("2024-02-29 {:02}:{:02}:{s:02}.{ms:03}+00:00,{p},{d}", m / 60, m % 60)
        }),
        TraceFormat::BurstGpt => lines(
            "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens",
            &|ms, p, d| format!("{},\"a,\"\"b\",1,GPT-4,{p},{d},{}", ms / 1e3, p + d),
        ),
        TraceFormat::Splitwise => {
            lines("request_id,arrival_timestamp,batch_size,prompt_size,token_size", &|ms, p, d| {
                format!("1,{},1,{p},{d}", ms / 1e3)
            })
        }
        TraceFormat::Mooncake => lines("", &|ms, p, d| {
            format!(r#"{{"timestamp": {ms}, "input_length": {p}, "output_length": {d}, "x": [1]}}"#)
        }),
        TraceFormat::QwenBailian => lines("", &|ms, p, d| {
            let s = ms / 1e3;
            format!(r#"{{"chat_id":1,"timestamp":{s},"input_length":{p},"output_length":{d}}}"#)
        }),
        TraceFormat::LlmServingSim => lines("", &|ms, p, d| {
            let ns = ms * 1e6;
            format!(r#"{{"input_toks": {p}, "output_toks": {d}, "arrival_time_ns": {ns}}}"#)
        }),
        TraceFormat::VllmRequests => lines("", &|ms, p, d| {
            // Binary fractions of a second are exact so far from 1970.
            let s = 1_700_000_000.0 + ms;
            format!(r#"{{"input_toks": {p}, "output_toks": {d}, "arrival_time": {s}}}"#)
        }),
        TraceFormat::Apex => lines("", &|ms, p, d| {
            let ns = ms * 1e6;
            format!(r#"{{"StartTimeOffset":{ns},"ContextTokens":{p},"GeneratedTokens":{d}}}"#)
        }),
        TraceFormat::ShareGpt => lines("", &|_, p, d| {
            format!(r#"{{"conversations": [{{"num_tokens": {p}}}, {{"tokens": {d}}}]}}"#)
        }),
    }
}

fn formats() -> impl Strategy<Value = TraceFormat> {
    prop::sample::select(layout::LAYOUTS.map(|layout| layout.format).to_vec())
}

/// Ways to keep the same lines in a file.
fn wrap(text: &str, way: usize) -> Vec<u8> {
    match way {
        0 => text.into(),
        1 => text.replace('\n', "\r\n").into(),
        2 => ["\u{feff}", &text.replace('\n', "\n \n")].concat().into(),
        3 => {
            let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gz.write_all(text.as_bytes()).unwrap();
            gz.finish().unwrap()
        }
        4 => zstd::encode_all(text.as_bytes(), 1).unwrap(),
        _ if text.trim_start().starts_with('{') => {
            format!("[{}]", text.trim().replace('\n', ",\n")).into()
        }
        _ => text.trim_end().into(),
    }
}

fn file_of(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

/// Reads as everything, recognised and not; errors are one line.
fn read_all_ways(bytes: &[u8]) {
    let file = file_of(bytes);
    let formats = layout::LAYOUTS.map(|layout| Some(layout.format));
    for format in formats.into_iter().chain([None]) {
        let trace = TraceConfig { format, empty: Some(Empty::One), ..config(file.path()) };
        for error in [
            read_trace(&trace).err(),
            lengths_with_notes(file.path(), format, Some(Empty::Skip)).err(),
        ] {
            let line = error.map(|e| e.to_string()).unwrap_or_default();
            assert!(!line.contains('\n'), "{line}");
        }
    }
}

#[derive(Clone, Debug)]
enum Change {
    Cut(prop::sample::Index),
    Flip(prop::sample::Index, u8),
    Insert(prop::sample::Index, u8),
    Repeat(prop::sample::Index, prop::sample::Index),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        at().prop_map(Change::Cut),
        (at(), 0_u8..8).prop_map(|(i, bit)| Change::Flip(i, bit)),
        (at(), prop::sample::select(b"\"\r\n,{}[]-.0e\\\0".to_vec()))
            .prop_map(|(i, b)| Change::Insert(i, b)),
        (at(), at()).prop_map(|(i, j)| Change::Repeat(i, j)),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    if bytes.is_empty() {
        return;
    }
    let len = bytes.len();
    match change {
        Change::Cut(i) => bytes.truncate(i.index(len)),
        Change::Flip(i, bit) => bytes[i.index(len)] ^= 1 << bit,
        Change::Insert(i, b) => bytes.insert(i.index(len), *b),
        Change::Repeat(i, j) => {
            let (i, j) = (i.index(len), j.index(len));
            bytes.extend_from_within(i.min(j)..i.max(j));
        }
    }
}

proptest! {
    #[test]
    fn a_file_that_is_right_gives_all_its_requests(
        requests in requests(), format in formats(), way in 0_usize..6,
    ) {
        let file = file_of(&wrap(&write(format, &requests), way));
        if format == TraceFormat::ShareGpt {
            let lengths = read_lengths(file.path()).unwrap();
            let expected: Vec<_> = requests.iter().map(|r| (r.1, r.2)).collect();
            prop_assert_eq!(lengths, expected);
        } else {
            let zero = requests[0].0;
            let expected: Vec<_> = requests.iter().map(|&(ms, p, d)| match format {
                TraceFormat::Azure => ((ms - zero) * 1_000_000, p, d),
                TraceFormat::VllmRequests => ((ms - zero) * 1_000_000_000, p, d),
                _ => (ms * 1_000_000, p, d),
            }).collect();
            for format in [None, Some(format)] {
                let read = read_trace(&TraceConfig { format, ..config(file.path()) }).unwrap();
                prop_assert_eq!(ns_and_tokens(&read), expected.clone());
            }
        }
    }

    #[test]
    fn a_file_that_is_damaged_does_not_make_a_reader_panic(
        requests in requests(), format in formats(), way in 0_usize..6,
        changes in prop::collection::vec(change(), 1..5),
    ) {
        let mut bytes = wrap(&write(format, &requests), way);
        changes.iter().for_each(|change| apply(&mut bytes, change));
        read_all_ways(&bytes);
    }

    #[test]
    fn no_bytes_make_a_reader_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..400), format in formats(),
    ) {
        read_all_ways(&bytes);
        let header = write(format, &[(0, 1, 1)]);
        let header = header.trim_start().lines().next().unwrap_or_default();
        read_all_ways(&[header.as_bytes(), b"\n", &bytes].concat());
    }
}
