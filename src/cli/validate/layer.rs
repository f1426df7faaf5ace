//! `vidur validate layer`: whole layers on this machine against the sum of their predicted operators.

use crate::cli::Failure;
use crate::cli::table::{number, text};
use crate::cost::{BatchShape, CostModel, PrefillChunk};
use crate::dataset::location::ProfileRoot;
use crate::ids::StageId;
use crate::predictor::{self, Limits, PredictorConfig, System, TableCache};
use crate::profiling::backend::cpu::CpuBackend;
use crate::profiling::backend::{Backend, Effort, LayerBatch, Purpose, Shard};
use crate::profiling::host::Host;
use crate::run::lookup;
use crate::spec::device::DeviceSku;
use crate::spec::model::ModelSpec;
use crate::spec::parallel::Parallelism;
use crate::stats;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Model that was profiled on this machine
    #[arg(long, value_name = "ORG/MODEL")]
    model: String,
    /// Name of this machine's profiles [default: from the CPU's model and threads]
    #[arg(long, value_name = "NAME")]
    sku: Option<String>,
    /// Folder of profiles [default: data/profiling, else the built-in ones]
    #[arg(long, value_name = "DIR")]
    profiling_dir: Option<PathBuf>,
    /// Folder of models that take precedence over the built-in ones
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Threads of the kernels [default: one per physical core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    threads: Option<u32>,
    /// Times that every batch is measured, with the others in between: machines drift
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
}

/// One batch, measured and predicted, milliseconds per layer.
struct Case {
    batch: LayerBatch,
    measured: f64,
    /// Half the distance between the quartiles of the samples, as a share of their median.
    noise: f64,
    predicted: f64,
}

/// Batches whose shapes are on none of the profiler's grids: prompts, decodes and both together.
fn batches(max_context: u64) -> Vec<LayerBatch> {
    let prompt = |chunk, kv| LayerBatch { prefills: vec![(chunk, kv)], decodes: vec![] };
    let decode = |n: usize, kv| LayerBatch { prefills: vec![], decodes: vec![kv; n] };
    let mut batches = vec![
        prompt(7, 0),
        prompt(20, 0),
        prompt(43, 0),
        prompt(90, 0),
        prompt(150, 0),
        prompt(300, 0),
        prompt(450, 0),
        prompt(700, 0),
        prompt(1100, 0),
        prompt(100, 330),
        prompt(300, 900),
        decode(1, 180),
        decode(1, 1500),
        decode(3, 90),
        decode(3, 700),
        decode(6, 330),
        decode(11, 180),
        decode(11, 900),
        decode(22, 450),
        decode(27, 1100),
        LayerBatch { prefills: vec![(120, 0)], decodes: vec![350; 5] },
        LayerBatch { prefills: vec![(450, 0)], decodes: vec![600; 12] },
    ];
    batches.retain(|b| {
        b.prefills
            .iter()
            .map(|p| p.0 + p.1)
            .chain(b.decodes.iter().copied())
            .all(|n| n < max_context)
    });
    batches
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let host = Host::detect();
    let mut backend = CpuBackend::new(&host, args.threads, 42).map_err(Failure::user)?;
    let sku = args.sku.clone().unwrap_or_else(|| host.sku(backend.device().threads));
    let catalog = crate::cli::devices::open(args.data_dir.as_deref())?;
    let model = catalog.model(&args.model).map_err(Failure::user)?;
    let root =
        lookup::profile_root(args.profiling_dir.as_deref(), &sku, &model).map_err(Failure::user)?;
    let device = lookup::device(&sku, &catalog, &root).map_err(Failure::user)?;
    let (one, two) = (predictor(&root, &model, &device, 1)?, predictor(&root, &model, &device, 2)?);
    let shard = Shard { model: model.clone(), tensor_parallel: 1 };
    backend.prepare(&shard, Purpose::Layers).map_err(Failure::user)?;
    let time = Duration::from_millis(700);
    let effort = Effort { repeats: 5, min_time: time, max_time: 3 * time };
    let batches = batches(u64::from(model.max_position_embeddings));
    let mut samples = vec![Vec::new(); batches.len()];
    for round in 1..=args.rounds {
        eprintln!("round {round} of {}: {} batches", args.rounds, batches.len());
        for (batch, samples) in batches.iter().zip(&mut samples) {
            samples.extend(backend.measure_layers(batch, effort).map_err(Failure::user)?);
        }
    }
    let mut cases = Vec::new();
    for (batch, mut samples) in batches.into_iter().zip(samples) {
        samples.sort_by(f64::total_cmp);
        let quantile = |q| stats::quantile_sorted(&samples, q).unwrap_or(f64::NAN);
        let measured = quantile(0.5);
        let noise = (quantile(0.75) - quantile(0.25)) / 2.0 / measured;
        // What a second layer adds: without embedding, final norm and LM head.
        let shape = shape_of(&batch);
        let ms = |cost: &dyn CostModel| -> f64 {
            cost.stage_breakdown(StageId(0), &shape).iter().map(|t| t.ms).sum()
        };
        let predicted = ms(&*two) - ms(&*one);
        cases.push(Case { batch, measured, noise, predicted });
    }
    crate::cli::table::print(&table(&cases))?;
    let errors: Vec<f64> = cases.iter().map(|c| stats::ape(c.measured, c.predicted)).collect();
    let worst = errors.iter().copied().fold(0.0, f64::max);
    crate::cli::table::print(&format!(
        "\nmedian error {:.1} %, mean {:.1} %, worst {:.1} % over {} batches of {} on {}\n",
        100.0 * stats::median(&errors).unwrap_or(f64::NAN),
        100.0 * stats::mean(&errors).unwrap_or(f64::NAN),
        100.0 * worst,
        cases.len(),
        model.name,
        sku
    ))
}

/// The default predictor for the first `layers` layers of the model.
fn predictor(
    root: &ProfileRoot,
    model: &ModelSpec,
    device: &DeviceSku,
    layers: u32,
) -> Result<Box<dyn CostModel>, Failure> {
    let model = ModelSpec { num_layers: layers, ..model.clone() };
    let limits = Limits { max_batch_tokens: 2048, max_batch_size: 64 };
    let config = PredictorConfig::default();
    let parallel = Parallelism::SINGLE;
    let system = System { root, model: &model, device, network_device: None, parallel };
    predictor::build(&config, &system, limits, &TableCache::off())
        .map(|(cost, _)| cost)
        .map_err(Failure::user)
}

fn shape_of(batch: &LayerBatch) -> BatchShape {
    let prefill = |&(chunk, kv): &(u64, u64)| PrefillChunk {
        kv_tokens: kv as u32,
        chunk_tokens: chunk as u32,
        completes: true,
    };
    BatchShape {
        prefills: batch.prefills.iter().map(prefill).collect(),
        num_decodes: batch.decodes.len() as u32,
        decode_kv_tokens: batch.decodes.iter().sum(),
        longest_decode: batch.decodes.iter().max().map_or(0, |&kv| kv as u32),
        padding: 0,
    }
}

fn describe(batch: &LayerBatch) -> String {
    let prompts = batch.prefills.iter().map(|&(chunk, kv)| match kv {
        0 => format!("prompt of {chunk}"),
        _ => format!("prompt chunk of {chunk} after {kv}"),
    });
    let decodes =
        batch.decodes.first().map(|kv| format!("{} decodes at {kv}", batch.decodes.len()));
    prompts.chain(decodes).collect::<Vec<_>>().join(" + ")
}

fn table(cases: &[Case]) -> String {
    let columns = [
        text("batch"),
        number("measured ms"),
        number("+-"),
        number("predicted ms"),
        number("error"),
    ];
    let rows: Vec<Vec<String>> = cases
        .iter()
        .map(|c| {
            vec![
                describe(&c.batch),
                format!("{:.3}", c.measured),
                format!("{:.1} %", 100.0 * c.noise),
                format!("{:.3}", c.predicted),
                format!("{:+.1} %", 100.0 * (c.predicted / c.measured - 1.0)),
            ]
        })
        .collect();
    crate::cli::table::render(&columns, &rows, crate::cli::table::window_width())
}
