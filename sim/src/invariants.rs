//! What must never happen: one file for each rule, with the number that `docs/invariants.md` lists.
//!
//! Each checker is told what happens in the world and says what is wrong with it, with the evidence. The
//! first violation ends a run.

mod i01_one_primary_per_generation;
mod i02_generations_never_go_back;
mod i03_promoted_only_when_granted;
mod i04_old_primary_stops_first;
mod i05_nothing_without_a_majority;
mod i06_acknowledged_rows_survive;
mod i07_proxies_write_to_the_newest_primary;
mod i08_no_success_without_the_row;
mod i09_one_change_in_flight;
mod i10_logs_agree;
mod i11_recruited_standbys_receive_nothing;
mod i12_histories_agree;
mod i13_switchovers_hold_first;
mod i14_one_grant_per_generation;
mod i15_most_wal_wins;
mod i16_voters_change_one_by_one;
mod i17_nobody_leaves_in_a_crowd;
mod i18_one_holder_of_the_address;
mod l1_heals;
mod l2_stays_healed;

use std::collections::BTreeSet;
use std::fmt;

use pgherd_common::{Generation, Version};

use crate::clock::{Micros, Time};

pub use i04_old_primary_stops_first::Excuse;

pub(crate) use i01_one_primary_per_generation::OnePrimary;
pub(crate) use i02_generations_never_go_back::Generations;
pub(crate) use i03_promoted_only_when_granted::Grants;
pub(crate) use i04_old_primary_stops_first::Writable;
pub(crate) use i05_nothing_without_a_majority::majority;
pub(crate) use i06_acknowledged_rows_survive::Rows;
pub(crate) use i07_proxies_write_to_the_newest_primary::Routes;
pub(crate) use i09_one_change_in_flight::one_change;
pub(crate) use i10_logs_agree::Logs;
pub(crate) use i11_recruited_standbys_receive_nothing::Recruits;
pub(crate) use i12_histories_agree::beginning;
pub(crate) use i13_switchovers_hold_first::held;
pub(crate) use i15_most_wal_wins::{Claim, most_wins};
pub(crate) use i16_voters_change_one_by_one::neighbours;
pub(crate) use i17_nobody_leaves_in_a_crowd::alone;
pub(crate) use i18_one_holder_of_the_address::Holders;
pub use l1_heals::{HEAL_BUDGET, Health, Sick};
pub use l2_stays_healed::{STEADY, Steady};

/// What must never happen has happened. Machines by their numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// I1.
    TwoPrimariesOfOneGeneration {
        /// The generation.
        generation: Generation,
        /// Who was writable in it.
        first: usize,
        /// Who was too.
        second: usize,
    },
    /// I2.
    GenerationWentBack {
        /// Whose.
        actor: String,
        /// From.
        from: Generation,
        /// To.
        to: Generation,
    },
    /// I3.
    NotGranted {
        /// Who became primary.
        node: usize,
        /// Of this generation.
        generation: Generation,
        /// To whom the log gave it.
        granted: Option<usize>,
    },
    /// I4.
    TwoWritable {
        /// Still accepts writes.
        old: usize,
        /// Accepts writes too.
        new: usize,
        /// For how long the old one has.
        since: Micros,
    },
    /// I4: what was excused has not ended in time.
    WritableTooLong {
        /// Accepts writes beside another one.
        node: usize,
        /// Why that was excused for a while.
        excuse: Excuse,
    },
    /// I5.
    NoMajority {
        /// The log entry that was committed.
        index: usize,
        /// On so many disks.
        on_disk: usize,
        /// Of so many voters.
        voters: usize,
    },
    /// I6.
    RowLost {
        /// An acknowledged row.
        row: u64,
        /// Where it was written.
        node: usize,
    },
    /// I7.
    WrongRoute {
        /// The proxy.
        proxy: usize,
        /// Where it wrote to.
        node: usize,
        /// What is wrong with that.
        why: String,
    },
    /// I7.
    TopologyWentBack {
        /// The proxy.
        proxy: usize,
        /// From.
        from: Version,
        /// To.
        to: Version,
    },
    /// I8.
    FalseSuccess {
        /// The row that a client believes in.
        row: u64,
        /// Where it is not.
        node: usize,
    },
    /// I9.
    SeveralChanges {
        /// The log entry after which it was so.
        index: usize,
        /// What is wrong.
        why: String,
    },
    /// I10.
    LogsDiffer {
        /// The log entry.
        index: usize,
        /// Who applied something else.
        node: usize,
        /// What they applied.
        why: String,
    },
    /// I11.
    ReceivedAfterRecruit {
        /// The standby.
        standby: usize,
        /// Whose WAL came.
        from: usize,
        /// For which generation it had been recruited.
        generation: Generation,
    },
    /// I12.
    HistoriesDiffer {
        /// The standby, whose WAL is no beginning of the other's.
        standby: usize,
        /// Which it streams from.
        upstream: usize,
    },
    /// I13.
    StoppedUnheld {
        /// The primary.
        node: usize,
        /// The proxy that still sent it new work.
        proxy: usize,
        /// How long it had had for not doing so.
        after: Micros,
    },
    /// I14.
    TwoGrants {
        /// The generation.
        generation: Generation,
        /// First given to.
        first: usize,
        /// Then to.
        second: usize,
    },
    /// I15.
    LessWalChosen {
        /// Who was chosen.
        chosen: usize,
        /// Who had more.
        better: usize,
    },
    /// I16.
    VotersLeapt {
        /// The log entry.
        index: usize,
        /// From what to what.
        why: String,
    },
    /// I17.
    LeftInACrowd {
        /// Who was to leave.
        leaves: usize,
        /// Who was silent too.
        other: usize,
    },
    /// I18.
    TwoHolders {
        /// Still has the virtual IP.
        old: usize,
        /// Has it too.
        new: usize,
        /// For how long the old one has.
        since: Micros,
    },
    /// I18: what was excused has not ended in time.
    HeldTooLong {
        /// Has the virtual IP beside another one.
        node: usize,
        /// Why that was excused for a while.
        excuse: Excuse,
    },
    /// L1.
    NotHealed {
        /// How long after the last fault.
        after: Micros,
        /// What is still wrong.
        sick: Sick,
    },
    /// L2.
    Restless {
        /// What happened although nothing was wrong.
        why: String,
    },
    /// The world itself is broken.
    Model(String),
}

impl Violation {
    /// The rule that was broken.
    pub fn rule(&self) -> &'static str {
        match self {
            Self::TwoPrimariesOfOneGeneration { .. } => "I1",
            Self::GenerationWentBack { .. } => "I2",
            Self::NotGranted { .. } => "I3",
            Self::TwoWritable { .. } | Self::WritableTooLong { .. } => "I4",
            Self::NoMajority { .. } => "I5",
            Self::RowLost { .. } => "I6",
            Self::WrongRoute { .. } | Self::TopologyWentBack { .. } => "I7",
            Self::FalseSuccess { .. } => "I8",
            Self::SeveralChanges { .. } => "I9",
            Self::LogsDiffer { .. } => "I10",
            Self::ReceivedAfterRecruit { .. } => "I11",
            Self::HistoriesDiffer { .. } => "I12",
            Self::StoppedUnheld { .. } => "I13",
            Self::TwoGrants { .. } => "I14",
            Self::LessWalChosen { .. } => "I15",
            Self::VotersLeapt { .. } => "I16",
            Self::LeftInACrowd { .. } => "I17",
            Self::TwoHolders { .. } | Self::HeldTooLong { .. } => "I18",
            Self::NotHealed { .. } => "L1",
            Self::Restless { .. } => "L2",
            Self::Model(_) => "model",
        }
    }
}

/// As people name machines.
fn server(index: &usize) -> String {
    format!("server{}", index + 1)
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.rule())?;
        if self.is_of_primaries() { self.tell_of_primaries(f) } else { self.tell_of_the_rest(f) }
    }
}

impl Violation {
    /// I1 to I5.
    fn is_of_primaries(&self) -> bool {
        matches!(self.rule(), "I1" | "I2" | "I3" | "I4" | "I5")
    }

    fn tell_of_primaries(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TwoPrimariesOfOneGeneration { generation, first, second } => write!(
                f,
                "{} and {} were both writable in generation {generation}",
                server(first),
                server(second)
            ),
            Self::GenerationWentBack { actor, from, to } => {
                write!(f, "the generation of {actor} went back from {from} to {to}")
            }
            Self::NotGranted { node, generation, granted } => {
                let granted = granted.as_ref().map_or("nobody".to_owned(), server);
                write!(
                    f,
                    "{} became primary of generation {generation}, which was given to {granted}",
                    server(node)
                )
            }
            Self::TwoWritable { old, new, since } => write!(
                f,
                "{} accepts writes while {} does, since {} ms",
                server(new),
                server(old),
                since / 1000
            ),
            Self::WritableTooLong { node, excuse } => {
                write!(f, "{} goes on accepting writes beside another server ({excuse:?})", server(node))
            }
            Self::NoMajority { index, on_disk, voters } => {
                write!(f, "log entry {index} counts as committed, on {on_disk} disks of {voters} voters")
            }
            _ => Ok(()),
        }
    }

    fn tell_of_the_rest(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RowLost { row, node } => {
                write!(f, "row {row}, acknowledged on {}, is gone without an excuse", server(node))
            }
            Self::WrongRoute { proxy, node, why } => {
                write!(f, "proxy{} wrote to {}: {why}", proxy + 1, server(node))
            }
            Self::TopologyWentBack { proxy, from, to } => {
                write!(f, "the topology of proxy{} went back from {from} to {to}", proxy + 1)
            }
            Self::FalseSuccess { row, node } => {
                write!(f, "a client was told that row {row} is on {}, which never took it", server(node))
            }
            Self::SeveralChanges { index, why } => write!(f, "after log entry {index}: {why}"),
            Self::LogsDiffer { index, node, why } => {
                write!(f, "{} applied something else at log entry {index}: {why}", server(node))
            }
            Self::ReceivedAfterRecruit { standby, from, generation } => write!(
                f,
                "{} receives WAL of {} although it is recruited for generation {generation}",
                server(standby),
                server(from)
            ),
            Self::HistoriesDiffer { standby, upstream } => write!(
                f,
                "{} streams from {}, but its WAL is no beginning of that server's",
                server(standby),
                server(upstream)
            ),
            Self::StoppedUnheld { node, proxy, after } => write!(
                f,
                "{} is stopped for a switchover while proxy{} sends it new work, {} ms after the order",
                server(node),
                proxy + 1,
                after / 1000
            ),
            Self::TwoGrants { generation, first, second } => {
                write!(f, "generation {generation} was given to {} and to {}", server(first), server(second))
            }
            Self::LessWalChosen { chosen, better } => {
                write!(f, "{} was chosen although {} has more", server(chosen), server(better))
            }
            Self::VotersLeapt { index, why } => write!(f, "at log entry {index} {why}"),
            Self::LeftInACrowd { leaves, other } => {
                write!(f, "{} is to lose its vote while {} is silent too", server(leaves), server(other))
            }
            Self::TwoHolders { old, new, since } => write!(
                f,
                "{} takes the virtual IP while {} has it, since {} ms",
                server(new),
                server(old),
                since / 1000
            ),
            Self::HeldTooLong { node, excuse } => {
                write!(f, "{} goes on having the virtual IP beside another server ({excuse:?})", server(node))
            }
            Self::NotHealed { after, sick } => {
                write!(f, "{} s after the last fault: {sick}", after / 1_000_000)
            }
            Self::Restless { why } => f.write_str(why),
            Self::Model(why) => f.write_str(why),
            _ => Ok(()),
        }
    }
}

/// All checkers, and the first violation.
#[derive(Debug)]
pub struct Checks {
    violation: Option<(Time, Violation)>,
    pub(crate) one_primary: OnePrimary,
    pub(crate) generations: Generations,
    pub(crate) grants: Grants,
    pub(crate) writable: Writable,
    pub(crate) holders: Holders,
    pub(crate) rows: Rows,
    /// Generations that were given away while every acknowledged row was promised to be on enough standbys.
    pub(crate) covered: BTreeSet<Generation>,
    pub(crate) routes: Routes,
    pub(crate) logs: Logs,
    pub(crate) recruits: Recruits,
    unguarded: Vec<bool>,
}

impl Checks {
    pub(crate) fn new(machines: usize, proxies: usize) -> Self {
        Self {
            violation: None,
            one_primary: OnePrimary::default(),
            generations: Generations::default(),
            grants: Grants::default(),
            writable: Writable::new(machines),
            holders: Holders::new(machines),
            rows: Rows::default(),
            covered: BTreeSet::new(),
            routes: Routes::new(proxies),
            logs: Logs::default(),
            recruits: Recruits::new(machines),
            unguarded: vec![false; machines],
        }
    }

    /// The first violation and when it was found.
    pub fn violation(&self) -> Option<&(Time, Violation)> {
        self.violation.as_ref()
    }

    /// Takes note of what a checker says.
    pub(crate) fn judge(&mut self, now: Time, found: Option<Violation>) {
        if let (None, Some(found)) = (&self.violation, found) {
            self.violation = Some((now, found));
        }
    }

    /// Guardian and worker of a machine are gone at once, or back.
    pub fn unguarded(&mut self, index: usize, is: bool) {
        if let Some(known) = self.unguarded.get_mut(index) {
            *known = is;
        }
    }

    /// Whether nobody guards this machine's PostgreSQL.
    pub(crate) fn is_unguarded(&self, index: usize) -> bool {
        self.unguarded.get(index).copied().unwrap_or(false)
    }

    /// Rows acknowledged, rows lost with an excuse, excused overlaps.
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.rows.acknowledged(), self.rows.excused(), self.writable.excused())
    }
}
