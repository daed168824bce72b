//! The virtual IP: what an agent's keeper of it and the kernels do.
//!
//! Nothing here is drawn at random, so that a seed means the same with an address as without one, as far as
//! it can.

use pgherd_core::defect::{Defect, planted};
use pgherd_core::node::{AddressOrder, AddressRules, AddressSeen, Asked};

use crate::clock::{MS, Micros, SECOND, Time};
use crate::network::Class;

use super::{Event, Work, World};

/// What a call to the kernel takes.
const CALL: Micros = MS / 2;
/// Three questions that nobody answers.
const QUESTIONS: Micros = 90 * MS;
/// The kernel is this late with an address whose time is over.
const KERNEL_LATE: Micros = SECOND;

/// What an agent's configuration says.
pub(crate) fn rules() -> AddressRules {
    AddressRules {
        name: "10.0.0.100/24".to_owned(),
        check_before_promotion: false,
        check_timeout: std::time::Duration::from_secs(15),
        take_anyway: false,
    }
}

impl World {
    /// A worker has started: what an earlier one has left is looked at first.
    pub(crate) fn begin_address(&mut self, index: usize) {
        if self.with_address {
            self.post(index, CALL, Work::AddressLook);
        }
    }

    pub(crate) fn look_at_address(&mut self, index: usize) {
        let held = self.machines[index].address.is_some();
        self.tell_of_address(index, AddressSeen { held, ..AddressSeen::default() });
    }

    fn tell_of_address(&mut self, index: usize, seen: AddressSeen) {
        if let Some(node) = self.node_mut(index) {
            node.address(seen);
        }
    }

    /// An order goes to the keeper, which carries it out a moment later.
    pub(crate) fn order_address(&mut self, index: usize, order: AddressOrder) {
        let Some(worker) = self.worker(index) else { return };
        let before = worker.address.replace(order);
        let kind = |order: &AddressOrder| std::mem::discriminant(order);
        if before.as_ref().map(kind) != Some(kind(&order)) || matches!(order, AddressOrder::Hold { .. }) {
            self.post(index, CALL, Work::Address);
        }
    }

    /// The keeper does what it was ordered last.
    pub(crate) fn keep_address(&mut self, index: usize) {
        let now = self.mono(index);
        let Some(order) = self.worker(index).and_then(|worker| worker.address) else { return };
        match order {
            AddressOrder::Hold { until, lifetime } if now < until => {
                let span = self.machines[index].clock.true_span(lifetime) + KERNEL_LATE;
                let ends = self.now + span;
                self.machines[index].address = Some(ends);
                self.at(ends, Event::AddressEnds(index, ends));
                self.notice_address(index);
                self.tell_of_address(index, AddressSeen { held: true, ..AddressSeen::default() });
            }
            AddressOrder::Hold { .. } | AddressOrder::Release => self.give_up_address(index),
            AddressOrder::Ask => {
                self.give_up_address(index);
                self.post(index, QUESTIONS, Work::AddressAsked);
            }
        }
    }

    fn give_up_address(&mut self, index: usize) {
        self.release_address(index);
        self.tell_of_address(index, AddressSeen::default());
    }

    /// It was asked who has the address, and the time for answers is over.
    pub(crate) fn address_asked(&mut self, index: usize) {
        if !matches!(self.worker(index).and_then(|worker| worker.address), Some(AddressOrder::Ask)) {
            return;
        }
        let answers = |other: &usize| {
            *other != index
                && self.machines[*other].answers()
                && self.network.connects(index, *other, Class::Postgres)
        };
        let asked = match (0..self.machines.len()).find(answers) {
            Some(other) => Asked::Elsewhere(self.name(other)),
            None => Asked::Silent,
        };
        self.tell_of_address(index, AddressSeen { asked, ..AddressSeen::default() });
        self.post(index, QUESTIONS, Work::AddressAsked);
    }

    /// Somebody on this machine removes the address.
    pub(crate) fn release_address(&mut self, index: usize) {
        if self.machines[index].address.take().is_some() {
            self.notice_address(index);
        }
    }

    /// The guardian does, at the end of the lease.
    pub(crate) fn guardian_releases(&mut self, index: usize) {
        if !planted(Defect::AddressOutlivesLease) {
            self.release_address(index);
        }
    }

    /// The kernel does, if nobody has renewed it.
    pub(crate) fn address_ends(&mut self, index: usize, ends: Time) {
        if self.machines[index].address == Some(ends) {
            let name = self.name(index);
            self.note(|| format!("{name}: the kernel ends the virtual IP"));
            self.release_address(index);
        }
    }

    /// Tells the checks who can answer for the address.
    pub(crate) fn notice_address(&mut self, index: usize) {
        let answers = self.machines[index].answers();
        if std::mem::replace(&mut self.machines[index].answered, answers) == answers {
            return;
        }
        let name = self.name(index);
        self.note(|| format!("{name}: {} the virtual IP", if answers { "has" } else { "no longer has" }));
        self.check_holders(index, answers);
    }
}
