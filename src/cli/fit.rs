//! `vidur fit`: how far is a predictor off at points that it has not seen?

use super::Failure;
use super::table::{number, text};
use crate::dataset::location::ProfileKind;
use crate::dataset::read::{MissingValues, OpSamples};
use crate::predictor::cv::{HeldOut, Pair, held_out};
use crate::predictor::features::axes;
use crate::predictor::forest::ForestSettings;
use crate::predictor::provenance::{MeasuredRange, measured};
use crate::predictor::roofline::{Roofline, RooflineContext};
use crate::predictor::{OperatorSettings, PredictorConfig, System, fit, load};
use crate::report::fit_svg::{Panel, draw};
use crate::run::lookup;
use crate::spec::catalog::Catalog;
use crate::spec::ops::{Feature, Op};
use crate::spec::parallel::Parallelism;
use clap::ValueEnum;
use rayon::prelude::*;
use std::io::Write as _;
use std::path::PathBuf;

const LEGEND: &str =
    "Held-out points: predicted (up) against measured (right), ms. Dashed: 10 % off.";

/// Fit a predictor to the profiles of a model on a device, and report its error on points that
/// were held out, operator by operator.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Model, as `vidur models` lists it.
    #[arg(long)]
    model: String,
    /// Device, as `vidur devices` lists it.
    #[arg(long)]
    sku: String,
    /// Folder of profiles [default: data/profiling, else the built-in ones]
    #[arg(long, value_name = "DIR")]
    profiling_dir: Option<PathBuf>,
    /// Folder of models and devices that take precedence over the built-in ones
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Devices that share each layer.
    #[arg(long, default_value_t = 1, value_name = "N")]
    tensor_parallel: u32,
    /// How these devices are wired: a folder under network/.
    #[arg(long, value_name = "NAME")]
    network_device: Option<String>,
    /// Method of prediction.
    #[arg(long, value_enum, default_value_t = Method::Interpolate)]
    predictor: Method,
    /// Parts that the points are dealt into; each is held out once.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(2..), value_name = "N")]
    folds: u32,
    /// What to do with rows whose time is empty, NaN, or impossibly short.
    #[arg(long, value_enum, default_value_t = Missing::Refuse)]
    missing_values: Missing,
    /// Fit the engine's time on the host too (cpu_overheads.csv).
    #[arg(long)]
    cpu_overhead: bool,
    /// New folder for fit.svg [default: runs/<time>-fit-<model>-<sku>]
    #[arg(long, short, value_name = "DIR")]
    output_dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Method {
    /// Between measured points, and by the roofline outside them.
    Interpolate,
    /// Polynomial regression.
    Linear,
    /// Random forest with Vidur's settings.
    Forest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Missing {
    /// Stop and name them.
    Refuse,
    /// Leave them out and warn.
    Skip,
}

pub fn run(args: Args) -> Result<(), Failure> {
    let catalog = Catalog::open(args.data_dir.as_deref());
    let model = catalog.model(&args.model).map_err(Failure::user)?;
    let root = lookup::profile_root(args.profiling_dir.as_deref(), &args.sku, &model)
        .map_err(Failure::user)?;
    let device = lookup::device(&args.sku, &catalog, &root).map_err(Failure::user)?;
    let has = |kind| root.has(kind, &device.names(), &model.names());
    if has(ProfileKind::Graph) && !has(ProfileKind::Mlp) {
        return Err(Failure::user(format!(
            "{} on {} is profiled as whole graphs, which are looked up: there is nothing to fit, and \
             `vidur simulate` takes them as they are",
            model.name, device.name
        )));
    }
    // Taken before the work, so that a folder that cannot be written costs no time.
    let name = format!("fit-{}-{}", model.short_name(), device.name);
    let dir = super::new_run_dir(args.output_dir.as_deref(), &name)?;
    let config = config_of(&args);
    let parallel = Parallelism { tensor_parallel: args.tensor_parallel, pipeline_parallel: 1 };
    let system = System {
        root: &root,
        model: &model,
        device: &device,
        network_device: args.network_device.as_deref(),
        parallel,
    };
    let profiles = load(&config, &system).map_err(Failure::user)?;
    for line in profiles.warnings.iter().chain(&profiles.notes) {
        eprintln!("note: {line}");
    }

    let context = RooflineContext::new(&model, parallel, &device);
    let folds = args.folds as usize;
    let results = profiles
        .ops
        .par_iter()
        .map(|samples| {
            let roofline = Roofline::new(samples.op, &context);
            held_out(samples, folds, |train| {
                let train = OpSamples { points: train.to_vec(), ..samples.clone() };
                fit(&config, &train, &roofline)
            })
        })
        .collect::<Result<Vec<HeldOut>, _>>()
        .map_err(Failure::user)?;

    let fitted: Vec<(&OpSamples, &HeldOut)> = profiles.ops.iter().zip(&results).collect();
    super::table::print(&format!("{}\n", table(&fitted)))?;
    let heading = format!(
        "{} on {}, tensor parallel {}: {}, {folds} folds",
        model.name,
        device.name,
        args.tensor_parallel,
        config.name()
    );
    let svg = draw(&heading, LEGEND, &panels(&fitted)).map_err(Failure::internal)?;
    dir.write("fit.svg", |out| out.write_all(svg.as_bytes())).map_err(Failure::user)?;
    let path = dir.finish().map_err(Failure::user)?;
    eprintln!("wrote {}", path.join("fit.svg").display());
    Ok(())
}

fn config_of(args: &Args) -> PredictorConfig {
    let missing_values = match args.missing_values {
        Missing::Refuse => MissingValues::Refuse,
        Missing::Skip => MissingValues::Skip,
    };
    let cpu_overhead = args.cpu_overhead;
    let settings = OperatorSettings { missing_values, cpu_overhead, ..OperatorSettings::default() };
    match args.predictor {
        Method::Interpolate => PredictorConfig::Interpolate(settings),
        Method::Linear => PredictorConfig::Linear(settings),
        Method::Forest => PredictorConfig::Forest(ForestSettings {
            missing_values,
            // Compared with the others on the same rows.
            implausible: settings.implausible(),
            cpu_overhead,
            ..ForestSettings::default()
        }),
    }
}

fn table(fitted: &[(&OpSamples, &HeldOut)]) -> String {
    let columns = [
        text("operator"),
        number("rows").expendable(2),
        number("points"),
        text("measured").expendable(3),
        number("MAPE %"),
        number("median %"),
        number("worst %"),
        text("worst at").expendable(4),
        number("line").expendable(1),
    ];
    let rows: Vec<Vec<String>> = fitted
        .iter()
        .map(|(samples, result)| {
            let (points, ranges) = measured(samples);
            let percent = |e: Option<f64>| e.map_or("-".into(), |e| format!("{e:.1}"));
            let worst = result.worst();
            vec![
                samples.op.to_string(),
                samples.points.len().to_string(),
                points.to_string(),
                ranges.iter().map(range).collect::<Vec<_>>().join(", "),
                percent(result.mape_percent()),
                percent(result.median_ape_percent()),
                percent(worst.map(|p| 100.0 * p.ape())),
                worst.map_or("-".into(), |p| worst_point(samples.op, p)),
                worst.map_or("-".into(), |p| p.line.to_string()),
            ]
        })
        .collect();
    super::table::render(&columns, &rows, super::table::window_width())
}

fn range(r: &MeasuredRange) -> String {
    format!("{} {}..{}", r.feature, r.min, r.max)
}

fn worst_point(op: Op, p: &Pair) -> String {
    let (row, x) = axes(p.input);
    let place = match op.feature() {
        _ if op.is_collective() => format!("{x} bytes"),
        _ if op == Op::Host => format!("{x} sequences"),
        Feature::Tokens | Feature::SampledTokens => format!("{x} tokens"),
        Feature::Prefill => format!("chunk {row}, kv {x}"),
        Feature::Decode => format!("{row} sequences, kv {x}"),
    };
    format!("{place}: {:.4} ms, predicted {:.4}", p.measured_ms, p.predicted_ms)
}

fn panels(fitted: &[(&OpSamples, &HeldOut)]) -> Vec<Panel> {
    let panel = |(samples, result): &(&OpSamples, &HeldOut)| Panel {
        title: samples.op.to_string(),
        subtitle: match (result.mape_percent(), result.median_ape_percent()) {
            (Some(mape), Some(median)) => {
                format!("MAPE {mape:.1} %, median {median:.1} %, {} points", result.pairs.len())
            }
            _ => String::new(),
        },
        pairs: result.pairs.iter().map(|p| (p.measured_ms, p.predicted_ms)).collect(),
    };
    fitted.iter().map(panel).collect()
}
