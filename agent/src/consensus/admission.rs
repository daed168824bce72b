//! What this node's word is worth, durably: see [`Admission`].

use std::sync::Arc;

use openraft::LogIdOptionExt;
use pgherd_common::{ClusterName, NodeId};
use pgherd_core::quorum::Admission;
use tokio::sync::{Mutex, watch};

use super::errors::AdmissionError;
use super::store::Writer;
use super::types::{Metrics, Raft};
use crate::cluster::ClusterState;

/// Keeps it in the store's header.
#[derive(Debug, Clone)]
pub(super) struct Keeper {
    cluster: ClusterName,
    node: NodeId,
    now: Arc<watch::Sender<Admission>>,
    changing: Arc<Mutex<()>>,
    writer: Writer,
}

impl Keeper {
    pub(super) fn new(cluster: ClusterName, node: NodeId, now: Admission, writer: Writer) -> Self {
        Self { cluster, node, now: Arc::new(watch::Sender::new(now)), changing: Arc::default(), writer }
    }

    pub(super) fn now(&self) -> Admission {
        *self.now.borrow()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Admission> {
        self.now.subscribe()
    }

    /// On return it is on disk and in force. Does nothing unless `from` is in force: a word that comes
    /// late must not undo what followed. Returns whether it did anything.
    pub(super) async fn change(
        &self,
        raft: &Raft,
        from: Admission,
        to: Admission,
    ) -> Result<bool, AdmissionError> {
        let _one_at_a_time = self.changing.lock().await;
        if self.now() != from {
            return Ok(false);
        }
        self.writer.mark(self.cluster.clone(), self.node, to).await.map_err(AdmissionError)?;
        self.now.send_replace(to);
        raft.runtime_config().elect(to == Admission::Full);
        Ok(true)
    }
}

/// Whether a node that is fed again has learned that it votes again. `state` must be read before
/// `metrics`: what was applied up to there includes its readmission, and so every membership that it
/// shows is of a later time than its removal.
pub(super) fn is_voter_again(node: NodeId, token: u64, state: &ClusterState, metrics: &Metrics) -> bool {
    state.readmitted.get(&node) == Some(&token)
        && metrics.last_applied.index() >= Some(state.revision)
        && metrics.membership_config.voter_ids().any(|voter| voter == node.0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use openraft::entry::RaftEntry;
    use openraft::testing::{log_id, membership_ent};
    use openraft::{EntryPayload, StoredMembership};

    use super::*;
    use crate::consensus::types::{Entry, Group};

    /// What raft tells of a node that has applied up to `applied`, where the last voters it has heard of
    /// are these.
    fn metrics(applied: u64, voters: &[u64]) -> Metrics {
        let mut metrics = Metrics::new_initial(3);
        let sets = vec![voters.iter().copied().collect::<BTreeSet<u64>>()];
        let entry: Entry = membership_ent::<Group>(1, 1, 1, sets);
        let EntryPayload::Membership(membership) = &entry.payload else { unreachable!() };
        metrics.membership_config = Arc::new(StoredMembership::new(Some(entry.log_id()), membership.clone()));
        metrics.last_applied = Some(log_id::<Group>(1, 1, applied));
        metrics
    }

    #[test]
    fn a_node_votes_again_by_what_came_after_its_readmission_only() {
        let again = |state: &ClusterState, metrics: &Metrics| is_voter_again(NodeId(3), 5, state, metrics);
        let past = ClusterState { revision: 4, ..ClusterState::default() };
        assert!(!again(&past, &metrics(4, &[1, 2, 3])), "the first entries call it a voter");
        let mut state = ClusterState { revision: 9, ..ClusterState::default() };
        state.readmitted.insert(NodeId(3), 4);
        assert!(!again(&state, &metrics(9, &[1, 2, 3])), "that was the store before");
        state.readmitted.insert(NodeId(3), 5);
        assert!(!again(&state, &metrics(8, &[1, 2, 3])), "raft's word is older than the state");
        assert!(!again(&state, &metrics(9, &[1, 2])), "it has no vote yet");
        assert!(again(&state, &metrics(9, &[1, 2, 3])));
    }
}
