//! Names of things. Parsed once at the edge, so that the rest of the code never sees an invalid one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A member's number in the consensus group. Fixed for the life of the member, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for NodeId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        match text.parse::<u64>() {
            Ok(0) | Err(_) => Err(InvalidName::new("node id", text, "a whole number from 1 up")),
            Ok(number) => Ok(Self(number)),
        }
    }
}

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid {kind}: expected {expected}")]
pub struct InvalidName {
    kind: &'static str,
    text: String,
    expected: &'static str,
}

impl InvalidName {
    fn new(kind: &'static str, text: &str, expected: &'static str) -> Self {
        Self { kind, text: text.to_owned(), expected }
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                if is_plain_name(text) { Ok(Self(text.to_owned())) } else { Err(InvalidName::new($kind, text, PLAIN_NAME)) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    };
}

name_type!(
    /// A member's name, as operators type it; also its `application_name` on a walreceiver and, after
    /// `pgherd_`, its replication slot. Unique in the cluster.
    NodeName,
    "node name"
);
name_type!(
    /// The cluster's name. Agents and proxies of another cluster are refused by it.
    ClusterName,
    "cluster name"
);

const PLAIN_NAME: &str = "1 to 40 of the characters a-z, 0-9, '_' and '-', beginning with a letter";

fn is_plain_name(text: &str) -> bool {
    text.len() <= 40
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-')
}

impl NodeName {
    /// The physical replication slot that serves this member. Slot names allow no `-`.
    pub fn slot(&self) -> String {
        format!("pgherd_{}", self.0.replace('-', "_"))
    }
}

/// `host:port`, `1.2.3.4:port` or `[v6]:port`; resolved only when it is dialled.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPort {
    /// Host name or address, without brackets.
    pub host: String,
    /// TCP port, never 0.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        };
        f.pad(&text)
    }
}

impl FromStr for HostPort {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let refuse = || InvalidName::new("address", text, "host:port, for example 10.0.0.1:7800");
        let (host, port) = text.rsplit_once(':').ok_or_else(refuse)?;
        let port = port.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(refuse)?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').ok_or_else(refuse)?,
            None if host.contains(':') => return Err(refuse()),
            None => host,
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
        if host.is_empty() || !host.chars().all(allowed) {
            return Err(refuse());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl TryFrom<String> for HostPort {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<HostPort> for String {
    fn from(address: HostPort) -> String {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for good in ["server1", "a", "pg-east_2"] {
            assert_eq!(good.parse::<NodeName>().unwrap().as_str(), good);
        }
        for bad in ["", "1a", "Server1", "a b", "a'b", &"x".repeat(41)] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad:?}");
        }
        assert_eq!("pg-east".parse::<NodeName>().unwrap().slot(), "pgherd_pg_east");
    }

    #[test]
    fn addresses_survive_a_round_trip() {
        for good in ["10.0.0.1:7800", "db-1.example:5432", "[fd00::1]:7800"] {
            assert_eq!(good.parse::<HostPort>().unwrap().to_string(), good);
        }
        for bad in ["10.0.0.1", ":7800", "h:0", "h:99999", "fd00::1:7800", "a b:1", "[::1:5"] {
            assert!(bad.parse::<HostPort>().is_err(), "{bad:?}");
        }
    }
}
