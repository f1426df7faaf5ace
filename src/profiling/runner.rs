//! Measures the shapes of a plan, one after the other, so that whatever happens no row is lost.

use super::backend::{Backend, BackendError, Effort, Peaks, Purpose, Shape, Shard};
use super::compute;
use super::plan;
use crate::dataset::journal::{Journal, JournalError};
use crate::dataset::manifest::{FailedShape, Fingerprint, Manifest, Run, noise, sha256_hex};
use crate::dataset::write::{ProfileFiles, RowKey, Table, TableKind, WriteError, write_atomically};
use crate::spec::model::ModelSpec;
use std::fs;
use std::io;
use std::time::{Duration, SystemTime};

/// One profile of one model, to be measured.
#[derive(Clone, Debug)]
pub struct Job {
    /// Which profile; every shape belongs to it.
    pub kind: TableKind,
    /// The model.
    pub model: ModelSpec,
    /// Tensor parallel degrees; the model can be split by each.
    pub degrees: Vec<u32>,
    /// Shapes, the most useful first.
    pub shapes: Vec<Shape>,
    /// How long to measure each.
    pub effort: Effort,
    /// Stop when this much time is spent; `None` is never.
    pub budget: Option<Duration>,
    /// Measure every shape anew.
    pub force: bool,
    /// SKU to store under.
    pub sku: String,
    /// Where the files lie.
    pub files: ProfileFiles,
    /// Longest context of the plan, stored with attention rows.
    pub max_model_len: u64,
    /// Command line, for the manifest.
    pub command: String,
    /// Operating system, for the manifest.
    pub host_os: String,
}

/// Why a run gave no profile.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A file could not be read or written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The journal could not be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The device is gone.
    #[error("{reason}; {rows} rows are kept, the same command goes on from there")]
    Lost {
        /// What the backend said.
        reason: String,
        /// Rows in the journal.
        rows: usize,
    },
    /// No shape could be measured.
    #[error("nothing could be measured: {0}")]
    Nothing(String),
}

/// What the runner tells while it works. Every method may be left out.
pub trait Observer {
    /// Before the first shape: `pending` shapes to measure, `done` are there already.
    fn begin(&mut self, _pending: usize, _done: usize) {}
    /// A shard is being laid out.
    fn preparing(&mut self, _tensor_parallel: u32) {}
    /// A shape is finished or left out.
    fn progress(&mut self, _progress: &Progress) {}
}

/// An observer that does not care.
impl Observer for () {}

/// Where the run stands after a shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Devices that share each layer.
    pub tensor_parallel: u32,
    /// The shape.
    pub shape: Shape,
    /// What became of it.
    pub fate: Fate,
    /// Shapes finished or left out so far.
    pub position: usize,
    /// Shapes in all.
    pub total: usize,
    /// Time that the rest will take, within the budget.
    pub left: Duration,
}

/// What became of a shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Measured; its row is on disk.
    Measured,
    /// It could not be measured.
    Failed(String),
    /// Its estimated cost does not fit into the budget.
    Skipped,
}

/// What a run left behind.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The whole profile as it is on disk now.
    pub table: Table,
    /// Rows that this run measured, those of a killed run before it included.
    pub measured: usize,
    /// Shapes of the plan whose rows the finished profile held already.
    pub already: usize,
    /// Shapes that could not be measured.
    pub failed: Vec<FailedShape>,
    /// Shapes that the budget left out.
    pub skipped: usize,
}

/// Runs `job`. `clock` tells the time since some beginning; `peaks` are those of the device.
///
/// Rows are in the journal as soon as they are measured; at the end they join the profile, which
/// appears whole or not at all. A profile that is complete is left as it is.
///
/// # Errors
/// See [`RunError`]; rows measured so far are then still in the journal.
pub fn run(
    job: &Job,
    backend: &mut dyn Backend,
    peaks: Peaks,
    clock: &dyn Fn() -> Duration,
    observer: &mut dyn Observer,
) -> Result<Outcome, RunError> {
    let started = SystemTime::now();
    let files = &job.files;
    let fingerprint = Fingerprint::new(&job.sku, backend.device(), &job.model);
    fs::create_dir_all(files.directory())
        .map_err(WriteError::io("make directory", files.directory()))?;
    let journal = Journal::open(&files.partial(), job.kind, &fingerprint, job.force)?;
    let finished = match Finished::read(job, &fingerprint, &journal) {
        Ok(finished) => finished,
        Err(e) => {
            // Nothing was measured: leave no trace.
            if journal.rows().is_empty() {
                journal.remove()?;
            }
            return Err(e);
        }
    };
    let mut pending = Vec::new();
    let mut already = 0;
    for &tensor_parallel in &job.degrees {
        let shard = Shard { model: job.model.clone(), tensor_parallel };
        let mut shapes = Vec::new();
        for &shape in &job.shapes {
            let key = row_key(&shard, shape, job)?;
            let replaced = journal.is_anew();
            if journal.rows().contains(&key) {
                continue;
            } else if !replaced && finished.table.contains(&key) {
                already += 1;
            } else {
                shapes.push(shape);
            }
        }
        pending.push((shard, shapes));
    }
    let total = pending.iter().map(|(_, shapes)| shapes.len()).sum();
    if total == 0 && journal.rows().is_empty() {
        journal.remove()?;
        let (failed, skipped) = (Vec::new(), 0);
        return Ok(Outcome { table: finished.table, measured: 0, already, failed, skipped });
    }
    observer.begin(total, already + journal.rows().len());
    let mut session = Session {
        job,
        backend,
        peaks,
        clock,
        observer,
        journal,
        budget: Budget::new(job.budget.map(|budget| clock() + budget)),
        position: 0,
        total,
        failed: Vec::new(),
        skipped: 0,
    };
    for (i, (shard, shapes)) in pending.iter().enumerate() {
        // Each degree gets an even share of what is left.
        let degrees_left = (pending.len() - i) as u32;
        session.measure_shard(shard, shapes, degrees_left)?;
    }
    let Session { journal, failed, skipped, .. } = session;
    finish(job, backend, fingerprint, finished, Work { journal, failed, skipped, started, already })
}

/// Identity of the row that `shape` makes.
fn row_key(shard: &Shard, shape: Shape, job: &Job) -> Result<RowKey, RunError> {
    job.kind.row_key(&compute::keys(shard, shape, job.max_model_len)).map_err(|message| {
        // Our own cells are numbers; shapes of another profile would end here.
        RunError::Nothing(format!("{shape} is no row of {}.csv: {message}", job.kind.name()))
    })
}

/// What is there from earlier runs.
struct Finished {
    table: Table,
    runs: Vec<Run>,
}

impl Finished {
    fn read(job: &Job, fingerprint: &Fingerprint, journal: &Journal) -> Result<Self, RunError> {
        let empty = Finished { table: Table::new(job.kind), runs: Vec::new() };
        let path = job.files.manifest();
        let manifest = match Manifest::read(&path) {
            Ok(manifest) => manifest,
            // What is there is replaced, readable or not.
            Err(_) if journal.is_anew() => return Ok(empty),
            Err(e) => return Err(e.into()),
        };
        let difference = match &manifest {
            Some(manifest) => fingerprint.difference(&manifest.fingerprint),
            // A kill between the two renames leaves a CSV without a manifest, and the journal.
            None if !journal.rows().is_empty() => None,
            None if !job.files.csv().exists() => None,
            None => Some("it has no manifest".into()),
        };
        match difference {
            None => {}
            // Rows of other conditions cannot stay beside the new ones.
            Some(_) if journal.is_anew() => return Ok(empty),
            Some(difference) => {
                return Err(JournalError::Fingerprint { path: job.files.csv(), difference }.into());
            }
        }
        Ok(Finished {
            table: Table::read(job.kind, &job.files.csv())?.unwrap_or(empty.table),
            runs: manifest.map_or_else(Vec::new, |m| m.runs),
        })
    }
}

/// When to stop, and how estimates compare with what shapes really took.
struct Budget {
    end: Option<Duration>,
    /// Estimates of the shapes measured so far, in seconds, and what they took. They start at a
    /// second each: the first few cheap shapes say little about the dear ones.
    estimated_s: f64,
    actual_s: f64,
}

impl Budget {
    fn new(end: Option<Duration>) -> Budget {
        Budget { end, estimated_s: 1.0, actual_s: 1.0 }
    }

    fn corrected(&self, estimate: Duration) -> Duration {
        let seconds = estimate.as_secs_f64() * self.actual_s / self.estimated_s;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    fn learn(&mut self, estimate: Duration, actual: Duration) {
        self.estimated_s += estimate.as_secs_f64();
        self.actual_s += actual.as_secs_f64();
    }
}

struct Session<'a> {
    job: &'a Job,
    backend: &'a mut dyn Backend,
    peaks: Peaks,
    clock: &'a dyn Fn() -> Duration,
    observer: &'a mut dyn Observer,
    journal: Journal,
    budget: Budget,
    position: usize,
    total: usize,
    failed: Vec<FailedShape>,
    skipped: usize,
}

impl Session<'_> {
    fn measure_shard(
        &mut self,
        shard: &Shard,
        shapes: &[Shape],
        degrees_left: u32,
    ) -> Result<(), RunError> {
        let Some(&first) = shapes.first() else {
            return Ok(());
        };
        let now = (self.clock)();
        let end = self.budget.end.map(|end| now + end.saturating_sub(now) / degrees_left.max(1));
        let time_left = |now: Duration| end.map_or(Duration::MAX, |end| end.saturating_sub(now));
        // One shape at least, however small the budget: an empty profile helps nobody.
        let mut must = self.position == 0;
        if (must || !time_left(now).is_zero()) && !self.prepare(shard, shapes)? {
            return Ok(());
        }
        let estimate = |&shape: &Shape| plan::estimate(shard, shape, self.peaks, self.job.effort);
        let mut waiting: Vec<(Shape, Duration)> =
            shapes.iter().map(|shape| (*shape, estimate(shape))).collect();
        // With a tiny budget the cheapest shape is the one to measure.
        let cheapest = waiting.iter().min_by_key(|w| w.1).map_or(first, |w| w.0);
        // Shapes that do not fit wait for another round: estimates get better as more is measured.
        loop {
            let before = waiting.len();
            let round = std::mem::take(&mut waiting);
            for (i, &(shape, estimate)) in round.iter().enumerate() {
                let begin = (self.clock)();
                let fits = self.budget.corrected(estimate) <= time_left(begin);
                let is_due = fits || (must && shape == cheapest);
                if !is_due {
                    waiting.push((shape, estimate));
                    continue;
                }
                let fate = self.measure_shape(shard, shape)?;
                let now = (self.clock)();
                self.budget.learn(estimate, now.saturating_sub(begin));
                must &= fate != Fate::Measured;
                let rest = round[i + 1..].iter().chain(&waiting);
                let rest = rest.fold(Duration::ZERO, |sum, w| sum.saturating_add(w.1));
                let left = self.budget.corrected(rest).min(time_left(now));
                self.tell(shard, shape, fate, left);
            }
            if waiting.len() == before || waiting.is_empty() {
                break;
            }
        }
        for (shape, _) in waiting {
            self.skipped += 1;
            self.tell(shard, shape, Fate::Skipped, Duration::ZERO);
        }
        Ok(())
    }

    /// Lays out the shard; if that fails, none of its shapes can be measured, and it is `false`.
    fn prepare(&mut self, shard: &Shard, shapes: &[Shape]) -> Result<bool, RunError> {
        self.observer.preparing(shard.tensor_parallel);
        let purpose = match self.job.kind {
            TableKind::Mlp => Purpose::Mlp,
            TableKind::Attention => Purpose::Attention,
        };
        match self.backend.prepare(shard, purpose) {
            Ok(()) => Ok(true),
            Err(BackendError::Lost(reason)) => Err(self.lost(reason)),
            Err(BackendError::Shape(reason)) => {
                for &shape in shapes {
                    self.failed_shape(shard, shape, &reason);
                    self.tell(shard, shape, Fate::Failed(reason.clone()), Duration::ZERO);
                }
                Ok(false)
            }
        }
    }

    fn measure_shape(&mut self, shard: &Shard, shape: Shape) -> Result<Fate, RunError> {
        let samples = match self.backend.measure(shape, self.job.effort) {
            Ok(samples) => samples,
            Err(BackendError::Lost(reason)) => return Err(self.lost(reason)),
            Err(BackendError::Shape(reason)) => {
                self.failed_shape(shard, shape, &reason);
                return Ok(Fate::Failed(reason));
            }
        };
        let row = compute::row(shard, shape, &samples, self.job.max_model_len);
        self.journal.append(row)?;
        Ok(Fate::Measured)
    }

    fn failed_shape(&mut self, shard: &Shard, shape: Shape, reason: &str) {
        self.failed.push(FailedShape {
            tensor_parallel: shard.tensor_parallel,
            shape: shape.to_string(),
            reason: reason.to_owned(),
        });
    }

    fn lost(&self, reason: String) -> RunError {
        RunError::Lost { reason, rows: self.journal.rows().len() }
    }

    fn tell(&mut self, shard: &Shard, shape: Shape, fate: Fate, left: Duration) {
        self.position += 1;
        let (position, total) = (self.position, self.total);
        let tensor_parallel = shard.tensor_parallel;
        self.observer.progress(&Progress { tensor_parallel, shape, fate, position, total, left });
    }
}

/// What a run has to show.
struct Work {
    journal: Journal,
    failed: Vec<FailedShape>,
    skipped: usize,
    started: SystemTime,
    already: usize,
}

/// Joins journal and finished profile, writes CSV and manifest, and only then drops the journal.
fn finish(
    job: &Job,
    backend: &dyn Backend,
    fingerprint: Fingerprint,
    finished: Finished,
    work: Work,
) -> Result<Outcome, RunError> {
    let Work { journal, failed, skipped, started, already } = work;
    let measured = journal.rows().len();
    if measured == 0 {
        journal.remove()?;
        if finished.table.is_empty() {
            let reason = match failed.first() {
                Some(first) => format!("{}: {}", first.shape, first.reason),
                None => "no shape fits into the budget; give --budget more".into(),
            };
            return Err(RunError::Nothing(reason));
        }
        return Ok(Outcome { table: finished.table, measured, already, failed, skipped });
    }
    let mut table = finished.table;
    table.extend(journal.rows().clone());
    let csv = table.to_csv();
    let date = |t: SystemTime| humantime::format_rfc3339_seconds(t).to_string();
    let mut runs = finished.runs;
    runs.push(Run {
        command: job.command.clone(),
        started: date(started),
        finished: date(SystemTime::now()),
        rows: measured,
        skipped,
    });
    let manifest = Manifest {
        profile: job.kind.name().into(),
        model: job.model.name.clone(),
        provenance: "measured".into(),
        vidur_version: env!("CARGO_PKG_VERSION").into(),
        device: backend.device().clone(),
        host_os: job.host_os.clone(),
        fingerprint,
        rows: table.len(),
        sha256: sha256_hex(&csv),
        noise: noise(&table),
        failed: failed.clone(),
        runs,
    };
    let manifest_path = job.files.manifest();
    let mut json = serde_json::to_string_pretty(&manifest)
        .map_err(io::Error::from)
        .map_err(WriteError::io("write", &manifest_path))?;
    json.push('\n');
    write_atomically(&job.files.csv(), &csv)?;
    write_atomically(&manifest_path, json.as_bytes())?;
    journal.remove()?;
    Ok(Outcome { table, measured, already, failed, skipped })
}

#[cfg(test)]
#[path = "runner_testing.rs"]
pub(crate) mod testing;
#[cfg(test)]
#[path = "runner_tests.rs"]
mod tests;
