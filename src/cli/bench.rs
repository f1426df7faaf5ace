//! `vidur bench`: how fast does the simulator itself run here?

use super::Failure;
use super::table::{number, text};
use crate::metrics::{Recorder, Summary};
use crate::report::request_csv;
use crate::run::{Run, RunConfig};
use crate::sim::{self, Silent};
use crate::spec::catalog::Catalog;
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
}

/// One kind of run, to be timed.
type Work<'a> = &'a mut dyn FnMut() -> Result<(), Failure>;

pub fn run(args: Args) -> Result<(), Failure> {
    let (yaml, name) = super::simulate::config_text(args.config.as_deref())?;
    let config = RunConfig::load(&yaml, &name, &args.set).map_err(Failure::user)?;
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
    let mut rows = Vec::new();
    let mut batches = 0;
    let mut kinds: [(&str, Work<'_>); 3] = [
        ("no metrics", &mut || {
            batches = simulate(None)?.num_batches;
            Ok(())
        }),
        ("summary", &mut || {
            let mut recorder = Recorder::with(run.sim.num_replicas, run.record_options());
            let outcome = simulate(Some(&mut recorder))?;
            let summary = Summary::of(&recorder, run.cost.num_stages(), outcome.end);
            std::hint::black_box(summary);
            Ok(())
        }),
        ("summary and request_metrics.csv", &mut || {
            let mut recorder = Recorder::with(run.sim.num_replicas, run.record_options());
            let outcome = simulate(Some(&mut recorder))?;
            let summary = Summary::of(&recorder, run.cost.num_stages(), outcome.end);
            std::hint::black_box(summary);
            let file = tempfile::tempfile().map_err(Failure::user)?;
            let mut out = BufWriter::with_capacity(1 << 16, file);
            request_csv::write(&recorder.requests, &mut out)
                .and_then(|()| out.flush())
                .map_err(Failure::user)
        }),
    ];
    for (kind, work) in &mut kinds {
        let mut times = Vec::new();
        for _ in 0..args.runs {
            let begin = Instant::now();
            work()?;
            times.push(begin.elapsed());
        }
        times.sort_unstable();
        let median = times[times.len() / 2];
        let ms = |d: Duration| format!("{:.2}", d.as_secs_f64() * 1e3);
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
