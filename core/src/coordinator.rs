//! Cluster level: who should be primary, and what has to happen next for it to be so.
//!
//! Runs on every agent, acts only where raft leads, and may only propose commands to the log: it
//! never touches a PostgreSQL. Every step of a change of primary is in the log, so a new leader goes
//! on where the old one stopped. It must not know sockets, clocks or openraft.

mod candidate;
mod cover;
mod failover;
mod forming;
mod in_place;
mod members;
mod pause;
mod relay;
mod report;
mod schedule;
mod service;
mod slot_sync;
mod switchover;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod totality_tests;
mod view;
mod voters;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pgherd_common::{Generation, HostPort, Lsn, MonoTime, NodeId, WallTime};

use crate::cluster::{ChangePhase, ClusterState, Command, PrimaryPhase};
use crate::cover::Durability;
use crate::observation::NodeObservation;
use crate::quorum::Quorum;
use crate::waterfall::{FirstWrite, Step, Waterfall};

pub use members::RemoveRefused;
pub use pause::PAUSE_MAX;
pub use report::{NotYet, Report, VotersStay};
pub use schedule::{SCHEDULE_AHEAD_MAX, SCHEDULE_PATIENCE};
pub use switchover::SwitchoverRefused;
pub use view::{Seen, View};

use relay::Trails;
use voters::Hearing;

/// What the coordinator needs to know of the configuration.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Replace a failed primary without being asked.
    pub auto_failover: bool,
    /// A standby further behind is not promoted without being asked; 0 means no limit.
    pub max_lag: u64,
    /// So many standbys have to be left behind a failover that nobody asked for.
    pub minimum_standbys: u32,
    /// What this agent asks of commits.
    pub durability: Durability,
    /// How long a beat of an agent counts as news.
    pub lease: Duration,
    /// Silence of a standby's or witness's agent after which it is out of service.
    pub node_timeout: Duration,
    /// Silence of a voter's agent after which it loses its vote.
    pub node_lost_after: Duration,
    /// How long to wait for what the old primary has left on its disk.
    pub salvage_wait: Duration,
    /// How long to wait for standbys to be recruited once one is.
    pub recruit_timeout: Duration,
    /// Bound of a switchover until the new primary is chosen.
    pub switchover_timeout: Duration,
    /// Bound of a promotion or start of a chosen primary.
    pub change_timeout: Duration,
    /// How long a primary may be unable to make commits last before another one is looked for.
    pub local_timeout: Duration,
}

/// What the coordinator wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write this to the log.
    Propose(Command),
    /// Let this node lead instead.
    TransferLeadership(NodeId),
    /// Have raft vote by exactly these, as the log's plan says. To be asked for again until raft does.
    ChangeVoters(BTreeSet<NodeId>),
    /// Have raft feed this node, which has no vote. To be asked for again until raft does.
    AddLearner(NodeId, HostPort),
    /// Have raft know this node no longer, which has no vote. To be asked for again until raft does.
    DropNode(NodeId),
}

/// The outcome of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Decision {
    /// At most one: what follows depends on what becomes of it.
    pub action: Option<Action>,
    /// Step again at this time even if nothing happens.
    pub wake_at: Option<MonoTime>,
    /// Why.
    pub report: Report,
}

/// Remembers what was seen and since when, and decides.
#[derive(Debug)]
pub struct Coordinator {
    me: NodeId,
    policy: Policy,
    state: ClusterState,
    quorum: Quorum,
    hearing: Hearing,
    seen: BTreeMap<NodeId, Seen>,
    /// The step of a change this coordinator is watching, and since when.
    step_since: Option<(Generation, Option<ChangePhase>, MonoTime)>,
    /// Standbys that receive nothing, and since when.
    stalled: BTreeMap<NodeId, MonoTime>,
    /// How standbys keep up.
    trails: Trails,
    /// Since when there are too few standbys for commits to wait for.
    short_since: Option<MonoTime>,
    /// The last known end of each server's WAL, from when it was a primary.
    ends: BTreeMap<NodeId, Lsn>,
    /// When this node last stepped, and since when it has done so without a gap.
    leading: Option<(MonoTime, MonoTime)>,
    /// When leadership was last offered away.
    transferred: Option<MonoTime>,
    /// The steps of the last change.
    waterfall: Waterfall,
    /// What proxies have told of the first write behind it.
    first_write: Option<FirstWrite>,
}

impl Coordinator {
    /// Knows nothing yet.
    pub fn new(me: NodeId, policy: Policy) -> Self {
        Self {
            me,
            policy,
            state: ClusterState::default(),
            quorum: Quorum::default(),
            hearing: Hearing::default(),
            seen: BTreeMap::new(),
            step_since: None,
            stalled: BTreeMap::new(),
            trails: Trails::default(),
            short_since: None,
            ends: BTreeMap::new(),
            leading: None,
            transferred: None,
            waterfall: Waterfall::default(),
            first_write: None,
        }
    }

    /// Input from the world: an agent has spoken, this one included. What the same process said before
    /// something that was heard already is no news.
    pub fn observe(&mut self, observation: NodeObservation, now: MonoTime) {
        let id = observation.descriptor.id;
        let known = self.seen.get(&id).map(|seen| &seen.observation);
        let overtaken = known.is_some_and(|known| {
            known.incarnation == observation.incarnation && known.serial > observation.serial
        });
        if overtaken {
            return;
        }
        let running = observation.postgres.as_ref().and_then(|postgres| postgres.running());
        if let Some(primary) = running.filter(|running| !running.in_recovery) {
            self.ends.insert(id, primary.position);
        }
        self.hearing.listen(now, self.policy.lease);
        self.hearing.hear(id, observation.incarnation, now, self.policy.lease);
        self.hearing.applied(id, observation.revision, self.state.revision, now);
        self.seen.insert(id, Seen { observation, at: now });
    }

    /// Input from the log.
    pub fn committed(&mut self, state: &ClusterState, quorum: &Quorum, now: MonoTime) {
        self.state = state.clone();
        self.quorum.clone_from(quorum);
        if self.state.identity.is_some() {
            let (state, me) = (&self.state, self.me);
            self.seen.retain(|id, _| *id == me || state.belongs(*id));
        }
        let step = (self.state.generation, self.state.change.as_ref().map(|change| change.phase));
        if self.step_since.is_none_or(|(generation, phase, _)| (generation, phase) != step) {
            self.step_since = Some((step.0, step.1, now));
        }
        self.note_step(now);
    }

    /// What has been heard of every agent.
    pub fn seen(&self) -> &BTreeMap<NodeId, Seen> {
        &self.seen
    }

    /// What there is to decide from at `now`.
    pub fn view(&self, now: MonoTime, wall: WallTime) -> View<'_> {
        View {
            policy: &self.policy,
            state: &self.state,
            quorum: &self.quorum,
            hearing: &self.hearing,
            seen: &self.seen,
            waterfall: &self.waterfall,
            first_write: self.first_write,
            ends: &self.ends,
            trails: &self.trails,
            short_for: self.short_since.map_or(Duration::ZERO, |since| now.since(since)),
            step_age: self.step_since.map_or(Duration::ZERO, |(_, _, since)| now.since(since)),
            led_for: self.leading.map_or(Duration::ZERO, |(since, _)| now.since(since)),
            now,
            wall,
        }
    }

    /// The next thing to do, if this node leads. The steps have a fixed order; the first that wants
    /// something done wins.
    pub fn step(&mut self, now: MonoTime, wall: WallTime) -> Decision {
        self.hearing.listen(now, self.policy.lease);
        self.note_stalled(now);
        self.note_short(now);
        let progress = self.view(now, wall).progress();
        self.trails.note(&progress, now);
        let since = self.leading.filter(|(_, last)| now.since(*last) < self.policy.lease / 2);
        self.leading = Some((since.map_or(now, |(since, _)| since), now));
        let mut report = Report::default();
        let view = self.view(now, wall);
        let command = view.form(&mut report).or_else(|| view.register());
        let mut action = command.map(Action::Propose);
        if self.state.identity.is_some() {
            let propose = |command: Option<Command>| command.map(Action::Propose);
            action = action
                .or_else(|| propose(view.advance_change(&mut report)))
                .or_else(|| propose(view.begin_failover(&mut report)))
                .or_else(|| propose(view.tend_pauses(&mut report)))
                .or_else(|| propose(view.tend_schedule(&mut report)))
                .or_else(|| propose(view.tend_cover(&mut report)))
                .or_else(|| propose(view.tend_slot_sync(&mut report)))
                .or_else(|| propose(view.tell_published()))
                .or_else(|| view.tend_members(self.me, &mut report))
                .or_else(|| view.tend_voters(&mut report))
                .or_else(|| propose(view.serve_services(&self.stalled, &mut report)))
                .or_else(|| propose(view.tend_relays(&mut report)));
        }
        if let Some(Action::Propose(command)) = &action {
            self.trails.decided(command, now);
        }
        for step in &report.passed {
            self.waterfall.reach(*step, now);
        }
        if action.is_none() {
            action = self.move_leadership(now).map(Action::TransferLeadership);
            self.transferred = action.as_ref().map(|_| now).or(self.transferred);
        }
        // Ages grow without an event; a tenth of a second is below every timeout there is.
        let wake_at = Some(now + Duration::from_millis(100));
        Decision { action, wake_at, report }
    }

    /// Who should lead if this node cannot: whoever has applied most of the log.
    pub fn heir(&self, now: MonoTime) -> Option<NodeId> {
        let view = self.view(now, WallTime::default());
        let fit = |id: &&NodeId| **id != self.me && view.could_lead(**id);
        let revision = |id: NodeId| self.seen.get(&id).map_or(0, |seen| seen.observation.revision);
        self.quorum.voters.iter().filter(fit).copied().max_by_key(|id| (revision(*id), *id))
    }

    /// The loss of the primary's node should not need an election before it is even noticed.
    fn move_leadership(&self, now: MonoTime) -> Option<NodeId> {
        const PAUSE: Duration = Duration::from_secs(5);
        let is_primary = self.state.primary.is_some_and(|primary| primary.node == self.me);
        if !(is_primary || self.state.is_leaving(self.me)) || self.state.change.is_some() {
            return None;
        }
        if self.transferred.is_some_and(|at| now.since(at) < PAUSE) {
            return None;
        }
        let view = self.view(now, WallTime::default());
        let fit = |id: NodeId| id != self.me && view.could_lead(id);
        let others = self.quorum.voters.iter().filter(|id| fit(**id));
        others.max_by_key(|id| (self.state.members.get(*id).is_some_and(|m| !m.is_database()), **id)).copied()
    }

    /// What the log tells of the change in flight.
    fn note_step(&mut self, now: MonoTime) {
        let Some(change) = &self.state.change else {
            return self.waterfall.serve(now);
        };
        let noticed = Duration::from_millis(change.noticed_ms);
        self.waterfall.begin((change.begun, change.kind), noticed, now);
        let phase = self.state.primary.map(|primary| primary.phase);
        match (change.phase, phase) {
            (ChangePhase::Preparing | ChangePhase::Recruiting, _) => {}
            (ChangePhase::Stopping, _) => self.waterfall.reach(Step::Prepare, now),
            (ChangePhase::Granted, Some(PrimaryPhase::Covering { .. })) => {
                self.waterfall.reach(Step::Promote, now);
            }
            (ChangePhase::Granted, _) => self.waterfall.reach(Step::Commit, now),
        }
    }

    /// Every proxy that is connected here knows the newest topology.
    pub fn published(&mut self, now: MonoTime) {
        if self.state.change.is_none() && self.waterfall.has(Step::Promote) {
            self.waterfall.reach(Step::Publish, now);
        }
    }

    /// A proxy tells how soon after it knew the primary of this generation that one had answered a write.
    pub fn wrote(&mut self, generation: Generation, after: Duration, now: MonoTime) {
        self.first_write = Some(FirstWrite::heard(self.first_write, generation, after, now));
    }

    fn note_short(&mut self, now: MonoTime) {
        let short = self.view(now, WallTime::default()).is_short_of_standbys();
        self.short_since = if short { self.short_since.or(Some(now)) } else { None };
    }

    fn note_stalled(&mut self, now: MonoTime) {
        let view = self.view(now, WallTime::default());
        let stalled_now: Vec<NodeId> = view.stalled_standbys();
        self.stalled.retain(|id, _| stalled_now.contains(id));
        for id in stalled_now {
            self.stalled.entry(id).or_insert(now);
        }
    }
}
