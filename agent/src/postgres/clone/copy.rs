//! Running `pg_basebackup`.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use pgherd_common::{Clock, time::RealClock};
use rustix::event::Timespec;
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::super::conninfo::Conninfo;
use super::super::fence::FenceError;
use super::super::process;
use super::super::settings::Upstream;
use super::place::Layout;
use super::{CloneError, Copy, blocking};
use crate::guardian::release;

/// How long the kernel may take to end killed processes.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// How much of what it says an error shows.
const SAID_MAX: usize = 12;

impl Copy<'_> {
    /// Fills the prepared directories; how many bytes it took.
    pub(super) async fn run(&self, from: &Upstream, layout: &Layout) -> Result<u64, CloneError> {
        let program = self.settings.bin_dir.join("pg_basebackup");
        let mut command = self.command(&program, from, layout);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let child = command.spawn().map_err(|source| CloneError::Run { program, source })?;
        // It can take hours, and is not to be in anybody's way.
        if let Some(pid) = child.id() {
            release(pid);
        }
        self.working.step(&format!("waiting for a checkpoint of {}", from.node), 0, 0);
        tokio::select! {
            copied = self.follow(child, from) => copied,
            () = self.working.stopped() => {
                // The child was killed with its handle; it has one of its own that receives WAL.
                let staged = layout.data.staged.clone();
                blocking(move || end_leftovers(&staged)).await??;
                Err(CloneError::Stopped)
            }
        }
    }

    fn command(&self, program: &Path, from: &Upstream, layout: &Layout) -> Command {
        let settings = self.settings;
        let source = Conninfo::to(&from.address)
            .set("user", &settings.replication_user)
            .set("application_name", "pgherd-clone")
            .set("connect_timeout", "5")
            // The only bound on its run time: a source that has gone away ends it.
            .set("tcp_user_timeout", "15000")
            .finish();
        let mut command = self.owner.command(program);
        // WAL comes in over a temporary slot, so that the source removes none of it too early.
        command.args(["--checkpoint=fast", "--wal-method=stream", "--progress", "--no-password"]);
        command.arg("--label=pgherd").arg("-d").arg(source).arg("-D").arg(&layout.data.staged);
        if let Some(wal) = &layout.wal {
            command.arg(format!("--waldir={}", wal.staged.display()));
        }
        for space in &layout.spaces {
            let (there, here) = (escaped(&space.there), escaped(&space.staged()));
            command.arg(format!("--tablespace-mapping={there}={here}"));
        }
        if let Some(rate) = self.rate {
            command.arg(format!("--max-rate={}k", (rate / 1024).max(1)));
        }
        if let Some(password) = &settings.replication_password {
            // Not on the command line, which everybody on the host can read.
            command.env("PGPASSWORD", &password.0);
        }
        // Where a later process looks for it, should this one die.
        command.env("LC_ALL", "C").current_dir(&layout.data.staged);
        command
    }

    async fn follow(&self, mut child: Child, from: &Upstream) -> Result<u64, CloneError> {
        let mut said = Vec::new();
        let mut bytes = 0;
        let step = format!("copying from {}", from.node);
        if let Some(stderr) = child.stderr.take() {
            let mut lines = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                match progress(&line) {
                    Some((done, total)) => {
                        bytes = done;
                        self.working.step(&step, done, total.max(done));
                    }
                    None if line.trim().is_empty() => {}
                    None => {
                        said.push(line);
                        let excess = said.len().saturating_sub(SAID_MAX);
                        said.drain(..excess);
                    }
                }
            }
        }
        let program = self.settings.bin_dir.join("pg_basebackup");
        let status = child.wait().await.map_err(|source| CloneError::Run { program, source })?;
        if status.success() {
            return Ok(bytes);
        }
        let (status, output) = (status.to_string(), said.join("\n"));
        Err(CloneError::Failed { source_node: Box::new(from.clone()), status, output })
    }
}

/// Bytes from `  12345/67890 kB (18%), 0/1 tablespace`.
fn progress(line: &str) -> Option<(u64, u64)> {
    let (counts, _) = line.trim_start().split_once(" kB (")?;
    let (done, total) = counts.split_once('/')?;
    Some((done.trim().parse::<u64>().ok()? * 1024, total.trim().parse::<u64>().ok()? * 1024))
}

/// Ends what fills this directory since an agent died that had begun it.
pub(super) fn end_leftovers(staged: &Path) -> Result<(), FenceError> {
    let until = RealClock.now() + KILL_PATIENCE;
    loop {
        let blind = |source| FenceError::Blind { data_dir: staged.to_owned(), source };
        let left = process::copying_into(staged).map_err(blind)?;
        if left.is_empty() {
            return Ok(());
        }
        tracing::warn!(pids = ?left.iter().map(|left| left.pid).collect::<Vec<_>>(), "ending an interrupted copy");
        for process in &left {
            let refused =
                |source| FenceError::Refused { data_dir: staged.to_owned(), pid: process.pid, source };
            match process.signal(Signal::KILL) {
                Err(error) if process.is_alive() => return Err(refused(error)),
                Ok(()) | Err(_) => {}
            }
        }
        let held: Vec<_> = left.iter().collect();
        process::ready(&held, Some(&Timespec { tv_sec: 1, tv_nsec: 0 }));
        if RealClock.now() >= until {
            let survivors = left.iter().map(|left| left.pid).collect();
            return Err(FenceError::Survivors { data_dir: staged.to_owned(), survivors });
        }
    }
}

/// As pg_basebackup wants paths that may hold what it splits at.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace('=', "\\=")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_and_nothing_else_is() {
        assert_eq!(progress("  24605/30805 kB (79%), 0/1 tablespace"), Some((24605 * 1024, 30805 * 1024)));
        assert_eq!(progress("0/30805 kB (0%), 0/1 tablespace (...a/base/1/2)"), Some((0, 30805 * 1024)));
        for other in ["waiting for checkpoint", "pg_basebackup: error: 1/2 kB", ""] {
            assert_eq!(progress(other), None, "{other}");
        }
    }
}
