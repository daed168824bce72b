//! Which slots there are to be, case by case.

use pgherd_common::NodeId;

use super::*;
use crate::cluster::{Command, SlotSync};
use crate::fixtures::*;
use crate::observation::PostgresState;
use crate::reconcile::Upstream;
use crate::reconcile::tests::{Rig, running};

/// Server 2, a standby that has replayed to 1000 and would begin to replay at 700.
fn standby(slots: Vec<SlotSeen>) -> Rig {
    Rig::new(PostgresState::Running(Running { redo: Lsn(700), slots, ..running(true) }))
}

/// What is done first, and what after `EVERY` once that has succeeded.
fn upto(rig: &Rig, me: u64) -> Option<BTreeMap<NodeName, Lsn>> {
    match rig.decide(me).action {
        Some(LocalAction::AlignSlots { upto, .. }) => Some(upto),
        None => None,
        other => panic!("{other:?}"),
    }
}

fn primary(slots: Vec<SlotSeen>) -> Option<Running> {
    Some(Running { slots, ..running(false) })
}

#[test]
fn a_standby_keeps_what_the_primary_keeps_and_no_more() {
    let mut rig = standby(vec![slot(1, Some(100)), slot(3, Some(100))]);
    rig.primary = primary(vec![slot(2, Some(1000)), slot(3, Some(400))]);
    // The primary's own slot moves with what is kept here in any case.
    let expected = BTreeMap::from([(name(1), Lsn(700)), (name(3), Lsn(400))]);
    assert_eq!(upto(&rig, 2), Some(expected));
    let mut rig = rig.aligned(2);
    assert_eq!(upto(&rig, 2), None, "not all the time");
    rig.now = rig.now + EVERY;
    assert!(upto(&rig, 2).is_some());
    rig.own.state = PostgresState::Running(Running {
        redo: Lsn(700),
        slots: vec![slot(1, Some(700)), slot(3, Some(400))],
        ..running(true)
    });
    assert_eq!(upto(&rig, 2), None, "everything is where it should be");
}

#[test]
fn a_slot_is_never_moved_back_and_one_that_is_missing_begins_where_the_primary_has_it() {
    let mut rig = standby(vec![slot(1, Some(900)), slot(3, Some(900))]);
    rig.primary = primary(vec![slot(3, Some(400))]);
    assert_eq!(upto(&rig, 2), Some(BTreeMap::new()), "only the members are new");
    let mut rig = standby(vec![slot(1, Some(900))]);
    rig.primary = primary(vec![slot(3, Some(400))]);
    assert_eq!(upto(&rig, 2), Some(BTreeMap::from([(name(3), Lsn(400))])));
}

#[test]
fn what_is_lost_on_the_primary_is_not_kept_on_a_standby() {
    let mut rig = standby(vec![slot(1, Some(900)), slot(3, Some(100))]);
    rig.primary = primary(vec![SlotSeen { lost: true, ..slot(3, Some(50)) }]);
    assert_eq!(upto(&rig, 2), Some(BTreeMap::from([(name(3), Lsn(700))])));
}

#[test]
fn without_a_word_of_the_primary_a_standby_keeps_nothing_for_others_in_the_end() {
    let mut rig = standby(vec![slot(1, Some(100)), slot(3, Some(100))]).aligned(2);
    rig.primary = None;
    rig.now = rig.now + EVERY;
    rig.unheard_for = UNHEARD_MAX - Duration::from_millis(1);
    assert_eq!(upto(&rig, 2), None, "it may be back soon");
    rig.unheard_for = UNHEARD_MAX;
    assert_eq!(upto(&rig, 2), Some(BTreeMap::from([(name(1), Lsn(700)), (name(3), Lsn(700))])));
}

#[test]
fn a_slot_through_which_somebody_streams_is_left_alone() {
    let used = |seen: SlotSeen| SlotSeen { active: true, ..seen };
    let slots = vec![used(slot(1, Some(100))), used(slot(3, Some(100))), used(slot(9, None))];
    let mut rig = standby(slots).aligned(2);
    rig.primary = primary(vec![slot(3, Some(400))]);
    rig.now = rig.now + EVERY;
    assert_eq!(upto(&rig, 2), None);
}

#[test]
fn what_is_lost_missing_unreserved_of_nobody_or_keeps_old_rows_is_put_in_order() {
    let fine = || vec![slot(1, Some(900)), slot(3, Some(900))];
    let mut odd = vec![vec![slot(1, Some(900))], [fine(), vec![slot(9, Some(900))]].concat()];
    for amiss in [
        SlotSeen { lost: true, ..slot(3, None) },
        slot(3, None),
        SlotSeen { pinned: true, ..slot(3, Some(900)) },
    ] {
        odd.push(vec![slot(1, Some(900)), amiss]);
    }
    for slots in odd {
        let mut rig = standby(slots.clone()).aligned(2);
        rig.primary = primary(vec![slot(3, Some(400))]);
        assert_eq!(upto(&rig, 2), None, "it was seen to a moment ago");
        rig.now = rig.now + EVERY;
        assert!(upto(&rig, 2).is_some(), "{slots:?}");
    }
    let mut rig = standby(fine()).aligned(2);
    rig.now = rig.now + EVERY;
    assert_eq!(upto(&rig, 2), None);
    let mut up = Running { redo: Lsn(700), slots: fine(), ..running(true) };
    up.logical.leftover = vec!["orders".to_owned()];
    rig.own.state = PostgresState::Running(up);
    assert!(upto(&rig, 2).is_some(), "a former primary's logical slot");
}

#[test]
fn a_primary_moves_only_the_slots_of_those_that_stream_from_a_standby() {
    let slots = vec![slot(2, Some(100)), SlotSeen { pinned: true, ..slot(3, Some(100)) }];
    let mut rig = Rig::new(PostgresState::Running(Running { slots, ..running(false) })).aligned(1);
    rig.now = rig.now + EVERY;
    rig.fence_at = Some(rig.now + EVERY);
    assert_eq!(upto(&rig, 1), None, "whoever is away may need all of it, and old rows too");
    rig.up(2);
    rig.commit(&Command::SetRelay {
        generation: rig.state.generation,
        node: NodeId(3),
        relay: Some(NodeId(2)),
    });
    rig.cascaded = BTreeMap::from([(NodeId(3), Lsn(800))]);
    assert_eq!(upto(&rig, 1), Some(BTreeMap::from([(name(3), Lsn(800))])));
}

#[test]
fn subscribers_wait_for_whom_the_log_says() {
    let primary = |waits_for: Option<&str>| {
        let mut up = Running { slots: vec![slot(2, Some(1)), slot(3, Some(1))], ..running(false) };
        up.logical.waits_for = waits_for.map(str::to_owned);
        PostgresState::Running(up)
    };
    let mut rig = Rig::new(primary(None)).aligned(1);
    assert_eq!(rig.decide(1).action, None);
    let sync = |nodes: &[u64]| Some(SlotSync { standbys: ids(nodes) });
    let set = |rig: &mut Rig, sync| {
        rig.commit(&Command::SyncSlots { generation: rig.state.generation, sync });
    };
    set(&mut rig, sync(&[2, 3]));
    assert_eq!(rig.decide(1).action, Some(LocalAction::HoldBack([name(2), name(3)].into())));
    rig.own.state = primary(Some("pgherd_server2, pgherd_server3"));
    assert_eq!(rig.decide(1).action, None);
    set(&mut rig, sync(&[2]));
    assert_eq!(rig.decide(1).action, Some(LocalAction::HoldBack([name(2)].into())));
    set(&mut rig, None);
    assert_eq!(rig.decide(1).action, Some(LocalAction::HoldBack(BTreeSet::new())));
    rig.own.state = primary(None);
    assert_eq!(rig.decide(1).action, None);
}

#[test]
fn a_standby_copies_slots_while_the_log_says_so_but_never_from_another_standby() {
    let mut rig = standby(vec![slot(1, Some(900)), slot(2, Some(900))]).aligned(3);
    let generation = rig.state.generation;
    rig.commit(&Command::SyncSlots { generation, sync: Some(SlotSync::default()) });
    let copying = Upstream { copy_slots: true, ..upstream(1) };
    assert_eq!(rig.decide(3).action, Some(LocalAction::Follow(copying)));
    let mut up = Running { slots: vec![slot(1, Some(900)), slot(2, Some(900))], ..running(true) };
    up.logical.copies = true;
    rig.own.state = PostgresState::Running(up);
    assert_eq!(rig.decide(3).action, None);
    rig.up(2);
    rig.commit(&Command::SetRelay { generation, node: NodeId(3), relay: Some(NodeId(2)) });
    assert_eq!(rig.decide(3).action, Some(LocalAction::Follow(upstream(2))));
}

/// PostgreSQL lets nobody but its own worker drop a copy, and the worker only while the settings let it run.
#[test]
fn a_standby_goes_on_copying_until_its_copies_are_gone() {
    let slots = || vec![slot(1, Some(900)), slot(2, Some(900))];
    let mut rig = standby(slots()).aligned(3);
    assert_eq!(rig.state.slot_sync, None, "the primary has none any more");
    let mut up = Running { slots: slots(), ..running(true) };
    up.logical.copies = true;
    up.logical.slots = vec!["orders".to_owned()];
    rig.own.state = PostgresState::Running(up.clone());
    assert_eq!(rig.decide(3).action, None, "its copy is still there");
    // Nor does it stop behind a new primary, or a restart.
    up.logical.copies = false;
    rig.own.state = PostgresState::Running(up.clone());
    let copying = crate::reconcile::Upstream { copy_slots: true, ..upstream(1) };
    assert_eq!(rig.decide(3).action, Some(LocalAction::Follow(copying)));
    (up.logical.copies, up.logical.slots) = (true, Vec::new());
    rig.own.state = PostgresState::Running(up);
    assert_eq!(rig.decide(3).action, Some(LocalAction::Follow(upstream(1))), "nothing is left to remove");
}
