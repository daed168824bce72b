//! What an application sees of a change of primary.

use std::time::Duration;

use pgherd_cluster_tests::process::{self, Signal};
use pgherd_cluster_tests::workload::{Outcome, Writer};
use pgherd_cluster_tests::{Cluster, Failure, TestResult, wait_until};

const SOON: Duration = Duration::from_secs(30);

/// The session was never closed and nothing is there twice. Replication is asynchronous in these
/// clusters, so what no standby had received may be gone after an unplanned change: it is told.
fn assert_undisturbed(outcome: &Outcome, what: &str) {
    assert!(outcome.acked > 100, "{what}: {outcome:?}");
    assert!(outcome.duplicated.is_empty(), "{what}: {outcome:?}");
    assert_eq!(outcome.sessions_lost, 0, "{what}: {outcome:?}");
    #[expect(clippy::print_stdout, reason = "a figure for people")]
    if !outcome.lost.is_empty() {
        println!("{what}: {} of {} acknowledged commits are gone", outcome.lost.len(), outcome.acked);
    }
}

/// The last step of the one failover there was; the last of all, and not longer than the test had patience.
async fn until_a_first_write_is_recorded(cluster: &Cluster) -> TestResult {
    wait_until("the first write is in the history", SOON, async || {
        let history = cluster.cli("server4", &["history"]).await.map_err(|error| error.to_string())?;
        let change = history.out.lines().find(|line| line.contains("  failover  ")).unwrap_or_default();
        let steps = change.split("  ").find(|column| column.contains("promote ")).unwrap_or_default();
        let last = steps.rsplit(", ").next().and_then(|step| step.strip_prefix("first_write "));
        match last.and_then(|ms| ms.trim().parse::<u128>().ok()) {
            Some(ms) if (1..SOON.as_millis()).contains(&ms) => Ok(()),
            Some(_) | None => Err(history.out),
        }
    })
    .await?;
    let metrics =
        reqwest::get(format!("{}/metrics", cluster.node("server4").agent_url())).await?.text().await?;
    let name = "pgherd_last_change_step_seconds{kind=\"failover\",step=\"first_write\"} ";
    assert!(metrics.lines().any(|line| line.starts_with(name)), "{metrics}");
    Ok(())
}

#[tokio::test]
async fn a_switchover_costs_no_client_an_error() -> TestResult {
    let mut cluster = Cluster::for_test("switchover").start().await?;
    for (number, to) in ["server2", "server1"].iter().enumerate() {
        let writer = Writer::start(&cluster, &format!("switchover{number}")).await?;
        writer.until_written(100, SOON).await?;
        let answer = cluster.cli("server4", &["promote", "--switchover", "--to", to]).await?;
        assert_eq!(answer.code, 0, "{answer:?}");
        writer.until_written(100, SOON).await?;
        cluster.until_healthy(SOON).await?;
        assert_eq!(cluster.writable().await, [*to]);
        let outcome = writer.finish(&cluster).await?;
        assert_undisturbed(&outcome, to);
        assert!(outcome.lost.is_empty(), "a planned change loses nothing: {outcome:?}");
        assert!(outcome.errors.is_empty(), "a planned change costs nobody an error: {outcome:?}");
    }
    Ok(cluster.finish(&[])?)
}

#[tokio::test]
async fn a_scheduled_switchover_begins_at_its_time_unless_it_is_taken_back() -> TestResult {
    let mut cluster = Cluster::for_test("scheduled").start().await?;
    let at = ["promote", "--switchover", "--to", "server2", "--at"];
    let answer = cluster.cli("server1", &[&at[..], &["+1h"]].concat()).await?;
    assert_eq!(answer.code, 0, "{answer:?}");
    assert!(answer.out.contains("a switchover from server1 to server2 at 2"), "{answer:?}");
    let shown = cluster.cli("server3", &["cluster-status"]).await?;
    assert!(shown.out.contains("\nScheduled switchover: 2"), "{shown:?}");
    assert!(
        shown.out.contains(", in 59 min ") && shown.out.contains(" from server1 to server2\n"),
        "{shown:?}"
    );
    let second = cluster.cli("server2", &["promote", "--switchover", "--at", "+2h"]).await?;
    assert_eq!(second.code, 1, "{second:?}");
    let told = "error: a switchover is scheduled already: from server1 to server2 at 2";
    assert!(second.err.starts_with(told) && second.err.contains("--cancel-scheduled"), "{second:?}");
    let answer = cluster.cli("server2", &["promote", "--cancel-scheduled"]).await?;
    assert_eq!(answer.code, 0, "{answer:?}");
    assert!(answer.out.contains("a switchover from server1 to server2 at 2"), "{answer:?}");
    let again = cluster.cli("server2", &["promote", "--cancel-scheduled"]).await?;
    assert!(again.code == 1 && again.err.starts_with("error: no switchover is scheduled\n"), "{again:?}");

    let writer = Writer::start(&cluster, "scheduled").await?;
    writer.until_written(100, SOON).await?;
    let explained = cluster.cli("server4", &[&at[..], &["+2s", "--explain"]].concat()).await?;
    assert!(explained.out.contains("server2 would become the primary instead of server1"), "{explained:?}");
    let answer = cluster.cli("server4", &[&at[..], &["+2s"]].concat()).await?;
    assert_eq!(answer.code, 0, "{answer:?}");
    assert_eq!(cluster.writable().await, ["server1"], "not before its time");
    wait_until("the switchover is done", SOON, async || match cluster.writable().await.as_slice() {
        ["server2"] => Ok(()),
        others => Err(format!("{others:?}")),
    })
    .await?;
    cluster.until_healthy(SOON).await?;
    writer.until_written(100, SOON).await?;
    let history = cluster.cli("server4", &["history"]).await?;
    assert!(history.out.contains("  an operator asked for a switchover at 2"), "{history:?}");
    let shown = cluster.cli("server4", &["cluster-status"]).await?;
    assert!(!shown.out.contains("Scheduled switchover"), "{shown:?}");
    let outcome = writer.finish(&cluster).await?;
    assert_undisturbed(&outcome, "scheduled");
    assert!(outcome.lost.is_empty() && outcome.errors.is_empty(), "{outcome:?}");
    Ok(cluster.finish(&[])?)
}

#[tokio::test]
async fn a_switchover_does_not_end_a_transaction_unless_that_was_asked_for() -> TestResult {
    let settings = "[timings]\ndrain_timeout = '300ms'\n";
    let mut cluster = Cluster::for_test("undrained").agent_settings(settings).start().await?;
    let writer = Writer::start(&cluster, "undrained").await?;
    writer.until_written(50, SOON).await?;
    let client = cluster.connect().await?;
    client.batch_execute("CREATE TABLE kept (i int); BEGIN; INSERT INTO kept VALUES (1)").await?;
    let answer = cluster.cli("server4", &["promote", "--switchover", "--explain"]).await?;
    assert_eq!(answer.code, 0, "{answer:?}");
    let told = [
        "server2 would become the primary instead of server1",
        "and would be waited for, up to 300ms",
        "priority 3",
    ];
    assert!(told.iter().all(|part| answer.out.contains(part)), "{answer:?}");
    let answer = cluster.cli("server4", &["promote", "--switchover"]).await?;
    assert_ne!(answer.code, 0, "{answer:?}");
    assert!(answer.out.contains("Rolled back: server1 is still the primary"), "{answer:?}");
    let why = "transactions or statements still run after 0.3 s, 1 in all; the oldest is pid ";
    assert!(answer.out.contains(why) && answer.out.contains("idle in transaction for "), "{answer:?}");
    client.batch_execute("INSERT INTO kept VALUES (2); COMMIT; BEGIN; INSERT INTO kept VALUES (3)").await?;

    let answer = cluster.cli("server4", &["promote", "--switchover", "--end-transactions"]).await?;
    assert_eq!(answer.code, 0, "{answer:?}");
    let error = client.batch_execute("COMMIT").await.err().and_then(|error| error.code().cloned());
    assert_eq!(error.map(|code| code.code().to_owned()).as_deref(), Some("40001"));
    let kept: i64 = client.query_one("SELECT count(*) FROM kept", &[]).await?.get(0);
    assert_eq!(kept, 2);
    writer.until_written(50, SOON).await?;
    cluster.until_healthy(SOON).await?;
    assert_ne!(cluster.writable().await, ["server1"]);
    let outcome = writer.finish(&cluster).await?;
    assert_undisturbed(&outcome, "undrained");
    assert!(outcome.errors.is_empty() && outcome.lost.is_empty(), "{outcome:?}");
    Ok(cluster.finish(&["still run after"])?)
}

/// Commits that no standby has received are on the old primary's disk, and are fetched from there.
#[tokio::test]
async fn what_only_the_killed_primary_had_is_not_lost() -> TestResult {
    let mut cluster = Cluster::for_test("salvage").start().await?;
    let writer = Writer::start(&cluster, "salvage").await?;
    writer.until_written(100, SOON).await?;
    let senders = cluster.node("server1").walsenders();
    assert_eq!(senders.len(), 2);
    senders.iter().for_each(|sender| process::signal(*sender, Signal::STOP));
    writer.until_written(100, SOON).await?;
    cluster.kill_postmaster("server1").ok_or_else(|| Failure::new("server1 does not run"))?;
    writer.until_written(100, SOON).await?;
    cluster.until_healthy(SOON).await?;
    let outcome = writer.finish(&cluster).await?;
    assert_undisturbed(&outcome, "nothing was sent");
    assert!(outcome.lost.is_empty(), "{outcome:?}");
    let history = cluster.cli("server4", &["history"]).await?;
    let change = history.out.lines().find(|line| line.contains("failover")).unwrap_or_default();
    assert!(change.contains("  nothing  "), "{history:?}");

    // It is the data of all databases.
    let agent = cluster.node("server1").agent_url();
    let refused = reqwest::get(format!("{agent}/v1/left-wal?timeline=1&from=0/3000000&length=10")).await?;
    assert_eq!(refused.status(), 403);
    Ok(cluster.finish(&[])?)
}

#[tokio::test]
async fn a_killed_primary_is_replaced_under_a_writer() -> TestResult {
    let mut cluster = Cluster::for_test("killed-primary").start().await?;
    let before = cluster.status().await?;
    let writer = Writer::start(&cluster, "killed").await?;
    writer.until_written(200, SOON).await?;
    cluster.kill_postmaster("server1").ok_or_else(|| Failure::new("server1 does not run"))?;
    cluster
        .until("another primary", SOON, |status| {
            status.primary().filter(|name| *name != "server1").map(|_| ())
        })
        .await?;
    writer.until_written(200, SOON).await?;
    cluster.until_healthy(SOON).await?;
    writer.until_written(50, SOON).await?;
    let outcome = writer.finish(&cluster).await?;
    assert_undisturbed(&outcome, "killed primary");
    assert!(outcome.lost.is_empty(), "its disk is there: {outcome:?}");
    let after = cluster.status().await?;
    assert_eq!(after.generation, before.generation + 1, "one failover, no flapping: {}", after.summary());
    assert!(after.standbys().contains(&"server1"), "the old primary follows: {}", after.summary());
    until_a_first_write_is_recorded(&cluster).await?;
    Ok(cluster.finish(&[])?)
}

#[tokio::test]
async fn a_lost_node_is_replaced_under_a_writer() -> TestResult {
    let mut cluster = Cluster::for_test("lost-primary-node").netns(true).start().await?;
    let writer = Writer::start(&cluster, "lost").await?;
    writer.until_written(200, SOON).await?;
    cluster.cut("server1").await?;
    let there = wait_until("another primary", SOON, async || {
        let status = cluster.status_of("server4").await.map_err(|error| error.to_string())?;
        status.primary().filter(|name| *name != "server1").map(str::to_owned).ok_or_else(|| status.summary())
    });
    let promoted = there.await?;
    writer.until_written(200, SOON).await?;
    assert_eq!(cluster.writable().await, [promoted.as_str()], "the lost node has stopped writing by itself");
    cluster.heal("server1").await?;
    cluster.until_healthy(SOON).await?;
    writer.until_written(50, SOON).await?;
    let outcome = writer.finish(&cluster).await?;
    assert_undisturbed(&outcome, "lost node");
    let status = cluster.status().await?;
    assert!(status.standbys().contains(&"server1"), "{}", status.summary());
    Ok(cluster.finish(&[])?)
}
