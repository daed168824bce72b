//! The agent: watches one PostgreSQL, agrees with the other agents on who is primary, and acts on
//! what was agreed.
//!
//! Two pure machines hold the decisions: [`coordinator`] (cluster level; runs where raft leads and
//! may only propose commands to the log) and [`reconcile`] (node level; runs everywhere and may only
//! act on its own PostgreSQL, from committed state). [`driver`] is the one loop that feeds them and
//! carries out what they decide through the IO modules. An agent is two processes: a [`guardian`], which
//! fences PostgreSQL even when all the rest has failed, and a [`worker`], which is all the rest. See `docs/architecture.md`.

mod address;
pub mod api;
mod app;
pub mod cli;
pub mod config;
pub mod consensus;
pub mod driver;
pub mod guardian;
mod join;
mod logging;
mod memory;
mod notify;
mod orders;
mod parameters;
pub mod peers;
pub mod postgres;
mod proof;
pub mod publish;
pub mod roster;
mod scripts;
mod sole;
pub mod worker;
pub mod working;

pub use pgherd_core::{beat, cluster, coordinator, observation, reconcile, salvage};
