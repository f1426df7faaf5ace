//! request_metrics.csv: one row per request, with the columns of microsoft/vidur and their meaning
//! (times in seconds). Where Vidur divides by token counts that a restart has changed, we divide by
//! the counts that the request arrived with. `docs/metrics.md` defines each column.

use crate::metrics::RequestRecord;
use std::io::{self, Write};

const HEADER: &str = "Request Id,request_e2e_time,request_e2e_time_normalized,\
request_execution_time,request_execution_time_normalized,request_model_execution_time,\
request_model_execution_time_normalized,request_preemption_time,request_scheduling_delay,\
request_execution_plus_preemption_time,request_execution_plus_preemption_time_normalized,\
prefill_e2e_time,prefill_time_execution_plus_preemption,\
prefill_time_execution_plus_preemption_normalized,\
decode_time_execution_plus_preemption_normalized,request_inter_arrival_delay,request_num_tokens,\
request_num_prefill_tokens,request_num_decode_tokens,request_pd_ratio,request_num_restarts";

/// Writes the rows of `requests`, in order of arrival.
///
/// # Errors
/// Those of `out`.
pub fn write(requests: &[RequestRecord], out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{HEADER}")?;
    let mut previous = None;
    for (id, r) in requests.iter().enumerate() {
        let (prompt, output) = (f64::from(r.prompt_tokens), f64::from(r.output_tokens));
        let e2e = r.completed_at.since(r.arrived_at).as_seconds();
        let delay = r.scheduled_at.since(r.arrived_at).as_seconds();
        let served = r.completed_at.since(r.scheduled_at);
        let execution = r.execution.as_seconds();
        let preempted = (served - r.execution).as_seconds();
        let served = served.as_seconds();
        let ttft = r.first_token_at.since(r.arrived_at).as_seconds();
        let prefill = r.first_token_at.since(r.scheduled_at).as_seconds();
        let decode = r.completed_at.since(r.first_token_at).as_seconds();
        write!(out, "{id},{e2e},{},{execution},{}", e2e / output, execution / output)?;
        write!(out, ",{execution},{},{preempted},{delay}", execution / output)?;
        write!(out, ",{served},{},{ttft}", served / output)?;
        write!(out, ",{prefill},{},{},", prefill / prompt, decode / output)?;
        if let Some(previous) = previous {
            write!(out, "{}", r.arrived_at.since(previous).as_seconds())?;
        }
        let total = r.prompt_tokens + r.output_tokens;
        let (p, d) = (r.prompt_tokens, r.output_tokens);
        writeln!(out, ",{total},{p},{d},{},{}", prompt / output, r.restarts)?;
        previous = Some(r.arrived_at);
    }
    Ok(())
}
