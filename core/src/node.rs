//! One agent's whole mind: what it knows, and what follows from it.
//!
//! A driver feeds it with what happens (`committed`, `look`, `acted`, `beaten`, `answered`, `knocked`)
//! and then calls [`Node::turn`], whose [`Turn`] says all there is to do. It must be obeyed in the
//! order of its fields: what is to be remembered is on disk before anything else leaves the process,
//! and the guardian knows the new deadline before the action begins that relies on it. The agent and
//! the simulator drive the same code; it knows neither sockets nor clocks.

mod address;
mod cascade;
mod duty;
mod knocks;
mod leave;
mod narrate;
mod orders;
mod plan;
mod proxies;
mod restart;
#[cfg(test)]
mod tests;
mod turn;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use pgherd_common::{ClusterName, Generation, MonoTime, NodeId, Version, WallTime};

use crate::beat::{Beat, BeatAnswer, gives_up_primary, grants_lease};
use crate::cluster::{ChangePhase, ClusterState, Descriptor};
use crate::coordinator::{Action, Coordinator, NotYet, Policy, Seen};
use crate::cover::Durability;
use crate::defect::{Defect, planted};
use crate::events::Narrator;
use crate::observation::{NodeObservation, PostgresObservation, PostgresState, RemoteDatabase};
use crate::reconcile::lease::{self, Lease, Promise, Terms};
use crate::reconcile::{LocalAction, Reconciler, Reconciliation, RejoinRules, Rules, Situation};
use crate::salvage;
use crate::timings::Timings;

pub use crate::quorum::{Admission, Quorum};
pub use address::{AddressOrder, AddressRules, AddressSeen, Asked};
pub use duty::{Before, Done};
pub use proxies::AddressAnswer;
pub use restart::RestartRefused;
pub use turn::{Begun, Guard, Proposed, Turn};

use address::AddressDuty;
use duty::Duty;
use knocks::Knocks;
use leave::Word;
use proxies::Proxies;

/// A proxy that does not answer delays a switchover by this much, no more: its sessions lose their
/// statements in flight.
const HOLD_PATIENCE: Duration = Duration::from_millis(500);

/// So many proposals in a row without an answer, and another node is to lead.
const STUCK_PROPOSALS: u32 = 2;

/// What an agent is, for as long as its process lives.
#[derive(Debug, Clone)]
pub struct Setup {
    /// This node, as its own configuration describes it.
    pub descriptor: Descriptor,
    /// Its cluster.
    pub cluster: ClusterName,
    /// All periods and deadlines.
    pub timings: Timings,
    /// Replace a failed primary without being asked.
    pub auto_failover: bool,
    /// A standby further behind is not promoted without being asked; 0 means no limit.
    pub max_lag: u64,
    /// How long a failover waits for what the old primary has left on its disk; zero: not at all.
    pub salvage_wait: Duration,
    /// So many standbys have to be left behind a failover that nobody asked for.
    pub minimum_standbys: u32,
    /// What a failed primary does.
    pub rejoin: RejoinRules,
    /// On how many standbys a commit has to be.
    pub durability: Durability,
    /// A script of the operators has to succeed before a promotion.
    pub fence_script: bool,
    /// How often people are told again of what lasts; zero: never.
    pub tell_again: Duration,
    /// Drawn at random when the agent starts.
    pub incarnation: u64,
    /// The highest generation that this node has ever heard of, from its disk.
    pub remembered: Generation,
    /// Until when a primary that was found running may go on without a lease: its guardian's deadline,
    /// or the time of one lease where nobody guarded it before.
    pub adopted_until: MonoTime,
    /// The virtual IP of the primary, if there is one.
    pub address: Option<AddressRules>,
}

/// See the module.
#[derive(Debug)]
pub struct Node {
    setup: Setup,
    state: Arc<ClusterState>,
    quorum: Quorum,
    coordinator: Coordinator,
    reconciler: Reconciler,
    terms: Terms,
    lease: Lease,
    promise: Promise,
    started: MonoTime,
    /// The highest generation ever heard of.
    highest: Generation,
    /// The part of it that is on disk.
    remembered: Generation,
    /// Since when a switchover is known to want new work held.
    holding_since: Option<MonoTime>,
    own: Option<PostgresObservation>,
    /// When `own` was first decided on.
    own_at: Option<MonoTime>,
    duty: Duty,
    address: AddressDuty,
    proxies: Proxies,
    acting: Option<(LocalAction, Before)>,
    proposing: bool,
    /// Proposals in a row that nobody answered.
    stuck: u32,
    serial: u64,
    /// Raft was asked to change its voters.
    regrouping: bool,
    /// The log has let this node in again with this number.
    readmitted: Option<u64>,
    /// The newest word of another agent on whether this node belongs.
    word: Option<Word>,
    knocks: Knocks,
    report: Vec<String>,
    waiting: Vec<NotYet>,
    narrator: Narrator,
    note: Option<String>,
    /// The essence of the last beat.
    told: Option<NodeObservation>,
    /// The last word to the guardian.
    guarded: Option<Guard>,
    wake_at: Option<MonoTime>,
}

impl Node {
    /// An agent that has just started.
    pub fn new(setup: Setup, now: MonoTime) -> Self {
        let timings = &setup.timings;
        let me = setup.descriptor.id;
        let terms = Terms::new(timings.lease);
        let policy = Policy {
            auto_failover: setup.auto_failover,
            max_lag: setup.max_lag,
            salvage_wait: setup.salvage_wait,
            minimum_standbys: setup.minimum_standbys,
            durability: setup.durability,
            lease: timings.lease,
            node_timeout: timings.node_timeout,
            node_lost_after: timings.node_lost_after,
            recruit_timeout: timings.recruit_timeout,
            switchover_timeout: timings.switchover_timeout,
            change_timeout: timings.change_timeout,
            local_timeout: timings.local_timeout,
        };
        let rules = Rules {
            local_timeout: timings.local_timeout,
            restart_standby_after: timings.restart_standby_after,
            rejoin: setup.rejoin,
            fence_script: setup.fence_script,
        };
        Self {
            state: Arc::new(ClusterState::default()),
            quorum: Quorum::default(),
            coordinator: Coordinator::new(me, policy),
            reconciler: Reconciler::new(rules),
            terms,
            lease: Lease::new(terms, me),
            promise: Promise::unknown(terms, now),
            started: now,
            highest: setup.remembered,
            remembered: setup.remembered,
            holding_since: None,
            own: None,
            own_at: None,
            duty: Duty::default(),
            address: AddressDuty::new(setup.address.clone()),
            proxies: Proxies::new(timings.lease, now),
            acting: None,
            proposing: false,
            stuck: 0,
            serial: 0,
            regrouping: false,
            readmitted: None,
            word: None,
            knocks: Knocks::default(),
            report: Vec::new(),
            waiting: Vec::new(),
            narrator: Narrator::new(setup.tell_again),
            note: None,
            told: None,
            guarded: None,
            wake_at: None,
            setup,
        }
    }

    /// This node.
    pub fn id(&self) -> NodeId {
        self.setup.descriptor.id
    }

    /// The state this node has applied.
    pub fn state(&self) -> &Arc<ClusterState> {
        &self.state
    }

    /// Raft, as it was last told.
    pub fn quorum(&self) -> &Quorum {
        &self.quorum
    }

    /// What was heard of every agent.
    pub fn coordinator(&self) -> &Coordinator {
        &self.coordinator
    }

    /// The coordinator's last report, if this node leads.
    pub fn report(&self) -> &[String] {
        &self.report
    }

    /// Why nothing is done to the own PostgreSQL, where there is a reason.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// For how much longer this node counts as backed by a quorum, should it hear nobody again: the
    /// primary it knows cannot have been replaced without one of the voters it has heard.
    pub fn backed_for(&self, now: MonoTime) -> Duration {
        let voters = &self.state.voters;
        let behind = self.highest > self.state.generation || self.quorum.admission != Admission::Full;
        if behind || !voters.contains(self.id()) {
            return Duration::ZERO;
        }
        let ages = voters.sets().map(|set| self.quorum_age(set, now));
        // Unknown counts as longest ago.
        let oldest = ages.reduce(|a, b| a.zip(b).map(|(a, b)| a.max(b))).flatten();
        oldest.map_or(Duration::ZERO, |age| self.setup.timings.lease.saturating_sub(age))
    }

    /// How long ago this node had last heard enough of these voters.
    fn quorum_age(&self, set: &BTreeSet<NodeId>, now: MonoTime) -> Option<Duration> {
        let seen = self.coordinator.seen();
        let others = set.iter().filter(|voter| **voter != self.id());
        let mut ages: Vec<Duration> =
            others.filter_map(|voter| seen.get(voter)).map(|seen| now.since(seen.at)).collect();
        ages.sort_unstable();
        match lease::quorum(set.len()) - 1 {
            0 => Some(Duration::ZERO),
            needed => ages.get(needed - 1).copied(),
        }
    }

    /// The action in progress.
    pub fn acting(&self) -> Option<&LocalAction> {
        self.acting.as_ref().map(|(action, _)| action)
    }

    /// The log has moved, or the group has changed.
    pub fn committed(&mut self, state: Arc<ClusterState>, quorum: Quorum, now: MonoTime) {
        let news = !Arc::ptr_eq(&self.state, &state) || self.quorum != quorum;
        let before = std::mem::replace(&mut self.state, state);
        self.quorum = quorum;
        if !news {
            return;
        }
        self.coordinator.committed(&self.state, &self.quorum, now);
        if self.stays_primary(&before) {
            self.lease.carry_over(self.state.generation);
        }
        let stopping = self.state.change.as_ref().is_some_and(|change| change.phase == ChangePhase::Stopping);
        self.holding_since = stopping.then(|| self.holding_since.unwrap_or(now));
        // A later switchover may have the same generation.
        let begun = |state: &ClusterState| state.change.as_ref().map(|change| change.begun);
        if begun(&self.state) != begun(&before) {
            (self.duty.prepared, self.duty.undrained) = (None, None);
        }
    }

    /// A change was rolled back: the promises made to this node hold on, under the next number.
    fn stays_primary(&self, before: &ClusterState) -> bool {
        let was = before.primary.is_some_and(|primary| primary.node == self.id());
        was && self.is_primary() && self.state.generation == before.generation.next()
    }

    /// A look at the own PostgreSQL. Not to be called with a look that was begun before an action ended.
    pub fn look(&mut self, observation: PostgresObservation) {
        // One that died on its way up is as much in the agent's charge as before.
        self.duty.stopped_here &= observation.running().is_none();
        self.own = Some(observation);
        self.own_at = None;
    }

    /// The action in progress has ended.
    pub fn acted(&mut self, done: Done, now: MonoTime) {
        self.acting = None;
        self.reconciler.finished(&done.action, done.result.is_ok(), now);
        let failed = done.result.is_err().then_some(done.setback);
        self.reconciler.comeback_mut().learn(&done.action, failed, now);
        self.duty.acted(&done);
        self.look(done.observation);
    }

    /// Another agent's beat; the answer goes back to it.
    pub fn beaten(&mut self, beat: Beat, now: MonoTime) -> BeatAnswer {
        let from = beat.observation.descriptor.id;
        self.hear_of(beat.observation.generation);
        if !self.takes_part(from) {
            return self.answer(from);
        }
        let granted = beat
            .wants_lease
            .filter(|wanted| *wanted >= self.highest && grants_lease(&self.state, from, *wanted))
            // A node that has forgotten what it said says nothing new before it knows all there is.
            .filter(|_| self.quorum.admission == Admission::Full);
        if granted.is_some() {
            self.promise.renew(self.terms, now);
        }
        self.coordinator.observe(beat.observation, now);
        BeatAnswer { lease: granted, ..self.answer(from) }
    }

    /// A voter has answered the beat that was sent at `sent`.
    pub fn answered(&mut self, voter: NodeId, sent: MonoTime, answer: &BeatAnswer) {
        if let Some(generation) = answer.lease {
            self.lease.answered(voter, generation, sent);
        }
        self.readmitted = answer.readmitted.or(self.readmitted);
        self.told(answer);
    }

    /// What another node's PostgreSQL looks like from here.
    pub fn knocked(&mut self, node: NodeId, result: RemoteDatabase) {
        self.knocks.answered(node, result);
    }

    /// What the operators' own monitor says is wrong, if anything.
    pub fn monitored(&mut self, failure: Option<String>) {
        self.duty.monitor = failure;
    }

    /// A proxy tells how soon after it knew the primary of this generation that one had answered a write.
    pub fn wrote(&mut self, generation: Generation, after: Duration, now: MonoTime) {
        self.coordinator.wrote(generation, after, now);
    }

    /// What raft was asked for last has come to an end, one way or the other.
    pub fn regrouped(&mut self) {
        self.regrouping = false;
    }

    /// What was proposed last has come to an end.
    pub fn proposed(&mut self, outcome: Proposed) {
        self.proposing = false;
        self.stuck = match outcome {
            Proposed::Settled => 0,
            Proposed::TimedOut => self.stuck + 1,
        };
    }

    /// As [`Turn::remember`] demanded, this is on disk now. Until then it is demanded again.
    pub fn remembered(&mut self, generation: Generation) {
        self.remembered = self.remembered.max(generation);
    }

    /// Decides. `beat_due`: the others are to hear of this node even if there is no news. `held`:
    /// every proxy has put the newest topology into effect.
    pub fn turn(&mut self, now: MonoTime, wall: WallTime, beat_due: bool, held: bool) -> Turn {
        let mut turn = Turn::default();
        self.hear_of(self.state.generation);
        turn.remember = (self.highest > self.remembered).then_some(self.highest);
        self.serial += 1;
        turn.rejoin = self.quorum.admission.probation().filter(|token| self.readmitted == Some(*token));
        self.pick_proxy(now);
        let observation = self.observation(now);
        self.coordinator.observe(observation.clone(), now);
        self.wake_at = None;
        turn.act = self.look_after_postgres(&observation, held, now);
        turn.guard = self.guard(now);
        turn.address = self.address_order(now);
        self.lead(held, now, wall, &mut turn);
        self.narrate(&observation, now, &mut turn);
        turn.knock = self.knock(now);
        let essence = observation.essence();
        if beat_due || self.told.as_ref() != Some(&essence) {
            self.told = Some(essence);
            let wants_lease = self.is_primary().then_some(self.state.generation);
            turn.beat = Some(Beat { observation, wants_lease });
        }
        turn.wake_at = self.wake_at;
        turn
    }

    /// Takes note of a generation that exists somewhere.
    fn hear_of(&mut self, generation: Generation) {
        self.highest = self.highest.max(generation);
    }

    fn is_primary(&self) -> bool {
        self.state.primary.is_some_and(|primary| primary.node == self.id())
    }

    /// When this node must begin to fence what it runs as primary, if nothing renews its lease.
    fn fence_at(&self, now: MonoTime) -> Option<MonoTime> {
        // What is applied while a lost store is filled again is the past: others may be primary by now.
        if self.quorum.admission != Admission::Full {
            return None;
        }
        self.lease.fence_at(self.state.generation, &self.state.voters, now)
    }

    fn observation(&self, now: MonoTime) -> NodeObservation {
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let change = self.state.change.as_ref().filter(|_| self.quorum.admission == Admission::Full);
        let fence_at = self.fence_at(now).filter(|_| self.is_primary());
        // Rounded up: a promise that has not quite ended is no lapsed one.
        let promise_left = self.promise.left(now) + Duration::from_micros(999);
        NodeObservation {
            descriptor: self.setup.descriptor.clone(),
            cluster: self.setup.cluster.clone(),
            incarnation: self.setup.incarnation,
            serial: self.serial,
            generation: self.state.generation,
            revision: self.state.revision,
            told: self.narrator.told(),
            probation: self.quorum.admission.probation(),
            intent: change.filter(|change| gives_up_primary(change)).map(|change| change.generation),
            promise_left_ms: millis(promise_left),
            durability: self.setup.durability,
            lease_left_ms: fence_at.map(|at| millis(at.since(now))),
            postgres: self.own.as_ref().map(|own| self.tell_rebuild(self.duty.told(own))),
            remote: self.knocks.results(),
            address: self.address_told(),
            proxies: self.proxies_told(),
            picked_proxy: self.picked_proxy().filter(|_| self.quorum.leads).cloned(),
        }
    }

    fn look_after_postgres(
        &mut self,
        observation: &NodeObservation,
        held: bool,
        now: MonoTime,
    ) -> Option<Begun> {
        let own = observation.postgres.as_ref()?;
        let own_age = now.since(*self.own_at.get_or_insert(now));
        let primary = self.state.upstream().and_then(|id| self.heard(id, now));
        let (unheard_for, cascaded) = (self.unheard_for(now), self.cascaded(now));
        let from = self.state.change.as_ref().and_then(|change| self.heard(change.from, now));
        let offer = from.and_then(|seen| salvage::offer(&self.state, &seen.observation));
        let asked = own.running().is_none() || self.ordered().is_some();
        let donors = if asked { self.donors(now) } else { Vec::new() };
        let situation = Situation {
            me: self.id(),
            state: &self.state,
            own,
            own_age,
            primary: primary.and_then(|seen| seen.observation.postgres.as_ref()?.running()),
            unheard_for,
            cascaded: &cascaded,
            offer: offer.as_ref().filter(|_| !self.setup.salvage_wait.is_zero()),
            donors: &donors,
            fence_at: self.fence_at(now),
            adopted_until: self.setup.adopted_until,
            highest: self.highest,
            work_is_held: held
                || planted(Defect::NoHold)
                || self.holding_since.is_some_and(|since| now.since(since) >= HOLD_PATIENCE),
            stopped_here: self.duty.stopped_here,
            now,
        };
        let Reconciliation { action, wake_at, note } = match self.farewell() {
            Some(why) => self.reconciler.leave(&situation, why),
            None => self.reconciler.decide(&situation),
        };
        let mut before = Before {
            primary_of: self.is_primary().then_some(self.state.generation),
            ran: own.stopped().is_none(),
        };
        self.sleep_until(wake_at);
        self.note = note;
        let action = action?;
        if let Some(why) = self.address_holds_up(&action, now) {
            self.note = Some(why);
            return None;
        }
        let abort = self.gives_way(&action, &mut before)?;
        if action.makes_writable() {
            // Whatever was released before, this is not: it has to be fenced to be so again.
            self.duty.released = None;
        }
        self.acting = Some((action.clone(), before));
        Some(Begun { action, before, abort })
    }

    /// The next word to the guardian, if there is anything new to say.
    fn guard(&mut self, now: MonoTime) -> Option<Guard> {
        let fence_at = self.fence_at(now).filter(|_| self.is_primary());
        let could_write = match self.own.as_ref().map(|own| &own.state) {
            // A new worker may win the lease before its first look.
            None if fence_at.is_some() => true,
            None => return None,
            Some(PostgresState::Down(_) | PostgresState::Unusable(_)) => false,
            Some(PostgresState::Running(running)) => !running.in_recovery,
            // A standby, as far as is known: it must not be killed for taking its time.
            Some(PostgresState::Starting { .. } | PostgresState::Unresponsive { .. })
                if !self.is_primary() =>
            {
                return None;
            }
            Some(PostgresState::Starting { .. } | PostgresState::Unresponsive { .. }) => true,
        };
        let rises = self.acting().is_some_and(LocalAction::makes_writable);
        let generation = self.state.generation;
        let never_formed = self.state.identity.is_none() && self.highest == Generation::ZERO;
        let word = match fence_at {
            Some(fence_at) => Guard::Until { generation, fence_at },
            None if never_formed || self.state.is_new() => return None,
            None if !could_write && !rises => Guard::Off,
            // Never renewed under this guardian: what was found running has the time it was given.
            None if self.guarded.is_none() => Guard::Until { generation, fence_at: self.setup.adopted_until },
            None => return None,
        };
        let news = self.guarded != Some(word);
        self.guarded = Some(word);
        news.then_some(word)
    }

    fn heard(&self, id: NodeId, now: MonoTime) -> Option<&Seen> {
        let lease = self.setup.timings.lease;
        self.coordinator.seen().get(&id).filter(|seen| now.since(seen.at) < lease)
    }

    fn lead(&mut self, held: bool, now: MonoTime, wall: WallTime, turn: &mut Turn) {
        if !self.quorum.leads {
            self.report.clear();
            self.waiting.clear();
            return;
        }
        // The others answer, so it is this node's own disk that holds everybody up.
        if self.stuck >= STUCK_PROPOSALS
            && let Some(heir) = self.coordinator.heir(now)
        {
            self.stuck = 0;
            turn.doing = vec![format!("the raft store of this node does not answer: node {heir} is to lead")];
            turn.lead = Some(Action::TransferLeadership(heir));
            return;
        }
        if held {
            self.coordinator.published(now);
        }
        let decision = self.coordinator.step(now, wall);
        self.report = decision.report.lines();
        self.waiting.clone_from(&decision.report.waiting);
        self.sleep_until(decision.wake_at);
        turn.lead = match decision.action {
            Some(Action::Propose(_)) if self.proposing => None,
            Some(Action::Propose(command)) => {
                self.proposing = true;
                turn.doing = decision.report.doing;
                Some(Action::Propose(command))
            }
            Some(regroup @ (Action::ChangeVoters(_) | Action::AddLearner(..) | Action::DropNode(_))) => {
                let asked = std::mem::replace(&mut self.regrouping, true);
                turn.doing = if asked { Vec::new() } else { decision.report.doing };
                (!asked).then_some(regroup)
            }
            other @ (Some(Action::TransferLeadership(_)) | None) => other,
        };
    }

    fn sleep_until(&mut self, at: Option<MonoTime>) {
        self.wake_at = match (self.wake_at, at) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
}

/// The version of the topology that this state amounts to.
pub fn version(state: &ClusterState) -> Version {
    Version { generation: state.generation, revision: state.revision }
}
