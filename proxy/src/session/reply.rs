//! Reads a server's answer message by message and says what becomes of each, so that rows pass through
//! untouched and what the proxy asked for itself does not.

use std::collections::VecDeque;

use crate::wire::backend::{self, ServerError, TxStatus};
use crate::wire::frame::{self, BadFrame, Malformed};

use super::segment::LARGE;
use super::statements::{By, Expected};

/// What becomes of the next bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// More bytes are needed.
    Incomplete,
    /// So many bytes go to the client.
    Forward(usize),
    /// So many bytes are for the proxy alone.
    Swallow(usize),
    /// So many bytes go to the client once it is certain that the answer will come from this server.
    Hold(usize),
    /// It is certain: what was held goes to the client.
    Release,
    /// A message of so many bytes reports a setting.
    Parameter {
        /// The message's length.
        len: usize,
        /// The setting.
        name: String,
        /// Its value.
        value: String,
    },
    /// A message of so many bytes reports an error.
    Error {
        /// The message's length.
        len: usize,
        /// What it says.
        error: ServerError,
    },
    /// The message of so many bytes asks the client for data, and goes to it.
    CopyIn(usize),
    /// The server is done; the message of so many bytes goes to the client.
    Ready {
        /// The message's length.
        len: usize,
        /// What it says.
        status: TxStatus,
    },
}

/// A server that does not speak the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// Lengths that cannot be.
    #[error(transparent)]
    Frame(#[from] BadFrame),
    /// Contents that cannot be.
    #[error(transparent)]
    Content(#[from] Malformed),
    /// An answer to something that was not asked.
    #[error("message {tag:?} answers nothing that was asked", tag = char::from(*.0))]
    Unasked(u8),
}

/// The answer to one batch.
#[derive(Debug, Default)]
pub struct Reply {
    expected: VecDeque<Expected>,
    confirmed: Vec<Expected>,
    holding: bool,
    held: usize,
    rest: usize,
    failed: bool,
    /// So many statements were run.
    completed: usize,
    /// So many portals were bound.
    bound: usize,
    unsynced: bool,
    /// Messages of the extended protocol that the client sent, and those that were answered.
    sent: usize,
    answered: usize,
    /// A simple query is the last of the batch.
    queries: bool,
}

impl Reply {
    /// `repeatable`: the beginning of the answer is held back while it could still come from elsewhere.
    pub fn new(repeatable: bool) -> Self {
        Self { holding: repeatable, ..Self::default() }
    }

    pub(super) fn expect(&mut self, expected: Expected) {
        self.expected.push_back(expected);
    }

    /// How many statements the proxy prepares on its own account, as far as that is not confirmed yet.
    pub(super) fn prepared(&self) -> usize {
        let injected = |expected: &&Expected| matches!(expected, Expected::Parse { by: By::Proxy(_), .. });
        self.expected.iter().filter(injected).count()
    }

    /// A message with this tag goes out.
    pub(super) fn note_sent(&mut self, tag: u8) {
        self.unsynced = !matches!(tag, b'Q' | b'F' | b'S');
        self.sent += usize::from(matches!(tag, b'P' | b'B' | b'C' | b'D' | b'E'));
        self.queries |= tag == b'Q';
    }

    /// Whether the last message that went out is one of the extended protocol, and no `Sync`.
    pub(super) fn is_unsynced(&self) -> bool {
        self.unsynced
    }

    /// Whether the server ignores the query at the end of the batch, and all else up to a `Sync`.
    pub fn skips_to_sync(&self) -> bool {
        self.failed && self.expected.iter().any(|expected| matches!(expected, Expected::Barrier))
    }

    pub(super) fn confirmed(&mut self) -> Vec<Expected> {
        std::mem::take(&mut self.confirmed)
    }

    /// Whether an answer to a message about a prepared statement, or to the proxy's own, is due.
    pub(super) fn is_owed(&self) -> bool {
        !self.expected.is_empty()
    }

    pub(super) fn unconfirmed(&mut self) -> VecDeque<Expected> {
        std::mem::take(&mut self.expected)
    }

    /// How many messages of the extended protocol went out before the last one.
    pub(super) fn sent_before(&self) -> usize {
        self.sent.saturating_sub(1)
    }

    /// Whether the server has the unnamed statement no more: a simple query, and a `Parse` that fails, do away
    /// with it.
    pub(super) fn loses_unnamed(&self) -> bool {
        let failed = |expected: &Expected| match expected {
            Expected::Parse { name, by, at, .. } => {
                name.is_empty() && *by == By::Client && *at == self.answered
            }
            Expected::Close { .. } | Expected::Barrier | Expected::Placeholder { .. } => false,
        };
        (self.queries && !self.skips_to_sync()) || (self.failed && self.expected.iter().any(failed))
    }

    /// Whether an error was reported.
    pub fn failed(&self) -> bool {
        self.failed
    }

    /// How many statements were run, as far as it is known.
    pub fn completed(&self) -> usize {
        self.completed
    }

    /// Whether nothing of the answer has been passed on, so that another server may give it.
    pub fn is_replaceable(&self) -> bool {
        self.holding
    }

    /// How many of the client's messages in the extended protocol were answered.
    pub fn answered(&self) -> usize {
        self.answered
    }

    /// Whether the client has part of a message only: nothing else can be said to it before the rest.
    pub fn is_mid_message(&self) -> bool {
        self.rest > 0
    }

    /// An error goes to the client.
    pub fn on_error(&mut self) {
        self.failed = true;
    }

    /// Looks at what comes next in `bytes`.
    pub fn next(&mut self, bytes: &[u8]) -> Result<Event, ReplyError> {
        // Only at its beginning: who looked ahead at each of many messages would look at all of them over and over.
        if self.holding && self.held == 0 && is_decided(bytes)? {
            self.holding = false;
        }
        let rows = self.pass_rows(bytes)?;
        if rows > 0 {
            return Ok(Event::Forward(rows));
        }
        let Some((header, payload)) = frame::message(bytes)? else {
            return self.pass_large(bytes);
        };
        let len = header.len;
        match header.tag {
            b'Z' if self.holding => Ok(self.release()),
            b'Z' => Ok(Event::Ready { len, status: TxStatus::read(payload)? }),
            b'E' => Ok(Event::Error { len, error: ServerError::read(payload)? }),
            b'S' => {
                let (name, value) = backend::parameter(payload)?;
                Ok(Event::Parameter { len, name: name.to_owned(), value: value.to_owned() })
            }
            b'1' | b'3' => {
                let injected = self.confirm(header.tag)?;
                self.answered += usize::from(!injected);
                Ok(if injected { Event::Swallow(len) } else { self.hold_or_forward(len) })
            }
            b'2' | b'T' | b't' | b'n' | b'N' => {
                self.note_answer(header.tag);
                Ok(self.hold_or_forward(len))
            }
            b'A' => Ok(Event::Forward(len)),
            _ if self.holding => Ok(self.release()),
            b'G' => Ok(Event::CopyIn(len)),
            tag => {
                self.note_answer(tag);
                Ok(Event::Forward(len))
            }
        }
    }

    /// The run of bytes at the front that goes through unseen: rows, COPY data, completions.
    fn pass_rows(&mut self, bytes: &[u8]) -> Result<usize, ReplyError> {
        let mut at = self.rest.min(bytes.len());
        self.rest -= at;
        if self.holding || self.rest > 0 {
            return Ok(at);
        }
        while let Some(header) = frame::header(bytes.get(at..).unwrap_or_default())? {
            if !matches!(header.tag, b'D' | b'd' | b'C' | b'T' | b'2') || bytes.len() < at + header.len {
                break;
            }
            self.note_answer(header.tag);
            at += header.len;
        }
        Ok(at)
    }

    fn note_answer(&mut self, tag: u8) {
        self.bound += usize::from(tag == b'2');
        // A portal that has no more rows completes each time when it is asked for some.
        let again = self.answered < self.sent && self.completed >= self.bound;
        self.completed += usize::from(tag == b'C' && !again);
        self.answered += usize::from(ends_an_answer(tag));
    }

    /// A message too large to wait for goes through piece by piece.
    fn pass_large(&mut self, bytes: &[u8]) -> Result<Event, ReplyError> {
        let Some(header) = frame::header(bytes)? else { return Ok(Event::Incomplete) };
        if bytes.len() < LARGE || header.tag == b'Z' {
            return Ok(Event::Incomplete);
        }
        if self.holding {
            return Ok(self.release());
        }
        self.failed |= header.tag == b'E';
        self.rest = header.len - bytes.len();
        Ok(Event::Forward(bytes.len()))
    }

    fn release(&mut self) -> Event {
        self.holding = false;
        Event::Release
    }

    fn hold_or_forward(&mut self, len: usize) -> Event {
        if !self.holding {
            return Event::Forward(len);
        }
        self.held += len;
        // This much of a beginning is kept; the next message goes through.
        self.holding = self.held <= LARGE;
        Event::Hold(len)
    }

    fn confirm(&mut self, tag: u8) -> Result<bool, ReplyError> {
        let expected = self.expected.pop_front().ok_or(ReplyError::Unasked(tag))?;
        let fits = match expected {
            Expected::Parse { .. } | Expected::Placeholder { .. } => tag == b'1',
            Expected::Close { .. } | Expected::Barrier => tag == b'3',
        };
        if !fits {
            return Err(ReplyError::Unasked(tag));
        }
        let injected = expected.is_injected();
        self.confirmed.push(expected);
        Ok(injected)
    }
}

/// Whether the answer goes on to a row or an end without an error: it comes from this server.
fn is_decided(mut bytes: &[u8]) -> Result<bool, BadFrame> {
    while let Some(header) = frame::header(bytes)? {
        match header.tag {
            b'D' | b'C' => return Ok(bytes.len() >= header.len),
            b'1' | b'2' | b'3' | b'T' | b't' | b'n' => bytes = bytes.get(header.len..).unwrap_or_default(),
            _ => return Ok(false),
        }
    }
    Ok(false)
}

/// Whether with this message a message of the client's in the extended protocol is answered, apart from those whose
/// answers are told from the proxy's own.
fn ends_an_answer(tag: u8) -> bool {
    matches!(tag, b'2' | b'T' | b'n' | b'C' | b'I' | b's')
}
