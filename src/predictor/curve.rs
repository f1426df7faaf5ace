//! One measured curve: monotone piecewise cubic interpolation between points.

/// A time in milliseconds as a function of one number, known at some points.
///
/// Between points: piecewise cubic Hermite interpolation with the slopes of Fritsch and Carlson
/// (1980, in the weighted harmonic form of Fritsch and Butland 1984, as in scipy's
/// `PchipInterpolator`): continuous with continuous slope, exact at the points, monotone wherever
/// the points are, and never outside the two neighbouring values.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    xs: Vec<f64>,
    segments: Vec<Segment>,
    last_ms: f64,
    /// Equal slices of the range, several per point: the segment that each begins in.
    slices: Vec<u32>,
    slices_per_x: f64,
}

/// `ms + t (slope + t (quadratic + t cubic))` with `t = x - from`, kept within `low..=high`. One
/// cache line: all that a query reads.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Segment {
    from: f64,
    to: f64,
    ms: f64,
    slope: f64,
    quadratic: f64,
    cubic: f64,
    low: f64,
    high: f64,
}

impl Curve {
    /// The curve through `points`, `(x, ms)` by strictly ascending x; `None` of no points.
    pub fn through(points: &[(f64, f64)]) -> Option<Curve> {
        let &(last_x, last_ms) = points.last()?;
        let steps: Vec<(f64, f64)> = points
            .windows(2)
            .map(|p| (p[1].0 - p[0].0, (p[1].1 - p[0].1) / (p[1].0 - p[0].0)))
            .collect();
        let slopes = slopes(&steps);
        let segments = steps.iter().enumerate().map(|(i, &(h, secant))| {
            let (left, right) = (slopes[i], slopes[i + 1]);
            let (a, b) = (points[i].1, points[i + 1].1);
            Segment {
                from: points[i].0,
                to: points[i + 1].0,
                ms: a,
                slope: left,
                quadratic: (3.0 * secant - 2.0 * left - right) / h,
                cubic: (left + right - 2.0 * secant) / (h * h),
                low: a.min(b),
                high: a.max(b),
            }
        });
        let segments: Vec<Segment> = segments.collect();
        let xs: Vec<f64> = points.iter().map(|p| p.0).collect();
        let count = 4 * segments.len();
        let width = last_x - xs[0];
        let begins = |slice: usize| {
            let x = xs[0] + width * (slice as f64 / count as f64);
            // One back, so that rounding of the slice's edge cannot skip a segment.
            xs.partition_point(|p| *p <= x).saturating_sub(2) as u32
        };
        Some(Curve {
            slices: (0..count).map(begins).collect(),
            slices_per_x: if width > 0.0 { count as f64 / width } else { 0.0 },
            segments,
            xs,
            last_ms,
        })
    }

    /// Smallest and largest x that was measured.
    pub fn range(&self) -> (f64, f64) {
        // `through` makes no curve without points, so both ends exist.
        (self.xs[0], self.xs[self.xs.len() - 1])
    }

    /// Number of points.
    pub fn len(&self) -> usize {
        self.xs.len()
    }

    /// Never: a curve has a point at least.
    pub fn is_empty(&self) -> bool {
        self.xs.is_empty()
    }

    /// The time at `x`; outside the measured range the time at the nearer end.
    pub fn at(&self, x: f64) -> f64 {
        // A slice begins at most a few segments before `x`; below the range the cast gives slice 0.
        let slice = ((x - self.xs[0]) * self.slices_per_x) as usize;
        let Some(&first) = self.slices.get(slice) else { return self.last_ms };
        let mut rest = self.segments[first as usize..].iter();
        let Some(s) = rest.find(|s| x < s.to) else { return self.last_ms };
        let t = (x - s.from).max(0.0);
        let ms = s.ms + t * (s.slope + t * (s.quadratic + t * s.cubic));
        ms.max(s.low).min(s.high)
    }
}

/// Slopes at the points from the widths and secants between them.
fn slopes(steps: &[(f64, f64)]) -> Vec<f64> {
    let n = steps.len();
    match steps {
        [] => return vec![0.0],
        [(_, secant)] => return vec![*secant; 2],
        _ => {}
    }
    let mut slopes = vec![0.0; n + 1];
    slopes[0] = end_slope(steps[0], steps[1]);
    slopes[n] = end_slope(steps[n - 1], steps[n - 2]);
    for i in 1..n {
        let ((h0, d0), (h1, d1)) = (steps[i - 1], steps[i]);
        // A local extremum, or a flat side: flat.
        if d0 * d1 > 0.0 {
            let (w0, w1) = (2.0 * h1 + h0, h1 + 2.0 * h0);
            slopes[i] = (w0 + w1) / (w0 / d0 + w1 / d1);
        }
    }
    slopes
}

/// One-sided three-point slope at an end, limited so that the curve keeps its shape.
fn end_slope((h0, d0): (f64, f64), (h1, d1): (f64, f64)) -> f64 {
    let slope = ((2.0 * h0 + h1) * d0 - h0 * d1) / (h0 + h1);
    if slope * d0 <= 0.0 {
        0.0
    } else if d0 * d1 <= 0.0 && slope.abs() > 3.0 * d0.abs() {
        3.0 * d0
    } else {
        slope
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn points() -> impl Strategy<Value = Vec<(f64, f64)>> {
        prop::collection::vec((1u32..1000, 0u32..1_000_000), 1..30).prop_map(|steps| {
            let mut x = 0.0;
            let rise = |(step, y): (u32, u32)| {
                x += f64::from(step);
                (x, f64::from(y) * 1e-4)
            };
            steps.into_iter().map(rise).collect()
        })
    }

    proptest! {
        #[test]
        fn the_segment_found_is_the_one_that_bisection_finds(
            points in points(), share in -0.1..1.1f64,
        ) {
            let curve = Curve::through(&points).unwrap();
            let (first, last) = curve.range();
            let x = first + share * (last - first);
            let i = curve.xs.partition_point(|p| *p <= x).saturating_sub(1);
            let want = curve.segments.get(i).map_or(curve.last_ms, |s| {
                let t = (x - s.from).max(0.0);
                let ms = s.ms + t * (s.slope + t * (s.quadratic + t * s.cubic));
                ms.max(s.low).min(s.high)
            });
            prop_assert_eq!(curve.at(x), want);
        }

        #[test]
        fn exact_at_the_points(points in points()) {
            let curve = Curve::through(&points).unwrap();
            for (x, ms) in points {
                prop_assert_eq!(curve.at(x), ms);
            }
        }

        #[test]
        fn between_points_never_outside_their_values(points in points(), share in 0.0..1.0f64) {
            let curve = Curve::through(&points).unwrap();
            for p in points.windows(2) {
                let ms = curve.at(p[0].0 + share * (p[1].0 - p[0].0));
                prop_assert!(ms >= p[0].1.min(p[1].1) && ms <= p[0].1.max(p[1].1));
            }
        }

        #[test]
        fn monotone_through_monotone_points(mut points in points()) {
            let mut times: Vec<f64> = points.iter().map(|p| p.1).collect();
            times.sort_by(f64::total_cmp);
            for (p, ms) in points.iter_mut().zip(times) {
                p.1 = ms;
            }
            let curve = Curve::through(&points).unwrap();
            let (first, last) = curve.range();
            let mut before = 0.0;
            for i in 0..=500 {
                let ms = curve.at(first + (last - first) * f64::from(i) / 500.0);
                // Rounding of the cubic, far below what is measured.
                prop_assert!(ms >= before - 1e-9, "{ms} after {before}");
                before = ms;
            }
        }

        #[test]
        fn continuous_across_points(points in points()) {
            let curve = Curve::through(&points).unwrap();
            for (x, ms) in points {
                for nearby in [x - 1e-9, x + 1e-9] {
                    prop_assert!((curve.at(nearby) - ms).abs() < 1e-5);
                }
            }
        }
    }

    #[test]
    fn agrees_with_scipy() {
        // scipy.interpolate.PchipInterpolator([0, 1, 3, 4], [0, 1, 2, 10]) has the slopes
        // 7/6, 12/17... at its points; the interior ones are the weighted harmonic means.
        let curve = Curve::through(&[(0.0, 0.0), (1.0, 1.0), (3.0, 2.0), (4.0, 10.0)]).unwrap();
        let inner = 9.0 / (5.0 / 1.0 + 4.0 / 0.5);
        let t = 0.5;
        let first = 7.0 / 6.0;
        let want =
            first * t + (3.0 - 2.0 * first - inner) * t * t + (first + inner - 2.0) * t * t * t;
        assert!((curve.at(0.5) - want).abs() < 1e-12, "{} {want}", curve.at(0.5));
    }

    #[test]
    fn straight_lines_stay_straight() {
        let curve = Curve::through(&[(1.0, 2.0), (2.0, 4.0), (7.0, 14.0)]).unwrap();
        assert!((curve.at(5.0) - 10.0).abs() < 1e-12);
    }

    #[test]
    fn one_point_is_a_constant_and_none_is_no_curve() {
        assert_eq!(Curve::through(&[]), None);
        let curve = Curve::through(&[(5.0, 2.0)]).unwrap();
        assert_eq!((curve.at(1.0), curve.at(9.0)), (2.0, 2.0));
    }
}
