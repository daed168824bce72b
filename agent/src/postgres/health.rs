//! Whether PostgreSQL can do its work, beyond answering: the write probe, the disk, crash cycles.
//!
//! All of it is measured beside the looks, never in them: whatever hangs here delays no look. One
//! commit and one look at the disk are under way at a time, however long they take.
//!
//! While all is well no file is written to see whether that works: on a primary the commit shows it,
//! through the very path that clients' commits take, and what a commit does not show (tables cannot
//! grow though the WAL has room; a standby's room) the file system tells without a write. Only where
//! PostgreSQL lets nobody in, or its commits fail, is a nameless file written, to say whether the disk
//! is the reason: a kernel that has stopped writing to a disk does not always show it as read-only.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pgherd_common::errors::Chain;
use pgherd_common::{Clock, MonoTime, time::RealClock};
use pgherd_core::health::{CRASH_WINDOW, CRASHES_MAX};
use rustix::fs::{CWD, Mode, OFlags, StatVfsMountFlags, openat, statvfs};
use rustix::io::Errno;

use super::instance::Instance;
use super::session::{Session, SessionError};
use crate::observation::{Disk, Health, PostgresState, WriteFailure, WriteProbe};

/// How often a primary shows that commits last. Each takes one flush and about a hundred bytes of WAL:
/// 9 MB and 86,400 transaction numbers of two thousand million a day.
const PROOF_PAUSE: Duration = Duration::from_secs(1);
/// How often the file systems are asked for their room.
const DISK_PAUSE: Duration = Duration::from_secs(1);
/// With less room than this, in bytes, a disk is full: PostgreSQL grows tables by up to half of it at
/// once. What the kernel keeps for root is no room.
const ROOM_MIN: u64 = 1 << 20;
/// A commit is waited for as long as its connection lasts.
const NO_DEADLINE: Duration = Duration::from_secs(86_400);

/// The commit. It reaches the local disk and waits for no standby, so that a synchronous standby that
/// is lost does not look like a broken disk. A database that is read-only by default is not meant.
const PREPARE: &str = "SET synchronous_commit = local; SET default_transaction_read_only = off; \
                       SET statement_timeout = 0";
const COMMIT: &str = "SELECT pg_logical_emit_message(true, 'pgherd', ''::text)";

/// What is known so far.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    writes: Writes,
    disk: DiskSeen,
    /// The checkpointer's pid: another one under the same postmaster tells of a crash in between.
    checkpointer: Option<i32>,
    crashes: VecDeque<MonoTime>,
}

#[derive(Debug, Default)]
struct Writes {
    /// A lasting connection of its own: it is there when no other can be had, and looks do not queue
    /// behind a commit.
    session: Option<Arc<Session>>,
    /// Tells the outcome of an attempt that was begun on another server, or in another role.
    attempt: u64,
    in_flight: bool,
    /// When the commit in flight was begun, once there was a connection for it.
    begun: Option<MonoTime>,
    /// When one was last begun.
    last: Option<MonoTime>,
    sick_since: Option<MonoTime>,
    outcome: Outcome,
}

#[derive(Debug, Default)]
enum Outcome {
    #[default]
    Untried,
    Good,
    Failed(WriteFailure, String),
}

#[derive(Debug, Default)]
struct DiskSeen {
    looking: bool,
    last: Option<MonoTime>,
    now: Option<Room>,
    since: Option<MonoTime>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Room {
    Enough,
    None,
    ReadOnly,
    Failing,
}

impl Pulse {
    /// Another postmaster, or none.
    pub(super) fn meet(&mut self) {
        self.writes.forget();
        self.checkpointer = None;
        self.crashes.clear();
    }

    /// Who was checkpointer at a look.
    pub(super) fn saw_checkpointer(&mut self, pid: Option<i32>) {
        // None while the server recovers: no news yet.
        let Some(pid) = pid else { return };
        if self.checkpointer.replace(pid).is_some_and(|before| before != pid) {
            tracing::warn!("a process of PostgreSQL crashed: it has ended all sessions and recovered");
            self.crashes.push_back(RealClock.now());
            self.crashes.drain(..self.crashes.len().saturating_sub(CRASHES_MAX as usize));
        }
    }

    fn health(&mut self) -> Health {
        let now = RealClock.now();
        self.crashes.retain(|at| now.since(*at) < CRASH_WINDOW);
        let ms = |since: Option<MonoTime>| {
            let age = since.map(|since| now.since(since)).unwrap_or_default();
            u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
        };
        let for_ms = ms(self.disk.since);
        let disk = match self.disk.now {
            None => Disk::Unknown,
            Some(Room::Enough) => Disk::Room,
            Some(Room::None) => Disk::Full { for_ms },
            Some(Room::ReadOnly) => Disk::ReadOnly { for_ms },
            Some(Room::Failing) => Disk::Failing { for_ms },
        };
        let hangs = self.writes.begun.is_some_and(|begun| now.since(begun) >= PROOF_PAUSE);
        let since = self.writes.sick_since.or(self.writes.begun);
        let writes = match &self.writes.outcome {
            _ if hangs => WriteProbe::Hanging { for_ms: ms(since) },
            Outcome::Untried => WriteProbe::Untried,
            Outcome::Good => WriteProbe::Good,
            Outcome::Failed(kind, reason) => WriteProbe::Failing {
                for_ms: ms(self.writes.sick_since),
                kind: *kind,
                reason: reason.clone(),
            },
        };
        let crashes = u32::try_from(self.crashes.len()).unwrap_or(u32::MAX);
        Health { writes, disk, crashes, monitor: None }
    }
}

impl Writes {
    fn forget(&mut self) {
        *self = Self { attempt: self.attempt + 1, ..Self::default() };
    }

    /// The number of the attempt to begin, if it is time for one.
    fn begin(&mut self, now: MonoTime) -> Option<u64> {
        if self.in_flight || self.last.is_some_and(|last| now.since(last) < PROOF_PAUSE) {
            return None;
        }
        (self.in_flight, self.last) = (true, Some(now));
        self.attempt += 1;
        Some(self.attempt)
    }

    fn commits(&mut self, attempt: u64) {
        if attempt == self.attempt {
            self.begun = Some(RealClock.now());
        }
    }

    fn end(&mut self, attempt: u64, result: Result<Arc<Session>, Unproven>) {
        if attempt != self.attempt {
            return;
        }
        self.in_flight = false;
        let begun = self.begun.take();
        match result {
            Ok(session) => {
                (self.session, self.outcome, self.sick_since) = (Some(session), Outcome::Good, None);
            }
            Err(Unproven::NoConnection) => {
                (self.session, self.outcome, self.sick_since) = (None, Outcome::Untried, None);
            }
            Err(Unproven::Failed(error)) => {
                self.session = self.session.take().filter(|session| !session.is_closed());
                self.sick_since = self.sick_since.or(begun);
                self.outcome = Outcome::Failed(kind(&error), Chain(&error).to_string());
            }
        }
    }
}

/// Why a commit was not shown to last.
enum Unproven {
    /// There was no connection to try it on. Whether that is a failure is for looks to tell.
    NoConnection,
    Failed(SessionError),
}

fn kind(error: &SessionError) -> WriteFailure {
    let Some(code) = error.code() else { return WriteFailure::Broken };
    match code.code() {
        "53100" => WriteFailure::DiskFull,
        // A server that is going down, or was told to end this session.
        "57P01" | "57P02" | "57P03" => WriteFailure::Broken,
        code if code.starts_with("58") || code.starts_with("XX") => WriteFailure::Storage,
        _ => WriteFailure::Refused,
    }
}

impl Instance {
    /// What is known of this server's health; begins to find out more where it is time to. `state` is
    /// what a look has just found.
    pub(super) fn health(&self, state: &PostgresState) -> Health {
        let now = RealClock.now();
        let mut memory = self.memory();
        let pulse = &mut memory.pulse;
        match state {
            PostgresState::Running(running) if !running.in_recovery => {
                if let Some(attempt) = pulse.writes.begin(now) {
                    tokio::spawn(self.clone().try_to_commit(attempt, pulse.writes.session.clone()));
                }
            }
            // It says nothing of commits that it lets nobody in.
            PostgresState::Unresponsive { .. } => {}
            PostgresState::Running(_)
            | PostgresState::Starting { .. }
            | PostgresState::Down(_)
            | PostgresState::Unusable(_) => pulse.writes.forget(),
        }
        let due = pulse.disk.last.is_none_or(|last| now.since(last) >= DISK_PAUSE);
        if due && !pulse.disk.looking {
            (pulse.disk.looking, pulse.disk.last) = (true, Some(now));
            let doubtful = match state {
                PostgresState::Running(_) => matches!(pulse.writes.outcome, Outcome::Failed(..)),
                _ => true,
            };
            let instance = self.clone();
            tokio::task::spawn_blocking(move || instance.look_at_disk(doubtful));
        }
        pulse.health()
    }

    async fn try_to_commit(self, attempt: u64, session: Option<Arc<Session>>) {
        let result = self.commit(attempt, session).await;
        self.memory().pulse.writes.end(attempt, result);
    }

    async fn commit(&self, attempt: u64, session: Option<Arc<Session>>) -> Result<Arc<Session>, Unproven> {
        let session = match session.filter(|session| !session.is_closed()) {
            Some(session) => session,
            None => {
                let session = self.connect().await.map_err(|_| Unproven::NoConnection)?;
                let prepared = session.run(PREPARE, self.settings().connect_timeout).await;
                prepared.map_err(|_| Unproven::NoConnection)?;
                Arc::new(session)
            }
        };
        self.memory().pulse.writes.commits(attempt);
        session.run(COMMIT, NO_DEADLINE).await.map_err(Unproven::Failed)?;
        Ok(session)
    }

    /// Blocks while the file system does.
    fn look_at_disk(&self, doubtful: bool) {
        let places = [self.data_dir().to_owned(), self.data_dir().join("pg_wal")];
        // A directory that is not there is for looks to tell.
        let rooms = places.iter().filter_map(|place| room(place));
        let written = places.iter().filter(|_| doubtful).filter_map(|place| try_to_write(place));
        let found = rooms.chain(written).max();
        let mut memory = self.memory();
        let disk = &mut memory.pulse.disk;
        disk.looking = false;
        if disk.now != found {
            (disk.now, disk.since) = (found, Some(RealClock.now()));
        }
    }
}

fn room(place: &Path) -> Option<Room> {
    let seen = statvfs(place).ok()?;
    if seen.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Some(Room::ReadOnly);
    }
    let free = seen.f_bavail.saturating_mul(seen.f_frsize);
    Some(if free < ROOM_MIN { Room::None } else { Room::Enough })
}

/// Writes a file without a name. `None` where that says nothing, as on a file system that knows no such
/// files.
fn try_to_write(place: &Path) -> Option<Room> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let written = openat(CWD, place, flags, Mode::RUSR | Mode::WUSR).map_err(std::io::Error::from);
    let written = written.and_then(|file| {
        let mut file = File::from(file);
        file.write_all(&[0; 8192])?;
        file.sync_all()
    });
    match written.err()?.raw_os_error().map(Errno::from_raw_os_error)? {
        Errno::NOSPC | Errno::DQUOT => Some(Room::None),
        Errno::ROFS => Some(Room::ReadOnly),
        Errno::IO => Some(Room::Failing),
        _ => None,
    }
}
