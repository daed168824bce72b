//! Nothing that counts as a read writes: statements are made up from a grammar and judged as the proxy
//! judges them, and every read is run on a real primary, where it must leave no trace, and on a real
//! standby, which must not refuse it.

use crate::harness::{Access, Postgres, soon};
use futures_util::TryStreamExt;
use pgherd_proxy::sql::{Route, classify};
use tokio_postgres::Client;

/// How many statements are made up.
const STATEMENTS: usize = 6_000;

const SETUP: &str = "
    CREATE TABLE t (a int, b text); INSERT INTO t SELECT n, n::text FROM generate_series(1, 5) n;
    CREATE TABLE parent (a int) PARTITION BY RANGE (a);
    CREATE TABLE child PARTITION OF parent FOR VALUES FROM (0) TO (10);
    CREATE UNLOGGED TABLE loose (a int, b text);
    CREATE SEQUENCE s;
    CREATE SEQUENCE numbers;
    CREATE MATERIALIZED VIEW stored AS SELECT a, b FROM t;
    CREATE FUNCTION f_immutable(int DEFAULT 1) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 * 2';
    CREATE FUNCTION f_stable(int DEFAULT 1) RETURNS int STABLE LANGUAGE plpgsql AS
        'BEGIN RETURN (SELECT count(*) FROM t); END';
    CREATE FUNCTION f_writes(int DEFAULT 1) RETURNS int LANGUAGE plpgsql AS
        'BEGIN INSERT INTO t VALUES (9, $1::text); RETURN 1; END';
    CREATE FUNCTION f_draws(int DEFAULT 1) RETURNS int LANGUAGE sql AS $$ SELECT nextval('s')::int $$;
    CREATE FUNCTION f_lies(int DEFAULT 1) RETURNS int STABLE LANGUAGE plpgsql AS
        'BEGIN RETURN f_writes($1); END';
    CREATE FUNCTION f_lies_twice(int DEFAULT 1) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT f_lies($1)';
    CREATE FUNCTION f_hides(int DEFAULT 1) RETURNS int STABLE LANGUAGE plpgsql AS
        $$ DECLARE n int; BEGIN EXECUTE 'SELECT nextval(''s'')' INTO n; RETURN n; END $$;
    CREATE FUNCTION f_temps(int DEFAULT 1) RETURNS int LANGUAGE plpgsql AS
        'BEGIN CREATE TEMP TABLE IF NOT EXISTS x (a int); RETURN 1; END';
    CREATE FUNCTION f_mixed(int DEFAULT 1) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 1';
    CREATE FUNCTION f_mixed(text) RETURNS int LANGUAGE sql AS $$ SELECT nextval('s')::int $$;
    CREATE FUNCTION f_rows(int DEFAULT 1) RETURNS SETOF t LANGUAGE sql AS
        $$ INSERT INTO t VALUES (8, 'x') RETURNING * $$;
    CREATE AGGREGATE a_reads(int) (sfunc = int4pl, stype = int, initcond = '0');
    CREATE FUNCTION f_step(int, int) RETURNS int LANGUAGE sql AS $$ SELECT nextval('s')::int $$;
    CREATE AGGREGATE a_writes(int) (sfunc = f_step, stype = int, initcond = '0');
    CREATE VIEW v_plain AS SELECT a, b FROM t;
    CREATE VIEW v_reads AS SELECT f_stable(a) AS a, b FROM v_plain;
    CREATE VIEW v_draws AS SELECT nextval('s')::int AS a, b FROM t;
    CREATE VIEW v_writes AS SELECT f_writes(a) AS a, b FROM t;
    CREATE VIEW v_over AS SELECT a, b FROM v_draws;
    CREATE VIEW v_loose AS SELECT a, b FROM loose;
    CREATE VIEW v_locks AS SELECT a, b FROM t FOR UPDATE;
    CREATE VIEW v_xact AS SELECT txid_current()::int AS a, ''::text AS b;
    CREATE SCHEMA app;
    CREATE FUNCTION app.lower(text) RETURNS text LANGUAGE sql AS $$ SELECT nextval('s')::text $$;
    CREATE FUNCTION app.f_stable(int DEFAULT 1) RETURNS int STABLE LANGUAGE sql AS 'SELECT 1';
    CREATE TABLE app.loose (a int, b text);
    CREATE VIEW app.v_plain AS SELECT f_writes() AS a, ''::text AS b";

/// Everything of which a trace could be left, as one text.
const TRACES: &str =
    "SELECT (SELECT md5(string_agg(x::text, ',')) FROM (SELECT ctid, xmin, xmax, a, b FROM t) x)
    || (SELECT last_value::text || is_called FROM s) || (SELECT last_value::text || is_called FROM numbers)
    || (SELECT count(*) FROM pg_class) || (SELECT count(*) FROM loose) || (SELECT count(*) FROM child)";

/// A stream of numbers from a seed, the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % limit as u64).unwrap()
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }

    fn relation(&mut self) -> &'static str {
        self.pick(&[
            "t",
            "public.t",
            "parent",
            "stored",
            "v_plain",
            "v_reads",
            "t",
            "v_plain",
            "loose",
            "v_draws",
            "v_writes",
            "v_over",
            "v_loose",
            "v_locks",
            "v_xact",
            "app.loose",
            "app.v_plain",
            "f_rows()",
            "s",
            "pg_class",
            "information_schema.tables",
            "generate_series(1, 3) g(a)",
            "(VALUES (1, 'x')) w(a, b)",
            "\"t\"",
            "T",
        ])
    }

    fn function(&mut self) -> &'static str {
        self.pick(&[
            "f_immutable",
            "f_stable",
            "app.f_stable",
            "f_immutable",
            "f_stable",
            "abs",
            "int4up",
            "public.f_immutable",
            "f_writes",
            "f_draws",
            "f_lies",
            "f_lies_twice",
            "f_hides",
            "f_temps",
            "f_mixed",
            "a_reads",
            "a_writes",
            "sum",
            "\"f_writes\"",
            "F_Writes",
            "public.f_draws",
            "setseed",
            "txid_status",
            "pg_advisory_xact_lock",
            "lo_unlink",
        ])
    }

    fn expression(&mut self, depth: usize) -> String {
        if depth == 0 {
            return self.pick(&["1", "2", "NULL::int", "length('nextval(''s'')')", "3 + 4"]).to_owned();
        }
        let inner = self.expression(depth - 1);
        match self.below(14) {
            0..=2 => format!("{}({inner})", self.function()),
            3 => format!("({})", self.query(depth - 1, true)),
            4 => format!("CASE WHEN {inner} > 1 THEN {} ELSE 0 END", self.expression(depth - 1)),
            5 => format!("coalesce({inner}, {})", self.expression(depth - 1)),
            6 => format!("{inner} + {}", self.expression(depth - 1)),
            7 => format!("(ARRAY[{inner}])[1]"),
            8 => {
                self.pick(&["nextval('s')::int", "nextval('numbers')::int", "setval('s', 5)::int"]).to_owned()
            }
            9 => format!("sum({inner}) OVER ()"),
            10 => self
                .pick(&["txid_current()::int", "pg_current_xact_id()::text::int", "lastval()::int"])
                .to_owned(),
            11 => format!("length(lower({inner}::text))"),
            12 => format!("length(app.lower({inner}::text))"),
            _ => format!("CAST({inner} AS int)"),
        }
    }

    /// `scalar`: one row of one column.
    fn query(&mut self, depth: usize, scalar: bool) -> String {
        let what = self.expression(depth);
        let relation = self.relation();
        let mut text = match self.below(9) {
            0 | 1 => format!("SELECT {what}"),
            2 => format!("SELECT {what} FROM {relation}"),
            3 => format!("SELECT 1 FROM {relation} WHERE {what} > 0"),
            4 => format!(
                "SELECT 1 FROM {relation} GROUP BY 1 HAVING count(*) > {}",
                self.expression(depth.saturating_sub(1))
            ),
            5 => format!("WITH c AS ({}) SELECT 1 FROM c", self.part(depth)),
            6 => format!("SELECT 1 FROM ({}) q", self.query(depth.saturating_sub(1), scalar)),
            7 => format!(
                "({}) UNION ALL ({})",
                self.query(depth.saturating_sub(1), scalar),
                self.query(0, scalar)
            ),
            _ => format!("SELECT 1 FROM {relation} ORDER BY {what}"),
        };
        if scalar || self.below(4) == 0 {
            text = format!("{text} LIMIT 1");
        }
        if self.below(8) == 0 {
            text = format!("{text} {}", self.pick(&["FOR UPDATE", "FOR SHARE", "FOR KEY SHARE SKIP LOCKED"]));
        }
        text
    }

    /// Of a WITH.
    fn part(&mut self, depth: usize) -> String {
        match self.below(6) {
            0 => "INSERT INTO t VALUES (7, 'x') RETURNING a".to_owned(),
            1 => "UPDATE t SET b = 'y' RETURNING a".to_owned(),
            2 => "DELETE FROM t RETURNING a".to_owned(),
            _ => self.query(depth.saturating_sub(1), false),
        }
    }

    fn statement(&mut self) -> String {
        let depth = self.below(4);
        let query = self.query(depth, false);
        match self.below(20) {
            0 => format!("EXPLAIN {query}"),
            1 => format!("EXPLAIN ANALYZE {query}"),
            2 => format!("EXPLAIN (COSTS OFF, ANALYZE) {query}"),
            3 => format!("EXPLAIN {}", self.write()),
            4 => format!("EXPLAIN ANALYZE {}", self.write()),
            5 => format!("COPY ({query}) TO STDOUT"),
            6 => format!("COPY {} TO STDOUT", self.pick(&["t", "loose", "child", "pg_class", "app.loose"])),
            7 => format!("TABLE {}", self.pick(&["t", "v_draws", "v_writes", "loose", "v_plain", "s"])),
            8 => format!("VALUES ({}), (1)", self.expression(depth)),
            9 => format!("/* {} */ {query}", self.write()),
            10 => format!("{query}; {}", self.write()),
            11 => format!("SELECT 1; {query}"),
            12 => self.write(),
            _ => query,
        }
    }

    fn write(&mut self) -> String {
        self.pick(&[
            "INSERT INTO t VALUES (6, 'z')",
            "UPDATE t SET a = a + 1",
            "DELETE FROM t WHERE a = 1",
            "TRUNCATE t",
            "CREATE TABLE fresh (a int)",
            "SELECT 1 INTO fresh",
            "DROP TABLE loose",
            "DO $$ BEGIN PERFORM nextval('s'); END $$",
            "NOTIFY n",
            "LOCK t",
            "REFRESH MATERIALIZED VIEW stored",
            "CREATE TEMP TABLE fleeting (a int)",
        ])
        .to_owned()
    }
}

async fn one(client: &Client, sql: &str) -> String {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

async fn run(client: &Client, sql: &str) -> Result<(), tokio_postgres::Error> {
    if sql.starts_with("COPY") {
        client.copy_out(sql).await?.try_for_each(|_| std::future::ready(Ok(()))).await
    } else {
        client.simple_query(sql).await.map(drop)
    }
}

/// Runs a read in a transaction of its own and looks for what it left. Whether it ran to its end.
async fn leaves_no_trace(primary: &Client, sql: &str) -> bool {
    let before = one(primary, TRACES).await;
    primary.batch_execute("BEGIN").await.unwrap();
    let ran = soon(run(primary, sql)).await.is_ok();
    if ran {
        let xact = "SELECT coalesce(pg_current_xact_id_if_assigned()::text, 'none')";
        assert_eq!(one(primary, xact).await, "none", "a transaction number was used by: {sql}");
    }
    primary.batch_execute("COMMIT").await.unwrap();
    assert_eq!(one(primary, TRACES).await, before, "something was changed by: {sql}");
    ran
}

async fn is_not_refused(standby: &Client, sql: &str, ran: bool) {
    let Err(error) = soon(run(standby, sql)).await else { return };
    let code = error.code().unwrap().code().to_owned();
    assert!(!matches!(code.as_str(), "25006" | "0A000" | "55000") || !ran, "{code}: {error:?}: {sql}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_counts_as_a_read_ever_writes() {
    let primary = Postgres::primary(Access::Trust);
    primary.direct().await.batch_execute(SETUP).await.unwrap();
    let standby = primary.standby();
    standby.caught_up_with(&primary).await;
    let (writer, reader) = (primary.direct().await, standby.direct().await);
    let facts = pgherd_proxy::read_facts(&writer).await.unwrap();
    let mut numbers = Numbers(20_261_124);
    let (mut reads, mut ran) = (0, 0);
    for _ in 0..STATEMENTS {
        let sql = numbers.statement();
        let verdict = classify(sql.as_bytes(), &facts);
        if verdict.route != Route::Read {
            continue;
        }
        reads += 1;
        let done = leaves_no_trace(&writer, &sql).await;
        is_not_refused(&reader, &sql, done).await;
        ran += usize::from(done);
    }
    eprintln!("{STATEMENTS} statements, {reads} reads, {ran} of them ran to their end");
    assert!(reads > STATEMENTS / 8 && ran > STATEMENTS / 12, "{reads} reads, {ran} ran: hardly a test");
}
