//! What there is to tell people, and which of their scripts to run: found by comparing what is with what was.
//!
//! Nothing here decides anything for the cluster: an event that is lost costs a person a mail, no more. Events that concern
//! the cluster as a whole come from the log and are told once, by the agent that leads; those of one node are told by
//! its own agent. [`Narrator`] is the part of an agent that remembers what it has told.

mod kind;
mod local;
mod narrator;
mod reported;
mod scripts;
mod states;
#[cfg(test)]
mod tests;
mod throttle;

use std::fmt;

use pgherd_common::{Generation, NodeName};
use serde::{Deserialize, Serialize};

pub use kind::{Kind, Scope};
pub use narrator::{Look, Narrator, Told};
pub use scripts::{Call, Role, Values};

/// How much an event matters, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Something is not as it should be, and the cluster copes.
    Warning,
    /// A person has to look.
    Severe,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Info => "INFO",
            Self::Warning => "WARNING",
            Self::Severe => "SEVERE",
        })
    }
}

/// Something that a person may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What kind of thing.
    pub kind: Kind,
    /// The node that it is about, if it is about one.
    pub node: Option<NodeName>,
    /// The generation in force.
    pub generation: Generation,
    /// What happened, why, and what to do where there is something to do.
    pub text: String,
    /// How often it has happened since it was last told; 1 most of the time.
    pub times: u32,
}

impl Event {
    /// It has happened once.
    pub fn new(kind: Kind, node: Option<NodeName>, generation: Generation, text: impl Into<String>) -> Self {
        Self { kind, node, generation, text: text.into(), times: 1 }
    }

    /// One line that says it all, for subjects and logs.
    pub fn headline(&self) -> String {
        let line = self.text.lines().next().unwrap_or_default();
        match self.times {
            0 | 1 => line.to_owned(),
            times => format!("{line} ({times} times)"),
        }
    }
}
