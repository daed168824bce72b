//! Verdicts by text, so that a text is parsed once.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{FunctionFacts, Route, Verdict, classify};

/// Bounded in bytes: when the younger half is full, the older half is forgotten.
#[derive(Debug)]
pub struct VerdictCache {
    facts: FunctionFacts,
    young: BTreeMap<Box<[u8]>, Arc<Verdict>>,
    old: BTreeMap<Box<[u8]>, Arc<Verdict>>,
    young_bytes: usize,
    half_bytes: usize,
}

/// About what a verdict and its tree node take.
const ENTRY_BYTES: usize = 160;

impl VerdictCache {
    /// An empty cache of about `bytes_max`.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            facts: FunctionFacts,
            young: BTreeMap::new(),
            old: BTreeMap::new(),
            young_bytes: 0,
            half_bytes: bytes_max / 2,
        }
    }

    /// The verdict on a text.
    pub fn verdict(&mut self, sql: &[u8]) -> Arc<Verdict> {
        if let Some(verdict) = self.young.get(sql) {
            return verdict.clone();
        }
        let verdict = self.old.remove(sql).unwrap_or_else(|| Arc::new(classify(sql, &self.facts)));
        self.insert(sql, verdict.clone());
        verdict
    }

    /// A server refused to run this text in recovery: it is no read, whatever it looks like.
    pub fn refused_by_standby(&mut self, sql: &[u8]) {
        let known = self.verdict(sql);
        self.insert(sql, Arc::new(Verdict { route: Route::Primary, ..(*known).clone() }));
    }

    fn insert(&mut self, sql: &[u8], verdict: Arc<Verdict>) {
        let bytes = sql.len() + ENTRY_BYTES;
        if bytes > self.half_bytes {
            return;
        }
        if self.young_bytes + bytes > self.half_bytes {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        if self.young.insert(sql.into(), verdict).is_none() {
            self.young_bytes += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_stays_within_its_bound_and_keeps_what_is_used() {
        let mut cache = VerdictCache::new(20_000);
        cache.refused_by_standby(b"SELECT hot");
        for n in 0..5_000 {
            cache.verdict(format!("SELECT {n}").as_bytes());
            assert_eq!(cache.verdict(b"SELECT hot").route, Route::Primary);
        }
        assert!(cache.young.len() + cache.old.len() <= 20_000 / ENTRY_BYTES);
    }

    #[test]
    fn a_text_that_a_standby_refused_is_no_read_any_more() {
        let mut cache = VerdictCache::new(100_000);
        assert_eq!(cache.verdict(b"SELECT a FROM t").route, Route::Read);
        cache.refused_by_standby(b"SELECT a FROM t");
        assert_eq!(cache.verdict(b"SELECT a FROM t").route, Route::Primary);
    }
}
