//! What recruiting a standby promises: from then on its old primary gets no acknowledgement from it,
//! whatever the two of them were doing at that moment.

use std::time::Duration;

use pgherd_agent::postgres::Instance;
use rustix::process::Signal;
use tokio_postgres::Client;

use crate::server::{Server, now, pg};
use crate::{pid, signal, took};

/// A primary that acknowledges nothing without its one standby.
async fn synchronous_pair() -> (Server, Server) {
    let n1 = Server::primary("n1").await;
    n1.sql("CREATE TABLE t (i int)").await;
    let n2 = Server::standby(&n1, "n2").await;
    n1.sql("ALTER SYSTEM SET synchronous_standby_names = '*'").await;
    n1.sql("SELECT pg_reload_conf()").await;
    let sync = "SELECT count(*)::text FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')";
    while n1.text(sync).await != "1" {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(is_acknowledged(&n1.connect().await, 0).await, "a commit is acknowledged by the standby");
    (n1, n2)
}

/// Whether the primary acknowledges one more commit; one that hangs for a second does not.
async fn is_acknowledged(client: &Client, number: i32) -> bool {
    let sql = format!("INSERT INTO t VALUES ({number})");
    let answer = tokio::time::timeout(Duration::from_secs(1), client.batch_execute(&sql)).await;
    answer.is_ok_and(|result| {
        result.unwrap();
        true
    })
}

/// Recruits while a writer hammers on the primary, and holds every acknowledgement against what the
/// standby said it had when it was recruited.
async fn nothing_more_is_acknowledged(n1: &Server, n2: &Server) {
    let writer = n1.connect().await;
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let hammering = tokio::spawn(async move {
        let mut last = 0;
        for number in 1.. {
            let sql = format!("INSERT INTO t VALUES ({number})");
            tokio::select! {
                done = writer.batch_execute(&sql) => done.unwrap(),
                _ = stopped.changed() => return (last, writer),
            }
            last = number;
        }
        (last, writer)
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let begun = now();
    n2.instance.recruit().await.unwrap();
    took("recruit under synchronous writes", begun);
    let position = n2.running().await.received;
    // Long enough for anything that could still connect or flush.
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.send(true).unwrap();
    let (last, _writer) = hammering.await.unwrap();
    assert!(last > 5, "the writer got through before");
    let running = n2.running().await;
    assert_eq!(running.received, position, "nothing has arrived since");
    assert_eq!((running.follows, running.receiver), (None, None));
    let there = n2.text("SELECT max(i)::text FROM t").await.parse::<i32>().unwrap();
    assert!(there >= last, "commit {last} was acknowledged, the standby has no more than {there}");
    assert!(!is_acknowledged(&n1.connect().await, -1).await, "a commit was acknowledged after the recruit");
}

#[tokio::test]
async fn after_a_recruit_nothing_is_acknowledged_for_the_old_primary() {
    let (n1, n2) = synchronous_pair().await;
    nothing_more_is_acknowledged(&n1, &n2).await;
    // Nor does a restart by hand undo it: the promise is in a file that was synced.
    let data = n2.settings.data_dir.to_str().unwrap();
    let log = n2.root().join("by-hand.log");
    pg("pg_ctl", &["restart", "-w", "-m", "fast", "-D", data, "-l", log.to_str().unwrap()]);
    assert_eq!(n2.running().await.follows, None);
    assert!(!is_acknowledged(&n1.connect().await, -2).await);
    let own = std::fs::read_to_string(n2.settings.data_dir.join("pgherd.conf")).unwrap();
    assert!(own.contains("primary_conninfo = ''"), "{own}");
    // Neither does another agent process on the same node.
    let other = Instance::open(n2.settings.clone()).await.unwrap();
    assert!(other.observe().await.running().is_some_and(|running| running.follows.is_none()));
    assert!(!is_acknowledged(&n1.connect().await, -3).await);
}

#[tokio::test]
async fn a_frozen_walreceiver_does_not_outlive_a_recruit() {
    let (n1, n2) = synchronous_pair().await;
    let receiver = n2.text("SELECT pid::text FROM pg_stat_wal_receiver").await.parse().unwrap();
    signal(receiver, Signal::STOP);
    assert!(!is_acknowledged(&n1.connect().await, -1).await, "frozen, it acknowledges nothing");
    // It is made to go on and to end at once; what it still has in hand counts as received before.
    let begun = now();
    n2.instance.recruit().await.unwrap();
    let time = took("recruit with a frozen walreceiver", begun);
    assert!(time < Duration::from_secs(2), "{time:?}");
    assert_eq!(n2.running().await.receiver, None);
    assert!(!is_acknowledged(&n1.connect().await, -2).await);
}

#[tokio::test]
async fn a_frozen_walsender_does_not_hold_a_recruit_up() {
    let (n1, n2) = synchronous_pair().await;
    let sender = n1.text("SELECT pid::text FROM pg_stat_replication").await.parse().unwrap();
    signal(sender, Signal::STOP);
    let begun = now();
    n2.instance.recruit().await.unwrap();
    let time = took("recruit with a frozen walsender", begun);
    assert!(time < Duration::from_secs(2), "{time:?}");
    signal(sender, Signal::CONT);
    assert!(!is_acknowledged(&n1.connect().await, -1).await);
}

#[tokio::test]
async fn a_recruit_between_two_attempts_to_connect_is_final() {
    let (n1, n2) = synchronous_pair().await;
    // The walreceiver is ended again and again: a recruit comes between its end and its next start
    // (wal_retrieve_retry_interval) as often as at any other moment.
    for _ in 0..6 {
        end_walreceiver(&n2).await;
        n2.instance.recruit().await.unwrap();
        let position = n2.running().await.received;
        assert!(!is_acknowledged(&n1.connect().await, -1).await);
        assert_eq!(n2.running().await.received, position);
        n2.instance.follow(&n1.upstream()).await.unwrap();
        n2.streams().await;
    }
}

#[tokio::test]
async fn what_somebody_else_sets_does_not_undo_a_recruit() {
    let (n1, n2) = synchronous_pair().await;
    let primary = format!("host=127.0.0.1 port={} user=postgres", n1.settings.address.port);
    // Before it, after it, and after it with a restart: pgherd.conf comes last in postgresql.conf, but
    // postgresql.auto.conf comes after that.
    n2.sql(&format!("ALTER SYSTEM SET primary_conninfo = '{primary}'")).await;
    n2.sql("SELECT pg_reload_conf()").await;
    let before = n2.instance.recruit().await;
    println!("recruit with ALTER SYSTEM before it: {before:?}");
    assert!(before.is_ok(), "{before:?}");
    assert!(!is_acknowledged(&n1.connect().await, -1).await);

    n2.sql(&format!("ALTER SYSTEM SET primary_conninfo = '{primary}'")).await;
    n2.sql("SELECT pg_reload_conf()").await;
    n2.streams().await;
    let running = n2.running().await;
    assert_eq!(running.follows.as_ref(), Some(&n1.settings.address), "a look tells: {running:?}");
    let postmaster = pid(&n2).await;
    n2.instance.recruit().await.unwrap();
    assert_eq!((pid(&n2).await, n2.running().await.receiver), (postmaster, None));
    assert!(!is_acknowledged(&n1.connect().await, -2).await);
}

/// Sets it where a DBA does: before the line that includes the agent's settings.
fn archive(server: &Server, restore_command: &str) {
    let text = std::fs::read_to_string(&server.settings.config_file).unwrap();
    let text = format!("restore_command = '{restore_command}'\n{text}");
    std::fs::write(&server.settings.config_file, text).unwrap();
}

/// pg_terminate_backend does not know walreceivers.
async fn end_walreceiver(server: &Server) {
    let pid = server.text("SELECT coalesce(max(pid), 0)::text FROM pg_stat_wal_receiver").await;
    if pid != "0" {
        signal(pid.parse().unwrap(), Signal::TERM);
    }
}

async fn restoring(server: &Server) {
    server.sql("SELECT pg_reload_conf()").await;
    let busy = "SELECT count(*)::text FROM pg_stat_activity WHERE wait_event = 'RestoreCommand'";
    while server.text(busy).await != "1" {
        // The archive is asked when there is no walreceiver; the first to end may come before the reload.
        end_walreceiver(server).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_slow_archive_does_not_stand_in_the_way_of_a_promotion() {
    let (n1, n2) = synchronous_pair().await;
    archive(&n2, "sleep 0.3; false");
    n1.instance.fence().await.unwrap();
    // From now on it is asked again and again, without a pause.
    restoring(&n2).await;
    let begun = now();
    n2.instance.recruit().await.unwrap();
    let time = took("recruit with a restore_command of 300 ms", begun);
    assert!(time < Duration::from_secs(1), "{time:?}");
    assert_eq!(n2.text("SHOW restore_command").await, "");
    let begun = now();
    n2.instance.promote().await.unwrap();
    let time = took("promotion after it", begun);
    assert!(time < Duration::from_secs(1), "{time:?}");
    n2.sql("INSERT INTO t VALUES (1)").await;
}

#[tokio::test]
async fn an_archive_that_hangs_costs_a_recruit_two_seconds() {
    let (n1, n2) = synchronous_pair().await;
    archive(&n2, "sleep 3; false");
    restoring(&n2).await;
    let begun = now();
    n2.instance.recruit().await.unwrap();
    let time = took("recruit with a restore_command of 3 s", begun);
    assert!(time < Duration::from_secs(3), "{time:?}");
    assert!(!is_acknowledged(&n1.connect().await, -1).await);
    // Whoever follows somebody has the DBA's archive again.
    n2.instance.follow(&n1.upstream()).await.unwrap();
    assert_eq!(n2.text("SHOW restore_command").await, "sleep 3; false");
    n2.instance.recruit().await.unwrap();
    n1.instance.fence().await.unwrap();
    n2.instance.promote().await.unwrap();
    n2.sql("INSERT INTO t VALUES (1)").await;
}

#[tokio::test]
async fn an_archive_that_a_backup_tool_set_stays_and_does_no_harm() {
    let (n1, n2) = synchronous_pair().await;
    n2.sql("ALTER SYSTEM SET restore_command = 'sleep 0.3; false'").await;
    restoring(&n2).await;
    n2.instance.recruit().await.unwrap();
    assert_eq!(n2.text("SHOW restore_command").await, "sleep 0.3; false");
    assert!(!is_acknowledged(&n1.connect().await, -1).await);
    n1.instance.fence().await.unwrap();
    n2.instance.promote().await.unwrap();
    n2.sql("INSERT INTO t VALUES (1)").await;
}
