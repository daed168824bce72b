//! What an application sees of a change of primary.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::try_join_all;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use pgherd_cluster_tests::process::{self, Signal};
use pgherd_cluster_tests::workload::{Outcome, Writer, pgbench};
use pgherd_cluster_tests::{Cluster, Failure, TestResult, wait_until};
use tokio_postgres::{Client, NoTls};

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

/// Where standbys have so much to replay that the crashed primary is up again before one could take over.
#[tokio::test]
async fn a_killed_primary_is_started_where_it_is_if_that_is_quicker() -> TestResult {
    const MUCH: &str = "SELECT count(pg_logical_emit_message(false, 'test', repeat('x', 1 << 20))) FROM generate_series(1, 48)";
    let mut cluster = Cluster::for_test("in-place").start().await?;
    let writer = Writer::start(&cluster, "in_place").await?;
    writer.until_written(100, SOON).await?;
    for standby in ["server2", "server3"] {
        cluster
            .connect_server(standby, "postgres")
            .await?
            .batch_execute("SELECT pg_wal_replay_pause()")
            .await?;
    }
    let primary = cluster.connect_server("server1", "postgres").await?;
    primary.batch_execute(MUCH).await?;
    primary.batch_execute("CHECKPOINT").await?;
    let position: String = primary.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await?.get(0);
    for standby in ["server2", "server3"] {
        let standby = cluster.connect_server(standby, "postgres").await?;
        wait_until("the standby has received all of it", SOON, async || {
            let received = "SELECT pg_last_wal_receive_lsn() >= $1::text::pg_lsn";
            let row = standby.query_one(received, &[&position]).await.map_err(|error| error.to_string())?;
            if row.get(0) { Ok(()) } else { Err("it has not".to_owned()) }
        })
        .await?;
    }
    let before = cluster.status().await?;
    cluster.kill_postmaster("server1").ok_or_else(|| Failure::new("server1 does not run"))?;
    cluster
        .until("the next generation", SOON, |status| (status.generation > before.generation).then_some(()))
        .await?;
    writer.until_written(100, SOON).await?;
    assert_eq!(cluster.primary().await?, "server1");
    for standby in ["server2", "server3"] {
        cluster
            .connect_server(standby, "postgres")
            .await?
            .batch_execute("SELECT pg_wal_replay_resume()")
            .await?;
    }
    cluster.until_healthy(SOON).await?;
    let outcome = writer.finish(&cluster).await?;
    assert_undisturbed(&outcome, "started in place");
    assert!(outcome.lost.is_empty(), "{outcome:?}");
    let history = cluster.cli("server4", &["history"]).await?;
    let change = history.out.lines().find(|line| line.contains("failover")).unwrap_or_default();
    assert!(
        change.contains("started in place: server1 has ")
            && change.contains(" bytes of WAL to replay, server"),
        "{history:?}"
    );
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

/// What one of many clients has seen.
#[derive(Debug, Default)]
struct Seen {
    acknowledged: i64,
    /// Behind the first failure of anybody.
    later: i64,
    errors: Vec<String>,
}

/// Commits rows one after the other until it is told to stop, in one session whatever happens.
async fn commit_on(
    client: Client,
    number: i32,
    stop: Arc<AtomicBool>,
    failed: Arc<AtomicU64>,
) -> Result<Seen, tokio_postgres::Error> {
    const INSERT: &str = "INSERT INTO many SELECT $1::int, $2::bigint FROM pg_sleep(0.02)";
    let insert = client.prepare(INSERT).await?;
    let mut seen = Seen::default();
    let mut seq = 0_i64;
    while !stop.load(Ordering::Relaxed) {
        seq += 1;
        match client.execute(&insert, &[&number, &seq]).await {
            Ok(_) => {
                seen.acknowledged += 1;
                seen.later += i64::from(failed.load(Ordering::Relaxed) > 0);
            }
            Err(error) => {
                failed.fetch_add(1, Ordering::Relaxed);
                seen.errors.push(error.code().map_or(error.to_string(), |code| code.code().to_owned()));
            }
        }
        if client.is_closed() {
            seen.errors.push("the session was closed".to_owned());
            break;
        }
    }
    Ok(seen)
}

/// All server connections are busy when the primary crashes, and nine of ten clients wait for one.
#[tokio::test]
async fn five_hundred_clients_on_fifty_connections_go_on_behind_a_crash() -> TestResult {
    const CLIENTS: i32 = 500;
    const CONNECTIONS: usize = 50;
    let mut cluster = Cluster::for_test("many-clients")
        .proxy_settings(&format!("[pool]\nsize = {CONNECTIONS}\n"))
        .start()
        .await?;
    cluster.connect().await?.batch_execute("CREATE TABLE many (client int, seq bigint)").await?;
    let clients = (0..CLIENTS).map(async |_| {
        let (client, connection) = cluster.way_in(0).connect(NoTls).await?;
        tokio::spawn(connection);
        Ok::<_, tokio_postgres::Error>(client)
    });
    // Each login costs both sides some milliseconds: all at once would take longer than the proxy has patience.
    let clients: Vec<Client> = stream::iter(clients).buffered(16).try_collect().await?;
    let (stop, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let tasks: Vec<_> = (0..)
        .zip(clients)
        .map(|(number, client)| {
            tokio::spawn(commit_on(client, number, Arc::clone(&stop), Arc::clone(&failed)))
        })
        .collect();
    let rows = async |node: String, condition: &str| -> Result<i64, Failure> {
        let sql =
            format!("SELECT count(*) FROM (SELECT client FROM many GROUP BY client HAVING {condition}) AS c");
        Ok(cluster.connect_server(&node, "app").await?.query_one(&sql, &[]).await?.get(0))
    };
    let everybody = async |condition: String| {
        wait_until("all clients commit", SOON, async || {
            let node = cluster.primary().await.map_err(|error| error.to_string())?;
            match rows(node, &condition).await.map_err(|error| format!("{error:?}"))? {
                count if count == i64::from(CLIENTS) => Ok(()),
                count => Err(format!("{count} of them do")),
            }
        })
        .await
    };
    everybody("count(*) >= 2".to_owned()).await?;
    cluster.kill_postmaster("server1").ok_or_else(|| Failure::new("server1 does not run"))?;
    cluster
        .until("another primary", SOON, |status| status.primary().filter(|name| *name != "server1").map(drop))
        .await?;
    let node = cluster.connect_server(&cluster.primary().await?, "app").await?;
    let most: i64 = node
        .query_one("SELECT max(count) FROM (SELECT count(*) FROM many GROUP BY client) AS c", &[])
        .await?
        .get(0);
    everybody(format!("count(*) >= {}", most + 2)).await?;
    stop.store(true, Ordering::Relaxed);
    let seen: Vec<Seen> = try_join_all(tasks).await?.into_iter().collect::<Result<_, _>>()?;

    let mut codes = BTreeMap::<&str, usize>::new();
    for one in &seen {
        assert!(one.errors.len() <= 1, "one statement was in flight: {one:?}");
        one.errors.iter().for_each(|code| *codes.entry(code).or_default() += 1);
    }
    let told: usize = codes.values().sum();
    assert!(told > 0 && told <= CONNECTIONS, "{codes:?}");
    assert!(codes.keys().all(|code| ["08007", "40001"].contains(code)), "{codes:?}");
    assert!(seen.iter().all(|one| one.later > 0), "every client goes on");
    let sum: i64 = seen.iter().map(|one| one.acknowledged).sum();
    let there: i64 = node.query_one("SELECT count(*) FROM many", &[]).await?.get(0);
    let distinct: i64 = node.query_one("SELECT count(DISTINCT (client, seq)) FROM many", &[]).await?.get(0);
    // What nobody knows of (08007) may be there or not.
    assert!(
        (sum..=sum + i64::try_from(told)?).contains(&there),
        "{sum} acknowledged, {there} there, {codes:?}"
    );
    assert_eq!(there, distinct, "nothing is there twice");
    println!("{CLIENTS} clients, {sum} commits, statements that failed: {codes:?}");
    drop(node);
    cluster.until_healthy(SOON).await?;
    Ok(cluster.finish(&[])?)
}

/// Every transfer is there whole and once, or not at all.
#[tokio::test]
async fn balances_add_up_behind_crashes_and_a_switchover() -> TestResult {
    const SUMS: &str = "SELECT (SELECT count(*) FROM pgbench_history), (SELECT sum(delta)::bigint FROM pgbench_history), \
        (SELECT sum(abalance)::bigint FROM pgbench_accounts), (SELECT sum(tbalance)::bigint FROM pgbench_tellers), \
        (SELECT sum(bbalance)::bigint FROM pgbench_branches)";
    const TRANSFERS: i64 = 8 * 150;
    let mut cluster = Cluster::for_test("balances").start().await?;
    pgbench(&cluster, &["-i", "-q", "-s", "2"]).await?;
    let (mut made, mut unknown) = (0, false);
    for planned in [false, true, false] {
        let transfers = pgbench(&cluster, &["-n", "-c", "8", "-t", "150", "--max-tries", "20"]);
        let changed = async {
            let primary = cluster.primary().await?;
            let client = cluster.connect_server(&primary, "app").await?;
            wait_until("transfers are made", SOON, async || {
                let count = client.query_one("SELECT count(*) FROM pgbench_history", &[]).await;
                let count: i64 = count.map_err(|error| error.to_string())?.get(0);
                if count >= made + 200 { Ok(()) } else { Err(format!("{count}")) }
            })
            .await?;
            drop(client);
            if planned {
                let answer = cluster.cli("server4", &["promote", "--switchover"]).await?;
                assert_eq!(answer.code, 0, "{answer:?}");
            } else {
                cluster.kill_postmaster(&primary).ok_or_else(|| Failure::new(primary.as_str()))?;
            }
            Ok::<_, Failure>(())
        };
        let (transfers, changed) = tokio::join!(transfers, changed);
        changed?;
        match transfers {
            Ok(told) => {
                let all = format!("number of transactions actually processed: {TRANSFERS}/{TRANSFERS}");
                assert!(told.contains(&all), "{told}");
            }
            // pgbench gives a client up that nobody can tell what became of its COMMIT.
            Err(error) => {
                let said = error.to_string();
                assert!(!planned && said.contains("whether it took effect is unknown"), "{said}");
                unknown = true;
            }
        }
        cluster.until_healthy(SOON).await?;
        let row =
            cluster.connect_server(&cluster.primary().await?, "app").await?.query_one(SUMS, &[]).await?;
        let [transfers, deltas, accounts, tellers, branches]: [i64; 5] =
            std::array::from_fn(|at| row.get(at));
        assert_eq!((deltas, deltas, deltas), (accounts, tellers, branches));
        assert!(unknown || transfers == made + TRANSFERS, "{transfers} of {}", made + TRANSFERS);
        made = transfers;
    }
    Ok(cluster.finish(&[])?)
}
