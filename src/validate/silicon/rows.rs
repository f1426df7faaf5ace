//! The measured runs.

use crate::profiling::import::aiconfigurator::{Engine, Package};
use crate::spec::model::{Dtype, ModelSpec};
use crate::spec::precision::{InputScales, Quantization, WeightFormat};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// The file inside the package's `systems` folder.
pub const FILE: &str = "silicon_sample.csv";

/// Which benchmark a run belongs to; each has a client protocol of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Benchmark {
    /// SemiAnalysis' public InferenceX (then InferenceMAX), dump of 2026-04-06.
    InferenceX,
    /// NVIDIA's own grids, whose protocol is not published.
    Grid,
}

/// One measured run.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The file's id.
    pub id: String,
    /// Whose protocol.
    pub benchmark: Benchmark,
    /// Engine.
    pub engine: Engine,
    /// The engine's version, where it is stated.
    pub engine_version: String,
    /// GPU system, as in our device catalogue.
    pub system: String,
    /// Model as the catalogue has it.
    pub model: String,
    /// How its weights are stored.
    pub weights: WeightFormat,
    /// Prompt tokens.
    pub isl: u32,
    /// Output tokens.
    pub osl: u32,
    /// Requests under way at the same time.
    pub concurrency: u32,
    /// Devices that share each layer.
    pub tensor_parallel: u32,
    /// Measured, milliseconds.
    pub ttft_ms: f64,
    /// Measured, milliseconds.
    pub tpot_ms: f64,
}

/// The columns that are used.
#[derive(Deserialize)]
struct Raw {
    id: String,
    silicon_data_source: String,
    backend: String,
    backend_version: String,
    model_path: String,
    system: String,
    mode: String,
    isl: u32,
    osl: u32,
    gemm_quant_mode: String,
    batch_size: Option<u32>,
    tp_size: Option<u32>,
    pp_size: Option<u32>,
    silicon_ttft_ms: f64,
    silicon_tpot_ms: f64,
}

/// The longest prompt or output: far beyond any model's context.
const MOST_TOKENS: u32 = 1 << 24;

/// Models whose every layer is dense, by the last part of their path without what names a
/// checkpoint's format; and their name in the catalogue.
const DENSE: [(&str, &str); 3] = [
    ("Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
    ("Llama-3.1-70B", "meta-llama/Llama-3.1-70B"),
    ("Qwen3-32B", "Qwen/Qwen3-32B"),
];

/// The dense runs of whole replicas, exact duplicates (whatever their id) left out.
///
/// # Errors
/// One line that names file, line and field.
pub fn read(package: &Package) -> Result<Vec<Row>, String> {
    let bytes = package.read(FILE).map_err(|e| e.to_string())?;
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Result<Vec<Row>, String> {
    let mut reader = csv::Reader::from_reader(bytes);
    let headers = reader.headers().map_err(|e| format!("{FILE}: {e}"))?.clone();
    let mut seen = HashSet::new();
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| format!("{FILE}: {e}"))?;
        let line = record.position().map_or(0, csv::Position::line);
        let raw: Raw = record
            .deserialize(Some(&headers))
            .map_err(|e| format!("{FILE}: line {line}: {e}; expected the columns of 0.12"))?;
        let Some(model) = dense_model(&raw.model_path).filter(|_| raw.mode == "agg") else {
            continue;
        };
        let rest: Vec<&str> =
            record.iter().zip(&headers).filter(|f| f.1 != "id").map(|f| f.0).collect();
        if !seen.insert(rest.join("\u{1f}")) {
            continue;
        }
        let wrong = |field: &str, value: &str, expected: &str| {
            format!("{FILE}: line {line}: {field} is {value:?}; expected {expected}")
        };
        let engine = Engine::ALL.into_iter().find(|e| e.name() == raw.backend);
        let weights = match raw.gemm_quant_mode.as_str() {
            "" | "bfloat16" => Some(WeightFormat::Unquantized),
            "fp8" => Some(WeightFormat::Fp8),
            "fp8_block" => Some(WeightFormat::Fp8Block),
            "nvfp4" => Some(WeightFormat::Nvfp4),
            _ => None,
        };
        if raw.pp_size.unwrap_or(1) != 1 {
            return Err(wrong("pp_size", &format!("{:?}", raw.pp_size), "1 for a dense model"));
        }
        let number = |field, value: Option<u32>| {
            value.filter(|n| *n > 0).ok_or_else(|| wrong(field, "", "a number above 0"))
        };
        let tokens = |field, n: u32| {
            let fits = n <= MOST_TOKENS;
            fits.then_some(n).ok_or_else(|| wrong(field, &n.to_string(), "at most 2^24 tokens"))
        };
        rows.push(Row {
            benchmark: match raw.silicon_data_source.contains("source_file=2026-04-06.csv") {
                true => Benchmark::InferenceX,
                false => Benchmark::Grid,
            },
            engine: engine.ok_or_else(|| wrong("backend", &raw.backend, "a known engine"))?,
            engine_version: raw.backend_version,
            system: raw.system,
            model: model.to_owned(),
            weights: weights.ok_or_else(|| {
                wrong("gemm_quant_mode", &raw.gemm_quant_mode, "fp8, fp8_block, nvfp4 or nothing")
            })?,
            isl: tokens("isl", raw.isl)?,
            osl: tokens("osl", raw.osl)?,
            concurrency: number("batch_size", raw.batch_size)?,
            tensor_parallel: number("tp_size", raw.tp_size)?,
            ttft_ms: raw.silicon_ttft_ms,
            tpot_ms: raw.silicon_tpot_ms,
            id: raw.id,
        });
    }
    if rows.is_empty() {
        return Err(format!("{FILE}: no aggregated runs of dense models"));
    }
    Ok(rows)
}

fn dense_model(path: &str) -> Option<&'static str> {
    let name = path.rsplit('/').next()?;
    let name = name.trim_end_matches("-FP8").trim_end_matches("-NVFP4");
    let name = name.trim_end_matches("-Instruct").trim_start_matches("Meta-");
    DENSE.iter().find(|(dense, _)| *dense == name).map(|found| found.1)
}

/// `model` with its weights and KV cache in these formats.
pub fn quantized(model: &ModelSpec, weights: WeightFormat, kv_cache: Option<Dtype>) -> ModelSpec {
    if weights == WeightFormat::Unquantized && kv_cache.is_none() {
        return model.clone();
    }
    let input_scales = match weights {
        WeightFormat::Fp8Block => InputScales::Dynamic,
        _ => InputScales::Static,
    };
    model.quantized(Quantization { weights, input_scales, kv_cache })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "id,silicon_data_source,backend,backend_version,model_path,system,mode,isl,osl,\
        gemm_quant_mode,batch_size,tp_size,pp_size,silicon_ttft_ms,silicon_tpot_ms";

    fn rows(lines: &[&str]) -> Result<Vec<Row>, String> {
        parse(format!("{HEADER}\n{}\n", lines.join("\n")).as_bytes())
    }

    #[test]
    fn duplicates_and_what_is_not_dense_are_left_out() {
        let rows = rows(&[
            "a,source_file=2026-04-06.csv; x,vllm,,meta-llama/Llama-3.1-70B,h100_sxm,agg,1024,8192,fp8,4,2,1,10.5,2.5",
            "b,source_file=2026-04-06.csv; x,vllm,,meta-llama/Llama-3.1-70B,h100_sxm,agg,1024,8192,fp8,4,2,1,10.5,2.5",
            "c,s,trtllm,1.0,deepseek-ai/DeepSeek-R1,b200_sxm,agg,1024,8192,fp8,4,2,1,10.5,2.5",
            "d,s,trtllm,1.0,Qwen/Qwen3-32B,b200_sxm,disagg,1024,8192,fp8,,,,10.5,2.5",
            "e,s,sglang,0.5,nvidia/Llama-3.1-8B-Instruct-FP8,h200_sxm,agg,2000,100,fp8_block,64,1,1,7,3",
        ])
        .unwrap();
        let ids: Vec<&str> = rows.iter().map(|r| r.id.as_str()).collect();
        assert_eq!(ids, ["a", "e"]);
        assert_eq!(
            (rows[0].benchmark, rows[1].benchmark),
            (Benchmark::InferenceX, Benchmark::Grid)
        );
        assert_eq!(
            (rows[1].model.as_str(), rows[1].weights),
            ("meta-llama/Llama-3.1-8B", WeightFormat::Fp8Block)
        );
        assert_eq!((rows[0].concurrency, rows[0].tensor_parallel, rows[0].ttft_ms), (4, 2, 10.5));
    }

    #[test]
    fn errors_name_line_and_field() {
        let error = rows(&["a,s,vllm,,Qwen/Qwen3-32B,h100_sxm,agg,1024,128,int3,4,2,1,10,2"]);
        assert_eq!(
            error.unwrap_err(),
            "silicon_sample.csv: line 2: gemm_quant_mode is \"int3\"; expected fp8, fp8_block, nvfp4 or \
             nothing"
        );
        let error = rows(&["a,s,vllm,,Qwen/Qwen3-32B,h100_sxm,agg,1024,128,fp8,,2,1,10,2"]);
        assert!(
            error.unwrap_err().contains("line 2: batch_size is \"\"; expected a number above 0")
        );
    }
}
