//! The beat: what every agent says to every other agent a few times a second, and at once when
//! something happened. It carries the agent's observation and, from the primary's agent, asks for the
//! lease to be renewed.

use pgherd_common::{ClusterName, Generation, NodeId, WallTime};
use serde::{Deserialize, Serialize};

use crate::cluster::{Change, ChangePhase, ClusterState, Contact, Contacts, Descriptor};
use crate::observation::NodeObservation;
use pgherd_common::topology::ChangeKind;

/// Body of `POST /v1/beat`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// What the sender sees.
    pub observation: NodeObservation,
    /// The generation of which the sender holds, or wants to hold, the lease.
    pub wants_lease: Option<Generation>,
}

/// Answer to a beat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeatAnswer {
    /// The generation for which the lease is renewed by this voter.
    pub lease: Option<Generation>,
    /// The number of the raft store with which the log has let the asking node in again.
    pub readmitted: Option<u64>,
    /// The revision of the state that the answering agent has applied.
    #[serde(default)]
    pub revision: u64,
    /// When the asking node was removed from the cluster, if that state says so.
    #[serde(default)]
    pub removed: Option<WallTime>,
}

/// Body of `POST /v1/hello`, said once to every other member before an agent takes part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The cluster the sender is configured for.
    pub cluster: ClusterName,
    /// Who it is.
    pub descriptor: Descriptor,
    /// Its PostgreSQL's system identifier and major version.
    pub database: Option<(u64, u32)>,
}

/// Answer to a hello that was not refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Whether the answering agent is part of a raft group already.
    pub initialized: bool,
    /// Whether it is known that the answering agent's raft store has nothing to remember: a group may
    /// be formed with it.
    pub ready: bool,
    /// Whether the asking node is new, and was invited.
    #[serde(default)]
    pub invited: bool,
    /// The revision of the state that the answering agent has applied.
    #[serde(default)]
    pub revision: u64,
    /// Everybody who takes part, as far as the answering agent knows.
    #[serde(default)]
    pub roster: Contacts,
}

/// Whether a voter in this state renews the lease that `from` asks for. Once a failover is in the
/// log, the old primary's lease is only ever waited out.
pub fn grants_lease(state: &ClusterState, from: NodeId, wanted: Generation) -> bool {
    let given_up = state.change.as_ref().is_some_and(gives_up_primary);
    state.primary.is_some_and(|primary| primary.node == from) && state.generation == wanted && !given_up
}

/// Whether a change has given up the primary it leaves without that primary's doing.
pub fn gives_up_primary(change: &Change) -> bool {
    change.kind == ChangeKind::Failover && change.phase == ChangePhase::Recruiting
}

/// Why a newcomer must not take part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HelloRefused {
    /// It does not belong, as far as the answering agent knows.
    Stranger(String),
    /// It belongs, and is not what it should be.
    Unfit(String),
}

/// Why a newcomer must not take part, if it must not. `contact`: what the answering agent has for its number.
pub fn refuse_hello(
    hello: &Hello,
    cluster: &ClusterName,
    contact: Option<&Contact>,
    state: &ClusterState,
) -> Option<HelloRefused> {
    if hello.cluster != *cluster {
        return Some(HelloRefused::Unfit(format!("this is cluster {cluster}, not {}", hello.cluster)));
    }
    let Some(contact) = contact else { return Some(HelloRefused::Stranger(stranger(hello, state))) };
    let newcomer = &hello.descriptor;
    if contact.name != newcomer.name || contact.agent != newcomer.agent {
        let place = if state.identity.is_some() { "this cluster" } else { "this agent's [[members]]" };
        return Some(HelloRefused::Unfit(format!(
            "node {} is {} at {} in {place}, not {} at {}",
            newcomer.id, contact.name, contact.agent, newcomer.name, newcomer.agent
        )));
    }
    refuse_database(hello, state).map(HelloRefused::Unfit)
}

fn stranger(hello: &Hello, state: &ClusterState) -> String {
    let Descriptor { id, name, agent, .. } = &hello.descriptor;
    if state.identity.is_none() {
        return format!("node {id} ({name}) is not in this agent's [[members]]");
    }
    let add = format!("pgherd add-node {name} --id {id} --address {agent}");
    match state.removed.iter().rev().find(|removed| removed.id == *id || removed.name == *name) {
        Some(removed) => format!(
            "{} was removed from this cluster at {}: add it again with `{add}`, or remove its configuration",
            removed.name, removed.at
        ),
        None => format!("node {id} ({name}) is no member of this cluster: run `{add}` on a member first"),
    }
}

fn refuse_database(hello: &Hello, state: &ClusterState) -> Option<String> {
    let (identity, (system_identifier, major)) = (state.identity.as_ref()?, hello.database?);
    if identity.system_identifier != system_identifier {
        return Some(format!(
            "its PostgreSQL has system identifier {system_identifier}, the cluster's is {}: it holds another \
             database and must be rebuilt from the primary",
            identity.system_identifier
        ));
    }
    (identity.major != major)
        .then(|| format!("its PostgreSQL has major version {major}, the cluster's is {}", identity.major))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Command, apply};
    use crate::fixtures::*;

    #[test]
    fn a_stranger_is_told_which_command_is_missing_and_a_removed_node_since_when() {
        let mut state = ClusterState::default();
        let cluster: ClusterName = "demo".parse().unwrap();
        let hello = Hello { cluster: cluster.clone(), descriptor: descriptor(4), database: None };
        let told = |state: &ClusterState, contact: Option<&Contact>| {
            refuse_hello(&hello, &cluster, contact, state).map(|refused| match refused {
                HelloRefused::Stranger(why) | HelloRefused::Unfit(why) => why,
            })
        };
        let contact = Contact { name: "server4".parse().unwrap(), agent: "10.0.0.4:7800".parse().unwrap() };
        assert_eq!(told(&state, Some(&contact)), None);
        assert!(told(&state, None).unwrap().ends_with("is not in this agent's [[members]]"));
        let commands = [
            form(1, descriptors(3)),
            Command::Invite {
                id: NodeId(4),
                name: contact.name.clone(),
                agent: contact.agent.clone(),
                at: WallTime(2),
            },
            Command::Remove { node: NodeId(4), force: false, at: WallTime(1_780_000_000_000) },
        ];
        for (revision, command) in (1..).zip(&commands) {
            let known = told(&state, None).unwrap();
            let add = "run `pgherd add-node server4 --id 4 --address 10.0.0.4:7800` on a member first";
            assert!(revision == 1 || known.contains(add), "{known}");
            apply(&mut state, command, revision);
        }
        let known = told(&state, None).unwrap();
        assert!(known.starts_with("server4 was removed from this cluster at 2026-"), "{known}");
        let moved = Contact { agent: "10.0.0.9:7800".parse().unwrap(), ..contact };
        let known = told(&state, Some(&moved)).unwrap();
        assert_eq!(known, "node 4 is server4 at 10.0.0.9:7800 in this cluster, not server4 at 10.0.0.4:7800");
    }
}
