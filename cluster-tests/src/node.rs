//! The parts of a running cluster.

use std::path::{Path, PathBuf};

use crate::daemon::Daemon;
use crate::network::Place;
use crate::postgres::PostgresServer;
use crate::process;

/// A server of the cluster: an agent, and a PostgreSQL unless it is a witness.
#[derive(Debug)]
pub struct Node {
    /// Its number.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Where it lives.
    pub place: Place,
    /// Its directory.
    pub dir: PathBuf,
    /// The port of its agent.
    pub agent_port: u16,
    /// Its agent.
    pub agent: Daemon,
    /// `None` on a witness.
    pub postgres: Option<PostgresServer>,
}

impl Node {
    /// `database` or `witness`.
    pub fn kind(&self) -> &'static str {
        if self.postgres.is_some() { "database" } else { "witness" }
    }

    /// `host:port` of its agent.
    pub fn agent_address(&self) -> String {
        format!("{}:{}", self.place.host, self.agent_port)
    }

    /// Where its agent answers.
    pub fn agent_url(&self) -> String {
        format!("http://{}", self.agent_address())
    }

    /// Every process of the node. Only where each node has a network namespace.
    pub fn processes(&self) -> Vec<u32> {
        self.place.netns.as_deref().map(process::in_netns).unwrap_or_default()
    }

    /// Its data directory; `None` on a witness.
    pub fn data_dir(&self) -> Option<&Path> {
        self.postgres.as_ref().map(|postgres| postgres.data_dir.as_path())
    }

    /// The process of its agent that does everything but guard; the agent itself is the guardian.
    pub fn worker(&self) -> Option<u32> {
        process::child_named(self.agent.pid()?, "pgherd-worker")
    }

    /// Its postmaster, while one runs.
    pub fn postmaster(&self) -> Option<u32> {
        self.data_dir().and_then(process::postmaster)
    }

    /// The processes that send its WAL to standbys.
    pub fn walsenders(&self) -> Vec<u32> {
        let children = self.postmaster().map(process::children).unwrap_or_default();
        children.into_iter().filter(|child| process::title(*child).contains("walsender")).collect()
    }
}

/// A proxy.
#[derive(Debug)]
pub struct Proxy {
    /// Its name.
    pub name: String,
    /// Where it lives.
    pub place: Place,
    /// Its port.
    pub port: u16,
    /// Its process.
    pub process: Daemon,
}
