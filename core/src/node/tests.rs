//! Whole agents, a few messages at a time.

mod address;
mod proxies;

use std::collections::BTreeMap;

use pgherd_common::wal::TimelineHistory;
use pgherd_common::{Lsn, Timeline};

use super::*;
use crate::cluster::Command;
use crate::fixtures::*;
use crate::observation::{Running, Stopped};
use crate::salvage::LeftWal;

fn at(millis: u64) -> MonoTime {
    MonoTime::since_boot(Duration::from_millis(millis))
}

/// Server 1 of three, primary of generation 1, which has just started on a running PostgreSQL.
struct Rig {
    node: Node,
    state: ClusterState,
    now: MonoTime,
}

impl Rig {
    fn new(remembered: Generation) -> Self {
        let now = at(10_000);
        let setup = Setup { remembered, adopted_until: now + Duration::from_millis(500), ..setup(1, now) };
        let mut rig = Self { node: Node::new(setup, now), state: ClusterState::default(), now };
        rig.node.look(postgres(false));
        rig
    }

    fn formed() -> Self {
        let mut rig = Self::new(Generation::ZERO);
        rig.commit(&form(1, descriptors(3)));
        rig
    }

    fn serving() -> Self {
        let mut rig = Self::formed();
        rig.commit(&serve(rig.state.generation, 1));
        rig
    }

    fn commit(&mut self, command: &Command) {
        commit(&mut self.state, command);
        self.learn();
    }

    fn learn(&mut self) {
        self.node.committed(Arc::new(self.state.clone()), quorum(3), self.now);
    }

    fn turn(&mut self) -> Turn {
        self.node.turn(self.now, WallTime(0), false, true)
    }

    /// Server 2 has answered a beat.
    fn answered(&mut self, sent: MonoTime) {
        let lease = Some(self.state.generation);
        self.node.answered(
            NodeId(2),
            sent,
            &BeatAnswer { lease, readmitted: None, revision: 0, removed: None },
        );
    }

    fn beat_of(&self, id: u64, generation: Generation, wants_lease: Option<Generation>) -> Beat {
        let mut observation = self.node.observation(self.now);
        observation.descriptor = descriptor(id);
        observation.generation = generation;
        Beat { observation, wants_lease }
    }
}

/// A primary, or a standby that has yet to be told whom to follow.
fn postgres(in_recovery: bool) -> PostgresObservation {
    observed(PostgresState::Running(Running { follows: None, receiver: None, ..running(in_recovery) }))
}

fn down(clean: bool) -> PostgresObservation {
    observed(PostgresState::Down(stopped(clean, false)))
}

fn fences(turn: &Turn) -> bool {
    turn.act.as_ref().is_some_and(|begun| matches!(begun.action, LocalAction::Fence { .. }))
}

#[test]
fn a_new_cluster_fences_nobody_before_the_first_lease() {
    let mut rig = Rig::formed();
    rig.now = at(60_000);
    let turn = rig.turn();
    assert!(!fences(&turn), "{turn:?}");
    assert_eq!(turn.guard, None, "the guardian is not armed either");
    rig.answered(at(59_900));
    let turn = rig.turn();
    let fence_at = at(59_900) + Terms::new(Timings::default().lease).hold();
    assert_eq!(turn.guard, Some(Guard::Until { generation: rig.state.generation, fence_at }));
}

#[test]
fn an_adopted_primary_has_the_time_it_was_given_and_the_guardian_knows() {
    let mut rig = Rig::serving();
    let turn = rig.turn();
    let fence_at = at(10_500);
    assert_eq!(turn.guard, Some(Guard::Until { generation: rig.state.generation, fence_at }));
    assert!(!fences(&turn));
    rig.now = fence_at;
    assert!(fences(&rig.turn()));
}

#[test]
fn a_standby_that_takes_its_time_to_start_is_not_to_be_killed_for_it() {
    let mut rig = Rig::new(Generation::ZERO);
    rig.commit(&form(2, descriptors(3)));
    rig.commit(&serve(rig.state.generation, 1));
    let starting = PostgresState::Starting { for_ms: 9, standby: true };
    rig.node.look(observed(starting));
    assert_eq!(rig.turn().guard, None);
    rig.node.look(postgres(true));
    assert_eq!(rig.turn().guard, Some(Guard::Off));
}

#[test]
fn a_change_that_comes_back_to_this_node_keeps_its_lease() {
    let mut rig = Rig::serving();
    rig.answered(at(10_000));
    let generation = rig.state.generation;
    let fence_at = rig.node.fence_at(rig.now);
    assert!(fence_at.is_some());
    rig.commit(&switchover(generation, 1, 2));
    let next = generation.next();
    rig.commit(&Command::Stop { generation: next });
    rig.commit(&grant(next, 1));
    assert_eq!(rig.node.fence_at(rig.now), fence_at, "not prolonged, not lost");
}

#[test]
fn a_generation_that_exists_somewhere_is_remembered_and_older_leases_are_refused() {
    let mut rig = Rig::serving();
    let first = rig.state.generation;
    assert_eq!(rig.turn().remember, Some(first));
    let wanted = rig.beat_of(1, first, Some(first));
    assert_eq!(rig.node.beaten(wanted.clone(), rig.now).lease, Some(first));
    let news = rig.beat_of(3, first.next(), None);
    let _ = rig.node.beaten(news, rig.now);
    assert_eq!(rig.node.beaten(wanted, rig.now).lease, None, "the lease of an older generation");
    assert_eq!(rig.turn().remember, Some(first.next()));
}

#[test]
fn an_agent_is_backed_for_a_lease_after_it_heard_enough_voters() {
    let mut rig = Rig::serving();
    let (first, lease) = (rig.state.generation, Timings::default().lease);
    assert_eq!(rig.node.backed_for(rig.now), Duration::ZERO, "alone of three");
    let beat = rig.beat_of(2, first, None);
    let _ = rig.node.beaten(beat, rig.now);
    assert_eq!(rig.node.backed_for(rig.now + Duration::from_millis(300)), lease - Duration::from_millis(300));
    assert_eq!(rig.node.backed_for(rig.now + lease), Duration::ZERO);
    let news = rig.beat_of(3, first.next(), None);
    let _ = rig.node.beaten(news, rig.now);
    assert_eq!(rig.node.backed_for(rig.now), Duration::ZERO, "it does not know the newest primary");
}

#[test]
fn a_primary_whose_agent_forgot_the_cluster_is_fenced_when_nobody_reminds_it() {
    let mut rig = Rig::new(Generation::ZERO.next());
    assert!(!fences(&rig.turn()));
    rig.now = at(10_500);
    assert!(fences(&rig.turn()));
    let mut fresh = Rig::new(Generation::ZERO);
    fresh.now = at(90_000);
    assert!(!fences(&fresh.turn()), "no cluster has formed yet: nobody's business");
}

#[test]
fn nobody_is_promoted_for_a_generation_that_is_over() {
    let mut rig = Rig::serving();
    let (first, next) = (rig.state.generation, rig.state.generation.next());
    rig.commit(&failover(first, 1));
    rig.commit(&grant(next, 1));
    rig.node.look(postgres(true));
    rig.answered(rig.now);
    let newer = rig.beat_of(2, next.next(), None);
    let _ = rig.node.beaten(newer, rig.now);
    assert_eq!(rig.turn().act, None);
    assert!(rig.node.note().is_some_and(|note| note.contains("generation 3")), "{:?}", rig.node.note());
    assert_eq!(BTreeMap::<NodeId, RemoteDatabase>::new(), rig.node.knocks.results());
}

#[test]
fn what_a_switchover_stopped_is_the_agents_doing_even_if_the_look_comes_first() {
    let mut rig = Rig::serving();
    rig.answered(rig.now);
    let generation = rig.state.generation;
    rig.commit(&switchover(generation, 1, 2));
    rig.commit(&Command::Stop { generation: generation.next() });
    let stop = rig.turn().act.unwrap();
    assert!(matches!(stop.action, LocalAction::DrainAndStop { end_transactions: false, .. }), "{stop:?}");
    rig.node.look(down(true));
    let fence = rig.turn().act.unwrap();
    assert!(fence.abort && fence.before.ran, "{fence:?}");
    rig.node.acted(done(fence, down(true)), rig.now);
    assert!(rig.node.duty.stopped_here);
    // It dies on its way up again: still nobody's wish that it stays down.
    let starting = PostgresState::Starting { for_ms: 1, standby: false };
    rig.node.look(observed(starting));
    rig.node.look(down(true));
    assert!(rig.node.duty.stopped_here);
    rig.node.look(postgres(false));
    assert!(!rig.node.duty.stopped_here);
}

/// The same agent, whose raft store was lost and is being filled again.
fn forgotten(rig: &mut Rig, admission: Admission) {
    let quorum = Quorum { admission, ..rig.node.quorum().clone() };
    rig.node.committed(Arc::new(rig.state.clone()), quorum, rig.now);
}

#[test]
fn an_agent_that_lost_its_store_neither_promises_nor_holds_a_lease() {
    let mut rig = Rig::serving();
    rig.answered(rig.now);
    assert!(rig.node.fence_at(rig.now).is_some());
    let generation = rig.state.generation;
    let wanted = rig.beat_of(1, generation, Some(generation));
    for admission in [Admission::Undecided, Admission::Probation(5), Admission::Learner(5)] {
        forgotten(&mut rig, admission);
        assert_eq!(rig.node.fence_at(rig.now), None, "{admission:?}");
        assert_eq!(rig.node.beaten(wanted.clone(), rig.now).lease, None, "{admission:?}");
        assert_eq!(rig.node.observation(rig.now).probation, admission.probation());
    }
    forgotten(&mut rig, Admission::Full);
    assert!(rig.node.fence_at(rig.now).is_some());
    assert_eq!(rig.node.beaten(wanted, rig.now).lease, Some(generation));
}

#[test]
fn an_agent_that_lost_its_store_says_nothing_of_a_change_of_primary() {
    let mut rig = Rig::serving();
    rig.commit(&failover(rig.state.generation, 1));
    assert_eq!(rig.node.observation(rig.now).intent, Some(rig.state.generation.next()));
    forgotten(&mut rig, Admission::Learner(5));
    assert_eq!(rig.node.observation(rig.now).intent, None, "its lapsed promise counts for nothing");
}

#[test]
fn an_agent_rejoins_with_the_store_that_the_log_names_and_no_other() {
    let mut rig = Rig::serving();
    forgotten(&mut rig, Admission::Probation(5));
    let answer = |readmitted| BeatAnswer { lease: None, readmitted, revision: 0, removed: None };
    rig.node.answered(NodeId(2), rig.now, &answer(None));
    rig.node.answered(NodeId(2), rig.now, &answer(Some(4)));
    assert_eq!(rig.turn().rejoin, None, "that was the store before");
    rig.node.answered(NodeId(2), rig.now, &answer(Some(5)));
    rig.node.answered(NodeId(3), rig.now, &answer(None));
    assert_eq!(rig.turn().rejoin, Some(5));
    forgotten(&mut rig, Admission::Learner(5));
    assert_eq!(rig.turn().rejoin, None);
}

#[test]
fn raft_is_asked_for_one_change_of_voters_at_a_time() {
    let mut rig = Rig::serving();
    let quorum = Quorum { voters: [1, 2].map(NodeId).into(), leads: true, ..rig.node.quorum().clone() };
    rig.node.committed(Arc::new(rig.state.clone()), quorum, rig.now);
    let wanted = Some(Action::ChangeVoters((1..=3).map(NodeId).collect()));
    assert_eq!(rig.turn().lead, wanted);
    assert_eq!(rig.turn().lead, None);
    rig.node.regrouped();
    assert_eq!(rig.turn().lead, wanted);
}

#[test]
fn the_guardian_hears_of_a_lease_that_is_won_before_the_first_look() {
    let mut rig = Rig::serving();
    rig.node.own = None;
    rig.answered(rig.now);
    let fence_at = rig.node.fence_at(rig.now).unwrap();
    assert_eq!(rig.turn().guard, Some(Guard::Until { generation: rig.state.generation, fence_at }));
}

#[test]
fn whoever_hears_that_a_primary_has_given_up_looks_at_its_database_for_those_who_do_not() {
    let mut rig = Rig::serving();
    let mut beat = rig.beat_of(1, rig.state.generation, Some(rig.state.generation));
    let setup = Setup { descriptor: descriptor(2), incarnation: 2, ..rig.node.setup.clone() };
    rig.node = Node::new(setup, rig.now);
    rig.node.look(postgres(true));
    rig.learn();
    let _ = rig.node.beaten(beat.clone(), rig.now);
    assert_eq!(rig.turn().knock, None, "it runs");
    beat.observation.postgres = Some(down(false));
    beat.observation.lease_left_ms = Some(0);
    beat.observation.serial += 1;
    let _ = rig.node.beaten(beat, rig.now);
    assert_eq!(rig.turn().knock.map(|(node, _)| node), Some(NodeId(1)));
}

#[test]
fn a_generation_that_could_not_be_written_down_is_demanded_again() {
    let mut rig = Rig::serving();
    let first = rig.state.generation;
    assert_eq!(rig.turn().remember, Some(first));
    assert_eq!(rig.turn().remember, Some(first));
    rig.node.remembered(first);
    assert_eq!(rig.turn().remember, None);
}

#[test]
fn a_leader_whose_own_disk_holds_everybody_up_hands_over() {
    let mut rig = Rig::serving();
    let quorum = Quorum { leads: true, ..quorum(3) };
    rig.node.committed(Arc::new(rig.state.clone()), quorum, rig.now);
    for id in [2, 3] {
        let mut beat = rig.beat_of(id, rig.state.generation, None);
        beat.observation.revision = id;
        let _ = rig.node.beaten(beat, rig.now);
    }
    rig.node.proposed(Proposed::TimedOut);
    assert!(!matches!(rig.turn().lead, Some(Action::TransferLeadership(NodeId(3)))), "once may be bad luck");
    rig.node.proposed(Proposed::TimedOut);
    assert_eq!(rig.turn().lead, Some(Action::TransferLeadership(NodeId(3))), "who has applied most");
    rig.node.proposed(Proposed::TimedOut);
    rig.node.proposed(Proposed::Settled);
    rig.node.proposed(Proposed::TimedOut);
    assert!(!matches!(rig.turn().lead, Some(Action::TransferLeadership(NodeId(3)))));
}

#[test]
fn what_is_being_started_is_not_released_and_a_failover_stops_the_start() {
    let mut rig = Rig::serving();
    let (first, next) = (rig.state.generation, rig.state.generation.next());
    rig.commit(&failover(first, 1));
    rig.commit(&grant(next, 1));
    rig.answered(rig.now);
    // Its lease ends, and it fences itself.
    rig.now = at(12_000);
    let fence = rig.turn().act.unwrap();
    rig.node.acted(done(fence, down(false)), rig.now);
    let released = |rig: &Rig| rig.node.observation(rig.now).postgres.unwrap().released;
    assert_eq!(released(&rig), Some(next));
    // A new lease, and it starts again; then the log gives it up.
    rig.answered(rig.now);
    let start = rig.turn().act.unwrap();
    assert_eq!(start.action, LocalAction::StartPrimary(next, crate::reconcile::Commits::Free));
    assert_eq!(released(&rig), None);
    rig.commit(&failover(next, 1));
    let turn = rig.turn();
    assert!(fences(&turn) && turn.act.unwrap().abort, "the start must not come through");
}

#[test]
fn a_salvage_does_not_hold_up_what_follows_the_choice() {
    let mut rig = Rig::serving();
    let setup = Setup { descriptor: descriptor(2), incarnation: 2, ..rig.node.setup.clone() };
    rig.node = Node::new(setup, rig.now);
    rig.node.look(postgres(true));
    let generation = rig.state.generation;
    rig.commit(&failover(generation, 1));
    let begun = rig.turn().act.unwrap();
    assert_eq!(begun.action, LocalAction::Recruit(generation.next()));
    rig.node.acted(done(begun, postgres(true)), rig.now);

    let mut beat = rig.beat_of(1, generation, None);
    beat.observation.intent = Some(generation.next());
    let left = Some(LeftWal { timeline: Timeline(1), end: Lsn(1500) });
    let state = PostgresState::Down(Stopped { left, ..stopped(false, false) });
    beat.observation.postgres = Some(PostgresObservation { released: Some(generation), ..observed(state) });
    let _ = rig.node.beaten(beat, rig.now);
    let begun = rig.turn().act.unwrap();
    assert!(matches!(begun.action, LocalAction::Salvage { .. }) && !begun.abort, "{begun:?}");
    assert_eq!(rig.turn().act, None, "it goes on");

    let next = generation.next();
    rig.commit(&grant(next, 3));
    rig.commit(&serve(next, 2));
    let mut beat = rig.beat_of(3, next, None);
    let history = TimelineHistory(vec![(Timeline(1), Lsn(1000))]);
    let primary = Running { timeline: Timeline(2), history, ..running(false) };
    beat.observation.postgres = Some(observed(PostgresState::Running(primary)));
    let _ = rig.node.beaten(beat, rig.now);
    let begun = rig.turn().act.unwrap();
    assert!(matches!(begun.action, LocalAction::Follow(_)) && begun.abort, "{begun:?}");
}

#[test]
fn a_checkpoint_does_not_hold_up_what_commits_wait_for() {
    let mut rig = Rig::serving();
    rig.answered(rig.now);
    let own = observed(PostgresState::Running(Running { timeline: Timeline(2), ..running(false) }));
    rig.node.look(own.clone());
    // Slots come first: the checkpoint removes WAL.
    let begun = rig.turn().act.unwrap();
    assert!(matches!(begun.action, LocalAction::AlignSlots { .. }), "{begun:?}");
    rig.node.acted(done(begun, own), rig.now);
    let begun = rig.turn().act.unwrap();
    assert_eq!(begun.action, LocalAction::Checkpoint);
    assert_eq!(rig.turn().act, None, "it goes on");

    rig.commit(&Command::WantCover { generation: rig.state.generation, set: sync_set(1, &[2, 3]) });
    let begun = rig.turn().act.unwrap();
    assert!(matches!(begun.action, LocalAction::Cover(_)) && begun.abort, "{begun:?}");
    assert_eq!(rig.turn().act, None, "and that goes on");
}

#[test]
fn a_standby_says_that_it_is_to_be_restarted_until_that_postmaster_is_gone() {
    let mut rig = Rig::new(Generation::ZERO);
    rig.commit(&form(2, descriptors(3)));
    rig.node.look(postgres(true));
    rig.node.order_restart(WallTime(5)).unwrap();
    let said = |rig: &Rig| rig.node.observation(rig.now).postgres.unwrap().restarting;
    assert_eq!(said(&rig), Some(WallTime(5)));
    rig.node.look(PostgresObservation { pid: Some(2), ..postgres(true) });
    assert_eq!(said(&rig), None);

    let mut primary = Rig::serving();
    primary.node.look(postgres(false));
    assert!(matches!(primary.node.order_restart(WallTime(5)), Err(RestartRefused::IsPrimary(_))));
    let (node, until) = (Some(NodeId(1)), WallTime(9));
    rig.commit(&Command::Pause { node, until, at: WallTime(5) });
    assert!(matches!(rig.node.order_restart(WallTime(5)), Err(RestartRefused::Paused { .. })));
}

#[test]
fn a_node_that_is_removed_stops_its_standby_and_has_left_once_the_others_say_so() {
    let mut rig = Rig::serving();
    let generation = rig.state.generation;
    rig.commit(&switchover(generation, 1, 2));
    let generation = generation.next();
    for command in [Command::Stop { generation }, grant(generation, 2), serve(generation, 2)] {
        rig.commit(&command);
    }
    rig.node.look(postgres(true));
    let answer = |revision, removed| BeatAnswer { lease: None, readmitted: None, revision, removed };
    rig.node.answered(NodeId(3), rig.now, &answer(rig.state.revision - 1, Some(WallTime(7))));
    assert_eq!(rig.node.has_left(), None, "it knows better");

    let want = |of: &[u64]| Command::WantCover { generation, set: sync_set(1, of) };
    rig.commit(&want(&[1]));
    rig.commit(&Command::SettleCover { generation, number: rig.state.cover.number });
    rig.commit(&Command::Remove { node: NodeId(1), force: false, at: WallTime(6) });
    let goes_on = |rig: &mut Rig, why: &str| {
        while let Some(begun) = rig.turn().act {
            assert!(!matches!(begun.action, LocalAction::StopFast { .. }), "{why}: {begun:?}");
            rig.node.acted(done(begun, postgres(true)), rig.now);
            rig.now = rig.now + Duration::from_millis(10);
        }
    };
    rig.node.look(postgres(true));
    goes_on(&mut rig, "a failover would need it");
    rig.commit(&want(&[3]));
    goes_on(&mut rig, "as long as that is not settled");
    rig.commit(&Command::SettleCover { generation, number: rig.state.cover.number });
    rig.node.look(postgres(true));
    let newer = rig.state.revision + 2;
    let begun = rig.turn().act.unwrap();
    assert!(matches!(begun.action, LocalAction::StopFast { .. }) && begun.before.ran, "{begun:?}");
    rig.node.acted(done(begun, observed(PostgresState::Down(stopped(true, true)))), rig.now);
    assert_eq!(rig.turn().act, None, "it stays down");
    assert_eq!(rig.node.has_left(), None, "it is still a member");
    rig.node.answered(NodeId(2), rig.now, &answer(newer, Some(WallTime(7))));
    rig.node.answered(NodeId(3), rig.now, &answer(newer - 1, None));
    assert_eq!(rig.node.has_left(), Some(WallTime(7)), "who is further in the log is right");
    rig.node.answered(NodeId(3), rig.now, &answer(newer + 1, None));
    assert_eq!(rig.node.has_left(), None, "it was added again");
}

#[test]
fn whoever_does_not_belong_is_not_listened_to_and_told_when_it_was_removed() {
    let mut rig = Rig::serving();
    rig.commit(&Command::Remove { node: NodeId(3), force: true, at: WallTime(6) });
    let generation = rig.state.generation;
    rig.commit(&Command::PlanVoters { generation, next: [1, 2].map(NodeId).into() });
    let planned = rig.state.revision;
    rig.commit(&Command::SettleVoters { generation, planned });
    let number = rig.state.members[&NodeId(3)].leaving.unwrap().number;
    let beat = rig.beat_of(3, generation, None);
    assert_eq!(rig.node.beaten(beat.clone(), rig.now).removed, None);
    rig.commit(&Command::Removed { node: NodeId(3), number, at: WallTime(7) });
    assert!(!rig.node.coordinator().seen().contains_key(&NodeId(3)));
    let answer = rig.node.beaten(beat, rig.now);
    assert_eq!((answer.lease, answer.removed), (None, Some(WallTime(7))));
    assert!(answer.revision == rig.state.revision && !rig.node.coordinator().seen().contains_key(&NodeId(3)));
}

#[test]
fn what_was_asked_of_a_server_that_went_away_meanwhile_was_cut_short() {
    let done = |action, result: Result<(), &str>, observation| Done {
        action,
        before: Before { primary_of: None, ran: true },
        result: result.map_err(str::to_owned),
        setback: None,
        observation,
    };
    let failed = Err("a query failed: connection closed");
    assert!(done(LocalAction::LetIn, failed, down(false)).was_cut_short());
    assert!(!done(LocalAction::LetIn, failed, postgres(false)).was_cut_short(), "it is still there");
    assert!(!done(LocalAction::LetIn, Ok(()), down(false)).was_cut_short());
    assert!(!done(LocalAction::StartStandby, failed, down(true)).was_cut_short(), "that is what failed");
    let never_ran = Done {
        before: Before { primary_of: None, ran: false },
        ..done(LocalAction::LetIn, failed, down(false))
    };
    assert!(!never_ran.was_cut_short());
}
