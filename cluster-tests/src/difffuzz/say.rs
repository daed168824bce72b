//! What a client can say, in bytes and for people.

use std::fmt;

/// One message of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Say {
    Query(String),
    Parse {
        name: String,
        sql: String,
        types: Vec<u32>,
    },
    Bind(Bind),
    /// `S` or `P`, and a name.
    Describe(u8, String),
    /// A portal, and how many rows of it; 0 for all.
    Execute(String, u32),
    /// `S` or `P`, and a name.
    Close(u8, String),
    Flush,
    Sync,
    CopyData(Vec<u8>),
    CopyDone,
    CopyFail(String),
    /// A function's OID, its arguments in binary.
    Call(u32, Vec<Option<Vec<u8>>>),
}

/// A `Bind`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Bind {
    pub(super) portal: String,
    pub(super) statement: String,
    pub(super) formats: Vec<u16>,
    pub(super) values: Vec<Option<Vec<u8>>>,
    pub(super) results: Vec<u16>,
}

impl Say {
    /// Whether the server runs something for it.
    pub(super) fn runs(&self) -> bool {
        matches!(self, Self::Query(_) | Self::Execute(..) | Self::Call(..))
    }

    /// Appends its bytes.
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Query(sql) => message(out, b'Q', |out| text(out, sql)),
            Self::Parse { name, sql, types } => message(out, b'P', |out| {
                text(out, name);
                text(out, sql);
                count(out, types.len());
                types.iter().for_each(|oid| out.extend(oid.to_be_bytes()));
            }),
            Self::Bind(bind) => message(out, b'B', |out| bind.put(out)),
            Self::Describe(kind, name) => about(out, b'D', *kind, name),
            Self::Close(kind, name) => about(out, b'C', *kind, name),
            Self::Execute(portal, rows) => message(out, b'E', |out| {
                text(out, portal);
                out.extend(rows.to_be_bytes());
            }),
            Self::Flush => message(out, b'H', |_| ()),
            Self::Sync => message(out, b'S', |_| ()),
            Self::CopyData(data) => message(out, b'd', |out| out.extend(data)),
            Self::CopyDone => message(out, b'c', |_| ()),
            Self::CopyFail(why) => message(out, b'f', |out| text(out, why)),
            Self::Call(function, arguments) => message(out, b'F', |out| {
                out.extend(function.to_be_bytes());
                formats(out, &[1]);
                values(out, arguments);
                out.extend(1u16.to_be_bytes());
            }),
        }
    }
}

impl Bind {
    fn put(&self, out: &mut Vec<u8>) {
        text(out, &self.portal);
        text(out, &self.statement);
        formats(out, &self.formats);
        values(out, &self.values);
        formats(out, &self.results);
    }
}

/// Appends a message with its length.
pub(super) fn message(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    counted(out, body);
}

/// Appends a length that counts itself, and what it counts.
pub(super) fn counted(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    body(&mut inner);
    out.extend(u32::try_from(inner.len() + 4).unwrap_or(u32::MAX).to_be_bytes());
    out.extend(inner);
}

/// Appends text and its zero.
pub(super) fn text(out: &mut Vec<u8>, text: &str) {
    out.extend(text.as_bytes());
    out.push(0);
}

fn about(out: &mut Vec<u8>, tag: u8, kind: u8, name: &str) {
    message(out, tag, |out| {
        out.push(kind);
        text(out, name);
    });
}

fn count(out: &mut Vec<u8>, count: usize) {
    out.extend(u16::try_from(count).unwrap_or(u16::MAX).to_be_bytes());
}

fn formats(out: &mut Vec<u8>, formats: &[u16]) {
    count(out, formats.len());
    formats.iter().for_each(|format| out.extend(format.to_be_bytes()));
}

fn values(out: &mut Vec<u8>, values: &[Option<Vec<u8>>]) {
    count(out, values.len());
    for value in values {
        match value {
            None => out.extend((-1i32).to_be_bytes()),
            Some(bytes) => {
                out.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
                out.extend(bytes);
            }
        }
    }
}

impl fmt::Display for Say {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Query(sql) => write!(f, "Query {}", cut(sql)),
            Self::Parse { name, sql, types } => write!(f, "Parse {name:?} {types:?} {}", cut(sql)),
            Self::Bind(bind) => {
                let Bind { portal, statement, formats, values, results } = bind;
                let shown = values.iter().map(|value| value.as_deref().map(printable));
                let shown: Vec<_> = shown.map(|value| value.unwrap_or_else(|| "NULL".to_owned())).collect();
                write!(
                    f,
                    "Bind portal {portal:?} of {statement:?}: {formats:?} {} -> {results:?}",
                    shown.join(", ")
                )
            }
            Self::Describe(kind, name) => write!(f, "Describe {} {name:?}", char::from(*kind)),
            Self::Execute(portal, rows) => write!(f, "Execute {portal:?}, {rows} rows"),
            Self::Close(kind, name) => write!(f, "Close {} {name:?}", char::from(*kind)),
            Self::Flush => f.write_str("Flush"),
            Self::Sync => f.write_str("Sync"),
            Self::CopyData(data) => write!(f, "CopyData {}", printable(data)),
            Self::CopyDone => f.write_str("CopyDone"),
            Self::CopyFail(why) => write!(f, "CopyFail {why}"),
            Self::Call(function, arguments) => write!(f, "FunctionCall {function} {arguments:?}"),
        }
    }
}

/// As much as a person wants to see of a text.
fn cut(text: &str) -> String {
    const SHOWN: usize = 400;
    match text.char_indices().nth(SHOWN) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}... ({} bytes)", text.get(..at).unwrap_or_default(), text.len()),
    }
}

/// The same, of bytes.
pub(super) fn printable(bytes: &[u8]) -> String {
    cut(&bytes.escape_ascii().to_string())
}
