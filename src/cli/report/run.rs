//! The report of a run: simulated again from its config, with everything watched.

use crate::cli::Failure;
use crate::explain::{self, Breakdown, Explanation, Outcome, Part, Tried};
use crate::metrics::{Distribution, Figure, Levels, RecordOptions, Recorder, Series, StageSpan};
use crate::predictor::TableCache;
use crate::report::cdf_svg;
use crate::report::html::charts::{self, Block, Interval};
use crate::report::html::{Cell, Page, Stretch, Table};
use crate::report::text::number;
use crate::run::{Run, RunConfig};
use crate::spec::catalog::Catalog;
use serde_json::Value;
use std::path::Path;

/// Batches on stages that are kept to choose a window from.
const MAX_SPANS: usize = 2_000_000;
/// Batches on stages that the timeline shows at most.
const SHOWN_SPANS: usize = 600;
/// Stages that the timeline shows at most.
const SHOWN_LANES: usize = 24;

/// The page of the run in `folder`.
///
/// # Errors
/// When its config does not run any more.
pub fn page(
    folder: &Path,
    written: &Value,
    catalog: &Catalog,
    cache: &TableCache,
) -> Result<String, Failure> {
    let file = folder.join("config.yml");
    let (yaml, name) = crate::cli::simulate::config_text(Some(&file))?;
    let config = RunConfig::load(&yaml, &name, &[]).map_err(Failure::user)?;
    let run = Run::resolve_with(config, catalog, cache).map_err(Failure::user)?;
    let options = RecordOptions { max_spans: MAX_SPANS, ..run.record_options() };
    let levels = Levels::new(run.sim.num_replicas);
    let (found, recorder, levels) =
        explain::explain(&run, options, levels).map_err(Failure::user)?;
    let tried = explain::try_changes(&run.config, catalog, cache);

    let headline = crate::cli::simulate::headline(&run);
    // The terminal's lines are cut to its width; a page has its own.
    let flat = headline.replace('\n', " ");
    let (title, rest) = flat.split_once(" scheduler ").unwrap_or((&flat, ""));
    let mut page = Page::new(title, rest);
    let then = written["summary"]["latency"]["e2e_ms"]["mean"].as_f64();
    if then.is_some() && then != found.summary.latency.e2e_ms.map(|d| d.mean) {
        page.warning(
            "The folder's summary.json differs from what its config gives now: the program or the \
             profiles have changed since it was written. This page shows what it gives now.",
        );
    }
    for warning in &run.provenance.warnings {
        page.warning(warning);
    }
    tiles(&mut page, &found);
    page.heading("Latency");
    page.table(&latencies(&found));
    page.charts(&curves(&recorder)?);
    page.heading("Where the time goes");
    parts(&mut page, &found);
    page.heading("What would change it");
    changes(&mut page, &Outcome::of(&run, &found.summary), &tried);
    page.heading("Over time");
    page.charts(&courses(&run, &levels)?);
    timeline(&mut page, &run, &recorder)?;
    page.heading("Where the numbers come from");
    provenance(&mut page, &run)?;
    page.details("The config as it ran", &yaml);
    Ok(page.finish())
}

fn tiles(page: &mut Page, found: &Explanation) {
    let s = &found.summary;
    let ms = |d: Option<Distribution>, of: fn(&Distribution) -> f64| {
        d.map_or_else(|| "-".into(), |d| format!("{} ms", number(of(&d))))
    };
    let l = &s.latency;
    let mut tiles = vec![
        ("TTFT P50".to_owned(), ms(l.ttft_ms, |d| d.p50)),
        ("TTFT P90".to_owned(), ms(l.ttft_ms, |d| d.p90)),
        ("TPOT mean".to_owned(), ms(l.tpot_ms, |d| d.mean)),
        ("E2E P90".to_owned(), ms(l.e2e_ms, |d| d.p90)),
        ("requests/s".to_owned(), number(s.throughput.requests_per_s)),
        ("output tokens/s".to_owned(), number(s.throughput.output_tokens_per_s)),
        ("devices busy".to_owned(), format!("{:.1} %", s.busy_percent)),
        ("KV cache peak".to_owned(), format!("{:.1} %", s.kv_cache.peak_percent)),
        ("preemptions".to_owned(), s.preemptions.to_string()),
    ];
    if let Some(goodput) = &s.goodput {
        tiles.push(("meet the SLO".into(), format!("{:.1} %", goodput.percent)));
    }
    page.tiles(&tiles);
    page.paragraph(&format!("Short of {}: {}.", found.binding.resource, found.binding.because));
}

fn latencies(found: &Explanation) -> Table {
    let l = &found.summary.latency;
    let rows = [
        ("TTFT", l.ttft_ms),
        ("TPOT", l.tpot_ms),
        ("ITL", l.itl_ms),
        ("E2E", l.e2e_ms),
        ("queueing", l.queueing_ms),
    ];
    let columns = ["milliseconds", "mean", "std", "min", "P50", "P90", "P95", "P99", "max"];
    let row = |(name, d): (&str, Option<Distribution>)| {
        let of = |f: fn(&Distribution) -> f64| Cell::number(d.as_ref().map(f));
        let figures = [
            of(|d| d.mean),
            of(|d| d.std),
            of(|d| d.min),
            of(|d| d.p50),
            of(|d| d.p90),
            of(|d| d.p95),
            of(|d| d.p99),
            of(|d| d.max),
        ];
        (None, std::iter::once(Cell::text(name)).chain(figures).collect())
    };
    Table {
        columns: columns.iter().enumerate().map(|(i, c)| ((*c).to_owned(), i > 0)).collect(),
        rows: rows.into_iter().map(row).collect(),
        ..Table::default()
    }
}

fn curves(recorder: &Recorder) -> Result<Vec<(String, String)>, Failure> {
    let mut figures = Vec::new();
    for (title, figure) in [
        ("Time to first token", Figure::Ttft),
        ("Time per output token", Figure::Tpot),
        ("End-to-end latency", Figure::E2e),
    ] {
        let svg = cdf_svg::draw(title, recorder.curve(figure)).map_err(Failure::internal)?;
        if let Some(svg) = svg {
            figures.push((svg, String::new()));
        }
    }
    Ok(figures)
}

fn parts(page: &mut Page, found: &Explanation) {
    let breakdowns: [(&str, &Breakdown); 5] = [
        ("TTFT", &found.ttft),
        ("TTFT, slowest tenth", &found.ttft_slowest_tenth),
        ("E2E", &found.e2e),
        ("E2E, slowest tenth", &found.e2e_slowest_tenth),
        ("TPOT", &found.tpot),
    ];
    let bars: Vec<(String, Vec<Stretch>)> = breakdowns
        .iter()
        .map(|(name, b)| {
            // TTFT beside TTFT and E2E beside E2E; each kind has its own scale.
            let kind = name.get(..3);
            let longest = breakdowns
                .iter()
                .filter(|(other, _)| other.get(..3) == kind)
                .map(|(_, b)| b.total_ms)
                .fold(1e-12, f64::max);
            let stretch = |(part, ms): &(Part, f64)| Stretch {
                name: part.name().into(),
                share: ms / longest,
                colour: *part as usize,
                tip: format!(
                    "{}\n{} ms, {:.1} %",
                    part.name(),
                    number(*ms),
                    100.0 * ms / b.total_ms.max(1e-12)
                ),
            };
            let stretches = b.parts_ms.iter().filter(|p| p.1 > 0.0).map(stretch).collect();
            (format!("{name}: {} ms", number(b.total_ms)), stretches)
        })
        .collect();
    page.bars(&bars);
    let mut columns = vec![("milliseconds".to_owned(), false)];
    columns.extend(breakdowns.iter().map(|(name, _)| ((*name).to_owned(), true)));
    let shown = Part::ALL.into_iter().filter(|part| {
        breakdowns.iter().any(|(_, b)| b.parts_ms.iter().any(|p| p.0 == *part && p.1 > 0.0))
    });
    let mut rows: Vec<(Option<String>, Vec<Cell>)> = shown
        .map(|part| {
            let of = |b: &Breakdown| b.parts_ms.iter().find(|p| p.0 == part).map(|p| p.1);
            let cells = breakdowns.iter().map(|(_, b)| Cell::number(of(b).filter(|ms| *ms > 0.0)));
            (None, std::iter::once(Cell::text(part.name())).chain(cells).collect())
        })
        .collect();
    let total = breakdowns.iter().map(|(_, b)| Cell::number(Some(b.total_ms)));
    rows.push((None, std::iter::once(Cell::text("in all")).chain(total).collect()));
    page.table(&Table { columns, rows, ..Table::default() });
    let shares: Vec<String> = found
        .resources
        .iter()
        .map(|(r, share)| format!("{} {:.0} %", r.name(), 100.0 * share))
        .collect();
    page.paragraph(&format!(
        "Busy time by what bounds the operator that runs: {}.",
        shares.join(", ")
    ));
}

fn changes(page: &mut Page, now: &Outcome, tried: &[Tried]) {
    let objectives = now.good_percent.is_some();
    let names = ["one change, simulated", "devices", "TTFT ms", "TPOT ms", "E2E ms", "requests/s"];
    let mut columns: Vec<(String, bool)> =
        names.iter().enumerate().map(|(i, n)| ((*n).to_owned(), i > 0)).collect();
    if objectives {
        columns.push(("meet the SLO, %".into(), true));
    }
    columns.push(("why not".into(), false));
    let row = |name: String, outcome: Option<&Outcome>, why: &str| {
        let of = |f: fn(&Outcome) -> Option<f64>| Cell::number(outcome.and_then(f));
        let mut cells = vec![
            Cell::text(name),
            outcome.map_or_else(Cell::default, |o| Cell::count(o.num_devices.into())),
            of(|o| o.ttft_ms),
            of(|o| o.tpot_ms),
            of(|o| o.e2e_ms),
            of(|o| Some(o.requests_per_s)),
        ];
        if objectives {
            cells.push(of(|o| o.good_percent));
        }
        cells.push(Cell::long(why));
        (None, cells)
    };
    let mut rows = vec![row("(as it is)".into(), Some(now), "")];
    rows.extend(tried.iter().map(|t| {
        let name = t.change.sets.join(" ");
        match &t.outcome {
            Ok(outcome) => row(name, Some(outcome), ""),
            Err(reason) => row(name, None, reason),
        }
    }));
    page.table(&Table { columns, rows, sortable: true, filter: false });
}

fn courses(run: &Run, levels: &Levels) -> Result<Vec<(String, String)>, Failure> {
    let blocks = f64::from(run.sim.kv_blocks) * f64::from(run.sim.num_replicas);
    let intervals = |series: &Series, scale: f64| -> Vec<Interval> {
        let of = |p: crate::metrics::Point| Interval {
            start_s: p.start_s,
            mean: p.mean * scale,
            max: f64::from(p.max) * scale,
        };
        series.points().map(of).collect()
    };
    let end = levels.waiting.end_s();
    let fleet = if run.sim.num_replicas > 1 { ", all replicas" } else { "" };
    let mut figures = Vec::new();
    for (title, unit, series, scale) in [
        ("Requests waiting", "requests", &levels.waiting, 1.0),
        ("Requests running", "requests", &levels.running, 1.0),
        ("KV cache", "% of blocks", &levels.blocks, 100.0 / blocks),
    ] {
        let title = format!("{title}{fleet}");
        let svg = charts::course(&title, unit, &intervals(series, scale), end)
            .map_err(Failure::internal)?;
        figures.push((svg, "area: mean, line: highest, in each of up to 512 intervals".into()));
    }
    Ok(figures)
}

fn timeline(page: &mut Page, run: &Run, recorder: &Recorder) -> Result<(), Failure> {
    if recorder.spans_dropped {
        page.paragraph("There are too many batches to show them on a timeline.");
        return Ok(());
    }
    let stages = run.config.cluster.pipeline_parallel;
    let lane = |s: &StageSpan| (s.replica.0 * stages + s.stage.0) as usize;
    let all = (run.sim.num_replicas * stages) as usize;
    let lanes = all.min(SHOWN_LANES);
    let shown: Vec<&StageSpan> = recorder.spans.iter().filter(|s| lane(s) < lanes).collect();
    // From the middle of the run, where it is in full swing.
    let from = (shown.len() / 2).saturating_sub(SHOWN_SPANS / 2);
    let window: Vec<Block> = shown
        .iter()
        .skip(from)
        .take(SHOWN_SPANS)
        .map(|s| {
            let tokens = s.num_prefill_tokens + s.num_decode_tokens;
            Block {
                lane: lane(s),
                start_s: s.start.as_seconds(),
                end_s: (s.start + s.duration).as_seconds(),
                prefill: f64::from(s.num_prefill_tokens) / f64::from(tokens.max(1)),
            }
        })
        .collect();
    let title = format!("{} batches in the middle of the run", window.len());
    let svg = charts::batches(&title, lanes, &window).map_err(Failure::internal)?;
    let caption = format!(
        "One row per {}{}; blue: decoding, orange: prompts.",
        if stages > 1 { "stage of each replica" } else { "replica" },
        if all > lanes { format!(", the first {lanes} of {all}") } else { String::new() }
    );
    page.charts(&[(svg, caption)]);
    Ok(())
}

fn provenance(page: &mut Page, run: &Run) -> Result<(), Failure> {
    page.paragraph(&format!("Step times: {}.", run.provenance.description));
    let text = serde_json::to_string_pretty(&run.provenance).map_err(Failure::internal)?;
    page.details("Files, digests and measured ranges of every operator", &text);
    let report = serde_json::to_string_pretty(&run.report()).map_err(Failure::internal)?;
    page.details("Deployment and memory", &report);
    page.paragraph(&format!("Simulated by vidur {}.", env!("CARGO_PKG_VERSION")));
    Ok(())
}
