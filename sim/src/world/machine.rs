//! Machines: what they are made of, and what power cuts and freezes do to them.

use std::collections::BTreeSet;
use std::sync::Arc;

use pgherd_common::{Generation, MonoTime};
use pgherd_core::cluster::{ClusterState, Descriptor};
use pgherd_core::defect::{Defect, planted};

use crate::clock::{Clock, MS, Micros, SECOND, Time};
use crate::postgres::Server;
use crate::raft::Stored;

use super::guardian::Parent;
use super::{Event, ServerEvent, Worker, World};

/// What outlives a crash besides PostgreSQL's own data.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    /// The highest generation ever heard of.
    pub(crate) remembered: Generation,
    /// Raft's term, vote and log.
    pub(crate) raft: Stored,
    /// The state machine, and the one before, which is what an unlucky crash leaves.
    pub(crate) applied: (usize, Arc<ClusterState>),
    /// Nothing is written before this time.
    pub(crate) stalled_until: Time,
    /// When the last write in the queue is done.
    busy_until: Time,
}

/// A machine.
#[derive(Debug)]
pub struct Machine {
    /// What its agent says of itself.
    pub descriptor: Descriptor,
    /// CLOCK_BOOTTIME.
    pub clock: Clock,
    /// It has power.
    pub up: bool,
    /// It stands still as a whole.
    pub frozen: bool,
    /// When it last went on after standing still.
    pub thawed: Option<Time>,
    /// When its PostgreSQL was last promoted by hand.
    pub by_hand: Option<Time>,
    /// PostgreSQL, unless it is a witness.
    pub server: Option<Server>,
    pub(crate) disk: Disk,
    pub(crate) parent: Option<Parent>,
    pub(crate) worker: Option<Worker>,
    pub(crate) lives: u64,
    pub(crate) backlog: Vec<Event>,
    /// Whether clients could write here when it was last looked at.
    pub(crate) accepted: bool,
    /// It has the virtual IP, and its kernel will end that then.
    pub(crate) address: Option<Time>,
    /// Whether it could answer for the address when that was last looked at.
    pub(crate) answered: bool,
}

impl Machine {
    pub(super) fn new(
        descriptor: Descriptor,
        clock: Clock,
        server: Option<Server>,
        everybody: &BTreeSet<usize>,
    ) -> Self {
        Self {
            descriptor,
            clock,
            up: true,
            frozen: false,
            thawed: None,
            by_hand: None,
            server,
            disk: Disk { raft: Stored::formed(everybody.clone()), ..Disk::default() },
            parent: None,
            worker: None,
            lives: 0,
            backlog: Vec::new(),
            accepted: false,
            address: None,
            answered: false,
        }
    }

    /// Whether a client that reaches it can write now.
    pub fn accepts(&self) -> bool {
        self.up && !self.frozen && self.server.as_ref().is_some_and(Server::accepts)
    }

    /// Whether whoever asks for the virtual IP hears of this machine.
    pub(crate) fn answers(&self) -> bool {
        self.up && !self.frozen && self.address.is_some()
    }

    pub(crate) fn new_life(&mut self) -> u64 {
        self.lives += 1;
        self.lives
    }
}

impl World {
    pub(crate) fn mono(&self, index: usize) -> MonoTime {
        self.machines[index].clock.at(self.now)
    }

    /// When a write that is begun now will be on disk.
    pub(crate) fn fsync(&mut self, index: usize) -> Micros {
        let cost = self.rng.tailed(2 * MS, 60 * MS);
        let disk = &mut self.machines[index].disk;
        let start = self.now.max(disk.busy_until).max(disk.stalled_until);
        disk.busy_until = start + cost;
        disk.busy_until.since(self.now)
    }

    /// PostgreSQL's writes queue elsewhere, but a disk that stalls stalls them too.
    pub(crate) fn flush(&mut self, index: usize) -> Micros {
        let cost = self.rng.tailed(MS, 30 * MS);
        let stalled = self.machines[index].disk.stalled_until.since(self.now);
        stalled + cost
    }

    /// Tells the checks when a server has begun or ceased to accept writes.
    pub(crate) fn notice(&mut self, index: usize) {
        let accepts = self.machines[index].accepts();
        if self.machines[index].accepted == accepts {
            return;
        }
        self.machines[index].accepted = accepts;
        if accepts {
            let name = self.name(index);
            let server = self.machines[index].server.as_ref();
            let generation = server.map_or(Generation::ZERO, |server| server.generation);
            self.note(|| format!("{name}: PostgreSQL accepts writes (generation {generation})"));
        } else {
            let name = self.name(index);
            self.note(|| format!("{name}: PostgreSQL accepts no writes any more"));
        }
        self.check_writable(index, accepts);
    }

    /// SIGKILL to every process of PostgreSQL.
    pub(crate) fn kill_server(&mut self, index: usize) {
        let half = self.rng.chance(300);
        let Some(server) = &mut self.machines[index].server else { return };
        if server.process.is_none() {
            return;
        }
        server.kill(half);
        let name = self.name(index);
        self.note(|| format!("{name}: every process of PostgreSQL is gone"));
        self.notice(index);
        self.postmaster_died(index);
    }

    /// The postmaster has ended, one way or another.
    pub(crate) fn postmaster_died(&mut self, index: usize) {
        self.look_at_once(index);
        self.upstream_died(index);
    }

    /// Power cut.
    pub(crate) fn crash(&mut self, index: usize) {
        if !self.machines[index].up {
            return;
        }
        let name = self.name(index);
        self.note(|| format!("{name}: the machine loses power"));
        self.end_worker(index);
        let half = self.rng.chance(300);
        let machine = &mut self.machines[index];
        (machine.parent, machine.frozen, machine.up) = (None, false, false);
        machine.address = None;
        machine.backlog.clear();
        if let Some(server) = &mut machine.server {
            server.kill(half);
        }
        self.notice(index);
        self.notice_address(index);
    }

    /// Power is back.
    pub(crate) fn boot(&mut self, index: usize) {
        if self.machines[index].up {
            return;
        }
        let name = self.name(index);
        self.note(|| format!("{name}: the machine boots"));
        let now = self.now;
        let machine = &mut self.machines[index];
        machine.up = true;
        machine.clock = machine.clock.reboot(now);
        machine.disk.busy_until = now;
        self.start_agent(index);
    }

    /// The machine stands still; its clock does not.
    pub(crate) fn freeze(&mut self, index: usize) {
        if self.machines[index].up && !self.machines[index].frozen {
            let name = self.name(index);
            self.note(|| format!("{name}: the machine stands still"));
            self.machines[index].frozen = true;
            self.notice(index);
            self.notice_address(index);
        }
    }

    /// It goes on: all that waited comes at once, in no certain order.
    pub(crate) fn thaw(&mut self, index: usize) {
        if !self.machines[index].frozen {
            return;
        }
        let name = self.name(index);
        self.note(|| format!("{name}: the machine goes on"));
        let machine = &mut self.machines[index];
        (machine.frozen, machine.thawed) = (false, Some(self.now));
        let waiting = std::mem::take(&mut machine.backlog);
        self.release(waiting);
        self.notice(index);
        self.notice_address(index);
    }

    pub(crate) fn release(&mut self, waiting: Vec<Event>) {
        for event in waiting {
            let soon = self.rng.between(10, 3 * MS);
            self.after(soon, event);
        }
    }

    /// The worker's process is gone. What it had on its way to the disk may have arrived or not.
    pub(crate) fn end_worker(&mut self, index: usize) {
        let Some(worker) = self.machines[index].worker.take() else { return };
        let lucky = usize::try_from(self.rng.below(3)).unwrap_or(0);
        let disk = &mut self.machines[index].disk;
        if planted(Defect::LogNotDurable) {
            let voters = disk.raft.log.first().cloned();
            disk.raft = Stored { log: voters.into_iter().collect(), ..Stored::default() };
            (disk.applied, disk.remembered) = Default::default();
            return;
        }
        if let Some(raft) = &worker.raft {
            disk.raft = raft.on_disk(lucky);
            disk.applied = raft.applied();
        }
    }

    pub(crate) fn server(&mut self, index: usize, life: u64, what: &ServerEvent) {
        if !self.machines[index].server.as_ref().is_some_and(|server| server.is_life(life)) {
            return;
        }
        match what {
            ServerEvent::Ready => self.server_ready(index),
            ServerEvent::Promoted(generation, by_hand) => self.server_promoted(index, *generation, *by_hand),
            ServerEvent::Stopping(deadline) => self.server_stopping(index, *deadline),
            ServerEvent::Connect => self.connect(index),
            ServerEvent::Told(standby, sent) => self.told_flushed(index, *standby, *sent),
            ServerEvent::Flushed(proxy, session, row) => self.row_flushed(index, *proxy, *session, *row),
        }
    }

    fn server_ready(&mut self, index: usize) {
        let Some(server) = &mut self.machines[index].server else { return };
        server.ready();
        let standby = server.standby_signal;
        let name = self.name(index);
        self.note(|| {
            format!("{name}: PostgreSQL is up as a {}", if standby { "standby" } else { "primary" })
        });
        self.notice(index);
        if standby {
            self.connect_soon(index, MS);
        } else {
            self.wal_grew(index);
        }
    }

    fn server_promoted(&mut self, index: usize, generation: Generation, by_hand: bool) {
        // If the log has chosen it meanwhile, nobody can tell who promoted it.
        let chosen = self.machines[index].worker.as_ref().and_then(super::Worker::promoting);
        let (generation, by_hand) = chosen.map_or((generation, by_hand), |generation| (generation, false));
        let Some(server) = &mut self.machines[index].server else { return };
        if !server.promoted((!by_hand).then_some(generation)) {
            return;
        }
        if let Some(process) = &mut server.process {
            process.promoted_by_hand = by_hand;
        }
        let timeline = server.timeline;
        let fork = server.history.0.last().map(|(_, fork)| *fork).unwrap_or_default();
        self.twins |= *self.timelines.entry((timeline, fork)).or_insert(index) != index;
        let name = self.name(index);
        self.note(|| format!("{name}: PostgreSQL was promoted to timeline {timeline}"));
        if by_hand {
            self.machines[index].by_hand = Some(self.now);
        } else {
            self.check_promoted(index, generation);
        }
        self.notice(index);
        self.wal_grew(index);
    }

    /// Whether a fast stop can end: a primary sends all it has to whoever streams from it.
    fn server_stopping(&mut self, index: usize, deadline: Time) {
        let Some(server) = &self.machines[index].server else { return };
        let (life, have) = (server.process.as_ref().map_or(0, |process| process.life), server.wal.len());
        let waits = self.streaming_from(index).into_iter().any(|standby| {
            self.machines[standby].server.as_ref().is_some_and(|standby| standby.wal.len() < have)
        });
        if waits && self.now < deadline {
            self.after(5 * MS, Event::Server(index, life, ServerEvent::Stopping(deadline)));
            return;
        }
        if waits {
            self.kill_server(index);
            return;
        }
        if let Some(server) = &mut self.machines[index].server {
            server.stopped();
        }
        let name = self.name(index);
        self.note(|| format!("{name}: PostgreSQL has stopped in order"));
        self.notice(index);
        self.postmaster_died(index);
    }

    /// How long a start of PostgreSQL takes.
    pub(crate) fn launch(&mut self, index: usize) {
        let span = self.rng.tailed(120 * MS, 3 * SECOND) + self.flush(index);
        let Some(server) = &mut self.machines[index].server else { return };
        let life = server.launch();
        self.after(span, Event::Server(index, life, ServerEvent::Ready));
    }
}
