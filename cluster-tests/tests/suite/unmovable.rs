//! Sessions with something that only one server connection has, when the primary changes.

use std::time::Duration;

use pgherd_cluster_tests::postgres::APP;
use pgherd_cluster_tests::{Cluster, Failure, TestResult, wait_until};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, NoTls};

const SOON: Duration = Duration::from_secs(30);

/// A session through the proxy, and what ended it.
struct Watched {
    client: Client,
    end: JoinHandle<Result<(), tokio_postgres::Error>>,
}

impl Watched {
    async fn connect(cluster: &Cluster) -> Result<Self, tokio_postgres::Error> {
        let proxy = cluster.proxy(0);
        let mut config = Config::new();
        config.host(&proxy.place.host).port(proxy.port).user(APP).password(APP).dbname(APP);
        let (client, connection) = config.connect(NoTls).await?;
        Ok(Self { client, end: tokio::spawn(connection) })
    }

    /// The code and the text with which the proxy ended it.
    async fn ended(self) -> Result<(String, String), Failure> {
        let end = tokio::time::timeout(SOON, self.end).await.map_err(|_| Failure::new("it goes on"))??;
        let error = end.err().ok_or_else(|| Failure::new("it ended without a word"))?;
        let error = error.as_db_error().ok_or_else(|| Failure::new(format!("it broke: {error}")))?;
        Ok((error.code().code().to_owned(), error.message().to_owned()))
    }
}

async fn shown(client: &Client, name: &str) -> Result<String, tokio_postgres::Error> {
    Ok(client.query_one(&format!("SHOW {name}"), &[]).await?.get(0))
}

#[tokio::test]
async fn sessions_that_cannot_move_are_waited_for_and_then_ended_with_the_reason() -> TestResult {
    let settings = "[timings]\ndrain_timeout = '1500ms'\n";
    let mut cluster = Cluster::for_test("unmovable").agent_settings(settings).start().await?;
    // What most sessions have goes with them.
    let usual = Watched::connect(&cluster).await?;
    usual.client.batch_execute("SET application_name = 'mine'; CREATE TABLE t (i int)").await?;
    let prepared = usual.client.prepare("INSERT INTO t VALUES ($1)").await?;
    usual.client.execute(&prepared, &[&1]).await?;

    let temporary = Watched::connect(&cluster).await?;
    temporary.client.batch_execute("CREATE TEMP TABLE mine (i int)").await?;
    let report = async {
        wait_until("the switchover waits", SOON, async || {
            let status = cluster.status().await.map_err(|error| error.to_string())?;
            if status.report.iter().any(|line| line.contains("cannot move")) {
                Ok(())
            } else {
                Err(status.summary())
            }
        })
        .await?;
        // Nobody is held up: it comes to its end as if nothing were the matter.
        temporary.client.batch_execute("INSERT INTO mine VALUES (1)").await?;
        temporary.client.batch_execute("DROP TABLE mine").await?;
        Ok::<_, Failure>(())
    };
    let switchover = cluster.cli("server4", &["promote", "--switchover"]);
    let (answer, report) = tokio::join!(switchover, report);
    report?;
    assert_eq!(answer?.code, 0);
    temporary.client.batch_execute("INSERT INTO t VALUES (2)").await?;
    cluster.until_healthy(SOON).await?;

    let listens = Watched::connect(&cluster).await?;
    listens.client.batch_execute("LISTEN news").await?;
    let locks = Watched::connect(&cluster).await?;
    locks.client.batch_execute("SELECT pg_advisory_lock(7)").await?;
    let holds = Watched::connect(&cluster).await?;
    holds.client.batch_execute("DECLARE c CURSOR WITH HOLD FOR SELECT 1").await?;
    let from = cluster.primary().await?;
    let answer = cluster.cli("server4", &["promote", "--switchover"]).await?;
    assert_eq!(answer.code, 0, "{answer:?}");
    for (session, what) in [(listens, "LISTEN"), (locks, "advisory lock"), (holds, "WITH HOLD cursor")] {
        let (code, message) = session.ended().await?;
        let expected =
            format!("terminating connection: it is kept on server {from} for its {what}, and that is gone");
        assert_eq!((code.as_str(), message), ("57P01", expected));
    }
    usual.client.execute(&prepared, &[&3]).await?;
    assert_eq!(shown(&usual.client, "application_name").await?, "mine");
    let rows: i64 = usual.client.query_one("SELECT count(*) FROM t", &[]).await?.get(0);
    assert_eq!(rows, 3);
    cluster.until_healthy(SOON).await?;
    Ok(cluster.finish(&["going on, which ends them"])?)
}

#[tokio::test]
async fn a_switchover_is_given_up_for_a_session_that_cannot_move_where_that_is_wanted() -> TestResult {
    let settings = "[switchover]\nunmovable = 'refuse'\n[timings]\ndrain_timeout = '300ms'\n";
    let mut cluster = Cluster::for_test("unmovable-refuse").agent_settings(settings).start().await?;
    let locks = Watched::connect(&cluster).await?;
    locks.client.batch_execute("SELECT pg_advisory_lock(7)").await?;
    let answer = cluster.cli("server4", &["promote", "--switchover", "--explain"]).await?;
    let told = "1 sessions cannot move to another server (switchover.unmovable says what becomes of them); the first is of user app";
    assert!(answer.out.contains(told), "{answer:?}");
    let answer = cluster.cli("server4", &["promote", "--switchover"]).await?;
    assert_ne!(answer.code, 0, "{answer:?}");
    let why = "sessions that cannot move to another server are still there after 0.3 s, 1 in all; the first is of user app in app";
    assert!(answer.out.contains(why) && answer.out.contains("for its advisory lock"), "{answer:?}");
    assert_eq!(cluster.primary().await?, "server1");
    let held: i64 = locks
        .client
        .query_one("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", &[])
        .await?
        .get(0);
    assert_eq!(held, 1);
    locks.client.batch_execute("DISCARD ALL").await?;
    let answer = cluster.cli("server4", &["promote", "--switchover"]).await?;
    assert_eq!(answer.code, 0, "{answer:?}");
    locks.client.batch_execute("SELECT 1").await?;
    cluster.until_healthy(SOON).await?;
    Ok(cluster.finish(&["are still there after"])?)
}

/// Nobody could wait for them here.
#[tokio::test]
async fn a_crash_ends_sessions_that_cannot_move_and_no_others() -> TestResult {
    let mut cluster = Cluster::for_test("unmovable-crash").start().await?;
    let usual = Watched::connect(&cluster).await?;
    usual.client.batch_execute("SET application_name = 'mine'; CREATE TABLE t (i int)").await?;
    let prepared = usual.client.prepare("INSERT INTO t VALUES ($1)").await?;
    let locks = Watched::connect(&cluster).await?;
    locks.client.batch_execute("SELECT pg_advisory_lock(7)").await?;
    cluster.kill_postmaster("server1").ok_or_else(|| Failure::new("server1 does not run"))?;
    let (code, message) = locks.ended().await?;
    assert_eq!(code, "57P01", "{message}");
    usual.client.execute(&prepared, &[&1]).await?;
    assert_eq!(shown(&usual.client, "application_name").await?, "mine");
    cluster.until_healthy(SOON).await?;
    Ok(cluster.finish(&[])?)
}
