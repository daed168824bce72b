//! Where a message begins and ends.

use bytes::{Buf, BufMut, BytesMut};
use memchr::memchr;

/// Tag and length word of every message but the startup packets.
pub const HEADER_LEN: usize = 5;

/// The longest that a PostgreSQL server can build: a buffer of 1 GB less one byte, and a length word.
pub const MESSAGE_MAX: usize = (1 << 30) + 2;

/// The head of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What kind of message.
    pub tag: u8,
    /// Bytes of the whole message, tag and length word included.
    pub len: usize,
}

/// A length that no message can have. What follows in the stream cannot be told apart any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("message {tag:?} announces an impossible length of {length} bytes", tag = char::from(*tag))]
pub struct BadFrame {
    /// The message's tag.
    pub tag: u8,
    /// Its length word.
    pub length: i32,
}

/// The head of the message that `bytes` begins with; `None` while it is incomplete.
pub fn header(bytes: &[u8]) -> Result<Option<Header>, BadFrame> {
    let [tag, a, b, c, d, ..] = *bytes else { return Ok(None) };
    let length = i32::from_be_bytes([a, b, c, d]);
    match usize::try_from(length) {
        Ok(counted) if (4..=MESSAGE_MAX).contains(&counted) => Ok(Some(Header { tag, len: counted + 1 })),
        Ok(_) | Err(_) => Err(BadFrame { tag, length }),
    }
}

/// The first message of `bytes` with its tag and payload; `None` while it is incomplete.
pub fn message(bytes: &[u8]) -> Result<Option<(Header, &[u8])>, BadFrame> {
    let Some(header) = header(bytes)? else { return Ok(None) };
    Ok(bytes.get(HEADER_LEN..header.len).map(|payload| (header, payload)))
}

/// Takes bytes away from the front, `count` at most. What becomes empty keeps its memory, which is not to be looked for
/// again by whoever writes there next.
pub fn consume(from: &mut BytesMut, count: usize) {
    if count >= from.len() {
        from.clear();
    } else {
        from.advance(count);
    }
}

/// Appends a message; `body` writes its payload.
pub fn put(out: &mut BytesMut, tag: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    put_counted(out, body);
}

/// Appends a length word that counts itself, and what `body` writes.
pub fn put_counted(out: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u32(0);
    body(out);
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    if let Some(word) = out.get_mut(start..start + 4) {
        word.copy_from_slice(&length.to_be_bytes());
    }
}

/// Appends text and its terminating zero.
pub fn put_text(out: &mut BytesMut, text: &str) {
    // A zero inside would end the text early and shift everything behind it.
    out.extend(text.bytes().filter(|byte| *byte != 0));
    out.put_u8(0);
}

/// A payload that is not what its tag promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the message ends early or holds text that is not UTF-8")]
pub struct Malformed;

/// Reads a payload field by field.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = tail;
        Ok(head)
    }

    /// One byte.
    pub fn byte(&mut self) -> Result<u8, Malformed> {
        let [byte] = *self.bytes(1)? else { return Err(Malformed) };
        Ok(byte)
    }

    /// A 32-bit number.
    pub fn int(&mut self) -> Result<i32, Malformed> {
        let [a, b, c, d] = *self.bytes(4)? else { return Err(Malformed) };
        Ok(i32::from_be_bytes([a, b, c, d]))
    }

    /// Bytes up to a zero, which is consumed too.
    pub fn raw_text(&mut self) -> Result<&'a [u8], Malformed> {
        let end = memchr(0, self.0).ok_or(Malformed)?;
        let text = self.bytes(end)?;
        self.byte()?;
        Ok(text)
    }

    /// Text up to a zero.
    pub fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.raw_text()?).map_err(|_| Malformed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn impossible_lengths_are_refused() {
        for length in [i32::MIN, -1, 0, 3, i32::MAX] {
            let mut bytes = vec![b'Q'];
            bytes.extend(length.to_be_bytes());
            assert_eq!(header(&bytes).unwrap_err().length, length);
        }
        assert_eq!(header(b"Q\0\0\0\x04").unwrap(), Some(Header { tag: b'Q', len: 5 }));
        assert_eq!(header(b"Q\0\0\0").unwrap(), None);
    }

    #[test]
    fn a_reader_never_runs_over() {
        let mut reader = Reader(b"ab\0\0\0\0\x07");
        assert_eq!(reader.text().unwrap(), "ab");
        assert_eq!(reader.int().unwrap(), 7);
        assert!(reader.byte().is_err());
        assert!(Reader(b"ab").text().is_err());
        assert!(Reader(b"\xff\0").text().is_err());
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_messages(
            messages in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)), 0..12),
            cuts in prop::collection::vec(1usize..30, 1..60),
        ) {
            let mut stream = BytesMut::new();
            for (tag, payload) in &messages {
                put(&mut stream, *tag, |out| out.extend_from_slice(payload));
            }
            let (mut buffer, mut seen, mut at) = (Vec::new(), Vec::new(), 0);
            let mut cuts = cuts.iter().cycle();
            while at < stream.len() {
                let end = (at + cuts.next().unwrap()).min(stream.len());
                buffer.extend_from_slice(&stream[at..end]);
                at = end;
                while let Some((head, payload)) = message(&buffer).unwrap() {
                    seen.push((head.tag, payload.to_vec()));
                    buffer.drain(..head.len);
                }
            }
            prop_assert!(buffer.is_empty());
            prop_assert_eq!(seen, messages);
        }
    }
}
