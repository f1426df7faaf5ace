//! Charts of the report that have no file of their own: the course of a level, the batches on the
//! stages, and configurations by cost and latency with points that answer to the mouse.

use super::escape;
use plotters::prelude::*;
use std::fmt::Write as _;

const BLUE: RGBColor = RGBColor(31, 92, 153);
const ORANGE: RGBColor = RGBColor(217, 138, 43);
const GREY: RGBColor = RGBColor(138, 148, 163);

/// One interval of a level over time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Where it begins, seconds.
    pub start_s: f64,
    /// Mean level in it.
    pub mean: f64,
    /// Highest level in it.
    pub max: f64,
}

/// One batch on one pipeline stage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Block {
    /// Row of the chart, from the top.
    pub lane: usize,
    /// Where it begins, seconds.
    pub start_s: f64,
    /// Where it ends, seconds.
    pub end_s: f64,
    /// Share of its tokens that are prompt tokens, 0 to 1.
    pub prefill: f64,
}

/// One configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Spot {
    /// Cost.
    pub x: f64,
    /// Latency.
    pub y: f64,
    /// No other is cheaper and faster.
    pub on_front: bool,
    /// What the mouse shows.
    pub tip: String,
    /// Id of its row in the table.
    pub row: String,
}

type Chart<'a, 'b> = ChartContext<
    'a,
    SVGBackend<'b>,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;

fn text(e: &dyn std::fmt::Display) -> String {
    e.to_string()
}

/// What an axis shows.
#[derive(Clone, Copy, Debug)]
struct Axis {
    from: f64,
    to: f64,
    logarithmic: bool,
}

impl Axis {
    fn linear(from: f64, to: f64) -> Self {
        Axis { from, to, logarithmic: false }
    }

    /// All of `spots`: from zero, or logarithmic where they differ by more than a factor of 10.
    fn of(spots: &[Spot], value: fn(&Spot) -> f64) -> Self {
        let least = spots.iter().map(value).fold(f64::INFINITY, f64::min);
        let most = spots.iter().map(value).fold(0.0, f64::max);
        if least > 0.0 && most > 10.0 * least {
            let (from, to) = (least.log10(), most.log10());
            let margin = 0.04 * (to - from);
            return Axis { from: from - margin, to: to + margin, logarithmic: true };
        }
        Axis::linear(0.0, most.max(1e-9) * 1.06)
    }

    fn place(self, v: f64) -> f64 {
        if self.logarithmic { v.log10() } else { v }
    }

    fn name(self, desc: &str) -> String {
        if self.logarithmic { format!("{desc} (logarithmic)") } else { desc.to_owned() }
    }

    fn tick(self, place: f64) -> String {
        let v = if self.logarithmic { 10_f64.powf(place) } else { place };
        let text = crate::report::text::number(v);
        match text.contains('.') {
            true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
            false => text,
        }
    }
}

/// Axes, title and mesh; `paint` draws into them.
fn frame(
    size: (u32, u32),
    (title, x_desc, y_desc): (&str, &str, &str),
    (x, y): (Axis, Axis),
    paint: impl FnOnce(&mut Chart<'_, '_>) -> Result<(), String>,
) -> Result<String, String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 15))
            .margin(8)
            .x_label_area_size(36)
            .y_label_area_size(if y_desc.is_empty() { 8 } else { 52 })
            .build_cartesian_2d(x.from..x.to, y.from..y.to)
            .map_err(|e| text(&e))?;
        let (x_tick, y_tick) = (|v: &f64| x.tick(*v), |v: &f64| y.tick(*v));
        let mut mesh = chart.configure_mesh();
        mesh.x_desc(x_desc)
            .light_line_style(BLACK.mix(0.0))
            .bold_line_style(GREY.mix(0.25))
            .label_style(("sans-serif", 11))
            .axis_desc_style(("sans-serif", 12))
            .x_labels(6)
            .y_labels(if y_desc.is_empty() { 0 } else { 6 })
            .x_label_formatter(&x_tick)
            .y_label_formatter(&y_tick);
        if !y_desc.is_empty() {
            mesh.y_desc(y_desc);
        }
        mesh.draw().map_err(|e| text(&e))?;
        paint(&mut chart)?;
        root.present().map_err(|e| text(&e))?;
    }
    Ok(svg)
}

/// The course of a level: its mean as an area, its highest as a line.
///
/// # Errors
/// What the drawing library says.
pub fn course(
    title: &str,
    unit: &str,
    intervals: &[Interval],
    end_s: f64,
) -> Result<String, String> {
    let top = intervals.iter().map(|i| i.max).fold(0.0, f64::max).max(1e-9) * 1.05;
    let end_s = end_s.max(1e-9);
    let axes = (Axis::linear(0.0, end_s), Axis::linear(0.0, top));
    frame((420, 240), (title, "seconds", unit), axes, |chart| {
        let steps = |value: fn(&Interval) -> f64| {
            let ends = intervals.iter().skip(1).map(|i| i.start_s).chain([end_s]);
            intervals
                .iter()
                .zip(ends)
                .flat_map(move |(i, end)| [(i.start_s, value(i)), (end, value(i))])
        };
        chart
            .draw_series(AreaSeries::new(steps(|i| i.mean), 0.0, BLUE.mix(0.35)))
            .map_err(|e| text(&e))?;
        chart.draw_series(LineSeries::new(steps(|i| i.max), &BLUE)).map_err(|e| text(&e))?;
        Ok(())
    })
}

/// Batches on stages over time; the more of a batch is prompt, the more orange.
///
/// # Errors
/// What the drawing library says.
pub fn batches(title: &str, lanes: usize, blocks: &[Block]) -> Result<String, String> {
    let start = blocks.iter().map(|b| b.start_s).fold(f64::INFINITY, f64::min);
    let end = blocks.iter().map(|b| b.end_s).fold(start, f64::max);
    let (start, end) = if start < end { (start, end) } else { (0.0, 1.0) };
    let height = 90 + 16 * lanes.min(24) as u32;
    let lanes = lanes.max(1) as f64;
    let axes = (Axis::linear(start, end), Axis::linear(0.0, lanes));
    frame((860, height), (title, "seconds", ""), axes, |chart| {
        let rectangles = blocks.iter().map(|b| {
            let top = lanes - b.lane as f64;
            let mix = |from: u8, to: u8| {
                (f64::from(from) + (f64::from(to) - f64::from(from)) * b.prefill).round() as u8
            };
            let colour =
                RGBColor(mix(BLUE.0, ORANGE.0), mix(BLUE.1, ORANGE.1), mix(BLUE.2, ORANGE.2));
            Rectangle::new([(b.start_s, top - 0.12), (b.end_s, top - 0.88)], colour.filled())
        });
        chart.draw_series(rectangles).map_err(|e| text(&e))?;
        Ok(())
    })
}

/// Configurations by cost and latency, the front joined by a line. Over each point lies a circle that
/// shows its tip and leads to its row.
///
/// # Errors
/// What the drawing library says.
pub fn scatter(title: &str, x_desc: &str, y_desc: &str, spots: &[Spot]) -> Result<String, String> {
    let (x, y) = (Axis::of(spots, |s| s.x), Axis::of(spots, |s| s.y));
    let place = |s: &Spot| (x.place(s.x), y.place(s.y));
    let mut places = Vec::new();
    let svg = frame((640, 400), (title, &x.name(x_desc), &y.name(y_desc)), (x, y), |chart| {
        let mut front: Vec<(f64, f64)> = spots.iter().filter(|s| s.on_front).map(place).collect();
        front.sort_by(|a, b| a.0.total_cmp(&b.0));
        chart.draw_series(LineSeries::new(front, ORANGE.stroke_width(2))).map_err(|e| text(&e))?;
        let circles = spots.iter().map(|s| match s.on_front {
            true => Circle::new(place(s), 5, ORANGE.filled()),
            false => Circle::new(place(s), 4, BLUE.mix(0.55).filled()),
        });
        chart.draw_series(circles).map_err(|e| text(&e))?;
        places = spots.iter().map(|s| chart.backend_coord(&place(s))).collect();
        Ok(())
    })?;
    let mut hits = String::new();
    for (spot, (x, y)) in spots.iter().zip(places) {
        let _ = writeln!(
            hits,
            "<circle class=\"hit\" cx=\"{x}\" cy=\"{y}\" r=\"9\" data-tip=\"{}\" data-row=\"{}\"/>",
            escape(&spot.tip),
            escape(&spot.row)
        );
    }
    Ok(svg.replace("</svg>", &format!("{hits}</svg>")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spot_gets_a_circle_over_its_point() {
        let spot = |x, on_front| Spot { x, y: 2.0, on_front, tip: "a<b".into(), row: "r1".into() };
        let svg = scatter("t", "usd", "ms", &[spot(1.0, true), spot(3.0, false)]).unwrap();
        assert_eq!(svg.matches("class=\"hit\"").count(), 2);
        assert!(svg.contains("data-tip=\"a&lt;b\"") && svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn odd_inputs_still_draw() {
        assert!(course("t", "requests", &[], 0.0).is_ok());
        assert!(batches("t", 0, &[]).is_ok());
        assert!(scatter("t", "x", "y", &[]).is_ok());
        let still = Interval { start_s: 0.0, mean: 0.0, max: 0.0 };
        assert!(course("t", "requests", &[still], 5.0).is_ok());
    }
}
