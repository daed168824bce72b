//! A node is made anew: what an operator may ask for, and what is then done.

use pgherd_common::{NodeName, WallTime};
use serde::{Deserialize, Serialize};

use crate::observation::Running;
use crate::reconcile::Upstream;

/// What is told of a node meanwhile: its PostgreSQL is down on purpose.
pub const REBUILDING: &str = "it is being rebuilt";

/// How a node is made a standby of the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Means {
    /// Rewound if it has WAL that the primary never had and that can be done, otherwise copied.
    #[default]
    Best,
    /// Rewound or not at all; started as it is where nothing has to be rewound.
    Rewind,
    /// Copied.
    Clone,
}

/// What an operator has asked for. It outlives the agent's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Tells it from others.
    pub number: u64,
    /// How.
    pub means: Means,
    /// From which member, if that matters.
    pub from: Option<NodeName>,
    /// No more than so many bytes per second.
    pub rate: Option<u64>,
}

/// To be done to a stopped instance: everything that was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebuild {
    /// The primary, which it is to follow.
    pub upstream: Upstream,
    /// What that primary last said of itself.
    pub running: Running,
    /// How.
    pub means: Means,
    /// Whom to copy from, the best one first.
    pub sources: Vec<Upstream>,
    /// No more than so many bytes per second.
    pub rate: Option<u64>,
    /// The order that asked for it; `None`: nobody did.
    pub order: Option<u64>,
}

/// What a failed attempt to come back has taught.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setback {
    /// pg_rewind failed; another attempt may do better.
    RewindFailed,
    /// No attempt will do better: only a copy helps.
    NeedsClone,
}

/// Why an order is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderRefused {
    /// Nothing to rebuild.
    #[error("{0} is a witness: it has no database")]
    Witness(NodeName),
    /// The cluster's data is there.
    #[error("{0} is the primary: its data directory is the one that the others are made from")]
    IsPrimary(NodeName),
    /// It takes part in a change of primary.
    #[error("a change of primary is in flight")]
    ChangeInFlight,
    /// Nobody to follow.
    #[error("no primary serves, or its agent is not heard: there is nothing to make {0} a standby of")]
    NoPrimary(NodeName),
    /// Somebody else's data.
    #[error(
        "the data directory of {node} is of another database (system identifier {found}, the cluster's is {wanted}): it is left alone"
    )]
    Foreign {
        /// Which node.
        node: NodeName,
        /// In its `pg_control`.
        found: u64,
        /// In the log.
        wanted: u64,
    },
    /// Kept out.
    #[error("{0} is not allowed in the cluster")]
    NotAllowed(NodeName),
    /// On its way out.
    #[error("{0} is being removed from the cluster (remove-node)")]
    Leaving(NodeName),
    /// It is in an operator's hands.
    #[error("{node} is paused until {until}: its agent leaves PostgreSQL as it is")]
    Paused {
        /// Which node.
        node: NodeName,
        /// When that ends.
        until: WallTime,
    },
    /// `--from` names nobody to copy from.
    #[error("{from} cannot be copied from: {why}")]
    BadSource {
        /// Whom the operator named.
        from: NodeName,
        /// Why not.
        why: String,
    },
    /// One at a time.
    #[error("{0} is being rebuilt already, in another way")]
    Busy(NodeName),
}

impl OrderRefused {
    /// What to do next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Witness(_) => "pgherd cluster-status shows which nodes have one",
            Self::IsPrimary(_) => "pgherd promote --switchover first; the old primary can be rebuilt then",
            Self::ChangeInFlight => "try again once pgherd cluster-status shows no change in flight",
            Self::NoPrimary(_) => "pgherd cluster-status says what is wrong with the primary",
            Self::Foreign { .. } => {
                "check postgres.data_dir in agent.toml; if the data is not wanted any more, stop the agent, move the directory \
                 away and run pgherd create-standby"
            }
            Self::NotAllowed(_) => "pgherd allow-node NODE first",
            Self::Leaving(_) => "pgherd add-node lets it in again once it has left",
            Self::Paused { .. } => "`pgherd unpause` first",
            Self::BadSource { .. } => "leave --from away, and the best source is taken",
            Self::Busy(_) => "pgherd rebuild NODE --stop ends it",
        }
    }
}
