//! I4: the old primary has stopped accepting writes before a new one begins to: at no moment of true
//! time can a client that tries every server write on two of them.
//!
//! Three situations are excused, each for a bounded time: they cannot be prevented from inside.

use std::collections::BTreeMap;

use crate::clock::{MS, Micros, SECOND, Time};

use super::Violation;

/// Why two servers may accept writes for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excuse {
    /// Somebody promoted one by hand: it is found and killed.
    PromotedByHand,
    /// The machine stood still for longer than its lease: its guardian kills first thing, but not before
    /// it runs. Only a hardware watchdog does better.
    JustThawed,
    /// Guardian and worker were killed together and something else failed too: a double fault.
    Unguarded,
}

impl Excuse {
    /// How long it counts.
    pub fn span(self) -> Micros {
        match self {
            // A look, a turn, and the kill.
            Self::PromotedByHand => 1500 * MS,
            // The guardian's slack and the kill.
            Self::JustThawed => 550 * MS,
            Self::Unguarded => 3600 * SECOND,
        }
    }
}

/// Who accepts writes.
#[derive(Debug)]
pub(crate) struct Writable {
    since: Vec<Option<Time>>,
    /// Excused overlaps: who has to be gone by when.
    excused: BTreeMap<usize, (Excuse, Time)>,
    count: usize,
}

impl Writable {
    pub(crate) fn new(machines: usize) -> Self {
        Self { since: vec![None; machines], excused: BTreeMap::new(), count: 0 }
    }

    /// Overlaps that were excused.
    pub(crate) fn excused(&self) -> usize {
        self.count
    }

    /// A server begins to accept writes. `excuse`: for each machine, why it may do so beside another, and
    /// since when that counts.
    pub(crate) fn on(
        &mut self,
        node: usize,
        now: Time,
        excuse: impl Fn(usize) -> Option<(Excuse, Time)>,
    ) -> Option<Violation> {
        if let Some(since) = self.since.get_mut(node) {
            *since = Some(now);
        }
        for (other, since) in self.since.iter().enumerate() {
            let Some(since) = since.filter(|_| other != node) else { continue };
            let excuses = [other, node].into_iter().filter_map(|one| {
                let (excuse, from) = excuse(one)?;
                let until = from + excuse.span();
                (now <= until).then_some((one, excuse, until))
            });
            // Whoever is excused longest is the one to be gone by then.
            let excused = excuses.max_by_key(|(_, _, until)| *until);
            let Some((one, excuse, until)) = excused else {
                return Some(Violation::TwoWritable { old: other, new: node, since: now.since(since) });
            };
            self.count += 1;
            self.excused.insert(one, (excuse, until));
        }
        None
    }

    /// A server accepts no more writes.
    pub(crate) fn off(&mut self, node: usize) {
        if let Some(since) = self.since.get_mut(node) {
            *since = None;
        }
        let writable = self.since.iter().flatten().count();
        if writable <= 1 {
            self.excused.clear();
        } else {
            self.excused.remove(&node);
        }
    }

    /// Whether everything that was excused has ended in time.
    pub(crate) fn overdue(&self, now: Time) -> Option<Violation> {
        let overdue = self.excused.iter().find(|(_, (_, until))| now > *until);
        overdue.map(|(node, (excuse, _))| Violation::WritableTooLong { node: *node, excuse: *excuse })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlap_of_a_microsecond_is_found() {
        let mut checker = Writable::new(3);
        assert_eq!(checker.on(0, Time(1), |_| None), None);
        checker.off(0);
        assert_eq!(checker.on(1, Time(2), |_| None), None);
        let found = checker.on(0, Time(3), |_| None);
        assert_eq!(found, Some(Violation::TwoWritable { old: 1, new: 0, since: 1 }));
    }

    #[test]
    fn an_excuse_ends() {
        let mut checker = Writable::new(2);
        assert_eq!(checker.on(0, Time(0), |_| None), None);
        let by_hand = |node: usize| (node == 1).then_some((Excuse::PromotedByHand, Time(100)));
        assert_eq!(checker.on(1, Time(100), by_hand), None);
        assert_eq!(checker.excused(), 1);
        assert_eq!(checker.overdue(Time(100 + SECOND)), None);
        let overdue = checker.overdue(Time(100 + 2 * SECOND)).unwrap();
        assert!(matches!(overdue, Violation::WritableTooLong { node: 1, .. }));
        checker.off(1);
        assert_eq!(checker.overdue(Time(100 + 2 * SECOND)), None);
    }
}
