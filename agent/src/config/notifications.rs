//! `[notifications]`: who is told of what, and how.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use pgherd_common::config::{ConfigValue, Millis, Reader, Secret, Section};
use pgherd_core::events::Severity;
use toml::Value;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notifications {
    /// What matters less is only logged.
    pub level: Severity,
    /// Comes first in every notification.
    pub prefix: String,
    /// How often people are told again of what lasts; zero: never.
    pub repeat: Duration,
    /// By mail.
    pub smtp: Option<Smtp>,
    /// By HTTP.
    pub webhook: Option<Webhook>,
}

/// A mail server, and who gets mail. The password does not show in `Debug`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Smtp {
    /// The server.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How the connection is encrypted.
    pub tls: SmtpTls,
    /// Certificates to trust besides those of the system.
    pub ca_file: Option<PathBuf>,
    /// The login, if it wants one.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<Password>,
    /// The sender.
    pub from: String,
    /// Who gets it.
    pub to: Vec<String>,
    /// How long it may take.
    pub timeout: Duration,
}

/// A password, or where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Password {
    /// This one.
    Given(Secret),
    /// The first line of this file, read each time.
    File(PathBuf),
}

/// How a mail server is talked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SmtpTls {
    /// In the clear.
    None,
    /// Encrypted after a greeting in the clear; refused if the server cannot.
    StartTls,
    /// Encrypted from the beginning.
    Tls,
}

impl ConfigValue for SmtpTls {
    const KIND: &'static str = "\"none\", \"starttls\" or \"tls\"";

    fn from_value(value: &Value) -> Result<Self, String> {
        match value.as_str() {
            Some("none") => Ok(Self::None),
            Some("starttls") => Ok(Self::StartTls),
            Some("tls") => Ok(Self::Tls),
            Some(_) | None => Err(format!("found {} {value}", value.type_str())),
        }
    }
}

/// Where notifications are posted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// `http://` or `https://`.
    pub url: Url,
    /// Certificates to trust besides those of the system.
    pub ca_file: Option<PathBuf>,
    /// Sent along. They may hold secrets.
    pub headers: BTreeMap<String, Secret>,
    /// The first line of this file is sent as bearer token, read each time.
    pub token_file: Option<PathBuf>,
    /// How long it may take.
    pub timeout: Duration,
}

/// An address of the web.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url(pub axum::http::Uri);

impl ConfigValue for Url {
    const KIND: &'static str = "a URL, for example \"https://chat.example.com/hook\"";

    fn from_value(value: &Value) -> Result<Self, String> {
        let text = value.as_str().ok_or_else(|| format!("found {} {value}", value.type_str()))?;
        let uri: axum::http::Uri = text.parse().map_err(|error| format!("found {text:?}: {error}"))?;
        match (uri.scheme_str(), uri.host()) {
            (Some("http" | "https"), Some(_)) => Ok(Self(uri)),
            (_, _) => Err(format!("found {text:?}: it begins with neither http:// nor https://")),
        }
    }
}

/// `notifications.level`.
struct Level(Severity);

impl ConfigValue for Level {
    const KIND: &'static str = "\"info\", \"warning\" or \"severe\"";

    fn from_value(value: &Value) -> Result<Self, String> {
        match value.as_str() {
            Some("info") => Ok(Self(Severity::Info)),
            Some("warning") => Ok(Self(Severity::Warning)),
            Some("severe") => Ok(Self(Severity::Severe)),
            Some(_) | None => Err(format!("found {} {value}", value.type_str())),
        }
    }
}

impl Notifications {
    pub(super) fn read(r: &mut Reader, mut s: Section) -> Option<Self> {
        let level: Option<Level> = s.or(r, "level", "\"info\"");
        let prefix = s.or(r, "prefix", "\"\"");
        let repeat: Option<Millis> = s.or(r, "repeat", "\"15min\"");
        let smtp = s.optional_table(r, "smtp").map(|section| Smtp::read(r, section));
        let webhook = s.optional_table(r, "webhook").map(|section| Webhook::read(r, section));
        s.finish(r);
        Some(Self {
            level: level?.0,
            prefix: prefix?,
            repeat: repeat?.0,
            smtp: smtp.flatten(),
            webhook: webhook.flatten(),
        })
    }
}

/// Whether what is sent there leaves no machine.
fn is_this_machine(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let octets: Vec<Option<u8>> = host.split('.').map(|part| part.parse().ok()).collect();
    host.eq_ignore_ascii_case("localhost")
        || host == "::1"
        || matches!(*octets, [Some(127), Some(_), Some(_), Some(_)])
}

impl Smtp {
    fn read(r: &mut Reader, mut s: Section) -> Option<Self> {
        let host: Option<String> = s.required(r, "host");
        let port = s.or(r, "port", "25");
        let tls: Option<SmtpTls> = s.or(r, "tls", "\"none\"");
        let ca_file = s.optional(r, "ca_file");
        let user: Option<String> = s.optional(r, "user");
        let password: Option<Secret> = s.optional(r, "password");
        let password_file: Option<PathBuf> = s.optional(r, "password_file");
        let from: Option<String> = s.required(r, "from");
        let to: Option<Vec<String>> = s.required(r, "to");
        let timeout = s.positive(r, "timeout", "\"10s\"");
        let path = |key| s.path_of(key);
        if to.as_ref().is_some_and(Vec::is_empty) {
            r.problem(
                &path("to"),
                "nobody is listed; name at least one address, or leave out [notifications.smtp]",
            );
        }
        for (key, address) in
            from.iter().map(|from| ("from", from)).chain(to.iter().flatten().map(|to| ("to", to)))
        {
            if let Err(error) = address.parse::<lettre::message::Mailbox>() {
                r.problem(&path(key), format!("{address:?} is no mail address: {error}"));
            }
        }
        let password = match (password, password_file) {
            (Some(_), Some(_)) => {
                r.problem(&path("password"), "password and password_file are both given; give one of them");
                None
            }
            (Some(given), None) => Some(Password::Given(given)),
            (None, file) => file.map(Password::File),
        };
        if user.is_some() != password.is_some() {
            r.problem(
                &path("user"),
                "a login is a user and a password (password or password_file); one of them is missing",
            );
        }
        if user.is_some() && tls == Some(SmtpTls::None) && !host.as_deref().is_some_and(is_this_machine) {
            r.problem(
                &path("tls"),
                "the password would cross the network in the clear; set \"starttls\" or \"tls\", or leave out the login",
            );
        }
        s.finish(r);
        Some(Self {
            host: host?,
            port: port?,
            tls: tls?,
            ca_file,
            user,
            password,
            from: from?,
            to: to?,
            timeout: timeout?,
        })
    }
}

impl Webhook {
    fn read(r: &mut Reader, mut s: Section) -> Option<Self> {
        let url: Option<Url> = s.required(r, "url");
        let ca_file = s.optional(r, "ca_file");
        let headers: BTreeMap<String, Secret> = s.map(r, "headers");
        let token_file: Option<PathBuf> = s.optional(r, "token_file");
        let timeout = s.positive(r, "timeout", "\"10s\"");
        for (name, value) in &headers {
            let fine = axum::http::HeaderName::try_from(name.as_str()).is_ok()
                && axum::http::HeaderValue::try_from(value.0.as_str()).is_ok();
            if !fine {
                r.problem(&s.path_of("headers"), format!("{name:?} or its value cannot be a header of HTTP"));
            }
        }
        let in_the_clear = url.as_ref().is_some_and(|url| {
            url.0.scheme_str() == Some("http") && !url.0.host().is_some_and(is_this_machine)
        });
        if in_the_clear && token_file.is_some() {
            r.problem(
                &s.path_of("token_file"),
                "the token would cross the network in the clear; give the URL as https://, or leave the token out",
            );
        }
        s.finish(r);
        Some(Self { url: url?, ca_file, headers, token_file, timeout: timeout? })
    }
}
