//! I11: from the moment a standby has said that it is recruited for a generation, no WAL of an older
//! primary reaches it: it can acknowledge nothing for that primary any more.

use pgherd_common::Generation;

use super::Violation;

/// For which generation each standby is recruited.
#[derive(Debug)]
pub(crate) struct Recruits(Vec<Generation>);

impl Recruits {
    pub(crate) fn new(machines: usize) -> Self {
        Self(vec![Generation::ZERO; machines])
    }

    /// A standby has said so.
    pub(crate) fn recruited(&mut self, standby: usize, generation: Generation) {
        if let Some(known) = self.0.get_mut(standby) {
            *known = (*known).max(generation);
        }
    }

    /// WAL of a primary of this generation has reached it.
    pub(crate) fn received(&self, standby: usize, from: usize, of: Generation) -> Option<Violation> {
        let generation = self.0.get(standby).copied().unwrap_or_default();
        (of < generation).then_some(Violation::ReceivedAfterRecruit { standby, from, generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wal_of_the_old_primary_is_found() {
        let (mut recruits, first) = (Recruits::new(2), Generation::ZERO.next());
        assert_eq!(recruits.received(1, 0, first), None);
        recruits.recruited(1, first.next());
        assert!(recruits.received(1, 0, first).is_some());
        assert_eq!(recruits.received(1, 0, first.next()), None);
    }
}
