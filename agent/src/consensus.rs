//! The replicated log: how the agents agree on one [`ClusterState`](crate::cluster::ClusterState).
//!
//! Decides nothing about PostgreSQL. It keeps the log and the vote on disk, carries raft's messages
//! between agents, and hands out the applied state. The raft library's names stop at this module's
//! border; all that leaves it is [`Consensus`], [`Standing`] and the error of each operation.

mod acks;
mod admission;
mod errors;
mod handle;
mod network;
mod options;
mod standing;
mod store;
mod types;

#[cfg(test)]
mod tests;

pub use errors::{AdmissionError, FormError, OpenError, ProposeError, RegroupError, TransferError};
pub use handle::{Consensus, Stored};
pub use options::Options;
pub use standing::Standing;
