//! The manifest beside each imported profile: where every figure comes from.

use super::attention::Found;
use super::engine::gemm_format;
use super::gemm::{Grid, HeldOut};
use super::tables::{TableFile, Tables};
use crate::dataset::manifest::sha256_hex;
use crate::profiling::import::Origin;
use crate::profiling::import::csv_text::Csv;
use crate::spec::model::ModelSpec;
use crate::spec::ops::Op;
use crate::spec::precision::Quantization;
use serde::Serialize;
use std::collections::BTreeMap;

/// Times of one operator by how they were found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// In the package as they are.
    pub measured: usize,
    /// Between measured shapes.
    pub interpolated: usize,
    /// From measurements of something else.
    pub derived: usize,
}

/// Times by operator.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts(BTreeMap<Op, Count>);

impl Counts {
    pub(super) fn derived(&mut self, op: Op) {
        self.0.entry(op).or_default().derived += 1;
    }

    pub(super) fn product(&mut self, op: Op, rows: usize, measured: bool) {
        let count = self.0.entry(op).or_default();
        if measured {
            count.measured += rows;
        } else {
            count.interpolated += rows;
        }
    }

    pub(super) fn attention(&mut self, prefill: bool, found: Found) {
        let op = if prefill { Op::AttnPrefill } else { Op::AttnDecode };
        let count = self.0.entry(op).or_default();
        match found {
            Found::Measured => count.measured += 1,
            Found::Derived => count.derived += 1,
        }
    }

    pub(super) fn network(&mut self, op: Op, rows: usize) {
        let count = self.0.entry(op).or_default();
        if op == Op::AllReduce {
            count.measured += rows;
        } else {
            count.derived += rows;
        }
    }
}

/// See the module.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Manifest {
    /// `mlp`, `attention`, `all_reduce` or `send_recv`.
    profile: &'static str,
    /// Hugging Face id of the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// What its checkpoint quantises.
    #[serde(skip_serializing_if = "Option::is_none")]
    quantization: Option<Quantization>,
    /// The wiring, of network profiles.
    #[serde(skip_serializing_if = "Option::is_none")]
    network_device: Option<String>,
    /// Where the figures come from: `imported`.
    provenance: &'static str,
    /// From where.
    origin: Origin,
    /// What was timed: system and engine.
    system: String,
    engine: &'static str,
    engine_version: String,
    /// Files of the package.
    tables: Vec<TableFile>,
    /// Rows of the profile.
    rows: usize,
    /// SHA-256 of the CSV file, hexadecimal.
    sha256: String,
    /// Times by operator and how they were found.
    operators: BTreeMap<&'static str, Count>,
    /// Operators that take no time of their own, and the operator that does their work.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    fused: BTreeMap<&'static str, &'static str>,
    /// The times of collectives hold all that launching them costs.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    launch_included: bool,
    /// How times that were not measured were found.
    methods: Vec<String>,
    /// How far off interpolation between the matrix products is, in per cent.
    #[serde(skip_serializing_if = "Option::is_none")]
    held_out: Option<HeldOutPercent>,
    vidur_version: &'static str,
}

/// A [`HeldOut`] in per cent, rounded.
#[derive(Clone, Copy, Debug, Serialize)]
struct HeldOutPercent {
    points: usize,
    median: f64,
    mean: f64,
    bias: f64,
}

impl From<HeldOut> for HeldOutPercent {
    fn from(h: HeldOut) -> Self {
        let percent = |share: f64| (share * 1e4).round() / 1e2;
        HeldOutPercent {
            points: h.points,
            median: percent(h.median),
            mean: percent(h.mean),
            bias: percent(h.bias),
        }
    }
}

impl Manifest {
    fn new(
        tables: &Tables,
        profile: &'static str,
        families: &[&str],
        counts: Counts,
        csv: &Csv,
    ) -> Manifest {
        let used = tables.files.iter().filter(|(family, _)| families.contains(family));
        Manifest {
            profile,
            model: None,
            quantization: None,
            network_device: None,
            provenance: "imported",
            origin: origin(tables.package_version.clone()),
            system: tables.system.clone(),
            engine: tables.engine.name(),
            engine_version: tables.engine_version.clone(),
            tables: used.map(|(_, file)| file.clone()).collect(),
            rows: csv.rows,
            sha256: sha256_hex(csv.text.as_bytes()),
            operators: counts.0.into_iter().map(|(op, count)| (op.name(), count)).collect(),
            fused: BTreeMap::new(),
            launch_included: false,
            methods: Vec::new(),
            held_out: None,
            vidur_version: env!("CARGO_PKG_VERSION"),
        }
    }

    pub(super) fn mlp(tables: &Tables, model: &ModelSpec, counts: Counts, csv: &Csv) -> Manifest {
        let families =
            ["gemm", "scale", "find_scale", "scale_vllm", "scale_sglang", "scale_trtllm"];
        let mut manifest = Manifest::new(tables, "mlp", &families, counts, csv);
        let (format, static_scales) = gemm_format(model, Op::MlpUpProj);
        manifest.held_out = tables.gemm.get(format).and_then(|g| g.held_out()).map(Into::into);
        manifest.methods.push(
            "matrix products: linear in n and k between the four measured neighbours, at every measured \
             m; wider than the widest (vocabularies) in proportion"
                .into(),
        );
        if let Some((replaced, all)) = tables.gemm.get(format).map(Grid::replaced) {
            manifest.methods.push(format!(
                "outliers: {replaced} of the {all} {format} products of the package took over 1.25 times as \
                 long as one with more rows, and count as long as the fastest of the next four sizes"
            ));
        }
        if static_scales {
            manifest.methods.push(
                "fp8 products: the package's times include quantising the input with a scale found for \
                 each batch; finding it is taken out, and quantising too where the engine merges it into \
                 the operator before"
                    .into(),
            );
        }
        if let Some(streaming) = &tables.streaming {
            manifest.methods.push(format!(
                "norms, rotary embedding, activation and embedding: bytes moved, at the time that the \
                 engines' static quantisation kernels take for as many bytes on this system ({:.1} us at \
                 least, {:.0} GB/s at most sizes beyond the cache)",
                streaming.launch_ms() * 1e3,
                streaming.bandwidth() / 1e9
            ));
        }
        manifest.fuse(tables);
        manifest.of_model(model)
    }

    pub(super) fn attention(
        tables: &Tables,
        model: &ModelSpec,
        counts: Counts,
        csv: &Csv,
    ) -> Manifest {
        let mut manifest =
            Manifest::new(tables, "attention", &["context", "generation"], counts, csv);
        manifest.methods.push(
            "chunks after a prefix: as the whole prompt with as much smaller a share of the heads as the \
             chunk's share of the query-key pairs"
                .into(),
        );
        manifest.methods.push(
            "one more length for batches whose table ends early: as half the batch with as many tokens in \
             its caches"
                .into(),
        );
        manifest.fuse(tables);
        manifest.of_model(model)
    }

    pub(super) fn network(
        tables: &Tables,
        op: Op,
        network_device: &str,
        counts: Counts,
        csv: &Csv,
    ) -> Manifest {
        let all_reduce = op == Op::AllReduce;
        let families: &[&str] = if all_reduce { &["all_reduce", "nccl"] } else { &["nccl"] };
        let profile = if all_reduce { "all_reduce" } else { "send_recv" };
        let mut manifest = Manifest::new(tables, profile, families, counts, csv);
        manifest.network_device = Some(network_device.to_owned());
        manifest.launch_included = true;
        manifest.methods.push(
            if all_reduce {
                "the engine's all-reduce inside a CUDA graph; NCCL's for numbers of devices that its table \
                 lacks"
            } else {
                "half of NCCL's exchange (alltoall) between two devices"
            }
            .into(),
        );
        manifest
    }

    fn fuse(&mut self, tables: &Tables) {
        self.fused = tables.engine.fused().iter().map(|(op, by)| (op.name(), *by)).collect();
    }

    fn of_model(mut self, model: &ModelSpec) -> Manifest {
        self.model = Some(model.name.clone());
        self.quantization = model.quantization;
        self
    }
}

/// The package.
pub(super) fn origin(version: Option<String>) -> Origin {
    Origin {
        source: "aiconfigurator-core (PyPI)".into(),
        version,
        license: "Apache-2.0".into(),
        copyright: "Copyright (c) 2025-2026 NVIDIA CORPORATION & AFFILIATES".into(),
    }
}
