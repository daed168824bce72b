//! Positions in PostgreSQL's write-ahead log.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A byte position in the WAL, printed as PostgreSQL prints it: `16/B374D848`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Lsn(pub u64);

impl Lsn {
    /// Bytes of WAL from `older` up to here; 0 when `older` is not older.
    pub fn bytes_since(self, older: Self) -> u64 {
        self.0.saturating_sub(older.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF))
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Text that is not a WAL position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a WAL position such as 16/B374D848")]
pub struct InvalidLsn(String);

impl FromStr for Lsn {
    type Err = InvalidLsn;

    fn from_str(text: &str) -> Result<Self, InvalidLsn> {
        let refuse = || InvalidLsn(text.to_owned());
        let (high, low) = text.split_once('/').ok_or_else(refuse)?;
        let half = |part: &str| u32::from_str_radix(part, 16).map_err(|_| refuse());
        Ok(Self(u64::from(half(high)?) << 32 | u64::from(half(low)?)))
    }
}

impl TryFrom<String> for Lsn {
    type Error = InvalidLsn;

    fn try_from(text: String) -> Result<Self, InvalidLsn> {
        text.parse()
    }
}

impl From<Lsn> for String {
    fn from(lsn: Lsn) -> String {
        lsn.to_string()
    }
}

/// A PostgreSQL timeline. Every promotion begins a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timeline(pub u32);

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The forks behind a timeline: each parent and the position at which it was left, oldest first.
/// The content of PostgreSQL's `NNNNNNNN.history` file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimelineHistory(pub Vec<(Timeline, Lsn)>);

impl TimelineHistory {
    /// Reads a history file's text. Lines that are not `timeline <tab> position ...` are comments.
    pub fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let mut fields = line.split_whitespace();
            let timeline = fields.next()?.parse().ok().map(Timeline)?;
            Some((timeline, fields.next()?.parse().ok()?))
        };
        Self(text.lines().filter_map(line).collect())
    }

    /// Where this history left `timeline`; `None` when it never was on it (or still is).
    pub fn left(&self, timeline: Timeline) -> Option<Lsn> {
        self.0.iter().rev().find(|(parent, _)| *parent == timeline).map(|(_, fork)| *fork)
    }

    /// Whether the forks behind `timeline` on another server can be the ones this history has behind it.
    /// Two promotions may take one number. A server that knows no fork behind a timeline other than the
    /// first has lost the file, and contradicts nobody.
    pub fn may_share(&self, timeline: Timeline, forks: &Self) -> bool {
        let before = self.0.iter().take_while(|(parent, _)| *parent < timeline);
        forks.0.is_empty() || forks.0.iter().eq(before)
    }

    /// Whether WAL that ends at `end` on `timeline` is a prefix of a server on `current` with this
    /// history, so that such a node can follow that server as it is.
    pub fn contains(&self, current: Timeline, timeline: Timeline, end: Lsn) -> bool {
        timeline == current || self.left(timeline).is_some_and(|fork| end <= fork)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_numbers() {
        let lsn = |text: &str| text.parse::<Lsn>().unwrap();
        assert!(lsn("9/FFFFFFFF") < lsn("10/0") && lsn("10/0") < lsn("A0/0"), "not text");
    }

    #[test]
    fn lsn_prints_as_postgresql_does() {
        let lsn: Lsn = "16/B374D848".parse().unwrap();
        assert_eq!(lsn.0, 0x16_B374_D848);
        assert_eq!(lsn.to_string(), "16/B374D848");
        assert_eq!(lsn.bytes_since(Lsn(lsn.0 - 7)), 7);
        assert_eq!(Lsn(1).bytes_since(lsn), 0);
        for bad in ["", "16", "16/", "x/1", "1/123456789"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_node_past_the_fork_has_diverged() {
        let history =
            TimelineHistory::parse("1\t0/3000000\tno recovery target specified\n\n2\t0/5000000\treason\n");
        let at = |text: &str| text.parse().unwrap();
        assert!(history.contains(Timeline(3), Timeline(3), at("9/0")));
        assert!(history.contains(Timeline(3), Timeline(2), at("0/5000000")));
        assert!(!history.contains(Timeline(3), Timeline(2), at("0/5000001")));
        assert!(!history.contains(Timeline(3), Timeline(1), at("0/4000000")));
        assert!(!history.contains(Timeline(3), Timeline(4), at("0/1")));
    }

    #[test]
    fn timelines_of_one_number_are_told_apart_by_the_forks_behind_them() {
        let forks = |forks: &[(u32, u64)]| {
            TimelineHistory(forks.iter().map(|(parent, fork)| (Timeline(*parent), Lsn(*fork))).collect())
        };
        let server = forks(&[(1, 900), (2, 2000)]);
        assert!(server.may_share(Timeline(3), &server));
        assert!(server.may_share(Timeline(2), &forks(&[(1, 900)])));
        assert!(server.may_share(Timeline(1), &forks(&[])));
        assert!(!server.may_share(Timeline(2), &forks(&[(1, 950)])));
        assert!(!server.may_share(Timeline(3), &forks(&[(1, 900), (2, 1999)])));
        assert!(server.may_share(Timeline(3), &forks(&[])), "a lost file contradicts nobody");
    }
}
