//! What the operator's command line and the agent say to each other, as JSON over HTTP.
//!
//! | method and path | body | answer |
//! |---|---|---|
//! | `GET /v1/status` | | [`ClusterStatus`], all positions of one snapshot |
//! | `GET /v1/node` | | [`NodeStatus`] of the agent asked |
//! | `GET /v1/history` | | list of [`HistoryEntry`](crate::cluster::HistoryEntry) |
//! | `GET /v1/busy` | | [`Busy`], what runs on the PostgreSQL of the agent asked |
//! | `POST /v1/promote` | [`PromoteRequest`] | [`Accepted`] |
//! | `POST /v1/cancel-scheduled` | | [`Accepted`] |
//! | `POST /v1/resume`, `/v1/attach`, `/v1/detach`, `/v1/allow-node`, `/v1/disallow-node` | [`NodeRequest`] | [`Accepted`] |
//! | `POST /v1/rebuild` | [`RebuildRequest`] | [`Ordered`]; only the agent of the node itself takes it |
//! | `GET /v1/rebuild` | | [`WorkStatus`](crate::working::WorkStatus) of the agent asked |
//! | `POST /v1/stop-rebuild` | | [`Accepted`] |
//! | `POST /v1/add-node` | [`AddRequest`] | [`Accepted`] |
//! | `POST /v1/remove-node` | [`RemoveRequest`] | [`Accepted`] |
//! | `POST /v1/reset-members` | [`ResetRequest`] | [`Reset`] |
//! | `POST /v1/set-priority` | [`PriorityRequest`] | [`Accepted`] |
//! | `GET /v1/pending` | | [`Pending`], what a restart of the PostgreSQL of the agent asked would change |
//! | `GET /v1/capacity` | | [`Capacity`], what a restart of it would give it of what standbys need as much of |
//! | `GET /v1/parameters` | | [`ParametersStatus`] |
//! | `POST /v1/parameters` | [`SetParameters`] | [`Accepted`] |
//! | `POST /v1/check-parameters` | [`CheckParameters`] | [`Checked`] by the PostgreSQL of the agent asked |
//! | `GET /v1/parameters-here` | | [`ParametersHere`], of the agent asked |
//! | `GET /v1/versions` | | list of [`VersionStatus`] |
//! | `GET /v1/version-here` | | [`VersionHere`], of the agent asked |
//! | `POST /v1/restart` | [`RestartRequest`] | [`Accepted`], with a generation if it is the primary |
//! | `POST /v1/pause` | [`PauseRequest`] | [`Accepted`] |
//! | `POST /v1/unpause` | [`UnpauseRequest`] | [`Accepted`] |
//! | `POST /v1/stop-cluster` | | [`Accepted`] |
//!
//! A refusal is answered with status 409 (the cluster's state does not allow it), 404 (no such node),
//! 400 (not understood) or 503 (no leader, no majority) and a [`Refusal`]. Any agent may be asked:
//! what only the raft leader can do is passed on to it.

mod parameters;

use std::fmt;

use pgherd_common::topology::ChangeKind;
use pgherd_common::{ClusterName, Generation, HostPort, Lsn, NodeId, NodeName, Timeline, Version, WallTime};
use serde::{Deserialize, Serialize};

use crate::cluster::{NodeKind, Tags};

pub use crate::postgres::{ParameterHere, Pending, Standing};
pub use parameters::{
    CheckParameters, Checked, NodeParameters, OverrideStatus, ParameterOnNode, ParameterStatus,
    ParametersHere, ParametersStatus, SetParameters, VersionHere, VersionStatus,
};
pub use pgherd_core::capacity::Capacity;
pub use pgherd_core::rebuild::Means;

/// Everything `pgherd cluster-status` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The cluster's name.
    pub cluster: ClusterName,
    /// The agent that answered.
    pub answered_by: NodeName,
    /// PostgreSQL's system identifier, once the cluster has formed.
    #[serde(default)]
    pub system_identifier: Option<u64>,
    /// Whether the cluster has formed.
    pub formed: bool,
    /// Whether a failed primary is replaced without being asked.
    pub auto_failover: bool,
    /// On how many standbys commits are before they are acknowledged.
    pub durability: DurabilityStatus,
    /// The fencing number in force.
    pub generation: Generation,
    /// The raft leader: EFM's membership coordinator.
    pub leader: Option<NodeName>,
    /// Raft term.
    pub term: u64,
    /// How many voters there are, and how many of them this agent hears.
    pub voters: usize,
    /// Voters heard from within `node_timeout`, the answering agent included.
    pub voters_heard: usize,
    /// Who votes.
    pub voting: Vec<NodeName>,
    /// Members that do not, or that are about to leave, and why.
    pub without_vote: Vec<WithoutVote>,
    /// Who may be writable, and for how long if nothing renews it.
    pub lease: LeaseStatus,
    /// A change of primary in flight.
    pub change: Option<ChangeStatus>,
    /// A switchover that is to begin at a set time.
    pub scheduled: Option<ScheduledStatus>,
    /// What the agents leave alone for now, the whole cluster first.
    #[serde(default)]
    pub paused: Vec<PausedStatus>,
    /// All members by id.
    pub nodes: Vec<NodeStatus>,
    /// Members allowed in the cluster.
    pub allowed: Vec<NodeName>,
    /// Promotable standbys, the first one first.
    pub priority: Vec<NodeName>,
    /// Proxies connected to the answering agent.
    pub proxies: Vec<ProxyStatus>,
    /// Whether all is well: exit status 0.
    pub healthy: bool,
    /// The verdict, in sentences.
    pub verdict: Vec<String>,
    /// Why the raft leader did or did not act, from its last decision.
    pub report: Vec<String>,
}

/// For which standbys commits wait.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DurabilityStatus {
    /// For how many they are to wait: `failover.sync_standbys`; 0 where replication is asynchronous.
    pub asked: u32,
    /// For how many they wait.
    pub standbys: u32,
    /// Of which.
    pub of: Vec<NodeName>,
    /// Whether a failover may rest on that already.
    pub settled: bool,
}

/// Who may be writable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// The holder; `None` when nobody holds one.
    pub holder: Option<NodeName>,
    /// Milliseconds until it ends if it is not renewed, as the holder last told.
    pub left_ms: u64,
}

/// A member whose vote does not count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WithoutVote {
    /// Which.
    pub node: NodeName,
    /// Why.
    pub reason: String,
}

/// A change of primary in flight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeStatus {
    /// Planned or not.
    pub kind: ChangeKind,
    /// The primary that is left.
    pub from: NodeName,
    /// Its successor, once it is chosen.
    pub to: Option<NodeName>,
    /// `preparing`, `stopping`, `recruiting` or `granted`.
    pub phase: String,
    /// Why.
    pub reason: String,
}

/// A switchover that is to begin at a set time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduledStatus {
    /// When, in milliseconds since 1970.
    pub at: WallTime,
    /// Milliseconds until then, by the clock of the answering agent.
    pub left_ms: u64,
    /// The primary that is to be left.
    pub from: NodeName,
    /// The wanted new primary; the best standby when absent.
    pub to: Option<NodeName>,
    /// Whether transactions that do not end in time are to be ended.
    pub end_transactions: bool,
    /// Who would take over, were it to begin now.
    pub successor: Option<NodeName>,
    /// Why it would be refused, were it to begin now.
    pub obstacle: Option<String>,
}

/// What the agents leave alone for now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PausedStatus {
    /// A node; the whole cluster when absent.
    pub node: Option<NodeName>,
    /// When that ends by itself, in milliseconds since 1970.
    pub until: WallTime,
    /// Milliseconds until then, by the clock of the answering agent.
    pub left_ms: u64,
}

/// What an agent is to its cluster, in EFM's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentType {
    /// In charge of the primary.
    Primary,
    /// In charge of a standby.
    Standby,
    /// Without a database.
    Witness,
    /// Its database is being promoted.
    Promoting,
    /// Its database is out of service.
    Idle,
    /// The agent does not answer.
    #[serde(rename = "DOWN")]
    Down,
}

impl fmt::Display for AgentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Primary => "Primary",
            Self::Standby => "Standby",
            Self::Witness => "Witness",
            Self::Promoting => "Promoting",
            Self::Idle => "Idle",
            Self::Down => "DOWN",
        })
    }
}

/// The state of a database, in EFM's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum DatabaseState {
    /// Answers.
    Up,
    /// Does not run.
    Down,
    /// Nobody can tell.
    Unknown,
    /// There is none.
    #[serde(rename = "N/A")]
    NotApplicable,
}

impl fmt::Display for DatabaseState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Up => "UP",
            Self::Down => "DOWN",
            Self::Unknown => "UNKNOWN",
            Self::NotApplicable => "N/A",
        })
    }
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its number.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// With PostgreSQL or without.
    pub kind: NodeKind,
    /// Its role now.
    #[serde(rename = "type")]
    pub agent_type: AgentType,
    /// Where its agent listens.
    pub agent: HostPort,
    /// Where its PostgreSQL listens.
    pub postgres: Option<HostPort>,
    /// Its PostgreSQL.
    pub db: DatabaseState,
    /// The virtual IP it may hold.
    pub vip: Option<String>,
    /// Whether it holds it.
    pub vip_active: bool,
    /// Place in the promotion order: 1 first, 0 never.
    pub priority: u32,
    /// Share of reads.
    pub weight: u32,
    /// What it is good for.
    #[serde(default)]
    pub tags: Tags,
    /// The standby that it is to stream from, if it is not the primary.
    #[serde(default)]
    pub streams_from: Option<NodeName>,
    /// In the proxies' rotation unless detached.
    pub attached: bool,
    /// May be in service.
    pub allowed: bool,
    /// Timeline of its WAL.
    pub timeline: Option<Timeline>,
    /// Position received and flushed; empty for a primary.
    pub received: Option<Lsn>,
    /// Position replayed; the current one for a primary.
    pub replayed: Option<Lsn>,
    /// Bytes it has yet to replay.
    pub lag_bytes: Option<u64>,
    /// Whether it is in service.
    #[serde(default)]
    pub in_service: bool,
    /// It was invited by `add-node` and is no member yet.
    #[serde(default)]
    pub invited: bool,
    /// It is being removed.
    #[serde(default)]
    pub leaving: bool,
    /// Its postmaster, while there is one.
    #[serde(default)]
    pub pid: Option<u32>,
    /// Settings that take effect only with its next restart.
    #[serde(default)]
    pub pending_restart: Vec<String>,
    /// Those of them that are lowered and that standbys must have as much of as the primary.
    #[serde(default)]
    pub pending_lowered: Vec<String>,
    /// Values that were set cluster-wide and that its PostgreSQL did not take, and why.
    #[serde(default)]
    pub refused: Vec<String>,
    /// What is worth knowing: why it is out of service, the last error.
    pub info: String,
}

/// A proxy, as the answering agent knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyStatus {
    /// Its name.
    pub name: String,
    /// Where applications reach it.
    pub listen: HostPort,
    /// The newest topology it has put into effect.
    pub acknowledged: Option<Version>,
    /// Whether that is the newest there is.
    pub current: bool,
}

/// Body of `POST /v1/promote`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromoteRequest {
    /// Planned: stop the primary cleanly first, lose nothing. Otherwise promote come what may.
    pub switchover: bool,
    /// The wanted new primary; the best standby when absent.
    pub to: Option<NodeName>,
    /// Switchover: when it is to begin, in milliseconds since 1970; at once when absent.
    #[serde(default)]
    pub at: Option<WallTime>,
    /// Switchover: only say what it would do.
    #[serde(default)]
    pub explain: bool,
    /// Switchover: end transactions that do not end in time, rather than roll back.
    #[serde(default)]
    pub end_transactions: bool,
    /// By force: also where it is known that commits which were acknowledged may be lost.
    #[serde(default)]
    pub allow_data_loss: bool,
}

/// Answer to `GET /v1/busy`: what a switchover would have to wait for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Busy {
    /// Statements and transactions that run now.
    pub count: i64,
    /// The one that began first: whose it is, and how long it has run.
    pub oldest: String,
}

/// Body of the requests that name a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRequest {
    /// Which node.
    pub node: NodeName,
}

/// Body of `POST /v1/rebuild`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebuildRequest {
    /// Which node, so that no other one is rebuilt by mistake.
    pub node: NodeName,
    /// How.
    pub means: Means,
    /// Whom to copy; the best source when absent.
    pub from: Option<NodeName>,
    /// No more than so many bytes per second.
    pub rate: Option<u64>,
}

/// Answer to `POST /v1/rebuild`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ordered {
    /// What was begun, or goes on.
    pub message: String,
    /// Tells the order from others.
    pub number: u64,
}

/// Body of `POST /v1/add-node`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddRequest {
    /// Its number.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Where its agent is reached.
    pub agent: HostPort,
}

/// Body of `POST /v1/remove-node`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveRequest {
    /// Which node.
    pub node: NodeName,
    /// Also while other voters are silent, and though nobody sees its PostgreSQL stop.
    #[serde(default)]
    pub force: bool,
}

/// Body of `POST /v1/reset-members`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetRequest {
    /// Whom to forget: exactly those that an answer named before; when absent, they are only named.
    #[serde(default)]
    pub nodes: Option<Vec<NodeName>>,
}

/// Answer to `POST /v1/reset-members`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reset {
    /// Members whose agents are silent, and that are forgotten if that was asked for.
    pub nodes: Vec<NodeName>,
}

/// Body of `POST /v1/set-priority`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriorityRequest {
    /// Which node.
    pub node: NodeName,
    /// 1 first, 0 never.
    pub priority: u32,
}

/// Body of `POST /v1/restart`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartRequest {
    /// Which node's PostgreSQL.
    pub node: NodeName,
    /// The primary's: end transactions that do not end in time, rather than give up. A standby's are always ended.
    #[serde(default)]
    pub end_transactions: bool,
}

/// Body of `POST /v1/pause`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseRequest {
    /// Which node's PostgreSQL is to be left alone; everybody's when absent.
    pub node: Option<NodeName>,
    /// For how many milliseconds.
    pub for_ms: u64,
}

/// Body of `POST /v1/unpause`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpauseRequest {
    /// A node; the whole cluster when absent.
    pub node: Option<NodeName>,
}

/// A channel of notifications that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// Which.
    pub channel: String,
    /// Why it does not deliver; `None` if it does.
    pub error: Option<String>,
}

/// A request that was carried out or begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// What was done or begun.
    pub message: String,
    /// For `promote`: the generation to come. The change is over when the cluster's generation has
    /// reached it and no change is in flight, or the last history entry says it was rolled back.
    pub generation: Option<Generation>,
}

/// A request that was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What was refused and why.
    pub error: String,
    /// What to do next.
    pub hint: String,
}
