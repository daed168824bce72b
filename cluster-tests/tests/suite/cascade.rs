//! A standby that streams from another standby, the tags of nodes, and the slots of all of them, through failures.

use std::time::Duration;

use pgherd_cluster_tests::logs::CLIENT_LOST;
use pgherd_cluster_tests::workload::Writer;
use pgherd_cluster_tests::{Cluster, Failure, TestResult, wait_until};
use tokio::time::Instant;

const SOON: Duration = Duration::from_secs(60);

#[expect(clippy::print_stdout, reason = "a figure for people")]
fn figure(what: &str, time: Duration) {
    println!("FIGURE {what}: {} ms", time.as_millis());
}

/// The one text that a server answers.
async fn ask(cluster: &Cluster, node: &str, sql: &str) -> Result<String, String> {
    let client = cluster.connect_server(node, "postgres").await.map_err(|error| error.to_string())?;
    let row = client.query_one(sql, &[]).await.map_err(|error| error.to_string())?;
    Ok(row.get::<_, Option<String>>(0).unwrap_or_default())
}

/// Waits until a server answers so.
async fn until(cluster: &Cluster, node: &str, sql: &str, wanted: impl Fn(&str) -> bool) -> TestResult {
    wait_until(sql, SOON, async || {
        let said = ask(cluster, node, sql).await?;
        if wanted(&said) { Ok(()) } else { Err(format!("{node} says {said:?}")) }
    })
    .await?;
    Ok(())
}

/// Who streams from a server.
const FOLLOWERS: &str = "SELECT string_agg(split_part(application_name, '/', 1), ',' ORDER BY application_name) \
                         FROM pg_stat_replication WHERE state = 'streaming'";

async fn feeds(cluster: &Cluster, node: &str, followers: &str) -> TestResult {
    until(cluster, node, FOLLOWERS, |said| said == followers).await
}

async fn restart_lsn(cluster: &Cluster, node: &str, of: &str) -> Result<u64, String> {
    let sql = format!(
        "SELECT (restart_lsn - '0/0')::bigint::text FROM pg_replication_slots WHERE slot_name = 'pgherd_{of}'"
    );
    let said = ask(cluster, node, &sql).await?;
    said.parse().map_err(|_| format!("the slot of {of} on {node} is at {said:?}"))
}

/// Every slot keeps WAL, and moves on with what is written.
async fn slots_move_on(cluster: &Cluster) -> TestResult {
    let all =
        [("server1", "server3"), ("server2", "server3"), ("server3", "server2"), ("server1", "server2")];
    let mut before = Vec::new();
    for (node, of) in all {
        before.push(restart_lsn(cluster, node, of).await.map_err(Failure::new)?);
    }
    for ((node, of), before) in all.into_iter().zip(before) {
        wait_until(&format!("the slot of {of} on {node} moves on"), SOON, async || {
            let now = restart_lsn(cluster, node, of).await?;
            if now > before { Ok(()) } else { Err(format!("it is at {now}")) }
        })
        .await?;
    }
    Ok(())
}

/// One slot for each other member on every server, and no other.
async fn slots_are_complete(cluster: &Cluster) -> TestResult {
    const SLOTS: &str = "SELECT string_agg(slot_name, ',' ORDER BY slot_name) FROM pg_replication_slots \
                         WHERE restart_lsn IS NOT NULL AND wal_status <> 'lost'";
    for node in ["server1", "server2", "server3"] {
        let others = ["server1", "server2", "server3"].into_iter().filter(|other| *other != node);
        let others: Vec<String> = others.map(|other| format!("pgherd_{other}")).collect();
        until(cluster, node, SLOTS, |said| said == others.join(",")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_cascade_its_tags_and_all_slots_through_failures() -> TestResult {
    let builder = Cluster::for_test("cascade").synchronous(true);
    let builder = builder.node_settings("server2", "tags.balance = false\n");
    let own = "upstream = \"server2\"\ntags = { promotable = false, sync = false }\n";
    let mut cluster = builder.node_settings("server3", own).start().await?;
    feeds(&cluster, "server2", "server3").await?;
    feeds(&cluster, "server1", "server2").await?;
    let status = cluster.cli("server4", &["cluster-status"]).await?;
    assert!(status.out.contains("streams from server2; promotable = false; sync = false"), "{status:?}");
    let status = cluster.cli("server3", &["node-status"]).await?;
    assert!(status.out.contains("Streams from: server2"), "{status:?}");
    let refused = cluster.cli("server1", &["set-priority", "server3", "1"]).await?;
    assert!(refused.code == 1 && refused.err.contains("tagged promotable = false"), "{refused:?}");
    // Of the two standbys only one may ever be waited for.
    let waits = ask(&cluster, "server1", "SHOW synchronous_standby_names").await.map_err(Failure::new)?;
    assert!(waits.contains("server2/") && !waits.contains("server3"), "{waits}");

    let writer = Writer::start(&cluster, "cascade").await?;
    writer.until_written(100, SOON).await?;
    slots_move_on(&cluster).await?;

    // Its source crashes, is started again, and takes it back.
    let postmaster = cluster.node("server3").postmaster();
    let begun = Instant::now();
    cluster.kill_postmaster("server2");
    feeds(&cluster, "server1", "server3").await?;
    figure("crash of its source until a cascaded standby streams from the primary", begun.elapsed());
    feeds(&cluster, "server2", "server3").await?;
    figure("crash of its source until it streams from there again", begun.elapsed());
    feeds(&cluster, "server1", "server2").await?;
    cluster.until_healthy(SOON).await?;

    // So when only its agent is gone: nobody knows how it is.
    let begun = Instant::now();
    cluster.kill_agent("server2").await?;
    feeds(&cluster, "server1", "server2,server3").await?;
    figure("loss of its source's agent until a cascaded standby streams from the primary", begun.elapsed());
    cluster.node_mut("server2").agent.start()?;
    feeds(&cluster, "server2", "server3").await?;
    cluster.until_healthy(SOON).await?;
    assert_eq!(cluster.node("server3").postmaster(), postmaster, "all that by reloads");

    // Reads go where they may.
    let client = cluster.connect().await?;
    for _ in 0..50 {
        client.query_one("SELECT count(*) FROM writer_cascade", &[]).await?;
    }
    let shown = cluster.show(0, "SHOW NODES").await?;
    let reads = |name: &str| {
        let row = shown.iter().find(|row| row.get("name").is_some_and(|own| own == name));
        row.and_then(|row| row.get("select_cnt")?.parse::<u64>().ok())
    };
    assert_eq!(reads("server2"), Some(0), "balance = false: {shown:?}");
    assert!(reads("server3").is_some_and(|reads| reads >= 50), "{shown:?}");

    // The primary crashes: what is not promotable is not promoted, and follows.
    writer.until_written(50, SOON).await?;
    let begun = Instant::now();
    cluster.kill_postmaster("server1");
    cluster
        .until("server2 is the primary", SOON, |status| {
            status.primary().filter(|name| *name == "server2").map(drop)
        })
        .await?;
    writer.until_written(50, SOON).await?;
    cluster.until_healthy(SOON).await?;
    feeds(&cluster, "server2", "server1,server3").await?;
    figure("crash of the primary until full strength", begun.elapsed());
    slots_are_complete(&cluster).await?;

    let answer = cluster.cli("server4", &["promote", "--switchover", "--to", "server1"]).await?;
    assert_eq!(answer.code, 0, "{answer:?}");
    feeds(&cluster, "server1", "server2").await?;
    feeds(&cluster, "server2", "server3").await?;
    writer.until_written(50, SOON).await?;
    cluster.until_healthy(SOON).await?;
    slots_are_complete(&cluster).await?;
    slots_move_on(&cluster).await?;
    let outcome = writer.finish(&cluster).await?;
    assert!(outcome.lost.is_empty() && outcome.duplicated.is_empty(), "{outcome:?}");
    assert_eq!(outcome.sessions_lost, 0, "{outcome:?}");
    Ok(cluster.finish(&[CLIENT_LOST])?)
}
