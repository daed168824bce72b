//! A real primary with a standby, an agent that says what the test wants it to say, and a proxy between
//! them and the test.

#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test binary uses its own part of this")]

mod agent;
mod authority;
mod postgres;
mod proxy;
mod raw;
mod versions;

use std::time::Duration;

use pgherd_common::topology::{Availability, Backend, ChangeKind, Parts};
use pgherd_common::{Generation, NodeId, Topology, Version, WallTime};

pub use agent::Agent;
pub use authority::{Authority, Files, TestTls};
pub use postgres::{Access, Postgres, binaries};
pub use proxy::{Process, Proxy, psql, psql_at};
pub use raw::{Raw, message};
pub use versions::binaries_of;

/// Nothing in these tests takes longer unless it is broken.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Fails the test when `future` takes too long.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("took too long")
}

/// A port that nobody uses right now.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Writes topologies with ever newer versions.
pub struct Script {
    generation: Generation,
    revision: u64,
    backends: Vec<Backend>,
    primary: Option<NodeId>,
    first_xid: Option<u64>,
}

impl Script {
    /// The servers get the ids 1, 2, ... in order; the first is primary.
    pub fn new(servers: &[&Postgres]) -> Self {
        let backend = |(position, server): (usize, &&Postgres)| Backend {
            id: NodeId(position as u64 + 1),
            name: format!("server{}", position + 1).parse().unwrap(),
            address: server.address(),
            weight: 1,
            attached: true,
            availability: Availability::Up,
            changed: WallTime(1_795_422_667_123),
        };
        let backends = servers.iter().enumerate().map(backend).collect();
        let (generation, primary) = (Generation::ZERO.next(), Some(NodeId(1)));
        Self { generation, revision: 1, backends, primary, first_xid: None }
    }

    fn write(&mut self, change: Option<ChangeKind>) -> Topology {
        self.revision += 1;
        let parts = Parts {
            cluster: "demo".parse().unwrap(),
            version: Version { generation: self.generation, revision: self.revision },
            backends: self.backends.clone(),
            primary: self.primary,
            first_xid: self.first_xid,
            change,
        };
        Topology::new(parts).unwrap()
    }

    /// As things are.
    pub fn steady(&mut self) -> Topology {
        self.write(None)
    }

    /// A switchover begins: the primary still serves what it has.
    pub fn changing(&mut self) -> Topology {
        self.write(Some(ChangeKind::Switchover))
    }

    /// No primary.
    pub fn headless(&mut self) -> Topology {
        self.primary = None;
        self.write(Some(ChangeKind::Failover))
    }

    /// A new primary under a new generation.
    pub fn promoted(&mut self, id: u64) -> Topology {
        self.generation = self.generation.next();
        self.primary = Some(NodeId(id));
        self.write(None)
    }

    /// The same, and transactions from `first_xid` on are its own.
    pub fn promoted_at(&mut self, id: u64, first_xid: u64) -> Topology {
        self.first_xid = Some(first_xid);
        self.promoted(id)
    }

    /// A node goes down or comes back.
    pub fn set_up(&mut self, id: u64, up: bool) -> &mut Self {
        let backend = self.backends.iter_mut().find(|backend| backend.id == NodeId(id)).unwrap();
        backend.availability =
            if up { Availability::Up } else { Availability::Down { reason: "test".to_owned() } };
        self
    }
}
