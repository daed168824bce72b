//! What each command does to the state.

use std::collections::BTreeSet;

use pgherd_common::topology::ChangeKind;
use pgherd_common::{Generation, Lsn, NodeId, Timeline, WallTime};

use super::command::{Applied, Command, Rejected};
use super::membership;
use super::parameters::{self, Setter};
use super::schedule::{self, Scheduled};
use super::slot_sync::SlotSync;
use super::state::{
    Change, ChangePhase, ClusterState, Descriptor, HistoryEntry, Identity, Member, OldEnd, Outcome, Primary,
    PrimaryPhase, Service,
};
use super::voters::{LeaseVoters, VoterPlan};
use super::{pause, relay, slot_sync};
use crate::cover::SyncSet;
use crate::waterfall::Took;

/// Applies a command that the log has at `revision`. Total: whatever the state and the command, it
/// returns, and a rejected command changes nothing.
pub fn apply(state: &mut ClusterState, command: &Command, revision: u64) -> Applied {
    let result = dispatch(state, command, revision);
    match result {
        Ok(true) => {
            state.revision = revision;
            Applied::Changed
        }
        Ok(false) => Applied::Unchanged,
        Err(rejected) => Applied::Rejected(rejected),
    }
}

fn dispatch(state: &mut ClusterState, command: &Command, revision: u64) -> Result<bool, Rejected> {
    match command {
        Command::Form { identity, primary, members, at } => form(state, identity, *primary, members, *at),
        Command::Register { descriptor, at } => register(state, descriptor, *at),
        Command::Invite { .. } | Command::Remove { .. } | Command::Removed { .. } => {
            membership::change(state, command, revision)
        }
        Command::SetService { generation, node, service, at } => {
            same_generation(state, *generation)?;
            staying(state, *node)?;
            set_service(state, *node, service.clone(), *at)
        }
        Command::Begin { generation, scheduled, .. } => {
            same_generation(state, *generation)?;
            begin(state, command.begun().ok_or(Rejected::WrongPhase)?, *scheduled)
        }
        Command::Schedule { generation, .. } => {
            same_generation(state, *generation)?;
            schedule::schedule(state, Scheduled::of(command, revision).ok_or(Rejected::WrongPhase)?)
        }
        Command::Unschedule { number, why, at } => schedule::unschedule(state, *number, why.as_deref(), *at),
        Command::Pause { node, until, at } => pause::pause(state, *node, (*at, *until), revision),
        Command::Unpause { node, number } => pause::unpause(state, *node, *number),
        Command::SetParameters { node, values, by, at } => {
            let setter = Setter { by, at: *at, number: revision };
            parameters::set(state, *node, values, &setter)
        }
        Command::Stop { generation } => stop(state, *generation),
        Command::Grant { generation, node, received, old_end, cover, rolled_back, at } => {
            let end = (*received, *old_end);
            grant(state, *generation, *node, end, rolled_back.as_deref(), *at)?;
            // Also where nothing changes: the server is another one, or was started anew.
            if !cover.is_none() || state.cover.number > 0 {
                state.cover.want(cover, revision);
            }
            Ok(true)
        }
        Command::Promoted { generation, timeline } => promoted(state, *generation, *timeline),
        Command::Serve { generation, timeline, first_xid, took, at } => {
            same_generation(state, *generation)?;
            serve(state, *timeline, *first_xid, took, *at)
        }
        Command::Published { generation, took } => published(state, *generation, *took),
        Command::Abandon { generation, stopping, reason, at } => {
            let decided_in = if *stopping { ChangePhase::Stopping } else { ChangePhase::Preparing };
            abandon(state, *generation, decided_in, reason, *at)
        }
        Command::SetAttached { node, attached } => {
            let member = database(state, *node)?;
            Ok(std::mem::replace(&mut member.attached, *attached) != *attached)
        }
        Command::SetPriority { node, priority } => {
            let member = database(state, *node)?;
            Ok(member.priority_override.replace(*priority) != Some(*priority))
        }
        Command::SetAllowed { node, allowed, at } => set_allowed(state, *node, *allowed, *at),
        Command::Resume { node, at } => resume(state, *node, *at),
        Command::PlanVoters { generation, next } => plan_voters(state, *generation, next, revision),
        Command::SettleVoters { generation, planned } => settle_voters(state, *generation, *planned),
        Command::WantCover { generation, set } => want_cover(state, *generation, set, revision),
        Command::SettleCover { generation, number } => settle_cover(state, *generation, *number),
        Command::SetRelay { generation, node, relay } => set_relay(state, *generation, *node, *relay),
        Command::SyncSlots { generation, sync } => sync_slots(state, *generation, sync.as_ref()),
        Command::Readmit { node, token } => readmit(state, *node, *token),
    }
}

fn form(
    state: &mut ClusterState,
    identity: &Identity,
    primary: NodeId,
    members: &[Descriptor],
    at: WallTime,
) -> Result<bool, Rejected> {
    if state.identity.is_some() {
        return Err(Rejected::AlreadyFormed);
    }
    let Some(first) = members.iter().find(|member| member.id == primary) else {
        return Err(Rejected::UnknownMember(primary));
    };
    if first.postgres.is_none() {
        return Err(Rejected::Witness(primary));
    }
    state.identity = Some(identity.clone());
    state.generation = Generation::ZERO.next();
    state.primary = Some(Primary { node: primary, phase: PrimaryPhase::Promoting, first_xid: None });
    state.members = members.iter().map(|descriptor| (descriptor.id, member(descriptor, at))).collect();
    state.voters = LeaseVoters::only(state.members.keys().copied().collect());
    state.history.push(HistoryEntry {
        kind: None,
        generation: state.generation,
        from: None,
        to: first.name.clone(),
        reason: "the cluster formed".to_owned(),
        begun: at,
        granted: at,
        serving: None,
        timeline: None,
        received: Lsn::default(),
        old_end: None,
        took: Vec::new(),
        outcome: Outcome::InFlight,
    });
    Ok(true)
}

fn member(descriptor: &Descriptor, at: WallTime) -> Member {
    Member {
        descriptor: descriptor.clone(),
        priority_override: None,
        attached: true,
        allowed: true,
        service: Service::Joining,
        replaced: false,
        since: at,
        leaving: None,
    }
}

fn register(state: &mut ClusterState, descriptor: &Descriptor, at: WallTime) -> Result<bool, Rejected> {
    if state.identity.is_none() {
        return Err(Rejected::NotFormed);
    }
    match state.members.get_mut(&descriptor.id) {
        Some(known) if known.descriptor == *descriptor => Ok(false),
        Some(known) => {
            known.descriptor = descriptor.clone();
            Ok(true)
        }
        None => {
            let id = descriptor.id;
            if state.invited.get(&id).is_none_or(|invited| invited.name != descriptor.name) {
                return Err(Rejected::NotInvited(id));
            }
            state.invited.remove(&id);
            state.members.insert(id, member(descriptor, at));
            Ok(true)
        }
    }
}

fn same_generation(state: &ClusterState, decided: Generation) -> Result<(), Rejected> {
    if state.generation == decided {
        Ok(())
    } else {
        Err(Rejected::Stale { decided, current: state.generation })
    }
}

fn known(state: &mut ClusterState, node: NodeId) -> Result<&mut Member, Rejected> {
    state.members.get_mut(&node).ok_or(Rejected::UnknownMember(node))
}

fn database(state: &mut ClusterState, node: NodeId) -> Result<&mut Member, Rejected> {
    let member = known(state, node)?;
    if member.is_database() { Ok(member) } else { Err(Rejected::Witness(node)) }
}

/// Whoever is on its way out is nothing else any more.
fn staying(state: &ClusterState, node: NodeId) -> Result<(), Rejected> {
    if state.is_leaving(node) { Err(Rejected::Leaving(node)) } else { Ok(()) }
}

fn set_service(
    state: &mut ClusterState,
    node: NodeId,
    service: Service,
    at: WallTime,
) -> Result<bool, Rejected> {
    let member = known(state, node)?;
    if member.service == service {
        return Ok(false);
    }
    member.replaced &= service != Service::Up;
    let up = service == Service::Up;
    member.service = service;
    member.since = at;
    if !up {
        relay::left_service(state, node);
    }
    Ok(true)
}

fn begin(state: &mut ClusterState, mut change: Change, scheduled: Option<u64>) -> Result<bool, Rejected> {
    if let Some(other) = &state.change {
        // A failover takes over when the successor failed before it served, or when the old primary
        // was lost in the middle of a switchover. From another failover that has yet to choose only an
        // operator takes over, who may name the successor or accept a loss.
        let by_operator = change.allow_data_loss && (!other.allow_data_loss || other.to != change.to);
        let superseded = change.kind == ChangeKind::Failover
            && (other.phase == ChangePhase::Granted || other.kind == ChangeKind::Switchover || by_operator);
        if !superseded {
            return Err(Rejected::ChangeInFlight { kind: other.kind, generation: other.generation });
        }
        // One step back is enough: were it two, a pair of broken nodes could hand the role to and fro.
        // Nor had a successor acknowledged anything that only waited for its standbys.
        let promoting = state.primary.is_some_and(|primary| primary.phase == PrimaryPhase::Promoting);
        let never_served = other.phase == ChangePhase::Granted && other.before.is_none() && promoting;
        change.before = Some(other.from).filter(|before| never_served && *before != change.from);
    }
    if state.primary.map(|primary| primary.node) != Some(change.from) {
        return Err(Rejected::NotPrimary(change.from));
    }
    if let Some(to) = change.to {
        database(state, to)?;
        staying(state, to)?;
    }
    pause::check(state, &change)?;
    if let Some(number) = scheduled {
        schedule::take(state, number)?;
    }
    if let Some(entry) = state.entry_in_flight() {
        entry.outcome = Outcome::Superseded;
    }
    if change.kind == ChangeKind::Failover {
        let reason = Service::Failed(change.reason.clone());
        set_service(state, change.from, reason, change.begun)?;
    }
    state.change = Some(change);
    Ok(true)
}

fn in_flight(state: &mut ClusterState, generation: Generation) -> Result<&mut Change, Rejected> {
    let none = Rejected::NoSuchChange(generation);
    state.change.as_mut().filter(|change| change.generation == generation).ok_or(none)
}

fn stop(state: &mut ClusterState, generation: Generation) -> Result<bool, Rejected> {
    let change = in_flight(state, generation)?;
    match change.phase {
        ChangePhase::Preparing => {
            change.phase = ChangePhase::Stopping;
            Ok(true)
        }
        ChangePhase::Stopping => Ok(false),
        ChangePhase::Recruiting | ChangePhase::Granted => Err(Rejected::WrongPhase),
    }
}

fn grant(
    state: &mut ClusterState,
    generation: Generation,
    node: NodeId,
    (received, old_end): (Lsn, Option<OldEnd>),
    rolled_back: Option<&str>,
    at: WallTime,
) -> Result<(), Rejected> {
    let to = database(state, node)?.descriptor.name.clone();
    staying(state, node)?;
    if !state.voters.contains(node) {
        return Err(Rejected::NotAVoter(node));
    }
    let change = in_flight(state, generation)?;
    match change.phase {
        ChangePhase::Stopping | ChangePhase::Recruiting => change.phase = ChangePhase::Granted,
        ChangePhase::Preparing | ChangePhase::Granted => return Err(Rejected::WrongPhase),
    }
    let change = change.clone();
    let from = state.members.get(&change.from).map(|member| member.descriptor.name.clone());
    schedule::carry_over(state, node, generation);
    state.generation = generation;
    state.primary = Some(Primary { node, phase: PrimaryPhase::Promoting, first_xid: None });
    state.relays.clear();
    slot_sync::changed_primary(state);
    if change.from != node && change.kind == ChangeKind::Switchover {
        set_service(state, change.from, Service::Joining, at)?;
    }
    if change.from != node && change.kind == ChangeKind::Failover {
        known(state, change.from)?.replaced = true;
    }
    state.record(HistoryEntry {
        kind: Some(change.kind),
        generation,
        from,
        to,
        reason: match (rolled_back, change.kind) {
            (Some(why), ChangeKind::Switchover) => format!("{}; rolled back: {why}", change.reason),
            (Some(why), ChangeKind::Failover) => format!("{}; started in place: {why}", change.reason),
            (None, _) => change.reason,
        },
        begun: change.begun,
        granted: at,
        serving: None,
        timeline: None,
        received,
        old_end,
        took: Vec::new(),
        outcome: Outcome::InFlight,
    });
    Ok(())
}

/// The change goes on: what is granted and up can follow the log's word, and be followed.
fn promoted(state: &mut ClusterState, generation: Generation, timeline: Timeline) -> Result<bool, Rejected> {
    same_generation(state, generation)?;
    let granted = state.change.as_ref().is_some_and(|change| change.phase == ChangePhase::Granted);
    let Some(primary) = state.primary.as_mut().filter(|_| granted) else { return Err(Rejected::WrongPhase) };
    match primary.phase {
        PrimaryPhase::Promoting => primary.phase = PrimaryPhase::Covering { timeline },
        PrimaryPhase::Covering { .. } => return Ok(false),
        PrimaryPhase::Serving { .. } => return Err(Rejected::WrongPhase),
    }
    if let Some(entry) = state.present_entry_mut() {
        entry.timeline = Some(timeline);
    }
    Ok(true)
}

fn serve(
    state: &mut ClusterState,
    timeline: Timeline,
    first_xid: Option<u64>,
    took: &[Took],
    at: WallTime,
) -> Result<bool, Rejected> {
    // Proposed before the log had given this primary up: it must not call that off.
    if let Some(change) = state.change.as_ref().filter(|change| change.phase != ChangePhase::Granted) {
        return Err(Rejected::ChangeInFlight { kind: change.kind, generation: change.generation });
    }
    let Some(primary) = &mut state.primary else { return Err(Rejected::NotFormed) };
    let serving = PrimaryPhase::Serving { timeline };
    if primary.phase == serving {
        return Ok(false);
    }
    primary.phase = serving;
    let node = primary.node;
    let change = state.change.take();
    let back = change.as_ref().filter(|change| change.from == node).map(|change| change.kind);
    let restarted = change.as_ref().is_some_and(Change::is_restart);
    // One that was forced may not have the last primary's transactions behind it.
    let forced = change.is_some_and(|change| change.allow_data_loss);
    primary.first_xid = first_xid.filter(|_| back.is_none() && !forced);
    set_service(state, node, Service::Up, at)?;
    if let Some(entry) = state.present_entry_mut() {
        entry.serving = Some(at);
        entry.timeline = Some(timeline);
        entry.took = took.to_vec();
        entry.outcome = match back {
            None => Outcome::Completed,
            Some(_) if restarted => Outcome::Completed,
            Some(ChangeKind::Switchover) => Outcome::RolledBack,
            Some(ChangeKind::Failover) => Outcome::StartedInPlace,
        };
    }
    Ok(true)
}

fn published(state: &mut ClusterState, generation: Generation, took: Took) -> Result<bool, Rejected> {
    same_generation(state, generation)?;
    let entry = state.present_entry_mut();
    let known = |entry: &HistoryEntry| entry.took.iter().any(|known| known.step == took.step);
    Ok(match entry.filter(|entry| entry.serving.is_some() && !known(entry)) {
        Some(entry) => {
            // The first write may be known before all proxies have acknowledged.
            let place = entry.took.partition_point(|known| known.step < took.step);
            entry.took.insert(place, took);
            true
        }
        None => false,
    })
}

fn abandon(
    state: &mut ClusterState,
    generation: Generation,
    decided_in: ChangePhase,
    reason: &str,
    at: WallTime,
) -> Result<bool, Rejected> {
    let change = in_flight(state, generation)?;
    if change.phase != decided_in {
        return Err(Rejected::WrongPhase);
    }
    let change = change.clone();
    let name = |node: NodeId| state.members.get(&node).map(|member| member.descriptor.name.clone());
    let from = name(change.from);
    if let Some(to) = change.to.and_then(name).or_else(|| from.clone()) {
        state.record(HistoryEntry {
            kind: Some(change.kind),
            generation: state.generation,
            from,
            to,
            reason: format!("{}; given up: {reason}", change.reason),
            begun: change.begun,
            granted: at,
            serving: None,
            timeline: None,
            received: Lsn::default(),
            old_end: None,
            took: Vec::new(),
            outcome: Outcome::RolledBack,
        });
    }
    state.change = None;
    Ok(true)
}

fn set_allowed(
    state: &mut ClusterState,
    node: NodeId,
    allowed: bool,
    at: WallTime,
) -> Result<bool, Rejected> {
    let is_primary = state.primary.is_some_and(|primary| primary.node == node);
    staying(state, node)?;
    let member = known(state, node)?;
    if member.allowed == allowed {
        return Ok(false);
    }
    if is_primary && !allowed {
        return Err(Rejected::IsPrimary(node));
    }
    member.allowed = allowed;
    member.replaced &= !allowed;
    member.service = Service::Joining;
    member.since = at;
    Ok(true)
}

fn resume(state: &mut ClusterState, node: NodeId, at: WallTime) -> Result<bool, Rejected> {
    staying(state, node)?;
    let member = database(state, node)?;
    if !member.allowed {
        return Err(Rejected::NotAllowed(node));
    }
    match &member.service {
        Service::Failed(_) => {
            // One attempt that fails is not to need another word.
            member.replaced = false;
            set_service(state, node, Service::Joining, at)
        }
        Service::Joining => Ok(false),
        Service::Up => Err(Rejected::NotFailed(node)),
    }
}

fn plan_voters(
    state: &mut ClusterState,
    decided: Generation,
    next: &BTreeSet<NodeId>,
    revision: u64,
) -> Result<bool, Rejected> {
    same_generation(state, decided)?;
    let Some(primary) = state.upstream() else {
        return Err(match &state.change {
            Some(change) => Rejected::ChangeInFlight { kind: change.kind, generation: change.generation },
            None => Rejected::NotFormed,
        });
    };
    if state.voters.plan.is_some() {
        return Err(Rejected::VotersChanging);
    }
    let one_moves = state.voters.current.symmetric_difference(next).count() == 1;
    let fit = |node: &NodeId| state.voters.current.contains(node) || !state.is_leaving(*node);
    let all_known = next.iter().all(|node| state.members.contains_key(node) && fit(node));
    if !one_moves || !all_known || next.len() < ClusterState::VOTERS_MIN || !next.contains(&primary) {
        return Err(Rejected::UnfitVoters);
    }
    state.voters.plan = Some(VoterPlan { next: next.clone(), revision });
    Ok(true)
}

fn want_cover(
    state: &mut ClusterState,
    decided: Generation,
    set: &SyncSet,
    revision: u64,
) -> Result<bool, Rejected> {
    same_generation(state, decided)?;
    if state.cover.wanted == *set {
        return Ok(false);
    }
    if let Some(unknown) = set.of.iter().find(|node| !state.members.contains_key(node)) {
        return Err(Rejected::UnknownMember(*unknown));
    }
    state.cover.want(set, revision);
    Ok(true)
}

fn settle_cover(state: &mut ClusterState, decided: Generation, number: u64) -> Result<bool, Rejected> {
    same_generation(state, decided)?;
    if state.cover.number != number {
        return Err(Rejected::CoverChanged(number));
    }
    let wanted = state.cover.wanted.clone();
    Ok(std::mem::replace(&mut state.cover.promised, wanted) != state.cover.wanted)
}

fn set_relay(
    state: &mut ClusterState,
    decided: Generation,
    node: NodeId,
    relay: Option<NodeId>,
) -> Result<bool, Rejected> {
    same_generation(state, decided)?;
    relay::set_relay(state, node, relay)
}

fn sync_slots(
    state: &mut ClusterState,
    decided: Generation,
    sync: Option<&SlotSync>,
) -> Result<bool, Rejected> {
    same_generation(state, decided)?;
    slot_sync::sync_slots(state, sync)
}

fn settle_voters(state: &mut ClusterState, decided: Generation, planned: u64) -> Result<bool, Rejected> {
    same_generation(state, decided)?;
    match state.voters.plan.take() {
        Some(plan) if plan.revision == planned => {
            state.voters.current = plan.next;
            Ok(true)
        }
        other => {
            state.voters.plan = other;
            Err(Rejected::NoSuchPlan(planned))
        }
    }
}

fn readmit(state: &mut ClusterState, node: NodeId, token: u64) -> Result<bool, Rejected> {
    if !state.belongs(node) {
        return Err(Rejected::UnknownMember(node));
    }
    if state.voters.mentions(node) {
        return Err(Rejected::IsVoter(node));
    }
    Ok(state.readmitted.insert(node, token) != Some(token))
}
