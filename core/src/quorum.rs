//! Raft's group as far as decisions rest on it. The lease does not: its voters are in the log
//! ([`crate::cluster::LeaseVoters`]), and raft's membership follows them.

use std::collections::BTreeSet;

use pgherd_common::NodeId;
use serde::{Deserialize, Serialize};

/// Raft, as far as decisions rest on it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Quorum {
    /// Who votes. While raft changes its voters, both the old ones and the new ones.
    pub voters: BTreeSet<NodeId>,
    /// Who is fed the log without a vote.
    pub learners: BTreeSet<NodeId>,
    /// Whether `voters` is one set, and committed: no change of voters is in flight.
    pub settled: bool,
    /// Whether this node leads and has applied an entry of its own term.
    pub leads: bool,
    /// What this node's own word is worth.
    pub admission: Admission,
}

impl Quorum {
    /// Whether exactly these vote, and nothing is in flight.
    pub fn is(&self, voters: &BTreeSet<NodeId>) -> bool {
        self.settled && self.voters == *voters
    }
}

/// What a node's word is worth after its raft store was made. A node that has forgotten what it
/// promised and acknowledged must not speak for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Admission {
    /// It remembers all it ever said.
    #[default]
    Full,
    /// Its store is new, and whether there was one before it is not known yet.
    Undecided,
    /// Its store was lost: it takes no part until the log has it without a vote and names this number,
    /// drawn when the new store was made.
    Probation(u64),
    /// The log named its number: it is fed again, but neither votes nor stands for election before it
    /// has applied the entry that names it and then its return to the voters. What it applies until
    /// then is the past, in which it was a voter as well.
    Learner(u64),
}

impl Admission {
    /// The number to be named by the log.
    pub fn probation(self) -> Option<u64> {
        match self {
            Self::Probation(token) => Some(token),
            Self::Full | Self::Undecided | Self::Learner(_) => None,
        }
    }
}
