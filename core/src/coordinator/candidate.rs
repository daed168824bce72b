//! Which standby takes over.

use std::cmp::Reverse;

use pgherd_common::{Generation, Lsn, NodeId, Timeline};

use super::view::View;
use crate::cluster::Member;
use crate::defect::{Defect, planted};

/// A standby's claim, in the order of what counts: the newest timeline (a short history of a later
/// primary beats a long one of an earlier), then what is safely on disk, then a disk that is well, then
/// how much of it is yet to be replayed, roughly, then the operator's order, then the number, so that no two are
/// ever equal. The greatest wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    timeline: Timeline,
    received: Lsn,
    fit: bool,
    backlog: Reverse<u64>,
    priority: Reverse<u32>,
    id: Reverse<NodeId>,
}

impl Rank {
    pub(super) fn node(self) -> NodeId {
        self.id.0
    }

    /// The order among those that have everything, a disk that is well before the operator's: the least comes first.
    pub(super) fn preference(self) -> (bool, u32, NodeId) {
        (!self.fit, self.priority.0, self.id.0)
    }

    pub(super) fn timeline(self) -> Timeline {
        self.timeline
    }

    pub(super) fn received(self) -> Lsn {
        self.received
    }
}

/// Whose turn it is does not depend on a few records more or less that are yet to be replayed.
const BACKLOG_STEP: u64 = 16 << 20;

/// Why a member cannot take over.
pub(super) type Rejection = String;

impl View<'_> {
    /// The claim of a member, or why it has none. `asked`: an operator named it, so its priority 0
    /// does not stand in the way.
    pub(super) fn rank(&self, member: &Member, asked: bool) -> Result<Rank, Rejection> {
        let id = member.descriptor.id;
        let name = &member.descriptor.name;
        if !member.allowed {
            return Err(format!("{name} is not allowed (allow-node)"));
        }
        if member.leaving.is_some() {
            return Err(format!("{name} is being removed (remove-node)"));
        }
        if self.state.pauses.nodes.contains_key(&id) {
            return Err(format!("{name} is paused (unpause)"));
        }
        if !member.descriptor.tags.promotable && !asked {
            return Err(format!("{name} is tagged promotable = false"));
        }
        if member.priority() == 0 && !asked {
            return Err(format!("{name} has priority 0"));
        }
        self.check_vote(member)?;
        let Some(observation) = self.postgres(id) else {
            return Err(format!("the agent of {name} is silent"));
        };
        let identity = self.state.identity.as_ref();
        if identity.is_some_and(|identity| identity.system_identifier != observation.system_identifier) {
            return Err(format!("{name} holds another database"));
        }
        let Some(running) = observation.running() else {
            return Err(format!("PostgreSQL on {name} does not run"));
        };
        if !running.in_recovery {
            return Err(format!("{name} is not a standby"));
        }
        if let Some(served) = self.state.served_timeline().filter(|served| running.timeline > *served) {
            return Err(format!(
                "{name} is on timeline {}, but the cluster has only come to {served}: it was promoted by hand, or never \
                 served, and has to be rewound",
                running.timeline
            ));
        }
        Ok(Rank {
            timeline: if planted(Defect::LongestWalWins) { Timeline(u32::MAX) } else { running.timeline },
            received: running.received,
            fit: observation.health.is_fit(),
            backlog: Reverse(running.received.bytes_since(running.position) / BACKLOG_STEP),
            priority: Reverse(member.priority()),
            id: Reverse(id),
        })
    }

    /// The claims of all standbys but `from`, and why the others have none.
    pub(super) fn ranks(&self, from: NodeId, wanted: Option<NodeId>) -> (Vec<Rank>, Vec<Rejection>) {
        let (mut ranks, mut rejected) = (Vec::new(), Vec::new());
        let others = self.state.databases().filter(|member| {
            member.descriptor.id != from && wanted.is_none_or(|wanted| wanted == member.descriptor.id)
        });
        for member in others {
            match self.rank(member, wanted.is_some()) {
                Ok(rank) => ranks.push(rank),
                Err(reason) => rejected.push(reason),
            }
        }
        ranks.sort_unstable_by(|a, b| b.cmp(a));
        (ranks, rejected)
    }

    /// Whether a standby has been recruited for this generation, and nobody has pointed it at a primary
    /// again since.
    pub(super) fn is_recruited(&self, id: NodeId, generation: Generation) -> bool {
        let cut = self.running(id).is_some_and(|running| running.receiver.is_none());
        cut && self.postgres(id).is_some_and(|postgres| postgres.recruited == Some(generation))
    }

    /// Refuses a claim that lies further behind the lost primary than the configuration allows, and one
    /// that lacks the last primary's timeline altogether: a promotion would give that timeline's number to
    /// another history, and PostgreSQL tells histories apart by nothing else.
    pub(super) fn within_lag(&self, rank: Rank, from: NodeId) -> Result<(), Rejection> {
        let newest = self.state.served_timeline().unwrap_or(Timeline(0));
        if rank.timeline < newest {
            return Err(format!(
                "{} has never followed the last primary: it is on timeline {}, that one wrote timeline {newest}",
                self.name(rank.node()),
                rank.timeline
            ));
        }
        let behind = self.last_primary_position(from).map_or(0, |last| last.bytes_since(rank.received));
        // Where commits wait for standbys, what is acknowledged counts, not what was written.
        let counts = self.policy.max_lag > 0 && self.state.cover.promised.is_none();
        if counts && behind > self.policy.max_lag {
            return Err(format!(
                "{} is {behind} bytes behind the last known position of the primary, more than failover.max_lag ({})",
                self.name(rank.node()),
                self.policy.max_lag
            ));
        }
        Ok(())
    }
}
