//! What the log tells: one committed state after another, however many entries lie between them.

use std::collections::BTreeSet;

use pgherd_common::topology::ChangeKind;
use pgherd_common::{NodeId, NodeName};

use super::{Event, Kind};
use crate::cluster::{Change, ClusterState, HistoryEntry, Member, OldEnd, Outcome, Service};

/// Everything that has happened from one state to the other.
pub(super) fn compare(before: &ClusterState, after: &ClusterState) -> Vec<Event> {
    let mut found = Found { after, events: Vec::new() };
    if before.identity.is_none() {
        if after.identity.is_some() {
            let primary = after.primary_member().map(|member| member.descriptor.name.clone());
            let name = primary.as_ref().map_or("none", NodeName::as_str);
            let members = after.members.len();
            let text = format!("the cluster has formed: {members} members, primary {name}");
            found.add(Kind::ClusterFormed, primary.clone(), text);
        }
        return found.events;
    }
    found.members(before);
    found.pauses(before);
    found.parameters(before);
    found.change(before);
    found.history(before);
    found.voters(before);
    found.cover(before);
    found.events
}

/// A change that `before` does not know.
pub(super) fn new_change<'a>(before: &ClusterState, after: &'a ClusterState) -> Option<&'a Change> {
    let key = |change: &Change| (change.kind, change.generation, change.begun);
    let known = before.change.as_ref().map(key);
    after.change.as_ref().filter(|change| Some(key(change)) != known)
}

struct Found<'a> {
    after: &'a ClusterState,
    events: Vec<Event>,
}

impl Found<'_> {
    fn add(&mut self, kind: Kind, node: Option<NodeName>, text: impl Into<String>) {
        self.events.push(Event::new(kind, node, self.after.generation, text));
    }

    fn name(&self, id: NodeId) -> Option<NodeName> {
        self.after.members.get(&id).map(|member| member.descriptor.name.clone())
    }

    fn names(&self, ids: &BTreeSet<NodeId>) -> String {
        let name = |id: &NodeId| self.name(*id).map_or_else(|| format!("node {id}"), |name| name.to_string());
        if ids.is_empty() { "none".to_owned() } else { ids.iter().map(name).collect::<Vec<_>>().join(", ") }
    }

    fn members(&mut self, before: &ClusterState) {
        for (id, member) in &self.after.members {
            let name = &member.descriptor.name;
            match before.members.get(id) {
                None => {
                    let text = format!("{name} ({}) is a member of the cluster now", member.descriptor.agent);
                    self.add(Kind::MemberJoined, Some(name.clone()), text);
                }
                Some(was) => self.member(was, member, before),
            }
        }
        for (id, invited) in self.after.invited.iter().filter(|(id, _)| !before.belongs(**id)) {
            let (name, agent) = (&invited.name, &invited.agent);
            let text = format!("{name} (id {id}, {agent}) may join the cluster: start its agent (add-node)");
            self.add(Kind::MemberInvited, Some(name.clone()), text);
        }
        let invited = before.invited.iter().map(|(id, invited)| (*id, &invited.name));
        let was = before.members.iter().map(|(id, member)| (*id, &member.descriptor.name)).chain(invited);
        for (_, name) in was.filter(|(id, _)| !self.after.belongs(*id)) {
            let text = format!("{name} does not belong to the cluster any more (remove-node)");
            self.add(Kind::MemberRemoved, Some(name.clone()), text);
        }
    }

    fn member(&mut self, was: &Member, is: &Member, before: &ClusterState) {
        let name = &is.descriptor.name;
        let some = || Some(name.clone());
        let primary =
            [before, self.after].iter().any(|s| s.primary.is_some_and(|p| p.node == is.descriptor.id));
        if was.leaving.is_none() && is.leaving.is_some() {
            let text = format!("{name} is being removed from the cluster (remove-node)");
            self.add(Kind::MemberLeaving, some(), text);
        } else if was.service != is.service && !primary {
            self.service(was, is);
        }
        if was.attached != is.attached {
            let (kind, text) = if is.attached {
                (Kind::NodeAttached, format!("{name} is back in the proxies' rotation (attach)"))
            } else {
                let text = format!(
                    "{name} was taken out of the proxies' rotation; `pgherd attach {name}` undoes it"
                );
                (Kind::NodeDetached, text)
            };
            self.add(kind, some(), text);
        }
        if was.allowed != is.allowed {
            let (kind, text) = if is.allowed {
                (Kind::NodeAllowed, format!("{name} may be in service again (allow-node)"))
            } else {
                let text = format!("{name} was taken out of service; `pgherd allow-node {name}` undoes it");
                (Kind::NodeDisallowed, text)
            };
            self.add(kind, some(), text);
        }
        if was.priority() != is.priority() {
            let text = format!("the priority of {name} is {} now, it was {}", is.priority(), was.priority());
            self.add(Kind::PriorityChanged, some(), text);
        }
    }

    fn pauses(&mut self, before: &ClusterState) {
        let what = |name: &Option<NodeName>| match name {
            Some(name) => format!("PostgreSQL on {name}"),
            None => "every PostgreSQL".to_owned(),
        };
        for (node, pause) in self.after.pauses.iter() {
            let known = before.pauses.iter().any(|was| was == (node, pause));
            let name = node.and_then(|node| self.name(node));
            let text = format!("{} is left alone until {} (pause)", what(&name), pause.until);
            if !known {
                self.add(Kind::Paused, name, text);
            }
        }
        for (node, _) in before.pauses.iter() {
            let still = self.after.pauses.iter().any(|(is, _)| is == node);
            let name = node.and_then(|node| self.name(node));
            let text = format!("{} is looked after again: its pause is over", what(&name));
            if !still {
                self.add(Kind::Unpaused, name, text);
            }
        }
    }

    fn parameters(&mut self, before: &ClusterState) {
        let (was, is) = (&before.parameters, &self.after.parameters);
        if was.number == is.number {
            return;
        }
        let places =
            std::iter::once(None).chain(was.nodes.keys().chain(is.nodes.keys()).map(|node| Some(*node)));
        for node in places.collect::<BTreeSet<_>>() {
            let changes = is.changes_since(was, node);
            let name = node.and_then(|node| self.name(node));
            let place = name.as_ref().map_or("every node".to_owned(), ToString::to_string);
            if !changes.is_empty() {
                let text = format!("PostgreSQL's parameters on {place}: {}", changes.join(", "));
                self.add(Kind::ParametersSet, name, text);
            }
        }
    }

    fn service(&mut self, was: &Member, is: &Member) {
        let name = &is.descriptor.name;
        let (kind, text) = match (&is.service, is.is_database()) {
            (Service::Failed(why), true) => {
                let text = format!(
                    "standby {name} is out of service: {why}. It comes back by itself unless it was shut down: then run `pgherd resume {name}`"
                );
                (Kind::NodeFailed, text)
            }
            (Service::Failed(why), false) => {
                (Kind::WitnessLost, format!("witness {name}: {why}. Start its agent again"))
            }
            // A standby that had to join anew, or for the first time.
            (Service::Up, true) => (Kind::NodeInService, format!("standby {name} is in service")),
            (Service::Up, false) if matches!(was.service, Service::Failed(_)) => {
                (Kind::WitnessBack, format!("witness {name} is heard again"))
            }
            (Service::Up, false) | (Service::Joining, _) => return,
        };
        self.add(kind, Some(name.clone()), text);
    }

    fn change(&mut self, before: &ClusterState) {
        if let Some(change) = new_change(before, self.after) {
            let from = self.name(change.from);
            let name = from.as_ref().map_or("?", NodeName::as_str);
            let (kind, text) = match change.kind {
                ChangeKind::Switchover if change.is_restart() => {
                    (Kind::SwitchoverBegun, format!("restart of primary {name} has begun: {}", change.reason))
                }
                ChangeKind::Failover => {
                    (Kind::FailoverBegun, format!("failover from {name} has begun: {}", change.reason))
                }
                ChangeKind::Switchover => {
                    (Kind::SwitchoverBegun, format!("switchover from {name} has begun: {}", change.reason))
                }
            };
            self.add(kind, from.clone(), text);
        }
        let number = |state: &ClusterState| state.scheduled.as_ref().map(|scheduled| scheduled.number);
        if let Some(scheduled) = self.after.scheduled.as_ref().filter(|s| number(before) != Some(s.number)) {
            let to = scheduled.to.and_then(|to| self.name(to));
            let to = to.map_or_else(|| "the best standby".to_owned(), |to| to.to_string());
            let text = format!(
                "a switchover to {to} is to begin at {}; `pgherd promote --cancel-scheduled` takes it back",
                scheduled.due
            );
            self.add(Kind::SwitchoverScheduled, None, text);
        }
    }

    /// Entries that are new, or have come to their end.
    fn history(&mut self, before: &ClusterState) {
        let key = |entry: &HistoryEntry| (entry.generation, entry.begun, entry.outcome);
        // The end of the history is where anything happens; it has at most as many new entries as it is long.
        let known: Vec<_> = before.history.iter().rev().take(RECENT).map(key).collect();
        let recent: Vec<&HistoryEntry> = self.after.history.iter().rev().take(RECENT).collect();
        for entry in recent.into_iter().rev().filter(|entry| !known.contains(&key(entry))) {
            self.ended(entry);
        }
    }

    fn ended(&mut self, entry: &HistoryEntry) {
        let Some(change) = entry.kind else { return };
        let HistoryEntry { to, reason, .. } = entry;
        let from = entry.from.as_ref().map_or("?", NodeName::as_str);
        let (kind, text) = match (entry.outcome, change) {
            (Outcome::InFlight, _) => return,
            (Outcome::Completed, ChangeKind::Failover) => {
                (Kind::FailoverCompleted, format!("failover from {from} to {to} is done: {to} is primary"))
            }
            (Outcome::Completed, ChangeKind::Switchover) if from == to.as_str() => {
                (Kind::SwitchoverCompleted, format!("restart of {to} is done: it is still the primary"))
            }
            (Outcome::Completed, ChangeKind::Switchover) => (
                Kind::SwitchoverCompleted,
                format!("switchover from {from} to {to} is done: {to} is primary"),
            ),
            (Outcome::RolledBack, _) => (
                Kind::ChangeRolledBack,
                format!("the {change} from {from} was given up, {to} is primary: {reason}"),
            ),
            (Outcome::StartedInPlace, _) => (
                Kind::StartedInPlace,
                format!("{to} was started again where it was, and is primary: {reason}"),
            ),
            (Outcome::Superseded, _) => {
                let text = format!(
                    "{to} was chosen as primary and did not become it; another node is chosen. The log of its agent says why"
                );
                (Kind::PromotionFailed, text)
            }
            (Outcome::NotDone, _) => {
                (Kind::SwitchoverNotDone, format!("the scheduled switchover to {to} was not done: {reason}"))
            }
        };
        self.add(kind, Some(to.clone()), text);
        if let (Outcome::Completed, Some(OldEnd { at, exact, covered: false })) =
            (entry.outcome, entry.old_end)
        {
            let bytes = at.bytes_since(entry.received);
            if bytes > 0 {
                let more = if exact { "" } else { " or more" };
                let text = format!(
                    "the failover from {from} to {to} lost {bytes} bytes{more} of WAL, {} to {at}: transactions that \
                     were committed on {from} and that no standby had",
                    entry.received
                );
                self.add(Kind::CommitsLost, Some(to.clone()), text);
            }
        }
    }

    fn voters(&mut self, before: &ClusterState) {
        let (was, is) = (&before.voters.current, &self.after.voters.current);
        // That of a node which is removed is not missed.
        let lost = |id: &NodeId| self.after.members.get(id).is_some_and(|member| member.leaving.is_none());
        let gone: BTreeSet<NodeId> = was.difference(is).copied().filter(lost).collect();
        let back: BTreeSet<NodeId> = is.difference(was).copied().collect();
        if !gone.is_empty() {
            let risk =
                if is.len() < 3 { ", and no further loss can be survived without an operator" } else { "" };
            let text = format!(
                "{} has no vote any more, since it is lost; {} nodes vote{risk}. It gets its vote back when its agent is \
                 heard again",
                self.names(&gone),
                is.len()
            );
            let one = gone.first().and_then(|id| self.name(*id));
            self.add(Kind::VotersLowered, one, text);
        }
        if !back.is_empty() {
            let text = format!("{} votes again: {} nodes vote", self.names(&back), is.len());
            let one = back.first().and_then(|id| self.name(*id));
            self.add(Kind::VotersRaised, one, text);
        }
    }

    fn cover(&mut self, before: &ClusterState) {
        let (was, is) = (&before.cover.wanted, &self.after.cover.wanted);
        let of = self.names(&is.of);
        let text = match is.standbys {
            0 => "commits wait for no standby any more".to_owned(),
            standbys => format!("commits wait for {standbys} of {of}; before, for {}", was.standbys),
        };
        match is.standbys.cmp(&was.standbys) {
            std::cmp::Ordering::Less => self.add(Kind::SyncLowered, None, text),
            std::cmp::Ordering::Greater => self.add(Kind::SyncRaised, None, text),
            std::cmp::Ordering::Equal => {}
        }
    }
}

/// So many entries at the end of the history are looked at.
const RECENT: usize = 20;
