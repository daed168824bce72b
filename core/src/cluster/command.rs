//! What may be written to the log. A command carries what it was decided on (generation, node), and
//! is rejected when that is no longer so: a late or repeated command changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use pgherd_common::topology::ChangeKind;
use pgherd_common::{Generation, HostPort, Lsn, NodeId, NodeName, Timeline, WallTime};
use serde::{Deserialize, Serialize};

use super::slot_sync::SlotSync;
use super::state::{Change, ChangePhase, Descriptor, Identity, OldEnd, Service};
use crate::cover::SyncSet;
use crate::waterfall::Took;

/// A proposal to the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Forms the cluster around the one server that is already primary.
    Form {
        /// Taken from that server.
        identity: Identity,
        /// The primary of generation 1.
        primary: NodeId,
        /// Everybody.
        members: Vec<Descriptor>,
        /// Now.
        at: WallTime,
    },
    /// A member's own description is new or has changed.
    Register {
        /// What it says of itself.
        descriptor: Descriptor,
        /// Now.
        at: WallTime,
    },
    /// `add-node`: a node may introduce itself and become a member.
    Invite {
        /// Its number.
        id: NodeId,
        /// Its name.
        name: NodeName,
        /// Where its agent is reached.
        agent: HostPort,
        /// Now.
        at: WallTime,
    },
    /// `remove-node`: a member is to leave.
    Remove {
        /// Which.
        node: NodeId,
        /// Also while other voters are silent, and though nobody sees its PostgreSQL stop.
        force: bool,
        /// Now.
        at: WallTime,
    },
    /// Nothing rests on a member that leaves any more.
    Removed {
        /// Which.
        node: NodeId,
        /// Where the log has the beginning of its end.
        number: u64,
        /// Now.
        at: WallTime,
    },
    /// A member goes in or out of service.
    SetService {
        /// The generation this was observed under.
        generation: Generation,
        /// Which member.
        node: NodeId,
        /// Its new state.
        service: Service,
        /// Now.
        at: WallTime,
    },
    /// Begins a change of primary.
    Begin {
        /// The generation that is left.
        generation: Generation,
        /// Planned or not.
        kind: ChangeKind,
        /// The primary that is left.
        from: NodeId,
        /// The wanted successor, if one is wanted.
        to: Option<NodeId>,
        /// Why.
        reason: String,
        /// Whether an operator accepted the loss of transactions that no standby has.
        allow_data_loss: bool,
        /// Switchover: whether an operator accepted that transactions which do not end in time are ended.
        #[serde(default)]
        end_transactions: bool,
        /// Failover: for how many milliseconds the trouble has been seen.
        #[serde(default)]
        noticed_ms: u64,
        /// Switchover: the number of the schedule that it carries out.
        #[serde(default)]
        scheduled: Option<u64>,
        /// Now.
        at: WallTime,
    },
    /// `promote --at`: a switchover is to begin at a set time.
    Schedule {
        /// The generation this was asked for in.
        generation: Generation,
        /// When.
        due: WallTime,
        /// The primary that is to be left. If it is replaced before, the switchover is not wanted any more.
        from: NodeId,
        /// The wanted successor, if one is wanted.
        to: Option<NodeId>,
        /// Whether an operator accepted that transactions which do not end in time are ended.
        end_transactions: bool,
        /// Now.
        at: WallTime,
    },
    /// A scheduled switchover is not to begin any more.
    Unschedule {
        /// Of the schedule.
        number: u64,
        /// Why it was not done, for the history; `None`: an operator took it back.
        why: Option<String>,
        /// Now.
        at: WallTime,
    },
    /// `pause`: agents are to leave PostgreSQL alone until then.
    Pause {
        /// Which node's; `None`: everybody's.
        node: Option<NodeId>,
        /// Until when.
        until: WallTime,
        /// Now.
        at: WallTime,
    },
    /// A pause ends.
    Unpause {
        /// Which node's; `None`: the cluster's.
        node: Option<NodeId>,
        /// Only this pause, whose time is over; `None`: an operator ends whichever there is.
        number: Option<u64>,
    },
    /// `pg-set`: values of PostgreSQL's parameters, checked before.
    SetParameters {
        /// On which node; `None`: on all of them.
        node: Option<NodeId>,
        /// By name; `None`: the value is taken back.
        values: BTreeMap<String, Option<String>>,
        /// Who, as the command line told.
        by: String,
        /// Now.
        at: WallTime,
    },
    /// Switchover: the old primary has checkpointed; hold new work and stop it.
    Stop {
        /// Of the change.
        generation: Generation,
    },
    /// Gives the primary role of the change's generation to a node. Also how a change is rolled back:
    /// to the old primary.
    Grant {
        /// Of the change.
        generation: Generation,
        /// The new primary.
        node: NodeId,
        /// Up to where it has received.
        received: Lsn,
        /// Failover: how far the WAL of the primary before goes.
        #[serde(default)]
        old_end: Option<OldEnd>,
        /// What the new primary is to have commits wait for.
        #[serde(default)]
        cover: SyncSet,
        /// The role goes back to the old primary: why, where the change does not say so itself.
        #[serde(default)]
        rolled_back: Option<String>,
        /// Now.
        at: WallTime,
    },
    /// The primary of this generation is up, and commits there wait for standbys: they are to follow it now, clients
    /// later.
    Promoted {
        /// Its generation.
        generation: Generation,
        /// The timeline it writes.
        timeline: Timeline,
    },
    /// The primary of this generation accepts writes.
    Serve {
        /// Its generation.
        generation: Generation,
        /// The timeline it writes.
        timeline: Timeline,
        /// The first transaction of its own, as [`Running::first_xid`](crate::observation::Running::first_xid).
        #[serde(default)]
        first_xid: Option<u64>,
        /// How long it took to get there.
        #[serde(default)]
        took: Vec<Took>,
        /// Now.
        at: WallTime,
    },
    /// For the record, once the primary of this generation serves: the proxies know it, or a write was answered there.
    Published {
        /// Its generation.
        generation: Generation,
        /// Which of these, and how long it took. Each is recorded once.
        took: Took,
    },
    /// Gives up a switchover of which nothing irreversible has happened yet: the old primary was not stopped, and its
    /// agent is not about to.
    Abandon {
        /// Of the change.
        generation: Generation,
        /// The step in which that was decided: new work is held already.
        #[serde(default)]
        stopping: bool,
        /// Why.
        reason: String,
        /// Now.
        at: WallTime,
    },
    /// `attach` and `detach`: reads only.
    SetAttached {
        /// Which member.
        node: NodeId,
        /// In or out of rotation.
        attached: bool,
    },
    /// `set-priority`.
    SetPriority {
        /// Which member.
        node: NodeId,
        /// 1 first, 0 never.
        priority: u32,
    },
    /// `allow-node` and `disallow-node`.
    SetAllowed {
        /// Which member.
        node: NodeId,
        /// Whether it may be in service.
        allowed: bool,
        /// Now.
        at: WallTime,
    },
    /// `resume`: a failed member is to come back, now.
    Resume {
        /// Which member.
        node: NodeId,
        /// Now.
        at: WallTime,
    },
    /// One voter is to leave or to come: from now on the old voters and the new ones both count.
    PlanVoters {
        /// The generation this was decided in.
        generation: Generation,
        /// All voters to come.
        next: BTreeSet<NodeId>,
    },
    /// The plan is over: raft's voters have followed, and the primary has applied the plan.
    SettleVoters {
        /// The generation this was decided in.
        generation: Generation,
        /// The revision of the plan.
        planned: u64,
    },
    /// Commits are to wait for other standbys than before.
    WantCover {
        /// The generation this was decided in.
        generation: Generation,
        /// Which.
        set: SyncSet,
    },
    /// The primary waits for what is wanted, and all that was acknowledged before is on as many of them.
    SettleCover {
        /// The generation this was decided in.
        generation: Generation,
        /// Of the wish.
        number: u64,
    },
    /// A standby is to stream from another standby, or from the primary again.
    SetRelay {
        /// The generation this was decided in.
        generation: Generation,
        /// Which standby.
        node: NodeId,
        /// From which; `None`: from the primary.
        relay: Option<NodeId>,
    },
    /// Standbys are to keep copies of the primary's logical slots, or need not any more.
    SyncSlots {
        /// The generation this was decided in.
        generation: Generation,
        /// How; `None`: not at all.
        sync: Option<SlotSync>,
    },
    /// A node that lost its raft store, and has no vote any more, is to be fed again.
    Readmit {
        /// Which node.
        node: NodeId,
        /// The number of its new store.
        token: u64,
    },
}

impl Command {
    /// The change of primary that it begins, if it begins one.
    pub(super) fn begun(&self) -> Option<Change> {
        let Self::Begin {
            generation,
            kind,
            from,
            to,
            reason,
            allow_data_loss,
            end_transactions,
            noticed_ms,
            scheduled: _,
            at,
        } = self
        else {
            return None;
        };
        Some(Change {
            kind: *kind,
            from: *from,
            to: *to,
            before: None,
            generation: generation.next(),
            phase: match kind {
                ChangeKind::Failover => ChangePhase::Recruiting,
                ChangeKind::Switchover => ChangePhase::Preparing,
            },
            reason: reason.clone(),
            allow_data_loss: *allow_data_loss,
            end_transactions: *end_transactions,
            noticed_ms: *noticed_ms,
            begun: *at,
        })
    }
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Applied {
    /// It changed the state.
    Changed,
    /// The state already was what it asks for.
    Unchanged,
    /// Its precondition no longer holds.
    Rejected(Rejected),
}

/// Why a command was rejected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Rejected {
    /// The cluster exists.
    #[error("the cluster has already formed")]
    AlreadyFormed,
    /// The cluster does not exist yet.
    #[error("the cluster has not formed yet")]
    NotFormed,
    /// Decided on an older generation.
    #[error("it was decided in generation {decided}, but the cluster is in generation {current}")]
    Stale {
        /// What the command carries.
        decided: Generation,
        /// What is in force.
        current: Generation,
    },
    /// Nobody has this number.
    #[error("node {0} is not a member")]
    UnknownMember(NodeId),
    /// A witness has no PostgreSQL.
    #[error("node {0} is a witness: it has no database")]
    Witness(NodeId),
    /// Only one at a time.
    #[error("a {kind} to generation {generation} is already in flight")]
    ChangeInFlight {
        /// Planned or not.
        kind: ChangeKind,
        /// The one to come.
        generation: Generation,
    },
    /// There is none, or not of this generation.
    #[error("no change of primary to generation {0} is in flight")]
    NoSuchChange(Generation),
    /// The change is in another step.
    #[error("the change of primary is past that step")]
    WrongPhase,
    /// Not the primary.
    #[error("node {0} is not the primary")]
    NotPrimary(NodeId),
    /// The primary cannot be treated so.
    #[error("node {0} is the primary: switch over to another node first")]
    IsPrimary(NodeId),
    /// Only what serves can be switched over later.
    #[error("node {0} does not serve")]
    NotServing(NodeId),
    /// One at a time.
    #[error("a switchover is scheduled already, for {0}")]
    AlreadyScheduled(WallTime),
    /// It was taken back, or has begun.
    #[error("no switchover is scheduled")]
    NotScheduled,
    /// While PostgreSQL is left alone there, nobody could stop or promote it.
    #[error("{} is paused until {until}", spell_paused(*.node))]
    Paused {
        /// A node, or the cluster.
        node: Option<NodeId>,
        /// When that ends.
        until: WallTime,
    },
    /// It has ended, or never was.
    #[error("{} is not paused", spell_paused(*.0))]
    NotPaused(Option<NodeId>),
    /// Nothing to resume.
    #[error("node {0} has not failed")]
    NotFailed(NodeId),
    /// Resume or attach needs it allowed first.
    #[error("node {0} is not allowed: run allow-node first")]
    NotAllowed(NodeId),
    /// One at a time.
    #[error("another change of voters is in flight")]
    VotersChanging,
    /// No such change of voters.
    #[error("no change of voters planned at revision {0} is in flight")]
    NoSuchPlan(u64),
    /// One voter leaves or comes at a time, all are members, two stay, and the primary is one of them.
    #[error("these cannot be the next voters")]
    UnfitVoters,
    /// A primary without a vote could never hold its lease.
    #[error("node {0} has no vote: it cannot be primary before it has one again")]
    NotAVoter(NodeId),
    /// Something else is wanted by now.
    #[error("another set of standbys is to be waited for by now than at revision {0}")]
    CoverChanged(u64),
    /// A node that was not invited registers.
    #[error("node {0} was not invited: run `pgherd add-node` first")]
    NotInvited(NodeId),
    /// Something that each node has to itself.
    #[error("{0}")]
    Taken(String),
    /// Enough is enough.
    #[error(
        "a cluster has at most {} nodes, those that are invited included",
        super::ClusterState::MEMBERS_MAX
    )]
    TooManyMembers,
    /// It is on its way out.
    #[error("node {0} is being removed from the cluster")]
    Leaving(NodeId),
    /// Who is wanted as the next primary does not leave.
    #[error("a switchover to node {0} is scheduled")]
    ScheduledTo(NodeId),
    /// One voter alone decides nothing.
    #[error("without node {0} too few nodes would have a vote: nobody could replace a failed primary")]
    TooFewVoters(NodeId),
    /// It still has a vote, commits may still wait for it, or it is not to leave at all.
    #[error("node {0} has not left yet")]
    NotLeft(NodeId),
    /// Out of service, paused, or the primary.
    #[error("node {0} is no standby in service that others could stream from")]
    NotARelay(NodeId),
    /// WAL would go round.
    #[error("node {0} would stream from itself, by way of others")]
    Circle(NodeId),
    /// Whoever votes is not let in again: it never left.
    #[error("node {0} has a vote")]
    IsVoter(NodeId),
}

fn spell_paused(node: Option<NodeId>) -> String {
    node.map_or("the cluster".to_owned(), |node| format!("node {node}"))
}
