//! What a proxy needs to know of the cluster: who is primary, who can serve reads, since when.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{ClusterName, Generation, HostPort, NodeId, NodeName, WallTime};

/// Orders topologies. The generation comes first; the revision (the raft log index that made this
/// topology) orders the changes within it. Both only ever grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Version {
    /// The fencing number of the current primary, or of the last one.
    pub generation: Generation,
    /// Raft log index.
    pub revision: u64,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.generation, self.revision)
    }
}

/// Whether a database node can be used at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Availability {
    /// Running in its committed role.
    Up,
    /// Failed, removed or not yet in service; the text says why.
    Down {
        /// For people.
        reason: String,
    },
}

/// A database node as proxies see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// Member number.
    pub id: NodeId,
    /// Member name.
    pub name: NodeName,
    /// Where PostgreSQL listens.
    pub address: HostPort,
    /// Share of reads, relative to the other backends; 0 takes no reads while another can.
    pub weight: u32,
    /// False after `pgherd detach`: no reads, though the node still replicates.
    pub attached: bool,
    /// Usable or not.
    pub availability: Availability,
    /// When role or availability last changed.
    pub changed: WallTime,
}

impl Backend {
    /// Running and not detached.
    pub fn in_rotation(&self) -> bool {
        self.attached && self.availability == Availability::Up
    }
}

/// A change of primary in flight: proxies hold new work for the primary instead of failing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// Unplanned.
    Failover,
    /// Planned.
    Switchover,
}

impl fmt::Display for ChangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Failover => "failover",
            Self::Switchover => "switchover",
        })
    }
}

/// The cluster at one version. At most one primary, and that one is a member: [`Topology::new`]
/// makes no other, and decoding goes through it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Parts", into = "Parts")]
pub struct Topology {
    parts: Parts,
}

/// The fields of a [`Topology`], before they are checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// Whose topology this is.
    pub cluster: ClusterName,
    /// Orders this against others.
    pub version: Version,
    /// Database nodes in the order of their ids. Witnesses are not listed.
    pub backends: Vec<Backend>,
    /// The node that accepts writes now; `None` while there is none or it is not yet promoted.
    pub primary: Option<NodeId>,
    /// All transactions that the primary has from before its promotion have lower numbers than this, its own do not.
    /// `None` where that is not known, or it was not promoted in this generation.
    #[serde(default)]
    pub first_xid: Option<u64>,
    /// A change of primary in flight.
    pub change: Option<ChangeKind>,
}

/// A topology that contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTopology {
    /// The primary is not among the backends.
    #[error("topology {version} names node {primary} as primary, which is not one of its backends")]
    UnknownPrimary {
        /// Of the refused topology.
        version: Version,
        /// The stranger.
        primary: NodeId,
    },
    /// Ids must rise, which also keeps them unique.
    #[error("topology {version} lists backend {id} twice or out of order")]
    Unordered {
        /// Of the refused topology.
        version: Version,
        /// The first id that is not above the one before it.
        id: NodeId,
    },
}

impl Topology {
    /// Checks the parts against each other.
    pub fn new(parts: Parts) -> Result<Self, InvalidTopology> {
        let version = parts.version;
        let mut last = None;
        for backend in &parts.backends {
            if last.is_some_and(|last| last >= backend.id) {
                return Err(InvalidTopology::Unordered { version, id: backend.id });
            }
            last = Some(backend.id);
        }
        match parts.primary {
            Some(primary) if parts.backends.iter().all(|backend| backend.id != primary) => {
                Err(InvalidTopology::UnknownPrimary { version, primary })
            }
            _ => Ok(Self { parts }),
        }
    }

    /// Whose topology this is.
    pub fn cluster(&self) -> &ClusterName {
        &self.parts.cluster
    }

    /// Orders this against other topologies of the cluster.
    pub fn version(&self) -> Version {
        self.parts.version
    }

    /// Database nodes in the order of their ids.
    pub fn backends(&self) -> &[Backend] {
        &self.parts.backends
    }

    /// The backend with this id.
    pub fn backend(&self, id: NodeId) -> Option<&Backend> {
        self.parts.backends.iter().find(|backend| backend.id == id)
    }

    /// The node that accepts writes, if there is one now.
    pub fn primary(&self) -> Option<&Backend> {
        self.parts.primary.and_then(|id| self.backend(id))
    }

    /// The first transaction of the primary's own, see [`Parts::first_xid`].
    pub fn first_xid(&self) -> Option<u64> {
        self.parts.first_xid
    }

    /// A change of primary in flight.
    pub fn change(&self) -> Option<ChangeKind> {
        self.parts.change
    }
}

impl TryFrom<Parts> for Topology {
    type Error = InvalidTopology;

    fn try_from(parts: Parts) -> Result<Self, InvalidTopology> {
        Self::new(parts)
    }
}

impl From<Topology> for Parts {
    fn from(topology: Topology) -> Parts {
        topology.parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(id: u64) -> Backend {
        Backend {
            id: NodeId(id),
            name: format!("server{id}").parse().unwrap(),
            address: "10.0.0.1:5432".parse().unwrap(),
            weight: 1,
            attached: true,
            availability: Availability::Up,
            changed: WallTime(0),
        }
    }

    fn parts(backends: Vec<Backend>, primary: Option<u64>) -> Parts {
        Parts {
            cluster: "demo".parse().unwrap(),
            version: Version::default(),
            backends,
            primary: primary.map(NodeId),
            first_xid: None,
            change: None,
        }
    }

    #[test]
    fn the_primary_is_a_member() {
        let good = Topology::new(parts(vec![backend(1), backend(2)], Some(2))).unwrap();
        assert_eq!(good.primary().unwrap().name.as_str(), "server2");
        let error = Topology::new(parts(vec![backend(1)], Some(2))).unwrap_err();
        assert!(matches!(error, InvalidTopology::UnknownPrimary { .. }), "{error}");
        let error = Topology::new(parts(vec![backend(1), backend(1)], None)).unwrap_err();
        assert!(matches!(error, InvalidTopology::Unordered { .. }), "{error}");
    }

    #[test]
    fn decoding_checks_too() {
        let text = serde_json::to_string(&parts(vec![backend(1)], Some(9))).unwrap();
        assert!(serde_json::from_str::<Topology>(&text).unwrap_err().to_string().contains("node 9"));
    }

    #[test]
    fn the_generation_orders_before_the_revision() {
        let at = |generation: Generation, revision| Version { generation, revision };
        let first = Generation::ZERO.next();
        assert!(at(first.next(), 1) > at(first, 100));
        assert!(at(first, 2) > at(first, 1));
    }
}
