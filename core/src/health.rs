//! Whether a PostgreSQL that answers can also do its work, and when it is no longer trusted to.
//!
//! What agents measure is in [`Health`]: facts and ages. What they add up to is decided here, in one
//! place: whether a primary is to be replaced ([`Health::failure`]), and whether a standby is fit to
//! replace one that is sick ([`Health::is_fit`]).

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// So many crash-restart cycles within [`CRASH_WINDOW`] are a storm: a server that takes a moment to
/// recover and crashes again is of no use to anybody. One crash, or a second, is bad luck.
pub const CRASHES_MAX: u32 = 3;

/// How long a crash-restart cycle is remembered.
pub const CRASH_WINDOW: Duration = Duration::from_secs(60);

/// What an agent knows of its server's ability to work.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Health {
    /// Whether commits last. Primaries only.
    pub writes: WriteProbe,
    /// Whether the file systems of the data directory and of its WAL have room.
    pub disk: Disk,
    /// How often, within the last [`CRASH_WINDOW`], the server ended all its sessions and recovered
    /// because one of its processes had crashed.
    pub crashes: u32,
    /// What the operators' own monitor says is wrong, if it says so.
    #[serde(default)]
    pub monitor: Option<String>,
}

/// The outcome of committing a few bytes to the local disk, without waiting for any standby.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WriteProbe {
    /// Not tried: no primary, or no connection to try it on.
    #[default]
    Untried,
    /// The last commit reached the disk.
    Good,
    /// The last commit was refused or broke.
    Failing {
        /// Milliseconds since the first of these failures in a row.
        for_ms: u64,
        /// What kind of failure.
        kind: WriteFailure,
        /// The server's words.
        reason: String,
    },
    /// A commit has had no answer yet.
    Hanging {
        /// Milliseconds since it was begun, or since the failures began that it follows.
        for_ms: u64,
    },
}

/// Why a commit did not come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WriteFailure {
    /// No space left (SQLSTATE 53100).
    DiskFull,
    /// The operating system refuses to read or write (SQLSTATE class 58), or the data is damaged
    /// (class XX).
    Storage,
    /// The connection broke in the middle.
    Broken,
    /// The server refused for a reason that says nothing of its disk, such as 25006 (read-only
    /// transaction) or 53200 (out of memory). It is alive.
    Refused,
}

/// The file systems under a data directory, the worse of two where its WAL has one of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Disk {
    /// Not looked at yet.
    #[default]
    Unknown,
    /// There is room.
    Room,
    /// As good as none: no table can grow, and no WAL.
    Full {
        /// Milliseconds since that was first seen.
        for_ms: u64,
    },
    /// Read-only, as the kernel makes it by itself after an error of the disk.
    ReadOnly {
        /// Milliseconds since that was first seen.
        for_ms: u64,
    },
    /// It fails writes.
    Failing {
        /// Milliseconds since that was first seen.
        for_ms: u64,
    },
}

impl Health {
    /// Why this server has failed as a primary though it answers: something has been wrong for `limit`.
    pub fn failure(&self, limit: Duration) -> Option<String> {
        let lasts = |for_ms: u64| Duration::from_millis(for_ms) >= limit;
        let disk = match self.disk {
            Disk::Full { for_ms } | Disk::ReadOnly { for_ms } | Disk::Failing { for_ms } => lasts(for_ms),
            Disk::Unknown | Disk::Room => false,
        };
        let writes = match &self.writes {
            WriteProbe::Failing { for_ms, kind, .. } => *kind != WriteFailure::Refused && lasts(*for_ms),
            WriteProbe::Hanging { for_ms } => lasts(*for_ms),
            WriteProbe::Untried | WriteProbe::Good => false,
        };
        // An operator's word needs no time to become true.
        let told = self.monitor.is_some();
        (disk || writes || told || self.crashes >= CRASHES_MAX).then(|| self.to_string())
    }

    /// Whether this standby may take over from a primary that is sick: with a disk no better than the
    /// primary's nothing is won.
    pub fn is_fit(&self) -> bool {
        match self.disk {
            Disk::Unknown | Disk::Room => self.monitor.is_none(),
            Disk::Full { .. } | Disk::ReadOnly { .. } | Disk::Failing { .. } => false,
        }
    }

    /// What an operator should be told, however short it has been so.
    pub fn complaint(&self) -> Option<String> {
        let text = self.to_string();
        (!text.is_empty()).then_some(text)
    }

    /// The same, but for what the operators' own monitor says.
    pub fn database_complaint(&self) -> Option<String> {
        Self { monitor: None, ..self.clone() }.complaint()
    }

    /// Without what changes by itself as time goes by.
    #[must_use]
    pub fn ageless(&self) -> Self {
        let disk = match self.disk {
            Disk::Full { .. } => Disk::Full { for_ms: 0 },
            Disk::ReadOnly { .. } => Disk::ReadOnly { for_ms: 0 },
            Disk::Failing { .. } => Disk::Failing { for_ms: 0 },
            Disk::Unknown => Disk::Unknown,
            Disk::Room => Disk::Room,
        };
        let writes = match &self.writes {
            WriteProbe::Failing { kind, .. } => {
                WriteProbe::Failing { for_ms: 0, kind: *kind, reason: String::new() }
            }
            WriteProbe::Hanging { .. } => WriteProbe::Hanging { for_ms: 0 },
            WriteProbe::Untried => WriteProbe::Untried,
            WriteProbe::Good => WriteProbe::Good,
        };
        Self { writes, disk, crashes: self.crashes, monitor: self.monitor.clone() }
    }
}

/// Everything that is wrong, as the end of a sentence that begins with the server's name; nothing
/// where all is well.
impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut signs = Vec::new();
        match self.disk {
            Disk::Full { for_ms } => signs.push(format!("has had no disk space left for {for_ms} ms")),
            Disk::ReadOnly { for_ms } => {
                signs.push(format!("has had its data on a read-only file system for {for_ms} ms"));
            }
            Disk::Failing { for_ms } => {
                signs.push(format!("has had a disk that fails writes for {for_ms} ms"));
            }
            Disk::Unknown | Disk::Room => {}
        }
        match &self.writes {
            WriteProbe::Failing { for_ms, reason, .. } => {
                signs.push(format!("has failed to commit for {for_ms} ms ({reason})"));
            }
            WriteProbe::Hanging { for_ms } => {
                signs.push(format!("has been hanging in a commit for {for_ms} ms"));
            }
            WriteProbe::Untried | WriteProbe::Good => {}
        }
        if self.crashes > 0 {
            let window = CRASH_WINDOW.as_secs();
            signs.push(format!("has crashed and recovered {} times within {window} s", self.crashes));
        }
        if let Some(why) = &self.monitor {
            signs.push(format!("has failed its custom monitor ({why})"));
        }
        f.write_str(&signs.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(3);

    fn writes(writes: WriteProbe) -> Health {
        Health { writes, ..Health::default() }
    }

    fn failing(for_ms: u64, kind: WriteFailure) -> Health {
        writes(WriteProbe::Failing { for_ms, kind, reason: "53100: no space left".to_owned() })
    }

    #[test]
    fn a_sign_counts_once_it_has_lasted() {
        let disk = |disk| Health { disk, ..Health::default() };
        for (early, late) in [
            (failing(2999, WriteFailure::DiskFull), failing(3000, WriteFailure::DiskFull)),
            (failing(0, WriteFailure::Storage), failing(3000, WriteFailure::Storage)),
            (failing(0, WriteFailure::Broken), failing(9000, WriteFailure::Broken)),
            (writes(WriteProbe::Hanging { for_ms: 2999 }), writes(WriteProbe::Hanging { for_ms: 3000 })),
            (disk(Disk::Full { for_ms: 10 }), disk(Disk::Full { for_ms: 3000 })),
            (disk(Disk::ReadOnly { for_ms: 10 }), disk(Disk::ReadOnly { for_ms: 3000 })),
            (disk(Disk::Failing { for_ms: 10 }), disk(Disk::Failing { for_ms: 3000 })),
            (Health { crashes: 2, ..Health::default() }, Health { crashes: 3, ..Health::default() }),
        ] {
            assert_eq!(early.failure(LIMIT), None, "{early:?}");
            assert_eq!(late.failure(LIMIT), late.complaint(), "{late:?}");
            assert!(early.complaint().is_some() && late.complaint().is_some());
            assert_eq!(early.ageless() == late.ageless(), early.crashes == late.crashes);
        }
    }

    #[test]
    fn what_says_nothing_of_the_disk_is_no_failure() {
        for health in [
            Health::default(),
            writes(WriteProbe::Good),
            failing(60_000, WriteFailure::Refused),
            Health { disk: Disk::Room, ..Health::default() },
        ] {
            assert_eq!(health.failure(LIMIT), None, "{health:?}");
            assert!(health.is_fit());
        }
        assert_eq!(Health::default().complaint(), None);
    }

    #[test]
    fn a_standby_is_fit_by_its_disk() {
        for disk in [Disk::Full { for_ms: 0 }, Disk::ReadOnly { for_ms: 0 }, Disk::Failing { for_ms: 0 }] {
            assert!(!Health { disk, ..Health::default() }.is_fit());
        }
    }
}
