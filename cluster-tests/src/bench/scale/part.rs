//! What can be measured by itself.

use std::fmt;
use std::str::FromStr;

/// One part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Clients that say nothing.
    Idle,
    /// A result that is larger than any buffer.
    Rows,
    /// COPY in and out.
    Copy,
}

impl Part {
    /// All of them, in the order in which they are run.
    pub const ALL: [Self; 3] = [Self::Idle, Self::Rows, Self::Copy];

    /// Its name on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Rows => "rows",
            Self::Copy => "copy",
        }
    }

    /// What it is.
    pub fn told(self) -> &'static str {
        match self {
            Self::Idle => "memory with many clients that have logged in, asked once and say nothing",
            Self::Rows => "one query that returns rows of 1000 bytes, read to the end",
            Self::Copy => "COPY from the client and to the client, lines of 1000 bytes",
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
