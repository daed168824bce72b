//! Local actions: what the real agent's adapters do to PostgreSQL, step by step, each taking its time.

mod told;

use pgherd_core::defect::{Defect, planted};
use pgherd_core::node::{Begun, Done};
use pgherd_core::observation::Running;
use pgherd_core::reconcile::{Commits, LocalAction, Upstream, Wait};
use pgherd_core::salvage::Offer;

use crate::clock::{MS, Micros, SECOND, Time};
use crate::network::Class;
use crate::postgres::{ControlState, Kinship, Phase, Waits, Wal, kinship};

use super::{Event, ServerEvent, Work, World};
use told::describe;

/// An action under way.
#[derive(Debug)]
pub(crate) struct Acting {
    number: u64,
    begun: Begun,
    since: Time,
    result: Result<(), String>,
}

impl super::Worker {
    /// The generation as whose primary it is promoting PostgreSQL right now.
    pub(super) fn promoting(&self) -> Option<pgherd_common::Generation> {
        match self.acting.as_ref()?.begun.action {
            LocalAction::Promote(generation, _) => Some(generation),
            _ => None,
        }
    }

    /// Whether it is fetching what a dead primary has left, or has just done so.
    pub(super) fn salvages(&self) -> bool {
        self.acting.as_ref().is_some_and(|acting| matches!(acting.begun.action, LocalAction::Salvage { .. }))
    }
}

/// What comes after a step.
enum Next {
    /// The next step, after this long.
    Step(u32, Micros),
    /// It has ended.
    End(Result<(), String>),
}

/// In which role PostgreSQL is started.
#[derive(Clone, Copy)]
enum StartAs<'a> {
    Primary(pgherd_common::Generation, &'a Commits),
    Standby(Option<&'a Upstream>),
}

/// The last step of all: a look.
const LOOK: u32 = 1000;
const STOP_TIMEOUT: Micros = 10 * SECOND;
const START_TIMEOUT: Micros = 60 * SECOND;
const DRAIN: Micros = 500 * MS;

fn ok() -> Next {
    Next::End(Ok(()))
}

fn failed(why: &str) -> Next {
    Next::End(Err(why.to_owned()))
}

impl World {
    pub(super) fn act(&mut self, index: usize, begun: Begun) {
        let name = self.name(index);
        self.note(|| format!("{name}: {}", describe(&begun.action)));
        self.check_action(index, &begun.action);
        let now = self.now;
        let span = self.rng.between(50, 500);
        let number = self.rng.bits();
        if planted(Defect::ReleaseBeforeFence)
            && let LocalAction::Fence { .. } = begun.action
        {
            self.release_early(index, &begun);
        }
        let Some(worker) = self.worker(index) else { return };
        worker.acting = Some(Acting { number, begun, since: now, result: Ok(()) });
        self.post(index, span, Work::Action(number, 0));
    }

    pub(super) fn go_on(&mut self, index: usize, number: u64, stage: u32) {
        let Some(worker) = self.worker(index) else { return };
        let Some(acting) = worker.acting.as_ref().filter(|acting| acting.number == number) else { return };
        if stage == LOOK {
            return self.ended(index);
        }
        let (action, since) = (acting.begun.action.clone(), acting.since);
        match self.perform(index, &action, stage, since) {
            Next::Step(stage, span) => self.post(index, span, Work::Action(number, stage)),
            Next::End(result) => {
                if let Err(why) = &result {
                    let name = self.name(index);
                    self.note(|| format!("{name}: {} failed: {why}", describe(&action)));
                }
                let Some(worker) = self.worker(index) else { return };
                worker.ended += 1;
                if let Some(acting) = &mut worker.acting {
                    acting.result = result;
                }
                let span = self.rng.tailed(2 * MS, 30 * MS);
                self.post(index, span, Work::Action(number, LOOK));
            }
        }
    }

    fn ended(&mut self, index: usize) {
        let Some(observation) = self.observe(index) else { return };
        let now = self.mono(index);
        let Some(worker) = self.worker(index) else { return };
        let Some(Acting { begun, result, .. }) = worker.acting.take() else { return };
        let done = Done { action: begun.action, before: begun.before, result, setback: None, observation };
        let recruited = match &done.action {
            LocalAction::Recruit(generation) if done.result.is_ok() => Some(*generation),
            _ => None,
        };
        if let Some(node) = &mut worker.node {
            node.acted(done, now);
        }
        if let Some(generation) = recruited {
            self.check_recruited(index, generation);
        }
        self.look_at_once(index);
        self.turn_soon(index);
    }

    fn perform(&mut self, index: usize, action: &LocalAction, stage: u32, since: Time) -> Next {
        match action {
            LocalAction::Fence { .. } => self.fence(index, stage),
            LocalAction::StartPrimary(generation, commits) => {
                let next = self.start(index, stage, since, StartAs::Primary(*generation, commits));
                self.covered_too(index, next, commits)
            }
            LocalAction::StartStandby => self.start(index, stage, since, StartAs::Standby(None)),
            LocalAction::Rejoin { upstream, running } => self.rejoin(index, stage, since, upstream, running),
            LocalAction::Rebuild(_) => {
                unreachable!("no operator orders a copy here, and none is made unasked")
            }
            LocalAction::StopFast { .. } => self.stop(index, stage),
            LocalAction::DrainAndStop { end_transactions, .. } => {
                self.drain_and_stop(index, stage, *end_transactions)
            }
            LocalAction::Prepare { .. } | LocalAction::Checkpoint => self.checkpoint(index, stage),
            LocalAction::Recruit(_) => self.recruit(index, stage, since),
            LocalAction::Salvage { offer, .. } => self.salvage(index, stage, offer),
            // One in ten fails, and is tried again.
            LocalAction::FenceScript { .. } if stage == 0 => Next::Step(1, self.rng.tailed(5 * MS, 900 * MS)),
            LocalAction::FenceScript { .. } if self.rng.chance(100) => failed("the fence script failed"),
            LocalAction::FenceScript { .. } => ok(),
            LocalAction::Promote(generation, commits) => {
                if stage == 0 {
                    self.hold_commits(index, commits);
                }
                let next = self.promote(index, stage, since, *generation);
                self.covered_too(index, next, commits)
            }
            LocalAction::Cover(wait) => {
                if stage == 0 {
                    return Next::Step(1, self.rng.tailed(15 * MS, 300 * MS));
                }
                self.take_cover(index, wait)
            }
            LocalAction::LetIn => {
                if stage == 0 {
                    return Next::Step(1, self.rng.tailed(8 * MS, 200 * MS));
                }
                let Some(server) = &mut self.machines[index].server else { return ok() };
                server.gated = false;
                ok()
            }
            LocalAction::Follow(upstream) => self.follow(index, stage, upstream),
            // No logical replication in the model.
            LocalAction::HoldBack(_) => ok(),
            LocalAction::AlignSlots { members, .. } => {
                if stage == 0 {
                    return Next::Step(1, self.rng.tailed(4 * MS, 100 * MS));
                }
                let Some(server) = &mut self.machines[index].server else { return ok() };
                server.slots = members.iter().map(pgherd_common::NodeName::slot).collect();
                ok()
            }
        }
    }

    fn phase(&self, index: usize) -> Option<Phase> {
        self.machines[index].server.as_ref()?.phase()
    }

    fn hangs(&self, index: usize) -> bool {
        let process = self.machines[index].server.as_ref().and_then(|server| server.process.as_ref());
        process.is_some_and(|process| process.hung)
    }

    fn fence(&mut self, index: usize, stage: u32) -> Next {
        if stage == 0 {
            return Next::Step(1, self.time_to_kill());
        }
        self.kill_server(index);
        ok()
    }

    fn start(&mut self, index: usize, stage: u32, since: Time, role: StartAs<'_>) -> Next {
        let (granted, upstream) = match role {
            StartAs::Primary(generation, _) => (Some(generation), None),
            StartAs::Standby(upstream) => (None, upstream),
        };
        let upstream_index = upstream.and_then(|upstream| self.by_address.get(&upstream.address).copied());
        let upstream_index =
            upstream_index.zip(upstream.map(|upstream| upstream.generation.unwrap_or_default()));
        let waits = match role {
            StartAs::Primary(_, commits) => self.waits(commits),
            StartAs::Standby(_) => Waits::Free,
        };
        let (standby, late) = (granted.is_none(), self.now.since(since) >= START_TIMEOUT);
        let Some(server) = &mut self.machines[index].server else { return ok() };
        if server.rewinding {
            return failed("the data directory was left half rewound");
        }
        match server.phase() {
            None if stage > 0 => failed("PostgreSQL ended during its start"),
            None => {
                (server.standby_signal, server.conninfo) = (standby, upstream_index.map(|(index, _)| index));
                server.conninfo_generation = upstream_index.map(|(_, of)| of).unwrap_or_default();
                server.gated = waits != Waits::Free;
                server.waits = waits;
                if let Some(generation) = granted {
                    server.generation = generation;
                    self.check_promoted(index, generation);
                }
                self.launch(index);
                Next::Step(1, 15 * MS)
            }
            Some(Phase::Starting | Phase::Stopping) if late => {
                failed("PostgreSQL runs, but lets nobody in after 60 s")
            }
            Some(Phase::Starting | Phase::Stopping) => Next::Step(stage, 15 * MS),
            Some(Phase::Primary) if standby => failed("PostgreSQL runs as a primary already"),
            Some(Phase::Primary) => ok(),
            Some(Phase::Recovery | Phase::Promoting) if !standby => {
                failed("PostgreSQL runs as a standby already")
            }
            Some(Phase::Recovery | Phase::Promoting) => {
                self.repoint(index, upstream_index);
                ok()
            }
        }
    }

    /// The walreceiver's settings, in effect at once.
    fn repoint(&mut self, index: usize, upstream: Option<(usize, pgherd_common::Generation)>) {
        let Some(server) = &mut self.machines[index].server else { return };
        let generation = upstream.map(|(_, generation)| generation).unwrap_or_default();
        let renamed = std::mem::replace(&mut server.conninfo_generation, generation) != generation;
        let upstream = upstream.map(|(index, _)| index);
        server.conninfo = upstream;
        let mut connects = false;
        if let Some(process) = &mut server.process {
            if process.receiver.is_some_and(|receiver| renamed || Some(receiver.upstream) != upstream) {
                process.receiver = None;
            }
            connects = process.receiver.is_none() && upstream.is_some();
        }
        if connects {
            self.connect_soon(index, 2 * MS);
        }
    }

    fn hold_commits(&mut self, index: usize, commits: &Commits) {
        let waits = self.waits(commits);
        if let Some(server) = &mut self.machines[index].server
            && !server.accepts()
        {
            server.waits = waits;
        }
    }

    /// What makes a server writable ends with the word that commits wait.
    fn covered_too(&mut self, index: usize, next: Next, commits: &Commits) -> Next {
        match (next, commits) {
            (Next::End(Ok(())), Commits::WaitFor(wait)) => self.take_cover(index, wait),
            (next, _) => next,
        }
    }

    fn take_cover(&mut self, index: usize, wait: &Wait) -> Next {
        if self.phase(index) != Some(Phase::Primary) || self.hangs(index) {
            return failed("PostgreSQL does not answer as a primary");
        }
        let waits = self.waits(&Commits::WaitFor(wait.clone()));
        self.cover(index, waits, wait.number);
        ok()
    }

    fn stop(&mut self, index: usize, stage: u32) -> Next {
        match (stage, self.phase(index)) {
            (0, Some(_)) if !self.hangs(index) => {
                let deadline = self.now + STOP_TIMEOUT;
                let span = self.rng.tailed(30 * MS, SECOND) + self.flush(index);
                let Some(server) = &mut self.machines[index].server else { return ok() };
                server.stop();
                let life = server.process.as_ref().map_or(0, |process| process.life);
                self.notice(index);
                self.wal_grew(index);
                self.after(span, Event::Server(index, life, ServerEvent::Stopping(deadline)));
                let give_up = u32::try_from(STOP_TIMEOUT / (5 * MS)).unwrap_or(u32::MAX);
                Next::Step(give_up.min(LOOK - 1), 5 * MS)
            }
            (0, Some(_)) => Next::Step(1, STOP_TIMEOUT),
            (_, None) => {
                let clean = self.machines[index].server.as_ref().is_some_and(|s| s.control.is_clean());
                if clean || stage == 0 { ok() } else { failed("PostgreSQL did not stop and was killed") }
            }
            (1, Some(_)) => {
                self.kill_server(index);
                failed("PostgreSQL did not stop within 10 s of a fast shutdown and was killed")
            }
            // Ten times as long between two looks near the end as at the beginning.
            (left, Some(_)) => Next::Step(left - 1, 11 * MS),
        }
    }

    fn drain_and_stop(&mut self, index: usize, stage: u32, end_transactions: bool) -> Next {
        /// Of a thousand: somebody has left a transaction open.
        const BUSY: u64 = 50;
        if stage == 0 && self.rng.chance(BUSY) {
            return Next::Step(LOOK + 2, crate::clock::micros(self.timings.drain_timeout));
        }
        if stage == 0 {
            return Next::Step(LOOK + 1, self.rng.tailed(10 * MS, DRAIN));
        }
        if stage == LOOK + 2 && !end_transactions {
            return failed("a transaction still runs after 5 s");
        }
        self.stop(index, if stage > LOOK { 0 } else { stage })
    }

    fn checkpoint(&mut self, index: usize, stage: u32) -> Next {
        if self.phase(index).is_none() || self.hangs(index) {
            return failed("the checkpoint did not finish");
        }
        if stage == 0 {
            return Next::Step(1, self.rng.tailed(80 * MS, 4 * SECOND) + self.flush(index));
        }
        if let Some(server) = &mut self.machines[index].server {
            server.checkpoint();
        }
        self.wal_grew(index);
        ok()
    }

    fn recruit(&mut self, index: usize, stage: u32, since: Time) -> Next {
        match self.phase(index) {
            Some(Phase::Recovery | Phase::Promoting) => {}
            Some(Phase::Primary) => return failed("PostgreSQL is a primary, not a standby"),
            Some(Phase::Starting | Phase::Stopping) | None => return failed("PostgreSQL does not answer"),
        }
        if self.hangs(index) {
            let late = self.now.since(since) >= 2 * SECOND;
            return if late { failed("the settings are not in effect") } else { Next::Step(0, 100 * MS) };
        }
        match stage {
            0 => {
                if let Some(server) = &mut self.machines[index].server {
                    server.conninfo = None;
                }
                Next::Step(1, self.rng.tailed(8 * MS, 150 * MS))
            }
            1 => {
                self.repoint(index, None);
                Next::Step(2, 4 * MS)
            }
            _ => ok(),
        }
    }

    /// What the disk of a dead primary has beyond what this standby received.
    fn salvage(&mut self, index: usize, stage: u32, offer: &Offer) -> Next {
        let from = self.machines.iter().position(|machine| machine.descriptor.name == offer.node);
        let Some(from) = from else { return failed("unknown") };
        let answers = self.network.connects(index, from, Class::Agent)
            && self.machines[from].up
            && !self.machines[from].frozen
            && self.machines[from].worker.is_some();
        if !answers {
            return failed("no answer from the agent of the old primary");
        }
        if stage == 0 {
            return Next::Step(1, self.rng.tailed(15 * MS, 2 * SECOND) + self.flush(index));
        }
        if self.phase(index) != Some(Phase::Recovery) || self.hangs(index) {
            return failed("PostgreSQL does not answer as a standby");
        }
        let (Some(own), Some(old)) = self.two_servers(index, from) else { return failed("no database") };
        if old.process.is_some() {
            return failed("PostgreSQL runs there again");
        }
        if own.timeline != old.timeline || !own.wal.agrees(&old.wal, own.wal.len()) {
            return failed("the WAL there is not the continuation of what is here");
        }
        own.wal.extend_from(&old.wal, Wal::count_until(offer.wal.end));
        own.half = false;
        if let Some(process) = &mut own.process {
            process.replayed = own.wal.len();
        }
        let (name, other) = (self.name(index), self.name(from));
        self.note(|| format!("{name}: has what {other} had left"));
        ok()
    }

    fn promote(
        &mut self,
        index: usize,
        stage: u32,
        since: Time,
        generation: pgherd_common::Generation,
    ) -> Next {
        const PROMOTING: u32 = 3;
        if stage < PROMOTING {
            return match self.recruit(index, stage, since) {
                Next::Step(next, span) => Next::Step(next, span),
                Next::End(Ok(())) => {
                    let span = self.rng.tailed(60 * MS, 1400 * MS) + self.flush(index);
                    self.begin_promotion(index, span, generation, false);
                    Next::Step(PROMOTING, 5 * MS)
                }
                Next::End(refused) => Next::End(refused),
            };
        }
        match self.phase(index) {
            Some(Phase::Primary) => ok(),
            Some(_) if self.now.since(since) < START_TIMEOUT => Next::Step(PROMOTING, 5 * MS),
            Some(_) => failed("the promotion goes on, but is not finished after 60 s"),
            None => failed("PostgreSQL ended during its promotion"),
        }
    }

    pub(super) fn begin_promotion(
        &mut self,
        index: usize,
        span: Micros,
        generation: pgherd_common::Generation,
        by_hand: bool,
    ) {
        let Some(process) = self.machines[index].server.as_mut().and_then(|s| s.process.as_mut()) else {
            return;
        };
        if process.phase == Phase::Recovery {
            process.phase = Phase::Promoting;
            let life = process.life;
            self.after(span, Event::Server(index, life, ServerEvent::Promoted(generation, by_hand)));
        }
    }

    fn follow(&mut self, index: usize, stage: u32, upstream: &Upstream) -> Next {
        if stage == 0 {
            return Next::Step(1, self.rng.tailed(8 * MS, 200 * MS));
        }
        if self.phase(index).is_none() || self.hangs(index) {
            return failed("PostgreSQL does not run");
        }
        let at = self.by_address.get(&upstream.address).copied();
        self.repoint(index, at.map(|at| (at, upstream.generation.unwrap_or_default())));
        ok()
    }

    fn rejoin(
        &mut self,
        index: usize,
        stage: u32,
        since: Time,
        upstream: &Upstream,
        running: &Running,
    ) -> Next {
        const REWINDING: u32 = 500;
        let Some(source) = self.by_address.get(&upstream.address).copied() else { return failed("unknown") };
        match stage {
            0 => match self.needs_rewind(index, running) {
                Err(why) => failed(why),
                Ok(true) => {
                    if running.checkpoint_timeline != running.timeline {
                        return failed("pg_rewind has to wait for the next checkpoint of the upstream");
                    }
                    if let Some(server) = &mut self.machines[index].server {
                        server.rewinding = true;
                    }
                    Next::Step(REWINDING, self.rng.tailed(800 * MS, 8 * SECOND) + self.flush(index))
                }
                Ok(false) => {
                    if let Some(server) = &mut self.machines[index].server {
                        server.newest_known = server.timeline;
                    }
                    self.start(index, 0, since, StartAs::Standby(Some(upstream)))
                }
            },
            REWINDING => match self.rewind(index, source, running) {
                Ok(()) => self.start(index, 0, since, StartAs::Standby(Some(upstream))),
                Err(why) => failed(why),
            },
            _ => self.start(index, stage, since, StartAs::Standby(Some(upstream))),
        }
    }

    fn needs_rewind(&self, index: usize, running: &Running) -> Result<bool, &'static str> {
        let Some(server) = &self.machines[index].server else { return Err("a witness") };
        if server.process.is_some() {
            return Err("PostgreSQL runs; only a stopped node can rejoin");
        }
        if running.in_recovery {
            return Err("the upstream is not a primary");
        }
        if planted(Defect::NoRewind) {
            return Ok(false);
        }
        if server.rewinding {
            return Ok(true);
        }
        let killed_primary = server.control.state == ControlState::InProduction;
        let same = pgherd_common::Timeline(server.control.timeline()) == running.timeline;
        match kinship(server, running) {
            Kinship::SameNumber => Err("SameNumber: both were promoted to one timeline; clone this node"),
            Kinship::Ancestor if killed_primary && same => Err(
                "SameTimeline: it was killed as primary of the timeline the upstream writes; clone this node",
            ),
            Kinship::Ancestor if killed_primary => {
                let (timeline, end) = (pgherd_common::Timeline(server.timeline), server.wal.end());
                let shared = timeline != running.timeline
                    && running.history.contains(running.timeline, timeline, end)
                    && server.history_of(server.timeline).0.iter().eq(running
                        .history
                        .0
                        .iter()
                        .take_while(|(parent, _)| *parent != timeline));
                Ok(!shared)
            }
            Kinship::Ancestor => Ok(false),
            Kinship::Diverged => Ok(true),
        }
    }

    fn rewind(&mut self, index: usize, source: usize, running: &Running) -> Result<(), &'static str> {
        let reachable = self.network.connects(index, source, Class::Postgres) && self.machines[source].up;
        let source = self.machines[source]
            .server
            .as_ref()
            .filter(|server| reachable && matches!(server.phase(), Some(Phase::Primary | Phase::Recovery)));
        let Some(source) = source.cloned() else { return Err("pg_rewind failed: no answer from the source") };
        let Some(server) = &mut self.machines[index].server else { return Err("a witness") };
        server.rewind_to(&source);
        if kinship(server, running) != Kinship::Ancestor {
            return Err("pg_rewind ended without an error, but the node is still not of the upstream's past");
        }
        let name = self.name(index);
        self.note(|| format!("{name}: rewound"));
        Ok(())
    }

    /// A defect: the others hear of the end before it has come.
    fn release_early(&mut self, index: usize, begun: &Begun) {
        let Some(mut observation) = self.observe(index) else { return };
        let now = self.mono(index);
        observation.state =
            pgherd_core::observation::PostgresState::Down(pgherd_core::observation::Stopped {
                clean: false,
                standby: false,
                timeline: pgherd_common::Timeline(1),
                checkpoint: pgherd_common::Lsn::default(),
                redo: pgherd_common::Lsn::default(),
                found_down: false,
                for_ms: 0,
                left: None,
            });
        let done = Done {
            action: begun.action.clone(),
            before: begun.before,
            result: Ok(()),
            setback: None,
            observation,
        };
        if let Some(node) = self.node_mut(index) {
            node.acted(done, now);
        }
        self.turn_soon(index);
    }
}
