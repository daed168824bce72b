//! Where the proxy learns what the cluster looks like: one link to every agent. The first news wins, and
//! the last topology stays in effect when all links are down.

mod batches;
mod cluster;
mod first_write;
mod link;
mod votes;

pub(crate) use cluster::{Cluster, Counts, LinkState, lock};
pub(crate) use link::keep_link;
