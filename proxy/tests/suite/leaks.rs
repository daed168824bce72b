//! No state leaks from one client to another: whatever a client does to its session, the next one on the same
//! server connection finds what it would find on a connection of its own. On PostgreSQL 15, 16 and 17.

use std::collections::BTreeMap;

use crate::harness::{Access, Agent, Postgres, Proxy, Raw, Script, binaries_of, message, soon};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// What becomes of the server connection of a client that left something there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Others get it as soon as its client rests.
    Shared,
    /// Others get it once its client has left.
    Inherited,
    /// Nobody else ever gets it; it stays its client's own until that leaves.
    Closed,
    /// Nobody else ever gets it; it gives way to a new one as soon as its client rests.
    Evicted,
    /// What was to be left there is refused.
    Refused,
    /// A transaction is open: others wait.
    Busy,
}

use Fate::{Busy, Closed, Evicted, Inherited, Refused, Shared};

/// What to run, and what becomes of the connection in modes `auto` and `transaction`.
type Trace = (&'static str, Fate, Fate);

const TRACES: &[Trace] = &[
    // Settings.
    ("SET work_mem = '99MB'", Shared, Shared),
    ("SET SESSION work_mem = '99MB'", Shared, Shared),
    ("BEGIN; SET LOCAL work_mem = '99MB'; COMMIT", Shared, Shared),
    (
        "BEGIN; SET work_mem = '98MB'; SAVEPOINT s; SET work_mem = '99MB'; ROLLBACK TO s; COMMIT",
        Shared,
        Shared,
    ),
    ("SELECT set_config('work_mem', '99MB', false)", Shared, Shared),
    ("SELECT set_config('work_mem', '99MB', true)", Shared, Shared),
    (
        "SELECT set_config('work_mem', setting || '0kB', false) FROM pg_settings WHERE name = 'work_mem'",
        Inherited,
        Shared,
    ),
    ("SELECT set_config('work_' || 'mem', '99MB', false)", Closed, Evicted),
    ("SET TIME ZONE 'Asia/Tokyo'", Shared, Shared),
    ("SET TIME ZONE INTERVAL '+02:00' HOUR TO MINUTE", Shared, Shared),
    ("SET NAMES 'SQL_ASCII'", Shared, Shared),
    ("SET XML OPTION DOCUMENT", Shared, Shared),
    ("SET SCHEMA 'pg_catalog'", Shared, Shared),
    ("SET search_path = pg_catalog, public", Shared, Shared),
    ("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY", Shared, Shared),
    ("SET session_replication_role = replica", Shared, Shared),
    ("SET standard_conforming_strings = off", Inherited, Shared),
    ("SET seed = 0.5", Shared, Shared),
    (
        "SET work_mem = '99MB'; RESET work_mem; SET jit = off; RESET ALL; SET jit = off | DISCARD ALL",
        Shared,
        Shared,
    ),
    // Who it is.
    ("SET ROLE joe", Shared, Shared),
    ("SET SESSION AUTHORIZATION joe", Shared, Shared),
    ("SET SESSION AUTHORIZATION joe; SET ROLE boss", Shared, Shared),
    ("BEGIN; SET LOCAL ROLE joe; COMMIT", Shared, Shared),
    // Custom settings are known for good, even where they are empty again.
    ("SET my.name = 'x'", Evicted, Evicted),
    ("BEGIN; SET LOCAL my.name = 'x'; COMMIT", Evicted, Evicted),
    ("BEGIN; SET my.name = 'x'; ROLLBACK", Evicted, Evicted),
    ("SELECT set_config('my.name', 'x', false)", Evicted, Evicted),
    ("SELECT set_config('my.name', 'x', true)", Evicted, Evicted),
    ("ALTER ROLE joe SET my.name = 'x'", Evicted, Evicted),
    ("SET my.name = 'x' | DISCARD ALL", Evicted, Evicted),
    ("SELECT set_config(n, 'x', true) FROM (VALUES ('my.name')) v (n)", Closed, Evicted),
    // Statements and cursors.
    ("PREPARE p AS SELECT 1", Shared, Shared),
    ("SELECT 1; PREPARE p AS SELECT 1", Inherited, Refused),
    ("BEGIN; DECLARE c CURSOR FOR SELECT 1; COMMIT", Shared, Shared),
    ("BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT", Inherited, Refused),
    // Notifications and locks.
    ("LISTEN c", Inherited, Refused),
    ("LISTEN c; UNLISTEN *", Inherited, Refused),
    ("NOTIFY c", Shared, Shared),
    ("SELECT pg_advisory_lock(5)", Inherited, Refused),
    ("SELECT pg_try_advisory_lock_shared(5, 6)", Inherited, Refused),
    ("BEGIN; SELECT pg_advisory_xact_lock(5); COMMIT", Shared, Shared),
    // Sequences.
    ("SELECT nextval('t_id_seq')", Shared, Shared),
    ("SELECT setval('t_id_seq', 99)", Shared, Shared),
    ("INSERT INTO t (n) VALUES (1)", Shared, Shared),
    ("BEGIN; INSERT INTO t (n) VALUES (1); SELECT lastval(); COMMIT", Inherited, Shared),
    // Temporary objects.
    ("CREATE TEMP TABLE hidden (a int)", Inherited, Refused),
    ("CREATE TEMP TABLE hidden AS SELECT 1", Inherited, Refused),
    ("CREATE TABLE pg_temp.hidden (a int)", Inherited, Refused),
    ("SELECT 1 AS a INTO TEMP hidden", Inherited, Refused),
    ("CREATE TEMP VIEW hidden AS SELECT 1", Inherited, Refused),
    ("CREATE TEMP SEQUENCE hidden", Inherited, Refused),
    ("CREATE TYPE pg_temp.hidden AS (a int)", Inherited, Refused),
    ("CREATE FUNCTION pg_temp.hidden() RETURNS int LANGUAGE sql AS 'SELECT 1'", Inherited, Refused),
    (
        "BEGIN; CREATE TEMP TABLE hidden (a int) ON COMMIT DROP; INSERT INTO hidden VALUES (1); COMMIT",
        Shared,
        Shared,
    ),
    // Things that nobody sees coming.
    ("INSERT INTO sly VALUES (1)", Shared, Shared),
    ("COPY sly FROM PROGRAM 'echo 1'", Shared, Shared),
    ("WITH w AS (INSERT INTO sly VALUES (1) RETURNING *) SELECT * FROM w", Shared, Shared),
    ("DO 'BEGIN CREATE TEMP TABLE hidden (a int); END'", Closed, Evicted),
    (
        "DO $$ BEGIN EXECUTE 'SET work_mem = ''99MB'''; EXECUTE 'PREPARE p AS SELECT 1'; EXECUTE 'LISTEN c'; END $$",
        Closed,
        Evicted,
    ),
    ("SELECT hides('SET my.name = ''x''')", Closed, Evicted),
    ("SELECT * FROM hides('CREATE TEMP TABLE hidden (a int)')", Closed, Evicted),
    ("CALL hides_too('LISTEN c')", Closed, Evicted),
    ("SELECT setseed(0.5)", Closed, Evicted),
    // Things that DISCARD ALL does not undo.
    ("LOAD 'auto_explain'", Closed, Evicted),
    ("LOAD 'auto_explain' | DISCARD ALL", Evicted, Evicted),
    ("SELECT pg_replication_origin_session_setup('origin')", Closed, Evicted),
    ("SELECT pg_create_physical_replication_slot('slot', false, true)", Closed, Evicted),
    ("SELECT pg_backup_start('backup', true)", Closed, Evicted),
    ("SELECT dblink_connect('line', 'dbname=postgres user=postgres host=/nonexistent') ", Closed, Evicted),
    ("PREPARE p AS SELECT setseed(0.5); EXECUTE p", Closed, Refused),
    // What is open is rolled back.
    ("BEGIN; SELECT lo_open(lo_create(0), 131072)", Busy, Busy),
    ("BEGIN; INSERT INTO t (n) VALUES (666)", Busy, Busy),
    ("BEGIN; SET work_mem = '99MB'; SELECT 1/0", Busy, Busy),
];

const SCHEMA: &str = "
    CREATE TABLE t (id serial, n int);
    CREATE TABLE sly (n int);
    CREATE TABLE wanted (name text, value text);
    CREATE ROLE joe; CREATE ROLE boss SUPERUSER; GRANT boss TO joe;
    CREATE EXTENSION dblink;
    CREATE FUNCTION hides(what text) RETURNS int LANGUAGE plpgsql AS $$ BEGIN EXECUTE what; RETURN 1; END $$;
    CREATE PROCEDURE hides_too(what text) LANGUAGE plpgsql AS $$ BEGIN EXECUTE what; END $$;
    CREATE FUNCTION sly() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        PERFORM set_config('work_mem', '77MB', false), pg_advisory_lock(77), nextval('t_id_seq'), setseed(0.5);
        PERFORM set_config(name, value, false) FROM wanted;
        CREATE TEMP TABLE IF NOT EXISTS hidden (a int);
        EXECUTE 'DEALLOCATE ALL'; EXECUTE 'PREPARE p AS SELECT 1'; EXECUTE 'LISTEN c';
        RETURN new;
    END $$;
    CREATE TRIGGER sly BEFORE INSERT ON sly FOR EACH ROW EXECUTE FUNCTION sly();
    SELECT pg_replication_origin_create('origin');";

struct World {
    server: Postgres,
}

impl World {
    async fn start(major: u32) -> Self {
        let server = Postgres::primary_of(Access::Trust, binaries_of(major));
        let direct = server.direct().await;
        direct.batch_execute(SCHEMA).await.unwrap();
        let version = simple(&direct, "SHOW server_version_num").await.remove(0);
        assert!(version.starts_with(&major.to_string()), "{version}");
        Self { server }
    }

    /// A proxy that has but one connection.
    async fn proxy(&self, mode: &str) -> (Agent, Proxy) {
        let mut agent = Agent::start(Some(Script::new(&[&self.server]).steady())).await;
        let lines = format!("[pool]\nsize = 1\nmode = '{mode}'");
        let proxy = Proxy::start_with(&mut agent, Access::Trust, &lines).await;
        (agent, proxy)
    }
}

async fn simple(client: &Client, sql: &str) -> Vec<String> {
    rows(client, sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"))
}

/// The rows, their columns put together.
async fn rows(client: &Client, sql: &str) -> Result<Vec<String>, tokio_postgres::Error> {
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|n| row.get(n).unwrap_or("null")).collect::<Vec<_>>().join(" "))
        }
        _ => None,
    };
    Ok(soon(client.simple_query(sql)).await?.iter().filter_map(row).collect())
}

const PID: &str = "SELECT pg_backend_pid()";

/// Settings, but for those of a library that PostgreSQL loads by itself once it is used.
const SETTINGS: &str = "SELECT name, setting, source, reset_val, boot_val FROM pg_settings
    WHERE name NOT LIKE 'plpgsql.%' ORDER BY name";

/// Questions that a client can ask about its session.
const QUESTIONS: &[&str] = &[
    SETTINGS,
    "SELECT current_user, session_user, current_setting('role'), current_setting('is_superuser'),
        current_setting('session_authorization')",
    "SELECT name, statement, from_sql FROM pg_prepared_statements",
    "SELECT name, is_holdable FROM pg_cursors",
    "SELECT pg_listening_channels()",
    "SELECT locktype, mode, relation::regclass, classid, objid, granted FROM pg_locks
        WHERE pid = pg_backend_pid() AND locktype <> 'virtualxid' ORDER BY 1, 2, 3",
    "SELECT relname FROM pg_class WHERE relnamespace = pg_my_temp_schema()",
    "SELECT typname FROM pg_type WHERE typnamespace = pg_my_temp_schema() AND typname LIKE '%hidden'",
    "SELECT proname FROM pg_proc WHERE pronamespace = pg_my_temp_schema()",
    // Past the schema of temporary objects, of which a connection that ever had some keeps the empty shell: what
    // could be in it is asked for above.
    "SELECT array_remove(current_schemas(true), (SELECT nspname FROM pg_namespace WHERE oid = pg_my_temp_schema()))",
    "SELECT current_setting('my.name', true) IS NULL",
    "SELECT pg_current_xact_id_if_assigned() IS NULL",
    "SELECT slot_name FROM pg_replication_slots WHERE active_pid = pg_backend_pid()",
    "SELECT count(*) FROM t WHERE n = 666",
];

/// Things that are errors where nothing was left.
const ERRORS: &[&str] = &[
    "SELECT lastval()",
    "SELECT currval('t_id_seq')",
    "SELECT * FROM hidden",
    "SELECT null::hidden",
    "EXECUTE p",
    "FETCH c",
    "SELECT lo_close(0)",
    "SHOW my.name",
    "SHOW auto_explain.log_timing",
];

/// The same, but whoever asks them makes the connection its own.
const MORE_ERRORS: &[&str] = &[
    "SELECT hidden()",
    "SELECT pg_replication_origin_session_reset()",
    "SELECT pg_backup_stop()",
    "SELECT dblink_disconnect('line')",
];

async fn findings(client: &Client, errors: &[&'static str]) -> BTreeMap<&'static str, Vec<String>> {
    let mut all = BTreeMap::new();
    for question in QUESTIONS {
        all.insert(*question, simple(client, question).await);
    }
    for question in errors {
        // In a transaction, so that no mode has a reason to refuse it.
        let answer = rows(client, &format!("BEGIN; {question}")).await;
        let answer = answer.map_err(|error| error.code().unwrap().code().to_owned());
        all.insert(*question, vec![format!("{answer:?}")]);
        simple(client, "ROLLBACK").await;
    }
    all
}

/// What `random()` gives to whoever said that it begins with 0.5.
async fn predicted(client: &Client) -> Vec<String> {
    simple(client, "SELECT setseed(0.5)").await;
    simple(client, "SELECT random() FROM generate_series(1, 100)").await
}

/// `client` finds what a connection past the proxy finds.
async fn assert_fresh(world: &World, client: &Client, why: &str) {
    let random = simple(client, "SELECT random()").await;
    assert!(!predicted(&world.server.direct().await).await.contains(&random[0]), "{why}: random() is known");
    assert_finds(world, client, why, ERRORS).await;
}

/// The same, with questions after which nobody else gets the connection.
async fn assert_empty(world: &World, client: &Client, why: &str) {
    assert_fresh(world, client, why).await;
    assert_finds(world, client, why, MORE_ERRORS).await;
}

async fn assert_finds(world: &World, client: &Client, why: &str, errors: &[&'static str]) {
    let found = findings(client, errors).await;
    let expected = findings(&world.server.direct().await, errors).await;
    for (question, expected) in expected {
        let different: Vec<_> = found[question].iter().filter(|row| !expected.contains(row)).collect();
        assert!(found[question] == expected, "{why}: {question}: {different:?}");
    }
}

/// One trace: what others find while its client is there, and once it is gone.
async fn follow(world: &World, proxy: &Proxy, trace: &str, fate: Fate) {
    let client = proxy.connect().await;
    let pid = simple(&client, PID).await;
    let done = run(&client, trace).await;
    match (fate, done) {
        (Refused, Err(error)) => {
            assert_eq!(error.code(), Some(&SqlState::FEATURE_NOT_SUPPORTED), "{trace}: {error:?}");
        }
        (Refused, Ok(_)) => panic!("{trace} is not refused"),
        (_, Ok(_)) => {}
        (_, Err(error)) => {
            let expected = trace.contains("1/0") || trace.contains("/nonexistent");
            assert!(expected, "{trace}: {error:?}");
        }
    }
    if matches!(fate, Shared | Refused) {
        let other = proxy.connect().await;
        assert_eq!(simple(&other, PID).await, pid, "{trace}");
        assert_fresh(world, &other, trace).await;
        drop(other);
    }
    if fate == Evicted {
        let other = proxy.connect().await;
        assert_ne!(simple(&other, PID).await, pid, "{trace}");
        drop(other);
    }
    drop(client);
    let client = proxy.connect().await;
    let mut pid = simple(&client, PID).await;
    drop(run(&client, trace).await);
    if trace.contains("pg_temp") && fate == Inherited {
        // Others had temporary objects on the first, so that it got another.
        pid = simple(&client, PID).await;
    }
    drop(client);
    let next = proxy.connect().await;
    let same = simple(&next, PID).await == pid;
    assert_eq!(same, matches!(fate, Shared | Inherited | Refused), "{trace}, its client gone");
    assert_empty(world, &next, &format!("{trace}, its client gone")).await;
}

/// Its steps one by one.
async fn run(client: &Client, trace: &str) -> Result<(), tokio_postgres::Error> {
    for step in trace.split(" | ") {
        rows(client, step).await?;
    }
    Ok(())
}

async fn nothing_leaks(major: u32) {
    let world = World::start(major).await;
    for mode in ["auto", "transaction"] {
        let (_agent, proxy) = world.proxy(mode).await;
        for (trace, auto, transaction) in TRACES {
            let fate = if mode == "auto" { *auto } else { *transaction };
            follow(&world, &proxy, trace, fate).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_leaks_in_postgresql_15() {
    nothing_leaks(15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_leaks_in_postgresql_16() {
    nothing_leaks(16).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_leaks_in_postgresql_17() {
    nothing_leaks(17).await;
}

/// Every setting that a session can make, with another value than it has; null: none is known.
const OTHER_VALUES: &str = "
    SELECT name, CASE vartype
        WHEN 'bool' THEN CASE setting WHEN 'on' THEN 'off' ELSE 'on' END
        WHEN 'enum' THEN (SELECT v FROM unnest(enumvals) WITH ORDINALITY e (v, n) WHERE v <> setting
                          ORDER BY n DESC LIMIT 1)
        WHEN 'integer' THEN CASE
            WHEN name ~ 'timeout|check_interval' THEN '600000'
            WHEN setting::int8 < max_val::int8 THEN (setting::int8 + 1)::text
            WHEN setting::int8 > min_val::int8 THEN (setting::int8 - 1)::text END
        WHEN 'real' THEN CASE WHEN setting::float8 = 0 THEN least(0.5, max_val::float8)
            ELSE greatest(min_val::float8, setting::float8 / 2) END::text
        ELSE CASE name
            WHEN 'application_name' THEN 'somebody' WHEN 'backtrace_functions' THEN 'f'
            WHEN 'client_encoding' THEN 'SQL_ASCII' WHEN 'createrole_self_grant' THEN 'set'
            WHEN 'DateStyle' THEN 'SQL, DMY' WHEN 'default_tablespace' THEN 'pg_default'
            WHEN 'default_text_search_config' THEN 'pg_catalog.german' WHEN 'dynamic_library_path' THEN '/tmp'
            WHEN 'extension_destdir' THEN '/nonexistent'
            WHEN 'lc_messages' THEN 'POSIX' WHEN 'lc_monetary' THEN 'POSIX' WHEN 'lc_numeric' THEN 'POSIX'
            WHEN 'lc_time' THEN 'POSIX' WHEN 'local_preload_libraries' THEN 'x'
            WHEN 'restrict_nonsystem_relation_kind' THEN 'view' WHEN 'search_path' THEN 'pg_catalog'
            WHEN 'session_preload_libraries' THEN 'x' WHEN 'temp_tablespaces' THEN 'pg_default'
            WHEN 'TimeZone' THEN 'Asia/Tokyo' WHEN 'timezone_abbreviations' THEN 'India'
            WHEN 'wal_consistency_checking' THEN 'heap' END
    END
    FROM pg_settings WHERE context IN ('user', 'superuser')
    -- Those of a transaction, and those of which only one at a time can be on.
    AND name NOT IN ('transaction_isolation', 'transaction_read_only', 'transaction_deferrable', 'seed',
        'log_parser_stats', 'log_planner_stats', 'log_executor_stats')
    AND name NOT LIKE 'plpgsql.%'
    ORDER BY name";

/// There is no other value for these without more ado.
const NO_OTHER_VALUE: &[&str] = &[
    "default_table_access_method",
    "debug_discard_caches",
    "ssl_renegotiation_limit",
    // Where the server was built without lz4.
    "default_toast_compression",
];

async fn other_values(client: &Client) -> Vec<(String, String)> {
    let answer = soon(client.query(OTHER_VALUES, &[])).await.unwrap();
    let pairs = answer.iter().map(|row| (row.get(0), row.get(1)));
    let (known, unknown): (Vec<_>, Vec<_>) =
        pairs.partition(|(_, value): &(String, Option<String>)| value.is_some());
    let unknown: Vec<String> = unknown.into_iter().map(|(name, _)| name).collect();
    assert!(unknown.iter().all(|name| NO_OTHER_VALUE.contains(&name.as_str())), "{unknown:?}");
    known.into_iter().map(|(name, value)| (name, value.unwrap())).collect()
}

/// What a session finds of its own settings.
async fn own_settings(client: &Client) -> Vec<String> {
    simple(client, SETTINGS).await
}

async fn every_setting_follows_its_client_and_no_other(major: u32) {
    let world = World::start(major).await;
    let values = other_values(&world.server.direct().await).await;
    assert!(values.len() > 120, "{}", values.len());
    for mode in ["auto", "transaction"] {
        let (_agent, proxy) = world.proxy(mode).await;
        for by_function in [false, true] {
            let direct = world.server.direct().await;
            let client = proxy.connect().await;
            let pid = simple(&client, PID).await;
            for (name, value) in &values {
                // It pins the session, which keeps its connection then.
                if name == "standard_conforming_strings" {
                    continue;
                }
                let sql = if by_function {
                    format!("SELECT set_config('{name}', '{value}', false)")
                } else if ["search_path", "temp_tablespaces", "DateStyle"].contains(&name.as_str()) {
                    format!("SET {name} = {value}")
                } else {
                    format!("SET {name} = '{value}'")
                };
                simple(&direct, &sql).await;
                simple(&client, &sql).await;
            }
            let changed = own_settings(&direct).await;
            let unchanged = own_settings(&world.server.direct().await).await;
            let differ = changed.iter().zip(&unchanged).filter(|(one, other)| one != other).count();
            assert!(differ + 5 > values.len(), "{differ} of {}", values.len());
            for round in 0..2 {
                let other = proxy.connect().await;
                assert_eq!(simple(&other, PID).await, pid);
                assert_fresh(&world, &other, "every setting").await;
                drop(other);
                let found = own_settings(&client).await;
                let lost: Vec<_> = found.iter().filter(|row| !changed.contains(row)).collect();
                assert!(lost.is_empty(), "{mode}, round {round}: {lost:?}");
            }
        }
        // The same unseen.
        let direct = world.server.direct().await;
        simple(&direct, "TRUNCATE wanted").await;
        for (name, value) in values.iter().filter(|(name, _)| name != "standard_conforming_strings") {
            let sql = "INSERT INTO wanted VALUES ($1, $2)";
            soon(direct.execute(sql, &[name, value])).await.unwrap();
        }
        follow(&world, &proxy, "INSERT INTO sly VALUES (1)", Shared).await;
        simple(&direct, "TRUNCATE wanted").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_setting_follows_its_client_in_postgresql_15() {
    every_setting_follows_its_client_and_no_other(15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_setting_follows_its_client_in_postgresql_16() {
    every_setting_follows_its_client_and_no_other(16).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_setting_follows_its_client_in_postgresql_17() {
    every_setting_follows_its_client_and_no_other(17).await;
}

/// What a session does in some order, and what of it a session past the proxy has in the end.
const STORIES: &[&[&str]] = &[
    &["SET work_mem = '9MB'", "SET SESSION work_mem = '8MB'", "RESET work_mem"],
    &["SET work_mem = '9MB'", "SET jit = off", "RESET ALL", "SET jit = off"],
    &["SET work_mem = '9MB'", "DISCARD ALL", "SET jit = off"],
    &["SET work_mem = '9MB'", "DISCARD PLANS", "DISCARD SEQUENCES", "DISCARD TEMP"],
    &["SET work_mem TO DEFAULT", "SET TIME ZONE LOCAL", "SET TIME ZONE DEFAULT", "SET TIME ZONE -7"],
    &["SET datestyle = 'SQL'", "SET datestyle = 'DMY'", "SET intervalstyle = iso_8601"],
    &["SET NAMES 'SQL_ASCII'", "SET XML OPTION DOCUMENT", "SET SCHEMA 'pg_catalog'"],
    &[
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    ],
    &["BEGIN", "SET work_mem = '9MB'", "SAVEPOINT s", "SET work_mem = '8MB'", "ROLLBACK TO s", "COMMIT"],
    &["BEGIN", "SET work_mem = '9MB'", "SET LOCAL jit = off", "ROLLBACK", "SET work_mem = '7MB'"],
    &[
        "SELECT set_config('work_mem', '9MB', false)",
        "BEGIN",
        "SELECT set_config('work_mem', '8MB', true)",
        "COMMIT",
    ],
    &["SET ROLE joe", "SET work_mem = '9MB'"],
    &["SET log_statement = 'all'", "SET SESSION AUTHORIZATION joe", "SET work_mem = '9MB'"],
    &["SET SESSION AUTHORIZATION joe", "SET ROLE boss", "SET log_statement = 'all'", "RESET ROLE"],
    &["SET ROLE joe", "RESET ROLE", "SET log_statement = 'all'", "SET ROLE joe", "SET jit = off"],
    &["SET SESSION AUTHORIZATION joe", "RESET SESSION AUTHORIZATION", "SET log_statement = 'all'"],
    &["SET ROLE joe", "SET work_mem = '9MB'", "RESET ALL", "SET jit = off"],
    &["SET my.name = 'a'", "SET my.name TO 'b'", "RESET my.name", "SET other.name = 'c'"],
    &["PREPARE p AS SELECT current_setting('search_path')", "SET search_path = pg_catalog"],
    &["PREPARE p (int) AS SELECT $1 + 1 AS a", "PREPARE q AS SELECT 2", "DEALLOCATE q"],
    &["PREPARE p AS SELECT 1", "DEALLOCATE ALL", "PREPARE p AS SELECT 2"],
    &["PREPARE p AS SELECT 1", "DEALLOCATE p", "PREPARE P AS SELECT n FROM t"],
    &["PREPARE \"P p\" AS SELECT 1", "DISCARD ALL"],
];

/// What a session finds of what it did.
async fn own_state(client: &Client) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for question in [
        SETTINGS,
        "SELECT current_user, session_user, current_setting('role'), current_setting('my.name', true)",
        "SELECT name, statement, parameter_types, from_sql FROM pg_prepared_statements ORDER BY name",
    ] {
        all.push(simple(client, question).await);
    }
    for question in ["EXECUTE p", "EXECUTE p(1)", "EXECUTE q", "EXPLAIN EXECUTE p", "PREPARE p AS SELECT 3"] {
        let answer = rows(client, question).await;
        all.push(vec![format!("{:?}", answer.map_err(|error| error.code().unwrap().code().to_owned()))]);
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_session_did_goes_with_it_from_connection_to_connection() {
    let world = World::start(15).await;
    for mode in ["auto", "transaction"] {
        let (_agent, proxy) = world.proxy(mode).await;
        for story in STORIES {
            // Moved at the end, and after each step outside of a transaction.
            for always in [false, true] {
                let (direct, client) = (world.server.direct().await, proxy.connect().await);
                let mut open = false;
                for sql in *story {
                    simple(&direct, sql).await;
                    simple(&client, sql).await;
                    open = (open || *sql == "BEGIN") && !matches!(*sql, "COMMIT" | "ROLLBACK");
                    if always && !open {
                        let other = proxy.connect().await;
                        simple(&other, "INSERT INTO t (n) VALUES (1)").await;
                        drop(other);
                    }
                }
                let other = proxy.connect().await;
                simple(&other, "INSERT INTO t (n) VALUES (1)").await;
                drop(other);
                assert_eq!(own_state(&client).await, own_state(&direct).await, "{mode}: {story:?}");
            }
        }
    }
}

/// Leaves another client's statement of the name `p` on the connection, for whoever comes next.
async fn prepared_by_another(proxy: &Proxy) {
    let mut other = Raw::log_in(proxy.port()).await;
    let parse = message('P', b"p\0SELECT 'of another'\0\0\0");
    other.say(&[parse, message('S', b"")].concat()).await;
    other.until("1Z").await;
}

/// In a failed transaction nothing can be prepared for what its end is followed by.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_sql_prepared_is_found_behind_the_end_of_a_failed_transaction() {
    let world = World::start(15).await;
    let (_agent, proxy) = world.proxy("auto").await;
    // Until then, all that a session prepared goes along with anything.
    proxy.knows_catalogs().await;
    for last in [
        "ABORT; PREPARE p AS SELECT 2",
        "END; EXECUTE p",
        "COMMIT AND CHAIN; EXECUTE p",
        "ROLLBACK TO s; PREPARE p AS SELECT 2",
        "ROLLBACK TO SAVEPOINT s; EXECUTE p",
        "ROLLBACK TO gone; EXECUTE p",
        "SELECT 1; ABORT; EXECUTE p",
    ] {
        let (direct, client) = (world.server.direct().await, proxy.connect().await);
        let mut answers = [vec![], vec![]];
        for (client, answers) in [&direct, &client].into_iter().zip(&mut answers) {
            simple(client, "PREPARE p AS SELECT 1").await;
            prepared_by_another(&proxy).await;
            for sql in [
                "BEGIN ISOLATION LEVEL REPEATABLE READ",
                "INSERT INTO t (n) VALUES (7)",
                "SAVEPOINT s",
                "SAVEPOINT t",
                "SELECT 1/0",
                last,
                "SHOW transaction_isolation",
                "ROLLBACK TO t",
                "ROLLBACK TO s",
                "SELECT n FROM t WHERE n = 7",
                "ROLLBACK",
                "EXECUTE p",
            ] {
                let answer = rows(client, sql).await;
                answers.push(answer.map_err(|error| error.code().unwrap().code().to_owned()));
            }
        }
        assert_eq!(answers[1], answers[0], "{last}");
    }
    for last in ["ROLLBACK; EXECUTE p", "ROLLBACK TO a; EXECUTE p"] {
        let direct = told_of_settings(Raw::log_in(world.server.port()).await, last, None).await;
        let told = told_of_settings(Raw::log_in(proxy.port()).await, last, Some(&proxy)).await;
        assert!(!direct.is_empty() && told == direct, "{last}: {told:?} {direct:?}");
    }
}

/// What a client is told of its settings by the end of a transaction that failed behind changing one.
async fn told_of_settings(mut client: Raw, last: &str, proxy: Option<&Proxy>) -> Vec<String> {
    let query = |sql: &str| message('Q', &[sql.as_bytes(), b"\0"].concat());
    client.say(&query("PREPARE p AS SELECT 1")).await;
    client.until("Z").await;
    if let Some(proxy) = proxy {
        prepared_by_another(proxy).await;
    }
    for sql in ["BEGIN; SAVEPOINT a", "SET TimeZone = 'Asia/Tokyo'", "SAVEPOINT b", "SELECT 1/0"] {
        client.say(&query(sql)).await;
        client.until("Z").await;
    }
    client.say(&query(last)).await;
    client.until("Z").await.into_iter().filter(|told| told.starts_with('S')).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_login_gets_may_change_while_connections_rest() {
    let world = World::start(15).await;
    for mode in ["auto", "transaction"] {
        let (_agent, proxy) = world.proxy(mode).await;
        let resting = proxy.connect().await;
        simple(&resting, "INSERT INTO t (n) VALUES (1)").await;
        for sql in [
            "ALTER ROLE postgres SET work_mem = '5MB'",
            "ALTER DATABASE postgres SET work_mem = '6MB'",
            "ALTER ROLE postgres IN DATABASE postgres SET work_mem = '7MB'",
            "ALTER ROLE ALL SET jit = off",
            "ALTER ROLE postgres RESET ALL",
            "ALTER ROLE postgres IN DATABASE postgres RESET ALL",
            "ALTER DATABASE postgres RESET work_mem",
            "ALTER ROLE ALL RESET ALL",
        ] {
            let client = proxy.connect().await;
            simple(&client, sql).await;
            drop(client);
            assert_fresh(&world, &proxy.connect().await, sql).await;
        }
    }
}

/// Where the search path leads to temporary objects, a transaction that is the first to look for them on its connection cannot be
/// prepared.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_names_the_temporary_schema_is_the_first_to_have_one() {
    let world = World::start(15).await;
    let (_agent, proxy) = world.proxy("auto").await;
    let before = proxy.connect().await;
    simple(&before, "CREATE TEMP TABLE scratch (n int)").await;
    simple(&before, "DISCARD ALL").await;
    let client = proxy.connect().await;
    simple(&client, "INSERT INTO t (n) VALUES (1)").await;
    let script =
        "BEGIN; SET LOCAL search_path TO 'pg_temp'; SELECT current_schema(); PREPARE TRANSACTION 'first'";
    let refused = soon(client.simple_query(script)).await.unwrap_err();
    assert_eq!(refused.code(), Some(&SqlState::FEATURE_NOT_SUPPORTED), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_with_a_login_stays_with_it() {
    let world = World::start(15).await;
    for mode in ["auto", "transaction"] {
        let (_agent, proxy) = world.proxy(mode).await;
        let login = proxy.login("postgres", "secret", "postgres") + " options='-c work_mem=5MB -c my.name=x'";
        let (client, connection) = soon(tokio_postgres::connect(&login, NoTls)).await.unwrap();
        tokio::spawn(connection);
        assert_eq!(simple(&client, "SHOW work_mem").await, ["5MB"]);
        assert_fresh(&world, &proxy.connect().await, "options").await;
        assert_eq!(simple(&client, "SHOW work_mem; SHOW my.name").await, ["5MB", "x"]);
        // A statement of the protocol's.
        let statement = soon(client.prepare("SELECT n FROM t WHERE n = $1")).await.unwrap();
        soon(client.query(&statement, &[&5])).await.unwrap();
        assert_fresh(&world, &proxy.connect().await, "a prepared statement").await;
        soon(client.query(&statement, &[&5])).await.unwrap();
    }
}

/// What only the server itself tells, through functions of other names that count as reads.
const PEEK: &str = "
    CREATE FUNCTION peek_pid() RETURNS int LANGUAGE internal STABLE AS 'pg_backend_pid';
    CREATE FUNCTION peek_settings(OUT name text, OUT setting text, OUT unit text, OUT category text,
        OUT short_desc text, OUT extra_desc text, OUT context text, OUT vartype text, OUT source text,
        OUT min_val text, OUT max_val text, OUT enumvals text[], OUT boot_val text, OUT reset_val text,
        OUT sourcefile text, OUT sourceline int, OUT pending_restart bool)
        RETURNS SETOF record LANGUAGE internal STABLE AS 'show_all_settings';
    CREATE FUNCTION peek_cursors(OUT name text, OUT statement text, OUT is_holdable bool, OUT is_binary bool,
        OUT is_scrollable bool, OUT creation_time timestamptz)
        RETURNS SETOF record LANGUAGE internal STABLE AS 'pg_cursor';
    CREATE FUNCTION peek_custom(text, bool) RETURNS text LANGUAGE internal STABLE AS 'show_config_by_name_missing_ok';";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_leave_nothing_on_a_standby() {
    let server = Postgres::primary(Access::Trust);
    let direct = server.direct().await;
    direct.batch_execute("CREATE TABLE t (id serial, n int); CREATE ROLE joe").await.unwrap();
    direct.batch_execute(PEEK).await.unwrap();
    let standby = server.standby();
    standby.caught_up_with(&server).await;
    for mode in ["auto", "transaction"] {
        let mut agent = Agent::start(Some(Script::new(&[&server, &standby]).steady())).await;
        let lines = format!(
            "[routing]\nread_consistency = 'eventual'\nprimary_weight = 0\n[pool]\nsize = 1\nmode = '{mode}'"
        );
        let proxy = Proxy::start_with(&mut agent, Access::Trust, &lines).await;
        proxy.knows_catalogs().await;
        let peek = async |client: &Client| {
            let mut all = Vec::new();
            for question in [
                "SELECT name, setting, source FROM peek_settings() WHERE name NOT LIKE 'plpgsql.%' ORDER BY name",
                "SELECT name FROM peek_cursors() WHERE name <> ''",
                "SELECT peek_custom('my.name', true)",
                "SELECT current_user, session_user",
            ] {
                all.push(simple(client, question).await);
            }
            all
        };
        let fresh = peek(&standby.direct().await).await;
        for (trace, same) in [
            ("SELECT count(*) FROM t", true),
            ("SHOW work_mem", true),
            ("EXPLAIN SELECT * FROM t", true),
            ("COPY (SELECT 1) TO STDOUT", true),
            ("BEGIN READ ONLY; SELECT 1; COMMIT", true),
            ("SET work_mem = '99MB'", true),
            ("SELECT set_config('work_mem', '99MB', false)", true),
            ("SET ROLE joe", true),
            ("PREPARE p AS SELECT 1", true),
            ("SET my.name = 'x'", false),
            ("BEGIN READ ONLY; DECLARE c CURSOR FOR SELECT 1; COMMIT", true),
        ] {
            let client = proxy.connect().await;
            if trace.starts_with("COPY") {
                let out = soon(client.copy_out(trace)).await.unwrap();
                soon(futures_util::TryStreamExt::try_collect::<Vec<_>>(out)).await.unwrap();
            } else {
                simple(&client, trace).await;
            }
            let statement = soon(client.prepare("SELECT peek_pid() + $1")).await.unwrap();
            let pid: i32 = soon(client.query_one(&statement, &[&0])).await.unwrap().get(0);
            let other = proxy.connect().await;
            let next = simple(&other, "SELECT peek_pid()").await;
            assert_eq!(next[0] == pid.to_string(), same, "{mode}: {trace}");
            assert_eq!(peek(&other).await, fresh, "{mode}: {trace}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_transaction_mode_what_needs_a_connection_is_refused_and_costs_the_transaction() {
    let world = World::start(15).await;
    let (_agent, proxy) = world.proxy("transaction").await;
    let (client, other) = (proxy.connect().await, proxy.connect().await);
    for sql in [
        "LISTEN c",
        "CREATE TEMP TABLE hidden (a int)",
        "SELECT pg_advisory_lock(1)",
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    ] {
        let error = rows(&client, sql).await.unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!(error.code(), &SqlState::FEATURE_NOT_SUPPORTED);
        assert!(error.hint().unwrap().contains("pool.mode"), "{error:?}");
        // In a transaction, and prepared.
        simple(&client, "BEGIN; INSERT INTO t (n) VALUES (666)").await;
        let error = soon(client.prepare(sql)).await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::FEATURE_NOT_SUPPORTED), "{sql}");
        let error = rows(&client, "SELECT 1").await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::IN_FAILED_SQL_TRANSACTION), "{sql}");
        assert!(rows(&client, sql).await.unwrap_err().code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION));
        simple(&client, "COMMIT").await;
        assert_eq!(simple(&other, "SELECT count(*) FROM t WHERE n = 666").await, ["0"], "{sql}");
    }
    let error = rows(&client, "SELECT lastval()").await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::FEATURE_NOT_SUPPORTED));
    let within = "BEGIN; INSERT INTO t (n) VALUES (1); SELECT lastval() > 0; COMMIT";
    assert_eq!(simple(&client, within).await, ["t"]);
    // Nobody ever keeps a connection.
    simple(&client, "DO 'BEGIN CREATE TEMP TABLE hidden (a int); END'").await;
    let temporary = "SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()";
    assert_eq!(simple(&other, temporary).await, ["0"]);
}
