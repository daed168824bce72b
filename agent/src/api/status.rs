//! The cluster's state as operators see it.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use pgherd_common::time::RealClock;
use pgherd_common::{Clock, HostPort, Lsn, NodeId};
use pgherd_core::cover::Durability;
use pgherd_core::node::version;

use super::restart::PENDING;
use super::server::{Api, Refused};
use super::types::{
    AgentType, ChangeStatus, ClusterStatus, DatabaseState, DurabilityStatus, LeaseStatus, NodeStatus,
    PausedStatus, Pending, ProxyStatus, ScheduledStatus, WithoutVote,
};
use crate::cluster::{
    ChangePhase, Contact, Contacts, HistoryEntry, Member, NodeKind, Pause, PrimaryPhase, Service,
};
use crate::driver::Picture;
use crate::observation::{PostgresObservation, PostgresState};

/// Bound of the wait for standbys to reach the primary's position.
const SNAPSHOT_WAIT_MS: u64 = 300;

type Databases = BTreeMap<NodeId, PostgresObservation>;
/// What a restart of each would change.
type Pendings = BTreeMap<NodeId, Pending>;

pub(super) async fn cluster(State(api): State<Api>) -> Result<Json<ClusterStatus>, Refused> {
    let mut picture = api.picture().await?;
    let (databases, pending) = tokio::join!(snapshot(&api, &picture), pending(&api, &picture));
    if let Some(leader) = leader_elsewhere(&api, &picture) {
        let asked: Result<Vec<String>, _> = api.link.get(&leader, "/v1/report").await;
        picture.report =
            asked.unwrap_or_else(|error| vec![format!("the raft leader's report is missing: {error}")]);
    }
    Ok(Json(compose(&api, &picture, &databases, &pending)))
}

pub(super) async fn node(State(api): State<Api>) -> Result<Json<NodeStatus>, Refused> {
    let picture = api.picture().await?;
    let mut databases = Databases::new();
    if let Some(instance) = &api.instance {
        databases.insert(api.config.node.id, instance.observe().await);
    }
    let mut pending = Pendings::new();
    if let Some(instance) = &api.instance {
        pending.extend(instance.pending().await.ok().map(|pending| (api.config.node.id, pending)));
    }
    let view = Composer::new(&api, &picture, &databases, &pending);
    let mut status = view.node(api.config.node.id);
    if let (true, Some(note)) = (status.info.is_empty(), picture.note) {
        status.info = note;
    }
    Ok(Json(status))
}

pub(super) async fn history(State(api): State<Api>) -> Json<Vec<HistoryEntry>> {
    Json(api.consensus.state().borrow().history.clone())
}

fn leader_elsewhere(api: &Api, picture: &Picture) -> Option<HostPort> {
    let leader = picture.standing.leader.filter(|leader| *leader != api.config.node.id)?;
    api.consensus.roster().agent(leader)
}

/// Positions that can be compared: the primary's is read first, then each standby is given a moment
/// to reach it. A standby that has is in sync with that point, however fast the primary moves on.
async fn snapshot(api: &Api, picture: &Picture) -> Databases {
    let primary = picture.state.primary.map(|primary| primary.node);
    let mut databases = Databases::new();
    let mut reach = None;
    if let Some(id) = primary
        && let Some(seen) = look(api, picture, id, None).await
    {
        reach = seen.running().filter(|running| !running.in_recovery).map(|running| running.position);
        databases.insert(id, seen);
    }
    let others = api.consensus.roster().now().into_keys().filter(|id| Some(*id) != primary);
    let looks = others.map(|id| async move { Some((id, look(api, picture, id, reach).await?)) });
    databases.extend(futures_util::future::join_all(looks).await.into_iter().flatten());
    databases
}

/// What the servers have to be restarted for, as far as they answer.
async fn pending(api: &Api, picture: &Picture) -> Pendings {
    let heard =
        |id: NodeId| picture.seen.get(&id).is_some_and(|(_, age)| *age < api.config.timings.node_timeout);
    let databases = picture.state.databases().filter(|member| heard(member.descriptor.id));
    let asks = databases.map(|member| async move {
        let pending: Pending = api.link.get(&member.descriptor.agent, PENDING).await.ok()?;
        Some((member.descriptor.id, pending))
    });
    futures_util::future::join_all(asks).await.into_iter().flatten().collect()
}

async fn look(api: &Api, picture: &Picture, id: NodeId, reach: Option<Lsn>) -> Option<PostgresObservation> {
    let member = api.consensus.roster().get(id)?;
    let silent = picture.seen.get(&id).is_none_or(|(_, age)| *age >= api.config.timings.node_timeout);
    if silent {
        return None;
    }
    let path = match reach {
        Some(reach) => format!("/v1/observe?reach={reach}&within_ms={SNAPSHOT_WAIT_MS}"),
        None => "/v1/observe".to_owned(),
    };
    match api.link.get::<Option<PostgresObservation>>(&member.agent, &path).await {
        Ok(observation) => observation,
        Err(error) => {
            tracing::debug!("no position of {} for the status: {error}", member.name);
            None
        }
    }
}

fn compose(api: &Api, picture: &Picture, databases: &Databases, pending: &Pendings) -> ClusterStatus {
    let composer = Composer::new(api, picture, databases, pending);
    let state = &picture.state;
    let name = |id: NodeId| composer.name(id);
    let nodes: Vec<NodeStatus> = composer.roster.keys().map(|id| composer.node(*id)).collect();
    let (healthy, verdict) = composer.verdict(&nodes);
    let newest = version(state);
    let proxies = api.hub.proxies().into_iter().map(|(name, proxy)| ProxyStatus {
        name,
        listen: proxy.listen,
        acknowledged: proxy.acknowledged,
        current: proxy.acknowledged == Some(newest),
    });
    ClusterStatus {
        cluster: api.config.cluster.clone(),
        answered_by: api.config.node.name.clone(),
        system_identifier: state.identity.as_ref().map(|identity| identity.system_identifier),
        formed: state.identity.is_some(),
        auto_failover: api.config.failover.auto,
        durability: composer.durability(),
        generation: state.generation,
        leader: picture.standing.leader.and_then(name),
        term: picture.standing.term,
        voters: picture.standing.voters.len(),
        voters_heard: picture.standing.voters.iter().filter(|id| composer.is_heard(**id)).count(),
        voting: picture.state.voters.current.iter().filter_map(|id| name(*id)).collect(),
        without_vote: composer.without_vote(),
        lease: composer.lease(),
        change: state.change.as_ref().and_then(|change| {
            Some(ChangeStatus {
                kind: change.kind,
                from: name(change.from)?,
                to: match change.phase {
                    ChangePhase::Granted => state.primary.and_then(|primary| name(primary.node)),
                    ChangePhase::Preparing | ChangePhase::Stopping | ChangePhase::Recruiting => {
                        change.to.and_then(name)
                    }
                },
                phase: match change.phase {
                    ChangePhase::Preparing => "preparing",
                    ChangePhase::Stopping => "stopping",
                    ChangePhase::Recruiting => "recruiting",
                    ChangePhase::Granted => "granted",
                }
                .to_owned(),
                reason: change.reason.clone(),
            })
        }),
        scheduled: composer.scheduled(),
        paused: composer.paused(),
        nodes,
        allowed: state.members.values().filter(|m| m.allowed).map(|m| m.descriptor.name.clone()).collect(),
        priority: state.promotion_order().iter().map(|member| member.descriptor.name.clone()).collect(),
        proxies: proxies.collect(),
        healthy,
        verdict,
        report: picture.report.clone(),
    }
}

struct Composer<'a> {
    api: &'a Api,
    picture: &'a Picture,
    databases: &'a Databases,
    pending: &'a Pendings,
    /// Everybody, and this node in any case.
    roster: Contacts,
    /// The primary's position in this snapshot.
    position: Option<Lsn>,
}

impl<'a> Composer<'a> {
    fn new(api: &'a Api, picture: &'a Picture, databases: &'a Databases, pending: &'a Pendings) -> Self {
        let primary = picture.state.primary.and_then(|primary| databases.get(&primary.node));
        let running = primary.and_then(PostgresObservation::running).filter(|running| !running.in_recovery);
        let mut roster = api.consensus.roster().now();
        let own = api.config.descriptor();
        roster.entry(own.id).or_insert(Contact { name: own.name, agent: own.agent });
        let position = running.map(|running| running.position);
        Self { api, picture, databases, pending, roster, position }
    }

    fn name(&self, id: NodeId) -> Option<pgherd_common::NodeName> {
        self.roster.get(&id).map(|contact| contact.name.clone())
    }

    fn age(&self, id: NodeId) -> Option<Duration> {
        self.picture.seen.get(&id).map(|(_, age)| *age)
    }

    fn is_heard(&self, id: NodeId) -> bool {
        id == self.api.config.node.id
            || self.age(id).is_some_and(|age| age < self.api.config.timings.node_timeout)
    }

    /// Whether an agent says that its raft store was lost.
    fn has_forgotten(&self, id: NodeId) -> bool {
        let said = self.picture.seen.get(&id).and_then(|(observation, _)| observation.probation);
        said.is_some() && self.is_heard(id)
    }

    /// As the whole cluster asks for it: the most that any agent's configuration does.
    fn durability(&self) -> DurabilityStatus {
        let said = self.picture.seen.iter().filter(|(id, _)| self.is_heard(**id));
        let own = self.api.config.failover.durability;
        let asked = said.map(|(_, (observation, _))| observation.durability).fold(own, Durability::and);
        let cover = &self.picture.state.cover;
        DurabilityStatus {
            asked: asked.standbys,
            standbys: cover.wanted.standbys,
            of: cover.wanted.of.iter().filter_map(|id| self.name(*id)).collect(),
            settled: cover.is_settled(),
        }
    }

    fn without_vote(&self) -> Vec<WithoutVote> {
        let voters = &self.picture.state.voters;
        let reason = |id: NodeId| match (voters.contains(id), self.is_heard(id)) {
            (_, true) if self.has_forgotten(id) => Some("its raft store was lost: on probation".to_owned()),
            (true, _) => None,
            (false, _) if self.picture.state.is_leaving(id) => Some("it is being removed".to_owned()),
            (false, true) if voters.current.contains(&id) => Some("it is leaving".to_owned()),
            (false, true) => Some("it is returning".to_owned()),
            (false, false) => Some(match self.age(id) {
                Some(age) => format!("lost: agent silent for {} s", age.as_secs()),
                None => "lost: agent not heard yet".to_owned(),
            }),
        };
        let members = self.picture.state.members.values();
        members
            .filter_map(|member| {
                let reason = reason(member.descriptor.id)?;
                Some(WithoutVote { node: member.descriptor.name.clone(), reason })
            })
            .collect()
    }

    fn scheduled(&self) -> Option<ScheduledStatus> {
        let scheduled = self.picture.state.scheduled.as_ref()?;
        let (successor, obstacle) = match &self.picture.foreseen {
            Some(Ok(id)) => (self.name(*id), None),
            Some(Err(refused)) => (None, Some(refused.to_string())),
            None => (None, None),
        };
        let left = scheduled.due.since(RealClock.wall());
        Some(ScheduledStatus {
            at: scheduled.due,
            left_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            from: self.name(scheduled.from)?,
            to: scheduled.to.and_then(|to| self.name(to)),
            end_transactions: scheduled.end_transactions,
            successor,
            obstacle,
        })
    }

    fn paused(&self) -> Vec<PausedStatus> {
        let now = RealClock.wall();
        let paused = |(node, pause): (Option<NodeId>, Pause)| PausedStatus {
            node: node.and_then(|node| self.name(node)),
            until: pause.until,
            left_ms: u64::try_from(pause.until.since(now).as_millis()).unwrap_or(u64::MAX),
        };
        self.picture.state.pauses.iter().map(paused).collect()
    }

    fn lease(&self) -> LeaseStatus {
        let holder = self.picture.state.primary.map(|primary| primary.node);
        let seen = holder.and_then(|holder| self.picture.seen.get(&holder));
        let left = seen.and_then(|(observation, age)| {
            Duration::from_millis(observation.lease_left_ms?).checked_sub(*age).filter(|left| !left.is_zero())
        });
        LeaseStatus {
            holder: holder.filter(|_| left.is_some()).and_then(|holder| self.name(holder)),
            left_ms: left.map_or(0, |left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    fn node(&self, id: NodeId) -> NodeStatus {
        let entry = self.roster.get(&id);
        let entry = entry.unwrap_or_else(|| unreachable!("only who is on the roster is asked for, not {id}"));
        let seen = self.picture.seen.get(&id).map(|(observation, _)| observation);
        let member = self.picture.state.members.get(&id);
        let descriptor = member.map(|member| &member.descriptor).or(seen.map(|seen| &seen.descriptor));
        let heard = self.is_heard(id);
        let kind = descriptor.map_or(NodeKind::Database, |descriptor| descriptor.kind);
        let postgres = self.databases.get(&id).filter(|_| heard);
        let running = postgres.and_then(PostgresObservation::running);
        let standby = running.filter(|running| running.in_recovery);
        let address = seen.and_then(|seen| seen.address.as_ref());
        let pending = self.pending.get(&id).cloned().unwrap_or_default();
        let lag = standby.and_then(|running| Some(self.position?.bytes_since(running.position)));
        NodeStatus {
            id,
            name: entry.name.clone(),
            kind,
            agent_type: self.agent_type(id, kind, heard, postgres),
            agent: entry.agent.clone(),
            postgres: descriptor.and_then(|descriptor| descriptor.postgres.clone()),
            db: database_state(kind, postgres),
            vip: address.map(|address| address.address.clone()),
            vip_active: heard && address.is_some_and(|address| address.held),
            priority: member.map_or_else(|| descriptor.map_or(0, |d| d.priority), Member::priority),
            weight: descriptor.map_or(0, |descriptor| descriptor.weight),
            tags: descriptor.map(|descriptor| descriptor.tags).unwrap_or_default(),
            streams_from: self.picture.state.relay(id).and_then(|relay| self.name(relay)),
            attached: member.is_none_or(|member| member.attached),
            allowed: member.is_none_or(|member| member.allowed),
            timeline: running.map(|running| running.timeline),
            received: standby.map(|running| running.received),
            replayed: running.map(|running| running.position),
            lag_bytes: lag,
            in_service: member.is_some_and(|member| member.may_serve() && member.service == Service::Up),
            invited: self.picture.state.invited.contains_key(&id),
            leaving: self.picture.state.is_leaving(id),
            pid: postgres.and_then(|postgres| postgres.pid),
            pending_restart: pending.settings,
            pending_lowered: pending.lowered,
            refused: pending.refused,
            info: self.info(id, member, seen.and_then(|seen| seen.postgres.as_ref()), heard),
        }
    }

    fn agent_type(
        &self,
        id: NodeId,
        kind: NodeKind,
        heard: bool,
        postgres: Option<&PostgresObservation>,
    ) -> AgentType {
        let primary = self.picture.state.primary.filter(|primary| primary.node == id);
        let up = postgres.and_then(PostgresObservation::running);
        match (heard, kind, primary.map(|primary| primary.phase), up) {
            (false, _, _, _) => AgentType::Down,
            (true, NodeKind::Witness, _, _) => AgentType::Witness,
            (true, NodeKind::Database, Some(PrimaryPhase::Promoting | PrimaryPhase::Covering { .. }), _) => {
                AgentType::Promoting
            }
            (true, NodeKind::Database, Some(PrimaryPhase::Serving { .. }), Some(up)) if !up.in_recovery => {
                AgentType::Primary
            }
            (true, NodeKind::Database, None, Some(up)) if up.in_recovery => AgentType::Standby,
            (true, NodeKind::Database, _, _) => AgentType::Idle,
        }
    }

    fn info(
        &self,
        id: NodeId,
        member: Option<&Member>,
        postgres: Option<&PostgresObservation>,
        heard: bool,
    ) -> String {
        let mut info = Vec::new();
        if self.picture.state.invited.contains_key(&id) {
            info.push(if heard {
                "invited; it is being let in".to_owned()
            } else {
                "invited; its agent has not come yet: start it with this cluster's configuration".to_owned()
            });
        } else if !heard {
            info.push(match self.age(id) {
                Some(age) => format!("agent silent for {} s", age.as_secs()),
                None => "agent not heard yet".to_owned(),
            });
        }
        let address =
            self.picture.seen.get(&id).filter(|_| heard).and_then(|(seen, _)| seen.address.as_ref());
        info.extend(address.and_then(|address| address.trouble.clone()));
        if self.has_forgotten(id) {
            info.push("its raft store was lost; the others let it in again".to_owned());
        }
        if let Some(member) = member {
            if !member.allowed {
                info.push("not allowed (allow-node)".to_owned());
            }
            if let Some(pause) = self.picture.state.pauses.of(id).filter(|_| member.is_database()) {
                info.push(format!("paused until {} (unpause)", pause.until));
            }
            if !member.attached {
                info.push("detached: takes no reads (attach)".to_owned());
            }
            if heard
                && member.replaced
                && member.service != Service::Joining
                && !self.api.config.failover.rejoin.auto
            {
                let name = &member.descriptor.name;
                info.push(format!(
                    "failed as the primary and stays out (failover.rejoin): run `pgherd rebuild {name}`, or rebuild it by hand and \
                     run `pgherd resume {name}`"
                ));
            }
            match &member.service {
                Service::Failed(reason) if heard => info.push(reason.clone()),
                Service::Joining if member.is_database() => info.push("joining".to_owned()),
                Service::Failed(_) | Service::Joining | Service::Up => {}
            }
        }
        let trouble = postgres.filter(|_| heard).and_then(|postgres| postgres.trouble.as_ref());
        info.extend(
            trouble.filter(|trouble| !info.iter().any(|line| line.contains(trouble.as_str()))).cloned(),
        );
        if let Some(pending) = self.pending.get(&id) {
            if !pending.settings.is_empty() {
                let names = pending.settings.join(", ");
                info.push(format!("restart pending for {names} (restart --pending)"));
            }
            info.extend(pending.refused.iter().map(|what| format!("does not take {what} (pg-show)")));
        }
        let complaint = postgres.filter(|_| heard).and_then(|postgres| postgres.health.complaint());
        info.extend(complaint.map(|complaint| format!("PostgreSQL {complaint}")));
        info.extend(self.slots_missing(id, postgres.filter(|_| heard)));
        info.join("; ")
    }

    /// Logical slots that a promotion of this standby would lose.
    fn slots_missing(&self, id: NodeId, postgres: Option<&PostgresObservation>) -> Option<String> {
        let state = &self.picture.state;
        state.slot_sync.as_ref().filter(|_| state.serving().is_some_and(|primary| primary != id))?;
        let primary = self.picture.seen.get(&state.serving()?)?.0.postgres.as_ref()?.running()?;
        let own = postgres?.running()?;
        let missing = primary.logical.slots.iter().filter(|slot| !own.logical.slots.contains(slot));
        let names: Vec<&str> = missing.map(String::as_str).collect();
        (!names.is_empty()).then(|| format!("has no copy yet of the logical slots {}", names.join(", ")))
    }

    fn follows(&self, id: NodeId) -> bool {
        let running = self.databases.get(&id).and_then(PostgresObservation::running);
        running.is_some_and(|running| self.picture.state.is_fed(id, running))
    }

    /// Nothing is replaced meanwhile, so all is not well.
    fn paused_verdict(&self) -> impl Iterator<Item = String> + '_ {
        self.picture.state.pauses.iter().map(|(node, pause)| {
            let what = match node.and_then(|node| self.name(node)) {
                Some(node) => format!("PostgreSQL on {node}"),
                None => "Every PostgreSQL".to_owned(),
            };
            format!("{what} is left alone: paused until {}.", pause.until)
        })
    }

    /// What is wrong with a PostgreSQL that runs: for a primary whatever a failover may come of, for a standby what keeps it
    /// from taking over.
    fn illness(&self, node: &NodeStatus) -> Option<String> {
        let health = &self.databases.get(&node.id)?.health;
        let how = match node.agent_type {
            AgentType::Primary => health.failure(Duration::ZERO),
            AgentType::Standby if !health.is_fit() => health.complaint(),
            _ => None,
        };
        Some(format!("PostgreSQL on {} {}.", node.name, how?))
    }

    /// EFM's rule: well only with all agents running, a primary and at least one standby, all
    /// databases up, and every standby at the primary's position.
    fn verdict(&self, nodes: &[NodeStatus]) -> (bool, Vec<String>) {
        let mut verdict = Vec::new();
        if let Some(why) = &self.picture.standing.failed {
            verdict.push(format!("Raft has stopped on {}: {why}.", self.api.config.node.name));
        }
        if self.picture.state.identity.is_none() {
            return (
                false,
                vec!["The cluster has not formed yet; the decision report says what is missing.".to_owned()],
            );
        }
        if let Some(change) = &self.picture.state.change {
            verdict.push(format!("A {} is in flight.", change.kind));
        }
        verdict.extend(self.paused_verdict());
        if !nodes.iter().any(|node| node.agent_type == AgentType::Primary) {
            verdict.push("There is no primary database in service.".to_owned());
        }
        // Whoever was invited is missed by nobody.
        let members = nodes.iter().filter(|node| !node.invited);
        for node in members.filter(|node| matches!(node.agent_type, AgentType::Down | AgentType::Idle)) {
            verdict.push(format!("{} is {}: {}.", node.name, node.agent_type, node.info));
        }
        verdict.extend(nodes.iter().filter_map(|node| self.illness(node)));
        for node in nodes.iter().filter(|node| node.agent_type == AgentType::Standby && !node.in_service) {
            verdict.push(format!("{} is out of service: {}.", node.name, node.info));
        }
        for node in
            nodes.iter().filter(|node| node.agent_type == AgentType::Standby && !self.follows(node.id))
        {
            let source = node.streams_from.as_ref().map_or("the primary".to_owned(), ToString::to_string);
            verdict.push(format!("{} does not stream from {source}.", node.name));
        }
        let DurabilityStatus { asked, standbys, settled, .. } = self.durability();
        if standbys < asked {
            verdict.push(format!("Commits wait for {standbys} standbys instead of {asked}."));
        } else if !settled {
            verdict.push(
                "Standbys have yet to have what commits wait for; if that lasts, compare postgres.password."
                    .to_owned(),
            );
        }
        verdict.extend(nodes.iter().flat_map(not_taken));
        for out in self.without_vote() {
            verdict.push(format!("{} has no vote: {}.", out.node, out.reason));
        }
        let standbys: Vec<_> = nodes.iter().filter(|node| node.agent_type == AgentType::Standby).collect();
        let behind: Vec<_> = standbys
            .iter()
            .filter(|node| node.lag_bytes != Some(0))
            .map(|node| match node.lag_bytes {
                Some(bytes) => format!("{} ({bytes} bytes behind)", node.name),
                None => format!("{} (position unknown)", node.name),
            })
            .collect();
        if standbys.is_empty() {
            verdict.push("No standby databases were found.".to_owned());
        } else if !behind.is_empty() {
            verdict.push(format!("One or more standby databases are not in sync: {}.", behind.join(", ")));
        } else if verdict.is_empty() {
            return (
                true,
                vec!["Standby databases are in sync with the primary. It is safe to promote.".to_owned()],
            );
        }
        (false, verdict)
    }
}

/// Values that were set cluster-wide and that a node runs without.
fn not_taken(node: &NodeStatus) -> impl Iterator<Item = String> + '_ {
    node.refused.iter().map(|what| format!("PostgreSQL on {} does not take {what}.", node.name))
}

fn database_state(kind: NodeKind, postgres: Option<&PostgresObservation>) -> DatabaseState {
    match (kind, postgres.map(|postgres| &postgres.state)) {
        (NodeKind::Witness, _) => DatabaseState::NotApplicable,
        (NodeKind::Database, None | Some(PostgresState::Unresponsive { .. })) => DatabaseState::Unknown,
        (NodeKind::Database, Some(PostgresState::Running(_))) => DatabaseState::Up,
        (
            NodeKind::Database,
            Some(PostgresState::Down(_) | PostgresState::Starting { .. } | PostgresState::Unusable(_)),
        ) => DatabaseState::Down,
    }
}
