//! A switchover that is to begin at a set time: how it comes into the state, and leaves it.

use pgherd_common::topology::ChangeKind;
use pgherd_common::{Generation, Lsn, NodeId, WallTime};
use serde::{Deserialize, Serialize};

use super::command::{Command, Rejected};
use super::state::{ClusterState, HistoryEntry, Outcome};

/// A switchover that is to begin at a set time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduled {
    /// Tells it from earlier ones: the log's entry that made it.
    pub number: u64,
    /// When it is to begin.
    pub due: WallTime,
    /// The primary that is to be left.
    pub from: NodeId,
    /// The present generation for as long as `from` stays the primary without a break.
    pub generation: Generation,
    /// The wanted successor, if one is wanted.
    pub to: Option<NodeId>,
    /// Whether transactions that do not end in time are to be ended.
    pub end_transactions: bool,
}

impl Scheduled {
    /// What a command asks for that the log has under this number, if it asks for a schedule.
    pub(super) fn of(command: &Command, number: u64) -> Option<Self> {
        let Command::Schedule { generation, due, from, to, end_transactions, at: _ } = *command else {
            return None;
        };
        Some(Self { number, due, from, generation, to, end_transactions })
    }
}

/// Takes a schedule into the state.
pub(super) fn schedule(state: &mut ClusterState, scheduled: Scheduled) -> Result<bool, Rejected> {
    if let Some(change) = &state.change {
        return Err(Rejected::ChangeInFlight { kind: change.kind, generation: change.generation });
    }
    if state.serving() != Some(scheduled.from) {
        return Err(Rejected::NotServing(scheduled.from));
    }
    if let Some(known) = &state.scheduled {
        return Err(Rejected::AlreadyScheduled(known.due));
    }
    if let Some(to) = scheduled.to {
        let member = state.members.get(&to).ok_or(Rejected::UnknownMember(to))?;
        if member.leaving.is_some() {
            return Err(Rejected::Leaving(to));
        }
        if !member.is_database() {
            return Err(Rejected::Witness(to));
        }
        if to == scheduled.from {
            return Err(Rejected::IsPrimary(to));
        }
    }
    state.scheduled = Some(scheduled);
    Ok(true)
}

/// Takes this very schedule out of the state. With a reason, the history tells that it was not done.
pub(super) fn unschedule(
    state: &mut ClusterState,
    number: u64,
    why: Option<&str>,
    at: WallTime,
) -> Result<bool, Rejected> {
    let scheduled = take(state, number)?;
    let Some(why) = why else { return Ok(true) };
    let name = |node: NodeId| state.members.get(&node).map(|member| member.descriptor.name.clone());
    let from = name(scheduled.from);
    if let Some(to) = scheduled.to.and_then(name).or_else(|| from.clone()) {
        state.record(HistoryEntry {
            kind: Some(ChangeKind::Switchover),
            generation: state.generation,
            from,
            to,
            reason: format!("an operator asked for a switchover at {}; not done: {why}", scheduled.due),
            begun: at,
            granted: at,
            serving: None,
            timeline: None,
            received: Lsn::default(),
            old_end: None,
            took: Vec::new(),
            outcome: Outcome::NotDone,
        });
    }
    Ok(true)
}

/// It begins, or is given up.
pub(super) fn take(state: &mut ClusterState, number: u64) -> Result<Scheduled, Rejected> {
    state.scheduled.take_if(|scheduled| scheduled.number == number).ok_or(Rejected::NotScheduled)
}

/// Another generation is granted, to this node: one that stays the primary is still the one that is to be left.
pub(super) fn carry_over(state: &mut ClusterState, node: NodeId, generation: Generation) {
    let before = state.generation;
    let stays = |scheduled: &&mut Scheduled| scheduled.from == node && scheduled.generation == before;
    if let Some(scheduled) = state.scheduled.as_mut().filter(stays) {
        scheduled.generation = generation;
    }
}
