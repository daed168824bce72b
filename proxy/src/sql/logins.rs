//! Statements after which a new login finds something else than one before: roles, databases, and what
//! they set.

use super::Effect;

/// Looks at the words of a text, which may hold any number of statements: it may name one too many, and
/// misses none.
pub(super) fn changed_by(text: &str) -> Option<Effect> {
    let words: Vec<&str> = text
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
        .take(WORDS_MAX)
        .collect();
    let is = |word: &str, list: &[&str]| list.iter().any(|known| word.eq_ignore_ascii_case(known));
    let pairs = || words.windows(2).filter_map(|pair| <&[&str; 2]>::try_from(pair).ok());
    let logins = pairs().any(|[verb, what]| {
        is(verb, &["alter", "drop"]) && is(what, &["database", "role", "user", "group", "system"])
    });
    let databases = pairs().any(|[verb, what]| is(verb, &["create", "drop"]) && is(what, &["database"]))
        || (logins && words.iter().any(|word| is(word, &["rename", "tablespace"])));
    (logins || databases).then(|| Effect::Logins(databases.then(|| text.to_owned())))
}

/// Statements of this kind are short, and come first.
const WORDS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_about_roles_and_databases_are_found() {
        for text in [
            "ALTER ROLE joe SET a = 1",
            "drop user joe",
            "SELECT 1; ALTER SYSTEM SET a = 1",
            "ALTER DATABASE x SET a = 1",
        ] {
            assert_eq!(changed_by(text), Some(Effect::Logins(None)), "{text}");
        }
        for text in
            ["DROP DATABASE shop", "/* a */ create database a template b", "ALTER DATABASE a RENAME TO b"]
        {
            assert_eq!(changed_by(text), Some(Effect::Logins(Some(text.to_owned()))), "{text}");
        }
        for text in ["SELECT role FROM user", "ALTER TABLE role ADD x int", "CREATE ROLE joe"] {
            assert_eq!(changed_by(text), None, "{text}");
        }
    }
}
