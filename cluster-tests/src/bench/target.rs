//! What stands between pgbench and the servers.

use std::fmt;
use std::str::FromStr;

/// One way to the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// The primary itself.
    Direct,
    /// Our proxy, which reads the SQL and shares reads out to the standbys.
    Pgherd,
    /// PgBouncer in transaction mode in front of the primary.
    PgBouncer,
    /// PgBouncer in session mode, where its transaction mode cannot carry prepared statements.
    PgBouncerSession,
    /// Pgpool-II, which reads the SQL and shares reads out to the standbys.
    Pgpool,
    /// HAProxy in front of the primary; it only carries bytes.
    HaProxy,
    /// A relay of ours in front of the primary that only carries bytes: what any proxy costs at least.
    Relay,
}

impl Target {
    /// Those that one can ask for.
    pub const ALL: [Self; 6] =
        [Self::Direct, Self::Pgherd, Self::PgBouncer, Self::Pgpool, Self::HaProxy, Self::Relay];

    /// Its name on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Pgherd => "pgherd",
            Self::PgBouncer => "pgbouncer",
            Self::PgBouncerSession => "pgbouncer-session",
            Self::Pgpool => "pgpool",
            Self::HaProxy => "haproxy",
            Self::Relay => "relay",
        }
    }

    /// What it is, for the table's legend.
    pub fn told(self) -> &'static str {
        match self {
            Self::Direct => "pgbench at the primary",
            Self::Pgherd => {
                "reads SQL, writes to the primary and reads to two standbys, \
                 `read_consistency = \"session\"`, `pool.mode = \"auto\"`"
            }
            Self::PgBouncer => "reads no SQL, transaction mode, 40 server connections, at the primary",
            Self::PgBouncerSession => {
                "the same in session mode, a server connection for each client; stands in where PgBouncer before \
                 1.21 cannot carry prepared statements"
            }
            Self::Pgpool => {
                "reads SQL, writes to the primary and reads to two standbys, streaming replication mode, \
                 `statement_level_load_balance`"
            }
            Self::HaProxy => "reads nothing, TCP mode, a server connection for each client, at the primary",
            Self::Relay => {
                "reads nothing: one thread, one task and one server connection for each client, 16 KB buffers, \
                 at the primary; what a hop costs at least"
            }
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// No target has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the targets are {}", Target::ALL.map(Target::name).join(", "))]
pub struct NoSuchTarget;

impl FromStr for Target {
    type Err = NoSuchTarget;

    fn from_str(name: &str) -> Result<Self, NoSuchTarget> {
        Self::ALL.into_iter().find(|target| target.name() == name).ok_or(NoSuchTarget)
    }
}
