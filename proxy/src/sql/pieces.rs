//! Where one statement of a text ends and the next begins, for texts that the parser does not understand as a
//! whole: what it does understand of them need not be guessed.
//!
//! As psql tells statements apart, by quotes, comments, parentheses and the bodies of SQL functions.

use super::classify::words_of;

/// The statements of a text, without the semicolons between them and without empty ones; `None` when it is not
/// certain where they end.
pub(super) fn pieces(text: &str) -> Option<Vec<&str>> {
    let (mut pieces, mut begin, mut at) = (vec![], 0, 0);
    let (mut parentheses, mut blocks) = (0_usize, 0_usize);
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        let len = token(rest)?;
        match rest.get(..len)? {
            "(" => parentheses += 1,
            ")" => parentheses = parentheses.checked_sub(1)?,
            ";" if parentheses == 0 && blocks == 0 => {
                pieces.push(text.get(begin..at)?);
                begin = at + len;
            }
            word if word.eq_ignore_ascii_case("begin") => {
                blocks += usize::from(makes_routine(text.get(begin..at)?));
            }
            word if word.eq_ignore_ascii_case("case") => blocks += usize::from(blocks > 0),
            word if word.eq_ignore_ascii_case("end") => blocks = blocks.saturating_sub(1),
            _ => {}
        }
        at += len;
    }
    pieces.push(text.get(begin..)?);
    pieces.retain(|piece| !piece.trim().is_empty());
    (parentheses == 0 && blocks == 0).then_some(pieces)
}

/// Whether a statement that begins like this makes a function or a procedure, which may have statements in it.
fn makes_routine(beginning: &str) -> bool {
    let mut words = words_of(beginning).take(4).map(str::to_ascii_lowercase);
    words.next().is_some_and(|first| first == "create")
        && words.any(|word| matches!(word.as_str(), "function" | "procedure"))
}

/// The length of what comes first in `rest`, which is not empty: a word, something quoted, a comment, or one
/// character.
fn token(rest: &str) -> Option<usize> {
    let first = rest.chars().next()?;
    let escapes = matches!(first, 'e' | 'E') && rest.get(1..).is_some_and(|next| next.starts_with('\''));
    match first {
        _ if escapes => Some(1 + string(rest.get(1..)?, true)?),
        '\'' => string(rest, false),
        '"' => quoted(rest, '"'),
        '$' => dollars(rest),
        '-' if rest.starts_with("--") => Some(rest.find(['\n', '\r']).unwrap_or(rest.len())),
        '/' if rest.starts_with("/*") => {
            let behind = super::spaced::behind_block(rest.get(2..)?)?;
            Some(rest.len() - behind.len())
        }
        _ if in_name(first) => Some(rest.find(|c| !in_name(c) && c != '$').unwrap_or(rest.len())),
        _ => Some(first.len_utf8()),
    }
}

fn in_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || !c.is_ascii()
}

/// The length of what is quoted by `quote`, in which two of them stand for one.
fn quoted(rest: &str, quote: char) -> Option<usize> {
    let mut at = 1;
    loop {
        at += rest.get(at..)?.find(quote)? + 1;
        if !rest.get(at..)?.starts_with(quote) {
            return Some(at);
        }
        at += 1;
    }
}

/// The length of a string. Whether a backslash in front of a quote means anything in a plain one depends on a
/// setting.
fn string(rest: &str, escapes: bool) -> Option<usize> {
    if !escapes {
        let len = quoted(rest, '\'')?;
        return (!rest.get(..len)?.contains("\\'")).then_some(len);
    }
    let mut at = 1;
    loop {
        at += rest.get(at..)?.find(['\'', '\\'])?;
        match rest.get(at..)? {
            found if found.starts_with("''") => at += 2,
            found if found.starts_with('\'') => return Some(at + 1),
            found => at += 1 + found.chars().nth(1)?.len_utf8(),
        }
    }
}

/// The length of something in dollar quotes, or of the sign of a parameter.
fn dollars(rest: &str) -> Option<usize> {
    let name = rest.get(1..)?.split('$').next()?;
    let digit = name.starts_with(|c: char| c.is_ascii_digit());
    let opening = rest.get(..name.len() + 2).filter(|_| !digit && name.chars().all(in_name));
    let Some(opening) = opening else { return Some(1) };
    let body = rest.get(opening.len()..)?;
    Some(opening.len() + body.find(opening)? + opening.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_end_at_their_semicolons() {
        for (text, expected) in [
            ("SELECT 1", &["SELECT 1"][..]),
            (" ; SELECT 1;;SELECT 2; ", &[" SELECT 1", "SELECT 2"]),
            ("SELECT 'a;''b', \"c;\"\"d\"; SELECT 2", &["SELECT 'a;''b', \"c;\"\"d\"", " SELECT 2"]),
            (
                "SELECT E'a\\';b'''; SELECT e'\\\\'; SELECT 'a\\b'",
                &["SELECT E'a\\';b'''", " SELECT e'\\\\'", " SELECT 'a\\b'"],
            ),
            (
                "DO $$ a; b' $$; DO $é_1$ $$; $é_1$; SELECT $1; SELECT a$b$;c",
                &["DO $$ a; b' $$", " DO $é_1$ $$; $é_1$", " SELECT $1", " SELECT a$b$", "c"],
            ),
            (
                "SELECT 1 -- a; '\n; /* b; /* c */ ;' */ SELECT 2",
                &["SELECT 1 -- a; '\n", " /* b; /* c */ ;' */ SELECT 2"],
            ),
            (
                "CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2); SELECT 3",
                &["CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2)", " SELECT 3"],
            ),
            (
                "CREATE OR REPLACE FUNCTION f() BEGIN ATOMIC SELECT CASE 1 END; END; BEGIN; SELECT 1; END",
                &[
                    "CREATE OR REPLACE FUNCTION f() BEGIN ATOMIC SELECT CASE 1 END; END",
                    " BEGIN",
                    " SELECT 1",
                    " END",
                ],
            ),
        ] {
            assert_eq!(pieces(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_certain_is_not_taken_apart() {
        for text in [
            "SELECT 'a; SELECT 2",
            "SELECT \"a; SELECT 2",
            "SELECT 'a\\'; SELECT 2; --'",
            "SELECT $a$; SELECT 2",
            "SELECT 1 /* a; SELECT 2",
            "SELECT (1; SELECT 2",
            "SELECT 1); SELECT 2",
            "CREATE FUNCTION begin() AS 'a'; LISTEN b",
        ] {
            assert_eq!(pieces(text), None, "{text}");
        }
    }
}
