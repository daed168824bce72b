//! The agent: watches one PostgreSQL, agrees with the other agents on who is primary, and acts on
//! what was agreed.
//!
//! Two pure machines hold the decisions: [`coordinator`] (cluster level; runs where raft leads and
//! may only propose commands to the log) and [`reconcile`] (node level; runs everywhere and may only
//! act on its own PostgreSQL, from committed state). [`driver`] is the one loop that feeds them and
//! carries out what they decide through the IO modules. See `docs/architecture.md`.

pub mod api;
mod app;
pub mod cli;
pub mod config;
pub mod consensus;
pub mod driver;
mod join;
mod memory;
pub mod peers;
pub mod postgres;
pub mod publish;

pub use app::{RunError, run};
pub use pgherd_core::{beat, cluster, coordinator, observation, reconcile};
