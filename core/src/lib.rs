//! What an agent decides. Pure: no clock, no randomness, no sockets, no files, no threads; time is an
//! argument. That is what lets the simulator run the very same code for years of cluster time.
//!
//! Two machines hold the decisions: [`coordinator`] (cluster level; runs where raft leads and may
//! only propose commands to the log) and [`reconcile`] (node level; runs everywhere and may only act
//! on its own PostgreSQL, from committed state). [`cluster`] is what the log means, [`observation`]
//! and [`beat`] are what agents see and tell each other, [`health`] says when a server that answers has
//! failed all the same, [`cover`] what synchronous replication makes sure of, [`timings`] holds every period and deadline.
//! [`guardian`] is what stands behind an agent that crashes or hangs, [`events`] what people are told, and
//! [`proxy_address`] says which proxy has the proxies' virtual IP. [`parameters`] says what of PostgreSQL's configuration the
//! cluster may set, [`capacity`] what of it a standby needs.

pub mod beat;
pub mod capacity;
pub mod cluster;
pub mod coordinator;
pub mod cover;
pub mod defect;
pub mod events;
#[cfg(test)]
mod fixtures;
pub mod guardian;
pub mod health;
pub mod node;
pub mod observation;
pub mod parameters;
pub mod proxy_address;
pub mod quorum;
pub mod rebuild;
pub mod reconcile;
pub mod salvage;
pub mod timings;
pub mod waterfall;
