//! Why the coordinator did or did not act: the answer to "why did it not fail over?".

use std::fmt;
use std::time::Duration;

use pgherd_common::topology::ChangeKind;
use pgherd_common::{NodeId, NodeName, WallTime};

use crate::waterfall::Step;

/// What one step concluded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// What is being done.
    pub doing: Vec<String>,
    /// What keeps it from going on.
    pub waiting: Vec<NotYet>,
    /// Steps of the change that have ended, now or earlier.
    pub(super) passed: Vec<Step>,
}

impl Report {
    /// One line each, what is being done first.
    pub fn lines(&self) -> Vec<String> {
        self.doing.iter().cloned().chain(self.waiting.iter().map(ToString::to_string)).collect()
    }

    /// Says why the voters stay as they are.
    pub(super) fn stay(&mut self, why: VotersStay) {
        self.waiting.push(NotYet::Voters(why));
    }
}

/// A reason not to act, or not yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotYet {
    /// Forming needs to have seen everybody.
    MembersUnseen(Vec<NodeId>),
    /// Forming needs to know what each server is.
    Unsettled(Vec<NodeName>),
    /// Forming needs exactly one primary.
    NoPrimaryToForm(Vec<NodeName>),
    /// Two servers would accept writes.
    SeveralPrimaries(Vec<NodeName>),
    /// A server of another database cluster.
    ForeignSystem {
        /// The stranger.
        node: NodeName,
        /// Its system identifier.
        found: u64,
        /// Everybody else's.
        expected: u64,
    },
    /// Physical replication needs one major version.
    MajorVersion {
        /// The odd one.
        node: NodeName,
        /// Its version.
        found: u32,
        /// Everybody else's.
        expected: u32,
    },
    /// Two agents call themselves the same.
    DuplicateName(NodeName),
    /// Failed, but failover is by hand.
    AutoFailoverOff(NodeName),
    /// The agent is silent, its database is not.
    Unguarded(NodeName),
    /// The cluster has just formed around a primary whose agent has fallen silent.
    NeverConfirmed(NodeName),
    /// Whoever has just begun to lead listens before it judges.
    Listening(NodeName),
    /// Nobody has knocked on the silent node's database yet.
    Unverified {
        /// The silent node.
        node: NodeName,
        /// Who has not knocked: they are about to, or still hear its agent.
        missing: Vec<NodeName>,
    },
    /// The silent node may be well, and with the agents that are not heard here.
    Minority {
        /// The silent node.
        node: NodeName,
        /// Voters that are heard, this one included, and how many are needed.
        heard: usize,
        /// A majority.
        needed: usize,
    },
    /// The old primary may still be writable.
    LeaseRunning {
        /// The old primary.
        node: NodeName,
        /// Voters whose promise has lapsed, and how many are needed.
        lapsed: usize,
        /// A majority.
        needed: usize,
        /// The longest promise heard of.
        left: Duration,
        /// Voters that say nothing, and so do not say that their promise has ended.
        unheard: Vec<NodeName>,
    },
    /// The text says what is wrong with the primary, and an operator wants it left alone.
    Paused {
        /// What would be done something about.
        trouble: String,
        /// When that ends.
        until: WallTime,
    },
    /// The primary is sick, and the text says how; what follows is why it stays.
    Sick(String),
    /// A failover would leave too few standbys.
    TooFewLeft {
        /// The failed primary.
        node: NodeName,
        /// How many standbys would be left.
        left: u32,
        /// How many there have to be.
        wanted: u32,
    },
    /// No standby can take over.
    NoCandidate {
        /// The failed primary.
        node: NodeName,
        /// Why not each of the others.
        rejected: Vec<String>,
    },
    /// Standbys still cut their walreceivers.
    Recruiting {
        /// Those that have.
        done: usize,
        /// Those that are expected to.
        expected: usize,
    },
    /// The best standby fetches what the old primary has left on its disk.
    Salvaging {
        /// The standby.
        node: NodeName,
        /// The old primary.
        from: NodeName,
        /// What it lacks.
        bytes: u64,
        /// For how long the change has waited.
        since: Duration,
    },
    /// The new primary's WAL is not yet where commits wait for it.
    Covering {
        /// The new primary.
        node: NodeName,
        /// For whom it waits.
        by: String,
        /// For how long.
        since: Duration,
    },
    /// Fewer standbys than commits are to wait for.
    TooFewStandbys {
        /// As many as are asked for.
        asked: u32,
        /// Those in service.
        up: Vec<NodeName>,
        /// Those that are never waited for, and why.
        never: Vec<String>,
        /// What that means for commits.
        so: &'static str,
    },
    /// A standby streams from the primary though another source is configured.
    Cascade {
        /// The standby.
        node: NodeName,
        /// Why not from there.
        why: String,
    },
    /// A switchover should have begun, and cannot.
    Scheduled {
        /// When it was to begin.
        due: WallTime,
        /// What is in its way.
        refused: String,
        /// After that time it is given up.
        left: Duration,
    },
    /// A node that is to be removed is still there.
    Leaving {
        /// Which.
        node: NodeName,
        /// What it waits for.
        what: String,
    },
    /// The voters stay as they are.
    Voters(VotersStay),
    /// A step of a change takes its time.
    Step {
        /// Planned or not.
        kind: ChangeKind,
        /// Which node works.
        node: NodeName,
        /// At what.
        what: &'static str,
        /// For how long.
        since: Duration,
    },
}

impl fmt::Display for NotYet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MembersUnseen(ids) => members_unseen(f, ids),
            Self::Unsettled(names) => write!(
                f,
                "the cluster has not formed: PostgreSQL on {} is neither up nor down; see the agent's log there",
                join(names)
            ),
            Self::NoPrimaryToForm(names) => write!(
                f,
                "the cluster has not formed: none of {} is a primary; start one of them without standby.signal",
                join(names)
            ),
            Self::SeveralPrimaries(names) => write!(
                f,
                "the cluster has not formed: {} are all primaries; rebuild all but one as standbys",
                join(names)
            ),
            Self::ForeignSystem { node, found, expected } => write!(
                f,
                "{node} holds another database (system identifier {found}, the cluster's is {expected}): \
                 rebuild it from the primary; it is left alone"
            ),
            Self::MajorVersion { node, found, expected } => write!(
                f,
                "{node} runs PostgreSQL {found}, the cluster runs {expected}: standbys need the primary's major version"
            ),
            Self::DuplicateName(name) => {
                write!(f, "two agents call themselves {name}: give one another name")
            }
            Self::AutoFailoverOff(name) => auto_failover_off(f, name),
            Self::Unguarded(name) => unguarded(f, name),
            Self::NeverConfirmed(name) => never_confirmed(f, name),
            Self::Listening(name) => {
                write!(f, "this agent has just begun to lead and has yet to hear from primary {name}")
            }
            Self::Unverified { node, missing } => unverified(f, node, &join(missing)),
            Self::Minority { node, heard, needed } => minority(f, node, *heard, *needed),
            Self::LeaseRunning { node, lapsed, needed, left, unheard } => {
                lease_running(f, node, (*lapsed, *needed), *left, &join(unheard))
            }
            Self::Paused { trouble, until } => {
                write!(f, "{trouble}; it is left alone: paused until {until} (`pgherd unpause` ends that)")
            }
            Self::Sick(reason) => {
                write!(f, "{reason}; it stays the primary until a standby that is well can take over")
            }
            Self::TooFewLeft { node, left, wanted } => too_few_left(f, node, *left, *wanted),
            Self::NoCandidate { node, rejected } => {
                write!(f, "no standby can take over from {node}: {}", rejected.join("; "))
            }
            Self::Recruiting { done, expected } => {
                write!(f, "{done} of {expected} standbys have cut their walreceivers")
            }
            Self::Salvaging { node, from, bytes, since } => salvaging(f, node, from, *bytes, *since),
            Self::Covering { node, by, since } => covering(f, node, by, *since),
            Self::TooFewStandbys { asked, up, never, so } => {
                too_few_standbys(f, *asked, &join(up), never, so)
            }
            Self::Cascade { node, why } => cascade(f, node, why),
            Self::Scheduled { due, refused, left } => scheduled(f, *due, refused, *left),
            Self::Leaving { node, what } => write!(f, "{node} is being removed: waiting for {what}"),
            Self::Voters(why) => why.fmt(f),
            Self::Step { kind, node, what, since } => {
                write!(f, "{kind}: waiting for {node} to {what} ({} ms so far)", since.as_millis())
            }
        }
    }
}

fn auto_failover_off(f: &mut fmt::Formatter<'_>, name: &NodeName) -> fmt::Result {
    write!(
        f,
        "primary {name} has failed, but automatic failover is off (failover.auto): run `pgherd promote`"
    )
}

fn members_unseen(f: &mut fmt::Formatter<'_>, ids: &[NodeId]) -> fmt::Result {
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    write!(f, "the cluster has not formed: waiting for the agents of nodes {}", ids.join(", "))
}

fn never_confirmed(f: &mut fmt::Formatter<'_>, name: &NodeName) -> fmt::Result {
    write!(
        f,
        "the cluster has just formed, but the agent of its primary {name} is silent: no failover before \
         it was heard once; start it, or run `pgherd promote`"
    )
}

fn too_few_left(f: &mut fmt::Formatter<'_>, node: &NodeName, left: u32, wanted: u32) -> fmt::Result {
    write!(
        f,
        "{node} has failed, and a failover would leave {left} standbys, fewer than failover.minimum_standbys ({wanted}): \
         bring one back, or run `pgherd promote`"
    )
}

fn unguarded(f: &mut fmt::Formatter<'_>, name: &NodeName) -> fmt::Result {
    write!(
        f,
        "the agent of primary {name} is silent but its database is in service: no failover; \
         the primary runs unguarded until its agent is started again"
    )
}

fn salvaging(
    f: &mut fmt::Formatter<'_>,
    node: &NodeName,
    from: &NodeName,
    bytes: u64,
    since: Duration,
) -> fmt::Result {
    let since = since.as_millis();
    write!(f, "{node} fetches {bytes} bytes of WAL that only the disk of {from} has ({since} ms so far)")
}

fn covering(f: &mut fmt::Formatter<'_>, node: &NodeName, by: &str, since: Duration) -> fmt::Result {
    let since = since.as_millis();
    write!(f, "{node} is up, and lets clients in once all it has is on {by} ({since} ms so far)")
}

fn cascade(f: &mut fmt::Formatter<'_>, node: &NodeName, why: &str) -> fmt::Result {
    write!(f, "{node} streams from the primary, not as its node.upstream says: {why}")
}

fn too_few_standbys(
    f: &mut fmt::Formatter<'_>,
    asked: u32,
    up: &str,
    never: &[String],
    so: &str,
) -> fmt::Result {
    let up = if up.is_empty() { "none" } else { up };
    write!(
        f,
        "commits are to wait for {asked} (failover.sync_standbys), and of the standbys that can be promoted {up} is in \
         service: {so}; bring the others back with `pgherd resume NODE`"
    )?;
    if never.is_empty() { Ok(()) } else { write!(f, "; never waited for: {}", never.join(", ")) }
}

fn scheduled(f: &mut fmt::Formatter<'_>, due: WallTime, refused: &str, left: Duration) -> fmt::Result {
    let left = left.as_secs();
    write!(f, "the switchover scheduled for {due} cannot begin: {refused}; it is given up in {left} s")
}

fn unverified(f: &mut fmt::Formatter<'_>, node: &NodeName, missing: &str) -> fmt::Result {
    write!(
        f,
        "the agent of primary {node} is silent here; its database is yet to be checked by {missing}, or its agent is \
         still heard there"
    )
}

fn lease_running(
    f: &mut fmt::Formatter<'_>,
    node: &NodeName,
    (lapsed, needed): (usize, usize),
    left: Duration,
    unheard: &str,
) -> fmt::Result {
    if left.is_zero() && !unheard.is_empty() {
        return write!(
            f,
            "{node} may be writable as far as anybody here can tell: {lapsed} of {needed} promises have ended, and \
             nothing is heard of {unheard}"
        );
    }
    let left = left.as_millis();
    write!(f, "{node} may be writable for another {left} ms: {lapsed} of {needed} promises have ended")
}

fn minority(f: &mut fmt::Formatter<'_>, node: &NodeName, heard: usize, needed: usize) -> fmt::Result {
    write!(
        f,
        "the agent of primary {node} is silent here, but only {heard} agents are heard and {needed} are needed: \
         {node} may be well on the other side of a cut network"
    )
}

/// Why a voter does not leave, or one that left has not come back yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VotersStay {
    /// More than one voter is lost or silent, the names say which: none of them leaves.
    SeveralLost(Vec<NodeName>),
    /// A voter is lost, but only two are left.
    LastVoters(NodeName),
    /// One of the last two voters has lost its raft store.
    NobodyReadmits(NodeName),
    /// A node is back but has no vote yet.
    Returning {
        /// Which.
        node: NodeName,
        /// How long it has yet to be heard without a break; zero when it only has to catch up.
        left: Duration,
    },
    /// The voters change as soon as the primary has applied that they do.
    PlanUnknown(NodeName),
}

impl fmt::Display for VotersStay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SeveralLost(names) => write!(
                f,
                "{} are silent or have lost their raft stores at the same time: that may be a cut in the network, so \
                 all keep their votes until only one of them is missing",
                join(names)
            ),
            Self::LastVoters(name) => write!(
                f,
                "{name} is lost, but of two voters none leaves: if the other one is lost as well, or is the primary \
                 and fails, an operator has to act"
            ),
            Self::NobodyReadmits(name) => write!(
                f,
                "the raft store of {name} was lost, and one other voter is no majority that could let it in again: \
                 form the cluster anew (docs/failover.md, \"When nobody can let a node in again\")"
            ),
            Self::Returning { node, left } if left.is_zero() => {
                write!(f, "{node} is back and gets its vote again once it has the whole log")
            }
            Self::Returning { node, left } => {
                write!(f, "{node} is back and gets its vote again after another {} ms", left.as_millis())
            }
            Self::PlanUnknown(name) => {
                write!(f, "the voters change: waiting for primary {name} to have heard of it")
            }
        }
    }
}

fn join(names: &[NodeName]) -> String {
    names.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ")
}
