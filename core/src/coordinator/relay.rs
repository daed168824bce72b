//! Which standbys stream from another standby: those whose configuration names one, while that one is fit for it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pgherd_common::{Lsn, MonoTime, NodeId};

use super::report::{NotYet, Report};
use super::view::View;
use crate::cluster::{Command, Member};
use crate::observation::Running;

/// A standby that does not have what the primary had so long ago does not keep up.
const BEHIND_MAX: Duration = Duration::from_secs(10);

/// A standby that did not keep up behind another one streams from the primary for so long before that is tried again.
const REST: Duration = Duration::from_secs(60);

/// A standby that lacks more gives what it receives to nobody yet.
const NEAR: u64 = 16 << 20;

/// How standbys keep up with the primary, in time.
#[derive(Debug, Default)]
pub(super) struct Trails {
    marks: BTreeMap<NodeId, Mark>,
    /// Until when each streams from the primary, having not kept up behind another standby.
    rests: BTreeMap<NodeId, MonoTime>,
}

#[derive(Debug)]
struct Mark {
    /// What a standby has yet to receive.
    end: Lsn,
    /// Since when the primary has it.
    since: MonoTime,
    /// The standby was away for longer than it may be behind: it has what the primary had when it left, which says nothing of
    /// what it lacks now.
    away: bool,
}

impl Mark {
    fn is_young(&self, now: MonoTime) -> bool {
        now.since(self.since) < BEHIND_MAX
    }
}

impl Trails {
    /// Where the primary is, and what its standbys have of it.
    pub(super) fn note(&mut self, standbys: &[(NodeId, Lsn, Option<Lsn>)], now: MonoTime) {
        self.marks.retain(|id, _| standbys.iter().any(|(known, ..)| known == id));
        for (id, end, received) in standbys {
            let mark = self.marks.entry(*id).or_insert(Mark { end: *end, since: now, away: false });
            mark.away |= received.is_none() && !mark.is_young(now);
            if received.is_some_and(|received| received >= mark.end) {
                *mark = Mark { end: *end, since: now, away: mark.away && !mark.is_young(now) };
            }
        }
    }

    fn keeps_up(&self, id: NodeId, now: MonoTime) -> bool {
        self.marks.get(&id).is_some_and(|mark| !mark.away && mark.is_young(now))
    }

    fn rests_until(&self, id: NodeId, now: MonoTime) -> Option<MonoTime> {
        self.rests.get(&id).copied().filter(|until| now < *until)
    }

    /// Takes note of what becomes of a standby.
    pub(super) fn decided(&mut self, command: &Command, now: MonoTime) {
        if let Command::SetRelay { node, relay: None, .. } = command
            && !self.keeps_up(*node, now)
        {
            self.rests.insert(*node, now + REST);
        }
    }
}

impl View<'_> {
    /// For [`Trails::note`]; nothing while the primary changes.
    pub(super) fn progress(&self) -> Vec<(NodeId, Lsn, Option<Lsn>)> {
        let end = self.state.upstream().and_then(|primary| self.last_primary_position(primary));
        let Some(end) = end else { return Vec::new() };
        let received = |id: NodeId| {
            self.running(id).filter(|up| up.in_recovery && up.is_streaming()).map(|up| up.received)
        };
        self.standbys().map(|member| (member.descriptor.id, end, received(member.descriptor.id))).collect()
    }

    /// The first standby that is to stream from elsewhere than the log says.
    pub(super) fn tend_relays(&self, report: &mut Report) -> Option<Command> {
        self.state.serving().filter(|_| self.state.change.is_none())?;
        for member in self.standbys() {
            let (id, name) = (member.descriptor.id, &member.descriptor.name);
            let wanted = self.wanted_relay(member).unwrap_or_else(|why| {
                report.waiting.push(NotYet::Cascade { node: name.clone(), why });
                None
            });
            if wanted == self.state.relays.get(&id).copied() {
                continue;
            }
            report.doing.push(match wanted {
                Some(relay) => format!("{name} is to stream from {}", self.name(relay)),
                None => format!("{name} is to stream from the primary"),
            });
            return Some(Command::SetRelay { generation: self.state.generation, node: id, relay: wanted });
        }
        None
    }

    /// Whom a standby is to stream from; an error says why it streams from the primary though another one is configured.
    fn wanted_relay(&self, member: &Member) -> Result<Option<NodeId>, String> {
        let Some(name) = &member.descriptor.upstream else { return Ok(None) };
        let relay = self.state.by_name(name).filter(|relay| relay.is_database());
        let relay = relay.ok_or_else(|| format!("{name} is no database node of this cluster"))?;
        let (id, upstream) = (member.descriptor.id, relay.descriptor.id);
        if self.state.primary.is_some_and(|primary| primary.node == upstream) {
            return Ok(None);
        }
        if self.is_in_circle(member) {
            return Err(format!("{name} streams from it in turn, by its own node.upstream"));
        }
        if !self.state.may_relay(upstream) {
            return Err(format!("{name} is not in service, or paused"));
        }
        if let Some(until) = self.trails.rests_until(id, self.now) {
            let left = until.since(self.now).as_secs();
            return Err(format!("behind {name} it did not keep up; that is tried again in {left} s"));
        }
        let present = self.state.relays.get(&id) == Some(&upstream);
        let streams = self.running(id).is_some_and(|running| running.in_recovery && running.is_streaming());
        let well = streams && self.trails.keeps_up(id, self.now);
        if !(present || well) {
            return Err(format!("it has yet to stream from the primary before it can from {name}"));
        }
        if present && !self.trails.keeps_up(id, self.now) {
            return Err(format!("behind {name} it does not keep up"));
        }
        match self.running(upstream) {
            Some(running) => self.is_fit_relay(upstream, running, present).map(|()| Some(upstream)),
            // Whether it is out of service shows soon.
            None if present => Ok(Some(upstream)),
            None => Err(format!("{name} is not heard")),
        }
    }

    fn is_fit_relay(&self, relay: NodeId, running: &Running, present: bool) -> Result<(), String> {
        let name = self.name(relay);
        let primary = self.state.primary.map(|primary| primary.node);
        let end = primary.and_then(|primary| self.running(primary)).filter(|up| !up.in_recovery);
        let Some(end) = end else {
            return if present { Ok(()) } else { Err("the primary is not heard".to_owned()) };
        };
        if running.timeline != end.timeline {
            return Err(format!(
                "{name} is on timeline {}, the primary on {}",
                running.timeline, end.timeline
            ));
        }
        if present {
            return Ok(());
        }
        let well = self.postgres(relay).is_some_and(|postgres| postgres.health.is_fit());
        let behind = end.position.bytes_since(running.received);
        if !running.is_streaming() || !well || behind > NEAR || !self.trails.keeps_up(relay, self.now) {
            return Err(format!("{name} does not stream well enough itself"));
        }
        Ok(())
    }

    /// Whether a standby would in the end stream from itself, if all streamed as they are configured to.
    fn is_in_circle(&self, member: &Member) -> bool {
        let primary = self.state.primary.map(|primary| primary.node);
        let mut passed = BTreeSet::new();
        let mut at = member;
        while let Some(next) = at.descriptor.upstream.as_ref().and_then(|name| self.state.by_name(name)) {
            let id = next.descriptor.id;
            if id == member.descriptor.id {
                return true;
            }
            if Some(id) == primary || !passed.insert(id) {
                return false;
            }
            at = next;
        }
        false
    }
}
