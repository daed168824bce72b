//! Whole clusters on one machine: real PostgreSQL servers, real agents, a real proxy, on loopback or
//! with a network namespace for each server. The demo and the tests share this.
//!
//! It sees the cluster as an operator does, through programs, files and ports: it depends on neither
//! the agent's nor the proxy's code. Whatever it starts is registered with the [`undertaker`] first, so
//! nothing outlives the process that holds a [`Cluster`], however that process ends.

mod application;
pub mod bench;
pub mod binaries;
pub mod builder;
pub mod campaign;
pub mod cgroup;
pub mod cluster;
pub mod config_files;
pub mod daemon;
pub mod descriptor;
pub mod desk;
pub mod difffuzz;
pub mod disk;
pub mod drivers;
pub mod failure;
pub mod install;
pub mod logs;
pub mod network;
pub mod newcomer;
pub mod node;
pub mod postgres;
pub mod process;
pub mod receiver;
pub mod regress;
pub mod stale;
pub mod status;
pub mod subscriber;
pub mod terminal;
pub mod undertaker;
pub mod versions;
pub mod vip;
pub mod wait;
pub mod watchdog;
pub mod workload;

pub use builder::{Builder, StartError};
pub use cluster::Cluster;
pub use failure::{Failure, TestResult};
pub use node::{Node, Proxy};
pub use status::Status;
pub use wait::{NotReached, never, wait_until};
