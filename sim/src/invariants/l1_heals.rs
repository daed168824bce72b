//! L1: once nothing is wrong any more, the cluster is whole again within a documented time, without a
//! human: one primary that accepts writes, every proxy writes to it, everybody else streams from it, and
//! everybody votes.

use std::fmt;

use crate::clock::{Micros, SECOND};

/// The documented time: a change of primary may take `change_timeout` (30 s) before it is begun anew, a
/// crashed standby rests for 5 s, a rewind takes its time, and each may happen once more.
pub const HEAL_BUDGET: Micros = 120 * SECOND;

/// What keeps a cluster from being whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sick {
    /// Nobody leads the raft group.
    NoLeader,
    /// No node is the serving primary of the state that the leader has, or a change is in flight.
    NoPrimary,
    /// The primary accepts no writes.
    NotWritable(usize),
    /// A proxy writes elsewhere, or nowhere.
    ProxyElsewhere(usize),
    /// A standby does not stream from the primary, or is not in service; the text is its agent's.
    NotFollowing(usize, String),
    /// An agent has not applied what the leader has.
    Behind(usize),
    /// A node has not got its vote back.
    NoVote(usize),
    /// The primary has not got the virtual IP.
    NoAddress(usize),
    /// A switchover is yet to begin, or to be given up.
    Scheduled,
    /// An operator's pause has yet to end.
    Paused,
}

impl fmt::Display for Sick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLeader => f.write_str("nobody leads the raft group"),
            Self::NoPrimary => f.write_str("there is no serving primary"),
            Self::NotWritable(node) => write!(f, "primary server{} accepts no writes", node + 1),
            Self::ProxyElsewhere(proxy) => write!(f, "proxy{} does not write to the primary", proxy + 1),
            Self::NotFollowing(node, why) => write!(f, "server{} does not follow: {why}", node + 1),
            Self::NoVote(node) => write!(f, "server{} has no vote", node + 1),
            Self::Paused => f.write_str("something is paused"),
            Self::NoAddress(node) => write!(f, "primary server{} has not got the virtual IP", node + 1),
            Self::Scheduled => f.write_str("a switchover is yet to begin"),
            Self::Behind(node) => write!(f, "the agent of server{} is behind", node + 1),
        }
    }
}

/// A cluster as it should be, judged from outside.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Health {
    /// What is wrong, the gravest first.
    pub sick: Vec<Sick>,
    /// Nodes that say that they have to be cloned anew: the one thing only a human does.
    pub to_clone: Vec<usize>,
}

impl Health {
    /// The gravest trouble that is not for a human to mend.
    pub fn trouble(&self) -> Option<&Sick> {
        let for_a_human =
            |sick: &&Sick| matches!(sick, Sick::NotFollowing(node, _) if self.to_clone.contains(node));
        self.sick.iter().find(|sick| !for_a_human(sick))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_to_be_cloned_is_no_trouble_but_anything_else_is() {
        let lost = Sick::NotFollowing(2, "SameNumber".to_owned());
        let mut health = Health { sick: vec![lost.clone()], to_clone: vec![2] };
        assert_eq!(health.trouble(), None);
        health.sick.push(Sick::ProxyElsewhere(0));
        assert_eq!(health.trouble(), Some(&Sick::ProxyElsewhere(0)));
        health.to_clone.clear();
        assert_eq!(health.trouble(), Some(&lost));
    }
}
