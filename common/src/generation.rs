//! The fencing number.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Counts the changes of primary. Committed through raft, one up at every change; every actor
/// refuses what carries an older one. Made only by [`Generation::next`] or by decoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(u64);

impl Generation {
    /// Before the first primary.
    pub const ZERO: Self = Self(0);

    /// The generation after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The bare number, for printing and for files.
    pub fn number(self) -> u64 {
        self.0
    }
}

impl FromStr for Generation {
    type Err = ParseIntError;

    /// As it is printed.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
