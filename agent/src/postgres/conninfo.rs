//! libpq's `key='value'` connection strings.

use std::fmt::Write;

use pgherd_common::HostPort;

/// Builds a connection string; every value is quoted.
#[derive(Debug, Default)]
pub(super) struct Conninfo(String);

impl Conninfo {
    pub(super) fn set(mut self, key: &str, value: &str) -> Self {
        if !self.0.is_empty() {
            self.0.push(' ');
        }
        // Writing to a String cannot fail.
        let _ = write!(self.0, "{key}='{}'", value.replace('\\', "\\\\").replace('\'', "\\'"));
        self
    }

    pub(super) fn to(address: &HostPort) -> Self {
        Self::default().set("host", &address.host).set("port", &address.port.to_string())
    }

    pub(super) fn finish(self) -> String {
        self.0
    }
}

/// The pairs of a connection string, in order; what follows a syntax error is dropped.
pub(super) fn pairs(text: &str) -> Vec<(String, String)> {
    let mut chars = text.chars().peekable();
    let mut found = Vec::new();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let mut key = String::new();
        while let Some(c) = chars.next_if(|c| *c != '=' && !c.is_whitespace()) {
            key.push(c);
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if key.is_empty() || chars.next() != Some('=') {
            return found;
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let quoted = chars.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        while let Some(c) = chars.next_if(|c| if quoted { *c != '\'' } else { !c.is_whitespace() }) {
            value.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
        }
        if quoted && chars.next().is_none() {
            return found;
        }
        found.push((key, value));
    }
}

/// Where a connection string points; `None` when it names no host.
pub(super) fn address(text: &str) -> Option<HostPort> {
    let pairs = pairs(text);
    let value = |key: &str| pairs.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v.clone());
    let host = value("host").or_else(|| value("hostaddr"))?;
    let port = value("port").map_or(Some(5432), |port| port.parse().ok())?;
    Some(HostPort { host, port })
}

/// Whether a connection string names a database. Only where slots are copied does ours.
pub(super) fn names_database(text: &str) -> bool {
    pairs(text).iter().any(|(key, _)| key == "dbname")
}

/// What a walreceiver with this `primary_conninfo` calls itself.
pub(super) fn application_name(text: &str) -> Option<String> {
    pairs(text).into_iter().rev().find(|(key, _)| key == "application_name").map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NASTY: [&str; 7] =
        ["plain", "it's", r"back\slash", r"\'; DROP", "  spaces  ", "new\nline=x", "ünïcode'\\''"];

    #[test]
    fn any_value_survives_a_round_trip() {
        for nasty in NASTY {
            let text = Conninfo::default().set("password", nasty).set("user", "u").finish();
            let expected = [("password".to_owned(), nasty.to_owned()), ("user".to_owned(), "u".to_owned())];
            assert_eq!(pairs(&text), expected, "{text}");
        }
    }

    #[test]
    fn what_tools_and_people_write_is_read() {
        let text = "user=repl passfile='/x y/.pgpass' host = 10.0.0.7 port=5433 sslmode=prefer";
        assert_eq!(address(text).unwrap().to_string(), "10.0.0.7:5433");
        assert_eq!(address("host=db-1").unwrap().to_string(), "db-1:5432");
        for none in ["", "user=x", "port=5432", "host='unterminated"] {
            assert_eq!(address(none), None, "{none}");
        }
    }
}
