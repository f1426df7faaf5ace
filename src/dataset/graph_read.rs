//! Reading graph profiles for prediction: `compute/<sku>/<org>/<model>/graph.csv`, a row for each
//! whole graph that was timed.

use super::graph::{COUNTERS, GraphKey, Phase};
use super::location::ProfileFile;
use super::read::SourceFile;
use super::table::{ReadError, Table, line};
use std::collections::BTreeMap;

/// The longest bucket: far beyond any model's context.
const LONGEST_BUCKET: u64 = 1 << 24;

/// One timed graph.
#[derive(Clone, Debug, PartialEq)]
pub struct GraphSample {
    /// Which.
    pub key: GraphKey,
    /// Median milliseconds of one execution.
    pub ms: f64,
    /// Whether that holds the collectives of its tensor-parallel group.
    pub with_collectives: bool,
    /// How it was timed; empty where the file does not say.
    pub timing: String,
    /// By name, of [`COUNTERS`]: what the device's profiler counted. Shares are fractions.
    pub counters: BTreeMap<&'static str, f64>,
    /// Line of the file.
    pub line: u64,
}

/// Everything that one file holds.
#[derive(Clone, Debug, PartialEq)]
pub struct GraphProfile {
    /// In the order of their keys, each once.
    pub samples: Vec<GraphSample>,
    /// The file.
    pub source: SourceFile,
}

/// Reads a graph.csv. `with_collectives` may be absent, which is no; so may counters and `timing`.
///
/// # Errors
/// When the file cannot be used; the message names line and column.
pub fn read(file: &ProfileFile) -> Result<GraphProfile, ReadError> {
    let table = Table::parse(file)?;
    let needed = |name: &str| table.column(name, "graph.csv");
    let time = "time_stats.graph.median";
    let (ms, degree) = (needed(time)?, needed("num_tensor_parallel_workers")?);
    let (phase, batch, bucket) = (needed("phase")?, needed("batch_size")?, needed("bucket")?);
    let (layers, head) = (needed("num_layers")?, needed("with_head")?);
    let (collectives, timing) = (table.optional("with_collectives"), table.optional("timing"));
    let counters = COUNTERS.map(|name| table.optional(name));
    let mut samples: BTreeMap<GraphKey, GraphSample> = BTreeMap::new();
    for row in &table.rows {
        let at_least_one = |column| match table.count(row, column)? {
            n if n > 0 => Ok(n),
            _ => Err(table.wrong(row, column, "a whole number, 1 or more")),
        };
        let small = |column, n: u64| {
            u32::try_from(n).map_err(|_| table.wrong(row, column, "a number below 2^32"))
        };
        let tokens = |column| match at_least_one(column)? {
            n if n <= LONGEST_BUCKET => Ok(n),
            _ => Err(table.wrong(row, column, "at most 2^24 tokens")),
        };
        let named = [Phase::Context, Phase::Token].into_iter();
        let key = GraphKey {
            tensor_parallel: small(degree, at_least_one(degree)?)?,
            phase: named
                .clone()
                .find(|p| p.name() == table.text(row, phase))
                .ok_or_else(|| table.wrong(row, phase, "context or token"))?,
            batch: small(batch, at_least_one(batch)?)?,
            bucket: tokens(bucket)?,
            layers: small(layers, table.count(row, layers)?)?,
            head: table.flag(row, head)?,
        };
        let Some(median) = table.time(row, ms)? else {
            let rows = 1;
            let (file, line, column) = (table.file.into(), line(row), time.into());
            return Err(ReadError::Missing { file, line, column, rows });
        };
        if median <= 0.0 {
            return Err(table.wrong(row, ms, "a time in milliseconds above 0"));
        }
        let counted = COUNTERS.iter().zip(counters).filter_map(|(name, column)| {
            let value: f64 = table.text(row, column?).parse().ok()?;
            value.is_finite().then_some((*name, value))
        });
        let sample = GraphSample {
            key,
            ms: median,
            with_collectives: match collectives {
                Some(column) => table.flag(row, column)?,
                None => false,
            },
            timing: timing.map(|column| table.text(row, column).to_owned()).unwrap_or_default(),
            counters: counted.collect(),
            line: line(row),
        };
        if let Some(first) = samples.insert(key, sample) {
            return Err(ReadError::Twice {
                file: table.file.into(),
                line: line(row),
                first: first.line,
                what: key.to_string(),
            });
        }
    }
    let source = SourceFile {
        file: file.name.clone(),
        sha256: file.sha256(),
        manifest: file.manifest.clone(),
    };
    Ok(GraphProfile { samples: samples.into_values().collect(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEADER: &str = "time_stats.graph.median,num_tensor_parallel_workers,phase,batch_size,bucket,num_layers,with_head,with_collectives,mfu_estimated_percent";

    fn of(rows: &str) -> Result<GraphProfile, String> {
        let file = ProfileFile::from_bytes("graph.csv", format!("{HEADER}\n{rows}"));
        read(&file).map_err(|e| e.to_string())
    }

    #[test]
    fn a_row_is_a_graph_with_its_counters() {
        let profile = of("14.25,2,context,1,128,28,True,True,0.04\n3,2,token,4,256,28,True,,\n");
        let error = profile.unwrap_err();
        assert!(error.contains("line 3: column with_collectives is \"\""), "{error}");
        let profile =
            of("14.25,2,context,1,128,28,True,True,0.04\n3,2,token,4,256,1,False,False,\n");
        let samples = profile.unwrap().samples;
        assert_eq!((samples[0].ms, samples[0].with_collectives, samples[0].line), (14.25, true, 2));
        assert_eq!(samples[0].counters["mfu_estimated_percent"], 0.04);
        assert_eq!((samples[1].key.layers, samples[1].key.head), (1, false));
        assert!(samples[1].counters.is_empty());
    }

    #[test]
    fn what_is_no_graph_is_refused_by_line_and_column() {
        for (rows, expected) in [
            ("1,2,prompt,1,128,28,True,True,\n", "line 2: column phase is \"prompt\""),
            ("1,2,context,0,128,28,True,True,\n", "column batch_size is \"0\""),
            ("1,0,context,1,128,28,True,True,\n", "column num_tensor_parallel_workers is \"0\""),
            ("0,2,context,1,128,28,True,True,\n", "expected a time in milliseconds above 0"),
            (",2,context,1,128,28,True,True,\n", "holds no number"),
            ("1,2,context,1,128,28,perhaps,True,\n", "expected True or False"),
            (
                "1,2,context,1,128,28,True,True,\n2,2,context,1,128,28,True,False,\n",
                "line 3: context graph of 28 layers and head, 1 x 128 tokens stands on line 2",
            ),
        ] {
            let error = of(rows).unwrap_err();
            assert!(error.contains(expected), "{rows}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(rows in "[0-9a-zA-Z.,\\-\n]{0,200}") {
            let _ = of(&rows);
        }
    }
}
