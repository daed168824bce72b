//! A standby that has been behind for too long gets no reads, says why, and gets them again.

use std::time::Duration;

use pgherd_cluster_tests::{Cluster, TestResult, wait_until};

const SOON: Duration = Duration::from_secs(30);

/// What the proxy shows of a node.
async fn shown(cluster: &Cluster, node: &str, column: &str) -> Result<String, String> {
    let rows = cluster.show(0, "SHOW NODES").await.map_err(|error| error.to_string())?;
    let row = rows.iter().find(|row| row.get("name").is_some_and(|name| name == node));
    row.and_then(|row| row.get(column)).cloned().ok_or_else(|| format!("{rows:?}"))
}

async fn reason(cluster: &Cluster, node: &str) -> Result<String, String> {
    shown(cluster, node, "reason").await
}

/// How often the server itself ran the query.
async fn reads(cluster: &Cluster, node: &str) -> Result<i64, tokio_postgres::Error> {
    let sql = "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements WHERE query LIKE 'SELECT count(*) FROM t'";
    Ok(cluster.connect_server(node, "app").await?.query_one(sql, &[]).await?.get(0))
}

#[tokio::test]
async fn a_standby_that_is_behind_for_too_long_leaves_the_rotation() -> TestResult {
    let routing = "[routing]\nread_consistency = 'eventual'\nmax_lag_time = '1s'";
    let cluster = Cluster::for_test("lag").proxy_settings(routing).start().await?;
    let client = cluster.connect().await?;
    client.batch_execute("CREATE TABLE t (a int)").await?;
    let standby = cluster.connect_server("server2", "postgres").await?;
    standby.batch_execute("SELECT pg_wal_replay_pause()").await?;
    let said = wait_until("server2 is said to be behind", SOON, async || {
        client.batch_execute("INSERT INTO t VALUES (1)").await.map_err(|error| error.to_string())?;
        let said = reason(&cluster, "server2").await?;
        if said.is_empty() { Err("no reason is told".to_owned()) } else { Ok(said) }
    });
    let said = said.await?;
    assert!(said.contains("routing.max_lag_time"), "{said}");
    assert_eq!(reason(&cluster, "server3").await, Ok(String::new()));
    let before = reads(&cluster, "server2").await?;
    for _ in 0..100 {
        client.query_one("SELECT count(*) FROM t", &[]).await?;
    }
    assert_eq!(reads(&cluster, "server2").await?, before);
    standby.batch_execute("SELECT pg_wal_replay_resume()").await?;
    wait_until("server2 is well again", SOON, async || match reason(&cluster, "server2").await?.as_str() {
        "" => Ok(()),
        said => Err(said.to_owned()),
    })
    .await?;
    Ok(cluster.finish(&[])?)
}
