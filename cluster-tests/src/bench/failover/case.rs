//! What is done to the primary.

use std::fmt;
use std::str::FromStr;

use crate::application::Work;

/// One way to lose a primary, or to change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Case {
    /// A switchover; each statement is a transaction.
    Switchover,
    /// A switchover, in the middle of transactions of several statements.
    SwitchoverTransactions,
    /// `kill -9` of the postmaster, with asynchronous replication.
    Crash,
    /// The same, with synchronous replication.
    CrashSynchronous,
    /// The primary's machine is cut off, and everything on it gone.
    NodeLoss,
}

impl Case {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Switchover, Self::SwitchoverTransactions, Self::Crash, Self::CrashSynchronous, Self::NodeLoss];

    /// Its name on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Switchover => "switchover",
            Self::SwitchoverTransactions => "switchover-tx",
            Self::Crash => "crash",
            Self::CrashSynchronous => "crash-sync",
            Self::NodeLoss => "node-loss",
        }
    }

    /// What it is, for the table's legend.
    pub fn told(self) -> &'static str {
        match self {
            Self::Switchover => "a planned change of primary; each writer commits single INSERTs",
            Self::SwitchoverTransactions => {
                "the same; each writer sends `BEGIN`, an INSERT, a read and `COMMIT`, one after the other"
            }
            Self::Crash => "`kill -9` of the primary's postmaster; replication is asynchronous",
            Self::CrashSynchronous => {
                "the same; commits wait for a standby (`failover.durability = \"sync\"`, Patroni's `synchronous_mode`)"
            }
            Self::NodeLoss => {
                "the primary's network interface is taken down and every process behind it killed; asynchronous"
            }
        }
    }

    /// Whether commits wait for a standby.
    pub fn is_synchronous(self) -> bool {
        match self {
            Self::CrashSynchronous => true,
            Self::Switchover | Self::SwitchoverTransactions | Self::Crash | Self::NodeLoss => false,
        }
    }

    /// What the writers do meanwhile.
    pub(super) fn work(self) -> Work {
        match self {
            Self::SwitchoverTransactions => Work::Transaction,
            Self::Switchover | Self::Crash | Self::CrashSynchronous | Self::NodeLoss => Work::Statement,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// No case has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the cases are {}", Case::ALL.map(Case::name).join(", "))]
pub struct NoSuchCase;

impl FromStr for Case {
    type Err = NoSuchCase;

    fn from_str(name: &str) -> Result<Self, NoSuchCase> {
        Self::ALL.into_iter().find(|case| case.name() == name).ok_or(NoSuchCase)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_is_found_by_its_name() {
        for case in Case::ALL {
            assert_eq!(case.name().parse(), Ok(case));
        }
        assert_eq!("earthquake".parse::<Case>(), Err(NoSuchCase));
    }
}
