//! The parameters of which a standby must have as much as its primary has: a hot standby compares them with what the WAL
//! says, and pauses replay, or does not start, with less. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Their names, in the order in which [`Capacity`] has the values.
pub const NAMES: [&str; 5] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];

/// How much of each a server has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Capacity([u32; 5]);

/// A server has less of something than it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shortfall {
    /// Of which parameter.
    pub name: &'static str,
    /// How much it has.
    pub has: u32,
    /// How much it needs.
    pub needs: u32,
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}, {} needed", self.name, self.has, self.needs)
    }
}

impl Capacity {
    /// From values in the order of [`NAMES`].
    pub fn new(values: [u32; 5]) -> Self {
        Self(values)
    }

    /// From values by name; `None` if one of them is missing.
    pub fn of(value: impl Fn(&str) -> Option<u32>) -> Option<Self> {
        let mut found = [0; 5];
        for (place, name) in found.iter_mut().zip(NAMES) {
            *place = value(name)?;
        }
        Some(Self(found))
    }

    /// Each with its name.
    pub fn iter(self) -> impl Iterator<Item = (&'static str, u32)> {
        NAMES.into_iter().zip(self.0)
    }

    /// The more of each.
    #[must_use]
    pub fn most(self, other: Self) -> Self {
        let mut most = self.0;
        for (mine, theirs) in most.iter_mut().zip(other.0) {
            *mine = (*mine).max(theirs);
        }
        Self(most)
    }

    /// What is missing to be a standby of a server that has `needed`.
    pub fn shortfalls(self, needed: Self) -> impl Iterator<Item = Shortfall> {
        let both = self.iter().zip(needed.0);
        both.filter(|((_, has), needs)| has < needs).map(|((name, has), needs)| Shortfall {
            name,
            has,
            needs,
        })
    }

    /// The same for people; `None` if nothing is missing.
    pub fn lacks(self, needed: Self) -> Option<String> {
        let missing: Vec<String> = self.shortfalls(needed).map(|missing| missing.to_string()).collect();
        (!missing.is_empty()).then(|| missing.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_and_the_most_of_both_lacks_nothing() {
        let small = Capacity::new([100, 8, 10, 0, 64]);
        let large = Capacity::new([200, 8, 5, 2, 64]);
        assert_eq!(
            small.lacks(large).as_deref(),
            Some("max_connections = 100, 200 needed; max_prepared_transactions = 0, 2 needed")
        );
        assert_eq!(
            large.shortfalls(small).map(|missing| missing.name).collect::<Vec<_>>(),
            ["max_wal_senders"]
        );
        let most = small.most(large);
        assert_eq!(most, Capacity::new([200, 8, 10, 2, 64]));
        assert!(most.lacks(small).is_none() && most.lacks(large).is_none() && small.lacks(small).is_none());
    }

    #[test]
    fn values_are_taken_by_name() {
        let value =
            |name: &str| NAMES.iter().position(|known| *known == name).and_then(|at| u32::try_from(at).ok());
        assert_eq!(Capacity::of(value), Some(Capacity::new([0, 1, 2, 3, 4])));
        assert_eq!(Capacity::of(|name| (name != "max_wal_senders").then_some(1)), None);
    }
}
