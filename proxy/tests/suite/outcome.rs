//! What a client is told whose `COMMIT` was on its way when the primary was lost.

use crate::harness::{Access, Agent, Postgres, Proxy, Script, soon};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

type Committing = JoinHandle<(Client, Result<(), tokio_postgres::Error>)>;

/// A primary and its standby, and tables; whoever inserts into `slow` commits for a minute.
async fn pair() -> (Postgres, Postgres) {
    let first = Postgres::primary(Access::Trust);
    let tables = "CREATE TABLE t (a int); CREATE TABLE slow (a int); \
         CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); RETURN NULL; END'; \
         CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED \
           FOR EACH ROW EXECUTE FUNCTION dawdle(); \
         CREATE ROLE joe LOGIN; GRANT ALL ON t TO joe";
    first.direct().await.batch_execute(tables).await.unwrap();
    let second = first.standby();
    second.caught_up_with(&first).await;
    (first, second)
}

/// A session with an open transaction, the second one on its connection.
async fn in_transaction(proxy: &Proxy, sql: &str) -> Client {
    let client = proxy.connect().await;
    client.batch_execute("BEGIN; INSERT INTO t VALUES (0)").await.unwrap();
    client.batch_execute("COMMIT").await.unwrap();
    client.batch_execute("BEGIN").await.unwrap();
    client.batch_execute(sql).await.unwrap();
    client
}

fn commit(client: Client) -> Committing {
    tokio::spawn(async move {
        let done = client.batch_execute("COMMIT").await;
        (client, done)
    })
}

/// From now on commits are not acknowledged.
async fn hold_acknowledgements(first: &Postgres) {
    let watcher = first.direct().await;
    watcher.batch_execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await.unwrap();
    watcher.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let known = "SELECT current_setting('synchronous_standby_names') = 'nobody'";
    soon(async { while !first.direct().await.query_one(known, &[]).await.unwrap().get::<_, bool>(0) {} })
        .await;
}

async fn until_wait(first: &Postgres, event: &str, count: i64) {
    let watcher = first.direct().await;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = $1";
    soon(async { while watcher.query_one(waiting, &[&event]).await.unwrap().get::<_, i64>(0) < count {} })
        .await;
}

/// The standby gets no more. The first number that it has not seen a transaction end with.
async fn cut_off(second: &Postgres) -> u64 {
    let own = second.direct().await;
    own.batch_execute("ALTER SYSTEM SET primary_conninfo = ''").await.unwrap();
    own.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let gone = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walreceiver'";
    soon(async { while own.query_one(gone, &[]).await.unwrap().get::<_, i64>(0) > 0 {} }).await;
    let next = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text";
    own.query_one(next, &[]).await.unwrap().get::<_, &str>(0).parse().unwrap()
}

fn code(error: &tokio_postgres::Error) -> &str {
    error.code().unwrap_or_else(|| panic!("not an error of a server: {error}")).code()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_primary_tells_what_became_of_a_commit() {
    let (first, second) = pair().await;
    let mut script = Script::new(&[&first, &second]);
    let mut agent = Agent::start(Some(script.steady())).await;
    let proxy = Proxy::start(&mut agent, Access::Trust).await;
    let plain = in_transaction(&proxy, "INSERT INTO t VALUES (1); SET my.flag = 'kept'").await;
    let prepared = in_transaction(&proxy, "INSERT INTO t VALUES (2)").await;
    let lost = in_transaction(&proxy, "INSERT INTO t VALUES (3)").await;
    let slow = in_transaction(&proxy, "INSERT INTO slow VALUES (4)").await;
    let idle = in_transaction(&proxy, "SELECT 5 FROM pg_create_restore_point('5')").await;
    hold_acknowledgements(&first).await;

    let plain = commit(plain);
    let prepared: Committing = tokio::spawn(async move {
        let done = async { prepared.execute("COMMIT", &[]).await.map(drop) }.await;
        (prepared, done)
    });
    until_wait(&first, "SyncRep", 2).await;
    second.caught_up_with(&first).await;
    let next = cut_off(&second).await;
    let lost = commit(lost);
    until_wait(&first, "SyncRep", 3).await;
    let slow = commit(slow);
    until_wait(&first, "PgSleep", 1).await;
    first.crash();
    agent.push(script.set_up(1, false).headless()).await;
    second.promote();
    // The numbers of transactions that the standby never saw are given to others.
    let own = second.direct().await;
    for _ in 0..20 {
        own.batch_execute("INSERT INTO t VALUES (100)").await.unwrap();
    }
    agent.push(script.promoted_at(2, next)).await;

    let (plain, done) = soon(plain).await.unwrap();
    done.unwrap();
    let row =
        plain.query_one("SELECT current_setting('my.flag'), count(*) FROM t WHERE a = 1", &[]).await.unwrap();
    assert_eq!((row.get::<_, &str>(0), row.get::<_, i64>(1)), ("kept", 1));
    let (prepared, done) = soon(prepared).await.unwrap();
    done.unwrap();
    let row = prepared.query_one("SELECT count(*) FROM t WHERE a = 2", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 1);
    for committing in [lost, slow] {
        let (client, done) = soon(committing).await.unwrap();
        let error = done.unwrap_err();
        assert_eq!(code(&error), "40001", "{error}");
        client.batch_execute("INSERT INTO t VALUES (6)").await.unwrap();
    }
    let error = idle.batch_execute("COMMIT").await.unwrap_err();
    assert_eq!(code(&error), "40001", "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_numbers_may_have_been_given_twice_nobody_knows() {
    let (first, second) = pair().await;
    let mut script = Script::new(&[&first, &second]);
    let mut agent = Agent::start(Some(script.steady())).await;
    let proxy = Proxy::start(&mut agent, Access::Trust).await;
    let client = in_transaction(&proxy, "INSERT INTO t VALUES (1)").await;
    // A statement by itself has no number before it is run.
    let single = proxy.connect().await;
    hold_acknowledgements(&first).await;
    let committing = commit(client);
    let inserting = tokio::spawn(async move { single.batch_execute("INSERT INTO t VALUES (2)").await });
    until_wait(&first, "SyncRep", 2).await;
    second.caught_up_with(&first).await;
    first.crash();
    agent.push(script.set_up(1, false).headless()).await;
    second.promote();
    agent.push(script.promoted(2)).await;
    let (client, done) = soon(committing).await.unwrap();
    assert_eq!(code(&done.unwrap_err()), "08007");
    assert_eq!(code(&soon(inserting).await.unwrap().unwrap_err()), "08007");
    client.batch_execute("INSERT INTO t VALUES (3)").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_that_fails_is_not_taken_for_a_commit() {
    let (first, second) = pair().await;
    let mut script = Script::new(&[&first, &second]);
    let mut agent = Agent::start(Some(script.steady())).await;
    let proxy = Proxy::start(&mut agent, Access::Trust).await;
    let connect = async || {
        let (client, connection) =
            tokio_postgres::connect(&proxy.login("joe", "secret", "postgres"), NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    };
    let insert = async |client: &Client| {
        client.batch_execute("BEGIN; INSERT INTO t VALUES (1)").await.unwrap();
        client.batch_execute("COMMIT").await
    };
    let client = connect().await;
    insert(&client).await.unwrap();
    let owner = first.direct().await;
    owner
        .batch_execute("REVOKE EXECUTE ON FUNCTION pg_current_xact_id_if_assigned() FROM public")
        .await
        .unwrap();
    // It failed, and says so: the transaction is gone, and that is what the client is told.
    let error = insert(&client).await.unwrap_err();
    assert_eq!(code(&error), "42501", "{error}");
    let row = owner.query_one("SELECT count(*) FROM t", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 1);
    // It is asked no more, and a connection that never had the right is not asked within a transaction.
    insert(&client).await.unwrap();
    let other = connect().await;
    insert(&other).await.unwrap();
    insert(&other).await.unwrap();
    let row = owner.query_one("SELECT count(*) FROM t", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 4);
}
