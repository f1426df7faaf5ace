//! The command line: arguments as typed, one file per subcommand. The only room that prints or
//! decides the exit code. Data goes to stdout, messages to stderr.

mod bench;
mod capacity;
mod devices;
mod explain;
mod fit;
mod import;
mod models;
mod profile;
mod report;
mod simulate;
mod table;
mod validate;

use crate::predictor::TableCache;
use crate::report::run_dir::{RunDir, RunDirError};
use clap::{Parser, Subcommand};
use std::fmt::Display;
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

/// Predicts how fast, at what latency and at what price a large language model will serve.
#[derive(Debug, Parser)]
#[command(name = "vidur", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Time the operators of a model on this machine and store them as CSV.
    Profile(profile::Args),
    /// Turn timings that others published into profiles.
    Import(import::Args),
    /// Fit predictors to profiles and report their held-out error.
    Fit(fit::Args),
    /// Simulate serving and report latency and throughput.
    Simulate(simulate::Args),
    /// Find the cheapest configuration that keeps its objectives.
    Capacity(capacity::Args),
    /// Say where each millisecond of a run went, and which change would help most.
    Explain(explain::Args),
    /// Write a run, or the answers of a plan, as one HTML file.
    Report(report::Args),
    /// Compare predictions with what really runs.
    Validate(validate::Args),
    /// Time the simulator itself.
    Bench(bench::Args),
    /// List the models in the catalogue, or add one from a Hugging Face config.json.
    Models(models::Args),
    /// List the devices and nodes in the catalogue.
    Devices(devices::Args),
}

/// Why a command did not finish. Each message is one line that names what is wrong and the cure.
#[derive(Debug)]
pub enum Failure {
    /// The user's to mend: exit code 2.
    User(String),
    /// A tool or a device that failed at what it can do: exit code 1.
    Machine(String),
    /// Ours to mend: exit code 1.
    Internal(String),
}

impl Failure {
    /// Something that the user can mend.
    pub fn user(message: impl Display) -> Self {
        Failure::User(message.to_string())
    }

    /// What a tool or a device failed at.
    pub fn machine(message: impl Display) -> Self {
        Failure::Machine(message.to_string())
    }

    /// Something that only we can mend.
    pub fn internal(message: impl Display) -> Self {
        Failure::Internal(message.to_string())
    }

    /// What it says.
    fn words(&self) -> &str {
        match self {
            Failure::User(words) | Failure::Machine(words) | Failure::Internal(words) => words,
        }
    }

    /// The same, with what it happened to before it.
    fn said_of(&self, what: &str) -> Failure {
        let words = format!("{what}: {}", self.words());
        match self {
            Failure::User(_) => Failure::User(words),
            Failure::Machine(_) => Failure::Machine(words),
            Failure::Internal(_) => Failure::Internal(words),
        }
    }

    /// The failure that stands for several: the first that the user cannot mend, else the first; none of
    /// none.
    fn of_several(mut failures: Vec<Failure>) -> Result<(), Failure> {
        let theirs = failures.iter().position(|failure| !matches!(failure, Failure::User(_)));
        let more = failures.len().saturating_sub(1);
        let worst = match failures.is_empty() {
            true => return Ok(()),
            false => failures.swap_remove(theirs.unwrap_or(0)),
        };
        Err(match (more, worst) {
            (0, worst) => worst,
            (_, Failure::User(words)) => Failure::User(format!("{words} ({more} more failed)")),
            (_, Failure::Machine(words)) => {
                Failure::Machine(format!("{words} ({more} more failed)"))
            }
            (_, worst) => worst,
        })
    }
}

/// Says when fitted tables could not be kept, as the next run then fits them again.
fn note_cache(cache: &TableCache) {
    if let Some(trouble) = cache.trouble() {
        eprintln!(
            "note: fitted tables are not kept: {trouble}; set VIDUR_CACHE_DIR to a folder that can \
             be written"
        );
    }
}

/// Parses the command line, runs what it asks for and prints the failure if there is one.
pub fn run() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Profile(args) => profile::run(args),
        Command::Import(args) => import::run(args),
        Command::Fit(args) => fit::run(args),
        Command::Simulate(args) => simulate::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Report(args) => report::run(args),
        Command::Capacity(args) => capacity::run(args),
        Command::Validate(args) => validate::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Models(args) => models::run(args),
        Command::Devices(args) => devices::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::User(message)) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
        Err(Failure::Machine(message)) => {
            eprintln!("error: {message}");
            ExitCode::from(1)
        }
        Err(Failure::Internal(message)) => {
            eprintln!("internal error: {message}");
            ExitCode::from(1)
        }
    }
}

/// The folder of a run: the one asked for, or a new one `runs/<time>-<name>`, with a number behind it
/// when that second is taken.
fn new_run_dir(asked: Option<&Path>, name: &str) -> Result<RunDir, Failure> {
    if let Some(dir) = asked {
        return RunDir::create(dir).map_err(Failure::user);
    }
    let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let time = time.replace(['-', ':', 'Z'], "").replace('T', "-");
    let base = format!("runs/{time}-{name}");
    for attempt in 1..1000 {
        let name = if attempt == 1 { base.clone() } else { format!("{base}-{attempt}") };
        match RunDir::create(Path::new(&name)) {
            Err(RunDirError::Exists { .. }) => {}
            other => return other.map_err(Failure::user),
        }
    }
    Err(Failure::user(format!("{base}: a thousand runs have this name; give --output-dir")))
}
