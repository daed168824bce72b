//! Cascades: standbys that stream from another standby.
//!
//! Who may stream from whom is decided by the coordinator and is in the log, so every agent knows it of every node. A relay
//! counts only while it is in service; without it, and behind every change of primary, a standby streams from the primary.

use std::collections::BTreeSet;

use pgherd_common::NodeId;

use super::command::Rejected;
use super::state::{ClusterState, Member, Service};
use crate::observation::Running;

impl ClusterState {
    /// The standby that this one is to stream from; `None`: the primary.
    pub fn relay(&self, node: NodeId) -> Option<NodeId> {
        self.relays.get(&node).copied().filter(|relay| self.may_relay(*relay))
    }

    /// Whether others may stream from this standby.
    pub fn may_relay(&self, node: NodeId) -> bool {
        let is_primary = self.primary.is_some_and(|primary| primary.node == node);
        let paused = self.pauses.nodes.contains_key(&node);
        let fit = |member: &Member| member.is_database() && member.allowed && member.service == Service::Up;
        !is_primary && !paused && self.members.get(&node).is_some_and(fit)
    }

    /// Whether a standby streams from where it should. One that has not left the primary yet is well, too.
    pub fn is_fed(&self, node: NodeId, running: &Running) -> bool {
        let primary = self.primary.map(|primary| primary.node);
        let sources = [self.relay(node), primary].into_iter().flatten();
        let mut addresses =
            sources.filter_map(|source| self.members.get(&source)?.descriptor.postgres.as_ref());
        running.is_streaming() && addresses.any(|address| running.follows.as_ref() == Some(address))
    }

    /// Whether a member's configuration has it stream from this primary; also where it names nobody who could be streamed
    /// from.
    pub fn is_direct(&self, member: &Member, primary: NodeId) -> bool {
        let upstream = member.descriptor.upstream.as_ref().and_then(|name| self.by_name(name));
        upstream.is_none_or(|upstream| !upstream.is_database() || upstream.descriptor.id == primary)
    }
}

/// `relay`: a standby that `node` is to stream from, or the primary again.
pub(super) fn set_relay(
    state: &mut ClusterState,
    node: NodeId,
    relay: Option<NodeId>,
) -> Result<bool, Rejected> {
    let member = state.members.get(&node).ok_or(Rejected::UnknownMember(node))?;
    if !member.is_database() {
        return Err(Rejected::Witness(node));
    }
    let Some(relay) = relay else { return Ok(state.relays.remove(&node).is_some()) };
    if let Some(change) = &state.change {
        return Err(Rejected::ChangeInFlight { kind: change.kind, generation: change.generation });
    }
    if state.primary.is_some_and(|primary| primary.node == node) {
        return Err(Rejected::IsPrimary(node));
    }
    if !state.may_relay(relay) {
        return Err(Rejected::NotARelay(relay));
    }
    let mut passed = BTreeSet::from([node]);
    let mut next = Some(relay);
    while let Some(at) = next {
        if !passed.insert(at) {
            return Err(Rejected::Circle(node));
        }
        // Also one that does not count now: it may again.
        next = state.relays.get(&at).copied();
    }
    Ok(state.relays.insert(node, relay) != Some(relay))
}

/// Nobody streams from a standby that went out of service before the coordinator has looked at it again.
pub(super) fn left_service(state: &mut ClusterState, node: NodeId) {
    state.relays.retain(|_, relay| *relay != node);
}
