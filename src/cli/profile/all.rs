//! `vidur profile all`: everything that this machine can measure, in one run that goes on where it
//! stopped, and what is still missing to simulate the node.

mod host_time;

use super::super::Failure;
use super::super::table::{self, number, render, text, window_width};
use super::device::{BackendKind, about_doubt};
use super::graph::{self, Done};
use super::{Common, collectives, measure, resolve_models, shown};
use crate::cli::devices;
use crate::dataset::graph::{GraphKey, GraphTable, Phase};
use crate::dataset::manifest::noise;
use crate::dataset::write::TableKind;
use crate::profiling::detect::{self, Detection, Kind};
use crate::profiling::plan::Limits;
use crate::profiling::runner::{Job, Outcome};
use crate::profiling::tool::Tools;
use crate::spec::model::ModelSpec;
use crate::spec::parallel::Parallelism;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Most tokens in a batch.
    #[arg(long, default_value_t = 2048, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    max_tokens: u64,
    /// Most sequences in a decode batch.
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 16))]
    max_batch_size: u64,
    /// Longest context in tokens; the model's own limit where that is shorter.
    #[arg(long, default_value_t = 2048, value_name = "N", value_parser = clap::value_parser!(u64).range(2..=1 << 24))]
    max_context: u64,
    /// On Neuron: trace one decoder layer, and embedding with head, instead of whole models.
    #[arg(long)]
    per_layer: bool,
    /// On Neuron: physical cores to a logical NeuronCore, 1 or 2 [default: what neuron-ls says].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=2))]
    lnc: Option<u32>,
    /// Name of the node's wiring [default: as the catalogue calls it].
    #[arg(long, value_name = "NAME")]
    network_device: Option<String>,
}

/// What the run has to show.
#[derive(Default)]
struct Report {
    /// Profile, rows and file of each part.
    written: Vec<Vec<String>>,
    /// Relative spread of each operator and collective, the worst model's; `None` where nothing tells it.
    noise: BTreeMap<String, Option<f64>>,
    missing: Vec<String>,
    /// Parts that are not there although this machine should have measured them.
    failed: Vec<Failure>,
    /// Tensor-parallel degrees that each file of a model holds.
    degrees: Vec<(String, BTreeSet<u32>)>,
    /// How to simulate with what is there.
    next: Option<String>,
}

impl Report {
    /// A whole part failed: the rest goes on.
    fn fail(&mut self, failure: Failure) {
        eprintln!("{}", failure.words());
        self.missing.push(failure.words().to_owned());
        self.failed.push(failure);
    }

    fn noise(&mut self, name: &str, spread: Option<f64>) {
        let worst = self.noise.entry(name.to_owned()).or_default();
        *worst = worst.iter().copied().chain(spread).reduce(f64::max);
    }
}

/// Runs `vidur profile all`.
pub fn run(args: &Args) -> Result<(), Failure> {
    let common = &args.common;
    let catalog = devices::open(common.data_dir.as_deref())?;
    let kind = (common.device.backend == BackendKind::Cpu).then_some(Kind::Cpu);
    let found = detect::detect(&Tools::system(), &catalog, kind).map_err(Failure::user)?;
    if let Some(doubt) = &found.doubt {
        about_doubt(common.device.backend, doubt)?;
    }
    // What is wrong with the command itself ends it; whatever fails later leaves the rest its turn.
    let models = resolve_models(common)?;
    let mut report = Report::default();
    let neuron = found.backend == Kind::Neuron && common.device.backend != BackendKind::Cpu;
    let steps = if neuron { 2 } else { 3 };
    match neuron {
        true => {
            eprintln!("[1 of {steps}] graphs");
            graphs(args, &mut report)?;
        }
        false => operators(args, &mut report)?,
    }
    eprintln!("[{steps} of {steps}] collectives");
    collectives(args, &found, &mut report)?;
    host_time::measure(args, &models, &found, &mut report);
    if !common.dry_run {
        missing(&mut report, args, &models, &found, neuron);
        table::print(&text_of(&report))?;
    }
    Failure::of_several(report.failed)
}

/// Operators of every model, one kind after the other.
fn operators(args: &Args, report: &mut Report) -> Result<(), Failure> {
    let limits = Limits {
        max_tokens: args.max_tokens,
        max_batch_size: args.max_batch_size,
        max_context: args.max_context,
    };
    let mut reasons: Vec<(&str, Failure)> = Vec::new();
    for (step, kind) in [(1, TableKind::Mlp), (2, TableKind::Attention)] {
        eprintln!("[{step} of 3] {}", kind.name());
        let done = measure(kind, &args.common, limits, &mut |job, outcome| {
            operators_done(job, outcome, report);
            Ok(())
        });
        match done {
            Err(internal @ Failure::Internal(_)) => return Err(internal),
            Err(failure) => reasons.push((kind.name(), failure)),
            Ok(()) => {}
        }
    }
    // What both lack, they lack for the same reason.
    if let [(_, first), (_, second)] = &reasons[..]
        && first.words() == second.words()
    {
        report.fail(first.said_of("operators, for any simulation"));
        return Ok(());
    }
    for (kind, failure) in reasons {
        report.fail(failure.said_of(&format!("{kind} operators, for any simulation")));
    }
    Ok(())
}

/// What one kind of operators of one model came to.
fn operators_done(job: &Job, outcome: &Outcome, report: &mut Report) {
    let what = format!("{} operators of {}", job.kind.name(), job.model.name);
    let first = outcome.failed.first().map(|failed| format!("{}: {}", failed.shape, failed.reason));
    if outcome.table.is_empty() {
        report.fail(match first {
            Some(first) => {
                Failure::machine(format!("{what}: every shape failed, the first: {first}"))
            }
            None => Failure::user(format!("{what}: no shape fits into --budget; give more")),
        });
        return;
    }
    for (op, spread) in noise(&outcome.table) {
        report.noise(&op, Some(spread));
    }
    let mut state = vec![format!("{} new", outcome.measured)];
    if let Some(first) = first {
        state.push(format!("{} failed", outcome.failed.len()));
        report.missing.push(format!(
            "{what}: {} shapes that failed, the first: {first}; the same command tries them again",
            outcome.failed.len()
        ));
    }
    if outcome.skipped > 0 {
        state.push(format!("{} left for another run", outcome.skipped));
    }
    let (path, rows) = (job.files.csv(), outcome.table.len().to_string());
    report.written.push(vec![shown(&path), rows, state.join(", ")]);
    let held = degrees_on_disk(&path, "num_tensor_parallel_workers");
    report.degrees.push((job.model.name.clone(), held));
}

/// All-reduce and hand-over of this node.
fn collectives(args: &Args, found: &Detection, report: &mut Report) -> Result<(), Failure> {
    const WHAT: &str = "collectives, for TP and PP";
    let cpu = found.backend == Kind::Cpu;
    let network = args.network_device.as_deref();
    let done = match collectives::for_all(&args.common, network, cpu, found) {
        Ok(Some(done)) => done,
        Ok(None) => {
            report.missing.push(format!("{WHAT}: they need two devices, and one takes part"));
            return Ok(());
        }
        Err(internal @ Failure::Internal(_)) => return Err(internal),
        Err(failure) => {
            report.fail(failure.said_of(WHAT));
            return Ok(());
        }
    };
    for done in &done {
        if done.rows() > 0 {
            let state = format!("{} new", done.new_rows());
            report.written.push(vec![shown(done.table.path()), done.rows().to_string(), state]);
            report.noise(done.collective.name(), done.noise());
        }
        for failure in done.failures() {
            report.missing.push(format!("{WHAT}: {}", failure.words()));
            report.failed.push(failure);
        }
    }
    Ok(())
}

/// The degrees that the rows of a profile have in `column`; none where there is no file.
fn degrees_on_disk(path: &Path, column: &str) -> BTreeSet<u32> {
    let Ok(mut reader) = csv::Reader::from_path(path) else { return BTreeSet::new() };
    let at = reader.headers().ok().and_then(|names| names.iter().position(|name| name == column));
    let degree = |row: csv::StringRecord| row.get(at?)?.parse().ok();
    reader.records().flatten().filter_map(degree).collect()
}

/// Graphs of every model, and what of them is missing.
fn graphs(args: &Args, report: &mut Report) -> Result<(), Failure> {
    let common = &args.common;
    let (context, batch) = (args.max_context, args.max_batch_size);
    let done = match graph::for_all(common, context, batch, args.per_layer, args.lnc) {
        Ok(done) => done,
        // Collectives may still be measured; the rest is told.
        Err(internal @ Failure::Internal(_)) => return Err(internal),
        Err(failure) => {
            report.fail(failure.said_of("graphs, for any simulation"));
            return Ok(());
        }
    };
    for Done { file, new, failed } in &done {
        if let (None, Some(first)) = (file.medians().next(), failed.first()) {
            let what = format!("graphs of {}", file.model());
            let why = format!("every one failed, the first: {}: {}", first.shape, first.reason);
            report.fail(Failure::machine(why).said_of(&what));
            continue;
        }
        let held = file.medians().map(|(key, ..)| key.tensor_parallel).collect();
        report.degrees.push((file.model().to_owned(), held));
        let phases: Vec<Phase> = file.medians().map(|(key, ..)| key.phase).collect();
        let mut state = vec![format!("{new} new")];
        if let Some(first) = failed.first() {
            state.push(format!("{} failed", failed.len()));
            report.missing.push(format!(
                "{} graphs that failed, the first: {}: {}; the same command tries them again",
                failed.len(),
                first.shape,
                first.reason
            ));
        }
        for (phase, what) in [(Phase::Context, "prompts"), (Phase::Token, "decoding")] {
            if !phases.contains(&phase) {
                let path = shown(&file.path());
                report.missing.push(format!("{} graphs in {path}, for {what}", phase.name()));
            }
        }
        if !phases.is_empty() {
            report.written.push(vec![
                shown(&file.path()),
                phases.len().to_string(),
                state.join(", "),
            ]);
            report.next.get_or_insert_with(|| simulate_with(file, common));
        }
    }
    Ok(())
}

/// A command that simulates with the graphs of `file`: as many seats as the largest of them decodes
/// for, and requests that their buckets hold.
fn simulate_with(file: &GraphTable, common: &Common) -> String {
    let keys: Vec<GraphKey> = file.medians().map(|(key, ..)| key).collect();
    // The last degree asked for may have failed.
    let has = |degree: &u32| keys.iter().any(|key| key.tensor_parallel == *degree);
    let degree = common.tensor_parallel.iter().copied().rfind(has).unwrap_or(1);
    let of =
        |phase| keys.iter().filter(move |key| key.phase == phase && key.tensor_parallel == degree);
    let seats = of(Phase::Token).map(|key| key.batch).max().unwrap_or(1);
    let largest = |keys: &mut dyn Iterator<Item = &GraphKey>| keys.map(|key| key.bucket).max();
    let context = largest(&mut of(Phase::Context)).unwrap_or(2);
    // Every batch size has to hold the longest context.
    let sizes = of(Phase::Token).map(|key| key.batch);
    let held = sizes.filter_map(|n| largest(&mut of(Phase::Token).filter(|key| key.batch == n)));
    let length = held.min().unwrap_or(2).min(context);
    let (prompt, output) = ((length / 2).max(1), (length / 8).max(1));
    format!(
        "vidur simulate --model {} --sku {} --profiling-dir {} \\\n     \
         --set cluster.tensor_parallel={} \\\n     \
         --set 'scheduler={{vllm_neuron: {{max_num_seqs: {seats}, max_model_len: {length}}}}}' \\\n     \
         --set 'workload.synthetic.lengths={{fixed: {{prefill_tokens: {prompt}, decode_tokens: {output}}}}}'",
        file.model(),
        file.sku(),
        shown(&common.output_dir),
        degree
    )
}

/// What a simulation of this node would still lack.
fn missing(
    report: &mut Report,
    args: &Args,
    models: &[ModelSpec],
    found: &Detection,
    neuron: bool,
) {
    let devices = if found.backend == Kind::Cpu { 1 } else { found.num_workers() };
    let powers =
        std::iter::successors(Some(1_u32), |n| n.checked_mul(2)).take_while(|&n| n <= devices);
    let wanted: BTreeSet<u32> = powers.chain(args.common.tensor_parallel.iter().copied()).collect();
    // Models that lack the same share a line.
    let mut lacking: BTreeMap<Vec<String>, Vec<&str>> = BTreeMap::new();
    for model in models {
        let fits = |degree: u32| {
            Parallelism { tensor_parallel: degree, pipeline_parallel: 1 }.check(model).is_ok()
        };
        let mut files = report.degrees.iter().filter(|(name, _)| *name == model.name).peekable();
        // A model without any file is told already.
        if files.peek().is_none() {
            continue;
        }
        let held: Vec<&BTreeSet<u32>> = files.map(|(_, degrees)| degrees).collect();
        let lacks = |&n: &u32| fits(n) && held.iter().any(|degrees| !degrees.contains(&n));
        let lacks: Vec<String> =
            wanted.iter().copied().filter(lacks).map(|n| n.to_string()).collect();
        if !lacks.is_empty() {
            lacking.entry(lacks).or_default().push(&model.name);
        }
    }
    for (degrees, names) in lacking {
        let of = if models.len() > 1 { format!(" of {}", names.join(", ")) } else { String::new() };
        report.missing.push(format!(
            "{} at tensor parallel {}{of}: the same command with --tensor-parallel {}",
            if neuron { "graphs" } else { "operators" },
            degrees.join(", "),
            degrees.join(",")
        ));
    }
    report.missing.extend(found.unknown.iter().cloned());
}

fn text_of(report: &Report) -> String {
    let width = window_width();
    let columns = [text("written"), number("rows"), text("this run").expendable(1)];
    let mut out = match report.written.is_empty() {
        true => "nothing was written\n".to_owned(),
        false => render(&columns, &report.written, width),
    };
    if !report.noise.is_empty() {
        let rows: Vec<Vec<String>> = report
            .noise
            .iter()
            .map(|(name, spread)| vec![name.clone(), collectives::noise_cell(*spread)])
            .collect();
        out.push('\n');
        out.push_str(&render(&[text("operator or collective"), number("noise")], &rows, width));
    }
    out.push_str("\nstill missing\n");
    match report.missing.is_empty() {
        true => out.push_str(" nothing\n"),
        false => report.missing.iter().for_each(|what| out.push_str(&format!(" - {what}\n"))),
    }
    if let Some(next) = &report.next {
        out.push_str(&format!("\nto simulate\n   {next}\n"));
    }
    out
}
