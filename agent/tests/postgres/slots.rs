//! Replication slots, and standbys that stream from standbys.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};
use std::time::Duration;

use pgherd_agent::observation::{PostgresState, Running, SlotSeen};
use pgherd_agent::reconcile::Commits;
use pgherd_common::{Lsn, NodeName};
use rustix::process::Signal;

use super::server::{Server, bin_dir, now};
use super::{pid, signal};

fn names(text: &str) -> BTreeSet<NodeName> {
    text.split(' ').map(|name| name.parse().unwrap()).collect()
}

fn slot_names(running: &Running) -> Vec<&str> {
    running.slots.iter().map(|slot| slot.name.as_str()).collect()
}

fn slot<'a>(running: &'a Running, name: &str) -> &'a SlotSeen {
    let found = running.slots.iter().find(|slot| slot.name == format!("pgherd_{name}"));
    found.unwrap_or_else(|| panic!("no slot for {name}: {:?}", running.slots))
}

/// WAL in many segments.
async fn write(server: &Server) {
    server.sql("CREATE TABLE IF NOT EXISTS filled (i int)").await;
    for _ in 0..4 {
        server.sql("INSERT INTO filled SELECT generate_series(1, 1000); SELECT pg_switch_wal()").await;
    }
}

async fn caught_up(standby: &Server, primary: &Server) {
    let end = primary.running().await.position;
    standby
        .until("replay", |state| match state {
            PostgresState::Running(running) => running.position >= end,
            _ => false,
        })
        .await;
}

#[tokio::test]
async fn slots_are_aligned_in_both_roles() {
    let n1 = Server::primary("n1").await;
    let n2 = Server::standby(&n1, "n2").await;
    n1.sql("SELECT pg_create_physical_replication_slot('of_the_dba')").await;
    for _ in 0..2 {
        n1.instance.align_slots(&names("n2 n3 pg-east"), false).await.unwrap();
        assert_eq!(slot_names(&n1.running().await), ["pgherd_n2", "pgherd_n3", "pgherd_pg_east"]);
    }
    n1.instance.align_slots(&names("n3"), false).await.unwrap();
    // In use: not dropped.
    let running = n1.running().await;
    assert_eq!(slot_names(&running), ["pgherd_n2", "pgherd_n3"]);
    assert!(slot(&running, "n2").active && !slot(&running, "n3").active);
    assert!(slot(&running, "n3").restart.is_some(), "a primary keeps WAL for a member that is away");

    n2.sql("SELECT pg_create_physical_replication_slot('pgherd_n3', false)").await;
    n2.sql("SELECT pg_create_physical_replication_slot('pgherd_gone', true)").await;
    n2.instance.align_slots(&names("n1 n3"), true).await.unwrap();
    let running = n2.running().await;
    assert_eq!(slot_names(&running), ["pgherd_n1", "pgherd_n3"]);
    assert!(running.slots.iter().all(|slot| slot.restart.is_some()), "and so does a standby: {running:?}");
    assert!(n2.instance.align_slots(&names("n1"), false).await.is_err());
}

#[tokio::test]
async fn slots_on_a_standby_follow_those_of_the_primary_and_outlive_its_promotion() {
    let n1 = Server::primary("n1").await;
    n1.instance.align_slots(&names("n2 n3"), false).await.unwrap();
    let n2 = Server::standby(&n1, "n2").await;
    n1.instance.align_slots(&names("n2 n3"), false).await.unwrap();
    n2.instance.align_slots(&names("n1 n3"), true).await.unwrap();
    write(&n1).await;
    caught_up(&n2, &n1).await;
    let begun = slot(&n2.running().await, "n3").restart.unwrap();
    let upto = |upto: Lsn| BTreeMap::from([("n3".parse().unwrap(), upto)]);

    let half = Lsn(begun.0 + (2 << 20));
    n2.instance.move_slots(&upto(half)).await.unwrap();
    assert_eq!(slot(&n2.running().await, "n3").restart, Some(half));
    n2.instance.move_slots(&upto(begun)).await.unwrap();
    assert_eq!(slot(&n2.running().await, "n3").restart, Some(half), "never back");
    n2.instance.move_slots(&upto(Lsn(u64::MAX))).await.unwrap();
    let running = n2.running().await;
    assert!(slot(&running, "n3").restart.unwrap() <= running.position, "nor past what is here");

    // What it kept it keeps as a primary.
    let kept = slot(&running, "n3").restart;
    n2.instance.recruit().await.unwrap();
    n2.instance.promote().await.unwrap();
    n2.instance.align_slots(&names("n1 n3"), false).await.unwrap();
    assert_eq!(slot(&n2.running().await, "n3").restart, kept);
}

#[tokio::test]
async fn a_lost_slot_and_one_that_keeps_old_rows_are_made_anew() {
    let n1 = Server::primary("n1").await;
    let n2 = Server::standby(&n1, "n2").await;
    n2.instance.align_slots(&names("n1 n3"), true).await.unwrap();
    // As a walsender of a former primary leaves it, whose standby had told of its oldest rows.
    let n3 = Server::clone_of(&n1, "n3", &[]).await;
    n3.configure_more("hot_standby_feedback = on\nwal_receiver_status_interval = '100ms'\n");
    n3.instance.start_standby(Some(&n2.upstream())).await.unwrap();
    n3.streams().await;
    n2.until("a slot that is pinned", |state| match state {
        PostgresState::Running(running) => slot(running, "n3").pinned && slot(running, "n3").active,
        _ => false,
    })
    .await;
    n3.instance.fence().await.unwrap();
    n2.until("a slot at rest", |state| match state {
        PostgresState::Running(running) => !slot(running, "n3").active,
        _ => false,
    })
    .await;
    assert!(slot(&n2.running().await, "n3").pinned);
    n2.instance.align_slots(&names("n1 n3"), true).await.unwrap();
    let running = n2.running().await;
    assert!(!slot(&running, "n3").pinned && slot(&running, "n3").restart.is_some(), "{running:?}");

    n2.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'").await;
    n2.sql("ALTER SYSTEM SET wal_keep_size = 0").await;
    n2.sql("SELECT pg_reload_conf()").await;
    for _ in 0..3 {
        write(&n1).await;
        n1.sql("CHECKPOINT").await;
        caught_up(&n2, &n1).await;
        n2.sql("CHECKPOINT").await;
    }
    assert!(slot(&n2.running().await, "n3").lost, "{:?}", n2.running().await.slots);
    n2.instance.align_slots(&names("n1 n3"), true).await.unwrap();
    let running = n2.running().await;
    assert!(!slot(&running, "n3").lost && slot(&running, "n3").restart.is_some(), "{running:?}");
}

#[tokio::test]
async fn a_standby_streams_from_a_standby_and_from_the_primary_again_without_a_restart() {
    let n1 = Server::primary("n1").await;
    let n2 = Server::standby(&n1, "n2").await;
    let n3 = Server::standby(&n1, "n3").await;
    n2.instance.align_slots(&names("n1 n3"), true).await.unwrap();
    let postmaster = pid(&n3).await;
    n3.instance.follow(&n2.upstream()).await.unwrap();
    n3.streams().await;
    let streams_from = async |upstream: &Server| {
        upstream
            .until("a walsender", |state| match state {
                PostgresState::Running(running) => running
                    .standbys
                    .iter()
                    .any(|standby| standby.name == "n3" && standby.state == "streaming"),
                _ => false,
            })
            .await;
    };
    streams_from(&n2).await;
    assert!(slot(&n2.running().await, "n3").active);
    // Its slot on the primary is moved on by the primary's agent.
    write(&n1).await;
    caught_up(&n3, &n1).await;
    let (received, before) = (n3.running().await.received, slot(&n1.running().await, "n3").restart.unwrap());
    n1.instance.move_slots(&BTreeMap::from([("n3".parse().unwrap(), received)])).await.unwrap();
    assert!(before < received);
    assert_eq!(slot(&n1.running().await, "n3").restart, Some(received));
    // Nor does aligning take the slot away through which it streams.
    n2.instance.align_slots(&names("n1"), true).await.unwrap();
    assert!(slot(&n2.running().await, "n3").active);

    n2.instance.fence().await.unwrap();
    n3.instance.follow(&n1.upstream()).await.unwrap();
    streams_from(&n1).await;
    write(&n1).await;
    caught_up(&n3, &n1).await;
    assert_eq!(pid(&n3).await, postmaster);
}

/// Ends with the test.
struct Child(std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        let _of_one_that_ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[tokio::test]
async fn a_subscriber_that_confirms_nothing_does_not_keep_a_primary_from_stopping_in_order() {
    const DEADLINE: Duration = Duration::from_secs(9);
    let n1 = Server::initialised("n1").await;
    n1.configure_more("wal_level = logical\n");
    n1.instance.start_primary(&Commits::Free).await.unwrap();
    n1.sql("CREATE TABLE t (i int)").await;
    n1.sql("SELECT pg_create_logical_replication_slot('s', 'test_decoding')").await;
    let mut subscriber = Command::new(bin_dir().join("pg_recvlogical"));
    subscriber.args(["--start", "--slot=s", "--file=-", "-U", "postgres", "-d", "postgres", "-h"]);
    subscriber.arg(n1.root()).args(["-p", &n1.settings.address.port.to_string()]);
    let subscriber = Child(subscriber.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let active =
        async || n1.text("SELECT (count(*) FILTER (WHERE active))::text FROM pg_replication_slots").await;
    while active().await != "1" {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    signal(subscriber.0.id(), Signal::STOP);
    n1.sql("INSERT INTO t VALUES (1)").await;
    let begun = now();
    n1.instance.stop_fast(DEADLINE).await.unwrap();
    assert!(now().since(begun) < DEADLINE, "and it was not killed for it");
    assert!(n1.instance.observe().await.stopped().is_some_and(|stopped| stopped.clean));
}
