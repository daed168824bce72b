//! What a node does to its own PostgreSQL, case by case.

use std::time::Duration;

use pgherd_common::topology::ChangeKind;
use pgherd_common::wal::TimelineHistory;
use pgherd_common::{Lsn, MonoTime, NodeId, Timeline, WallTime};

use super::*;
use crate::cluster::Command;
use crate::cover::CoverSeen;
use crate::fixtures::{self, *};
use crate::observation::{PostgresObservation, PostgresState, Running, Stopped};
use crate::salvage::LeftWal;

/// Server 1 serves generation 1; servers 2 and 3 are standbys.
pub(super) struct Rig {
    pub(super) state: ClusterState,
    pub(super) own: PostgresObservation,
    own_age: Duration,
    pub(super) primary: Option<Running>,
    pub(super) unheard_for: Duration,
    pub(super) cascaded: BTreeMap<NodeId, Lsn>,
    offer: Option<Offer>,
    donors: Vec<Upstream>,
    pub(super) fence_at: Option<MonoTime>,
    pub(super) now: MonoTime,
    adopted_until: MonoTime,
    highest: Generation,
    work_is_held: bool,
    stopped_here: bool,
    reconciler: Reconciler,
}

fn at(seconds: u64) -> MonoTime {
    MonoTime::since_boot(Duration::from_secs(seconds))
}

/// A standby that follows server 1 and has no walreceiver yet, or a primary.
pub(super) fn running(in_recovery: bool) -> Running {
    Running { receiver: None, ..fixtures::running(in_recovery) }
}

impl Rig {
    pub(super) fn new(own: PostgresState) -> Self {
        let mut rig = Self {
            state: ClusterState::default(),
            own: observed(own),
            own_age: Duration::ZERO,
            primary: Some(running(false)),
            unheard_for: Duration::ZERO,
            cascaded: BTreeMap::new(),
            offer: None,
            donors: vec![upstream(3), upstream(2)],
            fence_at: Some(at(102)),
            now: at(100),
            adopted_until: at(51),
            highest: Generation::ZERO,
            work_is_held: false,
            stopped_here: false,
            reconciler: Reconciler::new(RULES),
        };
        rig.commit(&form(1, descriptors(3)));
        rig.commit(&serve(rig.state.generation, 1));
        rig
    }

    pub(super) fn commit(&mut self, command: &Command) {
        commit(&mut self.state, command);
    }

    /// A standby comes into service.
    pub(super) fn up(&mut self, node: u64) {
        let (generation, node, service) = (self.state.generation, NodeId(node), Service::Up);
        self.commit(&Command::SetService { generation, node, service, at: WallTime(0) });
    }

    fn begin(&mut self, kind: ChangeKind) {
        self.commit(&begin(self.state.generation, kind, 1));
    }

    fn grant(&mut self, node: u64) {
        self.commit(&grant(self.state.generation.next(), node));
    }

    fn serve(&mut self) {
        self.commit(&serve(self.state.generation, 2));
    }

    pub(super) fn decide(&self, me: u64) -> Reconciliation {
        self.reconciler.decide(&Situation {
            me: NodeId(me),
            state: &self.state,
            own: &self.own,
            own_age: self.own_age,
            primary: self.primary.as_ref(),
            unheard_for: self.unheard_for,
            cascaded: &self.cascaded,
            offer: self.offer.as_ref(),
            donors: &self.donors,
            fence_at: self.fence_at,
            adopted_until: self.adopted_until,
            highest: self.highest,
            work_is_held: self.work_is_held,
            stopped_here: self.stopped_here,
            now: self.now,
        })
    }

    pub(super) fn aligned(mut self, me: u64) -> Self {
        let Some(action @ LocalAction::AlignSlots { .. }) = self.decide(me).action else {
            panic!("slots come first")
        };
        self.reconciler.finished(&action, true, self.now);
        self
    }
}

fn fences(reconciliation: &Reconciliation) -> bool {
    matches!(reconciliation.action, Some(LocalAction::Fence { .. }))
}

#[test]
fn a_primary_with_its_lease_is_left_alone_and_looked_at_when_the_lease_ends() {
    let rig = Rig::new(PostgresState::Running(running(false))).aligned(1);
    assert_eq!(rig.decide(1), Reconciliation { action: None, wake_at: Some(at(102)), note: None });
}

#[test]
fn a_primary_without_lease_is_fenced_even_while_it_starts_or_hangs() {
    let hung = PostgresState::Unresponsive { for_ms: 1, reason: "timeout".to_owned() };
    let starting = PostgresState::Starting { for_ms: 1, standby: false };
    for state in [PostgresState::Running(running(false)), starting, hung] {
        let mut rig = Rig::new(state);
        rig.now = at(102);
        assert!(fences(&rig.decide(1)));
        rig.fence_at = None;
        rig.now = at(100);
        assert!(fences(&rig.decide(1)), "no lease at all, and long past the grace of a new agent");
        rig.now = at(50);
        assert!(!fences(&rig.decide(1)), "a new agent may still win the lease");
    }
}

#[test]
fn a_primary_that_was_found_running_is_given_time_to_win_its_lease() {
    let mut rig = Rig::new(PostgresState::Running(running(false)));
    rig.fence_at = None;
    rig.adopted_until = at(101);
    assert!(!fences(&rig.decide(1)));
    rig.now = at(101);
    assert!(fences(&rig.decide(1)));
}

#[test]
fn a_promotion_does_not_outlive_its_lease() {
    let mut rig = Rig::new(PostgresState::Running(running(true)));
    rig.begin(ChangeKind::Failover);
    rig.grant(2);
    rig.fence_at = Some(at(100));
    assert!(fences(&rig.decide(2)));
}

#[test]
fn a_chosen_standby_that_went_down_is_promoted_not_opened_on_its_old_timeline() {
    let mut rig = Rig::new(PostgresState::Down(stopped(false, true)));
    rig.begin(ChangeKind::Failover);
    rig.grant(2);
    assert_eq!(rig.decide(2).action, Some(LocalAction::StartStandby));
    rig.own.state = PostgresState::Running(Running { follows: None, ..running(true) });
    assert_eq!(rig.decide(2).action, Some(LocalAction::Promote(rig.state.generation, Commits::Free)));
}

#[test]
fn a_hung_primary_is_given_up_after_the_local_timeout() {
    let mut rig = Rig::new(PostgresState::Unresponsive { for_ms: 9_999, reason: "timeout".to_owned() });
    assert_eq!(rig.decide(1).wake_at, Some(rig.now + Duration::from_millis(1)));
    rig.own.state = PostgresState::Unresponsive { for_ms: 10_000, reason: "timeout".to_owned() };
    assert!(fences(&rig.decide(1)));
}

#[test]
fn a_dead_postmaster_s_leftovers_are_killed_before_the_role_counts_as_released() {
    let mut rig = Rig::new(PostgresState::Down(stopped(false, false)));
    assert!(fences(&rig.decide(1)));
    rig.own.released = Some(rig.state.generation);
    assert_eq!(rig.decide(1).action, None);
}

#[test]
fn a_primary_that_is_given_up_fences_itself() {
    let mut rig = Rig::new(PostgresState::Running(running(false)));
    rig.begin(ChangeKind::Failover);
    assert!(fences(&rig.decide(1)));
}

#[test]
fn whoever_is_writable_without_being_primary_is_fenced() {
    let rig = Rig::new(PostgresState::Running(running(false)));
    assert!(fences(&rig.decide(2)));
    let mut rig = Rig::new(PostgresState::Running(running(false)));
    rig.begin(ChangeKind::Failover);
    rig.grant(2);
    assert!(fences(&rig.decide(1)), "a former primary that comes up as it was");
    rig.own.state = PostgresState::Starting { for_ms: 1, standby: false };
    assert!(fences(&rig.decide(1)), "before it accepts the first write");
    rig.own.state = PostgresState::Starting { for_ms: 1, standby: true };
    assert_eq!(rig.decide(1).action, None, "a standby takes its time");
}

#[test]
fn a_standby_is_recruited_once_and_stays_cut_off_until_the_new_primary_serves() {
    let mut rig = Rig::new(PostgresState::Running(running(true))).aligned(3);
    rig.begin(ChangeKind::Failover);
    let generation = rig.state.generation.next();
    assert_eq!(rig.decide(3).action, Some(LocalAction::Recruit(generation)));
    rig.own.recruited = Some(generation);
    let cut = Running { follows: None, ..running(true) };
    for (follows, receiver) in [(running(true).follows, None), (None, Some("streaming".to_owned()))] {
        let again = Running { follows, receiver, ..cut.clone() };
        rig.own.state = PostgresState::Running(again);
        let action = rig.decide(3).action;
        assert_eq!(action, Some(LocalAction::Recruit(generation)), "pointed at a primary behind its back");
    }
    rig.own.state = PostgresState::Running(cut);
    assert_eq!(rig.decide(3).action, None);
    rig.grant(2);
    assert_eq!(rig.decide(3).action, None, "the new primary does not listen yet");
    rig.serve();
    let history = TimelineHistory(vec![(Timeline(1), Lsn(1000))]);
    rig.primary = Some(Running { timeline: Timeline(2), history, ..running(false) });
    assert_eq!(rig.decide(3).action, Some(LocalAction::Follow(upstream(2))));
}

#[test]
fn a_recruited_standby_fetches_what_only_the_old_primary_has() {
    let mut rig = Rig::new(PostgresState::Running(running(true))).aligned(3);
    rig.begin(ChangeKind::Failover);
    rig.own.state = PostgresState::Running(Running { follows: None, ..running(true) });
    let generation = rig.state.generation.next();
    let offer = |timeline, end| Offer {
        node: "server1".parse().unwrap(),
        agent: "10.0.0.1:7800".parse().unwrap(),
        wal: LeftWal { timeline: Timeline(timeline), end: Lsn(end) },
    };
    let more = offer(1, 1001);
    rig.offer = Some(more.clone());
    assert_eq!(
        rig.decide(3).action,
        Some(LocalAction::Recruit(generation)),
        "cut off from the old primary first"
    );
    rig.own.recruited = Some(generation);
    assert_eq!(rig.decide(3).action, Some(LocalAction::Salvage { generation, offer: more.clone() }));
    for nothing_new in [None, Some(offer(1, 1000)), Some(offer(2, 9000))] {
        rig.offer = nothing_new;
        assert_eq!(rig.decide(3).action, None, "{:?}", rig.offer);
    }
    rig.offer = Some(more);
    rig.own.salvaged = Some(generation);
    assert_eq!(rig.decide(3).action, None, "once is enough, even if the last of it could not be replayed");
    rig.own.salvaged = None;
    rig.grant(2);
    assert_eq!(rig.decide(3).action, None, "another one was chosen");
}

#[test]
fn a_standby_past_the_fork_is_stopped_and_then_rejoined() {
    let mut rig = Rig::new(PostgresState::Running(running(true))).aligned(3);
    rig.begin(ChangeKind::Failover);
    rig.grant(2);
    rig.serve();
    let history = TimelineHistory(vec![(Timeline(1), Lsn(999))]);
    let primary = Running { timeline: Timeline(2), history, ..running(false) };
    rig.primary = Some(primary.clone());
    assert!(matches!(rig.decide(3).action, Some(LocalAction::StopFast { .. })));
    rig.stopped_here = true;
    rig.own.state = PostgresState::Down(stopped(true, true));
    assert_eq!(
        rig.decide(3).action,
        Some(LocalAction::Rejoin { upstream: upstream(2), running: Box::new(primary) })
    );
}

#[test]
fn a_standby_on_another_timeline_of_the_same_number_is_stopped() {
    let mut rig = Rig::new(PostgresState::Running(running(true))).aligned(3);
    rig.begin(ChangeKind::Failover);
    rig.grant(2);
    rig.serve();
    let branch = |fork| Running {
        timeline: Timeline(2),
        history: TimelineHistory(vec![(Timeline(1), Lsn(fork))]),
        ..running(false)
    };
    rig.primary = Some(branch(900));
    rig.own.state = PostgresState::Running(Running { in_recovery: true, ..branch(950) });
    assert!(matches!(rig.decide(3).action, Some(LocalAction::StopFast { .. })));
    rig.own.state = PostgresState::Running(Running { in_recovery: true, follows: None, ..branch(900) });
    assert_eq!(rig.decide(3).action, Some(LocalAction::Follow(upstream(2))));
    // The primary has moved on from its own timeline of that number.
    let history = TimelineHistory(vec![(Timeline(1), Lsn(900)), (Timeline(2), Lsn(2000))]);
    rig.primary = Some(Running { timeline: Timeline(3), history, ..running(false) });
    rig.own.state = PostgresState::Running(Running { in_recovery: true, ..branch(950) });
    assert!(matches!(rig.decide(3).action, Some(LocalAction::StopFast { .. })));
    rig.own.state = PostgresState::Running(Running { in_recovery: true, follows: None, ..branch(900) });
    assert_eq!(rig.decide(3).action, Some(LocalAction::Follow(upstream(2))));
}

#[test]
fn the_chosen_standby_promotes_only_with_the_lease_of_its_generation() {
    let mut rig = Rig::new(PostgresState::Running(running(true)));
    rig.begin(ChangeKind::Failover);
    rig.grant(2);
    rig.fence_at = None;
    assert_eq!(rig.decide(2).action, None);
    rig.fence_at = Some(at(102));
    assert_eq!(rig.decide(2).action, Some(LocalAction::Promote(rig.state.generation, Commits::Free)));
}

#[test]
fn a_rolled_back_primary_is_started_again() {
    let mut rig = Rig::new(PostgresState::Down(stopped(true, false)));
    rig.begin(ChangeKind::Switchover);
    rig.commit(&Command::Stop { generation: rig.state.generation.next() });
    rig.own.released = Some(rig.state.generation);
    assert_eq!(rig.decide(1).action, None);
    rig.grant(1);
    assert_eq!(rig.decide(1).action, Some(LocalAction::StartPrimary(rig.state.generation, Commits::Free)));
}

#[test]
fn a_switchover_checkpoints_then_stops() {
    let mut rig = Rig::new(PostgresState::Running(running(false)));
    rig.begin(ChangeKind::Switchover);
    let generation = rig.state.generation.next();
    assert_eq!(rig.decide(1).action, Some(LocalAction::Prepare { generation, begun: WallTime(0) }));
    rig.own.prepared = Some(generation);
    assert_eq!(rig.decide(1).action, None);
    rig.commit(&Command::Stop { generation });
    assert_eq!(rig.decide(1).action, None, "proxies still send new work");
    rig.work_is_held = true;
    let drain = LocalAction::DrainAndStop { begun: WallTime(0), end_transactions: false };
    assert_eq!(rig.decide(1).action, Some(drain));
    rig.own.undrained = Some(WallTime(0));
    assert_eq!(rig.decide(1).action, None, "it is rolled back");
}

#[test]
fn a_crashed_former_primary_rejoins_as_soon_as_there_is_a_primary_to_rejoin() {
    let mut rig = Rig::new(PostgresState::Down(stopped(false, false)));
    rig.own.released = Some(rig.state.generation);
    rig.begin(ChangeKind::Failover);
    rig.grant(2);
    rig.primary = None;
    assert_eq!(rig.decide(1).action, None);
    rig.serve();
    assert_eq!(rig.decide(1).action, None, "its agent has not been heard yet");
    rig.primary = Some(Running { timeline: Timeline(2), ..running(false) });
    assert_eq!(rig.decide(1).action, None, "it has not checkpointed as primary yet");
    let primary = Running { timeline: Timeline(2), checkpoint_timeline: Timeline(2), ..running(false) };
    rig.primary = Some(primary.clone());
    assert_eq!(
        rig.decide(1).action,
        Some(LocalAction::Rejoin { upstream: upstream(2), running: Box::new(primary) })
    );
}

#[test]
fn a_crashed_standby_rests_then_starts_and_a_stopped_one_waits_for_resume() {
    let mut rig = Rig::new(PostgresState::Down(stopped(false, true)));
    let generation = rig.state.generation;
    let failed = Service::Failed("PostgreSQL crashed".to_owned());
    rig.commit(&Command::SetService { generation, node: NodeId(2), service: failed, at: WallTime(1) });
    let decision = rig.decide(2);
    assert_eq!((decision.action, decision.wake_at), (None, Some(at(105))));
    rig.own.state = PostgresState::Down(Stopped { for_ms: 5000, ..stopped(false, true) });
    assert!(matches!(rig.decide(2).action, Some(LocalAction::Rejoin { .. })));

    rig.own.state = PostgresState::Down(Stopped { for_ms: 500_000, ..stopped(true, true) });
    let decision = rig.decide(2);
    assert_eq!(decision.action, None);
    assert!(decision.note.unwrap().contains("pgherd resume server2"));
    rig.commit(&Command::Resume { node: NodeId(2), at: WallTime(2) });
    assert!(matches!(rig.decide(2).action, Some(LocalAction::Rejoin { .. })));
}

#[test]
fn after_a_power_cut_standbys_come_up_before_there_is_a_primary() {
    let mut rig = Rig::new(PostgresState::Down(Stopped { found_down: true, ..stopped(false, true) }));
    rig.primary = None;
    assert_eq!(rig.decide(2).action, Some(LocalAction::StartStandby), "whom to follow is told later");
    rig.own.state = PostgresState::Down(Stopped { found_down: true, ..stopped(false, false) });
    assert_eq!(rig.decide(2).action, None, "a former primary is compared first");
}

#[test]
fn a_foreign_database_is_left_alone_whatever_the_log_says() {
    let mut rig = Rig::new(PostgresState::Running(running(false)));
    rig.own.system_identifier = 8;
    let decision = rig.decide(2);
    assert_eq!(decision.action, None);
    assert!(decision.note.unwrap().contains("another database"));
}

#[test]
fn a_failed_action_is_not_repeated_at_once_but_fencing_never_waits() {
    let mut rig = Rig::new(PostgresState::Running(running(true)));
    rig.begin(ChangeKind::Failover);
    let action = rig.decide(3).action.unwrap();
    rig.reconciler.finished(&action, false, rig.now);
    let decision = rig.decide(3);
    assert_eq!((decision.action, decision.wake_at), (None, Some(rig.now + Duration::from_millis(500))));
    rig.own.state = PostgresState::Running(running(false));
    assert!(fences(&rig.decide(3)));
}

fn unresponsive(for_ms: u64) -> PostgresState {
    PostgresState::Unresponsive { for_ms, reason: "no answer within 1000 ms".to_owned() }
}

#[test]
fn a_server_that_hangs_is_killed_in_time_in_either_role() {
    for me in [1, 2] {
        let mut rig = Rig::new(unresponsive(8_000));
        let waiting = rig.decide(me);
        assert_eq!((waiting.action, waiting.wake_at), (None, Some(at(102))), "server {me}");
        // The next look hangs as well: the deadline comes all the same.
        (rig.own_age, rig.now) = (Duration::from_millis(1_999), at(101));
        assert_eq!(rig.decide(me).action, None);
        (rig.own_age, rig.now) = (Duration::from_secs(2), rig.fence_at.unwrap() + Duration::ZERO);
        rig.fence_at = Some(at(110));
        let action = rig.decide(me).action;
        assert!(
            matches!(&action, Some(LocalAction::Fence { reason }) if reason.contains("10000 ms")),
            "server {me}: {action:?}"
        );
        // One that refuses the agent answers, however long ago that was looked at.
        rig.own.state = unresponsive(0);
        rig.own_age = Duration::from_secs(20);
        assert_eq!(rig.decide(me).action, None);
    }
}

#[test]
fn a_primary_that_ends_soon_after_each_start_is_not_started_in_a_tight_loop() {
    let mut rig = Rig::new(PostgresState::Down(stopped(false, false)));
    let in_place = command!(Begin { to: Some(NodeId(1)), ..failover(rig.state.generation, 1) });
    rig.commit(&in_place);
    rig.grant(1);
    rig.fence_at = Some(at(1_000));
    let start = LocalAction::StartPrimary(rig.state.generation, Commits::Free);
    assert_eq!(rig.decide(1).action, Some(start.clone()));
    rig.reconciler.finished(&start, true, rig.now);
    // The second start comes at once; from then on each waits twice as long as the one before.
    assert_eq!(rig.decide(1).action, Some(start.clone()));
    rig.reconciler.finished(&start, true, rig.now);
    let mut rests = Vec::new();
    for _ in 0..8 {
        let resting = rig.decide(1);
        assert_eq!(resting.action, None, "{resting:?}");
        assert!(resting.note.unwrap().contains("soon after its start"));
        let until = resting.wake_at.unwrap();
        rests.push(until.since(rig.now).as_secs());
        rig.now = until;
        assert_eq!(rig.decide(1).action, Some(start.clone()));
        rig.reconciler.finished(&start, true, rig.now);
    }
    assert_eq!(rests, [1, 2, 4, 8, 16, 32, 32, 32]);
    // One that lasted is forgiven.
    rig.now = rig.now + START_LASTS;
    rig.reconciler.finished(&start, true, rig.now);
    assert_eq!(rig.decide(1).action, Some(start));
}

#[test]
fn two_kinds_of_actions_that_fail_rest_both() {
    let mut state = running(false);
    state.timeline = Timeline(2);
    let mut rig = Rig::new(PostgresState::Running(state));
    for kind in ["slots", "checkpoint"] {
        let action = rig.decide(1).action.unwrap_or_else(|| panic!("no {kind}"));
        rig.reconciler.finished(&action, false, rig.now);
    }
    assert_eq!(rig.decide(1).action, None);
}

#[test]
fn a_primary_that_was_rolled_back_to_and_never_served_comes_back_from_its_clean_stop() {
    let mut rig = Rig::new(PostgresState::Down(stopped(true, false)));
    rig.begin(ChangeKind::Switchover);
    rig.commit(&Command::Stop { generation: rig.state.generation.next() });
    rig.grant(1);
    rig.begin(ChangeKind::Failover);
    rig.grant(2);
    rig.serve();
    rig.primary = Some(Running { timeline: Timeline(2), checkpoint_timeline: Timeline(2), ..running(false) });
    assert!(matches!(rig.decide(1).action, Some(LocalAction::Rejoin { .. })), "{:?}", rig.decide(1));
    // One that served until somebody shut it down stays down.
    let mut rig = Rig::new(PostgresState::Down(stopped(true, false)));
    rig.begin(ChangeKind::Failover);
    rig.grant(2);
    rig.serve();
    assert!(rig.decide(1).note.is_some_and(|note| note.contains("by hand")));
}

#[test]
fn a_primary_has_commits_wait_for_whom_the_log_says() {
    let mut rig = Rig::new(PostgresState::Running(running(false))).aligned(1);
    assert_eq!(rig.decide(1).action, None, "nothing was ever asked for");
    rig.commit(&Command::WantCover { generation: rig.state.generation, set: sync_set(1, &[2, 3]) });
    let number = rig.state.cover.number;
    let of = [name(2), name(3)].into();
    let cover = LocalAction::Cover(Wait { generation: rig.state.generation, number, standbys: 1, of });
    assert_eq!(rig.decide(1).action, Some(cover));
    let PostgresState::Running(own) = &mut rig.own.state else { unreachable!() };
    own.cover = Some(CoverSeen { number, met: false });
    assert_eq!(rig.decide(1).action, None);
    // A postmaster that was started since knows nothing of it.
    let PostgresState::Running(own) = &mut rig.own.state else { unreachable!() };
    own.cover = None;
    assert!(matches!(rig.decide(1).action, Some(LocalAction::Cover(_))));
}

#[test]
fn a_primary_that_was_started_in_place_lets_clients_in_once_standbys_have_what_it_has() {
    let mut rig = Rig::new(PostgresState::Running(running(false))).aligned(1);
    rig.own.state = PostgresState::Down(stopped(false, false));
    rig.commit(&Command::WantCover { generation: rig.state.generation, set: sync_set(1, &[2]) });
    rig.begin(ChangeKind::Failover);
    rig.grant(1);
    rig.commit(&Command::WantCover { generation: rig.state.generation, set: sync_set(1, &[2]) });
    let (generation, number) = (rig.state.generation, rig.state.cover.number);
    assert!(matches!(rig.decide(1).action, Some(LocalAction::StartPrimary(_, Commits::WaitFor(_)))));
    rig.commit(&Command::Promoted { generation, timeline: Timeline(1) });
    let seen = |number, met| Some(CoverSeen { number, met });
    let up = |cover| Running { gated: true, cover, ..running(false) };
    for earlier in [seen(number - 1, true), None] {
        rig.own.state = PostgresState::Running(up(earlier));
        assert!(matches!(rig.decide(1).action, Some(LocalAction::Cover(_))), "{earlier:?}");
    }
    rig.own.state = PostgresState::Running(up(seen(number, false)));
    assert_eq!(rig.decide(1).action, None, "no standby has said that it has everything");
    rig.own.state = PostgresState::Running(up(seen(number, true)));
    assert_eq!(rig.decide(1).action, Some(LocalAction::LetIn));
    // What fails is tried again later, and holds up nothing else.
    rig.reconciler.finished(&LocalAction::LetIn, false, rig.now);
    assert_eq!(rig.decide(1).action, None);
    rig.now = rig.now + Duration::from_millis(500);
    rig.fence_at = Some(rig.now + Duration::from_secs(1));
    assert_eq!(rig.decide(1).action, Some(LocalAction::LetIn));
    // An agent that was started anew finds the gate closed on a primary that serves.
    rig.serve();
    rig.own.state = PostgresState::Running(up(None));
    assert_eq!(rig.decide(1).action, Some(LocalAction::LetIn));
    rig.own.state = PostgresState::Running(running(false));
    assert!(!matches!(rig.decide(1).action, Some(LocalAction::LetIn)));
}

#[test]
fn where_commits_wait_they_do_from_the_promotion_on_and_followers_are_named_after_its_generation() {
    let mut rig = Rig::new(PostgresState::Running(running(true)));
    rig.commit(&Command::WantCover { generation: rig.state.generation, set: sync_set(1, &[2, 3]) });
    rig.begin(ChangeKind::Failover);
    let generation = rig.state.generation.next();
    rig.commit(&command!(Grant { cover: sync_set(1, &[3]), ..grant(generation, 2) }));
    let number = rig.state.cover.number;
    let wait = Wait { generation, number, standbys: 1, of: [name(3)].into() };
    assert_eq!(rig.decide(2).action, Some(LocalAction::Promote(generation, Commits::WaitFor(wait))));
    rig.commit(&Command::Promoted { generation, timeline: Timeline(2) });
    let upstream = Upstream { generation: Some(generation), ..upstream(2) };
    assert_eq!(rig.decide(3).action, Some(LocalAction::Follow(upstream)));
    let PostgresState::Running(own) = &mut rig.own.state else { unreachable!() };
    (own.follows, own.follows_in) = (Some(address(2)), Some(generation));
    assert!(!matches!(rig.decide(3).action, Some(LocalAction::Follow(_))));
}

#[test]
fn what_is_paused_is_neither_started_nor_killed_but_still_fenced() {
    let (until, at_start) = (WallTime(9), WallTime(5));
    let hung = PostgresState::Unresponsive { for_ms: 60_000, reason: "timeout".to_owned() };
    for node in [None, Some(NodeId(1))] {
        for state in [PostgresState::Down(stopped(true, false)), hung.clone()] {
            let mut rig = Rig::new(state);
            rig.commit(&Command::Pause { node, until, at: at_start });
            let left_alone = rig.decide(1);
            assert_eq!(left_alone.action, None);
            assert!(
                left_alone.note.as_ref().unwrap().contains("left alone: paused until 1970"),
                "{left_alone:?}"
            );
        }
    }
    let mut rig = Rig::new(hung);
    rig.commit(&Command::Pause { node: None, until, at: at_start });
    rig.fence_at = Some(rig.now);
    assert!(fences(&rig.decide(1)), "nobody knows who is primary by now");

    let mut standby = Rig::new(PostgresState::Down(stopped(false, true)));
    assert!(standby.decide(2).action.is_some());
    standby.commit(&Command::Pause { node: Some(NodeId(2)), until, at: at_start });
    assert_eq!(standby.decide(2).action, None);
    standby.begin(ChangeKind::Failover);
    assert_eq!(standby.decide(2).action, None, "whatever happens elsewhere");
    standby.own.state = PostgresState::Running(running(true));
    assert!(
        matches!(standby.decide(2).action, Some(LocalAction::Recruit(_))),
        "it must not stay with the old one"
    );
    standby.own.state = PostgresState::Running(running(false));
    assert!(fences(&standby.decide(2)));
}

#[test]
fn a_standby_is_restarted_once_it_is_out_of_service() {
    let mut rig = Rig::new(PostgresState::Running(running(true)));
    rig.own.restarting = Some(WallTime(7));
    let up = |rig: &mut Rig, service| {
        let generation = rig.state.generation;
        rig.commit(&Command::SetService { generation, node: NodeId(2), service, at: WallTime(1) });
    };
    up(&mut rig, Service::Up);
    assert_eq!(rig.decide(2).action, None);
    up(&mut rig, Service::Failed("test".to_owned()));
    let stop = LocalAction::DrainAndStop { begun: WallTime(7), end_transactions: true };
    assert_eq!(rig.decide(2).action, Some(stop));
    // A change of primary needs it as it is.
    rig.begin(ChangeKind::Failover);
    assert!(matches!(rig.decide(2).action, Some(LocalAction::Recruit(_))));
}

#[test]
fn a_promotion_waits_for_the_operators_script() {
    let mut rig = Rig::new(PostgresState::Running(running(true)));
    rig.reconciler = Reconciler::new(Rules { fence_script: true, ..RULES });
    rig.begin(ChangeKind::Failover);
    rig.grant(2);
    let generation = rig.state.generation;
    let script = LocalAction::FenceScript { generation, old: Some(address(1)) };
    assert_eq!(rig.decide(2).action, Some(script.clone()));
    // Without the lease nothing is fenced either.
    let lease = rig.fence_at.take();
    assert_eq!(rig.decide(2).action, None);
    rig.fence_at = lease;
    // It failed: there is no promotion, and it is run again after a rest.
    rig.reconciler.finished(&script, false, rig.now);
    assert_eq!(rig.decide(2).action, None);
    rig.now = rig.now + Duration::from_millis(600);
    rig.fence_at = Some(at(110));
    assert_eq!(rig.decide(2).action, Some(script.clone()));
    rig.reconciler.finished(&script, true, rig.now);
    assert!(matches!(rig.decide(2).action, Some(LocalAction::Promote(..))));
}

#[test]
fn a_primary_that_takes_its_role_up_again_is_not_fenced() {
    let mut rig = Rig::new(PostgresState::Running(running(true)));
    rig.reconciler = Reconciler::new(Rules { fence_script: true, ..RULES });
    rig.begin(ChangeKind::Failover);
    rig.grant(1);
    assert!(matches!(rig.decide(1).action, Some(LocalAction::Promote(..))));
}

#[test]
fn a_pause_holds_back_what_was_ordered_before_and_what_was_stopped_is_started_again() {
    let pause = Command::Pause { node: Some(NodeId(2)), until: WallTime(9), at: WallTime(5) };
    let mut rig = Rig::new(PostgresState::Running(running(true)));
    rig.own.restarting = Some(WallTime(7));
    assert!(matches!(rig.decide(2).action, Some(LocalAction::DrainAndStop { .. })));
    rig.commit(&pause);
    assert!(!matches!(rig.decide(2).action, Some(LocalAction::DrainAndStop { .. })));

    let mut rig = Rig::new(PostgresState::Down(stopped(true, true)));
    rig.commit(&pause);
    assert_eq!(rig.decide(2).action, None);
    rig.stopped_here = true;
    assert!(matches!(rig.decide(2).action, Some(LocalAction::Rejoin { .. })));
}

#[test]
fn a_standby_with_less_than_its_primary_needs_is_restarted_before_it_follows() {
    use crate::capacity::Capacity;
    let follows = |address: &str, capacity| Running {
        follows: Some(address.parse().unwrap()),
        capacity,
        ..running(true)
    };
    let small = Some(Capacity::new([100, 8, 10, 0, 64]));
    let large = Some(Capacity::new([200, 8, 10, 0, 64]));
    for address in ["10.0.0.1:5432", "10.0.0.3:5432"] {
        let mut rig = Rig::new(PostgresState::Running(follows(address, small)));
        rig.primary = Some(Running { capacity: large, ..running(false) });
        let Some(LocalAction::StopFast { reason }) = rig.decide(2).action else {
            panic!("{:?}", rig.decide(2))
        };
        assert!(reason.contains("max_connections = 100, 200 needed"), "{reason}");
        // Nobody stops what an operator has in hand, nor lets it follow.
        rig.commit(&Command::Pause { node: Some(NodeId(2)), until: WallTime(9), at: WallTime(5) });
        let Reconciliation { action: None, note: Some(note), .. } = rig.decide(2) else { panic!() };
        assert!(note.contains("paused until"), "{note}");
        // More is fine, and so is what is not known.
        for (own, primary) in [(large, small), (large, large), (None, large), (small, None)] {
            let mut rig = Rig::new(PostgresState::Running(follows(address, own)));
            rig.primary = Some(Running { capacity: primary, ..running(false) });
            assert!(!matches!(rig.decide(2).action, Some(LocalAction::StopFast { .. })));
        }
    }
}

#[test]
fn a_standby_streams_from_another_one_as_the_log_says_and_from_the_primary_again() {
    let mut rig = Rig::new(PostgresState::Running(running(true))).aligned(3);
    rig.up(2);
    let generation = rig.state.generation;
    assert_eq!(rig.decide(3).action, None);
    rig.commit(&Command::SetRelay { generation, node: NodeId(3), relay: Some(NodeId(2)) });
    assert_eq!(rig.decide(3).action, Some(LocalAction::Follow(upstream(2))));
    let cascaded = Running { follows: Some(address(2)), ..running(true) };
    rig.own.state = PostgresState::Running(cascaded);
    assert_eq!(rig.decide(3).action, None);
    // Its histories are compared with the primary's, whomever it streams from.
    let fork = TimelineHistory(vec![(Timeline(1), Lsn(900))]);
    rig.primary = Some(Running { timeline: Timeline(2), history: fork, ..running(false) });
    assert!(matches!(rig.decide(3).action, Some(LocalAction::StopFast { .. })), "{:?}", rig.decide(3));
    rig.primary = Some(running(false));
    // Without the other one, by a reload.
    let service = Service::Failed("down".to_owned());
    rig.commit(&Command::SetService { generation, node: NodeId(2), service, at: WallTime(0) });
    assert_eq!(rig.decide(3).action, Some(LocalAction::Follow(upstream(1))));
}

#[test]
fn a_standby_that_streams_from_another_one_is_recruited_and_then_follows_the_new_primary() {
    let cascaded = Running { follows: Some(address(2)), ..running(true) };
    let mut rig = Rig::new(PostgresState::Running(running(true))).aligned(3);
    rig.own.state = PostgresState::Running(cascaded);
    rig.up(2);
    let generation = rig.state.generation;
    rig.commit(&Command::SetRelay { generation, node: NodeId(3), relay: Some(NodeId(2)) });
    rig.begin(ChangeKind::Failover);
    assert_eq!(rig.decide(3).action, Some(LocalAction::Recruit(generation.next())));
    rig.own.recruited = Some(generation.next());
    rig.own.state = PostgresState::Running(Running { follows: None, ..running(true) });
    rig.grant(2);
    rig.serve();
    let history = TimelineHistory(vec![(Timeline(1), Lsn(1000))]);
    rig.primary = Some(Running { timeline: Timeline(2), history: history.clone(), ..running(false) });
    assert_eq!(
        rig.decide(3).action,
        Some(LocalAction::Follow(upstream(2))),
        "its upstream is the primary now"
    );
    // It had received more than the new primary has: it cannot follow as it is.
    let ahead = Running { follows: None, position: Lsn(1100), received: Lsn(1100), ..running(true) };
    rig.own.state = PostgresState::Running(ahead);
    assert!(matches!(rig.decide(3).action, Some(LocalAction::StopFast { .. })));
}
