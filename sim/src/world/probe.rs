//! An agent's looks at its own PostgreSQL: what the real probe would find, and when.

use std::time::Duration;

use pgherd_common::{Generation, MonoTime, Timeline};
use pgherd_core::cover::CoverSeen;
use pgherd_core::observation::{
    Downstream, Health, PostgresObservation, PostgresState, Running, SlotSeen, Stopped,
};
use pgherd_core::salvage::LeftWal;

use crate::clock::{MS, micros};
use crate::postgres::{Phase, lsn};

use super::{Work, World};

/// How old the last proof may be that new connections are served.
const FRESH: Duration = Duration::from_secs(1);
const QUICK: u64 = 10 * MS;
/// All servers of a cluster have it.
pub(crate) const SYSTEM: u64 = 7_711_287_415_420_705_246;

/// What one look leaves for the next.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Looks follow each other without pause.
    pub(crate) hurry: bool,
    /// The look that is due or under way; older ones are void.
    look: u64,
    known: Option<u64>,
    met_anything: bool,
    seen_up: bool,
    /// A worker before this one has seen PostgreSQL run.
    pub(crate) inherited: bool,
    session: bool,
    down_since: Option<MonoTime>,
    starting_since: Option<MonoTime>,
    answered: Option<MonoTime>,
    fresh: Option<MonoTime>,
    met: Option<MonoTime>,
    highest: u32,
}

impl Memory {
    fn meet(&mut self, life: Option<u64>, now: MonoTime) {
        if self.met_anything && self.known == life {
            return;
        }
        self.met_anything = true;
        self.seen_up |= life.is_some();
        self.down_since = if life.is_some() { None } else { self.down_since.or(Some(now)) };
        self.met = life.map(|_| now);
        self.known = life;
        (self.session, self.answered, self.fresh) = (false, None, None);
        (self.starting_since, self.highest) = (None, 0);
    }
}

impl World {
    /// A look begins now, whatever else was due.
    pub(super) fn look_at_once(&mut self, index: usize) {
        if self.machines[index].server.is_none() {
            return;
        }
        let span = self.rng.between(100, MS);
        if let Some(worker) = self.worker(index) {
            worker.memory.look += 1;
            let look = worker.memory.look;
            self.post(index, span, Work::LookDue(look));
        }
    }

    pub(super) fn begin_look(&mut self, index: usize, look: u64) {
        let now = self.mono(index);
        let span = self.rng.tailed(2 * MS, 40 * MS);
        let timeout = micros(self.timings.remote_timeout);
        let machine = &mut self.machines[index];
        let process = machine.server.as_ref().and_then(|server| server.process.as_ref());
        let (hung, life) = (process.is_some_and(|process| process.hung), process.map(|process| process.life));
        let Some(worker) = &mut machine.worker else { return };
        if worker.memory.look != look {
            return;
        }
        let memory = &worker.memory;
        let proven = memory.fresh.is_some_and(|at| now.since(at) < FRESH);
        let served = memory.session && memory.known == life && proven;
        let begun = worker.ended;
        let span = if hung && !served { timeout } else { span };
        self.post(index, span, Work::Looked(look, begun));
    }

    pub(super) fn end_look(&mut self, index: usize, look: u64, begun: u64) {
        if self.worker(index).is_none_or(|worker| worker.memory.look != look) {
            return;
        }
        let Some(observation) = self.observe(index) else { return };
        let pause = self.machines[index].clock.true_span(self.timings.probe_interval);
        let Some(worker) = self.worker(index) else { return };
        worker.memory.look += 1;
        let (next, pause) = (worker.memory.look, if worker.memory.hurry { QUICK } else { pause });
        if begun == worker.ended
            && let Some(node) = &mut worker.node
        {
            node.look(observation);
        }
        self.post(index, pause, Work::LookDue(next));
    }

    /// One look, ending now.
    pub(super) fn observe(&mut self, index: usize) -> Option<PostgresObservation> {
        let now = self.mono(index);
        let standbys = self.downstreams(index);
        let machine = &mut self.machines[index];
        let (server, worker) = (machine.server.as_ref()?, machine.worker.as_mut()?);
        let memory = &mut worker.memory;
        memory.meet(server.process.as_ref().map(|process| process.life), now);
        let age = |since: Option<MonoTime>| {
            let age = since.map(|since| now.since(since)).unwrap_or_default();
            u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
        };
        let state = match &server.process {
            None => PostgresState::Down(Stopped {
                clean: !server.rewinding && server.control.is_clean(),
                standby: !server.rewinding && server.standby_signal,
                timeline: Timeline(server.control.timeline()),
                checkpoint: server.control.checkpoint,
                redo: server.control.checkpoint,
                found_down: !memory.seen_up && (server.control.is_clean() || !memory.inherited),
                for_ms: age(memory.down_since),
                left: (!server.rewinding && !server.standby_signal && !server.control.is_clean())
                    .then(|| LeftWal { timeline: Timeline(server.timeline), end: server.wal.end() }),
            }),
            Some(process) => {
                let facts = match process.phase {
                    Phase::Recovery | Phase::Promoting | Phase::Primary => true,
                    Phase::Starting | Phase::Stopping => false,
                };
                let proven = memory.fresh.is_some_and(|at| now.since(at) < FRESH);
                if process.hung && !(facts && memory.session && proven) {
                    memory.fresh = None;
                    PostgresState::Unresponsive {
                        for_ms: age(memory.answered.or(memory.met)),
                        reason: "timed out".to_owned(),
                    }
                } else if !facts {
                    (memory.answered, memory.fresh, memory.session) = (Some(now), None, false);
                    let since = *memory.starting_since.get_or_insert(now);
                    PostgresState::Starting { for_ms: age(Some(since)), standby: server.standby_signal }
                } else {
                    if !process.hung && !proven {
                        (memory.answered, memory.fresh) = (Some(now), Some(now));
                    }
                    (memory.session, memory.starting_since) = (true, None);
                    PostgresState::Running(self.facts(index, standbys)?)
                }
            }
        };
        let pid = self.machines[index].server.as_ref()?.process.as_ref();
        Some(PostgresObservation {
            system_identifier: SYSTEM,
            major: 15,
            pid: pid.map(|process| u32::try_from(process.life).unwrap_or(u32::MAX) + 1000),
            state,
            recruited: None,
            salvaged: None,
            undrained: None,
            restarting: None,
            prepared: None,
            released: None,
            fenced: None,
            trouble: None,
            health: Health::default(),
        })
    }

    fn facts(&mut self, index: usize, standbys: Vec<Downstream>) -> Option<Running> {
        let streaming = self.streaming_from(index);
        if let Some(process) = self.machines[index].server.as_mut().and_then(|s| s.process.as_mut()) {
            process.walsenders.retain(|standby, _| streaming.contains(standby));
        }
        self.end_walsenders(index);
        let address = |upstream: usize| self.machines[upstream].descriptor.postgres.clone();
        let server = self.machines[index].server.as_ref()?;
        let process = server.process.as_ref()?;
        let in_recovery = process.phase != Phase::Primary;
        let position = if in_recovery { lsn(process.replayed) } else { server.wal.end() };
        let follows = server.conninfo.and_then(address);
        let received_timeline = process.receiver.map(|_| server.timeline);
        let seen = server.control.timeline().max(received_timeline.unwrap_or(0));
        let mut running = Running {
            in_recovery,
            timeline: Timeline(server.timeline),
            position,
            received: server.received(),
            checkpoint_timeline: Timeline(server.control.checkpoint_timeline),
            history: server.history_of(server.timeline),
            follows,
            follows_in: server
                .conninfo
                .map(|_| server.conninfo_generation)
                .filter(|generation| *generation != Generation::ZERO),
            receiver: process.receiver.map(|_| "streaming".to_owned()),
            standbys,
            redo: pgherd_common::Lsn::default(),
            slots: server.slots.iter().map(|name| slot(name)).collect(),
            logical: Box::default(),
            cover: server.covered().map(|(number, met)| CoverSeen { number, met }),
            gated: server.gated && !in_recovery,
            first_xid: None,
            capacity: None,
        };
        let memory = &mut self.machines[index].worker.as_mut()?.memory;
        if in_recovery {
            memory.highest = memory.highest.max(seen);
            let highest = memory.highest;
            let server = self.machines[index].server.as_ref()?;
            running.timeline = Timeline(highest);
            running.history = server.history_of(highest);
        }
        Some(running)
    }

    fn downstreams(&self, index: usize) -> Vec<Downstream> {
        let row = |standby: usize| Downstream {
            name: self.machines[standby].descriptor.name.to_string(),
            state: "streaming".to_owned(),
            sync_state: "async".to_owned(),
        };
        self.streaming_from(index).into_iter().map(row).collect()
    }
}

/// The model keeps all WAL for good, so slots keep all of it.
fn slot(name: &str) -> SlotSeen {
    let restart = Some(pgherd_common::Lsn::default());
    SlotSeen { name: name.to_owned(), active: false, restart, lost: false, pinned: false }
}
