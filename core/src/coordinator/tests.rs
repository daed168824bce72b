//! The coordinator against hand-made observations; commands are applied to the state as the log would.

mod cover;
mod in_place;
mod members;
mod pause;
mod relay;
mod schedule;
mod voters;

use std::collections::BTreeMap;
use std::time::Duration;

use pgherd_common::topology::ChangeKind;
use pgherd_common::{Generation, Lsn, MonoTime, NodeId, Timeline, WallTime};

use super::*;
use crate::cluster::{
    Applied, ChangePhase, ClusterState, Command, OldEnd, Outcome, PrimaryPhase, Service, apply,
};
use crate::fixtures::*;
use crate::observation::{
    Disk, Health, NodeObservation, PostgresObservation, PostgresState, RemoteDatabase, Running, Stopped,
    WriteFailure, WriteProbe,
};
use crate::salvage::LeftWal;

const LEASE: Duration = Duration::from_secs(2);

/// Servers 1 to 3 with databases, server 4 a witness; the coordinator under test leads on server 4.
pub(super) struct Rig {
    pub(super) coordinator: Coordinator,
    pub(super) state: ClusterState,
    pub(super) quorum: Quorum,
    pub(super) now: MonoTime,
    wall: WallTime,
    revision: u64,
    pub(super) seen: BTreeMap<u64, NodeObservation>,
    /// Agents that speak, but apply nothing more of the log.
    stuck: Vec<u64>,
}

impl Rig {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(adjust: impl FnOnce(&mut Policy)) -> Self {
        let mut policy = Policy {
            auto_failover: true,
            max_lag: 16 << 20,
            salvage_wait: Duration::from_secs(5),
            minimum_standbys: 0,
            durability: Durability::default(),
            lease: LEASE,
            node_timeout: Duration::from_secs(3),
            node_lost_after: Duration::from_secs(10),
            recruit_timeout: Duration::from_secs(1),
            switchover_timeout: Duration::from_secs(15),
            change_timeout: Duration::from_secs(30),
            local_timeout: Duration::from_secs(10),
        };
        adjust(&mut policy);
        Self {
            coordinator: Coordinator::new(NodeId(4), policy),
            state: ClusterState::default(),
            quorum: Quorum { leads: true, ..quorum(4) },
            now: MonoTime::since_boot(Duration::from_secs(100)),
            wall: WallTime(1),
            revision: 0,
            seen: (1..=4).map(|id| (id, observation(id))).collect(),
            stuck: Vec::new(),
        }
    }

    /// A formed cluster, server 1 serving.
    pub(super) fn formed() -> Self {
        Self::new().form()
    }

    /// A cluster that has formed and has yet to confirm its first primary.
    pub(super) fn just_formed() -> Self {
        let mut rig = Self::new();
        rig.pass(&[]);
        assert!(rig.state.is_new(), "{:?}", rig.state);
        rig
    }

    fn form(mut self) -> Self {
        self.settle();
        assert_eq!(self.state.serving(), Some(NodeId(1)), "{:?}", self.state);
        self
    }

    pub(super) fn postgres(&mut self, id: u64) -> &mut PostgresObservation {
        self.seen.get_mut(&id).unwrap().postgres.as_mut().unwrap()
    }

    /// All agents but `silent` beat, then the coordinator steps once and the log applies.
    fn step(&mut self, silent: &[u64]) -> Decision {
        let decision = self.look_at(silent);
        if let Some(Action::Propose(command)) = &decision.action {
            assert_eq!(self.propose(command), Applied::Changed, "{command:?}");
            self.coordinator.committed(&self.state, &self.quorum, self.now);
        }
        if let Some(Action::ChangeVoters(voters)) = &decision.action {
            let gone = self.quorum.voters.difference(voters).copied();
            let learners = self.quorum.learners.iter().copied().chain(gone);
            self.quorum.learners = learners.filter(|id| !voters.contains(id)).collect();
            self.quorum.voters.clone_from(voters);
        }
        decision
    }

    /// All agents but `silent` beat, then the coordinator steps once.
    pub(super) fn look_at(&mut self, silent: &[u64]) -> Decision {
        self.now = self.now + Duration::from_millis(100);
        self.coordinator.committed(&self.state, &self.quorum, self.now);
        for (id, observation) in &mut self.seen {
            observation.generation = self.state.generation;
            if !silent.contains(id) && !self.stuck.contains(id) {
                observation.revision = self.state.revision;
            }
            let holds = self.state.primary.is_some_and(|primary| primary.node.0 == *id);
            observation.lease_left_ms = holds.then_some(1500);
            observation.intent = self
                .state
                .change
                .as_ref()
                .filter(|change| {
                    change.kind == ChangeKind::Failover && change.phase == ChangePhase::Recruiting
                })
                .map(|change| change.generation);
            if !silent.contains(id) {
                self.coordinator.observe(observation.clone(), self.now);
            }
        }
        self.coordinator.step(self.now, self.wall)
    }

    /// A step whose outcome shows in the state.
    fn pass(&mut self, silent: &[u64]) {
        let _ = self.step(silent);
    }

    /// Steps until nothing more is proposed.
    fn settle(&mut self) {
        for _ in 0..20 {
            if self.step(&[]).action.is_none() {
                return;
            }
        }
        panic!("the coordinator does not come to rest: {:?}", self.state);
    }

    fn crash(&mut self, id: u64) {
        self.postgres(id).state = down(false);
    }

    /// What this agent saw when it knocked on server 1.
    fn knocked(&mut self, id: u64, saw: RemoteDatabase) {
        self.seen.get_mut(&id).unwrap().remote.insert(NodeId(1), saw);
    }

    fn released(&mut self, id: u64) {
        self.postgres(id).released = Some(self.state.generation);
    }

    fn recruited(&mut self, id: u64, received: u64) {
        let generation = self.state.change.as_ref().unwrap().generation;
        let postgres = self.postgres(id);
        postgres.recruited = Some(generation);
        let PostgresState::Running(running) = &mut postgres.state else { panic!("{id} does not run") };
        running.received = Lsn(received);
        (running.follows, running.receiver) = (None, None);
    }

    pub(super) fn propose(&mut self, command: &Command) -> Applied {
        self.revision += 1;
        apply(&mut self.state, command, self.revision)
    }
}

fn observation(id: u64) -> NodeObservation {
    let descriptor = descriptor(id);
    let postgres = || observed(PostgresState::Running(running(id != 1)));
    NodeObservation {
        postgres: descriptor.postgres.is_some().then(postgres),
        descriptor,
        cluster: identity().cluster,
        incarnation: id,
        serial: 0,
        generation: Generation::ZERO,
        revision: 0,
        told: 0,
        probation: None,
        intent: None,
        promise_left_ms: 0,
        durability: Durability::default(),
        lease_left_ms: None,
        remote: BTreeMap::new(),
        address: None,
        proxies: Vec::new(),
        picked_proxy: None,
    }
}

pub(super) fn down(clean: bool) -> PostgresState {
    PostgresState::Down(Stopped { checkpoint: Lsn(1000), ..stopped(clean, false) })
}

fn granted_to(state: &ClusterState) -> Option<NodeId> {
    state.primary.filter(|primary| primary.phase == PrimaryPhase::Promoting).map(|primary| primary.node)
}

#[test]
fn a_cluster_forms_around_the_one_primary_and_all_standbys_come_into_service() {
    let rig = Rig::formed();
    assert!(rig.state.members.values().all(|member| member.service == Service::Up));
    assert_eq!(rig.state.generation, Generation::ZERO.next());
}

#[test]
fn nothing_forms_while_a_member_is_unseen_or_two_are_primaries() {
    let mut rig = Rig::new();
    let decision = rig.step(&[3]);
    assert_eq!(decision.report.waiting, vec![NotYet::MembersUnseen(vec![NodeId(3)])]);
    rig.postgres(2).state = PostgresState::Running(running(false));
    let decision = rig.step(&[]);
    assert!(
        matches!(decision.report.waiting.as_slice(), [NotYet::SeveralPrimaries(names)] if names.len() == 2)
    );
    assert_eq!(rig.state.identity, None);
}

#[test]
fn a_foreign_database_or_version_is_named_and_nothing_forms() {
    let mut rig = Rig::new();
    rig.postgres(3).system_identifier = 8;
    rig.postgres(2).major = 14;
    let decision = rig.step(&[]);
    let text = decision.report.lines().join("\n");
    assert!(
        text.contains("server3 holds another database") && text.contains("server2 runs PostgreSQL 14"),
        "{text}"
    );
    assert_eq!(rig.state.identity, None);
}

#[test]
fn a_server_that_its_agent_killed_is_not_said_to_have_crashed() {
    let mut rig = Rig::formed();
    rig.crash(3);
    rig.postgres(3).fenced = Some("the lease ended".to_owned());
    rig.pass(&[]);
    let service = &rig.state.members[&NodeId(3)].service;
    assert_eq!(*service, Service::Failed("PostgreSQL was fenced: the lease ended".to_owned()));
    rig.crash(1);
    rig.postgres(1).fenced = Some("PostgreSQL has answered nobody for 10000 ms".to_owned());
    rig.pass(&[]);
    let reason = rig.state.change.unwrap().reason;
    assert_eq!(reason, "PostgreSQL on server1 was fenced: PostgreSQL has answered nobody for 10000 ms");
}

#[test]
fn a_crashed_primary_is_replaced_by_the_standby_that_has_most() {
    let mut rig = Rig::formed();
    rig.crash(1);
    assert!(matches!(rig.step(&[]).action, Some(Action::Propose(Command::Begin { .. }))));
    // Not before the old primary is surely gone.
    for id in 1..=4 {
        rig.seen.get_mut(&id).unwrap().promise_left_ms = 1500;
    }
    assert!(matches!(
        rig.step(&[]).report.waiting.as_slice(),
        [NotYet::LeaseRunning { lapsed: 0, needed: 3, .. }]
    ));
    rig.released(1);
    rig.recruited(2, 2000);
    // Not before the other standby has had its chance.
    assert!(matches!(rig.step(&[]).report.waiting.as_slice(), [NotYet::Recruiting { done: 1, expected: 2 }]));
    rig.recruited(3, 3000);
    rig.pass(&[]);
    assert_eq!(granted_to(&rig.state), Some(NodeId(3)));
    assert_eq!(rig.state.topology().unwrap().unwrap().primary(), None, "not published before it serves");

    let promoted = Running { timeline: Timeline(2), ..running(false) };
    rig.postgres(3).state = PostgresState::Running(promoted);
    rig.pass(&[]);
    assert_eq!(rig.state.serving(), Some(NodeId(3)));
    assert_eq!(rig.state.topology().unwrap().unwrap().primary().unwrap().id, NodeId(3));
    assert_eq!(rig.state.history.last().unwrap().outcome, Outcome::Completed);
}

#[test]
fn equal_standbys_are_ranked_by_priority_then_number() {
    for (priority, winner) in [(None, 2), (Some(1), 3)] {
        let mut rig = Rig::formed();
        if let Some(priority) = priority {
            assert_eq!(rig.propose(&Command::SetPriority { node: NodeId(3), priority }), Applied::Changed);
        }
        rig.crash(1);
        rig.pass(&[]);
        rig.released(1);
        rig.recruited(2, 2000);
        rig.recruited(3, 2000);
        rig.pass(&[]);
        assert_eq!(granted_to(&rig.state), Some(NodeId(winner)));
    }
}

#[test]
fn a_later_timeline_beats_a_longer_one() {
    let mut rig = Rig::formed();
    // Server 1 has served timeline 2 in the meantime; server 2 never got there.
    rig.state.history.last_mut().unwrap().timeline = Some(Timeline(2));
    let PostgresState::Running(running) = &mut rig.postgres(3).state else { unreachable!() };
    running.timeline = Timeline(2);
    rig.crash(1);
    rig.pass(&[]);
    rig.released(1);
    rig.recruited(2, 9000);
    rig.recruited(3, 2000);
    rig.pass(&[]);
    assert_eq!(granted_to(&rig.state), Some(NodeId(3)));
}

#[test]
fn a_timeline_that_no_primary_ever_served_makes_no_claim() {
    let mut rig = Rig::formed();
    rig.crash(1);
    rig.pass(&[]);
    rig.released(1);
    rig.recruited(2, 2000);
    rig.recruited(3, 9000);
    let PostgresState::Running(promoted_by_hand) = &mut rig.postgres(3).state else { unreachable!() };
    promoted_by_hand.timeline = Timeline(2);
    for _ in 0..12 {
        rig.pass(&[]);
    }
    assert_eq!(granted_to(&rig.state), Some(NodeId(2)));
}

#[test]
fn what_was_overtaken_on_its_way_is_not_believed() {
    let mut rig = Rig::formed();
    let late = rig.seen[&1].clone();
    let news = NodeObservation { serial: 2, postgres: None, ..late.clone() };
    rig.coordinator.observe(news, rig.now);
    rig.coordinator.observe(NodeObservation { serial: 1, ..late.clone() }, rig.now);
    let known = |rig: &Rig| rig.coordinator.seen()[&NodeId(1)].observation.clone();
    assert_eq!((known(&rig).serial, known(&rig).postgres), (2, None));
    rig.coordinator.observe(NodeObservation { incarnation: 99, ..late }, rig.now);
    assert_eq!(known(&rig).serial, 0, "a new process begins anew");
}

/// Server 1 has crashed and has WAL up to 3000; the standbys have received less.
fn left_behind() -> Rig {
    let mut rig = Rig::formed();
    rig.crash(1);
    rig.pass(&[]);
    rig.released(1);
    let PostgresState::Down(stopped) = &mut rig.postgres(1).state else { unreachable!() };
    stopped.left = Some(LeftWal { timeline: Timeline(1), end: Lsn(3000) });
    rig.recruited(2, 2000);
    rig.recruited(3, 2500);
    rig
}

#[test]
fn nobody_is_chosen_before_the_best_standby_has_fetched_what_the_old_primary_left() {
    let mut rig = left_behind();
    let decision = rig.step(&[]);
    let expected = NotYet::Salvaging {
        node: "server3".parse().unwrap(),
        from: "server1".parse().unwrap(),
        bytes: 500,
        since: Duration::from_millis(100),
    };
    assert_eq!((decision.action, decision.report.waiting.as_slice()), (None, [expected].as_slice()));
    // Whoever is first to have it all is the best from then on.
    rig.recruited(2, 3000);
    rig.pass(&[]);
    assert_eq!(granted_to(&rig.state), Some(NodeId(2)));
    let entry = rig.state.history.last().unwrap();
    assert_eq!(
        (entry.received, entry.old_end),
        (Lsn(3000), Some(OldEnd { at: Lsn(3000), exact: true, covered: false }))
    );
}

#[test]
fn what_cannot_be_had_is_waited_for_in_vain_for_a_bounded_time_and_told() {
    let chosen_after = |rig: &mut Rig, silent: &[u64]| {
        (1..200).find(|_| {
            rig.pass(silent);
            granted_to(&rig.state).is_some()
        })
    };
    let mut rig = left_behind();
    let passes = chosen_after(&mut rig, &[]).unwrap();
    assert!((40..=60).contains(&passes), "salvage_wait is 5 s, a pass takes 100 ms: {passes}");
    let entry = rig.state.history.last().unwrap();
    assert_eq!(
        (entry.received, entry.old_end),
        (Lsn(2500), Some(OldEnd { at: Lsn(3000), exact: true, covered: false }))
    );

    // The last of it cannot be replayed: there is nothing more to wait for.
    let mut rig = left_behind();
    rig.postgres(3).salvaged = rig.state.change.as_ref().map(|change| change.generation);
    assert_eq!(chosen_after(&mut rig, &[]), Some(1));
    assert_eq!(granted_to(&rig.state), Some(NodeId(3)));

    // Its agent is gone, too. Its word is believed for the length of a lease.
    let mut rig = left_behind();
    rig.knocked(2, RemoteDatabase::Refused);
    rig.knocked(3, RemoteDatabase::Refused);
    rig.knocked(4, RemoteDatabase::Refused);
    let passes = chosen_after(&mut rig, &[1]).unwrap();
    assert!(passes <= 21, "{passes}");
}

#[test]
fn a_straggler_is_not_waited_for_longer_than_the_recruit_timeout() {
    let mut rig = Rig::formed();
    rig.crash(1);
    rig.pass(&[]);
    rig.released(1);
    rig.recruited(2, 2000);
    for _ in 0..12 {
        rig.pass(&[]);
    }
    assert_eq!(granted_to(&rig.state), Some(NodeId(2)));
}

#[test]
fn a_silent_primary_is_replaced_only_after_others_knocked_in_vain_and_promises_lapsed() {
    let mut rig = Rig::formed();
    let silent = [1];
    for _ in 0..25 {
        rig.pass(&silent);
    }
    assert_eq!(rig.state.change, None, "nobody has looked at its database yet");
    for (id, saw) in [(3, RemoteDatabase::Silent), (4, RemoteDatabase::Silent)] {
        rig.knocked(id, saw);
    }
    rig.pass(&silent);
    assert_eq!(rig.state.change, None, "server2 still hears its agent, or has not looked yet");
    rig.knocked(2, RemoteDatabase::Writable);
    let decision = rig.step(&silent);
    assert!(decision.report.waiting.contains(&NotYet::Unguarded("server1".parse().unwrap())), "{decision:?}");
    assert_eq!(rig.state.change, None, "its database serves, only its agent is gone");

    // A witness sees only that something answers; somebody with a login saw what it is.
    rig.knocked(4, RemoteDatabase::Answering);
    rig.knocked(2, RemoteDatabase::InRecovery);
    rig.pass(&silent);
    assert!(rig.state.change.is_some());
    rig.seen.get_mut(&2).unwrap().promise_left_ms = 500;
    rig.recruited(2, 1000);
    rig.recruited(3, 1000);
    let decision = rig.step(&silent);
    assert!(matches!(
        decision.report.waiting.as_slice(),
        [NotYet::LeaseRunning { lapsed: 2, needed: 3, .. }]
    ));
    rig.seen.get_mut(&2).unwrap().promise_left_ms = 0;
    rig.pass(&silent);
    assert_eq!(granted_to(&rig.state), Some(NodeId(2)));
}

#[test]
fn a_minority_gives_no_primary_up_not_even_in_the_moment_it_is_connected_again() {
    let mut rig = Rig::formed();
    rig.knocked(3, RemoteDatabase::Silent);
    rig.knocked(4, RemoteDatabase::Silent);
    for _ in 0..40 {
        rig.pass(&[1, 2]);
        assert_eq!(rig.state.change, None);
    }
    let waiting = rig.step(&[1, 2]).report.waiting;
    assert!(matches!(waiting.as_slice(), [NotYet::Minority { heard: 2, needed: 3, .. }]), "{waiting:?}");
    // Server2 was with the primary all the time, and so has not knocked.
    rig.pass(&[1]);
    assert_eq!(rig.state.change, None);
    rig.pass(&[]);
    assert_eq!(rig.state.change, None);
}

#[test]
fn automatic_failover_can_be_switched_off() {
    let mut rig = Rig::with(|policy| policy.auto_failover = false).form();
    rig.crash(1);
    let decision = rig.step(&[]);
    assert_eq!(decision.report.waiting, vec![NotYet::AutoFailoverOff("server1".parse().unwrap())]);
    assert_eq!(rig.state.change, None);
}

#[test]
fn a_primary_without_standbys_is_started_where_it_is() {
    let mut rig = Rig::formed();
    rig.crash(2);
    rig.crash(3);
    rig.settle();
    rig.crash(1);
    rig.pass(&[]);
    rig.released(1);
    rig.pass(&[]);
    assert_eq!(granted_to(&rig.state), Some(NodeId(1)));
    rig.postgres(1).state = PostgresState::Running(running(false));
    rig.pass(&[]);
    assert_eq!(rig.state.serving(), Some(NodeId(1)));
}

#[test]
fn a_standby_far_behind_is_not_promoted_unless_an_operator_accepts_the_loss() {
    let mut rig = Rig::formed();
    let PostgresState::Running(primary) = &mut rig.postgres(1).state else { unreachable!() };
    primary.position = Lsn(1 << 30);
    rig.settle();
    let silent = [1];
    for id in [2, 3, 4] {
        rig.knocked(id, RemoteDatabase::Refused);
    }
    for _ in 0..25 {
        rig.pass(&silent);
    }
    assert_eq!(rig.state.change, None);
    let text = rig.step(&silent).report.lines().join("\n");
    assert!(text.contains("max_lag"), "{text}");

    let command = rig.coordinator.view(rig.now, WallTime(2)).plan_forced(None, false).unwrap();
    assert_eq!(rig.propose(&command), Applied::Changed);
    rig.recruited(2, 1000);
    rig.recruited(3, 900);
    rig.pass(&silent);
    assert_eq!(granted_to(&rig.state), Some(NodeId(2)));
}

#[test]
fn a_successor_that_fails_is_itself_replaced() {
    let mut rig = Rig::formed();
    rig.crash(1);
    rig.pass(&[]);
    rig.released(1);
    rig.recruited(2, 2000);
    rig.recruited(3, 2000);
    rig.pass(&[]);
    assert_eq!(granted_to(&rig.state), Some(NodeId(2)));
    rig.postgres(2).state = down(false);
    rig.postgres(2).trouble = Some("no space left on device".to_owned());
    rig.pass(&[]);
    let change = rig.state.change.clone().unwrap();
    assert_eq!((change.from, change.phase), (NodeId(2), ChangePhase::Recruiting));
    assert_eq!(rig.state.history.last().unwrap().outcome, Outcome::Superseded);
    rig.released(2);
    rig.recruited(3, 2000);
    rig.pass(&[]);
    assert_eq!(granted_to(&rig.state), Some(NodeId(1)), "the old primary has all that was acknowledged");
    rig.postgres(1).trouble = Some("the disk is gone".to_owned());
    rig.pass(&[]);
    rig.released(1);
    rig.recruited(3, 2000);
    rig.pass(&[]);
    assert_eq!(granted_to(&rig.state), Some(NodeId(3)), "and not to and fro between two that are broken");
}

#[test]
fn a_crashed_primary_whose_standby_is_too_far_behind_is_started_where_it_is() {
    let mut rig = Rig::formed();
    let PostgresState::Running(primary) = &mut rig.postgres(1).state else { unreachable!() };
    primary.position = Lsn(1 << 30);
    rig.settle();
    rig.crash(1);
    rig.pass(&[]);
    rig.released(1);
    rig.pass(&[]);
    assert_eq!(granted_to(&rig.state), Some(NodeId(1)));
}

#[test]
fn when_the_successor_is_lost_before_it_served_the_old_primary_returns() {
    let mut rig = Rig::formed();
    rig.crash(3);
    rig.settle();
    rig.crash(1);
    rig.pass(&[]);
    rig.released(1);
    rig.recruited(2, 2000);
    rig.pass(&[]);
    assert_eq!(granted_to(&rig.state), Some(NodeId(2)));
    for id in [1, 3, 4] {
        rig.seen.get_mut(&id).unwrap().remote.insert(NodeId(2), RemoteDatabase::Silent);
    }
    for _ in 0..25 {
        rig.pass(&[2]);
    }
    assert_eq!(granted_to(&rig.state), Some(NodeId(1)));
}

#[test]
fn an_operator_can_overrule_a_failover_that_is_stuck() {
    let mut rig = Rig::formed();
    rig.crash(1);
    rig.pass(&[]);
    rig.postgres(1).state = PostgresState::Unusable("not mounted".to_owned());
    for id in 1..=4 {
        rig.seen.get_mut(&id).unwrap().promise_left_ms = 0;
    }
    let PostgresState::Running(standby) = &mut rig.postgres(2).state else { unreachable!() };
    standby.received = Lsn(5);
    let target = "server2".parse().unwrap();
    let command = rig.coordinator.view(rig.now, WallTime(2)).plan_forced(Some(&target), false).unwrap();
    assert_eq!(rig.propose(&command), Applied::Changed);
    rig.recruited(2, 5);
    rig.pass(&[]);
    assert_eq!(granted_to(&rig.state), Some(NodeId(2)));
}

#[test]
fn nothing_forms_while_a_server_is_neither_up_nor_down() {
    let mut rig = Rig::new();
    rig.postgres(3).state = PostgresState::Starting { for_ms: 10, standby: true };
    let decision = rig.step(&[]);
    assert_eq!(decision.report.waiting, vec![NotYet::Unsettled(vec!["server3".parse().unwrap()])]);
}

#[test]
fn a_switchover_hands_over_only_what_the_target_wholly_has() {
    let mut rig = Rig::formed();
    let target = "server3".parse().unwrap();
    let command = rig.coordinator.view(rig.now, WallTime(2)).plan_switchover(Some(&target), false).unwrap();
    assert_eq!(rig.propose(&command), Applied::Changed);
    rig.pass(&[]);
    assert_eq!(rig.state.topology().unwrap().unwrap().primary().unwrap().id, NodeId(1), "nobody is held yet");
    let generation = rig.state.generation.next();
    rig.postgres(1).prepared = Some(generation);
    rig.pass(&[]);
    assert_eq!(rig.state.topology().unwrap().unwrap().change(), Some(ChangeKind::Switchover));
    rig.postgres(1).state = down(true);
    rig.released(1);
    // Its last record begins at 1000: having received exactly to there is not enough.
    rig.pass(&[]);
    assert_eq!(granted_to(&rig.state), None);
    let PostgresState::Running(standby) = &mut rig.postgres(3).state else { unreachable!() };
    standby.received = Lsn(1120);
    rig.pass(&[]);
    assert_eq!(granted_to(&rig.state), Some(NodeId(3)));
}

#[test]
fn a_restart_is_a_switchover_of_the_primary_to_itself() {
    let mut rig = Rig::formed();
    let command = rig.coordinator.view(rig.now, WallTime(2)).plan_restart(NodeId(1), false).unwrap();
    assert_eq!(rig.propose(&command), Applied::Changed);
    rig.postgres(1).prepared = Some(rig.state.generation.next());
    rig.pass(&[]);
    assert_eq!(rig.state.topology().unwrap().unwrap().change(), Some(ChangeKind::Switchover), "work is held");
    rig.postgres(1).state = down(true);
    rig.pass(&[]);
    assert_eq!(granted_to(&rig.state), None, "not before its processes are gone");
    rig.released(1);
    rig.pass(&[]);
    assert_eq!(granted_to(&rig.state), Some(NodeId(1)));
    rig.postgres(1).state = PostgresState::Running(running(false));
    rig.pass(&[]);
    assert_eq!(rig.state.serving(), Some(NodeId(1)));
    let entry = rig.state.history.last().unwrap();
    assert_eq!((entry.outcome, entry.timeline), (Outcome::Completed, Some(Timeline(1))));
    assert_eq!(entry.reason, "an operator asked for a restart");
    assert!(rig.state.members.values().all(|member| member.service == Service::Up));
}

#[test]
fn a_primary_that_does_not_come_back_from_a_restart_is_replaced() {
    let mut rig = Rig::formed();
    let command = rig.coordinator.view(rig.now, WallTime(2)).plan_restart(NodeId(1), false).unwrap();
    assert_eq!(rig.propose(&command), Applied::Changed);
    rig.postgres(1).prepared = Some(rig.state.generation.next());
    rig.pass(&[]);
    rig.postgres(1).state = down(true);
    rig.released(1);
    rig.pass(&[]);
    rig.postgres(1).trouble = Some("invalid value for parameter".to_owned());
    rig.pass(&[]);
    let change = rig.state.change.clone().unwrap();
    assert_eq!((change.kind, change.phase), (ChangeKind::Failover, ChangePhase::Recruiting));
    assert_eq!(change.reason, "server1 could not become primary: invalid value for parameter");
    rig.released(1);
    rig.recruited(2, 1000);
    rig.recruited(3, 1000);
    rig.pass(&[]);
    rig.pass(&[]);
    assert_eq!(granted_to(&rig.state), Some(NodeId(2)));
}

#[test]
fn a_standby_that_is_restarted_is_taken_out_of_service_first() {
    let mut rig = Rig::formed();
    rig.postgres(2).restarting = Some(WallTime(2));
    rig.pass(&[]);
    let service = &rig.state.members[&NodeId(2)].service;
    assert_eq!(*service, Service::Failed("an operator has it restarted or rebuilt".to_owned()));
    rig.postgres(2).restarting = None;
    rig.pass(&[]);
    assert_eq!(rig.state.members[&NodeId(2)].service, Service::Up);
}

#[test]
fn a_switchover_whose_target_vanishes_is_rolled_back() {
    let mut rig = Rig::formed();
    let command = rig.coordinator.view(rig.now, WallTime(2)).plan_switchover(None, false).unwrap();
    assert_eq!(rig.propose(&command), Applied::Changed);
    rig.postgres(1).prepared = Some(rig.state.generation.next());
    rig.pass(&[]);
    rig.postgres(1).state = down(true);
    rig.released(1);
    for _ in 0..25 {
        rig.pass(&[2]);
    }
    assert_eq!(granted_to(&rig.state), Some(NodeId(1)));
    rig.postgres(1).state = PostgresState::Running(running(false));
    rig.pass(&[2]);
    assert_eq!(rig.state.history.last().unwrap().outcome, Outcome::RolledBack);
}

#[test]
fn a_primary_lost_during_a_switchover_is_failed_over() {
    let mut rig = Rig::formed();
    let command = rig.coordinator.view(rig.now, WallTime(2)).plan_switchover(None, false).unwrap();
    assert_eq!(rig.propose(&command), Applied::Changed);
    rig.postgres(1).prepared = Some(rig.state.generation.next());
    rig.pass(&[]);
    for id in [2, 3, 4] {
        rig.knocked(id, RemoteDatabase::Silent);
    }
    for _ in 0..25 {
        rig.pass(&[1]);
    }
    let change = rig.state.change.clone().unwrap();
    assert_eq!((change.kind, change.phase), (ChangeKind::Failover, ChangePhase::Recruiting));
    rig.recruited(2, 1000);
    rig.recruited(3, 1000);
    rig.pass(&[1]);
    assert_eq!(granted_to(&rig.state), Some(NodeId(2)));
}

#[test]
fn a_switchover_whose_transactions_do_not_end_is_rolled_back_and_says_so() {
    let mut rig = Rig::formed();
    let command = rig.coordinator.view(rig.now, WallTime(2)).plan_switchover(None, false).unwrap();
    assert_eq!(rig.propose(&command), Applied::Changed);
    let generation = rig.state.generation.next();
    rig.postgres(1).prepared = Some(generation);
    rig.pass(&[]);
    rig.pass(&[]);
    assert_eq!(rig.state.change.as_ref().unwrap().phase, ChangePhase::Stopping);
    let postgres = rig.postgres(1);
    (postgres.undrained, postgres.trouble) = (Some(WallTime(2)), Some("2 transactions still run".to_owned()));
    rig.pass(&[]);
    rig.pass(&[]);
    // The same generation: to proxies, what runs there has lost nothing.
    assert_eq!((rig.state.serving(), rig.state.generation.next()), (Some(NodeId(1)), generation));
    let entry = rig.state.history.last().unwrap();
    assert_eq!(entry.outcome, Outcome::RolledBack);
    assert_eq!(entry.reason, "an operator asked for a switchover; given up: 2 transactions still run");
}

#[test]
fn a_switchover_is_refused_with_the_reason() {
    let rig = Rig::formed();
    let refused = |rig: &Rig, to: &str| {
        let to = to.parse().unwrap();
        rig.coordinator.view(rig.now, WallTime(2)).plan_switchover(Some(&to), false).unwrap_err().to_string()
    };
    assert_eq!(refused(&rig, "server1"), "server1 already is the primary");
    assert_eq!(refused(&rig, "server4"), "server4 is not a database node of this cluster");
    let mut rig = Rig::formed();
    rig.postgres(2).health.disk = Disk::Full { for_ms: 20 };
    rig.settle();
    let told = refused(&rig, "server2");
    assert_eq!(told, "no standby can take over: PostgreSQL on server2 has had no disk space left for 20 ms");
    let mut rig = Rig::formed();
    rig.crash(2);
    rig.settle();
    assert_eq!(refused(&rig, "server2"), "no standby can take over: PostgreSQL on server2 does not run");
}

#[test]
fn members_go_in_and_out_of_service() {
    let mut rig = Rig::formed();
    let service = |rig: &Rig, id: u64| rig.state.members[&NodeId(id)].service.clone();
    rig.crash(2);
    rig.settle();
    assert_eq!(service(&rig, 2), Service::Failed("PostgreSQL is down: it crashed or was killed".to_owned()));
    rig.postgres(2).state = PostgresState::Running(running(true));
    rig.settle();
    assert_eq!(service(&rig, 2), Service::Up);
    for _ in 0..40 {
        rig.pass(&[3, 4]);
    }
    assert!(matches!(service(&rig, 3), Service::Failed(reason) if reason.contains("silent")));
    assert!(matches!(service(&rig, 4), Service::Failed(_)));
}

#[test]
fn one_missed_look_at_a_standby_is_nothing_yet() {
    let mut rig = Rig::formed();
    let hung = |for_ms| PostgresState::Unresponsive { for_ms, reason: "timeout".to_owned() };
    rig.postgres(2).state = hung(2_999);
    rig.settle();
    assert_eq!(rig.state.members[&NodeId(2)].service, Service::Up);
    rig.postgres(2).state = hung(3_000);
    rig.settle();
    assert!(matches!(rig.state.members[&NodeId(2)].service, Service::Failed(_)));
}

#[test]
fn a_standby_that_receives_nothing_leaves_service_after_a_while() {
    let mut rig = Rig::formed();
    let PostgresState::Running(standby) = &mut rig.postgres(2).state else { unreachable!() };
    standby.receiver = None;
    for _ in 0..90 {
        rig.pass(&[]);
    }
    assert_eq!(rig.state.members[&NodeId(2)].service, Service::Up);
    for _ in 0..20 {
        rig.pass(&[]);
    }
    assert!(
        matches!(&rig.state.members[&NodeId(2)].service, Service::Failed(reason) if reason.contains("no WAL"))
    );
}

#[test]
fn leadership_moves_off_the_primary_s_node() {
    let mut rig = Rig::formed();
    rig.coordinator.me = NodeId(1);
    assert_eq!(rig.step(&[]).action, Some(Action::TransferLeadership(NodeId(4))));
    assert_eq!(rig.step(&[]).action, None, "one offer at a time");
}

#[test]
fn a_standby_that_never_followed_the_last_primary_is_promoted_by_an_operator_only() {
    let mut rig = Rig::formed();
    rig.settle();
    let newer = Running { timeline: Timeline(2), checkpoint_timeline: Timeline(2), ..running(false) };
    rig.postgres(1).state = PostgresState::Running(newer);
    rig.propose(&serve(rig.state.generation, 2));
    rig.crash(1);
    let decision = rig.step(&[]);
    let Some(Action::Propose(Command::Begin { to, .. })) = decision.action else { panic!("{decision:?}") };
    assert_eq!(to, Some(NodeId(1)), "it has everything, so it is started where it is");
}

#[test]
fn whoever_begins_to_lead_listens_before_it_judges_a_silent_primary() {
    let mut rig = Rig::formed();
    rig.settle();
    for id in [2, 3, 4] {
        rig.knocked(id, RemoteDatabase::Silent);
    }
    // Cut off from a majority and so from the leadership, it hears nobody; then the network is whole again.
    rig.now = rig.now + Duration::from_secs(10);
    for id in [2, 3, 4] {
        let observation = rig.seen[&id].clone();
        rig.coordinator.observe(observation, rig.now);
    }
    for _ in 0..9 {
        assert_eq!(rig.step(&[1]).action, None);
    }
    assert_eq!(rig.step(&[]).action, None, "the primary's beat has come");
    for _ in 0..30 {
        rig.pass(&[1]);
    }
    assert!(rig.state.change.is_some(), "and if it does not come, all is as ever");
}

/// What the primary's agent says of its own ability to work.
fn sick(health: Health) -> Rig {
    let mut rig = Rig::formed();
    rig.postgres(1).health = health;
    rig
}

fn all_signs(for_ms: u64) -> [Health; 5] {
    let failing = |kind| WriteProbe::Failing { for_ms, kind, reason: "58030: I/O error".to_owned() };
    [
        Health { writes: failing(WriteFailure::Storage), ..Health::default() },
        Health { writes: WriteProbe::Hanging { for_ms }, ..Health::default() },
        Health { disk: Disk::Full { for_ms }, ..Health::default() },
        Health { disk: Disk::ReadOnly { for_ms }, ..Health::default() },
        Health { disk: Disk::Failing { for_ms }, ..Health::default() },
    ]
}

#[test]
fn a_primary_that_cannot_commit_for_local_timeout_is_replaced() {
    for early in all_signs(9_900) {
        let mut rig = sick(early.clone());
        assert_eq!(rig.step(&[]).action, None, "{early:?}");
    }
    for late in all_signs(10_000) {
        let mut rig = sick(late.clone());
        rig.pass(&[]);
        let change = rig.state.change.clone().unwrap();
        assert_eq!((change.kind, change.to), (ChangeKind::Failover, None), "{late:?}");
        assert!(change.reason.contains(&late.to_string()), "{}", change.reason);
    }
}

#[test]
fn a_sick_primary_stays_where_nobody_is_better_and_the_report_says_why() {
    for health in all_signs(60_000) {
        let mut rig = sick(health.clone());
        rig.postgres(2).health.disk = Disk::Full { for_ms: 1 };
        rig.postgres(3).health.disk = Disk::ReadOnly { for_ms: 1 };
        let decision = rig.step(&[]);
        assert_eq!(decision.action, None, "{health:?}");
        let report = decision.report.lines().join("\n");
        for part in
            ["stays the primary until", &health.to_string(), "server2 has had no disk space", "server3"]
        {
            assert!(report.contains(part), "{part:?} is not in {report}");
        }
        // One of them gets room.
        rig.postgres(3).health.disk = Disk::Room;
        rig.pass(&[]);
        assert!(rig.state.change.is_some());
    }
}

#[test]
fn a_full_standby_is_better_than_none_when_the_primary_is_gone() {
    let mut rig = Rig::formed();
    for id in [2, 3] {
        rig.postgres(id).health.disk = Disk::Full { for_ms: 60_000 };
    }
    let PostgresState::Running(running) = rig.postgres(1).state.clone() else { panic!() };
    let (timeline, checkpoint) = (running.timeline, running.position);
    rig.postgres(1).state = PostgresState::Down(Stopped { timeline, checkpoint, ..stopped(false, false) });
    rig.pass(&[]);
    let change = rig.state.change.clone().unwrap();
    assert_eq!(change.to, None, "another one takes over");
}

#[test]
fn a_crash_or_two_is_no_failure_but_a_storm_is() {
    for crashes in 0..=2 {
        let mut rig = sick(Health { crashes, ..Health::default() });
        assert_eq!(rig.step(&[]).action, None);
        rig.postgres(1).state = PostgresState::Starting { for_ms: 9_000, standby: false };
        assert_eq!(rig.step(&[]).action, None);
    }
    for state in [None, Some(PostgresState::Starting { for_ms: 10, standby: false })] {
        let mut rig = sick(Health { crashes: 3, ..Health::default() });
        let state = state.unwrap_or_else(|| rig.postgres(1).state.clone());
        rig.postgres(1).state = state;
        rig.pass(&[]);
        assert!(rig.state.change.is_some_and(|change| change.reason.contains("3 times within 60 s")));
    }
}

#[test]
fn a_standby_that_hangs_goes_out_of_service() {
    let mut rig = Rig::formed();
    let silent = |for_ms| PostgresState::Unresponsive { for_ms, reason: "no answer".to_owned() };
    rig.postgres(2).state = silent(2_900);
    assert_eq!(rig.step(&[]).action, None);
    rig.postgres(2).state = silent(3_000);
    rig.pass(&[]);
    let service = &rig.state.members[&NodeId(2)].service;
    assert!(matches!(service, Service::Failed(reason) if reason.contains("does not answer")), "{service:?}");
}

#[test]
fn a_recruit_that_receives_again_is_none() {
    let mut rig = Rig::formed();
    rig.postgres(1).state = PostgresState::Down(Stopped { checkpoint: Lsn(500), ..stopped(false, false) });
    rig.postgres(1).released = Some(rig.state.generation);
    rig.pass(&[]);
    for id in [2, 3] {
        rig.recruited(id, 1000);
    }
    // Somebody has pointed the better one at a primary again: what it has is not final.
    rig.recruited(2, 2000);
    let PostgresState::Running(running) = &mut rig.postgres(2).state else { panic!() };
    running.receiver = Some("streaming".to_owned());
    for _ in 0..15 {
        rig.pass(&[]);
    }
    assert_eq!(rig.state.primary.map(|primary| primary.node), Some(NodeId(3)));
}

#[test]
fn a_release_is_believed_only_of_an_agent_that_knows_of_the_change() {
    let mut rig = Rig::formed();
    rig.crash(1);
    rig.pass(&[]);
    rig.released(1);
    for id in [2, 3] {
        rig.recruited(id, 1000);
    }
    for observation in rig.seen.values_mut() {
        observation.promise_left_ms = 2000;
    }
    // Said before it knew: until it knows, its server may be started again under the lease it has.
    let _ = rig.look_at(&[1]);
    let late = NodeObservation { intent: None, serial: 9, ..rig.seen[&1].clone() };
    rig.coordinator.observe(late, rig.now);
    let decision = rig.coordinator.step(rig.now, WallTime(1));
    assert_eq!(decision.action, None, "{decision:?}");
    rig.seen.get_mut(&1).unwrap().serial = 10;
    rig.pass(&[]);
    assert_eq!(granted_to(&rig.state), Some(NodeId(2)));
}

#[test]
fn of_equal_standbys_one_with_a_healthy_disk_is_chosen() {
    let mut rig = sick(all_signs(60_000)[2].clone());
    rig.postgres(2).health.disk = Disk::Full { for_ms: 60_000 };
    rig.pass(&[]);
    rig.crash(1);
    rig.released(1);
    for id in [2, 3] {
        rig.recruited(id, 1000);
    }
    rig.pass(&[]);
    assert_eq!(granted_to(&rig.state), Some(NodeId(3)));
}

#[test]
fn the_report_names_those_whose_promises_nobody_knows() {
    let mut rig = Rig::formed();
    for id in [2, 3, 4] {
        rig.knocked(id, RemoteDatabase::Silent);
    }
    while rig.state.change.is_none() {
        rig.pass(&[1]);
    }
    for _ in 0..40 {
        let _ = rig.look_at(&[1, 3]);
    }
    let text = rig.look_at(&[1, 3]).report.lines().join("\n");
    assert!(text.contains("nothing is heard of server3"), "{text}");
}

#[test]
fn a_failover_that_leaves_too_few_standbys_is_left_to_the_operator() {
    let mut rig = Rig::with(|policy| policy.minimum_standbys = 1).form();
    rig.crash(3);
    rig.settle();
    for id in [2, 3, 4] {
        rig.knocked(id, RemoteDatabase::Silent);
    }
    for _ in 0..25 {
        rig.pass(&[1]);
    }
    let told = "server1 has failed, and a failover would leave 0 standbys, fewer than failover.minimum_standbys (1): bring one \
                back, or run `pgherd promote`";
    let said = rig.step(&[1]).report.lines();
    assert!(rig.state.change.is_none() && said.iter().any(|line| line == told), "{said:?}");
    let forced = rig.coordinator.view(rig.now, WallTime(2)).plan_forced(None, false).unwrap();
    assert_eq!(rig.propose(&forced), Applied::Changed, "who asks for it knows");

    // With two standbys one may take over; with one, what only crashed is started where it is.
    for (lost, successor) in [(None, None), (Some(3), Some(NodeId(1)))] {
        let mut rig = Rig::with(|policy| policy.minimum_standbys = 1).form();
        if let Some(lost) = lost {
            rig.crash(lost);
            rig.settle();
        }
        rig.crash(1);
        let action = rig.step(&[]).action;
        assert!(
            matches!(&action, Some(Action::Propose(Command::Begin { to, .. })) if *to == successor),
            "{action:?}"
        );
    }
}
