//! `vidur profile all`: everything that this machine can measure, in one run that goes on where it
//! stopped, and what is still missing to simulate the node.

use super::super::Failure;
use super::super::table::{self, number, render, text, window_width};
use super::device::BackendKind;
use super::{Common, collectives, measure, shown};
use crate::cli::devices;
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
    if found.backend == Kind::Neuron && common.device.backend != BackendKind::Cpu {
        report.missing.push(format!(
            "graphs, which take their own flags: vidur profile graph --models {}",
            common.models.join(" ")
        ));
    } else {
        for (step, kind) in [(1, TableKind::Mlp), (2, TableKind::Attention)] {
            eprintln!("[{step} of 3] {}", kind.name());
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
    eprintln!("[3 of 3] collectives");
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
    missing(&mut report, args, &found);
    table::print(&text_of(&report))
}

/// What a simulation of this node would still lack.
fn missing(report: &mut Report, args: &Args, found: &Detection) {
    let devices = found.devices.len() as u32;
    let degrees = &args.common.tensor_parallel;
    let further: Vec<String> = std::iter::successors(Some(2_u32), |n| n.checked_mul(2))
        .take_while(|&n| n <= devices && found.backend != Kind::Cpu)
        .filter(|n| !degrees.contains(n))
        .map(|n| n.to_string())
        .collect();
    if !further.is_empty() {
        report.missing.push(format!(
            "operators at tensor parallel {}: the same command with --tensor-parallel {}",
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
            "the engine's time on the host, which needs a running engine: vidur profile cpu-overhead \
             --models {model} --network-device {host} --engine-log FILE"
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
    out
}
