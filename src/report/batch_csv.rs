//! batch_metrics.csv: one row per batch and pipeline stage, in the order in which they started.

use crate::metrics::StageSpan;
use std::io::{self, Write};

const HEADER: &str = "Batch Id,replica,stage,start_time,batch_size,batch_num_tokens,\
batch_num_prefill_tokens,batch_num_decode_tokens,batch_execution_time";

/// Writes the rows of `spans`; times in seconds.
///
/// # Errors
/// Those of `out`.
pub fn write(spans: &[StageSpan], out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{HEADER}")?;
    for s in spans {
        let (prefill, decode) = (s.num_prefill_tokens, s.num_decode_tokens);
        write!(out, "{},{},{},{}", s.batch, s.replica, s.stage, s.start.as_seconds())?;
        write!(out, ",{},{},{prefill},{decode}", s.num_requests, prefill + decode)?;
        writeln!(out, ",{}", s.duration.as_seconds())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ReplicaId, StageId};
    use crate::units::{SimDuration, SimTime};

    #[test]
    fn a_row_holds_a_batch_on_a_stage() {
        let span = StageSpan {
            start: SimTime::from_ns(1_500_000_000),
            duration: SimDuration::from_ns(25_000_000),
            replica: ReplicaId(2),
            stage: StageId(1),
            batch: 7,
            num_requests: 3,
            num_prefill_tokens: 10,
            num_decode_tokens: 2,
        };
        let mut text = Vec::new();
        write(&[span], &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text, format!("{HEADER}\n7,2,1,1.5,3,12,10,2,0.025\n"));
    }
}
