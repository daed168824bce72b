//! Messages from clients: what the proxy reads of them, and those it sends to servers itself.

use bytes::{BufMut, BytesMut};

use super::frame::{self, BadFrame, Header, Malformed, Reader};

/// The longest message that a server takes, its length word included.
const LONG_MAX: usize = (1 << 30) - 2;

/// The same for messages that carry next to nothing.
const SHORT_MAX: usize = 10_000;

/// The head of the message that `bytes` begins with, if a server would take it; `None` while it is incomplete.
pub fn header(bytes: &[u8]) -> Result<Option<Header>, BadFrame> {
    let Some(header) = frame::header(bytes)? else { return Ok(None) };
    let max = match header.tag {
        b'C' | b'D' | b'E' | b'H' | b'S' | b'X' | b'c' | b'f' => SHORT_MAX,
        _ => LONG_MAX,
    };
    let counted = header.len - 1;
    if counted <= max {
        return Ok(Some(header));
    }
    Err(BadFrame { tag: header.tag, length: i32::try_from(counted).unwrap_or(i32::MAX) })
}

/// `Parse`: a prepared statement's name, its text, and everything behind the name as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parse<'a> {
    /// Empty for the unnamed statement.
    pub name: &'a str,
    /// The statement.
    pub sql: &'a [u8],
    /// Text and parameter types, to send again under the same name.
    pub body: &'a [u8],
}

impl<'a> Parse<'a> {
    /// From a payload.
    pub fn read(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(payload);
        let name = reader.text()?;
        let body = reader.0;
        Ok(Self { name, sql: reader.raw_text()?, body })
    }
}

/// Portal and statement of a `Bind`, which stand at its beginning.
pub fn bind(payload: &[u8]) -> Result<(&str, &str), Malformed> {
    let mut reader = Reader(payload);
    Ok((reader.text()?, reader.text()?))
}

/// What `Describe` and `Close` are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject<'a> {
    /// A prepared statement.
    Statement(&'a str),
    /// A portal.
    Portal(&'a str),
}

/// The subject of a `Describe` or `Close`.
pub fn subject(payload: &[u8]) -> Result<Subject<'_>, Malformed> {
    let mut reader = Reader(payload);
    match reader.byte()? {
        b'S' => Ok(Subject::Statement(reader.text()?)),
        b'P' => Ok(Subject::Portal(reader.text()?)),
        _ => Err(Malformed),
    }
}

/// Appends a `Parse` for a statement whose body is known.
pub fn put_parse(out: &mut BytesMut, name: &str, body: &[u8]) {
    frame::put(out, b'P', |out| {
        frame::put_text(out, name);
        out.extend_from_slice(body);
    });
}

/// Appends a `Close` of a prepared statement.
pub fn put_close_statement(out: &mut BytesMut, name: &str) {
    frame::put(out, b'C', |out| {
        out.put_u8(b'S');
        frame::put_text(out, name);
    });
}

/// Appends a `Close` of the unnamed portal.
pub fn put_close_portal(out: &mut BytesMut) {
    frame::put(out, b'C', |out| out.extend_from_slice(b"P\0"));
}

/// Appends a `Bind` of the unnamed statement, without parameters, to the unnamed portal.
pub fn put_bind_unnamed(out: &mut BytesMut) {
    frame::put(out, b'B', |out| out.put_bytes(0, 8));
}

/// Appends a `Sync`.
pub fn put_sync(out: &mut BytesMut) {
    frame::put(out, b'S', |_| {});
}

/// Appends a simple `Query`.
pub fn put_query(out: &mut BytesMut, sql: &str) {
    frame::put(out, b'Q', |out| frame::put_text(out, sql));
}

/// Appends a call of the function with this number. Arguments are texts, the result comes in binary form.
pub fn put_call(out: &mut BytesMut, function: u32, arguments: &[&str]) {
    frame::put(out, b'F', |out| {
        out.put_u32(function);
        // No formats: all of them are texts.
        out.put_u16(0);
        out.put_u16(u16::try_from(arguments.len()).unwrap_or(u16::MAX));
        for argument in arguments {
            out.put_u32(u32::try_from(argument.len()).unwrap_or(u32::MAX));
            out.extend_from_slice(argument.as_bytes());
        }
        out.put_u16(1);
    });
}

/// Appends a `Terminate`.
pub fn put_terminate(out: &mut BytesMut) {
    frame::put(out, b'X', |_| {});
}

/// Appends the answer to a request for a password, hashed as it was asked for.
pub fn put_password(out: &mut BytesMut, answer: &str) {
    frame::put(out, b'p', |out| frame::put_text(out, answer));
}

/// Appends the first message of a SASL exchange.
pub fn put_sasl_initial(out: &mut BytesMut, mechanism: &str, data: &str) {
    frame::put(out, b'p', |out| {
        frame::put_text(out, mechanism);
        out.put_u32(u32::try_from(data.len()).unwrap_or(u32::MAX));
        out.extend_from_slice(data.as_bytes());
    });
}

/// Appends a later message of a SASL exchange.
pub fn put_sasl_response(out: &mut BytesMut, data: &str) {
    frame::put(out, b'p', |out| out.extend_from_slice(data.as_bytes()));
}

/// Mechanism and data of the first SASL message of a client.
pub fn sasl_initial(payload: &[u8]) -> Result<(&str, &[u8]), Malformed> {
    let mut reader = Reader(payload);
    let mechanism = reader.text()?;
    match usize::try_from(reader.int()?) {
        Ok(len) => Ok((mechanism, reader.bytes(len)?)),
        Err(_) => Ok((mechanism, &[])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_as_long_as_servers_take_them() {
        let head = |tag: u8, counted: i32| {
            let mut bytes = vec![tag];
            bytes.extend(counted.to_be_bytes());
            header(&bytes)
        };
        for (tag, max) in [(b'Q', (1 << 30) - 2), (b'd', (1 << 30) - 2), (b'S', 10_000), (b'c', 10_000)] {
            assert!(head(tag, max).is_ok_and(|header| header.is_some()));
            assert_eq!(head(tag, max + 1), Err(BadFrame { tag, length: max + 1 }));
        }
        assert_eq!(header(b"Q\0\0"), Ok(None));
    }

    #[test]
    fn a_parse_is_taken_apart_and_put_together_again() {
        let mut out = BytesMut::new();
        put_parse(&mut out, "s1", b"SELECT $1\0\0\x01\0\0\0\x17");
        let (head, payload) = frame::message(&out).unwrap().unwrap();
        assert_eq!((head.tag, head.len), (b'P', out.len()));
        let parse = Parse::read(payload).unwrap();
        assert_eq!((parse.name, parse.sql), ("s1", b"SELECT $1".as_slice()));
        let mut again = BytesMut::new();
        put_parse(&mut again, parse.name, parse.body);
        assert_eq!(again, out);
    }

    #[test]
    fn names_stand_at_the_front() {
        assert_eq!(bind(b"p\0s\0\0\0").unwrap(), ("p", "s"));
        assert_eq!(subject(b"Ss1\0").unwrap(), Subject::Statement("s1"));
        assert_eq!(subject(b"P\0").unwrap(), Subject::Portal(""));
        assert!(subject(b"X\0").is_err());
        assert!(bind(b"p\0s").is_err());
    }

    #[test]
    fn sasl_messages_carry_their_data() {
        let mut out = BytesMut::new();
        put_sasl_initial(&mut out, "SCRAM-SHA-256", "n,,n=,r=x");
        let (_, payload) = frame::message(&out).unwrap().unwrap();
        assert_eq!(sasl_initial(payload).unwrap(), ("SCRAM-SHA-256", b"n,,n=,r=x".as_slice()));
        assert!(sasl_initial(b"M\0\0\0\0\x09short").is_err());
    }
}
