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
    (logins || databases).then(|| Effect::Logins(databases.then(|| names_in(text))))
}

/// Statements of this kind are short, and come first.
const WORDS_MAX: usize = 256;

/// Everything in a text that can be the name of a database, as PostgreSQL folds it, and the one that new
/// databases are copied from when nothing is said.
fn names_in(text: &str) -> Vec<String> {
    let mut names = vec!["template1".to_owned()];
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (name, len) = match first {
            '"' | '\'' => quoted(rest, first),
            '-' if rest.starts_with("--") => (None, rest.find('\n').unwrap_or(rest.len())),
            '/' if rest.starts_with("/*") => (None, rest.find("*/").map_or(rest.len(), |end| end + 2)),
            c if is_in_name(c) => {
                let len = rest.find(|c: char| !is_in_name(c)).unwrap_or(rest.len());
                (rest.get(..len).map(str::to_ascii_lowercase), len)
            }
            other => (None, other.len_utf8()),
        };
        names.extend(name);
        rest = rest.get(len..).unwrap_or_default();
    }
    names
}

fn is_in_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$') || !c.is_ascii()
}

/// What stands between quotes at the beginning of `text`, and how many bytes that takes.
fn quoted(text: &str, quote: char) -> (Option<String>, usize) {
    let mut name = String::new();
    let mut characters = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = characters.next() {
        if c != quote {
            name.push(c);
        } else if characters.next_if(|(_, next)| *next == quote).is_some() {
            name.push(quote);
        } else {
            return (Some(name), at + 1);
        }
    }
    (Some(name), text.len())
}

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
            assert!(matches!(changed_by(text), Some(Effect::Logins(Some(_)))), "{text}");
        }
        for text in ["SELECT role FROM user", "ALTER TABLE role ADD x int", "CREATE ROLE joe"] {
            assert_eq!(changed_by(text), None, "{text}");
        }
    }

    #[test]
    fn names_are_read_as_postgresql_reads_them() {
        for (text, name) in [
            ("DROP DATABASE Shop", "shop"),
            ("DROP DATABASE \"My \"\"Shop\"\"\"", "My \"Shop\""),
            ("-- it's \"old\"\nDROP DATABASE /* \" */ shop;", "shop"),
            ("CREATE DATABASE a TEMPLATE 'shop'", "shop"),
            ("CREATE DATABASE a", "template1"),
            ("ALTER DATABASE größe SET TABLESPACE b", "größe"),
        ] {
            assert!(names_in(text).contains(&name.to_owned()), "{text}: {:?}", names_in(text));
        }
        assert!(!names_in("DROP DATABASE shopping").contains(&"shop".to_owned()));
    }
}
