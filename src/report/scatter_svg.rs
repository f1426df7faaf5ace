//! Points and their Pareto front as an SVG chart.

use plotters::prelude::*;

/// One point.
#[derive(Clone, Debug)]
pub struct Point {
    /// Across.
    pub x: f64,
    /// Up.
    pub y: f64,
    /// Whether it lies on the front.
    pub on_front: bool,
    /// What stands beside it; empty for nothing.
    pub label: String,
}

/// What the axes say.
#[derive(Clone, Copy, Debug)]
pub struct Axes<'a> {
    /// Above the chart.
    pub title: &'a str,
    /// Across, with unit.
    pub x: &'a str,
    /// Up, with unit.
    pub y: &'a str,
}

/// A scale that is logarithmic where values span more than a factor of 20.
#[derive(Clone, Copy)]
struct Scale {
    logarithmic: bool,
    low: f64,
    high: f64,
}

impl Scale {
    fn of(values: impl Iterator<Item = f64> + Clone) -> Option<Scale> {
        let low = values.clone().min_by(f64::total_cmp)?;
        let high = values.max_by(f64::total_cmp)?;
        let logarithmic = low > 0.0 && high / low > 20.0;
        let scale = Scale { logarithmic, low, high };
        let (a, b) = (scale.to(low), scale.to(high));
        let margin = ((b - a) * 0.08).max(b.abs() * 0.02).max(1e-6);
        Some(Scale { low: a - margin, high: b + margin, ..scale })
    }

    fn to(self, v: f64) -> f64 {
        if self.logarithmic { v.log10() } else { v }
    }

    fn label(self, position: f64) -> String {
        let v = if self.logarithmic { 10f64.powf(position) } else { position };
        match v.abs() {
            a if a >= 100.0 => format!("{v:.0}"),
            a if a >= 10.0 => format!("{v:.1}"),
            a if a >= 1.0 => format!("{v:.2}"),
            _ => format!("{v:.3}"),
        }
    }
}

/// Draws the points, those of the front joined by a line; the lower left is best. `None` of no points.
///
/// # Errors
/// What the drawing library says; nothing that a caller can mend.
pub fn draw(axes: Axes<'_>, points: &[Point]) -> Result<Option<String>, String> {
    let (Some(x), Some(y)) =
        (Scale::of(points.iter().map(|p| p.x)), Scale::of(points.iter().map(|p| p.y)))
    else {
        return Ok(None);
    };
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let at = |p: &Point| (x.to(p.x), y.to(p.y));
    let mut front: Vec<&Point> = points.iter().filter(|p| p.on_front).collect();
    front.sort_by(|a, b| a.x.total_cmp(&b.x));
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (760, 480)).into_drawing_area();
        root.fill(&WHITE).map_err(|e| text(&e))?;
        let mut chart = ChartBuilder::on(&root)
            .caption(axes.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(64)
            .build_cartesian_2d(x.low..x.high, y.low..y.high)
            .map_err(|e| text(&e))?;
        let desc = |name: &str, scale: Scale| {
            if scale.logarithmic { format!("{name} (logarithmic)") } else { name.to_owned() }
        };
        chart
            .configure_mesh()
            .x_desc(desc(axes.x, x))
            .y_desc(desc(axes.y, y))
            .x_label_formatter(&|v| x.label(*v))
            .y_label_formatter(&|v| y.label(*v))
            .light_line_style(BLACK.mix(0.05))
            .bold_line_style(BLACK.mix(0.12))
            .x_labels(8)
            .y_labels(8)
            .draw()
            .map_err(|e| text(&e))?;
        let others = points.iter().filter(|p| !p.on_front);
        chart
            .draw_series(others.map(|p| Circle::new(at(p), 3, RGBColor(140, 150, 160).filled())))
            .map_err(|e| text(&e))?;
        let blue = RGBColor(31, 92, 153);
        chart
            .draw_series(LineSeries::new(front.iter().map(|p| at(p)), blue.stroke_width(2)))
            .map_err(|e| text(&e))?;
        chart
            .draw_series(front.iter().map(|p| Circle::new(at(p), 4, blue.filled())))
            .map_err(|e| text(&e))?;
        let middle = f64::midpoint(x.low, x.high);
        for p in front.iter().filter(|p| !p.label.is_empty()) {
            // To the side on which there is room: 6.5 pixels are a character.
            let left =
                if at(p).0 > middle { -(p.label.chars().count() as i32 * 13 / 2) } else { 0 };
            let shift = (if left < 0 { left - 6 } else { 8 }, -14);
            chart
                .draw_series([
                    EmptyElement::at(at(p)) + Text::new(p.label.clone(), shift, ("sans-serif", 12))
                ])
                .map_err(|e| text(&e))?;
        }
        root.present().map_err(|e| text(&e))?;
    }
    Ok(Some(svg))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(x: f64, y: f64, on_front: bool) -> Point {
        Point { x, y, on_front, label: if on_front { format!("p{x}") } else { String::new() } }
    }

    #[test]
    fn a_front_is_labelled_and_wide_ranges_are_logarithmic() {
        let axes = Axes { title: "t", x: "USD", y: "ms" };
        let points = [point(1.0, 9.0, true), point(50.0, 3.0, true), point(60.0, 8.0, false)];
        let svg = draw(axes, &points).unwrap().unwrap();
        assert!(svg.contains("USD (logarithmic)") && svg.contains(">\nms\n<"), "{svg}");
        assert!(svg.contains("p1") && svg.contains("p50") && !svg.contains("p60"));
        assert_eq!(svg.matches("<circle").count(), 3);
    }

    #[test]
    fn few_points_still_draw() {
        let axes = Axes { title: "t", x: "x", y: "y" };
        assert_eq!(draw(axes, &[]).unwrap(), None);
        assert!(draw(axes, &[point(0.0, 0.0, true)]).unwrap().is_some());
        assert!(draw(axes, &[point(5.0, 1.0, true), point(5.0, 1.0, false)]).unwrap().is_some());
    }
}
