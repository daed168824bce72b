use super::*;
use crate::sql::shape::tests::assert_same;
use crate::sql::{Effect, Route, classify};

fn function(oid: u32, name: &str, volatility: char, language: &str, body: &str) -> FunctionRow {
    let schema = if oid < 16384 { "pg_catalog" } else { "public" };
    FunctionRow {
        oid,
        schema: schema.to_owned(),
        name: name.to_owned(),
        volatility,
        language: language.to_owned(),
        body: Some(body.to_owned()),
        calls: vec![],
    }
}

fn view(oid: u32, name: &str, calls: &[u32], reads: &[u32]) -> RelationRow {
    let (schema, name) = ("public".to_owned(), name.to_owned());
    let (calls, reads) = (calls.to_vec(), reads.to_vec());
    RelationRow { oid, schema, name, kind: 'v', logged: true, calls, reads, locks: false }
}

fn facts() -> Facts {
    let functions = [
        function(1, "lower", 'i', "internal", ""),
        function(2, "nextval", 'v', "internal", ""),
        function(3, "float8_combine", 'i', "internal", ""),
        function(4, "frobnicate", 'v', "internal", ""),
        function(20000, "twice", 'i', "sql", "SELECT $1 * 2"),
        function(20001, "known", 's', "plpgsql", "BEGIN RETURN (SELECT a FROM t); END"),
        function(20002, "write", 'v', "plpgsql", "BEGIN UPDATE t SET a = 1; RETURN 1; END"),
        function(20003, "temps", 'v', "plpgsql", "BEGIN CREATE TEMP TABLE x (a int); END"),
        function(20004, "sets", 'v', "sql", "SELECT 1; SET a.b = 'c'"),
        function(20005, "hides", 'v', "sql", "SELECT temps()"),
        function(20006, "locks", 's', "plpgsql", "BEGIN PERFORM pg_advisory_lock(1); END"),
        function(20007, "tricks", 's', "sql", "SELECT write()"),
        function(20008, "native", 's', "c", "native"),
        function(20009, "native_write", 'v', "c", "native"),
        function(20010, "twice", 'v', "sql", "SELECT 1"),
        function(20011, "again", 's', "sql", "SELECT again() + known()"),
        FunctionRow { body: None, ..function(20012, "opaque", 's', "sql", "") },
        FunctionRow { calls: vec![20002], ..function(20013, "sum_up", 'i', "internal", "") },
        FunctionRow { calls: vec![3], ..function(20014, "sum_down", 'i', "internal", "") },
        FunctionRow { schema: "app".to_owned(), ..function(20015, "lower", 'v', "sql", "SELECT 1") },
        function(
            20016,
            "upserts",
            'v',
            "sql",
            "INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET a = 2",
        ),
    ];
    let relations = [
        view(30000, "fine", &[3, 20001], &[29999]),
        view(30001, "counts", &[2], &[]),
        view(30002, "over_counts", &[], &[30000, 30001]),
        view(30003, "over_unlogged", &[], &[30004]),
        RelationRow { kind: 'r', logged: false, ..view(30004, "unlogged", &[], &[]) },
        RelationRow { locks: true, ..view(30005, "locking", &[], &[]) },
        RelationRow { kind: 'S', ..view(30006, "numbers", &[], &[]) },
        RelationRow { kind: 'f', ..view(30007, "elsewhere", &[], &[]) },
        RelationRow { schema: "pg_catalog".to_owned(), ..view(12000, "pg_stat_activity", &[], &[]) },
        RelationRow { schema: "pg_catalog".to_owned(), ..view(12001, "pg_tables", &[2], &[]) },
        view(30008, "over_statistics", &[], &[12000]),
        view(30009, "over_catalog", &[], &[12001]),
        view(30010, "over_nobody_knows", &[99999], &[]),
    ];
    Facts::of(&functions, &relations)
}

#[test]
fn functions_stand_as_their_rows_and_their_callees_say() {
    use Standing::{Reads, Stateful, Stateless, Unknown};
    let facts = facts();
    for (name, standing) in [
        ("known", Reads),
        ("native", Reads),
        ("again", Reads),
        ("float8_combine", Reads),
        ("sum_down", Reads),
        ("write", Stateless),
        ("tricks", Stateless),
        ("upserts", Stateless),
        ("sum_up", Stateless),
        ("twice", Stateless),
        ("nextval", Stateless),
        ("lower", Stateless),
        ("temps", Stateful),
        ("sets", Stateful),
        ("hides", Stateful),
        ("locks", Stateful),
        ("native_write", Stateful),
        ("opaque", Stateful),
        ("frobnicate", Stateful),
        ("nobody", Unknown),
        ("coalesce", Reads),
    ] {
        assert_eq!(facts.function(None, name), standing, "{name}");
    }
    assert_eq!(facts.function(Some("pg_catalog"), "lower"), Reads);
    assert_eq!(facts.function(Some("app"), "lower"), Stateless);
    assert_eq!(facts.function(Some("app"), "known"), Unknown);
    assert_eq!(facts.function(Some("app"), "coalesce"), Unknown);
    assert_eq!(Facts::pending().function(None, "known"), Unknown);
    assert_eq!(Facts::pending().function(None, "coalesce"), Reads);
    assert_eq!(Facts::by_names().function(None, "known"), Stateful);
}

#[test]
fn relations_are_reads_unless_something_behind_them_is_none() {
    let (facts, parts) = (facts(), |name: &str| name.split('.').map(str::to_owned).collect::<Vec<_>>());
    for name in
        ["t", "public.t", "fine", "over_catalog", "app.counts", "pg_class", "information_schema.columns"]
    {
        assert!(facts.relation_reads(&parts(name)), "{name}");
    }
    for name in [
        "counts",
        "public.counts",
        "over_counts",
        "unlogged",
        "over_unlogged",
        "locking",
        "numbers",
        "elsewhere",
        "over_statistics",
        "pg_locks",
    ] {
        assert!(!facts.relation_reads(&parts(name)), "{name}");
    }
    assert!(!Facts::pending().relation_reads(&parts("t")));
    assert!(Facts::by_names().relation_reads(&parts("counts")));
}

#[test]
fn what_is_redefined_is_unknown_until_the_catalogs_are_read_again() {
    let mut facts = facts();
    let verdict = classify(b"CREATE OR REPLACE VIEW Fine AS SELECT 1", &facts);
    facts.doubt(&verdict.defines.unwrap());
    assert!(!facts.relation_reads(&["fine".to_owned()]));
    assert!(facts.relation_reads(&["t".to_owned()]));
    let unparsed =
        classify(b"CREATE FUNCTION known() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; END", &facts);
    facts.doubt(&unparsed.defines.unwrap());
    // Its text says that it leaves nothing behind; that it only reads is for the catalogs to say.
    assert_eq!(facts.function(None, "known"), Standing::Stateless);
    let sql = "CREATE OR REPLACE FUNCTION known() RETURNS int LANGUAGE plpgsql AS
        'BEGIN CREATE TEMP TABLE x (a int); RETURN 1; END'";
    facts.doubt(&classify(sql.as_bytes(), &facts).defines.unwrap());
    assert_eq!(facts.function(None, "known"), Standing::Unknown);
    for sql in [
        "CREATE TABLE x (a int)",
        "INSERT INTO t VALUES ('create view fine')",
        "SELECT 'drop function known'",
    ] {
        assert_eq!(classify(sql.as_bytes(), &facts).defines, None, "{sql}");
    }
}

/// A column may be a function in disguise.
#[test]
fn functions_are_found_behind_columns() {
    let facts = facts();
    let route = |sql: &str| {
        assert_same(sql, &facts);
        classify(sql.as_bytes(), &facts).route
    };
    for sql in [
        "SELECT t.write FROM t",
        "SELECT (t).write FROM t",
        "SELECT (t.*).write FROM t",
        "SELECT t.\"write\" FROM t",
    ] {
        assert_eq!(route(sql), Route::Primary, "{sql}");
    }
    for sql in ["SELECT t.a, t.known FROM t", "SELECT t.name, t.twice_a FROM t"] {
        assert_eq!(route(sql), Route::Read, "{sql}");
    }
}

#[test]
fn nothing_is_redefined_unnoticed() {
    for (sql, name) in [
        ("CREATE /* x */ OR REPLACE VIEW fine AS SELECT nextval('s')", "fine"),
        ("CREATE OR REPLACE -- it's\n VIEW fine AS SELECT nextval('s')", "fine"),
        ("CREATE VIEW a$b AS SELECT nextval('s')", "a$b"),
        ("CREATE VIEW \"a\"\"b\" AS SELECT nextval('s')", "a\"b"),
        ("CREATE VIEW s.é AS SELECT nextval('s')", "é"),
        ("ALTER FUNCTION \"doThing\"() VOLATILE", "doThing"),
        ("ALTER VIEW \"my view\" RENAME TO x", "my view"),
        ("ALTER FUNCTION f(int, int, int, int, int, int, int, int, int) RENAME TO known", "known"),
        ("ALTER TABLE t ADD a int, ADD b int, ADD c int, ADD d int, SET UNLOGGED", "t"),
        ("SELECT 1; ALTER VIEW fine RENAME TO other", "other"),
        ("DO $$ BEGIN CREATE OR REPLACE VIEW fine AS SELECT nextval('s'); END $$", "fine"),
    ] {
        let mut facts = facts();
        facts.doubt(&classify(sql.as_bytes(), &facts).defines.unwrap_or_default());
        assert!(!facts.relation_reads(&[name.to_owned()]), "{sql}");
        assert_eq!(facts.function(None, name), Standing::Unknown, "{sql}");
    }
}

#[test]
fn statements_follow_the_facts() {
    let facts = facts();
    let judged = |sql: &str| {
        assert_same(sql, &facts);
        let mut verdict = classify(sql.as_bytes(), &facts);
        verdict.effects.retain(|effect| !matches!(effect, Effect::Because(_)));
        (verdict.route, verdict.effects)
    };
    let suspect = || vec![Effect::Suspect("nobody".to_owned())];
    assert_eq!(judged("SELECT known() FROM fine"), (Route::Read, vec![]));
    assert_eq!(judged("SELECT * FROM t WHERE a = public.known()"), (Route::Read, vec![]));
    assert_eq!(judged("SELECT write()"), (Route::Primary, vec![]));
    assert_eq!(judged("SELECT temps()"), (Route::Primary, vec![Effect::Pin]));
    assert_eq!(judged("SELECT nobody()"), (Route::Primary, suspect()));
    assert_eq!(judged("INSERT INTO t SELECT nobody()"), (Route::Primary, suspect()));
    assert_eq!(judged("SELECT * FROM over_counts"), (Route::Primary, vec![]));
    assert_eq!(judged("TABLE unlogged"), (Route::Primary, vec![]));
    assert_eq!(judged("COPY over_unlogged TO STDOUT"), (Route::Primary, vec![]));
    assert_eq!(judged("COPY fine TO STDOUT"), (Route::Read, vec![]));
}

#[test]
fn what_was_doubted_while_the_catalogs_were_read_is_doubted_until_the_next_reading() {
    let mut before = facts();
    before.doubt(&classify(b"CREATE VIEW fine AS SELECT 1", &before).defines.unwrap());
    let mut read = facts();
    assert!(read.replaces(&before));
    assert!(!read.relation_reads(&["fine".to_owned()]));
    let mut read_again = facts();
    assert!(!read_again.replaces(&read));
    assert!(read_again.relation_reads(&["fine".to_owned()]));
}

#[test]
fn code_leaves_nothing_behind_when_all_that_it_calls_is_known_to() {
    let facts = facts();
    let pins = |sql: &str| {
        assert_same(sql, &facts);
        classify(sql.as_bytes(), &facts).effects.contains(&Effect::Pin)
    };
    for code in [
        "DO $$ BEGIN PERFORM known(); INSERT INTO t (a) VALUES (write()); END $$",
        "DO LANGUAGE plpgsql 'BEGIN UPDATE t SET a = 1; END'",
        "DO $$ BEGIN IF true THEN UPDATE ONLY s.t AS x SET a = 1; END IF; END $$",
        "CALL write()",
        "ALTER TABLE t ALTER COLUMN a SET STORAGE plain",
        "UPDATE t SET a[1] = 2 WHERE CURRENT OF c",
    ] {
        assert!(!pins(code), "{code}");
    }
    for code in [
        "DO $$ BEGIN PERFORM temps(); END $$",
        "DO $$ BEGIN PERFORM nobody(); END $$",
        "DO $$ BEGIN EXECUTE 'SELECT 1'; END $$",
        "DO LANGUAGE plpython3u 'pass'",
        "DO $$ BEGIN SET a.b = 'c'; END $$",
        "DO $$ BEGIN UPDATE t SET a = 1; SET a.b = 'c'; END $$",
        "DO $$ BEGIN IF EXISTS (SELECT FROM t FOR UPDATE) THEN SET a.b = 'c'; END IF; END $$",
        "DO $$ BEGIN -- update\nSET a.b = 'c'; END $$",
        "CALL temps()",
        "UPDATE t SET a[1] = temps() WHERE CURRENT OF c",
    ] {
        assert!(pins(code), "{code}");
    }
}

#[test]
fn views_that_show_what_is_prepared_are_known() {
    let own =
        RelationRow { schema: "pg_catalog".to_owned(), ..view(12000, "pg_prepared_statements", &[], &[]) };
    let relations = [
        own,
        view(30000, "Prepared", &[], &[12000]),
        view(30001, "over", &[], &[30000]),
        view(30002, "beside", &[2510], &[]),
        view(30003, "fine", &[3], &[30004]),
    ];
    let mut facts = Facts::of(&[function(2510, "pg_prepared_statement", 's', "internal", "")], &relations);
    for sql in ["SELECT * FROM \"Prepared\"", "TABLE over", "SELECT (SELECT count(*) FROM beside)"] {
        assert!(classify(sql.as_bytes(), &facts).traces.uses_all, "{sql}");
    }
    let fine = b"SELECT * FROM fine, counters FOR UPDATE";
    assert!(!classify(fine, &facts).traces.uses_all);
    facts.doubt(&[Defined { name: "fine".to_owned(), standing: Standing::Stateless }]);
    assert!(classify(fine, &facts).traces.uses_all, "it may be another view by now");
}
