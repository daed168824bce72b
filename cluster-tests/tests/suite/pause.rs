//! Maintenance by hand, with the agents looking on.

use std::time::Duration;

use pgherd_cluster_tests::logs::CLIENT_LOST;
use pgherd_cluster_tests::process::{self, Signal, wait_gone};
use pgherd_cluster_tests::workload::Writer;
use pgherd_cluster_tests::{Cluster, Failure, TestResult, never, wait_until};

const SOON: Duration = Duration::from_secs(30);
/// Longer than any failover takes to begin.
const WHILE: Duration = Duration::from_secs(3);

/// A fast stop, as somebody with `pg_ctl` does it.
async fn stop_by_hand(cluster: &Cluster, node: &str) -> Result<(), Failure> {
    let postmaster = cluster.node(node).postmaster().ok_or_else(|| Failure::new("it does not run"))?;
    process::signal(postmaster, Signal::INT);
    if wait_gone(postmaster, SOON).await { Ok(()) } else { Err(Failure::new("it does not stop")) }
}

async fn stays_down(cluster: &Cluster, node: &str) -> TestResult {
    never("PostgreSQL is started or replaced while it is paused", WHILE, async || {
        let postmaster = cluster.node(node).postmaster();
        let writable = cluster.writable().await;
        (postmaster.is_some() || writable.iter().any(|name| *name != "server1"))
            .then(|| format!("{postmaster:?}, writable: {writable:?}"))
    })
    .await?;
    Ok(())
}

async fn start_by_hand(cluster: &Cluster, node: &str) -> TestResult {
    let server = cluster.node(node).postgres.as_ref().ok_or_else(|| Failure::new("a witness"))?;
    Ok(server.start().await?)
}

#[tokio::test]
async fn what_is_paused_is_left_to_the_operator_until_the_pause_is_over() -> TestResult {
    let mut cluster = Cluster::for_test("pause").start().await?;
    let generation = cluster.status().await?.generation;
    let writer = Writer::start(&cluster, "pause").await?;
    writer.until_written(100, SOON).await?;

    // Asked at a node that does not lead, as likely as not.
    let paused = cluster.cli("server1", &["pause", "--for", "10m"]).await?;
    assert!(paused.code == 0 && paused.out.contains("every PostgreSQL is left alone until 20"), "{paused:?}");
    let status = cluster.cli("server4", &["cluster-status"]).await?;
    assert!(status.code == 1 && status.out.contains("Paused: PostgreSQL is left alone until"), "{status:?}");
    let refused = cluster.cli("server2", &["promote", "--switchover"]).await?;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.err.contains("the cluster is paused until 20") && refused.err.contains("pgherd unpause"));

    // The primary is stopped for a moment of work on its machine, and so is a standby.
    for node in ["server1", "server3"] {
        stop_by_hand(&cluster, node).await?;
        stays_down(&cluster, node).await?;
        let said = cluster.cli(node, &["node-status"]).await?;
        assert!(said.code == 1 && said.out.contains("paused until 20"), "{said:?}");
        start_by_hand(&cluster, node).await?;
        writer.until_written(50, SOON).await?;
    }
    assert_eq!(cluster.status().await?.generation, generation);
    let unpaused = cluster.cli("server2", &["unpause"]).await?;
    assert!(unpaused.code == 0 && unpaused.out.contains("the cluster is looked after again"), "{unpaused:?}");
    cluster.until_healthy(SOON).await?;
    assert_eq!(cluster.status().await?.generation, generation);
    let again = cluster.cli("server2", &["unpause"]).await?;
    assert!(again.code == 1 && again.err.contains("the cluster is not paused"), "{again:?}");

    // Nobody comes back from lunch: the pause of the primary's node ends by itself.
    let paused = cluster.cli("server1", &["pause", "--node", "server1", "--for", "6s"]).await?;
    assert!(paused.code == 0 && paused.out.contains("PostgreSQL on server1 is left alone"), "{paused:?}");
    stop_by_hand(&cluster, "server1").await?;
    stays_down(&cluster, "server1").await?;
    let promoted = wait_until("another primary", SOON, async || {
        let status = cluster.status_of("server4").await.map_err(|error| error.to_string())?;
        status.primary().filter(|name| *name != "server1").map(str::to_owned).ok_or_else(|| status.summary())
    });
    promoted.await?;
    writer.until_written(50, SOON).await?;
    let resumed = cluster.cli("server4", &["resume", "server1"]).await?;
    assert_eq!(resumed.code, 0, "{resumed:?}");
    cluster.until_healthy(SOON).await?;
    let outcome = writer.finish(&cluster).await?;
    assert!(outcome.lost.is_empty() && outcome.duplicated.is_empty(), "{outcome:?}");
    assert_eq!(outcome.sessions_lost, 0, "{outcome:?}");
    Ok(cluster.finish(&[CLIENT_LOST])?)
}
