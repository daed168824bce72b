//! Whether a primary that crashed is started again where it is.

use super::*;

const MIB: u64 = 1 << 20;

/// Server 1 has crashed with so much WAL to replay, and both standbys, cut off by now, have so much.
fn crashed(here: u64, there: u64) -> Rig {
    let mut rig = Rig::formed();
    let end = Lsn(1 << 40);
    rig.coordinator.policy.max_lag = 0;
    rig.crash(1);
    rig.pass(&[]);
    rig.released(1);
    rig.left(end, here);
    for id in [2, 3] {
        rig.recruited(id, end.0);
        rig.replayed(id, Lsn(end.0 - there));
    }
    rig
}

impl Rig {
    fn left(&mut self, end: Lsn, behind_redo: u64) {
        let PostgresState::Down(stopped) = &mut self.postgres(1).state else { panic!("it runs") };
        stopped.redo = Lsn(end.0 - behind_redo);
        stopped.left = Some(LeftWal { timeline: Timeline(1), end });
    }

    fn replayed(&mut self, id: u64, position: Lsn) {
        let PostgresState::Running(running) = &mut self.postgres(id).state else { panic!("{id} is down") };
        running.position = position;
    }
}

#[test]
fn a_primary_with_less_to_replay_than_any_standby_is_started_where_it_is() {
    let mut rig = crashed(MIB, 20 * MIB);
    rig.pass(&[]);
    assert_eq!(granted_to(&rig.state), Some(NodeId(1)));
    rig.postgres(1).state = PostgresState::Running(running(false));
    rig.pass(&[]);
    assert_eq!(rig.state.serving(), Some(NodeId(1)));
    let entry = rig.state.history.last().unwrap();
    assert_eq!((entry.outcome, entry.old_end), (Outcome::StartedInPlace, None));
    assert_eq!(
        entry.reason,
        "PostgreSQL on server1 crashed; started in place: server1 has 1048576 bytes of WAL to replay, server2 20971520 bytes"
    );

    // It did not last: no second try soon.
    for id in [2, 3] {
        rig.postgres(id).state = PostgresState::Running(running(true));
    }
    rig.settle();
    rig.crash(1);
    rig.pass(&[]);
    rig.released(1);
    rig.left(Lsn(1 << 40), MIB);
    for id in [2, 3] {
        rig.recruited(id, 1 << 40);
        rig.replayed(id, Lsn((1 << 40) - 20 * MIB));
    }
    rig.pass(&[]);
    assert_eq!(granted_to(&rig.state), Some(NodeId(2)));
}

#[test]
fn a_standby_that_has_replayed_nearly_everything_takes_over() {
    for (here, there) in [(0, 0), (0, 12 * MIB), (100 * MIB, 112 * MIB), (1 << 39, 20 * MIB)] {
        let mut rig = crashed(here, there);
        rig.pass(&[]);
        assert_eq!(granted_to(&rig.state), Some(NodeId(2)), "{here} bytes here, {there} there");
    }
}

#[test]
fn the_standby_with_least_to_replay_is_the_one_that_counts_and_is_chosen() {
    let mut rig = crashed(MIB, 200 * MIB);
    rig.replayed(3, Lsn(1 << 40));
    rig.pass(&[]);
    assert_eq!(granted_to(&rig.state), Some(NodeId(3)));
}

#[test]
fn where_commits_wait_for_standbys_these_could_not_come_back_in_time() {
    let mut rig = crashed(MIB, 200 * MIB);
    rig.state.cover.wanted = sync_set(1, &[2, 3]);
    rig.pass(&[]);
    assert_eq!(granted_to(&rig.state), Some(NodeId(2)));
}

#[test]
fn an_operator_who_forces_a_promotion_gets_another_primary() {
    let mut rig = crashed(MIB, 200 * MIB);
    rig.state.change.as_mut().unwrap().allow_data_loss = true;
    rig.pass(&[]);
    assert_eq!(granted_to(&rig.state), Some(NodeId(2)));
}

#[test]
fn what_only_the_old_primary_has_counts_as_to_be_replayed_by_the_standby() {
    let mut rig = crashed(MIB, 0);
    for id in [2, 3] {
        rig.recruited(id, (1 << 40) - 20 * MIB);
        rig.replayed(id, Lsn((1 << 40) - 20 * MIB));
    }
    rig.pass(&[]);
    assert_eq!(granted_to(&rig.state), Some(NodeId(1)));
}

#[test]
fn a_primary_that_did_not_simply_crash_or_cannot_be_judged_is_replaced() {
    type Spoil = fn(&mut PostgresObservation);
    fn stopped(postgres: &mut PostgresObservation) -> &mut Stopped {
        let PostgresState::Down(stopped) = &mut postgres.state else { panic!("it runs") };
        stopped
    }
    let spoils: [(&str, Spoil); 6] = [
        ("fenced", |postgres| postgres.fenced = Some("it hung".to_owned())),
        ("a full disk", |postgres| postgres.health.disk = Disk::Full { for_ms: 1 }),
        ("a storm of crashes", |postgres| postgres.health.crashes = 3),
        ("shut down", |postgres| stopped(postgres).clean = true),
        ("an end nobody can read", |postgres| stopped(postgres).left = None),
        ("no start of replay", |postgres| stopped(postgres).redo = Lsn::default()),
    ];
    for (what, spoil) in spoils {
        let mut rig = crashed(MIB, 100 * MIB);
        spoil(rig.postgres(1));
        rig.pass(&[]);
        assert_eq!(granted_to(&rig.state), Some(NodeId(2)), "{what}");
    }
}
