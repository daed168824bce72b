//! PostgreSQL servers that live but are of no use, and servers that only look that way.

use std::time::Duration;

use pgherd_cluster_tests::disk::SmallDisk;
use pgherd_cluster_tests::logs::CLIENT_LOST;
use pgherd_cluster_tests::postgres::APP;
use pgherd_cluster_tests::process::{Signal, signal};
use pgherd_cluster_tests::workload::Writer;
use pgherd_cluster_tests::{Cluster, Failure, Status, TestResult, never, wait_until};
use tokio::time::Instant;

const SOON: Duration = Duration::from_secs(30);
/// A server that hangs has failed after this time here; the default is longer than a test should take.
const LOCAL_TIMEOUT: Duration = Duration::from_secs(3);
const SETTINGS: &str = "[timings]\nlocal_timeout = \"3s\"";

#[expect(clippy::print_stdout, reason = "a figure for people")]
fn figure(what: &str, time: Duration) {
    println!("FIGURE {what}: {} ms", time.as_millis());
}

/// One number from a server itself.
async fn number(cluster: &Cluster, node: &str, sql: &str) -> Result<u32, Failure> {
    let client = cluster.connect_server(node, APP).await?;
    let value: i32 = client.query_one(sql, &[]).await?.get(0);
    u32::try_from(value).map_err(Failure::from)
}

fn postmaster(cluster: &Cluster, node: &str) -> Result<u32, Failure> {
    cluster.node(node).postmaster().ok_or_else(|| Failure::new(format!("PostgreSQL on {node} does not run")))
}

/// Waits until one of these nodes accepts writes, asked past everything else.
async fn until_one_writes<'a>(cluster: &Cluster, nodes: &[&'a str]) -> Result<&'a str, Failure> {
    let found = wait_until("another primary", SOON, async || {
        for node in nodes {
            if cluster.is_writable(node).await {
                return Ok(*node);
            }
        }
        Err("none")
    });
    Ok(found.await?)
}

fn others<'a>(name: &str) -> Vec<&'a str> {
    ["server1", "server2", "server3"].into_iter().filter(|other| *other != name).collect()
}

fn complains(status: &Status, node: &str, of: &str) -> Option<()> {
    status.node(node).filter(|node| node.info.contains(of)).map(|_| ())
}

#[tokio::test]
async fn what_only_looks_like_a_failure_is_none() -> TestResult {
    let mut cluster = Cluster::for_test("not-sick").agent_settings(SETTINGS).start().await?;
    let generation = cluster.status().await?.generation;
    let primary = postmaster(&cluster, "server1")?;
    let writer = Writer::start(&cluster, "notsick").await?;
    writer.until_written(50, SOON).await?;

    // One backend is killed: PostgreSQL ends all sessions, recovers and goes on.
    let client = cluster.connect_server("server1", APP).await?;
    let victim: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    signal(u32::try_from(victim)?, Signal::KILL);
    writer.until_written(50, SOON).await?;
    cluster.until_healthy(SOON).await?;

    // A backend hangs, and so does the walwriter, for longer than a server may.
    let client = cluster.connect_server("server1", APP).await?;
    let backend: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    let walwriter = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'";
    let stopped = [u32::try_from(backend)?, number(&cluster, "server1", walwriter).await?];
    for pid in stopped {
        signal(pid, Signal::STOP);
    }
    // And every connection is taken.
    let mut taken = Vec::new();
    let refusal = loop {
        match cluster.connect_server("server1", APP).await {
            Ok(client) => taken.push(client),
            Err(error) => break error,
        }
    };
    assert_eq!(refusal.code().map(|code| code.code()), Some("53300"), "{refusal}");
    let during = LOCAL_TIMEOUT + Duration::from_secs(2);
    let watched = never("the primary is taken for failed", during, async || match cluster.status().await {
        Ok(status) if status.healthy && status.generation == generation => None,
        Ok(status) => Some(status.summary()),
        Err(error) => Some(error.to_string()),
    });
    watched.await?;
    for pid in stopped {
        signal(pid, Signal::CONT);
    }
    drop(taken);
    writer.until_written(50, SOON).await?;
    assert_eq!(postmaster(&cluster, "server1")?, primary);
    assert_eq!(cluster.status().await?.generation, generation);
    let outcome = writer.finish(&cluster).await?;
    assert!(outcome.lost.is_empty() && outcome.duplicated.is_empty(), "{outcome:?}");
    Ok(cluster.finish(&["too many clients", "remaining connection slots"])?)
}

#[tokio::test]
async fn servers_that_hang_storm_or_promote_themselves_are_dealt_with() -> TestResult {
    let mut cluster = Cluster::for_test("sick").agent_settings(SETTINGS).start().await?;
    let generation = cluster.status().await?.generation;

    // The primary's postmaster hangs: its sessions live, but nobody gets a new one.
    let writer = Writer::start(&cluster, "hang").await?;
    writer.until_written(50, SOON).await?;
    let begun = Instant::now();
    signal(postmaster(&cluster, "server1")?, Signal::STOP);
    let promoted = until_one_writes(&cluster, &others("server1")).await?;
    figure("hanging postmaster until another node accepts writes", begun.elapsed());
    assert!(begun.elapsed() <= LOCAL_TIMEOUT + Duration::from_secs(1), "{:?}", begun.elapsed());
    writer.until_written(50, SOON).await?;
    cluster.until_healthy(SOON).await?;
    let outcome = writer.finish(&cluster).await?;
    figure("hanging postmaster: longest gap of a writer", outcome.longest_gap);
    assert!(outcome.duplicated.is_empty() && outcome.sessions_lost == 0, "{outcome:?}");
    let status = cluster.status().await?;
    assert_eq!(status.generation, generation + 1, "{}", status.summary());

    // A standby's postmaster hangs: out of service, killed, and back by itself.
    let begun = Instant::now();
    signal(postmaster(&cluster, "server1")?, Signal::STOP);
    cluster.until("server1 is out of service", SOON, |s| (!s.healthy).then_some(())).await?;
    figure("hanging standby until it is out of service", begun.elapsed());
    cluster.until_healthy(SOON).await?;
    figure("hanging standby until it serves again", begun.elapsed());

    // A standby is promoted behind everybody's back.
    let begun = Instant::now();
    promote_by_hand(&cluster, "server1").await?;
    cluster.until("server1 is fenced", SOON, |s| (!s.healthy).then_some(())).await?;
    cluster.until_healthy(SOON).await?;
    figure("a promotion by hand until all is well again", begun.elapsed());
    assert_eq!(cluster.writable().await, [promoted]);
    assert_eq!(cluster.status().await?.generation, generation + 1);

    // A process of the primary crashes again and again: once or twice is bad luck, not this.
    let begun = Instant::now();
    for crashes in 1..=3 {
        crash_a_backend(&cluster, promoted).await?;
        if crashes < 3 {
            let told = format!("has crashed and recovered {crashes} times");
            cluster.until("the crash is told", SOON, |status| complains(status, promoted, &told)).await?;
        }
    }
    let next = until_one_writes(&cluster, &others(promoted)).await?;
    figure("the first of three crashes until another node accepts writes", begun.elapsed());
    cluster.until_healthy(SOON).await?;
    assert_eq!(cluster.writable().await, [next]);
    assert_eq!(cluster.status().await?.generation, generation + 2);
    ends_at_each_start(&mut cluster, next).await?;
    let expected = [CLIENT_LOST, "contains errors", "cannot rewind", "ended during its start"];
    Ok(cluster.finish(&expected)?)
}

/// The primary dies and cannot be started any more: another one takes over at once, the failure is told
/// with PostgreSQL's own words, and the node comes back once it can.
async fn ends_at_each_start(cluster: &mut Cluster, primary: &str) -> TestResult {
    let postgres = cluster.node(primary).postgres.as_ref();
    let file = postgres.ok_or_else(|| Failure::new("a primary has a database"))?.config_file();
    let good = std::fs::read_to_string(&file)?;
    std::fs::write(&file, format!("{good}shared_buffers = 'plenty'\n"))?;
    let begun = Instant::now();
    cluster.kill_postmaster(primary).ok_or_else(|| Failure::new("the primary does not run"))?;
    until_one_writes(cluster, &others(primary)).await?;
    figure("a primary that cannot be started until another node accepts writes", begun.elapsed());
    cluster.until("why it cannot start", SOON, |s| complains(s, primary, "contains errors")).await?;
    std::fs::write(&file, good)?;
    cluster.until_healthy(Duration::from_secs(60)).await?;
    figure("a server that ended at each start, put right: until all is well again", begun.elapsed());
    Ok(())
}

/// Kills a backend and waits until the server has recovered from it.
async fn crash_a_backend(cluster: &Cluster, node: &str) -> TestResult {
    let client = cluster.connect_server(node, APP).await?;
    let victim: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    signal(u32::try_from(victim)?, Signal::KILL);
    let connected = wait_until("the server recovers", SOON, async || {
        if !client.is_closed() {
            return Err("it has not noticed".to_owned());
        }
        match cluster.connect_server(node, APP).await {
            Ok(_) => Ok(()),
            // Nobody is there any more: its agent has killed it already.
            Err(error) if error.code().is_none() => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    });
    connected.await?;
    Ok(())
}

async fn promote_by_hand(cluster: &Cluster, node: &str) -> TestResult {
    let client = cluster.connect_server(node, APP).await?;
    // It may be killed before it can answer.
    let _outcome = client.execute("SELECT pg_promote(wait => true)", &[]).await;
    Ok(())
}

#[tokio::test]
async fn a_disk_that_is_full_or_broken_costs_the_primary_its_role() -> TestResult {
    let builder = Cluster::for_test("sick-disk").agent_settings(SETTINGS).small_disk("server1", 320);
    let mut cluster = builder.start().await?;
    let generation = cluster.status().await?.generation;
    let disk = SmallDisk::of(cluster.node("server1")).ok_or_else(|| Failure::new("server1 has no disk"))?;
    let writer = Writer::start(&cluster, "disk").await?;
    writer.until_written(50, SOON).await?;

    disk.fill().await?;
    let begun = Instant::now();
    cluster
        .until("the full disk is told", SOON, |status| complains(status, "server1", "no disk space"))
        .await?;
    figure("full disk until the status tells", begun.elapsed());
    until_one_writes(&cluster, &others("server1")).await?;
    figure("full disk until another node accepts writes", begun.elapsed());
    writer.until_written(50, SOON).await?;
    let status = cluster.status().await?;
    assert!(complains(&status, "server1", "no disk space").is_some(), "{}", status.summary());
    disk.free()?;
    cluster.until_healthy(Duration::from_secs(60)).await?;
    figure("full disk, freed: until all is well again", begun.elapsed());
    assert_eq!(cluster.status().await?.generation, generation + 1);

    let answer = cluster.cli("server4", &["promote", "--switchover", "--to", "server1"]).await?;
    assert_eq!(answer.code, 0, "{answer:?}");
    cluster.until_healthy(SOON).await?;
    assert_eq!(cluster.writable().await, ["server1"]);

    disk.break_down().await?;
    let begun = Instant::now();
    until_one_writes(&cluster, &others("server1")).await?;
    figure("disk turned read-only until another node accepts writes", begun.elapsed());
    writer.until_written(50, SOON).await?;
    cluster
        .until("the broken disk is told", SOON, |status| complains(status, "server1", "read-only"))
        .await?;
    let replaced = wait_until("nobody uses the broken disk", SOON, async || {
        disk.replace().await.map_err(|error| format!("{error:?}"))
    });
    replaced.await?;
    cluster.until_healthy(Duration::from_secs(60)).await?;
    figure("broken disk, replaced: until all is well again", begun.elapsed());
    let outcome = writer.finish(&cluster).await?;
    assert!(outcome.duplicated.is_empty() && outcome.sessions_lost == 0, "{outcome:?}");
    // The broken disk, the rejoins that it refused (as a standby at once, where there is nothing to rewind), and sessions of
    // the servers that were killed.
    const NO_ROOM_FOR_CACHE: &str = "could not write init file";
    let expected = [
        "Read-only file system",
        "No space left on device",
        NO_ROOM_FOR_CACHE,
        "cannot rewind this node",
        "the node was made a standby, but did not start",
    ];
    Ok(cluster.finish(&[&expected[..], &[CLIENT_LOST]].concat())?)
}
