//! The kinds of value a configuration can hold.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use toml::Value;

use crate::{ClusterName, HostPort, NodeId, NodeName};

/// A type that can be read from a TOML value.
pub trait ConfigValue: Sized {
    /// What is expected, with an example where that helps.
    const KIND: &'static str;

    /// Whether it is shown to nobody.
    const SECRET: bool = false;

    /// The value, or what is wrong with it (without repeating what was expected).
    fn from_value(value: &Value) -> Result<Self, String>;
}

/// A span of time written with its unit: `"150ms"`, `"2s"`, `"5min"`, `"1h"`, `"7d"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Millis(pub Duration);

/// A number of bytes written with its unit: `"64kB"`, `"16MB"`, `"1GB"` (powers of 1024, as in
/// PostgreSQL), or a bare number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteSize(pub u64);

/// A password or the like: `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

fn wrong(value: &Value) -> String {
    format!("found {} {value}", value.type_str())
}

fn text(value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| wrong(value))
}

fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(split)?;
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

impl ConfigValue for String {
    const KIND: &'static str = "text";

    fn from_value(value: &Value) -> Result<Self, String> {
        text(value).map(str::to_owned)
    }
}

impl ConfigValue for Secret {
    const KIND: &'static str = "text (kept secret)";
    const SECRET: bool = true;

    fn from_value(value: &Value) -> Result<Self, String> {
        value.as_str().map(|text| Self(text.to_owned())).ok_or_else(|| format!("found {}", value.type_str()))
    }
}

impl ConfigValue for bool {
    const KIND: &'static str = "true or false";

    fn from_value(value: &Value) -> Result<Self, String> {
        value.as_bool().ok_or_else(|| wrong(value))
    }
}

impl ConfigValue for PathBuf {
    const KIND: &'static str = "an absolute path";

    fn from_value(value: &Value) -> Result<Self, String> {
        let path = Self::from(text(value)?);
        if path.is_absolute() { Ok(path) } else { Err(format!("{path:?} is relative")) }
    }
}

impl ConfigValue for Millis {
    const KIND: &'static str = "a duration such as \"150ms\", \"2s\", \"5min\"";

    fn from_value(value: &Value) -> Result<Self, String> {
        const UNITS: &[(&str, u64)] =
            &[("ms", 1), ("s", 1000), ("min", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
        let text = value.as_str().ok_or_else(|| format!("{} without a unit", wrong(value)))?;
        let millis = with_unit(text, UNITS).ok_or_else(|| wrong(value))?;
        Ok(Self(Duration::from_millis(millis)))
    }
}

impl ConfigValue for ByteSize {
    const KIND: &'static str = "a size such as \"64kB\", \"16MB\", \"1GB\"";

    fn from_value(value: &Value) -> Result<Self, String> {
        const UNITS: &[(&str, u64)] =
            &[("B", 1), ("kB", 1 << 10), ("MB", 1 << 20), ("GB", 1 << 30), ("TB", 1 << 40)];
        let bytes = match value {
            Value::Integer(number) => u64::try_from(*number).ok(),
            other => other.as_str().and_then(|text| with_unit(text, UNITS)),
        };
        bytes.map(Self).ok_or_else(|| wrong(value))
    }
}

macro_rules! integers {
    ($($type:ty, $kind:literal);*) => {$(
        impl ConfigValue for $type {
            const KIND: &'static str = $kind;

            fn from_value(value: &Value) -> Result<Self, String> {
                value.as_integer().and_then(|number| Self::try_from(number).ok()).ok_or_else(|| wrong(value))
            }
        }
    )*};
}
integers!(u16, "a whole number from 0 to 65535"; u32, "a whole number from 0 up"; u64, "a whole number from 0 up");

impl ConfigValue for NodeId {
    const KIND: &'static str = "a whole number from 1 up";

    fn from_value(value: &Value) -> Result<Self, String> {
        match u64::from_value(value)? {
            0 => Err("found 0".to_owned()),
            number => Ok(Self(number)),
        }
    }
}

fn parsed<T: FromStr>(value: &Value) -> Result<T, String> {
    text(value)?.parse().map_err(|_| wrong(value))
}

macro_rules! from_text {
    ($($type:ty, $kind:literal);*) => {$(
        impl ConfigValue for $type {
            const KIND: &'static str = $kind;

            fn from_value(value: &Value) -> Result<Self, String> {
                parsed(value)
            }
        }
    )*};
}
from_text!(
    NodeName, "a name of at most 40 of a-z, 0-9, '_' and '-', beginning with a letter";
    ClusterName, "a name of at most 40 of a-z, 0-9, '_' and '-', beginning with a letter";
    HostPort, "host:port, for example \"10.0.0.1:7800\""
);

impl<T: ConfigValue> ConfigValue for Vec<T> {
    const KIND: &'static str = "a list";

    fn from_value(value: &Value) -> Result<Self, String> {
        let items = value.as_array().ok_or_else(|| wrong(value))?;
        items
            .iter()
            .map(|item| T::from_value(item).map_err(|e| format!("{e} (each is {})", T::KIND)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value<T: ConfigValue>(toml: &str) -> Result<T, String> {
        let table: toml::Table = format!("v = {toml}").parse().unwrap();
        T::from_value(&table["v"])
    }

    #[test]
    fn durations_and_sizes_carry_units() {
        assert_eq!(value::<Millis>("'150ms'").unwrap().0, Duration::from_millis(150));
        assert_eq!(value::<Millis>("'5min'").unwrap().0, Duration::from_secs(300));
        assert_eq!(value::<ByteSize>("'16MB'").unwrap().0, 16 << 20);
        assert_eq!(value::<ByteSize>("17").unwrap().0, 17);
        for bad in ["5", "'5'", "'5 parsecs'", "'-1s'", "'99999999999999999999d'", "'ms'"] {
            assert!(value::<Millis>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn secrets_stay_secret() {
        let secret = value::<Secret>("'hunter2'").unwrap();
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        assert!(!value::<Secret>("17").unwrap_err().contains("17"));
    }
}
