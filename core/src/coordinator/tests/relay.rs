//! Standbys that stream from another standby, tags, and logical slots.

use super::*;
use crate::cluster::SlotSync;

/// Server 3 would rather stream from `upstream` than from the primary.
fn cascade(upstream: &str) -> Rig {
    let mut rig = Rig::new();
    configure(&mut rig, 3, upstream);
    rig.form()
}

fn configure(rig: &mut Rig, node: u64, upstream: &str) {
    rig.seen.get_mut(&node).unwrap().descriptor.upstream = Some(upstream.parse().unwrap());
}

fn up(rig: &mut Rig, node: u64) -> &mut Running {
    match &mut rig.postgres(node).state {
        PostgresState::Running(running) => running,
        other => panic!("{node} does not run: {other:?}"),
    }
}

fn relay(rig: &Rig, node: u64) -> Option<u64> {
    rig.state.relay(NodeId(node)).map(|relay| relay.0)
}

fn follow(rig: &mut Rig, node: u64, source: u64) {
    up(rig, node).follows = Some(address(source));
}

/// The primary writes on; so many tenths of a second pass.
fn write_on(rig: &mut Rig, tenths: u32, receive: &[u64]) {
    for _ in 0..tenths {
        up(rig, 1).position.0 += 100;
        let end = up(rig, 1).position;
        for node in receive {
            up(rig, *node).received = end;
        }
        rig.pass(&[]);
    }
}

fn waiting(rig: &mut Rig) -> String {
    rig.look_at(&[]).report.lines().join("\n")
}

#[test]
fn a_standby_streams_from_the_one_that_it_names_while_that_is_in_service() {
    let mut rig = cascade("server2");
    assert_eq!(relay(&rig, 3), Some(2));
    follow(&mut rig, 3, 2);
    rig.settle();
    assert_eq!(rig.state.members[&NodeId(3)].service, Service::Up, "it streams from where it should");
    rig.crash(2);
    rig.pass(&[]);
    assert_eq!(relay(&rig, 3), None, "in the moment in which the log says that server2 is down");
    assert!(waiting(&mut rig).contains("server2 is not in service"), "{}", waiting(&mut rig));
    rig.postgres(2).state = PostgresState::Running(running(true));
    rig.settle();
    assert_eq!(relay(&rig, 3), Some(2));
}

#[test]
fn only_a_standby_that_streams_and_keeps_up_is_sent_from_the_primary_to_another_one() {
    let mut rig = Rig::formed();
    up(&mut rig, 3).receiver = None;
    configure(&mut rig, 3, "server2");
    write_on(&mut rig, 120, &[2]);
    assert_eq!(relay(&rig, 3), None);
    let not_yet = "it has yet to stream from the primary before it can from server2";
    assert!(waiting(&mut rig).contains(not_yet), "{}", waiting(&mut rig));
    // It streams, and has yet to come near.
    up(&mut rig, 3).receiver = running(true).receiver;
    write_on(&mut rig, 120, &[2]);
    assert_eq!(relay(&rig, 3), None);
    assert!(waiting(&mut rig).contains(not_yet), "{}", waiting(&mut rig));
    write_on(&mut rig, 10, &[2, 3]);
    assert_eq!(relay(&rig, 3), Some(2));
    // Reconnecting to its new source it does not stream for a moment, and stays.
    up(&mut rig, 3).receiver = None;
    write_on(&mut rig, 20, &[2]);
    assert_eq!(relay(&rig, 3), Some(2));
}

#[test]
fn a_standby_whose_agent_is_silent_gives_wal_to_nobody() {
    let mut rig = cascade("server2");
    for _ in 0..35 {
        rig.pass(&[2]);
    }
    assert_eq!(relay(&rig, 3), None);
}

#[test]
fn one_that_lags_or_is_on_another_timeline_or_is_paused_is_not_streamed_from() {
    let mut rig = Rig::formed();
    up(&mut rig, 1).position = Lsn(1 << 30);
    configure(&mut rig, 3, "server2");
    rig.settle();
    assert_eq!(relay(&rig, 3), None, "a gigabyte behind");
    assert!(
        waiting(&mut rig).contains("server2 does not stream well enough itself"),
        "{}",
        waiting(&mut rig)
    );
    up(&mut rig, 2).received = Lsn(1 << 30);
    rig.settle();
    assert_eq!(relay(&rig, 3), Some(2));
    up(&mut rig, 2).timeline = Timeline(2);
    rig.settle();
    assert_eq!(relay(&rig, 3), None);
    up(&mut rig, 2).timeline = Timeline(1);
    rig.settle();
    assert_eq!(relay(&rig, 3), Some(2));
    rig.propose(&Command::Pause { node: Some(NodeId(2)), until: WallTime(9_000_000), at: WallTime(1) });
    assert_eq!(relay(&rig, 3), None);
    rig.settle();
    assert!(rig.state.relays.is_empty());
}

#[test]
fn a_standby_that_does_not_keep_up_behind_another_one_rests_at_the_primary() {
    let mut rig = cascade("server2");
    follow(&mut rig, 3, 2);
    write_on(&mut rig, 200, &[2, 3]);
    assert_eq!(relay(&rig, 3), Some(2), "both have all there is");
    // The walsender of server2 hangs: nothing comes through, however little it is.
    write_on(&mut rig, 99, &[2]);
    assert_eq!(relay(&rig, 3), Some(2), "a pause is no end");
    write_on(&mut rig, 5, &[2]);
    assert_eq!(relay(&rig, 3), None);
    follow(&mut rig, 3, 1);
    write_on(&mut rig, 500, &[2, 3]);
    assert_eq!(relay(&rig, 3), None);
    assert!(waiting(&mut rig).contains("that is tried again in"), "{}", waiting(&mut rig));
    write_on(&mut rig, 100, &[2, 3]);
    assert_eq!(relay(&rig, 3), Some(2), "a minute later");
}

#[test]
fn a_circle_a_stranger_and_oneself_lead_to_the_primary_with_a_word() {
    let mut rig = Rig::new();
    configure(&mut rig, 2, "server3");
    configure(&mut rig, 3, "server2");
    let mut rig = rig.form();
    assert!(rig.state.relays.is_empty());
    let text = waiting(&mut rig);
    for node in ["server2", "server3"] {
        assert!(
            text.contains(&format!("{node} streams from the primary, not as its node.upstream says")),
            "{text}"
        );
    }
    assert!(text.contains("server2 streams from it in turn"), "{text}");
    for stranger in ["server9", "server4"] {
        let mut rig = cascade(stranger);
        assert!(rig.state.relays.is_empty());
        let text = waiting(&mut rig);
        assert!(text.contains(&format!("{stranger} is no database node of this cluster")), "{text}");
    }
    // Who names the primary streams from it, and needs no word.
    let mut rig = cascade("server1");
    assert_eq!(waiting(&mut rig), "");
}

#[test]
fn commits_wait_neither_for_what_streams_from_a_standby_nor_for_what_is_tagged_so() {
    let durability = Durability { standbys: 1, degrade_after_ms: 0 };
    let mut rig = Rig::with(|policy| policy.durability = durability);
    configure(&mut rig, 3, "server2");
    let mut rig = rig.form();
    let of = |rig: &Rig| rig.state.cover.wanted.of.iter().map(|id| id.0).collect::<Vec<_>>();
    assert_eq!(of(&rig), [2]);
    rig.seen.get_mut(&3).unwrap().descriptor.upstream = None;
    rig.settle();
    assert_eq!(of(&rig), [2, 3]);
    rig.seen.get_mut(&2).unwrap().descriptor.tags.sync = false;
    rig.settle();
    assert_eq!(of(&rig), [3]);
    // Where that leaves too few, it is said why.
    rig.seen.get_mut(&3).unwrap().descriptor.tags.sync = false;
    rig.settle();
    let text = waiting(&mut rig);
    assert!(text.contains("never waited for: server2 (sync = false), server3 (sync = false)"), "{text}");
}

#[test]
fn what_is_not_promotable_is_promoted_only_when_it_is_named() {
    let mut rig = Rig::new();
    rig.seen.get_mut(&2).unwrap().descriptor.tags.promotable = false;
    let mut rig = rig.form();
    let plan = |rig: &Rig, to: Option<&str>| {
        let to = to.map(|name| name.parse().unwrap());
        rig.coordinator.view(rig.now, WallTime(1)).plan_switchover(to.as_ref(), false)
    };
    assert!(matches!(plan(&rig, None), Ok(Command::Begin { to: Some(NodeId(3)), .. })));
    assert!(matches!(plan(&rig, Some("server2")), Ok(Command::Begin { to: Some(NodeId(2)), .. })));
    rig.crash(3);
    rig.pass(&[]);
    let refused = plan(&rig, None).unwrap_err().to_string();
    assert!(refused.contains("server2 is tagged promotable = false"), "{refused}");
}

/// The primary has a logical slot that is to survive a failover; standbys copy slots.
fn with_slots(major: u32) -> Rig {
    let mut rig = Rig::new();
    for node in 1..=3 {
        rig.postgres(node).major = major;
    }
    up(&mut rig, 1).logical.slots = vec!["orders".to_owned()];
    rig.form()
}

fn copies(rig: &mut Rig, node: u64) {
    up(rig, node).logical.copies = true;
}

fn sync(of: &[u64]) -> Option<SlotSync> {
    Some(SlotSync { standbys: ids(of) })
}

#[test]
fn logical_slots_are_copied_where_there_are_some_and_postgresql_can() {
    assert_eq!(with_slots(16).state.slot_sync, None);
    let mut rig = with_slots(17);
    assert_eq!(rig.state.slot_sync, sync(&[]), "nobody copies yet, so nobody is waited for");
    copies(&mut rig, 2);
    copies(&mut rig, 3);
    rig.settle();
    assert_eq!(rig.state.slot_sync, sync(&[2, 3]));
    up(&mut rig, 1).logical.slots.clear();
    rig.settle();
    assert_eq!(rig.state.slot_sync, None, "the last one is gone");
}

#[test]
fn subscribers_do_not_wait_for_what_is_out_of_service_or_cannot_take_over() {
    let mut rig = with_slots(17);
    copies(&mut rig, 2);
    copies(&mut rig, 3);
    rig.settle();
    up(&mut rig, 3).receiver = None;
    rig.pass(&[]);
    assert_eq!(rig.state.slot_sync, sync(&[2, 3]), "a reconnect takes no time");
    rig.crash(3);
    rig.settle();
    assert_eq!(rig.state.slot_sync, sync(&[2]));
    rig.postgres(3).state = PostgresState::Running(running(true));
    copies(&mut rig, 3);
    rig.settle();
    assert_eq!(rig.state.slot_sync, sync(&[2, 3]));
    rig.seen.get_mut(&3).unwrap().descriptor.tags.promotable = false;
    rig.settle();
    assert_eq!(rig.state.slot_sync, sync(&[2]));
    rig.seen.get_mut(&3).unwrap().descriptor.tags.promotable = true;
    configure(&mut rig, 3, "server2");
    rig.settle();
    assert_eq!(rig.state.slot_sync, sync(&[2]), "its slot on the primary stands still");
}
