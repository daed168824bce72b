//! Verdicts by text, so that a text is parsed once.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Facts, Route, Verdict, classify};

/// What is known of a database, with a number that changes when that does.
#[derive(Debug, Clone)]
pub struct Edition {
    /// The facts.
    pub facts: Arc<Facts>,
    /// Its number.
    pub number: u64,
}

#[derive(Debug, Clone)]
struct Entry {
    verdict: Arc<Verdict>,
    /// The facts that it rests on.
    edition: u64,
    /// A standby would not run it: it is no read, whatever it looks like.
    refused: bool,
}

/// Bounded in bytes: when the younger half is full, the older half is forgotten.
#[derive(Debug)]
pub struct VerdictCache {
    young: BTreeMap<Box<[u8]>, Entry>,
    old: BTreeMap<Box<[u8]>, Entry>,
    young_bytes: usize,
    half_bytes: usize,
}

/// About what a verdict and its tree node take.
const ENTRY_BYTES: usize = 176;

impl VerdictCache {
    /// An empty cache of about `bytes_max`.
    pub fn new(bytes_max: usize) -> Self {
        Self { young: BTreeMap::new(), old: BTreeMap::new(), young_bytes: 0, half_bytes: bytes_max / 2 }
    }

    /// The verdict on a text that runs in `database`.
    pub fn verdict(&mut self, database: &str, edition: &Edition, sql: &[u8]) -> Arc<Verdict> {
        let key = key(database, sql);
        if let Some(entry) = self.young.get(key.as_slice())
            && entry.edition == edition.number
        {
            return entry.verdict.clone();
        }
        let known = self.old.remove(key.as_slice()).or_else(|| self.young.get(key.as_slice()).cloned());
        let entry = match known {
            Some(entry) if entry.edition == edition.number => entry,
            Some(Entry { refused, .. }) => judge(edition, sql, refused),
            None => judge(edition, sql, false),
        };
        let verdict = entry.verdict.clone();
        self.insert(key, entry);
        verdict
    }

    /// A server refused to run this text in recovery.
    pub fn refused_by_standby(&mut self, database: &str, edition: &Edition, sql: &[u8]) {
        self.insert(key(database, sql), judge(edition, sql, true));
    }

    fn insert(&mut self, key: Vec<u8>, entry: Entry) {
        let bytes = key.len() + ENTRY_BYTES;
        if bytes > self.half_bytes {
            return;
        }
        if self.young_bytes + bytes > self.half_bytes {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        if self.young.insert(key.into(), entry).is_none() {
            self.young_bytes += bytes;
        }
    }
}

fn judge(edition: &Edition, sql: &[u8], refused: bool) -> Entry {
    let mut verdict = classify(sql, &edition.facts);
    if refused {
        verdict.route = Route::Primary;
    }
    Entry { verdict: Arc::new(verdict), edition: edition.number, refused }
}

/// No database's name has a zero byte in it.
fn key(database: &str, sql: &[u8]) -> Vec<u8> {
    [database.as_bytes(), b"\0", sql].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edition(number: u64) -> Edition {
        Edition { facts: Arc::new(Facts::by_names()), number }
    }

    #[test]
    fn the_cache_stays_within_its_bound_and_keeps_what_is_used() {
        let mut cache = VerdictCache::new(20_000);
        cache.refused_by_standby("d", &edition(1), b"SELECT hot");
        for n in 0..5_000 {
            cache.verdict("d", &edition(1), format!("SELECT {n}").as_bytes());
            assert_eq!(cache.verdict("d", &edition(1), b"SELECT hot").route, Route::Primary);
        }
        assert!(cache.young.len() + cache.old.len() <= 20_000 / ENTRY_BYTES);
    }

    #[test]
    fn a_text_that_a_standby_refused_is_no_read_any_more() {
        let mut cache = VerdictCache::new(100_000);
        assert_eq!(cache.verdict("d", &edition(1), b"SELECT a FROM t").route, Route::Read);
        cache.refused_by_standby("d", &edition(1), b"SELECT a FROM t");
        assert_eq!(cache.verdict("d", &edition(1), b"SELECT a FROM t").route, Route::Primary);
        assert_eq!(cache.verdict("d", &edition(2), b"SELECT a FROM t").route, Route::Primary);
        assert_eq!(cache.verdict("e", &edition(2), b"SELECT a FROM t").route, Route::Read);
    }

    #[test]
    fn a_verdict_lasts_as_long_as_the_facts_that_it_rests_on() {
        let mut cache = VerdictCache::new(100_000);
        let pending = Edition { facts: Arc::new(Facts::pending()), number: 1 };
        assert_eq!(cache.verdict("d", &pending, b"SELECT a FROM t").route, Route::Primary);
        assert_eq!(cache.verdict("d", &edition(2), b"SELECT a FROM t").route, Route::Read);
    }
}
