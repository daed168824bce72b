//! The beat: what every agent says to every other agent a few times a second, and at once when
//! something happened. It carries the agent's observation and, from the primary's agent, asks for the
//! lease to be renewed.

use pgherd_common::{ClusterName, Generation, NodeId};
use serde::{Deserialize, Serialize};

use crate::cluster::{Change, ChangePhase, ClusterState, Descriptor};
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

/// Why a newcomer must not take part, if it must not.
pub fn refuse_hello(
    hello: &Hello,
    cluster: &ClusterName,
    configured: Option<(&pgherd_common::NodeName, &pgherd_common::HostPort)>,
    state: &ClusterState,
) -> Option<String> {
    let newcomer = &hello.descriptor;
    if hello.cluster != *cluster {
        return Some(format!("this is cluster {cluster}, not {}", hello.cluster));
    }
    let Some((name, agent)) = configured else {
        return Some(format!("node {} ({}) is not in this agent's [[members]]", newcomer.id, newcomer.name));
    };
    if *name != newcomer.name || *agent != newcomer.agent {
        return Some(format!(
            "node {} is {name} at {agent} in this agent's [[members]], not {} at {}",
            newcomer.id, newcomer.name, newcomer.agent
        ));
    }
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
