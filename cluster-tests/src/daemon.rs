//! A program that keeps running: an agent or a proxy, with its log.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::network::{AS_POSTGRES, Place};
use crate::process;

/// A program that did not start or stop.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Its log cannot be opened.
    #[error("cannot open {log}")]
    Log {
        /// Which log.
        log: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It cannot be started.
    #[error("cannot start {name}")]
    Start {
        /// Which.
        name: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It does not end.
    #[error("{name} (pid {pid}) still runs {within:?} after {signal:?}")]
    StillRuns {
        /// Which.
        name: String,
        /// Its process.
        pid: u32,
        /// What it was sent.
        signal: Signal,
        /// How long ago.
        within: Duration,
    },
}

/// How to start it, and the process if it was started.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    place: Place,
    cwd: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    /// Describes a program; its log is `<cwd>/<name>.log`.
    pub fn new(name: &str, program: &Path, arguments: Vec<String>, place: Place, cwd: &Path) -> Self {
        Self {
            name: name.to_owned(),
            program: program.to_owned(),
            arguments,
            place,
            cwd: cwd.to_owned(),
            log: cwd.join(format!("{name}.log")),
            child: None,
        }
    }

    /// The same, as the operating system user `postgres`.
    pub fn of_postgres(name: &str, program: &Path, arguments: Vec<String>, place: Place, cwd: &Path) -> Self {
        let program = program.display().to_string();
        // Whatever locale the caller has need not exist here.
        let first = AS_POSTGRES.map(str::to_owned).into_iter();
        let first = first.chain(["env".to_owned(), "LC_ALL=C.UTF-8".to_owned(), program]);
        Self::new(name, Path::new("setpriv"), first.chain(arguments).collect(), place, cwd)
    }

    /// Starts it; its output is appended to the log.
    pub fn start(&mut self) -> Result<(), DaemonError> {
        let log = |source| DaemonError::Log { log: self.log.clone(), source };
        let out = OpenOptions::new().create(true).append(true).open(&self.log).map_err(log)?;
        let err = out.try_clone().map_err(log)?;
        let child = self
            .command()
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            // A Ctrl-C at the terminal is for whoever holds the cluster.
            .process_group(0)
            .spawn()
            .map_err(|source| DaemonError::Start { name: self.name.clone(), source })?;
        self.child = Some(child);
        Ok(())
    }

    /// The command that starts it, for a caller who wants its output.
    pub fn command(&self) -> Command {
        let mut command = self.place.command(&self.program);
        command.args(&self.arguments).current_dir(&self.cwd).env("RUST_BACKTRACE", "1").env("NO_COLOR", "1");
        command
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().ok().flatten())
    }

    /// Sends the signal and waits for the end.
    pub async fn stop(&mut self, signal: Signal, within: Duration) -> Result<(), DaemonError> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let Some(pid) = child.id() else { return Ok(()) };
        process::signal(pid, signal);
        if timeout(within, child.wait()).await.is_ok() {
            return Ok(());
        }
        self.child = Some(child);
        Err(DaemonError::StillRuns { name: self.name.clone(), pid, signal, within })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }
}
