//! What the cluster has agreed on.

use std::collections::BTreeMap;
use std::fmt;

use pgherd_common::config::ConfigValue;
use pgherd_common::topology::{Availability, Backend, ChangeKind, InvalidTopology, Parts};
use pgherd_common::{
    ClusterName, Generation, HostPort, Lsn, NodeId, NodeName, Timeline, Topology, Version, WallTime,
};
use serde::{Deserialize, Serialize};
use toml::Value;

use super::membership::{Invited, Leaving, Removed};
use super::parameters::Parameters;
use super::pause::Pauses;
use super::schedule::Scheduled;
use super::slot_sync::SlotSync;
use super::tags::Tags;
use super::voters::LeaseVoters;
use crate::cover::Cover;
use crate::waterfall::Took;

/// The state machine behind the raft log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClusterState {
    /// Set once, when the cluster forms.
    pub identity: Option<Identity>,
    /// The fencing number in force.
    pub generation: Generation,
    /// Who is primary in this generation.
    pub primary: Option<Primary>,
    /// The change of primary in flight; at most one.
    pub change: Option<Change>,
    /// A switchover that is to begin at a set time; at most one.
    #[serde(default)]
    pub scheduled: Option<Scheduled>,
    /// What the agents are to leave alone for now.
    #[serde(default)]
    pub pauses: Pauses,
    /// What the cluster sets of PostgreSQL's configuration.
    #[serde(default)]
    pub parameters: Parameters,
    /// All members, witnesses included.
    pub members: BTreeMap<NodeId, Member>,
    /// Nodes that may become members.
    #[serde(default)]
    pub invited: BTreeMap<NodeId, Invited>,
    /// Nodes that do not belong any more, the last [`ClusterState::REMOVED_MAX`], oldest first.
    #[serde(default)]
    pub removed: Vec<Removed>,
    /// The members whose word counts for the lease.
    pub voters: LeaseVoters,
    /// The number of the newest raft store with which each node was let in again after it had lost the
    /// one before.
    pub readmitted: BTreeMap<NodeId, u64>,
    /// On how many standbys commits are before they are acknowledged.
    #[serde(default)]
    pub cover: Cover,
    /// Standbys that stream from another standby, by decision of the coordinator; see [`ClusterState::relay`].
    #[serde(default)]
    pub relays: BTreeMap<NodeId, NodeId>,
    /// In force while logical slots are to survive a failover.
    #[serde(default)]
    pub slot_sync: Option<SlotSync>,
    /// Past changes of primary, oldest first, the last [`ClusterState::HISTORY_MAX`].
    pub history: Vec<HistoryEntry>,
    /// Raft log index of the last command that changed anything.
    pub revision: u64,
}

/// What makes this cluster this cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its name.
    pub cluster: ClusterName,
    /// PostgreSQL's system identifier, the same on every database node.
    pub system_identifier: u64,
    /// PostgreSQL's major version, the same on every database node.
    pub major: u32,
}

/// The primary of the current generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Primary {
    /// Which node.
    pub node: NodeId,
    /// How far it is.
    pub phase: PrimaryPhase,
    /// The first transaction of its own, as [`Running::first_xid`](crate::observation::Running::first_xid); `None` also
    /// where the role has not moved.
    #[serde(default)]
    pub first_xid: Option<u64>,
}

/// How far the primary of this generation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrimaryPhase {
    /// Chosen; its agent promotes (or starts) PostgreSQL.
    Promoting,
    /// It is up, and lets no client in through a proxy before all that it has is on as many standbys as commits wait
    /// for.
    Covering {
        /// The timeline it writes.
        timeline: Timeline,
    },
    /// It accepts writes.
    Serving {
        /// The timeline it writes.
        timeline: Timeline,
    },
}

/// A change of primary in flight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Planned or not.
    pub kind: ChangeKind,
    /// The primary that is left.
    pub from: NodeId,
    /// The standby an operator named or a switchover chose; `None`: the best one is taken. The primary itself: it is only
    /// restarted.
    pub to: Option<NodeId>,
    /// The primary before `from`, if `from` never served: it has everything that was acknowledged.
    pub before: Option<NodeId>,
    /// The generation of the primary to come.
    pub generation: Generation,
    /// How far it is.
    pub phase: ChangePhase,
    /// Why it was begun.
    pub reason: String,
    /// Whether an operator accepted the loss of transactions that no standby has.
    pub allow_data_loss: bool,
    /// Switchover: whether an operator accepted that transactions which do not end in time are ended.
    #[serde(default)]
    pub end_transactions: bool,
    /// Failover: for how many milliseconds the trouble had been seen when it was begun.
    #[serde(default)]
    pub noticed_ms: u64,
    /// When it was begun.
    pub begun: WallTime,
}

impl Change {
    /// Whether it has to do with a node.
    pub fn mentions(&self, node: NodeId) -> bool {
        self.from == node || self.to == Some(node) || self.before == Some(node)
    }

    /// Whether the primary is only to be restarted, while new work is held.
    pub fn is_restart(&self) -> bool {
        self.kind == ChangeKind::Switchover && self.to == Some(self.from)
    }
}

/// The steps before a new primary is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangePhase {
    /// Switchover: the old primary checkpoints, so that its stop is quick. Nothing is held yet.
    Preparing,
    /// Switchover: proxies hold new work, the old primary stops.
    Stopping,
    /// Failover: standbys cut their walreceivers and report how much they have.
    Recruiting,
    /// The new primary was granted its generation and is coming up.
    Granted,
}

/// A member, as its own configuration describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Its number.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// With PostgreSQL or without.
    pub kind: NodeKind,
    /// Where other agents, proxies and operators reach its agent.
    pub agent: HostPort,
    /// Where applications reach its PostgreSQL; `None` for a witness.
    pub postgres: Option<HostPort>,
    /// Its configured place in the promotion order: 1 first, 0 never.
    pub priority: u32,
    /// Its configured share of reads.
    pub weight: u32,
    /// What it is good for.
    #[serde(default)]
    pub tags: Tags,
    /// The node it would rather stream from than from the primary.
    #[serde(default)]
    pub upstream: Option<NodeName>,
}

/// Database node or witness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    /// Runs PostgreSQL.
    Database,
    /// Votes only.
    Witness,
}

impl ConfigValue for NodeKind {
    const KIND: &'static str = "\"database\" or \"witness\"";

    fn from_value(value: &Value) -> Result<Self, String> {
        match value.as_str() {
            Some("database") => Ok(Self::Database),
            Some("witness") => Ok(Self::Witness),
            Some(_) | None => Err(format!("found {} {value}", value.type_str())),
        }
    }
}

/// A member, as the cluster has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its own description.
    pub descriptor: Descriptor,
    /// Set by `set-priority`; wins over the configured one.
    pub priority_override: Option<u32>,
    /// False after `detach`.
    pub attached: bool,
    /// False after `disallow-node`.
    pub allowed: bool,
    /// Whether it is in service.
    pub service: Service,
    /// It was the primary, a failover has replaced it, and it has not been in service since.
    #[serde(default)]
    pub replaced: bool,
    /// When `service` last changed.
    pub since: WallTime,
    /// It is on its way out of the cluster.
    #[serde(default)]
    pub leaving: Option<Leaving>,
}

impl Member {
    /// Its place in the promotion order: 1 first, 0 never.
    pub fn priority(&self) -> u32 {
        let priority = self.priority_override.unwrap_or(self.descriptor.priority);
        if self.descriptor.tags.promotable { priority } else { 0 }
    }

    /// Whether it may be in service, and be promoted.
    pub fn may_serve(&self) -> bool {
        self.allowed && self.leaving.is_none()
    }

    /// Whether it has a PostgreSQL.
    pub fn is_database(&self) -> bool {
        self.descriptor.kind == NodeKind::Database
    }
}

/// Whether a member is in service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Service {
    /// Known, and on its way (back) into service.
    Joining,
    /// In service in its role.
    Up,
    /// Out of service; the text says why.
    Failed(String),
}

/// A past change of primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// Planned or not; `None` for the forming of the cluster.
    pub kind: Option<ChangeKind>,
    /// The generation it made.
    pub generation: Generation,
    /// The primary before.
    pub from: Option<NodeName>,
    /// The primary after.
    pub to: NodeName,
    /// Why.
    pub reason: String,
    /// Begun.
    pub begun: WallTime,
    /// The new primary was chosen.
    pub granted: WallTime,
    /// The new primary accepted writes; `None` while it is coming up or when it never did.
    pub serving: Option<WallTime>,
    /// The timeline the new primary writes, once it is up.
    pub timeline: Option<Timeline>,
    /// The position up to which the new primary had received when it was chosen.
    pub received: Lsn,
    /// Failover: how far the WAL of the primary before goes. What lies behind `received` is lost.
    #[serde(default)]
    pub old_end: Option<OldEnd>,
    /// How long its steps took, as far as one node has led them.
    #[serde(default)]
    pub took: Vec<Took>,
    /// How it went.
    pub outcome: Outcome,
}

impl HistoryEntry {
    /// Whether it tells of the change that made this generation: what was given up, or never begun, has the generation
    /// that it left as it was.
    fn made(&self, generation: Generation) -> bool {
        self.generation == generation && (self.serving.is_some() || self.outcome == Outcome::InFlight)
    }
}

/// The end of the WAL of a primary that was replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OldEnd {
    /// Where.
    pub at: Lsn,
    /// Read from its disk; otherwise it is what was last heard, and there may be more.
    pub exact: bool,
    /// The new primary is known to have all that was acknowledged.
    #[serde(default)]
    pub covered: bool,
}

/// How a change of primary went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The new primary is coming up.
    InFlight,
    /// The new primary serves.
    Completed,
    /// Of a switchover, or a change that was given up: the old primary serves again.
    RolledBack,
    /// Of a failover: the old primary was started again, and serves.
    StartedInPlace,
    /// The chosen node failed before it served; the next entry tells what followed.
    Superseded,
    /// It was scheduled, and never begun.
    NotDone,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::InFlight => "in flight",
            Self::Completed => "completed",
            Self::RolledBack => "rolled back",
            Self::StartedInPlace => "started in place",
            Self::Superseded => "superseded",
            Self::NotDone => "not done",
        })
    }
}

impl ClusterState {
    /// Bound of `history`.
    pub const HISTORY_MAX: usize = 500;

    /// Lost nodes leave the voters down to so many: one voter alone would go on without anybody's
    /// knowing whether the others have gone on without it.
    pub const VOTERS_MIN: usize = 2;

    /// The primary that accepts writes, if there is one and no change has taken its place.
    pub fn serving(&self) -> Option<NodeId> {
        match self.primary {
            Some(Primary { node, phase: PrimaryPhase::Serving { .. }, .. }) => Some(node),
            Some(Primary { phase: PrimaryPhase::Promoting | PrimaryPhase::Covering { .. }, .. }) | None => {
                None
            }
        }
    }

    /// The primary that standbys are to stream from: one that serves, or will once they do.
    pub fn upstream(&self) -> Option<NodeId> {
        let primary = self.primary?;
        let lasts = match primary.phase {
            PrimaryPhase::Promoting => false,
            PrimaryPhase::Covering { .. } => {
                self.change.as_ref().is_some_and(|change| change.phase == ChangePhase::Granted)
            }
            PrimaryPhase::Serving { .. } => self.change.is_none(),
        };
        lasts.then_some(primary.node)
    }

    /// Adds to the history, and forgets what is too old.
    pub(super) fn record(&mut self, entry: HistoryEntry) {
        self.history.push(entry);
        let excess = self.history.len().saturating_sub(Self::HISTORY_MAX);
        self.history.drain(..excess);
    }

    /// What the history says of the change whose primary is yet to serve.
    pub(super) fn entry_in_flight(&mut self) -> Option<&mut HistoryEntry> {
        self.history.iter_mut().rev().find(|entry| entry.outcome == Outcome::InFlight)
    }

    /// Whether the cluster has formed around a primary that is yet to win its first lease.
    pub fn is_new(&self) -> bool {
        let promoting = self.primary.is_some_and(|primary| primary.phase == PrimaryPhase::Promoting);
        promoting && self.change.is_none()
    }

    /// What the history says of the change that made the present generation.
    pub fn present_entry(&self) -> Option<&HistoryEntry> {
        self.history.iter().rev().find(|entry| entry.made(self.generation))
    }

    /// The same, to be added to.
    pub(super) fn present_entry_mut(&mut self) -> Option<&mut HistoryEntry> {
        self.history.iter_mut().rev().find(|entry| entry.made(self.generation))
    }

    /// The newest timeline on which a primary has served, or was about to.
    pub fn served_timeline(&self) -> Option<Timeline> {
        self.history.iter().rev().find_map(|entry| entry.timeline)
    }

    /// The member that is primary, serving or not.
    pub fn primary_member(&self) -> Option<&Member> {
        self.primary.and_then(|primary| self.members.get(&primary.node))
    }

    /// A member by name.
    pub fn by_name(&self, name: &NodeName) -> Option<&Member> {
        self.members.values().find(|member| member.descriptor.name == *name)
    }

    /// Database members.
    pub fn databases(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|member| member.is_database())
    }

    /// Promotable standbys, best first: the order in which equals are promoted.
    pub fn promotion_order(&self) -> Vec<&Member> {
        let primary = self.primary.map(|primary| primary.node);
        let mut order: Vec<_> = self
            .databases()
            .filter(|member| {
                Some(member.descriptor.id) != primary && member.priority() > 0 && member.may_serve()
            })
            .collect();
        order.sort_by_key(|member| (member.priority(), member.descriptor.id));
        order
    }

    /// What proxies are told. `None` until the cluster has formed.
    pub fn topology(&self) -> Option<Result<Topology, InvalidTopology>> {
        let identity = self.identity.as_ref()?;
        // From the moment a change stops or gives up the old primary, nobody is to be written to.
        let held = self.change.as_ref().filter(|change| change.phase != ChangePhase::Preparing);
        let primary = if held.is_some() { None } else { self.serving() };
        let staying = self.databases().filter(|member| member.leaving.is_none());
        let backends = staying.filter_map(|member| self.backend(member)).collect();
        let first_xid = primary.and(self.primary).and_then(|primary| primary.first_xid);
        Some(Topology::new(Parts {
            cluster: identity.cluster.clone(),
            version: Version { generation: self.generation, revision: self.revision },
            backends,
            primary,
            first_xid,
            change: held.map(|change| change.kind),
        }))
    }

    fn backend(&self, member: &Member) -> Option<Backend> {
        let down = |reason: &str| Availability::Down { reason: reason.to_owned() };
        let availability = match &member.service {
            _ if !member.allowed => down("removed from the cluster by disallow-node"),
            Service::Up => Availability::Up,
            Service::Joining => down("joining"),
            Service::Failed(reason) => down(reason),
        };
        Some(Backend {
            id: member.descriptor.id,
            name: member.descriptor.name.clone(),
            address: member.descriptor.postgres.clone()?,
            weight: member.descriptor.weight,
            attached: member.attached && member.descriptor.tags.balance,
            availability,
            changed: member.since,
        })
    }
}
