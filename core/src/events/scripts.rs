//! When which of the operators' scripts runs, and what it is told.

use pgherd_common::topology::ChangeKind;
use pgherd_common::{Generation, HostPort, NodeId, NodeName};

use super::local::is_isolated;
use super::states::new_change;
use crate::cluster::{ChangePhase, ClusterState, Member, Outcome, PrimaryPhase, Service};
use crate::observation::PostgresObservation;
use crate::rebuild::REBUILDING;

/// In which role a node is attached or detached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Primary.
    Primary,
    /// Standby.
    Standby,
}

impl Role {
    /// As scripts know it.
    pub fn letter(self) -> &'static str {
        match self {
            Self::Primary => "p",
            Self::Standby => "s",
        }
    }
}

/// A script to run, if there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// On the new primary, once it serves.
    PostPromotion(Values),
    /// On the other nodes, once a new primary is chosen.
    RemotePrePromotion(Values),
    /// On the other nodes, once it serves.
    RemotePostPromotion(Values),
    /// On a node whose database has failed.
    DbFailure(Values),
    /// On a primary that was fenced because it was cut off.
    PrimaryIsolated(Values),
    /// On a node that is back in service after it had failed.
    Resumed(Values),
    /// By the agent that leads: this node serves.
    Attach(Values, Role),
    /// By the agent that leads: this node serves no more.
    Detach(Values, Role),
}

/// What a script is told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Values {
    /// The generation in force.
    pub generation: Generation,
    /// The new primary.
    pub primary: Option<HostPort>,
    /// The primary before it.
    pub old_primary: Option<HostPort>,
    /// The node that is attached or detached.
    pub host: Option<HostPort>,
    /// Its name.
    pub node: Option<NodeName>,
}

impl Call {
    /// The script's key in the configuration.
    pub fn name(&self) -> &'static str {
        match self {
            Self::PostPromotion(_) => "post_promotion",
            Self::RemotePrePromotion(_) => "remote_pre_promotion",
            Self::RemotePostPromotion(_) => "remote_post_promotion",
            Self::DbFailure(_) => "db_failure",
            Self::PrimaryIsolated(_) => "primary_isolated",
            Self::Resumed(_) => "resumed",
            Self::Attach(..) => "load_balancer_attach",
            Self::Detach(..) => "load_balancer_detach",
        }
    }

    /// What it is told.
    pub fn values(&self) -> &Values {
        match self {
            Self::PostPromotion(values)
            | Self::RemotePrePromotion(values)
            | Self::RemotePostPromotion(values)
            | Self::DbFailure(values)
            | Self::PrimaryIsolated(values)
            | Self::Resumed(values)
            | Self::Attach(values, _)
            | Self::Detach(values, _) => values,
        }
    }
}

fn address(member: Option<&Member>) -> Option<HostPort> {
    member.and_then(|member| member.descriptor.postgres.clone())
}

fn primary(state: &ClusterState) -> Option<NodeId> {
    state.primary.map(|primary| primary.node)
}

/// A primary that came by a change, and the one before it.
struct Promoted {
    node: NodeId,
    values: Values,
}

/// The primary of a generation that `before` does not know; not one that was only started again.
fn chosen(before: &ClusterState, after: &ClusterState) -> Option<Promoted> {
    promoted(after).filter(|_| before.generation != after.generation)
}

/// The primary of this generation, from when on it serves.
fn serves(before: &ClusterState, after: &ClusterState) -> Option<Promoted> {
    let was = before.generation == after.generation && before.serving().is_some();
    promoted(after).filter(|_| after.serving().is_some() && !was)
}

fn promoted(state: &ClusterState) -> Option<Promoted> {
    let node = primary(state)?;
    let entry = state.present_entry().filter(|entry| entry.kind.is_some())?;
    let in_place = entry.from.as_ref() == Some(&entry.to)
        || matches!(entry.outcome, Outcome::RolledBack | Outcome::StartedInPlace);
    let values = Values {
        generation: state.generation,
        primary: address(state.members.get(&node)),
        old_primary: entry.from.as_ref().and_then(|from| address(state.by_name(from))),
        ..Values::default()
    };
    (!in_place).then_some(Promoted { node, values })
}

/// What the agent of node `me` runs.
pub(super) fn own(
    me: NodeId,
    (before, after): (&ClusterState, &ClusterState),
    own: Option<&PostgresObservation>,
) -> Vec<Call> {
    let mut calls = Vec::new();
    if let Some(Promoted { values, .. }) = chosen(before, after).filter(|chosen| chosen.node != me) {
        calls.push(Call::RemotePrePromotion(values));
    }
    if let Some(Promoted { node, values }) = serves(before, after) {
        calls.push(if node == me { Call::PostPromotion(values) } else { Call::RemotePostPromotion(values) });
    }
    if has_failed(me, before, after, own) {
        calls.push(Call::DbFailure(of_member(after, me)));
    }
    calls
}

/// Whether the cluster has given up this node's database, and not because it was cut off.
fn has_failed(
    me: NodeId,
    before: &ClusterState,
    after: &ClusterState,
    own: Option<&PostgresObservation>,
) -> bool {
    let Some(own) = own else { return false };
    let out = own.running().is_none() || own.health.complaint().is_some();
    let on_purpose = own.trouble.as_deref() == Some(REBUILDING);
    if !out || on_purpose || is_isolated(own) {
        return false;
    }
    if new_change(before, after).is_some_and(|c| c.kind == ChangeKind::Failover && c.from == me) {
        return true;
    }
    let failed = |state: &ClusterState| {
        state.members.get(&me).is_some_and(|member| matches!(member.service, Service::Failed(_)))
    };
    failed(after) && !failed(before)
}

/// What scripts are told of one member.
pub(super) fn of_member(state: &ClusterState, id: NodeId) -> Values {
    let member = state.members.get(&id);
    Values {
        generation: state.generation,
        primary: address(state.primary_member()),
        old_primary: None,
        host: address(member),
        node: member.map(|member| member.descriptor.name.clone()),
    }
}

/// What the agent that leads has the load balancer told.
pub(super) fn balancer(before: &ClusterState, after: &ClusterState) -> Vec<Call> {
    let mut calls = Vec::new();
    let gives_up = |state: &ClusterState| {
        let change = state.change.as_ref()?;
        (change.phase != ChangePhase::Preparing).then_some((change.from, change.begun))
    };
    // However far it has come by now. A promotion that failed was never attached.
    let left = gives_up(after).filter(|left| gives_up(before) != Some(*left));
    let replaced = gives_up(before).is_none() && primary(before) != primary(after);
    let old = before.serving().filter(|served| replaced || left.is_some_and(|(from, _)| from == *served));
    if let Some(old) = old {
        calls.push(Call::Detach(of_member(after, old), Role::Primary));
    }
    for (id, member) in after.databases().map(|member| (member.descriptor.id, member)) {
        let Some(was) = before.members.get(&id) else { continue };
        let is_primary = primary(after) == Some(id);
        let reads = |m: &Member| m.attached && m.descriptor.tags.balance;
        let in_rotation = |m: &Member| reads(m) && m.allowed && m.service == Service::Up;
        match (in_rotation(was), in_rotation(member)) {
            (false, true) if !is_primary => calls.push(Call::Attach(of_member(after, id), Role::Standby)),
            (true, false) if !is_primary && primary(before) != Some(id) => {
                calls.push(Call::Detach(of_member(after, id), Role::Standby));
            }
            _ => {}
        }
    }
    let phase = |state: &ClusterState| state.primary.map(|primary| (state.generation, primary.phase));
    let newly = phase(before) != phase(after)
        && matches!(after.primary.map(|primary| primary.phase), Some(PrimaryPhase::Serving { .. }));
    let by_change = after.present_entry().is_some_and(|entry| entry.kind.is_some());
    // A change that was given up before anything was stopped leaves everything as it was.
    let kept = gives_up(before).is_some() && gives_up(after).is_none() && phase(before) == phase(after);
    if let Some(node) = after.serving().filter(|_| (newly && by_change) || kept) {
        calls.push(Call::Attach(of_member(after, node), Role::Primary));
    }
    calls
}
