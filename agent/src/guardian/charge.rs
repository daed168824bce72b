//! The worker, as its guardian holds it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use pgherd_core::guardian::Ended;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};

use super::REFUSED;
use super::channel::{HandOver, Word};

/// The argument that makes a worker of this program.
pub(super) const WORKER: &str = "--worker";

/// A worker that was started and not yet reaped: until then its pid is nobody else's.
#[derive(Debug)]
pub(super) struct Charge {
    pid: Pid,
    /// `None` once it has hung up.
    socket: Option<OwnedFd>,
}

impl Charge {
    /// Starts one. It is this very program, even if the file was replaced since.
    pub(super) fn start(hand_over: &HandOver) -> io::Result<Self> {
        let (ours, theirs) = sockets()?;
        hand_over.send(&ours)?;
        let mut command = Command::new("/proc/self/exe");
        let child = command.arg0("pgherd-agent").arg(WORKER).stdin(Stdio::from(theirs)).spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("the new process has no number"))?;
        Ok(Self { pid, socket: Some(ours) })
    }

    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Can be read when it has said something.
    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// The next thing it has said.
    pub(super) fn hear(&mut self) -> Option<Word> {
        loop {
            let mut bytes = [0; Word::SIZE];
            match recv(self.socket.as_ref()?, &mut bytes, RecvFlags::DONTWAIT) {
                Ok((0, _)) => self.socket = None,
                Ok(_) => match Word::decode(&bytes) {
                    Some(word) => return Some(word),
                    None => tracing::error!(?bytes, "the worker talks nonsense"),
                },
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return None,
                Err(_) => self.socket = None,
            }
        }
    }

    pub(super) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    pub(super) fn ask_to_stop(&self) {
        self.signal(Signal::TERM);
    }

    fn signal(&self, signal: Signal) {
        if let Err(error) = kill_process(self.pid, signal) {
            tracing::error!("cannot send {signal:?} to the worker: {error}");
        }
    }
}

/// A pair over which messages go whole.
pub(super) fn sockets() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// How a worker ended.
pub(super) struct Fate(pub(super) Ended);

/// Takes the status of every child that has ended: the worker's, and those of processes that earlier
/// workers left behind.
pub(super) fn reap(worker: Option<Pid>) -> Option<Fate> {
    let mut fate = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if worker == Some(pid) {
            fate = Some(Fate(ended(status)));
        }
    }
    fate
}

fn ended(status: WaitStatus) -> Ended {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) => Ended::InOrder,
        (Some(code), _) if code == i32::from(REFUSED) => Ended::Refused,
        (Some(code), _) => Ended::Crashed(format!("exit code {code}")),
        (None, Some(signal)) => Ended::Crashed(format!("signal {signal}")),
        (None, None) => Ended::Crashed(format!("status {status:?}")),
    }
}
