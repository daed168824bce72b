//! What agents and proxies say to each other over the push link, a WebSocket that the proxy opens to
//! every agent it knows (`GET /v1/push`). `docs/push-protocol.md` tells the rules.
//!
//! The proxy says [`ToAgent::Hello`] first. The agent answers with the whole topology, then sends it
//! again, whole, at every change: each message stands alone, so that a lost one does no harm and an
//! older one is simply refused. Every agent pushes what it applied, so the first news wins and the
//! loss of any agent delays nothing.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{ClusterName, Generation, HostPort, Lsn, NodeId, Topology, Version};

/// Version of this protocol. Both sides refuse another major number.
pub const PROTOCOL: u32 = 3;

/// The path of the push link on an agent's port.
pub const PATH: &str = "/v1/push";

/// A first write that took longer to come says nothing of a change of primary, and is not told.
pub const FIRST_WRITE_MAX: Duration = Duration::from_secs(60);

/// From an agent to a proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToProxy {
    /// The whole truth at one version. Acknowledged with [`ToAgent::Ack`] once it is in effect.
    Reset(Topology),
    /// How things are, as this agent sees them. Not ordered, not acknowledged.
    Status(Status),
    /// How many sessions would not outlive a change of primary? Answered with [`ToAgent::Unmovable`].
    CountUnmovable,
    /// The answer to [`ToAgent::WantAddress`].
    Address {
        /// Of the question.
        round: u64,
        /// The proxy has this voter's word.
        granted: bool,
        /// Whose.
        voter: NodeId,
        /// Of how many voters it needs a majority.
        voters: usize,
        /// For how many milliseconds it may count on the word, from when it asked.
        hold_ms: u64,
    },
    /// The link will be closed; the text says why (wrong cluster, unknown protocol).
    Goodbye(String),
}

/// From a proxy to an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToAgent {
    /// Opens the link.
    Hello {
        /// [`PROTOCOL`].
        protocol: u32,
        /// The cluster the proxy is configured for.
        cluster: ClusterName,
        /// The proxy's name, unique among proxies.
        proxy: String,
        /// Where applications reach it.
        listen: HostPort,
        /// The same for what runs on the same network stack, different for any other; for nothing but comparison.
        #[serde(default)]
        machine: String,
    },
    /// So many sessions have something that only their connection to the primary has.
    Unmovable {
        /// How many.
        sessions: u32,
        /// One of them, for people.
        example: Option<String>,
    },
    /// A write was answered by the primary of this generation, for the first time through this proxy.
    FirstWrite {
        /// Of that primary.
        generation: Generation,
        /// So many milliseconds after the proxy knew it.
        after_ms: u64,
    },
    /// The proxy would have, or keep, the proxies' virtual IP. Answered with [`ToProxy::Address`].
    WantAddress {
        /// Rises with every question.
        round: u64,
        /// The lowest first, 0 never.
        priority: u32,
    },
    /// The proxy has given that address up, and ends.
    GaveUpAddress,
    /// New transactions follow the topology of this version from now on.
    Ack(Version),
    /// An older topology than the one in effect was refused.
    Refused {
        /// What was pushed.
        pushed: Version,
        /// What is in effect.
        have: Version,
    },
}

/// How things are, as one agent sees them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Status {
    /// For how many milliseconds more the agent counts as backed by a quorum of voters, should it hear
    /// none of them again. 0: it may be cut off, and the primary it knows may have been replaced.
    pub backed_ms: u64,
    /// Replication on each backend.
    pub backends: Vec<BackendStatus>,
}

/// Replication as observed on one backend. Ages instead of times: clocks are not compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Which backend.
    pub id: NodeId,
    /// Milliseconds since the observation was made.
    pub age_ms: u64,
    /// `pg_is_in_recovery()`; `None` when the server did not answer.
    pub in_recovery: Option<bool>,
    /// Current position of a primary, replayed position of a standby.
    pub position: Option<Lsn>,
    /// Bytes of WAL a standby has yet to replay, against the newest known position of the primary.
    pub lag_bytes: Option<u64>,
    /// `pg_stat_replication.state` on the primary, for a standby.
    pub replication_state: Option<String>,
    /// `pg_stat_replication.sync_state` on the primary, for a standby.
    pub sync_state: Option<String>,
}

/// Bytes on the wire that are not a message of this protocol.
#[derive(Debug, thiserror::Error)]
#[error("not a message of push protocol {PROTOCOL}")]
pub struct InvalidMessage(#[source] serde_json::Error);

macro_rules! wire {
    ($name:ident) => {
        impl $name {
            /// As the text of one WebSocket message.
            pub fn encode(&self) -> String {
                // Plain data without maps or floats: encoding has no way to fail.
                serde_json::to_string(self).unwrap_or_default()
            }

            /// From the text of one WebSocket message.
            pub fn decode(text: &str) -> Result<Self, InvalidMessage> {
                serde_json::from_str(text).map_err(InvalidMessage)
            }
        }
    };
}
wire!(ToProxy);
wire!(ToAgent);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Parts;

    #[test]
    fn messages_survive_the_wire() {
        let version = Version { generation: Generation::ZERO.next(), revision: 7 };
        let parts = Parts {
            cluster: "demo".parse().unwrap(),
            version,
            backends: vec![],
            primary: None,
            first_xid: None,
            change: Some(crate::topology::ChangeKind::Failover),
        };
        let reset = ToProxy::Reset(Topology::new(parts).unwrap());
        assert_eq!(ToProxy::decode(&reset.encode()).unwrap(), reset);
        let ack = ToAgent::Ack(version);
        assert_eq!(ToAgent::decode(&ack.encode()).unwrap(), ack);
        let wrote = ToAgent::FirstWrite { generation: version.generation, after_ms: 12 };
        assert_eq!(wrote.encode(), r#"{"first_write":{"generation":1,"after_ms":12}}"#);
        assert_eq!(ToAgent::decode(&wrote.encode()).unwrap(), wrote);
        assert!(ToProxy::decode("{\"reset\":1}").is_err());
    }
}
