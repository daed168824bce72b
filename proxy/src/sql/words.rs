//! Texts that the parser does not understand, and that can still be seen, word by word, to only read.
//!
//! Every word may be the name of a relation, and every one in front of a parenthesis that of a function: it
//! sees writes where there are none, and must not miss one.

use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::tokenizer::{Token, Tokenizer, Word};

use super::facts::{Facts, Standing};
use super::functions::{is_syntax, sees_temporary};

/// Nothing that only reads needs one of these words, but for names, which are quoted then or bad luck.
const WRITES: &[&str] = &[
    "into",
    "insert",
    "update",
    "delete",
    "merge",
    "truncate",
    "returning",
    "share",
    "lock",
    "nowait",
    "copy",
    "call",
    "operator",
    "set_config",
    "current_setting",
    "last_value",
    "is_called",
    "log_cnt",
];

/// Whether a text is one query that only reads: then, whether all that it reads is named in it.
pub(super) fn reads(text: &str, facts: &Facts) -> Option<bool> {
    // Names can be written in escapes, too.
    if text.to_ascii_lowercase().contains("u&\"") {
        return None;
    }
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, text).tokenize().ok()?;
    let mut tokens: Vec<Token> =
        tokens.into_iter().filter(|token| !matches!(token, Token::Whitespace(_))).collect();
    while tokens.last() == Some(&Token::SemiColon) {
        tokens.pop();
    }
    // PostgreSQL reads these in another way, or not at all.
    let joined = tokens.windows(2).any(|pair| pair.iter().all(is_string));
    if joined || tokens.iter().any(is_odd) {
        return None;
    }
    let first = tokens.iter().find(|token| **token != Token::LParen).and_then(plain)?;
    if !matches!(first.as_str(), "select" | "with" | "values") || tokens.contains(&Token::SemiColon) {
        return None;
    }
    let mut spelled_out = true;
    for (at, token) in tokens.iter().enumerate() {
        let Token::Word(word) = token else { continue };
        let before = |back: usize| at.checked_sub(back).and_then(|at| tokens.get(at));
        let name = folded(word);
        if WRITES.contains(&name.as_str()) {
            return None;
        }
        let lists_columns = before(1)
            .and_then(plain)
            .is_some_and(|word| matches!(word.as_str(), "as" | "with" | "recursive"));
        if tokens.get(at + 1) == Some(&Token::LParen) && !lists_columns {
            let schema = match (before(2), before(1)) {
                (Some(Token::Word(schema)), Some(Token::Period)) => Some(folded(schema)),
                _ => None,
            };
            let bare = word.quote_style.is_none() && before(1) != Some(&Token::Period);
            let syntax = bare && is_syntax(&name) && facts.is_unheard_of(&name);
            if !syntax && facts.function(schema.as_deref(), &name) != Standing::Reads {
                return None;
            }
            spelled_out &= syntax || facts.is_spelled_out(schema.as_deref(), &name);
        } else {
            // A column may be a function in disguise.
            let reads = facts.is_unheard_of(&name) || facts.function(None, &name) == Standing::Reads;
            if !reads || !(name == "pg_catalog" || facts.relation_reads(std::slice::from_ref(&name))) {
                return None;
            }
            spelled_out &= facts.is_plain(&name) && !sees_temporary(&name);
        }
    }
    Some(spelled_out)
}

/// One that goes on in another line is read as its beginning is, escapes and all.
fn is_string(token: &Token) -> bool {
    matches!(
        token,
        Token::SingleQuotedString(_)
            | Token::EscapedStringLiteral(_)
            | Token::UnicodeStringLiteral(_)
            | Token::NationalStringLiteral(_)
            | Token::SingleQuotedByteStringLiteral(_)
            | Token::HexStringLiteral(_)
            | Token::DollarQuotedString(_)
    )
}

/// What PostgreSQL's lexer has no such token for.
fn is_odd(token: &Token) -> bool {
    match token {
        Token::Backslash | Token::Char(_) => true,
        Token::Placeholder(name) => {
            let number = name.strip_prefix('$').unwrap_or_default();
            number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit())
        }
        _ => false,
    }
}

fn folded(word: &Word) -> String {
    if word.quote_style.is_some() { word.value.clone() } else { word.value.to_ascii_lowercase() }
}

fn plain(token: &Token) -> Option<String> {
    match token {
        Token::Word(word) if word.quote_style.is_none() => Some(word.value.to_ascii_lowercase()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_are_seen_without_a_grammar() {
        for text in [
            "with recursive g(f, t) as (select * from e) search depth first by f, t set seq select * from g",
            "SELECT count(*) FROM t WHERE a @@ any ('{x}')",
            "SELECT sum(c) FROM t GROUP BY grouping sets (grouping sets (rollup(a), cube(b)))",
            "SELECT row(1, 2)::x *< row(1, 3)::x;",
            "(SELECT 'insert into t; nextval(''s'')' COLLATE \"C\" /* update */)",
        ] {
            assert!(reads(text, &Facts::by_names()).is_some(), "{text}");
        }
    }

    #[test]
    fn whatever_may_write_is_no_read() {
        for text in [
            "SELECT 1; SELECT 2",
            "INSERT INTO t VALUES (1)",
            "SELECT a INTO b FROM t",
            "WITH x AS (DELETE FROM t) SELECT 1",
            "SELECT * FROM t FOR UPDATE",
            "SELECT * FROM t FOR NO KEY UPDATE",
            "SELECT * FROM t FOR KEY SHARE",
            "SELECT nextval('s')",
            "SELECT \"nextval\"('s')",
            "SELECT pg_catalog.nextval ('s')",
            "SELECT f(1)",
            "SELECT 1, f(1) AS (a int)",
            "SELECT s.pg_locks FROM s",
            "SELECT * FROM pg_locks",
            "SELECT * FROM s_seq",
            "SELECT * FROM U&\"\\0070g_locks\"",
            "SELECT set_config('a.b', 'c', false)",
            "SELECT current_setting('port')",
            "SELECT 'open",
            "EXPLAIN SELECT 1",
            "",
        ] {
            assert_eq!(reads(text, &Facts::by_names()), None, "{text}");
        }
        assert_eq!(reads("SELECT a FROM t", &Facts::pending()), None);
    }
}
