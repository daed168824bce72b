//! What the agent and the proxy must agree on: names, WAL positions, generations, the topology and
//! the messages that carry it, time, and the way configuration is read and refused.
//!
//! Deliberately absent: async runtimes, raft, sockets. Everything here is plain data and pure
//! functions, but for one file: `time/real.rs` reads the machine's clocks.

pub mod config;
pub mod errors;
pub mod generation;
pub mod id;
pub mod push;
pub mod time;
pub mod topology;
pub mod wal;

pub use generation::Generation;
pub use id::{ClusterName, HostPort, NodeId, NodeName};
pub use time::{Clock, MonoTime, WallTime};
pub use topology::{Topology, Version};
pub use wal::{Lsn, Timeline};
