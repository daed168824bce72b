//! Runs one program: without a shell, in a process group of its own, for a limited time, its output read up to a limit.

use std::fmt;
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pgherd_common::time::RealClock;
use pgherd_common::{Clock, Generation};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use crate::guardian::release;
use crate::notify::About;

/// So much of what a script writes is kept; the rest is read and forgotten.
const OUTPUT_MAX: usize = 64 << 10;

/// A script that has ended may have left something behind that holds its output open: that is not waited for.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// What a script finds in its environment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Surroundings(Vec<(String, String)>);

impl Surroundings {
    pub(crate) fn of(about: &About, event: &str, generation: Generation) -> Self {
        let mut surroundings = Self::default();
        surroundings.add("CLUSTER", &about.cluster);
        surroundings.add("NODE", &about.node);
        surroundings.add("EVENT", event);
        surroundings.add("GENERATION", generation);
        surroundings
    }

    /// `PGHERD_<name>`.
    pub(crate) fn add(&mut self, name: &str, value: impl fmt::Display) {
        self.0.push((format!("PGHERD_{name}"), value.to_string()));
    }
}

/// How a script ended.
#[derive(Debug)]
pub(crate) enum End {
    /// With 0.
    Success,
    /// With something else.
    Failed(ExitStatus),
    /// It was killed, with everything it had started.
    TooSlow(Duration),
    /// It never ran.
    NotStarted(std::io::Error),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success => f.write_str("succeeded"),
            Self::Failed(status) => write!(f, "failed ({status})"),
            Self::TooSlow(within) => write!(f, "did not end within {within:?} and was killed"),
            Self::NotStarted(error) => write!(f, "could not be started: {error}"),
        }
    }
}

/// A script that was run.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) end: End,
    /// What it wrote, to either output.
    pub(crate) output: String,
    pub(crate) took: Duration,
}

impl Ran {
    pub(crate) fn into_result(self) -> Result<(), String> {
        match self.end {
            End::Success => Ok(()),
            failed => Err(format!("the script {failed}: {}", self.output.trim())),
        }
    }

    /// Its output, to be put behind a sentence.
    pub(crate) fn quoted(&self) -> String {
        match self.output.trim() {
            "" => String::new(),
            output => format!(". It said:\n{output}"),
        }
    }
}

/// Runs it to its end, or kills it. A future that is dropped kills it, too.
pub(crate) async fn run(arguments: &[String], surroundings: &Surroundings, within: Duration) -> Ran {
    let begun = RealClock.now();
    let output = Mutex::new(Vec::new());
    let end = run_into(&output, arguments, surroundings, within).await;
    let output = output.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ran { end, output: String::from_utf8_lossy(&output).into_owned(), took: RealClock.now().since(begun) }
}

async fn run_into(
    output: &Mutex<Vec<u8>>,
    arguments: &[String],
    surroundings: &Surroundings,
    within: Duration,
) -> End {
    let Some((program, arguments)) = arguments.split_first() else {
        return End::NotStarted(std::io::Error::other("no program is named"));
    };
    let mut command = Command::new(program);
    command.args(arguments).current_dir("/").envs(surroundings.0.iter().cloned()).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return End::NotStarted(error),
    };
    if let Some(pid) = child.id() {
        release(pid);
    }
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let reading = async { tokio::join!(drain(stdout, output), drain(stderr, output)) };
    tokio::pin!(reading);
    let deadline = tokio::time::sleep(within);
    tokio::pin!(deadline);
    let mut read = false;
    let ended = loop {
        tokio::select! {
            status = child.wait() => break Some(status),
            _ = &mut reading, if !read => read = true,
            () = &mut deadline => break None,
        }
    };
    let end = match ended {
        Some(Ok(status)) if status.success() => End::Success,
        Some(Ok(status)) => End::Failed(status),
        Some(Err(error)) => End::NotStarted(error),
        None => {
            group.kill();
            // Nothing withstands that signal.
            let _status = child.wait().await;
            End::TooSlow(within)
        }
    };
    // Its number may be another's from here on.
    group.0 = None;
    if !read {
        let _or_not = tokio::time::timeout(LAST_WORDS, reading).await;
    }
    end
}

async fn drain(pipe: Option<impl AsyncRead + Unpin>, output: &Mutex<Vec<u8>>) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = vec![0; 4096];
    loop {
        match pipe.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => {
                let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
                let room = OUTPUT_MAX - output.len();
                output.extend(buffer.iter().take(read.min(room)));
            }
        }
    }
}

/// A script and everything it has started.
struct Group(Option<Pid>);

impl Group {
    fn kill(&mut self) {
        if let Some(group) = self.0.take() {
            let _already_gone = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests;
