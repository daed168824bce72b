//! Which orders a node takes, and what becomes of them.

use std::sync::Arc;
use std::time::Duration;

use pgherd_common::topology::ChangeKind;
use pgherd_common::wal::TimelineHistory;
use pgherd_common::{Generation, Lsn, NodeId, Timeline, WallTime};

use super::*;
use crate::cluster::{Applied, ClusterState, Command, Descriptor, Identity, NodeKind, Service, apply};
use crate::cover::{Durability, SyncSet};
use crate::node::{Done, Quorum, Setup};
use crate::observation::{Health, NodeObservation, PostgresState, Running, SlotSeen, Stopped};
use crate::rebuild::Means;
use crate::reconcile::RejoinRules;
use crate::timings::Timings;

fn descriptor(id: u64) -> Descriptor {
    Descriptor {
        id: NodeId(id),
        name: format!("server{id}").parse().unwrap(),
        kind: NodeKind::Database,
        agent: format!("10.0.0.{id}:7800").parse().unwrap(),
        postgres: Some(format!("10.0.0.{id}:5432").parse().unwrap()),
        priority: 100,
        weight: 1,
        tags: Default::default(),
        upstream: None,
    }
}

fn slot(name: &str) -> SlotSeen {
    let restart = Some(Lsn(1));
    SlotSeen { name: name.to_owned(), active: false, restart, lost: false, pinned: false }
}

fn postgres(in_recovery: bool, position: u64) -> PostgresObservation {
    PostgresObservation {
        system_identifier: 7,
        major: 15,
        pid: Some(1),
        state: PostgresState::Running(Running {
            in_recovery,
            timeline: Timeline(1),
            position: Lsn(position),
            received: Lsn(position),
            checkpoint_timeline: Timeline(1),
            history: TimelineHistory::default(),
            follows: in_recovery.then(|| "10.0.0.1:5432".parse().unwrap()),
            follows_in: None,
            cover: None,
            gated: false,
            capacity: None,
            first_xid: None,
            receiver: in_recovery.then(|| "streaming".to_owned()),
            standbys: Vec::new(),
            redo: Lsn::default(),
            slots: ["pgherd_server1", "pgherd_server3", "pgherd_server4"].map(slot).into(),
            logical: Default::default(),
        }),
        recruited: None,
        salvaged: None,
        undrained: None,
        restarting: None,
        prepared: None,
        released: None,
        fenced: None,
        trouble: None,
        health: Health::default(),
    }
}

fn down() -> PostgresObservation {
    let stopped = Stopped {
        clean: true,
        standby: true,
        timeline: Timeline(1),
        checkpoint: Lsn(900),
        redo: Lsn(900),
        found_down: false,
        for_ms: 0,
        left: None,
    };
    PostgresObservation { pid: None, state: PostgresState::Down(stopped), ..postgres(true, 0) }
}

/// Server 2 of four, a standby of server 1.
struct Rig {
    node: Node,
    state: ClusterState,
    now: MonoTime,
}

impl Rig {
    fn new() -> Self {
        let now = MonoTime::since_boot(Duration::from_secs(10));
        let setup = Setup {
            descriptor: descriptor(2),
            cluster: "demo".parse().unwrap(),
            timings: Timings::default(),
            auto_failover: true,
            max_lag: 0,
            salvage_wait: Duration::ZERO,
            minimum_standbys: 0,
            rejoin: RejoinRules { auto: true, clone: true },
            fence_script: false,
            tell_again: Duration::ZERO,
            durability: Durability::default(),
            address: None,
            incarnation: 1,
            remembered: Generation::ZERO,
            adopted_until: now,
        };
        let mut rig = Self { node: Node::new(setup, now), state: ClusterState::default(), now };
        rig.node.look(postgres(true, 1000));
        let identity = Identity { cluster: "demo".parse().unwrap(), system_identifier: 7, major: 15 };
        let members = (1..=4).map(descriptor).collect();
        rig.commit(&Command::Form { identity, primary: NodeId(1), members, at: WallTime(0) });
        rig.commit(&Command::Serve {
            generation: rig.state.generation,
            timeline: Timeline(1),
            first_xid: None,
            took: Vec::new(),
            at: WallTime(0),
        });
        rig.hear(1, postgres(false, 1000));
        rig.hear(3, postgres(true, 900));
        rig.hear(4, postgres(true, 950));
        rig
    }

    fn commit(&mut self, command: &Command) {
        let revision = self.state.revision + 1;
        assert_eq!(apply(&mut self.state, command, revision), Applied::Changed, "{command:?}");
        let quorum = Quorum { voters: (1..=4).map(NodeId).collect(), settled: true, ..Quorum::default() };
        self.node.committed(Arc::new(self.state.clone()), quorum, self.now);
    }

    fn hear(&mut self, id: u64, postgres: PostgresObservation) {
        let own = self.node.observation(self.now);
        let observation = NodeObservation {
            descriptor: descriptor(id),
            serial: own.serial + 1,
            incarnation: id,
            postgres: Some(postgres),
            ..own
        };
        self.node.coordinator.observe(observation, self.now);
    }

    fn order(&mut self, number: u64, from: Option<&str>) -> Result<u64, OrderRefused> {
        let from = from.map(|from| from.parse().unwrap());
        self.node.order(Order { number, means: Means::Clone, from, rate: None }, self.now, WallTime(7))
    }

    fn act(&mut self) -> Option<crate::node::Begun> {
        self.node.turn(self.now, WallTime(0), false, true).act
    }
}

fn names(donors: &[Upstream]) -> Vec<&str> {
    donors.iter().map(|donor| donor.node.as_str()).collect()
}

#[test]
fn a_standby_that_has_most_is_copied_and_the_primary_last() {
    let mut rig = Rig::new();
    assert_eq!(names(&rig.node.donors(rig.now)), ["server4", "server3", "server1"]);
    let mut elsewhere = postgres(true, 5000);
    if let PostgresState::Running(running) = &mut elsewhere.state {
        running.follows = Some("10.0.0.9:5432".parse().unwrap());
    }
    let own = rig.node.observation(rig.now);
    let observation = NodeObservation {
        descriptor: descriptor(4),
        serial: own.serial + 2,
        incarnation: 4,
        postgres: Some(elsewhere),
        ..own
    };
    rig.node.coordinator.observe(observation, rig.now);
    assert_eq!(names(&rig.node.donors(rig.now)), ["server3", "server1"], "it streams from somebody else");
    rig.now = rig.now + Duration::from_secs(60);
    assert_eq!(names(&rig.node.donors(rig.now)), Vec::<&str>::new(), "nobody is heard any more");
    assert!(matches!(rig.order(1, None), Err(OrderRefused::NoPrimary(_))));
}

#[test]
fn what_commits_rest_on_is_copied_from_the_primary_only() {
    let mut rig = Rig::new();
    let generation = rig.state.generation;
    let set = SyncSet { standbys: 1, of: [NodeId(2), NodeId(3)].into() };
    rig.commit(&Command::WantCover { generation, set });
    let number = rig.state.cover.number;
    rig.commit(&Command::SettleCover { generation, number });
    assert_eq!(names(&rig.node.donors(rig.now)), ["server1"]);
    let refused = rig.order(1, Some("server3")).unwrap_err().to_string();
    assert!(refused.contains("commits that were acknowledged rest on this node"), "{refused}");
}

#[test]
fn a_standby_is_stopped_then_rebuilt_and_the_order_ends_with_that() {
    let mut rig = Rig::new();
    let (generation, node) = (rig.state.generation, rig.node.id());
    rig.commit(&Command::SetService { generation, node, service: Service::Up, at: WallTime(1) });
    assert_eq!(rig.order(1, Some("server3")), Ok(1));
    assert_eq!(rig.order(2, Some("server3")), Ok(1), "the same again is the same order");
    assert!(matches!(rig.order(3, None), Err(OrderRefused::Busy(_))));
    assert_eq!(rig.act(), None, "proxies may send it something yet");
    let done = |begun: crate::node::Begun, result: Result<(), String>, observation| Done {
        action: begun.action,
        before: begun.before,
        result,
        setback: None,
        observation,
    };
    rig.hear(3, down());
    let begun = rig.act().unwrap();
    let goes_on = matches!(begun.action, LocalAction::AlignSlots { .. });
    assert!(goes_on, "while there is nobody to copy from: {begun:?}");
    rig.node.acted(done(begun, Ok(()), postgres(true, 1000)), rig.now);
    rig.hear(3, postgres(true, 900));
    let service = Service::Failed("an operator has it restarted or rebuilt".to_owned());
    rig.commit(&Command::SetService { generation, node, service, at: WallTime(8) });
    let begun = rig.act().unwrap();
    let drained = LocalAction::DrainAndStop { begun: WallTime(7), end_transactions: true };
    assert_eq!(begun.action, drained);
    rig.node.acted(done(begun, Ok(()), down()), rig.now);
    let begun = rig.act().unwrap();
    let LocalAction::Rebuild(rebuild) = &begun.action else { panic!("{begun:?}") };
    assert_eq!((names(&rebuild.sources), rebuild.order), (vec!["server3"], Some(1)));
    let told = rig.node.observation(rig.now).postgres.unwrap();
    assert_eq!(told.trouble.as_deref(), Some("it is being rebuilt"));
    assert!(!rig.node.forget_order(), "it has begun: whoever works is to stop");
    rig.node.acted(done(begun, Err("no room".to_owned()), down()), rig.now);
    assert_eq!(rig.node.ordered(), None, "it is settled, if only by a failure");
    let begun = rig.act().unwrap();
    assert!(matches!(&begun.action, LocalAction::Rejoin { .. }), "it comes back as it was: {begun:?}");
}

#[test]
fn what_cannot_be_rebuilt_is_refused_with_the_reason() {
    let mut rig = Rig::new();
    assert!(matches!(rig.order(1, Some("server2")), Err(OrderRefused::BadSource { .. })));
    assert!(matches!(rig.order(1, Some("server9")), Err(OrderRefused::BadSource { .. })));
    rig.node.look(PostgresObservation { system_identifier: 8, ..postgres(true, 1) });
    assert!(matches!(rig.order(1, None), Err(OrderRefused::Foreign { found: 8, wanted: 7, .. })));
    rig.node.look(postgres(true, 1000));
    rig.commit(&Command::SetAllowed { node: NodeId(2), allowed: false, at: WallTime(1) });
    assert!(matches!(rig.order(1, None), Err(OrderRefused::NotAllowed(_))));
    rig.commit(&Command::SetAllowed { node: NodeId(2), allowed: true, at: WallTime(2) });
    rig.commit(&Command::Begin {
        generation: rig.state.generation,
        kind: ChangeKind::Switchover,
        from: NodeId(1),
        to: Some(NodeId(2)),
        reason: "test".to_owned(),
        allow_data_loss: false,
        end_transactions: false,
        noticed_ms: 0,
        scheduled: None,
        at: WallTime(3),
    });
    assert_eq!(rig.order(1, None), Err(OrderRefused::ChangeInFlight));
    rig.node.own = None;
    assert!(matches!(rig.order(1, None), Err(OrderRefused::Witness(_))));
}

#[test]
fn an_order_for_a_node_that_became_the_primary_is_void() {
    let mut rig = Rig::new();
    assert_eq!(rig.order(1, None), Ok(1));
    assert_eq!(rig.node.outdated_order(), None);
    if let Some(primary) = &mut rig.state.primary {
        primary.node = NodeId(2);
    }
    let quorum = rig.node.quorum().clone();
    rig.node.committed(Arc::new(rig.state.clone()), quorum, rig.now);
    assert_eq!(rig.node.outdated_order(), Some(1));
    assert_eq!(rig.node.ordered(), None);
}

#[test]
fn what_is_tagged_for_it_is_copied_before_all_others() {
    let mut rig = Rig::new();
    let tag = |rig: &mut Rig, id: u64| {
        let tags = crate::cluster::Tags { clone_from: true, ..Default::default() };
        let descriptor = Descriptor { tags, ..descriptor(id) };
        rig.commit(&Command::Register { descriptor, at: WallTime(0) });
    };
    tag(&mut rig, 3);
    assert_eq!(names(&rig.node.donors(rig.now)), ["server3", "server4", "server1"]);
    // The primary, too, if somebody wants it so; but behind a standby that is tagged.
    tag(&mut rig, 1);
    assert_eq!(names(&rig.node.donors(rig.now)), ["server3", "server1", "server4"]);
}

#[test]
fn what_streams_from_a_standby_can_be_copied_as_well() {
    let mut rig = Rig::new();
    let mut cascaded = postgres(true, 900);
    if let PostgresState::Running(running) = &mut cascaded.state {
        running.follows = Some("10.0.0.4:5432".parse().unwrap());
    }
    rig.hear(3, cascaded);
    assert_eq!(names(&rig.node.donors(rig.now)), ["server4", "server1"], "nobody has decided that");
    let (generation, node) = (rig.state.generation, NodeId(4));
    rig.commit(&Command::SetService {
        generation,
        node,
        service: crate::cluster::Service::Up,
        at: WallTime(0),
    });
    rig.commit(&Command::SetRelay { generation, node: NodeId(3), relay: Some(node) });
    assert_eq!(names(&rig.node.donors(rig.now)), ["server4", "server3", "server1"]);
}
