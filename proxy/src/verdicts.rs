//! Verdicts that were reached before: a text is parsed once, and so are all that differ in inert literals alone.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

mod recent;

use recent::Recent;

use crate::control::lock;
use crate::memory::Usage;
use crate::sql::{Edition, Route, Verdict, classify, is_shared, mask};
use crate::upstream::Catalogs;

/// What verdicts rest on.
pub trait Grounds {
    /// A number that is another one once anything of it has changed.
    fn version(&self) -> u64;

    /// What is known of a database by now.
    fn edition(&self, database: &str) -> Edition;

    /// Whether a standby refused to run what this key stands for.
    fn is_refused(&self, _key: &[u8]) -> bool {
        false
    }
}

/// One state of one database, and no refusals.
impl Grounds for Edition {
    fn version(&self) -> u64 {
        self.number
    }

    fn edition(&self, _: &str) -> Edition {
        self.clone()
    }
}

impl Grounds for Catalogs {
    fn version(&self) -> u64 {
        self.version()
    }

    fn edition(&self, database: &str) -> Edition {
        self.edition(database)
    }
}

#[derive(Debug)]
struct Entry {
    verdict: Arc<Verdict>,
    /// The facts that it rests on.
    edition: u64,
    /// The grounds against which that was looked at last.
    version: u64,
    /// It holds for all that look like that when masked, and not just for that very text; `None` when no other was
    /// there yet to tell.
    shared: Option<bool>,
    /// A standby would not run it: it is no read, whatever it looks like.
    refused: bool,
}

/// What an entry came to.
enum Found {
    Verdict(Arc<Verdict>),
    /// It holds for another text alone.
    Anothers,
    /// It is to be judged anew.
    Stale {
        refused: bool,
    },
}

/// Verdicts by database and text, within a bound of bytes. A text whose shape shares a verdict needs no memory of its
/// own, neither to be kept nor to be looked up.
#[derive(Debug)]
pub struct VerdictCache {
    entries: Halves<Entry>,
    recent: Recent,
    key: Vec<u8>,
}

/// About what an entry takes beside its key: a table is half empty at worst.
const ENTRY_BYTES: usize = size_of::<Verdict>() + 2 * size_of::<(Box<[u8]>, Entry)>() + 2 * ALLOCATION_BYTES;

/// What an allocation costs beside its content.
const ALLOCATION_BYTES: usize = 16;

/// The memory for keys of longer texts is given back.
const KEY_BYTES: usize = 32 << 10;

impl VerdictCache {
    /// An empty cache of about `bytes_max`.
    pub fn new(bytes_max: usize) -> Self {
        Self { entries: Halves::new(bytes_max, ENTRY_BYTES), recent: Recent::default(), key: Vec::new() }
    }

    /// The verdict on a text that runs in `database`.
    pub fn verdict(&mut self, grounds: &impl Grounds, database: &str, sql: &[u8]) -> Arc<Verdict> {
        let version = grounds.version();
        if let Some(verdict) = self.recent.find(version, database, sql) {
            return verdict;
        }
        let begin = begin(&mut self.key, database);
        if let Some(masked) = mask(sql, &mut self.key)
            && let Some(verdict) = self.by_key(grounds, version, database, sql)
        {
            if masked.numbers() == Some(&[]) || self.is_shared() {
                self.recent.note(version, database, sql, &masked, &verdict);
            }
            return verdict;
        }
        self.key.truncate(begin);
        self.key.extend_from_slice(sql);
        let verdict = self.by_key(grounds, version, database, sql);
        if self.key.capacity() > KEY_BYTES {
            self.key = Vec::new();
        }
        // It is always found by its own text.
        verdict.unwrap_or_else(|| Arc::new(Verdict::unknown()))
    }

    fn usage(&self) -> Usage {
        self.entries.usage().and(Usage { number: 0, bytes: self.recent.bytes() })
    }

    /// Whether the verdict by the key is that of all that have it.
    fn is_shared(&self) -> bool {
        self.entries.young.get(self.key.as_slice()).is_some_and(|entry| entry.shared == Some(true))
    }

    /// `None` when there is none for all that have this key.
    fn by_key(
        &mut self,
        grounds: &impl Grounds,
        version: u64,
        database: &str,
        sql: &[u8],
    ) -> Option<Arc<Verdict>> {
        let Self { entries, key, .. } = self;
        let text = key.get(database.len() + 1..).unwrap_or_default();
        let found = entries.with(key, |entry| {
            if entry.version != version {
                let refused = entry.refused || grounds.is_refused(key);
                if entry.edition != grounds.edition(database).number || entry.refused != refused {
                    return Found::Stale { refused };
                }
                entry.version = version;
            }
            match entry.shared {
                Some(true) => Found::Verdict(entry.verdict.clone()),
                _ if text == sql => Found::Verdict(entry.verdict.clone()),
                Some(false) => Found::Anothers,
                None => Found::Stale { refused: entry.refused },
            }
        });
        let refused = match found {
            Some(Found::Verdict(verdict)) => return Some(verdict),
            Some(Found::Anothers) => return None,
            Some(Found::Stale { refused }) => refused,
            None => grounds.is_refused(key),
        };
        let edition = grounds.edition(database);
        let (mut verdict, own) = (classify(text, &edition.facts), text == sql);
        let shared = (!own).then(|| is_shared(text, &verdict) && verdict == classify(sql, &edition.facts));
        if refused {
            verdict.route = Route::Primary;
        }
        let verdict = Arc::new(verdict);
        let entry = Entry { verdict: verdict.clone(), edition: edition.number, version, shared, refused };
        entries.insert(key.as_slice().into(), entry);
        shared.unwrap_or(own).then_some(verdict)
    }
}

/// What all threads know of verdicts, each with a cache of its own.
#[derive(Debug)]
pub(crate) struct Verdicts {
    /// Each is used by one thread as long as there are no more threads than caches.
    caches: Box<[Mutex<VerdictCache>]>,
    refusals: Refusals,
    bytes_max: usize,
}

/// Texts, as they are and masked, that a standby refused to run in recovery.
#[derive(Debug)]
struct Refusals {
    keys: Mutex<Halves<()>>,
    /// Counts them.
    count: AtomicU64,
}

impl Verdicts {
    /// Caches for as many threads, of about `bytes_max` together.
    pub(crate) fn new(threads: usize, bytes_max: usize) -> Self {
        let threads = threads.max(1);
        let cache = |_| Mutex::new(VerdictCache::new(bytes_max / threads));
        let entry_bytes = 2 * size_of::<(Box<[u8]>, ())>() + ALLOCATION_BYTES;
        let keys = Mutex::new(Halves::new(bytes_max / threads, entry_bytes));
        Self {
            caches: (0..threads).map(cache).collect(),
            refusals: Refusals { keys, count: AtomicU64::new(0) },
            bytes_max: bytes_max + bytes_max / threads + threads * Recent::BYTES_MAX,
        }
    }

    /// The verdict on a text that runs in `database`.
    pub(crate) fn verdict(&self, catalogs: &impl Grounds, database: &str, sql: &[u8]) -> Arc<Verdict> {
        let grounds = Now { catalogs, refusals: &self.refusals };
        match self.caches.get(thread() % self.caches.len()) {
            Some(cache) => lock(cache).verdict(&grounds, database, sql),
            None => Arc::new(Verdict::unknown()),
        }
    }

    /// What they take, those that tell of refusals among them, and the most that it can be.
    pub(crate) fn usage(&self) -> (Usage, usize) {
        let verdicts = self.caches.iter().map(|cache| lock(cache).usage());
        let usage = verdicts.fold(lock(&self.refusals.keys).usage(), Usage::and);
        (usage, self.bytes_max)
    }

    /// A number that is another one once any verdict may be another one.
    pub(crate) fn version(&self, catalogs: &impl Grounds) -> u64 {
        Now { catalogs, refusals: &self.refusals }.version()
    }

    /// A standby refused to run these texts in recovery: they, and all that look like them, are no reads.
    pub(crate) fn refused_by_standby<'a>(&self, database: &str, texts: impl Iterator<Item = &'a [u8]>) {
        let mut keys = lock(&self.refusals.keys);
        let mut key = Vec::new();
        for text in texts {
            let begin = begin(&mut key, database);
            if mask(text, &mut key).is_some() {
                keys.insert(key.as_slice().into(), ());
            }
            key.truncate(begin);
            key.extend_from_slice(text);
            keys.insert(key.as_slice().into(), ());
        }
        self.refusals.count.fetch_add(1, Ordering::Release);
    }
}

/// The grounds of the whole process.
struct Now<'a, C> {
    catalogs: &'a C,
    refusals: &'a Refusals,
}

impl<C: Grounds> Grounds for Now<'_, C> {
    fn version(&self) -> u64 {
        // Neither ever becomes less.
        self.catalogs.version().wrapping_add(self.refusals.count.load(Ordering::Acquire))
    }

    fn edition(&self, database: &str) -> Edition {
        self.catalogs.edition(database)
    }

    fn is_refused(&self, key: &[u8]) -> bool {
        lock(&self.refusals.keys).with(key, |()| ()).is_some()
    }
}

/// A number of this thread's own.
fn thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    OWN.try_with(|own| *own).unwrap_or_default()
}

/// Puts the part of a key that stands for the database; returns its length. No database's name has a zero byte in it.
fn begin(key: &mut Vec<u8>, database: &str) -> usize {
    key.clear();
    key.extend_from_slice(database.as_bytes());
    key.push(0);
    key.len()
}

/// A map with a bound in bytes: when the younger half is full, the older half is forgotten.
#[derive(Debug)]
struct Halves<V> {
    young: HashMap<Box<[u8]>, V, Seed>,
    old: HashMap<Box<[u8]>, V, Seed>,
    young_bytes: usize,
    old_bytes: usize,
    half_bytes: usize,
    /// What an entry takes beside its key.
    entry_bytes: usize,
}

impl<V> Halves<V> {
    fn new(bytes_max: usize, entry_bytes: usize) -> Self {
        let (young, old) = (HashMap::with_hasher(Seed::random()), HashMap::with_hasher(Seed::random()));
        Self { young, old, young_bytes: 0, old_bytes: 0, half_bytes: bytes_max / 2, entry_bytes }
    }

    fn usage(&self) -> Usage {
        // What became young again counts for both until the older half is forgotten.
        Usage { number: self.young.len() + self.old.len(), bytes: self.young_bytes + self.old_bytes }
    }

    /// What `then` makes of the value of a key, which counts as young from now on.
    fn with<T>(&mut self, key: &[u8], then: impl FnOnce(&mut V) -> T) -> Option<T> {
        if let Some(value) = self.young.get_mut(key) {
            return Some(then(value));
        }
        let (key, mut value) = self.old.remove_entry(key)?;
        let result = then(&mut value);
        self.insert(key, value);
        Some(result)
    }

    fn insert(&mut self, key: Box<[u8]>, value: V) {
        let bytes = key.len() + self.entry_bytes;
        if bytes > self.half_bytes {
            return;
        }
        if self.young_bytes + bytes > self.half_bytes {
            std::mem::swap(&mut self.old, &mut self.young);
            self.young.clear();
            (self.old_bytes, self.young_bytes) = (self.young_bytes, 0);
        }
        if self.young.insert(key, value).is_none() {
            self.young_bytes += bytes;
        }
    }
}

/// A quick hash. Clients choose the texts: where they fall must not be known to them.
#[derive(Debug, Clone, Copy)]
struct Seed([u64; 2]);

impl Seed {
    fn random() -> Self {
        Self([RandomState::new().build_hasher().finish(), RandomState::new().build_hasher().finish() | 1])
    }
}

impl BuildHasher for Seed {
    type Hasher = Folded;

    fn build_hasher(&self) -> Folded {
        let Self([state, factor]) = *self;
        Folded { state, factor }
    }
}

/// Eight bytes at a time, by multiplication with the halves of the product put over each other.
struct Folded {
    state: u64,
    factor: u64,
}

impl Folded {
    fn add(&mut self, word: u64) {
        let product = u128::from(self.state ^ word) * u128::from(self.factor);
        // Both halves are meant.
        self.state = (product as u64) ^ ((product >> 64) as u64);
    }
}

impl Hasher for Folded {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.add(u64::from_le_bytes(*word)));
        let mut last = [0; 8];
        last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        self.add(u64::from_le_bytes(last));
    }

    fn write_usize(&mut self, len: usize) {
        self.add(len as u64);
    }

    fn finish(&self) -> u64 {
        self.state.rotate_left(29).wrapping_mul(self.factor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sql::Facts;

    fn edition(number: u64) -> Edition {
        Edition { facts: Arc::new(Facts::by_names()), number }
    }

    /// With texts that were refused.
    #[derive(Default)]
    struct Refusing(u64, Vec<&'static [u8]>);

    impl Grounds for Refusing {
        fn version(&self) -> u64 {
            self.0
        }

        fn edition(&self, _: &str) -> Edition {
            edition(1)
        }

        fn is_refused(&self, key: &[u8]) -> bool {
            self.1.contains(&key)
        }
    }

    #[test]
    fn the_cache_stays_within_its_bound_and_keeps_what_is_used() {
        let mut cache = VerdictCache::new(100_000);
        let hot = cache.verdict(&edition(1), "d", b"SELECT hot");
        for n in 0..5_000 {
            cache.verdict(&edition(1), "d", format!("SELECT a{n}").as_bytes());
            cache.verdict(&edition(1), "d", format!("LISTEN a{n}").as_bytes());
            assert!(Arc::ptr_eq(&hot, &cache.verdict(&edition(1), "d", b"SELECT hot")), "it was not kept");
            let Halves { young, old, young_bytes, .. } = &cache.entries;
            assert!(young.len() + old.len() <= 100_000 / ENTRY_BYTES && *young_bytes <= 50_000);
        }
        let longest = format!("LISTEN {}", "a".repeat(100_000));
        cache.verdict(&edition(1), "d", longest.as_bytes());
        assert!(cache.entries.young_bytes <= 50_000 && cache.key.capacity() <= KEY_BYTES);
    }

    #[test]
    fn texts_that_differ_in_inert_literals_share_a_verdict() {
        let mut cache = VerdictCache::new(100_000);
        let mut verdict = |sql: &str| cache.verdict(&edition(1), "d", sql.as_bytes());
        // The first is its own mask.
        let first = verdict("SELECT a FROM t WHERE b = 0");
        let second = verdict("SELECT a FROM t WHERE b = 1");
        assert_eq!(first, second);
        assert!(Arc::ptr_eq(&second, &verdict("SELECT a FROM t WHERE b = 2")));
        assert!(Arc::ptr_eq(&second, &verdict("SELECT a FROM t WHERE b = 0")));
        let [ab, cd] =
            ["SELECT set_config('a', 'b', false)", "SELECT set_config('c', 'd', false)"].map(&mut verdict);
        assert_ne!(ab, cd);
        let [ten, eleven] = ["SELECT f(), 10", "SELECT f(), 11"].map(&mut verdict);
        assert!(
            ten == eleven && !Arc::ptr_eq(&ten, &eleven),
            "what does something to the session is not shared"
        );
        assert!(Arc::ptr_eq(&eleven, &verdict("SELECT f(), 11")));
    }

    #[test]
    fn a_text_that_a_standby_refused_is_no_read_any_more_nor_is_what_looks_like_it() {
        let mut cache = VerdictCache::new(100_000);
        let mut grounds = Refusing::default();
        let mut route = |grounds: &Refusing, database: &str, sql: &str| {
            cache.verdict(grounds, database, sql.as_bytes()).route
        };
        for sql in ["SELECT a FROM t WHERE b = 1", "TABLE t"] {
            assert_eq!(route(&grounds, "d", sql), Route::Read);
        }
        grounds = Refusing(1, vec![b"d\0SELECT a FROM t WHERE b = 0", b"d\0TABLE t"]);
        for sql in ["SELECT a FROM t WHERE b = 1", "SELECT a FROM t WHERE b = 2", "TABLE t"] {
            assert_eq!(route(&grounds, "d", sql), Route::Primary);
            assert_eq!(route(&grounds, "e", sql), Route::Read);
        }
        // The list of refusals has an end, too.
        grounds = Refusing(2, vec![]);
        assert_eq!(route(&grounds, "d", "SELECT a FROM t WHERE b = 3"), Route::Primary);
    }

    #[test]
    fn refusals_reach_every_thread() {
        let verdicts = Arc::new(Verdicts::new(2, 1 << 20));
        let route = |verdicts: &Verdicts, sql: &str| verdicts.verdict(&edition(1), "d", sql.as_bytes()).route;
        assert_eq!(route(&verdicts, "SELECT a FROM t WHERE b = 1"), Route::Read);
        let other = verdicts.clone();
        let thread = std::thread::spawn(move || {
            other.refused_by_standby("d", [b"SELECT a FROM t WHERE b = 2".as_slice()].into_iter());
        });
        thread.join().unwrap();
        assert_eq!(route(&verdicts, "SELECT a FROM t WHERE b = 1"), Route::Primary);
        assert_eq!(route(&verdicts, "SELECT a FROM t"), Route::Read);
    }

    #[test]
    fn a_verdict_lasts_as_long_as_the_facts_that_it_rests_on() {
        let mut cache = VerdictCache::new(100_000);
        let pending = Edition { facts: Arc::new(Facts::pending()), number: 1 };
        assert_eq!(cache.verdict(&pending, "d", b"SELECT a FROM t WHERE b = 1").route, Route::Primary);
        assert_eq!(cache.verdict(&edition(2), "d", b"SELECT a FROM t WHERE b = 2").route, Route::Read);
    }

    proptest! {
        #[test]
        fn the_cache_gives_the_verdict_of_the_text_itself(
            texts in proptest::collection::vec(
                "(SELECT a FROM t WHERE b = X|INSERT INTO t VALUES \\(X, X\\)|SELECT set_config\\(X, X, false\\)|SELECT X::regclass, f\\(X\\)|UPDATE t SET a = X WHERE lastval\\(\\) = X)",
                1..20,
            ),
            literals in proptest::collection::vec("([0-9]{1,3}|'[a-c]{0,2}'|'pg_temp'|'synchronous_commit'|\\$1|E'x')", 1..6),
        ) {
            let (facts, mut cache) = (Facts::by_names(), VerdictCache::new(20_000));
            let mut literals = literals.iter().cycle();
            for text in texts {
                let mut parts = text.split('X');
                let mut sql = parts.next().unwrap_or_default().to_owned();
                parts.for_each(|part| sql.extend([literals.next().map_or("", String::as_str), part]));
                let expected = classify(sql.as_bytes(), &facts);
                prop_assert_eq!(&*cache.verdict(&edition(1), "d", sql.as_bytes()), &expected, "{}", sql);
            }
        }
    }
}
