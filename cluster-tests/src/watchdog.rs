//! A stand-in for a watchdog device: a pipe with a name, and somebody who watches what is written to it.
//!
//! It resets no machine. It tells when a device would have done so, and the test does what a reset
//! does: it ends every process of the node.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::net::unix::pipe::{OpenOptions, Receiver};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::node::Node;
use crate::wait::{NotReached, wait_until};

/// How long the device waits.
pub const TIMEOUT: Duration = Duration::from_secs(1);

/// Lines for `agent.toml`: every agent works in the directory of its node.
pub const SETTINGS: &str =
    "[watchdog]\nmode = \"required\"\ndevice = \"/proc/self/cwd/watchdog\"\ntimeout = \"1s\"";

/// What was written.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    /// When the last sign of life came, of those since it was disarmed.
    last: Option<Instant>,
    /// The longest time between two of them.
    longest_pause: Duration,
    disarmed: bool,
}

/// The device of one node.
#[derive(Debug)]
pub struct Watchdog {
    seen: Arc<Mutex<Seen>>,
    reader: JoinHandle<()>,
}

impl Watchdog {
    /// Makes the device of a node. To be called before its agent is started.
    pub fn of(node: &Node) -> std::io::Result<Self> {
        Self::at(&node.dir.join("watchdog"))
    }

    fn at(device: &Path) -> std::io::Result<Self> {
        mknodat(CWD, device, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        // Also for writing, so that the pipe never ends: a device is there whether it is open or not.
        let pipe = OpenOptions::new().read_write(true).open_receiver(device)?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let reader = tokio::spawn(watch(pipe, Arc::clone(&seen)));
        Ok(Self { seen, reader })
    }

    /// Whether somebody has opened it and not said goodbye.
    pub fn is_counting(&self) -> bool {
        self.seen().last.is_some()
    }

    /// Whether the last thing it was told is that it is not needed any more.
    pub fn is_disarmed(&self) -> bool {
        self.seen().disarmed
    }

    /// The longest time between two signs of life since the last call, the one that goes on included.
    pub fn longest_pause(&self) -> Duration {
        let mut seen = self.locked();
        let going_on = seen.last.map_or(Duration::ZERO, |last| last.elapsed());
        std::mem::take(&mut seen.longest_pause).max(going_on)
    }

    /// Waits until it would reset the machine; the moment at which it does.
    pub async fn until_it_bites(&self, within: Duration) -> Result<Instant, NotReached> {
        wait_until("the watchdog bites", within, async || match self.seen().last {
            Some(last) if last.elapsed() >= TIMEOUT => Ok(last + TIMEOUT),
            Some(last) => Err(format!("it was petted {:?} ago", last.elapsed())),
            None => Err("nobody needs it".to_owned()),
        })
        .await
    }

    fn seen(&self) -> Seen {
        *self.locked()
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn watch(pipe: Receiver, seen: Arc<Mutex<Seen>>) {
    let mut bytes = [0; 64];
    while pipe.readable().await.is_ok() {
        // Nothing there, after all.
        let Ok(length) = pipe.try_read(&mut bytes) else { continue };
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        for byte in bytes.iter().take(length) {
            seen.hear(*byte, Instant::now());
        }
    }
}

impl Seen {
    fn hear(&mut self, byte: u8, now: Instant) {
        self.disarmed = byte == b'V';
        if let Some(last) = self.last {
            self.longest_pause = self.longest_pause.max(now.saturating_duration_since(last));
        }
        self.last = (!self.disarmed).then_some(now);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn only_a_goodbye_stops_it() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("watchdog");
        let watchdog = Watchdog::at(&device).unwrap();
        let write = |bytes: &[u8]| {
            std::fs::OpenOptions::new().write(true).open(&device).unwrap().write_all(bytes).unwrap();
        };
        assert!(!watchdog.is_counting());
        write(b"\0");
        let petted = Instant::now();
        let bites = watchdog.until_it_bites(TIMEOUT * 10).await.unwrap();
        assert!(bites <= petted + TIMEOUT * 2, "{:?}", bites - petted);
        assert!(watchdog.longest_pause() >= TIMEOUT);
        write(b"\0V");
        let gone = wait_until("it is disarmed", TIMEOUT * 10, async || {
            if watchdog.is_disarmed() { Ok(()) } else { Err("it counts") }
        });
        gone.await.unwrap();
        assert!(!watchdog.is_counting());
    }
}
