//! What an operator asks of this node's own PostgreSQL, and whom it can be copied from.

use pgherd_common::{MonoTime, NodeName, WallTime};

use super::Node;
use super::restart::Restart;
use crate::coordinator::Seen;
use crate::observation::PostgresObservation;
use crate::rebuild::{Order, OrderRefused, REBUILDING};
use crate::reconcile::{LocalAction, Upstream};

impl Node {
    /// Takes an order, unless there is a reason against it. It is done as soon as it can; a standby that runs is stopped as
    /// for a restart, once proxies send it nothing. The number of the order in force: an earlier one's, where that asks for
    /// the same.
    pub fn order(&mut self, order: Order, now: MonoTime, wall: WallTime) -> Result<u64, OrderRefused> {
        let name = self.setup.descriptor.name.clone();
        let refuse = |why: fn(NodeName) -> OrderRefused| Err(why(name.clone()));
        let Some(own) = &self.own else { return refuse(OrderRefused::Witness) };
        let identity = self.state.identity.as_ref();
        let member = self.state.members.get(&self.id());
        let (Some(identity), Some(member)) = (identity, member) else {
            return refuse(OrderRefused::NoPrimary);
        };
        if own.system_identifier != identity.system_identifier {
            let (found, wanted) = (own.system_identifier, identity.system_identifier);
            return Err(OrderRefused::Foreign { node: name, found, wanted });
        }
        if self.is_primary() {
            return refuse(OrderRefused::IsPrimary);
        }
        if self.state.change.is_some() {
            return Err(OrderRefused::ChangeInFlight);
        }
        if !member.allowed {
            return refuse(OrderRefused::NotAllowed);
        }
        if member.leaving.is_some() {
            return refuse(OrderRefused::Leaving);
        }
        if let Some(pause) = self.state.pauses.of(self.id()) {
            return Err(OrderRefused::Paused { node: name, until: pause.until });
        }
        if let Some(present) = self.reconciler.comeback().order() {
            let same = Order { number: order.number, ..present.clone() } == order;
            return if same { Ok(present.number) } else { refuse(OrderRefused::Busy) };
        }
        let donors = self.donors(now);
        if donors.is_empty() {
            return refuse(OrderRefused::NoPrimary);
        }
        if let Some(from) = &order.from
            && !donors.iter().any(|donor| donor.node == *from)
        {
            let why = if *from == name {
                "it is the node that is to be rebuilt"
            } else if self.is_rested_on() {
                "commits that were acknowledged rest on this node, and the primary alone is sure to have them"
            } else {
                "it is neither the primary nor a standby that runs and streams from it"
            };
            return Err(OrderRefused::BadSource { from: from.clone(), why: why.to_owned() });
        }
        let number = order.number;
        self.duty.restart = Restart::of(own, wall).or(self.duty.restart);
        self.reconciler.comeback_mut().ask(order);
        Ok(number)
    }

    /// An order that an earlier process of this agent had taken and not finished.
    pub fn order_again(&mut self, order: Order) {
        self.reconciler.comeback_mut().ask(order);
    }

    /// What an operator has asked for and is not done.
    pub fn ordered(&self) -> Option<&Order> {
        self.reconciler.comeback().order()
    }

    /// The number of an order for a node that has become the primary since. It is in force no more.
    pub fn outdated_order(&mut self) -> Option<u64> {
        let number = self.ordered().filter(|_| self.is_primary())?.number;
        self.forget_order().then_some(number)
    }

    /// Takes an order back that nobody has begun to carry out; true if there is none left.
    pub fn forget_order(&mut self) -> bool {
        let begun = self.acting.as_ref().is_some_and(
            |(action, _)| matches!(action, LocalAction::Rebuild(rebuild) if rebuild.order.is_some()),
        );
        if !begun && self.ordered().is_some() {
            self.duty.restart = None;
            self.reconciler.comeback_mut().forget();
        }
        !begun
    }

    /// What the others are told while it lasts: it is down on purpose.
    pub(super) fn tell_rebuild(&self, own: PostgresObservation) -> PostgresObservation {
        match self.acting() {
            Some(LocalAction::Rebuild(_)) => {
                PostgresObservation { trouble: Some(REBUILDING.to_owned()), ..own }
            }
            Some(_) | None => own,
        }
    }

    /// Whether a failover may take it for granted that this node has what was acknowledged: a standby that lacks some of
    /// it is nothing to be made from then.
    fn is_rested_on(&self) -> bool {
        self.state.cover.promised.of.contains(&self.id())
    }

    /// Members to copy from: those that are tagged for it, then standbys that stream, the one that has most first; the
    /// primary comes behind its like, since it has enough to do. Nobody without a primary that serves.
    pub(super) fn donors(&self, now: MonoTime) -> Vec<Upstream> {
        let Some(primary) = self.state.upstream() else { return Vec::new() };
        let running = |seen: &Seen| seen.observation.postgres.as_ref().and_then(|own| own.running().cloned());
        let well = |seen: &Seen| {
            seen.observation.postgres.as_ref().is_some_and(|own| own.health.complaint().is_none())
        };
        let mut donors = Vec::new();
        for member in self.state.databases().filter(|member| member.descriptor.id != self.id()) {
            let Some(seen) = self.heard(member.descriptor.id, now) else { continue };
            let (Some(running), Some(own)) = (running(seen), member.descriptor.postgres.clone()) else {
                continue;
            };
            let is_primary = member.descriptor.id == primary && !running.in_recovery;
            let follows = running.in_recovery && self.state.is_fed(member.descriptor.id, &running);
            if is_primary || (follows && well(seen) && !self.is_rested_on()) {
                let node = member.descriptor.name.clone();
                donors.push((
                    (!member.descriptor.tags.clone_from, is_primary, std::cmp::Reverse(running.position)),
                    Upstream { node, address: own, generation: None, copy_slots: false },
                ));
            }
        }
        // Without the primary there is nobody to follow afterwards.
        if !donors.iter().any(|((_, is_primary, _), _)| *is_primary) {
            return Vec::new();
        }
        donors.sort_by_key(|(order, _)| *order);
        donors.into_iter().map(|(_, donor)| donor).collect()
    }
}

#[cfg(test)]
mod tests;
