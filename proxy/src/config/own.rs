//! `[databases.NAME]` and `[users.NAME]`: what holds for one database or one user instead of for all. What
//! the user has goes before what the database has, and that before what holds in general.

use std::collections::BTreeMap;
use std::time::Duration;

use pgherd_common::config::{ConfigValue, Millis, Reader, Section};

use crate::session::Consistency;

use super::pool::MODES;
use super::{Config, PoolMode, meaning};

/// The words of `read_consistency`, the default first.
pub(super) const CONSISTENCIES: &[(&str, Consistency)] = &[
    ("session", Consistency::Session),
    ("eventual", Consistency::Eventual),
    ("global", Consistency::Global),
];

/// What one database or one user has of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Own {
    /// What reads on standbys are sure to see.
    pub read_consistency: Option<Consistency>,
    /// When clients give their server connections back.
    pub pool_mode: Option<PoolMode>,
    /// Connections to one node as one user to one database.
    pub pool_size: Option<u32>,
    /// Clients of this database, or as this user, above this are refused.
    pub max_client_connections: Option<u32>,
    /// `Some(None)`: no limit here, whatever holds in general.
    pub idle_timeout: Option<Option<Duration>>,
    /// The same.
    pub idle_in_transaction_timeout: Option<Option<Duration>>,
}

/// What holds for one user in one database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effective {
    /// What reads on standbys are sure to see, unless the session says otherwise.
    pub read_consistency: Consistency,
    /// When clients give their server connections back.
    pub pool_mode: PoolMode,
    /// Connections to one node.
    pub pool_size: u32,
    /// A client that says nothing for so long is sent away.
    pub idle_timeout: Option<Duration>,
    /// The same, with a transaction open.
    pub idle_in_transaction_timeout: Option<Duration>,
}

impl Config {
    /// What holds for `user` in `database`.
    pub fn effective(&self, user: &str, database: &str) -> Effective {
        let mut effective = self.general;
        let own = [self.databases.get(database), self.users.get(user)];
        own.into_iter().flatten().for_each(|own| own.refine(&mut effective));
        effective
    }

    /// Whether `user` may look at and act on the proxy itself.
    pub fn is_admin(&self, user: &str) -> bool {
        self.admins.iter().any(|admin| admin == user)
    }

    /// The shortest time after which anybody is sent away for saying nothing.
    pub fn shortest_idle(&self) -> Option<Duration> {
        let general = [self.general.idle_timeout, self.general.idle_in_transaction_timeout];
        let own = self.databases.values().chain(self.users.values());
        let own = own.flat_map(|own| [own.idle_timeout, own.idle_in_transaction_timeout]).flatten();
        general.into_iter().chain(own).flatten().min()
    }
}

impl Effective {
    /// `read_consistency` as it is configured.
    pub fn consistency_word(&self) -> &'static str {
        word_of(CONSISTENCIES, self.read_consistency)
    }

    /// `pool_mode` as it is configured.
    pub fn mode_word(&self) -> &'static str {
        word_of(MODES, self.pool_mode)
    }
}

fn word_of<T: Copy + PartialEq>(words: &[(&'static str, T)], meant: T) -> &'static str {
    words.iter().find(|(_, meaning)| *meaning == meant).map_or("", |(word, _)| word)
}

impl Own {
    fn refine(&self, effective: &mut Effective) {
        fn set<T: Copy>(to: &mut T, own: Option<T>) {
            *to = own.unwrap_or(*to);
        }
        set(&mut effective.read_consistency, self.read_consistency);
        set(&mut effective.pool_mode, self.pool_mode);
        set(&mut effective.pool_size, self.pool_size);
        set(&mut effective.idle_timeout, self.idle_timeout);
        set(&mut effective.idle_in_transaction_timeout, self.idle_in_transaction_timeout);
    }
}

/// Reads the tables under `key`, those of them that are fine.
pub(super) fn read(r: &mut Reader, root: &mut Section, key: &str) -> BTreeMap<String, Own> {
    let sections = root.named_tables(r, key);
    let mut all = BTreeMap::new();
    for (name, mut section) in sections {
        let own = read_own(r, &mut section);
        section.finish(r);
        all.insert(name, own);
    }
    all
}

/// One of them; what is wrong with it is reported and left out.
pub(super) fn read_own(r: &mut Reader, section: &mut Section) -> Own {
    Own {
        read_consistency: word(r, section, "read_consistency", CONSISTENCIES),
        pool_mode: word(r, section, "pool_mode", MODES),
        pool_size: at_least_one(r, section, "pool_size", "0 would let nobody reach a server"),
        max_client_connections: section.optional(r, "max_client_connections"),
        idle_timeout: section.optional(r, "idle_timeout").map(limit),
        idle_in_transaction_timeout: section.optional(r, "idle_in_transaction_timeout").map(limit),
    }
}

fn word<T: Copy>(r: &mut Reader, section: &mut Section, key: &str, words: &[(&str, T)]) -> Option<T> {
    let text: String = section.optional(r, key)?;
    meaning(r, section, key, &text, words)
}

fn at_least_one<T: ConfigValue + PartialEq + From<u16>>(
    r: &mut Reader,
    section: &mut Section,
    key: &str,
    why: &str,
) -> Option<T> {
    let value: T = section.optional(r, key)?;
    if value == T::from(0) {
        let path = section.path_of(key);
        r.problem(&path, why);
        return None;
    }
    Some(value)
}

/// A span of 0 sets no limit.
pub(super) fn limit(span: Millis) -> Option<Duration> {
    Some(span.0).filter(|span| !span.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
        [cluster]
        name = 'demo'
        [proxy]
        name = 'proxy1'
        idle_timeout = '1h'
        [agents]
        addresses = ['10.0.0.1:7800']
        [auth]
        method = 'trust'
        [pool]
        size = 7
        [databases.app]
        pool_size = 5
        read_consistency = 'global'
        idle_timeout = '10min'
        [users.reporting]
        pool_size = 2
        pool_mode = 'session'
        idle_timeout = '0s'
        [users.\"O'Brien <x@y>\"]
        max_client_connections = 0
    ";

    #[test]
    fn the_user_goes_before_the_database_and_that_before_the_rest() {
        let config = Config::parse(TEXT).unwrap();
        let of = |user: &str, database: &str| config.effective(user, database);
        assert_eq!(of("ann", "other"), config.general);
        assert_eq!((config.general.pool_size, config.general.pool_mode), (7, PoolMode::Auto));
        let app = of("ann", "app");
        assert_eq!((app.pool_size, app.read_consistency), (5, Consistency::Global));
        assert_eq!((app.pool_mode, app.idle_timeout), (PoolMode::Auto, Some(Duration::from_secs(600))));
        let both = of("reporting", "app");
        assert_eq!((both.pool_size, both.pool_mode), (2, PoolMode::Session));
        assert_eq!((both.read_consistency, both.idle_timeout), (Consistency::Global, None));
        assert_eq!(config.users["O'Brien <x@y>"].max_client_connections, Some(0));
        assert_eq!(config.shortest_idle(), Some(Duration::from_secs(600)));
    }

    #[test]
    fn mistakes_in_them_are_told_with_their_names() {
        let bad = "[databases.\"my shop\"]\npool_size = 0\npool_mode = 'x'\npoolsize = 3\n[users]\nann = 3\n";
        let problems = Config::parse(&format!("{TEXT}{bad}")).unwrap_err();
        assert_eq!(problems.lines().len(), 4, "{problems}");
        let problems = problems.to_string();
        for part in [
            "databases.\"my shop\".pool_size: 0 would let nobody",
            "databases.\"my shop\".pool_mode: unknown word \"x\"; expected one of \"auto\"",
            "databases.\"my shop\".poolsize: unknown key; did you mean `pool_size`?",
            "users.ann: expected a table",
        ] {
            assert!(problems.contains(part), "{part} not in {problems}");
        }
    }
}
