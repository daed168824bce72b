//! When to knock on the PostgreSQL of a primary whose agent is silent, and what was seen there.

use std::collections::BTreeMap;
use std::time::Duration;

use pgherd_common::{HostPort, MonoTime, NodeId};

use super::Node;
use crate::observation::{NodeObservation, RemoteDatabase};

/// Between two knocks.
const PAUSE: Duration = Duration::from_millis(300);

/// Who is being knocked on, and what was seen.
#[derive(Debug, Default)]
pub(super) struct Knocks {
    target: Option<NodeId>,
    in_flight: bool,
    last: Option<MonoTime>,
    seen: BTreeMap<NodeId, RemoteDatabase>,
}

impl Knocks {
    /// A knock has ended.
    pub(super) fn answered(&mut self, node: NodeId, result: RemoteDatabase) {
        self.in_flight = false;
        if self.target == Some(node) {
            self.seen.insert(node, result);
        }
    }

    /// What is known, for the beat.
    pub(super) fn results(&self) -> BTreeMap<NodeId, RemoteDatabase> {
        self.seen.clone()
    }

    /// Where to knock now, if it is time; forgets everything once nobody is silent.
    pub(super) fn turn(
        &mut self,
        target: Option<(NodeId, HostPort)>,
        now: MonoTime,
    ) -> Option<(NodeId, HostPort)> {
        if self.target != target.as_ref().map(|(node, _)| *node) {
            self.target = target.as_ref().map(|(node, _)| *node);
            self.seen.clear();
            self.last = None;
        }
        let due = !self.in_flight && self.last.is_none_or(|last| now.since(last) >= PAUSE);
        let target = target.filter(|_| due)?;
        self.in_flight = true;
        self.last = Some(now);
        Some(target)
    }
}

impl Node {
    /// Where to look at the primary's PostgreSQL over the network, while its agent is silent, or says
    /// itself that nothing runs under a lease: others may not hear it, and wait for this node's word.
    pub(super) fn knock(&mut self, now: MonoTime) -> Option<(NodeId, HostPort)> {
        let lease = self.setup.timings.lease;
        let primary = self.state.primary_member().filter(|member| member.descriptor.id != self.id());
        let heard = primary.and_then(|member| self.coordinator.seen().get(&member.descriptor.id));
        let silent = match heard {
            Some(seen) => now.since(seen.at) >= lease / 2 || has_given_up(&seen.observation),
            // After a power cut the primary's host may boot a little later than the others.
            None => now.since(self.started) >= self.terms.adoption(),
        };
        let target = primary
            .filter(|_| silent)
            .and_then(|member| Some((member.descriptor.id, member.descriptor.postgres.clone()?)));
        self.knocks.turn(target, now)
    }
}

/// Whether an agent says that it holds no lease and that its PostgreSQL is down.
fn has_given_up(said: &NodeObservation) -> bool {
    let down = said.postgres.as_ref().is_some_and(|postgres| postgres.stopped().is_some());
    down && said.lease_left_ms.is_none_or(|left| left == 0)
}
