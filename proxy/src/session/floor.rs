//! How far a standby must have come for this session to read from it: everything the session committed,
//! or may have seen, lies before that.

use pgherd_common::{Generation, Lsn};

/// WAL comes in pages; the header of one is at most so long.
const PAGE: u64 = 8192;
const PAGE_HEADER_MAX: u64 = 40;

/// What a read on a standby is sure to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// Whatever the standby has replayed.
    Eventual,
    /// All that the session committed, and all that was committed when it began.
    Session,
    /// All that anybody committed before.
    Global,
}

impl Consistency {
    /// By its name in the configuration and in `SET pgherd.read_consistency`.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "eventual" => Some(Self::Eventual),
            "session" => Some(Self::Session),
            "global" => Some(Self::Global),
            _ => None,
        }
    }

    /// What a statement that sets it says, if it says anything that is understood.
    pub(super) fn from_set(sql: &str) -> Option<Self> {
        let value = sql.rsplit(|c: char| c == '=' || c.is_ascii_whitespace()).next()?;
        Self::named(&value.trim_matches('\'').to_ascii_lowercase())
    }
}

/// The setting by which a session chooses for itself.
pub(super) const SETTING: &str = "pgherd.read_consistency";

/// See the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Floor {
    at: Lsn,
    /// The generation of the primary that told the position.
    generation: Generation,
    /// Something was committed whose position is not known.
    doubtful: bool,
}

/// Whether a standby may serve the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// It has come far enough.
    Fresh,
    /// It is behind, and worth waiting for.
    Behind,
    /// Only the primary can tell.
    Unknown,
}

impl Floor {
    /// Something may have been committed.
    pub fn doubt(&mut self) {
        self.doubtful = true;
    }

    /// Whether only the primary has, for certain, all that the session must see.
    pub fn is_doubtful(&self) -> bool {
        self.doubtful
    }

    /// The primary of `generation` told its position, and did so after all that the session did.
    pub fn learn(&mut self, at: Lsn, generation: Generation) {
        let at = page_start(at);
        // A new primary may lack what the old one had: its position counts, though it be lower.
        if generation > self.generation {
            (self.at, self.generation) = (at, generation);
        } else {
            self.at = self.at.max(at);
        }
        self.doubtful = false;
    }

    /// What a standby that replayed up to `replayed` is to this session while `generation` is in effect.
    pub fn judge(&self, replayed: Lsn, generation: Generation) -> Freshness {
        if self.doubtful {
            Freshness::Unknown
        } else if replayed >= self.at {
            Freshness::Fresh
        } else if generation == self.generation {
            Freshness::Behind
        } else {
            // It may never come there: what was lost with the old primary is not waited for.
            Freshness::Unknown
        }
    }
}

/// The position at which a primary would write next lies behind the header of a new page, while a
/// standby that replayed all there is stands before it.
fn page_start(at: Lsn) -> Lsn {
    let inside = at.0 % PAGE;
    if inside <= PAGE_HEADER_MAX { Lsn(at.0 - inside) } else { at }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation(number: u32) -> Generation {
        (0..number).fold(Generation::ZERO, |generation, _| generation.next())
    }

    #[test]
    fn a_standby_serves_once_it_has_what_the_session_wrote() {
        let mut floor = Floor::default();
        let now = generation(1);
        assert_eq!(floor.judge(Lsn(0), now), Freshness::Fresh);
        floor.doubt();
        assert_eq!(floor.judge(Lsn(u64::MAX), now), Freshness::Unknown);
        floor.learn(Lsn(1000), now);
        floor.learn(Lsn(900), now);
        assert_eq!(floor.judge(Lsn(999), now), Freshness::Behind);
        assert_eq!(floor.judge(Lsn(1000), now), Freshness::Fresh);
    }

    #[test]
    fn what_was_lost_with_a_primary_is_not_waited_for() {
        let mut floor = Floor::default();
        floor.learn(Lsn(1000), generation(1));
        assert_eq!(floor.judge(Lsn(900), generation(2)), Freshness::Unknown);
        assert_eq!(floor.judge(Lsn(1000), generation(2)), Freshness::Fresh);
        floor.learn(Lsn(800), generation(2));
        assert_eq!(floor.judge(Lsn(900), generation(2)), Freshness::Fresh);
    }

    #[test]
    fn the_header_of_an_empty_page_is_nothing_to_wait_for() {
        let mut floor = Floor::default();
        floor.learn(Lsn(3 * PAGE + 24), generation(1));
        assert_eq!(floor.judge(Lsn(3 * PAGE), generation(1)), Freshness::Fresh);
        assert_eq!(floor.judge(Lsn(3 * PAGE - 8), generation(1)), Freshness::Behind);
    }
}
