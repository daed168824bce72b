//! Counts what a server says and keeps almost nothing of it: bytes may come cut anywhere.

use std::collections::VecDeque;

/// Of an error, the tag of a command, a short row, or a message of the login.
const KEPT_BYTES_MAX: usize = 1024;
/// Longer rows are counted only.
const ROW_KEPT_BYTES_MAX: usize = 64;

/// What has been said since the counts were last taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// `ReadyForQuery`.
    pub(super) ready: u64,
    /// `DataRow`.
    pub(super) rows: u64,
    /// `CommandComplete`.
    pub(super) commands: u64,
    /// `ParseComplete`.
    pub(super) parsed: u64,
    /// `BindComplete`.
    pub(super) bound: u64,
    /// `CopyInResponse`.
    pub(super) copy_starts: u64,
    /// Of all messages, with their heads.
    pub(super) bytes: u64,
    /// Of the contents of rows and of `CopyData`.
    pub(super) content_bytes: u64,
    /// Of the last command that was completed.
    pub(super) tag: String,
    /// The last row, if it is short.
    pub(super) row: Vec<u8>,
    /// SQLSTATE and text of the first error.
    pub(super) error: Option<String>,
    /// The messages of a login that nobody has taken yet.
    pub(super) authentication: VecDeque<Vec<u8>>,
}

/// Where in the stream of messages one is.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    /// What has come of a tag and its length.
    head: Vec<u8>,
    /// So many bytes of this message's payload are still to come.
    missing: usize,
    /// The beginning of it is kept.
    keeps: bool,
    /// As far as it has come.
    kept: Vec<u8>,
    counts: Counts,
}

const HEAD_LEN: usize = 5;

impl Tally {
    /// What has been counted.
    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The same, and counts anew.
    pub(super) fn take(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// The next message of a login.
    pub(super) fn next_authentication(&mut self) -> Option<Vec<u8>> {
        self.counts.authentication.pop_front()
    }

    /// Counts these bytes.
    pub(super) fn hear(&mut self, mut bytes: &[u8]) {
        self.counts.bytes += u64::try_from(bytes.len()).unwrap_or(0);
        while !bytes.is_empty() {
            if self.head.len() < HEAD_LEN {
                let (head, rest) = cut(bytes, HEAD_LEN - self.head.len());
                self.head.extend_from_slice(head);
                bytes = rest;
                let [_, a, b, c, d] = *self.head.as_slice() else { continue };
                self.begin(u32::from_be_bytes([a, b, c, d]));
            } else {
                let (payload, rest) = cut(bytes, self.missing);
                self.missing -= payload.len();
                let room = KEPT_BYTES_MAX.saturating_sub(self.kept.len());
                if self.keeps {
                    self.kept.extend_from_slice(cut(payload, room).0);
                }
                self.count_content(payload.len());
                bytes = rest;
            }
            if self.head.len() == HEAD_LEN && self.missing == 0 {
                self.count();
                self.head.clear();
                self.kept.clear();
            }
        }
    }

    fn tag(&self) -> u8 {
        self.head.first().copied().unwrap_or(0)
    }

    /// Tag and length are known.
    fn begin(&mut self, length: u32) {
        // The length counts itself.
        self.missing = usize::try_from(length).unwrap_or(0).saturating_sub(4);
        self.keeps = match self.tag() {
            b'D' => self.missing <= ROW_KEPT_BYTES_MAX,
            b'R' | b'E' | b'C' => true,
            _ => false,
        };
    }

    fn count_content(&mut self, length: usize) {
        if matches!(self.tag(), b'D' | b'd') {
            self.counts.content_bytes += u64::try_from(length).unwrap_or(0);
        }
    }

    /// The message is complete.
    fn count(&mut self) {
        match self.tag() {
            b'Z' => self.counts.ready += 1,
            b'D' => {
                self.counts.rows += 1;
                self.counts.row.clone_from(&self.kept);
            }
            b'C' => {
                self.counts.commands += 1;
                let text = self.kept.split(|byte| *byte == 0).next().unwrap_or_default();
                if self.counts.tag.as_bytes() != text {
                    self.counts.tag = String::from_utf8_lossy(text).into_owned();
                }
            }
            b'1' => self.counts.parsed += 1,
            b'2' => self.counts.bound += 1,
            b'G' => self.counts.copy_starts += 1,
            b'R' => self.counts.authentication.push_back(self.kept.clone()),
            b'E' => self.counts.error = self.counts.error.take().or_else(|| Some(error(&self.kept))),
            _ => (),
        }
    }
}

/// Up to `length` bytes, and the rest.
fn cut(bytes: &[u8], length: usize) -> (&[u8], &[u8]) {
    bytes.split_at_checked(length).unwrap_or((bytes, &[]))
}

fn error(payload: &[u8]) -> String {
    let field = |tag: u8| {
        let found = payload.split(|byte| *byte == 0).find(|field| field.first() == Some(&tag));
        String::from_utf8_lossy(found.and_then(|field| field.get(1..)).unwrap_or_default()).into_owned()
    };
    format!("{}: {}", field(b'C'), field(b'M'))
}

impl Counts {
    /// The first column of the last row as text, if the row is short.
    pub(super) fn first_column(&self) -> Option<&str> {
        let (length, rest) = self.row.get(2..)?.split_first_chunk()?;
        let length = usize::try_from(i32::from_be_bytes(*length)).ok()?;
        std::str::from_utf8(rest.get(..length)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len() + 4).unwrap();
        [&[tag], length.to_be_bytes().as_slice(), payload].concat()
    }

    fn answer() -> Vec<u8> {
        let row = [&[0, 1, 0, 0, 0, 2], b"42".as_slice()].concat();
        let long = [&[0, 1, 0, 0, 0, 100], [b'x'; 100].as_slice()].concat();
        [
            message(b'1', b""),
            message(b'2', b""),
            message(b'D', &long),
            message(b'D', &row),
            message(b'C', b"SELECT 2\0"),
            message(b'E', b"SERROR\0C22012\0Mdivision by zero\0\0"),
            message(b'Z', b"I"),
        ]
        .concat()
    }

    #[test]
    fn it_does_not_matter_where_the_bytes_are_cut() {
        let answer = answer();
        let mut whole = Tally::default();
        whole.hear(&answer);
        let counts = whole.take();
        assert_eq!((counts.ready, counts.rows, counts.commands), (1, 2, 1));
        assert_eq!((counts.parsed, counts.bound, counts.content_bytes), (1, 1, 114));
        assert_eq!((counts.tag.as_str(), counts.first_column()), ("SELECT 2", Some("42")));
        assert_eq!(counts.error.as_deref(), Some("22012: division by zero"));
        assert_eq!(counts.bytes, u64::try_from(answer.len()).unwrap());
        for size in 1..20 {
            let mut cut = Tally::default();
            answer.chunks(size).for_each(|chunk| cut.hear(chunk));
            assert_eq!(cut.take(), counts, "in pieces of {size}");
        }
        assert_eq!(whole.take(), Counts::default());
    }

    #[test]
    fn a_long_row_is_not_kept() {
        let mut tally = Tally::default();
        let long = message(b'D', &[7; 5000]);
        long.chunks(1400).for_each(|chunk| tally.hear(chunk));
        assert_eq!((tally.counts().rows, tally.counts().first_column()), (1, None));
        assert!(tally.counts().row.is_empty());
    }
}
