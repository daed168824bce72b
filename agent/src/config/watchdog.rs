//! `[watchdog]`: the device that resets this machine when the guardian cannot do its work.

use std::path::PathBuf;
use std::time::Duration;

use pgherd_common::config::{ConfigValue, Reader, Section};
use toml::Value;

/// What the agent does about a watchdog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It leaves the device alone.
    Off,
    /// It uses the device if that can be had.
    Automatic,
    /// It does not start without it, so that this node is never primary without one.
    Required,
}

impl ConfigValue for Mode {
    const KIND: &'static str = "\"off\", \"automatic\" or \"required\"";

    fn from_value(value: &Value) -> Result<Self, String> {
        match value.as_str() {
            Some("off") => Ok(Self::Off),
            Some("automatic") => Ok(Self::Automatic),
            Some("required") => Ok(Self::Required),
            Some(_) | None => Err(format!("found {} {value}", value.type_str())),
        }
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watchdog {
    /// Whether it is used.
    pub mode: Mode,
    /// The device.
    pub device: PathBuf,
    /// After how long without being petted the device resets the machine, at most.
    pub timeout: Duration,
}

impl Watchdog {
    pub(super) fn read(r: &mut Reader, mut section: Section) -> Option<Self> {
        let mode = section.or(r, "mode", "\"off\"");
        let device = section.or(r, "device", "\"/dev/watchdog\"");
        let timeout = section.positive(r, "timeout", "\"1s\"");
        section.finish(r);
        Some(Self { mode: mode?, device: device?, timeout: timeout? })
    }

    /// How much of a lease it takes up.
    pub fn span(&self) -> Duration {
        match self.mode {
            Mode::Off => Duration::ZERO,
            Mode::Automatic | Mode::Required => self.timeout,
        }
    }
}
