//! Streaming replication: walreceivers that connect, WAL that travels, connections that break.

use crate::clock::{MS, Micros, SECOND};
use crate::network::Class;
use crate::postgres::{Phase, Receiver, stream_from};

use super::{Event, ServerEvent, World};

/// Between two attempts of a walreceiver, as the agent configures it.
const RETRY: Micros = 100 * MS;
/// An attempt over a link that delivers nothing.
const UNREACHABLE: Micros = SECOND;
/// Keepalives: three in vain end a connection.
const KEEPALIVE: Micros = 2 * SECOND;
const MISSES: u32 = 3;

impl World {
    /// Standbys that stream from a server.
    pub(super) fn streaming_from(&self, index: usize) -> Vec<usize> {
        let streams = |standby: &usize| {
            let server = self.machines[*standby].server.as_ref();
            let receiver = server.and_then(|server| server.process.as_ref()?.receiver);
            self.machines[*standby].up && receiver.is_some_and(|receiver| receiver.upstream == index)
        };
        (0..self.machines.len()).filter(streams).collect()
    }

    pub(super) fn connect_soon(&mut self, index: usize, span: Micros) {
        let process = self.machines[index].server.as_ref().and_then(|server| server.process.as_ref());
        if let Some(life) = process.map(|process| process.life) {
            self.after(span, Event::Server(index, life, ServerEvent::Connect));
        }
    }

    /// A walreceiver tries to connect.
    pub(super) fn connect(&mut self, index: usize) {
        let Some(server) = &self.machines[index].server else { return };
        let (Some(process), Some(upstream)) = (&server.process, server.conninfo) else { return };
        if process.phase != Phase::Recovery || process.receiver.is_some() {
            return;
        }
        let reachable = self.machines[upstream].up
            && !self.machines[upstream].frozen
            && self.network.connects(index, upstream, Class::Postgres);
        if !reachable {
            return self.connect_soon(index, UNREACHABLE);
        }
        let source = self.machines[upstream].server.as_ref().filter(|source| {
            let hung = source.process.as_ref().is_none_or(|process| process.hung);
            !hung && matches!(source.phase(), Some(Phase::Primary | Phase::Recovery))
        });
        // A standby gives nobody what it has yet to receive itself.
        let has =
            |source: &&crate::postgres::Server| source.accepts() || source.wal.len() >= server.wal.len();
        let accepted = source.filter(has).is_some_and(|source| stream_from(server, source).is_ok());
        if !accepted {
            return self.connect_soon(index, RETRY);
        }
        self.connections += 1;
        let connection = self.connections;
        let (own, source) = self.two_servers(index, upstream);
        let (Some(own), Some(source)) = (own, source) else { return };
        own.half = false;
        own.adopt_timeline(source);
        let agrees = own.wal.agrees(&source.wal, own.wal.len());
        let upstream_life = source.life().unwrap_or(0);
        if let Some(process) = &mut own.process {
            process.receiver = Some(Receiver { upstream, upstream_life, connection, pumping: false });
            process.received_known = true;
        }
        let (name, other) = (self.name(index), self.name(upstream));
        self.note(|| format!("{name}: streams from {other}"));
        self.check_stream(index, upstream, agrees);
        self.tell_flushed(index);
        self.pump_from(upstream, index);
        self.after(KEEPALIVE, Event::Keepalive { standby: index, connection, misses: 0 });
    }

    pub(super) fn two_servers(
        &mut self,
        index: usize,
        upstream: usize,
    ) -> (Option<&mut crate::postgres::Server>, Option<&crate::postgres::Server>) {
        if index == upstream {
            return (None, None);
        }
        let (low, high) = self.machines.split_at_mut(index.max(upstream));
        let (Some(first), Some(second)) = (low.get_mut(index.min(upstream)), high.first_mut()) else {
            return (None, None);
        };
        if index < upstream {
            (first.server.as_mut(), second.server.as_ref())
        } else {
            (second.server.as_mut(), first.server.as_ref())
        }
    }

    /// A server has more WAL than before.
    pub(super) fn wal_grew(&mut self, index: usize) {
        for standby in self.streaming_from(index) {
            self.pump_from(index, standby);
        }
    }

    /// Sends what a standby lacks, unless some is on its way.
    fn pump_from(&mut self, upstream: usize, standby: usize) {
        let (Some(source), Some(own)) = (&self.machines[upstream].server, &self.machines[standby].server)
        else {
            return;
        };
        let upto = source.wal.len();
        let Some(receiver) = own.process.as_ref().and_then(|process| process.receiver) else { return };
        let machine = &self.machines[upstream];
        let sends = source.sends_on(&receiver) && machine.up && !machine.frozen;
        if !sends || receiver.pumping || own.wal.len() >= upto {
            return;
        }
        let delay = self.network.delay(upstream, standby, Class::Postgres).unwrap_or(RETRY);
        let own = self.machines[standby].server.as_mut();
        if let Some(receiver) = own.and_then(|s| s.process.as_mut()).and_then(|p| p.receiver.as_mut()) {
            receiver.pumping = true;
        }
        self.after(delay, Event::Pump { standby, connection: receiver.connection, upto });
    }

    /// WAL arrives, or is held up by a link that is cut.
    pub(super) fn pump(&mut self, standby: usize, connection: u64, upto: usize) {
        let server = self.machines[standby].server.as_mut();
        let Some(process) = server.and_then(|server| server.process.as_mut()) else { return };
        let Some(receiver) = process.receiver.as_mut().filter(|r| r.connection == connection) else { return };
        let (upstream, life) = (receiver.upstream, receiver.upstream_life);
        if self.network.is_cut(upstream, standby, Class::Postgres) {
            return self.after(RETRY, Event::Pump { standby, connection, upto });
        }
        receiver.pumping = false;
        let settles = self.rng.chance(300);
        let (Some(own), Some(source)) = self.two_servers(standby, upstream) else { return };
        // What a dead upstream had sent still arrives; what it has become since does not.
        let before = own.wal.len();
        if source.life().is_none_or(|now| now == life) && own.wal.agrees(&source.wal, before) {
            own.receive(source, upto);
        }
        let (have, timeline) = (own.wal.len(), own.timeline);
        if let Some(process) = &mut own.process {
            process.replayed = have;
        }
        if settles {
            own.control.min_recovery = Some((crate::postgres::lsn(have), timeline));
        }
        if have > before {
            self.check_received(standby, upstream);
            self.wal_grew(standby);
        }
        self.tell_flushed(standby);
        self.pump_from(upstream, standby);
    }

    /// Whether a connection still lives.
    pub(super) fn keepalive(&mut self, standby: usize, connection: u64, misses: u32) {
        let receiver = |world: &Self| {
            let server = world.machines[standby].server.as_ref();
            server.and_then(|server| server.process.as_ref()?.receiver)
        };
        let Some(receiver) = receiver(self).filter(|receiver| receiver.connection == connection) else {
            return;
        };
        let upstream = receiver.upstream;
        let machine = &self.machines[upstream];
        let answers = machine.up
            && !machine.frozen
            && machine.server.as_ref().is_some_and(|server| server.sends_on(&receiver))
            && self.network.connects(standby, upstream, Class::Postgres);
        let misses = if answers { 0 } else { misses + 1 };
        if misses >= MISSES {
            return self.disconnect(standby);
        }
        self.pump_from(upstream, standby);
        self.tell_flushed(standby);
        self.after(KEEPALIVE, Event::Keepalive { standby, connection, misses });
    }

    pub(super) fn disconnect(&mut self, standby: usize) {
        let server = self.machines[standby].server.as_mut();
        if let Some(process) = server.and_then(|server| server.process.as_mut()) {
            process.receiver = None;
        }
        let name = self.name(standby);
        self.note(|| format!("{name}: its walreceiver has lost the connection"));
        self.connect_soon(standby, RETRY);
    }

    /// The postmaster of an upstream has ended: its kernel says so to whoever it can reach.
    pub(super) fn upstream_died(&mut self, index: usize) {
        for standby in self.streaming_from(index) {
            if self.network.connects(standby, index, Class::Postgres) && !self.machines[standby].frozen {
                self.drain_connection(standby, index);
                self.disconnect(standby);
            }
        }
    }

    /// What had been sent before the end arrives before it, or is lost with it.
    fn drain_connection(&mut self, standby: usize, upstream: usize) {
        let all = self.rng.chance(500);
        let (Some(own), Some(source)) = self.two_servers(standby, upstream) else { return };
        let before = own.wal.len();
        if all && own.wal.agrees(&source.wal, before) {
            own.receive(source, source.wal.len());
            let have = own.wal.len();
            if let Some(process) = &mut own.process {
                process.replayed = have;
            }
            if have > before {
                self.check_received(standby, upstream);
            }
        }
    }
}
