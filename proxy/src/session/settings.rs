//! The settings of a session, and which of them a server connection has yet to hear of.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::sql::is_of_the_transaction;

/// How far a connection has followed the session's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    epoch: u64,
    sequence: u64,
}

#[derive(Debug)]
struct Entry {
    sequence: u64,
    key: String,
    sql: String,
}

#[derive(Debug)]
enum Pending {
    Set { key: String, sql: String },
    ResetAll,
    Savepoint(String),
}

impl Entry {
    fn tells_who(&self) -> bool {
        tells_who(&self.key)
    }
}

/// It changes who the session is, and with that what it may set.
fn tells_who(key: &str) -> bool {
    matches!(key, "role" | "session authorization")
}

/// Committed settings in the order of their last change, and those of the open transaction.
#[derive(Debug, Default)]
pub(super) struct Settings {
    entries: Vec<Entry>,
    pending: Vec<Pending>,
    sequence: u64,
    /// Counts `DISCARD ALL`: what was before it is void.
    epoch: u64,
}

impl Settings {
    pub(super) fn set(&mut self, key: &str, sql: &str) {
        if is_of_the_transaction(key) {
            return;
        }
        self.pending.push(Pending::Set { key: key.to_owned(), sql: sql.to_owned() });
    }

    pub(super) fn reset_all(&mut self) {
        self.pending.push(Pending::ResetAll);
    }

    pub(super) fn savepoint(&mut self, name: &str) {
        self.pending.push(Pending::Savepoint(name.to_owned()));
    }

    /// Undoes what came after the newest savepoint of that name, which itself stays.
    pub(super) fn rollback_to(&mut self, name: &str) {
        let is_it = |pending: &Pending| matches!(pending, Pending::Savepoint(point) if point == name);
        if let Some(position) = self.pending.iter().rposition(is_it) {
            self.pending.truncate(position + 1);
        }
    }

    /// What told where names are looked for; `None`: the login.
    pub(super) fn path(&self) -> Option<Arc<str>> {
        let pending = self.pending.iter().rev().find_map(|pending| match pending {
            Pending::Set { key, sql } if key == "search_path" => Some(Some(sql)),
            Pending::ResetAll => Some(None),
            Pending::Set { .. } | Pending::Savepoint(_) => None,
        });
        let found = pending.unwrap_or_else(|| {
            let last = self.entries.iter().rev().find(|entry| matches!(&*entry.key, "search_path" | "all"));
            last.filter(|entry| entry.key == "search_path").map(|entry| &entry.sql)
        });
        found.map(|sql| sql.as_str().into())
    }

    /// Whether all are as they were at the beginning.
    pub(super) fn are_untouched(&self) -> bool {
        self.entries.is_empty() && self.pending.is_empty()
    }

    /// Whether somebody else acts than who logged in.
    pub(super) fn tell_who(&self) -> bool {
        let pending = |pending: &Pending| matches!(pending, Pending::Set { key, .. } if tells_who(key));
        self.entries.iter().any(Entry::tells_who) || self.pending.iter().any(pending)
    }

    /// Whether the open transaction changed any.
    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    pub(super) fn rollback(&mut self) {
        self.pending.clear();
    }

    pub(super) fn commit(&mut self) {
        for pending in std::mem::take(&mut self.pending) {
            match pending {
                Pending::Set { key, sql } => self.enter(key, sql),
                Pending::ResetAll => {
                    // Roles and the like survive it.
                    self.entries.retain(Entry::tells_who);
                    self.enter("all".to_owned(), "RESET ALL".to_owned());
                }
                Pending::Savepoint(_) => {}
            }
        }
    }

    fn enter(&mut self, key: String, sql: String) {
        self.sequence += 1;
        let new = Entry { sequence: self.sequence, key, sql };
        // Who may set what depends on the role at that time: those before other settings stay.
        if !new.tells_who() {
            self.entries.retain(|entry| entry.key != new.key);
        }
        self.entries.push(new);
        let mut behind: BTreeSet<String> = BTreeSet::new();
        let mut kept = Vec::with_capacity(self.entries.len());
        for entry in std::mem::take(&mut self.entries).into_iter().rev() {
            if !entry.tells_who() {
                behind.clear();
            } else if !behind.insert(entry.key.clone()) {
                continue;
            }
            kept.push(entry);
        }
        kept.reverse();
        self.entries = kept;
    }

    pub(super) fn discard_all(&mut self) {
        self.entries.clear();
        self.pending.clear();
        self.epoch += 1;
    }

    /// What a connection that has come as far as `seen` must still run.
    pub(super) fn replay(&self, seen: Seen) -> Vec<String> {
        let stale = self.discards(seen);
        let missing = self.entries.iter().filter(|entry| stale || entry.sequence > seen.sequence);
        let discard = stale.then(|| "DISCARD ALL".to_owned());
        discard.into_iter().chain(missing.map(|entry| entry.sql.clone())).collect()
    }

    /// Whether a connection that has come as far as `seen` discards all that is on it first.
    pub(super) fn discards(&self, seen: Seen) -> bool {
        seen.epoch < self.epoch
    }

    /// The statement that set `key` last, in the open transaction or before.
    pub(super) fn newest_of(&self, key: &str) -> Option<&str> {
        for pending in self.pending.iter().rev() {
            match pending {
                Pending::Set { key: set, sql } if set == key => return Some(sql),
                Pending::ResetAll => return None,
                Pending::Set { .. } | Pending::Savepoint(_) => {}
            }
        }
        self.entries.iter().rfind(|entry| entry.key == key).map(|entry| entry.sql.as_str())
    }

    pub(super) fn newest(&self) -> Seen {
        Seen { epoch: self.epoch, sequence: self.sequence }
    }

    /// Where a new connection stands: nothing to discard, everything to set.
    pub(super) fn beginning(&self) -> Seen {
        Seen { epoch: self.epoch, sequence: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_hears_only_of_what_it_missed() {
        let mut settings = Settings::default();
        settings.set("a", "SET a = 1");
        settings.set("b", "SET b = 1");
        settings.commit();
        let seen = settings.newest();
        settings.set("a", "SET a = 2");
        settings.commit();
        assert_eq!(settings.replay(seen), ["SET a = 2"]);
        assert_eq!(settings.replay(settings.beginning()), ["SET b = 1", "SET a = 2"]);
        assert!(settings.replay(settings.newest()).is_empty());
    }

    #[test]
    fn what_is_set_for_the_transaction_alone_is_never_replayed() {
        let mut settings = Settings::default();
        for key in ["transaction_read_only", "transaction_isolation", "transaction_timeout"] {
            settings.set(key, key);
            settings.commit();
        }
        assert_eq!(settings.replay(Seen::default()), ["transaction_timeout"]);
    }

    #[test]
    fn what_is_rolled_back_is_never_replayed() {
        let mut settings = Settings::default();
        settings.set("a", "SET a = 1");
        settings.savepoint("s");
        settings.set("a", "SET a = 2");
        settings.rollback_to("s");
        settings.commit();
        assert_eq!(settings.replay(Seen::default()), ["SET a = 1"]);
        settings.set("a", "SET a = 3");
        settings.rollback();
        settings.commit();
        assert_eq!(settings.replay(Seen::default()), ["SET a = 1"]);
    }

    #[test]
    fn each_setting_is_made_as_whoever_made_it() {
        let mut settings = Settings::default();
        for (key, sql) in [
            ("role", "SET ROLE nobody"),
            ("role", "SET ROLE boss"),
            ("log_statement", "SET log_statement = 'all'"),
            ("role", "SET ROLE joe"),
            ("work_mem", "SET work_mem = '1MB'"),
            ("role", "RESET ROLE"),
            ("role", "SET ROLE joe"),
        ] {
            settings.set(key, sql);
            settings.commit();
        }
        let expected = ["SET ROLE boss", "SET log_statement = 'all'", "SET ROLE joe", "SET work_mem = '1MB'"];
        let mut replayed = settings.replay(Seen::default());
        assert_eq!(replayed.pop().as_deref(), Some("SET ROLE joe"));
        assert_eq!(replayed, expected);
        assert_eq!(settings.newest_of("role"), Some("SET ROLE joe"));
        for _ in 0..100 {
            for (key, sql) in [("role", "SET ROLE joe"), ("work_mem", "SET work_mem = '2MB'")] {
                settings.set(key, sql);
                settings.commit();
            }
        }
        assert!(settings.replay(Seen::default()).len() < 6, "what is void is forgotten");
    }

    #[test]
    fn resets_take_settings_away() {
        let mut settings = Settings::default();
        settings.set("a", "SET a = 1");
        settings.set("role", "SET ROLE joe");
        settings.reset_all();
        settings.commit();
        assert_eq!(settings.replay(Seen::default()), ["SET ROLE joe", "RESET ALL"]);
        let before = settings.newest();
        settings.discard_all();
        assert_eq!(settings.replay(before), ["DISCARD ALL"]);
        assert!(settings.replay(settings.beginning()).is_empty());
    }
}
