//! Tells the checkers what happens.

use std::collections::BTreeSet;
use std::sync::Arc;

use pgherd_common::topology::ChangeKind;
use pgherd_common::{Generation, NodeId, Topology};
use pgherd_core::cluster::{Applied, Change, ChangePhase, ClusterState, Command, Service};
use pgherd_core::node::version;
use pgherd_core::quorum::Admission;
use pgherd_core::reconcile::LocalAction;

use crate::clock::Time;
use crate::invariants::{self, Claim, Excuse, Health, Sick, Violation};
use crate::network::Class;
use crate::postgres::{Kind, Phase, Server, Wal};
use crate::raft::{Entry, Payload};

use super::World;

impl World {
    /// Records what a checker found, if it found anything.
    pub(super) fn judge(&mut self, found: Option<Violation>) {
        if let Some(found) = &found {
            let line = format!("!!! {found}");
            self.note(|| line);
        }
        self.checks.judge(self.now, found);
    }

    pub(super) fn check_writable(&mut self, index: usize, accepts: bool) {
        if !accepts {
            return self.checks.writable.off(index);
        }
        let Some(server) = &self.machines[index].server else { return };
        let by_hand = server.process.as_ref().is_some_and(|process| process.promoted_by_hand);
        let generation = server.generation;
        if generation > Generation::ZERO && !by_hand {
            let found = self.checks.one_primary.writable(generation, index);
            self.judge(found);
        }
        let excuses: Vec<_> = (0..self.machines.len()).map(|machine| self.excuse(machine)).collect();
        let found =
            self.checks.writable.on(index, self.now, |machine| excuses.get(machine).copied().flatten());
        self.judge(found);
    }

    /// A machine can answer for the virtual IP from now on, or no more.
    pub(super) fn check_holders(&mut self, index: usize, answers: bool) {
        if !answers {
            return self.checks.holders.off(index);
        }
        let excuses: Vec<_> = (0..self.machines.len()).map(|machine| self.excuse(machine)).collect();
        let found =
            self.checks.holders.on(index, self.now, |machine| excuses.get(machine).copied().flatten());
        self.judge(found);
    }

    /// Why a machine's server may accept writes beside another one.
    fn excuse(&self, index: usize) -> Option<(Excuse, Time)> {
        let machine = &self.machines[index];
        let process = machine.server.as_ref().and_then(|server| server.process.as_ref());
        if process.is_some_and(|process| process.promoted_by_hand) {
            return machine.by_hand.map(|since| (Excuse::PromotedByHand, since));
        }
        if self.checks.is_unguarded(index) {
            return Some((Excuse::Unguarded, self.now));
        }
        machine
            .thawed
            .map(|since| (Excuse::JustThawed, since))
            .filter(|(excuse, since)| self.now.since(*since) <= excuse.span())
    }

    pub(super) fn check_overdue(&mut self) {
        let found = self.checks.writable.overdue(self.now).or_else(|| self.checks.holders.overdue(self.now));
        self.judge(found);
    }

    fn rows_of(server: &Server) -> BTreeSet<u64> {
        let row = |kind: Kind| match kind {
            Kind::Row(id) => Some(id),
            Kind::Checkpoint | Kind::EndOfRecovery => None,
        };
        server.wal.records().iter().filter_map(|record| row(record.kind)).collect()
    }

    /// A server becomes primary of a generation, by promotion or by being started as it is.
    pub(super) fn check_promoted(&mut self, index: usize, generation: Generation) {
        let found = self.checks.grants.used(generation, index);
        self.judge(found);
        // Where it comes too late, the log having gone on, nobody follows it, and what it has counts for nothing.
        if self.generation() == generation
            && self.checks.grants.kind(generation) == Some(ChangeKind::Failover)
            && let Some(server) = &self.machines[index].server
        {
            let has = Self::rows_of(server);
            let found = if self.checks.covered.contains(&generation) {
                self.checks.rows.survived(&has).filter(|_| !self.twins)
            } else {
                self.checks.rows.failed_over(&has);
                None
            };
            self.judge(found);
        }
    }

    pub(super) fn check_generation(&mut self, index: usize, generation: Generation) {
        let found = self.checks.generations.seen("the memory of server", index, generation);
        self.judge(found);
    }

    /// What a leader proposes, judged by what it knows and by the truth.
    pub(super) fn check_proposal(&mut self, index: usize, command: &Command) {
        if let Command::PlanVoters { next, .. } = command {
            return self.check_departure(index, next);
        }
        let Command::Grant { node, .. } = command else { return };
        let Some(mind) = self.node(index) else { return };
        let Some(change) = &mind.state().change else { return };
        // Of a leader that does not know yet that another one has led: nothing will come of it.
        if self.generation() >= change.generation {
            return;
        }
        let back = *node == change.from || Some(*node) == change.before;
        if change.phase != ChangePhase::Recruiting || back {
            return;
        }
        let Some(chosen) = self.index_of(*node) else { return };
        let receives = |at: usize| {
            let server = self.machines[at].server.as_ref();
            server.is_some_and(|server| server.process.as_ref().is_some_and(|p| p.receiver.is_some()))
        };
        let still = receives(chosen).then_some(Violation::ReceivedAfterRecruit {
            standby: chosen,
            from: self.index_of(change.from).unwrap_or(0),
            generation: change.generation,
        });
        let less = if change.to.is_some() {
            None
        } else {
            let now = self.mono(index);
            let lease = self.timings.lease;
            let seen = mind.coordinator().seen().iter();
            let claims = seen.filter(|(_, seen)| now.since(seen.at) < lease).filter_map(|(id, seen)| {
                let own = seen.observation.postgres.as_ref()?;
                let fit = mind.state().members.get(id)?.allowed
                    && *id != change.from
                    && own.recruited == Some(change.generation)
                    && mind.state().voters.contains(*id)
                    && own.running().is_some_and(|running| running.in_recovery && running.receiver.is_none());
                let at = self.index_of(*id).filter(|_| fit)?;
                let server = self.machines[at].server.as_ref()?;
                // After a restart of its agent a standby may count as on an older timeline than it is:
                // `pg_control` lags, and without a walreceiver nothing else tells.
                let known = own.running()?.timeline.0 == server.timeline;
                let wal = Some(&server.wal).filter(|_| known)?;
                let generation = wal.last().map_or(Generation::ZERO, |record| record.generation);
                // What it has fetched since it last spoke, nobody can know.
                let told = Wal::count_until(own.running()?.received);
                let records = if self.has_salvaged(at, change) { wal.len().min(told) } else { wal.len() };
                Some(Claim { node: at, generation, records })
            });
            // Of two timelines by one number, forked at one position, nobody can tell which of them is longer.
            invariants::most_wins(chosen, &claims.collect::<Vec<_>>()).filter(|_| !self.twins)
        };
        self.judge(still);
        self.judge(less);
    }

    /// Whether a standby has fetched what the old primary had left, or is about to.
    fn has_salvaged(&self, index: usize, change: &Change) -> bool {
        let Some(node) = self.node(index) else { return false };
        let own = node.coordinator().seen().get(&node.id());
        let own = own.and_then(|seen| seen.observation.postgres.as_ref());
        self.machines[index].worker.as_ref().is_some_and(super::Worker::salvages)
            || own.is_some_and(|own| own.salvaged == Some(change.generation))
    }

    /// Whether a voter that is to leave is the only one that is silent.
    fn check_departure(&mut self, index: usize, next: &BTreeSet<NodeId>) {
        let Some(mind) = self.node(index) else { return };
        let voters = &mind.state().voters.current;
        let Some(leaves) = voters.difference(next).next().and_then(|id| self.index_of(*id)) else { return };
        let (now, lease) = (self.mono(index), self.timings.lease);
        let silent =
            |id: &&NodeId| mind.coordinator().seen().get(*id).is_none_or(|seen| now.since(seen.at) >= lease);
        let silent: Vec<usize> = voters.iter().filter(silent).filter_map(|id| self.index_of(*id)).collect();
        self.judge(invariants::alone(leaves, &silent));
    }

    pub(super) fn check_applied(
        &mut self,
        index: usize,
        at: usize,
        entry: &Arc<Entry>,
        result: Option<&Applied>,
        state: &Arc<ClusterState>,
    ) {
        let before = self.checks.logs.before(at).unwrap_or_default();
        let (first, found) = self.checks.logs.applied(index, at, entry, state);
        self.judge(found);
        let found = self.checks.generations.seen("server", index, state.generation);
        self.judge(found);
        if !first {
            return;
        }
        let found = invariants::one_change(at, &before, state);
        self.judge(found);
        let found = invariants::neighbours(at, &before.voters, &state.voters);
        self.judge(found);
        let Payload::Command(command) = &entry.payload else { return };
        if result != Some(&Applied::Changed) {
            return;
        }
        let line = format!("    log {at}: {command:?}");
        self.note(|| line);
        let given = match &**command {
            Command::Form { primary, .. } => Some((*primary, None)),
            Command::Grant { node, .. } => Some((*node, before.change.as_ref().map(|change| change.kind))),
            _ => None,
        };
        let forced = before.change.as_ref().is_some_and(|change| change.allow_data_loss);
        if given.is_some() && !before.cover.promised.is_none() && !forced {
            self.checks.covered.insert(state.generation);
        }
        if let Some((node, kind)) = given
            && let Some(node) = self.index_of(node)
        {
            let found = self.checks.grants.granted(state.generation, node, kind);
            self.judge(found);
        }
    }

    pub(super) fn check_committed(&mut self, index: usize, at: usize, have: &BTreeSet<usize>) {
        let Some(raft) = self.machines[index].worker.as_ref().and_then(|worker| worker.raft.as_ref()) else {
            return;
        };
        let (voters, term) = (raft.voters().len(), raft.term());
        let on_disk = |member: &&usize| {
            let machine = &self.machines[**member];
            match machine.worker.as_ref().and_then(|worker| worker.raft.as_ref()) {
                // What it had on disk counted; that the disk was lost since is another matter.
                Some(raft) if raft.admission() != Admission::Full => true,
                Some(raft) => raft.has_on_disk(at, term),
                None => machine.disk.raft.admission != Admission::Full || machine.disk.raft.has(at, term),
            }
        };
        let found = invariants::majority(at, have.iter().filter(on_disk).count(), voters);
        self.judge(found);
    }

    pub(super) fn check_action(&mut self, index: usize, action: &LocalAction) {
        if !matches!(action, LocalAction::DrainAndStop { .. }) {
            return;
        }
        let Some(worker) = &self.machines[index].worker else { return };
        let me = self.machines[index].descriptor.id;
        let sends = (0..self.proxies.len()).find(|proxy| {
            let linked = worker.hubs.get(*proxy).is_some_and(|hub| hub.connected);
            let through = self.network.connects(index, self.proxy_endpoint(*proxy), Class::Agent);
            linked && through && self.proxies[*proxy].writes_to() == Some(me)
        });
        let after = worker.stopping_since.map_or(0, |since| self.now.since(since));
        let found = invariants::held(index, sends, after);
        self.judge(found);
    }

    pub(super) fn check_recruited(&mut self, index: usize, generation: Generation) {
        self.checks.recruits.recruited(index, generation);
    }

    pub(super) fn check_stream(&mut self, standby: usize, upstream: usize, agrees: bool) {
        self.judge(invariants::beginning(standby, upstream, agrees || self.twins));
    }

    pub(super) fn check_received(&mut self, standby: usize, upstream: usize) {
        let Some(source) = &self.machines[upstream].server else { return };
        // One that was promoted by hand just when the log chose it counts as of the generation before.
        let by_hand = source.process.as_ref().is_some_and(|process| process.promoted_by_hand);
        if source.phase() != Some(Phase::Recovery) && !by_hand {
            let found = self.checks.recruits.received(standby, upstream, source.generation);
            self.judge(found);
        }
    }

    pub(super) fn check_topology(&mut self, proxy: usize, pushed: &Topology) {
        let found = self.checks.routes.taken(proxy, pushed);
        self.judge(found);
    }

    pub(super) fn check_routed(&mut self, proxy: usize, node: NodeId) {
        let index = self.index_of(node).unwrap_or(0);
        let found = self.checks.routes.routed(proxy, index, node);
        self.judge(found);
    }

    /// A server has a row. One that may be writable beside another for a moment may lose it again.
    pub(super) fn check_written(&mut self, index: usize, row: u64) {
        self.checks.rows.written(row);
        if self.excuse(index).is_some() {
            self.checks.rows.excuse(row);
        }
    }

    pub(super) fn check_acknowledged(&mut self, node: NodeId, row: u64) {
        let index = self.index_of(node).unwrap_or(0);
        let found = self.checks.rows.acknowledge(index, row);
        self.judge(found);
    }

    /// At the end of a run: the primary has every row that it must have.
    pub fn check_survival(&mut self) {
        let primary = (0..self.machines.len()).find(|index| self.machines[*index].accepts());
        let server = primary.and_then(|index| self.machines[index].server.as_ref());
        if let Some(server) = server.filter(|_| !self.twins) {
            let has = Self::rows_of(server);
            let found = self.checks.rows.survived(&has);
            self.judge(found);
        }
    }

    /// The cluster's newest generation.
    pub fn generation(&self) -> Generation {
        self.checks.grants.newest()
    }

    /// Records a violation that only a whole run shows.
    pub fn convict(&mut self, found: Violation) {
        self.judge(Some(found));
    }

    /// How whole the cluster is.
    pub fn health(&self) -> Health {
        let mut health = Health::default();
        let Some(leader) = self.leader() else {
            health.sick.push(Sick::NoLeader);
            return health;
        };
        let Some(state) = self.state(leader).cloned() else { return health };
        let primary = state.serving().filter(|_| state.change.is_none()).and_then(|id| self.index_of(id));
        let Some(primary) = primary else {
            let lost = self.databases_to_clone();
            // One that follows another's twin gets nothing it can use, and nobody can tell that it has to be cloned.
            let with_twins = self.twins && !state.cover.wanted.is_none();
            if self.starves(lost.len()) || with_twins {
                health.to_clone = lost;
            } else {
                health.sick.push(Sick::NoPrimary);
            }
            return health;
        };
        if !self.machines[primary].accepts() {
            health.sick.push(Sick::NotWritable(primary));
        }
        if self.with_address && !self.machines[primary].answers() {
            health.sick.push(Sick::NoAddress(primary));
        }
        if state.scheduled.is_some() {
            health.sick.push(Sick::Scheduled);
        }
        if state.pauses.iter().next().is_some() {
            health.sick.push(Sick::Paused);
        }
        let id = self.machines[primary].descriptor.id;
        for (number, proxy) in self.proxies.iter().enumerate() {
            if proxy.writes_to() != Some(id) {
                health.sick.push(Sick::ProxyElsewhere(number));
            }
        }
        for (index, machine) in self.machines.iter().enumerate() {
            if self.state(index).is_none_or(|own| version(own) != version(&state)) {
                health.sick.push(Sick::Behind(index));
            }
            if !state.voters.current.contains(&machine.descriptor.id) || state.voters.plan.is_some() {
                health.sick.push(Sick::NoVote(index));
            }
            let Some(server) = machine.server.as_ref().filter(|_| index != primary) else { continue };
            let receiver = server.process.as_ref().and_then(|process| process.receiver);
            let relay = state.relay(machine.descriptor.id).and_then(|relay| self.index_of(relay));
            let source = relay.unwrap_or(primary);
            let streams = receiver.is_some_and(|receiver| receiver.upstream == source);
            let member = state.members.get(&machine.descriptor.id);
            if !streams || member.is_none_or(|member| member.service != Service::Up) {
                let why = self.why(index);
                if why.contains("clone this node") {
                    health.to_clone.push(index);
                }
                health.sick.push(Sick::NotFollowing(index, why));
            }
        }
        health
    }

    fn databases_to_clone(&self) -> Vec<usize> {
        (0..self.machines.len()).filter(|index| self.why(*index).contains("clone this node")).collect()
    }

    /// Whether commits have to wait for more standbys than are left without somebody's cloning one.
    fn starves(&self, to_clone: usize) -> bool {
        let databases = self.machines.iter().filter(|machine| machine.server.is_some()).count();
        let standbys = usize::try_from(self.durability.standbys).unwrap_or(0);
        self.durability.degrade_after_ms == 0 && databases <= standbys + to_clone
    }

    /// What an agent says of its own trouble.
    fn why(&self, index: usize) -> String {
        let Some(node) = self.node(index) else { return "its agent does not run".to_owned() };
        let own = node.coordinator().seen().get(&node.id());
        let trouble = own.and_then(|seen| seen.observation.postgres.as_ref()?.trouble.clone());
        trouble.or(node.note().map(str::to_owned)).unwrap_or_default()
    }
}
