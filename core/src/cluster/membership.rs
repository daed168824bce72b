//! Nodes that come and go: invited, then members; leaving, then removed.
//!
//! A node that is invited may introduce itself, and is fed the log. It is a member once it has registered. One that leaves
//! is a member until nothing rests on it any more: no commit waits for it, it has no vote, and raft knows it no longer.

use pgherd_common::{HostPort, NodeId, NodeName, WallTime};
use serde::{Deserialize, Serialize};

use super::command::{Command, Rejected};
use super::relay;
use super::state::{ClusterState, Service};

/// A node that may become a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invited {
    /// Its name.
    pub name: NodeName,
    /// Where its agent is reached.
    pub agent: HostPort,
    /// Where the log has the invitation.
    pub number: u64,
    /// When it was invited.
    pub at: WallTime,
}

/// What is known of the end of a membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaving {
    /// Where the log has the beginning of the end.
    pub number: u64,
    /// An operator accepted that other voters are silent meanwhile, and that nobody sees its PostgreSQL stop.
    pub force: bool,
    /// When an operator asked for it.
    pub at: WallTime,
}

/// A node that was a member, or invited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Its number.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// When it was removed.
    pub at: WallTime,
}

/// Whether it changed anything.
type Verdict = Result<bool, Rejected>;

impl ClusterState {
    /// Raft's traffic grows with the square of the voters, and every one of them is asked for the lease.
    pub const MEMBERS_MAX: usize = 15;

    /// Bound of `removed`.
    pub const REMOVED_MAX: usize = 30;

    /// Whether a node is a member or may become one.
    pub fn belongs(&self, node: NodeId) -> bool {
        self.members.contains_key(&node) || self.invited.contains_key(&node)
    }

    /// What is remembered of a node that does not belong any more.
    pub fn removal(&self, node: NodeId) -> Option<&Removed> {
        self.removed.iter().rev().find(|removed| removed.id == node).filter(|_| !self.belongs(node))
    }

    /// Whether a member is on its way out.
    pub fn is_leaving(&self, node: NodeId) -> bool {
        self.members.get(&node).is_some_and(|member| member.leaving.is_some())
    }

    /// Who has what may be had once only: everybody who belongs.
    fn known(&self) -> impl Iterator<Item = (NodeId, &NodeName, &HostPort)> {
        let members = self.members.values().map(|member| &member.descriptor);
        let members = members.map(|descriptor| (descriptor.id, &descriptor.name, &descriptor.agent));
        members.chain(self.invited.iter().map(|(id, invited)| (*id, &invited.name, &invited.agent)))
    }

    fn forget(&mut self, id: NodeId, name: NodeName, at: WallTime) {
        self.invited.remove(&id);
        self.pauses.nodes.remove(&id);
        self.parameters.nodes.remove(&id);
        self.relays.remove(&id);
        if let Some(sync) = &mut self.slot_sync {
            sync.standbys.remove(&id);
        }
        self.removed.push(Removed { id, name, at });
        let excess = self.removed.len().saturating_sub(Self::REMOVED_MAX);
        self.removed.drain(..excess);
        // The number of a store stays: the node may be added again with that store, and has to find it.
        let mut readmitted = std::mem::take(&mut self.readmitted);
        readmitted.retain(|node, _| self.belongs(*node) || self.removal(*node).is_some());
        self.readmitted = readmitted;
    }
}

/// What the commands of this module do.
pub(super) fn change(state: &mut ClusterState, command: &Command, revision: u64) -> Verdict {
    match command {
        Command::Invite { id, name, agent, at } => {
            let invited = Invited { name: name.clone(), agent: agent.clone(), number: revision, at: *at };
            invite(state, *id, invited)
        }
        Command::Remove { node, force, at } => {
            remove(state, *node, Leaving { number: revision, force: *force, at: *at })
        }
        Command::Removed { node, number, at } => removed(state, *node, *number, *at),
        _ => Err(Rejected::WrongPhase),
    }
}

fn invite(state: &mut ClusterState, node: NodeId, invited: Invited) -> Verdict {
    if state.identity.is_none() {
        return Err(Rejected::NotFormed);
    }
    let same = |known: &Invited| (&known.name, &known.agent) == (&invited.name, &invited.agent);
    if state.invited.get(&node).is_some_and(same) {
        return Ok(false);
    }
    let slot = invited.name.slot();
    for (id, name, agent) in state.known() {
        let taken = |what: String| Err(Rejected::Taken(what));
        if id == node {
            return taken(format!("{name} has id {id} already: give the new node an id of its own"));
        }
        if *name == invited.name {
            return taken(format!("there is a {name} already, with id {id}: give the new node another name"));
        }
        if *agent == invited.agent {
            return taken(format!("the agent at {agent} is that of {name} already"));
        }
        if name.slot() == slot {
            return taken(format!(
                "{name} and {} would share the replication slot {slot}: give the new node another name",
                invited.name
            ));
        }
    }
    if state.members.len() + state.invited.len() >= ClusterState::MEMBERS_MAX {
        return Err(Rejected::TooManyMembers);
    }
    // Of another id with this name there may be an agent that has yet to learn of its end.
    state.removed.retain(|removed| removed.id != node);
    state.invited.insert(node, invited);
    Ok(true)
}

/// A member begins to leave. An invitation that nobody has followed is taken back at once.
fn remove(state: &mut ClusterState, node: NodeId, leaving: Leaving) -> Verdict {
    if let Some(invited) = state.invited.get(&node) {
        let name = invited.name.clone();
        state.forget(node, name, leaving.at);
        return Ok(true);
    }
    let Some(member) = state.members.get(&node) else { return Err(Rejected::UnknownMember(node)) };
    if let Some(known) = member.leaving {
        let harder = leaving.force && !known.force;
        if let Some(member) = state.members.get_mut(&node).filter(|_| harder) {
            member.leaving = Some(Leaving { force: true, ..known });
        }
        return Ok(harder);
    }
    if state.primary.is_some_and(|primary| primary.node == node) {
        return Err(Rejected::IsPrimary(node));
    }
    if let Some(change) = &state.change {
        return Err(Rejected::ChangeInFlight { kind: change.kind, generation: change.generation });
    }
    if state.scheduled.as_ref().is_some_and(|scheduled| scheduled.to == Some(node)) {
        return Err(Rejected::ScheduledTo(node));
    }
    if let Some(pause) = state.pauses.of(node) {
        let node = state.pauses.nodes.contains_key(&node).then_some(node);
        return Err(Rejected::Paused { node, until: pause.until });
    }
    // One that waits for its vote is none to count on.
    let left = state.voters.target().iter().filter(|voter| **voter != node && !state.is_leaving(**voter));
    if state.voters.mentions(node) && left.count() < ClusterState::VOTERS_MIN {
        return Err(Rejected::TooFewVoters(node));
    }
    let Some(member) = state.members.get_mut(&node) else { return Err(Rejected::UnknownMember(node)) };
    member.leaving = Some(leaving);
    member.service = Service::Failed(LEAVES.to_owned());
    member.since = leaving.at;
    relay::left_service(state, node);
    Ok(true)
}

/// Why a member that leaves is out of service.
const LEAVES: &str = "it is being removed from the cluster (remove-node)";

/// Nothing rests on it any more.
fn removed(state: &mut ClusterState, node: NodeId, number: u64, at: WallTime) -> Verdict {
    let Some(member) = state.members.get(&node) else { return Err(Rejected::UnknownMember(node)) };
    let cover = &state.cover;
    let rests = state.voters.mentions(node)
        || cover.wanted.of.contains(&node)
        || cover.promised.of.contains(&node)
        || state.primary.is_some_and(|primary| primary.node == node)
        || state.change.as_ref().is_some_and(|change| change.mentions(node));
    if rests || member.leaving.is_none_or(|leaving| leaving.number != number) {
        return Err(Rejected::NotLeft(node));
    }
    let name = member.descriptor.name.clone();
    state.members.remove(&node);
    state.forget(node, name, at);
    Ok(true)
}
