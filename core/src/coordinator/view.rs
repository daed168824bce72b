//! What a decision is made from: the committed state, and what was heard of each agent and when.

use std::collections::BTreeMap;
use std::time::Duration;

use pgherd_common::{Lsn, MonoTime, NodeId, NodeName, WallTime};

use super::Policy;
use super::relay::Trails;
use super::voters::Hearing;
use crate::cluster::{ClusterState, Command, Member};
use crate::observation::{NodeObservation, PostgresObservation, Running};
use crate::quorum::Quorum;
use crate::waterfall::{FirstWrite, Waterfall};

/// The last word of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// What it said.
    pub observation: NodeObservation,
    /// When it was heard.
    pub at: MonoTime,
}

/// Everything a decision may rest on.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The configuration.
    pub policy: &'a Policy,
    /// The truth.
    pub state: &'a ClusterState,
    /// Raft's group.
    pub quorum: &'a Quorum,
    /// Since when each agent has been heard.
    pub(super) hearing: &'a Hearing,
    /// What was heard.
    pub seen: &'a BTreeMap<NodeId, Seen>,
    /// The steps of the last change.
    pub(super) waterfall: &'a Waterfall,
    /// What proxies have told of the first write behind it.
    pub(super) first_write: Option<FirstWrite>,
    /// The last known end of each server's WAL, from when it was a primary.
    pub ends: &'a BTreeMap<NodeId, Lsn>,
    /// How standbys keep up.
    pub(super) trails: &'a Trails,
    /// For how long there have been too few standbys for commits to wait for.
    pub short_for: Duration,
    /// How long the change in flight has been at its present step.
    pub step_age: Duration,
    /// How long this node has led without a gap.
    pub led_for: Duration,
    /// For decisions.
    pub now: MonoTime,
    /// For the record.
    pub wall: WallTime,
}

impl<'a> View<'a> {
    /// How long ago an agent was heard; `None` if it never was.
    pub fn age(&self, id: NodeId) -> Option<Duration> {
        self.seen.get(&id).map(|seen| self.now.since(seen.at))
    }

    /// Heard within the length of a lease.
    pub fn is_fresh(&self, id: NodeId) -> bool {
        self.age(id).is_some_and(|age| age < self.policy.lease)
    }

    /// The last word of an agent, if it is fresh.
    pub fn fresh(&self, id: NodeId) -> Option<&'a NodeObservation> {
        self.seen.get(&id).filter(|_| self.is_fresh(id)).map(|seen| &seen.observation)
    }

    /// All fresh observations.
    pub fn all_fresh(&self) -> impl Iterator<Item = &'a NodeObservation> {
        let lease = self.policy.lease;
        let now = self.now;
        self.seen.values().filter(move |seen| now.since(seen.at) < lease).map(|seen| &seen.observation)
    }

    /// What a fresh agent says of its PostgreSQL.
    pub fn postgres(&self, id: NodeId) -> Option<&'a PostgresObservation> {
        self.fresh(id)?.postgres.as_ref()
    }

    /// A PostgreSQL that answers, by a fresh observation.
    pub fn running(&self, id: NodeId) -> Option<&'a Running> {
        self.postgres(id)?.running()
    }

    /// A member's name; its number when nobody knows the name.
    pub fn name(&self, id: NodeId) -> NodeName {
        let known = self.state.members.get(&id).map(|member| &member.descriptor.name);
        let said = self.seen.get(&id).map(|seen| &seen.observation.descriptor.name);
        let fallback = || format!("node-{id}").parse();
        match known.or(said).cloned().map_or_else(fallback, Ok) {
            Ok(name) => name,
            Err(error) => unreachable!("a letter, digits and '-' are a valid name: {error}"),
        }
    }

    /// Database members other than the current primary.
    pub fn standbys(&self) -> impl Iterator<Item = &'a Member> {
        let primary = self.state.primary.map(|primary| primary.node);
        self.state.databases().filter(move |member| Some(member.descriptor.id) != primary)
    }

    /// The last known end of a primary's WAL: from its last word as primary, however old, or the last
    /// checkpoint of the data directory it left.
    pub fn last_primary_position(&self, primary: NodeId) -> Option<Lsn> {
        let stopped = self.seen.get(&primary).and_then(|seen| seen.observation.postgres.as_ref()?.stopped());
        self.ends.get(&primary).copied().max(stopped.map(|stopped| stopped.checkpoint))
    }

    /// Whether an agent says that nothing is left of the instance with which it held the primary role
    /// of the present generation.
    pub fn has_released(&self, id: NodeId) -> bool {
        self.postgres(id).is_some_and(|postgres| {
            postgres.released == Some(self.state.generation) && postgres.stopped().is_some()
        })
    }

    /// Whether raft feeds a node, with a vote or without.
    pub(super) fn is_in_group(&self, id: NodeId) -> bool {
        self.quorum.voters.contains(&id) || self.quorum.learners.contains(&id)
    }

    /// Whether an invited node has applied its invitation: it is fed, and knows whom it has to do with.
    fn has_followed(&self, said: &NodeObservation) -> bool {
        self.state.invited.get(&said.descriptor.id).is_some_and(|invited| {
            let applied = said.probation.is_none() && said.revision >= invited.number;
            applied && invited.name == said.descriptor.name
        })
    }

    /// Brings the members' own descriptions into the log.
    pub fn register(&self) -> Option<Command> {
        self.state.identity.as_ref()?;
        let changed = self.all_fresh().find(|said| {
            let descriptor = &said.descriptor;
            self.is_in_group(descriptor.id)
                && match self.state.members.get(&descriptor.id) {
                    Some(member) => member.descriptor != *descriptor,
                    None => self.has_followed(said),
                }
        })?;
        Some(Command::Register { descriptor: changed.descriptor.clone(), at: self.wall })
    }
}
