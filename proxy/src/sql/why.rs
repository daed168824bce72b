//! Why a session keeps its connection, in words for people.

use std::fmt;

/// What a text leaves on the connection that only its session may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// A temporary table, view or sequence.
    Temporary,
    /// `LISTEN`.
    Listen,
    /// SQL-level `PREPARE`.
    Prepare,
    /// A cursor that outlives its transaction.
    HeldCursor,
    /// An advisory lock of the session's.
    AdvisoryLock,
    /// What `currval` and `lastval` tell.
    Sequence,
    /// Statistics are looked at, which each server keeps for itself.
    Statistics,
    /// The connection is for replication.
    Replication,
    /// Something that is not understood, or calls what may do anything.
    Unknown,
}

impl Why {
    /// Whether something is lost for good with the connection: the session cannot go on on another one as if nothing
    /// had happened.
    pub fn is_unmovable(self) -> bool {
        match self {
            Self::Temporary | Self::Listen | Self::HeldCursor | Self::AdvisoryLock => true,
            Self::Prepare | Self::Sequence | Self::Statistics | Self::Replication | Self::Unknown => false,
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Temporary => "temporary object",
            Self::Listen => "LISTEN",
            Self::Prepare => "PREPARE",
            Self::HeldCursor => "WITH HOLD cursor",
            Self::AdvisoryLock => "advisory lock",
            Self::Sequence => "currval or lastval",
            Self::Statistics => "statistics",
            Self::Replication => "replication",
            Self::Unknown => "something not understood",
        })
    }
}

/// The likely reason, by the first telling word of a text that is known to have one.
pub(super) fn why(text: &str) -> Why {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.map(str::to_ascii_lowercase).find_map(|word| by_word(&word)).unwrap_or(Why::Unknown)
}

fn by_word(word: &str) -> Option<Why> {
    match word {
        "temp" | "temporary" | "pg_temp" => Some(Why::Temporary),
        "listen" => Some(Why::Listen),
        "prepare" => Some(Why::Prepare),
        "hold" => Some(Why::HeldCursor),
        "currval" | "lastval" => Some(Why::Sequence),
        "do" | "call" | "load" => Some(Why::Unknown),
        word if word.starts_with("pg_stat") => Some(Why::Statistics),
        word if word.contains("advisory") && word.contains("lock") => Some(Why::AdvisoryLock),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_told_by_their_words() {
        for (text, expected) in [
            ("CREATE TEMP TABLE a (b int)", Why::Temporary),
            ("SELECT 1 INTO TEMPORARY a", Why::Temporary),
            ("listen news", Why::Listen),
            ("PREPARE p AS SELECT 1", Why::Prepare),
            ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", Why::HeldCursor),
            ("SELECT pg_try_advisory_lock(1)", Why::AdvisoryLock),
            ("SELECT lastval()", Why::Sequence),
            ("SELECT * FROM pg_stat_user_tables", Why::Statistics),
            ("DO 'BEGIN CREATE TEMP TABLE a (b int); END'", Why::Unknown),
            ("SELECT my_function()", Why::Unknown),
        ] {
            assert_eq!(why(text), expected, "{text}");
        }
    }
}
