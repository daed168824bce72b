//! The raft library's types, as this project instantiates them.

use std::fmt;

use openraft::type_config::alias;
use serde::{Deserialize, Serialize};

use super::store::Machine;
use crate::cluster::{Applied, ClusterState, Command};

openraft::declare_raft_types!(
    /// Nodes are numbers, entries are [`Proposal`]s, answers are [`Applied`].
    pub(super) Group:
        D = Proposal,
        R = Applied,
);

/// A command in the log. The library wants entries it can print.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Proposal(pub(super) Command);

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

pub(super) type Raft = openraft::Raft<Group, Machine>;
pub(super) type Entry = alias::EntryOf<Group>;
pub(super) type LogId = alias::LogIdOf<Group>;
pub(super) type Vote = alias::VoteOf<Group>;
pub(super) type Membership = alias::StoredMembershipOf<Group>;
pub(super) type SnapshotMeta = alias::SnapshotMetaOf<Group>;
/// A snapshot is the whole state: it is small, and JSON on disk and on the wire.
pub(super) type Snapshot = alias::SnapshotOf<Group, ClusterState>;
pub(super) type Metrics = openraft::RaftMetrics<Group>;
