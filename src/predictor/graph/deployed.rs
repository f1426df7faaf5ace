//! The graphs that are deployed: chosen from a profile, and picked from for every step.

use super::settings::{BucketSelection, GraphSettings};
use crate::cost::Demand;
use crate::dataset::graph::Phase;
use crate::dataset::graph_read::{GraphProfile, GraphSample};
use crate::predictor::stage::rounded;
use crate::predictor::{PredictorError, System};
use std::collections::{BTreeMap, BTreeSet};

/// One compiled graph.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Graph {
    pub phase: Phase,
    /// Sequences.
    pub batch: u32,
    /// Tokens of each: of the prompt, or of the context that a token is decoded after.
    pub bucket: u64,
    /// Milliseconds of one execution, a multiple of 2⁻³² ms.
    pub ms: f64,
    /// Whether they hold the collectives.
    pub with_collectives: bool,
    /// Collectives of one execution where `ms` does not hold them.
    pub collectives_ms: f64,
    /// Whether these were asked outside the range that was measured.
    pub extrapolated: bool,
    /// Put together from one layer, times so many, and the head.
    pub from_layers: Option<u32>,
    /// A graph of layers whose head is not profiled.
    pub lacks_head: bool,
    /// Rows of the file that it comes from.
    pub num_rows: usize,
    note: String,
}

impl Graph {
    /// Rows that pass through its layers.
    pub fn rows(&self) -> u64 {
        let each = if self.phase == Phase::Context { self.bucket } else { 1 };
        each * u64::from(self.batch)
    }
}

/// Graphs by phase and batch size, buckets ascending.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Deployed {
    context: Vec<Graph>,
    /// Ascending batch sizes; every one has at least one bucket.
    token: Vec<(u32, Vec<Graph>)>,
    selection: BucketSelection,
}

impl Deployed {
    /// What `settings` deploy of `profile`.
    pub fn choose(
        profile: &GraphProfile,
        settings: &GraphSettings,
        system: &System<'_>,
    ) -> Result<Deployed, PredictorError> {
        let file = &profile.source.file;
        let wrong = |message: String| PredictorError::Setting(format!("{file}: {message}"));
        let degree = system.parallel.tensor_parallel;
        let mut cells: BTreeMap<(Phase, u32, u64), Vec<&GraphSample>> = BTreeMap::new();
        for sample in profile.samples.iter().filter(|s| s.key.tensor_parallel == degree) {
            let key = (sample.key.phase, sample.key.batch, sample.key.bucket);
            cells.entry(key).or_default().push(sample);
        }
        if cells.is_empty() {
            let there: BTreeSet<u32> =
                profile.samples.iter().map(|s| s.key.tensor_parallel).collect();
            return Err(wrong(format!(
                "no graphs at tensor parallel {degree}; it has {}: set cluster.tensor_parallel to \
                 one of these, or measure with `vidur profile graph --tensor-parallel {degree}`",
                listed(there)
            )));
        }
        let layers = system.model.num_layers;
        let all: Vec<Graph> = cells.values().filter_map(|rows| assemble(rows, layers)).collect();
        if all.is_empty() {
            return Err(wrong(format!(
                "no graph of all {layers} layers and head, and none of one layer, at tensor \
                 parallel {degree}: measure with `vidur profile graph`, with or without --per-layer"
            )));
        }
        let of = |phase| all.iter().filter(move |g| g.phase == phase).cloned();
        let both = settings.buckets.as_ref();
        let context = {
            let sizes: BTreeSet<u32> = of(Phase::Context).map(|g| g.batch).collect();
            let size = settings.ctx_batch_size.or_else(|| sizes.first().copied()).unwrap_or(1);
            if settings.ctx_batch_size.is_some() && !sizes.contains(&size) {
                return Err(wrong(format!(
                    "no context-encoding graph reads {size} prompts at a time \
                     (predictor.graph.ctx_batch_size); it has {}",
                    listed(sizes)
                )));
            }
            let list = settings.context_encoding_buckets.as_ref();
            let graphs = of(Phase::Context).filter(|g| g.batch == size).collect();
            let (field, list) = named("context_encoding_buckets", list, both);
            buckets(graphs, list, settings.enable_bucketing)
                .map_err(|missing| wrong(missing.message(field, "--context-buckets")))?
        };
        if context.is_empty() {
            return Err(wrong(format!(
                "no context-encoding graphs at tensor parallel {degree}: measure them with `vidur \
                 profile graph --tensor-parallel {degree}`"
            )));
        }
        let there: BTreeSet<u32> = of(Phase::Token).map(|g| g.batch).collect();
        let sizes: BTreeSet<u32> = match &settings.token_generation_batches {
            Some(list) => list.iter().copied().collect(),
            None => there.clone(),
        };
        let list = settings.token_generation_buckets.as_ref();
        let mut token = Vec::new();
        for size in sizes {
            if !there.contains(&size) {
                return Err(wrong(format!(
                    "no token-generation graph of {size} sequences \
                     (predictor.graph.token_generation_batches); it has {}: measure it with `vidur \
                     profile graph --batch-sizes {size}`",
                    listed(there)
                )));
            }
            let graphs = of(Phase::Token).filter(|g| g.batch == size).collect();
            let (field, list) = named("token_generation_buckets", list, both);
            let graphs = buckets(graphs, list, settings.enable_bucketing)
                .map_err(|missing| wrong(missing.message(field, "--token-buckets")))?;
            token.push((size, graphs));
        }
        Ok(Deployed { context, token, selection: settings.selection })
    }

    /// Prompts that a context-encoding graph reads at a time.
    pub fn context_batch(&self) -> usize {
        self.context.first().map_or(1, |graph| graph.batch as usize)
    }

    /// The graph that reads prompts of up to `tokens` tokens, and how often it runs: more than once
    /// only beyond the largest, which [`Deployed::check`] refuses beforehand.
    pub fn context(&self, tokens: u32) -> Option<(&Graph, u32)> {
        self.pick(&self.context, tokens)
    }

    /// The graph that decodes for `sequences` sequences, the longest of which attends to `tokens`
    /// tokens, its own included.
    pub fn token(&self, sequences: u32, tokens: u32) -> Option<(&Graph, u32)> {
        let fits = self.token.iter().find(|(batch, _)| *batch >= sequences);
        let (batch, graphs) = fits.or(self.token.last())?;
        let (graph, executions) = self.pick(graphs, tokens)?;
        Some((graph, executions.saturating_mul(sequences.div_ceil(*batch))))
    }

    fn pick<'a>(&self, graphs: &'a [Graph], tokens: u32) -> Option<(&'a Graph, u32)> {
        let tokens = u64::from(tokens);
        let fits = graphs.iter().find(|graph| match self.selection {
            BucketSelection::FirstFit => tokens < graph.bucket,
            BucketSelection::Smallest => tokens <= graph.bucket,
        });
        let graph = fits.or(graphs.last())?;
        Some((graph, tokens.div_ceil(graph.bucket).max(1) as u32))
    }

    /// Checks that there is a graph for everything that is asked.
    pub fn check(&self, demand: &Demand, file: &str) -> Result<(), String> {
        let largest = |graphs: &[Graph]| graphs.last().map_or(0, |graph| graph.bucket);
        let context = largest(&self.context);
        if u64::from(demand.longest_prompt) > context {
            return Err(format!(
                "workload: a prompt of {} tokens, and the largest context-encoding bucket of {file} \
                 that is deployed holds {context}: shorten prompts, or measure a larger one with \
                 `vidur profile graph --max-context {}`",
                demand.longest_prompt, demand.longest_prompt
            ));
        }
        if u64::from(demand.longest_restart) > context {
            return Err(format!(
                "kv_cache: requests may lose their cache and compute up to {} tokens again, and the \
                 largest context-encoding bucket of {file} that is deployed holds {context}: use \
                 `scheduler: {{vllm_neuron: {{}}}}`, which reserves cache, or raise kv_cache.size",
                demand.longest_restart
            ));
        }
        if demand.longest_decode == 0 {
            return Ok(());
        }
        let Some((batch, _)) = self.token.last() else {
            return Err(format!(
                "workload: requests have more than one output token, and {file} has no \
                 token-generation graphs: measure them with `vidur profile graph`, or ask for one \
                 output token"
            ));
        };
        let (seqs, setting) = &demand.max_seqs;
        if seqs > batch {
            return Err(format!(
                "{setting}: {seqs} sequences may decode together, and the largest token-generation \
                 graph of {file} that is deployed holds {batch}: set it to {batch}, or measure with \
                 `vidur profile graph --batch-sizes {seqs}`"
            ));
        }
        // Every batch size that may run has to hold the longest context.
        let most = self.token.iter().map(|(size, _)| size).find(|size| *size >= seqs);
        let may_run = self.token.iter().filter(|(size, _)| most.is_none_or(|most| size <= most));
        let token = may_run.map(|(_, graphs)| largest(graphs)).min().unwrap_or(0);
        if u64::from(demand.longest_decode) > token {
            return Err(format!(
                "workload: a context of {} tokens, and the largest token-generation bucket of {file} \
                 that is deployed for every batch size up to {setting} holds {token}: shorten \
                 requests, or measure a larger one with `vidur profile graph --max-context {}`",
                demand.longest_decode, demand.longest_decode
            ));
        }
        Ok(())
    }

    pub fn iter(&self) -> impl Iterator<Item = &Graph> {
        self.context.iter().chain(self.token.iter().flat_map(|(_, graphs)| graphs))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Graph> {
        self.context.iter_mut().chain(self.token.iter_mut().flat_map(|(_, graphs)| graphs))
    }

    pub fn contexts(&self) -> Vec<&Graph> {
        self.context.iter().collect()
    }

    pub fn tokens(&self) -> Vec<&Graph> {
        self.token.iter().flat_map(|(_, graphs)| graphs).collect()
    }

    /// How each graph was timed, and what the device's profiler counted.
    pub fn notes(&self) -> Vec<String> {
        self.iter().map(|graph| graph.note.clone()).filter(|note| !note.is_empty()).collect()
    }

    /// What the graphs leave out.
    pub fn warnings(&self, file: &str) -> Vec<String> {
        let lacking = self.iter().filter(|graph| graph.lacks_head).count();
        let text = format!(
            "{file}: {lacking} graphs are layers only: embedding, final norm and LM head take no \
             time; measure them with `vidur profile graph --per-layer`"
        );
        (lacking > 0).then_some(text).into_iter().collect()
    }
}

/// Buckets that were asked for and are not profiled.
struct Missing {
    bucket: u64,
    there: Vec<u64>,
}

impl Missing {
    fn message(&self, field: &str, flag: &str) -> String {
        let Missing { bucket, there } = self;
        format!(
            "no graph for bucket {bucket} (predictor.graph.{field}); it has {}: choose of these, or \
             measure it with `vidur profile graph {flag} {bucket}`",
            listed(there.clone())
        )
    }
}

fn named<'a>(
    own: &'static str,
    list: Option<&'a Vec<u64>>,
    both: Option<&'a Vec<u64>>,
) -> (&'static str, Option<&'a Vec<u64>>) {
    if list.is_some() { (own, list) } else { ("buckets", both) }
}

/// The graphs of `wanted` buckets; all, when none are named; of several the largest alone, without
/// bucketing.
fn buckets(
    mut graphs: Vec<Graph>,
    wanted: Option<&Vec<u64>>,
    bucketing: bool,
) -> Result<Vec<Graph>, Missing> {
    if let Some(wanted) = wanted.filter(|_| !graphs.is_empty()) {
        let there: Vec<u64> = graphs.iter().map(|graph| graph.bucket).collect();
        if let Some(&bucket) = wanted.iter().find(|bucket| !there.contains(bucket)) {
            return Err(Missing { bucket, there });
        }
        graphs.retain(|graph| wanted.contains(&graph.bucket));
    }
    graphs.sort_by_key(|graph| graph.bucket);
    if !bucketing {
        graphs.drain(..graphs.len().saturating_sub(1));
    }
    Ok(graphs)
}

fn listed<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() { "none".into() } else { items.join(", ") }
}

/// One graph from the rows of its phase, batch size and bucket: the whole model where it is timed,
/// else one layer as often as the model has layers, and the head. `None` when neither is there.
fn assemble(rows: &[&GraphSample], layers: u32) -> Option<Graph> {
    let find = |layers: u32, head: bool| {
        rows.iter().find(|s| s.key.layers == layers && s.key.head == head).copied()
    };
    let (first, ms, from_layers, head) = match find(layers, true) {
        Some(whole) => (whole, whole.ms, None, None),
        None => {
            let layer = find(1, false)?;
            let head = find(0, true);
            let ms = f64::from(layers) * layer.ms + head.map_or(0.0, |head| head.ms);
            (layer, ms, Some(layers), head)
        }
    };
    let counters: Vec<String> =
        first.counters.iter().map(|(name, value)| format!("{name} {value}")).collect();
    let facts: Vec<String> = std::iter::once(first.timing.clone())
        .chain(counters)
        .filter(|fact| !fact.is_empty())
        .collect();
    let note = match facts.is_empty() {
        true => String::new(),
        false => format!("{}: {}", first.key, facts.join(", ")),
    };
    Some(Graph {
        phase: first.key.phase,
        batch: first.key.batch,
        bucket: first.key.bucket,
        ms: rounded(ms),
        with_collectives: first.with_collectives,
        collectives_ms: 0.0,
        extrapolated: false,
        from_layers,
        lacks_head: from_layers.is_some() && head.is_none(),
        num_rows: 1 + usize::from(head.is_some()),
        note,
    })
}
