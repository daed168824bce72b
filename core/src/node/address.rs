//! When this node may have the primary's virtual IP address.
//!
//! Only the primary has it: while its server accepts writes under a lease, and no longer than the lease. A
//! node that is to take it asks first whether anybody else answers for it, since the old primary may be
//! where no lease reaches it: without an agent. What is done about an address is done by whoever drives the
//! [`Node`](super::Node); it must not be taken but as [`AddressOrder::Hold`] says.

use std::time::Duration;

use pgherd_common::MonoTime;

use crate::cluster::PrimaryPhase;
use crate::defect::{Defect, planted};
use crate::observation::{AddressTold, PostgresState};
use crate::reconcile::LocalAction;

use super::{Guard, Node};

/// How long an address stays without being renewed, in leases. Longer than one: a worker that is started
/// again must find the address of a primary that went on. It is the last line of defence, for a node
/// whose worker and guardian are both gone.
const LIFETIME_LEASES: u32 = 2;

/// What the configuration says about the address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressRules {
    /// As people know it.
    pub name: String,
    /// Nobody is promoted here while somebody else answers for it.
    pub check_before_promotion: bool,
    /// After so long of somebody else's answering...
    pub check_timeout: Duration,
    /// ...it is taken all the same. Otherwise never.
    pub take_anyway: bool,
}

/// What is to be done about the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressOrder {
    /// This node is not to have it: it goes where it is found.
    Release,
    /// The same, and it is to be found out whether somebody else has it.
    Ask,
    /// This node is to have it.
    Hold {
        /// No longer than until then, unless a later order moves the time.
        until: MonoTime,
        /// For so long in the kernel's own count.
        lifetime: Duration,
    },
}

/// What is known of the address on this node, since the last order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AddressSeen {
    /// This node has it.
    pub held: bool,
    /// What became of asking.
    pub asked: Asked,
    /// Why the last attempt failed, until one succeeds.
    pub trouble: Option<String>,
}

/// Whether somebody else has the address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Asked {
    /// Nobody knows.
    #[default]
    Unknown,
    /// Nobody answers for it.
    Silent,
    /// Somebody does.
    Elsewhere(String),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct AddressDuty {
    rules: Option<AddressRules>,
    /// `None`: nobody has looked yet.
    seen: Option<AddressSeen>,
    order: Option<AddressOrder>,
    asking_since: Option<MonoTime>,
}

impl AddressDuty {
    pub(super) fn new(rules: Option<AddressRules>) -> Self {
        Self { rules, ..Self::default() }
    }

    /// Whether the rules let this node take the address.
    fn may_take(&self, now: MonoTime) -> bool {
        let (Some(rules), Some(seen)) = (&self.rules, &self.seen) else { return false };
        let waited = self.asking_since.is_some_and(|since| now.since(since) >= rules.check_timeout);
        seen.held || seen.asked == Asked::Silent || (rules.take_anyway && waited)
    }

    fn told(&self) -> Option<AddressTold> {
        let rules = self.rules.as_ref()?;
        let seen = self.seen.clone().unwrap_or_default();
        let elsewhere = match seen.asked {
            Asked::Elsewhere(by) if self.asking_since.is_some() => {
                Some(format!("{} is answered for by {by}, so it is not taken here", rules.name))
            }
            Asked::Unknown | Asked::Silent | Asked::Elsewhere(_) => None,
        };
        Some(AddressTold {
            address: rules.name.clone(),
            held: seen.held,
            trouble: elsewhere.or(seen.trouble),
        })
    }
}

impl Node {
    /// What is known of the virtual IP on this node.
    pub fn address(&mut self, seen: AddressSeen) {
        self.address.seen = Some(seen);
    }

    /// As the others are told.
    pub(super) fn address_told(&self) -> Option<AddressTold> {
        self.address.told()
    }

    /// What is to be done about the virtual IP, if that has changed. After [`Node::guard`]: the guardian
    /// gives the address up at the time it knows.
    pub(super) fn address_order(&mut self, now: MonoTime) -> Option<AddressOrder> {
        self.address.rules.as_ref()?;
        // What a worker before this one has left may be what this node is to have.
        self.address.seen.as_ref()?;
        let order = self.wanted_of_address(now)?;
        let order = match order {
            AddressOrder::Hold { .. } if !self.address.may_take(now) => AddressOrder::Ask,
            order => order,
        };
        match order {
            AddressOrder::Ask if self.address.asking_since.is_none() => {
                self.address.asking_since = Some(now);
                // Whatever was heard before is the past.
                if let Some(seen) = &mut self.address.seen {
                    seen.asked = Asked::Unknown;
                }
            }
            AddressOrder::Ask => {}
            AddressOrder::Hold { .. } | AddressOrder::Release => self.address.asking_since = None,
        }
        if let Some(rules) = self.address.rules.as_ref().filter(|rules| rules.take_anyway) {
            let at = self.address.asking_since.map(|since| since + rules.check_timeout);
            self.sleep_until(at.filter(|at| *at > now));
        }
        let news = self.address.order != Some(order);
        self.address.order = Some(order);
        news.then_some(order)
    }

    /// `None`: what there is stays as it is.
    fn wanted_of_address(&self, now: MonoTime) -> Option<AddressOrder> {
        let held = matches!(self.address.order, Some(AddressOrder::Hold { .. }));
        let coming = if self.becomes_primary() { AddressOrder::Ask } else { AddressOrder::Release };
        if !self.is_primary() {
            return Some(coming);
        }
        let ends = self
            .acting()
            .is_some_and(|action| matches!(action, LocalAction::Fence { .. } | LocalAction::StopFast { .. }));
        let serves = match self.own.as_ref().map(|own| &own.state) {
            Some(PostgresState::Running(running)) => !running.in_recovery,
            // It may be back in a moment, and until then nobody else serves.
            Some(PostgresState::Starting { .. } | PostgresState::Unresponsive { .. }) => held,
            // Not looked yet.
            None => return None,
            Some(PostgresState::Down(_) | PostgresState::Unusable(_)) => false,
        };
        let lifetime = self.setup.timings.lease * LIFETIME_LEASES;
        if held && planted(Defect::AddressOutlivesLease) {
            return Some(AddressOrder::Hold { until: now + lifetime, lifetime });
        }
        match self.fence_at(now) {
            Some(until) if serves && !ends && now < until => Some(AddressOrder::Hold { until, lifetime }),
            // A primary that was found running has some time to win its lease.
            None if serves && !ends && !held && matches!(self.guarded, Some(Guard::Until { .. })) => None,
            Some(_) | None => Some(coming),
        }
    }

    /// Whether this node is about to be promoted, or may be chosen for it.
    fn becomes_primary(&self) -> bool {
        if self.is_primary() {
            return self.state.primary.is_some_and(|primary| primary.phase == PrimaryPhase::Promoting);
        }
        let standby = self.own.as_ref().and_then(|own| own.running()).is_some_and(|own| own.in_recovery);
        standby && self.state.change.as_ref().is_some_and(|change| change.from != self.id())
    }

    /// Why an action has to wait for somebody else to give the address up.
    pub(super) fn address_holds_up(&self, action: &LocalAction, now: MonoTime) -> Option<String> {
        let rules = self.address.rules.as_ref().filter(|rules| rules.check_before_promotion)?;
        let promotes = matches!(action, LocalAction::Promote(..));
        if !promotes || self.address.may_take(now) {
            return None;
        }
        let seen = self.address.seen.as_ref();
        Some(match seen.map(|seen| &seen.asked) {
            Some(Asked::Elsewhere(by)) => format!(
                "not promoted yet: {by} answers for {}; end whatever still holds it there",
                rules.name
            ),
            Some(Asked::Unknown | Asked::Silent) | None => {
                format!("not promoted yet: asking whether anybody has {}", rules.name)
            }
        })
    }
}
