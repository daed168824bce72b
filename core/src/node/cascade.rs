//! What is heard of others that matters to the slots here.

use std::collections::BTreeMap;
use std::time::Duration;

use pgherd_common::{Lsn, MonoTime, NodeId};

use super::Node;

impl Node {
    /// For how long the agent of the primary has been silent, if there is one.
    pub(super) fn unheard_for(&self, now: MonoTime) -> Duration {
        let Some(primary) = self.state.upstream() else { return Duration::ZERO };
        let heard = self.coordinator.seen().get(&primary).map_or(self.started, |seen| seen.at);
        now.since(heard)
    }

    /// What standbys have received that stream from another one.
    pub(super) fn cascaded(&self, now: MonoTime) -> BTreeMap<NodeId, Lsn> {
        let relayed = self.state.relays.keys().filter(|node| self.state.relay(**node).is_some());
        let received = |node: &NodeId| {
            let running = self.heard(*node, now)?.observation.postgres.as_ref()?.running()?;
            running.in_recovery.then_some((*node, running.received))
        };
        relayed.filter_map(received).collect()
    }
}
