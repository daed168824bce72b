//! The watchdog device: it resets this machine unless it is petted again and again. Closing it does
//! not stop it, so that a guardian that dies is missed; only a goodbye does.
//!
//! How long the device waits is the system's business (an option of its module): this program can only
//! read it, and does not use a device that waits too long to be of help.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgherd_common::errors::Chain;
use rustix::fs::OFlags;

use crate::config::{Watchdog as Settings, WatchdogMode};

/// The device cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum WatchdogError {
    /// It does not open.
    #[error(
        "cannot open the watchdog {}: load its module, and let it belong to the agent's user", device.display()
    )]
    Open {
        /// Which.
        device: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It would come too late.
    #[error(
        "the watchdog {} waits {found:?}, longer than watchdog.timeout ({wanted:?}): the lease would be over \
         before it resets the machine. Set the timeout of its module, for example `softdog soft_margin=1`",
        device.display()
    )]
    TooSlow {
        /// Which.
        device: PathBuf,
        /// How long it waits.
        found: Duration,
        /// How long it may.
        wanted: Duration,
    },
}

/// Why this agent does not run without it.
#[derive(Debug, thiserror::Error)]
#[error("watchdog.mode is \"required\", so this node must not become primary, nor its agent start")]
pub(super) struct Required(#[from] WatchdogError);

/// An open device, which is counting.
#[derive(Debug)]
pub(super) struct Watchdog {
    device: PathBuf,
    file: File,
    failed: bool,
}

impl Watchdog {
    /// As configured; `None` if there is none and none is needed.
    pub(super) fn open(settings: &Settings) -> Result<Option<Self>, Required> {
        let required = match settings.mode {
            WatchdogMode::Off => return Ok(None),
            WatchdogMode::Automatic => false,
            WatchdogMode::Required => true,
        };
        match Self::open_device(settings, Path::new("/sys/class/watchdog")) {
            Ok(watchdog) => Ok(Some(watchdog)),
            Err(error) if required => Err(error.into()),
            Err(error) => {
                tracing::warn!("going on without a watchdog: {}", Chain(&error));
                Ok(None)
            }
        }
    }

    fn open_device(settings: &Settings, class: &Path) -> Result<Self, WatchdogError> {
        let device = settings.device.clone();
        // First, since opening it sets it going.
        match waits(&device, class) {
            Some(found) if found > settings.timeout => {
                return Err(WatchdogError::TooSlow { device, found, wanted: settings.timeout });
            }
            Some(_) => {}
            None => tracing::warn!(
                "nobody says how long the watchdog {} waits; believing watchdog.timeout ({:?})",
                device.display(),
                settings.timeout
            ),
        }
        let nonblock = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
        match OpenOptions::new().write(true).custom_flags(nonblock).open(&device) {
            Ok(file) => {
                tracing::info!("the watchdog {} is set", device.display());
                Ok(Self { device, file, failed: false })
            }
            Err(source) => Err(WatchdogError::Open { device, source }),
        }
    }

    /// Everything is in order.
    pub(super) fn pet(&mut self) {
        match self.file.write(&[0]) {
            Ok(_) => self.failed = false,
            Err(_) if self.failed => {}
            Err(error) => {
                self.failed = true;
                tracing::error!("cannot pet the watchdog {}: {error}", self.device.display());
            }
        }
    }

    /// It is not needed any more.
    pub(super) fn disarm(mut self) {
        if let Err(error) = self.file.write(b"V") {
            tracing::error!(
                "cannot disarm the watchdog {}, it will reset this machine: {error}",
                self.device.display()
            );
        }
    }
}

/// How long the device waits, as the system tells.
fn waits(device: &Path, class: &Path) -> Option<Duration> {
    // The name without a number is another one of the first device.
    let name = match device.file_name()?.to_str()? {
        "watchdog" => "watchdog0",
        name => name,
    };
    let seconds = fs::read_to_string(class.join(name).join("timeout")).ok()?;
    Some(Duration::from_secs(seconds.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    /// A pipe that looks like a device, and its end that tells what was written.
    fn device(dir: &Path) -> (Settings, File) {
        let device = dir.join("watchdog");
        mknodat(CWD, &device, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let nonblock = i32::try_from(OFlags::NONBLOCK.bits()).unwrap();
        let reader = OpenOptions::new().read(true).custom_flags(nonblock).open(&device).unwrap();
        let timeout = Duration::from_secs(1);
        (Settings { mode: WatchdogMode::Required, device, timeout }, reader)
    }

    fn written(reader: &mut File) -> Vec<u8> {
        let mut bytes = vec![0; 100];
        let length = reader.read(&mut bytes).unwrap();
        bytes.truncate(length);
        bytes
    }

    #[test]
    fn it_is_petted_and_disarmed_in_the_end_only() {
        let dir = tempfile::tempdir().unwrap();
        let (settings, mut reader) = device(dir.path());
        let mut watchdog = Watchdog::open_device(&settings, dir.path()).unwrap();
        watchdog.pet();
        watchdog.pet();
        assert_eq!(written(&mut reader), [0, 0]);
        drop(watchdog);
        assert!(written(&mut reader).is_empty(), "a guardian that dies says no goodbye");
        let watchdog = Watchdog::open_device(&settings, dir.path()).unwrap();
        watchdog.disarm();
        assert_eq!(written(&mut reader), b"V");
    }

    #[test]
    fn a_device_that_waits_too_long_is_not_even_opened() {
        let dir = tempfile::tempdir().unwrap();
        let (settings, _reader) = device(dir.path());
        fs::create_dir(dir.path().join("watchdog0")).unwrap();
        fs::write(dir.path().join("watchdog0/timeout"), "60\n").unwrap();
        let error = Watchdog::open_device(&settings, dir.path()).unwrap_err();
        assert!(error.to_string().contains("waits 60s"), "{error}");
        fs::write(dir.path().join("watchdog0/timeout"), "1\n").unwrap();
        Watchdog::open_device(&settings, dir.path()).unwrap();
    }

    #[test]
    fn only_who_requires_it_minds_its_absence() {
        let with = |mode| {
            let settings =
                Settings { mode, device: "/nowhere/watchdog".into(), timeout: Duration::from_secs(1) };
            Watchdog::open(&settings).map(|watchdog| watchdog.is_some())
        };
        assert!(matches!(with(WatchdogMode::Off), Ok(false)));
        assert!(matches!(with(WatchdogMode::Automatic), Ok(false)));
        let error = with(WatchdogMode::Required).unwrap_err();
        assert!(Chain(&error).to_string().contains("cannot open"), "{error}");
    }
}
