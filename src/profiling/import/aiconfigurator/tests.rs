//! The importer against a package that these tests write themselves, and against the real one where
//! `VIDUR_AICONFIGURATOR` names its wheel or folder.

use super::engine::Engine;
use super::{DEGREES, Package, Tables};
use crate::dataset::location::{ProfileKind, ProfileRoot};
use crate::dataset::read::{MissingValues, ProfileSet, Request};
use crate::spec::catalog::Catalog;
use crate::spec::device::DeviceSku;
use crate::spec::model::{Dtype, ModelSpec};
use crate::spec::ops::{LayerSum, Op, OpInput, stage_ops};
use crate::spec::parallel::Parallelism;
use crate::spec::precision::{InputScales, Quantization, WeightFormat};
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// A column of a made-up table.
enum Cells {
    Text(Vec<String>),
    Integers(Vec<i64>),
    Floats(Vec<f64>),
}

/// Writes a Parquet file as pandas does: every column may be empty, one row group, zstd.
fn write_table(path: &Path, columns: &[(&str, Cells)]) {
    let fields: Vec<String> = columns
        .iter()
        .map(|(name, cells)| match cells {
            Cells::Text(_) => format!("OPTIONAL BYTE_ARRAY {name} (UTF8);"),
            Cells::Integers(_) => format!("OPTIONAL INT64 {name};"),
            Cells::Floats(_) => format!("OPTIONAL DOUBLE {name};"),
        })
        .collect();
    let schema = parse_message_type(&format!("message t {{ {} }}", fields.join(" "))).unwrap();
    let zstd = Compression::ZSTD(ZstdLevel::default());
    let properties = Arc::new(WriterProperties::builder().set_compression(zstd).build());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, Arc::new(schema), properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for (_, cells) in columns {
        let mut column = group.next_column().unwrap().unwrap();
        match cells {
            Cells::Text(v) => {
                let v: Vec<ByteArray> = v.iter().map(|t| t.as_bytes().to_vec().into()).collect();
                let levels = vec![1; v.len()];
                column.typed::<ByteArrayType>().write_batch(&v, Some(&levels), None).unwrap()
            }
            Cells::Integers(v) => {
                let levels = vec![1; v.len()];
                column.typed::<Int64Type>().write_batch(v, Some(&levels), None).unwrap()
            }
            Cells::Floats(v) => {
                let levels = vec![1; v.len()];
                column.typed::<DoubleType>().write_batch(v, Some(&levels), None).unwrap()
            }
        };
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

const SIZES: [i64; 5] = [1, 1024, 2048, 4096, 8192];

/// Milliseconds of a made-up product.
fn product_ms(m: i64, n: i64, k: i64) -> f64 {
    0.004 + (n * k) as f64 * 1e-9 + (m * n) as f64 * (k as f64) * 2e-12
}

fn quantize_ms(m: i64, k: i64) -> f64 {
    0.002 + (m * k) as f64 * 3.0 / 3e9
}

fn repeated(text: &str, rows: usize) -> Cells {
    Cells::Text(vec![text.to_owned(); rows])
}

/// Heads that the made-up attention tables hold: those of a model with 32 and 8, by degree.
const HEADS: [(i64, i64); 4] = [(32, 8), (16, 4), (8, 2), (4, 1)];

fn attention_ms(heads: i64, batch: i64, pairs: i64) -> f64 {
    0.01 + (heads * batch * pairs) as f64 * 1e-8
}

fn write_gemm(systems: &Path, version: &str, formats: &[&str]) {
    let mut rows: Vec<(String, i64, i64, i64)> = Vec::new();
    for format in formats {
        for m in [1, 8, 64, 512, 4096] {
            for n in SIZES {
                rows.extend(SIZES.map(|k| ((*format).to_owned(), m, n, k)));
            }
        }
    }
    let path = format!("data/h100_sxm/gemm/vllm/{version}/gemm_perf.parquet");
    let ms = |r: &(String, i64, i64, i64)| product_ms(r.1, r.2, r.3) + quantize_of(&r.0, r.1, r.3);
    write_table(
        &systems.join(path),
        &[
            ("device", repeated("NVIDIA H100 80GB HBM3", rows.len())),
            ("kernel_source", repeated("made_up", rows.len())),
            ("gemm_dtype", Cells::Text(rows.iter().map(|r| r.0.clone()).collect())),
            ("m", Cells::Integers(rows.iter().map(|r| r.1).collect())),
            ("n", Cells::Integers(rows.iter().map(|r| r.2).collect())),
            ("k", Cells::Integers(rows.iter().map(|r| r.3).collect())),
            ("latency", Cells::Floats(rows.iter().map(ms).collect())),
        ],
    );
}

/// The quantisation that the time of an 8-bit product holds: finding the scale, and one pass.
fn quantize_of(format: &str, m: i64, k: i64) -> f64 {
    if format == "fp8" { 0.001 + quantize_ms(m, k) } else { 0.0 }
}

fn write_attention(systems: &Path, name: &str, context: bool) {
    // cache, query heads, kv heads, batch, isl, step, window, ms
    let mut rows = Vec::new();
    for cache in ["bfloat16", "fp8"] {
        for (q, kv) in HEADS {
            for batch in [1, 2, 4] {
                for length in [16, 256, 1024, 8192] {
                    let (isl, step) = if context { (length, 0) } else { (1, length - 1) };
                    let pairs = if context { length * length / 2 } else { length };
                    let ms = attention_ms(q, batch, pairs) * if cache == "fp8" { 0.7 } else { 1.0 };
                    rows.push((cache.to_owned(), q, kv, batch, isl, step, 0, ms));
                    rows.push((cache.to_owned(), q, kv, batch, isl, step, 128, 0.5 * ms));
                }
            }
        }
    }
    let path = format!("data/h100_sxm/attention/vllm/0.24.0/{name}_attention_perf.parquet");
    write_table(
        &systems.join(path),
        &[
            ("device", repeated("NVIDIA H100 80GB HBM3", rows.len())),
            ("attn_dtype", repeated("bfloat16", rows.len())),
            ("kv_cache_dtype", Cells::Text(rows.iter().map(|r| r.0.clone()).collect())),
            ("num_heads", Cells::Integers(rows.iter().map(|r| r.1).collect())),
            ("num_key_value_heads", Cells::Integers(rows.iter().map(|r| r.2).collect())),
            ("head_dim", Cells::Integers(vec![128; rows.len()])),
            ("batch_size", Cells::Integers(rows.iter().map(|r| r.3).collect())),
            ("isl", Cells::Integers(rows.iter().map(|r| r.4).collect())),
            ("step", Cells::Integers(rows.iter().map(|r| r.5).collect())),
            ("window_size", Cells::Integers(rows.iter().map(|r| r.6).collect())),
            ("latency", Cells::Floats(rows.iter().map(|r| r.7).collect())),
        ],
    );
}

fn write_rest(systems: &Path) {
    let messages: Vec<(i64, i64)> =
        [2, 4, 8].iter().flat_map(|gpus| [128, 65536].map(|size| (*gpus, size))).collect();
    let both = |f: &dyn Fn(&(i64, i64)) -> i64| -> Vec<i64> {
        messages.iter().flat_map(|row| [f(row), f(row)]).collect()
    };
    let kinds = ["vLLM_custom_graph", "vLLM_custom_eager"].map(str::to_owned);
    let ms = messages.iter().flat_map(|(g, s)| [0.004 * *g as f64 + *s as f64 * 1e-6, 0.02]);
    write_table(
        &systems.join("data/h100_sxm/comm/vllm/0.19.0/custom_allreduce_perf.parquet"),
        &[
            ("kernel_source", Cells::Text(messages.iter().flat_map(|_| kinds.clone()).collect())),
            ("num_gpus", Cells::Integers(both(&|r| r.0))),
            ("message_size", Cells::Integers(both(&|r| r.1))),
            ("latency", Cells::Floats(ms.collect())),
        ],
    );
    let rows: Vec<(i64, i64)> =
        [1, 8, 64, 512, 4096].iter().flat_map(|m| SIZES.map(|k| (*m, k))).collect();
    for (name, ms) in [
        ("scale_matrix", rows.iter().map(|r| quantize_ms(r.0, r.1)).collect::<Vec<_>>()),
        ("computescale", vec![0.001; rows.len()]),
    ] {
        write_table(
            &systems.join(format!("data/h100_sxm/quantize/vllm/0.24.0/{name}_perf.parquet")),
            &[
                ("m", Cells::Integers(rows.iter().map(|r| r.0).collect())),
                ("k", Cells::Integers(rows.iter().map(|r| r.1).collect())),
                ("latency", Cells::Floats(ms)),
            ],
        );
    }
}

/// A package of one system and one engine.
fn package(root: &Path) -> Package {
    let systems = root.join("aiconfigurator_core/systems");
    write_gemm(&systems, "0.9.0", &["bfloat16"]);
    write_gemm(&systems, "0.24.0", &["bfloat16", "fp8"]);
    write_attention(&systems, "context", true);
    write_attention(&systems, "generation", false);
    write_rest(&systems);
    fs::write(systems.join("silicon_sample.csv"), "id\n").unwrap();
    fs::create_dir_all(root.join("aiconfigurator_core-1.2.3.dist-info")).unwrap();
    Package::open(root).unwrap()
}

/// Shapes between the lines of the made-up grid.
fn model() -> ModelSpec {
    let catalog = Catalog::open(None);
    let mut model = catalog.model("meta-llama/Llama-3.1-8B").unwrap();
    (model.intermediate_size, model.vocab_size) = (3072, 8192);
    model
}

fn fp8() -> ModelSpec {
    model().quantized(Quantization {
        weights: WeightFormat::Fp8,
        input_scales: InputScales::Static,
        kv_cache: Some(Dtype::Fp8),
    })
}

fn device() -> DeviceSku {
    Catalog::open(None).device("h100_sxm").unwrap()
}

/// What a predictor reads of the set.
fn load(root: &ProfileRoot, model: &ModelSpec, tensor_parallel: u32) -> ProfileSet {
    let parallel = Parallelism { tensor_parallel, pipeline_parallel: 1 };
    let ops: Vec<Op> =
        stage_ops(model, parallel, 0, LayerSum::Engine).iter().map(|o| o.op).collect();
    let request = Request {
        model,
        device: &device(),
        network_device: Some("h100_dgx"),
        parallel,
        ops: &ops,
        missing_values: MissingValues::Refuse,
        block_size: None,
    };
    request.load(root).unwrap()
}

fn ms_at(set: &ProfileSet, op: Op, input: OpInput) -> f64 {
    let samples = set.ops.iter().find(|s| s.op == op).unwrap_or_else(|| panic!("no {op}"));
    samples.points.iter().find(|p| p.input == input).unwrap_or_else(|| panic!("{op} {input:?}")).ms
}

fn close(a: f64, b: f64) {
    assert!((a / b - 1.0).abs() < 1e-4, "{a} is not {b}");
}

#[test]
fn a_models_profiles_come_out_of_the_tables_and_a_predictor_reads_them() {
    let folder = tempfile::tempdir().unwrap();
    let package = package(folder.path());
    let tables = Tables::load(&package, "h100_sxm", Engine::Vllm, None).unwrap();
    assert_eq!((tables.engine_version.as_str(), package.version()), ("0.24.0", Some("1.2.3")));
    let set = tables.profiles(&model(), "h100_sxm", "h100_dgx", &DEGREES).unwrap();
    let root = set.into_root("imported");
    let one = load(&root, &model(), 1);
    assert_eq!((&one.warnings, &one.not_measured), (&vec![], &vec![]));
    // Four operators are part of others, and say so; nothing else is missing.
    assert_eq!(one.notes.len(), 2, "{:?}", one.notes);
    // 4096 -> 6144 lies between two lines, 3072 -> 4096 too, gate and up together are on one.
    close(ms_at(&one, Op::AttnPreProj, OpInput::Tokens(64)), product_ms(64, 6144, 4096));
    close(ms_at(&one, Op::MlpDownProj, OpInput::Tokens(8)), product_ms(8, 4096, 3072));
    close(ms_at(&one, Op::LmHead, OpInput::Tokens(8)), product_ms(8, 8192, 4096));
    // A norm adds the residual: 4 times 4096 numbers of 2 bytes a token.
    let norm = ms_at(&one, Op::InputLayernorm, OpInput::Tokens(4096));
    // Several shapes of nearly one size are one knot of the curve: within 2 %.
    let want = 0.002 + 4096.0 * 4.0 * 4096.0 * 2.0 / 3e9;
    assert!((norm / want - 1.0).abs() < 0.02, "{norm} {want}");
    let decode = OpInput::Decode { batch: 4, kv: 1023.0 };
    close(ms_at(&one, Op::AttnDecode, decode), attention_ms(32, 4, 1024));
    let prompt = OpInput::Prefill { kv: 0.0, chunk: 1024.0 };
    close(ms_at(&one, Op::AttnPrefill, prompt), attention_ms(32, 1, 1024 * 1024 / 2));
    assert!(one.prompt_batches.iter().any(|b| (b.prompts, b.tokens) == (4, 256)));
    // With two devices: half the heads, and messages of 16 bits an element, inside a graph.
    let two = load(&root, &model(), 2);
    close(ms_at(&two, Op::AttnDecode, decode), attention_ms(16, 4, 1024));
    close(ms_at(&two, Op::AllReduce, OpInput::Tokens(131_072)), 0.008 + 0.065_536);
    assert_eq!(two.all_reduce_launch_included, Some(true));
}

#[test]
fn an_8_bit_checkpoint_reads_8_bit_tables_without_finding_scales() {
    let folder = tempfile::tempdir().unwrap();
    let tables = Tables::load(&package(folder.path()), "h100_sxm", Engine::Vllm, None).unwrap();
    let set = tables.profiles(&fp8(), "h100_sxm", "h100_dgx", &[1]).unwrap();
    let one = load(&set.into_root("imported"), &fp8(), 1);
    // vLLM quantises the input of the up projection in the norm before it ...
    close(ms_at(&one, Op::MlpUpProj, OpInput::Tokens(512)), product_ms(512, 6144, 4096));
    // ... and that of the output projection in a pass of its own.
    let own_pass = product_ms(512, 4096, 4096) + quantize_ms(512, 4096);
    close(ms_at(&one, Op::AttnPostProj, OpInput::Tokens(512)), own_pass);
    close(ms_at(&one, Op::LmHead, OpInput::Tokens(512)), product_ms(512, 8192, 4096));
    let decode = OpInput::Decode { batch: 4, kv: 1023.0 };
    close(ms_at(&one, Op::AttnDecode, decode), 0.7 * attention_ms(32, 4, 1024));
}

#[test]
fn manifests_say_where_every_figure_comes_from() {
    let folder = tempfile::tempdir().unwrap();
    let tables = Tables::load(&package(folder.path()), "h100_sxm", Engine::Vllm, None).unwrap();
    let root = tables.profiles(&model(), "h100_sxm", "h100_dgx", &DEGREES).unwrap().into_root("x");
    let name = model().name;
    let file = |kind| root.find(kind, &["h100_sxm"], &[&name]).unwrap().manifest.unwrap();
    let (mlp, attention) = (file(ProfileKind::Mlp), file(ProfileKind::Attention));
    assert_eq!(mlp["origin"]["license"], "Apache-2.0");
    assert_eq!(mlp["origin"]["version"], "1.2.3");
    assert_eq!(mlp["operators"]["input_layernorm"]["derived"], 20);
    // 4096 x 4096 is on the grid with one device and two, 3072 columns never.
    assert_eq!(mlp["operators"]["attn_post_proj"]["measured"], 15);
    assert_eq!(mlp["operators"]["mlp_down_proj"]["interpolated"], 20);
    assert_eq!(mlp["fused"]["add"], "input_layernorm and post_attention_layernorm");
    assert_eq!(attention["operators"]["attn_decode"]["measured"], 4 * 12);
    assert_eq!(attention["tables"][0]["devices"][0], "NVIDIA H100 80GB HBM3");
}

#[test]
fn a_wheel_reads_as_its_folder_does() {
    let folder = tempfile::tempdir().unwrap();
    let unpacked = package(folder.path());
    let wheel = folder.path().join("aiconfigurator_core-1.2.3-py3-none-any.whl");
    let mut zip = zip::ZipWriter::new(File::create(&wheel).unwrap());
    for name in unpacked.files("") {
        let options = zip::write::SimpleFileOptions::default();
        zip.start_file(format!("aiconfigurator_core/systems/{name}"), options).unwrap();
        zip.write_all(&unpacked.read(name).unwrap()).unwrap();
    }
    let options = zip::write::SimpleFileOptions::default();
    zip.start_file("aiconfigurator_core-1.2.3.dist-info/METADATA", options).unwrap();
    zip.finish().unwrap();
    let zipped = Package::open(&wheel).unwrap();
    assert_eq!(zipped.version(), Some("1.2.3"));
    let import = |package: &Package| {
        let tables = Tables::load(package, "h100_sxm", Engine::Vllm, None).unwrap();
        tables.profiles(&model(), "h100_sxm", "h100_dgx", &[1, 2]).unwrap()
    };
    assert_eq!(import(&zipped), import(&unpacked));
}

#[test]
fn what_is_not_there_is_named_with_what_is() {
    let folder = tempfile::tempdir().unwrap();
    let package = package(folder.path());
    let error = |system, engine, version| {
        Tables::load(&package, system, engine, version).unwrap_err().to_string()
    };
    let message = error("h100", Engine::Vllm, None);
    assert!(message.contains("no gemm_perf of vllm on h100 (it has h100_sxm: vllm)"), "{message}");
    let message = error("h100_sxm", Engine::Vllm, Some("0.10.0"));
    assert!(message.contains("vllm 0.10.0") && message.contains("0.9.0, 0.24.0"), "{message}");
    let tables = Tables::load(&package, "h100_sxm", Engine::Vllm, None).unwrap();
    let nvfp4 = model().quantized(Quantization {
        weights: WeightFormat::Nvfp4,
        input_scales: InputScales::Static,
        kv_cache: None,
    });
    let message = tables.model_profiles(&nvfp4, "h100_sxm", &[1]).unwrap_err().to_string();
    assert!(
        message.contains("no nvfp4 matrix products") && message.contains("bfloat16, fp8"),
        "{message}"
    );
    let narrow = ModelSpec { head_dim: 64, ..model() };
    let message = tables.model_profiles(&narrow, "h100_sxm", &[1]).unwrap_err().to_string();
    assert!(
        message.contains("of width 64") && message.contains("no heads of this width"),
        "{message}"
    );
    assert!(Package::open(&folder.path().join("aiconfigurator_core/systems/data")).is_err());
    let message = Package::open(&folder.path().join("no.whl")).unwrap_err().to_string();
    assert!(message.contains("no.whl: cannot be read"), "{message}");
}

/// The real package, where `VIDUR_AICONFIGURATOR` names it.
fn real() -> Option<Package> {
    let Some(path) = std::env::var_os("VIDUR_AICONFIGURATOR") else {
        eprintln!("skipped: VIDUR_AICONFIGURATOR does not name a wheel of aiconfigurator-core");
        return None;
    };
    Some(Package::open(Path::new(&path)).unwrap())
}

#[test]
fn the_real_package_gives_every_dense_model_of_its_serving_runs() {
    let Some(package) = real() else { return };
    let catalog = Catalog::open(None);
    let plain = |name: &str| catalog.model(name).unwrap();
    let q = |name: &str, weights, kv_cache| {
        let quantization = Quantization { weights, input_scales: InputScales::Static, kv_cache };
        plain(name).quantized(quantization)
    };
    let (llama, qwen) = ("meta-llama/Llama-3.1-70B", "Qwen/Qwen3-32B");
    let small = "meta-llama/Llama-3.1-8B";
    let cases = [
        ("h100_sxm", Engine::Vllm, plain(small)),
        ("h100_sxm", Engine::Vllm, q(llama, WeightFormat::Fp8, Some(Dtype::Fp8))),
        ("h100_sxm", Engine::Vllm, plain(qwen)),
        ("h100_sxm", Engine::Sglang, plain(qwen)),
        ("h100_sxm", Engine::Trtllm, q(qwen, WeightFormat::Fp8, None)),
        ("h100_sxm", Engine::Trtllm, plain(small)),
        ("h200_sxm", Engine::Sglang, q(small, WeightFormat::Fp8Block, None)),
        ("h200_sxm", Engine::Trtllm, q(llama, WeightFormat::Fp8, Some(Dtype::Fp8))),
        ("b200_sxm", Engine::Vllm, q(llama, WeightFormat::Nvfp4, Some(Dtype::Fp8))),
        ("b200_sxm", Engine::Trtllm, q(llama, WeightFormat::Nvfp4, Some(Dtype::Fp8))),
        ("gb200", Engine::Trtllm, q(qwen, WeightFormat::Nvfp4, Some(Dtype::Fp8))),
    ];
    for (system, engine, model) in cases {
        let tables = Tables::load(&package, system, engine, None).unwrap();
        let set = tables.profiles(&model, system, "net", &DEGREES).unwrap();
        assert!(set.files.iter().all(|f| !f.bytes.is_empty()));
        for (format, grid) in &tables.gemm {
            if let Some(held) = grid.held_out() {
                println!(
                    "{system} {} {format}: {} points held out, {:.1} % median, {:.1} % mean, bias {:+.1} %",
                    engine.name(),
                    held.points,
                    held.median * 100.0,
                    held.mean * 100.0,
                    held.bias * 100.0
                );
                assert!(held.median < 0.1, "{system} {format}");
            }
        }
    }
}
