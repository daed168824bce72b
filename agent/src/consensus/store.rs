//! The node's memory: vote, log, applied state and snapshot, in one file.
//!
//! Everything is read into memory when the store opens and served from there; every change goes
//! through one writer thread that reports it done only once it is on disk. The store never decides
//! what to write, and never repairs a damaged file by forgetting: it refuses to open it.

mod file;
mod log;
mod machine;
mod writer;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use pgherd_common::{ClusterName, NodeId};
use pgherd_core::quorum::Admission;
use tokio::sync::watch;

pub(super) use self::log::LogStore;
pub(super) use self::machine::Machine;
pub(super) use self::writer::Writer;
use super::errors::OpenError;
use crate::cluster::ClusterState;

/// An open store, as the parts that the raft library takes.
pub(super) struct Store {
    pub(super) log: LogStore,
    pub(super) machine: Machine,
    /// The applied state, from what the disk has on.
    pub(super) state: watch::Receiver<Arc<ClusterState>>,
    pub(super) writer: Writer,
    /// What this node's word is worth.
    pub(super) admission: Admission,
}

impl Store {
    /// Whether there is one in `dir`.
    pub(super) fn exists(dir: &Path) -> bool {
        dir.join(file::FILE_NAME).exists()
    }

    /// Opens or creates the store in `dir`; a new one is marked with `admission`. Blocks on the disk.
    pub(super) fn open(
        dir: &Path,
        cluster: &ClusterName,
        node: NodeId,
        admission: Admission,
    ) -> Result<Self, OpenError> {
        let header = file::Header::new(cluster.clone(), node, admission);
        let (database, loaded) = file::open(dir, &header)?;
        let writer = Writer::spawn(database)
            .map_err(|source| OpenError::Io { path: dir.join(file::FILE_NAME), source })?;
        let (machine, state) = Machine::new(loaded.applied, loaded.snapshot, writer.clone());
        let log = LogStore::new(loaded.log, writer.clone());
        Ok(Self { log, machine, state, writer, admission: loaded.admission })
    }
}
