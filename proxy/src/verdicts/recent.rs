//! Verdicts on texts that came lately, found by going along the text once: it is the same as one before, but for the
//! digits of numbers that cannot matter.

use std::sync::Arc;

use crate::sql::{Masked, Verdict};

/// So many are kept; a power of two.
const PLACES: usize = 64;

/// Longer texts are rarely those that come again and again.
const TEXT_MAX: usize = 512;

/// PostgreSQL has no longer names.
const NAME_MAX: usize = 63;

/// By so many bytes of its beginning a text finds its place.
const BEGINNING: usize = 32;

/// An odd number without a pattern (the golden ratio in 64 bits), to spread beginnings by.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

#[derive(Debug)]
struct Entry {
    /// The grounds on which the verdict rests.
    version: u64,
    database: Box<str>,
    text: Box<[u8]>,
    masked: Masked,
    verdict: Arc<Verdict>,
}

/// One place for each beginning of a text: who comes later takes it.
#[derive(Debug)]
pub(super) struct Recent(Box<[Option<Entry>]>);

impl Default for Recent {
    fn default() -> Self {
        Self((0..PLACES).map(|_| None).collect())
    }
}

impl Recent {
    /// The most that they can take.
    pub(super) const BYTES_MAX: usize = PLACES * (size_of::<Option<Entry>>() + TEXT_MAX + NAME_MAX);

    /// What they take.
    pub(super) fn bytes(&self) -> usize {
        let taken = self.0.iter().flatten().map(|entry| entry.text.len() + entry.database.len());
        size_of_val(&*self.0) + taken.sum::<usize>()
    }

    /// The verdict on a text that runs in `database`, if one like it came lately.
    pub(super) fn find(&self, version: u64, database: &str, sql: &[u8]) -> Option<Arc<Verdict>> {
        let entry = self.0.get(place(sql)).filter(|_| sql.len() <= TEXT_MAX)?.as_ref()?;
        let same = entry.version == version && is_like(&entry.text, &entry.masked, sql);
        (same && *entry.database == *database).then(|| entry.verdict.clone())
    }

    /// A verdict that is that of all texts with the same mask, or of those without numbers: of the very same.
    pub(super) fn note(
        &mut self,
        version: u64,
        database: &str,
        sql: &[u8],
        masked: &Masked,
        verdict: &Arc<Verdict>,
    ) {
        if sql.len() > TEXT_MAX || database.len() > NAME_MAX || masked.numbers().is_none() {
            return;
        }
        if let Some(entry) = self.0.get_mut(place(sql)) {
            let (database, text) = (database.into(), sql.into());
            *entry = Some(Entry { version, database, text, masked: *masked, verdict: verdict.clone() });
        }
    }
}

fn place(sql: &[u8]) -> usize {
    // Digits that differ are all the same in these bits.
    const KIND: u64 = 0xF0F0_F0F0_F0F0_F0F0;
    let words = sql.get(..sql.len().min(BEGINNING)).unwrap_or_default().as_chunks::<8>().0;
    let state = words.iter().fold(0, |state: u64, word| {
        (state ^ (u64::from_le_bytes(*word) & KIND)).wrapping_mul(SPREAD).rotate_left(23)
    });
    // Less than the number of places.
    usize::try_from(state % PLACES as u64).unwrap_or(0)
}

/// Whether `sql` is `text` with other digits in the places of the numbers that are masked in it.
fn is_like(text: &[u8], masked: &Masked, mut sql: &[u8]) -> bool {
    let mut from = 0;
    for (start, end) in masked.numbers().unwrap_or_default() {
        let between = text.get(from..*start).unwrap_or_default();
        let Some(rest) = sql.strip_prefix(between) else { return false };
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 {
            return false;
        }
        sql = rest.get(digits..).unwrap_or_default();
        from = *end;
    }
    text.get(from..) == Some(sql)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::{Route, mask};

    #[test]
    fn texts_that_differ_in_digits_alone_are_alike() {
        let is_like = |text: &str, other: &str| {
            let masked = mask(text.as_bytes(), &mut Vec::new()).unwrap();
            masked.numbers().is_some() && is_like(text.as_bytes(), &masked, other.as_bytes())
        };
        for (text, other) in [
            ("SELECT a FROM t WHERE b = 1", "SELECT a FROM t WHERE b = 23"),
            ("SELECT a FROM t WHERE b = 1 AND c = 2;", "SELECT a FROM t WHERE b = 007 AND c = 2;"),
            ("SELECT a FROM t", "SELECT a FROM t"),
            ("SELECT f(1), 2", "SELECT f(1), 3"),
        ] {
            assert!(is_like(text, other), "{other}");
        }
        for (text, other) in [
            ("SELECT a FROM t WHERE b = 1", "SELECT a FROM t WHERE b = 1.5"),
            ("SELECT a FROM t WHERE b = 1", "SELECT a FROM t WHERE b = 1e5"),
            ("SELECT a FROM t WHERE b = 1", "SELECT a FROM t WHERE b = -1"),
            ("SELECT a FROM t WHERE b = 1", "SELECT a FROM t WHERE b = "),
            ("SELECT a FROM t WHERE b = 1", "SELECT a FROM t WHERE b = 1 "),
            ("SELECT a FROM t WHERE b = 1", "SELECT a FROM u WHERE b = 1"),
            ("SELECT f(1), 2", "SELECT f(2), 2"),
            ("SELECT a FROM t WHERE b = 'c'", "SELECT a FROM t WHERE b = 'c'"),
            ("SELECT a FROM t WHERE b = 1.5", "SELECT a FROM t WHERE b = 1.5"),
        ] {
            assert!(!is_like(text, other), "{other}");
        }
    }

    #[test]
    fn what_is_found_rests_on_the_same_grounds_in_the_same_database() {
        let (mut recent, verdict) = (Recent::default(), Arc::new(Verdict::plain(Route::Read)));
        let text = b"SELECT a FROM t WHERE b = 1";
        recent.note(7, "d", text, &mask(text, &mut Vec::new()).unwrap(), &verdict);
        let find = |version, database| recent.find(version, database, b"SELECT a FROM t WHERE b = 2");
        assert!(find(7, "d").is_some_and(|found| Arc::ptr_eq(&found, &verdict)));
        assert!(find(8, "d").is_none() && find(7, "e").is_none());
    }
}
