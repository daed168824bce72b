//! What a node needs to know to take part, and the timings that follow from it.

use std::path::PathBuf;
use std::time::Duration;

use openraft::{Config, SnapshotPolicy};
use pgherd_common::{ClusterName, NodeId};

use super::errors::OpenError;
use crate::cluster::Contacts;

/// How this node takes part in the group.
#[derive(Debug, Clone)]
pub struct Options {
    /// This node.
    pub node: NodeId,
    /// Its cluster. Messages and stores of another one are refused.
    pub cluster: ClusterName,
    /// Where `raft.redb` lives. Created if missing.
    pub dir: PathBuf,
    /// Every configured member, this node included: the voters of a group that is yet to be formed.
    pub members: Contacts,
    /// Whether something else than the store remembers that this node has been part of a group.
    pub remembers: bool,
    /// How often a leader tells the others that it is there.
    pub heartbeat: Duration,
    /// A node that has heard no leader for so long stands for election: at the earliest, at the latest.
    pub election_timeout: (Duration, Duration),
    /// No message to another node waits longer for its answer.
    pub rpc_timeout: Duration,
}

impl Options {
    /// Entries between two snapshots.
    const SNAPSHOT_EVERY: u64 = 1000;
    /// Entries kept behind a snapshot, so that a node that was briefly away needs no snapshot.
    const KEEP_BEHIND_SNAPSHOT: u64 = 200;

    /// How long a leader's word is good for: no voter lets another candidate in before. The library
    /// waits this lease *and then* a drawn timeout, so half of the wanted longest silence goes to each.
    pub(super) fn lease(&self) -> Duration {
        self.election_timeout.1 / 2
    }

    /// How long a proposal may take: long enough to outlive one lost answer, short enough that a
    /// leader without its quorum finds out.
    pub(super) fn propose_timeout(&self) -> Duration {
        self.election_timeout.1 + self.rpc_timeout
    }

    /// An append that nobody answers holds up its stream; a lease is time enough for one.
    pub(super) fn append_timeout(&self) -> Duration {
        self.rpc_timeout.min(self.lease())
    }

    pub(super) fn config(&self) -> Result<Config, OpenError> {
        let lease = self.lease();
        let (min, max) = self.election_timeout;
        // A vote has to be written to disk and answered within the shorter bound of the drawn timeout.
        let drawn_min = min.saturating_sub(lease).max(lease / 2);
        let refused = || OpenError::Timings { heartbeat: self.heartbeat, min, max };
        if self.heartbeat.is_zero() || drawn_min <= self.heartbeat || drawn_min >= lease {
            return Err(refused());
        }
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let config = Config {
            cluster_name: self.cluster.to_string(),
            heartbeat_interval: millis(self.heartbeat),
            election_timeout_min: millis(drawn_min),
            election_timeout_max: millis(lease),
            install_snapshot_timeout: millis(self.rpc_timeout),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(Self::SNAPSHOT_EVERY),
            max_in_snapshot_log_to_keep: Self::KEEP_BEHIND_SNAPSHOT,
            replication_lag_threshold: Self::SNAPSHOT_EVERY * 2,
            enable_pre_vote: Some(true),
            // A leader that others hear but that hears nobody must fall silent, or its heartbeats keep
            // the others from electing one that works.
            quorum_loss_probe_interval: Some(millis(lease) * 2),
            // A member whose store was lost is filled again from the leader's log.
            allow_log_reversion: Some(true),
            // A restarted leader has forgotten what it promised: it has to be elected again.
            enable_leader_restore: Some(false),
            ..Config::default()
        };
        config.validate().map_err(|_| refused())
    }
}
