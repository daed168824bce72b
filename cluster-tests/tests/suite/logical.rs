//! Logical replication from a cluster of PostgreSQL 17: its slot survives a failover and a switchover, and the subscriber
//! gets every row once.

use std::time::Duration;

use pgherd_cluster_tests::logs::CLIENT_LOST;
use pgherd_cluster_tests::subscriber::Subscriber;
use pgherd_cluster_tests::workload::Writer;
use pgherd_cluster_tests::{Cluster, Failure, TestResult, versions, wait_until};
use tokio_postgres::Client;

const SOON: Duration = Duration::from_secs(60);

/// Waits until a server answers so.
async fn until(cluster: &Cluster, node: &str, sql: &str, wanted: &str) -> TestResult {
    wait_until(sql, SOON, async || {
        let client = cluster.connect_server(node, "app").await.map_err(|error| error.to_string())?;
        let row = client.query_one(sql, &[]).await.map_err(|error| error.to_string())?;
        let said: Option<String> = row.get(0);
        if said.as_deref() == Some(wanted) { Ok(()) } else { Err(format!("{node} says {said:?}")) }
    })
    .await?;
    Ok(())
}

/// Waits until a standby could be promoted without the subscriber's losing anything.
async fn until_copied(cluster: &Cluster, node: &str) -> TestResult {
    const READY: &str = "SELECT string_agg(slot_name, ',') FROM pg_replication_slots \
                         WHERE failover AND synced AND NOT temporary AND invalidation_reason IS NULL";
    until(cluster, node, READY, "orders").await
}

/// How many rows, and how many different ones.
async fn rows(client: &Client) -> Result<(i64, i64), String> {
    let row = client.query_one("SELECT count(*), count(DISTINCT seq) FROM writer_orders", &[]).await;
    row.map(|row| (row.get(0), row.get(1))).map_err(|error| error.to_string())
}

/// Waits until the subscriber has what the primary has, and finds each row there once.
async fn until_replicated(cluster: &Cluster, subscriber: &Client) -> TestResult {
    let primary = cluster.primary().await?;
    let primary = cluster.connect_server(&primary, "app").await?;
    let (all, _) = rows(&primary).await.map_err(Failure::new)?;
    wait_until("the subscriber has every row", SOON, async || {
        let (count, different) = rows(subscriber).await?;
        assert_eq!(count, different, "a row came twice");
        if count >= all { Ok(()) } else { Err(format!("{count} of {all}")) }
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_logical_slot_survives_a_failover_and_a_switchover() -> TestResult {
    let programs = versions::programs_of(17).await?;
    let builder = Cluster::for_test("logical").pg_bin(Some(programs.clone()));
    // Without its version's pg_rewind the old primary cannot come back.
    let builder = builder
        .postgres_settings("wal_level = logical\n")
        .agent_settings("[failover]\nrejoin = \"manual\"\n");
    let mut cluster = builder.start().await?;
    let conf = cluster.node("server2").postgres.as_ref().map(|server| server.data_dir.join("pgherd.conf"));
    let conf = conf.ok_or_else(|| Failure::new("server2 has no PostgreSQL"))?;
    assert!(
        !std::fs::read_to_string(&conf)?.contains("sync_replication_slots"),
        "nobody has asked for it yet"
    );

    let writer = Writer::start(&cluster, "orders").await?;
    let primary = cluster.connect_server("server1", "app").await?;
    primary.batch_execute("CREATE PUBLICATION orders FOR TABLE writer_orders").await?;
    let server = Subscriber::start(&cluster, &programs).await?;
    let subscriber = server.connect().await?;
    subscriber.batch_execute("CREATE TABLE writer_orders (seq bigint)").await?;
    let subscribe = format!(
        "CREATE SUBSCRIPTION orders CONNECTION '{}' PUBLICATION orders WITH (failover = true)",
        Subscriber::publisher(&cluster)
    );
    subscriber.batch_execute(&subscribe).await?;
    for node in ["server2", "server3"] {
        until_copied(&cluster, node).await?;
    }
    const HELD_BACK: &str = "SHOW synchronized_standby_slots";
    until(&cluster, "server1", HELD_BACK, "pgherd_server2, pgherd_server3").await?;
    writer.until_written(200, SOON).await?;
    until_replicated(&cluster, &subscriber).await?;
    cluster.until_healthy(SOON).await?;

    // A standby that is down holds no subscriber up for long.
    cluster.kill_postmaster("server3");
    until(&cluster, "server1", HELD_BACK, "pgherd_server2").await?;
    writer.until_written(50, SOON).await?;
    until_replicated(&cluster, &subscriber).await?;
    until(&cluster, "server1", HELD_BACK, "pgherd_server2, pgherd_server3").await?;
    until_copied(&cluster, "server3").await?;

    cluster.kill_postmaster("server1");
    let new = cluster.until("another primary", SOON, |status| {
        status.primary().filter(|name| *name != "server1").map(str::to_owned)
    });
    let new = new.await?;
    let other = if new == "server2" { "server3" } else { "server2" };
    writer.until_written(200, SOON).await?;
    until_replicated(&cluster, &subscriber).await?;
    until(&cluster, &new, HELD_BACK, &format!("pgherd_{other}")).await?;
    until_copied(&cluster, other).await?;

    let answer = cluster.cli("server4", &["promote", "--switchover", "--to", other]).await?;
    assert_eq!(answer.code, 0, "{answer:?}");
    writer.until_written(200, SOON).await?;
    until_replicated(&cluster, &subscriber).await?;
    let outcome = writer.finish(&cluster).await?;
    assert!(outcome.lost.is_empty() && outcome.duplicated.is_empty(), "{outcome:?}");
    until_replicated(&cluster, &subscriber).await?;

    // With the last such slot all of it goes.
    subscriber.batch_execute("DROP SUBSCRIPTION orders").await?;
    until(&cluster, other, HELD_BACK, "").await?;
    until(&cluster, &new, "SHOW sync_replication_slots", "off").await?;
    server.stop().await?;
    Ok(cluster.finish(&[CLIENT_LOST])?)
}
