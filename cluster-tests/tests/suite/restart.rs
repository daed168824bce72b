//! Restarts that operators ask for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pgherd_cluster_tests::logs::CLIENT_LOST;
use pgherd_cluster_tests::postgres::APP;
use pgherd_cluster_tests::workload::Writer;
use pgherd_cluster_tests::{Cluster, TestResult, wait_until};
use tokio_postgres::Client;

const SOON: Duration = Duration::from_secs(30);

async fn setting(cluster: &Cluster, node: &str, name: &str) -> Result<String, tokio_postgres::Error> {
    let row = cluster.connect_server(node, APP).await?.query_one(&format!("SHOW {name}"), &[]).await?;
    Ok(row.get(0))
}

/// Reads in one session until it is told to stop, and returns how often.
async fn read(client: Client, stop: Arc<AtomicBool>) -> Result<u64, tokio_postgres::Error> {
    let mut reads = 0;
    while !stop.load(Ordering::Relaxed) {
        client.query_one("SELECT count(*) FROM writer_restart", &[]).await?;
        reads += 1;
    }
    Ok(reads)
}

#[tokio::test]
async fn one_node_after_the_other_is_restarted_and_no_client_gets_an_error() -> TestResult {
    let mut cluster = Cluster::for_test("restart").start().await?;
    let before = cluster.status().await?;
    let nothing = cluster.cli("server4", &["restart", "--pending", "--yes"]).await?;
    assert_eq!(
        (nothing.code, nothing.out.as_str()),
        (0, "no node has a changed setting that waits for a restart\n")
    );
    let writer = Writer::start(&cluster, "restart").await?;
    writer.until_written(100, SOON).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn(read(cluster.connect().await?, Arc::clone(&stop)));

    // Two nodes have a setting that waits for it.
    for node in ["server1", "server2"] {
        let superuser = cluster.connect_server(node, "postgres").await?;
        superuser.batch_execute("ALTER SYSTEM SET max_pred_locks_per_transaction = 65").await?;
        superuser.execute("SELECT pg_reload_conf()", &[]).await?;
        wait_until("the setting waits for a restart", SOON, async || {
            let said = cluster.cli(node, &["node-status"]).await.map_err(|error| error.to_string())?;
            let told =
                said.out.contains("restart pending for max_pred_locks_per_transaction (restart --pending)");
            if told { Ok(()) } else { Err(said.out) }
        })
        .await?;
    }
    let postmasters =
        |cluster: &Cluster| ["server1", "server2", "server3"].map(|node| cluster.node(node).postmaster());
    let old = postmasters(&cluster);
    let asked = cluster.cli("server4", &["restart"]).await?;
    assert!(asked.code == 1 && asked.err.contains("no terminal"), "{asked:?}");
    let restarted = cluster.cli("server4", &["restart", "--pending", "--yes"]).await?;
    assert_eq!(restarted.code, 0, "{restarted:?}");
    let lines: Vec<&str> = restarted.out.lines().collect();
    assert_eq!(lines[0], "restart of standby server2 begun", "{restarted:?}");
    assert!(lines[1].starts_with("server2 is back in service after "), "{restarted:?}");
    assert_eq!(lines[2], "restart of primary server1 begun", "{restarted:?}");
    assert!(restarted.out.contains("server1 is the primary (generation 2, timeline 1)."), "{restarted:?}");
    let new = postmasters(&cluster);
    assert!(old[0] != new[0] && old[1] != new[1] && old[2] == new[2], "{old:?} {new:?}");
    writer.until_written(100, SOON).await?;
    cluster.until_healthy(SOON).await?;
    for (node, value) in [("server1", "65"), ("server2", "65"), ("server3", "64")] {
        assert_eq!(setting(&cluster, node, "max_pred_locks_per_transaction").await?, value, "{node}");
    }
    let after = cluster.status().await?;
    assert_eq!((after.generation, after.primary()), (before.generation + 1, Some("server1")));
    let history = cluster.cli("server4", &["history"]).await?;
    assert!(history.out.contains("completed  an operator asked for a restart"), "{history:?}");

    let all = cluster.cli("server2", &["restart", "--yes"]).await?;
    assert_eq!(all.code, 0, "{all:?}");
    let last = postmasters(&cluster);
    assert!((0..3).all(|node| last[node] != new[node]), "{new:?} {last:?}");
    cluster.until_healthy(SOON).await?;

    let witness = cluster.cli("server1", &["restart", "server4", "--yes"]).await?;
    assert!(witness.code == 1 && witness.err.contains("server4 is a witness"), "{witness:?}");
    let paused = cluster.cli("server1", &["pause", "--node", "server2"]).await?;
    assert_eq!(paused.code, 0, "{paused:?}");
    let refused = cluster.cli("server1", &["restart", "server2", "--yes"]).await?;
    assert!(refused.code == 1 && refused.err.contains("server2 is paused until 20"), "{refused:?}");

    stop.store(true, Ordering::Relaxed);
    let reads = reader.await??;
    assert!(reads > 100, "{reads}");
    let outcome = writer.finish(&cluster).await?;
    assert!(outcome.lost.is_empty() && outcome.duplicated.is_empty(), "{outcome:?}");
    assert!(
        outcome.errors.is_empty() && outcome.sessions_lost == 0,
        "a restart costs nobody an error: {outcome:?}"
    );
    Ok(cluster.finish(&[CLIENT_LOST])?)
}
