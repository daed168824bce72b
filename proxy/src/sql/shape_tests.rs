use super::*;
use crate::sql::{Facts, classify};

/// `None` when the text is taken as it is.
fn masked(sql: &str) -> Option<String> {
    let mut out = b"before".to_vec();
    let shared = mask(sql.as_bytes(), &mut out).is_some();
    let out = String::from_utf8(out).unwrap();
    let out = out.strip_prefix("before").unwrap();
    assert!(shared || out.is_empty(), "{sql}");
    shared.then(|| out.to_owned())
}

fn all(cases: &[(&str, &str)]) {
    for (sql, expected) in cases {
        assert_eq!(masked(sql).as_deref(), Some(*expected), "{sql}");
        assert_eq!(masked(expected).as_deref(), Some(*expected), "what is masked stays as it is");
    }
}

fn none_masked(texts: &[&str]) {
    for sql in texts {
        assert_eq!(masked(sql).as_deref(), Some(*sql));
    }
}

fn all_given_up(texts: &[&str]) {
    for sql in texts {
        assert_eq!(masked(sql), None, "{sql}");
    }
}

#[test]
fn values_are_masked() {
    all(&[
        (
            "SELECT abalance FROM pgbench_accounts WHERE aid = 123;",
            "SELECT abalance FROM pgbench_accounts WHERE aid = 0;",
        ),
        (
            "UPDATE t SET a = a + -17, b = 'x' WHERE c=1.5 AND d>1e5",
            "UPDATE t SET a = a + -0, b = '' WHERE c=0 AND d>0",
        ),
        ("SELECT a FROM t WHERE b = 'it''s' AND c <> ''", "SELECT a FROM t WHERE b = '' AND c <> ''"),
        ("SELECT 1, 2 a FROM t LIMIT 10 OFFSET 20", "SELECT 0, 0 a FROM t LIMIT 0 OFFSET 0"),
        ("SELECT a FROM t ORDER BY 2", "SELECT a FROM t ORDER BY 0"),
        ("SELECT a FROM t WHERE b LIKE 'x%' OR b ILIKE 'y'", "SELECT a FROM t WHERE b LIKE '' OR b ILIKE ''"),
        (
            "SELECT a FROM t WHERE b BETWEEN 1 AND 2 AND c BETWEEN 'x' AND 'y'",
            "SELECT a FROM t WHERE b BETWEEN 0 AND 0 AND c BETWEEN '' AND ''",
        ),
        (
            "SELECT a FROM t WHERE b -> 'k' ->> 'l' = 'v' AND c @> '{\"a\": 1}'",
            "SELECT a FROM t WHERE b -> '' ->> '' = '' AND c @> ''",
        ),
        ("SELECT a FROM t WHERE b = 'größe'", "SELECT a FROM t WHERE b = ''"),
        (
            "SELECT CASE WHEN a = 1 THEN 'x' ELSE 'y' END FROM t",
            "SELECT CASE WHEN a = 0 THEN '' ELSE '' END FROM t",
        ),
        ("SELECT a FROM t WHERE x = 'a' || 'b'", "SELECT a FROM t WHERE x = '' || ''"),
        ("SELECT a FROM t WHERE b=1AND c=2", "SELECT a FROM t WHERE b=1AND c=0"),
    ]);
}

#[test]
fn lists_and_rows_are_masked() {
    all(&[
        (
            "SELECT a FROM t WHERE b IN (1, 2) AND c in('x','y')",
            "SELECT a FROM t WHERE b IN (0, 0) AND c in('','')",
        ),
        ("INSERT INTO t (a, b) VALUES (1, 'x'), (2, 'y')", "INSERT INTO t (a, b) VALUES (0, ''), (0, '')"),
        ("VALUES (1)", "VALUES (0)"),
        ("SELECT a FROM (VALUES ('x'), ('y')) v (a)", "SELECT a FROM (VALUES (''), ('')) v (a)"),
        ("SELECT a FROM t WHERE (b = 1 OR (c = 'x'))", "SELECT a FROM t WHERE (b = 0 OR (c = ''))"),
        (
            "WITH x AS (SELECT a FROM t WHERE b = 1) DELETE FROM u WHERE EXISTS (SELECT 1 FROM x)",
            "WITH x AS (SELECT a FROM t WHERE b = 0) DELETE FROM u WHERE EXISTS (SELECT 0 FROM x)",
        ),
        // Only in the list.
        ("SELECT 1 IN (2), ('t')::regclass", "SELECT 0 IN (0), ('t')::regclass"),
        ("INSERT INTO t VALUES (('t')::regclass, 'a')", "INSERT INTO t VALUES (('t')::regclass, '')"),
        ("INSERT INTO t VALUES (nextval('s'), 1)", "INSERT INTO t VALUES (nextval('s'), 0)"),
    ]);
}

#[test]
fn arguments_are_kept() {
    none_masked(&[
        "SELECT set_config('a.b', 'c', false)",
        "SELECT set_config ( 'a.b' , 'c' || 'd' , false )",
        "SELECT \"set_config\"('a.b', 'c', (SELECT a = 'x'))",
        "SELECT pg_catalog.set_config('a.b', CASE WHEN a = 1 THEN 'x' ELSE 'y' END, false)",
        "SELECT a FROM set_config('a', $1, true) a",
        "SELECT current_setting('port')",
        "SELECT nextval('s')",
        "SELECT to_regclass('t')",
        "SELECT pg_advisory_lock(1)",
        "SELECT lo_get(1)",
        "SELECT CAST('t' AS regclass), CAST('t' AS char(5))",
        "SELECT pg_catalog.in('t', 1), t.values('x'), like('a', 'b'), by('c')",
        "SELECT f(a IN ('t', 1)), f(a = 'x')",
        "SELECT a FROM t WHERE a = ANY('{1}')",
        "SELECT ARRAY[1, 2], a[3], ARRAY['x', ('y')]",
        "SELECT a OPERATOR(pg_catalog.=) 'x'",
        "SELECT a::numeric(10,2), a FROM t TABLESAMPLE SYSTEM (10)",
        "SELECT sum(a) OVER (ORDER BY b ROWS BETWEEN 1 PRECEDING AND 2 FOLLOWING) FROM t",
    ]);
}

#[test]
fn what_is_cast_typed_or_joined_is_kept() {
    none_masked(&[
        "SELECT 't'::regclass",
        "SELECT a = 't' ::regclass, b = 1::oid",
        "SELECT ('t')::regclass, (1)::oid",
        "SELECT regclass 't'",
        "SELECT a + INTERVAL '1 day' AT TIME ZONE 'UTC'",
        "SELECT a = E'x', a = B'1', a = X'1F', a = N'x', a = U&'x'",
        "SELECT a = E'x' 'y'",
        "SELECT a FROM t WHERE b = 'x'\n'y'",
        "SELECT a = 'x'y",
        "SELECT 'x', 'y'",
        "SELECT a LIKE b ESCAPE 'x'",
        "SELECT \"x\"1, \"x\"'y'",
        "SELECT a := 5, b :5",
    ]);
    all(&[("SELECT a = 'x'\n'y'::regclass, 5", "SELECT a = 'x'\n'y'::regclass, 0")]);
    all(&[("SELECT a = ('a' || 'b')::regclass", "SELECT a = ('a' || '')::regclass")]);
}

#[test]
fn what_only_looks_like_a_number_is_kept() {
    none_masked(&[
        "SELECT a1, t2.b3 FROM t2",
        "SELECT $1, a = $2",
        "SELECT a = 12abc",
        "SELECT a = 0x1F, a = 1_000, a = 5L",
        "SELECT a = .5",
        "SELECT a = 5., a = 1..2, a = 1.2.3",
        "SELECT a = 1e, a = 1e+, a = 1.5ex",
        "SELECT a @@ 5, a ? 5, a & 5, a # 5",
        "SELECT \"1\" = b, \"a = 1\"",
    ]);
    all(&[("SELECT a = 1e5, a = 1.5E-3, a = 2e+1", "SELECT a = 0, a = 0, a = 0")]);
}

#[test]
fn strings_that_some_rule_looks_into_are_kept() {
    for content in [
        "a;b",
        "a(b",
        "a--b",
        "a/*b",
        "u&\"b",
        "xALTERx",
        "photocopy",
        "Create",
        "discard",
        "drop",
        "execute",
        "import",
        "listen",
        "load",
        "pg_temp",
        "dataset",
        "SYNCHRONOUS_COMMIT",
        "attempt",
    ] {
        let sql = format!("SELECT a FROM t WHERE b = '{content}'");
        assert_eq!(masked(&sql), Some(sql.clone()));
    }
}

#[test]
fn whole_texts_are_given_up() {
    all_given_up(&[
        "",
        " ",
        "BEGIN",
        "SET a = 1",
        "(SELECT 1)",
        "EXPLAIN SELECT 1",
        "selecting 1",
        "SELECT 1 -- a",
        "SELECT 1 +--'\n 2",
        "SELECT 1 /* a */",
        "SELECT a = 'a\\'",
        "SELECT a = E'a\\' 1'",
        "SELECT \"a\\\"",
        "SELECT $$a$$",
        "SELECT $a$1$a$",
        "SELECT a$1",
        "SELECT $1a, 1",
        "SELECT $1$a",
        "SELECT 1; SELECT 2",
        "SELECT 1;;",
        "SELECT 'a",
        "SELECT \"a",
        "SELECT (1",
        "SELECT 1)",
        "SELECT (1]",
        "SELECT größe",
        "SELECT a\u{a0}= 1",
        "SELECT {d '2020-01-01'}",
        "SELECT `a`",
        "SELECT \u{b}1",
        "SELECT a = 1\0",
    ]);
    let mut out = vec![];
    assert!(mask(b"SELECT a = 'gr\xfc\xdfe'", &mut out).is_none(), "latin-1");
    let long = format!("SELECT a = '{}'", "x".repeat(TEXT_MAX));
    assert!(mask(long.as_bytes(), &mut out).is_none() && out.is_empty());
    assert_eq!(masked(&format!("SELECT {}1{}", "(".repeat(33), ")".repeat(33))), None);
}

/// Where a masked text's verdict is shared, it is the text's own, in every field.
pub(in crate::sql) fn assert_same(sql: &str, facts: &Facts) {
    let Some(masked) = masked(sql) else { return };
    let verdict = classify(masked.as_bytes(), facts);
    if is_shared(masked.as_bytes(), &verdict) {
        assert_eq!(classify(sql.as_bytes(), facts), verdict, "{sql} and {masked}");
    }
}

/// Statements with places for literals.
const TEMPLATES: &[&str] = &[
    "SELECT a FROM t WHERE b = @ AND c IN (@, @) LIMIT @",
    "SELECT @, @ FROM t ORDER BY @ OFFSET @",
    "INSERT INTO t (a, b) VALUES (@, @), (lower(@), @) RETURNING a",
    "INSERT INTO t VALUES (nextval(@), @)",
    "UPDATE t SET a = @, b = b || @ WHERE c BETWEEN @ AND @",
    "DELETE FROM t WHERE a LIKE @ OR b <> @;",
    "WITH x AS (SELECT a FROM t WHERE b = @) SELECT f(@) FROM x WHERE c = @",
    "SELECT set_config(@, @, false)",
    "SELECT set_config(@, @, true) FROM t WHERE a = @",
    "SELECT current_setting(@) = @",
    "SELECT @::regclass, (@)::regclass, CAST(@ AS regclass), regclass @, (@ || @)::regclass",
    "SELECT to_regclass(@), pg_advisory_lock(@), lo_get(@), a = @",
    "SELECT a -> @ ->> @ FROM t WHERE b @> @ AND c ? @",
    "SELECT CASE WHEN a = @ THEN @ ELSE @ END, INTERVAL @, a + @",
    "SELECT a = E@, a = U&@, a = N@, a = @ @",
    "SELECT a FROM t WHERE a *< @ AND b = @",
    "UPDATE t SET a[1] = @ WHERE b = @ AND CURRENT OF c",
    "UPDATE pg_settings SET setting = @ WHERE name = @",
    "SELECT drop, create FROM t WHERE a = @",
    "SELECT a FROM t WHERE EXISTS (SELECT 1 FROM u WHERE u.b = @) AND (a, b) IN ((@, @), (@, @))",
    "VALUES (@, @), (@, (@))",
    "SELECT a INTO TEMP x FROM t WHERE b = @",
    "SELECT * FROM pg_stat_activity WHERE pid = @",
    "SELECT a FROM t WHERE b = @-- c",
    "SELECT a FROM t WHERE b =@AND c=@AND d = @x",
];

const LITERALS: &[&str] = &[
    "1",
    "0",
    "1.5",
    ".5",
    "1e5",
    "5.",
    "12abc",
    "0x1F",
    "$1",
    "-7",
    "NULL",
    "true",
    "''",
    "'x'",
    "'it''s'",
    "'größe'",
    "'a.b'",
    "'port'",
    "'search_path'",
    "'pg_temp'",
    "'synchronous_commit'",
    "'drop user joe'",
    "'user joe'",
    "'create database x'",
    "'a; copy t from stdin'",
    "'copy'",
    "'execute p'",
    "'set my.name'",
    "'f(1)'",
    "'-- x'",
    "'/* x'",
    "'u&\"x\"'",
    "'pg_prepared_statements'",
    "'temp'",
    "'listen'",
    "'create view v'",
    "E'\\''",
    "'a' 'b'",
    "'advisory lock'",
    "'do'",
    "'call'",
    "'hold'",
    "'set_config'",
    "'reset'",
    "'2020-01-01'",
    "$$x$$",
    "'{\"a\": 1}'",
    "'import view'",
    "'load'",
    "'discard'",
    "'ALTER ROLE a'",
    "'role'",
    "'database'",
    "'unterminated",
];

fn filled(template: &str, picks: &[usize]) -> String {
    let mut picks = picks.iter().cycle();
    let mut sql = String::new();
    for (at, part) in template.split('@').enumerate() {
        // The operator that is written with the same sign.
        if at > 0 && sql.ends_with(' ') && part.starts_with("> ") {
            sql.push('@');
        } else if at > 0 {
            let pick = picks.next().and_then(|pick| LITERALS.get(pick % LITERALS.len()));
            sql.push_str(pick.copied().unwrap_or_default());
        }
        sql.push_str(part);
    }
    sql
}

#[test]
fn every_literal_in_every_place_leaves_the_verdict_as_it_is() {
    for template in TEMPLATES {
        for first in 0..LITERALS.len() {
            for second in [0, 13, 18, 21, 24] {
                assert_same(&filled(template, &[first, second]), &Facts::by_names());
            }
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(1000))]
    #[test]
    fn masked_texts_have_the_verdict_of_the_text(
        template in 0..TEMPLATES.len(),
        picks in proptest::collection::vec(0..LITERALS.len(), 1..8),
    ) {
        assert_same(&filled(TEMPLATES[template], &picks), &Facts::by_names());
    }

    #[test]
    fn whatever_is_made_of_such_pieces_has_the_verdict_of_the_text(
        first in "(SELECT|INSERT INTO t VALUES|UPDATE t SET a =|DELETE FROM t WHERE|WITH x AS|VALUES)",
        pieces in proptest::collection::vec(0..PIECES.len() + LITERALS.len(), 1..12),
    ) {
        let mut sql = first;
        for piece in pieces {
            let piece = PIECES.get(piece).or_else(|| LITERALS.get(piece - PIECES.len()));
            sql.push_str(piece.copied().unwrap_or_default());
        }
        assert_same(&sql, &Facts::by_names());
    }
}

const PIECES: &[&str] = &[
    " ",
    " ",
    " ",
    "(",
    ")",
    "(",
    ")",
    ",",
    ", ",
    " = ",
    "=",
    "::regclass",
    " IN (",
    " VALUES (",
    " set_config(",
    "current_setting(",
    ".in(",
    " AND ",
    " FROM ",
    " a ",
    "a",
    " LIKE ",
    "[",
    "]",
    " || ",
    "-",
    "-> ",
    ";",
    "\n",
    "E",
    "u&",
    "$",
    " import ",
    " drop ",
    " set ",
    " AS ",
    " SELECT ",
    " f(",
    ":",
    "\"q\"",
    " BETWEEN ",
    " LIMIT ",
    "@",
    ".",
];

#[test]
fn only_plain_verdicts_are_shared() {
    let facts = Facts::by_names();
    let shared = |sql: &str| {
        let masked = masked(sql).unwrap();
        is_shared(masked.as_bytes(), &classify(masked.as_bytes(), &facts))
    };
    for sql in ["SELECT a FROM t WHERE b = 1", "INSERT INTO t VALUES (1, 'x')", "SELECT nextval('s'), 5"] {
        assert!(shared(sql), "{sql}");
    }
    for sql in [
        "SELECT set_config('a.b', 'c', false)",
        "SELECT set_config('a.b', 'c', true), a FROM t WHERE b = 5",
        "SELECT f(1) FROM t WHERE b = 5",
        "SELECT lastval(), 5",
        "SELECT a FROM t WHERE drop = 5",
        "UPDATE pg_settings SET setting = 'off' WHERE name = 'synchronous_commit'",
    ] {
        assert!(!shared(sql), "{sql}");
    }
}
