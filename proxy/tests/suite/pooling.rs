//! Many clients on few server connections: each finds its own state, and nobody else's.

use std::time::Duration;

use crate::harness::{Access, Agent, Postgres, Proxy, Raw, Script, message, soon};
use futures_util::future::join_all;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, NoTls, SimpleQueryMessage};

struct World {
    primary: Postgres,
    standby: Postgres,
}

const SCHEMA: &str = "
    CREATE TABLE t (id serial, n int);
    CREATE TABLE sly (n int);
    CREATE FUNCTION sly() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        PERFORM set_config('work_mem', '77MB', false), pg_advisory_lock(77), nextval('t_id_seq');
        CREATE TEMP TABLE IF NOT EXISTS hidden (a int);
        RETURN new;
    END $$;
    CREATE TRIGGER sly BEFORE INSERT ON sly FOR EACH ROW EXECUTE FUNCTION sly();
    CREATE ROLE joe;";

impl World {
    async fn start() -> Self {
        let primary = Postgres::primary(Access::Trust);
        primary.direct().await.batch_execute(SCHEMA).await.unwrap();
        let standby = primary.standby();
        standby.caught_up_with(&primary).await;
        Self { primary, standby }
    }

    /// A proxy with these lines in `[pool]`.
    async fn proxy(&self, lines: &str) -> (Agent, Proxy) {
        let mut agent = Agent::start(Some(Script::new(&[&self.primary, &self.standby]).steady())).await;
        let proxy = Proxy::start_with(&mut agent, Access::Trust, &format!("[pool]\n{lines}")).await;
        (agent, proxy)
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

async fn code(client: &Client, sql: &str) -> SqlState {
    soon(client.simple_query(sql)).await.unwrap_err().code().unwrap().clone()
}

const PID: &str = "SELECT pg_backend_pid()";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_clients_share_three_connections() {
    let world = World::start().await;
    let (_agent, proxy) = world.proxy("size = 3").await;
    let clients = join_all((0..50).map(|_| proxy.connect())).await;
    let work = clients.iter().enumerate().map(async |(number, client)| {
        let own = format!("{}kB", 1001 + 2 * number);
        simple(client, &format!("SET work_mem = '{own}'")).await;
        // The driver gives the same name to each client's first statement.
        let statement = soon(client.prepare(&format!("SELECT {number} + $1::int"))).await.unwrap();
        let write = soon(client.prepare("INSERT INTO t (n) VALUES ($1)")).await.unwrap();
        for n in 0..4_i32 {
            let sum: i32 = soon(client.query_one(&statement, &[&n])).await.unwrap().get(0);
            assert_eq!(sum, i32::try_from(number).unwrap() + n);
            soon(client.execute(&write, &[&n])).await.unwrap();
            let shown = simple(client, "BEGIN; SELECT n FROM t LIMIT 1 FOR KEY SHARE; SHOW work_mem; COMMIT");
            assert_eq!(shown.await.last().unwrap(), &own);
            assert_eq!(simple(client, "SHOW work_mem").await, std::slice::from_ref(&own));
        }
    });
    join_all(work).await;
    let direct = world.primary.direct().await;
    let count =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = 'postgres' AND pid <> pg_backend_pid()";
    let count: i64 = direct.query_one(count, &[]).await.unwrap().get(0);
    assert!((1..=3).contains(&count), "{count} connections");
    assert_eq!(simple(&clients[0], "SELECT count(*) FROM t").await, ["200"]);
}

/// A client that prepares under one name what all others do, or something else.
struct Preparing(Raw);

impl Preparing {
    async fn at(proxy: &Proxy, sql: &str) -> Self {
        let mut client = Self(Raw::log_in(proxy.port()).await);
        let heard = client.says(&[message('P', format!("s\0{sql}\0\0\0").as_bytes())]).await;
        assert!(heard.starts_with('1'), "{heard}");
        client
    }

    async fn says(&mut self, messages: &[Vec<u8>]) -> String {
        self.0.say(&[&messages.concat()[..], &message('S', b"")].concat()).await;
        self.0.until("Z").await.join(" ")
    }

    /// Runs what is called `s`.
    async fn runs(&mut self) -> String {
        self.says(&[message('B', b"\0s\0\0\0\0\0\0\0"), message('E', b"\0\0\0\0\0")]).await
    }

    /// How often the server ran what is there under this name.
    async fn count(&mut self) -> String {
        let sql =
            "SELECT 'ran ' || generic_plans + custom_plans FROM pg_prepared_statements WHERE name = 's'\0";
        self.0.say(&message('Q', sql.as_bytes())).await;
        self.0.until("Z").await.join(" ")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_client_prepared_likewise_is_not_prepared_again() {
    let primary = Postgres::primary(Access::Trust);
    // Reads run on the primary, where the server tells of them.
    let mut agent = Agent::start(Some(Script::new(&[&primary]).steady())).await;
    let proxy = Proxy::start_with(&mut agent, Access::Trust, "[pool]\nsize = 1").await;
    proxy.knows_catalogs().await;
    let same = "SELECT 'the same'";
    let (mut one, mut other) = (Preparing::at(&proxy, same).await, Preparing::at(&proxy, same).await);
    for _ in 0..2 {
        assert!(other.runs().await.contains("the same"));
        assert!(one.runs().await.contains("the same"));
    }
    let count = one.count().await;
    assert!(count.contains("ran 4"), "{count}");
    // Whoever has prepared nothing finds nothing, and takes nothing away for good.
    let mut nobody = Preparing(Raw::log_in(proxy.port()).await);
    let heard = nobody.runs().await;
    assert!(heard.contains("26000"), "{heard}");
    let mut different = Preparing::at(&proxy, "SELECT 'something else'").await;
    for _ in 0..2 {
        assert!(one.runs().await.contains("the same"));
        assert!(different.runs().await.contains("something else"));
    }
    // What was prepared with other settings, or before something was altered, is not the same.
    let mut set = Preparing(Raw::log_in(proxy.port()).await);
    set.0.say(&message('Q', b"SET DateStyle = 'German'\0")).await;
    set.0.until("Z").await;
    let date = "SELECT '01.02.2003'::date - '2000-01-01'::date || ' days'";
    set.says(&[message('P', format!("s\0{date}\0\0\0").as_bytes())]).await;
    let mut usual = Preparing::at(&proxy, date).await;
    for _ in 0..2 {
        let (german, american) = (set.runs().await, usual.runs().await);
        assert!(german.contains("1127 days") && american.contains("1097 days"), "{german} {american}");
    }
    primary.direct().await.batch_execute("CREATE TABLE altered (a int)").await.unwrap();
    let mut before = Preparing::at(&proxy, "SELECT * FROM altered").await;
    assert!(!before.runs().await.contains("ERROR"));
    before.0.say(&message('Q', b"ALTER TABLE altered ADD b int\0")).await;
    before.0.until("Z").await;
    let mut behind = Preparing::at(&proxy, "SELECT * FROM altered").await;
    // Both on the one connection: the statement from before may not be run in the other's place.
    before.runs().await;
    let heard = behind.runs().await;
    assert!(!heard.contains("ERROR"), "{heard}");
}

/// What a client can find of those before it.
async fn findings(client: &Client) -> Vec<String> {
    let mut all = Vec::new();
    for sql in [
        "SELECT current_user || ' ' || session_user",
        "SELECT string_agg(name || '=' || setting, ' ' ORDER BY name) FROM pg_settings
         WHERE source = 'session' OR name IN ('work_mem', 'search_path', 'application_name', 'role')",
        "SELECT count(*) FROM pg_prepared_statements WHERE NOT statement LIKE '%findings%'",
        "SELECT count(*) FROM pg_class WHERE relpersistence = 't' AND pg_table_is_visible(oid)",
        "SELECT count(*) FROM pg_listening_channels()",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'",
        "SELECT count(*) FROM pg_cursors WHERE is_holdable",
        "SELECT count(*) FROM pg_locks WHERE mode = 'RowExclusiveLock'",
        "SELECT pg_current_xact_id_if_assigned() IS NULL",
        "SELECT count(*) FROM t WHERE n = 666",
    ] {
        all.extend(simple(client, sql).await);
    }
    for sql in
        ["SELECT lastval()", "SELECT currval('t_id_seq')", "EXECUTE p", "FETCH c", "SELECT * FROM hidden"]
    {
        all.push(code(client, sql).await.code().to_owned());
    }
    all
}

/// What somebody may leave behind. Whether others may get the connection while its
/// client is there, and whether when it is gone.
const TRACES: &[(&str, bool, bool)] = &[
    ("SET work_mem = '99MB'", true, true),
    ("SELECT set_config('work_mem', '99MB', false)", true, true),
    ("SELECT set_config('work_' || 'mem', '99MB', false)", false, false),
    ("BEGIN; SET LOCAL work_mem = '99MB'; COMMIT", true, true),
    ("SET search_path = pg_catalog", true, true),
    ("SET application_name = 'somebody'", true, true),
    ("SET ROLE joe", true, true),
    ("SET SESSION AUTHORIZATION joe", true, true),
    ("PREPARE p AS SELECT 1", true, true),
    ("CREATE TEMP TABLE hidden (a int)", false, true),
    ("LISTEN c", false, true),
    ("SELECT pg_advisory_lock(5)", false, true),
    ("BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT", false, true),
    ("SELECT nextval('t_id_seq')", true, true),
    ("INSERT INTO t (n) VALUES (1)", true, true),
    ("INSERT INTO sly VALUES (1)", true, true),
    ("DO 'BEGIN CREATE TEMP TABLE IF NOT EXISTS hidden (a int); END'", false, false),
    ("BEGIN; INSERT INTO t (n) VALUES (666)", false, false),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_goes_over_to_the_next_client() {
    let world = World::start().await;
    let (_agent, proxy) = world.proxy("size = 1").await;
    let clean = findings(&proxy.connect().await).await;
    for (trace, shared, reused) in TRACES {
        let client = proxy.connect().await;
        if *shared {
            let pid = simple(&client, PID).await;
            simple(&client, trace).await;
            let other = proxy.connect().await;
            assert_eq!(simple(&other, PID).await, pid, "{trace}");
            assert_eq!(findings(&other).await, clean, "{trace}");
        }
        drop(client);
        let client = proxy.connect().await;
        let pid = simple(&client, PID).await;
        simple(&client, trace).await;
        drop(client);
        let next = proxy.connect().await;
        assert_eq!(simple(&next, PID).await == pid, *reused, "{trace}");
        assert_eq!(findings(&next).await, clean, "{trace}, its client gone");
    }
    // A transaction that failed, and a statement of the protocol's.
    let client = proxy.connect().await;
    let statement = soon(client.prepare("SELECT n FROM t WHERE n = $1")).await.unwrap();
    soon(client.query(&statement, &[&5])).await.unwrap();
    drop(soon(client.simple_query("BEGIN; INSERT INTO t (n) VALUES (666); SELECT 1/0")).await.unwrap_err());
    drop(client);
    assert_eq!(findings(&proxy.connect().await).await, clean);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_has_stays_its_own() {
    let world = World::start().await;
    let (_agent, proxy) = world.proxy("size = 3").await;
    let (temp, role, other) = (proxy.connect().await, proxy.connect().await, proxy.connect().await);
    simple(&temp, "CREATE TEMP TABLE hidden (a int)").await;
    simple(&role, "SET ROLE joe; SET work_mem = '9MB'").await;
    let kept: Vec<_> = soon(other.query("SHOW CLIENTS", &[])).await.unwrap();
    let kept: Vec<String> = kept.iter().map(|row| row.get("kept_by")).collect();
    assert_eq!(kept, ["temporary object", "", ""]);
    let pid = simple(&temp, PID).await;
    let busy = join_all((0..10).map(|_| proxy.connect())).await;
    for _ in 0..5 {
        join_all(busy.iter().map(|client| simple(client, "INSERT INTO t (n) VALUES (1)"))).await;
        assert_eq!(simple(&temp, "SELECT count(*) FROM hidden").await, ["0"]);
        assert_eq!(simple(&temp, PID).await, pid);
        let seen = simple(&role, "SELECT current_user || current_setting('work_mem')").await;
        assert_eq!(seen, ["joe9MB"]);
        assert_eq!(simple(&other, "SELECT current_user").await, ["postgres"]);
    }
    // Sequences are remembered while there is room for everybody.
    let (_agent, roomy) = world.proxy("size = 8").await;
    let clients = join_all((0..6).map(|_| roomy.connect())).await;
    let mut given = Vec::new();
    for client in &clients {
        given.push(simple(client, "SELECT nextval('t_id_seq')").await);
    }
    for (client, given) in clients.iter().zip(given) {
        assert_eq!(simple(client, "SELECT lastval()").await, given);
    }
}

/// What keeps the client that came last, once it rests.
async fn kept_by(client: &Client) -> String {
    soon(async {
        loop {
            let rows = client.query("SHOW CLIENTS", &[]).await.unwrap();
            let last = rows.last().unwrap();
            if last.get::<_, String>("state") == "idle" {
                return last.get("kept_by");
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keeps_a_client_on_its_connection_is_shown() {
    let world = World::start().await;
    let (_agent, proxy) = world.proxy("size = 3").await;
    let other = proxy.connect().await;
    for (sql, why) in [
        ("CREATE TEMP TABLE hidden (a int)", "temporary object"),
        ("CREATE TEMP VIEW hidden AS SELECT 1", "temporary object"),
        ("SELECT 1 AS a INTO TEMP hidden", "temporary object"),
        ("CREATE TYPE pg_temp.hidden AS (a int)", "temporary object"),
        ("LISTEN prepare", "LISTEN"),
        ("SELECT 1; PREPARE p AS SELECT 1", "PREPARE"),
        ("BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT", "WITH HOLD cursor"),
        ("SELECT pg_advisory_lock(5)", "advisory lock"),
        ("SELECT nextval('t_id_seq'), currval('t_id_seq')", "currval or lastval"),
        ("SELECT count(*) FROM pg_stat_user_tables", "statistics"),
        ("DO 'BEGIN EXECUTE ''SELECT 1''; END'", "something not understood"),
        ("LOAD 'plpgsql'", "something not understood"),
        ("SET work_mem = '9MB'", ""),
        ("PREPARE p AS SELECT 1", ""),
        ("BEGIN; CREATE TEMP TABLE hidden (a int) ON COMMIT DROP; COMMIT", ""),
        ("INSERT INTO sly VALUES (1)", ""),
    ] {
        let client = proxy.connect().await;
        simple(&client, sql).await;
        assert_eq!(kept_by(&other).await, why, "{sql}");
        simple(&client, "DISCARD ALL").await;
        assert_eq!(kept_by(&other).await, "", "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notifications_come_to_whoever_listens() {
    let world = World::start().await;
    let (_agent, proxy) = world.proxy("size = 2").await;
    let login = proxy.login("postgres", "secret", "postgres");
    let (listener, mut connection) = soon(tokio_postgres::connect(&login, NoTls)).await.unwrap();
    let (heard, mut hear) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notification(notification) = message {
                drop(heard.send(notification.payload().to_owned()));
            }
        }
    });
    simple(&listener, "LISTEN news").await;
    let others = join_all((0..5).map(|_| proxy.connect())).await;
    for (n, other) in others.iter().enumerate() {
        simple(other, &format!("NOTIFY news, '{n}'")).await;
        assert_eq!(soon(hear.recv()).await.unwrap(), n.to_string());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_too_long_is_told_why() {
    let world = World::start().await;
    let (_agent, proxy) = world.proxy("size = 1\nqueue_timeout = '300ms'").await;
    let (one, other) = (proxy.connect().await, proxy.connect().await);
    simple(&one, "BEGIN; INSERT INTO t (n) VALUES (1)").await;
    let refused = soon(other.simple_query("INSERT INTO t (n) VALUES (2)")).await.unwrap_err();
    let refused = refused.as_db_error().unwrap();
    assert_eq!(refused.code(), &SqlState::TOO_MANY_CONNECTIONS);
    assert!(refused.detail().unwrap().starts_with(
        "All 1 connections to server server1 as user \"postgres\" to database \"postgres\" were in use"
    ));
    assert!(refused.hint().unwrap().contains("pool.size"));
    let login = proxy.login("postgres", "secret", "postgres");
    let stranger = soon(tokio_postgres::connect(&login, NoTls)).await.map(drop).unwrap_err();
    assert_eq!(stranger.code(), Some(&SqlState::TOO_MANY_CONNECTIONS));
    simple(&one, "COMMIT").await;
    simple(&other, "INSERT INTO t (n) VALUES (3)").await;
    assert_eq!(simple(&one, "SELECT count(*) FROM t").await, ["2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_hits_its_own_client_only() {
    let world = World::start().await;
    let (_agent, proxy) = world.proxy("size = 1").await;
    let (one, other) = (proxy.connect().await, proxy.connect().await);
    let (sleeps, waits) = (one.cancel_token(), other.cancel_token());
    let sleeping = tokio::spawn(async move { (code(&one, "SELECT pg_sleep(60)").await, one) });
    let direct = world.primary.direct().await;
    let busy = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)' AND state = 'active'";
    soon(async { while direct.query_one(busy, &[]).await.unwrap().get::<_, i64>(0) == 0 {} }).await;
    let waiting = tokio::spawn(async move { (code(&other, "INSERT INTO t (n) VALUES (1)").await, other) });
    // The first may come before it waits: a cancel for nothing, as with a server.
    let (cancelled, other) = soon(async {
        loop {
            waits.cancel_query(NoTls).await.unwrap();
            if waiting.is_finished() {
                break waiting.await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(cancelled, SqlState::QUERY_CANCELED);
    assert!(!sleeping.is_finished());
    sleeps.cancel_query(NoTls).await.unwrap();
    let (cancelled, one) = soon(sleeping).await.unwrap();
    assert_eq!(cancelled, SqlState::QUERY_CANCELED);
    // Cancels that may come late hit nobody who comes next.
    for _ in 0..100 {
        let work = async { drop(one.simple_query("SELECT pg_sleep(0.001)").await) };
        let ((), cancel) = tokio::join!(work, sleeps.cancel_query(NoTls));
        cancel.unwrap();
        simple(&other, "SELECT pg_sleep(0.002)").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn databases_and_roles_can_be_dropped() {
    let world = World::start().await;
    let (_agent, proxy) = world.proxy("size = 4").await;
    let admin = proxy.connect().await;
    let visit = async |user: &str, database: &str| {
        let login = proxy.login(user, "secret", &format!("'{database}'"));
        let (client, connection) = soon(tokio_postgres::connect(&login, NoTls)).await.unwrap();
        tokio::spawn(connection);
        // Its answer tells whether the role is still the one that logged in.
        assert_eq!(simple(&client, "SELECT current_user FROM (SELECT random()) r").await, [user]);
        client
    };
    simple(&admin, "SET allow_in_place_tablespaces = on").await;
    simple(&admin, "CREATE TABLESPACE attic LOCATION ''").await;
    simple(&admin, "CREATE DATABASE shop").await;
    let client = visit("postgres", "shop").await;
    simple(&client, "CREATE TABLE goods (a int)").await;
    simple(&admin, "ALTER DATABASE shop RENAME TO store").await;
    drop(visit("postgres", "store").await);
    simple(&admin, "CREATE DATABASE copy TEMPLATE store").await;
    drop(visit("postgres", "store").await);
    simple(&admin, "ALTER DATABASE store SET TABLESPACE attic").await;
    drop(visit("postgres", "store").await);
    // Of another name, though the one is part of the other.
    simple(&admin, "CREATE DATABASE \"store 2\"").await;
    let neighbour = visit("postgres", "store").await;
    let pid = simple(&neighbour, PID).await;
    drop(visit("postgres", "store 2").await);
    simple(&admin, "DROP DATABASE \"store 2\"").await;
    assert_eq!(simple(&neighbour, PID).await, pid);
    drop(neighbour);
    drop(visit("postgres", "template1").await);
    simple(&admin, "CREATE DATABASE plain").await;
    simple(&admin, "DROP DATABASE store").await;
    for setting in ["10MB", "11MB"] {
        simple(&admin, "CREATE ROLE ann LOGIN").await;
        drop(visit("ann", "postgres").await);
        simple(&admin, &format!("ALTER ROLE ann SET work_mem = '{setting}'")).await;
        assert_eq!(simple(&visit("ann", "postgres").await, "SHOW work_mem").await, [setting]);
        simple(&admin, "DROP ROLE ann").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_session_mode_a_connection_is_passed_on_when_its_client_leaves() {
    let world = World::start().await;
    let (_agent, proxy) = world.proxy("mode = 'session'\nsize = 1\nqueue_timeout = '5s'").await;
    let client = proxy.connect().await;
    let (clean, pid) = (findings(&client).await, simple(&client, PID).await);
    // Those that can be undone.
    for (trace, ..) in TRACES.iter().filter(|(.., reused)| *reused) {
        simple(&client, trace).await;
        simple(&client, "RESET SESSION AUTHORIZATION; RESET search_path").await;
    }
    assert_eq!(simple(&client, "SHOW work_mem").await, ["77MB"]);
    assert_eq!(simple(&client, "SELECT count(*) FROM hidden").await, ["0"]);
    drop(client);
    let next = proxy.connect().await;
    assert_eq!(simple(&next, PID).await, pid);
    assert_eq!(findings(&next).await, clean);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_are_seen_though_connections_change() {
    let world = World::start().await;
    for consistency in ["session", "global"] {
        let lines = format!("size = 2\n[routing]\nread_consistency = '{consistency}'");
        let (_agent, proxy) = world.proxy(&lines).await;
        let clients = join_all((0..6).map(|_| proxy.connect())).await;
        let work = clients.iter().enumerate().map(async |(number, client)| {
            for n in 1..40 {
                simple(client, &format!("INSERT INTO t (n) VALUES ({number})")).await;
                let seen = simple(client, &format!("SELECT count(*) FROM t WHERE n = {number}")).await;
                assert_eq!(seen, [n.to_string()], "{consistency}");
            }
        });
        join_all(work).await;
        simple(&clients[0], "TRUNCATE t").await;
    }
}
