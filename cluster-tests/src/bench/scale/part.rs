//! What can be measured by itself.

use std::fmt;
use std::str::FromStr;

/// One part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Clients that say nothing.
    Idle,
    /// Many clients of whom some ask.
    Active,
    /// A result that is larger than any buffer.
    Rows,
    /// COPY in and out.
    Copy,
    /// A burst of logins.
    Logins,
    /// Many statements in one write.
    Pipelines,
    /// One client; how long each of its reads takes.
    Latency,
    /// Reads by one instance and by several.
    Reads,
}

impl Part {
    /// All of them, in the order in which they are run.
    pub const ALL: [Self; 8] = [
        Self::Idle,
        Self::Active,
        Self::Rows,
        Self::Copy,
        Self::Logins,
        Self::Pipelines,
        Self::Latency,
        Self::Reads,
    ];

    /// Its name on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Active => "active",
            Self::Rows => "rows",
            Self::Copy => "copy",
            Self::Logins => "logins",
            Self::Pipelines => "pipelines",
            Self::Latency => "latency",
            Self::Reads => "reads",
        }
    }

    /// What it is.
    pub fn told(self) -> &'static str {
        match self {
            Self::Idle => "memory with many clients that have logged in, asked once and say nothing",
            Self::Active => {
                "many clients, of whom some at a time read by primary key; all over 40 connections to one node"
            }
            Self::Rows => "one query that returns rows of 1000 bytes, read to the end",
            Self::Copy => "COPY from the client and to the client, lines of 1000 bytes",
            Self::Logins => "logins with SCRAM, 50 at once, while another client asks without a pause",
            Self::Pipelines => "64 KB of statements up to each Sync, one such batch in flight and ten",
            Self::Latency => "one client that reads by primary key",
            Self::Reads => "reads by one instance, two and three, each held to the same share of a processor",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// No part has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the parts are {}", Part::ALL.map(Part::name).join(", "))]
pub struct NoSuchPart;

impl FromStr for Part {
    type Err = NoSuchPart;

    fn from_str(name: &str) -> Result<Self, NoSuchPart> {
        Self::ALL.into_iter().find(|part| part.name() == name).ok_or(NoSuchPart)
    }
}
