//! Statements that write, and that read back what was written.

use super::Maker;

impl Maker {
    /// One that writes rows.
    pub(super) fn write(&mut self) -> String {
        let (p, row, n) = (self.prefix.clone(), self.row(), self.below(100));
        let word = self.word();
        match self.below(16) {
            0 => format!("INSERT INTO {p}t0 (id, a, b) VALUES ({row}, {n}, '{word}')"),
            1 => format!(
                "INSERT INTO {p}t0 VALUES ({n} + 100, {n}, '{word}', 1.5, '2024-05-05') RETURNING id, b"
            ),
            2 => format!(
                "INSERT INTO {p}t0 (id, a) VALUES ({row}, 1) ON CONFLICT (id) DO UPDATE SET a = {p}t0.a + {n}"
            ),
            3 => format!("INSERT INTO {p}t0 (id, a) VALUES ({row}, 1) ON CONFLICT DO NOTHING"),
            4 | 5 => {
                format!("UPDATE {p}t0 SET a = a + {n}, b = '{word}' WHERE id = {row} RETURNING id, a, b")
            }
            6 => format!("UPDATE {p}t0 SET c = c + 0.01"),
            7 => format!("DELETE FROM {p}t0 WHERE id = {row}"),
            8 => format!("INSERT INTO {p}t1 (r, v) VALUES ({n}, '{word}'), ({row}, NULL)"),
            9 => {
                format!("INSERT INTO {p}t1 (r, v, j) VALUES ({n}, 'x', '{{\"n\": {n}}}') RETURNING id, r, j")
            }
            10 => format!(
                "WITH u AS (UPDATE {p}t0 SET a = {n} WHERE a = 3 RETURNING id, a) SELECT * FROM u ORDER BY id"
            ),
            11 => format!("SELECT id, a FROM {p}t0 WHERE id < {row} ORDER BY id FOR UPDATE"),
            12 => format!(
                "MERGE INTO {p}t0 t USING (VALUES ({row}, {n})) s(i, n) ON t.id = s.i \
                 WHEN MATCHED THEN UPDATE SET a = s.n WHEN NOT MATCHED THEN INSERT (id, a) VALUES (s.i, s.n)"
            ),
            13 => format!("INSERT INTO {p}t1 (r, v) SELECT a, b FROM {p}t0 WHERE id < 5 ORDER BY id"),
            14 => format!("UPDATE {p}t0 SET a = {n} WHERE id = {row}; SELECT a FROM {p}t0 WHERE id = {row}"),
            _ if self.chance(3) => format!("TRUNCATE {p}t1"),
            _ => format!("DELETE FROM {p}t1 WHERE r = {row}"),
        }
    }

    /// Makes or alters something, or uses what may have been made.
    pub(super) fn definition(&mut self) -> String {
        let p = self.prefix.clone();
        let old = self.below(self.made + 1);
        match self.below(14) {
            0 => {
                let new = self.new_number();
                format!(
                    "CREATE TABLE {p}x{new} (id int, v text DEFAULT 'none'); INSERT INTO {p}x{new} VALUES (1)"
                )
            }
            1 => format!("SELECT id, v FROM {p}x{old} ORDER BY id, v"),
            2 => format!("DROP TABLE IF EXISTS {p}x{old}"),
            3 => {
                let new = self.new_number();
                format!(
                    "ALTER TABLE {p}t1 ADD COLUMN n{new} int DEFAULT {new}; SELECT sum(n{new}) FROM {p}t1"
                )
            }
            4 => format!("CREATE OR REPLACE VIEW {p}v0 AS SELECT id, a FROM {p}t0 WHERE id > 3"),
            5 => format!("SELECT count(*), sum(a) FROM {p}v0"),
            6 => format!(
                "CREATE OR REPLACE FUNCTION {p}f_read(n int) RETURNS int LANGUAGE sql STABLE AS 'SELECT n + 1'"
            ),
            7 => format!("SELECT {p}f_read({old})"),
            8 => format!(
                "CREATE OR REPLACE FUNCTION {p}f_write(n int) RETURNS bigint LANGUAGE plpgsql AS $$ \
                 BEGIN INSERT INTO {s}.t1 (r, v) VALUES (n, 'by function'); \
                 RETURN (SELECT count(*) FROM {s}.t1); END $$",
                s = self.room.schema
            ),
            9 => format!("SELECT {p}f_write({old})"),
            10 => format!("CREATE INDEX IF NOT EXISTS i0 ON {p}t0 (a); COMMENT ON TABLE {p}t0 IS 'a table'"),
            11 => {
                format!("CREATE SEQUENCE IF NOT EXISTS {p}s0; SELECT nextval('{s}.s0')", s = self.room.schema)
            }
            12 => format!("CREATE UNLOGGED TABLE IF NOT EXISTS {p}u0 (n int); INSERT INTO {p}u0 VALUES (1)"),
            _ => format!("SELECT count(*) FROM {p}u0"),
        }
    }
}
