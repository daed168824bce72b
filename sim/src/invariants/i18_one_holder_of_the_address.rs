//! I18: at no moment of true time do two machines that could answer for it have the virtual IP.
//!
//! Excused is what is excused of writing: the address goes with the lease, and is given up by the same hands.

use crate::clock::Time;

use super::Violation;
use super::i04_old_primary_stops_first::{Excuse, Writable};

/// Who has the address.
#[derive(Debug)]
pub(crate) struct Holders(Writable);

impl Holders {
    pub(crate) fn new(machines: usize) -> Self {
        Self(Writable::new(machines))
    }

    /// A machine has the address from now on. `excuse`: for each machine, why it may have it beside another,
    /// and since when that counts.
    pub(crate) fn on(
        &mut self,
        node: usize,
        now: Time,
        excuse: impl Fn(usize) -> Option<(Excuse, Time)>,
    ) -> Option<Violation> {
        self.0.on(node, now, excuse).map(of_the_address)
    }

    /// A machine has it no more.
    pub(crate) fn off(&mut self, node: usize) {
        self.0.off(node);
    }

    /// Whether everything that was excused has ended in time.
    pub(crate) fn overdue(&self, now: Time) -> Option<Violation> {
        self.0.overdue(now).map(of_the_address)
    }
}

fn of_the_address(found: Violation) -> Violation {
    match found {
        Violation::TwoWritable { old, new, since } => Violation::TwoHolders { old, new, since },
        Violation::WritableTooLong { node, excuse } => Violation::HeldTooLong { node, excuse },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SECOND;

    #[test]
    fn a_second_holder_is_found_however_short_it_is_one() {
        let mut holders = Holders::new(3);
        assert_eq!(holders.on(0, Time(1), |_| None), None);
        holders.off(0);
        assert_eq!(holders.on(1, Time(2), |_| None), None);
        assert_eq!(
            holders.on(0, Time(3), |_| None),
            Some(Violation::TwoHolders { old: 1, new: 0, since: 1 })
        );
    }

    #[test]
    fn a_machine_that_stood_still_must_let_go_soon() {
        let mut holders = Holders::new(2);
        assert_eq!(holders.on(0, Time(0), |_| None), None);
        let thawed = |node: usize| (node == 0).then_some((Excuse::JustThawed, Time(100)));
        assert_eq!(holders.on(1, Time(100), thawed), None);
        let overdue = holders.overdue(Time(100 + SECOND));
        assert_eq!(overdue, Some(Violation::HeldTooLong { node: 0, excuse: Excuse::JustThawed }));
    }
}
