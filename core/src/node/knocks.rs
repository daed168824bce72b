//! When to knock on the PostgreSQL of a primary whose agent is silent, and what was seen there.

use std::collections::BTreeMap;
use std::time::Duration;

use pgherd_common::{HostPort, MonoTime, NodeId};

use crate::observation::RemoteDatabase;

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
