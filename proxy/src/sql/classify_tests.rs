use super::*;
use crate::sql::shape::tests::assert_same;
use crate::sql::{Settles, Why};

fn verdict(sql: &str) -> Verdict {
    assert_same(sql, &Facts::by_names());
    classify(sql.as_bytes(), &Facts::by_names())
}

fn route(sql: &str) -> Route {
    verdict(sql).route
}

const READS: &[&str] = &[
    "SELECT 1",
    "select a, b from t where a = $1 order by b limit 10",
    "SELECT * FROM public.t JOIN s.u USING (id) WHERE x IN (SELECT y FROM v)",
    "TABLE t",
    "VALUES (1), (2)",
    "(SELECT 1)",
    "WITH x AS (SELECT 1) SELECT * FROM x",
    "WITH RECURSIVE r(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM r WHERE n < 5) SELECT sum(n) FROM r",
    "SELECT 1 UNION SELECT 2 EXCEPT SELECT 3",
    "/* hint */ SELECT 1",
    "-- line\nSELECT 1",
    "SELECT 1;",
    "SELECT 1; SELECT 2",
    "EXPLAIN SELECT * FROM t",
    "EXPLAIN (VERBOSE, COSTS OFF) SELECT * FROM t",
    "EXPLAIN ANALYZE SELECT * FROM t",
    "EXPLAIN INSERT INTO t VALUES (1)",
    "SELECT * FROM pg_catalog.pg_class",
    "TABLE pg_class",
    "SELECT 1 UNION TABLE pg_class",
    "SELECT * FROM information_schema.tables",
    "SHOW server_version",
    "SHOW search_path",
    "COPY t TO STDOUT",
    "COPY (SELECT a FROM t) TO STDOUT WITH (FORMAT csv)",
    "SELECT now(), CURRENT_TIMESTAMP, version()",
    "SELECT current_setting('search_path')",
    "SELECT count(*), coalesce(max(a), 0) FROM t GROUP BY b HAVING count(*) > 1",
    "SELECT row_number() OVER (PARTITION BY a ORDER BY b) FROM t",
    "SELECT pg_catalog.lower(a) FROM t",
    "SELECT * FROM generate_series(1, 10) g",
    "SELECT * FROM t TABLESAMPLE SYSTEM (10)",
    "SELECT a::int, CAST(b AS text), c->>'k' FROM t",
    "SELECT EXTRACT(year FROM d), substring(s FROM 1 FOR 2), trim(s) FROM t",
    "SELECT ARRAY[1,2], '{1}'::int[] FROM t",
    "SELECT CASE WHEN a THEN 1 ELSE 2 END FROM t",
    "SELECT 't1'::regclass",
    "SELECT regclass 't1'",
    "SELECT CAST('f' AS regprocedure)",
    "SELECT abalance FROM pgbench_accounts WHERE aid = 17",
    "SELECT 'DELETE FROM t; nextval(''s'')'",
    "SELECT $$ nextval $$",
];

const PRIMARY: &[&str] = &[
    "SELECT * FROM t FOR UPDATE",
    "SELECT * FROM t FOR SHARE",
    "SELECT * FROM (SELECT * FROM t FOR UPDATE) x",
    "WITH x AS (SELECT * FROM t FOR NO KEY UPDATE) SELECT * FROM x",
    "SELECT a INTO b FROM t",
    "WITH x AS (INSERT INTO t VALUES (1) RETURNING *) SELECT * FROM x",
    "WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x",
    "WITH x AS (UPDATE t SET a = 1 RETURNING *) SELECT * FROM x",
    "WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x",
    "COPY t TO '/tmp/x'",
    "EXPLAIN ANALYZE INSERT INTO t VALUES (1)",
    "EXPLAIN (ANALYZE, BUFFERS) DELETE FROM t",
    "EXPLAIN (BUFFERS, ANALYZE) SELECT nextval('s')",
    "EXPLAIN CREATE TABLE x AS SELECT 1",
    "COPY t TO PROGRAM 'cat'",
    "COPY t FROM STDIN",
    "COPY (INSERT INTO t VALUES (1) RETURNING a) TO STDOUT",
    "COPY (SELECT nextval('s')) TO STDOUT",
    "COPY pg_stat_activity TO STDOUT",
    "INSERT INTO t VALUES (1)",
    "UPDATE t SET a = 1",
    "DELETE FROM t",
    "MERGE INTO t USING s ON t.a = s.a WHEN MATCHED THEN DELETE",
    "TRUNCATE t",
    "CREATE TABLE x (a int)",
    "DROP TABLE x",
    "ALTER TABLE t ADD b int",
    "DO $$ BEGIN END $$",
    "CALL p()",
    "GRANT SELECT ON t TO u",
    "COMMENT ON TABLE t IS 'x'",
    "VACUUM t",
    "ANALYZE t",
    "REINDEX TABLE t",
    "CLUSTER t",
    "CHECKPOINT",
    "LOAD 'x'",
    "REFRESH MATERIALIZED VIEW v",
    "SECURITY LABEL ON TABLE t IS 'x'",
    "BEGIN",
    "START TRANSACTION",
    "BEGIN ISOLATION LEVEL SERIALIZABLE",
    "BEGIN ISOLATION LEVEL SERIALIZABLE, READ ONLY",
    "BEGIN READ WRITE",
    "PREPARE TRANSACTION 'x'",
    "COMMIT PREPARED 'x'",
    "ROLLBACK PREPARED 'x'",
    "DISCARD ALL",
    "DEALLOCATE ALL",
    "DEALLOCATE s",
    "LOCK TABLE t IN ACCESS SHARE MODE",
    "LOCK t",
    "DECLARE c CURSOR FOR SELECT 1",
    "FETCH 1 FROM c",
    "MOVE 1 FROM c",
    "CLOSE c",
    "PREPARE x AS SELECT 1",
    "EXECUTE x",
    "LISTEN a",
    "UNLISTEN a",
    "NOTIFY a",
    "SELECT this(is not sql)",
    "SELECT pg_terminate_backend(1)",
    "SELECT set_config('a.b', 'c', true)",
    "SELECT pg_advisory_lock(1)",
    "SELECT nextval('s')",
    "SELECT setval('s', 1)",
    "SELECT lastval()",
    "SELECT random()",
    "SELECT gen_random_uuid()",
    "SELECT clock_timestamp()",
    "SELECT lo_create(0)",
    "SELECT pg_notify('a', 'b')",
    "SELECT pg_is_in_recovery()",
    "SELECT pg_sleep(1)",
    "SELECT pg_backend_pid()",
    "SELECT txid_current()",
    "SELECT * FROM pg_stat_activity",
    "EXPLAIN SELECT * FROM pg_stat_activity",
    "TABLE pg_locks",
    "SELECT 1 UNION TABLE pg_prepared_xacts",
    "SELECT * FROM pg_catalog.pg_settings",
    "SELECT * FROM pg_temp_3.x",
    "SELECT * FROM pg_toast.pg_toast_1",
    "SELECT my_function(1)",
    "SELECT app.lower('x')",
    "SELECT \"Lower\"('x')",
    "SELECT * FROM my_function(1)",
    "SELECT a FROM t ORDER BY nextval('s')",
    "SELECT a FROM t LIMIT my_function()",
    "SELECT a FROM t WHERE EXISTS (SELECT nextval('s'))",
    "SELECT last_value FROM s",
    "SELECT * FROM t_id_seq",
    "SELECT 1; DELETE FROM t",
    "INSERT INTO t VALUES (1); SELECT 1",
    "SHOW transaction_read_only",
    "SHOW ALL",
    "SELECT current_setting('transaction_read_only')",
    "SELECT current_setting(a) FROM t",
    "SELECT 1 OPERATOR(app.+) 2",
];

const NEUTRAL: &[&str] = &[
    "",
    ";",
    "-- nothing",
    "COMMIT",
    "END",
    "ROLLBACK",
    "SAVEPOINT a",
    "RELEASE SAVEPOINT a",
    "ROLLBACK TO SAVEPOINT a",
    "SET a.b = 'c'",
    "SET LOCAL a.b = 'c'",
    "SET search_path TO a, b",
    "SET TIME ZONE 'UTC'",
    "SET ROLE joe",
    "SET TRANSACTION READ ONLY",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "SET CONSTRAINTS ALL DEFERRED",
    "RESET search_path",
    "RESET ALL",
    "SHOW NODES",
];

#[test]
fn reads_are_known_as_reads() {
    for sql in READS {
        assert_eq!(route(sql), Route::Read, "{sql}");
    }
}

#[test]
fn everything_else_goes_to_the_primary() {
    for sql in PRIMARY {
        assert_eq!(route(sql), Route::Primary, "{sql}");
    }
}

#[test]
fn what_touches_no_data_may_run_anywhere() {
    for sql in NEUTRAL {
        assert_eq!(route(sql), Route::Neutral, "{sql}");
    }
}

#[test]
fn read_only_transactions_run_on_standbys_unless_they_keep_a_snapshot() {
    for sql in [
        "BEGIN READ ONLY",
        "START TRANSACTION READ ONLY",
        "BEGIN WORK READ ONLY;",
        "BEGIN ISOLATION LEVEL READ COMMITTED, READ ONLY",
    ] {
        assert_eq!(route(sql), Route::Read, "{sql}");
        assert!(verdict(sql).begins, "{sql}");
    }
    for sql in [
        "BEGIN",
        "BEGIN READ ONLY, READ WRITE",
        "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
        "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE",
        "BEGIN READ ONLY DEFERRABLE",
        "BEGIN READ ONLY; SELECT 1; COMMIT",
        "SELECT 1; BEGIN READ ONLY",
    ] {
        assert_eq!(route(sql), Route::Primary, "{sql}");
    }
}

#[test]
fn settings_are_remembered_but_for_local_ones() {
    let set = |key: &str, sql: &str| vec![Effect::Set { key: key.into(), sql: sql.into() }];
    assert_eq!(verdict("SET search_path TO a, b;").effects, set("search_path", "SET search_path TO a, b"));
    assert_eq!(verdict("SET ROLE joe").effects, set("role", "SET ROLE joe"));
    assert_eq!(verdict("RESET search_path").effects, set("search_path", "RESET search_path"));
    assert_eq!(verdict("SET TIME ZONE 'UTC'").effects, set("timezone", "SET TIME ZONE 'UTC'"));
    assert_eq!(verdict("RESET ALL").effects, [Effect::ResetAll]);
    let call = "SELECT pg_catalog.set_config('Search_Path', '', false)";
    assert_eq!(verdict(&format!("{call};")).effects, set("search_path", call));
    for sql in [
        "SET LOCAL a.b = 'c'",
        "SET TRANSACTION READ ONLY",
        "SET TRANSACTION SNAPSHOT 'x'",
        "SET CONSTRAINTS ALL DEFERRED",
        "SET LOCAL ROLE joe",
    ] {
        assert_eq!(verdict(sql).effects, [], "{sql}");
    }
    let two = verdict("SET a.b = '1'; SELECT 1");
    assert_eq!((two.route, two.effects.len()), (Route::Read, 1));
}

#[test]
fn state_that_one_server_has_pins_the_session() {
    for sql in [
        "SELECT set_config('a.b', 'c', false) FROM t",
        "SELECT set_config('a.b', 'c', false) WHERE false",
        "SELECT set_config('a.b', 'c', false), set_config('a.d', 'e', false)",
        "SELECT set_config('a.b', x, false) FROM t",
        "SELECT set_config('a.b', 'c', $1)",
        "SELECT my_function(1)",
        "SELECT app.lower('x')",
        "COPY (SELECT my_function(1)) TO STDOUT",
        "INSERT INTO t SELECT my_function(1)",
        "SELECT pg_advisory_lock(1)",
        "CALL p()",
        "DO $$ BEGIN END $$",
        "LOAD 'x'",
        "FROBNICATE temp",
        "SELECT seq_scan FROM pg_catalog.pg_stat_user_tables",
        "SELECT pg_stat_get_numscans(1)",
    ] {
        assert!(verdict(sql).effects.contains(&Effect::Pin), "{sql}");
    }
    for sql in [
        "SELECT set_config('a.b', 'c', true)",
        "CREATE TABLE x (a int)",
        "INSERT INTO t VALUES ('temp')",
        "INSERT INTO t VALUES (nextval('s'), random(), gen_random_uuid(), lower('x'))",
        "SELECT pg_advisory_xact_lock(1)",
    ] {
        assert!(!verdict(sql).effects.contains(&Effect::Pin), "{sql}");
    }
}

#[test]
fn whoever_may_end_its_own_process_is_known() {
    assert_eq!(verdict("SELECT pg_terminate_backend(pg_backend_pid())").effects, [Effect::Terminate]);
    let both = verdict("SELECT f(), pg_terminate_backend(1)").effects;
    assert!(both.starts_with(&[Effect::Terminate, Effect::Pin]), "{both:?}");
    assert_eq!(verdict("SELECT pg_backend_pid()").effects, []);
}

#[test]
fn commits_that_are_not_waited_for_are_noticed() {
    for sql in ["SET LOCAL synchronous_commit = off", "BEGIN; set Synchronous_Commit to local; COMMIT"] {
        assert!(verdict(sql).effects.contains(&Effect::LazyCommits), "{sql}");
    }
    assert!(!verdict("SET commit_delay = 1").effects.contains(&Effect::LazyCommits));
}

#[test]
fn the_two_halves_of_datestyle_are_remembered_side_by_side() {
    let key = |sql: &str| match verdict(sql).effects.as_slice() {
        [Effect::Set { key, .. }] => key.clone(),
        other => panic!("{other:?}"),
    };
    assert_ne!(key("SET DateStyle TO iso"), key("SET datestyle TO ymd"));
    assert_eq!(key("SET DateStyle TO iso"), key("set datestyle to ISO"));
    assert_eq!(key("SET timezone TO 'UTC'"), key("SET TimeZone = 'CET'"));
}

#[test]
fn prepared_statements_used_by_name_are_known() {
    assert_eq!(verdict("EXECUTE S1(1, 2)").uses, ["s1"]);
    assert_eq!(verdict("DEALLOCATE \"S1\"").uses, ["S1"]);
    assert_eq!(verdict("DEALLOCATE ALL").effects, [Effect::DeallocateAll]);
}

#[test]
fn commits_are_seen() {
    for sql in ["COMMIT", "END", "INSERT INTO t VALUES (1); COMMIT", "CALL p()", "FROBNICATE", "garbage"] {
        assert!(verdict(sql).may_commit, "{sql}");
    }
    assert!(verdict("ROLLBACK; INSERT INTO t VALUES (1)").may_commit, "the insert is not rolled back");
    for sql in ["ROLLBACK", "ABORT", "INSERT INTO t VALUES (1)", "SELECT 1"] {
        assert!(!verdict(sql).may_commit, "{sql}");
    }
    assert!(verdict("ROLLBACK").rolls_back && verdict("ABORT").effects == [Effect::Rollback]);
    assert!(verdict("BEGIN").begins && !verdict("BEGIN; INSERT INTO t VALUES (1)").begins);
}

#[test]
fn long_or_foreign_texts_are_not_parsed() {
    let sums = format!("SELECT 1{}", "+1".repeat((TEXT_MAX - 20) / 2));
    assert_eq!(route(&sums), Route::Read, "deep trees must not exhaust the stack");
    assert_eq!(route(&format!("SELECT '{}'", "x".repeat(TEXT_MAX))), Route::Primary);
    let settles = Settles::Alone;
    assert_eq!(classify(b"SELECT '\xff'", &Facts::by_names()), Verdict { settles, ..Verdict::unknown() });
    assert!(Verdict::unknown().effects.contains(&Effect::Pin), "it may have made a temporary table");
}

proptest::proptest! {
    #[test]
    fn a_statement_that_holds_a_write_is_never_a_read(
        before in "(SELECT a FROM t; |/\\* c \\*/ |-- x\n|TABLE t; |)",
        write in "(INSERT INTO t VALUES \\(1\\)|DELETE FROM t|UPDATE t SET a = 2|DROP TABLE t|SELECT nextval\\('s'\\)|SELECT a FROM t FOR UPDATE)",
        after in "(;| ; SELECT 1|)",
    ) {
        proptest::prop_assert_eq!(route(&format!("{before}{write}{after}")), Route::Primary);
    }
}

#[path = "rules_tests.rs"]
mod rules;

#[test]
fn statements_beside_what_is_not_understood_are_seen() {
    assert_eq!(route("TABLE t ORDER BY 1; SELECT 1; TABLE t"), Route::Read);
    assert_eq!(route("TABLE t ORDER BY 1; TRUNCATE t"), Route::Primary);
    for (sql, effect) in [
        ("DEALLOCATE ALL; SELECT 1; TABLE t ORDER BY 1 LIMIT 3", Effect::DeallocateAll),
        ("TABLE t ORDER BY 1; deallocate P1", Effect::Deallocate("p1".to_owned())),
        ("FROBNICATE; DISCARD ALL", Effect::DiscardAll),
        ("/* a; */ ABORT /* b */; TRUNCATE t; TABLE t", Effect::Rollback),
        ("TABLE t ORDER BY 1; -- a\nLISTEN b", Effect::Keep),
        ("TABLE t ORDER BY 1; DECLARE c CURSOR WITH HOLD FOR TABLE t", Effect::Keep),
        ("TABLE t ORDER BY 1; SET LOCAL work_mem = 64", Effect::ForTransaction),
        ("TABLE t ORDER BY 1; SELECT 'a\\'; LISTEN b --'", Effect::Pin),
    ] {
        let effects = verdict(sql).effects;
        assert!(effects.contains(&effect), "{sql}: {effects:?}");
    }
    let Verdict { effects, traces: prepares, .. } = verdict("TABLE t ORDER BY 1; PREPARE p AS SELECT 1");
    assert!(effects.contains(&Effect::Keep));
    assert!(prepares.uses_all && prepares.prepares.is_none() && prepares.holds == [Why::Prepare]);
}
