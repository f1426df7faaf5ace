//! Attention: times by batch and length of prompts that start on an empty cache, and of decoding
//! sequences, for the heads of one device; and what follows from them for chunks after a prefix, which
//! the package does not time.
//!
//! A chunk of c tokens after p cached ones has `c (2p + c)` of the `(p + c)²` query-key pairs of the
//! whole prompt, and the longest row is as long. It is taken to cost as much as the whole prompt with
//! as much smaller a share of the heads: the pairs of both are the same, so are the loops that a tile of
//! queries goes through, and where heads get too few to fill the device the measured times of few heads
//! say so (a plain share of the whole prompt's time would go to nothing). Between head counts and
//! lengths, times are interpolated in logarithms.

use std::collections::BTreeMap;

/// Query heads, key-value heads and head width on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Heads {
    /// Query heads.
    pub query: u32,
    /// Key-value heads.
    pub key_value: u32,
    /// Width of a head.
    pub dim: u32,
}

/// A measured time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Sequences.
    pub batch: u32,
    /// Tokens of each prompt, or tokens in the cache of each sequence before its new one.
    pub length: u32,
    /// Milliseconds.
    pub ms: f64,
}

/// Times of one kind (context or generation) in one number format, without a window.
#[derive(Clone, Debug, Default)]
pub struct Table(BTreeMap<Heads, Vec<Point>>);

/// How the points of a shape were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Found {
    /// In the table.
    Measured,
    /// As a larger batch of fewer heads, or between two numbers of query heads.
    Derived,
}

impl Table {
    /// Adds a measured point.
    pub fn push(&mut self, heads: Heads, point: Point) {
        self.0.entry(heads).or_default().push(point);
    }

    /// Sorts the points; repeated ones keep their mean.
    pub fn finish(&mut self) {
        for points in self.0.values_mut() {
            points.sort_by_key(|p| (p.batch, p.length));
            let same = points.chunk_by(|a, b| (a.batch, a.length) == (b.batch, b.length));
            let mean = |same: &[Point]| {
                let ms = same.iter().map(|p| p.ms).sum::<f64>() / same.len() as f64;
                Point { ms, ..same[0] }
            };
            *points = same.map(mean).collect();
        }
    }

    /// Shapes that were measured.
    pub fn shapes(&self) -> impl Iterator<Item = Heads> {
        self.0.keys().copied()
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Points for `heads`, by batch, then length; `None` where the table has nothing near.
    ///
    /// Where the shape itself was not measured: between two numbers of query heads with as many
    /// key-value heads, linearly; else as g times the batch of a g-th of the heads, since sequences and
    /// groups of heads are the same to a kernel.
    pub fn of(&self, heads: Heads) -> Option<(Vec<Point>, Found)> {
        (1..=heads.key_value).filter(|g| heads.divides(*g)).find_map(|g| {
            let fewer =
                Heads { query: heads.query / g, key_value: heads.key_value / g, dim: heads.dim };
            let (points, found) = self.near(fewer)?;
            let points: Vec<Point> = points
                .into_iter()
                .filter(|p| p.batch.is_multiple_of(g))
                .map(|p| Point { batch: p.batch / g, ..p })
                .collect();
            let found = if g == 1 { found } else { Found::Derived };
            (!points.is_empty()).then_some((points, found))
        })
    }

    /// The shape itself, or between its neighbours in query heads.
    fn near(&self, heads: Heads) -> Option<(Vec<Point>, Found)> {
        if let Some(points) = self.0.get(&heads) {
            return Some((points.clone(), Found::Measured));
        }
        let alike =
            |(h, _): &(&Heads, &Vec<Point>)| (h.key_value, h.dim) == (heads.key_value, heads.dim);
        let (low, a) = self.0.iter().filter(alike).rfind(|(h, _)| h.query < heads.query)?;
        let (high, b) = self.0.iter().filter(alike).find(|(h, _)| h.query > heads.query)?;
        let share = f64::from(heads.query - low.query) / f64::from(high.query - low.query);
        let between = a.iter().filter_map(|p| {
            let at = b.binary_search_by_key(&(p.batch, p.length), |q| (q.batch, q.length)).ok()?;
            Some(Point { ms: p.ms + (b[at].ms - p.ms) * share, ..*p })
        });
        Some((between.collect(), Found::Derived))
    }
}

impl Heads {
    fn divides(self, g: u32) -> bool {
        self.query.is_multiple_of(g) && self.key_value.is_multiple_of(g)
    }

    /// Half as many heads, grouped alike as long as that goes.
    fn half(self) -> Option<Heads> {
        let query = (self.query > 1).then_some(self.query / 2)?;
        Some(Heads { query, key_value: (self.key_value / 2).clamp(1, query), ..self })
    }
}

/// Points of decoding sequences one step longer than measured, for batches whose tables end early: the
/// package stops at so many tokens in all caches together, so that large batches lack the lengths that
/// serving sees. As many tokens in half the batch, twice as long, take as long; what the batch costs on
/// top is known from its last measured length.
pub fn longer(points: &[Point]) -> Vec<Point> {
    let at = |batch: u32, length: u32| {
        points.iter().find(|p| (p.batch, p.length) == (batch, length)).map(|p| p.ms)
    };
    let twice = |length: u32| 2 * length + 1;
    let mut found: Vec<Point> = Vec::new();
    for row in points.chunk_by(|a, b| a.batch == b.batch) {
        let Some(last) = row.last().filter(|p| p.batch > 1) else { continue };
        let (half, length) = (last.batch / 2, twice(last.length));
        let derived = found.iter().find(|p| (p.batch, p.length) == (half, twice(length)));
        let same = at(half, twice(length)).or(derived.map(|p| p.ms));
        if let (Some(same), Some(before)) = (same, at(half, length)) {
            // As many tokens in the caches before: what remains is the price of more sequences.
            let ms = same + (last.ms - before).max(0.0);
            found.push(Point { batch: last.batch, length, ms });
        }
    }
    found
}

/// One prompt on an empty cache, by number of heads and length.
#[derive(Clone, Debug)]
pub struct Prompts {
    heads: f64,
    /// Ascending by heads: `(heads, [(length, ms)])`.
    curves: Vec<(f64, Vec<(f64, f64)>)>,
}

impl Prompts {
    /// Times of `heads`, half as many, a quarter, ...; `None` where `heads` were not measured.
    pub fn new(table: &Table, heads: Heads) -> Option<Prompts> {
        let curve = |heads: Heads| {
            let (points, _) = table.of(heads)?;
            let one = points.iter().filter(|p| p.batch == 1 && p.length > 0);
            let curve: Vec<(f64, f64)> = one.map(|p| (f64::from(p.length), p.ms)).collect();
            (!curve.is_empty()).then_some((f64::from(heads.query), curve))
        };
        let mut curves = vec![curve(heads)?];
        let mut next = heads.half();
        while let Some(fewer) = next {
            curves.extend(curve(fewer));
            next = fewer.half();
        }
        curves.reverse();
        Some(Prompts { heads: f64::from(heads.query), curves })
    }

    /// Milliseconds of a chunk of `chunk` tokens after `prefix` cached ones.
    pub fn chunk_ms(&self, prefix: f64, chunk: f64) -> f64 {
        let length = prefix + chunk;
        let share = chunk * (2.0 * prefix + chunk) / (length * length);
        let heads = self.heads * share;
        let after = self.curves.partition_point(|(h, _)| *h < heads);
        let at = |i: usize| along(&self.curves[i].1, length);
        if after == 0 {
            return at(0);
        }
        if after == self.curves.len() {
            return at(after - 1);
        }
        let (low, high) = (self.curves[after - 1].0, self.curves[after].0);
        blend((heads / low).ln() / (high / low).ln(), at(after - 1), at(after))
    }
}

/// A curve at `x`: between points in logarithms, below the first as that, beyond the last in proportion
/// to the square (the pairs of a prompt).
fn along(curve: &[(f64, f64)], x: f64) -> f64 {
    let after = curve.partition_point(|p| p.0 <= x);
    match (after.checked_sub(1).and_then(|i| curve.get(i)), curve.get(after)) {
        (Some(a), Some(b)) => blend((x / a.0).ln() / (b.0 / a.0).ln(), a.1, b.1),
        (Some(last), None) => last.1 * (x / last.0).powi(2),
        (None, Some(first)) => first.1,
        (None, None) => 0.0,
    }
}

/// From `a` (share 0) to `b` (share 1) in logarithms.
fn blend(share: f64, a: f64, b: f64) -> f64 {
    if share == 0.0 { a } else { a * (b / a).powf(share) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIM: u32 = 128;

    fn heads(query: u32, key_value: u32) -> Heads {
        Heads { query, key_value, dim: DIM }
    }

    /// Time of a kernel that fills the device from 8 heads x 1024 tokens on: pairs, at least those.
    fn made_up(query: u32, length: u32, batch: u32) -> f64 {
        let pairs = f64::from(query * batch) * f64::from(length).powi(2);
        pairs.max(8.0 * 1024.0 * f64::from(length)) * 1e-9
    }

    fn table(shapes: &[(u32, u32)]) -> Table {
        let mut table = Table::default();
        for &(q, kv) in shapes {
            for batch in [1, 2, 4, 8] {
                for length in [512, 1024, 2048, 4096, 8192] {
                    let ms = made_up(q, length, batch);
                    table.push(heads(q, kv), Point { batch, length, ms });
                }
            }
        }
        table.finish();
        table
    }

    #[test]
    fn shapes_are_measured_or_found_between_heads_or_as_larger_batches_of_fewer_heads() {
        let table = table(&[(8, 2), (16, 2), (32, 2)]);
        assert_eq!(table.of(heads(16, 2)).unwrap().1, Found::Measured);
        let (between, found) = table.of(heads(24, 2)).unwrap();
        let want =
            |p: &Point| 0.5 * (made_up(16, p.length, p.batch) + made_up(32, p.length, p.batch));
        assert_eq!(found, Found::Derived);
        assert!(between.iter().all(|p| (p.ms / want(p) - 1.0).abs() < 1e-12));
        let (wide, found) = table.of(heads(64, 8)).unwrap();
        assert_eq!(found, Found::Derived);
        // Four times the heads: the batches 4 and 8 of 16 heads become 1 and 2.
        let at = wide.iter().find(|p| (p.batch, p.length) == (2, 1024)).unwrap();
        assert_eq!(at.ms, made_up(16, 1024, 8));
        assert!(table.of(heads(16, 3)).is_none() && table.of(heads(4, 2)).is_none());
        assert!(table.of(Heads { dim: 64, ..heads(16, 2) }).is_none());
    }

    #[test]
    fn a_batch_that_ends_early_gets_one_more_length_from_half_of_it() {
        let ms = |batch: u32, length: u32| {
            1e-3 * f64::from(batch) + 1e-6 * f64::from(batch * (length + 1))
        };
        let mut points = Vec::new();
        for (batch, most) in [(1, 8191), (2, 4095), (4, 2047), (8, 511)] {
            let lengths = [255, 511, 1023, 2047, 4095, 8191].into_iter().filter(|l| *l <= most);
            points.extend(lengths.map(|length| Point { batch, length, ms: ms(batch, length) }));
        }
        let found = longer(&points);
        let shapes: Vec<_> = found.iter().map(|p| (p.batch, p.length)).collect();
        // 2 x 8191 would need 1 x 16383, which is not there.
        assert_eq!(shapes, [(8, 1023)]);
        assert!((found[0].ms / ms(8, 1023) - 1.0).abs() < 1e-12, "{}", found[0].ms);
    }

    #[test]
    fn a_chunk_without_a_prefix_is_the_prompt() {
        let prompts =
            Prompts::new(&table(&[(32, 8), (16, 4), (8, 2), (4, 1)]), heads(32, 8)).unwrap();
        for length in [512, 1024, 4096] {
            let ms = prompts.chunk_ms(0.0, f64::from(length));
            assert!((ms / made_up(32, length, 1) - 1.0).abs() < 1e-12, "{length}");
        }
    }

    #[test]
    fn a_chunk_costs_its_share_of_the_pairs_until_the_device_runs_empty() {
        let prompts =
            Prompts::new(&table(&[(32, 8), (16, 4), (8, 2), (4, 1)]), heads(32, 8)).unwrap();
        // 2048 after 2048: three quarters of the pairs of 4096.
        let ms = prompts.chunk_ms(2048.0, 2048.0);
        assert!((ms / (0.75 * made_up(32, 4096, 1)) - 1.0).abs() < 1e-9, "{ms}");
        // 16 after 8176: as long as one tile takes, not a thousandth of the prompt.
        assert_eq!(prompts.chunk_ms(8176.0, 16.0), made_up(4, 8192, 1));
    }
}
