//! What the tests of several modules need: servers, what is seen of them, and commands, each with values that suit most tests.
//! What a test is about stands in the test: `Running { position: Lsn(900), ..running(true) }`, and for commands
//! `command!(Grant { received: Lsn(900), ..grant(generation, 2) })`.
//!
//! Server N is at `10.0.0.N`. Servers 1 to 3 have databases, server 4 is a witness. All of them begin at WAL position 1000 of
//! timeline 1, and at the time 0.

use std::collections::BTreeSet;
use std::time::Duration;

use pgherd_common::topology::ChangeKind;
use pgherd_common::wal::TimelineHistory;
use pgherd_common::{Generation, HostPort, Lsn, MonoTime, NodeId, NodeName, Timeline, WallTime};

use crate::cluster::{Applied, ClusterState, Command, Descriptor, Identity, NodeKind, apply};
use crate::cover::{Durability, SyncSet};
use crate::node::{Begun, Done, Setup};
use crate::observation::{Health, PostgresObservation, PostgresState, Running, SlotSeen, Stopped};
use crate::quorum::Quorum;
use crate::reconcile::{RejoinRules, Rules, Upstream};
use crate::timings::Timings;

/// A command with other values in some of its fields, as `Kind { field: value, ..base }` would be, had enums that.
macro_rules! command {
    (@value $field:ident) => { $field };
    (@value $field:ident $value:expr) => { $value };
    ($kind:ident { $($field:ident $(: $value:expr)?,)+ ..$base:expr }) => {{
        let (mut command, values) = ($base, ($(command!(@value $field $($value)?),)+));
        let $crate::cluster::Command::$kind { $($field,)+ .. } = &mut command else {
            panic!("this is no {}", stringify!($kind))
        };
        ($(*$field,)+) = values;
        command
    }};
}
pub(crate) use command;

/// The generation of the primary that was made so many changes ago, counted from the one without a primary.
pub(crate) fn generation(number: u64) -> Generation {
    (0..number).fold(Generation::ZERO, |generation, _| generation.next())
}

pub(crate) fn ids(ids: &[u64]) -> BTreeSet<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

pub(crate) fn name(id: u64) -> NodeName {
    format!("server{id}").parse().unwrap()
}

/// Where PostgreSQL is reached there.
pub(crate) fn address(id: u64) -> HostPort {
    format!("10.0.0.{id}:5432").parse().unwrap()
}

/// So many of these servers have what is acknowledged.
pub(crate) fn sync_set(standbys: u32, of: &[u64]) -> SyncSet {
    SyncSet { standbys, of: ids(of) }
}

pub(crate) fn database(id: u64) -> Descriptor {
    Descriptor {
        id: NodeId(id),
        name: name(id),
        kind: NodeKind::Database,
        agent: format!("10.0.0.{id}:7800").parse().unwrap(),
        postgres: Some(address(id)),
        priority: 100,
        weight: 1,
        tags: Default::default(),
        upstream: None,
    }
}

pub(crate) fn descriptor(id: u64) -> Descriptor {
    let database = database(id);
    if id == 4 { Descriptor { kind: NodeKind::Witness, postgres: None, ..database } } else { database }
}

/// The first so many.
pub(crate) fn descriptors(count: u64) -> Vec<Descriptor> {
    (1..=count).map(descriptor).collect()
}

pub(crate) fn identity() -> Identity {
    Identity { cluster: "demo".parse().unwrap(), system_identifier: 7, major: 15 }
}

/// An agent that starts now, with the configuration that most have, and remembers nothing.
pub(crate) fn setup(id: u64, now: MonoTime) -> Setup {
    Setup {
        descriptor: database(id),
        cluster: identity().cluster,
        timings: Timings::default(),
        auto_failover: true,
        max_lag: 0,
        salvage_wait: Duration::from_secs(5),
        minimum_standbys: 0,
        rejoin: RULES.rejoin,
        durability: Durability::default(),
        fence_script: false,
        tell_again: Duration::from_secs(900),
        incarnation: id,
        remembered: Generation::ZERO,
        adopted_until: now,
        address: None,
    }
}

pub(crate) const RULES: Rules = Rules {
    local_timeout: Duration::from_secs(10),
    restart_standby_after: Duration::from_secs(5),
    rejoin: RejoinRules { auto: true, clone: true },
    fence_script: false,
};

/// The first so many vote, and nothing is in flight.
pub(crate) fn quorum(voters: u64) -> Quorum {
    Quorum { voters: (1..=voters).map(NodeId).collect(), settled: true, ..Quorum::default() }
}

/// A primary, or a standby that streams from server 1.
pub(crate) fn running(in_recovery: bool) -> Running {
    Running {
        in_recovery,
        timeline: Timeline(1),
        position: Lsn(1000),
        received: Lsn(1000),
        checkpoint_timeline: Timeline(1),
        history: TimelineHistory::default(),
        follows: in_recovery.then(|| address(1)),
        follows_in: None,
        receiver: in_recovery.then(|| "streaming".to_owned()),
        standbys: Vec::new(),
        redo: Lsn::default(),
        slots: Vec::new(),
        logical: Default::default(),
        cover: None,
        gated: false,
        first_xid: None,
        capacity: None,
    }
}

/// Somebody has just seen it die.
pub(crate) fn stopped(clean: bool, standby: bool) -> Stopped {
    Stopped {
        clean,
        standby,
        timeline: Timeline(1),
        checkpoint: Lsn(1000),
        redo: Lsn::default(),
        found_down: false,
        for_ms: 0,
        left: None,
    }
}

/// The cluster's database in this state, and nothing else to tell of it.
pub(crate) fn observed(state: PostgresState) -> PostgresObservation {
    PostgresObservation {
        system_identifier: identity().system_identifier,
        major: identity().major,
        pid: (!matches!(state, PostgresState::Down(_) | PostgresState::Unusable(_))).then_some(1),
        state,
        recruited: None,
        salvaged: None,
        undrained: None,
        prepared: None,
        released: None,
        restarting: None,
        fenced: None,
        trouble: None,
        health: Health::default(),
    }
}

/// The slot of a member that is not there.
pub(crate) fn slot(member: u64, restart: Option<u64>) -> SlotSeen {
    let name = format!("pgherd_server{member}");
    SlotSeen { name, active: false, restart: restart.map(Lsn), lost: false, pinned: false }
}

pub(crate) fn upstream(id: u64) -> Upstream {
    Upstream { node: name(id), address: address(id), generation: None, copy_slots: false }
}

/// An action that has succeeded.
pub(crate) fn done(begun: Begun, observation: PostgresObservation) -> Done {
    Done { action: begun.action, before: begun.before, result: Ok(()), setback: None, observation }
}

pub(crate) fn form(primary: u64, members: Vec<Descriptor>) -> Command {
    Command::Form { identity: identity(), primary: NodeId(primary), members, at: WallTime(0) }
}

/// A change of primary that leads to whoever is best.
pub(crate) fn begin(generation: Generation, kind: ChangeKind, from: u64) -> Command {
    Command::Begin {
        generation,
        kind,
        from: NodeId(from),
        to: None,
        reason: "test".to_owned(),
        allow_data_loss: false,
        end_transactions: false,
        noticed_ms: 0,
        scheduled: None,
        at: WallTime(0),
    }
}

pub(crate) fn failover(generation: Generation, from: u64) -> Command {
    begin(generation, ChangeKind::Failover, from)
}

pub(crate) fn switchover(generation: Generation, from: u64, to: u64) -> Command {
    command!(Begin { to: Some(NodeId(to)), ..begin(generation, ChangeKind::Switchover, from) })
}

/// To one that has all there is.
pub(crate) fn grant(generation: Generation, node: u64) -> Command {
    Command::Grant {
        generation,
        node: NodeId(node),
        received: Lsn(1000),
        old_end: None,
        cover: SyncSet::default(),
        rolled_back: None,
        at: WallTime(0),
    }
}

pub(crate) fn serve(generation: Generation, timeline: u32) -> Command {
    let timeline = Timeline(timeline);
    Command::Serve { generation, timeline, first_xid: None, took: Vec::new(), at: WallTime(0) }
}

/// The log has one more entry, which changes something.
pub(crate) fn commit(state: &mut ClusterState, command: &Command) {
    let revision = state.revision + 1;
    assert_eq!(apply(state, command, revision), Applied::Changed, "{command:?}");
}
