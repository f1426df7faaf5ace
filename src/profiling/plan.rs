//! Which shapes to measure, and in which order: the most useful first, so that a run that stops
//! early leaves a profile that covers the whole range coarsely instead of half of it finely.

use super::backend::{Effort, Peaks, Shape, Shard};
use super::compute::{LM_HEAD_MAX_ROWS, ops_of};
use crate::spec::model::Dtype;
use crate::spec::ops::Op;
use std::collections::BTreeSet;
use std::time::Duration;

/// How dense the grid is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grid {
    /// Neighbours differ by a factor of at most 1.5 (tokens) or 2 (attention).
    Log,
    /// The grid of microsoft/vidur's profilers (commit 7d47513): thousands of shapes.
    Vidur,
}

/// How far the grid reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows of the per-token operators, at most.
    pub max_tokens: u64,
    /// Sequences of a decode batch, at most.
    pub max_batch_size: u64,
    /// Tokens of a context (cache and chunk together for prompts), at most.
    pub max_context: u64,
}

/// Numbers of tokens for the per-token operators, ascending, from 1 to `max` and both of them.
pub fn token_grid(grid: Grid, max: u64) -> Vec<u64> {
    match grid {
        Grid::Log => up_to(log_points(1), max),
        Grid::Vidur => {
            let steps =
                [8, 16, 32, 64, 128, 256, 512, 1024].into_iter().zip([10, 11, 12, 13, 14, 15, 16]);
            let mut points = vec![1, 2, 4];
            let mut from = 8;
            for (step, log_end) in steps {
                points.extend((from..1 << log_end).step_by(step));
                from = 1 << log_end;
            }
            points.extend((from..=1 << 17).step_by(1024));
            up_to(points.into_iter(), max)
        }
    }
}

/// Powers of two and the points half way between them, from `from` (a power of two) on.
fn log_points(from: u64) -> impl Iterator<Item = u64> {
    (0..).map_while(move |i| from.checked_shl(i)).take(40).flat_map(|p| {
        let between = (p > 1).then_some(p + p / 2);
        std::iter::once(p).chain(between)
    })
}

/// Powers of two from `from` on.
fn powers(from: u64) -> impl Iterator<Item = u64> {
    (0..40).map(move |i| from << i)
}

/// Those points that are below `max`, and `max`; ascending and distinct.
fn up_to(points: impl Iterator<Item = u64>, max: u64) -> Vec<u64> {
    let below = points.take_while(|&p| p < max);
    below.chain([max]).collect::<BTreeSet<u64>>().into_iter().collect()
}

/// Shapes of mlp.csv, the most useful first: both ends, then bisection in log space.
pub fn mlp_shapes(grid: Grid, limits: Limits) -> Vec<Shape> {
    let points = token_grid(grid, limits.max_tokens.max(1));
    let depths = depths(&points);
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by_key(|&i| depths[i]);
    order.into_iter().map(|i| Shape::Tokens(points[i])).collect()
}

/// Shapes of attention.csv, the most useful first: corners of the decode and prefill ranges, then
/// ever finer grids, decode and prefill in turn.
pub fn attention_shapes(grid: Grid, limits: Limits) -> Vec<Shape> {
    // Sort key: the finer of a point's two depths, their sum, then the finer rank of each axis.
    let mut keyed: Vec<((u32, u32, u32), Shape)> = Vec::new();
    let mut push = |a: Depth, b: Depth, shape: Shape| {
        keyed.push(((a.level.max(b.level), a.level + b.level, a.rank.max(b.rank)), shape));
    };
    let (batches, contexts) = decode_axes(grid, limits);
    let (batch_depths, context_depths) = (depths(&batches), depths(&contexts));
    for (&batch, &a) in batches.iter().zip(&batch_depths) {
        for (&kv, &b) in contexts.iter().zip(&context_depths) {
            push(a, b, Shape::Decode { batch, kv });
        }
    }
    let chunks = prefill_chunks(grid, limits);
    for (&chunk, a) in chunks.iter().zip(depths(&chunks)) {
        let kvs = prefill_kvs(grid, limits, chunk);
        for (&kv, b) in kvs.iter().zip(depths(&kvs)) {
            push(a, b, Shape::Prefill { chunk, kv });
        }
    }
    keyed.sort();
    keyed.into_iter().map(|(_, shape)| shape).collect()
}

/// Batch sizes, and tokens in the cache of each sequence.
fn decode_axes(grid: Grid, limits: Limits) -> (Vec<u64>, Vec<u64>) {
    let (batch, context) = (limits.max_batch_size.max(1), limits.max_context.max(2));
    match grid {
        Grid::Log => (up_to(powers(1), batch), up_to(powers(16), context)),
        Grid::Vidur => (
            up_to((1..128).chain((128..=1024).step_by(8)), batch),
            up_to(vidur_chunks().into_iter(), context),
        ),
    }
}

fn prefill_chunks(grid: Grid, limits: Limits) -> Vec<u64> {
    let context = limits.max_context.max(2);
    match grid {
        Grid::Log => up_to(powers(16), context),
        Grid::Vidur => up_to(vidur_chunks().into_iter(), context),
    }
}

/// Tokens in the cache before a chunk of `chunk`: none, the grid, and as many as the context takes.
fn prefill_kvs(grid: Grid, limits: Limits, chunk: u64) -> Vec<u64> {
    let room = limits.max_context.max(2).saturating_sub(chunk);
    if room == 0 {
        return vec![0];
    }
    match grid {
        Grid::Log => up_to(std::iter::once(0).chain(powers(64)), room),
        Grid::Vidur => (0..=room / chunk).map(|k| k * chunk).collect(),
    }
}

/// Chunk sizes of microsoft/vidur's chunked prefills.
fn vidur_chunks() -> Vec<u64> {
    let ranges = [(64, 128, 16), (128, 1024, 32), (1024, 4096, 64), (4096, 16384, 128)];
    let mut chunks: Vec<u64> =
        ranges.into_iter().flat_map(|(from, to, step)| (from..to).step_by(step)).collect();
    chunks.extend((16384..=65536).step_by(256));
    chunks
}

/// When bisection reaches a point: the ends are at level 0, the point nearest to the middle (in log
/// space) at level 1, and so on; `rank` is the order in which points are reached one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Depth {
    level: u32,
    rank: u32,
}

/// The depth of each of `points`, which ascend.
fn depths(points: &[u64]) -> Vec<Depth> {
    let mut depths = vec![Depth { level: 0, rank: 0 }; points.len()];
    let Some(last) = points.len().checked_sub(1) else {
        return depths;
    };
    let log = |i: usize| (points[i] as f64 + 1.0).ln();
    if last > 0 {
        depths[last].rank = 1;
    }
    let mut rank = 2;
    let mut level = 1;
    let mut intervals = vec![(0, last)];
    while !intervals.is_empty() {
        // The widest gap first; the sort is stable, so ties go from small to large.
        intervals.sort_by(|a, b| (log(b.1) - log(b.0)).total_cmp(&(log(a.1) - log(a.0))));
        let mut next = Vec::new();
        for (from, to) in intervals {
            if to - from < 2 {
                continue;
            }
            let target = (log(from) + log(to)) / 2.0;
            let off = |i: usize| (log(i) - target).abs();
            let middle =
                (from + 1..to).min_by(|&a, &b| off(a).total_cmp(&off(b))).unwrap_or(from + 1);
            depths[middle] = Depth { level, rank };
            rank += 1;
            next.extend([(from, middle), (middle, to)]);
        }
        intervals = next;
        level += 1;
    }
    depths
}

/// Kernels reach about this share of the peaks.
const EFFICIENCY: f64 = 0.6;
/// Seconds that starting one operator costs.
const OVERHEAD_S: f64 = 10e-6;

/// Roughly how long measuring `shape` will take, from the roofline of its operators. The runner
/// corrects it by what earlier shapes really took.
pub fn estimate(shard: &Shard, shape: Shape, peaks: Peaks, effort: Effort) -> Duration {
    let seconds = |op: Op, input| {
        let work = op.work(&shard.model, shard.parallelism(), Dtype::F32, input);
        let roofline = (work.flops / peaks.flops_per_s).max(work.bytes / peaks.bytes_per_s);
        roofline / EFFICIENCY + OVERHEAD_S
    };
    let pass: f64 =
        ops_of(&shard.model, shape).into_iter().map(|(op, input)| seconds(op, input)).sum();
    let warm_up = pass;
    let sampling = (pass * f64::from(effort.repeats)).max(effort.min_time.as_secs_f64());
    let capped = sampling.min(effort.max_time.as_secs_f64().max(pass));
    Duration::try_from_secs_f64(warm_up + capped).unwrap_or(Duration::MAX)
}

/// What the grid is, in words, for people.
pub fn describe(kind_is_mlp: bool, grid: Grid, limits: Limits) -> Vec<String> {
    let list = |points: &[u64]| {
        let shown: Vec<String> = points.iter().map(u64::to_string).collect();
        match shown.len() {
            0..=30 => shown.join(", "),
            n => format!("{}, ..., {} ({n} values)", shown[..8].join(", "), shown[n - 1]),
        }
    };
    if kind_is_mlp {
        let tokens = token_grid(grid, limits.max_tokens.max(1));
        return vec![
            format!("tokens: {}", list(&tokens)),
            format!("lm_head: up to {LM_HEAD_MAX_ROWS} tokens"),
        ];
    }
    let (batches, contexts) = decode_axes(grid, limits);
    let chunks = prefill_chunks(grid, limits);
    let smallest = prefill_kvs(grid, limits, chunks[0]);
    vec![
        format!("decode batch: {}", list(&batches)),
        format!("decode context: {}", list(&contexts)),
        format!("prefill chunk: {}", list(&chunks)),
        format!("prefill cache before a chunk of {}: {}", chunks[0], list(&smallest)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { max_tokens: 2048, max_batch_size: 32, max_context: 2048 };

    #[test]
    fn the_log_grid_is_dense_and_ends_where_it_should() {
        let points = token_grid(Grid::Log, 2048);
        assert_eq!(points[..10], [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]);
        assert_eq!(points.last(), Some(&2048));
        assert!(points.windows(2).skip(1).all(|w| w[1] as f64 / w[0] as f64 <= 1.5));
        assert_eq!(token_grid(Grid::Log, 1), [1]);
        assert_eq!(token_grid(Grid::Log, 100).last(), Some(&100));
    }

    #[test]
    fn the_vidur_grid_is_vidurs() {
        let points = token_grid(Grid::Vidur, 131_072);
        assert_eq!(points[..6], [1, 2, 4, 8, 16, 24]);
        for p in [1016, 1024, 1040, 2048, 2080, 4096, 4160, 65_536, 66_560, 131_072] {
            assert!(points.contains(&p), "{p}");
        }
        for p in [1032, 2064, 4128, 66_048] {
            assert!(!points.contains(&p), "{p}");
        }
    }

    #[test]
    fn ends_come_first_and_every_prefix_covers_the_range_evenly() {
        for grid in [Grid::Log, Grid::Vidur] {
            let order: Vec<u64> = mlp_shapes(grid, LIMITS)
                .into_iter()
                .map(|s| if let Shape::Tokens(n) = s { n } else { 0 })
                .collect();
            assert_eq!(order[..2], [1, 2048]);
            let all: BTreeSet<u64> = order.iter().copied().collect();
            assert_eq!(all.len(), order.len());
            assert_eq!(all.into_iter().collect::<Vec<_>>(), token_grid(grid, 2048));
            // After 3, 5, 9 ... points the widest gap has about halved each time, until it is as
            // narrow as the grid.
            let mut before = f64::INFINITY;
            for n in [2, 3, 5, 9] {
                let mut prefix = order[..n].to_vec();
                prefix.sort_unstable();
                let gap =
                    prefix.windows(2).map(|w| (w[1] as f64 / w[0] as f64).ln()).fold(0.0, f64::max);
                assert!(gap < 0.7 * before, "{grid:?}: gap {gap} after {n} points");
                before = gap;
            }
        }
    }

    #[test]
    fn attention_starts_with_the_corners() {
        let order = attention_shapes(Grid::Log, LIMITS);
        let corners: BTreeSet<Shape> = order[..7].iter().copied().collect();
        let expected = BTreeSet::from([
            Shape::Decode { batch: 1, kv: 16 },
            Shape::Decode { batch: 1, kv: 2048 },
            Shape::Decode { batch: 32, kv: 16 },
            Shape::Decode { batch: 32, kv: 2048 },
            Shape::Prefill { chunk: 16, kv: 0 },
            Shape::Prefill { chunk: 16, kv: 2032 },
            Shape::Prefill { chunk: 2048, kv: 0 },
        ]);
        assert_eq!(corners, expected);
        assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), order.len());
        // Bisection goes on for both: neither waits for the other to finish.
        let decodes = order[..20].iter().filter(|s| matches!(s, Shape::Decode { .. })).count();
        assert!((5..=15).contains(&decodes), "{decodes}");
    }

    #[test]
    fn prompts_fit_into_the_context() {
        for grid in [Grid::Log, Grid::Vidur] {
            for shape in attention_shapes(grid, LIMITS) {
                if let Shape::Prefill { chunk, kv } = shape {
                    assert!(chunk + kv <= 2048, "{shape}");
                }
            }
        }
    }

    #[test]
    fn estimates_grow_with_the_shape() {
        let shard = Shard { model: crate::profiling::runner::testing::model(), tensor_parallel: 1 };
        let peaks = Peaks { flops_per_s: 1e11, bytes_per_s: 1e10 };
        let of = |shape| estimate(&shard, shape, peaks, Effort::default());
        assert!(of(Shape::Tokens(1)) >= Effort::default().min_time);
        assert!(of(Shape::Tokens(2048)) > of(Shape::Tokens(512)));
        assert!(of(Shape::Tokens(1 << 24)) < Duration::from_secs(3600));
    }
}
