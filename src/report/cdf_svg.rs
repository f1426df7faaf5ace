//! A cumulative distribution as an SVG chart.

use plotters::prelude::*;

/// Points that a curve is drawn through at most: quantiles, so that big runs make small files.
const MAX_POINTS: usize = 400;

/// Draws the share of requests at or below each value; `values` in milliseconds, in any order. The
/// axis is logarithmic where the values span more than a factor of 20. `None` of no values.
///
/// # Errors
/// What the drawing library says; nothing that a caller can mend.
pub fn draw(title: &str, mut values: Vec<f64>) -> Result<Option<String>, String> {
    values.sort_by(f64::total_cmp);
    let (Some(&min), Some(&max)) = (values.first(), values.last()) else { return Ok(None) };
    let mut svg = String::new();
    let logarithmic = min > 0.0 && max / min > 20.0;
    let transform = |v: f64| if logarithmic { v.log10() } else { v };
    let (low, high) = (transform(min), transform(max));
    let margin = ((high - low) * 0.03).max(high.abs() * 1e-3).max(1e-6);
    let label = |x: f64| if logarithmic { 10f64.powf(x) } else { x };
    let text = |e: &dyn std::fmt::Display| e.to_string();
    {
        let root = SVGBackend::with_string(&mut svg, (640, 400)).into_drawing_area();
        root.fill(&WHITE).map_err(|e| text(&e))?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(52)
            .build_cartesian_2d(low - margin..high + 5.0 * margin, 0.0..1.0)
            .map_err(|e| text(&e))?;
        chart
            .configure_mesh()
            .x_desc(if logarithmic { "milliseconds (logarithmic)" } else { "milliseconds" })
            .y_desc("share of requests at or below")
            .x_label_formatter(&|x| short(label(*x)))
            .y_label_formatter(&|y| format!("{:.0} %", y * 100.0))
            .light_line_style(BLACK.mix(0.06))
            .bold_line_style(BLACK.mix(0.15))
            .x_labels(8)
            .y_labels(10)
            .draw()
            .map_err(|e| text(&e))?;
        chart
            .draw_series(LineSeries::new(
                steps(&values).into_iter().map(|(v, share)| (transform(v), share)),
                RGBColor(31, 92, 153).stroke_width(2),
            ))
            .map_err(|e| text(&e))?;
        for (q, name) in [(0.5, "P50"), (0.9, "P90"), (0.99, "P99")] {
            let Some(v) = crate::stats::quantile_sorted(&values, q) else { continue };
            let at = (transform(v), q);
            chart
                .draw_series([Circle::new(at, 3, RGBColor(190, 60, 40).filled())])
                .map_err(|e| text(&e))?;
            chart
                .draw_series([EmptyElement::at(at)
                    + Text::new(
                        format!("{name} {} ms", short(v)),
                        // Below and right of a rising curve there is room.
                        (8, 3),
                        ("sans-serif", 13),
                    )])
                .map_err(|e| text(&e))?;
        }
        root.present().map_err(|e| text(&e))?;
    }
    Ok(Some(svg))
}

/// Corners of the empirical distribution, thinned to [`MAX_POINTS`] values.
fn steps(sorted: &[f64]) -> Vec<(f64, f64)> {
    let n = sorted.len();
    let every = n.div_ceil(MAX_POINTS);
    let mut points = vec![(sorted[0], 0.0)];
    let mut share = 0.0;
    let thinned = (0..n).filter(|i| (i + 1) % every == 0 || i + 1 == n);
    for i in thinned {
        points.push((sorted[i], share));
        share = (i + 1) as f64 / n as f64;
        points.push((sorted[i], share));
    }
    points
}

/// Three significant digits, without an exponent.
fn short(v: f64) -> String {
    match v.abs() {
        a if a >= 100.0 => format!("{v:.0}"),
        a if a >= 10.0 => format!("{v:.1}"),
        a if a >= 1.0 => format!("{v:.2}"),
        _ => format!("{v:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_names_its_quantiles_and_stays_small() {
        let svg = draw("TTFT", (1..=100_000).map(f64::from).collect()).unwrap().unwrap();
        assert!(svg.contains("P50") && svg.contains("P99") && svg.contains("logarithmic"));
        assert!(svg.len() < 100_000, "{} bytes", svg.len());
    }

    #[test]
    fn odd_inputs_still_draw() {
        assert_eq!(draw("x", vec![]).unwrap(), None);
        assert!(draw("x", vec![0.0]).unwrap().is_some());
        assert!(draw("x", vec![5.0; 10]).unwrap().is_some());
        assert!(draw("x", vec![0.0, 1e9]).unwrap().is_some());
    }

    #[test]
    fn the_curve_ends_at_one() {
        let points = steps(&[1.0, 2.0, 3.0]);
        assert_eq!(points.last(), Some(&(3.0, 1.0)));
        assert!(points.is_sorted_by(|a, b| a.0 <= b.0 && a.1 <= b.1));
    }
}
