//! Commits that wait for standbys: what standbys say of their WAL, and who is told.

use pgherd_core::reconcile::Commits;

use crate::clock::{Micros, SECOND};
use crate::network::Class;
use crate::postgres::{Sent, Waiting, Waits};

use super::{Event, ServerEvent, World};

/// How long one standby may keep the word of the others from counting, as in the agent.
const STANDS_STILL: Micros = SECOND;

impl World {
    /// A client's row is flushed: it is told, now or once standbys have it.
    pub(super) fn commit(&mut self, index: usize, row: u64, through: Option<(usize, usize)>) {
        let Some(server) = &mut self.machines[index].server else { return };
        let upto = server.wal.len();
        if let Some(process) = &mut server.process {
            process.waiting.push(Waiting { upto, row, through });
        }
        self.end_waits(index);
    }

    /// Tells those clients that wait no longer.
    pub(super) fn end_waits(&mut self, index: usize) {
        let node = self.machines[index].descriptor.id;
        let Some(server) = &mut self.machines[index].server else { return };
        for Waiting { row, through, .. } in server.release() {
            match through {
                Some((proxy, session)) => self.answer(index, proxy, session, row, true),
                None => self.check_acknowledged(node, row),
            }
        }
    }

    /// A standby says how far its WAL is on disk, where anybody asks.
    pub(super) fn tell_flushed(&mut self, standby: usize) {
        let Some(own) = &self.machines[standby].server else { return };
        let Some(receiver) = own.process.as_ref().and_then(|process| process.receiver) else { return };
        let (upstream, life) = (receiver.upstream, receiver.upstream_life);
        let sent = Sent {
            connection: receiver.connection,
            generation: own.conninfo_generation,
            flushed: own.wal.len(),
        };
        let asks = self.machines[upstream].server.as_ref().is_some_and(|server| server.waits != Waits::Free);
        if !asks {
            return;
        }
        if let Some(delay) = self.network.delay(standby, upstream, Class::Postgres) {
            self.after(delay, Event::Server(upstream, life, ServerEvent::Told(standby, sent)));
        }
    }

    pub(super) fn told_flushed(&mut self, index: usize, standby: usize, sent: Sent) {
        let machine = &self.machines[index];
        if machine.frozen || self.network.is_cut(standby, index, Class::Postgres) {
            return;
        }
        let server = self.machines[index].server.as_mut();
        let Some(process) = server.and_then(|server| server.process.as_mut()) else { return };
        let known = process.walsenders.get(&standby);
        let newer = |known: &Sent| (known.connection, known.flushed) <= (sent.connection, sent.flushed);
        if known.is_none_or(newer) && !process.ended.contains(&sent.connection) {
            process.walsenders.insert(standby, sent);
        }
        self.end_waits(index);
    }

    /// Commits are to wait for these.
    pub(super) fn cover(&mut self, index: usize, waits: Waits, number: u64) {
        if let Some(server) = &mut self.machines[index].server {
            server.cover(waits, number, self.connections, self.now);
        }
        for standby in self.streaming_from(index) {
            self.tell_flushed(standby);
        }
        self.end_waits(index);
    }

    /// A standby that stands still does not keep the word of the others from counting for long.
    pub(super) fn end_walsenders(&mut self, index: usize) {
        let server = self.machines[index].server.as_mut();
        for standby in server.map_or(Vec::new(), |server| server.end_walsenders(self.now, STANDS_STILL)) {
            let (name, other) = (self.name(index), self.name(standby));
            self.note(|| format!("{name}: ends the walsender of {other}, which stands still"));
            if self.network.connects(standby, index, Class::Postgres) && !self.machines[standby].frozen {
                self.disconnect(standby);
            }
        }
    }

    /// For whom commits wait, as the agent says it.
    pub(super) fn waits(&self, commits: &Commits) -> Waits {
        let Commits::WaitFor(wait) = commits else { return Waits::Free };
        let machines = self.machines.iter().enumerate();
        let of = machines.filter(|(_, machine)| wait.of.contains(&machine.descriptor.name)).map(|(at, _)| at);
        match usize::try_from(wait.standbys).unwrap_or(usize::MAX) {
            0 => Waits::Free,
            standbys => Waits::For { standbys, of: of.collect(), generation: wait.generation },
        }
    }
}
