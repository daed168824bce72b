//! Drives one agent's mind: the part that the real agent's loop plays.
//!
//! Events are handled one by one, and after them comes a turn, whose parts are obeyed in their order.
//! Only the disk that remembers a generation makes the loop wait.

use std::collections::BTreeSet;
use std::sync::Arc;

use pgherd_common::{Generation, HostPort, MonoTime, NodeId};
use pgherd_core::beat::{Beat, BeatAnswer};
use pgherd_core::cluster::{ChangePhase, ClusterState};
use pgherd_core::coordinator::Action;
use pgherd_core::defect::{Defect, planted};
use pgherd_core::node::{AddressOrder, Node, Quorum, Setup, Turn, version};
use pgherd_core::observation::RemoteDatabase;
use pgherd_core::reconcile::RejoinRules;

use crate::clock::{MS, Time, micros};
use crate::network::Class;
use crate::postgres::Phase;
use crate::raft::Raft;

use super::actions::Acting;
use super::probe::Memory;
use super::proxies::Hub;
use super::{Event, Work, World};

/// The task that talks to one other agent: the newest beat only, one at a time.
#[derive(Debug, Default)]
struct Peer {
    /// The question that waits for its answer, and when it was sent, on both clocks.
    asked: Option<(u64, Time, MonoTime)>,
    waiting: Option<Arc<Beat>>,
}

/// A worker's process.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) life: u64,
    /// SIGSTOP.
    pub(crate) frozen: bool,
    pub(crate) adopted_until: MonoTime,
    /// Both are there once it has booted.
    pub(crate) node: Option<Node>,
    pub(crate) raft: Option<Raft>,
    pub(crate) memory: Memory,
    pub(crate) acting: Option<Acting>,
    /// Ended actions.
    pub(crate) ended: u64,
    pub(crate) hubs: Vec<Hub>,
    peers: Vec<Peer>,
    questions: u64,
    turning: bool,
    beat_due: bool,
    wake: Option<Time>,
    wanted_wake: Option<Time>,
    pub(crate) raft_wake: Option<Time>,
    pub(crate) led: bool,
    /// Since when it knows that the primary is to be stopped.
    pub(crate) stopping_since: Option<Time>,
    told: Quorum,
    pub(super) changes: (usize, bool),
    /// A turn that waits for the disk, and the clock when it began.
    pub(crate) blocked: Option<(Box<Turn>, MonoTime)>,
    pub(crate) backlog: Vec<Event>,
    /// The last order about the virtual IP.
    pub(crate) address: Option<AddressOrder>,
}

impl Worker {
    pub(crate) fn new(life: u64, adopted_until: MonoTime) -> Self {
        Self {
            life,
            frozen: false,
            adopted_until,
            node: None,
            raft: None,
            memory: Memory::default(),
            acting: None,
            ended: 0,
            hubs: Vec::new(),
            peers: Vec::new(),
            questions: 0,
            turning: false,
            beat_due: false,
            wake: None,
            wanted_wake: None,
            raft_wake: None,
            led: false,
            stopping_since: None,
            told: Quorum::default(),
            changes: (0, false),
            blocked: None,
            backlog: Vec::new(),
            address: None,
        }
    }
}

impl World {
    pub(crate) fn worker(&mut self, index: usize) -> Option<&mut Worker> {
        self.machines[index].worker.as_mut()
    }

    pub(crate) fn node(&self, index: usize) -> Option<&Node> {
        self.machines[index].worker.as_ref()?.node.as_ref()
    }

    pub(crate) fn node_mut(&mut self, index: usize) -> Option<&mut Node> {
        self.machines[index].worker.as_mut()?.node.as_mut()
    }

    pub(crate) fn life(&self, index: usize) -> Option<u64> {
        self.machines[index].worker.as_ref().map(|worker| worker.life)
    }

    pub(crate) fn post(&mut self, index: usize, span: u64, work: Work) {
        if let Some(life) = self.life(index) {
            self.after(span, Event::Work(index, Some(life), work));
        }
    }

    pub(crate) fn work(&mut self, index: usize, life: Option<u64>, work: Work) {
        let Some(worker) = self.worker(index) else { return };
        let booted = worker.node.is_some();
        if life.is_some_and(|life| life != worker.life) || (!booted && !matches!(work, Work::Boot)) {
            return;
        }
        match work {
            Work::Boot => self.boot_worker(index),
            Work::Turn => return self.turn(index),
            Work::Wake => return self.woken(index),
            Work::BeatDue => {
                worker.beat_due = true;
                let interval = self.timings.beat_interval;
                let span = self.machines[index].clock.true_span(interval);
                self.post(index, span, Work::BeatDue);
            }
            Work::LookDue(look) => return self.begin_look(index, look),
            Work::Looked(look, begun) => self.end_look(index, look, begun),
            Work::Action(number, stage) => return self.go_on(index, number, stage),
            Work::Beat(from, beat, question) => self.beaten(index, from, &beat, question),
            Work::Answer(from, answer, question) => self.answered(index, from, &answer, question),
            Work::Knocked(node, result) => {
                if let Some(mind) = self.node_mut(index) {
                    mind.knocked(node, result);
                }
            }
            Work::Raft(from, message) => return self.raft_message(index, from, *message),
            Work::RaftTimer => return self.raft_timer(index),
            Work::Synced(written, then) => return self.raft_synced(index, written, then),
            Work::Remembered(generation) => return self.remembered(index, generation),
            Work::Hub => return self.look_after_hubs(index),
            Work::AddressLook => self.look_at_address(index),
            Work::Address => self.keep_address(index),
            Work::AddressAsked => self.address_asked(index),
            Work::Acked(proxy, acked) => self.proxy_acked(index, proxy, acked),
        }
        self.turn_soon(index);
    }

    fn boot_worker(&mut self, index: usize) {
        let incarnation = self.rng.bits();
        let rng = self.rng.fork();
        let (now, mono) = (self.now, self.mono(index));
        let (count, proxies) = (self.machines.len(), self.proxies.len());
        let (timings, cluster) = (self.timings, self.cluster.clone());
        let machine = &mut self.machines[index];
        let disk = &machine.disk;
        let Some(worker) = &mut machine.worker else { return };
        let setup = Setup {
            descriptor: machine.descriptor.clone(),
            cluster,
            timings,
            auto_failover: true,
            max_lag: 0,
            salvage_wait: std::time::Duration::from_secs(5),
            minimum_standbys: 0,
            // No copies: what needs one is a finding here.
            rejoin: RejoinRules { auto: true, clone: false },
            durability: self.durability,
            fence_script: self.fence_script,
            tell_again: std::time::Duration::from_secs(900),
            incarnation,
            remembered: disk.remembered,
            adopted_until: worker.adopted_until,
            address: self.with_address.then(super::address::rules).filter(|_| machine.server.is_some()),
        };
        worker.node = Some(Node::new(setup, mono));
        worker.raft = Some(Raft::open(index, disk.raft.clone(), disk.applied.clone(), now, rng));
        worker.peers = (0..count).map(|_| Peer::default()).collect();
        worker.hubs = (0..proxies).map(|_| Hub::default()).collect();
        let name = self.name(index);
        self.note(|| format!("{name}: the worker is up"));
        self.post(index, 1, Work::BeatDue);
        self.post(index, 10, Work::Hub);
        self.begin_address(index);
        self.look_at_once(index);
        self.flush_raft(index);
    }

    pub(crate) fn turn_soon(&mut self, index: usize) {
        let span = self.rng.between(20, 200);
        let Some(worker) = self.worker(index) else { return };
        if !worker.turning {
            worker.turning = true;
            self.post(index, span, Work::Turn);
        }
    }

    fn woken(&mut self, index: usize) {
        let now = self.now;
        let Some(worker) = self.worker(index) else { return };
        worker.wake = None;
        match worker.wanted_wake {
            Some(at) if at > now => self.wake_worker(index, at),
            Some(_) => self.turn_soon(index),
            None => {}
        }
    }

    fn wake_worker(&mut self, index: usize, at: Time) {
        let now = self.now;
        let Some(worker) = self.worker(index) else { return };
        worker.wanted_wake = Some(at);
        if worker.wake.is_none_or(|wake| wake > at) {
            worker.wake = Some(at);
            let life = worker.life;
            self.at(at.max(now + 1), Event::Work(index, Some(life), Work::Wake));
        }
    }

    /// The log or the group has moved: the node hears of it before it decides.
    fn catch_up(&mut self, index: usize) {
        let (at, now) = (self.now, self.mono(index));
        let Some(worker) = self.machines[index].worker.as_mut() else { return };
        let (Some(node), Some(raft)) = (&mut worker.node, &worker.raft) else { return };
        let leads = raft.is_established();
        if !Arc::ptr_eq(node.state(), raft.state())
            || leads != worker.told.leads
            || raft.admission() != worker.told.admission
            || raft.changes() != worker.changes
            || worker.told.voters.is_empty()
        {
            let ids = |indices: BTreeSet<usize>| {
                indices.into_iter().map(|index| NodeId(u64::try_from(index).unwrap_or(0) + 1)).collect()
            };
            let voters = raft.voters();
            let fed = |other: &usize| !voters.contains(other) && !self.unfed.contains(other);
            let learners = raft.everybody().iter().copied().filter(fed).collect();
            worker.changes = raft.changes();
            worker.told = Quorum {
                voters: ids(voters),
                learners: ids(learners),
                settled: raft.is_settled(),
                leads,
                admission: raft.admission(),
            };
            node.committed(Arc::clone(raft.state()), worker.told.clone(), now);
            let change = node.state().change.as_ref();
            let stopping = change.is_some_and(|change| change.phase == ChangePhase::Stopping);
            worker.stopping_since = stopping.then_some(worker.stopping_since.unwrap_or(at));
        }
    }

    fn turn(&mut self, index: usize) {
        self.catch_up(index);
        let (now, wall) = (self.mono(index), self.wall());
        let held = self.work_is_held(index);
        let Some(worker) = self.worker(index) else { return };
        worker.turning = false;
        let beat_due = std::mem::take(&mut worker.beat_due);
        let Some(node) = &mut worker.node else { return };
        let hurried = node.state().change.is_some();
        let mut turn = node.turn(now, wall, beat_due, held);
        if std::mem::replace(&mut worker.memory.hurry, hurried) != hurried && hurried {
            self.look_at_once(index);
        }
        if let Some(generation) = turn.remember.take() {
            let span = self.fsync(index);
            if let Some(worker) = self.worker(index) {
                worker.blocked = Some((Box::new(turn), now));
            }
            self.post(index, span, Work::Remembered(generation));
            return;
        }
        self.obey(index, turn, now);
    }

    fn remembered(&mut self, index: usize, generation: Generation) {
        let disk = &mut self.machines[index].disk;
        disk.remembered = disk.remembered.max(generation);
        self.check_generation(index, generation);
        let Some(worker) = self.worker(index) else { return };
        let Some((turn, begun)) = worker.blocked.take() else { return };
        if let Some(node) = &mut worker.node {
            node.remembered(generation);
        }
        let waiting = std::mem::take(&mut worker.backlog);
        self.obey(index, *turn, begun);
        self.release(waiting);
    }

    fn obey(&mut self, index: usize, turn: Turn, begun: MonoTime) {
        let now = self.mono(index);
        if let Some(parent) = &mut self.machines[index].parent {
            if let Some(guard) = turn.guard {
                parent.guardian.told(guard, now);
            }
            parent.guardian.alive(begun, now);
            if turn.guard.is_some() {
                self.step_guardian(index);
            }
        }
        let name = self.name(index);
        for line in turn.doing {
            self.note(|| format!("{name}: decides: {line}"));
        }
        if let Some(token) = turn.rejoin {
            if let Some(raft) = self.worker(index).and_then(|worker| worker.raft.as_mut()) {
                raft.rejoin(token);
            }
            self.flush_raft(index);
        }
        if let Some(order) = turn.address {
            self.order_address(index, order);
        }
        if let Some(begun) = turn.act {
            self.act(index, begun);
        }
        match turn.lead {
            Some(Action::Propose(command)) => {
                self.check_proposal(index, &command);
                self.propose(index, command);
            }
            Some(Action::TransferLeadership(to)) => self.transfer(index, to),
            Some(Action::ChangeVoters(voters)) => self.change_voters(index, &voters),
            Some(Action::AddLearner(node, _)) => self.feed(index, node, true),
            Some(Action::DropNode(node)) => self.feed(index, node, false),
            None => {}
        }
        if let Some((node, address)) = turn.knock {
            self.knock(index, node, &address);
        }
        if let Some(beat) = turn.beat {
            self.broadcast(index, beat);
        }
        match turn.wake_at {
            Some(at) => {
                let at = self.machines[index].clock.when(at);
                self.wake_worker(index, at.max(self.now + 50));
            }
            None => {
                if let Some(worker) = self.worker(index) {
                    worker.wanted_wake = None;
                }
            }
        }
        self.let_go(index);
    }

    fn broadcast(&mut self, index: usize, beat: Beat) {
        let beat = Arc::new(beat);
        for other in 0..self.machines.len() {
            if other == index {
                continue;
            }
            if let Some(worker) = self.worker(index)
                && let Some(peer) = worker.peers.get_mut(other)
            {
                peer.waiting = Some(Arc::clone(&beat));
            }
            self.ask(index, other);
        }
    }

    /// Sends the newest beat, unless one waits for its answer still.
    fn ask(&mut self, index: usize, other: usize) {
        let (now, mono) = (self.now, self.mono(index));
        let patience = self.machines[index].clock.true_span(self.timings.remote_timeout);
        let Some(worker) = self.worker(index) else { return };
        let Some(peer) = worker.peers.get_mut(other) else { return };
        if peer.asked.is_some_and(|(_, sent, _)| now.since(sent) < patience) {
            return;
        }
        let Some(beat) = peer.waiting.take() else { return };
        worker.questions += 1;
        let question = worker.questions;
        peer.asked = Some((question, now, mono));
        if let Some(delay) = self.network.delay(index, other, Class::Agent) {
            self.after(delay, Event::Work(other, None, Work::Beat(index, beat, question)));
        }
    }

    fn beaten(&mut self, index: usize, from: usize, beat: &Beat, question: u64) {
        if !self.network.passes(from, index, Class::Agent, self.now) {
            return;
        }
        self.catch_up(index);
        let now = self.mono(index);
        let Some(node) = self.node_mut(index) else { return };
        let answer = node.beaten(beat.clone(), now);
        if let Some(delay) = self.network.delay(index, from, Class::Agent) {
            self.after(delay, Event::Work(from, None, Work::Answer(index, answer, question)));
        }
    }

    fn answered(&mut self, index: usize, from: usize, answer: &BeatAnswer, question: u64) {
        let (now, mono) = (self.now, self.mono(index));
        let patience = self.machines[index].clock.true_span(self.timings.remote_timeout);
        let Some(worker) = self.worker(index) else { return };
        let Some(peer) = worker.peers.get_mut(from) else { return };
        let Some((asked, at, sent)) = peer.asked.filter(|(asked, _, _)| *asked == question) else { return };
        debug_assert_eq!(asked, question);
        peer.asked = None;
        // Whoever waited longer has hung up.
        if now.since(at) < patience {
            let counted = if planted(Defect::LeaseFromReceipt) { mono } else { sent };
            let voter = self.machines[from].descriptor.id;
            if let Some(node) = self.node_mut(index) {
                node.answered(voter, counted, answer);
            }
        }
        self.ask(index, from);
    }

    fn knock(&mut self, index: usize, node: NodeId, address: &HostPort) {
        let Some(target) = self.by_address.get(address).copied() else { return };
        let there = self.network.delay(index, target, Class::Postgres);
        let back = self.network.delay(target, index, Class::Postgres);
        let timeout = micros(self.timings.remote_timeout);
        let machine = &self.machines[target];
        let process = machine.server.as_ref().and_then(|server| server.process.as_ref());
        let login = self.machines[index].server.is_some();
        let seen = match process {
            _ if !machine.up || machine.frozen => RemoteDatabase::Silent,
            None => RemoteDatabase::Refused,
            Some(process) if process.hung => RemoteDatabase::Silent,
            Some(_) if !login => RemoteDatabase::Answering,
            Some(process) => match process.phase {
                Phase::Primary => RemoteDatabase::Writable,
                Phase::Recovery | Phase::Promoting => RemoteDatabase::InRecovery,
                Phase::Starting | Phase::Stopping => RemoteDatabase::Answering,
            },
        };
        let (span, seen) = match (there, back) {
            (Some(there), Some(back))
                if there + back < timeout
                    && seen != RemoteDatabase::Silent
                    && self.network.connects(index, target, Class::Postgres) =>
            {
                (there + back + 3 * MS, seen)
            }
            (_, _) => (timeout, RemoteDatabase::Silent),
        };
        self.post(index, span, Work::Knocked(node, seen));
    }

    pub(crate) fn state(&self, index: usize) -> Option<&Arc<ClusterState>> {
        self.node(index).map(Node::state)
    }

    /// Whether every proxy that this agent is connected to follows its newest topology.
    fn work_is_held(&self, index: usize) -> bool {
        let Some(worker) = &self.machines[index].worker else { return false };
        let Some(node) = &worker.node else { return false };
        let newest = version(node.state());
        worker.hubs.iter().all(|hub| !hub.connected || hub.acknowledged >= Some(newest))
    }
}
