//! Running nccl-tests and nccom-test.

use super::{Readings, nccl, nccom};
use crate::dataset::network::Collective;
use crate::profiling::tool::Tools;

/// Sizes to measure: from `min` to `max` bytes, doubling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Smallest message.
    pub min: u64,
    /// Largest message.
    pub max: u64,
}

impl Sizes {
    /// The sizes, ascending: `min`, doubled until `max`, which is there too.
    pub fn list(self) -> Vec<u64> {
        let doubling = std::iter::successors(Some(self.min.max(1)), |size| size.checked_mul(2));
        let mut list: Vec<u64> = doubling.take_while(|&size| size < self.max).collect();
        list.push(self.max);
        list
    }
}

/// The tools that can be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// `all_reduce_perf` and its sisters, one process on one node.
    NcclTests,
    /// `nccom-test`.
    NccomTest,
}

impl Tool {
    /// The program for `collective`.
    pub fn program(self, collective: Collective) -> &'static str {
        match self {
            Tool::NcclTests => nccl::program(collective),
            Tool::NccomTest => "nccom-test",
        }
    }

    /// Measures `collective` among `workers` of this node.
    ///
    /// # Errors
    /// One line: the tool is absent, failed or printed something else.
    pub fn measure(
        self,
        tools: &Tools,
        collective: Collective,
        workers: u32,
        sizes: Sizes,
        repeats: u32,
    ) -> Result<Readings, String> {
        let program = self.program(collective);
        let list = [
            ("-b", sizes.min.to_string()),
            ("-e", sizes.max.to_string()),
            ("-f", "2".into()),
            ("-n", repeats.to_string()),
            ("-w", "5".into()),
        ];
        let mut args: Vec<String> =
            list.into_iter().flat_map(|(flag, v)| [flag.into(), v]).collect();
        let mut add = |words: &[&str]| args.extend(words.iter().map(|word| (*word).to_owned()));
        let count = workers.to_string();
        let operation = nccom::operation(collective);
        match self {
            // Values are checked by nobody: only time matters, and checking takes memory.
            Tool::NcclTests => add(&["-g", &count, "-d", "half", "-c", "0"]),
            Tool::NccomTest => add(&["-r", &count, "-d", "bf16", "--non-interactive", operation]),
        }
        let output = tools.run(program, &args).map_err(|e| format!("{program}: {e}"))?;
        // nccom-test ends with an error when one of many sizes failed: the others count.
        let read = super::read(&output.stdout, collective);
        let mut readings = match (read, output.status.success()) {
            (Ok(readings), _) => readings,
            (Err(why), true) => return Err(format!("{program}: {why}")),
            (Err(_), false) => return Err(format!("{program}: {output}")),
        };
        if !output.status.success() {
            readings.notes.push(format!("{program} ended with an error: {output}"));
        }
        Ok(readings)
    }
}
