//! Deliberate mistakes, for the simulator to find: the proof that it would find one made by accident.
//!
//! Each is a line of code that asks [`planted`]. Without the feature `defects`, which only the simulator's
//! own program turns on, the answer is a constant `false` and the line is what it would be without it.

/// One mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Defect {
    /// A standby is chosen although it may still receive WAL from the old primary.
    SkipRecruit,
    /// The holder counts its lease from when the answer came, not from when the beat was sent.
    LeaseFromReceipt,
    /// A successor is chosen although voters still have promises to the old primary.
    NoPromiseWait,
    /// The guardian leaves it to its worker to fence.
    GuardianTrustsWorker,
    /// What raft has promised and logged does not outlive a crash.
    LogNotDurable,
    /// A proxy takes whatever topology comes in.
    StaleTopology,
    /// The longest WAL wins, whatever timeline it is on.
    LongestWalWins,
    /// A switchover stops the primary before the proxies hold new work.
    NoHold,
    /// The role counts as released before PostgreSQL is gone.
    ReleaseBeforeFence,
    /// One answer is enough to renew a lease.
    RenewWithoutQuorum,
    /// Neither worker nor guardian minds the end of the lease.
    NoFenceAtLeaseEnd,
    /// A chosen primary is promoted before it has won its lease.
    PromoteWithoutLease,
    /// A standby that was found diverged is started as it is.
    NoRewind,
    /// A node whose raft store was lost votes as if nothing had happened.
    AmnesiaVotes,
    /// Voters that are lost together lose their votes one after the other.
    ShrinkTogether,
    /// A new primary acknowledges commits before they wait for standbys.
    CommitsNotHeld,
    /// A failover takes the best of those that are there, whatever was promised of the others.
    IgnoreCover,
    /// What is wanted counts as promised before it holds for what was acknowledged earlier.
    SettleUnmet,
    /// Nobody gives the virtual IP up when the lease ends.
    AddressOutlivesLease,
}

impl Defect {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::SkipRecruit,
        Self::LeaseFromReceipt,
        Self::NoPromiseWait,
        Self::GuardianTrustsWorker,
        Self::LogNotDurable,
        Self::StaleTopology,
        Self::LongestWalWins,
        Self::NoHold,
        Self::ReleaseBeforeFence,
        Self::RenewWithoutQuorum,
        Self::NoFenceAtLeaseEnd,
        Self::PromoteWithoutLease,
        Self::NoRewind,
        Self::AmnesiaVotes,
        Self::ShrinkTogether,
        Self::CommitsNotHeld,
        Self::IgnoreCover,
        Self::SettleUnmet,
        Self::AddressOutlivesLease,
    ];

    /// As it is called on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::SkipRecruit => "skip-recruit",
            Self::LeaseFromReceipt => "lease-from-receipt",
            Self::NoPromiseWait => "no-promise-wait",
            Self::GuardianTrustsWorker => "guardian-trusts-worker",
            Self::LogNotDurable => "log-not-durable",
            Self::StaleTopology => "stale-topology",
            Self::LongestWalWins => "longest-wal-wins",
            Self::NoHold => "no-hold",
            Self::ReleaseBeforeFence => "release-before-fence",
            Self::RenewWithoutQuorum => "renew-without-quorum",
            Self::NoFenceAtLeaseEnd => "no-fence-at-lease-end",
            Self::PromoteWithoutLease => "promote-without-lease",
            Self::NoRewind => "no-rewind",
            Self::AmnesiaVotes => "amnesia-votes",
            Self::ShrinkTogether => "shrink-together",
            Self::CommitsNotHeld => "commits-not-held",
            Self::IgnoreCover => "ignore-cover",
            Self::SettleUnmet => "settle-unmet",
            Self::AddressOutlivesLease => "address-outlives-lease",
        }
    }
}

#[cfg(feature = "defects")]
mod switch {
    use std::cell::Cell;

    use super::Defect;

    thread_local! {
        static PLANTED: Cell<Option<Defect>> = const { Cell::new(None) };
    }

    /// Makes the agents of this thread's simulation defective.
    pub fn plant(defect: Option<Defect>) {
        PLANTED.set(defect);
    }

    /// Whether this mistake is to be made.
    pub fn planted(defect: Defect) -> bool {
        PLANTED.get() == Some(defect)
    }
}

#[cfg(not(feature = "defects"))]
mod switch {
    use super::Defect;

    /// Whether this mistake is to be made: never.
    pub const fn planted(_defect: Defect) -> bool {
        false
    }
}

pub use switch::*;

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(row: &str) -> Vec<&str> {
        row.trim_matches('|').split('|').map(str::trim).collect()
    }

    #[test]
    fn the_table_in_the_docs_names_every_defect_and_the_rules_that_find_it() {
        let doc = include_str!("../../docs/invariants.md");
        let (rules, rest) = doc.split_once("\n## Planted defects\n").unwrap();
        let rules: Vec<&str> =
            rules.lines().filter(|line| line.starts_with('|')).map(|line| cells(line)[0]).collect();
        let table = rest.split("\n## ").next().unwrap().lines().filter(|line| line.starts_with('|'));
        let rows: Vec<Vec<&str>> = table.skip(2).map(cells).collect();
        let names: Vec<&str> = rows.iter().map(|row| row[0]).collect();
        assert_eq!(names, Defect::ALL.map(Defect::name), "`cargo xtask sim defects` prints the table");
        for row in rows {
            let seeds: Vec<u32> = [row[2], row[1], row[3]].map(|seeds| seeds.parse().unwrap()).into();
            assert!(seeds.is_sorted(), "{row:?}");
            let mut found_as = row[4].split(", ");
            assert!(found_as.all(|rule| rules.contains(&rule)), "{row:?}");
        }
    }
}
