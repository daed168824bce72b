//! Maintenance: for how long the agents are to leave PostgreSQL alone, everywhere or on one node.

use std::collections::BTreeMap;

use pgherd_common::{NodeId, WallTime};
use serde::{Deserialize, Serialize};

use super::command::Rejected;
use super::state::{Change, ClusterState};

/// What is paused.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pauses {
    /// The whole cluster.
    pub cluster: Option<Pause>,
    /// Single nodes.
    pub nodes: BTreeMap<NodeId, Pause>,
}

/// Until when the agents start, stop and replace nothing by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// The log's entry that last set it. Its end is of that one only.
    pub number: u64,
    /// When an operator began it.
    pub since: WallTime,
    /// When it ends if nobody ends it before.
    pub until: WallTime,
}

impl Pauses {
    /// Of the cluster, or of one node.
    fn slot(&self, node: Option<NodeId>) -> Option<Pause> {
        match node {
            None => self.cluster,
            Some(node) => self.nodes.get(&node).copied(),
        }
    }

    fn set(&mut self, node: Option<NodeId>, pause: Option<Pause>) {
        match (node, pause) {
            (None, pause) => self.cluster = pause,
            (Some(node), Some(pause)) => {
                self.nodes.insert(node, pause);
            }
            (Some(node), None) => {
                self.nodes.remove(&node);
            }
        }
    }

    /// All of them: the cluster's first.
    pub fn iter(&self) -> impl Iterator<Item = (Option<NodeId>, Pause)> {
        let nodes = self.nodes.iter().map(|(node, pause)| (Some(*node), *pause));
        self.cluster.map(|pause| (None, pause)).into_iter().chain(nodes)
    }

    /// Until when this node's PostgreSQL is left alone: the longer of its own pause and the cluster's.
    pub fn of(&self, node: NodeId) -> Option<Pause> {
        let own = self.nodes.get(&node).copied();
        self.cluster.into_iter().chain(own).max_by_key(|pause| pause.until)
    }
}

/// Begins a pause, or sets another end to one.
pub(super) fn pause(
    state: &mut ClusterState,
    node: Option<NodeId>,
    (at, until): (WallTime, WallTime),
    number: u64,
) -> Result<bool, Rejected> {
    if state.identity.is_none() {
        return Err(Rejected::NotFormed);
    }
    if let Some(node) = node {
        let member = state.members.get(&node).ok_or(Rejected::UnknownMember(node))?;
        if !member.is_database() {
            return Err(Rejected::Witness(node));
        }
    }
    // What has begun needs every agent's hands until it is over.
    if let Some(change) = &state.change {
        return Err(Rejected::ChangeInFlight { kind: change.kind, generation: change.generation });
    }
    let known = state.pauses.slot(node);
    if known.is_some_and(|known| known.until == until) {
        return Ok(false);
    }
    let since = known.map_or(at, |known| known.since);
    state.pauses.set(node, Some(Pause { number, since, until }));
    Ok(true)
}

/// Ends a pause: this very one, or whichever there is.
pub(super) fn unpause(
    state: &mut ClusterState,
    node: Option<NodeId>,
    number: Option<u64>,
) -> Result<bool, Rejected> {
    let known = state.pauses.slot(node);
    if known.is_none_or(|known| number.is_some_and(|number| number != known.number)) {
        return Err(Rejected::NotPaused(node));
    }
    state.pauses.set(node, None);
    Ok(true)
}

/// Whether nobody is to leave or take the primary role now.
pub(super) fn check(state: &ClusterState, change: &Change) -> Result<(), Rejected> {
    let pauses = &state.pauses;
    let of_node = |node: NodeId| pauses.nodes.get(&node).map(|pause| (Some(node), *pause));
    let cluster = pauses.cluster.map(|pause| (None, pause));
    match cluster.or_else(|| of_node(change.from)).or_else(|| change.to.and_then(of_node)) {
        Some((node, pause)) => Err(Rejected::Paused { node, until: pause.until }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Option<NodeId> = Some(NodeId(1));

    #[test]
    fn the_longer_pause_counts() {
        let pause = |until| Pause { number: 1, since: WallTime(0), until: WallTime(until) };
        let mut pauses = Pauses::default();
        assert_eq!(pauses.of(NodeId(1)), None);
        pauses.set(ONE, Some(pause(20)));
        assert_eq!(pauses.of(NodeId(1)), Some(pause(20)));
        assert_eq!(pauses.of(NodeId(2)), None);
        pauses.set(None, Some(pause(10)));
        assert_eq!(pauses.of(NodeId(1)), Some(pause(20)));
        assert_eq!(pauses.of(NodeId(2)), Some(pause(10)));
        assert_eq!(pauses.iter().count(), 2);
    }
}
