//! One worker process: JSON lines on its stdin and stdout. Whatever it does instead of answering
//! (dying, hanging, printing rubbish) ends as a value that says so, and the process with it.

use serde_json::Value;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Lines of stderr that are kept to explain a death.
const KEPT_LINES: usize = 20;

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The worker says no and goes on.
    #[error("{message}")]
    Refused {
        /// `shape`, `memory`, `torch`, `device` or `protocol`.
        kind: String,
        /// Its words.
        message: String,
    },
    /// The process is gone: it died, hung or printed rubbish, and was killed.
    #[error("{0}")]
    Dead(String),
}

/// Variable that a worker finds its program in: a file would outlive us when we are killed, and an
/// argument would fill the list of processes.
const VARIABLE: &str = "VIDUR_WORKER";

/// Runs that program, and keeps it from the processes that the worker starts.
const BOOTSTRAP: &str =
    "import os; exec(compile(os.environ.pop('VIDUR_WORKER'), 'vidur-worker', 'exec'))";

/// A running worker.
pub struct Worker {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    complaints: Arc<Mutex<VecDeque<String>>>,
    /// Disconnects when all complaints have been read.
    silent: Receiver<()>,
    last_id: u64,
}

impl Worker {
    /// Starts `python` with `program`. `lnc`, physical cores to a logical NeuronCore, has to be
    /// known to Neuron's runtime before it begins.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn start(python: &Path, program: &str, lnc: Option<u32>) -> Result<Worker, CallError> {
        let mut command = Command::new(python);
        command.args(["-u", "-c", BOOTSTRAP]).env(VARIABLE, program);
        if let Some(lnc) = lnc {
            super::tool::set_logical_cores(&mut command, lnc);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let refused = |e: std::io::Error| {
            CallError::Dead(format!(
                "cannot start {}: {e}; give a Python interpreter with --python",
                python.display()
            ))
        };
        let mut child = command.spawn().map_err(refused)?;
        let (Some(stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            let _ = child.kill();
            return Err(CallError::Dead("the worker has no pipes".into()));
        };
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            let mut bytes = Vec::new();
            while let Ok(1..) = reader.read_until(b'\n', &mut bytes) {
                let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
                bytes.clear();
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let complaints = Arc::new(Mutex::new(VecDeque::new()));
        let kept = Arc::clone(&complaints);
        let (speaking, silent) = mpsc::channel();
        std::thread::spawn(move || {
            let _speaking: mpsc::Sender<()> = speaking;
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.push_back(line);
                if kept.len() > KEPT_LINES {
                    kept.pop_front();
                }
            }
        });
        Ok(Worker { child, stdin, lines, complaints, silent, last_id: 0 })
    }

    /// Sends `request` (an object with `do`) and waits for its answer.
    ///
    /// # Errors
    /// See [`CallError`]; after [`CallError::Dead`] every further call fails too.
    pub fn call(&mut self, mut request: Value, limit: Duration) -> Result<Value, CallError> {
        self.last_id += 1;
        request["id"] = self.last_id.into();
        let mut line = request.to_string();
        line.push('\n');
        if self.stdin.write_all(line.as_bytes()).and_then(|()| self.stdin.flush()).is_err() {
            return Err(self.end("the worker died"));
        }
        let line = match self.lines.recv_timeout(limit) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) => return Err(self.end("the worker died")),
            Err(RecvTimeoutError::Timeout) => {
                let limit = humantime::format_duration(limit);
                return Err(self.end(&format!("no answer within {limit}; the worker was killed")));
            }
        };
        answer(&line, self.last_id).unwrap_or_else(|what| Err(self.end(&what)))
    }

    /// Kills what is left of the process and says why, with its exit status and last words.
    fn end(&mut self, what: &str) -> CallError {
        // It may be dying: its own status says more than ours.
        let mut status = None;
        for _ in 0..200 {
            if let Ok(Some(ended)) = self.child.try_wait() {
                status = Some(ended);
                break;
            }
            if !what.ends_with("died") {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Unless a child of its own keeps the pipe open, its last words are complete soon.
        let _ = self.silent.recv_timeout(Duration::from_secs(1));
        let complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        let words = complaints.iter().rev().map(|line| line.trim()).find(|line| !line.is_empty());
        let words = words.map(|w| w.chars().take(200).collect::<String>());
        let status = status.map(|status| status.to_string());
        let details: Vec<String> = status.into_iter().chain(words).collect();
        CallError::Dead(match details.is_empty() {
            true => what.to_owned(),
            false => format!("{what} ({})", details.join("; ")),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the line that answers request `id` says.
///
/// # Errors
/// What is wrong with it: whoever prints that cannot be talked to any longer.
pub(super) fn answer(line: &str, id: u64) -> Result<Result<Value, CallError>, String> {
    let Ok(mut reply) = serde_json::from_str::<Value>(line) else {
        let start: String = line.chars().take(80).collect();
        return Err(format!("the worker printed `{start}` instead of an answer"));
    };
    if reply.get("id").and_then(Value::as_u64) != Some(id) {
        return Err("the worker answered another question".into());
    }
    if let Some(ok) = reply.get_mut("ok") {
        return Ok(Ok(ok.take()));
    }
    let Some(error) = reply.get("error") else {
        return Err("the worker's answer is neither ok nor error".into());
    };
    let text = |name: &str| error[name].as_str().unwrap_or("unknown").to_owned();
    Ok(Err(CallError::Refused { kind: text("kind"), message: text("message") }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_needs_no_file_and_hands_itself_to_nobody() {
        let program = "import json, os, sys\nfor line in sys.stdin:\n    id = json.loads(line)['id']\n    \
                       seen = [__name__, os.environ.get('VIDUR_WORKER')]\n    \
                       print(json.dumps({'id': id, 'ok': seen}), flush=True)\n";
        let mut worker = match Worker::start(Path::new("python3"), program, None) {
            Ok(worker) => worker,
            Err(e) => return eprintln!("skipped: {e}"),
        };
        let seen = worker.call(serde_json::json!({"do": "tell"}), Duration::from_secs(60)).unwrap();
        assert_eq!(seen, serde_json::json!(["__main__", null]));
    }
}
