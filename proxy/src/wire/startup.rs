//! The first packet of a connection, which has no tag.

use bytes::{BufMut, BytesMut};

use super::frame::{self, Malformed, Reader};

const CANCEL: i32 = 80_877_102;
const SSL: i32 = 80_877_103;
const GSS: i32 = 80_877_104;

/// PostgreSQL's own bound on a startup packet.
pub const STARTUP_MAX: usize = 10_000;

/// Names a server process and proves the right to interrupt it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CancelKey {
    /// The process.
    pub pid: i32,
    /// The proof.
    pub secret: i32,
}

impl std::fmt::Debug for CancelKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CancelKey({}, ..)", self.pid)
    }
}

/// What a client opens a connection with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Startup {
    /// May we speak TLS?
    Ssl,
    /// May we speak GSSAPI encryption?
    Gss,
    /// Interrupt what runs for this key.
    Cancel(CancelKey),
    /// Log in.
    Start(Start),
}

/// A login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Minor version of protocol 3 that was asked for.
    pub minor: u16,
    /// Parameters in the order given.
    pub parameters: Vec<(String, String)>,
}

impl Start {
    /// The value of a parameter, if it was given.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether the connection is for replication.
    pub fn replication(&self) -> Result<Option<Replication>, StartupError> {
        self.parameter("replication").map_or(Ok(None), Replication::read)
    }

    /// Protocol options (`_pq_.*`): none is known here.
    pub fn protocol_options(&self) -> Vec<&str> {
        self.parameters.iter().map(|(key, _)| key.as_str()).filter(|key| key.starts_with("_pq_.")).collect()
    }
}

/// What a connection for replication replicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replication {
    /// The whole cluster's WAL; there is no database.
    Physical,
    /// What changes in one database.
    Logical,
}

impl Replication {
    /// From the value of the parameter `replication`, which is a boolean in any of PostgreSQL's words, or
    /// `database`.
    pub fn read(value: &str) -> Result<Option<Self>, StartupError> {
        // The first letters of a word are enough, where they belong to no other.
        const WORDS: [(&str, usize, bool); 8] = [
            ("true", 1, true),
            ("false", 1, false),
            ("yes", 1, true),
            ("no", 1, false),
            ("on", 2, true),
            ("off", 2, false),
            ("1", 1, true),
            ("0", 1, false),
        ];
        if value == "database" {
            return Ok(Some(Self::Logical));
        }
        let lower = value.to_ascii_lowercase();
        let stands_for = |(word, least, _): &&(&str, usize, bool)| {
            lower.len() >= *least && word.starts_with(lower.as_str())
        };
        match WORDS.iter().find(stands_for) {
            Some((_, _, asked)) => Ok(asked.then_some(Self::Physical)),
            None => Err(StartupError::Replication(value.to_owned())),
        }
    }
}

/// A first packet that cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartupError {
    /// Not a PostgreSQL client, or a damaged one.
    #[error("invalid length of startup packet: {0}")]
    Length(i32),
    /// Protocol 2 or something later than 3.
    #[error("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.0")]
    Version {
        /// Asked for.
        major: u16,
        /// Asked for.
        minor: u16,
    },
    /// Parameters that end early.
    #[error("invalid startup packet layout: expected terminator as last byte")]
    Layout(#[source] Malformed),
    /// No user name.
    #[error("no PostgreSQL user name specified in startup packet")]
    NoUser,
    /// Neither a boolean nor `database`.
    #[error("invalid value for parameter \"replication\": \"{0}\"")]
    Replication(String),
}

/// The first packet and its length; `None` while it is incomplete.
pub fn parse(bytes: &[u8]) -> Result<Option<(Startup, usize)>, StartupError> {
    let [a, b, c, d, ..] = *bytes else { return Ok(None) };
    let length = i32::from_be_bytes([a, b, c, d]);
    let len = usize::try_from(length).ok().filter(|len| (8..=STARTUP_MAX).contains(len));
    let len = len.ok_or(StartupError::Length(length))?;
    let Some(payload) = bytes.get(4..len) else { return Ok(None) };
    let mut reader = Reader(payload);
    let startup = match reader.int().map_err(StartupError::Layout)? {
        SSL => Startup::Ssl,
        GSS => Startup::Gss,
        CANCEL => Startup::Cancel(cancel_key(reader).map_err(StartupError::Layout)?),
        code => Startup::Start(start(code, reader)?),
    };
    Ok(Some((startup, len)))
}

fn cancel_key(mut reader: Reader<'_>) -> Result<CancelKey, Malformed> {
    Ok(CancelKey { pid: reader.int()?, secret: reader.int()? })
}

fn start(code: i32, mut reader: Reader<'_>) -> Result<Start, StartupError> {
    let [a, b, c, d] = code.to_be_bytes();
    let (major, minor) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    if major != 3 {
        return Err(StartupError::Version { major, minor });
    }
    let mut parameters = Vec::new();
    loop {
        let name = reader.text().map_err(StartupError::Layout)?;
        if name.is_empty() {
            break;
        }
        let value = reader.text().map_err(StartupError::Layout)?;
        parameters.push((name.to_owned(), value.to_owned()));
    }
    if !reader.0.is_empty() {
        return Err(StartupError::Layout(Malformed));
    }
    let start = Start { minor, parameters };
    match start.parameter("user") {
        Some(user) if !user.is_empty() => Ok(start),
        _ => Err(StartupError::NoUser),
    }
}

/// A login packet of protocol 3.0.
pub fn put_start<'a>(out: &mut BytesMut, parameters: impl Iterator<Item = (&'a str, &'a str)>) {
    frame::put_counted(out, |out| {
        out.put_u32(3 << 16);
        for (name, value) in parameters {
            frame::put_text(out, name);
            frame::put_text(out, value);
        }
        out.put_u8(0);
    });
}

/// May we speak TLS?
pub fn put_ssl_request(out: &mut BytesMut) {
    frame::put_counted(out, |out| out.put_i32(SSL));
}

/// A request to interrupt what runs for `key`.
pub fn put_cancel(out: &mut BytesMut, key: CancelKey) {
    frame::put_counted(out, |out| {
        out.put_i32(CANCEL);
        out.put_i32(key.pid);
        out.put_i32(key.secret);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(parameters: &[(&str, &str)]) -> BytesMut {
        let mut out = BytesMut::new();
        put_start(&mut out, parameters.iter().copied());
        out
    }

    #[test]
    fn a_login_survives_the_wire_however_it_is_cut() {
        let bytes = login(&[("user", "ann"), ("database", "shop"), ("_pq_.command", "1")]);
        for cut in 0..bytes.len() {
            assert_eq!(parse(&bytes[..cut]), Ok(None), "{cut}");
        }
        let (startup, len) = parse(&bytes).unwrap().unwrap();
        assert_eq!(len, bytes.len());
        let Startup::Start(start) = startup else { panic!("{startup:?}") };
        assert_eq!(start.parameter("database"), Some("shop"));
        assert_eq!(start.protocol_options(), ["_pq_.command"]);
    }

    #[test]
    fn a_cancel_survives_the_wire_and_hides_its_secret() {
        let key = CancelKey { pid: 7, secret: 424_242 };
        let mut out = BytesMut::new();
        put_cancel(&mut out, key);
        assert_eq!(parse(&out), Ok(Some((Startup::Cancel(key), 16))));
        assert!(!format!("{key:?}").contains("424242"));
    }

    #[test]
    fn a_request_for_tls_survives_the_wire() {
        let mut out = BytesMut::new();
        put_ssl_request(&mut out);
        assert_eq!(parse(&out), Ok(Some((Startup::Ssl, 8))));
    }

    #[test]
    fn strangers_are_refused_with_a_reason() {
        let http = parse(b"GET / HTTP/1.1\r\n").unwrap_err();
        assert!(matches!(http, StartupError::Length(_)), "{http}");
        let old = parse(b"\0\0\0\x08\0\x02\0\0").unwrap_err();
        assert_eq!(old, StartupError::Version { major: 2, minor: 0 });
        assert_eq!(parse(&login(&[("database", "x")])).unwrap_err(), StartupError::NoUser);
        for layout in [&b"\0\0\0\x0c\0\x03\0\0user"[..], b"\0\0\0\x11\0\x03\0\0user\0a\0\0b"] {
            let layout = parse(layout).unwrap_err();
            assert!(matches!(layout, StartupError::Layout(_)), "{layout}");
        }
    }

    #[test]
    fn replication_is_asked_for_in_any_word_for_yes() {
        for (value, expected) in [
            ("database", Some(Replication::Logical)),
            ("true", Some(Replication::Physical)),
            ("T", Some(Replication::Physical)),
            ("on", Some(Replication::Physical)),
            ("yEs", Some(Replication::Physical)),
            ("1", Some(Replication::Physical)),
            ("of", None),
            ("f", None),
            ("no", None),
            ("0", None),
        ] {
            assert_eq!(Replication::read(value), Ok(expected), "{value}");
        }
        for bad in ["", "o", "maybe", "Database", "trueish", "10"] {
            assert!(Replication::read(bad).is_err(), "{bad}");
        }
    }
}
