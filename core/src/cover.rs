//! Synchronous replication: on how many standbys a commit is before a client is told of it, and what a failover may
//! conclude from that.
//!
//! Two things are told apart. What is *wanted* is what the primary is to wait for from now on; what is *promised* is what
//! holds for every commit that any client has ever been told of, so that a failover may rest on it. Each is a set of
//! standbys and a number: a commit is on at least so many of them. While one set replaces another, the promise is the one
//! that both keep. So a step that waits for less follows a log entry after which failovers ask for more, and a failover
//! asks for less only once PostgreSQL is known to wait for more.

use std::collections::BTreeSet;
use std::time::Duration;

use pgherd_common::NodeId;
use serde::{Deserialize, Serialize};

/// What the configuration asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Durability {
    /// How many standbys have a commit before it is acknowledged; 0: replication is asynchronous.
    pub standbys: u32,
    /// For how many milliseconds there may be fewer before commits wait for those that are left; 0: they wait for good.
    pub degrade_after_ms: u64,
}

impl Durability {
    /// What both ask for, where they differ.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        if self.standbys == 0 || other.standbys == 0 {
            return if self.standbys == 0 { other } else { self };
        }
        let strict = self.degrade_after_ms == 0 || other.degrade_after_ms == 0;
        Self {
            standbys: self.standbys.max(other.standbys),
            degrade_after_ms: if strict { 0 } else { self.degrade_after_ms.max(other.degrade_after_ms) },
        }
    }

    /// Whether commits may wait for fewer standbys once there have been too few for so long.
    pub fn degrades(self, short_for: Duration) -> bool {
        self.degrade_after_ms > 0 && short_for >= Duration::from_millis(self.degrade_after_ms)
    }
}

/// A commit is on at least so many of these standbys.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SyncSet {
    /// How many; 0: nothing is known of any.
    pub standbys: u32,
    /// Of which.
    pub of: BTreeSet<NodeId>,
}

impl SyncSet {
    /// Whether it says anything.
    pub fn is_none(&self) -> bool {
        self.standbys == 0
    }

    /// What holds where either does.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        let standbys = self.standbys.min(other.standbys);
        let of = self.of.union(&other.of).copied();
        if standbys == 0 { Self::default() } else { Self { standbys, of: of.collect() } }
    }

    /// How many of the set must have told what they have, so that one of them has any given commit.
    pub fn needed(&self) -> usize {
        let standbys = usize::try_from(self.standbys).unwrap_or(usize::MAX);
        self.of.len().saturating_sub(standbys).saturating_add(1)
    }
}

/// What the log says of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cover {
    /// What holds for every commit that was ever acknowledged.
    pub promised: SyncSet,
    /// What the primary is to wait for.
    pub wanted: SyncSet,
    /// Tells this wish from earlier ones, equal or not; 0 before the first.
    pub number: u64,
}

impl Cover {
    /// Another set is wanted from the log's entry `number` on.
    pub(crate) fn want(&mut self, set: &SyncSet, number: u64) {
        self.promised = self.promised.or(set);
        self.wanted = set.clone();
        self.number = number;
    }

    /// Whether the promise is what is wanted.
    pub fn is_settled(&self) -> bool {
        self.promised == self.wanted
    }
}

/// A set of standbys for which a running primary waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoverSeen {
    /// [`Cover::number`] of what is in effect.
    pub number: u64,
    /// Everything from before it was in effect is on as many standbys, too.
    pub met: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::sync_set as set;

    /// All subsets of the nodes 1 to 4.
    fn subsets() -> Vec<BTreeSet<NodeId>> {
        (0_u64..16)
            .map(|bits| (1..=4).filter(|id| bits & (1 << (id - 1)) != 0).map(NodeId).collect())
            .collect()
    }

    /// Whether a commit that these have keeps a promise.
    fn keeps(promise: &SyncSet, have: &BTreeSet<NodeId>) -> bool {
        promise.of.intersection(have).count() >= usize::try_from(promise.standbys).unwrap()
    }

    fn all_sets() -> Vec<SyncSet> {
        let subsets = subsets();
        let sized = |of: &BTreeSet<NodeId>| 1..=u32::try_from(of.len()).unwrap();
        let sets =
            subsets.iter().flat_map(|of| sized(of).map(|standbys| SyncSet { standbys, of: of.clone() }));
        std::iter::once(SyncSet::default()).chain(sets).collect()
    }

    #[test]
    fn what_either_set_makes_sure_of_holds_in_between() {
        for (a, b) in all_sets().iter().flat_map(|a| all_sets().into_iter().map(move |b| (a.clone(), b))) {
            let both = a.or(&b);
            for have in subsets().iter().filter(|have| keeps(&a, have) || keeps(&b, have)) {
                assert!(keeps(&both, have), "{a:?} {b:?} {both:?} {have:?}");
            }
        }
    }

    #[test]
    fn whoever_asks_as_many_as_needed_meets_one_that_has_it() {
        for promise in all_sets().iter().filter(|set| !set.is_none()) {
            for have in subsets().iter().filter(|have| keeps(promise, have)) {
                for asked in subsets().iter().filter(|asked| asked.is_subset(&promise.of)) {
                    let meets = !asked.is_disjoint(have);
                    assert!(meets || asked.len() < promise.needed(), "{promise:?} {have:?} {asked:?}");
                }
            }
            // One fewer would not do.
            let misses = subsets().iter().any(|have| {
                let rest: BTreeSet<NodeId> = promise.of.difference(have).copied().collect();
                keeps(promise, have) && rest.len() == promise.needed() - 1
            });
            assert!(misses, "{promise:?}");
        }
    }

    #[test]
    fn a_wish_lowers_the_promise_until_it_is_settled() {
        let mut cover = Cover::default();
        cover.want(&set(1, &[2, 3]), 7);
        assert_eq!((cover.promised.is_none(), cover.is_settled(), cover.number), (true, false, 7));
        cover.promised = cover.wanted.clone();
        cover.want(&set(1, &[2]), 9);
        assert_eq!(cover.promised, set(1, &[2, 3]));
        cover.want(&set(1, &[4]), 10);
        assert_eq!(cover.promised, set(1, &[2, 3, 4]));
        assert_eq!(cover.promised.needed(), 3);
    }

    #[test]
    fn the_strongest_of_what_is_asked_for_counts() {
        let ask = |standbys, degrade_after_ms| Durability { standbys, degrade_after_ms };
        assert_eq!(ask(0, 0).and(ask(1, 500)), ask(1, 500));
        assert_eq!(ask(1, 500).and(ask(0, 0)), ask(1, 500));
        assert_eq!(ask(1, 500).and(ask(2, 0)), ask(2, 0));
        assert_eq!(ask(1, 500).and(ask(2, 900)), ask(2, 900));
        assert!(!ask(1, 0).degrades(Duration::from_secs(900)));
        assert!(ask(1, 500).degrades(Duration::from_millis(500)));
    }
}
