//! The result file of `vllm bench serve`: its keys in its order, lists in seconds, summaries in
//! milliseconds, always with its definitions. Read in vllm/benchmarks/serve.py.

use crate::metrics::{Dialect, Distribution, Recorder, Summary};
use serde_json::{Map, Value, json};

/// What the file says beside the figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Header<'a> {
    /// Value of `date`.
    pub date: &'a str,
    /// Model id, also the tokenizer's.
    pub model: &'a str,
    /// Requests asked for.
    pub num_prompts: usize,
    /// Requests per second; `None` when all arrive at once, which vLLM calls infinite.
    pub request_rate: Option<f64>,
    /// Shape of gamma-distributed gaps: 1 for a Poisson process.
    pub burstiness: f64,
    /// Clients of a closed loop; `None` of open arrivals.
    pub max_concurrency: Option<u32>,
}

/// The file's content; with `detailed`, request by request too.
pub fn value(header: &Header<'_>, recorder: &Recorder, summary: &Summary, detailed: bool) -> Value {
    let t = &summary.throughput;
    let totals = recorder.totals();
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    put("date", header.date.into());
    put("endpoint_type", "vidur".into());
    put("backend", "vidur".into());
    put("label", Value::Null);
    put("model_id", header.model.into());
    put("tokenizer_id", header.model.into());
    put("num_prompts", header.num_prompts.into());
    put("request_rate", header.request_rate.map_or_else(|| "inf".into(), Value::from));
    put("burstiness", header.burstiness.into());
    put("max_concurrency", json!(header.max_concurrency));
    put("duration", t.duration_s.into());
    put("completed", totals.requests.into());
    put("failed", (header.num_prompts as u64).saturating_sub(totals.requests).into());
    put("total_input_tokens", totals.input_tokens.into());
    put("total_output_tokens", totals.output_tokens.into());
    put("request_throughput", t.requests_per_s.into());
    put("request_goodput", json!(summary.goodput.map(|g| g.requests_per_s)));
    put("output_throughput", t.output_tokens_per_s.into());
    put("total_token_throughput", (t.input_tokens_per_s + t.output_tokens_per_s).into());
    if detailed {
        for (key, list) in lists(recorder) {
            put(key, list);
        }
    }
    put("max_output_tokens_per_s", (t.max_output_tokens_per_s as f64).into());
    put("max_concurrent_requests", t.max_concurrent_requests.into());
    put("rtfx", 0.0.into());
    let latency = recorder.latency(Dialect::Vllm);
    for (name, distribution) in [
        ("ttft", latency.ttft_ms),
        ("tpot", latency.tpot_ms),
        ("itl", latency.itl_ms),
        ("e2el", latency.e2e_ms),
    ] {
        // As vLLM: of nothing every figure is 0.
        let figure = |f: fn(&Distribution) -> f64| distribution.as_ref().map_or(0.0, f).into();
        put(&format!("mean_{name}_ms"), figure(|d| d.mean));
        put(&format!("median_{name}_ms"), figure(|d| d.p50));
        put(&format!("std_{name}_ms"), figure(|d| d.std));
        put(&format!("p99_{name}_ms"), figure(|d| d.p99));
    }
    Value::Object(out)
}

/// The lists of `--save-detailed`, by request in order of arrival, in seconds.
fn lists(recorder: &Recorder) -> [(&'static str, Value); 5] {
    let r = &recorder.requests;
    let gaps = |list: &Vec<u64>| -> Value { list.iter().map(|ns| *ns as f64 * 1e-9).collect() };
    [
        ("input_lens", r.iter().map(|r| r.prompt_tokens).collect()),
        ("output_lens", r.iter().map(|r| r.output_tokens).collect()),
        ("ttfts", r.iter().map(|r| r.first_token_at.since(r.arrived_at).as_seconds()).collect()),
        ("itls", recorder.token_lists.iter().map(gaps).collect()),
        ("start_times", r.iter().map(|r| r.arrived_at.as_seconds()).collect()),
    ]
}
