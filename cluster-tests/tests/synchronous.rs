//! What an application sees of synchronous replication.

use std::time::Duration;

use pgherd_cluster_tests::postgres::APP;
use pgherd_cluster_tests::process::{self, Signal};
use pgherd_cluster_tests::workload::Writer;
use pgherd_cluster_tests::{Cluster, TestResult, wait_until};

const SOON: Duration = Duration::from_secs(30);
/// Cancels what the application waits for a standby with, and tells when that began.
const CANCEL: &str = "SELECT query_start::text, pg_cancel_backend(pid) FROM pg_stat_activity \
    WHERE wait_event = 'SyncRep' AND usename = 'app'";
/// Whether it waits with something that began after that.
const NEXT: &str = "SELECT FROM pg_stat_activity \
    WHERE wait_event = 'SyncRep' AND usename = 'app' AND query_start > $1::text::timestamptz";

/// PostgreSQL answers a commit whose wait was cancelled as if it had succeeded, with a warning.
#[tokio::test]
async fn a_commit_that_waits_for_a_standby_is_not_acknowledged_by_cancelling_it() -> TestResult {
    let cluster = Cluster::for_test("cancelled-wait").synchronous(true).start().await?;
    let writer = Writer::start(&cluster, "cancelled").await?;
    writer.until_written(20, SOON).await?;
    let senders = cluster.node("server1").walsenders();
    assert_eq!(senders.len(), 2);
    senders.iter().for_each(|sender| process::signal(*sender, Signal::STOP));
    let superuser = cluster.connect_server("server1", APP).await?;
    let cancelled = async {
        let begun: String = wait_until("a commit waits for a standby", SOON, async || {
            let rows = superuser.query(CANCEL, &[]).await.map_err(|error| error.to_string())?;
            rows.first().map(|row| row.get(0)).ok_or("none does".to_owned())
        })
        .await?;
        // A standby that answers before the cancelled commit notices would make it a common one.
        wait_until("the next commit waits for a standby", SOON, async || {
            let rows = superuser.query(NEXT, &[&begun]).await.map_err(|error| error.to_string())?;
            if rows.is_empty() { Err("none does".to_owned()) } else { Ok(()) }
        })
        .await
    };
    let cancelled = cancelled.await;
    senders.iter().for_each(|sender| process::signal(*sender, Signal::CONT));
    cancelled?;
    writer.until_written(20, SOON).await?;
    let outcome = writer.finish(&cluster).await?;
    assert_eq!(outcome.errors.get("a warning"), Some(&1), "{outcome:?}");
    assert_eq!((outcome.errors.len(), outcome.lost.len()), (1, 0), "{outcome:?}");
    Ok(cluster.finish(&[])?)
}
