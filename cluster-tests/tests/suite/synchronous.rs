//! What an application sees of synchronous replication.

use std::time::Duration;

use pgherd_cluster_tests::postgres::APP;
use pgherd_cluster_tests::process::{self, Signal};
use pgherd_cluster_tests::workload::{Outcome, Writer};
use pgherd_cluster_tests::{Cluster, Failure, NotReached, TestResult, never, wait_until};
use tokio_postgres::NoTls;

const SOON: Duration = Duration::from_secs(30);
/// Cancels what the application waits for a standby with, and tells when that began.
const CANCEL: &str = "SELECT query_start::text, pg_cancel_backend(pid) FROM pg_stat_activity \
    WHERE wait_event = 'SyncRep' AND usename = 'app'";
/// Whether it waits with something that began after that.
const NEXT: &str = "SELECT FROM pg_stat_activity \
    WHERE wait_event = 'SyncRep' AND usename = 'app' AND query_start > $1::text::timestamptz";

/// PostgreSQL answers a commit whose wait was cancelled as if it had succeeded, with a warning.
#[tokio::test]
async fn a_commit_that_waits_for_a_standby_is_not_acknowledged_by_cancelling_it() -> TestResult {
    let cluster = Cluster::for_test("cancelled-wait").synchronous(true).start().await?;
    let writer = Writer::start(&cluster, "cancelled").await?;
    writer.until_written(20, SOON).await?;
    let senders = cluster.node("server1").walsenders();
    assert_eq!(senders.len(), 2);
    senders.iter().for_each(|sender| process::signal(*sender, Signal::STOP));
    let superuser = cluster.connect_server("server1", APP).await?;
    let cancelled = async {
        let begun: String = wait_until("a commit waits for a standby", SOON, async || {
            let rows = superuser.query(CANCEL, &[]).await.map_err(|error| error.to_string())?;
            rows.first().map(|row| row.get(0)).ok_or("none does".to_owned())
        })
        .await?;
        // A standby that answers before the cancelled commit notices would make it a common one.
        wait_until("the next commit waits for a standby", SOON, async || {
            let rows = superuser.query(NEXT, &[&begun]).await.map_err(|error| error.to_string())?;
            if rows.is_empty() { Err("none does".to_owned()) } else { Ok(()) }
        })
        .await
    };
    let cancelled = cancelled.await;
    senders.iter().for_each(|sender| process::signal(*sender, Signal::CONT));
    cancelled?;
    writer.until_written(20, SOON).await?;
    let outcome = writer.finish(&cluster).await?;
    assert_eq!(outcome.errors.get("a warning"), Some(&1), "{outcome:?}");
    assert_eq!((outcome.errors.len(), outcome.lost.len()), (1, 0), "{outcome:?}");
    Ok(cluster.finish(&[])?)
}

/// What `pgherd cluster-status` says of commits, once it says this.
async fn until_commits_wait(cluster: &Cluster, expected: &str) -> Result<(), NotReached> {
    wait_until("commits wait as they should", SOON, async || {
        let answer = cluster.cli("server4", &["cluster-status"]).await.map_err(|error| error.to_string())?;
        let line = answer.out.lines().find(|line| line.starts_with("Commits: ")).map(str::to_owned);
        if line.as_deref() == Some(expected) { Ok(()) } else { Err(format!("{line:?}")) }
    })
    .await
}

fn assert_lossless(outcome: &Outcome) {
    assert!(outcome.acked > 100, "{outcome:?}");
    assert!(outcome.lost.is_empty() && outcome.duplicated.is_empty(), "{outcome:?}");
    assert_eq!(outcome.sessions_lost, 0, "{outcome:?}");
}

fn others_than(primary: &str) -> String {
    let others: Vec<&str> =
        ["server1", "server2", "server3"].into_iter().filter(|name| *name != primary).collect();
    format!("Commits: wait for any 1 of {}", others.join(", "))
}

/// Not even where nothing is read from the disk of the primary that died.
#[tokio::test]
async fn a_failover_of_a_synchronous_cluster_loses_nothing_that_was_acknowledged() -> TestResult {
    let settings = "[failover]\ndurability = 'sync'\nsalvage_wait = '0s'\n";
    let mut cluster = Cluster::for_test("sync-kill").agent_settings(settings).start().await?;
    until_commits_wait(&cluster, &others_than("server1")).await?;
    let superuser = cluster.connect_server("server1", APP).await?;
    let names = "SELECT application_name FROM pg_stat_replication WHERE sync_state = 'quorum' ORDER BY 1";
    let names: Vec<String> = superuser.query(names, &[]).await?.iter().map(|row| row.get(0)).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names[0].starts_with("server2/1/") && names[1].starts_with("server3/1/"), "{names:?}");
    drop(superuser);

    let writer = Writer::start(&cluster, "killed").await?;
    for _ in 0..3 {
        writer.until_written(100, SOON).await?;
        let old = cluster.primary().await?;
        cluster.kill_postmaster(&old).ok_or_else(|| Failure::new("no postmaster"))?;
        cluster
            .until("another primary", SOON, |status| status.primary().filter(|name| *name != old).map(drop))
            .await?;
        writer.until_written(100, SOON).await?;
        cluster.until_healthy(SOON).await?;
        until_commits_wait(&cluster, &others_than(&cluster.primary().await?)).await?;
    }
    assert_lossless(&writer.finish(&cluster).await?);
    let history = cluster.cli("server4", &["history"]).await?;
    let told = history.out.lines().filter(|line| line.contains("  nothing that was acknowledged  "));
    assert_eq!(told.count(), 3, "{history:?}");
    let metrics =
        reqwest::get(format!("{}/metrics", cluster.node("server4").agent_url())).await?.text().await?;
    for name in [
        "pgherd_last_change_step_seconds{kind=\"failover\",step=\"promote\"} ",
        "pgherd_last_change_step_seconds{kind=\"failover\",step=\"cover\"} ",
        "pgherd_last_change_seconds{kind=\"failover\"} ",
        "pgherd_sync_standbys 1.0",
        "pgherd_generation 4.0",
        "pgherd_node_is_primary{node=\"server3\"}",
        "# EOF",
    ] {
        assert!(metrics.lines().any(|line| line.starts_with(name)), "{name} in {metrics}");
    }
    Ok(cluster.finish(&[])?)
}

/// Either standby may be the one that has a commit: a failover waits for both of them.
#[tokio::test]
async fn a_failover_waits_for_the_standby_that_may_have_more() -> TestResult {
    let settings = "[failover]\ndurability = 'sync'\n[timings]\nlocal_timeout = '6s'\n";
    let mut cluster = Cluster::for_test("sync-cover").agent_settings(settings).start().await?;
    until_commits_wait(&cluster, &others_than("server1")).await?;
    let writer = Writer::start(&cluster, "cover").await?;
    writer.until_written(100, SOON).await?;
    // What hangs here has acknowledged commits that the other standby may lack.
    let hung = cluster.node("server3").postmaster().ok_or_else(|| Failure::new("server3 does not run"))?;
    let processes = process::children(hung);
    std::iter::once(&hung).chain(&processes).for_each(|process| process::signal(*process, Signal::STOP));
    let postmaster = cluster.node("server1").postmaster();
    cluster.node_mut("server1").agent.stop(Signal::KILL, SOON).await?;
    postmaster.into_iter().for_each(|process| process::signal(process, Signal::KILL));
    let why = "server2 may lack commits that were acknowledged: they are on any 1 of server2, server3, so 2 of those have \
               to say what they have, and 1 does";
    wait_until("it is told why nobody takes over", SOON, async || {
        let answer = cluster.cli("server2", &["cluster-status"]).await.map_err(|error| error.to_string())?;
        if answer.out.contains(why) { Ok(()) } else { Err(answer.out) }
    })
    .await?;
    // Its own agent ends what hangs, and it has all that it had.
    writer.until_written(100, SOON).await?;
    cluster.node_mut("server1").agent.start()?;
    cluster.until_healthy(SOON).await?;
    assert_lossless(&writer.finish(&cluster).await?);
    Ok(cluster.finish(&[
        "has answered nobody for",
        "was fenced",
        "cannot tell whether the walreceiver has ended",
    ])?)
}

/// Stops both standbys by hand, does something, and brings them back.
async fn without_standbys(
    cluster: &mut Cluster,
    meanwhile: impl AsyncFnOnce(&Cluster) -> TestResult,
) -> TestResult {
    for name in ["server2", "server3"] {
        let postmaster = cluster.node(name).postmaster().ok_or_else(|| Failure::new(name))?;
        process::signal(postmaster, Signal::INT);
    }
    cluster
        .until("both are out of service", SOON, |status| status.standbys().is_empty().then_some(()))
        .await?;
    meanwhile(cluster).await?;
    for name in ["server2", "server3"] {
        let answer = cluster.cli("server4", &["resume", name]).await?;
        assert_eq!(answer.code, 0, "{answer:?}");
    }
    Ok(())
}

#[tokio::test]
async fn without_standbys_commits_wait_and_go_on_when_one_is_back() -> TestResult {
    let settings = "[failover]\ndurability = 'sync'\n";
    let mut cluster = Cluster::for_test("sync-strict").agent_settings(settings).start().await?;
    until_commits_wait(&cluster, &others_than("server1")).await?;
    let writer = Writer::start(&cluster, "strict").await?;
    writer.until_written(100, SOON).await?;
    without_standbys(&mut cluster, async |cluster| {
        let answer = cluster.cli("server4", &["cluster-status"]).await?;
        let why = "commits are to wait for 1 (failover.sync_standbys), and of the standbys that can be promoted none is in \
                   service: commits wait until there are more";
        assert!(answer.out.contains(why), "{answer:?}");
        let acknowledged = writer.acknowledged();
        let watched = never("a commit is acknowledged", Duration::from_secs(2), async || {
            (writer.acknowledged() > acknowledged + 1).then(|| format!("{} are", writer.acknowledged()))
        });
        Ok(watched.await?)
    })
    .await?;
    writer.until_written(100, SOON).await?;
    cluster.until_healthy(SOON).await?;
    let outcome = writer.finish(&cluster).await?;
    assert_lossless(&outcome);
    assert!(outcome.errors.is_empty(), "{outcome:?}");
    Ok(cluster.finish(&[])?)
}

#[tokio::test]
async fn where_it_is_allowed_commits_go_on_without_standbys_until_they_are_back() -> TestResult {
    let settings = "[failover]\ndurability = 'sync'\nsync_degrade_after = '1s'\n";
    let mut cluster = Cluster::for_test("sync-degrade").agent_settings(settings).start().await?;
    until_commits_wait(&cluster, &others_than("server1")).await?;
    let writer = Writer::start(&cluster, "degrade").await?;
    writer.until_written(100, SOON).await?;
    without_standbys(&mut cluster, async |cluster| {
        writer.until_written(100, SOON).await?;
        until_commits_wait(cluster, "Commits: wait for no standby; 1 are asked for").await?;
        let answer = cluster.cli("server4", &["cluster-status"]).await?;
        assert!(answer.out.contains("Commits wait for 0 standbys instead of 1."), "{answer:?}");
        Ok(())
    })
    .await?;
    cluster.until_healthy(SOON).await?;
    until_commits_wait(&cluster, &others_than("server1")).await?;
    writer.until_written(100, SOON).await?;
    let outcome = writer.finish(&cluster).await?;
    assert_lossless(&outcome);
    assert!(outcome.errors.is_empty(), "{outcome:?}");
    Ok(cluster.finish(&[])?)
}

/// What was written and never acknowledged is on its disk as well, and nobody is to see it before it cannot be lost any
/// more: not even a client that connects past the proxy.
#[tokio::test]
async fn a_primary_started_in_place_lets_nobody_in_before_standbys_have_what_it_has() -> TestResult {
    let settings = "[failover]\ndurability = 'sync'\n";
    let mut cluster = Cluster::for_test("sync-in-place").agent_settings(settings).start().await?;
    until_commits_wait(&cluster, &others_than("server1")).await?;
    let writer = Writer::start(&cluster, "in_place").await?;
    writer.until_written(100, SOON).await?;
    let direct = cluster.way_in_past_proxies("server1")?;
    let comes_in = async || {
        let refused = |error: tokio_postgres::Error| match error.as_db_error() {
            Some(db) => format!("{} {}", db.code().code(), db.message()),
            None => error.to_string(),
        };
        direct.connect(NoTls).await.map(drop).map_err(refused)
    };
    assert_eq!(comes_in().await, Ok(()));
    without_standbys(&mut cluster, async |cluster| {
        cluster.kill_postmaster("server1").ok_or_else(|| Failure::new("server1 does not run"))?;
        let waits = "server1 is up, and lets clients in once all it has is on any 1 of server2, server3";
        wait_until("it is up, and waits for standbys", SOON, async || {
            let answer =
                cluster.cli("server4", &["cluster-status"]).await.map_err(|error| error.to_string())?;
            if answer.out.contains(waits) { Ok(()) } else { Err(answer.out) }
        })
        .await?;
        let refused = comes_in().await.err().unwrap_or_default();
        assert!(refused.starts_with("28000 pg_hba.conf rejects connection for host"), "{refused}");
        let superuser = cluster.connect_server("server1", APP).await?;
        assert_eq!(superuser.query("SELECT", &[]).await?.len(), 1);
        Ok(())
    })
    .await?;
    writer.until_written(100, SOON).await?;
    wait_until("clients get in past the proxy", SOON, comes_in).await?;
    cluster.until_healthy(SOON).await?;
    assert_lossless(&writer.finish(&cluster).await?);
    let history = cluster.cli("server4", &["history"]).await?;
    assert!(history.out.lines().any(|line| line.contains("started in place")), "{history:?}");
    Ok(cluster.finish(&["pg_hba.conf rejects connection"])?)
}
