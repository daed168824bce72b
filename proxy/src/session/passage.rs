//! A stream of messages that passes as it is: where it may be interrupted.

use crate::wire::frame::{self, BadFrame};

use super::segment::LARGE;

/// How far the stream is passed on.
#[derive(Debug, Default)]
pub struct Passage {
    /// So many bytes of a message that is passed on have yet to come.
    rest: usize,
    last: u8,
}

impl Passage {
    /// How many bytes at the front of what is not passed on yet may be: whole messages, and what is there
    /// of one too large to wait for.
    pub fn pass(&mut self, bytes: &[u8]) -> Result<usize, BadFrame> {
        let mut at = self.rest.min(bytes.len());
        self.rest -= at;
        while let Some(header) = frame::header(bytes.get(at..).unwrap_or_default())? {
            let have = bytes.len() - at;
            if have < header.len && have < LARGE {
                break;
            }
            self.last = header.tag;
            self.rest = header.len.saturating_sub(have);
            at += header.len.min(have);
        }
        Ok(at)
    }

    /// Whether something may be said in between now.
    pub fn is_between(&self) -> bool {
        self.rest == 0
    }

    /// Whether the last message told of an error.
    pub fn ends_with_error(&self) -> bool {
        self.last == b'E'
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;

    #[test]
    fn messages_pass_whole_unless_they_are_large() {
        let (mut stream, mut passage) = (BytesMut::new(), Passage::default());
        frame::put(&mut stream, b'd', |out| out.extend_from_slice(&[0; 100]));
        frame::put(&mut stream, b'E', |out| out.extend_from_slice(&[0; 3 * LARGE]));
        assert_eq!(passage.pass(&stream[..104]), Ok(0));
        assert_eq!(passage.pass(&stream[..110]), Ok(105));
        assert!(passage.is_between() && !passage.ends_with_error());
        assert_eq!(passage.pass(&stream[105..105 + LARGE - 1]), Ok(0));
        assert_eq!(passage.pass(&stream[105..105 + LARGE]), Ok(LARGE));
        assert!(!passage.is_between() && passage.ends_with_error());
        assert_eq!(passage.pass(&stream[105 + LARGE..]), Ok(stream.len() - 105 - LARGE));
        assert!(passage.is_between());
        assert!(passage.pass(b"d\0\0\0\0").is_err());
    }
}
