//! Decides whether something may be sent to the server behind a text before its answer has come.
//!
//! Words decide, not grammar: whatever looks unusual is left alone. Nothing that could turn out to be a
//! `COPY` settles, since a server that reads data takes what comes next for it.

/// What is known of the state of the transaction behind a text, whatever else becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settles {
    /// Nothing, or it may ask the client for data.
    Unknown,
    /// No transaction block is open behind it if none was before.
    Alone,
    /// No transaction block is open behind it.
    Always,
}

/// How statements begin that open no transaction block and take no data.
const ALONE: &[&str] = &[
    "insert", "update", "delete", "merge", "select", "with", "values", "table", "create", "alter", "drop",
    "truncate", "grant", "revoke", "comment", "refresh", "reindex", "vacuum", "analyze", "cluster", "call",
    "do", "execute",
];

/// What `sql` settles.
pub(super) fn settles(sql: &[u8]) -> Settles {
    let body = sql.trim_ascii();
    let body = body.strip_suffix(b";").unwrap_or(body);
    let len = body.iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
    let first = body.get(..len).unwrap_or_default();
    let begins = |word: &str| first.eq_ignore_ascii_case(word.as_bytes());
    let found = if begins("commit") || begins("end") {
        // What follows may open the next block, or speak of another transaction.
        let plain = !has(body, b"chain") && !has(body, b"prepared");
        if plain { Settles::Always } else { Settles::Unknown }
    } else if ALONE.iter().any(|word| begins(word)) {
        Settles::Alone
    } else {
        Settles::Unknown
    };
    let single = found != Settles::Unknown && !body.contains(&b';') && !has(body, b"copy");
    if single { found } else { Settles::Unknown }
}

/// Whether the word is anywhere in it, be it as a part of another.
fn has(body: &[u8], word: &[u8]) -> bool {
    body.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(texts: &[&str], expected: Settles) {
        for text in texts {
            assert_eq!(settles(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn plain_statements_settle() {
        all(
            &["INSERT INTO t VALUES (1)", " update t SET a = 1 ; ", "WITH x AS (SELECT 1) DELETE FROM t"],
            Settles::Alone,
        );
        all(&["SELECT nextval('s')", "CREATE TABLE t (a int);", "CALL p()"], Settles::Alone);
        all(&["COMMIT", "commit work;", "END", "end transaction"], Settles::Always);
    }

    #[test]
    fn what_may_take_data_or_open_a_block_does_not() {
        let unknown = [
            "COPY t FROM STDIN",
            "INSERT INTO t VALUES (1); COPY t FROM STDIN",
            "INSERT INTO t VALUES ('\\'); copy t FROM STDIN; --')",
            "-- COMMIT\nBEGIN",
            "/* INSERT */ BEGIN",
            "BEGIN",
            "START TRANSACTION",
            "COMMIT AND CHAIN",
            "END AND CHAIN",
            "ROLLBACK AND CHAIN",
            "COMMIT PREPARED 'x'",
            "PREPARE TRANSACTION 'x'",
            "SET synchronous_commit = off",
            "INSERT INTO t VALUES (1); BEGIN",
            "",
        ];
        all(&unknown, Settles::Unknown);
    }
}
