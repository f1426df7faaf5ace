//! `vidur profile all`: everything that this machine can measure, in one run that goes on where it
//! stopped, and what is still missing to simulate the node.

use super::super::Failure;
use super::super::table::{self, number, render, text, window_width};
use super::device::BackendKind;
use super::graph::{self, Done};
use super::{Common, collectives, measure, shown};
use crate::cli::devices;
use crate::dataset::graph::{GraphKey, GraphTable, Phase};
use crate::dataset::manifest::noise;
use crate::dataset::write::TableKind;
use crate::profiling::detect::{self, Detection, Kind};
use crate::profiling::plan::Limits;
use crate::profiling::tool::Tools;
use std::collections::BTreeMap;

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
    /// Relative spread of each operator, the worst model's.
    noise: BTreeMap<String, f64>,
    missing: Vec<String>,
    /// How to simulate with what is there.
    next: Option<String>,
}

/// Runs `vidur profile all`.
pub fn run(args: &Args) -> Result<(), Failure> {
    let common = &args.common;
    let limits = Limits {
        max_tokens: args.max_tokens,
        max_batch_size: args.max_batch_size,
        max_context: args.max_context,
    };
    let catalog = devices::open(common.data_dir.as_deref())?;
    let kind = (common.device.backend == BackendKind::Cpu).then_some(Kind::Cpu);
    let found = detect::detect(&Tools::system(), &catalog, kind).map_err(Failure::user)?;
    let mut report = Report::default();
    let neuron = found.backend == Kind::Neuron && common.device.backend != BackendKind::Cpu;
    let steps = if neuron { 2 } else { 3 };
    if neuron {
        eprintln!("[1 of {steps}] graphs");
        graphs(args, &mut report)?;
    } else {
        for (step, kind) in [(1, TableKind::Mlp), (2, TableKind::Attention)] {
            eprintln!("[{step} of {steps}] {}", kind.name());
            measure(kind, common, limits, &mut |job, outcome| {
                for (op, spread) in noise(&outcome.table) {
                    let worst = report.noise.entry(op).or_default();
                    *worst = worst.max(spread);
                }
                let mut state = vec![format!("{} new", outcome.measured)];
                if !outcome.failed.is_empty() {
                    state.push(format!("{} failed", outcome.failed.len()));
                }
                if outcome.skipped > 0 {
                    state.push(format!("{} left for another run", outcome.skipped));
                }
                let rows = outcome.table.len().to_string();
                report.written.push(vec![shown(&job.files.csv()), rows, state.join(", ")]);
                Ok(())
            })?;
        }
    }
    if common.dry_run {
        return Ok(());
    }
    eprintln!("[{steps} of {steps}] collectives");
    let network = args.network_device.as_deref();
    let cpu = found.backend == Kind::Cpu;
    let data_dir = common.data_dir.as_deref();
    match collectives::for_all(
        &common.output_dir,
        data_dir,
        network,
        &common.device.python,
        cpu,
        common.force,
    ) {
        Ok(files) => report.written.extend(
            files.iter().map(|(path, rows)| vec![shown(path), rows.to_string(), String::new()]),
        ),
        // What is measured so far stands; the rest is told.
        Err(Failure::User(why)) => {
            report.missing.push(format!("collectives, for TP and PP: {why}"))
        }
        Err(other) => return Err(other),
    }
    missing(&mut report, args, &found, neuron);
    table::print(&text_of(&report))
}

/// Graphs of every model, and what of them is missing.
fn graphs(args: &Args, report: &mut Report) -> Result<(), Failure> {
    let common = &args.common;
    let (context, batch) = (args.max_context, args.max_batch_size);
    let done = match graph::for_all(common, context, batch, args.per_layer, args.lnc) {
        Ok(done) => done,
        // Collectives may still be measured; the rest is told.
        Err(Failure::User(why)) => {
            report.missing.push(format!("graphs, for any simulation: {why}"));
            return Ok(());
        }
        Err(other) => return Err(other),
    };
    for Done { file, new, failed } in &done {
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
fn missing(report: &mut Report, args: &Args, found: &Detection, neuron: bool) {
    let devices = found.num_workers();
    let degrees = &args.common.tensor_parallel;
    let further: Vec<String> = std::iter::successors(Some(2_u32), |n| n.checked_mul(2))
        .take_while(|&n| n <= devices && found.backend != Kind::Cpu)
        .filter(|n| !degrees.contains(n))
        .map(|n| n.to_string())
        .collect();
    if !further.is_empty() {
        report.missing.push(format!(
            "{} at tensor parallel {}: the same command with --tensor-parallel {}",
            if neuron { "graphs" } else { "operators" },
            further.join(", "),
            further.join(",")
        ));
    }
    let model = args.common.models.first().map_or("ORG/MODEL", String::as_str);
    let host =
        args.network_device.as_ref().or(found.network_device.as_ref()).or(found.store_as.as_ref());
    let host = host.map_or("NAME", String::as_str);
    let path = args
        .common
        .output_dir
        .join("cpu_overhead")
        .join(host)
        .join(model)
        .join("cpu_overheads.csv");
    if !path.is_file() {
        report.missing.push(format!(
            "the engine's time on the host, which needs vLLM (--python) or a running engine: vidur profile \
             cpu-overhead --models {model} --network-device {host}"
        ));
    }
    report.missing.extend(found.unknown.iter().cloned());
}

fn text_of(report: &Report) -> String {
    let width = window_width();
    let columns = [text("written"), number("rows"), text("this run").expendable(1)];
    let mut out = render(&columns, &report.written, width);
    if !report.noise.is_empty() {
        let rows: Vec<Vec<String>> = report
            .noise
            .iter()
            .map(|(op, spread)| vec![op.clone(), format!("{:.1} %", 100.0 * spread)])
            .collect();
        out.push('\n');
        out.push_str(&render(&[text("operator"), number("noise")], &rows, width));
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
