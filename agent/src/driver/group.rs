//! Changes of raft's group, and of its leader.

use std::time::Duration;

use pgherd_common::NodeId;

use super::{Driver, Event, PROPOSAL_PAUSE};
use crate::coordinator::Action;

impl Driver {
    /// Comes back as an event. What fails at once would be asked for anew at once.
    pub(super) fn regroup(&self, wanted: Action) {
        let (consensus, events) = (self.parts.consensus.clone(), self.parts.events.clone());
        tokio::spawn(async move {
            let result = match wanted {
                Action::ChangeVoters(voters) => consensus.change_voters(&voters).await,
                Action::AddLearner(node, agent) => consensus.add_learner(node, &agent).await,
                Action::DropNode(node) => consensus.drop_node(node).await,
                Action::Propose(_) | Action::TransferLeadership(_) => Ok(()),
            };
            let pause = if result.is_err() { PROPOSAL_PAUSE } else { Duration::ZERO };
            tokio::time::sleep(pause).await;
            // The loop may have ended.
            let _ = events.send(Event::Regrouped(result)).await;
        });
    }

    pub(super) fn transfer_leadership(&self, to: NodeId) {
        let consensus = self.parts.consensus.clone();
        tokio::spawn(async move {
            if let Err(error) = consensus.transfer_leadership(to).await {
                tracing::info!("could not hand the raft leadership to node {to}: {error}");
            }
        });
    }
}
