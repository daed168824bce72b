//! What an agent may do to its own PostgreSQL.

use std::collections::{BTreeMap, BTreeSet};

use pgherd_common::{Generation, HostPort, Lsn, NodeName, WallTime};

use crate::observation::Running;
use crate::rebuild::Rebuild;
use crate::salvage::Offer;

/// Something to do to the local PostgreSQL. Idempotent; carries all that was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalAction {
    /// Kill every process of the instance, now.
    Fence {
        /// Why.
        reason: String,
    },
    /// Start it as primary of a generation.
    StartPrimary(Generation, Commits),
    /// Start it as a standby that follows nobody yet.
    StartStandby,
    /// Make a stopped instance a standby of this server, rewinding it where its history demands it.
    Rejoin {
        /// The new primary.
        upstream: Upstream,
        /// What that primary last said of itself.
        running: Box<Running>,
    },
    /// Make a stopped instance a standby by whatever it takes, a copy of another server included.
    Rebuild(Box<Rebuild>),
    /// Stop it cleanly, before a rejoin.
    StopFast {
        /// Why.
        reason: String,
    },
    /// Wait for running transactions to end, then stop it cleanly. If they do not end in time it goes on as it is.
    DrainAndStop {
        /// When the switchover was begun: a later one may be to the same generation.
        begun: WallTime,
        /// End those that do not end in time, rather than give up.
        end_transactions: bool,
    },
    /// Checkpoint ahead of the switchover to a generation, and wait for sessions that cannot move.
    Prepare {
        /// The generation to come.
        generation: Generation,
        /// When the switchover was begun: a later one may be to the same generation.
        begun: WallTime,
    },
    /// Checkpoint after a promotion, so that others can rewind to this server.
    Checkpoint,
    /// Cut the walreceiver off for good, for the change of primary to this generation.
    Recruit(Generation),
    /// Fetch what the old primary has left on its disk and this standby lacks, and replay it, for the change of primary to
    /// this generation.
    Salvage {
        /// Of the change.
        generation: Generation,
        /// Where it is.
        offer: Offer,
    },
    /// Run the operators' script that has to succeed before the promotion to this generation.
    FenceScript {
        /// Of the promotion.
        generation: Generation,
        /// The primary that is replaced.
        old: Option<HostPort>,
    },
    /// Leave recovery as primary of this generation.
    Promote(Generation, Commits),
    /// Have commits wait for these standbys.
    Cover(Wait),
    /// Let clients in that connect directly.
    LetIn,
    /// Stream from this server from now on.
    Follow(Upstream),
    /// Have exactly one slot for each of these members.
    AlignSlots {
        /// The other database members.
        members: BTreeSet<NodeName>,
        /// Whether it is a standby.
        in_recovery: bool,
        /// On a standby: up to where slots that nobody uses are moved on.
        upto: BTreeMap<NodeName, Lsn>,
    },
    /// Have what logical slots send wait for these standbys.
    HoldBack(BTreeSet<NodeName>),
}

impl LocalAction {
    /// Whether PostgreSQL accepts writes once it has succeeded.
    pub fn makes_writable(&self) -> bool {
        matches!(self, Self::Promote(..) | Self::StartPrimary(..))
    }

    /// Whether it is done over and over, with nothing to be told of it.
    pub fn is_routine(&self) -> bool {
        matches!(self, Self::AlignSlots { upto, .. } if !upto.is_empty())
    }

    /// Whether all of it is asked of a PostgreSQL that runs and goes on running.
    pub fn asks_a_server(&self) -> bool {
        matches!(
            self,
            Self::Prepare { .. }
                | Self::Checkpoint
                | Self::Recruit(_)
                | Self::Cover(_)
                | Self::LetIn
                | Self::Follow(_)
                | Self::AlignSlots { .. }
                | Self::HoldBack(_)
        )
    }

    /// Whether PostgreSQL is down once it has succeeded.
    pub fn stops(&self) -> bool {
        match self {
            Self::Fence { .. } | Self::StopFast { .. } | Self::DrainAndStop { .. } => true,
            Self::StartPrimary(..)
            | Self::StartStandby
            | Self::Rejoin { .. }
            | Self::Rebuild(_)
            | Self::Prepare { .. }
            | Self::Checkpoint
            | Self::Recruit(_)
            | Self::Salvage { .. }
            | Self::FenceScript { .. }
            | Self::Promote(..)
            | Self::Cover(_)
            | Self::LetIn
            | Self::Follow(_)
            | Self::AlignSlots { .. }
            | Self::HoldBack(_) => false,
        }
    }
}

/// For whom a new primary's commits wait, from the first one on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Commits {
    /// As its own configuration says.
    Free,
    /// For these.
    WaitFor(Wait),
}

/// Standbys that commits wait for. They call themselves as followers of this generation's primary do, so that none does
/// before it follows that one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// Whose primary it is.
    pub generation: Generation,
    /// Of the wish in the log.
    pub number: u64,
    /// How many; 0: commits wait for none.
    pub standbys: u32,
    /// Of which members.
    pub of: BTreeSet<NodeName>,
}

/// A server to stream from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// The member.
    pub node: NodeName,
    /// Where its PostgreSQL listens.
    pub address: HostPort,
    /// Part of what its followers call themselves, where commits wait for them.
    pub generation: Option<Generation>,
    /// Its logical slots are to be copied.
    pub copy_slots: bool,
}

impl std::fmt::Display for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.node, self.address)
    }
}
