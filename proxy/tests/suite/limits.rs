//! Limits: how many clients, how many server connections, how long a queue, how long a silence; for all,
//! for one database, for one user.

use std::time::Duration;

use crate::harness::{Access, Agent, Postgres, Proxy, Script, soon};
use futures_util::future::join_all;
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

const SCHEMA: &str = "
    CREATE TABLE t (id serial, n int);
    GRANT ALL ON t, t_id_seq TO public;
    CREATE ROLE ann LOGIN;
    CREATE ROLE bob LOGIN;
    CREATE ROLE \"o'neil & co\" LOGIN;
    CREATE DATABASE shop;";

struct World {
    primary: Postgres,
    standby: Postgres,
}

impl World {
    async fn start() -> Self {
        let primary = Postgres::primary(Access::Trust);
        let direct = primary.direct().await;
        for sql in SCHEMA.split(';').filter(|sql| !sql.trim().is_empty()) {
            direct.batch_execute(sql).await.unwrap();
        }
        let standby = primary.standby();
        standby.caught_up_with(&primary).await;
        Self { primary, standby }
    }

    /// A proxy with these lines, of which the first belong to `[proxy]`.
    async fn proxy(&self, lines: &str) -> (Agent, Proxy) {
        let mut agent = Agent::start(Some(Script::new(&[&self.primary, &self.standby]).steady())).await;
        let proxy = Proxy::start_with(&mut agent, Access::Trust, lines).await;
        (agent, proxy)
    }
}

/// A login, which may be refused, and what becomes of it.
async fn login(
    proxy: &Proxy,
    user: &str,
    database: &str,
) -> Result<(Client, tokio::task::JoinHandle<Option<DbError>>), DbError> {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(proxy.port()).user(user).dbname(database).password("secret");
    let (client, connection) =
        soon(config.connect(NoTls)).await.map_err(|error| error.as_db_error().unwrap().clone())?;
    let end = tokio::spawn(async { connection.await.err().and_then(|error| error.as_db_error().cloned()) });
    Ok((client, end))
}

async fn connect(proxy: &Proxy, user: &str) -> Client {
    login(proxy, user, "postgres").await.unwrap().0
}

async fn simple(client: &Client, sql: &str) -> Vec<String> {
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
        _ => None,
    };
    let answer = soon(client.simple_query(sql)).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    answer.iter().filter_map(row).collect()
}

async fn failure(client: &Client, sql: &str) -> DbError {
    soon(client.simple_query(sql)).await.unwrap_err().as_db_error().unwrap().clone()
}

/// A column of a table that the proxy shows, with the rows where `user` is the user.
async fn shown(admin: &Client, table: &str, user: &str, column: &str) -> Vec<String> {
    let rows = soon(admin.query(&format!("SHOW {table}"), &[])).await.unwrap();
    let own = rows.iter().filter(|row| row.get::<_, &str>("user") == user);
    own.map(|row| row.get(column)).collect()
}

const PID: &str = "SELECT pg_backend_pid() FROM (SELECT random()) r";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_one_too_many_is_told_of_which_limit() {
    let world = World::start().await;
    let lines = "max_client_connections = 4\nreserve = 1
        [databases.shop]\nmax_client_connections = 1
        [users.ann]\nmax_client_connections = 2
        [users.\"o'neil & co\"]\nmax_client_connections = 0";
    let (_agent, proxy) = world.proxy(lines).await;
    let refused = async |user: &str, database: &str| {
        let error = login(&proxy, user, database).await.map(drop).unwrap_err();
        assert_eq!(error.code(), &SqlState::TOO_MANY_CONNECTIONS);
        assert!(error.hint().unwrap().contains("raise the limit"), "{error:?}");
        (error.message().to_owned(), error.detail().unwrap().to_owned())
    };
    let (message, detail) = refused("o'neil & co", "postgres").await;
    assert_eq!(message, "too many connections for role \"o'neil & co\"");
    assert!(detail.contains("max_client_connections of [users.\"o'neil & co\"], 0,"), "{detail}");
    let _shop = login(&proxy, "ann", "shop").await.unwrap();
    let (message, detail) = refused("bob", "shop").await;
    assert_eq!(message, "too many connections for database \"shop\"");
    assert!(detail.contains("[databases.\"shop\"], 1,"), "{detail}");
    let _second = connect(&proxy, "ann").await;
    let (message, _) = refused("ann", "postgres").await;
    assert_eq!(message, "too many connections for role \"ann\"");
    let (one, other) = (connect(&proxy, "bob").await, connect(&proxy, "bob").await);
    let (message, detail) = refused("bob", "postgres").await;
    assert_eq!(message, "sorry, too many clients already");
    assert!(detail.contains("proxy.max_client_connections, 4,"), "{detail}");
    let admin = connect(&proxy, "postgres").await;
    assert_eq!(simple(&admin, "SELECT current_user").await, ["postgres"]);
    refused("postgres", "postgres").await;
    drop((one, other));
    soon(async { while !shown(&admin, "clients", "bob", "client_id").await.is_empty() {} }).await;
    drop(connect(&proxy, "bob").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pools_have_the_size_of_their_user_or_database() {
    let world = World::start().await;
    let lines = "[pool]\nsize = 3\nqueue_timeout = '300ms'
        [databases.shop]\npool_size = 2
        [users.ann]\npool_size = 1";
    let (_agent, proxy) = world.proxy(lines).await;
    let admin = connect(&proxy, "postgres").await;
    let (one, other) = (connect(&proxy, "ann").await, connect(&proxy, "ann").await);
    simple(&one, "BEGIN; INSERT INTO t (n) VALUES (1)").await;
    let error = failure(&other, "INSERT INTO t (n) VALUES (2)").await;
    assert_eq!(error.code(), &SqlState::TOO_MANY_CONNECTIONS);
    assert!(error.detail().unwrap().starts_with("All 1 connections to server server1 as user \"ann\""));
    let many = join_all((0..3).map(|_| connect(&proxy, "bob"))).await;
    for client in &many {
        simple(client, "BEGIN; INSERT INTO t (n) VALUES (1)").await;
    }
    let _shop = login(&proxy, "bob", "shop").await.unwrap();
    let sizes = async |user: &str| {
        let mut sizes = shown(&admin, "pools", user, "size").await;
        sizes.sort();
        sizes
    };
    assert_eq!(sizes("ann").await, ["1"]);
    assert_eq!(sizes("bob").await, ["2", "3"]);
    assert_eq!(shown(&admin, "users", "ann", "pool_size").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_queue_is_served_in_order_and_has_an_end() {
    let world = World::start().await;
    let (_agent, proxy) = world.proxy("[pool]\nsize = 1\nqueue_size = 5\nqueue_timeout = '10s'").await;
    let admin = connect(&proxy, "postgres").await;
    let holder = connect(&proxy, "ann").await;
    let mut clients = Vec::new();
    for _ in 0..6 {
        // One after the other: logins wait in the same queue.
        clients.push(connect(&proxy, "ann").await);
    }
    let waits = async || shown(&admin, "stats", "ann", "waits").await[0].parse::<u64>().unwrap();
    simple(&holder, "BEGIN; INSERT INTO t (n) VALUES (-1)").await;
    let before = waits().await;
    let mut waiting = Vec::new();
    let mut clients = clients.into_iter();
    for number in 0..5 {
        let client = clients.next().unwrap();
        let sql = format!("INSERT INTO t (n) VALUES ({number})");
        waiting.push(tokio::spawn(async move { simple(&client, &sql).await }));
        let queued = (number + 1).to_string();
        soon(async { while shown(&admin, "pools", "ann", "waiting").await != [queued.as_str()] {} }).await;
    }
    let last = clients.next().unwrap();
    let error = failure(&last, "INSERT INTO t (n) VALUES (6)").await;
    assert_eq!(error.code(), &SqlState::TOO_MANY_CONNECTIONS);
    assert_eq!(error.message(), "too many clients wait for a server connection");
    assert!(error.detail().unwrap().contains("5 clients wait"), "{error:?}");
    simple(&holder, "COMMIT").await;
    soon(join_all(waiting)).await;
    let order = simple(&admin, "SELECT n FROM (SELECT * FROM t ORDER BY id FOR UPDATE) s").await;
    assert_eq!(order, ["-1", "0", "1", "2", "3", "4"]);
    assert_eq!(waits().await - before, 5);
    simple(&last, "INSERT INTO t (n) VALUES (6)").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_has_its_limits() {
    let world = World::start().await;
    let lines = "idle_timeout = '2s'\nidle_in_transaction_timeout = '1s'
        [users.bob]\nidle_timeout = '0s'\nidle_in_transaction_timeout = '0s'
        [users.postgres]\nidle_timeout = '0s'";
    let (_agent, proxy) = world.proxy(lines).await;
    let direct = world.primary.direct().await;
    let (bob, _) = login(&proxy, "bob", "postgres").await.unwrap();
    simple(&bob, "BEGIN; INSERT INTO t (n) VALUES (7)").await;
    let (busy, _) = login(&proxy, "ann", "postgres").await.unwrap();
    let (sleepy, end) = login(&proxy, "ann", "postgres").await.unwrap();
    simple(&sleepy, "BEGIN; INSERT INTO t (n) VALUES (1)").await;
    let told = soon(async {
        tokio::pin!(end);
        loop {
            tokio::select! {
                told = &mut end => break told.unwrap().unwrap(),
                _ = tokio::time::sleep(Duration::from_millis(100)) => drop(simple(&busy, "SELECT 1").await),
            }
        }
    })
    .await;
    assert_eq!(told.code(), &SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT);
    assert_eq!(told.message(), "terminating connection due to idle-in-transaction timeout");
    let open = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'ann' AND xact_start IS NOT NULL";
    soon(async { while direct.query_one(open, &[]).await.unwrap().get::<_, i64>(0) > 0 {} }).await;
    let (quiet, end) = login(&proxy, "ann", "postgres").await.unwrap();
    simple(&quiet, "SELECT 1").await;
    let told = soon(end).await.unwrap().unwrap();
    assert_eq!(told.code().code(), "57P05");
    assert_eq!(told.message(), "terminating connection due to idle-session timeout");
    // Nothing of it for a user who has no limit, nor for a statement that takes longer.
    simple(&bob, "COMMIT").await;
    let slow = connect(&proxy, "ann").await;
    simple(&slow, "BEGIN; SELECT pg_sleep(2)").await;
    assert_eq!(simple(&slow, "SELECT n FROM (SELECT n FROM t FOR UPDATE) s").await, ["7"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn administrators_get_a_connection_when_all_are_in_use() {
    let world = World::start().await;
    let (_agent, proxy) = world.proxy("[pool]\nsize = 1\nreserve = 1\nqueue_timeout = '300ms'").await;
    let (ann, bob) = (connect(&proxy, "ann").await, connect(&proxy, "ann").await);
    simple(&ann, "BEGIN; INSERT INTO t (n) VALUES (1)").await;
    let error = failure(&bob, "INSERT INTO t (n) VALUES (1)").await;
    assert_eq!(error.code(), &SqlState::TOO_MANY_CONNECTIONS, "not for others");
    let (one, other) = (connect(&proxy, "postgres").await, connect(&proxy, "postgres").await);
    simple(&one, "BEGIN; INSERT INTO t (n) VALUES (1)").await;
    for _ in 0..3 {
        simple(&other, "INSERT INTO t (n) VALUES (2)").await;
    }
    simple(&other, "BEGIN; INSERT INTO t (n) VALUES (2)").await;
    let fourth = login(&proxy, "postgres", "postgres").await.map(drop).unwrap_err();
    assert_eq!(fourth.code(), &SqlState::TOO_MANY_CONNECTIONS, "there is one, not more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_goes_before_its_user_and_that_before_the_database() {
    let world = World::start().await;
    let lines = "[databases.postgres]\nread_consistency = 'session'\npool_mode = 'auto'
        [users.ann]\nread_consistency = 'eventual'\npool_mode = 'session'
        [users.bob]\npool_size = 2";
    let (_agent, proxy) = world.proxy(&format!("[routing]\nread_consistency = 'global'\n{lines}")).await;
    let (ann, bob) = (connect(&proxy, "ann").await, connect(&proxy, "bob").await);
    world.standby.direct().await.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
    let count = "SELECT count(*) FROM t";
    let port = "SELECT current_setting('pgherd.port') FROM t UNION SELECT current_setting('pgherd.port')";
    let standby = [world.standby.port().to_string()];
    proxy_knows(&ann, port, &standby[0]).await;
    simple(&ann, "INSERT INTO t (n) VALUES (1)").await;
    simple(&bob, "INSERT INTO t (n) VALUES (2)").await;
    assert_eq!(simple(&ann, count).await, ["0"], "the standby serves the user who wants no more");
    assert_eq!(simple(&bob, count).await, ["2"]);
    simple(&ann, "SET pgherd.read_consistency = 'session'").await;
    assert_eq!(simple(&ann, count).await, ["2"]);
    world.standby.direct().await.batch_execute("SELECT pg_wal_replay_resume()").await.unwrap();
    // A session of its own for ann; bob's clients take turns.
    let pids = async |user: &str| {
        let clients = join_all((0..3).map(|_| connect(&proxy, user))).await;
        let mut pids = Vec::new();
        for client in &clients {
            pids.extend(simple(client, PID).await);
        }
        pids.sort();
        pids.dedup();
        pids.len()
    };
    assert_eq!(pids("ann").await, 3);
    assert!(pids("bob").await < 3);
}

/// Returns when reads of `client` go to the server at `port`.
async fn proxy_knows(client: &Client, sql: &str, port: &str) {
    soon(async { while simple(client, sql).await != [port] {} }).await;
}
