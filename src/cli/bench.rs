//! `vidur bench`: how fast does the simulator itself run here?

use super::Failure;
use super::table::{number, text};
use crate::metrics::{Recorder, Summary};
use crate::report::request_csv;
use crate::run::{Run, RunConfig};
use crate::sim::{self, Silent};
use crate::spec::catalog::Catalog;
use crate::workload::WorkloadConfig;
use std::io::{BufWriter, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Time the simulation of a config, once per kind of output.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// YAML file that describes the run [default: the built-in example]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Change one field: path=value, the value in YAML; may be repeated
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// Runs of each kind; the median counts
    #[arg(long, default_value_t = 9, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Time the summary alone for each of these numbers of requests of a synthetic workload
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    num_requests: Vec<u32>,
    /// Time the summary alone for each of these numbers of replicas, the rate of arrivals in
    /// proportion
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    num_replicas: Vec<u32>,
}

/// One kind of run, to be timed.
type Work<'a> = &'a mut dyn FnMut() -> Result<(), Failure>;

pub fn run(args: Args) -> Result<(), Failure> {
    let (yaml, name) = super::simulate::config_text(args.config.as_deref())?;
    let config = RunConfig::load(&yaml, &name, &args.set).map_err(Failure::user)?;
    if !args.num_requests.is_empty() || !args.num_replicas.is_empty() {
        return scale(config, args);
    }
    let begin = Instant::now();
    let run = Run::resolve(config, &Catalog::open(None)).map_err(Failure::user)?;
    let resolved = begin.elapsed();
    let n = run.workload.requests.len();
    let simulate = |recorder: Option<&mut Recorder>| {
        let outcome = match recorder {
            None => sim::run(&run.sim, &*run.cost, &run.workload, &mut Silent),
            Some(recorder) => sim::run(&run.sim, &*run.cost, &run.workload, recorder),
        };
        outcome.map_err(Failure::user)
    };
    let summarise = || {
        let mut recorder = Recorder::with(run.sim.num_replicas, run.record_options());
        let outcome = simulate(Some(&mut recorder))?;
        std::hint::black_box(Summary::of(&recorder, run.cost.num_stages(), outcome.end));
        Ok::<_, Failure>(recorder)
    };
    let mut rows = Vec::new();
    let mut batches = 0;
    let mut kinds: [(&str, Work<'_>); 3] = [
        ("no metrics", &mut || {
            batches = simulate(None)?.num_batches;
            Ok(())
        }),
        ("summary", &mut || summarise().map(drop)),
        ("summary and request_metrics.csv", &mut || {
            let recorder = summarise()?;
            let file = tempfile::tempfile().map_err(Failure::user)?;
            let mut out = BufWriter::with_capacity(1 << 16, file);
            request_csv::write(&recorder.requests, &mut out)
                .and_then(|()| out.flush())
                .map_err(Failure::user)
        }),
    ];
    for (kind, work) in &mut kinds {
        let times = time(args.runs, work)?;
        let median = times[times.len() / 2];
        rows.push(vec![
            (*kind).to_owned(),
            ms(times[0]),
            ms(median),
            ms(times[times.len() - 1]),
            format!("{:.0}", n as f64 / median.as_secs_f64()),
        ]);
    }
    let columns =
        [text("output"), number("ms min"), number("median"), number("max"), number("requests/s")];
    let table = super::table::render(&columns, &rows, super::table::window_width());
    super::table::print(&format!(
        "{n} requests, {batches} batches; config read and fitted in {:.1} ms\n{table}\n",
        resolved.as_secs_f64() * 1e3
    ))
}

/// `runs` times of `work`, ascending.
fn time(
    runs: u32,
    mut work: impl FnMut() -> Result<(), Failure>,
) -> Result<Vec<Duration>, Failure> {
    let mut times = Vec::new();
    for _ in 0..runs.max(1) {
        let begin = Instant::now();
        work()?;
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}

fn ms(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64() * 1e3)
}

/// The time of a run by its size.
fn scale(config: RunConfig, args: Args) -> Result<(), Failure> {
    let WorkloadConfig::Synthetic(synthetic) = &config.workload else {
        return Err(Failure::user(
            "--num-requests and --num-replicas need a workload of any size; expected \
             workload.synthetic, not a trace",
        ));
    };
    let or = |asked: &[u32], own| if asked.is_empty() { vec![own] } else { asked.to_vec() };
    let counts = or(&args.num_requests, synthetic.num_requests);
    let fleets = or(&args.num_replicas, config.cluster.num_replicas);
    let catalog = Catalog::open(None);
    let mut rows = Vec::new();
    for num_replicas in fleets {
        for &num_requests in &counts {
            let mut config = config.clone();
            if let WorkloadConfig::Synthetic(synthetic) = &mut config.workload {
                synthetic.num_requests = num_requests;
                let factor = f64::from(num_replicas) / f64::from(config.cluster.num_replicas);
                synthetic.arrivals.scale_rate(factor);
            }
            config.cluster.num_replicas = num_replicas;
            let run = Run::resolve(config, &catalog).map_err(Failure::user)?;
            let mut batches = 0;
            let times = time(args.runs, || {
                let mut recorder = Recorder::with(num_replicas, run.record_options());
                let outcome = sim::run(&run.sim, &*run.cost, &run.workload, &mut recorder)
                    .map_err(Failure::user)?;
                batches = outcome.num_batches;
                std::hint::black_box(Summary::of(&recorder, run.cost.num_stages(), outcome.end));
                Ok(())
            })?;
            let median = times[times.len() / 2];
            rows.push(vec![
                num_replicas.to_string(),
                num_requests.to_string(),
                batches.to_string(),
                ms(median),
                format!("{:.2}", median.as_secs_f64() * 1e6 / f64::from(num_requests)),
                peak_mib().map_or_else(|| "-".into(), |mib| format!("{mib:.0}")),
            ]);
        }
    }
    let columns = [
        number("replicas"),
        number("requests"),
        number("batches"),
        number("ms"),
        number("us/request"),
        number("peak MiB so far"),
    ];
    let table = super::table::render(&columns, &rows, super::table::window_width());
    super::table::print(&format!("{table}\n"))
}

/// Most memory that this process has held so far, where the system says.
fn peak_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()? / 1024.0)
}
