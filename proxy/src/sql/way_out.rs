//! How a text ends the failure of the transaction block that it finds, if that is what it does first.

use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;

use super::classify::{TEXT_MAX, words_of};
use super::pieces::pieces;

/// A statement that ends that failure likewise, and leaves a transaction open in any case; `None` when the first one of
/// `text` does not, or looks unusual, or when the text may be refused as a whole for all that the parser knows, or
/// nothing comes behind it.
pub fn way_out(text: &str) -> Option<String> {
    let pieces = pieces(text).filter(|_| text.len() <= TEXT_MAX)?;
    let (first, behind) = pieces.split_first().filter(|(_, behind)| !behind.is_empty())?;
    let is_known = |piece: &&str| Parser::parse_sql(&PostgreSqlDialect {}, piece).is_ok();
    likewise(first).filter(|_| behind.iter().all(is_known))
}

fn likewise(first: &str) -> Option<String> {
    // Comments and quoted names are left alone.
    let plain = |c: char| c.is_ascii_alphanumeric() || c.is_ascii_whitespace() || c == '_';
    let words: Vec<String> =
        words_of(first.chars().all(plain).then_some(first)?).map(str::to_ascii_lowercase).collect();
    let (first, mut rest) = words.split_first().map(|(first, rest)| (first.as_str(), rest))?;
    if let [noise, behind @ ..] = rest
        && matches!(noise.as_str(), "work" | "transaction")
    {
        rest = behind;
    }
    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    match (first, rest.as_slice()) {
        // The characteristics of the transaction are those of the next, should the text chain, too.
        ("abort" | "rollback" | "commit" | "end", [] | ["and", "chain"] | ["and", "no", "chain"]) => {
            Some("ROLLBACK AND CHAIN".to_owned())
        }
        ("rollback", ["to", "savepoint", name] | ["to", name]) => {
            Some(format!("ROLLBACK TO SAVEPOINT {name}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_statement_decides() {
        for (text, expected) in [
            ("ABORT; PREPARE q AS SELECT 1", "ROLLBACK AND CHAIN"),
            ("commit work;PREPARE q AS SELECT 1", "ROLLBACK AND CHAIN"),
            ("END TRANSACTION AND NO CHAIN; SELECT 1", "ROLLBACK AND CHAIN"),
            ("ROLLBACK AND CHAIN; EXECUTE q", "ROLLBACK AND CHAIN"),
            ("ROLLBACK TO a; EXECUTE q", "ROLLBACK TO SAVEPOINT a"),
            ("ROLLBACK WORK TO SAVEPOINT A; EXECUTE q", "ROLLBACK TO SAVEPOINT a"),
        ] {
            assert_eq!(way_out(text).as_deref(), Some(expected), "{text}");
        }
        for text in [
            "SELECT 1; ABORT",
            "ROLLBACK PREPARED 'a'; SELECT 1",
            "COMMIT PREPARED a",
            "ROLLBACK /* to */; SELECT 1",
            "ROLLBACK TO \"A\"; EXECUTE q",
            "ABORT; EXECUTE",
            "ABORT;",
            "",
        ] {
            assert_eq!(way_out(text), None, "{text}");
        }
    }
}
