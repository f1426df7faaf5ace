//! What the user can choose about prediction.

use super::data_sheet::DataSheetSettings;
use super::forest::ForestSettings;
use super::graph::GraphSettings;
use super::plausible::Implausible;
use super::table::TableSettings;
use crate::dataset::read::MissingValues;
use crate::spec::ops::LayerSum;
use serde::{Deserialize, Serialize};

/// How operator times are predicted from profiles. In YAML: `predictor: {interpolate: {}}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum PredictorConfig {
    /// Interpolate between measured points, extrapolate by the roofline.
    Interpolate(OperatorSettings),
    /// Polynomial regression of degree 1 to 5.
    Linear(OperatorSettings),
    /// A random forest, with microsoft/vidur's settings and look-ups.
    Forest(ForestSettings),
    /// Arithmetic and memory traffic over what the device's data sheet promises; needs no profile.
    Roofline(DataSheetSettings),
    /// Look up whole compiled graphs by bucket and batch size (graph.csv), as Neuron runs them.
    Graph(GraphSettings),
    /// Look up given tables.
    Table(TableSettings),
}

impl Default for PredictorConfig {
    fn default() -> Self {
        PredictorConfig::Interpolate(OperatorSettings::default())
    }
}

impl PredictorConfig {
    /// How profiles of operators are read and added up; `None` for predictors that need none.
    pub fn settings(&self) -> Option<OperatorSettings> {
        match self {
            PredictorConfig::Interpolate(settings) | PredictorConfig::Linear(settings) => {
                Some(*settings)
            }
            PredictorConfig::Forest(settings) => Some(settings.operators()),
            PredictorConfig::Roofline(_)
            | PredictorConfig::Graph(_)
            | PredictorConfig::Table(_) => None,
        }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// One line that names the field, its value and what was expected.
    pub fn check(&self) -> Result<(), String> {
        if let Some(settings) = self.settings() {
            settings.check()?;
        }
        match self {
            PredictorConfig::Forest(settings) => settings.check(),
            PredictorConfig::Roofline(settings) => settings.check(),
            PredictorConfig::Graph(settings) => settings.check(),
            _ => Ok(()),
        }
    }

    /// The method's name in the configuration.
    pub fn name(&self) -> &'static str {
        match self {
            PredictorConfig::Interpolate(_) => "interpolate",
            PredictorConfig::Linear(_) => "linear",
            PredictorConfig::Forest(_) => "forest",
            PredictorConfig::Roofline(_) => "roofline",
            PredictorConfig::Graph(_) => "graph",
            PredictorConfig::Table(_) => "table",
        }
    }

    /// What a reader of a result must know about the step times, in a few words.
    pub fn description(&self) -> String {
        match self {
            PredictorConfig::Roofline(_) => "roofline: from the data sheet, not measured".into(),
            PredictorConfig::Forest(settings) => format!("forest of {} trees", settings.num_trees),
            _ => self.name().to_owned(),
        }
    }
}

/// How operators are read and added up.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OperatorSettings {
    /// What to do with rows whose time is empty or NaN.
    pub missing_values: MissingValues,
    /// What to do with rows that are faster than the device can calculate; as `missing_values`
    /// says when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub implausible: Option<Implausible>,
    /// Which operators a layer is taken to run.
    pub layer_sum: LayerSum,
    /// Slow-down of attention over several sequences, against the same work in one.
    pub attention_batching_overhead: AttentionBatchingOverhead,
    /// Milliseconds that launching one all-reduce adds to its profile. When absent: nothing where the
    /// profile's manifest says that its times hold it, else 0.02, as Vidur.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub all_reduce_launch_ms: Option<f64>,
    /// Use attention rows of this KV block size only; all when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u32>,
    /// Add the engine's time on the host (cpu_overheads.csv), during which the device waits.
    pub cpu_overhead: bool,
    /// Which pipeline stages pay it.
    pub cpu_overhead_stages: HostStages,
}

/// Which pipeline stages pay the engine's time on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostStages {
    /// The first: once a batch, as an engine with one scheduler does.
    #[default]
    First,
    /// Every one, as microsoft/vidur does.
    Every,
}

impl HostStages {
    /// Whether stage number `stage` pays.
    pub fn pays(self, stage: u32) -> bool {
        stage == 0 || self == HostStages::Every
    }
}

impl Default for OperatorSettings {
    fn default() -> Self {
        OperatorSettings {
            missing_values: MissingValues::Refuse,
            implausible: None,
            layer_sum: LayerSum::Engine,
            attention_batching_overhead: AttentionBatchingOverhead::default(),
            all_reduce_launch_ms: None,
            block_size: None,
            cpu_overhead: false,
            cpu_overhead_stages: HostStages::First,
        }
    }
}

/// Extra share of attention time for grouped-query models: `decode` when more than one sequence
/// decodes, `prefill` when a batch holds more than one chunk. Vidur adds 0.1 to each; our
/// decode profiles are measured with the whole batch, so the default is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AttentionBatchingOverhead {
    /// Share added to prefill attention.
    pub prefill: f64,
    /// Share added to decode attention.
    pub decode: f64,
}

impl AttentionBatchingOverhead {
    /// Vidur's: a tenth more for both.
    pub fn vidur() -> Self {
        AttentionBatchingOverhead { prefill: 0.1, decode: 0.1 }
    }
}

/// How large a batch may be: the range for which times are worked out beforehand. Larger
/// batches are answered too, only slower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Tokens in one batch.
    pub max_batch_tokens: u32,
    /// Sequences in one batch.
    pub max_batch_size: u32,
}

impl OperatorSettings {
    /// What to do with rows that are faster than the device can calculate.
    pub fn implausible(&self) -> Implausible {
        self.implausible.unwrap_or(match self.missing_values {
            MissingValues::Refuse => Implausible::Refuse,
            MissingValues::Skip => Implausible::Skip,
        })
    }

    /// Milliseconds that launching one all-reduce adds to a profile whose manifest says `included`.
    pub fn all_reduce_launch(&self, included: Option<bool>) -> f64 {
        const VIDUR_MS: f64 = 0.02;
        self.all_reduce_launch_ms.unwrap_or(if included == Some(true) { 0.0 } else { VIDUR_MS })
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// One line that names the field, its value and what was expected.
    pub fn check(&self) -> Result<(), String> {
        for (name, value) in [
            ("attention_batching_overhead.prefill", self.attention_batching_overhead.prefill),
            ("attention_batching_overhead.decode", self.attention_batching_overhead.decode),
            ("all_reduce_launch_ms", self.all_reduce_launch_ms.unwrap_or(0.0)),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(format!("predictor: {name} is {value}; expected 0 or more"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(yaml: &str) -> Result<PredictorConfig, String> {
        serde_saphyr::from_str(yaml).map_err(|e| e.to_string())
    }

    #[test]
    fn empty_settings_are_the_defaults() {
        assert_eq!(parse("interpolate: {}").unwrap(), PredictorConfig::default());
        assert_eq!(
            parse("linear: {}").unwrap(),
            PredictorConfig::Linear(OperatorSettings::default())
        );
    }

    #[test]
    fn settings_read_as_documented() {
        let config = parse(
            "interpolate:\n  missing_values: skip\n  layer_sum: vidur\n  \
             attention_batching_overhead: {prefill: 0.1, decode: 0.1}\n  block_size: 16\n",
        )
        .unwrap();
        let s = config.settings().unwrap();
        assert_eq!(s.missing_values, MissingValues::Skip);
        assert_eq!(s.layer_sum, LayerSum::Vidur);
        assert_eq!(s.attention_batching_overhead.decode, 0.1);
        assert_eq!((s.all_reduce_launch_ms, s.block_size), (None, Some(16)));
    }

    #[test]
    fn a_forest_has_vidurs_settings_unless_told_otherwise() {
        let PredictorConfig::Forest(s) = parse("forest: {num_trees: 9}").unwrap() else {
            panic!("no forest");
        };
        assert_eq!((s.num_trees, s.max_depth, s.min_samples_split, s.seed), (9, 16, 2, 0));
        let s = s.operators();
        assert_eq!((s.layer_sum, s.implausible()), (LayerSum::Vidur, Implausible::Keep));
        assert_eq!(s.attention_batching_overhead, AttentionBatchingOverhead::vidur());
        let error = parse("forest: {num_tree: 9}").unwrap_err();
        assert!(error.contains("num_tree"), "{error}");
        let zero = parse("roofline: {compute_efficiency: 0}").unwrap().check().unwrap_err();
        assert!(zero.contains("roofline.compute_efficiency is 0"), "{zero}");
    }

    #[test]
    fn rows_too_fast_to_be_true_follow_the_missing_ones_unless_told_otherwise() {
        let of = |yaml: &str| parse(yaml).unwrap().settings().unwrap().implausible();
        assert_eq!(of("interpolate: {}"), Implausible::Refuse);
        assert_eq!(of("interpolate: {missing_values: skip}"), Implausible::Skip);
        assert_eq!(of("interpolate: {missing_values: skip, implausible: keep}"), Implausible::Keep);
    }

    #[test]
    fn unknown_keys_and_methods_are_refused() {
        assert!(parse("interpolate: {mising_values: skip}").unwrap_err().contains("mising_values"));
        assert!(parse("spline: {}").unwrap_err().contains("spline"));
    }

    #[test]
    fn a_config_survives_writing_and_reading() {
        let config = PredictorConfig::Linear(OperatorSettings {
            layer_sum: LayerSum::Vidur,
            ..OperatorSettings::default()
        });
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<PredictorConfig>(&text).unwrap(), config);
    }

    #[test]
    fn negative_shares_are_refused_by_name() {
        let mut s = OperatorSettings::default();
        s.attention_batching_overhead.decode = -0.5;
        assert_eq!(
            s.check().unwrap_err(),
            "predictor: attention_batching_overhead.decode is -0.5; expected 0 or more"
        );
    }
}
