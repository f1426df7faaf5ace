//! `vidur validate silicon`: published serving runs against simulations of the same runs.

use crate::cli::Failure;
use crate::cli::table::{self, number, text};
use crate::profiling::import::aiconfigurator::{Engine, Package};
use crate::report::fit_svg::{Panel, draw};
use crate::validate::silicon::calibrate::calibrate;
use crate::validate::silicon::errors::{self, Errors};
use crate::validate::silicon::predict::{Bench, Prediction, Times};
use crate::validate::silicon::rows::{self, Benchmark, Row};
use crate::validate::silicon::setups::{self, Setups};
use std::path::PathBuf;

/// Arguments as typed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The wheel of aiconfigurator-core 0.12.0, or the folder it was unpacked to: pip download
    /// --no-deps aiconfigurator-core==0.12.0
    #[arg(long, value_name = "WHEEL_OR_DIR")]
    from: PathBuf,
    /// How the runs were made: protocols, engine settings, calibrated constants [default: built in]
    #[arg(long, value_name = "FILE")]
    setups: Option<PathBuf>,
    /// Write a row per run: what was measured and predicted, or why not
    #[arg(long, value_name = "CSV")]
    output: Option<PathBuf>,
    /// Draw predicted against measured
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Look for the constants that no source states on the H100 runs, print them and the setups with
    /// them, and go on with those
    #[arg(long)]
    calibrate: bool,
    /// Folder of models and devices that take precedence over the built-in ones
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let mut setups = load_setups(args)?;
    let package = Package::open(&args.from).map_err(Failure::user)?;
    let rows = rows::read(&package).map_err(Failure::user)?;
    let catalog = crate::cli::devices::open(args.data_dir.as_deref())?;
    let bench = Bench::new(&rows, &setups, &package, &catalog).map_err(Failure::user)?;
    if args.calibrate {
        let (better, found) = calibrate(&bench, &setups);
        for f in found {
            let (setup, constant) = (f.setup, f.constant);
            eprintln!("{setup}: {constant} {} -> {} ({} runs)", f.before, f.after, f.rows);
        }
        table::print_yaml(&better)?;
        setups = better;
    }
    let predictions = bench.predict(&setups).map_err(Failure::user)?;
    if let Some(path) = &args.output {
        super::silicon_csv::write(path, &rows, &predictions).map_err(Failure::user)?;
    }
    if let Some(path) = &args.svg {
        let svg = picture(&rows, &predictions).map_err(Failure::internal)?;
        super::write_whole(path, svg.as_bytes())
            .map_err(|e| Failure::user(format!("{}: cannot be written: {e}", path.display())))?;
    }
    table::print(&report(&rows, &predictions))
}

/// Predicted against measured, a panel for each engine and figure.
fn picture(rows: &[Row], predictions: &[Prediction]) -> Result<String, Box<dyn std::error::Error>> {
    let mut panels = Vec::new();
    for engine in Engine::ALL {
        let said: Vec<(&Row, Times)> = rows
            .iter()
            .zip(predictions)
            .filter(|(row, _)| row.engine == engine)
            .filter_map(|(row, p)| Some((row, p.simulated.clone().ok()?)))
            .collect();
        let name = engine.name();
        panels.push(Panel {
            title: format!("{name}: time to first token"),
            subtitle: format!("{} runs", said.len()),
            pairs: said.iter().map(|(r, t)| (r.ttft_ms, t.ttft_ms)).collect(),
        });
        panels.push(Panel {
            title: format!("{name}: time per further token"),
            subtitle: format!("{} runs", said.len()),
            pairs: said.iter().map(|(r, t)| (r.tpot_ms, t.tpot_ms)).collect(),
        });
    }
    let legend = "Each dot a run: predicted (up) against measured (right), ms. Dashed: 10 % off.";
    draw("Measured serving runs of aiconfigurator-core, simulated", legend, &panels)
}

fn load_setups(args: &Args) -> Result<Setups, Failure> {
    let (text, name) = match &args.setups {
        None => (setups::BUILT_IN.to_owned(), "the built-in setups".to_owned()),
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|e| {
                Failure::user(format!("{}: {e}; expected a file of setups", path.display()))
            })?;
            (text, path.display().to_string())
        }
    };
    Setups::parse(&text, &name).map_err(Failure::user)
}

/// Errors of every slice of the rows.
fn report(rows: &[Row], predictions: &[Prediction]) -> String {
    let of = |f: fn(&Prediction) -> &Result<Times, String>| -> Vec<&Result<Times, String>> {
        predictions.iter().map(f).collect()
    };
    let simulated = of(|p| &p.simulated);
    let sheets = of(|p| &p.roofline_simulated);
    let formula = of(|p| &p.roofline);
    let mut lines = Vec::new();
    let mut slice = |name: &dyn Fn(&Row) -> String| {
        let mine = errors::by(rows, &simulated, name);
        let (sheets, formula) = (errors::by(rows, &sheets, name), errors::by(rows, &formula, name));
        for (group, e) in mine {
            lines.push(line(&group, &e, &sheets[&group], &formula[&group]));
        }
    };
    slice(&|_| "all".into());
    slice(&|r| r.engine.name().into());
    slice(&|r| format!("{} {}", r.engine.name(), r.system));
    slice(&|r| r.model.rsplit('/').next().unwrap_or_default().into());
    slice(&|r| match r.benchmark {
        Benchmark::InferenceX => format!("InferenceX, {}", r.engine.name()),
        Benchmark::Grid => format!("grid, {}", r.engine.name()),
    });
    slice(&|r| if r.system == "h100_sxm" { "calibrated on" } else { "held out" }.into());
    let columns = [
        text("runs"),
        number("count"),
        number("refused").expendable(1),
        number("TPOT %"),
        number("TTFT %"),
        number("mean TPOT %").expendable(2),
        number("mean TTFT %").expendable(2),
        number("TPOT bias").expendable(3),
        number("TTFT bias").expendable(3),
        number("roofline+sim"),
        number("roofline"),
    ];
    table::render(&columns, &lines, table::window_width())
}

fn line(name: &str, e: &Errors, sheets: &Errors, formula: &Errors) -> Vec<String> {
    let percent = |x: f64| format!("{:.1}", 100.0 * x);
    let signed = |x: f64| format!("{:+.1}", 100.0 * x);
    let both = |e: &Errors| format!("{:.1} / {:.1}", 100.0 * e.tpot_median, 100.0 * e.ttft_median);
    vec![
        name.to_owned(),
        e.rows.to_string(),
        e.refused.to_string(),
        percent(e.tpot_median),
        percent(e.ttft_median),
        percent(e.tpot_mean),
        percent(e.ttft_mean),
        signed(e.tpot_bias),
        signed(e.ttft_bias),
        both(sheets),
        both(formula),
    ]
}
