//! Running other programs to their end, and watching processes that are not our children.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
pub use rustix::process::Signal;
use rustix::process::{Pid, PidfdFlags, kill_process, pidfd_open};
use tokio::process::Command;
use tokio::time::timeout;

/// A program that did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It cannot be started at all.
    #[error("cannot run {command}")]
    Start {
        /// What was to be run.
        command: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It ended with another status than 0.
    #[error("{command} ended with {status}: {said}")]
    Failed {
        /// What was run.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it wrote.
        said: String,
    },
    /// It took too long and was killed.
    #[error("{command} did not end within {within:?} and was killed")]
    TooSlow {
        /// What was run.
        command: String,
        /// The time it had.
        within: Duration,
    },
}

/// The command line, as one would type it.
pub fn shown(command: &Command) -> String {
    let command = command.as_std();
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Runs the program to its end and returns what it wrote to its standard output.
pub async fn run(mut command: Command, within: Duration) -> Result<String, CommandError> {
    let line = shown(&command);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = match timeout(within, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(source)) => return Err(CommandError::Start { command: line, source }),
        Err(_) => return Err(CommandError::TooSlow { command: line, within }),
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let said = [text(&output.stderr), text(&output.stdout)].join("\n").trim().to_owned();
    Err(CommandError::Failed { command: line, status: output.status, said })
}

/// The process with this number, if it exists.
pub fn pid(number: u32) -> Option<Pid> {
    i32::try_from(number).ok().and_then(Pid::from_raw)
}

/// Sends a signal. A process that is gone is no error: it is what most signals are for.
pub fn signal(number: u32, signal: Signal) {
    if let Some(pid) = pid(number) {
        let _already_gone = kill_process(pid, signal);
    }
}

/// Waits for the end of a process, whoever's child it is. `false` when it still runs at the deadline.
pub async fn wait_gone(number: u32, within: Duration) -> bool {
    let Some(pidfd) = pid(number).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
        return true;
    };
    let ended = move || {
        let deadline = Timespec::try_from(within).ok();
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], deadline.as_ref())
    };
    matches!(tokio::task::spawn_blocking(ended).await, Ok(Ok(1)))
}

/// The postmaster of a data directory, if one runs. A stale `postmaster.pid` names no postmaster: the
/// process with that number would work in another directory.
pub fn postmaster(data_dir: &Path) -> Option<u32> {
    let text = std::fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
    let number = text.lines().next()?.trim().parse().ok()?;
    let cwd = std::fs::read_link(format!("/proc/{number}/cwd")).ok()?;
    (cwd == data_dir).then_some(number)
}

/// The child with this name, as `ps` shows it.
pub fn child_named(parent: u32, name: &str) -> Option<u32> {
    let named = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
    };
    children(parent).into_iter().find(named)
}

/// Memory that a process holds now, in kilobytes.
pub fn resident_kb(number: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{number}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The children of a process.
pub fn children(number: u32) -> Vec<u32> {
    let listed = std::fs::read_to_string(format!("/proc/{number}/task/{number}/children"));
    listed.unwrap_or_default().split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

/// How a process calls itself: its command line, or what it has put in its place.
pub fn title(number: u32) -> String {
    let line = std::fs::read(format!("/proc/{number}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ").trim_end().to_owned()
}

/// Kills every process in the network namespace of this name, and whatever is born meanwhile.
pub async fn kill_netns(name: &str) {
    const LOOK_EVERY: Duration = Duration::from_millis(10);
    let mut left = in_netns(name);
    while !left.is_empty() {
        left.iter().for_each(|process| signal(*process, Signal::KILL));
        tokio::time::sleep(LOOK_EVERY).await;
        left = in_netns(name);
    }
}

/// Every process in the network namespace of this name.
pub fn in_netns(name: &str) -> Vec<u32> {
    let Ok(netns) = std::fs::metadata(format!("/run/netns/{name}")) else { return Vec::new() };
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let inside = |number: &u32| {
        std::fs::metadata(format!("/proc/{number}/ns/net")).is_ok_and(|own| own.ino() == netns.ino())
    };
    numbers.filter(inside).collect()
}
