//! Where the numbers of a predictor come from, for the record of a run.

use super::PredictorConfig;
use super::data_sheet::DataSheetSettings;
use super::features::axes;
use super::interpolate::medians;
use crate::dataset::read::{OpSamples, ProfileSet, SourceFile};
use crate::spec::device::DeviceSku;
use crate::spec::ops::{Feature, Op};
use serde::Serialize;

/// What a predictor was made from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Provenance {
    /// The method, as the configuration names it.
    pub predictor: &'static str,
    /// The method in a few words, with what a reader must know about it.
    pub description: String,
    /// Every operator that is modelled.
    pub operators: Vec<OperatorProvenance>,
    /// Operators that the model runs and the profiles lack: they take no time.
    pub not_modelled: Vec<Op>,
    /// What was left out of the profiles.
    pub warnings: Vec<String>,
    /// What is worth knowing and no cause for worry.
    pub notes: Vec<String>,
    /// The files, with digest and manifest.
    pub sources: Vec<SourceFile>,
}

/// What the model of one operator was made from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OperatorProvenance {
    /// The operator.
    pub op: Op,
    /// Rows of the file that were used.
    pub rows: usize,
    /// Distinct points that they measure.
    pub points: usize,
    /// Measured range by feature; outside it predictions are extrapolated.
    pub measured: Vec<MeasuredRange>,
    /// The file.
    pub file: String,
    /// SHA-256 of the file.
    pub sha256: String,
}

/// The measured range of one feature.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MeasuredRange {
    /// The feature.
    pub feature: &'static str,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
}

/// Distinct points of `samples`, and their range by feature.
pub fn measured(samples: &OpSamples) -> (usize, Vec<MeasuredRange>) {
    let names: &[&'static str] = match samples.op.feature() {
        _ if samples.op.is_collective() => &["bytes"],
        _ if samples.op == Op::Host => &["sequences"],
        Feature::Tokens => &["tokens"],
        Feature::SampledTokens => &["sampled_tokens"],
        Feature::Prefill => &["chunk_tokens", "kv_tokens"],
        Feature::Decode => &["sequences", "kv_tokens"],
    };
    let ranges = names.iter().enumerate().map(|(i, feature)| {
        let values = samples.points.iter().map(|s| {
            let (row, x) = axes(s.input);
            if names.len() == 2 && i == 0 { row } else { x }
        });
        let (min, max) =
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        MeasuredRange { feature, min, max }
    });
    (medians(&samples.points).len(), ranges.collect())
}

impl Provenance {
    /// Whose timings the profiles hold where they are imported: engine, system and package, once each.
    pub fn imported(&self) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for manifest in self.sources.iter().filter_map(|source| source.manifest.as_ref()) {
            let word = |v: &serde_json::Value| v.as_str().map(str::to_owned);
            let Some(package) = word(&manifest["origin"]["source"]) else { continue };
            let parts = ["engine", "engine_version"].map(|key| word(&manifest[key]));
            let engine = parts.into_iter().flatten().collect::<Vec<_>>().join(" ");
            let system = word(&manifest["system"]).map(|s| format!(" on {s}")).unwrap_or_default();
            // `aiconfigurator-core (PyPI)` → `aiconfigurator-core`.
            let package = package.split(" (").next().unwrap_or_default();
            let version = word(&manifest["origin"]["version"]).map(|v| format!(" {v}"));
            let line =
                format!("{engine}{system}, timed by {package}{}", version.unwrap_or_default());
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
        lines
    }

    /// The record of given tables.
    pub fn of_tables(settings: &super::TableSettings) -> Provenance {
        Provenance {
            predictor: "table",
            description: "table".into(),
            operators: Vec::new(),
            not_modelled: Vec::new(),
            warnings: Vec::new(),
            notes: vec![format!("predictions given in {}", settings.dir.display())],
            sources: Vec::new(),
        }
    }

    /// The record of a predictor made from the data sheet of `device` alone.
    pub fn of_data_sheet(
        config: &PredictorConfig,
        settings: &DataSheetSettings,
        device: &DeviceSku,
    ) -> Provenance {
        let sheet = device.sources.iter().map(|s| format!("{}: {s}", device.name));
        Provenance {
            predictor: config.name(),
            description: config.description(),
            operators: Vec::new(),
            not_modelled: Vec::new(),
            warnings: Vec::new(),
            notes: std::iter::once(settings.to_string()).chain(sheet).collect(),
            sources: Vec::new(),
        }
    }

    /// What the models of `profiles` are made from.
    pub(super) fn operators(profiles: &ProfileSet) -> Vec<OperatorProvenance> {
        let digest = |file: &str| {
            let found = profiles.sources.iter().find(|s| s.file == file);
            found.map(|s| s.sha256.clone()).unwrap_or_default()
        };
        let operators = profiles.ops.iter().map(|samples| {
            let (points, measured) = measured(samples);
            OperatorProvenance {
                op: samples.op,
                rows: samples.points.len(),
                points,
                measured,
                sha256: digest(&samples.file),
                file: samples.file.clone(),
            }
        });
        operators.collect()
    }

    /// The record of a predictor made by `config` from `profiles`.
    pub fn of(config: &PredictorConfig, profiles: &ProfileSet) -> Provenance {
        Provenance {
            predictor: config.name(),
            description: config.description(),
            operators: Provenance::operators(profiles),
            not_modelled: profiles.not_measured.clone(),
            warnings: profiles.warnings.clone(),
            notes: profiles.notes.clone(),
            sources: profiles.sources.clone(),
        }
    }
}
