//! Statements about the session itself: transactions, settings, cursors, temporary tables, locks.

use super::Maker;

impl Maker {
    /// Opens a transaction.
    pub(super) fn begin(&mut self) -> String {
        self.in_tx = true;
        let how = self.one_of(&[
            "BEGIN",
            "BEGIN",
            "START TRANSACTION",
            "BEGIN READ ONLY",
            "BEGIN READ ONLY",
            "BEGIN TRANSACTION ISOLATION LEVEL READ COMMITTED, READ ONLY",
            "BEGIN ISOLATION LEVEL REPEATABLE READ",
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            "BEGIN ISOLATION LEVEL SERIALIZABLE",
        ]);
        how.to_owned()
    }

    /// Ends it.
    pub(super) fn end_of_transaction(&mut self) -> String {
        self.in_tx = false;
        self.one_of(&["COMMIT", "COMMIT", "END", "ROLLBACK", "ROLLBACK", "ABORT"]).to_owned()
    }

    /// Anything else about transactions, whether one is open or not.
    pub(super) fn transaction_word(&mut self) -> String {
        let word = self.one_of(&[
            "SAVEPOINT s1",
            "SAVEPOINT s1",
            "SAVEPOINT s2",
            "ROLLBACK TO s1",
            "ROLLBACK TO SAVEPOINT s1",
            "RELEASE s1",
            "COMMIT AND CHAIN",
            "ROLLBACK AND CHAIN",
            "SET TRANSACTION READ ONLY",
            "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "SHOW transaction_isolation",
            "SHOW transaction_read_only",
            "BEGIN",
            "COMMIT",
        ]);
        word.to_owned()
    }

    /// Changes or shows settings.
    pub(super) fn setting(&mut self) -> String {
        let (name, values) = self.a_setting();
        let value = self.one_of(values);
        match self.below(16) {
            0..5 => format!("SET {name} = {value}"),
            5 | 6 => format!("SET LOCAL {name} TO {value}"),
            7 => format!("RESET {name}"),
            8 => format!("SELECT set_config('{name}', '{}', false)", value.trim_matches('\'')),
            9 => format!("SELECT set_config('{name}', '{}', true)", value.trim_matches('\'')),
            10 => format!("SET {name} TO DEFAULT"),
            11 | 12 if !name.starts_with("my.") => format!("SHOW {name}"),
            11..14 => format!("SELECT coalesce(nullif(current_setting('{name}', true), ''), '-')"),
            14 => self
                .one_of(&["RESET ALL", "SET SESSION AUTHORIZATION DEFAULT", "SET ROLE app", "RESET ROLE"])
                .to_owned(),
            _ => {
                let word = self.one_of(&[
                    "DISCARD ALL",
                    "DISCARD ALL",
                    "DISCARD PLANS",
                    "DISCARD SEQUENCES",
                    "DISCARD TEMP",
                ]);
                if word == "DISCARD ALL" {
                    self.named.clear();
                }
                word.to_owned()
            }
        }
    }

    fn a_setting(&mut self) -> (&'static str, &'static [&'static str]) {
        const SETTINGS: &[(&str, &[&str])] = &[
            ("application_name", &["'one'", "'two words'"]),
            ("DateStyle", &["'ISO, MDY'", "'German'", "'SQL, DMY'"]),
            ("IntervalStyle", &["'postgres'", "'iso_8601'"]),
            ("TimeZone", &["'UTC'", "'Europe/Berlin'", "'America/New_York'"]),
            ("extra_float_digits", &["0", "1", "3"]),
            ("bytea_output", &["'hex'", "'escape'"]),
            ("work_mem", &["'1MB'", "'8MB'"]),
            ("client_min_messages", &["notice", "warning", "error"]),
            ("standard_conforming_strings", &["on", "off"]),
            ("statement_timeout", &["0", "'50s'"]),
            ("client_encoding", &["'UTF8'", "'LATIN1'", "'SQL_ASCII'"]),
            ("default_transaction_read_only", &["on", "off"]),
            ("default_transaction_isolation", &["'read committed'"]),
            ("my.setting", &["'mine'", "'yours'"]),
            ("no_such_setting", &["1"]),
            ("work_mem", &["'much'"]),
        ];
        let at = usize::try_from(self.below(16)).unwrap_or(0);
        SETTINGS.get(at).copied().unwrap_or(("work_mem", &["'1MB'"]))
    }

    /// `PREPARE` and what belongs to it.
    pub(super) fn sql_prepared(&mut self) -> String {
        let (p, row) = (self.prefix.clone(), self.row());
        let new = self.one_of(&["q0", "q1"]);
        // What was prepared with the protocol can be executed as well.
        let name = self.one_of(&["q0", "q1", "p0"]);
        match self.below(8) {
            0 | 1 => format!("PREPARE {new} (int) AS SELECT id, a FROM {p}t0 WHERE id = $1"),
            2 => format!("PREPARE {new} (int) AS UPDATE {p}t0 SET a = a + 1 WHERE id = $1 RETURNING a"),
            3..6 => format!("EXECUTE {name} ({row})"),
            6 => {
                self.named.retain(|(known, _)| known != name);
                format!("DEALLOCATE {name}")
            }
            _ => {
                self.named.clear();
                "DEALLOCATE ALL".to_owned()
            }
        }
    }

    /// Cursors of SQL, with and without hold.
    pub(super) fn cursor(&mut self) -> String {
        let (p, n) = (self.prefix.clone(), self.below(7));
        let name = self.one_of(&["c0", "c1"]);
        match self.below(9) {
            0 | 1 => format!("DECLARE {name} CURSOR FOR SELECT id, b FROM {p}t0 ORDER BY id"),
            2 => format!("DECLARE {name} SCROLL CURSOR WITH HOLD FOR SELECT id, a FROM {p}t0 ORDER BY id"),
            3 | 4 => format!("FETCH {n} FROM {name}"),
            5 => format!("FETCH BACKWARD 2 FROM {name}"),
            6 => format!("MOVE {n} IN {name}"),
            7 => format!("CLOSE {name}"),
            _ => "SELECT name, is_holdable FROM pg_cursors WHERE name <> '' ORDER BY 1".to_owned(),
        }
    }

    /// Temporary tables.
    pub(super) fn temporary(&mut self) -> String {
        let n = self.below(9);
        match self.below(8) {
            0 | 1 => "CREATE TEMP TABLE tmp (n int)".to_owned(),
            2 => "CREATE TEMPORARY TABLE tmp (n int) ON COMMIT DROP".to_owned(),
            3 => "CREATE TEMP TABLE IF NOT EXISTS tmp (n int) ON COMMIT DELETE ROWS".to_owned(),
            4 => format!("INSERT INTO tmp VALUES ({n}), ({n} + 1)"),
            5 => "SELECT n, count(*) FROM tmp GROUP BY n ORDER BY n".to_owned(),
            6 => format!("SELECT {n} AS n INTO TEMP tmp"),
            _ => "DROP TABLE IF EXISTS tmp".to_owned(),
        }
    }

    /// LISTEN and NOTIFY; the channel is the session's own.
    pub(super) fn notification(&mut self) -> String {
        let channel = format!("c_{}", self.room.schema);
        match self.below(6) {
            0 | 1 => format!("LISTEN {channel}"),
            2 | 3 => format!("NOTIFY {channel}, 'news'"),
            4 => format!("SELECT pg_notify('{channel}', 'by function')"),
            _ => self.one_of(&["UNLISTEN *", "SELECT count(*) FROM pg_listening_channels()"]).to_owned(),
        }
    }

    /// Advisory locks; the keys are the session's own.
    pub(super) fn lock(&mut self) -> String {
        let (space, key) = (self.room.serial, self.below(3));
        match self.below(8) {
            0 | 1 => format!("SELECT pg_advisory_lock({space}, {key})"),
            2 => format!("SELECT pg_try_advisory_lock_shared({space}, {key})"),
            3 | 4 => format!("SELECT pg_advisory_unlock({space}, {key})"),
            5 => "SELECT pg_advisory_unlock_all()".to_owned(),
            6 => format!("SELECT pg_advisory_xact_lock({space}, {key})"),
            _ => format!("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = {space}"),
        }
    }

    /// What is answered with more than its result.
    pub(super) fn notice(&mut self) -> String {
        let text = self.one_of(&[
            "DROP TABLE IF EXISTS never_made",
            "DO $$ BEGIN RAISE NOTICE 'hello %', 1; END $$",
            "DO $$ BEGIN RAISE EXCEPTION 'refused' USING HINT = 'ask again'; END $$",
            "DO $$ BEGIN PERFORM 1; END $$; SELECT 1",
            "ROLLBACK",
        ]);
        text.to_owned()
    }
}
