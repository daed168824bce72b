//! Where this node stands in the group.

use std::collections::BTreeSet;

use openraft::errors::Fatal;
use openraft::{LogIdOptionExt, ServerState};
use pgherd_common::NodeId;
use pgherd_core::quorum::Admission;

use super::types::Metrics;

/// Where this node stands in the group, as far as it knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    /// Who leads. A leader that was cut off still names itself: see
    /// [`Consensus::quorum_acked`](super::Consensus::quorum_acked).
    pub leader: Option<NodeId>,
    /// The newest term this node has seen.
    pub term: u64,
    /// Whether this node leads.
    pub is_leader: bool,
    /// Whether this node leads and has applied an entry of its own term: from then on the applied
    /// state holds all that was committed before, and proposals are accepted.
    pub is_established: bool,
    /// Whether this node may become leader. False until it has been let into a group.
    pub is_voter: bool,
    /// Who votes. While raft changes its voters, both the old ones and the new ones.
    pub voters: BTreeSet<NodeId>,
    /// Who is fed the log without a vote.
    pub learners: BTreeSet<NodeId>,
    /// Whether no change of voters is in flight: `voters` is one set, and committed.
    pub settled: bool,
    /// What this node's word is worth.
    pub admission: Admission,
    /// Index of the last applied log entry; 0 when there is none.
    pub last_applied: u64,
    /// Whether this node belongs to a group that was formed.
    pub initialized: bool,
    /// Raft has stopped on this node, and why. Only a restart of the agent helps.
    pub failed: Option<String>,
}

impl Standing {
    pub(super) fn new(metrics: &Metrics, admission: Admission) -> Self {
        let term = metrics.current_term;
        let voters: BTreeSet<_> = metrics.membership_config.voter_ids().map(NodeId).collect();
        let membership = metrics.membership_config.membership();
        let running = metrics.running_state.is_ok();
        let is_leader = running && metrics.state == ServerState::Leader;
        Self {
            leader: metrics.current_leader.filter(|_| running).map(NodeId),
            term,
            is_leader,
            is_established: is_leader
                && metrics.last_applied.is_some_and(|applied| applied.leader_id.term == term),
            is_voter: voters.contains(&NodeId(metrics.id)),
            initialized: !voters.is_empty(),
            learners: membership.learner_ids().map(NodeId).collect(),
            settled: membership.get_joint_config().len() == 1
                && metrics.membership_config.log_id() == metrics.committed_membership_config.log_id(),
            voters,
            admission,
            last_applied: metrics.last_applied.index().unwrap_or(0),
            failed: match &metrics.running_state {
                Ok(()) | Err(Fatal::Stopped) => None,
                Err(fatal @ (Fatal::StorageError(_) | Fatal::Panicked)) => Some(fatal.to_string()),
            },
        }
    }
}
