//! The agent's one loop: everything that can wake it is an [`Event`], everything it can do follows
//! from what `pgherd_core` decides.
//!
//! After every event the loop lets the [`Node`] decide, and obeys. Nothing in a turn waits but the
//! disk that remembers a generation: work runs in tasks that come back as events.

mod actions;
mod group;
mod orders;
mod plans;
mod tell;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pgherd_common::errors::Chain;
use pgherd_common::push::ToProxy;
use pgherd_common::time::RealClock;
use pgherd_common::{Clock, Generation, HostPort, MonoTime, NodeId, NodeName};
use pgherd_core::events::Kind;
use pgherd_core::node::{
    AddressAnswer, AddressSeen, Begun, Done, Guard, Node, Proposed, Quorum, RestartRefused, Setup, Turn,
    version,
};
use pgherd_core::proxy_address::ProxyId;
use pgherd_core::rebuild::Order;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::address::Keeper;
use crate::api::types::PromoteRequest;
use crate::beat::{Beat, BeatAnswer};
use crate::cluster::{Applied, ClusterState, Command};
use crate::config::{Config, Postgres, VirtualIp};
use crate::consensus::{Consensus, ProposeError, RegroupError, Standing};
use crate::coordinator::{Action, RemoveRefused, SwitchoverRefused};
use crate::guardian::{Channel, GuardianLost};
use crate::memory::Memory;
use crate::observation::{NodeObservation, PostgresObservation, RemoteDatabase};
use crate::peers::{Link, Peers, knock_unauthenticated};
use crate::postgres::Instance;
use crate::publish::Hub;
use crate::working::Working;

use actions::Hands;
pub use orders::{NotTaken, Taken};
pub use tell::Tell;

/// Between a proposal that failed and the next one.
const PROPOSAL_PAUSE: Duration = Duration::from_millis(100);

/// How long the reason may take to arrive once raft is known to have stopped.
const REASON_PATIENCE: Duration = Duration::from_millis(200);

/// Why the loop ended though nobody had asked it to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// The guardian.
    #[error(transparent)]
    Guardian(#[from] GuardianLost),
    /// Raft.
    #[error(
        "raft has stopped on this node because {0}; the agent's worker is started anew. If that goes on, check the disk of node.state_dir: its space, and the kernel's log"
    )]
    Raft(String),
}

/// Everything that can wake the agent, besides the log and the clock.
#[derive(Debug)]
pub enum Event {
    /// A look at the local PostgreSQL, begun when this many actions had ended.
    Postgres(Box<PostgresObservation>, u64),
    /// A local action has ended.
    Acted(Box<Done>),
    /// What became of the virtual IP.
    Address(AddressSeen),
    /// A proxy would have, or keep, the proxies' virtual IP.
    AddressWanted {
        /// Which.
        proxy: ProxyId,
        /// Its place among the proxies.
        priority: u32,
        /// The number of its question.
        round: u64,
        /// Where the answer goes.
        answer: mpsc::Sender<ToProxy>,
    },
    /// The link to a proxy has ended.
    ProxyLeft {
        /// Which.
        proxy: ProxyId,
        /// It had given the proxies' virtual IP up.
        gave_up: bool,
    },
    /// Another agent's beat.
    Beat(Box<Beat>, oneshot::Sender<BeatAnswer>),
    /// A voter answered the beat that was sent then.
    BeatAnswered {
        /// Who.
        voter: NodeId,
        /// When the beat was sent.
        sent: MonoTime,
        /// What it said.
        answer: BeatAnswer,
    },
    /// What another node's PostgreSQL looks like from here.
    Knocked(NodeId, RemoteDatabase),
    /// A proposal of the coordinator has ended.
    Proposed(Command, Result<Applied, ProposeError>),
    /// A change of raft's group has ended.
    Regrouped(Result<(), RegroupError>),
    /// A proxy had its first write answered by the primary of this generation, so long after it knew it.
    Wrote(Generation, Duration),
    /// An operator wants to change the primary: may that be proposed?
    Plan(PromoteRequest, oneshot::Sender<Result<Command, SwitchoverRefused>>),
    /// An operator wants the primary restarted, and transactions ended that do not end: may that be proposed?
    PlanRestart(NodeId, bool, oneshot::Sender<Result<Command, SwitchoverRefused>>),
    /// An operator wants a node removed, by force or not, or else whoever is silent: what would be proposed for that?
    PlanRemove(Option<(NodeName, bool)>, oneshot::Sender<Result<Vec<Command>, RemoveRefused>>),
    /// An operator wants this node's standby restarted.
    Restart(oneshot::Sender<Result<(), RestartRefused>>),
    /// An operator wants to know what a switchover, to this node if one is named, would do.
    Explain(Option<NodeName>, oneshot::Sender<Result<Vec<String>, SwitchoverRefused>>),
    /// An operator has this node made anew.
    Rebuild(Order, oneshot::Sender<Taken>),
    /// Or not any more; whether there was such an order.
    StopRebuild(oneshot::Sender<bool>),
    /// What the operators' own monitor says is wrong, if anything.
    Monitored(Option<String>),
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
    /// Who would take over, were the scheduled switchover to begin now.
    pub foreseen: Option<Result<NodeId, SwitchoverRefused>>,
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
    /// What outlives a lost raft store.
    pub memory: Memory,
    /// Of the virtual IP, where there is one.
    pub address: Option<Keeper>,
    /// The other agents.
    pub peers: Peers,
    /// Calls to them.
    pub link: Link,
    /// The proxies.
    pub hub: Hub,
    /// What takes long.
    pub working: Working,
    /// People, and their scripts.
    pub tell: Tell,
    /// Told what there is to guard.
    pub(crate) guardian: Channel,
    /// Until when a primary that was found running may go on without a lease.
    pub adopted_until: MonoTime,
    /// Where tasks report.
    pub events: mpsc::Sender<Event>,
    /// The same, to read from.
    pub inbox: mpsc::Receiver<Event>,
}

/// The loop.
pub struct Driver {
    parts: Parts,
    node: Node,
    standing: Standing,
    acting: Option<JoinHandle<()>>,
    rejoining: Option<JoinHandle<()>>,
    /// Counts ended actions; an observation begun before the last end is out of date.
    ended: Arc<AtomicU64>,
    wake_at: Option<MonoTime>,
    /// The guardian does not listen.
    unheard: bool,
    /// A generation could not be remembered.
    forgetful: bool,
}

impl Driver {
    /// Ready to run.
    pub fn new(parts: Parts) -> Self {
        let now = RealClock.now();
        let config = &parts.config;
        let node = Node::new(
            Setup {
                descriptor: config.descriptor(),
                cluster: config.cluster.clone(),
                timings: config.timings,
                auto_failover: config.failover.auto,
                max_lag: config.failover.max_lag.0,
                salvage_wait: config.failover.salvage_wait,
                minimum_standbys: config.failover.minimum_standbys,
                rejoin: config.failover.rejoin.rules(),
                durability: config.failover.durability,
                fence_script: config.scripts.fence.is_some(),
                tell_again: config.notifications.repeat,
                incarnation: rand::random(),
                remembered: parts.memory.generation(),
                adopted_until: parts.adopted_until,
                address: config.virtual_ip.as_ref().map(VirtualIp::rules),
            },
            now,
        );
        let mut driver = Self {
            node,
            standing: Standing::default(),
            acting: None,
            rejoining: None,
            ended: Arc::default(),
            wake_at: None,
            unheard: false,
            forgetful: false,
            parts,
        };
        driver.resume_order();
        driver
    }

    /// Runs until `stop` resolves. PostgreSQL is left as it is.
    pub(crate) async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), Broken> {
        self.parts.tell.agent(Kind::AgentStarted, &self.node, &self.parts.config);
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
                () = &mut stop => {
                    self.parts.tell.agent(Kind::AgentStopped, &self.node, &self.parts.config);
                    return self.leave();
                }
                changed = state.changed() => if changed.is_err() { return Err(stopped(standing).await) },
                changed = standing.changed() => if changed.is_err() { return Err(stopped(standing).await) },
                Some(event) = self.parts.inbox.recv() => self.handle(event),
                _ = beat.tick() => due = true,
                () = tokio::time::sleep(pause) => {}
            }
            self.catch_up(state.borrow_and_update().clone(), standing.borrow_and_update().clone());
            // PostgreSQL is not handed back: its guardian keeps the deadline of the lease.
            if self.standing.failed.is_some() {
                return Err(stopped(standing).await);
            }
            self.turn(due)?;
            if let Some(at) = self.node.has_left() {
                tracing::info!(
                    "this node was removed from the cluster at {at} (remove-node): its PostgreSQL is stopped, and its agent \
                     ends; `pgherd add-node` on a member lets it join again"
                );
                return self.leave();
            }
            // While the primary changes, positions decide, so they are looked at without pause.
            let changing = self.node.state().change.is_some();
            hurry.send_if_modified(|hurry| std::mem::replace(hurry, changing) != changing);
        }
    }

    /// Ends in order. PostgreSQL is left as it is.
    fn leave(&mut self) -> Result<(), Broken> {
        self.parts.address.iter().for_each(Keeper::leave);
        Ok(self.parts.guardian.leave()?)
    }

    fn catch_up(&mut self, state: Arc<ClusterState>, standing: Standing) {
        let quorum = Quorum {
            voters: standing.voters.clone(),
            learners: standing.learners.clone(),
            settled: standing.settled,
            leads: standing.is_established,
            admission: standing.admission,
        };
        self.standing = standing;
        self.node.welcomed(self.parts.consensus.roster().welcomed());
        self.node.committed(state, quorum, RealClock.now());
    }

    fn handle(&mut self, event: Event) {
        let now = RealClock.now();
        match event {
            Event::Postgres(observation, begun) => {
                if begun == self.ended.load(Ordering::Acquire) {
                    self.parts.tell.looked(observation.running().is_some());
                    self.node.look(*observation);
                }
            }
            Event::Acted(done) => {
                self.acting = None;
                self.note_end(&done);
                actions::log_failure(&done);
                self.node.acted(*done, now);
            }
            Event::Address(seen) => self.node.address(seen),
            Event::AddressWanted { proxy, priority, round, answer } => {
                let AddressAnswer { granted, voter, voters, hold } =
                    self.node.proxy_asks(&proxy, priority, now);
                let hold_ms = u64::try_from(hold.as_millis()).unwrap_or(u64::MAX);
                // The link may have ended.
                let _ = answer.try_send(ToProxy::Address { round, granted, voter, voters, hold_ms });
            }
            Event::ProxyLeft { proxy, gave_up } => self.node.proxy_left(&proxy, gave_up),
            Event::Beat(beat, answer) => {
                // The other agent may have given up waiting.
                let _ = answer.send(self.node.beaten(*beat, now));
            }
            Event::BeatAnswered { voter, sent, answer } => self.node.answered(voter, sent, &answer),
            Event::Knocked(node, result) => self.node.knocked(node, result),
            Event::Wrote(generation, after) => self.node.wrote(generation, after, now),
            Event::Monitored(failure) => self.node.monitored(failure),
            Event::Proposed(command, result) => self.proposed(&command, result),
            Event::Regrouped(result) => {
                self.node.regrouped();
                if let Err(error) = result {
                    tracing::warn!("raft's group did not change: {error}");
                }
            }
            Event::Plan(request, answer) => {
                let _ = answer.send(self.plan_change(&request, now));
            }
            Event::PlanRestart(node, end_transactions, answer) => {
                let _ = answer.send(self.node.plan_restart(node, end_transactions, now, RealClock.wall()));
            }
            Event::PlanRemove(wanted, answer) => {
                let _ = answer.send(self.plan_removal(wanted.as_ref(), now));
            }
            Event::Restart(answer) => {
                let _ = answer.send(self.node.order_restart(RealClock.wall()));
            }
            Event::Explain(to, answer) => {
                let _ = answer.send(self.node.explain_switchover(to.as_ref(), now, RealClock.wall()));
            }
            Event::Rebuild(order, answer) => {
                let _ = answer.send(self.take_order(&order));
            }
            Event::StopRebuild(answer) => {
                let _ = answer.send(self.stop_order());
            }
            Event::Describe(answer) => {
                let _ = answer.send(Box::new(self.picture(now)));
            }
        }
    }

    fn proposed(&mut self, command: &Command, result: Result<Applied, ProposeError>) {
        let timed_out = matches!(result, Err(ProposeError::Timeout(_)));
        self.node.proposed(if timed_out { Proposed::TimedOut } else { Proposed::Settled });
        match result {
            Ok(Applied::Changed | Applied::Unchanged) => {}
            Ok(Applied::Rejected(reason)) => {
                tracing::info!(?command, "the log rejected a proposal: {reason}");
            }
            Err(error) => tracing::warn!(?command, "a proposal failed: {error}"),
        }
    }

    fn turn(&mut self, beat_due: bool) -> Result<(), GuardianLost> {
        self.drop_outdated_order();
        let (held, begun) = (self.work_is_held(), RealClock.now());
        let Turn { remember, rejoin, guard, address, act, lead, knock, beat, wake_at, doing, events, calls } =
            self.node.turn(begun, RealClock.wall(), beat_due, held);
        self.wake_at = wake_at;
        if let Some(generation) = remember {
            self.remember(generation);
        }
        if let Some(token) = rejoin {
            self.rejoin(token);
        }
        self.tell_guardian(guard, act.as_ref())?;
        if let Some((keeper, order)) = self.parts.address.as_ref().zip(address) {
            keeper.order(order);
        }
        for line in doing {
            tracing::info!("{line}");
        }
        if let Some(begun) = act {
            self.act(begun);
        }
        self.parts.guardian.alive(begun);
        match lead {
            Some(Action::Propose(command)) => self.propose(command),
            Some(Action::TransferLeadership(to)) => self.transfer_leadership(to),
            Some(regroup) => self.regroup(regroup),
            None => {}
        }
        if let Some((node, address)) = knock {
            self.knock(node, address);
        }
        if let Some(beat) = beat {
            self.parts.peers.broadcast(beat);
        }
        self.parts.tell.pass_on(&events, &calls);
        let now = RealClock.now();
        let backed_until = now + self.node.backed_for(now);
        self.parts.hub.observed(self.node.state(), self.node.coordinator().seen(), backed_until, now);
        Ok(())
    }

    fn remember(&mut self, generation: Generation) {
        match self.parts.memory.remember(generation) {
            Ok(()) => {
                self.forgetful = false;
                self.node.remembered(generation);
            }
            // The raft store, on the same disk, has it too, or fails as well and ends this agent's part.
            Err(error) => {
                if !std::mem::replace(&mut self.forgetful, true) {
                    tracing::error!(%generation, "{}; trying again", Chain(&error));
                }
            }
        }
    }

    /// What makes a server writable is not begun unless somebody guards it.
    fn tell_guardian(&mut self, guard: Option<Guard>, act: Option<&Begun>) -> Result<(), GuardianLost> {
        let rises = act.is_some_and(|begun| begun.action.makes_writable());
        match self.parts.guardian.tell(guard) {
            Err(GuardianLost::Hangs) if !rises => {
                if !std::mem::replace(&mut self.unheard, true) {
                    tracing::error!("{}; until then only this worker guards PostgreSQL", GuardianLost::Hangs);
                }
                Ok(())
            }
            Err(lost) => Err(lost),
            Ok(()) => {
                self.unheard = false;
                Ok(())
            }
        }
    }

    fn act(&mut self, begun: Begun) {
        let Some(instance) = self.parts.instance.clone() else { return };
        if begun.abort
            && let Some(task) = self.acting.take()
        {
            task.abort();
        }
        if begun.action.is_routine() {
            tracing::debug!("{}", actions::describe(&begun.action));
        } else {
            tracing::info!("{}", actions::describe(&begun.action));
        }
        let stop_timeout =
            self.parts.config.postgres.as_ref().map_or(Duration::ZERO, |postgres| postgres.stop_timeout);
        let secret = self.parts.config.postgres.as_ref().and_then(Postgres::shared_secret).cloned();
        let drain_timeout = self.parts.config.timings.drain_timeout;
        let (hub, unmovable) = (self.parts.hub.clone(), self.parts.config.switchover.unmovable);
        let (link, working) = (self.parts.link.clone(), self.parts.working.clone());
        let scripts = self.parts.tell.scripts.clone();
        let hands =
            Hands { instance, stop_timeout, drain_timeout, hub, unmovable, link, working, secret, scripts };
        let task = hands.perform(begun.action, begun.before, self.ended.clone());
        let events = self.parts.events.clone();
        self.acting = Some(tokio::spawn(async move {
            let done = task.await;
            // The loop may have ended.
            let _ = events.send(Event::Acted(Box::new(done))).await;
        }));
    }

    /// Whether every proxy has put the newest topology into effect.
    fn work_is_held(&self) -> bool {
        let newest = version(self.node.state());
        self.parts.hub.proxies().into_values().all(|proxy| proxy.acknowledged >= Some(newest))
    }

    fn propose(&self, command: Command) {
        let (consensus, events) = (self.parts.consensus.clone(), self.parts.events.clone());
        tokio::spawn(async move {
            let result = consensus.propose(command.clone()).await;
            if result.is_err() {
                // What fails at once would be decided anew at once, thousands of times a second.
                tokio::time::sleep(PROPOSAL_PAUSE).await;
            }
            let _ = events.send(Event::Proposed(command, result)).await;
        });
    }

    /// Asked for again at every turn until it has happened.
    fn rejoin(&mut self, token: u64) {
        if self.rejoining.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let consensus = self.parts.consensus.clone();
        self.rejoining = Some(tokio::spawn(async move {
            match consensus.rejoin(token).await {
                Ok(true) => {
                    tracing::info!("the cluster has let this node in again; its raft store is being filled");
                }
                // By an earlier turn.
                Ok(false) => {}
                Err(error) => tracing::error!("{}", Chain(&error)),
            }
        }));
    }

    /// Looks at the primary's PostgreSQL over the network while its agent is silent.
    fn knock(&self, node: NodeId, address: HostPort) {
        let (instance, events) = (self.parts.instance.clone(), self.parts.events.clone());
        let timeout = self.parts.config.timings.remote_timeout;
        tokio::spawn(async move {
            let result = match instance {
                Some(instance) => instance.knock(&address).await,
                None => knock_unauthenticated(&address, timeout).await,
            };
            let _ = events.send(Event::Knocked(node, result)).await;
        });
    }

    fn picture(&self, now: MonoTime) -> Picture {
        let seen = self.node.coordinator().seen().iter();
        Picture {
            state: self.node.state().clone(),
            standing: self.standing.clone(),
            seen: seen.map(|(id, seen)| (*id, (seen.observation.clone(), now.since(seen.at)))).collect(),
            foreseen: self.node.foresee_scheduled(now, RealClock.wall()),
            report: self.node.report().to_vec(),
            note: self.node.note().map(str::to_owned),
        }
    }
}

/// Raft says so first, and why a moment later.
async fn stopped(mut standing: watch::Receiver<Standing>) -> Broken {
    let told = standing.wait_for(|standing| standing.failed.is_some());
    let why = match tokio::time::timeout(REASON_PATIENCE, told).await {
        Ok(Ok(standing)) => standing.failed.clone(),
        Ok(Err(_)) | Err(_) => None,
    };
    Broken::Raft(why.unwrap_or_else(|| "its task has ended without a word".to_owned()))
}
