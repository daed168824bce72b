//! Raft's messages, as HTTP requests between agents.
//!
//! Every request says which cluster and node it comes from and which node it is for; the receiver
//! refuses what is not meant for it (`server`). Each request has a deadline, so a host that vanished
//! costs one deadline and its connection, no more.

mod client;
mod links;
mod server;

pub(super) use client::Peers;
use serde::{Deserialize, Serialize};
pub(super) use server::routes;

use super::types::{SnapshotMeta, Vote};
use crate::cluster::ClusterState;

const CLUSTER_HEADER: &str = "x-pgherd-cluster";
const NODE_HEADER: &str = "x-pgherd-node";
const TO_HEADER: &str = "x-pgherd-to";

const VOTE_PATH: &str = "/raft/vote";
const PRE_VOTE_PATH: &str = "/raft/pre-vote";
const APPEND_PATH: &str = "/raft/append";
const SNAPSHOT_PATH: &str = "/raft/snapshot";
const TRANSFER_PATH: &str = "/raft/transfer-leader";

/// A whole snapshot in one message.
#[derive(Debug, Serialize, Deserialize)]
struct SnapshotMessage {
    vote: Vote,
    meta: SnapshotMeta,
    state: ClusterState,
}
