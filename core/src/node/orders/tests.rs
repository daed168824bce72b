//! Which orders a node takes, and what becomes of them.

use std::sync::Arc;
use std::time::Duration;

use pgherd_common::{Lsn, NodeId, WallTime};

use super::*;
use crate::cluster::{ClusterState, Command, Descriptor, Service};
use crate::fixtures::*;
use crate::node::Done;
use crate::observation::{NodeObservation, PostgresState, Running};
use crate::rebuild::Means;

/// A server with slots for those that may stream from it.
fn postgres(in_recovery: bool, position: u64) -> PostgresObservation {
    let position = Lsn(position);
    let slots = [1, 3, 4].map(|member| slot(member, Some(1))).into();
    observed(PostgresState::Running(Running { position, received: position, slots, ..running(in_recovery) }))
}

fn down() -> PostgresObservation {
    observed(PostgresState::Down(stopped(true, true)))
}

/// Server 2 of four with databases, a standby of server 1.
struct Rig {
    node: Node,
    state: ClusterState,
    now: MonoTime,
}

impl Rig {
    fn new() -> Self {
        let now = MonoTime::since_boot(Duration::from_secs(10));
        let mut rig = Self { node: Node::new(setup(2, now), now), state: ClusterState::default(), now };
        rig.node.look(postgres(true, 1000));
        rig.commit(&form(1, (1..=4).map(database).collect()));
        rig.commit(&serve(rig.state.generation, 1));
        rig.hear(1, postgres(false, 1000));
        rig.hear(3, postgres(true, 900));
        rig.hear(4, postgres(true, 950));
        rig
    }

    fn commit(&mut self, command: &Command) {
        commit(&mut self.state, command);
        self.node.committed(Arc::new(self.state.clone()), quorum(4), self.now);
    }

    fn hear(&mut self, id: u64, postgres: PostgresObservation) {
        let own = self.node.observation(self.now);
        let observation = NodeObservation {
            descriptor: database(id),
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
        running.follows = Some(address(9));
    }
    rig.hear(4, elsewhere);
    assert_eq!(names(&rig.node.donors(rig.now)), ["server3", "server1"], "it streams from somebody else");
    rig.now = rig.now + Duration::from_secs(60);
    assert_eq!(names(&rig.node.donors(rig.now)), Vec::<&str>::new(), "nobody is heard any more");
    assert!(matches!(rig.order(1, None), Err(OrderRefused::NoPrimary(_))));
}

#[test]
fn what_commits_rest_on_is_copied_from_the_primary_only() {
    let mut rig = Rig::new();
    let generation = rig.state.generation;
    rig.commit(&Command::WantCover { generation, set: sync_set(1, &[2, 3]) });
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
    rig.hear(3, down());
    let begun = rig.act().unwrap();
    let goes_on = matches!(begun.action, LocalAction::AlignSlots { .. });
    assert!(goes_on, "while there is nobody to copy from: {begun:?}");
    rig.node.acted(done(begun, postgres(true, 1000)), rig.now);
    rig.hear(3, postgres(true, 900));
    let service = Service::Failed("an operator has it restarted or rebuilt".to_owned());
    rig.commit(&Command::SetService { generation, node, service, at: WallTime(8) });
    let begun = rig.act().unwrap();
    let drained = LocalAction::DrainAndStop { begun: WallTime(7), end_transactions: true };
    assert_eq!(begun.action, drained);
    rig.node.acted(done(begun, down()), rig.now);
    let begun = rig.act().unwrap();
    let LocalAction::Rebuild(rebuild) = &begun.action else { panic!("{begun:?}") };
    assert_eq!((names(&rebuild.sources), rebuild.order), (vec!["server3"], Some(1)));
    let told = rig.node.observation(rig.now).postgres.unwrap();
    assert_eq!(told.trouble.as_deref(), Some("it is being rebuilt"));
    assert!(!rig.node.forget_order(), "it has begun: whoever works is to stop");
    rig.node.acted(Done { result: Err("no room".to_owned()), ..done(begun, down()) }, rig.now);
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
    rig.commit(&switchover(rig.state.generation, 1, 2));
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
        let descriptor = Descriptor { tags, ..database(id) };
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
        running.follows = Some(address(4));
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
