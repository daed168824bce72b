//! For whom the replication slots of this server are.

use std::collections::BTreeSet;
use std::time::Duration;

use pgherd_common::{MonoTime, NodeName};

use super::Situation;

/// For whom slots were made, and dropped for everybody else.
#[derive(Debug)]
pub(super) struct Aligned {
    in_recovery: bool,
    members: BTreeSet<NodeName>,
    at: MonoTime,
    /// How often in a row that was done for the same.
    times: u32,
}

impl Aligned {
    pub(super) fn new(
        in_recovery: bool,
        members: &BTreeSet<NodeName>,
        before: Option<Self>,
        at: MonoTime,
    ) -> Self {
        let same = |before: &Self| before.in_recovery == in_recovery && before.members == *members;
        let times = before.filter(same).map_or(0, |before| before.times + 1);
        Self { in_recovery, members: members.clone(), at, times }
    }

    /// Whether nothing has to be done. A slot that was in use could not be dropped: that of a machine which was lost is
    /// until PostgreSQL gives its connection up.
    pub(super) fn holds(&self, s: &Situation<'_>, in_recovery: bool, members: &BTreeSet<NodeName>) -> bool {
        let wanted: BTreeSet<String> = members.iter().map(NodeName::slot).collect();
        let left = s.own.running().is_some_and(|own| own.slots.iter().any(|slot| !wanted.contains(slot)));
        let rest = Duration::from_secs(5) * 2_u32.saturating_pow(self.times.min(5));
        let again = left && s.now >= self.at + rest;
        self.in_recovery == in_recovery && self.members == *members && !again
    }
}
