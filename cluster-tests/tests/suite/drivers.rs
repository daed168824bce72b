//! The drivers that applications use do through the proxy what they do with one server, while it shares
//! their reads out to the standbys.

use std::pin::pin;
use std::time::Duration;

use futures_util::{SinkExt, TryStreamExt, future::try_join_all};
use pgherd_cluster_tests::drivers::{Driver, Target};
use pgherd_cluster_tests::postgres::APP;
use pgherd_cluster_tests::{Cluster, Failure, TestResult, wait_until};
use tokio_postgres::{NoTls, error::SqlState};

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn every_driver_finds_one_server() -> TestResult {
    let builder = Cluster::for_test("drivers").postgres_settings("max_prepared_transactions = 10");
    let mut cluster = builder.start().await?;
    let proxy = cluster.proxy(0);
    let target = Target { host: proxy.place.host.clone(), port: proxy.port, name: APP.to_owned() };
    for driver in Driver::ALL {
        let said = driver.run(&target, &|line| println!("{line}")).await?;
        println!("{said}");
        assert!(said.contains(" checks with "), "{driver:?} said: {said}");
    }
    tokio_postgres(&cluster).await?;
    let mut on_standbys = 0;
    for row in cluster.show(0, "SHOW NODES").await? {
        let count = row.get("select_cnt").and_then(|count| count.parse::<u64>().ok());
        let count = count.ok_or_else(|| Failure::new(format!("no select_cnt in {row:?}")))?;
        on_standbys += if row.get("role").is_some_and(|role| role == "standby") { count } else { 0 };
    }
    println!("{on_standbys} reads went to standbys");
    assert!(on_standbys > 500, "only {on_standbys} reads went to standbys");
    cluster.until_healthy(SOON).await?;
    Ok(cluster.finish(&[])?)
}

/// Rust's own driver: pipelines, portals, binary COPY, errors, cancel.
async fn tokio_postgres(cluster: &Cluster) -> TestResult {
    let mut client = cluster.connect().await?;
    client
        .batch_execute("DROP TABLE IF EXISTS rust_driver; CREATE TABLE rust_driver (id int PRIMARY KEY)")
        .await?;
    let insert = client.prepare("INSERT INTO rust_driver VALUES ($1)").await?;
    // Sent without waiting for the answers in between.
    try_join_all((0..500).map(|id| {
        let (client, insert) = (&client, &insert);
        async move { client.execute(insert, &[&id]).await }
    }))
    .await?;
    let found = client.query_one("SELECT count(*) FROM rust_driver", &[]).await?;
    assert_eq!(found.get::<_, i64>(0), 500);

    let transaction = client.transaction().await?;
    let portal = transaction.bind("SELECT id FROM rust_driver ORDER BY id", &[]).await?;
    let (mut rows, mut rounds) = (0, 0);
    loop {
        let part = transaction.query_portal(&portal, 99).await?;
        if part.is_empty() {
            break;
        }
        (rows, rounds) = (rows + part.len(), rounds + 1);
    }
    assert_eq!((rows, rounds), (500, 6));
    transaction.rollback().await?;

    let mut sink = pin!(client.copy_in("COPY rust_driver FROM STDIN").await?);
    sink.send(bytes::Bytes::from_static(b"1000\n1001\n")).await?;
    assert_eq!(sink.as_mut().finish().await?, 2);
    let out =
        client.copy_out("COPY (SELECT id FROM rust_driver WHERE id >= 1000 ORDER BY id) TO STDOUT").await?;
    let out: Vec<bytes::Bytes> = out.try_collect().await?;
    assert_eq!(out.concat(), b"1000\n1001\n");

    let duplicate = client.execute(&insert, &[&1]).await;
    assert_eq!(duplicate.err().and_then(|error| error.code().cloned()), Some(SqlState::UNIQUE_VIOLATION));
    let cancel = client.cancel_token();
    let sleeping = client.batch_execute("SELECT pg_sleep(30)");
    let superuser = cluster.connect_server("server1", APP).await?;
    let cancelling = async {
        wait_until("a session sleeps", SOON, async || {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND usename = $1";
            let row = superuser.query_one(sql, &[&APP]).await.map_err(|error| error.to_string())?;
            if row.get::<_, i64>(0) == 1 { Ok(()) } else { Err("none does".to_owned()) }
        })
        .await?;
        TestResult::Ok(cancel.cancel_query(NoTls).await?)
    };
    let (slept, cancelled) = tokio::join!(sleeping, cancelling);
    cancelled?;
    assert_eq!(slept.err().and_then(|error| error.code().cloned()), Some(SqlState::QUERY_CANCELED));
    client.batch_execute("SELECT 1").await?;
    Ok(())
}
