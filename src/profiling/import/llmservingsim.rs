//! LLMServingSim's operator timings (casys-kaist/LLMServingSim, MIT): a folder with
//! `profile/{dense,per_sequence,attention}.csv`, times in microseconds, taken layer by layer inside a
//! running vLLM, and `bench/meta.json` that names model and device.
//!
//! | there | here |
//! |---|---|
//! | dense: `layer,tokens,time_us` | mlp.csv; its norms add the residual too, as vLLM's do |
//! | per_sequence: lm_head and sampler | `lm_head`, both together: they run once for each sampled token |
//! | attention without decodes, without a prompt | `attn_prefill`, `attn_decode` |
//! | attention of a prompt chunk and decodes in one kernel | `attn_mixed` |
//!
//! `skew.csv` (decoding sequences of unlike lengths) is not used: predictions go by the mean length.

use super::csv_text::{Csv, number};
use super::{ImportError, Imported, Origin};
use crate::dataset::manifest::sha256_hex;
use crate::dataset::schema::{ATTENTION_MIXED, MLP_KEYS, time_column};
use crate::spec::model::ModelSpec;
use crate::spec::ops::Op;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a run folder says of itself.
#[derive(Clone, Debug, Deserialize)]
pub struct Meta {
    /// Hugging Face id.
    pub model: String,
    /// Version of vLLM that was timed.
    pub vllm_version: String,
    /// The machine.
    pub hardware: Hardware,
}

/// The machine.
#[derive(Clone, Debug, Deserialize)]
pub struct Hardware {
    /// The device as the driver names it.
    pub device_name: String,
    /// Its memory in bytes.
    pub device_total_memory_bytes: u64,
}

#[derive(Deserialize)]
struct Dense {
    layer: String,
    tokens: u32,
    time_us: f64,
}

#[derive(Deserialize)]
struct PerSequence {
    layer: String,
    sequences: u32,
    time_us: f64,
}

#[derive(Deserialize)]
struct Attention {
    prefill_chunk: u32,
    kv_prefill: u32,
    n_decode: u32,
    kv_decode: u32,
    time_us: f64,
}

/// Names of layers there, by operators of ours.
const LAYERS: [(&str, &[Op]); 9] = [
    ("embedding", &[Op::Emb]),
    ("layernorm", &[Op::InputLayernorm, Op::PostAttentionLayernorm]),
    ("qkv_proj", &[Op::AttnPreProj]),
    ("rotary_emb", &[Op::AttnRope]),
    ("o_proj", &[Op::AttnPostProj]),
    ("gate_up_proj", &[Op::MlpUpProj]),
    ("act_fn", &[Op::MlpAct]),
    ("down_proj", &[Op::MlpDownProj]),
    ("lm_head", &[Op::LmHead]),
];

/// Reads `bench/meta.json`.
///
/// # Errors
/// When it is not there or lacks a field.
pub fn meta(dir: &Path) -> Result<Meta, ImportError> {
    let path = dir.join("bench/meta.json");
    let text =
        std::fs::read(&path).map_err(|source| ImportError::Io { path: path.clone(), source })?;
    serde_json::from_slice(&text).map_err(|e| ImportError::Content {
        file: path.display().to_string(),
        problem: e.to_string(),
    })
}

/// The profiles in `dir` of `model`, stored under `sku`.
///
/// # Errors
/// When a file is not there, or is not what it should be.
pub fn profiles(dir: &Path, model: &ModelSpec, sku: &str) -> Result<Imported, ImportError> {
    let meta = meta(dir)?;
    let mut sources = Vec::new();
    let mut set = Imported::default();
    let (csv, counts) = mlp(dir, model, &mut sources)?;
    let mut manifest = manifest("mlp", &meta, model, &csv, &sources);
    manifest["operators"] = counts;
    manifest["fused"] = json!({
        "add": "input_layernorm and post_attention_layernorm",
        "attn_kv_cache_save": "attn_prefill and attn_decode",
    });
    manifest["methods"] = json!(["lm_head holds the sampler too"]);
    set.push(format!("compute/{sku}/{}/mlp.csv", model.name), csv.text.into_bytes(), &manifest)?;
    let mut sources = Vec::new();
    let (csv, counts) = attention(dir, model, &mut sources)?;
    let mut manifest = self::manifest("attention", &meta, model, &csv, &sources);
    manifest["operators"] = counts;
    manifest["fused"] = json!({ "attn_kv_cache_save": "attn_prefill and attn_decode" });
    let path = format!("compute/{sku}/{}/attention.csv", model.name);
    set.push(path, csv.text.into_bytes(), &manifest)?;
    Ok(set)
}

fn mlp(
    dir: &Path,
    model: &ModelSpec,
    sources: &mut Vec<Value>,
) -> Result<(Csv, Value), ImportError> {
    // Milliseconds by tokens and operator.
    let mut times: BTreeMap<u32, BTreeMap<Op, f64>> = BTreeMap::new();
    let path = dir.join("profile/dense.csv");
    for row in read::<Dense>(&path, sources)? {
        let known = LAYERS.iter().find(|(name, _)| *name == row.layer);
        for op in known.map_or(&[][..], |(_, ops)| ops) {
            times.entry(row.tokens).or_default().insert(*op, row.time_us * 1e-3);
        }
    }
    let path = dir.join("profile/per_sequence.csv");
    for row in read::<PerSequence>(&path, sources)? {
        if ["lm_head", "sampler"].contains(&row.layer.as_str()) {
            let sampled = times.entry(row.sequences).or_default();
            *sampled.entry(Op::LmHead).or_default() += row.time_us * 1e-3;
        }
    }
    let ops: Vec<Op> = LAYERS.iter().flat_map(|(_, ops)| ops.iter().copied()).collect();
    let mut columns: Vec<String> = ops.iter().map(|op| time_column(*op, "median")).collect();
    columns.extend(MLP_KEYS.map(str::to_owned));
    let mut csv = Csv::new(&columns);
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (tokens, ms) in &times {
        // Counts of sequences that were not timed as counts of tokens have a time for lm_head only.
        if ops.iter().any(|op| *op != Op::LmHead && !ms.contains_key(op)) {
            continue;
        }
        let mut cells: Vec<String> =
            ops.iter().map(|op| ms.get(op).map_or_else(String::new, |ms| number(*ms))).collect();
        for op in ops.iter().filter(|op| ms.contains_key(op)) {
            *counts.entry(op.name()).or_default() += 1;
        }
        cells.extend([
            model.num_attention_heads.to_string(),
            model.num_key_value_heads.to_string(),
            model.hidden_size.to_string(),
            model.intermediate_size.to_string(),
            model.vocab_size.to_string(),
            if model.gated_mlp { "True".into() } else { "False".into() },
            tokens.to_string(),
            "1".into(),
        ]);
        csv.push(&cells);
    }
    if csv.rows == 0 {
        return Err(ImportError::Content {
            file: dir.join("profile/dense.csv").display().to_string(),
            problem: "no number of tokens with a time for every layer; expected layers embedding, \
                      layernorm, qkv_proj, rotary_emb, o_proj, gate_up_proj, act_fn, down_proj"
                .into(),
        });
    }
    Ok((csv, measured(&counts)))
}

fn attention(
    dir: &Path,
    model: &ModelSpec,
    sources: &mut Vec<Value>,
) -> Result<(Csv, Value), ImportError> {
    let ops = [Op::AttnPrefill, Op::AttnDecode].map(|op| time_column(op, "median"));
    let keys = [
        ATTENTION_MIXED,
        "n_embd",
        "n_q_head",
        "n_kv_head",
        "num_tensor_parallel_workers",
        "batch_size",
        "prefill_chunk_size",
        "kv_cache_size",
        "is_prefill",
        "decode_batch_size",
        "decode_kv_cache_size",
    ];
    let columns: Vec<&str> = ops.iter().map(String::as_str).chain(keys).collect();
    let mut csv = Csv::new(&columns);
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let path = dir.join("profile/attention.csv");
    for row in read::<Attention>(&path, sources)? {
        let ms = number(row.time_us * 1e-3);
        let (prompt, decodes) = (row.prefill_chunk > 0, row.n_decode > 0);
        let cell = |here: bool| if here { ms.clone() } else { String::new() };
        let (batch, kv) = if prompt { (1, row.kv_prefill) } else { (row.n_decode, row.kv_decode) };
        let beside = |n: u32| if prompt { n.to_string() } else { "0".into() };
        csv.push(&[
            cell(prompt && !decodes),
            cell(!prompt),
            cell(prompt && decodes),
            model.hidden_size.to_string(),
            model.num_attention_heads.to_string(),
            model.num_key_value_heads.to_string(),
            "1".into(),
            batch.to_string(),
            row.prefill_chunk.to_string(),
            kv.to_string(),
            if prompt { "True".into() } else { "False".into() },
            beside(row.n_decode),
            beside(row.kv_decode),
        ]);
        let name = match (prompt, decodes) {
            (true, true) => "attn_mixed",
            (true, false) => Op::AttnPrefill.name(),
            _ => Op::AttnDecode.name(),
        };
        *counts.entry(name).or_default() += 1;
    }
    Ok((csv, measured(&counts)))
}

fn measured(counts: &BTreeMap<&str, usize>) -> Value {
    counts.iter().map(|(op, n)| ((*op).to_owned(), json!({ "measured": n }))).collect()
}

/// The rows of a CSV file; its path, digest and length go to `sources`.
fn read<T: DeserializeOwned>(path: &Path, sources: &mut Vec<Value>) -> Result<Vec<T>, ImportError> {
    let bytes = std::fs::read(path)
        .map_err(|source| ImportError::Io { path: PathBuf::from(path), source })?;
    let rows: Result<Vec<T>, csv::Error> =
        csv::Reader::from_reader(&bytes[..]).deserialize().collect();
    let rows = rows.map_err(|e| ImportError::Content {
        file: path.display().to_string(),
        problem: e.to_string(),
    })?;
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    sources.push(json!({
        "path": format!("profile/{name}"), "sha256": sha256_hex(&bytes), "rows": rows.len(),
    }));
    Ok(rows)
}

fn manifest(profile: &str, meta: &Meta, model: &ModelSpec, csv: &Csv, sources: &[Value]) -> Value {
    let origin = Origin {
        source: "LLMServingSim (github.com/casys-kaist/LLMServingSim)".into(),
        version: None,
        license: "MIT".into(),
        copyright: "Copyright (c) the LLMServingSim authors, KAIST".into(),
    };
    json!({
        "profile": profile,
        "model": model.name,
        "provenance": "imported",
        "origin": origin,
        "system": meta.hardware.device_name,
        "engine": "vllm",
        "engine_version": meta.vllm_version,
        "tables": sources,
        "rows": csv.rows,
        "sha256": sha256_hex(csv.text.as_bytes()),
        "vidur_version": env!("CARGO_PKG_VERSION"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::read::{MissingValues, Request};
    use crate::spec::catalog::Catalog;
    use crate::spec::ops::OpInput;
    use crate::spec::parallel::Parallelism;
    use std::fs;

    fn model() -> ModelSpec {
        Catalog::open(None).model("meta-llama/Llama-3.1-8B").unwrap()
    }

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["profile", "bench"] {
            fs::create_dir(dir.path().join(sub)).unwrap();
        }
        let mut dense = String::from("layer,tokens,time_us\n");
        for (i, (layer, _)) in LAYERS.iter().take(8).enumerate() {
            for tokens in [1, 64] {
                dense += &format!("{layer},{tokens},{}\n", 10 * (i + 1) + tokens);
            }
        }
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("profile/dense.csv", &(dense + "final_layernorm,64,9\n"));
        let sampled = "layer,sequences,time_us\nlm_head,1,100\nsampler,1,20\nlm_head,3,1\n";
        write("profile/per_sequence.csv", sampled);
        write(
            "profile/attention.csv",
            "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n0,0,4,128,20\n16,32,0,0,30\n\
             16,32,4,128,80\n",
        );
        write(
            "bench/meta.json",
            r#"{"model": "a/b", "vllm_version": "0.19.0", "more": 1,
                "hardware": {"device_name": "X", "device_total_memory_bytes": 5}}"#,
        );
        dir
    }

    #[test]
    fn times_in_microseconds_become_profiles_that_a_predictor_reads() {
        let (dir, model) = (folder(), model());
        let root = profiles(dir.path(), &model, "h100_sxm").unwrap().into_root("imported");
        let request = Request {
            model: &model,
            device: &Catalog::open(None).device("h100_sxm").unwrap(),
            network_device: None,
            parallel: Parallelism::SINGLE,
            ops: &[
                Op::Emb,
                Op::InputLayernorm,
                Op::Add,
                Op::LmHead,
                Op::AttnPrefill,
                Op::AttnDecode,
            ],
            missing_values: MissingValues::Refuse,
            block_size: None,
        };
        let set = request.load(&root).unwrap();
        let points = |op: Op| &set.ops.iter().find(|s| s.op == op).unwrap().points;
        assert_eq!(points(Op::Emb)[1].input, OpInput::Tokens(64));
        assert!((points(Op::InputLayernorm)[1].ms - 0.084).abs() < 1e-12);
        assert!((points(Op::LmHead)[0].ms - 0.120).abs() < 1e-12);
        assert_eq!(points(Op::AttnDecode)[0].input, OpInput::Decode { batch: 4, kv: 128.0 });
        assert_eq!(points(Op::AttnPrefill)[0].input, OpInput::Prefill { kv: 32.0, chunk: 16.0 });
        assert_eq!((points(Op::AttnDecode).len(), points(Op::AttnPrefill).len()), (1, 1));
        let mixed = &set.mixed_attention[0];
        assert_eq!((mixed.chunk, mixed.kv, mixed.decodes, mixed.decode_kv), (16, 32, 4, 128));
        assert!((mixed.ms - 0.08).abs() < 1e-12);
        assert!(set.ops.iter().all(|s| s.op != Op::Add), "part of the norms");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let (dir, model) = (folder(), model());
        let error = || profiles(dir.path(), &model, "x").unwrap_err().to_string();
        fs::write(dir.path().join("profile/attention.csv"), "prefill_chunk\n1\n").unwrap();
        assert!(
            error().contains("attention.csv: ") && error().contains("kv_prefill"),
            "{}",
            error()
        );
        fs::write(dir.path().join("profile/dense.csv"), "layer,tokens,time_us\nact_fn,1,x\n")
            .unwrap();
        assert!(error().contains("dense.csv: ") && error().contains("line: 2"), "{}", error());
        fs::remove_file(dir.path().join("bench/meta.json")).unwrap();
        assert!(error().contains("meta.json: cannot be read"), "{}", error());
    }
}
