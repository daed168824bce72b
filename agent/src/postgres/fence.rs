//! Fencing: SIGKILL for every process of the instance, until none is left.
//!
//! Needs no connection, no async runtime and no cooperation. Other signals do not do: a stopped
//! postmaster passes nothing on, and its backends go on writing.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgherd_common::{Clock, MonoTime, time::RealClock};
use rustix::event::Timespec;
use rustix::process::{Signal, setpriority_process};

use super::process::{self, Process};

/// How many dying processes are held by a descriptor at a time. The rest are killed all the same, and
/// seen again.
const HELD_MAX: usize = 64;
/// Between two looks at dying processes that could not be held: their end is announced to nobody.
const UNHELD_PAUSE: Duration = Duration::from_millis(1);

/// The data directory may still be written to.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// Processes that SIGKILL has not ended.
    #[error(
        "{} process(es) of the PostgreSQL on {data_dir:?} survive SIGKILL (pids {survivors:?}); \
         they most likely hang in a disk operation: check the storage, or power the host off",
        survivors.len()
    )]
    Survivors {
        /// The data directory.
        data_dir: PathBuf,
        /// Who is left.
        survivors: Vec<u32>,
    },
    /// Processes cannot be listed.
    #[error(
        "cannot tell which processes of the PostgreSQL on {data_dir:?} run: the list in /proc cannot be read; is it mounted, and may the agent open enough files (ulimit -n)?"
    )]
    Blind {
        /// The data directory.
        data_dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The runtime ended first.
    #[error("the agent shut down before the PostgreSQL on {data_dir:?} was surely killed")]
    Interrupted {
        /// The data directory.
        data_dir: PathBuf,
    },
    /// A signal was refused.
    #[error(
        "may not kill process {pid} of the PostgreSQL on {data_dir:?}; the agent must run as root or as the owner of the data directory"
    )]
    Refused {
        /// The data directory.
        data_dir: PathBuf,
        /// Which process.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Kills every process of the instance on `data_dir` and waits until all are gone; how many there
/// were. Blocks the thread for at most `deadline`.
///
/// What goes wrong with one process spares no other: an error is told only about what is left.
pub fn kill_instance(data_dir: &Path, deadline: Duration) -> Result<usize, FenceError> {
    let until = RealClock.now() + deadline;
    let mut killed = BTreeSet::new();
    let (mut quiet_scans, mut waited) = (0, false);
    // A fork that was under way during the first empty scan shows up in the second.
    while quiet_scans < 2 {
        let round = Round::strike(data_dir)
            .map_err(|source| FenceError::Blind { data_dir: data_dir.to_owned(), source })?;
        if round.is_empty() {
            quiet_scans += 1;
            continue;
        }
        quiet_scans = 0;
        killed.extend(round.struck.iter().copied());
        if waited && RealClock.now() >= until || round.struck.is_empty() {
            return Err(round.left(data_dir));
        }
        round.wait(until);
        waited = true;
    }
    Ok(killed.len())
}

/// One pass over the processes of this machine.
#[derive(Default)]
struct Round {
    /// Who was sent the signal.
    struck: Vec<u32>,
    /// Those of them that are held.
    held: Vec<Process>,
    /// The first that could not be sent it.
    refused: Option<(u32, io::Error)>,
}

impl Round {
    /// Kills every process of the instance as soon as it is found.
    fn strike(data_dir: &Path) -> io::Result<Self> {
        let mut round = Self::default();
        for pid in process::everybody()? {
            let struck = match Process::of_instance(pid, data_dir) {
                Ok(None) => continue,
                Ok(Some(process)) => kill(&process).map(|()| round.hold(process)),
                Err(_) => match process::kill_unheld(pid, data_dir) {
                    Ok(true) => Ok(()),
                    Ok(false) => continue,
                    Err(error) => Err(error),
                },
            };
            match struck {
                Ok(()) => round.struck.push(pid),
                Err(error) => drop(round.refused.get_or_insert((pid, error))),
            }
        }
        Ok(round)
    }

    fn hold(&mut self, process: Process) {
        if self.held.len() < HELD_MAX {
            self.held.push(process);
        }
    }

    fn is_empty(&self) -> bool {
        self.struck.is_empty() && self.refused.is_none()
    }

    /// Returns when all that are held have ended, or when there is no more time.
    fn wait(&self, until: MonoTime) {
        if self.held.is_empty() {
            process::ready(&[], Some(&timeout(UNHELD_PAUSE)));
        }
        for process in &self.held {
            if process::ready(&[process], Some(&timeout(until.since(RealClock.now())))) {
                process.reap();
            }
        }
    }

    fn left(self, data_dir: &Path) -> FenceError {
        let data_dir = data_dir.to_owned();
        match self.refused {
            Some((pid, source)) => FenceError::Refused { data_dir, pid, source },
            None => FenceError::Survivors { data_dir, survivors: self.struck },
        }
    }
}

fn kill(process: &Process) -> io::Result<()> {
    // On a busy machine the dying wait for a processor like everybody else. Without the right to hurry
    // them they take a little longer.
    let _hurry = process.id().map(|pid| setpriority_process(Some(pid), -20));
    match process.signal(Signal::KILL) {
        Err(error) if process.is_alive() => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn timeout(patience: Duration) -> Timespec {
    Timespec::try_from(patience).unwrap_or(Timespec { tv_sec: 60, tv_nsec: 0 })
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    const DIR: &str = "PGHERD_TEST_FENCE";
    const PATIENCE: Duration = Duration::from_secs(20);

    /// The test runs itself again, with fewer descriptors than there are processes to kill.
    #[test]
    fn more_processes_than_descriptors_are_all_killed() {
        if let Some(dir) = std::env::var_os(DIR) {
            assert_eq!(kill_instance(Path::new(&dir), PATIENCE).unwrap(), 200);
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("postgres");
        std::fs::copy("/bin/sleep", &program).unwrap();
        let start = |_| Command::new(&program).arg("100").current_dir(dir.path()).spawn().unwrap();
        let mut servers: Vec<Child> = (0..200).map(start).collect();
        let name = "postgres::fence::tests::more_processes_than_descriptors_are_all_killed";
        let fenced = Command::new("prlimit")
            .arg("--nofile=16")
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(DIR, dir.path())
            .output()
            .unwrap();
        let spared =
            servers.iter_mut().filter_map(|server| server.try_wait().unwrap().is_none().then_some(()));
        let spared = spared.count();
        for server in &mut servers {
            server.kill().unwrap();
            server.wait().unwrap();
        }
        assert!(fenced.status.success(), "{fenced:?}");
        assert!(String::from_utf8_lossy(&fenced.stdout).contains("1 passed"), "{fenced:?}");
        assert_eq!(spared, 0);
    }
}
