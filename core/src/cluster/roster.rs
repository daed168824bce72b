//! Who takes part, and where each one's agent is reached.

use std::collections::BTreeMap;

use pgherd_common::{HostPort, NodeId, NodeName};
use serde::{Deserialize, Serialize};

use super::state::ClusterState;

/// How a node is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    /// Its name.
    pub name: NodeName,
    /// Its agent.
    pub agent: HostPort,
}

/// How each node is reached.
pub type Contacts = BTreeMap<NodeId, Contact>;

/// Everybody who takes part. Before the cluster has formed, that is who is configured. Afterwards it is who is in the log,
/// member or invited; where the configuration lists the same node its address wins, since that is what an operator edits.
pub fn roster(configured: &Contacts, state: &ClusterState) -> Contacts {
    if state.identity.is_none() {
        return configured.clone();
    }
    let ids = state.members.keys().chain(state.invited.keys());
    ids.filter_map(|id| Some((*id, contact(configured, state, *id)?))).collect()
}

/// How one of them is reached; `None` if it takes no part.
pub fn contact(configured: &Contacts, state: &ClusterState, id: NodeId) -> Option<Contact> {
    let configured = configured.get(&id);
    if state.identity.is_none() {
        return configured.cloned();
    }
    let member = state.members.get(&id).map(|member| &member.descriptor);
    let member = member.map(|descriptor| (&descriptor.name, &descriptor.agent));
    let known = member.or_else(|| state.invited.get(&id).map(|invited| (&invited.name, &invited.agent)));
    let (name, agent) = known?;
    let edited = configured.filter(|contact| contact.name == *name).map(|contact| &contact.agent);
    Some(Contact { name: name.clone(), agent: edited.unwrap_or(agent).clone() })
}
