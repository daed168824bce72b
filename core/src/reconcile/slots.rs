//! Replication slots: one for each other member, on the primary and on every standby.
//!
//! On the primary a slot keeps the WAL that its member has yet to fetch. On a standby it keeps the same WAL, as the primary's
//! agent tells of it, so that behind a promotion nobody lacks what the old primary had still kept for him.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pgherd_common::{Lsn, MonoTime, NodeName};

use super::{LocalAction, Situation};
use crate::cluster::Member;
use crate::observation::{Running, SlotSeen};

/// WAL is kept for so much longer on a standby than on the primary.
const EVERY: Duration = Duration::from_secs(10);

/// Without a word of the primary's agent for so long a standby keeps nothing more than it needs itself: WAL may still come
/// in, and nobody can tell any more which of it is wanted.
const UNHEARD_MAX: Duration = Duration::from_secs(600);

/// When slots were last seen to.
#[derive(Debug, Default)]
pub(super) struct Slots {
    done: Option<(bool, BTreeSet<NodeName>, MonoTime)>,
}

impl Slots {
    /// They are as they should be.
    pub(super) fn aligned(&mut self, members: &BTreeSet<NodeName>, in_recovery: bool, now: MonoTime) {
        self.done = Some((in_recovery, members.clone(), now));
    }

    /// What is to be done: at once where the members or the role are others than before, otherwise from time to time.
    pub(super) fn action(&self, s: &Situation<'_>, running: &Running) -> Option<LocalAction> {
        let in_recovery = running.in_recovery;
        let others = s.state.databases().filter(|member| member.descriptor.id != s.me && member.may_serve());
        let others: Vec<&Member> = others.collect();
        let members: BTreeSet<NodeName> =
            others.iter().map(|member| member.descriptor.name.clone()).collect();
        let (known, rested) = match &self.done {
            Some((role, done, at)) => (*role == in_recovery && *done == members, s.now.since(*at) >= EVERY),
            None => (false, true),
        };
        if known && !rested {
            return None;
        }
        let upto: BTreeMap<NodeName, Lsn> =
            others.iter().filter_map(|member| moved_to(s, running, member)).collect();
        let due = !known || is_out_of_order(s, running, &others) || !upto.is_empty();
        due.then_some(LocalAction::AlignSlots { members, in_recovery, upto })
    }
}

fn slot_of<'a>(running: &'a Running, name: &NodeName) -> Option<&'a SlotSeen> {
    let slot = name.slot();
    running.slots.iter().find(|seen| seen.name == slot)
}

/// Whether a slot is missing, is of nobody, or is of no use. What is in use is left as it is.
fn is_out_of_order(s: &Situation<'_>, running: &Running, others: &[&Member]) -> bool {
    let is_of_nobody = |seen: &&SlotSeen| {
        !seen.active && others.iter().all(|member| member.descriptor.name.slot() != seen.name)
    };
    let is_amiss = |member: &&Member| {
        let Some(seen) = slot_of(running, &member.descriptor.name) else { return true };
        // Whoever streams from elsewhere does not move it on.
        let idle = running.in_recovery || s.state.relay(member.descriptor.id).is_some();
        !seen.active && (seen.lost || seen.restart.is_none() || (seen.pinned && idle))
    };
    let leftover = !running.logical.leftover.is_empty();
    leftover || running.slots.iter().any(|seen| is_of_nobody(&seen)) || others.iter().any(is_amiss)
}

/// Up to where the slot of a member keeps no WAL any more, if that is further than now.
fn moved_to(s: &Situation<'_>, running: &Running, member: &Member) -> Option<(NodeName, Lsn)> {
    let name = &member.descriptor.name;
    let upto =
        if running.in_recovery { kept_by_primary(s, running, member) } else { has_received(s, member) }?;
    let further = match slot_of(running, name) {
        Some(seen) => !seen.active && seen.restart.is_none_or(|restart| restart < upto),
        None => upto > Lsn::default(),
    };
    further.then(|| (name.clone(), upto))
}

/// On a standby: as far back as the primary keeps WAL for this member.
fn kept_by_primary(s: &Situation<'_>, running: &Running, member: &Member) -> Option<Lsn> {
    if s.unheard_for >= UNHEARD_MAX {
        return Some(running.redo);
    }
    let primary = s.primary.filter(|primary| !primary.in_recovery)?;
    let kept = slot_of(primary, &member.descriptor.name).filter(|seen| !seen.lost);
    // The primary itself needs nothing for now. What is kept here in any case may spare it a copy once it is a standby.
    Some(kept.and_then(|seen| seen.restart).unwrap_or(running.redo))
}

/// On the primary: what a member has that streams from another standby, and may come here at any time.
fn has_received(s: &Situation<'_>, member: &Member) -> Option<Lsn> {
    s.cascaded.get(&member.descriptor.id).copied()
}

/// `synchronized_standby_slots` for these.
pub fn held_back(standbys: &BTreeSet<NodeName>) -> Option<String> {
    let slots: Vec<String> = standbys.iter().map(NodeName::slot).collect();
    (!slots.is_empty()).then(|| slots.join(", "))
}

/// Has what logical slots send wait for whom the log says.
pub(super) fn hold_back(s: &Situation<'_>, running: &Running) -> Option<LocalAction> {
    let wanted = s.state.slot_sync.iter().flat_map(|sync| &sync.standbys);
    let names = wanted.filter_map(|id| Some(s.state.members.get(id)?.descriptor.name.clone()));
    let standbys: BTreeSet<NodeName> = names.collect();
    (held_back(&standbys) != running.logical.waits_for).then_some(LocalAction::HoldBack(standbys))
}

#[cfg(test)]
mod tests;
