//! Running nccl-tests and nccom-test.

use super::{Readings, nccl, nccom};
use crate::dataset::network::{Collective, Times};
use crate::profiling::tool::{self, Tools};

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

/// What to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What devices do together.
    pub collective: Collective,
    /// Devices of this node that take part.
    pub workers: u32,
    /// Messages.
    pub sizes: Sizes,
    /// Samples of each.
    pub repeats: u32,
    /// What CUDA may see, as in `CUDA_VISIBLE_DEVICES`; what it sees anyway when `None`.
    pub visible: Option<String>,
}

impl Tool {
    /// The program for `collective`.
    pub fn program(self, collective: Collective) -> &'static str {
        match self {
            Tool::NcclTests => nccl::program(collective),
            Tool::NccomTest => "nccom-test",
        }
    }

    /// Measures, and tells `each` size and its times as soon as the tool has printed them.
    ///
    /// # Errors
    /// One line: the tool is absent, failed, hung or printed something else.
    pub fn measure(
        self,
        tools: &Tools,
        question: &Question,
        each: &mut dyn FnMut(u64, Times),
    ) -> Result<Readings, String> {
        let Question { collective, workers, sizes, repeats, visible } = question;
        let program = self.program(*collective);
        let mut command = tools.command(program).map_err(|e| format!("{program}: {e}"))?;
        let list = [
            ("-b", sizes.min.to_string()),
            ("-e", sizes.max.to_string()),
            ("-f", "2".into()),
            ("-n", repeats.to_string()),
            ("-w", "5".into()),
        ];
        list.into_iter().for_each(|(flag, value)| _ = command.args([flag, &value]));
        let count = workers.to_string();
        match self {
            // Values are checked by nobody: only time matters, and checking takes memory.
            Tool::NcclTests => command.args(["-g", &count, "-d", "half", "-c", "0"]),
            Tool::NccomTest => command
                .args(["-r", &count, "-d", "bf16", "--non-interactive"])
                .arg(nccom::operation(*collective))
                // It is Python, which keeps its lines to itself where nobody watches.
                .env("PYTHONUNBUFFERED", "1"),
        };
        if let Some(visible) = visible {
            command.env("CUDA_VISIBLE_DEVICES", visible);
        }
        let (mut text, mut told) = (String::new(), 0);
        let ran = tool::run_lines(command, tools.deadline, &mut |line| {
            text.extend([line, "\n"]);
            let row = line.trim_start().starts_with(|c: char| c.is_ascii_digit());
            if let (true, Ok(readings)) = (row, super::parse(&text, *collective)) {
                // What was read as rows may be read otherwise with more lines: never told twice.
                let news = readings.points.iter().skip(told);
                news.for_each(|&(bytes, times)| each(bytes, times));
                told = told.max(readings.points.len());
            }
        });
        // What was printed before counts, whatever became of the tool: nccom-test ends with an error
        // when one of many sizes failed.
        let (printed, failure) = match ran {
            Ok(output) if output.status.success() => (output.stdout, None),
            Ok(output) => (output.stdout.clone(), Some(output.to_string())),
            Err(e) => (text, Some(e.to_string())),
        };
        match (super::parse(&printed, *collective), failure) {
            (Ok(readings), failure) => {
                // The last line may have had no end.
                readings.points.iter().skip(told).for_each(|&(bytes, times)| each(bytes, times));
                let failure = failure.map(|why| format!("{program}: {why}"));
                Ok(Readings { failure, ..readings })
            }
            (Err(_), Some(why)) | (Err(why), None) => Err(format!("{program}: {why}")),
        }
    }
}
