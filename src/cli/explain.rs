//! `vidur explain`: where the time went, what is short, and what to change.

use super::Failure;
use super::table::{number, text, window_width};
use crate::explain::{self, Breakdown, Explanation, Outcome, Part, Tried};
use crate::predictor::TableCache;
use crate::run::{Run, RunConfig};
use crate::sim::Silent;
use crate::spec::catalog::Catalog;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Say where each millisecond of a run went, and which change would help most.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The run is simulated again from its config.yml: the same config gives the \
same run. Every nanosecond of every request is booked on exactly one part, so that parts add up."
)]
pub struct Args {
    /// Folder of a run, or the YAML file of one [default: the built-in example]
    #[arg(value_name = "RUN")]
    run: Option<PathBuf>,
    /// Change one field first: path=value, the value in YAML; may be repeated
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// Do not simulate changes
    #[arg(long)]
    no_changes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Folder of models and devices that take precedence over the built-in ones
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<(), Failure> {
    let folder = args.run.as_deref().filter(|path| path.is_dir());
    let file = folder.map(|dir| dir.join("config.yml")).or_else(|| args.run.clone());
    let (yaml, name) = super::simulate::config_text(file.as_deref())?;
    let config = RunConfig::load(&yaml, &name, &args.set).map_err(Failure::user)?;
    let catalog = Catalog::open(args.data_dir.as_deref());
    let cache = TableCache::of_user();
    let run = Run::resolve_with(config, &catalog, &cache).map_err(Failure::user)?;
    super::note_cache(&cache);
    let (found, ..) =
        explain::explain(&run, run.record_options(), Silent).map_err(Failure::user)?;
    if let Some(dir) = folder.filter(|_| args.set.is_empty()) {
        warn_if_changed(dir, &found)?;
    }
    let now = Outcome::of(&run, &found.summary);
    let tried = match args.no_changes {
        true => Vec::new(),
        false => explain::try_changes(&run.config, &catalog, &cache),
    };
    if args.json {
        let value = json!({"explanation": found, "now": now, "changes": tried});
        return super::table::print_json(&value);
    }
    let mut shown = super::simulate::headline(&run);
    shown.push('\n');
    shown.push_str(&parts_table(&found));
    let binding = &found.binding;
    let _ = write!(shown, "\nshort of     {}: {}\n", binding.resource, binding.because);
    let resources: Vec<String> = found
        .resources
        .iter()
        .map(|(r, share)| format!("{} {:.0} %", r.name(), 100.0 * share))
        .collect();
    let _ = writeln!(shown, "busy time    {}", resources.join(", "));
    if !tried.is_empty() {
        shown.push('\n');
        shown.push_str(&changes_table(&now, &tried));
        shown.push_str(&advice(&now, &tried));
    }
    super::table::print(&shown)
}

/// Says so when the run cannot be repeated as it was: the program or the profiles have changed.
fn warn_if_changed(dir: &Path, found: &Explanation) -> Result<(), Failure> {
    let path = dir.join("summary.json");
    let Ok(text) = std::fs::read_to_string(&path) else { return Ok(()) };
    let value: Value = serde_json::from_str(&text)
        .map_err(|e| Failure::user(format!("{}: {e}; expected a run's summary", path.display())))?;
    let then = value["summary"]["latency"]["e2e_ms"]["mean"].as_f64();
    let now = found.summary.latency.e2e_ms.map(|d| d.mean);
    if let (Some(then), Some(now)) = (then, now)
        && then != now
    {
        eprintln!(
            "warning: {} says {then:.3} ms mean end-to-end latency and its config now gives {now:.3} \
             ms: the program or the profiles have changed since",
            path.display()
        );
    }
    Ok(())
}

fn parts_table(found: &Explanation) -> String {
    let columns = [
        text("milliseconds"),
        number("TTFT"),
        number("slowest 10%").expendable(1),
        number("TPOT"),
        number("E2E"),
        number("slowest 10% "),
        number("of E2E"),
    ];
    let breakdowns: [&Breakdown; 5] =
        [&found.ttft, &found.ttft_slowest_tenth, &found.tpot, &found.e2e, &found.e2e_slowest_tenth];
    let ms = |v: f64| if v == 0.0 { "-".to_owned() } else { crate::report::text::number(v) };
    let mut rows = Vec::new();
    for part in Part::ALL {
        let of = |b: &Breakdown| b.parts_ms.iter().find(|p| p.0 == part).map_or(0.0, |p| p.1);
        if breakdowns.iter().all(|b| of(b) == 0.0) {
            continue;
        }
        let mut row = vec![part.name().to_owned()];
        row.extend(breakdowns.iter().map(|b| ms(of(b))));
        row.push(format!("{:.1} %", 100.0 * of(&found.e2e) / found.e2e.total_ms));
        rows.push(row);
    }
    let mut total = vec!["in all".to_owned()];
    total.extend(breakdowns.iter().map(|b| ms(b.total_ms)));
    total.push("100 %".to_owned());
    rows.push(total);
    super::table::render(&columns, &rows, window_width())
}

fn changes_table(now: &Outcome, tried: &[Tried]) -> String {
    let objectives = now.good_percent.is_some();
    let mut columns = vec![
        text("one change, simulated"),
        number("devices"),
        number("TTFT"),
        number("TPOT"),
        number("E2E"),
    ];
    if objectives {
        columns.push(number("good"));
    }
    let row = |name: String, outcome: &Outcome| {
        let ms = |own: Option<f64>, base: Option<f64>| match (own, base) {
            (Some(own), Some(base)) if own != base && base > 0.0 => {
                format!("{:+.1} %", 100.0 * (own / base - 1.0))
            }
            (Some(own), _) if std::ptr::eq(outcome, now) => {
                format!("{} ms", crate::report::text::number(own))
            }
            (Some(_), _) => "same".into(),
            (None, _) => "-".into(),
        };
        let mut cells = vec![
            name,
            outcome.num_devices.to_string(),
            ms(outcome.ttft_ms, now.ttft_ms),
            ms(outcome.tpot_ms, now.tpot_ms),
            ms(outcome.e2e_ms, now.e2e_ms),
        ];
        if objectives {
            cells.push(outcome.good_percent.map_or("-".into(), |p| format!("{p:.1} %")));
        }
        cells
    };
    let mut rows = vec![row("(as it is)".into(), now)];
    let mut refused = String::new();
    for t in tried {
        match &t.outcome {
            Ok(outcome) => rows.push(row(t.change.sets.join(" "), outcome)),
            Err(reason) => {
                let _ = writeln!(refused, "not possible: {}: {reason}", t.change.sets.join(" "));
            }
        }
    }
    let mut out = super::table::render(&columns, &rows, window_width());
    if !refused.is_empty() {
        out.push('\n');
        out.push_str(&refused);
    }
    out
}

/// The change that helps most on the same devices, and with more of them.
fn advice(now: &Outcome, tried: &[Tried]) -> String {
    let best = |more_devices: bool| {
        let outcomes = tried.iter().filter_map(|t| Some((&t.change, t.outcome.as_ref().ok()?)));
        outcomes
            .filter(|(change, outcome)| {
                change.more_devices == more_devices && outcome.clearly_better_than(now)
            })
            .reduce(|a, b| if b.1.better_than(a.1) { b } else { a })
    };
    let gain = |outcome: &Outcome| match (outcome.good_percent, now.good_percent) {
        (Some(good), Some(was)) if good != was => {
            format!("good requests {was:.1} % -> {good:.1} %")
        }
        _ => match (outcome.e2e_ms, now.e2e_ms) {
            (Some(ms), Some(was)) => format!("mean E2E {:+.1} %", 100.0 * (ms / was - 1.0)),
            _ => String::new(),
        },
    };
    let mut out = String::from("\n");
    match best(false) {
        Some((change, outcome)) => {
            let sets = change.sets.iter().map(|s| format!("--set '{s}'")).collect::<Vec<_>>();
            let _ = writeln!(out, "would help   {}  ({})", sets.join(" "), gain(outcome));
        }
        None => out.push_str("would help   nothing clearly, on the same devices\n"),
    }
    if let Some((change, outcome)) = best(true) {
        let sets = change.sets.iter().map(|s| format!("--set '{s}'")).collect::<Vec<_>>();
        let _ = writeln!(
            out,
            "would cost   {} devices in place of {}: {}  ({})",
            outcome.num_devices,
            now.num_devices,
            sets.join(" "),
            gain(outcome)
        );
    }
    out
}
