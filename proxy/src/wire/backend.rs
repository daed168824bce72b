//! Messages from servers: what the proxy reads of them, and those it sends to clients itself.

use std::fmt;

use bytes::{BufMut, BytesMut};

use super::frame::{self, Malformed, Reader};
use super::startup::CancelKey;

/// Where a session stands with regard to transactions, as `ReadyForQuery` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TxStatus {
    /// No transaction block.
    Idle,
    /// In a transaction block.
    Open,
    /// In one that failed.
    Failed,
}

impl TxStatus {
    /// From its byte on the wire.
    pub fn read(payload: &[u8]) -> Result<Self, Malformed> {
        match payload {
            [b'I'] => Ok(Self::Idle),
            [b'T'] => Ok(Self::Open),
            [b'E'] => Ok(Self::Failed),
            _ => Err(Malformed),
        }
    }

    fn byte(self) -> u8 {
        match self {
            Self::Idle => b'I',
            Self::Open => b'T',
            Self::Failed => b'E',
        }
    }
}

/// How bad an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The statement failed.
    Error,
    /// The connection ends.
    Fatal,
}

impl Severity {
    fn word(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
        }
    }
}

/// An `ErrorResponse`, as far as the proxy is concerned with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerError {
    /// How bad.
    pub severity: Severity,
    /// SQLSTATE.
    pub code: String,
    /// Primary message.
    pub message: String,
    /// Secondary message.
    pub detail: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// All other fields, in their order: where in the statement, and where in the server.
    pub others: Box<[(u8, String)]>,
}

impl ServerError {
    /// From a payload. Text in another encoding than UTF-8 is shown with replacement characters.
    pub fn read(payload: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(payload);
        let mut error = Self {
            severity: Severity::Error,
            code: String::new(),
            message: String::new(),
            detail: None,
            hint: None,
            others: Box::default(),
        };
        let mut others = vec![];
        loop {
            let field = reader.byte()?;
            if field == 0 {
                error.others = others.into();
                return Ok(error);
            }
            let text = String::from_utf8_lossy(reader.raw_text()?).into_owned();
            match field {
                // 'V' is never translated and comes after 'S'.
                b'S' | b'V' if text == "FATAL" || text == "PANIC" => error.severity = Severity::Fatal,
                b'S' | b'V' => {}
                b'C' => error.code = text,
                b'M' => error.message = text,
                b'D' => error.detail = Some(text),
                b'H' => error.hint = Some(text),
                other => others.push((other, text)),
            }
        }
    }

    /// Appends it as a message.
    pub fn put(&self, out: &mut BytesMut) {
        frame::put(out, b'E', |out| {
            let mut field = |tag: u8, text: &str| {
                out.put_u8(tag);
                frame::put_text(out, text);
            };
            field(b'S', self.severity.word());
            field(b'V', self.severity.word());
            field(b'C', &self.code);
            field(b'M', &self.message);
            if let Some(detail) = &self.detail {
                field(b'D', detail);
            }
            if let Some(hint) = &self.hint {
                field(b'H', hint);
            }
            for (tag, text) in &self.others {
                field(*tag, text);
            }
            out.put_u8(0);
        });
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.severity.word(), self.code, self.message)
    }
}

/// What a server asks of whoever logs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authentication {
    /// Nothing (more).
    Ok,
    /// A hash of the password's stored hash and this salt.
    Md5([u8; 4]),
    /// A SASL exchange by one of these mechanisms.
    Sasl(Vec<String>),
    /// The server's turn within a SASL exchange.
    SaslContinue(String),
    /// The server's last word in a SASL exchange.
    SaslFinal(String),
    /// Something the proxy cannot answer.
    Other(i32),
}

impl Authentication {
    /// From a payload.
    pub fn read(payload: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(payload);
        let code = reader.int()?;
        let rest = || std::str::from_utf8(reader.0).map(str::to_owned).map_err(|_| Malformed);
        match code {
            0 => Ok(Self::Ok),
            5 => reader.0.try_into().map(Self::Md5).map_err(|_| Malformed),
            10 => {
                let names = rest()?;
                Ok(Self::Sasl(names.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect()))
            }
            11 => Ok(Self::SaslContinue(rest()?)),
            12 => Ok(Self::SaslFinal(rest()?)),
            other => Ok(Self::Other(other)),
        }
    }
}

/// Name and value of a `ParameterStatus`.
pub fn parameter(payload: &[u8]) -> Result<(&str, &str), Malformed> {
    let mut reader = Reader(payload);
    Ok((reader.text()?, reader.text()?))
}

/// A `BackendKeyData`.
pub fn key(payload: &[u8]) -> Result<CancelKey, Malformed> {
    let mut reader = Reader(payload);
    Ok(CancelKey { pid: reader.int()?, secret: reader.int()? })
}

/// The result in a `FunctionCallResponse`; `None`: it is null.
pub fn result(payload: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    let mut reader = Reader(payload);
    match usize::try_from(reader.int()?) {
        Ok(len) => reader.bytes(len).map(Some),
        Err(_) => Ok(None),
    }
}

/// Appends `AuthenticationOk`.
pub fn put_auth_ok(out: &mut BytesMut) {
    frame::put(out, b'R', |out| out.put_u32(0));
}

/// Appends `AuthenticationMD5Password`.
pub fn put_auth_md5(out: &mut BytesMut, salt: [u8; 4]) {
    frame::put(out, b'R', |out| {
        out.put_u32(5);
        out.extend_from_slice(&salt);
    });
}

/// Appends `AuthenticationSASL` offering these mechanisms.
pub fn put_auth_sasl(out: &mut BytesMut, mechanisms: &[&str]) {
    frame::put(out, b'R', |out| {
        out.put_u32(10);
        mechanisms.iter().for_each(|mechanism| frame::put_text(out, mechanism));
        out.put_u8(0);
    });
}

/// Appends `AuthenticationSASLContinue`.
pub fn put_auth_sasl_continue(out: &mut BytesMut, data: &str) {
    frame::put(out, b'R', |out| {
        out.put_u32(11);
        out.extend_from_slice(data.as_bytes());
    });
}

/// Appends `AuthenticationSASLFinal`.
pub fn put_auth_sasl_final(out: &mut BytesMut, data: &str) {
    frame::put(out, b'R', |out| {
        out.put_u32(12);
        out.extend_from_slice(data.as_bytes());
    });
}

/// Appends an error in the way of protocol 2, for clients that speak nothing later.
pub fn put_old_error(out: &mut BytesMut, error: &ServerError) {
    out.put_u8(b'E');
    frame::put_text(out, &format!("{}:  {}\n", error.severity.word(), error.message));
}

/// Appends `NegotiateProtocolVersion`: 3.0 is spoken, and these options are not known.
pub fn put_negotiate(out: &mut BytesMut, unknown_options: &[&str]) {
    frame::put(out, b'v', |out| {
        out.put_u32(3 << 16);
        out.put_u32(u32::try_from(unknown_options.len()).unwrap_or(u32::MAX));
        unknown_options.iter().for_each(|option| frame::put_text(out, option));
    });
}

/// Appends `ParameterStatus`.
pub fn put_parameter(out: &mut BytesMut, name: &str, value: &str) {
    frame::put(out, b'S', |out| {
        frame::put_text(out, name);
        frame::put_text(out, value);
    });
}

/// Appends a `NoticeResponse`.
pub fn put_notice(out: &mut BytesMut, message: &str, hint: &str) {
    frame::put(out, b'N', |out| {
        for (tag, text) in
            [(b'S', "NOTICE"), (b'V', "NOTICE"), (b'C', "00000"), (b'M', message), (b'H', hint)]
        {
            out.put_u8(tag);
            frame::put_text(out, text);
        }
        out.put_u8(0);
    });
}

/// Appends `BackendKeyData`.
pub fn put_key(out: &mut BytesMut, key: CancelKey) {
    frame::put(out, b'K', |out| {
        out.put_i32(key.pid);
        out.put_i32(key.secret);
    });
}

/// Appends `ReadyForQuery`.
pub fn put_ready(out: &mut BytesMut, status: TxStatus) {
    frame::put(out, b'Z', |out| out.put_u8(status.byte()));
}

/// Appends a message without payload: `ParseComplete`, `BindComplete`, `CloseComplete`, `NoData` ...
pub fn put_empty(out: &mut BytesMut, tag: u8) {
    frame::put(out, tag, |_| {});
}

/// Appends `ParameterDescription` of a statement without parameters.
pub fn put_no_parameters(out: &mut BytesMut) {
    frame::put(out, b't', |out| out.put_u16(0));
}

/// Appends a `RowDescription` of text columns.
pub fn put_columns(out: &mut BytesMut, names: &[&str]) {
    const TEXT: u32 = 25;
    frame::put(out, b'T', |out| {
        out.put_u16(u16::try_from(names.len()).unwrap_or(u16::MAX));
        for name in names {
            frame::put_text(out, name);
            out.put_u32(0);
            out.put_u16(0);
            out.put_u32(TEXT);
            out.put_i16(-1);
            out.put_i32(-1);
            out.put_u16(0);
        }
    });
}

/// Appends a `DataRow` of texts.
pub fn put_row(out: &mut BytesMut, values: &[String]) {
    frame::put(out, b'D', |out| {
        out.put_u16(u16::try_from(values.len()).unwrap_or(u16::MAX));
        for value in values {
            out.put_u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
            out.extend_from_slice(value.as_bytes());
        }
    });
}

/// Appends `CommandComplete`.
pub fn put_complete(out: &mut BytesMut, tag: &str) {
    frame::put(out, b'C', |out| frame::put_text(out, tag));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_survive_the_wire() {
        let error = ServerError {
            severity: Severity::Fatal,
            code: "57P01".into(),
            message: "terminating connection".into(),
            detail: Some("d".into()),
            hint: None,
            others: Box::default(),
        };
        let mut out = BytesMut::new();
        error.put(&mut out);
        let (_, payload) = frame::message(&out).unwrap().unwrap();
        assert_eq!(ServerError::read(payload).unwrap(), error);
        assert!(ServerError::read(b"SFATAL\0").is_err());
    }

    #[test]
    fn old_clients_are_told_in_their_own_way() {
        let error = ServerError {
            severity: Severity::Fatal,
            code: "0A000".into(),
            message: "too old".into(),
            detail: None,
            hint: None,
            others: Box::default(),
        };
        let mut out = BytesMut::new();
        put_old_error(&mut out, &error);
        assert_eq!(&out[..], b"EFATAL:  too old\n\0");
    }

    #[test]
    fn translated_severities_do_not_hide_a_fatal_error() {
        let error = ServerError::read(b"SFATALE\0VFATAL\0C57P01\0Mfin\0\0").unwrap();
        assert_eq!(error.severity, Severity::Fatal);
    }

    #[test]
    fn statuses_survive_the_wire() {
        for status in [TxStatus::Idle, TxStatus::Open, TxStatus::Failed] {
            let mut out = BytesMut::new();
            put_ready(&mut out, status);
            assert_eq!(TxStatus::read(&out[5..]).unwrap(), status);
        }
        assert!(TxStatus::read(b"X").is_err());
    }

    #[test]
    fn authentication_requests_are_understood() {
        let mut out = BytesMut::new();
        put_auth_sasl(&mut out, &["SCRAM-SHA-256"]);
        let sasl = Authentication::read(&out[5..]).unwrap();
        assert_eq!(sasl, Authentication::Sasl(vec!["SCRAM-SHA-256".into()]));
        assert_eq!(Authentication::read(&3i32.to_be_bytes()).unwrap(), Authentication::Other(3));
        let mut out = BytesMut::new();
        put_auth_md5(&mut out, [1, 2, 3, 4]);
        assert_eq!(Authentication::read(&out[5..]).unwrap(), Authentication::Md5([1, 2, 3, 4]));
        assert!(Authentication::read(&5i32.to_be_bytes()).is_err());
    }
}
