//! What pgbench is asked to do.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// One kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Workload {
    /// One-row reads in the simple protocol.
    Simple,
    /// The same, each parsed and bound anew.
    Extended,
    /// The same, prepared once.
    Prepared,
    /// Prepared reads of many more clients than there are server connections.
    Many,
    /// pgbench's transaction in the manner of TPC-B: three updates, a read and an insert.
    Tpcb,
    /// A read that returns 1000 rows of a hundred bytes.
    Rows,
    /// A new connection for each read.
    Connect,
    /// One client; how long each of its reads takes.
    Latency,
}

impl Workload {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Simple,
        Self::Extended,
        Self::Prepared,
        Self::Many,
        Self::Tpcb,
        Self::Rows,
        Self::Connect,
        Self::Latency,
    ];

    /// Its name on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::Extended => "extended",
            Self::Prepared => "prepared",
            Self::Many => "many",
            Self::Tpcb => "tpcb",
            Self::Rows => "rows",
            Self::Connect => "connect",
            Self::Latency => "latency",
        }
    }

    /// How many clients there are at once.
    pub fn clients(self) -> usize {
        match self {
            Self::Simple | Self::Extended | Self::Prepared | Self::Tpcb => 8,
            Self::Many => 200,
            Self::Rows | Self::Connect => 4,
            Self::Latency => 1,
        }
    }

    /// Seconds that a run takes longer than was asked for: logins count as time for pgbench, and those of
    /// so many clients take some.
    pub fn seconds_more(self) -> u64 {
        if self == Self::Many { 4 } else { 0 }
    }

    /// Whether a statement is prepared in one transaction and used in another.
    pub fn prepares(self) -> bool {
        matches!(self, Self::Prepared | Self::Many)
    }

    /// What it is, for the table's legend.
    pub fn told(self) -> &'static str {
        match self {
            Self::Simple => "`pgbench -S -M simple`",
            Self::Extended => "`pgbench -S -M extended`",
            Self::Prepared | Self::Many => "`pgbench -S -M prepared`",
            Self::Tpcb => "`pgbench -M simple`: BEGIN, three updates, a read, an insert, COMMIT",
            Self::Rows => "one query that returns 1000 rows of 100 bytes",
            Self::Connect => "`pgbench -S -C`: a new connection for each transaction, with a SCRAM login",
            Self::Latency => "`pgbench -S -M simple -l`",
        }
    }

    /// pgbench's options for it. `rows` is the file that holds [`ROWS`].
    pub fn arguments(self, rows: &Path) -> Vec<String> {
        let words: &[&str] = match self {
            Self::Simple => &["-S", "-M", "simple"],
            Self::Extended => &["-S", "-M", "extended"],
            Self::Prepared | Self::Many => &["-S", "-M", "prepared"],
            Self::Tpcb => &["-M", "simple"],
            Self::Rows => &["-M", "simple", "-f"],
            Self::Connect => &["-S", "-C"],
            Self::Latency => &["-S", "-M", "simple", "-l"],
        };
        let mut words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        if self == Self::Rows {
            words.push(rows.display().to_string());
        }
        words
    }
}

/// The script of [`Workload::Rows`].
pub const ROWS: &str = "select g, repeat('x', 100) from generate_series(1, 1000) g;\n";

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// No workload has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the workloads are {}", Workload::ALL.map(Workload::name).join(", "))]
pub struct NoSuchWorkload;

impl FromStr for Workload {
    type Err = NoSuchWorkload;

    fn from_str(name: &str) -> Result<Self, NoSuchWorkload> {
        Self::ALL.into_iter().find(|workload| workload.name() == name).ok_or(NoSuchWorkload)
    }
}
