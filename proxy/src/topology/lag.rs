//! For how long a standby has lacked something: what the agents saw of the primary's positions tells since
//! when there was more than the standby has. No clock but this machine's is looked at, and a primary that
//! writes nothing leaves nobody behind.

use std::time::Duration;

use pgherd_common::{Lsn, MonoTime};

/// So many positions are remembered. Older ones are thinned out rather than forgotten.
const SEEN_MAX: usize = 1024;

/// How far apart, in parts of their age, positions may be after that. More of them, if room is short.
const PART_OF_AGE: u32 = 64;

/// Positions of the primary and when each was first seen, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Positions {
    seen: Vec<(MonoTime, Lsn)>,
}

impl Positions {
    /// The primary was there at that time.
    pub fn note(&mut self, at: MonoTime, position: Lsn) {
        match self.seen.last() {
            Some((_, last)) if position == *last => return,
            // Another primary, which lacks what the one before had.
            Some((_, last)) if position < *last => self.seen.clear(),
            Some(_) | None => {}
        }
        if self.seen.len() >= SEEN_MAX {
            self.thin_out();
        }
        self.seen.push((at, position));
    }

    /// Makes room for a while. How old something is stays known to within a small part of its age.
    fn thin_out(&mut self) {
        let mut part = PART_OF_AGE;
        while self.seen.len() > SEEN_MAX / 4 * 3 && part > 0 {
            self.drop_closer_than(part);
            part /= 2;
        }
    }

    /// Drops what is closer to its neighbours than one `part`-th of its age; not the oldest, nor the newest.
    fn drop_closer_than(&mut self, part: u32) {
        let Some((newest, _)) = self.seen.last().copied() else { return };
        let mut kept: Vec<(MonoTime, Lsn)> = Vec::with_capacity(self.seen.len());
        let nexts = self.seen.iter().skip(1).map(|(at, _)| Some(*at)).chain([None]);
        for (seen, next) in self.seen.iter().zip(nexts) {
            let is_needed = match (kept.last(), next) {
                (Some((before, _)), Some(next)) => next.since(*before) * part > newest.since(next),
                (None, _) | (_, None) => true,
            };
            if is_needed {
                kept.push(*seen);
            }
        }
        self.seen = kept;
    }

    /// Since when there has been more than `replayed`; `None`: there is not, as far as is known.
    pub fn left_behind(&self, replayed: Lsn) -> Option<MonoTime> {
        let first = self.seen.partition_point(|(_, position)| *position <= replayed);
        self.seen.get(first).map(|(at, _)| *at)
    }

    /// For how long a standby that replayed so far has been behind, by `now`.
    pub fn lag(&self, replayed: Lsn, now: MonoTime) -> Duration {
        self.left_behind(replayed).map_or(Duration::ZERO, |since| now.since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> MonoTime {
        MonoTime::since_boot(Duration::from_secs(seconds))
    }

    #[test]
    fn lag_is_the_age_of_the_first_thing_that_is_missing() {
        let mut positions = Positions::default();
        assert_eq!(positions.lag(Lsn(0), at(9)), Duration::ZERO);
        for (second, position) in [(1, 100), (2, 200), (3, 200), (50, 200), (51, 300)] {
            positions.note(at(second), Lsn(position));
        }
        let lag = |replayed| positions.lag(Lsn(replayed), at(60)).as_secs();
        assert_eq!((lag(300), lag(299), lag(200), lag(150), lag(99)), (0, 9, 9, 58, 59));
    }

    #[test]
    fn another_primary_begins_anew() {
        let mut positions = Positions::default();
        positions.note(at(1), Lsn(500));
        positions.note(at(2), Lsn(400));
        assert_eq!(positions.lag(Lsn(400), at(9)), Duration::ZERO);
        assert_eq!(positions.lag(Lsn(399), at(9)), Duration::from_secs(7));
    }

    #[test]
    fn a_standby_that_stands_still_for_long_is_not_forgotten() {
        let mut positions = Positions::default();
        for second in 1..100_000 {
            positions.note(at(second), Lsn(second * 10));
        }
        assert!(positions.seen.len() <= SEEN_MAX);
        let lag = positions.lag(Lsn(500_000), at(100_000)).as_secs();
        assert!((49_000..=50_000).contains(&lag), "{lag}");
        assert_eq!(positions.lag(Lsn(999_989), at(100_000)).as_secs(), 1);
    }
}
