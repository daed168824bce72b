//! Temporary objects of a session, which only its connection to the primary has: what may mean one of them
//! runs there, and everything else need not.

use std::collections::BTreeSet;

use crate::sql::{Effect, Route, Verdict};

/// Whoever makes more of them stays with the primary.
const NAMES_MAX: usize = 1_000;

/// The names of all temporary objects of a session, and perhaps of others.
#[derive(Debug, Default)]
pub(super) struct Temporaries {
    all: BTreeSet<String>,
    /// Those that were made, and not dropped since as far as texts tell.
    there: BTreeSet<String>,
}

impl Temporaries {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether one of them is there, as far as texts tell.
    pub(super) fn are_there(&self) -> bool {
        !self.there.is_empty()
    }

    /// One of this name was made.
    pub(super) fn on_made(&mut self, name: &str) {
        if self.there.len() < NAMES_MAX {
            self.there.insert(name.to_owned());
        }
    }

    /// One that has this name, if there is one, is gone.
    pub(super) fn on_dropped(&mut self, name: &str) {
        self.there.remove(name);
    }

    pub(super) fn forget(&mut self) {
        self.all.clear();
        self.there.clear();
    }

    /// Takes note of what a statement may have done to them. Whether they can still be told by their names.
    pub(super) fn on_effect(&mut self, effect: &Effect) -> bool {
        match effect {
            Effect::Temporary(name) => self.enter(name),
            Effect::LikelyTemporary(name) if !self.is_empty() => self.enter(name),
            Effect::Mingles => self.is_empty(),
            _ => true,
        }
    }

    fn enter(&mut self, name: &str) -> bool {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let followed = name.chars().all(plain) && self.all.len() < NAMES_MAX;
        if followed {
            self.all.insert(name.to_owned());
        }
        followed
    }

    /// Where a text with this verdict may run. A name in it may stand for anything: a relation, a type, a word in a
    /// string.
    pub(super) fn route(&self, verdict: &Verdict, text: Option<&[u8]>) -> Route {
        let elsewhere = verdict.route == Route::Read
            && !self.is_empty()
            && !(verdict.spelled_out && text.is_some_and(|text| !self.are_named_in(text)));
        if elsewhere { Route::Primary } else { verdict.route }
    }

    fn are_named_in(&self, text: &[u8]) -> bool {
        let in_word = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | 0x80..);
        // Names can be written in escapes, too.
        let escapes = text.windows(2).any(|pair| pair.eq_ignore_ascii_case(b"u&"));
        let mut words = text.split(|byte| !in_word(byte)).filter(|word| !word.is_empty());
        escapes
            || words.any(|word| {
                std::str::from_utf8(word).is_ok_and(|word| self.all.contains(&word.to_ascii_lowercase()))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(names: &[&str]) -> Temporaries {
        let mut temporaries = Temporaries::default();
        for name in names {
            assert!(temporaries.on_effect(&Effect::Temporary((*name).to_owned())));
        }
        temporaries
    }

    fn route(temporaries: &Temporaries, text: &str) -> Route {
        temporaries.route(&Verdict::plain(Route::Read), Some(text.as_bytes()))
    }

    #[test]
    fn only_what_may_mean_a_temporary_object_stays_with_the_primary() {
        let temporaries = of(&["mine"]);
        for text in [
            "SELECT * FROM mine",
            "SELECT a FROM t JOIN MINE m USING (a)",
            "SELECT * FROM \"mine\"",
            "SELECT row(1)::mine",
            "SELECT * FROM pg_class WHERE relname = 'mine'",
            "SELECT * FROM U&\"\\006dine\"",
        ] {
            assert_eq!(route(&temporaries, text), Route::Primary, "{text}");
        }
        for text in ["SELECT * FROM t", "SELECT * FROM mine_too", "SELECT undermine FROM t", "SELECT $1"] {
            assert_eq!(route(&temporaries, text), Route::Read, "{text}");
            assert_eq!(route(&of(&[]), text), Route::Read, "{text}");
        }
        assert_eq!(route(&of(&[]), "SELECT * FROM mine"), Route::Read);
    }

    #[test]
    fn what_finds_names_by_itself_stays_with_the_primary() {
        let verdict = Verdict { spelled_out: false, ..Verdict::plain(Route::Read) };
        assert_eq!(of(&["mine"]).route(&verdict, Some(b"SELECT f()")), Route::Primary);
        assert_eq!(of(&["mine"]).route(&Verdict::plain(Route::Read), None), Route::Primary);
        assert_eq!(of(&[]).route(&verdict, None), Route::Read);
    }

    #[test]
    fn names_that_cannot_be_told_in_a_text_are_not_followed() {
        assert!(!of(&[]).on_effect(&Effect::Temporary("a b".to_owned())));
        assert!(!of(&[]).on_effect(&Effect::Temporary("Mine".to_owned())));
        let mut none = of(&[]);
        assert!(none.on_effect(&Effect::Mingles) && none.on_effect(&Effect::LikelyTemporary("v".to_owned())));
        assert!(none.is_empty());
        let mut some = of(&["mine"]);
        assert!(
            !some.on_effect(&Effect::Mingles) && some.on_effect(&Effect::LikelyTemporary("v".to_owned()))
        );
        assert_eq!(route(&some, "SELECT * FROM v"), Route::Primary);
    }
}
