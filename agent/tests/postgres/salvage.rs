//! What a killed primary has left goes to a standby that never received it.

use pgherd_agent::observation::PostgresState;
use pgherd_agent::postgres::{Rejoined, SalvageError};
use pgherd_agent::salvage::LeftWal;
use pgherd_common::{Lsn, Timeline};

use super::server::Server;
use super::took;

/// A primary that was killed with rows that its standby, cut off before, has not.
async fn left_behind() -> (Server, Server, LeftWal) {
    let n1 = Server::primary("n1").await;
    n1.sql("CREATE TABLE t (i int)").await;
    let n2 = Server::standby(&n1, "n2").await;
    assert_eq!(n1.instance.observe().await.running().unwrap().standbys.len(), 1);
    // Something was sent: its WAL does not end with a page of the backup.
    n1.sql("SELECT pg_logical_emit_message(true, 'test', 'sent')").await;
    let sent = n1.running().await.position;
    n2.until("the first WAL", |state| matches!(state, PostgresState::Running(r) if r.received >= sent)).await;
    n2.instance.recruit().await.unwrap();
    // More than one answer of an agent can hold, and many segments.
    n1.sql("INSERT INTO t SELECT generate_series(1, 150000)").await;
    n1.sql("SELECT pg_switch_wal(); INSERT INTO t VALUES (0)").await;
    n1.instance.fence().await.unwrap();
    let left = n1.instance.observe().await.stopped().unwrap().left.unwrap();
    (n1, n2, left)
}

#[tokio::test]
async fn what_a_killed_primary_left_is_taken_over_to_the_last_record() {
    let (n1, n2, left) = left_behind().await;
    let received = n2.running().await.received;
    assert!(left.timeline == Timeline(1) && left.end.bytes_since(received) > 5 << 20, "{left:?} {received}");

    let fetch = |from, length| n1.instance.read_left_wal(left.timeline, from, length);
    let begun = super::now();
    let replayed = n2.instance.salvage(left, fetch).await.unwrap();
    took("salvage of 150,000 rows", begun);
    assert_eq!(replayed, left.end);
    let salvaged = n2.running().await;
    assert_eq!((salvaged.position, salvaged.received), (left.end, left.end));
    assert_eq!(n2.text("SELECT count(*)::text FROM t").await, "150001");
    assert_eq!(n2.instance.salvage(left, fetch).await.unwrap(), left.end, "nothing more to do");

    // The end was the end: nothing behind it is valid, and nothing of it was left out.
    assert_eq!(n2.instance.promote().await.unwrap(), Timeline(2));
    assert_eq!(n2.running().await.history.0, [(Timeline(1), left.end)]);
    n2.sql("INSERT INTO t VALUES (-1)").await;
    n2.instance.checkpoint().await.unwrap();
    n2.instance.align_slots(&["n1".parse().unwrap()].into(), false).await.unwrap();
    // What it has, the new primary has as well: there is nothing to rewind.
    let begun = super::now();
    let rejoined = n1.instance.rejoin(&n2.upstream(), &n2.running().await).await.unwrap();
    n1.streams().await;
    took("rejoin after a crash, nothing to rewind", begun);
    assert_eq!(rejoined, Rejoined::AsWas);
    let position = n2.running().await.position;
    n1.until("replay", |state| matches!(state, PostgresState::Running(r) if r.position >= position)).await;
    assert_eq!(n1.text("SELECT count(*)::text FROM t").await, "150002");
}

#[tokio::test]
async fn wal_that_does_not_go_on_where_the_standby_is_changes_nothing() {
    let (n1, n2, left) = left_behind().await;
    let received = n2.running().await.received;
    let fetch = async |from: Lsn, length| {
        let mut bytes = n1.instance.read_left_wal(left.timeline, from, length).await?;
        // In the page where the standby's own WAL ends.
        if from < received {
            bytes[30] ^= 1;
        }
        Ok::<_, std::io::Error>(bytes)
    };
    let error = n2.instance.salvage(left, fetch).await.unwrap_err();
    assert!(matches!(error, SalvageError::Differs(at) if at == received), "{error}");
    let short = async |_, _| Ok::<_, std::io::Error>(Vec::new());
    let error = n2.instance.salvage(left, short).await.unwrap_err();
    assert!(matches!(error, SalvageError::Short(_)), "{error}");
    assert_eq!(n2.running().await.received, received);

    // What cannot be read ends the WAL, as it would after a crash.
    let damaged = async |from: Lsn, length| {
        let mut bytes = n1.instance.read_left_wal(left.timeline, from, length).await?;
        if let Some(byte) = usize::try_from(left.end.0 - from.0 - 12).ok().and_then(|at| bytes.get_mut(at)) {
            *byte ^= 1;
        }
        Ok::<_, std::io::Error>(bytes)
    };
    let replayed = n2.instance.salvage(left, damaged).await.unwrap();
    assert!(replayed < left.end && left.end.bytes_since(replayed) < 1000, "{replayed} of {}", left.end);
    n2.instance.promote().await.unwrap();
    assert_eq!(n2.running().await.history.0, [(Timeline(1), replayed)]);
}

#[tokio::test]
async fn only_a_dead_primary_gives_and_only_a_recruited_standby_takes() {
    let n1 = Server::primary("n1").await;
    let n2 = Server::standby(&n1, "n2").await;
    let left = LeftWal { timeline: Timeline(1), end: Lsn(n1.running().await.position.0 + 1000) };
    let fetch = |from, length| n1.instance.read_left_wal(left.timeline, from, length);
    let error = n2.instance.salvage(left, fetch).await.unwrap_err();
    assert!(matches!(error, SalvageError::NotRecruited), "{error}");
    n2.instance.recruit().await.unwrap();
    let error = n2.instance.salvage(left, fetch).await.unwrap_err();
    assert!(
        matches!(&error, SalvageError::Fetch(source) if source.to_string() == "PostgreSQL runs"),
        "{error}"
    );
    n1.instance.stop_fast(std::time::Duration::from_secs(10)).await.unwrap();
    assert_eq!(n1.instance.observe().await.stopped().unwrap().left, None, "stopped in order, it sent all");
    n2.instance.fence().await.unwrap();
    assert_eq!(
        n2.instance.observe().await.stopped().unwrap().left,
        None,
        "a standby has left nothing of its own"
    );
}
