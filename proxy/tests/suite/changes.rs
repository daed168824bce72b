//! What clients see when the cluster changes under them: delay where possible, one clear error where not.

use std::time::Duration;

use crate::harness::{Access, Agent, Postgres, Proxy, Script, soon};
use pgherd_common::push::{ToAgent, ToProxy};
use tokio_postgres::{Client, SimpleQueryMessage};

const WHERE: &str = "SELECT current_setting('pgherd.port')";

async fn text(client: &Client, sql: &str) -> String {
    let messages = soon(client.simple_query(sql)).await.unwrap();
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    row.expect("no row")
}

fn code(error: &tokio_postgres::Error) -> &str {
    error.code().unwrap_or_else(|| panic!("not an error of a server: {error}")).code()
}

/// Runs `future` until it has visibly not finished: long enough to reach a server, were there one.
async fn is_held(future: &mut (impl Future<Output = impl Sized> + Unpin)) {
    let finished = tokio::time::timeout(Duration::from_millis(300), future).await;
    assert!(finished.is_err(), "finished instead of being held");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_survive_a_failover() {
    let (first, second) = pair().await;
    let mut script = Script::new(&[&first, &second]);
    let mut agent = Agent::start(Some(script.steady())).await;
    let proxy = Proxy::start(&mut agent, Access::Trust).await;
    proxy.knows_catalogs().await;
    let idle = proxy.connect().await;
    let (in_tx, committing, reading, asleep) =
        (proxy.connect().await, proxy.connect().await, proxy.connect().await, proxy.connect().await);
    idle.batch_execute("SET my.flag = 'kept'").await.unwrap();
    let insert = idle.prepare("INSERT INTO t VALUES ($1)").await.unwrap();
    for client in [&in_tx, &committing] {
        client.batch_execute("BEGIN; INSERT INTO t VALUES (7)").await.unwrap();
    }
    assert_eq!(text(&reading, WHERE).await, second.port().to_string());
    let sleeping =
        tokio::spawn(async move { asleep.batch_execute("INSERT INTO t SELECT 8 FROM pg_sleep(60)").await });

    second.caught_up_with(&first).await;
    let watcher = first.direct().await;
    let running =
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' AND wait_event = 'PgSleep'";
    soon(async { while watcher.query_one(running, &[]).await.unwrap().get::<_, i64>(0) == 0 {} }).await;
    first.crash();
    agent.push(script.set_up(1, false).headless()).await;
    let error = soon(sleeping).await.unwrap().unwrap_err();
    assert_eq!(code(&error), "08007", "{error}");

    assert_eq!(text(&reading, WHERE).await, second.port().to_string(), "reads go on without a primary");
    let lost = in_tx.batch_execute("INSERT INTO t VALUES (9)").await.unwrap_err();
    assert_eq!(code(&lost), "40001", "{lost}");
    in_tx.batch_execute("ROLLBACK").await.unwrap();
    let lost = committing.batch_execute("COMMIT").await.unwrap_err();
    assert_eq!(code(&lost), "40001", "the commit was never sent: {lost}");

    let mut held = Box::pin(idle.execute(&insert, &[&10i32]));
    is_held(&mut held).await;
    second.promote();
    agent.push(script.promoted(2)).await;
    assert_eq!(soon(held).await.unwrap(), 1);
    assert_eq!(text(&idle, "SHOW my.flag").await, "kept");
    assert_eq!(text(&in_tx, "SELECT count(*) FROM t WHERE a > 2").await, "1");
    assert!(!in_tx.is_closed() && !committing.is_closed() && !reading.is_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_whose_agents_may_be_cut_off_starts_nothing_new_on_the_primary() {
    let (first, second) = pair().await;
    let script = &mut Script::new(&[&first, &second]);
    let mut agent = Agent::start(Some(script.steady())).await;
    let proxy = Proxy::start(&mut agent, Access::Trust).await;
    proxy.knows_catalogs().await;
    let (writer, in_tx) = (proxy.connect().await, proxy.connect().await);
    writer.batch_execute("INSERT INTO t VALUES (20)").await.unwrap();
    in_tx.batch_execute("BEGIN; INSERT INTO t VALUES (21)").await.unwrap();

    // The last claim runs out; none is made any more.
    agent.claim_quorum(0);
    let client = &writer;
    let mut attempts = 0;
    let mut held = loop {
        attempts += 1;
        assert!(attempts < 100_000, "the claim never runs out");
        let mut insert = Box::pin(client.batch_execute("INSERT INTO t VALUES (100)"));
        if tokio::time::timeout(Duration::from_millis(500), &mut insert).await.is_err() {
            break insert;
        }
    };
    assert_eq!(text(&in_tx, "SELECT count(*) FROM t WHERE a = 21").await, "1", "what runs may end");
    in_tx.batch_execute("COMMIT").await.unwrap();
    is_held(&mut held).await;
    let reader = proxy.connect().await;
    assert_eq!(text(&reader, WHERE).await, second.port().to_string(), "reads go on");

    agent.claim_quorum(2_000);
    soon(held).await.unwrap();
}

async fn pair() -> (Postgres, Postgres) {
    let first = Postgres::primary(Access::Trust);
    first
        .direct()
        .await
        .batch_execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1), (2)")
        .await
        .unwrap();
    let second = first.standby();
    second.caught_up_with(&first).await;
    (first, second)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn switchovers_and_lost_standbys_cost_no_error() {
    let (first, second) = pair().await;
    let mut script = Script::new(&[&first, &second]);
    let mut agent = Agent::start(Some(script.steady())).await;
    let proxy = Proxy::start(&mut agent, Access::Trust).await;
    proxy.knows_catalogs().await;
    let (running, waiting) = (proxy.connect().await, proxy.connect().await);
    running.batch_execute("BEGIN; INSERT INTO t VALUES (3)").await.unwrap();
    agent.push(script.changing()).await;
    running.batch_execute("INSERT INTO t VALUES (4); COMMIT").await.unwrap();
    let mut held = Box::pin(waiting.batch_execute("INSERT INTO t VALUES (5)"));
    is_held(&mut held).await;
    assert_eq!(text(&running, WHERE).await, second.port().to_string(), "reads go on during a switchover");
    agent.push(script.steady()).await;
    soon(held).await.unwrap();
    assert_eq!(text(&running, "SELECT count(*) FROM (SELECT a FROM t FOR SHARE) x").await, "5");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_dies_is_not_noticed() {
    let (first, second) = pair().await;
    let mut script = Script::new(&[&first, &second]);
    let mut agent = Agent::start(Some(script.steady())).await;
    let proxy = Proxy::start(&mut agent, Access::Trust).await;
    proxy.knows_catalogs().await;
    let (client, other) = (proxy.connect().await, proxy.connect().await);
    let read = client.prepare("SELECT current_setting('pgherd.port'), a FROM t WHERE a = $1").await.unwrap();
    let run = async |expected: &Postgres| {
        let row = soon(client.query_one(&read, &[&2i32])).await.unwrap();
        assert_eq!((row.get::<_, String>(0), row.get::<_, i32>(1)), (expected.port().to_string(), 2));
    };
    run(&second).await;
    // Under way when its server dies.
    let in_flight = tokio::spawn(async move {
        text(&other, "SELECT sum(length(repeat('x', n))) FROM generate_series(1, 40000) n").await
    });
    second.crash();
    assert!(!soon(in_flight).await.unwrap().is_empty());
    run(&first).await;
    agent.push(script.set_up(2, false).steady()).await;
    run(&first).await;
    second.start();
    agent.push(script.set_up(2, true).steady()).await;
    run(&second).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_is_still_in_recovery_is_waited_for() {
    let (first, second) = pair().await;
    let mut script = Script::new(&[&first, &second]);
    let mut agent = Agent::start(Some(script.steady())).await;
    let proxy =
        Proxy::start_with(&mut agent, Access::Trust, "hold_timeout = '8s'\nconnect_timeout = '1s'").await;
    let client = proxy.connect().await;
    first.crash();
    agent.push(script.set_up(1, false).promoted(2)).await;
    let mut held = Box::pin(client.batch_execute("INSERT INTO t VALUES (3)"));
    is_held(&mut held).await;
    second.promote();
    soon(held).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn older_topologies_are_refused_and_the_last_one_stays() {
    let first = Postgres::primary(Access::Trust);
    let mut script = Script::new(&[&first]);
    let (old, current) = (script.headless(), script.promoted(1));
    let mut agent = Agent::start(Some(current.clone())).await;
    let proxy = Proxy::start(&mut agent, Access::Trust).await;
    assert_eq!(agent.hear().await, ToAgent::Ack(current.version()));
    agent.say(ToProxy::Reset(old.clone()));
    let refused = ToAgent::Refused { pushed: old.version(), have: current.version() };
    assert_eq!(agent.hear().await, refused);
    agent.push(current).await;
    let client = proxy.connect().await;
    drop(agent);
    client.batch_execute("CREATE TABLE still (works bool)").await.unwrap();
    soon(async { while !rows(&client, "SHOW TOPOLOGY").await.iter().any(|row| row.starts_with("down")) {} })
        .await;
    client.batch_execute("DROP TABLE still").await.unwrap();
}

async fn rows(client: &Client, sql: &str) -> Vec<String> {
    let messages = soon(client.simple_query(sql)).await.unwrap();
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => row.get(1).map(str::to_owned),
        _ => None,
    };
    messages.iter().filter_map(row).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_ends_with_a_clear_error_or_a_cancel() {
    let first = Postgres::primary(Access::Trust);
    let mut script = Script::new(&[&first]);
    let mut agent = Agent::start(Some(script.steady())).await;
    let proxy =
        Proxy::start_with(&mut agent, Access::Trust, "hold_timeout = '1s'\nconnect_timeout = '1s'").await;
    let client = proxy.connect().await;
    agent.push(script.headless()).await;
    let error = client.batch_execute("CREATE TABLE x (a int)").await.unwrap_err();
    assert_eq!(code(&error), "57P03", "{error}");
    let token = client.cancel_token();
    let held = client.batch_execute("CREATE TABLE x (a int)");
    let cancel = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        token.cancel_query(tokio_postgres::NoTls).await.unwrap();
    };
    let (result, ()) = soon(futures_util::future::join(held, cancel)).await;
    assert_eq!(code(&result.unwrap_err()), "57014");
    agent.push(script.promoted(1)).await;
    client.batch_execute("CREATE TABLE x (a int)").await.unwrap();
    let idle = proxy.connect().await;
    proxy.stop().await;
    soon(async { while !idle.is_closed() {} }).await;
}
