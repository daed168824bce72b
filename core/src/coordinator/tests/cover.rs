//! Commits that wait for standbys: which ones, and who may take over then.

use super::*;
use crate::cover::{Cover, CoverSeen, SyncSet};
use crate::fixtures::sync_set as set;
use crate::waterfall::{Step, Took};

const ONE: Durability = Durability { standbys: 1, degrade_after_ms: 0 };

/// A cluster in which commits wait, and have waited, for any one of servers 2 and 3.
fn covered(durability: Durability) -> Rig {
    let mut rig = Rig::with(|policy| policy.durability = durability).form();
    rig.covers(true);
    rig.settle();
    assert_eq!(rig.state.cover.promised, set(durability.standbys, &[2, 3]));
    assert!(rig.state.cover.is_settled());
    rig
}

impl Rig {
    /// What the primary says of its commits: they wait for what the log wants, and have done so.
    fn covers(&mut self, met: bool) {
        let number = self.state.cover.number;
        let Some(primary) = self.state.primary else { panic!("no primary") };
        let PostgresState::Running(running) = &mut self.postgres(primary.node.0).state else {
            panic!("down")
        };
        running.cover = Some(CoverSeen { number, met });
    }

    fn gate(&mut self, id: u64, gated: bool) {
        let PostgresState::Running(running) = &mut self.postgres(id).state else { panic!("down") };
        running.gated = gated;
    }

    /// The agent of the primary's node is silent, and so is its PostgreSQL, until a failover has begun.
    fn lose_primary(&mut self, silent: &[u64]) {
        for _ in 0..40 {
            for id in (2..=4).filter(|id| !silent.contains(id)) {
                self.knocked(id, RemoteDatabase::Silent);
            }
            self.pass(silent);
            if self.state.change.is_some() {
                return;
            }
        }
    }
}

/// The primary has crashed, both standbys have said what they have, and the one with more is chosen.
fn chosen_among_both() -> Rig {
    let mut rig = covered(ONE);
    rig.crash(1);
    rig.pass(&[]);
    rig.released(1);
    rig.recruited(2, 1500);
    rig.recruited(3, 1200);
    rig.pass(&[]);
    rig
}

#[test]
fn commits_wait_before_a_failover_rests_on_it() {
    let mut rig = Rig::with(|policy| policy.durability = ONE).form();
    let cover = |promised, wanted: SyncSet| (promised, wanted);
    let seen = |rig: &Rig| (rig.state.cover.promised.clone(), rig.state.cover.wanted.clone());
    assert_eq!(seen(&rig), cover(SyncSet::default(), set(1, &[2, 3])));
    rig.covers(false);
    rig.settle();
    assert_eq!(seen(&rig), cover(SyncSet::default(), set(1, &[2, 3])), "its walsenders have yet to say so");
    rig.covers(true);
    rig.settle();
    assert_eq!(seen(&rig), cover(set(1, &[2, 3]), set(1, &[2, 3])));

    // What was confirmed of an earlier wish says nothing of this one.
    rig.postgres(3).state = down(true);
    rig.settle();
    assert_eq!(seen(&rig), cover(set(1, &[2, 3]), set(1, &[2])));
    rig.covers(true);
    rig.settle();
    assert_eq!(seen(&rig), cover(set(1, &[2]), set(1, &[2])));
}

#[test]
fn the_strongest_wish_of_any_agent_counts() {
    let mut rig = covered(ONE);
    rig.coordinator.policy.durability = Durability::default();
    rig.seen.get_mut(&1).unwrap().durability = ONE;
    rig.settle();
    assert_eq!(rig.state.cover.wanted, set(1, &[2, 3]));
    rig.seen.get_mut(&1).unwrap().durability = Durability::default();
    rig.settle();
    assert_eq!(rig.state.cover, Cover { number: rig.state.cover.number, ..Cover::default() });
}

#[test]
fn too_few_standbys_are_waited_for_unless_commits_may_go_on() {
    for degrade_after_ms in [0, 1500] {
        let mut rig = covered(Durability { standbys: 2, degrade_after_ms });
        rig.postgres(3).state = down(true);
        rig.settle();
        let waits = "commits are to wait for 2 (failover.sync_standbys), and of the standbys that can be promoted server2 is in \
                     service: commits wait until there are more; bring the others back with `pgherd resume NODE`";
        let decision = rig.step(&[]);
        assert!(decision.report.lines().contains(&waits.to_owned()), "{:?}", decision.report.lines());
        assert_eq!(rig.state.cover.wanted, set(2, &[2, 3]));
        for _ in 0..20 {
            rig.pass(&[]);
        }
        let degraded = degrade_after_ms > 0;
        assert_eq!(rig.state.cover.wanted, if degraded { set(1, &[2]) } else { set(2, &[2, 3]) });
        // Failovers ask for more before commits wait for less.
        assert_eq!(rig.state.cover.promised, if degraded { set(1, &[2, 3]) } else { set(2, &[2, 3]) });
    }
}

#[test]
fn whoever_may_lack_a_commit_is_not_chosen_unless_an_operator_says_so() {
    let mut rig = covered(ONE);
    let silent = [1];
    rig.postgres(3).state = PostgresState::Unresponsive { for_ms: 1000, reason: "timed out".to_owned() };
    rig.lose_primary(&silent);
    assert_eq!(rig.state.change, None);
    let report = rig.step(&silent).report.lines().join("\n");
    let why = "server2 may lack commits that were acknowledged: they are on any 1 of server2, server3, so 2 of those have to \
               say what they have, and 1 does";
    assert!(report.contains(why), "{report}");
    let view = rig.coordinator.view(rig.now, WallTime(9));
    let refused = view.plan_forced(None, false).unwrap_err();
    assert_eq!(refused, SwitchoverRefused::NotCovered(vec![why.to_owned()]));
    let forced = view.plan_forced(None, true).unwrap();
    assert_eq!(rig.propose(&forced), Applied::Changed);
    rig.recruited(2, 1000);
    for _ in 0..12 {
        rig.pass(&silent);
    }
    assert_eq!(granted_to(&rig.state), Some(NodeId(2)));
    let entry = rig.state.history.last().unwrap();
    assert!(!entry.old_end.unwrap().covered && entry.reason.contains("accepted the loss"), "{entry:?}");
}

#[test]
fn the_one_that_has_most_of_those_that_are_needed_is_chosen() {
    let mut rig = covered(ONE);
    rig.lose_primary(&[1]);
    rig.recruited(2, 1500);
    rig.pass(&[1]);
    assert_eq!(granted_to(&rig.state), None, "server3 has yet to say what it has");
    rig.recruited(3, 1200);
    rig.pass(&[1]);
    assert_eq!(granted_to(&rig.state), Some(NodeId(2)));
    assert!(rig.state.history.last().unwrap().old_end.unwrap().covered);
    // The old primary has yet to come back; server3 is what commits wait for.
    assert_eq!(rig.state.cover.wanted, set(1, &[3]));
    assert_eq!(rig.state.cover.promised, set(1, &[2, 3]));
}

#[test]
fn whoever_has_all_of_the_old_primary_needs_nobody_else() {
    let mut rig = covered(ONE);
    rig.crash(1);
    rig.pass(&[]);
    rig.released(1);
    let PostgresState::Down(stopped) = &mut rig.postgres(1).state else { unreachable!() };
    stopped.left = Some(LeftWal { timeline: Timeline(1), end: Lsn(1500) });
    rig.recruited(2, 1500);
    for _ in 0..12 {
        rig.pass(&[3]);
    }
    assert_eq!(granted_to(&rig.state), Some(NodeId(2)));
}

#[test]
fn a_new_primary_serves_once_its_standbys_have_all_it_has() {
    let mut rig = covered(ONE);
    rig.lose_primary(&[1]);
    rig.recruited(2, 1500);
    rig.recruited(3, 1200);
    rig.pass(&[1]);
    rig.postgres(2).state = PostgresState::Running(Running { timeline: Timeline(2), ..running(false) });
    rig.pass(&[1]);
    let covering = PrimaryPhase::Covering { timeline: Timeline(2) };
    assert_eq!(rig.state.primary.map(|primary| primary.phase), Some(covering));
    assert_eq!((rig.state.serving(), rig.state.upstream()), (None, Some(NodeId(2))));
    assert_eq!(rig.state.topology().unwrap().unwrap().primary(), None);
    let waiting = rig.step(&[1]).report.lines().join("\n");
    assert!(
        waiting.contains("server2 is up, and lets clients in once all it has is on any 1 of server3"),
        "{waiting}"
    );
    rig.covers(true);
    rig.gate(2, true);
    let waiting = rig.step(&[1]).report.lines().join("\n");
    assert!(waiting.contains("server2 to let clients in"), "{waiting}");
    assert_eq!(rig.state.serving(), None, "proxies would be turned away");
    rig.gate(2, false);
    rig.pass(&[1]);
    assert_eq!(rig.state.serving(), Some(NodeId(2)));

    // Each step was timed, the last one once the proxies know.
    let steps = |rig: &Rig| {
        let entry = rig.state.history.last().unwrap();
        assert!(entry.serving.is_some());
        entry.took.iter().map(|took| (took.step, took.ms)).collect::<Vec<_>>()
    };
    let mut expected = vec![
        (Step::Detect, 2000),
        (Step::Fence, 100),
        (Step::Recruit, 0),
        (Step::Salvage, 0),
        (Step::Commit, 0),
        (Step::Promote, 100),
        (Step::Cover, 300),
    ];
    assert_eq!(steps(&rig), expected);
    rig.coordinator.published(rig.now + Duration::from_millis(7));
    rig.pass(&[1]);
    rig.pass(&[1]);
    expected.push((Step::Publish, 7));
    assert_eq!(steps(&rig), expected);
}

#[test]
fn the_first_write_behind_a_change_is_recorded_once() {
    let mut rig = covered(ONE);
    let formed = rig.state.generation;
    let tell = |rig: &mut Rig, generation, ms| {
        rig.coordinator.wrote(generation, Duration::from_millis(ms), rig.now);
    };
    let first_writes = |rig: &Rig| -> Vec<u64> {
        let took = rig.state.history.iter().flat_map(|entry| &entry.took);
        took.filter(|took| took.step == Step::FirstWrite).map(|took| took.ms).collect()
    };
    let run = |rig: &mut Rig, seconds: u64| (0..seconds * 10).for_each(|_| drop(rig.step(&[])));
    tell(&mut rig, formed, 3);
    run(&mut rig, 2);
    assert!(first_writes(&rig).is_empty(), "the forming of the cluster is no change");

    rig.crash(1);
    rig.pass(&[]);
    rig.released(1);
    rig.recruited(2, 1500);
    rig.recruited(3, 1200);
    rig.pass(&[]);
    // A proxy may know the new primary before this agent has applied that it serves.
    let generation = rig.state.generation;
    tell(&mut rig, generation, 40);
    rig.postgres(2).state = PostgresState::Running(Running { timeline: Timeline(2), ..running(false) });
    rig.covers(true);
    rig.pass(&[]);
    rig.pass(&[]);
    assert_eq!(rig.state.serving(), Some(NodeId(2)));
    assert!(rig.state.change.is_none(), "the change is over");
    assert!(first_writes(&rig).is_empty(), "others may have a shorter one");
    tell(&mut rig, generation, 30);
    tell(&mut rig, generation, 50);
    tell(&mut rig, formed, 1);
    run(&mut rig, 2);
    assert_eq!(first_writes(&rig), [30]);

    // The log has it, whatever comes later.
    tell(&mut rig, generation, 20);
    tell(&mut rig, generation.next(), 10);
    let revision = rig.state.revision;
    rig.coordinator.published(rig.now + Duration::from_millis(7));
    run(&mut rig, 2);
    assert_eq!(first_writes(&rig), [30]);
    let last = |rig: &Rig| rig.state.history.last().unwrap().took.last().copied().map(|took| took.step);
    assert_eq!(last(&rig), Some(Step::FirstWrite), "whatever became known first");
    assert!(rig.state.revision > revision && rig.state.generation == generation);
    let again = Took { step: Step::FirstWrite, ms: 1 };
    assert_eq!(rig.propose(&Command::Published { generation, took: again }), Applied::Unchanged);
}

#[test]
fn a_predecessor_does_not_return_once_its_successor_may_have_acknowledged_something() {
    for covering in [false, true] {
        let mut rig = chosen_among_both();
        assert_eq!(granted_to(&rig.state), Some(NodeId(2)));
        if covering {
            rig.postgres(2).state =
                PostgresState::Running(Running { timeline: Timeline(2), ..running(false) });
            rig.pass(&[]);
        }
        rig.postgres(2).trouble = Some("no space left".to_owned());
        rig.crash(2);
        rig.pass(&[]);
        let change = rig.state.change.as_ref().unwrap();
        assert_eq!(change.before, (!covering).then_some(NodeId(1)), "{change:?}");
    }
}

#[test]
fn a_standby_without_a_vote_is_not_waited_for() {
    let mut rig = covered(ONE);
    // It is lost until it has no vote any more.
    for _ in 0..120 {
        rig.pass(&[3]);
    }
    rig.covers(true);
    rig.settle();
    assert!(!rig.state.voters.contains(NodeId(3)));
    // Back, with all there is, but it could not be chosen yet.
    for _ in 0..20 {
        rig.pass(&[]);
    }
    assert_eq!(rig.state.members[&NodeId(3)].service, Service::Up);
    assert!(!rig.state.voters.contains(NodeId(3)));
    assert_eq!(rig.state.cover.wanted, set(1, &[2]));
    for _ in 0..60 {
        rig.pass(&[]);
    }
    assert!(rig.state.voters.contains(NodeId(3)));
    assert_eq!(rig.state.cover.wanted, set(1, &[2, 3]));
}

#[test]
fn a_wish_stays_while_its_only_asker_is_silent() {
    let mut rig = covered(ONE);
    rig.coordinator.policy.durability = Durability::default();
    rig.seen.get_mut(&3).unwrap().durability = ONE;
    rig.settle();
    for _ in 0..40 {
        rig.pass(&[3]);
        assert_eq!(rig.state.cover.wanted.standbys, 1);
    }
    assert!(!rig.coordinator.view(rig.now, WallTime(1)).is_fresh(NodeId(3)));
    // It speaks again, and asks for it no longer.
    rig.seen.get_mut(&3).unwrap().durability = Durability::default();
    rig.settle();
    assert!(rig.state.cover.wanted.is_none());
}

#[test]
fn a_new_primary_that_cannot_have_commits_wait_or_let_clients_in_is_given_up_in_the_end() {
    for (waits, gated) in [(true, false), (false, false), (true, true)] {
        let mut rig = chosen_among_both();
        rig.postgres(2).state = PostgresState::Running(Running { timeline: Timeline(2), ..running(false) });
        rig.pass(&[]);
        let covering = PrimaryPhase::Covering { timeline: Timeline(2) };
        assert_eq!(rig.state.primary.map(|primary| primary.phase), Some(covering));
        if waits {
            // That the standbys take their time is no trouble of the primary's.
            rig.covers(gated);
        }
        rig.gate(2, gated);
        rig.postgres(2).trouble = Some("no space left on device".to_owned());
        for _ in 0..290 {
            rig.pass(&[]);
        }
        let phase = |rig: &Rig| rig.state.change.as_ref().map(|change| (change.from, change.phase));
        assert_eq!(phase(&rig), Some((NodeId(1), ChangePhase::Granted)), "not before change_timeout");
        for _ in 0..20 {
            rig.pass(&[]);
        }
        if waits && !gated {
            assert_eq!(phase(&rig), Some((NodeId(1), ChangePhase::Granted)));
            continue;
        }
        assert_eq!(phase(&rig), Some((NodeId(2), ChangePhase::Recruiting)));
        let what = if gated { "let clients in" } else { "have commits wait for standbys" };
        let why = format!("server2 cannot {what}: no space left on device");
        assert_eq!(rig.state.change.as_ref().unwrap().reason, why);
        // And that is no dead end.
        rig.crash(2);
        rig.released(2);
        rig.recruited(3, 1500);
        for _ in 0..20 {
            rig.pass(&[]);
        }
        assert!(granted_to(&rig.state).is_some(), "{:?}", rig.state.change);
    }
}

#[test]
fn a_new_primary_that_answers_nobody_is_given_up_in_the_end() {
    let mut rig = chosen_among_both();
    rig.postgres(2).state = PostgresState::Running(Running { timeline: Timeline(2), ..running(false) });
    rig.pass(&[]);
    rig.postgres(2).state = PostgresState::Unresponsive { for_ms: 40_000, reason: "timeout".to_owned() };
    rig.postgres(2).trouble = Some("it does not answer".to_owned());
    for _ in 0..310 {
        rig.pass(&[]);
    }
    let phase = rig.state.change.as_ref().map(|change| (change.from, change.phase));
    assert_eq!(phase, Some((NodeId(2), ChangePhase::Recruiting)));
}

#[test]
fn what_was_only_written_does_not_count_as_lag_where_a_promise_covers_commits() {
    let lag = 1 << 30;
    for durability in [ONE, Durability::default()] {
        let mut rig = if durability == ONE {
            covered(ONE)
        } else {
            Rig::with(|policy| policy.durability = durability).form()
        };
        assert!(lag > rig.coordinator.policy.max_lag);
        let PostgresState::Running(running) = &mut rig.postgres(1).state else { unreachable!() };
        running.position = Lsn(lag);
        rig.settle();
        rig.lose_primary(&[1]);
        if durability == ONE {
            rig.recruited(2, 1500);
            rig.recruited(3, 1200);
            rig.pass(&[1]);
            assert_eq!(granted_to(&rig.state), Some(NodeId(2)));
        } else {
            assert_eq!(rig.state.change, None);
            let report = rig.step(&[1]).report.lines().join("\n");
            assert!(report.contains("more than failover.max_lag"), "{report}");
        }
    }
}
