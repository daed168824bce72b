//! What a server is asked about its place in the WAL. By function calls: they are neither parsed nor
//! planned, answer with a single message, and leave the client's unnamed statement alone.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::BytesMut;
use pgherd_common::Lsn;
use tokio::time::Instant;

use crate::wire::backend::{self, ServerError, Severity};
use crate::wire::frontend;

/// `pg_current_wal_flush_lsn()`. Built-in functions have the same number in every version.
const FLUSHED: u32 = 3330;
/// `pg_current_wal_insert_lsn()`.
const INSERTED: u32 = 2852;
/// `pg_last_wal_replay_lsn()`.
const REPLAYED: u32 = 3821;
/// `pg_current_xact_id_if_assigned()`.
const XID: u32 = 5060;
/// `current_setting(text)`.
const SETTING: u32 = 2077;

/// Whether commits are acknowledged before they are written is asked again after so long: an
/// administrator may have changed it for everybody.
const LAZINESS_LIFE: Duration = Duration::from_secs(1);

/// What was asked and is not yet answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    Position { flushed: bool },
    Laziness,
    Replayed,
    Xid,
}

/// What a message of the server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Nothing that was asked for here.
    Unasked,
    /// Part of an answer that tells nothing.
    Nothing,
    /// What was committed lies before this.
    Position(Lsn),
    /// Commits may be acknowledged before they are written, though the position told last is that of what
    /// was written.
    Lazy,
    /// How far it has replayed; `None`: it never did.
    Replayed(Option<Lsn>),
    /// The number of the open transaction, with its epoch, if it has one.
    Xid(Option<u64>),
}

/// The questions to one server.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    due: VecDeque<Question>,
    /// Whether commits are acknowledged before they are written, as was told at that time.
    lazy: Option<(bool, Instant)>,
    /// The last position told was one of what was written.
    flushed: bool,
    /// Whether it tells the numbers of transactions: where that is not permitted, to ask would end the transaction.
    tells_xids: Option<bool>,
}

impl Questions {
    /// Whether an answer has yet to be read.
    pub(crate) fn are_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// Asks a primary for a position behind all that was committed on its connection. What was committed
    /// lies before the position written; before the one inserted, where commits are acknowledged before
    /// they are written. `lazily`: that may be so for all that the session knows. `as_login`: it acts as the role that
    /// logged in.
    pub(crate) fn ask_position(&mut self, lazily: bool, as_login: bool, now: Instant, out: &mut BytesMut) {
        let flushed = !lazily && self.lazy.is_some_and(|(lazy, _)| !lazy);
        frontend::put_call(out, if flushed { FLUSHED } else { INSERTED }, &[]);
        self.due.push_back(Question::Position { flushed });
        if self.lazy.is_none_or(|(_, at)| now.duration_since(at) > LAZINESS_LIFE) {
            frontend::put_call(out, SETTING, &["synchronous_commit"]);
            self.due.push_back(Question::Laziness);
        }
        // Here no transaction is open that an error could end.
        if as_login && self.tells_xids.is_none() {
            self.put_xid(out);
        }
    }

    /// Asks for the number of the open transaction, if that is known to do no harm and nothing else is due. Whether it
    /// was asked.
    pub(crate) fn ask_xid(&mut self, out: &mut BytesMut) -> bool {
        let fine = self.tells_xids == Some(true) && self.due.is_empty();
        if fine {
            self.put_xid(out);
        }
        fine
    }

    fn put_xid(&mut self, out: &mut BytesMut) {
        frontend::put_call(out, XID, &[]);
        self.due.push_back(Question::Xid);
    }

    /// Whether the next answer is to that.
    pub(crate) fn awaits_xid(&self) -> bool {
        self.due.front() == Some(&Question::Xid)
    }

    /// Asks a standby how far it has replayed. One that was promoted since tells where it stopped: all up
    /// to there is in it.
    pub(crate) fn ask_replayed(&mut self, out: &mut BytesMut) {
        frontend::put_call(out, REPLAYED, &[]);
        self.due.push_back(Question::Replayed);
    }

    /// Somebody else has the connection now, whose settings are others.
    pub(crate) fn forget_laziness(&mut self) {
        self.lazy = None;
    }

    /// Takes a message in.
    pub(crate) fn hear(&mut self, tag: u8, payload: &[u8], now: impl Fn() -> Instant) -> Heard {
        let Some(question) = self.due.front() else { return Heard::Unasked };
        match (tag, question) {
            (b'V', Question::Position { flushed }) => {
                self.flushed = *flushed;
                position(payload).map_or(Heard::Nothing, Heard::Position)
            }
            (b'V', Question::Replayed) => Heard::Replayed(position(payload)),
            (b'V', Question::Laziness) => {
                let lazy = backend::result(payload).is_ok_and(|value| value == Some(b"off"));
                self.lazy = Some((lazy, now()));
                if lazy && self.flushed { Heard::Lazy } else { Heard::Nothing }
            }
            (b'V', Question::Xid) => {
                self.tells_xids = Some(true);
                Heard::Xid(number(payload))
            }
            // Cancelled, or not permitted: it is not known, then.
            (b'E', question) => match ServerError::read(payload) {
                Ok(error) if error.severity != Severity::Fatal => {
                    // Not permitted, or there is no such function; anything else passes.
                    if *question == Question::Xid && matches!(error.code.as_str(), "42501" | "42883") {
                        self.tells_xids = Some(false);
                    }
                    Heard::Nothing
                }
                Ok(_) | Err(_) => Heard::Unasked,
            },
            (b'Z', _) => {
                self.due.pop_front();
                Heard::Nothing
            }
            _ => Heard::Unasked,
        }
    }
}

/// The position that a function returned.
fn position(payload: &[u8]) -> Option<Lsn> {
    number(payload).map(Lsn)
}

fn number(payload: &[u8]) -> Option<u64> {
    let bytes = backend::result(payload).ok()??;
    bytes.try_into().ok().map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(bytes: &[u8]) -> Vec<u8> {
        let len = u32::try_from(bytes.len()).unwrap();
        [&len.to_be_bytes(), bytes].concat()
    }

    fn calls(out: &BytesMut) -> Vec<u32> {
        let numbers = out.chunk_by(|_, next| *next != b'F').map(|call| call[5..9].try_into().unwrap());
        numbers.map(u32::from_be_bytes).collect()
    }

    #[test]
    fn until_it_is_known_better_commits_count_as_acknowledged_early() {
        let (mut questions, begun) = (Questions::default(), Instant::now());
        let ask = |questions: &mut Questions, lazily, at: Instant| {
            let mut out = BytesMut::new();
            questions.ask_position(lazily, true, at, &mut out);
            calls(&out)
        };
        let now = || begun;
        assert_eq!(ask(&mut questions, false, begun), [INSERTED, SETTING, XID]);
        assert_eq!(questions.hear(b'V', &value(&7u64.to_be_bytes()), now), Heard::Position(Lsn(7)));
        assert_eq!(questions.hear(b'Z', b"I", now), Heard::Nothing);
        assert_eq!(questions.hear(b'V', &value(b"on"), now), Heard::Nothing);
        assert_eq!(questions.hear(b'Z', b"I", now), Heard::Nothing);
        let nothing = (-1i32).to_be_bytes();
        assert_eq!(questions.hear(b'V', &nothing, now), Heard::Xid(None));
        assert_eq!(questions.hear(b'Z', b"I", now), Heard::Nothing);
        assert_eq!(questions.hear(b'V', &value(b"on"), now), Heard::Unasked);
        assert_eq!(ask(&mut questions, false, begun), [FLUSHED]);
        assert_eq!(ask(&mut questions, true, begun), [INSERTED]);
        questions = Questions { due: VecDeque::new(), ..questions };
        let late = begun + 2 * LAZINESS_LIFE;
        assert_eq!(ask(&mut questions, false, late), [FLUSHED, SETTING]);
        assert_eq!(questions.hear(b'V', &value(&8u64.to_be_bytes()), now), Heard::Position(Lsn(8)));
        assert_eq!(questions.hear(b'Z', b"I", now), Heard::Nothing);
        assert_eq!(questions.hear(b'V', &value(b"off"), || late), Heard::Lazy);
        assert_eq!(questions.hear(b'Z', b"I", now), Heard::Nothing);
        assert_eq!(ask(&mut questions, false, late), [INSERTED]);
    }

    #[test]
    fn a_transaction_is_asked_for_its_number_only_where_that_is_known_to_do_no_harm() {
        let (mut questions, now) = (Questions::default(), Instant::now);
        let mut out = BytesMut::new();
        assert!(!questions.ask_xid(&mut out));
        questions.ask_position(false, true, now(), &mut out);
        for (payload, heard) in [
            (value(&7u64.to_be_bytes()), Heard::Position(Lsn(7))),
            (value(b"on"), Heard::Nothing),
            ((-1i32).to_be_bytes().to_vec(), Heard::Xid(None)),
        ] {
            assert!(!questions.ask_xid(&mut out), "others are due");
            assert_eq!(questions.hear(b'V', &payload, now), heard);
            assert_eq!(questions.hear(b'Z', b"I", now), Heard::Nothing);
        }
        assert!(questions.ask_xid(&mut out) && questions.awaits_xid());
        assert_eq!(questions.hear(b'V', &value(&9u64.to_be_bytes()), now), Heard::Xid(Some(9)));
        assert_eq!(questions.hear(b'Z', b"T", now), Heard::Nothing);
        assert!(questions.ask_xid(&mut out));
        assert_eq!(questions.hear(b'E', b"VERROR\0C42501\0Mpermission denied\0\0", now), Heard::Nothing);
        assert_eq!(questions.hear(b'Z', b"E", now), Heard::Nothing);
        assert!(!questions.ask_xid(&mut out));
        questions.ask_position(false, true, now(), &mut out);
        assert!(!questions.due.contains(&Question::Xid), "what is known is not asked again");
        let mut other = Questions::default();
        other.ask_position(false, false, now(), &mut out);
        assert!(!other.due.contains(&Question::Xid), "another role's rights tell nothing");
    }

    #[test]
    fn a_refused_question_is_answered_too() {
        let mut questions = Questions::default();
        questions.ask_replayed(&mut BytesMut::new());
        let now = Instant::now;
        assert_eq!(questions.hear(b'N', b"", now), Heard::Unasked);
        assert_eq!(questions.hear(b'E', b"VERROR\0C57014\0Mcancelled\0\0", now), Heard::Nothing);
        assert!(questions.are_due());
        assert_eq!(questions.hear(b'Z', b"I", now), Heard::Nothing);
        assert!(!questions.are_due());
        questions.ask_replayed(&mut BytesMut::new());
        assert_eq!(questions.hear(b'E', b"VFATAL\0C57P01\0Mgone\0\0", now), Heard::Unasked);
        assert_eq!(questions.hear(b'V', &[255; 4], now), Heard::Replayed(None));
    }
}
