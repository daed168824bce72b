//! The database `pgherd`: who gets in, what is shown, and what `PAUSE`, `RESUME`, `RELOAD` and `KILL` do.

use std::time::Duration;

use crate::harness::{Access, Agent, Postgres, Proxy, Script, psql, soon};
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

const SCHEMA: &str = "
    CREATE TABLE t (id serial, n int);
    GRANT ALL ON t, t_id_seq TO public;
    CREATE ROLE ann LOGIN PASSWORD 'secret';
    CREATE ROLE bob LOGIN PASSWORD 'secret';
    CREATE DATABASE shop;";

struct World {
    primary: Postgres,
    _standby: Postgres,
    _agent: Agent,
    proxy: Proxy,
}

impl World {
    /// With these lines in the proxy's configuration, of which the first belong to `[proxy]`.
    async fn start(lines: &str) -> Self {
        let primary = Postgres::primary(Access::Scram);
        let direct = primary.direct().await;
        for sql in SCHEMA.split(';').filter(|sql| !sql.trim().is_empty()) {
            direct.batch_execute(sql).await.unwrap();
        }
        let standby = primary.standby();
        standby.caught_up_with(&primary).await;
        let mut agent = Agent::start(Some(Script::new(&[&primary, &standby]).steady())).await;
        let proxy = Proxy::start_with(&mut agent, Access::Scram, lines).await;
        Self { primary, _standby: standby, _agent: agent, proxy }
    }

    /// A login, which may be refused, and what becomes of it.
    async fn login(
        &self,
        user: &str,
        database: &str,
    ) -> Result<(Client, tokio::task::JoinHandle<Option<DbError>>), DbError> {
        let login = self.proxy.login(user, "secret", database);
        let (client, connection) = soon(tokio_postgres::connect(&login, NoTls))
            .await
            .map_err(|error| error.as_db_error().unwrap().clone())?;
        let end =
            tokio::spawn(async { connection.await.err().and_then(|error| error.as_db_error().cloned()) });
        Ok((client, end))
    }

    async fn connect(&self, user: &str, database: &str) -> Client {
        self.login(user, database).await.unwrap().0
    }

    /// An administrator at the proxy itself.
    async fn console(&self) -> Client {
        self.connect("postgres", "pgherd").await
    }

    /// How many sessions of these users servers have.
    async fn sessions(&self, condition: &str) -> i64 {
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name <> 'pgherd_proxy'
             AND backend_type = 'client backend' AND pid <> pg_backend_pid() AND {condition}"
        );
        self.primary.direct().await.query_one(&sql, &[]).await.unwrap().get(0)
    }
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

/// One column of the rows in which another has this value.
async fn shown(console: &Client, table: &str, (name, value): (&str, &str), column: &str) -> Vec<String> {
    let rows = soon(console.query(&format!("SHOW {table}"), &[])).await.unwrap();
    rows.iter().filter(|row| row.get::<_, &str>(name) == value).map(|row| row.get(column)).collect()
}

/// Returns when the only client of `user` is at this.
async fn is_at(console: &Client, user: &str, state: &str) {
    soon(async { while shown(console, "CLIENTS", ("user", user), "state").await != [state] {} }).await;
}

const TABLES: [&str; 14] = [
    "NODES",
    "POOL_NODES",
    "POOL_VERSION",
    "VERSION",
    "CLIENTS",
    "SERVERS",
    "POOLS",
    "STATS",
    "MEMORY",
    "CONFIG",
    "DATABASES",
    "USERS",
    "TOPOLOGY",
    "HELP",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_other_peoples_is_for_administrators() {
    let world = World::start("").await;
    let refused = world.login("ann", "pgherd").await.map(drop).unwrap_err();
    assert_eq!(refused.code(), &SqlState::INSUFFICIENT_PRIVILEGE);
    assert_eq!(refused.message(), "permission denied for database \"pgherd\"");
    assert!(refused.hint().unwrap().contains("proxy.admins"), "{refused:?}");
    // Who cannot prove it is no administrator.
    let login = world.proxy.login("postgres", "wrong", "pgherd");
    let stranger = soon(tokio_postgres::connect(&login, NoTls)).await.map(drop).unwrap_err();
    assert_eq!(stranger.code(), Some(&SqlState::INVALID_PASSWORD));
    let ann = world.connect("ann", "postgres").await;
    let admin = world.connect("postgres", "postgres").await;
    for table in TABLES {
        let sql = format!("SHOW {table}");
        assert!(!simple(&admin, &sql).await.is_empty(), "{sql}");
        if ["NODES", "POOL_NODES", "POOL_VERSION", "VERSION"].contains(&table) {
            assert!(!simple(&ann, &sql).await.is_empty(), "{sql}");
            continue;
        }
        let refused = failure(&ann, &sql).await;
        assert_eq!(refused.code(), &SqlState::INSUFFICIENT_PRIVILEGE);
        assert!(refused.message().contains(&sql) && refused.hint().unwrap().contains("proxy.admins"));
        assert!(soon(ann.query(&sql, &[])).await.is_err(), "{sql}");
    }
    assert_eq!(simple(&ann, "SELECT current_user").await, ["ann"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_console_speaks_both_protocols() {
    let world = World::start("[users.bob]\npool_size = 2").await;
    let ann = world.connect("ann", "postgres").await;
    simple(&ann, "INSERT INTO t (n) VALUES (1)").await;
    let console = world.console().await;
    for table in TABLES {
        let sql = format!("SHOW {table}");
        let rows = soon(console.query(&sql, &[])).await.unwrap();
        let texts = soon(console.simple_query(&sql)).await.unwrap();
        let texts: Vec<_> = texts
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row),
                _ => None,
            })
            .collect();
        assert!(!rows.is_empty() && rows.len() == texts.len(), "{sql}");
        assert_eq!(rows[0].columns().len(), texts[0].columns().len(), "{sql}");
        for position in 0..rows[0].len() {
            assert_eq!(rows[0].columns()[position].name(), texts[0].columns()[position].name());
            rows[0].get::<_, String>(position);
        }
    }
    assert_eq!(simple(&console, "SET a = 'x;y'; SELECT 1; SHOW VERSION; SELECT version()").await.len(), 3);
    let unknown = failure(&console, "BEGIN; DROP TABLE t").await;
    assert_eq!(
        (unknown.code(), unknown.hint()),
        (&SqlState::SYNTAX_ERROR, Some("SHOW HELP lists what is understood here."))
    );
    simple(&console, "ROLLBACK").await;
    assert!(soon(console.query("SELECT * FROM t", &[])).await.is_err());
    assert_eq!(
        soon(console.query_one("SELECT current_user", &[])).await.unwrap().get::<_, &str>(0),
        "postgres"
    );
    let shown_by_psql =
        psql(&world.proxy, "host=127.0.0.1 dbname=pgherd", "SHOW CLIENTS;\nBEGIN;\nSHOW POOLS;\nCOMMIT;\n")
            .await;
    let shown_by_psql = shown_by_psql.unwrap();
    for part in ["|ann|postgres|", "|idle|", "\nBEGIN\n", "\nCOMMIT\n"] {
        assert!(shown_by_psql.contains(part), "{part} not in {shown_by_psql}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_done_is_counted() {
    let world = World::start("").await;
    world.proxy.knows_catalogs().await;
    let (ann, console) = (world.connect("ann", "postgres").await, world.console().await);
    for n in 0..5 {
        simple(&ann, &format!("INSERT INTO t (n) VALUES ({n})")).await;
        soon(ann.query("SELECT n FROM t", &[])).await.unwrap();
    }
    // The driver tells of an error before the server is ready, when all of it is counted.
    failure(&ann, "SELECT nonsense").await;
    simple(&ann, "BEGIN").await;
    simple(&ann, "SELECT count(*) FROM t").await;
    simple(&ann, "COMMIT").await;
    let figure = async |column: &str| {
        let figures = shown(&console, "STATS", ("user", "ann"), column).await;
        figures[0].parse::<u64>().unwrap()
    };
    let all = async || {
        let mut all = Vec::new();
        for column in ["queries", "transactions", "writes", "errors"] {
            all.push(figure(column).await);
        }
        all
    };
    // The driver prepares with a batch of its own.
    let before = all().await;
    assert_eq!((before[0], before[3]), (14, 1), "{before:?}");
    assert!(before[1] >= 12 && before[2] >= 5, "{before:?}");
    assert!(figure("standby_reads").await + figure("primary_reads").await >= 6);
    assert!(figure("bytes_in").await > 200 && figure("bytes_out").await > 200);
    assert_eq!(figure("clients").await, 1);
    drop(ann);
    soon(async { while figure("clients").await > 0 {} }).await;
    assert_eq!(all().await, before, "what is counted outlives the client");
    let servers = shown(&console, "SERVERS", ("user", "ann"), "state").await;
    assert!(!servers.is_empty() && servers.iter().all(|state| state == "resting"), "{servers:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_takes_memory_is_told() {
    let world = World::start("").await;
    let (ann, console) = (world.connect("ann", "postgres").await, world.console().await);
    let figure = async |item: &str, column: &str| {
        let figures = shown(&console, "MEMORY", ("item", item), column).await;
        figures[0].parse::<usize>().unwrap_or(0)
    };
    let before = figure("prepared statements", "number").await;
    let text = format!("SELECT 1 /* {} */", "x".repeat(10_000));
    let statement = soon(ann.prepare(&text)).await.unwrap();
    soon(ann.query(&statement, &[])).await.unwrap();
    assert_eq!(figure("prepared statements", "number").await, before + 1);
    assert!(figure("prepared statements", "bytes").await > 10_000);
    assert_eq!(figure("client buffers", "number").await, 2);
    assert!(figure("server buffers", "number").await >= 1);
    assert!(figure("process", "bytes").await > 1 << 20);
    assert!(figure("verdicts", "bytes").await > 10_000);
    assert!(figure("verdicts", "bytes_max").await >= 16 << 20);
    drop((statement, ann));
    soon(async { while figure("prepared statements", "number").await > before {} }).await;
    assert!(figure("prepared statements", "bytes").await < 10_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_waits_for_what_runs_and_holds_what_comes() {
    let world = World::start("hold_timeout = '2s'").await;
    let console = world.console().await;
    let (ann, bob) = (world.connect("ann", "postgres").await, world.connect("bob", "postgres").await);
    let other = world.connect("bob", "shop").await;
    simple(&bob, "INSERT INTO t (n) VALUES (0)").await;
    simple(&ann, "BEGIN; INSERT INTO t (n) VALUES (1)").await;
    let pausing = {
        let console = world.console().await;
        tokio::spawn(async move { simple(&console, "PAUSE postgres").await })
    };
    soon(async {
        while shown(&console, "DATABASES", ("database", "postgres"), "paused").await != ["true"] {}
    })
    .await;
    let held = tokio::spawn(async move { simple(&bob, "INSERT INTO t (n) VALUES (2) RETURNING n").await });
    soon(async {
        while !shown(&console, "CLIENTS", ("user", "bob"), "state").await.contains(&"paused".to_owned()) {}
    })
    .await;
    assert!(!pausing.is_finished(), "a transaction is open");
    simple(&ann, "INSERT INTO t (n) VALUES (3)").await;
    simple(&ann, "COMMIT").await;
    soon(pausing).await.unwrap();
    soon(async { while world.sessions("datname = 'postgres'").await > 0 {} }).await;
    assert!(!held.is_finished(), "new work waits");
    assert_eq!(simple(&other, "SELECT current_database()").await, ["shop"], "other databases go on");
    let again = failure(&console, "PAUSE postgres").await;
    assert_eq!(again.code(), &SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE);
    // A login waits as well, longer than work is held otherwise.
    let login = tokio::spawn({
        let login = world.proxy.login("ann", "secret", "postgres");
        async move { soon(tokio_postgres::connect(&login, NoTls)).await.map(drop) }
    });
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(!login.is_finished() && !held.is_finished());
    simple(&console, "RESUME postgres").await;
    assert_eq!(soon(held).await.unwrap(), ["2"]);
    soon(login).await.unwrap().unwrap();
    let again = failure(&console, "RESUME").await;
    assert_eq!(again.code(), &SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_gives_up_waiting_ends_the_pause() {
    let world = World::start("").await;
    let console = world.console().await;
    let ann = world.connect("ann", "postgres").await;
    simple(&ann, "BEGIN; INSERT INTO t (n) VALUES (1)").await;
    let waiting = world.console().await;
    let cancel = waiting.cancel_token();
    let pausing = tokio::spawn(async move { failure(&waiting, "PAUSE").await });
    let paused = async || shown(&console, "TOPOLOGY", ("item", "paused"), "value").await;
    soon(async { while paused().await != ["all databases"] {} }).await;
    cancel.cancel_query(NoTls).await.unwrap();
    assert_eq!(soon(pausing).await.unwrap().code(), &SqlState::QUERY_CANCELED);
    assert_eq!(paused().await, [""]);
    let (waiting, connection) = world.login("postgres", "pgherd").await.unwrap();
    let pausing = tokio::spawn(async move { waiting.simple_query("PAUSE").await.is_err() });
    soon(async { while paused().await != ["all databases"] {} }).await;
    connection.abort();
    assert!(soon(pausing).await.unwrap(), "its connection is gone");
    soon(async { while paused().await != [""] {} }).await;
    simple(&ann, "COMMIT").await;
    // With nothing to wait for it returns at once; a session that keeps its connection does not hinder it.
    simple(&ann, "CREATE TEMP TABLE mine (a int)").await;
    simple(&console, "PAUSE; RESUME").await;
    assert_eq!(simple(&ann, "SELECT count(*) FROM mine").await, ["0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_brings_into_effect_what_it_can_and_names_the_rest() {
    let lines = "max_client_connections = 3\n[pool]\nsize = 1\nqueue_timeout = '300ms'\n[users.bob]\npool_mode = 'session'";
    let world = World::start(lines).await;
    let console = world.console().await;
    let reload = async || {
        let rows = soon(console.query("RELOAD", &[])).await.unwrap();
        rows.iter()
            .map(|row| {
                format!(
                    "{} {} -> {}: {}",
                    row.get::<_, &str>(0),
                    row.get::<_, &str>(1),
                    row.get::<_, &str>(2),
                    row.get::<_, &str>(3)
                )
            })
            .collect::<Vec<_>>()
    };
    assert!(reload().await.is_empty());
    let (one, other) = (world.connect("ann", "postgres").await, world.connect("ann", "postgres").await);
    let full = world.login("bob", "postgres").await.map(drop).unwrap_err();
    assert_eq!(full.code(), &SqlState::TOO_MANY_CONNECTIONS);
    simple(&one, "BEGIN; INSERT INTO t (n) VALUES (1)").await;
    let full = failure(&other, "INSERT INTO t (n) VALUES (1)").await;
    assert_eq!(full.code(), &SqlState::TOO_MANY_CONNECTIONS);
    world.proxy.rewrite("max_client_connections = 3", "max_client_connections = 9");
    world.proxy.rewrite("size = 1", "size = 2");
    world.proxy.rewrite("'proxy1'", "'proxy2'");
    world.proxy.rewrite("[users.bob]", "[users.ann]");
    let expected = [
        "proxy.name \"proxy1\" -> \"proxy2\": waits for a restart",
        "proxy.max_client_connections 3 -> 9: in effect",
        "pool.size 1 -> 2: in effect",
        "users.bob.pool_mode \"session\" -> : in effect",
        "users.ann.pool_mode  -> \"session\": in effect",
    ];
    let told: Vec<String> = reload().await.iter().map(|row| row.replace("'", "\"")).collect();
    assert_eq!(told, expected);
    drop(world.connect("bob", "postgres").await);
    simple(&other, "INSERT INTO t (n) VALUES (2)").await;
    let config = async |column: &str| shown(&console, "CONFIG", ("key", "proxy.name"), column).await;
    assert!(
        config("value").await[0].contains("proxy1")
            && config("waits_for_restart").await[0].contains("proxy2")
    );
    assert_eq!(config("changed_by").await, ["restart"]);
    assert_eq!(shown(&console, "USERS", ("user", "ann"), "pool_mode").await, ["session"]);
    // What is wrong changes nothing, and is told in full.
    world.proxy.rewrite("size = 2", "size = 0\nsized = 3");
    let wrong = failure(&console, "RELOAD").await;
    assert_eq!(wrong.code().code(), "F0000");
    for part in ["2 problems", "pool.size: 0 would", "pool.sized: unknown key"] {
        assert!(wrong.message().contains(part), "{part} not in {wrong:?}");
    }
    assert_eq!(shown(&console, "CONFIG", ("key", "pool.size"), "value").await, ["2"]);
    // Smaller again: who is in a transaction keeps what it has.
    world.proxy.rewrite("size = 0\nsized = 3", "size = 1");
    simple(&other, "BEGIN; INSERT INTO t (n) VALUES (3)").await;
    reload().await;
    simple(&other, "COMMIT").await;
    simple(&one, "COMMIT").await;
    drop(other);
    soon(async {
        while shown(&console, "POOLS", ("user", "ann"), "size").await.iter().any(|size| size != "1") {}
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_takes_new_rules_for_clients() {
    let world =
        World::start("[[hba]]\nuser = ['postgres', 'ann']\n[[hba]]\nuser = ['bob']\nmethod = 'reject'").await;
    let console = world.console().await;
    assert!(world.login("ann", "postgres").await.is_ok());
    assert!(world.login("bob", "postgres").await.is_err());
    world.proxy.rewrite("['postgres', 'ann']", "['postgres', 'bob']");
    simple(&console, "RELOAD").await;
    assert!(world.login("bob", "postgres").await.is_ok());
    let refused = world.login("ann", "postgres").await.map(drop).unwrap_err();
    assert_eq!(refused.code(), &SqlState::INVALID_AUTHORIZATION_SPECIFICATION);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_client_is_told_and_leaves_nothing_running() {
    let world = World::start("[pool]\nsize = 1").await;
    let console = world.console().await;
    // One that was sent away may still be on its way out.
    let id = async |user: &str| shown(&console, "CLIENTS", ("user", user), "client_id").await.pop().unwrap();
    let kill = async |user: &str| {
        let id = id(user).await;
        simple(&console, &format!("KILL {id}")).await;
    };
    let told = |end: Option<DbError>| {
        let end = end.unwrap();
        assert_eq!(end.code(), &SqlState::ADMIN_SHUTDOWN);
        assert_eq!(end.message(), "terminating connection due to administrator command");
        assert_eq!(end.detail(), Some("The session was ended at the proxy by KILL."));
    };
    // One that says nothing, one inside a transaction, one that waits for a connection, one that runs.
    let (_idle, end) = world.login("bob", "postgres").await.unwrap();
    kill("bob").await;
    told(soon(end).await.unwrap());
    let (open, end) = world.login("bob", "postgres").await.unwrap();
    simple(&open, "BEGIN; INSERT INTO t (n) VALUES (666)").await;
    kill("bob").await;
    told(soon(end).await.unwrap());
    soon(async { while world.sessions("usename = 'bob' AND xact_start IS NOT NULL").await > 0 {} }).await;
    let (runs, end) = world.login("ann", "postgres").await.unwrap();
    let running = tokio::spawn(async move { runs.simple_query("SELECT pg_sleep(600)").await.map(drop) });
    soon(async { while world.sessions("query LIKE '%pg_sleep(600)' AND state = 'active'").await == 0 {} })
        .await;
    let keeps = id("ann").await;
    let login = world.proxy.login("ann", "secret", "postgres");
    let waits = tokio::spawn(async move { tokio_postgres::connect(&login, NoTls).await.map(drop) });
    let waiting = async || {
        let rows = soon(console.query("SHOW CLIENTS", &[])).await.unwrap();
        let waits = rows.iter().find(|row| row.get::<_, &str>("state") == "waiting");
        waits.map(|row| row.get::<_, String>("client_id"))
    };
    let second = soon(async {
        loop {
            if let Some(id) = waiting().await {
                break id;
            }
        }
    })
    .await;
    simple(&console, &format!("KILL {second}")).await;
    let refused = soon(waits).await.unwrap().unwrap_err();
    assert_eq!(refused.code(), Some(&SqlState::ADMIN_SHUTDOWN));
    simple(&console, &format!("KILL {keeps}")).await;
    let ended = soon(running).await.unwrap().unwrap_err();
    assert_eq!(ended.code(), Some(&SqlState::ADMIN_SHUTDOWN));
    soon(end).await.unwrap();
    soon(async { while world.sessions("query LIKE '%pg_sleep(600)'").await > 0 {} }).await;
    let nobody = failure(&console, "KILL 4711").await;
    assert_eq!(nobody.message(), "there is no client 4711");
    let ann = world.connect("ann", "postgres").await;
    assert_eq!(simple(&ann, "SELECT count(*) FROM t WHERE n = 666").await, ["0"]);
    is_at(&console, "ann", "idle").await;
}
