//! The time of a step on a device that runs whole compiled graphs, as AWS Neuron does: looked up in
//! graph.csv, never interpolated, because what runs between two buckets is the larger one.
//!
//! A step runs one context-encoding graph for each prompt in it (for each `ctx_batch_size` prompts)
//! and one token-generation graph for all sequences that decode. Padding up to the bucket and up to
//! the batch size of the graph is time like any other.
//! Source: neuronx-distributed-inference, modules/autobucketing.py and models/model_wrapper.py;
//! vllm-neuron 0.2, whose scheduler starts one prompt a step.

mod deployed;
pub mod settings;
#[cfg(test)]
mod tests;

pub use settings::{BucketSelection, GraphSettings};

use super::interpolate::Interpolation;
use super::provenance::{MeasuredRange, OperatorProvenance, Provenance};
use super::roofline::{Roofline, RooflineContext};
use super::stage::rounded;
use super::{OpModel, Prediction, PredictorError, System};
use crate::cost::{BatchShape, CostModel, Demand, OpTime, PrefillChunk, StepCost};
use crate::dataset::graph_read;
use crate::dataset::location::ProfileKind;
use crate::dataset::read::{LoadError, MissingValues, OpSamples, ProfileSet, Request};
use crate::ids::StageId;
use crate::spec::ops::{LayerSum, Op, OpInput, stage_ops};
use crate::units::SimDuration;
use deployed::{Deployed, Graph};

/// A [`CostModel`] of compiled graphs.
pub struct GraphCost {
    graphs: Deployed,
    host: Option<Box<dyn OpModel>>,
    /// The file, for messages.
    file: String,
}

/// Milliseconds of one step by what they are spent on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Times {
    host: f64,
    context: f64,
    padding: f64,
    token: f64,
    collectives: f64,
    extrapolated: bool,
}

impl Times {
    fn run(&mut self, graph: &Graph, executions: u32) {
        self.collectives += graph.collectives_ms * f64::from(executions);
        self.extrapolated |= graph.extrapolated;
    }
}

/// Builds the predictor of `system` from its graph.csv, and says what it was made from.
///
/// # Errors
/// When there is no graph.csv, it lacks what `settings` or the model's split ask for, or collectives
/// are neither inside the graphs nor profiled.
pub fn build(
    settings: &GraphSettings,
    system: &System<'_>,
    description: String,
) -> Result<(GraphCost, Provenance), PredictorError> {
    let System { root, model, device, parallel, .. } = *system;
    if parallel.pipeline_parallel > 1 {
        return Err(PredictorError::Setting(format!(
            "cluster.pipeline_parallel: {}; whole graphs hold every layer: expected 1, and more \
             cluster.tensor_parallel for a model that does not fit",
            parallel.pipeline_parallel
        )));
    }
    let file =
        root.find(ProfileKind::Graph, &device.names(), &model.names()).map_err(LoadError::from)?;
    let profile = graph_read::read(&file).map_err(LoadError::from)?;
    let mut graphs = Deployed::choose(&profile, settings, system)?;

    let mut ops = Vec::new();
    let lacks_collectives = graphs.iter().any(|graph| !graph.with_collectives);
    if parallel.tensor_parallel > 1 && lacks_collectives {
        ops.push(Op::AllReduce);
    }
    if settings.cpu_overhead {
        ops.push(Op::Host);
    }
    let request = Request {
        model,
        device,
        network_device: system.network_device,
        parallel,
        ops: &ops,
        missing_values: MissingValues::Refuse,
        block_size: None,
    };
    let set = request.load(root)?;
    let context = RooflineContext::new(model, parallel, device);
    let fit = |samples: &OpSamples| {
        Interpolation::fit(&samples.points, Roofline::new(samples.op, &context))
            .ok_or_else(|| PredictorError::NoFit { op: samples.op, file: samples.file.clone() })
    };
    let of = |op| set.ops.iter().find(|samples| samples.op == op);
    if let Some(samples) = of(Op::AllReduce) {
        let reduce = fit(samples)?;
        let layers = stage_ops(model, parallel, 0, LayerSum::Engine);
        let times: u32 = layers.iter().filter(|o| o.op == Op::AllReduce).map(|o| o.repeats).sum();
        let bytes_per_row = f64::from(model.hidden_size) * model.dtype.bytes();
        let launch = settings.all_reduce_launch_ms;
        for graph in graphs.iter_mut().filter(|graph| !graph.with_collectives) {
            // Rows of padding are summed like any other.
            let bytes = graph.rows() as f64 * bytes_per_row;
            let p = reduce.predict(OpInput::Tokens(bytes as u64));
            graph.collectives_ms = rounded((p.ms + launch) * f64::from(times));
            graph.extrapolated = p.extrapolated;
        }
    }
    let host = of(Op::Host).map(fit).transpose()?;
    let host = host.map(|model| Box::new(model) as Box<dyn OpModel>);
    let provenance = provenance(&graphs, &profile, set, description);
    Ok((GraphCost { graphs, host, file: file.name }, provenance))
}

impl GraphCost {
    fn times(&self, batch: &BatchShape) -> Times {
        let mut times = Times::default();
        if let Some(host) = &self.host {
            let sequences = batch.prefills.len() as u64 + u64::from(batch.num_decodes);
            let Prediction { ms, extrapolated } = host.predict(OpInput::Tokens(sequences));
            (times.host, times.extrapolated) = (rounded(ms), extrapolated);
        }
        for prompts in batch.prefills.chunks(self.graphs.context_batch()) {
            self.read(prompts, &mut times);
        }
        if batch.num_decodes > 0
            && let Some((graph, executions)) =
                self.graphs.token(batch.num_decodes, batch.longest_decode)
        {
            times.token += graph.ms * f64::from(executions);
            times.run(graph, executions);
        }
        times
    }

    /// Adds the graph that reads `prompts` together. What is in the cache already is read again: a
    /// graph knows no beginning but the first token.
    fn read(&self, prompts: &[PrefillChunk], times: &mut Times) {
        let length = |p: &PrefillChunk| p.kv_tokens.saturating_add(p.chunk_tokens);
        let longest = prompts.iter().map(length).max().unwrap_or(0);
        let Some((graph, executions)) = self.graphs.context(longest) else { return };
        let ms = graph.ms * f64::from(executions);
        let tokens: u64 = prompts.iter().map(|p| u64::from(length(p))).sum();
        let rows = graph.rows() * u64::from(executions);
        let padding = rounded(ms * (1.0 - tokens as f64 / rows as f64).max(0.0));
        times.context += ms - padding;
        times.padding += padding;
        times.run(graph, executions);
    }
}

impl CostModel for GraphCost {
    fn num_stages(&self) -> u32 {
        1
    }

    fn stage_cost(&self, _: StageId, batch: &BatchShape) -> StepCost {
        let t = self.times(batch);
        // Every part is a multiple of 2⁻³² ms: the sum is exact in any order.
        let ms = t.host + t.context + t.padding + t.token + t.collectives;
        let (duration, fraction) = SimDuration::split_ms(ms);
        let host = SimDuration::from_ms(t.host);
        StepCost { duration, fraction, host, extrapolated: t.extrapolated }
    }

    fn stage_breakdown(&self, _: StageId, batch: &BatchShape) -> Vec<OpTime> {
        let t = self.times(batch);
        let parts = [
            (Op::Host, t.host),
            (Op::ContextGraph, t.context),
            (Op::GraphPadding, t.padding),
            (Op::TokenGraph, t.token),
            (Op::AllReduce, t.collectives),
        ];
        let asked = parts.into_iter().filter(|(_, ms)| *ms > 0.0);
        asked
            .map(|(op, ms)| {
                // Graphs themselves are looked up.
                let fitted = op == Op::Host || op.is_collective();
                OpTime { op, ms, extrapolated: t.extrapolated && fitted }
            })
            .collect()
    }

    fn check(&self, demand: &Demand) -> Result<(), String> {
        if let Some(reason) = &demand.pieces {
            return Err(format!(
                "{reason}, and compiled graphs read prompts whole, from their first token: use \
                 `scheduler: {{vllm_neuron: {{}}}}`, which does"
            ));
        }
        self.graphs.check(demand, &self.file)
    }
}

fn provenance(
    graphs: &Deployed,
    profile: &graph_read::GraphProfile,
    set: ProfileSet,
    description: String,
) -> Provenance {
    let op_of = |op, chosen: &[&Graph]| {
        let range = |feature, of: fn(&Graph) -> u64| {
            let values = chosen.iter().map(|graph| of(graph) as f64);
            let (min, max) =
                values.fold((f64::INFINITY, 0.0_f64), |(a, b), v| (a.min(v), b.max(v)));
            MeasuredRange { feature, min, max }
        };
        OperatorProvenance {
            op,
            rows: chosen.iter().map(|graph| graph.num_rows).sum(),
            points: chosen.len(),
            measured: vec![
                range("bucket", |graph| graph.bucket),
                range("sequences", |graph| u64::from(graph.batch)),
            ],
            file: profile.source.file.clone(),
            sha256: profile.source.sha256.clone(),
        }
    };
    let of_phase = [(Op::ContextGraph, graphs.contexts()), (Op::TokenGraph, graphs.tokens())];
    let mut operators: Vec<OperatorProvenance> = of_phase
        .iter()
        .filter(|(_, chosen)| !chosen.is_empty())
        .map(|(op, chosen)| op_of(*op, chosen))
        .collect();
    let network = Provenance::operators(&set);
    operators.extend(network);
    let mut notes = graphs.notes();
    notes.extend(set.notes);
    Provenance {
        predictor: "graph",
        description,
        operators,
        not_modelled: set.not_measured,
        warnings: graphs.warnings(&profile.source.file).into_iter().chain(set.warnings).collect(),
        notes,
        sources: std::iter::once(profile.source.clone()).chain(set.sources).collect(),
    }
}
