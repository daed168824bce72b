//! Where the proxy sends what: writes to the primary, reads to the standbys by weight, and what it
//! does when a standby fails or is taken out.

use std::collections::BTreeMap;
use std::time::Duration;

use pgherd_cluster_tests::logs::CLIENT_LOST;
use pgherd_cluster_tests::process::{Signal, wait_gone};
use pgherd_cluster_tests::workload::pgbench;
use pgherd_cluster_tests::{Cluster, Failure, TestResult, wait_until};

const SOON: Duration = Duration::from_secs(30);
const SERVERS: [&str; 3] = ["server1", "server2", "server3"];
const MODES: [&str; 3] = ["simple", "extended", "prepared"];

/// Forgets what every server has executed.
async fn forget(cluster: &Cluster) -> TestResult {
    for server in SERVERS {
        cluster
            .connect_server(server, "app")
            .await?
            .batch_execute("SELECT pg_stat_statements_reset()")
            .await?;
    }
    Ok(())
}

/// How often each server has executed statements that begin like this since it was told to forget.
async fn executed(cluster: &Cluster, beginning: &str) -> Result<BTreeMap<&'static str, i64>, Failure> {
    let mut counts = BTreeMap::new();
    let sql = "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements WHERE query LIKE $1 || '%'";
    for server in SERVERS {
        let row = cluster.connect_server(server, "app").await?.query_one(sql, &[&beginning]).await?;
        counts.insert(server, row.get(0));
    }
    Ok(counts)
}

/// Waits until the proxy shows a node with this value in this column of `SHOW NODES`.
async fn until_shown(cluster: &Cluster, node: &str, column: &str, value: &str) -> TestResult {
    let what = format!("{node} is shown with {column} = {value}");
    let shown = wait_until(&what, SOON, async || {
        let rows = cluster.show(0, "SHOW NODES").await.map_err(|error| error.to_string())?;
        let row = rows.iter().find(|row| row.get("name").is_some_and(|name| name == node));
        let now = row.and_then(|row| row.get(column));
        if now.is_some_and(|now| now == value) { Ok(()) } else { Err(format!("{rows:?}")) }
    });
    Ok(shown.await?)
}

/// Writes go to the primary, whatever the protocol; nothing is lost or doubled on the way.
async fn writes_go_to_the_primary(cluster: &Cluster) -> TestResult {
    pgbench(cluster, &["-i", "-q", "-s", "1"]).await?;
    for mode in MODES {
        forget(cluster).await?;
        pgbench(cluster, &["-n", "-M", mode, "-c", "4", "-t", "50"]).await?;
        for beginning in ["UPDATE pgbench_accounts", "UPDATE pgbench_tellers", "INSERT INTO pgbench_history"]
        {
            let counts = executed(cluster, beginning).await?;
            assert_eq!(
                counts,
                BTreeMap::from([("server1", 200), ("server2", 0), ("server3", 0)]),
                "{mode}: {beginning}"
            );
        }
    }
    let client = cluster.connect().await?;
    let sums = "SELECT (SELECT count(*) FROM pgbench_history), (SELECT sum(delta) FROM pgbench_history), \
                (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches)";
    let row = client.query_one(sums, &[]).await?;
    let (count, deltas, accounts, branches): (i64, i64, i64, i64) =
        (row.get(0), row.get(1), row.get(2), row.get(3));
    assert_eq!(count, 600);
    assert_eq!((deltas, deltas), (accounts, branches));
    Ok(())
}

/// Server 3 has three times the weight of server 2; the primary has none. One client: the weights alone decide while
/// nothing else is under way.
async fn reads_are_spread_by_weight(cluster: &Cluster) -> TestResult {
    for mode in MODES {
        forget(cluster).await?;
        pgbench(cluster, &["-n", "-S", "-M", mode, "-t", "2000"]).await?;
        let counts = executed(cluster, "SELECT abalance").await?;
        assert_eq!(counts.values().sum::<i64>(), 2000, "{mode}: {counts:?}");
        assert_eq!(counts.get("server1"), Some(&0), "{mode}: {counts:?}");
        let heavy = counts.get("server3").copied().unwrap_or(0);
        assert!((1400..=1600).contains(&heavy), "{mode}: about 1500 of 2000 belong on server3: {counts:?}");
    }
    Ok(())
}

#[tokio::test]
async fn reads_and_writes_find_their_servers() -> TestResult {
    let weights = "[routing]\nprimary_weight = 0\n\n[routing.weights]\nserver2 = 1\nserver3 = 3";
    let builder = Cluster::for_test("routing").proxy_settings(weights);
    let mut cluster = builder.agent_settings("[timings]\nrestart_standby_after = \"0s\"").start().await?;
    writes_go_to_the_primary(&cluster).await?;
    reads_are_spread_by_weight(&cluster).await?;
    let pool_nodes = cluster.show(0, "SHOW POOL_NODES").await?;
    let roles: Vec<_> = pool_nodes.iter().filter_map(|row| row.get("role").map(String::as_str)).collect();
    assert_eq!(roles, ["primary", "standby", "standby"], "{pool_nodes:?}");

    // Detached: it replicates, but gets no more reads.
    let session = cluster.connect().await?;
    let answer = cluster.cli("server1", &["detach", "server3"]).await?;
    assert_eq!(answer.code, 0, "{answer:?}");
    until_shown(&cluster, "server3", "attached", "false").await?;
    forget(&cluster).await?;
    pgbench(&cluster, &["-n", "-S", "-c", "2", "-t", "100"]).await?;
    let counts = executed(&cluster, "SELECT abalance").await?;
    assert_eq!(counts, BTreeMap::from([("server1", 0), ("server2", 200), ("server3", 0)]));
    let answer = cluster.cli("server2", &["attach", "server3"]).await?;
    assert_eq!(answer.code, 0, "{answer:?}");
    until_shown(&cluster, "server3", "attached", "true").await?;

    // A standby crashes: reads go on in the same session, and it is shown as down.
    let killed = cluster.kill_postmaster("server3").ok_or_else(|| Failure::new("server3 does not run"))?;
    for _ in 0..200 {
        session.query_one("SELECT count(*) FROM pgbench_branches", &[]).await?;
    }
    assert!(wait_gone(killed, SOON).await);
    until_shown(&cluster, "server3", "status", "down").await?;
    let answer = cluster.cli("server1", &["resume", "server3"]).await?;
    assert_eq!(answer.code, 0, "{answer:?}");
    until_shown(&cluster, "server3", "status", "up").await?;
    cluster.until_healthy(SOON).await?;

    // A proxy that is started again serves again.
    for signal in [Signal::TERM, Signal::KILL] {
        let proxy = &mut cluster.proxy_mut(0).process;
        proxy.stop(signal, SOON).await?;
        proxy.start()?;
        cluster.until_proxy_serves(0, SOON).await?;
    }
    Ok(cluster.finish(&[CLIENT_LOST])?)
}
