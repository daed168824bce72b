//! Whose answers renew the lease, and whose lapsed promises free the way for a successor.
//!
//! They are part of the replicated state, apart from raft's own membership: a primary that lags behind
//! the log must never count its lease by a set that no successor has to ask any more. Every change of
//! the set is planned first, which makes both sides count by the old *and* the new set, and is settled
//! only once the primary is known to have applied the plan. So a primary is at most one step behind the
//! leader, or one ahead where it applies an entry first, and two neighbouring steps share a set in
//! which the holder's group and the successor's have a voter in common.

use std::collections::BTreeSet;

use pgherd_common::NodeId;
use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LeaseVoters {
    /// The voters in force. Empty until the cluster has formed.
    pub current: BTreeSet<NodeId>,
    /// The set that is to follow.
    pub plan: Option<VoterPlan>,
}

/// A change of voters in flight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoterPlan {
    /// The voters to come: one more or one fewer.
    pub next: BTreeSet<NodeId>,
    /// Where the log has the plan.
    pub revision: u64,
}

impl LeaseVoters {
    /// Only these, and no change in flight.
    pub fn only(current: BTreeSet<NodeId>) -> Self {
        Self { current, plan: None }
    }

    /// The sets that count now: the current one and, while a change is in flight, the next.
    pub fn sets(&self) -> impl Iterator<Item = &BTreeSet<NodeId>> {
        std::iter::once(&self.current).chain(self.plan.as_ref().map(|plan| &plan.next))
    }

    /// Whether a node votes in every set that counts.
    pub fn contains(&self, node: NodeId) -> bool {
        self.sets().all(|set| set.contains(&node))
    }

    /// Whether a node votes in any set that counts.
    pub fn mentions(&self, node: NodeId) -> bool {
        self.sets().any(|set| set.contains(&node))
    }

    /// What raft's voters are to be.
    pub fn target(&self) -> &BTreeSet<NodeId> {
        self.plan.as_ref().map_or(&self.current, |plan| &plan.next)
    }

    /// Whether a new primary may be chosen when exactly these have no promise left.
    pub fn allow_successor(&self, lapsed: &BTreeSet<NodeId>) -> bool {
        self.sets().all(|set| set.intersection(lapsed).count() >= majority(set.len()))
    }
}

/// More than half.
pub fn majority(voters: usize) -> usize {
    voters / 2 + 1
}
