//! The highest rate that passes, on a grid of rates.
//!
//! Rates form a geometric grid, each the one before times 1 + precision, so that every configuration
//! is tried at the same rates and the answer is exact to the precision: the rate that is given
//! passed, the next one of the grid failed.

/// A grid of rates, requests per second.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    ratio: f64,
}

/// What a search on the grid comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Highest {
    /// This place passed and the next one failed.
    At(i32),
    /// Even the highest place that was tried passed.
    AtLeast(i32),
    /// Even the lowest place that was tried failed.
    None(i32),
}

impl Grid {
    /// A grid on which neighbours are `precision_percent` apart.
    pub fn new(precision_percent: f64) -> Grid {
        Grid { ratio: 1.0 + precision_percent / 100.0 }
    }

    /// The rate at a place, to five significant digits.
    pub fn rate(self, place: i32) -> f64 {
        round_significant(self.ratio.powi(place), 5)
    }

    /// The highest place at or below `rate`.
    pub fn place(self, rate: f64) -> i32 {
        (rate.max(1e-9).ln() / self.ratio.ln()).floor() as i32
    }

    /// Places between a rate and `factor` times that rate.
    pub fn steps(self, factor: f64) -> i32 {
        ((factor.ln() / self.ratio.ln()).ceil() as i32).max(1)
    }
}

/// `value` to so many significant decimal digits.
pub fn round_significant(value: f64, digits: i32) -> f64 {
    // Formatting rounds in decimal, and its result is what a config file holds.
    let digits = usize::try_from(digits - 1).unwrap_or(0);
    format!("{value:.digits$e}").parse().unwrap_or(value)
}

/// Finds the highest place that passes: from `start` in steps that double, first of `step` places, until
/// the answer changes, then by halves. Looks no lower than `range.0` and no higher than `range.1`.
///
/// Where few requests decide, a place may pass above one that fails: so many places as `ahead` fail above
/// the one that is found.
///
/// # Errors
/// Those of `passes`.
pub fn highest<E>(
    start: i32,
    step: i32,
    ahead: i32,
    range: (i32, i32),
    mut passes: impl FnMut(i32) -> Result<bool, E>,
) -> Result<Highest, E> {
    let found = edge(start, step, range, &mut passes)?;
    let Highest::At(mut good) = found else { return Ok(found) };
    // The place above is known to fail.
    let mut next = good + 2;
    while next <= (good + ahead).min(range.1) {
        if passes(next)? {
            good = next;
        }
        next += 1;
    }
    Ok(if good == range.1 { Highest::AtLeast(good) } else { Highest::At(good) })
}

/// Some place that passes below one that fails.
fn edge<E>(
    start: i32,
    step: i32,
    range: (i32, i32),
    mut passes: impl FnMut(i32) -> Result<bool, E>,
) -> Result<Highest, E> {
    let (lowest, top) = range;
    let start = start.clamp(lowest, top);
    let mut step = step.max(1);
    let (mut good, mut bad);
    if passes(start)? {
        good = start;
        loop {
            if good == top {
                return Ok(Highest::AtLeast(top));
            }
            let next = good.saturating_add(step).min(top);
            if !passes(next)? {
                bad = next;
                break;
            }
            good = next;
            step = step.saturating_mul(2);
        }
    } else {
        bad = start;
        loop {
            if bad == lowest {
                return Ok(Highest::None(lowest));
            }
            let next = bad.saturating_sub(step).max(lowest);
            if passes(next)? {
                good = next;
                break;
            }
            bad = next;
            step = step.saturating_mul(2);
        }
    }
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if passes(middle)? {
            good = middle;
        } else {
            bad = middle;
        }
    }
    Ok(Highest::At(good))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rates_are_short_numbers_one_step_apart() {
        let grid = Grid::new(2.0);
        assert_eq!(grid.rate(0), 1.0);
        assert_eq!(grid.rate(100), 7.2446);
        assert!(grid.place(grid.rate(57) * 1.0001) == 57 && grid.place(0.999) == -1);
        assert_eq!(grid.steps(1.02_f64.powi(7)), 7);
    }

    proptest! {
        #[test]
        fn the_edge_is_found_from_anywhere(
            edge in -500i32..500, start in -600i32..600, step in 1i32..20
        ) {
            let mut tried = Vec::new();
            let found = highest::<()>(start, step, 1, (-500, 499), |place| {
                tried.push(place);
                Ok(place <= edge)
            });
            let expected = if edge >= 499 { Highest::AtLeast(499) } else { Highest::At(edge) };
            prop_assert_eq!(found, Ok(expected));
            tried.sort_unstable();
            prop_assert!(tried.windows(2).all(|w| w[0] != w[1]), "a place was tried twice");
            prop_assert!(tried.len() <= 2 * 10 + 2);
        }

        #[test]
        fn a_place_that_passes_a_little_above_is_found(edge in -50i32..50, start in -60i32..60) {
            let island = edge + 3;
            let mut tried = std::collections::BTreeSet::new();
            let found = highest::<()>(start, 1, 3, (-500, 500), |place| {
                tried.insert(place);
                Ok(place <= edge || place == island)
            });
            prop_assert_eq!(found, Ok(Highest::At(island)));
            prop_assert!((1..=3).all(|above| tried.contains(&(island + above))));
        }

        #[test]
        fn where_nothing_passes_the_lowest_place_is_tried(start in -600i32..600) {
            let found = highest::<()>(start, 3, 4, (-500, 500), |_| Ok(false));
            prop_assert_eq!(found, Ok(Highest::None(-500)));
        }
    }
}
