//! Statements that read.

use super::Maker;

impl Maker {
    /// One that reads tables, or nothing but itself.
    pub(super) fn read(&mut self) -> String {
        match self.below(4) {
            0 => self.expression(),
            1 => self.read_much(),
            _ => self.read_table(),
        }
    }

    fn read_table(&mut self) -> String {
        let (p, row, limit) = (self.prefix.clone(), self.row(), self.below(8));
        match self.below(13) {
            0 | 1 => format!("SELECT id, a, b FROM {p}t0 WHERE id = {row}"),
            2 => format!("SELECT id, a, c, d FROM {p}t0 WHERE a > {limit} ORDER BY id LIMIT {limit}"),
            3 => format!("SELECT count(*), sum(a), max(b), min(c) FROM {p}t0"),
            4 => format!("SELECT t0.id, t1.v FROM {p}t0 JOIN {p}t1 ON t1.r = t0.id ORDER BY t0.id, t1.id"),
            5 => format!(
                "WITH x AS (SELECT a, count(*) n FROM {p}t0 GROUP BY a) SELECT * FROM x ORDER BY a, n"
            ),
            6 => format!(
                "SELECT id, rank() OVER (PARTITION BY a ORDER BY id) FROM {p}t0 ORDER BY id DESC LIMIT 5"
            ),
            7 => format!("SELECT id, r, v, j FROM {p}t1 ORDER BY id"),
            8 => format!("SELECT j->'n' AS n FROM {p}t1 WHERE r = {row} ORDER BY id"),
            9 => format!(
                "SELECT (SELECT max(id) FROM {p}t1) AS m, b FROM {p}t0 WHERE id IN (SELECT r FROM {p}t1) ORDER BY b"
            ),
            10 => format!("/* first */ SELECT count(*) -- and so on\n FROM {p}t1 WHERE v LIKE 'v%'"),
            11 => format!("SELECT id FROM {p}t0 EXCEPT SELECT r FROM {p}t1 ORDER BY 1"),
            _ => format!("TABLE {p}t1 ORDER BY id LIMIT 3"),
        }
    }

    fn expression(&mut self) -> String {
        let (a, b) = (self.below(50), self.below(5));
        let word = self.word();
        match self.below(14) {
            0 => format!("SELECT {a} / {b}"),
            1 => format!("SELECT '{word}' AS w, length('{word}'), upper('{word}')"),
            2 => format!("VALUES ({a}, 'x'), ({b}, NULL)"),
            3 => "SELECT NULL::int, true, 1.5::float8, 12.340::numeric, '\\x00ff'::bytea".to_owned(),
            4 => "SELECT ARRAY[1,2,NULL]::int[], ROW(1,'a'), '{\"k\": [1, 2]}'::jsonb".to_owned(),
            5 => {
                "SELECT date '2024-02-29' + 1, timestamp '2024-02-29 12:34:56.789', interval '1 mon -3 days'"
                    .to_owned()
            }
            6 => "SELECT timestamptz '2024-06-01 12:00:00+00', time '01:02:03'".to_owned(),
            7 => format!("SELECT generate_series(1, {b}) ORDER BY 1"),
            8 => "SELECT current_schema(), current_user, session_user, current_database()".to_owned(),
            9 => "EXPLAIN (COSTS OFF) SELECT 1".to_owned(),
            10 => format!("SELECT '{word}'::int"),
            11 => format!("SELECT CASE WHEN {a} > 25 THEN 'more' ELSE 'less' END, coalesce(NULL, {b})"),
            12 => String::new(),
            _ => format!("SELECT 1 AS one, {a} AS \"Two Words\" WHERE {b} <> 0"),
        }
    }

    /// Answers that do not fit into one packet, or one buffer.
    fn read_much(&mut self) -> String {
        let p = self.prefix.clone();
        if !self.chance(4) {
            return self.read_table();
        }
        match self.below(4) {
            0 => "SELECT n, repeat('x', n) FROM generate_series(1, 500) n ORDER BY n".to_owned(),
            1 => format!("SELECT id, repeat(b, 20000) FROM {p}t0 ORDER BY id LIMIT 3"),
            2 => format!("SELECT '{}' AS much", "m".repeat(70_000)),
            _ => format!(
                "SELECT x.id, y.id, z.n FROM {p}t0 x, {p}t0 y, generate_series(1, 9) z(n) ORDER BY 1, 2, 3"
            ),
        }
    }

    /// What the catalogs say of the session's own tables.
    pub(super) fn catalog(&mut self) -> String {
        let schema = self.room.schema.clone();
        match self.below(4) {
            0 => format!(
                "SELECT c.relname, c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE n.nspname = '{schema}' ORDER BY 1"
            ),
            1 => format!(
                "SELECT column_name, data_type FROM information_schema.columns \
                 WHERE table_schema = '{schema}' AND table_name = 't0' ORDER BY ordinal_position"
            ),
            2 => "SELECT pg_backend_pid() = pg_backend_pid(), pg_is_in_recovery(), txid_current() > 0"
                .to_owned(),
            _ => format!("SELECT to_regclass('{schema}.t0') IS NULL, '{schema}.t1'::regclass::text"),
        }
    }

    /// What no server accepts.
    pub(super) fn mistake(&mut self) -> String {
        let p = self.prefix.clone();
        match self.below(9) {
            0 => "SELEKT 1".to_owned(),
            1 => format!("SELECT nothing FROM {p}t0"),
            2 => format!("SELECT * FROM {p}nowhere"),
            3 => "SELECT no_such_function(1)".to_owned(),
            4 => "SELECT 'open".to_owned(),
            5 => "SELECT 1; SELECT 1/0; SELECT 2".to_owned(),
            6 => format!("INSERT INTO {p}t0 (id) VALUES (1)"),
            7 => "EXECUTE never_prepared".to_owned(),
            _ => "FETCH 1 FROM no_cursor".to_owned(),
        }
    }
}
