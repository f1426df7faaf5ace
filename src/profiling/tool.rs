//! Running the vendors' command-line tools: found in named folders, ended at a deadline, with what
//! they printed. A tool that is absent, fails or hangs is a value, never a panic or a wait for ever.

use std::ffi::OsStr;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long what a tool has printed may take to arrive after its end.
const GRACE: Duration = Duration::from_secs(2);

/// Where AWS installs its Neuron tools, which are often not on the PATH (package aws-neuronx-tools).
const NEURON_BIN: &str = "/opt/aws/neuron/bin";

/// Folders that tools are looked up in, and where the kernel describes devices.
#[derive(Clone, Debug)]
pub struct Tools {
    folders: Vec<PathBuf>,
    /// Root of sysfs.
    pub sys: PathBuf,
    /// Where the Neuron runtime captures what it runs, if the environment has it do so.
    pub inspect: Option<PathBuf>,
    /// How long one tool may take.
    pub deadline: Duration,
}

/// What a tool left behind.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed, invalid UTF-8 replaced.
    pub stdout: String,
    /// What it complained about, likewise.
    pub stderr: String,
}

/// Why there is no output.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// No file of that name.
    #[error("not found on the PATH")]
    Absent,
    /// The system refused to start it.
    #[error("cannot be started: {0}")]
    Start(std::io::Error),
    /// It did not end in time and was killed.
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Late(Duration),
}

impl Tools {
    /// Those of this machine: the folders of PATH, then Neuron's own.
    pub fn system() -> Tools {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
        folders.push(NEURON_BIN.into());
        let inspect = super::graph::inspect::folder(|name| std::env::var(name).ok());
        Tools { folders, sys: "/sys".into(), inspect, deadline: Duration::from_secs(20) }
    }

    /// Only those in `folder`, with the kernel's description under `sys`.
    pub fn only(folder: &Path, sys: &Path) -> Tools {
        let deadline = Duration::from_secs(20);
        Tools { folders: vec![folder.to_owned()], sys: sys.to_owned(), inspect: None, deadline }
    }

    /// The first file of that name.
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        self.folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file())
    }

    /// Runs `name` and waits for its end.
    ///
    /// # Errors
    /// See [`ToolError`]; a tool that ends with an error is no error here.
    pub fn run<S: AsRef<OsStr>>(&self, name: &str, args: &[S]) -> Result<Output, ToolError> {
        let mut command = self.command(name)?;
        command.args(args);
        run(command, self.deadline)
    }

    /// A command that runs `name`.
    ///
    /// # Errors
    /// [`ToolError::Absent`].
    pub fn command(&self, name: &str) -> Result<Command, ToolError> {
        self.find(name).map(Command::new).ok_or(ToolError::Absent)
    }
}

impl Tools {
    /// Runs `name`, which need not end by itself, until it prints a line that `take` makes something
    /// of; then it is killed.
    ///
    /// # Errors
    /// [`ToolError::Late`] when no such line comes within `limit`, or before the tool's end.
    pub fn watch<T>(
        &self,
        name: &str,
        limit: Duration,
        take: impl Fn(&str) -> Option<T>,
    ) -> Result<T, ToolError> {
        let mut command = self.command(name)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = start(&mut command)?;
        let (end, pipe) = (Instant::now() + limit, drain(child.stdout.take()));
        let mut bytes: Vec<u8> = Vec::new();
        let mut taken = None;
        while taken.is_none()
            && let Ok(piece) = pipe.recv_timeout(end.saturating_duration_since(Instant::now()))
        {
            bytes.extend(piece);
            while let (None, Some(at)) = (&taken, bytes.iter().position(|&b| b == b'\n')) {
                let line: Vec<u8> = bytes.drain(..=at).collect();
                taken = take(&String::from_utf8_lossy(&line));
            }
        }
        let _ = child.kill();
        let _ = child.wait();
        taken.ok_or(ToolError::Late(limit))
    }
}

/// Runs `command` to its end, or kills it at the deadline.
///
/// # Errors
/// See [`ToolError`].
pub fn run(command: Command, deadline: Duration) -> Result<Output, ToolError> {
    run_lines(command, deadline, &mut |_| {})
}

/// As [`run`], and hands over every whole line of stdout as soon as it is there: a tool that is killed
/// loses nothing that it had printed.
///
/// # Errors
/// See [`ToolError`].
pub fn run_lines(
    mut command: Command,
    deadline: Duration,
    take: &mut dyn FnMut(&str),
) -> Result<Output, ToolError> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = start(&mut command)?;
    let end = Instant::now() + deadline;
    // Pipes are read beside the waiting: a full one would stop the tool. A grandchild may hold them
    // open after the tool's end, so nothing waits long for their end either.
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let (mut said, mut told): (Vec<u8>, usize) = (Vec::new(), 0);
    let mut hear = |piece: Vec<u8>| {
        said.extend(piece);
        while let Some(length) = said[told..].iter().position(|&b| b == b'\n') {
            take(&String::from_utf8_lossy(&said[told..told + length]));
            told += length + 1;
        }
    };
    let status = wait(&mut child, end, &mut |pause| match stdout.recv_timeout(pause) {
        Ok(piece) => hear(piece),
        Err(mpsc::RecvTimeoutError::Timeout) => {}
        Err(mpsc::RecvTimeoutError::Disconnected) => std::thread::sleep(pause),
    });
    let rest = |pipe: mpsc::Receiver<Vec<u8>>, hear: &mut dyn FnMut(Vec<u8>)| {
        let until = Instant::now() + GRACE;
        while let Ok(piece) = pipe.recv_timeout(until.saturating_duration_since(Instant::now())) {
            hear(piece);
        }
    };
    let Some(status) = status.map_err(ToolError::Start)? else {
        return Err(ToolError::Late(deadline));
    };
    rest(stdout, &mut hear);
    let mut complaints = Vec::new();
    rest(stderr, &mut |piece| complaints.extend(piece));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Output { status, stdout: text(&said), stderr: text(&complaints) })
}

/// Tells Neuron's runtime in `command` that a logical NeuronCore is `lnc` physical ones.
pub fn set_logical_cores(command: &mut Command, lnc: u32) {
    // Two names of one setting; SDKs differ in which they read.
    for name in ["NEURON_LOGICAL_NC_CONFIG", "NEURON_RT_VIRTUAL_CORE_SIZE"] {
        command.env(name, lnc.to_string());
    }
}

/// Starts `command`. A file that another process still holds open for writing is tried again for a
/// moment: it has just been installed.
fn start(command: &mut Command) -> Result<Child, ToolError> {
    for _ in 0..50 {
        match command.spawn() {
            Err(e) if e.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other.map_err(ToolError::Start),
        }
    }
    command.spawn().map_err(ToolError::Start)
}

/// Waits until `end`, doing `meanwhile` for a while again and again; a child that is still there then
/// is killed, and it is `None`.
fn wait(
    child: &mut Child,
    end: Instant,
    meanwhile: &mut dyn FnMut(Duration),
) -> std::io::Result<Option<ExitStatus>> {
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            // It may have ended in between; either way it is reaped.
            let _ = child.kill();
            let _ = child.wait();
            return Ok(None);
        }
        meanwhile(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Reads a pipe on a thread of its own, piece by piece.
fn drain(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    if let Some(mut pipe) = pipe {
        std::thread::spawn(move || {
            let mut buffer = [0; 1 << 16];
            while let Ok(n @ 1..) = pipe.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
    }
    receiver
}

impl Output {
    /// The output of a tool that succeeded; otherwise what went wrong, in one line.
    ///
    /// # Errors
    /// The tool's own last words and its exit code.
    pub fn success(self) -> Result<String, String> {
        if self.status.success() {
            return Ok(self.stdout);
        }
        Err(self.to_string())
    }
}

/// The end of the story in one line: the last thing that was said, and the exit code.
impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = |text: &str| {
            let line = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
            Some(line.chars().take(200).collect::<String>())
        };
        let words = said(&self.stderr).or_else(|| said(&self.stdout));
        let end = match self.status.code() {
            Some(code) => format!("exit code {code}"),
            None => self.status.to_string(),
        };
        match words {
            Some(words) => write!(f, "{words} ({end})"),
            None => write!(f, "{end} without a word"),
        }
    }
}

#[cfg(all(test, unix))]
#[path = "tool_testing.rs"]
pub(crate) mod testing;

#[cfg(all(test, unix))]
#[path = "tool_tests.rs"]
mod tests;
