//! Every kind of statement, with the ways in which other balancers send it to the wrong server.

use super::*;
use Route::{Neutral, Primary, Read};

/// Text, where it may run, and what it does to the session.
const RULES: &[(&str, Route, &[Effect])] = &[
    // Reads in every dress.
    ("SELECT a FROM t", Read, &[]),
    ("TABLE t", Read, &[]),
    ("VALUES (1, 2), (3, 4)", Read, &[]),
    ("WITH a AS (SELECT 1) SELECT * FROM a", Read, &[]),
    ("(SELECT 1) UNION ALL (SELECT 2)", Read, &[]),
    // Comments are neither hints nor obstacles.
    ("/*NO LOAD BALANCE*/ SELECT 1", Read, &[]),
    ("/* a /* nested */ */ -- and a line\n SELECT 1", Read, &[]),
    ("/* SELECT */ INSERT INTO t VALUES (1)", Primary, &[]),
    ("-- SELECT 1\nDELETE FROM t", Primary, &[]),
    // Locks, at any depth.
    ("SELECT * FROM t FOR UPDATE", Primary, &[]),
    ("SELECT * FROM t FOR KEY SHARE OF t NOWAIT", Primary, &[]),
    ("SELECT (SELECT a FROM t LIMIT 1 FOR UPDATE)", Primary, &[]),
    ("SELECT * FROM a WHERE b IN (SELECT c FROM d WHERE e = (SELECT f FROM g FOR SHARE))", Primary, &[]),
    ("SELECT 1 UNION (SELECT a FROM t FOR UPDATE)", Primary, &[]),
    ("VALUES ((SELECT a FROM t FOR UPDATE))", Primary, &[]),
    ("COPY (SELECT * FROM t FOR UPDATE) TO STDOUT", Primary, &[]),
    ("LOCK TABLE t IN ACCESS SHARE MODE", Primary, &[]),
    ("LOCK TABLE t IN ROW EXCLUSIVE MODE NOWAIT", Primary, &[]),
    ("LOCK t", Primary, &[]),
    // Writes in the dress of reads.
    ("SELECT 1 INTO x", Primary, &[]),
    ("SELECT a INTO UNLOGGED x FROM t", Primary, &[]),
    ("WITH w AS (INSERT INTO t VALUES (1) RETURNING a) SELECT * FROM w", Primary, &[]),
    ("WITH a AS (SELECT 1), w AS (DELETE FROM t RETURNING a) SELECT * FROM a, w", Primary, &[]),
    ("WITH a AS (WITH w AS (UPDATE t SET a = 1 RETURNING a) SELECT * FROM w) SELECT * FROM a", Primary, &[]),
    ("WITH w AS (SELECT 1) UPDATE t SET a = 2", Primary, &[]),
    ("WITH w AS (SELECT 1) MERGE INTO t USING w ON true WHEN MATCHED THEN DELETE", Primary, &[]),
    // Plans.
    ("EXPLAIN SELECT * FROM t", Read, &[]),
    ("EXPLAIN INSERT INTO t VALUES (1)", Read, &[]),
    ("EXPLAIN UPDATE t SET a = 1", Read, &[]),
    ("EXPLAIN (COSTS OFF) DELETE FROM t WHERE a = 1", Read, &[]),
    ("EXPLAIN WITH w AS (INSERT INTO t VALUES (1) RETURNING a) SELECT * FROM w", Read, &[]),
    ("EXPLAIN SELECT * FROM t FOR UPDATE", Read, &[]),
    ("EXPLAIN SELECT nextval('s')", Read, &[]),
    ("EXPLAIN ANALYZE SELECT * FROM t", Read, &[]),
    ("EXPLAIN ANALYZE DELETE FROM t", Primary, &[]),
    ("EXPLAIN ANALYZE SELECT nextval('s')", Primary, &[]),
    ("EXPLAIN (ANALYZE) WITH w AS (DELETE FROM t RETURNING a) SELECT * FROM w", Primary, &[]),
    ("EXPLAIN ANALYZE SELECT * FROM t FOR UPDATE", Primary, &[]),
    ("EXPLAIN EXECUTE x", Primary, &[]),
    ("EXPLAIN SELECT * INTO x FROM t", Primary, &[]),
    // COPY out follows the same checks.
    ("COPY t TO STDOUT", Read, &[]),
    ("COPY t (a, b) TO STDOUT (FORMAT binary)", Read, &[]),
    ("COPY (SELECT * FROM t) TO STDOUT", Read, &[]),
    ("COPY (SELECT random()) TO STDOUT", Primary, &[]),
    ("COPY (SELECT 't'::regclass) TO STDOUT", Read, &[]),
    ("COPY (WITH w AS (DELETE FROM t RETURNING a) SELECT * FROM w) TO STDOUT", Primary, &[]),
    ("COPY (DELETE FROM t RETURNING a) TO STDOUT", Primary, &[]),
    ("COPY pg_temp.t TO STDOUT", Primary, &[]),
    ("COPY pg_locks TO STDOUT", Primary, &[]),
    ("COPY t TO '/tmp/t'", Primary, &[]),
    ("COPY t TO PROGRAM 'cat'", Primary, &[]),
    ("COPY t FROM STDIN", Primary, &[]),
    // What is resolved, counted or kept where it runs.
    ("SELECT 't'::regclass", Read, &[]),
    ("SELECT CAST('t' AS pg_catalog.regclass)", Read, &[]),
    ("SELECT to_regclass('t')", Primary, &[]),
    ("SELECT txid_current()", Primary, &[]),
    ("SELECT pg_current_xact_id()", Primary, &[]),
    ("SELECT pg_is_in_recovery()", Primary, &[]),
    ("SELECT pg_backend_pid()", Primary, &[]),
    ("SELECT inet_server_port()", Primary, &[]),
    ("SELECT pg_current_wal_lsn()", Primary, &[]),
    ("SELECT * FROM pg_locks", Primary, &[]),
    ("SELECT * FROM pg_prepared_xacts", Primary, &[]),
    ("SELECT * FROM pg_stat_replication", Primary, &[Effect::Pin]),
    ("SELECT last_value FROM s", Primary, &[]),
    ("SELECT nextval('s'), setval('s', 1), currval('s')", Primary, &[Effect::Keep]),
    ("SELECT now(), version(), current_setting('work_mem')", Read, &[]),
    ("SELECT current_setting('port')", Primary, &[]),
    ("SELECT * FROM t TABLESAMPLE BERNOULLI (1) REPEATABLE (2)", Read, &[]),
    ("SELECT relname FROM pg_class WHERE relkind = 'r'", Read, &[]),
    ("SELECT table_name FROM information_schema.tables", Read, &[]),
    // Large objects, advisory locks, notifications.
    ("SELECT lo_create(0)", Primary, &[]),
    ("SELECT lo_get(1)", Primary, &[]),
    // What was opened is closed with the transaction.
    ("SELECT loread(lo_open(1, 262144), 10)", Primary, &[]),
    ("SELECT pg_advisory_lock(1)", Primary, &[Effect::Pin]),
    ("SELECT pg_try_advisory_lock_shared(1)", Primary, &[Effect::Pin]),
    ("SELECT pg_advisory_xact_lock(1)", Primary, &[]),
    ("SELECT pg_notify('a', 'b')", Primary, &[]),
    ("LISTEN a", Primary, &[Effect::Keep]),
    ("UNLISTEN *", Primary, &[]),
    ("NOTIFY a, 'b'", Primary, &[]),
    // Several statements in one text run where the most demanding one has to.
    ("SELECT 1; SELECT 2", Read, &[]),
    ("SELECT 1; INSERT INTO t VALUES (1)", Primary, &[]),
    ("SELECT 1; BEGIN; SELECT 2; COMMIT", Primary, &[Effect::Commit]),
    // Prepared statements and cursors of SQL.
    ("PREPARE x AS SELECT 1", Primary, &[]),
    ("PREPARE x AS DELETE FROM t", Primary, &[]),
    ("SELECT 1; PREPARE x AS SELECT 1", Primary, &[Effect::Keep]),
    ("EXECUTE x", Primary, &[]),
    ("DEALLOCATE PREPARE ALL", Primary, &[Effect::DeallocateAll]),
    ("DECLARE c CURSOR FOR SELECT 1", Primary, &[]),
    ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", Primary, &[Effect::Keep]),
    ("FETCH ALL FROM c", Primary, &[]),
    ("MOVE FORWARD 2 FROM c", Primary, &[]),
    ("CLOSE ALL", Primary, &[]),
    // Code.
    ("DO $$ BEGIN PERFORM 1; END $$", Primary, &[Effect::Pin]),
    ("CALL p(1)", Primary, &[Effect::Pin]),
    ("LOAD 'x'", Primary, &[Effect::Pin]),
    // Transactions.
    ("BEGIN", Primary, &[]),
    ("BEGIN READ ONLY", Read, &[]),
    ("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY", Primary, &[]),
    ("BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY", Primary, &[]),
    ("BEGIN ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE", Primary, &[]),
    ("START TRANSACTION READ WRITE", Primary, &[]),
    ("SET TRANSACTION READ ONLY", Neutral, &[]),
    ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", Primary, &[]),
    ("SET CONSTRAINTS ALL IMMEDIATE", Neutral, &[]),
    ("COMMIT", Neutral, &[Effect::Commit]),
    ("END WORK", Neutral, &[Effect::Commit]),
    ("ROLLBACK", Neutral, &[Effect::Rollback]),
    ("ABORT", Neutral, &[Effect::Rollback]),
    ("RELEASE SAVEPOINT a", Neutral, &[]),
    ("PREPARE TRANSACTION 'x'", Primary, &[]),
    ("COMMIT PREPARED 'x'", Primary, &[]),
    ("ROLLBACK PREPARED 'x'", Primary, &[]),
    // The session.
    ("RESET ALL", Neutral, &[Effect::ResetAll]),
    ("SET LOCAL work_mem = '1MB'", Neutral, &[]),
    // The parser knows no TABLE.
    ("DECLARE c CURSOR WITH HOLD FOR SELECT 1; TABLE t", Primary, &[Effect::Keep]),
    ("DECLARE c CURSOR FOR SELECT 1; TABLE t", Primary, &[]),
    ("PREPARE p AS TABLE t", Primary, &[Effect::Pin]),
    ("PREPARE TRANSACTION 'x'; TABLE t", Primary, &[]),
    ("TABLE t; SELECT pg_advisory_lock(1)", Primary, &[Effect::Pin]),
    ("DELETE FROM t; TABLE t; SELECT pg_advisory_lock(1)", Primary, &[Effect::Pin]),
    ("ANALYZE t; TABLE t; SELECT pg_advisory_lock(1)", Primary, &[Effect::Pin]),
    ("SET LOCAL work_mem = '1MB'; SELECT 1", Read, &[Effect::ForTransaction]),
    ("DISCARD ALL", Primary, &[Effect::DiscardAll]),
    ("DISCARD TEMP", Primary, &[]),
    ("DISCARD PLANS", Primary, &[]),
    ("SHOW work_mem", Read, &[]),
    ("SHOW transaction_read_only", Primary, &[]),
    ("SHOW ALL", Primary, &[]),
    ("", Neutral, &[]),
    (" ; ", Neutral, &[]),
    // What only pins a transaction where a balancer lets it: here the transaction is where it began.
    ("SET TRANSACTION READ WRITE", Neutral, &[]),
    // Other volatile functions.
    ("SELECT random()", Primary, &[]),
    ("SELECT gen_random_uuid()", Primary, &[]),
    ("SELECT clock_timestamp()", Primary, &[]),
    ("SELECT pg_sleep(1)", Primary, &[]),
    ("SELECT * FROM pg_stat_activity", Primary, &[Effect::Pin]),
    // What a client shows of catalogs.
    ("SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef", Read, &[]),
    ("SELECT c.oid::pg_catalog.regclass FROM pg_catalog.pg_class c", Read, &[]),
    ("SELECT * FROM pg_catalog.generate_series(1, 2) s", Read, &[]),
    ("SELECT * FROM pg_stats", Read, &[]),
    ("SELECT has_table_privilege('t', 'select')", Read, &[]),
    // Not for the parser, and reads all the same.
    ("WITH RECURSIVE g(a) AS (SELECT 1) SEARCH DEPTH FIRST BY a SET b SELECT * FROM g", Read, &[]),
    (
        "WITH RECURSIVE g(a) AS (SELECT nextval('s')) SEARCH DEPTH FIRST BY a SET b SELECT * FROM g",
        Primary,
        &[Effect::Pin],
    ),
    // The rest.
    ("INSERT INTO t VALUES (1)", Primary, &[]),
    ("UPDATE t SET a = 1", Primary, &[]),
    ("DELETE FROM t", Primary, &[]),
    ("MERGE INTO t USING u ON true WHEN MATCHED THEN DELETE", Primary, &[]),
    ("TRUNCATE t", Primary, &[]),
    ("GRANT SELECT ON t TO u", Primary, &[]),
    ("COMMENT ON TABLE t IS 'x'", Primary, &[]),
    ("SECURITY LABEL ON TABLE t IS 'x'", Primary, &[]),
    ("ANALYZE t", Primary, &[]),
    ("REINDEX TABLE t", Primary, &[]),
    ("CLUSTER t", Primary, &[]),
    ("COPY (INSERT INTO t VALUES (1) RETURNING a) TO STDOUT", Primary, &[]),
    ("CREATE TEMP TABLE x (a int) ON COMMIT DROP", Primary, &[]),
    ("CREATE TABLE x (a int) PARTITION BY RANGE (a)", Primary, &[]),
    ("ALTER TABLE t ALTER COLUMN a SET STORAGE plain", Primary, &[]),
    ("CREATE TABLE x AS SELECT 1", Primary, &[]),
    ("CREATE MATERIALIZED VIEW v AS SELECT 1", Primary, &[]),
    ("REFRESH MATERIALIZED VIEW v", Primary, &[]),
    ("REVOKE ALL ON t FROM u", Primary, &[]),
    ("VACUUM (FULL) t", Primary, &[]),
    ("CHECKPOINT", Primary, &[]),
    ("SELECT 1 FROM t WHERE", Read, &[]),
    ("FROBNICATE t", Primary, &[]),
];

/// Writes that look like something else to whoever reads texts in another way than PostgreSQL does.
#[test]
fn nothing_hides_from_the_parser() {
    let mut reads = Vec::new();
    for operator in
        ["+", "-", "*", "/", "||", "=", "<", ">", "<>", "@>", "#", "~", "!~", "^", "%", "&", "|", "->"]
    {
        for comment in ["/*'*/", "--'\n", "--'\r"] {
            let sql = format!("SELECT 1 {operator}{comment} nextval(''||$$s$$) --'");
            if verdict(&sql).route != Primary {
                reads.push(sql);
            }
        }
    }
    for sql in [
        // A string that goes on in the next line is read as its beginning is.
        "SELECT E'a'\n'\\'', nextval('s'), E'a'\n'\\''",
        // A tag that is no ASCII.
        "SELECT $é$'$é$, nextval('s'), $é$'$é$",
        "SELECT $😀$'$😀$, nextval('s'), $😀$'$😀$",
        "SELECT 1 @/*'*/ nextval('s') /*'*/",
        "SELECT 1 -- a\r, nextval('s')",
        "SELECT a$x$, nextval('s'), $x$ FROM t",
        "SELECT 1 WHERE 1 *<= nextval('s')",
        "SELECT app.next(1) *< row(1)",
        // Names are cut to 63 bytes.
        &format!("SELECT * FROM {}", "a".repeat(64)),
        &format!("SELECT row(1) *< row(1) FROM {}", "a".repeat(64)),
    ] {
        if verdict(sql).route != Primary {
            reads.push(sql.to_owned());
        }
    }
    assert!(reads.is_empty(), "{}", reads.join("\n"));
}

/// State that a text leaves behind is found wherever it stands.
#[test]
fn no_state_is_overlooked() {
    let silent = |sql: &&&str| !verdict(sql).effects.contains(&Effect::Pin);
    let overlooked: Vec<_> = [
        "SELECT 1 AS a INTO pg_temp.x",
        "SELECT 1 AS a INTO TABLE pg_temp.x FROM t",
        "/* a */ DO $$ BEGIN PERFORM f(); END $$",
        "-- a\nDO $$ BEGIN PERFORM f(); END $$",
        "/* a */ CALL f(1) FROBNICATE",
        "/* a /* b */ c */ SELECT f() *< 1",
        "CREATE TABLE a (b int, EXCLUDE USING gist (b WITH &&)); DO $$ BEGIN PERFORM f(); END $$",
        "CREATE TABLE a (b int, EXCLUDE USING gist (b WITH &&)); /* a */ SELECT f()",
        "SELECT set_config('search_path', 'pg_temp', true)",
        "SELECT set_config($1, 'pg_temp', true)",
        "SET LOCAL search_path = pg_temp",
        "SET standard_conforming_strings = off",
    ]
    .iter()
    .filter(silent)
    .collect();
    assert!(overlooked.is_empty(), "{overlooked:#?}");
}

#[test]
fn every_kind_of_statement_goes_where_it_belongs() {
    let wrong: Vec<String> = RULES
        .iter()
        .map(|(sql, route, effects)| {
            let mut found = verdict(sql);
            // Why it pins or keeps is told, and tested, elsewhere.
            found.effects.retain(|effect| !matches!(effect, Effect::Because(_)));
            (sql, route, effects, found)
        })
        .filter(|(_, route, effects, found)| found.route != **route || found.effects != **effects)
        .map(|(sql, route, effects, found)| {
            format!("{sql}: {:?} {:?} instead of {route:?} {effects:?}", found.route, found.effects)
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
