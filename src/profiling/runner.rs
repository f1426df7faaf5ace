//! Measures the shapes of a plan, one after the other, so that whatever happens no row is lost.
//!
//! Machines drift within minutes, so one moment is a bad sample: once every shape has a row, the
//! rest of the budget goes into further rounds, and a row's figures are those of all samples that
//! this process took. Rows of earlier processes count as measured and stay as they are: their
//! samples have gone with the process.

use super::backend::{Backend, Effort, Peaks, Shape, Shard};
use super::compute;
use super::session::Session;
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
    /// How long to measure each, all rounds together.
    pub effort: Effort,
    /// Times that each shape is measured, at least 1; the budget may end the later ones early.
    pub rounds: u32,
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

impl Job {
    /// How long to measure a shape in one round.
    pub fn effort_per_round(&self) -> Effort {
        self.effort.over(self.rounds)
    }
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
    /// Something that people should know.
    fn note(&mut self, _note: &str) {}
    /// A shape is measured once more, has failed or is left out.
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
    /// Round that it was measured in, from 1.
    pub round: u32,
    /// Measurements made or left out so far, every round of every shape counted.
    pub position: usize,
    /// Measurements in all: shapes times rounds.
    pub total: usize,
    /// Time that the rest of this degree will take in all rounds, within the budget.
    pub left: Duration,
}

/// What became of a shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Measured; its row is on disk.
    Measured,
    /// It could not be measured. The row of an earlier round stays, and there is no further round.
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
    /// Shapes that could not be measured in the first round.
    pub failed: Vec<FailedShape>,
    /// Shapes that the budget left without a row.
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
            let key = row_key(&shard, shape, job, backend.attention_kernel())?;
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
    let total = total * job.rounds.max(1) as usize;
    let mut session = Session::new(job, backend, peaks, clock, observer, journal, total);
    for (i, (shard, shapes)) in pending.iter().enumerate() {
        // Each degree gets an even share of what is left.
        let degrees_left = (pending.len() - i) as u32;
        session.measure_shard(shard, shapes, degrees_left)?;
    }
    let (journal, failed, skipped) = session.into_parts();
    finish(job, backend, fingerprint, finished, Work { journal, failed, skipped, started, already })
}

/// Identity of the row that `shape` makes.
fn row_key(shard: &Shard, shape: Shape, job: &Job, kernel: &str) -> Result<RowKey, RunError> {
    job.kind.row_key(&compute::keys(shard, shape, job.max_model_len, kernel)).map_err(|message| {
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
        rounds: job.rounds.max(1),
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
#[path = "rounds_tests.rs"]
mod rounds_tests;
#[cfg(test)]
#[path = "runner_testing.rs"]
pub(crate) mod testing;
#[cfg(test)]
#[path = "runner_tests.rs"]
mod tests;
