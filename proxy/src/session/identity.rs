//! Which prepared statements are the same one, whoever prepared them.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

/// Tells a prepared statement from others. That two which differ have one by chance is less likely than a fault of
/// the memory: nobody outside knows how they come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity(u128);

/// Gives them, to all sessions of a process.
#[derive(Debug, Default)]
pub struct Identities {
    key: RandomState,
    last: AtomicU64,
    /// Counts what may have changed the meaning of texts.
    epoch: AtomicU64,
}

impl Identities {
    /// One that nothing else has.
    pub(super) fn unique(&self) -> Identity {
        Identity(u128::from(self.last.fetch_add(1, Ordering::Relaxed)))
    }

    /// One that all have that were prepared with these bytes lately, under the same circumstances: with the settings of
    /// the login.
    pub(super) fn of(&self, body: &[u8]) -> Identity {
        let epoch = self.epoch.load(Ordering::Acquire);
        let half = |which: u8| u128::from(self.key.hash_one((which, epoch, body)));
        Identity(half(0) << 64 | half(1))
    }

    /// Texts may mean something else from now on.
    pub(super) fn renew(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
    }
}

/// Parts of literals that stand for what they name at the time when their statement is prepared: `'today'`,
/// `'t'::regclass`.
const TIMELY: &[&[u8]] = &[b"now", b"today", b"tomorrow", b"yesterday", b"reg"];

/// Whether it may matter when a text is prepared, even if nothing is altered in between.
pub(super) fn is_timely(sql: &[u8]) -> bool {
    let has = |word: &&[u8]| sql.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word));
    let is_quote = |pair: &[u8]| matches!(pair, [b'$', behind] if !behind.is_ascii_digit());
    (sql.contains(&b'\'') || sql.windows(2).any(is_quote)) && TIMELY.iter().any(has)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_may_stand_for_the_time_of_their_preparation() {
        for sql in ["SELECT 'today'::date", "SELECT date $$Now$$", "SELECT 't'::regclass"] {
            assert!(is_timely(sql.as_bytes()), "{sql}");
        }
        for sql in ["SELECT now() - $1", "SELECT 'then'", "SELECT $1::regclass", "SELECT * FROM today"] {
            assert!(!is_timely(sql.as_bytes()), "{sql}");
        }
    }

    #[test]
    fn only_what_is_equal_and_was_prepared_under_equal_circumstances_is_the_same() {
        let identities = Identities::default();
        let one = identities.of(b"SELECT 1\0\0\0");
        assert_eq!(identities.of(b"SELECT 1\0\0\0"), one);
        assert_ne!(identities.of(b"SELECT 2\0\0\0"), one);
        assert_ne!(Identities::default().of(b"SELECT 1\0\0\0"), one, "nobody can foresee them");
        assert_ne!(identities.unique(), identities.unique());
        identities.renew();
        assert_ne!(identities.of(b"SELECT 1\0\0\0"), one);
    }
}
