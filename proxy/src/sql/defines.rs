//! Which names mean something else, to readers, once a statement is done.

use super::classify::words_of;
use super::facts::{Facts, Standing};
use super::spaced::without_comments;

/// A name that gets a new meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defined {
    /// As PostgreSQL folds it.
    pub name: String,
    /// How a function of that name stands to the session that calls it, as far as its text tells.
    pub standing: Standing,
}

/// Kinds of things that readers may meet under a name, and must know of.
const KINDS: &[&str] = &[
    "view",
    "function",
    "procedure",
    "routine",
    "aggregate",
    "sequence",
    "unlogged",
    "logged",
    "foreign",
    "rule",
    "extension",
    "schema",
    "rename",
    // A range has functions of its own.
    "type",
];

/// What may stand between `CREATE` and a name beside its kind.
const FILLERS: &[&str] = &[
    "or",
    "replace",
    "local",
    "global",
    "temp",
    "temporary",
    "recursive",
    "materialized",
    "table",
    "if",
    "not",
    "exists",
    "authorization",
];

/// Whatever is altered is named by then.
const WORDS_MAX: usize = 100;

/// Names that mean something else, to readers, once this is done; `None` when it defines nothing of that
/// kind. Rather too many.
pub(super) fn defines(text: &str, facts: &Facts) -> Option<Vec<Defined>> {
    let found = defined_in(text, facts);
    // A comment may stand between the words.
    let bare = (text.contains("--") || text.contains("/*")).then(|| without_comments(text));
    let more = bare.and_then(|bare| defined_in(&bare, facts));
    match (found, more) {
        (Some(found), Some(more)) => Some(found.into_iter().chain(more).collect()),
        (found, more) => found.or(more),
    }
}

fn defined_in(text: &str, facts: &Facts) -> Option<Vec<Defined>> {
    let (mut found, mut rest) = (None, text);
    while let Some((word, behind)) = next_word(rest) {
        rest = behind;
        let more = match word.to_ascii_lowercase().as_str() {
            "create" => created(behind, facts),
            "alter" => altered(behind),
            // What is gone means nothing else. What is imported was not known.
            "drop" | "import" => kind_in(behind).map(|_| Vec::new()),
            _ => None,
        };
        if let Some(more) = more {
            found.get_or_insert_with(Vec::new).extend(more);
        }
    }
    found
}

fn created(definition: &str, facts: &Facts) -> Option<Vec<Defined>> {
    let (mut rest, mut kind) = (definition, None);
    while let Some((word, behind)) = next_word(rest).filter(|_| !starts_quoted(rest)) {
        let word = word.to_ascii_lowercase();
        match KINDS.iter().find(|known| **known == word) {
            Some(known) => kind = Some(*known),
            None if FILLERS.contains(&word.as_str()) => {}
            None => break,
        }
        rest = behind;
    }
    let kind = kind?;
    // It makes a view of a table that is named further behind.
    if kind == "rule" {
        return Some(names_in(definition, &|_| true));
    }
    let name = name(rest)?;
    let leaves_nothing = || facts.leaves_nothing(rest, std::slice::from_ref(&name));
    let harmless = match kind {
        "type" => true,
        "aggregate" => leaves_nothing(),
        "function" | "procedure" => is_legible(rest) && leaves_nothing(),
        _ => false,
    };
    let standing = if harmless { Standing::Stateless } else { Standing::Unknown };
    Some(vec![Defined { name, standing }])
}

fn altered(definition: &str) -> Option<Vec<Defined>> {
    let is_name = |word: &&str| {
        let word = word.to_ascii_lowercase();
        !KINDS.contains(&word.as_str()) && !FILLERS.contains(&word.as_str()) && word != "to"
    };
    (kind_in(definition)? != "type").then(|| names_in(definition, &is_name))
}

/// All that may be a name, up to the end of the statement: words, and what stands in quotes.
fn names_in(definition: &str, is_name: &dyn Fn(&&str) -> bool) -> Vec<Defined> {
    let statement = definition.split(';').next().unwrap_or_default();
    let words = statement.split(|c: char| !in_name(c)).filter(|word| !word.is_empty());
    let quoted = statement.split('"').skip(1).step_by(2).map(str::to_owned);
    let names = words.take(WORDS_MAX).filter(is_name).map(str::to_ascii_lowercase).chain(quoted);
    names.map(|name| Defined { name, standing: Standing::Unknown }).collect()
}

fn in_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$') || !c.is_ascii()
}

fn kind_in(definition: &str) -> Option<&'static str> {
    let statement = definition.split(';').next().unwrap_or_default();
    let mut words = words_of(statement).take(WORDS_MAX);
    words.find_map(|word| KINDS.iter().copied().find(|kind| word.eq_ignore_ascii_case(kind)))
}

/// Whether it is written in a language whose text can be looked at.
fn is_legible(code: &str) -> bool {
    let known = |name: &str| ["sql", "plpgsql"].iter().any(|known| name.eq_ignore_ascii_case(known));
    let is_named = |(before, _): &(&str, &str)| before.eq_ignore_ascii_case("language");
    // A parameter may be called like that.
    let mut languages = words_of(code).zip(words_of(code).skip(1)).filter(is_named).peekable();
    languages.peek().is_some() && languages.all(|(_, name)| known(name))
}

/// The last part of the name at the beginning of a text.
fn name(text: &str) -> Option<String> {
    let text = text.trim_start();
    let (part, rest) = match text.strip_prefix('"') {
        Some(quoted) => {
            let (part, rest) = quoted.split_once('"')?;
            let (mut part, mut rest) = (part.to_owned(), rest);
            while let Some((more, behind)) = rest.strip_prefix('"').and_then(|rest| rest.split_once('"')) {
                part = format!("{part}\"{more}");
                rest = behind;
            }
            (part, rest)
        }
        None => {
            let word = text.get(text.find(in_name)?..)?;
            let (word, rest) = word.split_at(word.find(|c| !in_name(c)).unwrap_or(word.len()));
            (word.to_ascii_lowercase(), rest)
        }
    };
    match rest.trim_start().strip_prefix('.') {
        Some(rest) => name(rest),
        None => Some(part),
    }
}

fn starts_quoted(text: &str) -> bool {
    text.trim_start().starts_with('"')
}

/// The first word of a text, and what follows it.
fn next_word(text: &str) -> Option<(&str, &str)> {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    let word = text.get(text.find(in_word)?..)?;
    Some(word.split_at(word.find(|c: char| !in_word(c)).unwrap_or(word.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Option<Vec<String>> {
        let found = defines(text, &Facts::by_names())?;
        Some(found.into_iter().map(|defined| defined.name).collect())
    }

    #[test]
    fn only_names_that_get_a_new_meaning_are_found() {
        for (text, expected) in [
            ("CREATE OR REPLACE VIEW public.v AS SELECT count(*) FROM t", &["v"][..]),
            ("create unlogged table if not exists u (a int)", &["u"]),
            ("CREATE FUNCTION app.f(count int) RETURNS int LANGUAGE sql AS 'SELECT sum(1)'", &["f"]),
            ("CREATE SEQUENCE \"My s\"", &["My s"]),
            ("CREATE FOREIGN TABLE ft (a int) SERVER s", &["ft"]),
            ("CREATE SCHEMA s CREATE VIEW v AS SELECT 1", &["s", "v"]),
            ("SELECT 1; CREATE VIEW a AS SELECT 1; CREATE VIEW b AS SELECT 2", &["a", "b"]),
            ("ALTER VIEW v RENAME TO w", &["v", "w"]),
            ("ALTER VIEW \"V w\" RENAME TO X", &["v", "w", "x", "V w"]),
            ("ALTER TABLE t SET UNLOGGED", &["t", "set"]),
            ("DROP FUNCTION f(int)", &[]),
        ] {
            let expected: Vec<String> = expected.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(names(text), Some(expected), "{text}");
        }
        for text in ["CREATE TABLE t (view int)", "CREATE INDEX ON t (a)", "DROP TABLE t", "SELECT 1"] {
            assert_eq!(names(text), None, "{text}");
        }
    }
}
