//! `--rate 50MB`: how much may be copied in a second.

use std::str::FromStr;

use pgherd_common::config::{ByteSize, ConfigValue};

/// Bytes per second, as pg_basebackup takes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate(pub(super) u64);

const LEAST: u64 = 32 << 10;
const MOST: u64 = 1 << 30;

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let typed = text.strip_suffix("/s").unwrap_or(text);
        let bare = typed.parse::<i64>().map(toml::Value::Integer);
        let value = bare.unwrap_or_else(|_| toml::Value::String(typed.to_owned()));
        let ByteSize(bytes) = ByteSize::from_value(&value)
            .map_err(|_| "write it with its unit: 500kB, 50MB, 1GB".to_owned())?;
        if (LEAST..=MOST).contains(&bytes) {
            Ok(Self(bytes))
        } else {
            Err("pg_basebackup can be held to between 32kB and 1GB per second".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_taken_as_sizes() {
        assert_eq!("50MB".parse(), Ok(Rate(50 << 20)));
        assert_eq!("500kB/s".parse(), Ok(Rate(500 << 10)));
        assert_eq!("1048576".parse(), Ok(Rate(1 << 20)));
        for bad in ["fast", "50", "2GB", "-1MB", ""] {
            assert!(bad.parse::<Rate>().is_err(), "{bad:?}");
        }
    }
}
