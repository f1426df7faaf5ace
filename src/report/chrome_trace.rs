//! Every batch on every stage as a Chrome trace (`chrome://tracing`, Perfetto): a process per
//! replica, a thread per stage, microseconds.

use crate::metrics::StageSpan;
use std::collections::BTreeSet;
use std::io::{self, Write};

/// Writes the trace, an event a line.
///
/// # Errors
/// Those of `out`.
pub fn write(spans: &[StageSpan], out: &mut impl Write) -> io::Result<()> {
    write!(out, "{{\"displayTimeUnit\":\"ms\",\"traceEvents\":[")?;
    let tracks: BTreeSet<_> = spans.iter().map(|s| (s.replica, s.stage)).collect();
    let mut separator = "\n";
    for (replica, stage) in tracks {
        for (what, label) in
            [("process", format!("replica {replica}")), ("thread", format!("stage {stage}"))]
        {
            write!(
                out,
                "{separator}{{\"name\":\"{what}_name\",\"ph\":\"M\",\"pid\":{replica},\
                 \"tid\":{stage},\"args\":{{\"name\":\"{label}\"}}}}"
            )?;
            separator = ",\n";
        }
    }
    for s in spans {
        let kind = match (s.num_prefill_tokens, s.num_decode_tokens) {
            (0, _) => "decode",
            (_, 0) => "prefill",
            _ => "mixed",
        };
        write!(
            out,
            "{separator}{{\"name\":\"{kind}\",\"cat\":\"batch\",\"ph\":\"X\",\"ts\":{},\"dur\":{},\
             \"pid\":{},\"tid\":{},\"args\":{{\"batch\":{},\"requests\":{},\"prefill_tokens\":{},\
             \"decode_tokens\":{}}}}}",
            Micros(s.start.as_ns()),
            Micros(s.duration.as_ns()),
            s.replica,
            s.stage,
            s.batch,
            s.num_requests,
            s.num_prefill_tokens,
            s.num_decode_tokens
        )?;
        separator = ",\n";
    }
    writeln!(out, "\n]}}")
}

/// Nanoseconds shown as microseconds without rounding.
struct Micros(u64);

impl std::fmt::Display for Micros {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ReplicaId, StageId};
    use crate::units::{SimDuration, SimTime};

    #[test]
    fn the_trace_is_json_with_a_span_per_batch_and_named_tracks() {
        let span = StageSpan {
            start: SimTime::from_ns(1_234_567),
            duration: SimDuration::from_ns(89_001),
            replica: ReplicaId(1),
            stage: StageId(0),
            batch: 7,
            num_requests: 3,
            num_prefill_tokens: 10,
            num_decode_tokens: 2,
        };
        let mut text = Vec::new();
        write(&[span], &mut text).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let events = json["traceEvents"].as_array().unwrap();
        assert_eq!(events.len(), 3);
        assert_eq!(events[2]["ts"], 1234.567);
        assert_eq!(events[2]["dur"], 89.001);
        assert_eq!(events[2]["name"], "mixed");
        assert_eq!(events[0]["args"]["name"], "replica 1");
        write(&[], &mut Vec::new()).unwrap();
    }
}
