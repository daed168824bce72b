//! The agent's one loop: everything that can wake it is an [`Event`], everything it can do follows
//! from what `coordinator` and `reconcile` decide.
//!
//! After every event the loop makes one turn: compose the own observation, look at the own
//! PostgreSQL's duty, look at the cluster's if this node leads, tell the others if there is news.
//! Nothing in a turn waits: work runs in tasks that come back as events.

mod actions;
mod knocks;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pgherd_common::time::RealClock;
use pgherd_common::{Clock, Generation, HostPort, MonoTime, NodeId, Version};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::api::types::PromoteRequest;
use crate::beat::{Beat, BeatAnswer, gives_up_primary, grants_lease};
use crate::cluster::{Applied, ChangePhase, ClusterState, Command};
use crate::config::Config;
use crate::consensus::{Consensus, ProposeError, Standing};
use crate::coordinator::{Action, Coordinator, Policy, Seen, SwitchoverRefused};
use crate::observation::{NodeObservation, PostgresObservation, RemoteDatabase};
use crate::peers::Peers;
use crate::postgres::Instance;
use crate::publish::Hub;
use crate::reconcile::lease::{Lease, Promise, Terms};
use crate::reconcile::{LocalAction, Reconciler, Reconciliation, Rules, Situation};

use actions::Done;
use knocks::Knocks;

/// Everything that can wake the agent, besides the log and the clock.
#[derive(Debug)]
pub enum Event {
    /// A look at the local PostgreSQL, begun when this many actions had ended.
    Postgres(PostgresObservation, u64),
    /// A local action has ended.
    Acted(Done),
    /// Another agent's beat.
    Beat(Beat, oneshot::Sender<BeatAnswer>),
    /// A voter answered the beat that was sent then.
    BeatAnswered {
        /// Who.
        voter: NodeId,
        /// When the beat was sent.
        sent: MonoTime,
        /// The generation whose lease it renewed.
        lease: Option<Generation>,
    },
    /// What another node's PostgreSQL looks like from here.
    Knocked(NodeId, RemoteDatabase),
    /// A proposal of the coordinator has ended.
    Proposed(Command, Result<Applied, ProposeError>),
    /// An operator wants to change the primary: may that be proposed?
    Plan(PromoteRequest, oneshot::Sender<Result<Command, SwitchoverRefused>>),
    /// Somebody wants to know everything.
    Describe(oneshot::Sender<Box<Picture>>),
}

/// What this agent knows, for status reports.
#[derive(Debug, Clone)]
pub struct Picture {
    /// The truth.
    pub state: Arc<ClusterState>,
    /// Raft.
    pub standing: Standing,
    /// What was heard of each agent, and how long ago.
    pub seen: BTreeMap<NodeId, (NodeObservation, Duration)>,
    /// The coordinator's last report, if this node leads.
    pub report: Vec<String>,
    /// Why nothing is done to the own PostgreSQL, where there is a reason.
    pub note: Option<String>,
}

/// What the loop needs from the outside.
pub struct Parts {
    /// The configuration.
    pub config: Arc<Config>,
    /// Raft.
    pub consensus: Consensus,
    /// The own PostgreSQL; `None` on a witness.
    pub instance: Option<Instance>,
    /// The other agents.
    pub peers: Peers,
    /// The proxies.
    pub hub: Hub,
    /// Where tasks report.
    pub events: mpsc::Sender<Event>,
    /// The same, to read from.
    pub inbox: mpsc::Receiver<Event>,
}

/// The loop.
pub struct Driver {
    parts: Parts,
    state: Arc<ClusterState>,
    standing: Standing,
    coordinator: Coordinator,
    reconciler: Reconciler,
    terms: Terms,
    lease: Lease,
    promise: Promise,
    started: MonoTime,
    /// Since when this node is known to be primary of this generation.
    primary_since: Option<(Generation, MonoTime)>,
    /// Since when a switchover is known to want new work held.
    holding_since: Option<MonoTime>,
    incarnation: u64,
    own: Option<PostgresObservation>,
    duty: Duty,
    acting: Option<(LocalAction, JoinHandle<()>)>,
    /// Counts ended actions; an observation begun before the last end is out of date.
    ended: Arc<AtomicU64>,
    proposing: bool,
    knocks: Knocks,
    report: Vec<String>,
    note: Option<String>,
    /// The essence of the last beat.
    told: Option<NodeObservation>,
    wake_at: Option<MonoTime>,
}

/// What the agent has done for the cluster, as it tells the others.
#[derive(Debug, Default, Clone)]
struct Duty {
    recruited: Option<Generation>,
    prepared: Option<Generation>,
    released: Option<Generation>,
    trouble: Option<String>,
    stopped_here: bool,
}

impl Driver {
    /// Ready to run.
    pub fn new(parts: Parts) -> Self {
        let now = RealClock.now();
        let (node, timings) = (parts.config.node.id, &parts.config.timings);
        let terms = Terms::new(timings.lease);
        let policy = Policy {
            auto_failover: parts.config.failover.auto,
            max_lag: parts.config.failover.max_lag.0,
            lease: timings.lease,
            node_timeout: timings.node_timeout,
            recruit_timeout: timings.recruit_timeout,
            switchover_timeout: timings.switchover_timeout,
            change_timeout: timings.change_timeout,
        };
        let rules = Rules {
            grace: terms.hold(),
            local_timeout: timings.local_timeout,
            restart_standby_after: timings.restart_standby_after,
        };
        Self {
            state: Arc::new(ClusterState::default()),
            standing: Standing::default(),
            coordinator: Coordinator::new(node, policy),
            reconciler: Reconciler::new(rules),
            terms,
            lease: Lease::new(terms, node),
            promise: Promise::unknown(terms, now),
            started: now,
            primary_since: None,
            holding_since: None,
            incarnation: rand::random(),
            own: None,
            duty: Duty::default(),
            acting: None,
            ended: Arc::default(),
            proposing: false,
            knocks: Knocks::default(),
            report: Vec::new(),
            note: None,
            told: None,
            wake_at: None,
            parts,
        }
    }

    /// Runs until `stop` resolves. PostgreSQL is left as it is.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut state = self.parts.consensus.state();
        let mut standing = self.parts.consensus.standing();
        let (hurry, watching) = watch::channel(false);
        if let Some(instance) = &self.parts.instance {
            tokio::spawn(actions::watch(
                instance.clone(),
                watching,
                self.ended.clone(),
                self.parts.events.clone(),
            ));
        }
        let mut beat = tokio::time::interval(self.parts.config.timings.beat_interval);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        tokio::pin!(stop);
        loop {
            let pause = self.wake_at.map_or(Duration::from_secs(1), |at| at.since(RealClock.now()));
            let mut due = false;
            tokio::select! {
                biased;
                () = &mut stop => return,
                changed = state.changed() => if changed.is_err() { return },
                changed = standing.changed() => if changed.is_err() { return },
                event = self.parts.inbox.recv() => match event {
                    Some(event) => self.handle(event),
                    None => return,
                },
                _ = beat.tick() => due = true,
                () = tokio::time::sleep(pause) => {}
            }
            self.catch_up(state.borrow_and_update().clone(), standing.borrow_and_update().clone());
            self.turn(due);
            // While the primary changes, positions decide, so they are looked at without pause.
            hurry.send_if_modified(|hurry| std::mem::replace(hurry, self.state.change.is_some()) != *hurry);
        }
    }

    fn catch_up(&mut self, state: Arc<ClusterState>, standing: Standing) {
        let news = !Arc::ptr_eq(&self.state, &state) || self.standing.voters != standing.voters;
        self.state = state;
        self.standing = standing;
        if !news {
            return;
        }
        let now = RealClock.now();
        self.coordinator.committed(&self.state, &self.standing.voters, now);
        let generation = self.state.generation;
        let known = self.primary_since.filter(|(since, _)| *since == generation);
        self.primary_since = self.is_primary().then(|| known.unwrap_or((generation, now)));
        let stopping = self.state.change.as_ref().is_some_and(|change| change.phase == ChangePhase::Stopping);
        self.holding_since = stopping.then(|| self.holding_since.unwrap_or(now));
        if self.state.change.is_none() {
            // A later switchover may have the same generation.
            self.duty.prepared = None;
        }
    }

    fn handle(&mut self, event: Event) {
        let now = RealClock.now();
        match event {
            Event::Postgres(observation, begun) => {
                if begun == self.ended.load(Ordering::Acquire) {
                    self.look(observation);
                }
            }
            Event::Acted(done) => self.acted(done, now),
            Event::Beat(beat, answer) => {
                let lease = self.beaten(beat, now);
                // The other agent may have given up waiting.
                let _ = answer.send(BeatAnswer { lease });
            }
            Event::BeatAnswered { voter, sent, lease } => {
                if let Some(generation) = lease {
                    self.lease.answered(voter, generation, sent);
                }
            }
            Event::Knocked(node, result) => self.knocks.answered(node, result),
            Event::Proposed(command, result) => {
                self.proposing = false;
                match result {
                    Ok(Applied::Changed | Applied::Unchanged) => {}
                    Ok(Applied::Rejected(reason)) => {
                        tracing::info!(?command, "the log rejected a proposal: {reason}");
                    }
                    Err(error) => tracing::warn!(?command, "a proposal failed: {error}"),
                }
            }
            Event::Plan(request, answer) => {
                let view = self.coordinator.view(now, RealClock.wall());
                let plan = if request.switchover {
                    view.plan_switchover(request.to.as_ref())
                } else {
                    view.plan_forced(request.to.as_ref())
                };
                let _ = answer.send(plan);
            }
            Event::Describe(answer) => {
                let _ = answer.send(Box::new(self.picture(now)));
            }
        }
    }

    fn beaten(&mut self, beat: Beat, now: MonoTime) -> Option<Generation> {
        let from = beat.observation.descriptor.id;
        let granted = beat.wants_lease.filter(|wanted| grants_lease(&self.state, from, *wanted));
        if granted.is_some() {
            self.promise.renew(self.terms, now);
        }
        self.coordinator.observe(beat.observation, now);
        granted
    }

    fn acted(&mut self, done: Done, now: MonoTime) {
        self.acting = None;
        self.reconciler.finished(&done.action, done.result.is_ok(), now);
        match &done.result {
            Ok(()) => {
                self.duty.trouble = None;
                match &done.action {
                    LocalAction::Recruit(generation) => self.duty.recruited = Some(*generation),
                    LocalAction::Prepare(generation) => self.duty.prepared = Some(*generation),
                    LocalAction::Fence { .. } | LocalAction::StopFast { .. } | LocalAction::DrainAndStop => {
                        self.duty.released = done.before.primary_of.or(self.duty.released);
                        self.duty.stopped_here |= done.before.ran;
                    }
                    LocalAction::StartPrimary(_)
                    | LocalAction::StartStandby(_)
                    | LocalAction::Rejoin { .. }
                    | LocalAction::Checkpoint
                    | LocalAction::Promote(_)
                    | LocalAction::Follow(_)
                    | LocalAction::AlignSlots { .. } => {}
                }
            }
            Err(error) => {
                tracing::error!(action = %actions::describe(&done.action), "{error}");
                // The log has it all; in tables and in the cluster's state there is room for a line.
                self.duty.trouble = error.lines().next().map(str::to_owned);
            }
        }
        self.look(done.observation);
    }

    fn look(&mut self, observation: PostgresObservation) {
        self.duty.stopped_here &= observation.stopped().is_some();
        self.own = Some(observation);
    }

    fn turn(&mut self, beat_due: bool) {
        let now = RealClock.now();
        let observation = self.observation(now);
        self.coordinator.observe(observation.clone(), now);
        self.wake_at = None;
        self.look_after_postgres(now);
        self.lead(now);
        self.knock(now);
        let essence = observation.essence();
        if beat_due || self.told.as_ref() != Some(&essence) {
            self.told = Some(essence);
            let wants_lease = self.is_primary().then_some(self.state.generation);
            self.parts.peers.broadcast(Beat { observation, wants_lease });
        }
        self.parts.hub.observed(&self.state, self.coordinator.seen(), now);
    }

    fn id(&self) -> NodeId {
        self.parts.config.node.id
    }

    fn is_primary(&self) -> bool {
        self.state.primary.is_some_and(|primary| primary.node == self.id())
    }

    fn observation(&self, now: MonoTime) -> NodeObservation {
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let change = self.state.change.as_ref();
        let fence_at = self.fence_at(now).filter(|_| self.is_primary());
        let postgres = self.own.clone().map(|own| PostgresObservation {
            recruited: self.duty.recruited,
            prepared: self.duty.prepared,
            released: self.duty.released,
            trouble: self.duty.trouble.clone(),
            ..own
        });
        NodeObservation {
            descriptor: self.parts.config.descriptor(),
            cluster: self.parts.config.cluster.clone(),
            incarnation: self.incarnation,
            generation: self.state.generation,
            intent: change.filter(|change| gives_up_primary(change)).map(|change| change.generation),
            promise_left_ms: millis(self.promise.left(now)),
            lease_left_ms: fence_at.map(|at| millis(at.since(now))),
            postgres,
            remote: self.knocks.results(),
        }
    }

    fn fence_at(&self, now: MonoTime) -> Option<MonoTime> {
        self.lease.fence_at(self.state.generation, &self.standing.voters, now)
    }

    fn look_after_postgres(&mut self, now: MonoTime) {
        let Some(instance) = self.parts.instance.clone() else { return };
        let own = self.observation(now).postgres;
        let Some(own) = own else { return };
        let primary = self.state.serving().and_then(|id| self.heard(id, now));
        let situation = Situation {
            me: self.id(),
            state: &self.state,
            own: &own,
            primary: primary.and_then(|seen| seen.observation.postgres.as_ref()?.running()),
            fence_at: self.fence_at(now),
            since: self.primary_since.map_or(self.started, |(_, since)| since),
            work_is_held: self.work_is_held(now),
            stopped_here: self.duty.stopped_here,
            now,
        };
        let Reconciliation { action, wake_at, note } = self.reconciler.decide(&situation);
        self.sleep_until(wake_at);
        self.note = note;
        let Some(action) = action else { return };
        let fences = matches!(action, LocalAction::Fence { .. });
        match &self.acting {
            Some((running, task)) if fences && !matches!(running, LocalAction::Fence { .. }) => task.abort(),
            Some(_) => return,
            None => {}
        }
        tracing::info!("{}", actions::describe(&action));
        let before = actions::Before {
            primary_of: self.is_primary().then_some(self.state.generation),
            ran: own.stopped().is_none(),
        };
        let stop_timeout =
            self.parts.config.postgres.as_ref().map_or(Duration::ZERO, |postgres| postgres.stop_timeout);
        let task = actions::perform(instance, action.clone(), before, stop_timeout, self.ended.clone());
        let events = self.parts.events.clone();
        let task = tokio::spawn(async move {
            let done = task.await;
            // The loop may have ended.
            let _ = events.send(Event::Acted(done)).await;
        });
        self.acting = Some((action, task));
    }

    /// A proxy that does not answer delays a switchover by this much, no more: its sessions lose their
    /// statements in flight.
    fn work_is_held(&self, now: MonoTime) -> bool {
        const PATIENCE: Duration = Duration::from_millis(500);
        let newest = version(&self.state);
        let mut proxies = self.parts.hub.proxies().into_values();
        let patience_is_over = self.holding_since.is_some_and(|since| now.since(since) >= PATIENCE);
        patience_is_over || proxies.all(|proxy| proxy.acknowledged >= Some(newest))
    }

    fn heard(&self, id: NodeId, now: MonoTime) -> Option<&Seen> {
        let lease = self.parts.config.timings.lease;
        self.coordinator.seen().get(&id).filter(|seen| now.since(seen.at) < lease)
    }

    fn lead(&mut self, now: MonoTime) {
        if !self.standing.is_established {
            self.report.clear();
            return;
        }
        let decision = self.coordinator.step(now, RealClock.wall());
        self.report = decision.report.lines();
        self.sleep_until(decision.wake_at);
        match decision.action {
            Some(Action::Propose(command)) if !self.proposing => {
                self.proposing = true;
                for line in &decision.report.doing {
                    tracing::info!("{line}");
                }
                let (consensus, events) = (self.parts.consensus.clone(), self.parts.events.clone());
                tokio::spawn(async move {
                    let result = consensus.propose(command.clone()).await;
                    let _ = events.send(Event::Proposed(command, result)).await;
                });
            }
            Some(Action::TransferLeadership(to)) => {
                let consensus = self.parts.consensus.clone();
                tokio::spawn(async move {
                    if let Err(error) = consensus.transfer_leadership(to).await {
                        tracing::info!("could not hand the raft leadership to node {to}: {error}");
                    }
                });
            }
            Some(Action::Propose(_)) | None => {}
        }
    }

    /// Looks at the primary's PostgreSQL over the network while its agent is silent.
    fn knock(&mut self, now: MonoTime) {
        let lease = self.parts.config.timings.lease;
        let primary = self.state.primary_member().filter(|member| member.descriptor.id != self.id());
        let heard = primary.and_then(|member| self.coordinator.seen().get(&member.descriptor.id));
        let silent = match heard {
            Some(seen) => now.since(seen.at) >= lease / 2,
            // After a power cut the primary's host may boot a little later than the others.
            None => now.since(self.started) >= lease * 5,
        };
        let target: Option<(NodeId, HostPort)> = primary
            .filter(|_| silent)
            .and_then(|member| Some((member.descriptor.id, member.descriptor.postgres.clone()?)));
        let timeout = self.parts.config.timings.remote_timeout;
        self.knocks.turn(target, self.parts.instance.as_ref(), timeout, &self.parts.events, now);
    }

    fn sleep_until(&mut self, at: Option<MonoTime>) {
        self.wake_at = match (self.wake_at, at) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }

    fn picture(&self, now: MonoTime) -> Picture {
        let seen = self.coordinator.seen().iter();
        Picture {
            state: self.state.clone(),
            standing: self.standing.clone(),
            seen: seen.map(|(id, seen)| (*id, (seen.observation.clone(), now.since(seen.at)))).collect(),
            report: self.report.clone(),
            note: self.note.clone(),
        }
    }
}

/// The version of the topology that this state amounts to.
pub fn version(state: &ClusterState) -> Version {
    Version { generation: state.generation, revision: state.revision }
}
