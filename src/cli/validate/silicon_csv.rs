//! The file of `vidur validate silicon --output`: one line per measured run.

use crate::validate::silicon::predict::{Prediction, Times};
use crate::validate::silicon::rows::Row;
use std::path::Path;

const HEADER: [&str; 20] = [
    "id",
    "benchmark",
    "engine",
    "engine_version",
    "system",
    "model",
    "weights",
    "isl",
    "osl",
    "concurrency",
    "tensor_parallel",
    "silicon_ttft_ms",
    "silicon_tpot_ms",
    "predicted_ttft_ms",
    "predicted_tpot_ms",
    "refused",
    "roofline_sim_ttft_ms",
    "roofline_sim_tpot_ms",
    "roofline_ttft_ms",
    "roofline_tpot_ms",
];

/// Writes the file whole or not at all.
///
/// # Errors
/// One line with the path and what the system says.
pub fn write(path: &Path, rows: &[Row], predictions: &[Prediction]) -> Result<(), String> {
    let failed = |e: &dyn std::fmt::Display| format!("{}: cannot be written: {e}", path.display());
    let bytes = text(rows, predictions).map_err(|e| failed(&e))?;
    super::write_whole(path, &bytes).map_err(|e| failed(&e))
}

fn text(rows: &[Row], predictions: &[Prediction]) -> Result<Vec<u8>, csv::Error> {
    let mut out = csv::Writer::from_writer(Vec::new());
    out.write_record(HEADER)?;
    for (r, p) in rows.iter().zip(predictions) {
        let times = |t: &Result<Times, String>| match t {
            Ok(t) => [format!("{:.3}", t.ttft_ms), format!("{:.4}", t.tpot_ms)],
            Err(_) => [String::new(), String::new()],
        };
        let benchmark = serde_json::to_value(r.benchmark).unwrap_or_default();
        let benchmark = benchmark.as_str().unwrap_or_default().to_owned();
        let ([ttft, tpot], [sim_ttft, sim_tpot], [sheet_ttft, sheet_tpot]) =
            (times(&p.simulated), times(&p.roofline_simulated), times(&p.roofline));
        out.write_record([
            r.id.clone(),
            benchmark,
            r.engine.name().to_owned(),
            r.engine_version.clone(),
            r.system.clone(),
            r.model.clone(),
            r.weights.name().to_owned(),
            r.isl.to_string(),
            r.osl.to_string(),
            r.concurrency.to_string(),
            r.tensor_parallel.to_string(),
            r.ttft_ms.to_string(),
            r.tpot_ms.to_string(),
            ttft,
            tpot,
            p.simulated.as_ref().err().cloned().unwrap_or_default(),
            sim_ttft,
            sim_tpot,
            sheet_ttft,
            sheet_tpot,
        ])?;
    }
    out.flush()?;
    out.into_inner().map_err(|e| csv::Error::from(e.into_error()))
}
