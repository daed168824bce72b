//! By what means a node comes back that is down: as it is, rewound, or copied; and when it stays out.
//!
//! Coming back as it is and rewinding are one action, since only the data directory tells which of them it takes. A copy
//! takes long and needs room, so it comes last: by an operator's order, or after pg_rewind has failed for good.

use std::time::Duration;

use pgherd_common::MonoTime;

use super::{LocalAction, Rules, Upstream};
use crate::cluster::{Member, Service};
use crate::observation::Running;
use crate::rebuild::{Means, Order, Rebuild, Setback};

/// So many times pg_rewind may fail in a row before a copy is made instead.
const REWINDS_MAX: u32 = 3;

/// So many copies nobody has asked for may be begun within [`CLONES_WITHIN`]. If these did not help, one more does not
/// either.
const CLONES_MAX: usize = 4;
const CLONES_WITHIN: Duration = Duration::from_secs(24 * 3600);

/// After a copy that failed; doubled each time.
const CLONE_PAUSE: Duration = Duration::from_secs(30);

/// What failed primaries do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RejoinRules {
    /// Come back without being asked.
    pub auto: bool,
    /// By a copy, too, where nothing else helps.
    pub clone: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Comeback {
    order: Option<Order>,
    rewinds_failed: u32,
    needs_clone: bool,
    /// When copies ended that nobody had asked for.
    clones: Vec<MonoTime>,
    /// Whether the last one of them failed.
    clone_failed: bool,
}

impl Comeback {
    /// An operator has asked for it.
    pub fn ask(&mut self, order: Order) {
        self.order = Some(order);
    }

    /// An operator has taken it back.
    pub fn forget(&mut self) {
        self.order = None;
    }

    /// What an operator has asked for.
    pub fn order(&self) -> Option<&Order> {
        self.order.as_ref()
    }

    /// An action has ended; true if that settles the operator's order.
    pub fn learn(&mut self, action: &LocalAction, failed: Option<Option<Setback>>, now: MonoTime) -> bool {
        match (action, failed) {
            (LocalAction::Rejoin { .. }, Some(setback)) => self.take(setback),
            (LocalAction::Rejoin { .. }, None) => (self.rewinds_failed, self.needs_clone) = (0, false),
            (LocalAction::Rebuild(rebuild), failed) => {
                if rebuild.order.is_none() {
                    self.clones.push(now);
                    self.clone_failed = failed.is_some();
                }
                if failed.is_none() {
                    (self.rewinds_failed, self.needs_clone) = (0, false);
                }
                if rebuild.order.is_some() && rebuild.order == self.order.as_ref().map(|order| order.number) {
                    self.order = None;
                    return true;
                }
            }
            _ => {}
        }
        false
    }

    fn take(&mut self, setback: Option<Setback>) {
        match setback {
            Some(Setback::NeedsClone) => self.needs_clone = true,
            Some(Setback::RewindFailed) => self.rewinds_failed += 1,
            None => {}
        }
        self.needs_clone |= self.rewinds_failed >= REWINDS_MAX;
    }

    /// Why a failed primary is left alone, if it is.
    pub(super) fn stays_out(&self, rules: &Rules, member: &Member) -> Option<String> {
        let waits = !rules.rejoin.auto && member.replaced && member.service != Service::Joining;
        let name = &member.descriptor.name;
        (waits && self.order.is_none()).then(|| {
            format!(
                "it was the primary and failed, and failover.rejoin is \"manual\": run `pgherd rebuild {name}`, or rebuild it by \
                 hand and run `pgherd resume {name}`"
            )
        })
    }

    /// The action, if another one than a rejoin is called for; an error says why nothing is done, and until when.
    pub(super) fn rebuild(
        &self,
        rules: &Rules,
        upstream: &Upstream,
        running: &Running,
        donors: &[Upstream],
        now: MonoTime,
    ) -> Result<Option<LocalAction>, (String, Option<MonoTime>)> {
        let rebuild = |means, from: Option<&Order>| {
            let named = from.and_then(|order| order.from.as_ref());
            let known = donors.iter().filter(|donor| named.is_none_or(|named| *named == donor.node));
            LocalAction::Rebuild(Box::new(Rebuild {
                upstream: upstream.clone(),
                running: running.clone(),
                means,
                sources: known.cloned().collect(),
                rate: from.and_then(|order| order.rate),
                order: from.map(|order| order.number),
            }))
        };
        if let Some(order) = &self.order {
            let known =
                donors.iter().any(|donor| order.from.as_ref().is_none_or(|named| *named == donor.node));
            if !known && order.means != Means::Rewind {
                // Right after the agent's start the others have yet to be heard.
                let whom = order.from.as_ref().map_or("a server".to_owned(), ToString::to_string);
                return Err((format!("an operator has it rebuilt; waiting for {whom} to copy from"), None));
            }
            return Ok(Some(rebuild(order.means, Some(order))));
        }
        if !self.needs_clone {
            return Ok(None);
        }
        if !rules.rejoin.clone {
            let note = "only a copy of the primary makes it a standby again, and failover.rejoin_clone is off: run `pgherd rebuild`";
            return Err((note.to_owned(), None));
        }
        let recent = self.clones.iter().filter(|at| now.since(**at) < CLONES_WITHIN);
        let (count, last) = (recent.clone().count(), recent.max().copied());
        if count >= CLONES_MAX {
            let note = format!(
                "{count} copies within a day have not made it a standby that stays; no more are made without being asked: see \
                 the agent's log, then run `pgherd rebuild`"
            );
            return Err((note, None));
        }
        let doubled = 2_u32.saturating_pow(u32::try_from(count).unwrap_or(u32::MAX).saturating_sub(1));
        match last.filter(|_| self.clone_failed).map(|last| last + CLONE_PAUSE * doubled) {
            Some(until) if now < until => {
                Err(("the copy failed; resting before the next attempt".to_owned(), Some(until)))
            }
            Some(_) | None => Ok(Some(rebuild(Means::Clone, None))),
        }
    }
}

#[cfg(test)]
mod tests;
