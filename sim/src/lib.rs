//! Whole clusters in a model world, years of them: the agents' and proxies' own decisions, run against
//! machines, disks, networks and clocks that fail in every way a seed can think of.
//!
//! [`world`] is the model, [`invariants`] is what must never happen in it, [`run`] makes a run out of a
//! seed. No real time, no threads inside a run, no randomness but the seed's: every run can be repeated.

#![expect(
    clippy::indexing_slicing,
    reason = "machines are numbered once and for all; a wrong number is a bug"
)]

pub mod clock;
pub mod invariants;
pub mod log;
pub mod network;
pub mod postgres;
pub mod raft;
pub mod rng;
pub mod run;
pub mod scenario;
pub mod world;
