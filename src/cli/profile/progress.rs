//! Progress of a run on stderr: a bar on a terminal, plain lines elsewhere.

use crate::profiling::runner::{Fate, Job, Observer, Progress};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Plain lines come at most this often.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Tells people what the runner is doing.
pub struct Reporter {
    what: String,
    rounds: u32,
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
}

impl Reporter {
    /// For one job.
    pub fn new(job: &Job) -> Reporter {
        let bar = std::io::stderr().is_terminal().then(|| {
            let template = "{prefix} [{bar:30}] {pos}/{len} {msg}";
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(0).with_style(style.progress_chars("=> "))
        });
        let what = format!("{} {}", job.kind.name(), job.model.name);
        if let Some(bar) = &bar {
            bar.set_prefix(what.clone());
        }
        Reporter { what, rounds: job.rounds, bar, last_line: None }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(format!("{}: {text}", self.what)),
            None => eprintln!("{}: {text}", self.what),
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Observer for Reporter {
    fn begin(&mut self, pending: usize, done: usize) {
        if let Some(bar) = &self.bar {
            bar.set_length(pending as u64 * u64::from(self.rounds));
        }
        if done > 0 {
            self.line(&format!("{done} shapes are measured already, {pending} to go"));
        }
    }

    fn preparing(&mut self, tensor_parallel: u32) {
        match &self.bar {
            Some(bar) => bar.set_message(format!("tensor parallel {tensor_parallel}, laying out")),
            None => self.line(&format!("tensor parallel {tensor_parallel}: laying out weights")),
        }
    }

    fn note(&mut self, note: &str) {
        self.line(note);
    }

    fn progress(&mut self, progress: &Progress) {
        if let Fate::Failed(reason) = &progress.fate {
            self.line(&format!("{} failed: {reason}", progress.shape));
        }
        let left = humantime::format_duration(Duration::from_secs(progress.left.as_secs()));
        let round = match self.rounds {
            1 => String::new(),
            rounds => format!("round {} of {rounds}, ", progress.round),
        };
        if let Some(bar) = &self.bar {
            bar.set_position(progress.position as u64);
            bar.set_message(format!("{round}{left} left, {}", progress.shape));
            return;
        }
        let due = self.last_line.is_none_or(|at| at.elapsed() >= LINE_EVERY);
        if progress.fate == Fate::Measured && (due || progress.position == progress.total) {
            self.last_line = Some(Instant::now());
            let Progress { position, total, shape, .. } = progress;
            self.line(&format!("{position} of {total}, {round}{shape}, {left} left"));
        }
    }
}
