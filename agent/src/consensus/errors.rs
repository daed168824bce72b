//! What can go wrong, one enum per operation.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use pgherd_common::{ClusterName, NodeId};

/// Why this node cannot take part.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The state directory cannot be made.
    #[error(
        "cannot create the directory {path}: check that it is on a mounted disk and belongs to the agent's user"
    )]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process has the store.
    #[error(
        "the raft store {path} is open in another process: an agent for this node already runs \
         (give each node on a machine its own state_dir)"
    )]
    InUse {
        /// The store file.
        path: PathBuf,
    },
    /// The store cannot be read or written.
    #[error(
        "cannot open the raft store {path}: check its disk and that the file belongs to the agent's user"
    )]
    Io {
        /// The store file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The content of the store is not what was written.
    #[error(
        "the raft store {path} is damaged ({reason}). It holds this node's vote and log, so it is never \
         recreated by itself. Check the disk; then, with a majority of the other agents up, move the file \
         away and start this agent: it gets the log from the others. Never do so on two nodes at once"
    )]
    Damaged {
        /// The store file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A store of another cluster.
    #[error(
        "the raft store {path} belongs to cluster {found}, but this agent is configured for cluster {expected}: \
         correct cluster.name or node.state_dir"
    )]
    OtherCluster {
        /// The store file.
        path: PathBuf,
        /// Written in it.
        found: ClusterName,
        /// Configured.
        expected: ClusterName,
    },
    /// A store of another node.
    #[error(
        "the raft store {path} belongs to node {found}, but this agent is configured as node {expected}: \
         correct node.id or node.state_dir"
    )]
    OtherNode {
        /// The store file.
        path: PathBuf,
        /// Written in it.
        found: NodeId,
        /// Configured.
        expected: NodeId,
    },
    /// A store of another version of this software.
    #[error(
        "the raft store {path} has format {found}, this agent reads format {supported}: install the matching version"
    )]
    Format {
        /// The store file.
        path: PathBuf,
        /// Written in it.
        found: u32,
        /// Known to this agent.
        supported: u32,
    },
    /// This node is not among the voters it was given.
    #[error("node {0} is not among the configured members: add it to [[members]]")]
    NotAMember(NodeId),
    /// The timings contradict each other.
    #[error(
        "the election timeout of {min:?} to {max:?} does not fit a heartbeat of {heartbeat:?}: \
         the longest has to be more than four heartbeats and more than the shortest"
    )]
    Timings {
        /// Configured.
        heartbeat: Duration,
        /// Configured.
        min: Duration,
        /// Configured.
        max: Duration,
    },
    /// The HTTP client cannot be made.
    #[error("cannot set up the connection to the other agents")]
    Client(#[source] reqwest::Error),
    /// The raft library refused what it found.
    #[error("cannot start raft on the store in {dir}: {reason}")]
    Start {
        /// The directory of the store.
        dir: PathBuf,
        /// In the library's words.
        reason: String,
    },
}

/// What a node's word is worth could not be written down, so nothing has changed.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot write to the raft store whether this node takes part: check its disk, then restart the agent"
)]
pub struct AdmissionError(#[source] pub(super) io::Error);

/// Why the group was not formed.
#[derive(Debug, thiserror::Error)]
pub enum FormError {
    /// This node is not among the voters it was given.
    #[error("node {0} is not among the configured members: add it to [[members]]")]
    NotAMember(NodeId),
    /// Raft has stopped on this node.
    #[error("raft has stopped on this node ({0}): restart the agent")]
    Stopped(String),
}

/// Why a command was not written.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// It was not written; the leader has to propose it.
    #[error("this node does not lead the agents; {}", leader_words(*leader))]
    NotLeader {
        /// Who does, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// It was not written: this leader has not heard from a majority of the agents.
    #[error(
        "this node leads the agents but hears no majority of them: check that they run and that the network connects them"
    )]
    NoQuorum,
    /// It may yet be written, or not.
    #[error(
        "no majority of the agents confirmed the command within {0:?}; it may still come into force. \
         Check that the agents run and that the network connects them"
    )]
    Timeout(Duration),
    /// It may yet be written, or not: another leader took over.
    #[error("the leadership moved away while the command was in flight, so it may or may not be in force; {}", leader_words(*leader))]
    Overtaken {
        /// Who leads now, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// Raft has stopped on this node.
    #[error("raft has stopped on this node ({0}): restart the agent")]
    Stopped(String),
}

fn leader_words(leader: Option<NodeId>) -> String {
    match leader {
        Some(leader) => format!("node {leader} does"),
        None => "no leader is known".to_owned(),
    }
}

/// Why raft's voters were not changed, or are not known to have been.
#[derive(Debug, thiserror::Error)]
pub enum RegroupError {
    /// Only the leader can.
    #[error("this node does not lead the agents; {}", leader_words(*leader))]
    NotLeader {
        /// Who does, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// It may yet come into force, or not.
    #[error(
        "no majority of the old and the new voters confirmed the change within {0:?}; it may still come into force"
    )]
    Timeout(Duration),
    /// The library does not take it, for now or at all.
    #[error("the change of voters was not taken: {0}")]
    Refused(String),
    /// Raft has stopped on this node.
    #[error("raft has stopped on this node ({0}): restart the agent")]
    Stopped(String),
}

/// Why the leadership was not handed over.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// Only the leader can.
    #[error("this node does not lead the agents; {}", leader_words(*leader))]
    NotLeader {
        /// Who does, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// Only to a voter.
    #[error("node {0} has no vote in this cluster")]
    NotAVoter(NodeId),
    /// Raft has stopped on this node.
    #[error("raft has stopped on this node ({0}): restart the agent")]
    Stopped(String),
}
