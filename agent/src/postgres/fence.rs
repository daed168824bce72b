//! Fencing: SIGKILL for every process of the instance, until none is left.
//!
//! Needs no connection, no async runtime and no cooperation. Other signals do not do: a stopped
//! postmaster passes nothing on, and its backends go on writing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pgherd_common::{Clock, MonoTime, time::RealClock};
use rustix::event::Timespec;
use rustix::process::{Signal, setpriority_process};

use super::process::{self, Process};

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
    #[error("cannot tell which processes of the PostgreSQL on {data_dir:?} run; is /proc mounted?")]
    Blind {
        /// The data directory.
        data_dir: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
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
        source: std::io::Error,
    },
}

/// Kills every process of the instance on `data_dir` and waits until all are gone; how many there
/// were. Blocks the thread for at most `deadline`.
pub fn kill_instance(data_dir: &Path, deadline: Duration) -> Result<usize, FenceError> {
    let until = RealClock.now() + deadline;
    let mut killed = 0;
    let mut quiet_scans = 0;
    while quiet_scans < 2 {
        let found = process::processes(data_dir)
            .map_err(|source| FenceError::Blind { data_dir: data_dir.to_owned(), source })?;
        if found.is_empty() {
            // A fork that was under way during the first empty scan shows up in the second.
            quiet_scans += 1;
            continue;
        }
        quiet_scans = 0;
        killed += found.len();
        kill_all(data_dir, &found, until)?;
    }
    Ok(killed)
}

fn kill_all(data_dir: &Path, found: &[Process], until: MonoTime) -> Result<(), FenceError> {
    for process in found {
        // On a busy machine the dying wait for a processor like everybody else. Without the right to
        // hurry them they take a little longer.
        let _hurry = process.id().map(|pid| setpriority_process(Some(pid), -20));
        let refused =
            |source| FenceError::Refused { data_dir: data_dir.to_owned(), pid: process.pid, source };
        match process.signal(Signal::KILL) {
            Err(error) if process.is_alive() => return Err(refused(error)),
            Ok(()) | Err(_) => {}
        }
    }
    for process in found {
        let left = until.since(RealClock.now());
        let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 60, tv_nsec: 0 });
        if !process::ready(&[process], Some(&timeout)) {
            let survivors = found.iter().filter(|process| process.is_alive()).map(|process| process.pid);
            return Err(FenceError::Survivors {
                data_dir: data_dir.to_owned(),
                survivors: survivors.collect(),
            });
        }
        process.reap();
    }
    Ok(())
}
