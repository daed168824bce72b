//! Nodes that are made anew: by an operator's order, as a failed primary that comes back, and on a new machine.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use pgherd_cluster_tests::logs::CLIENT_LOST;
use pgherd_cluster_tests::postgres::APP;
use pgherd_cluster_tests::process::{self, Signal};
use pgherd_cluster_tests::workload::Writer;
use pgherd_cluster_tests::{Cluster, Failure, TestResult, wait_until};
use tokio::process::Command;
use tokio::time::Instant;

const SOON: Duration = Duration::from_secs(60);

/// As much as takes some seconds to copy at the rate of [`RATE`].
const FILL: &str =
    "CREATE TABLE filler AS SELECT g AS i, repeat('x', 1000) AS t FROM generate_series(1, 20000) AS g";
const RATE: &str = "8MB";

/// What is left beside a data directory by rebuilds.
fn aside(cluster: &Cluster, node: &str) -> Result<Vec<String>, Failure> {
    let entries = std::fs::read_dir(&cluster.node(node).dir)?.flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| name.contains(".pgherd-")).collect())
}

/// Every server has the same rows of a table, in the end.
async fn assert_equal_rows(cluster: &Cluster, table: &str) -> TestResult {
    let count = async |node: &str| -> Result<i64, String> {
        let client = cluster.connect_server(node, APP).await.map_err(|error| error.to_string())?;
        let row = client.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await;
        row.map(|row| row.get(0)).map_err(|error| error.to_string())
    };
    wait_until("all servers have the same rows", SOON, async || {
        let counts = [count("server1").await?, count("server2").await?, count("server3").await?];
        if counts[0] == counts[1] && counts[1] == counts[2] { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await?;
    Ok(())
}

/// Waits until a copy for this node is being made.
async fn until_copying(cluster: &Cluster, node: &str) -> TestResult {
    let url = format!("{}/v1/rebuild", cluster.node(node).agent_url());
    wait_until("a copy is being made", SOON, async || {
        let said = reqwest::get(&url).await.map_err(|error| error.to_string())?;
        let said: serde_json::Value = said.json().await.map_err(|error| error.to_string())?;
        let done = said.pointer("/step/done").and_then(serde_json::Value::as_u64);
        if done.is_some_and(|done| done > 1 << 20) { Ok(()) } else { Err(said.to_string()) }
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn an_operator_has_a_standby_rebuilt_and_watches_stops_or_leaves_it() -> TestResult {
    let mut cluster = Cluster::for_test("rebuild").start().await?;
    let client = cluster.connect().await?;
    client.batch_execute(FILL).await?;
    let writer = Writer::start(&cluster, "rebuild").await?;
    writer.until_written(50, SOON).await?;

    for (arguments, told) in [
        (&["rebuild", "server1", "--yes"][..], "error: server1 is the primary"),
        (&["rebuild", "server9", "--yes"], "error: there is no node server9"),
        (&["rebuild", "server4", "--yes"], "error: server4 is a witness"),
        (&["rebuild", "server2", "--yes", "--from", "server2"], "error: server2 cannot be copied from"),
        (&["rebuild", "server2"], "error: this asks for confirmation"),
        (&["rebuild", "server2", "--stop"], "error: server2 is not being rebuilt"),
    ] {
        let answer = cluster.cli("server4", arguments).await?;
        assert!(answer.code == 1 && answer.err.starts_with(told), "{arguments:?}: {answer:?}");
    }

    // Stopped: it is as it was.
    let order = ["rebuild", "server2", "--clone", "--rate", RATE, "--yes"];
    let answer = cluster.cli("server4", &[&order[..], &["--no-wait"]].concat()).await?;
    assert!(answer.code == 0 && answer.out == "server2 is being rebuilt\n", "{answer:?}");
    until_copying(&cluster, "server2").await?;
    let answer = cluster.cli("server4", &["rebuild", "server2", "--stop"]).await?;
    assert_eq!(answer.code, 0, "{answer:?}");
    cluster.until_healthy(SOON).await?;
    assert_eq!(aside(&cluster, "server2")?, Vec::<String>::new());

    // Left by Ctrl-C: it goes on, and the same command follows it.
    let mut command = Command::new(&cluster.binaries().cli);
    command.arg("--agent").arg(cluster.node("server4").agent_url()).args(order);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    until_copying(&cluster, "server2").await?;
    process::signal(child.id().unwrap_or_default(), Signal::INT);
    let left = child.wait_with_output().await?;
    let left = String::from_utf8_lossy(&left.stdout).into_owned();
    assert!(left.contains("the same command follows it again"), "{left}");
    let begun = Instant::now();
    let answer = cluster.cli("server3", &order[..5]).await?;
    assert_eq!(answer.code, 0, "{answer:?}");
    let told = ["server2 is being rebuilt already", "copying from server3: ", " MB/s, ", " left"];
    assert!(told.iter().all(|part| answer.out.contains(part)), "{answer:?}");
    assert!(
        answer.out.contains("server2 is a standby of server1 again: copied from server3, "),
        "{answer:?}"
    );
    cluster.until_healthy(SOON).await?;
    figure("a rebuild, until all is well again", begun);
    assert_eq!(aside(&cluster, "server2")?.len(), 1, "the old data is kept");

    writer.until_written(50, SOON).await?;
    let outcome = writer.finish(&cluster).await?;
    assert!(outcome.lost.is_empty() && outcome.sessions_lost == 0, "{outcome:?}");
    assert_equal_rows(&cluster, "writer_rebuild").await?;
    Ok(cluster.finish(&["stopped by an operator", CLIENT_LOST])?)
}

#[tokio::test]
async fn a_copy_whose_agent_is_killed_is_made_by_the_next_one() -> TestResult {
    let mut cluster = Cluster::for_test("rebuild-killed").start().await?;
    cluster.connect().await?.batch_execute(FILL).await?;
    let order = ["rebuild", "server2", "--clone", "--rate", RATE, "--yes", "--no-wait"];
    let answer = cluster.cli("server4", &order).await?;
    assert_eq!(answer.code, 0, "{answer:?}");
    until_copying(&cluster, "server2").await?;
    cluster.kill_agent("server2").await?;
    let staged = cluster.node("server2").dir.join("data.pgherd-clone");
    assert!(staged.exists(), "it was in the middle");
    cluster.node_mut("server2").agent.start()?;
    wait_until("the rebuild is done", SOON, async || {
        if aside(&cluster, "server2").is_ok_and(|aside| aside.len() == 1) && !staged.exists() {
            Ok(())
        } else {
            Err("the old data is not aside yet")
        }
    })
    .await?;
    cluster.until_healthy(SOON).await?;
    assert_equal_rows(&cluster, "filler").await?;
    Ok(cluster.finish(&[CLIENT_LOST])?)
}

/// Has server1 commit what no standby has, and fail.
async fn diverge(cluster: &Cluster, writer: &Writer) -> TestResult {
    let senders = cluster.node("server1").walsenders();
    assert_eq!(senders.len(), 2);
    senders.iter().for_each(|sender| process::signal(*sender, Signal::STOP));
    writer.until_written(50, SOON).await?;
    cluster.kill_postmaster("server1").ok_or_else(|| Failure::new("server1 does not run"))?;
    Ok(())
}

#[tokio::test]
async fn a_primary_that_diverged_under_load_is_rewound_even_if_that_is_interrupted() -> TestResult {
    let settings = "[failover]\nsalvage_wait = '0s'\n";
    let mut cluster = Cluster::for_test("rebuild-diverged").agent_settings(settings).start().await?;
    let writer = Writer::start(&cluster, "diverged").await?;
    writer.until_written(100, SOON).await?;
    diverge(&cluster, &writer).await?;
    let mark = cluster.node("server1").dir.join("state/rewind/in-progress");
    let worker = cluster.node("server1").worker().ok_or_else(|| Failure::new("no worker"))?;
    let begun = Instant::now();
    while !mark.exists() {
        assert!(begun.elapsed() < SOON, "the rewind does not begin");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    process::signal(worker, Signal::KILL);
    writer.until_written(100, SOON).await?;
    cluster.until_healthy(SOON).await?;
    figure("a crash of the primary, until all is well again", begun);
    assert!(!mark.exists());
    let outcome = writer.finish(&cluster).await?;
    assert!(!outcome.lost.is_empty(), "server1 had commits that no other had: {outcome:?}");
    assert_equal_rows(&cluster, "writer_diverged").await?;
    assert_eq!(aside(&cluster, "server1")?, Vec::<String>::new(), "no copy was made");
    Ok(cluster.finish(&[CLIENT_LOST])?)
}

#[tokio::test]
async fn a_primary_that_cannot_be_rewound_is_copied() -> TestResult {
    let settings = "[failover]\nsalvage_wait = '0s'\n";
    let mut cluster = Cluster::for_test("rebuild-fallback").agent_settings(settings).start().await?;
    let writer = Writer::start(&cluster, "fallback").await?;
    writer.until_written(100, SOON).await?;
    cluster.kill_agent("server1").await?;
    diverge(&cluster, &writer).await?;
    writer.until_written(50, SOON).await?;
    // Without its WAL there is no crash recovery, which pg_rewind needs first.
    let data = cluster.node("server1").data_dir().ok_or_else(|| Failure::new("no data"))?.to_owned();
    process::wait_gone(cluster.node("server1").postmaster().unwrap_or_default(), SOON).await;
    for entry in std::fs::read_dir(data.join("pg_wal"))?.flatten() {
        if entry.file_type()?.is_file() {
            std::fs::remove_file(entry.path())?;
        }
    }
    cluster.node_mut("server1").agent.start()?;
    cluster.until_healthy(SOON).await?;
    assert_eq!(aside(&cluster, "server1")?.len(), 1, "its data was replaced, and is kept");
    writer.until_written(50, SOON).await?;
    writer.finish(&cluster).await?;
    assert_equal_rows(&cluster, "writer_fallback").await?;
    Ok(cluster.finish(&["cannot rewind this node", "PANIC:  could not locate", "invalid", CLIENT_LOST])?)
}

#[tokio::test]
async fn where_a_dba_brings_failed_primaries_back_they_stay_out_until_resumed() -> TestResult {
    let settings = "[failover]\nrejoin = 'manual'\n";
    let mut cluster = Cluster::for_test("rebuild-manual").agent_settings(settings).start().await?;
    let writer = Writer::start(&cluster, "manual").await?;
    writer.until_written(50, SOON).await?;
    cluster.kill_postmaster("server1").ok_or_else(|| Failure::new("server1 does not run"))?;
    let told = "run `pgherd rebuild server1`, or rebuild it by hand and run `pgherd resume server1`";
    let primary = cluster
        .until("server1 stays out", SOON, |status| {
            let out = status.node("server1")?;
            let settled = out.agent_type == "Idle" && out.info.contains(told);
            status.primary().filter(|name| settled && *name != "server1").map(str::to_owned)
        })
        .await?;
    let answer = cluster.cli("server1", &["node-status"]).await?;
    assert!(answer.code == 1 && answer.out.contains("pgherd resume server1"), "{answer:?}");

    // As a DBA does it.
    let own = cluster.node("server1").postgres.clone().ok_or_else(|| Failure::new("no PostgreSQL"))?;
    let source = cluster.node(&primary).postgres.clone().ok_or_else(|| Failure::new("no PostgreSQL"))?;
    std::fs::remove_dir_all(&own.data_dir)?;
    own.copy_of(&source).await?;
    let still = cluster.status().await?;
    assert_eq!(
        still.node("server1").map(|node| node.agent_type.as_str()),
        Some("Idle"),
        "nobody has said so"
    );
    let answer = cluster.cli("server4", &["resume", "server1"]).await?;
    assert_eq!(answer.code, 0, "{answer:?}");
    cluster.until_healthy(SOON).await?;
    cluster.until_proxy_serves(0, SOON).await?;

    // A standby that fails is no failed primary; nor is a primary that was switched over.
    let answer = cluster.cli("server4", &["promote", "--switchover", "--to", "server1"]).await?;
    assert_eq!(answer.code, 0, "{answer:?}");
    cluster.until_healthy(SOON).await?;

    // With one command instead.
    cluster.kill_postmaster("server1").ok_or_else(|| Failure::new("server1 does not run"))?;
    cluster
        .until("server1 stays out again", SOON, |status| {
            let out = status.node("server1")?.info.contains(told);
            status.primary().filter(|name| out && *name != "server1").map(|_| ())
        })
        .await?;
    let answer = cluster.cli("server4", &["rebuild", "server1", "--yes"]).await?;
    assert!(answer.code == 0 && answer.out.contains("server1 is a standby of server"), "{answer:?}");
    cluster.until_healthy(SOON).await?;
    writer.until_written(50, SOON).await?;
    writer.finish(&cluster).await?;
    assert_equal_rows(&cluster, "writer_manual").await?;
    Ok(cluster.finish(&[CLIENT_LOST])?)
}

#[tokio::test]
async fn a_new_machine_gets_its_standby_with_one_command() -> TestResult {
    let mut cluster = Cluster::for_test("create-standby").start().await?;
    cluster.connect().await?.batch_execute(FILL).await?;
    let config = cluster.node("server3").dir.join("agent.toml");
    let create = create_standby(&cluster, &config, &["--rate", RATE]).await?;
    let told = "another agent works with";
    assert!(create.0 == Some(1) && create.2.contains(told), "its agent runs: {create:?}");

    let postmaster = cluster.node("server3").postmaster().unwrap_or_default();
    cluster.kill_agent("server3").await?;
    process::signal(postmaster, Signal::QUIT);
    process::wait_gone(postmaster, SOON).await;
    let create = create_standby(&cluster, &config, &[]).await?;
    assert!(create.0 == Some(1) && create.2.contains("holds something already"), "{create:?}");

    let data = cluster.node("server3").data_dir().ok_or_else(|| Failure::new("no data"))?.to_owned();
    std::fs::remove_dir_all(&data)?;
    let refused = cluster.refused_agent("server3", |text| text).await?;
    assert!(refused.contains("pgherd create-standby"), "{refused}");
    let writer = Writer::start(&cluster, "create").await?;
    let begun = Instant::now();
    let create = create_standby(&cluster, &config, &["--rate", RATE]).await?;
    assert_eq!(create.0, Some(0), "{create:?}");
    assert!(create.1.contains("copying from server2: "), "a standby by preference: {create:?}");
    assert!(create.1.contains("server3 has the data of server2"), "{create:?}");
    cluster.node_mut("server3").agent.start()?;
    cluster.until_healthy(SOON).await?;
    figure("create-standby, until all is well", begun);
    writer.until_written(50, SOON).await?;
    writer.finish(&cluster).await?;
    assert_equal_rows(&cluster, "writer_create").await?;
    Ok(cluster.finish(&[CLIENT_LOST, "cannot take care of this PostgreSQL"])?)
}

async fn create_standby(
    cluster: &Cluster,
    config: &Path,
    options: &[&str],
) -> Result<(Option<i32>, String, String), Failure> {
    let mut command = cluster.node("server3").place.command(&cluster.binaries().cli);
    command.arg("--config").arg(config).arg("create-standby").args(options);
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok((output.status.code(), text(output.stdout), text(output.stderr)))
}

#[expect(clippy::print_stdout, reason = "a figure for people")]
fn figure(what: &str, begun: Instant) {
    println!("{what}: {} ms", begun.elapsed().as_millis());
}
