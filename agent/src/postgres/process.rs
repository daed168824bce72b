//! The processes of one instance, as the kernel shows them.
//!
//! A process belongs to the instance when it runs a `postgres` binary with the data directory as its
//! working directory: every PostgreSQL process does, orphaned and stopped ones included, and so does
//! the pg_rewind of the agent. A number in
//! a file is never trusted by itself, since the kernel gives pids out again.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, Statx, StatxFlags, statx};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::unix::AsyncFd;

/// One process of the instance, held by a descriptor that cannot come to mean another process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: u32,
    fd: OwnedFd,
}

impl Process {
    /// Holds `pid`, if it is a live process of the instance on `data_dir`. An error when it is one but
    /// cannot be held: it must never count as absent.
    pub(super) fn of_instance(pid: u32, data_dir: &Path) -> io::Result<Option<Self>> {
        Self::held(pid, || is_ours(pid, data_dir))
    }

    /// Holds it while `counts` is true of it.
    fn held(pid: u32, counts: impl Fn() -> bool) -> io::Result<Option<Self>> {
        let Some(raw) = number(pid).filter(|_| counts()) else { return Ok(None) };
        let fd = match pidfd_open(raw, PidfdFlags::NONBLOCK) {
            Ok(fd) => fd,
            Err(Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Checked again now that the descriptor is taken: what is true now is true of this process.
        Ok(counts().then_some(Self { pid, fd }))
    }

    /// Its number, in the manner of the kernel.
    pub(super) fn id(&self) -> Option<Pid> {
        number(self.pid)
    }

    pub(super) fn is_alive(&self) -> bool {
        !ready(&[self], Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))
    }

    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.fd, signal)?)
    }

    /// Takes the exit status, if it is a child of this process that nobody has waited for.
    pub(super) fn reap(&self) {
        // Not our child, or reaped already: both are fine.
        let _ = waitid(WaitId::PidFd(self.fd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    }
}

fn number(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// Kills a process of the instance that cannot be held, for want of descriptors, by its number. Between
/// this look and the signal the number could come to mean another process: that is less likely by far
/// than that a server which is spared goes on writing. False when it is not of the instance.
pub(super) fn kill_unheld(pid: u32, data_dir: &Path) -> io::Result<bool> {
    let Some(raw) = number(pid).filter(|_| is_ours(pid, data_dir)) else { return Ok(false) };
    match kill_process(raw, Signal::KILL) {
        Ok(()) => Ok(true),
        Err(Errno::SRCH) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Waits until any of them has ended; false when `timeout` passed first.
pub(super) fn ready(processes: &[&Process], timeout: Option<&Timespec>) -> bool {
    let mut fds: Vec<_> = processes.iter().map(|process| PollFd::new(&process.fd, PollFlags::IN)).collect();
    loop {
        match poll(&mut fds, timeout) {
            // A guardian is sent a signal for every child that ends, and many of them may be ending.
            Err(Errno::INTR) => {}
            ended => return ended.is_ok_and(|count| count > 0),
        }
    }
}

/// The postmaster, watched.
#[derive(Debug)]
pub(super) struct Postmaster {
    pub(super) pid: u32,
    watched: AsyncFd<Process>,
}

impl std::os::fd::AsRawFd for Process {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

impl Postmaster {
    /// The postmaster of the instance, whoever started it.
    pub(super) fn find(data_dir: &Path) -> io::Result<Option<Self>> {
        let named = named_pid(data_dir).map(|pid| Process::of_instance(pid, data_dir)).transpose()?;
        let found = match named.flatten() {
            // pg_rewind and the like run `postgres --single`, which writes postmaster.pid too.
            Some(process) if is_postmaster(process.pid) => Some(process),
            // Somebody removed the file under a running server.
            Some(_) | None => head(processes(data_dir)?),
        };
        let Some(process) = found else { return Ok(None) };
        let pid = process.pid;
        #[expect(
            deprecated,
            reason = "the new constructor is unsafe; a Process owns one descriptor for life"
        )]
        let watched = AsyncFd::new(process)?;
        Ok(Some(Self { pid, watched }))
    }

    pub(super) fn is_alive(&self) -> bool {
        self.watched.get_ref().is_alive()
    }

    /// Resolves as soon as it has ended.
    pub(super) async fn ended(&self) {
        while self.is_alive() {
            match self.watched.readable().await {
                // Never cleared once it has ended: others may be waiting for the same event.
                Ok(mut guard) if self.is_alive() => guard.clear_ready(),
                Ok(_) => return,
                // The runtime is shutting down, and this task with it.
                Err(_) => std::future::pending().await,
            }
        }
    }

    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        self.watched.get_ref().signal(signal)
    }
}

/// The postmaster among the processes of an instance. A child that was forked just now still has its
/// parent's title, so the title alone does not tell; but only a postmaster has children.
fn head(processes: Vec<Process>) -> Option<Process> {
    let parents: Vec<u32> = processes.iter().filter_map(|process| parent(process.pid)).collect();
    processes.into_iter().find(|process| parents.contains(&process.pid) && is_postmaster(process.pid))
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// The pid in `postmaster.pid`; a standalone backend stores its own negated.
fn named_pid(data_dir: &Path) -> Option<u32> {
    let text = fs::read_to_string(pid_file(data_dir)).ok()?;
    let mut lines = text.lines();
    let pid: i64 = lines.next()?.trim().parse().ok()?;
    u32::try_from(pid).ok()
}

pub(super) fn pid_file(data_dir: &Path) -> PathBuf {
    data_dir.join("postmaster.pid")
}

/// Every process of this machine.
pub(super) fn everybody() -> io::Result<Vec<u32>> {
    let entries = fs::read_dir("/proc")?.flatten();
    Ok(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// Every live process of the instance.
fn processes(data_dir: &Path) -> io::Result<Vec<Process>> {
    let everybody = everybody()?.into_iter();
    everybody.filter_map(|pid| Process::of_instance(pid, data_dir).transpose()).collect()
}

/// Every pg_basebackup of an agent that fills this directory.
pub(super) fn copying_into(staged: &Path) -> io::Result<Vec<Process>> {
    // `setpriv` is about to become one.
    let copies = |pid: u32| runs_any(pid, &["pg_basebackup", "setpriv"]) && works_in(pid, staged);
    let everybody = everybody()?.into_iter();
    everybody.filter_map(|pid| Process::held(pid, || copies(pid)).transpose()).collect()
}

/// The postmaster, or any other process of the instance, when none of them can be held.
pub(super) fn unheld(data_dir: &Path) -> Option<u32> {
    let ours = |pid: &u32| is_ours(*pid, data_dir);
    named_pid(data_dir).filter(ours).or_else(|| everybody().ok()?.into_iter().find(ours))
}

/// Whether a program that the startup process runs (`restore_command`) is at work.
pub(super) fn has_children(pid: u32) -> bool {
    let path = format!("/proc/{pid}/task/{pid}/children");
    fs::read_to_string(path).is_ok_and(|children| !children.trim().is_empty())
}

/// Whether `postmaster.pid` names a process that exists but is not of this instance: a pid given out
/// again, or a zombie nobody reaped. PostgreSQL would refuse to start because of it. To be asked only
/// when nothing of the instance runs.
pub(super) fn pid_file_is_stale(data_dir: &Path) -> bool {
    let Some(pid) = named_pid(data_dir) else { return false };
    matches!(Process::of_instance(pid, data_dir), Ok(None)) && fs::metadata(format!("/proc/{pid}")).is_ok()
}

/// The lock file of a Unix socket that names a zombie: a postmaster of this instance that was killed
/// and that nobody has reaped yet. PostgreSQL would refuse to start because of it. The socket's place
/// is what `postmaster.pid` tells, or else `socket`.
pub(super) fn stale_socket_lock(data_dir: &Path, socket: Option<(&Path, u16)>) -> Option<PathBuf> {
    let text = fs::read_to_string(pid_file(data_dir)).unwrap_or_default();
    let mut lines = text.lines().skip(3).map(str::trim);
    let told =
        lines.next().zip(lines.next()).and_then(|(port, dir)| Some((Path::new(dir), port.parse().ok()?)));
    let (dir, port) = told.filter(|(dir, _)| dir.is_absolute()).or(socket)?;
    let lock = dir.join(format!(".s.PGSQL.{port}.lock"));
    let pid: u32 = fs::read_to_string(&lock).ok()?.lines().next()?.trim().parse().ok()?;
    is_zombie(pid).then_some(lock)
}

fn is_zombie(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
}

fn is_ours(pid: u32, data_dir: &Path) -> bool {
    is_postgres_and(pid, || works_in(pid, data_dir))
}

/// What it runs is asked first, since that waits for no disk. Where it works may be on a file system that
/// hangs, and is nobody's business unless it runs PostgreSQL.
fn is_postgres_and(pid: u32, works_here: impl FnOnce() -> bool) -> bool {
    runs_postgres(pid) && works_here()
}

fn works_in(pid: u32, data_dir: &Path) -> bool {
    let link = format!("/proc/{pid}/cwd");
    // By name first, which waits for no disk either. A data directory that was removed, replaced or cut
    // off under its server is still that server's.
    let by_name = fs::read_link(&link).is_ok_and(|cwd| {
        let cwd = undeleted(&cwd);
        cwd == data_dir || data_dir.canonicalize().is_ok_and(|real| cwd == real)
    });
    by_name || place(Path::new(&link)).is_some_and(|cwd| Some(cwd) == place(data_dir))
}

/// Which directory this is. What the kernel knows will do: a server of somebody else may work on a
/// network file system that hangs.
fn place(path: &Path) -> Option<(u32, u32, u64)> {
    let Statx { stx_dev_major, stx_dev_minor, stx_ino, .. } =
        statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::INO).ok()?;
    Some((stx_dev_major, stx_dev_minor, stx_ino))
}

/// The kernel marks names that are gone.
fn undeleted(link: &Path) -> &Path {
    link.to_str().and_then(|text| text.strip_suffix(" (deleted)")).map_or(link, Path::new)
}

/// By name, since an upgrade replaces the file under running servers. `setpriv` is about to become
/// one, and pg_rewind writes to the data directory too.
fn runs_postgres(pid: u32) -> bool {
    runs_any(pid, &["postgres", "postmaster", "edb-postgres", "setpriv", "pg_rewind"])
}

fn runs_any(pid: u32, programs: &[&str]) -> bool {
    let Ok(exe) = fs::read_link(format!("/proc/{pid}/exe")) else { return false };
    let name = undeleted(&exe).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    programs.contains(&name)
}

/// Children of a postmaster rewrite their title to `postgres: ...`.
fn is_postmaster(pid: u32) -> bool {
    let Ok(command_line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let text = String::from_utf8_lossy(&command_line);
    // It is empty while a process exits.
    let child = text.split('\0').next().is_none_or(|title| title.is_empty() || title.contains(": "));
    !child && !text.split('\0').any(|argument| argument == "--single" || argument == "--boot")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_process_works_is_not_looked_at_unless_it_runs_postgresql() {
        let mut looked_at = Vec::new();
        for pid in everybody().unwrap() {
            is_postgres_and(pid, || {
                looked_at.push(pid);
                false
            });
        }
        assert!(!looked_at.contains(&std::process::id()), "{looked_at:?}");
        assert!(looked_at.iter().all(|pid| *pid != 1), "{looked_at:?}");
    }

    #[test]
    fn a_directory_is_told_by_any_of_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let (data, link) = (dir.path().join("data"), dir.path().join("link"));
        fs::create_dir(&data).unwrap();
        std::os::unix::fs::symlink(&data, &link).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").current_dir(&link).spawn().unwrap();
        let works = |at: &Path| works_in(child.id(), at);
        assert!(works(&data) && works(&link) && !works(dir.path()) && !works(&dir.path().join("none")));
        assert_eq!(place(&data), place(&link));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_socket_lock_is_stale_while_its_owner_is_a_zombie() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let lock = dir.path().join(".s.PGSQL.5432.lock");
        fs::write(&lock, format!("{}\n/data\n", child.id())).unwrap();
        while !is_zombie(child.id()) {
            std::thread::yield_now();
        }
        let socket = Some((dir.path(), 5432));
        assert_eq!(stale_socket_lock(dir.path(), socket), Some(lock.clone()));
        let told = format!("1\n/data\n0\n5432\n{}\n", dir.path().display());
        fs::write(pid_file(dir.path()), told).unwrap();
        assert_eq!(stale_socket_lock(dir.path(), None), Some(lock));
        child.wait().unwrap();
        assert_eq!(stale_socket_lock(dir.path(), None), None, "its owner has been reaped");
    }
}
