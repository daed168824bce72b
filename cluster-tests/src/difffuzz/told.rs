//! What a server says, without that in which two servers must differ.

use std::fmt;

use super::say::printable;

/// Objects of users have numbers from here up, and each server gives its own.
const FIRST_USER_OID: u32 = 16_384;

/// One message of a server, or the end of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    /// 0: the connection ended.
    pub(super) tag: u8,
    pub(super) payload: Vec<u8>,
}

impl Told {
    /// The end of the connection.
    pub(super) fn end() -> Self {
        Self { tag: 0, payload: vec![] }
    }

    /// A `ReadyForQuery` in a transaction that has failed.
    pub(super) fn is_failed(&self) -> bool {
        self.tag == b'Z' && self.payload == b"E"
    }

    /// Refused because the transaction has failed.
    pub(super) fn is_refused(&self) -> bool {
        self.is_error(b"\0C25P02")
    }

    /// Refused for the number of values.
    pub(super) fn is_miscounted(&self) -> bool {
        self.is_error(b"\0C08P01")
    }

    fn is_error(&self, code: &[u8; 7]) -> bool {
        self.tag == b'E' && self.payload.windows(code.len()).any(|part| part == code)
    }

    /// A message as it came.
    pub(super) fn new(tag: u8, mut payload: Vec<u8>) -> Self {
        match tag {
            b'T' => columns(&mut payload),
            b't' => oids(payload.get_mut(2..).unwrap_or_default()),
            b'E' if payload.windows(7).any(|part| part == b"\0C25P02") => {
                // A connection that has yet to hear of a statement refuses it, not its use.
                let fields = payload.split(|byte| *byte == 0);
                let kept = fields.filter(|field| !matches!(field.first(), Some(b'F' | b'L' | b'R')));
                payload = kept.collect::<Vec<_>>().join(&0);
            }
            // The process that notified.
            b'A' => payload.iter_mut().take(4).for_each(|byte| *byte = 0),
            _ => {}
        }
        Self { tag, payload }
    }
}

/// Tables and types of users get one number for all in a `RowDescription`.
fn columns(payload: &mut [u8]) {
    let mut rest = payload.get_mut(2..).unwrap_or_default();
    while let Some(end) = rest.iter().position(|byte| *byte == 0) {
        // Table, column, type, size, modifier, format.
        let Some((column, next)) = rest.split_at_mut_checked(end + 19) else { return };
        for (from, to) in [(1, 5), (7, 11)] {
            oids(column.get_mut(end + from..end + to).unwrap_or_default());
        }
        rest = next;
    }
}

fn oids(bytes: &mut [u8]) {
    for word in bytes.chunks_exact_mut(4) {
        if let [a, b, c, d] = *word
            && u32::from_be_bytes([a, b, c, d]) >= FIRST_USER_OID
        {
            word.copy_from_slice(&FIRST_USER_OID.to_be_bytes());
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.tag {
            0 => return f.write_str("(end of the connection)"),
            b'1' => "ParseComplete",
            b'2' => "BindComplete",
            b'3' => "CloseComplete",
            b'A' => "NotificationResponse",
            b'C' => "CommandComplete",
            b'D' => "DataRow",
            b'E' => "ErrorResponse",
            b'G' => "CopyInResponse",
            b'H' => "CopyOutResponse",
            b'I' => "EmptyQueryResponse",
            b'N' => "NoticeResponse",
            b'S' => "ParameterStatus",
            b'T' => "RowDescription",
            b'V' => "FunctionCallResponse",
            b'Z' => "ReadyForQuery",
            b'c' => "CopyDone",
            b'd' => "CopyData",
            b'n' => "NoData",
            b's' => "PortalSuspended",
            b't' => "ParameterDescription",
            other => return write!(f, "message {:?} {}", char::from(other), printable(&self.payload)),
        };
        write!(f, "{name} {}", printable(&self.payload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_of_users_objects_are_evened_out() {
        let row = |table: u32, kind: u32| {
            let mut payload = vec![0, 1, b'a', 0];
            payload.extend(table.to_be_bytes());
            payload.extend([0, 3]);
            payload.extend(kind.to_be_bytes());
            payload.extend([0, 4, 255, 255, 255, 255, 0, 0]);
            Told::new(b'T', payload)
        };
        assert_eq!(row(20_000, 23), row(30_000, 23));
        assert_eq!(row(20_000, 20_001), row(30_000, 30_001));
        assert_ne!(row(20_000, 23), row(1259, 23));
        assert_ne!(row(20_000, 23), row(20_000, 25));
        let error = |text: &[u8]| Told::new(b'E', text.to_vec());
        assert_ne!(error(b"SERROR\0C22012\0L1\0\0"), error(b"SERROR\0C22012\0L2\0\0"));
        assert_eq!(error(b"SERROR\0C25P02\0L1\0\0"), error(b"SERROR\0C25P02\0L2\0\0"));
        assert_ne!(error(b"SERROR\0C25P02\0Mone\0\0"), error(b"SERROR\0C25P02\0Mtwo\0\0"));
    }
}
