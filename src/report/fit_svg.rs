//! How well predictions fit: measured against predicted time, one panel per operator or group of runs.

use plotters::prelude::*;
use std::error::Error;

/// One operator.
#[derive(Clone, Debug)]
pub struct Panel {
    /// Heading.
    pub title: String,
    /// Second line.
    pub subtitle: String,
    /// Measured and predicted milliseconds of points that the predictor had not seen.
    pub pairs: Vec<(f64, f64)>,
}

const COLUMNS: usize = 4;
const PANEL: (u32, u32) = (330, 320);
const HEADING: u32 = 60;
/// More points than this hide each other and make the file large.
const MOST_POINTS: usize = 1500;

const INK: RGBColor = RGBColor(40, 40, 40);
const FAINT: RGBColor = RGBColor(225, 225, 225);
const DOTS: RGBColor = RGBColor(31, 119, 180);
const BAND: RGBColor = RGBColor(150, 150, 150);

/// The picture as SVG text. Axes are logarithmic; the solid line is equality, the dashed
/// ones are 10 % to either side.
///
/// # Errors
/// When the drawing library fails.
pub fn draw(heading: &str, legend: &str, panels: &[Panel]) -> Result<String, Box<dyn Error>> {
    let columns = panels.len().clamp(1, COLUMNS);
    let rows = panels.len().div_ceil(columns).max(1);
    let size = (PANEL.0 * columns as u32, HEADING + PANEL.1 * rows as u32);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        let (top, below) = root.split_vertically(HEADING);
        let style = |size: i32, color: &RGBColor| ("sans-serif", size).into_font().color(color);
        top.draw(&Text::new(heading.to_string(), (14, 12), style(17, &INK)))?;
        top.draw(&Text::new(legend.to_string(), (14, 36), style(12, &INK)))?;
        for (panel, area) in panels.iter().zip(below.split_evenly((rows, columns))) {
            area.draw(&Text::new(panel.title.clone(), (14, 8), style(14, &INK)))?;
            area.draw(&Text::new(panel.subtitle.clone(), (14, 27), style(11, &INK)))?;
            draw_panel(panel, &area.margin(44, 6, 4, 14))?;
        }
        root.present()?;
    }
    Ok(svg)
}

fn draw_panel(
    panel: &Panel,
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
) -> Result<(), Box<dyn Error>> {
    let positive = |p: &&(f64, f64)| p.0 > 0.0 && p.1 > 0.0 && p.0.is_finite() && p.1.is_finite();
    let pairs: Vec<(f64, f64)> = panel.pairs.iter().filter(positive).copied().collect();
    if pairs.is_empty() {
        area.draw(&Text::new("too few points to hold any out", (50, 100), ("sans-serif", 12)))?;
        return Ok(());
    }
    let all = || pairs.iter().flat_map(|p| [p.0, p.1]);
    let low = all().fold(f64::INFINITY, f64::min) / 1.3;
    let high = all().fold(0.0, f64::max) * 1.3;
    let mut chart = ChartBuilder::on(area)
        .x_label_area_size(26)
        .y_label_area_size(56)
        .build_cartesian_2d((low..high).log_scale(), (low..high).log_scale())?;
    chart
        .configure_mesh()
        .x_labels(4)
        .y_labels(4)
        .max_light_lines(0)
        .bold_line_style(FAINT)
        .axis_style(INK)
        .label_style(("sans-serif", 11).into_font().color(&INK))
        .x_label_formatter(&|v| label(*v))
        .y_label_formatter(&|v| label(*v))
        .draw()?;
    let line = |factor: f64| {
        let (from, to) = (low.max(low / factor), high.min(high / factor));
        [(from, from * factor), (to, to * factor)]
    };
    chart.draw_series(LineSeries::new(line(1.0), BAND.stroke_width(1)))?;
    for factor in [1.1, 1.0 / 1.1] {
        chart.draw_series(DashedLineSeries::new(line(factor), 4, 3, BAND.stroke_width(1)))?;
    }
    let step = pairs.len().div_ceil(MOST_POINTS);
    let dots = pairs.iter().step_by(step);
    chart.draw_series(dots.map(|p| Circle::new(*p, 2, DOTS.mix(0.35).filled())))?;
    Ok(())
}

/// Milliseconds without trailing zeros.
fn label(ms: f64) -> String {
    if !(1e-4..1e5).contains(&ms) {
        return format!("{ms:.0e}");
    }
    let text = format!("{ms:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(pairs: Vec<(f64, f64)>) -> Panel {
        Panel { title: "mlp_up_proj".into(), subtitle: "MAPE 1.0 %".into(), pairs }
    }

    #[test]
    fn every_operator_gets_a_panel_with_its_points() {
        let one = panel(vec![(0.1, 0.11), (1.0, 0.9), (10.0, 10.0)]);
        let svg =
            draw("heading", "legend", &[one.clone(), one.clone(), one.clone(), one.clone(), one])
                .unwrap();
        assert_eq!(svg.matches("mlp_up_proj").count(), 5);
        assert_eq!(svg.matches("<circle").count(), 15);
        assert!(svg.contains("heading") && svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn many_points_are_thinned() {
        let many = (1..10_000).map(|i| (f64::from(i), f64::from(i))).collect();
        let svg = draw("h", "l", &[panel(many)]).unwrap();
        assert!((1000..=MOST_POINTS).contains(&svg.matches("<circle").count()));
    }

    #[test]
    fn nothing_to_draw_and_equal_points_are_no_failure() {
        assert!(draw("h", "l", &[]).is_ok());
        assert!(draw("h", "l", &[panel(vec![])]).unwrap().contains("too few points"));
        assert!(draw("h", "l", &[panel(vec![(1.0, 1.0), (0.0, 1.0)])]).is_ok());
    }

    #[test]
    fn labels_are_short() {
        assert_eq!([0.001, 0.5, 10.0, 1e6].map(label), ["0.001", "0.5", "10", "1e6"]);
    }
}
